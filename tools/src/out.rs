//! Text for people: tables, units, and strings of others made harmless.
//!
//! Everything that a command prints goes through [`print`], in one piece, so that a reader who closes
//! the pipe early ends the program quietly. Names and messages come from models and peers; [`plain`]
//! takes the control characters out of them before a terminal sees them.

use comfy_table::{CellAlignment, LineStyle, Table, TableStyle};
use std::io::Write;

/// Writes to standard output; a closed pipe is not an error.
///
/// # Errors
/// The system's, when standard output cannot be written (a full disk).
pub fn print(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// A string of somebody else without control characters; line breaks stay.
#[must_use]
pub fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\n' {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// Where a column's text stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    /// Words.
    Left(&'static str),
    /// Numbers.
    Right(&'static str),
}

const STYLE: TableStyle = TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));

/// A table without borders, each line ending in a line break.
#[must_use]
pub fn table(columns: &[Column], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(STYLE);
    let title = |c: &Column| match *c {
        Column::Left(t) | Column::Right(t) => t,
    };
    if columns.iter().any(|c| !title(c).is_empty()) {
        table.set_header(columns.iter().map(title).collect::<Vec<_>>());
    }
    for row in rows {
        table.add_row(row.iter().map(|cell| plain(cell)).collect::<Vec<_>>());
    }
    for (i, column) in columns.iter().enumerate() {
        if let Some(c) = table.column_mut(i) {
            c.set_padding((0, if i + 1 == columns.len() { 0 } else { 2 }));
            c.set_cell_alignment(match column {
                Column::Left(_) => CellAlignment::Left,
                Column::Right(_) => CellAlignment::Right,
            });
        }
    }
    table.lines().fold(String::new(), |out, line| out + line.trim_end() + "\n")
}

/// `1.4 MiB`.
#[must_use]
pub fn bytes(n: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let (mut value, mut unit) = (n as f64 / 1024.0, 0);
    while value >= 1023.95 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", units[unit])
}

/// Nanoseconds in the unit that reads best: `812 ns`, `12.3 us`, `1.42 ms`, `2.10 s`.
#[must_use]
pub fn nanoseconds(ns: u64) -> String {
    let (value, unit) = match ns {
        0..1_000 => return format!("{ns} ns"),
        1_000..1_000_000 => (ns as f64 / 1e3, "us"),
        1_000_000..1_000_000_000 => (ns as f64 / 1e6, "ms"),
        _ => (ns as f64 / 1e9, "s"),
    };
    if value < 10.0 { format!("{value:.2} {unit}") } else { format!("{value:.1} {unit}") }
}

/// Nanoseconds as microseconds, with as many decimals as mean something.
#[must_use]
pub fn microseconds(ns: f64) -> String {
    let us = ns / 1e3;
    if us < 1000.0 { format!("{us:.2}") } else { format!("{us:.1}") }
}

/// A span of time in two units: `42.1 s`, `3 min 12 s`, `5 h 03 min`, `2 d 4 h`.
#[must_use]
pub fn span(seconds: f64) -> String {
    let s = seconds.max(0.0) as u64;
    match s {
        0..60 => format!("{:.1} s", seconds.max(0.0)),
        60..3_600 => format!("{} min {:02} s", s / 60, s % 60),
        3_600..86_400 => format!("{} h {:02} min", s / 3_600, s % 3_600 / 60),
        _ => format!("{} d {} h", s / 86_400, s % 86_400 / 3_600),
    }
}

/// `1 234 567`.
#[must_use]
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well_at_the_edges_of_their_units() {
        assert_eq!(
            [0, 1023, 1024, 1536, 1 << 20, 3 << 30].map(bytes).join(" "),
            "0 B 1023 B 1.0 KiB 1.5 KiB 1.0 MiB 3.0 GiB"
        );
        let ns = [999, 1_000, 12_345, 1_420_000, 2_100_000_000].map(nanoseconds);
        assert_eq!(ns.join(" "), "999 ns 1.00 us 12.3 us 1.42 ms 2.10 s");
        let spans = [0.5, 42.12, 192.0, 18_180.0, 190_000.0].map(span);
        assert_eq!(spans.join(" | "), "0.5 s | 42.1 s | 3 min 12 s | 5 h 03 min | 2 d 4 h");
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped).join("|"), "0|999|1 000|1 234 567");
    }

    #[test]
    fn a_table_aligns_numbers_and_disarms_escape_sequences() {
        let columns = [Column::Left("model"), Column::Right("sessions")];
        let rows = vec![vec!["go2".into(), "3".into()], vec!["evil\u{1b}[2J".into(), "12".into()]];
        let want = "\
model           sessions
────────────────────────
go2                    3
evil\\u{1b}[2J         12
";
        assert_eq!(table(&columns, rows), want);
    }
}
