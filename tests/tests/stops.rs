//! SIGTERM at every step of daemon, worker and client, and at random moments: exit 0 in time, every request accounted for.
//!
//! The process that passes the armed step sends the daemon SIGTERM there and goes on: so a drain begins in the middle of an
//! attach, a publish, a commit, a swap, a recovery. Row 13 of the threat model.

use inferd_ipc::control::{Command as Rpc, Reload, Shadow};
use inferd_ipc::failpoints::Action;
use inferd_ipc::layout::Backing;
use inferd_ipc::limits::STORE_EXIT_MS;
use inferd_tests::control::Control;
use inferd_tests::failpoints::{self, DIES};
use inferd_tests::steps::{CLIENT, DAEMON, Step, WORKER, When};
use inferd_tests::{Armed, Client, DaemonConfig, Driver, Model, Rounds, ms};
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

const DRAIN_MS: u64 = 2_000;
const END_MS: u64 = DRAIN_MS + STORE_EXIT_MS + 1_000;
/// Rounds of random moments per round of every step.
const RANDOM: usize = 12;

/// Robots under load: a Rust and a C client on the recurrent model, one on `latest`.
fn robots(armed: &Armed) -> Vec<Driver> {
    let robot = |(client, keys): (Client, &str)| {
        let mut robot = armed.victim(client);
        robot.ok(&format!("attach {keys} auto_reattach=0"));
        robot
    };
    let kinds = [(Client::Rust, "model=m slots=4"), (Client::C, "model=m slots=2"), (Client::C, "model=l")];
    let mut all: Vec<Driver> = kinds.into_iter().map(robot).collect();
    all[0].begin("loop seconds=30 depth=4 rate_hz=1000 check=count until=lost");
    all[1].begin("loop seconds=30 depth=2 rate_hz=700 check=count until=lost");
    all[2].begin("loop seconds=30 depth=3 rate_hz=1500 check=echo until=lost");
    all
}

/// What makes somebody pass the step, kept until the end.
#[derive(Default)]
struct Provoked {
    _robot: Option<Driver>,
    _operator: Option<Control>,
}

fn provoke(armed: &Armed, when: When) -> Provoked {
    let attached = || {
        let mut robot = armed.victim(Client::C);
        robot.ok("versions");
        robot.begin("attach model=m auto_reattach=0");
        robot
    };
    let reload = |shadow: Option<Shadow>| {
        let mut operator = armed.daemon.control();
        operator.send(&Rpc::Reload(Reload { model: "m".to_owned(), shadow, ..Reload::default() }));
        Provoked { _operator: Some(operator), ..Provoked::default() }
    };
    match when {
        When::Attach => Provoked { _robot: Some(attached()), ..Provoked::default() },
        When::Leave => {
            let mut robot = attached();
            robot.finish(ms(10_000));
            robot.begin("detach");
            Provoked { _robot: Some(robot), ..Provoked::default() }
        }
        When::Reload => reload(None),
        When::Shadow => reload(Some(Shadow::Steps(20))),
        When::Death => {
            armed.table.arm(1, "worker.running", DIES, 1);
            Provoked::default()
        }
        When::Serve | When::Start | When::Drain => Provoked::default(),
    }
}

fn sleepy(name: &str, queue: &str) -> Model {
    Model::counter(name).queue(4, queue).option("sleep_us", 300).config("keep_previous", "false")
}

fn one_stop(rounds: &Rounds, steps: &[Step]) -> Duration {
    let (round, seed) = (rounds.done() as usize - 1, rounds.seed());
    let step = steps.get(round % (steps.len() + RANDOM));
    let config = DaemonConfig::new(if round.is_multiple_of(5) { Backing::Posix } else { Backing::Memfd })
        .model(sleepy("m", "in_order").weights(b"the first"))
        .model(sleepy("l", "latest").config("spin_us", "0"))
        // A confined worker may signal nobody, the daemon neither.
        .set("worker", "confine = \"off\"")
        .set("daemon", &format!("drain_ms = {DRAIN_MS}"));
    let mut armed = Armed::start(config);
    let mut robots = robots(&armed);
    std::thread::sleep(Duration::from_micros(20_000 + seed % 20_000));
    // A reload has something to stage and to store.
    armed.daemon.change(sleepy("m", "in_order").weights(b"the second"));
    let term = Action::Signal { signal: Signal::SIGTERM as i32, pid: armed.daemon.pid() };
    let _provoked = if let Some((name, when)) = step {
        armed.arm(name, term, if *when == When::Serve { 1 + seed % 20 } else { 1 });
        let provoked = provoke(&armed, *when);
        armed.acted(name, ms(10_000));
        provoked
    } else {
        let provoked =
            provoke(&armed, [When::Reload, When::Attach, When::Death, When::Serve][(seed >> 40) as usize % 4]);
        std::thread::sleep(Duration::from_micros(seed % 30_000));
        armed.daemon.signal(Signal::SIGTERM);
        provoked
    };
    let start = Instant::now();
    armed.daemon.ended(ms(END_MS));
    let took = start.elapsed();
    assert!(!armed.daemon.log().contains("not drained in time"), "{step:?}: nothing holds this drain up");
    for robot in &mut robots {
        let summary = robot.finish(ms(10_000)).clean();
        let told = ["shutting_down", "daemon_lost", "worker_lost", "unavailable"].map(|o| summary.count(o));
        let served = summary.count("ok") + summary.count("superseded");
        assert_eq!(told.iter().sum::<u64>() + served, summary.number("sent"), "{step:?}: {}", summary.json);
        assert!(
            told[0] + told[1] + summary.errors("shutting_down") + summary.errors("daemon_lost") > 0,
            "{}",
            summary.json
        );
        let deaths = u64::from(step.is_none_or(|(_, when)| *when == When::Death));
        assert!(told[2] <= deaths, "{step:?}: nothing else ends a run: {}", summary.json);
    }
    took
}

fn stops(name: &str, steps: &[Step]) {
    // A drain that has begun cannot be begun by a step of its own, and nothing is answered before the start is over.
    let steps: Vec<Step> =
        steps.iter().filter(|(_, when)| !matches!(when, When::Start | When::Drain)).copied().collect();
    failpoints::run(name, || {
        let mut took = Vec::new();
        let mut rounds = Rounds::of(name);
        while rounds.another() {
            took.push(one_stop(&rounds, &steps));
        }
        took.sort_unstable();
        let (p50, max) = (took[took.len() / 2], took[took.len() - 1]);
        println!("FIGURE {name}: exit after p50 {p50:.0?}, max {max:.0?} ({} drains)", took.len());
        rounds.finish();
    });
}

#[test]
fn a_drain_that_begins_at_any_step_accounts_for_every_request_and_exits_in_time() {
    let all = [&DAEMON[..], &WORKER, &CLIENT].concat();
    // Every third step, then the next ones: wherever the time is over, all kinds have come.
    let steps: Vec<Step> = (0..3).flat_map(|first| all.iter().skip(first).step_by(3)).copied().collect();
    stops("drains from steps", &steps);
}
