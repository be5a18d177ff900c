//! The operator's commands over `control.sock`: JSON-RPC 2.0, one message per line.
//!
//! One command at a time per connection; answers are matched by id, so that an answer which comes
//! after its command timed out is passed over. Long commands report progress on the way. The daemon's
//! lines are bounded. Who may connect is the socket's mode and group; there is nothing to log in to.

mod lines;

use crate::clock::{limit_ns, now_ns};
use crate::dirs::{CONTROL_SOCKET, runtime_dir};
use crate::error::Error;
use inferd_ipc::control::{
    Command, Done, DumpAnswer, HistoryEntry, ModelAnswer, Progress, Reload, ReloadAnswer, RpcMessage, SessionAnswer,
    Shadow, StatsAnswer, StatusAnswer, ValidateAnswer, Verdict, VersionAnswer,
};
use inferd_ipc::limits::CONTROL_LINE_BYTES_MAX;
pub use inferd_ipc::limits::{COMMAND_TIMEOUT_MS, LONG_COMMAND_TIMEOUT_MS};
use inferd_ipc::record::{self, RecordReader, RecordedStep};
use lines::Lines;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A connection to the control socket.
#[derive(Debug)]
pub struct AdminClient {
    stream: UnixStream,
    dir: PathBuf,
    next_id: u64,
    lines: Lines,
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
        Ok(AdminClient { stream, dir: found.dir, next_id: 1, lines: Lines::default(), timeout: None })
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
        Ok(self.exchange(command, progress)?.0)
    }

    /// Sends a command; its answer, and the descriptors that came beside it.
    fn exchange(
        &mut self,
        command: &Command,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<(serde_json::Value, Vec<OwnedFd>), Error> {
        let timeout = self.timeout.unwrap_or_else(|| default_timeout(command));
        let limit = limit_ns(now_ns(), Some(timeout));
        let id = self.next_id;
        self.next_id += 1;
        self.send(&RpcRequest { jsonrpc: "2.0", id, command })?;
        loop {
            let line = self.lines.next(&self.stream, limit, timeout)?;
            let message: RpcMessage = serde_json::from_slice(&line.bytes)
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
                None => return Ok((message.result.unwrap_or(serde_json::Value::Null), line.fds)),
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

    /// Makes the next generation as asked for: from the same file or another one, shadowed, bounded, or tried without going
    /// live. A refusal by the gate is [`Error::Command`] with the [`Verdict`](crate::control::Verdict) as its data
    /// ([`verdict_of`]).
    ///
    /// # Errors
    /// As [`AdminClient::call`].
    pub fn reload(&mut self, reload: Reload, progress: &mut dyn FnMut(&Progress)) -> Result<ReloadAnswer, Error> {
        self.typed_with(&Command::Reload(reload), progress)
    }

    /// Takes the previous generation back, from its kept worker or from the store.
    ///
    /// # Errors
    /// As [`AdminClient::call`].
    pub fn rollback(&mut self, model: &str, progress: &mut dyn FnMut(&Progress)) -> Result<ReloadAnswer, Error> {
        self.typed_with(&Command::Rollback { model: model.to_owned() }, progress)
    }

    /// Every generation of a model, refused attempts too, newest first.
    ///
    /// # Errors
    /// As [`AdminClient::call`].
    pub fn history(&mut self, model: &str) -> Result<Vec<HistoryEntry>, Error> {
        self.typed(&Command::History { model: model.to_owned() })
    }

    /// The recorded last steps of a model, of all sessions; with `session`, the daemon checks that there is one of that number.
    ///
    /// # Errors
    /// As [`AdminClient::call`]; [`Error::Protocol`] when the region that came is not what the answer says.
    pub fn dump(&mut self, model: &str, session: Option<u64>) -> Result<Dump, Error> {
        let command = Command::Dump { model: model.to_owned(), session };
        let (answer, fds) = self.exchange(&command, &mut |_| {})?;
        let answer: DumpAnswer = typed_answer(answer)?;
        let fd = fds.first().ok_or_else(|| Error::protocol("an answer to dump without a descriptor"))?;
        let reader = record::open_reader(fd.as_fd(), &answer.layout, answer.steps)
            .map_err(|e| Error::protocol(format_args!("a record region that cannot be read: {e}")))?;
        Ok(Dump { answer, reader })
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
        typed_answer(self.call_with_progress(command, progress)?)
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
}

/// The recorded last steps of a model: a view of what the daemon keeps, so that reading needs no worker.
#[derive(Debug)]
pub struct Dump {
    /// What the steps hold.
    pub answer: DumpAnswer,
    reader: RecordReader,
}

impl Dump {
    /// Copies of all steps that stand there, oldest first; those that are overwritten meanwhile are left out.
    pub fn steps(&self) -> impl Iterator<Item = RecordedStep> + '_ {
        self.reader.steps()
    }
}

/// The verdict that came with a refusal, if the error is one and a verdict came with it.
#[must_use]
pub fn verdict_of(error: &Error) -> Option<Verdict> {
    match error {
        Error::Command(refused) => serde_json::from_value(refused.data.clone()?).ok(),
        _ => None,
    }
}

fn typed_answer<T: DeserializeOwned>(answer: serde_json::Value) -> Result<T, Error> {
    serde_json::from_value(answer).map_err(|e| Error::protocol(format_args!("an answer of another kind: {e}")))
}

fn gone() -> Error {
    Error::DaemonLost { model: CONTROL_SOCKET.into(), cause: None }
}

fn default_timeout(command: &Command) -> Duration {
    let long = Duration::from_millis(LONG_COMMAND_TIMEOUT_MS);
    match command {
        // The operator has said how long it may take beside all the rest.
        Command::Reload(Reload { shadow: Some(Shadow::Seconds(s)), .. }) => {
            long.saturating_add(Duration::try_from_secs_f64(*s).unwrap_or(Duration::ZERO))
        }
        Command::Load { .. } | Command::Reload(_) | Command::Rollback { .. } | Command::Validate { .. } => long,
        _ => Duration::from_millis(COMMAND_TIMEOUT_MS),
    }
}
