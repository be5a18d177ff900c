//! Where the daemon keeps its sockets and finds its workers.
//!
//! The rule for the runtime directory is part of the contract with clients (`docs/`): they look at the
//! same places. A directory that others may write to is refused, because whoever can rename a socket
//! can stand in for the daemon.

use crate::config::ConfigError;
use std::env;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Bytes of `sockaddr_un.sun_path`, with the terminating zero.
const SUN_PATH_BYTES: usize = 108;
/// Name of the socket for robot processes.
pub const ATTACH_SOCKET: &str = "attach.sock";
/// Name of the socket for operators.
pub const CONTROL_SOCKET: &str = "control.sock";
/// Name of the file that the running daemon holds a lock on.
pub const LOCK_FILE: &str = "inferd.lock";

/// The files of a runtime directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimePaths {
    /// The directory.
    pub dir: PathBuf,
    /// Socket for robot processes.
    pub attach: PathBuf,
    /// Socket for operators.
    pub control: PathBuf,
    /// Lock file of the running daemon.
    pub lock: PathBuf,
}

impl RuntimePaths {
    /// The files of this directory; nothing is created.
    ///
    /// # Errors
    /// A relative path, or one too long for a socket's address.
    pub fn new(dir: &Path) -> Result<RuntimePaths, ConfigError> {
        if !dir.is_absolute() {
            let what = format!("the runtime directory {} is not an absolute path", dir.display());
            return Err(ConfigError::nowhere(what, "write the whole path from /"));
        }
        let control = dir.join(CONTROL_SOCKET);
        let length = control.as_os_str().len();
        if length >= SUN_PATH_BYTES {
            let what = format!(
                "the runtime directory {} is too long: its socket's path takes {length} bytes of {}",
                dir.display(),
                SUN_PATH_BYTES - 1
            );
            let remedy = format!("choose a shorter one, {} bytes at most", SUN_PATH_BYTES - 2 - CONTROL_SOCKET.len());
            return Err(ConfigError::nowhere(what, remedy));
        }
        Ok(RuntimePaths { attach: dir.join(ATTACH_SOCKET), control, lock: dir.join(LOCK_FILE), dir: dir.to_owned() })
    }
}

/// An environment variable that is set and not empty.
pub(crate) fn variable(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from)
}

/// The runtime directory: the configured one (`DaemonConfig::runtime_dir`, which holds the command line's), else
/// `$INFERD_RUNTIME_DIR`, `$RUNTIME_DIRECTORY` (systemd), `$XDG_RUNTIME_DIR/inferd`, `/run/inferd`.
///
/// # Errors
/// A relative path, or one too long for a socket's address.
pub fn runtime_dir(configured: Option<&Path>) -> Result<RuntimePaths, ConfigError> {
    RuntimePaths::new(&choose_runtime_dir(configured, variable))
}

fn choose_runtime_dir(configured: Option<&Path>, variable: impl Fn(&str) -> Option<PathBuf>) -> PathBuf {
    configured
        .map(Path::to_path_buf)
        .or_else(|| variable("INFERD_RUNTIME_DIR"))
        .or_else(|| variable("RUNTIME_DIRECTORY").map(first))
        .or_else(|| variable("XDG_RUNTIME_DIR").map(|dir| dir.join("inferd")))
        .unwrap_or_else(|| PathBuf::from("/run/inferd"))
}

/// The state directory: the configured one (`DaemonConfig::state_dir`, which holds the command line's), else
/// `$STATE_DIRECTORY` (systemd), `$XDG_STATE_HOME/inferd`, `/var/lib/inferd`.
#[must_use]
pub fn state_dir(configured: Option<&Path>) -> PathBuf {
    choose_state_dir(configured, variable)
}

fn choose_state_dir(configured: Option<&Path>, variable: impl Fn(&str) -> Option<PathBuf>) -> PathBuf {
    configured
        .map(Path::to_path_buf)
        .or_else(|| variable("STATE_DIRECTORY").map(first))
        .or_else(|| variable("XDG_STATE_HOME").map(|dir| dir.join("inferd")))
        .unwrap_or_else(|| PathBuf::from("/var/lib/inferd"))
}

/// systemd separates several directories by colons; ours is the first.
fn first(dirs: PathBuf) -> PathBuf {
    let text = dirs.to_string_lossy().into_owned();
    PathBuf::from(text.split(':').next().unwrap_or_default())
}

/// Creates the runtime directory, or checks the one that is there. `shared`: other users connect to the sockets
/// (mode 0755, the sockets' own modes decide); else it is private (0700).
///
/// # Errors
/// It cannot be created, is no directory, or others may write to it.
pub fn create_runtime_dir(paths: &RuntimePaths, shared: bool) -> Result<(), ConfigError> {
    let dir = &paths.dir;
    let name = dir.display();
    let mode = if shared { 0o755 } else { 0o700 };
    let other = "choose another with --runtime-dir or INFERD_RUNTIME_DIR";
    match std::fs::DirBuilder::new().mode(mode).create(dir) {
        Ok(()) => return Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(e) => {
            let what = format!("the runtime directory {name} cannot be created: {e}");
            let parent = dir.parent().unwrap_or(Path::new("/")).display();
            let remedy = match e.kind() {
                std::io::ErrorKind::NotFound => format!("create {parent} first, or {other}"),
                _ => format!("let the user that runs inferd write to {parent}, or {other}"),
            };
            return Err(ConfigError::nowhere(what, remedy));
        }
    }
    let unusable = |what: String, remedy: String| Err(ConfigError::nowhere(what, remedy));
    let meta = match std::fs::metadata(dir) {
        Ok(meta) => meta,
        Err(e) => return unusable(format!("the runtime directory {name} cannot be read: {e}"), other.to_owned()),
    };
    if !meta.is_dir() {
        return unusable(format!("{name} is not a directory"), format!("remove it, or {other}"));
    }
    if meta.mode() & 0o002 != 0 {
        let what = format!("everybody may write to the runtime directory {name}, and so replace its sockets");
        return unusable(what, format!("chmod o-w {name}, or {other}"));
    }
    if let Err(e) = nix::unistd::access(dir, nix::unistd::AccessFlags::W_OK | nix::unistd::AccessFlags::X_OK) {
        let what = format!("sockets cannot be created in the runtime directory {name}: {}", e.desc());
        return unusable(what, format!("give it to the user that runs inferd, or {other}"));
    }
    Ok(())
}

/// The directory of the worker binaries: the configured one, else `$INFERD_WORKER_DIR`, else the directory of the
/// running binary if it holds a worker, else `../libexec/inferd` beside that.
#[must_use]
pub fn worker_dir(configured: Option<&Path>) -> PathBuf {
    if let Some(dir) = configured.map(Path::to_path_buf).or_else(|| variable("INFERD_WORKER_DIR")) {
        return dir;
    }
    let exe = env::current_exe().unwrap_or_default();
    let beside = exe.parent().unwrap_or(Path::new("/"));
    if beside.join("inferd-worker").exists() {
        return beside.to_owned();
    }
    beside.parent().unwrap_or(Path::new("/")).join("libexec/inferd")
}

/// Backends whose workers stand on a library that the general worker does not carry.
const APART: [&str; 2] = ["torch", "ort"];

/// The worker binary for a backend: `inferd-worker-BACKEND` if it is there, else `inferd-worker`.
///
/// # Errors
/// There is neither.
pub fn worker_binary(dir: &Path, backend: &str) -> Result<PathBuf, ConfigError> {
    let own = dir.join(format!("inferd-worker-{backend}"));
    let general = dir.join("inferd-worker");
    let executable = |file: &Path| nix::unistd::access(file, nix::unistd::AccessFlags::X_OK).is_ok() && file.is_file();
    if executable(&own) {
        return Ok(own);
    }
    if APART.contains(&backend) {
        let what = format!("no worker for backend {backend:?}: {} is not there", own.display());
        let remedy = format!("build it (make {backend}), or install the package inferd-{backend}");
        return Err(ConfigError::nowhere(what, remedy));
    }
    if executable(&general) {
        return Ok(general);
    }
    let what = format!("no worker for backend {backend:?}: neither {} nor {}", own.display(), general.display());
    let remedy = "install one there, or name its folder with --worker-dir or INFERD_WORKER_DIR";
    Err(ConfigError::nowhere(what, remedy))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_runtime_directory_is_the_first_that_is_named() {
        let env = |name: &str| -> Option<PathBuf> {
            match name {
                "RUNTIME_DIRECTORY" => Some("/run/inferd:/run/other".into()),
                "XDG_RUNTIME_DIR" => Some("/run/user/7".into()),
                _ => None,
            }
        };
        assert_eq!(choose_runtime_dir(Some(Path::new("/a")), env), Path::new("/a"));
        assert_eq!(choose_runtime_dir(None, env), Path::new("/run/inferd"));
        let user = |name: &str| (name == "XDG_RUNTIME_DIR").then(|| PathBuf::from("/run/user/7"));
        assert_eq!(choose_runtime_dir(None, user), Path::new("/run/user/7/inferd"));
        assert_eq!(choose_runtime_dir(None, |_: &str| None), Path::new("/run/inferd"));
    }

    #[test]
    fn the_state_directory_is_the_first_that_is_named() {
        let env = |name: &str| (name == "STATE_DIRECTORY").then(|| PathBuf::from("/var/lib/inferd:/var/lib/other"));
        assert_eq!(choose_state_dir(Some(Path::new("/a")), env), Path::new("/a"));
        assert_eq!(choose_state_dir(None, env), Path::new("/var/lib/inferd"));
        let user = |name: &str| (name == "XDG_STATE_HOME").then(|| PathBuf::from("/home/a/.local/state"));
        assert_eq!(choose_state_dir(None, user), Path::new("/home/a/.local/state/inferd"));
        assert_eq!(choose_state_dir(None, |_: &str| None), Path::new("/var/lib/inferd"));
    }

    #[test]
    fn a_directory_too_long_for_a_socket_is_refused_with_its_limit() {
        let longest = format!("/{}", "d".repeat(SUN_PATH_BYTES - 3 - CONTROL_SOCKET.len()));
        let paths = RuntimePaths::new(Path::new(&longest)).expect("fits");
        assert_eq!(paths.control.as_os_str().len(), SUN_PATH_BYTES - 1);
        let error = RuntimePaths::new(Path::new(&format!("{longest}d"))).expect_err("one byte too many");
        assert!(error.to_string().contains(&format!("{} bytes at most", longest.len())), "{error}");
        assert!(RuntimePaths::new(Path::new("run")).is_err());
    }

    #[test]
    fn a_directory_is_created_with_its_mode_and_a_writable_one_refused() {
        let root = tempfile::tempdir().expect("a folder");
        let paths = RuntimePaths::new(&root.path().join("d")).expect("short enough");
        create_runtime_dir(&paths, false).expect("created");
        assert_eq!(paths.dir.metadata().expect("exists").mode() & 0o777, 0o700);
        create_runtime_dir(&paths, true).expect("kept as it is");
        std::fs::set_permissions(&paths.dir, std::fs::Permissions::from_mode(0o777)).expect("chmod");
        let error = create_runtime_dir(&paths, true).expect_err("open to everybody");
        assert!(error.remedy.contains("chmod o-w"), "{error}");
        let paths = RuntimePaths::new(&root.path().join("x/y")).expect("short enough");
        assert!(create_runtime_dir(&paths, true).expect_err("no parent").remedy.contains("create"));
    }

    #[test]
    fn a_backend_s_own_worker_comes_before_the_general_one() {
        let root = tempfile::tempdir().expect("a folder");
        let error = worker_binary(root.path(), "torch").expect_err("nothing there");
        assert!(error.what.contains("inferd-worker-torch") && error.remedy.contains("make torch"), "{error}");
        for name in ["inferd-worker", "inferd-worker-torch"] {
            std::fs::write(root.path().join(name), "#!/bin/sh\n").expect("written");
            std::fs::set_permissions(root.path().join(name), std::fs::Permissions::from_mode(0o755)).expect("chmod");
        }
        assert!(worker_binary(root.path(), "torch").expect("found").ends_with("inferd-worker-torch"));
        assert!(worker_binary(root.path(), "tract").expect("found").ends_with("inferd-worker"));
    }
}
