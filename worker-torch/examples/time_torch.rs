//! Times a TorchScript module in this process: what a served step is measured against.
//!
//! `time_torch FILE.pt NAME=DTYPE:DIM,DIM ... [--device cuda:N] [--precision bf16] [--option KEY=VALUE] [--outputs A,B]`
//! prints load, warm-up, the percentiles of a step as the executor makes it, and a device's stages. With `--blocks` it
//! reads counts from standard input, one a line, and answers each with the nanoseconds of that many steps in one line:
//! so a bench interleaves it with other rows. `--cpu N` pins it.

use inferd_ipc::signature::DType;
use inferd_ipc::worker_records::{Device, ModelSpec, Precision, TensorRules};
use inferd_worker::Policy;
use inferd_worker::files::Folder;
use inferd_worker::testing::spec::spec;
use std::error::Error;
use std::io::{BufRead, Write};
use std::path::Path;
use std::time::Instant;

const RUNS: usize = 20_000;

struct Arguments {
    spec: ModelSpec,
    file: String,
    blocks: bool,
}

fn arguments() -> Result<Arguments, Box<dyn Error>> {
    let mut all = std::env::args().skip(1);
    let file = all.next().ok_or("usage: time_torch FILE.pt NAME=DTYPE:DIM,DIM ...; see the source for more")?;
    let mut spec = spec("torch", &file);
    let mut blocks = false;
    while let Some(argument) = all.next() {
        let mut value = || all.next().ok_or(format!("{argument} wants a value"));
        match argument.as_str() {
            "--blocks" => blocks = true,
            "--device" => spec.device = Device::from_name(&value()?).ok_or("cpu or cuda:N")?,
            "--precision" => spec.precision = Precision::from_name(&value()?).ok_or("fp32, fp16 or bf16")?,
            "--outputs" => spec.output_order = value()?.split(',').map(str::to_owned).collect(),
            "--option" => {
                let value = value()?;
                let (key, value) = value.split_once('=').ok_or("KEY=VALUE")?;
                spec.options.insert(key.to_owned(), value.to_owned());
            }
            "--cpu" => pin(value()?.parse()?),
            _ => {
                let (name, tensor) = argument.split_once('=').ok_or("NAME=DTYPE:DIM,DIM")?;
                let (dtype, dims) = tensor.split_once(':').ok_or("DTYPE:DIM,DIM")?;
                let shape = dims.split(',').map(str::parse).collect::<Result<Vec<u64>, _>>()?;
                let dtype = Some(DType::from_name(dtype).ok_or("no such dtype")?);
                spec.inputs
                    .insert(name.to_owned(), TensorRules { dtype, shape: Some(shape), ..TensorRules::default() });
                spec.input_order.push(name.to_owned());
            }
        }
    }
    Ok(Arguments { spec, file, blocks })
}

fn pin(cpu: usize) {
    // SAFETY: a set of this thread's own; the call reads it and nothing else.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set);
    }
}

/// One step of one session; inputs are tenths.
fn step(policy: &mut Policy, sources: &[Vec<u8>], state: &mut [Vec<u8>]) -> Result<(), Box<dyn Error>> {
    for (i, source) in sources.iter().enumerate() {
        policy.input_mut(i).copy_from_slice(source);
    }
    for (k, state) in state.iter().enumerate() {
        policy.state_in_mut(k).copy_from_slice(state);
    }
    policy.check_inputs().map_err(|r| r.to_string())?;
    policy.run()?;
    for (k, state) in state.iter_mut().enumerate() {
        state.copy_from_slice(policy.state_out(k));
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let Arguments { spec, file, blocks } = arguments()?;
    inferd_ipc::sys::flush_denormals_to_zero();
    let own: [&dyn inferd_worker::backend::Backend; 1] = [&inferd_worker_torch::Torch];
    let mut progress = |text: &str| eprintln!("{text}");
    let (mut policy, loaded) = Policy::load_from(&spec, &mut Folder::of(Path::new(&file)), &own, &mut progress)?;
    eprintln!("{}: {:?}", loaded.backend, loaded.signature);
    eprintln!("load {} us, warm-up {} us in {} runs", loaded.load_us, loaded.warm_up_us, loaded.warm_up_runs);
    let filled = |t: &inferd_ipc::signature::TensorSpec| match t.dtype {
        DType::F32 => 0.1f32.to_ne_bytes().repeat(t.elements_count() as usize),
        _ => vec![0; t.bytes() as usize],
    };
    let sources: Vec<Vec<u8>> = loaded.signature.inputs.iter().map(filled).collect();
    let mut state: Vec<Vec<u8>> = Vec::new();
    for k in 0..policy.state_offsets().len() {
        policy.reset_state(k);
        state.push(policy.state_in_mut(k).to_vec());
    }
    let mut time = |count: usize, stages: &mut Vec<[u64; 3]>| -> Result<Vec<u64>, Box<dyn Error>> {
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            let start = Instant::now();
            step(&mut policy, &sources, &mut state)?;
            times.push(u64::try_from(start.elapsed().as_nanos())?);
            stages.extend(policy.device_times().map(|t| [t.to_device_ns, t.on_device_ns, t.from_device_ns]));
        }
        Ok(times)
    };
    let mut stages = Vec::new();
    if blocks {
        for line in std::io::stdin().lock().lines() {
            let count = line?.trim().parse()?;
            let times = time(count, &mut stages)?.iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
            writeln!(std::io::stdout(), "{times}")?;
        }
        return Ok(());
    }
    print("step", time(RUNS, &mut stages)?);
    for (i, name) in ["to device", "on device", "from device"].into_iter().enumerate() {
        if !stages.is_empty() {
            print(name, stages.iter().map(|s| s[i]).collect());
        }
    }
    Ok(())
}

fn print(name: &str, mut ns: Vec<u64>) {
    ns.sort_unstable();
    let at = |q: f64| ns[((ns.len() - 1) as f64 * q) as usize] as f64 / 1e3;
    println!(
        "{name:12} p50 {:.2} us  p99 {:.2} us  p99.9 {:.2} us  max {:.2} us",
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0)
    );
}
