//! What every bench shares: the physical limit, blocks that alternate with it, and the lines that are written.
//!
//! A figure means something only beside the limit of the same run: rows run in short blocks between blocks of the
//! ping-pong ([`limit`]), and only the blocks at the tightest placement count ([`blocks`]). What comes out are JSON lines
//! in one form for every program (`benches/FORMAT.md`, [`lines`]). Nothing here asserts anything about speed.

pub mod blocks;
pub mod limit;
pub mod lines;
pub mod machine;

pub use blocks::{Entry, Figures, Measured, cdf_of, histogram, median, quantile, timed};
pub use limit::{Kind, Limit, pin, unpin};
pub use lines::{Lines, Row};

pub use inferd_ipc::sys::now_ns as now;
use inferd_ipc::sys::now_ns;

/// The CPU of the calling thread of a pinned row; the worker and the limit's peer have [`limit::cpus`]'s second.
pub const CLIENT_CPU: usize = 0;

/// What counts and times are multiplied with: `INFERD_BENCH_SCALE`, 1 unless it says otherwise.
#[must_use]
pub fn scale() -> f64 {
    let given = std::env::var("INFERD_BENCH_SCALE").ok().and_then(|s| s.parse::<f64>().ok());
    given.filter(|s| *s > 0.0).unwrap_or(1.0)
}

/// A count for this run: scaled, and never less than `least`.
#[must_use]
pub fn scaled(count: usize, least: usize) -> usize {
    ((count as f64 * scale()) as usize).max(least)
}

/// The cost of one clock reading in nanoseconds: of the fastest of many short batches, since bars allow for it and a busy machine
/// must not widen them.
#[must_use]
pub fn clock_ns() -> f64 {
    const BATCHES: usize = 200;
    const READINGS: u32 = 5_000;
    let batch = || {
        let start = now_ns();
        (0..READINGS).for_each(|_| {
            std::hint::black_box(now_ns());
        });
        (now_ns() - start) as f64 / f64::from(READINGS)
    };
    (0..BATCHES).map(|_| batch()).fold(f64::INFINITY, f64::min)
}

/// How long a caller stays away, so that whoever answers it has gone to sleep.
const PAUSE_NS: u64 = 50_000;

/// Stays away for a while without sleeping. Two sides that sleep at once, but ask flat out, catch each other awake.
pub fn pause() {
    let end = now_ns() + PAUSE_NS;
    while now_ns() < end {
        std::hint::spin_loop();
    }
}

/// Time on a CPU of every thread of a process, in nanoseconds.
#[must_use]
pub fn process_cpu_ns(pid: u32) -> u64 {
    let of = |tid: u32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/schedstat")).unwrap_or_default();
        text.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0)
    };
    crate::process::threads(pid).into_iter().map(of).sum()
}
