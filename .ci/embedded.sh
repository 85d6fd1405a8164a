# shellcheck shell=bash
# An embedded forebay-api in a directory of its own, for steps that speak to it from outside, and tools from
# PyPI for them. Sourced by ./test; each step that uses it runs in a shell of its own.
# shellcheck disable=SC2154
# (`work` and `target` come from ./test.)

# start_embedded NAME [VARIABLE=VALUE...]: sets `url`; the program ends with this shell.
start_embedded() {
  local data=$work/$1 ops_port port
  api_log=$work/$1.log
  cargo build --workspace --bins --tests --locked # with the same features as all other steps
  mkdir -p "$data"
  free_port && port=$free
  free_port && ops_port=$free
  # From its own directory, so that no config.yaml of this one counts.
  (cd "$data" && exec env FOREBAY__QUEUE__URL="embedded:$data" FOREBAY__STORE__URL="embedded:$data" \
    FOREBAY__SERVER__PORT="$port" FOREBAY__OPS__PORT="$ops_port" "${@:2}" "$target/debug/forebay-api") >"$api_log" 2>&1 &
  api=$!
  trap 'kill "$api" 2>/dev/null || true; wait "$api" || true' EXIT
  url=http://127.0.0.1:$port
  wait_until_healthy "$port"
}

# still_embedded STATUS: prints the end of the log when the step failed or the program is gone.
still_embedded() {
  local status=$1
  kill -0 "$api" 2>/dev/null || { echo 'forebay-api ended during the run' >&2; status=1; }
  ((status == 0)) || tail -n 40 "$api_log" >&2
  return "$status"
}

wait_until_healthy() {
  local deadline=$((SECONDS + 30))
  until curl_like "$1" /health; do
    if ((SECONDS >= deadline)) || ! kill -0 "$api" 2>/dev/null; then
      echo 'forebay-api did not become healthy' >&2
      tail -n 40 "$api_log" >&2
      return 1
    fi
    sleep 0.2
  done
}

# curl_like PORT PATH: succeeds when the answer is 200; a bare machine has no curl.
curl_like() {
  local answer
  # shellcheck disable=SC2016  # expanded by the inner shell
  answer=$(timeout 5 bash -c 'exec 3<>"/dev/tcp/127.0.0.1/$1" &&
    printf "GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" "$2" >&3 && head -n 1 <&3' get "$@" 2>/dev/null) || return 1
  [[ $answer == *' 200 '* ]]
}

# pypi_tool NAME VERSION: sets `environment`, a virtual environment with that package, made when it is missing.
pypi_tool() {
  environment=$target/$1-$2
  "$environment/bin/$1" --version >/dev/null 2>&1 && return
  need_venv || return
  rm -rf "$environment"
  python3 -m venv "$environment"
  "$environment/bin/pip" --quiet --disable-pip-version-check install "$1==$2"
}

# Installs what virtual environments need where it is missing.
need_venv() {
  python3 -c 'import ensurepip, venv' 2>/dev/null || apt_install python3-venv || {
    echo 'python3 with venv is missing (Debian: python3-venv)' >&2
    return 1
  }
}
