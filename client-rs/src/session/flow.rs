//! The way of a call through its session: from entering to the outcome of a ticket.
//!
//! Replies are taken in wherever a call passes by (`collect`), so that abandoned ones free their slots.
//! A hang-up is remembered in `lost`; the replies that came before it are still handed out. Only a
//! request replaces a lost link. Errors that a control loop meets are made without allocating.

use super::{Session, Settled};
use crate::attach::{Handshake, Step};
use crate::clock::{limit_ns, now_ns};
use crate::element::{Element, check_sized};
use crate::error::Error;
use crate::link::Link;
use crate::reply::{Outcome, Reply, ReplyInfo, Ticket};
use crate::tickets::{Fate, Tickets};
use crate::wait::{Arrival, SPIN_CHECK_NS, Waiter};
use inferd_ipc::layout::{Queue, ServingState};
use inferd_ipc::requester::RequestMeta;
use inferd_ipc::signature::{Signature, TensorSpec};
use std::time::Duration;

/// What requests and replies do through their session.
impl Session {
    pub(crate) fn input_mut(&mut self, i: usize) -> &mut [u8] {
        self.link.input_mut(i)
    }

    /// Bytes of input `i`, which exists.
    #[inline]
    pub(crate) fn input_bytes(&self, i: usize) -> u64 {
        self.link.input_bytes(i)
    }

    pub(crate) fn publish(&mut self, meta: &RequestMeta) -> Result<Ticket, Error> {
        self.check_state()?;
        let meta = &RequestMeta { reset: meta.reset || self.begins_anew, ..*meta };
        self.begins_anew = false;
        let published = self.link.publish(meta);
        let number = self.tickets.submitted(meta.t_submit_ns);
        debug_assert_eq!(published, number, "rings and tickets count alike");
        self.fruitless_since_ns = None;
        Ok(Ticket { epoch: self.epoch, number })
    }

    /// A request that was begun and dropped. Where beginning it withdrew the only slot of a `latest` session, an older request
    /// would be left without an outcome: an expired one takes its place, and its reply is released when it comes.
    pub(crate) fn cancel(&mut self) {
        let alone = self.queue() == Queue::Latest && self.slots() == 1;
        if !self.guard.in_child() && alone && self.tickets.any_pending() {
            self.link.publish(&RequestMeta { t_submit_ns: now_ns(), deadline_ns: 1, ..RequestMeta::default() });
            self.tickets.cancelled();
        }
    }

    pub(crate) fn check_process(&self) -> Result<(), Error> {
        self.guard.check()
    }

    pub(crate) fn copy_output_at(&self, r: u64, i: usize, at: usize, to: &mut [u8]) {
        self.link.copy_output(r, i, at, to);
    }

    pub(crate) fn output_ptr(&self, r: u64, i: usize) -> *const u8 {
        self.link.output_ptr(r, i)
    }

    /// Gives the reply back that is in the caller's hands, also when its guard was leaked.
    pub(crate) fn release_claimed(&mut self) {
        if self.claimed.is_none() || self.guard.in_child() {
            return;
        }
        if let Some(r) = self.claimed.take() {
            self.tickets.release(r);
            self.link.released(self.tickets.released());
        }
    }
}

/// The way of a call.
impl Session {
    pub(super) fn enter(&mut self) -> Result<(), Error> {
        self.guard.check()?;
        self.release_claimed();
        Ok(())
    }

    /// Everything that must hold before a slot is written: attached, serving, a slot free.
    pub(super) fn prepare(&mut self) -> Result<(), Error> {
        if self.lost {
            return Err(self.daemon_lost(None));
        }
        self.collect()?;
        self.check_state()?;
        if !self.tickets.may_submit() {
            if self.look_at_socket()? {
                return Err(self.daemon_lost(None));
            }
            return Err(Error::Again { model: self.model.clone(), slots: self.slots() });
        }
        if self.link.begin() { Ok(()) } else { Err(self.broken("request slots and tickets count differently")) }
    }

    /// The same, waiting for a slot until the limit.
    pub(super) fn prepare_within(&mut self, limit_ns: u64) -> Result<(), Error> {
        let mut waiter = Waiter::until(now_ns(), limit_ns, self.spin_us());
        loop {
            match self.prepare() {
                Err(again @ Error::Again { .. }) => {
                    // Only a reply that is still to come can free a slot.
                    if !self.tickets.any_pending() {
                        return Err(again);
                    }
                    match self.await_reply(&mut waiter)? {
                        Arrival::Ready => {}
                        Arrival::TimedOut => return Err(again),
                        Arrival::HungUp => return Err(self.daemon_lost(None)),
                    }
                }
                other => return other,
            }
        }
    }

    pub(super) fn check_call<I: Element, O: Element>(
        &self,
        inputs: &[(usize, &[I])],
        outputs: &[(usize, &mut [O])],
    ) -> Result<(), Error> {
        let signature = self.signature();
        let missing =
            Error::Tensor { index: 0, what: "give every input once: the slot holds an earlier request's bytes" };
        let mut given = 0u64;
        for (i, from) in inputs {
            let tensor = signature.inputs.get(*i);
            let tensor = tensor.ok_or(Error::Tensor { index: *i, what: "the model has no such input" })?;
            check_sized::<I>(tensor, self.link.input_bytes(*i), *i, from.len())?;
            given |= 1 << i;
        }
        if inputs.len() != signature.inputs.len() || given.count_ones() as usize != inputs.len() {
            return Err(missing);
        }
        for (i, to) in outputs {
            let tensor = signature.outputs.get(*i);
            let tensor = tensor.ok_or(Error::Tensor { index: *i, what: "the model has no such output" })?;
            check_sized::<O>(tensor, self.link.output_bytes(*i), *i, to.len())?;
        }
        Ok(())
    }

    pub(super) fn check_state(&mut self) -> Result<(), Error> {
        match self.link.state() {
            // While draining, the daemon answers `shutting_down`.
            ServingState::Serving | ServingState::Draining => Ok(()),
            state @ (ServingState::Recovering | ServingState::Quarantined) => {
                if self.look_at_socket()? {
                    return Err(self.daemon_lost(None));
                }
                Err(Error::Unavailable { model: self.model.clone(), state })
            }
            ServingState::Closed => {
                self.lost = true;
                Err(self.daemon_lost(None))
            }
        }
    }

    /// Takes in every reply that is there.
    #[inline]
    pub(super) fn collect(&mut self) -> Result<(), Error> {
        if self.link.reply_ready() || self.link.damaged() { self.take_in() } else { Ok(()) }
    }

    fn take_in(&mut self) -> Result<(), Error> {
        let before = self.tickets.released();
        // Where there is no room for one, whoever answers lies.
        while let Some(header) = self.link.poll() {
            if let Err(fault) = self.tickets.arrived(&header) {
                return Err(self.broken(fault.0));
            }
            self.generation = header.generation;
            self.fruitless_since_ns = None;
        }
        if self.link.damaged() {
            return Err(self.broken("a page of the session's named segment vanished"));
        }
        if self.tickets.released() != before {
            self.link.released(self.tickets.released());
        }
        Ok(())
    }

    /// What is known of a ticket, after taking in what is there.
    pub(super) fn settle(&mut self, ticket: Ticket) -> Result<Option<Settled>, Error> {
        if ticket.epoch != self.epoch {
            return Err(self.daemon_lost(None));
        }
        loop {
            self.collect()?;
            match self.tickets.look(ticket.number) {
                Fate::Reply(r) => return Ok(Some(Settled::Reply(r, self.claim(r)?))),
                Fate::Superseded(by) => {
                    self.tickets.pass_over(ticket.number);
                    self.link.released(self.tickets.released());
                    return Ok(Some(Settled::Superseded(by)));
                }
                Fate::Spent => return Err(Error::TicketSpent { ticket }),
                Fate::Pending if self.tickets.make_room_for(ticket.number) => {
                    self.link.released(self.tickets.released());
                }
                Fate::Pending => return Ok(None),
            }
        }
    }

    pub(super) fn settle_within(&mut self, ticket: Ticket, timeout: Option<Duration>) -> Result<Settled, Error> {
        if let Some(settled) = self.settle(ticket)? {
            return Ok(settled);
        }
        let mut waiter = self.waiter(timeout);
        self.settle_with(ticket, &mut waiter, timeout)
    }

    pub(super) fn settle_with(
        &mut self,
        ticket: Ticket,
        waiter: &mut Waiter,
        timeout: Option<Duration>,
    ) -> Result<Settled, Error> {
        loop {
            if let Some(settled) = self.settle(ticket)? {
                return Ok(settled);
            }
            match self.await_reply(waiter)? {
                Arrival::Ready => {}
                Arrival::TimedOut => {
                    self.tickets.abandon(ticket.number);
                    self.link.released(self.tickets.released());
                    return Err(Error::Timeout { model: self.model.clone(), after: timeout.unwrap_or(Duration::MAX) });
                }
                Arrival::HungUp => return Err(self.daemon_lost(None)),
            }
        }
    }

    pub(super) fn waiter(&self, timeout: Option<Duration>) -> Waiter {
        let now = now_ns();
        Waiter::until(now, limit_ns(now, timeout), self.spin_us())
    }

    /// Waits for the next reply; remembers a hang-up.
    pub(super) fn await_reply(&mut self, waiter: &mut Waiter) -> Result<Arrival, Error> {
        if self.lost {
            return Ok(Arrival::HungUp);
        }
        let arrival = waiter.next(&mut self.link);
        self.lost = arrival == Arrival::HungUp;
        Ok(arrival)
    }

    /// For calls that do not wait: looks at the socket once per millisecond without an outcome. Says whether the daemon is lost.
    pub(super) fn look_at_socket(&mut self) -> Result<bool, Error> {
        let now = now_ns();
        let since = *self.fruitless_since_ns.get_or_insert(now);
        if !self.lost && now.saturating_sub(since) >= SPIN_CHECK_NS {
            self.fruitless_since_ns = Some(now);
            self.lost = self.link.hung_up();
        }
        Ok(self.lost)
    }

    pub(super) fn claim(&mut self, r: u64) -> Result<ReplyInfo, Error> {
        let header = self.tickets.claim(r);
        self.claimed = Some(r);
        self.link.released(self.tickets.released());
        ReplyInfo::from_header(&header, self.epoch, self.tickets.t_submit_ns(header.request))
    }

    pub(super) fn hand_out(&mut self, settled: Settled) -> Outcome<'_> {
        match settled {
            Settled::Reply(number, info) => Outcome::Reply(Reply { session: self, number, info }),
            Settled::Superseded(number) => Outcome::Superseded { by: Ticket { epoch: self.epoch, number } },
        }
    }

    /// If the daemon is lost: goes one step, which never waits, towards a new session.
    pub(super) fn reattach_step(&mut self) -> Result<(), Error> {
        if !self.lost {
            return Ok(());
        }
        if !self.options.auto_reattach {
            return Err(self.daemon_lost(None));
        }
        self.advance(0)?;
        if self.lost { Err(self.daemon_lost(None)) } else { Ok(()) }
    }

    /// If the daemon is lost: tries, with backoff, until a new session stands or the limit has passed.
    pub(super) fn reattach_until(&mut self, limit_ns: u64) -> Result<(), Error> {
        let mut newest = None;
        while self.lost {
            match self.advance(limit_ns) {
                Err(e) if !e.is_transient() => return Err(e),
                Err(e) => newest = Some(e),
                Ok(()) => {}
            }
            if self.lost && now_ns() >= limit_ns {
                return Err(newest.unwrap_or_else(|| self.daemon_lost(None)));
            }
            let now = now_ns();
            match &self.pending {
                Some(handshake) => handshake.wait(limit_ns)?,
                None if self.lost && !self.backoff.is_due(now) => {
                    let until = self.backoff.not_before_ns().min(limit_ns);
                    std::thread::sleep(Duration::from_nanos(until.saturating_sub(now)));
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Begins an attach if one is due, or goes on with the one under way; on success, everything before belongs to an
    /// earlier epoch. A failure ends the attempt, and the next one must wait.
    fn advance(&mut self, patient_until_ns: u64) -> Result<(), Error> {
        let timeout = self.options.timeout;
        let handshake = match self.pending.take() {
            Some(handshake) => *handshake,
            None if !self.backoff.is_due(now_ns()) => return Ok(()),
            None => match Handshake::begin(&self.options, &self.model, &self.dir, timeout, patient_until_ns) {
                Ok(handshake) => handshake,
                Err(cause) => return Err(self.attempt_failed(cause)),
            },
        };
        match handshake.step() {
            Ok(Step::Waits(handshake)) => {
                self.pending = Some(handshake);
                Ok(())
            }
            Ok(Step::Attached(link)) => self.adopt(*link),
            Ok(Step::Stale(_)) => Ok(()),
            Err(cause) => Err(self.attempt_failed(cause)),
        }
    }

    fn attempt_failed(&mut self, cause: Error) -> Error {
        self.backoff.failed(now_ns());
        self.daemon_lost(Some(Box::new(cause)))
    }

    fn adopt(&mut self, link: Link) -> Result<(), Error> {
        if !link.signature.same_layout(&self.link.signature) {
            self.backoff.failed(now_ns());
            return Err(Error::SignatureChanged {
                model: self.model.clone(),
                was: describe(&self.link.signature),
                now: describe(&link.signature),
            });
        }
        self.backoff.succeeded();
        self.tickets = Tickets::new(link.queue(), link.slots());
        self.generation = link.generation;
        self.link = link;
        self.epoch += 1;
        self.begins_anew = self.link.signature.stateful;
        self.lost = false;
        self.fruitless_since_ns = None;
        Ok(())
    }

    pub(super) fn daemon_lost(&self, cause: Option<Box<Error>>) -> Error {
        Error::DaemonLost { model: self.model.clone(), cause }
    }

    /// The peer lied: nothing more is read from it.
    pub(super) fn broken(&mut self, what: &'static str) -> Error {
        self.lost = true;
        Error::protocol(what)
    }
}

fn describe(signature: &Signature) -> String {
    let list = |tensors: &[TensorSpec]| tensors.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    format!("{} -> {}", list(&signature.inputs), list(&signature.outputs))
}
