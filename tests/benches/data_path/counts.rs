//! What a request costs in system calls and allocations, and what the processes cost in memory and wake-ups.

use inferd_ipc::layout::Backing;
use inferd_tests::bench::Lines;
use inferd_tests::process::{rss_bytes, voluntary_switches};
use inferd_tests::strace::{has_strace, system_calls};
use inferd_tests::{Client, Daemon, DaemonConfig, Model};
use std::time::Duration;

/// System calls and allocations per request of both clients and the worker, from two loops that differ in length.
pub fn counts(lines: &Lines, daemon: &Daemon) {
    let (short, long) = (1_000u64, 101_000u64);
    for client in [Client::Rust, Client::C] {
        let Some(program) = client.program() else {
            lines.skip("counts", "inferd", &format!("the driver of the {} client is not built", client.name()));
            continue;
        };
        let mut robot = daemon.driver(&program);
        robot.ok("attach model=echo64 slots=4 queue=in_order spin_us=2000");
        let mut run = |n: u64| robot.ok(&format!("loop n={n} check=echo")).number("allocations");
        run(short);
        let allocations = run(long) - run(short);
        let per = |count: u64| count as f64 / (long - short) as f64;
        lines.figure("counts", &format!("allocations per request, {} client", client.name()), per(allocations), "");
        if !has_strace() {
            lines.skip("counts", "inferd", "strace is not there or may not trace");
            continue;
        }
        let (pid, worker) = (robot.pid() as u32, daemon.worker("echo64"));
        let mut calls = |n: u64| {
            let mut client = 0;
            let worker = system_calls(worker, daemon.dir(), || {
                client = system_calls(pid, daemon.dir(), || drop(robot.ok(&format!("loop n={n} check=echo"))));
            });
            (client, worker)
        };
        let (before, after) = (calls(short), calls(long));
        let name = client.name();
        lines.figure(
            "counts",
            &format!("system calls per request, {name} client"),
            per(after.0.saturating_sub(before.0)),
            "",
        );
        lines.figure(
            "counts",
            &format!("system calls per request, worker ({name})"),
            per(after.1.saturating_sub(before.1)),
            "",
        );
    }
}

pub fn sizes(lines: &Lines, daemon: &Daemon) {
    std::thread::sleep(Duration::from_millis(500));
    let pids = [("supervisor", daemon.pid()), ("echo worker", daemon.worker("echo64"))];
    for (name, pid) in pids {
        lines.figure("sizes", &format!("resident, {name} (without shared memory)"), rss_bytes(pid) as f64 / 1e6, "MB");
    }
    if daemon.status().models.values().sum::<u64>() > 3 {
        let rss = rss_bytes(daemon.worker("go2")) as f64 / 1e6;
        lines.figure("sizes", "resident, tract worker with the Go2 policy", rss, "MB");
    }
    let awake: Vec<u32> = std::iter::once(daemon.pid()).chain(inferd_tests::process::children(daemon.pid())).collect();
    let before: u64 = awake.iter().map(|p| voluntary_switches(*p)).sum();
    std::thread::sleep(Duration::from_secs(5));
    let after: u64 = awake.iter().map(|p| voluntary_switches(*p)).sum();
    lines.figure("sizes", "wake-ups of all idle processes together", (after - before) as f64 / 5.0, "per s");
    let started: Vec<f64> = (0..5).map(|_| ready_ms()).collect();
    let best = started.iter().copied().fold(f64::INFINITY, f64::min);
    lines.figure("sizes", "start to READY, one echo model, best of 5", best, "ms");
}

fn ready_ms() -> f64 {
    let daemon = DaemonConfig::new(Backing::Memfd).model(Model::echo("m")).start();
    daemon.ready_after().as_secs_f64() * 1e3
}
