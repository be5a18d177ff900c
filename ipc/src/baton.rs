//! The baton: the words through which a model's sessions pass from one worker to the next.
//!
//! One small memfd per model, mapped by the supervisor and that model's workers. Every word has one
//! writer: the supervisor's grant; each worker's release, running and taken words. A worker serves
//! only while the grant names its ticket. Its release is its last write to any shared region. It is
//! waited on by futex, never by spinning: a real-time waiter would starve the holder.

use crate::limits::BATON_ENTRIES;
use crate::mem::{Mem, Wait};
use crate::sync::Ordering;
use std::time::Duration;

/// Offset of the grant: the ticket of the worker that shall serve; 0 for none.
pub const GRANT: usize = 0;
const ENTRIES: usize = 128;
const ENTRY_BYTES: usize = 384;
/// Ticket that the worker of this entry has released.
const RELEASED: usize = 0;
/// Session that is being run, 0 for none; then its request, since when, and a count of steps.
const RUNNING: usize = 128;
const RUNNING_REQUEST: usize = RUNNING + 8;
const RUNNING_SINCE: usize = RUNNING + 16;
const RUNNING_STEPS: usize = RUNNING + 24;
/// Ticket that the worker of this entry has taken over with, and when.
const TAKEN: usize = 256;
const TAKEN_AT: usize = TAKEN + 8;

/// Bytes of a baton.
pub const BATON_BYTES: u64 = ((ENTRIES + BATON_ENTRIES * ENTRY_BYTES) as u64).next_multiple_of(4096);

/// What a worker was running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Running {
    /// The session.
    pub session: u64,
    /// Its request.
    pub request: u64,
    /// CLOCK_MONOTONIC nanoseconds when the run began.
    pub since_ns: u64,
}

/// A mapped baton.
#[derive(Debug, Clone)]
pub struct Baton {
    mem: Mem,
}

impl Baton {
    /// Uses a mapped baton.
    #[must_use]
    pub fn new(mem: Mem) -> Baton {
        Baton { mem }
    }

    /// The words, for a wait over several.
    #[must_use]
    pub fn mem(&self) -> &Mem {
        &self.mem
    }

    fn entry(entry: u32) -> usize {
        assert!((entry as usize) < BATON_ENTRIES, "entries are handed out by the supervisor");
        ENTRIES + entry as usize * ENTRY_BYTES
    }

    /// Supervisor: lets the worker with this ticket serve, once its predecessor has released.
    pub fn grant(&self, ticket: u64) {
        // Release: pairs with the Acquire in `granted`.
        self.mem.word(GRANT).store(ticket, Ordering::Release);
        // One waiter is the holder, others are kept or warming workers: wake each that may sleep here.
        for _ in 0..BATON_ENTRIES {
            self.mem.futex_wake(GRANT);
        }
    }

    /// The ticket that may serve.
    #[must_use]
    #[inline]
    pub fn granted(&self) -> u64 {
        self.mem.word(GRANT).load(Ordering::Acquire)
    }

    /// Worker: lets go. Its last write to any shared region.
    pub fn release(&self, entry: u32, ticket: u64) {
        let at = Self::entry(entry) + RELEASED;
        // Release: everything this worker wrote happens before; pairs with the Acquire in `released`.
        self.mem.word(at).store(ticket, Ordering::Release);
        self.mem.futex_wake(at);
    }

    /// The ticket that the worker of this entry released last.
    #[must_use]
    pub fn released(&self, entry: u32) -> u64 {
        self.mem.word(Self::entry(entry) + RELEASED).load(Ordering::Acquire)
    }

    /// Sleeps until the worker of this entry has released `ticket`, or the time is up. Says whether it has.
    #[must_use]
    pub fn wait_released(&self, entry: u32, ticket: u64, timeout: Duration) -> bool {
        let now = self.released(entry);
        if now != ticket {
            let wait = self.mem.futex_wait(Self::entry(entry) + RELEASED, now, Some(timeout));
            return wait == Wait::Woken && self.released(entry) == ticket;
        }
        true
    }

    /// Worker: has taken over.
    pub fn take(&self, entry: u32, ticket: u64) {
        let at = Self::entry(entry);
        self.mem.word(at + TAKEN_AT).store(clock_ns(), Ordering::Relaxed);
        // Release: who sees the ticket sees the time.
        self.mem.word(at + TAKEN).store(ticket, Ordering::Release);
    }

    /// CLOCK_MONOTONIC nanoseconds when the worker of this entry took over; 0 before.
    #[must_use]
    pub fn taken_at_ns(&self, entry: u32) -> u64 {
        self.mem.word(Self::entry(entry) + TAKEN_AT).load(Ordering::Relaxed)
    }

    /// The ticket that the worker of this entry took over with last.
    #[must_use]
    pub fn taken(&self, entry: u32) -> u64 {
        self.mem.word(Self::entry(entry) + TAKEN).load(Ordering::Acquire)
    }

    /// Worker: a run begins.
    #[inline]
    pub fn run_begins(&self, entry: u32, running: Running) {
        let at = Self::entry(entry);
        self.mem.word(at + RUNNING_REQUEST).store(running.request, Ordering::Relaxed);
        self.mem.word(at + RUNNING_SINCE).store(running.since_ns, Ordering::Relaxed);
        // Release: the supervisor sees request and time of the session that it sees, or newer ones.
        self.mem.word(at + RUNNING).store(running.session, Ordering::Release);
    }

    /// Worker: the run has ended and its reply is published.
    #[inline]
    pub fn run_ends(&self, entry: u32, steps: u64) {
        let at = Self::entry(entry);
        self.mem.word(at + RUNNING_STEPS).store(steps, Ordering::Relaxed);
        self.mem.word(at + RUNNING).store(0, Ordering::Release);
    }

    /// What the worker of this entry runs. Exact once the worker's exit is certain; a hint while it lives.
    #[must_use]
    pub fn running(&self, entry: u32) -> Option<Running> {
        let at = Self::entry(entry);
        let session = self.mem.word(at + RUNNING).load(Ordering::Acquire);
        (session != 0).then(|| Running {
            session,
            request: self.mem.word(at + RUNNING_REQUEST).load(Ordering::Relaxed),
            since_ns: self.mem.word(at + RUNNING_SINCE).load(Ordering::Relaxed),
        })
    }

    /// Steps that the worker of this entry has run.
    #[must_use]
    pub fn steps(&self, entry: u32) -> u64 {
        self.mem.word(Self::entry(entry) + RUNNING_STEPS).load(Ordering::Relaxed)
    }

    /// Supervisor: clears an entry whose worker is gone for certain, for the next one.
    pub fn clear(&self, entry: u32) {
        let at = Self::entry(entry);
        for word in [RELEASED, RUNNING, RUNNING_REQUEST, RUNNING_SINCE, RUNNING_STEPS, TAKEN, TAKEN_AT] {
            self.mem.word(at + word).store(0, Ordering::Release);
        }
    }
}

#[cfg(not(loom))]
fn clock_ns() -> u64 {
    crate::sys::now_ns()
}

/// Time stands still in a model of the orderings.
#[cfg(loom)]
fn clock_ns() -> u64 {
    1
}

/// Creates and maps a baton.
///
/// # Errors
/// As [`crate::region::create`].
#[cfg(not(loom))]
pub fn create() -> Result<(Baton, std::os::fd::OwnedFd), crate::region::RegionError> {
    use crate::{layout::Backing, region};
    use std::os::fd::AsFd;
    let new = region::create(Backing::Memfd, region::RegionKind::Baton, BATON_BYTES, "")?;
    let mem = region::map(new.fd.as_fd(), BATON_BYTES, region::Access::ReadWrite, Backing::Memfd)?;
    Ok((Baton::new(mem), new.fd))
}

/// Maps a baton in a worker.
///
/// # Errors
/// As [`crate::region::map`].
#[cfg(not(loom))]
pub fn open(fd: std::os::fd::BorrowedFd<'_>) -> Result<Baton, crate::region::RegionError> {
    use crate::{layout::Backing, region};
    region::verify_import(fd, region::RegionKind::Baton, Backing::Memfd, BATON_BYTES)?;
    Ok(Baton::new(region::map(fd, BATON_BYTES, region::Access::ReadWrite, Backing::Memfd)?))
}
