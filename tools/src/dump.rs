//! `inferctl dump`: the last recorded steps of a model as a file that `replay` takes and that serves as a golden pair.
//!
//! The daemon hands over a view of its record region, and everything is read from there: no worker is asked, so that a
//! dump works after a crash and in quarantine. Beside `in.` and `out.` each step has `session`, `request`,
//! `observation_id`, `generation`, `status` (0: its run had not ended), `t_start_ns` and `run_ns`; a recurrent model's also
//! `state.<input>`, the state that the step began with, and `reset`, where that state was fresh. Steps of a recurrent
//! model stand session by session, since state is a session's; others in the order in which they ran.

use crate::cli::DumpArgs;
use crate::failure::Failure;
use crate::npz::NpzWriter;
use crate::out::{bytes, grouped, plain, print};
use inferd_client::control::DumpAnswer;
use inferd_client::{AdminClient, DType, RecordLayout, RecordedStep, TensorSpec};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Bit of [`RecordedStep::flags`]: the step ran on fresh state (`INFERD_REPLY_STATE_RESET`).
const STATE_RESET: u32 = inferd_client::REPLY_STATE_RESET;
/// What a step is called whose run had not ended.
const UNENDED: &str = "not ended (it runs, or its worker died of it)";

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DumpReport {
    /// The model.
    pub model: String,
    /// The file.
    pub file: String,
    /// Steps in it.
    pub steps: usize,
    /// Sessions that they belong to.
    pub sessions: BTreeSet<u64>,
    /// Generations that ran them.
    pub generations: BTreeSet<u32>,
    /// Steps per status, by name.
    pub statuses: BTreeMap<String, usize>,
    /// Bytes of the file.
    pub bytes: u64,
}

/// Runs the command.
///
/// # Errors
/// [`Failure`].
pub fn run(args: &DumpArgs, runtime_dir: Option<&Path>) -> Result<(), Failure> {
    let dump = AdminClient::connect(runtime_dir)?.dump(&args.model, args.session)?;
    let wanted = |step: &RecordedStep| args.session.is_none_or(|session| step.begun.session == session);
    let mut steps: Vec<RecordedStep> = dump.steps().filter(wanted).collect();
    if steps.is_empty() {
        return Err(nothing(&dump.answer));
    }
    in_order(&mut steps, &dump.answer.layout);
    let bytes = write(&args.file, &dump.answer.layout, &steps)?;
    let report = report(args, &steps, bytes);
    let text = if args.json { serde_json::to_string_pretty(&report).unwrap_or_default() + "\n" } else { text(&report) };
    print(&text).map_err(Failure::stdout)
}

fn nothing(answer: &DumpAnswer) -> Failure {
    let of = answer.session.map_or(String::new(), |session| format!(" of session {session}"));
    let known = match answer.session {
        Some(_) => "only the last steps of all sessions together are kept (`record_steps` in the configuration)",
        None => "no step has run since recording began",
    };
    Failure::Unknown { what: format!("recorded steps{of} of model {}", answer.model), known: known.to_owned() }
}

fn in_order(steps: &mut [RecordedStep], layout: &RecordLayout) {
    if layout.states.is_empty() {
        return steps.sort_by_key(|s| s.number);
    }
    steps.sort_by_key(|s| (s.begun.session, s.number));
}

/// Whether the state that a step began with is a fresh one.
fn is_fresh(step: &RecordedStep, layout: &RecordLayout) -> bool {
    let zero = || (0..layout.states.len()).all(|k| step.state(k).iter().all(|b| *b == 0));
    step.flags & STATE_RESET != 0 || step.begun.request == 0 || zero()
}

fn is_ok(step: &RecordedStep) -> bool {
    step.status == Some(inferd_client::Status::Ok)
}

fn write(path: &Path, layout: &RecordLayout, steps: &[RecordedStep]) -> Result<u64, Failure> {
    let mut npz = NpzWriter::create(path)?;
    let n = steps.len() as u64;
    let mut tensors = |prefix: &str, tensors: &[TensorSpec], of: &dyn Fn(&RecordedStep, usize) -> Vec<u8>| {
        tensors.iter().enumerate().try_for_each(|(i, tensor)| {
            let shape: Vec<u64> = [&[n], tensor.shape.as_slice()].concat();
            let bytes: Vec<u8> = steps.iter().flat_map(|step| of(step, i)).collect();
            npz.array(&format!("{prefix}.{}", tensor.name), tensor.dtype, &shape, &bytes)
        })
    };
    tensors("in", &layout.inputs, &|step, i| step.input(i).to_vec())?;
    // What stands at an output's place means nothing unless the step ended well.
    tensors("out", &layout.outputs, &|step, i| {
        if is_ok(step) { step.output(i).to_vec() } else { vec![0; step.output(i).len()] }
    })?;
    tensors("state", &layout.states, &|step, i| step.state(i).to_vec())?;
    if !layout.states.is_empty() {
        let fresh: Vec<u8> = steps.iter().map(|step| u8::from(is_fresh(step, layout))).collect();
        npz.array("reset", DType::Bool, &[n], &fresh)?;
    }
    let mut numbers = |name: &str, of: &dyn Fn(&RecordedStep) -> u64| {
        let bytes: Vec<u8> = steps.iter().flat_map(|step| of(step).to_le_bytes()).collect();
        npz.array(name, DType::U64, &[n], &bytes)
    };
    numbers("session", &|s| s.begun.session)?;
    numbers("request", &|s| s.begun.request)?;
    numbers("observation_id", &|s| s.begun.observation_id)?;
    numbers("t_start_ns", &|s| s.begun.t_start_ns)?;
    numbers("run_ns", &|s| s.run_ns)?;
    let mut small = |name: &str, of: &dyn Fn(&RecordedStep) -> u32| {
        let bytes: Vec<u8> = steps.iter().flat_map(|step| of(step).to_le_bytes()).collect();
        npz.array(name, DType::U32, &[n], &bytes)
    };
    small("generation", &|s| s.begun.generation)?;
    small("status", &|s| s.status.map_or(0, |status| status as u32))?;
    npz.finish()
}

fn report(args: &DumpArgs, steps: &[RecordedStep], bytes: u64) -> DumpReport {
    let mut statuses = BTreeMap::new();
    for step in steps {
        *statuses.entry(step.status.map_or("unended", inferd_client::Status::name).to_owned()).or_insert(0) += 1;
    }
    DumpReport {
        model: args.model.clone(),
        file: args.file.display().to_string(),
        steps: steps.len(),
        sessions: steps.iter().map(|s| s.begun.session).collect(),
        generations: steps.iter().map(|s| s.begun.generation).collect(),
        statuses,
        bytes,
    }
}

fn text(r: &DumpReport) -> String {
    let plural = |n: usize, what: &str| format!("{} {what}{}", grouped(n as u64), if n == 1 { "" } else { "s" });
    let generations: Vec<String> = r.generations.iter().map(u32::to_string).collect();
    let mut out = format!(
        "{}: {} of {}, generation {}, in {} ({})\n",
        plain(&r.model),
        plural(r.steps, "step"),
        plural(r.sessions.len(), "session"),
        generations.join(", "),
        plain(&r.file),
        bytes(r.bytes),
    );
    for (status, n) in r.statuses.iter().filter(|(status, _)| *status != "ok") {
        out += &format!("{}: {}\n", if status == "unended" { UNENDED } else { status }, plural(*n, "step"));
    }
    out
}
