//! A TorchScript step through `tch` beside the same step through inferd's worker, in blocks that alternate.
//!
//! `inferd-peer-tch TIME_TORCH FILE.pt INPUT=f32:DIM,DIM [arguments of time_torch]`: the module has one f32 input and
//! one output and keeps its state in its own buffers; `time_torch` is the worker's example of that name, which runs as a child
//! on the same CPU. Both sides compute on one thread, copy the input in and the output out, and count nothing else. The
//! worker's side also sets and reads the hidden state of a session, which `tch` cannot reach.

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Instant;
use tch::{CModule, IValue, Kind, Tensor};

const BLOCKS: usize = 60;
const STEPS: usize = 300;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [time_torch, file, input, ..] = &arguments[..] else {
        return Err("usage: inferd-peer-tch TIME_TORCH FILE.pt INPUT=f32:DIM,DIM [arguments of time_torch]".into());
    };
    let dims = input.split_once("=f32:").ok_or("INPUT=f32:DIM,DIM")?.1;
    let shape = dims.split(',').map(str::parse).collect::<Result<Vec<i64>, _>>()?;
    let mut worker = Command::new(time_torch)
        .args(&arguments[1..])
        .arg("--blocks")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut ask = worker.stdin.take().ok_or("no pipe")?;
    let mut answers = BufReader::new(worker.stdout.take().ok_or("no pipe")?).lines();

    tch::set_num_threads(1);
    tch::set_num_interop_threads(1);
    let _guard = tch::no_grad_guard();
    let mut module = CModule::load(file)?;
    module.set_eval();
    let values = vec![0.1f32; shape.iter().product::<i64>() as usize];
    let buffer = Tensor::zeros(&shape[..], (Kind::Float, tch::Device::Cpu));
    let mut output = vec![0f32; 1 << 16];
    let mut step = || -> Result<(), tch::TchError> {
        // What a worker on tch would do: copy into a tensor that stays, run, copy out.
        buffer.shallow_clone().f_copy_(&Tensor::from_slice(&values).view(&shape[..]))?;
        let IValue::Tensor(result) = module.forward_is(&[IValue::Tensor(buffer.shallow_clone())])? else {
            return Err(tch::TchError::Torch("the output is no tensor".into()));
        };
        let count = result.numel();
        result.f_copy_data(&mut output[..count], count)
    };
    for _ in 0..2_000 {
        step()?;
    }
    let (mut through_tch, mut through_worker) = (Vec::new(), Vec::new());
    for _ in 0..BLOCKS {
        for _ in 0..STEPS {
            let start = Instant::now();
            step()?;
            through_tch.push(start.elapsed().as_nanos() as u64);
        }
        writeln!(ask, "{STEPS}")?;
        let line = answers.next().ok_or("time_torch has ended; run it by hand to see why")??;
        through_worker.extend(line.split(' ').filter_map(|ns| ns.parse::<u64>().ok()));
    }
    drop(ask);
    worker.wait()?;
    let [tch, inferd] = [&mut through_tch, &mut through_worker].map(|ns| {
        ns.sort_unstable();
        [0.5, 0.99, 0.999].map(|q| ns[((ns.len() - 1) as f64 * q) as usize] as f64 / 1e3)
    });
    println!("{BLOCKS} blocks of {STEPS} steps each, alternating (us)   p50      p99    p99.9");
    println!("through tch 0.24                              {:8.2} {:8.2} {:8.2}", tch[0], tch[1], tch[2]);
    println!("through inferd's worker, state included       {:8.2} {:8.2} {:8.2}", inferd[0], inferd[1], inferd[2]);
    println!("worker / tch                                  {:8.2} {:8.2} {:8.2}", inferd[0] / tch[0], inferd[1] / tch[1], inferd[2] / tch[2]);
    Ok(())
}
