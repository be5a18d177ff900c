//! Words and payloads that change while they are read: seq and released count jump and run backwards.
//!
//! `flip queue=in_order|latest writes=N seed=S`: mostly good requests, and between their stores any word of the request
//! region becomes any value. When the daemon ends the session, the next one begins.

use crate::Deed;
use inferd_ipc::layout::{Queue, REQ_DOORBELL, REQ_PUBLISHED, REQ_RELEASED, REQ_SLEEPING};
use inferd_tests::answer::mix;
use inferd_tests::raw::{RawAttach, RawSession, wish};
use serde_json::{Value, json};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Lies about a count or a sequence number, around the truth `n`.
fn lie(n: u64, random: u64) -> u64 {
    match random % 9 {
        0 => n.wrapping_sub(1 + random % 5),
        1 => n + 1 + random % 5,
        2 => 0,
        3 => u64::MAX,
        4 => 1 << 40,
        5 => (1 << 62) + 1,
        6 => n + 64 * (random % 3),
        7 => random,
        _ => n,
    }
}

/// Writes into one session until it ends or `writes` are made; returns how many were made.
fn torment(s: &RawSession, seed: u64, writes: u64) -> u64 {
    let g = s.attached.geometry;
    let input = vec![0x3e; s.signature.inputs[0].bytes() as usize];
    let (mut n, mut made, mut random) = (0u64, 0u64, seed);
    while made < writes {
        let replied = (n.saturating_sub(u64::from(g.slots))..n).rev().find(|r| s.reply(*r).is_some());
        s.publish(n, &s.header(n), &[&input]);
        s.word(REQ_RELEASED, replied.map_or(0, |r| r + 1));
        for _ in 0..24 {
            random = mix(random);
            made += 1;
            match random % 64 {
                // Rarely, for it ends the session.
                0 => s.word(REQ_RELEASED, lie(replied.map_or(0, |r| r + 1), random >> 8)),
                1 => s.requests.word(g.request_slot(n + random % 3)).store(lie(n + 1, random >> 8), Ordering::Release),
                2..8 => s.word(REQ_PUBLISHED, lie(n + 1, random >> 8)),
                8..12 => s.word(REQ_SLEEPING, random >> 60),
                12..16 => s.word(REQ_DOORBELL, random),
                16..32 => {
                    // Any word of the header but the first.
                    let at = g.request_slot(n) + 8 * (1 + (random >> 8) % 7) as usize;
                    s.requests.word(at).store(random.rotate_left(9), Ordering::Relaxed);
                }
                _ => {
                    let words = input.len() as u64 / 8;
                    let at = g.request_slot(n) + 64 + 8 * ((random >> 8) % words.max(1)) as usize;
                    s.requests.word(at).store(random.rotate_left(17), Ordering::Relaxed);
                }
            }
        }
        s.ring();
        n += 1;
        if n.is_multiple_of(8) && s.attach.is_over() {
            break;
        }
    }
    made
}

/// See the file.
pub fn run(deed: &Deed) -> Value {
    let queue = if deed.word("queue") == "latest" { Queue::Latest } else { Queue::InOrder };
    let writes = deed.number("writes", 10_000);
    let end = Instant::now() + Duration::from_secs(deed.number("seconds", 3_600));
    let (mut made, mut sessions, mut refused, mut seed) = (0, 0u64, 0u64, deed.number("seed", 1));
    while made < writes && Instant::now() < end {
        match RawAttach::try_attach(&deed.dir, &wish("m", 4, Some(queue))) {
            Ok(session) => {
                sessions += 1;
                made += torment(&session, seed, (writes - made).min(20_000));
            }
            Err(_) => {
                refused += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        seed = mix(seed);
    }
    json!({ "writes": made, "sessions": sessions, "refused": refused })
}
