//! Steps are timed: a worker that runs longer than `max_run_ms`, or is stopped that long, is killed.
//!
//! The executor writes what it runs and since when into the baton; this looks at it now and then: once
//! a second while nothing moves, as often as `max_run_ms` asks while steps are run, and never without
//! sessions and steps. What follows a kill is decided when the pidfd reports the exit.

use super::{Supervisor, Timer, clock_ns};
use inferd_ipc::limits::{WATCH_BUSY_MS, WATCH_IDLE_MS};
use std::fs;
use std::time::{Duration, Instant};

impl Supervisor {
    /// Begins to look, if there is something to look at and nobody looks yet.
    pub(super) fn arm_watch(&mut self) {
        if !self.watch_armed && self.models.keys().any(|id| self.is_watched(*id)) {
            self.watch_armed = true;
            self.poller.after_ms(WATCH_IDLE_MS.min(self.shortest_run_ms()), Timer::Watch);
        }
    }

    fn is_watched(&self, id: u64) -> bool {
        let Some(model) = self.models.get(&id) else { return false };
        let Some(worker) = model.live_worker().and_then(|worker| self.workers.get(&worker)) else { return false };
        // A step may outlast the last session: it is its worker's all the same.
        self.sessions.ready_of(id).next().is_some() || model.baton.running(worker.entry).is_some()
    }

    fn shortest_run_ms(&self) -> u64 {
        self.models.values().map(|model| model.config.max_run_ms).min().unwrap_or(WATCH_IDLE_MS).max(WATCH_BUSY_MS)
    }

    /// Looks at every worker that has sessions, or runs a step.
    pub(super) fn on_watch(&mut self) {
        self.watch_armed = false;
        let watched: Vec<u64> = self.models.keys().copied().filter(|id| self.is_watched(*id)).collect();
        let next_ms = watched.iter().map(|id| self.look_at(*id)).min();
        if let Some(next_ms) = next_ms {
            self.watch_armed = true;
            self.poller.after_ms(next_ms, Timer::Watch);
        }
    }

    /// Looks at one model's live worker; returns when to look again, in milliseconds.
    fn look_at(&mut self, id: u64) -> u64 {
        let Some(model) = self.models.get_mut(&id) else { return WATCH_IDLE_MS };
        let Some(worker_id) = model.live_worker() else { return WATCH_IDLE_MS };
        let Some(worker) = self.workers.get_mut(&worker_id) else { return WATCH_IDLE_MS };
        let max_run_ms = model.config.max_run_ms;
        let steps = model.baton.steps(worker.entry);
        let busy = std::mem::replace(&mut model.steps_seen, steps) != steps;
        if busy {
            worker.stopped_since = None;
        } else if is_stopped(worker.pid()) {
            let since = *worker.stopped_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= Duration::from_millis(max_run_ms) {
                self.kill_worker(worker_id, &format!("it was stopped for more than max_run_ms = {max_run_ms} ms"));
            }
            return max_run_ms.clamp(WATCH_BUSY_MS, WATCH_IDLE_MS);
        } else {
            worker.stopped_since = None;
        }
        let Some(running) = model.baton.running(worker.entry) else {
            return if busy { max_run_ms.clamp(WATCH_BUSY_MS, WATCH_IDLE_MS) } else { WATCH_IDLE_MS };
        };
        let run_ms = clock_ns().saturating_sub(running.since_ns) / 1_000_000;
        if run_ms < max_run_ms {
            return (max_run_ms - run_ms).clamp(1, WATCH_IDLE_MS);
        }
        // The words are three; the same answer twice, after a pause for none, is one run.
        if model.baton.running(worker.entry) == Some(running) {
            let why = format!(
                "request {} of session {} ran for {run_ms} ms; max_run_ms is {max_run_ms}",
                running.request, running.session
            );
            self.kill_worker(worker_id, &why);
        }
        WATCH_BUSY_MS
    }
}

/// Whether somebody stopped the process (SIGSTOP); a debugger's stop is another letter.
fn is_stopped(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
}
