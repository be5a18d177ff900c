//! What the kernel says of a process: descriptors, shared mappings, threads, memory, switches.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What a process holds that a session could leak.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Footprint {
    /// Open descriptors, by what they point to, numbers removed.
    pub fds: BTreeMap<String, usize>,
    /// Bytes behind the memfds among them.
    pub memfd_bytes: u64,
    /// Shared mappings of memfds and named segments.
    pub maps: usize,
    /// Their bytes.
    pub map_bytes: u64,
    /// Threads.
    pub threads: usize,
}

impl Footprint {
    /// Of a running process; empty when it is gone.
    #[must_use]
    pub fn of(pid: u32) -> Footprint {
        let (mut fds, mut files) = (BTreeMap::new(), BTreeMap::new());
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            if let Ok(target) = fs::read_link(entry.path()) {
                let name: String = target.to_string_lossy().chars().filter(|c| !c.is_ascii_hexdigit()).collect();
                *fds.entry(name).or_insert(0) += 1;
                if let Some(meta) =
                    fs::metadata(entry.path()).ok().filter(|_| target.to_string_lossy().starts_with("/memfd:"))
                {
                    files.insert(meta.ino(), meta.len());
                }
            }
        }
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        let shared = |line: &&str| line.contains("memfd:") || line.contains("/dev/shm/");
        let shared: Vec<&str> = maps.lines().filter(shared).collect();
        Footprint {
            fds,
            memfd_bytes: files.values().sum(),
            maps: shared.len(),
            map_bytes: shared.iter().filter_map(|line| range_bytes(line)).sum(),
            threads: threads(pid).len(),
        }
    }
}

/// Whether a process has anything within this folder open, or the folder itself.
#[must_use]
pub fn holds_open(pid: u32, folder: &Path) -> bool {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.filter_map(|entry| fs::read_link(entry.path()).ok()).any(|target| target.starts_with(folder))
}

/// The length of a line of `/proc/PID/maps`.
fn range_bytes(line: &str) -> Option<u64> {
    let (from, to) = line.split_whitespace().next()?.split_once('-')?;
    Some(u64::from_str_radix(to, 16).ok()? - u64::from_str_radix(from, 16).ok()?)
}

/// Thread ids of a process.
#[must_use]
pub fn threads(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.filter_map(|t| t.file_name().to_str().and_then(|n| n.parse().ok())).collect()
}

/// A field of `/proc/PID/status` (or of a thread's), as a number.
#[must_use]
pub fn status_field(status: &Path, field: &str) -> Option<u64> {
    let text = fs::read_to_string(status).ok()?;
    let line = text.lines().find(|l| l.starts_with(&format!("{field}:")))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Resident memory without shared memory (RssAnon + RssFile), in bytes.
#[must_use]
pub fn rss_bytes(pid: u32) -> u64 {
    let status = PathBuf::from(format!("/proc/{pid}/status"));
    let kib = |field| status_field(&status, field).unwrap_or(0);
    (kib("RssAnon") + kib("RssFile")) * 1024
}

/// Private memory of its own (RssAnon), in bytes: what a leak of allocations shows in.
#[must_use]
pub fn private_bytes(pid: u32) -> u64 {
    status_field(&PathBuf::from(format!("/proc/{pid}/status")), "RssAnon").unwrap_or(0) * 1024
}

/// Voluntary context switches of every thread of a process.
#[must_use]
pub fn voluntary_switches(pid: u32) -> u64 {
    let of =
        |tid: u32| status_field(&PathBuf::from(format!("/proc/{pid}/task/{tid}/status")), "voluntary_ctxt_switches");
    threads(pid).into_iter().filter_map(of).sum()
}

/// Whether the process exists and is no zombie.
#[must_use]
pub fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

/// Live children of a process.
#[must_use]
pub fn children(pid: u32) -> Vec<u32> {
    all_children(pid).into_iter().filter(|child| is_alive(*child)).collect()
}

/// Children of a process that have ended and that it has not reaped.
#[must_use]
pub fn unreaped(pid: u32) -> Vec<u32> {
    all_children(pid).into_iter().filter(|child| !is_alive(*child)).collect()
}

fn all_children(pid: u32) -> Vec<u32> {
    let of = |tid: u32| fs::read_to_string(format!("/proc/{pid}/task/{tid}/children")).unwrap_or_default();
    let all: String = threads(pid).into_iter().map(of).collect();
    all.split_whitespace().filter_map(|c| c.parse().ok()).collect()
}

/// Named segments of inferd under `/dev/shm`.
#[must_use]
pub fn segments() -> Vec<String> {
    let names = fs::read_dir("/dev/shm").into_iter().flatten().flatten().map(|e| e.file_name());
    names.filter_map(|n| n.into_string().ok()).filter(|n| n.starts_with("inferd")).collect()
}
