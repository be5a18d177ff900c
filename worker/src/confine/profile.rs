//! How much a backend's library needs once its model is warm.

use inferd_ipc::worker_records::{Device, ModelSpec};

/// What is left to a confined worker; each profile has all of those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Profile {
    /// Memory, threads, clocks, and the descriptors that are open or come from the supervisor: tract, echo, ONNX Runtime.
    Strict,
    /// Memory that becomes executable, beside: libraries that compile at run time, as libtorch.
    Jit,
    /// Device nodes and ioctl, and libraries loaded at first use, beside: CUDA.
    Gpu,
}

impl Profile {
    /// Its name in logs and documents.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Profile::Strict => "strict",
            Profile::Jit => "jit",
            Profile::Gpu => "gpu",
        }
    }

    /// What a backend needs that runs its own code alone: nothing on a CPU.
    #[must_use]
    pub fn of(spec: &ModelSpec) -> Profile {
        match spec.device {
            Device::Cpu => Profile::Strict,
            Device::Cuda(_) => Profile::Gpu,
        }
    }
}

impl std::fmt::Display for Profile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
