//! What happens to the model's outputs before anybody may use them: de-normalisation, finite check,
//! limits, clipping.
//!
//! A refused output makes the step a `model_error`, and the session's state stays as it was. State
//! outputs go through the finite check alone. The good path allocates nothing: an output whose rules
//! change values has a buffer of its own since loading; every other one is read where the backend left
//! it. Order: std and mean, scale and offset; then NaN and infinities; then limits; clip last of all.

use crate::aligned::AlignedBytes;
use crate::conditioning::{Affine, Real, columns_of, first_non_finite};
use crate::{Fault, ModelError};
use inferd_ipc::signature::{DType, TensorSpec};
use inferd_ipc::worker_records::TensorRules;

/// Guards one output.
pub(crate) struct Guard {
    tensor: TensorSpec,
    allow_non_finite: bool,
    affine: Affine,
    limits: Limits,
    clip: Affine,
    /// Where the values lie after they were changed; none if the rules change nothing.
    changed: Option<AlignedBytes>,
}

/// Lowest and highest value per element of the last axis.
enum Limits {
    F32(Vec<(f32, f32)>),
    F64(Vec<(f64, f64)>),
    Nothing,
}

impl Limits {
    fn of(tensor: &TensorSpec, rules: &TensorRules) -> Limits {
        let Some([lo, hi]) = &rules.limits else { return Limits::Nothing };
        let columns = 0..columns_of(tensor);
        match tensor.dtype {
            DType::F32 => Limits::F32(columns.map(|i| (lo.at(i) as f32, hi.at(i) as f32)).collect()),
            _ => Limits::F64(columns.map(|i| (lo.at(i), hi.at(i))).collect()),
        }
    }

    /// The first element outside, with its value and bounds.
    fn first_outside(&self, bytes: &[u8]) -> Option<(usize, f64, (f64, f64))> {
        match self {
            Limits::F32(limits) => {
                let (i, v) = outside(limits, bytes.as_chunks::<4>().0)?;
                let (lo, hi) = limits[i % limits.len()];
                Some((i, f64::from(v), (f64::from(lo), f64::from(hi))))
            }
            Limits::F64(limits) => {
                let (i, v) = outside(limits, bytes.as_chunks::<8>().0)?;
                Some((i, v, limits[i % limits.len()]))
            }
            Limits::Nothing => None,
        }
    }
}

fn outside<T: Real>(limits: &[(T, T)], elements: &[T::Bytes]) -> Option<(usize, T)>
where
    T::Bytes: Copy,
{
    // NaN is in order here: the finite check has had its say.
    let out = |x: T, (lo, hi): (T, T)| (x < lo) | (x > hi);
    for (r, row) in elements.chunks_exact(limits.len().max(1)).enumerate() {
        if row.iter().zip(limits).fold(false, |any, (x, l)| any | out(T::get(*x), *l)) {
            let at = row.iter().zip(limits).position(|(x, l)| out(T::get(*x), *l))?;
            return Some((r * limits.len() + at, T::get(row[at])));
        }
    }
    None
}

impl Guard {
    /// The guard of an output that clients see.
    pub(crate) fn of_output(tensor: &TensorSpec, rules: &TensorRules) -> Result<Guard, ModelError> {
        let affine = Affine::of_output(tensor, rules)?;
        let clip = Affine::clip_of(tensor, rules)?;
        let changes = !affine.is_nothing() || !clip.is_nothing();
        let changed = changes.then(|| AlignedBytes::zeroed(tensor.bytes() as usize));
        let (limits, allow_non_finite) = (Limits::of(tensor, rules), rules.allow_non_finite);
        Ok(Guard { tensor: tensor.clone(), allow_non_finite, affine, limits, clip, changed })
    }

    /// The guard of a recurrent state's output.
    pub(crate) fn of_state(tensor: &TensorSpec, allow_non_finite: bool) -> Guard {
        let (affine, limits, clip) = (Affine::Nothing, Limits::Nothing, Affine::Nothing);
        Guard { tensor: tensor.clone(), allow_non_finite, affine, limits, clip, changed: None }
    }

    /// Checks what the model left in `raw`, and changes a copy where the rules say so.
    pub(crate) fn check(&mut self, raw: &[u8]) -> Result<(), ModelError> {
        let values: &[u8] = match &mut self.changed {
            Some(changed) => {
                changed.copy_from_slice(raw);
                self.affine.apply(changed);
                changed
            }
            None => raw,
        };
        if !self.allow_non_finite
            && let Some(element) = first_non_finite(self.tensor.dtype, values)
        {
            return Err(self.non_finite(element));
        }
        if let Some((element, value, bounds)) = self.limits.first_outside(values) {
            return Err(self.outside(element, value, bounds));
        }
        if let Some(changed) = &mut self.changed {
            self.clip.apply(changed);
        }
        Ok(())
    }

    /// The values after the last check, where they are not simply the model's.
    pub(crate) fn changed(&self) -> Option<&[u8]> {
        self.changed.as_deref()
    }

    #[cold]
    fn non_finite(&self, element: usize) -> ModelError {
        ModelError::new(
            Fault::NonFinite,
            format!("output {:?}", self.tensor.name),
            format!("element {element} is NaN or infinite"),
            "look at the weights and at the input; if it is meant, set allow_non_finite in model.toml",
        )
    }

    #[cold]
    fn outside(&self, element: usize, value: f64, (lo, hi): (f64, f64)) -> ModelError {
        ModelError::new(
            Fault::Limits,
            format!("output {:?}", self.tensor.name),
            format!("element {element} is {value}, outside [{lo}, {hi}]"),
            "look at the input; if the value is in order, widen limits in model.toml",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use inferd_ipc::worker_records::PerElement;

    fn bytes(v: &[f32]) -> Vec<u8> {
        v.iter().flat_map(|v| v.to_ne_bytes()).collect()
    }

    #[test]
    fn nan_and_infinity_are_refused_unless_allowed() {
        let tensor = TensorSpec::new("a", DType::F32, &[2]);
        let mut guard = Guard::of_output(&tensor, &TensorRules::default()).expect("valid");
        assert!(guard.check(&bytes(&[1.0, -1.0])).is_ok());
        assert!(guard.changed().is_none());
        let error = guard.check(&bytes(&[1.0, f32::NAN])).expect_err("refused");
        assert_eq!(error.fault, Fault::NonFinite);
        assert!(error.to_string().contains("element 1"), "{error}");
        let rules = TensorRules { allow_non_finite: true, ..TensorRules::default() };
        assert!(Guard::of_output(&tensor, &rules).expect("valid").check(&bytes(&[f32::NAN; 2])).is_ok());
        assert_eq!(
            Guard::of_state(&tensor, false).check(&bytes(&[0.0, f32::INFINITY])).map_err(|e| e.fault),
            Err(Fault::NonFinite)
        );
    }

    #[test]
    fn limits_see_denormalised_values_and_clipping_comes_last() {
        let tensor = TensorSpec::new("a", DType::F32, &[2, 2]);
        let rules = TensorRules {
            scale: Some(PerElement::All(10.0)),
            limits: Some([PerElement::Each(vec![-10.0, -20.0]), PerElement::All(20.0)]),
            clip: Some([PerElement::All(-5.0), PerElement::All(5.0)]),
            ..TensorRules::default()
        };
        let mut guard = Guard::of_output(&tensor, &rules).expect("valid");
        guard.check(&bytes(&[-1.0, -2.0, 0.1, 2.0])).expect("inside");
        assert_eq!(guard.changed(), Some(&bytes(&[-5.0, -5.0, 1.0, 5.0])[..]));
        let error = guard.check(&bytes(&[0.0, 0.0, -1.5, 0.0])).expect_err("outside");
        assert_eq!(error.fault, Fault::Limits);
        assert!(error.to_string().contains("element 2 is -15, outside [-10, 20]"), "{error}");
    }

    #[test]
    fn an_overflow_in_the_denormalisation_is_seen() {
        let tensor = TensorSpec::new("a", DType::F32, &[1]);
        let rules = TensorRules {
            scale: Some(PerElement::All(1e30)),
            clip: Some([PerElement::All(-1.0), PerElement::All(1.0)]),
            ..TensorRules::default()
        };
        let error = Guard::of_output(&tensor, &rules).expect("valid").check(&bytes(&[1e30])).expect_err("overflows");
        assert_eq!(error.fault, Fault::NonFinite);
    }
}
