//! What a new configuration changes, for SIGHUP.

use super::{Config, ModelConfig};

/// A model whose configuration changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelChange {
    /// Its name.
    pub name: String,
    /// Whether it takes a new worker; else new values apply to the running one (new sessions, limits).
    pub reload: bool,
}

/// What changes between two configurations; names in alphabetical order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Diff {
    /// Models only in the new one.
    pub added: Vec<String>,
    /// Models only in the old one.
    pub removed: Vec<String>,
    /// Models in both, with a difference.
    pub changed: Vec<ModelChange>,
    /// Models in both, equal.
    pub same: Vec<String>,
    /// Keys of `[daemon]` and `[ipc]` that changed and apply only after a restart of the daemon.
    pub restart: Vec<&'static str>,
}

impl Diff {
    /// Nothing changed at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Diff { added, removed, changed, same: _, restart } = self;
        added.is_empty() && removed.is_empty() && changed.is_empty() && restart.is_empty()
    }
}

impl Config {
    /// Compares the running configuration with a new one.
    #[must_use]
    pub fn diff(old: &Config, new: &Config) -> Diff {
        let mut diff = Diff { restart: needs_restart(old, new), ..Diff::default() };
        diff.added = new.models.keys().filter(|name| !old.models.contains_key(*name)).cloned().collect();
        // How workers wait, lock memory and are confined is in every worker's spec.
        let all = old.ipc.waiting != new.ipc.waiting || old.ipc.mlock != new.ipc.mlock || old.worker != new.worker;
        for (name, before) in &old.models {
            match new.models.get(name) {
                None => diff.removed.push(name.clone()),
                Some(after) if before == after && !all => diff.same.push(name.clone()),
                Some(after) => {
                    let reload = all || needs_worker(before, after);
                    diff.changed.push(ModelChange { name: name.clone(), reload });
                }
            }
        }
        diff
    }
}

/// Whether the difference is more than what the supervisor alone decides.
fn needs_worker(old: &ModelConfig, new: &ModelConfig) -> bool {
    let mut old = old.clone();
    old.slots = new.slots;
    old.queue = new.queue;
    old.max_run_ms = new.max_run_ms;
    old.load_ms = new.load_ms;
    old.optional = new.optional;
    old.keep_previous = new.keep_previous;
    old.gate = new.gate.clone();
    old.watch = new.watch;
    old != *new
}

fn needs_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    let (a, b) = (&old.daemon, &new.daemon);
    let changes = [
        ("daemon.runtime_dir", a.runtime_dir != b.runtime_dir),
        ("daemon.worker_dir", a.worker_dir != b.worker_dir),
        ("daemon.state_dir", a.state_dir != b.state_dir),
        ("daemon.attach_mode, daemon.attach_group", a.attach_socket != b.attach_socket),
        ("daemon.control_mode, daemon.control_group", a.control_socket != b.control_socket),
        ("ipc.backing", old.ipc.backing != new.ipc.backing),
    ];
    changes.into_iter().filter(|(_, changed)| *changed).map(|(key, _)| key).collect()
}
