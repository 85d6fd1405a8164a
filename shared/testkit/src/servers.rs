//! Servers of one run or test: started on loopback with their data in its folder, crashed and
//! started again at will, ended with it. A server that was not started here is never touched.
//!
//! The programs are those of Debian's packages or of the `PATH`. They refuse to run as root, so
//! root starts them as the packages' own users. Everything that is started here dies with the
//! thread that started it (`setpriv --pdeathsig`), however that ended.
pub mod pgbouncer;
pub mod postgres;
pub mod rabbitmq;

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rand::Rng;
use rustix::process::geteuid;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use self::postgres::Postgres;
use self::rabbitmq::RabbitMq;

/// Ports below the range from which the kernel takes those of outgoing connections, so that a
/// server that is started again finds its own port free.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
/// Time within which a server must answer after its start; a broker takes several seconds of two cores.
const START_PATIENCE: Duration = Duration::from_secs(75);
/// Time within which a tool of a server must end.
const TOOL_PATIENCE: Duration = Duration::from_mins(1);
/// Time in which files may still appear in the folder of a server that was killed.
const REMOVE_PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);

/// The servers of the cluster pair.
pub struct Servers {
    pub postgres: Postgres,
    pub broker: RabbitMq,
}

/// Folders of the programs of both servers.
#[derive(Clone, Debug)]
pub struct Programs {
    postgres: PathBuf,
    rabbitmq: PathBuf,
}

impl Programs {
    /// Finds the programs; an error names the server that is not installed on this machine.
    pub fn find() -> anyhow::Result<Self> {
        let postgres = postgres::programs().context(
            "no PostgreSQL server here (Debian: apt-get install postgresql): no initdb in /usr/lib/postgresql or PATH",
        )?;
        let rabbitmq = rabbitmq::programs().context(
            "no RabbitMQ server here (Debian: apt-get install rabbitmq-server): not in /usr/lib/rabbitmq/bin or PATH",
        )?;
        in_path("setpriv").context("no setpriv here (Debian: apt-get install util-linux)")?;
        Ok(Self { postgres, rabbitmq })
    }
}

impl Servers {
    /// Starts both servers, the broker with this many nodes.
    pub async fn start(programs: &Programs, folder: &Path, nodes: usize) -> anyhow::Result<Self> {
        // Other users must get through to their own folders.
        fs::set_permissions(folder, fs::Permissions::from_mode(0o711))?;
        let (store_home, broker_home) = (folder.join("postgres"), folder.join("rabbitmq"));
        let (postgres, broker) = tokio::try_join!(
            Postgres::create(&programs.postgres, &store_home),
            RabbitMq::create(&programs.rabbitmq, &broker_home, nodes),
        )?;
        Ok(Self { postgres, broker })
    }

    pub async fn stop(&mut self) -> anyhow::Result<()> {
        let (postgres, broker) = tokio::join!(self.postgres.stop(), self.broker.stop());
        postgres.and(broker)
    }
}

/// Removes a folder while servers that were killed a moment ago may still be writing.
pub async fn remove_folder(folder: &Path) -> anyhow::Result<()> {
    let deadline = Instant::now() + REMOVE_PATIENCE;
    loop {
        match fs::remove_dir_all(folder) {
            Err(error) if Instant::now() > deadline => {
                return Err(error).with_context(|| format!("cannot remove {}", folder.display()));
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
            Ok(()) => return Ok(()),
        }
    }
}

/// A user that a server runs as.
#[derive(Clone, Debug)]
struct Owner {
    uid: u32,
    gid: u32,
}

impl Owner {
    /// Finds the user of this name, or the unprivileged one; `None` where this program is not root
    /// and cannot choose.
    async fn of_servers(name: &str) -> anyhow::Result<Option<Self>> {
        if !geteuid().is_root() {
            return Ok(None);
        }
        for name in [name, "nobody"] {
            if let (Ok(uid), Ok(gid)) = (number_of("-u", name).await, number_of("-g", name).await) {
                return Ok(Some(Self { uid, gid }));
            }
        }
        bail!("this is root, and there is no user {name} or nobody to run the server as")
    }
}

async fn number_of(which: &str, name: &str) -> anyhow::Result<u32> {
    let output = Command::new("id").args([which, name]).output().await?;
    ensure!(output.status.success(), "no user {name}");
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}

/// Makes a folder that only its owner may enter.
fn private_folder(path: &Path, owner: Option<&Owner>) -> anyhow::Result<()> {
    fs::create_dir(path).with_context(|| format!("cannot create {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    if let Some(owner) = owner {
        chown(path, Some(owner.uid), Some(owner.gid))?;
    }
    Ok(())
}

/// Prepares `program` as `owner` in `home`, with an environment that does not depend on a shell,
/// out of reach of a Ctrl-C at the terminal.
fn command(program: &Path, owner: Option<&Owner>, home: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    if let Some(Owner { uid, gid }) = owner {
        command.args(["--reuid", &uid.to_string(), "--regid", &gid.to_string(), "--clear-groups"]);
    }
    command.arg(program).env_clear().env("HOME", home).env("LANG", "C.UTF-8");
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command.current_dir(home).stdin(Stdio::null()).process_group(0).kill_on_drop(true);
    command
}

/// Starts a program in the background; its output is appended to `log`.
fn launch(mut command: Command, log: &Path) -> anyhow::Result<Child> {
    let log = File::options().create(true).append(true).open(log)?;
    let child = command.stdout(log.try_clone()?).stderr(log).spawn();
    child.with_context(|| format!("cannot start {:?}", command.as_std()))
}

/// Runs a program to its end and returns the output, which an error holds, too.
async fn complete(mut command: Command) -> anyhow::Result<String> {
    let output = timeout(TOOL_PATIENCE, command.output()).await;
    let output = output.with_context(|| format!("{:?} does not end", command.as_std()))??;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    ensure!(
        output.status.success(),
        "{:?} ended with {}: {} {}",
        command.as_std(),
        output.status,
        said(&output.stdout),
        said(&output.stderr)
    );
    Ok(said(&output.stdout))
}

/// Waits until `answers` is true, as long as `child` lives.
async fn await_answer<F>(
    what: &str,
    child: &mut Child,
    mut answers: impl FnMut() -> F,
) -> anyhow::Result<Instant>
where
    F: Future<Output = bool>,
{
    let deadline = Instant::now() + START_PATIENCE;
    while !answers().await {
        if let Some(status) = child.try_wait()? {
            bail!("{what} ended by itself: {status}");
        }
        ensure!(Instant::now() < deadline, "{what} does not answer after {START_PATIENCE:?}");
        tokio::time::sleep(PAUSE).await;
    }
    Ok(Instant::now())
}

/// Ends of the log files in a server's folder, for an error: the folder may be gone when it is read.
fn last_lines(home: &Path) -> String {
    const LINES: usize = 12;
    let files = fs::read_dir(home).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut logs: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|kind| kind == "log" || kind == "out")).collect();
    logs.sort();
    let ends = logs.into_iter().map(|path| {
        let text = fs::read(&path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let text = text.unwrap_or_else(|error| error.to_string());
        let skipped = text.lines().count().saturating_sub(LINES);
        let last: Vec<_> = text.lines().skip(skipped).collect();
        format!("\n{}:\n  {}", path.display(), last.join("\n  "))
    });
    ends.collect()
}

/// Path of a program of this name.
pub fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Returns a loopback address without a listener.
pub fn free_address() -> anyhow::Result<SocketAddr> {
    for _ in 0..1_000 {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, rand::rng().random_range(PORTS)));
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    bail!("no free port between {} and {}", PORTS.start, PORTS.end)
}
