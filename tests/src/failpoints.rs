//! Processes that die, stop or drain at a named step: the builds that have the steps, and the table that arms them.
//!
//! `scripts/build_failpoints.sh` makes those builds, into a folder beside the ordinary one; without them the scenarios
//! are skipped by name. Ordinary drivers beside an armed one have no steps at all: bystanders are what ships.
//! `ipc/src/failpoints.rs` says how a step is armed.

use crate::case::turn;
use crate::daemon::{Daemon, DaemonConfig};
use crate::driver::{Client, Driver};
use crate::places;
use crate::skip::skip;
use inferd_ipc::failpoints::{Action, Table};
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The environment variable that names the table.
pub const VARIABLE: &str = "INFERD_FAILPOINTS";

/// SIGKILL to whoever passes.
pub const DIES: Action = Action::Signal { signal: Signal::SIGKILL as i32, pid: 0 };
/// SIGSTOP to whoever passes.
pub const STOPS: Action = Action::Signal { signal: Signal::SIGSTOP as i32, pid: 0 };
/// What `abort()` ends in.
pub const ABORTS: Action = Action::Signal { signal: Signal::SIGABRT as i32, pid: 0 };

/// A daemon whose steps, and whose workers' and victims' steps, can be armed.
pub struct Armed {
    /// The daemon.
    pub daemon: Daemon,
    /// Its table.
    pub table: Table,
    dir: tempfile::TempDir,
}

/// Where the builds with steps lie.
#[must_use]
pub fn programs() -> Option<PathBuf> {
    let dir = places::bin_dir().parent()?.join("failpoints");
    (dir.join("inferd").exists() && dir.join("c/driver_c").exists()).then_some(dir)
}

/// Waits for the scenario's turn and runs `body`, unless the builds with steps are not there.
pub fn run(name: &str, body: impl FnOnce()) {
    if programs().is_none() || Client::C.program().is_none() {
        return skip(name, "the programs with failpoints are not built (sh scripts/build_failpoints.sh)");
    }
    let _turn = turn();
    body();
}

/// The steps that the sources name, by the line `failpoint!("NAME"` or `IFD_FAILPOINT("NAME"`.
///
/// # Panics
/// When the sources cannot be read.
#[must_use]
pub fn in_sources(folders: &[&str], marker: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut folders: Vec<PathBuf> = folders.iter().map(|f| places::repository().join(f)).collect();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())).flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let is_source = path.extension().is_some_and(|e| e == "rs" || e == "c");
            let text = if is_source { std::fs::read_to_string(&path).expect("a source file") } else { String::new() };
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            let found = code.filter_map(|line| line.split_once(marker)?.1.split('"').next());
            names.extend(found.map(str::to_owned));
        }
    }
    names
}

impl Armed {
    /// Writes a daemon down that is not started yet.
    ///
    /// # Panics
    /// When the builds with steps are not there: ask [`run`].
    #[must_use]
    pub fn prepare(config: DaemonConfig) -> Armed {
        let programs = programs().expect("asked before");
        let dir = tempfile::Builder::new().prefix("inferd-failpoints.").tempdir().expect("a temporary folder");
        let table = Table::create(&dir.path().join("table")).expect("a table");
        // The daemon hands its variables named INFERD_* on to its workers.
        let file = dir.path().join("table").display().to_string();
        let daemon = config.programs(programs).env(VARIABLE, &file).prepare();
        Armed { daemon, table, dir }
    }

    /// The same, started and ready.
    #[must_use]
    pub fn start(config: DaemonConfig) -> Armed {
        let mut armed = Armed::prepare(config);
        armed.daemon.start();
        armed
    }

    /// Arms the one step of a round, and forgets the one before.
    pub fn arm(&self, step: &str, action: Action, due: u64) {
        self.table.arm(0, step, action, due);
    }

    /// A client whose steps can be armed.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn victim(&self, client: Client) -> Driver {
        let dir = programs().expect("asked before");
        let program = match client {
            Client::Rust => dir.join("driver_rust"),
            Client::C => dir.join("c/driver_c"),
            Client::Python => return self.python(&dir),
        };
        Driver::start_with(&program, &self.daemon.runtime_dir(), VARIABLE, &self.dir.path().join("table"))
    }

    /// The Python client over the C library that has steps.
    fn python(&self, dir: &Path) -> Driver {
        let library = dir.join("c/libinferd.so");
        let program = places::python_driver().expect("asked before");
        let text = std::fs::read_to_string(&program).expect("a shell script");
        let ordinary = text.split("INFERD_LIBRARY='").nth(1).and_then(|rest| rest.split('\'').next());
        let text = text.replace(ordinary.expect("it names its library"), &library.display().to_string());
        let program = self.daemon.dir().join("driver_py");
        std::fs::write(&program, text).expect("our own folder");
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("our own file");
        Driver::start_with(&program, &self.daemon.runtime_dir(), VARIABLE, &self.dir.path().join("table"))
    }

    /// Waits until the armed step has acted; the process in which it did, and when.
    ///
    /// # Panics
    /// When no process passes it in time.
    pub fn acted(&self, step: &str, limit: Duration) -> (u32, u64) {
        crate::within(limit, &format!("somebody passes {step}"), || self.table.done(0).is_some());
        self.table.done(0).expect("seen above")
    }
}
