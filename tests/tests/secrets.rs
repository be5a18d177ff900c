//! What must never stand in a log, not even at `trace`: tensors, credentials, and what an operator's tool sends by mistake.

use inferd_ipc::control::Command as Rpc;
use inferd_tests::{Model, ms, scenarios, within};
use serde_json::Value;
use std::fs;

/// What stands in the daemon's environment and in its folder of credentials.
const KEY: &str = "sk-Zg3vQ1mT8wYc5rKd";
/// What a tool sends where it does not belong.
const TOKEN: &str = "bearer-Hn7uX2pLw9";
/// An element that no clock and no counter shows.
const ELEMENT: f32 = -7_391.284;

scenarios! {
    fn a_log_at_trace_level_holds_no_tensor_and_no_secret(case) {
        let credentials = tempfile::tempdir().expect("a folder");
        fs::write(credentials.path().join("keys_robot"), KEY).expect("written");
        let folder = credentials.path().to_str().expect("a plain path");
        let config = case.config().model(Model::echo("m")).env("ROBOT_API_KEY", KEY).env("CREDENTIALS_DIRECTORY", folder);
        let mut daemon = config.start();
        let _: Value = daemon.rpc(&Rpc::Log { level: "trace".into() }).expect("the level is set");
        let mut robot = case.attached(&daemon, "model=m");
        let tensor = ELEMENT.to_le_bytes().repeat(16);
        let hex: String = tensor.iter().map(|byte| format!("{byte:02x}")).collect();
        let answer = robot.ok(&format!("infer hex={hex}"));
        assert_eq!(answer.expect("ok").output_f32(0)[0], ELEMENT);
        robot.ok(&format!("infer hex={}", "7fc00000".repeat(16)));
        let mut control = daemon.control();
        for line in [
            format!(r#"{{"jsonrpc":"2.0","id":1,"method":"status","params":{{"token":"{TOKEN}"}}}}"#),
            format!(r#"{{"jsonrpc":"2.0","id":2,"method":"{TOKEN}"}}"#),
            format!("Authorization: {TOKEN}"),
        ] {
            control.raw(format!("{line}\n").as_bytes()).expect("sent");
            assert!(control.message().expect("an answer").error.is_some(), "such a request is refused: {line}");
        }
        daemon.reload("m").expect("reloaded");
        let environment = fs::read(format!("/proc/{}/environ", daemon.worker("m"))).expect("the worker's environment");
        assert!(!contains(&environment, KEY.as_bytes()), "a worker inherits no secret");
        assert!(contains(&environment, b"PATH="), "and this would show one");
        within(ms(2000), "the session's begin is in the log", || daemon.log().contains("session begins"));
        drop(robot);
        daemon.stop();
        let log = daemon.log();
        assert!(log.contains("DEBUG") || log.contains("TRACE"), "the level is in force: {log}");
        for secret in [KEY, TOKEN, &hex[..16], &ELEMENT.to_string(), "-7391.28"] {
            assert!(!log.contains(secret), "{secret} stands in the log: {log}");
        }
        assert!(!contains(log.as_bytes(), &tensor[..8]), "a tensor stands in the log");
    }
}

fn contains(text: &[u8], what: &[u8]) -> bool {
    text.windows(what.len()).any(|window| window == what)
}
