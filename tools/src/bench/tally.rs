//! What one client of a bench has seen: latencies by stage, and how every request ended.
//!
//! All memory is taken before the first request. Each request that was tried ends in exactly one
//! [`End`], so that their sum is the number of requests tried: [`Tally::unaccounted`] checks it.

use hdrhistogram::Histogram;
use std::collections::BTreeMap;

/// Longest latency that is told apart: an hour, in nanoseconds. Longer ones count as this.
const LATENCY_NS_MAX: u64 = 3_600_000_000_000;
/// Significant decimal digits of a recorded latency.
const DIGITS: u8 = 3;

/// How a request ended, by the names of `semantics.md`; and `timeout`, where the client stopped waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum End {
    Ok,
    Superseded,
    Expired,
    Rejected,
    ModelError,
    WorkerLost,
    NeedsReset,
    ShuttingDown,
    DaemonLost,
    Unavailable,
    Timeout,
}

impl End {
    /// All ends, in the order of their declaration.
    pub const ALL: [End; 11] = [
        End::Ok,
        End::Superseded,
        End::Expired,
        End::Rejected,
        End::ModelError,
        End::WorkerLost,
        End::NeedsReset,
        End::ShuttingDown,
        End::DaemonLost,
        End::Unavailable,
        End::Timeout,
    ];

    /// The name used in tables and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            End::Ok => "ok",
            End::Superseded => "superseded",
            End::Expired => "expired",
            End::Rejected => "rejected",
            End::ModelError => "model_error",
            End::WorkerLost => "worker_lost",
            End::NeedsReset => "needs_reset",
            End::ShuttingDown => "shutting_down",
            End::DaemonLost => "daemon_lost",
            End::Unavailable => "unavailable",
            End::Timeout => "timeout",
        }
    }
}

/// When a request came through each stage, in CLOCK_MONOTONIC nanoseconds.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// When it should have been submitted; the same as `submit_ns` where nobody set a rate.
    pub intended_ns: u64,
    /// When it was.
    pub submit_ns: u64,
    /// When the worker took it.
    pub start_ns: u64,
    /// When the worker had the output.
    pub done_ns: u64,
    /// When the client had the reply.
    pub seen_ns: u64,
}

/// Latencies and counts of one client, or of several once merged.
#[derive(Debug, Clone)]
pub struct Tally {
    /// From submit to the reply in the client's hands.
    pub round_trip: Histogram<u64>,
    /// From the intended submit to the reply in the client's hands: what a request that had to wait
    /// for its turn at the client felt, too (no coordinated omission).
    pub intended: Histogram<u64>,
    /// From submit to the worker's start.
    pub queue: Histogram<u64>,
    /// The run.
    pub model: Histogram<u64>,
    /// From the output to the reply in the client's hands.
    pub reply: Histogram<u64>,
    /// Requests tried.
    pub attempts: u64,
    ends: [u64; End::ALL.len()],
    /// Of those that ended `ok`: after the deadline.
    pub late: u64,
    /// Of those that ended `ok`: on fresh state.
    pub state_resets: u64,
    /// Requests that a rate asked for and that were not tried, because there was no daemon.
    pub missed: u64,
    /// Requests that a rate asked for and that were not tried before the end, because all slots were in flight.
    pub unsent: u64,
    /// Times that the session was attached anew.
    pub reattaches: u64,
    /// Replies that ended `ok`, by the generation that computed them.
    pub generations: BTreeMap<u32, u64>,
    /// Longest time between two replies that ended `ok`, in nanoseconds.
    pub gap_ns_max: u64,
    last_ok_ns: Option<u64>,
}

impl Default for Tally {
    fn default() -> Tally {
        Tally::new()
    }
}

impl Tally {
    /// Nothing seen yet.
    #[must_use]
    pub fn new() -> Tally {
        let histogram = || {
            Histogram::new_with_bounds(1, LATENCY_NS_MAX, DIGITS)
                .unwrap_or_else(|_| unreachable!("bounds are constants"))
        };
        Tally {
            round_trip: histogram(),
            intended: histogram(),
            queue: histogram(),
            model: histogram(),
            reply: histogram(),
            attempts: 0,
            ends: [0; End::ALL.len()],
            late: 0,
            state_resets: 0,
            missed: 0,
            unsent: 0,
            reattaches: 0,
            generations: BTreeMap::new(),
            gap_ns_max: 0,
            last_ok_ns: None,
        }
    }

    /// A request ended with a valid output.
    pub fn ok(&mut self, t: Times, generation: u32) {
        self.ended(End::Ok);
        self.round_trip.saturating_record(t.seen_ns.saturating_sub(t.submit_ns));
        self.intended.saturating_record(t.seen_ns.saturating_sub(t.intended_ns));
        self.queue.saturating_record(t.start_ns.saturating_sub(t.submit_ns));
        self.model.saturating_record(t.done_ns.saturating_sub(t.start_ns));
        self.reply.saturating_record(t.seen_ns.saturating_sub(t.done_ns));
        *self.generations.entry(generation).or_default() += 1;
        if let Some(last) = self.last_ok_ns {
            self.gap_ns_max = self.gap_ns_max.max(t.seen_ns.saturating_sub(last));
        }
        self.last_ok_ns = Some(t.seen_ns);
    }

    /// A request ended.
    pub fn ended(&mut self, end: End) {
        self.ends[end as usize] += 1;
    }

    /// How many requests ended so.
    #[must_use]
    pub fn count(&self, end: End) -> u64 {
        self.ends[end as usize]
    }

    /// Requests tried whose end nobody saw: 0, or something is wrong.
    #[must_use]
    pub fn unaccounted(&self) -> i64 {
        self.attempts as i64 - self.ends.iter().sum::<u64>() as i64
    }

    /// Adds what another client has seen.
    pub fn merge(&mut self, other: &Tally) {
        let pairs = [
            (&mut self.round_trip, &other.round_trip),
            (&mut self.intended, &other.intended),
            (&mut self.queue, &other.queue),
            (&mut self.model, &other.model),
            (&mut self.reply, &other.reply),
        ];
        for (mine, theirs) in pairs {
            mine.add(theirs).unwrap_or_else(|_| unreachable!("all histograms have the same bounds"));
        }
        for (mine, theirs) in self.ends.iter_mut().zip(other.ends) {
            *mine += theirs;
        }
        for (generation, count) in &other.generations {
            *self.generations.entry(*generation).or_default() += count;
        }
        self.attempts += other.attempts;
        self.late += other.late;
        self.state_resets += other.state_resets;
        self.missed += other.missed;
        self.unsent += other.unsent;
        self.reattaches += other.reattaches;
        self.gap_ns_max = self.gap_ns_max.max(other.gap_ns_max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_ends_is_their_index() {
        for (i, end) in End::ALL.into_iter().enumerate() {
            assert_eq!(end as usize, i);
        }
    }

    #[test]
    fn merging_adds_everything_and_keeps_the_longest_gap() {
        let times = |at: u64| Times {
            intended_ns: at,
            submit_ns: at + 50,
            start_ns: at + 60,
            done_ns: at + 90,
            seen_ns: at + 100,
        };
        let (mut a, mut b) = (Tally::new(), Tally::new());
        for (tally, step) in [(&mut a, 1_000), (&mut b, 5_000)] {
            for i in 0..3 {
                tally.attempts += 1;
                tally.ok(times(i * step), 1 + i as u32 / 2);
            }
            tally.attempts += 2;
            tally.ended(End::Expired);
        }
        a.merge(&b);
        assert_eq!((a.attempts, a.count(End::Ok), a.count(End::Expired), a.unaccounted()), (10, 6, 2, 2));
        assert_eq!(a.generations, BTreeMap::from([(1, 4), (2, 2)]));
        assert_eq!(a.gap_ns_max, 5_000);
        let p = |h: &Histogram<u64>| h.value_at_quantile(0.5);
        assert_eq!([p(&a.round_trip), p(&a.intended), p(&a.queue), p(&a.model), p(&a.reply)], [50, 100, 10, 30, 10]);
    }
}
