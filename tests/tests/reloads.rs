//! Good reloads under load: nothing is lost, doubled, or answered by another generation than its stamp says.
//!
//! Two files of the size of a walking policy alternate while four robots, Rust and C, send a thousand requests
//! a second each. Every answer is compared, bit by bit, with what that generation's file answers in this process.
//! On one CPU and on two; in the end every process holds what it held at the start.

mod reference;

use inferd_ipc::control::{Command, ReloadAnswer};
use inferd_ipc::layout::Backing;
use inferd_tests::answer::OBSERVATIONS;
use inferd_tests::policies::{WALKING, perceptron};
use inferd_tests::{Answer, Baseline, Confined, Daemon, DaemonConfig, Fleet, Model, Rounds, skip};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Seconds of one stretch of load: a ledger is looked at and begun anew after each.
const STRETCH_S: f64 = 4.0;
/// Reloads before anything is measured; an even number ends with the first file.
const FIRST_RELOADS: usize = 40;
/// Private memory that a process may have more at the end than at the start.
const SLACK_BYTES: u64 = 2 << 20;
const LOAD: &str = "rate_hz=1000 depth=2 check=answers seed=70";

/// Two files, and what each answers.
struct Pair {
    files: [PathBuf; 2],
    answers: [[String; OBSERVATIONS]; 2],
}

impl Pair {
    fn write(dir: &std::path::Path) -> Pair {
        let bytes = [1, 2].map(|seed| perceptron(&WALKING, seed));
        let files = ["a.onnx", "b.onnx"].map(|name| dir.join(name));
        files.iter().zip(&bytes).for_each(|(file, bytes)| std::fs::write(file, bytes).expect("our own folder"));
        let answers = bytes.map(|bytes| reference::answers(bytes, 70));
        for (a, b) in answers[0].iter().zip(&answers[1]) {
            assert!(a != b && !a.is_empty() && !b.is_empty(), "the files can be told apart by every answer");
        }
        Pair { files, answers }
    }
}

/// What a stretch of load has shown.
#[derive(Default)]
struct Seen {
    requests: u64,
    gap_ns_max: u64,
    checked: usize,
}

impl Seen {
    /// Every request ended in `ok`, by the generation that its stamp says.
    fn add(&mut self, summaries: &[Answer], pair: &Pair, generations: &BTreeMap<u32, usize>) {
        for s in summaries {
            assert_eq!(s.count("ok"), s.number("sent"), "{}", s.json);
            assert_eq!(s.refused(), 0, "{}", s.json);
            self.requests += s.number("sent");
            self.gap_ns_max = self.gap_ns_max.max(s.number("gap_ns_max"));
            for (generation, hashes) in s.answers() {
                let file = generations.get(&generation).unwrap_or_else(|| panic!("no reload made {generation}"));
                for (hash, due) in hashes.iter().zip(&pair.answers[*file]).filter(|(hash, _)| !hash.is_empty()) {
                    assert_eq!(hash, due, "generation {generation} answers as the other file does");
                    self.checked += 1;
                }
            }
        }
    }
}

fn start(pair_dir: &tempfile::TempDir) -> (Pair, Daemon) {
    let pair = Pair::write(pair_dir.path());
    let daemon = DaemonConfig::new(Backing::Memfd).model(Model::at("m", &pair.files[0])).start();
    (pair, daemon)
}

fn reloads_under_load(name: &str, cpus: usize, load: &str, reload: impl Fn(&Daemon, &Pair, u32) -> ReloadAnswer) {
    Fleet::run(name, || {
        let Some(_confined) = Confined::to(cpus) else {
            return skip(name, "this machine has fewer CPUs");
        };
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (pair, daemon) = start(&dir);
        let mut fleet = Fleet::attach(&daemon, "model=m slots=4 queue=in_order");
        let mut generations = BTreeMap::from([(1, 0)]);
        let mut hashes = BTreeMap::new();
        // From here on there is a live worker and a kept one, as at the end; the clients' ledgers have been used, and every
        // thread of the supervisor has the buffers that it keeps.
        for file in [1, 0].repeat(FIRST_RELOADS / 2) {
            let answer = daemon.reload_from("m", &pair.files[file]).expect("reloaded");
            generations.insert(answer.to_generation, file);
            hashes.insert(answer.sha256, file);
        }
        fleet.load(0.2, load);
        let mut seen = Seen::default();
        seen.add(&fleet.unload(), &pair, &generations);
        let baseline = Baseline::of(&daemon, &fleet.all());
        let mut rounds = Rounds::of(name);
        while rounds.another() {
            if !fleet.is_loaded() {
                if !rounds.is_first() {
                    seen.add(&fleet.unload(), &pair, &generations);
                }
                fleet.load(STRETCH_S, load);
            }
            let answer = reload(&daemon, &pair, rounds.done());
            generations.insert(answer.to_generation, hashes[&answer.sha256]);
        }
        seen.add(&fleet.unload(), &pair, &generations);
        println!(
            "{name}: {} requests, {} hashes of generations compared, worst gap between two answers {:.2} ms",
            seen.requests,
            seen.checked,
            seen.gap_ns_max as f64 / 1e6
        );
        rounds.finish();
        let memory = baseline.holds_again(&daemon, &fleet.all(), SLACK_BYTES);
        println!("{name}: private memory before {:?}, after {memory:?}", baseline.memory);
        assert_eq!(daemon.model("m").worker_deaths, 0);
    });
}

fn alternately(daemon: &Daemon, pair: &Pair, round: u32) -> ReloadAnswer {
    let answer = daemon.reload_from("m", &pair.files[round as usize % 2]).expect("reloaded");
    assert_eq!(answer.to_generation, answer.from_generation + 1);
    answer
}

#[test]
fn a_hundred_reloads_on_two_cpus_lose_nothing_and_leave_nothing() {
    reloads_under_load("reloads on two CPUs", 2, LOAD, alternately);
}

#[test]
fn a_hundred_reloads_on_one_cpu_lose_nothing_and_leave_nothing() {
    reloads_under_load("reloads on one CPU", 1, LOAD, alternately);
}

#[test]
fn four_hundred_rollbacks_lose_nothing_and_leave_nothing() {
    // Files alternate here too: what is kept is always the other one. It comes back under its old number, in the same
    // worker: longer than `max_run_ms` and a second, so that no time of an earlier swap is taken for one of a later.
    let load = format!("{LOAD} rollbacks=1");
    reloads_under_load("rollbacks", 2, &load, |daemon, _, _| {
        std::thread::sleep(inferd_tests::ms(10));
        daemon.rpc(&Command::Rollback { model: "m".into() }).expect("rolled back")
    });
}
