//! Workers that die or stop, and daemons that die, at every step: rows 4 and 6 of the threat model, promises 5 to 7.
//!
//! Four robots keep ledgers and count the state of a recurrent model meanwhile. Whatever a worker was doing (loading,
//! shadowing, taking over, running, committing, publishing, letting go), at most the one request that it ran is lost, the
//! state goes on where the last published step left it, and a reload works again. Whatever a daemon was doing,
//! the next one serves everybody within a second of READY. Random moments: `deaths_long.rs`.

use inferd_ipc::control::{Command as Rpc, Reload, ReloadAnswer, RpcError, Shadow};
use inferd_ipc::failpoints::Action;
use inferd_ipc::layout::Backing;
use inferd_ipc::limits::STORE_EXIT_MS;
use inferd_tests::control::Control;
use inferd_tests::failpoints::{self, ABORTS, DIES, STOPS};
use inferd_tests::process::is_alive;
use inferd_tests::steps::{DAEMON, Step, WORKER, When};
use inferd_tests::{Answer, Armed, Client, DaemonConfig, Driver, Fleet, Model, Rounds, ms, now_ns, spread, within};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::Duration;

const ATTACH: &str = "model=m slots=4 queue=in_order";
const LOAD: &str = "rate_hz=400 depth=2 check=count";
const STRETCH_S: f64 = 5.0;
/// A stopped worker counts as hung after this.
const RUN_MS: &str = "150";
/// A worker that stops while it loads is given up after this; its thread is of idle priority, beside robots that are not.
const LOAD_MS: &str = "1000";

/// For scenarios in which workers stop.
fn stopped() -> Model {
    counter(RUN_MS, LOAD_MS)
}

/// For those in which nobody does: a worker that gets no CPU for a while is not to be taken for one.
fn model() -> Model {
    counter("1000", "10000")
}

fn counter(run_ms: &str, load_ms: &str) -> Model {
    let model = Model::counter("m").queue(4, "in_order").option("sleep_us", 50).weights(b"the first");
    model.config("max_run_ms", run_ms).config("load_ms", load_ms).config("keep_previous", "false")
}

fn reload(armed: &Armed, when: When) -> Result<ReloadAnswer, RpcError> {
    armed.daemon.rpc(&reload_command(when))
}

fn reload_command(when: When) -> Rpc {
    let shadow = (when == When::Shadow).then_some(Shadow::Steps(10));
    Rpc::Reload(Reload { model: "m".to_owned(), shadow, ..Reload::default() })
}

fn strike(worker: u32) {
    kill(Pid::from_raw(worker as i32), Signal::SIGKILL).expect("the worker lives");
}

/// What the load's ledgers say of a stretch in which so many workers died.
fn account(summaries: &[Answer], deaths: u64) {
    let lost: u64 = summaries.iter().map(|s| s.count("worker_lost")).sum();
    assert!(lost <= deaths, "{lost} requests were lost with {deaths} workers");
    for s in summaries {
        assert_eq!(s.count("ok") + s.count("worker_lost") + s.count("unavailable"), s.number("sent"), "{}", s.json);
        assert_eq!(s.number("state_resets"), 0, "explicit state continues: {}", s.json);
    }
}

/// One worker passes an armed step; how long its model had nobody, where it was the live one in a run.
fn worker_struck(armed: &Armed, asker: &mut Driver, (name, when): Step, action: Action, seed: u64) -> Option<u64> {
    let daemon = &armed.daemon;
    let live = daemon.worker("m");
    armed.arm(name, action, if when == When::Serve { 1 + seed % 60 } else { 1 });
    let restarts = when == When::Reload
        && seed.is_multiple_of(2)
        && !["worker.letting.go", "worker.released", "worker.retire"].contains(&name);
    match when {
        // The worker that takes the place of a dead one passes it.
        _ if restarts => strike(live),
        When::Leave => {
            let mut robot = daemon.driver(&Client::C.program().expect("built"));
            robot.ok("attach model=m");
            robot.quit();
        }
        // One that waits for each answer, asleep.
        When::Serve => asker.begin("loop n=120 check=count"),
        // Whether it succeeds is up to the step.
        _ => drop(reload(armed, when)),
    }
    let (who, at) = armed.acted(name, ms(10_000));
    armed.table.disarm(0);
    within(ms(5_000), &format!("a worker serves after {name}"), || {
        let model = daemon.model("m");
        let serves = model.worker_pid.is_some_and(|pid| is_alive(pid) && pid != who);
        let harmless = ["worker.released", "worker.retire"].contains(&name);
        model.state == "live" && (serves || harmless)
    });
    let recovery_us = (now_ns() - at) / 1_000;
    if when == When::Serve {
        account(&[asker.finish(ms(20_000)).clean()], 1);
    }
    (who == live && when == When::Serve).then_some(recovery_us)
}

fn workers_struck(name: &str, model: Model, actions: &[Action]) {
    failpoints::run(name, || {
        // A worker that stops in a shadow run has ten seconds: last, for CI's sake.
        let order = [When::Serve, When::Leave, When::Reload, When::Shadow];
        let of = |kind: When| WORKER.iter().filter(move |(_, when)| *when == kind).copied();
        let steps: Vec<Step> = order.into_iter().flat_map(of).collect();
        let armed = Armed::start(DaemonConfig::new(Backing::Memfd).model(model));
        let mut fleet = Fleet::attach(&armed.daemon, ATTACH);
        let mut asker = armed.daemon.driver(&Client::C.program().expect("built"));
        asker.ok(&format!("attach {ATTACH} spin_us=0"));
        let mut rounds = Rounds::of(name);
        let (mut deaths, mut recoveries_us) = (0, Vec::new());
        while rounds.another() {
            if !fleet.is_loaded() || fleet.left() < ms(1_500) {
                if !rounds.is_first() {
                    account(&fleet.unload(), std::mem::take(&mut deaths));
                }
                fleet.load(STRETCH_S, LOAD);
            }
            let round = rounds.done() as usize - 1;
            let (step, action) = (steps[round % steps.len()], actions[(round / steps.len() + round) % actions.len()]);
            // A restart takes the struck live worker and the armed one.
            deaths += 2;
            recoveries_us.extend(worker_struck(&armed, &mut asker, step, action, rounds.seed()));
            // Five deaths within a minute are a quarantine, unless an operator's reload comes in between.
            let answer = reload(&armed, When::Reload).unwrap_or_else(|e| panic!("a reload after {step:?}: {e:?}"));
            assert_eq!(answer.state, "carried", "after {step:?}");
        }
        account(&fleet.unload(), deaths);
        println!("FIGURE {name}: another worker serves after {} (live workers struck)", spread(&mut recoveries_us));
        rounds.finish();
    });
}

#[test]
fn a_worker_that_dies_at_any_step_costs_its_running_request_at_most() {
    workers_struck("workers dead at steps", model(), &[DIES, DIES, ABORTS]);
}

#[test]
fn a_worker_that_stops_at_any_step_costs_its_running_request_at_most() {
    workers_struck("workers stopped at steps", stopped(), &[STOPS]);
}

#[test]
fn a_session_that_begins_in_the_middle_of_a_swap_keeps_its_state_over_the_next_death() {
    failpoints::run("a_session_that_begins_in_the_middle_of_a_swap", || {
        let first = model().config("keep_previous", "true");
        let mut armed = Armed::start(DaemonConfig::new(Backing::Memfd).model(first.clone()));
        // Another state, so that nobody's region fits.
        armed.daemon.change(first.input("g", "f32", &[1, 4]).output("g_out", "f32", &[1, 4]).state("g", "g_out"));
        let daemon = &armed.daemon;
        armed.arm("worker.taken", Action::Sleep { us: 500_000 }, 1);
        let swapped = std::thread::scope(|scope| {
            let swapping = scope.spawn(|| reload(&armed, When::Reload));
            let (who, _) = armed.acted("worker.taken", ms(10_000));
            let before = daemon.model("m").generation;
            let mut robot = daemon.driver(&Client::C.program().expect("built"));
            robot.ok(&format!("attach {ATTACH}"));
            assert_eq!(daemon.model("m").generation, before, "the swap is under way");
            account(&[robot.ok("loop n=20 check=count").clean()], 0);
            swapping.join().expect("a thread").expect("reloaded");
            strike(who);
            within(ms(5_000), "another worker serves", || {
                let model = daemon.model("m");
                model.state == "live" && model.worker_pid.is_some_and(|pid| pid != who)
            });
            let summary = robot.ok("loop n=20 check=count").clean();
            assert_eq!((summary.count("ok"), summary.number("state_resets")), (20, 0), "{}", summary.json);
            // The kept worker has the state of before, which this session never had.
            let answer = daemon.tool("inferctl", &["rollback", "m"]);
            answer.succeeded();
            let summary = robot.ok("loop n=20 check=count").clean();
            summary.count("ok") + summary.count("needs_reset")
        });
        assert_eq!(swapped, 20);
    });
}

#[test]
fn a_worker_that_dies_or_stops_at_a_step_of_its_drain_holds_nobody_up() {
    failpoints::run("a_worker_that_dies_or_stops_at_a_step_of_its_drain", || {
        for (step, _) in WORKER.iter().filter(|(_, when)| *when == When::Drain) {
            for action in [DIES, STOPS] {
                let config = DaemonConfig::new(Backing::Memfd).model(model()).set("daemon", "drain_ms = 800");
                let mut armed = Armed::start(config);
                let mut robots = [Client::C, Client::Rust].map(|client| {
                    let mut robot = armed.daemon.driver(&client.program().expect("both clients are built"));
                    robot.ok(&format!("attach {ATTACH} auto_reattach=0"));
                    robot.begin("loop seconds=20 depth=2 check=count until=lost");
                    robot
                });
                std::thread::sleep(ms(50));
                armed.arm(step, action, 1);
                armed.daemon.signal(Signal::SIGTERM);
                armed.acted(step, ms(5_000));
                armed.daemon.ended(ms(4_000 + STORE_EXIT_MS));
                for robot in &mut robots {
                    let s = robot.finish(ms(10_000)).clean();
                    let told = ["worker_lost", "shutting_down", "daemon_lost"].map(|outcome| s.count(outcome));
                    assert_eq!(
                        s.count("ok") + told.iter().sum::<u64>(),
                        s.number("sent"),
                        "{step} {action:?}: {}",
                        s.json
                    );
                    assert!(s.count("worker_lost") <= 1, "{step} {action:?}: {}", s.json);
                }
            }
        }
    });
}

#[test]
fn a_worker_or_daemon_that_dawdles_at_any_step_loses_nothing() {
    let name = "dawdling at steps";
    failpoints::run(name, || {
        let mut armed = Armed::start(DaemonConfig::new(Backing::Memfd).model(model()));
        let mut fleet = Fleet::attach(&armed.daemon, ATTACH);
        let mut asker = armed.daemon.driver(&Client::Rust.program().expect("built"));
        asker.ok(&format!("attach {ATTACH} spin_us=0"));
        let passed =
            |when: When| matches!(when, When::Serve | When::Leave | When::Reload | When::Shadow | When::Attach);
        let steps: Vec<Step> = WORKER.iter().chain(&DAEMON).filter(|(_, when)| passed(*when)).copied().collect();
        let mut rounds = Rounds::of(name);
        while rounds.another() {
            if fleet.left() < ms(1_000) {
                if !rounds.is_first() {
                    account(&fleet.unload(), 0);
                }
                fleet.load(STRETCH_S, LOAD);
            }
            let (step, when) = steps[(rounds.done() as usize - 1) % steps.len()];
            armed.daemon.change(model().weights(&rounds.seed().to_le_bytes()));
            armed.arm(step, Action::Sleep { us: 1_000 + rounds.seed() % 40_000 }, 1);
            let _provoked = match when {
                When::Attach | When::Leave => provoke(&armed, when),
                _ => Provoked::default(),
            };
            match when {
                When::Serve => account(&[asker.ok("loop n=50 check=count").clean()], 0),
                When::Reload | When::Shadow => drop(reload(&armed, when).expect("slow, and good")),
                _ => {}
            }
            armed.acted(step, ms(10_000));
        }
        let summaries = fleet.unload();
        account(&summaries, 0);
        summaries.iter().for_each(|s| assert_eq!(s.count("ok"), s.number("sent"), "{}", s.json));
        rounds.finish();
    });
}

/// What lets the daemon pass a step, and may see it die.
#[derive(Default)]
struct Provoked {
    _robot: Option<Driver>,
    _operator: Option<Control>,
}

fn provoke(armed: &Armed, when: When) -> Provoked {
    let daemon = &armed.daemon;
    let robot = || {
        let mut robot = daemon.driver(&Client::Rust.program().expect("built"));
        robot.ok("versions");
        robot
    };
    match when {
        When::Attach => {
            let mut robot = robot();
            robot.begin("attach model=m");
            Provoked { _robot: Some(robot), ..Provoked::default() }
        }
        When::Leave => {
            let mut robot = robot();
            robot.begin("attach model=m");
            robot.finish(ms(10_000));
            robot.kill();
            Provoked::default()
        }
        When::Reload | When::Shadow => {
            let mut operator = daemon.control();
            operator.send(&reload_command(when));
            Provoked { _operator: Some(operator), ..Provoked::default() }
        }
        When::Death => {
            armed.table.arm(1, "worker.running", DIES, 1);
            Provoked::default()
        }
        When::Drain => {
            daemon.signal(Signal::SIGTERM);
            Provoked::default()
        }
        When::Serve | When::Start => Provoked::default(),
    }
}

/// The daemon dies at this step, and another one is started; how long after READY the last robot is back.
fn daemon_struck(armed: &mut Armed, (name, when): Step, weights: &str) -> Duration {
    // Other bytes, so that the store has something to write.
    armed.daemon.change(model().weights(weights.as_bytes()));
    if when == When::Start {
        armed.daemon.kill();
        armed.arm(name, DIES, 1);
        let ended = armed.daemon.try_start().expect_err("it dies before READY");
        assert!(ended.code().is_none(), "{name}: {ended}");
    } else {
        armed.arm(name, DIES, 1);
        let _provoked = provoke(armed, when);
        armed.acted(name, ms(10_000));
        let status = armed.daemon.died(ms(5_000));
        assert!(status.code().is_none(), "{name}: {status}");
    }
    armed.daemon.start();
    let ready = std::time::Instant::now();
    within(ms(1_000), &format!("every robot is back within a second of READY, after {name}"), || {
        armed.daemon.sessions().iter().filter(|s| s.model == "m").count() == 4
    });
    ready.elapsed()
}

#[test]
fn a_daemon_that_dies_at_any_step_is_replaced_and_serves_everybody_within_a_second() {
    let name = "daemons dead at steps";
    failpoints::run(name, || {
        let mut armed = Armed::start(DaemonConfig::new(Backing::Posix).model(model()));
        let mut fleet = Fleet::attach(&armed.daemon, ATTACH);
        let mut rounds = Rounds::of(name);
        let (mut kills, mut backs_us) = (0, Vec::new());
        let account = |summaries: &[Answer], kills: u64| {
            let lost: u64 = summaries.iter().map(|s| s.count("worker_lost")).sum();
            assert!(lost <= kills, "{lost} requests were lost with their workers in {kills} rounds");
            for s in summaries {
                assert_eq!(s.number("reattaches"), kills, "{}", s.json);
                assert!(s.count("daemon_lost") <= 2 * kills, "at most what was in flight: {}", s.json);
                let told = ["daemon_lost", "worker_lost", "unavailable", "shutting_down"].map(|o| s.count(o));
                assert_eq!(s.count("ok") + told.iter().sum::<u64>(), s.number("sent"), "{}", s.json);
            }
        };
        while rounds.another() {
            // Robots whose loop is over do not come back.
            if fleet.left() < ms(2_500) {
                if !rounds.is_first() {
                    account(&fleet.unload(), std::mem::take(&mut kills));
                }
                fleet.load(STRETCH_S, LOAD);
                std::thread::sleep(ms(50));
            }
            let step = DAEMON[(rounds.done() as usize - 1) % DAEMON.len()];
            let back = daemon_struck(&mut armed, step, &format!("round {}", rounds.done()));
            kills += 1;
            backs_us.push(back.as_micros() as u64);
        }
        account(&fleet.unload(), kills);
        println!("FIGURE {name}: every robot back after READY {}", spread(&mut backs_us));
        rounds.finish();
    });
}
