//! The executor: the one real-time thread that serves a model's sessions.
//!
//! It serves only while the baton's grant names its ticket; otherwise it sleeps. A sweep costs one
//! look at each session's next slot; between steps it looks at the grant and at its mailbox, both in
//! its own cache. No lock, allocation, log line or system call of ours lies on the path of a request
//! that is answered within the spin time. Its release is its last write to any shared region.

use crate::mailbox::{Mailbox, Order, Report};
use crate::policy::Policy;
use crate::session::Session;
use crate::stats::Stats;
use crate::step::{self, Stepper};
use crate::turns::Turns;
use crate::{realtime, sleep::Sleeper};
use inferd_ipc::baton::Baton;
use inferd_ipc::failpoint;
use inferd_ipc::layout::{ServingState, Status};
use inferd_ipc::limits::RELEASE_LOOK_MS;
use inferd_ipc::responder::Answer;
use inferd_ipc::sync::spin_hint;
use inferd_ipc::sys::now_ns;
use inferd_ipc::worker_records::ModelSpec;
use std::sync::Arc;
use std::time::Duration;

/// Empty sweeps between two looks at the clock.
const SWEEPS_PER_CLOCK: u32 = 32;

/// Everything that the executor owns.
pub struct Executor {
    sessions: Vec<Session>,
    turns: Turns,
    stepper: Stepper,
    sleeper: Sleeper,
    mailbox: Arc<Mailbox>,
    baton: Baton,
    entry: u32,
    ticket: u64,
    generation: u32,
    spin_ns: u64,
    spec: ModelSpec,
    /// `Take` has come: the predecessor to wait for, if any.
    take: Option<Option<(u32, u64)>>,
    scheduled: bool,
    drained: bool,
}

/// Why serving ended.
enum Ended {
    /// The grant names another worker.
    LetGo,
    /// The daemon drains; everything was answered.
    Drained,
}

impl Executor {
    /// An executor without sessions.
    #[must_use]
    pub fn new(spec: ModelSpec, policy: Policy, baton: Baton, mailbox: Arc<Mailbox>, stats: Arc<Stats>) -> Executor {
        let stepper = Stepper::new(policy, stats, baton.clone(), spec.baton_entry, spec.generation);
        Executor {
            sessions: Vec::new(),
            turns: Turns::default(),
            stepper,
            sleeper: Sleeper::new(spec.waiting),
            baton,
            entry: spec.baton_entry,
            ticket: spec.ticket,
            generation: spec.generation,
            spin_ns: spec.spin_us.saturating_mul(1000),
            mailbox,
            spec,
            take: None,
            scheduled: false,
            drained: false,
        }
    }

    /// Serves whenever the baton is ours, until the process ends.
    pub fn run(mut self) -> ! {
        inferd_ipc::sys::flush_denormals_to_zero();
        loop {
            self.await_grant();
            self.take_over();
            match self.serve() {
                Ended::LetGo => {
                    failpoint!("worker.letting.go");
                    self.baton.release(self.entry, self.ticket);
                    failpoint!("worker.released");
                }
                Ended::Drained => {
                    self.baton.release(self.entry, self.ticket);
                    failpoint!("worker.drained");
                    self.mailbox.report(Report::Drained);
                    self.drained = true;
                }
            }
        }
    }

    /// Sleeps until the baton is granted to us and the predecessor has let go.
    fn await_grant(&mut self) {
        loop {
            let seen = self.sleeper.before(&self.mailbox, &self.baton);
            self.orders();
            let granted = self.baton.granted() == self.ticket && !self.drained;
            match self.take {
                Some(predecessor) if granted => {
                    self.apply_scheduling();
                    let gone = predecessor
                        .is_none_or(|(e, t)| self.baton.wait_released(e, t, Duration::from_millis(RELEASE_LOOK_MS)));
                    if gone {
                        failpoint!("worker.granted");
                        return;
                    }
                }
                _ => self.sleeper.sleep_idle(&self.mailbox, &self.baton, &seen),
            }
        }
    }

    /// Affinity and priority apply from take-over on; loading at the live model's priority would stall it.
    fn apply_scheduling(&mut self) {
        if !std::mem::replace(&mut self.scheduled, true) {
            for warning in realtime::apply(&self.spec) {
                self.mailbox.report(Report::Warning(warning));
            }
        }
    }

    /// Continues every session exactly where its published replies end.
    fn take_over(&mut self) {
        self.baton.take(self.entry, self.ticket);
        failpoint!("worker.taken");
        self.stepper.adopt_record();
        for i in 0..self.sessions.len() {
            self.adopt(i);
        }
        failpoint!("worker.adopted");
        self.mailbox.report(Report::Taken);
    }

    fn adopt(&mut self, i: usize) {
        let session = &mut self.sessions[i];
        if let Err(fault) = session.rings.rebuild() {
            return step::fault(session, &self.mailbox, &fault.to_string());
        }
        if let Some(state) = &session.state {
            state.adopt(session.rings.step());
        }
        session.rings.wake_up();
        if session.rings.state() != ServingState::Serving {
            let how = session.rings.set_state(ServingState::Serving);
            session.ring(how);
        }
    }

    fn serve(&mut self) -> Ended {
        let mut idle_since_ns = 0;
        let mut sweeps = 0;
        loop {
            if self.mailbox.pending() {
                self.orders();
                if self.drained {
                    return Ended::Drained;
                }
            }
            if self.baton.granted() != self.ticket {
                self.take = None;
                return Ended::LetGo;
            }
            let (sessions, stepper, mailbox) = (&mut self.sessions, &mut self.stepper, &self.mailbox);
            if self.turns.turn(|i| stepper.step(&mut sessions[i], mailbox)) {
                sweeps = 0;
                idle_since_ns = 0;
                continue;
            }
            spin_hint();
            sweeps += 1;
            let spin_ns = if self.stepper.in_the_clients_way() { 0 } else { self.spin_ns };
            if sweeps < SWEEPS_PER_CLOCK && spin_ns != 0 {
                continue;
            }
            sweeps = 0;
            let now = now_ns();
            if idle_since_ns == 0 {
                idle_since_ns = now;
            }
            if now - idle_since_ns >= spin_ns {
                let slept = self.sleeper.sleep(&mut self.sessions, &self.mailbox, &self.baton, self.ticket);
                if slept {
                    self.stepper.stats().slept();
                }
                idle_since_ns = 0;
            }
        }
    }

    /// Carries out what the control thread asked for.
    fn orders(&mut self) {
        if !self.mailbox.pending() {
            return;
        }
        let serving = self.baton.granted() == self.ticket && self.baton.taken(self.entry) == self.ticket;
        let mut changed = false;
        for order in self.mailbox.orders() {
            changed |= matches!(order, Order::Add(_) | Order::Remove(_));
            match order {
                Order::Add(session) => {
                    self.remove(session.number);
                    self.sleeper.add(&session, &self.mailbox);
                    self.sessions.push(*session);
                    if serving {
                        self.adopt(self.sessions.len() - 1);
                    }
                }
                Order::Remove(number) => self.remove(number),
                Order::Take(predecessor) => self.take = Some(predecessor),
                Order::Record(recorder) => self.stepper.record(recorder),
                Order::Look => {}
                Order::Drain => {
                    if serving {
                        failpoint!("worker.draining");
                        self.answer_everything();
                    } else {
                        self.mailbox.report(Report::Drained);
                    }
                    self.drained = true;
                }
            }
        }
        if changed {
            self.turns.rebuild(self.sessions.iter().map(|s| (s.uid, s.number)));
        }
    }

    fn remove(&mut self, number: u64) {
        if let Some(i) = self.sessions.iter().position(|s| s.number == number) {
            // In their order: whose turn it is hangs on it.
            let session = self.sessions.remove(i);
            failpoint!("worker.removed");
            self.sleeper.remove(&session);
            self.mailbox.report(Report::Gone(Box::new(session)));
        }
    }

    /// Tells every client that nothing more will be run.
    fn answer_everything(&mut self) {
        for session in self.sessions.iter_mut().filter(|s| !s.dead) {
            let how = session.rings.set_state(ServingState::Draining);
            session.ring(how);
            let now = now_ns();
            let answer = Answer {
                status: Status::ShuttingDown,
                flags: 0,
                t_start_ns: now,
                t_done_ns: now,
                generation: self.generation,
            };
            let doorbell = &session.doorbell;
            let mut ring = |how| {
                if how == inferd_ipc::requester::Ring::Socket {
                    inferd_ipc::fdpass::ring(doorbell);
                }
            };
            // A client that lies now is about to lose its session anyway.
            let _ = session.rings.answer_all(answer, &mut ring);
            failpoint!("worker.drain.answered");
        }
    }
}
