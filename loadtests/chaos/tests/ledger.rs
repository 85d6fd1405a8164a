//! The ledger test as a test of the suite: a short seeded plan for each pair, both at once.
//!
//! `FOREBAY_CHAOS_SEED` repeats a plan, `FOREBAY_CHAOS_MINUTES` makes it a long one,
//! `FOREBAY_CHAOS_WITHOUT_KEYS` leaves Idempotency-Keys out.
use std::io::Write;

use chaos::servers::Programs;
use chaos::{ChaosSettings, Length, Pair};
use tokio::sync::watch;

/// Connections; both pairs at once share two cores.
const CROWD: usize = 20;

async fn survives_faults(pair: Pair) {
    let set = |name| std::env::var(name).ok();
    let seed = set("FOREBAY_CHAOS_SEED").map_or_else(rand::random, |text| text.parse().expect("a number"));
    let minutes = set("FOREBAY_CHAOS_MINUTES").map(|text| text.parse().expect("a number"));
    let length = minutes.map_or(Length::Short, Length::Minutes);
    let binaries = chaos::binaries_beside_this().expect("the programs");
    let (_interrupt, interrupted) = watch::channel(false);
    let without_keys = set("FOREBAY_CHAOS_WITHOUT_KEYS").is_some();
    let settings = ChaosSettings {
        pair,
        length,
        seed,
        classes: Vec::new(),
        nodes: 1,
        outage_minutes: 1.0,
        crowd: CROWD,
        without_keys,
        binaries,
    };
    let report = chaos::run(settings, interrupted).await.expect("a complete run");
    report.check_promises().expect("nothing lost, nothing doubled");
    report.check_teeth().expect("faults that could have hurt");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_pair_loses_and_doubles_nothing_over_faults() {
    survives_faults(Pair::Embedded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_loses_and_doubles_nothing_over_faults_of_any_part() {
    if let Err(missing) = Programs::find() {
        // Written past the harness, which shows the output of failed tests only.
        let _ = writeln!(std::io::stderr(), "SKIPPED, the cluster was not tested: {missing:#}");
        return;
    }
    survives_faults(Pair::Cluster).await;
}
