//! What the supervisor and a worker say to each other, over a socketpair that only they hold.
//!
//! One JSON record per SOCK_SEQPACKET message, with descriptors beside it. The supervisor parses
//! configuration and manifest and hands over a typed [`ModelSpec`]; the worker gets descriptors only,
//! never a path. Both ends are ours, yet a worker runs a model author's file: the supervisor bounds
//! and checks every record it receives, and a record it cannot read ends that worker.

use crate::layout::{Backing, Geometry};
use crate::limits::WORKER_RECORD_BYTES_MAX;
use crate::signature::{DType, Signature};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub use crate::record::RecordLayout;

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

/// Where a model runs: `cpu`, or `cuda:N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Device {
    /// The CPU.
    #[default]
    Cpu,
    /// The GPU of that number.
    Cuda(u16),
}

impl Device {
    /// Reads `cpu`, `cuda:N`, or `cuda` for the first one.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Device> {
        match name {
            "cpu" => Some(Device::Cpu),
            "cuda" => Some(Device::Cuda(0)),
            _ => name.strip_prefix("cuda:").and_then(|n| n.parse().ok()).map(Device::Cuda),
        }
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

/// What a model computes in, where it may choose; what clients see stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// As the file says: f32.
    #[default]
    Fp32,
    /// f16 where that is safe.
    Fp16,
    /// bf16 where that is safe.
    Bf16,
}

impl Precision {
    /// Reads `fp32`, `fp16`, `bf16`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Precision> {
        [Precision::Fp32, Precision::Fp16, Precision::Bf16].into_iter().find(|p| p.name() == name)
    }

    /// The name used in configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Precision::Fp32 => "fp32",
            Precision::Fp16 => "fp16",
            Precision::Bf16 => "bf16",
        }
    }
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
    /// Where it runs.
    pub device: Device,
    /// What it computes in.
    pub precision: Precision,
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
    /// Whether the worker is confined once its model is warm.
    pub confine: Confine,
    /// The live signature that this generation must equal (a reload), if there is one.
    pub expect: Option<Signature>,
    /// Only load, check and warm up; answer and exit (`inferctl validate`).
    pub validate_only: bool,
    /// At which priority it is loaded.
    pub loading: Loading,
}

/// Whether a worker is confined once its model is warm (`docs/confinement.md`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Confine {
    /// As far as the kernel can; the log says what is missing.
    #[default]
    On,
    /// Not at all.
    Off,
    /// Wholly, or the model is refused.
    Require,
}

/// The priority of loading, checking and warming up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Loading {
    /// The daemon's own: sessions wait for this model.
    #[default]
    Ordinary,
    /// When nobody else wants the CPU: somebody is served meanwhile.
    Idle,
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
    /// Keep the steps that are run: sent after [`FromWorker::Loaded`], before `Take`. Descriptor: the model's record
    /// region, read-write, of this worker's [`Loaded::record_layout`]. A worker that never gets one records nothing.
    Record {
        /// Slots of the region.
        slots: u32,
    },
    /// Run recorded steps of the live generation, answering nobody: sent after [`FromWorker::Loaded`] and before any
    /// `AddSession`, `Take` or `Drain`; several times if need be. Descriptor: the live record region, read-only.
    Shadow {
        /// The most recent `ok` steps that stand there, this many; more as they come where there are fewer.
        steps: Option<u32>,
        /// Those that come within this time; `steps` bounds their number where both are given.
        for_ms: Option<u64>,
        /// Without `for_ms`: how long to wait for steps that are not there yet.
        wait_ms: u64,
        /// Slots of the region.
        slots: u32,
        /// What lies in them: inputs and outputs of this worker's signature, maybe another state.
        layout: RecordLayout,
    },
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

/// Counters of a worker since it took over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct WorkerStats {
    /// Replies by status name, and `superseded`, `late`.
    pub outcomes: BTreeMap<String, u64>,
    /// From submit to the start of the run.
    pub queue: StageStats,
    /// The run, guard included.
    pub model: StageStats,
    /// Of the run: inputs to the device, for a model that runs on one of its own.
    #[serde(default)]
    pub to_device: StageStats,
    /// Of the run: the device's own time.
    #[serde(default)]
    pub on_device: StageStats,
    /// Of the run: outputs from the device.
    #[serde(default)]
    pub from_device: StageStats,
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
    /// What a record region of this generation holds; to be checked, as everything that a worker says.
    pub record_layout: RecordLayout,
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

/// What a shadow run found out; the supervisor judges it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub struct ShadowReport {
    /// Recorded steps that were run, failed ones included.
    pub steps: u32,
    /// Steps that the candidate refused (`rejected`) or failed (`model_error`) where the live generation did neither.
    pub failed: u32,
    /// What the first of them said.
    pub first_failure: Option<String>,
    /// `ok` steps of the live generation that were not run: overwritten before the candidate came to them, or damaged.
    pub missed: u64,
    /// How far the candidate's outputs are from the recorded ones, by the names that clients see.
    pub outputs: BTreeMap<String, OutputDifference>,
    /// The live generation's runs of the same steps, as recorded.
    pub live_run: StageStats,
    /// The candidate's runs, without the time that a thread of idle priority waits for a CPU.
    pub new_run: StageStats,
    /// Where the state before each step came from: `recorded`, `own` (layouts differ: chained from zeros), `none`.
    pub state: String,
}

/// How far an output is from the recorded one, over all elements of all steps. Always finite.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub struct OutputDifference {
    /// Largest absolute difference.
    pub max: f64,
    /// Mean absolute difference.
    pub mean: f64,
    /// Observation id of the step with the largest difference, if there is any.
    pub worst_step: Option<u64>,
    /// Elements that are NaN in the candidate's output and not in the recorded one.
    pub nan: u64,
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
    /// A shadow run has come this far; of `for_ms` alone, both are milliseconds.
    Shadowing {
        /// Steps run.
        done: u32,
        /// Steps asked for.
        of: u32,
    },
    /// The shadow run has ended; the worker waits for what comes next, as after [`FromWorker::Loaded`].
    Shadowed(ShadowReport),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_over_the_limit_is_not_sent() {
        let of = |bytes: usize| encode(&FromWorker::Refused { message: "x".repeat(bytes) });
        let around = of(0).expect("short").len();
        assert_eq!(of(WORKER_RECORD_BYTES_MAX - around).expect("just fits").len(), WORKER_RECORD_BYTES_MAX);
        assert!(matches!(of(WORKER_RECORD_BYTES_MAX - around + 1), Err(WorkerRecordError::TooLong(_))));
    }
}
