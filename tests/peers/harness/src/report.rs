//! The table on standard output, and the same figures as JSON lines in the form of tests/benches/FORMAT.md.

use crate::measure::Figures;
use crate::peers::{INFERD, Peer};
use inferd_peers_common::{Row, now_ns};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::fs::read_to_string;
use std::io::Write as _;
use std::path::Path;

/// Quantiles of a curve, densest towards the tail.
const CURVE: [f64; 17] =
    [0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9995, 0.9999, 0.99999, 0.999999];
/// The bars that name a peer: row, peer, inferd's p50 over the peer's at most.
const BARS: [(Row, &str, f64, &str); 2] = [
    (Row::Echo64, "iceoryx2", 0.5, "p50 <= 0.5 x iceoryx2's"),
    (Row::Go2, "flask", 0.01, "p50 <= 0.01 x Flask's: a hundred times as fast"),
];

/// What was measured so far.
pub struct Report {
    lines: Vec<Value>,
    clock_ns: f64,
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

fn line(words: [&str; 8]) {
    let [title, waits, p50, p99, p999, ratio, inferd, samples] = words;
    println!("{title:<36} {waits:<18} {p50:>9} {p99:>9} {p999:>9} {ratio:>10} {inferd:>9} {samples:>9}");
}

fn machine() -> String {
    let info = read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find(|l| l.starts_with("model name") || l.starts_with("Model"));
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{} x {cpus}", model.and_then(|l| l.split(": ").nth(1)).unwrap_or("unknown"))
}

fn first_line(path: &str) -> String {
    read_to_string(path).unwrap_or_default().lines().next().unwrap_or("unknown").trim().to_owned()
}

impl Report {
    /// Begins with where this is.
    pub fn new() -> Report {
        let start = now_ns();
        (0..1_000_000).for_each(|_| {
            std::hint::black_box(now_ns());
        });
        let clock_ns = (now_ns() - start) as f64 / 1e6;
        let seconds = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |t| t.as_secs());
        let steal = first_line("/proc/stat").split_whitespace().nth(8).and_then(|t| t.parse::<u64>().ok());
        let head = json!({
            "kind": "head", "machine": machine(), "kernel": first_line("/proc/sys/kernel/osrelease"),
            "governor": first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            "load": first_line("/proc/loadavg"), "steal_ticks": steal,
            "rustc": std::env::var("INFERD_PEERS_RUSTC").ok(), "version": inferd_client::version(), "clock_ns": clock_ns, "time": seconds,
        });
        println!("one clock reading {clock_ns:.1} ns");
        Report { lines: vec![head], clock_ns }
    }

    pub fn head(&self, row: Row) {
        println!();
        line([row.title(), "waits by", "p50", "p99", "p99.9", "ping-pongs", "x inferd", "samples"]);
    }

    /// A peer's line.
    pub fn peer(&mut self, row: Row, peer: &Peer, measured: Result<Figures, String>) {
        match measured {
            Ok(f) => {
                self.figures(row, peer, &f);
                self.bars(row, peer, &f);
            }
            Err(why) => {
                println!("{:<36} not run: {why}", peer.title);
                self.lines.push(json!({ "kind": "skip", "row": row.name(), "system": peer.name, "why": why }));
            }
        }
    }

    /// inferd's line: over every round of the row, whichever peer it was beside.
    pub fn inferd(&mut self, row: Row, figures: &Figures) {
        self.figures(row, &INFERD, figures);
    }

    fn figures(&mut self, row: Row, peer: &Peer, f: &Figures) {
        let at = |q: f64| f.row.value_at_quantile(q) as f64;
        line([
            peer.title,
            peer.waits,
            &time(at(0.5)),
            &time(at(0.99)),
            &time(at(0.999)),
            &times(f.ratio),
            &f.inferd_ratio.map(times).unwrap_or_default(),
            &f.row.len().to_string(),
        ]);
        let limit = |q: f64| f.limit.value_at_quantile(q);
        let mut object = json!({
            "kind": "row", "row": row.name(), "title": row.title(), "system": peer.name, "system_title": peer.title,
            "waits": peer.waits, "samples": f.row.len(),
            "p50_ns": at(0.5), "p99_ns": at(0.99), "p999_ns": at(0.999), "p9999_ns": at(0.9999), "max_ns": f.row.max(),
            "limit": "ping-pong", "limit_p50_ns": limit(0.5), "limit_p99_ns": limit(0.99), "limit_p999_ns": limit(0.999),
            "ratio": f.ratio, "blocks_kept": f.rounds.0, "blocks": f.rounds.1, "clock_ns": self.clock_ns,
        });
        if let Some((request, reply)) = row.echo_bytes() {
            object["payload"] = json!([request, reply]);
        }
        if let Some(ratio) = f.inferd_ratio {
            object["inferd_ratio"] = json!(ratio);
        }
        if !f.apart.is_empty() {
            object["apart_samples"] = json!(f.apart.len());
            object["apart_p50_ns"] = json!(f.apart.value_at_quantile(0.5));
            object["apart_p99_ns"] = json!(f.apart.value_at_quantile(0.99));
            object["apart_limit_p50_ns"] = json!(f.apart_limit.value_at_quantile(0.5));
        }
        // No further into the tail than there are samples.
        let resolved = CURVE.into_iter().filter(|q| (1.0 - q) * f.row.len() as f64 >= 1.0);
        let curve: Vec<Value> = resolved.chain([1.0]).map(|q| json!([q, at(q)])).collect();
        object["cdf"] = json!(curve);
        self.lines.push(object);
    }

    fn bars(&mut self, row: Row, peer: &Peer, f: &Figures) {
        let bars = BARS.iter().filter(|(of, name, ..)| *of == row && *name == peer.name);
        for ((.., limit, words), ratio) in bars.zip(f.inferd_ratio) {
            let value = 1.0 / ratio;
            self.lines.push(json!({
                "kind": "bar", "row": row.name(), "bar": words, "value": value, "limit": limit, "holds": value <= *limit,
            }));
        }
    }

    /// Appends the lines to the file that `INFERD_BENCH_JSON` names.
    pub fn save(&self) -> Result<(), String> {
        let Some(path) = std::env::var_os("INFERD_BENCH_JSON") else { return Ok(()) };
        let text = self.lines.iter().fold(String::new(), |mut all, line| {
            let _ = writeln!(all, "{line}");
            all
        });
        let file = std::fs::File::options().create(true).append(true).open(&path);
        file.and_then(|mut f| f.write_all(text.as_bytes())).map_err(|e| format!("{}: {e}", Path::new(&path).display()))
    }
}
