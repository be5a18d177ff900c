//! `inferctl`: every command at least once, for people and for scripts, and what it does to the daemon.

use inferd_ipc::control::{Command as Rpc, ModelAnswer, Reload};
use inferd_ipc::layout::Backing;
use inferd_tests::{Client, DaemonConfig, Driver, Model, ms, npy, turn, within};
use std::fs;

/// A skeleton from a model file loads as it is, and a manifest that is there is not touched.
#[test]
fn a_manifest_skeleton_made_from_an_onnx_file_is_served_as_it_is() {
    let _turn = turn();
    let daemon = DaemonConfig::new(Backing::Memfd).start();
    let folder = daemon.dir().join("fresh");
    fs::create_dir(&folder).expect("our own folder");
    let (file, manifest) = (folder.join("policy.onnx"), folder.join("model.toml"));
    fs::write(&file, inferd_tests::onnx::plus_one(&[1, 6])).expect("a model");
    let init = |args: &[&str]| daemon.tool("inferctl", &[&["init", file.to_str().expect("UTF-8")], args].concat());
    let printed = init(&["-o", "-"]).succeeded().out;
    assert!(!manifest.exists(), "-o - only prints");
    assert!(init(&[]).succeeded().out.trim().ends_with("model.toml"));
    assert_eq!(fs::read_to_string(&manifest).expect("written"), printed);
    assert!(printed.contains("shape = [1, 6]") && printed.contains("dtype = \"f32\""), "{printed}");
    let path = folder.display().to_string();
    let valid = daemon.tool("inferctl", &["validate", &path, "--json"]).succeeded().json();
    assert_eq!(valid["signature"]["inputs"][0]["shape"], serde_json::json!([1, 6]), "{valid}");
    init(&[]).refused(&["model.toml", "exists"]);
    fs::write(folder.join("x.keras"), "?").expect("our own file");
    daemon.tool("inferctl", &["init", &format!("{path}/x.keras")]).refused(&["x.keras", "tools/export"]);
    fs::write(folder.join("x.onnx"), "?").expect("our own file");
    daemon.tool("inferctl", &["init", &format!("{path}/x.onnx")]).refused(&["x.onnx", "no ONNX model"]);
    daemon.tool("inferctl", &["init", &format!("{path}/absent.onnx")]).refused(&["absent.onnx", "No such file"]);
}

#[test]
fn every_command_answers_in_a_table_and_in_json() {
    let _turn = turn();
    let mut daemon = DaemonConfig::new(Backing::Memfd).model(Model::counter("m").queue(4, "in_order")).start();
    let mut robot = Driver::start(&Client::Rust.program().expect("built"), &daemon.runtime_dir());
    let session = robot.ok("attach model=m").number("session").to_string();
    robot.exchange("fill=1").expect("ok");
    let second = Model::echo("second").write(&daemon.dir().join("more")).display().to_string();
    let run = |args: &[&str]| daemon.tool("inferctl", args).succeeded();
    for command in ["status", "models", "sessions", "limits", "stats", "version"] {
        assert!(!run(&[command]).out.trim().is_empty(), "{command} shows something");
        let json = run(&[command, "--json"]).json();
        assert!(json.is_object() || json.is_array(), "{command}: {json}");
    }
    assert_eq!(run(&["status", "--json"]).json()["state"], "ready");
    assert_eq!(run(&["models", "--json"]).json()[0]["model"], "m");
    assert_eq!(run(&["sessions", "--json"]).json()[0]["session"].to_string(), session);
    assert_eq!(run(&["stats", "m", "--json"]).json()["m"]["outcomes"]["ok"], 1);
    assert!(run(&["models", "m"]).out.contains("x"), "the signature");
    for limit in inferd_ipc::limits::TABLE {
        assert_eq!(run_limits(&daemon)[limit.name.to_lowercase()], limit.value, "{}", limit.name);
    }
    assert_eq!(
        run(&["validate", &second, "--backend", "echo", "--json"]).json()["signature"]["inputs"][0]["name"],
        "x"
    );
    assert!(!run(&["validate", &second, "--backend", "echo"]).out.is_empty());
    assert_eq!(run(&["load", "second", &second, "--backend", "echo", "--json"]).json()["state"], "live");
    robot.ok("attach s=1 model=second");
    assert_eq!(run(&["reload", "m", "--json"]).json()["to_generation"], 2);
    assert_eq!(run(&["rollback", "m", "--json"]).json()["from_generation"], 2);
    assert!(!run(&["reload", "m"]).out.is_empty());
    let done = run(&["unload", "second", "--json"]).json();
    assert!(done["message"].as_str().is_some_and(|m| m.contains("second")), "{done}");
    assert_eq!(robot.call("send s=1 fill=1").error(), "daemon_lost", "an unloaded model's sessions end");
    assert!(run(&["log", "debug", "--json"]).json()["message"].is_string());
    assert!(run(&["disconnect", &session, "--json"]).json()["message"].is_string());
    within(ms(1000), "the session has ended", || daemon.sessions().is_empty());
    for shell in ["bash", "zsh", "fish"] {
        assert!(run(&["completions", shell]).out.contains("inferctl"), "{shell}");
    }
    assert!(run(&["drain"]).out.len() > 1);
    daemon.ended(ms(5000));
    let ran = daemon.tool("inferctl", &["status"]);
    assert_eq!(ran.code, Some(3), "no daemon: {ran:?}");
}

fn run_limits(daemon: &inferd_tests::Daemon) -> serde_json::Value {
    daemon.rpc(&Rpc::Limits {}).expect("limits")
}

#[test]
fn bench_counts_outcomes_and_stages_flat_out_and_at_a_rate() {
    let _turn = turn();
    let daemon = DaemonConfig::new(Backing::Memfd).model(Model::echo("m").queue(4, "in_order")).start();
    let file = daemon.dir().join("bench.json").display().to_string();
    let args = ["bench", "m", "--rate", "500", "--duration", "1", "--clients", "2", "--json", &file];
    let table = daemon.tool("inferctl", &args).succeeded().out;
    assert!(table.contains("p99"), "{table}");
    let figures: serde_json::Value =
        serde_json::from_slice(&fs::read(&file).expect("the figures")).expect("figures are JSON");
    let text = figures.to_string();
    assert!(text.contains("ok") && text.contains("p50"), "{text}");
    daemon.tool("inferctl", &["bench", "m", "--flat-out", "--duration", "0.5"]).succeeded();
    assert_ne!(daemon.tool("inferctl", &["bench", "nobody", "--duration", "0.1"]).code, Some(0));
}

#[test]
fn call_runs_a_model_once_with_inputs_from_files() {
    let _turn = turn();
    let daemon = DaemonConfig::new(Backing::Memfd).model(Model::echo("m")).start();
    let x: Vec<f32> = (0..16).map(|i| i as f32 / 4.0).collect();
    let (from, to) = (daemon.dir().join("x.npy"), daemon.dir().join("y.npy"));
    fs::write(&from, npy::encode_f32(&[1, 16], &x)).expect("our own file");
    let input = format!("x={}", from.display());
    let output = format!("y={}", to.display());
    daemon.tool("inferctl", &["call", "m", "--input", &input, "--output", &output]).succeeded();
    assert_eq!(npy::decode_f32(&fs::read(&to).expect("the output")), x);
    let printed = daemon.tool("inferctl", &["call", "m", "--input", &input]).succeeded();
    assert!(printed.out.contains("3.75"), "{printed:?}");
    assert!(daemon.tool("inferctl", &["call", "m", "--zeros", "--json"]).succeeded().json().is_object());
    let wrong = daemon.tool("inferctl", &["call", "m", "--input", &format!("z={}", from.display())]);
    assert!(wrong.refused(&["z"]).code.is_some());
}

#[test]
fn a_long_command_streams_its_progress_with_the_request_s_id() {
    let _turn = turn();
    let daemon = DaemonConfig::new(Backing::Memfd).model(Model::echo("m")).start();
    let (progress, answer) =
        daemon.control().call_with_progress(&Rpc::Reload(Reload { model: "m".into(), ..Reload::default() }));
    answer.expect("reloaded");
    let stages: Vec<&str> = progress.iter().filter_map(|p| p["stage"].as_str()).collect();
    assert!(stages.contains(&"loading") && stages.contains(&"swapping"), "{stages:?}");
    assert!(progress.iter().all(|p| p["id"] == 7 && p["model"] == "m"), "{progress:?}");
}

#[test]
fn mutating_commands_on_one_model_are_serialised_and_logged_with_the_uid() {
    let _turn = turn();
    let model = Model::echo("m").option("load_delay_ms", 150);
    let daemon = DaemonConfig::new(Backing::Memfd).model(model).start();
    let results: Vec<bool> = std::thread::scope(|scope| {
        let reloads: Vec<_> = (0..4).map(|_| scope.spawn(|| daemon.reload("m"))).collect();
        let busy = |e: inferd_ipc::control::RpcError| e.code == inferd_ipc::control::code::BUSY;
        reloads.into_iter().map(|r| r.join().expect("no panic").map_or_else(|e| !busy(e), |_| true)).collect()
    });
    let taken = results.iter().filter(|ok| **ok).count() as u32;
    let after: ModelAnswer = daemon.model("m");
    assert!(taken >= 1 && after.generation == 1 + taken, "{results:?}, generation {}", after.generation);
    let uid = nix::unistd::geteuid().to_string();
    assert!(
        daemon.log().lines().any(|l| l.contains("Reload") && l.contains(&format!("uid={uid}"))),
        "{}",
        daemon.log()
    );
}
