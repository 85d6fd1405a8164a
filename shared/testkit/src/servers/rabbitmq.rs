//! A RabbitMQ of one run, with one node or several, which can be killed and started again on their
//! ports. Its port mapper (epmd) is its own, too: one that a broker starts by itself outlives it
//! and is shared with others.
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, ensure};
use tokio::process::{Child, Command};

use super::{
    Owner, await_answer, command, complete, free_address, in_path, last_lines, launch, private_folder,
};
use crate::inspect;

/// Share of the machine's memory below what any broker uses, so that it blocks its publishers.
const WATERMARK_ALARM: &str = "0.000001";
const WATERMARK_USUAL: &str = "0.4";

/// A RabbitMQ, killed when this is dropped.
pub struct RabbitMq {
    programs: PathBuf,
    owner: Option<Owner>,
    home: PathBuf,
    epmd_port: u16,
    epmd: Child,
    nodes: Vec<Node>,
}

struct Node {
    name: String,
    port: u16,
    distribution_port: u16,
    child: Child,
}

/// The folder with `rabbitmq-server` itself, not the wrapper that chooses a user.
pub fn programs() -> Option<PathBuf> {
    let folder = PathBuf::from("/usr/lib/rabbitmq/bin");
    if folder.join("rabbitmq-server").is_file() {
        return Some(folder);
    }
    Some(in_path("rabbitmq-server")?.canonicalize().ok()?.parent()?.to_owned())
}

impl RabbitMq {
    /// Starts `count` nodes; several join the first one's cluster before anything is declared.
    pub async fn create(programs: &Path, home: &Path, count: usize) -> anyhow::Result<Self> {
        let owner = Owner::of_servers("rabbitmq").await?;
        private_folder(home, owner.as_ref())?;
        let epmd_port = free_address()?.port();
        let mut epmd = command(&in_path("epmd").context("no epmd")?, owner.as_ref(), home);
        epmd.env("ERL_EPMD_ADDRESS", "127.0.0.1").env("ERL_EPMD_PORT", epmd_port.to_string());
        let epmd = launch(epmd, &home.join("epmd.log"))?;
        let mut broker = Self {
            programs: programs.to_owned(),
            owner,
            home: home.to_owned(),
            epmd_port,
            epmd,
            nodes: Vec::new(),
        };
        broker.configure()?;
        for number in 0..count {
            let name = format!("forebay{number}_{}@localhost", std::process::id());
            let (port, distribution_port) = (free_address()?.port(), free_address()?.port());
            let child = broker.spawn(&name, port, distribution_port)?;
            broker.nodes.push(Node { name, port, distribution_port, child });
            // The first node makes the cookie that the others read.
            broker.await_ready(number).await?;
        }
        for number in 1..count {
            broker.control(number, &["stop_app"]).await?;
            let first = broker.nodes[0].name.clone();
            broker.control(number, &["join_cluster", &first]).await?;
            broker.control(number, &["start_app"]).await?;
            broker.await_ready(number).await?;
        }
        Ok(broker)
    }

    /// Addresses of all nodes.
    pub fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect()
    }

    /// URL of the first node.
    pub fn url(&self) -> String {
        self.url_of(0)
    }

    pub fn url_of(&self, node: usize) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.nodes[node].port)
    }

    /// Finds the node that leads `queue`.
    pub async fn leader(&self, queue: &str) -> anyhow::Result<usize> {
        if self.nodes.len() == 1 {
            return Ok(0);
        }
        let queues =
            self.control(0, &["--quiet", "list_queues", "--no-table-headers", "name", "leader"]).await?;
        let line = queues.lines().find(|line| line.starts_with(queue));
        let leader =
            line.and_then(|line| line.split_whitespace().nth(1)).context("a queue without a leader")?;
        self.nodes
            .iter()
            .position(|node| node.name == leader)
            .with_context(|| format!("{leader} is nobody's"))
    }

    /// Counts the members of `queue` that take part in its decisions.
    pub async fn members(&self, queue: &str) -> anyhow::Result<usize> {
        let queues =
            self.control(0, &["--quiet", "list_queues", "--no-table-headers", "name", "online"]).await?;
        let line = queues.lines().find(|line| line.starts_with(queue)).context("no such queue")?;
        Ok(line.matches('@').count())
    }

    /// Kills the Erlang machine of a node by SIGKILL.
    pub async fn kill(&mut self, node: usize) -> anyhow::Result<()> {
        let node = &mut self.nodes[node];
        node.child.kill().await.with_context(|| format!("cannot kill {}", node.name))
    }

    /// Starts a killed node again; returns when it answered.
    pub async fn restart(&mut self, number: usize) -> anyhow::Result<Instant> {
        let Node { name, port, distribution_port, .. } = &self.nodes[number];
        let child = self.spawn(name, *port, *distribution_port)?;
        self.nodes[number].child = child;
        self.await_ready(number).await
    }

    /// Raises or clears a memory alarm on every node; while it is on, publishers are blocked.
    pub async fn memory_alarm(&self, on: bool) -> anyhow::Result<()> {
        let watermark = if on { WATERMARK_ALARM } else { WATERMARK_USUAL };
        for number in 0..self.nodes.len() {
            self.control(number, &["set_vm_memory_high_watermark", watermark]).await?;
        }
        Ok(())
    }

    /// Sets a number among the broker's own settings, on every node. Channels read most of them
    /// when they open: set it before the connections that it shall hold for.
    pub async fn set(&self, setting: &str, value: u64) -> anyhow::Result<()> {
        let expression = format!("application:set_env(rabbit, {setting}, {value}).");
        for number in 0..self.nodes.len() {
            self.control(number, &["eval", &expression]).await?;
        }
        Ok(())
    }

    /// Makes a user with these patterns of what it may configure, write and read; returns its URL.
    pub async fn add_user(&self, name: &str, may: [&str; 3]) -> anyhow::Result<String> {
        let [configure, write, read] = may;
        self.control(0, &["add_user", name, name]).await?;
        self.control(0, &["set_permissions", "-p", "/", name, configure, write, read]).await?;
        Ok(self.url().replace("guest:guest", &format!("{name}:{name}")))
    }

    pub async fn stop(&mut self) -> anyhow::Result<()> {
        let children = self.nodes.iter_mut().map(|node| &mut node.child).chain([&mut self.epmd]);
        for child in children {
            if child.try_wait()?.is_none() {
                child.kill().await?;
            }
        }
        Ok(())
    }

    /// Writes settings that all nodes share; those of the machine must not apply.
    fn configure(&self) -> anyhow::Result<()> {
        // The default segment size of the write-ahead log (512 MB) is too much for a small machine.
        let settings = "raft.wal_max_size_bytes=64000000\n";
        for (name, text) in [("conf", settings), ("env.conf", ""), ("plugins", "[].\n")] {
            let path = self.home.join(name);
            fs::write(&path, text)?;
            if let Some(owner) = &self.owner {
                std::os::unix::fs::chown(&path, Some(owner.uid), Some(owner.gid))?;
            }
        }
        Ok(())
    }

    fn program(&self, program: &str, node: &str) -> Command {
        let mut command = command(&self.programs.join(program), self.owner.as_ref(), &self.home);
        let home = |name: &str| self.home.join(name);
        command.env("ERL_EPMD_ADDRESS", "127.0.0.1").env("ERL_EPMD_PORT", self.epmd_port.to_string());
        command.env("RABBITMQ_NODENAME", node).env("RABBITMQ_CONF_ENV_FILE", home("env.conf"));
        command
            .env("RABBITMQ_CONFIG_FILE", home("conf"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", home("plugins"));
        command.env("RABBITMQ_MNESIA_BASE", home("data")).env("RABBITMQ_LOG_BASE", home("logs"));
        command
    }

    fn spawn(&self, name: &str, port: u16, distribution_port: u16) -> anyhow::Result<Child> {
        let mut server = self.program("rabbitmq-server", name);
        let short = name.split('@').next().unwrap_or(name);
        server.env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1").env("RABBITMQ_NODE_PORT", port.to_string());
        server.env("RABBITMQ_DIST_PORT", distribution_port.to_string());
        server.env("RABBITMQ_LOGS", self.home.join(format!("{short}.log")));
        server.env("RABBITMQ_GENERATED_CONFIG_DIR", self.home.join(format!("{short}.generated")));
        server.env("RABBITMQ_PID_FILE", self.home.join(format!("{short}.pid")));
        // "Allow input" makes the script become the broker instead of watching over it: the child
        // is the Erlang machine itself.
        server.env("RABBITMQ_ALLOW_INPUT", "1").env("RABBITMQ_SERVER_START_ARGS", "-noinput");
        server.env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1}");
        launch(server, &self.home.join(format!("{short}.out")))
    }

    async fn await_ready(&mut self, number: usize) -> anyhow::Result<Instant> {
        let (url, home) = (self.url_of(number), self.home.clone());
        let node = &mut self.nodes[number];
        let answers = async || inspect::broker_answers(&url).await;
        let ready = await_answer(&node.name, &mut node.child, answers).await;
        ready.with_context(|| format!("its logs are in {}{}", home.display(), last_lines(&home)))
    }

    /// Runs `rabbitmqctl` on a node and returns the output.
    pub async fn control(&self, node: usize, arguments: &[&str]) -> anyhow::Result<String> {
        ensure!(node < self.nodes.len(), "no such node");
        let mut control = self.program("rabbitmqctl", &self.nodes[node].name);
        control.args(arguments);
        complete(control).await
    }
}
