//! Many deaths under load: the daemon killed, and workers killed and stopped, again and again.
//!
//! Four robots of both clients keep ledgers: every request has one outcome, and none is lost but what the dead
//! were running. A recurrent model's whole course is compared, bit by bit, with a run without deaths in this
//! process. Campaigns repeat each of these two thousand times.

mod reference;

use inferd_ipc::layout::Backing;
use inferd_tests::policies::recurrent;
use inferd_tests::promises::SERVED_AGAIN;
use inferd_tests::{Answer, Baseline, Client, Daemon, DaemonConfig, Driver, Fleet, Model, Rounds, ms, within};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::Path;
use std::time::{Duration, Instant};

const ATTACH: &str = "model=m slots=4 queue=in_order";
const LOAD: &str = "rate_hz=500 depth=2 check=digest seed=5";
/// Steps of the longest course that is compared: a stretch at the load's rate, and one.
const STEPS: usize = 500 * STRETCH_S as usize + 1;
const STRETCH_S: f64 = 6.0;
/// Deaths between two operator's reloads: five within a minute would be the last that are restarted.
const DEATHS_FORGIVEN: u32 = 4;
const SLACK_BYTES: u64 = 1 << 20;
/// A stopped worker counts as hung after this.
const RUN_MS: u64 = 200;

/// Regions of two sessions begin alike where their numbers differ by this (`ipc/src/layout.rs`).
const COLOURS: u64 = 32;

/// A folder with a recurrent model whose state is explicit, and its file's bytes.
fn recurrent_model(dir: &Path) -> (Model, Vec<u8>) {
    // Large enough to be met in a run now and then.
    let bytes = recurrent(16, 512, 3);
    let folder = dir.join("recurrent");
    std::fs::create_dir_all(&folder).expect("our own folder");
    std::fs::write(folder.join("policy.onnx"), &bytes).expect("our own folder");
    let manifest = "file = \"policy.onnx\"\n[[state]]\ninput = \"h\"\noutput = \"h_out\"\n";
    std::fs::write(folder.join("model.toml"), manifest).expect("our own folder");
    (Model::at("m", &folder).config("max_run_ms", &RUN_MS.to_string()), bytes)
}

/// The dead live workers that the log tells of, and how many of them were running a request, or had just answered it.
fn deaths(daemon: &Daemon) -> (u64, u64) {
    let log = daemon.log();
    let lines = log.lines().filter(|l| l.contains("the live worker died"));
    lines.fold((0, 0), |(all, running), line| (all + 1, running + u64::from(line.contains(" request="))))
}

/// What a stretch of load cost, checked against the reference and added up.
#[derive(Default)]
struct Account {
    requests: u64,
    lost: u64,
}

impl Account {
    fn add(&mut self, summaries: &[Answer], course: &[String]) {
        for s in summaries {
            let told = s.count("worker_lost") + s.count("unavailable");
            assert_eq!(s.count("ok") + told, s.number("sent"), "{}", s.json);
            assert_eq!(s.refused(), s.errors("unavailable"), "{}", s.json);
            assert_eq!(s.number("state_resets"), 0, "{}", s.json);
            let due = &course[s.count("ok") as usize];
            assert_eq!(s.text("digest"), due, "explicit state continues: {}", s.json);
            self.requests += s.number("sent");
            self.lost += s.count("worker_lost");
        }
    }
}

fn first_session(daemon: &Daemon) -> u64 {
    daemon.sessions().iter().map(|s| s.session).min().expect("four sessions")
}

fn workers_struck(name: &str, signal: Signal) {
    Fleet::run(name, || {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (model, bytes) = recurrent_model(dir.path());
        let course = reference::course(bytes, &[("h", "h_out")], 5, STEPS);
        let daemon = DaemonConfig::new(Backing::Memfd).model(model).start();
        let mut fleet = Fleet::attach(&daemon, ATTACH);
        // From here on a worker is kept for a rollback, as at the end; the clients' ledgers have been used.
        (0..10).for_each(|_| drop(daemon.reload("m").expect("reloaded")));
        fleet.load(0.2, LOAD);
        let mut account = Account::default();
        account.add(&fleet.unload(), &course);
        let baseline = Baseline::of(&daemon, &fleet.all());
        let colour = first_session(&daemon) % COLOURS;
        let mut rounds = Rounds::of(name);
        while rounds.another() {
            if !fleet.is_loaded() {
                if !rounds.is_first() {
                    account.add(&fleet.unload(), &course);
                }
                fleet.reattach(ATTACH);
                fleet.load(STRETCH_S, LOAD);
            }
            std::thread::sleep(Duration::from_micros(rounds.seed() % 60_000));
            let worker = daemon.worker("m");
            kill(Pid::from_raw(worker as i32), signal).expect("the worker lives");
            within(ms(10_000), "another worker serves", || {
                let model = daemon.model("m");
                model.state == "live" && model.worker_pid.is_some_and(|w| w != worker)
            });
            if rounds.done().is_multiple_of(DEATHS_FORGIVEN) {
                let answer = daemon.reload("m").expect("an operator's reload");
                assert_eq!(answer.state, "carried");
            }
        }
        account.add(&fleet.unload(), &course);
        let (dead, running) = deaths(&daemon);
        println!(
            "{name}: {dead} workers died, {running} in or right after a run; {} of {} requests lost",
            account.lost, account.requests
        );
        assert!(account.lost <= running, "more requests are lost than were running");
        assert_eq!(dead, daemon.model("m").worker_deaths);
        rounds.finish();
        // Where regions begin in their pages, and thus their bytes, cycles with the sessions' numbers.
        fleet.reattach(ATTACH);
        while first_session(&daemon) % COLOURS != colour {
            fleet.reattach(ATTACH);
        }
        daemon.reload("m").expect("a worker is kept again");
        baseline.holds_again(&daemon, &fleet.all(), SLACK_BYTES);
    });
}

#[test]
fn fifty_workers_killed_under_load_cost_their_running_requests_and_nothing_else() {
    workers_struck("workers killed", Signal::SIGKILL);
}

#[test]
fn fifty_workers_stopped_under_load_cost_their_running_requests_and_nothing_else() {
    workers_struck("workers stopped", Signal::SIGSTOP);
}

/// Asks until there is an answer; how long that took.
fn served_again(robot: &mut Driver, since: Instant) -> Duration {
    loop {
        if robot.call("infer fill=1 timeout_us=500000 out=none").json["outcome"] == "ok" {
            return since.elapsed();
        }
        assert!(since.elapsed() < SERVED_AGAIN, "not served again within a second of READY: {}", robot.said());
        std::thread::sleep(ms(1));
    }
}

#[test]
fn a_daemon_killed_fifty_times_under_load_serves_everybody_within_a_second_of_ready() {
    let name = "daemons killed";
    Fleet::run(name, || {
        let model = Model::counter("m").queue(4, "in_order");
        let mut daemon = DaemonConfig::new(Backing::Memfd).model(model).start();
        let mut fleet = Fleet::attach(&daemon, ATTACH);
        let mut asking = [Client::Rust, Client::C].map(|client| {
            let mut robot = daemon.driver(&client.program().expect("both clients are built"));
            robot.ok("attach model=m");
            robot
        });
        let mut rounds = Rounds::of(name);
        let (mut kills, mut requests, mut lost, mut slowest) = (0, 0, 0, Duration::ZERO);
        let mut account = |summaries: &[Answer], kills: u64| {
            for s in summaries {
                assert_eq!(s.number("reattaches"), kills, "{}", s.json);
                assert!(s.count("daemon_lost") <= 2 * kills, "at most what was in flight: {}", s.json);
                assert_eq!(s.count("ok") + s.count("daemon_lost"), s.number("sent"), "{}", s.json);
                requests += s.number("sent");
                lost += s.count("daemon_lost");
            }
        };
        while rounds.another() {
            // Robots whose loop is over do not come back.
            if fleet.left() < ms(2_000) {
                if !rounds.is_first() {
                    account(&fleet.unload(), std::mem::take(&mut kills));
                }
                fleet.load(STRETCH_S, "rate_hz=500 depth=2 check=count");
            }
            std::thread::sleep(ms(100) + Duration::from_micros(rounds.seed() % 60_000));
            daemon.kill();
            daemon.start();
            kills += 1;
            let ready = Instant::now();
            within(SERVED_AGAIN, "every loop is back within a second of READY", || daemon.sessions().len() >= 4);
            slowest = slowest.max(ready.elapsed());
            asking.iter_mut().for_each(|robot| slowest = slowest.max(served_again(robot, ready)));
        }
        account(&fleet.unload(), kills);
        println!("{name}: {lost} of {requests} requests lost with it; back {slowest:?} after READY at the latest");
        rounds.finish();
    });
}
