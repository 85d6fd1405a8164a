//! The seeded plan: who is killed when. It waits for writes between two kills, so that each one
//! hits a service at work, and it measures how long the service takes to be back.
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::Settings;
use crate::fleet::Fleet;
use crate::traffic::{Target, Traffic};

const PAUSE_MS: std::ops::RangeInclusive<u64> = 300..=800;
/// Accepted requests between two kills.
pub const ACCEPTED_MIN: u64 = 10;
/// Longest time without that many accepted requests.
const RECOVERY_PATIENCE: Duration = Duration::from_secs(30);
/// How long to wait for a moment in which the victim has open requests.
const OPEN_PATIENCE: Duration = Duration::from_millis(200);
const PAUSE: Duration = Duration::from_millis(2);

/// One kill.
#[derive(Clone, Debug, Serialize)]
pub struct Kill {
    pub victim: String,
    pub is_api: bool,
    pub after_ms: u128,
    /// Requests that were accepted since the kill before.
    pub accepted_before: u64,
    /// Requests that were open at the victim, or at all APIs when it is a consumer.
    pub open: usize,
    /// From the start of the new process: to its next 202 for an API, to readiness for a consumer.
    pub recovery_ms: u128,
}

/// Kills as often as set. An error when the service does not come back.
pub async fn carry_out(
    settings: &Settings,
    fleet: &mut Fleet,
    traffic: &Traffic,
) -> anyhow::Result<Vec<Kill>> {
    let mut random = StdRng::seed_from_u64(settings.seed);
    let (mut recoveries, mut kills) = (JoinSet::new(), Vec::with_capacity(settings.kills));
    let (began, mut accepted_at_last) = (Instant::now(), 0);
    for number in 0..settings.kills {
        let pause = Duration::from_millis(random.random_range(PAUSE_MS));
        let victim = random.random_range(0..fleet.members.len());
        tokio::time::sleep(pause).await;
        let accepted = await_accepted(traffic, accepted_at_last + ACCEPTED_MIN)
            .await
            .with_context(|| format!("after kill {number} of {}", settings.kills))?;
        let member = &mut fleet.members[victim];
        let target = traffic.targets.iter().find(|target| Some(target.address) == member.api).cloned();
        let open = open_requests(traffic, target.as_deref()).await;
        let restarted = member.kill_and_restart().await?;
        kills.push(Kill {
            victim: member.name.clone(),
            is_api: target.is_some(),
            after_ms: began.elapsed().as_millis(),
            accepted_before: accepted - accepted_at_last,
            open,
            recovery_ms: 0,
        });
        accepted_at_last = accepted;
        let probe = member.health();
        recoveries.spawn(async move {
            let back = match target {
                Some(target) => next_accepted(target).await?,
                None => probe.succeeds().await?,
            };
            anyhow::Ok((number, back.duration_since(restarted)))
        });
    }
    while let Some(recovery) = recoveries.join_next().await {
        let (number, took) = recovery.context("a recovery was not measured")??;
        kills[number].recovery_ms = took.as_millis();
    }
    Ok(kills)
}

async fn await_accepted(traffic: &Traffic, wanted: u64) -> anyhow::Result<u64> {
    let wait = async {
        while traffic.accepted() < wanted {
            tokio::time::sleep(PAUSE).await;
        }
        traffic.accepted()
    };
    timeout(RECOVERY_PATIENCE, wait).await.with_context(|| {
        format!("the service did not accept {ACCEPTED_MIN} requests within {RECOVERY_PATIENCE:?}")
    })
}

/// Waits for a moment in which requests are open where it will hurt.
async fn open_requests(traffic: &Traffic, target: Option<&Target>) -> usize {
    let Some(target) = target else {
        return traffic.targets.iter().map(|target| *target.open.borrow()).sum();
    };
    let mut open = target.open.subscribe();
    match timeout(OPEN_PATIENCE, open.wait_for(|open| *open > 0)).await {
        Ok(Ok(open)) => *open,
        _ => 0,
    }
}

async fn next_accepted(target: Arc<Target>) -> anyhow::Result<Instant> {
    let mut accepted = target.accepted.subscribe();
    let before = *accepted.borrow_and_update();
    let next = timeout(RECOVERY_PATIENCE, accepted.wait_for(|accepted| *accepted > before)).await;
    next.with_context(|| format!("no 202 within {RECOVERY_PATIENCE:?} of a restart"))??;
    Ok(Instant::now())
}
