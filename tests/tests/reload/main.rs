//! A reload as an operator sees it: gates, verdicts, history, rollback, dumps and watched files, through `inferctl`.
//!
//! The policy is `y = x + 1` with a golden pair of small numbers. Its bad successors agree on that pair, load and warm up:
//! only what the robot really sees tells them apart. Every scenario runs with every client and backing; robots keep on
//! asking, and none of their requests may notice a refusal.

mod dump;
mod gate;
mod guide;
mod history;
mod watch;

use inferd_ipc::signature::DType;
use inferd_tests::answer::hex_f32;
use inferd_tests::ran::Ran;
use inferd_tests::{Case, Daemon, Driver, Model};
use inferd_worker::testing::npz::npz;
use std::fs;
use std::path::{Path, PathBuf};

/// Shape of input and output.
const SHAPE: [u64; 2] = [1, 4];
/// Above this, the bad policies are wrong; the golden pair stays below.
const LIMIT: f32 = 10.0;
/// An observation that only a robot makes.
const STEEP: f32 = 20.0;
/// A refusal's exit code.
const REFUSED: i32 = 4;

/// A folder of policies that outlives the daemon's own.
struct Policies {
    dir: tempfile::TempDir,
}

impl Policies {
    fn new() -> Policies {
        Policies { dir: tempfile::tempdir().expect("a temporary folder") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A policy with its golden pair: y = x + 1 for small x.
    fn add(&self, name: &str, onnx: &[u8]) -> PathBuf {
        let x: Vec<f32> = (0..8).map(|i| i as f32 / 8.0).collect();
        let y: Vec<f32> = x.iter().map(|x| x + 1.0).collect();
        let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let golden =
            npz(&[("in.x", DType::F32, &[2, 1, 4], &bytes(&x)), ("out.y", DType::F32, &[2, 1, 4], &bytes(&y))]);
        self.add_with_golden(name, onnx, &golden)
    }

    fn add_with_golden(&self, name: &str, onnx: &[u8], golden: &[u8]) -> PathBuf {
        let folder = self.path(name);
        fs::create_dir_all(&folder).expect("our own folder");
        fs::write(folder.join("policy.onnx"), onnx).expect("a policy");
        fs::write(folder.join("golden.npz"), golden).expect("a golden pair");
        let manifest =
            "file = \"policy.onnx\"\n[[golden]]\nfile = \"golden.npz\"\ntolerance = 1e-6\n[warm_up]\nruns = 3\n";
        fs::write(folder.join("model.toml"), manifest).expect("a manifest");
        folder
    }
}

/// The model `m`, served from there.
fn model(path: &Path) -> Model {
    Model::at("m", path).queue(4, "in_order")
}

/// A robot of this case's client.
fn robot(case: &Case, daemon: &Daemon) -> Driver {
    case.attached(daemon, "model=m slots=4")
}

/// Asks `n` times with observations that are all `x`; the last answer, and the generation that gave it.
fn ask(robot: &mut Driver, x: f32, n: usize) -> (f32, u64) {
    let hex = hex_f32(&[x; 4]);
    let mut last = (0.0, 0);
    for id in 0..n {
        let reply = robot.ok(&format!("infer hex={hex} id={id} timeout_us=10000000"));
        let reply = reply.expect("ok");
        last = (reply.output_f32(0)[0], reply.number("generation"));
    }
    last
}

/// `inferctl` with these words; `{}` stands for the path.
fn inferctl(daemon: &Daemon, words: &str, path: &Path) -> Ran {
    let path = path.display().to_string();
    let words: Vec<String> = words.split(' ').map(|word| word.replace("{}", &path)).collect();
    daemon.tool("inferctl", &words.iter().map(String::as_str).collect::<Vec<_>>())
}
