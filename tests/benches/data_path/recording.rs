//! What it costs to keep a model's last steps: the same model twice, with and without a record.
//!
//! Blocks of the two alternate in one run, and the figure is the median over the pairs of blocks of the ratio of
//! their medians: whatever disturbs both cancels out.

use crate::limit::{Kind, Limit};
use crate::rows::{BLOCK, Blocks, CLIENT_CPU, Report, attach, call, echo, measure, quantile};
use inferd_ipc::layout::Backing;
use inferd_tests::{Daemon, DaemonConfig, Model};
use std::path::Path;

/// Name of the row, of the model, and round trips in a block.
type Pair<'a> = (&'a str, &'a str, usize);

/// Both models of every pair, in a daemon of their own; to be started before anything is pinned.
pub fn start(policy: Option<&Path>, cpu: usize) -> Daemon {
    let mut config = DaemonConfig::new(Backing::Memfd);
    for (suffix, steps) in [("", None), ("_off", Some("0"))] {
        let mut models = vec![
            echo(&format!("echo64{suffix}"), 64, 64, 2000, cpu),
            echo(&format!("echo1k{suffix}"), 1024, 256, 2000, cpu),
        ];
        if let Some(policy) = policy {
            let go2 = Model::at(&format!("go2{suffix}"), policy);
            models.push(go2.config("cpu", &cpu.to_string()).config("spin_us", "2000"));
        }
        for model in models {
            config = config.model(match steps {
                Some(steps) => model.config("record_steps", steps),
                None => model,
            });
        }
    }
    config.start()
}

/// Measures every pair.
pub fn rows(report: &mut Report, daemon: &Daemon, with_policy: bool, cpu: usize) {
    let mut limit = Limit::start(Kind::Spin, cpu);
    let mut pairs: Vec<Pair<'_>> = vec![("echo 64 B", "echo64", BLOCK), ("echo 1 KiB", "echo1k", BLOCK)];
    if with_policy {
        pairs.push(("go2", "go2", BLOCK / 5));
    }
    for (name, model, block) in pairs {
        let session = |model: &str| {
            let session = attach(daemon, model, 2000);
            let floats = |bytes: u64| vec![0.1f32; bytes as usize / 4];
            let signature = session.signature();
            let buffers = (floats(signature.inputs[0].bytes()), floats(signature.outputs[0].bytes()));
            (session, buffers)
        };
        let (mut on, (input, mut output)) = session(model);
        let (mut off, (_, mut output_off)) = session(&format!("{model}_off"));
        let mut recorded = || call(&mut on, &input, &mut output);
        let mut unrecorded = || call(&mut off, &input, &mut output_off);
        let measured = measure(&mut limit, block, [(CLIENT_CPU, &mut recorded), (CLIENT_CPU, &mut unrecorded)]);
        for (blocks, what) in measured.iter().zip(["recorded", "not recorded"]) {
            report.row(&format!("{name}, {what}"), &blocks.figures(), "");
        }
        let [on, off] = &measured;
        report.figure(&format!("{name}: p50 recorded / not recorded"), ratio(on, off, 0.5), "");
        report.figure(&format!("{name}: p99 recorded / not recorded"), ratio(on, off, 0.99), "");
    }
}

/// Median over the pairs of blocks.
fn ratio(on: &Blocks, off: &Blocks, q: f64) -> f64 {
    let mut ratios: Vec<f64> =
        on.row.iter().zip(&off.row).map(|(on, off)| quantile(on, q) / quantile(off, q)).collect();
    ratios.sort_by(f64::total_cmp);
    ratios.get(ratios.len() / 2).copied().unwrap_or(f64::NAN)
}
