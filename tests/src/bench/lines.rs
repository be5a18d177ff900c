//! The lines that a bench writes (`benches/FORMAT.md`), and the same for people on standard output.

use crate::bench::{Figures, cdf_of, clock_ns, machine};
use serde_json::{Map, Value, json};
use std::io::Write;

/// What a row is about.
#[derive(Clone, Copy)]
pub struct Row<'a> {
    /// Its word.
    pub row: &'a str,
    /// The same for people.
    pub title: &'a str,
    /// Who was measured: `inferd`, or what stands beside it.
    pub system: &'a str,
    /// How its ends wait.
    pub waits: &'a str,
    /// Bytes of a request and of a reply.
    pub payload: [u64; 2],
    /// What alternated with it.
    pub limit: &'a str,
}

impl<'a> Row<'a> {
    /// A row of inferd's that spins, beside the ping-pong.
    #[must_use]
    pub const fn spinning(row: &'a str, title: &'a str, payload: [u64; 2]) -> Row<'a> {
        Row { row, title, system: "inferd", waits: "spins", payload, limit: "ping-pong" }
    }

    /// A row of inferd's that sleeps, beside the futex ping-pong.
    #[must_use]
    pub const fn sleeping(row: &'a str, title: &'a str, payload: [u64; 2]) -> Row<'a> {
        Row { row, title, system: "inferd", waits: "sleeps", payload, limit: "futex ping-pong" }
    }

    /// The same row of something else.
    #[must_use]
    pub const fn of(self, system: &'a str) -> Row<'a> {
        Row { system, ..self }
    }
}

/// Where figures go.
pub struct Lines {
    wanted: Vec<String>,
    /// One clock reading.
    pub clock_ns: f64,
}

impl Default for Lines {
    fn default() -> Lines {
        Lines::new()
    }
}

impl Lines {
    /// As the environment says. Prints and writes what machine this is.
    #[must_use]
    pub fn new() -> Lines {
        machine::print();
        let rows = std::env::var("INFERD_BENCH_ROWS").unwrap_or_default();
        let wanted = rows.split([',', ' ']).filter(|w| !w.is_empty()).map(str::to_owned).collect();
        let lines = Lines { wanted, clock_ns: clock_ns() };
        lines.line(&machine::head(lines.clock_ns));
        lines
    }

    /// Whether this row was asked for.
    #[must_use]
    pub fn wants(&self, name: &str) -> bool {
        self.wanted.is_empty() || self.wanted.iter().any(|w| name.contains(w.as_str()))
    }

    /// Appends one line to the file of figures.
    pub fn line(&self, line: &Value) {
        let Some(path) = std::env::var_os("INFERD_BENCH_JSON") else { return };
        let file = std::fs::File::options().create(true).append(true).open(&path);
        if let Err(e) = file.and_then(|mut f| writeln!(f, "{line}")) {
            eprintln!("{}: {e}", path.display());
        }
    }

    /// The heads of the columns.
    pub fn columns(&self) {
        println!(
            "{:<44} {:>9} {:>9} {:>9} {:>9}   {:>9} {:>9} {:>7} {:>10}",
            "round trip (ns)", "p50", "p99", "p99.9", "p99.99", "limit p50", "p99", "ratio", "samples"
        );
    }

    /// A distribution.
    pub fn row(&self, row: Row<'_>, f: &Figures) {
        self.row_with(row, f, Map::new());
    }

    /// A distribution, and more keys for its line.
    pub fn row_with(&self, row: Row<'_>, f: &Figures, more: Map<String, Value>) {
        let [p50, p99, p999, p9999] = [0.5, 0.99, 0.999, 0.9999].map(|q| f.at(q));
        let (limit_p50, limit_p99, kept) = (f.limit_at(0.5), f.limit_at(0.99), f.blocks);
        let name = if row.system == "inferd" { row.title.to_owned() } else { format!("{}, {}", row.title, row.system) };
        println!(
            "{name:<44} {p50:>9.0} {p99:>9.0} {p999:>9.0} {p9999:>9.0}   {limit_p50:>9.0} {limit_p99:>9.0} {:>7.2} {:>10} [{}/{}]",
            f.ratio,
            f.row.len(),
            kept.0,
            kept.1
        );
        let mut line = json!({
            "kind": "row", "row": row.row, "title": row.title, "system": row.system, "system_title": row.system,
            "waits": row.waits, "payload": row.payload, "samples": f.row.len(),
            "p50_ns": p50, "p99_ns": p99, "p999_ns": p999, "p9999_ns": p9999, "max_ns": f.row.max(),
            "limit": row.limit, "limit_p50_ns": limit_p50, "limit_p99_ns": limit_p99, "limit_p999_ns": f.limit_at(0.999),
            "ratio": f.ratio, "blocks_kept": kept.0, "blocks": kept.1, "clock_ns": self.clock_ns, "cdf": cdf_of(&f.row),
        });
        if !f.apart[0].is_empty() {
            line["apart_samples"] = json!(f.apart[0].len());
            line["apart_p50_ns"] = json!(f.apart[0].value_at_quantile(0.5));
            line["apart_p99_ns"] = json!(f.apart[0].value_at_quantile(0.99));
            line["apart_limit_p50_ns"] = json!(f.apart[1].value_at_quantile(0.5));
        }
        more.into_iter().for_each(|(key, value)| line[key] = value);
        self.line(&line);
    }

    /// The limit's own distribution, as a row beside this one.
    pub fn limit(&self, row: Row<'_>, f: &Figures) {
        let line = json!({
            "kind": "row", "row": row.row, "title": row.title, "system": row.limit, "system_title": row.limit,
            "waits": row.waits, "samples": f.limit.len(), "p50_ns": f.limit_at(0.5), "p99_ns": f.limit_at(0.99),
            "p999_ns": f.limit_at(0.999), "p9999_ns": f.limit_at(0.9999), "max_ns": f.limit.max(), "ratio": 1.0,
            "blocks_kept": f.blocks.0, "blocks": f.blocks.1, "cdf": cdf_of(&f.limit),
        });
        self.line(&line);
    }

    /// One number.
    pub fn figure(&self, row: &str, figure: &str, value: f64, unit: &str) {
        println!("{:<60} {value:>12.2} {unit}", format!("{row}: {figure}"));
        self.line(&json!({ "kind": "figure", "row": row, "figure": figure, "value": value, "unit": unit }));
    }

    /// A point of a curve.
    pub fn point(&self, row: &str, series: &str, x: f64, y: f64, unit: &str) {
        println!("{:<60} {x:>9} {y:>12.2} {unit}", format!("{row}: {series}"));
        self.line(&json!({ "kind": "point", "row": row, "series": series, "x": x, "y": y, "unit": unit }));
    }

    /// Whether a bar holds: `value <= limit`.
    pub fn bar(&self, row: &str, bar: &str, value: f64, limit: f64) {
        self.bar_line(row, bar, value, limit, value <= limit);
    }

    /// Whether a bar holds that wants much: `value >= limit`.
    pub fn bar_at_least(&self, row: &str, bar: &str, value: f64, limit: f64) {
        self.bar_line(row, bar, value, limit, value >= limit);
    }

    fn bar_line(&self, row: &str, bar: &str, value: f64, limit: f64, holds: bool) {
        let verdict = if holds { "holds" } else { "MISSED" };
        println!("    {verdict}: {bar}: {value:.2} of {limit:.2} ({:.2})", value / limit);
        self.line(&json!({ "kind": "bar", "row": row, "bar": bar, "value": value, "limit": limit, "holds": holds }));
    }

    /// A row that cannot run.
    pub fn skip(&self, row: &str, system: &str, why: &str) {
        println!("SKIP {row}: {why}");
        self.line(&json!({ "kind": "skip", "row": row, "system": system, "why": why }));
    }
}
