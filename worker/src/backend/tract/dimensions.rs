//! Every dimension of every input made a number, before tract parses the file.
//!
//! A symbol gets its value from `[dimensions]`, else from a `shape` in the manifest, else, where it is
//! the first dimension of an input, it is a batch of 1. Anything else is refused by name: a policy's
//! buffers have one size for good. Inner values and subgraphs learn the same numbers; what the file
//! says of them beyond that is forgotten, for tract infers it.

use crate::{Fault, ModelError};
use inferd_ipc::worker_records::ModelSpec;
use std::collections::BTreeMap;
use tract_onnx::dim_expr::parse_onnx_dim;
use tract_onnx::pb::{GraphProto, TensorShapeProto, ValueInfoProto};
use tract_onnx::pb::{tensor_shape_proto::Dimension, tensor_shape_proto::dimension::Value as Dim, type_proto::Value};
use tract_onnx::prelude::{SymbolScope, SymbolValues};

/// A symbol's value and where it comes from, for messages.
type Symbols = BTreeMap<String, (u64, String)>;

/// Fixes the inputs that clients and state pairs fill; `warn` hears of a batch that was assumed.
pub(super) fn fix(graph: &mut GraphProto, spec: &ModelSpec, warn: &mut dyn FnMut(&str)) -> Result<(), ModelError> {
    let initialised: Vec<String> = graph.initializer.iter().map(|t| t.name.clone()).collect();
    let mut inputs: Vec<&mut ValueInfoProto> =
        graph.input.iter_mut().filter(|i| !initialised.contains(&i.name)).collect();
    let mut symbols = named_in_manifest(&inputs, spec)?;
    for input in &mut inputs {
        take_manifest_shape(input, spec, &mut symbols)?;
    }
    for input in &inputs {
        assume_batch(input, &mut symbols, warn);
    }
    for input in &mut inputs {
        resolve(input, &symbols)?;
    }
    forget(graph, &symbols, false);
    Ok(())
}

fn fault(input: &str, what: String, remedy: &str) -> ModelError {
    ModelError::new(Fault::Manifest, format!("input {input:?}"), what, remedy)
}

fn shape(value: &ValueInfoProto) -> Option<&TensorShapeProto> {
    let Value::TensorType(tensor) = value.r#type.as_ref()?.value.as_ref()?;
    tensor.shape.as_ref()
}

fn shape_slot(value: &mut ValueInfoProto) -> Option<&mut Option<TensorShapeProto>> {
    let Value::TensorType(tensor) = value.r#type.as_mut()?.value.as_mut()?;
    Some(&mut tensor.shape)
}

/// What a dimension is: a number, a symbol, or nothing.
enum Declared<'a> {
    Fixed(u64),
    Named(&'a str),
    Unknown,
}

fn declared(dim: &Dimension) -> Declared<'_> {
    match &dim.value {
        Some(Dim::DimValue(v)) => u64::try_from(*v).map_or(Declared::Unknown, Declared::Fixed),
        Some(Dim::DimParam(name)) if !name.is_empty() && name != "?" => Declared::Named(name),
        _ => Declared::Unknown,
    }
}

/// `[dimensions]`, each of which must be a symbol of the file.
fn named_in_manifest(inputs: &[&mut ValueInfoProto], spec: &ModelSpec) -> Result<Symbols, ModelError> {
    let dims = inputs.iter().filter_map(|i| shape(i)).flat_map(|s| &s.dim);
    let names: Vec<&str> =
        dims.filter_map(|d| if let Declared::Named(n) = declared(d) { Some(n) } else { None }).collect();
    for name in spec.dimensions.keys() {
        let word = |text: &&str| text.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == name);
        if !names.iter().any(|n| *n == name || word(n)) {
            let what = format!("the inputs of {:?} have no such symbol; they have: {}", spec.file, names.join(", "));
            let place = format!("{name} in [dimensions] of model.toml");
            return Err(ModelError::new(Fault::Manifest, place, what, "correct the name, or remove it"));
        }
    }
    Ok(spec.dimensions.iter().map(|(k, v)| (k.clone(), (*v, "[dimensions]".to_owned()))).collect())
}

/// Takes what `[inputs.NAME] shape` says, where the file leaves it open.
fn take_manifest_shape(input: &mut ValueInfoProto, spec: &ModelSpec, symbols: &mut Symbols) -> Result<(), ModelError> {
    let Some(said) = spec.inputs.get(&input.name).and_then(|r| r.shape.clone()) else { return Ok(()) };
    let name = input.name.clone();
    let number = |v: &u64| Dimension { value: Some(Dim::DimValue(*v as i64)), ..Dimension::default() };
    let Some(slot) = shape_slot(input) else { return Ok(()) };
    let Some(shape) = slot else {
        *slot = Some(TensorShapeProto { dim: said.iter().map(number).collect() });
        return Ok(());
    };
    let remedy = "correct shape of this input in model.toml, or leave it to the file";
    if shape.dim.len() != said.len() {
        let what = format!("model.toml says {said:?}, but {:?} has {} dimensions", spec.file, shape.dim.len());
        return Err(fault(&name, what, remedy));
    }
    for (axis, (dim, value)) in shape.dim.iter_mut().zip(&said).enumerate() {
        match declared(dim) {
            Declared::Fixed(v) if v != *value => {
                let what = format!("model.toml says {value} at axis {axis}, but {:?} has {v}", spec.file);
                return Err(fault(&name, what, remedy));
            }
            Declared::Fixed(_) => {}
            Declared::Named(symbol) => {
                let from = format!("shape of input {name:?}");
                let (known, by) = symbols.entry(symbol.to_owned()).or_insert((*value, from));
                if known != value {
                    let what = format!("model.toml says {value} for {symbol:?} here, and {known} in {by}");
                    return Err(fault(&name, what, "give the symbol one value"));
                }
            }
            Declared::Unknown => *dim = number(value),
        }
    }
    Ok(())
}

fn assume_batch(input: &ValueInfoProto, symbols: &mut Symbols, warn: &mut dyn FnMut(&str)) {
    let first = shape(input).and_then(|s| s.dim.first());
    if let Some(Declared::Named(symbol)) = first.map(declared)
        && is_plain(symbol)
        && !symbols.contains_key(symbol)
    {
        warn(&format!("{symbol:?}, the first dimension of input {:?}, is taken as a batch of 1", input.name));
        symbols.insert(symbol.to_owned(), (1, "a batch of 1".to_owned()));
    }
}

/// A name, not an expression of names.
fn is_plain(symbol: &str) -> bool {
    !symbol.contains(['+', '-', '*', '/', '(', ')', ' '])
}

fn resolve(input: &mut ValueInfoProto, symbols: &Symbols) -> Result<(), ModelError> {
    let name = input.name.clone();
    let slot = shape_slot(input);
    let Some(shape) = slot.and_then(Option::as_mut) else {
        let remedy = "give its shape under [inputs] in model.toml";
        return Err(fault(&name, "the file does not say how many dimensions it has".into(), remedy));
    };
    for (axis, dim) in shape.dim.iter_mut().enumerate() {
        let value = match declared(dim) {
            Declared::Fixed(v) => v,
            Declared::Unknown if axis == 0 => 1,
            Declared::Unknown => {
                let remedy = "give its shape under [inputs] in model.toml";
                return Err(fault(&name, format!("dimension {axis} is open, and has no name"), remedy));
            }
            Declared::Named(symbol) => evaluate(symbol, symbols).ok_or_else(|| {
                let remedy = "set the symbol under [dimensions] in model.toml";
                fault(&name, format!("dimension {axis} is the symbol {symbol:?}, which has no value"), remedy)
            })?,
        };
        dim.value = Some(Dim::DimValue(i64::try_from(value).unwrap_or(i64::MAX)));
    }
    Ok(())
}

/// The value of a symbol, or of an expression of symbols.
fn evaluate(symbol: &str, symbols: &Symbols) -> Option<u64> {
    if let Some((value, _)) = symbols.get(symbol) {
        return Some(*value);
    }
    let scope = SymbolScope::default();
    let expression = parse_onnx_dim(&scope, symbol).ok()?;
    let mut values = SymbolValues::default();
    for (name, (value, _)) in symbols {
        values.set(&scope.sym(name), i64::try_from(*value).ok()?);
    }
    u64::try_from(expression.eval(&values).as_i64()?).ok()
}

/// Writes known symbols into every other value, and drops the unknown ones.
fn forget(graph: &mut GraphProto, symbols: &Symbols, inner: bool) {
    let inputs = if inner { graph.input.as_mut_slice() } else { &mut [] };
    for value in inputs.iter_mut().chain(&mut graph.output).chain(&mut graph.value_info) {
        let Some(Some(shape)) = shape_slot(value) else { continue };
        for dim in &mut shape.dim {
            if let Some(Dim::DimParam(symbol)) = &dim.value {
                let value = evaluate(symbol, symbols).and_then(|v| i64::try_from(v).ok());
                dim.value = value.map(Dim::DimValue);
            }
        }
    }
    let attributes = graph.node.iter_mut().flat_map(|n| &mut n.attribute);
    attributes.flat_map(|a| a.g.iter_mut().chain(&mut a.graphs)).for_each(|g| forget(g, symbols, true));
}
