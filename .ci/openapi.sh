# shellcheck shell=bash
# The tools that others use on the OpenAPI document, each on the document as an embedded forebay-api serves it:
# validators take it, generators make clients of it that know every operation and speak to the API, and Swagger
# UI's "Try it out" sends what it shows. Sourced by ./test.
# shellcheck disable=SC2154
# (`url`, `target`, `work` and `skipped` come from ./test and embedded.sh.)

openapi() {
  local status=0
  openapi_tools || { echo 'the tools cannot be installed: no python3 with venv, or no network'; return "$skipped"; }
  # Admin routes are operations, too.
  start_embedded openapi FOREBAY__AUTH__ADMIN_WITHOUT_KEYS=true
  document=$work/document.json
  "$tools/bin/python" -c 'import sys, urllib.request as r; r.urlretrieve(sys.argv[1], sys.argv[2])' \
    "$url/openapi.json" "$document"
  for check in spec_validator redocly openapi_typescript openapi_python_client openapi_generator; do
    printf -- '-- %s\n' "$check"
    (cd "$work" && "check_$check") || { echo "$check failed" >&2; status=1; }
  done
  printf -- '-- try it out\n'
  if browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome); then
    node try_it_out.mjs "$browser" "$document" "$url" || status=1
    still_embedded "$status"
  else
    still_embedded "$status" || return
    echo 'all but the clicks passed: chromium is missing'
    return "$skipped"
  fi
}

# Sets `tools`, a directory with all of them, made anew when their versions change.
openapi_tools() {
  tools=$target/openapi-tools
  local wanted=$work/openapi-tools.wanted
  cat .ci/openapi/requirements.txt .ci/openapi/package.json >"$wanted"
  if ! cmp --silent "$wanted" "$tools/complete"; then
    rm -rf "$tools"
    need_venv &&
      python3 -m venv "$tools" &&
      "$tools/bin/pip" --quiet --disable-pip-version-check install --requirement .ci/openapi/requirements.txt &&
      cp .ci/openapi/package.json "$tools" &&
      PATH=$tools/bin:$PATH "$tools/bin/npm" install --prefix "$tools" --no-package-lock --no-audit --no-fund \
        --ignore-scripts --loglevel error &&
      cp "$wanted" "$tools/complete" || return
  fi
  cp .ci/openapi/*.mjs .ci/openapi/*.py "$tools"
  export PATH=$tools/bin:$tools/node_modules/.bin:$PATH
}

node() { (cd "$tools" && command node "$@"); }

# Bash ignores `set -e` in these, since their callers ask for their status: each command is chained.

check_spec_validator() { openapi-spec-validator "$document"; }

check_redocly() {
  REDOCLY_TELEMETRY=off REDOCLY_SUPPRESS_UPDATE_NOTICE=true redocly lint "$document"
}

check_openapi_typescript() {
  mkdir typescript &&
    openapi-typescript "$document" --output typescript/document.ts &&
    python "$tools/generated.py" typescript_test "$document" "$url" >typescript/operations.ts &&
    tsc --strict --noEmit --target es2022 --module nodenext typescript/operations.ts typescript/document.ts
}

check_openapi_python_client() {
  # It knows no lines of JSON; nothing else may be left out.
  printf 'content_type_overrides:\n  application/x-ndjson: application/octet-stream\n' >python-client.yaml
  openapi-python-client generate --path "$document" --config python-client.yaml --meta none \
    --output-path forebay_client --fail-on-warning &&
    PYTHONPATH=. python "$tools/generated.py" openapi_python_client "$document" "$url"
}

check_openapi_generator() {
  openapi-generator-cli generate --input-spec "$document" --generator-name python --output openapi-generator \
    >openapi-generator.log 2>&1 || { cat openapi-generator.log; return 1; }
  PYTHONPATH=openapi-generator python "$tools/generated.py" openapi_generator "$document" "$url"
}
