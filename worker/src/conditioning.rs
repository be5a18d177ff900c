//! What happens to a client's tensor before the model sees it: finite check, clip, normalisation.
//!
//! Works in place on the backend's input buffer, on the copy that the client can no longer reach. The
//! check comes first and looks at every element: `rejected` never depends on the order of a race.
//! Nothing is allocated; element-wise loops over fixed-size chunks, which the compiler vectorises. The
//! same [`Affine`] serves the outputs (`guard.rs`). A reset or a skipped step leaves nothing behind.

use crate::{Fault, ModelError};
use inferd_ipc::signature::{DType, TensorSpec};
use inferd_ipc::worker_records::{PerElement, TensorRules};

/// Why a request's tensor is not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RejectReason {
    /// NaN or infinite, and the manifest does not allow it.
    NonFinite,
    /// A byte of a bool tensor that is neither 0 nor 1.
    NotABool,
}

/// A tensor that a client must correct. Holds no text, so that refusing costs no allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rejected {
    /// Which input, as clients count them.
    pub input: usize,
    /// The first offending element, in row-major order.
    pub element: usize,
    /// What is wrong with it.
    pub reason: RejectReason,
}

impl std::fmt::Display for Rejected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = match self.reason {
            RejectReason::NonFinite => "is NaN or infinite; send finite values, or set allow_non_finite in model.toml",
            RejectReason::NotABool => "is a bool that is neither 0 nor 1; write 0 or 1",
        };
        write!(f, "element {} of input {} {what}", self.element, self.input)
    }
}

/// The first element that is NaN or infinite; none for dtypes that cannot be.
#[must_use]
pub fn first_non_finite(dtype: DType, bytes: &[u8]) -> Option<usize> {
    // The exponent's bits are all ones in every NaN and every infinity, and in nothing else.
    match dtype {
        DType::F32 => first(bytes, |b| u32::from_ne_bytes(b) & 0x7f80_0000 == 0x7f80_0000),
        DType::F64 => first(bytes, |b| u64::from_ne_bytes(b) & 0x7ff0 << 48 == 0x7ff0 << 48),
        DType::F16 => first(bytes, |b| u16::from_ne_bytes(b) & 0x7c00 == 0x7c00),
        DType::Bf16 => first(bytes, |b| u16::from_ne_bytes(b) & 0x7f80 == 0x7f80),
        _ => None,
    }
}

/// The first byte of a bool tensor that is neither 0 nor 1.
#[must_use]
pub fn first_not_bool(bytes: &[u8]) -> Option<usize> {
    first(bytes, |b: [u8; 1]| b[0] > 1)
}

/// Elements looked at without a branch between them.
const BLOCK: usize = 256;

#[inline(always)]
fn first<const N: usize>(bytes: &[u8], bad: impl Fn([u8; N]) -> bool) -> Option<usize> {
    let elements = bytes.as_chunks::<N>().0;
    if elements.len() <= BLOCK {
        // What most policies take and give: no bookkeeping of blocks.
        let any = elements.iter().fold(false, |any, e| any | bad(*e));
        return if any { elements.iter().position(|e| bad(*e)) } else { None };
    }
    let blocks = elements.chunks(BLOCK).enumerate();
    for (i, block) in blocks {
        if block.iter().fold(false, |any, e| any | bad(*e)) {
            return block.iter().position(|e| bad(*e)).map(|at| i * BLOCK + at);
        }
    }
    None
}

/// Arithmetic that rules can ask for exists for two dtypes.
pub(crate) trait Real: Copy + PartialOrd + Send + 'static {
    type Bytes;
    fn of(v: f64) -> Self;
    fn get(b: Self::Bytes) -> Self;
    fn bytes(self) -> Self::Bytes;
    fn sub_div(self, mean: Self, std: Self) -> Self;
    fn mul_add_plain(self, scale: Self, offset: Self) -> Self;
    fn clip(self, lo: Self, hi: Self) -> Self;
}

macro_rules! real {
    ($t:ty, $n:literal) => {
        impl Real for $t {
            type Bytes = [u8; $n];
            #[inline(always)]
            fn of(v: f64) -> $t {
                v as $t
            }
            #[inline(always)]
            fn get(b: [u8; $n]) -> $t {
                <$t>::from_ne_bytes(b)
            }
            #[inline(always)]
            fn bytes(self) -> [u8; $n] {
                self.to_ne_bytes()
            }
            #[inline(always)]
            fn sub_div(self, mean: $t, std: $t) -> $t {
                (self - mean) / std
            }
            #[inline(always)]
            fn mul_add_plain(self, scale: $t, offset: $t) -> $t {
                self * scale + offset
            }
            #[inline(always)]
            fn clip(self, lo: $t, hi: $t) -> $t {
                // NaN stays NaN: whether it may pass is the finite check's question.
                if self < lo {
                    lo
                } else if self > hi {
                    hi
                } else {
                    self
                }
            }
        }
    };
}
real!(f32, 4);
real!(f64, 8);

/// Two numbers per element of the last axis.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Columns<T>(Vec<(T, T)>);

impl<T: Real> Columns<T> {
    fn new(a: impl Fn(usize) -> f64, b: impl Fn(usize) -> f64, columns: usize) -> Columns<T> {
        Columns((0..columns).map(|i| (T::of(a(i)), T::of(b(i)))).collect())
    }
}

/// One thing that is done to every element.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Stage<T> {
    /// x = (x - a) / b
    Normalise(Columns<T>),
    /// x = x * a + b
    Scale(Columns<T>),
    /// x between a and b
    Clip(Columns<T>),
}

/// The stages of a tensor, in order, in its own dtype.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Affine {
    F32(Vec<Stage<f32>>),
    F64(Vec<Stage<f64>>),
    Nothing,
}

impl Affine {
    /// Inputs: clip, then mean and std, then scale and offset.
    pub(crate) fn of_input(tensor: &TensorSpec, rules: &TensorRules) -> Result<Affine, ModelError> {
        Self::build(tensor, rules, "inputs")
    }

    /// Outputs: std and mean, then scale and offset. Their clip comes after the guard: [`Affine::clip_of`].
    pub(crate) fn of_output(tensor: &TensorSpec, rules: &TensorRules) -> Result<Affine, ModelError> {
        Self::build(tensor, rules, "outputs")
    }

    /// The clip of an output.
    pub(crate) fn clip_of(tensor: &TensorSpec, rules: &TensorRules) -> Result<Affine, ModelError> {
        let only_clip = TensorRules { clip: rules.clip.clone(), ..TensorRules::default() };
        Self::build(tensor, &only_clip, "inputs")
    }

    fn build(tensor: &TensorSpec, rules: &TensorRules, side: &'static str) -> Result<Affine, ModelError> {
        check_rules(tensor, rules, side)?;
        let any = rules.mean.is_some() || rules.std.is_some() || rules.scale.is_some() || rules.offset.is_some();
        if !any && (rules.clip.is_none() || side == "outputs") {
            return Ok(Affine::Nothing);
        }
        match tensor.dtype {
            DType::F32 => Ok(Affine::F32(stages(tensor, rules, side == "inputs"))),
            _ => Ok(Affine::F64(stages(tensor, rules, side == "inputs"))),
        }
    }

    pub(crate) fn is_nothing(&self) -> bool {
        *self == Affine::Nothing
    }

    /// Applies every stage in place.
    pub(crate) fn apply(&self, bytes: &mut [u8]) {
        match self {
            Affine::F32(stages) => stages.iter().for_each(|s| apply(s, bytes.as_chunks_mut::<4>().0)),
            Affine::F64(stages) => stages.iter().for_each(|s| apply(s, bytes.as_chunks_mut::<8>().0)),
            Affine::Nothing => {}
        }
    }
}

fn stages<T: Real>(tensor: &TensorSpec, rules: &TensorRules, input: bool) -> Vec<Stage<T>> {
    let columns = columns_of(tensor);
    let at = |p: &Option<PerElement>, default: f64, i: usize| p.as_ref().map_or(default, |p| p.at(i));
    let mut stages = Vec::new();
    if input && let Some([lo, hi]) = &rules.clip {
        stages.push(Stage::Clip(Columns::new(|i| lo.at(i), |i| hi.at(i), columns)));
    }
    if rules.mean.is_some() || rules.std.is_some() {
        let (mean, std) = (|i| at(&rules.mean, 0.0, i), |i| at(&rules.std, 1.0, i));
        // Outputs undo it: y * std + mean.
        let stage = if input {
            Stage::Normalise(Columns::new(mean, std, columns))
        } else {
            Stage::Scale(Columns::new(std, mean, columns))
        };
        stages.push(stage);
    }
    if rules.scale.is_some() || rules.offset.is_some() {
        let (scale, offset) = (|i| at(&rules.scale, 1.0, i), |i| at(&rules.offset, 0.0, i));
        stages.push(Stage::Scale(Columns::new(scale, offset, columns)));
    }
    stages
}

#[inline(always)]
fn each<T: Real>(columns: &Columns<T>, rows: &mut [T::Bytes], f: impl Fn(T, T, T) -> T)
where
    T::Bytes: Copy,
{
    for row in rows.chunks_exact_mut(columns.0.len().max(1)) {
        row.iter_mut().zip(&columns.0).for_each(|(x, (a, b))| *x = f(T::get(*x), *a, *b).bytes());
    }
}

fn apply<T: Real>(stage: &Stage<T>, elements: &mut [T::Bytes])
where
    T::Bytes: Copy,
{
    match stage {
        Stage::Normalise(c) => each(c, elements, |x: T, mean, std| x.sub_div(mean, std)),
        Stage::Scale(c) => each(c, elements, |x: T, scale, offset| x.mul_add_plain(scale, offset)),
        Stage::Clip(c) => each(c, elements, |x: T, lo, hi| x.clip(lo, hi)),
    }
}

/// Elements along the last axis; 1 for a scalar.
pub(crate) fn columns_of(tensor: &TensorSpec) -> usize {
    tensor.shape.last().map_or(1, |d| *d as usize)
}

/// Checks numbers, lengths and dtype of a tensor's rules.
fn check_rules(tensor: &TensorSpec, rules: &TensorRules, side: &str) -> Result<(), ModelError> {
    let fault = |key: &str, what: String, remedy: &str| {
        Err(ModelError::new(Fault::Manifest, format!("{key} of [{side}.{}] in model.toml", tensor.name), what, remedy))
    };
    let mut numbers: Vec<(&str, &PerElement)> = Vec::new();
    for (key, value) in [("mean", &rules.mean), ("std", &rules.std), ("scale", &rules.scale), ("offset", &rules.offset)]
    {
        numbers.extend(value.as_ref().map(|v| (key, v)));
    }
    for (key, bounds) in [("clip", &rules.clip), ("limits", &rules.limits)] {
        let Some([lo, hi]) = bounds else { continue };
        numbers.extend([(key, lo), (key, hi)]);
    }
    let columns = columns_of(tensor);
    for (key, value) in &numbers {
        if !matches!(tensor.dtype, DType::F32 | DType::F64) {
            let what = format!("the tensor is {}, and this works on f32 and f64 only", tensor.dtype);
            return fault(key, what, "remove it, or do it inside the model");
        }
        if let PerElement::Each(v) = value
            && v.len() != columns
        {
            let what = format!("has {} numbers, but the last axis of {tensor} has {columns}", v.len());
            return fault(key, what, "give one number per element of the last axis, or a single number");
        }
        let all: &[f64] = match value {
            PerElement::All(v) => std::slice::from_ref(v),
            PerElement::Each(v) => v,
        };
        let bounds = matches!(*key, "clip" | "limits");
        if let Some(v) = all.iter().find(|v| if bounds { v.is_nan() } else { !v.is_finite() }) {
            return fault(key, format!("holds {v}"), "use finite numbers");
        }
        let collapses = |v: &&f64| if tensor.dtype == DType::F32 { **v as f32 == 0.0 } else { **v == 0.0 };
        if *key == "std" && all.iter().any(|v| collapses(&v) || *v < 0.0) {
            return fault(key, "holds a number that is not positive".into(), "use positive numbers, 1 for no change");
        }
    }
    for (key, bounds) in [("clip", &rules.clip), ("limits", &rules.limits)] {
        let Some([lo, hi]) = bounds else { continue };
        if let Some(i) = (0..columns).find(|i| lo.at(*i) > hi.at(*i)) {
            return fault(key, format!("{} is above {} at element {i}", lo.at(i), hi.at(i)), "write [low, high]");
        }
    }
    if side == "inputs" && rules.limits.is_some() {
        return fault("limits", "is for outputs".into(), "use clip for inputs");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn f32s(v: &[f32]) -> Vec<u8> {
        v.iter().flat_map(|v| v.to_ne_bytes()).collect()
    }

    fn back(b: &[u8]) -> Vec<f32> {
        b.as_chunks().0.iter().map(|b| f32::from_ne_bytes(*b)).collect()
    }

    #[test]
    fn the_finite_check_finds_every_kind_of_non_finite_at_any_place() {
        for n in [1, 2, 255, 256, 257, 1000] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::from_bits(0x7f80_0001)] {
                for at in [0, n / 2, n - 1] {
                    let mut v = vec![f32::MAX; n];
                    assert_eq!(first_non_finite(DType::F32, &f32s(&v)), None);
                    v[at] = bad;
                    assert_eq!(first_non_finite(DType::F32, &f32s(&v)), Some(at));
                    let wide: Vec<u8> = v.iter().flat_map(|v| f64::from(*v).to_ne_bytes()).collect();
                    assert_eq!(first_non_finite(DType::F64, &wide), Some(at));
                    let brain: Vec<u8> = v
                        .iter()
                        .map(|v| if v.is_finite() { half::bf16::MAX } else { half::bf16::from_f32(*v) })
                        .flat_map(half::bf16::to_ne_bytes)
                        .collect();
                    assert_eq!(first_non_finite(DType::Bf16, &brain), Some(at));
                    let halves: Vec<u8> = v
                        .iter()
                        .map(|v| if v.is_finite() { half::f16::MIN } else { half::f16::from_f32(*v) })
                        .flat_map(half::f16::to_ne_bytes)
                        .collect();
                    assert_eq!(first_non_finite(DType::F16, &halves), Some(at));
                }
            }
        }
        assert_eq!(first_non_finite(DType::I32, &[0xff; 8]), None);
        assert_eq!(first_not_bool(&[0, 1, 2]), Some(2));
    }

    #[test]
    fn inputs_are_clipped_then_normalised_then_scaled() {
        let tensor = TensorSpec::new("obs", DType::F32, &[2, 2]);
        let rules = TensorRules {
            mean: Some(PerElement::Each(vec![1.0, 2.0])),
            std: Some(PerElement::All(2.0)),
            scale: Some(PerElement::All(10.0)),
            offset: Some(PerElement::All(1.0)),
            clip: Some([PerElement::All(-5.0), PerElement::All(5.0)]),
            ..TensorRules::default()
        };
        let mut bytes = f32s(&[100.0, 2.0, 3.0, -100.0]);
        Affine::of_input(&tensor, &rules).expect("valid").apply(&mut bytes);
        assert_eq!(back(&bytes), [21.0, 1.0, 11.0, -34.0]);
    }

    #[test]
    fn outputs_are_denormalised_and_f64_works_too() {
        let rules =
            TensorRules { mean: Some(PerElement::All(3.0)), std: Some(PerElement::All(2.0)), ..TensorRules::default() };
        let mut bytes = f32s(&[1.0, -1.0]);
        let tensor = TensorSpec::new("a", DType::F32, &[2]);
        Affine::of_output(&tensor, &rules).expect("valid").apply(&mut bytes);
        assert_eq!(back(&bytes), [5.0, 1.0]);
        let mut bytes = 5.0f64.to_ne_bytes();
        Affine::of_input(&TensorSpec::new("a", DType::F64, &[]), &rules).expect("valid").apply(&mut bytes);
        assert_eq!(f64::from_ne_bytes(bytes), 1.0);
    }

    #[test]
    fn rules_that_cannot_work_are_refused_with_their_place() {
        let f32x2 = TensorSpec::new("obs", DType::F32, &[1, 2]);
        let each = |v: &[f64]| Some(PerElement::Each(v.to_vec()));
        let base = TensorRules::default;
        let cases = [
            (TensorRules { mean: each(&[1.0]), ..base() }, "last axis"),
            (TensorRules { std: each(&[1.0, 0.0]), ..base() }, "positive"),
            (TensorRules { std: each(&[1.0, 1e-60]), ..base() }, "positive"),
            (TensorRules { scale: Some(PerElement::All(f64::NAN)), ..base() }, "NaN"),
            (TensorRules { clip: Some([PerElement::All(1.0), PerElement::All(-1.0)]), ..base() }, "above"),
            (TensorRules { limits: Some([PerElement::All(-1.0), PerElement::All(1.0)]), ..base() }, "outputs"),
        ];
        for (rules, word) in cases {
            let error = Affine::of_input(&f32x2, &rules).expect_err("refused").to_string();
            assert!(error.contains(word) && error.contains("[inputs.obs]"), "{error}");
        }
        let rules = TensorRules { scale: Some(PerElement::All(2.0)), ..base() };
        let error = Affine::of_input(&TensorSpec::new("i", DType::I32, &[1]), &rules).expect_err("refused");
        assert!(error.to_string().contains("f32 and f64 only"), "{error}");
    }
}
