//! Every setting, its default and its meaning; where values come from is in [`load`].
//!
//! Defaults < `config.yaml` < environment < flags. `docs/configuration.md` is generated from here.
pub mod load;
pub mod pair;
pub mod queue_limits;

use std::thread::available_parallelism;

use serde::{Deserialize, Serialize};

use crate::model::api_key::ApiKey;

/// All settings of both programs. Both read the same file; each uses its part.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub server: ServerSettings,
    pub ops: Ops,
    pub queue: QueueSettings,
    pub store: StoreSettings,
    pub ids: IdSettings,
    pub cache: Cache,
    pub collections: Collections,
    pub auth: Auth,
    pub retention: RetentionSettings,
    pub telemetry: Telemetry,
}

/// The public HTTP port of the API.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerSettings {
    /// Address to listen on. Without API keys anything but loopback is an open service.
    pub host: String,
    /// Port to listen on; 0 takes a free one.
    pub port: u16,
    /// Without API keys: names, without a port, under which clients may call the service beside loopback and
    /// `server.host`. A request to another name gets 421, because a web page could have sent it.
    pub allowed_hosts: Vec<String>,
    /// Path under which a proxy offers the service, for example `/forebay`; empty for none. Requests are taken
    /// with it and without it; `Location`, `/docs` and the OpenAPI document have it.
    pub path_prefix: String,
    /// Worker threads, each with its own batcher. 0: the cores granted minus one, at least one.
    pub workers: usize,
    /// Largest request body in bytes.
    pub body_bytes_max: usize,
    /// Most items in one array or NDJSON request.
    pub items_max: usize,
    /// Largest item in bytes, as it stands in its request.
    pub item_bytes_max: usize,
    /// How many years before it is accepted a point may lie, 50 at most. Points older than 90 days change
    /// only the rollups of their day.
    pub point_years_max: u32,
    /// Data of the documents of one page in bytes; a page ends before the document that is beyond, but has one
    /// at least.
    pub page_bytes_max: usize,
    /// Bytes of request bodies in memory at once in the whole process, as far as they have arrived. Beyond them
    /// the largest of those that more is awaited of get 503.
    pub bodies_bytes_max: usize,
    /// Bytes of answers in memory at once in the whole process, until they are sent. Beyond them large answers
    /// get 503.
    pub answers_bytes_max: usize,
    /// How long a client may take nothing of its answer before its connection is closed, in milliseconds.
    pub answer_timeout_ms: u64,
    /// How long a request body may take to arrive, in milliseconds.
    pub body_timeout_ms: u64,
    /// How long a write may wait for its confirm before 503, in milliseconds.
    pub accept_timeout_ms: u64,
    /// Longest `Prefer: wait` that is granted, in milliseconds.
    pub wait_ms_max: u64,
    /// How long the short paths (`/counter`, `/data`, `/api/metrics`) wait for their write to be
    /// applied, in milliseconds; 0 answers 202 at once.
    pub short_wait_ms: u64,
    /// Requests that may wait for an outcome at once in the whole process; beyond them 202 at once.
    /// Less than `in_flight_max`, so that waiting never keeps others out.
    pub waiters_max: usize,
    /// Requests that may be in work at once in the whole process; the surplus gets 503.
    pub in_flight_max: usize,
    /// Open connections per worker; further ones wait in the listen backlog.
    pub connections_max: usize,
    /// How long an idle connection is kept, in milliseconds.
    pub keep_alive_ms: u64,
    /// How much longer than `keep_alive_ms` a connection may stand still in the middle of something, in
    /// milliseconds: half a request, the rest of a refused body.
    pub stall_timeout_ms: u64,
    /// How long a request still waits for an outcome or a change once its client has closed its half of the
    /// connection, in milliseconds. It may have gone: only an answer shows.
    pub half_closed_wait_ms: u64,
    /// After a stop signal: how long requests are still served before the port closes, in milliseconds.
    pub drain_grace_ms: u64,
    /// After the port is closed: how long open requests may take, in milliseconds.
    pub shutdown_timeout_ms: u64,
}

/// The operations port: Prometheus metrics and health.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ops {
    /// Address to listen on.
    pub host: String,
    /// Port to listen on; 0 takes a free one. Unset: 9190 for the API, 9191 for the consumer.
    pub port: Option<u16>,
    /// How long an HTTP worker, or another loop that the program cannot do without, may stand still before
    /// `/livez` and `/readyz` of this port fail, in milliseconds. Waiting for a server is not standing still;
    /// the ingest has `store.connect_timeout_ms` and `store.write_timeout_ms` beside it for each step.
    pub stuck_ms_max: u64,
}

/// The durable queue and the batches that go through it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QueueSettings {
    /// `amqp://` or `amqps://` for RabbitMQ; `embedded:<directory>` for the built-in queue.
    pub url: String,
    /// First part of every queue and exchange name.
    pub prefix: String,
    /// Most items that the batcher puts into one message (a request is never split).
    pub message_items_max: usize,
    /// Size in bytes at which the batcher closes a message (a request is never split).
    pub message_bytes_max: usize,
    /// Messages of one batcher that may wait for their confirms at once.
    pub publishes_in_flight_max: usize,
    /// Closed messages of one batcher that may wait for a publish; beyond them 503.
    pub messages_waiting_max: usize,
    /// How long one confirm may take before the session counts as broken, in milliseconds.
    pub confirm_timeout_ms: u64,
    /// Bytes that may wait in the queue; beyond them writes get 503. An argument of the queue:
    /// a change needs a drained and deleted queue.
    pub bytes_max: u64,
    /// How old a queue that was just made must be before it is published to, in milliseconds. A
    /// broker that is killed within half a second after it made a queue forgets what is in it.
    pub settle_ms: u64,
    /// Messages that one consumer may hold unacknowledged.
    pub prefetch: u16,
    /// Memory for unacknowledged messages in bytes: prefetch × largest message must fit.
    pub prefetch_bytes_max: usize,
    /// Most items that the consumer merges into one transaction.
    pub merge_items_max: usize,
    /// Most bytes of messages that the consumer merges into one transaction.
    pub merge_bytes_max: usize,
    /// How long the consumer waits for more messages while it is under load, in milliseconds.
    pub linger_ms_max: u64,
}

/// The store.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreSettings {
    /// `postgres://…`, or `embedded:<directory>` for the built-in store.
    pub url: String,
    /// Connections of one process.
    pub connections_max: u32,
    /// Connections that lists, pages and series may use at once; one is always left for the rest.
    pub list_connections_max: u32,
    /// Whether a pooler, such as PgBouncer, stands before Postgres: nothing is then expected of a
    /// connection beyond its transaction.
    pub pooler: bool,
    /// How long getting a connection may take, in milliseconds.
    pub connect_timeout_ms: u64,
    /// How long one read may take, in milliseconds.
    pub read_timeout_ms: u64,
    /// How long one transaction of the consumer may take, in milliseconds.
    pub write_timeout_ms: u64,
    /// Whether the program brings the schema up to date at start.
    pub migrate: bool,
    /// Whether a migration makes the database when there is none of that name. Only the profile `local` does:
    /// elsewhere a name that does not exist is taken for a mistake.
    pub create_database: bool,
}

/// Identity of writes.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IdSettings {
    /// Secrets that sign ids: the first signs, all recognise. Empty: the embedded form makes one
    /// in its data directory, the profile `local` has one, everything else refuses to start.
    pub secrets: Vec<String>,
    /// How long it is remembered what was applied, and under which Idempotency-Key, in hours: counted
    /// back from the oldest message that may still come.
    pub remembered_for_hours: u32,
    /// How far a replica's clock may be off the store's, or leap in between, before it refuses writes, in
    /// milliseconds.
    pub clock_skew_ms_max: u64,
}

/// The API's cache of reads.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cache {
    /// Memory for cached values in bytes.
    pub bytes_max: u64,
    /// How long a value is answered without asking the store again, in milliseconds.
    pub ttl_ms: u64,
    /// How long "not found" is answered without asking the store again, in milliseconds.
    pub negative_ttl_ms: u64,
    /// How old a value may be that is answered, marked stale, while the store is away, in milliseconds.
    pub stale_ms_max: u64,
}

/// What the definitions of collections may cost.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Collections {
    /// CPU time that checking the documents of one request against their schema may take, in milliseconds;
    /// what is beyond gets 422. Where the consumer has to check, each document has it for itself; one that
    /// is beyond becomes a dead letter (`check_overrun`).
    pub check_ms_max: u64,
}

/// Who may do what.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    /// Keys of clients: `{id, sha256, principal, scopes, expires_at}`, one line of `forebay-api keys new` each.
    /// With none here and no `auth.keys_file` the service is open.
    pub keys: Vec<ApiKey>,
    /// File with more keys, a list in YAML or JSON; empty for none. A change counts within seconds, once
    /// two looks in a row found the same, without a restart; a file that cannot be read leaves the keys as they were.
    /// Replace it by a rename, which never shows a part of it.
    pub keys_file: String,
    /// Whether everybody who reaches the port may use the admin routes while there are no keys.
    pub admin_without_keys: bool,
    /// Origins, for example `https://app.example`, whose pages browsers let call the service and read its
    /// answers (CORS), with a key where keys are needed and without cookies. None by default.
    pub cors_origins: Vec<String>,
}

/// How long the consumer keeps what grows with time.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetentionSettings {
    /// Days of raw points.
    pub points_days: u32,
    /// Hours of rollups per minute.
    pub minutes_hours: u32,
    /// Days of rollups per hour; those per day are kept. Beyond 90 they answer nothing, because older points
    /// come to days only.
    pub hours_days: u32,
    /// Days that a dead letter is kept after it was discarded; the others stay until somebody decides.
    /// With an Idempotency-Key never for a shorter time than its key (`ids.remembered_for_hours`).
    pub discarded_days: u32,
}

/// Logs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Telemetry {
    /// `auto` is text on a terminal and JSON elsewhere.
    pub log_format: LogFormat,
    /// Least level, or a filter such as `info,shared::queue=debug`.
    pub log_filter: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    #[default]
    Auto,
    Text,
    Json,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".into(),
            port: 8080,
            allowed_hosts: Vec::new(),
            path_prefix: String::new(),
            workers: 0,
            body_bytes_max: 1 << 20,
            items_max: 1_000,
            item_bytes_max: 256 << 10,
            point_years_max: 20,
            page_bytes_max: 1 << 20,
            bodies_bytes_max: 256 << 20,
            answers_bytes_max: 64 << 20,
            answer_timeout_ms: 15_000,
            body_timeout_ms: 10_000,
            accept_timeout_ms: 2_000,
            wait_ms_max: 30_000,
            short_wait_ms: 400,
            waiters_max: 12_000,
            in_flight_max: 20_000,
            connections_max: 25_000,
            keep_alive_ms: 75_000,
            stall_timeout_ms: 30_000,
            half_closed_wait_ms: 2_000,
            drain_grace_ms: 0,
            shutdown_timeout_ms: 10_000,
        }
    }
}

impl ServerSettings {
    /// The worker threads to start. The cores are those that the container is granted.
    pub fn workers(&self) -> usize {
        match self.workers {
            0 => available_parallelism().map_or(1, |cores| cores.get().saturating_sub(1).max(1)),
            workers => workers,
        }
    }
}

impl Default for Ops {
    fn default() -> Self {
        Self { host: "127.0.0.1".into(), port: None, stuck_ms_max: 30_000 }
    }
}

impl Default for QueueSettings {
    fn default() -> Self {
        Self {
            url: "embedded:./forebay-data".into(),
            prefix: "forebay".into(),
            message_items_max: 1_000,
            message_bytes_max: 1 << 20,
            publishes_in_flight_max: 4,
            messages_waiting_max: 16,
            confirm_timeout_ms: 1_000,
            bytes_max: 8 << 30,
            settle_ms: 2_000,
            prefetch: 64,
            prefetch_bytes_max: 256 << 20,
            merge_items_max: 8_000,
            merge_bytes_max: 8 << 20,
            linger_ms_max: 20,
        }
    }
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self {
            url: "embedded:./forebay-data".into(),
            connections_max: 8,
            list_connections_max: 4,
            pooler: false,
            connect_timeout_ms: 1_000,
            read_timeout_ms: 2_000,
            write_timeout_ms: 30_000,
            migrate: true,
            create_database: false,
        }
    }
}

impl Default for IdSettings {
    fn default() -> Self {
        Self { secrets: Vec::new(), remembered_for_hours: 24, clock_skew_ms_max: 60_000 }
    }
}

impl Default for Cache {
    fn default() -> Self {
        Self { bytes_max: 64 << 20, ttl_ms: 10_000, negative_ttl_ms: 1_000, stale_ms_max: 3_600_000 }
    }
}

impl Default for Collections {
    fn default() -> Self {
        Self { check_ms_max: 100 }
    }
}

impl Auth {
    /// True when no client needs a key. A file without keys is not that: it admits no client.
    pub fn is_open(&self) -> bool {
        self.keys.is_empty() && self.keys_file.is_empty()
    }
}

impl Default for RetentionSettings {
    fn default() -> Self {
        Self { points_days: 30, minutes_hours: 48, hours_days: 90, discarded_days: 90 }
    }
}

impl Default for Telemetry {
    fn default() -> Self {
        Self {
            log_format: LogFormat::Auto,
            log_filter: "info,actix_server=warn,actix_http=off,lapin=off".into(),
        }
    }
}
