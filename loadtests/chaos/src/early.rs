//! A read right after an answer that said *applied*. The effect must be visible: at any replica
//! where the answer comes from the store, at the same one where it comes from memory. It finds an
//! API that trusts the consumer before its transaction is committed.
use std::net::SocketAddr;

use reqwest::{Client, StatusCode};
use serde_json::Value;

use crate::kind::Kind;
use crate::ledger::{Applied, Write};

/// The finding, if any. A missing answer or a 503 is none.
pub async fn look(
    client: &Client,
    (same, any): (SocketAddr, SocketAddr),
    write: &Write,
    reported: &Applied,
) -> Option<String> {
    let Write { target, .. } = write;
    if let Some(document) = &write.deletes {
        let (status, body) = get(client, format!("http://{same}/v1/data/{target}/{document}")).await?;
        let is_gone = status == StatusCode::NOT_FOUND;
        return (!is_gone).then(|| format!("{document} was deleted, and then {status} {body}"));
    }
    if let Some(id) = &reported.id {
        let (status, body) = get(client, format!("http://{any}/v1/receipts/{id}")).await?;
        let is_applied = status == StatusCode::OK && body["status"] == "applied";
        return (!is_applied).then(|| format!("{id} was applied, and then its receipt {status} {body}"));
    }
    let version = reported.standing.filter(|_| write.kind == Kind::Counter)?.1;
    let (status, body) = get(client, format!("http://{same}/v1/counters/{target}")).await?;
    let is_there = status == StatusCode::OK && body["version"].as_i64() >= Some(version);
    (!is_there).then(|| format!("{target} had the version {version}, and then {status} {body}"))
}

async fn get(client: &Client, url: String) -> Option<(StatusCode, Value)> {
    let answer = client.get(url).send().await.ok()?;
    let status = answer.status();
    let is_known = status != StatusCode::SERVICE_UNAVAILABLE;
    is_known.then_some((status, answer.json().await.ok()?))
}
