//! The harness of the scenarios: a daemon per test, drivers over every client, ledgers, leak checks.
//!
//! A scenario is a sentence in `tests/*.rs`; [`scenarios!`] runs it once per client and backing. All
//! scenarios of the machine run one after another ([`turn`]): several of them spin, and two CPUs are all that a small
//! machine has. What cannot be tested here is skipped by name ([`skip()`]), which `CI=true` refuses
//! unless `allowed-skips.txt` lists it. The clients are driven through `DRIVER.md`.

pub mod answer;
pub mod bench;
pub mod budget;
pub mod case;
pub mod control;
pub mod cpus;
pub mod daemon;
pub mod driver;
pub mod ending;
pub mod failpoints;
pub mod fleet;
pub mod leaks;
pub mod ledger;
pub mod model;
pub mod npy;
pub mod onnx;
pub mod places;
pub mod policies;
pub mod process;
pub mod promises;
pub mod ran;
pub mod raw;
pub mod rounds;
mod running;
pub mod skip;
pub mod steps;
pub mod strace;
pub mod trespass;
pub mod villain;

pub use answer::Answer;
pub use case::{Case, turn};
pub use cpus::Confined;
pub use daemon::{Daemon, DaemonConfig};
pub use driver::{Client, Driver};
pub use failpoints::Armed;
pub use fleet::Fleet;
pub use leaks::Baseline;
pub use model::Model;
pub use rounds::Rounds;
pub use skip::{has_worker, skip};

use std::time::{Duration, Instant};

/// Looks every few milliseconds whether `holds`; panics with `what` after `limit`.
///
/// # Panics
/// When the time is over.
pub fn within(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(3));
    }
}

/// How times in microseconds are spread, for a line that begins with `FIGURE`.
#[must_use]
pub fn spread(times_us: &mut [u64]) -> String {
    times_us.sort_unstable();
    let Some(most) = times_us.len().checked_sub(1) else { return "(none)".to_owned() };
    let at = |percent: usize| times_us[most * percent / 100] as f64 / 1e3;
    format!("p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms of {}", at(50), at(99), at(100), times_us.len())
}

/// CLOCK_MONOTONIC in nanoseconds, as it stands in the headers.
#[must_use]
pub fn now_ns() -> u64 {
    let t = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map_or((0, 0), |t| (t.tv_sec(), t.tv_nsec()));
    t.0 as u64 * 1_000_000_000 + t.1 as u64
}

/// Milliseconds, in fewer letters: scenarios are full of them.
#[must_use]
pub const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}
