# shellcheck shell=bash
# schemathesis over the OpenAPI document against an embedded forebay-api: no answer that the document does not
# declare, and no 5xx, for any generated request, alone and in sequences that follow the links from answers to
# requests. Sourced by ./test.
# shellcheck disable=SC2154
# (`url` and `environment` come from embedded.sh.)

readonly schemathesis_version=4.32.5

fuzz() {
  local status=0
  pypi_tool schemathesis "$schemathesis_version"
  # Admin routes are operations, too. Waits are short, so that a generated `Prefer: wait` costs little.
  start_embedded fuzz FOREBAY__AUTH__ADMIN_WITHOUT_KEYS=true FOREBAY__SERVER__WAIT_MS_MAX=1000
  # The same cases in each run: what is found once is found again.
  "$environment/bin/schemathesis" run "$url/openapi.json" --seed 1 --max-examples 40 --no-color \
    --phases examples,coverage,fuzzing,stateful \
    --checks not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance,unsupported_method,allow_header_conformance,missing_required_header,ensure_resource_availability ||
    status=$?
  still_embedded "$status"
}
