//! The smallest ONNX file that is a model: `y = x + 1` elementwise, written by hand.
//!
//! Tests of wrong files need a right one to begin with, also on a clone that has no policies beside it.
//! Field numbers are those of `onnx.proto` (ModelProto 1, 7, 8; GraphProto 1, 2, 5, 11, 12).

fn varint(mut n: u64, to: &mut Vec<u8>) {
    while n >= 0x80 {
        to.push(n as u8 | 0x80);
        n >>= 7;
    }
    to.push(n as u8);
}

fn number(field: u64, n: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    varint(field << 3, &mut bytes);
    varint(n, &mut bytes);
    bytes
}

fn message(field: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    varint(field << 3 | 2, &mut bytes);
    varint(body.len() as u64, &mut bytes);
    bytes.extend(body);
    bytes
}

fn text(field: u64, text: &str) -> Vec<u8> {
    message(field, text.as_bytes())
}

/// A tensor's name, f32, and its shape.
fn value_info(name: &str, shape: &[u64]) -> Vec<u8> {
    let dims: Vec<u8> = shape.iter().flat_map(|d| message(1, &number(1, *d))).collect();
    let tensor_type = [number(1, 1), message(2, &dims)].concat();
    [text(1, name), message(2, &message(1, &tensor_type))].concat()
}

/// `y = x + 1` on f32 tensors of this shape.
#[must_use]
pub fn plus_one(shape: &[u64]) -> Vec<u8> {
    let one = [number(2, 1), text(8, "one"), message(9, &1.0f32.to_le_bytes())].concat();
    let node = [text(1, "x"), text(1, "one"), text(2, "y"), text(4, "Add")].concat();
    let graph = [
        message(1, &node),
        text(2, "plus_one"),
        message(5, &one),
        message(11, &value_info("x", shape)),
        message(12, &value_info("y", shape)),
    ]
    .concat();
    let opset = number(2, 13);
    [number(1, 8), message(7, &graph), message(8, &opset)].concat()
}
