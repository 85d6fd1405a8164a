# Shortcuts; each is one command that also works without just. `just --list` shows them.

target := env("CARGO_TARGET_DIR", justfile_directory() / "target")

_list:
    @just --list --unsorted

# The API with everything in one process; data in ./forebay-data
run *arguments:
    cargo run --release -p api -- {{ arguments }}

# Everything that must hold, or the named steps: `just test fast`
test *steps:
    ./test {{ steps }}

# Format and lints, as CI has them
check:
    ./test --keep-going fmt clippy

# Forebay against the bare handler on this machine: `just load --quick`
load *arguments:
    cargo build --release -p api -p consumer --bins --example bare
    cargo run --release -p compare -- {{ arguments }}

# The HTTP contract, with k6, against an embedded API
smoke:
    ./test smoke

# Faults under load, on servers of its own, then an audit: `just chaos --minutes 60`, `just chaos --pair cluster --seed 7`
chaos *arguments:
    cargo build -p api -p consumer
    cargo run -p chaos -- {{ arguments }}

# The long runs by count, with release builds, and one table of them; takes hours: `just chaos-long --rows kill,broker-away`
chaos-long *arguments:
    cargo build --release -p api -p consumer -p chaos
    {{ target }}/release/chaos-long {{ arguments }}

# Proves that the fault suite finds bugs: builds the programs with some, and hunts them: `just chaos-seeded ledger-skipped`
chaos-seeded *bugs:
    loadtests/chaos/seeded/run {{ bugs }}

# Both programs as they are shipped, with their line tables beside them: `just ship out`
ship folder *options:
    .ci/ship {{ folder }} {{ options }}

# Regenerates what is derived from code and committed: docs/configuration.md, docs/openapi.json
docs:
    UPDATE_DOCS=1 cargo test -p shared --test it the_documented_settings_are_those_of_the_program
    UPDATE_DOCS=1 cargo test -p api --test api the_committed_document_is_the_generated_one

# Regenerates .sqlx, the checked queries, from a scratch database; `server` may create databases
sqlx server="postgres://postgres@127.0.0.1:5432":
    .ci/sqlx {{ server }}
