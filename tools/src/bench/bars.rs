//! A latency histogram that one can look at in a terminal.
//!
//! Latencies span decades, so the buckets are logarithmic, with edges from the preferred-number series
//! of electronics (E3, E6, E12, E24: IEC 60063), which are round in any decade. The finest series whose
//! drawing fits [`ROWS_MAX`] is taken. Bars are linear in the count; every bucket that holds anything
//! shows a sliver, and a run of empty ones is one line.

use crate::out::{grouped, microseconds};
use hdrhistogram::Histogram;
use serde::Serialize;

/// Lines of a drawing at most (the coarsest series is taken whatever its lines).
const ROWS_MAX: usize = 24;
/// Columns of the longest bar.
const BAR_COLUMNS: usize = 40;
/// Runs of empty buckets longer than this are drawn as one line.
const EMPTY_ROWS_MAX: usize = 2;

const E3: &[u64] = &[100, 220, 470];
const E6: &[u64] = &[100, 150, 220, 330, 470, 680];
const E12: &[u64] = &[100, 120, 150, 180, 220, 270, 330, 390, 470, 560, 680, 820];
const E24: &[u64] = &[
    100, 110, 120, 130, 150, 160, 180, 200, 220, 240, 270, 300, 330, 360, 390, 430, 470, 510, 560, 620, 680, 750, 820,
    910,
];

/// Counts between two latencies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Bucket {
    /// Least latency.
    pub from_ns: u64,
    /// First latency of the next bucket.
    pub to_ns: u64,
    /// Samples.
    pub count: u64,
}

/// The samples in logarithmic buckets without a gap, from the least to the largest.
#[must_use]
pub fn buckets(histogram: &Histogram<u64>) -> Vec<Bucket> {
    if histogram.is_empty() {
        return Vec::new();
    }
    let finest = [E24, E12, E6].into_iter().map(|series| counted(histogram, series));
    finest.into_iter().find(|b| rows(b) <= ROWS_MAX).unwrap_or_else(|| counted(histogram, E3))
}

fn counted(histogram: &Histogram<u64>, series: &[u64]) -> Vec<Bucket> {
    let (least, most) = (histogram.min().max(1), histogram.max());
    let edges = edges(series, least, most);
    let mut out: Vec<Bucket> = edges.windows(2).map(|e| Bucket { from_ns: e[0], to_ns: e[1], count: 0 }).collect();
    for value in histogram.iter_recorded() {
        // A value stands for a range of equal precision; its low end is what was measured or less.
        let at = histogram.lowest_equivalent(value.value_iterated_to()).max(least);
        let i = out.partition_point(|b| b.to_ns <= at).min(out.len() - 1);
        out[i].count += value.count_at_value();
    }
    out
}

/// Lines that the buckets take once drawn.
fn rows(buckets: &[Bucket]) -> usize {
    buckets
        .chunk_by(|a, b| a.count == 0 && b.count == 0)
        .map(|c| if c[0].count == 0 && c.len() > EMPTY_ROWS_MAX { 1 } else { c.len() })
        .sum()
}

/// Edges from the last one at or below `least` to the first one above `most`, in nanoseconds.
fn edges(series: &[u64], least: u64, most: u64) -> Vec<u64> {
    let decades = (0..18).map(|power| 10u64.pow(power));
    // Below 100 ns the series does not divide evenly; whole nanoseconds are fine enough there.
    let mut all: Vec<u64> = decades.flat_map(|d| series.iter().map(move |s| s.saturating_mul(d) / 100)).collect();
    all.dedup();
    all.retain(|e| *e > 0);
    let first = all.partition_point(|e| *e <= least).saturating_sub(1);
    let last = all.partition_point(|e| *e <= most).min(all.len() - 1);
    all[first..=last].to_vec()
}

/// The histogram as lines of text, with the percentiles marked that fall into each line.
#[must_use]
pub fn draw(histogram: &Histogram<u64>, marks: &[(&str, f64)]) -> String {
    let buckets = buckets(histogram);
    let most = buckets.iter().map(|b| b.count).max().unwrap_or(0);
    let total: u64 = buckets.iter().map(|b| b.count).sum();
    let mut out = String::new();
    let mut i = 0;
    while let Some(b) = buckets.get(i) {
        let empty = buckets[i..].iter().take_while(|b| b.count == 0).count();
        if empty > EMPTY_ROWS_MAX {
            out.push_str(&format!("{:>10} │\n", "⋮"));
            i += empty;
            continue;
        }
        let marked: Vec<&str> = marks
            .iter()
            .filter(|(_, quantile)| {
                let value = histogram.lowest_equivalent(histogram.value_at_quantile(*quantile));
                (b.from_ns..b.to_ns).contains(&value.max(buckets[0].from_ns))
            })
            .map(|(name, _)| *name)
            .collect();
        let (count, percent) = match b.count {
            0 => (String::new(), String::new()),
            n => (grouped(n), format!("{:.2} %", n as f64 * 100.0 / total as f64)),
        };
        let (from, bar, marked) = (microseconds(b.from_ns as f64), bar(b.count, most), marked.join(" "));
        let line = format!("{from:>10} │{bar:<BAR_COLUMNS$} {count:>11} {percent:>8}  {marked}");
        out.push_str(line.trim_end());
        out.push('\n');
        i += 1;
    }
    out
}

/// A bar in eighths of a column; anything above zero shows.
fn bar(count: u64, most: u64) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    if count == 0 || most == 0 {
        return String::new();
    }
    let eighths = (u128::from(count) * (BAR_COLUMNS as u128) * 8).div_ceil(u128::from(most)) as usize;
    "█".repeat(eighths / 8) + EIGHTHS[eighths % 8]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn histogram(samples: &[(u64, u64)]) -> Histogram<u64> {
        let mut h = Histogram::new_with_bounds(1, 3_600_000_000_000, 3).unwrap();
        for (value, count) in samples {
            h.record_n(*value, *count).unwrap();
        }
        h
    }

    #[test]
    fn every_sample_falls_into_exactly_one_bucket_whatever_the_span() {
        for most in [1, 7, 99, 1_000, 12_345, 999_999_999, 3_599_999_999_999] {
            let h = histogram(&[(1, 1), (most, 5), (most / 2 + 1, 3), (0, 1)]);
            let b = buckets(&h);
            assert_eq!(b.iter().map(|b| b.count).sum::<u64>(), 10, "{most}");
            assert!(b.windows(2).all(|w| w[0].to_ns == w[1].from_ns), "{most}");
            assert!(rows(&b) <= ROWS_MAX, "{most}: {} lines", rows(&b));
        }
        assert_eq!(buckets(&histogram(&[])), []);
    }

    #[test]
    fn bars_are_proportional_and_never_vanish() {
        assert_eq!(bar(0, 100), "");
        assert_eq!(bar(1, 1_000_000), "▏");
        assert_eq!(bar(100, 100).chars().count(), BAR_COLUMNS);
        assert_eq!(bar(u64::MAX, u64::MAX).chars().count(), BAR_COLUMNS);
        assert_eq!(bar(50, 100), "█".repeat(BAR_COLUMNS / 2));
    }

    #[test]
    fn the_drawing_is_what_one_expects_to_see() {
        let h = histogram(&[
            (1_250, 40),
            (1_400, 4_100),
            (1_600, 9_000),
            (1_900, 3_000),
            (2_300, 700),
            (3_100, 90),
            (4_000, 30),
            (52_000, 2),
            (480_000, 1),
        ]);
        let marks = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)];
        let want = include_str!("../../testdata/histogram.txt");
        let drawn = draw(&h, &marks);
        assert_eq!(drawn, want, "\n{drawn}");
    }
}
