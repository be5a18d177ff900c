//! Passing a model's sessions from one worker to the next.
//!
//! The supervisor grants the baton; the old executor finishes its step and writes its release as its
//! last write; the new one takes over. Until the new one has taken, the old one can resume. Whoever dies
//! on the way, exactly one of the two serves afterwards, and the supervisor writes replies only where
//! neither can. A first generation and a restart are swaps without a predecessor.

use super::models::{Held, ModelState, Stage};
use super::operations::{Kind, Swapped};
use super::sessions::State;
use super::workers::{Purpose, Worker};
use super::{Phase, Supervisor, Timer, clock_ns};
use crate::config::KeepPrevious;
use crate::manifest::OnReload;
use inferd_ipc::failpoint;
use inferd_ipc::limits::{RESUME_LOOK_MS, SWAP_MS};
use inferd_ipc::state::{self, Condition};
use inferd_ipc::worker_records::ToWorker;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Instant;

/// A swap under way.
pub(super) struct Swap {
    /// The worker that shall serve.
    pub to: u64,
    /// What it holds.
    target: Held,
    /// The worker that serves until then, while it lives.
    pub from: Option<u64>,
    /// State regions that sessions have from the take-over on, where they differ from those before.
    states: BTreeMap<u64, State>,
    /// `carried`, `reset` or `none`.
    state: &'static str,
    granted: Option<Instant>,
    granted_ns: u64,
}

impl Swap {
    /// A session has ended.
    pub fn forget(&mut self, session: u64) {
        self.states.remove(&session);
    }
}

impl Supervisor {
    /// Begins the next swap of this model, if a worker is warm and none is under way.
    pub(super) fn swap_when_possible(&mut self, id: u64) {
        let Some(model) = self.models.get(&id) else { return };
        if model.swap.is_some() || self.phase == Phase::Draining {
            return;
        }
        let warm = |worker: &u64| self.workers.get(worker).is_some_and(|w| w.stage == Stage::Warm && !w.killed);
        let restart = model.recovery.worker.filter(|_| model.state != ModelState::Live);
        if let Some(worker) = restart.into_iter().chain(model.next).find(warm) {
            self.begin_swap(id, worker);
        }
    }

    /// Grants the baton to a worker that is warm or kept.
    pub(super) fn begin_swap(&mut self, id: u64, to: u64) {
        let Some(worker) = self.workers.get(&to) else { return };
        let Some(loaded) = worker.loaded.clone() else { return };
        let warm = worker.stage == Stage::Warm;
        let target = Held { generation: Rc::clone(&worker.generation), loaded, worker: to, record: None };
        let loaded = target.loaded.clone();
        let (states, state) = match self.states_for(id, &target) {
            Ok(states) => states,
            Err(what) => return self.swap_impossible(id, to, &what),
        };
        let record = match &worker.record {
            Some(record) => Some(Rc::clone(record)),
            None => self.record_for(id, &loaded),
        };
        self.tell_progress(id, "swapping", None);
        if let Some(record) = record.clone().filter(|_| warm) {
            self.tell(to, &ToWorker::Record { slots: record.slots }, &[Rc::clone(&record.fd)]);
        }
        if let Some(worker) = self.workers.get_mut(&to) {
            worker.record.clone_from(&record);
        }
        // A kept worker knows the sessions, but perhaps other state regions of them.
        if warm || target.loaded.state_bytes > 0 {
            let sessions: Vec<u64> = self.sessions.ready_of(id).map(|(number, _)| number).collect();
            for number in sessions {
                self.send_session(to, number, states.get(&number).cloned());
            }
        }
        let Some(model) = self.models.get_mut(&id) else { return };
        let from = model.live_worker();
        let target = Held { record, ..target };
        model.swap = Some(Swap { to, target, from, states, state, granted: None, granted_ns: 0 });
        self.end_recovery(id);
        failpoint!("daemon.swap");
        self.grant(id, warm);
    }

    /// Nothing was granted: the worker goes, what serves stays.
    fn swap_impossible(&mut self, id: u64, to: u64, what: &str) {
        let Some(model) = self.models.get(&id) else { return };
        if model.next == Some(to) || model.recovery.worker == Some(to) {
            self.kill_worker(to, what);
        } else {
            self.fail_operation(id, what);
        }
    }

    /// What a swap to this worker would do to the sessions' state: `carried`, `reset` or `none`.
    pub(super) fn state_fate(&self, id: u64, worker: u64) -> &'static str {
        let Some(found) = self.workers.get(&worker) else { return "none" };
        let Some(loaded) = found.loaded.as_ref().filter(|loaded| loaded.state_bytes > 0) else { return "none" };
        let live = self.models.get(&id).and_then(|model| model.live.as_ref());
        let same = live.is_some_and(|live| live.loaded.state_layout == loaded.state_layout);
        let carries = found.generation.source.manifest.on_reload == OnReload::Carry;
        if same && carries { "carried" } else { "reset" }
    }

    /// The state regions that sessions need for this generation, where they have no fitting one yet.
    fn states_for(&self, id: u64, target: &Held) -> Result<(BTreeMap<u64, State>, &'static str), String> {
        if target.loaded.state_bytes == 0 {
            return Ok((BTreeMap::new(), "none"));
        }
        let before = self.models.get(&id).and_then(|model| model.live.as_ref());
        let same = before.is_none_or(|live| Rc::ptr_eq(&live.generation, &target.generation));
        let reset = target.generation.source.manifest.on_reload == OnReload::Reset && !same;
        let condition = if reset { Condition::Reset } else { Condition::Lost };
        let fits = |state: &State| state.layout == target.loaded.state_layout;
        let all = self.sessions.ready_of(id);
        let without = all.filter(|(_, session)| reset || !session.parts.state.as_ref().is_some_and(fits));
        let without: Vec<u64> = without.map(|(number, _)| number).collect();
        if !without.is_empty() {
            self.room.for_bytes(without.len() as u64 * state::region_bytes(target.loaded.state_bytes))?;
        }
        let made = without.into_iter().map(|number| Ok((number, make_state(target, condition)?)));
        let states = made.collect::<Result<BTreeMap<_, _>, String>>()?;
        let name = match before {
            None => "none",
            Some(_) if reset || !states.is_empty() => "reset",
            Some(_) => "carried",
        };
        Ok((states, name))
    }

    /// Whether a worker can run a session on the state region that the session has.
    pub(super) fn state_fits(&self, worker: u64, number: u64) -> bool {
        let loaded = self.workers.get(&worker).and_then(|found| found.loaded.as_ref());
        let state = self.sessions.get(number).and_then(|session| session.parts.state.as_ref());
        loaded.is_some_and(|loaded| {
            loaded.state_bytes == 0 || state.is_some_and(|state| state.layout == loaded.state_layout)
        })
    }

    /// A new state region for a session that begins in the middle of a swap to a worker which cannot run on the one that
    /// the session has; it becomes the session's with the swap.
    pub(super) fn state_in_swap(&mut self, id: u64, worker: u64, number: u64) -> Result<Option<State>, String> {
        if self.state_fits(worker, number) {
            return Ok(None);
        }
        let state = self.state_for(worker, number)?;
        let swap = self.models.get_mut(&id).and_then(|model| model.swap.as_mut()).filter(|swap| swap.to == worker);
        if let (Some(swap), Some(state)) = (swap, &state) {
            swap.states.insert(number, state.clone());
        }
        Ok(state)
    }

    /// The state region of a session for a worker: the session's own if it fits, or a new one.
    pub(super) fn state_for(&mut self, worker: u64, number: u64) -> Result<Option<State>, String> {
        let (Some(found), Some(session)) = (self.workers.get(&worker), self.sessions.get(number)) else {
            return Ok(None);
        };
        let Some(loaded) = found.loaded.clone() else { return Ok(None) };
        if loaded.state_bytes == 0 {
            return Ok(None);
        }
        if let Some(state) = session.parts.state.as_ref().filter(|state| state.layout == loaded.state_layout) {
            return Ok(Some(state.clone()));
        }
        self.room.for_bytes(state::region_bytes(loaded.state_bytes))?;
        let target = Held { generation: Rc::clone(&found.generation), loaded, worker, record: None };
        make_state(&target, Condition::Fresh).map(Some)
    }

    fn grant(&mut self, id: u64, fresh: bool) {
        let Some(model) = self.models.get_mut(&id) else { return };
        let Some(swap) = &mut model.swap else { return };
        let (to, from) = (swap.to, swap.from);
        swap.granted = Some(Instant::now());
        swap.granted_ns = clock_ns();
        let Some(worker) = self.workers.get_mut(&to) else { return };
        worker.enter(Stage::Taking);
        let (ticket, entry) = (worker.ticket, worker.entry);
        let predecessor = from.and_then(|from| self.workers.get(&from)).map(|old| (old.entry, old.ticket));
        if !fresh {
            // Its release of an earlier turn must not be taken for one of this turn. It waits for the grant and writes
            // nothing meanwhile.
            model.baton.clear(entry);
        }
        let wait_ms = model.config.max_run_ms.saturating_add(SWAP_MS);
        // A rollback takes a worker back that may have taken over before: the time of that swap is not this one's.
        self.poller.cancel(|timer| matches!(timer, Timer::Swap { model, .. } if *model == id));
        model.baton.grant(ticket);
        failpoint!("daemon.granted");
        self.tell(to, &ToWorker::Take { predecessor }, &[]);
        if let Some(from) = from {
            self.tell(from, &ToWorker::LetGo, &[]);
        }
        failpoint!("daemon.told");
        self.poller.after_ms(wait_ms, Timer::Swap { model: id, to });
    }

    /// The new worker's executor has the baton.
    pub(super) fn on_taken(&mut self, worker: u64) {
        let Some(id) = self.workers.get(&worker).and_then(|found| found.model) else { return };
        match self.models.get(&id).and_then(|model| model.swap.as_ref()).filter(|swap| swap.to == worker) {
            Some(swap) if swap.granted.is_some() => {
                self.commit_swap(id);
                self.swap_when_possible(id);
            }
            Some(_) => self.kill_worker(worker, "it took a baton that it was not granted"),
            None => {}
        }
    }

    fn commit_swap(&mut self, id: u64) {
        let Some(model) = self.models.get_mut(&id) else { return };
        let Some(swap) = model.swap.take() else { return };
        failpoint!("daemon.taken");
        self.poller.cancel(|timer| matches!(timer, Timer::Swap { model, .. } if *model == id));
        let swap_us = swap.granted.map_or(0.0, |at| at.elapsed().as_secs_f64() * 1e6);
        let before = model.live.replace(swap.target);
        let generation = model.generation();
        let from_generation = before.as_ref().map_or(0, |held| held.generation.number);
        model.generation_last = model.generation_last.max(generation);
        model.state = ModelState::Live;
        model.steps_seen = 0;
        for (number, state) in swap.states {
            if let Some(session) = self.sessions.get_mut(number) {
                session.parts.state = Some(state);
            }
        }
        if let Some(worker) = self.workers.get_mut(&swap.to) {
            worker.enter(Stage::Live);
        }
        let purpose = self.workers.get(&swap.to).map(|worker| worker.purpose);
        let taken_ns = self.workers.get(&swap.to).map_or(0, |worker| model.baton.taken_at_ns(worker.entry));
        let was_kept = model.kept.as_ref().is_some_and(|kept| kept.worker == swap.to);
        let asked = model.next == Some(swap.to) || model.kept.as_ref().is_some_and(|kept| kept.worker == swap.to);
        if model.kept.as_ref().is_some_and(|kept| kept.worker == swap.to) {
            model.kept = None;
        }
        let operation_done = asked && model.operation.is_some();
        if operation_done {
            model.next = None;
            model.restarts.forgive();
        }
        if purpose == Some(Purpose::Restart) && !operation_done {
            tracing::info!(model = %model.name, generation, swap_us = swap_us as u64, "recovered");
        }
        if was_kept {
            self.set_expendable(swap.to, false);
        }
        self.keep_or_retire(id, swap.from, before);
        failpoint!("daemon.kept");
        self.drop_needless_restart(id);
        self.arm_watch();
        if operation_done {
            let gaps = match swap.from {
                Some(_) => self.gaps(id, from_generation, swap.granted_ns, taken_ns),
                None => Vec::new(),
            };
            self.finish_operation(id, from_generation, &Swapped { swap_us, state: swap.state, gaps });
        }
        if self.phase == Phase::Draining {
            self.tell(swap.to, &ToWorker::Drain, &[]);
        }
        self.look_whether_ready();
    }

    /// What becomes of the worker that has let go.
    fn keep_or_retire(&mut self, id: u64, from: Option<u64>, before: Option<Held>) {
        let (Some(from), Some(before)) = (from, before) else { return };
        let Some(model) = self.models.get_mut(&id) else { return };
        let retired = if model.config.keep_previous == KeepPrevious::Alive {
            if let Some(worker) = self.workers.get_mut(&from) {
                worker.enter(Stage::Kept);
            }
            let older = model.kept.replace(before).map(|older| older.worker);
            self.set_expendable(from, true);
            older
        } else {
            Some(from)
        };
        if let Some(worker) = retired {
            self.retire_worker(worker);
        }
    }

    /// A worker that is being started to recover a model which another generation has recovered meanwhile.
    fn drop_needless_restart(&mut self, id: u64) {
        let Some(model) = self.models.get_mut(&id) else { return };
        if let Some(worker) = model.recovery.worker.take()
            && model.live.as_ref().is_some_and(|held| held.worker != worker)
        {
            self.retire_worker(worker);
        }
    }

    /// A swap has taken too long: whoever holds it up is killed, and its exit decides the rest.
    pub(super) fn on_swap_overdue(&mut self, id: u64, to: u64) {
        let Some(model) = self.models.get(&id) else { return };
        let Some(swap) = model.swap.as_ref().filter(|swap| swap.to == to) else { return };
        let old = swap.from.and_then(|from| self.workers.get(&from).map(|worker| (from, worker)));
        let holding = old.filter(|(_, worker)| model.baton.released(worker.entry) != worker.ticket);
        let wait_ms = model.config.max_run_ms.saturating_add(SWAP_MS);
        match holding {
            Some((from, _)) => {
                self.kill_worker(from, "it did not let the baton go in time");
                self.poller.after_ms(wait_ms, Timer::Swap { model: id, to });
            }
            None if swap.granted.is_none() => self.kill_worker(to, "it did not let the baton go in time to resume"),
            None => self.kill_worker(to, "it did not take the baton in time"),
        }
    }

    /// A worker of this model is gone for certain.
    pub(super) fn on_model_worker_gone(&mut self, id: u64, gone: u64, worker: &Worker, how: &str) {
        let Some(model) = self.models.get_mut(&id) else { return };
        let baton = model.baton.clone();
        let running = baton.running(worker.entry);
        let (released, taken) =
            (baton.released(worker.entry) == worker.ticket, baton.taken(worker.entry) == worker.ticket);
        model.take_back(worker.entry);
        if worker.stage == Stage::Retiring {
            return self.on_retired(id, gone);
        }
        let swap = model.swap.as_ref().map(|swap| (swap.to, swap.from, swap.granted.is_some()));
        if model.kept.as_ref().is_some_and(|kept| kept.worker == gone) && swap.is_none_or(|(to, ..)| to != gone) {
            model.kept = None;
            return;
        }
        match swap {
            Some((to, _, granted)) if to == gone => {
                if granted && taken {
                    self.commit_swap(id);
                    self.on_live_gone(id, running, how);
                    // Only now: who waits must not take over from, and then keep, a worker that is gone.
                    self.swap_when_possible(id);
                } else {
                    self.abort_swap(id, gone, how, running.filter(|_| !granted));
                }
            }
            Some((to, Some(from), _)) if from == gone => {
                self.on_predecessor_gone(id, to, running.filter(|_| !released));
            }
            _ if model.live_worker() == Some(gone) => self.on_live_gone(id, running, how),
            _ if model.next == Some(gone) => {
                model.next = None;
                self.fail_operation(id, how);
            }
            _ if model.recovery.worker == Some(gone) => {
                model.recovery.worker = None;
                self.schedule_restart(id, how);
            }
            _ => {}
        }
    }

    /// A worker has exited as it was told; in a drain, the live one too.
    fn on_retired(&mut self, id: u64, gone: u64) {
        let Some(model) = self.models.get_mut(&id) else { return };
        if model.live_worker() == Some(gone) {
            model.state = ModelState::Recovering;
            self.begin_recovery(id, None);
        }
    }

    /// The old worker died before, or just after, it let go: the new one need not wait for it.
    fn on_predecessor_gone(&mut self, id: u64, to: u64, running: Option<inferd_ipc::baton::Running>) {
        let Some(model) = self.models.get_mut(&id) else { return };
        model.deaths += 1;
        if let Some(swap) = &mut model.swap {
            swap.from = None;
        }
        // Nobody serves at this moment: the old one is gone, the new one waits for what follows.
        if let Some(running) = running {
            self.answer_lost(id, running);
        }
        self.tell(to, &ToWorker::Take { predecessor: None }, &[]);
    }

    /// The worker that should have taken over is gone. `resumed`: it was an old worker that had not been granted again.
    pub(super) fn abort_swap(&mut self, id: u64, gone: u64, how: &str, resumed: Option<inferd_ipc::baton::Running>) {
        let Some(model) = self.models.get_mut(&id) else { return };
        let Some(swap) = model.swap.take() else { return };
        if model.live.as_ref().is_some_and(|live| live.worker == gone) {
            self.on_live_gone(id, resumed, how);
            // Another one may have become warm meanwhile, and have waited for this swap.
            return self.swap_when_possible(id);
        }
        if model.kept.as_ref().is_some_and(|kept| kept.worker == gone) {
            model.kept = None;
        }
        let restart = model.recovery.worker == Some(gone);
        if restart {
            model.recovery.worker = None;
        }
        if model.next == Some(gone) {
            model.next = None;
        }
        match (swap.from, model.live.clone()) {
            (Some(from), Some(live)) => {
                // The old worker resumes once it has let go: a grant that came and went must not leave it in doubt.
                model.swap = Some(Swap {
                    to: from,
                    target: live,
                    from: None,
                    states: BTreeMap::new(),
                    state: "carried",
                    granted: None,
                    granted_ns: 0,
                });
                let wait_ms = model.config.max_run_ms.saturating_add(SWAP_MS);
                self.poller.after_ms(RESUME_LOOK_MS, Timer::Resume(id));
                self.poller.after_ms(wait_ms, Timer::Swap { model: id, to: from });
            }
            (None, Some(_)) => {
                // The old worker died too while this one was about to take over.
                let orphaned = model.state == ModelState::Live;
                if orphaned {
                    model.state = ModelState::Recovering;
                }
                self.begin_recovery(id, None);
                if orphaned && !restart {
                    self.schedule_restart(id, how);
                }
            }
            (_, None) => {}
        }
        if restart {
            self.schedule_restart(id, how);
        } else {
            self.fail_operation(id, how);
        }
        self.swap_when_possible(id);
    }

    /// Whether the old worker has let go, and can be granted the baton again.
    pub(super) fn on_resume(&mut self, id: u64) {
        let Some(model) = self.models.get_mut(&id) else { return };
        let Some(swap) = model.swap.as_ref().filter(|swap| swap.granted.is_none()) else { return };
        let Some(worker) = self.workers.get(&swap.to) else { return };
        if model.baton.released(worker.entry) == worker.ticket {
            self.grant(id, false);
        } else {
            self.poller.after_ms(RESUME_LOOK_MS, Timer::Resume(id));
        }
    }

    /// `inferctl rollback`: the kept worker takes over at once.
    pub(super) fn begin_rollback(&mut self, id: u64) {
        let kept = self.models.get(&id).and_then(|model| model.kept.as_ref()).map(|kept| kept.worker);
        match kept {
            Some(worker) => self.begin_swap(id, worker),
            None => self.fail_operation(id, "no previous generation is kept; reload its file instead"),
        }
        let pending = self.models.get(&id).and_then(|model| model.operation.as_ref());
        debug_assert!(pending.is_none_or(|operation| operation.kind == Kind::Rollback));
    }
}

fn make_state(target: &Held, condition: Condition) -> Result<State, String> {
    let bytes = target.loaded.state_bytes;
    let fd = state::create(bytes, condition).map_err(|error| error.to_string())?;
    Ok(State { fd: Rc::new(fd), bytes, layout: target.loaded.state_layout.clone() })
}
