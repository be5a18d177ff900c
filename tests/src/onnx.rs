//! The smallest ONNX files that are models, elementwise and written by hand: `y = x + 1`, and what only looks like it.
//!
//! Tests of wrong files need a right one to begin with, also on a clone that has no policies beside it; tests of gates
//! need wrong ones that no check of the file can find.
//! Field numbers are those of `onnx.proto` (ModelProto 1, 7, 8; GraphProto 1, 2, 5, 11, 12).

fn varint(mut n: u64, to: &mut Vec<u8>) {
    while n >= 0x80 {
        to.push(n as u8 | 0x80);
        n >>= 7;
    }
    to.push(n as u8);
}

pub(crate) fn number(field: u64, n: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    varint(field << 3, &mut bytes);
    varint(n, &mut bytes);
    bytes
}

pub(crate) fn message(field: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    varint(field << 3 | 2, &mut bytes);
    varint(body.len() as u64, &mut bytes);
    bytes.extend(body);
    bytes
}

pub(crate) fn text(field: u64, text: &str) -> Vec<u8> {
    message(field, text.as_bytes())
}

/// A tensor's name, f32, and its shape.
pub(crate) fn value_info(name: &str, shape: &[u64]) -> Vec<u8> {
    let dims: Vec<u8> = shape.iter().flat_map(|d| message(1, &number(1, *d))).collect();
    let tensor_type = [number(1, 1), message(2, &dims)].concat();
    [text(1, name), message(2, &message(1, &tensor_type))].concat()
}

/// An operator, its inputs and its output.
type Node<'a> = (&'a str, &'a [&'a str], &'a str);

/// A model of f32 tensors `x` and `y` of this shape; constants are numbers.
fn elementwise(name: &str, shape: &[u64], constants: &[(&str, f32)], nodes: &[Node<'_>]) -> Vec<u8> {
    let node = |(operator, inputs, output): &Node<'_>| {
        let inputs: Vec<u8> = inputs.iter().flat_map(|input| text(1, input)).collect();
        message(1, &[inputs, text(2, output), text(4, operator)].concat())
    };
    let constant = |(name, value): &(&str, f32)| {
        message(5, &[number(2, 1), text(8, name), message(9, &value.to_le_bytes())].concat())
    };
    let graph = [
        nodes.iter().flat_map(node).collect(),
        text(2, name),
        constants.iter().flat_map(constant).collect(),
        message(11, &value_info("x", shape)),
        message(12, &value_info("y", shape)),
    ]
    .concat();
    let opset = number(2, 13);
    [number(1, 8), message(7, &graph), message(8, &opset)].concat()
}

/// `y = x + 1` on f32 tensors of this shape.
#[must_use]
pub fn plus_one(shape: &[u64]) -> Vec<u8> {
    elementwise("plus_one", shape, &[("one", 1.0)], &[("Add", &["x", "one"], "y")])
}

/// `y = 1 + x`: the same arithmetic in another file.
#[must_use]
pub fn one_plus(shape: &[u64]) -> Vec<u8> {
    elementwise("one_plus", shape, &[("one", 1.0)], &[("Add", &["one", "x"], "y")])
}

/// `y = x + 1` where x is at most `limit`, and `limit + 1` above: wrong only where nobody looked.
#[must_use]
pub fn plus_one_up_to(limit: f32, shape: &[u64]) -> Vec<u8> {
    let nodes: &[Node<'_>] = &[("Min", &["x", "limit"], "low"), ("Add", &["low", "one"], "y")];
    elementwise("plus_one_up_to", shape, &[("limit", limit), ("one", 1.0)], nodes)
}

/// `y = x + 1` where x is at most `limit`, and NaN above.
#[must_use]
pub fn plus_one_or_nan(limit: f32, shape: &[u64]) -> Vec<u8> {
    let nodes: &[Node<'_>] = &[
        ("Sub", &["limit", "x"], "left"),
        ("Sqrt", &["left"], "root"),
        ("Sub", &["root", "root"], "zero_or_nan"),
        ("Add", &["x", "one"], "sum"),
        ("Add", &["sum", "zero_or_nan"], "y"),
    ];
    elementwise("plus_one_or_nan", shape, &[("limit", limit), ("one", 1.0)], nodes)
}
