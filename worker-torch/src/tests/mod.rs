//! Modules written by hand, loaded and run as the worker does it: through a policy.

mod gpu;

use crate::Torch;
use inferd_ipc::signature::DType;
use inferd_ipc::worker_records::{Device, ModelSpec, Precision, StatePair, TensorRules};
use inferd_worker::files::Memory;
use inferd_worker::testing::spec::spec;
use inferd_worker::testing::torchscript::Script;
use inferd_worker::{Fault, ModelError, Policy};

fn rules(dtype: DType, shape: &[u64]) -> TensorRules {
    TensorRules { dtype: Some(dtype), shape: Some(shape.to_vec()), ..TensorRules::default() }
}

/// A manifest with these inputs, all f32[1,4], and these names of outputs.
fn manifest(inputs: &[&str], outputs: &[&str]) -> ModelSpec {
    let mut spec = spec("torch", "model.pt");
    for name in inputs {
        spec.inputs.insert((*name).to_owned(), rules(DType::F32, &[1, 4]));
        spec.input_order.push((*name).to_owned());
    }
    spec.output_order = outputs.iter().map(|o| (*o).to_owned()).collect();
    spec.warm_up_runs = 1;
    spec
}

fn load_saying(script: &Script, spec: &ModelSpec) -> Result<(Policy, Vec<String>), ModelError> {
    let mut said = Vec::new();
    let mut progress = |text: &str| said.extend(text.strip_prefix("warning: ").map(str::to_owned));
    let (policy, _) = Policy::load_from(spec, &mut Memory::of(script.bytes()), &[&Torch], &mut progress)?;
    Ok((policy, said))
}

fn load(script: &Script, spec: &ModelSpec) -> Policy {
    load_saying(script, spec).unwrap_or_else(|e| panic!("{e}\n{script:?}")).0
}

fn refusal(script: &Script, spec: &ModelSpec) -> ModelError {
    load_saying(script, spec).map(|(_, said)| said).expect_err("it is refused")
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| f32::from_ne_bytes(*b)).collect()
}

/// One step on inputs that are this number everywhere.
fn step(policy: &mut Policy, value: f32) -> Result<Vec<f32>, ModelError> {
    for i in 0..policy.signature().inputs.len() {
        policy.input_mut(i).as_chunks_mut().0.fill(value.to_ne_bytes());
    }
    policy.check_inputs().expect("finite");
    policy.run()?;
    Ok(floats(policy.output(0)))
}

/// A session's state, taken out and put in as the executor does it.
fn take(policy: &Policy) -> Vec<Vec<u8>> {
    (0..policy.state_offsets().len()).map(|k| policy.state_out(k).to_vec()).collect()
}

fn put(policy: &mut Policy, state: &Option<Vec<Vec<u8>>>) {
    for k in 0..policy.state_offsets().len() {
        match state {
            Some(state) => policy.state_in_mut(k).copy_from_slice(&state[k]),
            None => policy.reset_state(k),
        }
    }
}

/// y = x + h, then h = h + 1; h begins at 5.
fn counter() -> Script {
    Script::forward("x: Tensor", "Tensor", &["y = torch.add(x, self.h)", "_0 = torch.add_(self.h, 1)", "return y"])
        .buffer("h", &[1, 4], &[5.0; 4])
        .method("forget(self)", "NoneType", &["_0 = torch.fill_(self.h, 2)", "return None"])
}

#[test]
fn outputs_are_a_tensor_a_tuple_a_list_or_a_dict_nested_once() {
    for (returns, body, outputs, want) in [
        ("Tensor", "return torch.add(x, 1)", vec!["a"], vec![2.0]),
        ("Tensor", "return torch.add(x, 1)", vec![], vec![2.0]),
        ("Tuple[Tensor, Tensor]", "return (torch.add(x, 1), x)", vec!["a", "b"], vec![2.0, 1.0]),
        ("List[Tensor]", "return [torch.add(x, 1), x]", vec!["a", "b"], vec![2.0, 1.0]),
        ("Dict[str, Tensor]", "return {\"a\": torch.add(x, 1), \"b\": x}", vec!["b", "a"], vec![1.0, 2.0]),
        ("Dict[str, Tensor]", "return {\"a\": torch.add(x, 1), \"b\": x}", vec![], vec![2.0, 1.0]),
        ("Dict[str, Tensor]", "return {\"a\": torch.add(x, 1), \"b\": x}", vec!["b"], vec![1.0]),
        (
            "Tuple[Tensor, Tuple[Tensor, Tensor]]",
            "return (x, (torch.add(x, 1), torch.add(x, 2)))",
            vec!["a", "b", "c"],
            vec![1.0, 2.0, 3.0],
        ),
    ] {
        let script = Script::forward("x: Tensor", returns, &[body]);
        let mut policy = load(&script, &manifest(&["x"], &outputs));
        step(&mut policy, 1.0).expect("runs");
        let got: Vec<f32> = (0..policy.signature().outputs.len()).map(|i| floats(policy.output(i))[0]).collect();
        assert_eq!(got, want, "{returns}: {outputs:?}");
    }
}

#[test]
fn every_dtype_of_the_data_plane_goes_in_and_out() {
    for dtype in DType::ALL {
        let mut spec = manifest(&["x"], &["y"]);
        spec.inputs.insert("x".into(), rules(dtype, &[2, 3]));
        let mut policy = load(&Script::forward("x: Tensor", "Tensor", &["return torch.clone(x)"]), &spec);
        let bytes: Vec<u8> = (0..6 * dtype.size_bytes()).map(|i| (i % 2) as u8).collect();
        policy.input_mut(0).copy_from_slice(&bytes);
        policy.check_inputs().expect("finite");
        policy.run().expect("runs");
        assert_eq!(policy.output(0), bytes, "{dtype}");
        assert_eq!(policy.signature().outputs[0].dtype, dtype);
    }
}

#[test]
fn inputs_are_arguments_in_order_or_the_entries_of_a_dict() {
    let positional = Script::forward("a: Tensor, b: Tensor", "Tensor", &["return torch.sub(a, b)"]);
    let dict = Script::forward("obs: Dict[str, Tensor]", "Tensor", &["return torch.sub(obs[\"a\"], obs[\"b\"])"]);
    for script in [positional, dict] {
        let mut policy = load(&script, &manifest(&["a", "b"], &["y"]));
        policy.input_mut(0).as_chunks_mut().0.fill(5f32.to_ne_bytes());
        policy.input_mut(1).as_chunks_mut().0.fill(3f32.to_ne_bytes());
        policy.run().expect("runs");
        assert_eq!(floats(policy.output(0)), [2.0; 4]);
    }
}

#[test]
fn a_state_that_is_a_tuple_goes_in_and_out_as_a_pair_for_each_element() {
    let script = Script::forward(
        "x: Tensor, state: Tuple[Tensor, Tensor]",
        "Tuple[Tensor, Tuple[Tensor, Tensor]]",
        &["h, c, = state", "return (torch.add(torch.mul(h, 10), c), (torch.add(h, x), torch.sub(c, x)))"],
    );
    let mut spec = manifest(&["x", "state.0", "state.1"], &["y", "h", "c"]);
    for (input, output) in [("state.0", "h"), ("state.1", "c")] {
        spec.state.push(StatePair { input: input.into(), output: output.into() });
    }
    let mut policy = load(&script, &spec);
    let mut state = None;
    for want in [0.0, 9.0, 18.0] {
        put(&mut policy, &state);
        assert_eq!(step(&mut policy, 1.0).expect("runs"), [want; 4]);
        state = Some(take(&policy));
    }
    let error = refusal(&script, &manifest(&["x", "state"], &["y", "h", "c"])).to_string();
    assert!(error.contains("takes 3 (x, state.0, state.1)"), "{error}");
}

#[test]
fn a_state_beside_a_dict_of_observations_is_known_by_its_name() {
    let script = Script::forward(
        "obs: Dict[str, Tensor], state: Tuple[Tensor, Tensor]",
        "Tensor",
        &["h, c, = state", "return torch.add(torch.sub(obs[\"a\"], obs[\"b\"]), torch.sub(h, c))"],
    );
    let mut policy = load(&script, &manifest(&["b", "state.0", "a", "state.1"], &["y"]));
    for (i, value) in [1f32, 50.0, 7.0, 20.0].into_iter().enumerate() {
        policy.input_mut(i).as_chunks_mut().0.fill(value.to_ne_bytes());
    }
    policy.run().expect("runs");
    assert_eq!(floats(policy.output(0)), [36.0; 4]);
    for (inputs, say) in [
        (["a", "b", "state.1", "state.0"].as_slice(), "give the elements of a tuple in their order"),
        (&["a", "b", "state.0"], "lacks \"state.1\""),
        (&["state.0", "state.1"], "describes none of its entries"),
    ] {
        let error = refusal(&script, &manifest(inputs, &["y"])).to_string();
        assert!(error.contains(say), "{say}: {error}");
    }
}

#[test]
fn an_argument_that_may_be_absent_is_given_where_the_manifest_names_it() {
    let script = Script::forward(
        "x: Tensor, mask: Optional[Tensor]=None, scale: float=2.",
        "Tensor",
        &[
            "if torch.__is__(mask, None):",
            "  y = torch.mul(x, scale)",
            "else:",
            "  y = torch.add(x, unchecked_cast(Tensor, mask))",
            "return y",
        ],
    );
    let mut without = load(&script, &manifest(&["x"], &["y"]));
    assert_eq!(step(&mut without, 5.0).expect("runs"), [10.0; 4]);
    let mut with = load(&script, &manifest(&["x", "mask"], &["y"]));
    with.input_mut(0).as_chunks_mut().0.fill(5f32.to_ne_bytes());
    with.input_mut(1).as_chunks_mut().0.fill(100f32.to_ne_bytes());
    with.run().expect("runs");
    assert_eq!(floats(with.output(0)), [105.0; 4]);
}

#[test]
fn scalars_empty_tensors_halves_and_flags_pass() {
    for (dtype, shape, body, of, dims) in [
        (DType::F32, vec![], "return torch.add(x, 1)", DType::F32, vec![]),
        (DType::F32, vec![0, 4], "return torch.sum(x)", DType::F32, vec![]),
        (DType::F32, vec![0, 4], "return torch.add(x, 1)", DType::F32, vec![0, 4]),
        (DType::F16, vec![1, 4], "return torch.matmul(x, torch.transpose(x, 0, 1))", DType::F16, vec![1, 1]),
        (DType::I64, vec![3], "return torch.gt(x, 0)", DType::Bool, vec![3]),
        (DType::U8, vec![1, 3, 2, 2], "return torch.to(x, 6)", DType::F32, vec![1, 3, 2, 2]),
    ] {
        let mut spec = manifest(&["x"], &["y"]);
        spec.inputs.insert("x".into(), rules(dtype, &shape));
        let mut policy = load(&Script::forward("x: Tensor", "Tensor", &[body]), &spec);
        policy.input_mut(0).fill(0);
        policy.run().expect("runs");
        let output = &policy.signature().outputs[0];
        assert_eq!((output.dtype, &output.shape), (of, &dims), "{body}");
        assert_eq!(policy.output(0).len() as u64, output.bytes());
    }
}

#[test]
fn two_sessions_do_not_share_a_memory_and_a_reset_is_the_value_as_loaded() {
    for optimise in ["none", "freeze", "auto"] {
        let mut spec = manifest(&["x"], &["y"]);
        spec.options.insert("optimise".into(), optimise.into());
        let mut policy = load(&counter(), &spec);
        assert!(policy.signature().stateful && policy.signature().inputs.len() == 1);
        let mut sessions = [None, None];
        for (session, want) in [(0, 5.0), (0, 6.0), (1, 5.0), (0, 7.0), (1, 6.0)] {
            put(&mut policy, &sessions[session]);
            assert_eq!(step(&mut policy, 0.0).expect("runs"), [want; 4], "{optimise}");
            sessions[session] = Some(take(&policy));
        }
        put(&mut policy, &None);
        assert_eq!(step(&mut policy, 0.0).expect("runs"), [5.0; 4]);
    }
}

#[test]
fn a_reset_is_what_the_reset_method_leaves_where_the_manifest_names_one() {
    let mut spec = manifest(&["x"], &["y"]);
    spec.options.insert("reset_method".into(), "forget".into());
    let mut policy = load(&counter(), &spec);
    put(&mut policy, &None);
    assert_eq!(step(&mut policy, 0.0).expect("runs"), [2.0; 4]);
    spec.options.insert("reset_method".into(), "forgot".into());
    let error = refusal(&counter(), &spec).to_string();
    assert!(error.contains("reset_method") && error.contains("forgot"), "{error}");
}

#[test]
fn attributes_that_are_assigned_anew_are_state_too_even_crosswise_and_from_an_input() {
    let script =
        Script::forward("x: Tensor", "Tensor", &["old = self.a", "self.a = self.b", "self.b = x", "return old"])
            .buffer("a", &[1, 4], &[1.0; 4])
            .buffer("b", &[1, 4], &[2.0; 4]);
    let mut policy = load(&script, &manifest(&["x"], &["y"]));
    let mut state = None;
    for (value, want) in [(3.0, 1.0), (4.0, 2.0), (5.0, 3.0), (6.0, 4.0)] {
        put(&mut policy, &state);
        assert_eq!(step(&mut policy, value).expect("runs"), [want; 4]);
        state = Some(take(&policy));
    }
}

#[test]
fn explicit_pairs_work_as_in_other_backends_beside_hidden_state() {
    let script = Script::forward(
        "x: Tensor, h: Tensor",
        "Tuple[Tensor, Tensor]",
        &["_0 = torch.add_(self.n, 1)", "return (torch.add(torch.add(x, h), self.n), torch.add(h, 10))"],
    )
    .buffer("n", &[1, 4], &[0.0; 4]);
    let mut spec = manifest(&["x", "h"], &["y", "h_out"]);
    spec.state.push(StatePair { input: "h".into(), output: "h_out".into() });
    let mut policy = load(&script, &spec);
    assert_eq!(policy.state_offsets(), [0, 64]);
    let mut state = None;
    for want in [1.0, 12.0, 23.0] {
        put(&mut policy, &state);
        assert_eq!(step(&mut policy, 0.0).expect("runs"), [want; 4]);
        state = Some(take(&policy));
    }
}

#[test]
fn what_a_session_could_not_keep_is_refused() {
    let grows = Script::forward("x: Tensor", "Tensor", &["self.h = torch.cat([self.h, x])", "return x"]).buffer(
        "h",
        &[1, 4],
        &[0.0; 4],
    );
    let counts = Script::forward("x: Tensor", "Tensor", &["self.n = torch.add(self.n, 1)", "return x"]).int("n", 0);
    for (script, say) in [(grows, "changes its layout"), (counts, "is no tensor, so every robot would share it")] {
        let error = refusal(&script, &manifest(&["x"], &["y"]));
        assert!(error.to_string().contains(say), "{error}");
    }
}

#[test]
fn a_manifest_that_does_not_fit_is_refused_with_what_the_module_has() {
    let script = Script::forward("obs: Tensor, command: Tensor", "Tuple[Tensor, Tensor]", &["return (obs, command)"]);
    let fits = manifest(&["obs", "command"], &["a", "b"]);
    load(&script, &fits);
    let mut no_shape = fits.clone();
    no_shape.inputs.get_mut("obs").expect("there").shape = None;
    let mut wrong_shape = fits.clone();
    wrong_shape.outputs.insert("a".into(), rules(DType::F32, &[1, 5]));
    let mut wrong_dtype = fits.clone();
    wrong_dtype.outputs.insert("b".into(), rules(DType::F64, &[1, 4]));
    let mut option = fits.clone();
    option.options.insert("threads".into(), "4".into());
    let mut method = fits.clone();
    method.options.insert("method".into(), "act".into());
    for (spec, say) in [
        (manifest(&["obs"], &["a", "b"]), "describes 1 inputs (obs), but `forward` takes 2 (obs, command)"),
        (manifest(&["command", "obs"], &["a", "b"]), "give the order of the arguments"),
        (manifest(&["obs", "command"], &["a"]), "names 1 outputs (a), but the method returns 2: f32[1, 4], f32[1, 4]"),
        (manifest(&["obs", "command"], &[]), "names no outputs"),
        (no_shape, "lacks dtype or shape"),
        (wrong_shape, "is [1, 5]"),
        (wrong_dtype, "is f64"),
        (option, "torch knows"),
        (method, "no method `act`"),
    ] {
        let error = refusal(&script, &spec).to_string();
        assert!(error.contains(say), "{say}: {error}");
    }
    let matmul =
        Script::forward("x: Tensor", "Tensor", &["return torch.matmul(x, self.w)"]).buffer("w", &[5, 2], &[0.5; 10]);
    let error = refusal(&matmul, &manifest(&["x"], &["y"]));
    assert_eq!(error.fault, Fault::Unsupported);
    assert!(error.to_string().contains("shapes cannot be multiplied (1x4 and 5x2)"), "{error}");
}

#[test]
fn what_is_no_tensor_and_what_changes_its_shape_is_refused() {
    let number = Script::forward("x: Tensor", "int", &["return 1"]);
    let text = Script::forward("x: Tensor, name: str", "Tensor", &["return x"]);
    let shapes = Script::forward("x: Tensor", "Tensor", &["return torch.nonzero(x)"]);
    for (script, say) in [
        (number, "is no tensor, but Int"),
        (text, "argument \"name\" of `forward` is str"),
        (shapes, "depend on the values of its inputs"),
    ] {
        let error = refusal(&script, &manifest(&["x"], &["y"])).to_string();
        assert!(error.contains(say), "{error}");
    }
}

#[test]
fn files_that_are_not_torchscript_are_refused_by_what_they_are() {
    let spec = manifest(&["x"], &["y"]);
    let mut cut = counter().bytes();
    cut.truncate(cut.len() / 2);
    let later = counter().version(999).bytes();
    for (bytes, say) in [
        (b"\x08\x07onnx".to_vec(), "no archive at all"),
        (b"\x80\x02}.".to_vec(), "a pickle"),
        (Script::checkpoint(), "a checkpoint of torch.save"),
        (cut, "cut off"),
        (later, "export it with PyTorch 2.11 or older"),
    ] {
        let loaded = Policy::load_from(&spec, &mut Memory::of(bytes), &[&Torch], &mut |_| {});
        let error = loaded.map(|_| ()).expect_err(say);
        assert_eq!(error.fault, Fault::File, "{error}");
        assert!(error.to_string().contains(say), "{say}: {error}");
    }
}

#[test]
fn a_run_that_raises_or_answers_nan_is_an_error_and_the_next_one_works() {
    let script = Script::forward(
        "x: Tensor",
        "Tensor",
        &[
            "if bool(torch.gt(torch.sum(x), 100.)):",
            "  ops.prim.RaiseException(\"the robot fell\")",
            "else:",
            "  pass",
            "return torch.sqrt(x)",
        ],
    );
    let mut policy = load(&script, &manifest(&["x"], &["y"]));
    assert_eq!(step(&mut policy, 4.0).expect("runs"), [2.0; 4]);
    let error = step(&mut policy, 50.0).expect_err("it raises");
    assert_eq!(error.fault, Fault::Run);
    assert!(error.to_string().contains("the robot fell"), "{error}");
    assert_eq!(step(&mut policy, -1.0).expect_err("NaN").fault, Fault::NonFinite);
    assert_eq!(step(&mut policy, 9.0).expect("runs again"), [3.0; 4]);
}

#[test]
fn a_model_that_changes_the_shape_of_its_input_gets_it_whole_again() {
    let script = Script::forward("x: Tensor", "Tensor", &["_0 = torch.unsqueeze_(x, 0)", "return torch.add(x, 1)"]);
    let mut policy = load(&script, &manifest(&["x"], &["y"]));
    for value in [1.0, 2.0, 3.0] {
        assert_eq!(step(&mut policy, value).expect("runs"), [value + 1.0; 4]);
    }
    assert_eq!(policy.signature().outputs[0].shape, [1, 1, 4]);
}

#[test]
fn half_precision_keeps_the_dtypes_that_clients_see_and_a_missing_device_is_refused() {
    let weights: Vec<f32> = (0..16).map(|i| 0.1 + i as f32 / 37.0).collect();
    let script =
        Script::forward("x: Tensor", "Tensor", &["return torch.matmul(x, self.w)"]).buffer("w", &[4, 4], &weights);
    let mut spec = manifest(&["x"], &["y"]);
    let exact = step(&mut load(&script, &spec), 0.3).expect("runs");
    spec.precision = Precision::Bf16;
    let mut policy = load(&script, &spec);
    assert_eq!(policy.signature().outputs[0].dtype, DType::F32);
    let half = step(&mut policy, 0.3).expect("runs");
    assert_ne!(half, exact, "bf16 rounds");
    assert!(half.iter().zip(&exact).all(|(a, b)| (a - b).abs() < 0.02), "{half:?} {exact:?}");
    spec.device = Device::Cuda(63);
    let error = refusal(&script, &spec).to_string();
    assert!(error.contains("CUDA") || error.contains("cuda:63"), "{error}");
}

#[test]
fn a_quantised_layer_runs_where_its_engine_does() {
    let script = Script::forward(
        "x: Tensor",
        "Tensor",
        &[
            "w = torch.quantize_per_tensor(self.w, 0.01, 0, 12)",
            "p = ops.quantized.linear_prepack(w, None)",
            "q = torch.quantize_per_tensor(x, 0.01, 0, 13)",
            "return torch.dequantize(ops.quantized.linear(q, p, 0.02, 0))",
        ],
    )
    .buffer("w", &[2, 4], &[0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25]);
    let mut policy = load(&script, &manifest(&["x"], &["y"]));
    let got = step(&mut policy, 1.0).expect("runs");
    assert!((got[0] - 2.0).abs() < 0.05 && (got[1] - 1.0).abs() < 0.05, "{got:?}");
    let quantised = Script::forward("x: Tensor", "Tensor", &["return torch.quantize_per_tensor(x, 0.01, 0, 13)"]);
    let error = refusal(&quantised, &manifest(&["x"], &["y"])).to_string();
    assert!(error.contains("dequantize it"), "{error}");
}

#[test]
fn no_thread_but_the_caller_s_computes() {
    let script = Script::forward("x: Tensor", "Tensor", &["return torch.matmul(x, torch.transpose(x, 0, 1))"]);
    let mut spec = manifest(&["x"], &["y"]);
    spec.inputs.insert("x".into(), rules(DType::F32, &[512, 512]));
    let mut policy = load(&script, &spec);
    // A pool's threads inherit the name of the thread that made them, and a test's thread bears the test's name.
    let threads = || {
        let name = |task: &std::path::Path| std::fs::read_to_string(task.join("comm")).unwrap_or_default();
        let ours = name("/proc/thread-self".as_ref());
        let tasks = std::fs::read_dir("/proc/self/task").expect("proc").flatten();
        tasks.filter(|t| name(&t.path()) == ours).count()
    };
    assert_eq!(threads(), 1, "loading started a pool");
    for _ in 0..20 {
        policy.run().expect("runs");
    }
    assert_eq!(threads(), 1, "running started a pool");
}
