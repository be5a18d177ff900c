//! Copies an open file into a sealed memfd and hashes it on the way.

use super::StageError;
use inferd_ipc::limits::COPY_CHUNK_BYTES;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::{FileStat, Mode, fchmod, fstat};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// `MFD_NOEXEC_SEAL` (kernel 6.3), which nix does not name.
const MFD_NOEXEC_SEAL: u32 = 8;

/// A file in memory that nobody can change any more.
#[derive(Debug)]
pub struct Staged {
    /// The sealed memfd.
    pub fd: OwnedFd,
    /// SHA-256 of its bytes, in lower-case hexadecimal.
    pub sha256: String,
    /// Its length.
    pub bytes: u64,
}

/// Copies `from`, which must not change meanwhile; `name` labels the memfd.
pub(super) fn into_memory(from: &mut File, name: &str, cancelled: &AtomicBool) -> Result<Staged, StageError> {
    let before = fstat(&*from).map_err(|errno| StageError::System { doing: "fstat", errno })?;
    let bytes = u64::try_from(before.st_size).unwrap_or(0);
    let mut to = File::from(memory(name, true)?);
    // Full memory is found before reading gigabytes; where fallocate is not to be had, writing finds it.
    if crate::room::Room::find().bytes().is_some_and(|free| bytes > free) {
        return Err(StageError::NoMemory { bytes });
    }
    match fallocate(&to, FallocateFlags::empty(), 0, before.st_size) {
        Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINTR) => {}
        Err(errno) => return Err(full(errno, bytes, "fallocate")),
    }
    let (sha256, copied) = copy(from, &mut to, bytes, cancelled)?;
    let after = fstat(&*from).map_err(|errno| StageError::System { doing: "fstat", errno })?;
    if copied != bytes || stamp(&before) != stamp(&after) {
        return Err(StageError::Changed);
    }
    // The position travels with the descriptor: a reader begins at the beginning.
    to.rewind().map_err(|e| StageError::System { doing: "seek", errno: errno_of(&e) })?;
    Ok(Staged { fd: seal(to.into())?, sha256, bytes })
}

/// A text as a sealed memfd.
pub(super) fn text(name: &str, text: &str) -> Result<OwnedFd, StageError> {
    let mut to = File::from(memory(name, true)?);
    to.write_all(text.as_bytes()).map_err(|e| full(errno_of(&e), text.len() as u64, "write"))?;
    seal(to.into())
}

/// The hash of a file that must not change meanwhile.
pub(super) fn hash(from: &mut File) -> Result<String, StageError> {
    let stat = |from: &File| fstat(from).map_err(|errno| StageError::System { doing: "fstat", errno });
    let before = stat(from)?;
    let (mut chunk, mut hash) = (vec![0; COPY_CHUNK_BYTES], Sha256::new());
    loop {
        match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(got) => hash.update(&chunk[..got]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(StageError::System { doing: "read", errno: errno_of(&e) }),
        }
    }
    if stamp(&before) != stamp(&stat(from)?) {
        return Err(StageError::Changed);
    }
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

/// What changes with the contents. ctime cannot be set back.
fn stamp(meta: &FileStat) -> [i64; 5] {
    [meta.st_size, meta.st_mtime, meta.st_mtime_nsec, meta.st_ctime, meta.st_ctime_nsec]
}

fn full(errno: Errno, bytes: u64, doing: &'static str) -> StageError {
    match errno {
        Errno::ENOSPC | Errno::ENOMEM | Errno::EDQUOT | Errno::EFBIG => StageError::NoMemory { bytes },
        errno => StageError::System { doing, errno },
    }
}

fn errno_of(e: &std::io::Error) -> Errno {
    Errno::from_raw(e.raw_os_error().unwrap_or(Errno::EIO as i32))
}

/// Copies at most `bytes`, and one byte more to see growth.
fn copy(from: &mut File, to: &mut File, bytes: u64, cancelled: &AtomicBool) -> Result<(String, u64), StageError> {
    let mut chunk = vec![0; COPY_CHUNK_BYTES];
    let mut hash = Sha256::new();
    let mut copied = 0;
    loop {
        if cancelled.load(Ordering::Relaxed) {
            return Err(StageError::Cancelled);
        }
        let got = match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(got) => got,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(StageError::System { doing: "read", errno: errno_of(&e) }),
        };
        copied += got as u64;
        if copied > bytes {
            return Err(StageError::Changed);
        }
        hash.update(&chunk[..got]);
        to.write_all(&chunk[..got]).map_err(|e| full(errno_of(&e), bytes, "write"))?;
    }
    Ok((hash.finalize().iter().map(|b| format!("{b:02x}")).collect(), copied))
}

/// An empty memfd that can be sealed. `modern`: never executable, where the kernel knows that.
pub(super) fn memory(name: &str, modern: bool) -> Result<OwnedFd, StageError> {
    // The name is a label in /proc; the kernel takes 249 bytes and no zero.
    let label: String = name.chars().filter(|c| c.is_ascii_graphic()).take(200).collect();
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let no_exec = flags | MFdFlags::from_bits_retain(MFD_NOEXEC_SEAL);
    let made = match memfd_create(label.as_str(), if modern { no_exec } else { flags }) {
        Err(Errno::EINVAL) if modern => memfd_create(label.as_str(), flags),
        made => made,
    };
    let fd = made.map_err(|errno| full(errno, 0, "memfd_create"))?;
    // Born 0777 or 0666: without this another uid could open it through /proc.
    fchmod(&fd, Mode::S_IRUSR).map_err(|errno| StageError::System { doing: "fchmod", errno })?;
    Ok(fd)
}

fn seal(fd: OwnedFd) -> Result<OwnedFd, StageError> {
    let refused = |errno| StageError::System { doing: "seal", errno };
    let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(fd.as_fd(), FcntlArg::F_ADD_SEALS(seals)).map_err(refused)?;
    let held = fcntl(fd.as_fd(), FcntlArg::F_GET_SEALS).map_err(refused)?;
    if SealFlag::from_bits_retain(held).contains(seals) { Ok(fd) } else { Err(refused(Errno::EPERM)) }
}
