//! The gate: candidates that die, hang or lie while they are judged, and everything else that may happen then.

use super::{Daemon, folder, message, within};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

pub const SCENARIOS: &[(&str, fn())] = &[
    ("a_shadow_measures_and_the_gate_decides", gate_decides),
    ("whatever_a_candidate_does_while_shadowing_leaves_the_live_one_serving", bad_shadows),
    ("a_dry_run_judges_and_changes_nothing", dry_run),
    ("a_configured_gate_holds_for_sighup_too", configured_gate),
    ("a_second_reload_during_a_shadow_is_busy_and_a_sighup_waits", busy_shadow),
    ("a_configuration_that_changes_twice_while_a_model_is_busy_is_the_last_one_then", changed_twice_while_busy),
    ("a_drain_during_a_shadow_ends_in_time", drain_in_shadow),
    ("a_dump_brings_a_descriptor_that_cannot_write_even_in_quarantine", dump),
    ("a_worker_that_a_kill_does_not_end_is_left_behind", stuck),
];

fn reload(daemon: &Daemon, misdeed: &str, mut asked: Value) -> Value {
    asked["model"] = json!("m");
    asked["path"] = json!(folder(daemon.dir.path(), misdeed));
    daemon.call("reload", asked)
}

fn gate_decides() {
    let daemon = Daemon::start("none");
    let steps = json!({"steps": 32});
    let answer = reload(&daemon, "good", json!({"shadow": steps, "max_diff": {"out": 0.3}, "max_latency_us": 30.0}));
    let verdict = &answer["result"]["verdict"];
    assert_eq!((&verdict["accepted"], &verdict["live"]), (&json!(true), &json!(true)), "{answer}");
    assert_eq!((&verdict["shadow"]["steps"], &verdict["shadow"]["outputs"]["out"]["max"]), (&json!(32), &json!(0.25)));
    daemon.serves(2);
    for (asked, said) in [
        (json!({"shadow": steps, "max_diff": {"out": 0.2}}), "output out differs by 0.25"),
        (json!({"max_diff": {"out": 0.2}}), "(observation 7); max_diff is 0.2"),
        (json!({"shadow": steps, "max_latency_us": 19.0}), "its p99 is 20.0 us"),
        (json!({"shadow": steps, "max_diff": {"action": 1.0}}), "which is none of: out"),
    ] {
        let answer = reload(&daemon, "good", asked.clone());
        assert!(message(&answer).contains(said), "{asked}: {answer}");
        let verdict = &answer["error"]["data"];
        assert_eq!((&verdict["accepted"], &verdict["live"]), (&json!(false), &json!(false)), "{answer}");
        assert!(verdict["reasons"][0].as_str().is_some_and(|reason| reason.contains(said)), "{answer}");
        daemon.serves(2);
    }
    let refused = &daemon.history()[0];
    assert_eq!((&refused["generation"], &refused["verdict"]["accepted"]), (&json!(0), &json!(false)), "{refused}");
    assert_eq!((&refused["cause"], &refused["verdict"]["steps"]), (&json!("reload"), &json!(32)), "{refused}");
    for asked in
        [json!({"max_latency_us": -1.0}), json!({"max_diff": {"out": -0.5}}), json!({"shadow": {"seconds": 0.0}})]
    {
        assert_eq!(reload(&daemon, "good", asked)["error"]["code"], -32602);
    }
    daemon.drain();
}

fn bad_shadows() {
    let daemon = Daemon::start("none");
    for (misdeed, said) in [
        ("dies_shadowing", "exit status: 7"),
        ("hangs_shadowing", "its shadow was not over"),
        ("shadows_more_than_asked", "which cannot be"),
        ("shadows_a_difference_below_zero", "which cannot be"),
        ("shadows_another_output", "which cannot be"),
        ("shadows_unasked", "no recorded step could be run"),
        ("shadows_nothing", "no recorded step could be run"),
        ("fails_on_recorded_steps", "steps failed: the guard refused output out"),
        ("answers_nan", "2 NaN"),
    ] {
        // So many steps may be waited for, for 10 s; a time is over sooner.
        let shadow = if misdeed == "hangs_shadowing" { json!({"seconds": 0.1}) } else { json!({"steps": 8}) };
        let answer = reload(&daemon, misdeed, json!({"shadow": shadow}));
        assert!(message(&answer).contains(said), "{misdeed}: {answer}");
        daemon.serves(1);
    }
    // A second report may come before or after the take-over; either way somebody serves, and reloads go on.
    reload(&daemon, "shadows_twice", json!({"shadow": {"steps": 8}}));
    daemon.await_state("live");
    let answer = daemon.reload("none");
    let last = answer["result"]["to_generation"].as_u64().expect("reloaded");
    daemon.serves(last);
    daemon.drain();
}

fn dry_run() {
    let daemon = Daemon::start("none");
    let before = daemon.history().len();
    let answer = reload(&daemon, "good", json!({"shadow": {"steps": 8}, "dry_run": true}));
    let result = &answer["result"];
    assert_eq!((&result["to_generation"], &result["verdict"]["live"]), (&json!(1), &json!(false)), "{answer}");
    assert_eq!(result["verdict"]["accepted"], true);
    daemon.serves(1);
    let answer = reload(&daemon, "answers_nan", json!({"shadow": {"steps": 8}, "dry_run": true}));
    assert_eq!(answer["error"]["data"]["accepted"], false, "{answer}");
    daemon.serves(1);
    assert_eq!(daemon.history().len(), before, "nothing was tried in earnest");
    daemon.drain();
}

fn configured_gate() {
    const GATE: &str = "gate = { shadow = 16, max_diff = { out = 0.2 } }\n";
    let daemon = Daemon::start_with("none", GATE);
    daemon.reconfigure(&folder(daemon.dir.path(), "good"), GATE);
    within("the change is refused", || daemon.history().len() == 2);
    let refused = &daemon.history()[0];
    assert_eq!((&refused["cause"], &refused["verdict"]["steps"]), (&json!("configuration"), &json!(16)), "{refused}");
    daemon.serves(1);
    assert!(daemon.model()["drift"].is_string(), "what is configured is not what is served");
    assert!(
        message(&daemon.reload("good")).contains("max_diff is 0.2"),
        "a command that says nothing asks for the gate"
    );
    let answer = reload(&daemon, "good", json!({"shadow": {"steps": 0}}));
    assert_eq!((&answer["result"]["to_generation"], &answer["result"]["verdict"]["shadow"]), (&json!(2), &Value::Null));
    assert_eq!(daemon.model()["drift"], Value::Null, "the configured file is served");
    daemon.drain();
}

fn busy_shadow() {
    let daemon = Daemon::start("none");
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| reload(&daemon, "shadows_slowly", json!({"shadow": {"steps": 8}})));
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(daemon.reload("none")["error"]["code"], -32002);
        daemon.reconfigure(&folder(daemon.dir.path(), "good"), "");
        daemon.serves(1);
        assert_eq!(slow.join().expect("reloads")["result"]["to_generation"], 2);
    });
    within("the changed configuration is served", || daemon.model()["generation"] == 3);
    daemon.serves(3);
    daemon.drain();
}

fn changed_twice_while_busy() {
    let daemon = Daemon::start("none");
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| reload(&daemon, "shadows_slowly", json!({"shadow": {"steps": 8}})));
        std::thread::sleep(Duration::from_millis(100));
        daemon.reconfigure(&folder(daemon.dir.path(), "good"), "");
        std::thread::sleep(Duration::from_millis(100));
        // What needs no other worker by itself belongs to the change that waits.
        daemon.reconfigure(&folder(daemon.dir.path(), "good"), "gate = { shadow = 16, max_diff = { out = 0.2 } }\n");
        assert_eq!(slow.join().expect("reloads")["result"]["to_generation"], 2);
    });
    within("the change was tried", || daemon.history().len() == 3);
    let tried = &daemon.history()[0];
    assert_eq!((&tried["cause"], &tried["verdict"]["accepted"]), (&json!("configuration"), &json!(false)), "{tried}");
    daemon.serves(2);
    daemon.drain();
}

fn drain_in_shadow() {
    let daemon = Daemon::start("none");
    let began = Instant::now();
    std::thread::scope(|scope| {
        let hung = scope.spawn(|| reload(&daemon, "hangs_shadowing", json!({"shadow": {"steps": 8}})));
        std::thread::sleep(Duration::from_millis(100));
        assert!(daemon.call("drain", json!({})).get("result").is_some());
        assert!(message(&hung.join().expect("an answer")).contains("shutting down"));
    });
    within("the daemon is gone", || !daemon.dir.path().join("run").exists());
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

fn dump() {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use std::io::Write;
    let daemon = Daemon::start("none");
    daemon.reload("dies_after_taking");
    daemon.await_state("quarantined");
    let mut socket =
        std::os::unix::net::UnixStream::connect(daemon.dir.path().join("run/control.sock")).expect("there");
    writeln!(socket, r#"{{"jsonrpc":"2.0","id":1,"method":"dump","params":{{"model":"m"}}}}"#).expect("sent");
    let mut buffer = vec![0; 64 << 10];
    let got = inferd_ipc::fdpass::recv(&socket, &mut buffer).expect("an answer");
    let answer: Value = serde_json::from_slice(&buffer[..got.bytes]).expect("JSON");
    assert_eq!((got.fds.len(), &answer["result"]["model"], &answer["result"]["steps"]), (1, &json!("m"), &json!(256)));
    let flags = OFlag::from_bits_retain(fcntl(&got.fds[0], FcntlArg::F_GETFL).expect("flags"));
    assert_eq!(flags & OFlag::O_ACCMODE, OFlag::O_RDONLY);
    let bytes = std::fs::File::from(got.fds.into_iter().next().expect("one")).metadata().expect("a file").len();
    assert_eq!(answer["result"]["region_bytes"], bytes);
    assert_eq!(daemon.call("dump", json!({"model": "n"}))["error"]["code"], -32000);
    daemon.drain();
}

/// A worker that is traced stops on its way out, killed or not: the nearest thing to one that hangs in the kernel.
fn stuck() {
    use nix::sys::ptrace::{self, Options};
    let daemon = Daemon::start("keeps_the_baton");
    let pid = daemon.model()["worker_pid"].as_i64().expect("a worker");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).expect("a pid"));
    if let Err(errno) = ptrace::seize(pid, Options::PTRACE_O_TRACEEXIT) {
        return println!("SKIP a_worker_that_a_kill_does_not_end_is_left_behind: ptrace is not allowed here ({errno})");
    }
    let answer = daemon.reload("none");
    assert_eq!(answer["result"]["to_generation"], 2, "{answer}");
    daemon.serves(2);
    assert!(std::path::Path::new(&format!("/proc/{pid}/status")).exists(), "the old one is still there");
    let _ = ptrace::detach(pid, None);
    // A candidate that hangs is not waited for either.
    let children = format!("/proc/{0}/task/{0}/children", daemon.child.id());
    let list = || std::fs::read_to_string(&children).unwrap_or_default();
    let before = list();
    std::thread::scope(|scope| {
        let reload = scope.spawn(|| daemon.reload("never_loads"));
        let mut new = None;
        within("the candidate is there", || {
            new = list().split_whitespace().find(|pid| !before.contains(*pid)).and_then(|pid| pid.parse().ok());
            new.is_some()
        });
        let new = nix::unistd::Pid::from_raw(new.expect("a child"));
        ptrace::seize(new, Options::PTRACE_O_TRACEEXIT).expect("it was allowed before");
        assert!(message(&reload.join().expect("an answer")).contains("hangs in the kernel"));
        let _ = ptrace::detach(new, None);
    });
    daemon.serves(2);
    daemon.reload("none");
    daemon.serves(3);
    daemon.drain();
}
