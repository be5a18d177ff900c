//! How a peer is measured: rounds of the ping-pong, inferd and the peer, one block each, until the row's time is over.
//!
//! So every peer has the physical limit and inferd beside it, within the same milliseconds, and a ratio is the median over
//! the rounds of the ratio of their medians: what disturbs all three cancels out. A quantile is taken over the rounds at the
//! tightest placement seen, as in `make bench`, the others are reported apart; all rounds count where a row is so slow that
//! the distance of two cores is nothing to it. A slow peer has fewer samples; the table says how many.

use crate::ends::Ends;
use crate::limit::Limit;
use hdrhistogram::Histogram;
use std::time::{Duration, Instant};

/// Time of a row's rounds where the whole has time enough, and what it has in any case; the number of rounds at most.
const ROW_TIME: Duration = Duration::from_millis(2_900);
const ROW_TIME_MIN: Duration = Duration::from_millis(300);
/// What starting and ending a peer takes, roughly.
const START_TIME: Duration = Duration::from_millis(1_200);
const ROUNDS_MAX: f64 = 60.0;
const ROUNDS_MIN: usize = 3;
/// How long a block should take, and how many round trips it may have.
const BLOCK_TIME: Duration = Duration::from_millis(40);
const INFERD_TIME: Duration = Duration::from_millis(10);
const COUNT_MIN: usize = 10;
const COUNT_MAX: usize = 30_000;
/// inferd's blocks stand beside every peer's: short ones make more samples than any peer has.
const INFERD_COUNT_MAX: usize = 4_000;
const BOUNCES: usize = 2_000;
/// A round counts when its ping-pong is within this factor of the tightest one.
const TIGHT: f64 = 1.15;
/// A row of so many ping-pongs counts with all its rounds.
const SLOW: f64 = 20.0;
/// For a spinning peer to go to sleep: longer than any of them spins.
const SETTLE: Duration = Duration::from_millis(4);

/// The time of everything, dealt out row by row: a slow start takes from those that follow.
pub struct Budget {
    end: Instant,
    rows_left: u32,
    scale: f64,
}

/// What a row may take.
#[derive(Clone, Copy)]
pub struct Share {
    time: Duration,
    rounds: usize,
}

impl Budget {
    /// For so many rows; `scale` multiplies times and counts.
    pub fn new(time: Duration, rows: usize, scale: f64) -> Budget {
        let end = Instant::now() + time.mul_f64(scale.max(1.0));
        Budget { end, rows_left: u32::try_from(rows).unwrap_or(u32::MAX), scale }
    }

    /// The next row's share; `None` once the whole is over.
    pub fn next(&mut self) -> Option<Share> {
        let left = self.end.checked_duration_since(Instant::now())?;
        let share = left / self.rows_left.max(1);
        self.rows_left = self.rows_left.saturating_sub(1);
        let (min, max) = (ROW_TIME_MIN.mul_f64(self.scale.min(1.0)), ROW_TIME.mul_f64(self.scale));
        let rounds = (ROUNDS_MAX * self.scale) as usize;
        Some(Share { time: share.saturating_sub(START_TIME).clamp(min, max), rounds: rounds.max(ROUNDS_MIN) })
    }
}

/// Blocks of the limit, and as many of what alternates with it.
#[derive(Default)]
pub struct Rounds {
    limit: Vec<Vec<u64>>,
    row: Vec<Vec<u64>>,
    /// inferd's, beside a peer's.
    inferd: Vec<Vec<u64>>,
}

/// What a row came to, in nanoseconds.
pub struct Figures {
    /// The row and the limit, over the rounds that were kept.
    pub row: Histogram<u64>,
    pub limit: Histogram<u64>,
    /// Over those that were not.
    pub apart: Histogram<u64>,
    pub apart_limit: Histogram<u64>,
    /// Medians over the kept rounds: of the ping-pong, of inferd.
    pub ratio: f64,
    pub inferd_ratio: Option<f64>,
    pub rounds: (usize, usize),
}

/// Measures a peer beside inferd and the limit; inferd's own blocks are added to `of_inferd` too.
pub fn measure(
    limit: &mut Limit,
    inferd: &mut Ends,
    peer: &mut Ends,
    share: Share,
    of_inferd: &mut Rounds,
) -> Result<Figures, String> {
    let inferd_count = count_for(inferd, INFERD_TIME)?.min(INFERD_COUNT_MAX);
    let count = count_for(peer, BLOCK_TIME)?;
    let end = Instant::now() + share.time;
    let mut rounds = Rounds::default();
    while rounds.row.len() < ROUNDS_MIN || (rounds.row.len() < share.rounds && Instant::now() < end) {
        let mut bounced = Vec::with_capacity(BOUNCES);
        limit.block(BOUNCES, &mut bounced);
        let beside = inferd.block(inferd_count)?;
        std::thread::sleep(SETTLE);
        let block = peer.block(count)?;
        std::thread::sleep(SETTLE);
        of_inferd.limit.push(bounced.clone());
        of_inferd.row.push(beside.clone());
        rounds.limit.push(bounced);
        rounds.row.push(block);
        rounds.inferd.push(beside);
    }
    Ok(rounds.figures())
}

/// How many round trips take about this long, from two small blocks, of which the first warms up.
fn count_for(ends: &mut Ends, time: Duration) -> Result<usize, String> {
    ends.block(COUNT_MIN)?;
    let times = ends.block(COUNT_MIN * 2)?;
    let count = time.as_nanos() as f64 / median(&times).max(1.0);
    Ok((count as usize).clamp(COUNT_MIN, COUNT_MAX))
}

impl Rounds {
    /// Whether there was no round.
    pub fn is_empty(&self) -> bool {
        self.row.is_empty()
    }

    /// What they came to.
    pub fn figures(&self) -> Figures {
        let ratios = |over: &[Vec<u64>], kept: &[usize]| {
            median_of(kept.iter().map(|i| median(&self.row[*i]) / median(&over[*i])))
        };
        let all: Vec<usize> = (0..self.row.len()).collect();
        let limits: Vec<f64> = self.limit.iter().map(|b| median(b)).collect();
        let tightest = limits.iter().copied().fold(f64::INFINITY, f64::min);
        let is_slow = ratios(&self.limit, &all) > SLOW;
        let (kept, apart): (Vec<usize>, Vec<usize>) =
            all.iter().partition(|i| is_slow || limits[**i] <= tightest * TIGHT);
        let pool = |blocks: &[Vec<u64>], which: &[usize]| {
            let mut pool = histogram();
            which.iter().flat_map(|i| &blocks[*i]).for_each(|ns| pool.saturating_record(*ns));
            pool
        };
        Figures {
            row: pool(&self.row, &kept),
            limit: pool(&self.limit, &kept),
            apart: pool(&self.row, &apart),
            apart_limit: pool(&self.limit, &apart),
            ratio: ratios(&self.limit, &kept),
            inferd_ratio: (!self.inferd.is_empty()).then(|| ratios(&self.inferd, &kept)),
            rounds: (kept.len(), all.len()),
        }
    }
}

/// A histogram of nanoseconds up to ten seconds.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 10_000_000_000, 3).expect("bounds that fit")
}

fn median(times: &[u64]) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).map_or(f64::NAN, |ns| *ns as f64)
}

fn median_of(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}
