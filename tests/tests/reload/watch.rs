//! `watch = true`: a file that was changed whole is a reload with the configured gate, a half-written one is nothing.

use super::{LIMIT, Policies, SHAPE, STEEP, ask, model, robot};
use inferd_tests::{ms, onnx, scenarios, within};
use std::fs;
use std::io::Write;

scenarios! {
    fn a_file_that_is_still_being_written_is_not_loaded_and_a_renamed_one_is(case) {
        let policies = Policies::new();
        let good = policies.add("good", &onnx::plus_one(&SHAPE));
        let file = good.join("policy.onnx");
        let daemon = case.config().model(model(&good).config("watch", "true")).start();
        let mut robot = robot(case, &daemon);
        // Written in place, a few bytes at a time.
        let next = onnx::one_plus(&SHAPE);
        let mut slow = fs::File::create(&file).expect("our own file");
        for piece in next.chunks(next.len().div_ceil(40)) {
            slow.write_all(piece).expect("our own file");
            std::thread::sleep(ms(40));
            assert_eq!(daemon.model("m").generation, 1, "half a file must not be loaded");
        }
        drop(slow);
        within(ms(20_000), "the finished file is live", || daemon.model("m").generation == 2);
        // Renamed into place.
        let aside = good.join("policy.next");
        fs::write(&aside, onnx::plus_one_up_to(LIMIT, &SHAPE)).expect("our own file");
        fs::rename(&aside, &file).expect("our own file");
        within(ms(20_000), "the renamed file is live", || daemon.model("m").generation == 3);
        assert_eq!(ask(&mut robot, STEEP, 1), (LIMIT + 1.0, 3));
        let history = daemon.history("m");
        let causes: Vec<_> = history.iter().map(|e| (e.generation, e.cause.as_str())).collect();
        assert_eq!(causes, [(3, "watch"), (2, "watch"), (1, "start")], "{history:#?}");
    }

    fn a_watched_file_passes_the_configured_gate_or_is_refused(case) {
        let policies = Policies::new();
        let good = policies.add("good", &onnx::plus_one(&SHAPE));
        let watched =
            model(&good).config("watch", "true").config("gate", "{ shadow = 32, max_diff = { y = 0.001 } }");
        let daemon = case.config().model(watched).start();
        let mut robot = robot(case, &daemon);
        ask(&mut robot, STEEP, 32);
        let aside = good.join("policy.next");
        fs::write(&aside, onnx::plus_one_up_to(LIMIT, &SHAPE)).expect("our own file");
        fs::rename(&aside, good.join("policy.onnx")).expect("our own file");
        within(ms(20_000), "the attempt is in the history", || daemon.history("m").len() == 2);
        let attempt = daemon.history("m").remove(0);
        assert_eq!((attempt.cause.as_str(), attempt.verdict.accepted, attempt.by_uid), ("watch", false, None));
        assert!(attempt.verdict.reasons[0].contains("output y differs"), "{attempt:#?}");
        assert_eq!(ask(&mut robot, STEEP, 1), (STEEP + 1.0, 1), "the live generation answers on");
        assert!(daemon.model("m").drift.is_some(), "the configured file is not what serves");
    }
}
