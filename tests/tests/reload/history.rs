//! Rollback, the history that outlives the daemon, what a restart serves, and drift.

use super::{LIMIT, Policies, REFUSED, SHAPE, STEEP, ask, inferctl, model, robot};
use inferd_ipc::control::HistoryEntry;
use inferd_tests::{Daemon, ms, onnx, scenarios, within};

fn causes(history: &[HistoryEntry]) -> Vec<(u32, &str)> {
    history.iter().map(|e| (e.generation, e.cause.as_str())).collect()
}

/// The store's thread has written the live generation down.
fn until_stored(daemon: &Daemon) {
    within(ms(10_000), "the live generation is stored", || {
        daemon.history("m").iter().find(|e| e.went_live_unix_ms.is_some()).is_some_and(|e| e.stored)
    });
}

scenarios! {
    fn a_rollback_takes_the_previous_generation_back_alive_or_from_disk(case) {
        for keep in ["true", "\"disk\""] {
            let policies = Policies::new();
            let other = policies.add("other", &onnx::plus_one_up_to(LIMIT, &SHAPE));
            let good = model(&policies.add("good", &onnx::plus_one(&SHAPE))).config("keep_previous", keep);
            let daemon = case.config().model(good).start();
            let mut robot = robot(case, &daemon);
            assert_eq!(ask(&mut robot, STEEP, 1), (STEEP + 1.0, 1));
            until_stored(&daemon);
            inferctl(&daemon, "reload m --path {}", &other).succeeded();
            assert_eq!(ask(&mut robot, STEEP, 1), (LIMIT + 1.0, 2));
            assert_eq!(daemon.model("m").kept_generation, Some(1), "{keep}");
            let answer = inferctl(&daemon, "rollback m --json", &other).succeeded().json();
            let live = answer["to_generation"].as_u64().expect("a number");
            assert_eq!(ask(&mut robot, STEEP, 1), (STEEP + 1.0, live), "{keep}");
            let table = inferctl(&daemon, "history m", &other).succeeded().out;
            for word in ["rollback", "reload", "start", "live", "rolled back to"] {
                assert!(table.contains(word), "{word:?} is not in:\n{table}");
            }
            assert!(table.lines().all(|line| line.chars().count() <= 80), "wider than a terminal:\n{table}");
        }
    }

    fn a_restart_serves_the_last_live_generation_and_says_that_it_is_not_the_configured_one(case) {
        let policies = Policies::new();
        let other = policies.add("other", &onnx::plus_one_up_to(LIMIT, &SHAPE));
        let good = policies.add("good", &onnx::plus_one(&SHAPE));
        let mut daemon = case.config().model(model(&good)).start();
        let uid = nix::unistd::geteuid().as_raw();
        inferctl(&daemon, "reload m --path {}", &other).succeeded();
        let refused = inferctl(&daemon, "reload m --path /no/such/model", &other);
        assert!(refused.code.is_some_and(|code| code != 0), "{refused:#?}");
        until_stored(&daemon);
        let before = daemon.history("m");
        assert_eq!(causes(&before), [(0, "reload"), (2, "reload"), (1, "start")], "{before:#?}");
        assert_eq!(before[1].by_uid, Some(uid));
        assert!(before[1].verdict.accepted && before[1].ended.is_none(), "{before:#?}");
        assert!(before[2].ended.as_ref().is_some_and(|how| how.contains("replaced by 2")), "{before:#?}");
        assert!(!before[0].verdict.reasons.is_empty(), "{before:#?}");
        // The file it came from may be gone: the store has it.
        std::fs::remove_dir_all(&other).expect("our own folder");
        daemon.stop();
        daemon.start();
        let mut first = robot(case, &daemon);
        assert_eq!(ask(&mut first, STEEP, 1), (LIMIT + 1.0, 2), "what served last serves again, under its number");
        let after = daemon.history("m");
        assert!(after.len() >= before.len(), "nothing is forgotten: {after:#?}");
        assert_eq!(after[after.len() - 3..].iter().map(|e| &e.sha256).collect::<Vec<_>>(),
            before.iter().map(|e| &e.sha256).collect::<Vec<_>>());
        let drift = daemon.model("m").drift.expect("the configured file is another one");
        assert!(drift.contains("inferctl reload m --path"), "{drift}");
        let table = inferctl(&daemon, "models", &good).succeeded().out;
        assert!(table.contains("the configured file has hash"), "{table}");
        // Numbering goes on from there, and the configured file ends the drift.
        let answer = inferctl(&daemon, "reload m --path {} --json", &good).succeeded().json();
        assert_eq!(answer["to_generation"], 3, "{answer}");
        assert_eq!((ask(&mut first, STEEP, 1), daemon.model("m").drift), ((STEEP + 1.0, 3), None));
    }

    fn a_restart_serves_another_path_once_the_configuration_names_it(case) {
        let policies = Policies::new();
        let other = policies.add("other", &onnx::plus_one_up_to(LIMIT, &SHAPE));
        let good = policies.add("good", &onnx::plus_one(&SHAPE));
        let mut daemon = case.config().model(model(&good)).start();
        until_stored(&daemon);
        daemon.stop();
        daemon.change(model(&other));
        daemon.start();
        let mut robot = robot(case, &daemon);
        assert_eq!(ask(&mut robot, STEEP, 1), (LIMIT + 1.0, 2), "the operator's word, and the next number");
        assert_eq!(daemon.model("m").drift, None);
    }

    fn a_rollback_without_a_previous_generation_is_refused_with_the_remedy(case) {
        let policies = Policies::new();
        let good = policies.add("good", &onnx::plus_one(&SHAPE));
        let daemon = case.config().model(model(&good)).start();
        let refused = inferctl(&daemon, "rollback m", &good).refused(&["previous generation"]);
        assert_eq!(refused.code, Some(REFUSED), "{refused:#?}");
    }
}
