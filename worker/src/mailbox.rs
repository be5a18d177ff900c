//! What the control thread and the executor say to each other.
//!
//! The executor looks at one flag per sweep and takes the lock only when it is raised; the control
//! thread never waits for the executor. Mapping, unmapping, logging and sockets stay on the control
//! thread: sessions arrive mapped, and leave through [`Report::Gone`] to be unmapped there.

use crate::policy::Policy;
use crate::session::Session;
use inferd_ipc::mem::Mem;
use inferd_ipc::record::Recorder;
use inferd_ipc::sync::Ordering as WordOrdering;
use inferd_ipc::worker_records::ShadowReport;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// Control thread to executor.
pub enum Order {
    /// Serve this session too; replaces one of the same number.
    Add(Box<Session>),
    /// Serve it no more.
    Remove(u64),
    /// Take over once granted, after this entry has released this ticket.
    Take(Option<(u32, u64)>),
    /// Keep every step here.
    Record(Box<Recorder>),
    /// The grant has changed: look.
    Look,
    /// Answer everything with `shutting_down`.
    Drain,
}

/// Executor, or the thread of a shadow run, to control thread.
pub enum Report {
    /// A shadow run has come this far.
    Shadowing {
        /// Steps, or milliseconds.
        done: u32,
        /// Of so many.
        of: u32,
    },
    /// The shadow run has ended, and gives the policy back.
    Shadowed(Box<ShadowReport>, Box<Policy>),
    /// The baton was taken.
    Taken,
    /// A session's client lied.
    Fault {
        /// The session.
        session: u64,
        /// What was wrong.
        fault: String,
    },
    /// A step failed; the model's own message.
    Model {
        /// The session.
        session: u64,
        /// Its request.
        request: u64,
        /// The message.
        message: String,
    },
    /// Something was not allowed; the executor goes on.
    Warning(String),
    /// A session left; drop it here.
    Gone(Box<Session>),
    /// Everything was answered.
    Drained,
}

/// Both directions, and what wakes a sleeping executor.
pub struct Mailbox {
    orders: Mutex<Vec<Order>>,
    pending: AtomicBool,
    /// A word of this process that the executor sleeps on, beside its sessions' doorbells.
    pub wake: Mem,
    /// The same for epoll.
    pub wake_event: EventFd,
    reports: Mutex<Vec<Report>>,
    reported: EventFd,
}

impl Mailbox {
    /// An empty one.
    ///
    /// # Errors
    /// EMFILE.
    pub fn new() -> std::io::Result<Mailbox> {
        let event = || EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        Ok(Mailbox {
            orders: Mutex::new(Vec::new()),
            pending: AtomicBool::new(false),
            wake: Mem::heap(4096),
            wake_event: event()?,
            reports: Mutex::new(Vec::new()),
            reported: event()?,
        })
    }

    /// Control thread: gives an order and wakes the executor.
    pub fn order(&self, order: Order) {
        lock(&self.orders).push(order);
        // Release: pairs with the Acquire in `pending`.
        self.pending.store(true, Ordering::Release);
        let word = self.wake.word(0);
        word.fetch_add(1, WordOrdering::SeqCst);
        self.wake.futex_wake(0);
        // A full counter is awake already.
        let _ = self.wake_event.write(1);
    }

    /// Executor: whether there are orders.
    #[inline]
    pub fn pending(&self) -> bool {
        self.pending.load(Ordering::Acquire)
    }

    /// Executor: takes all orders.
    pub fn orders(&self) -> Vec<Order> {
        self.pending.store(false, Ordering::Relaxed);
        let orders = std::mem::take(&mut *lock(&self.orders));
        let _ = self.wake_event.read();
        orders
    }

    /// Executor: tells the control thread.
    pub fn report(&self, report: Report) {
        lock(&self.reports).push(report);
        let _ = self.reported.write(1);
    }

    /// Control thread: takes all reports.
    pub fn reports(&self) -> Vec<Report> {
        let _ = self.reported.read();
        std::mem::take(&mut *lock(&self.reports))
    }

    /// Readable when there are reports.
    pub fn reported(&self) -> BorrowedFd<'_> {
        self.reported.as_fd()
    }
}

/// A lock whose holder panicked is a bug that has ended the process already.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
