//! What verdicts and histories look like; the texts are in `testdata/`.

use super::*;
use inferd_client::control::HistoryVerdict;
use std::collections::BTreeMap;

fn stage(p50_ns: u64, p99_ns: u64) -> StageStats {
    StageStats { count: 64, p50_ns, p99_ns, p999_ns: p99_ns * 2, max_ns: p99_ns * 2 }
}

fn verdict(live: bool) -> Verdict {
    let outputs = BTreeMap::from([
        ("actions".to_owned(), OutputDifference { max: 1.25, mean: 0.031, worst_step: Some(4711), nan: 0 }),
        ("value".to_owned(), OutputDifference { nan: if live { 0 } else { 2 }, ..OutputDifference::default() }),
    ]);
    Verdict {
        accepted: live,
        live,
        reasons: if live { vec![] } else { vec!["output actions differs by 1.25, allowed are 0.1".into()] },
        shadow: Some(ShadowReport {
            steps: 64,
            missed: if live { 0 } else { 3 },
            failed: if live { 0 } else { 2 },
            first_failure: (!live).then(|| "observation 12: NaN in output value".into()),
            outputs,
            live_run: stage(11_200, 13_000),
            new_run: stage(11_900, 14_100),
            state: "recorded".into(),
        }),
        golden_difference_max: Some(1.2e-7),
        run_us_p50: 11.3,
        load_ms: 83.21,
        warm_up_ms: 120.4,
        warm_up_runs: 1250,
        state: "carried".into(),
    }
}

fn answer(gaps: u64) -> ReloadAnswer {
    ReloadAnswer {
        model: "go2".into(),
        from_generation: 3,
        to_generation: 4,
        sha256: "9f86d081884c7d65".into(),
        load_ms: 203.6,
        swap_us: 41.96,
        state: "carried".into(),
        verdict: verdict(true),
        gap_us: (0..gaps).map(|n| SessionGap { session: 100 + n, gap_us: 30.0 + (n * 7 % 20) as f64 }).collect(),
    }
}

fn assert_narrow(text: &str) {
    assert!(text.lines().all(|line| line.chars().count() <= 80), "wider than a terminal:\n{text}");
}

#[test]
fn an_accepted_reload_shows_differences_latencies_and_gaps() {
    let text = reload(&answer(2));
    assert_eq!(text, include_str!("../testdata/accepted.txt"), "\n{text}");
    assert_narrow(&text);
}

#[test]
fn the_longest_gaps_of_many_sessions_are_shown() {
    let text = reload(&answer(40));
    assert!(text.contains("gap of 40 sessions: median 39.0 us, longest 49.0 us"), "{text}");
    assert_eq!(text.lines().filter(|l| l.ends_with(" us") && l.starts_with("    1")).count(), 8, "{text}");
}

#[test]
fn a_refused_reload_shows_what_it_was_refused_on_and_a_dry_run_that_nothing_changed() {
    let text = refused("go2", &verdict(false));
    assert_eq!(text, include_str!("../testdata/refused.txt"), "\n{text}");
    assert_narrow(&text);
    let dry = ReloadAnswer { verdict: Verdict { shadow: None, ..verdict(false) }, ..answer(0) };
    let text = reload(&dry);
    assert!(text.starts_with("go2: the candidate (sha256 9f86d081884c) would go live"), "{text}");
    assert!(text.contains("generation 3 answers on"), "{text}");
    assert_narrow(&text);
}

fn entry(generation: u32, cause: &str, at_unix_ms: u64) -> HistoryEntry {
    HistoryEntry {
        generation,
        sha256: format!("{generation}f86d081884c7d659a2feaa0c55ad015"),
        path: "/var/lib/inferd/models/go2/policy.onnx".into(),
        backend: "tract 0.23.1".into(),
        at_unix_ms,
        went_live_unix_ms: (generation != 0).then_some(at_unix_ms),
        by_uid: None,
        cause: cause.into(),
        verdict: HistoryVerdict { accepted: generation != 0, ..HistoryVerdict::default() },
        ended: None,
        ended_unix_ms: None,
        stored: generation != 0,
    }
}

#[test]
fn a_history_shows_what_served_how_long_and_why_others_did_not() {
    let at = 1_795_310_609_123;
    let mut refused = entry(0, "watch", at - 5_000);
    refused.verdict.reasons = vec!["output actions differs by 1.25, allowed are 0.1".into()];
    let mut first = entry(1, "start", at - 90_061_000);
    (first.ended, first.ended_unix_ms) = (Some("replaced by 2".into()), Some(at));
    let mut live = entry(2, "reload", at);
    live.by_uid = Some(1000);
    first.stored = false;
    let text = history("go2", &[live, refused, first]);
    assert_eq!(text, include_str!("../testdata/history.txt"), "\n{text}");
    assert_narrow(&text);
    assert_eq!(history("go2", &[]), "go2: nothing yet\n");
}

#[test]
fn differences_have_three_digits() {
    let shown = [0.0, 1e-7, 0.001, 0.0314159, 1.25, 99.99, 1234.5, 3e7].map(difference);
    assert_eq!(shown.join(" "), "0 1.00e-7 0.00100 0.0314 1.25 100.0 1234 3.00e7");
}

#[test]
fn days_are_counted_as_the_calendar_does() {
    assert_eq!(utc(0), "1970-01-01 00:00:00");
    assert_eq!(utc(951_782_400_000), "2000-02-29 00:00:00");
    assert_eq!(utc(1_709_164_799_999), "2024-02-28 23:59:59");
    assert_eq!(utc(4_107_542_400_000), "2100-03-01 00:00:00");
}
