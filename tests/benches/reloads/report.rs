//! Prints figures for people, and appends them as lines of JSON for a plot.

use serde_json::Value;
use std::io::Write;

/// Where figures go.
pub struct Report {
    wanted: Vec<String>,
}

impl Report {
    /// As the environment says.
    pub fn new() -> Report {
        let rows = std::env::var("INFERD_BENCH_ROWS").unwrap_or_default();
        Report { wanted: rows.split([',', ' ']).filter(|w| !w.is_empty()).map(str::to_owned).collect() }
    }

    /// Whether this row was asked for.
    pub fn wants(&self, name: &str) -> bool {
        self.wanted.is_empty() || self.wanted.iter().any(|w| name.contains(w.as_str()))
    }

    /// Appends one line to the file of figures.
    pub fn json(&self, line: &Value) {
        let Some(path) = std::env::var_os("INFERD_BENCH_JSON") else { return };
        let file = std::fs::File::options().create(true).append(true).open(&path);
        if let Err(e) = file.and_then(|mut f| writeln!(f, "{line}")) {
            eprintln!("{}: {e}", path.display());
        }
    }
}

/// The value below which this part of all values lies.
pub fn quantile(sorted: &[u64], q: f64) -> u64 {
    sorted.get(((sorted.len().max(1) - 1) as f64 * q).round() as usize).copied().unwrap_or(0)
}

/// Nanoseconds as microseconds, for a table.
pub fn us(ns: u64) -> String {
    format!("{:.0}", ns as f64 / 1e3)
}
