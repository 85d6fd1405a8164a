# shellcheck shell=bash
# The examples beside docs/messages.md, a producer and a listener that are no part of Forebay, against both programs
# with RabbitMQ and PostgreSQL, in a database and under a prefix of their own. Sourced by ./test.
# shellcheck disable=SC2154
# (`target`, `work`, `run` and `skipped` come from ./test, the URLs of servers from services.sh.)

foreign() {
  local status=0 port ops_port consumer_port
  # Read at the end of this shell, too.
  tools=$target/foreign-tools pids=() name=forebay_test_${run}_foreign
  command -v psql >/dev/null || { echo 'psql is missing, which makes the database'; return "$skipped"; }
  foreign_tools || { echo 'pika cannot be installed: no python3 with venv, or no network'; return "$skipped"; }
  cargo build --workspace --bins --tests --locked # with the same features as all other steps
  psql_quiet "create database \"$name\""
  free_port && port=$free
  free_port && ops_port=$free
  free_port && consumer_port=$free
  local environment=(
    AMQP_URL="$FOREBAY_TEST_AMQP_URL" DATABASE_URL="${FOREBAY_TEST_DATABASE_URL%/*}/$name"
    FOREBAY__QUEUE__PREFIX="$name" FOREBAY__IDS__SECRETS='["a secret of the example"]' FOREBAY__SERVER__PORT="$port"
  )
  mkdir -p "$work/foreign" # no config.yaml counts there
  trap 'foreign_stop' EXIT
  (cd "$work/foreign" && exec env "${environment[@]}" "$target/debug/forebay-api" migrate)
  (cd "$work/foreign" && exec env "${environment[@]}" FOREBAY__OPS__PORT="$ops_port" \
    "$target/debug/forebay-api") >"$work/foreign/api.log" 2>&1 &
  pids+=("$!")
  (cd "$work/foreign" && exec env "${environment[@]}" FOREBAY__OPS__PORT="$consumer_port" \
    "$target/debug/forebay-consumer") >"$work/foreign/consumer.log" 2>&1 &
  pids+=("$!")
  timeout 60 "$tools/bin/python" .ci/foreign/check.py "$FOREBAY_TEST_AMQP_URL" "$name" "http://127.0.0.1:$port" \
    'a secret of the example' || status=$?
  ((status == 0)) || tail -n 20 "$work/foreign/api.log" "$work/foreign/consumer.log" >&2
  return "$status"
}

# Ends the programs before what they use goes.
foreign_stop() {
  kill "${pids[@]}" 2>/dev/null || true
  wait "${pids[@]}" || true
  "$tools/bin/python" .ci/foreign/remove.py "$FOREBAY_TEST_AMQP_URL" "$name" || true
  psql_quiet "drop database if exists \"$name\" with (force)" || true
}

# Makes `tools` anew when the versions change.
foreign_tools() {
  local wanted=docs/examples/requirements.txt
  cmp --silent "$wanted" "$tools/complete" && return
  rm -rf "$tools"
  need_venv &&
    python3 -m venv "$tools" &&
    "$tools/bin/pip" --quiet --disable-pip-version-check install --require-hashes --requirement "$wanted" &&
    cp "$wanted" "$tools/complete"
}
