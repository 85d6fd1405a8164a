//! Resources that processes used, read from /proc. Postgres and RabbitMQ are found by name, so work
//! of other clients of the same servers is counted, too: measure on a quiet machine.
use std::time::Duration;

use anyhow::Context;

/// CPU time by program, without the load generator.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct CpuSeconds {
    pub api: f64,
    pub consumer: f64,
    pub postgres: f64,
    pub rabbitmq: f64,
}

impl CpuSeconds {
    /// Reads the CPU times of now. Without a consumer of its own an API uses no servers; their work
    /// belongs to others.
    pub fn now(api: u32, consumer: Option<u32>) -> anyhow::Result<Self> {
        let api = of_process(api)?.as_secs_f64();
        let Some(consumer) = consumer else { return Ok(Self { api, ..Self::default() }) };
        Ok(Self {
            api,
            consumer: of_process(consumer)?.as_secs_f64(),
            postgres: of_name("postgres")?.as_secs_f64(),
            rabbitmq: of_name("beam.smp")?.as_secs_f64(),
        })
    }

    pub fn since(self, before: Self) -> Self {
        Self {
            api: self.api - before.api,
            consumer: self.consumer - before.consumer,
            postgres: self.postgres - before.postgres,
            rabbitmq: self.rabbitmq - before.rabbitmq,
        }
    }

    pub fn total(self) -> f64 {
        self.api + self.consumer + self.postgres + self.rabbitmq
    }
}

/// User and system time of a process with its reaped children. The time of a backend that ends
/// meanwhile is not lost: it moves to its parent.
pub fn of_process(pid: u32) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("process {pid} is gone"))?;
    parse_stat(&stat).map(|(_, time)| time).with_context(|| format!("/proc/{pid}/stat is not readable"))
}

fn of_name(wanted: &str) -> anyhow::Result<Duration> {
    let mut total = Duration::ZERO;
    for entry in std::fs::read_dir("/proc").context("no /proc")? {
        let path = entry?.path();
        // Processes come and go while the folder is read.
        let Ok(stat) = std::fs::read_to_string(path.join("stat")) else { continue };
        if let Some((name, time)) = parse_stat(&stat)
            && name == wanted
        {
            total += time;
        }
    }
    Ok(total)
}

/// Parses the name in parentheses (which may hold anything) and utime + stime + cutime + cstime.
fn parse_stat(stat: &str) -> Option<(&str, Duration)> {
    let (head, tail) = stat.rsplit_once(')')?;
    let (_, name) = head.split_once('(')?;
    let ticks: u64 = tail
        .split_ascii_whitespace()
        .skip(11)
        .take(4)
        .map(|field| field.parse::<u64>().ok())
        .sum::<Option<u64>>()?;
    let per_second = rustix::param::clock_ticks_per_second();
    Some((name, Duration::from_millis(ticks * 1_000 / per_second)))
}

/// Resident memory of a process.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct ResidentMemory {
    pub peak_mb: f64,
    pub now_mb: f64,
}

impl ResidentMemory {
    pub fn of(pid: u32) -> anyhow::Result<Self> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))
            .with_context(|| format!("process {pid} is gone"))?;
        let mb = |key| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).context("no such line")?;
            let kib: f64 = line.trim().trim_end_matches("kB").trim().parse().context("not a number")?;
            anyhow::Ok(kib * 1_024.0 / 1e6)
        };
        Ok(Self { peak_mb: mb("VmHWM:")?, now_mb: mb("VmRSS:")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces_does_not_shift_the_fields() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 150 50 25 75 20 0 1 0 9 1 1";
        let (name, time) = parse_stat(stat).expect("fields");
        assert_eq!(name, "a) b (c");
        let ticks = rustix::param::clock_ticks_per_second();
        assert_eq!(time, Duration::from_millis(300 * 1_000 / ticks));
    }

    #[test]
    fn this_process_uses_memory_and_time() {
        let pid = std::process::id();
        let memory = ResidentMemory::of(pid).expect("own memory");
        assert!(memory.now_mb > 0.1 && memory.peak_mb >= memory.now_mb * 0.5, "{memory:?}");
        assert!(of_process(pid).is_ok());
    }
}
