//! Whoever never reads, and whoever takes wakes that are meant for the worker.
//!
//! `slow seconds=S`: operators that ask and never read (where the control socket opens), attaches that never take their
//! answer, a session whose doorbell socket is full in both directions, and threads that sleep on the session's own
//! doorbell words, so that a wake meets one of them instead of the worker.

use crate::Deed;
use inferd_ipc::layout::{ASLEEP_SOCKET, Queue, REP_DOORBELL, REQ_DOORBELL, REQ_SLEEPING};
use inferd_tests::raw::{RawAttach, RawSession, wish};
use nix::sys::socket::{MsgFlags, send};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

/// Threads that sleep on each doorbell.
const THIEVES: usize = 4;
/// Operators: more than there may be.
const OPERATORS: usize = 70;

fn operators(deed: &Deed) -> (Vec<UnixStream>, u64) {
    let (mut held, mut turned_away) = (Vec::new(), 0);
    let line = b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"limits\"}\n".repeat(64);
    for _ in 0..OPERATORS {
        let Ok(mut operator) = UnixStream::connect(deed.dir.join("control.sock")) else { break };
        operator.set_nonblocking(true).expect("ours");
        let _ = operator.write(&line);
        held.push(operator);
    }
    // The first ones are never read from.
    for operator in held.iter_mut().rev().take(OPERATORS / 10) {
        let _ = operator.set_nonblocking(false);
        let _ = operator.set_read_timeout(Some(Duration::from_secs(1)));
        let mut answer = [0; 4096];
        let text = operator.read(&mut answer).map(|n| String::from_utf8_lossy(&answer[..n]).into_owned());
        turned_away += u64::from(text.is_ok_and(|t| t.contains("operators are connected")));
    }
    (held, turned_away)
}

/// Sleeps on a doorbell of this session, again and again, until `end`.
fn steal(s: &RawSession, request: bool, end: Instant) {
    let g = s.attached.geometry;
    let (mem, at) = match request {
        true => (&s.requests, g.request_base as usize + REQ_DOORBELL),
        false => (&s.replies, g.reply_base as usize + REP_DOORBELL),
    };
    while Instant::now() < end {
        let seen = mem.word(at).load(std::sync::atomic::Ordering::Acquire);
        let _ = mem.futex_wait(at, seen, Some(Duration::from_millis(20)));
    }
}

fn fill(s: &RawSession) -> u64 {
    let mut rings = 0;
    while rings < 100_000 && send(s.doorbell.as_raw_fd(), &[1], MsgFlags::MSG_DONTWAIT).is_ok() {
        rings += 1;
    }
    rings
}

/// See the file.
pub fn run(deed: &Deed) -> Value {
    let end = Instant::now() + Duration::from_secs(deed.number("seconds", 2));
    let (held, turned_away) = operators(deed);
    let unread: Vec<RawAttach> = (0..10).filter_map(|_| RawAttach::connect(&deed.dir).ok()).collect();
    unread.iter().for_each(|raw| drop(raw.send(wish("m", 4, None).as_bytes(), &[])));
    let s = match RawAttach::try_attach(&deed.dir, &wish("m", 4, Some(Queue::InOrder))) {
        Ok(s) => s,
        Err(status) => return json!({ "operators": held.len(), "turned_away": turned_away, "refused": status }),
    };
    let rings = fill(&s);
    let mut n = 0;
    std::thread::scope(|scope| {
        for i in 0..2 * THIEVES {
            let s = &s;
            scope.spawn(move || steal(s, i % 2 == 0, end));
        }
        while Instant::now() < end && !s.attach.is_over() {
            // A socket that nobody reads is rung with every reply.
            s.word(REQ_SLEEPING, ASLEEP_SOCKET);
            s.publish(n, &s.header(n), &[&[0x3e; 64]]);
            if !s.answered_or_over(n) {
                break;
            }
            n += 1;
            s.release(n);
        }
    });
    json!({ "operators": held.len(), "turned_away": turned_away, "rings": rings, "requests": n })
}
