//! A loaded module as the executor runs it.
//!
//! Inputs and outputs of the method come first, in the manifest's order; then hidden state, a pair for each attribute, so
//! that the session's state region holds it after every step and nothing else has to know. A CUDA error that sticks ends
//! the process: no run of it would work again, and the supervisor starts another.

use crate::module::Module;
use inferd_ipc::signature::TensorSpec;
use inferd_worker::backend::{DeviceTimes, HiddenState, Model};
use inferd_worker::{Fault, ModelError};

/// A model.
pub struct TorchModel {
    pub module: Module,
    /// The method's inputs, then hidden state.
    pub inputs: Vec<TensorSpec>,
    /// The outputs that are served, then hidden state.
    pub outputs: Vec<TensorSpec>,
    /// Where each served output stands in what the method returns.
    pub order: Vec<usize>,
    pub hidden: Vec<HiddenState>,
    /// The reset value of each hidden state.
    pub reset: Vec<Vec<u8>>,
    /// For messages.
    pub place: String,
}

impl TorchModel {
    fn visible_inputs(&self) -> usize {
        self.inputs.len() - self.hidden.len()
    }
}

impl Model for TorchModel {
    fn inputs(&self) -> &[TensorSpec] {
        &self.inputs
    }

    fn outputs(&self) -> &[TensorSpec] {
        &self.outputs
    }

    fn input_mut(&mut self, i: usize) -> &mut [u8] {
        match i.checked_sub(self.visible_inputs()) {
            Some(k) => self.module.hidden_in_mut(k),
            None => self.module.input_mut(i),
        }
    }

    fn run(&mut self) -> Result<(), ModelError> {
        self.module.run().map_err(|what| {
            if !self.module.device_works() {
                eprintln!("inferd-worker-torch: {}: {what}; the device answers no more, this worker ends", self.place);
                std::process::abort();
            }
            let remedy = "the message is the model's own: correct it there, or what the clients send";
            ModelError::new(Fault::Run, self.place.clone(), what, remedy)
        })
    }

    fn output(&self, i: usize) -> &[u8] {
        match self.order.get(i) {
            Some(at) => self.module.output(*at),
            None => self.module.hidden_out(i - self.order.len()),
        }
    }

    fn hidden_state(&self) -> &[HiddenState] {
        &self.hidden
    }

    fn reset_value(&self, input: usize) -> Option<&[u8]> {
        self.reset.get(input.checked_sub(self.visible_inputs())?).map(Vec::as_slice)
    }

    fn device_times(&self) -> Option<DeviceTimes> {
        let [to_device_ns, on_device_ns, from_device_ns] = self.module.times()?;
        Some(DeviceTimes { to_device_ns, on_device_ns, from_device_ns })
    }
}
