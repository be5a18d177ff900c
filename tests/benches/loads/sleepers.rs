//! How an executor sleeps over many sessions: `futex_waitv` against epoll over their doorbell sockets.
//!
//! The same daemon twice, with `waiting = "auto"` and `"epoll"`; one session calls, the others are there. Both sides sleep at
//! once, so that every call pays for one sleep and one wake of the executor over all its sessions.

use crate::many::{attach, daemon, echo_call};
use inferd_client::Session;
use inferd_tests::bench::blocks::{Until, measure};
use inferd_tests::bench::{CLIENT_CPU, Entry, Kind, Limit, Lines, Row, pause, pin, process_cpu_ns, timed};
use inferd_tests::{Daemon, Model};

const SESSIONS: [usize; 5] = [1, 4, 16, 64, 120];
const COUNT: usize = 400;

/// Runs the row, if it was asked for.
pub fn rows(lines: &Lines, cpu: usize) {
    if !lines.wants("waitv") && !lines.wants("epoll") {
        return;
    }
    let model = || Model::echo("m").config("cpu", &cpu.to_string()).config("spin_us", "0");
    let ways = ["auto", "epoll"];
    let start = |way: &str| daemon(&[("ipc", &format!("waiting = {way:?}"))], std::iter::once(model()));
    let daemons = ways.map(start);
    pin(CLIENT_CPU);
    let mut sessions: [Vec<Session>; 2] = [Vec::new(), Vec::new()];
    for n in SESSIONS {
        for (daemon, sessions) in daemons.iter().zip(&mut sessions) {
            sessions.extend((sessions.len()..n).map(|_| attach(daemon, "m", 4, 0)));
        }
        one(lines, n, &daemons, &mut sessions, cpu);
    }
}

fn one(lines: &Lines, n: usize, daemons: &[Daemon; 2], sessions: &mut [Vec<Session>; 2], cpu: usize) {
    let mut limit = Limit::start(Kind::Futex, cpu);
    let workers = [0, 1].map(|i| daemons[i].worker("m"));
    let [first, second] = sessions.each_mut().map(|s| &mut s[0]);
    let call = |session: &mut Session| {
        pause();
        timed(|| echo_call(session))
    };
    let mut by_futex = || call(first);
    let mut by_epoll = || call(second);
    let before = workers.map(process_cpu_ns);
    let mut entries = [
        Entry { cpu: CLIENT_CPU, count: COUNT, call: &mut by_futex },
        Entry { cpu: CLIENT_CPU, count: COUNT, call: &mut by_epoll },
    ];
    let measured = measure(&mut limit, COUNT, Until::sleeping(8_000, 4.0), &mut entries);
    for (i, system) in ["futex_waitv", "epoll"].into_iter().enumerate() {
        let spent = process_cpu_ns(workers[i]) - before[i];
        let f = measured.figures(i);
        let (word, title) = (format!("waitv/{n}"), format!("echo 64 B, asleep over {n} sessions"));
        lines.row(Row::sleeping(&word, &title, [64, 64]).of(system), &f);
        lines.point("waitv", &format!("{system}, p50"), n as f64, f.at(0.5), "ns");
        // Every block has a tenth more calls before it, and the first round of blocks is not among the figures.
        let calls = (f.blocks.1 + 1) * (COUNT + COUNT / 10);
        lines.point(
            "waitv_cpu",
            &format!("{system}, worker's processor time a call"),
            n as f64,
            spent as f64 / calls as f64,
            "ns",
        );
    }
}
