//! The supervisor against workers that misbehave at every point of a swap.
//!
//! This program is both sides: started by `inferd` under the name of a worker it is a fake one, whose
//! misdeed the model's options name; started by cargo it runs a daemon in a directory of its own and
//! looks at it through the control socket. What always must hold: exactly one worker has the baton
//! afterwards, a refused generation leaves the live one serving, and the daemon ends in time.

mod fake;
mod registry;
mod reloads;
mod stored;

use inferd_ipc::limits::STORE_EXIT_MS;
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// Bound of one scenario's waits.
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let name = std::env::args().next().unwrap_or_default();
    if Path::new(&name).file_name().is_some_and(|name| name == "inferd-worker-fake") {
        return fake::run();
    }
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let mut passed = 0;
    for (name, scenario) in
        SCENARIOS.iter().chain(reloads::SCENARIOS).chain(stored::SCENARIOS).chain(registry::SCENARIOS)
    {
        if filter.as_ref().is_none_or(|filter| name.contains(filter.as_str())) {
            scenario();
            println!("test {name} ... ok");
            passed += 1;
        }
    }
    println!("\ntest result: ok. {passed} passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n");
    ExitCode::SUCCESS
}

const SCENARIOS: &[(&str, fn())] = &[
    ("a_good_reload_passes_the_baton_and_a_rollback_passes_it_back", good_reload_and_rollback),
    ("whatever_a_next_generation_does_wrong_before_it_is_live_leaves_the_live_one_serving", bad_generations),
    ("a_worker_that_never_takes_the_baton_is_ended_and_the_old_one_resumes", never_takes),
    ("an_old_worker_that_does_not_let_go_is_ended_and_the_new_one_takes_over", keeps_the_baton),
    ("a_generation_whose_workers_keep_dying_is_quarantined_until_an_operator_acts", quarantine),
    ("a_second_mutating_command_on_a_model_is_busy_and_looking_is_not", busy),
    ("a_drain_ends_in_time_whatever_the_workers_do", stubborn_drain),
    ("a_model_that_must_be_there_and_cannot_be_loaded_fails_the_start_with_one_message", failed_start),
];

/// A daemon in a directory of its own.
struct Daemon {
    dir: tempfile::TempDir,
    child: Child,
}

impl Daemon {
    /// Starts a daemon that serves model `m` from the folder of this misdeed.
    fn start(misdeed: &str) -> Daemon {
        Daemon::start_with(misdeed, "")
    }

    /// With further lines of `[models.m]`.
    fn start_with(misdeed: &str, lines: &str) -> Daemon {
        let daemon = Daemon::spawn(misdeed, lines);
        daemon.await_ready();
        daemon
    }

    fn await_ready(&self) {
        let ready = || self.try_call("status", json!({})).is_some_and(|status| status["result"]["state"] == "ready");
        within("the daemon gets ready", ready);
    }

    /// Stops it in the orderly way, and starts it again on what it left behind.
    fn restart(&mut self) {
        self.restart_on(&self.dir.path().join("state"));
    }

    /// As [`Daemon::restart`], with another state directory.
    fn restart_on(&mut self, state: &Path) {
        assert!(self.call("drain", json!({})).get("result").is_some());
        assert!(self.child.wait().expect("inferd ends").success());
        self.child = Daemon::command(self.dir.path(), state).spawn().expect("inferd starts");
        self.await_ready();
    }

    /// Writes another configuration, and has it read.
    fn reconfigure(&self, folder: &Path, lines: &str) {
        configure(self.dir.path(), folder, lines);
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGHUP).expect("it runs");
    }

    fn history(&self) -> Vec<Value> {
        self.call("history", json!({"model": "m"}))["result"].as_array().expect("a list").clone()
    }

    fn spawn(misdeed: &str, lines: &str) -> Daemon {
        let dir = tempfile::tempdir().expect("a folder");
        let workers = dir.path().join("workers");
        fs::create_dir(&workers).expect("a folder");
        let own = std::env::current_exe().expect("this program");
        std::os::unix::fs::symlink(own, workers.join("inferd-worker-fake")).expect("a link");
        let model = folder(dir.path(), misdeed);
        configure(dir.path(), &model, lines);
        let child = Daemon::command(dir.path(), &dir.path().join("state")).spawn().expect("inferd starts");
        Daemon { dir, child }
    }

    fn command(dir: &Path, state: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_inferd"));
        command.arg("--config").arg(dir.join("inferd.toml"));
        command.arg("--runtime-dir").arg(dir.join("run"));
        command.arg("--worker-dir").arg(dir.join("workers"));
        command.arg("--state-dir").arg(state);
        command.stderr(Stdio::piped()).env_remove("NOTIFY_SOCKET");
        command
    }

    fn try_call(&self, method: &str, params: Value) -> Option<Value> {
        let mut socket = UnixStream::connect(self.dir.path().join("run/control.sock")).ok()?;
        socket.set_read_timeout(Some(PATIENCE)).ok()?;
        let line = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        writeln!(socket, "{line}").ok()?;
        let lines = BufReader::new(socket).lines();
        let mut messages = lines.map_while(Result::ok).map(|line| serde_json::from_str::<Value>(&line).expect("JSON"));
        messages.find(|message| message.get("id").is_some())
    }

    fn call(&self, method: &str, params: Value) -> Value {
        self.try_call(method, params).expect("an answer")
    }

    fn reload(&self, misdeed: &str) -> Value {
        let path = folder(self.dir.path(), misdeed);
        self.call("reload", json!({"model": "m", "path": path}))
    }

    fn models(&self) -> Vec<Value> {
        self.call("models", json!({}))["result"].as_array().cloned().unwrap_or_default()
    }

    fn model(&self) -> Value {
        self.call("models", json!({}))["result"][0].clone()
    }

    /// The fake's counters: whether it holds the baton, and its generation.
    fn holds(&self) -> (u64, u64) {
        let stats = self.call("stats", json!({}));
        let stats = &stats["result"]["m"];
        (stats["sleeps"].as_u64().unwrap_or(0), stats["outcomes"]["generation"].as_u64().unwrap_or(0))
    }

    /// The live worker of this generation has the baton.
    fn serves(&self, generation: u64) {
        let model = self.model();
        assert_eq!((&model["state"], model["generation"].as_u64()), (&json!("live"), Some(generation)), "{model}");
        let deadline = Instant::now() + PATIENCE;
        while self.holds() != (1, generation) {
            assert!(Instant::now() < deadline, "generation {generation} has the baton: {:?}", self.holds());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn await_state(&self, state: &str) {
        let deadline = Instant::now() + PATIENCE;
        while self.model()["state"] != state {
            assert!(Instant::now() < deadline, "the model gets {state}: {}", self.model());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Asks for the end; returns how long it took.
    fn drain(mut self) -> Duration {
        let began = Instant::now();
        assert!(self.call("drain", json!({})).get("result").is_some());
        let status = self.child.wait().expect("inferd ends");
        assert!(status.success(), "a drain that was asked for exits 0: {status}");
        assert!(!self.dir.path().join("run").exists(), "nothing is left behind");
        began.elapsed()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes the configuration: the model's folder, and further lines.
fn configure(dir: &Path, folder: &Path, lines: &str) {
    let model = format!("[models.m]\npath = {folder:?}\nmax_run_ms = 100\nload_ms = 1500\n{lines}");
    fs::write(dir.join("inferd.toml"), format!("[daemon]\ndrain_ms = 700\n{model}")).expect("written");
}

/// A model whose worker does this wrong.
fn folder(dir: &Path, misdeed: &str) -> PathBuf {
    let folder = dir.join(misdeed);
    if !folder.exists() {
        fs::create_dir(&folder).expect("a folder");
        fs::write(folder.join("model.bin"), misdeed).expect("written");
        let manifest = format!("file = \"model.bin\"\nbackend = \"fake\"\n[options]\nmisdeed = \"{misdeed}\"\n");
        fs::write(folder.join("model.toml"), manifest).expect("written");
    }
    folder
}

/// Waits until this holds.
fn within(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn message(answer: &Value) -> &str {
    answer["error"]["message"].as_str().unwrap_or_else(|| panic!("refused: {answer}"))
}

fn good_reload_and_rollback() {
    let daemon = Daemon::start("none");
    daemon.serves(1);
    let answer = daemon.reload("none");
    assert_eq!((&answer["result"]["from_generation"], &answer["result"]["to_generation"]), (&json!(1), &json!(2)));
    daemon.serves(2);
    for (from, to) in [(2, 1), (1, 2), (2, 1)] {
        let answer = daemon.call("rollback", json!({"model": "m"}));
        assert_eq!(answer["result"]["from_generation"], from);
        daemon.serves(to);
    }
    daemon.reload("none");
    daemon.serves(3);
    assert_eq!(daemon.model()["kept_generation"], 1);
    daemon.drain();
}

fn bad_generations() {
    let daemon = Daemon::start("none");
    for (misdeed, said) in [
        ("refuses", "this file is no good"),
        ("speaks_garbage", "it sent not a worker record"),
        ("other_signature", "that is a new model"),
        ("never_loads", "raise load_ms"),
        ("asks_for_secrets", "not a name below the model's folder"),
        ("loads_twice", ""),
        ("dies_loading", "exit status: 7"),
        ("dies_when_granted", "exit status: 7"),
    ] {
        let answer = daemon.reload(misdeed);
        if misdeed != "loads_twice" {
            assert!(message(&answer).contains(said), "{misdeed}: {answer}");
            assert_eq!(daemon.model()["message"], answer["error"]["message"]);
            daemon.serves(1);
        }
        daemon.await_state("live");
        if daemon.model()["generation"] != 1 {
            daemon.call("rollback", json!({"model": "m"}));
        }
    }
    let answer = daemon.call("validate", json!({"path": folder(daemon.dir.path(), "refuses")}));
    assert!(message(&answer).contains("this file is no good"));
    assert!(daemon.call("validate", json!({"path": folder(daemon.dir.path(), "none")})).get("result").is_some());
    daemon.drain();
}

fn never_takes() {
    let daemon = Daemon::start("none");
    let answer = daemon.reload("never_takes");
    assert!(message(&answer).contains("did not take the baton"), "{answer}");
    daemon.serves(1);
    assert_eq!(daemon.model()["worker_deaths"], 0, "the old one was never gone");
    daemon.reload("none");
    daemon.serves(2);
    daemon.drain();
}

fn keeps_the_baton() {
    let daemon = Daemon::start("keeps_the_baton");
    daemon.serves(1);
    let answer = daemon.reload("none");
    assert_eq!(answer["result"]["to_generation"], 2, "{answer}");
    daemon.serves(2);
    assert_eq!((&daemon.model()["worker_deaths"], &daemon.model()["kept"]), (&json!(1), &json!("disk")));
    daemon.drain();
}

fn quarantine() {
    let daemon = Daemon::start("none");
    let answer = daemon.reload("dies_after_taking");
    assert_eq!(answer["result"]["to_generation"], 2, "{answer}");
    daemon.await_state("quarantined");
    assert_eq!(daemon.model()["worker_deaths"], 6);
    let answer = daemon.call("rollback", json!({"model": "m"}));
    assert_eq!(answer["result"]["to_generation"], 1, "{answer}");
    daemon.serves(1);
    daemon.drain();
}

fn busy() {
    let daemon = Daemon::start("none");
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| daemon.reload("loads_slowly"));
        std::thread::sleep(Duration::from_millis(100));
        for method in ["reload", "rollback", "unload"] {
            let answer = daemon.call(method, json!({"model": "m"}));
            assert_eq!(answer["error"]["code"], -32002, "{method}: {answer}");
        }
        daemon.serves(1);
        assert_eq!(slow.join().expect("reloads")["result"]["to_generation"], 2);
    });
    daemon.drain();
}

fn stubborn_drain() {
    for misdeed in ["none", "ignores_orders"] {
        let daemon = Daemon::start(misdeed);
        let took = daemon.drain();
        assert!(took < Duration::from_millis(1500 + STORE_EXIT_MS), "{misdeed}: {took:?}");
    }
}

fn failed_start() {
    let mut daemon = Daemon::spawn("refuses", "");
    let status = daemon.child.wait().expect("it ends");
    assert_eq!(status.code(), Some(1));
    let stderr = std::io::read_to_string(daemon.child.stderr.take().expect("piped")).expect("text");
    let last = stderr.lines().last().unwrap_or_default();
    assert!(last.starts_with("inferd: model m: this file is no good") && last.contains("optional"), "{last}");
    assert!(!daemon.dir.path().join("run").exists(), "nothing is left behind");
}
