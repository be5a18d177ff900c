//! How a peer is measured: rounds of the ping-pong, inferd and the peer, one block each, until the row's time is over.
//!
//! So every peer has the physical limit and inferd beside it, within the same milliseconds, and a ratio is the median over
//! the rounds of the ratio of their medians: what disturbs all three cancels out. A quantile is taken over the rounds at the
//! tightest placement seen, as in `make bench`; over all rounds where a row is so slow that the distance of two cores is
//! nothing to it. A slow peer has fewer samples; the table says how many.

use crate::ends::Ends;
use crate::limit::Limit;
use hdrhistogram::Histogram;
use std::time::{Duration, Instant};

/// Time of a row's rounds where the whole has time enough, and what it has in any case; the number of rounds at most.
const ROW_TIME: Duration = Duration::from_millis(2_900);
const ROW_TIME_MIN: Duration = Duration::from_millis(300);
/// What starting and ending a peer takes, roughly.
const START_TIME: Duration = Duration::from_millis(1_200);
const ROUNDS_MAX: usize = 60;
const ROUNDS_MIN: usize = 3;
/// How long a block should take, and how many round trips it may have.
const BLOCK_TIME: Duration = Duration::from_millis(40);
const INFERD_TIME: Duration = Duration::from_millis(10);
const COUNT_MIN: usize = 10;
const COUNT_MAX: usize = 30_000;
const BOUNCES: usize = 2_000;
/// A round counts when its ping-pong is within this factor of the tightest one.
const TIGHT: f64 = 1.15;
/// A row of so many ping-pongs counts with all its rounds.
const SLOW: f64 = 20.0;
/// For a spinning peer to go to sleep: longer than any of them spins.
const SETTLE: Duration = Duration::from_millis(4);

/// The blocks of one round.
struct Round {
    limit: Vec<u64>,
    inferd: Vec<u64>,
    peer: Vec<u64>,
}

/// What a row came to, in nanoseconds.
pub struct Figures {
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    /// Of the ping-pong and of inferd, in the same rounds.
    pub limit_p50: f64,
    pub inferd_p50: f64,
    /// Medians over the rounds.
    pub ping_pongs: f64,
    pub times_inferd: f64,
    pub samples: u64,
    pub rounds: (usize, usize),
}

/// The time of everything, dealt out row by row: a slow start takes from those that follow.
pub struct Budget {
    end: Instant,
    rows_left: u32,
}

impl Budget {
    pub fn new(time: Duration, rows: usize) -> Budget {
        Budget { end: Instant::now() + time, rows_left: u32::try_from(rows).unwrap_or(u32::MAX) }
    }

    /// The time of the next row's rounds; `None` once the whole is over.
    pub fn next(&mut self) -> Option<Duration> {
        let left = self.end.checked_duration_since(Instant::now())?;
        let share = left / self.rows_left.max(1);
        self.rows_left = self.rows_left.saturating_sub(1);
        Some(share.saturating_sub(START_TIME).clamp(ROW_TIME_MIN, ROW_TIME))
    }
}

/// Measures a peer beside inferd and the limit for so long; inferd's own samples go to `inferd_all` too.
pub fn measure(
    limit: &mut Limit,
    inferd: &mut Ends,
    peer: &mut Ends,
    inferd_all: &mut Histogram<u64>,
    time: Duration,
) -> Result<Figures, String> {
    let inferd_count = count_for(inferd, INFERD_TIME)?;
    let count = count_for(peer, BLOCK_TIME)?;
    let end = Instant::now() + time;
    let mut rounds: Vec<Round> = Vec::new();
    while rounds.len() < ROUNDS_MIN || (rounds.len() < ROUNDS_MAX && Instant::now() < end) {
        let mut bounced = Vec::with_capacity(BOUNCES);
        limit.block(BOUNCES, &mut bounced);
        let of_inferd = inferd.block(inferd_count)?;
        std::thread::sleep(SETTLE);
        let of_peer = peer.block(count)?;
        std::thread::sleep(SETTLE);
        of_inferd.iter().for_each(|ns| inferd_all.saturating_record(*ns));
        rounds.push(Round { limit: bounced, inferd: of_inferd, peer: of_peer });
    }
    Ok(figures(&rounds))
}

/// How many round trips take about this long, from two small blocks, of which the first warms up.
fn count_for(ends: &mut Ends, time: Duration) -> Result<usize, String> {
    ends.block(COUNT_MIN)?;
    let times = ends.block(COUNT_MIN * 2)?;
    let count = time.as_nanos() as f64 / median(&times).max(1.0);
    Ok((count as usize).clamp(COUNT_MIN, COUNT_MAX))
}

fn figures(rounds: &[Round]) -> Figures {
    let limits: Vec<f64> = rounds.iter().map(|r| median(&r.limit)).collect();
    let ping_pongs = median_of(rounds.iter().zip(&limits).map(|(r, limit)| median(&r.peer) / limit));
    let tightest = limits.iter().copied().fold(f64::INFINITY, f64::min);
    let is_kept = |i: usize| ping_pongs > SLOW || limits[i] <= tightest * TIGHT;
    let kept: Vec<&Round> = rounds.iter().enumerate().filter(|(i, _)| is_kept(*i)).map(|(_, r)| r).collect();
    let pool = |of: fn(&Round) -> &Vec<u64>| {
        let mut all = histogram();
        kept.iter().flat_map(|r| of(r)).for_each(|ns| all.saturating_record(*ns));
        all
    };
    let (limit, inferd, peer) = (pool(|r| &r.limit), pool(|r| &r.inferd), pool(|r| &r.peer));
    let at = |h: &Histogram<u64>, q: f64| h.value_at_quantile(q) as f64;
    Figures {
        p50: at(&peer, 0.5),
        p99: at(&peer, 0.99),
        p999: at(&peer, 0.999),
        limit_p50: at(&limit, 0.5),
        inferd_p50: at(&inferd, 0.5),
        ping_pongs: median_of(kept.iter().map(|r| median(&r.peer) / median(&r.limit))),
        times_inferd: median_of(kept.iter().map(|r| median(&r.peer) / median(&r.inferd))),
        samples: peer.len(),
        rounds: (kept.len(), rounds.len()),
    }
}

/// A histogram of nanoseconds up to ten seconds.
pub fn histogram() -> Histogram<u64> {
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
