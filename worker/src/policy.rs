//! A model together with everything its manifest says: what the executor runs, once per step.
//!
//! Loading ([`Policy::load`]) fixes the signature that clients see, and proves the model: rules checked
//! against the file, golden pairs reproduced, warm. A step is: fill [`Policy::input_mut`] and
//! [`Policy::state_in_mut`], [`Policy::check_inputs`], [`Policy::run`], then read outputs and states.
//! Every one of them has to be filled for every step, for conditioning works in place. Steps allocate
//! nothing of ours on the good path. Whose state it is, and when a step commits, is the executor's.

use crate::backend::{self, DeviceTimes, Model};
use crate::conditioning::{Affine, RejectReason, Rejected, first_non_finite, first_not_bool};
use crate::contain::contain;
use crate::files::FileSource;
use crate::guard::Guard;
use crate::{ModelError, binding, golden, warm_up};
use inferd_ipc::record::RecordLayout;
use inferd_ipc::signature::{DType, Signature, TensorSpec};
use inferd_ipc::worker_records::{Loaded, ModelSpec};
use std::time::Instant;

/// One input that clients fill.
pub(crate) struct InputPort {
    /// Index in the model.
    pub(crate) model_input: usize,
    pub(crate) dtype: DType,
    pub(crate) allow_non_finite: bool,
    pub(crate) affine: Affine,
}

/// One output that clients read.
pub(crate) struct OutputPort {
    /// Index in the model.
    pub(crate) model_output: usize,
    pub(crate) guard: Guard,
}

/// One recurrent state pair.
pub(crate) struct StatePort {
    pub(crate) model_input: usize,
    pub(crate) model_output: usize,
    pub(crate) guard: Guard,
}

/// Everything about the tensors that is settled at load time.
pub(crate) struct Ports {
    pub(crate) signature: Signature,
    pub(crate) inputs: Vec<InputPort>,
    pub(crate) outputs: Vec<OutputPort>,
    pub(crate) states: Vec<StatePort>,
    /// Offset of each state tensor within one half of the state region.
    pub(crate) state_offsets: Vec<u64>,
    /// Bytes of one half.
    pub(crate) state_bytes: u64,
    /// Names, dtypes and shapes of the state tensors.
    pub(crate) state_layout: String,
}

/// A loaded, checked and warm model.
pub struct Policy {
    model: Box<dyn Model>,
    ports: Ports,
    place: String,
    /// What the warm-up filled inputs with.
    probe: f32,
}

impl Policy {
    /// Loads, checks and warms up. `progress` hears `loading`, `checking`, `warming`, and whatever the
    /// backend wants said about a degraded load (`warning: ...`).
    ///
    /// # Errors
    /// Whatever keeps this model from being served; nothing is left behind.
    pub fn load(
        spec: &ModelSpec,
        files: &mut dyn FileSource,
        progress: &mut dyn FnMut(&str),
    ) -> Result<(Policy, Loaded), ModelError> {
        Policy::load_from(spec, files, &[], progress)
    }

    /// Like [`Policy::load`], with backends of the caller's own, which go before those of this crate.
    ///
    /// # Errors
    /// As [`Policy::load`].
    pub fn load_from(
        spec: &ModelSpec,
        files: &mut dyn FileSource,
        own: &[&dyn backend::Backend],
        progress: &mut dyn FnMut(&str),
    ) -> Result<(Policy, Loaded), ModelError> {
        match own.iter().find(|b| b.name() == spec.backend) {
            Some(backend) => Policy::load_by(*backend, spec, files, progress),
            None => Policy::load_by(&*backend::by_name(&spec.backend)?, spec, files, progress),
        }
    }

    /// Like [`Policy::load`], by this backend, whatever the spec says.
    ///
    /// # Errors
    /// As [`Policy::load`].
    pub fn load_by(
        backend: &dyn backend::Backend,
        spec: &ModelSpec,
        files: &mut dyn FileSource,
        progress: &mut dyn FnMut(&str),
    ) -> Result<(Policy, Loaded), ModelError> {
        let (mut policy, loaded) = Policy::warm_by(backend, spec, files, progress)?;
        policy.go_live();
        Ok((policy, loaded))
    }

    /// Like [`Policy::load_by`], but for the last step: [`Policy::warm_again`] may follow, and [`Policy::go_live`] must.
    ///
    /// # Errors
    /// As [`Policy::load`].
    pub fn warm_by(
        backend: &dyn backend::Backend,
        spec: &ModelSpec,
        files: &mut dyn FileSource,
        progress: &mut dyn FnMut(&str),
    ) -> Result<(Policy, Loaded), ModelError> {
        let start = Instant::now();
        progress("loading");
        let place = format!("model {:?}, file {:?}", spec.model, spec.file);
        let model = contain(&place, || backend.load(spec, files, &mut |w| progress(&format!("warning: {w}"))))?;
        // A library that is opened at run time has a version once it is open.
        let version = format!("{} {}", backend.name(), backend.version());
        progress("checking");
        let ports = binding::bind(spec, model.inputs(), model.outputs(), model.hidden_state())?;
        let load_us = micros(start);
        let mut policy = Policy { model, ports, place, probe: 0.0 };
        let golden_difference_max = golden::check(&mut policy, spec, files)?;
        progress("warming");
        let warm = warm_up::warm_up(&mut policy, spec.warm_up_runs, golden_difference_max.is_some())?;
        policy.probe = warm.probe;
        let loaded = Loaded {
            signature: policy.ports.signature.clone(),
            state_bytes: policy.ports.state_bytes,
            state_layout: policy.ports.state_layout.clone(),
            record_layout: policy.record_layout(),
            backend: version,
            load_us,
            warm_up_us: u64::try_from(warm.elapsed.as_micros()).unwrap_or(u64::MAX),
            warm_up_runs: warm.runs,
            run_us_p50: warm.run_us_p50,
            golden_difference_max,
        };
        Ok((policy, loaded))
    }

    /// Runs a warm model a few times more, under what its worker has given up meanwhile.
    ///
    /// # Errors
    /// What the model says; it ran before.
    pub fn warm_again(&mut self) -> Result<(), ModelError> {
        warm_up::warm_again(self, self.probe)
    }

    /// From here on every run is a session's step.
    pub fn go_live(&mut self) {
        self.model.went_live();
    }

    /// What clients see.
    #[must_use]
    pub fn signature(&self) -> &Signature {
        &self.ports.signature
    }

    /// The buffer of client input `i`, to be filled before each step.
    pub fn input_mut(&mut self, i: usize) -> &mut [u8] {
        self.model.input_mut(self.ports.inputs[i].model_input)
    }

    /// The buffer of state tensor `k`, to be filled before each step with what [`Policy::state_out`] gave after the
    /// session's last committed step; [`Policy::reset_state`] fills it for the first one.
    pub fn state_in_mut(&mut self, k: usize) -> &mut [u8] {
        self.model.input_mut(self.ports.states[k].model_input)
    }

    /// Fills state tensor `k` with what a session begins with: what the model says of it, else zeros.
    pub fn reset_state(&mut self, k: usize) {
        let input = self.ports.states[k].model_input;
        // The buffer and the value lie in one model; the value is as short as state is, and a reset is rare.
        match self.model.reset_value(input).map(<[u8]>::to_vec) {
            Some(value) => self.model.input_mut(input).copy_from_slice(&value),
            None => self.model.input_mut(input).fill(0),
        }
    }

    /// How long the last run's stages took, where the model runs on a device of its own.
    #[must_use]
    pub fn device_times(&self) -> Option<DeviceTimes> {
        self.model.device_times()
    }

    /// Offset of each state tensor within one half of the state region; empty for a stateless model.
    #[must_use]
    pub fn state_offsets(&self) -> &[u64] {
        &self.ports.state_offsets
    }

    /// Bytes of one half of the state region; 0 for a stateless model.
    #[must_use]
    pub fn state_bytes(&self) -> u64 {
        self.ports.state_bytes
    }

    /// What a record region holds of each step.
    #[must_use]
    pub fn record_layout(&self) -> RecordLayout {
        let states: Vec<TensorSpec> =
            self.ports.states.iter().map(|s| self.model.inputs()[s.model_input].clone()).collect();
        RecordLayout::new(&self.ports.signature, &states)
    }

    /// Finite check, clip and normalisation of every client input, in place. All inputs are checked
    /// before any is changed.
    ///
    /// # Errors
    /// [`Rejected`] names the first offending element; the step must not run.
    pub fn check_inputs(&mut self) -> Result<(), Rejected> {
        let Policy { model, ports, .. } = self;
        for (input, port) in ports.inputs.iter().enumerate() {
            let bytes = model.input_mut(port.model_input);
            if port.dtype == DType::Bool {
                if let Some(element) = first_not_bool(bytes) {
                    // A byte that is no bool must not reach typed code, whatever the caller does next.
                    bytes.fill(0);
                    return Err(Rejected { input, element, reason: RejectReason::NotABool });
                }
            } else if !port.allow_non_finite
                && let Some(element) = first_non_finite(port.dtype, bytes)
            {
                return Err(Rejected { input, element, reason: RejectReason::NonFinite });
            }
        }
        for port in ports.inputs.iter().filter(|p| !p.affine.is_nothing()) {
            port.affine.apply(model.input_mut(port.model_input));
        }
        Ok(())
    }

    /// Runs the model and guards its outputs and states.
    ///
    /// # Errors
    /// What the backend raised (a panic too), or which output the guard refused. Nothing of this step
    /// may be used then; the next one works.
    pub fn run(&mut self) -> Result<(), ModelError> {
        let Policy { model, ports, place, .. } = self;
        contain(place, || model.run())?;
        for port in &mut ports.outputs {
            port.guard.check(model.output(port.model_output))?;
        }
        for port in &mut ports.states {
            port.guard.check(model.output(port.model_output))?;
        }
        Ok(())
    }

    /// Client output `i` of the last successful run.
    #[must_use]
    pub fn output(&self, i: usize) -> &[u8] {
        let port = &self.ports.outputs[i];
        port.guard.changed().unwrap_or_else(|| self.model.output(port.model_output))
    }

    /// State tensor `k` after the last successful run: the input of the session's next step.
    #[must_use]
    pub fn state_out(&self, k: usize) -> &[u8] {
        self.model.output(self.ports.states[k].model_output)
    }

    /// The state outputs, in the order of the state tensors.
    pub(crate) fn state_outputs(&self) -> impl Iterator<Item = &TensorSpec> {
        self.ports.states.iter().map(|s| &self.model.outputs()[s.model_output])
    }

    /// Copies every state output to its input: one session that runs alone.
    pub(crate) fn feed_state_back(&mut self) {
        let Policy { model, ports, .. } = self;
        // Two inputs may take what two outputs give crosswise: all outputs stay valid until the next run.
        let mut copy = Vec::new();
        for port in &ports.states {
            copy.clear();
            copy.extend_from_slice(model.output(port.model_output));
            model.input_mut(port.model_input).copy_from_slice(&copy);
        }
    }
}

fn micros(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX)
}
