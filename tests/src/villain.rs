//! Villains: programs that mean harm, in Rust and in C, run as the daemon's user or as another one.
//!
//! Each ends with a line of JSON that says what it managed to do. While one is at work a bystander's answers are checked
//! bit by bit ([`Beside`]), and how long the control socket takes is noted. In campaigns the bystander's latency is
//! compared with the same beside an innocent load. The C program is compiled when it is first needed.

use crate::bench::median;
use crate::cpus::Confined;
use crate::daemon::{Daemon, DaemonConfig};
use crate::driver::{Client, Driver};
use crate::model::Model;
use crate::places;
use crate::promises::{BYSTANDER_P99_TENTHS_MAX, BYSTANDER_P999_TENTHS_MAX, CONTROL_ANSWER, CONTROL_HANG};
use crate::rounds::is_campaign;
use inferd_ipc::control::{Command as Rpc, ModelAnswer};
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
    /// `tests/hostile_c`.
    C,
}

/// Compiles the C villain into `dir`.
fn compile(dir: &Path) -> PathBuf {
    let program = dir.join("villain_c");
    if !program.exists() {
        let (root, cc) = (places::repository(), std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
        let mut command = Command::new(cc);
        command.args(["-std=c11", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Werror", "-pthread"]);
        command.arg("-I").arg(root.join("include")).arg("-I").arg(root.join("client-c"));
        let sources = ["villain", "session", "regions", "sockets", "crowd"];
        command.args(sources.map(|name| root.join(format!("tests/hostile_c/{name}.c"))));
        let ran = command.arg("-o").arg(&program).output();
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
    /// Makes the program for this daemon beforehand, where the time that it takes would count.
    pub fn make(daemon: &Daemon, tongue: Tongue) {
        if tongue == Tongue::C {
            compile(daemon.dir());
        }
    }

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
        let _there = has_apart(daemon).then(|| Confined::on(VILLAINS_CPU));
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

/// The model of the bystander that shares neither model nor CPU with a villain: promise 4. Only campaigns have it, and only
/// where there are two CPUs; see [`apart`].
const APART: &str = "apart";
const VILLAINS_CPU: usize = 0;
const APART_CPU: usize = 1;
/// Stretches of the control run at most.
const CONTROL_STRETCHES_MAX: usize = 40;

/// Adds that bystander's model in campaigns, and puts the villain's model `m` on the villain's CPU.
#[must_use]
pub fn apart(config: DaemonConfig, m: Model) -> DaemonConfig {
    let two = std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() > APART_CPU);
    if !(is_campaign() && two) {
        return config.model(m);
    }
    let own = Model::counter(APART).queue(4, "in_order").config("cpu", &APART_CPU.to_string());
    config.model(m.config("cpu", &VILLAINS_CPU.to_string())).model(own)
}

fn has_apart(daemon: &Daemon) -> bool {
    is_campaign()
        && daemon.rpc::<Vec<ModelAnswer>>(&Rpc::Models {}).is_ok_and(|all| all.iter().any(|m| m.model == APART))
}

/// Latency of the bystander apart: a figure for each stretch.
struct Apart {
    driver: Driver,
    p50_ns: Vec<u64>,
    p99_ns: Vec<u64>,
    p999_ns: Vec<u64>,
}

impl Apart {
    fn start(daemon: &Daemon) -> Apart {
        crate::cpus::keep_on(daemon.pid(), VILLAINS_CPU);
        let _there = Confined::on(APART_CPU);
        let mut driver = Driver::start(&Client::Rust.program().expect("built"), &daemon.runtime_dir());
        driver.ok(&format!("attach model={APART} slots=4"));
        Apart { driver, p50_ns: vec![], p99_ns: vec![], p999_ns: vec![] }
    }

    fn begin(&mut self) {
        self.driver.begin("loop seconds=0.25 rate_hz=2000 depth=1 check=count");
    }

    fn finish(&mut self) {
        let summary = self.driver.finish(Duration::from_secs(20)).clean();
        assert_eq!(summary.count("ok"), summary.number("sent"), "the bystander apart: {}", summary.json);
        self.p50_ns.push(summary.number("p50_ns"));
        self.p99_ns.push(summary.number("p99_ns"));
        self.p999_ns.push(summary.number("p999_ns"));
    }

    /// Medians over the stretches, and forgets them.
    fn take(&mut self) -> [u64; 3] {
        [&mut self.p50_ns, &mut self.p99_ns, &mut self.p999_ns].map(|values| median(&std::mem::take(values)) as u64)
    }
}

/// A bystander on the same daemon, and the control socket, while villains are at work.
pub struct Beside<'d> {
    daemon: &'d Daemon,
    bystander: Driver,
    /// Longest time that `status` took.
    pub answer_max: Duration,
    apart: Option<Apart>,
    stretches: usize,
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
        let apart = has_apart(daemon).then(|| Apart::start(daemon));
        Beside { daemon, bystander, answer_max: Duration::ZERO, apart, stretches: 0 }
    }

    /// Sessions of bystanders.
    #[must_use]
    pub fn sessions(&self) -> usize {
        1 + usize::from(self.apart.is_some())
    }

    /// The bystander.
    #[must_use]
    pub fn bystander(&self) -> &Driver {
        &self.bystander
    }

    fn stretch(&mut self) {
        self.stretches += 1;
        self.bystander.begin("loop seconds=0.25 rate_hz=500 depth=2 check=count");
        if let Some(apart) = &mut self.apart {
            apart.begin();
        }
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
        if let Some(apart) = &mut self.apart {
            apart.finish();
        }
        let summary = self.bystander.finish(Duration::from_secs(20)).clean();
        assert_eq!(summary.count("ok"), summary.number("sent"), "the bystander's answers: {}", summary.json);
    }

    /// Lets a villain do its deed, with the bystander's answers checked all the while; returns what it managed to do.
    ///
    /// # Panics
    /// When the bystander lost an answer or the daemon hangs.
    pub fn during(&mut self, mut villain: Villain, limit: Duration) -> Value {
        loop {
            let running = villain.is_running();
            self.stretch();
            if !running {
                break;
            }
        }
        villain.finish(limit)
    }

    /// Prints how long the control socket took, and in a campaign the latency of the bystander apart over that beside an
    /// innocent load on the villain's CPU.
    pub fn record(mut self, name: &str) {
        let (took, promised) = (self.answer_max, CONTROL_ANSWER);
        println!("figure {name}: the control socket answered within {took:?} (promised {promised:?})");
        let Some(beside) = self.apart.as_mut().map(Apart::take) else { return };
        let (uid, stretches) = (nix::unistd::geteuid().as_raw(), self.stretches.min(CONTROL_STRETCHES_MAX));
        let innocent =
            Villain::start(self.daemon, Tongue::Rust, uid, &format!("innocent seconds={}", stretches / 3 + 1));
        let _ = self.during(innocent, Duration::from_secs(30));
        let Some(control) = self.apart.as_mut().map(Apart::take) else { return };
        let ratio = |i: usize| beside[i] as f64 / control[i].max(1) as f64;
        let promised = [BYSTANDER_P99_TENTHS_MAX, BYSTANDER_P999_TENTHS_MAX].map(|tenths| tenths as f64 / 10.0);
        eprintln!(
            "campaign figure {name}: bystander apart, {stretches} stretches: p50 {} ns, {:.2} x that beside an innocent load; p99 {:.2} x (promised {}); p99.9 {:.2} x (promised {})",
            beside[0],
            ratio(0),
            ratio(1),
            promised[0],
            ratio(2),
            promised[1]
        );
    }
}
