//! What every scenario ends with: nothing of a session is left in supervisor or workers but what live sessions account for.
//!
//! [`crate::Daemon`] looks after READY and again before it stops the daemon, so that no scenario can forget it.
//! Descriptors and mappings are compared by what they are for: as many request regions as reply regions, doorbells and
//! connections, one record socket and one pidfd per worker, no mapping of a session in the supervisor, the same threads,
//! and private memory within a slack. It has two seconds to become so (threat model, promise 7).

use crate::process::{children, private_bytes, threads, unreaped};
use crate::promises::BACK_AT_BASELINE;
use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

/// What private memory may grow by within one scenario: lists, logs and histories of a bounded length.
const SUPERVISOR_SLACK_BYTES: u64 = 8 << 20;
/// The same of a worker, whose first sessions and steps fill buffers that it keeps.
const WORKER_SLACK_BYTES: u64 = 16 << 20;
/// Files and events that the supervisor opens when they are first needed.
const OTHER_SLACK: usize = 8;
/// A worker's record socket: its standard input, and the descriptor that it uses.
const WORKER_SOCKETS: usize = 2;

/// Descriptors and mappings of one process, by what they are for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    /// Request regions: descriptors.
    pub requests: usize,
    /// Reply regions: descriptors.
    pub replies: usize,
    /// Named segments: descriptors.
    pub named: usize,
    /// State regions: descriptors.
    pub states: usize,
    /// Mappings of any of these.
    pub maps: usize,
    /// Connections of clients.
    pub connections: usize,
    /// Connections of operators.
    pub operators: usize,
    /// Unix sockets without a name: record sockets, doorbells, and what the process made for itself.
    pub unnamed: usize,
    /// Descriptors of processes.
    pub pidfds: usize,
    /// Everything else but memfds.
    pub others: usize,
    /// Threads.
    pub threads: usize,
}

/// Connected Unix sockets that bear a listener's name, by inode.
fn named_sockets() -> BTreeMap<u64, bool> {
    let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let of = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (inode, path) = (words.get(6)?.parse().ok()?, *words.get(7)?);
        (path.ends_with("/attach.sock") || path.ends_with("/control.sock"))
            .then(|| (inode, path.ends_with("/attach.sock")))
    };
    table.lines().filter_map(of).collect()
}

/// Regions of sessions: what their descriptors and mappings point to.
fn is_region(target: &str) -> bool {
    ["memfd:inferd-request", "memfd:inferd-reply", "memfd:inferd-state", "/dev/shm/inferd."]
        .iter()
        .any(|n| target.contains(n))
}

impl Held {
    /// By a running process; nothing when it is gone.
    #[must_use]
    pub fn by(pid: u32) -> Held {
        let (mut held, named) = (Held { threads: threads(pid).len(), ..Held::default() }, named_sockets());
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            let target = target.to_string_lossy();
            let inode = target.strip_prefix("socket:[").and_then(|t| t.strip_suffix(']')?.parse::<u64>().ok());
            let count = match (&*target, inode) {
                (_, Some(inode)) => match named.get(&inode) {
                    Some(true) => &mut held.connections,
                    Some(false) => &mut held.operators,
                    None => &mut held.unnamed,
                },
                (t, _) if t.starts_with("/memfd:inferd-request") => &mut held.requests,
                (t, _) if t.starts_with("/memfd:inferd-reply") => &mut held.replies,
                (t, _) if t.starts_with("/memfd:inferd-state") => &mut held.states,
                (t, _) if t.starts_with("/dev/shm/inferd.") => &mut held.named,
                (t, _) if t.starts_with("/memfd:") => continue,
                (t, _) if t.contains("[pidfd]") => &mut held.pidfds,
                _ => &mut held.others,
            };
            *count += 1;
        }
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        held.maps = maps.lines().filter(|line| is_region(line)).count();
        held
    }
}

/// The supervisor among a process and what it started: a scenario may run it inside another program.
#[must_use]
pub fn supervisor_of(pid: u32) -> Option<u32> {
    let is_inferd = |pid: &u32| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.ends_with("inferd"));
    let below = children(pid);
    let deeper: Vec<u32> = below.iter().flat_map(|child| children(*child)).collect();
    std::iter::once(pid).chain(below).chain(deeper).find(is_inferd)
}

/// What a daemon held when it had just become ready.
#[derive(Debug, Clone)]
pub struct Beginning {
    supervisor: u32,
    held: Held,
    private: BTreeMap<u32, u64>,
}

impl Beginning {
    /// Of a daemon that is ready; none where its supervisor cannot be found or seen.
    #[must_use]
    pub fn of(pid: u32) -> Option<Beginning> {
        let supervisor = supervisor_of(pid)?;
        let (mut held, start) = (Held::by(supervisor), Instant::now());
        // A worker may be starting: what belongs to it comes within moments.
        loop {
            std::thread::sleep(Duration::from_millis(1));
            let now = Held::by(supervisor);
            if now == held && now.pidfds == children(supervisor).len() || start.elapsed() > BACK_AT_BASELINE {
                break;
            }
            held = now;
        }
        (held.threads > 0).then(|| Beginning { supervisor, held, private: private(supervisor) })
    }

    /// What memory they have now is what they began with: models have filled the buffers that they keep.
    pub fn with_memory_of_now(&mut self) {
        self.private = private(self.supervisor);
    }

    /// What is held and nobody accounts for; nothing when all is well.
    #[must_use]
    pub fn left(&self) -> Vec<String> {
        let workers: Vec<(u32, Held)> = children(self.supervisor).into_iter().map(|pid| (pid, Held::by(pid))).collect();
        let mut left = unaccounted(&self.held, &Held::by(self.supervisor), &workers);
        let unreaped = unreaped(self.supervisor);
        if !unreaped.is_empty() {
            left.push(format!("ended workers that it has not reaped: {unreaped:?}"));
        }
        for pid in workers.iter().map(|(pid, _)| *pid).chain([self.supervisor]) {
            let slack = if pid == self.supervisor { SUPERVISOR_SLACK_BYTES } else { WORKER_SLACK_BYTES };
            let (is, then) = (private_bytes(pid), self.private.get(&pid).copied().unwrap_or(u64::MAX - slack));
            if is > then + slack {
                left.push(format!("private memory of process {pid}: {is} B, at the start {then} B"));
            }
        }
        left
    }

    /// Waits until nothing is left, for two seconds at most.
    ///
    /// # Errors
    /// What is left, and what the supervisor holds.
    pub fn settled(&self) -> Result<(), String> {
        let start = Instant::now();
        loop {
            let left = self.left();
            if left.is_empty() {
                return Ok(());
            }
            if start.elapsed() > BACK_AT_BASELINE {
                return Err(format!("a leak: {left:#?}; the supervisor holds {:?}", Held::by(self.supervisor)));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Private memory of a supervisor and its workers.
fn private(supervisor: u32) -> BTreeMap<u32, u64> {
    children(supervisor).into_iter().chain([supervisor]).map(|pid| (pid, private_bytes(pid))).collect()
}

/// What a supervisor that held `then` at its start, and its workers, hold now without a session to account for it.
fn unaccounted(then: &Held, now: &Held, workers: &[(u32, Held)]) -> Vec<String> {
    let sessions = now.requests + now.named / 2;
    let own = then.unnamed.saturating_sub(then.pidfds + then.requests + then.named / 2);
    let equal = [
        ("reply regions for its request regions", now.replies, now.requests),
        ("named segments in pairs", now.named % 2, 0),
        ("mappings of sessions in the supervisor", now.maps, 0),
        ("pidfds for its workers", now.pidfds, workers.len()),
        ("unnamed sockets for workers and sessions", now.unnamed, own + workers.len() + sessions),
        ("threads", now.threads, then.threads),
    ];
    let differ = equal.iter().filter(|(_, is, due)| is != due);
    let mut left: Vec<String> = differ.map(|(what, is, due)| format!("{what}: {is} instead of {due}")).collect();
    let most = [
        ("sessions for its connections".to_owned(), sessions, now.connections.saturating_sub(then.connections)),
        ("state regions".to_owned(), now.states, sessions),
        ("other descriptors".to_owned(), now.others, then.others + OTHER_SLACK),
    ];
    let of_workers = workers.iter().flat_map(|(pid, held)| {
        let descriptors = held.requests + held.replies + held.states + held.named;
        [
            (format!("mappings of sessions in worker {pid}"), held.maps, 3 * sessions),
            (format!("descriptors of sessions in worker {pid}"), descriptors, 0),
            (format!("sockets of worker {pid}"), held.unnamed, WORKER_SOCKETS + sessions),
        ]
    });
    let over = most.into_iter().chain(of_workers).filter(|(_, is, most)| is > most);
    left.extend(over.map(|(what, is, most)| format!("{what}: {is}, at most {most}")));
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_descriptor_mapping_and_thread_that_is_left_is_named() {
        let then = Held { unnamed: 4, pidfds: 1, others: 9, threads: 4, ..Held::default() };
        // One session: two regions, a doorbell and a connection.
        let live = Held { requests: 1, replies: 1, unnamed: 5, connections: 1, ..then.clone() };
        let worker = Held { unnamed: WORKER_SOCKETS + 1, maps: 2, threads: 2, ..Held::default() };
        let quiet = Held { unnamed: WORKER_SOCKETS, threads: 2, ..Held::default() };
        assert_eq!(unaccounted(&then, &then, &[(7, quiet.clone())]), Vec::<String>::new());
        assert_eq!(unaccounted(&then, &live, &[(7, worker.clone())]), Vec::<String>::new());
        type Leak = fn(&mut Held);
        let leaks: [Leak; 8] = [
            |h| h.requests += 1,
            |h| h.replies += 1,
            |h| h.named += 1,
            |h| h.states += 1,
            |h| h.maps += 1,
            |h| h.unnamed += 1,
            |h| h.pidfds += 1,
            |h| h.threads += 1,
        ];
        for (n, leak) in leaks.iter().enumerate() {
            let mut now = then.clone();
            leak(&mut now);
            assert!(!unaccounted(&then, &now, &[(7, quiet.clone())]).is_empty(), "leak {n} of the supervisor");
        }
        let of_worker: [Leak; 5] =
            [|h| h.requests += 1, |h| h.replies += 1, |h| h.states += 1, |h| h.maps += 1, |h| h.unnamed += 1];
        for (n, leak) in of_worker.iter().enumerate() {
            let mut now = quiet.clone();
            leak(&mut now);
            assert!(!unaccounted(&then, &then, &[(7, now)]).is_empty(), "leak {n} of a worker");
        }
        let gone = unaccounted(&then, &then, &[]);
        assert!(!gone.is_empty(), "a worker that is gone leaves a pidfd and a socket");
    }
}
