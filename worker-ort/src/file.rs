//! An ONNX file looked at before ONNX Runtime parses it: its inputs, and the files that its weights lie in.
//!
//! The files beside the model come through the [`FileSource`], and ONNX Runtime takes weights from them in memory: it is
//! never given a path, nor left to open one. So every place that could make it open a file is looked at here, and what
//! ONNX Runtime would not take from memory (weights of a branch or an attribute in another file) is refused.

use crate::proto::{Attribute, Dimension, Graph, Model, Node, SparseTensor, Tensor, ValueInfo};
use inferd_ipc::limits::MODEL_FILES_MAX;
use inferd_worker::dimensions::{Declared, OpenInput};
use inferd_worker::files::{FileSource, check_name};
use inferd_worker::{Fault, ModelError};
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// `TensorProto.DataLocation`: the bytes lie in another file.
const EXTERNAL: i32 = 1;

/// What a file says of itself.
pub(crate) struct Facts {
    /// Inputs that are not constants, in the file's order.
    pub(crate) inputs: Vec<OpenInput>,
    /// The files that weights lie in, by the name that the model has for them.
    pub(crate) external: BTreeMap<String, Arc<[u8]>>,
}

pub(crate) fn not_onnx(file: &str, what: &str) -> ModelError {
    let remedy = "check that the file is a whole ONNX model, and that `backend` fits it";
    ModelError::new(Fault::File, format!("file {file:?}"), format!("is not an ONNX model: {what}"), remedy)
}

/// Reads the file, and asks for the files beside it that it names.
pub(crate) fn read(file: &str, bytes: &[u8], files: &mut dyn FileSource) -> Result<Facts, ModelError> {
    if bytes.starts_with(b"PK") {
        return Err(not_onnx(file, "it is a zip archive, as TorchScript files are"));
    }
    let model = Model::decode(bytes).map_err(|e| not_onnx(file, &e.to_string()))?;
    let Some(graph) = &model.graph else { return Err(not_onnx(file, "it holds no graph")) };
    for inner in model.functions.iter().flat_map(|f| &f.node).chain(&graph.node) {
        within(inner)?;
    }
    graph.sparse_initializer.iter().try_for_each(refuse_sparse)?;
    let mut external = BTreeMap::new();
    for tensor in graph.initializer.iter().filter(|t| is_external(t)) {
        fetch(tensor, files, &mut external)?;
    }
    let constants: BTreeSet<&str> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
    let inputs: Vec<&ValueInfo> = graph.input.iter().filter(|i| !constants.contains(i.name.as_str())).collect();
    if let Some(other) = inputs.iter().find(|i| i.r#type.as_ref().is_some_and(|t| t.tensor.is_none())) {
        let place = format!("input {:?} of {file:?}", other.name);
        let what = "is a sequence, a map or an optional, which no tensor of inferd can be";
        let remedy = "export the model with tensors of numbers or bools only";
        return Err(ModelError::new(Fault::Unsupported, place, what, remedy));
    }
    let inputs = inputs.into_iter().map(open).collect();
    Ok(Facts { inputs, external })
}

fn open(input: &ValueInfo) -> OpenInput {
    let dimension = |dim: &Dimension| match (dim.value, dim.param.as_deref()) {
        (Some(v), _) => u64::try_from(v).map_or(Declared::Unknown, Declared::Fixed),
        (None, Some(name)) if !name.is_empty() && name != "?" => Declared::Named(name.to_owned()),
        _ => Declared::Unknown,
    };
    let shape = input.r#type.as_ref().and_then(|t| t.tensor.as_ref()).and_then(|t| t.shape.as_ref());
    OpenInput { name: input.name.clone(), shape: shape.map(|s| s.dim.iter().map(dimension).collect()) }
}

fn is_external(tensor: &Tensor) -> bool {
    tensor.data_location == EXTERNAL || !tensor.external_data.is_empty()
}

/// Whatever lies in the attributes of a node: constants and graphs.
fn within(node: &Node) -> Result<(), ModelError> {
    node.attribute.iter().try_for_each(|attribute: &Attribute| {
        attribute.tensor.iter().chain(&attribute.tensors).try_for_each(refuse)?;
        attribute.sparse_tensor.iter().chain(&attribute.sparse_tensors).try_for_each(refuse_sparse)?;
        attribute.graph.iter().chain(&attribute.graphs).try_for_each(|graph: &Graph| {
            graph.initializer.iter().try_for_each(refuse)?;
            graph.sparse_initializer.iter().try_for_each(refuse_sparse)?;
            graph.node.iter().try_for_each(within)
        })
    })
}

fn refuse_sparse(tensor: &SparseTensor) -> Result<(), ModelError> {
    tensor.values.iter().chain(&tensor.indices).try_for_each(refuse)
}

fn refuse(tensor: &Tensor) -> Result<(), ModelError> {
    if !is_external(tensor) {
        return Ok(());
    }
    let what = "lies in another file, and ONNX Runtime takes only the weights of the outermost graph from one";
    let remedy = "export the model again with these weights inside the file";
    Err(ModelError::new(Fault::Unsupported, format!("constant {:?} of a branch or node", tensor.name), what, remedy))
}

/// The file of one tensor, and a check that the tensor lies within it.
fn fetch(
    tensor: &Tensor,
    files: &mut dyn FileSource,
    external: &mut BTreeMap<String, Arc<[u8]>>,
) -> Result<(), ModelError> {
    let get = |key: &str| tensor.external_data.iter().find(|e| e.key == key).map(|e| e.value.as_str());
    let name = get("location").unwrap_or_default();
    let place = format!("external data of {:?} in file {name:?}", tensor.name);
    let remedy = "export the model again, and keep its data files beside it";
    let fault = |what: String| ModelError::new(Fault::File, place.clone(), what, remedy);
    check_name(name)?;
    let number = |key: &str| {
        let parse = |v: &str| v.parse::<u64>().map_err(|_| fault(format!("{key} is {v:?}, not a number")));
        get(key).map(parse).transpose()
    };
    let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
    if !external.contains_key(name) {
        if external.len() >= MODEL_FILES_MAX {
            return Err(fault(format!("is in more than {MODEL_FILES_MAX} files, the limit")));
        }
        external.insert(name.to_owned(), files.file(name)?.into());
    }
    let there = external[name].len() as u64;
    let needed = bytes_of(tensor);
    if let (Some(length), Some(needed)) = (length, needed)
        && length != needed
    {
        return Err(fault(format!("is {length} bytes long, which does not match its shape: {needed} bytes")));
    }
    let wanted = length.or(needed).unwrap_or(0);
    if offset.checked_add(wanted).is_none_or(|end| end > there) {
        return Err(fault(format!("is at {offset}, {wanted} bytes long, but the file has {there} bytes")));
    }
    Ok(())
}

/// Bytes of a tensor whose elements are whole bytes.
fn bytes_of(tensor: &Tensor) -> Option<u64> {
    let element = match tensor.data_type {
        2 | 3 | 9 | 17..=20 => 1,
        4 | 5 | 10 | 16 => 2,
        1 | 6 | 12 => 4,
        7 | 11 | 13 | 14 => 8,
        15 => 16,
        _ => return None,
    };
    tensor.dims.iter().try_fold(element, |bytes: u64, dim| bytes.checked_mul(u64::try_from(*dim).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::Type;
    use inferd_worker::files::Memory;

    #[test]
    fn an_input_that_is_no_tensor_is_refused_as_what_it_is() {
        let optional = ValueInfo { name: "x".into(), r#type: Some(Type { tensor: None }) };
        let graph = Graph { input: vec![optional], ..Graph::default() };
        let model = Model { graph: Some(graph), ..Model::default() };
        let read = read("policy.onnx", &model.encode_to_vec(), &mut Memory::of(Vec::new()));
        let error = read.map(|_| ()).expect_err("an optional").to_string();
        assert!(error.contains("input \"x\"") && error.contains("an optional"), "{error}");
    }
}
