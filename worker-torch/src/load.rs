//! The backend: a file and a manifest become a model.
//!
//! TorchScript says neither dtypes nor shapes nor names, so the manifest does, and the module is run to check it: on
//! probes, first as loaded. What a run changes in its attributes is hidden state, if it is a tensor of a fixed layout;
//! anything else that changes is refused, for it would be shared between robots. Then the fastest form is chosen.

use crate::arguments::assigned;
use crate::choose::{PROBES, Probe, Trial};
use crate::library;
use crate::model::TorchModel;
use crate::module::{Argument, Change, Module};
use crate::options::Options;
use inferd_ipc::limits::{ARCHIVE_DIRECTORY_BYTES, TENSORS_MAX};
use inferd_ipc::signature::TensorSpec;
use inferd_ipc::worker_records::{Device, ModelSpec, Precision};
use inferd_worker::backend::{Backend, HiddenState, Model, check_size};
use inferd_worker::confine::Profile;
use inferd_worker::files::FileSource;
use inferd_worker::{Fault, ModelError};

/// What the shim says when a run gives something else than the first one did.
const CHANGED: &str = "when it was loaded";
/// Largest difference of a faster form, absolute and relative: of f32, and where the model computes in halves.
const TOLERANCE: f64 = 1e-5;
const TOLERANCE_HALF: f64 = 2e-2;

/// The backend.
pub struct Torch;

impl Backend for Torch {
    fn name(&self) -> &'static str {
        "torch"
    }

    fn version(&self) -> String {
        library::VERSION.to_owned()
    }

    fn profile(&self, spec: &ModelSpec) -> Profile {
        // oneDNN writes its kernels when it meets a shape for the first time.
        Profile::of(spec).max(Profile::Jit)
    }

    fn load(
        &self,
        spec: &ModelSpec,
        files: &mut dyn FileSource,
        warn: &mut dyn FnMut(&str),
    ) -> Result<Box<dyn Model>, ModelError> {
        let options = Options::parse(spec)?;
        let (mut module, arguments) = open(spec, &options, files)?;
        let inputs = declared(spec)?;
        for (argument, input) in assigned(spec, &options, &arguments, &inputs)? {
            module.add_input(argument, &inputs[input], &inputs[input].name).map_err(|what| refused(spec, what))?;
        }
        let probes = probe(spec, &mut module, &inputs)?;
        let (order, outputs) = outputs(spec, &module)?;
        let all = described(spec, &module)?;
        let (hidden, reset) = hide(spec, &options, &mut module)?;
        if spec.precision != Precision::Fp32 {
            let number = if spec.precision == Precision::Fp16 { 1 } else { 2 };
            module.precision(number).map_err(|what| refused(spec, what))?;
        }
        let tolerance = if spec.precision == Precision::Fp32 { TOLERANCE } else { TOLERANCE_HALF };
        let mut trial = Trial {
            module: &mut module,
            inputs: &inputs,
            outputs: &all,
            hidden: &hidden,
            reset: &reset,
            probes: &probes,
            tolerance,
        };
        trial.choose(options.optimise, warn).map_err(|what| refused(spec, what))?;
        let pairs = (0..hidden.len()).map(|k| HiddenState { input: inputs.len() + k, output: outputs.len() + k });
        Ok(Box::new(TorchModel {
            hidden: pairs.collect(),
            inputs: [inputs, hidden.clone()].concat(),
            outputs: [outputs, hidden].concat(),
            order,
            reset,
            place: format!("file {:?}", spec.file),
            module,
        }))
    }
}

fn refused(spec: &ModelSpec, what: String) -> ModelError {
    let remedy = "correct the model or its description in model.toml";
    let remedy = match spec.device {
        Device::Cpu => remedy,
        Device::Cuda(_) if what.contains("memory") => "free memory on the device, or serve the model on another",
        Device::Cuda(_) => "check the device (nvidia-smi) and what the message says of it",
    };
    ModelError::new(Fault::Unsupported, format!("file {:?} on {}", spec.file, spec.device), what, remedy)
}

pub(crate) fn manifest(place: String, what: String, remedy: &str) -> ModelError {
    ModelError::new(Fault::Manifest, format!("{place} in model.toml"), what, remedy)
}

fn open(
    spec: &ModelSpec,
    options: &Options,
    files: &mut dyn FileSource,
) -> Result<(Module, Vec<Argument>), ModelError> {
    let bytes = files.model()?;
    let foreign = |what: &str, remedy: &str| {
        Err(ModelError::new(
            Fault::File,
            format!("file {:?}", spec.file),
            format!("is not TorchScript: {what}"),
            remedy,
        ))
    };
    const EXPORT: &str = "save the module with torch.jit.script(model).save(\"model.pt\"), or torch.jit.trace";
    if !bytes.starts_with(b"PK") {
        let pickle = bytes.starts_with(&[0x80]);
        let what = if pickle { "it is a pickle, as torch.save wrote before 1.6" } else { "it is no archive at all" };
        return foreign(what, if pickle { EXPORT } else { "check that the file is whole, and that `backend` fits it" });
    }
    // The names of an archive's files stand at its end.
    let directory = &bytes[bytes.len().saturating_sub(ARCHIVE_DIRECTORY_BYTES)..];
    let holds = |name: &[u8]| directory.windows(name.len()).any(|w| w == name);
    if !holds(b"PK\x05\x06") {
        return foreign("its archive is cut off", "copy the whole file again");
    }
    if holds(b"/data/aotinductor/") || holds(b".wrapper.so") {
        return foreign("it is an AOTInductor package", "serve the module itself: TorchScript, or ONNX");
    }
    if holds(b"/models/") && holds(b"/archive_format") {
        return foreign("it is a program of torch.export", EXPORT);
    }
    if holds(b"/data.pkl") && !holds(b"/constants.pkl") {
        return foreign("it is a checkpoint of torch.save, which holds weights and no code", EXPORT);
    }
    let device = match spec.device {
        Device::Cpu => None,
        Device::Cuda(number) => {
            library::load_cuda()?;
            Some(number)
        }
    };
    Module::open(&bytes, device, &options.method)?.map_err(|what| {
        let newer = what.contains("maximum supported version") || what.contains("newer version");
        let remedy = if newer {
            "export it with PyTorch 2.11 or older"
        } else {
            "check that the file is whole; else see the message"
        };
        match spec.device {
            Device::Cuda(_) if !newer => refused(spec, what),
            _ => ModelError::new(
                Fault::File,
                format!("file {:?}", spec.file),
                format!("libtorch refuses it: {what}"),
                remedy,
            ),
        }
    })
}

/// The inputs that the manifest describes.
fn declared(spec: &ModelSpec) -> Result<Vec<TensorSpec>, ModelError> {
    let mut inputs = Vec::new();
    for name in &spec.input_order {
        let rules = spec.inputs.get(name);
        let (Some(dtype), Some(shape)) = (rules.and_then(|r| r.dtype), rules.and_then(|r| r.shape.as_ref())) else {
            let what = "lacks dtype or shape, which TorchScript does not say".to_owned();
            return Err(manifest(format!("[inputs.{name}]"), what, "add both, as dtype = \"f32\", shape = [1, 47]"));
        };
        let input = TensorSpec::new(name, dtype, shape);
        check_size(&input)?;
        inputs.push(input);
    }
    Ok(inputs)
}

/// Runs the module on every probe; those that it answers. The first one settles dtypes and shapes of its outputs.
fn probe(spec: &ModelSpec, module: &mut Module, inputs: &[TensorSpec]) -> Result<Vec<Probe>, ModelError> {
    module.watch().map_err(|what| refused(spec, what))?;
    let (mut answered, mut first): (Vec<Probe>, Option<String>) = (Vec::new(), None);
    for probe in PROBES {
        for (i, input) in inputs.iter().enumerate() {
            probe.fill(input.dtype, module.input_mut(i));
        }
        module.seed(0);
        match module.run() {
            Ok(()) => {
                if answered.is_empty() {
                    module.settle();
                }
                answered.push(probe);
            }
            Err(what) if what.contains(CHANGED) => {
                let what = format!("its outputs depend on the values of its inputs: {what}");
                return Err(refused(spec, what));
            }
            Err(what) => first = first.or(Some(what)),
        }
    }
    if answered.is_empty() {
        let shapes = inputs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let what = format!("it raises on every probe of ({shapes}): {}", first.unwrap_or_default());
        return Err(refused(spec, what));
    }
    Ok(answered)
}

/// All outputs of the method, named by their places.
fn described(spec: &ModelSpec, module: &Module) -> Result<Vec<TensorSpec>, ModelError> {
    let describe = |i: usize| {
        module.output_spec(i, &format!("output {i}")).ok_or_else(|| {
            refused(
                spec,
                format!("output {i} is of a type that no client can hold; convert or dequantize it in the model"),
            )
        })
    };
    (0..module.outputs()).map(describe).collect()
}

/// The outputs that are served, and where each stands in what the method returns.
fn outputs(spec: &ModelSpec, module: &Module) -> Result<(Vec<usize>, Vec<TensorSpec>), ModelError> {
    let all = described(spec, module)?;
    let keys: Vec<String> = (0..all.len()).map(|i| module.output_key(i)).collect();
    let named = keys.iter().any(|k| !k.is_empty());
    let shapes = all.iter().zip(&keys).map(|(t, k)| format!("{k} {}{:?}", t.dtype, t.shape).trim().to_owned());
    let shapes = shapes.collect::<Vec<_>>().join(", ");
    let mut names = spec.output_order.clone();
    if names.is_empty() {
        names = match (named, all.len()) {
            (true, _) => keys.clone(),
            (false, 1) => vec!["output".into()],
            (false, count) => {
                let what = format!("names no outputs, and the method returns {count}: {shapes}");
                return Err(manifest("output_order".into(), what, "name them in this order"));
            }
        };
    }
    if !named && names.len() != all.len() {
        let what = format!(
            "names {} outputs ({}), but the method returns {}: {shapes}",
            names.len(),
            names.join(", "),
            all.len()
        );
        return Err(manifest("output_order".into(), what, "name every output, in this order"));
    }
    let (mut order, mut served) = (Vec::new(), Vec::new());
    for (place, name) in names.iter().enumerate() {
        let found = if named { keys.iter().position(|k| k == name) } else { Some(place) };
        let Some(found) = found else {
            let what = format!("names {name:?}, but the method returns {shapes}");
            return Err(manifest("output_order".into(), what, "name entries of the dict that it returns"));
        };
        let mut tensor = all[found].clone();
        tensor.name.clone_from(name);
        check_size(&tensor)?;
        order.push(found);
        served.push(tensor);
    }
    Ok((order, served))
}

/// Makes every attribute that a run changed, or that the manifest names, hidden state; with its reset values.
fn hide(
    spec: &ModelSpec,
    options: &Options,
    module: &mut Module,
) -> Result<(Vec<TensorSpec>, Vec<Vec<u8>>), ModelError> {
    let mut paths = options.state.clone();
    for change in module.changes().map_err(|what| refused(spec, what))? {
        match change {
            Change::State(path) if !paths.contains(&path) => paths.push(path),
            Change::State(_) => {}
            Change::Shape(path, how) => {
                let what = format!(
                    "its attribute `{path}` changes its layout from run to run ({how}), so no session can keep it"
                );
                return Err(refused(spec, what));
            }
            Change::Value(path, how) => {
                let what = format!(
                    "its attribute `{path}` ({how}) changes from run to run and is no tensor, so every robot would share it; make it a buffer of a fixed shape"
                );
                return Err(refused(spec, what));
            }
        }
    }
    if paths.len() > TENSORS_MAX {
        let what = format!("{} of its attributes change from run to run, over the limit of {TENSORS_MAX}", paths.len());
        return Err(refused(spec, what));
    }
    let mut hidden = Vec::new();
    for path in &paths {
        let mut tensor = module.hide(path).map_err(|what| {
            manifest(
                format!("option state = {:?}", options.state.join(",")),
                what,
                "name attributes of the module that are tensors",
            )
        })?;
        tensor.name = format!("self.{path}");
        check_size(&tensor)?;
        hidden.push(tensor);
    }
    let mut reset: Vec<Vec<u8>> = (0..hidden.len()).map(|k| module.hidden_in_mut(k).to_vec()).collect();
    if let Some(method) = &options.reset_method {
        let place = || format!("option reset_method = {method:?}");
        let remedy = "name a method of the module that takes no argument";
        module.call(method).map_err(|what| manifest(place(), what, remedy))?;
        module.show_hidden().map_err(|what| refused(spec, what))?;
        reset = (0..hidden.len()).map(|k| module.hidden_out(k).to_vec()).collect();
    }
    Ok((hidden, reset))
}
