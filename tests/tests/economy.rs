//! What `make test` costs stands in tests/budget.toml: every suite and every repeated scenario, and nothing else.

use inferd_tests::budget::budgets;
use inferd_tests::places::repository;
use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

/// What `make test` may take on two cores.
const MAKE_TEST_S: u64 = 40 * 60;

#[test]
fn every_suite_has_a_budget_and_every_budget_a_suite() {
    let listed = Command::new("sh").args(["scripts/run_tests.sh", "--list"]).current_dir(repository()).output();
    let listed = String::from_utf8(listed.expect("sh runs").stdout).expect("text");
    let suites: BTreeSet<&str> = listed.lines().collect();
    assert!(suites.len() > 20, "{listed}");
    assert_eq!(suites, budgets().suites.keys().map(String::as_str).collect());
}

#[test]
fn the_budgets_fit_into_forty_minutes() {
    let sum: u64 = budgets().suites.values().map(|suite| suite.budget_s).sum();
    println!("budgets of all suites: {sum} s of {MAKE_TEST_S}");
    assert!(sum <= MAKE_TEST_S, "the budgets of tests/budget.toml sum up to {sum} s: repeat less, or run less");
    for (name, suite) in &budgets().suites {
        assert!(suite.ended_s.is_none_or(|ended| ended > suite.budget_s), "{name} is ended before its budget is over");
    }
}

#[test]
fn every_repeated_scenario_has_a_budget_and_every_budget_its_scenario() {
    let folder = repository().join("tests/tests");
    for (name, rounds) in &budgets().rounds {
        assert!(
            0 < rounds.floor && rounds.floor <= rounds.count && rounds.count <= rounds.campaign,
            "{name}: {rounds:?}"
        );
        assert!(budgets().suites.contains_key(&rounds.suite), "{name}: there is no suite {:?}", rounds.suite);
        let source = fs::read_to_string(folder.join(format!("{}.rs", rounds.suite))).expect("the suite's file");
        assert!(source.contains(&format!("{name:?}")), "{}.rs has no scenario {name:?}", rounds.suite);
    }
    // A name that the file lacks fails its own scenario; here it is that each suite that repeats has an entry.
    for entry in fs::read_dir(&folder).expect("the suites").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(suite) = name.strip_suffix(".rs").filter(|suite| *suite != "economy") else { continue };
        let repeats = fs::read_to_string(entry.path()).expect("a source").contains("Rounds::of");
        assert_eq!(repeats, budgets().rounds.values().any(|rounds| rounds.suite == suite), "{suite}");
    }
}
