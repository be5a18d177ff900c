//! Kept workers are the first to go when memory is short.
//!
//! The kernel is told so by their `oom_score_adj`, and does not wait for us. Before it has to act, the
//! supervisor retires them itself once little memory is available; a rollback loads them from the store
//! then. Nobody looks while nothing is kept alive.

use super::{Supervisor, Timer};
use inferd_ipc::limits::MEMORY_LOOK_MS;
use std::fs;

/// `oom_score_adj` of a worker that only waits for a rollback: the kernel's largest.
const FIRST_TO_GO: i32 = 1000;

/// The daemon's own `oom_score_adj`, which workers inherit.
fn inherited() -> i32 {
    fs::read_to_string("/proc/self/oom_score_adj").ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

impl Supervisor {
    /// A worker is kept from now on, or serves again.
    pub(super) fn set_expendable(&mut self, worker: u64, expendable: bool) {
        let Some(found) = self.workers.get(&worker) else { return };
        let score = if expendable { FIRST_TO_GO } else { inherited() };
        // A worker that is gone by now needs no score.
        let _ = fs::write(format!("/proc/{}/oom_score_adj", found.pid()), score.to_string());
        if expendable && !self.memory_watched {
            self.memory_watched = true;
            self.poller.after_ms(MEMORY_LOOK_MS, Timer::Memory);
        }
    }

    /// Looks at the memory that is left, as long as there is something to give.
    pub(super) fn on_memory(&mut self) {
        self.memory_watched = false;
        let kept = |model: &super::models::Model| model.kept.is_some() && model.swap.is_none();
        let ids: Vec<u64> = self.models.iter().filter(|(_, model)| kept(model)).map(|(id, _)| *id).collect();
        if ids.is_empty() && self.models.values().all(|model| model.kept.is_none()) {
            return;
        }
        if self.room.is_short() {
            for id in ids {
                self.drop_kept(id, "memory is short");
            }
        }
        self.memory_watched = true;
        self.poller.after_ms(MEMORY_LOOK_MS, Timer::Memory);
    }

    /// Gives the kept worker of a model up; its files stay in the store.
    fn drop_kept(&mut self, id: u64, why: &str) {
        let Some(model) = self.models.get_mut(&id) else { return };
        if let Some(kept) = model.kept.take() {
            tracing::warn!(model = %model.name, generation = kept.generation.number, why, "the kept worker is retired; a rollback loads it from the store");
            self.retire_worker(kept.worker);
        }
    }
}
