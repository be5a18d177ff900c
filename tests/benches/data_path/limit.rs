//! The physical limits: a cache line bounced between two pinned processes, spinning or over futexes.
//!
//! The peer is this very program, started again; both map one memfd. Word 0 is ours, word 128 the
//! peer's: each waits for the other's word to become the number that it expects.

use inferd_ipc::layout::Backing;
use inferd_ipc::mem::Mem;
use inferd_ipc::region::{self, Access, NewRegion, RegionKind};
use inferd_ipc::sync::Ordering;
use inferd_ipc::sys::now_ns;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Child, Command};
use std::time::Duration;

const BYTES: u64 = 4096;
const OURS: usize = 0;
const THEIRS: usize = 128;
/// A spinning peer sleeps after this many looks, so that it leaves its CPU to the worker.
const SPINS_MAX: u32 = 100_000;
const STOP: u64 = u64::MAX;

/// How the two wait for each other.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Spinning on the cache line.
    Spin,
    /// Sleeping on a futex.
    Futex,
}

/// The limit's peer process, asleep between blocks.
pub struct Limit {
    kind: Kind,
    mem: Mem,
    _region: NewRegion,
    peer: Child,
    n: u64,
}

/// Pins the calling thread.
pub fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    if set.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set)).is_err() {
        eprintln!("cannot pin to CPU {cpu}: figures will vary");
    }
}

/// Lets this thread run on every CPU again that it may.
pub fn unpin() {
    let mut set = CpuSet::new();
    (0..CpuSet::count()).for_each(|cpu| set.set(cpu).expect("a CPU of the set"));
    sched_setaffinity(Pid::from_raw(0), &set).expect("a set that holds what is allowed");
}

/// The CPUs of client and worker: two different ones where there are two. To be asked before anything is pinned.
pub fn cpus() -> (usize, usize) {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    (0, usize::from(cpus > 1))
}

impl Limit {
    /// Starts the peer on this CPU.
    pub fn start(kind: Kind, cpu: usize) -> Limit {
        let region = region::create(Backing::Memfd, RegionKind::State, BYTES, "").expect("a region for the ping-pong");
        let mem = region::map(region.fd.as_fd(), BYTES, Access::ReadWrite, Backing::Memfd).expect("mapped");
        let peer = Command::new(std::env::current_exe().expect("this program"))
            .args(["--peer", if kind == Kind::Spin { "spin" } else { "futex" }])
            .arg(format!("/proc/{}/fd/{}", std::process::id(), region.fd.as_raw_fd()))
            .arg(cpu.to_string())
            .spawn()
            .expect("the ping-pong's peer");
        let mut limit = Limit { kind, mem, _region: region, peer, n: 0 };
        limit.block(100, &mut Vec::new());
        limit
    }

    /// Bounces `count` times; appends the round trips in nanoseconds. The peer sleeps before and after.
    pub fn block(&mut self, count: usize, times: &mut Vec<u64>) {
        // The first exchange wakes the peer.
        for i in 0..=count {
            let start = now_ns();
            self.n += 1;
            self.mem.word(OURS).store(self.n, Ordering::Release);
            if i == 0 || self.kind == Kind::Futex {
                self.mem.futex_wake(OURS);
            }
            await_word(&self.mem, THEIRS, self.n, self.kind, || self.mem.futex_wake(OURS));
            if i > 0 {
                times.push(now_ns() - start);
            }
        }
        // A spinning peer goes to sleep meanwhile.
        std::thread::sleep(Duration::from_millis(6));
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        self.mem.word(OURS).store(STOP, Ordering::Release);
        self.mem.futex_wake(OURS);
        let _ = self.peer.wait();
    }
}

/// Waits for a word; `nudge` wakes a spinning peer that fell asleep while we were pre-empted.
fn await_word(mem: &Mem, at: usize, expected: u64, kind: Kind, nudge: impl Fn()) {
    if kind == Kind::Spin {
        let mut spins = 0u32;
        while mem.word(at).load(Ordering::Acquire) != expected {
            std::hint::spin_loop();
            spins += 1;
            if spins.is_multiple_of(SPINS_MAX) {
                nudge();
            }
        }
        return;
    }
    loop {
        let now = mem.word(at).load(Ordering::Acquire);
        if now == expected {
            return;
        }
        mem.futex_wait(at, now, None);
    }
}

/// The peer: answers until it is told to stop, or nobody is there for ten seconds.
pub fn serve(arguments: &[String]) {
    let kind = if arguments[0] == "spin" { Kind::Spin } else { Kind::Futex };
    pin(arguments[2].parse().expect("a CPU"));
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&arguments[1]).expect("the ping-pong's memory");
    let mem = region::map(file.as_fd(), BYTES, Access::ReadWrite, Backing::Memfd).expect("mapped");
    let mut n = 1;
    loop {
        let mut spins = 0u32;
        loop {
            let now = mem.word(OURS).load(Ordering::Acquire);
            if now == STOP {
                return;
            }
            if now == n {
                break;
            }
            spins += 1;
            if kind == Kind::Spin && spins < SPINS_MAX {
                std::hint::spin_loop();
            } else if mem.futex_wait(OURS, now, Some(Duration::from_secs(10))) == inferd_ipc::mem::Wait::TimedOut
                && std::os::unix::process::parent_id() == 1
            {
                return;
            }
        }
        mem.word(THEIRS).store(n, Ordering::Release);
        if kind == Kind::Futex {
            mem.futex_wake(THEIRS);
        }
        n += 1;
    }
}
