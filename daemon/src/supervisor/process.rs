//! What the supervisor needs of a worker's process: that one can be started and killed, and that its end is certain.
//!
//! [`Spawner`] is the one that a daemon has. The seam is there for a test that holds a supervisor whose workers are
//! values (`walk.rs`). It is as narrow as it can be: what a worker says comes through its socket, its end through a
//! descriptor that becomes readable, whoever made them. A launch is rare: the call through a pointer costs nothing.

use super::reaping::{Reaper, how_it_ended};
use inferd_ipc::{fdpass, sys};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

/// Variables that a worker inherits; everything else of the environment stays here.
const ENVIRONMENT: [&str; 5] = ["PATH", "LANG", "RUST_BACKTRACE", "CUDA_VISIBLE_DEVICES", "ORT_DYLIB_PATH"];

/// Starts workers.
pub(super) trait Launcher {
    /// Starts `binary` with the other end of the record socket in its hands.
    fn launch(&mut self, binary: &Path, log_level: &str) -> io::Result<Launched>;
}

/// A worker that has been started.
pub(super) struct Launched {
    pub process: Box<dyn Process>,
    /// Our end of the record socket.
    pub socket: OwnedFd,
    /// Readable once the process is gone (its pidfd).
    pub exit: OwnedFd,
}

/// A process that was started here.
pub(super) trait Process {
    /// Its process id: a label.
    fn id(&self) -> u32;
    /// Sends SIGKILL.
    fn kill(&mut self) -> io::Result<()>;
    /// How it ended, if it has. It is still to be reaped.
    fn how_it_ended(&self) -> io::Result<Option<ExitStatus>>;
    /// Takes leave of one that has ended or was killed, without waiting here.
    fn reap(self: Box<Self>, reaper: &Reaper);
}

impl Process for Child {
    fn id(&self) -> u32 {
        Child::id(self)
    }

    fn kill(&mut self) -> io::Result<()> {
        Child::kill(self)
    }

    fn how_it_ended(&self) -> io::Result<Option<ExitStatus>> {
        Ok(how_it_ended(self)?)
    }

    fn reap(self: Box<Self>, reaper: &Reaper) {
        reaper.reap(*self);
    }
}

/// Starts real processes.
pub(super) struct Spawner;

impl Launcher for Spawner {
    fn launch(&mut self, binary: &Path, log_level: &str) -> io::Result<Launched> {
        let (socket, theirs) = fdpass::socketpair()?;
        let mut command = Command::new(binary);
        command.stdin(Stdio::from(theirs)).stdout(Stdio::null()).stderr(Stdio::inherit()).env_clear();
        for (name, value) in std::env::vars_os() {
            let known = name.to_str().is_some_and(|n| ENVIRONMENT.contains(&n) || n.starts_with("INFERD_"));
            if known {
                command.env(name, value);
            }
        }
        command.env("INFERD_LOG", log_level);
        // ONNX Runtime's own builds keep a database of what they are used for and send it; being told not to through
        // its interface they still open both.
        command.env("ORT_DISABLE_TELEMETRY", "1");
        let mut child = command.spawn()?;
        match sys::pidfd_open(child.id()) {
            Ok(exit) => Ok(Launched { process: Box::new(child), socket, exit }),
            Err(error) => {
                // Not yet reaped, so the number is still this child's.
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }
}
