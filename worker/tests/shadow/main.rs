//! Recorded steps and shadow runs of real worker processes, under a small supervisor.
//!
//! What a session's steps leave in the record region, what a candidate makes of it, that it serves
//! afterwards as if nothing had been, and that neither any content of the region nor a model that
//! hangs keeps it from being ended.
#![allow(clippy::unwrap_used)]

mod supervisor;

use inferd_ipc::layout::Status;
use inferd_ipc::record::RecordedStep;
use inferd_ipc::region::{self, Access};
use inferd_ipc::signature::{DType, Signature};
use inferd_ipc::sync::Ordering;
use inferd_ipc::worker_records::{Loaded, Loading, ModelSpec, PerElement, StatePair, TensorRules, ToWorker};
use inferd_worker::testing::spec::{echo_spec, tensor};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use supervisor::{Place, Record, Session, Worker};

const SCHED_OTHER: u32 = 0;
const SCHED_IDLE: u32 = 5;

/// x f32[4] -> y f32[4], scaled on the way in.
fn scaled(scale: f64) -> ModelSpec {
    let mut spec = echo_spec(&[tensor("x", DType::F32, &[4])], &[tensor("y", DType::F32, &[4])]);
    let rules: &mut TensorRules = spec.inputs.get_mut("x").unwrap();
    rules.scale = Some(PerElement::All(scale));
    spec
}

/// x f32[4] -> y f32[4] that shows the state, which counts up.
fn counter(state: &str) -> ModelSpec {
    let mut spec = echo_spec(
        &[tensor("x", DType::F32, &[4]), tensor(state, DType::F32, &[4])],
        &[tensor("y", DType::F32, &[4]), tensor("after", DType::F32, &[4])],
    );
    spec.state.push(StatePair { input: state.into(), output: "after".into() });
    spec.options.insert("show_state".into(), "y".into());
    spec
}

fn generation(mut spec: ModelSpec, generation: u32, option: Option<(&str, &str)>) -> ModelSpec {
    (spec.generation, spec.ticket, spec.baton_entry) = (generation, u64::from(generation), generation - 1);
    if let Some((key, value)) = option {
        spec.options.insert(key.into(), value.into());
    }
    spec
}

/// A live worker with one session, recording into a region of 8 slots.
struct Live {
    place: Place,
    worker: Worker,
    loaded: Loaded,
    record: Record,
    session: Session,
}

fn live(spec: &ModelSpec) -> Live {
    let place = Place::new();
    let worker = Worker::start(&place, spec);
    let loaded = worker.loaded();
    let record = Record::new(&loaded.record_layout, 8);
    worker.record(&record);
    let session = Session::new(1, &loaded.signature, loaded.state_bytes);
    session.add_to(&worker);
    worker.take(&place, None);
    Live { place, worker, loaded, record, session }
}

impl Live {
    /// A candidate that is loaded and waits.
    fn candidate(&self, spec: ModelSpec) -> Worker {
        let worker = Worker::start(&self.place, &ModelSpec { expect: Some(self.loaded.signature.clone()), ..spec });
        worker.loaded();
        worker
    }

    fn steps(&self) -> Vec<RecordedStep> {
        // The last one is complete a moment after its reply.
        let start = Instant::now();
        loop {
            let steps: Vec<RecordedStep> = self.record.reader().steps().collect();
            if steps.last().is_none_or(|s| s.status.is_some()) || start.elapsed() > Duration::from_secs(5) {
                return steps;
            }
        }
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| f32::from_ne_bytes(*b)).collect()
}

#[test]
fn steps_are_recorded_as_the_client_wrote_and_saw_them_failed_ones_too() {
    let mut live = live(&generation(scaled(10.0), 1, Some(("fail_at", "3"))));
    let mut outcomes = Vec::new();
    for label in 1..=4u64 {
        let (header, output) = live.session.ask(label, &[label as f32; 4], false);
        outcomes.push(header.status);
        if header.status == Status::Ok as u32 {
            assert_eq!(output, [label as f32 * 10.0; 4]);
        }
    }
    let (header, _) = live.session.ask(5, &[f32::NAN; 4], false);
    outcomes.push(header.status);
    let steps = live.steps();
    let recorded: Vec<u32> = steps.iter().map(|s| s.status.unwrap() as u32).collect();
    assert_eq!(recorded, outcomes);
    assert_eq!(recorded, [Status::Ok, Status::Ok, Status::ModelError, Status::Ok, Status::Rejected].map(|s| s as u32));
    for (i, step) in steps.iter().enumerate() {
        let label = i as u64 + 1;
        assert_eq!((step.number, step.begun.session, step.begun.request), (i as u64, 1, i as u64));
        assert_eq!((step.begun.observation_id, step.begun.generation), (label, 1));
        if label < 5 {
            assert_eq!(floats(step.input(0)), [label as f32; 4], "before it was scaled");
            assert!(step.begun.t_start_ns > 0 && step.run_ns > 0);
        }
        if step.status == Some(Status::Ok) {
            assert_eq!(floats(step.output(0)), [label as f32 * 10.0; 4]);
        }
    }
    assert!(floats(steps[4].input(0))[0].is_nan());
}

#[test]
fn the_observation_that_killed_a_worker_stands_in_the_record_and_the_next_worker_goes_on_after_it() {
    let mut live = live(&generation(counter("h"), 1, Some(("crash_at", "3"))));
    live.session.ask(1, &[1.0; 4], false);
    live.session.ask(2, &[2.0; 4], false);
    live.session.submit(3, &[3.0; 4], false);
    assert!(!live.worker.wait().success());
    let steps: Vec<RecordedStep> = live.record.reader().steps().collect();
    assert_eq!(steps.iter().map(|s| s.status).collect::<Vec<_>>(), [Some(Status::Ok), Some(Status::Ok), None]);
    assert_eq!(steps[2].begun.observation_id, 3);
    assert_eq!(floats(steps[2].input(0)), [3.0; 4]);
    assert_eq!(floats(steps[2].state(0)), [2.0; 4], "the state that the step began with");
    let next = live.candidate(generation(counter("h"), 2, None));
    next.record(&live.record);
    live.session.add_to(&next);
    next.take(&live.place, None);
    // The request is still there: who serves next runs it, unless the supervisor has answered it.
    let (header, _) = live.session.ask(4, &[4.0; 4], false);
    assert_eq!(header.observation_id, 3);
    live.worker = next;
    let steps = live.steps();
    assert_eq!(steps.iter().map(|s| s.number).collect::<Vec<_>>(), (0..steps.len() as u64).collect::<Vec<_>>());
    assert_eq!((steps[3].begun.observation_id, steps[3].begun.generation), (3, 2));
}

#[test]
fn a_candidate_runs_the_recorded_steps_says_how_far_apart_it_is_and_then_serves() {
    let mut live = live(&generation(scaled(10.0), 1, None));
    for label in 0..20u64 {
        live.session.ask(label, &[label as f32; 4], false);
    }
    live.steps();
    let same = live.candidate(generation(scaled(10.0), 2, None));
    same.shadow(&live.record, Some(5), None, 1000);
    let report = same.shadowed();
    assert_eq!((report.steps, report.failed, report.missed, report.state.as_str()), (5, 0, 0, "none"));
    assert_eq!((report.outputs["y"].max, report.outputs["y"].worst_step), (0.0, None));
    assert_eq!((report.live_run.count, report.new_run.count), (5, 5));
    drop(same);
    let other = live.candidate(generation(scaled(12.0), 3, None));
    other.shadow(&live.record, Some(4), None, 1000);
    let report = other.shadowed();
    let y = &report.outputs["y"];
    assert_eq!((report.steps, report.failed), (4, 0));
    // Labels 16 to 19: two too many per unit.
    assert_eq!((y.max, y.mean, y.worst_step, y.nan), (38.0, 35.0, Some(19), 0));
    // All that stand there, without waiting; and once more.
    other.shadow(&live.record, None, None, 0);
    assert_eq!(other.shadowed().steps, 8);
    let start = Instant::now();
    while other.threads() != waiting(SCHED_IDLE) {
        assert!(start.elapsed() < Duration::from_secs(10), "the shadow's thread ends: {:?}", other.threads());
    }
    other.record(&live.record);
    live.session.add_to(&other);
    other.take(&live.place, Some(&live.worker));
    let (header, output) = live.session.ask(20, &[20.0; 4], false);
    assert_eq!((header.generation, output), (3, vec![240.0; 4]));
    let threads = other.threads();
    assert!(threads.iter().all(|(_, policy)| *policy == SCHED_OTHER), "{threads:?}");
    live.worker = other;
    assert_eq!(live.steps().last().map(|s| (s.number, s.begun.generation)), Some((20, 3)));
}

#[test]
fn recorded_state_is_run_where_the_layouts_are_equal_and_a_state_of_its_own_where_not() {
    let mut live = live(&generation(counter("h"), 1, None));
    for label in 0..3 {
        let (_, shown) = live.session.ask(label, &[0.0; 4], false);
        assert_eq!(shown, [label as f32; 4]);
    }
    let same = live.candidate(generation(counter("h"), 2, None));
    same.shadow(&live.record, Some(2), None, 0);
    let report = same.shadowed();
    // Only the last two steps are run, and still the state is that of the third.
    assert_eq!((report.steps, report.state.as_str(), report.outputs["y"].max), (2, "recorded", 0.0));
    let other = live.candidate(generation(counter("memory"), 3, None));
    other.shadow(&live.record, Some(2), None, 0);
    let report = other.shadowed();
    assert_eq!((report.state.as_str(), report.outputs["y"].max), ("own", 1.0), "chained from zeros: 0, 1 for 1, 2");
    // A reset begins both anew.
    let (_, shown) = live.session.ask(3, &[0.0; 4], true);
    assert_eq!(shown, [0.0; 4]);
    live.session.ask(4, &[0.0; 4], false);
    live.steps();
    other.shadow(&live.record, Some(2), None, 0);
    assert_eq!(other.shadowed().outputs["y"].max, 0.0);
}

#[test]
fn steps_are_followed_as_they_come_and_a_candidate_that_fails_on_them_says_where() {
    let mut live = live(&generation(scaled(1.0), 1, None));
    live.session.ask(100, &[1.0; 4], false);
    let candidate = live.candidate(generation(scaled(1.0), 2, Some(("nan_at", "3"))));
    candidate.shadow(&live.record, Some(4), None, 60_000);
    candidate.shadowing(1);
    for label in 101..105 {
        live.session.ask(label, &[1.0; 4], false);
    }
    let report = candidate.shadowed();
    assert_eq!((report.steps, report.failed, report.outputs["y"].nan), (4, 1, 4));
    let failure = report.first_failure.unwrap();
    assert!(failure.contains("observation 102 of session 1") && failure.contains("NaN"), "{failure}");
    // Only those that come within the time: none comes.
    candidate.shadow(&live.record, None, Some(30), 0);
    assert_eq!(candidate.shadowed().steps, 0);
}

#[test]
fn a_shadow_ends_at_once_with_the_worker_however_long_it_would_take_and_even_if_the_model_hangs() {
    let mut live = live(&generation(scaled(1.0), 1, None));
    live.session.ask(1, &[1.0; 4], false);
    for option in [("sleep_us", "100"), ("hang_at", "1")] {
        for told in [true, false] {
            let mut candidate = live.candidate(generation(scaled(1.0), 2, Some(option)));
            candidate.shadow(&live.record, Some(1000), None, 60_000);
            let start = Instant::now();
            while !candidate.threads().contains(&("shadow-run".to_owned(), SCHED_IDLE)) {
                assert!(start.elapsed() < Duration::from_secs(10), "{:?}", candidate.threads());
            }
            std::thread::sleep(Duration::from_millis(30));
            let start = Instant::now();
            if told {
                candidate.tell(&ToWorker::Retire, &[]);
            } else {
                candidate.hang_up();
            }
            assert!(candidate.wait().success());
            assert!(start.elapsed() < Duration::from_secs(10), "{option:?}: {:?}", start.elapsed());
        }
    }
}

#[test]
fn a_candidate_survives_whatever_lies_in_the_record_region() {
    let live = live(&generation(scaled(1.0), 1, None));
    let candidate = live.candidate(generation(scaled(1.0), 2, None));
    let record = Record::new(&live.loaded.record_layout, 16);
    let mem = region::map(
        record.fd.as_fd(),
        record.layout.region_bytes(record.slots),
        Access::ReadWrite,
        inferd_ipc::layout::Backing::Memfd,
    )
    .unwrap();
    let mut random = 1u64;
    for round in 0..20u64 {
        for at in (64..mem.bytes()).step_by(8) {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            mem.word(at).store(random >> (random % 64), Ordering::Relaxed);
        }
        // Sequence numbers that look right, of every session there is, lead further in.
        for slot in 0..u64::from(record.slots) {
            let at = 64 + (slot * record.layout.step_bytes()) as usize;
            mem.word(at).store(round * 16 + slot + 1, Ordering::Relaxed);
            mem.word(at + 48).store(1 << 32, Ordering::Relaxed);
        }
        candidate.shadow(&record, Some(50), if round % 2 == 0 { None } else { Some(5) }, 5);
        let report = candidate.shadowed();
        assert!(report.outputs["y"].max.is_finite() && report.outputs["y"].mean.is_finite());
        assert_eq!(report.steps, if round % 2 == 0 { 16 } else { 0 });
    }
    live.session.add_to(&candidate);
    candidate.take(&live.place, Some(&live.worker));
}

#[test]
fn a_region_of_another_model_is_refused() {
    let live = live(&generation(scaled(1.0), 1, None));
    let mut candidate = live.candidate(generation(scaled(1.0), 2, None));
    let other = Signature { inputs: vec![tensor("x", DType::F32, &[5])], ..live.loaded.signature.clone() };
    let record = Record::new(&inferd_ipc::record::RecordLayout::new(&other, &[]), 4);
    candidate.shadow(&record, Some(1), None, 0);
    let refused = candidate.hear();
    let message = format!("{refused:?}");
    assert!(message.contains("Refused") && message.contains("another model"), "{message}");
    assert_eq!(candidate.wait().code(), Some(3));
}

#[test]
fn a_model_is_loaded_by_a_thread_that_ends_at_idle_priority_unless_it_is_awaited() {
    // One that others are served beside, and one that is awaited.
    for (loading, policy) in [(Loading::Idle, SCHED_IDLE), (Loading::Ordinary, SCHED_OTHER)] {
        let place = Place::new();
        let mut spec = generation(scaled(1.0), 1, Some(("load_delay_ms", "300")));
        spec.loading = loading;
        let worker = Worker::start(&place, &spec);
        let start = Instant::now();
        while !worker.threads().contains(&("loader".to_owned(), policy)) {
            assert!(start.elapsed() < Duration::from_secs(10), "{:?}", worker.threads());
        }
        worker.loaded();
        let start = Instant::now();
        while worker.threads() != waiting(policy) {
            assert!(start.elapsed() < Duration::from_secs(10), "the loader has ended: {:?}", worker.threads());
        }
    }
}

/// Threads of a worker that is confined and does not serve yet: a shadow run gets one that was there before, as urgent as loading.
fn waiting(policy: u32) -> [(String, u32); 2] {
    [("inferd-worker".to_owned(), SCHED_OTHER), ("shadow-run".to_owned(), policy)]
}
