//! What it costs to keep a model's last steps: the same model twice, with and without a record.
//!
//! Blocks of the two alternate in one run, and the figure is the median over the pairs of blocks of the ratio of
//! their medians: whatever disturbs both cancels out.

use crate::rows::{BLOCK, BLOCK_POLICY, attach, call, echo};
use inferd_ipc::layout::Backing;
use inferd_tests::bench::blocks::{Until, measure};
use inferd_tests::bench::{CLIENT_CPU, Entry, Kind, Limit, Lines, Row, timed};
use inferd_tests::{Daemon, DaemonConfig, Model};
use std::path::Path;

/// The row's word, its title, the model, and round trips in a block.
type Pair<'a> = (&'a str, &'a str, &'a str, usize);

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

/// Measures every pair that was asked for.
pub fn rows(lines: &Lines, daemon: &Daemon, with_policy: bool, cpu: usize) {
    let mut pairs: Vec<Pair<'_>> = vec![
        ("recording/echo64", "echo 64 B, recorded", "echo64", BLOCK),
        ("recording/echo1k", "echo 1 KiB, recorded", "echo1k", BLOCK),
    ];
    if with_policy {
        pairs.push(("recording/go2", "Go2 policy, recorded", "go2", BLOCK_POLICY));
    }
    for (word, title, model, count) in pairs.into_iter().filter(|p| lines.wants(p.0)) {
        let mut limit = Limit::start(Kind::Spin, cpu);
        let session = |model: &str| {
            let session = attach(daemon, model, 2000);
            let signature = session.signature();
            let payload = [signature.inputs[0].bytes(), signature.outputs[0].bytes()];
            (session, payload)
        };
        let (mut on, payload) = session(model);
        let (mut off, _) = session(&format!("{model}_off"));
        let [input, mut output] = payload.map(|bytes| vec![0.1f32; bytes as usize / 4]);
        let mut output_off = output.clone();
        let mut recorded = || timed(|| call(&mut on, &input, &mut output));
        let mut unrecorded = || timed(|| call(&mut off, &input, &mut output_off));
        let mut entries = [
            Entry { cpu: CLIENT_CPU, count, call: &mut recorded },
            Entry { cpu: CLIENT_CPU, count, call: &mut unrecorded },
        ];
        let measured = measure(&mut limit, count, Until::spinning(6.0), &mut entries);
        let row = Row::spinning(word, title, payload);
        lines.row(row, &measured.figures(0));
        lines.row(row.of("not recorded"), &measured.figures(1));
        lines.figure(word, "p50 recorded / not recorded", measured.ratio(0, 1, 0.5), "");
        lines.figure(word, "p99 recorded / not recorded", measured.ratio(0, 1, 0.99), "");
    }
}
