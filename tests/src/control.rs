//! The control socket, spoken by hand: one JSON-RPC message per line, no client library in between.

use inferd_ipc::control::{Command, RpcError, RpcMessage};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long the slowest command may take.
const COMMAND_TIME: Duration = Duration::from_secs(60);

/// A connection to `control.sock`.
pub struct Control {
    stream: BufReader<UnixStream>,
}

impl Control {
    /// Connects.
    ///
    /// # Errors
    /// As connect(2).
    pub fn connect(runtime_dir: &Path) -> std::io::Result<Control> {
        let stream = UnixStream::connect(runtime_dir.join("control.sock"))?;
        stream.set_read_timeout(Some(COMMAND_TIME))?;
        Ok(Control { stream: BufReader::new(stream) })
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// As write(2).
    pub fn raw(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// The next message of the daemon; none when it has hung up.
    ///
    /// # Panics
    /// When it is not JSON-RPC.
    pub fn message(&mut self) -> Option<RpcMessage> {
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(serde_json::from_str(&line).unwrap_or_else(|e| panic!("not JSON-RPC ({e}): {line}"))),
            Err(e) => panic!("no answer on the control socket: {e}"),
        }
    }

    /// Sends a command, whose answer nobody may live to give.
    ///
    /// # Panics
    /// When the daemon does not listen.
    pub fn send(&mut self, command: &Command) {
        let mut request = serde_json::to_value(command).expect("a command is JSON");
        request["jsonrpc"] = "2.0".into();
        request["id"] = 7.into();
        self.raw(format!("{request}\n").as_bytes()).expect("the daemon listens");
    }

    /// Sends a command and waits for its answer; progress on the way is collected.
    ///
    /// # Errors
    /// The daemon's error.
    ///
    /// # Panics
    /// When the daemon hangs up or does not speak JSON-RPC.
    pub fn call_with_progress(&mut self, command: &Command) -> (Vec<Value>, Result<Value, RpcError>) {
        self.send(command);
        self.answer()
    }

    /// Waits for the answer to the command that was sent; progress on the way is collected.
    ///
    /// # Errors
    /// The daemon's error.
    ///
    /// # Panics
    /// When the daemon hangs up or does not speak JSON-RPC.
    pub fn answer(&mut self) -> (Vec<Value>, Result<Value, RpcError>) {
        let mut progress = Vec::new();
        loop {
            let message = self.message().expect("the daemon answers");
            if message.method.as_deref() == Some("progress") {
                progress.push(message.params.unwrap_or_default());
                continue;
            }
            assert_eq!(message.id, Some(7.into()), "the answer carries the request's id");
            let answer = match message.error {
                Some(error) => Err(error),
                None => Ok(message.result.unwrap_or_default()),
            };
            return (progress, answer);
        }
    }

    /// Sends a command and waits for its typed answer.
    ///
    /// # Errors
    /// The daemon's error.
    ///
    /// # Panics
    /// When the answer has another type.
    pub fn call<T: DeserializeOwned>(&mut self, command: &Command) -> Result<T, RpcError> {
        let answer = self.call_with_progress(command).1?;
        let typed = serde_json::from_value(answer.clone());
        Ok(typed.unwrap_or_else(|e| panic!("the answer to {command:?} has another type ({e}): {answer}")))
    }
}
