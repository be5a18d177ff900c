//! Times a policy in this process: `time_policy MODEL.onnx [RUNS]`.
//!
//! Prints the percentiles of a step as the executor makes it (inputs filled and checked, run, guard),
//! beside those of the run alone: what a served step is measured against.

use inferd_worker::Policy;
use inferd_worker::files::Folder;
use inferd_worker::testing::spec::spec;
use std::path::Path;
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: time_policy MODEL.onnx [RUNS]")?;
    let runs: usize = arguments.next().map_or(Ok(20_000), |a| a.parse())?;
    let spec = spec("tract", &path);
    let (mut policy, loaded) = Policy::load(&spec, &mut Folder::of(Path::new(&path)), &mut |p| println!("{p}"))?;
    println!("{}: {:?}", loaded.backend, loaded.signature);
    println!("load {} us, warm-up {} us in {} runs", loaded.load_us, loaded.warm_up_us, loaded.warm_up_runs);
    let (mut step_ns, mut run_ns) = (Vec::with_capacity(runs), Vec::with_capacity(runs));
    let sources: Vec<Vec<u8>> = loaded.signature.inputs.iter().map(|t| vec![0; t.bytes() as usize]).collect();
    for _ in 0..runs {
        let start = Instant::now();
        for (i, source) in sources.iter().enumerate() {
            policy.input_mut(i).copy_from_slice(source);
        }
        for k in 0..policy.state_offsets().len() {
            policy.state_in_mut(k).fill(0);
        }
        policy.check_inputs().map_err(|r| r.to_string())?;
        let before = Instant::now();
        policy.run()?;
        let end = Instant::now();
        step_ns.push((end - start).as_nanos());
        run_ns.push((end - before).as_nanos());
    }
    for (name, ns) in [("step", &mut step_ns), ("run", &mut run_ns)] {
        ns.sort_unstable();
        let at = |q: f64| ns[((ns.len() - 1) as f64 * q) as usize] as f64 / 1e3;
        println!(
            "{name:5} p50 {:.2} us  p99 {:.2} us  p99.9 {:.2} us  max {:.2} us",
            at(0.5),
            at(0.99),
            at(0.999),
            at(1.0)
        );
    }
    Ok(())
}
