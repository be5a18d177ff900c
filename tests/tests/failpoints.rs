//! What makes the campaigns of deaths complete, and what ships free of them.
//!
//! Every step that a source marks is in a campaign, and the campaigns know no other; the programs and libraries that are
//! installed hold no name of a step. A step that fails instead of ending its process is an error like any other.

use inferd_ipc::failpoints::Action;
use inferd_ipc::layout::Backing;
use inferd_tests::failpoints::{self, VARIABLE, in_sources};
use inferd_tests::steps::{CLIENT, DAEMON, Step, WORKER};
use inferd_tests::{Armed, Client, DaemonConfig, Model, places, skip, within};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

/// A slow disk takes a second for each of the fsyncs of a start.
const PATIENCE: Duration = Duration::from_secs(20);

fn names(steps: &[Step]) -> BTreeSet<String> {
    steps.iter().map(|(name, _)| (*name).to_owned()).collect()
}

#[test]
fn every_step_of_the_sources_is_in_a_campaign() {
    let rust = in_sources(&["ipc/src", "client-rs/src", "worker/src", "daemon/src"], "failpoint!(\"");
    let all: BTreeSet<String> = [names(&CLIENT), names(&WORKER), names(&DAEMON)].into_iter().flatten().collect();
    assert_eq!(rust, all, "sources on the left, tests/src/steps.rs on the right");
    assert_eq!(in_sources(&["client-c"], "IFD_FAILPOINT(\""), names(&CLIENT), "the C client has the same steps");
}

/// The first step's name, or the variable's, that the file holds.
fn holds_a_step(file: &PathBuf) -> Option<&'static str> {
    let bytes = std::fs::read(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let steps = [&CLIENT[..], &WORKER, &DAEMON].concat();
    // A file of a hundred megabytes is gone through once: every name has a dot, the variable an underscore.
    let words: Vec<&str> = steps.iter().map(|(name, _)| *name).chain([VARIABLE]).collect();
    let marks = bytes.iter().enumerate().filter(|(_, byte)| matches!(byte, b'.' | b'_'));
    let at = |word: &&str, mark: usize| {
        let start = word.find(['.', '_']).and_then(|before| mark.checked_sub(before));
        start.is_some_and(|start| bytes[start..].starts_with(word.as_bytes()))
    };
    marks.filter_map(|(mark, _)| words.iter().copied().find(|word| at(word, mark))).next()
}

#[test]
fn nothing_that_is_installed_holds_a_step() {
    let name = "nothing_that_is_installed_holds_a_step";
    let (Some(armed), Some(c)) = (failpoints::programs(), Client::C.program()) else {
        return skip(name, "the programs with failpoints, or libinferd, are not built");
    };
    let c = c.parent().expect("a folder").to_owned();
    let programs = ["inferd", "inferd-worker", "inferd-worker-ort", "inferd-worker-torch", "inferctl"];
    let ships: Vec<PathBuf> = programs.map(|program| places::bin_dir().join(program)).into();
    // The wheel holds this library: scripts/build_wheel.py refuses one that has steps.
    let ships: Vec<PathBuf> = ships.into_iter().chain(["libinferd.a", "libinferd.so"].map(|lib| c.join(lib))).collect();
    let there: Vec<&PathBuf> = ships.iter().filter(|file| file.exists()).collect();
    assert!(there.len() >= 5, "daemon, worker, tool and both libraries at least: {there:?}");
    for file in there {
        assert_eq!(holds_a_step(file), None, "{} has failpoints", file.display());
    }
    for file in ["inferd", "inferd-worker", "driver_rust", "c/driver_c", "c/libinferd.so"] {
        assert!(holds_a_step(&armed.join(file)).is_some(), "{file} was built to have failpoints");
    }
}

#[test]
fn a_wheel_is_never_built_of_a_library_with_steps() {
    let Some(armed) = failpoints::programs() else {
        return skip("a_wheel_is_never_built_of_a_library_with_steps", "the programs with failpoints are not built");
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut command = std::process::Command::new(std::env::var("PYTHON").unwrap_or_else(|_| "python3".into()));
    command
        .arg(places::repository().join("scripts/build_wheel.py"))
        .arg(armed.join("c/libinferd.so"))
        .arg(folder.path());
    let ran = command.output().expect("python3 can be run");
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(!ran.status.success() && said.contains("failpoints"), "{said}");
}

#[test]
fn a_step_of_an_attach_that_fails_refuses_that_client_and_leaves_nothing() {
    failpoints::run("a_step_of_an_attach_that_fails_refuses_that_client_and_leaves_nothing", || {
        let armed = Armed::start(DaemonConfig::new(Backing::Memfd).model(Model::counter("m").queue(4, "in_order")));
        let daemon = &armed.daemon;
        let mut robot = daemon.driver(&Client::Rust.program().expect("built"));
        robot.ok("attach model=m");
        robot.ok("detach");
        let baseline = daemon.baseline();
        armed.arm("daemon.regions", Action::Fail, 1);
        assert_eq!(robot.call("attach model=m").error(), "no_resources");
        daemon.settles_to(&baseline);
        robot.ok("attach model=m");
        robot.exchange("fill=1").expect("ok");
    });
}

#[test]
fn a_store_that_fails_at_any_step_leaves_the_generation_serving_unstored() {
    failpoints::run("a_store_that_fails_at_any_step_leaves_the_generation_serving_unstored", || {
        let mut model = Model::counter("m").queue(4, "in_order").weights(b"the first");
        let mut armed = Armed::start(DaemonConfig::new(Backing::Memfd).model(model.clone()));
        let mut robot = armed.daemon.driver(&Client::C.program().expect("built"));
        robot.ok("attach model=m");
        for step in ["daemon.store.opened", "daemon.store.text"] {
            let before = armed.daemon.model("m").generation;
            // Bytes that are not stored yet.
            model = model.weights(step.as_bytes());
            armed.daemon.change(model.clone());
            armed.arm(step, Action::Fail, 1);
            armed.daemon.reload("m").expect("the store is no condition of serving");
            armed.acted(step, PATIENCE);
            assert_eq!(armed.daemon.model("m").generation, before + 1, "{step}");
            robot.exchange("fill=1").expect("ok");
            within(PATIENCE, "the log names the remedy", || armed.daemon.log().contains("make room"));
        }
        armed.table.disarm(0);
        armed.daemon.change(model.weights(b"the last"));
        armed.daemon.reload("m").expect("reloaded");
        within(PATIENCE, "stored again", || armed.daemon.history("m")[0].stored);
    });
}

#[test]
fn what_a_slow_disk_holds_up_is_in_no_baseline() {
    failpoints::run("what_a_slow_disk_holds_up_is_in_no_baseline", || {
        let mut armed = Armed::prepare(DaemonConfig::new(Backing::Memfd).model(Model::counter("m")));
        // Longer than a baseline looks on, and over well before it gives up.
        armed.arm("daemon.store.renamed", Action::Sleep { us: 600_000 }, 1);
        armed.daemon.start();
        armed.acted("daemon.store.renamed", PATIENCE);
        let baseline = armed.daemon.baseline();
        assert!(armed.daemon.history("m")[0].stored, "it was waited for");
        armed.daemon.settles_to(&baseline);
    });
}
