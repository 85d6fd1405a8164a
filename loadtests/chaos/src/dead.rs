//! Dead letters as an administrator sees them: read, redriven, and compared with those that are allowed.
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use reqwest::Client;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::compare::shortened;
use crate::holdings::pages;
use crate::kind::Kind;
use crate::refused::is_refused;

const PATIENCE: Duration = Duration::from_mins(1);
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Clone, Debug, Deserialize)]
pub struct Letter {
    pub id: String,
    kind: String,
    reason: String,
    detail: String,
    item: Value,
}

impl Letter {
    fn is_message(&self) -> bool {
        self.kind == "message"
    }

    /// Collection and number of a document.
    pub fn document(&self) -> Option<(&str, i64)> {
        let document = &self.item["document"];
        Some((document["collection"].as_str()?, document["data"]["number"].as_i64()?))
    }

    /// Name of the counter of an increment.
    pub fn counter(&self) -> Option<&str> {
        self.item["increment"]["counter"].as_str()
    }
}

/// Reads the dead letters with this reason, or all.
pub async fn letters(client: &Client, api: SocketAddr, reason: Option<&str>) -> anyhow::Result<Vec<Letter>> {
    let filter = reason.map(|reason| format!("&reason={reason}")).unwrap_or_default();
    let items = pages(client, &format!("http://{api}/v1/dead-letters?limit=1000{filter}")).await?;
    items.into_iter().map(|item| serde_json::from_value(item).context("a dead letter")).collect()
}

/// Redrives those with this reason until there are none; the findings name the ones that stay.
pub async fn redrive(client: &Client, api: SocketAddr, reason: &str) -> anyhow::Result<Vec<String>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let body = json!({ "filter": { "reason": reason }, "limit": 1_000 });
        let request = client.post(format!("http://{api}/v1/dead-letters/redrive")).json(&body);
        // After no answer or 503 some may have been applied; the request can be repeated.
        let answer = request.send().await;
        if let Ok(status) = answer.map(|answer| answer.status()) {
            ensure!(status.is_success() || status.as_u16() == 503, "a redrive was answered {status}");
        }
        let left = letters(client, api, Some(reason)).await.unwrap_or_default();
        if left.is_empty() {
            return Ok(Vec::new());
        }
        if Instant::now() > deadline {
            let reported =
                |letter: &Letter| format!("LOST: {} stays a dead letter: {}", letter.id, letter.detail);
            return Ok(shortened(left.iter().map(reported).collect()));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Checks dead letters after a run: none may be left but items that a trigger refused.
/// [`crate::leftovers`] compares whole messages with those that were poison.
pub async fn check(client: &Client, api: SocketAddr) -> anyhow::Result<Vec<String>> {
    Ok(unexpected(&letters(client, api, None).await?))
}

fn unexpected(letters: &[Letter]) -> Vec<String> {
    let may_be = |letter: &&Letter| {
        letter.is_message() || letter.document().is_some_and(|(_, number)| is_refused(Kind::Document, number))
    };
    let reported = |letter: &Letter| {
        let Letter { id, reason, detail, item, .. } = letter;
        let item: String = item.to_string().chars().take(200).collect();
        format!("LOST: {id} is a dead letter: {reason}: {detail}: {item}")
    };
    shortened(letters.iter().filter(|letter| !may_be(letter)).map(reported).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(kind: &str, item: Value) -> Letter {
        let (id, reason, detail) = ("id".to_owned(), "not_applied".to_owned(), "why".to_owned());
        Letter { id, kind: kind.to_owned(), reason, detail, item }
    }

    #[test]
    fn a_good_item_among_the_dead_letters_is_found() {
        let document = |number: i64| {
            letter("document", json!({ "document": { "collection": "c", "data": { "number": number } } }))
        };
        let increment = letter("increment", json!({ "increment": { "counter": "c", "by": 1 } }));
        let poison = letter("message", json!("poison"));
        assert_eq!(unexpected(&[document(crate::refused::NUMBER), poison]), Vec::<String>::new());
        assert_eq!(increment.counter(), Some("c"));
        for good in [document(2), increment] {
            let found = unexpected(&[good]);
            assert!(found.len() == 1 && found[0].starts_with("LOST"), "{found:?}");
        }
    }
}
