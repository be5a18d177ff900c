//! SIGTERM and `inferctl drain`, idle and under load: exit 0 in time, every request accounted for.

use inferd_ipc::control::{Command as Rpc, StatsAnswer};
use inferd_ipc::limits::STORE_EXIT_MS;
use inferd_tests::answer::mix;
use inferd_tests::{Client, Model, Rounds, ms, now_ns, scenarios, within};
use nix::sys::signal::Signal;
use std::time::Instant;

scenarios! {
    fn a_drain_under_load_accounts_for_every_request_and_exits_in_time(case) {
        let mut rounds = Rounds::of_case("drains", case);
        while rounds.another() {
            let round = rounds.done();
            let slow = Model::counter("slow").queue(4, "in_order").option("sleep_us", 2_000);
            let config = case.config().model(slow).model(Model::echo("latest").queue(4, "latest"));
            let mut daemon = config.set("daemon", "drain_ms = 2000").start();
            let mut robots = vec![
                case.attached(&daemon, "model=slow slots=4 auto_reattach=0"),
                case.attached(&daemon, "model=slow slots=2 auto_reattach=0"),
                case.attached(&daemon, "model=latest auto_reattach=0"),
            ];
            robots[0].begin("loop seconds=20 depth=4 check=count until=lost");
            robots[1].begin("loop seconds=20 depth=2 check=count until=lost");
            robots[2].begin("loop seconds=20 depth=3 rate_hz=2000 check=echo until=lost");
            within(ms(10_000), "every loop has an answer", || {
                let stats: StatsAnswer = daemon.rpc(&Rpc::Stats { model: None }).expect("stats");
                let ok = |model: &str| stats[model].outcomes.get("ok").copied().unwrap_or(0);
                ok("slow") >= 20 && ok("latest") >= 5
            });
            std::thread::sleep(ms(100 + mix(now_ns()) % 100));
            let start = Instant::now();
            daemon.signal(Signal::SIGTERM);
            daemon.ended(ms(4000 + STORE_EXIT_MS));
            assert!(start.elapsed() < ms(2500 + STORE_EXIT_MS), "round {round}: {:?}", start.elapsed());
            for robot in &mut robots {
                let summary = robot.finish(ms(10_000)).clean();
                let told = summary.count("shutting_down") + summary.count("daemon_lost");
                let rest = summary.count("ok") + summary.count("superseded");
                assert_eq!(told + rest, summary.number("sent"), "{}", summary.json);
                assert!(summary.count("ok") > 0 || case.client == Client::Python, "{}", summary.json);
            }
        }
        rounds.finish();
    }

    fn an_operator_s_drain_ends_the_daemon_and_refuses_new_sessions_meanwhile(case) {
        let model = Model::echo("m").queue(4, "in_order").option("sleep_us", 600_000);
        let mut daemon = case.config().model(model).start();
        let mut robot = case.attached(&daemon, "model=m");
        let mut late = case.driver(&daemon);
        late.ok("versions"); // it is up: some interpreters take their time
        let running = robot.send("fill=1");
        daemon.until_runs(0);
        let answer = daemon.tool("inferctl", &["drain", "--json"]).succeeded().json();
        assert!(answer["message"].is_string(), "{answer}");
        let refused = late.call("attach model=m");
        assert!(["shutting_down", "no_daemon"].contains(&refused.error()), "{}", refused.json);
        robot.wait(running).expect("ok");
        daemon.ended(ms(5000));
    }

    fn an_idle_daemon_ends_at_once_on_sigint_too(case) {
        let mut daemon = case.config().model(Model::echo("m")).start();
        let mut robot = case.attached(&daemon, "model=m");
        robot.exchange("fill=1").expect("ok");
        // What it serves is stored: there is nothing to wait for.
        let _ = daemon.baseline();
        let start = Instant::now();
        daemon.signal(Signal::SIGINT);
        daemon.ended(ms(5000));
        assert!(start.elapsed() < ms(1500), "{:?}", start.elapsed());
        assert_eq!(robot.call("send fill=2").error(), "daemon_lost");
    }

    fn a_reply_that_stood_before_the_drain_is_read_when_the_daemon_is_gone(case) {
        let mut daemon = case.config().model(Model::echo("m")).start();
        let mut robot = case.attached(&daemon, "model=m auto_reattach=0");
        let unread = robot.send("fill=1");
        within(ms(5000), "the reply is published", || {
            let stats: StatsAnswer = daemon.rpc(&Rpc::Stats { model: None }).expect("stats");
            stats["m"].outcomes.get("ok") == Some(&1)
        });
        daemon.signal(Signal::SIGTERM);
        daemon.ended(ms(5000));
        robot.wait(unread).expect("ok");
    }

    fn a_run_longer_than_the_drain_is_cut_off_in_time(case) {
        let model = Model::echo("m").option("sleep_us", 20_000_000).config("max_run_ms", "60000");
        let mut daemon = case.config().model(model).set("daemon", "drain_ms = 500").start();
        let mut robot = case.attached(&daemon, "model=m");
        let running = robot.send("fill=1");
        daemon.until_runs(0);
        let start = Instant::now();
        daemon.signal(Signal::SIGTERM);
        let answer = robot.wait(running);
        assert!(["worker_lost", "daemon_lost"].contains(&answer.outcome()), "{}", answer.json);
        daemon.ended(ms(5000));
        assert!(start.elapsed() < ms(2000 + STORE_EXIT_MS), "{:?}", start.elapsed());
    }
}
