//! Which plots there are, and from which lines.

use crate::charts::{self, Axis, Line, Lines, Panel};
use crate::data::{Data, digits, number, system_title, text, time};
use std::error::Error;
use std::path::Path;

/// The rows that peers have too.
const SHARED: [&str; 4] = ["echo64", "echo1k", "image", "go2"];

/// Draws what there are lines for; the names of the files.
pub fn draw(data: &Data, folder: &Path) -> Result<Vec<&'static str>, Box<dyn Error>> {
    let mut drawn = Vec::new();
    let mut add = |name: &'static str, chart: Option<Lines>| -> Result<(), Box<dyn Error>> {
        if let Some(chart) = chart.filter(|c| !c.lines.is_empty()) {
            charts::lines(&folder.join(name), &chart)?;
            drawn.push(name);
        }
        Ok(())
    };
    add("cdf-echo64.svg", cdf(data, "echo64", "Round trip of 64 bytes: the whole distribution"))?;
    add("cdf-go2.svg", cdf(data, "go2", "A step of the Go2 policy: the whole distribution"))?;
    add("open-loop.svg", open_loop(data))?;
    add("payload.svg", payload(data))?;
    add("sessions.svg", sessions(data))?;
    add("waitv.svg", waitv(data))?;
    add("reloads.svg", reloads(data))?;
    let panels = panels(data);
    if !panels.is_empty() {
        charts::bars(&folder.join("ratios.svg"), "p50 in ping-pongs of the same run (logarithmic)", &panels)?;
        drawn.push("ratios.svg");
    }
    Ok(drawn)
}

fn log_time(x: f64) -> String {
    time(10f64.powf(x))
        .replace(".0 ", " ")
        .replace("1000000 us", "1 s")
        .replace("1000 us", "1 ms")
        .replace("1000 ns", "1 us")
}

/// The powers of ten around all values.
fn decades<'a>(lines: impl Iterator<Item = &'a Line>) -> (f64, f64) {
    let values = lines.flat_map(|l| l.1.iter().map(|p| p.1));
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), y| (l.min(y), h.max(y)));
    (low.floor(), high.ceil().max(low.floor() + 1.0))
}

fn log_axis(title: &'static str, lines: &[Line], label: fn(f64) -> String) -> Axis {
    let (from, to) = decades(lines.iter());
    Axis { title, from, to, ticks: (to - from) as usize + 1, label }
}

fn nines(x: f64) -> String {
    match x.round() as i32 {
        0 => "0 %".into(),
        1 => "90 %".into(),
        n => format!("99{}{} %", if n > 2 { "." } else { "" }, "9".repeat(n as usize - 2)),
    }
}

/// Quantiles on an axis that is logarithmic towards the tail: each step is ten times rarer.
fn cdf(data: &Data, row: &str, title: &'static str) -> Option<Lines> {
    let mut lines: Vec<(f64, Line)> = Vec::new();
    for line in data.row(row) {
        let points: Vec<(f64, f64)> = line["cdf"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|p| {
                let (q, ns) = (p[0].as_f64()?, p[1].as_f64()?);
                (q < 1.0).then(|| (-(1.0 - q).log10(), ns.max(1.0).log10()))
            })
            .collect();
        let p50 = number(line, "p50_ns")?;
        lines.push((p50, (system_title(line).to_owned(), points)));
    }
    lines.sort_by(|a, b| b.0.total_cmp(&a.0));
    let lines: Vec<Line> = lines.into_iter().map(|l| l.1).filter(|l| !l.1.is_empty()).collect();
    let last = lines.iter().flat_map(|l| &l.1).map(|p| p.0).fold(3.0, f64::max).ceil();
    let y = log_axis("round trip", &lines, log_time);
    let x = Axis {
        title: "quantile: each step is ten times rarer",
        from: 0.0,
        to: last,
        ticks: last as usize + 1,
        label: nines,
    };
    Some(Lines { title, x, y, lines, shades: ("", Vec::new()), marks: false })
}

fn open_loop(data: &Data) -> Option<Lines> {
    let mut lines: Vec<Line> = Vec::new();
    for (key, words) in [("p50_ns", "p50"), ("p99_ns", "p99"), ("p999_ns", "p99.9")] {
        for system in ["inferd", "futex ping-pong"] {
            let points =
                data.of("row").filter(|l| text(l, "row").starts_with("open_loop/") && text(l, "system") == system);
            let points = points.filter(|l| key != "p999_ns" || number(l, "samples") >= Some(3000.0));
            let points = points.filter_map(|l| Some((number(l, "rate_hz")?.log10(), number(l, key)?.max(1.0).log10())));
            lines.push((format!("{system}, {words}"), points.collect()));
        }
    }
    lines.retain(|l| !l.1.is_empty());
    if lines.is_empty() {
        return None;
    }
    let y = log_axis("round trip", &lines, log_time);
    let x = Axis { title: "calls a second", from: 1.0, to: 3.25, ticks: 3, label: |x| format!("{:.0}", 10f64.powf(x)) };
    Some(Lines {
        title: "Open loop, default settings, nothing pinned",
        x,
        y,
        lines,
        shades: ("", Vec::new()),
        marks: true,
    })
}

fn bytes(x: f64) -> String {
    let bytes = 2f64.powf(x);
    match bytes {
        b if b < 1024.0 => format!("{b:.0} B"),
        b if b < 1_048_576.0 => format!("{:.0} KiB", b / 1024.0),
        b => format!("{:.0} MiB", b / 1_048_576.0),
    }
}

/// A row's curves with the logarithm to the base 2 on x, and to the base 10 on y.
fn curves(data: &Data, row: &str) -> Vec<Line> {
    let log = |(name, points): (String, Vec<(f64, f64)>)| {
        (name, points.into_iter().map(|(x, y)| (x.max(1.0).log2(), y.max(1e-3).log10())).collect())
    };
    data.curves(row).into_iter().map(log).collect()
}

fn payload(data: &Data) -> Option<Lines> {
    let lines = curves(data, "payload");
    (!lines.is_empty()).then(|| Lines {
        title: "Bytes written in place, beside the same copy",
        x: Axis { title: "request", from: 4.0, to: 23.0, ticks: 11, label: bytes },
        y: log_axis("p50", &lines, log_time),
        lines,
        shades: ("", Vec::new()),
        marks: true,
    })
}

fn sessions(data: &Data) -> Option<Lines> {
    let lines: Vec<Line> = data
        .curves("sessions")
        .into_iter()
        .map(|(name, points)| (name, points.into_iter().map(|(x, y)| (x.log2(), y / 1e6)).collect()))
        .collect();
    let most = lines.iter().flat_map(|l| &l.1).map(|p| p.1).fold(0.1, f64::max);
    (!lines.is_empty()).then_some(Lines {
        title: "Throughput of one executor",
        x: Axis {
            title: "requests in flight",
            from: 0.0,
            to: 6.0,
            ticks: 7,
            label: |x| format!("{:.0}", 2f64.powf(x)),
        },
        y: Axis {
            title: "million requests a second",
            from: 0.0,
            to: most * 1.1,
            ticks: 6,
            label: |y| format!("{y:.1}"),
        },
        lines,
        shades: ("", Vec::new()),
        marks: true,
    })
}

fn waitv(data: &Data) -> Option<Lines> {
    let lines = curves(data, "waitv");
    (!lines.is_empty()).then(|| Lines {
        title: "An executor that sleeps over many sessions",
        x: Axis { title: "sessions", from: 0.0, to: 7.0, ticks: 8, label: |x| format!("{:.0}", 2f64.powf(x)) },
        y: log_axis("p50 of a call that wakes it", &lines, log_time),
        lines,
        shades: ("", Vec::new()),
        marks: true,
    })
}

/// The longest row of reloads that ran on more than one CPU, else any.
fn reloads(data: &Data) -> Option<Lines> {
    let all: Vec<_> = data.of("series").collect();
    let line = all.iter().find(|l| text(l, "series").contains("two CPUs")).or(all.first())?;
    let numbers = |key: &str| -> Vec<f64> {
        line[key].as_array().into_iter().flatten().filter_map(serde_json::Value::as_f64).collect()
    };
    let t = numbers("t_ms");
    let of = |key: &str| -> Vec<(f64, f64)> {
        let points = t.iter().map(|ms| ms / 1e3).zip(numbers(key));
        points.filter(|(_, us)| *us > 0.0).map(|(s, us)| (s, (us * 1e3).log10())).collect()
    };
    let lines: Vec<Line> =
        vec![("slowest in 10 ms".into(), of("max_us")), ("inferd, p50 in 10 ms".into(), of("p50_us"))];
    let shades = line["reloads_ms"].as_array().into_iter().flatten();
    let shades = shades.filter_map(|r| Some((r[0].as_f64()? / 1e3, r[1].as_f64()? / 1e3))).collect();
    let end = t.last().copied().unwrap_or(1000.0) / 1e3;
    Some(Lines {
        title: if text(line, "series").contains("two CPUs") {
            "Four clients at 1 kHz while a policy is reloaded, on two CPUs"
        } else {
            "Four clients at 1 kHz while a policy is reloaded, on one CPU"
        },
        x: Axis { title: "seconds", from: 0.0, to: end.ceil(), ticks: 7, label: |x| format!("{x:.0}") },
        y: log_axis("latency", &lines, log_time),
        lines,
        shades: ("a reload", shades),
        marks: false,
    })
}

/// Bars of each shared row that has figures: the fastest first.
fn panels(data: &Data) -> Vec<Panel> {
    let mut panels = Vec::new();
    for row in SHARED {
        let all = data.row(row);
        let Some(title) = all.first().map(|l| text(l, "title").to_owned()) else { continue };
        let mut bars: Vec<(String, f64, String)> = all
            .iter()
            .filter(|l| text(l, "system") != "ping-pong")
            .filter_map(|l| {
                let (ratio, p50) = (number(l, "ratio")?, number(l, "p50_ns")?);
                Some((system_title(l).to_owned(), ratio, format!("{} ({})", digits(ratio), time(p50))))
            })
            .collect();
        bars.sort_by(|a, b| a.1.total_cmp(&b.1));
        panels.push(Panel { title, bars });
    }
    panels
}
