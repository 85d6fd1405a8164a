//! The consumer as a process that is stopped by a signal: under a backlog, and while a server is away. It
//! ends in time, and leaves messages that it did not apply to the next consumer, once.
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use shared::config::Config;
use testkit::inspect;
use testkit::proxy::Proxy;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::{PATIENCE, Rig, base_config, wait_for};

/// Longest stop after a signal: less than the time that a supervisor waits before it kills the process.
const END_MAX: Duration = Duration::from_secs(20);

/// Number of messages of a backlog, in small transactions.
const BACKLOG: u32 = 3_000;

/// Process that is killed when dropped.
pub(crate) struct Process {
    child: Child,
    ops: String,
}

impl Process {
    pub fn start(config: &Config, ops_port: u16) -> Self {
        Self::launch(config, ops_port, Stdio::null())
    }

    /// Starts with a pipe for a log, which is kept open and never read.
    pub fn start_with_full_log(config: &Config, ops_port: u16) -> Self {
        Self::launch(config, ops_port, Stdio::piped())
    }

    fn launch(config: &Config, ops_port: u16, log: Stdio) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_forebay-consumer"));
        command.current_dir(std::env::temp_dir()).env_clear().stdout(Stdio::null()).stderr(log);
        for (name, value) in [
            ("QUEUE__URL", config.queue.url.clone()),
            ("QUEUE__PREFIX", config.queue.prefix.clone()),
            ("QUEUE__BYTES_MAX", config.queue.bytes_max.to_string()),
            ("QUEUE__SETTLE_MS", config.queue.settle_ms.to_string()),
            ("QUEUE__MERGE_ITEMS_MAX", config.queue.merge_items_max.to_string()),
            ("STORE__URL", config.store.url.clone()),
            ("IDS__SECRETS", config.ids.secrets[0].clone()),
            ("OPS__PORT", ops_port.to_string()),
            ("OPS__STUCK_MS_MAX", config.ops.stuck_ms_max.to_string()),
            ("TELEMETRY__LOG_FILTER", config.telemetry.log_filter.clone()),
        ] {
            command.env(format!("FOREBAY__{name}"), value);
        }
        Self { child: command.spawn().expect("it starts"), ops: format!("127.0.0.1:{ops_port}") }
    }

    /// Status and body of an operations page; `None` while the port is closed.
    pub async fn page(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(&self.ops).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }

    pub async fn wait_for_health(&self, expected: &str) {
        wait_for(expected, async || {
            self.page("/health").await.is_some_and(|(_, body)| body.contains(expected))
        })
        .await;
    }

    pub fn send(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it has not been waited for");
    }

    /// Waits for the end; returns its status and the time that it took.
    pub async fn ended(self) -> (ExitStatus, Duration) {
        self.ended_during(|_| ()).await
    }

    /// Sends the signal repeatedly, as an impatient operator does. Signals right after another count as
    /// one.
    async fn ended_by_repeated(self, signal: Signal) -> (ExitStatus, Duration) {
        self.ended_during(|process| process.send(signal)).await
    }

    async fn ended_during(mut self, at_each_look: impl Fn(&Self)) -> (ExitStatus, Duration) {
        let (begun, mut tick) = (Instant::now(), tokio::time::interval(Duration::from_millis(10)));
        loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                return (status, begun.elapsed());
            }
            assert!(begun.elapsed() < PATIENCE * 2, "it does not end");
            at_each_look(&self);
            tick.tick().await;
        }
    }

    pub async fn ends_in_time(self) {
        self.send(Signal::TERM);
        let (status, took) = self.ended().await;
        assert_eq!(status.code(), Some(0));
        assert!(took < END_MAX, "{took:?}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a test with a rig, the same settings behind proxies for the process, and a port for it.
pub(crate) async fn beside_a_process(word: &str, test: impl AsyncFnOnce(Rig, Config, &Proxies, u16) -> Rig) {
    testkit::isolated(word, |isolated| async move {
        let mut config = base_config();
        config.queue.url = isolated.amqp_url;
        config.queue.prefix = isolated.prefix;
        config.store.url = isolated.database_url;
        let place = |url: &str| {
            let after_user = url.rsplit_once('@').map_or(url, |(_, rest)| rest);
            after_user.split('/').next().expect("a host and a port").to_owned()
        };
        let proxies = Proxies {
            broker: Proxy::start(place(&config.queue.url)).await.expect("a proxy"),
            store: Proxy::start(place(&config.store.url)).await.expect("a proxy"),
        };
        let mut behind = config.clone();
        behind.queue.url = proxies.broker.through(&config.queue.url);
        behind.store.url = proxies.store.through(&config.store.url);
        let port = testkit::servers::free_address().expect("a port").port();
        test(Rig::new(config).await, behind, &proxies, port).await.close().await;
    })
    .await;
}

pub(crate) struct Proxies {
    broker: Proxy,
    store: Proxy,
}

impl Rig {
    pub(crate) async fn publish_many(&mut self, counter: &str, count: u32) {
        let publishing = (0..count).map(|_| self.message(counter, 1)).collect::<Vec<_>>();
        let publishing = publishing.into_iter().map(|message| {
            let publisher = self.backend.queue.publisher();
            async move { publisher.publish(message, Instant::now() + PATIENCE).await.expect("durable") }
        });
        futures_util::future::join_all(publishing).await;
    }

    /// Number of messages that wait and that no consumer has.
    async fn waiting(&self) -> u32 {
        let queue = format!("{}.writes.v1", self.config.queue.prefix);
        inspect::waiting(&self.config.queue.url, &queue).await.expect("the broker answers")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_under_a_backlog_leaves_exactly_what_was_not_applied() {
    beside_a_process("term", async |mut rig, mut config, _proxies, port| {
        // Many transactions, so that the signal comes between two or within one.
        config.queue.merge_items_max = 5;
        rig.publish_many("term", BACKLOG).await;
        let mut applied = 0;
        for stop in 1..=3 {
            let process = Process::start(&config, port);
            wait_for("a beginning", async || rig.value("term").await.unwrap_or(0) > applied + 50).await;
            process.ends_in_time().await;
            applied = rig.value("term").await.expect("just seen");
            // It acknowledged all that it committed: a committed message that came back would make
            // the sum too large, a lost one too small.
            let waiting = async || rig.waiting().await;
            wait_for(&format!("stop {stop}: an exact rest of {applied}"), async || {
                i64::from(waiting().await) + applied == i64::from(BACKLOG)
            })
            .await;
            assert!(applied < i64::from(BACKLOG), "the stop waited for the backlog");
        }
        let queue = format!("{}.writes.v1", rig.config.queue.prefix);
        let counts =
            inspect::delivery_counts(&rig.config.queue.url, &queue).await.expect("the broker answers");
        // A window grows by a cancelled consumer, and the broker itself gives back what was on its way to
        // one: a message now and then. Stops that give back twice do so with most of a window.
        let often: Vec<_> = counts.iter().filter(|count| **count > 3).collect();
        assert!(often.len() <= 3, "given back more than once by a stop: {often:?}");
        rig.consuming(rig.wait_for_value("term", i64::from(BACKLOG))).await;
        assert_eq!(rig.value("term").await, Some(i64::from(BACKLOG)));
        let asked: usize = rig.store.0.asked.lock().expect("no panic").iter().sum();
        assert_eq!(i64::try_from(asked).expect("few"), i64::from(BACKLOG) - applied, "each message once");
        rig
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_age_of_what_is_not_applied_grows_while_the_store_is_away_and_is_0_when_nothing_waits() {
    beside_a_process("age", async |mut rig, config, proxies, port| {
        let process = Process::start(&config, port);
        let age = async || {
            let (_, metrics) = process.page("/metrics").await?;
            let name = "forebay_consumer_oldest_unapplied_seconds ";
            metrics.lines().find_map(|line| line.strip_prefix(name)?.parse::<f64>().ok())
        };
        wait_for("nothing to do", async || age().await == Some(0.0)).await;
        rig.publish_many("age", 1).await;
        rig.wait_for_value("age", 1).await;
        proxies.store.down(true);
        rig.publish_many("age", 3).await;
        wait_for("an age", async || age().await.is_some_and(|age| age > 1.0)).await;
        proxies.store.down(false);
        rig.wait_for_value("age", 4).await;
        wait_for("nothing to do again", async || age().await == Some(0.0)).await;
        process.ends_in_time().await;
        rig
    })
    .await;
}

/// Takes the store away in the middle of a backlog, in one of two ways, and stops the consumer.
async fn stops_without_the_store(word: &str, take_away: impl FnOnce(&Proxy)) {
    beside_a_process(word, async |mut rig, mut config, proxies, port| {
        config.queue.merge_items_max = 5;
        rig.publish_many("kept", BACKLOG).await;
        let process = Process::start(&config, port);
        wait_for("a beginning", async || rig.value("kept").await.unwrap_or(0) > 50).await;
        take_away(&proxies.store);
        // The outage is noticed either by a transaction or by the query for the store's time.
        process.wait_for_health("\"store\":\"unhealthy\"").await;
        assert_eq!(process.page("/readyz").await.map(|(status, _)| status), Some(200));
        process.ends_in_time().await;
        rig.consuming(rig.wait_for_value("kept", i64::from(BACKLOG))).await;
        assert_eq!(rig.value("kept").await, Some(i64::from(BACKLOG)));
        rig
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_while_the_store_is_down_is_obeyed_in_time() {
    stops_without_the_store("down", |store| store.down(true)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_while_the_store_is_silent_is_obeyed_in_time() {
    stops_without_the_store("silent", |store| store.black_hole(true)).await;
}

/// The reader of the dead queue, not the ingest, is in the middle of a statement.
#[tokio::test(flavor = "multi_thread")]
async fn a_signal_while_a_dead_message_is_in_hand_and_the_store_is_silent_is_obeyed_in_time() {
    beside_a_process("buried", async |mut rig, config, proxies, port| {
        let process = Process::start(&config, port);
        process.wait_for_health("\"status\":\"ok\"").await;
        rig.publish_many("buried", 1).await;
        rig.wait_for_value("buried", 1).await;
        proxies.store.black_hole(true);
        let (broker, dead) = (&rig.config.queue.url.clone(), format!("{}.dead.v1", rig.config.queue.prefix));
        let message = rig.message("buried", 1);
        inspect::publish(broker, &dead, &message.body).await.expect("the broker takes it");
        let waiting = async || inspect::waiting(broker, &dead).await.expect("the broker answers");
        wait_for("the message in hand", async || waiting().await == 0).await;
        process.ends_in_time().await;
        assert_eq!(waiting().await, 1, "given back");
        rig.consuming(rig.wait_for_value("buried", 2)).await;
        rig
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_while_the_broker_is_silent_is_obeyed_in_time() {
    beside_a_process("mute", async |mut rig, config, proxies, port| {
        rig.publish_many("mute", 20).await;
        let process = Process::start(&config, port);
        rig.wait_for_value("mute", 20).await;
        proxies.broker.black_hole(true);
        process.ends_in_time().await;
        rig
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_without_any_server_is_ready_and_works_when_they_come() {
    beside_a_process("boot", async |mut rig, config, proxies, port| {
        proxies.broker.down(true);
        proxies.store.down(true);
        let process = Process::start(&config, port);
        process.wait_for_health("\"queue\":\"unhealthy\",\"store\":\"unhealthy\"").await;
        assert_eq!(process.page("/readyz").await.map(|(status, _)| status), Some(200));
        rig.publish_many("boot", 10).await;
        proxies.store.down(false);
        process.wait_for_health("\"queue\":\"unhealthy\",\"store\":\"healthy\"").await;
        proxies.broker.down(false);
        rig.wait_for_value("boot", 10).await;
        process.wait_for_health("\"status\":\"ok\"").await;
        process.ends_in_time().await;
        rig
    })
    .await;
}

/// Nothing is written: only the query for the store's time can meet the outage.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_consumer_notices_that_the_store_goes_and_comes() {
    beside_a_process("idle", async |mut rig, config, proxies, port| {
        rig.publish_many("idle", 1).await;
        let process = Process::start(&config, port);
        rig.wait_for_value("idle", 1).await;
        process.wait_for_health("\"status\":\"ok\"").await;
        for _ in 0..2 {
            proxies.store.down(true);
            process.wait_for_health("\"store\":\"unhealthy\"").await;
            proxies.store.down(false);
            process.wait_for_health("\"status\":\"ok\"").await;
        }
        process.ends_in_time().await;
        rig
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_from_the_terminal_stops_it_as_well() {
    beside_a_process("interrupt", async |mut rig, config, _proxies, port| {
        rig.publish_many("interrupt", 1).await;
        let process = Process::start(&config, port);
        rig.wait_for_value("interrupt", 1).await;
        process.send(Signal::INT);
        let (status, took) = process.ended().await;
        assert_eq!(status.code(), Some(0));
        assert!(took < END_MAX, "{took:?}");
        rig
    })
    .await;
}

/// The store is silent and a dead message is held: the stop by itself takes seconds.
#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_ends_a_stop_that_takes_long() {
    beside_a_process("twice", async |mut rig, config, proxies, port| {
        let process = Process::start(&config, port);
        process.wait_for_health("\"status\":\"ok\"").await;
        rig.publish_many("twice", 1).await;
        rig.wait_for_value("twice", 1).await;
        proxies.store.black_hole(true);
        let (broker, dead) = (&rig.config.queue.url.clone(), format!("{}.dead.v1", rig.config.queue.prefix));
        let message = rig.message("twice", 1);
        inspect::publish(broker, &dead, &message.body).await.expect("the broker takes it");
        let waiting = async || inspect::waiting(broker, &dead).await.expect("the broker answers");
        wait_for("the message in hand", async || waiting().await == 0).await;
        process.send(Signal::TERM);
        wait_for("the stop", async || process.page("/readyz").await.map(|(status, _)| status) == Some(503))
            .await;
        let (status, took) = process.ended_by_repeated(Signal::INT).await;
        assert_eq!(status.code(), Some(1));
        assert!(took < Duration::from_secs(3), "{took:?}");
        // The message comes again.
        proxies.store.black_hole(false);
        rig.consuming(rig.wait_for_value("twice", 2)).await;
        rig
    })
    .await;
}
