//! `loop`: many requests, every outcome entered in a ledger, every rule of DRIVER.md checked.
//!
//! Between its first and its last request the loop allocates nothing and, flat out, makes no system
//! call of its own: tests count both and blame the library for the rest.

use crate::commands::{Submit, error_name};
use crate::keys::Keys;
use crate::{Failure, allocations};
use inferd_client::{Error, Outcome, ReplyInfo, Session, Status, Ticket, now_ns};
use inferd_tests::answer::{FNV_START, OBSERVATIONS, fnv1a, mix};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Outcome names, in the order of their counters.
const OUTCOMES: [&str; 10] = [
    "ok",
    "superseded",
    "expired",
    "rejected",
    "model_error",
    "worker_lost",
    "needs_reset",
    "shutting_down",
    "daemon_lost",
    "unavailable",
];
/// Buckets of the histogram per doubling: 1/16 is 6.25 %.
const PER_DOUBLING: u64 = 16;
const BUCKETS: usize = 64 * PER_DOUBLING as usize;
/// Generations whose answers `check=answers` keeps.
const GENERATIONS_MAX: usize = 4096;
/// Pause after a refused call.
const PAUSE: Duration = Duration::from_millis(1);

#[derive(Clone, Copy, PartialEq)]
enum Check {
    None,
    Echo,
    Count,
    Answers,
    Digest,
}

/// What the command asks for.
pub struct Loop {
    n: u64,
    end_after_ns: u64,
    rate_hz: u64,
    depth: usize,
    seed: u64,
    deadline_us: Option<i64>,
    timeout: Duration,
    reset_every: u64,
    check: Check,
    until_lost: bool,
    drop: Option<u64>,
    rollbacks: bool,
}

#[derive(Clone, Copy)]
struct InFlight {
    ticket: Ticket,
    j: u64,
    submit_ns: u64,
    deadline_ns: u64,
}

struct Histogram {
    counts: Box<[u64; BUCKETS]>,
    total: u64,
    max: u64,
}

impl Histogram {
    fn new() -> Histogram {
        Histogram { counts: Box::new([0; BUCKETS]), total: 0, max: 0 }
    }

    fn add(&mut self, ns: u64) {
        let v = ns.max(1);
        let doubling = u64::from(v.ilog2());
        let fine = ((u128::from(v) * u128::from(PER_DOUBLING)) >> doubling) as u64 - PER_DOUBLING;
        self.counts[(doubling * PER_DOUBLING + fine) as usize] += 1;
        self.total += 1;
        self.max = self.max.max(ns);
    }

    fn percentile(&self, p: f64) -> u64 {
        let rank = (self.total as f64 * p).ceil() as u64;
        let mut seen = 0;
        for (i, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank.max(1) {
                let (doubling, fine) = (i as u64 / PER_DOUBLING, i as u64 % PER_DOUBLING);
                return (((u128::from(PER_DOUBLING + fine + 1)) << doubling) / u128::from(PER_DOUBLING)) as u64;
            }
        }
        0
    }
}

struct Ledger {
    in_flight: VecDeque<InFlight>,
    sent: u64,
    outcomes: [u64; OUTCOMES.len()],
    errors: BTreeMap<&'static str, u64>,
    violations: u64,
    first_violation: String,
    epoch: Option<u32>,
    next_request: u64,
    generation: Option<u32>,
    generation_first: u64,
    generation_last: u64,
    step: Option<u64>,
    count: Option<u64>,
    late: u64,
    skipped: u64,
    state_resets: u64,
    reattaches: u64,
    latency: Histogram,
    age: Histogram,
    last_ok_ns: u64,
    gap_ns_max: u64,
    input: Vec<u8>,
    output: Vec<u8>,
    output_bytes: Vec<usize>,
    shown: Vec<u8>,
    /// The outputs of the reply at hand.
    hash: u64,
    /// The outputs of all `ok` replies, in order.
    digest: u64,
    answers: Vec<Answers>,
    lost: bool,
}

/// What one generation answered to each observation, as hashes; 0 for nothing yet.
#[derive(Clone, Copy)]
struct Answers {
    generation: u32,
    hashes: [u64; OBSERVATIONS],
}

impl Loop {
    pub fn take(mut keys: Keys<'_>) -> Result<Loop, Failure> {
        let seconds: Option<f64> = keys.number("seconds")?;
        let n = keys.number("n")?;
        if n.is_none() && seconds.is_none() {
            return Err(Failure::usage("n or seconds is missing"));
        }
        let wanted = Loop {
            n: n.unwrap_or(u64::MAX),
            end_after_ns: seconds.map_or(u64::MAX, |s| (s * 1e9) as u64),
            rate_hz: keys.number("rate_hz")?.unwrap_or(0),
            depth: keys.number::<usize>("depth")?.unwrap_or(1).max(1),
            seed: keys.number("seed")?.unwrap_or(0),
            deadline_us: keys.number("deadline_us")?,
            timeout: keys.micros("timeout_us")?.unwrap_or(Duration::from_secs(5)),
            reset_every: keys.number("reset_every")?.unwrap_or(0),
            check: match keys.text("check") {
                None | Some("none") => Check::None,
                Some("echo") => Check::Echo,
                Some("count") => Check::Count,
                Some("answers") => Check::Answers,
                Some("digest") => Check::Digest,
                Some(other) => return Err(Failure::usage(format!("check={other}"))),
            },
            until_lost: keys.text("until") == Some("lost"),
            drop: keys.number("drop")?,
            rollbacks: keys.number::<u8>("rollbacks")?.unwrap_or(0) != 0,
        };
        keys.end()?;
        Ok(wanted)
    }

    pub fn run(&self, session: &mut Session) -> Result<Value, Failure> {
        let mut ledger = Ledger::new(self, session);
        let before = allocations();
        let start = now_ns();
        let mut j = 0;
        while j < self.n && now_ns() - start < self.end_after_ns && !(self.until_lost && ledger.lost) {
            if ledger.in_flight.len() >= self.depth {
                self.settle(session, &mut ledger);
                continue;
            }
            self.pace(start, j);
            match self.send(session, &mut ledger, j) {
                Ok(()) => j += 1,
                Err(error) => {
                    let name = error_name(&error);
                    ledger.lost |= matches!(name, "daemon_lost" | "shutting_down");
                    *ledger.errors.entry(name).or_insert(0) += 1;
                    std::thread::sleep(PAUSE);
                }
            }
        }
        while !ledger.in_flight.is_empty() {
            self.settle(session, &mut ledger);
        }
        let allocated = allocations() - before;
        Ok(ledger.summary(allocated))
    }

    /// Waits until request `j` is due.
    fn pace(&self, start: u64, j: u64) {
        if self.rate_hz == 0 {
            return;
        }
        let due = start + (u128::from(j) * 1_000_000_000 / u128::from(self.rate_hz)) as u64;
        loop {
            let left = due.saturating_sub(now_ns());
            match left {
                0 => return,
                100_001.. => std::thread::sleep(Duration::from_nanos(left - 60_000)),
                _ => std::hint::spin_loop(),
            }
        }
    }

    /// What request `j`'s first input is filled with.
    fn observation(&self, j: u64) -> u64 {
        self.seed.wrapping_add(match self.check {
            Check::Answers => j % OBSERVATIONS as u64,
            Check::Digest => 0,
            _ => j,
        })
    }

    fn send(&self, session: &mut Session, ledger: &mut Ledger, j: u64) -> Result<(), Error> {
        let inputs = session.signature().inputs.len();
        let mut request = session.request()?;
        let submit = Submit {
            id: self.seed.wrapping_add(j),
            deadline_us: self.deadline_us,
            executed: 0,
            reset: self.reset_every > 0 && j.is_multiple_of(self.reset_every),
        };
        for k in 0..inputs {
            fill_into(request.input_mut(k)?, self.observation(j).wrapping_add(k as u64));
        }
        request = request.observation_id(submit.id);
        if submit.reset {
            request = request.reset();
        }
        let submit_ns = now_ns();
        let deadline_ns = submit.deadline_ns(submit_ns);
        let ticket = request.deadline_ns(deadline_ns).submit()?;
        ledger.sent(InFlight { ticket, j, submit_ns, deadline_ns });
        Ok(())
    }

    /// Waits for the oldest request in flight and enters what became of it.
    fn settle(&self, session: &mut Session, ledger: &mut Ledger) {
        let Some(flight) = ledger.in_flight.pop_front() else { return };
        let outcome = session.wait(flight.ticket, Some(self.timeout));
        if self.drop == Some(flight.j) {
            return;
        }
        match outcome {
            Ok(Outcome::Superseded { .. }) => ledger.outcomes[1] += 1,
            Ok(Outcome::Reply(reply)) => {
                let info = *reply.header();
                if info.is_ok() && matches!(self.check, Check::Answers | Check::Digest) {
                    ledger.hash = FNV_START;
                    for k in 0..ledger.output_bytes.len() {
                        ledger.output.resize(ledger.output_bytes[k], 0);
                        match reply.copy_output(k, &mut ledger.output) {
                            Ok(()) => ledger.hash = fnv1a(ledger.hash, &ledger.output),
                            Err(error) => ledger.violation(11, flight, &error.to_string()),
                        }
                    }
                } else if info.is_ok() && self.check != Check::None {
                    let mut copied = reply.copy_output(0, &mut ledger.output);
                    if self.check == Check::Count {
                        copied = copied.and_then(|()| reply.copy_output(1, &mut ledger.shown));
                    }
                    if let Err(error) = copied {
                        ledger.violation(8, flight, &error.to_string());
                    }
                }
                drop(reply);
                ledger.replied(self, flight, &info);
            }
            Err(Error::DaemonLost { .. }) => {
                ledger.outcomes[8] += 1;
                ledger.lost = true;
            }
            Err(error) => ledger.violation(10, flight, &error.to_string()),
        }
    }
}

/// The pattern of DRIVER.md, written in place.
fn fill_into(to: &mut [u8], seed: u64) {
    for (i, chunk) in to.chunks_mut(8).enumerate() {
        let word = (mix(seed.wrapping_add(i as u64)) & 0x3f3f_3f3f_3f3f_3f3f).to_le_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
}

impl Ledger {
    fn new(wanted: &Loop, session: &Session) -> Ledger {
        let s = session.signature();
        let bytes = |t: Option<&inferd_client::TensorSpec>| vec![0; t.map_or(0, |t| t.bytes() as usize)];
        let output_bytes: Vec<usize> = s.outputs.iter().map(|t| t.bytes() as usize).collect();
        let mut output = bytes(s.outputs.first());
        // Room for any of them: nothing is allocated later.
        output.reserve(output_bytes.iter().copied().max().unwrap_or(0));
        Ledger {
            in_flight: VecDeque::with_capacity(wanted.depth + 1),
            sent: 0,
            outcomes: [0; OUTCOMES.len()],
            errors: BTreeMap::new(),
            violations: 0,
            first_violation: String::new(),
            epoch: None,
            next_request: 0,
            generation: None,
            generation_first: 0,
            generation_last: 0,
            step: None,
            count: Some(0),
            late: 0,
            skipped: 0,
            state_resets: 0,
            reattaches: 0,
            latency: Histogram::new(),
            age: Histogram::new(),
            last_ok_ns: 0,
            gap_ns_max: 0,
            input: bytes(s.inputs.first()),
            output,
            output_bytes,
            shown: bytes(s.outputs.get(1)),
            hash: FNV_START,
            digest: FNV_START,
            answers: Vec::with_capacity(if wanted.check == Check::Answers { GENERATIONS_MAX } else { 0 }),
            lost: false,
        }
    }

    fn violation(&mut self, rule: u32, flight: InFlight, what: &str) {
        self.violations += 1;
        if self.first_violation.is_empty() {
            self.first_violation = format!("rule {rule}, request {} (j = {}): {what}", flight.ticket, flight.j);
        }
    }

    fn sent(&mut self, flight: InFlight) {
        self.sent += 1;
        if self.epoch != Some(flight.ticket.epoch()) {
            self.reattaches += u64::from(self.epoch.is_some());
            let first = self.epoch.is_none();
            self.epoch = Some(flight.ticket.epoch());
            (self.next_request, self.generation, self.step, self.count) = (0, None, None, Some(0));
            // A session may have been used before this loop.
            if first {
                self.next_request = flight.ticket.number();
                self.count = (flight.ticket.number() == 0).then_some(0);
            }
        }
        if flight.ticket.number() != self.next_request {
            self.violation(2, flight, &format!("{} was due", self.next_request));
        }
        self.next_request = flight.ticket.number() + 1;
        self.in_flight.push_back(flight);
    }

    fn replied(&mut self, wanted: &Loop, flight: InFlight, info: &ReplyInfo) {
        let now = now_ns();
        self.outcomes[OUTCOMES.iter().position(|n| *n == info.status.name()).unwrap_or(9)] += 1;
        self.lost |= info.status == Status::ShuttingDown;
        self.skipped += u64::from(info.skipped);
        if info.ticket != flight.ticket || info.observation_id != wanted.seed.wrapping_add(flight.j) {
            self.violation(3, flight, &format!("{info:?}"));
        }
        if !wanted.rollbacks && self.generation.is_some_and(|g| info.generation < g) {
            self.violation(4, flight, &format!("generation {} after {:?}", info.generation, self.generation));
        }
        self.generation = Some(info.generation);
        if self.generation_first == 0 {
            self.generation_first = u64::from(info.generation);
        }
        self.generation_last = u64::from(info.generation);
        let advanced = u64::from(info.is_ok());
        if self.step.is_some_and(|s| info.step != s + advanced) {
            self.violation(5, flight, &format!("{} with step {} after {:?}", info.status.name(), info.step, self.step));
        }
        self.step = Some(info.step);
        if !info.is_ok() {
            return;
        }
        self.late += u64::from(info.late);
        if info.t_start_ns < flight.submit_ns || info.t_done_ns < info.t_start_ns || info.t_done_ns > now {
            self.violation(6, flight, &format!("submitted {}, now {now}: {info:?}", flight.submit_ns));
        }
        if info.late != (flight.deadline_ns > 0 && info.t_done_ns > flight.deadline_ns) {
            self.violation(7, flight, &format!("deadline {}: {info:?}", flight.deadline_ns));
        }
        self.timed(flight, info, now);
        self.checked(wanted, flight, info);
    }

    fn timed(&mut self, flight: InFlight, info: &ReplyInfo, now: u64) {
        self.latency.add(now - flight.submit_ns);
        self.age.add(info.t_start_ns.saturating_sub(flight.submit_ns));
        if self.last_ok_ns > 0 {
            self.gap_ns_max = self.gap_ns_max.max(now - self.last_ok_ns);
        }
        self.last_ok_ns = now;
    }

    fn checked(&mut self, wanted: &Loop, flight: InFlight, info: &ReplyInfo) {
        if info.state_reset {
            self.state_resets += 1;
            self.count = Some(0);
        }
        if matches!(wanted.check, Check::Echo | Check::Count) {
            fill_into(&mut self.input, wanted.seed.wrapping_add(flight.j));
            let same = self.output.iter().zip(self.input.iter().cycle()).all(|(o, i)| o == i);
            if !same {
                self.violation(8, flight, "output 0 is not input 0");
            }
        }
        if wanted.check == Check::Count {
            let shown = self.shown.first_chunk::<4>().map_or(-1.0, |b| f32::from_le_bytes(*b));
            let due = self.count.unwrap_or(shown as u64);
            if shown != due as f32 {
                self.violation(9, flight, &format!("the state shows {shown}, {due} was due"));
            }
            self.count = Some(due);
        }
        self.count = self.count.map(|c| c + 1);
        if matches!(wanted.check, Check::Answers | Check::Digest) {
            self.digest = fnv1a(self.digest, &self.hash.to_le_bytes());
        }
        if wanted.check == Check::Answers {
            self.answered(flight, info.generation);
        }
    }

    /// A generation answers the same observation with the same outputs, always.
    fn answered(&mut self, flight: InFlight, generation: u32) {
        let hash = self.hash;
        let known = self.answers.iter().rposition(|a| a.generation == generation);
        if known.is_none() && self.answers.len() == GENERATIONS_MAX {
            return self.violation(11, flight, "more generations than the ledger holds");
        }
        let at = known.unwrap_or_else(|| {
            self.answers.push(Answers { generation, hashes: [0; OBSERVATIONS] });
            self.answers.len() - 1
        });
        let slot = &mut self.answers[at].hashes[flight.j as usize % OBSERVATIONS];
        let before = std::mem::replace(slot, hash);
        if before != 0 && before != hash {
            self.violation(11, flight, &format!("generation {generation} answered {hash:016x} after {before:016x}"));
        }
    }

    fn summary(&mut self, allocations: u64) -> Value {
        let sum: u64 = self.outcomes.iter().sum();
        if sum != self.sent {
            self.violations += 1;
            if self.first_violation.is_empty() {
                self.first_violation = format!("rule 1: {} sent, {sum} ended", self.sent);
            }
        }
        let hashes = |a: &Answers| a.hashes.map(|h| if h == 0 { String::new() } else { format!("{h:016x}") });
        let answers: Vec<Value> =
            self.answers.iter().map(|a| json!({ "generation": a.generation, "hashes": hashes(a) })).collect();
        let outcomes: Map<String, Value> =
            OUTCOMES.iter().zip(self.outcomes).map(|(name, n)| ((*name).to_owned(), n.into())).collect();
        json!({
            "sent": self.sent, "outcomes": outcomes, "late": self.late, "errors": self.errors,
            "violations": self.violations, "first_violation": self.first_violation,
            "generation_first": self.generation_first, "generation_last": self.generation_last,
            "reattaches": self.reattaches, "state_resets": self.state_resets, "skipped": self.skipped,
            "p50_ns": self.latency.percentile(0.5), "p99_ns": self.latency.percentile(0.99),
            "p999_ns": self.latency.percentile(0.999),
            "max_ns": self.latency.max, "gap_ns_max": self.gap_ns_max,
            "age_p50_ns": self.age.percentile(0.5), "age_ns_max": self.age.max, "allocations": allocations,
            "answers": answers, "digest": format!("{:016x}", self.digest),
        })
    }
}
