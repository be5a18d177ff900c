//! A shadow run: a candidate answers the live generation's recorded steps, and nobody.
//!
//! The steps are copied out of the record region while the live worker goes on writing it; the live
//! slots are never touched. Each step is what the executor's would be: inputs copied, state loaded,
//! conditioned, run, guarded, outputs and state copied out. This measures; the supervisor judges. The
//! region is written by a worker that is trusted less than the supervisor, and may hold anything.

use crate::golden::element;
use crate::policy::Policy;
use crate::stats::Histogram;
use inferd_ipc::layout::{REPLY_STATE_RESET, Status};
use inferd_ipc::limits::{
    SHADOW_FAILURE_BYTES_MAX, SHADOW_MS_MAX, SHADOW_POLL_US, SHADOW_PROGRESS_MS, SHADOW_SESSIONS_MAX, SHADOW_STEPS_MAX,
};
use inferd_ipc::record::{Read, RecordLayout, RecordReader, RecordedStep};
use inferd_ipc::signature::TensorSpec;
use inferd_ipc::sys::{self, ThreadTimes};
use inferd_ipc::worker_records::{OutputDifference, ShadowReport};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Which steps to run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted {
    /// This many: the most recent ones, then those that come.
    pub steps: Option<u32>,
    /// Only those that come, within this time.
    pub for_ms: Option<u64>,
    /// How long to wait for steps that are not there yet, without `for_ms`.
    pub wait_ms: u64,
}

/// Whether a record of this layout can be run by this policy: the same inputs and outputs, whatever the state.
#[must_use]
pub fn fits(policy: &Policy, layout: &RecordLayout) -> bool {
    let own = policy.record_layout();
    own.same(&RecordLayout { states: own.states.clone(), ..layout.clone() })
}

/// Runs recorded steps; `times` are the calling thread's. `progress` hears how far it is, at a limited rate.
///
/// # Panics
/// When the record's layout does not fit the policy: ask [`fits`] first.
#[must_use]
pub fn run(
    policy: &mut Policy,
    reader: &RecordReader,
    layout: &RecordLayout,
    wanted: Wanted,
    times: Option<Arc<ThreadTimes>>,
    progress: &mut dyn FnMut(u32, u32),
) -> ShadowReport {
    assert!(fits(policy, layout), "inputs and outputs are the policy's");
    let mut shadow = Shadow::new(policy, layout, times);
    let mut pace = Pace { wanted, start: Instant::now(), told: Instant::now(), progress };
    match wanted.for_ms {
        Some(for_ms) => {
            let next = reader.next();
            shadow.follow(reader, next, Duration::from_millis(for_ms.min(SHADOW_MS_MAX)), &mut pace);
        }
        None => {
            let next = shadow.recent(reader, &mut pace);
            if wanted.steps.is_some() {
                shadow.follow(reader, next, Duration::from_millis(wanted.wait_ms.min(SHADOW_MS_MAX)), &mut pace);
            }
        }
    }
    shadow.report()
}

/// How many steps are wanted, and who hears of it.
struct Pace<'a> {
    wanted: Wanted,
    start: Instant,
    told: Instant,
    progress: &'a mut dyn FnMut(u32, u32),
}

impl Pace<'_> {
    fn steps(&self) -> u32 {
        self.wanted.steps.unwrap_or(SHADOW_STEPS_MAX).min(SHADOW_STEPS_MAX)
    }

    fn tell(&mut self, done: u32) {
        if self.told.elapsed() < Duration::from_millis(SHADOW_PROGRESS_MS) {
            return;
        }
        self.told = Instant::now();
        match (self.wanted.steps, self.wanted.for_ms) {
            (None, Some(for_ms)) => {
                let ms = |d: u128| u32::try_from(d).unwrap_or(u32::MAX);
                (self.progress)(ms(self.start.elapsed().as_millis().min(for_ms.into())), ms(for_ms.into()));
            }
            _ => {
                let of = self.steps();
                (self.progress)(done, of);
            }
        }
    }
}

/// Where the state before a step comes from.
enum State {
    None,
    Recorded,
    /// Chained per session; the layouts differ.
    Own(BTreeMap<u64, Vec<Vec<u8>>>),
}

/// One output, compared over all steps.
struct Compared {
    tensor: TensorSpec,
    difference: OutputDifference,
    sum: f64,
    elements: u64,
}

struct Shadow<'a> {
    policy: &'a mut Policy,
    state: State,
    clock: RunClock,
    outputs: Vec<Compared>,
    /// Where a session would find outputs and state.
    output_bytes: Vec<Vec<u8>>,
    state_bytes: Vec<Vec<u8>>,
    live_run: Histogram,
    new_run: Histogram,
    report: ShadowReport,
}

impl<'a> Shadow<'a> {
    fn new(policy: &'a mut Policy, layout: &RecordLayout, times: Option<Arc<ThreadTimes>>) -> Shadow<'a> {
        let own = policy.record_layout();
        let state = if own.states.is_empty() {
            State::None
        } else if own.same_states(layout) {
            State::Recorded
        } else {
            State::Own(BTreeMap::new())
        };
        let buffers = |tensors: &[TensorSpec]| tensors.iter().map(|t| vec![0; t.bytes() as usize]).collect::<Vec<_>>();
        let compared = |t: &TensorSpec| Compared {
            tensor: t.clone(),
            difference: OutputDifference::default(),
            sum: 0.0,
            elements: 0,
        };
        Shadow {
            policy,
            state,
            clock: RunClock { times, waited_ns: 0, start_ns: 0 },
            outputs: own.outputs.iter().map(compared).collect(),
            output_bytes: buffers(&own.outputs),
            state_bytes: buffers(&own.states),
            live_run: Histogram::default(),
            new_run: Histogram::default(),
            report: ShadowReport::default(),
        }
    }

    /// Runs the newest `ok` steps that stand there, oldest first; the number of the step that comes next.
    fn recent(&mut self, reader: &RecordReader, pace: &mut Pace<'_>) -> u64 {
        let next = reader.next();
        let mut numbers = Vec::new();
        for number in (next.saturating_sub(reader.slots())..next).rev() {
            if numbers.len() >= pace.steps() as usize {
                break;
            }
            match reader.read(number) {
                Read::Step(step) if step.status == Some(Status::Ok) => numbers.push(number),
                Read::Damaged => self.report.missed += 1,
                Read::Step(_) | Read::NotYet | Read::Gone => {}
            }
        }
        for number in numbers.into_iter().rev() {
            match reader.read(number) {
                Read::Step(step) if step.status == Some(Status::Ok) => self.step(&step),
                _ => self.report.missed += 1,
            }
            pace.tell(self.report.steps);
        }
        next
    }

    /// Runs `ok` steps from number `at` on as they end, until there are enough or the time is up.
    fn follow(&mut self, reader: &RecordReader, mut at: u64, time: Duration, pace: &mut Pace<'_>) {
        let start = Instant::now();
        let missed = |report: &mut ShadowReport, n: u64| report.missed = report.missed.saturating_add(n);
        while self.report.steps < pace.steps() && start.elapsed() < time {
            match reader.read(at) {
                Read::Step(step) if step.status.is_some() => {
                    at += 1;
                    if step.status == Some(Status::Ok) {
                        self.step(&step);
                    }
                }
                Read::Gone => {
                    // Half a round back, so that the next one is not overwritten at once.
                    let back = reader.next().saturating_sub(reader.slots() / 2).max(at + 1);
                    missed(&mut self.report, back - at);
                    at = back;
                }
                Read::Step(_) | Read::NotYet | Read::Damaged => {
                    // Running, or not there yet, or never to end: then a later one is there some time.
                    std::thread::sleep(Duration::from_micros(SHADOW_POLL_US));
                    let passed = reader.has(at + 1) && !matches!(reader.read(at), Read::Step(s) if s.status.is_some());
                    at += u64::from(passed);
                    missed(&mut self.report, u64::from(passed));
                }
            }
            pace.tell(self.report.steps);
        }
    }

    /// Runs one recorded step, and compares.
    fn step(&mut self, step: &RecordedStep) {
        let session = step.begun.session;
        if let State::Own(states) = &mut self.state {
            let known = states.contains_key(&session);
            if !known && states.len() >= SHADOW_SESSIONS_MAX {
                self.report.missed = self.report.missed.saturating_add(1);
                return;
            }
            if !known || step.flags & REPLY_STATE_RESET != 0 {
                let fresh = |k: usize| {
                    self.policy.reset_state(k);
                    self.policy.state_in_mut(k).to_vec()
                };
                states.insert(session, (0..self.state_bytes.len()).map(fresh).collect());
            }
        }
        self.report.steps += 1;
        self.live_run.record(step.run_ns);
        self.clock.start();
        let result = self.run(step);
        let ns = self.clock.stop();
        match result {
            Ok(()) => {
                self.new_run.record(ns);
                self.compare(step);
                if let State::Own(states) = &mut self.state
                    && let Some(state) = states.get_mut(&session)
                {
                    state.clone_from(&self.state_bytes);
                }
            }
            Err(message) => {
                self.count_nan(step);
                self.fail(step, &message);
            }
        }
    }

    /// What the executor does between taking a request and publishing its reply.
    fn run(&mut self, step: &RecordedStep) -> Result<(), String> {
        for i in 0..self.policy.signature().inputs.len() {
            self.policy.input_mut(i).copy_from_slice(step.input(i));
        }
        for k in 0..self.state_bytes.len() {
            let from = match &self.state {
                State::None => continue,
                State::Recorded => step.state(k),
                State::Own(states) => states.get(&step.begun.session).map_or(&self.state_bytes[k], |s| &s[k]),
            };
            self.policy.state_in_mut(k).copy_from_slice(from);
        }
        self.policy.check_inputs().map_err(|rejected| rejected.to_string())?;
        self.policy.run().map_err(|error| error.to_string())?;
        for (i, to) in self.output_bytes.iter_mut().enumerate() {
            to.copy_from_slice(self.policy.output(i));
        }
        for (k, to) in self.state_bytes.iter_mut().enumerate() {
            to.copy_from_slice(self.policy.state_out(k));
        }
        Ok(())
    }

    fn compare(&mut self, step: &RecordedStep) {
        let mut not_numbers = None;
        for (i, (compared, got)) in self.outputs.iter_mut().zip(&self.output_bytes).enumerate() {
            let nan = compared.add(got, step.output(i), step.begun.observation_id);
            if nan > 0 && not_numbers.is_none() {
                not_numbers = Some(format!("output {:?}: {nan} elements are NaN", compared.tensor.name));
            }
        }
        if let Some(message) = not_numbers {
            self.fail(step, &message);
        }
    }

    /// A step that the guard refused has outputs that say why: its NaN are counted, its differences are not.
    fn count_nan(&mut self, step: &RecordedStep) {
        for (i, compared) in self.outputs.iter_mut().enumerate() {
            compared.difference.nan += nan_only_in(&compared.tensor, self.policy.output(i), step.output(i));
        }
    }

    fn fail(&mut self, step: &RecordedStep, message: &str) {
        self.report.failed += 1;
        if self.report.first_failure.is_none() {
            let mut message =
                format!("observation {} of session {}: {message}", step.begun.observation_id, step.begun.session);
            let cut = (0..=SHADOW_FAILURE_BYTES_MAX.min(message.len())).rev().find(|i| message.is_char_boundary(*i));
            message.truncate(cut.unwrap_or(0));
            self.report.first_failure = Some(message);
        }
    }

    fn report(mut self) -> ShadowReport {
        let state = match self.state {
            State::None => "none",
            State::Recorded => "recorded",
            State::Own(_) => "own",
        };
        self.report.state = state.to_owned();
        self.report.outputs = self.outputs.into_iter().map(Compared::finish).collect();
        self.report.live_run = self.live_run.stats();
        self.report.new_run = self.new_run.stats();
        self.report
    }
}

/// Elements that are NaN in `got` and not in `want`.
fn nan_only_in(tensor: &TensorSpec, got: &[u8], want: &[u8]) -> u64 {
    let nan = |bytes: &[u8], i| element(tensor.dtype, bytes, i).is_nan();
    (0..tensor.elements_count() as usize).filter(|i| nan(got, *i) && !nan(want, *i)).count() as u64
}

impl Compared {
    /// Adds one step; how many elements are NaN that were not. Differences stay finite: JSON knows no other numbers.
    fn add(&mut self, got: &[u8], want: &[u8], observation_id: u64) -> u64 {
        let mut nan = 0;
        for i in 0..self.tensor.elements_count() as usize {
            let (a, b) = (element(self.tensor.dtype, got, i), element(self.tensor.dtype, want, i));
            if a.is_nan() || b.is_nan() {
                nan += u64::from(!b.is_nan());
                continue;
            }
            // Equal infinities are equal; any other pair with one is as far apart as a number can say.
            let apart = if a == b { 0.0 } else { (a - b).abs().min(f64::MAX) };
            self.sum = (self.sum + apart).min(f64::MAX);
            self.elements += 1;
            if apart > self.difference.max {
                self.difference.max = apart;
                self.difference.worst_step = Some(observation_id);
            }
        }
        self.difference.nan += nan;
        nan
    }

    fn finish(mut self) -> (String, OutputDifference) {
        self.difference.mean = if self.elements > 0 { self.sum / self.elements as f64 } else { 0.0 };
        (self.tensor.name, self.difference)
    }
}

/// Measures a run on a thread of idle priority: the time from start to stop without the time in which the thread was
/// ready to run and another one had the CPU, which the kernel counts. Kernels that do not count it give the thread's
/// CPU time instead, which also leaves out what the model itself waits for.
struct RunClock {
    times: Option<Arc<ThreadTimes>>,
    waited_ns: u64,
    start_ns: u64,
}

impl RunClock {
    fn waited(&self) -> Option<u64> {
        Some(self.times.as_ref()?.read()?.1)
    }

    fn start(&mut self) {
        match self.waited() {
            Some(waited) => (self.waited_ns, self.start_ns) = (waited, sys::now_ns()),
            None => self.start_ns = sys::thread_cpu_ns(),
        }
    }

    fn stop(&mut self) -> u64 {
        if self.times.is_none() {
            return sys::thread_cpu_ns().saturating_sub(self.start_ns);
        }
        let ns = sys::now_ns() - self.start_ns;
        ns.saturating_sub(self.waited().unwrap_or(0).saturating_sub(self.waited_ns))
    }
}
