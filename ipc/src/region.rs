//! Regions: creating, sealing, verifying and mapping them, on both backings.
//!
//! A memfd region is sealed so that the kernel, not good manners, keeps it single-writer and its
//! size fixed; the importer verifies that before it maps. A named POSIX segment cannot be sealed and
//! promises crash isolation only. Request regions are sealed in two phases: size at creation, future
//! writable mappings once the client has mapped and populated its own.

use crate::layout::{ABI_MAJOR, ABI_MINOR, Backing, Geometry, REGION_MAGIC, REP_STATE, RegionHeader, ServingState};
use crate::mem::Mem;
use crate::signature::{Signature, SignatureError};
use crate::sync::Ordering;
use crate::sys::{self, Feature};
use memmap2::MmapOptions;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, SealFlag, fallocate, fcntl, open};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::{Mode, fchmod, fstat};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use zerocopy::{FromBytes, IntoBytes};

/// What a region is for; decides seals and modes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegionKind {
    /// Written by the client.
    Request,
    /// Written by the worker.
    Reply,
    /// Recurrent state of a session.
    State,
    /// A model's baton.
    Baton,
    /// A model's last steps.
    Record,
}

/// How a region is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// `PROT_READ`.
    ReadOnly,
    /// `PROT_READ | PROT_WRITE`.
    ReadWrite,
}

/// Why a region cannot be created, imported or mapped.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// The kernel refused.
    #[error(
        "{what} a region of {bytes} bytes: {source}; free memory (a full /dev/shm or memory limit?) or use fewer slots"
    )]
    Os {
        /// What was tried.
        what: &'static str,
        /// Size.
        bytes: u64,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A peer's region is not what it must be.
    #[error("the region is not what was agreed: {0}")]
    Untrusted(&'static str),
    /// The reply region's header or signature does not fit.
    #[error(transparent)]
    Signature(#[from] SignatureError),
}

fn os(what: &'static str, bytes: u64) -> impl FnOnce(nix::errno::Errno) -> RegionError {
    move |e| RegionError::Os { what, bytes, source: e.into() }
}

/// A region that was just created.
#[derive(Debug)]
pub struct NewRegion {
    /// Read-write descriptor.
    pub fd: OwnedFd,
    /// Name under `/dev/shm`, for named segments.
    pub name: Option<String>,
}

const MFD_NOEXEC_SEAL: u32 = 8;
/// Set by the kernel beside MFD_NOEXEC_SEAL.
const F_SEAL_EXEC: i32 = 0x20;
const F_SEAL_FUTURE_WRITE: i32 = 0x10;

fn size_seals() -> SealFlag {
    SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW
}

/// Creates a region of `bytes` (a multiple of the page size). `instance` tells the named segments of daemons apart.
///
/// # Errors
/// [`RegionError::Os`]: EMFILE, ENOSPC or ENOMEM mostly.
pub fn create(backing: Backing, kind: RegionKind, bytes: u64, instance: &str) -> Result<NewRegion, RegionError> {
    match backing {
        Backing::Memfd => create_memfd(kind, bytes),
        Backing::Posix => create_posix(bytes, instance),
    }
}

fn create_memfd(kind: RegionKind, bytes: u64) -> Result<NewRegion, RegionError> {
    let name = match kind {
        RegionKind::Request => c"inferd-request",
        RegionKind::Reply => c"inferd-reply",
        RegionKind::State => c"inferd-state",
        RegionKind::Baton => c"inferd-baton",
        RegionKind::Record => c"inferd-record",
    };
    let base = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let noexec = base | MFdFlags::from_bits_retain(MFD_NOEXEC_SEAL);
    let fd =
        if sys::allowed(Feature::MemfdNoexec) { memfd_create(name, noexec) } else { Err(nix::errno::Errno::EINVAL) };
    // EINVAL: a kernel before 6.3 does not know the flag.
    let fd = fd.or_else(|e| if e == nix::errno::Errno::EINVAL { memfd_create(name, base) } else { Err(e) });
    let fd = fd.map_err(os("creating", bytes))?;
    nix::unistd::ftruncate(&fd, bytes as i64).map_err(os("sizing", bytes))?;
    // The mode must be set before the descriptor leaves us: a memfd is born open to all.
    // Who reads replies or records shall not reopen them for writing, not even as the daemon's own user.
    let read_only = matches!(kind, RegionKind::Reply | RegionKind::Record);
    let mode = if read_only { Mode::S_IRUSR } else { Mode::S_IRUSR | Mode::S_IWUSR };
    fchmod(&fd, mode).map_err(os("setting the mode of", bytes))?;
    let seals = match kind {
        // The client populates it: the first toucher pays. More seals follow in `seal_request`.
        RegionKind::Request => size_seals(),
        _ => {
            fallocate(&fd, FallocateFlags::empty(), 0, bytes as i64).map_err(os("allocating", bytes))?;
            size_seals() | SealFlag::F_SEAL_SEAL
        }
    };
    fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).map_err(os("sealing", bytes))?;
    Ok(NewRegion { fd, name: None })
}

fn create_posix(bytes: u64, instance: &str) -> Result<NewRegion, RegionError> {
    let mut random = [0u8; 16];
    let source = open("/dev/urandom", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty());
    let got = source.and_then(|fd| nix::unistd::read(&fd, &mut random));
    if got.map_err(os("naming", bytes))? != random.len() {
        return Err(os("naming", bytes)(nix::errno::Errno::EIO));
    }
    let name = format!("{}{:032x}", segment_prefix(instance), u128::from_le_bytes(random));
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_RDWR | OFlag::O_CLOEXEC;
    let fd =
        nix::sys::mman::shm_open(name.as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(os("creating", bytes))?;
    let region = NewRegion { fd, name: Some(name) };
    let sized = nix::unistd::ftruncate(&region.fd, bytes as i64)
        // Allocated now: a sparse segment on a full tmpfs would raise SIGBUS later.
        .and_then(|()| fallocate(&region.fd, FallocateFlags::empty(), 0, bytes as i64));
    if let Err(e) = sized {
        region.name.as_deref().map(unlink);
        return Err(os("allocating", bytes)(e));
    }
    Ok(region)
}

/// Beginning of the names of this instance's segments.
#[must_use]
pub fn segment_prefix(instance: &str) -> String {
    format!("/inferd.{instance}.")
}

/// Removes a named segment; one that is gone is fine.
pub fn unlink(name: &str) {
    let _ = nix::sys::mman::shm_unlink(name);
}

/// Removes the segments that an earlier run of this instance left behind. Returns how many.
#[must_use]
pub fn sweep(instance: &str) -> usize {
    let prefix = segment_prefix(instance);
    let Ok(entries) = std::fs::read_dir("/dev/shm") else { return 0 };
    let names = entries.flatten().filter_map(|e| e.file_name().into_string().ok()).map(|n| format!("/{n}"));
    names.filter(|n| n.starts_with(&prefix)).map(|n| unlink(&n)).count()
}

/// A description of its own for the same region.
///
/// # Errors
/// EMFILE, or a /proc that is not mounted.
pub fn reopen(fd: BorrowedFd<'_>, access: Access) -> Result<OwnedFd, RegionError> {
    let flags = if access == Access::ReadOnly { OFlag::O_RDONLY } else { OFlag::O_RDWR };
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    open(path.as_str(), flags | OFlag::O_CLOEXEC, Mode::empty()).map_err(os("reopening", 0))
}

fn seals(fd: BorrowedFd<'_>) -> Result<SealFlag, RegionError> {
    let bits = fcntl(fd, FcntlArg::F_GET_SEALS).map_err(|_| RegionError::Untrusted("it cannot be sealed"))?;
    Ok(SealFlag::from_bits_retain(bits & !F_SEAL_EXEC))
}

/// Phase two, after the client mapped and populated: no new writable mapping, no punching, by anybody. Then requires
/// the exact seals and every page present, since the client could have punched or sealed first.
///
/// # Errors
/// [`RegionError::Untrusted`] ends the session.
pub fn seal_request(fd: BorrowedFd<'_>, bytes: u64, backing: Backing) -> Result<(), RegionError> {
    if backing == Backing::Memfd {
        let last = SealFlag::from_bits_retain(F_SEAL_FUTURE_WRITE) | SealFlag::F_SEAL_SEAL;
        fcntl(fd, FcntlArg::F_ADD_SEALS(last))
            .map_err(|_| RegionError::Untrusted("the client sealed its request region first"))?;
        if seals(fd)? != size_seals() | last {
            return Err(RegionError::Untrusted("the client added seals to its request region"));
        }
    }
    let stat = fstat(fd).map_err(os("looking at", bytes))?;
    if stat.st_size as u64 != bytes {
        return Err(RegionError::Untrusted("the request region has another size"));
    }
    if (stat.st_blocks as u64).saturating_mul(512) < bytes {
        return Err(RegionError::Untrusted("the client did not populate its request region, or punched holes into it"));
    }
    Ok(())
}

/// What every importer requires before it maps: seals of its kind, and the agreed size.
///
/// # Errors
/// [`RegionError::Untrusted`].
pub fn verify_import(fd: BorrowedFd<'_>, kind: RegionKind, backing: Backing, bytes: u64) -> Result<(), RegionError> {
    let stat = fstat(fd).map_err(os("looking at", bytes))?;
    if stat.st_size as u64 != bytes {
        return Err(RegionError::Untrusted("another size than announced"));
    }
    if backing == Backing::Posix {
        return Ok(());
    }
    let have = seals(fd)?;
    let need = if kind == RegionKind::Request { size_seals() } else { size_seals() | SealFlag::F_SEAL_SEAL };
    if have.contains(need) { Ok(()) } else { Err(RegionError::Untrusted("its size is not sealed")) }
}

/// Maps a region shared, kept out of forked children, with every page present.
///
/// # Errors
/// [`RegionError::Os`].
pub fn map(fd: BorrowedFd<'_>, bytes: u64, access: Access, backing: Backing) -> Result<Mem, RegionError> {
    let length =
        usize::try_from(bytes).map_err(|_| RegionError::Untrusted("a region larger than the address space"))?;
    let mut options = MmapOptions::new();
    options.len(length);
    let file = fd.as_raw_fd();
    let map = if access == Access::ReadOnly { options.map_raw_read_only(file) } else { options.map_raw(file) };
    let map = map.map_err(|source| RegionError::Os { what: "mapping", bytes, source })?;
    let guard = match backing {
        Backing::Memfd => None,
        Backing::Posix => Some(
            crate::sigbus::Guard::new(map.as_ptr(), length)
                .ok_or(RegionError::Untrusted("too many named segments mapped at once"))?,
        ),
    };
    let mem = Mem::from_map(map, access == Access::ReadWrite, guard);
    mem.dont_fork();
    mem.populate();
    Ok(mem)
}

/// Gives a region's memory back, while peers may still map it.
pub fn punch(fd: BorrowedFd<'_>, bytes: u64) {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let _ = fallocate(fd, flags, 0, bytes as i64);
}

/// Says in a reply region that its session has ended, and leaves its replies readable. For the supervisor, once no worker
/// writes there any more.
pub fn close_reply(fd: BorrowedFd<'_>, geometry: &Geometry) {
    let at = geometry.reply_base + REP_STATE as u64;
    if let Ok(fd) = fd.try_clone_to_owned() {
        // Eight aligned bytes; a client that reads half of them sees no known state, which counts as closed.
        let _ = std::fs::File::from(fd).write_all_at(&(ServingState::Closed as u64).to_ne_bytes(), at);
    }
}

/// Writes the header, the signature and the state word of a fresh reply region, before anybody else maps it.
pub fn init_reply(
    mem: &Mem,
    session: u64,
    generation: u32,
    signature: &Signature,
    geometry: &Geometry,
    state: ServingState,
) {
    let encoded = signature.encode();
    let header = RegionHeader {
        magic: REGION_MAGIC,
        abi_major: ABI_MAJOR,
        abi_minor: ABI_MINOR,
        signature_bytes: encoded.len() as u32,
        session,
        generation,
        reserved: 0,
        reserved2: [0; 4],
    };
    mem.copy_in(0, header.as_bytes());
    mem.copy_in(size_of::<RegionHeader>(), &encoded);
    mem.word(geometry.reply_base as usize + REP_STATE).store(state as u64, Ordering::Release);
}

/// Reads header and signature of a mapped reply region, once.
///
/// # Errors
/// [`RegionError`] when they do not fit this library.
pub fn read_signature(mem: &Mem, words_at: u64) -> Result<(RegionHeader, Signature), RegionError> {
    let mut bytes = vec![0; (words_at as usize).min(mem.bytes())];
    mem.copy_out(0, &mut bytes);
    let (header, rest) =
        RegionHeader::read_from_prefix(&bytes).map_err(|_| RegionError::Untrusted("the reply region has no header"))?;
    if header.magic != REGION_MAGIC || header.abi_major != ABI_MAJOR {
        return Err(RegionError::Untrusted("the reply region's header is of another ABI"));
    }
    let encoded = rest.get(..header.signature_bytes as usize);
    let encoded = encoded.ok_or(RegionError::Untrusted("the signature is longer than its place"))?;
    Ok((header, Signature::decode(encoded)?))
}

/// Whether a request region is still mapped or held by its client. Asked on the daemon's own descriptor, or a reopened
/// one; needs the client's to come from [`for_client`].
#[must_use]
pub fn still_held(fd: BorrowedFd<'_>) -> bool {
    !sys::lease_is_free(fd)
}

/// A descriptor of this region for the client: read-only for replies. It is a description of its own, so that the kernel
/// counts its writers ([`still_held`] asks that count; a memfd's first description is not in it).
///
/// # Errors
/// As [`reopen`].
pub fn for_client(region: &NewRegion, kind: RegionKind) -> Result<OwnedFd, RegionError> {
    reopen(region.fd.as_fd(), if kind == RegionKind::Reply { Access::ReadOnly } else { Access::ReadWrite })
}
