//! Names, dtypes and shapes out of an ONNX file: the few protobuf fields that say them, and nothing else.
//!
//! ModelProto 7 is the graph; GraphProto 5 the initialisers, 11 the inputs, 12 the outputs; ValueInfoProto 1 the name, 2 the
//! type; TypeProto 1 a tensor: 1 its element type, 2 its shape, whose dimensions (1) are a number (1) or a symbol (2).

use super::{Axis, Declared, Signature};

/// A field's value, of the two kinds that matter here.
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a protobuf message, in their order; `None` where it is none.
fn fields(mut bytes: &[u8]) -> Option<Vec<(u64, Value<'_>)>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let skip = |bytes: &mut &[u8], n: usize| -> Option<()> {
            *bytes = bytes.get(n..)?;
            Some(())
        };
        match key & 7 {
            0 => found.push((key >> 3, Value::Number(varint(&mut bytes)?))),
            1 => skip(&mut bytes, 8)?,
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                let (value, rest) = (bytes.get(..length)?, bytes.get(length..)?);
                found.push((key >> 3, Value::Bytes(value)));
                bytes = rest;
            }
            5 => skip(&mut bytes, 4)?,
            _ => return None,
        }
    }
    Some(found)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn messages<'a>(fields: &[(u64, Value<'a>)], number: u64) -> Vec<&'a [u8]> {
    let of = |(n, value): &(u64, Value<'a>)| match value {
        Value::Bytes(bytes) if *n == number => Some(*bytes),
        _ => None,
    };
    fields.iter().filter_map(of).collect()
}

fn number(fields: &[(u64, Value<'_>)], number: u64) -> Option<u64> {
    fields.iter().rev().find_map(|(n, value)| match value {
        Value::Number(value) if *n == number => Some(*value),
        _ => None,
    })
}

fn text(fields: &[(u64, Value<'_>)], field: u64) -> Option<String> {
    messages(fields, field).last().and_then(|bytes| String::from_utf8(bytes.to_vec()).ok())
}

/// TensorProto.DataType as the manifest says it.
fn dtype(code: u64) -> Option<&'static str> {
    let names = [
        (1, "f32"),
        (2, "u8"),
        (3, "i8"),
        (4, "u16"),
        (5, "i16"),
        (6, "i32"),
        (7, "i64"),
        (9, "bool"),
        (10, "f16"),
        (11, "f64"),
        (12, "u32"),
        (13, "u64"),
        (16, "bf16"),
    ];
    names.iter().find(|(c, _)| *c == code).map(|(_, name)| *name)
}

fn axis(bytes: &[u8]) -> Option<Axis> {
    let dimension = fields(bytes)?;
    Some(match (number(&dimension, 1), text(&dimension, 2)) {
        // Some exporters write -1 for a length that is open.
        (Some(length), _) if length > 0 && length <= i64::MAX as u64 => Axis::Length(length),
        (_, symbol) => Axis::Symbol(symbol.unwrap_or_default()),
    })
}

fn declared(bytes: &[u8]) -> Option<Declared> {
    let info = fields(bytes)?;
    let mut found = Declared { name: text(&info, 1)?, dtype: None, shape: None };
    let Some(kind) = messages(&info, 2).first().copied() else { return Some(found) };
    let Some(tensor) = messages(&fields(kind)?, 1).first().copied() else { return Some(found) };
    let tensor = fields(tensor)?;
    found.dtype = number(&tensor, 1).and_then(dtype);
    if let Some(shape) = messages(&tensor, 2).first() {
        found.shape = Some(messages(&fields(shape)?, 1).into_iter().map(axis).collect::<Option<Vec<Axis>>>()?);
    }
    Some(found)
}

fn signature(bytes: &[u8]) -> Option<Signature> {
    let model = fields(bytes)?;
    let graph = fields(messages(&model, 7).first()?)?;
    let constants: Vec<String> = messages(&graph, 5).into_iter().filter_map(|t| text(&fields(t)?, 8)).collect();
    let all = |number| messages(&graph, number).into_iter().map(declared).collect::<Option<Vec<Declared>>>();
    let mut inputs = all(11)?;
    // Old files list their weights among the inputs too.
    inputs.retain(|input| !constants.contains(&input.name));
    Some(Signature { inputs, outputs: all(12)?, lacks: "" })
}

/// What an ONNX file declares.
///
/// # Errors
/// A sentence, when it is none.
pub fn read(bytes: &[u8]) -> Result<Signature, String> {
    match signature(bytes) {
        Some(found) if !found.inputs.is_empty() && !found.outputs.is_empty() => Ok(found),
        _ => Err("is no ONNX model with inputs and outputs; export it again".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(field: u8, body: &[u8]) -> Vec<u8> {
        [&[field << 3 | 2, body.len() as u8][..], body].concat()
    }

    fn value(name: &str, dims: &[&[u8]]) -> Vec<u8> {
        let dims: Vec<u8> = dims.iter().flat_map(|d| message(1, d)).collect();
        let tensor = [&[1 << 3, 1][..], &message(2, &dims)].concat();
        [message(1, name.as_bytes()), message(2, &message(1, &tensor))].concat()
    }

    fn model() -> Vec<u8> {
        let batch = message(2, b"batch");
        let weight = message(8, b"w");
        let graph = [
            message(5, &weight),
            message(11, &value("x", &[&batch, &[1 << 3, 45]])),
            message(11, &value("w", &[&[1 << 3, 2]])),
            message(12, &value("y", &[])),
        ]
        .concat();
        [&[1 << 3, 8][..], &message(7, &graph)].concat()
    }

    #[test]
    fn names_dtypes_and_shapes_come_out_and_weights_do_not() {
        let found = read(&model()).expect("a model");
        let x = Declared {
            name: "x".to_owned(),
            dtype: Some("f32"),
            shape: Some(vec![Axis::Symbol("batch".to_owned()), Axis::Length(45)]),
        };
        assert_eq!(found.inputs, [x]);
        assert_eq!((found.outputs[0].name.as_str(), found.outputs[0].shape.as_deref()), ("y", Some(&[][..])));
    }

    #[test]
    fn every_cut_of_a_model_is_refused_or_read_but_never_panics() {
        let whole = model();
        for cut in 0..whole.len() {
            let _ = read(&whole[..cut]);
        }
        assert!(read(&whole[..whole.len() - 1]).is_err());
        assert!(read(b"not a model").is_err());
    }
}
