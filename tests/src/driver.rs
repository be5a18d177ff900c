//! A client process that is driven line by line (DRIVER.md), and the clients that exist.
//!
//! A reader thread hands answers over, so that a client that hangs fails its test instead of hanging
//! it. Whatever the driver wrote to stderr is shown when the test fails.

use crate::answer::Answer;
use crate::places;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// A client library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// `inferd-client`.
    Rust,
    /// `libinferd`.
    C,
    /// The package `inferd`.
    Python,
}

impl Client {
    /// Its name, as in skips and in `versions`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Client::Rust => "rust",
            Client::C => "c",
            Client::Python => "python",
        }
    }

    /// Its driver, if it is built.
    #[must_use]
    pub fn program(self) -> Option<PathBuf> {
        match self {
            Client::Rust => Some(places::test_program("driver_rust")),
            Client::C => places::c_driver(),
            Client::Python => places::python_driver(),
        }
    }
}

/// How long an ordinary command may take before the client counts as hung.
const ANSWER_TIME: Duration = Duration::from_secs(20);

/// A running driver.
pub struct Driver {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    stderr: PathBuf,
    asked: Vec<String>,
    _dir: tempfile::TempDir,
}

impl Driver {
    /// Starts a driver that will look for the daemon in this runtime directory.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(program: &Path, runtime_dir: &Path) -> Driver {
        Driver::spawn(Command::new(program), runtime_dir)
    }

    /// The same, under another uid (needs root and `setpriv`).
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start_as(uid: u32, gid: u32, program: &Path, runtime_dir: &Path) -> Driver {
        let mut command = Command::new("setpriv");
        command.args([&format!("--reuid={uid}"), &format!("--regid={gid}"), "--clear-groups", "--"]).arg(program);
        Driver::spawn(command, runtime_dir)
    }

    /// The same, with one more variable in its environment.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start_with(program: &Path, runtime_dir: &Path, variable: &str, value: &Path) -> Driver {
        let mut command = Command::new(program);
        command.env(variable, value);
        Driver::spawn(command, runtime_dir)
    }

    fn spawn(mut command: Command, runtime_dir: &Path) -> Driver {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let stderr = dir.path().join("stderr");
        command
            .env("INFERD_RUNTIME_DIR", runtime_dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&stderr).expect("a file for stderr"));
        let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
        let stdin = child.stdin.take();
        let out = child.stdout.take().expect("stdout is a pipe");
        let (send, lines) = channel();
        std::thread::spawn(move || {
            BufReader::new(out).lines().map_while(Result::ok).try_for_each(|line| send.send(line)).ok();
        });
        Driver { child, stdin, lines, stderr, asked: Vec::new(), _dir: dir }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Sends a command without waiting for its answer.
    ///
    /// # Panics
    /// When the driver is gone.
    pub fn begin(&mut self, command: &str) {
        let sent = self.stdin.as_mut().map(|s| s.write_all(format!("{command}\n").as_bytes()).and_then(|()| s.flush()));
        assert!(matches!(sent, Some(Ok(()))), "the driver is gone before `{command}`; it said:\n{}", self.said());
        self.asked.insert(0, command.to_owned());
    }

    /// The answer to the oldest command that has none yet.
    ///
    /// # Panics
    /// When the driver says nothing within `limit`, dies, or does not write JSON.
    pub fn finish(&mut self, limit: Duration) -> Answer {
        let command = self.asked.pop().unwrap_or_default();
        let line = match self.lines.recv_timeout(limit) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => {
                panic!("`{command}`: the client said nothing for {limit:?}; stderr:\n{}", self.said())
            }
            Err(RecvTimeoutError::Disconnected) => {
                let status = self.child.wait();
                panic!("`{command}`: the driver died ({status:?}); stderr:\n{}", self.said())
            }
        };
        let json = serde_json::from_str(&line).unwrap_or_else(|e| panic!("`{command}`: not JSON ({e}): {line}"));
        Answer { command, json }
    }

    /// Whether an answer is there already; takes it if so.
    pub fn finished(&mut self) -> Option<Answer> {
        let line = self.lines.try_recv().ok()?;
        let command = self.asked.pop().unwrap_or_default();
        let json = serde_json::from_str(&line).unwrap_or_else(|e| panic!("`{command}`: not JSON ({e}): {line}"));
        Some(Answer { command, json })
    }

    /// Sends a command and waits for its answer.
    pub fn call(&mut self, command: &str) -> Answer {
        self.begin(command);
        self.finish(ANSWER_TIME)
    }

    /// The same; the call must succeed.
    pub fn ok(&mut self, command: &str) -> Answer {
        self.call(command).succeeded()
    }

    /// Sends one filled request and returns its ticket.
    pub fn send(&mut self, keys: &str) -> u64 {
        self.ok(&format!("send {keys}")).number("ticket")
    }

    /// Waits for a ticket's outcome, for at most 10 s.
    pub fn wait(&mut self, ticket: u64) -> Answer {
        self.ok(&format!("wait ticket={ticket} timeout_us=10000000"))
    }

    /// Sends one filled request and waits for its outcome.
    pub fn exchange(&mut self, keys: &str) -> Answer {
        let ticket = self.send(keys);
        self.wait(ticket)
    }

    /// What the driver wrote to stderr.
    #[must_use]
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// Sends the driver's process a signal.
    ///
    /// # Panics
    /// When it is gone.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("the driver lives");
    }

    /// Waits for the end of a driver that dies by itself; none when it does not within `limit`.
    pub fn died(&mut self, limit: Duration) -> Option<ExitStatus> {
        let end = Instant::now() + limit;
        loop {
            match self.child.try_wait() {
                Ok(None) if Instant::now() < end => std::thread::sleep(Duration::from_micros(500)),
                Ok(status) => return status,
                Err(_) => return None,
            }
        }
    }

    /// Kills the driver and waits for its end.
    pub fn kill(mut self) {
        self.end(true);
    }

    /// Ends the driver in an orderly way; it must exit 0.
    ///
    /// # Panics
    /// When it does not.
    pub fn quit(mut self) {
        drop(self.stdin.take());
        let status = self.child.wait().expect("a child can be waited for");
        assert!(status.success(), "the driver ended with {status}; stderr:\n{}", self.said());
    }

    fn end(&mut self, by_force: bool) {
        drop(self.stdin.take());
        if by_force {
            self.child.kill().ok();
        }
        self.child.wait().ok();
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.end(true);
        if std::thread::panicking() {
            let said = self.said();
            if !said.is_empty() {
                eprintln!("--- the driver's stderr\n{said}");
            }
        }
    }
}
