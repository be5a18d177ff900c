//! Payloads of 16 B to 8 MiB, written in place, beside the same copy.
//!
//! A caller that writes its observation into the slot leaves lines in its core's cache that the worker must fetch and copy
//! into the backend's input: no system that isolates two processes does with less. So the limit of this row is a process
//! that copies as many bytes, which our core has just written, and answers through one cache line. Writing is the camera's work,
//! and outside of both clocks.

use inferd_client::{AttachOptions, Outcome, Queue, Session};
use inferd_ipc::layout::Backing;
use inferd_tests::bench::blocks::{TIGHT, Until, measure};
use inferd_tests::bench::{CLIENT_CPU, Entry, Kind, Limit, Lines, Row, histogram, median, now, unpin};
use inferd_tests::{Daemon, DaemonConfig, Model};
use std::time::Duration;

const SIZES: [u64; 11] = [16, 64, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, IMAGE, 2 << 20, 8 << 20];
/// A VGA image of three bytes a pixel.
const IMAGE: u64 = 640 * 480 * 3;
const REPLY: u64 = 64;
/// Bytes of a block: a block of large payloads has few of them.
const BLOCK_BYTES: u64 = 32 << 20;

/// Calls in a block.
fn count(bytes: u64) -> usize {
    (BLOCK_BYTES / bytes).clamp(4, 2000) as usize
}

/// Runs every size, if they were asked for.
pub fn rows(lines: &Lines, cpu: usize) {
    if !lines.wants("payload") && !lines.wants("image") {
        return;
    }
    unpin();
    let model = |name: &str, bytes: u64| {
        let model = Model::bare(name).input("x", "u8", &[1, bytes]).output("y", "u8", &[1, REPLY.min(bytes)]);
        model.config("cpu", &cpu.to_string()).config("spin_us", "2000")
    };
    let sizes = SIZES.into_iter().filter(|b| lines.wants("payload") || *b == IMAGE);
    for bytes in sizes {
        let daemon = DaemonConfig::new(Backing::Memfd).model(model("m", bytes)).model(model("echo", 64)).start();
        size(lines, &daemon, bytes, cpu);
        unpin();
    }
}

fn attach(daemon: &Daemon, model: &str) -> Session {
    let options = AttachOptions::new(model).runtime_dir(daemon.runtime_dir()).queue(Queue::InOrder).spin_us(2000);
    Session::attach(options).unwrap_or_else(|e| panic!("attach {model}: {e}"))
}

/// One call whose observation is written in place; the time from submitting to the action in our memory.
fn in_place(session: &mut Session, frame: &[u8], action: &mut [u8]) -> u64 {
    let mut request = session.request().expect("a slot");
    request.input_mut(0).expect("an input").copy_from_slice(frame);
    let start = now();
    let ticket = request.submit().expect("published");
    let outcome = session.wait(ticket, Some(Duration::from_secs(1))).expect("an answer");
    let Outcome::Reply(reply) = outcome else { panic!("superseded in order") };
    reply.copy_output(0, action).expect("an action");
    now() - start
}

fn size(lines: &Lines, daemon: &Daemon, bytes: u64, cpu: usize) {
    let mut limit = Limit::start(Kind::Copy(bytes as usize), cpu);
    let (mut session, mut echo) = (attach(daemon, "m"), attach(daemon, "echo"));
    let frame = vec![7u8; bytes as usize];
    let reply = REPLY.min(bytes);
    let mut action = vec![0u8; reply as usize];
    let mut large = || in_place(&mut session, &frame, &mut action);
    let mut echoed = vec![0u8; 64];
    let mut small = || in_place(&mut echo, &[1; 64], &mut echoed);
    let mut entries = [
        Entry { cpu: CLIENT_CPU, count: count(bytes), call: &mut large },
        Entry { cpu: CLIENT_CPU, count: 500, call: &mut small },
    ];
    // A copy takes so long that the distance of two cores is little of it.
    let within = if bytes > 4096 { f64::INFINITY } else { TIGHT };
    let samples = if bytes == IMAGE { 20_000 } else { 400_000 };
    let seconds = if bytes == IMAGE { 12.0 } else { 3.0 };
    let until = Until::samples(samples.min(count(bytes) * 200), seconds, within);
    let measured = measure(&mut limit, count(bytes), until, &mut entries);
    let (f, echo) = (measured.figures(0), measured.figures(1));
    let name = format!("payload/{bytes}");
    let title = format!("{bytes} B written in place, {reply} B back");
    let row = Row { limit: "copy ping-pong", ..Row::spinning(&name, &title, [bytes, reply]) };
    lines.row(row, &f);
    let copy = median(&limit.copies);
    lines.point("payload", "inferd, p50", bytes as f64, f.at(0.5), "ns");
    lines.point("payload", "copy ping-pong, p50", bytes as f64, f.limit_at(0.5), "ns");
    lines.point("payload", "the copy alone, p50", bytes as f64, copy, "ns");
    if bytes == IMAGE {
        let mut copies = histogram();
        limit.copies.iter().for_each(|ns| copies.saturating_record(*ns));
        lines.figure("image_in_place", "the copy alone, p99", copies.value_at_quantile(0.99) as f64, "ns");
        let bar = "921,600 B in place: p50 <= the same copy + 5 % + echo 64 B, ns";
        lines.bar("image_in_place", bar, f.at(0.5), 1.05 * copy + echo.at(0.5));
    }
}
