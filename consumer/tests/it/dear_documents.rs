//! Documents that came before the definition of their collection, and that its schema makes costly to
//! check. Each is set aside alone, and writes beside and behind them are applied meanwhile.
use shared::model::collection::Definition;
use shared::model::message::encode;
use shared::model::write::{Document, Item, Object, Write};

use crate::*;

on_both_pairs! {
    documents_that_cost_too_much_are_set_aside_alone_and_nobody_waits_for_them
}

/// Longest wait of another client's write.
const MEANWHILE_MAX: Duration = Duration::from_secs(2);

fn document(data: &str) -> Item {
    let data = Object::from_json(data).expect("an object");
    Item {
        write: Write::Document(Document { collection: "log".into(), schema_version: None, data }),
        keyed: None,
    }
}

async fn documents_that_cost_too_much_are_set_aside_alone_and_nobody_waits_for_them(mut rig: Rig) -> Rig {
    let letter = |at: u32| if at.wrapping_mul(2_654_435_761) >> 31 == 0 { 'a' } else { 'b' };
    let letters: String = (0..28_000_u32).map(letter).collect();
    let mut builder =
        Builder::new(rig.issuer.next(shared::runtime::clock::now_ms()), shared::runtime::clock::now_ms());
    let dear = (0..30).map(|number| document(&format!(r#"{{"n":{number},"log":"{letters}"}}"#)));
    for item in dear.chain([document(r#"{"log":"aabc"}"#)]) {
        let mut encoded = Vec::new();
        encode(&mut encoded, &item);
        builder.push(&encoded, 1);
    }
    let message = builder.finish();
    let id = message.id;
    rig.publish(message).await;
    let patterns: Vec<_> = (0..20).map(|n| format!(r#"{{"pattern":"a[ab]{{{}}}c"}}"#, 9_000 + n)).collect();
    let schema =
        format!(r#"{{"properties":{{"log":{{"anyOf":[{{"maxLength":9}},{}]}}}}}}"#, patterns.join(","));
    let definition = Definition { schema: Some(schema), ..Definition::default() };
    rig.backend.store.define("log", definition).await.expect("is defined");
    let mut bystanders: Vec<Outgoing> = (0..30).map(|_| rig.message("bystander", 1)).collect();
    let rig = rig;
    rig.consuming(async {
        let mut by = 0;
        while let Some(bystander) = bystanders.pop() {
            let begin = Instant::now();
            rig.publish(bystander).await;
            by += 1;
            rig.wait_for_value("bystander", by).await;
            assert!(begin.elapsed() < MEANWHILE_MAX, "{:?}", begin.elapsed());
        }
        let items: Vec<_> = (0..31).map(|index| id.item(Kind::Document, index)).collect();
        let statuses =
            async || rig.backend.store.item_statuses(items.clone().into()).await.expect("the store answers");
        wait_for("statuses", async || statuses().await.iter().all(Option::is_some)).await;
        let statuses = statuses().await;
        for fate in &statuses[..30] {
            assert!(
                matches!(fate, Some(ItemStatus::Failed { reason, .. }) if reason == "check_overrun"),
                "{fate:?}"
            );
        }
        assert!(matches!(statuses[30], Some(ItemStatus::Applied { .. })), "{:?}", statuses[30]);
    })
    .await;
    assert_eq!(rig.store.0.failed.load(Ordering::Relaxed), 0);
    rig
}
