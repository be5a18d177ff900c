//! A control loop at a fixed rate: writes each observation in place, submits it with a deadline of one
//! cycle, waits, and takes the action, or the fallback on anything but an answer that is ok and in time.
//!
//! usage: robot [--model NAME] [--rate HZ] [--seconds S] [--timeout-us N] [--runtime-dir DIR]
//! At the end it prints percentiles, outcomes and generations. Exits 1 if nothing was served, or if the
//! number of outcomes differs from the number of requests. The loop neither allocates nor prints.

use inferd_client::{AttachOptions, DType, Error, Outcome, Reply, Session, Status, now_ns};
use std::process::ExitCode;
use std::time::Duration;

const NS_PER_S: f64 = 1e9;
/// Changes of the generation that are remembered.
const GENERATIONS_MAX: usize = 16;
/// What a request may end in, besides a reply with a status.
const OTHER_OUTCOMES: [&str; 4] = ["superseded", "daemon_lost", "timeout", "error"];

struct Options {
    model: String,
    runtime_dir: Option<String>,
    rate_hz: f64,
    seconds: f64,
    timeout: Duration,
}

struct Log {
    sent: u64,
    refused: u64,
    late: u64,
    fallbacks: u64,
    overruns: u64,
    skipped: u64,
    step_resets: u64,
    outcomes: Vec<(&'static str, u64)>,
    generations: Vec<u32>,
    took_us: Vec<f64>,
    /// What the robot would do; printed, so that it is computed.
    action: f32,
}

fn parse() -> Option<Options> {
    let mut options = Options {
        model: "go2".into(),
        runtime_dir: None,
        rate_hz: 1000.0,
        seconds: 5.0,
        timeout: Duration::from_millis(20),
    };
    let mut words = std::env::args().skip(1);
    while let Some(key) = words.next() {
        let value = words.next()?;
        match key.as_str() {
            "--model" => options.model = value,
            "--runtime-dir" => options.runtime_dir = Some(value),
            "--rate" => options.rate_hz = value.parse().ok()?,
            "--seconds" => options.seconds = value.parse().ok()?,
            "--timeout-us" => options.timeout = Duration::from_micros(value.parse().ok()?),
            _ => return None,
        }
    }
    let in_range = |x: f64| x > 0.0 && x <= 1e6;
    (in_range(options.rate_hz) && in_range(options.seconds)).then_some(options)
}

impl Log {
    fn new(options: &Options) -> Log {
        let names = Status::ALL.iter().map(|s| s.name()).chain(OTHER_OUTCOMES);
        Log {
            sent: 0,
            refused: 0,
            late: 0,
            fallbacks: 0,
            overruns: 0,
            skipped: 0,
            step_resets: 0,
            outcomes: names.map(|name| (name, 0)).collect(),
            generations: Vec::with_capacity(GENERATIONS_MAX),
            took_us: Vec::with_capacity((options.rate_hz * options.seconds) as usize + 1),
            action: 0.0,
        }
    }

    fn count(&mut self, name: &str) {
        let known = self.outcomes.iter_mut().find(|(n, _)| *n == name);
        known.expect("every outcome has a counter").1 += 1;
    }

    fn note(&mut self, reply: &Reply<'_>, now_ns: u64) {
        let info = reply.header();
        self.late += u64::from(info.late);
        self.step_resets += u64::from(info.state_reset);
        self.skipped += u64::from(info.skipped);
        if self.took_us.len() < self.took_us.capacity() {
            self.took_us.push((now_ns - info.t_submit_ns) as f64 / 1e3);
        }
        if self.generations.len() < GENERATIONS_MAX && self.generations.last() != Some(&info.generation) {
            self.generations.push(info.generation);
        }
    }
}

/// Stands for the robot's sensors: a slow wave in every f32 input, zeroes in all others, written where the worker reads.
fn observe_and_submit(session: &mut Session, cycle: u64, deadline: Duration) -> Result<inferd_client::Ticket, Error> {
    let inputs = session.signature().inputs.len();
    let mut request = session.request()?;
    for i in 0..inputs {
        match request.input_as_mut::<f32>(i) {
            Ok(values) => {
                for (k, value) in values.iter_mut().enumerate() {
                    *value = 0.1 * ((cycle % 1000) as f32 * 0.00628 + k as f32).sin();
                }
            }
            Err(_) => request.input_mut(i)?.fill(0),
        }
    }
    request.observation_id(cycle).deadline_in(deadline).submit()
}

/// One cycle; true if the robot has an action of this cycle's observation.
fn cycle(session: &mut Session, options: &Options, number: u64, deadline: Duration, log: &mut Log) -> bool {
    let first_is_f32 = session.signature().outputs.first().is_some_and(|t| t.dtype == DType::F32 && t.bytes() >= 4);
    let Ok(ticket) = observe_and_submit(session, number, deadline) else {
        log.refused += 1; // recovering, or the daemon is away: the library reattaches by itself
        return false;
    };
    log.sent += 1;
    let outcome = session.wait(ticket, Some(options.timeout));
    let now_ns = now_ns();
    match outcome {
        Ok(outcome) => {
            log.count(outcome.name());
            let Outcome::Reply(reply) = outcome else { return false };
            if !reply.is_ok() {
                return false;
            }
            log.note(&reply, now_ns);
            // Stands for the robot's motors.
            if first_is_f32 && !reply.late() {
                log.action = reply.element(0, 0).unwrap_or_default();
            }
            !reply.late()
        }
        Err(error) => {
            log.count(error.outcome());
            false
        }
    }
}

fn run(session: &mut Session, options: &Options, log: &mut Log) {
    let cycle_ns = (NS_PER_S / options.rate_hz) as u64;
    let mut next_ns = now_ns();
    let end_ns = next_ns + (options.seconds * NS_PER_S) as u64;
    let mut number = 0;
    while next_ns < end_ns {
        std::thread::sleep(Duration::from_nanos(next_ns.saturating_sub(now_ns())));
        if !cycle(session, options, number, Duration::from_nanos(cycle_ns), log) {
            log.fallbacks += 1;
            log.action = 0.0; // a real robot: stand still, or hold the last safe posture
        }
        number += 1;
        next_ns += cycle_ns;
        let late_ns = now_ns().saturating_sub(next_ns);
        if late_ns > 0 {
            // Cycles that were missed are not caught up with.
            let missed = late_ns / cycle_ns + 1;
            log.overruns += missed;
            next_ns += missed * cycle_ns;
        }
    }
}

fn report(log: &mut Log) -> u64 {
    if !log.took_us.is_empty() {
        log.took_us.sort_unstable_by(f64::total_cmp);
        let last = log.took_us.len() - 1;
        let at = |percent: f64| log.took_us[((percent / 100.0 * log.took_us.len() as f64) as usize).min(last)];
        let [p50, p90, p99, p999, max] = [50.0, 90.0, 99.0, 99.9, 100.0].map(at);
        println!("submit to action [us]: p50 {p50:.1}  p90 {p90:.1}  p99 {p99:.1}  p99.9 {p999:.1}  max {max:.1}");
    }
    print!("requests: {}; outcomes:", log.sent);
    for (name, count) in log.outcomes.iter().filter(|(_, count)| *count > 0) {
        print!("  {name} {count}");
    }
    println!(
        "\nlate {}, refused {}, fallbacks {}, cycles missed {}, superseded {}, fresh states {}",
        log.late, log.refused, log.fallbacks, log.overruns, log.skipped, log.step_resets
    );
    let generations: Vec<String> = log.generations.iter().map(ToString::to_string).collect();
    println!("generations: {}", generations.join(" -> "));
    println!("last action[0]: {}", log.action);
    log.outcomes.iter().map(|(_, count)| count).sum()
}

fn main() -> ExitCode {
    let Some(options) = parse() else {
        eprintln!("usage: robot [--model NAME] [--rate HZ] [--seconds S] [--timeout-us N] [--runtime-dir DIR]");
        return ExitCode::from(2);
    };
    let mut wishes = AttachOptions::new(&options.model);
    if let Some(dir) = &options.runtime_dir {
        wishes = wishes.runtime_dir(dir);
    }
    let mut session = match Session::attach(wishes) {
        Ok(session) => session,
        Err(e) => {
            eprintln!("robot: {e}");
            return ExitCode::FAILURE;
        }
    };
    println!(
        "robot: model {} at {} Hz for {} s; library {}, daemon {}",
        options.model,
        options.rate_hz,
        options.seconds,
        inferd_client::version(),
        session.daemon_version()
    );
    let mut log = Log::new(&options);
    run(&mut session, &options, &mut log);
    let outcomes = report(&mut log);
    let served = log.outcomes.iter().any(|(name, count)| *name == "ok" && *count > 0);
    if outcomes == log.sent && served { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
