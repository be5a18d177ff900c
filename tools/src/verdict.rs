//! The verdict on a new generation as text: what differs, how fast it is, what became of state and sessions.
//!
//! Pure functions from an answer to what an operator reads before deciding what to do next. Reasons of a refusal are the
//! daemon's error message and go to standard error; the figures they rest on are here.

use crate::out::{Column, grouped, nanoseconds, plain, table};
use inferd_client::control::{HistoryEntry, ReloadAnswer, SessionGap, Verdict};
use inferd_client::{OutputDifference, ShadowReport, StageStats};

/// Digits of a SHA-256 that a table shows.
pub(crate) const DIGEST_SHOWN: usize = 12;
/// The same in a history, whose lines are long.
const HISTORY_DIGEST_SHOWN: usize = 8;
/// Sessions whose gap is shown each; of more, the longest ones are.
const GAPS_SHOWN: usize = 8;

/// What a reload or a rollback did, or what a dry run found.
#[must_use]
pub fn reload(r: &ReloadAnswer) -> String {
    let digest: String = r.sha256.chars().take(DIGEST_SHOWN).collect();
    let file = if digest.is_empty() { String::new() } else { format!(" (sha256 {})", plain(&digest)) };
    let model = plain(&r.model);
    let mut out = match r.verdict.live {
        true => format!("{model}: generation {} -> {}{file} is live\n", r.from_generation, r.to_generation),
        false => format!(
            "{model}: the candidate{file} would go live\ndry run: nothing was changed, generation {} answers on\n",
            r.from_generation
        ),
    };
    out += &figures(&r.verdict);
    out + &gaps(&r.gap_us)
}

/// What a refused reload was refused on; the reasons are the error's message.
#[must_use]
pub fn refused(model: &str, v: &Verdict) -> String {
    format!("{}: the candidate is refused, the live generation answers on\n{}", plain(model), figures(v))
}

/// The tables of a verdict.
fn figures(v: &Verdict) -> String {
    let mut out = v.shadow.as_ref().map_or(String::new(), shadow);
    let golden = v.golden_difference_max.map_or("none".to_owned(), |d| format!("within {}", difference(d)));
    let runs = if v.warm_up_runs == 1 { "run" } else { "runs" };
    let rows = [
        ("golden pairs", golden),
        ("load", format!("{:.1} ms", v.load_ms)),
        (
            "warm-up",
            format!("{:.1} ms, {} {runs}, median {:.1} us", v.warm_up_ms, grouped(v.warm_up_runs.into()), v.run_us_p50),
        ),
        ("state", state(&v.state).to_owned()),
    ];
    let rows = rows.into_iter().map(|(what, value)| vec![what.to_owned(), value]);
    out += &format!("\n{}", table(&[Column::Left(""), Column::Left("")], rows));
    out
}

fn state(state: &str) -> &str {
    match state {
        "carried" => "carried over",
        "reset" => "reset: sessions begin afresh, flagged",
        "none" => "none: the model keeps none",
        other => other,
    }
}

/// Differences per output, then run times of both generations.
fn shadow(s: &ShadowReport) -> String {
    let failed = match (s.failed, &s.first_failure) {
        (0, _) => "none failed".to_owned(),
        (n, Some(first)) => format!("{} FAILED, the first: {}", grouped(n.into()), plain(first)),
        (n, None) => format!("{} FAILED", grouped(n.into())),
    };
    let state = match s.state.as_str() {
        "recorded" => ", each on its recorded state",
        "own" => ", on state of its own from a reset on",
        _ => "",
    };
    let steps = if s.steps == 1 { "step" } else { "steps" };
    let mut out = format!("\nshadow: {} recorded {steps}{state}\n{failed}\n", grouped(s.steps.into()));
    if s.missed > 0 {
        out += &format!("{} missed: overwritten before they could be run\n", grouped(s.missed));
    }
    if s.steps == 0 {
        return out;
    }
    let columns = [
        Column::Left("output"),
        Column::Right("difference max"),
        Column::Right("mean"),
        Column::Right("NaN"),
        Column::Right("worst at observation"),
    ];
    let row = |(name, o): (&String, &OutputDifference)| {
        let worst = o.worst_step.map_or("-".to_owned(), |id| id.to_string());
        vec![name.clone(), difference(o.max), difference(o.mean), grouped(o.nan), worst]
    };
    out += &format!("\n{}", table(&columns, s.outputs.iter().map(row)));
    let columns =
        ["run", "p50", "p99", "p99.9", "max"].map(|t| if t == "run" { Column::Left(t) } else { Column::Right(t) });
    let row = |(who, s): (&str, &StageStats)| {
        let figures = [s.p50_ns, s.p99_ns, s.p999_ns, s.max_ns];
        let figures = figures.map(|ns| if s.count == 0 { "-".to_owned() } else { nanoseconds(ns) });
        [vec![who.to_owned()], figures.to_vec()].concat()
    };
    out + &format!("\n{}", table(&columns, [("live", &s.live_run), ("new", &s.new_run)].map(row)))
}

/// Three digits that mean something.
fn difference(d: f64) -> String {
    match d {
        0.0 => "0".to_owned(),
        d if (0.001..10_000.0).contains(&d) => {
            let decimals = (2 - d.log10().floor() as i64).max(0) as usize;
            format!("{d:.decimals$}")
        }
        d => format!("{d:.2e}"),
    }
}

/// How long each session had nobody to answer it.
fn gaps(gaps: &[SessionGap]) -> String {
    if gaps.is_empty() {
        return String::new();
    }
    let mut longest: Vec<&SessionGap> = gaps.iter().collect();
    longest.sort_by(|a, b| b.gap_us.total_cmp(&a.gap_us));
    let us = |gap: f64| format!("{gap:.1} us");
    let mut out = String::from("\n");
    if gaps.len() > GAPS_SHOWN {
        let (median, most) = (longest[gaps.len() / 2].gap_us, longest[0].gap_us);
        out += &format!(
            "gap of {} sessions: median {}, longest {}; the longest {GAPS_SHOWN}:\n",
            gaps.len(),
            us(median),
            us(most)
        );
        longest.truncate(GAPS_SHOWN);
    } else {
        longest.sort_by_key(|g| g.session);
    }
    let rows = longest.iter().map(|g| vec![g.session.to_string(), us(g.gap_us)]);
    out + &table(&[Column::Right("session"), Column::Right("gap")], rows)
}

/// The generations of a model, newest first, then why some were refused, and which no restart could serve.
#[must_use]
pub fn history(model: &str, entries: &[HistoryEntry]) -> String {
    if entries.is_empty() {
        return format!("{}: nothing yet\n", plain(model));
    }
    let columns = [
        Column::Right("gen"),
        Column::Left("when (UTC)"),
        Column::Left("cause"),
        Column::Right("uid"),
        Column::Left("sha256"),
        Column::Left("outcome"),
    ];
    let row = |e: &HistoryEntry| {
        let digest: String = e.sha256.chars().take(HISTORY_DIGEST_SHOWN).collect();
        vec![
            if e.generation == 0 { "-".to_owned() } else { e.generation.to_string() },
            when(e),
            e.cause.clone(),
            e.by_uid.map_or("-".to_owned(), |uid| uid.to_string()),
            if digest.is_empty() { "-".to_owned() } else { digest },
            outcome(e),
        ]
    };
    let mut out = table(&columns, entries.iter().map(row));
    for e in entries.iter().filter(|e| !e.verdict.reasons.is_empty()) {
        out += &format!("\n{}, {} of {}:\n", when(e), plain(&e.cause), plain(&e.path));
        for reason in &e.verdict.reasons {
            out += &format!("  {}\n", plain(reason));
        }
    }
    let absent = entries.iter().filter(|e| e.went_live_unix_ms.is_some() && !e.stored);
    let absent: Vec<String> = absent.map(|e| e.generation.to_string()).collect();
    if !absent.is_empty() {
        out += &format!("\nnot in the store: generation {}\n", absent.join(", "));
    }
    out
}

fn when(e: &HistoryEntry) -> String {
    utc(e.went_live_unix_ms.unwrap_or(e.at_unix_ms))
}

fn outcome(e: &HistoryEntry) -> String {
    match (&e.ended, e.went_live_unix_ms) {
        (Some(how), _) => how.clone(),
        (None, Some(_)) => "live".to_owned(),
        (None, None) => "refused".to_owned(),
    }
}

/// `2026-11-22 01:23:29`, of milliseconds since 1970.
fn utc(unix_ms: u64) -> String {
    let (days, second) = (unix_ms / 86_400_000, unix_ms / 1_000 % 86_400);
    let (year, month, day) = civil(days);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", second / 3_600, second / 60 % 60, second % 60)
}

/// Year, month and day of a day counted from 1970-01-01, by eras of 400 years that begin on March 1st
/// (H. Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let day_of_era = z % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (z / 146_097 * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
#[path = "verdict_tests.rs"]
mod tests;
