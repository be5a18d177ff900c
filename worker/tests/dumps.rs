//! What `inferctl dump` saved serves as a golden pair, also from the middle of a recurrent model's sessions.
#![cfg(feature = "tract")]

use inferd_ipc::layout::Status;
use inferd_ipc::signature::DType;
use inferd_ipc::worker_records::{GoldenPair, Loaded, ModelSpec, StatePair};
use inferd_worker::files::Memory;
use inferd_worker::testing::npz::npz;
use inferd_worker::testing::onnx::{accumulator, f32_bytes};
use inferd_worker::testing::spec::spec;
use inferd_worker::{Fault, ModelError, Policy};

fn accumulators() -> ModelSpec {
    let mut spec = spec("tract", "model.onnx");
    spec.state.push(StatePair { input: "h_in".into(), output: "h_out".into() });
    spec.golden.push(GoldenPair { file: "dump.npz".into(), tolerance: 1e-6 });
    spec
}

/// Four steps of the running sum, as a dump has them.
fn checked(outputs: &[f32], states: &[f32], statuses: [u32; 4]) -> Result<Loaded, ModelError> {
    let (ones, outputs, states) = (f32_bytes(&[1.0; 4]), f32_bytes(outputs), f32_bytes(states));
    let statuses: Vec<u8> = statuses.iter().flat_map(|s| s.to_ne_bytes()).collect();
    let dump = npz(&[
        ("in.obs", DType::F32, &[4, 1, 1], &ones),
        ("out.action", DType::F32, &[4, 1, 1], &outputs),
        ("state.h_in", DType::F32, &[4, 1, 1], &states),
        ("status", DType::U32, &[4], &statuses),
        ("reset", DType::Bool, &[4], &[0; 4]),
    ]);
    let mut files = Memory::of(accumulator(1)).with("dump.npz", dump);
    Policy::load(&accumulators(), &mut files, &mut |_| {}).map(|(_, loaded)| loaded)
}

#[test]
fn each_step_of_a_dump_runs_on_the_state_that_was_recorded_with_it() {
    // Two sessions, both in the middle of their lives.
    let loaded = checked(&[8.0, 9.0, 101.0, 102.0], &[7.0, 8.0, 100.0, 101.0], [1; 4]).expect("reproduced");
    assert_eq!(loaded.golden_difference_max, Some(0.0));
    let error = checked(&[8.0, 9.0, 10.0, 11.0], &[7.0, 8.0, 100.0, 101.0], [1; 4]).expect_err("step 2 differs");
    assert_eq!(error.fault, Fault::Golden);
    assert!(error.to_string().contains("step 2") && error.to_string().contains("got 101"), "{error}");
}

#[test]
fn steps_that_did_not_end_well_are_not_compared_and_a_dump_of_nothing_else_proves_nothing() {
    let lost = [1, Status::WorkerLost as u32, Status::ModelError as u32, 0];
    checked(&[8.0, 0.0, 0.0, 0.0], &[7.0, 8.0, 8.0, 8.0], lost).expect("the first one is reproduced");
    let error = checked(&[0.0; 4], &[0.0; 4], [0; 4]).expect_err("nothing to compare");
    assert!(error.to_string().contains("no step that ended in ok"), "{error}");
}

#[test]
fn recorded_state_that_does_not_fit_the_model_is_named() {
    let ones = f32_bytes(&[1.0; 2]);
    let dump = npz(&[
        ("in.obs", DType::F32, &[1, 1, 1], &ones[..4]),
        ("out.action", DType::F32, &[1, 1, 1], &ones[..4]),
        ("state.h_in", DType::F32, &[1, 1, 2], &ones),
    ]);
    let mut files = Memory::of(accumulator(1)).with("dump.npz", dump);
    let error = Policy::load(&accumulators(), &mut files, &mut |_| {}).err().expect("refused");
    assert!(error.to_string().contains("state.h_in") && error.to_string().contains("dump.npz"), "{error}");
}
