//! Trying a module: probes of its inputs, and which of its forms serves.
//!
//! A form is taken only if it gives what the module as loaded gives, outputs and hidden state, over a run of several
//! steps from the reset value, and only if it is faster. A form's time is its shortest run, which what else the machine
//! does disturbs least; the first calls of TorchScript compile, and are no measure.

use crate::module::{Form, Module};
use crate::options::Optimise;
use half::{bf16, f16};
use inferd_ipc::limits::{TRIAL_MS, TRIAL_RUNS_FIRST, TRIAL_RUNS_MAX, TRIAL_RUNS_MIN};
use inferd_ipc::signature::{DType, TensorSpec};
use inferd_worker::golden::element;
use std::time::{Duration, Instant};

/// A form has to be this much faster than the module as loaded, in percent.
const FASTER_PERCENT: u128 = 3;

/// Values to try a module with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// The same number everywhere, in halves.
    Halves(u8),
    /// Numbers between -1 and 1, of this seed; 0 and 1 where the dtype has no others.
    Noise(u64),
}

/// All probes, the plainest first.
pub const PROBES: [Probe; 6] =
    [Probe::Halves(0), Probe::Halves(2), Probe::Halves(1), Probe::Noise(1), Probe::Noise(2), Probe::Noise(3)];

/// A pseudo-random number of the seed and the place (splitmix64).
fn mix(seed: u64) -> u64 {
    let x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Probe {
    fn real(self, i: usize) -> f32 {
        match self {
            Probe::Halves(halves) => f32::from(halves) / 2.0,
            Probe::Noise(seed) => (mix(seed ^ ((i as u64) << 20)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0,
        }
    }

    fn whole(self, i: usize) -> u8 {
        match self {
            Probe::Halves(halves) => halves / 2,
            Probe::Noise(seed) => (mix(seed ^ ((i as u64) << 20)) & 1) as u8,
        }
    }

    /// Fills a tensor.
    pub fn fill(self, dtype: DType, bytes: &mut [u8]) {
        let size = dtype.size_bytes();
        for (i, to) in bytes.chunks_exact_mut(size).enumerate() {
            match dtype {
                DType::F32 => to.copy_from_slice(&self.real(i).to_ne_bytes()),
                DType::F64 => to.copy_from_slice(&f64::from(self.real(i)).to_ne_bytes()),
                DType::F16 => to.copy_from_slice(&f16::from_f32(self.real(i)).to_ne_bytes()),
                DType::Bf16 => to.copy_from_slice(&bf16::from_f32(self.real(i)).to_ne_bytes()),
                _ => {
                    let number = u64::from(self.whole(i)).to_ne_bytes();
                    let from = if cfg!(target_endian = "big") { 8 - size } else { 0 };
                    to.copy_from_slice(&number[from..from + size]);
                }
            }
        }
    }
}

/// A module with what is known of it.
pub struct Trial<'a> {
    pub module: &'a mut Module,
    pub inputs: &'a [TensorSpec],
    pub outputs: &'a [TensorSpec],
    pub hidden: &'a [TensorSpec],
    pub reset: &'a [Vec<u8>],
    /// Probes that the module answers.
    pub probes: &'a [Probe],
    /// Largest difference, absolute and relative to the value.
    pub tolerance: f64,
}

impl Trial<'_> {
    /// Puts the reset value in.
    pub fn reset(&mut self) {
        for (k, value) in self.reset.iter().enumerate() {
            self.module.hidden_in_mut(k).copy_from_slice(value);
        }
    }

    fn step(&mut self, probe: Probe) -> Result<(), String> {
        for (i, input) in self.inputs.iter().enumerate() {
            probe.fill(input.dtype, self.module.input_mut(i));
        }
        self.module.run()
    }

    fn feed_back(&mut self) {
        for k in 0..self.hidden.len() {
            let value = self.module.hidden_out(k).to_vec();
            self.module.hidden_in_mut(k).copy_from_slice(&value);
        }
    }

    /// Outputs and hidden state of every step over all probes, from the reset value.
    pub fn trajectory(&mut self) -> Result<Vec<Vec<u8>>, String> {
        let mut all = Vec::new();
        self.reset();
        self.module.seed(0);
        for probe in self.probes.iter().chain(self.probes) {
            self.step(*probe)?;
            all.extend((0..self.outputs.len()).map(|i| self.module.output(i).to_vec()));
            all.extend((0..self.hidden.len()).map(|k| self.module.hidden_out(k).to_vec()));
            self.feed_back();
        }
        Ok(all)
    }

    /// Where two trajectories first differ by more than the tolerance, as a sentence.
    pub fn difference(&self, got: &[Vec<u8>], want: &[Vec<u8>]) -> Option<String> {
        let tensors: Vec<&TensorSpec> = self.outputs.iter().chain(self.hidden).collect();
        for (step, (got, want)) in got.iter().zip(want).enumerate() {
            let tensor = tensors[step % tensors.len()];
            for i in 0..want.len() / tensor.dtype.size_bytes() {
                let (a, b) = (element(tensor.dtype, got, i), element(tensor.dtype, want, i));
                let near = a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= self.tolerance * (1.0 + b.abs());
                if !near {
                    return Some(format!("{} element {i} is {a} in place of {b}", tensor.name));
                }
            }
        }
        None
    }

    /// The shortest run of the form in use, in nanoseconds.
    fn shortest(&mut self) -> Result<u128, String> {
        let probe = self.probes[self.probes.len() - 1];
        let (start, mut shortest) = (Instant::now(), u128::MAX);
        for run in 0..TRIAL_RUNS_MAX {
            if run >= TRIAL_RUNS_MIN && start.elapsed() >= Duration::from_millis(TRIAL_MS) {
                break;
            }
            self.reset();
            let before = Instant::now();
            self.step(probe)?;
            if run >= TRIAL_RUNS_FIRST {
                shortest = shortest.min(before.elapsed().as_nanos());
            }
        }
        Ok(shortest)
    }

    /// Settles which form serves.
    ///
    /// # Errors
    /// The module as loaded fails, or the form that was asked for cannot be had.
    pub fn choose(&mut self, optimise: Optimise, warn: &mut dyn FnMut(&str)) -> Result<Form, String> {
        let wanted: &[Form] = match optimise {
            Optimise::No => &[],
            Optimise::Freeze => &[Form::Frozen],
            Optimise::Inference => &[Form::Optimised],
            Optimise::Auto => &[Form::Frozen, Form::Optimised],
        };
        let want = self.trajectory()?;
        let again = self.trajectory()?;
        if self.difference(&again, &want).is_some() {
            warn(
                "two runs from the same state with the same inputs differ: the model keeps state that inferd cannot see, or draws numbers of its own",
            );
        }
        let mut best = (Form::Loaded, if wanted.is_empty() { 0 } else { self.shortest()? });
        for form in wanted {
            let tried = self.attempt(*form, &want);
            match tried {
                Ok(Ok(shortest)) if optimise != Optimise::Auto || shortest * (100 + FASTER_PERCENT) < best.1 * 100 => {
                    best = (*form, shortest);
                }
                Ok(Ok(_)) => {}
                Ok(Err(what)) | Err(what) if optimise != Optimise::Auto => {
                    return Err(format!("the form that `optimise` asks for cannot be had: {what}"));
                }
                Ok(Err(what)) => warn(&format!("a faster form computes something else and is not used: {what}")),
                // What cannot be frozen is served as it was loaded: that is no fault.
                Err(_) => {}
            }
        }
        self.module.use_form(best.0);
        for form in [Form::Frozen, Form::Optimised] {
            self.module.drop_form(form);
        }
        self.reset();
        Ok(best.0)
    }

    /// The outer error: the form cannot be had. The inner one: it computes something else.
    #[allow(clippy::type_complexity)]
    fn attempt(&mut self, form: Form, want: &[Vec<u8>]) -> Result<Result<u128, String>, String> {
        self.module.form(form)?;
        self.module.use_form(form);
        let tried = self.trajectory();
        let tried = tried.and_then(|got| match self.difference(&got, want) {
            Some(what) => Ok(Err(what)),
            None => self.shortest().map(Ok),
        });
        self.module.use_form(Form::Loaded);
        tried
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_are_finite_differ_and_fit_every_dtype() {
        for dtype in DType::ALL {
            let (mut a, mut b) = (vec![0; dtype.size_bytes() * 64], vec![0; dtype.size_bytes() * 64]);
            Probe::Noise(1).fill(dtype, &mut a);
            Probe::Noise(2).fill(dtype, &mut b);
            assert_ne!(a, b, "{dtype}");
            for i in 0..64 {
                let number = element(dtype, &a, i);
                assert!((-1.0..=1.0).contains(&number), "{dtype}: {number}");
            }
            Probe::Halves(2).fill(dtype, &mut a);
            assert!((0..64).all(|i| element(dtype, &a, i) == 1.0), "{dtype}");
        }
    }
}
