//! Which input of the manifest is which argument of the method.
//!
//! Arguments are tensors, tuples of tensors (a recurrent state, most often) and at most one dict. Without a dict inputs are
//! taken in order, whatever they are called; beside a dict the others are known by name, and what is left are its entries.
//! An argument that the method runs without is given only if the manifest names it.

use crate::load::manifest;
use crate::module::{Argument, Kind};
use crate::options::Options;
use inferd_ipc::signature::TensorSpec;
use inferd_ipc::worker_records::ModelSpec;
use inferd_worker::{Fault, ModelError};

/// A tensor that an argument wants: the argument's number, and a name.
struct Wanted {
    argument: usize,
    name: String,
}

fn list<'a>(names: impl IntoIterator<Item = &'a String>) -> String {
    let names: Vec<&str> = names.into_iter().map(String::as_str).collect();
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

/// The tensors of an argument that is no dict, by name.
fn tensors(argument: &Argument) -> Vec<String> {
    match argument.kind {
        Kind::Tensor => vec![argument.name.clone()],
        Kind::Tuple(count) => (0..count).map(|k| format!("{}.{k}", argument.name)).collect(),
        Kind::Dict | Kind::Other => Vec::new(),
    }
}

/// Pairs of an argument's number and an input's, in the order of the inputs.
///
/// # Errors
/// The manifest does not fit the method, or the method takes what no client can give.
pub fn assigned(
    spec: &ModelSpec,
    options: &Options,
    arguments: &[Argument],
    inputs: &[TensorSpec],
) -> Result<Vec<(usize, usize)>, ModelError> {
    let method = &options.method;
    let unfit = |what: String| {
        let remedy = "wrap the module so that it takes tensors, tuples of tensors, or one Dict[str, Tensor]";
        ModelError::new(Fault::Unsupported, format!("file {:?}", spec.file), what, remedy)
    };
    let is_named = |name: &String| inputs.iter().any(|i| i.name == *name);
    let (mut wanted, mut dict) = (Vec::new(), None);
    for (number, argument) in arguments.iter().enumerate() {
        let names = tensors(argument);
        match argument.kind {
            _ if argument.optional && !names.iter().any(is_named) => {}
            Kind::Other => {
                let what =
                    format!("argument {:?} of `{method}` is {}, and clients give tensors", argument.name, argument.ty);
                return Err(unfit(what));
            }
            Kind::Dict if dict.is_some() => return Err(unfit(format!("`{method}` takes more than one dict"))),
            Kind::Dict => dict = Some(number),
            _ => wanted.extend(names.into_iter().map(|name| Wanted { argument: number, name })),
        }
    }
    match dict {
        None => in_order(method, &wanted, inputs),
        Some(dict) => by_name(method, dict, &wanted, inputs),
    }
}

fn in_order(method: &str, wanted: &[Wanted], inputs: &[TensorSpec]) -> Result<Vec<(usize, usize)>, ModelError> {
    let names: Vec<String> = inputs.iter().map(|i| i.name.clone()).collect();
    let takes: Vec<String> = wanted.iter().map(|w| w.name.clone()).collect();
    if names.len() != takes.len() {
        let what = format!(
            "describes {} inputs ({}), but `{method}` takes {} ({})",
            names.len(),
            list(&names),
            takes.len(),
            list(&takes)
        );
        let remedy = "describe each with dtype and shape, in the order of the arguments";
        return Err(manifest("[inputs]".into(), what, remedy));
    }
    if names != takes && names.iter().all(|n| takes.contains(n)) {
        let what = format!("is {}, but `{method}` takes {}", list(&names), list(&takes));
        return Err(manifest("input_order".into(), what, "give the order of the arguments"));
    }
    Ok(wanted.iter().enumerate().map(|(input, wanted)| (wanted.argument, input)).collect())
}

fn by_name(
    method: &str,
    dict: usize,
    wanted: &[Wanted],
    inputs: &[TensorSpec],
) -> Result<Vec<(usize, usize)>, ModelError> {
    let mut pairs = Vec::new();
    for Wanted { argument, name } in wanted {
        let Some(input) = inputs.iter().position(|i| i.name == *name) else {
            let what = format!("lacks {name:?}, and `{method}` takes it beside a dict");
            return Err(manifest(
                "[inputs]".into(),
                what,
                "describe it by this name; the others are the dict's entries",
            ));
        };
        pairs.push((*argument, input));
    }
    let entries: Vec<usize> = (0..inputs.len()).filter(|i| pairs.iter().all(|(_, taken)| taken != i)).collect();
    if entries.is_empty() {
        let what = format!("describes none of its entries, and `{method}` takes a dict");
        return Err(manifest("[inputs]".into(), what, "describe its entries"));
    }
    // Elements of a tuple come in the order of the inputs.
    if let Some(pair) = pairs.windows(2).find(|pair| pair[0].0 == pair[1].0 && pair[0].1 > pair[1].1) {
        let what = format!("gives {:?} before {:?}", inputs[pair[1].1].name, inputs[pair[0].1].name);
        return Err(manifest("input_order".into(), what, "give the elements of a tuple in their order"));
    }
    pairs.extend(entries.into_iter().map(|input| (dict, input)));
    pairs.sort_by_key(|(_, input)| *input);
    Ok(pairs)
}
