//! The end: no new sessions, what is in flight is answered, everybody else is told, exit 0 in time.
//!
//! Workers answer everything with `shutting_down` and let go; where none serves, the supervisor does.
//! Then the sessions end, then the workers. `drain_ms` bounds all of it: whatever is left then is ended
//! by force, so that the daemon is never the process that an operator has to kill.

use super::models::{Model, ModelState, Stage};
use super::{Phase, Supervisor, Timer};
use inferd_ipc::control::StatsAnswer;
use inferd_ipc::failpoint;
use inferd_ipc::limits::{RECOVERY_SWEEP_MS, WORKER_EXIT_MS};
use inferd_ipc::worker_records::ToWorker;
use std::time::{Duration, Instant};

/// Between the exit of the last worker and the end of the sessions: two sweeps.
const SETTLE_MS: u64 = 2 * RECOVERY_SWEEP_MS;

impl Supervisor {
    /// Begins the drain, once.
    pub(super) fn begin_drain(&mut self, why: &str) {
        if matches!(self.phase, Phase::Draining | Phase::Over) {
            return;
        }
        tracing::info!(why, sessions = self.sessions.count(), drain_ms = self.config.daemon.drain_ms, "draining");
        self.phase = Phase::Draining;
        let within = Duration::from_millis(self.config.daemon.drain_ms + WORKER_EXIT_MS);
        self.notify.stopping(self.failure.as_deref().unwrap_or("draining"), within);
        failpoint!("daemon.draining");
        self.accept_attaches();
        self.poller.after_ms(self.config.daemon.drain_ms, Timer::DrainEnd);
        let jobs: Vec<u64> = self.staging.keys().copied().collect();
        for job in jobs {
            self.stager.cancel(job);
        }
        let models: Vec<u64> = self.models.keys().copied().collect();
        for id in models {
            if self.models.get(&id).is_some_and(|model| model.swap.is_some()) {
                // Two workers share the sessions at this moment: whoever has them afterwards drains.
                continue;
            }
            self.fail_operation(id, "the daemon is shutting down");
            let Some(model) = self.models.get(&id) else { continue };
            match model.live_worker() {
                Some(worker) => self.tell(worker, &ToWorker::Drain, &[]),
                None => self.begin_recovery(id, None),
            }
        }
        failpoint!("daemon.drain.told");
        self.look_whether_drained();
    }

    /// A worker has answered everything and let go.
    pub(super) fn on_drained(&mut self, worker: u64) {
        if let Some(found) = self.workers.get_mut(&worker) {
            found.drained = true;
        }
        self.look_whether_drained();
    }

    /// Goes on with the drain: workers exit once everything is answered, sessions end once their workers are gone.
    pub(super) fn look_whether_drained(&mut self) {
        if self.phase != Phase::Draining {
            return;
        }
        let serving = |model: &Model| {
            let worker = model.live_worker().and_then(|worker| self.workers.get(&worker));
            model.swap.is_some() || worker.is_some_and(|w| !w.drained && w.stage != Stage::Retiring)
        };
        if self.models.values().any(serving) {
            return;
        }
        let workers: Vec<u64> = self.workers.keys().copied().collect();
        for worker in workers {
            self.retire_worker(worker);
        }
        if !self.workers.is_empty() {
            return;
        }
        failpoint!("daemon.drained");
        // What a client published before it saw the state word is answered by the sweeps of this time.
        let settle = Duration::from_millis(if self.sessions.count() > 0 { SETTLE_MS } else { 0 });
        let settled = *self.drained_at.get_or_insert_with(Instant::now) + settle;
        if Instant::now() < settled {
            return self.poller.after(settle, Timer::DrainLook);
        }
        self.end_everybody();
        failpoint!("daemon.ended");
        if self.answers_written() {
            self.phase = Phase::Over;
        } else {
            self.poller.after_ms(SETTLE_MS, Timer::DrainLook);
        }
    }

    fn end_everybody(&mut self) {
        let models: Vec<u64> = self.models.keys().copied().collect();
        for id in models {
            self.end_recovery(id);
        }
        let connections: Vec<u64> = self.connections.keys().copied().collect();
        for id in connections {
            self.hang_up(id, "the daemon shuts down");
        }
    }

    /// The time for draining is over.
    pub(super) fn on_drain_end(&mut self) {
        if self.phase != Phase::Draining {
            return;
        }
        tracing::warn!(workers = self.workers.len(), "not drained in time; ending by force");
        let workers: Vec<u64> = self.workers.keys().copied().collect();
        for worker in workers {
            self.kill_worker(worker, "the drain took too long");
        }
        self.end_everybody();
        self.phase = Phase::Over;
    }

    /// Starting is over once every configured model is live, or known not to be.
    pub(super) fn look_whether_ready(&mut self) {
        if self.phase != Phase::Starting || !self.begun {
            return;
        }
        let settled = |model: &Model| {
            model.live.is_some() || !model.configured || (model.config.optional && model.state == ModelState::Failed)
        };
        if !self.models.values().all(settled) {
            return;
        }
        self.phase = Phase::Ready;
        let after = self.started.elapsed();
        self.ready_after = Some(after);
        let missing: Vec<&str> =
            self.models.values().filter(|model| model.live.is_none()).map(|model| model.name.as_str()).collect();
        let status = self.status_line(&StatsAnswer::new());
        tracing::info!(ready_ms = after.as_millis() as u64, models = self.models.len(), ?missing, dir = %self.runtime_dir.display(), "ready");
        failpoint!("daemon.started");
        self.notify.ready(&status);
        self.accept_attaches();
    }
}
