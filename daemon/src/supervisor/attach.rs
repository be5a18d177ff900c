//! Robot processes: connections on the attach socket, and the sessions that they become.
//!
//! ATTACH -> ATTACHED + descriptors -> MAPPED -> sealed and verified, given to every worker of the model
//! -> READY. The session is the socket: its end, from either side, is the session's end. Whatever a
//! client sends is parsed once; every refusal is one sentence that names the remedy. Messages with descriptors are
//! never received: [`super::closing`] ends their connection.

use super::closing::Charged;
use super::models::{ModelState, Stage};
use super::poller::Token;
use super::quota::Charge;
use super::session_regions::Regions;
use super::sessions::{BeginError, Parts, State};
use super::sockets::refuse_descriptors;
use super::{Phase, Supervisor, Timer, clock_ns};
use inferd_ipc::attach::{
    Attach, AttachStatus, Attached, Mapped, Ready, RecordFault, RecordKind, field, head, model_name, parse,
};
use inferd_ipc::failpoint;
use inferd_ipc::fdpass::{self, Peer, Received};
use inferd_ipc::layout::{Backing, Geometry, Queue};
use inferd_ipc::limits::{
    ACCEPT_PAUSE_MS, ATTACH_ACCEPTS_PER_TURN, ATTACH_GRACE_MS, CLOCK_SKEW_MS_MAX, LINGERING_LOOK_MS,
    LINGERING_LOOK_MS_MAX, SESSIONS_PER_MODEL_MAX,
};
use inferd_ipc::region::{self, Access};
use inferd_ipc::signature::Signature;
use inferd_ipc::state;
use inferd_ipc::sys::look_at_message;
use inferd_ipc::worker_records::ToWorker;
use nix::sys::socket::{Shutdown, shutdown};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

/// The uid that the kernel shows for users who are not mapped into this user namespace.
const UNMAPPED_UID: u32 = 65_534;

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Connected,
    /// ATTACHED was sent for this session.
    Mapping(u64),
    /// READY was sent for this session.
    Ready(u64),
}

/// A robot process.
pub(super) struct Connection {
    socket: UnixStream,
    peer: Peer,
    progress: Progress,
}

/// Regions of a session that has ended, until nobody holds them.
pub(super) struct Lingering {
    session: u64,
    /// The request region, on a description of its own.
    request: OwnedFd,
    reply: Rc<OwnedFd>,
    reply_bytes: u64,
    since: Instant,
}

/// A refusal: status and sentence.
pub(super) type Refusal = (AttachStatus, String);

impl Supervisor {
    /// The attach socket has connections.
    pub(super) fn on_attach_listener(&mut self) {
        for _ in 0..ATTACH_ACCEPTS_PER_TURN {
            if self.closing.is_crowded() {
                return self.pause_accepting(&io::Error::other("too many connections wait to be closed"));
            }
            match self.sockets.attach.accept() {
                Ok((socket, _)) => self.connected(socket),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if is_scarcity(&error) => return self.pause_accepting(&error),
                // The peer has gone already, or a signal came.
                Err(_) => {}
            }
        }
    }

    /// Without descriptors, accepting would fail at once, again and again.
    pub(super) fn pause_accepting(&mut self, error: &io::Error) {
        tracing::error!(%error, "no connection can be accepted; raise the limit on descriptors");
        self.poller.interest(&self.sockets.attach, Token::AttachListener, false, false);
        self.poller.interest(&self.sockets.control, Token::ControlListener, false, false);
        self.poller.after_ms(ACCEPT_PAUSE_MS, Timer::Accept);
    }

    /// The pause is over.
    pub(super) fn on_accept_again(&mut self) {
        self.accept_attaches();
        self.poller.interest(&self.sockets.control, Token::ControlListener, true, false);
    }

    /// Whether connections of clients are accepted now. Where systemd holds the socket, those that come before READY
    /// or during a drain wait in it: the models are there soon, or the next daemon is.
    pub(super) fn accept_attaches(&mut self) {
        let now = self.phase == Phase::Ready || !self.sockets.is_attach_passed();
        self.poller.interest(&self.sockets.attach, Token::AttachListener, now, false);
    }

    fn connected(&mut self, socket: UnixStream) {
        refuse_descriptors(&socket);
        let Ok(peer) = fdpass::peer(&socket) else { return };
        if socket.set_nonblocking(true).is_err() {
            return;
        }
        if peer.uid == UNMAPPED_UID && !self.config.daemon.allow_unmapped_uids {
            let what =
                "this user is not mapped into the daemon's user namespace; map it, or set daemon.allow_unmapped_uids";
            return self.refuse_at_the_door(socket, AttachStatus::Forbidden, what);
        }
        if let Err(refused) = self.sessions.quotas.take(peer.uid, Charge::Connection) {
            return self.refuse_at_the_door(socket, AttachStatus::Quota, &refused.to_string());
        }
        let id = self.new_id();
        if let Err(errno) = self.poller.add(&socket, Token::Attach(id)) {
            self.sessions.quotas.give(peer.uid, Charge::Connection);
            let what = format!("the daemon is out of resources: {errno}");
            return self.refuse_at_the_door(socket, AttachStatus::NoResources, &what);
        }
        self.connections.insert(id, Connection { socket, peer, progress: Progress::Connected });
        self.poller.after_ms(ATTACH_GRACE_MS, Timer::AttachGrace(id));
        failpoint!("daemon.accepted");
    }

    /// Refuses a connection that is not even entered. What it has sent is read first: closing a socket with unread
    /// bytes would tell the peer of a broken connection instead of the refusal.
    fn refuse_at_the_door(&mut self, socket: UnixStream, status: AttachStatus, what: &str) {
        let mut buffer = [0; 2 * size_of::<Attach>()];
        if matches!(look_at_message(socket.as_fd(), &mut [0]), Ok((_, false))) {
            let _ = fdpass::recv(&socket, &mut buffer);
        }
        send_refusal(&socket, status, what);
        self.closing.close(socket, Charged::Nobody);
    }

    /// A connection has something to read, or has ended.
    pub(super) fn on_attach(&mut self, id: u64) {
        let Some(connection) = self.connections.get(&id) else { return };
        let mut buffer = [0; 2 * size_of::<Attach>()];
        if matches!(look_at_message(connection.socket.as_fd(), &mut [0]), Ok((_, true))) {
            let what = "a client sends no descriptors; use the inferd client library";
            return self.refuse_attach(id, AttachStatus::BadRequest, what);
        }
        let received = match fdpass::recv(&connection.socket, &mut buffer) {
            Ok(received) => received,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => return,
            Err(_) => return self.hang_up(id, "its connection broke"),
        };
        let Received { bytes, truncated, .. } = received;
        if bytes == 0 && !truncated {
            return self.hang_up(id, "its client hung up");
        }
        let record = &buffer[..if truncated { buffer.len() } else { bytes }];
        let refusal = match connection.progress {
            Progress::Connected => self.on_attach_record(id, record),
            Progress::Mapping(session) => self.on_mapped_record(id, session, record),
            Progress::Ready(_) => Err((AttachStatus::BadRequest, "a record after READY".to_owned())),
        };
        if let Err((status, what)) = refusal {
            self.refuse_attach(id, status, &what);
        }
    }

    /// Tells a client why, and ends its connection.
    fn refuse_attach(&mut self, id: u64, status: AttachStatus, what: &str) {
        let Some(connection) = self.connections.get(&id) else { return };
        let peer = connection.peer;
        if let Some(left_out) = self.faults.admit(Instant::now()) {
            tracing::warn!(uid = peer.uid, pid = peer.pid, ?status, what, left_out, "attach refused");
        }
        match connection.progress {
            Progress::Connected => send_refusal(&connection.socket, status, what),
            Progress::Mapping(_) => send_ready(&connection.socket, status, what),
            Progress::Ready(_) => {}
        }
        self.hang_up(id, what);
    }

    fn on_attach_record(&mut self, id: u64, record: &[u8]) -> Result<(), Refusal> {
        let wish: Attach = parse(record, RecordKind::Attach).map_err(|fault| match fault {
            RecordFault::Abi { .. } => (AttachStatus::AbiMismatch, fault.to_string()),
            _ => (AttachStatus::BadRequest, fault.to_string()),
        })?;
        if self.phase == Phase::Draining {
            return Err((AttachStatus::ShuttingDown, "the daemon is shutting down; attach again later".to_owned()));
        }
        let skew_ns = wish.clock_ns.abs_diff(clock_ns());
        if skew_ns > CLOCK_SKEW_MS_MAX * 1_000_000 {
            let what = format!(
                "the clocks of client and daemon differ by {} ms: a time namespace stands between them; run both in one",
                skew_ns / 1_000_000
            );
            return Err((AttachStatus::ClockSkew, what));
        }
        let (model, generation, signature, geometry) = self.look_up(&wish)?;
        let Some(connection) = self.connections.get(&id) else { return Ok(()) };
        let (peer, backing) = (connection.peer, self.config.ipc.backing);
        if backing == Backing::Posix && peer.uid != nix::unistd::geteuid().as_raw() {
            let what = "named segments serve the daemon's own user only; set ipc.backing = \"memfd\" for other users";
            return Err((AttachStatus::Forbidden, what.to_owned()));
        }
        if self.sessions.quotas.lingers(peer.uid) {
            // Many sessions may have ended a moment ago, and their clients with them.
            self.look_at_lingering();
        }
        let region_bytes = geometry.request_bytes + geometry.reply_bytes;
        // A memfd's request pages are the client's own, which touches them first.
        let ours = if backing == Backing::Posix { region_bytes } else { geometry.reply_bytes };
        self.room.for_bytes(ours).map_err(|what| (AttachStatus::NoResources, what))?;
        let instance = self.instance.clone();
        let mut for_client = Vec::new();
        let live = self.models.get(&model).and_then(|found| found.live.as_ref());
        let state_bytes = live.map_or(0, |live| live.loaded.state_bytes);
        let charged = region_bytes + if state_bytes > 0 { state::region_bytes(state_bytes) } else { 0 };
        let begun = self.sessions.begin(peer.uid, model, charged, |number| {
            failpoint!("daemon.regions", Err((AttachStatus::NoResources, "a test wished it".to_owned())));
            let made = Regions::make(geometry, backing, &instance, number, generation, &signature)?;
            for_client = made.for_client;
            failpoint!("daemon.made");
            Ok::<Parts, Refusal>(Parts { connection: id, pid: peer.pid, ..made.parts })
        });
        let number = begun.map_err(|error| match error {
            BeginError::Quota(refused) => (AttachStatus::Quota, refused.to_string()),
            BeginError::Parts(refusal) => refusal,
        })?;
        let spin_us = self.models.get(&model).map_or(0, |model| model.config.spin_us);
        let record = Attached {
            head: head(RecordKind::Attached, size_of::<Attached>()),
            status: AttachStatus::Ok as u32,
            generation,
            session: number,
            geometry,
            backing: backing as u32,
            spin_us: u32::try_from(spin_us).unwrap_or(u32::MAX),
            version: field(env!("CARGO_PKG_VERSION")),
            message: field(""),
        };
        let Some(connection) = self.connections.get_mut(&id) else { return Ok(()) };
        connection.progress = Progress::Mapping(number);
        let borrowed: Vec<_> = for_client.iter().map(AsFd::as_fd).collect();
        let sent = fdpass::send(&connection.socket, record.as_bytes(), &borrowed);
        failpoint!("daemon.attached");
        if sent.is_err() {
            self.hang_up(id, "it did not take ATTACHED");
        }
        Ok(())
    }

    /// The model of a wish, and the session's geometry.
    fn look_up(&self, wish: &Attach) -> Result<(u64, u32, Signature, Geometry), Refusal> {
        let bad = |what: String| (AttachStatus::BadRequest, what);
        let name = model_name(&wish.model).map_err(|fault| bad(fault.to_string()))?;
        let Some((id, model)) = self.models.iter().find(|(_, model)| model.name == name) else {
            return Err((
                AttachStatus::UnknownModel,
                unknown_model(name, self.models.values().map(|m| m.name.as_str())),
            ));
        };
        let Some(live) = model.live.as_ref().filter(|_| model.state == ModelState::Live) else {
            return Err((AttachStatus::Unavailable, model.unavailable()));
        };
        if wish.flags != 0 {
            return Err(bad(format!("unknown attach flags {:#x}; update the daemon", wish.flags)));
        }
        let queue = match wish.queue {
            0 => model.config.queue,
            number => Queue::from_number(number).ok_or_else(|| bad(format!("unknown queue {number}")))?,
        };
        let most = model.config.slots;
        let slots = if wish.slots == 0 { most } else { wish.slots };
        if slots > most {
            return Err(bad(format!(
                "{slots} slots wished for; model {name} allows {most}: ask for fewer, or raise its `slots`"
            )));
        }
        if self.sessions.count_of(*id) >= SESSIONS_PER_MODEL_MAX {
            let what = format!("model {name} has {SESSIONS_PER_MODEL_MAX} sessions, the most it may have; close one");
            return Err((AttachStatus::Quota, what));
        }
        let signature = live.loaded.signature.clone();
        let geometry = Geometry::new(&signature, slots, queue, self.sessions.next());
        let geometry = geometry.map_err(|error| bad(format!("{error}; ask for fewer slots")))?;
        Ok((*id, live.generation.number, signature, geometry))
    }

    fn on_mapped_record(&mut self, id: u64, number: u64, record: &[u8]) -> Result<(), Refusal> {
        parse::<Mapped>(record, RecordKind::Mapped).map_err(|fault| (AttachStatus::BadRequest, fault.to_string()))?;
        let Some(session) = self.sessions.get(number) else { return Ok(()) };
        let (model_id, parts) = (session.model, &session.parts);
        failpoint!("daemon.seal");
        region::seal_request(parts.request.as_fd(), parts.geometry.request_bytes, parts.backing)
            .map_err(|error| (AttachStatus::BadRegion, error.to_string()))?;
        failpoint!("daemon.sealed");
        if self.phase == Phase::Draining {
            return Err((AttachStatus::ShuttingDown, "the daemon is shutting down; attach again later".to_owned()));
        }
        let Some(model) = self.models.get(&model_id) else { return Ok(()) };
        let Some(worker) = model.live_worker() else { return Err((AttachStatus::Unavailable, model.unavailable())) };
        let state = self.state_for(worker, number).map_err(|what| (AttachStatus::NoResources, what))?;
        if let Some(session) = self.sessions.get_mut(number) {
            session.parts.state = state;
            session.parts.ready_at = Some(Instant::now());
        }
        self.sessions.ready(number);
        self.tell_workers_of(model_id, number);
        failpoint!("daemon.handed");
        let Some(connection) = self.connections.get_mut(&id) else { return Ok(()) };
        connection.progress = Progress::Ready(number);
        let peer = connection.peer;
        send_ready(&connection.socket, AttachStatus::Ok, "");
        failpoint!("daemon.ready");
        if let Some(model) = self.models.get(&model_id)
            && let Some(left_out) = self.comings.admit(Instant::now())
        {
            tracing::info!(session = number, model = %model.name, uid = peer.uid, pid = peer.pid, left_out, "session begins");
        }
        self.arm_watch();
        Ok(())
    }

    /// Tells a model's workers of a session that begins. Those whose turn has yet to come are told of every session then,
    /// with the state that it has then.
    fn tell_workers_of(&mut self, model: u64, number: u64) {
        let knowing = self.workers.iter().filter(|(_, worker)| worker.model == Some(model) && worker.knows_sessions());
        let knowing: Vec<(u64, Stage)> = knowing.map(|(id, worker)| (*id, worker.stage)).collect();
        for (worker, stage) in knowing {
            let waits = stage == Stage::Warm || (stage == Stage::Kept && !self.state_fits(worker, number));
            if waits {
                continue;
            }
            let state = if stage == Stage::Taking { self.state_in_swap(model, worker, number) } else { Ok(None) };
            match state {
                Ok(state) => self.send_session(worker, number, state),
                Err(what) => self.session_fault(number, &what),
            }
        }
    }

    /// Tells a worker of a session; `state` where it is not the one that fits anyway.
    pub(super) fn send_session(&mut self, worker: u64, number: u64, state: Option<State>) {
        let state = match state.map_or_else(|| self.state_for(worker, number), |state| Ok(Some(state))) {
            Ok(state) => state,
            Err(what) => return self.session_fault(number, &what),
        };
        let Some(session) = self.sessions.get(number) else { return };
        let parts = &session.parts;
        let record = ToWorker::AddSession {
            session: number,
            uid: session.uid,
            geometry: parts.geometry,
            state_bytes: state.as_ref().map_or(0, |state| state.bytes),
            backing: parts.backing,
        };
        let mut fds = vec![Rc::clone(&parts.request), Rc::clone(&parts.reply), Rc::clone(&parts.doorbell)];
        fds.extend(state.map(|state| state.fd));
        self.tell(worker, &record, &fds);
    }

    /// An attach that was not ready in time.
    pub(super) fn on_attach_grace(&mut self, id: u64) {
        if self.connections.get(&id).is_some_and(|connection| !matches!(connection.progress, Progress::Ready(_))) {
            let what = format!("the attach was not finished within {ATTACH_GRACE_MS} ms");
            self.refuse_attach(id, AttachStatus::BadRequest, &what);
        }
    }

    /// A session's client lied, or its regions cannot be used: logged at a limited rate, and ended.
    pub(super) fn session_fault(&mut self, number: u64, fault: &str) {
        if let Some(left_out) = self.faults.admit(Instant::now()) {
            let uid = self.sessions.get(number).map(|session| session.uid);
            tracing::warn!(session = number, uid, fault, left_out, "session fault");
        }
        self.end_session(number, fault);
    }

    /// Ends a connection, and its session.
    pub(super) fn hang_up(&mut self, id: u64, why: &str) {
        let Some(connection) = self.connections.remove(&id) else { return };
        self.poller.remove(&connection.socket);
        let uid = connection.peer.uid;
        let _ = shutdown(connection.socket.as_raw_fd(), Shutdown::Both);
        let mut sockets = vec![connection.socket.into()];
        if let Progress::Mapping(number) | Progress::Ready(number) = connection.progress {
            let doorbell = self.reap(number, why);
            // With the last descriptor of all, a worker's copy would be the last one: then it is left to the worker.
            sockets.extend(doorbell.and_then(|rc| Rc::try_unwrap(rc).or_else(|rc| rc.try_clone()).ok()));
        }
        if self.closing.close_all(sockets, Charged::Uid(uid)) {
            self.sessions.quotas.give(uid, Charge::Connection);
        }
    }

    /// Connections whose close took its time are closed: the next ones may come.
    pub(super) fn on_closed(&mut self) {
        for charged in self.closing.take_done() {
            if let Charged::Uid(uid) = charged {
                self.sessions.quotas.give(uid, Charge::Connection);
            }
        }
    }

    /// Ends a session, and its connection.
    pub(super) fn end_session(&mut self, number: u64, why: &str) {
        if let Some(connection) = self.sessions.get(number).map(|session| session.parts.connection) {
            self.hang_up(connection, why);
        }
    }

    /// Takes a session back from everybody. Returns its doorbell if its client may have put descriptors into it.
    fn reap(&mut self, number: u64, why: &str) -> Option<Rc<OwnedFd>> {
        let session = self.sessions.end(number)?;
        failpoint!("daemon.reap");
        let parts = session.parts;
        if session.ready {
            let knows = |w: &super::workers::Worker| w.model == Some(session.model) && w.knows_sessions();
            let workers: Vec<u64> = self.workers.iter().filter(|(_, w)| knows(w)).map(|(id, _)| *id).collect();
            for worker in workers {
                self.tell(worker, &ToWorker::RemoveSession { session: number }, &[]);
            }
            let age_s = parts.ready_at.map_or(0.0, |at| at.elapsed().as_secs_f64());
            if let Some(left_out) = self.comings.admit(Instant::now()) {
                tracing::info!(
                    session = number,
                    uid = session.uid,
                    pid = parts.pid,
                    age_s,
                    why,
                    left_out,
                    "session ends"
                );
            }
        }
        if let Some(model) = self.models.get_mut(&session.model) {
            model.recovery.forget(number);
            if let Some(swap) = &mut model.swap {
                swap.forget(number);
            }
        }
        parts.names.iter().for_each(|name| region::unlink(name));
        // A daemon that drains leaves the replies: its clients may read them when it is gone, and keep no quota of it.
        if self.phase == Phase::Starting || self.phase == Phase::Ready {
            region::punch(parts.reply.as_fd(), parts.geometry.reply_bytes);
        } else {
            region::close_reply(parts.reply.as_fd(), &parts.geometry);
        }
        match region::reopen(parts.request.as_fd(), Access::ReadWrite) {
            Ok(request) => {
                let (reply, reply_bytes) = (parts.reply, parts.geometry.reply_bytes);
                if !std::mem::replace(&mut self.lingering_armed, true) {
                    self.poller.after_ms(LINGERING_LOOK_MS, Timer::Lingering);
                }
                failpoint!("daemon.reaped");
                self.lingering.push(Lingering { session: number, request, reply, reply_bytes, since: Instant::now() });
            }
            // Without /proc or descriptors there is no way to look: the charge is dropped rather than kept for ever.
            Err(_) => self.sessions.released(number),
        }
        (!parts.doorbell_refuses).then_some(parts.doorbell)
    }

    /// Looks whether the regions of ended sessions are free, and when to look again.
    pub(super) fn on_lingering(&mut self) {
        let youngest = self.look_at_lingering();
        self.lingering_armed = !self.lingering.is_empty();
        if self.lingering_armed {
            let wait =
                youngest.clamp(Duration::from_millis(LINGERING_LOOK_MS), Duration::from_millis(LINGERING_LOOK_MS_MAX));
            self.poller.after(wait, Timer::Lingering);
        }
    }

    /// Gives back what nobody holds any more. Returns how long the youngest of the rest has been held.
    fn look_at_lingering(&mut self) -> Duration {
        let mut youngest = Duration::MAX;
        let (sessions, lingering) = (&mut self.sessions, &mut self.lingering);
        lingering.retain(|ended| {
            let held = region::still_held(ended.request.as_fd());
            if held {
                youngest = youngest.min(ended.since.elapsed());
            } else {
                failpoint!("daemon.freed");
                // A worker may have finished a step after the first punch.
                region::punch(ended.reply.as_fd(), ended.reply_bytes);
                sessions.released(ended.session);
            }
            held
        });
        youngest
    }
}

fn is_scarcity(error: &io::Error) -> bool {
    use nix::errno::Errno;
    let scarce = [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM];
    error.raw_os_error().is_some_and(|number| scarce.contains(&Errno::from_raw(number)))
}

/// Names the models that there are: they are no secret to those who may attach, unlike sessions.
fn unknown_model<'a>(name: &str, models: impl Iterator<Item = &'a str>) -> String {
    let mut names: Vec<&str> = models.collect();
    names.sort_unstable();
    match names.is_empty() {
        true => format!("no model {name:?} here: this daemon serves none; load it, or check the runtime directory"),
        false => format!("no model {name:?} here; this daemon serves: {}", names.join(", ")),
    }
}

fn send_refusal(socket: &UnixStream, status: AttachStatus, what: &str) {
    let record = Attached {
        head: head(RecordKind::Attached, size_of::<Attached>()),
        status: status as u32,
        generation: 0,
        session: 0,
        geometry: Geometry::default(),
        backing: 0,
        spin_us: 0,
        version: field(env!("CARGO_PKG_VERSION")),
        message: field(what),
    };
    // A client that does not read its refusal finds the hang-up instead.
    let _ = fdpass::send(socket, record.as_bytes(), &[]);
}

fn send_ready(socket: &UnixStream, status: AttachStatus, what: &str) {
    let head = head(RecordKind::Ready, size_of::<Ready>());
    let record = Ready { head, status: status as u32, reserved: 0, message: field(what) };
    let _ = fdpass::send(socket, record.as_bytes(), &[]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_model_is_answered_with_the_names_that_there_are() {
        let what = unknown_model("go3", ["walk", "go2"].into_iter());
        assert_eq!(what, "no model \"go3\" here; this daemon serves: go2, walk");
        assert!(unknown_model("go3", [].into_iter()).contains("serves none"));
    }
}
