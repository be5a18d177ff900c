//! Bad reloads under load: whatever is wrong with a file or happens to its loader, what serves goes on serving.
//!
//! Every round harms one reload in one way, at a place and a time that its seed decides. Four robots of both clients
//! compare every answer with what its generation's file answers in this process. A damaged file may still be a model: then
//! it is accepted, and its answers are those of the damaged file. Nothing is lost, and nothing is left.

mod reference;

use inferd_ipc::control::{ReloadAnswer, RpcError};
use inferd_ipc::layout::Backing;
use inferd_ipc::signature::DType;
use inferd_tests::answer::{OBSERVATIONS, fill, mix};
use inferd_tests::policies::{WALKING, perceptron, perceptron_of};
use inferd_tests::process::children;
use inferd_tests::{Answer, Baseline, Daemon, DaemonConfig, Fleet, Model, Rounds, ms, within};
use inferd_worker::testing::npz::npz;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const STRETCH_S: f64 = 4.0;
const LOAD: &str = "rate_hz=1000 depth=2 check=answers seed=70";
const SLACK_BYTES: u64 = 2 << 20;
/// Far above what a load takes here; a loader that hangs costs this much of the suite's time.
const LOAD_MS: u64 = 2_000;
/// A worker that is stopped between its take-over and the end of its reload counts as hung after this.
const RUN_MS: u64 = 500;

/// How a reload is harmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Harm {
    Truncated,
    BitFlipped,
    OtherSignature,
    NanWeights,
    ReplacedWhileRead,
    GoldenMismatch,
    LoaderKilled,
    LoaderStopped,
}

/// Of a hundred rounds, so many of each.
const SHARES: [(Harm, u64); 8] = [
    (Harm::Truncated, 16),
    (Harm::BitFlipped, 34),
    (Harm::OtherSignature, 6),
    (Harm::NanWeights, 6),
    (Harm::ReplacedWhileRead, 10),
    (Harm::GoldenMismatch, 6),
    (Harm::LoaderKilled, 20),
    (Harm::LoaderStopped, 2),
];

impl Harm {
    fn of(seed: u64) -> Harm {
        let mut left = seed % 100;
        for (harm, share) in SHARES {
            if left < share {
                return harm;
            }
            left -= share;
        }
        Harm::BitFlipped
    }
}

/// Everything that the rounds share.
struct Scene {
    daemon: Daemon,
    dir: tempfile::TempDir,
    good: [Vec<u8>; 2],
    /// What each generation must answer, by its number.
    due: BTreeMap<u32, [String; OBSERVATIONS]>,
    accepted: BTreeMap<Harm, u32>,
    refused: BTreeMap<Harm, u32>,
}

impl Scene {
    fn new() -> Scene {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let good = [1, 2].map(|seed| perceptron(&WALKING, seed));
        let file = dir.path().join("good.onnx");
        std::fs::write(&file, &good[0]).expect("our own folder");
        let model = Model::at("m", &file).config("load_ms", &LOAD_MS.to_string());
        let daemon = DaemonConfig::new(Backing::Memfd).model(model.config("max_run_ms", &RUN_MS.to_string())).start();
        let mut scene =
            Scene { daemon, dir, good, due: BTreeMap::new(), accepted: BTreeMap::new(), refused: BTreeMap::new() };
        let answers = reference::answers(scene.good[0].clone(), 70);
        scene.due.insert(1, answers);
        scene
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let file = self.dir.path().join(name);
        std::fs::write(&file, bytes).expect("our own folder");
        file
    }

    /// A good reload: it may take several attempts on a machine that is too slow for `load_ms`.
    fn restore(&mut self) {
        let file = self.file("good.onnx", &self.good[0]);
        let end = Instant::now() + ms(20_000);
        loop {
            match self.daemon.reload_from("m", &file) {
                Ok(answer) => break self.accept(&answer, &self.good[0].clone()),
                Err(error) => assert!(error.message.contains("not loaded and warm"), "{error}"),
            }
            assert!(Instant::now() < end, "a good reload is not taken");
        }
    }

    fn accept(&mut self, answer: &ReloadAnswer, bytes: &[u8]) {
        self.due.insert(answer.to_generation, reference::answers(bytes.to_vec(), 70));
    }

    /// Harms one reload; the daemon's verdict, and what was loaded if it was accepted.
    fn harm(&self, harm: Harm, seed: u64) -> (Result<ReloadAnswer, RpcError>, Vec<u8>) {
        let good = &self.good[1];
        // What stands in the last bytes, tract does without.
        let at = mix(seed) as usize % (good.len() - 16);
        let bytes = match harm {
            Harm::Truncated => good[..at].to_vec(),
            Harm::BitFlipped => flipped(good, seed),
            Harm::OtherSignature => perceptron(&[47, 512, 256, 128, 12], seed),
            Harm::NanWeights => perceptron_of(&WALKING, |layer, n, m| {
                let mut weights = vec![0.01; (n * m) as usize];
                let place = mix(seed) as usize % weights.len();
                weights[place] = if layer == 3 { f32::NAN } else { 0.02 };
                weights
            }),
            Harm::GoldenMismatch => return (self.golden_mismatch(seed), good.clone()),
            Harm::ReplacedWhileRead => return self.replaced_while_read(seed),
            Harm::LoaderKilled => return (self.struck(seed, Signal::SIGKILL), good.clone()),
            Harm::LoaderStopped => return (self.struck(seed, Signal::SIGSTOP), good.clone()),
        };
        let file = self.file("bad.onnx", &bytes);
        (self.daemon.reload_from("m", &file), bytes)
    }

    /// A sound model beside a recording that it does not reproduce.
    fn golden_mismatch(&self, seed: u64) -> Result<ReloadAnswer, RpcError> {
        let folder = self.dir.path().join("golden");
        std::fs::create_dir_all(&folder).expect("our own folder");
        let input = fill(seed, 4 * WALKING[0] as usize);
        let output = fill(seed + 1, 4 * WALKING[4] as usize);
        let (x, y) = ([1, 1, WALKING[0]], [1, 1, WALKING[4]]);
        let pair = npz(&[("in.x", DType::F32, &x, &input), ("out.y", DType::F32, &y, &output)]);
        let manifest = "file = \"policy.onnx\"\n[[golden]]\nfile = \"step.npz\"\ntolerance = 1e-4\n";
        for (name, bytes) in
            [("policy.onnx", &self.good[1][..]), ("step.npz", &pair), ("model.toml", manifest.as_bytes())]
        {
            std::fs::write(folder.join(name), bytes).expect("our own folder");
        }
        self.daemon.reload_from("m", &folder)
    }

    /// Somebody copies one file over the other, again and again, while it is read: it is taken whole or not at all.
    fn replaced_while_read(&self, seed: u64) -> (Result<ReloadAnswer, RpcError>, Vec<u8>) {
        let file = self.file("moving.onnx", &self.good[0]);
        let over = std::sync::atomic::AtomicBool::new(false);
        let verdict = std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for n in 0.. {
                    if over.load(std::sync::atomic::Ordering::Relaxed) {
                        return;
                    }
                    overwrite(&file, &self.good[n % 2], seed.wrapping_add(n as u64));
                }
            });
            std::thread::sleep(Duration::from_micros(mix(seed) % 3000));
            let verdict = self.daemon.reload_from("m", &file);
            over.store(true, std::sync::atomic::Ordering::Relaxed);
            writer.join().expect("the writer does not panic");
            verdict
        });
        let which = verdict.as_ref().map_or(0, |answer| {
            let whole = self.good.iter().position(|bytes| sha256(self.dir.path(), bytes) == answer.sha256);
            whole.unwrap_or_else(|| panic!("a file was accepted that never was whole: {answer:?}"))
        });
        (verdict, self.good[which].clone())
    }

    /// Whether a child of the daemon is past its exec. Until then whoever starts it waits: a stop would hold the daemon too.
    fn runs_its_program(&self, pid: u32) -> bool {
        let program = |pid: u32| std::fs::read_link(format!("/proc/{pid}/exe")).ok();
        program(pid).is_some_and(|child| Some(child) != program(self.daemon.pid()))
    }

    /// A signal for the loader, some time after it was started.
    fn struck(&self, seed: u64, signal: Signal) -> Result<ReloadAnswer, RpcError> {
        let file = self.file("struck.onnx", &self.good[1]);
        let before: BTreeSet<u32> = children(self.daemon.pid()).into_iter().collect();
        std::thread::scope(|scope| {
            let reload = scope.spawn(|| self.daemon.reload_from("m", &file));
            let mut loader = None;
            while loader.is_none() && !reload.is_finished() {
                let due =
                    |pid: &u32| !before.contains(pid) && (signal != Signal::SIGSTOP || self.runs_its_program(*pid));
                loader = children(self.daemon.pid()).into_iter().find(due);
            }
            // Mostly while it loads; now and then while it takes over, or once it is live.
            let within_us = if seed.is_multiple_of(4) { 40_000 } else { 10_000 };
            std::thread::sleep(Duration::from_micros(mix(seed) % within_us));
            if let Some(loader) = loader {
                // It may have been refused and be gone by now.
                let _ = kill(Pid::from_raw(loader as i32), signal);
            }
            reload.join().expect("the reload does not panic")
        })
    }

    /// Every request of this stretch ended in an answer of its generation, save what dead workers account for.
    fn check(&self, summaries: &[Answer], deaths: u64) {
        let lost: u64 = summaries.iter().map(|s| s.count("worker_lost")).sum();
        assert!(lost <= deaths, "{lost} requests were lost with {deaths} live workers");
        for s in summaries {
            let told = s.count("worker_lost") + s.count("unavailable") + s.count("model_error");
            assert_eq!(s.count("ok") + told, s.number("sent"), "{}", s.json);
            assert!(deaths > 0 || s.refused() + s.count("unavailable") == 0, "refused without a death: {}", s.json);
            let mut silent = false;
            for (generation, hashes) in s.answers() {
                let due = self.due.get(&generation).unwrap_or_else(|| panic!("nobody made generation {generation}"));
                silent |= due.iter().any(String::is_empty);
                for (hash, due) in hashes.iter().zip(due).filter(|(hash, _)| !hash.is_empty()) {
                    assert_eq!(hash, due, "generation {generation} answers otherwise than its file");
                }
            }
            // A damaged file that was accepted may have no finite answer to some observation.
            let silent = silent || self.due.values().flatten().any(String::is_empty);
            assert!(silent || s.count("model_error") == 0, "{}", s.json);
        }
    }
}

/// One bit in four files, up to sixteen in the others; half of them near the beginning, where the structure is.
fn flipped(good: &[u8], seed: u64) -> Vec<u8> {
    let mut bytes = good.to_vec();
    let flips = if seed.is_multiple_of(4) { 1 } else { 1 + mix(seed) % 16 };
    for n in 0..flips {
        let place = mix(seed ^ mix(n));
        // Graph nodes and names stand before the weights.
        let range = if place.is_multiple_of(2) { bytes.len() } else { 1024 };
        bytes[(place >> 8) as usize % range] ^= 1 << (place >> 3 & 7);
    }
    bytes
}

/// Copies as cp(1) does: the file is emptied, then written bit by bit.
fn overwrite(file: &Path, bytes: &[u8], seed: u64) {
    use std::io::Write;
    let mut to = std::fs::File::create(file).expect("our own file");
    for (n, chunk) in bytes.chunks(64 << 10).enumerate() {
        to.write_all(chunk).expect("our own file");
        if mix(seed ^ n as u64).is_multiple_of(8) {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
    drop(to);
    std::thread::sleep(Duration::from_micros(mix(seed) % 2000));
}

/// The hash that the daemon must have computed, by another program.
fn sha256(dir: &Path, bytes: &[u8]) -> String {
    let file = dir.join("hashed");
    std::fs::write(&file, bytes).expect("our own folder");
    let ran = std::process::Command::new("sha256sum").arg(&file).output().expect("sha256sum");
    String::from_utf8_lossy(&ran.stdout).split_whitespace().next().unwrap_or_default().to_owned()
}

#[test]
fn two_hundred_bad_reloads_change_nothing_lose_nothing_and_leave_nothing() {
    Fleet::run("bad reloads", || {
        let mut scene = Scene::new();
        let mut fleet = Fleet::attach(&scene.daemon, "model=m slots=4 queue=in_order");
        // From here on there is a live worker and a kept one, as at the end; the clients' ledgers have been used, and every
        // thread of the supervisor has the buffers that it keeps.
        (0..40).for_each(|_| scene.restore());
        fleet.load(0.2, LOAD);
        scene.check(&fleet.unload(), 0);
        let baseline = Baseline::of(&scene.daemon, &fleet.all());
        let mut rounds = Rounds::of("bad reloads");
        let mut deaths = scene.daemon.model("m").worker_deaths;
        while rounds.another() {
            if !fleet.is_loaded() {
                if !rounds.is_first() {
                    let now = scene.daemon.model("m").worker_deaths;
                    scene.check(&fleet.unload(), now - deaths);
                    deaths = now;
                }
                fleet.load(STRETCH_S, LOAD);
            }
            let (seed, before) = (rounds.seed(), scene.daemon.model("m"));
            let harm = Harm::of(seed);
            let (verdict, bytes) = scene.harm(harm, seed >> 8);
            let what = match &verdict {
                Ok(answer) => format!("accepted as {}", answer.to_generation),
                Err(error) => error.message.chars().take(70).collect(),
            };
            println!("round {} {harm:?} seed {seed}: {what}", rounds.done());
            match verdict {
                Ok(answer) => {
                    let never = [Harm::Truncated, Harm::OtherSignature, Harm::NanWeights, Harm::GoldenMismatch];
                    assert!(!never.contains(&harm), "{harm:?} was accepted: {answer:?}");
                    scene.accept(&answer, &bytes);
                    *scene.accepted.entry(harm).or_insert(0) += 1;
                    // A worker that was struck right after its take-over is replaced by the same generation.
                    within(ms(10_000), "the model is live", || scene.daemon.model("m").state == "live");
                    scene.restore();
                }
                Err(error) => {
                    assert!(!error.message.is_empty());
                    *scene.refused.entry(harm).or_insert(0) += 1;
                    within(ms(10_000), "the model is live", || scene.daemon.model("m").state == "live");
                    let after = scene.daemon.model("m");
                    assert_eq!(after.generation, before.generation, "{harm:?}: {error}");
                    let same = after.worker_pid == before.worker_pid;
                    assert!(same || after.worker_deaths > before.worker_deaths, "{harm:?}: {error}");
                }
            }
        }
        let now = scene.daemon.model("m").worker_deaths;
        scene.check(&fleet.unload(), now - deaths);
        println!("refused {:?}\naccepted {:?}, {now} deaths of live workers", scene.refused, scene.accepted);
        rounds.finish();
        scene.restore();
        scene.restore();
        let memory = baseline.holds_again(&scene.daemon, &fleet.all(), SLACK_BYTES);
        println!("private memory before {:?}, after {memory:?}", baseline.memory);
    });
}
