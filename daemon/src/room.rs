//! How much memory can still be had: the machine's, and that of every control group above this process.
//!
//! A service's `MemoryMax=` is such a group's limit. What the kernel does at it is to kill somebody in the group, not to
//! refuse an allocation, so whoever allocates for a client asks here first. Pages of files count as free: the kernel
//! drops them. Version 2 of control groups and version 1, which some machines still mount, say the same in other files.
//! Where the kernel says nothing there is room.

use inferd_ipc::limits::{CGROUP_LEVELS_MAX, MEMORY_SHORT_PERCENT};
use std::fs;
use std::path::{Path, PathBuf};

const MOUNTS: &str = "/sys/fs/cgroup";

/// Names of the files of one version: limit, use, and the use by pages of files in `memory.stat`.
#[derive(Debug)]
struct Version {
    limit: &'static str,
    used: &'static str,
    files: [&'static str; 2],
}

const V2: Version = Version { limit: "memory.max", used: "memory.current", files: ["inactive_file ", "active_file "] };
const V1: Version = Version {
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    files: ["total_inactive_file ", "total_active_file "],
};

/// A control group with a limit of memory, or without one.
#[derive(Debug)]
struct Group {
    dir: PathBuf,
    version: &'static Version,
}

/// A limit and what is left of it, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Left {
    total: u64,
    left: u64,
}

impl Left {
    fn is_short(self) -> bool {
        self.left.saturating_mul(100) < self.total.saturating_mul(MEMORY_SHORT_PERCENT)
    }

    /// What is left without the part below which memory counts as short.
    fn spare(self) -> u64 {
        self.left.saturating_sub(self.total / 100 * MEMORY_SHORT_PERCENT)
    }
}

/// Where to look.
#[derive(Debug, Default)]
pub struct Room {
    groups: Vec<Group>,
}

impl Room {
    /// Finds the groups that this process is in; it does not move between them.
    #[must_use]
    pub fn find() -> Room {
        Room::below(Path::new(MOUNTS), &fs::read_to_string("/proc/self/cgroup").unwrap_or_default())
    }

    fn below(mounts: &Path, own: &str) -> Room {
        let mut groups = Vec::new();
        for line in own.lines() {
            let mut fields = line.splitn(3, ':');
            let (Some(number), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
                continue;
            };
            if number == "0" && controllers.is_empty() {
                // Both versions may be mounted, and then version 2 stands one folder lower.
                for mount in [mounts.to_owned(), mounts.join("unified")] {
                    upwards(&mount, path, &V2, &mut groups);
                }
            } else if controllers.split(',').any(|c| c == "memory") {
                upwards(&mounts.join("memory"), path, &V1, &mut groups);
            }
        }
        Room { groups }
    }

    /// Whether so many bytes can be had while some are left for everybody else in the group; if not, why.
    ///
    /// # Errors
    /// What stands in the way, and the remedy.
    pub fn for_bytes(&self, bytes: u64) -> Result<(), String> {
        let tight = |group: &Group| {
            let spare = group.left()?.spare();
            (spare < bytes).then(|| (group.dir.display().to_string(), spare))
        };
        let Some((group, left)) = self.groups.iter().find_map(tight) else { return Ok(()) };
        Err(format!(
            "{bytes} bytes of memory are wanted, and the control group {group} has room for {left}; end sessions or models, or raise its limit (MemoryMax= of the unit)"
        ))
    }

    /// Whether little memory is left, of the machine's or of a group's.
    #[must_use]
    pub fn is_short(&self) -> bool {
        let machine = machine(&fs::read_to_string("/proc/meminfo").unwrap_or_default());
        machine.into_iter().chain(self.groups.iter().filter_map(Group::left)).any(Left::is_short)
    }

    /// Bytes that can be had without swapping and without anybody being killed, if the kernel says.
    #[must_use]
    pub fn bytes(&self) -> Option<u64> {
        let machine = machine(&fs::read_to_string("/proc/meminfo").unwrap_or_default()).map(|left| left.left);
        machine.into_iter().chain(self.groups.iter().filter_map(Group::left).map(|left| left.left)).min()
    }
}

/// A group and those above it, as far as they are seen here: in a container its own group is the mount's root.
fn upwards(mount: &Path, path: &str, version: &'static Version, groups: &mut Vec<Group>) {
    let own = mount.join(path.trim_start_matches('/'));
    let own = if own.is_dir() { own.as_path() } else { mount };
    for dir in own.ancestors().take(CGROUP_LEVELS_MAX).take_while(|dir| dir.starts_with(mount)) {
        if dir.join(version.limit).exists() {
            groups.push(Group { dir: dir.to_owned(), version });
        }
    }
}

impl Group {
    fn number(&self, file: &str) -> Option<u64> {
        fs::read_to_string(self.dir.join(file)).ok()?.trim().parse().ok()
    }

    /// Nothing where there is no limit ("max", or one that no machine has).
    fn left(&self) -> Option<Left> {
        let total = self.number(self.version.limit).filter(|limit| *limit < u64::MAX >> 2)?;
        let used = self.number(self.version.used)?;
        let stat = fs::read_to_string(self.dir.join("memory.stat")).unwrap_or_default();
        let of = |name: &str| stat.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        let files: u64 = self.version.files.iter().filter_map(|name| of(name)).sum();
        Some(Left { total, left: total.saturating_sub(used.saturating_sub(files)) })
    }
}

/// The machine's memory, from the text of `/proc/meminfo`.
fn machine(meminfo: &str) -> Option<Left> {
    let bytes = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
    };
    Some(Left { total: bytes("MemTotal")?, left: bytes("MemAvailable")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_short_below_a_twentieth_and_not_where_the_kernel_does_not_say() {
        let text = |available| format!("MemTotal:       1000000 kB\nMemFree: 1 kB\nMemAvailable:   {available} kB\n");
        let is_short = |text: &str| machine(text).is_some_and(Left::is_short);
        assert!(is_short(&text(49_999)) && !is_short(&text(50_000)));
        assert_eq!((machine(""), machine("MemTotal: 1 kB\n")), (None, None));
        assert_eq!(Room::default().for_bytes(u64::MAX), Ok(()));
    }

    /// A group's files below `mount`.
    fn group(mount: &Path, path: &str, files: &[(&str, &str)]) {
        let dir = mount.join(path);
        fs::create_dir_all(&dir).unwrap();
        files.iter().for_each(|(name, text)| fs::write(dir.join(name), text).unwrap());
    }

    #[test]
    fn the_tightest_group_above_decides_and_pages_of_files_do_not_count() {
        let mount = tempfile::tempdir().unwrap();
        let mount = mount.path();
        group(mount, "a", &[("memory.max", "1000000\n"), ("memory.current", "900000\n")]);
        group(mount, "a/b", &[("memory.max", "max\n"), ("memory.current", "500000\n")]);
        let room = Room::below(mount, "0::/a/b\n");
        assert_eq!((room.groups.len(), room.groups[1].left()), (2, Some(Left { total: 1_000_000, left: 100_000 })));
        assert_eq!((room.for_bytes(50_000), room.bytes()), (Ok(()), Some(100_000)));
        let why = room.for_bytes(50_001).unwrap_err();
        assert!(why.contains("/a has room for 50000") && why.contains("MemoryMax="), "{why}");
        group(mount, "a", &[("memory.stat", "anon 1\ninactive_file 100000\nactive_file 50000\n")]);
        assert_eq!(room.for_bytes(200_000), Ok(()));
        group(mount, "a", &[("memory.current", "999999\n"), ("memory.stat", "")]);
        assert!(room.is_short());
    }

    #[test]
    fn version_1_is_understood_and_a_container_s_own_group_is_the_root_of_the_mount() {
        let mount = tempfile::tempdir().unwrap();
        let mount = mount.path();
        let files = [("memory.limit_in_bytes", "1000000\n"), ("memory.usage_in_bytes", "400000\n")];
        group(mount, "memory/x", &files);
        group(mount, "memory", &[("memory.limit_in_bytes", "9223372036854771712\n"), ("memory.usage_in_bytes", "1\n")]);
        let room = Room::below(mount, "5:pids:/x\n4:memory:/x\n0::/elsewhere\n");
        assert_eq!((room.groups.len(), room.bytes()), (2, Some(600_000)));
        group(mount, "", &[("memory.max", "300000\n"), ("memory.current", "100000\n")]);
        let contained = Room::below(mount, "0::/system.slice/docker-1.scope\n");
        assert_eq!(contained.bytes(), Some(200_000));
        assert!(Room::below(mount, "nonsense\n0:\n").groups.is_empty());
    }
}
