//! One request, sent once, and its answer read by the contract.
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use reqwest::{Client, StatusCode};
use serde::Deserialize;
use serde_json::Value;

use crate::kind::Kind;
use crate::ledger::{Applied, Outcome, Write};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// A client without a proxy: everything is on loopback.
pub fn client() -> anyhow::Result<Client> {
    let builder = Client::builder().no_proxy().timeout(REQUEST_TIMEOUT).pool_max_idle_per_host(1);
    builder.build().context("no HTTP client")
}

/// The answer to one request.
#[derive(Debug)]
pub struct Answer {
    /// Status; `None` without an answer, or with one that broke off.
    pub status: Option<u16>,
    pub took: Duration,
    pub outcome: Outcome,
}

/// Sends a request; an error is an answer outside the contract.
pub async fn once(client: &Client, api: SocketAddr, write: &Write) -> anyhow::Result<Outcome> {
    Ok(ask(client, api, write).await?.outcome)
}

/// Sends a request and returns also what is not needed to know its outcome.
pub async fn ask(client: &Client, api: SocketAddr, write: &Write) -> anyhow::Result<Answer> {
    let began = Instant::now();
    let answer = |status: Option<StatusCode>, outcome| {
        let status = status.map(|status| status.as_u16());
        Ok(Answer { status, took: began.elapsed(), outcome })
    };
    let response = match request(client, api, write)?.send().await {
        Ok(response) => response,
        Err(error) if error.is_connect() => return answer(None, Outcome::NotSent),
        Err(_) => return answer(None, Outcome::Unknown),
    };
    let (status, may_retry) = (response.status(), response.headers().contains_key("retry-after"));
    // The answer to a retry has the counter as it is now, which says nothing about this increment.
    let is_present = response.headers().get("forebay-value").is_some_and(|value| value == "present");
    // The answer broke off: the server may have accepted, and the ids are lost.
    let Ok(body) = response.bytes().await else { return answer(None, Outcome::Unknown) };
    let reported = || format!("{write:?}: answered {status} {}", String::from_utf8_lossy(&body));
    let outcome = match status {
        StatusCode::ACCEPTED => {
            accepted(&body, write.items.len(), write.key.is_some() || write.wait_seconds.is_some())
                .with_context(reported)?
        }
        StatusCode::OK | StatusCode::CREATED if write.wait_seconds.is_some() => {
            let applied = applied(&body, write).with_context(reported)?;
            Outcome::Applied(Applied { standing: applied.standing.filter(|_| !is_present), ..applied })
        }
        StatusCode::SERVICE_UNAVAILABLE if may_retry => Outcome::Unknown,
        _ => bail!(reported()),
    };
    answer(Some(status), outcome)
}

fn request(client: &Client, api: SocketAddr, write: &Write) -> anyhow::Result<reqwest::RequestBuilder> {
    let url = format!("http://{api}{}", write.kind.path(&write.target));
    let mut request = if let Some(document) = &write.deletes {
        client.delete(format!("{url}/{document}"))
    } else {
        let (media_type, body) = body(write)?;
        client.post(url).header("content-type", media_type).body(body)
    };
    if let Some(key) = &write.key {
        request = request.header("idempotency-key", key);
    }
    if let Some(seconds) = write.wait_seconds {
        request = request.header("prefer", format!("wait={seconds}"));
    }
    Ok(request)
}

fn body(write: &Write) -> anyhow::Result<(&'static str, String)> {
    let items = write.items.iter().map(|number| write.kind.item(write, *number));
    let json: Vec<String> = items.collect::<Result<_, _>>()?;
    Ok(match json.as_slice() {
        [one] => ("application/json", one.clone()),
        _ if write.lines => ("application/x-ndjson", json.join("\n")),
        _ => ("application/json", format!("[{}]", json.join(","))),
    })
}

/// Bodies of 202, for one item and for several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Accepted {
    Batch { accepted: usize, ids: Vec<String>, rejected: Vec<Value> },
    Single { id: String, status: String },
}

/// Checks the status in a 202. A retry under a key may get `applied`, and so may a request that waited: its
/// write took effect, and what it made could not be read.
fn is_status(status: &str, may_be_applied: bool) -> bool {
    status == "accepted" || may_be_applied && status == "applied"
}

fn accepted(body: &[u8], items: usize, may_be_applied: bool) -> anyhow::Result<Outcome> {
    let ids = match serde_json::from_slice(body)? {
        Accepted::Single { id, status } if items == 1 && is_status(&status, may_be_applied) => vec![id],
        Accepted::Batch { accepted, ids, rejected }
            if accepted == items && ids.len() == items && rejected.is_empty() =>
        {
            ids
        }
        _ => bail!("202 for {items} items"),
    };
    Ok(Outcome::Accepted(ids))
}

/// Parses the final representation, which must be that of this very write.
fn applied(body: &[u8], write: &Write) -> anyhow::Result<Applied> {
    let body: Value = serde_json::from_slice(body)?;
    let (id, number) = (body["id"].as_str().map(str::to_owned), write.items.first().copied());
    if let Some(document) = &write.deletes {
        ensure!(id.as_ref() == Some(document) && body["status"] == "deleted", "another deletion");
        return Ok(Applied::default());
    }
    match write.kind {
        Kind::Counter => {
            ensure!(body["name"] == *write.target, "another counter");
            let standing = body["value"].as_i64().zip(body["version"].as_i64());
            ensure!(standing.is_some(), "no value");
            Ok(Applied { id: None, standing })
        }
        Kind::Document => {
            ensure!(
                body["status"] == "applied" && body["data"]["number"].as_i64() == number,
                "another document"
            );
            Ok(Applied { id: Some(id.context("no id")?), standing: None })
        }
        Kind::Point => {
            let value = number.map(|number| number as f64);
            ensure!(body["type"] == *write.target && body["value"].as_f64() == value, "another point");
            Ok(Applied { id: Some(id.context("no id")?), standing: None })
        }
    }
}
