//! While no worker serves a model: its sessions are told, and what they published is answered.
//!
//! The supervisor writes into reply regions only here, and only after the worker's exit is certain. The
//! request that was running is answered `worker_lost`, every other one `unavailable`, again and again
//! until the next worker is granted the baton. The dead generation is started again from the same
//! sealed files, later and later, until it is quarantined.

use super::models::{Model, ModelState};
use super::restarts::Verdict;
use super::workers::Purpose;
use super::{Phase, Supervisor, Timer, clock_ns};
use inferd_ipc::baton::Running;
use inferd_ipc::failpoint;
use inferd_ipc::fdpass;
use inferd_ipc::layout::{REPLY_STATE_LOST, ServingState, Status};
use inferd_ipc::limits::{QUARANTINE_SWEEP_MS, RECOVERY_SWEEP_MS};
use inferd_ipc::region::{Access, map};
use inferd_ipc::requester::Ring;
use inferd_ipc::responder::{Answer, Responder};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

/// A model's sessions while the supervisor answers them.
#[derive(Default)]
pub(super) struct Recovery {
    /// The worker that is being started in the dead one's place.
    pub worker: Option<u64>,
    responders: BTreeMap<u64, Stand>,
    sweeping: bool,
}

impl Recovery {
    /// A session has ended.
    pub fn forget(&mut self, session: u64) {
        self.responders.remove(&session);
    }
}

/// The worker's end of a session's rings, held in its stead.
struct Stand {
    responder: Responder,
    doorbell: Rc<OwnedFd>,
}

impl Stand {
    fn ring(&self, ring: Ring) {
        ring_client(&self.doorbell, ring);
    }

    fn answer(&self, status: Status, running_since_ns: u64, generation: u32) -> Answer {
        let now = clock_ns();
        let t_start_ns = if running_since_ns == 0 { now } else { running_since_ns.min(now) };
        let flags = self.responder.last_flags() & REPLY_STATE_LOST;
        Answer { status, flags, t_start_ns, t_done_ns: now, generation }
    }

    fn answer_running(&mut self, running: Running, generation: u32) -> Result<(), String> {
        failpoint!("daemon.lost");
        let answer = self.answer(Status::WorkerLost, running.since_ns, generation);
        let ring = self.responder.answer_lost(running.request, &answer).map_err(|fault| fault.to_string())?;
        if let Some(ring) = ring {
            self.ring(ring);
        }
        Ok(())
    }

    fn answer_all(&mut self, status: Status, generation: u32) -> Result<u64, String> {
        let answer = self.answer(status, 0, generation);
        let doorbell = Rc::clone(&self.doorbell);
        let answered = self.responder.answer_all(answer, &mut |ring| ring_client(&doorbell, ring));
        if self.responder.damaged() {
            return Err("the client truncated its named segment".to_owned());
        }
        answered.map_err(|fault| fault.to_string())
    }
}

fn ring_client(doorbell: &OwnedFd, ring: Ring) {
    if ring == Ring::Socket {
        fdpass::ring(doorbell);
    }
}

/// When the newest reply of this generation was done, if there is one.
pub(super) fn last_done_ns(parts: &super::sessions::Parts, generation: u32) -> Option<u64> {
    let reply = map(parts.reply.as_fd(), parts.geometry.reply_bytes, Access::ReadOnly, parts.backing).ok()?;
    inferd_ipc::responder::last_done_ns(&reply, &parts.geometry, generation)
}

impl Supervisor {
    fn stand_in(&self, number: u64) -> Result<Stand, String> {
        let session = self.sessions.get(number).ok_or("the session has ended")?;
        let parts = &session.parts;
        let geometry = parts.geometry;
        let request = map(parts.request.as_fd(), geometry.request_bytes, Access::ReadOnly, parts.backing);
        let reply = map(parts.reply.as_fd(), geometry.reply_bytes, Access::ReadWrite, parts.backing);
        let request = request.map_err(|error| error.to_string())?;
        let reply = reply.map_err(|error| error.to_string())?;
        let responder = Responder::open(request, reply, geometry).map_err(|fault| fault.to_string())?;
        Ok(Stand { responder, doorbell: Rc::clone(&parts.doorbell) })
    }

    /// The live worker is gone for certain.
    pub(super) fn on_live_gone(&mut self, id: u64, running: Option<Running>, how: &str) {
        let Some(model) = self.models.get_mut(&id) else { return };
        let asked_to_go = self.phase == Phase::Draining && running.is_none();
        if asked_to_go {
            tracing::debug!(model = %model.name, how, "the live worker has drained and gone");
            model.state = ModelState::Recovering;
            self.begin_recovery(id, None);
            return self.look_whether_drained();
        }
        model.deaths += 1;
        model.message = Some(how.to_owned());
        model.state = ModelState::Recovering;
        tracing::error!(
            model = %model.name, generation = model.generation(), how,
            session = running.map(|r| r.session), request = running.map(|r| r.request), "the live worker died"
        );
        self.begin_recovery(id, running);
        if self.phase == Phase::Draining {
            return self.look_whether_drained();
        }
        self.schedule_restart(id, how);
    }

    /// Takes the worker's place for every session of a model.
    pub(super) fn begin_recovery(&mut self, id: u64, running: Option<Running>) {
        let sessions: Vec<u64> = self.sessions.ready_of(id).map(|(number, _)| number).collect();
        for number in sessions {
            let stand = self.stand_in(number).and_then(|mut stand| {
                if let Some(running) = running.filter(|running| running.session == number) {
                    stand.answer_running(running, self.models.get(&id).map_or(0, Model::generation))?;
                }
                Ok(stand)
            });
            match stand {
                Err(fault) => self.session_fault(number, &fault),
                Ok(stand) => {
                    if let Some(model) = self.models.get_mut(&id) {
                        model.recovery.responders.insert(number, stand);
                    }
                }
            }
        }
        self.show_state(id);
        failpoint!("daemon.recovering");
        self.sweep(id);
    }

    /// Writes the model's state into every reply region that the supervisor stands in for.
    fn show_state(&mut self, id: u64) {
        let draining = self.phase == Phase::Draining;
        let Some(model) = self.models.get_mut(&id) else { return };
        let state = match model.state {
            _ if draining => ServingState::Draining,
            ModelState::Quarantined => ServingState::Quarantined,
            _ => ServingState::Recovering,
        };
        for stand in model.recovery.responders.values_mut() {
            let how = stand.responder.set_state(state);
            stand.ring(how);
        }
    }

    /// Answers what was published, now and after a while.
    fn sweep(&mut self, id: u64) {
        let status = if self.phase == Phase::Draining { Status::ShuttingDown } else { Status::Unavailable };
        let Some(model) = self.models.get_mut(&id) else { return };
        let generation = model.generation();
        let mut faults = Vec::new();
        for (number, stand) in &mut model.recovery.responders {
            if let Err(fault) = stand.answer_all(status, generation) {
                faults.push((*number, fault));
            }
        }
        for (number, fault) in faults {
            self.session_fault(number, &fault);
        }
        let Some(model) = self.models.get_mut(&id) else { return };
        if !model.recovery.sweeping && !model.recovery.responders.is_empty() {
            model.recovery.sweeping = true;
            let quarantined = model.state == ModelState::Quarantined && self.phase != Phase::Draining;
            let wait_ms = if quarantined { QUARANTINE_SWEEP_MS } else { RECOVERY_SWEEP_MS };
            self.poller.after_ms(wait_ms, Timer::Sweep(id));
        }
    }

    /// The time of the next sweep has come.
    pub(super) fn on_sweep(&mut self, id: u64) {
        if let Some(model) = self.models.get_mut(&id) {
            model.recovery.sweeping = false;
            self.sweep(id);
        }
    }

    /// A last sweep, then the sessions are the next worker's alone.
    pub(super) fn end_recovery(&mut self, id: u64) {
        self.sweep(id);
        failpoint!("daemon.recovered");
        if let Some(model) = self.models.get_mut(&id) {
            model.recovery.responders.clear();
        }
    }

    /// Answers the one request that a dead worker was running, while its successor waits to take over.
    pub(super) fn answer_lost(&mut self, id: u64, running: Running) {
        let generation = self.models.get(&id).map_or(0, Model::generation);
        if !self.sessions.ready_of(id).any(|(number, _)| number == running.session) {
            return;
        }
        let answered = self.stand_in(running.session).and_then(|mut stand| stand.answer_running(running, generation));
        if let Err(fault) = answered {
            self.session_fault(running.session, &fault);
        }
    }

    /// Decides when the dead generation starts again, or that it does not.
    pub(super) fn schedule_restart(&mut self, id: u64, how: &str) {
        let now_ms = self.poller.now().saturating_duration_since(self.started).as_millis() as u64;
        let Some(model) = self.models.get_mut(&id) else { return };
        if self.phase == Phase::Draining || model.live.is_none() || model.state == ModelState::Live {
            return;
        }
        match model.restarts.died(now_ms) {
            Verdict::RestartAfter(wait_ms) => {
                tracing::warn!(model = %model.name, wait_ms, "the same generation starts again");
                let deaths = model.restarts.total();
                self.poller.after_ms(wait_ms, Timer::Restart { model: id, deaths });
            }
            Verdict::Quarantine => {
                model.state = ModelState::Quarantined;
                let what =
                    format!("quarantined, for its workers keep dying; reload it or roll it back. The last one: {how}");
                tracing::error!(model = %model.name, what);
                model.message = Some(what);
                self.show_state(id);
            }
        }
    }

    /// The backoff is over.
    pub(super) fn on_restart(&mut self, id: u64, deaths: u64) {
        let Some(model) = self.models.get(&id) else { return };
        let due = model.state == ModelState::Recovering && model.restarts.total() == deaths;
        let Some(live) = model.live.as_ref().filter(|_| due && model.recovery.worker.is_none()) else { return };
        let generation = Rc::clone(&live.generation);
        failpoint!("daemon.restart");
        match self.launch(id, generation, Purpose::Restart) {
            Ok(worker) => {
                if let Some(model) = self.models.get_mut(&id) {
                    model.recovery.worker = Some(worker);
                }
            }
            Err(what) => {
                tracing::error!(what, "a worker cannot be started");
                self.schedule_restart(id, &what);
            }
        }
    }

    /// A killed worker does not exit: nobody may answer for it, so the sessions that it serves end. Who waits for one
    /// that serves nobody waits no longer.
    pub(super) fn on_worker_stuck(&mut self, id: u64, stuck: u64) {
        const HOW: &str = "its worker was killed and hangs in the kernel; look at its device or file system";
        let Some(model) = self.models.get_mut(&id) else { return };
        let swapping_to = model.swap.as_ref().is_some_and(|swap| swap.to == stuck);
        if swapping_to && model.live.as_ref().is_some_and(|live| live.worker != stuck) {
            // Killed before it had taken, it never will: nothing of it runs any more, and the old one may resume.
            return self.abort_swap(id, stuck, HOW, None);
        }
        if swapping_to {
            // Its own exit, if it ever comes, must not decide about what follows.
            model.swap = None;
            self.poller.cancel(|timer| matches!(timer, Timer::Swap { model, .. } if *model == id));
        }
        if model.next == Some(stuck) {
            model.next = None;
            return self.fail_operation(id, HOW);
        }
        if model.recovery.worker == Some(stuck) {
            model.recovery.worker = None;
            return self.schedule_restart(id, HOW);
        }
        if model.kept.as_ref().is_some_and(|kept| kept.worker == stuck) {
            model.kept = None;
            return;
        }
        let swapping_from = model.swap.as_ref().is_some_and(|swap| swap.from == Some(stuck));
        if model.live_worker() != Some(stuck) && !swapping_from {
            return;
        }
        let sessions: Vec<u64> = self.sessions.iter().filter(|(_, s)| s.model == id).map(|(n, _)| n).collect();
        for number in sessions {
            self.end_session(number, HOW);
        }
        let Some(model) = self.models.get_mut(&id) else { return };
        if swapping_from {
            let to = model.swap.as_mut().map(|swap| {
                swap.from = None;
                swap.to
            });
            if let Some(to) = to {
                self.tell(to, &inferd_ipc::worker_records::ToWorker::Take { predecessor: None }, &[]);
            }
            return;
        }
        model.deaths += 1;
        model.state = ModelState::Recovering;
        self.schedule_restart(id, HOW);
        self.swap_when_possible(id);
    }
}
