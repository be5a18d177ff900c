//! The backend's options, as configuration and manifest give them.
//!
//! `providers` is a list in order of preference; options of a provider are handed on as `PROVIDER.KEY`. What is asked for
//! and cannot be had is refused: a policy that quietly runs on another device is slow, and nobody knows why.

use inferd_ipc::limits::STEP_THREADS_MAX;
use inferd_ipc::worker_records::{Device, ModelSpec, Precision};
use inferd_worker::{Fault, ModelError};
use ort::ep::{ArbitrarilyConfigurableExecutionProvider, CUDA, ExecutionProvider, TensorRT, XNNPACK};
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};

/// An execution provider besides the CPU's, which is always the last resort for single operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Provider {
    Cuda,
    TensorRt,
    Xnnpack,
}

impl Provider {
    const ALL: [Provider; 3] = [Provider::Cuda, Provider::TensorRt, Provider::Xnnpack];

    /// Its name in options.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Provider::Cuda => "cuda",
            Provider::TensorRt => "tensorrt",
            Provider::Xnnpack => "xnnpack",
        }
    }

    /// Whether it computes on the CPU, in buffers of ours.
    pub(crate) fn is_cpu(self) -> bool {
        self == Provider::Xnnpack
    }
}

/// What the options say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) library: Option<String>,
    /// In order of preference, each with its own options.
    pub(crate) providers: Vec<(Provider, Vec<(String, String)>)>,
    /// Threads of one step.
    pub(crate) threads: usize,
    pub(crate) optimise: GraphOptimizationLevel,
    /// A pool of scratch memory that grows to the model's need, instead of malloc at every step.
    pub(crate) arena: bool,
    /// One block for all inner tensors, planned at the first run.
    pub(crate) memory_pattern: bool,
}

impl Default for Options {
    /// One thread; else ONNX Runtime's own. `cargo bench --bench onnx -- settings` measures the others.
    fn default() -> Options {
        Options {
            library: None,
            providers: Vec::new(),
            threads: 1,
            optimise: GraphOptimizationLevel::All,
            arena: true,
            memory_pattern: true,
        }
    }
}

impl Options {
    pub(crate) fn of(spec: &ModelSpec) -> Result<Options, ModelError> {
        let mut options = Options::default();
        // Options of a provider may come before the list in the order of names.
        if let Some(list) = spec.options.get("providers") {
            for name in list.split(',').map(str::trim).filter(|n| !n.is_empty() && *n != "cpu") {
                let provider = Provider::ALL.into_iter().find(|p| p.name() == name);
                let remedy =
                    "ort knows providers = \"cpu\", \"cuda\", \"tensorrt\", \"xnnpack\", or a list with commas";
                let provider = provider.ok_or_else(|| bad(spec, "providers", list, remedy))?;
                if options.providers.iter().any(|(p, _)| *p == provider) {
                    return Err(bad(spec, "providers", list, "name each provider once"));
                }
                options.providers.push((provider, Vec::new()));
            }
        }
        if let Device::Cuda(number) = spec.device {
            let cuda = (Provider::Cuda, vec![("device_id".to_owned(), number.to_string())]);
            match options.providers.iter_mut().find(|(p, _)| *p == Provider::Cuda) {
                Some(listed) => *listed = cuda,
                None => options.providers.push(cuda),
            }
        }
        if spec.precision != Precision::Fp32 {
            let place = format!("precision = {:?} of model {}", spec.precision.name(), spec.model);
            let remedy = "remove it, and export the model in that precision";
            return Err(ModelError::new(Fault::Unsupported, place, "ort computes in what the file says", remedy));
        }
        for (key, value) in &spec.options {
            let truth = || match value.as_str() {
                "true" => Ok(true),
                "false" => Ok(false),
                _ => Err(bad(spec, key, value, "give true or false")),
            };
            match key.as_str() {
                "providers" => {}
                "library" if value.starts_with('/') => options.library = Some(value.clone()),
                "library" => return Err(bad(spec, key, value, "give the absolute path of libonnxruntime.so")),
                "threads" => {
                    let threads = value.parse().ok().filter(|n| (1..=STEP_THREADS_MAX).contains(n));
                    let remedy = format!("give a number from 1 to {STEP_THREADS_MAX}");
                    options.threads = threads.ok_or_else(|| bad(spec, key, value, &remedy))?;
                }
                "optimise" => {
                    options.optimise = match value.as_str() {
                        "all" | "true" => GraphOptimizationLevel::All,
                        "extended" => GraphOptimizationLevel::Level2,
                        "basic" => GraphOptimizationLevel::Level1,
                        "none" | "false" => GraphOptimizationLevel::Disable,
                        _ => return Err(bad(spec, key, value, "give all, extended, basic or none")),
                    }
                }
                "arena" => options.arena = truth()?,
                "memory_pattern" => options.memory_pattern = truth()?,
                _ => {
                    let (provider, inner) = key.split_once('.').unwrap_or_default();
                    let listed = options.providers.iter_mut().find(|(p, _)| p.name() == provider);
                    let remedy = "ort knows providers, library, threads, optimise, arena, memory_pattern, and \
                                  PROVIDER.KEY for a provider that is listed in providers";
                    let (_, own) = listed.ok_or_else(|| bad(spec, key, value, remedy))?;
                    if [inner, value].iter().any(|t| t.contains('\0')) {
                        return Err(bad(spec, key, value, "remove the zero byte"));
                    }
                    own.push((inner.to_owned(), value.clone()));
                }
            }
        }
        Ok(options)
    }

    /// Whether every kernel computes in memory of the CPU.
    pub(crate) fn is_cpu(&self) -> bool {
        self.providers.iter().all(|(p, _)| p.is_cpu())
    }

    /// Adds the providers to a session's options.
    pub(crate) fn register(&self, builder: &mut SessionBuilder, library: &str) -> Result<(), ModelError> {
        for (provider, own) in &self.providers {
            let registered = match provider {
                Provider::Cuda => add(CUDA::default(), own, builder),
                Provider::TensorRt => add(TensorRT::default(), own, builder),
                Provider::Xnnpack => add(XNNPACK::default(), own, builder),
            };
            registered.map_err(|why| {
                let place = format!("provider {:?} of ONNX Runtime, library {library}", provider.name());
                let what = why.unwrap_or_else(|| "is not in this library".to_owned());
                let remedy = "install a build of ONNX Runtime that has it (the wheel onnxruntime-gpu has cuda and tensorrt) \
                              with the libraries that it needs, and name it in ORT_DYLIB_PATH or the option library; or \
                              remove the provider from providers";
                ModelError::new(Fault::Unsupported, place, what, remedy)
            })?;
        }
        Ok(())
    }
}

/// `None` for a provider that the library was built without.
fn add<P: ExecutionProvider + ArbitrarilyConfigurableExecutionProvider>(
    mut provider: P,
    own: &[(String, String)],
    builder: &mut SessionBuilder,
) -> Result<(), Option<String>> {
    if !P::is_available().map_err(|e| Some(e.message().to_owned()))? {
        return Err(None);
    }
    for (key, value) in own {
        provider = provider.with_arbitrary_config(key, value);
    }
    provider.register(builder).map_err(|e| Some(format!("cannot be used: {}", e.message())))
}

#[cold]
fn bad(spec: &ModelSpec, key: &str, value: &str, remedy: &str) -> ModelError {
    let place = format!("option {key:?} = {value:?} of model {}", spec.model);
    ModelError::new(Fault::Manifest, place, "is not known", remedy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use inferd_worker::testing::spec::spec;

    fn of(pairs: &[(&str, &str)]) -> Result<Options, String> {
        let mut spec = spec("ort", "a.onnx");
        spec.options = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Options::of(&spec).map_err(|e| e.to_string())
    }

    #[test]
    fn providers_keep_their_order_and_get_their_own_options() {
        let options = of(&[("providers", "tensorrt, cuda, cpu"), ("cuda.device_id", "1"), ("threads", "2")]);
        let options = options.expect("all known");
        let cuda = (Provider::Cuda, vec![("device_id".to_owned(), "1".to_owned())]);
        assert_eq!(options.providers, [(Provider::TensorRt, vec![]), cuda]);
        assert_eq!((options.threads, options.is_cpu()), (2, false));
        assert!(of(&[("providers", "xnnpack")]).expect("known").is_cpu());
        assert_eq!(of(&[("providers", "cpu")]), Ok(Options::default()));
    }

    #[test]
    fn a_device_is_the_cuda_provider_of_that_number_and_a_precision_is_the_file_s() {
        let mut spec = spec("ort", "a.onnx");
        spec.device = Device::Cuda(2);
        let cuda = (Provider::Cuda, vec![("device_id".to_owned(), "2".to_owned())]);
        assert_eq!(Options::of(&spec).expect("known").providers, std::slice::from_ref(&cuda));
        spec.options.insert("providers".into(), "tensorrt,cuda".into());
        assert_eq!(Options::of(&spec).expect("known").providers, [(Provider::TensorRt, vec![]), cuda]);
        spec.precision = Precision::Fp16;
        assert!(Options::of(&spec).expect_err("not ours").to_string().contains("fp16"));
    }

    #[test]
    fn what_is_not_known_is_refused_with_what_is() {
        for (pairs, word) in [
            (&[("optimize", "all")][..], "optimise"),
            (&[("optimise", "fast")], "extended"),
            (&[("threads", "0")], "1 to 64"),
            (&[("threads", "65")], "1 to 64"),
            (&[("arena", "yes")], "true or false"),
            (&[("library", "lib.so")], "absolute"),
            (&[("providers", "gpu")], "tensorrt"),
            (&[("providers", "cuda,cuda")], "once"),
            (&[("cuda.device_id", "0")], "listed in providers"),
            (&[("providers", "cuda"), ("cuda.device_id", "0\0")], "zero byte"),
        ] {
            let error = of(pairs).expect_err("not known");
            assert!(error.contains(word), "{word:?} is missing in: {error}");
        }
    }
}
