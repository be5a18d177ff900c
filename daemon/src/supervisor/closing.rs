//! Ending connections in which a peer may have left descriptors, without waiting for their end.
//!
//! The last close of a descriptor that a client sent (a TCP socket that lingers, a file on a dead server) happens where
//! its message is thrown away, and takes as long as the client likes. So a message with descriptors is never received:
//! its whole socket is closed on a thread of its own. The descriptors never enter this process's table, and the charge
//! of the connection stays until the thread is done, so that one uid cannot collect more of them than connections.
//! A session's doorbell socket is a client's too: the worker holds it as well, so all that lies in it is thrown away first.
//! Kernels from 6.16 on refuse such messages (`SO_PASSRIGHTS`), but for those sent before a passed socket was ours.

use super::poller::{Poller, Token};
use inferd_ipc::fdpass::{holds_messages, purge};
use inferd_ipc::limits::{CLOSERS_MAX, CLOSERS_WAITING_MAX, HELPER_STACK_BYTES};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{Shutdown, shutdown};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// What a connection whose close is under way is charged to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Charged {
    /// A uid's connections.
    Uid(u32),
    /// The operators' connections.
    Operators,
    /// It was refused at the door.
    Nobody,
}

/// Sockets whose close is under way.
pub(super) struct Closing {
    done: Receiver<Charged>,
    tell: Sender<Charged>,
    wake: Arc<EventFd>,
    /// No thread could be started for these yet.
    waiting: Vec<(Vec<OwnedFd>, Charged)>,
    running: usize,
    operators: usize,
}

impl Closing {
    /// Nothing under way yet.
    ///
    /// # Errors
    /// The kernel's, when descriptors have run out.
    pub fn new<T>(poller: &Poller<T>) -> nix::Result<Closing> {
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        poller.add(wake.as_fd(), Token::Closed)?;
        let (tell, done) = channel();
        Ok(Closing { done, tell, wake, waiting: Vec::new(), running: 0, operators: 0 })
    }

    /// Hangs up, and closes what can be closed at once. Says whether it is closed; else its charge is given back later.
    pub fn close(&mut self, socket: impl Into<OwnedFd>, charged: Charged) -> bool {
        self.close_all(vec![socket.into()], charged)
    }

    /// The same for all sockets of one connection.
    pub fn close_all(&mut self, mut sockets: Vec<OwnedFd>, charged: Charged) -> bool {
        sockets.retain(|socket| {
            // A duplicate elsewhere would delay the hang-up; shutdown does not wait for it. From here on nothing more comes in.
            let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
            holds_messages(socket)
        });
        if sockets.is_empty() {
            return true;
        }
        self.operators += usize::from(charged == Charged::Operators);
        self.waiting.push((sockets, charged));
        self.start();
        false
    }

    /// Whether so many wait for a thread that nobody should be accepted.
    pub fn is_crowded(&self) -> bool {
        self.waiting.len() >= CLOSERS_WAITING_MAX
    }

    /// Operators whose connections are not closed yet.
    pub fn operators(&self) -> usize {
        self.operators
    }

    /// The charges of the sockets that have been closed meanwhile.
    pub fn take_done(&mut self) -> Vec<Charged> {
        let _ = self.wake.read();
        let done: Vec<Charged> = self.done.try_iter().collect();
        self.running -= done.len();
        self.operators -= done.iter().filter(|charged| **charged == Charged::Operators).count();
        self.start();
        done
    }

    /// Begins to close what waits, each on a thread of its own: one that lingers must not hold up the others.
    fn start(&mut self) {
        while self.running < CLOSERS_MAX {
            let Some((sockets, charged)) = self.waiting.pop() else { return };
            let (tell, wake) = (self.tell.clone(), Arc::clone(&self.wake));
            // A place from which it can be taken back when there is no thread.
            let place = Arc::new(Mutex::new(Some(sockets)));
            let theirs = Arc::clone(&place);
            let closer = thread::Builder::new().name("closer".to_owned()).stack_size(HELPER_STACK_BYTES);
            let started = closer.spawn(move || {
                let sockets = take(&theirs);
                sockets.iter().flatten().for_each(purge);
                drop(sockets);
                let _ = tell.send(charged);
                let _ = wake.write(1);
            });
            if let Err(error) = started {
                tracing::warn!(%error, "no thread to close a connection; it stays charged until there is one");
                self.waiting.extend(take(&place).map(|sockets| (sockets, charged)));
                return;
            }
            self.running += 1;
        }
    }
}

fn take(place: &Mutex<Option<Vec<OwnedFd>>>) -> Option<Vec<OwnedFd>> {
    place.lock().unwrap_or_else(PoisonError::into_inner).take()
}

#[cfg(test)]
mod tests {
    use super::*;
    use inferd_ipc::fdpass::{send, socketpair};
    use std::time::{Duration, Instant};

    #[test]
    fn a_socket_without_messages_is_closed_at_once_and_one_with_descriptors_elsewhere() {
        let poller: Poller<u32> = Poller::new().expect("epoll");
        let mut closing = Closing::new(&poller).expect("an eventfd");
        let (ours, theirs) = socketpair().expect("descriptors");
        assert!(closing.close(ours, Charged::Uid(7)));
        assert!(send(&theirs, b"x", &[]).is_err(), "hung up");
        let (ours, theirs) = socketpair().expect("descriptors");
        send(&theirs, b"x", &[theirs.as_fd()]).expect("sent");
        assert!(!closing.close(ours, Charged::Uid(8)));
        let (ours, theirs) = socketpair().expect("descriptors");
        // Empty messages look like the end of the connection.
        send(&theirs, b"", &[]).expect("sent");
        send(&theirs, b"x", &[theirs.as_fd()]).expect("sent");
        assert!(!closing.close(ours, Charged::Operators));
        let (mut done, start) = (Vec::new(), Instant::now());
        while done.len() < 2 {
            assert!(start.elapsed() < Duration::from_secs(20), "given back: {done:?}");
            done.extend(closing.take_done());
        }
        done.sort_unstable();
        assert_eq!((done, closing.operators()), (vec![Charged::Uid(8), Charged::Operators], 0));
    }
}
