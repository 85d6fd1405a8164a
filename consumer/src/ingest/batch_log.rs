//! Log lines about a committed batch: the requests it applied, at debug, and the items it set aside. The
//! trace beside an item leads to its request.
use std::collections::{HashMap, HashSet};

use shared::model::id::{IdKeys, ItemKey};
use shared::model::message::Message;
use shared::model::outcome::Applied;
use shared::model::trace::{TraceParent, Traces};
use shared::queue::Delivery;
use tracing::Level;

/// Items set aside by one batch that get a line each; the others are counted in one more line.
const SET_ASIDE_LINES_MAX: usize = 8;

/// `deliveries[i]` brought `messages[i]`.
pub fn log(ids: &IdKeys, messages: &[Message], deliveries: &[Delivery], applied: &Applied) {
    if tracing::enabled!(Level::DEBUG) {
        log_applied(messages, deliveries, applied);
    }
    if !applied.set_aside.is_empty() {
        log_set_aside(ids, messages, deliveries, applied);
    }
}

/// The ids of the traces that came with a delivery, in their order; `None` when there are none.
pub fn trace_ids(delivery: &Delivery) -> Option<String> {
    delivery.traces.as_deref().map(|text| Traces::decode(text).ids()).filter(|ids| !ids.is_empty())
}

fn log_applied(messages: &[Message], deliveries: &[Delivery], applied: &Applied) {
    let fresh: HashSet<_> = applied.fresh.iter().collect();
    for (message, delivery) in messages.iter().zip(deliveries) {
        if let Some(traces) = trace_ids(delivery).filter(|_| fresh.contains(&message.id)) {
            let items = message.entries.len();
            tracing::debug!(message.id = %message.id, message.items = items, trace.ids = traces, "message applied");
        }
    }
}

fn log_set_aside(ids: &IdKeys, messages: &[Message], deliveries: &[Delivery], applied: &Applied) {
    let traces = traces_of_items(messages, deliveries);
    for aside in applied.set_aside.iter().take(SET_ASIDE_LINES_MAX) {
        tracing::warn!(
            item.id = %ids.sign(aside.item),
            item.kind = aside.item.kind_name(),
            item.reason = aside.reason.name(),
            trace.id = traces.get(&aside.item).map(TraceParent::trace_id),
            "item set aside"
        );
    }
    let further = applied.set_aside.len().saturating_sub(SET_ASIDE_LINES_MAX);
    if further > 0 {
        tracing::warn!(items = further, "further items of the same batch set aside");
    }
}

/// Traces by item. The first of several items with one key counts.
fn traces_of_items(messages: &[Message], deliveries: &[Delivery]) -> HashMap<ItemKey, TraceParent> {
    let mut found = HashMap::new();
    for (message, delivery) in messages.iter().zip(deliveries) {
        let Some(traces) = delivery.traces.as_deref().map(Traces::decode) else { continue };
        for index in 0..message.entries.len() {
            if let Some(parent) = traces.of_item(index) {
                found.entry(message.item_key(index)).or_insert(parent);
            }
        }
    }
    found
}
