//! A store in front of another one, for tests that make single operations fail or wait.
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use shared::model::collection::{Collection, Definition};
use shared::model::dead_letter::{DeadLetter, DeadLetterPage, DeadMessage, Redrive, RedrivenPage};
use shared::model::id::{ItemKey, MessageId};
use shared::model::message::Message;
use shared::model::outcome::{Applied, Counter, ItemStatus};
use shared::store::{
    Apply, ConsumerWatermark, DeadLetters, Define, DocumentPage, DocumentsFound, GiveUp, Housekeep,
    Housekept, NamePage, Reads, ReportedWatermark, Retention, RollupPage, RollupRange, Store, StoreError,
    Stored, Watermarks,
};
use uuid::Uuid;

type StoreResult<T> = Result<T, StoreError>;

/// The store that a layer makes.
#[derive(Debug)]
pub struct Layered<L>(pub L);

/// Writes out the layer, and the store that it makes, from the operations of each part of the port.
macro_rules! layer {
    ($($part:ident { $(fn $name:ident($($argument:ident: $type:ty),*) -> $result:ty;)* })*) => {
        /// Overrides some operations; the others go on to `behind`.
        #[async_trait]
        pub trait Layer: Send + Sync {
            fn behind(&self) -> &Arc<dyn Store> {
                unreachable!("only operations of the layer are called")
            }
            $($(
                async fn $name(&self, $($argument: $type),*) -> $result {
                    self.behind().$name($($argument),*).await
                }
            )*)*
        }
        $(
            #[async_trait]
            impl<L: Layer> $part for Layered<L> {
                $(
                    async fn $name(&self, $($argument: $type),*) -> $result {
                        self.0.$name($($argument),*).await
                    }
                )*
            }
        )*
    };
}

layer! {
    Apply {
        fn apply_within(batch: Arc<[Message]>, limit: Duration) -> StoreResult<Applied>;
        fn give_up_on(message: Message, give_up: GiveUp) -> StoreResult<Applied>;
        fn bury(message: DeadMessage) -> StoreResult<()>;
        fn probe() -> StoreResult<()>;
        fn begin_attempts(messages: Arc<[MessageId]>, again: bool) -> StoreResult<HashMap<MessageId, u32>>;
        fn end_attempts(messages: Arc<[MessageId]>) -> StoreResult<()>;
    }
    Reads {
        fn counter(name: &str) -> StoreResult<Option<Counter>>;
        fn counters(page: NamePage) -> StoreResult<Vec<Counter>>;
        fn item_statuses(items: Arc<[ItemKey]>) -> StoreResult<Vec<Option<ItemStatus>>>;
        fn collections(page: NamePage) -> StoreResult<Vec<(String, Collection)>>;
        fn document(collection: &str, id: ItemKey) -> StoreResult<Option<Stored>>;
        fn documents(page: DocumentPage) -> StoreResult<DocumentsFound>;
        fn rollups(range: RollupRange) -> StoreResult<RollupPage>;
        fn metric_types(page: NamePage) -> StoreResult<Vec<Arc<str>>>;
        fn now_ms() -> StoreResult<i64>;
        fn floor_ms() -> StoreResult<i64>;
    }
    Define {
        fn collection(name: &str) -> StoreResult<Collection>;
        fn define(name: &str, definition: Definition) -> StoreResult<Collection>;
        fn index_page(name: &str) -> StoreResult<bool>;
    }
    DeadLetters {
        fn dead_letters(page: DeadLetterPage) -> StoreResult<Vec<DeadLetter>>;
        fn dead_letter(id: Uuid) -> StoreResult<Option<DeadLetter>>;
        fn redrive(redrive: Redrive) -> StoreResult<RedrivenPage>;
        fn discard(id: Uuid) -> StoreResult<bool>;
    }
    Housekeep {
        fn housekeep(retention: Retention) -> StoreResult<Housekept>;
        fn hold(own: ConsumerWatermark, silent: Vec<ReportedWatermark>) -> StoreResult<Watermarks>;
    }
    Store {
        fn migrate() -> StoreResult<()>;
        fn close() -> ();
    }
}
