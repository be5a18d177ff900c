//! What costs nothing costs nothing: no system call and no allocation per request, no wake-ups, little memory.
//!
//! Counts are taken over two loops that differ by 10^5 requests in separate processes, so that whatever a
//! loop costs once cancels out. Both sides spin, so every request is answered within the spin time, unless the
//! machine takes a CPU away: a handful of sleeps per 10^5 requests is not ours.

use inferd_ipc::limits::ATTACH_GRACE_MS;
use inferd_tests::process::{rss_bytes, threads, voluntary_switches};
use inferd_tests::promises::CALLS_PER_REQUEST;
use inferd_tests::promises::{IDLE_WAKE_UPS_PER_S_MAX, SUPERVISOR_RSS_BYTES_MAX, WORKER_RSS_BYTES_MAX};
use inferd_tests::strace::{has_strace, system_calls};
use inferd_tests::{Case, Client, Daemon, Driver, Model, ms, scenarios, skip, within};

/// Requests of the long loop beyond those of the short one; an interpreter takes many times as long for each.
fn requests(case: &Case) -> u64 {
    if case.client == Client::Python { 10_000 } else { 100_000 }
}

/// Calls that a busy machine may add to that many requests: a pre-empted peer makes the other one sleep and ring. An
/// interpreter's heap grows and shrinks besides; one call for every request would still show.
fn calls_max(case: &Case) -> u64 {
    let of_the_machine = requests(case) / if case.client == Client::Python { 4 } else { 100 };
    CALLS_PER_REQUEST * requests(case) + of_the_machine
}

/// An echo model that spins for longer than anybody is pre-empted.
fn spinning(case: &Case) -> Daemon {
    case.config().model(Model::echo("m").queue(4, "in_order").config("spin_us", "2000000")).start()
}

fn long_loop(robot: &mut Driver, n: u64) -> inferd_tests::Answer {
    robot.begin(&format!("loop n={n} check=echo"));
    let summary = robot.finish(ms(120_000)).clean();
    assert_eq!(summary.count("ok"), n, "{}", summary.json);
    summary
}

scenarios! {
    fn a_request_answered_within_the_spin_time_allocates_nothing_in_the_client(case) {
        let daemon = spinning(case);
        let mut robot = case.attached(&daemon, "model=m slots=4 spin_us=2000000");
        long_loop(&mut robot, 1000);
        let short = long_loop(&mut robot, 1000).number("allocations");
        let long = long_loop(&mut robot, 1000 + requests(case)).number("allocations");
        // Python makes and drops objects as it runs; what its driver counts is what stays, of which its own caches are some.
        let slack = if case.client == Client::Python { requests(case) / 4 } else { 0 };
        assert!(long <= short + slack, "{} requests more, {short} and {long} allocations", requests(case));
    }

    fn a_request_answered_within_the_spin_time_makes_no_system_call_on_either_side(case) {
        let name = format!("no_system_call::{}", case.client.name());
        if !has_strace() {
            return skip(&name, "strace is not there or may not trace (make deps)");
        }
        let daemon = spinning(case);
        let worker = daemon.worker("m");
        let mut robot = case.attached(&daemon, "model=m slots=4 spin_us=2000000");
        long_loop(&mut robot, 1000);
        let mut of_both = |n: u64| {
            let mut client = 0;
            let dir = daemon.dir();
            let pid = robot.pid() as u32;
            let worker = system_calls(worker, dir, || client = system_calls(pid, dir, || drop(long_loop(&mut robot, n))));
            (worker, client)
        };
        let (n, most) = (requests(case), calls_max(case));
        // What a request costs it costs at every try; what others do to a busy machine it does not.
        let quiet = (1..=3).any(|attempt| {
            let ((worker_short, client_short), (worker_long, client_long)) = (of_both(1000), of_both(1000 + n));
            println!("try {attempt}: calls for {n} requests: worker {worker_short} -> {worker_long}, client {client_short} -> {client_long}");
            client_long <= client_short + most && worker_long <= worker_short + most
        });
        assert!(quiet, "more than {most} system calls for {n} requests, three times over");
    }

    fn an_idle_daemon_wakes_up_at_most_once_a_second(case) {
        let mut config = case.config();
        for m in 0..3 {
            config = config.model(Model::echo(&format!("m{m}")));
        }
        let daemon = config.start();
        // Asleep without sessions first, then with idle ones.
        let seconds = 4;
        for attached in [false, true] {
            let mut robots = Vec::new();
            for m in 0..if attached { 3 } else { 0 } {
                let mut robot = case.attached(&daemon, &format!("model=m{m}"));
                robot.exchange("fill=1").expect("ok");
                robots.push(robot);
            }
            let pids: Vec<u32> =
                std::iter::once(daemon.pid()).chain((0..3).map(|m| daemon.worker(&format!("m{m}")))).collect();
            // The grace time of the attaches runs out first, and what is served is stored.
            std::thread::sleep(ms(ATTACH_GRACE_MS + 500));
            within(ms(30_000), "everything is stored", || !daemon.is_storing());
            let before: Vec<u64> = pids.iter().map(|p| voluntary_switches(*p)).collect();
            std::thread::sleep(ms(seconds * 1000));
            let after: Vec<u64> = pids.iter().map(|p| voluntary_switches(*p)).collect();
            for ((pid, before), after) in pids.iter().zip(before).zip(after) {
                let woke = after - before;
                assert!(woke <= seconds * IDLE_WAKE_UPS_PER_S_MAX + 1, "process {pid} woke up {woke} times in {seconds} s (sessions: {attached})");
            }
        }
    }
}

#[test]
fn a_worker_does_not_spin_on_the_cpu_that_the_client_it_woke_waits_for() {
    use inferd_ipc::layout::{ASLEEP_FUTEX, Queue, REQ_SLEEPER_CPU, REQ_SLEEPING};
    use inferd_tests::raw::RawAttach;
    let _turn = inferd_tests::turn();
    let cpu = inferd_tests::cpus::Confined::to(1).expect("a CPU").cpus[0];
    let model = Model::echo("m").queue(4, "in_order").config("spin_us", "10000000").config("cpu", &cpu.to_string());
    let daemon = inferd_tests::DaemonConfig::new(inferd_ipc::layout::Backing::Memfd).model(model).start();
    let robot = RawAttach::attach(&daemon.runtime_dir(), "m", 4, Queue::InOrder);
    let call = |n: u64, on: usize| {
        robot.word(REQ_SLEEPER_CPU, on as u64 + 1);
        robot.word(REQ_SLEEPING, ASLEEP_FUTEX);
        robot.publish(n, &robot.header(n), &[&[0; 64]]);
        let _ = robot.wait(n);
        robot.release(n + 1);
    };
    call(0, cpu + 1);
    std::thread::sleep(ms(300));
    assert!(!robot.worker_sleeps(), "the client slept on another CPU: the worker spins on");
    call(1, cpu);
    let limit = std::time::Instant::now() + ms(5_000);
    while !robot.worker_sleeps() {
        assert!(std::time::Instant::now() < limit, "the worker spins on the CPU that its client waits for");
        std::thread::sleep(ms(1));
    }
}

#[test]
fn the_supervisor_stays_below_10_mb_and_an_echo_worker_below_15_with_two_threads() {
    let _turn = inferd_tests::turn();
    let model = Model::counter("m").queue(4, "in_order");
    let daemon = inferd_tests::DaemonConfig::new(inferd_ipc::layout::Backing::Memfd).model(model).start();
    let mut robot = Driver::start(&Client::Rust.program().expect("built"), &daemon.runtime_dir());
    robot.ok("attach model=m");
    robot.ok("loop n=20000 check=count").clean();
    for _ in 0..5 {
        daemon.reload("m").expect("reloaded");
    }
    let (supervisor, worker) = (rss_bytes(daemon.pid()), rss_bytes(daemon.worker("m")));
    println!("resident: supervisor {} KiB, worker {} KiB", supervisor >> 10, worker >> 10);
    assert!(supervisor <= SUPERVISOR_RSS_BYTES_MAX, "supervisor: {supervisor} B");
    assert!(worker <= WORKER_RSS_BYTES_MAX, "worker: {worker} B");
    let worker_threads = || threads(daemon.worker("m")).len();
    within(ms(5_000), "one executor, one control thread", || worker_threads() == 2);
    let status = daemon.status();
    assert!(status.rss_bytes.abs_diff(supervisor) < 1_000_000, "what `status` says: {}", status.rss_bytes);
}

#[test]
fn a_daemon_with_an_echo_model_becomes_ready_and_says_how_long_it_took() {
    let _turn = inferd_tests::turn();
    let config = inferd_tests::DaemonConfig::new(inferd_ipc::layout::Backing::Memfd).model(Model::echo("m"));
    let daemon = config.start();
    println!("start to READY: {:?} (the daemon says {:?} ms)", daemon.ready_after(), daemon.status().ready_ms);
    // How long is the bench's affair; here a slow day must not fail.
    assert!(daemon.status().ready_ms.is_some_and(|ms| ms > 0.0));
}
