//! The lines of a run, by kind.

use serde_json::Value;
use std::error::Error;
use std::path::Path;

/// All lines, in the order in which they were written.
pub struct Data {
    lines: Vec<Value>,
}

/// A text of a line; empty where it has none.
pub fn text<'a>(line: &'a Value, key: &str) -> &'a str {
    line[key].as_str().unwrap_or_default()
}

/// A number of a line.
pub fn number(line: &Value, key: &str) -> Option<f64> {
    line[key].as_f64()
}

impl Data {
    /// Reads them; a line that is no JSON is an error that says which.
    pub fn read(path: &Path) -> Result<Data, Box<dyn Error>> {
        let file = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let parse = |(i, line): (usize, &str)| {
            serde_json::from_str(line).map_err(|e| format!("{}:{}: {e}", path.display(), i + 1))
        };
        let lines = file.lines().enumerate().filter(|(_, l)| !l.is_empty()).map(parse).collect::<Result<_, _>>()?;
        Ok(Data { lines })
    }

    /// Lines of a kind.
    pub fn of<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.lines.iter().filter(move |l| text(l, "kind") == kind)
    }

    /// Distributions of one row, inferd's first.
    pub fn row(&self, row: &str) -> Vec<&Value> {
        let mut all: Vec<&Value> = self.of("row").filter(|l| text(l, "row") == row).collect();
        // Peers measure inferd beside themselves; its own bench has more samples of it.
        let mut seen = Vec::new();
        all.retain(|l| {
            let system = text(l, "system");
            let is_new = !seen.contains(&system);
            seen.push(system);
            is_new
        });
        all.sort_by_key(|l| text(l, "system") != "inferd");
        all
    }

    /// The points of a curve, by series in the order of their appearance.
    pub fn curves(&self, row: &str) -> Vec<(String, Vec<(f64, f64)>)> {
        let mut all: Vec<(String, Vec<(f64, f64)>)> = Vec::new();
        for line in self.of("point").filter(|l| text(l, "row") == row) {
            let (Some(x), Some(y)) = (number(line, "x"), number(line, "y")) else { continue };
            let series = text(line, "series");
            match all.iter_mut().find(|(name, _)| name == series) {
                Some((_, points)) => points.push((x, y)),
                None => all.push((series.to_owned(), vec![(x, y)])),
            }
        }
        all
    }
}

/// What a line's system is called.
pub fn system_title(line: &Value) -> &str {
    match text(line, "system_title") {
        "" => text(line, "system"),
        title => title,
    }
}

/// Nanoseconds in a unit that is easy to read, with three digits or more.
pub fn time(ns: f64) -> String {
    match ns {
        ns if ns < 10_000.0 => format!("{ns:.0} ns"),
        ns if ns < 100_000.0 => format!("{:.1} us", ns / 1e3),
        ns if ns < 10_000_000.0 => format!("{:.0} us", ns / 1e3),
        ns if ns < 100_000_000.0 => format!("{:.1} ms", ns / 1e6),
        ns => format!("{:.0} ms", ns / 1e6),
    }
}

/// A number with three digits.
pub fn digits(value: f64) -> String {
    match value.abs() {
        v if v < 10.0 => format!("{value:.2}"),
        v if v < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}
