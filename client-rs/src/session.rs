//! A session: one process attached to one model, and everything a robot does with it.
//!
//! The session owns the link (regions and sockets of the current attach) and the bookkeeping of its
//! tickets. Every call first refuses a forked child. A lost link stays mapped, so that replies which
//! came before the hang-up are still read; the next request replaces it, with backoff. `Send`, not
//! `Sync`: one thread at a time. Nothing on the way of a request allocates.

use crate::attach::Handshake;
use crate::clock::{limit_ns, now_ns};
use crate::dirs::{ATTACH_SOCKET, RuntimeDir, runtime_dir};
use crate::element::Element;
use crate::error::Error;
use crate::fork::ForkGuard;
use crate::link::Link;
use crate::options::{AttachOptions, CallOptions};
use crate::reattach::Backoff;
use crate::reply::{Outcome, Reply, ReplyInfo, Ticket};
use crate::request::Request;
use crate::tickets::Tickets;
use crate::wait::{Arrival, Waiter};
use inferd_ipc::layout::{Backing, Queue, ServingState, Status};
use inferd_ipc::requester::RequestMeta;
use inferd_ipc::signature::Signature;
use std::cell::Cell;
use std::marker::PhantomData;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;
use zerocopy::IntoBytes;

mod flow;

/// A client process attached to a model. Dropping it ends the session.
///
/// `Send`, not `Sync`:
/// ```compile_fail
/// fn shared<T: Sync>() {}
/// shared::<inferd_client::Session>();
/// ```
#[derive(Debug)]
pub struct Session {
    options: AttachOptions,
    model: Arc<str>,
    dir: RuntimeDir,
    link: Link,
    tickets: Tickets,
    epoch: u32,
    generation: u32,
    lost: bool,
    /// This session replaced another and has submitted nothing: its state is fresh, and the reply shall say so.
    begins_anew: bool,
    claimed: Option<u64>,
    fruitless_since_ns: Option<u64>,
    backoff: Backoff,
    /// An attach under way, while the daemon is lost.
    pending: Option<Box<Handshake>>,
    guard: ForkGuard,
    one_thread_at_a_time: PhantomData<Cell<()>>,
}

/// Outcome of a ticket, before the reply is borrowed.
enum Settled {
    Reply(u64, ReplyInfo),
    Superseded(u64),
}

impl Session {
    /// Attaches to a model: finds the daemon, maps and populates both regions, and returns once the worker has them.
    /// Blocks for at most [`AttachOptions::timeout`].
    ///
    /// # Errors
    /// [`Error::Option`], [`Error::NoDaemon`] (lists all places that were tried), [`Error::Attach`] (the daemon's own sentence),
    /// [`Error::Timeout`], [`Error::Protocol`], [`Error::Os`].
    pub fn attach(options: AttachOptions) -> Result<Session, Error> {
        options.check()?;
        let model: Arc<str> = options.model.as_str().into();
        let dir = runtime_dir(options.runtime_dir.as_deref(), ATTACH_SOCKET);
        let link = Link::attach(&options, &model, &dir, options.timeout)?;
        Ok(Session {
            tickets: Tickets::new(link.queue(), link.slots()),
            generation: link.generation,
            options,
            model,
            dir,
            link,
            epoch: 0,
            lost: false,
            begins_anew: false,
            claimed: None,
            fruitless_since_ns: None,
            backoff: Backoff::default(),
            pending: None,
            guard: ForkGuard::new(),
            one_thread_at_a_time: PhantomData,
        })
    }

    /// The model's name.
    #[must_use]
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Inputs and outputs, in order: names, dtypes, shapes, names and units of elements.
    #[must_use]
    pub fn signature(&self) -> &Signature {
        &self.link.signature
    }

    /// The newest generation seen: of the last reply, or at attach.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// The daemon's version.
    #[must_use]
    pub fn daemon_version(&self) -> &str {
        &self.link.daemon_version
    }

    /// The session's number within its daemon, as in `inferctl sessions`.
    #[must_use]
    pub fn session_id(&self) -> u64 {
        self.link.session
    }

    /// Counts the attaches of this session, from 0.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Requests that may be in flight at once.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.link.slots()
    }

    /// How requests are taken.
    #[must_use]
    pub fn queue(&self) -> Queue {
        self.link.queue()
    }

    /// What the regions are made of.
    #[must_use]
    pub fn backing(&self) -> Backing {
        self.link.backing
    }

    /// How long a wait spins before it sleeps, in microseconds.
    #[must_use]
    pub fn spin_us(&self) -> u32 {
        self.options.spin_us.unwrap_or(self.link.spin_us)
    }

    /// Changes how long a wait spins before it sleeps, in microseconds; see [`AttachOptions::spin_us`].
    ///
    /// # Errors
    /// [`Error::Option`] over the limit.
    pub fn set_spin_us(&mut self, spin_us: u32) -> Result<(), Error> {
        let before = self.options.spin_us.replace(spin_us);
        self.options.check().inspect_err(|_| self.options.spin_us = before)
    }

    /// What the model's state word says now. One load, no system call.
    #[must_use]
    pub fn state(&mut self) -> ServingState {
        if self.guard.in_child() { ServingState::Closed } else { self.link.state() }
    }

    /// Whether the session's socket was found ended; the next request then reattaches.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// A free request slot, to be written in place and submitted. Never blocks. Once the daemon was lost, each call takes a
    /// step towards a new session (with [`AttachOptions::auto_reattach`], and with backoff): a later call succeeds when the
    /// daemon is back. Such a step never waits for the daemon; mapping the new regions costs page faults, once.
    ///
    /// # Errors
    /// [`Error::Again`] when all slots are in flight (`in_order` only), [`Error::Unavailable`] while no worker serves,
    /// [`Error::DaemonLost`], [`Error::SignatureChanged`], [`Error::WrongProcess`], [`Error::Protocol`].
    pub fn request(&mut self) -> Result<Request<'_>, Error> {
        self.enter()?;
        self.reattach_step()?;
        self.prepare()?;
        Ok(Request::new(self))
    }

    /// Waits for the outcome of a ticket: spins for [`Session::spin_us`], then sleeps. `None` waits until there is an outcome.
    /// A ticket that timed out is abandoned: its reply is released when it arrives. In `latest`, the outcome of a ticket
    /// releases unclaimed replies to older ones.
    ///
    /// # Errors
    /// [`Error::Timeout`], [`Error::DaemonLost`] (also for tickets of an earlier attach), [`Error::TicketSpent`],
    /// [`Error::WrongProcess`], [`Error::Protocol`].
    pub fn wait(&mut self, ticket: Ticket, timeout: Option<Duration>) -> Result<Outcome<'_>, Error> {
        self.enter()?;
        self.link.disarm_poll();
        let settled = self.settle_within(ticket, timeout)?;
        Ok(self.hand_out(settled))
    }

    /// The outcome of a ticket, if it is known; never blocks. Called in a loop, it looks at the daemon's socket once per
    /// millisecond without an outcome.
    ///
    /// # Errors
    /// As [`Session::wait`], without [`Error::Timeout`].
    pub fn try_wait(&mut self, ticket: Ticket) -> Result<Option<Outcome<'_>>, Error> {
        self.enter()?;
        self.link.disarm_poll();
        let mut settled = self.settle(ticket)?;
        if settled.is_none() && self.look_at_socket()? {
            // Once more at the slot after the hang-up.
            settled = Some(self.settle(ticket)?.ok_or_else(|| self.daemon_lost(None))?);
        }
        Ok(settled.map(|settled| self.hand_out(settled)))
    }

    /// The next reply to any ticket that was not given up: the oldest one in `in_order`, the newest one that is there
    /// in `latest` (older ones are released). For loops that submit at their own pace. Returns `None` when nothing
    /// came within `timeout` (zero: never blocks); no ticket is abandoned.
    ///
    /// # Errors
    /// As [`Session::wait`], without [`Error::Timeout`].
    pub fn next_reply(&mut self, timeout: Option<Duration>) -> Result<Option<Reply<'_>>, Error> {
        self.enter()?;
        self.link.disarm_poll();
        let mut waiter = self.waiter(timeout);
        loop {
            self.collect()?;
            if let Some(r) = self.tickets.any() {
                let info = self.claim(r)?;
                return Ok(Some(Reply { number: r, info, session: self }));
            }
            match self.await_reply(&mut waiter)? {
                Arrival::Ready => {}
                Arrival::TimedOut => return Ok(None),
                Arrival::HungUp => return Err(self.daemon_lost(None)),
            }
        }
    }

    /// Gives a ticket up: its reply is released now, or when it arrives. In `latest`, every older ticket is given up too.
    /// Never blocks; tickets of an earlier attach are ignored.
    pub fn abandon(&mut self, ticket: Ticket) {
        if !self.guard.in_child() && ticket.epoch == self.epoch {
            self.release_claimed();
            self.tickets.abandon(ticket.number);
            self.link.released(self.tickets.released());
        }
    }

    /// One call: writes every input, submits, waits, and copies the outputs that are asked for if the status is ok.
    /// Returns only its own reply, never an earlier one; without a free slot it waits within its own timeout, and so it does
    /// for the daemon when that was lost before (at most for [`AttachOptions::timeout`]).
    /// `inputs` and `outputs` are (index, elements) pairs; every input must be given once, `outputs` may be any choice.
    /// `u8` slices stand for raw bytes of any dtype.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), inferd_client::Error> {
    /// # use inferd_client::{AttachOptions, CallOptions, Session};
    /// let mut session = Session::attach(AttachOptions::new("go2"))?;
    /// let (observation, mut action) = ([0.0f32; 45], [0.0f32; 12]);
    /// let options = CallOptions { timeout: Some(std::time::Duration::from_millis(5)), ..CallOptions::default() };
    /// let info = session.infer(&[(0, &observation[..])], &mut [(0, &mut action[..])], options)?;
    /// assert!(info.is_ok());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Tensor`] before anything is published; [`Error::Again`] when no slot came free within the timeout;
    /// [`Error::Timeout`] when the reply did not come within it (the call is abandoned); else as
    /// [`Session::request`] and [`Session::wait`]. A reply whose status is not ok is no error: see [`ReplyInfo::status`].
    pub fn infer<I: Element, O: Element>(
        &mut self,
        inputs: &[(usize, &[I])],
        outputs: &mut [(usize, &mut [O])],
        options: CallOptions,
    ) -> Result<ReplyInfo, Error> {
        self.enter()?;
        self.check_call(inputs, outputs)?;
        // The clock is read once for a call that need not wait for a slot: a reading costs a fifth of a round trip.
        let mut waited_until = None;
        if self.lost && self.options.auto_reattach {
            let limit = *waited_until.insert(limit_ns(now_ns(), options.timeout));
            self.reattach_until(limit.min(limit_ns(now_ns(), Some(self.options.timeout))))?;
        }
        match self.prepare() {
            Err(Error::Again { .. }) => {
                self.prepare_within(*waited_until.get_or_insert_with(|| limit_ns(now_ns(), options.timeout)))?;
            }
            prepared => prepared?,
        }
        // The signature is the same after a reattach.
        for (i, from) in inputs {
            self.link.input_mut(*i).copy_from_slice(from.as_bytes());
        }
        let t_submit_ns = now_ns();
        let limit = waited_until.unwrap_or_else(|| limit_ns(t_submit_ns, options.timeout));
        let deadline = options.deadline.map_or(0, |after| limit_ns(t_submit_ns, Some(after)).max(1));
        let meta = RequestMeta {
            observation_id: options.observation_id,
            t_submit_ns,
            deadline_ns: deadline,
            executed: options.executed,
            reset: options.reset,
        };
        let ticket = self.publish(&meta)?;
        self.link.disarm_poll();
        let mut waiter = Waiter::until(t_submit_ns, limit, self.spin_us());
        let (r, info) = match self.settle_with(ticket, &mut waiter, options.timeout)? {
            Settled::Reply(r, info) => (r, info),
            Settled::Superseded(_) => return Err(self.broken("the newest request was superseded")),
        };
        if info.status == Status::Ok {
            for (i, to) in outputs.iter_mut() {
                self.link.copy_output(r, *i, 0, to.as_mut_bytes());
            }
        }
        self.release_claimed();
        Ok(info)
    }

    /// Attaches again after the daemon was lost, trying with backoff until the time is up. Returns at once when the session
    /// is not lost. Tickets from before end in [`Error::DaemonLost`]; recurrent state begins afresh.
    ///
    /// # Errors
    /// [`Error::DaemonLost`] with the last attempt's failure as its cause; [`Error::SignatureChanged`].
    pub fn reattach(&mut self, timeout: Duration) -> Result<(), Error> {
        self.enter()?;
        if !self.lost {
            self.lost = self.link.hung_up();
        }
        self.reattach_until(limit_ns(now_ns(), Some(timeout)))
    }

    /// A descriptor that becomes readable when a reply arrives while the poll is armed ([`Session::arm_poll`]), and hangs up when
    /// the daemon is gone: for event loops. It changes at a reattach ([`Session::epoch`] tells).
    #[must_use]
    pub fn poll_fd(&self) -> BorrowedFd<'_> {
        self.link.poll_fd()
    }

    /// Before polling [`Session::poll_fd`]: asks the worker to ring there. Returns `true` when a reply is there already,
    /// and nothing is armed: then do not poll. One arming rings for one reply; every wait disarms.
    ///
    /// # Errors
    /// [`Error::WrongProcess`], [`Error::Protocol`], [`Error::DaemonLost`] when the socket has ended and no reply is there.
    pub fn arm_poll(&mut self) -> Result<bool, Error> {
        self.enter()?;
        self.collect()?;
        if self.tickets.any().is_some() || !self.link.arm_poll() {
            self.collect()?;
            return Ok(true);
        }
        if self.lost || self.link.hung_up() {
            self.link.disarm_poll();
            self.lost = true;
            self.collect()?;
            return if self.tickets.any().is_some() { Ok(true) } else { Err(self.daemon_lost(None)) };
        }
        Ok(false)
    }

    /// After the poll: the worker need not ring any more. Waits do this by themselves.
    pub fn disarm_poll(&mut self) {
        if !self.guard.in_child() {
            self.link.disarm_poll();
        }
    }
}

const _: () = {
    const fn is_send<T: Send>() {}
    is_send::<Session>();
};

impl Drop for Session {
    fn drop(&mut self) {
        if self.guard.in_child() {
            // The child has none of the mappings: unmapping would hit whatever lies there now.
            self.link.forget_mappings();
            std::mem::forget(self.pending.take());
        }
    }
}
