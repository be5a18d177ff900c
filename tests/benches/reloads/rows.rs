//! A thousand reloads in a row under load, on one CPU and on two, in windows that alternate with quiet ones.
//!
//! The load is four clients at 1 kHz; everything, the bench itself included, runs on the row's CPUs. Before and after,
//! everybody's descriptors, threads, mappings and private memory are looked at.

use crate::client::{Call, Client, Pace, SEED};
use crate::reference;
use inferd_ipc::layout::Backing;
use inferd_ipc::sys::now_ns;
use inferd_tests::answer::OBSERVATIONS;
use inferd_tests::bench::{Lines, scaled};
use inferd_tests::leaks::Baseline;
use inferd_tests::policies::{WALKING, perceptron};
use inferd_tests::{Confined, Daemon, DaemonConfig, Model, places};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const CLIENTS: usize = 4;
const PACE: Pace = Pace { rate_hz: 1000, spin_us: 50 };
/// Reloads in a window; a quiet window lasts as long as the one before it.
const RELOADS_PER_WINDOW: u32 = 10;
/// Reloads before anything is measured; an even number ends with the first file.
const FIRST_RELOADS: usize = 40;
/// A row ends after this, however many reloads there were; `INFERD_BENCH_RELOADS` asks for a count, and for the time that it takes.
const ROW_TIME: Duration = Duration::from_secs(170);
const ROW_TIME_ASKED: Duration = Duration::from_secs(900);
/// Of the figure over time: this much of a row, in buckets.
const SERIES_NS: u64 = 6_000_000_000;
const BUCKET_NS: u64 = 10_000_000;

/// A row of the table.
struct Row {
    name: &'static str,
    cpus: usize,
    reloads: u32,
    time: Duration,
    files: [PathBuf; 2],
    /// What each file answers; none where the model has a state of its own.
    answers: Option<[[String; OBSERVATIONS]; 2]>,
}

/// One reload, as the operator saw it.
struct Reload {
    began_ns: u64,
    ended_ns: u64,
    to: u32,
    swap_us: f64,
}

/// What a row has seen.
struct Seen {
    calls: Vec<Vec<Call>>,
    missed: u64,
    /// From, to, and whether there were reloads.
    windows: Vec<(u64, u64, bool)>,
    reloads: Vec<Reload>,
    /// The file of each generation.
    files: BTreeMap<u32, usize>,
    before: Baseline,
    after: Baseline,
}

/// What Unitree's file does not say of itself.
const TORCHSCRIPT: &str = "file = \"policy.pt\"\ninput_order = [\"obs\"]\noutput_order = [\"actions\"]\n[inputs.obs]\ndtype = \"f32\"\nshape = [1, 47]\n[outputs.actions]\nshape = [1, 12]\n[options]\nreset_method = \"reset_memory\"\n";

/// Runs the rows that were asked for.
pub fn run(lines: &Lines) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let bytes = [1, 2].map(|seed| perceptron(&WALKING, seed));
    let files = ["a.onnx", "b.onnx"].map(|name| dir.path().join(name));
    files.iter().zip(&bytes).for_each(|(file, bytes)| std::fs::write(file, bytes).expect("our own folder"));
    let answers = bytes.map(|bytes| reference::answers(bytes, SEED));
    let count = std::env::var("INFERD_BENCH_RELOADS").ok().and_then(|n| n.parse().ok());
    let time = if count.is_some() { ROW_TIME_ASKED } else { ROW_TIME };
    let policy = |name, cpus| {
        let (files, answers) = (files.clone(), Some(answers.clone()));
        Row { name, cpus, reloads: count.unwrap_or_else(|| scaled(125, 5) as u32), time, files, answers }
    };
    let mut rows = vec![
        policy("reloads of a 0.76 MB ONNX policy, one CPU", 1),
        policy("reloads of a 0.76 MB ONNX policy, two CPUs", 2),
    ];
    let folder = tempfile::tempdir().expect("a temporary folder");
    match places::shared().map(|s| s.join("models/unitree_rl_gym/g1_motion.pt")).filter(|p| p.exists()) {
        Some(file) if places::has_worker("inferd-worker-torch") => {
            let reloads = count.unwrap_or_else(|| scaled(20, 2) as u32).min(100);
            std::fs::copy(&file, folder.path().join("policy.pt")).expect("our own folder");
            std::fs::write(folder.path().join("model.toml"), TORCHSCRIPT).expect("our own file");
            let file = folder.path().to_owned();
            for (name, cpus) in
                [("reloads of a TorchScript policy, one CPU", 1), ("reloads of a TorchScript policy, two CPUs", 2)]
            {
                rows.push(Row { name, cpus, reloads, time, files: [file.clone(), file.clone()], answers: None });
            }
        }
        _ => println!(
            "SKIP reloads of a TorchScript policy: no worker with libtorch, or no such policy beside the repository"
        ),
    }
    println!(
        "{CLIENTS} clients at {} Hz; windows of {RELOADS_PER_WINDOW} reloads alternate with quiet ones\n",
        PACE.rate_hz
    );
    for row in rows.iter().filter(|row| lines.wants(row.name)) {
        let Some(_confined) = Confined::to(row.cpus) else {
            println!("SKIP {}: this machine has fewer CPUs", row.name);
            continue;
        };
        let seen = measure(row);
        print(lines, row, &seen);
    }
}

fn measure(row: &Row) -> Seen {
    let daemon = DaemonConfig::new(Backing::Memfd).model(Model::at("m", &row.files[0])).start();
    let mut files = BTreeMap::from([(1, 0)]);
    // From here on there is a live worker and a kept one, as at the end, and every thread has the buffers that it keeps.
    for n in 0..FIRST_RELOADS {
        let file = (n + 1) % 2;
        files.insert(daemon.reload_from("m", &row.files[file]).expect("reloaded").to_generation, file);
    }
    let clients: Vec<Client> = (0..CLIENTS).map(|_| Client::start(&daemon, "m", PACE)).collect();
    std::thread::sleep(Duration::from_millis(300));
    let before = Baseline::of(&daemon, &[]);
    let (mut windows, mut reloads, began) = (Vec::new(), Vec::new(), Instant::now());
    while (reloads.len() as u32) < row.reloads && began.elapsed() < row.time {
        let from = now_ns();
        for _ in 0..RELOADS_PER_WINDOW.min(row.reloads) {
            let (file, began_ns) = ((reloads.len() + 1) % 2, now_ns());
            let answer = daemon.reload_from("m", &row.files[file]).expect("reloaded");
            files.insert(answer.to_generation, file);
            reloads.push(Reload { began_ns, ended_ns: now_ns(), to: answer.to_generation, swap_us: answer.swap_us });
        }
        let middle = now_ns();
        windows.push((from, middle, true));
        std::thread::sleep(Duration::from_millis(50));
        let quiet = now_ns();
        std::thread::sleep(Duration::from_nanos(middle - from));
        windows.push((quiet, now_ns(), false));
    }
    let after = settled(&daemon, &before);
    let ended: Vec<_> = clients.into_iter().map(Client::stop).collect();
    let missed = ended.iter().map(|c| c.missed).sum();
    let calls = ended.into_iter().map(|c| c.calls).collect();
    Seen { calls, missed, windows, reloads, files, before, after }
}

/// What everybody holds once the last retired worker is gone.
fn settled(daemon: &Daemon, before: &Baseline) -> Baseline {
    let end = Instant::now() + Duration::from_secs(3);
    loop {
        let now = Baseline::of(daemon, &[]);
        if now.holdings == before.holdings || Instant::now() > end {
            return now;
        }
    }
}

impl Seen {
    /// Latencies of the calls that began in windows of this kind, sorted.
    fn latencies(&self, with_reloads: bool) -> Vec<u64> {
        let windows: Vec<_> = self.windows.iter().filter(|w| w.2 == with_reloads).collect();
        let mut all = Vec::new();
        for calls in &self.calls {
            let mut at = 0;
            for (from, to, _) in &windows {
                at += calls[at..].partition_point(|c| c.from_ns < *from);
                all.extend(calls[at..].iter().take_while(|c| c.from_ns < *to).map(Call::latency_ns));
            }
        }
        all.sort_unstable();
        all
    }

    /// Per reload and session: from the old generation's last answer to the new one's first, sorted.
    fn gaps(&self) -> Vec<u64> {
        let mut gaps = Vec::new();
        for calls in &self.calls {
            let pairs = calls.windows(2).filter(|p| p[0].generation != p[1].generation && p[0].generation > 0);
            gaps.extend(pairs.map(|p| p[1].answered_ns - p[0].answered_ns));
        }
        gaps.sort_unstable();
        gaps
    }

    fn failed(&self) -> usize {
        self.calls.iter().flatten().filter(|c| c.generation == 0).count()
    }

    /// Answers of another file than their generation's.
    fn wrong(&self, row: &Row) -> usize {
        let Some(answers) = &row.answers else { return 0 };
        let due = |c: &Call| self.files.get(&c.generation).map(|f| &answers[*f][c.observation as usize]);
        let wrong = |c: &&Call| due(c).is_none_or(|due| *due != format!("{:016x}", c.hash));
        self.calls.iter().flatten().filter(|c| c.generation > 0).filter(wrong).count()
    }

    /// The latency over time, of all sessions together, in buckets; and the reloads in it.
    fn series(&self, name: &str) -> serde_json::Value {
        let start = self.windows.first().map_or(0, |w| w.0);
        let buckets = (SERIES_NS / BUCKET_NS) as usize;
        let mut latencies = vec![Vec::new(); buckets];
        for call in self.calls.iter().flatten().filter(|c| (start..start + SERIES_NS).contains(&c.from_ns)) {
            latencies[((call.from_ns - start) / BUCKET_NS) as usize].push(call.latency_ns());
        }
        latencies.iter_mut().for_each(|l| l.sort_unstable());
        let ms = |ns: u64| (ns.saturating_sub(start)) as f64 / 1e6;
        let reloads = self.reloads.iter().filter(|r| r.ended_ns < start + SERIES_NS);
        json!({
            "kind": "series", "series": name,
            "t_ms": (0..buckets).map(|i| i as u64 * BUCKET_NS / 1_000_000).collect::<Vec<_>>(),
            "p50_us": latencies.iter().map(|l| quantile(l, 0.5) as f64 / 1e3).collect::<Vec<_>>(),
            "max_us": latencies.iter().map(|l| quantile(l, 1.0) as f64 / 1e3).collect::<Vec<_>>(),
            "reloads_ms": reloads.map(|r| [ms(r.began_ns), ms(r.ended_ns)]).collect::<Vec<_>>(),
            "generations": self.reloads.first().map_or(0, |r| r.to),
        })
    }
}

fn print(lines: &Lines, row: &Row, seen: &Seen) {
    let (quiet, loaded, gaps) = (seen.latencies(false), seen.latencies(true), seen.gaps());
    let requests: usize = seen.calls.iter().map(Vec::len).sum();
    let (failed, wrong) = (seen.failed(), seen.wrong(row));
    let mut took: Vec<u64> = seen.reloads.iter().map(|r| r.ended_ns - r.began_ns).collect();
    let mut swaps: Vec<u64> = seen.reloads.iter().map(|r| (r.swap_us * 1e3) as u64).collect();
    took.sort_unstable();
    swaps.sort_unstable();
    println!("{}", row.name);
    println!(
        "    {} reloads of {}, {requests} requests: {failed} failed, {wrong} answered by another file",
        seen.reloads.len(),
        row.reloads
    );
    println!("    ticks that a client gave up, 100 ms overdue: {}", seen.missed);
    println!("    {:<34} {:>9} {:>9} {:>9} {:>9} {:>9}", "us", "p50", "p99", "p99.9", "max", "n");
    for (name, values) in [
        ("latency, quiet", &quiet),
        ("latency, during reloads", &loaded),
        ("gap between generations (1 ms tick)", &gaps),
        ("grant to first sweep", &swaps),
        ("a reload", &took),
    ] {
        let [p50, p99, p999, max] = [0.5, 0.99, 0.999, 1.0].map(|q| us(quantile(values, q)));
        println!("    {name:<34} {p50:>9} {p99:>9} {p999:>9} {max:>9} {:>9}", values.len());
    }
    let ratio = |q| quantile(&loaded, q) as f64 / quantile(&quiet, q).max(1) as f64;
    println!("    during reloads over quiet: p50 {:.2}, p99 {:.2}, p99.9 {:.2}", ratio(0.5), ratio(0.99), ratio(0.999));
    let same = if seen.before.holdings == seen.after.holdings { "as at the start" } else { "DIFFER" };
    let (b, a) = (&seen.before.memory, &seen.after.memory);
    println!("    descriptors, threads, maps, memfd bytes of supervisor and workers at the end: {same}");
    println!(
        "    private memory: supervisor {:.2} -> {:.2} MB, largest worker {:.2} -> {:.2} MB\n",
        b.supervisor as f64 / 1e6,
        a.supervisor as f64 / 1e6,
        b.worker as f64 / 1e6,
        a.worker as f64 / 1e6
    );
    if same != "as at the start" {
        println!("    before {:#?}\n    after {:#?}", seen.before.holdings, seen.after.holdings);
    }
    lines.line(&json!({
        "kind": "reloads", "row": row.name, "reloads": seen.reloads.len(), "requests": requests, "failed": failed, "wrong": wrong, "missed": seen.missed,
        "quiet_p50_ns": quantile(&quiet, 0.5), "quiet_p99_ns": quantile(&quiet, 0.99), "quiet_p999_ns": quantile(&quiet, 0.999),
        "p50_ns": quantile(&loaded, 0.5), "p99_ns": quantile(&loaded, 0.99), "p999_ns": quantile(&loaded, 0.999),
        "p99_ratio": ratio(0.99), "p999_ratio": ratio(0.999),
        "gap_p50_ns": quantile(&gaps, 0.5), "gap_p99_ns": quantile(&gaps, 0.99), "gap_max_ns": quantile(&gaps, 1.0),
        "swap_p50_ns": quantile(&swaps, 0.5), "swap_max_ns": quantile(&swaps, 1.0), "reload_p50_ns": quantile(&took, 0.5),
        "holdings_equal": same == "as at the start",
        "supervisor_bytes": [b.supervisor, a.supervisor], "worker_bytes": [b.worker, a.worker],
    }));
    lines.line(&seen.series(row.name));
}

/// The value below which this part of all values lies.
pub fn quantile(sorted: &[u64], q: f64) -> u64 {
    sorted.get(((sorted.len().max(1) - 1) as f64 * q).round() as usize).copied().unwrap_or(0)
}

/// Nanoseconds as microseconds, for a table.
pub fn us(ns: u64) -> String {
    format!("{:.0}", ns as f64 / 1e3)
}
