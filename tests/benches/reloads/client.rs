//! A client of the bench: a thread that calls at a fixed rate and remembers every call.
//!
//! A call that is due while the one before it is still unanswered is sent late, and its latency counts from when it was
//! due: a client that waits must not hide the calls that it did not make. What is overdue by more than [`OVERDUE_MAX`] is
//! not sent any more, as in a robot: it counts as missed.

use inferd_client::{AttachOptions, CallOptions, Queue, Session};
use inferd_ipc::sys::now_ns;
use inferd_tests::Daemon;
use inferd_tests::answer::{FNV_START, OBSERVATIONS, fill, fnv1a};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// The observations' seed, as in the tests.
pub const SEED: u64 = 70;
/// Calls that are overdue by more than this are given up.
const OVERDUE_MAX: Duration = Duration::from_millis(100);

/// One call.
#[derive(Clone, Copy)]
pub struct Call {
    /// When it was sent, or was due if that was earlier.
    pub from_ns: u64,
    pub answered_ns: u64,
    /// 0: it ended in something else than `ok`.
    pub generation: u32,
    pub observation: u32,
    /// FNV-1a over the outputs.
    pub hash: u64,
}

impl Call {
    pub fn latency_ns(&self) -> u64 {
        self.answered_ns - self.from_ns
    }
}

/// What a client has seen.
#[derive(Default)]
pub struct Calls {
    pub calls: Vec<Call>,
    /// Calls that were given up before they were sent.
    pub missed: u64,
}

/// A running client.
pub struct Client {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Calls>,
}

/// How a client calls.
#[derive(Clone, Copy)]
pub struct Pace {
    /// 0: flat out.
    pub rate_hz: u64,
    pub spin_us: u32,
}

impl Client {
    /// Attaches and begins to call.
    pub fn start(daemon: &Daemon, model: &str, pace: Pace) -> Client {
        let options = AttachOptions::new(model).runtime_dir(daemon.runtime_dir()).queue(Queue::InOrder);
        let session = Session::attach(options.spin_us(pace.spin_us)).unwrap_or_else(|e| panic!("attach {model}: {e}"));
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let thread = std::thread::spawn(move || calls(session, pace, &told));
        Client { stop, thread }
    }

    /// Ends it; everything that it has seen.
    pub fn stop(self) -> Calls {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("a client does not panic")
    }
}

fn calls(mut session: Session, pace: Pace, stop: &AtomicBool) -> Calls {
    let bytes = |t: &inferd_client::TensorSpec| t.bytes() as usize;
    let input_bytes: Vec<usize> = session.signature().inputs.iter().map(bytes).collect();
    let mut output: Vec<f32> = vec![0.0; bytes(&session.signature().outputs[0]) / 4];
    let observations: Vec<Vec<Vec<f32>>> = (0..OBSERVATIONS as u64)
        .map(|o| input_bytes.iter().enumerate().map(|(k, n)| floats(&fill(SEED + o + k as u64, *n))).collect())
        .collect();
    let mut all = Calls { calls: Vec::with_capacity(1 << 19), missed: 0 };
    let period_ns = 1_000_000_000u64.checked_div(pace.rate_hz).unwrap_or(0);
    let (mut due, mut n) = (now_ns() + period_ns, 0usize);
    while !stop.load(Ordering::Relaxed) {
        let now = now_ns();
        if now < due {
            std::thread::sleep(Duration::from_nanos(due - now));
        }
        let sent = now_ns();
        // The clock of a client that sleeps is late by a little, always; that is not the daemon's doing.
        let from_ns = if period_ns > 0 && sent > due + period_ns { due } else { sent };
        let observation = n % OBSERVATIONS;
        let inputs: Vec<(usize, &[f32])> =
            observations[observation].iter().enumerate().map(|(k, floats)| (k, &floats[..])).collect();
        let options = CallOptions { timeout: Some(Duration::from_secs(10)), ..CallOptions::default() };
        let outcome = session.infer(&inputs, &mut [(0, &mut output[..])], options);
        let answered_ns = now_ns();
        let generation = match outcome {
            Ok(info) if info.is_ok() => info.generation,
            _ => 0,
        };
        let hash = output.iter().fold(FNV_START, |hash, f| fnv1a(hash, &f.to_le_bytes()));
        all.calls.push(Call { from_ns, answered_ns, generation, observation: observation as u32, hash });
        n += 1;
        due = if period_ns > 0 { due + period_ns } else { 0 };
        if period_ns > 0 && answered_ns > due + OVERDUE_MAX.as_nanos() as u64 {
            let missed = (answered_ns - due) / period_ns;
            all.missed += missed;
            due += missed * period_ns;
        }
    }
    all
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}
