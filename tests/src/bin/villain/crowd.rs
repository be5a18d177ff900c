//! Too much of everything: connections, half attaches, mappings that are kept, sessions until something runs out.
//!
//! `half count=N hold_ms=T`, `flood count=N`, `keep count=N hold_ms=T`, `fill count=N hold_ms=T`; each counts what the daemon
//! answered, by attach status. `innocent seconds=S` is the load that a latency beside a villain is compared with.

use crate::Deed;
use inferd_ipc::attach::{self, AttachStatus, Attached, RecordKind};
use inferd_ipc::layout::Queue;
use inferd_tests::answer::mix;
use inferd_tests::raw::{RawAttach, RawSession, wish};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

/// How often each answer came: an attach status, or what else happened.
#[derive(Default)]
struct Tally(BTreeMap<String, u64>);

impl Tally {
    fn count(&mut self, status: Option<u32>) {
        let name = match status {
            Some(status) if status == AttachStatus::Ok as u32 => "ok".to_owned(),
            Some(status) if status == AttachStatus::Quota as u32 => "quota".to_owned(),
            Some(status) if status == AttachStatus::NoResources as u32 => "no_resources".to_owned(),
            Some(status) => format!("status_{status}"),
            None => "hung_up".to_owned(),
        };
        *self.0.entry(name).or_insert(0) += 1;
    }
}

fn hold(deed: &Deed) {
    std::thread::sleep(Duration::from_millis(deed.number("hold_ms", 0)));
}

/// Sends ATTACH and takes the answer; none when the daemon hung up.
fn half_way(deed: &Deed) -> (Option<RawAttach>, Option<u32>) {
    let Ok(raw) = RawAttach::connect(&deed.dir) else { return (None, None) };
    let _ = raw.send(wish("m", 4, None).as_bytes(), &[]);
    let Some((bytes, _fds)) = raw.hear() else { return (None, None) };
    let status = attach::parse::<Attached>(&bytes, RecordKind::Attached).ok().map(|a| a.status);
    (Some(raw), status)
}

/// Attaches that stop half-way, all open at once.
pub fn half(deed: &Deed) -> Value {
    let (mut open, mut tally) = (Vec::new(), Tally::default());
    for _ in 0..deed.number("count", 20) {
        let (raw, status) = half_way(deed);
        tally.count(status);
        open.extend(raw.filter(|_| status == Some(0)));
    }
    // Connections that say nothing at all, too.
    let silent: Vec<_> = (0..deed.number("silent", 0)).map_while(|_| RawAttach::connect(&deed.dir).ok()).collect();
    // Until nobody else is refused for a while; those that are let in end with the grace of their attach, in two seconds.
    let over = || silent.iter().filter(|raw| raw.is_over()).count();
    let (mut refused, mut since, end) = (over(), Instant::now(), Instant::now() + Duration::from_millis(1_500));
    while since.elapsed() < Duration::from_millis(300) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(10));
        let now = over();
        if now != refused {
            (refused, since) = (now, Instant::now());
        }
    }
    hold(deed);
    json!({ "answers": tally.0, "held": open.len(), "silent": silent.len(), "silent_refused": refused })
}

/// Connections as fast as they go, each left at another step.
pub fn flood(deed: &Deed) -> Value {
    let (mut tally, mut random) = (Tally::default(), deed.number("seed", 1));
    let end = Instant::now() + Duration::from_secs(deed.number("seconds", 3_600));
    let mut done = 0;
    while done < deed.number("count", 100) && Instant::now() < end {
        done += 1;
        random = mix(random);
        match random % 4 {
            0 => drop(RawAttach::connect(&deed.dir)),
            1 => {
                if let Ok(raw) = RawAttach::connect(&deed.dir) {
                    let _ = raw.send(&random.to_le_bytes().repeat(1 + (random >> 8) as usize % 30), &[]);
                }
            }
            2 => {
                let (_, status) = half_way(deed);
                tally.count(status);
            }
            _ => match RawAttach::try_attach(&deed.dir, &wish("m", 4, Some(Queue::InOrder))) {
                Ok(_) => tally.count(Some(0)),
                Err(status) => tally.count(status),
            },
        }
    }
    json!({ "answers": tally.0, "done": done })
}

/// Sessions until the daemon refuses one; `keep_socket` says whether they stay open.
fn collect(deed: &Deed, keep_socket: bool) -> (Vec<RawSession>, Tally) {
    let (mut kept, mut tally) = (Vec::new(), Tally::default());
    for _ in 0..deed.number("count", 10) {
        match RawAttach::try_attach(&deed.dir, &wish("m", 4, Some(Queue::InOrder))) {
            Ok(session) => {
                tally.count(Some(0));
                if !keep_socket {
                    let _ = nix::sys::socket::shutdown(
                        std::os::fd::AsRawFd::as_raw_fd(&session.attach.socket),
                        nix::sys::socket::Shutdown::Both,
                    );
                }
                kept.push(session);
            }
            Err(status) => {
                tally.count(status);
                if tally.0.values().sum::<u64>() > kept.len() as u64 + 5 {
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
    (kept, tally)
}

/// Sessions that end while their regions stay mapped.
pub fn keep(deed: &Deed) -> Value {
    let (kept, tally) = collect(deed, false);
    let count = kept.len();
    hold(deed);
    drop(kept);
    let start = Instant::now();
    let mut again = false;
    while !again && start.elapsed() < Duration::from_secs(5) {
        again = RawAttach::try_attach(&deed.dir, &wish("m", 4, None)).is_ok();
    }
    json!({ "kept": count, "answers": tally.0, "again": again, "again_ms": start.elapsed().as_millis() as u64 })
}

/// Sessions that stay, until something has run out.
pub fn fill(deed: &Deed) -> Value {
    let (held, tally) = collect(deed, true);
    hold(deed);
    json!({ "held": held.len(), "answers": tally.0 })
}

/// Uses its CPU as much as a villain does, and does no harm.
pub fn innocent(deed: &Deed) -> Value {
    let end = Instant::now() + Duration::from_millis(1000 * deed.number("seconds", 1));
    let mut random = 1;
    while Instant::now() < end {
        (0..10_000).for_each(|_| random = mix(random));
    }
    json!({ "random": random })
}
