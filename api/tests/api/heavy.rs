//! Reads of rollups that are as heavy as they can get: answered in bounded memory.
use std::sync::Arc;

use api::rfc3339::rfc3339;
use async_trait::async_trait;
use serde_json::Value;
use shared::model::rollup::Rollup;
use shared::store::rules::points::PAGE_BYTES_MAX;
use shared::store::{RollupPage, RollupRange, Store, StoreError};
use testkit::store::{Layer, Layered};

use crate::support::{embedded_over, json};

const MINUTE_MS: i64 = 60_000;

/// Number of reads at once.
const QUESTIONS: usize = 6;

/// Bytes of memory that they may need together: four pages of 8 MiB as they are read, and the
/// memory that the allocator keeps. All of the rollups have 760 MB.
const MEMORY_MAX: usize = 128 << 20;

/// A store that has a heavy rollup for each period, whatever the type.
struct Heavy {
    behind: Arc<dyn Store>,
    rollup: Rollup,
}

#[async_trait]
impl Layer for Heavy {
    fn behind(&self) -> &Arc<dyn Store> {
        &self.behind
    }

    async fn rollups(&self, range: RollupRange) -> Result<RollupPage, StoreError> {
        let per_page = i32::try_from(PAGE_BYTES_MAX / self.rollup.encode().len()).expect("small");
        let end = range.below.min(range.from + per_page);
        let rollups = (range.from..end).map(|period| (period, self.rollup.clone())).collect();
        Ok(RollupPage { rollups, next: Some(end).filter(|end| *end < range.below) })
    }
}

/// Makes a rollup with a value in every bin, on both sides.
fn heavy() -> Rollup {
    let mut rollup = Rollup::default();
    for bin in 0..2_770 {
        let value = 1e-9 * (f64::from(bin) / 50.1 + 0.001).exp();
        rollup.add(value);
        rollup.add(-value);
    }
    rollup
}

#[tokio::test(flavor = "multi_thread")]
async fn series_and_summaries_over_heavy_rollups_need_little_memory() {
    testkit::alone::alone(asked()).await;
}

async fn asked() {
    let layered = |behind| -> Arc<dyn Store> { Arc::new(Layered(Heavy { behind, rollup: heavy() })) };
    embedded_over(&layered, |installation| async move {
        let now_ms = shared::runtime::clock::now_ms();
        // 1,440 rollups of minutes.
        let range = format!("from={}&to={}", rfc3339(now_ms - 24 * 60 * MINUTE_MS), rfc3339(now_ms));
        // This resets the peak.
        std::fs::write("/proc/self/clear_refs", "5").expect("is written");
        let before = testkit::alone::memory("VmRSS");
        let ask = async |index: usize| -> Value {
            let what = if index == 0 { "summary" } else { "series" };
            let step = if index == 0 { "" } else { "&step=90m" };
            json(installation.get(&format!("/v1/metrics/{what}?type=t{index}&{range}{step}")).await).await
        };
        let answers = futures_util::future::join_all((0..QUESTIONS).map(ask)).await;
        let grown = testkit::alone::memory("VmHWM").saturating_sub(before);
        assert!(grown < MEMORY_MAX, "{} MiB more", grown >> 20);
        let per_rollup = heavy().count();
        let count = answers[0]["count"].as_u64().expect("a number");
        assert!(count > 0 && count.is_multiple_of(per_rollup), "{}", answers[0]);
        for answer in &answers[1..] {
            let buckets = answer["buckets"].as_array().expect("buckets");
            assert!((16..=17).contains(&buckets.len()), "{}", buckets.len());
            for bucket in buckets {
                assert_eq!(bucket["count"], 90 * per_rollup);
                assert_eq!((&bucket["sum"], &bucket["average_value"]), (&0.0.into(), &0.0.into()));
                assert!(bucket["p99"].as_f64().expect("a number") > 1e14);
            }
        }
        installation
    })
    .await;
}
