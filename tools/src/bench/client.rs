//! One client of a bench: the loop that submits, waits and counts.
//!
//! At a rate, requests go out at absolute times whatever is still in flight; between them the client
//! waits for replies, and never abandons one before its timeout. Flat out, the next request follows the
//! reply. Every request tried is counted under exactly one end. Losing the daemon ends what was in
//! flight; the client attaches again and goes on, and requests that were due meanwhile count as missed.

use super::tally::{End, Tally, Times};
use super::{Feed, Progress};
use inferd_client::{Error, Outcome, Queue, ReplyInfo, Session, Status, Ticket, now_ns};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Sleeping overshoots; the last stretch before a request is due is spun.
const SPIN_BEFORE_NS: u64 = 200_000;
/// Longest sleep without a look at the stop flag.
const SLEEP_NS_MAX: u64 = 50_000_000;
/// Longest attempt to attach again without a look at the stop flag.
const REATTACH_SLICE: Duration = Duration::from_secs(1);
/// Flat out, a model that does not serve is asked again after this.
const UNAVAILABLE_PAUSE: Duration = Duration::from_millis(1);
/// Polls of a ticket per reading of the clock.
const POLLS_PER_CLOCK: u32 = 32;

/// When, and how long.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    /// The first request, in CLOCK_MONOTONIC nanoseconds.
    pub start_ns: u64,
    /// No request after this.
    pub end_ns: u64,
    /// Between requests; none: flat out.
    pub interval_ns: Option<u64>,
    /// Longest wait for a reply.
    pub timeout: Duration,
    /// Deadline after submit.
    pub deadline: Option<Duration>,
}

/// What a client has to tell.
#[derive(Debug)]
pub(super) struct Done {
    pub tally: Tally,
    /// When it stopped submitting.
    pub ended_ns: u64,
    /// What ended it early.
    pub failure: Option<Error>,
}

#[derive(Debug, Clone, Copy)]
struct Pending {
    ticket: Ticket,
    intended_ns: u64,
    observation_id: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Submitted {
    Yes,
    /// All slots are in flight: nothing was tried.
    Full,
    /// The model does not serve.
    Refused,
}

pub(super) struct Client {
    session: Session,
    plan: Plan,
    feed: Arc<Feed>,
    stop: Arc<AtomicBool>,
    progress: Arc<Progress>,
    tally: Tally,
    pending: VecDeque<Pending>,
    reset_next: bool,
    next_id: u64,
}

impl Client {
    pub(super) fn new(
        session: Session,
        plan: Plan,
        feed: Arc<Feed>,
        stop: Arc<AtomicBool>,
        progress: Arc<Progress>,
    ) -> Client {
        let pending = VecDeque::with_capacity(1024);
        Client { session, plan, feed, stop, progress, tally: Tally::new(), pending, reset_next: false, next_id: 1 }
    }

    /// Measures until the time is up, somebody says stop, or something cannot be survived.
    pub(super) fn run(mut self) -> Done {
        sleep_until(self.plan.start_ns, &self.stop);
        let measured = match self.plan.interval_ns {
            Some(interval_ns) => self.at_a_rate(interval_ns),
            None => self.flat_out(),
        };
        let ended_ns = now_ns();
        let drained = measured.and_then(|()| self.drain());
        if drained.is_err() {
            self.pending.drain(..).for_each(|_| self.tally.ended(End::DaemonLost));
            self.stop.store(true, Ordering::Relaxed);
        }
        Done { tally: self.tally, ended_ns, failure: drained.err() }
    }

    fn flat_out(&mut self) -> Result<(), Error> {
        while self.goes_on() {
            let step = match self.submit(0) {
                Ok(Submitted::Yes) => self.wait_for_front(),
                Ok(Submitted::Full) => self.session.next_reply(Some(UNAVAILABLE_PAUSE)).map(drop),
                Ok(Submitted::Refused) => {
                    std::thread::sleep(UNAVAILABLE_PAUSE);
                    Ok(())
                }
                Err(e) => Err(e),
            };
            self.survive(step)?;
        }
        Ok(())
    }

    fn at_a_rate(&mut self, interval_ns: u64) -> Result<(), Error> {
        let mut tick = 0u64;
        loop {
            let intended_ns = self.plan.start_ns.saturating_add(tick.saturating_mul(interval_ns));
            if intended_ns >= self.plan.end_ns || !self.goes_on() {
                let due = now_ns().min(self.plan.end_ns).saturating_sub(self.plan.start_ns).div_ceil(interval_ns);
                let untried = due.saturating_sub(tick);
                let count = if self.session.is_lost() { &mut self.tally.missed } else { &mut self.tally.unsent };
                *count += untried;
                return Ok(());
            }
            let reattaches = self.tally.reattaches;
            let waited = self.await_until(intended_ns);
            self.survive(waited)?;
            let submitted =
                if self.tally.reattaches == reattaches { self.submit(intended_ns) } else { Ok(Submitted::Full) };
            match submitted {
                Ok(Submitted::Full) => {
                    let waited = self.await_any();
                    self.survive(waited)?;
                }
                Ok(_) => tick += 1,
                Err(e) => {
                    tick += 1;
                    self.survive(Err(e))?;
                }
            }
            if self.tally.reattaches != reattaches {
                let due = now_ns().saturating_sub(self.plan.start_ns).div_ceil(interval_ns);
                self.tally.missed += due.saturating_sub(tick);
                tick = tick.max(due);
            }
        }
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed) && now_ns() < self.plan.end_ns
    }

    /// Writes the inputs in place and publishes.
    fn submit(&mut self, intended_ns: u64) -> Result<Submitted, Error> {
        let (id, inputs) = (self.next_id, self.feed.inputs.len());
        let counted = |tally: &mut Tally, end| {
            tally.attempts += 1;
            tally.ended(end);
        };
        let mut request = match self.session.request() {
            Ok(request) => request,
            Err(Error::Again { .. }) => return Ok(Submitted::Full),
            Err(Error::Unavailable { .. }) => {
                counted(&mut self.tally, End::Unavailable);
                return Ok(Submitted::Refused);
            }
            Err(e) => {
                counted(&mut self.tally, End::DaemonLost);
                return Err(e);
            }
        };
        for i in 0..inputs {
            request.input_mut(i)?.copy_from_slice(self.feed.at(i, id));
        }
        let mut request = request.observation_id(id);
        if let Some(after) = self.plan.deadline {
            request = request.deadline_in(after);
        }
        if self.reset_next {
            request = request.reset();
        }
        match request.submit() {
            Ok(ticket) => {
                self.tally.attempts += 1;
                (self.next_id, self.reset_next) = (id + 1, false);
                self.pending.push_back(Pending { ticket, intended_ns, observation_id: id });
                Ok(Submitted::Yes)
            }
            Err(Error::Unavailable { .. }) => {
                counted(&mut self.tally, End::Unavailable);
                Ok(Submitted::Refused)
            }
            Err(e) => {
                counted(&mut self.tally, End::DaemonLost);
                Err(e)
            }
        }
    }

    /// Flat out: the only request in flight.
    fn wait_for_front(&mut self) -> Result<(), Error> {
        let Some(front) = self.pending.front() else { return Ok(()) };
        match self.session.wait(front.ticket, Some(self.plan.timeout)).map(seen) {
            Ok((seen_ns, info)) => self.settle_front(info, seen_ns),
            Err(Error::Timeout { .. }) => {
                self.pending.pop_front();
                self.tally.ended(End::Timeout);
                Ok(())
            }
            Err(e) => Err(e),
        }
    }

    /// Takes in replies until a request is due.
    fn await_until(&mut self, due_ns: u64) -> Result<(), Error> {
        loop {
            let now = now_ns();
            if now >= due_ns || self.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            if self.pending.is_empty() {
                sleep_until(due_ns, &self.stop);
            } else {
                self.await_reply(now, due_ns)?;
            }
        }
    }

    /// Takes in one reply, or waits a moment: all slots are in flight.
    fn await_any(&mut self) -> Result<(), Error> {
        let now = now_ns();
        if self.pending.is_empty() {
            return self.session.next_reply(Some(UNAVAILABLE_PAUSE)).map(drop);
        }
        self.await_reply(now, now.saturating_add(SLEEP_NS_MAX))
    }

    /// The end of everything that is in flight.
    fn drain(&mut self) -> Result<(), Error> {
        while !self.pending.is_empty() {
            match self.await_reply(now_ns(), u64::MAX) {
                Err(Error::DaemonLost { .. }) => self.daemon_lost()?,
                other => other?,
            }
        }
        Ok(())
    }

    /// Waits until the oldest request has its outcome, has had its time, or `until_ns` has come.
    fn await_reply(&mut self, now: u64, until_ns: u64) -> Result<(), Error> {
        let Some(front) = self.pending.front().copied() else { return Ok(()) };
        // Flat out, nobody intended a time: the wait begins now.
        let base = if front.intended_ns == 0 { now } else { front.intended_ns };
        let give_up_ns = base.saturating_add(self.plan.timeout.as_nanos() as u64);
        if now >= give_up_ns {
            let outcome = self.session.try_wait(front.ticket)?.map(seen);
            if let Some((seen_ns, info)) = outcome {
                return self.settle_front(info, seen_ns);
            }
            self.session.abandon(front.ticket);
            self.pending.pop_front();
            self.tally.ended(End::Timeout);
            return Ok(());
        }
        let until_ns = until_ns.min(give_up_ns).max(now);
        if self.pending.len() == 1 || self.session.queue() == Queue::InOrder {
            let left = Duration::from_nanos(until_ns - now);
            let reply = self.session.next_reply(Some(left))?.map(|reply| seen(Outcome::Reply(reply)));
            return match reply {
                Some((seen_ns, info)) if info.is_some_and(|i| i.ticket == front.ticket) => {
                    self.settle_front(info, seen_ns)
                }
                _ => Ok(()),
            };
        }
        self.await_oldest(front, now, until_ns)
    }

    /// `latest` with several in flight: their outcomes in the order of submission, so that none is passed over.
    fn await_oldest(&mut self, front: Pending, begun_ns: u64, until_ns: u64) -> Result<(), Error> {
        let spin_ns = u64::from(self.session.spin_us()) * 1_000;
        loop {
            for _ in 0..POLLS_PER_CLOCK {
                let outcome = self.session.try_wait(front.ticket)?.map(seen);
                if let Some((seen_ns, info)) = outcome {
                    return self.settle_front(info, seen_ns);
                }
                std::hint::spin_loop();
            }
            let now = now_ns();
            if now >= until_ns {
                return Ok(());
            }
            if now - begun_ns >= spin_ns && !self.session.arm_poll()? {
                let left = Duration::from_nanos((until_ns - now).min(SLEEP_NS_MAX));
                let mut fds = [PollFd::new(self.session.poll_fd(), PollFlags::POLLIN)];
                // Interrupted or not: what there is shows at the next look.
                let _ = ppoll(&mut fds, Some(TimeSpec::from_duration(left)), None);
                self.session.disarm_poll();
            }
        }
    }

    /// The oldest request has its outcome: a reply, or (none) it was superseded.
    fn settle_front(&mut self, info: Option<ReplyInfo>, seen_ns: u64) -> Result<(), Error> {
        let Some(request) = self.pending.pop_front() else { return Ok(()) };
        let Some(info) = info else {
            self.tally.ended(End::Superseded);
            return Ok(());
        };
        if info.observation_id != request.observation_id {
            self.tally.ended(End::Rejected);
            let (got, want) = (info.observation_id, request.observation_id);
            return Err(Error::Protocol { what: format!("a reply to observation {got} answers observation {want}") });
        }
        self.count(&info, request, seen_ns);
        Ok(())
    }

    fn count(&mut self, info: &ReplyInfo, request: Pending, seen_ns: u64) {
        let end = match info.status {
            Status::Ok => End::Ok,
            Status::Expired => End::Expired,
            Status::Rejected => End::Rejected,
            Status::ModelError => End::ModelError,
            Status::WorkerLost => End::WorkerLost,
            Status::NeedsReset => End::NeedsReset,
            Status::ShuttingDown => End::ShuttingDown,
            Status::Unavailable => End::Unavailable,
        };
        self.reset_next |= end == End::NeedsReset;
        if end != End::Ok {
            return self.tally.ended(end);
        }
        let submit_ns = if info.t_submit_ns == 0 { request.intended_ns } else { info.t_submit_ns };
        let intended_ns = if request.intended_ns == 0 { submit_ns } else { request.intended_ns };
        let times = Times { intended_ns, submit_ns, start_ns: info.t_start_ns, done_ns: info.t_done_ns, seen_ns };
        self.tally.ok(times, info.generation);
        self.tally.late += u64::from(info.late);
        self.tally.state_resets += u64::from(info.state_reset);
        self.progress.0.store(self.tally.count(End::Ok), Ordering::Relaxed);
    }

    /// Goes on after losing the daemon; anything else ends this client.
    fn survive(&mut self, step: Result<(), Error>) -> Result<(), Error> {
        match step {
            Err(Error::DaemonLost { .. }) => self.daemon_lost(),
            other => other,
        }
    }

    fn daemon_lost(&mut self) -> Result<(), Error> {
        while let Some(request) = self.pending.front().copied() {
            // A reply that came before the end still counts.
            match self.session.try_wait(request.ticket).map(|outcome| outcome.map(seen)) {
                Ok(Some((seen_ns, info))) => self.settle_front(info, seen_ns)?,
                _ => {
                    self.pending.pop_front();
                    self.tally.ended(End::DaemonLost);
                }
            }
        }
        while self.goes_on() {
            match self.session.reattach(REATTACH_SLICE) {
                Ok(()) => {
                    self.tally.reattaches += 1;
                    return Ok(());
                }
                Err(e) if e.is_transient() => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// When the outcome was known, and what it says (nothing: superseded). The reply's slot is given back.
fn seen(outcome: Outcome<'_>) -> (u64, Option<ReplyInfo>) {
    let seen_ns = now_ns();
    match outcome {
        Outcome::Reply(reply) => (seen_ns, Some(*reply.header())),
        Outcome::Superseded { .. } => (seen_ns, None),
    }
}

/// Sleeps for most of the time and spins for the rest.
fn sleep_until(at_ns: u64, stop: &AtomicBool) {
    loop {
        let left_ns = at_ns.saturating_sub(now_ns());
        if left_ns == 0 || stop.load(Ordering::Relaxed) {
            return;
        }
        if left_ns > SPIN_BEFORE_NS {
            std::thread::sleep(Duration::from_nanos((left_ns - SPIN_BEFORE_NS).min(SLEEP_NS_MAX)));
        } else {
            std::hint::spin_loop();
        }
    }
}
