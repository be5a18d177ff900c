//! CLOCK_MONOTONIC in nanoseconds: the one clock of requests, replies and deadlines.
//!
//! Read through the vDSO, so that it is no system call. Arithmetic on its values saturates.

use std::time::Duration;

/// CLOCK_MONOTONIC now, in nanoseconds: the clock of [`crate::ReplyInfo::t_done_ns`] and of
/// [`crate::Request::deadline_ns`]. One reading costs about 25 ns and no system call.
#[must_use]
#[inline]
pub fn now_ns() -> u64 {
    inferd_ipc::sys::now_ns()
}

/// A duration in nanoseconds; saturates.
#[must_use]
#[inline]
pub(crate) fn as_ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The moment `timeout` after `now_ns`; `None` waits for ever.
#[must_use]
#[inline]
pub(crate) fn limit_ns(now_ns: u64, timeout: Option<Duration>) -> u64 {
    timeout.map_or(u64::MAX, |t| now_ns.saturating_add(as_ns(t)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_runs_forward_and_limits_saturate() {
        let a = now_ns();
        assert!(a > 0 && now_ns() >= a);
        assert_eq!(limit_ns(5, None), u64::MAX);
        assert_eq!(limit_ns(5, Some(Duration::MAX)), u64::MAX);
        assert_eq!(limit_ns(5, Some(Duration::from_micros(1))), 1_005);
    }
}
