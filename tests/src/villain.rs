//! Villains: programs that mean harm, in Rust and in C, run as the daemon's user or as another one.
//!
//! Each ends with a line of JSON that says what it managed to do. While one is at work a bystander's answers are checked
//! bit by bit ([`Beside`]), and how long the control socket takes is noted. In campaigns the bystander's latency is
//! compared with the same beside an innocent load. The C program is compiled when it is first needed.

use crate::answer::Answer;
use crate::daemon::Daemon;
use crate::driver::{Client, Driver};
use crate::places;
use crate::promises::{BYSTANDER_P99_TENTHS_MAX, CONTROL_ANSWER, CONTROL_HANG};
use serde_json::Value;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A uid that owns nothing here.
pub const OTHER_UID: u32 = 61_234;

/// What a villain is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tongue {
    /// `tests/src/bin/villain`.
    Rust,
    /// `tests/hostile_c/villain.c`.
    C,
}

/// Compiles the C villain into `dir`.
fn compile(dir: &Path) -> PathBuf {
    let program = dir.join("villain_c");
    if !program.exists() {
        let (root, cc) = (places::repository(), std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
        let mut command = Command::new(cc);
        command.args(["-std=c11", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Werror"]);
        command.arg("-I").arg(root.join("include")).arg("-I").arg(root.join("client-c"));
        let ran = command.arg("-o").arg(&program).arg(root.join("tests/hostile_c/villain.c")).output();
        let ran = ran.expect("a C compiler is one of the few things that the build needs");
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    }
    program
}

/// A villain at work. Dropping it kills it.
pub struct Villain {
    child: Child,
    words: String,
}

impl Villain {
    /// Starts a deed against this daemon as `uid`.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(daemon: &Daemon, tongue: Tongue, uid: u32, deed: &str) -> Villain {
        let program = match tongue {
            Tongue::C => compile(daemon.dir()),
            Tongue::Rust => {
                // The build folder may lie where only its owner may look.
                let copy = daemon.dir().join("villain");
                if !copy.exists() {
                    fs::copy(places::test_program("villain"), &copy).expect("our own folder");
                }
                copy
            }
        };
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("our own file");
        let mut command = Command::new(&program);
        if uid != nix::unistd::geteuid().as_raw() {
            command = Command::new("setpriv");
            command.args([&format!("--reuid={uid}"), &format!("--regid={uid}"), "--clear-groups", "--"]).arg(program);
        }
        command.args(deed.split_whitespace()).env("INFERD_RUNTIME_DIR", daemon.runtime_dir()).stdin(Stdio::null());
        let child = command.stdout(Stdio::piped()).spawn().expect("a villain can be started");
        Villain { child, words: format!("{tongue:?} as {uid}: {deed}") }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Whether it is still at it.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// What it managed to do, once it has ended.
    ///
    /// # Panics
    /// When it hangs, died of a signal (SIGBUS, say), or said nothing.
    pub fn finish(mut self, limit: Duration) -> Value {
        let end = Instant::now() + limit;
        while self.is_running() {
            assert!(Instant::now() < end, "{}: it hangs", self.words);
            std::thread::sleep(Duration::from_millis(2));
        }
        let status = self.child.wait().expect("a child can be waited for");
        assert!(status.success(), "{}: it ended with {status}", self.words);
        let mut text = String::new();
        self.child.stdout.take().expect("a pipe").read_to_string(&mut text).expect("text");
        println!("{}: {}", self.words, text.trim());
        serde_json::from_str(text.trim()).unwrap_or_else(|e| panic!("{}: not JSON ({e}): {text}", self.words))
    }
}

impl Drop for Villain {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A bystander on the same daemon, and the control socket, while villains are at work.
pub struct Beside<'d> {
    daemon: &'d Daemon,
    bystander: Driver,
    /// Longest time that `status` took.
    pub answer_max: Duration,
    p99_ns: u64,
}

impl<'d> Beside<'d> {
    /// A bystander that has attached to `model`, a [`crate::Model::counter`].
    ///
    /// # Panics
    /// When it cannot.
    #[must_use]
    pub fn new(daemon: &'d Daemon, model: &str) -> Beside<'d> {
        let mut bystander = Driver::start(&Client::Rust.program().expect("built"), &daemon.runtime_dir());
        bystander.ok(&format!("attach model={model} slots=4"));
        bystander.exchange("fill=1").expect("ok");
        Beside { daemon, bystander, answer_max: Duration::ZERO, p99_ns: 0 }
    }

    /// The bystander.
    #[must_use]
    pub fn bystander(&self) -> &Driver {
        &self.bystander
    }

    fn stretch(&mut self) -> Answer {
        self.bystander.begin("loop seconds=0.25 rate_hz=500 depth=2 check=count");
        let start = Instant::now();
        // Refused when there are too many operators: that is an answer as well.
        let mut answer = [0; 1];
        if let Ok(mut control) = UnixStream::connect(self.daemon.runtime_dir().join("control.sock")) {
            control.set_read_timeout(Some(CONTROL_HANG)).expect("ours");
            let _ = control.write_all(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"status\"}\n");
            let _ = control.read(&mut answer);
        }
        let took = start.elapsed();
        assert!(took < CONTROL_HANG, "the control socket took {took:?}");
        self.answer_max = self.answer_max.max(took);
        let summary = self.bystander.finish(Duration::from_secs(20)).clean();
        assert_eq!(summary.count("ok"), summary.number("sent"), "the bystander's answers: {}", summary.json);
        summary
    }

    /// Lets a villain do its deed, with the bystander's answers checked all the while; returns what it managed to do.
    ///
    /// # Panics
    /// When the bystander lost an answer or the daemon hangs.
    pub fn during(&mut self, mut villain: Villain, limit: Duration) -> Value {
        loop {
            let running = villain.is_running();
            let summary = self.stretch();
            self.p99_ns = self.p99_ns.max(summary.number("p99_ns"));
            if !running {
                break;
            }
        }
        villain.finish(limit)
    }

    /// Prints how long the control socket took, and in a campaign the bystander's latency beside an innocent load.
    pub fn record(mut self, name: &str) {
        let (took, promised) = (self.answer_max, CONTROL_ANSWER);
        println!("figure {name}: the control socket answered within {took:?} (promised {promised:?})");
        if !crate::rounds::is_campaign() {
            return;
        }
        let (beside, uid) = (std::mem::take(&mut self.p99_ns), nix::unistd::geteuid().as_raw());
        let innocent = Villain::start(self.daemon, Tongue::Rust, uid, "innocent seconds=3");
        let _ = self.during(innocent, Duration::from_secs(30));
        let ratio = beside as f64 / self.p99_ns.max(1) as f64;
        let promised = BYSTANDER_P99_TENTHS_MAX as f64 / 10.0;
        let control = self.p99_ns;
        eprintln!(
            "campaign figure {name}: bystander p99 {beside} ns beside the villain, {control} ns beside an innocent load: {ratio:.2} x (promised {promised} x with CPUs of its own)"
        );
    }
}
