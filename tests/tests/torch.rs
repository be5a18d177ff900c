//! TorchScript policies through the daemon: state that a module hides, and what a module does wrong.
//!
//! The modules are written here, without PyTorch; the real policy and its recordings lie beside the repository
//! (`../shared`, or `INFERD_SHARED`). Where inferd-worker-torch is not built, everything is skipped by name.

use inferd_ipc::layout::Backing;
use inferd_ipc::limits::FAULT_LOGS_PER_S;
use inferd_tests::answer::hex;
use inferd_tests::{
    Answer, Case, Daemon, DaemonConfig, Driver, Model, backend_scenarios, has_worker, ms, places, skip, turn, within,
};
use inferd_worker::golden::Recording;
use inferd_worker::testing::torchscript::Script;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::{Path, PathBuf};

const OBS: &str = "[inputs.x]\ndtype = \"f32\"\nshape = [1, 4]\n";

/// A folder with a module and its manifest; warm-up until latency is flat is not the matter here.
fn folder(dir: &Path, name: &str, file: &[u8], manifest: &str) -> PathBuf {
    let folder = dir.join(name);
    fs::create_dir_all(&folder).expect("our own folder");
    fs::write(folder.join("model.pt"), file).expect("our own file");
    let text = format!("file = \"model.pt\"\nbackend = \"torch\"\n{manifest}[warm_up]\nruns = 3\n");
    fs::write(folder.join("model.toml"), text).expect("our own file");
    folder
}

/// y = h, then h = h + x: a memory that shows whose steps went into it. It begins at 5.
fn memory() -> Vec<u8> {
    Script::forward("x: Tensor", "Tensor", &["y = torch.clone(self.h)", "_0 = torch.add_(self.h, x)", "return y"])
        .buffer("h", &[1, 4], &[5.0; 4])
        .bytes()
}

fn step(robot: &mut Driver, x: f32, keys: &str) -> Answer {
    robot.ok(&format!("infer hex={} timeout_us=10000000 {keys}", hex(&x.to_le_bytes().repeat(4))))
}

fn end_worker(daemon: &Daemon, model: &str) {
    let worker = daemon.worker(model);
    kill(Pid::from_raw(worker as i32), Signal::SIGKILL).expect("it lives");
    within(ms(20_000), "another worker serves", || {
        let model = daemon.model(model);
        model.state == "live" && model.worker_pid.is_some_and(|pid| pid != worker)
    });
}

/// A case's daemon with one module, or a skip.
fn serving(case: &Case, name: &str, file: &[u8], manifest: &str) -> Option<(tempfile::TempDir, Daemon)> {
    if !has_worker("torch", name) {
        return None;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let model = Model::at("m", &folder(dir.path(), "m", file, manifest)).queue(4, "in_order");
    let daemon = case.config().model(model).start();
    Some((dir, daemon))
}

backend_scenarios! {
    fn state_in_buffers_belongs_to_a_session_and_outlives_a_reload_and_a_crash(case) {
        let name = "state_in_buffers_belongs_to_a_session";
        let Some((_dir, daemon)) = serving(case, name, &memory(), OBS) else { return };
        let (mut a, mut b) = (case.attached(&daemon, "model=m"), case.attached(&daemon, "model=m"));
        for (i, want) in [5.0, 6.0, 7.0].into_iter().enumerate() {
            assert_eq!(step(&mut a, 1.0, "").expect("ok").output_f32(0), [want; 4]);
            assert_eq!(step(&mut b, 10.0, "").expect("ok").output_f32(0), [5.0 + 10.0 * i as f32; 4]);
        }
        assert_eq!(daemon.reload("m").expect("reloaded").state, "carried");
        assert_eq!(step(&mut a, 1.0, "").expect("ok").output_f32(0), [8.0; 4], "carried over a reload");
        end_worker(&daemon, "m");
        assert_eq!(step(&mut b, 10.0, "").expect("ok").output_f32(0), [35.0; 4], "found again after a crash");
        let reply = step(&mut a, 1.0, "reset=1").expect("ok");
        assert!(reply.flag("state_reset"));
        assert_eq!(reply.output_f32(0), [5.0; 4], "the value as loaded");
        assert_eq!(step(&mut b, 10.0, "").expect("ok").output_f32(0), [45.0; 4], "another's reset is not mine");
    }

    fn a_module_that_raises_or_answers_nan_fails_that_step_alone_and_says_why(case) {
        let script = Script::forward("x: Tensor", "Tensor", &[
            "_0 = torch.add_(self.n, 1)",
            "if bool(torch.gt(torch.sum(x), 100.)):",
            "  ops.prim.RaiseException(\"the robot fell over\")",
            "else:",
            "  pass",
            "return torch.add(torch.sqrt(x), self.n)",
        ]);
        let file = script.buffer("n", &[1, 4], &[0.0; 4]).bytes();
        let Some((_dir, daemon)) = serving(case, "a_module_that_raises", &file, OBS) else { return };
        let mut robot = case.attached(&daemon, "model=m");
        assert_eq!(step(&mut robot, 4.0, "").expect("ok").output_f32(0), [3.0; 4]);
        step(&mut robot, 50.0, "").expect("model_error");
        step(&mut robot, -1.0, "").expect("model_error");
        assert_eq!(step(&mut robot, 4.0, "").expect("ok").output_f32(0), [4.0; 4], "the failed steps left no trace");
        within(ms(2000), "the model's own message is in the log", || daemon.log().contains("the robot fell over"));
        // A policy that fails at every step fills no disk.
        let began = std::time::Instant::now();
        for _ in 0..200 {
            step(&mut robot, 50.0, "").expect("model_error");
        }
        let seconds = began.elapsed().as_secs() + 2;
        let told = daemon.log().lines().filter(|line| line.contains("the robot fell over")).count() as u64;
        assert!(told <= 1 + seconds * u64::from(FAULT_LOGS_PER_S), "{told} lines in {seconds} s:\n{}", daemon.log());
        assert_eq!(step(&mut robot, 4.0, "").expect("ok").output_f32(0), [5.0; 4]);
    }

    fn a_module_that_segfaults_costs_that_request_and_the_state_goes_on(case) {
        // An index far outside, in the variant that trusts its caller.
        let script = Script::forward("x: Tensor", "Tensor", &[
            "_0 = torch.add_(self.n, 1)",
            "if bool(torch.gt(torch.sum(x), 100.)):",
            "  i = torch.to(torch.mul(torch.ones([1, 1]), 1000000000000.), 4)",
            "  y = torch.to_dense(torch._sparse_coo_tensor_unsafe(i, torch.ones([1]), [4]))",
            "else:",
            "  y = x",
            "return torch.add(y, self.n)",
        ]);
        let file = script.buffer("n", &[1, 4], &[0.0; 4]).bytes();
        let Some((_dir, daemon)) = serving(case, "a_module_that_segfaults", &file, OBS) else { return };
        let mut robot = case.attached(&daemon, "model=m");
        assert_eq!(step(&mut robot, 1.0, "").expect("ok").output_f32(0), [2.0; 4]);
        step(&mut robot, 50.0, "").expect("worker_lost");
        daemon.until_model_is("m", "live");
        assert_eq!(step(&mut robot, 1.0, "").expect("ok").output_f32(0), [3.0; 4], "as the last ok step left it");
    }

    fn a_real_policy_agrees_with_pytorch_as_two_sessions_across_resets_a_reload_and_a_crash(case) {
        let name = "a_real_policy_agrees_with_pytorch";
        let Some(shared) = places::shared() else { return skip(name, "no recordings: ../shared/golden is not there") };
        let Some((_dir, daemon)) = serving(case, name, &motion(&shared), MOTION) else { return };
        let recordings = ["a", "b"].map(|which| recording(&shared, &format!("unitree_rl_gym.g1_motion.{which}")));
        let mut robots = [case.attached(&daemon, "model=m"), case.attached(&daemon, "model=m")];
        let mut worst = 0.0f32;
        for at in 0..recordings[0].steps {
            match at {
                170 => assert_eq!(daemon.reload("m").expect("reloaded").state, "carried"),
                340 => end_worker(&daemon, "m"),
                _ => {}
            }
            for (robot, recording) in robots.iter_mut().zip(&recordings) {
                let reset = if recording.reset[at] { "reset=1" } else { "" };
                let obs = hex(recording.inputs["obs"].step(at));
                let reply = robot.ok(&format!("infer hex={obs} timeout_us=10000000 {reset}")).expect("ok");
                let apart = apart(&reply.output_f32(0), recording.outputs["actions"].step(at));
                assert!(apart <= 1e-5, "step {at}: apart by {apart}");
                worst = worst.max(apart);
            }
        }
        assert!(recordings.iter().all(|r| r.steps == 500));
        assert!(recordings.iter().any(|r| r.reset.iter().skip(1).any(|reset| *reset)), "one is reset on its way");
        println!("largest difference from PyTorch over 2 x 500 steps: {worst:e}");
    }
}

/// What a manifest says of Unitree's policy for the G1.
const MOTION: &str = "input_order = [\"obs\"]\noutput_order = [\"actions\"]\n[inputs.obs]\ndtype = \"f32\"\nshape = [1, 47]\n[outputs.actions]\nshape = [1, 12]\n[options]\nreset_method = \"reset_memory\"\n";

fn motion(shared: &Path) -> Vec<u8> {
    fs::read(shared.join("models/unitree_rl_gym/g1_motion.pt")).expect("the policy is there")
}

fn recording(shared: &Path, name: &str) -> Recording {
    let file = format!("{name}.npz");
    let bytes = fs::read(shared.join("golden").join(&file)).expect("the recording is there");
    Recording::read(&file, bytes).expect("a recording")
}

fn apart(got: &[f32], want: &[u8]) -> f32 {
    let want: Vec<f32> = want.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    assert_eq!(got.len(), want.len());
    got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn the_same_policy_as_torchscript_and_as_onnx_gives_the_same_actions_over_a_closed_loop() {
    let name = "the_same_policy_as_torchscript_and_as_onnx";
    let Some(shared) = places::shared() else { return skip(name, "no recordings: ../shared/golden is not there") };
    if !has_worker("torch", name) {
        return;
    }
    let _turn = turn();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let script = folder(dir.path(), "script", &motion(&shared), MOTION);
    let onnx = dir.path().join("onnx");
    fs::create_dir_all(&onnx).expect("our own folder");
    fs::copy(shared.join("models/unitree_rl_gym/g1_lstm.onnx"), onnx.join("policy.onnx")).expect("the model is there");
    let state = |a: &str| format!("[[state]]\ninput = \"{a}_in\"\noutput = \"{a}_out\"\n");
    let manifest = format!("file = \"policy.onnx\"\n{}{}[warm_up]\nruns = 3\n", state("h"), state("c"));
    fs::write(onnx.join("model.toml"), manifest).expect("our own file");
    let config = DaemonConfig::new(Backing::Memfd).model(Model::at("script", &script)).model(Model::at("onnx", &onnx));
    let daemon = config.start();
    let mut robot = daemon.driver(&places::test_program("driver_rust"));
    robot.ok("attach model=script");
    robot.ok("attach s=1 model=onnx");
    let walk = recording(&shared, "g1-lstm.closedloop");
    let (mut between, mut from_recording) = (0.0f32, 0.0f32);
    for at in 0..walk.steps {
        let obs = hex(walk.inputs["obs"].step(at));
        let actions =
            [0, 1].map(|s| robot.ok(&format!("infer s={s} hex={obs} timeout_us=10000000")).expect("ok").output(0));
        let script: Vec<f32> = actions[0].as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        between = between.max(apart(&script, &actions[1]));
        from_recording = from_recording.max(apart(&script, walk.outputs["actions"].step(at)));
    }
    assert!(between <= 1e-4 && from_recording <= 1e-4, "apart by {between} and {from_recording}");
    println!("largest difference over {} steps: {between:e}; from the recording: {from_recording:e}", walk.steps);
}

#[test]
fn a_refused_module_leaves_the_live_one_serving_and_names_the_remedy() {
    if !has_worker("torch", "a_refused_module") {
        return;
    }
    let _turn = turn();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let live = folder(dir.path(), "live", &memory(), OBS);
    let daemon = DaemonConfig::new(Backing::Memfd).model(Model::at("m", &live)).start();
    let mut robot = daemon.driver(&places::test_program("driver_rust"));
    robot.ok("attach model=m");
    let later = Script::forward("x: Tensor", "Tensor", &["return x"]).version(999).bytes();
    let crashes = Script::forward(
        "x: Tensor",
        "Tensor",
        &[
            "i = torch.to(torch.mul(torch.ones([1, 1]), 1000000000000.), 4)",
            "return torch.to_dense(torch._sparse_coo_tensor_unsafe(i, torch.ones([1]), [4]))",
        ],
    );
    let cuda = format!("device = \"cuda:63\"\n{OBS}");
    let wide = OBS.replace("[1, 4]", "[1, 5]");
    for (name, file, manifest, say) in [
        ("checkpoint", Script::checkpoint(), OBS, "torch.jit.script(model).save"),
        ("later", later, OBS, "export it with PyTorch 2.11 or older"),
        ("device", memory(), &cuda, "cuda"),
        ("shape", memory(), &wide, "x f32[1, 5]"),
        ("crashes", crashes.bytes(), OBS, "signal"),
    ] {
        let error = daemon.reload_from("m", &folder(dir.path(), name, &file, manifest)).expect_err(name);
        assert!(error.message.to_lowercase().contains(&say.to_lowercase()), "{name}: {error:?}");
        assert_eq!(step(&mut robot, 1.0, "").expect("ok").number("generation"), 1, "{name}");
    }
}

#[test]
fn a_missing_worker_and_a_missing_libtorch_say_what_to_install() {
    let _turn = turn();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = folder(dir.path(), "m", &memory(), OBS);
    let bare = dir.path().join("workers");
    fs::create_dir_all(&bare).expect("our own folder");
    std::os::unix::fs::symlink(places::program("inferd-worker"), bare.join("inferd-worker")).expect("a link");
    let model = || Model::at("m", &path).config("optional", "true");
    let daemon = DaemonConfig::new(Backing::Memfd)
        .set("daemon", &format!("worker_dir = {:?}", bare.display().to_string()))
        .model(model())
        .start();
    within(ms(5000), "the log names the missing worker", || daemon.log().contains("make torch"));
    drop(daemon);
    if !has_worker("torch", "a_missing_libtorch") {
        return;
    }
    let daemon = DaemonConfig::new(Backing::Memfd).env("INFERD_LIBTORCH", "/nowhere").model(model()).start();
    within(ms(10_000), "the log names the missing library", || {
        daemon.log().contains("/nowhere/lib/libtorch_cpu.so") && daemon.log().contains("INFERD_LIBTORCH")
    });
}
