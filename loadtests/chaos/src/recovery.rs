//! Recovery after a fault: the time from its end to the next write that is accepted and to the next
//! one that is applied, at the API that takes longest. These writes stand in the ledger as all
//! others do.
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::Serialize;
use tokio::task::JoinSet;

use crate::audit::receipt_status;
use crate::fault::Bound;
use crate::kind::Kind;
use crate::ledger::{Ledger, Outcome, Write};
use crate::send;

const PAUSE: Duration = Duration::from_millis(10);

/// Times to the first accepted and the first applied write; `None`: not within the bound at which
/// the run fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Recovery {
    pub accepted_ms: Option<u128>,
    pub applied_ms: Option<u128>,
}

impl Recovery {
    pub fn is_within(self, bound: Bound) -> bool {
        self.slowest_ms().is_some_and(|ms| ms <= bound.failed_ms)
    }

    pub fn is_as_wanted(self, bound: Bound) -> bool {
        self.slowest_ms().is_some_and(|ms| ms <= bound.wanted_ms)
    }

    fn slowest_ms(self) -> Option<u128> {
        Some(self.accepted_ms?.max(self.applied_ms?))
    }
}

impl fmt::Display for Recovery {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |ms: Option<u128>| ms.map_or_else(|| "never".to_owned(), |ms| format!("after {ms} ms"));
        write!(out, "accepted {}, applied {}", text(self.accepted_ms), text(self.applied_ms))
    }
}

/// Measures at every API at once, from `ended` on. `name` begins the names of the counters.
pub async fn measure(
    ledger: &Arc<Ledger>,
    apis: &[SocketAddr],
    name: &str,
    ended: Instant,
    bound: Bound,
) -> anyhow::Result<Recovery> {
    let failed = Duration::from_millis(u64::try_from(bound.failed_ms)?);
    let mut asking = JoinSet::new();
    for (place, api) in apis.iter().copied().enumerate() {
        let name = format!("{name}-{place}");
        asking.spawn(ask(Arc::clone(ledger), api, name, ended, ended + failed));
    }
    let mut slowest = Recovery { accepted_ms: Some(0), applied_ms: Some(0) };
    while let Some(one) = asking.join_next().await {
        let one = one.context("asking panicked")??;
        let later = |a: Option<u128>, b: Option<u128>| a.zip(b).map(|(a, b)| a.max(b));
        slowest.accepted_ms = later(slowest.accepted_ms, one.accepted_ms);
        slowest.applied_ms = later(slowest.applied_ms, one.applied_ms);
    }
    Ok(slowest)
}

/// Writes until a write is accepted, then waits until that one is applied.
async fn ask(
    ledger: Arc<Ledger>,
    api: SocketAddr,
    name: String,
    ended: Instant,
    deadline: Instant,
) -> anyhow::Result<Recovery> {
    let client = send::client()?;
    let mut recovery = Recovery { accepted_ms: None, applied_ms: None };
    for attempt in 0.. {
        let target = format!("{name}-{attempt}");
        let write = Write::new(Kind::Counter, target, vec![1]);
        let request = ledger.intend(write.clone()).await?;
        let outcome = send::once(&client, api, &write).await?;
        ledger.settle(request, outcome.clone())?;
        if let Outcome::Accepted(ids) = outcome {
            recovery.accepted_ms = Some(ended.elapsed().as_millis());
            let id = ids.first().context("a 202 without an id")?;
            while receipt_status(&client, api, id).await != "applied" {
                if Instant::now() > deadline {
                    return Ok(recovery);
                }
                tokio::time::sleep(PAUSE).await;
            }
            recovery.applied_ms = Some(ended.elapsed().as_millis());
            return Ok(recovery);
        }
        if Instant::now() > deadline {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(recovery)
}
