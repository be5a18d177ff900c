//! Odd ONNX models, written here byte by byte: every dtype, every rank, and all that must be refused.
#![cfg(feature = "tract")]

use inferd_ipc::signature::{DType, Signature};
use inferd_ipc::worker_records::{GoldenPair, Loaded, ModelSpec, PerElement, StatePair, TensorRules};
use inferd_worker::files::Memory;
use inferd_worker::testing::npz::npz;
use inferd_worker::testing::onnx::{Attribute, Dim, Graph, Onnx, accumulator, f32_bytes, scaler};
use inferd_worker::testing::spec::{spec, tensor};
use inferd_worker::{Fault, ModelError, Policy};

fn onnx_spec() -> ModelSpec {
    spec("tract", "model.onnx")
}

fn load(file: Vec<u8>) -> Result<(Policy, Loaded), ModelError> {
    load_with(&onnx_spec(), Memory::of(file))
}

fn load_with(spec: &ModelSpec, mut files: Memory) -> Result<(Policy, Loaded), ModelError> {
    Policy::load(spec, &mut files, &mut |_| {})
}

fn refused(spec: &ModelSpec, files: Memory, fault: Fault, words: &[&str]) {
    let error = load_with(spec, files).err().expect("it must be refused");
    assert_eq!(error.fault, fault, "{error}");
    for word in words {
        assert!(error.to_string().contains(word), "{word:?} is missing in: {error}");
    }
}

fn step(policy: &mut Policy, inputs: &[&[u8]]) -> Result<(), ModelError> {
    for (i, bytes) in inputs.iter().enumerate() {
        policy.input_mut(i).copy_from_slice(bytes);
    }
    policy.check_inputs().expect("valid inputs");
    policy.run()
}

fn identity(dtype: DType, shape: &[Dim]) -> Vec<u8> {
    Onnx::new().input("x", dtype, shape).node("Identity", &["x"], &["y"], &[]).output("y", dtype, shape).bytes()
}

/// Row-major bytes of the numbers 0, 1, 2, ... in a dtype.
fn counting(dtype: DType, n: usize) -> Vec<u8> {
    (0..n)
        .flat_map(|i| match dtype {
            DType::F32 => (i as f32).to_ne_bytes().to_vec(),
            DType::F64 => (i as f64).to_ne_bytes().to_vec(),
            DType::F16 => half::f16::from_f32(i as f32).to_ne_bytes().to_vec(),
            DType::Bf16 => half::bf16::from_f32(i as f32).to_ne_bytes().to_vec(),
            DType::I8 | DType::U8 => vec![i as u8],
            DType::I16 | DType::U16 => (i as u16).to_ne_bytes().to_vec(),
            DType::I32 | DType::U32 => (i as u32).to_ne_bytes().to_vec(),
            DType::I64 | DType::U64 => (i as u64).to_ne_bytes().to_vec(),
            DType::Bool => vec![(i % 2) as u8],
        })
        .collect()
}

#[test]
fn every_dtype_passes_through_unchanged() {
    for dtype in DType::ALL {
        let (mut policy, loaded) = load(identity(dtype, &[2.into(), 3.into()])).expect("loads");
        assert_eq!(loaded.signature.inputs, [tensor("x", dtype, &[2, 3])]);
        assert_eq!(loaded.signature.outputs, [tensor("y", dtype, &[2, 3])]);
        for _ in 0..3 {
            step(&mut policy, &[&counting(dtype, 6)]).expect("runs");
            assert_eq!(policy.output(0), counting(dtype, 6), "{dtype}");
        }
    }
}

#[test]
fn every_number_dtype_is_computed_with() {
    for dtype in DType::ALL.into_iter().filter(|d| *d != DType::Bool) {
        let file = Onnx::new()
            .input("x", dtype, &[4.into()])
            .initialiser("w", dtype, &[4], &counting(dtype, 4))
            .node("Add", &["x", "w"], &["y"], &[])
            .output("y", dtype, &[4.into()]);
        let (mut policy, _) = load(file.bytes()).unwrap_or_else(|e| panic!("{dtype}: {e}"));
        step(&mut policy, &[&counting(dtype, 4)]).expect("runs");
        let twice: Vec<u8> = (0..4)
            .flat_map(|i| counting(dtype, 7)[2 * i * dtype.size_bytes()..][..dtype.size_bytes()].to_vec())
            .collect();
        assert_eq!(policy.output(0), twice, "{dtype}");
    }
}

#[test]
fn every_rank_up_to_the_limit_is_served_and_the_next_one_refused() {
    for rank in 0..=8usize {
        let shape: Vec<Dim> = (0..rank).map(|i| Dim::from(1 + (i as u64 % 2))).collect();
        let (_, loaded) = load(identity(DType::F32, &shape)).unwrap_or_else(|e| panic!("rank {rank}: {e}"));
        assert_eq!(loaded.signature.inputs[0].shape.len(), rank);
    }
    let shape: Vec<Dim> = (0..9).map(|_| Dim::from(1)).collect();
    refused(&onnx_spec(), Memory::of(identity(DType::F32, &shape)), Fault::Unsupported, &["9 dimensions", "limit"]);
}

#[test]
fn many_inputs_and_outputs_keep_their_order() {
    let names: Vec<(String, String)> = (0..20).map(|i| (format!("in{i:02}"), format!("out{}", 19 - i))).collect();
    let mut file = Onnx::new();
    for (i, (input, output)) in names.iter().enumerate() {
        let shape = [(i as u64 + 1).into()];
        file = file.input(input, DType::F32, &shape).node("Neg", &[input], &[output], &[]);
    }
    for (i, (_, output)) in names.iter().enumerate().rev() {
        file = file.output(output, DType::F32, &[(i as u64 + 1).into()]);
    }
    let (mut policy, loaded) = load(file.bytes()).expect("loads");
    let inputs: Vec<Vec<u8>> = (0..20).map(|i| f32_bytes(&vec![i as f32; i + 1])).collect();
    step(&mut policy, &inputs.iter().map(Vec::as_slice).collect::<Vec<_>>()).expect("runs");
    for k in 0..20 {
        assert_eq!(loaded.signature.outputs[k].name, format!("out{k}"));
        assert_eq!(policy.output(k), f32_bytes(&vec![-((19 - k) as f32); 20 - k]));
    }
}

#[test]
fn a_symbolic_batch_is_one_unless_the_manifest_says_otherwise() {
    let file = || identity(DType::F32, &["batch".into(), 3.into()]);
    let (_, loaded) = load(file()).expect("loads");
    assert_eq!(loaded.signature.inputs[0].shape, [1, 3]);
    let mut spec = onnx_spec();
    spec.dimensions.insert("batch".into(), 4);
    let (_, loaded) = load_with(&spec, Memory::of(file())).expect("loads");
    assert_eq!(loaded.signature.outputs[0].shape, [4, 3]);
    let mut spec = onnx_spec();
    spec.inputs.insert("x".into(), TensorRules { shape: Some(vec![5, 3]), ..TensorRules::default() });
    let (_, loaded) = load_with(&spec, Memory::of(file())).expect("loads");
    assert_eq!(loaded.signature.outputs[0].shape, [5, 3]);
}

#[test]
fn another_symbol_without_a_value_is_refused_by_name() {
    let file = || Memory::of(identity(DType::F32, &["batch".into(), "horizon".into()]));
    refused(&onnx_spec(), file(), Fault::Manifest, &["\"horizon\"", "[dimensions]"]);
    let mut spec = onnx_spec();
    spec.dimensions.insert("horizon".into(), 16);
    assert_eq!(load_with(&spec, file()).expect("loads").1.signature.inputs[0].shape, [1, 16]);
    spec.dimensions.insert("horizn".into(), 16);
    refused(&spec, file(), Fault::Manifest, &["horizn", "no such symbol", "batch, horizon"]);
}

#[test]
fn expressions_of_symbols_are_worked_out_and_contradictions_refused() {
    let file = || {
        Memory::of(
            Onnx::new()
                .input("a", DType::F32, &["n".into()])
                .input("b", DType::F32, &["2*n + 1".into()])
                .value_info("inner", DType::F32, &["3*n + 1".into()])
                .node("Concat", &["a", "b"], &["inner"], &[("axis", Attribute::Int(0))])
                .node("Neg", &["inner"], &["c"], &[])
                .output("c", DType::F32, &["anything".into()])
                .bytes(),
        )
    };
    let mut spec = onnx_spec();
    spec.dimensions.insert("n".into(), 5);
    let (_, loaded) = load_with(&spec, file()).expect("loads");
    assert_eq!(loaded.signature.inputs[1].shape, [11]);
    assert_eq!(loaded.signature.outputs[0].shape, [16]);
    spec.inputs.insert("a".into(), TensorRules { shape: Some(vec![6]), ..TensorRules::default() });
    refused(&spec, file(), Fault::Manifest, &["6 for \"n\"", "5 in [dimensions]"]);
}

#[test]
fn what_the_file_declares_of_an_output_shape_is_not_believed() {
    let file = Onnx::new()
        .input("x", DType::F32, &[1.into(), 3.into()])
        .node("Transpose", &["x"], &["y"], &[("perm", Attribute::Ints(vec![1, 0]))])
        .output("y", DType::F32, &[7.into(), Dim::Unknown]);
    assert_eq!(load(file.bytes()).expect("loads").1.signature.outputs[0].shape, [3, 1]);
}

#[test]
fn a_shape_that_depends_on_values_is_refused_and_one_that_does_not_is_served() {
    let nonzero = Onnx::new().input("x", DType::F32, &[4.into()]).node("NonZero", &["x"], &["y"], &[]).output(
        "y",
        DType::I64,
        &[1.into(), Dim::Unknown],
    );
    refused(&onnx_spec(), Memory::of(nonzero.bytes()), Fault::Signature, &["depends on the input", "\"y\""]);
    let shape = Onnx::new()
        .input("x", DType::F32, &["batch".into(), 4.into()])
        .node("Shape", &["x"], &["y"], &[])
        .output("y", DType::I64, &[2.into()]);
    let (mut policy, loaded) = load(shape.bytes()).expect("loads");
    assert_eq!(loaded.signature.outputs, [tensor("y", DType::I64, &[2])]);
    step(&mut policy, &[&[0; 16]]).expect("runs");
    assert_eq!(policy.output(0), [1i64.to_ne_bytes(), 4i64.to_ne_bytes()].concat());
}

#[test]
fn inputs_that_have_a_constant_value_or_no_use_are_in_order() {
    let file = Onnx::new()
        .input("x", DType::F32, &[2.into()])
        .input("w", DType::F32, &[2.into()])
        .input("unused", DType::I32, &[5.into()])
        .initialiser("w", DType::F32, &[2], &f32_bytes(&[2.0, 3.0]))
        .node("Mul", &["x", "w"], &["y"], &[])
        .output("y", DType::F32, &[2.into()]);
    let (mut policy, loaded) = load(file.bytes()).expect("loads");
    assert_eq!(loaded.signature.inputs, [tensor("x", DType::F32, &[2]), tensor("unused", DType::I32, &[5])]);
    step(&mut policy, &[&f32_bytes(&[1.0, -1.0]), &[0; 20]]).expect("runs");
    assert_eq!(policy.output(0), f32_bytes(&[2.0, -3.0]));
}

#[test]
fn a_model_of_constants_alone_is_served() {
    let value = Attribute::Tensor(DType::F32, vec![2], f32_bytes(&[1.0, 2.0]));
    let file = Onnx::new().node("Constant", &[], &["y"], &[("value", value)]).output("y", DType::F32, &[2.into()]);
    let (mut policy, _) = load(file.bytes()).expect("loads");
    step(&mut policy, &[]).expect("runs");
    assert_eq!(policy.output(0), f32_bytes(&[1.0, 2.0]));
}

fn external(location: &[(&str, &str)]) -> Vec<u8> {
    Onnx::new()
        .input("x", DType::F32, &[2.into()])
        .external("w", DType::F32, &[2], location)
        .node("Mul", &["x", "w"], &["y"], &[])
        .output("y", DType::F32, &[2.into()])
        .bytes()
}

#[test]
fn external_data_is_asked_for_by_its_relative_name() {
    let data = f32_bytes(&[9.0, 2.0, 3.0, 9.0]);
    let file = external(&[("location", "weights/w.bin"), ("offset", "4"), ("length", "8")]);
    let (mut policy, _) = load_with(&onnx_spec(), Memory::of(file).with("weights/w.bin", data)).expect("loads");
    step(&mut policy, &[&f32_bytes(&[1.0, 1.0])]).expect("runs");
    assert_eq!(policy.output(0), f32_bytes(&[2.0, 3.0]));
}

#[test]
fn external_data_that_is_missing_short_or_elsewhere_is_refused() {
    let file = |l: &[(&str, &str)]| Memory::of(external(l)).with("w.bin", vec![0; 8]);
    let cases: [(&[(&str, &str)], &str); 6] = [
        (&[("location", "gone.bin")], "gone.bin"),
        (&[("location", "../w.bin")], "outside the model's folder"),
        (&[("location", "/w.bin")], "outside the model's folder"),
        (&[("location", "w.bin"), ("offset", "4"), ("length", "8")], "the file has 8 bytes"),
        (&[("location", "w.bin"), ("offset", "18446744073709551615"), ("length", "8")], "the file has 8 bytes"),
        (&[("location", "w.bin"), ("length", "x")], "not a number"),
    ];
    for (location, word) in cases {
        refused(&onnx_spec(), file(location), Fault::File, &[word]);
    }
    let short = file(&[("location", "w.bin"), ("length", "4")]);
    refused(&onnx_spec(), short, Fault::Unsupported, &["does not match shape"]);
}

#[test]
fn unknown_operators_are_refused_by_name_even_in_subgraphs() {
    let inner = Graph::new().node("Levitate", &[], &["z"], &[]).output("z", DType::F32, &[1.into()]);
    let file = Onnx::new()
        .input("x", DType::Bool, &[])
        .node(
            "If",
            &["x"],
            &["y"],
            &[("then_branch", Attribute::Graph(inner.clone())), ("else_branch", Attribute::Graph(inner))],
        )
        .output("y", DType::F32, &[1.into()]);
    refused(&onnx_spec(), Memory::of(file.bytes()), Fault::Unsupported, &["Levitate"]);
}

fn branch(n: u64) -> Attribute {
    let value = Attribute::Tensor(DType::F32, vec![n], f32_bytes(&vec![n as f32; n as usize]));
    Attribute::Graph(Graph::new().node("Constant", &[], &["z"], &[("value", value)]).output(
        "z",
        DType::F32,
        &[n.into()],
    ))
}

#[test]
fn an_if_with_branches_of_different_shapes_is_refused() {
    let file = Onnx::new()
        .input("x", DType::Bool, &[])
        .node("If", &["x"], &["y"], &[("then_branch", branch(2)), ("else_branch", branch(3))])
        .output("y", DType::F32, &[Dim::Unknown]);
    let error = load(file.bytes()).err().expect("two shapes");
    println!("{error}");
    assert!(matches!(error.fault, Fault::Unsupported | Fault::Signature), "{error}");
}

#[test]
fn files_that_are_no_model_are_refused_with_a_remedy() {
    for (bytes, word) in [(&b""[..], "no graph"), (b"PK\x03\x04...", "TorchScript"), (b"hello world", "ONNX")] {
        refused(&onnx_spec(), Memory::of(bytes.to_vec()), Fault::File, &[word, "`backend`"]);
    }
    let mut spec = onnx_spec();
    spec.backend = "torch".into();
    refused(&spec, Memory::default(), Fault::Unsupported, &["torch", "echo, tract"]);
}

#[test]
fn contradictions_between_manifest_and_file_name_both() {
    let file = || Memory::of(scaler(3, 1.0));
    let with = |name: &str, rules: TensorRules| {
        let mut spec = onnx_spec();
        spec.inputs.insert(name.into(), rules);
        spec
    };
    let base = TensorRules::default;
    let dtype = with("obs", TensorRules { dtype: Some(DType::F64), ..base() });
    refused(&dtype, file(), Fault::Manifest, &["f64", "f32", "[inputs.obs]"]);
    let shape = with("obs", TensorRules { shape: Some(vec![1, 4]), ..base() });
    refused(&shape, file(), Fault::Manifest, &["4 at axis 1", "has 3"]);
    let name = with("observation", base());
    refused(&name, file(), Fault::Manifest, &["observation", "obs"]);
    let elements = with("obs", TensorRules { elements: vec!["a [m]".into()], ..base() });
    refused(&elements, file(), Fault::Manifest, &["1 names", "3"]);
    let mut spec = onnx_spec();
    spec.outputs.insert("action".into(), TensorRules { shape: Some(vec![3]), ..base() });
    refused(&spec, file(), Fault::Manifest, &["[3]", "[1, 3]"]);
    let mut spec = onnx_spec();
    spec.state.push(StatePair { input: "h".into(), output: "action".into() });
    refused(&spec, file(), Fault::Manifest, &["[[state]]", "\"h\"", "obs"]);
}

#[test]
fn elements_and_time_axis_reach_the_signature() {
    let mut spec = onnx_spec();
    let elements = vec!["x [m]".into(), "y [m]".into()];
    spec.outputs.insert("action".into(), TensorRules { elements, time_axis: Some(0), ..TensorRules::default() });
    let (_, loaded) = load_with(&spec, Memory::of(scaler(2, 1.0))).expect("loads");
    assert_eq!(loaded.signature.outputs[0].elements, "x [m]\ny [m]");
    assert_eq!(loaded.signature.outputs[0].time_axis, Some(0));
}

#[test]
fn state_goes_round_and_non_finite_state_is_a_model_error() {
    let mut spec = onnx_spec();
    spec.state.push(StatePair { input: "h_in".into(), output: "h_out".into() });
    let (mut policy, loaded) = load_with(&spec, Memory::of(accumulator(2))).expect("loads");
    assert_eq!(
        loaded.signature,
        Signature {
            inputs: vec![tensor("obs", DType::F32, &[1, 2])],
            outputs: vec![tensor("action", DType::F32, &[1, 2])],
            stateful: true,
        }
    );
    assert_eq!(loaded.state_bytes, 64);
    let mut state = vec![0; 8];
    for k in 1..=3 {
        policy.state_in_mut(0).copy_from_slice(&state);
        step(&mut policy, &[&f32_bytes(&[1.0, 2.0])]).expect("runs");
        state.copy_from_slice(policy.state_out(0));
        assert_eq!(policy.output(0), f32_bytes(&[k as f32, 2.0 * k as f32]));
    }
    policy.state_in_mut(0).copy_from_slice(&f32_bytes(&[f32::MAX, 0.0]));
    let error = step(&mut policy, &[&f32_bytes(&[f32::MAX, 0.0])]).expect_err("overflows");
    assert_eq!(error.fault, Fault::NonFinite);
    policy.state_in_mut(0).fill(0);
    step(&mut policy, &[&f32_bytes(&[1.0, 2.0])]).expect("the next step works");
}

#[test]
fn golden_pairs_feed_state_back_and_respect_resets() {
    let mut spec = onnx_spec();
    spec.state.push(StatePair { input: "h_in".into(), output: "h_out".into() });
    spec.golden.push(GoldenPair { file: "g.npz".into(), tolerance: 1e-6 });
    let ones = f32_bytes(&[1.0; 4]);
    let file = |out: &[f32], reset: &[u8]| {
        let out = f32_bytes(out);
        let arrays = npz(&[
            ("in.obs", DType::F32, &[4, 1, 1], &ones),
            ("out.action", DType::F32, &[4, 1, 1], &out),
            ("out.h_out", DType::F32, &[4, 1, 1], &out),
            ("reset", DType::Bool, &[4], reset),
        ]);
        Memory::of(accumulator(1)).with("g.npz", arrays)
    };
    let (_, loaded) = load_with(&spec, file(&[1.0, 2.0, 1.0, 2.0], &[0, 0, 1, 0])).expect("reproduced");
    assert_eq!(loaded.golden_difference_max, Some(0.0));
    refused(&spec, file(&[1.0, 2.0, 3.0, 4.5], &[0; 4]), Fault::Golden, &["step 3", "got 4", "recorded 4.5", "g.npz"]);
    refused(&spec, Memory::of(accumulator(1)), Fault::File, &["g.npz"]);
    let other = npz(&[("in.obs", DType::F64, &[1, 1, 1], &[0; 8]), ("out.action", DType::F32, &[1, 1, 1], &[0; 4])]);
    refused(&spec, Memory::of(accumulator(1)).with("g.npz", other), Fault::Golden, &["in.obs is f64", "f32[1, 1]"]);
}

#[test]
fn conditioning_and_guard_work_around_a_real_run() {
    let mut spec = onnx_spec();
    let input = TensorRules {
        mean: Some(PerElement::All(1.0)),
        std: Some(PerElement::Each(vec![1.0, 2.0])),
        ..TensorRules::default()
    };
    let output = TensorRules {
        offset: Some(PerElement::All(0.5)),
        limits: Some([PerElement::All(-100.0), PerElement::All(100.0)]),
        clip: Some([PerElement::All(-10.0), PerElement::All(10.0)]),
        ..TensorRules::default()
    };
    spec.inputs.insert("obs".into(), input);
    spec.outputs.insert("action".into(), output);
    let (mut policy, _) = load_with(&spec, Memory::of(scaler(2, 3.0))).expect("loads");
    step(&mut policy, &[&f32_bytes(&[2.0, 2.0])]).expect("runs");
    assert_eq!(policy.output(0), f32_bytes(&[3.5, 2.0]));
    step(&mut policy, &[&f32_bytes(&[11.0, -11.0])]).expect("runs");
    assert_eq!(policy.output(0), f32_bytes(&[10.0, -10.0]));
    let error = step(&mut policy, &[&f32_bytes(&[1000.0, 0.0])]).expect_err("over the limit");
    assert_eq!(error.fault, Fault::Limits);
    policy.input_mut(0).copy_from_slice(&f32_bytes(&[0.0, f32::NAN]));
    let rejected = policy.check_inputs().expect_err("not finite");
    assert_eq!((rejected.input, rejected.element), (0, 1));
}

#[test]
fn a_bool_that_is_neither_0_nor_1_never_reaches_the_model() {
    let (mut policy, _) = load(identity(DType::Bool, &[3.into()])).expect("loads");
    policy.input_mut(0).copy_from_slice(&[0, 1, 2]);
    assert_eq!(policy.check_inputs().expect_err("not a bool").element, 2);
    step(&mut policy, &[&[0, 1, 1]]).expect("runs");
    assert_eq!(policy.output(0), [0, 1, 1]);
}

#[test]
fn nan_weights_are_refused_at_load_and_nan_that_is_meant_is_not() {
    refused(&onnx_spec(), Memory::of(scaler(2, f32::NAN)), Fault::NonFinite, &["action", "allow_non_finite"]);
    let mut spec = onnx_spec();
    spec.outputs.insert("action".into(), TensorRules { allow_non_finite: true, ..TensorRules::default() });
    load_with(&spec, Memory::of(scaler(2, f32::NAN))).expect("meant");
}

#[test]
fn a_changed_signature_is_a_new_model() {
    let live = load(scaler(2, 1.0)).expect("loads").1.signature;
    let mut spec = onnx_spec();
    spec.expect = Some(live);
    load_with(&spec, Memory::of(scaler(2, 5.0))).expect("same signature");
    refused(&spec, Memory::of(scaler(3, 1.0)), Fault::Signature, &["[1, 3]", "[1, 2]", "new model"]);
}

#[test]
fn indices_out_of_range_fail_the_step_and_the_next_one_works() {
    let file = Onnx::new()
        .input("i", DType::I64, &[1.into()])
        .initialiser("table", DType::F32, &[2, 1], &f32_bytes(&[7.0, 8.0]))
        .node("Gather", &["table", "i"], &["y"], &[("axis", Attribute::Int(0))])
        .output("y", DType::F32, &[1.into(), 1.into()]);
    let (mut policy, _) = load(file.bytes()).expect("loads");
    for _ in 0..3 {
        let error = step(&mut policy, &[&1000i64.to_ne_bytes()]).expect_err("out of range");
        assert!(matches!(error.fault, Fault::Run | Fault::Panic), "{error}");
        step(&mut policy, &[&1i64.to_ne_bytes()]).expect("works again");
        assert_eq!(policy.output(0), f32_bytes(&[8.0]));
    }
}

#[test]
fn dimensions_without_measure_are_refused_before_memory_is_taken() {
    let mut spec = onnx_spec();
    spec.dimensions.insert("n".into(), 1 << 40);
    refused(&spec, Memory::of(identity(DType::F32, &["n".into()])), Fault::Unsupported, &["limit"]);
}

#[test]
fn warm_up_makes_at_least_the_runs_asked_for_and_tells_its_stages() {
    let mut spec = onnx_spec();
    spec.warm_up_runs = 321;
    let mut stages = Vec::new();
    let (_, loaded) =
        Policy::load(&spec, &mut Memory::of(scaler(2, 1.0)), &mut |s| stages.push(s.to_owned())).expect("loads");
    assert!(loaded.warm_up_runs >= 321);
    assert_eq!(stages, ["loading", "checking", "warming"]);
    assert!(loaded.backend.starts_with("tract 0."), "{}", loaded.backend);
}

#[test]
fn the_plain_graph_gives_what_the_optimised_one_gives() {
    let mut spec = onnx_spec();
    spec.options.insert("optimise".into(), "false".into());
    let (mut policy, _) = load_with(&spec, Memory::of(scaler(2, 2.0))).expect("loads");
    step(&mut policy, &[&f32_bytes(&[1.0, 2.0])]).expect("runs");
    assert_eq!(policy.output(0), f32_bytes(&[2.0, 4.0]));
    spec.options.insert("optimize".into(), "false".into());
    refused(&spec, Memory::of(scaler(2, 2.0)), Fault::Manifest, &["optimize", "optimise"]);
}
