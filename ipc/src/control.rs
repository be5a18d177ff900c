//! The commands of `control.sock` and their answers: JSON-RPC 2.0, one message per line.
//!
//! [`Command`] is the whole operator's interface, as one enum: the daemon matches on it, the client
//! library sends it, `inferctl` has a subcommand for each. Answers are plain structs. No batches.
//! Long commands send notifications `{"method":"progress","params":Progress}` that carry the request's id.
//! One answer brings a descriptor along: that of [`Command::Dump`], beside the line's first byte.

use crate::layout::{Backing, Queue};
use crate::signature::Signature;
use crate::worker_records::{RecordLayout, ShadowReport, WorkerStats};
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
    /// Make the next generation from the same or another file. Answer: [`ReloadAnswer`]; a refusal by the gate
    /// has the [`Verdict`] as its `data`.
    Reload(Reload),
    /// Take the previous generation back, from its kept worker or from the store. Answer: [`ReloadAnswer`].
    Rollback {
        /// Its name.
        model: String,
    },
    /// Every generation of a model, refused attempts too, newest first. Answer: `Vec<HistoryEntry>`.
    History {
        /// Its name.
        model: String,
    },
    /// The recorded last steps of a model. Answer: [`DumpAnswer`], with the read-only record region as a descriptor.
    Dump {
        /// Its name.
        model: String,
        /// Only this session's steps are wanted: checked, and repeated in the answer. The region holds all of them.
        #[serde(default)]
        session: Option<u64>,
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

/// What a reload is asked to do. What it leaves out, the model's configured gate (`[models.NAME.gate]`) says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct Reload {
    /// The model's name.
    pub model: String,
    /// Absolute path of another file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Run the new generation on recorded steps first; `{"steps": 0}` runs none whatever is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<Shadow>,
    /// Largest difference allowed per output, over all recorded steps; wants a shadow.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub max_diff: BTreeMap<String, f64>,
    /// Longest p99 of a run allowed, in microseconds; wants a shadow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_latency_us: Option<f64>,
    /// Do everything but go live.
    #[serde(default)]
    pub dry_run: bool,
}

/// How much is shadowed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shadow {
    /// So many recorded steps, the most recent ones, and further ones as they come where there are fewer.
    Steps(u32),
    /// Those that come within this time.
    Seconds(f64),
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
    /// Directory of store and history; none where there is none to write to.
    pub state_dir: Option<String>,
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
    /// Generation that `rollback` would take, if any.
    pub kept_generation: Option<u32>,
    /// How it is kept: `alive` (its worker waits) or `disk` (it is loaded again).
    pub kept: Option<String>,
    /// Why the live generation is not what the configuration names, and what to do about it; none where it is.
    pub drift: Option<String>,
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
    /// Generation now; the same as before after a dry run.
    pub to_generation: u32,
    /// SHA-256 of the new generation's file.
    pub sha256: String,
    /// Load and warm-up in milliseconds.
    pub load_ms: f64,
    /// From the grant to the new worker's first sweep, in microseconds; 0 after a dry run.
    pub swap_us: f64,
    /// `carried`, `reset` or `none` (stateless).
    pub state: String,
    /// Why it was accepted.
    pub verdict: Verdict,
    /// The gap of every session that was served before and after.
    pub gap_us: Vec<SessionGap>,
}

/// What the gate decided, and on what grounds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Whether the new generation may serve.
    pub accepted: bool,
    /// Whether it went live: not after a dry run, not after a refusal.
    pub live: bool,
    /// Why it was refused, one sentence per reason; empty where it was accepted.
    pub reasons: Vec<String>,
    /// What the shadow measured; none without one.
    pub shadow: Option<ShadowReport>,
    /// Largest difference of the golden pairs, if there are any.
    pub golden_difference_max: Option<f64>,
    /// Median run of the warm-up's last window, in microseconds.
    pub run_us_p50: f64,
    /// Load in milliseconds.
    pub load_ms: f64,
    /// Warm-up in milliseconds.
    pub warm_up_ms: f64,
    /// Runs of the warm-up.
    pub warm_up_runs: u32,
    /// What becomes of the sessions' state: `carried`, `reset` or `none` (stateless).
    pub state: String,
}

/// How long a session had nobody to answer it during a swap.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SessionGap {
    /// The session.
    pub session: u64,
    /// From the last reply of the old generation, or the grant if that was later, to the new worker's take-over, in
    /// microseconds: the time in which a request would have waited for the swap.
    pub gap_us: f64,
}

/// One generation of a model that went live, or an attempt that did not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// Its number; 0 for an attempt that never went live.
    pub generation: u32,
    /// SHA-256 of the model file, hexadecimal; empty where it could not be read, and for a backend without a file.
    pub sha256: String,
    /// The path that it came from.
    pub path: String,
    /// Backend.
    pub backend: String,
    /// When the attempt ended, in milliseconds since 1970.
    pub at_unix_ms: u64,
    /// When it went live, in milliseconds since 1970.
    pub went_live_unix_ms: Option<u64>,
    /// The uid of who asked, if somebody did.
    pub by_uid: Option<u32>,
    /// `start`, `reload`, `rollback`, `restart`, `watch`, `configuration` or `load`.
    pub cause: String,
    /// What the gate decided, in short.
    pub verdict: HistoryVerdict,
    /// How it ended: `replaced by 7`, `rolled back to 5`, ...; none while it is live.
    pub ended: Option<String>,
    /// When it ended, in milliseconds since 1970.
    pub ended_unix_ms: Option<u64>,
    /// Whether the store has all its files, so that `rollback` or a restart can serve it.
    pub stored: bool,
}

/// A [`Verdict`] in short.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub struct HistoryVerdict {
    /// Whether it was accepted.
    pub accepted: bool,
    /// Why not.
    pub reasons: Vec<String>,
    /// Steps that were shadowed; none without a shadow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u32>,
    /// Largest difference of any output on them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub difference_max: Option<f64>,
    /// 99th percentile of its runs on them, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_us_p99: Option<f64>,
    /// Load and warm-up in milliseconds.
    #[serde(default)]
    pub load_ms: f64,
}

/// What beside the descriptor is needed to read the recorded steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DumpAnswer {
    /// The model.
    pub model: String,
    /// The session that was asked for.
    pub session: Option<u64>,
    /// The live generation; 0 without one. Each step says which generation ran it.
    pub generation: u32,
    /// Steps that the region has room for.
    pub steps: u32,
    /// Names, dtypes and shapes of what each step holds.
    pub layout: RecordLayout,
    /// Bytes of the region.
    pub region_bytes: u64,
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
    /// What begins: `staging`, `loading`, `checking`, `warming`, `shadowing`, `swapping`.
    pub stage: String,
    /// How far the stage is, where it counts: `done` of `of`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done: Option<u32>,
    /// See `done`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<u32>,
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
    /// The [`Verdict`] of a reload that the gate refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<serde_json::Value>,
}

impl RpcError {
    /// An error without data.
    #[must_use]
    pub fn new(code: i64, message: impl Into<String>) -> RpcError {
        RpcError { code, message: message.into(), data: None }
    }
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
