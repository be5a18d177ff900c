//! Waiting for the next reply: spin, then sleep, and notice when the daemon is gone.
//!
//! While spinning: no system call but one look at the session's socket per millisecond, and one
//! clock reading per batch of polls. While sleeping: the doorbell's futex in slices, with a look at
//! the socket before each, since a killed daemon rings no doorbell. After a hang-up the slot is
//! looked at once more. Correct without the slices; they only bound how late a death is noticed.

use crate::clock::now_ns;
use crate::link::Link;
use inferd_ipc::limits::{CLIENT_SLEEP_SLICE_MS, CLIENT_SPIN_CHECK_US};
use inferd_ipc::sync::spin_hint;
use std::time::Duration;

/// A spinning client looks at its socket once per this time.
pub(crate) const SPIN_CHECK_NS: u64 = CLIENT_SPIN_CHECK_US * 1_000;
const SLEEP_SLICE_NS: u64 = CLIENT_SLEEP_SLICE_MS * 1_000_000;
/// Polls of the slot per reading of the clock, which costs as much as ten of them.
const POLLS_PER_CLOCK: u32 = 32;

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// The next reply is there.
    Ready,
    /// The limit has passed.
    TimedOut,
    /// The session's socket has ended, and the next reply is not there.
    HungUp,
}

/// The times of one call, which may wait for several replies in turn.
#[derive(Debug)]
pub(crate) struct Waiter {
    limit_ns: u64,
    spin_until_ns: u64,
    looked_at_ns: u64,
}

impl Waiter {
    /// Waits until `limit_ns` (CLOCK_MONOTONIC), spinning for `spin_us` from `now_ns` on.
    pub(crate) fn until(now_ns: u64, limit_ns: u64, spin_us: u32) -> Waiter {
        let spin_until_ns = now_ns.saturating_add(u64::from(spin_us) * 1_000);
        Waiter { limit_ns, spin_until_ns, looked_at_ns: now_ns }
    }

    /// Waits for the next reply.
    pub(crate) fn next(&mut self, link: &mut Link) -> Arrival {
        loop {
            let mut polls = POLLS_PER_CLOCK;
            while polls > 0 {
                if link.reply_ready() {
                    return Arrival::Ready;
                }
                spin_hint();
                // Opaque, so that the loop stays small: unrolled, each poll became a call.
                polls = std::hint::black_box(polls) - 1;
            }
            let now = now_ns();
            let sleeps = now >= self.spin_until_ns || link.in_the_workers_way();
            if now >= self.limit_ns {
                return Waiter::once_more(link, Arrival::TimedOut);
            }
            if sleeps || now.saturating_sub(self.looked_at_ns) >= SPIN_CHECK_NS {
                self.looked_at_ns = now;
                if link.hung_up() {
                    return Waiter::once_more(link, Arrival::HungUp);
                }
            }
            if sleeps {
                link.sleep(Duration::from_nanos(SLEEP_SLICE_NS.min(self.limit_ns - now)));
            }
        }
    }

    fn once_more(link: &Link, otherwise: Arrival) -> Arrival {
        if link.reply_ready() { Arrival::Ready } else { otherwise }
    }
}
