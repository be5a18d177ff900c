//! SIGHUP: what changed in the configuration is applied, the rest is untouched.
//!
//! A file that is wrong changes nothing and is reported line by line. A change of a model waits for the
//! operation that is under way on it; a reload that fails leaves the live generation serving. What only
//! a restart of the daemon can change is said to need one.

use super::gate::Gate;
use super::history::Cause;
use super::models::Wanted;
use super::operations::{Kind, Order};
use super::quota::Quota;
use super::{Phase, Supervisor};
use crate::config::{Config, DaemonConfig, Diff, QuotaConfig};
use crate::store::Bounds;
use inferd_ipc::control::StatsAnswer;

/// The configured quota of every uid.
pub(super) fn quota(config: &QuotaConfig) -> Quota {
    Quota {
        connections: config.connections as u64,
        half_attaches: config.half_attaches as u64,
        sessions: config.sessions as u64,
        region_bytes: config.region_bytes,
        lingering: inferd_ipc::limits::LINGERING_PER_UID_MAX as u64,
    }
}

/// How much the store may hold.
pub(super) fn bounds(config: &DaemonConfig) -> Bounds {
    Bounds { bytes: config.store_bytes, generations: config.store_generations }
}

impl Supervisor {
    /// Reads the configuration again.
    pub(super) fn reload_config(&mut self) {
        if matches!(self.phase, Phase::Draining | Phase::Over) {
            return;
        }
        // A daemon that starts is READY when its models are there, and not before.
        let tells = self.phase == Phase::Ready;
        if tells {
            self.notify.reloading();
        }
        match Config::load(self.config_path.as_deref(), &self.overrides) {
            Ok(new) => self.apply_config(new),
            Err(errors) => {
                for error in &errors.0 {
                    tracing::error!(%error, "the configuration is wrong; nothing changes");
                }
            }
        }
        if tells {
            let status = self.status_line(&StatsAnswer::new());
            self.notify.ready(&status);
        }
    }

    fn apply_config(&mut self, mut new: Config) {
        let diff = Config::diff(&self.config, &new);
        for key in &diff.restart {
            tracing::warn!(key, "changed, but applies only after a restart of inferd");
        }
        new.ipc.backing = self.config.ipc.backing;
        self.sessions.quotas.set(quota(&new.quota));
        self.store.set_bounds(bounds(&new.daemon));
        self.config = new;
        let Diff { added, removed, changed, same, restart: _ } = diff;
        tracing::info!(
            added = added.len(),
            removed = removed.len(),
            changed = changed.len(),
            same = same.len(),
            "configuration read"
        );
        for name in removed {
            if let Some(id) = self.model_id(&name) {
                self.want(id, Wanted::Gone);
            }
        }
        for change in changed {
            self.apply_model(&change.name, change.reload);
        }
        for name in added {
            self.apply_model(&name, true);
        }
    }

    fn apply_model(&mut self, name: &str, reload: bool) {
        let Some(config) = self.config.models.get(name).cloned() else { return };
        let Some(id) = self.model_id(name) else {
            if let Err(what) = self.add_model(config, Kind::Start, None) {
                tracing::error!(model = name, what, "not served");
            }
            return;
        };
        let Some(model) = self.models.get_mut(&id) else { return };
        model.configured = true;
        if reload {
            self.want(id, Wanted::Config(Box::new(config)));
        } else if let Some(Wanted::Config(waiting)) = &mut model.wanted {
            // It holds the change that waits too.
            **waiting = config;
        } else {
            model.config = config;
            self.watch_files(id);
        }
    }

    pub(super) fn want(&mut self, id: u64, wanted: Wanted) {
        if let Some(model) = self.models.get_mut(&id) {
            // A changed configuration reads the changed file too.
            if wanted != Wanted::Changed || model.wanted.is_none() {
                model.wanted = Some(wanted);
            }
            self.apply_wanted(id);
        }
    }

    /// Applies a change that waited for the operation under way.
    pub(super) fn apply_wanted(&mut self, id: u64) {
        let Some(model) = self.models.get_mut(&id) else { return };
        if model.operation.is_some() || self.phase == Phase::Draining {
            return;
        }
        match model.wanted.take() {
            None => {}
            Some(Wanted::Gone) => {
                let name = model.name.clone();
                self.note_gone(&name);
                self.remove_model(id);
            }
            Some(Wanted::Config(config)) => {
                model.config = *config;
                self.reload_through_gate(id, Cause::Configuration);
            }
            Some(Wanted::Changed) => self.reload_through_gate(id, Cause::Watch),
        }
    }

    /// Makes the next generation from the configured path, through the configured gate.
    fn reload_through_gate(&mut self, id: u64, cause: Cause) {
        let Some(model) = self.models.get(&id) else { return };
        let config = model.config.clone();
        // What was configured was checked; an open gate would be the wrong answer to a doubt.
        match Gate::new(&config.gate, None) {
            Ok(gate) => self.begin_generation(id, config, Order { gate, ..Order::new(Kind::Reload, cause, None) }),
            Err(what) => tracing::error!(model = %model.name, what, "the configured gate is wrong"),
        }
    }

    /// Serves a model no more: its sessions end, its workers exit.
    pub(super) fn remove_model(&mut self, id: u64) {
        let sessions: Vec<u64> =
            self.sessions.iter().filter(|(_, s)| s.model == id).map(|(number, _)| number).collect();
        for number in sessions {
            self.end_session(number, "its model is not served any more");
        }
        let Some(model) = self.models.remove(&id) else { return };
        tracing::info!(model = %model.name, "not served any more");
        let workers: Vec<u64> = self.workers.iter().filter(|(_, w)| w.model == Some(id)).map(|(id, _)| *id).collect();
        for worker in workers {
            self.retire_worker(worker);
        }
        self.look_whether_ready();
    }
}
