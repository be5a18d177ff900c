//! The one epoll set of the daemon, and its timers.
//!
//! A descriptor is registered under a [`Token`] that says what it belongs to; an event whose owner is
//! gone by the time it is looked at is dropped by whoever looks the token up, so numbers are never used
//! twice. Timers fire through the timeout of `epoll_wait`; they are never cancelled: who receives one
//! checks whether it still means anything. Without a timer and without events nobody wakes.

use inferd_ipc::limits::EVENTS_PER_WAIT;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// What a registered descriptor belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// The listening attach socket.
    AttachListener,
    /// The listening control socket.
    ControlListener,
    /// The pipe that signals arrive on.
    Signals,
    /// The staging thread has something.
    Staging,
    /// The store's thread has something.
    Store,
    /// A watched folder has changed.
    Files,
    /// A connection on the attach socket.
    Attach(u64),
    /// A connection on the control socket.
    Control(u64),
    /// A worker's record socket.
    Worker(u64),
    /// A worker's pidfd.
    WorkerExit(u64),
    /// A connection whose close took its time is closed.
    Closed,
}

impl Token {
    const KINDS: [fn(u64) -> Token; 11] = [
        |_| Token::AttachListener,
        |_| Token::ControlListener,
        |_| Token::Signals,
        |_| Token::Staging,
        |_| Token::Store,
        |_| Token::Files,
        Token::Attach,
        Token::Control,
        Token::Worker,
        Token::WorkerExit,
        |_| Token::Closed,
    ];

    fn number(self) -> u64 {
        let (kind, id) = match self {
            Token::AttachListener => (0, 0),
            Token::ControlListener => (1, 0),
            Token::Signals => (2, 0),
            Token::Staging => (3, 0),
            Token::Store => (4, 0),
            Token::Files => (5, 0),
            Token::Attach(id) => (6, id),
            Token::Control(id) => (7, id),
            Token::Worker(id) => (8, id),
            Token::WorkerExit(id) => (9, id),
            Token::Closed => (10, 0),
        };
        id << 4 | kind
    }

    fn from_number(number: u64) -> Token {
        Token::KINDS[(number & 15) as usize](number >> 4)
    }
}

/// What a descriptor is ready for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// There is something to read, or the peer is gone.
    pub read: bool,
    /// There is room to write.
    pub write: bool,
    /// The peer is gone.
    pub hang_up: bool,
}

/// The epoll set and its timers of type `T`.
pub struct Poller<T> {
    epoll: Epoll,
    timers: BinaryHeap<Reverse<Entry<T>>>,
    timers_set: u64,
    /// Where the time stands, in a test that moves it itself.
    #[cfg(test)]
    stands: Option<Instant>,
}

struct Entry<T> {
    at: Instant,
    order: u64,
    timer: T,
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}
impl<T> Eq for Entry<T> {}
impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

impl<T> Poller<T> {
    /// An empty set.
    ///
    /// # Errors
    /// The kernel's, when descriptors have run out.
    pub fn new() -> nix::Result<Poller<T>> {
        Ok(Poller {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            timers: BinaryHeap::new(),
            timers_set: 0,
            #[cfg(test)]
            stands: None,
        })
    }

    /// Watches a descriptor for reading.
    ///
    /// # Errors
    /// The kernel's.
    pub fn add(&self, fd: impl AsFd, token: Token) -> nix::Result<()> {
        self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP, token.number()))
    }

    /// As [`Poller::add`], for a stream: see [`Poller::interest_stream`].
    ///
    /// # Errors
    /// The kernel's.
    pub fn add_stream(&self, fd: impl AsFd, token: Token) -> nix::Result<()> {
        self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token.number()))
    }

    /// Watches a descriptor for reading if `read`, for writing if `write`, and always for the peer's end.
    pub fn interest(&self, fd: impl AsFd, token: Token, read: bool, write: bool) {
        let mut flags = EpollFlags::EPOLLRDHUP;
        flags.set(EpollFlags::EPOLLIN, read);
        flags.set(EpollFlags::EPOLLOUT, write);
        let mut event = EpollEvent::new(flags, token.number());
        self.epoll.modify(fd, &mut event).expect("a descriptor that is registered can be changed");
    }

    /// As [`Poller::interest`], for a stream whose peer may have sent its last line and still wait for answers: a half
    /// closed connection is no hang-up.
    pub fn interest_stream(&self, fd: impl AsFd, token: Token, read: bool, write: bool) {
        let mut flags = EpollFlags::empty();
        flags.set(EpollFlags::EPOLLIN, read);
        flags.set(EpollFlags::EPOLLOUT, write);
        let mut event = EpollEvent::new(flags, token.number());
        self.epoll.modify(fd, &mut event).expect("a descriptor that is registered can be changed");
    }

    /// Stops watching; the descriptor may be closed afterwards.
    pub fn remove(&self, fd: impl AsFd) {
        // A descriptor that was never registered because registering failed: nothing to undo.
        let _ = self.epoll.delete(fd);
    }

    /// Forgets timers that nobody needs any more: they would be kept until their time.
    pub fn cancel(&mut self, needless: impl Fn(&T) -> bool) {
        self.timers.retain(|Reverse(entry)| !needless(&entry.timer));
    }

    /// The time, as timers are due by it.
    pub fn now(&self) -> Instant {
        #[cfg(test)]
        if let Some(at) = self.stands {
            return at;
        }
        Instant::now()
    }

    /// Fires `timer` after `wait`.
    pub fn after(&mut self, wait: Duration, timer: T) {
        self.timers_set += 1;
        self.timers.push(Reverse(Entry { at: self.now() + wait, order: self.timers_set, timer }));
    }

    /// Fires `timer` after this many milliseconds.
    pub fn after_ms(&mut self, wait_ms: u64, timer: T) {
        self.after(Duration::from_millis(wait_ms), timer);
    }

    /// The next timer that is due.
    pub fn due(&mut self) -> Option<T> {
        if self.timers.peek()?.0.at > self.now() {
            return None;
        }
        self.timers.pop().map(|entry| entry.0.timer)
    }

    /// Sleeps until something happens; what happened goes into `events`.
    ///
    /// # Errors
    /// The kernel's, EINTR excepted.
    pub fn wait(&self, events: &mut Vec<(Token, Ready)>) -> nix::Result<()> {
        let timeout = match self.timers.peek() {
            None => EpollTimeout::NONE,
            // Rounded up: a timer that is looked at too early costs a second wake-up.
            Some(entry) => {
                let wait_us = entry.0.at.saturating_duration_since(self.now()).as_micros();
                EpollTimeout::try_from(wait_us.div_ceil(1000).min(1 << 30) as u32).unwrap_or(EpollTimeout::MAX)
            }
        };
        #[cfg(test)]
        let timeout = if self.stands.is_some() { EpollTimeout::ZERO } else { timeout };
        let mut buffer = [EpollEvent::empty(); EVENTS_PER_WAIT];
        let count = match self.epoll.wait(&mut buffer, timeout) {
            Err(nix::errno::Errno::EINTR) => 0,
            other => other?,
        };
        events.clear();
        events.extend(buffer[..count].iter().map(|event| {
            let flags = event.events();
            let hang_up = flags.intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLERR);
            let ready = Ready {
                read: hang_up || flags.contains(EpollFlags::EPOLLIN),
                write: flags.contains(EpollFlags::EPOLLOUT),
                hang_up,
            };
            (Token::from_number(event.data()), ready)
        }));
        Ok(())
    }
}

/// For a test that is the only one to move the time, and looks at what is left behind.
#[cfg(test)]
impl<T> Poller<T> {
    /// Time stands at `at` from now on, and nobody sleeps until it has passed.
    pub fn set_time(&mut self, at: Instant) {
        self.stands = Some(at);
    }

    /// What will fire, and when.
    pub fn timers(&self) -> impl Iterator<Item = (Instant, &T)> {
        self.timers.iter().map(|Reverse(entry)| (entry.at, &entry.timer))
    }

    /// How many descriptors are watched, as the kernel says.
    pub fn watched(&self) -> usize {
        use std::os::fd::AsRawFd;
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", self.epoll.0.as_raw_fd()));
        info.expect("procfs").lines().filter(|line| line.starts_with("tfd:")).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_token_survives_the_way_through_the_kernel() {
        for id in [0, 1, 77, u64::MAX >> 4] {
            for kind in Token::KINDS {
                assert_eq!(Token::from_number(kind(id).number()), kind(id));
            }
        }
    }

    #[test]
    fn timers_fire_in_the_order_of_their_time_and_then_of_their_setting() {
        let mut poller: Poller<u32> = Poller::new().expect("epoll");
        poller.after_ms(5, 3);
        poller.after_ms(0, 1);
        poller.after_ms(0, 2);
        assert_eq!((poller.due(), poller.due(), poller.due()), (Some(1), Some(2), None));
        let mut events = Vec::new();
        poller.wait(&mut events).expect("wait");
        assert_eq!((events.is_empty(), poller.due()), (true, Some(3)));
    }

    #[test]
    fn a_cancelled_timer_does_not_fire_and_the_others_do() {
        let mut poller: Poller<u32> = Poller::new().expect("epoll");
        (0..100).for_each(|n| poller.after_ms(0, n));
        poller.cancel(|timer| timer % 10 != 3);
        let fired: Vec<u32> = std::iter::from_fn(|| poller.due()).collect();
        assert_eq!(fired, (0..10).map(|n| 10 * n + 3).collect::<Vec<_>>());
    }

    #[test]
    fn the_end_of_a_peer_is_seen_even_when_nothing_else_is_asked_for() {
        let poller: Poller<u32> = Poller::new().expect("epoll");
        let (here, there) = UnixStream::pair().expect("socketpair");
        poller.add(&here, Token::Attach(7)).expect("add");
        poller.interest(&here, Token::Attach(7), false, false);
        drop(there);
        let mut events = Vec::new();
        poller.wait(&mut events).expect("wait");
        assert_eq!(events, [(Token::Attach(7), Ready { read: true, write: false, hang_up: true })]);
    }
}
