//! Elements of tensors as numbers: for comparing, for JSON and for reading by people.
//!
//! Integers stay integers (an `i64` does not fit an `f64`), and the distance of two numbers is
//! infinite where one of them is NaN and the other is not. [`render`] prints a tensor as NumPy does,
//! shortened in the middle.

use inferd_client::DType;
use serde_json::{Value, json};
use std::fmt::Write;

/// One element.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Number {
    /// f32, and f16 and bf16, which it holds exactly.
    F32(f32),
    /// f64.
    F64(f64),
    /// Any integer.
    Int(i128),
    /// Boolean.
    Bool(bool),
}

/// Element `i` of row-major little-endian bytes; none past the end.
#[must_use]
pub fn element(dtype: DType, bytes: &[u8], i: usize) -> Option<Number> {
    fn at<const N: usize>(bytes: &[u8], i: usize) -> Option<[u8; N]> {
        bytes.get(i * N..)?.first_chunk().copied()
    }
    Some(match dtype {
        DType::F32 => Number::F32(f32::from_le_bytes(at(bytes, i)?)),
        DType::F64 => Number::F64(f64::from_le_bytes(at(bytes, i)?)),
        DType::F16 => Number::F32(half::f16::from_le_bytes(at(bytes, i)?).to_f32()),
        DType::Bf16 => Number::F32(half::bf16::from_le_bytes(at(bytes, i)?).to_f32()),
        DType::I8 => Number::Int(i8::from_le_bytes(at(bytes, i)?).into()),
        DType::I16 => Number::Int(i16::from_le_bytes(at(bytes, i)?).into()),
        DType::I32 => Number::Int(i32::from_le_bytes(at(bytes, i)?).into()),
        DType::I64 => Number::Int(i64::from_le_bytes(at(bytes, i)?).into()),
        DType::U8 => Number::Int(u8::from_le_bytes(at(bytes, i)?).into()),
        DType::U16 => Number::Int(u16::from_le_bytes(at(bytes, i)?).into()),
        DType::U32 => Number::Int(u32::from_le_bytes(at(bytes, i)?).into()),
        DType::U64 => Number::Int(u64::from_le_bytes(at(bytes, i)?).into()),
        DType::Bool => Number::Bool(at::<1>(bytes, i)? != [0]),
    })
}

impl Number {
    /// As a float, rounded where it must be.
    #[must_use]
    pub fn as_f64(self) -> f64 {
        match self {
            Number::F32(v) => f64::from(v),
            Number::F64(v) => v,
            Number::Int(v) => v as f64,
            Number::Bool(v) => f64::from(u8::from(v)),
        }
    }

    /// Absolute difference; 0 for two NaN or equal infinities, infinite where only one is NaN.
    #[must_use]
    pub fn distance(self, other: Number) -> f64 {
        if let (Number::Int(a), Number::Int(b)) = (self, other) {
            return a.abs_diff(b) as f64;
        }
        let (a, b) = (self.as_f64(), other.as_f64());
        if a == b || (a.is_nan() && b.is_nan()) {
            return 0.0;
        }
        let difference = (a - b).abs();
        if difference.is_nan() { f64::INFINITY } else { difference }
    }

    /// As JSON; what JSON cannot say (NaN, infinities) as a string.
    #[must_use]
    pub fn to_json(self) -> Value {
        match self {
            Number::Bool(v) => json!(v),
            Number::Int(v) => i64::try_from(v).map_or_else(|_| json!(v as u64), |v| json!(v)),
            // Through the shortest decimal, so that 0.1f32 is 0.1 and not 0.10000000149011612.
            Number::F32(v) if v.is_finite() => json!(v.to_string().parse::<f64>().unwrap_or(f64::from(v))),
            Number::F64(v) if v.is_finite() => json!(v),
            Number::F32(_) | Number::F64(_) => json!(self.to_string()),
        }
    }
}

impl std::fmt::Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Number::F32(v) => write!(f, "{v}"),
            Number::F64(v) => write!(f, "{v}"),
            Number::Int(v) => write!(f, "{v}"),
            Number::Bool(v) => write!(f, "{v}"),
        }
    }
}

/// More elements than this are shortened.
const ELEMENTS_SHOWN_MAX: u64 = 256;
/// Entries shown at either end of a shortened axis.
const EDGE: u64 = 3;
/// Columns of a printed tensor.
const WIDTH: usize = 100;
/// Decimals of a printed float.
const DECIMALS: usize = 5;

/// The tensor as text, like NumPy: brackets per axis, columns aligned, long axes shortened.
#[must_use]
pub fn render(dtype: DType, shape: &[u64], bytes: &[u8]) -> String {
    let count = shape.iter().product::<u64>();
    let edge = if count > ELEMENTS_SHOWN_MAX { EDGE } else { u64::MAX };
    let mut shown = Vec::new();
    visit(shape, 0, edge, &mut |at| shown.extend(element(dtype, bytes, at as usize)));
    let texts = aligned(&shown);
    let mut printer = Printer { shape, edge, texts: texts.into_iter(), out: String::new() };
    printer.axis(0, 0);
    printer.out
}

/// Indices of an axis that are shown; `None` stands for the gap.
fn shown_indices(length: u64, edge: u64) -> impl Iterator<Item = Option<u64>> {
    let whole = length <= edge.saturating_mul(2);
    let head = if whole { length } else { edge };
    let tail = if whole { length } else { length - edge };
    (0..head).map(Some).chain((!whole).then_some(None)).chain((tail..length).map(Some))
}

fn visit(shape: &[u64], base: u64, edge: u64, found: &mut impl FnMut(u64)) {
    let Some((length, inner)) = shape.split_first() else { return found(base) };
    let stride: u64 = inner.iter().product();
    for i in shown_indices(*length, edge).flatten() {
        visit(inner, base + i * stride, edge, found);
    }
}

/// All numbers with as many decimals as the neediest, in a column's width; exponents where sizes differ much.
fn aligned(numbers: &[Number]) -> Vec<String> {
    let finite = || numbers.iter().map(|n| n.as_f64().abs()).filter(|v| v.is_finite() && *v > 0.0);
    let (least, most) = (finite().fold(f64::INFINITY, f64::min), finite().fold(0.0, f64::max));
    let exponents = (most > 0.0 && !(1e-3..1e7).contains(&most)) || (least < 1e-4 && most / least > 1e8);
    let float = |v: f64| match () {
        () if !v.is_finite() => v.to_string(),
        () if exponents && v != 0.0 => format!("{v:.DECIMALS$e}"),
        () => format!("{v:.DECIMALS$}"),
    };
    let texts: Vec<String> = numbers
        .iter()
        .map(|n| if matches!(n, Number::F32(_) | Number::F64(_)) { float(n.as_f64()) } else { n.to_string() })
        .collect();
    let decimals = |t: &String| t.split_once('.').map_or(0, |(_, d)| d.trim_end_matches('0').len());
    let kept = texts.iter().map(decimals).max().unwrap_or(0);
    let cut = |t: String| match t.split_once('.') {
        Some((whole, d)) if !exponents => format!("{whole}.{}", &d[..kept.min(d.len())]),
        _ => t,
    };
    let texts: Vec<String> = texts.into_iter().map(cut).collect();
    let width = texts.iter().map(String::len).max().unwrap_or(0);
    texts.into_iter().map(|t| format!("{t:>width$}")).collect()
}

struct Printer<'a> {
    shape: &'a [u64],
    edge: u64,
    texts: std::vec::IntoIter<String>,
    out: String,
}

impl Printer<'_> {
    fn axis(&mut self, axis: usize, column: usize) -> usize {
        let Some(length) = self.shape.get(axis) else {
            let text = self.texts.next().unwrap_or_default();
            self.out.push_str(&text);
            return column + text.len();
        };
        self.out.push('[');
        let last = axis + 1 == self.shape.len();
        let indent = axis + 1;
        let mut at = column + 1;
        for (n, i) in shown_indices(*length, self.edge).enumerate() {
            let next = self.texts.as_slice().first().map_or(3, String::len);
            let wraps = if last { at + 1 + next > WIDTH } else { true };
            if n > 0 && wraps {
                // As in NumPy, blocks of more than two axes stand apart.
                let blank = if last { 1 } else { self.shape.len() - axis - 1 };
                let _ = write!(self.out, "{}{}", "\n".repeat(blank), " ".repeat(indent));
                at = indent;
            } else if n > 0 {
                self.out.push(' ');
                at += 1;
            }
            at = match i {
                Some(_) => self.axis(axis + 1, at),
                None => {
                    self.out.push_str("...");
                    at + 3
                }
            };
        }
        self.out.push(']');
        at + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn f32s(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
        values.into_iter().flat_map(f32::to_le_bytes).collect()
    }

    #[test]
    fn a_nan_against_a_number_is_infinitely_far_and_against_a_nan_is_equal() {
        let n = Number::F32;
        assert_eq!(n(f32::NAN).distance(n(f32::NAN)), 0.0);
        assert_eq!(n(f32::NAN).distance(n(1.0)), f64::INFINITY);
        assert_eq!(n(1.0).distance(n(f32::NAN)), f64::INFINITY);
        assert_eq!(n(f32::INFINITY).distance(n(f32::INFINITY)), 0.0);
        assert_eq!(n(f32::INFINITY).distance(n(f32::NEG_INFINITY)), f64::INFINITY);
        assert_eq!(n(1.5).distance(n(1.25)), 0.25);
    }

    #[test]
    fn big_integers_are_compared_exactly() {
        let a = element(DType::U64, &u64::MAX.to_le_bytes(), 0);
        let b = element(DType::U64, &(u64::MAX - 1).to_le_bytes(), 0);
        assert_eq!(a.zip(b).map(|(a, b)| a.distance(b)), Some(1.0));
        assert_eq!(element(DType::U64, &[0; 8], 1), None);
    }

    #[test]
    fn every_dtype_reads_one() {
        let one = |dtype: DType| match dtype {
            DType::F32 => 1f32.to_le_bytes().to_vec(),
            DType::F64 => 1f64.to_le_bytes().to_vec(),
            DType::F16 => vec![0, 0x3c],
            DType::Bf16 => vec![0x80, 0x3f],
            other => [vec![1], vec![0; other.size_bytes() - 1]].concat(),
        };
        for dtype in DType::ALL {
            assert_eq!(element(dtype, &one(dtype), 0).map(Number::as_f64), Some(1.0), "{dtype}");
        }
    }

    #[test]
    fn json_keeps_short_decimals_and_names_what_it_cannot_say() {
        assert_eq!(Number::F32(0.1).to_json().to_string(), "0.1");
        assert_eq!(Number::F32(f32::NAN).to_json().to_string(), "\"NaN\"");
        assert_eq!(Number::F64(f64::NEG_INFINITY).to_json().to_string(), "\"-inf\"");
        assert_eq!(Number::Int(i128::from(u64::MAX)).to_json().to_string(), "18446744073709551615");
    }

    #[test]
    fn tensors_look_like_numpys() {
        assert_eq!(render(DType::F32, &[], &f32s([0.5])), "0.5");
        assert_eq!(render(DType::F32, &[1, 3], &f32s([0.5, -1.25, 3.0])), "[[ 0.50 -1.25  3.00]]");
        let cube = f32s((0..8u8).map(f32::from));
        assert_eq!(render(DType::F32, &[2, 2, 2], &cube), "[[[0. 1.]\n  [2. 3.]]\n\n [[4. 5.]\n  [6. 7.]]]");
        assert_eq!(render(DType::F32, &[0], &[]), "[]");
        assert_eq!(render(DType::F32, &[2], &f32s([0.0, 0.0])), "[0. 0.]");
        assert_eq!(render(DType::Bool, &[2], &[1, 0]), "[ true false]");
        let mixed = f32s([f32::NAN, 1e-9, 12345.0]);
        assert_eq!(render(DType::F32, &[3], &mixed), "[       NaN 1.00000e-9  1.23450e4]");
    }

    #[test]
    fn long_tensors_are_shortened_and_wide_ones_wrap() {
        let long = f32s((0..1000u16).map(f32::from));
        assert_eq!(render(DType::F32, &[1000], &long), "[  0.   1.   2. ... 997. 998. 999.]");
        let wide = render(DType::F32, &[1, 100], &f32s((0..100u8).map(|i| f32::from(i) / 8.0)));
        assert!(wide.lines().all(|l| l.len() <= WIDTH), "{wide}");
        assert_eq!(wide.lines().count(), 8, "{wide}");
    }
}
