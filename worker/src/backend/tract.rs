//! ONNX models run by tract, in pure Rust, on the calling thread alone.
//!
//! Any model that tract runs, of any rank and dtype. The file is first made self-contained (`file.rs`)
//! and its shapes fixed (`dimensions.rs`); then optimised, with a fall back to the plain graph; then run
//! on zeros and ones, which gives the output shapes: what the file declares of them is not believed. A
//! shape that depends on the values is refused. Input tensors are kept from run to run; tract itself
//! allocates for what it computes. Options: `optimise` = `true` | `false`.

use super::{Backend, Model, check_size, only_cpu_fp32};
use crate::aligned::AlignedBytes;
use crate::contain::contain;
use crate::files::FileSource;
use crate::warm_up::fill_bytes;
use crate::{Fault, ModelError, in_short};
use half::bf16;
use inferd_ipc::signature::{DType, TensorSpec};
use inferd_ipc::worker_records::ModelSpec;
use std::sync::Arc;
use tract_onnx::pb::ModelProto;
use tract_onnx::prelude::{
    DatumType, Framework, InferenceModelExt, IntoRunnable, SpecialOps, TValue, TVec, Tensor, TractError, TypedModel,
    TypedSimplePlan, TypedSimpleState,
};
use tract_onnx::tract_core::ops::cast::cast;

mod dimensions;
mod file;

/// The release of tract that this was built with; a test compares it with the lock file.
const VERSION: &str = "0.23.9";

/// The backend.
pub struct Tract;

impl Backend for Tract {
    fn name(&self) -> &'static str {
        "tract"
    }

    fn version(&self) -> String {
        VERSION.to_owned()
    }

    fn load(
        &self,
        spec: &ModelSpec,
        files: &mut dyn FileSource,
        warn: &mut dyn FnMut(&str),
    ) -> Result<Box<dyn Model>, ModelError> {
        only_cpu_fp32(spec)?;
        let optimise = option(spec)?;
        let mut proto = read(spec, files)?;
        let framework = tract_onnx::onnx();
        let Some(graph) = proto.graph.as_mut() else { return Err(not_onnx(spec, "it holds no graph".into())) };
        let narrow = Narrow {
            inputs: graph.input.iter().filter(|i| file::is_bf16(i)).map(|i| i.name.clone()).collect(),
            outputs: graph.output.iter().map(file::is_bf16).collect(),
        };
        file::prepare(graph, files, &|op| framework.op_register.0.contains_key(op))?;
        dimensions::fix(graph, spec, warn)?;
        let output_names: Vec<String> = graph.output.iter().map(|o| o.name.clone()).collect();
        let typed = type_graph(spec, &proto)?;
        drop(proto);
        build(spec, typed, &output_names, &narrow, optimise, warn)
    }
}

/// Which tensors are bf16 in the file, and f32 in tract.
struct Narrow {
    inputs: Vec<String>,
    outputs: Vec<bool>,
}

fn option(spec: &ModelSpec) -> Result<bool, ModelError> {
    let mut optimise = true;
    for (key, value) in &spec.options {
        optimise = match (key.as_str(), value.as_str()) {
            ("optimise", "true") => true,
            ("optimise", "false") => false,
            _ => {
                let place = format!("option {key:?} = {value:?} of model {}", spec.model);
                let remedy = "tract knows optimise = \"true\" or \"false\"";
                return Err(ModelError::new(Fault::Manifest, place, "is not known", remedy));
            }
        };
    }
    Ok(optimise)
}

fn read(spec: &ModelSpec, files: &mut dyn FileSource) -> Result<ModelProto, ModelError> {
    let bytes = files.model()?;
    if bytes.starts_with(b"PK") {
        return Err(not_onnx(spec, "it is a zip archive, as TorchScript files are".into()));
    }
    tract_onnx::onnx().proto_model_for_read(&mut bytes.as_slice()).map_err(|e| not_onnx(spec, text(&e)))
}

fn not_onnx(spec: &ModelSpec, what: String) -> ModelError {
    let remedy = "check that the file is a whole ONNX model, and that `backend` fits it";
    ModelError::new(Fault::File, format!("file {:?}", spec.file), format!("is not an ONNX model: {what}"), remedy)
}

fn text(error: &TractError) -> String {
    in_short(format!("{error:#}"))
}

fn unsupported(spec: &ModelSpec, what: String) -> ModelError {
    let remedy =
        "serve it through ONNX Runtime (backend = \"ort\"), or export it with fixed shapes and common operators";
    ModelError::new(Fault::Unsupported, format!("file {:?}", spec.file), format!("tract cannot run it: {what}"), remedy)
}

/// Text or complex numbers, say, which no backend can serve.
fn no_tensor(spec: &ModelSpec, whose: &str, datum: DatumType) -> ModelError {
    let remedy = "keep it inside the model: clients exchange the dtypes that docs/shm-layout.md lists";
    ModelError::new(Fault::Unsupported, format!("file {:?}", spec.file), format!("{whose} is {datum:?}"), remedy)
}

/// Infers every type and shape, first without what the file claims of inner values, then with it.
fn type_graph(spec: &ModelSpec, proto: &ModelProto) -> Result<TypedModel, ModelError> {
    let attempt = |ignore: bool| {
        let framework = tract_onnx::onnx().with_ignore_value_info(ignore);
        framework
            .model_for_proto_model(proto)
            .and_then(InferenceModelExt::into_typed)
            .map_err(|e| unsupported(spec, text(&e)))
    };
    let place = format!("file {:?}", spec.file);
    contain(&place, || attempt(true)).or_else(|first| contain(&place, || attempt(false)).map_err(|_| first))
}

/// Makes one form of a graph from its typed form.
type Transform = fn(TypedModel) -> Result<TypedModel, TractError>;

/// The fastest form of the graph that really runs.
fn build(
    spec: &ModelSpec,
    mut typed: TypedModel,
    output_names: &[String],
    narrow: &Narrow,
    optimise: bool,
    warn: &mut dyn FnMut(&str),
) -> Result<Box<dyn Model>, ModelError> {
    dims_to_i64(&mut typed).map_err(|e| unsupported(spec, text(&e)))?;
    let place = format!("file {:?}", spec.file);
    let forms: [(&str, Transform); 3] =
        [("optimised", TypedModel::into_optimized), ("simplified", TypedModel::into_decluttered), ("plain", Ok)];
    let mut first = None;
    for (form, transform) in forms.into_iter().skip(usize::from(!optimise)) {
        let attempt = || {
            let model = transform(typed.clone()).map_err(|e| unsupported(spec, text(&e)))?;
            TractModel::new(spec, model, output_names, narrow)
        };
        match contain(&place, attempt) {
            Ok(model) => {
                if let Some(error) = first {
                    warn(&format!("the {form} graph runs in place of a faster one: {error}"));
                }
                return Ok(Box::new(model));
            }
            // Another form has the same tensors: what is wrong with them stays wrong.
            Err(error) if error.fault == Fault::Signature => return Err(error),
            Err(error) => first = first.or(Some(error)),
        }
    }
    Err(first.unwrap_or_else(|| unsupported(spec, "no form of it was tried".into())))
}

/// tract computes shapes in a type of its own; clients get i64, as ONNX says.
fn dims_to_i64(model: &mut TypedModel) -> Result<(), TractError> {
    let mut outlets = model.output_outlets()?.to_vec();
    for (i, outlet) in outlets.iter_mut().enumerate() {
        if model.outlet_fact(*outlet)?.datum_type == DatumType::TDim {
            *outlet = model.wire_node(format!("inferd.dims.{i}"), cast(DatumType::I64), &[*outlet])?[0];
        }
    }
    model.select_output_outlets(&outlets)
}

fn dtype_of(datum: DatumType) -> Option<DType> {
    Some(match datum.unquantized() {
        DatumType::Bool => DType::Bool,
        DatumType::U8 => DType::U8,
        DatumType::U16 => DType::U16,
        DatumType::U32 => DType::U32,
        DatumType::U64 => DType::U64,
        DatumType::I8 => DType::I8,
        DatumType::I16 => DType::I16,
        DatumType::I32 => DType::I32,
        DatumType::I64 => DType::I64,
        DatumType::F16 => DType::F16,
        DatumType::F32 => DType::F32,
        DatumType::F64 => DType::F64,
        _ => return None,
    })
}

/// An input's tensor; `narrow` is the bf16 that callers fill, where the file has bf16.
struct Input {
    tensor: Arc<Tensor>,
    narrow: Option<AlignedBytes>,
}

/// An output as the last run left it; `narrow` is its bf16.
struct Output {
    datum: DatumType,
    shape: Vec<usize>,
    narrow: Option<AlignedBytes>,
}

struct TractModel {
    plan: Arc<TypedSimplePlan>,
    state: TypedSimpleState,
    /// Whether the last run ended well; a state that was left halfway is not used again.
    clean: bool,
    input_specs: Vec<TensorSpec>,
    output_specs: Vec<TensorSpec>,
    inputs: Vec<Input>,
    outputs: Vec<Output>,
    results: TVec<TValue>,
}

impl TractModel {
    fn new(spec: &ModelSpec, model: TypedModel, names: &[String], narrow: &Narrow) -> Result<TractModel, ModelError> {
        let fail = |e: TractError| unsupported(spec, text(&e));
        let (mut input_specs, mut inputs) = (Vec::new(), Vec::new());
        for outlet in model.input_outlets().map_err(fail)? {
            let name = &model.node(outlet.node).name;
            let fact = model.outlet_fact(*outlet).map_err(fail)?;
            let shape = fact.shape.as_concrete().map(<[usize]>::to_vec);
            let Some(dtype) = dtype_of(fact.datum_type) else {
                return Err(no_tensor(spec, &format!("input {name:?}"), fact.datum_type));
            };
            let Some(shape) = shape else {
                let what = format!("input {name:?} is {fact:?}, which no tensor of inferd can be");
                return Err(unsupported(spec, what));
            };
            let dims: Vec<u64> = shape.iter().map(|d| *d as u64).collect();
            let is_narrow = narrow.inputs.contains(name);
            let tensor_spec = TensorSpec::new(name, if is_narrow { DType::Bf16 } else { dtype }, &dims);
            check_size(&tensor_spec)?;
            let tensor = Tensor::zero_aligned_dt(fact.datum_type, &shape, 64).map_err(fail)?;
            let narrow = is_narrow.then(|| AlignedBytes::zeroed(tensor_spec.bytes() as usize));
            inputs.push(Input { tensor: Arc::new(tensor), narrow });
            input_specs.push(tensor_spec);
        }
        let plan = model.into_runnable().map_err(fail)?;
        let state = plan.spawn().map_err(fail)?;
        let (output_specs, outputs, results) = (Vec::new(), Vec::new(), TVec::new());
        let mut model = TractModel { plan, state, clean: true, input_specs, output_specs, inputs, outputs, results };
        model.discover(spec, names, narrow)?;
        Ok(model)
    }

    /// Finds the outputs by running on zeros and on ones; either may fail, but not both.
    fn discover(&mut self, spec: &ModelSpec, names: &[String], narrow: &Narrow) -> Result<(), ModelError> {
        let mut failed = None;
        for value in [0.0, 1.0] {
            for i in 0..self.inputs.len() {
                let dtype = self.input_specs[i].dtype;
                fill_bytes(dtype, self.input_mut(i), value);
            }
            if let Err(error) = contain("trial run", || self.run_once()) {
                failed = failed.or(Some(error));
                continue;
            }
            let shapes: Vec<Vec<u64>> =
                self.results.iter().map(|t| t.shape().iter().map(|d| *d as u64).collect()).collect();
            if self.output_specs.is_empty() {
                self.take_outputs(spec, names, narrow, &shapes)?;
            } else if let Some(i) = (0..shapes.len()).find(|i| self.output_specs[*i].shape != shapes[*i]) {
                return Err(ModelError::new(
                    Fault::Signature,
                    format!("output {:?} of {:?}", names[i], spec.file),
                    format!("its shape depends on the input: {:?}, then {:?}", self.output_specs[i].shape, shapes[i]),
                    "serve it through ONNX Runtime (backend = \"ort\") with its largest shape in model.toml, or pad it to a fixed shape inside the model",
                ));
            }
        }
        for i in 0..self.inputs.len() {
            self.input_mut(i).fill(0);
        }
        match failed {
            Some(error) if self.outputs.is_empty() => Err(unsupported(spec, error.what)),
            _ => Ok(()),
        }
    }

    fn take_outputs(
        &mut self,
        spec: &ModelSpec,
        names: &[String],
        narrow: &Narrow,
        shapes: &[Vec<u64>],
    ) -> Result<(), ModelError> {
        for (i, result) in self.results.iter().enumerate() {
            let Some(dtype) = dtype_of(result.datum_type()) else {
                return Err(no_tensor(spec, &format!("output {:?}", names[i]), result.datum_type()));
            };
            let is_narrow = narrow.outputs[i] && dtype == DType::F32;
            let tensor = TensorSpec::new(&names[i], if is_narrow { DType::Bf16 } else { dtype }, &shapes[i]);
            check_size(&tensor)?;
            let narrow = is_narrow.then(|| AlignedBytes::zeroed(tensor.bytes() as usize));
            self.outputs.push(Output { datum: result.datum_type(), shape: result.shape().to_vec(), narrow });
            self.output_specs.push(tensor);
        }
        Ok(())
    }

    /// One run; `results` holds tract's own output tensors afterwards.
    fn run_once(&mut self) -> Result<(), ModelError> {
        if !self.clean {
            self.state = self.plan.spawn().map_err(|e| failed(&e))?;
        }
        self.clean = false;
        self.results.clear();
        let mut values = TVec::new();
        for input in &mut self.inputs {
            if let Some(narrow) = &input.narrow {
                let wide = Arc::make_mut(&mut input.tensor).as_bytes_mut().as_chunks_mut::<4>().0;
                let pairs = wide.iter_mut().zip(narrow.as_chunks::<2>().0);
                pairs.for_each(|(wide, narrow)| *wide = bf16::from_ne_bytes(*narrow).to_f32().to_ne_bytes());
            }
            values.push(TValue::from_const(Arc::clone(&input.tensor)));
        }
        self.results = self.state.run(values).map_err(|e| failed(&e))?;
        self.clean = true;
        Ok(())
    }
}

#[cold]
fn failed(error: &TractError) -> ModelError {
    ModelError::new(Fault::Run, "run", text(error), "look at the input; the model's operators refused it")
}

impl Model for TractModel {
    fn inputs(&self) -> &[TensorSpec] {
        &self.input_specs
    }

    fn outputs(&self) -> &[TensorSpec] {
        &self.output_specs
    }

    fn input_mut(&mut self, i: usize) -> &mut [u8] {
        let input = &mut self.inputs[i];
        match &mut input.narrow {
            Some(narrow) => narrow,
            // Copies only where the last run's output is this very tensor: identity models.
            None => Arc::make_mut(&mut input.tensor).as_bytes_mut(),
        }
    }

    fn run(&mut self) -> Result<(), ModelError> {
        self.run_once()?;
        for (i, (result, output)) in self.results.iter().zip(&mut self.outputs).enumerate() {
            if result.shape() != output.shape || result.datum_type() != output.datum {
                let place = format!("output {}", self.output_specs[i]);
                let what = format!("has the shape {:?} this time", result.shape());
                return Err(ModelError::new(Fault::Run, place, what, "pad it to a fixed shape inside the model"));
            }
            if let Some(narrow) = &mut output.narrow {
                let pairs = narrow.as_chunks_mut::<2>().0.iter_mut().zip(result.as_bytes().as_chunks::<4>().0);
                pairs.for_each(|(to, from)| *to = bf16::from_f32(f32::from_ne_bytes(*from)).to_ne_bytes());
            }
        }
        Ok(())
    }

    fn output(&self, i: usize) -> &[u8] {
        match &self.outputs[i].narrow {
            Some(narrow) => narrow,
            None => self.results[i].as_bytes(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_told_is_the_version_built() {
        let lock = include_str!("../../../Cargo.lock");
        let at = lock.find("name = \"tract-onnx\"\n").expect("tract is in the lock file");
        let version = lock[at..].lines().nth(1).expect("a version follows");
        assert_eq!(version, format!("version = \"{VERSION}\""));
    }
}
