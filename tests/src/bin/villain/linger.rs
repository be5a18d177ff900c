//! Descriptors whose last close takes long, left in messages to the daemon.
//!
//! `linger count=N socket=attach|control|doorbell seconds=S`: each message carries a TCP socket that is full of unsent bytes and
//! lingers for S seconds when it is closed; the sender's own copy is closed at once, so that whoever throws the message
//! away waits. Some are the first message of a connection, some come behind a good one or behind empty ones, some with many
//! descriptors. On a doorbell, half of the sessions end before they are ready, the others after a request.

use crate::Deed;
use inferd_ipc::fdpass;
use inferd_ipc::layout::Queue;
use inferd_tests::raw::{RawAttach, wish};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket,
    sockopt::{Linger, RcvBuf, SndBuf},
};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

/// Ends of lingering sockets that are kept open, unread: once theirs is closed, the close of the other does not linger.
const KEPT: usize = 200;

fn lingering(listener: &TcpListener, seconds: i32) -> (TcpStream, TcpStream) {
    // Small buffers are soon full.
    let mut full = TcpStream::connect(listener.local_addr().expect("bound")).expect("loopback");
    let (unread, _) = listener.accept().expect("a peer");
    full.set_nonblocking(true).expect("ours");
    setsockopt(&full, SndBuf, &4096).expect("ours");
    let bytes = [0; 64 << 10];
    while full.write(&bytes).is_ok() {}
    setsockopt(&full, Linger, &libc::linger { l_onoff: 1, l_linger: seconds }).expect("ours");
    (full, unread)
}

fn dial(deed: &Deed) -> io::Result<OwnedFd> {
    let (kind, name) = match deed.word("socket") {
        "control" => (SockType::Stream, "control.sock"),
        _ => (SockType::SeqPacket, "attach.sock"),
    };
    let fd = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(&deed.dir.join(name))?)?;
    Ok(fd)
}

/// A connection that gets the descriptor, many times now and then.
fn on_connection(deed: &Deed, i: u64, full: &TcpStream) -> io::Result<()> {
    let there = dial(deed)?;
    let good = wish("m", 4, None);
    let many = if i.is_multiple_of(5) { 200 } else { 1 };
    if i.is_multiple_of(3) {
        let first = if deed.word("socket") == "control" { &b"\n"[..] } else { good.as_bytes() };
        let _ = fdpass::send(&there, first, &[]);
    } else if i % 3 == 1 {
        (0..2).for_each(|_| drop(fdpass::send(&there, b"", &[])));
    }
    fdpass::send(&there, good.as_bytes(), &vec![full.as_fd(); many])
}

/// A session whose doorbell gets the descriptor, behind an empty message now and then.
fn on_doorbell(deed: &Deed, i: u64, full: &TcpStream) -> io::Result<()> {
    let put = |doorbell: &OwnedFd| {
        if i.is_multiple_of(3) {
            let _ = fdpass::send(doorbell, b"", &[]);
        }
        fdpass::send(doorbell, b"!", &[full.as_fd()])
    };
    let none = || io::Error::from(ErrorKind::NotConnected);
    if i.is_multiple_of(2) {
        let raw = RawAttach::connect(&deed.dir)?;
        raw.send(wish("m", 4, None).as_bytes(), &[])?;
        let (_, fds) = raw.hear().ok_or_else(none)?;
        return fds.last().map_or_else(|| Err(none()), put);
    }
    let s = RawAttach::try_attach(&deed.dir, &wish("m", 4, Some(Queue::InOrder))).map_err(|_| none())?;
    s.publish(0, &s.header(0), &[&[0x3e; 64]]);
    let taken = put(&s.doorbell);
    let _ = s.answered_or_over(0);
    taken
}

/// See the file.
pub fn run(deed: &Deed) -> Value {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    setsockopt(&listener, RcvBuf, &4096).expect("ours");
    let mut kept = VecDeque::new();
    let (mut sent, mut refused, mut unreachable) = (0u64, 0u64, 0u64);
    let end = Instant::now() + Duration::from_secs(deed.number("at_most_s", 20));
    for i in 0..deed.number("count", 10) {
        if Instant::now() > end {
            break;
        }
        let (full, unread) = lingering(&listener, deed.number("seconds", 1) as i32);
        let put = if deed.word("socket") == "doorbell" { on_doorbell } else { on_connection };
        match put(deed, i, &full) {
            Ok(()) => sent += 1,
            Err(e) if e.kind() == ErrorKind::PermissionDenied => refused += 1,
            Err(_) => {
                unreachable += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        drop(full);
        kept.push_back(unread);
        if kept.len() > KEPT {
            kept.pop_front();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    std::thread::sleep(Duration::from_millis(deed.number("hold_ms", 100)));
    json!({ "sent": sent, "refused": refused, "unreachable": unreachable })
}
