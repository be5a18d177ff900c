//! How the worker's threads are scheduled: the executor as configured, loading at idle priority.
//!
//! What makes the executor real-time (affinity, priority, locked memory) is optional and may be forbidden;
//! then it goes on without, and the operator is told what to allow. Loading, warm-up and shadow runs
//! lie on threads of their own, which are lowered to SCHED_IDLE and end: raising a thread again
//! takes a right that a daemon without root does not have, so the executor's is never lowered.

use inferd_ipc::sys;
use inferd_ipc::worker_records::{ModelSpec, Scheduling};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// A lowered thread is starved when it has waited so many times as long as it ran.
const STARVED: u64 = 10;
/// Niceness of a loading thread that was starved at idle priority.
const RELIEVED_NICE: i32 = 10;

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

/// Lets the calling thread run only while nobody else wants its CPU; where that is forbidden, it is as nice as can be.
pub fn lower() {
    if sys::set_idle().is_err() {
        // Where even this is forbidden, loading goes on at the priority it has.
        let _ = sys::set_nice(19);
    }
}

/// Looks at a lowered thread that has not come to its end, and at how long it has run and waited: where no CPU is ever idle
/// it would never. Then it goes on as a nice one, if that is allowed. True when there is nothing more to do for it.
pub fn relieve(thread: i32, times: Option<(u64, u64)>) -> bool {
    let Some((ran_ns, waited_ns)) = times else { return true };
    if waited_ns / STARVED < ran_ns || !sys::is_idle(thread) {
        return false;
    }
    let relieved = sys::leave_idle(thread).and_then(|()| sys::set_nice_of(thread, RELIEVED_NICE));
    match relieved {
        Ok(()) => tracing::info!("no CPU is idle: loading goes on at nice {RELIEVED_NICE}"),
        Err(error) => tracing::warn!(
            "no CPU is idle, so that loading hardly goes on: {error}; allow LimitNICE=+0 (systemd) or nice 0 in \
             limits.conf, or leave a CPU that nobody spins on"
        ),
    }
    true
}

/// Takes threads back from idle priority that an inference library started while it loaded: they inherited it, and a
/// step would wait for them. Returns a sentence if that is not allowed. To be called when no thread of ours is lowered.
#[must_use]
pub fn raise_helpers() -> Option<String> {
    let tasks = std::fs::read_dir("/proc/self/task").ok()?;
    let threads = tasks.flatten().filter_map(|t| t.file_name().to_str()?.parse::<i32>().ok());
    let stuck = threads.filter(|t| sys::is_idle(*t)).filter_map(|t| sys::leave_idle(t).err());
    let (count, error) = stuck.fold((0, None), |(n, _), e| (n + 1, Some(e)));
    let error = error?;
    Some(format!(
        "{count} threads of the inference library stay at idle priority, where loading began them: {error}; allow it with \
         LimitNICE=+0 (systemd) or nice 0 in limits.conf, or let the model run on one thread"
    ))
}

/// Keeps the calling (control) thread off the executor's CPU, where there is another one.
pub fn avoid_cpu(cpu: u32) {
    let Ok(mut set) = sched_getaffinity(Pid::from_raw(0)) else { return };
    let others = (0..CpuSet::count()).any(|c| c != cpu as usize && set.is_set(c).unwrap_or(false));
    if others && set.unset(cpu as usize).is_ok() {
        let _ = sched_setaffinity(Pid::from_raw(0), &set);
    }
}
