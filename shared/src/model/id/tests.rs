//! Contents of ids: their order, their checks, and that their layout never changes.
use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

#[test]
fn an_issuer_never_repeats_itself_whatever_the_clock_does() {
    let mut issuer = IdIssuer::new(7, 1020);
    let clock = (0..5_000).map(|step: i64| 1_700_000_000_000 + (step % 7) - step / 3);
    let ids: Vec<_> = clock.map(|now_ms| issuer.next(now_ms)).collect();
    assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len());
}

#[test]
fn an_issuer_stays_above_a_floor_that_lies_ahead_of_its_clock() {
    let (floor, now_ms) = (IdFloor::default(), 1_763_600_000_000);
    let mut issuer = IdIssuer::new(7, 0).above(floor.clone());
    assert_eq!(issuer.next(now_ms).time_ms(), now_ms);
    // The rest of the last id at that time does not matter.
    let last = IdIssuer::new(u32::MAX, 1022).next(now_ms + 9);
    floor.raise(last.time_ms());
    floor.raise(now_ms);
    let ids: Vec<_> = (0..5_000).map(|_| issuer.next(now_ms)).collect();
    assert!(ids.iter().all(|id| *id > last));
    assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len());
    assert_eq!(issuer.next(now_ms + 60_000).time_ms(), now_ms + 60_000);
}

#[test]
fn a_partition_bound_lies_below_every_id_of_its_time_and_above_earlier_ones() {
    let now_ms = 1_763_600_000_000;
    let early = IdIssuer::new(u32::MAX, 1023).next(now_ms - 1).as_uuid();
    let on_time = IdIssuer::new(0, 1023).next(now_ms).as_uuid();
    assert!(early < MessageId::lowest_at(now_ms));
    assert!(on_time > MessageId::lowest_at(now_ms));
}

#[test]
fn a_secret_is_recognised_until_it_is_dropped_and_identity_does_not_depend_on_it() {
    let key = IdIssuer::new(1, 2).next(3).item(Kind::Increment, 4);
    let old = IdKeys::new(&["old"]).sign(key);
    let rotated = IdKeys::new(&["new", "old"]);
    assert!(rotated.recognises(old));
    assert!(rotated.recognises(rotated.sign(key)));
    assert_eq!(rotated.sign(key).key(), old.key());
    assert!(!IdKeys::new(&["new"]).recognises(old));
}

#[test]
fn an_id_is_read_in_either_case_and_shown_in_one() {
    let id = IdKeys::new(&["s"]).sign(IdIssuer::new(1, 2).next(3).item(Kind::Increment, 4));
    let text = id.to_string();
    assert_eq!(text.parse::<ItemId>().as_ref(), Ok(&id));
    let upper = text.to_uppercase();
    assert_ne!(upper, text);
    assert_eq!(upper.parse::<ItemId>().map(|id| id.to_string()), Ok(text.clone()));
    for other in [text.replace('-', ""), format!("{{{text}}}"), format!("{text} "), String::new()] {
        assert_eq!(other.parse::<ItemId>(), Err(NotAnId), "{other}");
    }
}

#[test]
fn an_id_of_a_kind_that_only_a_newer_build_knows_is_still_one_of_this_service() {
    let (keys, message) = (IdKeys::new(&["s"]), IdIssuer::new(1, 2).next(3));
    for bits in 5..=7 {
        for keyed in [0, KEYED_BIT] {
            let key = ItemKey(message.item(Kind::Increment, 4).0 & !(0b111 << 28) | bits << 28 | keyed);
            let id = keys.sign(key);
            assert_eq!(id.to_string().parse::<ItemId>(), Ok(id));
            assert!(keys.recognises(id));
            assert_eq!(ItemKey::from_uuid(key.as_uuid()), Some(key));
            assert_eq!((key.kind(), key.kind_name()), (None, UNKNOWN_KIND));
            assert_eq!(key.message(), (keyed == 0).then_some(message));
            assert_eq!(keys.meant(&keys.shown(key.as_uuid())), Some(key.as_uuid()));
        }
    }
}

#[test]
fn a_body_has_one_id_that_no_item_has_and_it_is_meant_as_it_is_shown() {
    let keys = IdKeys::new(&["s"]);
    for body in ["", "no message", "no message "] {
        let id = BodyId::of(body.as_bytes());
        assert_eq!(id, BodyId::of(body.as_bytes()));
        assert_ne!(id, BodyId::of(b"another"));
        assert_eq!((ItemKey::from_uuid(id.as_uuid()), MessageId::from_uuid(id.as_uuid())), (None, None));
        assert_eq!(id.to_string().parse::<ItemId>(), Err(NotAnId));
        assert_eq!(keys.shown(id.as_uuid()), id.to_string());
        assert_eq!(keys.meant(&id.to_string()), Some(id.as_uuid()));
        assert_eq!(keys.meant(&id.to_string().to_uppercase()), Some(id.as_uuid()));
        assert_eq!(keys.meant(&id.as_uuid().simple().to_string()), None);
    }
    let key = IdIssuer::new(1, 2).next(3).item(Kind::Increment, 4);
    assert_eq!(keys.meant(&keys.shown(key.as_uuid())), Some(key.as_uuid()));
    // Without its check it was never issued.
    for text in [key.to_string(), "x".into(), String::new()] {
        assert_eq!(keys.meant(&text), None, "{text}");
    }
}

proptest! {
    #[test]
    fn an_item_id_gives_back_its_message_and_kind(
        batcher: u32, counter: u16, now_ms in 0i64..(1 << 47), index in 0..ITEMS_PER_MESSAGE_MAX,
    ) {
        let message = IdIssuer::new(batcher, counter).next(now_ms);
        let keys = IdKeys::new(&["s"]);
        let id = keys.sign(message.item(Kind::Increment, index));
        prop_assert!(keys.recognises(id));
        prop_assert_eq!(id.key().message(), Some(message));
        prop_assert_eq!(ItemKey::from_uuid(id.key().as_uuid()), Some(id.key()));
        prop_assert_eq!(id.key().kind(), Some(Kind::Increment));
        prop_assert_eq!(id.key().place_at(5), (message, index));
        prop_assert_eq!(message.time_ms(), now_ms);
        prop_assert_eq!(MessageId::from_uuid(message.as_uuid()), Some(message));
        prop_assert_eq!(id.to_string().parse::<ItemId>(), Ok(id));
    }

    #[test]
    fn a_keyed_id_keeps_its_kind_and_names_no_message(hash: u128, now_ms in 0i64..(1 << 47)) {
        for kind in Kind::ALL {
            let key = ItemKey::keyed(kind, hash);
            prop_assert!(key.is_keyed());
            prop_assert_eq!((key.kind(), key.message()), (Some(kind), None));
            let (message, index) = key.place_at(now_ms);
            prop_assert_eq!(MessageId::from_uuid(message.as_uuid()), Some(message));
            prop_assert_eq!(message.time_ms(), now_ms);
            prop_assert!(index < ITEMS_PER_MESSAGE_MAX);
            prop_assert_eq!(ItemKey::from_uuid(key.as_uuid()), Some(key));
            let id = IdKeys::new(&["s"]).sign(key);
            prop_assert_eq!(id.to_string().parse::<ItemId>(), Ok(id));
        }
    }

    #[test]
    fn a_made_up_id_is_hardly_ever_recognised(noise in proptest::collection::vec(any::<u128>(), 64)) {
        let keys = IdKeys::new(&["s"]);
        let lucky = noise.into_iter().filter(|bits| keys.recognises(ItemId(*bits))).count();
        prop_assert!(lucky <= 1, "{} of 64", lucky);
    }
}
