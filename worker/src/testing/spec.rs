//! Specs as the supervisor makes them from an empty configuration.

use inferd_ipc::signature::{DType, TensorSpec};
use inferd_ipc::worker_records::{Confine, Device, Loading, ModelSpec, Precision, Scheduling, TensorRules, Waiting};
use std::collections::BTreeMap;

/// A tensor.
#[must_use]
pub fn tensor(name: &str, dtype: DType, shape: &[u64]) -> TensorSpec {
    TensorSpec::new(name, dtype, shape)
}

/// A spec without any rule.
#[must_use]
pub fn spec(backend: &str, file: &str) -> ModelSpec {
    ModelSpec {
        model: "test".into(),
        generation: 1,
        ticket: 1,
        baton_entry: 0,
        backend: backend.into(),
        file: file.into(),
        device: Device::Cpu,
        precision: Precision::Fp32,
        options: BTreeMap::new(),
        dimensions: BTreeMap::new(),
        inputs: BTreeMap::new(),
        outputs: BTreeMap::new(),
        input_order: Vec::new(),
        output_order: Vec::new(),
        state: Vec::new(),
        golden: Vec::new(),
        warm_up_runs: 0,
        cpu: None,
        scheduling: Scheduling::Other,
        nice: None,
        spin_us: 0,
        mlock: false,
        waiting: Waiting::Auto,
        confine: Confine::On,
        expect: None,
        validate_only: false,
        loading: Loading::Ordinary,
    }
}

/// A spec of the echo backend with these tensors, in this order.
#[must_use]
pub fn echo_spec(inputs: &[TensorSpec], outputs: &[TensorSpec]) -> ModelSpec {
    let rules = |t: &TensorSpec| {
        let rules = TensorRules { dtype: Some(t.dtype), shape: Some(t.shape.clone()), ..TensorRules::default() };
        (t.name.clone(), rules)
    };
    let names = |tensors: &[TensorSpec]| tensors.iter().map(|t| t.name.clone()).collect();
    ModelSpec {
        inputs: inputs.iter().map(rules).collect(),
        outputs: outputs.iter().map(rules).collect(),
        input_order: names(inputs),
        output_order: names(outputs),
        ..spec("echo", "")
    }
}
