//! The record region: the last steps of a model, kept while it is served.
//!
//! One memfd per model, made by the supervisor, written inline by the executor that holds the baton, read by
//! candidates (shadow runs) and by `inferctl dump`. It outlives workers: inputs and state are there
//! before the run begins, so that the observation which killed a worker can be looked at. Where
//! everything lies follows from the model's tensors and the number of slots, which reader and writer
//! are told by the supervisor; nothing that lies in the region decides an offset. A worker runs a
//! model author's file: a reader survives any content, and says which steps it could not use.

use crate::layout::Status;
use crate::limits::RECORD_SEQ_MAX;
use crate::mem::Mem;
use crate::signature::{Signature, SignatureError, TENSOR_ALIGN, TensorSpec};
use crate::sync::{Ordering, fence, streaming_store_fence};
use std::sync::Arc;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `inferdK1` in the first eight bytes of a record region.
pub const RECORD_MAGIC: u64 = u64::from_le_bytes(*b"inferdK1");
/// Version of this layout.
pub const RECORD_VERSION: u32 = 1;
/// Offset of slot 0.
const SLOTS: usize = 64;
/// Bit of `seq`: inputs and state are there, the run has not ended.
const BEGUN: u64 = 1 << 63;

/// The tensors of one recorded step.
#[derive(Debug, Clone, PartialEq, Default)]
#[cfg_attr(feature = "_serde", derive(serde::Serialize, serde::Deserialize))]
pub struct RecordLayout {
    /// Inputs, as clients write them.
    pub inputs: Vec<TensorSpec>,
    /// State tensors before the step, named as the model's inputs.
    pub states: Vec<TensorSpec>,
    /// Outputs, as clients see them.
    pub outputs: Vec<TensorSpec>,
}

impl RecordLayout {
    /// The tensors of a signature and of its recurrent state; element names are left out.
    #[must_use]
    pub fn new(signature: &Signature, states: &[TensorSpec]) -> RecordLayout {
        let plain =
            |tensors: &[TensorSpec]| tensors.iter().map(|t| TensorSpec::new(&t.name, t.dtype, &t.shape)).collect();
        RecordLayout { inputs: plain(&signature.inputs), states: plain(states), outputs: plain(&signature.outputs) }
    }

    /// Checks every limit and every name: a layout may come from a worker.
    ///
    /// # Errors
    /// [`SignatureError`] names the first tensor that cannot be recorded.
    pub fn check(&self) -> Result<(), SignatureError> {
        let signature = |inputs: &[TensorSpec], outputs: &[TensorSpec]| {
            Signature { inputs: inputs.to_vec(), outputs: outputs.to_vec(), stateful: false }.check()
        };
        signature(&self.inputs, &self.outputs)?;
        signature(&self.states, &[])
    }

    /// Same names, dtypes and shapes everywhere: a record region of one may be written by the other.
    #[must_use]
    pub fn same(&self, other: &RecordLayout) -> bool {
        same(&self.inputs, &other.inputs) && same(&self.outputs, &other.outputs) && self.same_states(other)
    }

    /// Same names, dtypes and shapes of the state: recorded state of one may be run by the other.
    #[must_use]
    pub fn same_states(&self, other: &RecordLayout) -> bool {
        same(&self.states, &other.states)
    }

    /// Bytes that one step takes in the region. Saturates.
    #[must_use]
    pub fn step_bytes(&self) -> u64 {
        self.places().1
    }

    /// How many steps fit into `bytes`, `steps` at most; 0 where not even two do.
    #[must_use]
    pub fn slots(&self, steps: u32, bytes: u64) -> u32 {
        let fit = bytes.saturating_sub(SLOTS as u64) / self.step_bytes();
        let slots = u32::try_from(fit).unwrap_or(u32::MAX).min(steps);
        if slots < 2 { 0 } else { slots }
    }

    /// Bytes of a region of this many slots, a multiple of the page size. Saturates.
    #[must_use]
    pub fn region_bytes(&self, slots: u32) -> u64 {
        self.used_bytes(slots).checked_next_multiple_of(4096).unwrap_or(u64::MAX)
    }

    /// Bytes up to the end of the last slot. Saturates.
    #[must_use]
    pub fn used_bytes(&self, slots: u32) -> u64 {
        self.step_bytes().saturating_mul(u64::from(slots)).saturating_add(SLOTS as u64)
    }

    /// Offset of each tensor within a slot (inputs, states, outputs), and the distance between slots.
    fn places(&self) -> (Vec<u64>, u64) {
        let mut end = size_of::<StepHeader>() as u64;
        let tensors = self.inputs.iter().chain(&self.states).chain(&self.outputs);
        let places = tensors
            .map(|t| {
                let at = end;
                end = at.saturating_add(t.bytes()).checked_next_multiple_of(TENSOR_ALIGN).unwrap_or(u64::MAX);
                at
            })
            .collect();
        (places, end)
    }
}

fn same(a: &[TensorSpec], b: &[TensorSpec]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(x, y)| x.same_layout(y))
}

/// Beginning of the region, written by the supervisor; for whoever looks at a dump. Readers compare it and go by
/// what they were told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RecordHeader {
    /// [`RECORD_MAGIC`].
    pub magic: u64,
    /// [`RECORD_VERSION`].
    pub version: u32,
    /// Number of slots.
    pub slots: u32,
    /// Distance between slots.
    pub stride: u64,
    /// Offset of slot 0.
    pub first: u64,
    /// Zero.
    pub reserved: [u64; 4],
}

/// Beginning of a slot.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct StepHeader {
    /// Step number + 1; with the highest bit while the run has not ended; 0 while being overwritten.
    pub seq: u64,
    /// The session.
    pub session: u64,
    /// Its request.
    pub request: u64,
    /// The client's label.
    pub observation_id: u64,
    /// When the request was taken.
    pub t_start_ns: u64,
    /// From there until the output was ready.
    pub run_ns: u64,
    /// Generation that ran it.
    pub generation: u32,
    /// Number of its [`Status`]; 0 until the run has ended.
    pub status: u32,
    /// `REPLY_*` bits.
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<RecordHeader>() == SLOTS, "slots begin after the header");
const _: () = assert!(size_of::<StepHeader>() == 64, "tensors begin on a cache line");
const RUN_NS: usize = core::mem::offset_of!(StepHeader, run_ns);
const GENERATION: usize = core::mem::offset_of!(StepHeader, generation);
const FLAGS: usize = core::mem::offset_of!(StepHeader, flags);

/// Where everything lies; private memory of each side.
#[derive(Debug)]
struct Places {
    slots: u64,
    stride: usize,
    inputs: Vec<(usize, usize)>,
    states: Vec<(usize, usize)>,
    outputs: Vec<(usize, usize)>,
}

impl Places {
    fn new(layout: &RecordLayout, slots: u32) -> Places {
        assert!(slots > 0, "a region without slots records nothing");
        let (offsets, stride) = layout.places();
        let mut offsets = offsets.into_iter().map(|o| o as usize);
        let mut of = |tensors: &[TensorSpec]| {
            tensors.iter().zip(&mut offsets).map(|(t, at)| (at, t.bytes() as usize)).collect::<Vec<_>>()
        };
        let (inputs, states, outputs) = (of(&layout.inputs), of(&layout.states), of(&layout.outputs));
        Places { slots: u64::from(slots), stride: stride as usize, inputs, states, outputs }
    }

    fn at(&self, number: u64) -> usize {
        SLOTS + (number % self.slots) as usize * self.stride
    }
}

/// What is known of a step before it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Begun {
    /// The session.
    pub session: u64,
    /// Its request.
    pub request: u64,
    /// The client's label.
    pub observation_id: u64,
    /// When the request was taken.
    pub t_start_ns: u64,
    /// Generation that runs it.
    pub generation: u32,
}

/// Writes steps: the executor that holds the baton.
#[derive(Debug)]
pub struct Recorder {
    mem: Mem,
    places: Places,
    /// Number of the next step, or of the one being written.
    next: u64,
    /// Its slot.
    at: usize,
    generation: u32,
}

impl Recorder {
    /// Uses a mapped region.
    ///
    /// # Panics
    /// When the mapping is too small: its size is ours.
    #[must_use]
    pub fn new(mem: Mem, layout: &RecordLayout, slots: u32) -> Recorder {
        assert!(mem.bytes() as u64 >= layout.used_bytes(slots), "every slot fits");
        let mut new = Recorder { mem, places: Places::new(layout, slots), next: 0, at: 0, generation: 0 };
        new.adopt();
        new
    }

    /// Goes on after the newest step that stands there: on taking over from another worker.
    pub fn adopt(&mut self) {
        self.next = newest(&self.mem, &self.places);
        self.at = self.places.at(self.next);
    }

    /// Begins a step: the oldest one is withdrawn. Its inputs and states follow, then [`Recorder::begun`].
    #[inline]
    pub fn begin(&mut self, step: &Begun) {
        let seq = self.mem.word(self.at);
        seq.store(0, Ordering::Relaxed);
        // Release: the withdrawal is seen before anything written below; pairs with the Acquire fence in `read`.
        fence(Ordering::Release);
        self.generation = step.generation;
        // The fields of StepHeader after `seq`, in its order: no run_ns, no status, no flags yet.
        let (label, origin) = (step.observation_id, u64::from(step.generation));
        self.mem.store_words(self.at + 8, [step.session, step.request, label, step.t_start_ns, 0, origin, 0]);
    }

    /// Input `i`, before conditioning.
    ///
    /// # Panics
    /// When it is not as long as its tensor: a bug of ours.
    #[inline]
    pub fn input(&mut self, i: usize, bytes: &[u8]) {
        self.write(self.places.inputs[i], bytes);
    }

    /// State tensor `k`, as the step begins with it.
    ///
    /// # Panics
    /// As [`Recorder::input`].
    #[inline]
    pub fn state(&mut self, k: usize, bytes: &[u8]) {
        self.write(self.places.states[k], bytes);
    }

    /// Output `i`, as the client sees it.
    ///
    /// # Panics
    /// As [`Recorder::input`].
    #[inline]
    pub fn output(&mut self, i: usize, bytes: &[u8]) {
        self.write(self.places.outputs[i], bytes);
    }

    #[inline]
    fn write(&self, (at, bytes): (usize, usize), from: &[u8]) {
        assert!(from.len() == bytes, "a tensor of {} bytes where {bytes} are recorded", from.len());
        self.mem.copy_in(self.at + at, from);
    }

    /// Inputs and states are complete, and the run begins: from here on they are there whatever it does.
    #[inline]
    pub fn begun(&mut self) {
        // Release: pairs with the Acquire in `read`.
        self.mem.word(self.at).store(BEGUN | (self.next + 1), Ordering::Release);
    }

    /// The step has ended; its outputs are written if it is `ok`.
    #[inline]
    pub fn end(&mut self, status: Status, flags: u32, run_ns: u64) {
        self.mem.word(self.at + RUN_NS).store(run_ns, Ordering::Relaxed);
        let generation_and_status = u64::from(self.generation) | u64::from(status as u32) << 32;
        self.mem.word(self.at + GENERATION).store(generation_and_status, Ordering::Relaxed);
        self.mem.word(self.at + FLAGS).store(u64::from(flags), Ordering::Relaxed);
        streaming_store_fence();
        self.next += 1;
        // Release: pairs with the Acquire in `read`.
        self.mem.word(self.at).store(self.next, Ordering::Release);
        self.at = if self.next % self.places.slots == 0 { SLOTS } else { self.at + self.places.stride };
        self.mem.prefetch(self.at);
    }
}

/// The `seq` that a slot says, without its mark, if it is one that belongs there; 0 else.
fn seq_at(mem: &Mem, places: &Places, slot: u64) -> u64 {
    // Acquire: pairs with the Release stores in `begun` and `end`.
    let seq = mem.word(places.at(slot)).load(Ordering::Acquire) & !BEGUN;
    let fits = seq != 0 && seq <= RECORD_SEQ_MAX && (seq - 1) % places.slots == slot;
    if fits { seq } else { 0 }
}

/// Number of steps begun so far, as far as the slots say.
fn newest(mem: &Mem, places: &Places) -> u64 {
    (0..places.slots).map(|slot| seq_at(mem, places, slot)).max().unwrap_or(0)
}

/// A copy of one step.
#[derive(Debug, Clone)]
pub struct RecordedStep {
    /// Counts the model's steps.
    pub number: u64,
    /// Session, request, label, time and generation.
    pub begun: Begun,
    /// How it ended; none if its run had not ended: it killed or hung its worker, or is running.
    pub status: Option<Status>,
    /// `REPLY_*` bits.
    pub flags: u32,
    /// From `t_start_ns` until the output was ready.
    pub run_ns: u64,
    bytes: Vec<u8>,
    places: Arc<Places>,
}

impl RecordedStep {
    fn tensor(&self, (at, bytes): (usize, usize)) -> &[u8] {
        &self.bytes[at..at + bytes]
    }

    /// Input `i`, as the client wrote it.
    #[must_use]
    pub fn input(&self, i: usize) -> &[u8] {
        self.tensor(self.places.inputs[i])
    }

    /// State tensor `k`, as the step began with it.
    #[must_use]
    pub fn state(&self, k: usize) -> &[u8] {
        self.tensor(self.places.states[k])
    }

    /// Output `i`, as the client saw it; means something only if the status is `ok`.
    #[must_use]
    pub fn output(&self, i: usize) -> &[u8] {
        self.tensor(self.places.outputs[i])
    }
}

/// What stands at a step's place.
#[derive(Debug, Clone)]
pub enum Read {
    /// The step.
    Step(RecordedStep),
    /// Not begun, or being written.
    NotYet,
    /// Overwritten by a newer one.
    Gone,
    /// Bytes that no recorder writes.
    Damaged,
}

/// Reads steps, while they may be written.
#[derive(Debug, Clone)]
pub struct RecordReader {
    mem: Mem,
    places: Arc<Places>,
}

impl RecordReader {
    /// Uses a mapped region.
    ///
    /// # Panics
    /// As [`Recorder::new`].
    #[must_use]
    pub fn new(mem: Mem, layout: &RecordLayout, slots: u32) -> RecordReader {
        assert!(mem.bytes() as u64 >= layout.used_bytes(slots), "every slot fits");
        RecordReader { mem, places: Arc::new(Places::new(layout, slots)) }
    }

    /// Number of slots.
    #[must_use]
    pub fn slots(&self) -> u64 {
        self.places.slots
    }

    /// Number of the step that comes next: looks at every slot.
    #[must_use]
    pub fn next(&self) -> u64 {
        newest(&self.mem, &self.places)
    }

    /// Whether this step, and nothing newer, stands at its place, ended or not: a look at one word.
    #[must_use]
    pub fn has(&self, number: u64) -> bool {
        number < RECORD_SEQ_MAX && seq_at(&self.mem, &self.places, number % self.places.slots) == number + 1
    }

    /// Copies a step out, and confirms that it was not overwritten meanwhile.
    #[must_use]
    pub fn read(&self, number: u64) -> Read {
        let at = self.places.at(number);
        let word = self.mem.word(at);
        // Acquire: pairs with the Release stores in `begun` and `end`.
        let before = word.load(Ordering::Acquire);
        let seq = before & !BEGUN;
        if seq > RECORD_SEQ_MAX || number >= RECORD_SEQ_MAX {
            return Read::Damaged;
        }
        if seq != number + 1 {
            return if seq > number { Read::Gone } else { Read::NotYet };
        }
        let mut bytes = vec![0; self.places.stride];
        self.mem.copy_out(at, &mut bytes);
        // Acquire fence: the copy happens before the load below; pairs with the Release fence in `begin`.
        fence(Ordering::Acquire);
        let after = word.load(Ordering::Relaxed);
        if after & !BEGUN != seq {
            return Read::Gone;
        }
        let Ok((header, _)) = StepHeader::read_from_prefix(&bytes) else { return Read::Damaged };
        // Only a step that had ended before it was copied has outputs and an end.
        let ended = before & BEGUN == 0;
        let status = Status::from_number(header.status);
        if ended && status.is_none() {
            return Read::Damaged;
        }
        Read::Step(RecordedStep {
            number,
            begun: Begun {
                session: header.session,
                request: header.request,
                observation_id: header.observation_id,
                t_start_ns: header.t_start_ns,
                generation: header.generation,
            },
            status: status.filter(|_| ended),
            flags: if ended { header.flags } else { 0 },
            run_ns: if ended { header.run_ns } else { 0 },
            bytes,
            places: self.places.clone(),
        })
    }

    /// All steps that stand there, oldest first; those that are overwritten meanwhile or damaged are left out.
    pub fn steps(&self) -> impl Iterator<Item = RecordedStep> + '_ {
        let next = self.next();
        (next.saturating_sub(self.places.slots)..next).filter_map(|number| match self.read(number) {
            Read::Step(step) => Some(step),
            Read::NotYet | Read::Gone | Read::Damaged => None,
        })
    }
}

/// Creates a record region. The supervisor keeps it; worker and readers get descriptors of their own.
///
/// # Errors
/// As [`crate::region::create`].
#[cfg(not(loom))]
pub fn create(layout: &RecordLayout, slots: u32) -> Result<std::os::fd::OwnedFd, crate::region::RegionError> {
    use crate::{layout::Backing, region};
    use std::os::fd::AsFd;
    let bytes = layout.region_bytes(slots);
    let new = region::create(Backing::Memfd, region::RegionKind::Record, bytes, "")?;
    let mem = region::map(new.fd.as_fd(), bytes, region::Access::ReadWrite, Backing::Memfd)?;
    let (magic, version, stride) = (RECORD_MAGIC, RECORD_VERSION, layout.step_bytes());
    let header = RecordHeader { magic, version, slots, stride, first: SLOTS as u64, reserved: [0; 4] };
    mem.copy_in(0, header.as_bytes());
    Ok(new.fd)
}

#[cfg(not(loom))]
fn open(
    fd: std::os::fd::BorrowedFd<'_>,
    layout: &RecordLayout,
    slots: u32,
    access: crate::region::Access,
) -> Result<Mem, crate::region::RegionError> {
    use crate::{layout::Backing, region};
    if slots == 0 || layout.check().is_err() {
        return Err(region::RegionError::Untrusted("the record's layout cannot be"));
    }
    let bytes = layout.region_bytes(slots);
    region::verify_import(fd, region::RegionKind::Record, Backing::Memfd, bytes)?;
    region::map(fd, bytes, access, Backing::Memfd)
}

/// Maps a record region for the worker that writes it.
///
/// # Errors
/// As [`crate::region::map`].
#[cfg(not(loom))]
pub fn open_writer(
    fd: std::os::fd::BorrowedFd<'_>,
    layout: &RecordLayout,
    slots: u32,
) -> Result<Recorder, crate::region::RegionError> {
    Ok(Recorder::new(open(fd, layout, slots, crate::region::Access::ReadWrite)?, layout, slots))
}

/// Maps a record region for reading; its descriptor may be read-only.
///
/// # Errors
/// As [`crate::region::map`], and where size or header are not what `layout` and `slots` say.
#[cfg(not(loom))]
pub fn open_reader(
    fd: std::os::fd::BorrowedFd<'_>,
    layout: &RecordLayout,
    slots: u32,
) -> Result<RecordReader, crate::region::RegionError> {
    let mem = open(fd, layout, slots, crate::region::Access::ReadOnly)?;
    let mut bytes = [0; size_of::<RecordHeader>()];
    mem.copy_out(0, &mut bytes);
    let header = RecordHeader::read_from_bytes(&bytes).ok();
    let stride = layout.step_bytes();
    if !header.is_some_and(|h| h.magic == RECORD_MAGIC && h.version == RECORD_VERSION && h.stride == stride) {
        return Err(crate::region::RegionError::Untrusted("its header is not that of this record"));
    }
    Ok(RecordReader::new(mem, layout, slots))
}
