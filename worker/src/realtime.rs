//! What makes the executor's thread a real-time one: affinity, priority, locked memory.
//!
//! Each is optional and may be forbidden; then the executor goes on without it and the operator is
//! told what to allow. Everything applies to the calling thread, save the memory lock.

use inferd_ipc::sys;
use inferd_ipc::worker_records::{ModelSpec, Scheduling};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Applies what the model's configuration asks for; returns a sentence for each thing that was not allowed.
#[must_use]
pub fn apply(spec: &ModelSpec) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut warn = |what: String, error: String, remedy: &str| warnings.push(format!("{what}: {error}; {remedy}"));
    if let Some(cpu) = spec.cpu {
        let mut set = CpuSet::new();
        let pinned = set.set(cpu as usize).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
        if let Err(e) = pinned {
            warn(format!("executor affinity cpu = {cpu}"), e.to_string(), "choose a CPU that the daemon may use");
        }
    }
    if let Some(nice) = spec.nice
        && let Err(e) = sys::set_nice(nice)
    {
        warn(format!("executor nice = {nice}"), e.to_string(), "allow it with LimitNICE= or raise the value");
    }
    if let Scheduling::Fifo(priority) = spec.scheduling
        && let Err(e) = sys::set_fifo(priority)
    {
        let remedy = "allow it with LimitRTPRIO= (systemd) or rtprio in limits.conf";
        warn(format!("executor scheduling = \"fifo:{priority}\""), e.to_string(), remedy);
    }
    if spec.mlock
        && let Err(e) = sys::lock_all_memory()
    {
        warn("mlock = true".into(), e.to_string(), "allow it with LimitMEMLOCK=infinity");
    }
    warnings
}

/// Keeps the calling (control) thread off the executor's CPU, where there is another one.
pub fn avoid_cpu(cpu: u32) {
    let Ok(mut set) = sched_getaffinity(Pid::from_raw(0)) else { return };
    let others = (0..CpuSet::count()).any(|c| c != cpu as usize && set.is_set(c).unwrap_or(false));
    if others && set.unset(cpu as usize).is_ok() {
        let _ = sched_setaffinity(Pid::from_raw(0), &set);
    }
}
