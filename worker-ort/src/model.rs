//! The backend: a file becomes a session whose tensors have one size for good.
//!
//! The file is looked at first (`file.rs`), its symbols get their numbers before the graph is optimised, and two runs on
//! zeros and on ones give the output shapes: what the file declares of them is not believed. An output whose shape depends
//! on the values is served where the manifest bounds it: padded with zeros to that shape, with its true lengths in a
//! further output `NAME.shape`. One thread, no pool that spins, denormals flushed as everywhere in a worker.

use crate::bound::{Bound, Found, Tensor};
use crate::file::{self, not_onnx};
use crate::library::Library;
use crate::options::Options;
use inferd_ipc::signature::{DType, TensorSpec};
use inferd_ipc::worker_records::ModelSpec;
use inferd_worker::backend::{Backend, Model, check_size};
use inferd_worker::confine::Profile;
use inferd_worker::files::FileSource;
use inferd_worker::warm_up::fill_bytes;
use inferd_worker::{Fault, ModelError, dimensions};
use ort::session::Session;
use ort::session::builder::SessionBuilder;
use ort::value::{TensorElementType, ValueType};
use ort::{AsPointer, ErrorCode, ortsys};
use std::ffi::CString;

/// What follows an output's name in the name of its lengths.
const LENGTHS_SUFFIX: &str = ".shape";

/// The backend.
pub struct Ort;

impl Backend for Ort {
    fn name(&self) -> &'static str {
        "ort"
    }

    fn version(&self) -> String {
        // Asked after a load, which has opened it.
        Library::open(None).map_or_else(|_| "without a library".to_owned(), |library| library.version.clone())
    }

    fn profile(&self, spec: &ModelSpec) -> Profile {
        // Options that cannot be read are refused at load.
        match Options::of(spec) {
            Ok(options) if !options.is_cpu() => Profile::Gpu,
            _ => Profile::Strict,
        }
    }

    fn load(
        &self,
        spec: &ModelSpec,
        files: &mut dyn FileSource,
        warn: &mut dyn FnMut(&str),
    ) -> Result<Box<dyn Model>, ModelError> {
        let options = Options::of(spec)?;
        let library = Library::open(options.library.as_deref())?;
        let bytes = files.model()?;
        let facts = file::read(&spec.file, &bytes, files)?;
        let (shapes, symbols) = dimensions::resolve(&facts.inputs, spec, warn)?;
        let mut builder = builder(library, &options).map_err(|e| cannot(spec, &e))?;
        options.register(&mut builder, &library.path.display().to_string())?;
        for dim in facts.inputs.iter().flat_map(|i| i.shape.iter().flatten()) {
            if let dimensions::Declared::Named(symbol) = dim
                && let Some(value) = symbols.evaluate(symbol)
            {
                let value = i64::try_from(value).unwrap_or(i64::MAX);
                builder = builder.with_dimension_override(symbol, value).map_err(|e| cannot(spec, &e.into_plain()))?;
            }
        }
        for (name, bytes) in facts.external {
            let added = builder.with_external_initializer_file_in_memory(name, bytes);
            builder = added.map_err(|e| cannot(spec, &e.into_plain()))?;
        }
        let session = builder.commit_from_memory(&bytes).map_err(|e| cannot(spec, &e))?;
        drop(bytes);
        let inputs = facts.inputs.iter().zip(&shapes);
        let inputs = inputs.map(|(i, shape)| input(spec, &session, &i.name, shape)).collect::<Result<Vec<_>, _>>()?;
        Ok(Box::new(OrtModel::new(spec, session, inputs, options.is_cpu())?))
    }
}

/// An error without the builder that it came with.
trait Plain {
    fn into_plain(self) -> ort::Error;
}

impl Plain for ort::Error<SessionBuilder> {
    fn into_plain(self) -> ort::Error {
        ort::Error::new_with_code(self.code(), self.message())
    }
}

// An error brings the builder back with it, which is large; none of this lies on the path of a request.
#[allow(clippy::result_large_err)]
fn builder(library: &Library, options: &Options) -> ort::Result<SessionBuilder> {
    let mut builder = Session::builder(&library.environment)?
        .with_intra_threads(options.threads)
        .and_then(|b| b.with_inter_threads(1))
        .and_then(|b| b.with_parallel_execution(false))
        .and_then(|b| b.with_intra_op_spinning(false))
        .and_then(|b| b.with_inter_op_spinning(false))
        // Not only for its own threads: without this, the first session of a process clears the flags of the thread that
        // makes it, which runs golden pairs and warm-up.
        .and_then(|b| b.with_flush_to_zero())
        .and_then(|b| b.with_memory_pattern(options.memory_pattern))
        .and_then(|b| b.with_optimization_level(options.optimise))
        .and_then(|b| b.with_log_level(ort::logging::LogLevel::Warning))
        .map_err(Plain::into_plain)?;
    if !options.arena {
        ortsys![unsafe DisableCpuMemArena(builder.ptr_mut())?];
    }
    Ok(builder)
}

fn text(error: &ort::Error) -> String {
    crate::message::for_people(error.message())
}

/// The library refused the file.
fn cannot(spec: &ModelSpec, error: &ort::Error) -> ModelError {
    if error.code() == ErrorCode::InvalidProtobuf {
        return not_onnx(&spec.file, &text(error));
    }
    let what = format!("ONNX Runtime cannot run it: {}", text(error));
    let remedy = "export it for an older operator set with standard operators, or install a newer ONNX Runtime";
    ModelError::new(Fault::Unsupported, format!("file {:?}", spec.file), what, remedy)
}

fn dtype_of(element: TensorElementType) -> Option<DType> {
    Some(match element {
        TensorElementType::Float32 => DType::F32,
        TensorElementType::Float64 => DType::F64,
        TensorElementType::Float16 => DType::F16,
        TensorElementType::Bfloat16 => DType::Bf16,
        TensorElementType::Int8 => DType::I8,
        TensorElementType::Int16 => DType::I16,
        TensorElementType::Int32 => DType::I32,
        TensorElementType::Int64 => DType::I64,
        TensorElementType::Uint8 => DType::U8,
        TensorElementType::Uint16 => DType::U16,
        TensorElementType::Uint32 => DType::U32,
        TensorElementType::Uint64 => DType::U64,
        TensorElementType::Bool => DType::Bool,
        _ => return None,
    })
}

/// The element type of a tensor that inferd knows.
fn dtype(spec: &ModelSpec, side: &str, name: &str, kind: &ValueType) -> Result<DType, ModelError> {
    kind.tensor_type().and_then(dtype_of).ok_or_else(|| {
        let place = format!("{side} {name:?} of {:?}", spec.file);
        let remedy = "export the model with tensors of numbers or bools only";
        ModelError::new(Fault::Unsupported, place, format!("is {kind}, which no tensor of inferd can be"), remedy)
    })
}

fn input(spec: &ModelSpec, session: &Session, name: &str, shape: &[u64]) -> Result<TensorSpec, ModelError> {
    let outlet = session.inputs().iter().find(|i| i.name() == name);
    let outlet = outlet.ok_or_else(|| not_onnx(&spec.file, &format!("ONNX Runtime does not find input {name:?}")))?;
    let tensor = TensorSpec::new(name, dtype(spec, "input", name, outlet.dtype())?, shape);
    check_size(&tensor)?;
    Ok(tensor)
}

/// What to do with an output after a run.
enum Output {
    /// It lies in a buffer of ours.
    InPlace,
    /// It is copied, with zeros around it, into the bounded shape; its lengths go into the next output.
    Bounded { place: Vec<u8>, bound: Vec<u64>, strides: Vec<usize>, lengths: Vec<u8>, element: usize },
}

/// Where a tensor that clients see comes from.
#[derive(Clone, Copy)]
enum Seen {
    Output(usize),
    LengthsOf(usize),
}

struct OrtModel {
    bound: Bound,
    input_specs: Vec<TensorSpec>,
    output_specs: Vec<TensorSpec>,
    /// In the order of the file.
    outputs: Vec<Output>,
    /// In the order of `output_specs`.
    seen: Vec<Seen>,
}

fn c_name(spec: &ModelSpec, name: &str) -> Result<CString, ModelError> {
    CString::new(name).map_err(|_| not_onnx(&spec.file, &format!("a tensor's name has a zero byte: {name:?}")))
}

impl OrtModel {
    fn new(spec: &ModelSpec, session: Session, inputs: Vec<TensorSpec>, cpu: bool) -> Result<OrtModel, ModelError> {
        let place =
            |t: &TensorSpec| Ok(Tensor { name: c_name(spec, &t.name)?, dtype: t.dtype, shape: Some(t.shape.clone()) });
        let in_tensors = inputs.iter().map(place).collect::<Result<Vec<_>, ModelError>>()?;
        // The shape as ONNX Runtime infers it, none where it cannot.
        let mut found = Vec::new();
        for outlet in session.outputs() {
            let dtype = dtype(spec, "output", outlet.name(), outlet.dtype())?;
            let settled = outlet.dtype().tensor_shape().is_some_and(|s| s.iter().all(|d| *d >= 0));
            found.push(OutputFacts { name: outlet.name().to_owned(), dtype, settled, shapes: Vec::new() });
        }
        let free = found.iter().map(|f| Ok(Tensor { name: c_name(spec, &f.name)?, dtype: f.dtype, shape: None }));
        let free = free.collect::<Result<Vec<_>, ModelError>>()?;
        let mut trial = Bound::new(session, &in_tensors, &free, false).map_err(|e| cannot(spec, &e))?;
        discover(spec, &mut trial, &inputs, &mut found)?;
        let session = trial.into_session();
        let (mut output_specs, mut outputs, mut seen, mut places) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (i, facts) in found.iter().enumerate() {
            let (shape, bounded) = facts.decide(spec)?;
            let tensor = TensorSpec::new(&facts.name, facts.dtype, &shape);
            check_size(&tensor)?;
            places.push(Tensor {
                name: c_name(spec, &facts.name)?,
                dtype: facts.dtype,
                shape: (!bounded).then(|| shape.clone()),
            });
            outputs.push(if bounded { Output::bounded(&tensor) } else { Output::InPlace });
            output_specs.push(tensor);
            seen.push(Seen::Output(i));
            if bounded {
                let name = format!("{}{LENGTHS_SUFFIX}", facts.name);
                output_specs.push(TensorSpec::new(&name, DType::I64, &[shape.len() as u64]));
                seen.push(Seen::LengthsOf(i));
            }
        }
        let bound = Bound::new(session, &in_tensors, &places, cpu).map_err(|e| cannot(spec, &e))?;
        Ok(OrtModel { bound, input_specs: inputs, output_specs, outputs, seen })
    }
}

/// Runs on zeros and on ones; either may fail, but not both.
fn discover(
    spec: &ModelSpec,
    trial: &mut Bound,
    inputs: &[TensorSpec],
    outputs: &mut [OutputFacts],
) -> Result<(), ModelError> {
    let mut failed = None;
    for value in [0.0, 1.0] {
        for (i, input) in inputs.iter().enumerate() {
            fill_bytes(input.dtype, trial.input_mut(i), value);
        }
        match trial.run() {
            Ok(()) => {
                for (i, output) in outputs.iter_mut().enumerate() {
                    output.shapes.extend(trial.found(i).map(|f| f.shape.to_vec()));
                }
            }
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    match failed {
        Some(error) if outputs.iter().all(|o| o.shapes.is_empty()) => Err(cannot(spec, &error)),
        _ => Ok(()),
    }
}

/// What is known of an output after the trial runs.
struct OutputFacts {
    name: String,
    dtype: DType,
    /// ONNX Runtime knows the shape without a run.
    settled: bool,
    /// As the trial runs gave them.
    shapes: Vec<Vec<u64>>,
}

impl OutputFacts {
    /// The shape that clients see, and whether it only bounds what a run gives.
    fn decide(&self, spec: &ModelSpec) -> Result<(Vec<u64>, bool), ModelError> {
        let first = self.shapes.first().cloned().unwrap_or_default();
        let other = self.shapes.iter().find(|s| **s != first);
        let said = spec.outputs.get(&self.name).and_then(|rules| rules.shape.as_ref());
        let fault = |what: String, remedy: &str| {
            let place = format!("output {:?} of {:?}", self.name, spec.file);
            ModelError::new(Fault::Signature, place, what, remedy)
        };
        let Some(said) = said.filter(|said| other.is_some() || (!self.settled && **said != first)) else {
            let Some(other) = other else { return Ok((first, false)) };
            let what = format!("its shape depends on the input: {first:?}, then {other:?}");
            let remedy = "give its largest shape as shape under [outputs] in model.toml, or pad it inside the model";
            return Err(fault(what, remedy));
        };
        for shape in &self.shapes {
            if shape.len() != said.len() || shape.iter().zip(said).any(|(is, most)| is > most) {
                let what = format!("model.toml bounds it by {said:?}, but a trial run gave {shape:?}");
                return Err(fault(what, "give the largest shape that it can have"));
            }
        }
        Ok((said.clone(), true))
    }
}

impl Output {
    fn bounded(tensor: &TensorSpec) -> Output {
        let mut strides = vec![tensor.dtype.size_bytes(); tensor.shape.len()];
        for axis in (0..tensor.shape.len().saturating_sub(1)).rev() {
            strides[axis] = strides[axis + 1] * tensor.shape[axis + 1] as usize;
        }
        Output::Bounded {
            place: vec![0; tensor.bytes() as usize],
            bound: tensor.shape.clone(),
            strides,
            lengths: vec![0; tensor.shape.len() * size_of::<i64>()],
            element: tensor.dtype.size_bytes(),
        }
    }
}

/// Copies a row-major tensor into the corner of a larger one, whose rest is zero.
fn copy_into_corner(from: &[u8], shape: &[u64], to: &mut [u8], strides: &[usize], element: usize) {
    let Some((length, inner)) = shape.split_first() else { return to[..element].copy_from_slice(from) };
    if inner.is_empty() {
        return to[..from.len()].copy_from_slice(from);
    }
    let rows = from.len() / usize::try_from(*length).unwrap_or(0).max(1);
    for (row, from) in from.chunks_exact(rows.max(1)).enumerate() {
        copy_into_corner(from, inner, &mut to[row * strides[0]..], &strides[1..], element);
    }
}

/// What the last run left, as clients see it.
fn place_bounded(output: &mut Output, found: &Found<'_>, tensor: &TensorSpec) -> Result<(), ModelError> {
    let Output::Bounded { place, bound, strides, lengths, element } = output else { return Ok(()) };
    if found.shape.len() != bound.len() || found.shape.iter().zip(bound.iter()).any(|(is, most)| is > most) {
        let what = format!("has the shape {:?} this time, over the bound that model.toml gives", found.shape);
        let remedy = "raise shape of this output in model.toml, or bound it inside the model";
        return Err(ModelError::new(Fault::Run, format!("output {tensor}"), what, remedy));
    }
    place.fill(0);
    if !found.bytes.is_empty() {
        copy_into_corner(found.bytes, found.shape, place, strides, *element);
    }
    for (to, length) in lengths.as_chunks_mut().0.iter_mut().zip(found.shape) {
        *to = i64::try_from(*length).unwrap_or(i64::MAX).to_ne_bytes();
    }
    Ok(())
}

#[cold]
fn failed(error: &ort::Error) -> ModelError {
    ModelError::new(Fault::Run, "run", text(error), "look at the input; the model's operators refused it")
}

impl Model for OrtModel {
    fn inputs(&self) -> &[TensorSpec] {
        &self.input_specs
    }

    fn outputs(&self) -> &[TensorSpec] {
        &self.output_specs
    }

    fn input_mut(&mut self, i: usize) -> &mut [u8] {
        self.bound.input_mut(i)
    }

    fn run(&mut self) -> Result<(), ModelError> {
        self.bound.run().map_err(|e| failed(&e))?;
        for (tensor, seen) in self.output_specs.iter().zip(&self.seen) {
            if let Seen::Output(i) = *seen
                && let Some(found) = self.bound.found(i)
            {
                place_bounded(&mut self.outputs[i], &found, tensor)?;
            }
        }
        Ok(())
    }

    fn output(&self, i: usize) -> &[u8] {
        match self.seen[i] {
            Seen::Output(i) => match &self.outputs[i] {
                Output::InPlace => self.bound.output(i),
                Output::Bounded { place, .. } => place,
            },
            Seen::LengthsOf(i) => match &self.outputs[i] {
                Output::Bounded { lengths, .. } => lengths,
                Output::InPlace => &[],
            },
        }
    }
}
