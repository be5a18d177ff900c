//! Messages with descriptors over SOCK_SEQPACKET sockets, and who the peer is.
//!
//! Sends never block and never raise SIGPIPE; received descriptors are close-on-exec and owned from
//! the first moment, so that none leaks on any path. Truncation of bytes or descriptors is reported,
//! never ignored: a record that was cut is not a record.

use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, getsockopt, sendmsg, setsockopt,
    socketpair as nix_socketpair, sockopt,
};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// A received message.
#[derive(Debug)]
pub struct Received {
    /// Bytes in the buffer; 0 is the end of the connection.
    pub bytes: usize,
    /// Descriptors that came along.
    pub fds: Vec<OwnedFd>,
    /// Bytes or descriptors were cut off.
    pub truncated: bool,
}

/// Sends one message; never blocks.
///
/// # Errors
/// EAGAIN when the peer does not read, EPIPE when it is gone.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights[..] };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let sent = sendmsg::<()>(socket.as_fd().as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None)?;
    if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Receives one message; blocks only if the socket does. Of more than [`crate::limits::RECORD_FDS_MAX`] descriptors the
/// kernel closes the rest, here and now.
///
/// # Errors
/// The kernel's; EAGAIN when there is nothing.
pub fn recv(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    let (bytes, fds, truncated) = crate::sys::receive_message(socket.as_fd(), buffer)?;
    Ok(Received { bytes, fds, truncated })
}

/// Two connected SOCK_SEQPACKET sockets, close-on-exec and non-blocking.
///
/// # Errors
/// EMFILE.
pub fn socketpair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(nix_socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?)
}

/// Who connected, as the kernel saw it at connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Process: a label for logs, nothing else.
    pub pid: u32,
}

/// The peer's credentials.
///
/// # Errors
/// The kernel's.
pub fn peer(socket: &impl AsFd) -> io::Result<Peer> {
    let c = getsockopt(&socket.as_fd(), sockopt::PeerCredentials)?;
    Ok(Peer { uid: c.uid(), gid: c.gid(), pid: c.pid().max(0) as u32 })
}

/// Rings a doorbell socket: one byte, never blocks; a full socket is already ringing.
#[inline]
pub fn ring(socket: impl AsFd) {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let _ = nix::sys::socket::send(socket.as_fd().as_raw_fd(), &[1], flags);
}

/// What lies in a client's doorbell socket that was emptied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Nothing.
    Empty,
    /// More rings than are taken at once.
    More,
    /// A message with descriptors. It stays: their last close may take as long as their sender likes.
    Descriptors,
}

/// Empties a doorbell socket of a peer that is trusted, at most [`crate::limits::DOORBELL_DRAIN_MAX`] rings. Says whether it
/// is empty now.
pub fn drain(socket: impl AsFd) -> bool {
    take_rings(socket.as_fd(), false) == Drained::Empty
}

/// Empties a client's doorbell socket, at most [`crate::limits::DOORBELL_DRAIN_MAX`] rings, and looks before it takes one.
pub fn drain_a_clients(socket: impl AsFd) -> Drained {
    take_rings(socket.as_fd(), true)
}

fn take_rings(socket: BorrowedFd<'_>, looks: bool) -> Drained {
    let mut buffer = [0; 8];
    for _ in 0..crate::limits::DOORBELL_DRAIN_MAX {
        if looks {
            match crate::sys::look_at_message(socket, &mut [0]) {
                Ok((_, false)) => {}
                Ok((_, true)) => return Drained::Descriptors,
                // Nothing was there to look at: what has come since was not looked at.
                Err(_) => return Drained::Empty,
            }
        }
        match nix::sys::socket::recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(0) | Err(_) => return Drained::Empty,
            Ok(_) => {}
        }
    }
    Drained::More
}

/// Whether a message lies in a socket that nothing more comes into (it is shut down), be it an empty one. From then on
/// every message counts as one with descriptors.
pub fn holds_messages(socket: impl AsFd) -> bool {
    // An empty message reads as the end; one with credentials, which every message has, does not.
    if getsockopt(&socket.as_fd(), sockopt::SockType) == Ok(SockType::SeqPacket) {
        let _ = setsockopt(&socket.as_fd(), sockopt::PassCred, &true);
    }
    matches!(crate::sys::look_at_message(socket.as_fd(), &mut [0]), Ok((1.., _) | (_, true)))
}

/// Takes all that lies in a socket that nothing more comes into, and closes the descriptors, which may take long.
pub fn purge(socket: impl AsFd) {
    while holds_messages(&socket) {
        let taken = nix::sys::socket::recv(socket.as_fd().as_raw_fd(), &mut [0; 4096], MsgFlags::MSG_DONTWAIT);
        if taken.is_err() {
            return;
        }
    }
}

/// Whether the peer has hung up (or sent something where nothing is due): looks, never blocks, takes nothing.
#[must_use]
pub fn hung_up(socket: impl AsFd) -> bool {
    let mut buffer = [0; 1];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_PEEK;
    match nix::sys::socket::recv(socket.as_fd().as_raw_fd(), &mut buffer, flags) {
        Ok(bytes) => bytes == 0,
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => false,
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_with_descriptors_that_comes_between_two_looks_is_not_received() {
        for _ in 0..2_000 {
            let (ours, theirs) = socketpair().unwrap();
            let sender = std::thread::spawn(move || {
                ring(&theirs);
                send(&theirs, b"x", &[theirs.as_fd()]).unwrap();
                theirs
            });
            let begin = std::time::Instant::now();
            while drain_a_clients(&ours) != Drained::Descriptors {
                assert!(begin.elapsed() < std::time::Duration::from_secs(10), "it was received, and thrown away");
            }
            sender.join().unwrap();
        }
    }

    #[test]
    fn descriptors_travel_with_their_message() {
        let (a, b) = socketpair().unwrap();
        let (c, d) = socketpair().unwrap();
        send(&a, b"hello", &[c.as_fd()]).unwrap();
        let mut buffer = [0; 16];
        let got = recv(&b, &mut buffer).unwrap();
        assert_eq!((&buffer[..got.bytes], got.fds.len(), got.truncated), (&b"hello"[..], 1, false));
        send(&got.fds[0], b"x", &[]).unwrap();
        assert_eq!(recv(&d, &mut buffer).unwrap().bytes, 1);
    }

    #[test]
    fn a_record_that_was_cut_is_said_to_be() {
        let (a, b) = socketpair().unwrap();
        send(&a, b"hello", &[]).unwrap();
        assert!(recv(&b, &mut [0; 2]).unwrap().truncated);
    }

    #[test]
    fn more_descriptors_than_a_record_may_have_are_said_to_be_cut_and_none_stays_open() {
        use crate::limits::RECORD_FDS_MAX;
        let (a, b) = socketpair().unwrap();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        for (count, cut) in [(RECORD_FDS_MAX, false), (RECORD_FDS_MAX + 1, true), (253, true)] {
            send(&a, b"x", &vec![writer.as_fd(); count]).unwrap();
            assert!(
                crate::sys::look_at_message(b.as_fd(), &mut [0; 16]).unwrap() == (1, true),
                "looking tells of descriptors"
            );
            let got = recv(&b, &mut [0; 2]).unwrap();
            assert_eq!((got.bytes, got.fds.len(), got.truncated), (1, RECORD_FDS_MAX, cut));
        }
        send(&a, b"plain", &[]).unwrap();
        assert_eq!(crate::sys::look_at_message(b.as_fd(), &mut [0; 16]).unwrap(), (5, false));
        // The pipe ends with its last writer: nothing that came with a message is still open.
        drop(writer);
        assert_eq!(nix::unistd::read(&reader, &mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn a_doorbell_with_descriptors_is_left_as_it_is_and_purged_to_its_last_message() {
        use nix::sys::socket::{Shutdown, shutdown};
        let (a, b) = socketpair().unwrap();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        for (bytes, fds) in [(&b""[..], &[][..]), (b"!", &[]), (b"", &[]), (b"!", &[writer.as_fd()]), (b"", &[])] {
            send(&a, bytes, fds).unwrap();
        }
        drop(writer);
        let drained = || (drain_a_clients(&b), drain_a_clients(&b));
        assert_eq!(drained(), (Drained::Empty, Drained::Empty), "an empty message looks like the end");
        assert_eq!(drained(), (Drained::Descriptors, Drained::Descriptors));
        shutdown(b.as_raw_fd(), Shutdown::Both).unwrap();
        assert!(holds_messages(&b));
        purge(&b);
        assert!(!holds_messages(&b));
        assert_eq!(nix::unistd::read(&reader, &mut [0; 1]).unwrap(), 0, "what came with it is closed");
        let (a, b) = socketpair().unwrap();
        send(&a, b"", &[]).unwrap();
        shutdown(b.as_raw_fd(), Shutdown::Both).unwrap();
        assert!(holds_messages(&b), "an empty message may have others behind it");
    }

    #[test]
    fn a_filled_doorbell_does_not_block_and_a_hang_up_is_seen() {
        let (a, b) = socketpair().unwrap();
        for _ in 0..10_000 {
            ring(&a);
        }
        assert!(!drain(&b), "one wake takes DOORBELL_DRAIN_MAX of them at most");
        assert_eq!(drain_a_clients(&b), Drained::More);
        while !drain(&b) {}
        assert_eq!(drain_a_clients(&b), Drained::Empty);
        assert!(!hung_up(&b));
        drop(a);
        // A test beside this one that forks holds a copy for a moment.
        let end = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while !hung_up(&b) {
            assert!(std::time::Instant::now() < end, "the hang-up is seen");
        }
    }
}
