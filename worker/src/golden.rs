//! Golden pairs: recorded inputs and outputs that a generation must reproduce before it goes live.
//!
//! A recording is an npz file with `in.<input>` and `out.<output>`, each with a leading step axis, and
//! optionally `reset` (bool per step); other arrays are ignored. State inputs are left to the model: it
//! starts from its reset value (zeros, save for hidden state), and its state is fed back from step to step.
//! What `inferctl dump` saved also has `state.<input>`, the state that each step began with, which is used then,
//! and `status`: steps that did not end in `ok` are left out. Values are compared after everything that the
//! manifest asks for, as a client would see them; a recorded state output too.

use crate::files::FileSource;
use crate::policy::Policy;
use crate::{Fault, ModelError};
use half::{bf16, f16};
use inferd_ipc::layout::Status;
use inferd_ipc::limits::{GOLDEN_PAIRS_MAX, TENSOR_BYTES_MAX};
use inferd_ipc::npy;
use inferd_ipc::signature::{DType, TensorSpec};
use inferd_ipc::worker_records::{GoldenPair, ModelSpec};
use npyz::{NpyFile, Order, TypeChar};
use std::collections::BTreeMap;
use std::io::{Cursor, Read};

/// One array of a recording.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// Element type.
    pub dtype: DType,
    /// Dimensions; the first is the step.
    pub shape: Vec<u64>,
    /// All elements, row-major, in this machine's byte order.
    pub bytes: Vec<u8>,
}

impl Array {
    /// The bytes of one step.
    #[must_use]
    pub fn step(&self, step: usize) -> &[u8] {
        let bytes = self.bytes.len() / (self.shape[0] as usize).max(1);
        &self.bytes[step * bytes..(step + 1) * bytes]
    }
}

/// A recording, as far as it concerns a model.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Recording {
    /// Number of steps.
    pub steps: usize,
    /// `in.<name>`, by name.
    pub inputs: BTreeMap<String, Array>,
    /// `out.<name>`, by name.
    pub outputs: BTreeMap<String, Array>,
    /// Steps before which the state is reset; empty for none.
    pub reset: Vec<bool>,
    /// `state.<name>`, by name: the state that each step began with.
    pub states: BTreeMap<String, Array>,
    /// Whether a step ended in `ok`; empty where the recording does not say.
    pub ok: Vec<bool>,
}

impl Recording {
    /// Reads an npz file; `name` is for messages.
    ///
    /// # Errors
    /// [`Fault::Golden`] names the array that cannot be used.
    pub fn read(name: &str, bytes: Vec<u8>) -> Result<Recording, ModelError> {
        let fault = |what: String| bad(name, what, "write it with numpy.savez, arrays C-ordered, steps first");
        let mut archive = zip::ZipArchive::new(Cursor::new(bytes)).map_err(|e| fault(e.to_string()))?;
        let names: Vec<String> =
            archive.file_names().filter_map(|n| Some(n.ok()?.strip_suffix(".npy")?.to_owned())).collect();
        let mut recording = Recording::default();
        let mut steps = None;
        for array_name in names {
            let (input, output) = (array_name.strip_prefix("in."), array_name.strip_prefix("out."));
            let state = array_name.strip_prefix("state.");
            let tensor = input.or(output).or(state);
            if tensor.is_none() && !["reset", "status"].contains(&array_name.as_str()) {
                continue;
            }
            let entry =
                archive.by_name(&format!("{array_name}.npy")).map_err(|e| fault(format!("{array_name}: {e}")))?;
            let file = npy::checked(entry).and_then(NpyFile::new).map_err(|e| fault(format!("{array_name}: {e}")))?;
            let read = read_array(file);
            // Only a dump's: other recordings may mean something else by the name.
            let is_dumps = |a: &Array| a.dtype == DType::U32 && a.shape.len() == 1;
            if array_name == "status" && !read.as_ref().is_ok_and(is_dumps) {
                continue;
            }
            let array = read.map_err(|what| fault(format!("{array_name}: {what}")))?;
            let Some(count) = array.shape.first().copied() else {
                return Err(fault(format!("{array_name} has no step axis")));
            };
            if *steps.get_or_insert(count) != count {
                return Err(fault(format!("{array_name} has {count} steps, another array has {steps:?}")));
            }
            if let Some(input) = input {
                recording.inputs.insert(input.to_owned(), array);
            } else if let Some(output) = output {
                recording.outputs.insert(output.to_owned(), array);
            } else if let Some(state) = state {
                recording.states.insert(state.to_owned(), array);
            } else if array_name == "status" {
                let ok = |step| element(array.dtype, array.step(step), 0) == f64::from(Status::Ok as u32);
                recording.ok = (0..count as usize).map(ok).collect();
            } else {
                recording.reset = array.bytes.iter().map(|b| *b != 0).collect();
            }
        }
        recording.steps = steps.unwrap_or(0) as usize;
        if recording.steps == 0 || recording.outputs.is_empty() {
            return Err(fault("has no steps, or no out.<output> array".into()));
        }
        if !recording.reset.is_empty() && recording.reset.len() != recording.steps {
            return Err(fault("reset is not one bool per step".into()));
        }
        if !recording.ok.is_empty() && !recording.ok.contains(&true) {
            return Err(fault("has no step that ended in ok".into()));
        }
        Ok(recording)
    }
}

fn read_array<R: Read>(file: NpyFile<R>) -> Result<Array, String> {
    let npyz::DType::Plain(kind) = file.dtype() else { return Err("is a structured array".into()) };
    let dtype = match (kind.type_char(), kind.size_field()) {
        (TypeChar::Float, 4) => DType::F32,
        (TypeChar::Float, 8) => DType::F64,
        (TypeChar::Float, 2) => DType::F16,
        (TypeChar::Int, 1) => DType::I8,
        (TypeChar::Int, 2) => DType::I16,
        (TypeChar::Int, 4) => DType::I32,
        (TypeChar::Int, 8) => DType::I64,
        (TypeChar::Uint, 1) => DType::U8,
        (TypeChar::Uint, 2) => DType::U16,
        (TypeChar::Uint, 4) => DType::U32,
        (TypeChar::Uint, 8) => DType::U64,
        (TypeChar::Bool, 1) => DType::Bool,
        _ => return Err(format!("is of type {kind}, which no tensor has")),
    };
    if file.order() != Order::C {
        return Err("is in Fortran order".into());
    }
    let shape = file.shape().to_vec();
    let bytes = TensorSpec::new("", dtype, &shape).bytes();
    if bytes > TENSOR_BYTES_MAX {
        return Err(format!("has {bytes} bytes, over the limit of {TENSOR_BYTES_MAX}"));
    }
    macro_rules! read {
        ($t:ty) => {
            file.into_vec::<$t>().map(|v| v.into_iter().flat_map(<$t>::to_ne_bytes).collect())
        };
    }
    let bytes: Result<Vec<u8>, std::io::Error> = match dtype {
        DType::F32 => read!(f32),
        DType::F64 => read!(f64),
        DType::F16 => read!(f16),
        DType::I8 => read!(i8),
        DType::I16 => read!(i16),
        DType::I32 => read!(i32),
        DType::I64 => read!(i64),
        DType::U8 => read!(u8),
        DType::U16 | DType::Bf16 => read!(u16),
        DType::U32 => read!(u32),
        DType::U64 => read!(u64),
        DType::Bool => file.into_vec::<bool>().map(|v| v.into_iter().map(u8::from).collect()),
    };
    Ok(Array { dtype, shape, bytes: bytes.map_err(|e| e.to_string())? })
}

/// Element `i` of a tensor as a number, for comparing and printing.
#[must_use]
pub fn element(dtype: DType, bytes: &[u8], i: usize) -> f64 {
    fn at<const N: usize>(bytes: &[u8], i: usize) -> [u8; N] {
        bytes.as_chunks::<N>().0[i]
    }
    match dtype {
        DType::F32 => f64::from(f32::from_ne_bytes(at(bytes, i))),
        DType::F64 => f64::from_ne_bytes(at(bytes, i)),
        DType::F16 => f16::from_ne_bytes(at(bytes, i)).to_f64(),
        DType::Bf16 => bf16::from_ne_bytes(at(bytes, i)).to_f64(),
        DType::I8 => f64::from(i8::from_ne_bytes(at(bytes, i))),
        DType::I16 => f64::from(i16::from_ne_bytes(at(bytes, i))),
        DType::I32 => f64::from(i32::from_ne_bytes(at(bytes, i))),
        DType::I64 => i64::from_ne_bytes(at(bytes, i)) as f64,
        DType::U8 | DType::Bool => f64::from(bytes[i]),
        DType::U16 => f64::from(u16::from_ne_bytes(at(bytes, i))),
        DType::U32 => f64::from(u32::from_ne_bytes(at(bytes, i))),
        DType::U64 => u64::from_ne_bytes(at(bytes, i)) as f64,
    }
}

/// Largest absolute difference of two tensors and its element. Equal infinities and two NaNs are equal;
/// a NaN on one side alone is infinitely far away.
#[must_use]
pub fn difference(dtype: DType, got: &[u8], want: &[u8]) -> (f64, usize) {
    let mut worst = (0.0, 0);
    if got == want {
        return worst;
    }
    for i in 0..got.len().min(want.len()) / dtype.size_bytes() {
        let (a, b) = (element(dtype, got, i), element(dtype, want, i));
        let apart = if a == b || (a.is_nan() && b.is_nan()) { 0.0 } else { (a - b).abs() };
        let apart = if apart.is_nan() { f64::INFINITY } else { apart };
        if apart > worst.0 {
            worst = (apart, i);
        }
    }
    worst
}

/// Replays every golden pair of the manifest; the largest difference, if there are any.
pub(crate) fn check(
    policy: &mut Policy,
    spec: &ModelSpec,
    files: &mut dyn FileSource,
) -> Result<Option<f64>, ModelError> {
    if spec.golden.len() > GOLDEN_PAIRS_MAX {
        let what = format!("{} pairs are over the limit of {GOLDEN_PAIRS_MAX}", spec.golden.len());
        return Err(bad("[[golden]] in model.toml", what, "put their steps into fewer files"));
    }
    let mut worst: Option<f64> = None;
    for pair in &spec.golden {
        crate::files::check_name(&pair.file)?;
        let recording = Recording::read(&pair.file, files.file(&pair.file)?)?;
        let apart = replay(policy, pair, &recording)?;
        worst = Some(worst.map_or(apart, |w| w.max(apart)));
    }
    Ok(worst)
}

fn replay(policy: &mut Policy, pair: &GoldenPair, recording: &Recording) -> Result<f64, ModelError> {
    let compared = match_tensors(policy, pair, recording)?;
    let states = policy.state_offsets().len();
    let input_names: Vec<String> = policy.signature().inputs.iter().map(|t| t.name.clone()).collect();
    let recorded_states = recorded_states(policy, pair, recording)?;
    let mut worst = 0.0f64;
    for step in (0..recording.steps).filter(|step| recording.ok.get(*step) != Some(&false)) {
        for (k, state) in recorded_states.iter().enumerate() {
            policy.state_in_mut(k).copy_from_slice(state.step(step));
        }
        if recorded_states.is_empty() && (step == 0 || recording.reset.get(step) == Some(&true)) {
            (0..states).for_each(|k| policy.reset_state(k));
        }
        for (i, name) in input_names.iter().enumerate() {
            policy.input_mut(i).copy_from_slice(recording.inputs[name].step(step));
        }
        let remedy = "record the pair again with inputs that the manifest allows";
        policy.check_inputs().map_err(|r| bad(&pair.file, format!("step {step}: {r}"), remedy))?;
        policy.run()?;
        for (name, from) in &compared {
            let want = &recording.outputs[name];
            let got = match from {
                Compared::Output(i) => policy.output(*i),
                Compared::State(k) => policy.state_out(*k),
            };
            let (apart, element_at) = difference(want.dtype, got, want.step(step));
            if apart > pair.tolerance {
                let number = |bytes| element(want.dtype, bytes, element_at);
                let what = format!(
                    "step {step}, output {name:?}, element {element_at}: got {}, recorded {}, apart by {apart:.3e}, allowed {:.3e}",
                    number(got),
                    number(want.step(step)),
                    pair.tolerance
                );
                return Err(bad(
                    &pair.file,
                    what,
                    "this is not the model that was recorded, or tolerance is too small",
                ));
            }
            worst = worst.max(apart);
        }
        policy.feed_state_back();
    }
    Ok(worst)
}

enum Compared {
    Output(usize),
    State(usize),
}

/// Checks that the recording fits the signature; which outputs it compares.
fn match_tensors(
    policy: &Policy,
    pair: &GoldenPair,
    recording: &Recording,
) -> Result<Vec<(String, Compared)>, ModelError> {
    let fits = |prefix: &str, tensor: &TensorSpec, array: &Array| {
        if array.dtype == tensor.dtype && array.shape[1..] == tensor.shape {
            return Ok(());
        }
        let what = format!(
            "{prefix}.{} is {}{:?} per step, but the model has {tensor}",
            tensor.name,
            array.dtype,
            &array.shape[1..]
        );
        Err(bad(&pair.file, what, "record it with the model's dtype and shape"))
    };
    for input in &policy.signature().inputs {
        let missing = || bad(&pair.file, format!("lacks in.{}", input.name), "record every input");
        fits("in", input, recording.inputs.get(&input.name).ok_or_else(missing)?)?;
    }
    let mut compared = Vec::new();
    for (i, output) in policy.signature().outputs.iter().enumerate() {
        if let Some(array) = recording.outputs.get(&output.name) {
            fits("out", output, array)?;
            compared.push((output.name.clone(), Compared::Output(i)));
        }
    }
    if compared.is_empty() {
        return Err(bad(&pair.file, "has none of the model's outputs".into(), "name its arrays out.<output>"));
    }
    for (k, state) in policy.state_outputs().enumerate() {
        if let Some(array) = recording.outputs.get(&state.name) {
            fits("out", state, array)?;
            compared.push((state.name.clone(), Compared::State(k)));
        }
    }
    Ok(compared)
}

/// The recorded state of every state input, or nothing where the recording has none.
fn recorded_states<'a>(
    policy: &Policy,
    pair: &GoldenPair,
    recording: &'a Recording,
) -> Result<Vec<&'a Array>, ModelError> {
    if recording.states.is_empty() {
        return Ok(Vec::new());
    }
    let of = |tensor: &TensorSpec| {
        let array = recording.states.get(&tensor.name);
        array.filter(|a| a.dtype == tensor.dtype && a.shape[1..] == tensor.shape).ok_or_else(|| {
            let what = format!("has no state.{} that fits {tensor}", tensor.name);
            bad(&pair.file, what, "dump it again from this model, or remove its state arrays")
        })
    };
    policy.record_layout().states.iter().map(of).collect()
}

fn bad(file: &str, what: String, remedy: &str) -> ModelError {
    ModelError::new(Fault::Golden, format!("golden pair {file}"), what, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_treat_nan_and_infinity_as_values() {
        let bytes = |v: &[f32]| v.iter().flat_map(|v| v.to_ne_bytes()).collect::<Vec<u8>>();
        let d = |a: &[f32], b: &[f32]| difference(DType::F32, &bytes(a), &bytes(b));
        assert_eq!(d(&[1.0, 2.0], &[1.0, 2.5]), (0.5, 1));
        assert_eq!(d(&[f32::NAN, f32::INFINITY], &[-f32::NAN, f32::INFINITY]), (0.0, 0));
        assert_eq!(d(&[f32::NAN], &[0.0]).0, f64::INFINITY);
        assert_eq!(d(&[f32::INFINITY], &[f32::NEG_INFINITY]).0, f64::INFINITY);
    }

    #[test]
    fn damaged_recordings_are_refused_by_name() {
        let error = Recording::read("walk.npz", vec![1, 2, 3]).expect_err("not a zip");
        assert!(error.to_string().contains("walk.npz"), "{error}");
    }
}
