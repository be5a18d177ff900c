//! The handshake on `attach.sock`: ATTACH -> ATTACHED -> (verify, map, populate) -> MAPPED -> READY.
//!
//! It goes on in steps that never wait, so that a control loop can reattach on the side; `Link::attach`
//! is the same with waiting in between. One limit in time bounds the whole. The daemon's records are
//! copied once and checked; the regions are verified (seals, size) before they are mapped, geometry and
//! signature before they are used. Whatever fails, descriptors and mappings go with the handshake.

use crate::clock::{limit_ns, now_ns};
use crate::dirs::{ATTACH_SOCKET, RuntimeDir};
use crate::error::Error;
use crate::link::{Link, Parts};
use crate::options::AttachOptions;
use inferd_ipc::attach::{
    Attach, AttachStatus, Attached, Mapped, Ready, RecordFault, RecordKind, field, head, parse, text,
};
use inferd_ipc::failpoint;
use inferd_ipc::fdpass;
use inferd_ipc::layout::{Backing, Geometry};
use inferd_ipc::limits::{CLOCK_STALE_MS, CONNECT_PAUSE_MS, SPIN_US_MAX};
use inferd_ipc::mem::Mem;
use inferd_ipc::region::{self, Access, RegionError, RegionKind};
use inferd_ipc::requester::Requester;
use inferd_ipc::signature::{Signature, slot_offsets};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// One attach under way.
#[derive(Debug)]
pub(crate) struct Handshake {
    model: Arc<str>,
    socket: OwnedFd,
    limit_ns: u64,
    timeout: Duration,
    /// The clock that ATTACH carries.
    clock_ns: u64,
    /// What ATTACHED gave; then READY is due.
    mapped: Option<Mapping>,
}

impl Link {
    /// Attaches to the daemon in `dir`; waits for at most `timeout`.
    pub(crate) fn attach(
        options: &AttachOptions,
        model: &Arc<str>,
        dir: &RuntimeDir,
        timeout: Duration,
    ) -> Result<Link, Error> {
        let limit_ns = limit_ns(now_ns(), Some(timeout));
        let mut handshake = Handshake::begin(options, model, dir, timeout, limit_ns)?;
        loop {
            match handshake.step()? {
                Step::Attached(link) => return Ok(*link),
                Step::Waits(same) => handshake = *same,
                Step::Stale(refusal) if now_ns() >= limit_ns => return Err(refusal),
                Step::Stale(_) => handshake = Handshake::begin(options, model, dir, timeout, limit_ns)?,
            }
            handshake.wait(limit_ns)?;
        }
    }
}

/// How far a step came.
pub(crate) enum Step {
    /// To the end.
    Attached(Box<Link>),
    /// The daemon's next record is not there yet.
    Waits(Box<Handshake>),
    /// The daemon came to read ATTACH so late that it took the wait for a clock of another namespace: begin again.
    Stale(Error),
}

impl Handshake {
    /// Connects and sends ATTACH. Where the daemon's backlog is full, tries again until `patient_until_ns`.
    pub(crate) fn begin(
        options: &AttachOptions,
        model: &Arc<str>,
        dir: &RuntimeDir,
        timeout: Duration,
        patient_until_ns: u64,
    ) -> Result<Handshake, Error> {
        let limit_ns = limit_ns(now_ns(), Some(timeout));
        let socket = connect_to(dir, patient_until_ns)?;
        failpoint!("client.connected");
        let handshake = Handshake { model: model.clone(), socket, limit_ns, timeout, clock_ns: now_ns(), mapped: None };
        let wish = Attach {
            head: head(RecordKind::Attach, size_of::<Attach>()),
            model: field(&options.model),
            slots: options.slots,
            queue: options.queue.map_or(0, |queue| queue as u32),
            flags: 0,
            pid: std::process::id(),
            clock_ns: handshake.clock_ns,
        };
        handshake.send(wish.as_bytes())?;
        failpoint!("client.attach.sent");
        Ok(handshake)
    }

    /// Goes as far as it can without waiting.
    pub(crate) fn step(mut self) -> Result<Step, Error> {
        if self.mapped.is_none() {
            let Some((attached, fds)) = self.receive::<Attached>(RecordKind::Attached)? else {
                return Ok(Step::Waits(Box::new(self)));
            };
            match self.check_status(attached.status, &attached.message) {
                Err(refusal) if refusal.is_clock_skew() && self.is_stale() => return Ok(Step::Stale(refusal)),
                checked => checked?,
            }
            failpoint!("client.attached");
            self.mapped = Some(Mapping::import(attached, fds)?);
            failpoint!("client.mapped");
            self.send(Mapped { head: head(RecordKind::Mapped, size_of::<Mapped>()) }.as_bytes())?;
            failpoint!("client.mapped.sent");
        }
        let Some((ready, _)) = self.receive::<Ready>(RecordKind::Ready)? else {
            return Ok(Step::Waits(Box::new(self)));
        };
        self.check_status(ready.status, &ready.message)?;
        failpoint!("client.ready");
        let m = self.mapped.take().ok_or_else(|| Error::protocol("READY before ATTACHED"))?;
        Ok(Step::Attached(Box::new(Link::new(Parts {
            requester: m.requester,
            regions: m.regions,
            socket: self.socket,
            doorbell: m.doorbell,
            signature: m.signature,
            generation: m.attached.generation,
            session: m.attached.session,
            spin_us: m.attached.spin_us.min(SPIN_US_MAX as u32),
            daemon_version: text(&m.attached.version).unwrap_or_default().to_owned(),
            backing: m.backing,
        }))))
    }

    /// Waits until the next step can go on, or until `until_ns`.
    pub(crate) fn wait(&self, until_ns: u64) -> Result<(), Error> {
        let left_ms = self.limit_ns.min(until_ns).saturating_sub(now_ns()).div_ceil(1_000_000);
        let timeout = PollTimeout::try_from(left_ms).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(e) => Err(Error::os("waiting for an attach record", e)),
        }
    }
}

/// Connects without blocking for longer than the limit, also when a stopped daemon's backlog is full.
fn connect_to(dir: &RuntimeDir, limit_ns: u64) -> Result<OwnedFd, Error> {
    let no_daemon = |why: &dyn std::fmt::Display| Error::NoDaemon { tried: dir.failed(why) };
    let address = UnixAddr::new(&dir.dir.join(ATTACH_SOCKET))
        .map_err(|e| no_daemon(&format_args!("not a socket path: {}", e.desc())))?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)
        .map_err(|e| Error::os("creating a socket to attach", e))?;
    loop {
        match connect(socket.as_raw_fd(), &address) {
            Ok(()) | Err(Errno::EISCONN) => return Ok(socket),
            Err(Errno::EAGAIN | Errno::EINTR) if now_ns() < limit_ns => {
                std::thread::sleep(Duration::from_millis(CONNECT_PAUSE_MS))
            }
            Err(Errno::EAGAIN) => return Err(no_daemon(&"it does not accept: stopped or overloaded")),
            Err(Errno::ENOENT) => return Err(no_daemon(&"no attach.sock there")),
            Err(Errno::ECONNREFUSED) => return Err(no_daemon(&"a stale socket: nobody listens")),
            Err(Errno::EACCES) => return Err(no_daemon(&"permission denied; join the socket's group")),
            Err(e) => return Err(no_daemon(&e.desc())),
        }
    }
}

impl Handshake {
    fn send(&self, record: &[u8]) -> Result<(), Error> {
        match fdpass::send(&self.socket, record, &[]) {
            // The daemon closed its end already; what it said before is still there to be received.
            Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
            other => other.map_err(|e| Error::os("sending an attach record", e)),
        }
    }

    /// The next record and its descriptors, if one is there.
    fn receive<T: FromBytes + Immutable + KnownLayout>(
        &self,
        kind: RecordKind,
    ) -> Result<Option<(T, Vec<OwnedFd>)>, Error> {
        // One byte more than any record, so that a longer one is seen to be longer.
        let mut buffer = [0; size_of::<Attached>() + 1];
        let received = match fdpass::recv(&self.socket, &mut buffer) {
            Ok(received) => received,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                let late = now_ns() >= self.limit_ns;
                let timeout = || Error::Timeout { model: self.model.clone(), after: self.timeout };
                return if late { Err(timeout()) } else { Ok(None) };
            }
            Err(e) if e.kind() == ErrorKind::ConnectionReset => return Err(self.lost()),
            Err(e) => return Err(Error::os("receiving an attach record", e)),
        };
        if received.bytes == 0 {
            return Err(self.lost());
        }
        if received.truncated {
            return Err(Error::protocol("an attach record too long, or descriptors over this process's RLIMIT_NOFILE"));
        }
        match parse(&buffer[..received.bytes], kind) {
            Ok(record) => Ok(Some((record, received.fds))),
            Err(fault @ RecordFault::Abi { .. }) => Err(Error::Attach {
                model: self.model.clone(),
                status: AttachStatus::AbiMismatch,
                message: fault.to_string(),
            }),
            Err(fault) => Err(Error::protocol(fault)),
        }
    }

    /// Whether the daemon was so late that its look at our clock says nothing.
    fn is_stale(&self) -> bool {
        now_ns().saturating_sub(self.clock_ns) > CLOCK_STALE_MS * 1_000_000
    }

    fn check_status(&self, status: u32, message: &[u8]) -> Result<(), Error> {
        match AttachStatus::from_number(status) {
            Some(AttachStatus::Ok) => Ok(()),
            Some(status) => Err(Error::Attach {
                model: self.model.clone(),
                status,
                message: text(message).filter(|t| !t.is_empty()).unwrap_or("the daemon gave no reason").to_owned(),
            }),
            None => Err(Error::protocol(format_args!("attach status {status}, which this library does not know"))),
        }
    }

    fn lost(&self) -> Error {
        Error::DaemonLost { model: self.model.clone(), cause: None }
    }
}

/// The session's regions, verified, mapped and populated, and what came with them.
#[derive(Debug)]
struct Mapping {
    attached: Attached,
    requester: Requester,
    regions: [Mem; 2],
    doorbell: OwnedFd,
    signature: Signature,
    backing: Backing,
}

impl Mapping {
    fn import(attached: Attached, fds: Vec<OwnedFd>) -> Result<Mapping, Error> {
        let [request, reply, doorbell] = <[OwnedFd; 3]>::try_from(fds)
            .map_err(|fds| Error::protocol(format_args!("{} descriptors with ATTACHED where 3 belong", fds.len())))?;
        let geometry: Geometry = attached.geometry;
        geometry.check().map_err(Error::protocol)?;
        let backing = Backing::from_number(attached.backing).ok_or_else(|| Error::protocol("an unknown backing"))?;
        let map = |fd: &OwnedFd, kind, bytes, access| {
            region::verify_import(fd.as_fd(), kind, backing, bytes).map_err(region_error)?;
            region::map(fd.as_fd(), bytes, access, backing).map_err(region_error)
        };
        let request = map(&request, RegionKind::Request, geometry.request_bytes, Access::ReadWrite)?;
        let reply = map(&reply, RegionKind::Reply, geometry.reply_bytes, Access::ReadOnly)?;
        let (header, signature) = region::read_signature(&reply, geometry.reply_base).map_err(region_error)?;
        let fits = slot_offsets(&signature.inputs).1 <= geometry.request_stride
            && slot_offsets(&signature.outputs).1 <= geometry.reply_stride;
        if !fits || header.session != attached.session {
            return Err(Error::protocol("the reply region's signature does not fit the session"));
        }
        let requester = Requester::new(request.clone(), reply.clone(), geometry);
        Ok(Mapping { attached, requester, regions: [request, reply], doorbell, signature, backing })
    }
}

fn region_error(error: RegionError) -> Error {
    match error {
        RegionError::Os { source, what, bytes } => Error::os(format!("{what} a region of {bytes} bytes"), source),
        other => Error::protocol(other),
    }
}
