//! The daemon's answers as text: pure functions from an answer to what an operator reads.

use crate::out::{Column, bytes, grouped, nanoseconds, plain, span, table};
use inferd_client::control::{
    Done, ModelAnswer, SessionAnswer, StatsAnswer, StatusAnswer, ValidateAnswer, VersionAnswer,
};
use inferd_client::{Backing, Signature, TensorSpec};
use std::collections::BTreeMap;

/// Two columns without a title: what, and its value.
fn facts(rows: Vec<(&str, String)>) -> String {
    let or_dash = |value: String| if value.is_empty() { "-".to_owned() } else { value };
    let rows = rows.into_iter().map(|(what, value)| vec![what.to_owned(), or_dash(value)]);
    table(&[Column::Left(""), Column::Left("")], rows)
}

/// The daemon at a glance.
#[must_use]
pub fn status(s: &StatusAnswer) -> String {
    let models: Vec<String> = s.models.iter().map(|(state, n)| format!("{n} {state}")).collect();
    let backing = match s.backing {
        Backing::Memfd => "memfd (sealed)",
        Backing::Posix => "posix (crash isolation only)",
    };
    let ready = s.ready_ms.map_or(String::new(), |ms| format!(", ready after {ms:.0} ms"));
    facts(vec![
        ("state", s.state.clone()),
        ("version", s.version.clone()),
        ("pid", s.pid.to_string()),
        ("up", format!("{}{ready}", span(s.uptime_s))),
        ("models", if models.is_empty() { "none".to_owned() } else { models.join(", ") }),
        ("sessions", s.sessions.to_string()),
        ("runtime directory", s.runtime_dir.clone()),
        ("state directory", s.state_dir.clone().unwrap_or_else(|| "none: no history, no store".to_owned())),
        ("backing", backing.to_owned()),
        ("resident memory", bytes(s.rss_bytes)),
    ])
}

/// All models, a line each; then what is wrong with any of them.
#[must_use]
pub fn models(models: &[ModelAnswer]) -> String {
    if models.is_empty() {
        return "no models; add a [models.NAME] section to the configuration, or `inferctl load`\n".to_owned();
    }
    let columns = [
        Column::Left("model"),
        Column::Left("state"),
        Column::Right("generation"),
        Column::Left("kept"),
        Column::Left("backend"),
        Column::Left("queue"),
        Column::Right("sessions"),
        Column::Right("pid"),
        Column::Right("deaths"),
        Column::Right("memory"),
    ];
    let or_dash = |v: Option<String>| v.unwrap_or_else(|| "-".to_owned());
    let rows = models.iter().map(|m| {
        vec![
            m.model.clone(),
            m.state.clone(),
            m.generation.to_string(),
            or_dash(
                m.kept_generation
                    .map(|g| g.to_string() + if m.kept.as_deref() == Some("disk") { " (disk)" } else { "" }),
            ),
            m.backend.clone(),
            m.queue.name().to_owned(),
            m.sessions.to_string(),
            or_dash(m.worker_pid.map(|p| p.to_string())),
            m.worker_deaths.to_string(),
            bytes(m.worker_rss_bytes),
        ]
    });
    let mut out = table(&columns, rows);
    for m in models {
        for note in notes(m) {
            out += &format!("{}: {}\n", plain(&m.model), plain(&note));
        }
    }
    out
}

/// What an operator should know beyond the line of the table.
fn notes(m: &ModelAnswer) -> Vec<String> {
    let live = m.live_path.iter().map(|p| format!("serves {p}, the configuration says {}", m.path));
    let drift = m.drift.iter().cloned();
    m.message
        .iter()
        .cloned()
        .chain(live)
        .chain(drift)
        .chain(m.warnings.iter().map(|w| format!("warning: {w}")))
        .collect()
}

/// One model, with everything.
#[must_use]
pub fn model(m: &ModelAnswer) -> String {
    let how = if m.kept.as_deref() == Some("disk") { " on disk" } else { "" };
    let kept = m.kept_generation.map_or(String::new(), |g| format!(" (generation {g} kept{how} for rollback)"));
    let worker = m.worker_pid.map_or("none".to_owned(), |pid| format!("pid {pid}, {}", bytes(m.worker_rss_bytes)));
    let mut rows = vec![
        ("model", m.model.clone()),
        ("state", m.state.clone()),
        ("generation", format!("{}{kept}", m.generation)),
        ("backend", m.backend.clone()),
        ("path", m.path.clone()),
        ("sha256", m.sha256.clone()),
        ("queue", format!("{}, at most {} slots", m.queue.name(), m.slots)),
        ("sessions", m.sessions.to_string()),
        ("worker", worker),
        ("worker deaths", m.worker_deaths.to_string()),
        ("load and warm-up", format!("{:.1} ms", m.load_ms)),
    ];
    rows.extend(notes(m).into_iter().map(|note| ("note", note)));
    let mut out = facts(rows);
    if let Some(s) = &m.signature {
        out += &format!("\n{}", signature(s));
    }
    out
}

/// Inputs and outputs, a line each.
#[must_use]
pub fn signature(s: &Signature) -> String {
    let columns = [
        Column::Left("tensor"),
        Column::Left("name"),
        Column::Left("dtype"),
        Column::Left("shape"),
        Column::Right("bytes"),
        Column::Left("elements"),
    ];
    let row = |side: &str, t: &TensorSpec| {
        let dims: Vec<String> = t.shape.iter().enumerate().map(|(i, d)| dimension(t, i, *d)).collect();
        let elements: Vec<&str> = t.elements.lines().take(3).collect();
        let more = if t.elements.lines().nth(3).is_some() { ", ..." } else { "" };
        vec![
            side.to_owned(),
            t.name.clone(),
            t.dtype.name().to_owned(),
            format!("[{}]", dims.join(", ")),
            t.bytes().to_string(),
            elements.join(", ") + more,
        ]
    };
    let rows = s.inputs.iter().map(|t| row("input", t)).chain(s.outputs.iter().map(|t| row("output", t)));
    let state = if s.stateful { "keeps state between the steps of a session\n" } else { "" };
    table(&columns, rows) + state
}

fn dimension(t: &TensorSpec, axis: usize, length: u64) -> String {
    if t.time_axis == Some(axis as u32) { format!("{length} (time)") } else { length.to_string() }
}

/// All sessions.
#[must_use]
pub fn sessions(sessions: &[SessionAnswer]) -> String {
    if sessions.is_empty() {
        return "no sessions\n".to_owned();
    }
    let columns = [
        Column::Right("session"),
        Column::Left("model"),
        Column::Right("uid"),
        Column::Right("pid"),
        Column::Left("queue"),
        Column::Right("slots"),
        Column::Right("regions"),
        Column::Right("age"),
    ];
    let row = |s: &SessionAnswer| {
        vec![
            s.session.to_string(),
            s.model.clone(),
            s.uid.to_string(),
            s.pid.to_string(),
            s.queue.name().to_owned(),
            s.slots.to_string(),
            bytes(s.region_bytes),
            span(s.age_s),
        ]
    };
    table(&columns, sessions.iter().map(row))
}

/// All limits.
#[must_use]
pub fn limits(limits: &BTreeMap<String, u64>) -> String {
    let rows = limits.iter().map(|(name, value)| {
        // The unit ends the name, or stands before its `max`.
        let size = name.to_lowercase();
        let read = if size.contains("bytes") && *value >= 1024 { bytes(*value) } else { String::new() };
        vec![size, grouped(*value), read]
    });
    table(&[Column::Left("limit"), Column::Right("value"), Column::Left("")], rows)
}

/// Latencies of the stages, then outcomes, per model.
#[must_use]
pub fn stats(stats: &StatsAnswer) -> String {
    if stats.is_empty() {
        return "no models\n".to_owned();
    }
    let columns = [
        Column::Left("model"),
        Column::Left("stage"),
        Column::Right("count"),
        Column::Right("p50"),
        Column::Right("p99"),
        Column::Right("p99.9"),
        Column::Right("max"),
    ];
    let stages = stats.iter().flat_map(|(model, s)| [(model, "queue", s.queue), (model, "model", s.model)]);
    let mut out = table(
        &columns,
        stages.map(|(model, stage, s)| {
            let figures = [s.p50_ns, s.p99_ns, s.p999_ns, s.max_ns];
            let figures = figures.map(|ns| if s.count == 0 { "-".to_owned() } else { nanoseconds(ns) });
            [vec![model.clone(), stage.to_owned(), grouped(s.count)], figures.to_vec()].concat()
        }),
    );
    let outcomes: Vec<Vec<String>> = stats
        .iter()
        .flat_map(|(model, s)| s.outcomes.iter().map(move |(outcome, n)| (model, outcome, *n)))
        .filter(|(_, _, n)| *n > 0)
        .map(|(model, outcome, n)| vec![model.clone(), outcome.clone(), grouped(n)])
        .collect();
    if !outcomes.is_empty() {
        let columns = [Column::Left("model"), Column::Left("outcome"), Column::Right("count")];
        out += &format!("\n{}", table(&columns, outcomes));
    }
    let slept: Vec<String> = stats.iter().map(|(model, s)| format!("{} {}", plain(model), grouped(s.sleeps))).collect();
    out + &format!("\ntimes that the executor slept: {}\n", slept.join(", "))
}

/// What a validation found.
#[must_use]
pub fn validate(v: &ValidateAnswer) -> String {
    let golden = v.golden_difference_max.map_or("no golden pairs".to_owned(), |d| format!("within {d:.3e}"));
    let mut rows = vec![
        ("verdict", "can be served".to_owned()),
        ("backend", v.backend.clone()),
        ("sha256", v.sha256.clone()),
        ("load", format!("{:.1} ms", v.load_ms)),
        ("warm-up", format!("{:.1} ms", v.warm_up_ms)),
        ("run, median", format!("{:.1} us", v.run_us_p50)),
        ("golden pairs", golden),
    ];
    if v.signature.stateful {
        rows.push(("state", format!("{} per session", bytes(v.state_bytes))));
    }
    facts(rows) + "\n" + &signature(&v.signature)
}

/// A sentence.
#[must_use]
pub fn done(d: &Done) -> String {
    plain(&d.message) + "\n"
}

/// Versions of this program and of the daemon.
#[must_use]
pub fn version(daemon: Option<&VersionAnswer>) -> String {
    let (major, minor) = inferd_client::abi();
    let columns = [Column::Left(""), Column::Left("version"), Column::Left("abi"), Column::Left("kernel")];
    let tools =
        vec!["inferctl".to_owned(), inferd_client::version().to_owned(), format!("{major}.{minor}"), String::new()];
    let daemon = daemon.map(|d| vec!["inferd".to_owned(), d.version.clone(), d.abi.clone(), d.kernel.clone()]);
    table(&columns, std::iter::once(tools).chain(daemon))
}

#[cfg(test)]
#[path = "show_tests.rs"]
mod tests;
