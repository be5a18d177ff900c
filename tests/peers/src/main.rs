//! The textbook way, measured: a `shared_memory` segment with `raw_sync` events, beside the ping-pong.
//!
//! Echoes 64 bytes between two pinned processes: with `Event` (a pthread mutex and condition variable
//! in shared memory) and with `BusyEvent` (spinning). Blocks alternate with the bare cache-line
//! ping-pong over the same segment, so that each figure has its ratio to the limit of the same run.

use raw_sync::Timeout;
use raw_sync::events::{BusyEvent, Event, EventImpl, EventInit, EventState};
use shared_memory::{Shmem, ShmemConf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const BYTES: usize = 16384;
/// Offsets in the segment: ping-pong words, the two events of either kind, the payloads.
const OURS: usize = 0;
const THEIRS: usize = 128;
const EVENTS: [(usize, usize); 2] = [(1024, 2048), (3072, 4096)];
const REQUEST: usize = 8192;
const REPLY: usize = 8448;
const PAYLOAD: usize = 64;
const BLOCKS: usize = 20;
const ROUNDS: usize = 5_000;
const WARM: usize = 500;
const LIMIT: Timeout = Timeout::Val(Duration::from_secs(5));

fn pin(cpu: usize) {
    // SAFETY: a zeroed set is valid; the call reads it and changes this thread's affinity only.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set);
    }
}

struct Segment(Shmem);

impl Segment {
    fn word(&self, at: usize) -> &AtomicU64 {
        // SAFETY: in bounds of the segment and aligned; alive while the segment is; only accessed atomically.
        unsafe { AtomicU64::from_ptr(self.0.as_ptr().add(at).cast()) }
    }

    fn copy(&self, from: usize, to: usize) {
        // SAFETY: both ranges are in bounds and apart; the event orders the two processes.
        unsafe { std::ptr::copy_nonoverlapping(self.0.as_ptr().add(from), self.0.as_ptr().add(to), PAYLOAD) }
    }

    fn event(&self, busy: bool, at: usize, new: bool) -> Box<dyn EventImpl> {
        // SAFETY: the places are in bounds, aligned and apart; the creator initialises them before the peer starts.
        let made = unsafe {
            let at = self.0.as_ptr().add(at);
            match (busy, new) {
                (false, true) => Event::new(at, true),
                (false, false) => Event::from_existing(at),
                (true, true) => BusyEvent::new(at, true),
                (true, false) => BusyEvent::from_existing(at),
            }
        };
        made.expect("an event").0
    }

    fn events(&self, new: bool) -> [[Box<dyn EventImpl>; 2]; 2] {
        [false, true].map(|busy| {
            let (a, b) = EVENTS[usize::from(busy)];
            [self.event(busy, a, new), self.event(busy, b, new)]
        })
    }
}

fn spin(word: &AtomicU64, expected: u64) {
    while word.load(Ordering::Acquire) != expected {
        std::hint::spin_loop();
    }
}

fn serve(name: &str) {
    pin(1);
    let segment = Segment(ShmemConf::new().os_id(name).open().expect("the segment"));
    let events = segment.events(false);
    let mut n = 0;
    for _ in 0..BLOCKS {
        for _ in 0..ROUNDS + WARM {
            n += 1;
            spin(segment.word(OURS), n);
            segment.word(THEIRS).store(n, Ordering::Release);
        }
        for [request, reply] in &events {
            for _ in 0..ROUNDS + WARM {
                request.wait(LIMIT).expect("a request within the limit");
                segment.copy(REQUEST, REPLY);
                reply.set(EventState::Signaled).expect("set");
            }
        }
    }
}

fn median(times: &mut [u64], q: f64) -> u64 {
    times.sort_unstable();
    times[((times.len() - 1) as f64 * q) as usize]
}

fn main() {
    if let Some(name) = std::env::args().nth(1) {
        return serve(&name);
    }
    let segment = Segment(ShmemConf::new().size(BYTES).create().expect("a segment"));
    let events = segment.events(true);
    let program = std::env::current_exe().expect("this program");
    let mut peer = std::process::Command::new(program).arg(segment.0.get_os_id()).spawn().expect("the peer");
    pin(0);
    let mut times: [Vec<u64>; 3] = Default::default();
    let mut n = 0;
    let mut payload = [7u8; PAYLOAD];
    for _ in 0..BLOCKS {
        for i in 0..ROUNDS + WARM {
            let start = Instant::now();
            n += 1;
            segment.word(OURS).store(n, Ordering::Release);
            spin(segment.word(THEIRS), n);
            if i >= WARM {
                times[0].push(start.elapsed().as_nanos() as u64);
            }
        }
        for (kind, [request, reply]) in events.iter().enumerate() {
            for i in 0..ROUNDS + WARM {
                let start = Instant::now();
                // SAFETY: in bounds; the peer reads only after the event.
                unsafe { std::ptr::copy_nonoverlapping(payload.as_ptr(), segment.0.as_ptr().add(REQUEST), PAYLOAD) };
                request.set(EventState::Signaled).expect("set");
                reply.wait(LIMIT).expect("a reply within the limit");
                // SAFETY: in bounds; the peer has written before the event.
                unsafe { std::ptr::copy_nonoverlapping(segment.0.as_ptr().add(REPLY), payload.as_mut_ptr(), PAYLOAD) };
                if i >= WARM {
                    times[1 + kind].push(start.elapsed().as_nanos() as u64);
                }
            }
        }
    }
    peer.wait().expect("the peer ends");
    let limit = median(&mut times[0], 0.5);
    println!("{:<52} {:>8} {:>8} {:>10}", "echo 64 B / 64 B (ns)", "p50", "p99", "ping-pongs");
    let names = ["ping-pong", "shared_memory + raw_sync Event (pthread)", "shared_memory + raw_sync BusyEvent"];
    for (name, times) in names.iter().zip(&mut times) {
        let (p50, p99) = (median(times, 0.5), median(times, 0.99));
        println!("{name:<52} {p50:>8} {p99:>8} {:>10.2}", p50 as f64 / limit as f64);
    }
}
