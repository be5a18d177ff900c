//! The table on standard output, and the same figures as JSON lines.

use crate::measure::Figures;
use crate::peers::{INFERD, Peer};
use hdrhistogram::Histogram;
use inferd_peers_common::Row;
use serde_json::{Value, json};
use std::fmt::Write as _;

/// What was measured so far.
#[derive(Default)]
pub struct Report {
    lines: Vec<Value>,
}

/// Nanoseconds in a unit that is easy to read, with three digits.
fn time(ns: f64) -> String {
    match ns {
        ns if ns < 10_000.0 => format!("{ns:.0} ns"),
        ns if ns < 100_000.0 => format!("{:.1} us", ns / 1e3),
        ns if ns < 10_000_000.0 => format!("{:.0} us", ns / 1e3),
        ns => format!("{:.1} ms", ns / 1e6),
    }
}

/// A ratio with as many digits as mean something.
fn times(ratio: f64) -> String {
    match ratio {
        r if r < 10.0 => format!("{r:.2}"),
        r if r < 100.0 => format!("{r:.1}"),
        r => format!("{r:.0}"),
    }
}

impl Report {
    pub fn head(&self, row: Row) {
        println!(
            "\n{:<36} {:<18} {:>9} {:>9} {:>9} {:>11} {:>9} {:>9}",
            row.title(),
            "waits by",
            "p50",
            "p99",
            "p99.9",
            "ping-pongs",
            "x inferd",
            "samples"
        );
    }

    pub fn peer(&mut self, row: Row, peer: &Peer, measured: Result<Figures, String>) {
        let f = match measured {
            Ok(f) => f,
            Err(why) => {
                println!("{:<36} not run: {why}", peer.title);
                return self.lines.push(json!({ "peer": peer.name, "row": row.name(), "not_run": why }));
            }
        };
        println!(
            "{:<36} {:<18} {:>9} {:>9} {:>9} {:>11} {:>9} {:>9}",
            peer.title,
            peer.waits,
            time(f.p50),
            time(f.p99),
            time(f.p999),
            times(f.ping_pongs),
            times(f.times_inferd),
            f.samples
        );
        self.lines.push(json!({
            "peer": peer.name, "title": peer.title, "waits": peer.waits, "row": row.name(),
            "p50_ns": f.p50, "p99_ns": f.p99, "p999_ns": f.p999,
            "limit_p50_ns": f.limit_p50, "inferd_p50_ns": f.inferd_p50,
            "ping_pongs": f.ping_pongs, "times_inferd": f.times_inferd,
            "samples": f.samples, "rounds_kept": f.rounds.0, "rounds": f.rounds.1,
        }));
    }

    /// inferd's line: over every round of the row, whichever peer it was beside.
    pub fn inferd(&mut self, row: Row, all: &Histogram<u64>) {
        let at = |q| all.value_at_quantile(q) as f64;
        let (p50, p99, p999) = (at(0.5), at(0.99), at(0.999));
        println!(
            "{:<36} {:<18} {:>9} {:>9} {:>9} {:>11} {:>9} {:>9}",
            INFERD.title,
            INFERD.waits,
            time(p50),
            time(p99),
            time(p999),
            "",
            "",
            all.len()
        );
        self.lines.push(json!({
            "peer": INFERD.name, "title": INFERD.title, "waits": INFERD.waits, "row": row.name(),
            "p50_ns": p50, "p99_ns": p99, "p999_ns": p999, "samples": all.len(),
        }));
    }

    /// Writes the JSON lines where `INFERD_BENCH_JSON` says.
    pub fn save(&self) -> Result<(), String> {
        let Some(path) = std::env::var_os("INFERD_BENCH_JSON") else { return Ok(()) };
        let text = self.lines.iter().fold(String::new(), |mut all, line| {
            let _ = writeln!(all, "{line}");
            all
        });
        std::fs::write(&path, text).map_err(|e| format!("{}: {e}", std::path::Path::new(&path).display()))
    }
}
