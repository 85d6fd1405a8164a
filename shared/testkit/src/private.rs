//! A RabbitMQ for tests that must not run against a shared one: they kill it, make it raise an
//! alarm, change its settings, give it users. One for all tests of a program, which take turns.
//!
//! It starts with the first test that asks and goes, with its folder, when the last one is done.
//! A thread of its own keeps it, because its processes die with the thread that started them.
use std::fs;
use std::future::Future;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;

use anyhow::Context;
use tokio::sync::{OnceCell, mpsc, oneshot};

use crate::servers::{in_path, rabbitmq, remove_folder};

/// Starts of a broker before its tests fail.
const STARTS_MAX: usize = 3;

/// The broker during the turn of one test.
#[derive(Clone)]
pub struct Broker {
    url: String,
    orders: mpsc::Sender<Order>,
}

enum Task {
    Kill,
    Restart,
    MemoryAlarm(bool),
    Set(&'static str, u64),
    AddUser(String, [&'static str; 3]),
    Control(Vec<String>),
}

struct Order {
    task: Task,
    /// Answer with the output of the task, if any.
    done: oneshot::Sender<anyhow::Result<String>>,
}

impl Broker {
    /// URL of the broker, the same over a restart.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Kills it by SIGKILL; returns when it is gone.
    pub async fn kill(&self) {
        self.order(Task::Kill).await;
    }

    /// Starts it again after [`kill`](Self::kill); returns when it answers.
    pub async fn restart(&self) {
        self.order(Task::Restart).await;
    }

    /// Raises or clears a memory alarm; while it is on, publishers are blocked.
    pub async fn memory_alarm(&self, on: bool) {
        self.order(Task::MemoryAlarm(on)).await;
    }

    /// Sets a number among its settings, for connections that are opened afterwards.
    pub async fn set(&self, setting: &'static str, value: u64) {
        self.order(Task::Set(setting, value)).await;
    }

    /// Returns the URL of a new user with these patterns of what it may configure, write and read.
    pub async fn add_user(&self, name: String, may: [&'static str; 3]) -> String {
        self.order(Task::AddUser(name, may)).await
    }

    /// Runs its own tool (`rabbitmqctl`) with these arguments and returns the output.
    pub async fn control(&self, arguments: &[&str]) -> String {
        self.order(Task::Control(arguments.iter().map(|&argument| argument.to_owned()).collect())).await
    }

    /// Checks that it blocks a connection of this name.
    pub async fn blocks(&self, name: &str) -> bool {
        let list = ["--quiet", "list_connections", "--no-table-headers", "state", "client_properties"];
        let connections = self.control(&list).await;
        let is_blocked = |line: &str| line.starts_with("blocked") && line.contains(&format!("\"{name}\""));
        connections.lines().any(is_blocked)
    }

    /// Applies `definition` to the queues whose names begin with `prefix` from now on; `None`
    /// removes the policy.
    pub async fn policy(&self, prefix: &str, definition: Option<&str>) {
        let pattern = format!("^{prefix}");
        self.control(&match definition {
            Some(definition) => vec!["set_policy", "--apply-to", "queues", prefix, &pattern, definition],
            None => vec!["clear_policy", prefix],
        })
        .await;
    }

    async fn order(&self, task: Task) -> String {
        let (done, outcome) = oneshot::channel();
        assert!(self.orders.send(Order { task, done }).await.is_ok(), "the keeper of the broker ended");
        outcome.await.expect("the keeper of the broker answers").expect("the broker obeys")
    }
}

/// Runs `test` on the private broker while no other test does. Says so on the terminal and does
/// nothing where no RabbitMQ is installed. A test undoes what it did to the broker; one that fails
/// may make the tests after it fail.
pub async fn broker<Fut: Future<Output = ()>>(test: impl FnOnce(Broker) -> Fut) {
    static SHARED: Mutex<Weak<OnceCell<Keeper>>> = Mutex::new(Weak::new());
    static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let programs =
        rabbitmq::programs().filter(|_| ["setpriv", "epmd"].iter().all(|name| in_path(name).is_some()));
    let Some(programs) = programs else {
        // Written past the harness, which shows the output of failed tests only.
        let _ = writeln!(std::io::stderr(), "SKIPPED: no RabbitMQ is installed here to start a private one");
        return;
    };
    // Tests that wait for their turn hold it, too, so that it lives until all are done.
    let shared = {
        let mut current = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        current.upgrade().unwrap_or_else(|| {
            let new = Arc::new(OnceCell::new());
            *current = Arc::downgrade(&new);
            new
        })
    };
    let _turn = TURN.lock().await;
    let keeper = shared.get_or_try_init(|| Keeper::start(programs)).await.expect("a private broker starts");
    test(keeper.broker.clone()).await;
}

/// The thread that keeps the broker, until this is dropped.
struct Keeper {
    broker: Broker,
    /// Sender whose drop ends the thread.
    alive: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    async fn start(programs: PathBuf) -> anyhow::Result<Self> {
        let (orders, inbox) = mpsc::channel(1);
        let (started, url) = oneshot::channel();
        let (alive, until_dropped) = oneshot::channel();
        let thread = std::thread::spawn(move || keep(&programs, started, inbox, until_dropped));
        let url = url.await.context("the keeper of the broker ended")??;
        Ok(Self { broker: Broker { url, orders }, alive: Some(alive), thread: Some(thread) })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.alive = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported already.
            let _ = thread.join();
        }
    }
}

fn keep(
    programs: &Path,
    started: oneshot::Sender<anyhow::Result<String>>,
    mut inbox: mpsc::Receiver<Order>,
    mut until_dropped: oneshot::Receiver<()>,
) {
    // Clients of the broker need other threads than this one.
    let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = threads.expect("a runtime");
    let folder = std::env::temp_dir().join(crate::unique("broker"));
    runtime.block_on(async {
        let mut broker = match create(programs, &folder).await {
            Ok(broker) => broker,
            Err(error) => return drop(started.send(Err(error))),
        };
        if started.send(Ok(broker.url())).is_ok() {
            loop {
                let Order { task, done } = tokio::select! {
                    Some(order) = inbox.recv() => order,
                    _ = &mut until_dropped => break,
                };
                // An error means that the test has ended.
                let _ = done.send(carry_out(&mut broker, task).await);
            }
        }
        broker.stop().await.expect("the private broker is ended");
        remove_folder(&folder).await.expect("its folder is removed");
    });
}

/// Starts a broker. One whose boot hangs is ended, shown, and started anew: RabbitMQ was seen to hang in its
/// boot, with its process alive, in one of some hundred runs.
async fn create(programs: &Path, folder: &Path) -> anyhow::Result<rabbitmq::RabbitMq> {
    fs::create_dir_all(folder)?;
    // The broker's user must get through to its own folder.
    fs::set_permissions(folder, fs::Permissions::from_mode(0o711))?;
    for number in 1..STARTS_MAX {
        match rabbitmq::RabbitMq::create(programs, &folder.join(format!("rabbitmq{number}")), 1).await {
            Ok(broker) => return Ok(broker),
            Err(error) => drop(writeln!(std::io::stderr(), "start {number} of a private broker: {error:#}")),
        }
    }
    rabbitmq::RabbitMq::create(programs, &folder.join("rabbitmq"), 1).await
}

async fn carry_out(broker: &mut rabbitmq::RabbitMq, task: Task) -> anyhow::Result<String> {
    match task {
        Task::Kill => broker.kill(0).await?,
        Task::Restart => drop(broker.restart(0).await?),
        Task::MemoryAlarm(on) => broker.memory_alarm(on).await?,
        Task::Set(setting, value) => broker.set(setting, value).await?,
        Task::AddUser(name, may) => return broker.add_user(&name, may).await,
        Task::Control(arguments) => {
            return broker.control(0, &arguments.iter().map(String::as_str).collect::<Vec<_>>()).await;
        }
    }
    Ok(String::new())
}
