//! Manifest meets file: every rule is checked against the tensors that the backend found.
//!
//! A contradiction is refused, and the message names both values and the remedy: nobody silently wins.
//! What comes out is the signature that clients see, without recurrent state pairs, and where each of
//! its tensors lies in the model. State tensors lie one after the other in a half of the state region,
//! each on a 64-byte boundary, in the order of the manifest's pairs.

use crate::backend::HiddenState;
use crate::conditioning::{Affine, columns_of};
use crate::guard::Guard;
use crate::policy::{InputPort, OutputPort, Ports, StatePort};
use crate::{Fault, ModelError};
use inferd_ipc::signature::{Signature, TENSOR_ALIGN, TensorSpec};
use inferd_ipc::worker_records::{ModelSpec, TensorRules};
use std::collections::BTreeMap;

/// Checks everything, and settles what goes where.
pub(crate) fn bind(
    spec: &ModelSpec,
    inputs: &[TensorSpec],
    outputs: &[TensorSpec],
    hidden: &[HiddenState],
) -> Result<Ports, ModelError> {
    let (hidden_in, hidden_out) =
        (|i: usize| hidden.iter().any(|h| h.input == i), |i: usize| hidden.iter().any(|h| h.output == i));
    let inputs = apply_rules("inputs", &spec.file, inputs, &hidden_in, &spec.inputs, &spec.input_order)?;
    let outputs = apply_rules("outputs", &spec.file, outputs, &hidden_out, &spec.outputs, &spec.output_order)?;
    let stateful = !spec.state.is_empty() || !hidden.is_empty();
    let mut ports = Ports {
        signature: Signature { inputs: Vec::new(), outputs: Vec::new(), stateful },
        inputs: Vec::new(),
        outputs: Vec::new(),
        states: Vec::new(),
        state_offsets: Vec::new(),
        state_bytes: 0,
        state_layout: String::new(),
    };
    bind_states(spec, &inputs, &outputs, &mut ports)?;
    for pair in hidden {
        ports.add_state(pair.input, pair.output, &inputs[pair.input], &outputs[pair.output], false);
    }
    let none = TensorRules::default();
    for (model_input, tensor) in inputs.iter().enumerate() {
        if ports.states.iter().any(|s| s.model_input == model_input) {
            continue;
        }
        let rules = spec.inputs.get(&tensor.name).unwrap_or(&none);
        let affine = Affine::of_input(tensor, rules)?;
        let (dtype, allow_non_finite) = (tensor.dtype, rules.allow_non_finite);
        ports.inputs.push(InputPort { model_input, dtype, allow_non_finite, affine });
        ports.signature.inputs.push(tensor.clone());
    }
    for (model_output, tensor) in outputs.iter().enumerate() {
        if ports.states.iter().any(|s| s.model_output == model_output) {
            continue;
        }
        let guard = Guard::of_output(tensor, spec.outputs.get(&tensor.name).unwrap_or(&none))?;
        ports.outputs.push(OutputPort { model_output, guard });
        ports.signature.outputs.push(tensor.clone());
    }
    let remedy = "change the model's tensors, or their description in model.toml";
    let place = format!("signature of {:?}", spec.file);
    ports.signature.check().map_err(|e| ModelError::new(Fault::Signature, place, e.to_string(), remedy))?;
    compare_with_live(spec, &ports.signature)?;
    Ok(ports)
}

/// The file's tensors with what the manifest adds to those that are not hidden.
fn apply_rules(
    side: &str,
    file: &str,
    tensors: &[TensorSpec],
    hidden: &dyn Fn(usize) -> bool,
    rules: &BTreeMap<String, TensorRules>,
    order: &[String],
) -> Result<Vec<TensorSpec>, ModelError> {
    let seen: Vec<&str> = (0..tensors.len()).filter(|i| !hidden(*i)).map(|i| tensors[i].name.as_str()).collect();
    let names = seen.join(", ");
    for name in rules.keys().chain(order) {
        if !seen.contains(&name.as_str()) {
            let what = format!("{file:?} has no such tensor among its {side}: {names}");
            return Err(manifest(format!("[{side}.{name}]"), what, "correct the name, or remove the section"));
        }
    }
    let listed: Vec<&str> = seen.iter().copied().filter(|n| order.iter().any(|o| o == n)).collect();
    if listed != order {
        let what = format!("is {order:?}, but {file:?} has {listed:?}");
        let remedy = "remove the order: this file says its own";
        return Err(manifest(format!("order of {side}"), what, remedy));
    }
    let ruled = |i: usize| rules.get(&tensors[i].name).filter(|_| !hidden(i));
    (0..tensors.len()).map(|i| ruled(i).map_or(Ok(tensors[i].clone()), |r| apply(side, file, &tensors[i], r))).collect()
}

fn apply(side: &str, file: &str, tensor: &TensorSpec, rules: &TensorRules) -> Result<TensorSpec, ModelError> {
    let place = |key: &str| format!("{key} of [{side}.{}]", tensor.name);
    if let Some(dtype) = rules.dtype
        && dtype != tensor.dtype
    {
        let what = format!("is {dtype}, but {file:?} has {}", tensor.dtype);
        return Err(manifest(place("dtype"), what, "correct it, or leave it to the file"));
    }
    if let Some(shape) = &rules.shape
        && *shape != tensor.shape
    {
        let what = format!("is {shape:?}, but {file:?} gives {:?}", tensor.shape);
        return Err(manifest(place("shape"), what, "correct it, or leave it to the file"));
    }
    if rules.elements.iter().any(|e| e.is_empty() || e.chars().any(char::is_control)) {
        return Err(manifest(place("elements"), "holds an empty name or a control character".into(), "remove it"));
    }
    if !rules.elements.is_empty() && rules.elements.len() != columns_of(tensor) {
        let what =
            format!("has {} names, but the last axis of {tensor} has {}", rules.elements.len(), columns_of(tensor));
        return Err(manifest(place("elements"), what, "name every element of the last axis, or none"));
    }
    if let Some(axis) = rules.time_axis
        && (side == "inputs" || axis as usize >= tensor.shape.len())
    {
        let what = format!("is {axis}, but {tensor} is not an output with such an axis");
        return Err(manifest(place("time_axis"), what, "name an axis of an output, counted from 0"));
    }
    let mut tensor = tensor.clone();
    tensor.elements = rules.elements.join("\n");
    tensor.time_axis = rules.time_axis;
    Ok(tensor)
}

/// Finds the tensors of every state pair, and gives each its place in the state region.
fn bind_states(
    spec: &ModelSpec,
    inputs: &[TensorSpec],
    outputs: &[TensorSpec],
    ports: &mut Ports,
) -> Result<(), ModelError> {
    let find = |tensors: &[TensorSpec], key: &str, name: &str, place: &str| {
        let names = tensors.iter().map(|t| t.name.as_str()).collect::<Vec<_>>().join(", ");
        let what = format!("{key} {name:?} is not among those of {:?}: {names}", spec.file);
        let missing = || manifest(place.to_owned(), what, "correct the name");
        tensors.iter().position(|t| t.name == name).ok_or_else(missing)
    };
    for pair in &spec.state {
        let place = format!("[[state]] {} <- {}", pair.input, pair.output);
        let model_input = find(inputs, "input", &pair.input, &place)?;
        let model_output = find(outputs, "output", &pair.output, &place)?;
        let (input, output) = (&inputs[model_input], &outputs[model_output]);
        if ports.states.iter().any(|s| s.model_input == model_input || s.model_output == model_output) {
            return Err(manifest(place, "a tensor is in two pairs".into(), "name each tensor in one pair only"));
        }
        if input.dtype != output.dtype || input.shape != output.shape {
            let what = format!("{input} and {output} differ in dtype or shape");
            return Err(manifest(place, what, "pair tensors that are alike"));
        }
        let rules = [spec.inputs.get(&pair.input), spec.outputs.get(&pair.output)];
        for rules in rules.into_iter().flatten() {
            let TensorRules { mean, std, scale, offset, clip, limits, .. } = rules;
            if [mean, std, scale, offset].into_iter().any(Option::is_some) || clip.is_some() || limits.is_some() {
                let what = "the pair has normalisation, clip or limits, but state passes as it is".into();
                return Err(manifest(place, what, "remove them, or do it inside the model"));
            }
        }
        let allow_non_finite = rules.into_iter().flatten().any(|r| r.allow_non_finite);
        ports.add_state(model_input, model_output, input, output, allow_non_finite);
    }
    Ok(())
}

impl Ports {
    /// Gives a state pair the next place in the state region.
    fn add_state(
        &mut self,
        model_input: usize,
        model_output: usize,
        input: &TensorSpec,
        output: &TensorSpec,
        allow_non_finite: bool,
    ) {
        let offset = self.state_bytes;
        self.state_offsets.push(offset);
        self.state_bytes = (offset + input.bytes()).next_multiple_of(TENSOR_ALIGN);
        let dims = input.shape.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
        self.state_layout += &format!("{}<-{}:{}[{dims}]@{offset};", input.name, output.name, input.dtype);
        self.states.push(StatePort { model_input, model_output, guard: Guard::of_state(output, allow_non_finite) });
    }
}

/// A reload keeps the signature; anything else is a new model.
fn compare_with_live(spec: &ModelSpec, signature: &Signature) -> Result<(), ModelError> {
    let Some(live) = &spec.expect else { return Ok(()) };
    if signature.same_layout(live) && signature.stateful == live.stateful {
        return Ok(());
    }
    let list = |s: &Signature| {
        let join = |t: &[TensorSpec]| t.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let kind = if s.stateful { "stateful" } else { "stateless" };
        format!("({}) -> ({}), {kind}", join(&s.inputs), join(&s.outputs))
    };
    Err(ModelError::new(
        Fault::Signature,
        format!("signature of {:?}", spec.file),
        format!("is {}, but the live generation has {}", list(signature), list(live)),
        "a changed signature is a new model: load it under another name",
    ))
}

fn manifest(key: String, what: String, remedy: &str) -> ModelError {
    ModelError::new(Fault::Manifest, format!("{key} in model.toml"), what, remedy)
}
