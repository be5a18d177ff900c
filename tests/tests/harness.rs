//! The harness tests itself: a ledger that could not fail, or a driver that could not count, would prove nothing.

use inferd_ipc::layout::Queue;
use inferd_ipc::limits::STAGING_THREADS;
use inferd_tests::answer::{FNV_START, fill, fnv1a};
use inferd_tests::raw::RawAttach;
use inferd_tests::{Model, ms, scenarios, within};
use std::os::fd::AsRawFd;

scenarios! {
    fn a_ledger_with_one_dropped_reply_fails(case) {
        let daemon = case.config().model(Model::counter("m").queue(4, "in_order")).start();
        let mut robot = case.attached(&daemon, "model=m slots=4");
        robot.ok("loop n=200 depth=2 check=count").clean();
        let dropped = robot.ok("loop n=200 depth=2 check=echo drop=77");
        assert!(dropped.fault().is_some(), "the harness accepted a dropped reply: {}", dropped.json);
        // Also where the driver says nothing of it: the sum is the harness's own.
        let mut silent = dropped.clone();
        silent.json["violations"] = 0.into();
        assert_eq!(silent.fault(), Some("200 requests, 199 outcomes".to_owned()), "{}", silent.json);
    }

    fn a_driver_finds_a_wrong_output_and_a_state_that_does_not_count(case) {
        let wrong = Model::echo("wrong").rule("y", "offset = 1.0");
        let stuck = Model::echo("stuck").output("peek", "f32", &[1, 4]);
        let daemon = case.config().model(wrong).model(stuck).start();
        let mut robot = case.attached(&daemon, "model=wrong");
        let summary = robot.ok("loop n=20 check=echo");
        assert_eq!(summary.number("violations"), 20, "{}", summary.json);
        robot.ok("attach s=1 model=stuck");
        let summary = robot.ok("loop s=1 n=20 check=count");
        assert!(summary.number("violations") >= 19, "{}", summary.json);
    }

    fn a_driver_finds_one_generation_with_two_answers_and_tells_a_course_by_its_digest(case) {
        let daemon = case.config().model(Model::counter("m").queue(4, "in_order")).start();
        let mut robot = case.attached(&daemon, "model=m slots=4");
        let summary = robot.ok("loop n=20 check=answers");
        assert_eq!(summary.number("violations"), 16, "a state that counts is another answer each time: {}", summary.json);
        assert!(summary.text("first_violation").contains("rule 11"));
        let digest = |robot: &mut inferd_tests::Driver, s: u32, n: u32| {
            robot.ok(&format!("attach s={s} model=m"));
            robot.ok(&format!("loop s={s} n={n} check=digest seed=3")).clean().text("digest").to_owned()
        };
        let course = digest(&mut robot, 1, 20);
        assert_eq!(course, digest(&mut robot, 2, 20), "the same course");
        assert_ne!(course, digest(&mut robot, 3, 21), "one step more");
        let hashes = [0.0f32, 1.0].map(|n| {
            let outputs = [fill(3, 64), [n; 4].iter().flat_map(|e| e.to_le_bytes()).collect()].concat();
            fnv1a(FNV_START, &outputs)
        });
        let due = hashes.iter().fold(FNV_START, |digest, hash| fnv1a(digest, &hash.to_le_bytes()));
        assert_eq!(digest(&mut robot, 4, 2), format!("{due:016x}"));
    }

    fn the_verbs_of_the_driver_do_what_driver_md_says(case) {
        let model = Model::echo("m").input("image", "u8", &[3, 5]).output("second", "u8", &[15]);
        let daemon = case.config().model(model.queue(4, "in_order")).start();
        let mut robot = case.driver(&daemon);
        assert_eq!(robot.call("send fill=1").error(), "not_attached");
        let attached = robot.ok("attach model=m slots=3 queue=in_order spin_us=100");
        assert_eq!((attached.number("slots"), attached.text("queue")), (3, "in_order"));
        assert_eq!((attached.number("generation"), attached.number("spin_us")), (1, 100));
        let versions = robot.ok("versions");
        assert_eq!((versions.text("client"), versions.text("abi")), (case.client.name(), "1.0"));
        assert_eq!(versions.text("daemon"), daemon.status().version);
        let signature = robot.ok("signature").json;
        assert_eq!(signature["inputs"][1]["name"], "image");
        assert_eq!(signature["inputs"][1]["shape"], serde_json::json!([3, 5]));
        assert_eq!((&signature["outputs"][0]["dtype"], signature["outputs"][0]["bytes"].as_u64()), (&"f32".into(), Some(64)));
        robot.ok("request");
        robot.ok("write input=0 fill=10");
        robot.ok(&format!("write input=1 hex={}", "2a".repeat(15)));
        let ticket = robot.ok("submit id=5 executed=3").number("ticket");
        let reply = robot.wait(ticket).expect("ok");
        assert_eq!((reply.output(0), reply.output(1)), (fill(10, 64), vec![0x2a; 15]));
        let sent = robot.ok("send fill=20 n=2 id=7");
        assert_eq!((sent.number("request"), sent.number("n")), (1, 2));
        let reply = robot.wait(sent.number("ticket") + 1).expect("ok");
        assert_eq!((reply.output(0), reply.output(1)), (fill(21, 64), fill(22, 15)));
        assert_eq!(reply.number("observation_id"), 8);
        let hashed = robot.ok(&format!("wait ticket={} out=hash", sent.number("ticket")));
        let all = [fill(20, 64), fill(21, 15)].concat();
        let fnv = |h: u64, b: &u8| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3);
        assert_eq!(hashed.text("hash"), format!("{:016x}", all.iter().fold(0xcbf2_9ce4_8422_2325, fnv)));
        for wrong in ["fly", "attach", "send fill=1 colour=red", "wait ticket=99", "write input=9 fill=1"] {
            assert_eq!(robot.call(wrong).error(), "usage", "{wrong}");
        }
        robot.ok("counters");
        robot.ok("detach");
        inferd_tests::within(ms(1000), "the session has ended", || daemon.sessions().is_empty());
        robot.quit();
    }
}

#[test]
fn a_scenario_without_leaks_ends_and_every_kind_of_leak_is_found() {
    let _turn = inferd_tests::turn();
    let model = Model::counter("m").queue(4, "in_order");
    let daemon = inferd_tests::DaemonConfig::new(inferd_ipc::layout::Backing::Memfd).model(model).start();
    let started = inferd_tests::process::threads(daemon.pid()).len();
    assert_eq!(started, 3 + STAGING_THREADS, "the loop, the store, the reaper, and those that copy model files");
    let attach = || RawAttach::attach(&daemon.runtime_dir(), "m", 4, Queue::InOrder);
    let session = attach();
    session.publish(0, &session.header(0), &[&[0x3e; 64]]);
    let _ = session.wait(0);
    within(ms(2000), "a live session accounts for what it holds", || daemon.left().is_empty());
    // A session that has ended, and whose regions a client keeps mapped, is what a leak looks like from outside.
    nix::sys::socket::shutdown(session.attach.socket.as_raw_fd(), nix::sys::socket::Shutdown::Both).expect("ours");
    within(ms(2000), "its end is seen", || daemon.sessions().is_empty());
    std::thread::sleep(ms(100));
    let left = daemon.left();
    assert!(left.iter().any(|what| what.contains("sessions for its connections")), "{left:?}");
    drop(session);
    within(ms(2000), "nothing is left once it is unmapped", || daemon.left().is_empty());
}
