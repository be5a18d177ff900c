//! `inferctl bench`: a model's latency as its clients feel it.
//!
//! N threads, each an ordinary client with a session of its own: at a rate (open loop: absolute times
//! that wait for no reply, so that a stall is felt by every request that it delays) or flat out (closed
//! loop). The main thread only watches. Daemon restarts are survived and counted; an interrupt ends the
//! measurement and prints what there is.

pub mod bars;
mod client;
pub mod report;
pub mod tally;

use crate::array::Array;
use crate::cli::BenchArgs;
use crate::failure::Failure;
use crate::out::{plain, print};
use crate::recording::{Recording, Wanted};
use client::{Client, Done, Plan};
use indicatif::{ProgressBar, ProgressStyle};
use inferd_client::{AttachOptions, Session, Signature, now_ns};
use report::{Report, Setup};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tally::{End, Tally};

/// Time between the last attach and the first request, for all threads to be there.
const LEAD_NS: u64 = 20_000_000;
/// How often the main thread looks: rarely, for it shares the machine with what is measured.
const WATCH: Duration = Duration::from_millis(100);
/// Looks per update of the progress bar.
const WATCHES_PER_UPDATE: u32 = 5;

/// A count that one thread writes and another one reads, in cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Progress(AtomicU64);

/// The requests' tensors, step by step in a circle.
#[derive(Debug)]
struct Feed {
    inputs: Vec<Array>,
    steps: usize,
    from: String,
}

impl Feed {
    fn new(path: Option<&Path>, signature: &Signature) -> Result<Feed, Failure> {
        if let Some(path) = path {
            let recording = Recording::load(path, signature, Wanted::Inputs)?;
            let from = plain(&path.file_name().unwrap_or_default().to_string_lossy());
            return Ok(Feed { inputs: recording.inputs, steps: recording.steps, from });
        }
        let zeros = |t: &inferd_client::TensorSpec| Array {
            dtype: t.dtype,
            shape: t.shape.clone(),
            bytes: vec![0; t.bytes() as usize],
        };
        Ok(Feed { inputs: signature.inputs.iter().map(zeros).collect(), steps: 1, from: "zeros".to_owned() })
    }

    fn at(&self, input: usize, request: u64) -> &[u8] {
        Recording::at(&self.inputs[input], self.steps, (request % self.steps as u64) as usize)
    }
}

/// Runs the command; whether every request was accounted for and at least one ended in `ok`.
///
/// # Errors
/// [`Failure`]; if it happened while measuring, what was measured has been printed.
pub fn run(args: &BenchArgs, runtime_dir: Option<&Path>) -> Result<bool, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // The second one ends the program at once.
        let handlers = signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, stop.clone())
            .and_then(|_| signal_hook::flag::register(signal, stop.clone()));
        handlers.map_err(|source| Failure::Write { path: "signal handler".to_owned(), source })?;
    }
    let sessions = attach(args, runtime_dir)?;
    let feed = Arc::new(Feed::new(args.input.as_deref(), sessions[0].signature())?);
    let mut setup = setup(args, &sessions[0], &feed);
    let start_ns = now_ns() + LEAD_NS;
    let end_ns = start_ns + (args.duration * 1e9) as u64;
    let (threads, counts) = spawn(args, sessions, &feed, &stop, start_ns, end_ns);
    watch(&threads, &counts, start_ns, args.duration);
    let (tally, ended_ns, failure) = gather(threads);
    setup.measured_s = ended_ns.clamp(start_ns, end_ns).saturating_sub(start_ns) as f64 / 1e9;
    setup.interrupted = stop.load(Ordering::Relaxed) && failure.is_none();
    let report = Report::new(setup, &tally);
    publish(args, &report, &tally)?;
    match failure {
        Some(failure) => Err(failure),
        None => Ok(tally.unaccounted() == 0 && tally.count(End::Ok) > 0),
    }
}

fn attach(args: &BenchArgs, runtime_dir: Option<&Path>) -> Result<Vec<Session>, Failure> {
    let mut options = AttachOptions::new(&args.model).auto_reattach(false);
    if let Some(dir) = runtime_dir {
        options = options.runtime_dir(dir);
    }
    if let Some(queue) = args.queue {
        options = options.queue(queue.into());
    }
    if let Some(slots) = args.slots {
        options = options.slots(slots);
    }
    if let Some(spin_us) = args.spin_us {
        options = options.spin_us(spin_us);
    }
    let one = || Session::attach(options.clone()).map_err(Failure::from);
    (0..args.clients).map(|_| one()).collect()
}

fn setup(args: &BenchArgs, session: &Session, feed: &Feed) -> Setup {
    let total = |tensors: &[inferd_client::TensorSpec]| tensors.iter().map(inferd_client::TensorSpec::bytes).sum();
    Setup {
        model: args.model.clone(),
        clients: args.clients,
        rate_hz: (!args.flat_out).then_some(args.rate),
        duration_s: args.duration,
        measured_s: 0.0,
        interrupted: false,
        queue: session.queue().name(),
        slots: session.slots(),
        spin_us: session.spin_us().into(),
        deadline_us: args.deadline_us,
        input_bytes: total(&session.signature().inputs),
        output_bytes: total(&session.signature().outputs),
        input: feed.from.clone(),
        daemon_version: plain(session.daemon_version()),
    }
}

type Threads = Vec<JoinHandle<Done>>;

fn spawn(
    args: &BenchArgs,
    sessions: Vec<Session>,
    feed: &Arc<Feed>,
    stop: &Arc<AtomicBool>,
    start_ns: u64,
    end_ns: u64,
) -> (Threads, Vec<Arc<Progress>>) {
    let clients = sessions.len() as u64;
    let interval_ns = (!args.flat_out).then(|| ((1e9 / args.rate) as u64).max(1));
    let one = |(i, session): (usize, Session)| {
        let phase_ns = interval_ns.unwrap_or(0) * i as u64 / clients;
        let plan = Plan {
            start_ns: start_ns + phase_ns,
            end_ns,
            interval_ns,
            timeout: Duration::from_millis(args.timeout_ms),
            deadline: args.deadline_us.map(Duration::from_micros),
        };
        let progress = Arc::new(Progress::default());
        let client = Client::new(session, plan, feed.clone(), stop.clone(), progress.clone());
        (std::thread::spawn(move || client.run()), progress)
    };
    sessions.into_iter().enumerate().map(one).unzip()
}

/// Shows how far it is, on a terminal, until all threads have ended.
fn watch(threads: &Threads, counts: &[Arc<Progress>], start_ns: u64, duration_s: f64) {
    // Hidden unless standard error is a terminal.
    let bar = ProgressBar::new((duration_s * 1e3) as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {msg}") {
        bar.set_style(style);
    }
    let mut looks = 0u32;
    while !threads.iter().all(JoinHandle::is_finished) {
        std::thread::sleep(WATCH);
        looks += 1;
        if looks.is_multiple_of(WATCHES_PER_UPDATE) {
            let elapsed_ms = now_ns().saturating_sub(start_ns) / 1_000_000;
            let replies = counts.iter().map(|c| c.0.load(Ordering::Relaxed)).sum();
            bar.set_position(elapsed_ms);
            bar.set_message(format!(
                "{:.1} of {duration_s} s, {} replies",
                elapsed_ms as f64 / 1e3,
                crate::out::grouped(replies)
            ));
        }
    }
    bar.finish_and_clear();
}

fn gather(threads: Threads) -> (Tally, u64, Option<Failure>) {
    let (mut tally, mut ended_ns, mut failure) = (Tally::new(), 0, None);
    for thread in threads {
        match thread.join() {
            Ok(done) => {
                tally.merge(&done.tally);
                ended_ns = ended_ns.max(done.ended_ns);
                failure = failure.or(done.failure.map(Failure::from));
            }
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
    (tally, ended_ns, failure)
}

fn publish(args: &BenchArgs, report: &Report, tally: &Tally) -> Result<(), Failure> {
    let json = || serde_json::to_string_pretty(report).unwrap_or_default() + "\n";
    match &args.json {
        Some(path) if path.as_os_str() == "-" => return print(&json()).map_err(Failure::stdout),
        Some(path) => std::fs::write(path, json())
            .map_err(|source| Failure::Write { path: path.display().to_string(), source })?,
        None => {}
    }
    print(&report.text(tally)).map_err(Failure::stdout)
}
