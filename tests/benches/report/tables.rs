//! The page's tables, one section a marker.

use crate::data::{Data, digits, number, system_title, text, time};
use serde_json::Value;

/// Every section by the name of its marker.
pub fn sections(data: &Data, plots: &[&str]) -> Vec<(&'static str, String)> {
    let found = |name: &str, words: &str| {
        if plots.contains(&name) { format!("![{words}](plots/{name})\n\n") } else { String::new() }
    };
    let together = |parts: &[String]| parts.concat();
    vec![
        ("machine", machine(data)),
        ("bars", bars(data)),
        (
            "round trips",
            together(&[
                found("ratios.svg", "p50 of each system in ping-pongs"),
                round_trips(data),
                found("cdf-echo64.svg", "distribution of the round trip of 64 bytes"),
                found("cdf-go2.svg", "distribution of a step of the Go2 policy"),
            ]),
        ),
        ("in-process", in_process(data)),
        ("open loop", together(&[found("open-loop.svg", "latency by rate"), open_loop(data)])),
        (
            "scaling",
            together(&[
                found("sessions.svg", "throughput by requests in flight"),
                curve(data, "sessions", "requests in flight", "requests a second"),
                curve(data, "sessions_wait", "requests in flight", "p50 from submitting to the reply"),
                curve(data, "idle", "idle sessions", "one active session beside them"),
                curve(data, "models", "models", "one model of several"),
                found("payload.svg", "p50 by bytes"),
                curve(data, "payload", "bytes", "p50"),
                found("waitv.svg", "p50 by sessions asleep"),
                curve(data, "waitv", "sessions", "p50"),
                curve(data, "waitv_cpu", "sessions", "worker's processor time a call"),
                others(data),
            ]),
        ),
        ("costs", figures(data)),
        ("reloads", together(&[found("reloads.svg", "latency over time during reloads"), reloads(data)])),
        ("priorities", priorities(data)),
        ("skipped", skipped(data)),
    ]
}

const NOTHING: &str = "Not measured in this run.\n";

fn or_nothing(table: String, rows: usize) -> String {
    if rows == 0 { NOTHING.to_owned() } else { table + "\n" }
}

fn cell(line: &Value, key: &str) -> String {
    number(line, key).map_or_else(String::new, time)
}

fn plain(line: &Value, key: &str) -> String {
    number(line, key).map_or_else(String::new, digits)
}

fn table(head: &str, rows: impl Iterator<Item = String>) -> String {
    let rule = " --- |".repeat(head.matches('|').count() - 1);
    let rows: Vec<String> = rows.collect();
    or_nothing(format!("{head}\n|{rule}\n{}", rows.concat()), rows.len())
}

fn machine(data: &Data) -> String {
    let heads: Vec<&Value> = data.of("head").collect();
    let (Some(first), Some(last)) = (heads.first(), heads.last()) else { return NOTHING.to_owned() };
    let clocks = heads.iter().filter_map(|h| number(h, "clock_ns"));
    let (low, high) = clocks.fold((f64::INFINITY, 0.0f64), |(l, h), c| (l.min(c), h.max(c)));
    let steal = number(last, "steal_ticks").unwrap_or(0.0) - number(first, "steal_ticks").unwrap_or(0.0);
    let loads: Vec<&str> = heads.iter().filter_map(|h| text(h, "load").split(' ').next()).collect();
    format!(
        "| | |\n| --- | --- |\n| machine | {} |\n| topology | {} |\n| kernel, governor, clock | {}, {}, {} |\n| inferd, rustc | {}, {} |\n\
         | one clock reading | {low:.1} to {high:.1} ns |\n| load when each program began | {} |\n\
         | stolen by the hypervisor meanwhile | {steal:.0} ticks of 10 ms |\n| counts | scale {} |\n",
        text(first, "machine"),
        text(first, "topology"),
        text(first, "kernel"),
        text(first, "governor"),
        text(first, "clocksource"),
        text(first, "version"),
        text(first, "rustc"),
        loads.join(", "),
        plain(first, "scale"),
    )
}

fn bars(data: &Data) -> String {
    let mut all = Vec::new();
    for line in data.of("bar") {
        let bar = text(line, "bar");
        let in_ns = bar.ends_with(", ns");
        let value = |key: &str| number(line, key).map_or_else(String::new, if in_ns { time } else { digits });
        let words = bar.trim_end_matches(", ns").to_owned();
        all.push((text(line, "row").to_owned(), words, value("value"), value("limit"), line["holds"] == true));
    }
    // As the page goes: the rows that everything stands on first.
    let order =
        ["echo64", "echo1k", "asleep", "go2", "torch", "image_in_place", "sessions", "idle", "open_loop/1000Hz"];
    all.sort_by_key(|bar: &(String, String, String, String, bool)| order.iter().position(|row| *row == bar.0));
    let rows = all.into_iter().map(|(row, bar, value, limit, holds)| {
        format!("| {row} | {bar} | {value} | {limit} | {} |\n", if holds { "held" } else { "**missed**" })
    });
    table("| row | bar | measured | the bar | held? |", rows)
}

const ROW_HEAD: &str = "| row | system | waits | p50 | p99 | p99.9 | p99.99 | limit p50, p99 | p50 in limits | p50 in inferd's | samples | blocks kept | the others' p50, limit |";

fn round_trip(line: &Value) -> String {
    let limit = match number(line, "limit_p50_ns") {
        Some(p50) => format!("{}, {}", time(p50), cell(line, "limit_p99_ns")),
        None => String::new(),
    };
    let apart = match number(line, "apart_p50_ns") {
        Some(p50) => format!("{}, {}", time(p50), cell(line, "apart_limit_p50_ns")),
        None => String::new(),
    };
    let kept = format!("{} of {}", line["blocks_kept"], line["blocks"]);
    format!(
        "| {} | {} | {} | {} | {} | {} | {} | {limit} | {} | {} | {} | {kept} | {apart} |\n",
        text(line, "title"),
        system_title(line),
        text(line, "waits"),
        cell(line, "p50_ns"),
        cell(line, "p99_ns"),
        cell(line, "p999_ns"),
        cell(line, "p9999_ns"),
        plain(line, "ratio"),
        plain(line, "inferd_ratio"),
        line["samples"],
    )
}

fn is_main(row: &str) -> bool {
    ["echo64", "echo1k", "image", "go2", "asleep", "torch"].contains(&row) || row.starts_with("recording/")
}

/// One line per row and system, in the order in which they were measured.
fn distributions(data: &Data, wanted: impl Fn(&str) -> bool) -> String {
    let mut rows: Vec<&str> = Vec::new();
    for line in data.of("row").filter(|l| wanted(text(l, "row"))) {
        if !rows.contains(&text(line, "row")) {
            rows.push(text(line, "row"));
        }
    }
    table(ROW_HEAD, rows.into_iter().flat_map(|row| data.row(row)).map(round_trip))
}

fn round_trips(data: &Data) -> String {
    distributions(data, is_main)
}

fn others(data: &Data) -> String {
    distributions(data, |row| !is_main(row) && !row.starts_with("open_loop/"))
}

fn in_process(data: &Data) -> String {
    let mut rows: Vec<&str> = data.of("onnx").map(|l| text(l, "row")).collect();
    rows.dedup();
    let lines = rows.into_iter().map(|row| {
        let of = |system: &str| data.of("onnx").find(|l| text(l, "row") == row && text(l, "system") == system);
        let pair = |backend: &str| {
            let (Some(direct), Some(served)) = (of(&format!("{backend} in-process")), of(&format!("{backend} served")))
            else {
                return "| | | |".to_owned();
            };
            let p50 = |l: &Value| number(l, "p50_ns").unwrap_or(f64::NAN);
            let adds = p50(served) - p50(direct);
            let (limit, percent) = (number(served, "limit_p50_ns").unwrap_or(f64::NAN), adds / p50(direct) * 100.0);
            let both = |l: &Value| format!("{}, {}", cell(l, "p50_ns"), cell(l, "p99_ns"));
            format!("| {} | {} | {adds:.0} ns, {percent:.1} %, {:.1} |", both(direct), both(served), adds / limit)
        };
        format!("| {} {}{}\n", row.trim_start_matches("onnx/"), pair("tract"), &pair("ort")[1..])
    });
    table(
        "| model | tract in-process p50, p99 | tract served | tract: served adds (ping-pongs) | ort in-process p50, p99 | ort served | ort: served adds (ping-pongs) |",
        lines,
    )
}

fn open_loop(data: &Data) -> String {
    let rows = data.of("row").filter(|l| text(l, "row").starts_with("open_loop/")).map(|l| {
        let cpu = |key: &str| number(l, key).map_or_else(String::new, |ns| format!("{:.1} us", ns / 1e3));
        // A quantile needs some samples beyond it.
        let p999 = if number(l, "samples") >= Some(3000.0) { cell(l, "p999_ns") } else { "-".into() };
        format!(
            "| {} Hz | {} | {} | {} | {p999} | {} | {} | {} | {} | {} % | {}, {} | {} | {} |\n",
            plain(l, "rate_hz"),
            system_title(l),
            cell(l, "p50_ns"),
            cell(l, "p99_ns"),
            cell(l, "max_ns"),
            plain(l, "ratio"),
            cpu("cpu_caller_ns"),
            cpu("cpu_server_ns"),
            plain(l, "cpu_percent"),
            cell(l, "timer_p50_ns"),
            cell(l, "timer_p999_ns"),
            l["samples"],
            l["missed"],
        )
    });
    table(
        "| rate | system | p50 | p99 | p99.9 | max | p50 in limits | caller's processor time a call | server's | both, of one CPU | timer late p50, p99.9 | samples | given up |",
        rows,
    )
}

/// A curve as a table: x down, series across.
fn curve(data: &Data, row: &str, x_title: &str, what: &str) -> String {
    let curves = data.curves(row);
    let unit = data.of("point").find(|l| text(l, "row") == row).map_or("", |l| text(l, "unit"));
    let Some((_, first)) = curves.first() else { return String::new() };
    let names: Vec<&str> = curves.iter().map(|c| c.0.as_str()).collect();
    let value = |y: f64| if unit == "ns" { time(y) } else { digits(y) };
    let rows = first.iter().enumerate().map(|(i, (x, _))| {
        let cells = curves.iter().map(|c| c.1.get(i).map_or_else(String::new, |p| value(p.1)));
        format!("| {x} | {} |\n", cells.collect::<Vec<_>>().join(" | "))
    });
    format!("{what}:\n\n{}", table(&format!("| {x_title} | {} |", names.join(" | ")), rows))
}

fn figures(data: &Data) -> String {
    let rows = data.of("figure").map(|l| {
        format!("| {} | {} | {} {} |\n", text(l, "row"), text(l, "figure"), plain(l, "value"), text(l, "unit"))
    });
    table("| row | figure | value |", rows)
}

fn reloads(data: &Data) -> String {
    let rows = data.of("reloads").map(|l| {
        let counts = ["reloads", "requests", "failed", "wrong"].map(|key| l[key].to_string());
        format!(
            "| {} | {} | {}, {}, {} | {}, {}, {} | {}, {}, {} | {}, {} | {} |\n",
            text(l, "row"),
            counts.join(", "),
            cell(l, "quiet_p50_ns"),
            cell(l, "quiet_p99_ns"),
            cell(l, "quiet_p999_ns"),
            cell(l, "p50_ns"),
            cell(l, "p99_ns"),
            cell(l, "p999_ns"),
            digits(number(l, "p50_ns").unwrap_or(f64::NAN) / number(l, "quiet_p50_ns").unwrap_or(f64::NAN)),
            plain(l, "p99_ratio"),
            plain(l, "p999_ratio"),
            cell(l, "gap_p50_ns"),
            cell(l, "gap_max_ns"),
            cell(l, "reload_p50_ns"),
        )
    });
    table(
        "| row | reloads, requests, failed, wrong | quiet p50, p99, p99.9 | during reloads | over quiet | gap between generations p50, max | a reload |",
        rows,
    )
}

fn priorities(data: &Data) -> String {
    let rows = data.of("priority").map(|l| {
        let name = text(l, "row").rsplit(": ").next().unwrap_or_default();
        format!(
            "| {name} | {} | {} | {} | {} of {} | {} |\n",
            cell(l, "p50_ns"),
            cell(l, "p99_ns"),
            cell(l, "max_ns"),
            l["late"],
            l["requests"],
            l["failed"]
        )
    });
    table("| | p50 | p99 | max | over 5 ms | failed |", rows)
}

fn skipped(data: &Data) -> String {
    let all: Vec<String> = data
        .of("skip")
        .map(|l| format!("- {}, {}: {}\n", text(l, "row"), text(l, "system"), text(l, "why").replace('\n', " ")))
        .collect();
    if all.is_empty() { "Nothing was skipped.\n".to_owned() } else { all.concat() }
}
