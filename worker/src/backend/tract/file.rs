//! An ONNX file made self-contained and readable for tract, before tract parses it.
//!
//! Pulls external data in through the [`FileSource`] (tract itself would open paths), refuses operators
//! that tract lacks by name, and widens bf16 to f32 throughout: tract has no bf16, and f32 loses
//! nothing; the boundary converts. Also moves u32 and u64 constants into raw form, where tract reads
//! them with their right type. Subgraphs get the same treatment.

use crate::files::{FileSource, check_name};
use crate::{Fault, ModelError};
use half::bf16;
use inferd_ipc::limits::MODEL_FILES_MAX;
use std::collections::{BTreeMap, BTreeSet};
use tract_onnx::pb::{
    AttributeProto, GraphProto, TensorProto, ValueInfoProto, tensor_proto::DataType, type_proto::Value,
};

const BFLOAT16: i32 = DataType::Bfloat16 as i32;
const FLOAT: i32 = DataType::Float as i32;

/// Prepares the graph and everything within.
pub(super) fn prepare(
    graph: &mut GraphProto,
    files: &mut dyn FileSource,
    has_operator: &dyn Fn(&str) -> bool,
) -> Result<(), ModelError> {
    let mut missing = BTreeSet::new();
    operators(graph, has_operator, &mut missing);
    if !missing.is_empty() {
        let names = missing.into_iter().collect::<Vec<_>>().join(", ");
        let remedy = "serve it through ONNX Runtime (backend = \"ort\"), or export with standard ONNX operators";
        return Err(ModelError::new(Fault::Unsupported, "operators", format!("tract does not have {names}"), remedy));
    }
    Preparation { files, read: BTreeMap::new() }.graph(graph)
}

/// Whether the value's element type is bf16 in the file.
pub(super) fn is_bf16(value: &ValueInfoProto) -> bool {
    elem_type(value) == Some(BFLOAT16)
}

fn elem_type(value: &ValueInfoProto) -> Option<i32> {
    let Value::TensorType(tensor) = value.r#type.as_ref()?.value.as_ref()?;
    Some(tensor.elem_type)
}

fn operators(graph: &GraphProto, has: &dyn Fn(&str) -> bool, missing: &mut BTreeSet<String>) {
    for node in &graph.node {
        if !has(&node.op_type) {
            let domain = if node.domain.is_empty() { String::new() } else { format!("{}.", node.domain) };
            missing.insert(format!("{domain}{}", node.op_type));
        }
        let inner = node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs));
        inner.for_each(|g| operators(g, has, missing));
    }
}

struct Preparation<'a> {
    files: &'a mut dyn FileSource,
    /// External data files, by name.
    read: BTreeMap<String, Vec<u8>>,
}

impl Preparation<'_> {
    fn graph(&mut self, graph: &mut GraphProto) -> Result<(), ModelError> {
        if !graph.sparse_initializer.is_empty() {
            let remedy = "serve it through ONNX Runtime (backend = \"ort\"), or export it with dense initialisers";
            return Err(ModelError::new(Fault::Unsupported, "graph", "has sparse initialisers", remedy));
        }
        for value in graph.input.iter_mut().chain(&mut graph.output).chain(&mut graph.value_info) {
            if let Some(Value::TensorType(tensor)) = value.r#type.as_mut().and_then(|t| t.value.as_mut())
                && tensor.elem_type == BFLOAT16
            {
                tensor.elem_type = FLOAT;
            }
        }
        graph.initializer.iter_mut().try_for_each(|t| self.tensor(t))?;
        graph.node.iter_mut().flat_map(|n| &mut n.attribute).try_for_each(|a| self.attribute(a))
    }

    fn attribute(&mut self, attribute: &mut AttributeProto) -> Result<(), ModelError> {
        if matches!(attribute.name.as_str(), "to" | "dtype" | "output_dtype") && attribute.i == i64::from(BFLOAT16) {
            attribute.i = i64::from(FLOAT);
        }
        attribute.t.iter_mut().chain(&mut attribute.tensors).try_for_each(|t| self.tensor(t))?;
        attribute.g.iter_mut().chain(&mut attribute.graphs).try_for_each(|g| self.graph(g))
    }

    fn tensor(&mut self, tensor: &mut TensorProto) -> Result<(), ModelError> {
        if !tensor.external_data.is_empty() {
            tensor.raw_data = self.external(tensor)?;
            tensor.external_data.clear();
            tensor.data_location = None;
        }
        if tensor.data_type == BFLOAT16 {
            let halves: Vec<bf16> = if tensor.raw_data.is_empty() {
                tensor.int32_data.iter().map(|v| bf16::from_bits(*v as u16)).collect()
            } else {
                tensor.raw_data.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b)).collect()
            };
            tensor.raw_data = halves.into_iter().flat_map(|v| v.to_f32().to_le_bytes()).collect();
            tensor.int32_data.clear();
            tensor.data_type = FLOAT;
        }
        if tensor.raw_data.is_empty() && tensor.data_type == DataType::Uint64 as i32 {
            tensor.raw_data = tensor.uint64_data.drain(..).flat_map(u64::to_le_bytes).collect();
        } else if tensor.raw_data.is_empty() && tensor.data_type == DataType::Uint32 as i32 {
            tensor.raw_data = tensor.uint64_data.drain(..).flat_map(|v| (v as u32).to_le_bytes()).collect();
        }
        Ok(())
    }

    /// The bytes of a tensor that lie in another file.
    fn external(&mut self, tensor: &TensorProto) -> Result<Vec<u8>, ModelError> {
        let get = |key: &str| tensor.external_data.iter().find(|e| e.key == key).map(|e| e.value.as_str());
        let name = get("location").unwrap_or_default();
        let place = format!("external data of {:?} in file {name:?}", tensor.name);
        let remedy = "export the model again, and keep its data files beside it";
        let fault = |what: String| ModelError::new(Fault::File, place.clone(), what, remedy);
        check_name(name)?;
        let number = |key: &str| {
            let parse = |v: &str| v.parse::<usize>().map_err(|_| fault(format!("{key} is {v:?}, not a number")));
            get(key).map(parse).transpose()
        };
        let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
        if !self.read.contains_key(name) {
            if self.read.len() >= MODEL_FILES_MAX {
                return Err(fault(format!("is in more than {MODEL_FILES_MAX} files, the limit")));
            }
            self.read.insert(name.to_owned(), self.files.file(name)?);
        }
        let file = &self.read[name];
        let end = length.map_or(Some(file.len()), |l| offset.checked_add(l));
        let bytes = end.and_then(|end| file.get(offset..end));
        bytes.map(<[u8]>::to_vec).ok_or_else(|| {
            let wanted = length.map_or("to its end".to_owned(), |l| format!("{l} bytes long"));
            fault(format!("is at {offset}, {wanted}, but the file has {} bytes", file.len()))
        })
    }
}
