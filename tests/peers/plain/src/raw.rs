//! The textbook way: a `shared_memory` segment, and `raw_sync` events to say that there is something in it.
//!
//! `Event` is a pthread mutex and a condition variable in the shared bytes: both ends sleep. `BusyEvent` is a byte that both
//! ends spin on. One request at a time; no header, no time stamp, no check of what the other side wrote: the least that
//! the two crates can do. The server makes the segment and removes it.

use inferd_peers_common::{Client, Failure, Gate, Model};
use raw_sync::Timeout;
use raw_sync::events::{BusyEvent, Event, EventImpl, EventInit, EventState};
use shared_memory::{Shmem, ShmemConf};
use std::time::Duration;

/// Offsets in the segment: the two events, each on lines of its own, then the request and, on a line of its own, the reply.
const ASKED: usize = 0;
const ANSWERED: usize = 1024;
const REQUEST: usize = 2048;
const LINE: usize = 128;
/// How long a server waits before it looks at the gate, and a client for an answer.
const LOOK: Duration = Duration::from_millis(50);
const LIMIT: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Sleeping,
    Busy,
}

struct Segment {
    shmem: Shmem,
    asked: Box<dyn EventImpl>,
    answered: Box<dyn EventImpl>,
    request_bytes: usize,
    reply_bytes: usize,
}

impl Segment {
    fn create(kind: Kind, request_bytes: usize, reply_bytes: usize) -> Result<Segment, Failure> {
        let size = REQUEST + request_bytes.next_multiple_of(LINE) + reply_bytes;
        let shmem = ShmemConf::new().size(size).create()?;
        Segment::with(shmem, kind, true, request_bytes, reply_bytes)
    }

    fn open(kind: Kind, name: &str, request_bytes: usize, reply_bytes: usize) -> Result<Segment, Failure> {
        Segment::with(ShmemConf::new().os_id(name).open()?, kind, false, request_bytes, reply_bytes)
    }

    fn with(
        shmem: Shmem,
        kind: Kind,
        is_new: bool,
        request_bytes: usize,
        reply_bytes: usize,
    ) -> Result<Segment, Failure> {
        let [asked, answered] = [ASKED, ANSWERED].map(|at| {
            // SAFETY: in bounds of the segment, aligned and 1024 bytes apart; alive while the segment is, which lies beside
            // them. The creator initialises them before it says its name. A peer that scribbles over them is what
            // docs/decisions/0001 is about: here both are ours.
            unsafe {
                let at = shmem.as_ptr().add(at);
                match (kind, is_new) {
                    (Kind::Sleeping, true) => Event::new(at, true),
                    (Kind::Sleeping, false) => Event::from_existing(at),
                    (Kind::Busy, true) => BusyEvent::new(at, true),
                    (Kind::Busy, false) => BusyEvent::from_existing(at),
                }
            }
        });
        let (asked, answered) = (asked.map_err(|e| e.to_string())?.0, answered.map_err(|e| e.to_string())?.0);
        Ok(Segment { shmem, asked, answered, request_bytes, reply_bytes })
    }

    fn reply_at(&self) -> usize {
        REQUEST + self.request_bytes.next_multiple_of(LINE)
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        // SAFETY: both places are in bounds for what they hold; bytes need no alignment; the segment is alive; the other
        // side touches this one only after the event that follows.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.shmem.as_ptr().add(at), bytes.len()) }
    }

    fn read(&self, at: usize, bytes: &mut [u8]) {
        // SAFETY: as above; the other side wrote before the event that was just waited for.
        unsafe { std::ptr::copy_nonoverlapping(self.shmem.as_ptr().add(at), bytes.as_mut_ptr(), bytes.len()) }
    }
}

fn serve(kind: Kind, mut model: Model, gate: &Gate, ready: &dyn Fn(&str)) -> Result<(), Failure> {
    let (request_bytes, reply_bytes) = model.bytes();
    let segment = Segment::create(kind, request_bytes, reply_bytes)?;
    ready(segment.shmem.get_os_id());
    while if kind == Kind::Busy { gate.poll() } else { !gate.is_over() } {
        // The busy one must not keep its CPU for long once it shall rest.
        let look = if kind == Kind::Busy { LOOK / 50 } else { LOOK };
        if segment.asked.wait(Timeout::Val(look)).is_err() {
            continue;
        }
        segment.read(REQUEST, model.input());
        segment.write(segment.reply_at(), model.run()?);
        segment.answered.set(EventState::Signaled).map_err(|e| e.to_string())?;
    }
    Ok(())
}

impl Client for Segment {
    fn call(&mut self, observation: &[u8], action: &mut [u8]) -> Result<(), Failure> {
        if observation.len() != self.request_bytes || action.len() != self.reply_bytes {
            return Err("another size than the segment's".into());
        }
        self.write(REQUEST, observation);
        self.asked.set(EventState::Signaled).map_err(|e| e.to_string())?;
        self.answered.wait(Timeout::Val(LIMIT)).map_err(|e| e.to_string())?;
        self.read(self.reply_at(), action);
        Ok(())
    }
}

pub fn serve_event(model: Model, gate: &Gate, ready: &dyn Fn(&str)) -> Result<(), Failure> {
    serve(Kind::Sleeping, model, gate, ready)
}

pub fn serve_busy(model: Model, gate: &Gate, ready: &dyn Fn(&str)) -> Result<(), Failure> {
    serve(Kind::Busy, model, gate, ready)
}

pub fn connect_event(name: &str, request: usize, reply: usize) -> Result<Box<dyn Client>, Failure> {
    Ok(Box::new(Segment::open(Kind::Sleeping, name, request, reply)?))
}

pub fn connect_busy(name: &str, request: usize, reply: usize) -> Result<Box<dyn Client>, Failure> {
    Ok(Box::new(Segment::open(Kind::Busy, name, request, reply)?))
}
