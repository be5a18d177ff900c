//! The examples that a user starts from run as they stand, in both languages, against a live daemon.

use inferd_ipc::layout::Backing;
use inferd_tests::places::program;
use inferd_tests::{Daemon, DaemonConfig, Model, skip};

/// Where the examples of a language lie, below the folder of programs.
const LANGUAGES: [(&str, &str); 2] = [("rust", "examples"), ("c", "../c")];

fn daemon() -> Daemon {
    DaemonConfig::new(Backing::Memfd).model(Model::echo("m").queue(4, "in_order")).start()
}

/// Runs `check` with the folder of each language whose examples are built.
fn in_each_language(test: &str, example: &str, check: impl Fn(&str)) {
    for (language, folder) in LANGUAGES {
        if inferd_tests::places::bin_dir().join(folder).join(example).exists() {
            check(folder);
        } else {
            skip(&format!("{test}::{language}"), "not built; `make examples` builds it");
        }
    }
}

#[test]
fn the_minimal_example_prints_an_action() {
    let _turn = inferd_tests::turn();
    let daemon = daemon();
    in_each_language("the_minimal_example_prints_an_action", "minimal", |folder| {
        let ran = daemon.tool(&format!("{folder}/minimal"), &["m"]).succeeded();
        assert!(ran.out.contains("y[0] = 0"), "{ran:?}");
        daemon.tool(&format!("{folder}/minimal"), &["nobody"]).refused(&["nobody"]);
    });
}

#[test]
fn the_robot_example_runs_its_loop_and_accounts_for_every_request() {
    let _turn = inferd_tests::turn();
    let daemon = daemon();
    let dir = daemon.runtime_dir();
    let dir = dir.to_str().expect("a path of ours");
    in_each_language("the_robot_example_runs_its_loop", "robot", |folder| {
        assert!(program(&format!("{folder}/robot")).exists());
        let options =
            ["--model", "m", "--rate", "500", "--seconds", "1", "--timeout-us", "20000", "--runtime-dir", dir];
        let ran = daemon.tool(&format!("{folder}/robot"), &options).succeeded();
        for line in ["submit to action [us]: p50", "outcomes:  ok", "generations: 1"] {
            assert!(ran.out.contains(line), "{line}: {ran:?}");
        }
    });
}
