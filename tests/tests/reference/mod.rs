//! What a model must answer, computed beside the daemon by the same library in this process.
//!
//! Served answers are compared with these bit by bit: hashes per observation for a stateless model, the digest
//! of a whole course for a recurrent one (`check=answers` and `check=digest` of tests/DRIVER.md).
#![allow(dead_code)]

use inferd_ipc::worker_records::StatePair;
use inferd_tests::answer::{FNV_START, OBSERVATIONS, fill, fnv1a};
use inferd_worker::Policy;
use inferd_worker::files::Memory;
use inferd_worker::testing::spec::spec;

/// A model in this process, loaded as a worker loads it.
fn load(bytes: Vec<u8>, state: &[(&str, &str)]) -> Policy {
    inferd_ipc::sys::flush_denormals_to_zero();
    let mut spec = spec("tract", "policy.onnx");
    let pair = |(input, output): &(&str, &str)| StatePair { input: (*input).into(), output: (*output).into() };
    spec.state = state.iter().map(pair).collect();
    Policy::load(&spec, &mut Memory::of(bytes), &mut |_| ()).expect("what the daemon serves can be loaded here").0
}

/// One step on the observation of this seed; the hash of all outputs, if the step is answered.
fn step(policy: &mut Policy, seed: u64) -> Option<u64> {
    for i in 0..policy.signature().inputs.len() {
        let input = policy.input_mut(i);
        let bytes = fill(seed + i as u64, input.len());
        input.copy_from_slice(&bytes);
    }
    policy.check_inputs().ok()?;
    policy.run().ok()?;
    let outputs = policy.signature().outputs.len();
    Some((0..outputs).fold(FNV_START, |hash, k| fnv1a(hash, policy.output(k))))
}

/// The hashes of a stateless model's answers to the observations of this seed; "" where it gives none.
pub fn answers(bytes: Vec<u8>, seed: u64) -> [String; OBSERVATIONS] {
    let mut policy = load(bytes, &[]);
    std::array::from_fn(|i| step(&mut policy, seed + i as u64).map_or(String::new(), |hash| format!("{hash:016x}")))
}

/// The digests of a recurrent model's course after 0, 1, .. `steps` steps on one observation.
pub fn course(bytes: Vec<u8>, state: &[(&str, &str)], seed: u64, steps: usize) -> Vec<String> {
    let mut policy = load(bytes, state);
    (0..policy.state_offsets().len()).for_each(|k| policy.state_in_mut(k).fill(0));
    let mut digests = vec![FNV_START];
    let mut last = 0;
    for n in 0..steps {
        let hash = step(&mut policy, seed).expect("a course without errors");
        assert_ne!(hash, last, "the state came to rest at step {n}: the course would prove nothing");
        last = hash;
        digests.push(fnv1a(digests[n], &hash.to_le_bytes()));
        for k in 0..policy.state_offsets().len() {
            let next = policy.state_out(k).to_vec();
            policy.state_in_mut(k).copy_from_slice(&next);
        }
    }
    digests.iter().map(|digest| format!("{digest:016x}")).collect()
}
