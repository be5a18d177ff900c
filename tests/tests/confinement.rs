//! A worker whose model is warm has given up what it does not need: a model that reaches for it fails, visibly.
//!
//! The villain is a worker with a backend of its own (`src/bin/trespass`). What is refused is that request's
//! `model_error`, with the kernel's word in the log; what is forbidden outright costs the worker, and so one
//! `worker_lost`. Each deed succeeds where confinement is off: these tests could fail.

use inferd_ipc::layout::Backing;
use inferd_tests::answer::hex;
use inferd_tests::trespass::{BY_OLD_THREAD, DEEDS, End, number};
use inferd_tests::{Answer, Client, Daemon, DaemonConfig, Driver, Model, has_worker, ms, turn, within};
use std::fs;
use std::path::Path;

/// The villain, warmed up with three runs.
fn villain(dir: &Path, options: &str) -> Model {
    let folder = dir.join("villain");
    fs::create_dir_all(&folder).expect("our own folder");
    fs::write(folder.join("plan"), "none").expect("our own file");
    let manifest = format!(
        "file = \"plan\"\nbackend = \"trespass\"\n[warm_up]\nruns = 3\n[inputs.deed]\n[outputs.done]\n[options]\n{options}"
    );
    fs::write(folder.join("model.toml"), manifest).expect("our own file");
    Model::at("m", &folder).queue(4, "in_order")
}

fn served(config: DaemonConfig) -> (Daemon, Driver) {
    let daemon = config.start();
    let mut robot = daemon.driver(&Client::Rust.program().expect("built with the tests"));
    robot.ok("attach model=m");
    (daemon, robot)
}

fn does(robot: &mut Driver, deed: u32) -> Answer {
    robot.ok(&format!("infer hex={} timeout_us=10000000", hex(&deed.to_le_bytes())))
}

/// What the daemon's log says of confinement, last.
fn in_force(daemon: &Daemon) -> String {
    let log = daemon.log();
    let line = log.lines().rev().find(|line| line.contains("confined")).unwrap_or_default();
    line.to_owned()
}

#[test]
fn a_model_that_opens_a_file_or_a_socket_after_its_warm_up_fails_that_step_alone() {
    let _turn = turn();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (daemon, mut robot) = served(DaemonConfig::new(Backing::Memfd).model(villain(dir.path(), "")));
    assert!(in_force(&daemon).contains("profile strict: no_new_privs, seccomp"), "{}", in_force(&daemon));
    let worker = daemon.worker("m");
    for (name, _) in DEEDS.iter().filter(|(_, end)| *end == End::Refused) {
        for by in [0, BY_OLD_THREAD] {
            // The villain calls nothing but EPERM an error.
            let reply = does(&mut robot, number(name) + by);
            assert_eq!(reply.outcome(), "model_error", "deed {name} by {by}: {}", reply.json);
        }
        does(&mut robot, 0).expect("ok");
    }
    let said = "deed open: Operation not permitted";
    within(ms(2_000), "the model's own error stands in the log", || daemon.log().contains(said));
    assert_eq!(daemon.worker("m"), worker, "refusals cost no worker");
    assert!(!Path::new("/tmp/inferd-trespass").exists());
}

#[test]
fn a_model_that_reaches_for_another_process_or_program_loses_its_worker() {
    let _turn = turn();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (daemon, mut robot) = served(DaemonConfig::new(Backing::Memfd).model(villain(dir.path(), "")));
    for (deaths, (name, _)) in DEEDS.iter().filter(|(_, end)| *end == End::Killed).enumerate() {
        does(&mut robot, number(name)).expect("worker_lost");
        within(ms(20_000), "another worker serves", || {
            let model = daemon.model("m");
            model.state == "live" && model.worker_deaths == deaths as u64 + 1
        });
        does(&mut robot, 0).expect("ok");
    }
    assert!(daemon.log().contains("SIGSYS"), "the end of a worker says how:\n{}", daemon.log());
}

#[test]
fn a_model_that_loads_at_its_first_runs_is_refused_in_its_last_warm_up_and_told_why() {
    let _turn = turn();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut daemon = DaemonConfig::new(Backing::Memfd).model(villain(dir.path(), "lazy = 1\n")).prepare();
    assert!(daemon.try_start().is_err(), "it opens a file at every run");
    let log = daemon.log();
    assert!(log.contains("in its last warm-up: Operation not permitted"), "{log}");
    assert!(log.contains("confine = \\\"off\\\"") || log.contains("confine = \"off\""), "the remedy: {log}");
}

#[test]
fn confinement_can_be_switched_off_for_one_model_and_then_nothing_is_refused() {
    let _turn = turn();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let model = villain(dir.path(), "lazy = 1\n").config("confine", "\"off\"");
    let config = DaemonConfig::new(Backing::Memfd).set("worker", "confine = \"require\"").model(model);
    let (daemon, mut robot) = served(config);
    assert!(in_force(&daemon).contains("not confined"), "{}", in_force(&daemon));
    let worker = daemon.worker("m");
    // io_uring, perf and the network may be refused by the machine that runs this.
    let elsewhere = ["io_uring", "perf", "tcp", "udp", "netlink"];
    for (name, _) in DEEDS.iter().filter(|(name, end)| *end == End::Refused && !elsewhere.contains(name)) {
        if *name == "keep_living_without_it" {
            continue;
        }
        does(&mut robot, number(name)).expect("ok");
    }
    let _ = fs::remove_file("/tmp/inferd-trespass-2");
    assert_eq!(daemon.worker("m"), worker);
}

#[test]
fn a_kernel_without_either_means_degrades_with_a_line_and_is_refused_where_all_is_required() {
    let _turn = turn();
    let dir = tempfile::tempdir().expect("a temporary folder");
    for (disabled, left, missing) in [
        ("landlock", "no_new_privs, seccomp, no Landlock", "missing: Landlock (switched off"),
        ("seccomp", "no_new_privs, no seccomp", "seccomp (switched off"),
        ("landlock,seccomp", "no_new_privs, no seccomp, no Landlock", "missing: Landlock (switched off"),
    ] {
        let config = |confine: &str| {
            let model = villain(dir.path(), "").config("confine", &format!("{confine:?}"));
            DaemonConfig::new(Backing::Memfd).model(model).env("INFERD_DISABLE", disabled)
        };
        let (daemon, mut robot) = served(config("on"));
        let line = in_force(&daemon);
        assert!(
            line.contains("confined in part") && line.contains(left) && line.contains(missing),
            "{disabled}: {line}"
        );
        let files = if disabled == "landlock,seccomp" { "ok" } else { "model_error" };
        does(&mut robot, number("open")).expect(files);
        drop((robot, daemon));
        let mut required = config("require").prepare();
        assert!(required.try_start().is_err(), "{disabled}: not all of it is in force");
        assert!(required.log().contains(missing), "{}", required.log());
    }
}

#[test]
fn a_torchscript_module_that_maps_a_file_after_its_warm_up_fails_that_step_alone() {
    use inferd_worker::testing::torchscript::Script;
    let name = "a_torchscript_module_that_maps_a_file";
    if !has_worker("torch", name) {
        return;
    }
    let _turn = turn();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let folder = dir.path().join("m");
    fs::create_dir_all(&folder).expect("our own folder");
    // Probes of warm-ups are small numbers; 9 is the deed.
    let body = [
        "_0 = torch.gt(torch.max(x), 8)",
        "if bool(_0):",
        "  y = torch.from_file(\"/proc/version\", False, 4)",
        "else:",
        "  y = torch.mul(x, 2)",
        "return y",
    ];
    fs::write(folder.join("model.pt"), Script::forward("x: Tensor", "Tensor", &body).bytes()).expect("our own file");
    let manifest =
        "file = \"model.pt\"\nbackend = \"torch\"\n[inputs.x]\ndtype = \"f32\"\nshape = [4]\n[warm_up]\nruns = 3\n";
    fs::write(folder.join("model.toml"), manifest).expect("our own file");
    let (daemon, mut robot) =
        served(DaemonConfig::new(Backing::Memfd).model(Model::at("m", &folder).queue(4, "in_order")));
    assert!(in_force(&daemon).contains("profile jit"), "{}", in_force(&daemon));
    let worker = daemon.worker("m");
    let infer = |robot: &mut Driver, x: f32| {
        robot.ok(&format!("infer hex={} timeout_us=10000000", hex(&x.to_le_bytes().repeat(4))))
    };
    assert_eq!(infer(&mut robot, 1.0).expect("ok").output_f32(0), [2.0; 4]);
    infer(&mut robot, 9.0).expect("model_error");
    within(ms(2_000), "the refusal stands in the log", || daemon.log().contains("Operation not permitted"));
    assert_eq!(infer(&mut robot, 3.0).expect("ok").output_f32(0), [6.0; 4]);
    assert_eq!(daemon.worker("m"), worker);
}
