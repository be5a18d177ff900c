//! One scenario per row of `docs/semantics.md`: what every request ends in, with every client on both backings.
//!
//! Each test says what the client sees: the outcome's name, whether there is output, whether the state
//! advanced. The row `rejected` for headers that no library would send is in `hostile.rs`.

use inferd_tests::answer::{fill, hex_f32};
use inferd_tests::{Model, ms, scenarios, within};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A run of this many microseconds is long enough for a test to act in the middle of it.
const LONG_RUN_US: u64 = 400_000;

scenarios! {
    fn a_request_that_ran_is_ok_with_output_and_an_advanced_state(case) {
        let daemon = case.config().model(Model::counter("m").queue(4, "in_order")).start();
        let mut robot = case.attached(&daemon, "model=m");
        for n in 0..3 {
            let ticket = robot.send(&format!("fill={n} id={}", 70 + n));
            let reply = robot.wait(ticket).expect("ok");
            assert_eq!(reply.output(0), fill(n, 64));
            assert_eq!(reply.output_f32(1), [n as f32; 4], "the state before step {n}");
            assert_eq!((reply.flag("late"), reply.number("step")), (false, n + 1));
        }
    }

    fn a_run_that_ends_after_the_deadline_is_ok_and_late(case) {
        let daemon = case.config().model(Model::counter("m").option("sleep_us", 300_000)).start();
        let mut robot = case.attached(&daemon, "model=m");
        let late = robot.exchange("fill=1 deadline_us=200000").expect("ok");
        assert!(late.flag("late"));
        assert_eq!((late.output(0), late.number("step")), (fill(1, 64), 1), "late, yet run: output and state count");
        let timely = robot.exchange("fill=2 deadline_us=5000000").expect("ok");
        assert!(!timely.flag("late"));
        assert_eq!(timely.output_f32(1)[0], 1.0);
    }

    fn a_newer_request_supersedes_the_older_ones_and_says_how_many(case) {
        let model = Model::counter("m").queue(4, "latest").option("sleep_us", LONG_RUN_US);
        let daemon = case.config().model(model).start();
        let mut robot = case.attached(&daemon, "model=m");
        let first = robot.send("fill=0");
        daemon.until_runs(0);
        let rest = robot.send("fill=1 n=3");
        assert_eq!(robot.wait(first).expect("ok").number("skipped"), 0);
        for skipped in [rest, rest + 1] {
            let answer = robot.wait(skipped).expect("superseded");
            assert!(!answer.has_output());
        }
        let newest = robot.wait(rest + 2).expect("ok");
        assert_eq!((newest.number("skipped"), newest.number("request")), (2, 3));
        assert_eq!((newest.number("step"), newest.output(0)), (2, fill(3, 64)), "superseded requests advance nothing");
        assert_eq!(newest.output_f32(1)[0], 1.0);
    }

    fn a_request_whose_deadline_passed_before_the_run_is_expired_and_not_run(case) {
        let model = Model::counter("m").queue(4, "in_order").option("sleep_us", 300_000);
        let daemon = case.config().model(model).start();
        let mut robot = case.attached(&daemon, "model=m");
        let past = robot.exchange("fill=1 id=5 deadline_us=-1000").expect("expired");
        assert_eq!((past.has_output(), past.number("step"), past.number("observation_id")), (false, 0, 5));
        // The deadline passes while the request waits behind another one.
        let first = robot.send("fill=2");
        let second = robot.send("fill=3 deadline_us=100000");
        assert_eq!(robot.wait(first).expect("ok").number("step"), 1);
        assert!(!robot.wait(second).expect("expired").has_output());
        let next = robot.exchange("fill=4").expect("ok");
        assert_eq!((next.number("step"), next.output_f32(1)[0]), (2, 1.0));
    }

    fn a_non_finite_input_is_rejected_unless_the_manifest_allows_it(case) {
        let tolerant = Model::echo("tolerant").rule("x", "allow_non_finite = true").rule("y", "allow_non_finite = true");
        let daemon = case.config().model(Model::counter("strict")).model(tolerant).start();
        let mut robot = case.attached(&daemon, "model=strict");
        robot.ok("attach s=1 model=tolerant");
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = [0.5; 16];
            x[7] = bad;
            let refused = robot.ok(&format!("infer hex={}", hex_f32(&x))).expect("rejected");
            assert_eq!((refused.has_output(), refused.number("step")), (false, 0));
            let passed = robot.ok(&format!("infer s=1 hex={}", hex_f32(&x))).expect("ok");
            assert_eq!(passed.output_f32(0)[7].to_bits(), bad.to_bits());
        }
        let next = robot.exchange("fill=1").expect("ok");
        assert_eq!((next.number("step"), next.output_f32(1)[0]), (1, 0.0));
    }

    fn a_backend_that_raises_is_a_model_error_and_the_state_is_as_before(case) {
        let daemon = case.config().model(Model::counter("m").option("fail_at", 3)).start();
        let mut robot = case.attached(&daemon, "model=m");
        robot.exchange("fill=1").expect("ok");
        robot.exchange("fill=2").expect("ok");
        let failed = robot.exchange("fill=3 id=9").expect("model_error");
        assert_eq!((failed.has_output(), failed.number("step"), failed.number("observation_id")), (false, 2, 9));
        let next = robot.exchange("fill=4").expect("ok");
        assert_eq!((next.number("step"), next.output_f32(1)[0]), (3, 2.0), "the state of before the failed step");
        within(ms(2000), "the log has the model's message", || daemon.log().contains("fail_at"));
        assert_eq!(daemon.model("m").worker_deaths, 0);
    }

    fn an_output_that_the_guard_refuses_is_a_model_error_and_the_state_is_as_before(case) {
        let limited = Model::counter("limited").rule("y", "limits = [-1.0, 1.0]");
        let daemon = case.config().model(Model::counter("m").option("nan_at", 2)).model(limited).start();
        let mut robot = case.attached(&daemon, "model=m");
        robot.exchange("fill=1").expect("ok");
        assert!(!robot.exchange("fill=2").expect("model_error").has_output());
        assert_eq!(robot.exchange("fill=3").expect("ok").output_f32(1)[0], 1.0);
        robot.ok("attach s=1 model=limited");
        let inside = hex_f32(&[0.9; 16]);
        let outside = hex_f32(&[1.5; 16]);
        robot.ok(&format!("infer s=1 hex={inside}")).expect("ok");
        assert!(!robot.ok(&format!("infer s=1 hex={outside}")).expect("model_error").has_output());
        assert_eq!(robot.ok(&format!("infer s=1 hex={inside}")).expect("ok").output_f32(1)[0], 1.0);
    }

    fn a_worker_killed_in_a_run_costs_exactly_that_request_and_the_state_goes_on(case) {
        let model = Model::counter("m").queue(4, "in_order").option("sleep_us", LONG_RUN_US);
        let daemon = case.config().model(model).start();
        let mut robot = case.attached(&daemon, "model=m");
        robot.exchange("fill=1").expect("ok");
        robot.exchange("fill=2").expect("ok");
        let running = robot.send("fill=3 id=33");
        let waiting = robot.send("fill=4 n=2 id=34");
        daemon.until_runs(2);
        kill(Pid::from_raw(daemon.worker("m") as i32), Signal::SIGKILL).expect("the worker lives");
        let lost = robot.wait(running).expect("worker_lost");
        assert_eq!((lost.has_output(), lost.number("step"), lost.number("observation_id")), (false, 2, 33));
        for ticket in [waiting, waiting + 1] {
            assert_eq!(robot.wait(ticket).expect("unavailable").number("step"), 2, "published, not run");
        }
        daemon.until_model_is("m", "live");
        let next = robot.exchange("fill=5").expect("ok");
        assert_eq!((next.number("step"), next.output_f32(1)[0]), (3, 2.0), "as committed by the last ok step");
        assert!(!next.flag("state_reset"));
        assert_eq!(daemon.model("m").worker_deaths, 1);
    }

    fn a_state_that_cannot_be_carried_needs_a_reset(case) {
        let mut daemon = case.config().model(Model::counter("m")).start();
        let mut robot = case.attached(&daemon, "model=m");
        robot.exchange("fill=1").expect("ok");
        robot.exchange("fill=2").expect("ok");
        // Another shape of the state, the same signature: a reload that cannot carry.
        let mut other = Model::echo("m").input("h", "f32", &[1, 8]).output("peek", "f32", &[1, 4]);
        other = other.output("h_out", "f32", &[1, 8]).state("h", "h_out").option("show_state", "peek");
        daemon.change(other);
        assert_eq!(daemon.reload("m").expect("reloaded").to_generation, 2);
        for n in 0..2 {
            let refused = robot.exchange(&format!("fill={n}")).expect("needs_reset");
            assert_eq!((refused.has_output(), refused.number("generation")), (false, 2));
        }
        let reset = robot.exchange("fill=5 reset=1").expect("ok");
        assert_eq!((reset.flag("state_reset"), reset.output_f32(1)[0]), (true, 0.0));
        let next = robot.exchange("fill=6").expect("ok");
        assert_eq!((next.flag("state_reset"), next.output_f32(1)[0]), (false, 1.0));
    }

    fn a_drain_answers_what_runs_and_tells_the_rest_shutting_down(case) {
        let model = Model::counter("m").queue(4, "in_order").option("sleep_us", LONG_RUN_US);
        let mut daemon = case.config().model(model).start();
        let mut robot = case.attached(&daemon, "model=m");
        let running = robot.send("fill=1");
        daemon.until_runs(0);
        let waiting = robot.send("fill=2 n=2");
        daemon.signal(Signal::SIGTERM);
        assert_eq!(robot.wait(running).expect("ok").output(0), fill(1, 64));
        for ticket in [waiting, waiting + 1] {
            let told = robot.wait(ticket).expect("shutting_down");
            assert_eq!((told.has_output(), told.number("step")), (false, 1));
        }
        daemon.ended(ms(5000));
    }

    fn a_daemon_that_dies_is_daemon_lost_and_the_next_daemon_serves_again(case) {
        let model = Model::counter("m").queue(4, "in_order").option("sleep_us", LONG_RUN_US);
        let mut daemon = case.config().model(model).start();
        let mut robot = case.attached(&daemon, "model=m");
        let flying = robot.send("fill=1 n=2");
        daemon.until_runs(0);
        daemon.kill();
        robot.wait(flying).expect("daemon_lost");
        robot.wait(flying + 1).expect("daemon_lost");
        let refused = robot.call("send fill=3");
        assert_eq!(refused.error(), "daemon_lost", "{}", refused.json);
        daemon.start();
        within(ms(1000), "served again after READY", || robot.call("send fill=4").is_ok());
        let ticket = robot.send("fill=5");
        let reply = robot.wait(ticket).expect("ok");
        assert_eq!((reply.output(0), reply.output_f32(1)[0]), (fill(5, 64), 1.0), "state begins afresh");
        assert_eq!(robot.ok("info").number("epoch"), 1);
    }

    fn a_submit_while_no_worker_serves_is_unavailable_at_once(case) {
        let daemon = case.config().model(Model::echo("m").option("load_delay_ms", 1_500)).start();
        let mut robot = case.attached(&daemon, "model=m");
        robot.exchange("fill=1").expect("ok");
        kill(Pid::from_raw(daemon.worker("m") as i32), Signal::SIGKILL).expect("the worker lives");
        within(ms(1_000), "the model is recovering", || daemon.model("m").state == "recovering");
        let start = std::time::Instant::now();
        let refused = robot.call("send fill=2");
        assert_eq!(refused.error(), "unavailable", "{}", refused.json);
        assert!(start.elapsed() < ms(1_000), "at once, not after {:?}", start.elapsed());
        daemon.until_model_is("m", "live");
        robot.exchange("fill=3").expect("ok");
    }
}
