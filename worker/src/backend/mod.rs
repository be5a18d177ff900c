//! What runs a model file: the one seam between inferd and inference libraries.
//!
//! A backend knows tensors and nothing else: no sessions, no shared memory, no manifest rules save
//! those it needs to fix shapes. Everything around the run (conditioning, state pairs, guard) is
//! `policy.rs`. A backend may block, allocate and panic; a model is used by one thread at a time, and
//! may move to another thread between calls. Backends of your own implement the two traits.

use crate::confine::Profile;
use crate::{Fault, ModelError, files::FileSource};
use inferd_ipc::limits::{RANK_MAX, TENSOR_BYTES_MAX};
use inferd_ipc::signature::TensorSpec;
use inferd_ipc::worker_records::{Device, ModelSpec, Precision};

pub mod echo;
#[cfg(feature = "tract")]
pub mod tract;

/// Loads model files of one kind, on whatever thread.
pub trait Backend: Sync {
    /// The name used in configuration: `tract`.
    fn name(&self) -> &'static str;

    /// The inference library's version, for `inferctl models`.
    fn version(&self) -> String;

    /// What the library needs of the system once a model is warm; the worker gives up the rest. A library that runs on
    /// a CPU and compiles nothing needs no more than this. What the profile lacks fails with EPERM.
    fn profile(&self, spec: &ModelSpec) -> Profile {
        Profile::of(spec)
    }

    /// Loads a model and runs it at least once, so that every shape is known. What the backend had to
    /// give up (an optimisation, say) goes to `warn`; the model is served all the same.
    ///
    /// # Errors
    /// Anything that keeps the model from running, with a remedy for its author.
    fn load(
        &self,
        spec: &ModelSpec,
        files: &mut dyn FileSource,
        warn: &mut dyn FnMut(&str),
    ) -> Result<Box<dyn Model>, ModelError>;
}

/// A pair of tensors that hold state which the model keeps inside itself: no manifest names it, no client sees it.
///
/// Input and output are indices among the model's own. Their names are for messages and for comparing generations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HiddenState {
    /// The input that sets it before a run.
    pub input: usize,
    /// The output that shows it after a run.
    pub output: usize,
}

/// Nanoseconds of a run on a device of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeviceTimes {
    /// Inputs to the device.
    pub to_device_ns: u64,
    /// The model.
    pub on_device_ns: u64,
    /// Outputs from the device.
    pub from_device_ns: u64,
}

/// A loaded model: buffers for its inputs, a run, views of its outputs.
pub trait Model: Send {
    /// All inputs of the file in its own order, recurrent state among them.
    fn inputs(&self) -> &[TensorSpec];

    /// All outputs, likewise; shapes as a run gave them.
    fn outputs(&self) -> &[TensorSpec];

    /// The backend's own aligned buffer for input `i`: contiguous, row-major, to be filled before
    /// [`run`](Model::run). It keeps its content from run to run. Bytes of a bool are 0 or 1.
    fn input_mut(&mut self, i: usize) -> &mut [u8];

    /// One step.
    ///
    /// # Errors
    /// What the library says; the next run must work again.
    fn run(&mut self) -> Result<(), ModelError>;

    /// Output `i` of the last successful run, contiguous and row-major; valid until the next run.
    fn output(&self, i: usize) -> &[u8];

    /// State that the model keeps inside itself, as pairs of tensors: a session's is put in before each of its
    /// runs and taken out after it, like that of any other pair.
    fn hidden_state(&self) -> &[HiddenState] {
        &[]
    }

    /// What a state input holds when a session begins or is reset; zeros where there is none.
    fn reset_value(&self, _input: usize) -> Option<&[u8]> {
        None
    }

    /// How long the last run's stages took, where the model runs on a device of its own.
    fn device_times(&self) -> Option<DeviceTimes> {
        None
    }

    /// Called once, after golden pairs and warm-up: from here on every run is a session's step.
    fn went_live(&mut self) {}
}

/// The backends that this binary carries.
#[must_use]
pub fn names() -> &'static [&'static str] {
    if cfg!(feature = "tract") { &["echo", "tract"] } else { &["echo"] }
}

/// The backend of that name.
///
/// # Errors
/// [`Fault::Unsupported`] lists those that there are.
pub fn by_name(name: &str) -> Result<Box<dyn Backend>, ModelError> {
    match name {
        "echo" => Ok(Box::new(echo::Echo)),
        #[cfg(feature = "tract")]
        "tract" => Ok(Box::new(tract::Tract)),
        _ => Err(ModelError::new(
            Fault::Unsupported,
            format!("backend {name:?}"),
            format!("is not in this worker, which has {}", names().join(", ")),
            match name {
                "torch" | "ort" => {
                    format!("build inferd-worker-{name} (make {name}), or install the package inferd-{name}")
                }
                _ => format!("correct `backend`, or install inferd-worker-{name} beside the daemon"),
            },
        )),
    }
}

/// Refuses a device and a precision that a backend does not have.
///
/// # Errors
/// [`Fault::Unsupported`] names them, and who has them.
pub fn only_cpu_fp32(spec: &ModelSpec) -> Result<(), ModelError> {
    if spec.device == Device::Cpu && spec.precision == Precision::Fp32 {
        return Ok(());
    }
    let (backend, device, precision) = (&spec.backend, spec.device, spec.precision.name());
    Err(ModelError::new(
        Fault::Unsupported,
        format!("device = \"{device}\", precision = \"{precision}\" of model {:?}", spec.model),
        format!("backend {backend:?} computes on the CPU, as the file says"),
        "remove the two keys, or serve the model with a backend that has them",
    ))
}

/// Refuses a tensor that is over a limit, before anything of its size is allocated.
///
/// # Errors
/// [`Fault::Unsupported`] names tensor and limit.
pub fn check_size(tensor: &TensorSpec) -> Result<(), ModelError> {
    let what = if tensor.shape.len() > RANK_MAX {
        format!("has {} dimensions, over the limit of {RANK_MAX}", tensor.shape.len())
    } else if tensor.bytes() > TENSOR_BYTES_MAX {
        format!("has {} bytes, over the limit of {TENSOR_BYTES_MAX}", tensor.bytes())
    } else {
        return Ok(());
    };
    let remedy = "export the model with smaller tensors, or correct `shape` and `[dimensions]` in the manifest";
    Err(ModelError::new(Fault::Unsupported, format!("tensor {tensor}"), what, remedy))
}
