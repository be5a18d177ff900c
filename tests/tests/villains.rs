//! Programs that mean harm, in Rust and in C, as the daemon's user and as another: rows 5 and 7 to 10 of the threat model.
//!
//! A bystander's answers are checked bit by bit beside each of them, the workers live on, and whatever the villain held is
//! given back. Where root runs the tests the villain is another user; else it is the daemon's own. Campaigns repeat
//! each with the long counts, and print the bystander's latency beside an innocent load.

use inferd_ipc::layout::Backing;
use inferd_ipc::limits::{
    CONNECTIONS_PER_UID_MAX, HALF_ATTACHES_PER_UID_MAX, LINGERING_PER_UID_MAX, SESSION_LOGS_PER_S,
    SESSIONS_PER_MODEL_MAX, SESSIONS_PER_UID_MAX,
};
use inferd_tests::rounds::is_campaign;
use inferd_tests::skip::is_root;
use inferd_tests::villain::{Beside, OTHER_UID, Tongue, Villain, apart};
use inferd_tests::{Client, Daemon, DaemonConfig, Driver, Model, Rounds, ms, skip, turn, within};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

const TONGUES: [Tongue; 2] = [Tongue::Rust, Tongue::C];
/// How long one deed may take once its time is over.
const LATE: Duration = ms(30_000);

fn own_uid() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// Whom villains run as.
fn villain_uid() -> u32 {
    if is_root() { OTHER_UID } else { own_uid() }
}

fn config() -> DaemonConfig {
    let model = Model::counter("m").queue(4, "in_order").config("max_run_ms", "2000");
    let mode = if is_root() { "attach_mode = \"0666\"" } else { "attach_mode = \"0600\"" };
    apart(DaemonConfig::new(Backing::Memfd), model).set("daemon", mode)
}

/// Whether this kernel refuses descriptors where it is asked to: from 6.16 on.
fn refuses() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut parts = release.split(['.', '-']).map(|part| part.trim().parse().unwrap_or(0u32));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= (6, 16)
}

/// Everybody may look for the sockets.
fn open_to_others(daemon: &Daemon) {
    fs::set_permissions(daemon.runtime_dir(), Permissions::from_mode(0o755)).expect("our own folder");
}

fn started(config: DaemonConfig) -> Daemon {
    let daemon = config.start();
    if is_root() {
        open_to_others(&daemon);
    }
    daemon
}

/// Runs `deed` beside a bystander; afterwards the worker is the same, and everything is as it was.
fn beside(name: &str, config: DaemonConfig, deed: impl FnOnce(&Daemon, &mut Beside<'_>)) {
    let daemon = started(config);
    let mut beside = Beside::new(&daemon, "m");
    let (worker, baseline) = (daemon.worker("m"), daemon.baseline());
    deed(&daemon, &mut beside);
    assert_eq!((daemon.worker("m"), daemon.model("m").worker_deaths), (worker, 0), "the worker lives");
    within(ms(3_000), "only the bystander's session is left", || daemon.sessions().len() == beside.sessions());
    daemon.settles_to(&baseline);
    beside.record(name);
}

fn number(report: &Value, key: &str) -> u64 {
    report[key].as_u64().unwrap_or(0)
}

fn answers(report: &Value, status: &str) -> u64 {
    report["answers"][status].as_u64().unwrap_or(0)
}

#[test]
fn flipped_words_and_payloads_spoil_only_their_own_session() {
    let _turn = turn();
    beside("row 7", config(), |daemon, beside| {
        // A round is so many writes; a million here, and a hundred million in a campaign.
        let writes = 125_000;
        let mut rounds = Rounds::of("row 7: rounds of 125,000 writes");
        let mut made = 0;
        while rounds.another() {
            let (n, seed) = (rounds.done(), rounds.seed() >> 1);
            let queue = if n % 2 == 0 { "latest" } else { "in_order" };
            let deed = format!("flip queue={queue} writes={writes} seconds=10 seed={seed}");
            let villain = Villain::start(daemon, TONGUES[n as usize / 2 % 2], villain_uid(), &deed);
            let report = beside.during(villain, LATE);
            assert!(number(&report, "sessions") > 1, "its lies end sessions: {report}");
            made += number(&report, "writes");
        }
        println!("row 7: {made} writes");
        assert!(made >= writes / 2 * u64::from(rounds.in_this_run()), "only {made} writes");
        rounds.finish();
    });
}

/// What each attempt must end in: its name, then the errno as the region's owner, and as another user.
const MATRIX: [(&str, [[i32; 2]; 4]); 13] = {
    use libc_errno::{EACCES, EBADF, EINVAL, EPERM};
    // request before MAPPED, request after READY, reply before, reply after.
    [
        ("shrink", [[EPERM, EPERM], [EPERM, EPERM], [EINVAL, EINVAL], [EINVAL, EINVAL]]),
        ("grow", [[EPERM, EPERM], [EPERM, EPERM], [EINVAL, EINVAL], [EINVAL, EINVAL]]),
        ("punch", [[0, 0], [EPERM, EPERM], [EBADF, EBADF], [EBADF, EBADF]]),
        ("write", [[0, 0], [EPERM, EPERM], [EBADF, EBADF], [EBADF, EBADF]]),
        ("map_writable", [[0, 0], [EPERM, EPERM], [EACCES, EACCES], [EACCES, EACCES]]),
        ("mprotect_new", [[0, 0], [EACCES, EACCES], [EACCES, EACCES], [EACCES, EACCES]]),
        ("mprotect_own", [[0, 0], [0, 0], [EACCES, EACCES], [EACCES, EACCES]]),
        ("madv_remove", [[0, 0], [EPERM, EPERM], [EACCES, EACCES], [EACCES, EACCES]]),
        ("reopen_writable", [[0, EACCES], [0, EACCES], [EACCES, EACCES], [EACCES, EACCES]]),
        ("reopen_truncate", [[EPERM, EACCES], [EPERM, EACCES], [EACCES, EACCES], [EACCES, EACCES]]),
        ("chmod", [[0, EPERM], [0, EPERM], [0, EPERM], [0, EPERM]]),
        ("seal_write", [[libc_errno::EBUSY, libc_errno::EBUSY], [EPERM, EPERM], [EPERM, EPERM], [EPERM, EPERM]]),
        ("seal_seal", [[0, 0], [EPERM, EPERM], [EPERM, EPERM], [EPERM, EPERM]]),
    ]
};

/// Errno numbers of Linux, as the programs report them.
mod libc_errno {
    use nix::errno::Errno;
    pub const EPERM: i32 = Errno::EPERM as i32;
    pub const EACCES: i32 = Errno::EACCES as i32;
    pub const EBADF: i32 = Errno::EBADF as i32;
    pub const EBUSY: i32 = Errno::EBUSY as i32;
    pub const EINVAL: i32 = Errno::EINVAL as i32;
}

/// Attempts on the request region before MAPPED that leave it unfit, so that READY refuses it.
const SPOILS: [&str; 3] = ["punch", "madv_remove", "seal_seal"];
/// The attach status of a region that is not what was agreed.
const BAD_REGION: u64 = 10;

fn judge(report: &Value, phase: usize, other: usize, who: &str) {
    for (name, due) in MATRIX {
        for (region, which) in ["request", "reply"].iter().zip([phase, 2 + phase]) {
            let attempt = &report["attempts"][format!("{region}.{name}")];
            let place = format!("{who}, phase {phase}: {region}.{name}: {attempt}");
            assert_eq!(attempt["errno"].as_i64(), Some(i64::from(due[which][other])), "{place}");
            let spoilt = phase == 0 && *region == "request" && SPOILS.contains(&name);
            assert_eq!(attempt["ready"].as_u64(), Some(if spoilt { BAD_REGION } else { 0 }), "{place}");
            assert_eq!(attempt["answered"].as_bool(), Some(!spoilt), "{place}: the session goes on");
        }
    }
}

#[test]
fn every_attempt_on_a_region_ends_in_its_errno_and_nobody_gets_a_sigbus() {
    let _turn = turn();
    let attempt_all = |daemon: &Daemon, beside: &mut Beside<'_>, uid: u32, other: usize| {
        for tongue in TONGUES {
            for (phase, word) in ["before", "after"].iter().enumerate() {
                let villain = Villain::start(daemon, tongue, uid, &format!("matrix phase={word}"));
                judge(&beside.during(villain, LATE), phase, other, &format!("{tongue:?} as {uid}"));
            }
        }
    };
    // The region's owner, who is not root: root may do more, and is not defended against.
    let mut daemon = config().prepare();
    let own = villain_uid();
    if is_root() {
        daemon.run_as(OTHER_UID);
    }
    daemon.start();
    let mut watching = Beside::new(&daemon, "m");
    attempt_all(&daemon, &mut watching, own, 0);
    watching.record("row 8, same uid");
    drop(daemon);
    if !is_root() {
        return skip("row_8_another_uid", "only root can run a villain under another uid");
    }
    beside("row 8, another uid", config(), |daemon, beside| attempt_all(daemon, beside, OTHER_UID, 1));
}

#[test]
fn descriptors_whose_close_takes_long_hold_up_neither_supervisor_nor_operators() {
    let _turn = turn();
    let count = if is_campaign() { 1_000 } else { 250 };
    // As on a kernel before 6.16, which cannot refuse them; and as this kernel is.
    for (disabled, waiting) in [("passrights", "epoll"), ("", "auto")] {
        let config = config().env("INFERD_DISABLE", disabled).set("ipc", &format!("waiting = {waiting:?}"));
        // What is refused lingers in its sender, one after the other.
        let at_most_s = if disabled.is_empty() && !is_campaign() { 4 } else { 12 };
        beside("row 9, descriptors", config, |daemon, beside| {
            for (n, tongue) in TONGUES.into_iter().enumerate() {
                // The control socket is the daemon's own user's.
                let (socket, uid) = if n == 0 { ("attach", villain_uid()) } else { ("control", own_uid()) };
                let deed = format!("linger count={count} socket={socket} seconds=1 at_most_s={at_most_s} hold_ms=50");
                let report = beside.during(Villain::start(daemon, tongue, uid, &deed), LATE);
                let reached = number(&report, "sent") + number(&report, "refused");
                assert!(reached * 2 > number(&report, "unreachable"), "{report}");
                if disabled == "passrights" {
                    assert!(number(&report, "sent") > 20, "{report}");
                }
            }
            // The doorbell's other end is the daemon's and a worker's; the daemon's own clock runs on too.
            for tongue in TONGUES {
                let deed = format!("linger count={} socket=doorbell seconds=1 at_most_s=3 hold_ms=50", count / 4);
                let report = beside.during(Villain::start(daemon, tongue, villain_uid(), &deed), LATE);
                let (sent, refused) = (number(&report, "sent"), number(&report, "refused"));
                let as_asked =
                    if disabled == "passrights" { sent > 20 && refused == 0 } else { sent == 0 && refused > 0 };
                assert!(as_asked || !refuses(), "{report}");
            }
            // Closes that are still under way are waited for; none of them holds the loop.
            within(ms(8_000), "every connection is closed", || daemon.left().is_empty());
        });
    }
}

#[test]
fn slow_readers_and_filled_sockets_hold_nobody_up() {
    let _turn = turn();
    beside("row 9, slow", config(), |daemon, beside| {
        for tongue in TONGUES {
            // As the daemon's user, so that the control socket opens; the doorbells are the same.
            let report = beside.during(Villain::start(daemon, tongue, own_uid(), "slow seconds=2"), LATE);
            assert!(number(&report, "operators") > 64 && number(&report, "turned_away") > 0, "{report}");
            assert!(number(&report, "rings") > 10 && number(&report, "requests") > 20, "{report}");
            assert!(number(&report, "rings") < 100_000, "a socket that nobody reads fills up: {report}");
            // Another uid has its doorbells alone.
            let report = beside.during(Villain::start(daemon, tongue, villain_uid(), "slow seconds=1"), LATE);
            assert!(number(&report, "rings") > 10 && number(&report, "requests") > 20, "{report}");
        }
    });
}

#[test]
fn half_attaches_and_floods_meet_their_quotas_and_the_control_socket_answers() {
    let _turn = turn();
    beside("row 10, floods", config(), |daemon, beside| {
        let (half, connections) = (HALF_ATTACHES_PER_UID_MAX as u64, CONNECTIONS_PER_UID_MAX as u64);
        // The bystander is another uid where root runs this, and one session of the same uid elsewhere.
        let taken = if is_root() { 0 } else { 1 };
        let deed = format!("half count={} silent={} hold_ms=100", half + 8, connections);
        let report = beside.during(Villain::start(daemon, Tongue::Rust, villain_uid(), &deed), LATE);
        assert_eq!((answers(&report, "ok"), answers(&report, "quota")), (half, 8), "{report}");
        let over = half + taken + number(&report, "silent") - connections;
        assert_eq!(number(&report, "silent_refused"), over, "{report}");
        let report = beside.during(Villain::start(daemon, Tongue::C, villain_uid(), "half count=24 hold_ms=100"), LATE);
        assert_eq!((answers(&report, "ok"), answers(&report, "quota")), (half, 8), "{report}");
        // A thousand connections here; a hundred thousand in a campaign.
        let mut rounds = Rounds::of("row 10: floods of 250 connections");
        while rounds.another() {
            let deed = format!("flood count=250 seconds=10 seed={}", rounds.seed() >> 1);
            let tongue = TONGUES[rounds.done() as usize % 2];
            let report = beside.during(Villain::start(daemon, tongue, villain_uid(), &deed), LATE);
            assert!(number(&report, "done") == 250 && answers(&report, "ok") > 50, "{report}");
        }
        rounds.finish();
        // A second of each limit, and what is left out is counted.
        let flooded = daemon.log();
        let lines = flooded.lines().filter(|line| line.contains(" session begins ") || line.contains(" session ends "));
        let mut by_second = BTreeMap::new();
        lines.for_each(|line| *by_second.entry(line.get(..19).unwrap_or("").to_owned()).or_insert(0u32) += 1);
        let most = by_second.values().max().copied().unwrap_or(0);
        assert!((1..=2 * SESSION_LOGS_PER_S).contains(&most), "{most} lines in a second");
    });
}

#[test]
fn mappings_kept_after_the_hang_up_are_charged_bounded_and_given_back() {
    let _turn = turn();
    beside("row 10, kept mappings", config(), |daemon, beside| {
        let most = LINGERING_PER_UID_MAX as u64;
        let deed = format!("keep count={} hold_ms=300", most + 20);
        for tongue in TONGUES {
            let report = beside.during(Villain::start(daemon, tongue, villain_uid(), &deed), LATE);
            // A session whose end the daemon has not seen yet does not count as one that is kept.
            assert!((most..=most + 5).contains(&number(&report, "kept")) && answers(&report, "quota") > 0, "{report}");
            assert_eq!(report["again"], true, "once they are unmapped, there is room again: {report}");
        }
    });
    // Few region bytes: the bytes run out before the count does.
    beside("row 10, kept bytes", config().set("quota", "region_bytes = 100_000"), |daemon, beside| {
        for tongue in TONGUES {
            let villain = Villain::start(daemon, tongue, villain_uid(), "keep count=30 hold_ms=300");
            let report = beside.during(villain, LATE);
            assert!(number(&report, "kept") < 12 && answers(&report, "quota") > 0, "{report}");
            assert_eq!(report["again"], true, "{report}");
        }
    });
}

#[test]
fn each_uid_meets_its_own_quota_and_a_model_its_limit_and_both_say_so() {
    let name = "each_uid_meets_its_own_quota";
    if !is_root() {
        return skip(name, "only root can run clients under other uids");
    }
    let _turn = turn();
    let other = Model::counter("other").queue(4, "in_order");
    let daemon = started(config().model(other));
    let mut watching = Beside::new(&daemon, "other");
    let per_uid = SESSIONS_PER_UID_MAX as u64;
    let deed = format!("fill count={} hold_ms=4000", per_uid + 8);
    let fill = |tongue, uid| Villain::start(&daemon, tongue, uid, &deed);
    let full = |most: u64| within(ms(20_000), "the sessions are there", || daemon.sessions().len() as u64 > most);
    Villain::make(&daemon, Tongue::C);
    let first = fill(Tongue::Rust, OTHER_UID);
    full(per_uid - 1);
    let second = fill(Tongue::C, OTHER_UID + 1);
    full(2 * per_uid - 1);
    // Both uids have what they may have, and with that the model is full.
    let mut robot = Driver::start(&Client::Rust.program().expect("built"), &daemon.runtime_dir());
    let refused = robot.call("attach model=m");
    assert_eq!(refused.error(), "quota", "{}", refused.json);
    assert!(refused.message().contains(&SESSIONS_PER_MODEL_MAX.to_string()), "{}", refused.json);
    for villain in [first, second] {
        let report = watching.during(villain, LATE);
        assert_eq!(number(&report, "held"), per_uid, "{report}");
        assert!(answers(&report, "quota") > 0, "{report}");
    }
    within(ms(3_000), "there is room again", || robot.call("attach model=m").is_ok());
    watching.record("row 10, quotas");
}

#[test]
fn without_descriptors_the_daemon_says_so_answers_who_is_there_and_recovers() {
    let _turn = turn();
    let mut daemon = config().prepare();
    // Room for the models and a dozen sessions.
    daemon.inside(&["sh", "-c"], |inferd| vec![format!("ulimit -n 96 && exec {inferd}")]);
    daemon.start();
    if is_root() {
        open_to_others(&daemon);
    }
    let mut beside = Beside::new(&daemon, "m");
    for tongue in TONGUES {
        let villain = Villain::start(&daemon, tongue, villain_uid(), "fill count=60 hold_ms=1500");
        std::thread::sleep(ms(700));
        let report = beside.during(villain, LATE);
        let (held, scarce) = (number(&report, "held"), answers(&report, "no_resources") + answers(&report, "hung_up"));
        assert!(held > 3 && held < 60 && scarce > 0, "{report}");
        let mut robot = Driver::start(&Client::Rust.program().expect("built"), &daemon.runtime_dir());
        within(ms(3_000), "it accepts again", || robot.call("attach model=m").is_ok());
        robot.exchange("fill=1").expect("ok");
    }
    beside.record("row 10, descriptors");
}

#[test]
fn a_full_dev_shm_refuses_sessions_that_do_not_fit_and_recovers() {
    if !is_root() {
        return skip("a_full_dev_shm", "only root can mount a small /dev/shm of its own");
    }
    let _turn = turn();
    let model = Model::counter("m").queue(4, "in_order").config("max_run_ms", "2000");
    let mut daemon = DaemonConfig::new(Backing::Posix).model(model).prepare();
    daemon.inside(&["unshare", "--mount", "--propagation", "private", "sh", "-c"], |inferd| {
        vec![format!("mount -t tmpfs -o size=200k tmpfs /dev/shm && exec {inferd}")]
    });
    daemon.start();
    let mut beside = Beside::new(&daemon, "m");
    // Named segments are the daemon's own user's.
    for tongue in TONGUES {
        let report = beside.during(Villain::start(&daemon, tongue, own_uid(), "fill count=40 hold_ms=500"), LATE);
        assert!(number(&report, "held") > 2 && answers(&report, "no_resources") > 0, "{report}");
        let mut robot = Driver::start(&Client::Rust.program().expect("built"), &daemon.runtime_dir());
        within(ms(3_000), "there is room again", || robot.call("attach model=m").is_ok());
        robot.exchange("fill=1").expect("ok");
    }
    beside.record("row 10, /dev/shm");
}

/// A control group of this machine's where a daemon can be put, of whichever version is mounted: its folder and its limit's file.
fn memory_group(name: &str) -> Option<(std::path::PathBuf, &'static str)> {
    let mounts = std::path::Path::new("/sys/fs/cgroup");
    [(mounts.join("memory"), "memory.limit_in_bytes"), (mounts.to_owned(), "memory.max")].into_iter().find_map(
        |(mount, limit)| {
            let dir = mount.join(name);
            fs::create_dir(&dir).ok()?;
            // Without the controller the folder has no such file.
            if dir.join(limit).exists() {
                return Some((dir, limit));
            }
            fs::remove_dir(&dir).ok();
            None
        },
    )
}

#[test]
fn a_memory_limit_refuses_sessions_that_do_not_fit_and_kills_nobody() {
    let group = if is_root() { memory_group(&format!("inferd-test-{}", std::process::id())) } else { None };
    let Some((dir, limit)) = group else {
        return skip("a_memory_limit", "no control group with a limit of memory can be made here");
    };
    let _turn = turn();
    // In a group of 64 MiB, 4 MiB of replies a session, and 16 MiB of state: more than a small session leaves free.
    let replies = Model::bare("m").input("x", "f32", &[16]).output("y", "f32", &[1 << 18]).queue(4, "in_order");
    let states = Model::echo("m").input("h", "f32", &[1 << 21]).output("h_out", "f32", &[1 << 21]).state("h", "h_out");
    for (what, model, least, tongue) in [("replies", replies, 3, Tongue::C), ("states", states, 1, Tongue::Rust)] {
        limited((&dir, limit), what, model, least, tongue);
    }
    within(ms(5_000), "the group is empty", || fs::remove_dir(&dir).is_ok());
}

/// Fills the model `m` of a daemon that may have 64 MiB; so many sessions must fit at least.
fn limited((dir, limit): (&std::path::Path, &str), what: &str, model: Model, least: u64, tongue: Tongue) {
    let mut daemon = DaemonConfig::new(Backing::Memfd).model(model).model(Model::counter("small")).prepare();
    let group = dir.display().to_string();
    daemon.inside(&["sh", "-c"], |inferd| {
        vec![format!("echo 67108864 > {group}/{limit} && echo $$ > {group}/cgroup.procs && exec {inferd}")]
    });
    daemon.start();
    let mut beside = Beside::new(&daemon, "small");
    let before = (daemon.pid(), daemon.worker("m"), daemon.worker("small"));
    let report = beside.during(Villain::start(&daemon, tongue, own_uid(), "fill count=40 hold_ms=500"), LATE);
    assert!(number(&report, "held") >= least && answers(&report, "no_resources") > 0, "{report}");
    assert_eq!((daemon.pid(), daemon.worker("m"), daemon.worker("small")), before, "nobody was killed");
    let mut robot = Driver::start(&Client::Rust.program().expect("built"), &daemon.runtime_dir());
    within(ms(3_000), "there is room again", || robot.call("attach model=m").is_ok());
    drop(robot);
    beside.record(&format!("row 10, a limit of memory, {what}"));
}

#[test]
fn a_forked_session_stays_its_parents_whoever_dies_first() {
    let _turn = turn();
    beside("row 5, forks", config(), |daemon, beside| {
        let mut rounds = Rounds::of("row 5: rounds of 25 forks");
        while rounds.another() {
            let deed = format!("fork rounds=25 seed={}", rounds.seed() >> 1);
            let report = beside.during(Villain::start(daemon, Tongue::Rust, villain_uid(), &deed), LATE);
            let (told, killed) = (number(&report, "told"), number(&report, "killed"));
            assert_eq!((told + killed, number(&report, "wrong")), (25, 0), "every child was told or killed: {report}");
            assert!(told > 0, "{report}");
        }
        rounds.finish();
        // Without the library's guard a child writes over its parent's requests: that session alone may end.
        let report = beside.during(Villain::start(daemon, Tongue::C, villain_uid(), "fork rounds=25 seed=3"), LATE);
        assert!(number(&report, "killed") + number(&report, "ended") > 0, "{report}");
        // The parent dies first; its child is told, and with it the last holder of the session's socket is gone.
        let orphan = "fork rounds=1 last=parent seed=5";
        let _ = beside.during(Villain::start(daemon, Tongue::Rust, villain_uid(), orphan), LATE);
    });
}

#[test]
fn a_client_that_is_stopped_again_and_again_loses_nothing_and_delays_nobody() {
    let _turn = turn();
    beside("row 5, stops", config(), |daemon, beside| {
        let mut sleepers = [Client::Rust, Client::C].map(|client| {
            let mut sleeper = daemon.driver(&client.program()?);
            sleeper.ok("attach model=m slots=4");
            Some(sleeper)
        });
        let mut rounds = Rounds::of("row 5: clients stopped");
        while rounds.another() {
            for sleeper in sleepers.iter_mut().flatten() {
                sleeper.begin("loop n=40 depth=4 check=count");
                std::thread::sleep(Duration::from_micros(rounds.seed() % 1_500));
                sleeper.signal(Signal::SIGSTOP);
            }
            std::thread::sleep(ms(15));
            assert!(daemon.sessions().len() >= 2, "nothing is taken from a live owner");
            for sleeper in sleepers.iter_mut().flatten() {
                sleeper.signal(Signal::SIGCONT);
                let summary = sleeper.finish(ms(10_000)).clean();
                assert_eq!((summary.count("ok"), summary.number("sent")), (40, 40), "{}", summary.json);
            }
        }
        rounds.finish();
        // One that stays stopped: the bystander does not notice, and killing it gives everything back.
        let villain =
            Villain::start(daemon, Tongue::Rust, villain_uid(), "flip queue=latest writes=100000000 seconds=2");
        std::thread::sleep(ms(100));
        kill(Pid::from_raw(villain.pid()), Signal::SIGSTOP).expect("it lives");
        let innocent = Villain::start(daemon, Tongue::Rust, own_uid(), "innocent seconds=1");
        let _ = beside.during(innocent, LATE);
        drop(villain);
    });
}
