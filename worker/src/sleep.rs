//! How an executor sleeps over its sessions, and is woken by any of them.
//!
//! `futex_waitv` over the sessions' doorbell words where the kernel has it and the words fit; else
//! epoll over their doorbell sockets, and the clients are told so by the sleeping word. No sleep has
//! a time-out. Only the holder of the baton waits on doorbells or writes sleeping words.

use crate::mailbox::Mailbox;
use crate::session::Session;
use inferd_ipc::baton::{Baton, GRANT};
use inferd_ipc::failpoint;
use inferd_ipc::fdpass::{self, Drained};
use inferd_ipc::limits::FUTEX_WAITV_MAX;
use inferd_ipc::sync::{Ordering, fence};
use inferd_ipc::sys::{WaitWord, wait_any};
use inferd_ipc::worker_records::Waiting;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// Words of a sleep that are not doorbells: the grant and the mailbox.
const OWN_WORDS: usize = 2;
/// Marks the mailbox among the epoll events; sessions are numbered from 1.
const MAILBOX: u64 = 0;

/// Values of the words that end an idle sleep, read before the last look at what they announce.
pub struct Seen {
    grant: u64,
    wake: u64,
}

/// The means to sleep.
pub struct Sleeper {
    waitv: bool,
    /// Made when it is first needed.
    epoll: Option<Epoll>,
    doorbells: Vec<u64>,
}

impl Sleeper {
    /// Chooses the means; `auto` asks the kernel.
    #[must_use]
    pub fn new(waiting: Waiting) -> Sleeper {
        let probe = inferd_ipc::mem::Mem::heap(8);
        let word = WaitWord { mem: &probe, at: 0, expected: 1 };
        let waitv = waiting == Waiting::Auto && wait_any(&[word], None).is_ok();
        Sleeper { waitv, epoll: None, doorbells: Vec::with_capacity(FUTEX_WAITV_MAX) }
    }

    fn fits(&self, sessions: usize) -> bool {
        self.waitv && sessions + OWN_WORDS <= FUTEX_WAITV_MAX
    }

    /// A session has come.
    pub fn add(&mut self, session: &Session, mailbox: &Mailbox) {
        if let Some(epoll) = self.epoll(mailbox) {
            let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP, session.number);
            // A descriptor that is there already is fine.
            let _ = epoll.add(&session.doorbell, event);
        }
    }

    /// A session leaves; its descriptor is closed elsewhere.
    pub fn remove(&mut self, session: &Session) {
        if let Some(epoll) = &self.epoll {
            let _ = epoll.delete(&session.doorbell);
        }
    }

    fn epoll(&mut self, mailbox: &Mailbox) -> Option<&Epoll> {
        if self.epoll.is_none() {
            let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).ok()?;
            epoll.add(&mailbox.wake_event, EpollEvent::new(EpollFlags::EPOLLIN, MAILBOX)).ok()?;
            self.epoll = Some(epoll);
        }
        self.epoll.as_ref()
    }

    /// To be read before the last look at mailbox and grant, and given to [`Self::sleep_idle`].
    #[must_use]
    pub fn before(&self, mailbox: &Mailbox, baton: &Baton) -> Seen {
        Seen { grant: baton.granted(), wake: mailbox.wake.word(0).load(Ordering::SeqCst) }
    }

    /// Sleeps while the baton is not ours, until an order comes or the grant changes.
    pub fn sleep_idle(&self, mailbox: &Mailbox, baton: &Baton, seen: &Seen) {
        if mailbox.pending() {
            return;
        }
        let words = [
            WaitWord { mem: &mailbox.wake, at: 0, expected: seen.wake },
            WaitWord { mem: baton.mem(), at: GRANT, expected: seen.grant },
        ];
        if !self.waitv || wait_any(&words, None).is_err() {
            // The supervisor sends a record with every grant, which becomes an order.
            let _ = mailbox.wake.futex_wait(0, seen.wake, None);
        }
    }

    /// Sleeps until a session, the mailbox or the grant calls. Returns at once when one already does; says whether it
    /// slept.
    pub fn sleep(&mut self, sessions: &mut [Session], mailbox: &Mailbox, baton: &Baton, ticket: u64) -> bool {
        let waitv = self.fits(sessions.len());
        let seen = self.before(mailbox, baton);
        self.doorbells.clear();
        for session in sessions.iter() {
            session.rings.fall_asleep(!waitv);
            self.doorbells.push(session.rings.doorbell().2);
        }
        // SeqCst: the sleeping words above are seen before we look below; pairs with the fence in Requester::wake_worker.
        fence(Ordering::SeqCst);
        failpoint!("worker.asleep");
        let quiet = sessions.iter_mut().all(|s| s.dead || s.rings.quiet());
        let slept = quiet && !mailbox.pending() && seen.grant == ticket;
        if slept && waitv {
            self.sleep_on_words(sessions, mailbox, baton, &seen);
        } else if slept {
            self.sleep_on_sockets(sessions, mailbox);
        }
        for session in sessions.iter() {
            session.rings.wake_up();
        }
        slept
    }

    fn sleep_on_words(&self, sessions: &[Session], mailbox: &Mailbox, baton: &Baton, seen: &Seen) {
        let wake = WaitWord { mem: &mailbox.wake, at: 0, expected: seen.wake };
        let mut words = [wake; FUTEX_WAITV_MAX];
        words[1] = WaitWord { mem: baton.mem(), at: GRANT, expected: seen.grant };
        for ((word, session), expected) in words[OWN_WORDS..].iter_mut().zip(sessions).zip(&self.doorbells) {
            let (mem, at, _) = session.rings.doorbell();
            *word = WaitWord { mem, at, expected: *expected };
        }
        // It can only fail where the words do not fit or the kernel lacks it; both were asked before.
        let _ = wait_any(&words[..OWN_WORDS + sessions.len()], None);
    }

    fn sleep_on_sockets(&mut self, sessions: &[Session], mailbox: &Mailbox) {
        // Before the first session there is none yet.
        let Some(epoll) = self.epoll(mailbox) else { return };
        let mut events = [EpollEvent::empty(); 64];
        let Ok(ready) = epoll.wait(&mut events, EpollTimeout::NONE) else { return };
        for event in &events[..ready] {
            if event.data() == MAILBOX {
                // Orders are pending before the event is written: they may have been taken before it was, and nobody else
                // would take it back.
                let _ = mailbox.wake_event.read();
            }
            if let Some(session) = sessions.iter().find(|s| s.number == event.data()) {
                let closed = EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR | EpollFlags::EPOLLRDHUP;
                // A client that closed its doorbell, or its end of it, or put descriptors into it, can not ring any more.
                if event.events().intersects(closed)
                    || fdpass::drain_a_clients(&session.doorbell) == Drained::Descriptors
                {
                    let _ = epoll.delete(&session.doorbell);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use inferd_ipc::mem::Mem;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;
    use std::time::{Duration, Instant};

    /// How often an executor without sessions woke within a while, when `stir` happened before.
    fn wakes_by_epoll(stir: impl FnOnce(&Mailbox)) -> u32 {
        let mailbox = Arc::new(Mailbox::new().expect("descriptors"));
        let (ended, wakes) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        stir(&mailbox);
        let sleeper = {
            let (mailbox, ended, wakes) = (mailbox.clone(), ended.clone(), wakes.clone());
            std::thread::spawn(move || {
                let (mut sleeper, baton) = (Sleeper::new(Waiting::Epoll), Baton::new(Mem::heap(4096)));
                while ended.load(Ordering::SeqCst) == 0 {
                    sleeper.sleep(&mut [], &mailbox, &baton, baton.granted());
                    wakes.fetch_add(1, Ordering::SeqCst);
                }
            })
        };
        std::thread::sleep(Duration::from_millis(100));
        let seen = wakes.load(Ordering::SeqCst);
        ended.store(1, Ordering::SeqCst);
        let began = Instant::now();
        mailbox.order(crate::mailbox::Order::Look);
        sleeper.join().expect("the sleeper ends");
        assert!(began.elapsed() < Duration::from_secs(5), "an order wakes it");
        seen
    }

    #[test]
    fn an_executor_without_sessions_sleeps_by_epoll_too() {
        assert_eq!(wakes_by_epoll(|_| ()), 0);
    }

    #[test]
    fn an_event_whose_orders_were_taken_before_it_was_written_wakes_once() {
        let seen = wakes_by_epoll(|mailbox| {
            mailbox.order(crate::mailbox::Order::Look);
            mailbox.orders();
            mailbox.wake_event.write(1).expect("an event");
        });
        assert_eq!(seen, 1);
    }
}
