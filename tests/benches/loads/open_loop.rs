//! A control loop's view: calls at 50 to 1,000 Hz with default settings, beside a bare futex ping-pong driven the same way.
//!
//! Nothing is pinned and nothing is configured: between two ticks caches cool, CPUs doze and everybody sleeps. Ticks are
//! absolute deadlines. A call that is due while the one before it is unanswered counts from when it was due, so that a slow answer
//! cannot hide the calls that it held up; what the timer itself was late by counts for nobody, and stands apart.
//! Windows of a second alternate. Processor time is that of our thread and of the other process.

use crate::many::echo_call;
use inferd_client::{AttachOptions, Queue, Session};
use inferd_ipc::layout::Backing;
use inferd_ipc::sys::thread_cpu_ns;
use inferd_tests::bench::{
    CLIENT_CPU, Figures, Kind, Limit, Lines, Row, cdf_of, histogram, now, pin, process_cpu_ns, scale, scaled, unpin,
};
use inferd_tests::{Daemon, DaemonConfig, Model};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, ClockNanosleepFlags, clock_nanosleep};
use serde_json::{Map, json};

/// Ticks a second, and windows of a second of each system.
const RATES: [(u64, usize); 4] = [(50, 8), (200, 8), (500, 8), (1000, 20)];
/// Windows of the variants.
const VARIANT_WINDOWS: usize = 4;
/// Executor and client spin for so long: not at all, longer than a tick.
const SPINS_US: [u32; 2] = [0, 2000];

/// A robot gives up a tick that is overdue by so much.
const OVERDUE_NS: u64 = 100_000_000;

/// What one system did at one rate.
struct Seen {
    name: String,
    latency: hdrhistogram::Histogram<u64>,
    timer: hdrhistogram::Histogram<u64>,
    ours_ns: u64,
    theirs_ns: u64,
    wall_ns: u64,
    /// Ticks that were given up.
    missed: u64,
}

impl Seen {
    fn new(name: &str) -> Seen {
        let [latency, timer] = [histogram(), histogram()];
        Seen { name: name.to_owned(), latency, timer, ours_ns: 0, theirs_ns: 0, wall_ns: 0, missed: 0 }
    }
}

/// One system under test: what a tick does, and whose processor time counts.
struct System<'a> {
    pid: u32,
    /// The CPU of our thread in its windows; any, where nothing is said.
    cpu: Option<usize>,
    tick: Box<dyn FnMut() + 'a>,
    seen: Seen,
}

impl<'a> System<'a> {
    fn new(name: &str, pid: u32, tick: impl FnMut() + 'a) -> System<'a> {
        System { pid, cpu: None, tick: Box::new(tick), seen: Seen::new(name) }
    }

    /// A window of a second, or less where the rows are only to be run at all.
    fn window(&mut self, rate_hz: u64) {
        self.cpu.map_or_else(unpin, pin);
        let period_ns = 1_000_000_000 / rate_hz;
        let (ours, theirs, start) = (thread_cpu_ns(), process_cpu_ns(self.pid), now());
        let mut answered = 0;
        let ticks = (rate_hz as f64 * (10.0 * scale()).min(1.0)).max(2.0) as u64;
        for tick in 1..=ticks {
            let due = start + tick * period_ns;
            if now() > due + OVERDUE_NS {
                self.seen.missed += 1;
                continue;
            }
            sleep_until(due);
            let sent = now();
            (self.tick)();
            // The one before it held this one up: then it counts from when it was due.
            let from = if answered > due { due } else { sent };
            answered = now();
            self.seen.latency.saturating_record(answered - from);
            if from == sent {
                self.seen.timer.saturating_record(sent.saturating_sub(due).max(1));
            }
        }
        self.seen.ours_ns += thread_cpu_ns() - ours;
        self.seen.theirs_ns += process_cpu_ns(self.pid) - theirs;
        self.seen.wall_ns += now() - start;
    }
}

fn sleep_until(due_ns: u64) {
    let due = TimeSpec::new((due_ns / 1_000_000_000) as i64, (due_ns % 1_000_000_000) as i64);
    // A signal ends a sleep early: the loop sleeps again.
    while clock_nanosleep(ClockId::CLOCK_MONOTONIC, ClockNanosleepFlags::TIMER_ABSTIME, &due).is_err() {}
}

/// Runs the rates that were asked for.
pub fn rows(lines: &Lines, cpu: usize) {
    let wanted = |hz: u64| lines.wants(&format!("open_loop/{hz}Hz"));
    if !RATES.iter().any(|r| wanted(r.0)) {
        return;
    }
    unpin();
    let models = SPINS_US.iter().map(|us| Model::echo(&format!("spin{us}")).config("spin_us", &us.to_string()));
    let apart = Model::echo("apart").config("cpu", &cpu.to_string());
    let config = DaemonConfig::new(Backing::Memfd).model(Model::echo("defaults")).model(apart);
    let daemon = models.fold(config, DaemonConfig::model).start();
    for (hz, windows) in RATES.into_iter().filter(|r| wanted(r.0)) {
        rate(lines, &daemon, hz, windows);
        if hz == RATES[0].0 || hz == RATES[RATES.len() - 1].0 {
            variants(lines, &daemon, hz);
        }
    }
    unpin();
}

fn attach(daemon: &Daemon, model: &str) -> Session {
    let options = AttachOptions::new(model).runtime_dir(daemon.runtime_dir()).queue(Queue::InOrder);
    Session::attach(options).unwrap_or_else(|e| panic!("attach {model}: {e}"))
}

fn rate(lines: &Lines, daemon: &Daemon, hz: u64, windows: usize) {
    let mut limit = Limit::start_anywhere(Kind::Futex);
    let mut session = attach(daemon, "defaults");
    let peer = limit.pid();
    let mut systems = vec![
        System::new("futex ping-pong", peer, || {
            limit.bounce(false);
        }),
        System::new("inferd", daemon.worker("defaults"), || echo_call(&mut session)),
    ];
    alternate(&mut systems, hz, windows);
    let [futex, inferd] = &systems[..] else { return };
    report(lines, hz, &inferd.seen, &futex.seen);
    report(lines, hz, &futex.seen, &futex.seen);
    if hz == 1000 {
        let at = |seen: &Seen| seen.latency.value_at_quantile(0.999) as f64;
        let bar = "1 kHz, default settings: p99.9 <= 1.5 x the futex ping-pong's, ns";
        lines.bar("open_loop/1000Hz", bar, at(&inferd.seen), 1.5 * at(&futex.seen));
    }
}

/// Other settings at the same rate: spinning for less and for longer, and both sides on CPUs of their own.
fn variants(lines: &Lines, daemon: &Daemon, hz: u64) {
    let mut limit = Limit::start_anywhere(Kind::Futex);
    let peer = limit.pid();
    let spins = SPINS_US.iter().map(|us| (format!("spin{us}"), format!("inferd, spin_us = {us}"), None));
    let apart = ("apart".to_owned(), "inferd, each on a CPU".to_owned(), Some(CLIENT_CPU));
    let mut sessions: Vec<_> = spins
        .chain([apart])
        .map(|(model, title, cpu)| (attach(daemon, &model), daemon.worker(&model), title, cpu))
        .collect();
    let mut systems: Vec<System<'_>> = sessions
        .iter_mut()
        .map(|(session, pid, title, cpu)| System { cpu: *cpu, ..System::new(title, *pid, || echo_call(session)) })
        .collect();
    systems.push(System::new("futex ping-pong", peer, || {
        limit.bounce(false);
    }));
    alternate(&mut systems, hz, VARIANT_WINDOWS);
    let futex = systems.pop().expect("the last of them");
    systems.iter().for_each(|system| report(lines, hz, &system.seen, &futex.seen));
}

/// Windows of all systems in turns; the first round warms up.
fn alternate(systems: &mut [System<'_>], hz: u64, windows: usize) {
    for round in 0..=scaled(windows, 1) {
        for system in &mut *systems {
            system.window(hz);
            if round == 0 {
                system.seen = Seen::new(&system.seen.name);
            }
        }
    }
}

fn report(lines: &Lines, hz: u64, seen: &Seen, futex: &Seen) {
    let (word, title) = (format!("open_loop/{hz}Hz"), format!("echo 64 B at {hz} Hz"));
    let row = Row { limit: "futex ping-pong", waits: "sleeps", ..Row::spinning(&word, &title, [64, 64]) };
    let median = |h: &hdrhistogram::Histogram<u64>| h.value_at_quantile(0.5) as f64;
    let f = Figures {
        row: seen.latency.clone(),
        limit: futex.latency.clone(),
        apart: [histogram(), histogram()],
        ratio: median(&seen.latency) / median(&futex.latency),
        blocks: (1, 1),
    };
    let calls = seen.latency.len() as f64;
    let of_one_cpu = |ns: u64| ns as f64 / seen.wall_ns.max(1) as f64 * 100.0;
    let more = json!({
        "p999_ratio": f.at(0.999) / f.limit_at(0.999),
        "timer_p50_ns": median(&seen.timer), "timer_p999_ns": seen.timer.value_at_quantile(0.999),
        "cpu_caller_ns": seen.ours_ns as f64 / calls, "cpu_server_ns": seen.theirs_ns as f64 / calls,
        "cpu_percent": of_one_cpu(seen.ours_ns + seen.theirs_ns), "rate_hz": hz, "missed": seen.missed, "cdf": cdf_of(&seen.latency),
    });
    let more: Map<String, serde_json::Value> = more.as_object().cloned().unwrap_or_default();
    lines.row_with(row.of(&seen.name), &f, more);
    println!(
        "    {}: {} ticks given up; {:.1} us of processor time a call, {:.1} us of it the server's; {:.1} % of one CPU",
        seen.name,
        seen.missed,
        (seen.ours_ns + seen.theirs_ns) as f64 / calls / 1e3,
        seen.theirs_ns as f64 / calls / 1e3,
        of_one_cpu(seen.ours_ns + seen.theirs_ns)
    );
}
