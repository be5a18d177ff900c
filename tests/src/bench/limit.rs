//! The physical limits: a cache line bounced between two processes, spinning or over futexes, or with a copy between.
//!
//! The peer is this very program, started again ([`serve_if_asked`]); both map one memfd. Word 0 is ours, word 128 the
//! peer's: each waits for the other's word to become the number that it expects. With a copy, we write a payload before, and
//! the peer copies those lines, which our core has just written, into memory of its own before it answers.

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

/// Bytes of the words; payloads follow.
const WORDS: usize = 4096;
const OURS: usize = 0;
const THEIRS: usize = 128;
/// How long the peer's copy took, in nanoseconds.
const COPIED_NS: usize = 256;
/// Payloads take turns, as a session's slots do.
const PAYLOADS: u64 = 4;
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
    /// Spinning; the peer copies so many bytes that we have just written.
    Copy(usize),
}

impl Kind {
    fn payload(self) -> usize {
        if let Kind::Copy(bytes) = self { bytes } else { 0 }
    }

    fn region_bytes(self) -> u64 {
        let stride = self.payload().next_multiple_of(4096) as u64;
        WORDS as u64 + PAYLOADS * stride
    }

    /// Where the payload of this exchange lies.
    fn payload_at(self, n: u64) -> usize {
        WORDS + (n % PAYLOADS) as usize * self.payload().next_multiple_of(4096)
    }
}

/// The limit's peer process, asleep between blocks.
pub struct Limit {
    kind: Kind,
    mem: Mem,
    _region: NewRegion,
    peer: Child,
    n: u64,
    frame: Vec<u8>,
    /// How long each copy of the peer's took; of the kind that copies alone.
    pub copies: Vec<u64>,
}

/// Pins the calling thread.
pub fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    if set.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set)).is_err() {
        eprintln!("cannot pin to CPU {cpu}: figures will vary");
    }
}

/// Lets this thread run on every CPU again that it may.
///
/// # Panics
/// When the kernel refuses.
pub fn unpin() {
    let mut set = CpuSet::new();
    (0..CpuSet::count()).for_each(|cpu| set.set(cpu).expect("a CPU of the set"));
    sched_setaffinity(Pid::from_raw(0), &set).expect("a set that holds what is allowed");
}

/// The CPUs of client and worker: two different ones where there are two. To be asked before anything is pinned.
#[must_use]
pub fn cpus() -> (usize, usize) {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    (0, usize::from(cpus > 1))
}

impl Limit {
    /// Starts the peer on this CPU.
    ///
    /// # Panics
    /// When this program cannot be started again.
    #[must_use]
    pub fn start(kind: Kind, cpu: usize) -> Limit {
        Limit::start_on(kind, &cpu.to_string())
    }

    /// Starts the peer on any CPU.
    ///
    /// # Panics
    /// As [`Limit::start`].
    #[must_use]
    pub fn start_anywhere(kind: Kind) -> Limit {
        Limit::start_on(kind, "any")
    }

    fn start_on(kind: Kind, cpu: &str) -> Limit {
        let bytes = kind.region_bytes();
        let region = region::create(Backing::Memfd, RegionKind::State, bytes, "").expect("a region for the ping-pong");
        let mem = region::map(region.fd.as_fd(), bytes, Access::ReadWrite, Backing::Memfd).expect("mapped");
        let word = match kind {
            Kind::Spin => "spin".to_owned(),
            Kind::Futex => "futex".to_owned(),
            Kind::Copy(bytes) => bytes.to_string(),
        };
        let peer = Command::new(std::env::current_exe().expect("this program"))
            .args(["--peer", &word])
            .arg(format!("/proc/{}/fd/{}", std::process::id(), region.fd.as_raw_fd()))
            .arg(cpu)
            .spawn()
            .expect("the ping-pong's peer");
        let frame = vec![1; kind.payload()];
        let mut limit = Limit { kind, mem, _region: region, peer, n: 0, frame, copies: Vec::new() };
        limit.block(100, &mut Vec::new());
        limit.copies.clear();
        limit
    }

    /// The peer's process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.peer.id()
    }

    /// Bounces `count` times; appends the round trips in nanoseconds. The peer sleeps before and after.
    pub fn block(&mut self, count: usize, times: &mut Vec<u64>) {
        // The first exchange wakes the peer.
        self.bounce(true);
        times.extend((0..count).map(|_| {
            if self.kind == Kind::Futex {
                crate::bench::pause();
            }
            self.bounce(false)
        }));
        if self.kind != Kind::Futex {
            // A spinning peer goes to sleep meanwhile.
            std::thread::sleep(Duration::from_millis(6));
        }
    }

    /// One exchange, in nanoseconds; `wake` where a spinning peer may sleep.
    pub fn bounce(&mut self, wake: bool) -> u64 {
        self.n += 1;
        if let Kind::Copy(_) = self.kind {
            self.mem.copy_in(self.kind.payload_at(self.n), &self.frame);
        }
        let start = now_ns();
        self.mem.word(OURS).store(self.n, Ordering::Release);
        if wake || self.kind == Kind::Futex {
            self.mem.futex_wake(OURS);
        }
        await_word(&self.mem, THEIRS, self.n, self.kind, || self.mem.futex_wake(OURS));
        let took = now_ns() - start;
        if let Kind::Copy(_) = self.kind {
            self.copies.push(self.mem.word(COPIED_NS).load(Ordering::Relaxed));
        }
        took
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        self.mem.word(OURS).store(STOP, Ordering::Release);
        self.mem.futex_wake(OURS);
        // It was told to end, and nothing waits for how.
        let _ = self.peer.wait();
    }
}

/// Waits for a word; `nudge` wakes a spinning peer that fell asleep while we were pre-empted.
fn await_word(mem: &Mem, at: usize, expected: u64, kind: Kind, nudge: impl Fn()) {
    if kind != Kind::Futex {
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

/// Where this program was started as a limit's peer, it is one until its end.
pub fn serve_if_asked() {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(at) = arguments.iter().position(|a| a == "--peer") {
        serve(&arguments[at + 1..]);
        std::process::exit(0);
    }
}

/// The peer: answers until it is told to stop, or nobody is there for ten seconds.
///
/// # Panics
/// When the arguments are not what [`Limit::start`] gives.
pub fn serve(arguments: &[String]) {
    let kind = match arguments[0].as_str() {
        "spin" => Kind::Spin,
        "futex" => Kind::Futex,
        bytes => Kind::Copy(bytes.parse().expect("bytes")),
    };
    if arguments[2] != "any" {
        pin(arguments[2].parse().expect("a CPU"));
    }
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&arguments[1]).expect("the ping-pong's memory");
    let mem = region::map(file.as_fd(), kind.region_bytes(), Access::ReadWrite, Backing::Memfd).expect("mapped");
    let mut copy = vec![0; kind.payload()];
    for n in 1.. {
        if !await_ours(&mem, n, kind) {
            return;
        }
        if let Kind::Copy(_) = kind {
            let start = now_ns();
            mem.copy_out(kind.payload_at(n), &mut copy);
            std::hint::black_box(&copy);
            mem.word(COPIED_NS).store(now_ns() - start, Ordering::Relaxed);
        }
        mem.word(THEIRS).store(n, Ordering::Release);
        if kind == Kind::Futex {
            mem.futex_wake(THEIRS);
        }
    }
}

/// Waits for exchange `n`; false when there will be none.
fn await_ours(mem: &Mem, n: u64, kind: Kind) -> bool {
    let mut spins = 0u32;
    loop {
        let now = mem.word(OURS).load(Ordering::Acquire);
        if now == STOP {
            return false;
        }
        if now == n {
            return true;
        }
        spins += 1;
        if kind != Kind::Futex && spins < SPINS_MAX {
            std::hint::spin_loop();
        } else if mem.futex_wait(OURS, now, Some(Duration::from_secs(10))) == inferd_ipc::mem::Wait::TimedOut
            && std::os::unix::process::parent_id() == 1
        {
            return false;
        }
    }
}
