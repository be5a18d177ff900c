//! What only a CUDA device can show: `make test-gpu` runs these, `make test` never does.

use super::{counter, load, manifest, put, refusal, rules, step, take};
use inferd_ipc::signature::DType;
use inferd_ipc::worker_records::{Device, ModelSpec, Precision};
use inferd_worker::testing::torchscript::Script;

fn on_gpu(inputs: &[&str]) -> ModelSpec {
    let mut spec = manifest(inputs, &["y"]);
    spec.device = Device::Cuda(0);
    spec
}

fn layer() -> Script {
    let weights: Vec<f32> = (0..16).map(|i| (i as f32).sin()).collect();
    Script::forward("x: Tensor", "Tensor", &["return torch.tanh(torch.matmul(x, self.w))"]).buffer(
        "w",
        &[4, 4],
        &weights,
    )
}

#[test]
#[ignore = "needs a CUDA device: make test-gpu"]
fn a_gpu_computes_what_the_cpu_does_and_says_how_long_each_stage_took() {
    let want = step(&mut load(&layer(), &manifest(&["x"], &["y"])), 0.7).expect("runs");
    for (precision, tolerance) in [(Precision::Fp32, 1e-5), (Precision::Fp16, 1e-2), (Precision::Bf16, 5e-2)] {
        let mut spec = on_gpu(&["x"]);
        spec.precision = precision;
        let mut policy = load(&layer(), &spec);
        let got = step(&mut policy, 0.7).expect("runs");
        assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() < tolerance), "{precision:?}: {got:?} {want:?}");
        let times = policy.device_times().expect("a device has stages");
        assert!(times.to_device_ns > 0 && times.on_device_ns > 0 && times.from_device_ns > 0, "{times:?}");
    }
}

#[test]
#[ignore = "needs a CUDA device: make test-gpu"]
fn hidden_state_on_a_gpu_belongs_to_a_session() {
    let mut policy = load(&counter(), &on_gpu(&["x"]));
    let mut sessions = [None, None];
    for (session, want) in [(0, 5.0), (0, 6.0), (1, 5.0), (0, 7.0), (1, 6.0)] {
        put(&mut policy, &sessions[session]);
        assert_eq!(step(&mut policy, 0.0).expect("runs"), [want; 4]);
        sessions[session] = Some(take(&policy));
    }
}

#[test]
#[ignore = "needs a CUDA device: make test-gpu"]
fn a_device_that_is_absent_or_full_is_a_refused_load() {
    let mut spec = on_gpu(&["x"]);
    spec.device = Device::Cuda(63);
    let error = refusal(&layer(), &spec).to_string();
    assert!(error.contains("cuda:63"), "{error}");
    let huge = Script::forward(
        "x: Tensor",
        "Tensor",
        &["return torch.sum(torch.add(torch.zeros([2000000000000], device=torch.device(\"cuda\")), 1))"],
    );
    let error = refusal(&huge, &on_gpu(&["x"])).to_string();
    assert!(error.contains("memory") && error.contains("free memory on the device"), "{error}");
    load(&layer(), &on_gpu(&["x"]));
}

/// An index outside a table, which the device finds out itself: its context is lost for good.
#[test]
#[ignore = "needs a CUDA device: make test-gpu"]
fn an_error_that_sticks_ends_the_worker() {
    if std::env::var_os("INFERD_TEST_STICKY").is_some() {
        let script = Script::forward("x: Tensor", "Tensor", &["return torch.index_select(self.w, 0, x)"]).buffer(
            "w",
            &[4, 4],
            &[1.0; 16],
        );
        let mut spec = on_gpu(&[]);
        spec.inputs.insert("x".into(), rules(DType::I64, &[1]));
        spec.input_order.push("x".into());
        let mut policy = load(&script, &spec);
        policy.input_mut(0).copy_from_slice(&1_000_000i64.to_ne_bytes());
        let outcome = policy.run();
        panic!("the process outlived it: {outcome:?}");
    }
    let child = std::process::Command::new(std::env::current_exe().expect("a test knows its own path"))
        .args(["--exact", "tests::gpu::an_error_that_sticks_ends_the_worker", "--ignored"])
        .env("INFERD_TEST_STICKY", "1")
        .output()
        .expect("it starts");
    let signal = std::os::unix::process::ExitStatusExt::signal(&child.status);
    assert_eq!(signal, Some(libc::SIGABRT), "{}", String::from_utf8_lossy(&child.stderr));
}
