//! From a sound configuration to a turning loop, and back to nothing.
//!
//! The order matters: signals first, so that none is missed; the lock before anything that a running
//! daemon would notice; models before the loop, so that READY waits for them. Whatever fails before the
//! loop leaves nothing behind.

use super::poller::{Poller, Token};
use super::sessions::Registry;
use super::{Phase, Supervisor, Timer, reload};
use crate::config::{Config, ConfigError, Overrides};
use crate::logs::{LogLimiter, Logs};
use crate::staging::Stager;
use crate::store::Store;
use inferd_ipc::limits::{FAULT_LOGS_PER_S, SESSION_LOGS_PER_S};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::Instant;

/// What the daemon is started with.
#[derive(Debug)]
pub struct Options {
    /// The configuration, read and checked.
    pub config: Config,
    /// Where it is read again from on SIGHUP; none for the default place.
    pub config_path: Option<PathBuf>,
    /// What the command line says against it.
    pub overrides: Overrides,
    /// The running logs.
    pub logs: Logs,
}

/// Why the daemon did not start, or did not go on.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The runtime directory cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The sockets cannot be had.
    #[error(transparent)]
    Socket(#[from] super::SocketError),
    /// The kernel refused something that every daemon needs.
    #[error("{what}: {source}; raise the limits on descriptors and threads")]
    Kernel {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A configured model that is not optional cannot be served.
    #[error("{0}; correct it, or set `optional = true` to start without it")]
    Model(String),
}

/// Serves until SIGTERM, SIGINT or `inferctl drain`.
///
/// # Errors
/// [`StartError`]; nothing is left behind then.
pub fn run(options: Options) -> Result<(), StartError> {
    let mut supervisor = prepare(options)?;
    supervisor.turn_until_over().map_err(|errno| kernel("epoll")(errno.into()))?;
    tracing::info!("stopped");
    match supervisor.failure.take() {
        Some(what) => Err(StartError::Model(what)),
        None => Ok(()),
    }
}

fn kernel(what: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::Kernel { what, source }
}

fn prepare(options: Options) -> Result<Supervisor, StartError> {
    let started = Instant::now();
    let config = &options.config;
    let paths = crate::paths::runtime_dir(config.daemon.runtime_dir.as_deref())?;
    let signals = super::signals::Signals::install().map_err(kernel("signal handlers"))?;
    raise_descriptor_limit();
    let sockets = super::sockets::Sockets::open(&paths, &config.daemon.attach_socket, &config.daemon.control_socket)?;
    inferd_ipc::failpoint!("daemon.starting");
    let notify = super::notify::Notify::from_env();
    let launcher = Box::new(super::process::Spawner);
    let mut supervisor =
        assemble(options, Surroundings { started, runtime_dir: paths.dir, sockets, signals, notify, launcher })?;
    let swept = inferd_ipc::region::sweep(&supervisor.instance);
    if swept > 0 {
        tracing::info!(swept, "removed named segments of an earlier run");
    }
    supervisor.begin();
    Ok(supervisor)
}

/// What is not the supervisor's own: the process's, or that of whoever started it.
pub(super) struct Surroundings {
    pub started: Instant,
    pub runtime_dir: PathBuf,
    pub sockets: super::sockets::Sockets,
    pub signals: super::signals::Signals,
    pub notify: super::notify::Notify,
    pub launcher: Box<dyn super::process::Launcher>,
}

/// A supervisor that has not begun.
pub(super) fn assemble(options: Options, around: Surroundings) -> Result<Supervisor, StartError> {
    let Options { config, config_path, overrides, logs } = options;
    let Surroundings { started, runtime_dir, sockets, signals, notify, launcher } = around;
    let instance = instance(&runtime_dir);
    let stager = Stager::start().map_err(kernel("staging threads"))?;
    let state_dir = crate::paths::state_dir(config.daemon.state_dir.as_deref());
    let store = Store::open(&state_dir, reload::bounds(&config.daemon)).map_err(kernel("the store's thread"))?;
    let reaper = super::reaping::Reaper::start().map_err(kernel("the thread that reaps"))?;
    let poller: Poller<Timer> = Poller::new().map_err(|errno| kernel("epoll")(errno.into()))?;
    let added = poller
        .add(&sockets.attach, Token::AttachListener)
        .and_then(|()| poller.add(&sockets.control, Token::ControlListener))
        .and_then(|()| poller.add(&signals, Token::Signals))
        .and_then(|()| poller.add(stager.wake_fd(), Token::Staging))
        .and_then(|()| poller.add(store.wake_fd(), Token::Store));
    added.map_err(|errno| kernel("epoll")(errno.into()))?;
    let closing = super::closing::Closing::new(&poller).map_err(|errno| kernel("an eventfd")(errno.into()))?;
    Ok(Supervisor {
        worker_dir: crate::paths::worker_dir(config.daemon.worker_dir.as_deref()),
        sessions: Registry::new(reload::quota(&config.quota)),
        config,
        config_path,
        overrides,
        runtime_dir,
        instance,
        started,
        ready_after: None,
        phase: Phase::Starting,
        failure: None,
        poller,
        sockets,
        signals,
        launcher,
        notify,
        stager,
        staging: BTreeMap::new(),
        store,
        drifting: BTreeMap::new(),
        files: super::file_watch::Files::default(),
        memory_watched: false,
        room: crate::room::Room::find(),
        logs,
        connections: BTreeMap::new(),
        controls: BTreeMap::new(),
        closing,
        lingering: Vec::new(),
        lingering_armed: false,
        models: BTreeMap::new(),
        workers: BTreeMap::new(),
        reaper,
        validations: BTreeMap::new(),
        stats: BTreeMap::new(),
        watch_armed: false,
        begun: false,
        drained_at: None,
        faults: LogLimiter::of(FAULT_LOGS_PER_S),
        comings: LogLimiter::of(SESSION_LOGS_PER_S),
        last_id: 0,
        buffer: Vec::new(),
    })
}

impl Supervisor {
    pub(super) fn begin(&mut self) {
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"), pid = std::process::id(), dir = %self.runtime_dir.display(),
            models = self.config.models.len(), "starting"
        );
        self.notify.status("loading models");
        self.accept_attaches();
        if let Some(interval) = self.notify.watchdog {
            self.poller.after(interval, Timer::Watchdog);
        }
        let configs: Vec<_> = self.config.models.values().cloned().collect();
        for config in configs {
            let (name, optional) = (config.name.clone(), config.optional);
            if let Err(what) = self.add_model(config, super::operations::Kind::Start, None) {
                tracing::error!(model = %name, what, "not served");
                if !optional {
                    self.failure.get_or_insert(format!("model {name}: {what}"));
                    self.begin_drain("a model could not be loaded");
                }
            }
            if self.phase != Phase::Starting {
                return;
            }
        }
        self.begun = true;
        self.look_whether_ready();
    }
}

/// Each session takes five descriptors: the soft limit of 1024 is for programs that use `select`.
fn raise_descriptor_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// A name for this daemon's named segments: the same after a restart, another for another directory or user.
fn instance(dir: &std::path::Path) -> String {
    let uid = nix::unistd::geteuid().as_raw();
    let place = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    // FNV-1a, 64 bits: only to tell directories apart.
    let bytes = place.as_os_str().as_encoded_bytes().iter().copied().chain(uid.to_le_bytes());
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn an_instance_is_told_from_others_by_its_directory() {
        assert_eq!(instance(Path::new("/nowhere/a")), instance(Path::new("/nowhere/a")));
        assert_ne!(instance(Path::new("/nowhere/a")), instance(Path::new("/nowhere/b")));
        assert_eq!(instance(Path::new("/nowhere/a")).len(), 16);
    }
}
