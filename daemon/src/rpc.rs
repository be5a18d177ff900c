//! JSON-RPC 2.0 over lines, as bytes in and bytes out; the event loop owns the sockets.
//!
//! A [`Connection`] takes what was read, gives out [`Request`]s, takes their answers and holds what is to
//! be written. Everything is bounded: a line, the requests without an answer, and the answers that a
//! slow reader leaves lying. Malformed lines are answered here and never reach the supervisor.

mod parse;
#[cfg(test)]
mod tests;

pub use parse::{METHODS, parse_line};

use inferd_ipc::control::{Progress, RpcError, RpcMessage, code};
use inferd_ipc::limits::{CONTROL_LINE_BYTES_MAX, CONTROL_OUTPUT_BYTES_MAX, CONTROL_REQUESTS_OPEN_MAX};
use serde::Serialize;
use serde_json::Value;

/// A command and the id that its answer must carry.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// A string or a number.
    pub id: Value,
    /// What to do.
    pub command: inferd_ipc::control::Command,
}

/// What to do with a connection's socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Go on.
    Keep,
    /// Everything is answered and written, or nothing more can be: close it.
    Close,
}

/// One operator's connection, without its socket.
#[derive(Debug, Default)]
pub struct Connection {
    input: Vec<u8>,
    /// Bytes of `input` in which no line end was found.
    searched: usize,
    output: Vec<u8>,
    /// Bytes of `output` that were written.
    sent: usize,
    open: usize,
    /// No more lines: the peer's end, or its fault.
    ended: bool,
    broken: bool,
}

impl Connection {
    /// A connection on which nothing was said.
    #[must_use]
    pub fn new() -> Connection {
        Connection::default()
    }

    /// Whether to read from the socket: not after the end, and not while lines wait for answers of earlier ones.
    #[must_use]
    pub fn wants_read(&self) -> bool {
        !self.ended && !self.broken && self.open < CONTROL_REQUESTS_OPEN_MAX
    }

    /// Whether [`Connection::next_request`] has something to look at: lines that waited for answers of earlier ones.
    #[must_use]
    pub fn has_more(&self) -> bool {
        !self.broken && self.open < CONTROL_REQUESTS_OPEN_MAX && self.searched < self.input.len()
    }

    /// Takes bytes that were read; call [`Connection::next_request`] until there is none before the next read.
    pub fn feed(&mut self, bytes: &[u8]) {
        if !self.ended && !self.broken {
            self.input.extend_from_slice(bytes);
        }
    }

    /// The peer will say no more (a read of 0 bytes); what it asked is still answered.
    pub fn end(&mut self) {
        // A last line without its line end counts: `printf ... | socat` sends that.
        if !self.ended && !self.input.is_empty() {
            self.input.push(b'\n');
        }
        self.ended = true;
    }

    /// The next well-formed request. Malformed lines before it are answered on the way.
    pub fn next_request(&mut self) -> Option<Request> {
        while self.open < CONTROL_REQUESTS_OPEN_MAX && !self.broken {
            let found = self.input[self.searched..].iter().position(|b| *b == b'\n').map(|at| self.searched + at);
            let length = found.unwrap_or(self.input.len());
            if length > CONTROL_LINE_BYTES_MAX {
                self.refuse_long_line();
                return None;
            }
            let Some(end) = found else {
                self.searched = length;
                return None;
            };
            let parsed = parse_line(&self.input[..end]);
            self.input.drain(..=end);
            self.searched = 0;
            match parsed {
                Ok(None) => {}
                Ok(Some(request)) => {
                    self.open += 1;
                    return Some(request);
                }
                Err((id, error)) => self.write(&message(Some(id), None, Some(error))),
            }
        }
        None
    }

    /// Answers a request.
    pub fn answer<T: Serialize>(&mut self, id: &Value, answer: &T) {
        self.open = self.open.saturating_sub(1);
        // Answers are our own structs with string keys: they always have a JSON form.
        let result = serde_json::to_value(answer).expect("an answer that JSON can say");
        self.write(&message(Some(id.clone()), Some(result), None));
    }

    /// Answers a request with an error.
    pub fn fail(&mut self, id: &Value, error: RpcError) {
        self.open = self.open.saturating_sub(1);
        self.write(&message(Some(id.clone()), None, Some(error)));
    }

    /// Tells how far a request has come.
    pub fn progress(&mut self, progress: &Progress) {
        let params = serde_json::to_value(progress).expect("progress is strings and an id");
        let mut notification = message(None, None, None);
        notification.method = Some("progress".to_owned());
        notification.params = Some(params);
        self.write(&notification);
    }

    /// What is to be written to the socket.
    #[must_use]
    pub fn output(&self) -> &[u8] {
        &self.output[self.sent..]
    }

    /// So many bytes of [`Connection::output`] were written.
    pub fn wrote(&mut self, bytes: usize) {
        self.sent = (self.sent + bytes).min(self.output.len());
        if self.sent == self.output.len() {
            self.output.clear();
            self.output.shrink_to(CONTROL_LINE_BYTES_MAX);
            self.sent = 0;
        } else if self.sent > CONTROL_LINE_BYTES_MAX {
            self.output.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// Requests that were given out and not answered yet.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open
    }

    /// Whether the socket should be closed now.
    #[must_use]
    pub fn fate(&self) -> Fate {
        let done = self.ended && self.open == 0 && self.output().is_empty() && self.input.is_empty();
        if self.broken || done { Fate::Close } else { Fate::Keep }
    }

    /// Nothing after a line without end can be trusted to be a line: answer, then hang up.
    fn refuse_long_line(&mut self) {
        let what = format!("a line is longer than {CONTROL_LINE_BYTES_MAX} bytes; send one request per line");
        let error = RpcError::new(code::PARSE, what);
        self.write(&message(Some(Value::Null), None, Some(error)));
        self.input = Vec::new();
        self.searched = 0;
        self.ended = true;
    }

    fn write(&mut self, message: &RpcMessage) {
        if self.broken {
            return;
        }
        let line = serde_json::to_vec(message).expect("a message that JSON can say");
        // A single answer may be as long as it is; only what lies unread counts against the reader.
        let unread = self.output().len();
        if unread > 0 && unread + line.len() > CONTROL_OUTPUT_BYTES_MAX {
            self.broken = true;
            self.output = Vec::new();
            self.sent = 0;
            return;
        }
        self.output.extend_from_slice(&line);
        self.output.push(b'\n');
    }
}

fn message(id: Option<Value>, result: Option<Value>, error: Option<RpcError>) -> RpcMessage {
    RpcMessage { jsonrpc: "2.0".to_owned(), id, result, error, method: None, params: None }
}
