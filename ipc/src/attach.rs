//! The fixed binary records of `attach.sock`: all that a C client must parse.
//!
//! One record per SOCK_SEQPACKET message: ATTACH -> ATTACHED (+ descriptors: request region, reply
//! region, doorbell socket) -> MAPPED -> READY. Every record begins with [`RecordHead`]; a record of
//! another length, magic or kind is a fault of the peer. The session lives as long as the socket.

use crate::layout::{ABI_MAJOR, ABI_MINOR, Geometry};
use crate::limits::{ATTACH_MESSAGE_BYTES, MODEL_NAME_BYTES_MAX};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `inferdA1` in little-endian.
pub const ATTACH_MAGIC: u64 = u64::from_le_bytes(*b"inferdA1");

/// Kind of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum RecordKind {
    /// Client to daemon: a wish for a session.
    Attach = 1,
    /// Daemon to client: the session's geometry, with descriptors; or a refusal.
    Attached = 2,
    /// Client to daemon: mapped and populated.
    Mapped = 3,
    /// Daemon to client: sealed and handed to the worker; or a refusal.
    Ready = 4,
}

/// First bytes of every record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RecordHead {
    /// [`ATTACH_MAGIC`].
    pub magic: u64,
    /// Number of a [`RecordKind`].
    pub kind: u16,
    /// ABI of the sender.
    pub abi_major: u16,
    /// Minor ABI of the sender.
    pub abi_minor: u16,
    /// Bytes of the whole record.
    pub bytes: u16,
}

/// A wish for a session on a model.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Attach {
    /// Kind [`RecordKind::Attach`].
    pub head: RecordHead,
    /// Model name, zero-terminated.
    pub model: [u8; 64],
    /// Slots wished for; 0 takes the model's.
    pub slots: u32,
    /// Number of a queue; 0 takes the model's.
    pub queue: u32,
    /// Zero.
    pub flags: u32,
    /// The client's process id: a label for logs, nothing else.
    pub pid: u32,
    /// The client's CLOCK_MONOTONIC in nanoseconds.
    pub clock_ns: u64,
}

/// Why an attach was refused; 0 is success. The numbers are ABI: `enum inferd_attach_status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum AttachStatus {
    /// Granted.
    Ok = 0,
    /// The ABI's major versions differ.
    AbiMismatch = 1,
    /// No model of that name.
    UnknownModel = 2,
    /// The model is loading, recovering or quarantined.
    Unavailable = 3,
    /// A quota of this uid, or a limit of the daemon, is reached.
    Quota = 4,
    /// The daemon drains.
    ShuttingDown = 5,
    /// The clocks of client and daemon differ: a time namespace stands between them.
    ClockSkew = 6,
    /// This uid may not attach (unmapped uid, or another uid with named segments).
    Forbidden = 7,
    /// The record is malformed, or asks for more than the model allows.
    BadRequest = 8,
    /// Regions could not be created (memory, descriptors).
    NoResources = 9,
    /// The client resealed, punched or did not populate its region.
    BadRegion = 10,
}

impl AttachStatus {
    /// All statuses in the order of their numbers.
    pub const ALL: [AttachStatus; 11] = [
        AttachStatus::Ok,
        AttachStatus::AbiMismatch,
        AttachStatus::UnknownModel,
        AttachStatus::Unavailable,
        AttachStatus::Quota,
        AttachStatus::ShuttingDown,
        AttachStatus::ClockSkew,
        AttachStatus::Forbidden,
        AttachStatus::BadRequest,
        AttachStatus::NoResources,
        AttachStatus::BadRegion,
    ];

    /// The status of that number, if there is one.
    #[must_use]
    pub fn from_number(number: u32) -> Option<AttachStatus> {
        AttachStatus::ALL.into_iter().find(|s| *s as u32 == number)
    }
}

/// The daemon's answer. With status ok, three descriptors come with it: request region (read-write), reply region
/// (read-only), doorbell socket.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Attached {
    /// Kind [`RecordKind::Attached`].
    pub head: RecordHead,
    /// Number of an [`AttachStatus`].
    pub status: u32,
    /// The live generation.
    pub generation: u32,
    /// The session's number within this daemon.
    pub session: u64,
    /// Where everything lies.
    pub geometry: Geometry,
    /// Number of a [`crate::layout::Backing`].
    pub backing: u32,
    /// The model's `spin_us`: how long the worker spins before it sleeps; a client may do the same.
    pub spin_us: u32,
    /// The daemon's version, zero-terminated.
    pub version: [u8; 32],
    /// A sentence when the status is not ok, zero-terminated.
    pub message: [u8; ATTACH_MESSAGE_BYTES],
}

/// The client has verified, mapped and populated its regions.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Mapped {
    /// Kind [`RecordKind::Mapped`].
    pub head: RecordHead,
}

/// The session is served from now on; or it is refused.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Ready {
    /// Kind [`RecordKind::Ready`].
    pub head: RecordHead,
    /// Number of an [`AttachStatus`].
    pub status: u32,
    /// Zero.
    pub reserved: u32,
    /// A sentence when the status is not ok, zero-terminated.
    pub message: [u8; ATTACH_MESSAGE_BYTES],
}

const _: () = assert!(size_of::<RecordHead>() == 16, "docs/shm-layout.md");
const _: () = assert!(size_of::<Attach>() == 104, "docs/shm-layout.md");
const _: () = assert!(size_of::<Attached>() == 528, "docs/shm-layout.md");
const _: () = assert!(size_of::<Mapped>() == 16, "docs/shm-layout.md");
const _: () = assert!(size_of::<Ready>() == 408, "docs/shm-layout.md");

/// What is wrong with a record from the peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordFault {
    /// The record has another length than its kind.
    #[error("a record of {got} bytes where {expected} were expected")]
    Length {
        /// Bytes received.
        got: usize,
        /// Bytes of the expected record.
        expected: usize,
    },
    /// Magic or kind differ.
    #[error("not an inferd {expected:?} record")]
    Kind {
        /// The record that was due.
        expected: RecordKind,
    },
    /// The major ABI differs.
    #[error(
        "the peer speaks ABI {major}.{minor}, this side {ABI_MAJOR}.{ABI_MINOR}; install the same major version on both sides"
    )]
    Abi {
        /// The peer's major ABI.
        major: u16,
        /// The peer's minor ABI.
        minor: u16,
    },
    /// A name without end, empty, or with characters other than letters, digits, `.`, `_`, `-`.
    #[error("a model name is 1 to {MODEL_NAME_BYTES_MAX} letters, digits, '.', '_' or '-'")]
    Name,
}

/// The head of a record of this size and kind.
#[must_use]
pub fn head(kind: RecordKind, bytes: usize) -> RecordHead {
    RecordHead {
        magic: ATTACH_MAGIC,
        kind: kind as u16,
        abi_major: ABI_MAJOR,
        abi_minor: ABI_MINOR,
        bytes: bytes as u16,
    }
}

/// Reads one record of type `T`; checks magic, ABI, kind and length, in this order, so that a peer of another ABI is told so.
///
/// # Errors
/// [`RecordFault`].
pub fn parse<T: FromBytes + Immutable + KnownLayout>(bytes: &[u8], kind: RecordKind) -> Result<T, RecordFault> {
    let expected = size_of::<T>();
    let length = RecordFault::Length { got: bytes.len(), expected };
    let (head, _) = RecordHead::read_from_prefix(bytes).map_err(|_| length.clone())?;
    if head.magic != ATTACH_MAGIC {
        return Err(RecordFault::Kind { expected: kind });
    }
    if head.abi_major != ABI_MAJOR {
        return Err(RecordFault::Abi { major: head.abi_major, minor: head.abi_minor });
    }
    if head.kind != kind as u16 {
        return Err(RecordFault::Kind { expected: kind });
    }
    if head.bytes as usize != bytes.len() {
        return Err(length);
    }
    T::read_from_bytes(bytes).map_err(|_| length)
}

/// Whether this may be a model's name: 1 to 63 letters, digits, `.`, `_` or `-`, not beginning with `.` or `-`.
#[must_use]
pub fn is_model_name(name: &str) -> bool {
    let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !name.is_empty() && name.len() <= MODEL_NAME_BYTES_MAX && name.chars().all(letter) && !name.starts_with(['.', '-'])
}

/// Reads a zero-terminated name and checks it.
///
/// # Errors
/// [`RecordFault::Name`].
pub fn model_name(bytes: &[u8; 64]) -> Result<&str, RecordFault> {
    let name = text(bytes).ok_or(RecordFault::Name)?;
    if is_model_name(name) { Ok(name) } else { Err(RecordFault::Name) }
}

/// The text of a zero-terminated field, if it ends and is UTF-8.
#[must_use]
pub fn text(bytes: &[u8]) -> Option<&str> {
    let end = bytes.iter().position(|b| *b == 0)?;
    std::str::from_utf8(&bytes[..end]).ok()
}

/// A zero-terminated field; text that is too long is cut at a character.
#[must_use]
pub fn field<const N: usize>(text: &str) -> [u8; N] {
    let mut cut = text.len().min(N - 1);
    while !text.is_char_boundary(cut) {
        cut -= 1;
    }
    let mut bytes = [0; N];
    bytes[..cut].copy_from_slice(&text.as_bytes()[..cut]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_another_abi_is_told_so_before_anything_else() {
        let mut mapped = Mapped { head: head(RecordKind::Mapped, size_of::<Mapped>()) };
        assert!(parse::<Mapped>(mapped.as_bytes(), RecordKind::Mapped).is_ok());
        mapped.head.abi_major = 2;
        let fault = parse::<Attach>(mapped.as_bytes(), RecordKind::Attach).unwrap_err();
        assert_eq!(fault, RecordFault::Abi { major: 2, minor: ABI_MINOR });
    }

    #[test]
    fn records_cut_short_or_padded_are_refused() {
        let mapped = Mapped { head: head(RecordKind::Mapped, size_of::<Mapped>()) };
        let bytes = mapped.as_bytes();
        for cut in 0..bytes.len() {
            assert!(parse::<Mapped>(&bytes[..cut], RecordKind::Mapped).is_err());
        }
        assert!(parse::<Mapped>(&[bytes, &[0]].concat(), RecordKind::Mapped).is_err());
    }

    #[test]
    fn names_that_could_be_paths_or_options_are_refused() {
        for bad in ["", "../x", "a/b", "-rf", ".hidden", "a b", "ü", &"x".repeat(64)] {
            assert!(!is_model_name(bad), "{bad}");
        }
        assert!(is_model_name("go2_v1.3-beta"));
        assert_eq!(model_name(&[b'a'; 64]), Err(RecordFault::Name));
    }

    #[test]
    fn long_text_is_cut_at_a_character() {
        assert_eq!(text(&field::<4>("aüü")), Some("aü"));
    }
}
