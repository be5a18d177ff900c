//! Running a scenario on one CPU or on two: whatever the calling thread starts inherits its affinity.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The calling thread, and every process that it starts, run on few CPUs until this is dropped.
pub struct Confined {
    before: CpuSet,
    /// The CPUs, in ascending order.
    pub cpus: Vec<usize>,
}

impl Confined {
    /// To the first `count` CPUs that this thread may use; none where there are fewer.
    ///
    /// # Panics
    /// When the kernel refuses.
    #[must_use]
    pub fn to(count: usize) -> Option<Confined> {
        let own = Pid::from_raw(0);
        let before = sched_getaffinity(own).expect("our own affinity");
        let usable = (0..CpuSet::count()).filter(|c| before.is_set(*c).unwrap_or(false));
        let cpus: Vec<usize> = usable.take(count).collect();
        if cpus.len() < count {
            return None;
        }
        set_of(own, &cpus);
        Some(Confined { before, cpus })
    }

    /// To this CPU, which the thread may use.
    ///
    /// # Panics
    /// When the kernel refuses.
    #[must_use]
    pub fn on(cpu: usize) -> Confined {
        let own = Pid::from_raw(0);
        let before = sched_getaffinity(own).expect("our own affinity");
        set_of(own, &[cpu]);
        Confined { before, cpus: vec![cpu] }
    }
}

/// Keeps a process's first thread, and what it starts from now on, on this CPU.
///
/// # Panics
/// When the kernel refuses.
pub fn keep_on(pid: u32, cpu: usize) {
    set_of(Pid::from_raw(pid as i32), &[cpu]);
}

fn set_of(pid: Pid, cpus: &[usize]) {
    let mut set = CpuSet::new();
    cpus.iter().for_each(|c| set.set(*c).expect("a CPU of ours"));
    sched_setaffinity(pid, &set).expect("CPUs that it may use");
}

impl Drop for Confined {
    fn drop(&mut self) {
        // The thread had them before.
        let _ = sched_setaffinity(Pid::from_raw(0), &self.before);
    }
}
