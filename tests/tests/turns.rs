//! Rule 8 of `docs/semantics.md`: many sessions, many models, and the turns that the executor takes.
//!
//! Sessions of one model take turns by uid, then by session, one step per turn. Shares are measured
//! with a run that is long beside everything else, so that they do not depend on the machine.

use inferd_tests::{Client, Driver, Model, ms, scenarios, skip};
use std::os::unix::fs::PermissionsExt;

/// Uid and gid of the other robot; nobody's account is needed.
const OTHER_UID: u32 = 65_533;

/// Runs loops side by side and returns how many `ok` each got.
fn shares(robots: &mut [Driver], command: &str) -> Vec<u64> {
    robots.iter_mut().for_each(|r| r.begin(command));
    let summaries = robots.iter_mut().map(|r| r.finish(ms(30_000)).clean());
    summaries.map(|s| s.count("ok")).collect()
}

scenarios! {
    fn rule_8_sessions_of_one_uid_get_equal_shares_and_wait_one_round_at_most(case) {
        let model = Model::echo("m").queue(4, "in_order").option("sleep_us", 2_000);
        let daemon = case.config().model(model).start();
        let mut robots: Vec<_> = (0..4).map(|_| case.attached(&daemon, "model=m slots=4")).collect();
        // The greedy ones keep four requests in flight, the modest one a single one.
        robots[..3].iter_mut().for_each(|r| r.begin("loop seconds=2 depth=4 check=echo"));
        let modest = robots[3].ok("loop seconds=1.8 depth=1 check=echo").clean();
        let greedy: Vec<u64> = robots[..3].iter_mut().map(|r| r.finish(ms(30_000)).clean().count("ok")).collect();
        let (least, most) = (greedy.iter().min().copied().unwrap_or(0), greedy.iter().max().copied().unwrap_or(0));
        assert!(least * 10 >= most * 8, "unequal: {greedy:?}");
        // Three competitors and its own run; sleeping runs last about 2.1 ms.
        assert!(modest.number("p50_ns") <= 11_000_000, "{}", modest.json);
        assert!(modest.count("ok") * 10 >= least * 6, "{} of {greedy:?}", modest.count("ok"));
    }

    fn many_clients_on_one_model_and_many_models_answer_everybody(case) {
        let mut config = case.config();
        for m in 0..4 {
            let queue = if m % 2 == 0 { "in_order" } else { "latest" };
            config = config.model(Model::echo(&format!("m{m}")).queue(4, queue));
        }
        let daemon = config.start();
        let mut robots: Vec<_> = (0..12).map(|i| case.attached(&daemon, &format!("model=m{}", i % 4))).collect();
        for (i, robot) in robots.iter_mut().enumerate() {
            robot.begin(&format!("loop seconds=2 rate_hz=200 depth=2 check=echo seed={}", i * 100_000));
        }
        for robot in &mut robots {
            let summary = robot.finish(ms(30_000)).clean();
            // Of 400: twelve busy clients and their workers share what CPUs there are.
            assert!(summary.count("ok") > 100, "{}", summary.json);
            assert_eq!(summary.count("ok") + summary.count("superseded"), summary.number("sent"), "{}", summary.json);
        }
        assert_eq!(daemon.sessions().len(), 12);
    }
}

fn by_uid(client: Client) {
    let name = format!("rule_8_turns_go_by_uid_first::{}", client.name());
    if !inferd_tests::skip::is_root() {
        return skip(&name, "only root can run a client under another uid");
    }
    let Some(program) = client.program() else {
        return skip(&name, "the driver of this client is not built (make build)");
    };
    let _turn = inferd_tests::turn();
    let model = Model::echo("m").queue(4, "in_order").option("sleep_us", 2_000);
    let config = inferd_tests::DaemonConfig::new(inferd_ipc::layout::Backing::Memfd).model(model);
    let daemon = config.set("daemon", "attach_mode = \"0666\"").start();
    // The build folder may lie where only its owner may look.
    let copy = daemon.dir().join("driver");
    std::fs::copy(&program, &copy).expect("our own folder");
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755)).expect("our own file");
    std::fs::set_permissions(daemon.runtime_dir(), std::fs::Permissions::from_mode(0o755)).expect("our own folder");
    let mut robots: Vec<Driver> = (0..3).map(|_| Driver::start(&program, &daemon.runtime_dir())).collect();
    robots.push(Driver::start_as(OTHER_UID, OTHER_UID, &copy, &daemon.runtime_dir()));
    robots.iter_mut().for_each(|r| drop(r.ok("attach model=m slots=4")));
    let uids: Vec<u32> = daemon.sessions().iter().map(|s| s.uid).collect();
    assert_eq!(uids.iter().filter(|u| **u == OTHER_UID).count(), 1, "{uids:?}");
    let got = shares(&mut robots, "loop seconds=2 depth=4 check=echo");
    let (one, others) = (got[3], got[..3].iter().sum::<u64>());
    assert!(one * 10 >= others * 8 && others * 10 >= one * 8, "half for each uid: {got:?}");
}

#[test]
fn rule_8_turns_go_by_uid_first_rust() {
    by_uid(Client::Rust);
}

#[test]
fn rule_8_turns_go_by_uid_first_c() {
    by_uid(Client::C);
}
