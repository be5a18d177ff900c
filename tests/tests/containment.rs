//! A model that cannot be kept alive is kept to itself: its sessions are told, the others do not notice.
//!
//! Whatever ends a worker, six times within a minute quarantine its model. Before that, restarts come later and later;
//! from then on nobody waits for it, however a client waits, until an operator reloads it or rolls it back.
//! A model beside it answers every request all the while.

use inferd_ipc::control::{Command, ReloadAnswer};
use inferd_ipc::limits::{RESTART_BACKOFF_MS, RESTARTS_MAX};
use inferd_tests::{Daemon, Driver, Model, ms, scenarios, within};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::{Duration, Instant};

fn counter() -> Model {
    Model::counter("m").queue(4, "in_order")
}

fn strike(daemon: &Daemon, signal: Signal) {
    kill(Pid::from_raw(daemon.worker("m") as i32), signal).expect("the worker lives");
}

/// Kills the model's workers until it is quarantined; returns when each of them was struck.
fn quarantine(daemon: &Daemon) -> Vec<Instant> {
    let mut struck = Vec::new();
    for death in 1..=u64::from(RESTARTS_MAX) + 1 {
        daemon.until_model_is("m", "live");
        struck.push(Instant::now());
        strike(daemon, Signal::SIGKILL);
        within(ms(5_000), "the death is seen", || daemon.model("m").worker_deaths >= death);
    }
    daemon.until_model_is("m", "quarantined");
    struck
}

/// The other model's client has been served throughout.
fn undisturbed(mut bystander: Driver) {
    let summary = bystander.finish(ms(30_000)).clean();
    assert_eq!(summary.count("ok"), summary.number("sent"), "{}", summary.json);
    assert_eq!(summary.refused(), 0, "{}", summary.json);
}

/// Nobody waits in a quarantine: every call returns well before its ten seconds.
fn told_at_once(robot: &mut Driver) {
    for call in ["send fill=1", "request", "infer fill=1 timeout_us=10000000"] {
        let start = Instant::now();
        let refused = robot.call(call);
        assert_eq!(refused.error(), "unavailable", "{call}: {}", refused.json);
        assert!(start.elapsed() < ms(2_000), "`{call}` took {:?}", start.elapsed());
    }
    let refused = robot.call("attach s=9 model=m");
    assert_eq!(refused.error(), "unavailable", "{}", refused.json);
    assert!(refused.message().contains("quarantined"), "{}", refused.message());
}

scenarios! {
    fn workers_killed_as_by_the_oom_killer_are_restarted_later_and_later_then_not_at_all(case) {
        let daemon = case.config().model(counter()).model(Model::echo("other")).start();
        let mut bystander = case.attached(&daemon, "model=other");
        bystander.begin("loop seconds=3 rate_hz=500 check=echo");
        let mut robot = case.attached(&daemon, "model=m slots=4");
        robot.exchange("fill=1").expect("ok");
        let struck = quarantine(&daemon);
        for (n, pair) in struck.windows(2).enumerate() {
            let least = Duration::from_millis(RESTART_BACKOFF_MS << n);
            assert!(pair[1] - pair[0] >= least, "death {n} was followed by a restart after {:?}", pair[1] - pair[0]);
        }
        let model = daemon.model("m");
        assert_eq!(model.worker_pid, None);
        assert!(model.message.is_some_and(|m| m.contains("quarantined") && m.contains("SIGKILL")));
        told_at_once(&mut robot);
        std::thread::sleep(ms(300));
        assert_eq!(daemon.model("m").state, "quarantined", "it does not come back by itself");
        undisturbed(bystander);
    }

    fn whoever_waits_when_a_model_is_quarantined_is_answered(case) {
        let daemon = case.config().model(counter().option("sleep_us", 400_000)).start();
        let mut robots: Vec<_> = (0..3).map(|_| case.attached(&daemon, "model=m slots=4 spin_us=0")).collect();
        for _ in 0..RESTARTS_MAX {
            daemon.until_model_is("m", "live");
            strike(&daemon, Signal::SIGKILL);
            within(ms(5_000), "it is not live any more", || daemon.model("m").state != "live");
        }
        daemon.until_model_is("m", "live");
        // One runs, the others wait behind it; each waits in a way of its own.
        let waits = ["wait ticket={} timeout_us=10000000", "pollwait ticket={} timeout_us=10000000", "loop"];
        let tickets: Vec<u64> = robots.iter_mut().take(2).map(|r| r.send("fill=1 n=2") + 1).collect();
        for (i, robot) in robots.iter_mut().enumerate() {
            match tickets.get(i) {
                Some(ticket) => robot.begin(&waits[i].replace("{}", &ticket.to_string())),
                None => robot.begin("loop n=3 depth=2 seconds=2"),
            }
        }
        std::thread::sleep(ms(30));
        strike(&daemon, Signal::SIGKILL);
        let start = Instant::now();
        daemon.until_model_is("m", "quarantined");
        for robot in robots.iter_mut().take(2) {
            let answer = robot.finish(ms(10_000)).succeeded();
            assert!(["unavailable", "worker_lost"].contains(&answer.outcome()), "{}", answer.json);
            assert!(start.elapsed() < ms(3_000), "told after {:?}", start.elapsed());
        }
        let summary = robots[2].finish(ms(10_000)).clean();
        assert_eq!(summary.count("unavailable") + summary.count("worker_lost"), summary.number("sent"));
        assert!(summary.errors("unavailable") > 100, "refused for two seconds, each time at once: {}", summary.json);
    }

    fn a_rollback_ends_a_quarantine_and_the_state_goes_on(case) {
        let mut daemon = case.config().model(counter()).model(Model::echo("other")).start();
        let mut robot = case.attached(&daemon, "model=m slots=4");
        let mut bystander = case.attached(&daemon, "model=other");
        bystander.begin("loop seconds=2.5 rate_hz=500 check=echo");
        for n in 0..3 {
            assert_eq!(robot.exchange("fill=1").expect("ok").output_f32(1)[0], n as f32);
        }
        daemon.change(counter().option("crash_at", 2));
        daemon.reload("m").expect("a model that crashes only once it is live");
        let mut steps = 3;
        let end = Instant::now() + ms(15_000);
        while daemon.model("m").state != "quarantined" {
            assert!(Instant::now() < end, "{:?}", daemon.model("m"));
            let sent = robot.call("send fill=1");
            if sent.is_ok() {
                let answer = robot.wait(sent.number("ticket"));
                if answer.outcome() == "ok" {
                    assert_eq!(answer.output_f32(1)[0], steps as f32);
                    steps += 1;
                }
                assert_eq!(answer.number("step"), steps, "{}", answer.json);
            } else {
                std::thread::sleep(ms(2));
            }
        }
        told_at_once(&mut robot);
        let back: ReloadAnswer = daemon.rpc(&Command::Rollback { model: "m".into() }).expect("rolled back");
        assert_eq!((back.from_generation, back.state.as_str()), (2, "carried"));
        daemon.until_model_is("m", "live");
        for n in 0..8 {
            let reply = robot.exchange("fill=1").expect("ok");
            assert_eq!(reply.output_f32(1)[0], (steps + n) as f32, "the generation before does not crash");
            assert!(!reply.flag("state_reset"));
        }
        assert_eq!(daemon.model("m").state, "live");
        undisturbed(bystander);
    }

    fn a_bad_reload_of_a_quarantined_model_is_refused_and_a_good_one_ends_it(case) {
        let mut daemon = case.config().model(counter()).start();
        let mut robot = case.attached(&daemon, "model=m slots=4");
        robot.exchange("fill=1").expect("ok");
        quarantine(&daemon);
        daemon.change(counter().option("fail_load", "the disk is on fire"));
        let refused = daemon.reload("m").expect_err("refused");
        assert!(refused.message.contains("the disk is on fire"), "{refused}");
        assert_eq!(daemon.model("m").state, "quarantined", "a refused reload does not end it");
        told_at_once(&mut robot);
        daemon.change(counter());
        assert_eq!(daemon.reload("m").expect("reloaded").state, "carried");
        let reply = robot.exchange("fill=2").expect("ok");
        assert_eq!((reply.output_f32(1)[0], reply.number("step")), (1.0, 2), "where the last ok step ended");
        // Its deaths are forgiven: the next one is answered by a restart.
        strike(&daemon, Signal::SIGKILL);
        within(ms(5_000), "restarted", || daemon.model("m").worker_deaths == u64::from(RESTARTS_MAX) + 2);
        daemon.until_model_is("m", "live");
        assert_eq!(robot.exchange("fill=3").expect("ok").output_f32(1)[0], 2.0);
    }

    fn a_model_that_hangs_or_stops_again_and_again_is_quarantined_too(case) {
        let model = counter().option("hang_at", 1).config("max_run_ms", "100");
        let daemon = case.config().model(model).model(Model::echo("other")).start();
        let mut bystander = case.attached(&daemon, "model=other");
        bystander.begin("loop seconds=3 rate_hz=200 check=echo");
        let mut robot = case.attached(&daemon, "model=m slots=4");
        let (mut lost, end) = (0, Instant::now() + ms(20_000));
        while daemon.model("m").state != "quarantined" {
            assert!(Instant::now() < end, "{:?}", daemon.model("m"));
            let sent = robot.call("send fill=1");
            if sent.is_ok() {
                let answer = robot.wait(sent.number("ticket"));
                assert!(["worker_lost", "unavailable"].contains(&answer.outcome()), "{}", answer.json);
                lost += u64::from(answer.outcome() == "worker_lost");
            } else {
                std::thread::sleep(ms(2));
            }
        }
        assert_eq!(lost, u64::from(RESTARTS_MAX) + 1, "one request per death");
        assert!(daemon.model("m").message.is_some_and(|m| m.contains("max_run_ms")), "it says why");
        told_at_once(&mut robot);
        undisturbed(bystander);
    }
}
