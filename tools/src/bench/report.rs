//! What a bench found, for people and for scripts.
//!
//! The same [`Report`] is the JSON file and the source of the text, so that neither says what the
//! other does not. Latencies are nanoseconds in JSON and microseconds in the tables.

use super::bars::{self, Bucket};
use super::tally::{End, Tally};
use crate::out::{Column, grouped, microseconds, nanoseconds, table};
use hdrhistogram::Histogram;
use serde::Serialize;
use std::collections::BTreeMap;

/// How the requests were made.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Setup {
    /// The model.
    pub model: String,
    /// Sessions, each in a thread of its own.
    pub clients: u32,
    /// Requests per second and client; none: as fast as replies come.
    pub rate_hz: Option<f64>,
    /// How long it was to take.
    pub duration_s: f64,
    /// How long it took.
    pub measured_s: f64,
    /// Whether an operator ended it early.
    pub interrupted: bool,
    /// Queue of the sessions.
    pub queue: &'static str,
    /// Slots of the sessions.
    pub slots: u32,
    /// Spinning before sleep, in microseconds.
    pub spin_us: u64,
    /// Deadline after submit, in microseconds.
    pub deadline_us: Option<u64>,
    /// Bytes of a request's tensors.
    pub input_bytes: u64,
    /// Bytes of a reply's tensors.
    pub output_bytes: u64,
    /// Where the inputs came from.
    pub input: String,
    /// Version of the daemon.
    pub daemon_version: String,
}

/// Percentiles of one stage, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Distribution {
    pub count: u64,
    pub min_ns: u64,
    pub mean_ns: f64,
    pub p50_ns: u64,
    pub p90_ns: u64,
    pub p99_ns: u64,
    pub p999_ns: u64,
    pub p9999_ns: u64,
    pub max_ns: u64,
}

impl From<&Histogram<u64>> for Distribution {
    fn from(h: &Histogram<u64>) -> Distribution {
        // A recorded value stands for a range of 0.1 %; a percentile never exceeds what was measured.
        let at = |q| h.value_at_quantile(q).min(h.max());
        Distribution {
            count: h.len(),
            min_ns: if h.is_empty() { 0 } else { h.min() },
            mean_ns: h.mean(),
            p50_ns: at(0.5),
            p90_ns: at(0.9),
            p99_ns: at(0.99),
            p999_ns: at(0.999),
            p9999_ns: at(0.9999),
            max_ns: h.max(),
        }
    }
}

/// What a bench found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// How the requests were made.
    pub setup: Setup,
    /// Requests tried.
    pub attempts: u64,
    /// How they ended; every name is there.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// Requests tried whose end nobody saw.
    pub unaccounted: i64,
    /// Of those that ended `ok`: after the deadline.
    pub late: u64,
    /// Of those that ended `ok`: on fresh state.
    pub state_resets: u64,
    /// Requests that were due while there was no daemon, and not tried.
    pub missed: u64,
    /// Requests that were due and not tried before the end, because all slots were in flight.
    pub unsent: u64,
    /// Times that a session was attached anew.
    pub reattaches: u64,
    /// Replies per generation.
    pub generations: BTreeMap<u32, u64>,
    /// Replies that ended `ok`, per second, all clients together.
    pub replies_per_s: f64,
    /// Longest time that a client went without a reply that ended `ok`.
    pub gap_ns_max: u64,
    /// Latencies: `round_trip`, `intended` (with a rate), `queue`, `model`, `reply`.
    pub latency: BTreeMap<&'static str, Distribution>,
    /// The round trip in logarithmic buckets.
    pub histogram: Vec<Bucket>,
}

/// Quantiles that the drawing points out.
const MARKS: &[(&str, f64)] =
    &[("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("p99.99", 0.9999), ("max", 1.0)];

impl Report {
    /// Sums up what all clients have seen.
    #[must_use]
    pub fn new(setup: Setup, tally: &Tally) -> Report {
        let mut latency = BTreeMap::from([
            ("round_trip", Distribution::from(&tally.round_trip)),
            ("queue", Distribution::from(&tally.queue)),
            ("model", Distribution::from(&tally.model)),
            ("reply", Distribution::from(&tally.reply)),
        ]);
        if setup.rate_hz.is_some() {
            latency.insert("intended", Distribution::from(&tally.intended));
        }
        Report {
            attempts: tally.attempts,
            outcomes: End::ALL.into_iter().map(|end| (end.name(), tally.count(end))).collect(),
            unaccounted: tally.unaccounted(),
            late: tally.late,
            state_resets: tally.state_resets,
            missed: tally.missed,
            unsent: tally.unsent,
            reattaches: tally.reattaches,
            generations: tally.generations.clone(),
            replies_per_s: tally.count(End::Ok) as f64 / setup.measured_s.max(1e-9),
            gap_ns_max: tally.gap_ns_max,
            latency,
            histogram: bars::buckets(&tally.round_trip),
            setup,
        }
    }

    /// The report as text, with the drawing.
    #[must_use]
    pub fn text(&self, tally: &Tally) -> String {
        let mut out = self.headline();
        if self.latency["round_trip"].count > 0 {
            out += &format!("\n{}", self.percentiles());
            out += &format!("\n     round trip, us\n{}", bars::draw(&tally.round_trip, MARKS));
        }
        out + "\n" + &self.outcomes_text() + &self.events()
    }

    fn headline(&self) -> String {
        let s = &self.setup;
        let clients = if s.clients == 1 { "1 client".to_owned() } else { format!("{} clients", s.clients) };
        let each = if s.clients == 1 { "" } else { " each" };
        let rate = s.rate_hz.map_or("flat out".to_owned(), |hz| format!("{hz} Hz{each}"));
        let deadline = s.deadline_us.map_or(String::new(), |us| format!(", deadline {us} us"));
        let interrupted =
            if s.interrupted { format!(" (interrupted; {} s were asked for)", s.duration_s) } else { String::new() };
        format!(
            "{}: {clients}, {rate}, {:.1} s{interrupted}\nqueue {}, {} slots, spin {} us{deadline}; {} B in ({}), {} B out; inferd {}\n",
            s.model,
            s.measured_s,
            s.queue,
            s.slots,
            s.spin_us,
            s.input_bytes,
            s.input,
            s.output_bytes,
            s.daemon_version,
        )
    }

    fn percentiles(&self) -> String {
        let stages = ["round_trip", "intended", "queue", "model", "reply"];
        let present: Vec<&Distribution> = stages.iter().filter_map(|s| self.latency.get(s)).collect();
        let titles = ["round trip", "from intended start", "queue", "model", "reply"];
        let shown =
            stages.iter().zip(titles).filter(|(s, _)| self.latency.contains_key(*s)).map(|(_, t)| Column::Right(t));
        let columns: Vec<Column> = std::iter::once(Column::Left("us")).chain(shown).collect();
        type Figure = (&'static str, fn(&Distribution) -> f64);
        let figures: [Figure; 8] = [
            ("min", |d| d.min_ns as f64),
            ("p50", |d| d.p50_ns as f64),
            ("p90", |d| d.p90_ns as f64),
            ("p99", |d| d.p99_ns as f64),
            ("p99.9", |d| d.p999_ns as f64),
            ("p99.99", |d| d.p9999_ns as f64),
            ("max", |d| d.max_ns as f64),
            ("mean", |d| d.mean_ns),
        ];
        let rows = figures.iter().map(|(name, figure)| {
            std::iter::once((*name).to_owned()).chain(present.iter().map(|d| microseconds(figure(d)))).collect()
        });
        let mut out = table(&columns, rows);
        let count = self.latency["round_trip"].count;
        if count < 10_000 {
            let named = if count < 100 {
                "p99 and beyond are"
            } else if count < 1_000 {
                "p99.9 and p99.99 are"
            } else {
                "p99.99 is"
            };
            out += &format!("({} replies: {named} no more than the maximum)\n", grouped(count));
        }
        out
    }

    fn outcomes_text(&self) -> String {
        let percent = |n: u64| format!("{:.3} %", n as f64 * 100.0 / self.attempts.max(1) as f64);
        let mut rows = Vec::new();
        for end in End::ALL {
            let n = self.outcomes[end.name()];
            if n > 0 || end == End::Ok {
                rows.push(vec![end.name().to_owned(), grouped(n), percent(n)]);
            }
            if end == End::Ok && self.late > 0 {
                rows.push(vec!["  of these late".to_owned(), grouped(self.late), percent(self.late)]);
            }
            if end == End::Ok && self.state_resets > 0 {
                rows.push(vec!["  on fresh state".to_owned(), grouped(self.state_resets), percent(self.state_resets)]);
            }
        }
        let mut out = table(&[Column::Left("outcome"), Column::Right("count"), Column::Right("share")], rows);
        out += &format!("{} requests, {} replies/s; ", grouped(self.attempts), grouped(self.replies_per_s as u64));
        out += &format!("longest gap between replies {}\n", nanoseconds(self.gap_ns_max));
        out
    }

    fn events(&self) -> String {
        let mut out = String::new();
        if !self.generations.is_empty() {
            let each = self.generations.iter().map(|(g, n)| format!("{g} ({} replies)", grouped(*n)));
            let word = if self.generations.len() == 1 { "generation" } else { "generations" };
            out += &format!("{word} {}\n", each.collect::<Vec<_>>().join(", "));
        }
        if self.reattaches > 0 || self.missed > 0 {
            out += &format!(
                "sessions attached anew after losing the daemon: {}; requests due meanwhile and not tried: {}\n",
                grouped(self.reattaches),
                grouped(self.missed),
            );
        }
        if self.unsent > 0 {
            let n = grouped(self.unsent);
            out += &format!(
                "the model is slower than the rate: {n} requests were due and found no free slot before the end\n"
            );
        }
        if self.unaccounted != 0 {
            out +=
                &format!("{} requests are UNACCOUNTED for: a defect of inferd, please report it\n", self.unaccounted);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::super::tally::Times;
    use super::*;

    /// Latencies as a robot sees them: a narrow body and a thin tail, drawn by a fixed rule.
    fn sample() -> (Setup, Tally) {
        let mut tally = Tally::new();
        for i in 0..20_000u64 {
            let mut x = (i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            x ^= x >> 29;
            let body = 11_000 + (x % 1_000) + ((x >> 10) % 1_500) + ((x >> 20) % 900);
            let tail = if i % 97 == 0 { (x >> 30) % 9_000 } else { 0 } + if i == 7_777 { 431_000 } else { 0 };
            let at = i * 1_000_000;
            let late_start = (x >> 40) % 300;
            let start = at + late_start + 600;
            tally.attempts += 1;
            let seen = at + late_start + body + tail;
            tally.ok(
                Times {
                    intended_ns: at,
                    submit_ns: at + late_start,
                    start_ns: start,
                    done_ns: seen - 500,
                    seen_ns: seen,
                },
                if i < 12_000 { 1 } else { 2 },
            );
        }
        for (end, n) in [(End::Expired, 12), (End::WorkerLost, 1), (End::DaemonLost, 2), (End::Timeout, 0)] {
            tally.attempts += n;
            (0..n).for_each(|_| tally.ended(end));
        }
        (tally.late, tally.reattaches, tally.missed) = (31, 2, 148);
        let setup = Setup {
            model: "go2".into(),
            clients: 2,
            rate_hz: Some(1000.0),
            duration_s: 30.0,
            measured_s: 10.0,
            interrupted: true,
            queue: "latest",
            slots: 4,
            spin_us: 50,
            deadline_us: Some(2000),
            input_bytes: 180,
            output_bytes: 48,
            input: "zeros".into(),
            daemon_version: "0.1.0".into(),
        };
        (setup, tally)
    }

    #[test]
    fn the_report_reads_as_agreed() {
        let (setup, tally) = sample();
        let text = Report::new(setup, &tally).text(&tally);
        assert_eq!(text, include_str!("../../testdata/report.txt"), "\n{text}");
    }

    #[test]
    fn json_names_every_outcome_and_leaves_out_what_a_flat_out_run_has_not() {
        let (mut setup, tally) = sample();
        setup.rate_hz = None;
        let json = serde_json::to_value(Report::new(setup, &tally)).unwrap_or_default();
        for end in End::ALL {
            assert!(json["outcomes"][end.name()].is_u64(), "{}", end.name());
        }
        assert!(json["latency"]["intended"].is_null());
        assert_eq!(json["latency"]["round_trip"]["count"], 20_000);
        assert_eq!(json["generations"]["2"], 8_000);
    }

    #[test]
    fn a_run_without_a_reply_still_says_how_everything_ended() {
        let (setup, _) = sample();
        let mut tally = Tally::new();
        tally.attempts = 3;
        (0..3).for_each(|_| tally.ended(End::Unavailable));
        let text = Report::new(setup, &tally).text(&tally);
        assert!(text.contains("unavailable") && !text.contains("p99"), "{text}");
    }
}
