//! What a request costs in instructions: a guard against slow growth that no machine's mood disturbs.
//!
//! `tests/examples/one_request.rs` drives client and executor in one thread under callgrind; what two runs of different
//! length differ by is the price of a request, phase by phase. `tests/instructions.toml` has the blessed numbers: growth
//! beyond the tolerance fails, and so does a gain, which wants to be blessed too (`INFERD_BLESS=1`). Another rustc than
//! the blessed one gets a wider tolerance: the optimiser moves on.

use inferd_tests::{places, skip};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::{Command, Stdio};

const PHASES: [&str; 3] = ["submit", "serve", "wait"];
const SHORT: u64 = 500;
const LONG: u64 = 1_500;
/// With the blessed compiler; what is left moves with glibc's choice of memcpy.
const TOLERANCE: f64 = 0.05;
/// With another one.
const TOLERANCE_ELSEWHERE: f64 = 0.20;

type Counts = BTreeMap<String, f64>;

#[test]
fn a_request_costs_as_many_instructions_as_were_blessed() {
    if Command::new("valgrind").arg("--version").stdout(Stdio::null()).status().is_err() {
        return skip::skip("instructions", "there is no valgrind (make deps)");
    }
    if !cfg!(target_arch = "x86_64") {
        return skip::skip("instructions", "the blessed numbers are those of x86-64");
    }
    let program = places::bin_dir().join("examples/one_request");
    assert!(program.exists(), "{} is built by `cargo build --release --examples`", program.display());
    let mut now = Counts::new();
    for queue in ["in_order", "latest"] {
        let [short, long] = [SHORT, LONG].map(|n| instructions(&program, queue, n));
        for phase in PHASES {
            let per_request = (long[phase] - short[phase]) / (LONG - SHORT) as f64;
            now.insert(format!("{queue}.{phase}"), per_request);
        }
    }
    assert!(now.values().all(|n| *n > 50.0), "callgrind saw no such phases: {now:?}");
    let path = places::repository().join("tests/instructions.toml");
    if std::env::var_os("INFERD_BLESS").is_some() {
        std::fs::write(&path, blessing(&now)).expect("the repository is writable");
        println!("blessed {now:?}");
        return;
    }
    let text = std::fs::read_to_string(&path).expect("tests/instructions.toml");
    let (compiler, blessed) = parse(&text);
    let tolerance = if compiler == rustc() { TOLERANCE } else { TOLERANCE_ELSEWHERE };
    let mut verdict = String::new();
    for (name, was) in &blessed {
        let is = now.get(name).copied().unwrap_or(f64::NAN);
        let change = (is - was) / was;
        println!("{name}: {is:.0} instructions a request, blessed {was:.0} ({:+.1} %)", 100.0 * change);
        if change.is_nan() || change.abs() > tolerance {
            let _ = writeln!(verdict, "{name}: {is:.0} instead of {was:.0}, beyond {:.0} %", 100.0 * tolerance);
        }
    }
    assert_eq!(blessed.len(), now.len(), "every phase is blessed");
    let remedy =
        "Find out why; if it shall be so, INFERD_BLESS=1 cargo test --release -p inferd-tests --test instructions";
    assert!(verdict.is_empty(), "{verdict}{remedy}");
}

/// Instructions within each phase, callees included, of a run of so many requests.
fn instructions(program: &std::path::Path, queue: &str, requests: u64) -> Counts {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let out = dir.path().join("callgrind.out");
    let ran = Command::new("valgrind")
        .args(["--tool=callgrind", "--quiet"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(program)
        .args(["count", &requests.to_string(), queue])
        .output()
        .expect("valgrind runs");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    inclusive(&std::fs::read_to_string(&out).expect("callgrind wrote its profile"))
}

/// Sums the inclusive cost of all calls of `phase_*`. A profile names a function once, and by its number later; the line
/// after `calls=` is the cost of those calls: position, instructions.
fn inclusive(profile: &str) -> Counts {
    let mut names = BTreeMap::new();
    let mut counts: Counts = PHASES.iter().map(|p| ((*p).to_owned(), 0.0)).collect();
    let (mut called, mut calls) = (String::new(), false);
    for line in profile.lines() {
        if let Some(function) = line.strip_prefix("cfn=").or_else(|| line.strip_prefix("fn=")) {
            let (number, name) = function.split_once(' ').unwrap_or((function, ""));
            let name: &String = names.entry(number.to_owned()).or_insert_with(|| name.to_owned());
            if line.starts_with('c') {
                called.clone_from(name);
            }
        } else if line.starts_with("calls=") {
            calls = true;
        } else if std::mem::take(&mut calls) {
            let cost = line.split(' ').nth(1).and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0);
            let phase = PHASES.iter().find(|p| called.contains(&format!("::phase_{p}")));
            if let Some(count) = phase.and_then(|p| counts.get_mut(*p)) {
                *count += cost;
            }
        }
    }
    counts
}

fn rustc() -> String {
    let out = Command::new("rustc").arg("--version").output().expect("rustc is there");
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

fn blessing(now: &Counts) -> String {
    let mut text = format!(
        "# Instructions per request, echo of 64 B with the recorder on: tests/tests/instructions.rs compares and blesses.\nrustc = {:?}\n",
        rustc()
    );
    now.iter().for_each(|(name, count)| {
        let _ = writeln!(text, "{name} = {count:.0}");
    });
    text
}

fn parse(text: &str) -> (String, Counts) {
    let mut compiler = String::new();
    let mut counts = Counts::new();
    for (key, value) in text.lines().filter(|l| !l.starts_with('#')).filter_map(|l| l.split_once(" = ")) {
        match value.parse() {
            Ok(count) => drop(counts.insert(key.to_owned(), count)),
            Err(_) => value.trim_matches('"').clone_into(&mut compiler),
        }
    }
    (compiler, counts)
}

#[test]
fn a_profile_is_summed_over_all_calls_of_a_phase_and_nothing_else() {
    let profile = "fn=(1) main\ncfn=(2) one::phase_serve\ncalls=3 10\n5 300\n6 7\ncfn=(3) one::other\ncalls=1 1\n5 9\n\
                   fn=(4) again\ncfn=(2)\ncalls=1 10\n+1 40\n";
    assert_eq!(inclusive(profile)["serve"], 340.0);
    assert_eq!(inclusive(profile)["wait"], 0.0);
}
