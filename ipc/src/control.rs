//! The commands of `control.sock` and their answers: JSON-RPC 2.0, one message per line.
//!
//! [`Command`] is the whole operator's interface, as one enum: the daemon matches on it, the client
//! library sends it, `inferctl` has a subcommand for each. Answers are plain structs. No batches.
//! Long commands send notifications `{"method":"progress","params":Progress}` that carry the request's id.

use crate::layout::{Backing, Queue};
use crate::signature::Signature;
use crate::worker_records::WorkerStats;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A command, as `method` and `params` of JSON-RPC.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", content = "params", rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// The daemon at a glance. Answer: [`StatusAnswer`].
    Status {},
    /// All models. Answer: `Vec<ModelAnswer>`.
    Models {},
    /// All sessions. Answer: `Vec<SessionAnswer>`.
    Sessions {},
    /// All limits. Answer: `BTreeMap<String, u64>`.
    Limits {},
    /// Counters and latencies per model. Answer: `BTreeMap<String, WorkerStats>`.
    Stats {
        /// Only this model.
        #[serde(default)]
        model: Option<String>,
    },
    /// Serve a new model until the daemon ends (the configuration is not written). Answer: [`ModelAnswer`].
    Load {
        /// Its name.
        model: String,
        /// Absolute path of the file, or of a folder with `model.toml`.
        path: String,
        /// `tract`, `echo`, ...; chosen from the file when absent.
        #[serde(default)]
        backend: Option<String>,
    },
    /// Stop serving a model; its sessions end. Answer: [`Done`].
    Unload {
        /// Its name.
        model: String,
    },
    /// Make the next generation from the same or another file. Answer: [`ReloadAnswer`].
    Reload {
        /// Its name.
        model: String,
        /// Absolute path of another file.
        #[serde(default)]
        path: Option<String>,
    },
    /// Take the kept previous generation back. Answer: [`ReloadAnswer`].
    Rollback {
        /// Its name.
        model: String,
    },
    /// Load, check and warm up a file without serving it. Answer: [`ValidateAnswer`].
    Validate {
        /// Absolute path of the file or folder.
        path: String,
        /// Backend; chosen from the file when absent.
        #[serde(default)]
        backend: Option<String>,
    },
    /// End a session. Answer: [`Done`].
    Disconnect {
        /// Its number.
        session: u64,
    },
    /// Drain and exit, like SIGTERM. Answer: [`Done`], before the exit.
    Drain {},
    /// Change the log level of daemon and workers. Answer: [`Done`].
    Log {
        /// A filter directive: `info`, `debug`, `inferd=trace`.
        level: String,
    },
    /// Versions. Answer: [`VersionAnswer`].
    Version {},
}

/// The daemon at a glance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatusAnswer {
    /// `starting`, `ready` or `draining`.
    pub state: String,
    /// Process id.
    pub pid: u32,
    /// Version.
    pub version: String,
    /// Seconds since start.
    pub uptime_s: f64,
    /// Milliseconds from start to READY, once ready.
    pub ready_ms: Option<f64>,
    /// Models by state.
    pub models: BTreeMap<String, u64>,
    /// Sessions attached.
    pub sessions: u64,
    /// Directory of the sockets.
    pub runtime_dir: String,
    /// Backing of new sessions.
    pub backing: Backing,
    /// Resident memory without shared memory, in bytes.
    pub rss_bytes: u64,
}

/// One model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelAnswer {
    /// Name.
    pub model: String,
    /// `loading`, `live`, `recovering`, `quarantined` or `failed`.
    pub state: String,
    /// Why it is not live, if it is not; or the last refused reload.
    pub message: Option<String>,
    /// Live generation; 0 before the first.
    pub generation: u32,
    /// Kept generation that `rollback` would take, if any.
    pub kept_generation: Option<u32>,
    /// Backend and version.
    pub backend: String,
    /// Configured path.
    pub path: String,
    /// Path that the live generation came from, where it differs from the configured one.
    pub live_path: Option<String>,
    /// SHA-256 of the live model file, hexadecimal.
    pub sha256: String,
    /// What clients see, once loaded.
    pub signature: Option<Signature>,
    /// Queue of sessions that do not choose.
    pub queue: Queue,
    /// Slots at most.
    pub slots: u32,
    /// Sessions attached.
    pub sessions: u64,
    /// Process id of the live worker.
    pub worker_pid: Option<u32>,
    /// Worker deaths since start.
    pub worker_deaths: u64,
    /// Resident memory of the live worker without shared memory, in bytes.
    pub worker_rss_bytes: u64,
    /// How long the live generation took to load and warm up, in milliseconds.
    pub load_ms: f64,
    /// Warnings of the live worker (affinity, FIFO or mlock not allowed).
    pub warnings: Vec<String>,
}

/// One session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SessionAnswer {
    /// Number.
    pub session: u64,
    /// Model.
    pub model: String,
    /// Peer's uid.
    pub uid: u32,
    /// Peer's process id: a label.
    pub pid: u32,
    /// Queue.
    pub queue: Queue,
    /// Slots.
    pub slots: u32,
    /// Bytes of both regions.
    pub region_bytes: u64,
    /// Seconds since READY.
    pub age_s: f64,
}

/// What a reload or a rollback did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReloadAnswer {
    /// Name.
    pub model: String,
    /// Generation before.
    pub from_generation: u32,
    /// Generation now.
    pub to_generation: u32,
    /// SHA-256 of the file now live.
    pub sha256: String,
    /// Load and warm-up in milliseconds.
    pub load_ms: f64,
    /// From the grant to the new worker's first sweep, in microseconds.
    pub swap_us: f64,
    /// `carried`, `reset` or `none` (stateless).
    pub state: String,
}

/// What a validation found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ValidateAnswer {
    /// SHA-256 of the model file.
    pub sha256: String,
    /// Backend and version.
    pub backend: String,
    /// What clients would see.
    pub signature: Signature,
    /// Bytes of state per session.
    pub state_bytes: u64,
    /// Load in milliseconds.
    pub load_ms: f64,
    /// Warm-up in milliseconds.
    pub warm_up_ms: f64,
    /// Median run in microseconds.
    pub run_us_p50: f64,
    /// Largest difference of the golden pairs.
    pub golden_difference_max: Option<f64>,
}

/// Done; nothing more to say than a sentence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// What was done.
    pub message: String,
}

/// Versions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VersionAnswer {
    /// Of the daemon.
    pub version: String,
    /// ABI of regions and attach records, `major.minor`.
    pub abi: String,
    /// Kernel release.
    pub kernel: String,
}

/// A step of a long command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The request's id.
    pub id: serde_json::Value,
    /// Which model.
    pub model: String,
    /// What begins: `staging`, `loading`, `checking`, `warming`, `swapping`.
    pub stage: String,
}

/// Answers per model of [`Command::Stats`].
pub type StatsAnswer = BTreeMap<String, WorkerStats>;

/// JSON-RPC error codes.
pub mod code {
    /// Not JSON.
    pub const PARSE: i64 = -32700;
    /// Not a request.
    pub const INVALID_REQUEST: i64 = -32600;
    /// No such command.
    pub const METHOD_NOT_FOUND: i64 = -32601;
    /// Parameters do not fit the command.
    pub const INVALID_PARAMS: i64 = -32602;
    /// No model or session of that name.
    pub const NOT_FOUND: i64 = -32000;
    /// The model (file, manifest) was refused; the live generation is untouched.
    pub const REFUSED: i64 = -32001;
    /// Another mutating command on the same model is under way.
    pub const BUSY: i64 = -32002;
    /// A limit is reached.
    pub const LIMIT: i64 = -32003;
    /// The daemon drains.
    pub const SHUTTING_DOWN: i64 = -32004;
}

/// An error answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct RpcError {
    /// One of [`code`].
    pub code: i64,
    /// What, where, and the remedy.
    pub message: String,
}

/// A message from the daemon: an answer, an error or a notification.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RpcMessage {
    /// Always `2.0`.
    pub jsonrpc: String,
    /// The request's id; absent in notifications.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<serde_json::Value>,
    /// The answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<serde_json::Value>,
    /// The error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<RpcError>,
    /// `progress`, in notifications.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// [`Progress`], in notifications.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub params: Option<serde_json::Value>,
}
