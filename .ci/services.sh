# shellcheck shell=bash
# Finds the servers that the tests need, or starts private ones, and stops what it started. Sourced by
# ./test, which sets `work` (a directory of its own, removed at the end) and `run` (a short random word).
#
# A server that was found is only used: never restarted, never reconfigured, no plugin is switched on.
# Every private server listens on loopback only, on free ports, with its data under `work`.
#
# shellcheck disable=SC2154
# (`work` and `run` come from ./test.)
#
# Redis is not started: no test needs it yet. The shared rate limiter will; its place is in
# `services_ready`, beside the other two, with FOREBAY_TEST_REDIS_URL and port 6379.

started_pids=()
started_containers=()
declare -A stop_signals=()

# Exports FOREBAY_TEST_AMQP_URL and FOREBAY_TEST_DATABASE_URL of servers that answer.
services_ready() {
  use_rabbitmq || return 1
  use_postgres || return 1
}

# Ends what was started here, newest first: politely, and after ten seconds for certain.
services_stop() {
  local i container
  for container in "${started_containers[@]}"; do docker rm --force "$container" >/dev/null 2>&1 || true; done
  for ((i = ${#started_pids[@]} - 1; i >= 0; i--)); do stop_process "${started_pids[i]}"; done
  started_pids=() started_containers=()
}

# Removes the databases of this run that a killed test has left on a server that lives on.
services_sweep() {
  [[ ${FOREBAY_TEST_DATABASE_URL-} ]] && command -v psql >/dev/null || return 0
  local name names
  names=$(psql_quiet "select datname from pg_database where starts_with(datname, 'forebay_test_${run}_')") || return 0
  for name in $names; do
    printf 'removing the left-over database %s\n' "$name"
    psql_quiet "drop database if exists \"$name\" with (force)" || true
  done
}

psql_quiet() {
  PGCONNECT_TIMEOUT=5 psql --no-psqlrc --no-password --quiet --tuples-only --no-align \
    --command "$1" "$FOREBAY_TEST_DATABASE_URL" 2>/dev/null
}

# ---------------------------------------------------------------- RabbitMQ

use_rabbitmq() {
  if [[ ${FOREBAY_TEST_AMQP_URL-} ]]; then
    echo 'RabbitMQ: the one that FOREBAY_TEST_AMQP_URL names'
    return
  fi
  local port=5672
  if [[ ! ${FOREBAY_TEST_PRIVATE-} ]] && rabbitmq_answers "$port"; then
    echo "RabbitMQ: found at 127.0.0.1:$port"
  elif rabbitmq_in_docker; then
    echo "RabbitMQ: private, started in Docker at 127.0.0.1:$port"
  elif rabbitmq_from_packages; then
    echo "RabbitMQ: private, started from Debian's package at 127.0.0.1:$port"
  else
    echo 'RabbitMQ: none at 127.0.0.1:5672 for guest, no Docker engine, and the package rabbitmq-server is' \
      'neither here nor to be installed. Start one, or set FOREBAY_TEST_AMQP_URL.' >&2
    return 1
  fi
  export FOREBAY_TEST_AMQP_URL="amqp://guest:guest@127.0.0.1:$port/%2f"
}

# rabbitmq_answers PORT: a whole AMQP 0-9-1 conversation as guest: protocol header, start-ok with PLAIN,
# tune-ok, open of the virtual host `/`. Only a broker that lets guest in says open-ok (10, 41).
rabbitmq_answers() {
  local start_ok='\x01\0\0\0\0\0\x24\0\x0a\0\x0b\0\0\0\0\x05PLAIN\0\0\0\x0c\0guest\0guest\x05en_US\xce'
  # 8 channels, frames of 128 KiB, no heartbeat
  local tune_ok='\x01\0\0\0\0\0\x0c\0\x0a\0\x1f\0\x08\0\x02\0\0\0\0\xce'
  local open='\x01\0\0\0\0\0\x08\0\x0a\0\x28\x01/\0\0\xce'
  local close='\x01\0\0\0\0\0\x0b\0\x0a\0\x32\0\xc8\0\0\0\0\0\xce'
  converse "$1" "AMQP\0\0\x09\x01$start_ok$tune_ok$open" 000a0029 "$close"
}

rabbitmq_in_docker() {
  docker_answers || return 1
  # The default segment size of the write-ahead log (512 MB) is too much for a small machine.
  # shellcheck disable=SC2016  # expanded in the container
  docker_run rabbitmq 5672 rabbitmq:4 \
    sh -c 'echo raft.wal_max_size_bytes=64000000 >/etc/rabbitmq/conf.d/90-forebay.conf; exec docker-entrypoint.sh rabbitmq-server' ||
    return 1
  wait_for 'RabbitMQ in Docker' 120 rabbitmq_answers "$port"
}

rabbitmq_from_packages() {
  local program=/usr/lib/rabbitmq/bin/rabbitmq-server owner home=$work/rabbitmq
  [[ -x $program ]] || apt_install rabbitmq-server || return 1
  owner=$(owner_of_servers rabbitmq)
  private_directory "$home" "$owner"
  free_port && port=$free
  free_port && local epmd_port=$free
  free_port && local distribution_port=$free
  echo raft.wal_max_size_bytes=64000000 >"$work/rabbitmq.conf"
  : >"$work/rabbitmq-env.conf" # else the machine's own settings apply
  echo '[].' >"$work/enabled_plugins"
  chmod 644 "$work"/rabbitmq*.conf "$work/enabled_plugins"
  local environment=(
    HOME="$home" ERL_EPMD_ADDRESS=127.0.0.1 ERL_EPMD_PORT="$epmd_port"
    RABBITMQ_NODENAME="forebay_test_$run@localhost"
    RABBITMQ_NODE_IP_ADDRESS=127.0.0.1 RABBITMQ_NODE_PORT="$port" RABBITMQ_DIST_PORT="$distribution_port"
    RABBITMQ_MNESIA_BASE="$home/data" RABBITMQ_LOG_BASE="$home/log" RABBITMQ_LOGS="$home/log/rabbit.log"
    RABBITMQ_GENERATED_CONFIG_DIR="$home/generated" RABBITMQ_ENABLED_PLUGINS_FILE="$work/enabled_plugins"
    RABBITMQ_CONF_ENV_FILE="$work/rabbitmq-env.conf" RABBITMQ_CONFIG_FILE="$work/rabbitmq.conf"
    # "Allow input" makes the script become the broker instead of watching over it: one process to stop.
    RABBITMQ_ALLOW_INPUT=1 RABBITMQ_SERVER_START_ARGS=-noinput
    RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS='-kernel inet_dist_use_interface {127,0,0,1}'
  )
  # An own port mapper, in the foreground: the one that the broker would start outlives it.
  launch "$owner" TERM "$work/epmd.log" env "${environment[@]}" epmd
  launch "$owner" TERM "$work/rabbitmq.log" env "${environment[@]}" "$program"
  wait_for RabbitMQ 120 rabbitmq_answers "$port" && return
  tail -n 30 "$work/rabbitmq.log" "$home/log/rabbit.log" >&2 || true
  return 1
}

# ---------------------------------------------------------------- PostgreSQL

use_postgres() {
  if [[ ${FOREBAY_TEST_DATABASE_URL-} ]]; then
    echo 'PostgreSQL: the one that FOREBAY_TEST_DATABASE_URL names'
    return
  fi
  local port=5432 role=postgres
  if [[ ! ${FOREBAY_TEST_PRIVATE-} ]] && found_role "$port"; then
    echo "PostgreSQL: found at 127.0.0.1:$port, role $role"
  elif postgres_in_docker; then
    echo "PostgreSQL: private, started in Docker at 127.0.0.1:$port"
  elif postgres_from_packages; then
    echo "PostgreSQL: private, started from Debian's package at 127.0.0.1:$port"
  else
    echo 'PostgreSQL: none at 127.0.0.1:5432 that trusts the role postgres or your own, no Docker engine, and' \
      'the package postgresql is neither here nor to be installed. Start one, or set FOREBAY_TEST_DATABASE_URL.' >&2
    return 1
  fi
  export FOREBAY_TEST_DATABASE_URL="postgres://$role@127.0.0.1:$port/postgres"
}

# found_role PORT: sets `role` to the first one that gets in without a password.
found_role() {
  for role in postgres "$(id -un || true)"; do
    postgres_answers "$1" "$role" && return
  done
  role=postgres
  return 1
}

# postgres_answers PORT ROLE: with psql whether the role may create databases; without it the start of the
# protocol, where `R` with code 0 means that the role is in without a password and `Z` that queries may come.
postgres_answers() {
  if command -v psql >/dev/null; then
    local right='select rolcreatedb or rolsuper from pg_roles where rolname = current_user'
    [[ $(FOREBAY_TEST_DATABASE_URL="postgres://$2@127.0.0.1:$1/postgres" psql_quiet "$right") == t ]]
    return
  fi
  # Length, protocol 3.0, user, database; Terminate at the end.
  local body="\\0\\x03\\0\\0user\\0$2\\0database\\0postgres\\0\\0"
  local length=$((4 + 4 + 5 + ${#2} + 1 + 9 + 9 + 1))
  converse "$1" "\\0\\0\\0$(printf '\\x%02x' "$length")$body" '520000000800000000*5a00000005' 'X\0\0\0\x04'
}

postgres_in_docker() {
  docker_answers || return 1
  docker_run postgres 5432 --env POSTGRES_HOST_AUTH_METHOD=trust postgres:17 -c fsync=off || return 1
  wait_for 'PostgreSQL in Docker' 120 postgres_answers "$port" postgres
}

postgres_from_packages() {
  local programs owner home=$work/postgres
  programs=$(postgres_programs) || { apt_install postgresql && programs=$(postgres_programs); } || return 1
  owner=$(owner_of_servers postgres) # it refuses to run as root
  private_directory "$home" "$owner"
  free_port && port=$free
  if ! run_as "$owner" KILL "$programs/initdb" --pgdata "$home/data" --username postgres --auth trust \
    --encoding UTF8 --locale C.UTF-8 >"$work/initdb.log" 2>&1; then
    cat "$work/initdb.log" >&2
    return 1
  fi
  # SIGINT is its fast stop. What is in it need not survive a power cut: no fsync.
  launch "$owner" INT "$work/postgres.log" "$programs/postgres" -D "$home/data" -h 127.0.0.1 -p "$port" \
    -c unix_socket_directories= -c fsync=off -c max_connections=200
  wait_for PostgreSQL 60 postgres_answers "$port" postgres && return
  tail -n 30 "$work/postgres.log" >&2
  return 1
}

# Prints the directory of the newest PostgreSQL of this machine.
postgres_programs() {
  local found
  found=$(printf '%s\n' /usr/lib/postgresql/*/bin/initdb | sort -V | tail -n 1)
  [[ -x $found ]] || found=$(command -v initdb) || return 1
  dirname "$found"
}

# ---------------------------------------------------------------- Docker

# A client without an engine exists, so the engine is asked.
docker_answers() {
  command -v docker >/dev/null && timeout 10 docker info >/dev/null 2>&1
}

# docker_run NAME PORT [OPTION...] IMAGE [COMMAND...]: sets `port` to the loopback port that leads to PORT.
docker_run() {
  local name="forebay-test-$run-$1" inner=$2
  shift 2
  started_containers+=("$name")
  docker run --quiet --detach --rm --name "$name" --publish "127.0.0.1::$inner" "$@" >"$work/$name.log" 2>&1 &&
    port=$(docker port "$name" "$inner/tcp" | sed -n '1s/.*://p') && [[ $port ]] && return
  echo "Docker did not start $name: $(tail -n 1 "$work/$name.log")" >&2
  return 1
}

# ---------------------------------------------------------------- Processes and ports

# The user that a server runs as when this script is root; nothing otherwise.
owner_of_servers() {
  ((EUID == 0)) || return 0
  if id -u "$1" >/dev/null 2>&1; then echo "$1"; else echo nobody; fi
}

private_directory() {
  mkdir -m 700 "$1"
  [[ ! $2 ]] || chown "$2:" "$1"
}

# run_as OWNER SIGNAL COMMAND...: as OWNER when there is one. SIGNAL comes when this script is killed.
run_as() {
  local owner=$1 signal=$2 become=()
  shift 2
  [[ ! $owner ]] || become=(--reuid "$owner" --regid "$(id -g "$owner")" --init-groups)
  (cd "$work" && exec setpriv "${become[@]}" --pdeathsig "$signal" "$@") </dev/null
}

# launch OWNER SIGNAL LOG COMMAND...: in the background, in a session of its own, so that a Ctrl-C for this
# script does not reach it. Leaves its process id in `started_pids`, its stop signal in `stop_signals`.
launch() {
  local owner=$1 signal=$2 log=$3 become=()
  shift 3
  [[ ! $owner ]] || become=(--reuid "$owner" --regid "$(id -g "$owner")" --init-groups)
  (cd "$work" && exec setsid setpriv "${become[@]}" --pdeathsig "$signal" "$@") </dev/null >"$log" 2>&1 &
  started_pids+=("$!")
  stop_signals[$!]=$signal
}

stop_process() {
  local i
  kill -s "${stop_signals[$1]:-TERM}" "$1" 2>/dev/null || return 0
  for ((i = 0; i < 100; i++)); do
    kill -0 "$1" 2>/dev/null || break
    sleep 0.1
  done
  kill -s KILL "$1" 2>/dev/null || true
  wait "$1" 2>/dev/null || true
}

# wait_for WHAT SECONDS CONDITION...: until the condition holds, the last started process is gone or the time is up.
wait_for() {
  local what=$1 deadline=$((SECONDS + $2)) pid=
  shift 2
  ((${#started_pids[@]} == 0)) || pid=${started_pids[-1]}
  until "$@"; do
    if ((SECONDS >= deadline)); then
      echo "$what did not answer in time" >&2
      return 1
    fi
    if [[ $pid ]] && ! kill -0 "$pid" 2>/dev/null; then
      echo "$what has ended by itself" >&2
      return 1
    fi
    sleep 0.3
  done
}

# converse PORT BYTES PATTERN GOODBYE: sends BYTES to a loopback port and reads until the answer, in
# hexadecimal digits, contains PATTERN, then sends GOODBYE. Fails when the answer ends or pauses before that.
# Bytes are printf formats.
converse() (
  exec 3<>"/dev/tcp/127.0.0.1/$1" || exit 1
  # shellcheck disable=SC2059
  printf "$2" >&3
  answer=''
  # shellcheck disable=SC2053  # a pattern
  until [[ $answer == *$3* ]]; do
    chunk=$(timeout 3 dd bs=64k count=1 <&3 | od -An -v -tx1 | tr -d ' \n')
    [[ $chunk ]] || exit 1
    answer+=$chunk
  done
  # shellcheck disable=SC2059
  printf "$4" >&3
  timeout 1 dd bs=64k count=1 <&3 >/dev/null || true # lets the server close first
) 2>/dev/null

# Sets `free` to a loopback port without a listener, below those that the system gives to clients.
free_port() {
  local i
  for ((i = 0; i < 100; i++)); do
    free=$((20000 + (RANDOM * 32768 + RANDOM) % 10000))
    (: <>"/dev/tcp/127.0.0.1/$free") 2>/dev/null || return 0
  done
  echo 'no free port between 20000 and 30000' >&2
  return 1
}
