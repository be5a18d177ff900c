//! The worker's end of a session's rings: takes requests, publishes replies.
//!
//! The client behind it may be hostile: sequence numbers are compared for equality, counts are
//! bounded, headers are copied once and parsed once, and a lie is a [`PeerFault`] that ends the
//! session. Cursors live in private memory and are rebuilt from the published replies alone, so a
//! successor (a new worker, or the supervisor after a worker's certain exit) continues exactly there.

use crate::cursor::Cursor;
use crate::failpoint;
use crate::layout::{
    ASLEEP_FUTEX, ASLEEP_SOCKET, AWAKE, Geometry, HEADER_BYTES, Queue, REP_DOORBELL, REP_SLEEPER_CPU, REP_SLEEPING,
    REP_STATE, REPLY_RESET_PENDING, REQ_DOORBELL, REQ_PUBLISHED, REQ_RELEASED, REQ_SLEEPER_CPU, REQ_SLEEPING,
    REQUEST_FLAGS, REQUEST_RESET, ReplyHeader, RequestHeader, ServingState, Status,
};
use crate::limits::{ANSWERED_MAX, LATEST_RETRIES_MAX, REQUEST_JUMP_MAX, REQUEST_NUMBER_MAX};
use crate::mem::Mem;
use crate::requester::Ring;
use crate::sleeper::{falls_asleep_here, fell_asleep_here};
use crate::sync::{AtomicU64, Ordering, fence, full_fence, streaming_store_fence};

/// A lie of the peer; it ends the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PeerFault {
    /// A slot's sequence number is neither old, withdrawn nor new.
    #[error("request slot {slot} says {found} where request {expected} was due")]
    Sequence {
        /// Which slot.
        slot: u64,
        /// What it said.
        found: u64,
        /// The request that was due.
        expected: u64,
    },
    /// The released count ran backwards or past the published replies.
    #[error("the released count says {found}, which is not within {least}..={most}")]
    Released {
        /// What it said.
        found: u64,
        /// What it said before.
        least: u64,
        /// Replies published.
        most: u64,
    },
    /// The reply region holds what no worker publishes.
    #[error("reply slot {slot} says {found}: the region was damaged by an earlier worker")]
    Replies {
        /// Which slot.
        slot: u64,
        /// What it said.
        found: u64,
    },
    /// A page of a named segment vanished.
    #[error("the client truncated its named segment")]
    Truncated,
}

/// Why a request's header is refused: the reply says `rejected`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// A flag that this ABI does not have.
    #[error("unknown request flags {0:#x}")]
    Flags(u32),
    /// Reserved bytes are not zero.
    #[error("reserved bytes of the request header are not zero")]
    Reserved,
    /// `reset_seq` contradicts the reset flag or lies in the future.
    #[error("the reset flag and reset_seq {0} contradict each other")]
    Reset(u64),
}

/// A request that was taken: its header, copied once and parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Its number.
    pub number: u64,
    /// The caller's label.
    pub observation_id: u64,
    /// CLOCK_MONOTONIC nanoseconds at submit, as the client says.
    pub t_submit_ns: u64,
    /// CLOCK_MONOTONIC nanoseconds after which the run shall not begin; 0 for none.
    pub deadline_ns: u64,
    /// Steps of the previous chunk executed, as the client says.
    pub executed: u32,
    /// A reset was asked for, by this request or one that was skipped.
    pub reset: bool,
    /// Requests superseded by this one.
    pub skipped: u32,
    /// Why it must be rejected, if it must.
    pub invalid: Option<HeaderError>,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Outcome.
    pub status: Status,
    /// `REPLY_*` bits, but for [`REPLY_RESET_PENDING`], which follows from the rest.
    pub flags: u32,
    /// CLOCK_MONOTONIC nanoseconds when it was taken.
    pub t_start_ns: u64,
    /// CLOCK_MONOTONIC nanoseconds when the output was ready.
    pub t_done_ns: u64,
    /// Generation that answers.
    pub generation: u32,
}

/// The worker's end; see the module.
#[derive(Debug)]
pub struct Responder {
    request: Mem,
    reply: Mem,
    geometry: Geometry,
    latest: bool,
    /// The slot of the next request to take.
    requests: Cursor,
    /// The slot of the next reply to publish.
    replies: Cursor,
    /// The client's released count, as last seen.
    released: u64,
    /// Steps that ended `ok`.
    step: u64,
    /// A reset was asked for and has not run.
    reset_pending: bool,
    /// `REPLY_*` bits of the last reply.
    last_flags: u32,
    /// Whether the client was woken just now and had fallen asleep on our CPU.
    in_its_way: bool,
}

/// When the newest published reply of this generation was done, for whoever reads a session's replies from beside: CLOCK_MONOTONIC
/// nanoseconds; none where no reply of it stands there any more.
#[must_use]
pub fn last_done_ns(reply: &Mem, geometry: &Geometry, generation: u32) -> Option<u64> {
    let done = |slot: u64| {
        let at = geometry.reply_slot(slot);
        let seq = reply.word(at);
        // Acquire: pairs with the Release in publish. The slot may be written again meanwhile: then it is newer than
        // what is looked for, and left out.
        let before = seq.load(Ordering::Acquire);
        let header = ReplyHeader::from_words(reply.load_words(at));
        fence(Ordering::Acquire);
        let whole = before != 0 && seq.load(Ordering::Relaxed) == before;
        (whole && header.generation == generation).then_some(header.t_done_ns)
    };
    (0..geometry.reply_count()).filter_map(done).max()
}

impl Responder {
    /// Uses mapped regions, and rebuilds the cursors from the replies that stand there.
    ///
    /// # Errors
    /// [`PeerFault::Replies`] when an earlier worker left nonsense.
    ///
    /// # Panics
    /// When the regions are smaller than the geometry says: check it at import.
    pub fn open(request: Mem, reply: Mem, geometry: Geometry) -> Result<Responder, PeerFault> {
        assert!(
            request.bytes() as u64 >= geometry.request_slot_end() && reply.bytes() as u64 >= geometry.reply_slot_end()
        );
        let latest = geometry.queue() == Queue::Latest;
        let mut new = Responder {
            request,
            reply,
            geometry,
            latest,
            requests: geometry.request_cursor(),
            replies: geometry.reply_cursor(),
            released: 0,
            step: 0,
            reset_pending: false,
            last_flags: 0,
            in_its_way: false,
        };
        new.rebuild()?;
        Ok(new)
    }

    /// Rebuilds the cursors from the published replies: on taking over from another worker.
    ///
    /// # Errors
    /// [`PeerFault::Replies`].
    pub fn rebuild(&mut self) -> Result<(), PeerFault> {
        let mut newest = 0;
        for slot in 0..self.geometry.reply_count() {
            // Acquire: pairs with the Release in the predecessor's publish.
            let seq = self.reply.word(self.geometry.reply_slot(slot)).load(Ordering::Acquire);
            if seq != 0 && ((seq - 1) % self.geometry.reply_count() != slot || seq > REQUEST_NUMBER_MAX) {
                return Err(PeerFault::Replies { slot, found: seq });
            }
            newest = newest.max(seq);
        }
        self.replies.seek(newest);
        self.released = 0;
        if newest == 0 {
            self.requests.seek(0);
            (self.step, self.reset_pending, self.last_flags) = (0, false, 0);
            return Ok(());
        }
        let last = ReplyHeader::from_words(self.reply.load_words(self.geometry.reply_slot(newest - 1)));
        if last.request > ANSWERED_MAX || last.request < newest - 1 || last.step > newest {
            return Err(PeerFault::Replies { slot: (newest - 1) % self.geometry.reply_count(), found: last.request });
        }
        self.requests.seek(last.request + 1);
        self.step = last.step;
        self.reset_pending = last.flags & REPLY_RESET_PENDING != 0;
        self.last_flags = last.flags;
        Ok(())
    }

    /// Number of the next request to take.
    #[must_use]
    #[inline]
    pub fn next_request(&self) -> u64 {
        self.requests.number()
    }

    /// Number of the next reply to publish.
    #[inline]
    fn next_reply(&self) -> u64 {
        self.replies.number()
    }

    /// Steps of this session that ended `ok`.
    #[must_use]
    #[inline]
    pub fn step(&self) -> u64 {
        self.step
    }

    /// `REPLY_*` bits of the last reply that was published.
    #[must_use]
    pub fn last_flags(&self) -> u32 {
        self.last_flags
    }

    #[inline]
    fn request_word(&self, word: usize) -> &AtomicU64 {
        self.request.word(self.geometry.request_base as usize + word)
    }

    #[inline]
    fn reply_word(&self, word: usize) -> &AtomicU64 {
        self.reply.word(self.geometry.reply_base as usize + word)
    }

    #[inline]
    fn seq(&self, number: u64) -> u64 {
        // Acquire: pairs with the Release store in Requester::publish.
        self.request.word(self.requests.at(number)).load(Ordering::Acquire)
    }

    /// Whether a reply may be published: the client has released enough. Looks at the client's word only when the count
    /// last seen does not suffice: that line belongs to the client's cache.
    #[inline]
    fn credit(&mut self) -> Result<bool, PeerFault> {
        let slots = u64::from(self.geometry.slots);
        if self.next_reply() - self.released < slots {
            return Ok(true);
        }
        // Acquire: the client's reads of the slot happen before our overwriting it.
        let found = self.request_word(REQ_RELEASED).load(Ordering::Acquire);
        if found < self.released || found > self.next_reply() {
            return Err(PeerFault::Released { found, least: self.released, most: self.next_reply() });
        }
        self.released = found;
        Ok(self.next_reply() - found < slots)
    }

    /// Takes the next request (`in_order`) or the newest one (`latest`), if one is there and its reply has room. The
    /// cursors move when its answer is published.
    ///
    /// # Errors
    /// [`PeerFault`] ends the session.
    #[inline]
    pub fn take(&mut self) -> Result<Option<Request>, PeerFault> {
        let n = self.next_request();
        let seq = self.seq(n);
        if seq == n + 1 {
            if !self.credit()? {
                return Ok(None);
            }
            return if self.latest { self.take_newest(n) } else { Ok(Some(self.header(n))) };
        }
        if seq == 0 || seq.checked_add(u64::from(self.geometry.slots)) == Some(n + 1) {
            // Old, or withdrawn for overwriting: then something newer may stand elsewhere.
            return if self.latest && seq == 0 { self.take_hinted(n) } else { Ok(None) };
        }
        self.take_unusual(n, seq)
    }

    /// A sequence number that is neither old nor due: fine in `latest`, when the client has gone round.
    #[cold]
    fn take_unusual(&mut self, n: u64, seq: u64) -> Result<Option<Request>, PeerFault> {
        let slots = u64::from(self.geometry.slots);
        let round = self.latest && seq > n + 1 && (seq - 1) % slots == n % slots;
        if !round || seq - n > REQUEST_JUMP_MAX || seq > REQUEST_NUMBER_MAX {
            return Err(PeerFault::Sequence { slot: n % slots, found: seq, expected: n });
        }
        if !self.credit()? {
            return Ok(None);
        }
        self.take_newest(seq - 1)
    }

    #[inline]
    fn take_hinted(&mut self, n: u64) -> Result<Option<Request>, PeerFault> {
        match self.hinted(n) {
            Some(newest) if self.credit()? => self.take_newest(newest),
            _ => Ok(None),
        }
    }

    /// The newest request that the published hint leads to, if it is newer than `n` and really there. The hint lags the
    /// slot by one at most.
    fn hinted(&self, n: u64) -> Option<u64> {
        let hint = self.request_word(REQ_PUBLISHED).load(Ordering::Acquire);
        if hint <= n || hint - n > REQUEST_JUMP_MAX || hint > REQUEST_NUMBER_MAX {
            return None;
        }
        [hint, hint - 1].into_iter().find(|newest| self.seq(*newest) == newest + 1)
    }

    /// Finds the newest request from `n` on, whose slot was seen published.
    #[inline]
    fn take_newest(&mut self, mut n: u64) -> Result<Option<Request>, PeerFault> {
        let slots = u64::from(self.geometry.slots);
        for _ in 0..LATEST_RETRIES_MAX {
            // The slots after it lie in our cache unless they have changed.
            for _ in 1..slots {
                if self.seq(n + 1) != n + 2 {
                    break;
                }
                n += 1;
            }
            let request = self.header(n);
            if self.confirm(&request) {
                return Ok(Some(request));
            }
            // Overwritten meanwhile: the hint names a newer one.
            n = self.hinted(n).unwrap_or(n);
        }
        Ok(None)
    }

    /// Whether the slot still holds the request: call after the last read of its tensors (`latest` only matters).
    #[must_use]
    #[inline]
    pub fn confirm(&self, request: &Request) -> bool {
        if !self.latest {
            return true;
        }
        // Acquire fence: our reads of the slot happen before the load below; pairs with the Release fence in
        // Requester::begin.
        fence(Ordering::Acquire);
        self.request.word(self.requests.at(request.number)).load(Ordering::Relaxed) == request.number + 1
    }

    #[inline]
    fn header(&self, n: u64) -> Request {
        // The tensors travel while the header is looked at.
        let at = self.requests.at(n);
        self.request.prefetch(at + HEADER_BYTES);
        let h = RequestHeader::from_words(self.request.load_words(at));
        let seq = n + 1;
        let flagged = h.flags & REQUEST_RESET != 0;
        let invalid = if h.flags & !REQUEST_FLAGS != 0 {
            Some(HeaderError::Flags(h.flags))
        } else if h.reserved != [0; 2] {
            Some(HeaderError::Reserved)
        } else if h.reset_seq > seq || flagged != (h.reset_seq == seq) {
            Some(HeaderError::Reset(h.reset_seq))
        } else {
            None
        };
        Request {
            number: n,
            observation_id: h.observation_id,
            t_submit_ns: h.t_submit_ns,
            deadline_ns: h.deadline_ns,
            executed: h.executed,
            // `next_request` is the seq of the last request taken: a newer reset has not been seen yet.
            reset: self.reset_pending || (invalid.is_none() && h.reset_seq > self.next_request()),
            skipped: u32::try_from(n - self.next_request()).unwrap_or(u32::MAX),
            invalid,
        }
    }

    /// Copies bytes of a request's tensor into the backend's own buffer.
    ///
    /// # Panics
    /// When the range is not within the slot: offsets are ours.
    #[inline]
    pub fn read(&self, request: &Request, offset: u64, to: &mut [u8]) {
        let end = offset.checked_add(to.len() as u64);
        assert!(end.is_some_and(|end| end <= self.geometry.request_stride), "a tensor lies within its slot");
        self.request.copy_out(self.requests.at(request.number) + offset as usize, to);
    }

    /// Copies bytes into the next reply's tensor.
    ///
    /// # Panics
    /// When the range is not within the slot: offsets are ours.
    #[inline]
    pub fn write(&mut self, offset: u64, from: &[u8]) {
        let end = offset.checked_add(from.len() as u64);
        let inside = offset >= HEADER_BYTES as u64 && end.is_some_and(|end| end <= self.geometry.reply_stride);
        assert!(inside, "a tensor lies within its slot");
        self.reply.copy_in(self.replies.here() + offset as usize, from);
    }

    /// Publishes the answer to a request: the only commit. Returns how the client must be woken.
    #[inline]
    pub fn publish(&mut self, request: &Request, answer: &Answer) -> Ring {
        let ran = answer.status == Status::Ok;
        self.reset_pending = !ran && request.reset;
        self.step += u64::from(ran);
        let pending = if self.reset_pending { REPLY_RESET_PENDING } else { 0 };
        self.last_flags = answer.flags | pending;
        let seq = self.next_reply() + 1;
        let header = ReplyHeader {
            seq,
            request: request.number,
            observation_id: request.observation_id,
            t_start_ns: answer.t_start_ns,
            t_done_ns: answer.t_done_ns,
            status: answer.status as u32,
            flags: self.last_flags,
            generation: answer.generation,
            skipped: request.skipped,
            step: self.step,
        };
        let at = self.replies.here();
        // Before the header: the client polls its line, and would steal it between header and `seq`.
        streaming_store_fence();
        let [_, fields @ ..] = header.words();
        self.reply.store_words(at + 8, fields);
        failpoint!("reply.header");
        // Release: pairs with the Acquire in Requester::poll, and with a successor's in `rebuild`.
        self.reply.word(at).store(seq, Ordering::Release);
        failpoint!("reply.published");
        self.replies.seek(seq);
        self.requests.seek(request.number + 1);
        self.wake_client()
    }

    /// What the state word says.
    #[must_use]
    pub fn state(&self) -> ServingState {
        ServingState::from_word(self.reply_word(REP_STATE).load(Ordering::Relaxed))
    }

    /// Says what the model does now, and wakes a sleeping client.
    pub fn set_state(&mut self, state: ServingState) -> Ring {
        self.reply_word(REP_STATE).store(state as u64, Ordering::Release);
        self.wake_client()
    }

    /// Whether the last reply woke a client that had fallen asleep on the CPU that we run on; see
    /// [`crate::requester::Requester::in_its_way`].
    #[must_use]
    #[inline]
    pub fn in_its_way(&self) -> bool {
        self.in_its_way
    }

    #[inline]
    fn wake_client(&mut self) -> Ring {
        // SeqCst: pairs with the fence in Requester::fall_asleep.
        full_fence();
        let how = self.request_word(REQ_SLEEPING).load(Ordering::Relaxed);
        let words = self.geometry.request_base as usize;
        self.in_its_way = how != AWAKE && fell_asleep_here(&self.request, words + REQ_SLEEPER_CPU);
        match how {
            AWAKE => Ring::Done,
            ASLEEP_SOCKET => Ring::Socket,
            _ => {
                let bell = self.reply_word(REP_DOORBELL);
                bell.store(bell.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
                failpoint!("reply.bell");
                self.reply.futex_wake(self.geometry.reply_base as usize + REP_DOORBELL);
                Ring::Done
            }
        }
    }

    /// Says that this worker goes to sleep (`socket`: on the doorbell socket, else on the doorbell word). Raise all
    /// sessions' words, then call [`crate::sync::fence`] once with SeqCst, then look at [`Self::quiet`] of each.
    pub fn fall_asleep(&self, socket: bool) {
        let how = if socket { ASLEEP_SOCKET } else { ASLEEP_FUTEX };
        falls_asleep_here(&self.reply, self.geometry.reply_base as usize + REP_SLEEPER_CPU);
        self.reply_word(REP_SLEEPING).store(how, Ordering::Relaxed);
    }

    /// Says that the worker is awake; also on taking over from a worker that slept.
    pub fn wake_up(&self) {
        self.reply_word(REP_SLEEPING).store(AWAKE, Ordering::Relaxed);
    }

    /// Whether nothing can be taken, seen after the fence. A request without credit is quiet: the client rings when it
    /// releases while a request of its is unanswered.
    #[must_use]
    pub fn quiet(&mut self) -> bool {
        let n = self.next_request();
        let seq = self.seq(n);
        let old = seq == 0 || seq.checked_add(u64::from(self.geometry.slots)) == Some(n + 1);
        let empty = old && (!self.latest || self.hinted(n).is_none());
        // A fault is not quiet: the next take reports it.
        empty || matches!(self.credit(), Ok(false))
    }

    /// The client's doorbell word: where to sleep, and the value it has now. Read it before the fence.
    #[must_use]
    pub fn doorbell(&self) -> (&Mem, usize, u64) {
        let at = self.geometry.request_base as usize + REQ_DOORBELL;
        (&self.request, at, self.request.word(at).load(Ordering::Acquire))
    }

    /// Whether the client truncated its named segment.
    #[must_use]
    pub fn damaged(&self) -> bool {
        self.request.damaged() || self.reply.damaged()
    }

    /// Answers everything published up to now without running it. Returns the number of replies.
    ///
    /// # Errors
    /// [`PeerFault`] ends the session.
    pub fn answer_all(&mut self, answer: Answer, ring: &mut dyn FnMut(Ring)) -> Result<u64, PeerFault> {
        let mut answered = 0;
        // Bounded: a client cannot keep us here by publishing on and on.
        for _ in 0..2 * self.geometry.reply_count() {
            let Some(request) = self.take()? else { break };
            let status = if request.invalid.is_some() { Status::Rejected } else { answer.status };
            ring(self.publish(&request, &Answer { status, ..answer }));
            answered += 1;
        }
        Ok(answered)
    }

    /// Answers the request that a dead worker was running, unless its reply stands. Requests before it that `latest`
    /// passed over count as skipped.
    ///
    /// # Errors
    /// [`PeerFault`].
    pub fn answer_lost(&mut self, number: u64, answer: &Answer) -> Result<Option<Ring>, PeerFault> {
        if number < self.next_request() || number > REQUEST_NUMBER_MAX {
            return Ok(None);
        }
        let mut request = self.header(number);
        // The slot may have been overwritten since: then its label is not known any more.
        if !self.confirm(&request) {
            (request.observation_id, request.invalid) = (0, None);
        }
        Ok(Some(self.publish(&request, answer)))
    }
}
