//! The ledger test as a test: fifty kills for each pair, both at once.
//!
//! `FOREBAY_CHAOS_SEED` repeats a plan, `FOREBAY_CHAOS_KILLS` shortens or lengthens it.
use chaos::{Pair, Settings};
use tokio::sync::watch;

async fn survives_kills(pair: Pair) {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seed = number("FOREBAY_CHAOS_SEED").unwrap_or_else(rand::random);
    let kills = number("FOREBAY_CHAOS_KILLS").unwrap_or(50).try_into().expect("a number of kills");
    let binaries = chaos::binaries_beside_this().expect("the programs");
    let (_interrupt, interrupted) = watch::channel(false);
    let settings = Settings { pair, kills, seed, binaries };
    let report = chaos::run(settings, interrupted).await.expect("a complete run");
    report.check_promises().expect("nothing lost, nothing doubled");
    report.check_teeth(kills).expect("kills that could have hurt");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_pair_loses_and_doubles_nothing_over_kills() {
    survives_kills(Pair::Embedded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_loses_and_doubles_nothing_over_kills_of_any_program() {
    survives_kills(Pair::Cluster).await;
}
