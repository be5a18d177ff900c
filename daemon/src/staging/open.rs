//! Opens files that may be hostile in kind: never blocks on a pipe, never leaves a folder by a link.

use super::{StageError, StageFile};
use crate::manifest::is_relative_below;
use inferd_ipc::limits;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::{Mode, SFlag, fstat, stat};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};

/// O_NONBLOCK: opening a pipe, or a file under a lease, returns instead of waiting.
const READ: OFlag = OFlag::O_RDONLY.union(OFlag::O_CLOEXEC).union(OFlag::O_NONBLOCK).union(OFlag::O_NOCTTY);
const FOLDER: OFlag = OFlag::O_PATH.union(OFlag::O_CLOEXEC).union(OFlag::O_DIRECTORY);

fn refusal(doing: &'static str, errno: Errno) -> StageError {
    match errno {
        Errno::ENOENT => StageError::Missing,
        Errno::EACCES | Errno::EPERM => StageError::Forbidden,
        Errno::EXDEV | Errno::ELOOP => StageError::Escapes,
        Errno::ENOTDIR | Errno::ENXIO => StageError::NotAFile,
        Errno::ENAMETOOLONG => StageError::BadName,
        errno => StageError::System { doing, errno },
    }
}

/// Opens a file for reading.
pub(super) fn file(file: &StageFile) -> Result<File, StageError> {
    match file {
        StageFile::Path { path: at } => path(at),
        StageFile::Below { folder, name } => below_with(folder, name, true),
    }
}

/// Opens an operator's path; links are followed.
fn path(path: &Path) -> Result<File, StageError> {
    // Devices may do things when they are opened. The check that counts comes after opening.
    is_regular(stat(path).map_err(|e| refusal("stat", e))?.st_mode)?;
    checked(open(path, READ, Mode::empty()).map_err(|e| refusal("open", e))?)
}

/// Opens a name below a folder. `modern`: with `openat2`, which allows links that stay below; kernels before 5.6 and some sandboxes lack it.
pub(super) fn below_with(folder: &Path, name: &str, modern: bool) -> Result<File, StageError> {
    if !is_relative_below(name) {
        return Err(StageError::BadName);
    }
    let folder = openat(AT_FDCWD, folder, FOLDER, Mode::empty()).map_err(|e| refusal("open folder", e))?;
    if modern {
        let how = OpenHow::new().resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        // O_PATH first, so that a device or a pipe is refused before it is really opened.
        match openat2(&folder, name, how.flags(OFlag::O_PATH | OFlag::O_CLOEXEC)) {
            Ok(found) => {
                is_regular(fstat(&found).map_err(|e| refusal("fstat", e))?.st_mode)?;
                return checked(openat2(&folder, name, how.flags(READ)).map_err(|e| refusal("open", e))?);
            }
            // EAGAIN: a rename raced with the look-up, which part by part does not care about.
            Err(Errno::ENOSYS | Errno::EPERM | Errno::EINVAL | Errno::EAGAIN) => {}
            Err(errno) => return Err(refusal("open", errno)),
        }
    }
    by_component(folder, Path::new(name))
}

/// Part by part, following no link at all.
fn by_component(folder: OwnedFd, name: &Path) -> Result<File, StageError> {
    let mut at = folder;
    let mut parts = name.components().peekable();
    while let Some(Component::Normal(part)) = parts.next() {
        if parts.peek().is_none() {
            let found = openat(&at, part, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
                .map_err(|e| refusal("open", e))?;
            let mode = fstat(&found).map_err(|e| refusal("fstat", e))?.st_mode;
            if is_kind(mode, SFlag::S_IFLNK) {
                return Err(StageError::Escapes);
            }
            is_regular(mode)?;
            return checked(
                openat(&at, part, READ | OFlag::O_NOFOLLOW, Mode::empty()).map_err(|e| refusal("open", e))?,
            );
        }
        at = match openat(&at, part, FOLDER | OFlag::O_NOFOLLOW, Mode::empty()) {
            Ok(next) => next,
            // With O_DIRECTORY a link reads as "not a directory".
            Err(Errno::ENOTDIR) if is_link(&at, part) => return Err(StageError::Escapes),
            Err(errno) => return Err(refusal("open folder", errno)),
        };
    }
    Err(StageError::BadName)
}

fn is_link(at: &OwnedFd, part: &std::ffi::OsStr) -> bool {
    let found = openat(at.as_fd(), part, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty());
    found.and_then(fstat).is_ok_and(|s| is_kind(s.st_mode, SFlag::S_IFLNK))
}

fn is_kind(mode: u32, kind: SFlag) -> bool {
    SFlag::from_bits_truncate(mode) & SFlag::S_IFMT == kind
}

fn is_regular(mode: u32) -> Result<(), StageError> {
    if is_kind(mode, SFlag::S_IFREG) { Ok(()) } else { Err(StageError::NotAFile) }
}

/// The checks that count: on the descriptor that is read.
fn checked(fd: OwnedFd) -> Result<File, StageError> {
    let meta = fstat(&fd).map_err(|e| refusal("fstat", e))?;
    is_regular(meta.st_mode)?;
    match u64::try_from(meta.st_size).unwrap_or(0) {
        0 => Err(StageError::Empty),
        bytes if bytes > limits::MODEL_FILE_BYTES_MAX => Err(StageError::TooLarge { bytes }),
        _ => Ok(File::from(fd)),
    }
}

/// Whether a file could be staged, without reading it.
///
/// # Errors
/// [`StageError`].
pub fn probe(of: &StageFile) -> Result<(), StageError> {
    file(of).map(|_| ())
}
