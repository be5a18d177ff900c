//! Counters of a worker: written by the executor alone, read by the control thread.
//!
//! Recording is a few relaxed stores to memory of this process: no lock, no system call. Latencies go
//! into log-linear buckets (16 per power of two, so that a percentile is exact to 6 %).

use crate::backend::DeviceTimes;
use inferd_ipc::layout::{REPLY_LATE, Status};
use inferd_ipc::limits::QUEUE_NS_MAX;
use inferd_ipc::worker_records::{StageStats, WorkerStats};
use std::sync::atomic::{AtomicU64, Ordering};

const SUB_BITS: u32 = 4;
const BUCKETS: usize = (64 - SUB_BITS as usize + 1) << SUB_BITS;

/// Adds to a counter that only this thread writes.
#[inline]
fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

/// A histogram of nanoseconds.
pub struct Histogram {
    buckets: Box<[AtomicU64]>,
    max: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { buckets: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(), max: AtomicU64::new(0) }
    }
}

/// The bucket of a value: values below 16 have one each, then 16 per power of two.
#[inline]
fn bucket(value: u64) -> usize {
    let magnitude = (u64::BITS - value.leading_zeros()).saturating_sub(SUB_BITS + 1);
    ((magnitude as usize) << SUB_BITS) + (value >> magnitude) as usize
}

/// The largest value of a bucket.
fn bucket_end(index: usize) -> u64 {
    let magnitude = (index >> SUB_BITS).saturating_sub(1) as u32;
    let first = (index as u64 - (u64::from(magnitude) << SUB_BITS)) << magnitude;
    first + ((1u64 << magnitude) - 1)
}

impl Histogram {
    /// Records one value.
    #[inline]
    pub fn record(&self, ns: u64) {
        add(&self.buckets[bucket(ns)], 1);
        if ns > self.max.load(Ordering::Relaxed) {
            self.max.store(ns, Ordering::Relaxed);
        }
    }

    /// Percentiles of what was recorded.
    #[must_use]
    pub fn stats(&self) -> StageStats {
        let counts: Vec<u64> = self.buckets.iter().map(|b| b.load(Ordering::Relaxed)).collect();
        let count: u64 = counts.iter().sum();
        let max_ns = self.max.load(Ordering::Relaxed);
        let at = |permille: u64| {
            let rank = (count * permille).div_ceil(1000).max(1);
            let mut seen = 0;
            let found = counts.iter().position(|c| {
                seen += c;
                seen >= rank
            });
            found.map_or(0, |i| bucket_end(i).min(max_ns))
        };
        StageStats { count, p50_ns: at(500), p99_ns: at(990), p999_ns: at(999), max_ns }
    }
}

/// All counters of a worker.
#[derive(Default)]
pub struct Stats {
    statuses: [AtomicU64; 9],
    late: AtomicU64,
    superseded: AtomicU64,
    sleeps: AtomicU64,
    queue: Histogram,
    model: Histogram,
    to_device: Histogram,
    on_device: Histogram,
    from_device: Histogram,
}

impl Stats {
    /// Records one reply.
    #[inline]
    pub fn reply(&self, status: Status, flags: u32, skipped: u32) {
        add(&self.statuses[status as usize], 1);
        add(&self.superseded, u64::from(skipped));
        add(&self.late, u64::from(flags & REPLY_LATE != 0));
    }

    /// Records the stages of one run.
    #[inline]
    pub fn run(&self, t_submit_ns: u64, t_start_ns: u64, t_done_ns: u64) {
        let queue = t_start_ns.wrapping_sub(t_submit_ns);
        if queue < QUEUE_NS_MAX {
            self.queue.record(queue);
        }
        self.model.record(t_done_ns.saturating_sub(t_start_ns));
    }

    /// Records the stages of one run on a device of its own.
    pub fn device(&self, times: DeviceTimes) {
        self.to_device.record(times.to_device_ns);
        self.on_device.record(times.on_device_ns);
        self.from_device.record(times.from_device_ns);
    }

    /// Records that the executor slept.
    pub fn slept(&self) {
        add(&self.sleeps, 1);
    }

    /// Everything, for the supervisor.
    #[must_use]
    pub fn snapshot(&self) -> WorkerStats {
        let status = |s: Status| (s.name().to_owned(), self.statuses[s as usize].load(Ordering::Relaxed));
        let mut outcomes: std::collections::BTreeMap<_, _> = Status::ALL.into_iter().map(status).collect();
        outcomes.insert("superseded".into(), self.superseded.load(Ordering::Relaxed));
        outcomes.insert("late".into(), self.late.load(Ordering::Relaxed));
        WorkerStats {
            outcomes,
            queue: self.queue.stats(),
            model: self.model.stats(),
            to_device: self.to_device.stats(),
            on_device: self.on_device.stats(),
            from_device: self.from_device.stats(),
            sleeps: self.sleeps.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_a_bucket_that_holds_it_to_one_sixteenth() {
        for shift in 0..64 {
            for value in [1u64 << shift, (1u64 << shift) - 1, (1u64 << shift) | (1u64 << shift) >> 3] {
                let end = bucket_end(bucket(value));
                assert!(end >= value && end - value <= value / 16, "{value}: {end}");
            }
        }
        assert!(bucket(u64::MAX) < BUCKETS);
    }

    #[test]
    fn percentiles_come_out_of_what_went_in() {
        let histogram = Histogram::default();
        (1..=1000).for_each(|ns| histogram.record(ns * 100));
        let stats = histogram.stats();
        assert_eq!((stats.count, stats.max_ns), (1000, 100_000));
        assert!((47_000..=53_500).contains(&stats.p50_ns), "{stats:?}");
        assert!((93_000..=100_000).contains(&stats.p99_ns), "{stats:?}");
        assert_eq!(Histogram::default().stats(), StageStats::default());
    }
}
