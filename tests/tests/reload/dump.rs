//! `inferctl dump`: what the last steps were, also of a worker that died of one; and a regression test made of them.

use super::{LIMIT, Policies, REFUSED, SHAPE, STEEP, ask, inferctl, model, robot};
use inferd_tests::{Daemon, Model, ms, onnx, scenarios};
use inferd_tools::array::Npz;
use std::fs;
use std::path::Path;

/// Whole numbers of a per-step array.
fn numbers(path: &Path, name: &str) -> Vec<u64> {
    let array = Npz::open(path).and_then(|mut npz| npz.read(name)).unwrap_or_else(|e| panic!("{e}"));
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte));
    array.bytes.chunks_exact(array.dtype.size_bytes()).map(number).collect()
}

/// Dumps the model `m` and returns what the tool says.
fn dump(daemon: &Daemon, to: &Path) -> serde_json::Value {
    inferctl(daemon, "dump m {} --json", to).succeeded().json()
}

scenarios! {
    fn a_dump_after_a_crash_holds_the_observation_that_killed_the_worker(case) {
        let daemon = case.config().model(Model::echo("m").queue(4, "in_order").option("crash_at", 6)).start();
        let mut robot = robot(case, &daemon);
        for id in 100..105 {
            robot.exchange(&format!("fill={id} id={id}")).expect("ok");
        }
        robot.exchange("fill=105 id=105").expect("worker_lost");
        let file = daemon.dir().join("crash.npz");
        let told = dump(&daemon, &file);
        assert_eq!((&told["steps"], &told["statuses"]["ok"], &told["statuses"]["unended"]), (&6.into(), &5.into(), &1.into()));
        assert_eq!(numbers(&file, "observation_id"), (100..106).collect::<Vec<_>>());
        assert_eq!(numbers(&file, "status"), [1, 1, 1, 1, 1, 0]);
        let x = Npz::open(&file).and_then(|mut npz| npz.read("in.x")).expect("the inputs");
        assert_eq!((x.shape.as_slice(), x.bytes.len()), (&[6, 1, 16][..], 6 * 64));
        let filled = inferd_tests::answer::fill(105, 64);
        assert_eq!(&x.bytes[5 * 64..], filled.as_slice(), "what the robot saw when the worker died");
        // The next worker writes on in the same record; a replay feeds what killed the first one, and its sixth step is deadly too.
        daemon.until_model_is("m", "live");
        robot.exchange("fill=106 id=106").expect("ok");
        assert_eq!(dump(&daemon, &file)["steps"], 7);
        let replay = daemon.tool("inferctl", &["replay", "m", &file.display().to_string()]);
        assert_eq!(replay.code, Some(1), "{replay:#?}");
        assert!(replay.err.contains("step 4 ended in worker_lost"), "{replay:#?}");
    }

    fn a_dump_needs_no_worker_and_works_in_quarantine(case) {
        let daemon = case.config().model(Model::echo("m").queue(4, "in_order").option("crash_at", 1)).start();
        let mut robot = robot(case, &daemon);
        let end = std::time::Instant::now() + ms(60_000);
        while daemon.model("m").state != "quarantined" {
            assert!(std::time::Instant::now() < end, "never quarantined: {:#?}", daemon.model("m"));
            robot.call("infer fill=1 timeout_us=1000000");
        }
        let file = daemon.dir().join("quarantine.npz");
        let told = dump(&daemon, &file);
        assert!(told["statuses"]["unended"].as_u64().is_some_and(|n| n >= 2), "{told}");
        assert_eq!(numbers(&file, "session").len() as u64, told["steps"].as_u64().unwrap_or(0));
    }

    fn a_dump_of_two_recurrent_sessions_replays_and_serves_as_a_golden_pair(case) {
        let counter = Model::counter("m").queue(4, "in_order");
        let mut daemon = case.config().model(counter.clone()).start();
        let mut robots = [robot(case, &daemon), robot(case, &daemon)];
        for step in 0..12 {
            let reset = if step == 7 { " reset=1" } else { "" };
            for (k, robot) in robots.iter_mut().enumerate() {
                robot.exchange(&format!("fill={} id={step}{reset}", 100 * k + step)).expect("ok");
            }
        }
        let file = daemon.dir().join("walk.npz");
        let told = dump(&daemon, &file);
        assert_eq!((&told["steps"], told["sessions"].as_array().map(Vec::len)), (&24.into(), Some(2)), "{told}");
        let sessions = numbers(&file, "session");
        assert!(sessions.is_sorted(), "session by session: {sessions:?}");
        let resets: Vec<usize> = numbers(&file, "reset").iter().enumerate().filter(|(_, r)| **r == 1).map(|(i, _)| i).collect();
        assert_eq!(resets, [0, 7, 12, 19]);
        let path = file.display().to_string();
        let replay = daemon.tool("inferctl", &["replay", "m", &path, "--tol", "0", "--json"]).succeeded().json();
        assert_eq!((&replay["steps"], &replay["resets"], &replay["left_out"]), (&24.into(), &4.into(), &0.into()));
        // One session alone; of a session that never was, nothing.
        let one = inferctl(&daemon, &format!("dump m {{}} --session {} --json", sessions[0]), &file).succeeded().json();
        assert_eq!(one["steps"], 12, "{one}");
        inferctl(&daemon, "dump m {} --session 999999", &file).refused(&["session 999999"]);
        // From the middle of both sessions, which no client could reproduce; a golden pair can.
        for robot in &mut robots {
            for step in 0..130 {
                robot.exchange(&format!("fill={step} id={step}")).expect("ok");
            }
        }
        dump(&daemon, &file);
        let replay = daemon.tool("inferctl", &["replay", "m", &path, "--tol", "0"]);
        replay.refused(&["no step begins on fresh state"]);
        let golden = |model: Model| model.top("golden = [{ file = \"walk.npz\", tolerance = 1e-6 }]");
        daemon.change(golden(counter.clone()));
        fs::copy(&file, daemon.dir().join("models/m/walk.npz")).expect("our own folder");
        daemon.reload("m").expect("what it was recorded from reproduces it");
        daemon.change(golden(counter.rule("peek", "offset = 1.0")));
        let refused = inferctl(&daemon, "reload m", &file).refused(&["walk.npz", "peek"]);
        assert_eq!(refused.code, Some(REFUSED));
    }

    fn a_field_problem_becomes_a_regression_test(case) {
        let policies = Policies::new();
        let bad = policies.add("bad", &onnx::plus_one_up_to(LIMIT, &SHAPE));
        let daemon = case.config().model(model(&policies.add("good", &onnx::plus_one(&SHAPE)))).start();
        let mut robot = robot(case, &daemon);
        ask(&mut robot, STEEP, 16);
        let file = daemon.dir().join("field.npz");
        let text = inferctl(&daemon, "dump m {}", &file).succeeded().out;
        assert!(text.contains("16 steps of 1 session, generation 1"), "{text}");
        let left = fs::read_dir(daemon.dir()).expect("our own folder").flatten();
        let left: Vec<_> = left.filter(|e| e.file_name().to_string_lossy().starts_with(".inferctl")).collect();
        assert!(left.is_empty(), "{left:?}");
        inferctl(&daemon, "replay m {} --tol 0", &file).succeeded();
        // From now on, the model that was wrong there does not even load.
        policies.add_with_golden("bad", &onnx::plus_one_up_to(LIMIT, &SHAPE), &fs::read(&file).expect("the dump"));
        inferctl(&daemon, "reload m --path {}", &bad).refused(&["golden.npz", "got 11"]);
        assert_eq!(ask(&mut robot, STEEP, 1), (STEEP + 1.0, 1));
    }

    fn a_model_that_records_nothing_says_how_to_change_that(case) {
        let daemon = case.config().model(Model::echo("m").queue(4, "in_order").config("record_steps", "0")).start();
        let mut robot = robot(case, &daemon);
        robot.exchange("fill=1").expect("ok");
        let file = daemon.dir().join("nothing.npz");
        inferctl(&daemon, "dump m {}", &file).refused(&["record_steps"]);
        inferctl(&daemon, "reload m --shadow 8", &file).refused(&["record_steps"]);
        assert!(!file.exists());
    }
}
