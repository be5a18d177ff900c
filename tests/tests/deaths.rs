//! Whoever dies, hangs or stops: rule 2 of `docs/semantics.md`, promises 5 and 7 of the threat model.
//!
//! Clients and workers are SIGKILLed and SIGSTOPped under load, the daemon is SIGKILLed and started
//! again. Bystanders keep clean ledgers; what the dead held is given back within two seconds.

use inferd_ipc::layout::Backing;
use inferd_ipc::limits::CLOCK_SKEW_MS_MAX;
use inferd_tests::answer::mix;
use inferd_tests::{Answer, Client, Model, Rounds, ms, now_ns, scenarios, within};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::{Duration, Instant};

fn end(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid as i32), signal).expect("it lives");
}

/// A pause of up to `most` that differs from run to run.
fn a_while(most: Duration) {
    std::thread::sleep(most.mul_f64((mix(now_ns()) % 1000) as f64 / 1000.0));
}

/// Every request of a bystander ran, and most of them at once.
fn on_time(summary: Answer) {
    let summary = summary.clean();
    assert_eq!(summary.count("ok"), summary.number("sent"), "{}", summary.json);
    assert!(summary.number("p50_ns") < 5_000_000, "{}", summary.json);
}

scenarios! {
    fn a_client_killed_at_a_random_moment_leaves_the_others_on_time_and_nothing_behind(case) {
        let model = Model::counter("m").queue(4, "in_order");
        let daemon = case.config().model(model).model(Model::echo("other").queue(4, "latest")).start();
        let mut bystander = case.attached(&daemon, "model=m slots=4");
        bystander.exchange("fill=0").expect("ok");
        // What a worker makes for its first session, it keeps.
        bystander.ok("attach s=1 model=other");
        bystander.ok("detach s=1");
        within(ms(2000), "one session is left", || daemon.sessions().len() == 1);
        let baseline = daemon.baseline();
        let mut rounds = Rounds::of_case("clients killed", case);
        while rounds.another() {
            if (rounds.in_this_run() - 1).is_multiple_of(6) {
                if !rounds.is_first() {
                    on_time(bystander.finish(ms(20_000)));
                }
                bystander.begin("loop seconds=1.5 rate_hz=500 depth=2 check=count");
            }
            let mut victim = case.attached(&daemon, "model=m slots=4");
            victim.ok("attach s=1 model=other");
            let s = rounds.done() % 2;
            victim.begin(&format!("loop s={s} seconds=60 depth=4"));
            a_while(ms(60));
            victim.kill();
        }
        rounds.finish();
        // A client that dies half-way through an attach.
        let mut victim = case.driver(&daemon);
        victim.begin("attach model=m");
        victim.kill();
        on_time(bystander.finish(ms(20_000)));
        within(ms(2000), "only the bystander's session is left", || daemon.sessions().len() == 1);
        daemon.settles_to(&baseline);
    }

    fn a_stopped_client_loses_nothing_and_delays_nobody(case) {
        let daemon = case.config().model(Model::counter("m").queue(4, "in_order")).start();
        let mut bystander = case.attached(&daemon, "model=m");
        let mut sleeper = case.attached(&daemon, "model=m slots=4");
        sleeper.begin("loop seconds=2.5 depth=4 check=count");
        std::thread::sleep(ms(100));
        sleeper.signal(Signal::SIGSTOP);
        let summary = bystander.ok("loop seconds=1 rate_hz=500 check=count").clean();
        assert_eq!(summary.count("ok"), summary.number("sent"));
        assert_eq!(daemon.sessions().len(), 2, "nothing is taken from a live owner");
        sleeper.signal(Signal::SIGCONT);
        let summary = sleeper.finish(ms(10_000)).clean();
        assert_eq!(summary.count("ok"), summary.number("sent"), "{}", summary.json);
    }

    fn a_client_that_attaches_while_the_daemon_is_stopped_is_served_when_it_goes_on(case) {
        let daemon = case.config().model(Model::echo("m")).start();
        let mut robot = case.driver(&daemon);
        daemon.signal(Signal::SIGSTOP);
        robot.begin("attach model=m timeout_us=10000000");
        // Longer than clocks may differ: what the daemon reads then is a clock of the past.
        std::thread::sleep(ms(CLOCK_SKEW_MS_MAX + 300));
        daemon.signal(Signal::SIGCONT);
        robot.finish(ms(10_000)).succeeded();
        robot.exchange("fill=1").expect("ok");
    }

    fn workers_killed_under_load_cost_at_most_the_running_request_each(case) {
        let daemon = case.config().model(Model::counter("m").queue(4, "in_order")).start();
        let mut robots: Vec<_> = (0..2).map(|_| case.attached(&daemon, "model=m slots=4")).collect();
        robots.push(case.attached(&daemon, "model=m queue=latest"));
        robots.iter_mut().for_each(|r| r.begin("loop seconds=4 rate_hz=1000 depth=2 check=count"));
        // Five deaths within a minute are a quarantine.
        let kills = 4;
        for _ in 0..kills {
            a_while(ms(200));
            let worker = daemon.worker("m");
            end(worker, Signal::SIGKILL);
            within(ms(3000), "another worker serves", || {
                let model = daemon.model("m");
                model.state == "live" && model.worker_pid.is_some_and(|w| w != worker)
            });
        }
        let summaries: Vec<_> = robots.iter_mut().map(|r| r.finish(ms(20_000)).clean()).collect();
        // Exactly the running request: one per death at most, over all sessions. The rest was at worst not run.
        let lost: u64 = summaries.iter().map(|s| s.count("worker_lost")).sum();
        assert!(lost <= kills, "{lost} requests were lost with {kills} workers");
        for s in &summaries {
            let ran = s.count("ok") + s.count("superseded");
            assert_eq!(ran + s.count("worker_lost") + s.count("unavailable"), s.number("sent"), "{}", s.json);
            assert_eq!(s.number("state_resets"), 0, "explicit state continues: {}", s.json);
        }
        assert_eq!(daemon.model("m").worker_deaths, kills);
    }

    fn a_run_that_hangs_is_worker_lost_after_max_run_ms(case) {
        let model = Model::counter("m").queue(4, "in_order").option("hang_at", 3).config("max_run_ms", "200");
        let daemon = case.config().model(model).model(Model::echo("other")).start();
        let mut robot = case.attached(&daemon, "model=m slots=4");
        let mut bystander = case.attached(&daemon, "model=other");
        bystander.begin("loop seconds=1.5 rate_hz=500 check=echo");
        robot.exchange("fill=1").expect("ok");
        robot.exchange("fill=2").expect("ok");
        let sent = Instant::now();
        let hung = robot.send("fill=3");
        let lost = robot.wait(hung).expect("worker_lost");
        let took = sent.elapsed();
        assert!(took >= ms(190) && took < ms(2500), "after {took:?}");
        assert_eq!(lost.number("step"), 2);
        daemon.until_model_is("m", "live");
        let next = robot.exchange("fill=4").expect("ok");
        assert_eq!((next.output_f32(1)[0], next.number("step")), (2.0, 3));
        let summary = bystander.finish(ms(10_000)).clean();
        assert_eq!(summary.count("ok"), summary.number("sent"), "another model's client: {}", summary.json);
    }

    fn a_worker_stopped_in_a_run_is_worker_lost_and_replaced(case) {
        let model = Model::counter("m").queue(4, "in_order").option("sleep_us", 400_000).config("max_run_ms", "1000");
        let daemon = case.config().model(model).start();
        let mut robot = case.attached(&daemon, "model=m");
        robot.exchange("fill=1").expect("ok");
        let running = robot.send("fill=2");
        daemon.until_runs(1);
        let worker = daemon.worker("m");
        end(worker, Signal::SIGSTOP);
        robot.wait(running).expect("worker_lost");
        daemon.until_model_is("m", "live");
        assert_ne!(daemon.worker("m"), worker);
        assert_eq!(robot.exchange("fill=3").expect("ok").output_f32(1)[0], 1.0);
    }

    fn an_idle_worker_stopped_is_replaced_and_nobody_waits_in_silence(case) {
        let model = Model::counter("m").queue(4, "in_order").config("max_run_ms", "300");
        let daemon = case.config().model(model).start();
        let mut robot = case.attached(&daemon, "model=m");
        robot.exchange("fill=1").expect("ok");
        let worker = daemon.worker("m");
        end(worker, Signal::SIGSTOP);
        let ticket = robot.send("fill=2");
        let answer = robot.wait(ticket);
        assert!(["unavailable", "ok"].contains(&answer.outcome()), "{}", answer.json);
        within(ms(3000), "another worker serves", || {
            let model = daemon.model("m");
            model.state == "live" && model.worker_pid.is_some_and(|w| w != worker)
        });
        let steps = answer.number("step");
        assert_eq!(robot.exchange("fill=3").expect("ok").output_f32(1)[0], steps as f32);
    }

    fn an_idle_worker_killed_is_replaced_before_anybody_asks(case) {
        let daemon = case.config().model(Model::counter("m").queue(4, "in_order")).start();
        let mut robot = case.attached(&daemon, "model=m");
        robot.exchange("fill=1").expect("ok");
        let worker = daemon.worker("m");
        end(worker, Signal::SIGKILL);
        within(ms(3000), "another worker serves", || {
            let model = daemon.model("m");
            model.state == "live" && model.worker_pid.is_some_and(|w| w != worker)
        });
        let reply = robot.exchange("fill=2").expect("ok");
        assert_eq!((reply.output_f32(1)[0], reply.flag("state_reset")), (1.0, false));
    }

    fn a_model_whose_workers_keep_dying_is_quarantined_until_an_operator_acts(case) {
        let fatal = Model::counter("m").queue(4, "in_order").option("crash_at", 1);
        let mut daemon = case.config().model(fatal).model(Model::echo("other")).start();
        let mut robot = case.attached(&daemon, "model=m");
        robot.ok("attach s=1 model=other");
        let (mut lost, end) = (0, Instant::now() + ms(15_000));
        while daemon.model("m").state != "quarantined" {
            assert!(Instant::now() < end, "{:?}", daemon.model("m"));
            let sent = robot.call("send fill=1");
            if !sent.is_ok() {
                assert_eq!(sent.error(), "unavailable", "{}", sent.json);
                std::thread::sleep(ms(5));
                continue;
            }
            let answer = robot.wait(sent.number("ticket"));
            assert!(["worker_lost", "unavailable"].contains(&answer.outcome()), "{}", answer.json);
            lost += u64::from(answer.outcome() == "worker_lost");
        }
        assert_eq!(lost, daemon.model("m").worker_deaths, "one request per death");
        assert!(daemon.model("m").message.is_some_and(|m| !m.is_empty()), "it says why");
        assert_eq!(robot.call("send fill=1").error(), "unavailable");
        let ticket = robot.send("s=1 fill=1");
        robot.ok(&format!("wait s=1 ticket={ticket}")).expect("ok");
        let refused = robot.call("attach s=2 model=m");
        assert_eq!(refused.error(), "unavailable", "{}", refused.json);
        daemon.change(Model::counter("m").queue(4, "in_order"));
        daemon.reload("m").expect("an operator's reload");
        within(ms(2000), "served again", || robot.call("send fill=2").is_ok());
        assert_eq!(robot.exchange("fill=3").expect("ok").output_f32(1)[0], 1.0);
    }

    fn a_daemon_killed_under_load_is_survived_by_every_client(case) {
        let model = Model::counter("m").queue(4, "in_order");
        let mut daemon = case.config().model(model).model(Model::echo("l").queue(4, "latest")).start();
        let mut robots = vec![
            case.attached(&daemon, "model=m slots=4"),
            case.attached(&daemon, "model=m slots=2"),
            case.attached(&daemon, "model=l"),
        ];
        let checks = ["count", "count", "echo"];
        for (robot, check) in robots.iter_mut().zip(checks) {
            robot.begin(&format!("loop seconds=6 rate_hz=500 depth=2 check={check}"));
        }
        for _ in 0..2 {
            std::thread::sleep(ms(600));
            a_while(ms(100));
            daemon.kill();
            std::thread::sleep(ms(50));
            daemon.start();
            let ready = Instant::now();
            within(ms(1000), "every client is back within a second of READY", || daemon.sessions().len() == 3);
            assert!(ready.elapsed() < ms(1000));
        }
        for robot in &mut robots {
            let summary = robot.finish(ms(20_000)).clean();
            assert_eq!(summary.number("reattaches"), 2, "{}", summary.json);
            assert!(summary.count("daemon_lost") <= 4, "what was in flight: {}", summary.json);
            let served = summary.count("ok") + summary.count("superseded") + summary.count("daemon_lost");
            assert_eq!(served, summary.number("sent"), "{}", summary.json);
        }
    }

    fn a_client_may_reattach_when_it_suits_instead(case) {
        let mut daemon = case.config().model(Model::echo("m")).start();
        let mut robot = case.attached(&daemon, "model=m auto_reattach=0");
        robot.exchange("fill=1").expect("ok");
        daemon.kill();
        let refused = robot.call("reattach timeout_us=100000");
        assert!(["daemon_lost", "no_daemon"].contains(&refused.error()), "{}", refused.json);
        daemon.start();
        assert_eq!(robot.call("send fill=3").error(), "daemon_lost", "not by itself");
        assert_eq!(robot.ok("reattach timeout_us=2000000").number("epoch"), 1);
        robot.exchange("fill=4").expect("ok");
    }

    fn a_disconnected_session_is_daemon_lost_and_may_come_back(case) {
        let daemon = case.config().model(Model::echo("m")).start();
        let mut robot = case.attached(&daemon, "model=m");
        let session = robot.ok("info").number("session");
        let done: inferd_ipc::control::Done =
            daemon.rpc(&inferd_ipc::control::Command::Disconnect { session }).expect("disconnected");
        assert!(done.message.contains(&session.to_string()));
        within(ms(1000), "the client notices, then reattaches", || {
            let sent = robot.call("send fill=1");
            sent.is_ok() && robot.ok("info").number("epoch") == 1
        });
        robot.exchange("fill=2").expect("ok");
        assert_eq!(daemon.sessions().len(), 1);
    }
}

#[test]
fn a_run_that_hangs_is_ended_after_max_run_ms_though_its_client_has_gone() {
    let _turn = inferd_tests::turn();
    let model = Model::counter("m").queue(4, "in_order").option("hang_at", 1).config("max_run_ms", "800");
    let daemon = inferd_tests::DaemonConfig::new(Backing::Memfd).model(model).start();
    let mut robot = daemon.driver(&Client::Rust.program().expect("built"));
    robot.ok("attach model=m");
    let worker = daemon.worker("m");
    robot.send("fill=1");
    daemon.until_runs(0);
    drop(robot);
    within(ms(3_000), "its client is gone", || daemon.sessions().is_empty());
    within(ms(10_000), "another worker", || daemon.model("m").worker_pid.is_some_and(|pid| pid != worker));
}
