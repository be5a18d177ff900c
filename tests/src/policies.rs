//! Policies of any size with random weights, as ONNX files.
//!
//! Equal seeds make equal files; files of two seeds answer the same observation differently. The wire format is that of
//! [`crate::onnx`].

use crate::answer::mix;
use crate::onnx::{message, number, text, value_info};

/// A constant f32 tensor.
fn constant(name: &str, shape: &[u64], elements: &[f32]) -> Vec<u8> {
    let dims: Vec<u8> = shape.iter().flat_map(|d| number(1, *d)).collect();
    let bytes: Vec<u8> = elements.iter().flat_map(|e| e.to_le_bytes()).collect();
    message(5, &[dims, number(2, 1), text(8, name), message(9, &bytes)].concat())
}

fn node(op: &str, inputs: &[&str], output: &str) -> Vec<u8> {
    let inputs: Vec<u8> = inputs.iter().flat_map(|i| text(1, i)).collect();
    message(1, &[inputs, text(2, output), text(4, op)].concat())
}

fn model(graph: &[u8]) -> Vec<u8> {
    let opset = number(2, 13);
    [number(1, 8), message(7, graph), message(8, &opset)].concat()
}

/// Weights between -gain and gain over the root of the inputs: neither vanishing nor exploding from layer to layer.
fn weights(seed: u64, inputs: u64, outputs: u64, gain: f64) -> Vec<f32> {
    let scale = gain * (3.0 / inputs as f64).sqrt();
    let unit = |i: u64| (mix(seed ^ mix(i)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0;
    (0..inputs * outputs).map(|i| (unit(i) * scale) as f32).collect()
}

/// Widths of the layers of a quadruped's walking policy: 0.76 MB of weights.
pub const WALKING: [u64; 5] = [48, 512, 256, 128, 12];

/// A multilayer perceptron `x -> y`, ELU between the layers, weights from `seed`; f32`[1, widths[0]]` and f32`[1, last]`.
///
/// # Panics
/// With fewer than two widths.
#[must_use]
pub fn perceptron(widths: &[u64], seed: u64) -> Vec<u8> {
    perceptron_of(widths, |layer, n, m| weights(mix(seed).wrapping_add(layer as u64), n, m, 1.3))
}

/// The same with weights of another making: `of(layer, inputs, outputs)`.
///
/// # Panics
/// With fewer than two widths.
#[must_use]
pub fn perceptron_of(widths: &[u64], of: impl Fn(usize, u64, u64) -> Vec<f32>) -> Vec<u8> {
    let layers = widths.len() - 1;
    let (mut nodes, mut constants) = (Vec::new(), Vec::new());
    let mut from = "x".to_owned();
    for (i, pair) in widths.windows(2).enumerate() {
        let (weight, bias, product) = (format!("w{i}"), format!("b{i}"), format!("p{i}"));
        constants.extend(constant(&weight, pair, &of(i, pair[0], pair[1])));
        constants.extend(constant(&bias, &pair[1..], &vec![0.01; pair[1] as usize]));
        nodes.extend(node("MatMul", &[&from, &weight], &product));
        let last = i + 1 == layers;
        let sum = if last { "y".to_owned() } else { format!("s{i}") };
        nodes.extend(node("Add", &[&product, &bias], &sum));
        from = format!("h{i}");
        if !last {
            nodes.extend(node("Elu", &[&sum], &from));
        }
    }
    let (x, y) = (value_info("x", &[1, widths[0]]), value_info("y", &[1, widths[layers]]));
    model(&[nodes, text(2, "perceptron"), constants, message(11, &x), message(12, &y)].concat())
}

/// A recurrent model `x, h -> y, h_out`: f32`[1, n]`, f32`[1, m]`. Its state never comes to rest.
#[must_use]
pub fn recurrent(n: u64, m: u64, seed: u64) -> Vec<u8> {
    let seed = mix(seed);
    let nodes = [
        node("MatMul", &["x", "wx"], "a"),
        node("MatMul", &["h", "wh"], "b"),
        node("Add", &["a", "b"], "s"),
        node("Tanh", &["s"], "h_out"),
        node("MatMul", &["h_out", "wo"], "y"),
    ];
    let constants = [
        constant("wx", &[n, m], &weights(seed, n, m, 1.0)),
        constant("wh", &[m, m], &weights(seed + 1, m, m, 2.5)),
        constant("wo", &[m, n], &weights(seed + 2, m, n, 1.0)),
    ];
    let tensors = [
        message(11, &value_info("x", &[1, n])),
        message(11, &value_info("h", &[1, m])),
        message(12, &value_info("y", &[1, n])),
        message(12, &value_info("h_out", &[1, m])),
    ];
    model(&[nodes.concat(), text(2, "recurrent"), constants.concat(), tensors.concat()].concat())
}
