//! `inferctl replay`: a recording through the daemon, step by step, compared with what was recorded.
//!
//! The session takes requests in order, the first one with the reset flag, so that the replay starts
//! from fresh state whoever was served before. Every step must end in `ok`. Differences are absolute,
//! per element; NaN against a number is infinite. The verdict is the exit code.

use crate::cli::ReplayArgs;
use crate::failure::{Failure, remedy};
use crate::number::element;
use crate::out::{Column, plain, print, table};
use crate::recording::{Plan, Recording, Wanted};
use inferd_client::{AttachOptions, CallOptions, Queue, Session, Signature};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// The worst element of one output over all steps.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OutputDifference {
    /// The output.
    pub output: String,
    /// Largest absolute difference; absent in JSON where it is infinite.
    #[serde(serialize_with = "finite_or_null")]
    pub difference_max: f64,
    /// The step where it is.
    pub step: usize,
    /// The element where it is, counted row-major.
    pub element: usize,
    /// What was recorded there.
    pub recorded: String,
    /// What the daemon answered there.
    pub answered: String,
    /// Steps with an element above the tolerance.
    pub steps_above: usize,
}

/// What a replay found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ReplayReport {
    /// The model.
    pub model: String,
    /// The file.
    pub file: String,
    /// Steps fed.
    pub steps: usize,
    /// Steps left out: never run when they were recorded, or on state that no client can set.
    pub left_out: usize,
    /// Steps fed and not compared: they did not end well when they were recorded.
    pub not_compared: usize,
    /// Steps with the reset flag, the first one included.
    pub resets: usize,
    /// Largest difference allowed.
    pub tolerance: f64,
    /// Whether every output stayed within it.
    pub within: bool,
    /// Per output.
    pub outputs: Vec<OutputDifference>,
    /// Arrays left out because the daemon keeps the state.
    pub skipped: Vec<String>,
    /// Steps per generation.
    pub generations: BTreeMap<u32, usize>,
}

/// Runs the command; whether everything was within the tolerance.
///
/// # Errors
/// [`Failure`].
pub fn run(args: &ReplayArgs, runtime_dir: Option<&Path>) -> Result<bool, Failure> {
    let mut options = AttachOptions::new(&args.model).queue(Queue::InOrder).auto_reattach(false);
    if let Some(dir) = runtime_dir {
        options = options.runtime_dir(dir);
    }
    let mut session = Session::attach(options)?;
    let recording = Recording::load(&args.file, session.signature(), Wanted::InputsAndOutputs)?;
    let report = replay(&mut session, &recording, args)?;
    let text = if args.json { json(&report) } else { text(&report) };
    print(&text).map_err(Failure::stdout)?;
    Ok(report.within)
}

fn replay(session: &mut Session, recording: &Recording, args: &ReplayArgs) -> Result<ReplayReport, Failure> {
    let signature = session.signature().clone();
    let mut buffers: Vec<Vec<u8>> = signature.outputs.iter().map(|t| vec![0; t.bytes() as usize]).collect();
    let mut worst: Vec<OutputDifference> = signature.outputs.iter().map(|t| OutputDifference::none(&t.name)).collect();
    let (mut generations, mut resets) = (BTreeMap::new(), 0);
    let timeout = Some(Duration::from_millis(args.timeout_ms));
    let (mut fed, mut not_compared) = (0, 0);
    for step in (0..recording.steps).filter(|step| recording.plan[*step] != Plan::Leave) {
        let reset = fed == 0 || recording.resets[step];
        fed += 1;
        let options = CallOptions { timeout, reset, observation_id: step as u64, ..CallOptions::default() };
        let inputs: Vec<(usize, &[u8])> =
            recording.inputs.iter().map(|a| Recording::at(a, recording.steps, step)).enumerate().collect();
        let mut outputs: Vec<(usize, &mut [u8])> = buffers.iter_mut().map(Vec::as_mut_slice).enumerate().collect();
        let info = session.infer(&inputs, &mut outputs, options)?;
        if !info.is_ok() {
            let outcome = info.status.name();
            return Err(Failure::NotOk { request: format!("step {step}"), outcome, remedy: remedy(outcome) });
        }
        *generations.entry(info.generation).or_insert(0) += 1;
        resets += usize::from(reset);
        match recording.plan[step] {
            Plan::Compare => compare_step(&signature, recording, step, &buffers, args.tol, &mut worst),
            Plan::Feed | Plan::Leave => not_compared += 1,
        }
    }
    Ok(ReplayReport {
        model: args.model.clone(),
        file: args.file.display().to_string(),
        steps: fed,
        left_out: recording.steps - fed,
        not_compared,
        resets,
        tolerance: args.tol,
        within: worst.iter().all(|w| w.difference_max <= args.tol),
        outputs: worst,
        skipped: recording.skipped.clone(),
        generations,
    })
}

fn compare_step(
    signature: &Signature,
    recording: &Recording,
    step: usize,
    answered: &[Vec<u8>],
    tolerance: f64,
    worst: &mut [OutputDifference],
) {
    for (o, tensor) in signature.outputs.iter().enumerate() {
        let recorded = Recording::at(&recording.outputs[o], recording.steps, step);
        let mut above = false;
        for k in 0..tensor.elements_count() as usize {
            let pair = element(tensor.dtype, recorded, k).zip(element(tensor.dtype, &answered[o], k));
            let Some((want, got)) = pair else { break };
            let difference = want.distance(got);
            above |= difference > tolerance;
            if difference > worst[o].difference_max || worst[o].recorded.is_empty() {
                let (recorded, answered) = (want.to_string(), got.to_string());
                let w = &mut worst[o];
                (w.difference_max, w.step, w.element, w.recorded, w.answered) =
                    (difference, step, k, recorded, answered);
            }
        }
        worst[o].steps_above += usize::from(above);
    }
}

impl OutputDifference {
    fn none(output: &str) -> OutputDifference {
        OutputDifference {
            output: output.to_owned(),
            difference_max: 0.0,
            step: 0,
            element: 0,
            recorded: String::new(),
            answered: String::new(),
            steps_above: 0,
        }
    }
}

fn json(report: &ReplayReport) -> String {
    serde_json::to_string_pretty(report).unwrap_or_default() + "\n"
}

fn text(report: &ReplayReport) -> String {
    let generations: Vec<String> = report.generations.keys().map(u32::to_string).collect();
    let mut out = format!(
        "{}: {} steps of {} ({}), generation {}\n",
        report.model,
        report.steps,
        plain(&report.file),
        if report.resets == 1 { "1 reset".to_owned() } else { format!("{} resets", report.resets) },
        generations.join(", "),
    );
    for (n, why) in [
        (report.left_out, "left out: they were never run, or on state that no client can set"),
        (report.not_compared, "not compared: they did not end well when they were recorded"),
    ] {
        if n > 0 {
            out += &format!("{n} steps {why}\n");
        }
    }
    if !report.skipped.is_empty() {
        out +=
            &format!("state is kept by the daemon; not fed and not compared: {}\n", plain(&report.skipped.join(", ")));
    }
    let columns = [
        Column::Left("output"),
        Column::Right("largest difference"),
        Column::Right("at step"),
        Column::Right("element"),
        Column::Right("recorded"),
        Column::Right("answered"),
        Column::Right("steps above"),
    ];
    let rows = report.outputs.iter().map(|o| {
        vec![
            o.output.clone(),
            format!("{:.3e}", o.difference_max),
            o.step.to_string(),
            o.element.to_string(),
            o.recorded.clone(),
            o.answered.clone(),
            o.steps_above.to_string(),
        ]
    });
    out += &format!("\n{}\n", table(&columns, rows));
    out += &match report.within {
        true => format!("within the tolerance of {:e}\n", report.tolerance),
        false => format!("ABOVE the tolerance of {:e}\n", report.tolerance),
    };
    out
}

fn finite_or_null<S: serde::Serializer>(v: &f64, s: S) -> Result<S::Ok, S::Error> {
    if v.is_finite() { s.serialize_f64(*v) } else { s.serialize_none() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::array::Array;
    use inferd_client::{DType, TensorSpec};

    fn floats(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    fn compared(recorded: &[f32], answered: &[&[f32]], tolerance: f64) -> OutputDifference {
        let steps = answered.len();
        let shape = [(recorded.len() / steps) as u64];
        let signature = Signature { outputs: vec![TensorSpec::new("act", DType::F32, &shape)], ..Signature::default() };
        let array = Array { dtype: DType::F32, shape: vec![steps as u64, shape[0]], bytes: floats(recorded) };
        let recording = Recording {
            steps,
            inputs: vec![],
            outputs: vec![array],
            resets: vec![false; steps],
            skipped: vec![],
            plan: vec![Plan::Compare; steps],
        };
        let mut worst = vec![OutputDifference::none("act")];
        for (step, values) in answered.iter().enumerate() {
            compare_step(&signature, &recording, step, &[floats(values)], tolerance, &mut worst);
        }
        worst.remove(0)
    }

    #[test]
    fn the_largest_difference_names_its_step_and_element() {
        let worst = compared(&[0.0, 1.0, 2.0, 3.0], &[&[0.0, 1.5], &[2.25, 3.0]], 0.3);
        assert_eq!((worst.difference_max, worst.step, worst.element, worst.steps_above), (0.5, 0, 1, 1));
        assert_eq!((worst.recorded.as_str(), worst.answered.as_str()), ("1", "1.5"));
    }

    #[test]
    fn a_nan_that_was_not_recorded_is_infinitely_wrong() {
        let worst = compared(&[0.0, f32::NAN], &[&[f32::NAN], &[f32::NAN]], 1e9);
        assert_eq!((worst.difference_max, worst.step, worst.steps_above), (f64::INFINITY, 0, 1));
        assert_eq!(compared(&[f32::NAN], &[&[f32::NAN]], 0.0).difference_max, 0.0);
    }

    fn report() -> ReplayReport {
        let mut action = OutputDifference::none("actions");
        (action.difference_max, action.step, action.element) = (2.4e-7, 311, 4);
        (action.recorded, action.answered) = ("-0.71293".into(), "-0.71293026".into());
        ReplayReport {
            model: "g1_lstm".into(),
            file: "g1-lstm.closedloop.npz".into(),
            steps: 500,
            left_out: 0,
            not_compared: 0,
            resets: 1,
            tolerance: 1e-4,
            within: true,
            outputs: vec![action],
            skipped: ["in.c_in", "in.h_in", "out.c_out", "out.h_out"].map(String::from).to_vec(),
            generations: BTreeMap::from([(1, 500)]),
        }
    }

    #[test]
    fn the_report_reads_as_agreed() {
        let want = "\
g1_lstm: 500 steps of g1-lstm.closedloop.npz (1 reset), generation 1
state is kept by the daemon; not fed and not compared: in.c_in, in.h_in, out.c_out, out.h_out

output    largest difference   at step   element   recorded      answered   steps above
───────────────────────────────────────────────────────────────────────────────────────
actions             2.400e-7       311         4   -0.71293   -0.71293026             0

within the tolerance of 1e-4
";
        assert_eq!(text(&report()), want);
    }

    #[test]
    fn an_infinite_difference_is_null_in_json() {
        let mut r = report();
        r.outputs[0].difference_max = f64::INFINITY;
        assert!(json(&r).contains("\"difference_max\": null"));
    }
}
