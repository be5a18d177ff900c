//! Where every byte of the request and the reply region lies, and who writes it.
//!
//! `docs/shm-layout.md` is the normative text; this file and `include/inferd.h` assert it at compile
//! time. A region has a block of words (128 bytes apart, one writer each) and a block of slots, both
//! at offsets that the daemon chooses per session ([`Geometry`]), so that many rings do not share
//! cache sets. Geometry is fixed at attach; both sides keep it in private memory.

use crate::cursor::Cursor;
use crate::limits::{REGION_BYTES_MAX, SLOT_BYTES_MAX, SLOTS_MAX};
use crate::signature::{Signature, slot_offsets};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// ABI of the regions and of the attach records: a 1.x client works with every 1.y daemon.
pub const ABI_MAJOR: u16 = 1;
/// Minor ABI version: additions only.
pub const ABI_MINOR: u16 = 0;

/// Bytes of a request or reply header: one cache line.
pub const HEADER_BYTES: usize = 64;
/// Distance between words of different writers or moments: two cache lines, for the adjacent-line prefetcher.
pub const WORD_STRIDE: usize = 128;
/// Slots are a multiple of this.
pub const SLOT_ALIGN: u64 = 128;

/// Request region, relative to [`Geometry::request_base`]: number of requests published (a hint; may lag the slot by one).
pub const REQ_PUBLISHED: usize = 0;
/// Request region: number of replies released.
pub const REQ_RELEASED: usize = WORD_STRIDE;
/// Request region: whether, and how, the client sleeps ([`AWAKE`], [`ASLEEP_FUTEX`], [`ASLEEP_SOCKET`]).
pub const REQ_SLEEPING: usize = 2 * WORD_STRIDE;
/// Request region: the CPU on which the client fell asleep, plus one; 0 where it does not say. A hint, beside its sleeping word.
pub const REQ_SLEEPER_CPU: usize = REQ_SLEEPING + 8;
/// Request region: the doorbell that the client rings; the worker waits on it.
pub const REQ_DOORBELL: usize = 3 * WORD_STRIDE;
/// Reply region, relative to [`Geometry::reply_base`]: the model's state, one of [`ServingState`].
pub const REP_STATE: usize = 0;
/// Reply region: whether, and how, the worker sleeps.
pub const REP_SLEEPING: usize = WORD_STRIDE;
/// Reply region: the CPU on which the worker fell asleep, plus one; 0 where it does not say.
pub const REP_SLEEPER_CPU: usize = REP_SLEEPING + 8;
/// Reply region: the doorbell that the worker rings; the client waits on it.
pub const REP_DOORBELL: usize = 2 * WORD_STRIDE;
/// Bytes of the block of words in either region.
pub const WORDS_BYTES: usize = 4 * WORD_STRIDE;

/// Sleeping word: the peer need not ring.
pub const AWAKE: u64 = 0;
/// Sleeping word: ring by changing the doorbell word and waking one futex waiter.
pub const ASLEEP_FUTEX: u64 = 1;
/// Sleeping word: ring by sending one byte on the doorbell socket.
pub const ASLEEP_SOCKET: u64 = 2;

/// What the state word of a reply region says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum ServingState {
    /// A worker serves this session.
    Serving = 1,
    /// The worker died; another one is on its way.
    Recovering = 2,
    /// Workers keep dying; an operator must act.
    Quarantined = 3,
    /// The daemon is going away.
    Draining = 4,
    /// The session has ended.
    Closed = 5,
}

impl ServingState {
    /// The state of that number; anything unknown counts as closed.
    #[must_use]
    pub fn from_word(word: u64) -> ServingState {
        match word {
            1 => ServingState::Serving,
            2 => ServingState::Recovering,
            3 => ServingState::Quarantined,
            4 => ServingState::Draining,
            _ => ServingState::Closed,
        }
    }
}

/// Request flag: run this step on fresh state.
pub const REQUEST_RESET: u32 = 1;
/// All request flags that exist.
pub const REQUEST_FLAGS: u32 = REQUEST_RESET;

/// Reply flag: the run ended after the deadline.
pub const REPLY_LATE: u32 = 1;
/// Reply flag: this step ran on fresh state (asked for, or because the state was lost).
pub const REPLY_STATE_RESET: u32 = 2;
/// Reply flag: a reset was asked for and no step has run since.
pub const REPLY_RESET_PENDING: u32 = 4;
/// Reply flag: the state of this session is lost; steps without the reset flag get `needs_reset`.
pub const REPLY_STATE_LOST: u32 = 8;

/// What a request ended in, as the reply's status says. The numbers are ABI: `enum inferd_status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Status {
    /// Ran, and the guard passed the output.
    Ok = 1,
    /// The deadline passed before the run began.
    Expired = 2,
    /// The request's header or tensors are invalid.
    Rejected = 3,
    /// The backend raised, or the guard refused the output.
    ModelError = 4,
    /// The worker died or hung while this request ran.
    WorkerLost = 5,
    /// The session's state was lost; send a request with the reset flag.
    NeedsReset = 6,
    /// The daemon drains.
    ShuttingDown = 7,
    /// Published while no worker served; not run.
    Unavailable = 8,
}

impl Status {
    /// All statuses, in the order of their numbers.
    pub const ALL: [Status; 8] = [
        Status::Ok,
        Status::Expired,
        Status::Rejected,
        Status::ModelError,
        Status::WorkerLost,
        Status::NeedsReset,
        Status::ShuttingDown,
        Status::Unavailable,
    ];

    /// The status of that number, if there is one.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Status> {
        Status::ALL.into_iter().find(|s| *s as u32 == number)
    }

    /// The name used in logs, tables and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::Expired => "expired",
            Status::Rejected => "rejected",
            Status::ModelError => "model_error",
            Status::WorkerLost => "worker_lost",
            Status::NeedsReset => "needs_reset",
            Status::ShuttingDown => "shutting_down",
            Status::Unavailable => "unavailable",
        }
    }
}

/// First line of a request slot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RequestHeader {
    /// Request number + 1; 0 while the slot is withdrawn. Stored last.
    pub seq: u64,
    /// The caller's own label, returned in the reply.
    pub observation_id: u64,
    /// CLOCK_MONOTONIC nanoseconds when the request was submitted.
    pub t_submit_ns: u64,
    /// CLOCK_MONOTONIC nanoseconds after which the run shall not begin; 0 for none.
    pub deadline_ns: u64,
    /// [`REQUEST_RESET`] or nothing.
    pub flags: u32,
    /// Steps of the previous action chunk that the caller has executed; a label for chunked policies.
    pub executed: u32,
    /// `seq` of the newest request, this one included, that carried the reset flag; 0 for none.
    pub reset_seq: u64,
    /// Zero.
    pub reserved: [u64; 2],
}

/// First line of a reply slot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ReplyHeader {
    /// Reply number + 1. Stored last.
    pub seq: u64,
    /// Number of the request that this answers.
    pub request: u64,
    /// The request's label.
    pub observation_id: u64,
    /// CLOCK_MONOTONIC nanoseconds when the worker took the request.
    pub t_start_ns: u64,
    /// CLOCK_MONOTONIC nanoseconds when the output was ready.
    pub t_done_ns: u64,
    /// Number of a [`Status`].
    pub status: u32,
    /// `REPLY_*` bits.
    pub flags: u32,
    /// The generation that computed (or refused) this.
    pub generation: u32,
    /// Requests between the previous answered one and this one that were superseded; saturates.
    pub skipped: u32,
    /// Steps of this session that ended `ok` so far: the state's version.
    pub step: u64,
}

/// Words of a header.
pub const HEADER_WORDS: usize = HEADER_BYTES / 8;

/// Two fields that share a word: the first one lies lower.
#[inline]
const fn pair(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

#[inline]
const fn halves(word: u64) -> (u32, u32) {
    (word as u32, (word >> 32) as u32)
}

impl RequestHeader {
    /// The header as its line's words, `seq` first: headers travel in registers, not through a buffer of bytes.
    #[must_use]
    #[inline]
    pub const fn words(&self) -> [u64; HEADER_WORDS] {
        let (label, labels) = (self.observation_id, pair(self.flags, self.executed));
        let [r0, r1] = self.reserved;
        [self.seq, label, self.t_submit_ns, self.deadline_ns, labels, self.reset_seq, r0, r1]
    }

    /// The header that these words are.
    #[must_use]
    #[inline]
    pub const fn from_words(words: [u64; HEADER_WORDS]) -> RequestHeader {
        let [seq, observation_id, t_submit_ns, deadline_ns, labels, reset_seq, r0, r1] = words;
        let (flags, executed) = halves(labels);
        RequestHeader { seq, observation_id, t_submit_ns, deadline_ns, flags, executed, reset_seq, reserved: [r0, r1] }
    }
}

impl ReplyHeader {
    /// As [`RequestHeader::words`].
    #[must_use]
    #[inline]
    pub const fn words(&self) -> [u64; HEADER_WORDS] {
        let (outcome, origin) = (pair(self.status, self.flags), pair(self.generation, self.skipped));
        [self.seq, self.request, self.observation_id, self.t_start_ns, self.t_done_ns, outcome, origin, self.step]
    }

    /// The header that these words are.
    #[must_use]
    #[inline]
    pub const fn from_words(words: [u64; HEADER_WORDS]) -> ReplyHeader {
        let [seq, request, observation_id, t_start_ns, t_done_ns, outcome, origin, step] = words;
        let ((status, flags), (generation, skipped)) = (halves(outcome), halves(origin));
        ReplyHeader { seq, request, observation_id, t_start_ns, t_done_ns, status, flags, generation, skipped, step }
    }
}

const _: () = assert!(size_of::<RequestHeader>() == HEADER_BYTES, "one cache line");
const _: () = assert!(size_of::<ReplyHeader>() == HEADER_BYTES, "one cache line");
const _: () = assert!(std::mem::offset_of!(RequestHeader, reset_seq) == 40, "docs/shm-layout.md");
const _: () = assert!(std::mem::offset_of!(ReplyHeader, status) == 40, "docs/shm-layout.md");
const _: () = assert!(std::mem::offset_of!(ReplyHeader, step) == 56, "docs/shm-layout.md");
const _: () = assert!(cfg!(target_endian = "little"), "words are little-endian and futexes look at their low half");
const _: () = assert!(cfg!(target_has_atomic = "64"), "words are lock-free 64-bit atomics");

/// How a session's requests are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "_serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[repr(u32)]
pub enum Queue {
    /// Each request is run, in order.
    InOrder = 1,
    /// Only the newest request is run.
    Latest = 2,
}

impl Queue {
    /// The name used in configuration and tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Queue::InOrder => "in_order",
            Queue::Latest => "latest",
        }
    }

    /// The queue of that number, if there is one.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Queue> {
        [Queue::InOrder, Queue::Latest].into_iter().find(|q| *q as u32 == number)
    }
}

/// What a region is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "_serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
#[repr(u32)]
pub enum Backing {
    /// A sealed memfd: the kernel keeps every byte single-writer.
    Memfd = 1,
    /// A named POSIX segment under `/dev/shm`: crash isolation only.
    Posix = 2,
}

impl Backing {
    /// The backing of that number, if there is one.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Backing> {
        [Backing::Memfd, Backing::Posix].into_iter().find(|b| *b as u32 == number)
    }
}

/// Sizes and offsets of a session's two regions, as they stand in the ATTACHED record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[cfg_attr(feature = "_serde", derive(serde::Serialize, serde::Deserialize))]
#[repr(C)]
pub struct Geometry {
    /// Slots of the request region, and requests that may be in flight. The reply region has at least two
    /// ([`Geometry::reply_count`]).
    pub slots: u32,
    /// Number of a [`Queue`].
    pub queue: u32,
    /// Bytes of the request region; a multiple of the page size.
    pub request_bytes: u64,
    /// Offset of the client's words.
    pub request_base: u64,
    /// Offset of request slot 0.
    pub request_slots: u64,
    /// Distance between request slots.
    pub request_stride: u64,
    /// Bytes of the reply region; a multiple of the page size.
    pub reply_bytes: u64,
    /// Offset of the worker's words.
    pub reply_base: u64,
    /// Offset of reply slot 0.
    pub reply_slots: u64,
    /// Distance between reply slots.
    pub reply_stride: u64,
}

const _: () = assert!(size_of::<Geometry>() == 72, "docs/shm-layout.md");

/// Why a geometry cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the session's geometry is impossible: {0}")]
pub struct GeometryError(pub &'static str);

/// First bytes of a reply region, written by the daemon before anybody else maps it; the signature follows.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RegionHeader {
    /// [`REGION_MAGIC`].
    pub magic: u64,
    /// ABI of the daemon.
    pub abi_major: u16,
    /// Minor ABI of the daemon.
    pub abi_minor: u16,
    /// Bytes of the signature that follows at offset 64.
    pub signature_bytes: u32,
    /// The session's number within its daemon.
    pub session: u64,
    /// The generation that was live at attach.
    pub generation: u32,
    /// Zero.
    pub reserved: u32,
    /// Zero.
    pub reserved2: [u64; 4],
}

/// `inferdR1` in little-endian.
pub const REGION_MAGIC: u64 = u64::from_le_bytes(*b"inferdR1");
const _: () = assert!(size_of::<RegionHeader>() == HEADER_BYTES, "docs/shm-layout.md");

/// Colours that region offsets cycle through: 32 x 128 bytes cover the page-offset bits that index an L1 cache.
const COLOURS: u64 = 32;
const PAGE: u64 = 4096;

impl Geometry {
    /// Lays out a session. `colour` is any number that differs between sessions.
    ///
    /// # Errors
    /// [`GeometryError`] when a limit is exceeded.
    pub fn new(signature: &Signature, slots: u32, queue: Queue, colour: u64) -> Result<Geometry, GeometryError> {
        let shift = (colour % COLOURS) * SLOT_ALIGN;
        let stride = |end: u64| end.next_multiple_of(SLOT_ALIGN);
        let request_stride = stride(slot_offsets(&signature.inputs).1);
        let reply_stride = stride(slot_offsets(&signature.outputs).1);
        if slots > SLOTS_MAX || request_stride > SLOT_BYTES_MAX || reply_stride > SLOT_BYTES_MAX {
            return Err(GeometryError("too many or too large slots"));
        }
        let header = (HEADER_BYTES + signature.encode().len()) as u64;
        let request_base = shift;
        let reply_base = header.next_multiple_of(PAGE) + shift;
        let words = WORDS_BYTES as u64;
        let region = |at: u64, stride: u64, count: u32| (at + stride * u64::from(count)).next_multiple_of(PAGE);
        let geometry = Geometry {
            slots,
            queue: queue as u32,
            request_bytes: region(request_base + words, request_stride, slots),
            request_base,
            request_slots: request_base + words,
            request_stride,
            reply_bytes: region(reply_base + words, reply_stride, reply_count(slots)),
            reply_base,
            reply_slots: reply_base + words,
            reply_stride,
        };
        geometry.check()?;
        Ok(geometry)
    }

    /// Checks that words and slots are aligned, apart, and inside the regions.
    ///
    /// # Errors
    /// [`GeometryError`] says which rule is broken.
    pub fn check(&self) -> Result<(), GeometryError> {
        let rule = |holds: bool, what| if holds { Ok(()) } else { Err(GeometryError(what)) };
        rule(self.slots >= 1 && self.slots <= SLOTS_MAX, "slots out of range")?;
        rule(Queue::from_number(self.queue).is_some(), "unknown queue")?;
        for (bytes, base, slots, stride, count) in [
            (self.request_bytes, self.request_base, self.request_slots, self.request_stride, self.slots),
            (self.reply_bytes, self.reply_base, self.reply_slots, self.reply_stride, reply_count(self.slots)),
        ] {
            rule(bytes > 0 && bytes <= REGION_BYTES_MAX && bytes % PAGE == 0, "region size")?;
            rule((SLOT_ALIGN..=SLOT_BYTES_MAX).contains(&stride), "slot size")?;
            rule(base % SLOT_ALIGN == 0 && slots % SLOT_ALIGN == 0 && stride % SLOT_ALIGN == 0, "alignment")?;
            rule(base <= bytes && slots <= bytes && slots >= base + WORDS_BYTES as u64, "words and slots overlap")?;
            rule(stride * u64::from(count) <= bytes - slots, "slots outside the region")?;
        }
        rule(self.reply_base >= HEADER_BYTES as u64, "words overlap the region's header")
    }

    /// The queue, once checked.
    #[must_use]
    pub fn queue(&self) -> Queue {
        Queue::from_number(self.queue).unwrap_or(Queue::InOrder)
    }

    /// Offset of the slot that request `n` lies in.
    #[must_use]
    #[inline]
    pub fn request_slot(&self, n: u64) -> usize {
        (self.request_slots + (n % u64::from(self.slots)) * self.request_stride) as usize
    }

    /// Offset of the slot that reply `r` lies in.
    #[must_use]
    #[inline]
    pub fn reply_slot(&self, r: u64) -> usize {
        (self.reply_slots + (r % u64::from(reply_count(self.slots))) * self.reply_stride) as usize
    }

    /// The request ring's slots, from number 0 on.
    pub(crate) fn request_cursor(&self) -> Cursor {
        Cursor::new(self.request_slots, self.request_stride, u64::from(self.slots))
    }

    /// The reply ring's slots, from number 0 on.
    pub(crate) fn reply_cursor(&self) -> Cursor {
        Cursor::new(self.reply_slots, self.reply_stride, self.reply_count())
    }

    /// End of the last request slot.
    #[must_use]
    pub fn request_slot_end(&self) -> u64 {
        self.request_slots + u64::from(self.slots) * self.request_stride
    }

    /// End of the last reply slot.
    #[must_use]
    pub fn reply_slot_end(&self) -> u64 {
        self.reply_slots + self.reply_count() * self.reply_stride
    }

    /// Slots of the reply region.
    #[must_use]
    pub fn reply_count(&self) -> u64 {
        u64::from(reply_count(self.slots))
    }
}

/// Slots of the reply region: never fewer than two, so that the last published reply stands whole while the next one
/// is being written. A successor recovers everything from it.
const fn reply_count(slots: u32) -> u32 {
    if slots < 2 { 2 } else { slots }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signature::{DType, TensorSpec};

    fn signature(inputs: u64, outputs: u64) -> Signature {
        let tensor = |n| vec![TensorSpec::new("t", DType::F32, &[1, n])];
        Signature { inputs: tensor(inputs), outputs: tensor(outputs), stateful: false }
    }

    #[test]
    fn a_header_is_the_same_as_bytes_and_as_words() {
        let words: [u64; HEADER_WORDS] = std::array::from_fn(|i| 0x0102_0304_0506_0708 * (i as u64 + 1));
        assert_eq!(RequestHeader::from_words(words).as_bytes(), words.as_bytes());
        assert_eq!(RequestHeader::from_words(words).words(), words);
        assert_eq!(ReplyHeader::from_words(words).as_bytes(), words.as_bytes());
        assert_eq!(ReplyHeader::from_words(words).words(), words);
    }

    #[test]
    fn a_geometry_keeps_its_own_rules_for_every_colour_and_slot_count() {
        for colour in 0..64 {
            for slots in [1, 2, 4, 63, 64] {
                let g = Geometry::new(&signature(45, 12), slots, Queue::Latest, colour).unwrap();
                assert_eq!(g.check(), Ok(()));
                assert!(g.request_slot(slots as u64 - 1) as u64 + g.request_stride <= g.request_bytes);
            }
        }
    }

    #[test]
    fn neighbouring_sessions_poll_different_cache_sets() {
        let at = |c| Geometry::new(&signature(8, 8), 1, Queue::InOrder, c).unwrap().request_slots % 4096;
        let mut seen: Vec<u64> = (0..32).map(at).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 32);
    }

    #[test]
    fn impossible_geometries_are_refused() {
        let good = Geometry::new(&signature(45, 12), 4, Queue::InOrder, 3).unwrap();
        let broken = [
            Geometry { slots: 0, ..good },
            Geometry { slots: SLOTS_MAX + 1, ..good },
            Geometry { queue: 9, ..good },
            Geometry { request_bytes: good.request_bytes - 1, ..good },
            Geometry { request_stride: good.request_stride + 8, ..good },
            Geometry { request_stride: u64::MAX - 127, ..good },
            Geometry { reply_slots: good.reply_base, ..good },
            Geometry { reply_base: 0, ..good },
            Geometry { request_slots: good.request_bytes, ..good },
            Geometry { request_bytes: REGION_BYTES_MAX + PAGE, ..good },
            Geometry { reply_bytes: REGION_BYTES_MAX + PAGE, ..good },
            Geometry { reply_stride: SLOT_BYTES_MAX + SLOT_ALIGN, ..good },
        ];
        for g in broken {
            assert!(g.check().is_err(), "{g:?}");
        }
    }
}
