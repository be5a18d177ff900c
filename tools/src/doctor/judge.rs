//! What the doctor makes of a machine: pure, so that machines which do not exist can be judged in tests.

use super::Finding;
use super::machine::{GROUPS, Machine, UNITS};
use std::path::Path;

/// Units: there, enabled, active, and as fresh as the files.
#[must_use]
pub fn units(m: &Machine) -> Vec<Finding> {
    let about = "units";
    let systemctl = m.systemctl();
    if m.units.is_empty() {
        let remedy =
            "without systemd, `inferd --config FILE` in the foreground does the same; keep it running by other means";
        return vec![Finding::hint(about, "no systemd answers", remedy)];
    }
    let of = |unit, name| m.property(unit, name).unwrap_or_default();
    let missing: Vec<&str> = UNITS.into_iter().filter(|unit| of(unit, "LoadState") != "loaded").collect();
    if !missing.is_empty() {
        let what = format!("systemd does not know {}", missing.join(", "));
        return vec![Finding::fault(
            about,
            what,
            format!("install the units (package inferd, or `make install`), then {systemctl} daemon-reload"),
        )];
    }
    let mut findings = Vec::new();
    for unit in UNITS {
        let (active, result) = (of(unit, "ActiveState"), of(unit, "Result"));
        findings.push(match active {
            "active" | "reloading" => Finding::ok(about, format!("{unit} is {active}")),
            "failed" => {
                let why = Some(of(unit, "StatusText")).filter(|text| !text.is_empty()).unwrap_or(result);
                let journal = if m.of_user { "journalctl --user -u inferd" } else { "journalctl -u inferd" };
                Finding::fault(
                    about,
                    format!("{unit} has failed: {why}"),
                    format!("{journal} -n 50, then {systemctl} start inferd"),
                )
            }
            _ if unit == UNITS[0] && of(UNITS[1], "ActiveState") == "active" => {
                Finding::ok(about, format!("{unit} is {active}; the first client starts it"))
            }
            _ => Finding::fault(about, format!("{unit} is {active}"), format!("{systemctl} start inferd")),
        });
    }
    if of(UNITS[0], "UnitFileState") == "disabled" {
        findings.push(Finding::hint(
            about,
            "inferd.service does not start at boot",
            format!("{systemctl} enable inferd"),
        ));
    }
    if UNITS.into_iter().any(|unit| of(unit, "NeedDaemonReload") == "yes") {
        findings.push(Finding::hint(
            about,
            "unit files have changed since systemd read them",
            format!("{systemctl} daemon-reload"),
        ));
    }
    if m.systemd.is_some_and(|version| version >= 253) && of(UNITS[0], "Type") == "notify" {
        let remedy = "ln -s /usr/share/inferd/profiles/notify-reload.conf into inferd.service.d/, then daemon-reload";
        findings.push(Finding::hint(
            about,
            "`reload` returns before the configuration was applied; this systemd can wait",
            remedy,
        ));
    }
    findings
}

/// The directory and both sockets: there, of the right group, open to nobody else.
#[must_use]
pub fn sockets(m: &Machine) -> Vec<Finding> {
    let dir = m.runtime_dir.display();
    let mut findings = Vec::new();
    match m.runtime_dir_mode {
        None => {
            return vec![Finding::fault(
                "directory",
                format!("{dir} does not exist"),
                format!("{} start inferd", m.systemctl()),
            )];
        }
        Some(mode) if mode & 0o002 != 0 => {
            let what = format!("everybody may write to {dir}, and so replace its sockets");
            findings.push(Finding::fault("directory", what, format!("chmod o-w {dir}")));
        }
        Some(mode) => findings.push(Finding::ok("directory", format!("{dir}, mode {mode:04o}"))),
    }
    for (name, group) in [("attach.sock", GROUPS[0]), ("control.sock", GROUPS[1])] {
        let Some(file) = m.sockets.get(name) else {
            findings.push(Finding::fault(
                name,
                format!("it is not in {dir}"),
                format!("{} start inferd", m.systemctl()),
            ));
            continue;
        };
        let path = file.path.display();
        if !file.is_socket {
            findings.push(Finding::fault(name, format!("{path} is not a socket"), "move it away, and restart inferd"));
            continue;
        }
        let what = format!("{path}, group {}, mode {:04o}", file.group, file.mode);
        findings.push(if file.mode & 0o007 != 0 && name == "control.sock" {
            Finding::fault(name, what + ": everybody may load and unload models", format!("chmod 0660 {path}"))
        } else if file.mode & 0o007 != 0 {
            Finding::hint(name, what + ": every user may attach", format!("chmod 0660 {path}, unless that is meant"))
        } else if file.mode & 0o070 != 0 && name == "control.sock" && file.group == GROUPS[0] {
            Finding::fault(name, what + ": robots may load and unload models", format!("chgrp {group} {path}"))
        } else if !m.of_user && file.group != group {
            Finding::hint(
                name,
                what + &format!(", not {group}"),
                format!("SocketGroup= says who may connect; {group} is usual"),
            )
        } else {
            Finding::ok(name, what)
        });
    }
    findings
}

/// Groups: there, and whether this user is in them.
#[must_use]
pub fn groups(m: &Machine) -> Vec<Finding> {
    if m.of_user {
        return vec![Finding::ok("groups", "the daemon is this user's own; nobody else connects")];
    }
    let mut findings = Vec::new();
    for (group, may) in [(GROUPS[0], "attach to models"), (GROUPS[1], "operate the daemon")] {
        let Some(members) = m.groups.get(group) else {
            let remedy = "systemd-sysusers (the file is in sysusers.d), or install the package inferd";
            findings.push(Finding::fault("groups", format!("there is no group {group}"), remedy));
            continue;
        };
        let user = &m.user;
        let listed = members.contains(user);
        let effective = m.effective_groups.iter().any(|name| name == group);
        findings.push(if effective || user == "root" {
            Finding::ok("groups", format!("{user} may {may}"))
        } else if listed {
            Finding::hint("groups", format!("{user} is in {group}, but this login is older"), "log in again")
        } else {
            Finding::hint(
                "groups",
                format!("{user} may not {may}"),
                format!("if that is not meant: usermod -a -G {group} {user}, then log in again"),
            )
        });
    }
    findings
}

/// Whether the service may do what the configuration asks for, and see what it names.
#[must_use]
pub fn limits(m: &Machine) -> Vec<Finding> {
    let unit = UNITS[0];
    let asks = |key: &str, value: &str| {
        let is = |line: &str| {
            line.split_once('=')
                .is_some_and(|(k, v)| k.trim() == key && v.trim().trim_start_matches('"').starts_with(value))
        };
        m.configuration.iter().find(|(_, line)| is(line)).map(|(file, _)| file.display().to_string())
    };
    let property = |name: &'static str| m.property(unit, name).unwrap_or_default();
    let rt = if m.of_user {
        "user@.service needs LimitRTPRIO= and LimitMEMLOCK= (systemctl edit user@.service, as root)"
    } else {
        "ln -s /usr/share/inferd/profiles/rt.conf /etc/systemd/system/inferd.service.d/, then daemon-reload and restart"
    };
    let mut findings = Vec::new();
    if let Some(file) = asks("scheduling", "fifo") {
        let allowed =
            property("LimitRTPRIO").parse::<u64>().is_ok_and(|most| most > 0) || property("LimitRTPRIO") == "infinity";
        findings.push(if !allowed || property("RestrictRealtime") == "yes" {
            Finding::fault("limits", format!("{file} asks for SCHED_FIFO, which the unit does not grant"), rt)
        } else {
            Finding::ok("limits", format!("SCHED_FIFO up to {}", property("LimitRTPRIO")))
        });
        if m.read("/proc/sys/kernel/sched_rt_runtime_us").is_some_and(|us| us != "-1") {
            let what =
                "real-time throttling is on: an executor that spins for 0.95 s of a second is stopped for the rest";
            findings.push(Finding::hint(
                "limits",
                what,
                "keep spin_us below the period, or sysctl kernel.sched_rt_runtime_us=-1",
            ));
        }
    }
    if let Some(file) = asks("mlock", "true") {
        findings.push(if property("LimitMEMLOCK") == "infinity" {
            Finding::ok("limits", "memory may be locked without limit")
        } else {
            Finding::hint(
                "limits",
                format!("{file} asks to lock memory; the unit grants {} bytes", property("LimitMEMLOCK")),
                rt,
            )
        });
    }
    for (file, line) in &m.configuration {
        let Some(path) = line.strip_prefix("path").and_then(|rest| rest.trim_start().strip_prefix('=')) else {
            continue;
        };
        let path = path.trim().trim_matches('"');
        let hidden =
            |dir: &str, by: &'static str| Path::new(path).starts_with(dir) && matches!(property(by), "yes" | "tmpfs");
        let homes = ["/home", "/run/user"].into_iter().any(|dir| hidden(dir, "ProtectHome"));
        if homes || hidden("/tmp", "PrivateTmp") || hidden("/var/tmp", "PrivateTmp") {
            let what = format!("{} names {path}, which the service does not see", file.display());
            findings.push(Finding::fault(
                "limits",
                what,
                "put models into /var/lib/inferd/models (operators may write there)",
            ));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok("limits", "the configuration asks for nothing that the unit would have to grant"));
    }
    findings
}

/// What the kernel has of what the data path uses; everything has a fallback.
#[must_use]
pub fn kernel(m: &Machine) -> Vec<Finding> {
    let (major, minor) = m.kernel;
    let features = [
        ((5, 14), "MADV_POPULATE_WRITE: regions are populated by writes instead"),
        ((5, 16), "futex_waitv: executors sleep in epoll instead, which costs a system call more per wake"),
    ];
    let mut findings: Vec<Finding> = features
        .into_iter()
        .filter(|(since, _)| m.kernel < *since)
        .map(|((a, b), what)| {
            Finding::hint("kernel", format!("{major}.{minor} has no {what}"), format!("Linux {a}.{b} has it"))
        })
        .collect();
    if findings.is_empty() {
        findings.push(Finding::ok("kernel", format!("{major}.{minor} has all that the data path uses")));
    }
    findings.extend(confinement(m));
    if let Some(clock) = m.read("/sys/devices/system/clocksource/clocksource0/current_clocksource")
        && !matches!(clock.as_str(), "tsc" | "arch_sys_counter" | "kvm-clock" | "hyperv_clocksource_tsc_page")
    {
        findings.push(Finding::hint(
            "kernel",
            format!("the clock source is {clock}: reading the time is a slow system call"),
            "clocksource=tsc, if the machine's is stable",
        ));
    }
    findings
}

/// What workers are confined with; nothing is said where the kernel does not say.
fn confinement(m: &Machine) -> Vec<Finding> {
    let has = |path, split, word| Some(m.read(path)?.split(split).any(|name| name == word));
    let means = [
        (
            "seccomp",
            has("/proc/sys/kernel/seccomp/actions_avail", ' ', "kill_process"),
            "workers keep every system call once their model is warm",
            "use a kernel with CONFIG_SECCOMP_FILTER",
        ),
        (
            "Landlock",
            has("/sys/kernel/security/lsm", ',', "landlock"),
            "workers are confined by seccomp alone",
            "add landlock to lsm= on the kernel's command line; the kernel must be 5.13 or newer",
        ),
    ];
    let finding = |(name, has, without, remedy): (&str, Option<bool>, &str, &str)| match has? {
        true => Some(Finding::ok("kernel", format!("{name} confines workers"))),
        false => Some(Finding::hint("kernel", format!("{name} is not on: {without}"), remedy)),
    };
    means.into_iter().filter_map(finding).collect()
}

/// Frequency and isolation of the CPUs that executors are pinned to.
#[must_use]
pub fn cpus(m: &Machine) -> Vec<Finding> {
    let pinned: Vec<u32> = m
        .configuration
        .iter()
        .filter_map(|(_, line)| line.split_once('='))
        .filter(|(key, _)| key.trim() == "cpu")
        .filter_map(|(_, value)| value.split('#').next().and_then(|number| number.trim().parse().ok()))
        .collect();
    let mut findings = Vec::new();
    let governor = |cpu: u32| m.read(&format!("/sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor"));
    let looked_at: Vec<u32> = if pinned.is_empty() { vec![0] } else { pinned.clone() };
    for cpu in looked_at {
        match governor(cpu).as_deref() {
            Some("performance") => findings.push(Finding::ok("cpus", format!("cpu{cpu} runs at full speed"))),
            Some(name) => {
                let what = format!("cpu{cpu} has the governor {name}: it is slow at first after each sleep");
                findings.push(Finding::hint("cpus", what, "cpupower frequency-set -g performance"));
            }
            None => {}
        }
    }
    let isolated = m.read("/sys/devices/system/cpu/isolated").unwrap_or_default();
    for cpu in pinned {
        findings.push(if in_list(&isolated, cpu) {
            Finding::ok("cpus", format!("cpu{cpu} is isolated"))
        } else {
            let what = format!("an executor is pinned to cpu{cpu}, where others run too");
            Finding::hint("cpus", what, format!("isolcpus={cpu} nohz_full={cpu} on the kernel's command line"))
        });
    }
    if findings.is_empty() {
        findings.push(Finding::ok("cpus", "no executor is pinned, and the machine sets the speed"));
    }
    findings
}

/// Whether a CPU is in a list such as `2-3,6`.
fn in_list(list: &str, cpu: u32) -> bool {
    list.split(',').filter(|part| !part.is_empty()).any(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        matches!((first.trim().parse::<u32>(), last.trim().parse::<u32>()), (Ok(a), Ok(b)) if (a..=b).contains(&cpu))
    })
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::super::machine::{SocketFile, of_model};
    use super::*;
    use std::fs;

    fn unit(active: &str) -> std::collections::BTreeMap<String, String> {
        let pairs = [
            ("LoadState", "loaded"),
            ("ActiveState", active),
            ("UnitFileState", "enabled"),
            ("Type", "notify"),
            ("LimitRTPRIO", "0"),
            ("RestrictRealtime", "yes"),
            ("ProtectHome", "yes"),
            ("LimitMEMLOCK", "67108864"),
        ];
        pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    }

    fn sound() -> Machine {
        let socket = |name: &str, group: &str| SocketFile {
            path: format!("/run/inferd/{name}").into(),
            mode: 0o660,
            group: group.to_owned(),
            is_socket: true,
        };
        Machine {
            root: "/nonexistent".into(),
            runtime_dir: "/run/inferd".into(),
            runtime_dir_mode: Some(0o755),
            sockets: [
                ("attach.sock", socket("attach.sock", "inferd")),
                ("control.sock", socket("control.sock", "inferd-admin")),
            ]
            .into(),
            units: UNITS.into_iter().map(|name| (name.to_owned(), unit("active"))).collect(),
            systemd: Some(252),
            groups: GROUPS.into_iter().map(|name| (name, vec!["ann".to_owned()])).collect(),
            user: "ann".into(),
            effective_groups: GROUPS.map(str::to_owned).to_vec(),
            kernel: (6, 1),
            ..Machine::default()
        }
    }

    fn all(m: &Machine) -> Vec<Finding> {
        [units(m), sockets(m), groups(m), limits(m), kernel(m), cpus(m)].concat()
    }

    fn worst(findings: &[Finding]) -> Level {
        findings.iter().map(|finding| finding.level).max().expect("something was looked at")
    }

    #[test]
    fn a_sound_machine_has_no_finding_and_every_other_has_a_remedy() {
        assert!(all(&sound()).iter().all(|finding| finding.level == Level::Ok), "{:?}", all(&sound()));
        let nothing = all(&Machine::default());
        assert_eq!(worst(&nothing), Level::Fault);
        assert!(nothing.iter().all(|finding| (finding.level == Level::Ok) == finding.remedy.is_empty()), "{nothing:?}");
    }

    #[test]
    fn a_failed_service_is_reported_with_its_own_reason() {
        let mut m = sound();
        let mut failed = unit("failed");
        failed.insert("StatusText".into(), "model go2: no such file".into());
        m.units.insert(UNITS[0].into(), failed);
        let found = units(&m);
        assert!(
            found.iter().any(|f| f.level == Level::Fault && f.what.contains("model go2: no such file")),
            "{found:?}"
        );
    }

    #[test]
    fn a_control_socket_that_robots_or_everybody_may_use_is_a_fault() {
        for (mode, group) in [(0o666, "inferd-admin"), (0o660, "inferd")] {
            let mut m = sound();
            let file = m.sockets.get_mut("control.sock").expect("made above");
            (file.mode, file.group) = (mode, group.into());
            assert_eq!(worst(&sockets(&m)), Level::Fault, "{mode:o} {group}");
        }
    }

    #[test]
    fn real_time_without_the_profile_and_a_model_in_a_home_are_found_in_the_configuration() {
        let mut m = sound();
        let line = |text: &str| ("/etc/inferd/inferd.toml".into(), text.to_owned());
        m.configuration =
            vec![line("scheduling = \"fifo:80\""), line("path = \"/home/ann/go2.onnx\""), line("cpu = 3  # its own")];
        let found = limits(&m);
        assert_eq!(found.iter().filter(|f| f.level == Level::Fault).count(), 2, "{found:?}");
        assert!(cpus(&m).iter().any(|f| f.remedy.contains("isolcpus=3")), "{:?}", cpus(&m));
        let service = m.units.get_mut(UNITS[0]).expect("made above");
        service.extend(
            [("LimitRTPRIO", "90"), ("RestrictRealtime", "no"), ("ProtectHome", "no")]
                .map(|(k, v)| (k.to_owned(), v.to_owned())),
        );
        assert_eq!(worst(&limits(&m)), Level::Ok, "{:?}", limits(&m));
    }

    #[test]
    fn a_governor_that_saves_power_and_isolated_cpus_are_read_from_the_system() {
        let root = tempfile::tempdir().expect("a folder");
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("below the root")).expect("mkdir");
            fs::write(path, text).expect("write");
        };
        put("sys/devices/system/cpu/cpu3/cpufreq/scaling_governor", "powersave\n");
        put("sys/devices/system/cpu/isolated", "2-3\n");
        let mut m = sound();
        m.root = root.path().to_owned();
        m.configuration = vec![("f".into(), "cpu = 3".into())];
        let found = cpus(&m);
        assert!(found.iter().any(|f| f.level == Level::Hint && f.what.contains("powersave")), "{found:?}");
        assert!(found.contains(&Finding::ok("cpus", "cpu3 is isolated")), "{found:?}");
    }

    #[test]
    fn means_to_confine_workers_are_read_from_the_kernel() {
        let root = tempfile::tempdir().expect("a folder");
        let mut m = sound();
        m.root = root.path().to_owned();
        assert_eq!(confinement(&m), [], "a kernel that does not say");
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("below the root")).expect("mkdir");
            fs::write(path, text).expect("write");
        };
        put("proc/sys/kernel/seccomp/actions_avail", "kill_process kill_thread trap errno trace log allow\n");
        put("sys/kernel/security/lsm", "capability,yama\n");
        let found = confinement(&m);
        assert_eq!(found[0], Finding::ok("kernel", "seccomp confines workers"));
        assert!(found[1].level == Level::Hint && found[1].remedy.contains("lsm="), "{found:?}");
        put("sys/kernel/security/lsm", "landlock,lockdown,yama\n");
        assert_eq!(confinement(&m)[1], Finding::ok("kernel", "Landlock confines workers"));
    }

    #[test]
    fn lists_of_cpus_are_read_as_the_kernel_writes_them() {
        assert!(in_list("2-3,6", 3) && in_list("2-3,6", 6) && !in_list("2-3,6", 4) && !in_list("", 0));
    }

    #[test]
    fn a_quarantined_model_is_a_fault_and_a_warning_of_its_worker_a_hint() {
        let bad = of_model(&serde_json::json!({"model": "m", "state": "quarantined", "message": "died"}));
        assert_eq!(worst(&bad), Level::Fault);
        let warned = of_model(&serde_json::json!({"model": "m", "state": "live", "generation": 1,
            "warnings": ["executor nice = -5: EACCES; allow it with LimitNICE="]}));
        assert_eq!(warned[1], Finding::hint("model", "m: executor nice = -5: EACCES", "allow it with LimitNICE="));
    }
}
