//! Rows of a TorchScript policy: served, and in a process of its own that answers blocks on request.
//!
//! libtorch is not linked here: `time_torch` of `worker-torch` steps the same file with the same code in its process, on
//! the worker's CPU, and its blocks alternate with the served ones and with the ping-pong.

use crate::rows::{adds, attach, timed_call};
use inferd_ipc::layout::Backing;
use inferd_tests::bench::blocks::{Until, measure};
use inferd_tests::bench::{CLIENT_CPU, Entry, Kind, Limit, Lines, Row, median, pin, timed, unpin};
use inferd_tests::process::rss_bytes;
use inferd_tests::{DaemonConfig, Model, places};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Steps in a block: one takes 50 us.
const BLOCK: usize = 200;

const MANIFEST: &str = "file = \"policy.pt\"\nbackend = \"torch\"\n[inputs.obs]\ndtype = \"f32\"\nshape = [1, 47]\n[outputs.actions]\nshape = [1, 12]\n[options]\nreset_method = \"reset_memory\"\n";

/// The policy stepped in a process of its own.
struct Twin {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Twin {
    fn start(policy: &Path, cpu: usize) -> Option<Twin> {
        let program = places::example("time_torch");
        let mut command = Command::new(program);
        command.arg(policy).args(["obs=f32:1,47", "--option", "reset_method=reset_memory", "--blocks"]);
        command.args(["--cpu", &cpu.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().ok()?;
        let (stdin, stdout) = (child.stdin.take()?, BufReader::new(child.stdout.take()?));
        Some(Twin { child, stdin, stdout })
    }

    fn block(&mut self, count: usize) -> Vec<u64> {
        let mut line = String::new();
        writeln!(self.stdin, "{count}").and_then(|()| self.stdout.read_line(&mut line)).expect("time_torch answers");
        line.split(' ').map(|ns| ns.trim().parse().expect("nanoseconds")).collect()
    }
}

impl Drop for Twin {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn policy() -> Option<PathBuf> {
    let path = places::shared()?.join("models/unitree_rl_gym/g1_motion.pt");
    (path.exists() && places::has_worker("inferd-worker-torch")).then_some(path)
}

/// Runs them, or says why not.
pub fn rows(lines: &Lines, cpu: usize) {
    let row = Row::spinning("torch", "G1 LSTM (TorchScript)", [47 * 4, 12 * 4]);
    let Some(policy) = policy() else {
        let why = "inferd-worker-torch is not built (make torch), or ../shared lacks the policy";
        return lines.skip(row.row, row.system, why);
    };
    // What a daemon may use, it has from us.
    unpin();
    let dir = tempfile::tempdir().expect("a temporary folder");
    fs::copy(&policy, dir.path().join("policy.pt")).expect("our own folder");
    fs::write(dir.path().join("model.toml"), MANIFEST).expect("our own file");
    let model = Model::at("g1", dir.path()).config("cpu", &cpu.to_string()).config("spin_us", "2000");
    let daemon = DaemonConfig::new(Backing::Memfd).model(model).start();
    let Some(mut twin) = Twin::start(&policy, cpu) else {
        return lines.skip(row.row, row.system, "its example time_torch is not built (make torch)");
    };
    twin.block(1);
    pin(CLIENT_CPU);
    let mut session = attach(&daemon, "g1", 2000);
    let (input, mut output) = ([0.1f32; 47], [0.0f32; 12]);
    let mut limit = Limit::start(Kind::Spin, cpu);
    let mut runs = Vec::new();
    let mut serve = || timed(|| runs.push(timed_call(&mut session, &input, &mut output)));
    // The twin makes a block at once; what it measured is handed out one by one.
    let mut direct = Vec::new();
    let mut step = || {
        if direct.is_empty() {
            direct = twin.block(BLOCK);
        }
        direct.pop().unwrap_or(0)
    };
    let mut entries = [
        Entry { cpu: CLIENT_CPU, count: BLOCK, call: &mut serve },
        Entry { cpu: CLIENT_CPU, count: BLOCK, call: &mut step },
    ];
    // All blocks: a run of many microseconds does not move with the placement.
    let measured = measure(&mut limit, BLOCK, Until::samples(30_000, 15.0, f64::INFINITY), &mut entries);
    lines.row(row.of("libtorch in-process"), &measured.figures(1));
    lines.row(row, &measured.figures(0));
    adds(lines, row.row, &measured, "libtorch");
    lines.figure(row.row, "of the p50 served, the worker had it for", median(&runs), "ns");
    lines.figure(
        "sizes",
        "resident, torch worker with the G1 policy",
        rss_bytes(daemon.worker("g1")) as f64 / 1e6,
        "MB",
    );
    let ready = daemon.ready_after().as_secs_f64() * 1e3;
    lines.figure("sizes", "start to READY with it, warm-up included", ready, "ms");
}
