//! Messages that fail alone: each is held aside and in the end dead-lettered, while everything else
//! goes on. An outage dead-letters nothing, and neither does a crash of a good message's consumer.
use consumer::dead_letters::dead_queue::DeadQueue;
use consumer::ingest::announce::Announcer;
use consumer::ingest::merge::MergeLimits;
use consumer::ingest::session::Ingest;
use consumer::ingest::suspects::{Pace, STRIKES_MAX};
use shared::queue::{Lane, Subscription};
use shared::store::GiveUp;
use testkit::trouble::{Trouble, is_sleeping};
use tokio::task::JoinHandle;

use crate::stops::Process;
use crate::*;

on_both_pairs! {
    a_message_that_takes_too_long_alone_is_given_up_and_others_are_applied_in_time
    a_message_whose_transaction_panics_is_given_up_and_others_are_applied_in_time
    a_message_at_which_the_store_is_busy_is_never_given_up_and_others_are_applied_in_time
    a_message_that_fails_while_the_store_comes_and_goes_is_applied_in_the_end
    a_message_after_which_the_store_does_not_answer_is_never_given_up
    a_lone_message_that_fails_is_kept_until_it_can_be_applied
    a_message_that_can_not_even_be_given_up_is_kept_as_a_whole
    a_message_that_fails_in_the_dead_queue_is_in_nobodys_way
    a_batch_that_is_slow_as_a_whole_is_applied
    a_message_that_ends_its_consumer_each_time_is_given_up
    a_good_message_whose_consumer_is_killed_again_and_again_is_applied
    more_busy_messages_than_are_held_aside_are_in_nobodys_way
    slow_messages_beside_others_take_turns_with_them
    messages_that_are_given_back_again_and_again_are_applied_in_the_end
    a_message_is_not_searched_while_the_store_does_not_answer
    a_message_that_failed_is_tried_again_under_a_backlog
}

/// Replaces times of seconds.
const PACE: Pace = Pace {
    batch_time_max: Duration::from_millis(100),
    pause_min: Duration::from_millis(20),
    pause_max: Duration::from_millis(200),
    held_max: Duration::from_mins(15),
    trials_max: 4,
};

/// Longest time until another client's write is applied.
const BYSTANDER_MAX: Duration = Duration::from_secs(2);

/// Counter that makes a message fail.
const HEAVY: &str = "heavy";

/// Outcome of a transaction with a heavy message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ailment {
    Slow,
    Panicking,
    Busy,
    /// The transaction takes time in proportion to its messages.
    SlowTogether,
    /// The transaction fails, and afterwards the store does not answer for a moment.
    Upsetting,
    /// The same after the first search in a message that fails.
    UpsetBySearch,
    /// The process ends before the transaction does.
    Endless,
    None,
}

/// A store that fails with certain messages.
struct Fragile {
    store: Arc<dyn Store>,
    ailment: Mutex<Ailment>,
    /// The store takes no probe writes either.
    away: AtomicBool,
    /// Time until which the store takes no probe writes.
    upset_until: Mutex<Option<Instant>>,
    /// The store takes no dead letters of items.
    keeps_all: AtomicBool,
    /// Number of transactions with a heavy message that were begun.
    tried: AtomicUsize,
    given_up: AtomicUsize,
    /// Messages given up while the store did not answer.
    given_up_upset: AtomicUsize,
}

impl Fragile {
    fn is_upset(&self) -> bool {
        let until = *self.upset_until.lock().expect("no panic");
        until.is_some_and(|until| Instant::now() < until)
    }

    fn is_heavy(message: &Message) -> bool {
        let heavy = format!("\"{HEAVY}\"");
        message.entries.iter().any(|entry| format!("{entry:?}").contains(&heavy))
    }

    fn becomes(&self, ailment: Ailment) {
        *self.ailment.lock().expect("no panic") = ailment;
    }

    fn tried(&self) -> usize {
        self.tried.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Layer for Fragile {
    fn behind(&self) -> &Arc<dyn Store> {
        &self.store
    }

    async fn apply_within(&self, batch: Arc<[Message]>, limit: Duration) -> Result<Applied, StoreError> {
        let limit = limit.min(Duration::from_millis(400));
        let failed = |why: &str| Err(StoreError::Failed(why.into()));
        let heavy = batch.iter().filter(|message| Self::is_heavy(message)).count();
        let ailment = *self.ailment.lock().expect("no panic");
        if heavy > 0 {
            self.tried.fetch_add(1, Ordering::Relaxed);
            match ailment {
                Ailment::Slow => {
                    tokio::time::sleep(limit).await;
                    return failed("no answer in time");
                }
                Ailment::Panicking | Ailment::UpsetBySearch => return failed("an operation panicked"),
                Ailment::Busy => return Err(StoreError::Busy("no free connection".into())),
                Ailment::SlowTogether => {
                    let time = Duration::from_millis(20) * u32::try_from(batch.len()).expect("few");
                    tokio::time::sleep(time.min(limit)).await;
                    if time > limit {
                        return failed("no answer in time");
                    }
                }
                Ailment::Upsetting => {
                    let until = Instant::now() + PACE.pause_min / 2;
                    *self.upset_until.lock().expect("no panic") = Some(until);
                    return failed("no answer in time");
                }
                Ailment::Endless => std::future::pending().await,
                Ailment::None => {}
            }
        }
        if self.away.load(Ordering::Relaxed) {
            return Err(StoreError::Unavailable("away".into()));
        }
        self.store.apply(batch).await
    }

    async fn give_up_on(&self, message: Message, give_up: GiveUp) -> Result<Applied, StoreError> {
        let before = self.given_up.fetch_add(1, Ordering::Relaxed);
        self.given_up_upset.fetch_add(usize::from(self.is_upset()), Ordering::Relaxed);
        if before == 0 && *self.ailment.lock().expect("no panic") == Ailment::UpsetBySearch {
            *self.upset_until.lock().expect("no panic") = Some(Instant::now() + 5 * PACE.pause_max);
        }
        if give_up.search || self.keeps_all.load(Ordering::Relaxed) {
            return Err(StoreError::Failed("cannot be searched".into()));
        }
        self.store.give_up_on(message, give_up).await
    }

    async fn probe(&self) -> Result<(), StoreError> {
        if self.is_upset() || self.away.load(Ordering::Relaxed) {
            return Err(StoreError::Unavailable("away".into()));
        }
        self.store.probe().await
    }
}

/// The parts of a consumer over a fragile store.
struct Sick<'r> {
    rig: &'r mut Rig,
    store: Arc<Layered<Fragile>>,
    announcer: Arc<Announcer>,
    status: Arc<ConsumerStatus>,
}

impl<'r> Sick<'r> {
    fn new(rig: &'r mut Rig, ailment: Ailment) -> Self {
        let store = Arc::new(Layered(Fragile {
            store: rig.backend.store.clone(),
            ailment: Mutex::new(ailment),
            away: AtomicBool::new(false),
            upset_until: Mutex::new(None),
            keeps_all: AtomicBool::new(false),
            tried: AtomicUsize::new(0),
            given_up: AtomicUsize::new(0),
            given_up_upset: AtomicUsize::new(0),
        }));
        let announcer = Arc::new(Announcer::new(rig.backend.events.clone(), 1));
        Self { rig, store, announcer, status: Arc::default() }
    }

    fn ingest(&self) -> (JoinHandle<()>, shutdown::Trigger) {
        self.ingest_at(PACE)
    }

    fn ingest_at(&self, pace: Pace) -> (JoinHandle<()>, shutdown::Trigger) {
        let (trigger, shutdown) = shutdown::channel();
        let settings = &self.rig.config.queue;
        let ingest = Ingest {
            queue: self.rig.backend.queue.clone(),
            store: self.store.clone(),
            ids: self.rig.backend.ids.clone(),
            announcer: self.announcer.clone(),
            limits: MergeLimits {
                items_max: settings.merge_items_max,
                bytes_max: settings.merge_bytes_max,
                linger_max: Duration::from_millis(settings.linger_ms_max),
            },
            prefetch: settings.prefetch,
            pace,
            in_hand: self.rig.backend.progress.register("ingest", PATIENCE),
            status: self.status.clone(),
        };
        (tokio::spawn(async move { ingest.run(shutdown).await }), trigger)
    }

    fn dead_queue(&self) -> (JoinHandle<()>, shutdown::Trigger) {
        let (trigger, shutdown) = shutdown::channel();
        let reader = DeadQueue {
            queue: self.rig.backend.queue.clone(),
            store: self.store.clone(),
            ids: self.rig.backend.ids.clone(),
            announcer: self.announcer.clone(),
            pace: PACE,
            in_hand: self.rig.backend.progress.register("dead_queue", PATIENCE),
            status: self.status.clone(),
        };
        (tokio::spawn(reader.run(shutdown)), trigger)
    }

    async fn publish(&mut self, counter: &str) -> MessageId {
        let message = self.rig.message(counter, 1);
        let id = message.id;
        self.rig.publish(message).await;
        id
    }

    /// Publishes other clients' writes until `is_over`; each is applied in time.
    async fn bystand(&mut self, is_over: impl AsyncFn(&Rig) -> bool) {
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        let begun = Instant::now();
        let mut written = std::collections::VecDeque::new();
        for number in 1.. {
            tick.tick().await;
            self.publish("bystander").await;
            written.push_back((number, Instant::now()));
            let value = self.rig.value("bystander").await.unwrap_or(0);
            written.retain(|(number, _)| *number > value);
            if let Some((_, since)) = written.front() {
                assert!(since.elapsed() < BYSTANDER_MAX, "{value} of {number} applied");
            }
            if is_over(self.rig).await {
                break;
            }
            assert!(begun.elapsed() < PATIENCE, "in vain");
        }
    }

    async fn fate(&self, id: MessageId) -> Option<ItemStatus> {
        fate_of(self.rig, id).await
    }
}

async fn fate_of(rig: &Rig, id: MessageId) -> Option<ItemStatus> {
    let fates = rig.backend.store.item_statuses([id.item(Kind::Increment, 0)].into()).await;
    fates.expect("the store answers").into_iter().next().flatten()
}

async fn stop((task, trigger): (JoinHandle<()>, shutdown::Trigger)) {
    trigger.request();
    task.await.expect("no panic");
}

fn is_given_up(fate: Option<&ItemStatus>) -> bool {
    matches!(fate, Some(ItemStatus::Failed { reason, .. }) if reason == "not_applied")
}

/// There are two such messages, so that they meet each other, too.
async fn is_given_up_in_time(mut rig: Rig, ailment: Ailment) -> Rig {
    let mut sick = Sick::new(&mut rig, ailment);
    let heavy = [sick.publish(HEAVY).await, sick.publish(HEAVY).await];
    let ingest = sick.ingest();
    sick.bystand(async |rig| {
        let mut over = true;
        for id in heavy {
            over &= fate_of(rig, id).await.is_some();
        }
        over
    })
    .await;
    for id in heavy {
        let fate = sick.fate(id).await;
        assert!(is_given_up(fate.as_ref()), "{fate:?}");
    }
    let tried = sick.store.0.tried();
    assert!(tried >= 2 * STRIKES_MAX as usize, "{tried}");
    assert_eq!(sick.store.0.given_up.load(Ordering::Relaxed), 4, "each with a search, then without");
    stop(ingest).await;
    assert_eq!(rig.value(HEAVY).await, None);
    rig
}

async fn a_message_that_takes_too_long_alone_is_given_up_and_others_are_applied_in_time(rig: Rig) -> Rig {
    is_given_up_in_time(rig, Ailment::Slow).await
}

async fn a_message_whose_transaction_panics_is_given_up_and_others_are_applied_in_time(rig: Rig) -> Rig {
    is_given_up_in_time(rig, Ailment::Panicking).await
}

async fn a_message_at_which_the_store_is_busy_is_never_given_up_and_others_are_applied_in_time(
    mut rig: Rig,
) -> Rig {
    let mut sick = Sick::new(&mut rig, Ailment::Busy);
    let heavy = [sick.publish(HEAVY).await, sick.publish(HEAVY).await];
    let ingest = sick.ingest();
    let store = sick.store.clone();
    sick.bystand(async |_| store.0.tried() >= 30).await;
    assert_eq!(sick.store.0.given_up.load(Ordering::Relaxed), 0);
    sick.store.0.becomes(Ailment::None);
    for id in heavy {
        let fate = sick.rig.wait_for_fate(id).await;
        assert!(matches!(fate, ItemStatus::Applied { .. }), "{fate:?}");
    }
    stop(ingest).await;
    rig
}

/// Its transactions fail as if it were the cause, and the store's own writes show that it is not.
async fn a_message_that_fails_while_the_store_comes_and_goes_is_applied_in_the_end(mut rig: Rig) -> Rig {
    let mut sick = Sick::new(&mut rig, Ailment::None);
    let ingest = sick.ingest();
    let mut heavy = Vec::new();
    for round in 0..2 * usize::try_from(STRIKES_MAX).expect("small") {
        sick.store.0.becomes(Ailment::Slow);
        sick.store.0.away.store(true, Ordering::Relaxed);
        let tried = sick.store.0.tried();
        heavy.push(sick.publish(HEAVY).await);
        sick.publish("bystander").await;
        wait_for("it is tried", async || sick.store.0.tried() > tried || round > 0).await;
        wait_for("an outage", async || sick.status.store_is_away()).await;
        sick.store.0.becomes(Ailment::None);
        sick.store.0.away.store(false, Ordering::Relaxed);
        sick.rig.wait_for_value("bystander", i64::try_from(round).expect("small") + 1).await;
    }
    for id in heavy {
        let fate = sick.rig.wait_for_fate(id).await;
        assert!(matches!(fate, ItemStatus::Applied { .. }), "{fate:?}");
    }
    assert_eq!(sick.store.0.given_up.load(Ordering::Relaxed), 0);
    stop(ingest).await;
    rig
}

async fn a_message_after_which_the_store_does_not_answer_is_never_given_up(mut rig: Rig) -> Rig {
    let mut sick = Sick::new(&mut rig, Ailment::Upsetting);
    let heavy = sick.publish(HEAVY).await;
    let ingest = sick.ingest();
    let mut written = 0;
    while sick.store.0.tried() < 5 * STRIKES_MAX as usize {
        sick.publish("bystander").await;
        written += 1;
        sick.rig.wait_for_value("bystander", written).await;
    }
    assert_eq!(sick.store.0.given_up.load(Ordering::Relaxed), 0);
    sick.store.0.becomes(Ailment::None);
    assert!(matches!(sick.rig.wait_for_fate(heavy).await, ItemStatus::Applied { .. }));
    stop(ingest).await;
    rig
}

async fn a_lone_message_that_fails_is_kept_until_it_can_be_applied(mut rig: Rig) -> Rig {
    let mut sick = Sick::new(&mut rig, Ailment::Panicking);
    let ingest = sick.ingest();
    let heavy = sick.publish(HEAVY).await;
    let enough = 3 * STRIKES_MAX as usize;
    wait_for("attempts", async || sick.store.0.tried() >= enough).await;
    assert_eq!((sick.fate(heavy).await, sick.store.0.given_up.load(Ordering::Relaxed)), (None, 0));
    sick.store.0.becomes(Ailment::None);
    assert!(matches!(sick.rig.wait_for_fate(heavy).await, ItemStatus::Applied { .. }));
    stop(ingest).await;
    rig
}

async fn a_message_that_can_not_even_be_given_up_is_kept_as_a_whole(mut rig: Rig) -> Rig {
    let mut sick = Sick::new(&mut rig, Ailment::Panicking);
    sick.store.0.keeps_all.store(true, Ordering::Relaxed);
    let parts = [sick.ingest(), sick.dead_queue()];
    let heavy = sick.rig.message(HEAVY, 1);
    sick.rig.publish(heavy.clone()).await;
    let id = shared::model::id::BodyId::of(&heavy.body).as_uuid();
    sick.bystand(async |rig| rig.backend.store.dead_letter(id).await.expect("it answers").is_some()).await;
    let letter = rig.backend.store.dead_letter(id).await.expect("it answers").expect("just seen");
    assert_eq!(letter.reason, "not_applied");
    for part in parts {
        stop(part).await;
    }
    rig
}

async fn a_message_that_fails_in_the_dead_queue_is_in_nobodys_way(mut rig: Rig) -> Rig {
    let mut sick = Sick::new(&mut rig, Ailment::Slow);
    let heavy = sick.publish(HEAVY).await;
    let good = sick.publish("good").await;
    let mut subscription = sick.rig.backend.queue.subscribe(Lane::Writes, 1).await.expect("subscribed");
    for _ in 0..2 {
        let delivery = next(subscription.as_mut()).await;
        subscription.reject(delivery).await.expect("rejected");
    }
    drop(subscription);
    let parts = [sick.ingest(), sick.dead_queue()];
    let fate = sick.rig.wait_for_fate(good).await;
    assert!(matches!(fate, ItemStatus::Applied { .. }), "{fate:?}");
    sick.bystand(async |rig| fate_of(rig, heavy).await.is_some()).await;
    let fate = sick.fate(heavy).await;
    assert!(is_given_up(fate.as_ref()), "{fate:?}");
    for part in parts {
        stop(part).await;
    }
    rig
}

async fn next(subscription: &mut dyn Subscription) -> shared::queue::Delivery {
    let next = tokio::time::timeout(PATIENCE, subscription.next()).await;
    next.expect("in time").expect("not lost")
}

/// None of its messages fails alone: it is given more time.
async fn a_batch_that_is_slow_as_a_whole_is_applied(mut rig: Rig) -> Rig {
    let mut sick = Sick::new(&mut rig, Ailment::SlowTogether);
    for _ in 0..100 {
        sick.publish(HEAVY).await;
    }
    let ingest = sick.ingest();
    sick.rig.wait_for_value(HEAVY, 100).await;
    assert_eq!(sick.store.0.given_up.load(Ordering::Relaxed), 0);
    stop(ingest).await;
    rig
}

/// Begins an ingest and ends it in the middle of a transaction with the heavy message, as a kill does.
async fn crash(sick: &Sick<'_>) {
    let tried = sick.store.0.tried();
    let (task, _trigger) = sick.ingest();
    wait_for("it is tried", async || sick.store.0.tried() > tried).await;
    task.abort();
    assert!(task.await.expect_err("it was ended").is_cancelled());
}

async fn a_message_that_ends_its_consumer_each_time_is_given_up(mut rig: Rig) -> Rig {
    let mut sick = Sick::new(&mut rig, Ailment::Endless);
    let heavy = sick.publish(HEAVY).await;
    for _ in 0..=STRIKES_MAX {
        crash(&sick).await;
    }
    // From now on it is not tried any more: it waits for the commit of another message.
    let tried = sick.store.0.tried();
    let ingest = sick.ingest();
    sick.bystand(async |rig| fate_of(rig, heavy).await.is_some()).await;
    let fate = sick.fate(heavy).await;
    assert!(is_given_up(fate.as_ref()), "{fate:?}");
    assert_eq!(sick.store.0.tried(), tried);
    stop(ingest).await;
    rig
}

/// The consumer is killed as often as allowed; commits of other messages meanwhile do not count.
async fn a_good_message_whose_consumer_is_killed_again_and_again_is_applied(mut rig: Rig) -> Rig {
    let mut sick = Sick::new(&mut rig, Ailment::Endless);
    let heavy = [sick.publish(HEAVY).await, sick.publish(HEAVY).await, sick.publish(HEAVY).await];
    for _ in 0..STRIKES_MAX {
        crash(&sick).await;
    }
    sick.store.0.becomes(Ailment::None);
    let ingest = sick.ingest();
    for id in heavy {
        let fate = sick.rig.wait_for_fate(id).await;
        assert!(matches!(fate, ItemStatus::Applied { .. }), "{fate:?}");
    }
    stop(ingest).await;
    let left = rig.backend.store.begin_attempts(heavy.into(), false).await.expect("it answers");
    assert_eq!(left.len(), 3, "no attempt is noted any more");
    rig
}

/// Like the lock of a row that another session holds.
async fn more_busy_messages_than_are_held_aside_are_in_nobodys_way(mut rig: Rig) -> Rig {
    const BUSY: usize = 40;
    let mut sick = Sick::new(&mut rig, Ailment::Busy);
    let ingest = sick.ingest();
    let mut heavy = Vec::new();
    for written in 0..BUSY {
        heavy.push(sick.publish(HEAVY).await);
        sick.publish("bystander").await;
        sick.rig.wait_for_value("bystander", i64::try_from(written).expect("few") + 1).await;
    }
    let begun = Instant::now();
    let mut written = i64::try_from(BUSY).expect("few");
    while begun.elapsed() < BYSTANDER_MAX {
        let since = Instant::now();
        sick.publish("bystander").await;
        written += 1;
        sick.rig.wait_for_value("bystander", written).await;
        assert!(since.elapsed() < BYSTANDER_MAX, "{written} took {:?}", since.elapsed());
    }
    sick.store.0.becomes(Ailment::None);
    for id in heavy {
        let fate = sick.rig.wait_for_fate(id).await;
        assert!(matches!(fate, ItemStatus::Applied { .. }), "{fate:?}");
    }
    assert_eq!(sick.store.0.given_up.load(Ordering::Relaxed), 0);
    stop(ingest).await;
    rig
}

async fn slow_messages_beside_others_take_turns_with_them(mut rig: Rig) -> Rig {
    const BEFORE: i64 = 20;
    const SLOW: u32 = 30;
    let mut sick = Sick::new(&mut rig, Ailment::Slow);
    let ingest = sick.ingest();
    for _ in 0..BEFORE {
        sick.publish("bystander").await;
    }
    sick.rig.wait_for_value("bystander", BEFORE).await;
    // The window is open by now: some of these share a batch.
    for _ in 0..SLOW {
        sick.publish(HEAVY).await;
    }
    let begun = Instant::now();
    sick.publish("bystander").await;
    sick.rig.wait_for_value("bystander", BEFORE + 1).await;
    assert!(begun.elapsed() < PACE.batch_time_max * 3 * SLOW, "{:?}", begun.elapsed());
    stop(ingest).await;
    rig
}

/// This process lives, so it counts none of it as a crash.
async fn messages_that_are_given_back_again_and_again_are_applied_in_the_end(mut rig: Rig) -> Rig {
    // Times without a message held aside would begin the count anew.
    let held_max = Duration::from_millis(200);
    let pace = Pace { held_max, pause_max: PACE.pause_min, ..PACE };
    let mut sick = Sick::new(&mut rig, Ailment::Panicking);
    let ingest = sick.ingest_at(pace);
    let mut heavy = Vec::new();
    for _ in 0..2 {
        heavy.push(sick.publish(HEAVY).await);
        let tried = sick.store.0.tried();
        wait_for("attempts", async || sick.store.0.tried() > tried + 3).await;
    }
    // Commits of others, too few for a message's strikes between two of its returns.
    let mut tick = tokio::time::interval(held_max / 2);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for written in 1.. {
        tick.tick().await;
        sick.publish("bystander").await;
        sick.rig.wait_for_value("bystander", written).await;
        if sick.store.0.tried() >= 40 * STRIKES_MAX as usize {
            break;
        }
        assert_eq!(sick.store.0.given_up.load(Ordering::Relaxed), 0);
    }
    sick.store.0.becomes(Ailment::None);
    for id in heavy {
        let fate = sick.rig.wait_for_fate(id).await;
        assert!(matches!(fate, ItemStatus::Applied { .. }), "{fate:?}");
    }
    assert_eq!(sick.store.0.given_up.load(Ordering::Relaxed), 0);
    stop(ingest).await;
    rig
}

/// A message that takes long then may be good.
async fn a_message_is_not_searched_while_the_store_does_not_answer(mut rig: Rig) -> Rig {
    let mut sick = Sick::new(&mut rig, Ailment::UpsetBySearch);
    let ingest = sick.ingest();
    let heavy = sick.publish(HEAVY).await;
    sick.bystand(async |rig| fate_of(rig, heavy).await.is_some()).await;
    assert!(is_given_up(sick.fate(heavy).await.as_ref()));
    assert_eq!(sick.store.0.given_up.load(Ordering::Relaxed), 3, "two searches, then without");
    assert_eq!(sick.store.0.given_up_upset.load(Ordering::Relaxed), 0);
    stop(ingest).await;
    rig
}

/// Every batch ends because the next message does not fit, so one message is always held.
async fn a_message_that_failed_is_tried_again_under_a_backlog(mut rig: Rig) -> Rig {
    const BACKLOG: i64 = 400;
    rig.config.queue.merge_items_max = 1;
    let mut sick = Sick::new(&mut rig, Ailment::Panicking);
    sick.publish(HEAVY).await;
    for _ in 0..BACKLOG {
        sick.publish("bystander").await;
    }
    let ingest = sick.ingest();
    wait_for("attempts", async || sick.store.0.tried() >= 3).await;
    let applied = sick.rig.value("bystander").await;
    assert!(applied < Some(BACKLOG), "the backlog came first");
    sick.rig.wait_for_value("bystander", BACKLOG).await;
    stop(ingest).await;
    rig
}

/// The trigger makes the server busy with it; the kill comes from outside, as that of a kernel
/// without memory does.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_killed_at_one_message_each_time_gives_it_up() {
    cluster("killed_at_one", |mut rig| async move {
        let database = rig.config.store.url.clone();
        Trouble::heavy(HEAVY).begin(&database).await;
        let message = rig.message(HEAVY, 1);
        let heavy = message.id;
        rig.publish(message).await;
        let port = testkit::servers::free_address().expect("a port").port();
        let mut kills = 0;
        let mut process = Process::start(&rig.config, port);
        while kills <= STRIKES_MAX {
            wait_for("it is tried", async || is_sleeping(&database).await).await;
            drop(process);
            kills += 1;
            // The server notices nothing of it until the statement's limit.
            wait_for("its session ends", async || !is_sleeping(&database).await).await;
            process = Process::start(&rig.config, port);
        }
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        let begun = Instant::now();
        while fate_of(&rig, heavy).await.is_none() {
            tick.tick().await;
            let message = rig.message("bystander", 1);
            rig.publish(message).await;
            assert!(begun.elapsed() < PATIENCE, "in vain");
            assert!(!is_sleeping(&database).await, "it is tried once more");
        }
        let fate = fate_of(&rig, heavy).await;
        assert!(is_given_up(fate.as_ref()), "{fate:?}");
        process.ends_in_time().await;
        rig
    })
    .await;
}

/// A program that is started in the usual way: the statement itself takes too long.
#[tokio::test(flavor = "multi_thread")]
async fn a_program_gets_past_a_heavy_message() {
    cluster("heavy", |mut rig| async move {
        let database = rig.config.store.url.clone();
        Trouble::heavy(HEAVY).begin(&database).await;
        let port = testkit::servers::free_address().expect("a port").port();
        let process = Process::start(&rig.config, port);
        process.wait_for_health("\"status\":\"ok\"").await;
        let message = rig.message(HEAVY, 1);
        rig.publish(message).await;
        let mut sick = Sick::new(&mut rig, Ailment::None);
        let begun = Instant::now();
        sick.bystand(async |_| begun.elapsed() > Duration::from_secs(8)).await;
        process.ends_in_time().await;
        rig
    })
    .await;
}
