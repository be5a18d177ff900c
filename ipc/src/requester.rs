//! The client's end of a session's rings: writes requests, reads replies.
//!
//! Publishing is one store of the slot's sequence number; the doorbell is rung only if the worker
//! says that it sleeps. Replies appear in order and are released in order: credit is a count.
//! This file knows nothing of sockets' life, tickets or time-outs; the client library does.

use crate::cursor::Cursor;
use crate::failpoint;
use crate::layout::{
    ASLEEP_FUTEX, ASLEEP_SOCKET, AWAKE, Geometry, HEADER_BYTES, Queue, REP_DOORBELL, REP_SLEEPER_CPU, REP_SLEEPING,
    REP_STATE, REQ_DOORBELL, REQ_PUBLISHED, REQ_RELEASED, REQ_SLEEPER_CPU, REQ_SLEEPING, REQUEST_RESET, ReplyHeader,
    RequestHeader, ServingState,
};
use crate::mem::{Mem, Wait};
use crate::sleeper::{falls_asleep_here, fell_asleep_here};
use crate::sync::{Ordering, fence, full_fence, streaming_store_fence};
use std::time::Duration;

/// How the worker must be woken after a publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ring {
    /// It is awake, or was woken already.
    Done,
    /// It sleeps on the doorbell socket: send one byte there.
    Socket,
}

/// What a request says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RequestMeta {
    /// The caller's label.
    pub observation_id: u64,
    /// CLOCK_MONOTONIC nanoseconds at submit.
    pub t_submit_ns: u64,
    /// CLOCK_MONOTONIC nanoseconds after which the run shall not begin; 0 for none.
    pub deadline_ns: u64,
    /// Steps of the previous action chunk that were executed.
    pub executed: u32,
    /// Run this step on fresh state.
    pub reset: bool,
}

/// The client's end; see the module.
#[derive(Debug)]
pub struct Requester {
    request: Mem,
    reply: Mem,
    geometry: Geometry,
    latest: bool,
    /// The next request's slot.
    next: Cursor,
    /// The slot of the next reply to look for.
    expected: Cursor,
    /// Replies released.
    released: u64,
    /// Requests answered or superseded, as far as polled.
    answered: u64,
    /// `seq` of the newest request with the reset flag.
    reset_seq: u64,
    /// Whether the slot of `next` was prepared.
    begun: bool,
    /// The state word as last seen.
    state: u64,
    /// Whether the worker was woken just now and had fallen asleep on our CPU.
    in_its_way: bool,
}

impl Requester {
    /// Uses mapped regions of a fresh session.
    ///
    /// # Panics
    /// When the regions are smaller than the geometry says: check it at import.
    #[must_use]
    pub fn new(request: Mem, reply: Mem, geometry: Geometry) -> Requester {
        assert!(
            request.bytes() as u64 >= geometry.request_slot_end() && reply.bytes() as u64 >= geometry.reply_slot_end()
        );
        let latest = geometry.queue() == Queue::Latest;
        let mut new = Requester {
            request,
            reply,
            geometry,
            latest,
            next: geometry.request_cursor(),
            expected: geometry.reply_cursor(),
            released: 0,
            answered: 0,
            reset_seq: 0,
            begun: false,
            state: 0,
            in_its_way: false,
        };
        new.state = new.reply_word(REP_STATE).load(Ordering::Acquire);
        new
    }

    #[inline]
    fn request_word(&self, word: usize) -> &crate::sync::AtomicU64 {
        self.request.word(self.geometry.request_base as usize + word)
    }

    #[inline]
    fn reply_word(&self, word: usize) -> &crate::sync::AtomicU64 {
        self.reply.word(self.geometry.reply_base as usize + word)
    }

    /// Number that the next request will have.
    #[must_use]
    #[inline]
    pub fn next(&self) -> u64 {
        self.next.number()
    }

    /// Number of the next reply that is looked for.
    #[must_use]
    #[inline]
    pub fn expected(&self) -> u64 {
        self.expected.number()
    }

    /// Replies released so far.
    #[must_use]
    #[inline]
    pub fn released(&self) -> u64 {
        self.released
    }

    /// The session's geometry.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The model's state, as the worker or the supervisor says.
    #[inline]
    pub fn state(&mut self) -> ServingState {
        self.state = self.reply_word(REP_STATE).load(Ordering::Acquire);
        ServingState::from_word(self.state)
    }

    /// Prepares the slot of the next request. False when all slots are in flight (`in_order`); `latest` never refuses:
    /// it withdraws the oldest slot.
    #[inline]
    pub fn begin(&mut self) -> bool {
        if self.begun {
            return true;
        }
        if self.latest {
            let seq = self.request.word(self.next.here());
            seq.store(0, Ordering::Relaxed);
            // Release fence: whoever sees any byte of the new tensors sees the withdrawal when it looks at `seq` again
            // (pairs with the Acquire fence in Responder::confirm).
            fence(Ordering::Release);
        } else if self.next() - self.released >= u64::from(self.geometry.slots) {
            return false;
        }
        failpoint!("client.begun");
        self.begun = true;
        true
    }

    /// The bytes of a tensor in the next request's slot, to be written in place. Only between [`Self::begin`] and
    /// [`Self::publish`].
    ///
    /// # Panics
    /// When the slot was not begun or the range is not within the slot's tensors.
    #[cfg(not(loom))]
    #[inline]
    pub fn input_mut(&mut self, offset: u64, bytes: u64) -> &mut [u8] {
        let at = self.input_at(offset, bytes);
        // SAFETY: this process's mapping is the only writable one (the kernel's seals see to it; with named segments
        // the peers' good manners); `&mut self` keeps the slice alone; peers only read, and validate by `seq`.
        unsafe { self.request.own_slice(at, bytes as usize) }
    }

    /// Copies a tensor into the next request's slot.
    #[inline]
    pub fn write(&mut self, offset: u64, from: &[u8]) {
        self.request.copy_in(self.input_at(offset, from.len() as u64), from);
    }

    #[inline]
    fn input_at(&self, offset: u64, bytes: u64) -> usize {
        assert!(self.begun, "begin() comes before writing");
        let end = offset.checked_add(bytes);
        let inside = offset >= HEADER_BYTES as u64 && end.is_some_and(|end| end <= self.geometry.request_stride);
        assert!(inside, "a tensor lies within its slot");
        self.next.here() + offset as usize
    }

    /// Publishes the request that was begun; returns its number and how the worker must be woken.
    ///
    /// # Panics
    /// When no slot was begun.
    #[inline]
    pub fn publish(&mut self, meta: &RequestMeta) -> (u64, Ring) {
        assert!(self.begun, "begin() comes before publish()");
        let seq = self.next() + 1;
        if meta.reset {
            self.reset_seq = seq;
        }
        let header = RequestHeader {
            seq,
            observation_id: meta.observation_id,
            t_submit_ns: meta.t_submit_ns,
            deadline_ns: meta.deadline_ns,
            flags: if meta.reset { REQUEST_RESET } else { 0 },
            executed: meta.executed,
            reset_seq: self.reset_seq,
            reserved: [0; 2],
        };
        let at = self.next.here();
        // Before the header: the worker polls its line, and would steal it between header and `seq`.
        streaming_store_fence();
        let [_, fields @ ..] = header.words();
        self.request.store_words(at + 8, fields);
        failpoint!("client.header");
        // Release: pairs with the Acquire load of `seq` in Responder::take.
        self.request.word(at).store(seq, Ordering::Release);
        failpoint!("client.published");
        self.request_word(REQ_PUBLISHED).store(seq, Ordering::Release);
        failpoint!("client.hinted");
        self.begun = false;
        self.next.seek(seq);
        (seq - 1, self.wake_worker())
    }

    /// Whether the last publish woke a worker that had fallen asleep on the CPU that we run on. It will most likely be put
    /// there again and cannot answer before we leave it: sleep rather than spin.
    #[must_use]
    #[inline]
    pub fn in_its_way(&self) -> bool {
        self.in_its_way
    }

    #[inline]
    fn wake_worker(&mut self) -> Ring {
        // SeqCst: orders the stores above before the load below; pairs with the fence in Responder::fall_asleep, so
        // that either we see it asleep, or it sees our request.
        full_fence();
        let how = self.reply_word(REP_SLEEPING).load(Ordering::Relaxed);
        self.in_its_way =
            how != AWAKE && fell_asleep_here(&self.reply, self.geometry.reply_base as usize + REP_SLEEPER_CPU);
        match how {
            AWAKE => Ring::Done,
            ASLEEP_SOCKET => Ring::Socket,
            _ => {
                let bell = self.request_word(REQ_DOORBELL);
                // The word changes before the wake, so that a waiter on its way to sleep does not.
                bell.store(bell.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
                failpoint!("client.bell");
                self.request.futex_wake(self.geometry.request_base as usize + REQ_DOORBELL);
                Ring::Done
            }
        }
    }

    /// Whether the next reply is there.
    #[must_use]
    #[inline]
    pub fn reply_ready(&self) -> bool {
        let at = self.expected.here();
        let ready = self.reply.word(at).load(Ordering::Acquire) == self.expected() + 1;
        if ready {
            // The tensors travel while the header is looked at.
            self.reply.prefetch(at + HEADER_BYTES);
        }
        ready
    }

    /// The next reply's number and header, once it is there; the one after it is expected next.
    #[inline]
    pub fn poll(&mut self) -> Option<(u64, ReplyHeader)> {
        let at = self.expected.here();
        // Acquire: pairs with the Release store of `seq` in Responder::publish.
        let number = self.expected();
        if self.reply.word(at).load(Ordering::Acquire) != number + 1 {
            return None;
        }
        let header = ReplyHeader::from_words(self.reply.load_words(at));
        failpoint!("client.polled");
        self.expected.seek(number + 1);
        self.answered = header.request.saturating_add(1);
        Some((number, header))
    }

    /// Copies bytes of a reply's tensors out. The reply must have been polled and not released.
    #[inline]
    pub fn read(&self, reply: u64, offset: u64, to: &mut [u8]) {
        self.reply.copy_out(self.output_at(reply, offset, to.len() as u64), to);
    }

    /// A pointer to a reply's tensor, valid until the reply is released. The daemon does not rewrite a published reply.
    #[must_use]
    #[cfg(not(loom))]
    pub fn output_pointer(&self, reply: u64, offset: u64, bytes: u64) -> *const u8 {
        self.reply.pointer(self.output_at(reply, offset, bytes), bytes as usize)
    }

    #[inline]
    fn output_at(&self, reply: u64, offset: u64, bytes: u64) -> usize {
        assert!(
            reply < self.expected() && reply >= self.released,
            "a reply is read between its arrival and its release"
        );
        let end = offset.checked_add(bytes);
        let inside = offset >= HEADER_BYTES as u64 && end.is_some_and(|end| end <= self.geometry.reply_stride);
        assert!(inside, "a tensor lies within its slot");
        self.expected.at(reply) + offset as usize
    }

    /// Releases all replies before number `count`; returns how the worker must be woken. It may sleep for lack of credit
    /// only while a request of ours is unanswered, so only then is it looked at.
    ///
    /// # Panics
    /// When it runs backwards or past what was polled.
    #[inline]
    pub fn release(&mut self, count: u64) -> Ring {
        assert!(count >= self.released && count <= self.expected(), "replies are released in order");
        self.released = count;
        // Release: our reads of the slots happen before; pairs with the Acquire in Responder::credit.
        self.request_word(REQ_RELEASED).store(count, Ordering::Release);
        failpoint!("client.released");
        if self.latest && self.answered < self.next() { self.wake_worker() } else { Ring::Done }
    }

    /// Sleeps on the doorbell word until a reply or another state comes, or the time is up. Returns at once when one is
    /// there. A spurious return is possible; look again.
    pub fn sleep(&mut self, timeout: Option<Duration>) -> Wait {
        let bell = self.reply_word(REP_DOORBELL).load(Ordering::Acquire);
        let woken = if self.fall_asleep(ASLEEP_FUTEX) {
            self.reply.futex_wait(self.geometry.reply_base as usize + REP_DOORBELL, bell, timeout)
        } else {
            Wait::Woken
        };
        self.wake_up();
        woken
    }

    /// Arms the doorbell socket: it becomes readable when a reply or another state comes. False when one is there
    /// already (and nothing is armed). Drain the socket before.
    pub fn arm_socket(&mut self) -> bool {
        let asleep = self.fall_asleep(ASLEEP_SOCKET);
        if !asleep {
            self.wake_up();
        }
        asleep
    }

    /// The client is awake: the worker need not ring.
    pub fn wake_up(&self) {
        self.request_word(REQ_SLEEPING).store(AWAKE, Ordering::Relaxed);
    }

    fn fall_asleep(&self, how: u64) -> bool {
        falls_asleep_here(&self.request, self.geometry.request_base as usize + REQ_SLEEPER_CPU);
        self.request_word(REQ_SLEEPING).store(how, Ordering::Relaxed);
        failpoint!("client.asleep");
        // SeqCst: pairs with the fence in Responder::wake_client.
        fence(Ordering::SeqCst);
        !self.reply_ready() && self.reply_word(REP_STATE).load(Ordering::Relaxed) == self.state
    }
}
