//! `inferctl init`: a manifest skeleton from a model file, without a daemon.
//!
//! What the file says is written down: names, dtypes and shapes of its tensors, and which look like recurrent state. What it
//! cannot say stands there as a comment, to be filled in: units, normalisation, limits, golden pairs. An existing
//! manifest is never overwritten. The skeleton of an ONNX file loads as it is, unless the file leaves an axis open.

pub mod onnx;
pub mod torchscript;

use crate::cli::InitArgs;
use crate::failure::Failure;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

/// One input or output as a model file declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    /// Its name.
    pub name: String,
    /// The manifest's word for the element type; `None` where the file does not say.
    pub dtype: Option<&'static str>,
    /// Lengths, outermost first; `None` where the file does not say even how many.
    pub shape: Option<Vec<Axis>>,
}

/// The length of an axis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Axis {
    /// Fixed.
    Length(u64),
    /// A symbol, such as `batch`; empty where the file leaves it open without a name.
    Symbol(String),
}

/// What a model file declares.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Signature {
    /// In the file's order.
    pub inputs: Vec<Declared>,
    /// In the file's order.
    pub outputs: Vec<Declared>,
    /// What the file does not say, in a sentence for the manifest; empty if it says all.
    pub lacks: &'static str,
}

/// Runs the command.
///
/// # Errors
/// A file that cannot be read or understood, or a manifest that is there already.
pub fn run(args: &InitArgs) -> Result<bool, Failure> {
    let wrong = |why: String| Failure::ModelFile { path: args.file.display().to_string(), why };
    let name =
        args.file.file_name().and_then(|n| n.to_str()).ok_or_else(|| wrong("has no name in UTF-8".to_owned()))?;
    let bytes = fs::read(&args.file).map_err(|e| wrong(e.to_string()))?;
    let signature = match args.file.extension().and_then(|e| e.to_str()).unwrap_or("") {
        "onnx" => onnx::read(&bytes).map_err(wrong)?,
        "pt" | "pth" | "ts" | "torchscript" => torchscript::read(bytes).map_err(wrong)?,
        "h5" | "keras" | "pb" | "tflite" => {
            return Err(wrong(
                "export it to ONNX first: tools/export has a script for TensorFlow and Keras".to_owned(),
            ));
        }
        _ => return Err(wrong("has none of the endings .onnx, .pt, .pth, .ts, .torchscript".to_owned())),
    };
    let text = skeleton(name, &signature);
    let beside = args.file.with_file_name("model.toml");
    match args.output.as_deref().unwrap_or(&beside) {
        path if path == Path::new("-") => crate::out::print(&text).map_err(Failure::stdout)?,
        path => write_new(path, &text)?,
    }
    Ok(true)
}

fn write_new(path: &Path, text: &str) -> Result<(), Failure> {
    let failed = |source| Failure::Write { path: path.display().to_string(), source };
    let mut file = File::create_new(path).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    crate::out::print(&format!("{}\n", path.display())).map_err(Failure::stdout)
}

/// The manifest's text.
#[must_use]
pub fn skeleton(file: &str, signature: &Signature) -> String {
    let mut text = format!(
        "# Manifest of {file}: what the file says, and room for what it cannot say. docs/configuration.md has every key;\n\
         # `inferctl validate FOLDER` tries it without serving it.\n\nfile = {}\n# sha256 = \"...\"      # refuse any other file\n\
         # licence = \"...\"\n# source = \"...\"      # where it came from\n",
        quoted(file)
    );
    if !signature.lacks.is_empty() {
        put(&mut text, &format!("\n# {}", signature.lacks));
        for (key, tensors) in [("input_order", &signature.inputs), ("output_order", &signature.outputs)] {
            let names: Vec<String> = tensors.iter().map(|t| quoted(&t.name)).collect();
            put(&mut text, &format!("{key} = [{}]", names.join(", ")));
        }
    }
    let state = state_pairs(signature);
    for (kind, tensors) in [("inputs", &signature.inputs), ("outputs", &signature.outputs)] {
        for tensor in tensors {
            let is_state = state.iter().any(|(i, o)| *i == tensor.name || *o == tensor.name);
            put(&mut text, &section(kind, tensor, is_state));
        }
    }
    for (input, output) in &state {
        put(
            &mut text,
            &format!(
                "\n# Equal shapes, and names that go together: recurrent state, which the daemon then keeps for each session.\n\
                 [[state]]\ninput = {}\noutput = {}",
                quoted(input),
                quoted(output)
            ),
        );
    }
    text += "\n# Steps recorded with the framework that made the model; a generation that misses them does not go live.\n\
             # [[golden]]\n# file = \"golden.npz\"    # in.<input>, out.<output>, a leading step axis\n# tolerance = 1e-5\n";
    text
}

fn put(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

/// A TOML string: JSON's are, without what JSON alone escapes.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn section(kind: &str, tensor: &Declared, is_state: bool) -> String {
    let mut text = format!("\n[{kind}.{}]\n", quoted(&tensor.name));
    let dtype = tensor
        .dtype
        .map_or("# dtype = \"f32\"      # required: the file does not say".to_owned(), |d| format!("dtype = {d:?}"));
    put(&mut text, &dtype);
    put(&mut text, &shape_line(tensor.shape.as_deref()));
    if is_state {
        return text.trim_end().to_owned();
    }
    let last = tensor.shape.as_deref().and_then(<[Axis]>::last);
    let count = match last {
        Some(Axis::Length(n)) => format!("{n} of them"),
        _ => "one per element of the last axis".to_owned(),
    };
    put(&mut text, &format!("# elements = [\"name [unit]\"]    # {count}"));
    text += if kind == "inputs" {
        "# mean = 0.0    # x = (x - mean) / std, one number or one per element\n# std = 1.0"
    } else {
        "# limits = [-1.0, 1.0]    # a value outside makes the step a model_error"
    };
    text
}

fn shape_line(shape: Option<&[Axis]>) -> String {
    let Some(shape) = shape else {
        return "# shape = [1, 45]    # required: the file does not say".to_owned();
    };
    let mut open = Vec::new();
    let lengths: Vec<String> = shape
        .iter()
        .enumerate()
        .map(|(i, axis)| match axis {
            Axis::Length(n) => n.to_string(),
            Axis::Symbol(name) => {
                open.push((i, name.clone()));
                "1".to_owned()
            }
        })
        .collect();
    let lengths = format!("shape = [{}]", lengths.join(", "));
    if open.is_empty() {
        return lengths;
    }
    let names: Vec<String> =
        open.iter().map(|(i, n)| if n.is_empty() { format!("axis {i}") } else { format!("axis {i} ({n})") }).collect();
    format!("{lengths}    # the file leaves {} open: set what it shall be", names.join(" and "))
}

/// Inputs and outputs that look like recurrent state: `h_in` and `h_out`, `state` and `next_state`, of one shape.
fn state_pairs(signature: &Signature) -> Vec<(String, String)> {
    let stem = |name: &str, words: &[&str]| {
        let lower = name.to_lowercase();
        let parts: Vec<&str> = lower.split(['_', '.', '-']).filter(|p| !words.contains(p)).collect();
        parts.join("_")
    };
    let mut pairs = Vec::new();
    for input in &signature.inputs {
        let of_input = stem(&input.name, &["in", "input", "prev", "previous", "old"]);
        let mut matches = signature.outputs.iter().filter(|output| {
            output.name != input.name
                && input.shape.is_some()
                && input.shape == output.shape
                && input.dtype == output.dtype
                && stem(&output.name, &["out", "output", "next", "new"]) == of_input
        });
        if let Some(output) = matches.next_back() {
            pairs.push((input.name.clone(), output.name.clone()));
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, shape: &[u64]) -> Declared {
        let shape = shape.iter().map(|n| Axis::Length(*n)).collect();
        Declared { name: name.to_owned(), dtype: Some("f32"), shape: Some(shape) }
    }

    #[test]
    fn a_skeleton_says_what_the_file_says_and_pairs_state() {
        let signature = Signature {
            inputs: vec![tensor("obs", &[1, 47]), tensor("h_in", &[1, 1, 64])],
            outputs: vec![tensor("actions", &[1, 12]), tensor("h_out", &[1, 1, 64])],
            lacks: "",
        };
        let text = skeleton("policy.onnx", &signature);
        for line in [
            "file = \"policy.onnx\"",
            "[inputs.\"obs\"]",
            "shape = [1, 47]",
            "[[state]]",
            "input = \"h_in\"",
            "output = \"h_out\"",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
        assert_eq!(state_pairs(&signature).len(), 1);
    }

    #[test]
    fn an_open_axis_is_one_and_says_so() {
        let shape = [Axis::Symbol("batch".to_owned()), Axis::Symbol(String::new()), Axis::Length(3)];
        assert_eq!(
            shape_line(Some(&shape)),
            "shape = [1, 1, 3]    # the file leaves axis 0 (batch) and axis 1 open: set what it shall be"
        );
    }

    #[test]
    fn tensors_of_other_shapes_are_no_state() {
        let signature = Signature {
            inputs: vec![tensor("h_in", &[1, 64]), tensor("x", &[4])],
            outputs: vec![tensor("h_out", &[1, 32]), tensor("y", &[4])],
            lacks: "",
        };
        assert!(state_pairs(&signature).is_empty());
    }
}
