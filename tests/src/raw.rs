//! A client made of bare records and mapped words: what no client library would ever do can be said here.
//!
//! It follows the protocol by default, step by step, so that a test may leave the path at any step: a
//! header with an unknown flag, a released count that jumps, an attach that stops half-way.

use inferd_ipc::attach::{self, Attach, AttachStatus, Attached, Mapped, Ready, RecordKind};
use inferd_ipc::fdpass;
use inferd_ipc::layout::{
    ASLEEP_FUTEX, ASLEEP_SOCKET, AWAKE, Backing, Queue, REP_SLEEPING, REQ_DOORBELL, REQ_PUBLISHED, REQ_RELEASED,
    ReplyHeader, RequestHeader, Status,
};
use inferd_ipc::mem::Mem;
use inferd_ipc::region::{self, Access};
use inferd_ipc::signature::{Signature, slot_offsets};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};
use zerocopy::{FromBytes, IntoBytes};

/// How long a record from the daemon may take.
const RECORD_TIME: Duration = Duration::from_secs(5);

/// A connection to `attach.sock` that has not got a session yet.
pub struct RawAttach {
    /// The session's socket.
    pub socket: OwnedFd,
}

/// An ATTACH record as a good client would send it.
#[must_use]
pub fn wish(model: &str, slots: u32, queue: Option<Queue>) -> Attach {
    Attach {
        head: attach::head(RecordKind::Attach, size_of::<Attach>()),
        model: attach::field(model),
        slots,
        queue: queue.map_or(0, |q| q as u32),
        flags: 0,
        pid: std::process::id(),
        clock_ns: crate::now_ns(),
    }
}

impl RawAttach {
    /// Connects.
    ///
    /// # Errors
    /// As connect(2).
    pub fn connect(runtime_dir: &Path) -> nix::Result<RawAttach> {
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        connect(fd.as_raw_fd(), &UnixAddr::new(&runtime_dir.join("attach.sock"))?)?;
        Ok(RawAttach { socket: fd })
    }

    /// Sends a record, whatever it is, with descriptors.
    ///
    /// # Errors
    /// As sendmsg(2).
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> std::io::Result<()> {
        fdpass::send(&self.socket, bytes, fds)
    }

    /// The next record; none when the daemon has hung up.
    ///
    /// # Panics
    /// When the daemon says nothing.
    #[must_use]
    pub fn receive(&self) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
        assert!(readable(&self.socket, RECORD_TIME), "the daemon said nothing for {RECORD_TIME:?}");
        let mut buffer = vec![0; 4096];
        let received = fdpass::recv(&self.socket, &mut buffer).ok()?;
        buffer.truncate(received.bytes);
        (received.bytes > 0).then_some((buffer, received.fds))
    }

    /// Sends this ATTACH and returns the answer with its descriptors.
    ///
    /// # Panics
    /// When the daemon hangs up instead.
    #[must_use]
    pub fn ask(&self, wish: &Attach) -> (Attached, Vec<OwnedFd>) {
        self.send(wish.as_bytes(), &[]).expect("the daemon listens");
        let (bytes, fds) = self.receive().expect("an answer");
        (attach::parse(&bytes, RecordKind::Attached).expect("an ATTACHED record"), fds)
    }

    /// Whether the daemon hangs up within `limit`; what it says before that is thrown away.
    #[must_use]
    pub fn ended_within(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        loop {
            if !readable(&self.socket, end.saturating_duration_since(Instant::now())) {
                return false;
            }
            if self.receive().is_none() {
                return true;
            }
        }
    }

    /// The whole way to a session, or the status that the daemon refused it with; none when it hung up or said nothing.
    ///
    /// # Errors
    /// The status.
    pub fn try_attach(runtime_dir: &Path, wish: &Attach) -> Result<RawSession, Option<u32>> {
        let raw = RawAttach::connect(runtime_dir).map_err(|_| None)?;
        let sent = raw.send(wish.as_bytes(), &[]);
        // A refusal at the door may have come before.
        let (bytes, fds) = raw.hear().ok_or(None)?;
        let attached: Attached = attach::parse(&bytes, RecordKind::Attached).map_err(|_| None)?;
        if attached.status != AttachStatus::Ok as u32 || sent.is_err() {
            return Err(Some(attached.status));
        }
        let session = RawSession::try_map(raw, &attached, fds).ok_or(None)?;
        let mapped = Mapped { head: attach::head(RecordKind::Mapped, size_of::<Mapped>()) };
        session.attach.send(mapped.as_bytes(), &[]).map_err(|_| None)?;
        let (bytes, _) = session.attach.hear().ok_or(None)?;
        match attach::parse::<Ready>(&bytes, RecordKind::Ready) {
            Ok(ready) if ready.status == AttachStatus::Ok as u32 => Ok(session),
            Ok(ready) => Err(Some(ready.status)),
            Err(_) => Err(None),
        }
    }

    /// The next record; none when the daemon has hung up, or says nothing.
    #[must_use]
    pub fn hear(&self) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
        readable(&self.socket, RECORD_TIME).then(|| self.receive())?
    }

    /// Whether the daemon has hung up already, or sent something.
    #[must_use]
    pub fn is_over(&self) -> bool {
        readable(&self.socket, Duration::ZERO)
    }

    /// The whole way to a session.
    ///
    /// # Panics
    /// When the daemon refuses.
    #[must_use]
    pub fn attach(runtime_dir: &Path, model: &str, slots: u32, queue: Queue) -> RawSession {
        let raw = RawAttach::connect(runtime_dir).expect("the daemon listens");
        let (attached, fds) = raw.ask(&wish(model, slots, Some(queue)));
        assert_eq!(attached.status, AttachStatus::Ok as u32, "{:?}", attach::text(&attached.message));
        let session = RawSession::map(raw, &attached, fds);
        assert_eq!(session.mapped(), AttachStatus::Ok as u32);
        session
    }
}

fn readable(fd: &OwnedFd, limit: Duration) -> bool {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    poll(&mut fds, timeout).is_ok_and(|n| n > 0)
}

/// A session in bare words.
pub struct RawSession {
    /// The way it came.
    pub attach: RawAttach,
    /// The daemon's answer.
    pub attached: Attached,
    /// Request region's descriptor.
    pub request_fd: OwnedFd,
    /// Reply region's descriptor.
    pub reply_fd: OwnedFd,
    /// Doorbell socket.
    pub doorbell: OwnedFd,
    /// Request region, mapped writable.
    pub requests: Mem,
    /// Reply region, mapped read-only.
    pub replies: Mem,
    /// What the reply region says of the model.
    pub signature: Signature,
}

impl RawSession {
    /// Maps what came with ATTACHED.
    ///
    /// # Panics
    /// When the regions are not there.
    #[must_use]
    pub fn map(attach: RawAttach, attached: &Attached, fds: Vec<OwnedFd>) -> RawSession {
        RawSession::try_map(attach, attached, fds).expect("three descriptors of regions")
    }

    /// The same; none when the regions are not there (any more).
    #[must_use]
    pub fn try_map(attach: RawAttach, attached: &Attached, fds: Vec<OwnedFd>) -> Option<RawSession> {
        let [request_fd, reply_fd, doorbell] = <[OwnedFd; 3]>::try_from(fds).ok()?;
        let backing = Backing::from_number(attached.backing)?;
        let g = attached.geometry;
        let map = |fd: &OwnedFd, bytes, access| region::map(fd.as_fd(), bytes, access, backing).ok();
        let requests = map(&request_fd, g.request_bytes, Access::ReadWrite)?;
        let replies = map(&reply_fd, g.reply_bytes, Access::ReadOnly)?;
        let (_, signature) = region::read_signature(&replies, g.reply_base).ok()?;
        Some(RawSession { attach, attached: *attached, request_fd, reply_fd, doorbell, requests, replies, signature })
    }

    /// Says MAPPED and returns the status of READY.
    ///
    /// # Panics
    /// When the daemon hangs up instead.
    #[must_use]
    pub fn mapped(&self) -> u32 {
        let mapped = Mapped { head: attach::head(RecordKind::Mapped, size_of::<Mapped>()) };
        self.attach.send(mapped.as_bytes(), &[]).expect("the daemon listens");
        let (bytes, _) = self.attach.receive().expect("READY");
        attach::parse::<Ready>(&bytes, RecordKind::Ready).expect("a READY record").status
    }

    /// The header that a good client would publish as request `n`.
    #[must_use]
    pub fn header(&self, n: u64) -> RequestHeader {
        RequestHeader { seq: n + 1, observation_id: n, t_submit_ns: crate::now_ns(), ..RequestHeader::default() }
    }

    /// Writes a request into slot `n` without publishing it.
    pub fn write(&self, n: u64, header: &RequestHeader, inputs: &[&[u8]]) {
        let at = self.attached.geometry.request_slot(n);
        for (offset, bytes) in slot_offsets(&self.signature.inputs).0.iter().zip(inputs) {
            self.requests.copy_in(at + *offset as usize, bytes);
        }
        self.requests.copy_in(at + 8, &header.as_bytes()[8..]);
    }

    /// Publishes request `n` and rings if the worker sleeps.
    pub fn publish(&self, n: u64, header: &RequestHeader, inputs: &[&[u8]]) {
        self.write(n, header, inputs);
        let at = self.attached.geometry.request_slot(n);
        // Release: pairs with the worker's acquire load of the slot's seq.
        self.requests.word(at).store(header.seq, Ordering::Release);
        self.word(REQ_PUBLISHED, n + 1);
        self.ring();
    }

    /// Sets one of the client's words.
    pub fn word(&self, word: usize, value: u64) {
        let at = self.attached.geometry.request_base as usize + word;
        self.requests.word(at).store(value, Ordering::Release);
    }

    /// Whether the worker says that it sleeps.
    #[must_use]
    pub fn worker_sleeps(&self) -> bool {
        let at = self.attached.geometry.reply_base as usize + REP_SLEEPING;
        self.replies.word(at).load(Ordering::Acquire) != AWAKE
    }

    /// Rings if the worker sleeps.
    pub fn ring(&self) {
        // SeqCst: pairs with the worker's fence between raising its sleeping word and looking again.
        fence(Ordering::SeqCst);
        let sleeping = self.attached.geometry.reply_base as usize + REP_SLEEPING;
        match self.replies.word(sleeping).load(Ordering::Relaxed) {
            ASLEEP_FUTEX => {
                let bell = self.attached.geometry.request_base as usize + REQ_DOORBELL;
                self.requests.word(bell).fetch_add(1, Ordering::SeqCst);
                self.requests.futex_wake(bell);
            }
            ASLEEP_SOCKET => fdpass::ring(&self.doorbell),
            _ => {}
        }
    }

    /// Reply `r`, if it is published.
    #[must_use]
    pub fn reply(&self, r: u64) -> Option<ReplyHeader> {
        let at = self.attached.geometry.reply_slot(r);
        // Acquire: pairs with the worker's release store of the slot's seq.
        if self.replies.word(at).load(Ordering::Acquire) != r + 1 {
            return None;
        }
        let mut bytes = [0; size_of::<ReplyHeader>()];
        self.replies.copy_out(at, &mut bytes);
        ReplyHeader::read_from_bytes(&bytes).ok()
    }

    /// Waits for reply `r`.
    ///
    /// # Panics
    /// When it does not come.
    #[must_use]
    pub fn wait(&self, r: u64) -> ReplyHeader {
        let end = Instant::now() + RECORD_TIME;
        loop {
            if let Some(header) = self.reply(r) {
                return header;
            }
            assert!(Instant::now() < end, "no reply {r} within {RECORD_TIME:?}");
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Waits for reply `r`, or for the end of the session; says whether the reply came.
    #[must_use]
    pub fn answered_or_over(&self, r: u64) -> bool {
        let end = Instant::now() + RECORD_TIME;
        while Instant::now() < end {
            if self.reply(r).is_some() {
                return true;
            }
            if self.attach.is_over() {
                return false;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        false
    }

    /// Says that the first `count` replies are released.
    pub fn release(&self, count: u64) {
        self.word(REQ_RELEASED, count);
        self.ring();
    }

    /// Whether the daemon ends this session within `limit`.
    #[must_use]
    pub fn ended_within(&self, limit: Duration) -> bool {
        self.attach.ended_within(limit)
    }

    /// The status of a reply.
    #[must_use]
    pub fn status(header: &ReplyHeader) -> Status {
        Status::from_number(header.status).expect("a status that exists")
    }
}
