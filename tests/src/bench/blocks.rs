//! Blocks that alternate with the limit, and how they become figures.
//!
//! Before and after every block of a row stands a block of the limit. Two virtual CPUs move closer and farther within a
//! run, and a spinning row moves with them: a block is kept when the limit on both sides of it was within [`TIGHT`] of the
//! tightest placement seen; the others are reported apart, never dropped. A row goes on until it has its samples in kept blocks,
//! or its time is over.

use crate::bench::{CLIENT_CPU, Limit, pin};
use hdrhistogram::Histogram;
use inferd_ipc::sys::now_ns;
use std::time::{Duration, Instant};

/// A block is kept when the limit around it is within this factor of the tightest placement.
pub const TIGHT: f64 = 1.15;
/// The tightest placement is what this part of the limit's blocks reached: one lucky block is no placement.
const TIGHTEST: f64 = 0.05;
/// Rounds that a row has in any case.
const ROUNDS_MIN: usize = 3;
/// A worker that spun for a row sleeps before its CPU is another's.
const SETTLE: Duration = Duration::from_millis(4);

/// A row while it is measured: the CPU that it is called on, calls in a block, and the call, which says how long it took.
pub struct Entry<'a> {
    /// The calling thread's CPU.
    pub cpu: usize,
    /// Calls in a block.
    pub count: usize,
    /// One call; its round trip in nanoseconds.
    pub call: &'a mut dyn FnMut() -> u64,
}

/// When to stop: samples in kept blocks, and a time after which what there is must do.
#[derive(Clone, Copy)]
pub struct Until {
    /// Samples of each row in kept blocks.
    pub samples: usize,
    /// The longest that it may take.
    pub time: Duration,
    /// How far from the tightest placement a block is kept; infinite for rows that sleep.
    pub within: f64,
}

impl Until {
    /// For spinning rows: a million samples at scale 1, if they can be had in this time.
    #[must_use]
    pub fn spinning(seconds: f64) -> Until {
        Until::samples(1_000_000, seconds, TIGHT)
    }

    /// For rows that sleep or run for long: all blocks are kept, because waking a CPU takes a hundred times as long as
    /// any distance between two.
    #[must_use]
    pub fn sleeping(samples: usize, seconds: f64) -> Until {
        Until::samples(samples, seconds, f64::INFINITY)
    }

    /// Counts and time are scaled.
    #[must_use]
    pub fn samples(samples: usize, seconds: f64, within: f64) -> Until {
        let scale = crate::bench::scale();
        Until { samples: crate::bench::scaled(samples, 1), time: Duration::from_secs_f64(seconds * scale), within }
    }
}

/// All blocks of rows that were measured together.
pub struct Measured {
    limits: Vec<Vec<u64>>,
    /// What the limit's blocks typically took.
    levels: Vec<f64>,
    /// Of each row: the limit's block before it, and the round trips.
    rows: Vec<Vec<(usize, Vec<u64>)>>,
    within: f64,
}

/// What a row came to.
pub struct Figures {
    /// Of the blocks that were kept.
    pub row: Histogram<u64>,
    /// Of the limit's blocks before them.
    pub limit: Histogram<u64>,
    /// Of the other blocks, and the limit's before those.
    pub apart: [Histogram<u64>; 2],
    /// Median over the kept blocks of how much longer than the limit's a block typically took.
    pub ratio: f64,
    /// Kept, and all.
    pub blocks: (usize, usize),
}

impl Figures {
    /// A quantile in nanoseconds.
    #[must_use]
    pub fn at(&self, q: f64) -> f64 {
        self.row.value_at_quantile(q) as f64
    }

    /// A quantile of the limit in the same blocks.
    #[must_use]
    pub fn limit_at(&self, q: f64) -> f64 {
        self.limit.value_at_quantile(q) as f64
    }
}

/// Alternates blocks of the limit and of every row, until each has its samples.
pub fn measure(limit: &mut Limit, count: usize, until: Until, entries: &mut [Entry<'_>]) -> Measured {
    let rows = vec![Vec::new(); entries.len()];
    let mut all = Measured { limits: Vec::new(), levels: Vec::new(), rows, within: until.within };
    let end = Instant::now() + until.time;
    // The first round warms up.
    for round in 0usize.. {
        for (r, entry) in entries.iter_mut().enumerate() {
            pin(CLIENT_CPU);
            all.limit_block(limit, count);
            pin(entry.cpu);
            let times = block(entry);
            pin(CLIENT_CPU);
            std::thread::sleep(SETTLE);
            if round > 0 {
                all.rows[r].push((all.limits.len() - 1, times));
            }
        }
        let enough = || (0..entries.len()).all(|r| all.kept_samples(r) >= until.samples);
        if round >= ROUNDS_MIN && (Instant::now() > end || (round.is_multiple_of(8) && enough())) {
            break;
        }
    }
    all.limit_block(limit, count);
    all
}

/// Calls, after a tenth as many to wake the other side.
fn block(entry: &mut Entry<'_>) -> Vec<u64> {
    for _ in 0..entry.count / 10 {
        (entry.call)();
    }
    (0..entry.count).map(|_| (entry.call)()).collect()
}

impl Measured {
    /// From blocks that were taken elsewhere: of each row, the limit's blocks and as many of the row.
    #[must_use]
    pub fn of(limits: Vec<Vec<u64>>, row: Vec<Vec<u64>>) -> Measured {
        let levels = limits.iter().map(|b| middle(b)).collect();
        Measured { limits, levels, rows: vec![row.into_iter().enumerate().collect()], within: TIGHT }
    }

    fn limit_block(&mut self, limit: &mut Limit, count: usize) {
        let mut times = Vec::with_capacity(count);
        limit.block(count, &mut times);
        self.levels.push(middle(&times));
        self.limits.push(times);
    }

    /// Numbers of the limit's blocks that were at the tightest placement.
    fn tight(&self) -> Vec<bool> {
        let tightest = quantile_of(self.levels.clone(), TIGHTEST);
        self.levels.iter().map(|m| *m <= tightest * self.within).collect()
    }

    fn is_kept(tight: &[bool], before: usize) -> bool {
        tight[before] && tight.get(before + 1).copied().unwrap_or(true)
    }

    fn kept_samples(&self, row: usize) -> usize {
        let tight = self.tight();
        self.rows[row].iter().filter(|(before, _)| Measured::is_kept(&tight, *before)).map(|(_, b)| b.len()).sum()
    }

    /// The figures of a row.
    #[must_use]
    pub fn figures(&self, row: usize) -> Figures {
        let tight = self.tight();
        let (kept, apart): (Vec<_>, Vec<_>) =
            self.rows[row].iter().partition(|(before, _)| Measured::is_kept(&tight, *before));
        // No block had the tightest placement on both sides: what there is, rather than nothing.
        let kept = if kept.is_empty() { self.rows[row].iter().collect() } else { kept };
        let pool = |blocks: &[&(usize, Vec<u64>)]| {
            let (mut of_row, mut of_limit) = (histogram(), histogram());
            for (before, times) in blocks {
                times.iter().for_each(|ns| of_row.saturating_record(*ns));
                self.limits[*before].iter().for_each(|ns| of_limit.saturating_record(*ns));
            }
            (of_row, of_limit)
        };
        let ratios = kept.iter().map(|(before, times)| middle(times) / self.levels[*before].max(1.0));
        let ratio = quantile_of(ratios.collect(), 0.5);
        let blocks = (kept.len(), self.rows[row].len());
        let (row, limit) = pool(&kept);
        let (apart_row, apart_limit) = pool(&apart);
        Figures { row, limit, apart: [apart_row, apart_limit], ratio, blocks }
    }

    /// Median over the rounds of the ratio of two rows' quantiles: what disturbs both cancels out.
    #[must_use]
    pub fn ratio(&self, row: usize, over: usize, q: f64) -> f64 {
        let pairs = self.rows[row].iter().zip(&self.rows[over]);
        quantile_of(pairs.map(|((_, a), (_, b))| quantile(a, q) / quantile(b, q).max(1.0)).collect(), 0.5)
    }
}

/// How long a call took.
pub fn timed(call: impl FnOnce()) -> u64 {
    let start = now_ns();
    call();
    now_ns() - start
}

/// A histogram of nanoseconds up to ten seconds, three digits exact.
#[must_use]
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 10_000_000_000, 3).unwrap_or_else(|e| panic!("these bounds fit: {e}"))
}

/// A quantile of a block.
#[must_use]
pub fn quantile(times: &[u64], q: f64) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted.get(((sorted.len().max(1) - 1) as f64 * q) as usize).map_or(f64::NAN, |ns| *ns as f64)
}

/// What a call of a block typically took: the mean of its middle half. A median moves in steps of the clock's, which are a
/// sixth of a round trip here; this does not, and is as deaf to the tail.
#[must_use]
pub fn middle(times: &[u64]) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let half = &sorted[sorted.len() / 4..sorted.len() - sorted.len() / 4];
    half.iter().sum::<u64>() as f64 / half.len() as f64
}

/// The median of a block.
#[must_use]
pub fn median(times: &[u64]) -> f64 {
    quantile(times, 0.5)
}

/// A quantile of any values.
#[must_use]
pub fn quantile_of(mut values: Vec<f64>, q: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(((values.len().max(1) - 1) as f64 * q) as usize).copied().unwrap_or(f64::NAN)
}

/// Points of the distribution, for an axis that is logarithmic towards the tail: ten to each factor of ten, as far as
/// there are samples, and the slowest.
#[must_use]
pub fn cdf_of(histogram: &Histogram<u64>) -> Vec<(f64, u64)> {
    let mut points: Vec<f64> = vec![0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8];
    let nines = |k: i32| 1.0 - 0.1 * 10f64.powf(-f64::from(k) / 10.0);
    points.extend((0..).map(nines).take_while(|q| (1.0 - q) * histogram.len() as f64 >= 1.0));
    let mut all: Vec<(f64, u64)> = points.into_iter().map(|q| (q, histogram.value_at_quantile(q))).collect();
    all.push((1.0, histogram.max()));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_away_from_the_tightest_placement_are_reported_apart() {
        let limits = vec![vec![100; 3], vec![101; 3], vec![300; 3], vec![100; 3], vec![99; 3], vec![100; 3]];
        let row = vec![vec![200; 3], vec![400; 3], vec![900; 3], vec![210; 3], vec![220; 3]];
        let figures = Measured::of(limits, row).figures(0);
        // The second and third block have the far placement on one side.
        assert_eq!(figures.blocks, (3, 5));
        assert_eq!(figures.row.max(), 220);
        assert_eq!(figures.apart[0].len(), 6);
        assert!((figures.ratio - 2.1).abs() < 0.01, "{}", figures.ratio);
    }

    #[test]
    fn the_middle_of_a_block_tells_apart_what_the_clock_rounds() {
        let block = |tens: usize| (0..100).map(|i| if i < tens { 60 } else { 70 }).collect::<Vec<u64>>();
        assert_eq!(median(&block(51)), median(&block(70)));
        assert!(middle(&block(51)) > middle(&block(70)) + 1.0);
        let mut slow = block(60);
        (90..100).for_each(|i| slow[i] = 1_000_000);
        assert_eq!(middle(&slow), middle(&block(60)));
    }

    #[test]
    fn the_tail_of_a_distribution_ends_with_its_samples() {
        let mut all = histogram();
        (1..=1000).for_each(|ns| all.saturating_record(ns));
        let points = cdf_of(&all);
        assert!(points.windows(2).all(|p| p[0].0 < p[1].0 && p[0].1 <= p[1].1), "{points:?}");
        assert_eq!(points.last(), Some(&(1.0, 1000)));
        assert!(points[points.len() - 2].0 <= 0.999, "{points:?}");
    }
}
