//! Names, dtypes and shapes of a model's inputs and outputs, and their bytes in the reply region.
//!
//! A [`Signature`] is what clients see: recurrent state pairs are not in it, for they stay with the
//! daemon. Its binary form (`docs/shm-layout.md`, "Signature") is fixed-size records that C reads
//! without a parser; offsets of tensors inside a slot are part of it, so nobody computes them twice.

use crate::limits::{ELEMENT_TEXT_BYTES_MAX, RANK_MAX, TENSOR_BYTES_MAX, TENSOR_NAME_BYTES_MAX, TENSORS_MAX};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Element type of a tensor. The numbers are ABI: `enum inferd_dtype` in `inferd.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "_serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
#[repr(u32)]
#[allow(missing_docs)]
pub enum DType {
    F32 = 1,
    F64 = 2,
    F16 = 3,
    Bf16 = 4,
    I8 = 5,
    I16 = 6,
    I32 = 7,
    I64 = 8,
    U8 = 9,
    U16 = 10,
    U32 = 11,
    U64 = 12,
    Bool = 13,
}

impl DType {
    /// All dtypes, in the order of their numbers.
    pub const ALL: [DType; 13] = [
        DType::F32,
        DType::F64,
        DType::F16,
        DType::Bf16,
        DType::I8,
        DType::I16,
        DType::I32,
        DType::I64,
        DType::U8,
        DType::U16,
        DType::U32,
        DType::U64,
        DType::Bool,
    ];

    /// Bytes of one element.
    #[must_use]
    pub const fn size_bytes(self) -> usize {
        match self {
            DType::F64 | DType::I64 | DType::U64 => 8,
            DType::F32 | DType::I32 | DType::U32 => 4,
            DType::F16 | DType::Bf16 | DType::I16 | DType::U16 => 2,
            DType::I8 | DType::U8 | DType::Bool => 1,
        }
    }

    /// The name used in configuration, logs and tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F64 => "f64",
            DType::F16 => "f16",
            DType::Bf16 => "bf16",
            DType::I8 => "i8",
            DType::I16 => "i16",
            DType::I32 => "i32",
            DType::I64 => "i64",
            DType::U8 => "u8",
            DType::U16 => "u16",
            DType::U32 => "u32",
            DType::U64 => "u64",
            DType::Bool => "bool",
        }
    }

    /// The dtype of that number, if there is one.
    #[must_use]
    pub fn from_number(number: u32) -> Option<DType> {
        DType::ALL.into_iter().find(|d| *d as u32 == number)
    }

    /// The dtype of that name, if there is one.
    #[must_use]
    pub fn from_name(name: &str) -> Option<DType> {
        DType::ALL.into_iter().find(|d| d.name() == name)
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// One tensor: its name, element type and shape; what a model file and a manifest say together.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "_serde", derive(serde::Serialize, serde::Deserialize))]
pub struct TensorSpec {
    /// Name, unique among the inputs or among the outputs.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Dimensions, outermost first; empty for a scalar.
    pub shape: Vec<u64>,
    /// Names and units of the elements along the last axis, one `name [unit]` per line; may be empty.
    #[cfg_attr(feature = "_serde", serde(default))]
    pub elements: String,
    /// The axis that is time, for outputs that are action chunks.
    #[cfg_attr(feature = "_serde", serde(default))]
    pub time_axis: Option<u32>,
}

impl TensorSpec {
    /// A tensor without element names.
    #[must_use]
    pub fn new(name: &str, dtype: DType, shape: &[u64]) -> TensorSpec {
        TensorSpec { name: name.to_owned(), dtype, shape: shape.to_vec(), elements: String::new(), time_axis: None }
    }

    /// Number of elements; 1 for a scalar. Saturates.
    #[must_use]
    pub fn elements_count(&self) -> u64 {
        self.shape.iter().fold(1, |a: u64, d| a.saturating_mul(*d))
    }

    /// Bytes of the tensor, contiguous in row-major order. Saturates.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.elements_count().saturating_mul(self.dtype.size_bytes() as u64)
    }

    /// Same name, dtype and shape: what a reload must keep.
    #[must_use]
    pub fn same_layout(&self, other: &TensorSpec) -> bool {
        self.name == other.name && self.dtype == other.dtype && self.shape == other.shape
    }
}

impl std::fmt::Display for TensorSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}{:?}", self.name, self.dtype, self.shape)
    }
}

/// Inputs and outputs of a model, in order, as clients see them.
#[derive(Debug, Clone, PartialEq, Default)]
#[cfg_attr(feature = "_serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Signature {
    /// What a request carries.
    pub inputs: Vec<TensorSpec>,
    /// What a reply carries.
    pub outputs: Vec<TensorSpec>,
    /// Whether the model keeps state between a session's steps.
    #[cfg_attr(feature = "_serde", serde(default))]
    pub stateful: bool,
}

/// Why a signature cannot be served.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SignatureError {
    /// Too many tensors, dimensions or bytes.
    #[error("{what} {name:?}: {value} is over the limit of {limit}")]
    Limit {
        /// What was counted.
        what: &'static str,
        /// Which tensor.
        name: String,
        /// What it has.
        value: u64,
        /// What it may have.
        limit: u64,
    },
    /// A name that is empty, repeated or holds a control character.
    #[error("tensor name {0:?} is empty, repeated or holds a control character; name tensors in the manifest")]
    Name(String),
    /// Bytes in shared memory that are not a signature.
    #[error("the signature in the reply region is damaged: {0}; the daemon and this library do not fit each other")]
    Damaged(&'static str),
}

/// Alignment of every tensor within its slot, in bytes.
pub const TENSOR_ALIGN: u64 = 64;

/// Offsets of the tensors from the start of a slot, and the bytes of the slot up to the last tensor's end.
#[must_use]
pub fn slot_offsets(tensors: &[TensorSpec]) -> (Vec<u64>, u64) {
    let mut end = crate::layout::HEADER_BYTES as u64;
    let offsets = tensors
        .iter()
        .map(|t| {
            let at = end.next_multiple_of(TENSOR_ALIGN);
            end = at.saturating_add(t.bytes()).min(u64::MAX - TENSOR_ALIGN);
            at
        })
        .collect();
    (offsets, end)
}

impl Signature {
    /// Checks every limit and every name.
    ///
    /// # Errors
    /// [`SignatureError`] names the first tensor that cannot be served.
    pub fn check(&self) -> Result<(), SignatureError> {
        for (what, tensors) in [("inputs", &self.inputs), ("outputs", &self.outputs)] {
            limit(what, "", tensors.len() as u64, TENSORS_MAX as u64)?;
            for (i, t) in tensors.iter().enumerate() {
                let bad = t.name.is_empty() || t.name.chars().any(char::is_control);
                if bad || tensors[..i].iter().any(|other| other.name == t.name) {
                    return Err(SignatureError::Name(t.name.clone()));
                }
                limit("bytes of the name", &t.name, t.name.len() as u64, TENSOR_NAME_BYTES_MAX as u64)?;
                limit("dimensions", &t.name, t.shape.len() as u64, RANK_MAX as u64)?;
                limit("bytes of tensor", &t.name, t.bytes(), TENSOR_BYTES_MAX)?;
            }
            limit("bytes of slot", what, slot_offsets(tensors).1, crate::limits::SLOT_BYTES_MAX)?;
        }
        let text: usize = self.inputs.iter().chain(&self.outputs).map(|t| t.elements.len() + 1).sum();
        limit("bytes of element names", "", text as u64, ELEMENT_TEXT_BYTES_MAX as u64)
    }

    /// Same names, dtypes and shapes in the same order: what a reload must keep.
    #[must_use]
    pub fn same_layout(&self, other: &Signature) -> bool {
        let same =
            |a: &[TensorSpec], b: &[TensorSpec]| a.len() == b.len() && a.iter().zip(b).all(|(x, y)| x.same_layout(y));
        same(&self.inputs, &other.inputs) && same(&self.outputs, &other.outputs)
    }
}

fn limit(what: &'static str, name: &str, value: u64, limit: u64) -> Result<(), SignatureError> {
    if value > limit {
        return Err(SignatureError::Limit { what, name: name.to_owned(), value, limit });
    }
    Ok(())
}

/// Header of the binary signature.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SignatureHeader {
    /// Number of inputs; their records come first.
    pub inputs: u32,
    /// Number of outputs.
    pub outputs: u32,
    /// Bit 0: stateful.
    pub flags: u32,
    /// Bytes of header, records and text together.
    pub bytes: u32,
}

/// One tensor of the binary signature.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TensorRecord {
    /// UTF-8, zero-terminated.
    pub name: [u8; 64],
    /// Number of [`DType`].
    pub dtype: u32,
    /// Dimensions used.
    pub rank: u32,
    /// Dimensions, outermost first; the rest is zero.
    pub shape: [u64; 8],
    /// Offset from the start of the slot.
    pub offset: u64,
    /// Bytes of the tensor.
    pub bytes: u64,
    /// Offset of the element names from the signature's start; zero-terminated text.
    pub text_offset: u32,
    /// Bytes of the element names without the terminating zero.
    pub text_bytes: u32,
    /// Axis that is time, or -1.
    pub time_axis: i32,
    /// Zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<SignatureHeader>() == 16, "C reads this record");
const _: () = assert!(size_of::<TensorRecord>() == 168, "C reads this record");

impl Signature {
    /// The binary form, as it stands in the reply region after its header.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let count = self.inputs.len() + self.outputs.len();
        let mut text_at = size_of::<SignatureHeader>() + count * size_of::<TensorRecord>();
        let (mut records, mut text) = (Vec::new(), Vec::new());
        for tensors in [&self.inputs, &self.outputs] {
            let (offsets, _) = slot_offsets(tensors);
            for (t, offset) in tensors.iter().zip(offsets) {
                let mut record = TensorRecord {
                    name: [0; 64],
                    dtype: t.dtype as u32,
                    rank: t.shape.len() as u32,
                    shape: [0; 8],
                    offset,
                    bytes: t.bytes(),
                    text_offset: text_at as u32,
                    text_bytes: t.elements.len() as u32,
                    time_axis: t.time_axis.map_or(-1, |a| a as i32),
                    reserved: 0,
                };
                record.name[..t.name.len()].copy_from_slice(t.name.as_bytes());
                record.shape[..t.shape.len()].copy_from_slice(&t.shape);
                records.extend_from_slice(record.as_bytes());
                text.extend_from_slice(t.elements.as_bytes());
                text.push(0);
                text_at += t.elements.len() + 1;
            }
        }
        let header = SignatureHeader {
            inputs: self.inputs.len() as u32,
            outputs: self.outputs.len() as u32,
            flags: u32::from(self.stateful),
            bytes: text_at as u32,
        };
        [header.as_bytes(), &records, &text].concat()
    }

    /// Reads the binary form back, checking everything.
    ///
    /// # Errors
    /// [`SignatureError::Damaged`] says what does not fit.
    pub fn decode(bytes: &[u8]) -> Result<Signature, SignatureError> {
        let (header, rest) =
            SignatureHeader::read_from_prefix(bytes).map_err(|_| SignatureError::Damaged("too short"))?;
        let (inputs, outputs) = (header.inputs as usize, header.outputs as usize);
        if inputs > TENSORS_MAX || outputs > TENSORS_MAX || header.bytes as usize > bytes.len() {
            return Err(SignatureError::Damaged("count or length out of range"));
        }
        let record_bytes = size_of::<TensorRecord>();
        let tensor = |i: usize| -> Result<TensorSpec, SignatureError> {
            let at = rest.get(i * record_bytes..).ok_or(SignatureError::Damaged("records cut off"))?;
            let (record, _) =
                TensorRecord::read_from_prefix(at).map_err(|_| SignatureError::Damaged("records cut off"))?;
            decode_tensor(&record, bytes)
        };
        let signature = Signature {
            inputs: (0..inputs).map(tensor).collect::<Result<_, _>>()?,
            outputs: (inputs..inputs + outputs).map(tensor).collect::<Result<_, _>>()?,
            stateful: header.flags & 1 != 0,
        };
        signature.check()?;
        Ok(signature)
    }
}

fn decode_tensor(record: &TensorRecord, bytes: &[u8]) -> Result<TensorSpec, SignatureError> {
    let end = record.name.iter().position(|b| *b == 0).ok_or(SignatureError::Damaged("name without end"))?;
    let name = std::str::from_utf8(&record.name[..end]).map_err(|_| SignatureError::Damaged("name is not UTF-8"))?;
    let rank = record.rank as usize;
    let shape = record.shape.get(..rank).ok_or(SignatureError::Damaged("rank out of range"))?;
    let from = record.text_offset as usize;
    let text = bytes.get(from..from.saturating_add(record.text_bytes as usize));
    let text = text.ok_or(SignatureError::Damaged("element names out of range"))?;
    let elements = std::str::from_utf8(text).map_err(|_| SignatureError::Damaged("element names are not UTF-8"))?;
    let tensor = TensorSpec {
        name: name.to_owned(),
        dtype: DType::from_number(record.dtype).ok_or(SignatureError::Damaged("unknown dtype"))?,
        shape: shape.to_vec(),
        elements: elements.to_owned(),
        time_axis: u32::try_from(record.time_axis).ok(),
    };
    if tensor.bytes() != record.bytes {
        return Err(SignatureError::Damaged("length does not follow from the shape"));
    }
    Ok(tensor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Signature {
        let mut action = TensorSpec::new("action", DType::F32, &[1, 12]);
        action.elements = "FL_hip [rad]\nFL_thigh [rad]".into();
        action.time_axis = Some(1);
        let inputs =
            vec![TensorSpec::new("obs", DType::F32, &[1, 45]), TensorSpec::new("image", DType::U8, &[480, 640, 3])];
        Signature { inputs, outputs: vec![action, TensorSpec::new("value", DType::F64, &[])], stateful: true }
    }

    #[test]
    fn a_signature_survives_the_way_through_shared_memory() {
        let bytes = sample().encode();
        assert_eq!(Signature::decode(&bytes), Ok(sample()));
    }

    #[test]
    fn tensors_are_aligned_and_never_overlap() {
        let (offsets, end) = slot_offsets(&sample().inputs);
        assert_eq!(offsets, [64, 64 + 192]);
        assert_eq!(end, 256 + 480 * 640 * 3);
    }

    #[test]
    fn a_damaged_signature_is_refused_at_every_cut() {
        let bytes = sample().encode();
        for cut in 0..bytes.len() {
            assert!(Signature::decode(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn repeated_names_and_oversized_tensors_are_refused() {
        let mut s = sample();
        s.inputs[1].name = "obs".into();
        assert_eq!(s.check(), Err(SignatureError::Name("obs".into())));
        let mut s = sample();
        s.inputs[0].shape = vec![u64::MAX, 3];
        assert!(matches!(s.check(), Err(SignatureError::Limit { what: "bytes of tensor", .. })));
    }

    #[test]
    fn every_bound_of_a_signature_holds_at_its_limit_and_not_above() {
        let of = |inputs| Signature { inputs, outputs: vec![TensorSpec::new("y", DType::U8, &[1])], stateful: false };
        let one = |name: &str, shape: &[u64]| of(vec![TensorSpec::new(name, DType::U8, shape)]);
        let many = |n: usize| of((0..n).map(|i| TensorSpec::new(&format!("t{i}"), DType::U8, &[1])).collect());
        let told = |bytes: usize| {
            let mut s = one("x", &[1]);
            s.inputs[0].elements = "e".repeat(bytes);
            s
        };
        // A slot begins with its header, and its tensors are aligned.
        let room = crate::limits::SLOT_BYTES_MAX - crate::layout::HEADER_BYTES as u64;
        let cases: [(Signature, Signature); 6] = [
            (many(TENSORS_MAX), many(TENSORS_MAX + 1)),
            (one("x", &[1; RANK_MAX]), one("x", &[1; RANK_MAX + 1])),
            (one(&"x".repeat(TENSOR_NAME_BYTES_MAX), &[1]), one(&"x".repeat(TENSOR_NAME_BYTES_MAX + 1), &[1])),
            (one("x", &[room]), one("x", &[TENSOR_BYTES_MAX + 1])),
            (one("x", &[room]), one("x", &[room + 1])),
            // Each tensor's text ends with a zero.
            (told(ELEMENT_TEXT_BYTES_MAX - 2), told(ELEMENT_TEXT_BYTES_MAX - 1)),
        ];
        for (n, (good, bad)) in cases.into_iter().enumerate() {
            assert_eq!(good.check(), Ok(()), "case {n}");
            assert!(matches!(bad.check(), Err(SignatureError::Limit { .. })), "case {n}: {:?}", bad.check());
        }
    }
}
