//! The contract of both stores on whole messages among the dead letters.
use std::sync::Arc;

use bytes::Bytes;
use shared::model::dead_letter::{
    DeadLetter, DeadLetterFilter, DeadMessage, MESSAGE_KIND, Redrive, RedriveOutcome, Redriven,
};
use shared::model::message::{Builder, Message, Undecodable, decode};
use shared::model::outcome::ItemStatus;
use shared::store::Store;
use tokio::sync::Barrier;
use uuid::Uuid;

use super::dead_letters::{all, applied, everything, failed_again, page, redrive, set_aside};
use crate::store::sent::increment;
use crate::store::{Messages, NOON_MS, apply, fate, items, standing};

on_both!(
    a_body_that_is_no_message_is_kept_once_and_whole,
    a_build_that_can_read_a_message_applies_it_by_a_redrive_and_only_once,
    an_item_of_a_redriven_message_that_cannot_be_applied_is_set_aside_and_the_others_are_applied,
    what_still_cannot_be_read_stays_and_is_in_nobodys_way,
    a_body_under_a_reused_id_is_never_applied,
    a_message_that_is_there_is_known_by_its_gravest_reason,
    a_discarded_message_is_never_applied_and_is_not_buried_anew,
    of_a_redrive_and_a_discard_at_once_one_has_its_way,
    redrives_and_the_queue_at_once_apply_a_message_once,
    a_page_ends_before_it_holds_too_much,
);

/// Makes a message in the wire format.
pub fn body(messages: &mut Messages, increments: &[(&str, i64)]) -> Bytes {
    let mut builder = Builder::new(messages.id(), NOON_MS + 7);
    for item in items(increments) {
        builder.push(item.as_bytes(), 1);
    }
    builder.finish().body
}

pub fn read(body: &Bytes) -> Message {
    decode(body).expect("a message")
}

/// Makes another body under the same id.
pub fn another(body: &Bytes) -> Bytes {
    String::from_utf8(body.to_vec()).expect("text").replace(":1}}", ":9}}").into()
}

fn undecodable(body: impl Into<Bytes>) -> DeadMessage {
    let body = body.into();
    let error = decode(&body).expect_err("no message");
    DeadMessage::undecodable(body, &error)
}

/// Makes a message as an older build sees it that does not know its version.
pub fn too_new(body: &Bytes) -> DeadMessage {
    DeadMessage::undecodable(body.clone(), &Undecodable::Version(9))
}

pub async fn bury(store: &Arc<dyn Store>, message: &DeadMessage) -> Uuid {
    store.bury(message.clone()).await.expect("is buried");
    message.id().as_uuid()
}

async fn letter(store: &Arc<dyn Store>, id: Uuid) -> Option<DeadLetter> {
    store.dead_letter(id).await.expect("is read")
}

async fn a_body_that_is_no_message_is_kept_once_and_whole([one, other]: [Arc<dyn Store>; 2]) {
    let before_ms = one.now_ms().await.expect("a time");
    for (body, item, reason) in [
        (&b"no JSON, \xc3\xa4\xf0\x9d\x84\x9e"[..], "no JSON, \u{e4}\u{1d11e}", "undecodable"),
        (br#"{"v": 99}"#, r#"{"v": 99}"#, "undecodable"),
        (b"", "", "undecodable"),
        (b"\0", "base64:AA==", "undecodable"),
        (b"\xff\xfe", "base64://4=", "undecodable"),
        (b"base64:AA==", "base64:YmFzZTY0OkFBPT0=", "undecodable"),
    ] {
        let dead = undecodable(body.to_vec());
        let id = bury(&one, &dead).await;
        let first = letter(&other, id).await.expect("is there");
        assert_eq!((&*first.kind, &*first.reason, &*first.item), (MESSAGE_KIND, reason, item));
        assert!(!first.detail.is_empty() && first.discarded_at_ms.is_none());
        let now_ms = one.now_ms().await.expect("a time");
        assert!((before_ms..=now_ms).contains(&first.accepted_at_ms));
        // It may come any number of times.
        bury(&other, &dead).await;
        assert_eq!(letter(&one, id).await, Some(first));
    }
    let mut messages = Messages::new();
    apply(&one, &[messages.increments(&[("a", i64::MAX), ("a", 1)])]).await;
    let newer = bury(&one, &too_new(&body(&mut messages, &[("a", 1)]))).await;
    let of = |kind: &str, reason: Option<&str>| DeadLetterFilter {
        kind: Some(kind.into()),
        reason: reason.map(Into::into),
        id: None,
    };
    let count = async |filter| page(&other, filter, None, 100).await.len();
    assert_eq!(count(of(MESSAGE_KIND, None)).await, 7);
    assert_eq!(count(of(MESSAGE_KIND, Some("undecodable"))).await, 6);
    let found = page(&other, of(MESSAGE_KIND, Some("unknown_version")), None, 100).await;
    assert_eq!(found.iter().map(|letter| letter.id).collect::<Vec<_>>(), [newer]);
    assert_eq!((count(of("increment", None)).await, all(&other).await.len()), (1, 8));
}

async fn a_build_that_can_read_a_message_applies_it_by_a_redrive_and_only_once(
    [one, other]: [Arc<dyn Store>; 2],
) {
    let mut messages = Messages::new();
    let body = body(&mut messages, &[("a", 2), ("b", 3)]);
    let message = read(&body);
    let id = bury(&one, &too_new(&body)).await;
    assert_eq!(fate(&one, message.item_key(0)).await, None, "nothing is known of it");
    let would = redrive(&other, everything(), true).await;
    assert_eq!(applied(&would), [id]);
    assert_eq!((standing(&one, "a").await, all(&one).await.len()), ((0, 0), 1));
    assert_eq!(redrive(&other, everything(), false).await, would);
    assert_eq!((standing(&one, "a").await, standing(&one, "b").await), ((2, 1), (3, 1)));
    assert!(matches!(fate(&one, message.item_key(1)).await, Some(ItemStatus::Applied { .. })));
    assert_eq!(letter(&one, id).await, None);
    // It comes from the queue, and from a build that cannot read it.
    assert!(apply(&one, &[message]).await.fresh.is_empty());
    bury(&one, &too_new(&body)).await;
    assert_eq!(applied(&redrive(&other, everything(), false).await), [id]);
    assert_eq!((standing(&one, "a").await, all(&one).await), ((2, 1), vec![]));
}

async fn an_item_of_a_redriven_message_that_cannot_be_applied_is_set_aside_and_the_others_are_applied(
    [one, other]: [Arc<dyn Store>; 2],
) {
    let mut messages = Messages::new();
    apply(&one, &[messages.increments(&[("full", i64::MAX)])]).await;
    let body = body(&mut messages, &[("a", 1), ("full", 1), ("a", 1)]);
    let id = bury(&one, &too_new(&body)).await;
    assert_eq!(applied(&redrive(&other, everything(), false).await), [id]);
    let failed = read(&body).item_key(1);
    let left: Vec<_> = all(&one).await.into_iter().map(|letter| (letter.id, letter.reason)).collect();
    assert_eq!(left, [(failed.as_uuid(), "counter_overflow".into())]);
    assert_eq!((standing(&one, "a").await, standing(&one, "full").await), ((2, 2), (i64::MAX, 1)));
    assert!(matches!(fate(&one, failed).await, Some(ItemStatus::Failed { .. })));
}

async fn what_still_cannot_be_read_stays_and_is_in_nobodys_way([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    let items = [increment("a", 1), increment("a", 1)];
    let keys = set_aside(&one, &mut messages, &items).await;
    let mut good: Vec<Uuid> = keys.iter().map(|key| key.as_uuid()).collect();
    let mut bad = Vec::new();
    for number in 0..10 {
        bad.push(bury(&one, &undecodable(format!("garbage {number}"))).await);
        good.push(bury(&one, &too_new(&body(&mut messages, &[("a", 1)]))).await);
    }
    good.sort_unstable();
    bad.sort_unstable();
    // The redrive goes page by page, so that messages that fail again are passed over.
    let (mut applied_ids, mut failed_ids, mut after) = (Vec::new(), Vec::new(), None);
    loop {
        let step = Redrive { filter: everything(), after, limit: 5, dry_run: false, force: false };
        let done = other.redrive(step).await.expect("is redriven");
        assert!(done.items.is_sorted_by_key(|redriven| redriven.id), "{done:?}");
        for Redriven { id, outcome } in done.items {
            match outcome {
                RedriveOutcome::Applied => applied_ids.push(id),
                RedriveOutcome::FailedAgain { reason, .. } => {
                    assert_eq!(reason, "undecodable");
                    failed_ids.push(id);
                }
                RedriveOutcome::NeedsForce => panic!("nothing is old"),
            }
        }
        after = done.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!((applied_ids, failed_ids), (good, bad.clone()));
    assert_eq!(all(&one).await.iter().map(|letter| letter.id).collect::<Vec<_>>(), bad);
    assert_eq!(standing(&one, "a").await, (12, 12));
}

async fn a_body_under_a_reused_id_is_never_applied([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    let first = body(&mut messages, &[("a", 1)]);
    let reused = another(&first);
    apply(&one, &[read(&first)]).await;
    let id = bury(&one, &DeadMessage::reused(reused, read(&first).id)).await;
    let good = bury(&one, &too_new(&body(&mut messages, &[("b", 1)]))).await;
    let kept = letter(&other, id).await.expect("is there");
    assert_eq!(&*kept.reason, "digest_mismatch");
    for dry_run in [true, false] {
        let only = DeadLetterFilter { id: Some(id), ..everything() };
        let redriven = redrive(&other, only, dry_run).await;
        assert_eq!(failed_again(&redriven).0, "digest_mismatch");
    }
    assert_eq!(applied(&redrive(&other, everything(), false).await), [good]);
    assert_eq!((standing(&one, "a").await, standing(&one, "b").await), ((1, 1), (1, 1)));
    assert_eq!(letter(&one, id).await.expect("stays").item, kept.item);
}

/// An older build could not read it, and a newer one finds that its id belongs to another body:
/// `force` must not apply it.
async fn a_message_that_is_there_is_known_by_its_gravest_reason([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    let first = body(&mut messages, &[("a", 1)]);
    let reused = another(&first);
    let mismatch = DeadMessage::reused(reused.clone(), read(&first).id);
    let id = bury(&one, &too_new(&reused)).await;
    let before = letter(&one, id).await.expect("is there");
    assert_eq!(before.reason, "unknown_version");
    bury(&other, &mismatch).await;
    let after = letter(&one, id).await.expect("is there");
    assert_eq!((&*after.reason, &after.item), ("digest_mismatch", &before.item));
    assert!(after.detail.contains("another body") && after.set_aside_at_ms >= before.set_aside_at_ms);
    for again in [too_new(&reused), mismatch.clone()] {
        bury(&one, &again).await;
        assert_eq!(letter(&one, id).await.as_ref(), Some(&after));
    }
    // A discarded message stays discarded.
    let discarded = body(&mut messages, &[("b", 1)]);
    let id = bury(&one, &too_new(&discarded)).await;
    assert!(one.discard(id).await.expect("is discarded"));
    let decided = letter(&one, id).await;
    bury(&one, &DeadMessage::reused(discarded.clone(), read(&discarded).id)).await;
    assert_eq!(letter(&one, id).await, decided);
}

async fn a_discarded_message_is_never_applied_and_is_not_buried_anew([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    let dead = too_new(&body(&mut messages, &[("a", 1)]));
    let id = bury(&one, &dead).await;
    assert!(other.discard(id).await.expect("is discarded"));
    let discarded = letter(&one, id).await;
    bury(&one, &dead).await;
    assert_eq!(letter(&one, id).await, discarded);
    assert_eq!((redrive(&other, everything(), false).await, all(&one).await), (vec![], vec![]));
    assert_eq!(standing(&one, "a").await, (0, 0));
}

async fn of_a_redrive_and_a_discard_at_once_one_has_its_way(stores: [Arc<dyn Store>; 2]) {
    const ROUNDS: usize = 25;
    let mut messages = Messages::new();
    let mut redriven = 0;
    for round in 0..ROUNDS {
        // The letters are a message and an item in turn.
        let id = if round % 2 == 0 {
            bury(&stores[0], &too_new(&body(&mut messages, &[("a", 1)]))).await
        } else {
            set_aside(&stores[0], &mut messages, &[increment("a", 1)]).await[0].as_uuid()
        };
        let barrier = Arc::new(Barrier::new(2));
        let [one, other] = stores.clone();
        let discarding = {
            let barrier = Arc::clone(&barrier);
            tokio::spawn(async move {
                barrier.wait().await;
                one.discard(id).await.expect("is asked")
            })
        };
        let redriving = tokio::spawn(async move {
            barrier.wait().await;
            applied(&redrive(&other, everything(), false).await)
        });
        let (discarded, applied) =
            (discarding.await.expect("no panic"), redriving.await.expect("no panic") == [id]);
        assert_ne!(discarded, applied, "round {round}");
        let left = letter(&stores[0], id).await;
        assert_eq!(left.and_then(|letter| letter.discarded_at_ms).is_some(), discarded);
        redriven += i64::from(applied);
    }
    assert_eq!(standing(&stores[0], "a").await, (redriven, redriven));
}

async fn redrives_and_the_queue_at_once_apply_a_message_once(stores: [Arc<dyn Store>; 2]) {
    const ROUNDS: i64 = 15;
    const BODIES: usize = 6;
    let mut messages = Messages::new();
    for round in 0..ROUNDS {
        let bodies: Vec<_> = (0..BODIES).map(|_| body(&mut messages, &[("a", 1), ("b", 1)])).collect();
        for body in &bodies {
            bury(&stores[0], &too_new(body)).await;
        }
        let barrier = Arc::new(Barrier::new(4));
        let racing = stores.clone().map(|store| {
            let barrier = Arc::clone(&barrier);
            tokio::spawn(async move {
                barrier.wait().await;
                redrive(&store, everything(), false).await;
            })
        });
        // A newer consumer got the same messages, an older one finds them again.
        let (newer, batch) = (Arc::clone(&stores[0]), bodies.iter().map(read).collect::<Vec<_>>());
        let (older, again) = (Arc::clone(&stores[1]), bodies.clone());
        let at_newer = {
            let barrier = Arc::clone(&barrier);
            tokio::spawn(async move {
                barrier.wait().await;
                apply(&newer, &batch).await;
            })
        };
        let at_older = tokio::spawn(async move {
            barrier.wait().await;
            for body in &again {
                bury(&older, &too_new(body)).await;
            }
        });
        for racer in racing {
            racer.await.expect("no panic");
        }
        at_newer.await.expect("no panic");
        at_older.await.expect("no panic");
        redrive(&stores[0], everything(), false).await;
        assert_eq!(all(&stores[0]).await, [], "round {round}");
        let sum = (round + 1) * i64::try_from(BODIES).expect("few");
        for counter in ["a", "b"] {
            assert_eq!(standing(&stores[1], counter).await, (sum, sum), "{counter} in round {round}");
        }
    }
}

async fn a_page_ends_before_it_holds_too_much([one, other]: [Arc<dyn Store>; 2]) {
    const BODY_BYTES: usize = 3 << 20;
    let mut ids = Vec::new();
    for number in 0..5 {
        ids.push(bury(&one, &undecodable(format!("{number}").repeat(BODY_BYTES))).await);
    }
    ids.sort_unstable();
    let (mut walked, mut pages) = (Vec::new(), 0);
    loop {
        let letters = page(&other, everything(), walked.last().copied(), 100).await;
        if letters.is_empty() {
            break;
        }
        assert!(letters.len() <= 3, "{}", letters.len());
        assert!(letters.iter().all(|letter| letter.item.len() == BODY_BYTES));
        walked.extend(letters.iter().map(|letter| letter.id));
        pages += 1;
    }
    assert_eq!((walked, pages), (ids.clone(), 2));
    let first = Redrive { filter: everything(), after: None, limit: 100, dry_run: false, force: false };
    let done = other.redrive(first.clone()).await.expect("is redriven");
    assert_eq!((done.items.len(), done.next), (3, Some(ids[2])));
    let rest = other.redrive(Redrive { after: done.next, ..first }).await.expect("is redriven");
    assert_eq!((rest.items.len(), rest.next), (2, None));
}
