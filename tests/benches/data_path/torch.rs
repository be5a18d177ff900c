//! Rows of a TorchScript policy: served, and in a process of its own that answers blocks on request.
//!
//! libtorch is not linked here: `time_torch` of `worker-torch` steps the same file with the same code in its process, on
//! the worker's CPU, and its blocks alternate with the served ones and with the ping-pong.

use crate::limit::{Kind, Limit, pin};
use crate::rows::{BLOCK, Blocks, CLIENT_CPU, Report, attach, blocks, time_block, timed_call};
use inferd_ipc::layout::Backing;
use inferd_tests::process::rss_bytes;
use inferd_tests::{DaemonConfig, Model, places};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

const MANIFEST: &str = "file = \"policy.pt\"\nbackend = \"torch\"\n[inputs.obs]\ndtype = \"f32\"\nshape = [1, 47]\n[outputs.actions]\nshape = [1, 12]\n[options]\nreset_method = \"reset_memory\"\n";

/// The policy stepped in a process of its own.
struct Twin {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Twin {
    fn start(policy: &Path, cpu: usize) -> Option<Twin> {
        let program = places::bin_dir().join("examples/time_torch");
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
    (path.exists() && places::bin_dir().join("inferd-worker-torch").exists()).then_some(path)
}

/// Runs them, or says why not.
pub fn rows(report: &mut Report, cpu: usize) {
    let Some(policy) = policy() else {
        return println!(
            "SKIP g1 (torch): inferd-worker-torch is not built (make torch), or ../shared lacks the policy"
        );
    };
    // What a daemon may use, it has from us.
    crate::limit::unpin();
    let dir = tempfile::tempdir().expect("a temporary folder");
    fs::copy(&policy, dir.path().join("policy.pt")).expect("our own folder");
    fs::write(dir.path().join("model.toml"), MANIFEST).expect("our own file");
    let model = Model::at("g1", dir.path()).config("cpu", &cpu.to_string()).config("spin_us", "2000");
    let daemon = DaemonConfig::new(Backing::Memfd).model(model).start();
    let Some(mut twin) = Twin::start(&policy, cpu) else {
        return println!("SKIP g1 (torch): its example time_torch is not built (make torch)");
    };
    twin.block(1);
    pin(CLIENT_CPU);
    let mut session = attach(&daemon, "g1", 2000);
    let (input, mut output) = ([0.1f32; 47], [0.0f32; 12]);
    let mut limit = Limit::start(Kind::Spin, cpu);
    let [mut served, mut within, mut direct] = std::array::from_fn(|_| Blocks::default());
    let count = BLOCK / 10;
    for block in 0..=blocks() {
        let mut bounced = Vec::with_capacity(count);
        limit.block(count, &mut bounced);
        let mut runs = Vec::with_capacity(count);
        let of_served = time_block(count, &mut || runs.push(timed_call(&mut session, &input, &mut output)));
        // The worker goes to sleep before its CPU is another's.
        std::thread::sleep(Duration::from_millis(4));
        let of_direct = twin.block(count);
        if block > 0 {
            served.row.push(of_served);
            direct.row.push(of_direct);
            within.row.push(runs.split_off(runs.len() - count));
            within.limit.push(bounced.clone());
            served.limit.push(bounced.clone());
            direct.limit.push(bounced);
        }
    }
    let [f, within, direct] = [served, within, direct].map(|blocks| blocks.figures_of_all());
    report.row("g1 lstm in-process (torch)", &direct, "");
    let added = (f.row[0] - direct.row[0]) / f.limit[0];
    report.row("g1 lstm served (torch)", &f, &format!("adds {added:.2} ping-pongs (bar 2)"));
    let around = (f.row[0] - within.row[0]) / f.limit[0];
    report.row("    of it in the worker", &within, &format!("the rest is {around:.2} ping-pongs"));
    report.figure("resident, torch worker with the G1 policy", rss_bytes(daemon.worker("g1")) as f64 / 1e6, "MB");
    report.figure("start to READY with it, warm-up included", daemon.ready_after().as_secs_f64() * 1e3, "ms");
}
