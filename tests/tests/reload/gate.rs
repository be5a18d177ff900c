//! What the gate refuses and accepts, what a dry run changes (nothing), and what the verdict says.

use super::{LIMIT, Policies, REFUSED, SHAPE, STEEP, ask, inferctl, model, robot};
use inferd_tests::{ms, onnx, process, scenarios, within};
use std::sync::atomic::{AtomicBool, Ordering};

scenarios! {
    fn a_model_that_agrees_on_the_golden_pair_and_not_on_what_the_robot_sees_is_refused(case) {
        let policies = Policies::new();
        let bad = policies.add("bad", &onnx::plus_one_up_to(LIMIT, &SHAPE));
        let daemon = case.config().model(model(&policies.add("good", &onnx::plus_one(&SHAPE)))).start();
        let mut robot = robot(case, &daemon);
        // Slow enough that the steep observations stay among the recorded ones.
        let mut bystander = case.attached(&daemon, "model=m slots=4");
        bystander.begin("loop seconds=3 rate_hz=20");
        assert_eq!(ask(&mut robot, STEEP, 64), (STEEP + 1.0, 1));
        let before = daemon.model("m");

        // Nothing that only looks at the file finds it.
        inferctl(&daemon, "reload m --path {} --dry-run", &bad).succeeded();
        // The robot's own observations do.
        let line = "reload m --path {} --shadow 100 --max-diff y=0.001";
        let refused = inferctl(&daemon, line, &bad).refused(&["output y differs by 10", "max_diff"]);
        assert_eq!(refused.code, Some(REFUSED), "{refused:#?}");
        assert!(refused.out.contains("is refused") && refused.out.contains("10.0"), "{}", refused.out);
        let verdict = inferctl(&daemon, &format!("{line} --json"), &bad);
        assert_eq!(verdict.code, Some(REFUSED));
        let data = &verdict.json()["error"]["data"];
        assert_eq!((&data["accepted"], &data["live"]), (&false.into(), &false.into()), "{data}");
        assert_eq!(data["shadow"]["outputs"]["y"]["max"], 10.0, "{data}");
        assert_eq!((&data["shadow"]["failed"], &data["shadow"]["outputs"]["y"]["nan"]), (&0.into(), &0.into()));

        // The live generation has noticed nothing.
        assert_eq!(ask(&mut robot, STEEP, 1), (STEEP + 1.0, 1));
        let after = daemon.model("m");
        assert_eq!((after.generation, after.worker_pid, after.sha256), (1, before.worker_pid, before.sha256));
        let summary = bystander.finish(ms(15_000)).clean();
        assert_eq!(summary.count("ok"), summary.number("sent"), "{}", summary.json);
        let history = daemon.history("m");
        assert!(!history[0].verdict.accepted && history[0].generation == 0, "{:#?}", history[0]);
        assert!(history[0].verdict.reasons[0].contains("output y differs by 10"), "{:#?}", history[0]);
    }

    fn a_model_that_gives_nan_on_what_the_robot_sees_is_refused_without_any_bound(case) {
        let policies = Policies::new();
        let bad = policies.add("bad", &onnx::plus_one_or_nan(LIMIT, &SHAPE));
        let daemon = case.config().model(model(&policies.add("good", &onnx::plus_one(&SHAPE)))).start();
        let mut robot = robot(case, &daemon);
        ask(&mut robot, 0.5, 20);
        // What was seen so far does not tell.
        inferctl(&daemon, "reload m --path {} --shadow 20 --dry-run", &bad).succeeded();
        ask(&mut robot, STEEP, 10);
        let refused = inferctl(&daemon, "reload m --path {} --shadow 30", &bad).refused(&["10 of 30 recorded steps"]);
        assert_eq!(refused.code, Some(REFUSED));
        assert!(refused.out.contains("10 FAILED"), "{}", refused.out);
        assert_eq!(ask(&mut robot, STEEP, 1), (STEEP + 1.0, 1));
    }

    fn a_model_that_does_the_same_passes_the_gate_and_answers_the_next_request(case) {
        let policies = Policies::new();
        let same = policies.add("same", &onnx::one_plus(&SHAPE));
        let daemon = case.config().model(model(&policies.add("good", &onnx::plus_one(&SHAPE)))).start();
        let mut robot = robot(case, &daemon);
        let session = daemon.sessions()[0].session;
        ask(&mut robot, STEEP, 64);
        let line = "reload m --path {} --shadow 64 --max-diff y=0.001 --max-latency 1000000 --json";
        let answer = inferctl(&daemon, line, &same).succeeded().json();
        assert_eq!((&answer["from_generation"], &answer["to_generation"]), (&1.into(), &2.into()), "{answer}");
        let verdict = &answer["verdict"];
        assert_eq!((&verdict["accepted"], &verdict["live"]), (&true.into(), &true.into()), "{answer}");
        let shadow = &verdict["shadow"];
        assert_eq!((&shadow["steps"], &shadow["failed"], &shadow["missed"]), (&64.into(), &0.into(), &0.into()));
        assert_eq!((&shadow["outputs"]["y"]["max"], &shadow["state"]), (&0.0.into(), &"none".into()), "{answer}");
        assert!(shadow["live_run"]["p99_ns"].as_u64().is_some_and(|ns| ns > 0), "{answer}");
        assert!(shadow["new_run"]["p99_ns"].as_u64().is_some_and(|ns| ns > 0), "{answer}");
        assert_eq!(answer["gap_us"][0]["session"], session, "{answer}");
        assert!(answer["gap_us"][0]["gap_us"].as_f64().is_some_and(|us| us > 0.0), "{answer}");
        assert_eq!(ask(&mut robot, STEEP, 1), (STEEP + 1.0, 2));
        // The same for people.
        let table = inferctl(&daemon, "reload m --shadow 64 --max-diff y=0.001", &same).succeeded().out;
        for word in ["generation 2 -> 3", "is live", "64 recorded steps", "none failed", "p99", "golden pairs", "gap"] {
            assert!(table.contains(word), "{word:?} is not in:\n{table}");
        }
    }

    fn a_shadow_of_some_seconds_waits_for_the_steps_that_come(case) {
        let policies = Policies::new();
        let good = policies.add("good", &onnx::plus_one(&SHAPE));
        let daemon = case.config().model(model(&good)).start();
        // Nobody asks anything: a gate that cannot be judged stays shut.
        let silent = inferctl(&daemon, "reload m --shadow 0.3s", &good).refused(&["no recorded step"]);
        assert_eq!(silent.code, Some(REFUSED));
        let mut robot = robot(case, &daemon);
        let over = AtomicBool::new(false);
        let answer = std::thread::scope(|scope| {
            let asking = scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    ask(&mut robot, STEEP, 1);
                }
            });
            let ran = inferctl(&daemon, "reload m --shadow 0.5s --json", &good);
            over.store(true, Ordering::Relaxed);
            asking.join().expect("every request was answered");
            ran.succeeded().json()
        });
        assert!(answer["verdict"]["shadow"]["steps"].as_u64().is_some_and(|steps| steps > 0), "{answer}");
        assert_eq!(ask(&mut robot, STEEP, 1), (STEEP + 1.0, 2));
    }

    fn a_dry_run_shows_the_verdict_and_changes_nothing(case) {
        let policies = Policies::new();
        let same = policies.add("same", &onnx::one_plus(&SHAPE));
        let daemon = case.config().model(model(&policies.add("good", &onnx::plus_one(&SHAPE)))).start();
        let mut robot = robot(case, &daemon);
        ask(&mut robot, STEEP, 32);
        let (before, workers) = (daemon.model("m"), process::children(daemon.pid()).len());
        let line = "reload m --path {} --shadow 32 --max-diff y=0.001 --dry-run";
        let told = inferctl(&daemon, line, &same).succeeded().out;
        assert!(told.contains("would go live") && told.contains("nothing was changed"), "{told}");
        let answer = inferctl(&daemon, &format!("{line} --json"), &same).succeeded().json();
        assert_eq!((&answer["verdict"]["accepted"], &answer["verdict"]["live"]), (&true.into(), &false.into()));
        assert_eq!((&answer["from_generation"], &answer["to_generation"]), (&1.into(), &1.into()));
        let after = daemon.model("m");
        let told = |m: &inferd_ipc::control::ModelAnswer| {
            (m.generation, m.worker_pid, m.sha256.clone(), m.kept_generation, m.live_path.clone())
        };
        assert_eq!(told(&before), told(&after));
        within(ms(10_000), "the candidate is gone", || process::children(daemon.pid()).len() == workers);
        assert_eq!(daemon.history("m")[0].generation, 1);
        assert_eq!(ask(&mut robot, STEEP, 1), (STEEP + 1.0, 1));
    }

    fn the_configured_gate_holds_where_the_command_says_nothing(case) {
        let policies = Policies::new();
        let bad = policies.add("bad", &onnx::plus_one_up_to(LIMIT, &SHAPE));
        let gated = model(&policies.add("good", &onnx::plus_one(&SHAPE)))
            .config("gate", "{ shadow = 32, max_diff = { y = 0.001 } }");
        let daemon = case.config().model(gated).start();
        let mut robot = robot(case, &daemon);
        ask(&mut robot, STEEP, 32);
        let refused = inferctl(&daemon, "reload m --path {}", &bad).refused(&["output y differs by 10"]);
        assert_eq!(refused.code, Some(REFUSED));
        // A command's own words win: a bound that is wide enough, and no shadow at all.
        inferctl(&daemon, "reload m --path {} --max-diff y=11 --dry-run", &bad).succeeded();
        inferctl(&daemon, "reload m --path {} --shadow 0", &bad).succeeded();
        assert_eq!(ask(&mut robot, STEEP, 1), (LIMIT + 1.0, 2));
    }
}
