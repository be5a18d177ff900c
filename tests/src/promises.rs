//! The numbers that inferd promises, as the scenarios hold them; `docs/specification.md` repeats them, and a test compares.
//!
//! A promise that decides over passing is asserted with its number. One about speed is recorded: the harness prints it
//! beside what was promised, and asserts only that nothing hung.

use std::time::Duration;

/// After any client's death the daemon holds again what it held before, within this time.
pub const BACK_AT_BASELINE: Duration = Duration::from_millis(2_000);
/// After the daemon's death its clients are served again within this time of READY.
pub const SERVED_AGAIN: Duration = Duration::from_millis(1_000);
/// The control socket answers within this time, whatever clients do: recorded.
pub const CONTROL_ANSWER: Duration = Duration::from_millis(100);
/// A daemon whose control socket says nothing for this long hangs: asserted.
pub const CONTROL_HANG: Duration = Duration::from_millis(5_000);
/// Resident memory of the supervisor without shared memory, at most.
pub const SUPERVISOR_RSS_BYTES_MAX: u64 = 10_000_000;
/// Resident memory of an echo worker without shared memory, at most.
pub const WORKER_RSS_BYTES_MAX: u64 = 15_000_000;
/// Wake-ups of an idle process per second, at most.
pub const IDLE_WAKE_UPS_PER_S_MAX: u64 = 1;
/// System calls and allocations of ours per request that is answered within the spin time.
pub const CALLS_PER_REQUEST: u64 = 0;
/// A bystander on CPUs of its own keeps this many tenths of its p99 beside an innocent load: recorded in campaigns.
pub const BYSTANDER_P99_TENTHS_MAX: u64 = 15;
/// And so many tenths of its p99.9.
pub const BYSTANDER_P999_TENTHS_MAX: u64 = 30;

/// Name and value of each, in the unit that ends the name, as the specification lists them.
pub const TABLE: &[(&str, u64)] = &[
    ("back_at_baseline_ms", BACK_AT_BASELINE.as_millis() as u64),
    ("served_again_ms", SERVED_AGAIN.as_millis() as u64),
    ("control_answer_ms", CONTROL_ANSWER.as_millis() as u64),
    ("control_hang_ms", CONTROL_HANG.as_millis() as u64),
    ("supervisor_rss_bytes_max", SUPERVISOR_RSS_BYTES_MAX),
    ("worker_rss_bytes_max", WORKER_RSS_BYTES_MAX),
    ("idle_wake_ups_per_s_max", IDLE_WAKE_UPS_PER_S_MAX),
    ("calls_per_request", CALLS_PER_REQUEST),
    ("bystander_p99_tenths_max", BYSTANDER_P99_TENTHS_MAX),
    ("bystander_p999_tenths_max", BYSTANDER_P999_TENTHS_MAX),
];
