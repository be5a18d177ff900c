//! What the supervisor and a worker say to each other, over a socketpair that only they hold.
//!
//! One JSON record per SOCK_SEQPACKET message, with descriptors beside it. The supervisor parses
//! configuration and manifest and hands over a typed [`ModelSpec`]; the worker gets descriptors only,
//! never a path. Both ends are ours, yet a worker runs a model author's file: the supervisor bounds
//! and checks every record it receives, and a record it cannot read ends that worker.

use crate::layout::{Backing, Geometry};
use crate::limits::WORKER_RECORD_BYTES_MAX;
use crate::signature::{DType, Signature, TensorSpec};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How the executor thread is scheduled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Scheduling {
    /// SCHED_OTHER.
    #[default]
    Other,
    /// SCHED_FIFO at this priority (1..=99).
    Fifo(u8),
}

/// A number for every element, or one number per element along the last axis.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PerElement {
    /// The same number everywhere.
    All(f64),
    /// One number per element of the last axis.
    Each(Vec<f64>),
}

impl PerElement {
    /// The number for element `i` along the last axis.
    #[must_use]
    pub fn at(&self, i: usize) -> f64 {
        match self {
            PerElement::All(v) => *v,
            PerElement::Each(v) => v[i % v.len()],
        }
    }
}

/// What the manifest says of one input or output; every field is optional there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub struct TensorRules {
    /// Must equal the file's dtype; required where the file does not say (TorchScript).
    pub dtype: Option<DType>,
    /// Must equal the file's shape, whose symbolic dimensions it fixes; required where the file does not say.
    pub shape: Option<Vec<u64>>,
    /// `name [unit]` per element of the last axis.
    pub elements: Vec<String>,
    /// The output axis that is time.
    pub time_axis: Option<u32>,
    /// NaN and infinities may pass.
    pub allow_non_finite: bool,
    /// Inputs: x = (x - mean) / std. Outputs: y = y * std + mean.
    pub mean: Option<PerElement>,
    /// See `mean`.
    pub std: Option<PerElement>,
    /// Inputs and outputs: x = x * scale + offset, after mean and std.
    pub scale: Option<PerElement>,
    /// See `scale`.
    pub offset: Option<PerElement>,
    /// Values are clipped to these bounds, last of all; for inputs before anything else.
    pub clip: Option<[PerElement; 2]>,
    /// Outputs: a value outside these bounds makes the step a `model_error`.
    pub limits: Option<[PerElement; 2]>,
}

/// A recurrent state pair: an output that becomes an input of the session's next step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatePair {
    /// The model's input.
    pub input: String,
    /// The model's output that feeds it.
    pub output: String,
}

/// Recorded inputs and outputs that a generation must reproduce before it goes live.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GoldenPair {
    /// File name (npz with `in.<input>` and `out.<output>`, a leading step axis), asked for with `NeedFile`.
    pub file: String,
    /// Largest absolute difference allowed.
    pub tolerance: f64,
}

/// Everything that a worker needs to know of its model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelSpec {
    /// The model's name, for logs.
    pub model: String,
    /// The generation that this worker will be.
    pub generation: u32,
    /// This worker's ticket in the baton; never 0, never used twice.
    pub ticket: u64,
    /// Index of this worker's entry in the baton.
    pub baton_entry: u32,
    /// `tract`, `echo`, ... as the worker binary knows it.
    pub backend: String,
    /// The model file's name, for messages; its descriptor comes with the record.
    pub file: String,
    /// Options of the backend, from configuration and manifest.
    pub options: BTreeMap<String, String>,
    /// Values of the file's symbolic dimensions; a symbolic batch without one is 1.
    pub dimensions: BTreeMap<String, u64>,
    /// Rules per input name.
    pub inputs: BTreeMap<String, TensorRules>,
    /// Rules per output name.
    pub outputs: BTreeMap<String, TensorRules>,
    /// Order of the inputs where the file does not say (TorchScript), else empty.
    pub input_order: Vec<String>,
    /// Order of the outputs where the file does not say, else empty.
    pub output_order: Vec<String>,
    /// Recurrent state pairs.
    pub state: Vec<StatePair>,
    /// Golden pairs.
    pub golden: Vec<GoldenPair>,
    /// Least number of warm-up runs; 0 for until latency is flat.
    pub warm_up_runs: u32,
    /// Executor affinity.
    pub cpu: Option<u32>,
    /// Executor scheduling.
    pub scheduling: Scheduling,
    /// Executor niceness.
    pub nice: Option<i32>,
    /// Spinning before sleep.
    pub spin_us: u64,
    /// Lock memory.
    pub mlock: bool,
    /// How the executor sleeps over its sessions.
    pub waiting: Waiting,
    /// The live signature that this generation must equal (a reload), if there is one.
    pub expect: Option<Signature>,
    /// Only load, check and warm up; answer and exit (`inferctl validate`).
    pub validate_only: bool,
}

/// How an executor sleeps over its sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Waiting {
    /// `futex_waitv` up to its limit of words, else epoll.
    #[default]
    Auto,
    /// epoll over doorbell sockets, as on kernels before 5.16.
    Epoll,
}

/// Supervisor to worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[allow(clippy::large_enum_variant)]
pub enum ToWorker {
    /// First record. Descriptors: baton, then the model file if the backend has one (read it at offset 0: it is a sealed memfd).
    Load(ModelSpec),
    /// Answer to [`FromWorker::NeedFile`]. Descriptor: the file, or none when it was refused.
    File {
        /// The name that was asked for.
        name: String,
        /// Why there is no descriptor.
        refused: Option<String>,
    },
    /// A session to serve; one with a number that is known replaces it. Descriptors: request region, reply region (read-write), doorbell socket, and the state region if `state_bytes` > 0.
    AddSession {
        /// The session's number.
        session: u64,
        /// Whose turns it takes.
        uid: u32,
        /// Where everything lies.
        geometry: Geometry,
        /// Bytes of one half of the state region; 0 for a stateless model.
        state_bytes: u64,
        /// What the regions are made of.
        backing: Backing,
    },
    /// The session has ended.
    RemoveSession {
        /// The session's number.
        session: u64,
    },
    /// Take over: sent after the grant was written. The predecessor will write its release, or is gone for certain.
    Take {
        /// Entry and ticket of the predecessor to wait for; none if it is dead.
        predecessor: Option<(u32, u64)>,
    },
    /// The baton goes to another worker, sent after the grant was written: look at the grant (a wake for executors that sleep in epoll).
    LetGo,
    /// Answer everything with `shutting_down`, then say [`FromWorker::Drained`].
    Drain,
    /// Exit.
    Retire,
    /// Ask for [`FromWorker::Stats`].
    Stats,
    /// Change the log level (a `tracing` filter directive).
    LogLevel {
        /// The directive.
        level: String,
    },
}

/// Latency of a stage in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct StageStats {
    /// Samples.
    pub count: u64,
    /// Median.
    pub p50_ns: u64,
    /// 99th percentile.
    pub p99_ns: u64,
    /// 99.9th percentile.
    pub p999_ns: u64,
    /// Largest.
    pub max_ns: u64,
}

/// What a recorded step holds beside its header, in this order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub struct RecordLayout {
    /// Inputs, as clients write them.
    pub inputs: Vec<TensorSpec>,
    /// Outputs, as clients see them.
    pub outputs: Vec<TensorSpec>,
    /// State that the step began with, by the names of the model's state inputs; empty for a stateless model.
    pub states: Vec<TensorSpec>,
}

/// What running a new generation on the live one's recorded steps has shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub struct ShadowReport {
    /// Recorded steps that were run.
    pub steps: u32,
    /// Steps on which the new generation raised, was refused by its guard, or answered NaN.
    pub failed: u32,
    /// What the first of them said.
    pub first_failure: Option<String>,
    /// Differences per output, by the names that clients see.
    pub outputs: BTreeMap<String, OutputDifference>,
    /// Runs of the live generation, as recorded.
    pub live_run: StageStats,
    /// Runs of the new generation.
    pub new_run: StageStats,
    /// Where the state of each step came from: `recorded`, `own` or `none`.
    pub state: String,
}

/// How far an output of a new generation is from the recorded one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub struct OutputDifference {
    /// Largest absolute difference of an element.
    pub max: f64,
    /// Mean absolute difference of all elements.
    pub mean: f64,
    /// Observation id of the step with the largest.
    pub worst_step: Option<u64>,
    /// Elements that are NaN in the new output and were not in the recorded one.
    pub nan: u64,
}

/// Counters of a worker since it took over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct WorkerStats {
    /// Replies by status name, and `superseded`, `late`.
    pub outcomes: BTreeMap<String, u64>,
    /// From submit to the start of the run.
    pub queue: StageStats,
    /// The run, guard included.
    pub model: StageStats,
    /// Times the executor slept.
    pub sleeps: u64,
}

/// What a load found out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Loaded {
    /// What clients see.
    pub signature: Signature,
    /// Bytes of one half of a session's state region.
    pub state_bytes: u64,
    /// Names, dtypes and shapes of the state tensors: a reload carries state only between equal ones.
    pub state_layout: String,
    /// Backend and its version.
    pub backend: String,
    /// Time from the record to the model in memory.
    pub load_us: u64,
    /// Time of the warm-up.
    pub warm_up_us: u64,
    /// Runs of the warm-up.
    pub warm_up_runs: u32,
    /// Median of its last window.
    pub run_us_p50: f64,
    /// Largest difference of the golden pairs, if there are any.
    pub golden_difference_max: Option<f64>,
}

/// Worker to supervisor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromWorker {
    /// Loading has come this far: `loading`, `checking`, `warming`.
    Progress {
        /// The stage that begins.
        stage: String,
    },
    /// Asks for a file beside the model, by its relative name.
    NeedFile {
        /// Relative, without `..`.
        name: String,
    },
    /// Loaded, checked and warm: ready to take sessions over.
    Loaded(Loaded),
    /// The model cannot be served; the worker exits.
    Refused {
        /// What, where, and the remedy.
        message: String,
    },
    /// Something was not allowed (affinity, FIFO, mlock); the worker goes on.
    Warning {
        /// What, and the remedy.
        message: String,
    },
    /// The executor has taken the baton.
    Taken,
    /// A session's client lied, or its region cannot be mapped; the supervisor ends it.
    SessionFault {
        /// The session's number.
        session: u64,
        /// What was wrong.
        fault: String,
    },
    /// Everything was answered; the executor has let go.
    Drained,
    /// Counters.
    Stats(WorkerStats),
}

/// Why a record cannot be sent or read.
#[derive(Debug, thiserror::Error)]
pub enum WorkerRecordError {
    /// Over the limit.
    #[error("a record of {0} bytes is over the limit of {WORKER_RECORD_BYTES_MAX}; shorten the manifest")]
    TooLong(usize),
    /// Not a record.
    #[error("not a worker record: {0}")]
    Parse(#[from] serde_json::Error),
}

/// The bytes of a record.
///
/// # Errors
/// [`WorkerRecordError::TooLong`].
pub fn encode<T: Serialize>(record: &T) -> Result<Vec<u8>, WorkerRecordError> {
    let bytes = serde_json::to_vec(record)?;
    if bytes.len() > WORKER_RECORD_BYTES_MAX { Err(WorkerRecordError::TooLong(bytes.len())) } else { Ok(bytes) }
}

/// Reads a record.
///
/// # Errors
/// [`WorkerRecordError::Parse`].
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, WorkerRecordError> {
    Ok(serde_json::from_slice(bytes)?)
}
