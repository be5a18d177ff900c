//! The configuration: `inferd.toml` and its drop-ins, read, checked and compared.
//!
//! A [`Config`] that exists is sound: every name, limit, affinity and group in it was checked. Drop-ins
//! (`inferd.d/*.toml`, by name) override single keys of `[daemon]`, `[ipc]`, `[worker]` and `[quota]`; a model may
//! stand in one file only. Whether the files of models exist is asked by [`Config::check`], because a
//! missing model fails that model, not the daemon's configuration.

mod change;
mod diff;
mod error;
mod files;
pub mod reader;
mod sections;
#[cfg(test)]
mod tests;

pub(crate) use change::check as check_shadow;
pub use change::{GateConfig, KeepPrevious, RecordConfig};
pub use diff::{Diff, ModelChange};
pub use error::{ConfigError, ConfigErrors, Place};
pub use files::config_file;
pub(crate) use sections::{backend, device, options, precision};

use inferd_ipc::layout::{Backing, Queue};
use inferd_ipc::limits;
use inferd_ipc::worker_records::{Confine, Device, Precision, Scheduling, Waiting};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What the command line says against the files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--runtime-dir`.
    pub runtime_dir: Option<PathBuf>,
    /// `--worker-dir`.
    pub worker_dir: Option<PathBuf>,
    /// `--state-dir`.
    pub state_dir: Option<PathBuf>,
}

/// The whole configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The files it was read from, in order; empty when there was none.
    pub files: Vec<PathBuf>,
    /// `[daemon]`.
    pub daemon: DaemonConfig,
    /// `[ipc]`.
    pub ipc: IpcConfig,
    /// `[worker]`.
    pub worker: WorkerConfig,
    /// `[quota]`.
    pub quota: QuotaConfig,
    /// `[models.NAME]`, by name.
    pub models: BTreeMap<String, ModelConfig>,
    /// Where each model stands, for messages.
    pub places: BTreeMap<String, Place>,
}

/// `[daemon]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DaemonConfig {
    /// Directory of the sockets, if the command line or a file names one; see `paths::runtime_dir`.
    pub runtime_dir: Option<PathBuf>,
    /// Directory of the worker binaries, if the command line or a file names one; see `paths::worker_dir`.
    pub worker_dir: Option<PathBuf>,
    /// Directory of store and history, if the command line or a file names one; see `paths::state_dir`.
    pub state_dir: Option<PathBuf>,
    /// Bytes that the store may hold.
    pub store_bytes: u64,
    /// Generations of one model that the store may hold.
    pub store_generations: usize,
    /// Draining ends after this time.
    pub drain_ms: u64,
    /// Mode and group of `attach.sock`.
    pub attach_socket: SocketConfig,
    /// Mode and group of `control.sock`.
    pub control_socket: SocketConfig,
    /// Whether peers with uid 65534 (unmapped in this user namespace) may attach.
    pub allow_unmapped_uids: bool,
}

/// A group that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketGroup {
    /// Its name.
    pub name: String,
    /// Its number.
    pub gid: u32,
}

/// Mode and group of a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketConfig {
    /// Permission bits.
    pub mode: u32,
    /// The group it is given to: the configured one; else `inferd` or `inferd-admin` where that exists and
    /// this process may give files to it; else none.
    pub group: Option<SocketGroup>,
}

/// `[ipc]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpcConfig {
    /// What regions are made of.
    pub backing: Backing,
    /// How executors sleep over their sessions.
    pub waiting: Waiting,
    /// Whether workers lock their memory.
    pub mlock: bool,
}

/// `[worker]`: what holds for every worker whose model does not say otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WorkerConfig {
    /// Whether workers are confined once their model is warm.
    pub confine: Confine,
}

/// `[quota]`: at most this much for one uid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuotaConfig {
    /// Sessions.
    pub sessions: usize,
    /// Connections to `attach.sock`.
    pub connections: usize,
    /// Attaches that have not reached READY.
    pub half_attaches: usize,
    /// Bytes of regions, those kept mapped after a session's end included.
    pub region_bytes: u64,
}

/// `[models.NAME]`.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Name.
    pub name: String,
    /// Absolute path of the model file, or of a folder with `model.toml`.
    pub path: PathBuf,
    /// Backend; chosen from manifest and file when absent.
    pub backend: Option<String>,
    /// Where it runs; the manifest's when absent.
    pub device: Option<Device>,
    /// What it computes in; the manifest's when absent.
    pub precision: Option<Precision>,
    /// Slots of a session at most.
    pub slots: u32,
    /// Queue of sessions that do not choose.
    pub queue: Queue,
    /// Executor affinity.
    pub cpu: Option<u32>,
    /// Executor scheduling.
    pub scheduling: Scheduling,
    /// Executor niceness.
    pub nice: Option<i32>,
    /// Spinning before sleep.
    pub spin_us: u64,
    /// Whether its workers are confined; as `[worker]` says when absent.
    pub confine: Option<Confine>,
    /// A step that takes longer counts as hung.
    pub max_run_ms: u64,
    /// A worker must report a loaded and warmed model within this time.
    pub load_ms: u64,
    /// Whether the daemon is ready without it.
    pub optional: bool,
    /// What is kept of the previous generation, for `rollback`.
    pub keep_previous: KeepPrevious,
    /// What a new generation must show before it serves.
    pub gate: GateConfig,
    /// What is recorded of its steps.
    pub record: RecordConfig,
    /// Whether a changed file is a reload.
    pub watch: bool,
    /// Options of the backend; they win over the manifest's.
    pub options: BTreeMap<String, String>,
}

impl ModelConfig {
    /// A model with everything at its default, as `inferctl load` makes one.
    #[must_use]
    pub fn new(name: &str, path: &Path) -> ModelConfig {
        ModelConfig {
            name: name.to_owned(),
            path: path.to_owned(),
            backend: None,
            device: None,
            precision: None,
            slots: limits::SLOTS_DEFAULT,
            queue: Queue::InOrder,
            cpu: None,
            scheduling: Scheduling::Other,
            nice: None,
            spin_us: limits::SPIN_US_DEFAULT,
            confine: None,
            max_run_ms: limits::RUN_MS_DEFAULT,
            load_ms: limits::LOAD_MS_DEFAULT,
            optional: false,
            keep_previous: KeepPrevious::Alive,
            gate: GateConfig::default(),
            record: RecordConfig::default(),
            watch: false,
            options: BTreeMap::new(),
        }
    }
}

impl Default for Config {
    fn default() -> Config {
        let socket = || SocketConfig { mode: sections::SOCKET_MODE_DEFAULT, group: None };
        Config {
            files: Vec::new(),
            daemon: DaemonConfig {
                runtime_dir: None,
                worker_dir: None,
                state_dir: None,
                store_bytes: limits::STORE_BYTES_DEFAULT,
                store_generations: limits::STORE_GENERATIONS_DEFAULT,
                drain_ms: limits::DRAIN_MS_DEFAULT,
                attach_socket: socket(),
                control_socket: socket(),
                allow_unmapped_uids: false,
            },
            ipc: IpcConfig { backing: Backing::Memfd, waiting: Waiting::Auto, mlock: false },
            worker: WorkerConfig::default(),
            quota: QuotaConfig {
                sessions: limits::SESSIONS_PER_UID_MAX,
                connections: limits::CONNECTIONS_PER_UID_MAX,
                half_attaches: limits::HALF_ATTACHES_PER_UID_MAX,
                region_bytes: limits::REGION_BYTES_PER_UID_MAX,
            },
            models: BTreeMap::new(),
            places: BTreeMap::new(),
        }
    }
}

impl Config {
    /// Reads the configuration: `path`, else the default file (`config_file`), and the drop-ins beside it.
    /// A default file that is absent is an empty one.
    ///
    /// # Errors
    /// Everything that is wrong, not only the first.
    pub fn load(path: Option<&Path>, overrides: &Overrides) -> Result<Config, ConfigErrors> {
        let (files, mut errors) = files::list(path);
        let mut documents = Vec::new();
        for file in files {
            match reader::Document::read(&file) {
                Ok(document) => documents.push(document),
                Err(error) => errors.push(error),
            }
        }
        let mut config = sections::read(documents, &mut errors);
        // Clients look at the same variable, so it wins over the files; the command line wins over both.
        let variable = crate::paths::variable;
        if let Some(dir) = overrides.runtime_dir.clone().or_else(|| variable("INFERD_RUNTIME_DIR")) {
            config.daemon.runtime_dir = Some(dir);
        }
        if let Some(dir) = overrides.worker_dir.clone().or_else(|| variable("INFERD_WORKER_DIR")) {
            config.daemon.worker_dir = Some(dir);
        }
        if let Some(dir) = overrides.state_dir.clone() {
            config.daemon.state_dir = Some(dir);
        }
        ConfigErrors::check(errors)?;
        Ok(config)
    }

    /// The configuration of these documents, each on top of those before it; neither environment nor command line counts.
    ///
    /// # Errors
    /// Everything that is wrong, not only the first.
    pub fn parse(documents: impl IntoIterator<Item = reader::Document>) -> Result<Config, ConfigErrors> {
        let mut errors = Vec::new();
        let config = sections::read(documents, &mut errors);
        ConfigErrors::check(errors)?;
        Ok(config)
    }

    /// What `--check-config` asks beyond [`Config::load`]: whether each model's files are there and readable,
    /// whether its manifest is sound, and whether there is a worker for its backend.
    ///
    /// # Errors
    /// Everything that is wrong, each at the model's place.
    pub fn check(&self) -> Result<(), ConfigErrors> {
        let mut errors = Vec::new();
        let worker_dir = crate::paths::worker_dir(self.daemon.worker_dir.as_deref());
        for (name, model) in &self.models {
            let found = match crate::manifest::resolve(&model.path, model.backend.as_deref()) {
                Ok(source) => {
                    let worker = crate::paths::worker_binary(&worker_dir, &source.backend);
                    errors.extend(source.check_files());
                    worker.err().into_iter().collect()
                }
                Err(found) => found.0,
            };
            let place = self.places.get(name);
            errors.extend(found.into_iter().map(|e| match place {
                Some(place) => e.or_at(place),
                None => e,
            }));
        }
        ConfigErrors::check(errors)
    }
}

/// Whether this may be a backend's name: 1 to 32 lower-case letters, digits, `-` or `_`. It names a worker binary.
#[must_use]
pub fn is_backend_name(name: &str) -> bool {
    let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
    (1..=32).contains(&name.len()) && name.chars().all(letter) && !name.starts_with('-')
}
