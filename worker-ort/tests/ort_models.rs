//! ONNX files through ONNX Runtime, in this process: dtypes, shapes that depend on values, files beside the model, refusals.
//!
//! Needs the library (`make ort`); without it every test is skipped by name. What holds for every backend is tested once,
//! in `worker/tests/odd_models.rs` and in the scenarios; here is what differs.

use half::{bf16, f16};
use inferd_ipc::signature::DType;
use inferd_ipc::worker_records::{Loaded, ModelSpec, StatePair, TensorRules};
use inferd_worker::files::Memory;
use inferd_worker::testing::onnx::{Attribute, Dim, Graph, Onnx, accumulator, f32_bytes, scaler};
use inferd_worker::testing::spec::{spec, tensor};
use inferd_worker::{Fault, ModelError, Policy};
use inferd_worker_ort::{Library, Ort};

/// Whether there is a library; says so if not.
fn ready(name: &str) -> bool {
    let there = std::env::var("ORT").as_deref() != Ok("0") && Library::open(None).is_ok();
    if !there {
        println!("SKIP {name}: no library of ONNX Runtime (make ort), or ORT=0");
    }
    there
}

macro_rules! with_library {
    ($($(#[$meta:meta])* fn $name:ident() $body:block)*) => {$(
        #[test]
        $(#[$meta])*
        fn $name() {
            if ready(stringify!($name)) $body
        }
    )*};
}

fn ort_spec() -> ModelSpec {
    spec("ort", "model.onnx")
}

fn load_with(spec: &ModelSpec, mut files: Memory) -> Result<(Policy, Loaded), ModelError> {
    Policy::load_from(spec, &mut files, &[&Ort], &mut |_| {})
}

fn load(file: Vec<u8>) -> Result<(Policy, Loaded), ModelError> {
    load_with(&ort_spec(), Memory::of(file))
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

fn with_option(key: &str, value: &str) -> ModelSpec {
    let mut spec = ort_spec();
    spec.options.insert(key.into(), value.into());
    spec
}

/// Row-major bytes of the numbers 0, 1, 2, ... in a dtype.
fn counting(dtype: DType, n: usize) -> Vec<u8> {
    let bytes = |i: usize| match dtype {
        DType::F32 => (i as f32).to_ne_bytes().to_vec(),
        DType::F64 => (i as f64).to_ne_bytes().to_vec(),
        DType::F16 => f16::from_f32(i as f32).to_ne_bytes().to_vec(),
        DType::Bf16 => bf16::from_f32(i as f32).to_ne_bytes().to_vec(),
        DType::I8 | DType::U8 => vec![i as u8],
        DType::I16 | DType::U16 => (i as u16).to_ne_bytes().to_vec(),
        DType::I32 | DType::U32 => (i as u32).to_ne_bytes().to_vec(),
        DType::I64 | DType::U64 => (i as u64).to_ne_bytes().to_vec(),
        DType::Bool => vec![(i % 2) as u8],
    };
    (0..n).flat_map(bytes).collect()
}

/// Where `x` is not zero: as many columns as there are such places.
fn nonzero() -> Vec<u8> {
    let file = Onnx::new().input("x", DType::F32, &[4.into()]).node("NonZero", &["x"], &["y"], &[]);
    file.output("y", DType::I64, &[1.into(), Dim::Unknown]).bytes()
}

fn bounded(shape: &[u64]) -> ModelSpec {
    let mut spec = ort_spec();
    spec.outputs.insert("y".into(), TensorRules { shape: Some(shape.to_vec()), ..TensorRules::default() });
    spec
}

fn i64s(bytes: &[u8]) -> Vec<i64> {
    bytes.as_chunks().0.iter().map(|b| i64::from_ne_bytes(*b)).collect()
}

/// An `If` whose branch the input chooses, with another shape in each: what tract does not run. y is the sum of x, doubled
/// where that is not positive.
fn choice() -> Vec<u8> {
    let branch = |copies: &[&str], length: u64| {
        let axis = [("axis", Attribute::Int(0))];
        Attribute::Graph(Graph::new().node("Concat", copies, &["z"], &axis).output("z", DType::F32, &[length.into()]))
    };
    let (once, twice) = (branch(&["x"], 2), branch(&["x", "x"], 4));
    Onnx::new()
        .input("x", DType::F32, &[2.into()])
        .initialiser("zero", DType::F32, &[], &f32_bytes(&[0.0]))
        .node("ReduceSum", &["x"], &["sum"], &[("keepdims", Attribute::Int(0))])
        .node("Greater", &["sum", "zero"], &["positive"], &[])
        .node("If", &["positive"], &["chosen"], &[("then_branch", once), ("else_branch", twice)])
        .node("ReduceSum", &["chosen"], &["y"], &[("keepdims", Attribute::Int(1))])
        .output("y", DType::F32, &[1.into()])
        .bytes()
}

with_library! {
    fn every_dtype_passes_through_unchanged() {
        for dtype in DType::ALL {
            let (mut policy, loaded) = load(identity(dtype, &[2.into(), 3.into()])).unwrap_or_else(|e| panic!("{dtype}: {e}"));
            assert_eq!(loaded.signature.inputs, [tensor("x", dtype, &[2, 3])]);
            assert_eq!(loaded.signature.outputs, [tensor("y", dtype, &[2, 3])]);
            for _ in 0..3 {
                step(&mut policy, &[&counting(dtype, 6)]).expect("runs");
                assert_eq!(policy.output(0), counting(dtype, 6), "{dtype}");
            }
        }
    }

    fn every_number_dtype_is_computed_with() {
        // Cast is the one operator that ONNX Runtime's CPU kernels have for every dtype.
        for dtype in DType::ALL.into_iter().filter(|d| *d != DType::Bool) {
            let cast = |to: DType| [("to", Attribute::Int(inferd_worker::testing::onnx::onnx_number(to) as i64))];
            let file = Onnx::new()
                .input("x", dtype, &[4.into()])
                .node("Cast", &["x"], &["wide"], &cast(DType::F32))
                .node("Add", &["wide", "wide"], &["twice"], &[])
                .node("Cast", &["twice"], &["y"], &cast(dtype))
                .output("y", dtype, &[4.into()]);
            let (mut policy, _) = load(file.bytes()).unwrap_or_else(|e| panic!("{dtype}: {e}"));
            step(&mut policy, &[&counting(dtype, 4)]).expect("runs");
            let size = dtype.size_bytes();
            let twice: Vec<u8> = (0..4).flat_map(|i| counting(dtype, 7)[2 * i * size..][..size].to_vec()).collect();
            assert_eq!(policy.output(0), twice, "{dtype}");
        }
    }

    fn scalars_and_every_rank_up_to_the_limit_are_served() {
        for rank in 0..=8usize {
            let shape: Vec<Dim> = (0..rank).map(|i| Dim::from(1 + (i as u64 % 2))).collect();
            let (mut policy, loaded) = load(identity(DType::F32, &shape)).unwrap_or_else(|e| panic!("rank {rank}: {e}"));
            assert_eq!(loaded.signature.inputs[0].shape.len(), rank);
            let bytes = counting(DType::F32, loaded.signature.inputs[0].elements_count() as usize);
            step(&mut policy, &[&bytes]).expect("runs");
            assert_eq!(policy.output(0), bytes);
        }
        let shape: Vec<Dim> = (0..9).map(|_| Dim::from(1)).collect();
        refused(&ort_spec(), Memory::of(identity(DType::F32, &shape)), Fault::Unsupported, &["9 dimensions", "limit"]);
    }

    fn symbols_get_their_numbers_as_in_every_backend() {
        let file = || identity(DType::F32, &["batch".into(), "2*n + 1".into()]);
        refused(&ort_spec(), Memory::of(file()), Fault::Manifest, &["2*n + 1", "[dimensions]"]);
        let mut spec = ort_spec();
        spec.dimensions.insert("n".into(), 5);
        let (mut policy, loaded) = load_with(&spec, Memory::of(file())).expect("loads");
        assert_eq!(loaded.signature.outputs[0].shape, [1, 11]);
        step(&mut policy, &[&counting(DType::F32, 11)]).expect("runs");
        assert_eq!(policy.output(0), counting(DType::F32, 11));
    }

    fn an_if_over_values_runs_either_branch() {
        let (mut policy, _) = load(choice()).expect("loads");
        for (x, y) in [([1.0, 3.0], [4.0]), ([-1.0, -3.0], [-8.0]), ([2.0, 0.0], [2.0])] {
            step(&mut policy, &[&f32_bytes(&x)]).expect("runs");
            assert_eq!(policy.output(0), f32_bytes(&y));
        }
    }

    fn a_shape_that_depends_on_values_is_padded_to_its_bound_with_its_lengths_beside_it() {
        refused(&ort_spec(), Memory::of(nonzero()), Fault::Signature, &["depends on the input", "[outputs]", "\"y\""]);
        let (mut policy, loaded) = load_with(&bounded(&[1, 4]), Memory::of(nonzero())).expect("loads");
        assert_eq!(loaded.signature.outputs, [tensor("y", DType::I64, &[1, 4]), tensor("y.shape", DType::I64, &[2])]);
        for (x, y, lengths) in [
            ([0.0, 5.0, 0.0, 6.0], [1, 3, 0, 0], [1, 2]),
            ([1.0, 1.0, 1.0, 1.0], [0, 1, 2, 3], [1, 4]),
            ([0.0, 0.0, 0.0, 0.0], [0, 0, 0, 0], [1, 0]),
            ([0.0, 0.0, 9.0, 0.0], [2, 0, 0, 0], [1, 1]),
        ] {
            step(&mut policy, &[&f32_bytes(&x)]).expect("runs");
            assert_eq!((i64s(policy.output(0)), i64s(policy.output(1))), (y.to_vec(), lengths.to_vec()), "{x:?}");
        }
    }

    fn a_bound_that_is_too_small_is_refused_at_load_or_costs_the_step_alone() {
        refused(&bounded(&[1, 3]), Memory::of(nonzero()), Fault::Signature, &["[1, 3]", "[1, 4]", "largest"]);
        refused(&bounded(&[4]), Memory::of(nonzero()), Fault::Signature, &["[4]"]);
        // Repeats 7 as often as the sum of x: 0 and 4 times in the trial runs.
        let file = Onnx::new()
            .input("x", DType::I64, &[4.into()])
            .initialiser("seven", DType::F32, &[1], &f32_bytes(&[7.0]))
            .node("ReduceSum", &["x"], &["n"], &[("keepdims", Attribute::Int(1))])
            .node("Expand", &["seven", "n"], &["y"], &[])
            .output("y", DType::F32, &[Dim::Unknown])
            .bytes();
        let (mut policy, _) = load_with(&bounded(&[5]), Memory::of(file)).expect("loads");
        let input = |n: i64| [n.to_ne_bytes(), [0; 8], [0; 8], [0; 8]].concat();
        for _ in 0..2 {
            step(&mut policy, &[&input(3)]).expect("runs");
            assert_eq!(policy.output(0), f32_bytes(&[7.0, 7.0, 7.0, 0.0, 0.0]));
            let error = step(&mut policy, &[&input(6)]).expect_err("over the bound");
            assert_eq!(error.fault, Fault::Run);
            assert!(error.to_string().contains("[6]") && error.remedy.contains("shape"), "{error}");
        }
    }

    fn rows_of_a_bounded_tensor_lie_where_their_indices_say() {
        // [4] -> [n, 1] -> [n, 2]: each place twice.
        let file = Onnx::new()
            .input("x", DType::F32, &[4.into()])
            .initialiser("two", DType::I64, &[2], &[1i64.to_ne_bytes(), 2i64.to_ne_bytes()].concat())
            .node("NonZero", &["x"], &["at"], &[])
            .node("Transpose", &["at"], &["rows"], &[])
            .node("Tile", &["rows", "two"], &["y"], &[])
            .output("y", DType::I64, &[Dim::Unknown, 2.into()])
            .bytes();
        let (mut policy, _) = load_with(&bounded(&[4, 3]), Memory::of(file)).expect("loads");
        step(&mut policy, &[&f32_bytes(&[0.0, 1.0, 0.0, 1.0])]).expect("runs");
        assert_eq!(i64s(policy.output(0)), [1, 1, 0, 3, 3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(i64s(policy.output(1)), [2, 2]);
    }

    fn state_goes_round_and_a_failed_step_leaves_the_next_one_well() {
        let mut spec = ort_spec();
        spec.state.push(StatePair { input: "h_in".into(), output: "h_out".into() });
        let (mut policy, loaded) = load_with(&spec, Memory::of(accumulator(2))).expect("loads");
        assert!(loaded.signature.stateful);
        let mut state = vec![0; 8];
        for k in 1..=3 {
            policy.state_in_mut(0).copy_from_slice(&state);
            step(&mut policy, &[&f32_bytes(&[1.0, 2.0])]).expect("runs");
            state.copy_from_slice(policy.state_out(0));
            assert_eq!(policy.output(0), f32_bytes(&[k as f32, 2.0 * k as f32]));
        }
        policy.state_in_mut(0).copy_from_slice(&f32_bytes(&[f32::MAX, 0.0]));
        assert_eq!(step(&mut policy, &[&f32_bytes(&[f32::MAX, 0.0])]).expect_err("overflows").fault, Fault::NonFinite);
        policy.state_in_mut(0).fill(0);
        step(&mut policy, &[&f32_bytes(&[1.0, 2.0])]).expect("the next step works");
    }

    fn an_operator_that_raises_fails_the_step_with_its_message_and_the_next_one_works() {
        let file = Onnx::new()
            .input("i", DType::I64, &[1.into()])
            .initialiser("table", DType::F32, &[2, 1], &f32_bytes(&[7.0, 8.0]))
            .node("Gather", &["table", "i"], &["y"], &[("axis", Attribute::Int(0))])
            .output("y", DType::F32, &[1.into(), 1.into()]);
        let (mut policy, _) = load(file.bytes()).expect("loads");
        for _ in 0..3 {
            let error = step(&mut policy, &[&1000i64.to_ne_bytes()]).expect_err("out of range");
            assert_eq!(error.fault, Fault::Run);
            assert!(error.what.contains("Gather"), "{error}");
            step(&mut policy, &[&1i64.to_ne_bytes()]).expect("works again");
            assert_eq!(policy.output(0), f32_bytes(&[8.0]));
        }
    }

    fn weights_beside_the_model_are_asked_for_by_name_and_checked() {
        let file = |location: &[(&str, &str)]| {
            Onnx::new()
                .input("x", DType::F32, &[2.into()])
                .external("w", DType::F32, &[2], location)
                .node("Mul", &["x", "w"], &["y"], &[])
                .output("y", DType::F32, &[2.into()])
                .bytes()
        };
        let data = f32_bytes(&[9.0, 2.0, 3.0, 9.0]);
        let whole = file(&[("location", "weights/w.bin"), ("offset", "4"), ("length", "8")]);
        let files = Memory::of(whole).with("weights/w.bin", data.clone());
        let (mut policy, _) = load_with(&ort_spec(), files).expect("loads");
        step(&mut policy, &[&f32_bytes(&[1.0, 1.0])]).expect("runs");
        assert_eq!(policy.output(0), f32_bytes(&[2.0, 3.0]));
        let cases: [(&[(&str, &str)], &str); 7] = [
            (&[("location", "gone.bin")], "gone.bin"),
            (&[("location", "../w.bin")], "outside the model's folder"),
            (&[("location", "/w.bin")], "outside the model's folder"),
            (&[("location", "w.bin"), ("offset", "12"), ("length", "8")], "the file has 16 bytes"),
            (&[("location", "w.bin"), ("offset", "18446744073709551615"), ("length", "8")], "the file has 16 bytes"),
            (&[("location", "w.bin"), ("length", "x")], "not a number"),
            (&[("location", "w.bin"), ("length", "4")], "does not match its shape"),
        ];
        for (location, word) in cases {
            let files = Memory::of(file(location)).with("w.bin", data.clone());
            refused(&ort_spec(), files, Fault::File, &[word]);
        }
    }

    fn weights_of_a_branch_in_another_file_are_refused() {
        let branch = |name: &str| {
            let graph = Graph::new().external(name, DType::F32, &[2], &[("location", "w.bin")]);
            Attribute::Graph(graph.node("Identity", &[name], &["z"], &[]).output("z", DType::F32, &[2.into()]))
        };
        let file = Onnx::new()
            .input("x", DType::Bool, &[])
            .node("If", &["x"], &["y"], &[("then_branch", branch("a")), ("else_branch", branch("b"))])
            .output("y", DType::F32, &[2.into()]);
        let files = Memory::of(file.bytes()).with("w.bin", vec![0; 8]);
        refused(&ort_spec(), files, Fault::Unsupported, &["\"a\"", "branch"]);
    }

    fn files_that_are_no_model_are_refused_with_a_remedy() {
        for (bytes, word) in [(&b""[..], "no graph"), (b"PK\x03\x04...", "TorchScript"), (b"hello world", "ONNX")] {
            refused(&ort_spec(), Memory::of(bytes.to_vec()), Fault::File, &[word, "`backend`"]);
        }
        let whole = scaler(3, 1.0);
        for end in 1..whole.len() {
            // Some ends cut a file down to a smaller model; none may do more than be refused or served.
            let _ = load(whole[..end].to_vec());
        }
        assert!(load(whole[..whole.len() / 2].to_vec()).is_err());
    }

    fn flipped_bits_are_refused_or_served_and_never_worse() {
        let whole = accumulator(2);
        for bit in (0..whole.len() * 8).step_by(7) {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let mut spec = ort_spec();
            spec.warm_up_runs = 1;
            let _ = load_with(&spec, Memory::of(damaged));
        }
    }

    fn an_operator_that_does_not_exist_and_a_future_operator_set_are_refused_by_name() {
        let file = Onnx::new().input("x", DType::F32, &[2.into()]).node("Levitate", &["x"], &["y"], &[]);
        let file = file.output("y", DType::F32, &[2.into()]).bytes();
        refused(&ort_spec(), Memory::of(file), Fault::Unsupported, &["Levitate", "older operator set"]);
        let mut newer = scaler(2, 1.0);
        let at = newer.len() - 1;
        assert_eq!(newer[at], 17, "the version of the operator set comes last");
        newer[at] = 99;
        refused(&ort_spec(), Memory::of(newer), Fault::Unsupported, &["99", "newer ONNX Runtime"]);
    }

    fn text_is_no_tensor_of_inferd() {
        // `TensorProto.STRING` in place of f32, in the input's type.
        let file = identity(DType::U8, &[2.into()]);
        let text: Vec<u8> = file.windows(2).position(|w| w == [8, 2]).map_or(file.clone(), |_| {
            let mut file = file.clone();
            for at in 0..file.len() - 1 {
                // Element type u8 in a tensor type that is six bytes or more long.
                if file[at] == 8 && file[at + 1] == 2 && at > 2 && file[at - 2] == 10 {
                    file[at + 1] = 8;
                }
            }
            file
        });
        refused(&ort_spec(), Memory::of(text), Fault::Unsupported, &["no tensor of inferd"]);
    }

    fn dimensions_without_measure_are_refused_before_memory_is_taken() {
        let mut spec = ort_spec();
        spec.dimensions.insert("n".into(), 1 << 40);
        refused(&spec, Memory::of(identity(DType::F32, &["n".into()])), Fault::Unsupported, &["limit"]);
    }

    fn nan_weights_are_refused_at_load() {
        refused(&ort_spec(), Memory::of(scaler(2, f32::NAN)), Fault::NonFinite, &["action", "allow_non_finite"]);
    }

    fn denormals_are_zero_at_load_and_in_a_step_as_everywhere_in_a_worker() {
        inferd_ipc::sys::flush_denormals_to_zero();
        let (mut policy, _) = load(scaler(1, 0.5)).expect("loads");
        // Half of the smallest normal number.
        step(&mut policy, &[&f32_bytes(&[f32::MIN_POSITIVE])]).expect("runs");
        assert_eq!(policy.output(0), f32_bytes(&[0.0]));
        let half = std::hint::black_box(f32::MIN_POSITIVE) * std::hint::black_box(0.5);
        assert_eq!(half, 0.0, "making a session must leave this thread's flags as they are");
    }

    fn every_setting_computes_the_same() {
        for (key, value) in [
            ("optimise", "none"), ("optimise", "basic"), ("optimise", "extended"), ("arena", "false"),
            ("memory_pattern", "false"), ("threads", "2"), ("providers", "cpu"),
        ] {
            let (mut policy, _) = load_with(&with_option(key, value), Memory::of(choice())).expect(key);
            step(&mut policy, &[&f32_bytes(&[1.0, 3.0])]).expect("runs");
            assert_eq!(policy.output(0), f32_bytes(&[4.0]), "{key} = {value}");
        }
    }

    fn a_provider_that_the_library_lacks_is_refused_with_what_to_install() {
        for name in ["cuda", "tensorrt"] {
            let words = [name, "onnxruntime-gpu", "ORT_DYLIB_PATH"];
            refused(&with_option("providers", name), Memory::of(scaler(2, 1.0)), Fault::Unsupported, &words);
        }
    }

    fn the_version_is_that_of_the_library() {
        let (_, loaded) = load(scaler(2, 1.0)).expect("loads");
        let library = Library::open(None).expect("there is one");
        assert_eq!(loaded.backend, format!("ort {}", library.version));
        assert!(library.version.starts_with("1."), "{}", library.version);
    }
}
