//! The supervisor: one thread, one epoll set, and everything that may be slow.
//!
//! It owns the sockets, the sessions, the quotas and the lives of the workers; it never touches a tensor
//! and never waits for a peer. [`Supervisor`] is one value that events are applied to; each file of this
//! folder adds the events of its subject. What can be decided without the kernel (quotas, registry,
//! restarts, generations) is pure and tested on its own.

mod attach;
mod closing;
mod commands;
mod control;
mod drain;
mod drift;
mod dump;
mod event_loop;
mod file_watch;
mod gate;
mod history;
mod memory;
mod models;
mod notify;
mod operations;
mod poller;
mod process;
mod quota;
mod reaping;
mod recovery;
mod reload;
mod restarts;
mod session_regions;
mod sessions;
mod shadow;
mod signals;
mod sockets;
mod start;
mod status;
mod swap;
#[cfg(test)]
mod walk;
mod watch;
mod workers;

pub use sockets::SocketError;
pub use start::{Options, StartError, run};

use crate::config::{Config, Overrides};
use models::Model;
use poller::Poller;
use sessions::{Parts, Registry};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// CLOCK_MONOTONIC in nanoseconds.
pub(crate) fn clock_ns() -> u64 {
    inferd_ipc::sys::now_ns()
}

/// What the loop wakes up for without an event. Who gets one checks whether it still means anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Timer {
    /// An attach that is not ready by now is dropped.
    AttachGrace(u64),
    /// A worker that has not loaded by now is killed.
    Load(u64),
    /// A swap to this worker that is not over by now is ended by force.
    Swap { model: u64, to: u64 },
    /// Whether the old worker has let go, so that it can be granted again.
    Resume(u64),
    /// The model's next worker is due, if nothing else happened since `deaths`.
    Restart { model: u64, deaths: u64 },
    /// Requests of a model without a worker are answered.
    Sweep(u64),
    /// Steps are timed.
    Watch,
    /// A worker that was killed must be gone by now.
    Exit(u64),
    /// Regions of ended sessions are looked at.
    Lingering,
    /// Accepting again, after descriptors ran out.
    Accept,
    /// A shadow that is not over by now is ended, unless it moves.
    Shadow(u64),
    /// Hashes that did not come by now are not waited for.
    Drift(u64),
    /// A watched file is looked at.
    Settle(u64),
    /// Memory is looked at.
    Memory,
    /// Counters that did not come by now are left out.
    Stats(u64),
    /// Whether everybody has gone is looked at again.
    DrainLook,
    /// The drain is over.
    DrainEnd,
    /// The service manager's watchdog is due.
    Watchdog,
}

/// How far the daemon has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Starting,
    Ready,
    Draining,
    /// The loop ends.
    Over,
}

/// The whole daemon.
struct Supervisor {
    config: Config,
    config_path: Option<PathBuf>,
    overrides: Overrides,
    worker_dir: PathBuf,
    runtime_dir: PathBuf,
    /// Tells this daemon's named segments from those of others.
    instance: String,
    started: Instant,
    ready_after: Option<Duration>,
    phase: Phase,
    /// Why the start failed, if it did.
    failure: Option<String>,
    poller: Poller<Timer>,
    sockets: sockets::Sockets,
    signals: signals::Signals,
    launcher: Box<dyn process::Launcher>,
    notify: notify::Notify,
    stager: crate::staging::Stager,
    staging: BTreeMap<u64, operations::Staging>,
    store: crate::store::Store,
    drifting: BTreeMap<u64, drift::Waiting>,
    files: file_watch::Files,
    memory_watched: bool,
    room: crate::room::Room,
    logs: crate::logs::Logs,
    connections: BTreeMap<u64, attach::Connection>,
    closing: closing::Closing,
    controls: BTreeMap<u64, control::Control>,
    sessions: Registry<Parts>,
    /// Request regions (reopened) and reply regions of ended sessions that somebody may still hold.
    lingering: Vec<attach::Lingering>,
    lingering_armed: bool,
    models: BTreeMap<u64, Model>,
    workers: BTreeMap<u64, workers::Worker>,
    reaper: reaping::Reaper,
    validations: BTreeMap<u64, control::Asker>,
    stats: BTreeMap<u64, commands::StatsQuery>,
    watch_armed: bool,
    /// Every configured model has been entered.
    begun: bool,
    /// When the last worker was gone, in a drain.
    drained_at: Option<Instant>,
    faults: crate::logs::LogLimiter,
    /// Begins and ends of sessions.
    comings: crate::logs::LogLimiter,
    /// Numbers of connections, models, workers and jobs: never used twice.
    last_id: u64,
    /// Records are received here.
    buffer: Vec<u8>,
}

impl Supervisor {
    fn new_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    fn model_id(&self, name: &str) -> Option<u64> {
        self.models.iter().find(|(_, model)| model.name == name).map(|(id, _)| *id)
    }
}
