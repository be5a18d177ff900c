//! The backend's options, as text from configuration and manifest.

use inferd_ipc::worker_records::ModelSpec;
use inferd_worker::{Fault, ModelError};

/// Which form of the module serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Optimise {
    /// The fastest that computes the same.
    #[default]
    Auto,
    /// As loaded.
    No,
    /// Frozen.
    Freeze,
    /// Frozen and optimised for inference.
    Inference,
}

/// All options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The method that a step calls.
    pub method: String,
    /// The method that brings hidden state to its reset value; none: the value as loaded.
    pub reset_method: Option<String>,
    /// Attributes that are hidden state, beside those that a run was seen to change.
    pub state: Vec<String>,
    /// Which form serves.
    pub optimise: Optimise,
}

const KNOWN: &str = "torch knows method, reset_method, state (attributes, separated by commas) and optimise = \"auto\", \"none\", \"freeze\" or \"inference\"";

impl Options {
    /// Reads them.
    ///
    /// # Errors
    /// [`Fault::Manifest`] names the option that is not known.
    pub fn parse(spec: &ModelSpec) -> Result<Options, ModelError> {
        let mut options =
            Options { method: "forward".into(), reset_method: None, state: Vec::new(), optimise: Optimise::Auto };
        for (key, value) in &spec.options {
            match (key.as_str(), value.as_str()) {
                ("method", name) if !name.is_empty() => options.method = name.to_owned(),
                ("reset_method", name) if !name.is_empty() => options.reset_method = Some(name.to_owned()),
                ("state", names) => {
                    options.state = names.split(',').map(|n| n.trim().to_owned()).filter(|n| !n.is_empty()).collect();
                }
                ("optimise", "auto") => options.optimise = Optimise::Auto,
                ("optimise", "none") => options.optimise = Optimise::No,
                ("optimise", "freeze") => options.optimise = Optimise::Freeze,
                ("optimise", "inference") => options.optimise = Optimise::Inference,
                _ => {
                    let place = format!("option {key:?} = {value:?} of model {}", spec.model);
                    return Err(ModelError::new(Fault::Manifest, place, "is not known", KNOWN));
                }
            }
        }
        Ok(options)
    }
}
