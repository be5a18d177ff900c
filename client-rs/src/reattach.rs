//! When to try again after the daemon was lost: exponential backoff, no sleep of its own.
//!
//! The first attempt is free; after each failure the next one must wait, 5 ms at first, doubling up
//! to 250 ms, so that a control loop that asks every millisecond does not storm a starting daemon.

use inferd_ipc::limits::{REATTACH_BACKOFF_MS, REATTACH_BACKOFF_MS_MAX};

/// State of the backoff; times are CLOCK_MONOTONIC nanoseconds.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    delay_ms: u64,
    not_before_ns: u64,
}

impl Backoff {
    /// Whether an attempt may be made now.
    pub(crate) fn is_due(&self, now_ns: u64) -> bool {
        now_ns >= self.not_before_ns
    }

    /// When the next attempt may be made.
    pub(crate) fn not_before_ns(&self) -> u64 {
        self.not_before_ns
    }

    /// An attempt failed at this moment.
    pub(crate) fn failed(&mut self, now_ns: u64) {
        self.delay_ms = (self.delay_ms * 2).clamp(REATTACH_BACKOFF_MS, REATTACH_BACKOFF_MS_MAX);
        self.not_before_ns = now_ns.saturating_add(self.delay_ms * 1_000_000);
    }

    /// An attempt succeeded.
    pub(crate) fn succeeded(&mut self) {
        *self = Backoff::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_attempt_is_free_and_the_waits_double_up_to_the_longest() {
        let mut backoff = Backoff::default();
        assert!(backoff.is_due(0));
        let mut waits = Vec::new();
        for _ in 0..8 {
            backoff.failed(1_000_000);
            waits.push((backoff.not_before_ns() - 1_000_000) / 1_000_000);
            assert!(!backoff.is_due(backoff.not_before_ns() - 1) && backoff.is_due(backoff.not_before_ns()));
        }
        assert_eq!(waits, [5, 10, 20, 40, 80, 160, 250, 250]);
        backoff.succeeded();
        assert!(backoff.is_due(0));
    }
}
