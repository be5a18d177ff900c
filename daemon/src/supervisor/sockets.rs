//! The two listening sockets and the lock that keeps a second daemon away from them.
//!
//! Sockets come from systemd (`LISTEN_FDS`; told apart by their type) or are bound in the runtime
//! directory. The lock is taken first, so a socket file that is found afterwards is a leftover and may
//! go. What this daemon created it removes when it ends: sockets, lock file, and the directory.

use crate::config::{ConfigError, SocketConfig};
use crate::paths::{RuntimePaths, create_runtime_dir};
use inferd_ipc::limits::SOCKET_BACKLOG;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, Flock, FlockArg, OFlag, fcntl};
use nix::libc;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, getsockopt, listen, setsockopt, socket, sockopt,
};
use nix::sys::stat::{Mode, umask};
use nix::unistd::Gid;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Why the daemon cannot listen. The operator acts.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another daemon holds the directory.
    #[error("another inferd (pid {pid}) serves {dir}; stop it, or give this one another --runtime-dir")]
    SecondDaemon {
        /// The runtime directory.
        dir: PathBuf,
        /// What the lock file says.
        pid: String,
    },
    /// Something that is no socket is in the way.
    #[error("{0} is in the way and is not a socket; move it away, or choose another --runtime-dir")]
    NotASocket(PathBuf),
    /// The runtime directory cannot be used.
    #[error(transparent)]
    Dir(#[from] ConfigError),
    /// The lock or a socket cannot be made.
    #[error("{what} {path}: {source}; {remedy}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
        /// What helps.
        remedy: &'static str,
    },
    /// systemd passed a control socket that belongs to the robots' group.
    #[error(
        "{path} belongs to the group {group}, so every robot could unload models; \
         run `systemd-tmpfiles --create`, then restart inferd-control.socket"
    )]
    Robots {
        /// The control socket.
        path: PathBuf,
        /// Who may attach.
        group: String,
    },
    /// systemd passed something else.
    #[error(
        "descriptor {0} from LISTEN_FDS is neither a SOCK_SEQPACKET nor a SOCK_STREAM socket; check the .socket units"
    )]
    Passed(i32),
}

/// Both listeners.
pub struct Sockets {
    /// SOCK_SEQPACKET, for robot processes.
    pub attach: UnixListener,
    /// SOCK_STREAM, for operators.
    pub control: UnixListener,
    attach_passed: bool,
    lock: Option<Flock<File>>,
    lock_path: PathBuf,
    created: Vec<PathBuf>,
    dir_created: Option<PathBuf>,
}

impl Sockets {
    /// Takes the lock, then passed sockets, then binds what was not passed.
    ///
    /// # Errors
    /// [`SocketError`].
    pub fn open(paths: &RuntimePaths, attach: &SocketConfig, control: &SocketConfig) -> Result<Sockets, SocketError> {
        let dir_created = (!paths.dir.exists()).then(|| paths.dir.clone());
        let shared = [attach, control].iter().any(|socket| socket.group.is_some() || socket.mode & 0o006 != 0);
        create_runtime_dir(paths, shared)?;
        let lock = take_lock(paths)?;
        let (mut passed_attach, mut passed_control) = passed()?;
        let attach_passed = passed_attach.is_some();
        if passed_control.is_some() {
            keep_robots_out(paths, attach, control)?;
        }
        let control = &apart_from_robots(control, attach, nix::unistd::getegid());
        let mut created = Vec::new();
        let mut listener = |passed: &mut Option<OwnedFd>, kind, path: &Path, access| -> Result<OwnedFd, SocketError> {
            if let Some(fd) = passed.take() {
                return Ok(fd);
            }
            let fd = bind_at(path, kind, access)?;
            created.push(path.to_owned());
            Ok(fd)
        };
        let attach = listener(&mut passed_attach, SockType::SeqPacket, &paths.attach, attach)?;
        let control = listener(&mut passed_control, SockType::Stream, &paths.control, control)?;
        refuse_descriptors(&attach);
        refuse_descriptors(&control);
        let (attach, control) = (UnixListener::from(attach), UnixListener::from(control));
        Ok(Sockets {
            attach,
            control,
            attach_passed,
            lock: Some(lock),
            lock_path: paths.lock.clone(),
            created,
            dir_created,
        })
    }
}

#[cfg(test)]
impl Sockets {
    /// Listeners at addresses that the kernel chose, for a test that shares its process: without a lock, a directory or a
    /// change of the umask.
    pub fn nowhere() -> nix::Result<Sockets> {
        let listener = |kind| -> nix::Result<UnixListener> {
            let fd = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
            bind(fd.as_raw_fd(), &UnixAddr::new_unnamed())?;
            listen(&fd, Backlog::new(SOCKET_BACKLOG)?)?;
            Ok(UnixListener::from(fd))
        };
        Ok(Sockets {
            attach: listener(SockType::SeqPacket)?,
            control: listener(SockType::Stream)?,
            attach_passed: false,
            lock: None,
            lock_path: PathBuf::new(),
            created: Vec::new(),
            dir_created: None,
        })
    }
}

impl Sockets {
    /// Whether systemd holds the attach socket, so that clients can wait in it while no daemon runs.
    #[must_use]
    pub fn is_attach_passed(&self) -> bool {
        self.attach_passed
    }
}

/// Without a group of its own, the control socket would belong to the daemon's: where that is the robots' group, nobody but
/// the daemon's own user operates it.
fn apart_from_robots(control: &SocketConfig, attach: &SocketConfig, ours: Gid) -> SocketConfig {
    let shared = control.group.is_none() && attach.group.as_ref().is_some_and(|robots| robots.gid == ours.as_raw());
    SocketConfig { mode: if shared { control.mode & 0o700 } else { control.mode }, group: control.group.clone() }
}

/// systemd gives a runtime directory that it finds in other hands to the service, with everything inside: a control
/// socket would then belong to the robots' group. Modes and groups are the .socket units' otherwise.
fn keep_robots_out(paths: &RuntimePaths, attach: &SocketConfig, control: &SocketConfig) -> Result<(), SocketError> {
    let (Some(robots), Some(_)) = (&attach.group, &control.group) else { return Ok(()) };
    match fs::metadata(&paths.control) {
        Ok(found) if found.gid() == robots.gid && control.group != attach.group => {
            let (path, group) = (paths.control.clone(), robots.name.clone());
            give_access(&paths.control, control).map_err(|_| SocketError::Robots { path, group })
        }
        _ => Ok(()),
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        for path in &self.created {
            let _ = fs::remove_file(path);
        }
        if let Some(lock) = self.lock.take() {
            // Still locked: whoever opened it in between finds that the path no longer leads to its file.
            let _ = fs::remove_file(&self.lock_path);
            drop(lock);
        }
        if let Some(dir) = &self.dir_created {
            let _ = fs::remove_dir(dir);
        }
    }
}

/// `SO_PASSRIGHTS`, Linux 6.16: descriptors that a peer sends are refused where it sends them.
const SO_PASSRIGHTS: libc::c_int = 83;

#[derive(Debug, Clone, Copy)]
struct PassRights;
nix::setsockopt_impl!(PassRights, libc::SOL_SOCKET, SO_PASSRIGHTS, bool, sockopt::SetBool);

/// Asks the kernel to refuse descriptors on this socket; older kernels do not know how, and receivers look themselves
/// (`INFERD_DISABLE=passrights` makes this one as old). Says whether it does.
pub fn refuse_descriptors(socket: &impl AsFd) -> bool {
    let disabled = std::env::var("INFERD_DISABLE").is_ok_and(|names| names.split(',').any(|name| name == "passrights"));
    !disabled && setsockopt(socket, PassRights, &false).is_ok()
}

fn io_error<'a>(what: &'static str, path: &'a Path, remedy: &'static str) -> impl Fn(io::Error) -> SocketError + 'a {
    move |source| SocketError::Io { what, path: path.to_owned(), source, remedy }
}

fn take_lock(paths: &RuntimePaths) -> Result<Flock<File>, SocketError> {
    let path = paths.lock.clone();
    let remedy = "give this user rights there, or choose another --runtime-dir";
    loop {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&path).map_err(io_error("cannot open the lock", &path, remedy))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut lock) => {
                let ours = lock.metadata().map(|m| m.ino()).ok();
                if ours.is_none() || ours != fs::metadata(&path).map(|m| m.ino()).ok() {
                    continue;
                }
                let written = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
                written.map_err(io_error("cannot write the lock", &path, remedy))?;
                return Ok(lock);
            }
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut pid = String::new();
                let _ = (&mut file).take(32).read_to_string(&mut pid);
                return Err(SocketError::SecondDaemon { dir: paths.dir.clone(), pid: pid.trim().to_owned() });
            }
            Err((_, errno)) => return Err(io_error("cannot lock", &path, remedy)(errno.into())),
        }
    }
}

/// Sockets from systemd: attach and control.
fn passed() -> Result<(Option<OwnedFd>, Option<OwnedFd>), SocketError> {
    let (mut attach, mut control) = (None, None);
    for (_, fd) in sd_listen_fds::get().unwrap_or_default() {
        let fd = fd.into_std();
        let number = fd.as_raw_fd();
        let refused = |_| SocketError::Passed(number);
        fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(refused)?;
        fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(refused)?;
        match getsockopt(&fd, sockopt::SockType).map_err(refused)? {
            SockType::SeqPacket => attach = Some(fd),
            SockType::Stream => control = Some(fd),
            _ => return Err(SocketError::Passed(number)),
        }
    }
    Ok((attach, control))
}

fn bind_at(path: &Path, kind: SockType, access: &SocketConfig) -> Result<OwnedFd, SocketError> {
    let remedy = "choose a shorter or writable --runtime-dir";
    let failed = |errno: Errno| io_error("cannot listen at", path, remedy)(errno.into());
    match fs::symlink_metadata(path) {
        // The lock is ours: nobody listens there any more.
        Ok(found) if found.file_type().is_socket() => {
            fs::remove_file(path).map_err(io_error("cannot remove the stale socket", path, "remove it by hand"))?;
            tracing::info!(path = %path.display(), "removed a stale socket");
        }
        Ok(_) => return Err(SocketError::NotASocket(path.to_owned())),
        Err(_) => {}
    }
    let address = UnixAddr::new(path).map_err(failed)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, kind, flags, None).map_err(failed)?;
    let before = umask(Mode::from_bits_truncate(0o177));
    let bound = bind(fd.as_raw_fd(), &address);
    umask(before);
    bound.map_err(failed)?;
    give_access(path, access)?;
    let backlog = Backlog::new(SOCKET_BACKLOG).map_err(failed)?;
    listen(&fd, backlog).map_err(failed)?;
    Ok(fd)
}

fn give_access(path: &Path, access: &SocketConfig) -> Result<(), SocketError> {
    if let Some(group) = &access.group {
        let remedy = "make this user a member of the group, or configure another";
        let given = nix::unistd::chown(path, None, Some(Gid::from_raw(group.gid)));
        given.map_err(|errno| io_error("cannot give the configured group to", path, remedy)(errno.into()))?;
    }
    let mode = fs::Permissions::from_mode(access.mode);
    fs::set_permissions(path, mode).map_err(io_error("cannot set the mode of", path, "check the runtime directory"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access() -> SocketConfig {
        SocketConfig { mode: 0o660, group: None }
    }

    fn open(dir: &Path) -> Result<Sockets, SocketError> {
        Sockets::open(&RuntimePaths::new(dir).expect("short"), &access(), &access())
    }

    #[test]
    fn a_second_daemon_is_refused_and_a_stale_socket_is_replaced() {
        let parent = tempfile::tempdir().expect("tempdir");
        let dir = parent.path().join("inferd");
        let first = open(&dir).expect("first daemon");
        assert!(
            matches!(open(&dir), Err(SocketError::SecondDaemon { pid, .. }) if pid == std::process::id().to_string())
        );
        assert_eq!(fs::metadata(dir.join("attach.sock")).expect("socket").mode() & 0o777, 0o660);
        drop(first);
        assert!(!dir.exists(), "a directory that the daemon made is removed at its end");
        fs::create_dir(&dir).expect("mkdir");
        drop(std::os::unix::net::UnixListener::bind(dir.join("attach.sock")).expect("stale"));
        drop(open(&dir).expect("a stale socket is no obstacle"));
        assert!(dir.exists(), "a directory that was there stays");
    }

    #[test]
    fn a_control_socket_without_a_group_of_its_own_is_closed_to_the_robots_group() {
        let robots = crate::config::SocketGroup { name: "inferd".to_owned(), gid: 7 };
        let attach = SocketConfig { mode: 0o660, group: Some(robots) };
        assert_eq!(apart_from_robots(&access(), &attach, Gid::from_raw(7)).mode, 0o600);
        assert_eq!(apart_from_robots(&access(), &attach, Gid::from_raw(8)).mode, 0o660);
    }

    #[test]
    fn a_file_in_the_way_is_named_and_left_alone() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("attach.sock");
        fs::write(&path, "precious").expect("write");
        let error = open(dir.path()).err().expect("refused");
        assert!(error.to_string().contains("attach.sock") && error.to_string().contains("not a socket"), "{error}");
        assert_eq!(fs::read(&path).expect("still there"), b"precious");
    }
}
