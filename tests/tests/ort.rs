//! ONNX Runtime behind the daemon: the same policies as tract to 1e-4, and those that tract cannot run.
//!
//! Nothing but the library differs from another backend's worker: sessions, state pairs, reloads, deaths and refusals
//! are looked at here as clients see them. Without the library (`make ort`) the tests are skipped by name.

use inferd_ipc::layout::Backing;
use inferd_ipc::limits::FAULT_LOGS_PER_S;
use inferd_ipc::signature::DType;
use inferd_ipc::worker_records::TensorRules;
use inferd_tests::answer::{fill, hex, hex_f32};
use inferd_tests::{DaemonConfig, Driver, Model, Rounds, backend_scenarios, ms, places, skip, turn, within};
use inferd_worker::files::Memory;
use inferd_worker::golden::{Recording, difference, element};
use inferd_worker::testing::onnx::{Attribute, Dim, Graph, Onnx, f32_bytes, scaler};
use inferd_worker::testing::spec::spec;
use inferd_worker::{Policy, backend::Backend, backend::tract::Tract};
use inferd_worker_ort::{Library, Ort};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::{Path, PathBuf};

/// What two runtimes may differ by, relative to the largest value of a tensor.
const TOLERANCE: f64 = 1e-4;

/// Whether there is a library, and nobody switched this off; says so if not.
fn ready(name: &str) -> bool {
    if std::env::var("ORT").as_deref() == Ok("0") {
        skip(name, "switched off (ORT=0)");
        return false;
    }
    match Library::open(None) {
        Ok(_) => true,
        Err(error) => {
            skip(name, &error.to_string());
            false
        }
    }
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

/// A folder with a model file, what lies beside it, and a manifest.
struct Files(tempfile::TempDir);

impl Files {
    fn of(model: &[u8], manifest: &str) -> Files {
        let files = Files(tempfile::tempdir().expect("a temporary folder"));
        files.put("policy.onnx", model);
        files.put("model.toml", format!("file = \"policy.onnx\"\n{manifest}").as_bytes());
        files
    }

    fn put(&self, name: &str, bytes: &[u8]) {
        fs::write(self.0.path().join(name), bytes).expect("our own file");
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn text(&self) -> String {
        self.path().display().to_string()
    }

    /// Served by this backend; warm after one window.
    fn served(&self, name: &str, backend: &str) -> Model {
        Model::at(name, self.path()).config("backend", &format!("{backend:?}"))
    }
}

fn onnx_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(onnx_files(&path));
        } else if path.extension().is_some_and(|e| e == "onnx") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Every output of every step of a recording's inputs.
fn outputs(backend: &dyn Backend, file: &Path, recording: &Recording) -> (Policy, Vec<Vec<Vec<u8>>>) {
    let mut spec = spec(backend.name(), &file.display().to_string());
    for (name, array) in &recording.inputs {
        // The classifier's height and width are open; a recording says what they are.
        let rules = TensorRules { shape: Some(array.shape[1..].to_vec()), ..TensorRules::default() };
        spec.inputs.insert(name.clone(), rules);
    }
    let mut files = Memory::of(fs::read(file).expect("a model"));
    let (mut policy, _) = Policy::load_by(backend, &spec, &mut files, &mut |_| {}).expect("loads");
    let steps = (0..recording.steps).map(|step| {
        for i in 0..policy.signature().inputs.len() {
            let name = policy.signature().inputs[i].name.clone();
            policy.input_mut(i).copy_from_slice(recording.inputs[&name].step(step));
        }
        policy.check_inputs().expect("finite");
        policy.run().expect("runs");
        (0..policy.signature().outputs.len()).map(|k| policy.output(k).to_vec()).collect()
    });
    let steps = steps.collect();
    (policy, steps)
}

#[test]
fn every_onnx_file_gives_the_same_through_tract_and_through_onnx_runtime() {
    let Some(shared) = places::shared() else {
        return skip("every_onnx_file", "no models: ../shared/models is not there");
    };
    if !ready("every_onnx_file_through_ort") {
        return;
    }
    let _turn = turn();
    let files = onnx_files(&shared.join("models"));
    assert!(files.len() >= 7, "{files:?}");
    for file in files {
        let name = |path: Option<&std::ffi::OsStr>| path.expect("a name").to_string_lossy().into_owned();
        let of = format!("{}.{}", name(file.parent().and_then(Path::file_name)), name(file.file_stem()));
        let npz = fs::read(shared.join("golden").join(format!("{of}.random.npz"))).expect("its recording");
        let recording = Recording::read(&of, npz).expect("reads");
        let (policy, tract) = outputs(&Tract, &file, &recording);
        let (other, ort) = outputs(&Ort, &file, &recording);
        assert_eq!(policy.signature(), other.signature(), "{of}");
        let mut worst = 0.0f64;
        for (tract, ort) in tract.iter().zip(&ort) {
            for (output, (tract, ort)) in policy.signature().outputs.iter().zip(tract.iter().zip(ort)) {
                let scale = (0..output.elements_count() as usize).map(|k| element(output.dtype, tract, k).abs());
                let scale = scale.fold(f64::MIN_POSITIVE, f64::max);
                worst = worst.max(difference(output.dtype, ort, tract).0 / scale);
            }
        }
        println!("{of}: apart by {worst:.2e} of the largest value, {} steps", recording.steps);
        assert!(worst <= TOLERANCE, "{of}: {worst}");
    }
}

/// One step of the walking policy: its observation, and the recorded action.
fn walk(robot: &mut Driver, s: usize, recording: &Recording, step: usize) {
    let observation = hex(recording.inputs["obs"].step(step));
    let reset = if recording.reset[step] { " reset=1" } else { "" };
    let reply = robot.ok(&format!("infer s={s} hex={observation}{reset}")).expect("ok");
    assert_eq!(reply.flag("state_reset"), recording.reset[step], "step {step}");
    let (got, want) = (reply.output(0), recording.outputs["actions"].step(step));
    let (apart, at) = difference(DType::F32, &got, want);
    assert!(apart <= TOLERANCE, "session {s}, step {step}, element {at}: apart by {apart}");
}

const LSTM: &str = "[[state]]\ninput = \"h_in\"\noutput = \"h_out\"\n[[state]]\ninput = \"c_in\"\noutput = \"c_out\"\n";

backend_scenarios! {
    fn a_recurrent_policy_walks_on_through_reloads_resets_and_deaths_of_its_worker(case) {
        let Some(shared) = places::shared() else {
            return skip("a_recurrent_policy", "no recordings: ../shared/golden is not there");
        };
        if !ready("a_recurrent_policy_through_ort") {
            return;
        }
        let recorded = |name: &str| {
            let npz = fs::read(shared.join(format!("golden/unitree_rl_gym.g1_motion.{name}.npz"))).expect("a recording");
            Recording::read(name, npz).expect("reads")
        };
        // Recorded from the TorchScript model that the ONNX file was rebuilt from; they say where it was reset.
        let recordings = [recorded("a"), recorded("b")];
        let model = fs::read(shared.join("models/unitree_rl_gym/g1_lstm.onnx")).expect("a model");
        let files = Files::of(&model, &format!("{LSTM}[warm_up]\nruns = 3\n"));
        let daemon = case.config().model(files.served("walk", "ort")).start();
        let mut robot = case.attached(&daemon, "model=walk");
        robot.ok("attach s=1 model=walk");
        for step in 0..500 {
            match step {
                150 => assert_eq!(daemon.reload("walk").expect("reloaded").state, "carried"),
                300 => {
                    let worker = daemon.worker("walk");
                    kill(Pid::from_raw(worker as i32), Signal::SIGKILL).expect("it lives");
                    let again = || daemon.model("walk").worker_pid.is_some_and(|pid| pid != worker);
                    within(ms(10_000), "another worker serves", again);
                    daemon.until_model_is("walk", "live");
                }
                _ => {}
            }
            for (s, recording) in recordings.iter().enumerate() {
                walk(&mut robot, s, recording, step);
            }
        }
    }

    fn a_file_that_tract_refuses_is_served_by_ort_and_auto_finds_out(case) {
        if !ready("auto") {
            return;
        }
        let manifest = "[warm_up]\nruns = 3\n";
        let (hard, easy) = (Files::of(&choice(), manifest), Files::of(&scaler(2, 3.0), manifest));
        let models = [hard.served("hard", "ort"), hard.served("found", "auto"), easy.served("easy", "auto")];
        let mut daemon = models.into_iter().fold(case.config(), |config, model| config.model(model)).prepare();
        daemon.start();
        daemon.tool("inferctl", &["validate", &hard.text()]).refused(&["tract", "backend = \"ort\""]);
        daemon.tool("inferctl", &["validate", &hard.text(), "--backend", "auto"]).succeeded();
        let backend = |name: &str| daemon.model(name).backend;
        assert!(backend("hard").starts_with("ort 1."), "{}", backend("hard"));
        assert!(backend("found").starts_with("ort 1.") && backend("found").ends_with(" (auto)"), "{}", backend("found"));
        assert!(backend("easy").starts_with("tract 0.") && backend("easy").ends_with(" (auto)"), "{}", backend("easy"));
        let why = daemon.model("found").warnings.join("; ");
        assert!(why.contains("auto") && why.contains("tract cannot"), "{why}");
        assert!(daemon.log().contains("ONNX Runtime is tried"), "{}", daemon.log());
        let mut robot = case.driver(&daemon);
        for (s, name) in ["hard", "found"].into_iter().enumerate() {
            robot.ok(&format!("attach s={s} model={name}"));
            for (x, y) in [([1.0, 3.0], [4.0]), ([-1.0, -3.0], [-8.0])] {
                let reply = robot.ok(&format!("infer s={s} hex={}", hex_f32(&x))).expect("ok");
                assert_eq!(reply.output_f32(0), y);
            }
        }
        assert_eq!(daemon.reload("found").expect("reloaded").to_generation, 2);
        assert!(backend("found").starts_with("ort 1."), "{}", backend("found"));
        // A damaged file is nobody's: the next backend is not asked.
        hard.put("policy.onnx", b"not a model");
        let refused = daemon.reload("found").expect_err("damaged");
        assert!(refused.message.contains("not an ONNX model"), "{}", refused.message);
        assert_eq!(robot.ok(&format!("infer s=1 hex={}", hex_f32(&[1.0, 3.0]))).expect("ok").output_f32(0), [4.0]);
    }

    fn every_dtype_crosses_to_onnx_runtime_and_back(case) {
        if !ready("every_dtype_through_ort") {
            return;
        }
        let shape = [Dim::from(3), Dim::from(5)];
        let file = DType::ALL.into_iter().fold(Onnx::new(), |file, dtype| {
            let (x, y) = (format!("in_{dtype}"), format!("out_{dtype}"));
            file.input(&x, dtype, &shape).node("Identity", &[&x], &[&y], &[]).output(&y, dtype, &shape)
        });
        let files = Files::of(&file.bytes(), "[warm_up]\nruns = 3\n");
        let daemon = case.config().model(files.served("m", "ort")).start();
        let mut robot = case.attached(&daemon, "model=m");
        for seed in [1, 77] {
            let sent = |k: usize, dtype: DType| match dtype {
                DType::Bool => (0..15).map(|i| u8::from((i + seed) % 3 == 0)).collect(),
                _ => fill(seed + k as u64, 15 * dtype.size_bytes()),
            };
            let sent: Vec<Vec<u8>> = DType::ALL.into_iter().enumerate().map(|(k, dtype)| sent(k, dtype)).collect();
            let all = sent.iter().map(|bytes| hex(bytes)).collect::<Vec<_>>().join(",");
            let reply = robot.ok(&format!("infer hex={all}")).expect("ok");
            sent.iter().enumerate().for_each(|(k, sent)| assert_eq!(reply.output(k), *sent, "{}", DType::ALL[k]));
        }
    }

    fn an_output_whose_shape_depends_on_values_is_served_within_its_bound(case) {
        if !ready("a_bounded_output") {
            return;
        }
        // Repeats 7 as often as x says.
        let file = Onnx::new()
            .input("x", DType::I64, &[1.into()])
            .initialiser("seven", DType::F32, &[1], &f32_bytes(&[7.0]))
            .node("Expand", &["seven", "x"], &["y"], &[])
            .output("y", DType::F32, &[Dim::Unknown])
            .bytes();
        let unbounded = Files::of(&file, "");
        let bounded = Files::of(&file, "[outputs.y]\nshape = [4]\n[warm_up]\nruns = 3\n");
        let daemon = case.config().model(bounded.served("m", "ort")).start();
        let refused = daemon.tool("inferctl", &["validate", &unbounded.text(), "--backend", "ort"]);
        refused.refused(&["depends on the input", "largest shape"]);
        let mut robot = case.attached(&daemon, "model=m");
        let mut infer = |n: i64| robot.ok(&format!("infer hex={}", hex(&n.to_ne_bytes())));
        for n in [3, 0, 4, 1] {
            let reply = infer(n).expect("ok");
            let want: Vec<f32> = (0..4).map(|i| if i < n { 7.0 } else { 0.0 }).collect();
            assert_eq!((reply.output_f32(0), reply.output(1)), (want, n.to_ne_bytes().to_vec()), "{n}");
            infer(5).expect("model_error");
        }
        within(ms(2000), "the log says why", || daemon.log().contains("over the bound"));
    }

    fn a_step_that_onnx_runtime_refuses_is_a_model_error_with_its_message_in_the_log_a_few_times(case) {
        if !ready("a_refused_step") {
            return;
        }
        let file = Onnx::new()
            .input("i", DType::I64, &[1.into()])
            .initialiser("table", DType::F32, &[2, 1], &f32_bytes(&[7.0, 8.0]))
            .node("Gather", &["table", "i"], &["y"], &[("axis", Attribute::Int(0))])
            .output("y", DType::F32, &[1.into(), 1.into()]);
        let files = Files::of(&file.bytes(), "[warm_up]\nruns = 3\n");
        let daemon = case.config().model(files.served("m", "ort")).start();
        let mut robot = case.attached(&daemon, "model=m");
        let mut rounds = Rounds::of_case("refused steps", case);
        let began = std::time::Instant::now();
        while rounds.another() {
            robot.ok(&format!("infer out=none hex={}", hex(&1000i64.to_ne_bytes()))).expect("model_error");
        }
        rounds.finish();
        assert_eq!(robot.ok(&format!("infer hex={}", hex(&1i64.to_ne_bytes()))).expect("ok").output_f32(0), [8.0]);
        within(ms(2000), "the log has the message", || daemon.log().contains("Gather"));
        let seconds = began.elapsed().as_secs() + 2;
        let told = daemon.log().lines().filter(|line| line.contains("Gather")).count() as u64;
        assert!(told <= seconds * u64::from(FAULT_LOGS_PER_S), "{told} lines in {seconds} s:\n{}", daemon.log());
    }

    fn weights_beside_the_model_come_through_the_daemon(case) {
        if !ready("weights_beside_the_model") {
            return;
        }
        let location = [("location", "w.bin"), ("offset", "4"), ("length", "8")];
        let file = Onnx::new()
            .input("x", DType::F32, &[2.into()])
            .external("w", DType::F32, &[2], &location)
            .node("Mul", &["x", "w"], &["y"], &[])
            .output("y", DType::F32, &[2.into()]);
        let files = Files::of(&file.bytes(), "[warm_up]\nruns = 3\n");
        files.put("w.bin", &f32_bytes(&[9.0, 2.0, 3.0]));
        let daemon = case.config().model(files.served("m", "ort")).start();
        let mut robot = case.attached(&daemon, "model=m");
        assert_eq!(robot.ok(&format!("infer hex={}", hex_f32(&[1.0, 1.0]))).expect("ok").output_f32(0), [2.0, 3.0]);
        fs::remove_file(files.path().join("w.bin")).expect("ours");
        let refused = daemon.reload("m").expect_err("its weights are gone");
        assert!(refused.message.contains("w.bin"), "{}", refused.message);
    }

    fn a_library_that_is_missing_or_damaged_is_a_refused_load_that_says_where_it_was_looked_for(case) {
        if !ready("a_missing_library") {
            return;
        }
        let files = Files::of(&scaler(2, 3.0), "[warm_up]\nruns = 3\n");
        let config = case.config().env("ORT_DYLIB_PATH", "/nowhere/libonnxruntime.so").model(Model::echo("m"));
        let daemon = config.start();
        let by_ort = ["validate", &files.text(), "--backend", "ort"];
        daemon.tool("inferctl", &by_ort).refused(&["/nowhere/libonnxruntime.so (ORT_DYLIB_PATH)", "make ort"]);
        drop(daemon);
        files.put("model.toml", b"file = \"policy.onnx\"\n[options]\nlibrary = \"/etc/hostname\"\n");
        let daemon = case.config().env("ORT_DYLIB_PATH", "").model(Model::echo("m")).start();
        daemon.tool("inferctl", &by_ort).refused(&["/etc/hostname (the option library)", "cannot be opened"]);
        files.put("model.toml", b"file = \"policy.onnx\"\n[options]\nproviders = \"cuda\"\n");
        daemon.tool("inferctl", &by_ort).refused(&["provider \"cuda\"", "onnxruntime-gpu"]);
    }

    fn damaged_files_are_refused_and_the_live_generation_goes_on(case) {
        if !ready("damaged_onnx_files") {
            return;
        }
        let whole = choice();
        let files = Files::of(&whole, "[warm_up]\nruns = 3\n");
        let daemon = case.config().model(files.served("m", "ort")).start();
        let mut robot = case.attached(&daemon, "model=m");
        let truncated = whole[..whole.len() / 2].to_vec();
        let mut newer = whole.clone();
        *newer.last_mut().expect("not empty") = 99;
        for (bytes, word) in [(&b"PK\x03\x04"[..], "TorchScript"), (&truncated, "policy.onnx"), (&newer, "99")] {
            files.put("policy.onnx", bytes);
            let refused = daemon.reload("m").expect_err("damaged");
            assert!(refused.message.contains(word), "{word:?} is missing in: {}", refused.message);
            assert_eq!(robot.ok(&format!("infer hex={}", hex_f32(&[1.0, 3.0]))).expect("ok").output_f32(0), [4.0]);
        }
    }

    fn an_idle_worker_uses_no_cpu(case) {
        if !ready("an_idle_ort_worker") {
            return;
        }
        let files = Files::of(&choice(), "[warm_up]\nruns = 3\n");
        let daemon = case.config().model(files.served("m", "ort")).start();
        let mut robot = case.attached(&daemon, "model=m");
        robot.ok(&format!("infer hex={}", hex_f32(&[1.0, 3.0]))).expect("ok");
        let worker = daemon.worker("m");
        // In ticks of 10 ms: user and system time are the 14th and 15th word.
        let used = || {
            let stat = fs::read_to_string(format!("/proc/{worker}/stat")).expect("it lives");
            let after = stat.rsplit(')').next().unwrap_or_default().split_whitespace().map(str::to_owned);
            after.skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum::<u64>()
        };
        std::thread::sleep(ms(100));
        let before = used();
        std::thread::sleep(ms(600));
        assert!(used() - before <= 1, "an idle worker used {} ticks of 60", used() - before);
    }
}

#[test]
fn onnx_runtime_keeps_no_file_open_and_runs_confined_as_tract_does() {
    let name = "onnx_runtime_keeps_no_file_open_and_runs_confined_as_tract_does";
    if !ready(name) {
        return;
    }
    let _turn = turn();
    let files = Files::of(&inferd_tests::onnx::plus_one(&[1, 4]), "");
    for (confine, said) in [("on", "confined: profile strict: no_new_privs, seccomp"), ("off", "not confined")] {
        let model =
            Model::at("m", files.path()).config("backend", "\"ort\"").config("confine", &format!("{confine:?}"));
        let daemon = DaemonConfig::new(Backing::Memfd).model(model).start();
        assert!(daemon.log().contains(said), "{}", daemon.log());
        let descriptors = fs::read_dir(format!("/proc/{}/fd", daemon.worker("m"))).expect("it lives").flatten();
        let open: Vec<_> =
            descriptors.filter_map(|fd| Some(fs::read_link(fd.path()).ok()?.display().to_string())).collect();
        // The supervisor's log, and the kernel's account of a thread.
        let known =
            |path: &&String| path.starts_with("/dev/") || path.ends_with("/log") || path.ends_with("/schedstat");
        let files: Vec<_> = open.iter().filter(|path| path.starts_with('/') && !path.starts_with("/memfd")).collect();
        assert!(!open.is_empty() && files.iter().all(known), "confine = {confine:?}: {open:?}");
    }
}
