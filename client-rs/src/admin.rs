//! The operator's commands over `control.sock`: JSON-RPC 2.0, one message per line.
//!
//! One command at a time per connection; answers are matched by id, so that an answer which comes
//! after its command timed out is passed over. Long commands report progress on the way. The daemon's
//! lines are bounded. Who may connect is the socket's mode and group; there is nothing to log in to.

use crate::clock::{limit_ns, now_ns};
use crate::dirs::{CONTROL_SOCKET, runtime_dir};
use crate::error::Error;
use inferd_ipc::control::{
    Command, Done, ModelAnswer, Progress, Reload, ReloadAnswer, RpcMessage, SessionAnswer, StatsAnswer, StatusAnswer,
    ValidateAnswer, VersionAnswer,
};
use inferd_ipc::limits::CONTROL_LINE_BYTES_MAX;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A command that only looks, or changes little, is answered within this time, in milliseconds.
pub const COMMAND_TIMEOUT_MS: u64 = 10_000;
/// A command that loads a model is answered within this time, in milliseconds (the daemon's own limits are shorter unless configured).
pub const LONG_COMMAND_TIMEOUT_MS: u64 = 600_000;

/// A connection to the control socket.
#[derive(Debug)]
pub struct AdminClient {
    stream: UnixStream,
    dir: PathBuf,
    next_id: u64,
    received: Vec<u8>,
    timeout: Option<Duration>,
}

#[derive(Serialize)]
struct RpcRequest<'a> {
    jsonrpc: &'static str,
    id: u64,
    #[serde(flatten)]
    command: &'a Command,
}

impl AdminClient {
    /// Connects to the daemon in `dir`, or where [`crate::runtime_dir`] finds one.
    ///
    /// # Errors
    /// [`Error::NoDaemon`] lists all places that were tried.
    pub fn connect(dir: Option<&Path>) -> Result<AdminClient, Error> {
        let found = runtime_dir(dir, CONTROL_SOCKET);
        let stream = UnixStream::connect(found.dir.join(CONTROL_SOCKET)).map_err(|e| match e.kind() {
            ErrorKind::NotFound => Error::NoDaemon { tried: found.failed(&"no control.sock there") },
            ErrorKind::ConnectionRefused => Error::NoDaemon { tried: found.failed(&"a stale socket: nobody listens") },
            ErrorKind::PermissionDenied => {
                Error::NoDaemon { tried: found.failed(&"permission denied; join the socket's group, inferd-admin") }
            }
            _ => Error::NoDaemon { tried: found.failed(&e) },
        })?;
        Ok(AdminClient { stream, dir: found.dir, next_id: 1, received: Vec::new(), timeout: None })
    }

    /// The daemon's runtime directory.
    #[must_use]
    pub fn runtime_dir(&self) -> &Path {
        &self.dir
    }

    /// Longest time for a command. `None` (default): [`COMMAND_TIMEOUT_MS`], or [`LONG_COMMAND_TIMEOUT_MS`] for those that
    /// load a model.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout;
    }

    /// Sends a command and returns its answer as it came.
    ///
    /// # Errors
    /// [`Error::Command`] (refused by the daemon, which says why), [`Error::Timeout`], [`Error::DaemonLost`], [`Error::Protocol`].
    pub fn call(&mut self, command: &Command) -> Result<serde_json::Value, Error> {
        self.call_with_progress(command, &mut |_| {})
    }

    /// Like [`AdminClient::call`]; `progress` is told of each stage of a long command.
    ///
    /// # Errors
    /// As [`AdminClient::call`].
    pub fn call_with_progress(
        &mut self,
        command: &Command,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<serde_json::Value, Error> {
        let timeout = self.timeout.unwrap_or_else(|| default_timeout(command));
        let limit = limit_ns(now_ns(), Some(timeout));
        let id = self.next_id;
        self.next_id += 1;
        self.send(&RpcRequest { jsonrpc: "2.0", id, command })?;
        loop {
            let line = self.line(limit, timeout)?;
            let message: RpcMessage = serde_json::from_slice(&line)
                .map_err(|e| Error::protocol(format_args!("a line on control.sock that is no message: {e}")))?;
            if message.method.as_deref() == Some("progress") {
                let step = message.params.and_then(|p| serde_json::from_value::<Progress>(p).ok());
                if let Some(step) = step.filter(|step| step.id == id) {
                    progress(&step);
                }
                continue;
            }
            // An error without an id answers what the daemon could not read: nothing else is under way.
            let ours = message.id == Some(id.into()) || (message.id.is_none() && message.error.is_some());
            match message.error {
                _ if !ours => {}
                Some(error) => return Err(Error::Command(error)),
                None => return Ok(message.result.unwrap_or(serde_json::Value::Null)),
            }
        }
    }

    /// The daemon at a glance.
    ///
    /// # Errors
    /// As [`AdminClient::call`], like every command below.
    pub fn status(&mut self) -> Result<StatusAnswer, Error> {
        self.typed(&Command::Status {})
    }

    /// All models.
    ///
    /// # Errors
    /// As [`AdminClient::call`].
    pub fn models(&mut self) -> Result<Vec<ModelAnswer>, Error> {
        self.typed(&Command::Models {})
    }

    /// All sessions.
    ///
    /// # Errors
    /// As [`AdminClient::call`].
    pub fn sessions(&mut self) -> Result<Vec<SessionAnswer>, Error> {
        self.typed(&Command::Sessions {})
    }

    /// All limits by name; the unit ends the name.
    ///
    /// # Errors
    /// As [`AdminClient::call`].
    pub fn limits(&mut self) -> Result<BTreeMap<String, u64>, Error> {
        self.typed(&Command::Limits {})
    }

    /// Counters and latencies, of all models or of one.
    ///
    /// # Errors
    /// As [`AdminClient::call`].
    pub fn stats(&mut self, model: Option<&str>) -> Result<StatsAnswer, Error> {
        self.typed(&Command::Stats { model: model.map(str::to_owned) })
    }

    /// Serves a new model until the daemon ends. `path` is absolute; `backend` is chosen from the file when absent.
    ///
    /// # Errors
    /// As [`AdminClient::call`].
    pub fn load(
        &mut self,
        model: &str,
        path: &str,
        backend: Option<&str>,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<ModelAnswer, Error> {
        let backend = backend.map(str::to_owned);
        self.typed_with(&Command::Load { model: model.to_owned(), path: path.to_owned(), backend }, progress)
    }

    /// Stops serving a model; its sessions end.
    ///
    /// # Errors
    /// As [`AdminClient::call`].
    pub fn unload(&mut self, model: &str) -> Result<Done, Error> {
        self.typed(&Command::Unload { model: model.to_owned() })
    }

    /// Makes the next generation, from the same file or from the one at `path` (absolute).
    ///
    /// # Errors
    /// As [`AdminClient::call`].
    pub fn reload(
        &mut self,
        model: &str,
        path: Option<&str>,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<ReloadAnswer, Error> {
        let reload = Reload { model: model.to_owned(), path: path.map(str::to_owned), ..Reload::default() };
        self.typed_with(&Command::Reload(reload), progress)
    }

    /// Takes the kept previous generation back.
    ///
    /// # Errors
    /// As [`AdminClient::call`].
    pub fn rollback(&mut self, model: &str, progress: &mut dyn FnMut(&Progress)) -> Result<ReloadAnswer, Error> {
        self.typed_with(&Command::Rollback { model: model.to_owned() }, progress)
    }

    /// Loads, checks and warms up a file without serving it.
    ///
    /// # Errors
    /// As [`AdminClient::call`].
    pub fn validate(
        &mut self,
        path: &str,
        backend: Option<&str>,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<ValidateAnswer, Error> {
        let backend = backend.map(str::to_owned);
        self.typed_with(&Command::Validate { path: path.to_owned(), backend }, progress)
    }

    /// Ends a session.
    ///
    /// # Errors
    /// As [`AdminClient::call`].
    pub fn disconnect(&mut self, session: u64) -> Result<Done, Error> {
        self.typed(&Command::Disconnect { session })
    }

    /// Drains and exits, like SIGTERM; answered before the exit.
    ///
    /// # Errors
    /// As [`AdminClient::call`].
    pub fn drain(&mut self) -> Result<Done, Error> {
        self.typed(&Command::Drain {})
    }

    /// Changes the log level of daemon and workers: `info`, `debug`, `inferd=trace`.
    ///
    /// # Errors
    /// As [`AdminClient::call`].
    pub fn log(&mut self, level: &str) -> Result<Done, Error> {
        self.typed(&Command::Log { level: level.to_owned() })
    }

    /// Versions of daemon, ABI and kernel.
    ///
    /// # Errors
    /// As [`AdminClient::call`].
    pub fn version(&mut self) -> Result<VersionAnswer, Error> {
        self.typed(&Command::Version {})
    }

    fn typed<T: DeserializeOwned>(&mut self, command: &Command) -> Result<T, Error> {
        self.typed_with(command, &mut |_| {})
    }

    fn typed_with<T: DeserializeOwned>(
        &mut self,
        command: &Command,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<T, Error> {
        let answer = self.call_with_progress(command, progress)?;
        serde_json::from_value(answer).map_err(|e| Error::protocol(format_args!("an answer of another kind: {e}")))
    }

    fn send(&mut self, request: &RpcRequest<'_>) -> Result<(), Error> {
        let mut line = serde_json::to_vec(request).map_err(|e| Error::os("writing a command", e))?;
        line.push(b'\n');
        if line.len() > CONTROL_LINE_BYTES_MAX {
            return Err(Error::Option { option: "command", what: format!("{} bytes are over the limit", line.len()) });
        }
        let timeout = Duration::from_millis(COMMAND_TIMEOUT_MS);
        self.stream.set_write_timeout(Some(timeout)).map_err(|e| Error::os("setting a timeout", e))?;
        self.stream.write_all(&line).map_err(|e| match e.kind() {
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => gone(),
            ErrorKind::WouldBlock => Error::Timeout { model: CONTROL_SOCKET.into(), after: timeout },
            _ => Error::os("sending a command", e),
        })
    }

    /// The next line, without its end.
    fn line(&mut self, limit_ns: u64, timeout: Duration) -> Result<Vec<u8>, Error> {
        let mut searched = 0;
        loop {
            if let Some(end) = self.received[searched..].iter().position(|b| *b == b'\n') {
                let mut line: Vec<u8> = self.received.drain(..=searched + end).collect();
                line.pop();
                return Ok(line);
            }
            searched = self.received.len();
            if searched > CONTROL_LINE_BYTES_MAX {
                return Err(Error::protocol("an answer over the limit of a line"));
            }
            let left = Duration::from_nanos(limit_ns.saturating_sub(now_ns()));
            let late = || Error::Timeout { model: CONTROL_SOCKET.into(), after: timeout };
            if left.is_zero() {
                return Err(late());
            }
            self.stream.set_read_timeout(Some(left)).map_err(|e| Error::os("setting a timeout", e))?;
            let mut buffer = [0; 16 << 10];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(gone()),
                Ok(bytes) => self.received.extend_from_slice(&buffer[..bytes]),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(e) if e.kind() == ErrorKind::ConnectionReset => return Err(gone()),
                Err(e) => return Err(Error::os("waiting for an answer", e)),
            }
        }
    }
}

fn gone() -> Error {
    Error::DaemonLost { model: CONTROL_SOCKET.into(), cause: None }
}

fn default_timeout(command: &Command) -> Duration {
    let long = matches!(
        command,
        Command::Load { .. } | Command::Reload(_) | Command::Rollback { .. } | Command::Validate { .. }
    );
    Duration::from_millis(if long { LONG_COMMAND_TIMEOUT_MS } else { COMMAND_TIMEOUT_MS })
}
