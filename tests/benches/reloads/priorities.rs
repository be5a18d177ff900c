//! A gait policy at 200 Hz beside a vision model that never rests, both executors on one CPU.
//!
//! Windows alternate: the gait policy alone, then beside a vision model of each priority. The clients have the other CPU, where
//! there is one. What the operator sets (`nice`, `scheduling`) decides how long a 200 Hz loop waits for the CPU.

use crate::client::{Client, Pace};
use crate::rows::{quantile, us};
use inferd_ipc::layout::Backing;
use inferd_tests::bench::{Lines, scaled};
use inferd_tests::policies::{WALKING, perceptron};
use inferd_tests::{Daemon, DaemonConfig, Model, places};
use serde_json::json;
use std::time::Duration;

const NAME: &str = "priorities: a 200 Hz gait policy beside a vision model";
/// The executors' CPU.
const CPU: &str = "0";
const WINDOW: Duration = Duration::from_millis(1500);
const WINDOWS: usize = 2;
/// A 200 Hz loop has this long for an answer.
const TICK_NS: u64 = 5_000_000;

/// A scene: what it is called, the gait model, the vision model beside it.
type Scene = (&'static str, &'static str, Option<&'static str>);

/// Runs the rows, if they were asked for.
pub fn run(lines: &Lines) {
    if !lines.wants(NAME) {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let file = dir.path().join("gait.onnx");
    std::fs::write(&file, perceptron(&WALKING, 1)).expect("our own folder");
    let gait = |name: &str| Model::at(name, &file).config("cpu", CPU);
    let vision = |name: &str| {
        let busy = Model::echo(name).option("delay_us", 40_000).config("cpu", CPU);
        busy.config("max_run_ms", "10000")
    };
    let mut config = DaemonConfig::new(Backing::Memfd)
        .model(gait("gait"))
        .model(gait("gait.nice").config("nice", "-10"))
        .model(gait("gait.fifo").config("scheduling", "\"fifo:10\""))
        .model(vision("vision"))
        .model(vision("vision.nice").config("nice", "19"));
    let mut scenes: Vec<Scene> = vec![
        ("alone", "gait", None),
        ("beside 40 ms of busy vision, defaults", "gait", Some("vision")),
        ("the same, vision at nice 19", "gait", Some("vision.nice")),
        ("the same, gait at nice -10", "gait.nice", Some("vision")),
        ("the same, gait at fifo:10", "gait.fifo", Some("vision")),
    ];
    if let Some(path) =
        places::shared().map(|s| s.join("models/onnx_light/light_squeezenet.onnx")).filter(|p| p.exists())
    {
        config = config.model(Model::at("squeezenet", &path).config("cpu", CPU).config("max_run_ms", "10000"));
        scenes.push(("beside SqueezeNet flat out, defaults", "gait", Some("squeezenet")));
    }
    let mut daemon = config.start();
    // A large model's first step fills as much memory again, which it keeps.
    for (_, gait, vision) in &scenes {
        for model in vision.iter().chain([gait]) {
            let client = Client::start(&daemon, model, Pace { rate_hz: 200, spin_us: 0 });
            std::thread::sleep(Duration::from_millis(100));
            client.stop();
        }
    }
    let refused: Vec<String> = scenes.iter().flat_map(|s| daemon.model(s.1).warnings).collect();
    daemon.buffers_are_filled();
    let mut latencies = vec![Vec::new(); scenes.len()];
    let mut failed = vec![0; scenes.len()];
    for _ in 0..scaled(WINDOWS, 1) {
        for (i, scene) in scenes.iter().enumerate() {
            window(&daemon, scene, &mut latencies[i], &mut failed[i]);
        }
    }
    print(lines, &scenes, &mut latencies, &failed, &refused);
}

fn window(daemon: &Daemon, (_, gait, vision): &Scene, latencies: &mut Vec<u64>, failed: &mut usize) {
    let camera = vision.map(|name| Client::start(daemon, name, Pace { rate_hz: 0, spin_us: 0 }));
    std::thread::sleep(Duration::from_millis(100));
    let robot = Client::start(daemon, gait, Pace { rate_hz: 200, spin_us: 0 });
    std::thread::sleep(WINDOW);
    let calls = robot.stop().calls;
    *failed += calls.iter().filter(|c| c.generation == 0).count();
    latencies.extend(calls.iter().map(crate::client::Call::latency_ns));
    camera.map(Client::stop);
}

fn print(lines: &Lines, scenes: &[Scene], latencies: &mut [Vec<u64>], failed: &[usize], refused: &[String]) {
    println!("{NAME}, executors on CPU {CPU}");
    println!("    {:<40} {:>9} {:>9} {:>9} {:>14} {:>7}", "us", "p50", "p99", "max", "over 5 ms", "failed");
    for (i, (name, ..)) in scenes.iter().enumerate() {
        latencies[i].sort_unstable();
        let all = &latencies[i];
        let late = all.iter().filter(|ns| **ns > TICK_NS).count();
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|q| us(quantile(all, q)));
        let late_of = format!("{late} of {}", all.len());
        println!("    {name:<40} {p50:>9} {p99:>9} {max:>9} {late_of:>14} {:>7}", failed[i]);
        lines.line(&json!({
            "kind": "priority", "row": format!("{NAME}: {name}"), "p50_ns": quantile(all, 0.5), "p99_ns": quantile(all, 0.99),
            "max_ns": quantile(all, 1.0), "late": late, "requests": all.len(), "failed": failed[i],
        }));
    }
    refused.iter().for_each(|warning| println!("    not allowed here: {warning}"));
    println!();
}
