//! `make bench`: every ONNX file of `../shared/models` through tract and through ONNX Runtime, in-process and served.
//!
//! All rows of a model run in short blocks that alternate, so that what else the machine does falls on all of them; the
//! ping-pong of the same run stands beside them. A row's figure is that of its median block. Prints tables; asserts
//! nothing. `-- settings` prints what ONNX Runtime's own settings cost instead. `INFERD_BENCH_SCALE` multiplies the blocks.

use inferd_client::{AttachOptions, CallOptions, Queue, Session};
use inferd_ipc::layout::Backing;
use inferd_ipc::sys::now_ns;
use inferd_ipc::worker_records::TensorRules;
use inferd_tests::bench::{Kind, Limit, Lines, limit, pin, scaled, unpin};
use inferd_tests::process::rss_bytes;
use inferd_tests::{Daemon, DaemonConfig, Model, places};
use inferd_worker::Policy;
use inferd_worker::backend::{Backend, tract::Tract};
use inferd_worker::files::Folder;
use inferd_worker::testing::spec::spec;
use inferd_worker::warm_up::fill_bytes;
use inferd_worker_ort::{Library, Ort};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A block lasts about this long.
const BLOCK_MS: f64 = 20.0;
/// The classifier's height and width are open; its recording has these.
const CLASSIFIER: (&str, [u64; 4]) = ("cls_infer", [1, 3, 48, 192]);
/// Runs in a row's smallest and largest block.
const BLOCK_RUNS: (f64, f64) = (3.0, 2000.0);
/// What a session may be told; the default first.
const SETTINGS: [&[(&str, &str)]; 9] = [
    &[],
    &[("arena", "false")],
    &[("memory_pattern", "false")],
    &[("arena", "false"), ("memory_pattern", "false")],
    &[("optimise", "extended")],
    &[("optimise", "basic")],
    &[("optimise", "none")],
    &[("threads", "2")],
    &[("providers", "xnnpack")],
];

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    limit::serve_if_asked();
    let Some(shared) = places::shared() else { return println!("SKIP onnx: no models (../shared)") };
    let library = match Library::open(None) {
        Ok(library) => library,
        Err(error) => return println!("SKIP onnx: {error}"),
    };
    let lines = Lines::new();
    println!("ONNX Runtime {}, tract {}\n", library.version, Tract.version());
    let _turn = inferd_tests::turn();
    inferd_ipc::sys::flush_denormals_to_zero();
    let files = onnx_files(&shared.join("models"));
    if arguments.iter().any(|a| a == "settings") { settings(&files) } else { speeds(&lines, &files) }
}

fn blocks() -> usize {
    scaled(20, 1)
}

fn onnx_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in std::fs::read_dir(folder).expect("a folder").flatten().map(|e| e.path()) {
        if path.is_dir() {
            found.extend(onnx_files(&path));
        } else if path.extension().is_some_and(|e| e == "onnx") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn name(file: &Path) -> String {
    let text = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
    format!("{}/{}", text(file.parent().and_then(Path::file_name)), text(file.file_stem()))
}

fn is_classifier(file: &Path) -> bool {
    name(file).contains(CLASSIFIER.0)
}

/// A step in this process: what a worker does between two rings.
fn in_process(backend: &dyn Backend, file: &Path, options: &[(&str, &str)]) -> Result<impl FnMut() + use<>, String> {
    let mut spec = spec(backend.name(), &file.file_name().unwrap_or_default().to_string_lossy());
    spec.options = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    if is_classifier(file) {
        let rules = TensorRules { shape: Some(CLASSIFIER.1.to_vec()), ..TensorRules::default() };
        spec.inputs.insert("x".to_owned(), rules);
    }
    let loaded = Policy::load_by(backend, &spec, &mut Folder::of(file), &mut |_| ());
    let mut policy = loaded.map_err(|e| e.to_string())?.0;
    let filled = |t: &inferd_ipc::signature::TensorSpec| {
        let mut bytes = vec![0; t.bytes() as usize];
        fill_bytes(t.dtype, &mut bytes, 0.5);
        bytes
    };
    let inputs: Vec<Vec<u8>> = policy.signature().inputs.iter().map(filled).collect();
    Ok(move || {
        inputs.iter().enumerate().for_each(|(i, bytes)| policy.input_mut(i).copy_from_slice(bytes));
        policy.check_inputs().expect("finite");
        policy.run().expect("the policy runs");
        std::hint::black_box(policy.output(0));
    })
}

/// A step through the daemon.
fn served(daemon: &Daemon, model: &str) -> impl FnMut() + use<> {
    let options = AttachOptions::new(model).runtime_dir(daemon.runtime_dir()).queue(Queue::InOrder).spin_us(100_000);
    let mut session = Session::attach(options).unwrap_or_else(|e| panic!("attach {model}: {e}"));
    let signature = session.signature().clone();
    let floats = |bytes: u64| vec![0.5f32; bytes as usize / 4];
    let inputs: Vec<Vec<f32>> = signature.inputs.iter().map(|t| floats(t.bytes())).collect();
    let mut output = floats(signature.outputs[0].bytes());
    move || {
        let inputs: Vec<(usize, &[f32])> = inputs.iter().enumerate().map(|(i, input)| (i, input.as_slice())).collect();
        let options = CallOptions { timeout: Some(Duration::from_secs(5)), ..CallOptions::default() };
        let info = session.infer(&inputs, &mut [(0, &mut output)], options).expect("an answer");
        assert!(info.is_ok(), "{info:?}");
    }
}

/// A row: what it is called, the CPU that it is called on, and the call.
struct Row<'a> {
    name: String,
    cpu: usize,
    call: Box<dyn FnMut() + 'a>,
    /// p50 and p99 of each block, in nanoseconds.
    blocks: Vec<[f64; 2]>,
}

impl<'a> Row<'a> {
    fn new(name: &str, cpu: usize, call: impl FnMut() + 'a) -> Row<'a> {
        Row { name: name.to_owned(), cpu, call: Box::new(call), blocks: Vec::new() }
    }

    /// The median of the blocks' p50, and of their p99.
    fn figures(&self) -> [f64; 2] {
        [0, 1].map(|i| {
            let mut all: Vec<f64> = self.blocks.iter().map(|b| b[i]).collect();
            all.sort_by(f64::total_cmp);
            all[all.len() / 2]
        })
    }
}

/// Runs all rows in blocks that alternate.
fn measure(rows: &mut [Row<'_>]) {
    for block in 0..=blocks() {
        for row in &mut *rows {
            pin(row.cpu);
            let start = now_ns();
            (0..3).for_each(|_| (row.call)());
            let one_ms = (now_ns() - start) as f64 / 3e6;
            let runs = (BLOCK_MS / one_ms).clamp(BLOCK_RUNS.0, BLOCK_RUNS.1) as usize;
            let mut times: Vec<u64> = (0..runs)
                .map(|_| {
                    let start = now_ns();
                    (row.call)();
                    now_ns() - start
                })
                .collect();
            times.sort_unstable();
            // A worker that spun for this row sleeps before the next one.
            std::thread::sleep(Duration::from_millis(3));
            // The first block warms up.
            if block > 0 {
                let at = |q: f64| times[((times.len() - 1) as f64 * q) as usize] as f64;
                row.blocks.push([at(0.5), at(0.99)]);
            }
        }
    }
}

fn us(ns: f64) -> String {
    format!("{:.1}", ns / 1e3)
}

fn served_model(file: &Path, backend: &str, cpu: usize, dir: &Path) -> Model {
    let served = if is_classifier(file) {
        let folder = dir.join("classifier");
        std::fs::create_dir_all(&folder).expect("our own folder");
        std::fs::copy(file, folder.join("policy.onnx")).expect("the model is there");
        let manifest = format!("file = \"policy.onnx\"\n[inputs.x]\nshape = {:?}\n", CLASSIFIER.1);
        std::fs::write(folder.join("model.toml"), manifest).expect("our own file");
        folder
    } else {
        file.to_owned()
    };
    let model = Model::at("m", &served).config("backend", &format!("{backend:?}"));
    model.config("cpu", &cpu.to_string()).config("spin_us", "2000").config("max_run_ms", "60000")
}

fn speeds(lines: &Lines, files: &[PathBuf]) {
    let (client_cpu, worker_cpu) = limit::cpus();
    println!(
        "| model | tract in-process p50, p99 us | ort in-process | ort / tract | tract served | ort served | ort adds us (ping-pongs) |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    let mut sizes = Vec::new();
    for file in files.iter().filter(|f| lines.wants(&format!("onnx/{}", name(f)))) {
        // What a daemon may use, it has from us.
        unpin();
        let dir = tempfile::tempdir().expect("a temporary folder");
        let daemons = ["tract", "ort"].map(|b| {
            let daemon = DaemonConfig::new(Backing::Memfd).model(served_model(file, b, worker_cpu, dir.path())).start();
            let (worker, model) = (daemon.worker("m"), daemon.model("m"));
            let cold = format!(
                "{:.0} ms, of it {:.0} ms load and warm-up",
                daemon.ready_after().as_secs_f64() * 1e3,
                model.load_ms
            );
            sizes.push(format!("| {} | {b} | {cold} | {:.1} MB |", name(file), rss_bytes(worker) as f64 / 1e6));
            daemon
        });
        pin(worker_cpu);
        let backends: [&dyn Backend; 2] = [&Tract, &Ort];
        let mut rows = Vec::new();
        for backend in backends {
            match in_process(backend, file, &[]) {
                Ok(call) => rows.push(Row::new(backend.name(), worker_cpu, call)),
                Err(error) => println!("{}: {error}", name(file)),
            }
        }
        for daemon in &daemons {
            rows.push(Row::new("served", client_cpu, served(daemon, "m")));
        }
        let mut limit = Limit::start(Kind::Spin, worker_cpu);
        measure(&mut rows);
        pin(client_cpu);
        let mut bounced = Vec::new();
        limit.block(5000, &mut bounced);
        bounced.sort_unstable();
        let ping_pong = bounced[bounced.len() / 2] as f64;
        let figures: Vec<[f64; 2]> = rows.iter().map(Row::figures).collect();
        let [tract, ort, tract_served, ort_served] = figures[..] else { continue };
        let cell = |f: [f64; 2]| format!("{}, {}", us(f[0]), us(f[1]));
        for (system, f) in ["tract in-process", "ort in-process", "tract served", "ort served"].iter().zip(&figures) {
            lines.line(&json!({
                "kind": "onnx", "row": format!("onnx/{}", name(file)), "system": system, "p50_ns": f[0], "p99_ns": f[1],
                "limit": "ping-pong", "limit_p50_ns": ping_pong, "blocks": blocks(),
            }));
        }
        let adds = ort_served[0] - ort[0];
        println!(
            "| {} | {} | {} | {:.2} | {} | {} | {} ({:.1}) |",
            name(file),
            cell(tract),
            cell(ort),
            ort[0] / tract[0],
            cell(tract_served),
            cell(ort_served),
            us(adds),
            adds / ping_pong
        );
    }
    println!(
        "\n| model | backend | start to READY | worker, resident without shared memory |\n| --- | --- | --- | --- |"
    );
    sizes.iter().for_each(|line| println!("{line}"));
}

fn settings(files: &[PathBuf]) {
    println!("in-process p50 us (p99); the first column is the default\n");
    let label = |options: &[(&str, &str)]| match options {
        [] => "default".to_owned(),
        _ => options.iter().map(|(k, v)| format!("{k} = {v}")).collect::<Vec<_>>().join(", "),
    };
    let heads: Vec<String> = SETTINGS.iter().map(|s| label(s)).collect();
    println!("| model | {} |\n| --- |{}", heads.join(" | "), " --- |".repeat(heads.len()));
    let (_, cpu) = limit::cpus();
    pin(cpu);
    for file in files {
        let mut rows = Vec::new();
        let mut lacking = Vec::new();
        for (head, options) in heads.iter().zip(SETTINGS) {
            // More threads than one want more CPUs than one.
            match in_process(&Ort, file, options) {
                Ok(call) => rows.push(Row::new(head, cpu, call)),
                Err(_) => lacking.push(head.clone()),
            }
        }
        measure(&mut rows);
        let cell = |head: &String| match rows.iter().find(|r| r.name == *head) {
            Some(row) => format!("{} ({})", us(row.figures()[0]), us(row.figures()[1])),
            None => "not in this library".to_owned(),
        };
        println!("| {} | {} |", name(file), heads.iter().map(cell).collect::<Vec<_>>().join(" | "));
    }
}
