//! A backend with any signature and no model file: output `k` holds the bytes of input `k`.
//!
//! An ordinary backend in the ordinary loop, for measuring the path and for tests. Outputs repeat or
//! truncate their input (`k` modulo the number of inputs); the output of a state pair is its input
//! plus one in every element, so that continuity can be checked; `show_state` names an output that shows it. Options make it slow or faulty on
//! purpose; delays and faults begin once the model is live, and steps count from 1 there.

use super::{Backend, Model, check_size, only_cpu_fp32};
use crate::aligned::AlignedBytes;
use crate::{Fault, ModelError, files::FileSource};
use half::{bf16, f16};
use inferd_ipc::signature::{DType, TensorSpec};
use inferd_ipc::worker_records::{ModelSpec, TensorRules};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The backend.
pub struct Echo;

/// What the options say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Options {
    delay: Duration,
    sleep: Duration,
    load_delay: Duration,
    fail_at: u64,
    crash_at: u64,
    hang_at: u64,
    nan_at: u64,
}

impl Options {
    fn parse(spec: &ModelSpec) -> Result<Options, ModelError> {
        let mut options = Options::default();
        for (key, value) in &spec.options {
            let fault = |what: &str, remedy: &str| {
                ModelError::new(Fault::Manifest, format!("option {key:?} of model {}", spec.model), what, remedy)
            };
            if key == "show_state" {
                continue;
            }
            if key == "fail_load" {
                return Err(fault(value, "this failure was asked for; remove the option"));
            }
            let known = "echo knows delay_us, sleep_us, load_delay_ms, fail_at, crash_at, hang_at, nan_at, show_state, fail_load";
            let number = value.parse::<u64>();
            let number = number.map_err(|_| fault(&format!("{value:?} is not a whole number"), "write a number"));
            match key.as_str() {
                "delay_us" => options.delay = Duration::from_micros(number?),
                "sleep_us" => options.sleep = Duration::from_micros(number?),
                "load_delay_ms" => options.load_delay = Duration::from_millis(number?),
                "fail_at" => options.fail_at = number?,
                "crash_at" => options.crash_at = number?,
                "hang_at" => options.hang_at = number?,
                "nan_at" => options.nan_at = number?,
                _ => return Err(fault("is not known", known)),
            }
        }
        Ok(options)
    }
}

impl Backend for Echo {
    fn name(&self) -> &'static str {
        "echo"
    }

    fn version(&self) -> String {
        env!("CARGO_PKG_VERSION").to_owned()
    }

    fn load(
        &self,
        spec: &ModelSpec,
        _files: &mut dyn FileSource,
        _warn: &mut dyn FnMut(&str),
    ) -> Result<Box<dyn Model>, ModelError> {
        only_cpu_fp32(spec)?;
        let options = Options::parse(spec)?;
        let inputs = tensors(&spec.inputs, &spec.input_order, "inputs")?;
        let outputs = tensors(&spec.outputs, &spec.output_order, "outputs")?;
        let find = |tensors: &[TensorSpec], name: &str| tensors.iter().position(|t| t.name == name);
        let shown = spec.options.get("show_state");
        let (mut sources, mut visible) = (Vec::new(), 0);
        let plain: Vec<usize> =
            (0..inputs.len()).filter(|i| !spec.state.iter().any(|p| p.input == inputs[*i].name)).collect();
        for output in &outputs {
            let pair = spec.state.iter().find(|p| p.output == output.name);
            sources.push(match pair.and_then(|p| find(&inputs, &p.input)) {
                Some(input) => Source::Increment(input),
                None if shown == Some(&output.name) => {
                    let first = spec.state.first().and_then(|p| find(&inputs, &p.input));
                    first.map_or(Source::Zeros, Source::Copy)
                }
                None if plain.is_empty() => Source::Zeros,
                None => {
                    visible += 1;
                    Source::Copy(plain[(visible - 1) % plain.len()])
                }
            });
        }
        std::thread::sleep(options.load_delay);
        let buffers = |tensors: &[TensorSpec]| {
            tensors.iter().map(|t| AlignedBytes::zeroed(t.bytes() as usize)).collect::<Vec<_>>()
        };
        let (input_bytes, output_bytes) = (buffers(&inputs), buffers(&outputs));
        let misbehaves = Options { load_delay: Duration::ZERO, ..options } != Options::default();
        let (step, live) = (0, false);
        Ok(Box::new(EchoModel { inputs, outputs, input_bytes, output_bytes, sources, options, step, live, misbehaves }))
    }
}

/// The tensors that the manifest describes, in its order.
fn tensors(rules: &BTreeMap<String, TensorRules>, order: &[String], what: &str) -> Result<Vec<TensorSpec>, ModelError> {
    let fault = |name: &str, text: &str, remedy: &str| {
        ModelError::new(Fault::Manifest, format!("[{what}.{name}] in model.toml"), text, remedy)
    };
    let mut names: Vec<&String> = order.iter().collect();
    names.extend(rules.keys().filter(|name| !order.contains(name)));
    names
        .into_iter()
        .map(|name| {
            let rule = rules.get(name).ok_or_else(|| fault(name, "is named in the order only", "describe it"))?;
            let (Some(dtype), Some(shape)) = (rule.dtype, &rule.shape) else {
                return Err(fault(name, "lacks dtype or shape, and echo has no file that says them", "add both"));
            };
            let tensor = TensorSpec::new(name, dtype, shape);
            check_size(&tensor)?;
            Ok(tensor)
        })
        .collect()
}

/// Where an output's bytes come from.
enum Source {
    Copy(usize),
    Increment(usize),
    Zeros,
}

struct EchoModel {
    inputs: Vec<TensorSpec>,
    outputs: Vec<TensorSpec>,
    input_bytes: Vec<AlignedBytes>,
    output_bytes: Vec<AlignedBytes>,
    sources: Vec<Source>,
    options: Options,
    step: u64,
    live: bool,
    /// Something goes wrong on purpose, or takes its time.
    misbehaves: bool,
}

impl Model for EchoModel {
    fn inputs(&self) -> &[TensorSpec] {
        &self.inputs
    }

    fn outputs(&self) -> &[TensorSpec] {
        &self.outputs
    }

    fn input_mut(&mut self, i: usize) -> &mut [u8] {
        &mut self.input_bytes[i]
    }

    fn run(&mut self) -> Result<(), ModelError> {
        let misbehaves = self.live && self.misbehaves;
        if misbehaves {
            self.step += 1;
            self.misbehave()?;
        }
        for (k, source) in self.sources.iter().enumerate() {
            let to = &mut self.output_bytes[k];
            match source {
                Source::Copy(i) => repeat(&self.input_bytes[*i], to),
                Source::Increment(i) => increment(self.outputs[k].dtype, &self.input_bytes[*i], to),
                Source::Zeros => {}
            }
            if self.outputs[k].dtype == DType::Bool {
                to.iter_mut().for_each(|b| *b &= 1);
            }
        }
        if misbehaves && self.step == self.options.nan_at {
            self.outputs.iter().zip(&mut self.output_bytes).for_each(|(t, b)| fill_nan(t.dtype, b));
        }
        Ok(())
    }

    fn output(&self, i: usize) -> &[u8] {
        &self.output_bytes[i]
    }

    fn went_live(&mut self) {
        self.live = true;
    }
}

impl EchoModel {
    fn misbehave(&self) -> Result<(), ModelError> {
        let options = &self.options;
        if !options.sleep.is_zero() {
            std::thread::sleep(options.sleep);
        }
        if !options.delay.is_zero() {
            let start = Instant::now();
            while start.elapsed() < options.delay {
                std::hint::spin_loop();
            }
        }
        if self.step == options.crash_at {
            std::process::abort();
        }
        if self.step == options.hang_at {
            loop {
                std::hint::spin_loop();
            }
        }
        if self.step == options.fail_at {
            let remedy = "this failure was asked for by the option fail_at; remove it";
            return Err(ModelError::new(Fault::Run, format!("echo step {}", self.step), "failed", remedy));
        }
        Ok(())
    }
}

fn repeat(from: &[u8], to: &mut [u8]) {
    if from.len() == to.len() {
        to.copy_from_slice(from);
    } else if !from.is_empty() {
        to.chunks_mut(from.len()).for_each(|c| c.copy_from_slice(&from[..c.len()]));
    }
}

fn each<const N: usize>(from: &[u8], to: &mut [u8], f: impl Fn([u8; N]) -> [u8; N]) {
    to.as_chunks_mut::<N>().0.iter_mut().zip(from.as_chunks::<N>().0).for_each(|(to, from)| *to = f(*from));
}

/// `to = from + 1`, wrapping; of a bool, its negation.
fn increment(dtype: DType, from: &[u8], to: &mut [u8]) {
    match dtype {
        DType::F32 => each(from, to, |b| (f32::from_ne_bytes(b) + 1.0).to_ne_bytes()),
        DType::F64 => each(from, to, |b| (f64::from_ne_bytes(b) + 1.0).to_ne_bytes()),
        DType::F16 => each(from, to, |b| (f16::from_ne_bytes(b) + f16::ONE).to_ne_bytes()),
        DType::Bf16 => each(from, to, |b| (bf16::from_ne_bytes(b) + bf16::ONE).to_ne_bytes()),
        DType::I8 | DType::U8 => each(from, to, |b: [u8; 1]| [b[0].wrapping_add(1)]),
        DType::I16 | DType::U16 => each(from, to, |b| u16::from_ne_bytes(b).wrapping_add(1).to_ne_bytes()),
        DType::I32 | DType::U32 => each(from, to, |b| u32::from_ne_bytes(b).wrapping_add(1).to_ne_bytes()),
        DType::I64 | DType::U64 => each(from, to, |b| u64::from_ne_bytes(b).wrapping_add(1).to_ne_bytes()),
        DType::Bool => each(from, to, |b: [u8; 1]| [b[0] ^ 1]),
    }
}

fn fill_nan(dtype: DType, bytes: &mut [u8]) {
    match dtype {
        DType::F32 => bytes.as_chunks_mut().0.fill(f32::NAN.to_ne_bytes()),
        DType::F64 => bytes.as_chunks_mut().0.fill(f64::NAN.to_ne_bytes()),
        DType::F16 => bytes.as_chunks_mut().0.fill(f16::NAN.to_ne_bytes()),
        DType::Bf16 => bytes.as_chunks_mut().0.fill(bf16::NAN.to_ne_bytes()),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::Memory;
    use crate::testing::spec::{echo_spec, tensor};

    fn load(spec: &ModelSpec) -> Result<Box<dyn Model>, ModelError> {
        Echo.load(spec, &mut Memory::default(), &mut |_| {})
    }

    #[test]
    fn outputs_repeat_or_truncate_their_input_and_state_counts_up() {
        let mut spec = echo_spec(
            &[tensor("a", DType::U8, &[3]), tensor("h", DType::I32, &[2])],
            &[tensor("h2", DType::I32, &[2]), tensor("long", DType::U8, &[7]), tensor("short", DType::U8, &[2])],
        );
        spec.state.push(inferd_ipc::worker_records::StatePair { input: "h".into(), output: "h2".into() });
        let mut model = load(&spec).expect("loads");
        model.input_mut(0).copy_from_slice(&[1, 2, 3]);
        model.run().expect("runs");
        assert_eq!(model.output(0), [1, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(model.output(1), [1, 2, 3, 1, 2, 3, 1]);
        assert_eq!(model.output(2), [1, 2]);
    }

    #[test]
    fn every_dtype_increments() {
        for dtype in DType::ALL {
            let mut to = [9; 8];
            increment(dtype, &[0; 8], &mut to);
            assert_ne!(to, [0; 8], "{dtype}");
        }
    }

    #[test]
    fn faults_happen_at_their_step_and_only_once_the_model_is_live() {
        let mut spec = echo_spec(&[tensor("a", DType::F32, &[1])], &[tensor("b", DType::F32, &[1])]);
        spec.options.insert("fail_at".into(), "2".into());
        spec.options.insert("nan_at".into(), "3".into());
        let mut model = load(&spec).expect("loads");
        for _ in 0..5 {
            model.run().expect("before it is live nothing fails");
        }
        model.went_live();
        assert!(model.run().is_ok());
        assert_eq!(model.run().expect_err("the second step fails").fault, Fault::Run);
        model.run().expect("runs again");
        assert!(f32::from_ne_bytes(model.output(0).try_into().expect("4 bytes")).is_nan());
    }

    #[test]
    fn bad_options_and_missing_shapes_are_named() {
        let mut spec = echo_spec(&[tensor("a", DType::F32, &[1])], &[]);
        spec.options.insert("fial_at".into(), "2".into());
        let error = load(&spec).err().expect("refused").to_string();
        assert!(error.contains("fial_at") && error.contains("fail_at"), "{error}");
        let mut spec = echo_spec(&[tensor("a", DType::F32, &[1])], &[]);
        spec.inputs.get_mut("a").expect("there").shape = None;
        let error = load(&spec).err().expect("refused").to_string();
        assert!(error.contains("[inputs.a]"), "{error}");
    }
}
