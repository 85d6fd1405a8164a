//! Receipts of writes from what the store knows.
use shared::model::id::{ItemKey, Kind, MessageId};
use shared::model::idempotency::Fingerprint;
use shared::model::outcome::ItemStatus;
use shared::store::StoreError;

use crate::receipt::Receipt;
use crate::state::Shared;
use crate::store_breaker::guarded;
use crate::wait::outcome::Outcome;

/// Receipt of an item after its `outcome` was reported: from the store, or from the outcome when the store
/// cannot be asked just now.
pub async fn after(
    shared: &Shared,
    item: ItemKey,
    payload: Option<Fingerprint>,
    outcome: Outcome,
) -> Receipt {
    let id = shared.ids.sign(item);
    let known = match status_of(shared, item, None).await {
        Ok(Some(status)) => Receipt::of_status(id, payload, Some(status)),
        Ok(None) | Err(_) => None,
    };
    let receipt = known.unwrap_or_else(|| Receipt::of_outcome(id, outcome));
    with_letter(shared, item, receipt.clone()).await.unwrap_or(receipt)
}

/// Status of an item. A keyed id names no message, so the client does. Where that message was processed, or
/// is so old that it may have been, and nothing is known of the key, the key was forgotten.
pub async fn status_of(
    shared: &Shared,
    item: ItemKey,
    message: Option<MessageId>,
) -> Result<Option<ItemStatus>, StoreError> {
    let sent = message.filter(|_| item.is_keyed()).map(|message| message.item(Kind::Document, 0));
    let asked = [item].into_iter().chain(sent).collect();
    let mut statuses = guarded(&shared.store_breaker, shared.store.item_statuses(asked)).await?.into_iter();
    let status = statuses.next().flatten();
    Ok(status.or_else(|| statuses.next().flatten().map(|_| ItemStatus::Forgotten)))
}

/// Completes the receipt of a failed item from its dead letter; there is none when the item was redriven
/// meanwhile.
pub async fn with_letter(shared: &Shared, item: ItemKey, receipt: Receipt) -> Result<Receipt, StoreError> {
    if !receipt.is_failed() {
        return Ok(receipt);
    }
    let letter = guarded(&shared.store_breaker, shared.dead_letters.dead_letter(item.as_uuid())).await?;
    Ok(receipt.with_letter(letter.as_ref(), &shared.ids))
}
