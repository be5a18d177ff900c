//! Reloads and rollbacks: rule 10 of `docs/semantics.md`, the reload half of rule 5, and refused generations.
//!
//! Under load every driver keeps a ledger of its own: a lost, doubled or mislabelled reply is a
//! violation in its summary. Generations can be told apart by their output (an offset in the manifest).

use inferd_ipc::layout::Backing;
use inferd_tests::answer::hex_f32;
use inferd_tests::{Model, ms, scenarios, within};
use std::time::Instant;

/// Reloads per case; the issue of reloads has campaigns for more.
const RELOADS: u32 = 20;

/// An echo model that adds its generation's number to every element.
fn marked(generation: u32) -> Model {
    Model::echo("m").queue(4, "in_order").rule("y", &format!("offset = {generation}"))
}

#[test]
fn a_sighup_during_the_start_does_not_make_it_ready() {
    let _turn = inferd_tests::turn();
    let model = Model::echo("m").option("load_delay_ms", 2_500);
    let mut daemon = inferd_tests::DaemonConfig::new(Backing::Memfd).model(model).prepare();
    // Whoever signals is no child of the daemon.
    daemon.inside(&["sh", "-c"], |inferd| vec![format!("( (sleep 1; kill -HUP $$) & ); exec {inferd}")]);
    daemon.start();
    assert!(daemon.log().contains("configuration read"), "the signal was seen before");
    assert_eq!(daemon.model("m").state, "live", "READY after {:?}", daemon.ready_after());
}

scenarios! {
    fn rule_10_twenty_reloads_under_load_lose_double_and_mislabel_nothing(case) {
        let stateful = Model::counter("m").queue(4, "in_order");
        let daemon = case.config().model(stateful).start();
        let baseline = daemon.footprint();
        let mut robots: Vec<_> = (0..3).map(|_| case.attached(&daemon, "model=m queue=in_order slots=4")).collect();
        robots.push(case.attached(&daemon, "model=m queue=latest"));
        for (i, robot) in robots.iter_mut().enumerate() {
            let depth = 1 + i % 3;
            let check = if i == 3 { "echo" } else { "count" };
            robot.begin(&format!("loop seconds=6 rate_hz=1000 depth={depth} check={check} seed={}", i * 1_000_000));
        }
        let start = Instant::now();
        let mut reloads = 0;
        while reloads < RELOADS {
            reloads += 1;
            let answer = daemon.reload("m").expect("reloaded");
            assert_eq!((answer.from_generation, answer.to_generation), (reloads, reloads + 1));
            assert_eq!(answer.state, "carried");
        }
        assert!(start.elapsed() < ms(5_800), "{RELOADS} reloads took {:?}: longer than the load", start.elapsed());
        for (i, robot) in robots.iter_mut().enumerate() {
            let summary = robot.finish(ms(20_000)).clean();
            assert_eq!(summary.count("ok") + summary.count("superseded"), summary.number("sent"), "{}", summary.json);
            assert!(i == 3 || summary.count("superseded") == 0);
            assert_eq!(summary.number("generation_last"), u64::from(RELOADS) + 1);
            assert!(summary.number("sent") > 2000 && summary.number("state_resets") == 0, "{}", summary.json);
        }
        robots.into_iter().for_each(|r| r.quit());
        // One worker is kept for a rollback; it holds what the live one holds.
        within(ms(2000), "retired workers are gone", || daemon.footprint().len() <= baseline.len() + 1);
        // The sessions have just ended: their doorbells are closed within moments.
        let descriptors = |of: &[inferd_tests::process::Footprint]| of[1].fds.values().sum::<usize>();
        within(ms(2000), "a worker holds what it held", || descriptors(&daemon.footprint()) <= descriptors(&baseline) + 1);
    }

    fn rule_10_each_reply_bears_the_generation_that_computed_it(case) {
        let mut daemon = case.config().model(marked(1)).start();
        let mut robot = case.attached(&daemon, "model=m slots=4");
        let zeros = hex_f32(&[0.0; 16]);
        let mut seen = 1;
        for generation in 2..8 {
            daemon.change(marked(generation));
            std::thread::scope(|scope| {
                let reload = scope.spawn(|| daemon.reload("m").expect("reloaded").to_generation);
                let mut after_the_swap = 0;
                let end = Instant::now() + ms(5000);
                while after_the_swap < 20 {
                    assert!(Instant::now() < end, "generation {generation} never answered");
                    let reply = robot.ok(&format!("infer hex={zeros}")).expect("ok");
                    let label = reply.number("generation");
                    assert_eq!(reply.output_f32(0), [label as f32; 16], "computed by {label}");
                    assert!(label >= seen, "a later request went to an older generation");
                    seen = label;
                    after_the_swap += u32::from(label == u64::from(generation));
                }
                assert_eq!(reload.join().expect("no panic"), generation);
            });
        }
    }

    fn rule_10_a_request_taken_before_the_swap_is_answered_by_the_old_generation(case) {
        let daemon = case.config().model(marked(1).option("sleep_us", 100_000)).start();
        let mut robot = case.attached(&daemon, "model=m slots=4");
        // Requests are taken one by one while the next generation loads and takes over between two steps.
        let tickets = robot.send("fill=1 n=4");
        daemon.reload("m").expect("reloaded");
        let replies: Vec<_> = (0..4).map(|k| robot.wait(tickets + k).expect("ok")).collect();
        let labels: Vec<u64> = replies.iter().map(|r| r.number("generation")).collect();
        assert_eq!(labels[0], 1, "taken before the swap");
        assert!(labels.is_sorted(), "{labels:?}");
        assert_eq!(robot.exchange("fill=9").expect("ok").number("generation"), 2);
    }

    fn rule_5_state_is_carried_across_reloads_and_reset_where_the_manifest_says_so(case) {
        let mut daemon = case.config().model(Model::counter("m").queue(4, "in_order")).start();
        let mut robot = case.attached(&daemon, "model=m");
        for n in 0..10 {
            let reply = robot.exchange("fill=1").expect("ok");
            assert_eq!((reply.output_f32(1)[0], reply.number("step")), (n as f32, n + 1));
            assert_eq!((reply.number("generation"), reply.flag("state_reset")), (n + 1, false));
            assert_eq!(daemon.reload("m").expect("reloaded").state, "carried");
        }
        daemon.change(Model::counter("m").queue(4, "in_order").top("on_reload = \"reset\""));
        assert_eq!(daemon.reload("m").expect("reloaded").state, "reset");
        let reply = robot.exchange("fill=1").expect("ok");
        assert_eq!((reply.output_f32(1)[0], reply.flag("state_reset")), (0.0, true), "reset and flagged");
        let reply = robot.exchange("fill=1").expect("ok");
        assert_eq!((reply.output_f32(1)[0], reply.flag("state_reset")), (1.0, false));
    }

    fn bad_reloads_are_refused_and_leave_the_live_generation_untouched(case) {
        let mut daemon = case.config().model(Model::counter("m").queue(4, "in_order")).start();
        let mut robot = case.attached(&daemon, "model=m slots=4");
        robot.begin("loop seconds=2.5 rate_hz=500 check=count");
        let before = daemon.model("m");
        let good = Model::counter("m").queue(4, "in_order");
        let bad = [
            (good.clone().option("fail_load", "the disk is on fire"), "the disk is on fire"),
            (good.clone().top("colour = \"red\""), "colour"),
            (good.clone().top("this is not toml"), "model.toml"),
            (Model::echo("m").queue(4, "in_order"), "signature"),
            (good.clone().input("extra", "f32", &[3]), "signature"),
            (good.clone().rule("x", "dtype = \"f33\""), "model.toml"),
            (good.clone().state("nothing", "nowhere"), "nothing"),
        ];
        for (model, word) in bad {
            daemon.change(model);
            let error = daemon.reload("m").expect_err("refused");
            assert!(error.message.contains(word), "{word:?} is not in: {}", error.message);
            assert!(error.message.contains('m'));
            assert_eq!(daemon.model("m").generation, 1);
        }
        std::fs::remove_dir_all(daemon.dir().join("models/m")).expect("our own folder");
        let error = daemon.reload("m").expect_err("refused");
        assert!(error.message.contains("models/m"), "{}", error.message);
        let summary = robot.finish(ms(10_000)).clean();
        assert_eq!(summary.count("ok"), summary.number("sent"), "{}", summary.json);
        assert_eq!((summary.number("generation_last"), summary.number("state_resets")), (1, 0));
        let after = daemon.model("m");
        assert_eq!((after.generation, after.worker_pid, after.state), (1, before.worker_pid, "live".to_owned()));
        daemon.change(good);
        daemon.reload("m").expect("a good one is taken after all");
        assert!(!robot.exchange("fill=1").expect("ok").flag("state_reset"));
    }

    fn a_rollback_takes_the_kept_generation_back_under_load(case) {
        let mut daemon = case.config().model(marked(1)).start();
        let mut robot = case.attached(&daemon, "model=m slots=4");
        let mut loaded = case.attached(&daemon, "model=m slots=4");
        loaded.begin("loop seconds=1.5 rate_hz=1000");
        let zeros = hex_f32(&[0.0; 16]);
        daemon.change(marked(2));
        daemon.reload("m").expect("reloaded");
        assert_eq!(robot.ok(&format!("infer hex={zeros}")).expect("ok").output_f32(0)[0], 2.0);
        let back: inferd_ipc::control::ReloadAnswer =
            daemon.rpc(&inferd_ipc::control::Command::Rollback { model: "m".into() }).expect("rolled back");
        assert_eq!(back.from_generation, 2);
        let reply = robot.ok(&format!("infer hex={zeros}")).expect("ok");
        assert_eq!(reply.output_f32(0)[0], 1.0, "the first generation computes again");
        assert_eq!(reply.number("generation"), u64::from(back.to_generation));
        let summary = loaded.finish(ms(10_000)).succeeded();
        assert_eq!(summary.count("ok"), summary.number("sent"), "{}", summary.json);
    }

    fn a_sighup_reloads_what_changed_and_a_bad_file_changes_nothing(case) {
        let mut daemon = case.config().model(Model::echo("a")).model(Model::echo("b")).start();
        let mut robot = case.attached(&daemon, "model=a");
        robot.ok("attach s=1 model=b");
        let b = daemon.worker("b");
        daemon.change(Model::echo("a").option("sleep_us", 10).config("options", "{ delay_us = 5 }"));
        daemon.signal(nix::sys::signal::Signal::SIGHUP);
        within(ms(5000), "the changed model is reloaded", || daemon.model("a").generation == 2);
        assert_eq!((daemon.model("b").generation, daemon.worker("b")), (1, b), "the rest is untouched");
        let good = std::fs::read_to_string(daemon.config_file()).expect("our own file");
        std::fs::write(daemon.config_file(), format!("{good}\nspeed = \"ludicrous\"\n")).expect("our own file");
        daemon.signal(nix::sys::signal::Signal::SIGHUP);
        within(ms(3000), "the log says file, line and reason", || {
            let log = daemon.log();
            log.contains("speed") && log.contains("inferd.toml:")
        });
        assert_eq!((daemon.model("a").generation, daemon.worker("b")), (2, b));
        robot.exchange("fill=1").expect("ok");
        let ticket = robot.send("s=1 fill=1");
        robot.ok(&format!("wait s=1 ticket={ticket}")).expect("ok");
    }
}
