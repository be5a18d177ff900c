//! A daemon of its own for every test: private directories, a configuration written for the test, an end.
//!
//! Start waits for READY=1 on a notify socket. Dropping a daemon stops it in the orderly way and then requires
//! what every test requires: nothing of a session left in its processes ([`crate::ending`]), exit 0, no child left, nothing
//! left in the runtime directory or `/dev/shm`.
//! When the test has failed already, the daemon's log is printed instead.

use crate::control::Control;
use crate::driver::Driver;
use crate::ending::Beginning;
use crate::model::Model;
use crate::places;
use crate::process::{self, Footprint, holds_open};
use crate::ran::Ran;
use crate::within;
use inferd_ipc::control::{
    Command as Rpc, HistoryEntry, ModelAnswer, Reload, ReloadAnswer, RpcError, SessionAnswer, StatusAnswer,
};
use inferd_ipc::layout::Backing;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::de::DeserializeOwned;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long a start may take.
const START_TIME: Duration = Duration::from_secs(30);
/// How long an orderly stop may take in tests that do not drain load.
const STOP_TIME: Duration = Duration::from_secs(10);
/// They come to rest within this: a slow disk takes a second for each fsync of a start.
const REST_TIME: Duration = Duration::from_secs(30);

/// What a daemon will be started with.
pub struct DaemonConfig {
    backing: Backing,
    models: Vec<Model>,
    sections: Vec<(String, String)>,
    env: Vec<(String, String)>,
    programs: Option<PathBuf>,
}

impl DaemonConfig {
    /// No models yet.
    #[must_use]
    pub fn new(backing: Backing) -> DaemonConfig {
        DaemonConfig { backing, models: Vec::new(), sections: Vec::new(), env: Vec::new(), programs: None }
    }

    /// Adds a model.
    #[must_use]
    pub fn model(mut self, model: Model) -> DaemonConfig {
        self.models.push(model);
        self
    }

    /// Adds `line` to `[section]`.
    #[must_use]
    pub fn set(mut self, section: &str, line: &str) -> DaemonConfig {
        self.sections.push((section.to_owned(), line.to_owned()));
        self
    }

    /// Adds a variable to the daemon's environment.
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> DaemonConfig {
        self.env.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Takes daemon and worker from this folder.
    #[must_use]
    pub fn programs(mut self, dir: PathBuf) -> DaemonConfig {
        self.programs = Some(dir);
        self
    }

    /// Writes everything down without starting.
    ///
    /// # Panics
    /// When the disk refuses.
    #[must_use]
    pub fn prepare(self) -> Daemon {
        let dir = tempfile::Builder::new().prefix("inferd-test.").tempdir().expect("a temporary folder");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("our own folder");
        let daemon = Daemon {
            dir,
            config: self,
            child: None,
            started: Instant::now(),
            ready_after: Duration::ZERO,
            wrapper: None,
            beginning: None,
        };
        daemon.write_config();
        daemon
    }

    /// Starts the daemon and waits until it is ready.
    ///
    /// # Panics
    /// When it does not become ready.
    #[must_use]
    pub fn start(self) -> Daemon {
        let mut daemon = self.prepare();
        daemon.start();
        daemon
    }

    fn text(&self, dir: &Path) -> String {
        let backing = match self.backing {
            Backing::Memfd => "memfd",
            Backing::Posix => "posix",
        };
        let mut text = String::new();
        for section in ["daemon", "ipc", "worker", "quota"] {
            text += &format!("[{section}]\n");
            if section == "ipc" {
                text += &format!("backing = {backing:?}\n");
            }
            let lines = self.sections.iter().filter(|(s, _)| s == section);
            lines.for_each(|(_, line)| text += &format!("{line}\n"));
        }
        self.models.iter().for_each(|m| text += &m.section(&m.write(&dir.join("models"))));
        text
    }
}

/// A daemon under test.
pub struct Daemon {
    dir: tempfile::TempDir,
    config: DaemonConfig,
    child: Option<Child>,
    started: Instant,
    ready_after: Duration,
    wrapper: Option<Vec<String>>,
    beginning: Option<Beginning>,
}

impl Daemon {
    /// The folder of everything that belongs to this daemon.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where its sockets are.
    #[must_use]
    pub fn runtime_dir(&self) -> PathBuf {
        self.dir().join("run")
    }

    /// Where its store and its history are.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.dir().join("state")
    }

    /// Its configuration file.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.dir().join("inferd.toml")
    }

    /// Writes configuration and models down again.
    ///
    /// # Panics
    /// When the disk refuses.
    pub fn write_config(&self) {
        fs::write(self.config_file(), self.config.text(self.dir())).expect("a configuration");
    }

    /// Replaces a model of the same name, or adds one; takes effect with a reload, SIGHUP or restart.
    pub fn change(&mut self, model: Model) {
        self.config.models.retain(|m| m.name != model.name);
        self.config.models.push(model);
        self.write_config();
    }

    /// Starts it from now on through another program: `words`, then what `rest` makes of the shell line of inferd.
    pub fn inside(&mut self, words: &[&str], rest: impl Fn(&str) -> Vec<String>) {
        let (program, config, run) = (places::program("inferd"), self.config_file(), self.runtime_dir());
        let line = format!("'{}' --config '{}' --runtime-dir '{}'", program.display(), config.display(), run.display());
        self.wrapper = Some(words.iter().map(|w| (*w).to_owned()).chain(rest(&line)).collect());
    }

    /// Runs it from now on as another user, with programs of its own in its folder (needs root and `setpriv`).
    ///
    /// # Panics
    /// When the disk refuses.
    pub fn run_as(&mut self, uid: u32) {
        let bin = self.dir().join("bin");
        fs::create_dir_all(&bin).expect("our own folder");
        for program in ["inferd", "inferd-worker"] {
            fs::copy(places::program(program), bin.join(program)).expect("our own folder");
        }
        for dir in [self.runtime_dir(), self.state_dir()] {
            fs::create_dir_all(&dir).expect("our own folder");
            std::os::unix::fs::chown(&dir, Some(uid), Some(uid)).expect("root may");
        }
        let (inferd, config, run) = (bin.join("inferd"), self.config_file(), self.runtime_dir());
        let [inferd, config, run] = [inferd, config, run].map(|path| path.display().to_string());
        let ids = [format!("--reuid={uid}"), format!("--regid={uid}")];
        let words =
            ["setpriv", &ids[0], &ids[1], "--clear-groups", "--", &inferd, "--config", &config, "--runtime-dir", &run];
        let words = words.map(str::to_owned).into();
        self.wrapper = Some(words);
    }

    /// The command that starts this daemon.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = match &self.wrapper {
            Some(words) => {
                let mut command = Command::new(&words[0]);
                command.args(&words[1..]);
                command
            }
            None => {
                let program =
                    self.config.programs.as_ref().map_or_else(|| places::program("inferd"), |dir| dir.join("inferd"));
                let mut command = Command::new(program);
                command.arg("--config").arg(self.config_file()).arg("--runtime-dir").arg(self.runtime_dir());
                command
            }
        };
        command.env_remove("INFERD_RUNTIME_DIR").env_remove("RUNTIME_DIRECTORY").env_remove("NOTIFY_SOCKET");
        // A history of its own: a daemon of another test must not be taken up again.
        command.env("STATE_DIRECTORY", self.state_dir());
        command.envs(self.config.env.iter().map(|(k, v)| (k, v)));
        command.stdin(Stdio::null());
        command
    }

    /// Starts and waits for READY.
    ///
    /// # Panics
    /// When it does not become ready.
    pub fn start(&mut self) {
        if let Err(status) = self.try_start() {
            panic!("the daemon ended with {status} before READY; its log:\n{}", self.log());
        }
    }

    /// Starts and waits for READY or for its end.
    ///
    /// # Errors
    /// The exit status, when it ends first.
    ///
    /// # Panics
    /// When neither comes.
    pub fn try_start(&mut self) -> Result<(), ExitStatus> {
        let notify = self.dir().join("notify");
        fs::remove_file(&notify).ok();
        let socket = UnixDatagram::bind(&notify).expect("a notify socket");
        // A daemon of another user may write there, too.
        fs::set_permissions(&notify, fs::Permissions::from_mode(0o777)).expect("our own socket");
        socket.set_read_timeout(Some(Duration::from_millis(20))).expect("a timeout");
        fs::create_dir_all(self.runtime_dir()).expect("a runtime folder");
        let log = File::options().create(true).append(true).open(self.dir().join("log")).expect("a log file");
        let out = log.try_clone().expect("a descriptor");
        self.started = Instant::now();
        let child = self.command().env("NOTIFY_SOCKET", &notify).stdout(out).stderr(log).spawn();
        self.child = Some(child.expect("inferd can be started"));
        loop {
            let mut message = [0; 512];
            let said = socket.recv(&mut message).map(|n| String::from_utf8_lossy(&message[..n]));
            if said.is_ok_and(|text| text.lines().any(|l| l == "READY=1")) {
                self.ready_after = self.started.elapsed();
                self.beginning = Beginning::of(self.pid());
                return Ok(());
            }
            if let Some(status) = self.child.as_mut().and_then(|c| c.try_wait().ok().flatten()) {
                self.child = None;
                return Err(status);
            }
            assert!(self.started.elapsed() < START_TIME, "not ready within {START_TIME:?}; its log:\n{}", self.log());
        }
    }

    /// From spawn to READY.
    #[must_use]
    pub fn ready_after(&self) -> Duration {
        self.ready_after
    }

    /// Its process id.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the daemon runs").id()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|c| matches!(c.try_wait(), Ok(None)))
    }

    /// All that it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir().join("log")).unwrap_or_default()
    }

    /// A connection to its control socket.
    ///
    /// # Panics
    /// When it does not listen.
    #[must_use]
    pub fn control(&self) -> Control {
        Control::connect(&self.runtime_dir()).expect("the control socket listens")
    }

    /// One command, its answer typed.
    ///
    /// # Errors
    /// The daemon's error.
    pub fn rpc<T: DeserializeOwned>(&self, command: &Rpc) -> Result<T, RpcError> {
        self.control().call(command)
    }

    /// The daemon at a glance.
    ///
    /// # Panics
    /// When it refuses to say.
    #[must_use]
    pub fn status(&self) -> StatusAnswer {
        self.rpc(&Rpc::Status {}).expect("status")
    }

    /// One model's answer.
    ///
    /// # Panics
    /// When there is no such model.
    #[must_use]
    pub fn model(&self, name: &str) -> ModelAnswer {
        let models: Vec<ModelAnswer> = self.rpc(&Rpc::Models {}).expect("models");
        models.into_iter().find(|m| m.model == name).expect("a model of that name")
    }

    /// All sessions.
    ///
    /// # Panics
    /// When the daemon refuses to say.
    #[must_use]
    pub fn sessions(&self) -> Vec<SessionAnswer> {
        self.rpc(&Rpc::Sessions {}).expect("sessions")
    }

    /// The process id of a model's live worker.
    ///
    /// # Panics
    /// When it has none.
    #[must_use]
    pub fn worker(&self, name: &str) -> u32 {
        self.model(name).worker_pid.expect("a live worker")
    }

    /// Reloads a model from its configured path.
    ///
    /// # Errors
    /// Why the new generation was refused.
    pub fn reload(&self, name: &str) -> Result<ReloadAnswer, RpcError> {
        self.rpc(&Rpc::Reload(Reload { model: name.to_owned(), ..Reload::default() }))
    }

    /// Reloads a model from another path.
    ///
    /// # Errors
    /// Why the new generation was refused.
    pub fn reload_from(&self, name: &str, path: &Path) -> Result<ReloadAnswer, RpcError> {
        let path = Some(path.display().to_string());
        self.rpc(&Rpc::Reload(Reload { model: name.to_owned(), path, ..Reload::default() }))
    }

    /// Every generation of a model, newest first.
    ///
    /// # Panics
    /// When the daemon refuses to say.
    #[must_use]
    pub fn history(&self, name: &str) -> Vec<HistoryEntry> {
        self.rpc(&Rpc::History { model: name.to_owned() }).expect("history")
    }

    /// Waits until a model is in this state.
    ///
    /// # Panics
    /// When it is not within 10 s.
    pub fn until_model_is(&self, name: &str, state: &str) {
        within(Duration::from_secs(10), &format!("{name} is {state}"), || self.model(name).state == state);
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When it does not run.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid() as i32), signal).expect("the daemon runs");
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn wait_exit(&mut self, limit: Duration) -> ExitStatus {
        let mut child = self.child.take().expect("the daemon runs");
        let end = Instant::now() + limit;
        loop {
            if let Ok(Some(status)) = child.try_wait() {
                return status;
            }
            if Instant::now() > end {
                child.kill().ok();
                child.wait().ok();
                panic!("the daemon did not end within {limit:?}; its log:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits for the end of a daemon that dies, and of its workers.
    ///
    /// # Panics
    /// When it does not end in time, or a worker outlives it.
    pub fn died(&mut self, limit: Duration) -> ExitStatus {
        let workers = process::children(self.pid());
        let status = self.wait_exit(limit);
        Self::none_outlives(&workers);
        status
    }

    /// The kernel takes a moment to end those whose supervisor has ended.
    fn none_outlives(workers: &[u32]) {
        within(Duration::from_secs(2), "a worker never outlives its supervisor", || {
            !workers.iter().any(|pid| process::is_alive(*pid))
        });
    }

    /// SIGKILLs the daemon and waits until it and its workers are gone.
    ///
    /// # Panics
    /// When a worker outlives it.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.died(STOP_TIME);
    }

    /// Stops it with SIGTERM and requires exit 0 and that nothing is left.
    ///
    /// # Panics
    /// When the end is not clean.
    pub fn stop(&mut self) {
        let settled = self.beginning.take().map_or(Ok(()), |beginning| beginning.settled());
        self.signal(Signal::SIGTERM);
        self.ended(STOP_TIME);
        assert_eq!(settled, Ok(()), "before the end");
    }

    /// Waits for the end that was asked for, and requires that it is clean.
    ///
    /// # Panics
    /// When the end is not clean.
    pub fn ended(&mut self, limit: Duration) {
        let workers = process::children(self.pid());
        let status = self.wait_exit(limit);
        assert!(status.success(), "the daemon ended with {status}; its log:\n{}", self.log());
        Self::none_outlives(&workers);
        self.nothing_is_left();
    }

    /// Requires that neither the runtime directory nor `/dev/shm` holds anything of a daemon.
    ///
    /// # Panics
    /// When something is left.
    pub fn nothing_is_left(&self) {
        let left: Vec<_> = fs::read_dir(self.runtime_dir()).into_iter().flatten().flatten().map(|e| e.path()).collect();
        assert!(left.is_empty(), "left in the runtime directory: {left:?}");
        assert_eq!(process::segments(), Vec::<String>::new(), "left in /dev/shm");
    }

    /// Lets the memory that its processes have now be what they began with: models have filled the buffers that they keep.
    pub fn buffers_are_filled(&mut self) {
        if let Some(beginning) = &mut self.beginning {
            beginning.with_memory_of_now();
        }
    }

    /// What its processes hold and no live session accounts for, as every scenario's end asks.
    #[must_use]
    pub fn left(&self) -> Vec<String> {
        self.beginning.as_ref().map(Beginning::left).unwrap_or_default()
    }

    /// What supervisor and workers hold now.
    #[must_use]
    pub fn footprint(&self) -> Vec<Footprint> {
        let mut pids = process::children(self.pid());
        pids.sort_unstable();
        pids.insert(0, self.pid());
        pids.into_iter().map(Footprint::of).collect()
    }

    /// Whether a generation or a history is on its way to the disk: they are held until it has taken them in, and so is the
    /// folder that they go into, for as long as the disk likes.
    #[must_use]
    pub fn is_storing(&self) -> bool {
        ["blobs", "history"].iter().any(|folder| holds_open(self.pid(), &self.state_dir().join(folder)))
    }

    /// What they hold once nothing changes any more: what a command or a session held a moment ago is not counted.
    ///
    /// # Panics
    /// When they do not come to rest.
    #[must_use]
    pub fn baseline(&self) -> Vec<Footprint> {
        let end = Instant::now() + REST_TIME;
        let (mut last, mut since) = (self.footprint(), Instant::now());
        while since.elapsed() < Duration::from_millis(150) {
            std::thread::sleep(Duration::from_millis(10));
            let now = self.footprint();
            if now != last || self.is_storing() {
                (last, since) = (now, Instant::now());
            }
            assert!(Instant::now() < end, "supervisor and workers do not come to rest: {last:#?}");
        }
        last
    }

    /// Requires that supervisor and workers hold again what they held then.
    ///
    /// # Panics
    /// When they do not within two seconds (threat model, promise 7).
    pub fn settles_to(&self, baseline: &[Footprint]) {
        let end = Instant::now() + Duration::from_secs(2);
        loop {
            let now = self.footprint();
            if now == baseline {
                return;
            }
            assert!(Instant::now() < end, "not back at {baseline:#?} but at {now:#?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Runs a program of ours against this daemon and returns exit code, stdout and stderr.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn tool(&self, program: &str, args: &[&str]) -> Ran {
        let mut command = Command::new(places::program(program));
        command.args(args).env("INFERD_RUNTIME_DIR", self.runtime_dir());
        Ran::of(command)
    }

    /// A driver of a given program.
    #[must_use]
    pub fn driver(&self, program: &Path) -> Driver {
        Driver::start(program, &self.runtime_dir())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            if let Some(mut child) = self.child.take() {
                child.kill().ok();
                child.wait().ok();
            }
            let log = self.log();
            let from = log.len().saturating_sub(12_000);
            let from = (from..log.len()).find(|i| log.is_char_boundary(*i)).unwrap_or(0);
            eprintln!("--- the daemon's log\n{}", &log[from..]);
            for name in process::segments() {
                fs::remove_file(Path::new("/dev/shm").join(name)).ok();
            }
        } else if self.is_running() {
            self.stop();
        }
    }
}
