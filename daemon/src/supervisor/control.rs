//! Operators: connections on the control socket, their commands in and answers out.
//!
//! Lines and JSON are [`crate::rpc`]'s; this file owns the sockets. An operator that does not read is
//! dropped when too much waits for it; nobody waits for an operator. An answer whose asker has gone in
//! the meantime is lost, what it asked for is done nevertheless.

use super::Supervisor;
use super::closing::Charged;
use super::poller::{Ready, Token};
use super::sockets::refuse_descriptors;
use crate::rpc::{Connection, Fate};
use inferd_ipc::control::{Progress, RpcError, code};
use inferd_ipc::fdpass::{self, Peer};
use inferd_ipc::limits::{CONTROL_ACCEPTS_PER_TURN, CONTROL_CONNECTIONS_MAX, CONTROL_READ_BYTES_PER_TURN};
use inferd_ipc::sys::look_at_message;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::Serialize;
use serde_json::Value;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;

/// An operator's connection.
pub(super) struct Control {
    socket: UnixStream,
    rpc: Connection,
    peer: Peer,
    /// What the poller was asked to watch for: reading, writing.
    interest: (bool, bool),
    /// Goes along with the next byte that is written.
    descriptor: Option<Rc<OwnedFd>>,
}

/// Who waits for the answer of a command.
#[derive(Debug, Clone)]
pub(super) struct Asker {
    control: u64,
    id: Value,
    /// Who it is, for the log.
    pub uid: u32,
}

/// Writes what there is room for, a descriptor along with the first byte.
fn write(socket: &mut UnixStream, bytes: &[u8], descriptor: Option<&OwnedFd>) -> io::Result<usize> {
    let Some(descriptor) = descriptor else { return socket.write(bytes) };
    let raw = [descriptor.as_raw_fd()];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let rights = [ControlMessage::ScmRights(&raw)];
    Ok(sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], &rights, flags, None)?)
}

impl Supervisor {
    /// The control socket has connections.
    pub(super) fn on_control_listener(&mut self) {
        for _ in 0..CONTROL_ACCEPTS_PER_TURN {
            match self.sockets.control.accept() {
                Ok((socket, _)) => self.operator_connected(socket),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {
                }
                Err(error) => return self.pause_accepting(&error),
            }
        }
    }

    fn operator_connected(&mut self, mut socket: UnixStream) {
        refuse_descriptors(&socket);
        let Ok(peer) = fdpass::peer(&socket) else { return };
        if socket.set_nonblocking(true).is_err() {
            return;
        }
        if self.controls.len() + self.closing.operators() >= CONTROL_CONNECTIONS_MAX {
            let mut rpc = Connection::new();
            let message =
                format!("{CONTROL_CONNECTIONS_MAX} operators are connected, the most there may be; close one");
            rpc.fail(&Value::Null, RpcError::new(code::LIMIT, message));
            let _ = socket.write(rpc.output());
            self.closing.close(socket, Charged::Nobody);
            return;
        }
        let id = self.new_id();
        if self.poller.add_stream(&socket, Token::Control(id)).is_ok() {
            self.controls.insert(
                id,
                Control { socket, rpc: Connection::new(), peer, interest: (true, false), descriptor: None },
            );
        }
    }

    /// A connection has something to read, room to write, or has ended: what it asked for before that is still done.
    pub(super) fn on_control(&mut self, id: u64, ready: Ready) {
        loop {
            let more = ready.read && self.read_control(id);
            while let Some(control) = self.controls.get_mut(&id) {
                let Some(request) = control.rpc.next_request() else { break };
                let asker = Asker { control: id, id: request.id, uid: control.peer.uid };
                self.on_command(asker, request.command);
            }
            if !(ready.hang_up && more) {
                break;
            }
        }
        if ready.hang_up {
            self.drop_control(id);
        } else {
            self.flush_control(id);
        }
    }

    /// Reads once. Says whether there may be more.
    fn read_control(&mut self, id: u64) -> bool {
        let Some(control) = self.controls.get_mut(&id).filter(|control| control.rpc.wants_read()) else { return false };
        let mut buffer = [0; CONTROL_READ_BYTES_PER_TURN];
        let room = match look_at_message(control.socket.as_fd(), &mut buffer) {
            // Nothing that this socket carries comes with descriptors.
            Ok((_, true)) => {
                self.drop_control(id);
                return false;
            }
            Ok((bytes, false)) => bytes.max(1),
            Err(_) => 1,
        };
        match control.socket.read(&mut buffer[..room]) {
            Ok(0) => control.rpc.end(),
            Ok(bytes) => {
                control.rpc.feed(&buffer[..bytes]);
                return true;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.drop_control(id),
        }
        false
    }

    /// Writes what can be written, and asks to be woken for the rest.
    fn flush_control(&mut self, id: u64) {
        let Some(control) = self.controls.get_mut(&id) else { return };
        while !control.rpc.output().is_empty() {
            match write(&mut control.socket, control.rpc.output(), control.descriptor.as_deref()) {
                Ok(bytes) => {
                    control.descriptor = None;
                    control.rpc.wrote(bytes);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return self.drop_control(id),
            }
        }
        if control.rpc.fate() == Fate::Close {
            return self.drop_control(id);
        }
        // Lines that have waited come with room to write, of which there is some at once: their answers wait in line too.
        let interest = (control.rpc.wants_read(), !control.rpc.output().is_empty() || control.rpc.has_more());
        if interest != control.interest {
            control.interest = interest;
            self.poller.interest_stream(&control.socket, Token::Control(id), interest.0, interest.1);
        }
    }

    /// Ends an operator's connection.
    pub(super) fn drop_control(&mut self, id: u64) {
        if let Some(control) = self.controls.remove(&id) {
            self.poller.remove(&control.socket);
            self.closing.close(control.socket, Charged::Operators);
        }
    }

    /// Whether every answer has been written, or its asker is gone.
    pub(super) fn answers_written(&self) -> bool {
        self.controls.values().all(|control| control.rpc.output().is_empty())
    }

    /// Answers a command.
    pub(super) fn answer<T: Serialize>(&mut self, asker: &Asker, answer: &T) {
        if let Some(control) = self.controls.get_mut(&asker.control) {
            control.rpc.answer(&asker.id, answer);
            self.flush_control(asker.control);
        }
    }

    /// Answers a command, with a descriptor beside the first byte of the line.
    pub(super) fn answer_with<T: Serialize>(&mut self, asker: &Asker, answer: &T, descriptor: Rc<OwnedFd>) {
        let Some(control) = self.controls.get_mut(&asker.control) else { return };
        if !control.rpc.output().is_empty() {
            // A descriptor travels with a byte, and that byte must be this line's first.
            return self.refuse(asker, code::BUSY, "earlier answers were not read yet; read them, then ask again");
        }
        control.descriptor = Some(descriptor);
        self.answer(asker, answer);
    }

    /// Answers a command with an error.
    pub(super) fn refuse(&mut self, asker: &Asker, code: i64, message: &str) {
        self.refuse_with(asker, code, message, None);
    }

    /// Answers a command with an error and its data.
    pub(super) fn refuse_with(&mut self, asker: &Asker, code: i64, message: &str, data: Option<Value>) {
        if let Some(control) = self.controls.get_mut(&asker.control) {
            control.rpc.fail(&asker.id, RpcError { data, ..RpcError::new(code, message) });
            self.flush_control(asker.control);
        }
    }

    /// Tells how far a command has come.
    pub(super) fn notify_progress(&mut self, asker: &Asker, model: &str, stage: &str, count: Option<(u32, u32)>) {
        if let Some(control) = self.controls.get_mut(&asker.control) {
            let (model, stage) = (model.to_owned(), stage.to_owned());
            let (done, of) = count.unzip();
            control.rpc.progress(&Progress { id: asker.id.clone(), model, stage, done, of });
            self.flush_control(asker.control);
        }
    }

    /// Tells whoever waits for a model's operation how far it has come.
    pub(super) fn tell_progress(&mut self, model: u64, stage: &str, count: Option<(u32, u32)>) {
        let Some(found) = self.models.get(&model) else { return };
        let asker = found.operation.as_ref().and_then(|operation| operation.asker.clone());
        if let Some(asker) = asker {
            let name = found.name.clone();
            self.notify_progress(&asker, &name, stage, count);
        }
    }
}
