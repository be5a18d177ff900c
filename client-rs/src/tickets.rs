//! Outstanding requests and held replies: which reply answers which ticket, and what may be released.
//!
//! Pure bookkeeping of one attach, no memory of the session in it. Replies come in order; the released
//! count advances over the contiguous released prefix only. `in_order`: reply r answers request r.
//! `latest`: replies answer growing request numbers, and what lies between two of them was superseded;
//! giving up a ticket gives up every older one too. Nothing here allocates after `new`.

use inferd_ipc::layout::{Queue, ReplyHeader};
use inferd_ipc::limits::{CLIENT_HISTORY, SLOTS_MAX};

const _: () = assert!(CLIENT_HISTORY >= 2 * SLOTS_MAX as usize, "held replies are looked up in the history");

/// Submit time of a request that nobody waits for.
const CANCELLED: u64 = u64::MAX;

/// What is known of a ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// No outcome yet.
    Pending,
    /// This reply answers it and is unclaimed.
    Reply(u64),
    /// `latest`: the worker took this newer request instead.
    Superseded(u64),
    /// Claimed, abandoned, passed over, or too far back.
    Spent,
}

/// A reply header that contradicts what was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReplyFault(pub(crate) &'static str);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Claim {
    /// Arrived; nobody has asked for it.
    Unclaimed,
    /// In the caller's hands.
    Claimed,
    #[default]
    Released,
}

#[derive(Debug, Clone, Copy, Default)]
struct Record {
    header: ReplyHeader,
    claim: Claim,
}

/// The requests and replies of one attach.
#[derive(Debug)]
pub(crate) struct Tickets {
    queue: Queue,
    slots: u64,
    /// Number of the next request.
    next: u64,
    /// Number of the next reply to look for.
    seen: u64,
    /// Replies released, as a contiguous prefix: what the worker may be told.
    released: u64,
    /// `latest`: requests below this are given up.
    given_up: u64,
    /// `in_order`: requests in flight that are given up, by slot.
    abandoned: Box<[bool]>,
    records: Box<[Record]>,
    t_submit_ns: Box<[u64]>,
}

impl Tickets {
    pub(crate) fn new(queue: Queue, slots: u32) -> Tickets {
        Tickets {
            queue,
            slots: u64::from(slots.max(1)),
            next: 0,
            seen: 0,
            released: 0,
            given_up: 0,
            abandoned: vec![false; slots.max(1) as usize].into(),
            records: vec![Record::default(); CLIENT_HISTORY].into(),
            t_submit_ns: vec![0; CLIENT_HISTORY].into(),
        }
    }

    /// Whether a request may be published: always in `latest`; else while a slot is free in both regions.
    pub(crate) fn may_submit(&self) -> bool {
        self.queue == Queue::Latest || self.next - self.released < self.slots
    }

    /// Replies released, as a contiguous prefix.
    pub(crate) fn released(&self) -> u64 {
        self.released
    }

    /// Whether a request without an outcome is in flight.
    pub(crate) fn any_pending(&self) -> bool {
        self.unanswered_from() < self.next
    }

    /// Whether a further reply may be looked for: the worker publishes only into released slots.
    pub(crate) fn has_room(&self) -> bool {
        self.seen - self.released < self.slots
    }

    /// Takes the next number, for a request published at this time.
    pub(crate) fn submitted(&mut self, t_submit_ns: u64) -> u64 {
        let n = self.next;
        self.next += 1;
        self.t_submit_ns[n as usize % CLIENT_HISTORY] = t_submit_ns;
        if self.queue == Queue::InOrder {
            self.abandoned[(n % self.slots) as usize] = false;
        }
        n
    }

    /// Takes the next number for a request that nobody waits for: its reply is released when it arrives.
    pub(crate) fn cancelled(&mut self) {
        self.submitted(CANCELLED);
    }

    /// When the request was submitted; 0 if that is more than [`CLIENT_HISTORY`] requests ago.
    pub(crate) fn t_submit_ns(&self, n: u64) -> u64 {
        if self.next - n > CLIENT_HISTORY as u64 { 0 } else { self.t_submit_ns[n as usize % CLIENT_HISTORY] }
    }

    /// Takes note of the next reply; releases it at once if its ticket is given up.
    pub(crate) fn arrived(&mut self, header: &ReplyHeader) -> Result<(), ReplyFault> {
        let (r, n) = (self.seen, header.request);
        let first = self.unanswered_from();
        if !self.has_room() {
            return Err(ReplyFault("a reply in a slot that was not released"));
        }
        if n >= self.next || n < first {
            return Err(ReplyFault("a reply to a request that is not in flight"));
        }
        if self.queue == Queue::InOrder && n != r {
            return Err(ReplyFault("a reply out of order"));
        }
        let given_up = match self.queue {
            Queue::InOrder => self.abandoned[(n % self.slots) as usize],
            Queue::Latest => n < self.given_up || self.t_submit_ns(n) == CANCELLED,
        };
        *self.record_mut(r) = Record { header: *header, claim: Claim::Unclaimed };
        self.seen += 1;
        if given_up {
            self.release(r);
        }
        Ok(())
    }

    /// What is known of request `n`.
    pub(crate) fn look(&self, n: u64) -> Fate {
        if n >= self.next {
            return Fate::Spent;
        }
        if n >= self.unanswered_from() {
            let given_up = match self.queue {
                Queue::InOrder => self.abandoned[(n % self.slots) as usize],
                Queue::Latest => n < self.given_up,
            };
            return if given_up { Fate::Spent } else { Fate::Pending };
        }
        let Some(r) = self.answering(n) else { return Fate::Spent };
        let record = self.record(r);
        match (record.header.request == n, record.claim) {
            (true, Claim::Unclaimed) => Fate::Reply(r),
            (true, _) => Fate::Spent,
            (false, _) => Fate::Superseded(record.header.request),
        }
    }

    /// Hands an unclaimed reply to the caller; in `latest`, older unclaimed ones are released.
    pub(crate) fn claim(&mut self, r: u64) -> ReplyHeader {
        self.record_mut(r).claim = Claim::Claimed;
        let header = self.record(r).header;
        self.pass_over(header.request);
        header
    }

    /// `latest`: releases unclaimed replies to requests older than `n`, whose outcome is known now.
    pub(crate) fn pass_over(&mut self, n: u64) {
        if self.queue == Queue::Latest {
            for r in self.released..self.seen {
                if self.record(r).claim == Claim::Unclaimed && self.record(r).header.request < n {
                    self.release(r);
                }
            }
        }
    }

    /// `latest`, while `n` is pending: an unclaimed older reply must not keep the worker from running `n`.
    /// Says whether a slot became free.
    pub(crate) fn make_room_for(&mut self, n: u64) -> bool {
        if self.queue == Queue::InOrder || self.has_room() {
            return false;
        }
        let older = |t: &Tickets, r: u64| t.record(r).claim == Claim::Unclaimed && t.record(r).header.request < n;
        if let Some(r) = (self.released..self.seen).find(|r| older(self, *r)) {
            self.release(r);
        }
        self.has_room()
    }

    /// The next unclaimed reply for a caller who takes any: the oldest in `in_order`, the newest in `latest`.
    pub(crate) fn any(&self) -> Option<u64> {
        let mut unclaimed = (self.released..self.seen).filter(|r| self.record(*r).claim == Claim::Unclaimed);
        match self.queue {
            Queue::InOrder => unclaimed.next(),
            Queue::Latest => unclaimed.next_back(),
        }
    }

    /// Gives a reply back; the released count advances over the contiguous prefix.
    pub(crate) fn release(&mut self, r: u64) {
        self.record_mut(r).claim = Claim::Released;
        while self.released < self.seen && self.record(self.released).claim == Claim::Released {
            self.released += 1;
        }
    }

    /// Gives a ticket up: its reply is released now, or when it arrives. In `latest`, every older one too.
    pub(crate) fn abandon(&mut self, n: u64) {
        if n >= self.next {
            return;
        }
        if self.queue == Queue::Latest {
            self.given_up = self.given_up.max(n + 1);
            self.pass_over(n + 1);
        } else if n >= self.seen {
            self.abandoned[(n % self.slots) as usize] = true;
        } else if let Fate::Reply(r) = self.look(n) {
            self.release(r);
        }
    }

    /// The oldest request that no reply has answered or passed over.
    fn unanswered_from(&self) -> u64 {
        if self.seen == 0 { 0 } else { self.record(self.seen - 1).header.request + 1 }
    }

    /// The oldest remembered reply whose request is `n` or newer, unless it may be one that is forgotten.
    fn answering(&self, n: u64) -> Option<u64> {
        // Nearly always the newest reply, or in `in_order` the one of that number: no search.
        let newest = self.seen.checked_sub(1)?;
        if self.record(newest).header.request == n {
            return Some(newest);
        }
        if self.queue == Queue::InOrder {
            return (n < self.seen && self.seen - n <= CLIENT_HISTORY as u64).then_some(n);
        }
        let (mut low, mut high) = (self.seen.saturating_sub(CLIENT_HISTORY as u64), self.seen);
        let oldest = low;
        while low < high {
            let middle = low + (high - low) / 2;
            if self.record(middle).header.request < n { low = middle + 1 } else { high = middle }
        }
        let certain = low > oldest || oldest == 0 || (low < self.seen && self.record(low).header.request == n);
        (low < self.seen && certain).then_some(low)
    }

    fn record(&self, r: u64) -> &Record {
        &self.records[r as usize % CLIENT_HISTORY]
    }

    fn record_mut(&mut self, r: u64) -> &mut Record {
        &mut self.records[r as usize % CLIENT_HISTORY]
    }
}

#[cfg(test)]
#[path = "tickets_tests.rs"]
mod tests;
