//! More of something: sessions on one executor, idle sessions beside an active one, models, requests in flight.
//!
//! Every number of sessions has a model, and thus an executor, of its own; blocks of all of them alternate, each beside a
//! block of the baseline, so that a ratio is of blocks that were neighbours. One thread submits for all sessions of a row and then waits for
//! each: as many requests are in flight as there are sessions.

use inferd_client::{AttachOptions, Outcome, Queue, Session, Ticket};
use inferd_ipc::layout::Backing;
use inferd_tests::bench::blocks::{TIGHT, Until, measure, quantile_of};
use inferd_tests::bench::{CLIENT_CPU, Entry, Kind, Limit, Lines, Row, median, now, pause, pin, scaled, timed, unpin};
use inferd_tests::{Daemon, DaemonConfig, Model};
use std::time::Duration;

const SESSIONS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
const IDLE: [usize; 7] = [0, 1, 3, 7, 15, 31, 63];
const MODELS: [usize; 4] = [1, 2, 4, 8];
/// Requests in a block.
const REQUESTS: usize = 6_400;
const ROUNDS: usize = 40;
/// An executor that spun for a block sleeps before the next one's.
const SETTLE: Duration = Duration::from_millis(4);
const SLOTS_MAX: usize = 64;

/// Runs the rows that were asked for.
pub fn rows(lines: &Lines, cpu: usize) {
    if lines.wants("sessions") {
        throughput(lines, cpu);
    }
    if lines.wants("idle") {
        idle(lines, cpu);
    }
    if lines.wants("models") {
        models(lines, cpu);
    }
}

fn echo(name: &str, cpu: usize) -> Model {
    Model::echo(name).config("slots", "64").config("cpu", &cpu.to_string()).config("spin_us", "2000")
}

/// A daemon with these models, and settings of its sections.
pub fn daemon(settings: &[(&str, &str)], models: impl Iterator<Item = Model>) -> Daemon {
    unpin();
    let config = DaemonConfig::new(Backing::Memfd);
    let config = settings.iter().fold(config, |config, (section, line)| config.set(section, line));
    models.fold(config, DaemonConfig::model).start()
}

pub fn attach(daemon: &Daemon, model: &str, slots: usize, spin_us: u32) -> Session {
    let options = AttachOptions::new(model).runtime_dir(daemon.runtime_dir()).queue(Queue::InOrder).spin_us(spin_us);
    Session::attach(options.slots(slots as u32)).unwrap_or_else(|e| panic!("attach {model}: {e}"))
}

fn submit(session: &mut Session) -> Ticket {
    let mut request = session.request().expect("a slot");
    request.write(0, &[1.0f32; 16]).expect("an input");
    request.submit().expect("published")
}

fn finish(session: &mut Session, ticket: Ticket) {
    let outcome = session.wait(ticket, Some(Duration::from_secs(1))).expect("an answer");
    let Outcome::Reply(reply) = outcome else { panic!("superseded in order") };
    let mut output = [0.0f32; 16];
    reply.copy_output(0, &mut output).expect("an action");
    assert!(output[0] > 0.5, "an echo");
}

pub fn echo_call(session: &mut Session) {
    let ticket = submit(session);
    finish(session, ticket);
}

/// Some sessions of one model, and how many requests each has in flight.
struct Crowd {
    sessions: Vec<Session>,
    in_flight: usize,
    rates: Vec<f64>,
    waits: Vec<f64>,
}

impl Crowd {
    fn new(daemon: &Daemon, model: &str, sessions: usize, in_flight: usize) -> Crowd {
        let sessions = (0..sessions).map(|_| attach(daemon, model, in_flight, 2000)).collect();
        Crowd { sessions, in_flight, rates: Vec::new(), waits: Vec::new() }
    }

    /// Requests a second over a block; remembers the median wait from submitting to the reply.
    fn block(&mut self) {
        let each = self.sessions.len() * self.in_flight;
        let rounds = (REQUESTS / each).max(1);
        let (mut tickets, mut waits) = (Vec::with_capacity(each), Vec::with_capacity(rounds * each));
        let mut start = now();
        // A tenth more before, to wake the executor.
        for round in 0..rounds + rounds / 10 + 1 {
            if round == rounds / 10 + 1 {
                start = now();
                waits.clear();
            }
            for session in &mut self.sessions {
                tickets.extend((0..self.in_flight).map(|_| (now(), submit(session))));
            }
            for (i, (sent, ticket)) in tickets.drain(..).enumerate() {
                finish(&mut self.sessions[i / self.in_flight], ticket);
                waits.push(now() - sent);
            }
        }
        self.rates.push((rounds * each) as f64 / ((now() - start) as f64 / 1e9));
        self.waits.push(median(&waits));
        std::thread::sleep(SETTLE);
    }
}

/// Median over the rounds of one's rate over the other's, whose block was its neighbour.
fn ratio(crowd: &Crowd, baseline: &Crowd) -> f64 {
    quantile_of(crowd.rates.iter().zip(&baseline.rates).map(|(a, b)| a / b).collect(), 0.5)
}

fn throughput(lines: &Lines, cpu: usize) {
    let name = |n: usize| format!("m{n}");
    // Two daemons: one would give a uid fewer sessions than both kinds want.
    let models = || SESSIONS.iter().map(|n| echo(&name(*n), cpu));
    let (of_many, of_one) = (daemon(&[], models()), daemon(&[], models()));
    pin(CLIENT_CPU);
    let mut many: Vec<Crowd> = SESSIONS.iter().map(|n| Crowd::new(&of_many, &name(*n), *n, 1)).collect();
    let mut piped: Vec<Crowd> = SESSIONS.iter().map(|n| Crowd::new(&of_one, &name(*n), 1, *n)).collect();
    // The first round warms up.
    for round in 0..=scaled(ROUNDS, 1) {
        for crowd in many.iter_mut().zip(&mut piped).flat_map(|(a, b)| [a, b]) {
            crowd.block();
            if round == 0 {
                crowd.rates.clear();
                crowd.waits.clear();
            }
        }
    }
    for ((n, many), piped) in SESSIONS.iter().zip(&many).zip(&piped) {
        let x = *n as f64;
        let rate = |c: &Crowd| quantile_of(c.rates.clone(), 0.5);
        lines.point("sessions", "sessions with one request in flight", x, rate(many), "1/s");
        lines.point("sessions", "one session with as many in flight", x, rate(piped), "1/s");
        lines.point(
            "sessions_wait",
            "sessions with one request in flight",
            x,
            quantile_of(many.waits.clone(), 0.5),
            "ns",
        );
        lines.point(
            "sessions_wait",
            "one session with as many in flight",
            x,
            quantile_of(piped.waits.clone(), 0.5),
            "ns",
        );
    }
    let (last, one) = (&many[SESSIONS.len() - 1], &many[0]);
    let bar = "throughput of 64 sessions >= 0.9 x one session's with one request in flight (ratio)";
    lines.bar_at_least("sessions", bar, ratio(last, one), 0.9);
    let bar = format!("throughput of 64 sessions >= 0.9 x one session's with {SLOTS_MAX} in flight (ratio)");
    lines.bar_at_least("sessions", &bar, ratio(last, &piped[SESSIONS.len() - 1]), 0.9);
}

fn idle(lines: &Lines, cpu: usize) {
    let name = |n: usize| format!("m{n}");
    let daemon = daemon(&[], IDLE.iter().map(|n| echo(&name(*n), cpu)));
    pin(CLIENT_CPU);
    let idle: Vec<Session> =
        IDLE.iter().flat_map(|n| (0..*n).map(|_| attach(&daemon, &name(*n), 4, 2000)).collect::<Vec<_>>()).collect();
    let mut active: Vec<Session> = IDLE.iter().map(|n| attach(&daemon, &name(*n), 4, 2000)).collect();
    let mut calls: Vec<_> = active.iter_mut().map(|s| || timed(|| echo_call(s))).collect();
    let mut entries: Vec<Entry<'_>> =
        calls.iter_mut().map(|call| Entry { cpu: CLIENT_CPU, count: 2000, call }).collect();
    let mut limit = Limit::start(Kind::Spin, cpu);
    let measured = measure(&mut limit, 2000, Until::samples(200_000, 15.0, TIGHT), &mut entries);
    for (i, n) in IDLE.iter().enumerate() {
        let f = measured.figures(i);
        let (word, title) = (format!("idle/{n}"), format!("echo 64 B among {n} idle sessions"));
        lines.row(Row::spinning(&word, &title, [64, 64]), &f);
        lines.point("idle", "p50 over the p50 alone", *n as f64, measured.ratio(i, 0, 0.5), "");
    }
    let bar = "p50 among 63 idle sessions <= 1.3 x alone (ratio)";
    lines.bar("idle", bar, measured.ratio(IDLE.len() - 1, 0, 0.5), 1.3);
    drop(idle);
}

/// One model alone, and among others that nobody calls; then calls that go round: each model's executor sleeps meanwhile.
fn models(lines: &Lines, cpu: usize) {
    let daemons: Vec<Daemon> =
        MODELS.iter().map(|n| daemon(&[], (0..*n).map(|m| echo(&format!("m{m}"), cpu)))).collect();
    let asleep = |m: usize| echo(&format!("m{m}"), cpu).config("spin_us", "0");
    let sleeping = daemon(&[], (0..8).map(asleep));
    pin(CLIENT_CPU);
    let mut active: Vec<Session> = daemons.iter().map(|d| attach(d, "m0", 4, 2000)).collect();
    let mut calls: Vec<_> = active.iter_mut().map(|s| || timed(|| echo_call(s))).collect();
    let mut entries: Vec<Entry<'_>> =
        calls.iter_mut().map(|call| Entry { cpu: CLIENT_CPU, count: 2000, call }).collect();
    let mut limit = Limit::start(Kind::Spin, cpu);
    let measured = measure(&mut limit, 2000, Until::samples(200_000, 8.0, TIGHT), &mut entries);
    for (i, n) in MODELS.iter().enumerate() {
        let (word, title) = (format!("models/{n}"), format!("echo 64 B, one of {n} models"));
        lines.row(Row::spinning(&word, &title, [64, 64]), &measured.figures(i));
        lines.point("models", "p50 of one model over its p50 alone", *n as f64, measured.ratio(i, 0, 0.5), "");
    }
    drop(limit);
    let mut limit = Limit::start(Kind::Futex, cpu);
    let mut sets: Vec<Vec<Session>> =
        MODELS.iter().map(|n| (0..*n).map(|m| attach(&sleeping, &format!("m{m}"), 4, 0)).collect()).collect();
    let mut rounds: Vec<_> = sets
        .iter_mut()
        .map(|set| {
            let mut next = 0;
            move || {
                next = (next + 1) % set.len();
                pause();
                timed(|| echo_call(&mut set[next]))
            }
        })
        .collect();
    let mut entries: Vec<Entry<'_>> =
        rounds.iter_mut().map(|call| Entry { cpu: CLIENT_CPU, count: 200, call }).collect();
    let measured = measure(&mut limit, 200, Until::sleeping(5_000, 6.0), &mut entries);
    for (i, n) in MODELS.iter().enumerate() {
        let (word, title) = (format!("models_in_turn/{n}"), format!("echo 64 B, {n} models in turn, all asleep"));
        lines.row(Row::sleeping(&word, &title, [64, 64]), &measured.figures(i));
    }
}
