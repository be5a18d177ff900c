//! Clients that die at every step and at random moments: promises 5 and 7 of the threat model.
//!
//! A victim ends itself at an armed step, or is SIGKILLed somewhen; two bystanders keep their ledgers meanwhile. After
//! each death supervisor and workers hold again, within two seconds, what they held before: descriptors, mappings, memory,
//! threads. How long that takes is printed.

use inferd_ipc::layout::Backing;
use inferd_tests::failpoints::{self, ABORTS, DIES};
use inferd_tests::process::segments;
use inferd_tests::steps::{CLIENT, When};
use inferd_tests::{Armed, Client, DaemonConfig, Driver, Model, Rounds, ms, now_ns, spread};
use std::time::Duration;

/// Rounds of random moments per round of every step.
const RANDOM: usize = 6;
/// Rounds between two looks at the bystanders' ledgers.
const STRETCH: u32 = 20;
/// One in so many victims is Python, whose interpreter takes its time. Prime to a turn of all steps and random moments, so
/// that it dies at each of them in turn.
const PYTHON_EVERY: u32 = 61;

fn config(backing: Backing) -> DaemonConfig {
    // Long enough for a client to fall asleep over it.
    let model = |name: &str, queue: &str| Model::counter(name).queue(4, queue).option("sleep_us", 150);
    DaemonConfig::new(backing).model(model("m", "in_order")).model(model("l", "latest"))
}

/// Two robots that nothing may happen to.
struct Bystanders(Vec<Driver>);

impl Bystanders {
    fn attach(armed: &Armed) -> Bystanders {
        let robot = |(client, model): (Client, &str)| {
            let mut robot = armed.daemon.driver(&client.program().expect("both clients are built"));
            robot.ok(&format!("attach model={model}"));
            robot.exchange("fill=0").expect("ok");
            robot
        };
        Bystanders([(Client::C, "m"), (Client::Rust, "l")].into_iter().map(robot).collect())
    }

    fn begin(&mut self) {
        self.0.iter_mut().for_each(|r| r.begin("loop n=100000 seconds=1 rate_hz=300 check=count"));
    }

    fn end(&mut self) {
        for robot in &mut self.0 {
            let summary = robot.finish(ms(20_000)).clean();
            assert_eq!(summary.count("ok"), summary.number("sent"), "a bystander: {}", summary.json);
        }
    }
}

/// One victim from its start to its death, in CLOCK_MONOTONIC nanoseconds.
fn one_dies(armed: &Armed, rounds: &Rounds) -> u64 {
    let (round, seed) = (rounds.done() as usize - 1, rounds.seed());
    let client = match round as u32 {
        n if n % PYTHON_EVERY == PYTHON_EVERY - 1 && Client::Python.program().is_some() => Client::Python,
        _ if (round / (CLIENT.len() + RANDOM)).is_multiple_of(2) => Client::Rust,
        _ => Client::C,
    };
    let model = if (seed >> 8).is_multiple_of(2) { "m" } else { "l" };
    let step = CLIENT.get(round % (CLIENT.len() + RANDOM));
    let mut victim = armed.victim(client);
    let pid = victim.pid() as u32;
    if let Some((name, when)) = step {
        let action = if (seed >> 9).is_multiple_of(4) { ABORTS } else { DIES };
        armed.arm(name, action, if *when == When::Attach { 1 } else { 1 + seed % 9 });
    }
    victim.begin(&format!("attach model={model} slots=4"));
    let during_attach = step.map_or((seed >> 10).is_multiple_of(4), |(_, when)| *when == When::Attach);
    if !during_attach {
        victim.finish(ms(20_000)).succeeded();
        // With two in flight it asks for the older one, which is answered by then: only with one it waits, and sleeps.
        let depth = if step.is_some_and(|(name, _)| *name == "client.asleep") { 1 } else { 2 };
        victim.begin(&format!("loop seconds=60 rate_hz=1000 depth={depth}"));
    }
    let Some((name, _)) = step else {
        std::thread::sleep(Duration::from_micros(seed % if during_attach { 3_000 } else { 25_000 }));
        let died = now_ns();
        victim.kill();
        return died;
    };
    let (who, died) = armed.acted(name, ms(10_000));
    assert_eq!(who, pid, "{name} was passed by another process");
    let status = victim.died(ms(2_000)).unwrap_or_else(|| panic!("{client:?} survived {name}"));
    assert!(status.code().is_none(), "{client:?} at {name}: {status}");
    died
}

fn clients_die(name: &str, backing: Backing) {
    failpoints::run(name, || {
        let armed = Armed::start(config(backing));
        let mut bystanders = Bystanders::attach(&armed);
        let mut first = armed.victim(Client::Rust);
        ["m", "l"].iter().enumerate().for_each(|(s, model)| drop(first.ok(&format!("attach s={s} model={model}"))));
        first.quit();
        let baseline = armed.daemon.baseline();
        let names = segments().len();
        let mut reaps_us: Vec<u64> = Vec::new();
        let mut rounds = Rounds::of(name);
        while rounds.another() {
            if (rounds.in_this_run() - 1).is_multiple_of(STRETCH) {
                if !rounds.is_first() {
                    bystanders.end();
                }
                bystanders.begin();
            }
            let died = one_dies(&armed, &rounds);
            armed.daemon.settles_to(&baseline);
            reaps_us.push((now_ns() - died) / 1_000);
            assert_eq!(segments().len(), names, "named segments of the dead");
        }
        bystanders.end();
        assert_eq!(armed.daemon.sessions().len(), 2, "the bystanders'");
        println!("FIGURE {name}: everything of a dead client given back after {}", spread(&mut reaps_us));
        rounds.finish();
    });
}

#[test]
fn four_hundred_clients_die_at_every_step_and_nobody_else_notices() {
    clients_die("clients dead on memfds", Backing::Memfd);
}

#[test]
fn a_hundred_clients_on_named_segments_die_at_every_step_and_nobody_else_notices() {
    clients_die("clients dead on named segments", Backing::Posix);
}
