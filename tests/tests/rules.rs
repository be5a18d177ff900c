//! Rules 1, 3, 4, 5, 6, 7 and 9 of `docs/semantics.md`, with every client on both backings.
//!
//! Rule 2 (publishing is the only commit) and rule 10 (a swap loses nothing) are held by `deaths.rs` and
//! `swap.rs`, rule 8 (turns) by `turns.rs`.

use inferd_tests::answer::fill;
use inferd_tests::{Model, ms, now_ns, scenarios, within};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

scenarios! {
    fn rule_1_a_reply_says_whose_it_is_what_computed_it_and_when(case) {
        let daemon = case.config().model(Model::echo("m").queue(4, "in_order").option("sleep_us", 3_000)).start();
        let mut robot = case.attached(&daemon, "model=m");
        for n in 0..6 {
            let before = now_ns();
            let reply = robot.exchange(&format!("fill={n} id={}", u64::MAX - n)).expect("ok");
            let (start, done) = (reply.number("t_start_ns"), reply.number("t_done_ns"));
            assert_eq!((reply.number("request"), reply.number("observation_id")), (n, u64::MAX - n));
            assert_eq!((reply.number("generation"), reply.number("skipped"), reply.number("step")), (1, 0, n + 1));
            assert!(before <= start && start + 3_000_000 <= done && done <= now_ns(), "{}", reply.json);
            assert!(!reply.flag("late") && reply.has_output());
        }
    }

    fn rule_3_replies_come_in_request_order_whatever_they_end_in(case) {
        let daemon = case.config().model(Model::echo("m").queue(8, "in_order").option("sleep_us", 5_000)).start();
        let mut robot = case.attached(&daemon, "model=m slots=8");
        let keys = ["fill=0", "fill=1 deadline_us=-1", "fill=2", "fill=3 deadline_us=-1", "fill=4", "fill=5"];
        let tickets: Vec<u64> = keys.iter().map(|k| robot.send(k)).collect();
        let mut done = 0;
        for (n, ticket) in tickets.into_iter().enumerate() {
            let reply = robot.wait(ticket).expect(if keys[n].contains("deadline") { "expired" } else { "ok" });
            assert_eq!(reply.number("request"), n as u64);
            assert!(reply.number("t_done_ns") >= done, "published in order");
            done = reply.number("t_done_ns");
        }
    }

    fn rule_4_the_reset_of_a_superseded_request_runs_with_the_next_one(case) {
        let model = Model::counter("m").queue(4, "latest").option("sleep_us", 200_000);
        let daemon = case.config().model(model).start();
        let mut robot = case.attached(&daemon, "model=m");
        assert_eq!(robot.exchange("fill=0").expect("ok").output_f32(1)[0], 0.0);
        let running = robot.send("fill=1");
        daemon.until_runs(1);
        let reset = robot.send("fill=2 reset=1");
        let newest = robot.send("fill=3");
        assert_eq!(robot.wait(running).expect("ok").output_f32(1)[0], 1.0);
        robot.wait(reset).expect("superseded");
        let reply = robot.wait(newest).expect("ok");
        assert_eq!((reply.flag("state_reset"), reply.output_f32(1)[0]), (true, 0.0));
        let next = robot.exchange("fill=4").expect("ok");
        assert_eq!((next.flag("state_reset"), next.output_f32(1)[0]), (false, 1.0), "once, not for ever");
    }

    fn rule_4_the_reset_of_an_expired_request_runs_with_the_next_one_even_in_the_next_worker(case) {
        let daemon = case.config().model(Model::counter("m").queue(4, "in_order")).start();
        let mut robot = case.attached(&daemon, "model=m");
        for n in 0..3 {
            assert_eq!(robot.exchange("fill=1").expect("ok").output_f32(1)[0], n as f32);
        }
        robot.exchange("fill=2 reset=1 deadline_us=-1").expect("expired");
        let reply = robot.exchange("fill=3").expect("ok");
        assert_eq!((reply.flag("state_reset"), reply.output_f32(1)[0]), (true, 0.0));
        robot.exchange("fill=4").expect("ok");
        robot.exchange("fill=5 reset=1 deadline_us=-1").expect("expired");
        let worker = daemon.worker("m");
        kill(Pid::from_raw(worker as i32), Signal::SIGKILL).expect("the worker lives");
        within(ms(3000), "another worker serves", || {
            let model = daemon.model("m");
            model.state == "live" && model.worker_pid != Some(worker)
        });
        let reply = robot.exchange("fill=6").expect("ok");
        assert_eq!((reply.flag("state_reset"), reply.output_f32(1)[0]), (true, 0.0));
    }

    fn rule_5_state_lives_per_session_and_begins_at_zero(case) {
        let daemon = case.config().model(Model::counter("m").queue(4, "in_order")).start();
        let mut first = case.attached(&daemon, "model=m");
        let mut second = case.attached(&daemon, "model=m");
        for n in 0..4 {
            assert_eq!(first.exchange("fill=1").expect("ok").output_f32(1)[0], n as f32);
            assert_eq!(second.exchange("fill=1").expect("ok").output_f32(1)[0], n as f32);
        }
        let reset = first.exchange("fill=1 reset=1").expect("ok");
        assert_eq!((reset.flag("state_reset"), reset.output_f32(1)[0]), (true, 0.0));
        assert_eq!(second.exchange("fill=1").expect("ok").output_f32(1)[0], 4.0, "another session's reset");
        second.ok("detach");
        second.ok("attach model=m");
        assert_eq!(second.exchange("fill=1").expect("ok").output_f32(1)[0], 0.0, "a session leaves no state behind");
    }

    fn rule_6_an_abandoned_wait_changes_nothing_and_its_reply_frees_its_slot(case) {
        let model = Model::counter("m").queue(2, "in_order").option("sleep_us", 150_000);
        let daemon = case.config().model(model).start();
        let mut robot = case.attached(&daemon, "model=m slots=2");
        for n in 0..4 {
            let ticket = robot.send(&format!("fill={n}"));
            let gave_up = robot.call(&format!("wait ticket={ticket} timeout_us=2000"));
            assert_eq!(gave_up.error(), "timeout", "{}", gave_up.json);
            within(ms(5_000), "the reply comes, is released, and the slot is free", || robot.call("request").is_ok());
        }
        let ticket = robot.send("fill=7");
        robot.ok(&format!("abandon ticket={ticket}"));
        within(ms(5_000), "a slot is free", || robot.call("request").is_ok());
        let reply = robot.exchange("fill=8").expect("ok");
        assert_eq!((reply.output(0), reply.output_f32(1)[0]), (fill(8, 64), 5.0), "abandoned, yet run: 5 steps before");
    }

    fn rule_6_the_one_call_convenience_returns_its_own_reply_or_again(case) {
        let model = Model::echo("m").queue(4, "in_order").option("sleep_us", 150_000);
        let daemon = case.config().model(model).start();
        let mut robot = case.attached(&daemon, "model=m slots=4");
        for n in 0..3 {
            let earlier = robot.call(&format!("infer fill={n} id={n} timeout_us=5000"));
            assert_eq!(earlier.error(), "timeout", "{}", earlier.json);
            let own = robot.ok(&format!("infer fill={} id={} timeout_us=5000000", 100 + n, 100 + n)).expect("ok");
            assert_eq!((own.output(0), own.number("observation_id")), (fill(100 + n, 64), 100 + n));
        }
        let tickets = robot.send("fill=1 n=4");
        let start = std::time::Instant::now();
        let refused = robot.call("infer fill=9 timeout_us=20000");
        assert_eq!(refused.error(), "again", "{}", refused.json);
        assert!(start.elapsed() >= ms(19), "it waits for a slot within its own timeout");
        (tickets..tickets + 4).for_each(|t| drop(robot.wait(t).expect("ok")));
        assert_eq!(robot.ok("infer fill=9 timeout_us=5000000").expect("ok").output(0), fill(9, 64));
    }

    fn rule_6_credit_advances_over_the_contiguous_released_prefix_only(case) {
        let daemon = case.config().model(Model::echo("m").queue(4, "in_order")).start();
        let mut robot = case.attached(&daemon, "model=m slots=4");
        let t = robot.send("fill=0 n=4");
        for later in [t + 3, t + 1, t + 2] {
            robot.wait(later).expect("ok");
            assert_eq!(robot.call("send fill=9").error(), "again", "the oldest reply is still unread");
        }
        assert_eq!(robot.wait(t).expect("ok").output(0), fill(0, 64), "it was not overwritten");
        let all = robot.send("fill=4 n=4");
        assert_eq!(robot.call("send fill=9").error(), "again");
        (all..all + 4).for_each(|t| drop(robot.wait(t).expect("ok")));
    }

    fn rule_7_in_order_refuses_when_all_slots_are_in_flight(case) {
        let model = Model::echo("m").queue(3, "in_order").option("sleep_us", 30_000);
        let daemon = case.config().model(model).start();
        let mut robot = case.attached(&daemon, "model=m slots=3");
        let refused = robot.call("send fill=0 n=5");
        assert_eq!((refused.error(), refused.number("n")), ("again", 3));
        let t = refused.number("ticket");
        for k in 0..3 {
            assert_eq!(robot.wait(t + k).expect("ok").output(0), fill(k, 64), "none was run twice or left out");
        }
        assert_eq!(robot.exchange("fill=9").expect("ok").number("request"), 3, "a refused request has no number");
    }

    fn rule_7_latest_never_refuses_and_runs_the_newest(case) {
        let model = Model::echo("m").queue(2, "latest").option("sleep_us", 20_000);
        let daemon = case.config().model(model).start();
        let mut robot = case.attached(&daemon, "model=m slots=2");
        let t = robot.ok("send fill=0 n=500").number("ticket");
        let (mut ok, mut skipped) = (0, 0);
        for k in 0..500 {
            match robot.wait(t + k) {
                reply if reply.outcome() == "ok" => {
                    assert_eq!(reply.output(0), fill(k, 64));
                    ok += 1;
                    skipped += reply.number("skipped");
                }
                other => drop(other.expect("superseded")),
            }
        }
        assert_eq!(ok + skipped, 500, "every request ran or was counted as skipped");
        assert_eq!(robot.exchange("fill=1").expect("ok").number("request"), 500);
    }

    fn rule_7_latest_at_1_khz_with_a_run_of_20_ms_takes_an_observation_of_at_most_one_interval(case) {
        let model = Model::echo("m").queue(4, "latest").option("sleep_us", 20_000);
        let daemon = case.config().model(model).start();
        let mut robot = case.attached(&daemon, "model=m");
        let summary = robot.ok("loop seconds=1.5 rate_hz=1000 depth=64 check=echo").clean();
        let (ok, superseded) = (summary.count("ok"), summary.count("superseded"));
        assert!(ok >= 40 && superseded > 10 * ok, "{}", summary.json);
        assert_eq!(summary.number("skipped"), superseded, "the replies say how many they skipped");
        // One submit interval; the rest is for a machine that has only two CPUs.
        assert!(summary.number("age_p50_ns") <= 1_500_000, "{}", summary.json);
    }

    fn waits_without_blocking_and_through_the_pollable_descriptor_find_the_same_outcome(case) {
        let daemon = case.config().model(Model::echo("m").queue(4, "in_order").option("sleep_us", 150_000)).start();
        let mut robot = case.attached(&daemon, "model=m slots=4");
        let ticket = robot.send("fill=1");
        assert_eq!(robot.call(&format!("try ticket={ticket}")).error(), "pending");
        within(ms(5_000), "an outcome", || robot.call(&format!("try ticket={ticket}")).error() != "pending");
        for n in 2..6 {
            let ticket = robot.send(&format!("fill={n}"));
            let reply = robot.ok(&format!("pollwait ticket={ticket} timeout_us=2000000")).expect("ok");
            assert_eq!(reply.output(0), fill(n, 64));
            assert!((1..=3).contains(&reply.number("polls")), "one ring per reply: {}", reply.json);
            assert!(reply.waited() < ms(1_500), "the ring woke it, not the timeout: {}", reply.json);
        }
    }

    fn a_forked_child_gets_an_error_and_the_parent_goes_on(case) {
        let daemon = case.config().model(Model::echo("m")).start();
        let mut robot = case.attached(&daemon, "model=m");
        robot.exchange("fill=1").expect("ok");
        assert_eq!(robot.ok("fork").text("child"), "wrong_process");
        assert_eq!(robot.exchange("fill=2").expect("ok").output(0), fill(2, 64));
        assert_eq!(daemon.sessions().len(), 1);
    }

    fn rule_9_a_spinning_client_notices_the_hang_up_within_milliseconds(case) {
        let model = Model::echo("m").option("sleep_us", 5_000_000).config("max_run_ms", "20000");
        let mut daemon = case.config().model(model).start();
        let mut robot = case.attached(&daemon, "model=m spin_us=10000000");
        let ticket = robot.send("fill=1");
        robot.begin(&format!("wait ticket={ticket} timeout_us=8000000"));
        // A process whose thread waits for the disk ends when the disk lets go of it.
        let _ = daemon.baseline();
        let start = std::time::Instant::now();
        daemon.signal(Signal::SIGKILL);
        robot.finish(ms(8000)).expect("daemon_lost");
        // 1 ms of spinning, and what a machine with two CPUs needs to end a process; a wait that did not notice takes 8 s.
        println!("FIGURE a spinning client noticed the hang-up after {:?}", start.elapsed());
        assert!(start.elapsed() < ms(1_000), "noticed after {:?}", start.elapsed());
        daemon.wait_exit(ms(5_000));
        daemon.start();
    }

    fn rule_9_a_client_that_sleeps_or_polls_notices_the_hang_up_too(case) {
        let model = Model::echo("m").option("sleep_us", 5_000_000).config("max_run_ms", "20000");
        let mut daemon = case.config().model(model).start();
        for verb in ["wait", "pollwait"] {
            let mut robot = case.attached(&daemon, "model=m spin_us=0 auto_reattach=0");
            let ticket = robot.send("fill=1");
            robot.begin(&format!("{verb} ticket={ticket} timeout_us=8000000"));
            let _ = daemon.baseline();
            let start = std::time::Instant::now();
            daemon.signal(Signal::SIGKILL);
            robot.finish(ms(8000)).expect("daemon_lost");
            assert!(start.elapsed() < ms(1_000), "{verb}: noticed after {:?}", start.elapsed());
            daemon.wait_exit(ms(5_000));
            daemon.start();
        }
    }

    fn what_the_supervisor_answers_wakes_a_client_that_sleeps_or_polls(case) {
        let model = Model::counter("m").queue(4, "in_order").option("sleep_us", 3_000_000).config("max_run_ms", "20000");
        let daemon = case.config().model(model).start();
        let mut robot = case.attached(&daemon, "model=m spin_us=0");
        for (request, verb) in ["wait", "pollwait"].into_iter().enumerate() {
            let ticket = robot.send("fill=1");
            robot.begin(&format!("{verb} ticket={ticket} timeout_us=5000000"));
            daemon.until_runs(request as u64);
            std::thread::sleep(ms(100));
            let start = std::time::Instant::now();
            let worker = daemon.worker("m");
            kill(Pid::from_raw(worker as i32), Signal::SIGKILL).expect("the worker lives");
            robot.finish(ms(8000)).expect("worker_lost");
            assert!(start.elapsed() < ms(1_500), "{verb}: told after {:?}", start.elapsed());
            within(ms(3000), "another worker serves", || {
                let model = daemon.model("m");
                model.state == "live" && model.worker_pid != Some(worker)
            });
        }
    }

    fn no_wake_is_lost_when_both_sides_sleep_at_once(case) {
        for waiting in ["auto", "epoll"] {
            let model = Model::counter("m").queue(4, "in_order").config("spin_us", "0");
            let daemon = case.config().model(model).set("ipc", &format!("waiting = {waiting:?}")).start();
            let mut robots: Vec<_> = (0..3).map(|_| case.attached(&daemon, "model=m slots=4 spin_us=0")).collect();
            for (depth, robot) in robots.iter_mut().enumerate() {
                robot.begin(&format!("loop n=3000 depth={} check=count timeout_us=2000000", depth + 1));
            }
            for robot in &mut robots {
                let summary = robot.finish(ms(30_000)).clean();
                assert_eq!(summary.count("ok"), 3000, "{waiting}: {}", summary.json);
            }
        }
    }

    fn rule_9_a_reply_published_before_the_hang_up_is_still_read(case) {
        let mut daemon = case.config().model(Model::echo("m").queue(4, "in_order")).start();
        let mut robot = case.attached(&daemon, "model=m slots=4");
        let tickets = robot.send("fill=1 n=3");
        within(ms(1000), "all replies are published", || {
            let stats: inferd_ipc::control::StatsAnswer =
                daemon.rpc(&inferd_ipc::control::Command::Stats { model: None }).expect("stats");
            stats["m"].outcomes.get("ok").is_some_and(|n| *n >= 3)
        });
        daemon.kill();
        for k in 0..3 {
            assert_eq!(robot.wait(tickets + k).expect("ok").output(0), fill(1 + k, 64));
        }
        // Nothing was fruitless so far: the hang-up shows in the next wait at the latest.
        let next = robot.call("send fill=9");
        if next.is_ok() {
            robot.wait(next.number("ticket")).expect("daemon_lost");
        }
        assert_eq!(robot.call("send fill=9").error(), "daemon_lost");
        daemon.start();
    }
}
