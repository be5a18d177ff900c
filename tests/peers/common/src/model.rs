//! What is behind a Rust peer's server: an echo, or the policy in tract, loaded and run by inferd's own worker library.
//!
//! The same code as in inferd's worker runs the policy, its checks of inputs and outputs included: what differs between the
//! rows is the way there and back. A transport fills [`Model::input`], as inferd's worker does, and sends what
//! [`Model::run`] returns.

use crate::{Failure, Row};
use inferd_ipc::sys::flush_denormals_to_zero;
use inferd_worker::Policy;
use inferd_worker::files::Folder;
use inferd_worker::testing::spec::spec;
use std::path::Path;

/// The model of a row.
pub enum Model {
    /// Answers with the first bytes of the input.
    Echo {
        /// The input.
        input: Vec<u8>,
        /// How many bytes of it are the answer.
        reply_bytes: usize,
    },
    /// A policy with one input and one output.
    Policy(Box<Policy>),
}

impl Model {
    /// Loads it.
    ///
    /// # Errors
    /// Whatever keeps the policy from being loaded.
    pub fn of(row: Row, policy: &str) -> Result<Model, Failure> {
        if let Some((input, reply_bytes)) = row.echo_bytes() {
            return Ok(Model::Echo { input: vec![0; input], reply_bytes });
        }
        let file = Path::new(policy);
        let spec = spec("tract", &file.file_name().unwrap_or_default().to_string_lossy());
        let (policy, _) = Policy::load(&spec, &mut Folder::of(file), &mut |_| ()).map_err(|e| e.to_string())?;
        Ok(Model::Policy(Box::new(policy)))
    }

    /// Bytes of a request and of a reply.
    #[must_use]
    pub fn bytes(&self) -> (usize, usize) {
        match self {
            Model::Echo { input, reply_bytes } => (input.len(), *reply_bytes),
            Model::Policy(policy) => {
                let signature = policy.signature();
                (signature.inputs[0].bytes() as usize, signature.outputs[0].bytes() as usize)
            }
        }
    }

    /// To be filled with the observation before each run.
    pub fn input(&mut self) -> &mut [u8] {
        match self {
            Model::Echo { input, .. } => input,
            Model::Policy(policy) => policy.input_mut(0),
        }
    }

    /// Runs it; the action.
    ///
    /// # Errors
    /// When the policy refuses its input or fails.
    pub fn run(&mut self) -> Result<&[u8], Failure> {
        match self {
            Model::Echo { input, reply_bytes } => Ok(&input[..*reply_bytes]),
            Model::Policy(policy) => {
                // As inferd's executor does once: here whichever thread serves. Two instructions.
                flush_denormals_to_zero();
                policy.check_inputs().map_err(|e| format!("{e:?}"))?;
                policy.run().map_err(|e| e.to_string())?;
                Ok(policy.output(0))
            }
        }
    }
}
