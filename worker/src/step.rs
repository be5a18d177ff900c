//! One step: take a request, decide, run, publish.
//!
//! The order is the promise of `docs/semantics.md`: header invalid -> `rejected`; deadline passed ->
//! `expired`; state lost -> `needs_reset`; inputs copied once into the backend's own buffers and
//! confirmed; inputs invalid -> `rejected`; run and guard -> `model_error` or the outputs. State is
//! written before the reply is published, and publishing is the only commit. Where the model's steps are
//! recorded, inputs and state are recorded before the run, and the rest after the reply has gone out.

use crate::mailbox::{Mailbox, Report};
use crate::policy::Policy;
use crate::session::Session;
use crate::stats::Stats;
use inferd_ipc::baton::{Baton, Running};
use inferd_ipc::failpoint;
use inferd_ipc::layout::{REPLY_LATE, REPLY_STATE_LOST, REPLY_STATE_RESET, Status};
use inferd_ipc::limits::{FAULT_LOGS_PER_S, LATEST_RETRIES_MAX};
use inferd_ipc::record::{Begun, Recorder};
use inferd_ipc::responder::{Answer, Request};
use inferd_ipc::signature::slot_offsets;
use inferd_ipc::state::Source;
use inferd_ipc::sys::now_ns;
use std::sync::Arc;

/// Runs steps of one model for any session.
pub struct Stepper {
    policy: Policy,
    stats: Arc<Stats>,
    baton: Baton,
    entry: u32,
    generation: u32,
    /// Offset of each input, and of each output, in its slot.
    input_offsets: Vec<u64>,
    output_offsets: Vec<u64>,
    steps: u64,
    logs: LogBudget,
    recorder: Option<Box<Recorder>>,
    in_the_clients_way: bool,
}

/// What one attempt at a step came to.
enum Outcome {
    /// Published.
    Done,
    /// Nothing to take, or the session is gone.
    Nothing,
    /// The request was overwritten while it was copied: take the newer one.
    Overwritten,
}

/// Messages that may still be sent in this second; the rest is only counted.
struct LogBudget {
    second: u64,
    left: u32,
}

impl LogBudget {
    fn take(&mut self, now_ns: u64) -> bool {
        let second = now_ns / 1_000_000_000;
        if second != self.second {
            (self.second, self.left) = (second, FAULT_LOGS_PER_S);
        }
        let any = self.left > 0;
        self.left -= u32::from(any);
        any
    }
}

/// Marks a session as faulted: it is not served any more, and the supervisor ends it.
#[cold]
pub fn fault(session: &mut Session, mailbox: &Mailbox, fault: &str) {
    session.dead = true;
    mailbox.report(Report::Fault { session: session.number, fault: fault.to_owned() });
}

/// Whether a page of this session's named segment vanished; then the session ends. Asked of an idle ring too: on the
/// page of zeroes that took its place nothing ever appears.
#[inline]
fn truncated(session: &mut Session, mailbox: &Mailbox) -> bool {
    let damaged = session.guarded && session.rings.damaged();
    if damaged {
        fault(session, mailbox, "the client truncated its named segment");
    }
    damaged
}

impl Stepper {
    /// A stepper for a loaded policy.
    #[must_use]
    pub fn new(policy: Policy, stats: Arc<Stats>, baton: Baton, entry: u32, generation: u32) -> Stepper {
        let input_offsets = slot_offsets(&policy.signature().inputs).0;
        let output_offsets = slot_offsets(&policy.signature().outputs).0;
        let logs = LogBudget { second: 0, left: 0 };
        let recorder = None;
        Stepper {
            policy,
            stats,
            baton,
            entry,
            generation,
            input_offsets,
            output_offsets,
            steps: 0,
            logs,
            recorder,
            in_the_clients_way: false,
        }
    }

    /// Keeps every step from now on in this region, which is made for the policy's record layout.
    pub fn record(&mut self, recorder: Box<Recorder>) {
        self.recorder = Some(recorder);
    }

    /// Takes over from another worker, whose steps stand in the record.
    pub fn adopt_record(&mut self) {
        if let Some(recorder) = &mut self.recorder {
            recorder.adopt();
        }
    }

    /// Whether the last reply went to a client that waits for the CPU that we run on: spinning would keep it from
    /// reading its reply.
    #[must_use]
    #[inline]
    pub fn in_the_clients_way(&self) -> bool {
        self.in_the_clients_way
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// One step for a session, if it has a request. True when a reply was published.
    #[inline]
    pub fn step(&mut self, session: &mut Session, mailbox: &Mailbox) -> bool {
        if session.dead {
            return false;
        }
        for _ in 0..LATEST_RETRIES_MAX {
            match self.attempt(session, mailbox) {
                Outcome::Done => return true,
                Outcome::Nothing => return false,
                Outcome::Overwritten => {}
            }
        }
        false
    }

    #[inline]
    fn attempt(&mut self, session: &mut Session, mailbox: &Mailbox) -> Outcome {
        let request = match session.rings.take() {
            Ok(None) => {
                truncated(session, mailbox);
                return Outcome::Nothing;
            }
            Ok(Some(request)) => request,
            Err(lie) => {
                fault(session, mailbox, &lie.to_string());
                return Outcome::Nothing;
            }
        };
        failpoint!("worker.took");
        let t_start_ns = now_ns();
        if let Some(invalid) = request.invalid {
            self.log(session, &request, &invalid.to_string(), t_start_ns, mailbox);
            return self.refuse(session, &request, Status::Rejected, 0, t_start_ns);
        }
        if request.deadline_ns != 0 && t_start_ns > request.deadline_ns {
            return self.refuse(session, &request, Status::Expired, 0, t_start_ns);
        }
        let source = match &session.state {
            None => Source::Zero { flagged: request.reset },
            Some(_) if request.reset => Source::Zero { flagged: true },
            Some(state) => state.source(session.rings.step()),
        };
        if source == Source::Lost {
            return self.refuse(session, &request, Status::NeedsReset, REPLY_STATE_LOST, t_start_ns);
        }
        for (i, offset) in self.input_offsets.iter().enumerate() {
            session.rings.read(&request, *offset, self.policy.input_mut(i));
        }
        if !session.rings.confirm(&request) {
            return Outcome::Overwritten;
        }
        if truncated(session, mailbox) {
            return Outcome::Nothing;
        }
        self.run(session, &request, source, t_start_ns, mailbox)
    }

    #[inline]
    fn run(
        &mut self,
        session: &mut Session,
        request: &Request,
        source: Source,
        t_start_ns: u64,
        mailbox: &Mailbox,
    ) -> Outcome {
        let running = Running { session: session.number, request: request.number, since_ns: t_start_ns };
        self.baton.run_begins(self.entry, running);
        failpoint!("worker.running");
        self.load_state(session, source);
        self.record_begun(&running, request.observation_id);
        failpoint!("worker.recorded");
        if let Err(rejected) = self.policy.check_inputs() {
            self.log(session, request, &rejected.to_string(), t_start_ns, mailbox);
            let outcome = self.refuse(session, request, Status::Rejected, 0, t_start_ns);
            return self.end(outcome, Status::Rejected, 0, 0);
        }
        if let Err(error) = self.policy.run() {
            self.log(session, request, &error.to_string(), t_start_ns, mailbox);
            let outcome = self.refuse(session, request, Status::ModelError, 0, t_start_ns);
            return self.end(outcome, Status::ModelError, 0, now_ns() - t_start_ns);
        }
        failpoint!("worker.ran");
        for (i, offset) in self.output_offsets.iter().enumerate() {
            session.rings.write(*offset, self.policy.output(i));
        }
        failpoint!("worker.written");
        self.store_state(session);
        failpoint!("worker.state.stored");
        let t_done_ns = now_ns();
        let late = request.deadline_ns != 0 && t_done_ns > request.deadline_ns;
        let reset = matches!(source, Source::Zero { flagged: true });
        let flags = if late { REPLY_LATE } else { 0 } | if reset { REPLY_STATE_RESET } else { 0 };
        let answer = Answer { status: Status::Ok, flags, t_start_ns, t_done_ns, generation: self.generation };
        let how = session.rings.publish(request, &answer);
        self.in_the_clients_way = session.rings.in_its_way();
        session.ring(how);
        failpoint!("worker.rang");
        self.stats.reply(Status::Ok, flags, request.skipped);
        self.stats.run(request.t_submit_ns, t_start_ns, t_done_ns);
        if let Some(times) = self.policy.device_times() {
            self.stats.device(times);
        }
        self.end(Outcome::Done, Status::Ok, flags, t_done_ns - t_start_ns)
    }

    /// The run has ended and its reply stands.
    #[inline]
    fn end(&mut self, outcome: Outcome, status: Status, flags: u32, run_ns: u64) -> Outcome {
        self.record_ended(status, flags, run_ns);
        self.steps += 1;
        self.baton.run_ends(self.entry, self.steps);
        failpoint!("worker.ended");
        outcome
    }

    /// Records what the step begins with, before anything is changed in place and before the run: a step that kills
    /// this worker leaves its observation behind.
    #[inline]
    fn record_begun(&mut self, running: &Running, observation_id: u64) {
        let Some(recorder) = &mut self.recorder else { return };
        recorder.begin(&Begun {
            session: running.session,
            request: running.request,
            observation_id,
            t_start_ns: running.since_ns,
            generation: self.generation,
        });
        for i in 0..self.input_offsets.len() {
            recorder.input(i, self.policy.input_mut(i));
        }
        for k in 0..self.policy.state_offsets().len() {
            recorder.state(k, self.policy.state_in_mut(k));
        }
        recorder.begun();
    }

    /// Records how it ended. The client has its reply already and waits for nothing of this.
    #[inline]
    fn record_ended(&mut self, status: Status, flags: u32, run_ns: u64) {
        let Some(recorder) = &mut self.recorder else { return };
        if status == Status::Ok {
            for i in 0..self.output_offsets.len() {
                recorder.output(i, self.policy.output(i));
            }
        }
        recorder.end(status, flags, run_ns);
    }

    #[inline]
    fn load_state(&mut self, session: &Session, source: Source) {
        let Some(state) = &session.state else { return };
        for k in 0..self.policy.state_offsets().len() {
            let offset = self.policy.state_offsets()[k] as usize;
            match source {
                Source::At(half) => state.read(half + offset, self.policy.state_in_mut(k)),
                _ => self.policy.reset_state(k),
            }
        }
    }

    #[inline]
    fn store_state(&mut self, session: &Session) {
        let Some(state) = &session.state else { return };
        let half = state.half(session.rings.step() + 1);
        for (k, offset) in self.policy.state_offsets().iter().enumerate() {
            state.write(half + *offset as usize, self.policy.state_out(k));
            failpoint!("worker.state.part");
        }
    }

    /// Publishes a reply without output.
    #[inline]
    fn refuse(
        &mut self,
        session: &mut Session,
        request: &Request,
        status: Status,
        flags: u32,
        t_start_ns: u64,
    ) -> Outcome {
        let t_done_ns = if status == Status::ModelError { now_ns() } else { t_start_ns };
        let answer = Answer { status, flags, t_start_ns, t_done_ns, generation: self.generation };
        let how = session.rings.publish(request, &answer);
        self.in_the_clients_way = session.rings.in_its_way();
        session.ring(how);
        self.stats.reply(status, flags, request.skipped);
        Outcome::Done
    }

    /// Tells the control thread why a step failed, at a limited rate.
    #[cold]
    fn log(&mut self, session: &Session, request: &Request, message: &str, now_ns: u64, mailbox: &Mailbox) {
        if self.logs.take(now_ns) {
            let (session, request, message) = (session.number, request.number, message.to_owned());
            mailbox.report(Report::Model { session, request, message });
        }
    }
}
