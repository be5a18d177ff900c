//! The numbers of [`crate::dimensions`], written into the file before tract parses it.
//!
//! Inner values and subgraphs learn the same numbers; what the file says of them beyond that is
//! forgotten, for tract infers it.

use crate::ModelError;
use crate::dimensions::{Declared, OpenInput, Symbols, resolve};
use inferd_ipc::worker_records::ModelSpec;
use tract_onnx::pb::{GraphProto, TensorShapeProto, ValueInfoProto};
use tract_onnx::pb::{tensor_shape_proto::Dimension, tensor_shape_proto::dimension::Value as Dim, type_proto::Value};

/// Fixes the inputs that clients and state pairs fill; `warn` hears of a batch that was assumed.
pub(super) fn fix(graph: &mut GraphProto, spec: &ModelSpec, warn: &mut dyn FnMut(&str)) -> Result<(), ModelError> {
    let initialised: Vec<String> = graph.initializer.iter().map(|t| t.name.clone()).collect();
    let mut inputs: Vec<&mut ValueInfoProto> =
        graph.input.iter_mut().filter(|i| !initialised.contains(&i.name)).collect();
    let open: Vec<OpenInput> = inputs.iter().map(|i| OpenInput { name: i.name.clone(), shape: declared(i) }).collect();
    let (shapes, symbols) = resolve(&open, spec, warn)?;
    for (input, shape) in inputs.iter_mut().zip(shapes) {
        if let Some(slot) = shape_slot(input) {
            let number = |v: u64| Dim::DimValue(i64::try_from(v).unwrap_or(i64::MAX));
            let dim = shape.into_iter().map(|v| Dimension { value: Some(number(v)), ..Dimension::default() }).collect();
            *slot = Some(TensorShapeProto { dim });
        }
    }
    forget(graph, &symbols, false);
    Ok(())
}

fn shape_slot(value: &mut ValueInfoProto) -> Option<&mut Option<TensorShapeProto>> {
    let Value::TensorType(tensor) = value.r#type.as_mut()?.value.as_mut()?;
    Some(&mut tensor.shape)
}

fn declared(value: &ValueInfoProto) -> Option<Vec<Declared>> {
    let Value::TensorType(tensor) = value.r#type.as_ref()?.value.as_ref()?;
    let dimension = |dim: &Dimension| match &dim.value {
        Some(Dim::DimValue(v)) => u64::try_from(*v).map_or(Declared::Unknown, Declared::Fixed),
        Some(Dim::DimParam(name)) if !name.is_empty() && name != "?" => Declared::Named(name.clone()),
        _ => Declared::Unknown,
    };
    Some(tensor.shape.as_ref()?.dim.iter().map(dimension).collect())
}

/// Writes known symbols into every other value, and drops the unknown ones.
fn forget(graph: &mut GraphProto, symbols: &Symbols, inner: bool) {
    let inputs = if inner { graph.input.as_mut_slice() } else { &mut [] };
    for value in inputs.iter_mut().chain(&mut graph.output).chain(&mut graph.value_info) {
        let Some(Some(shape)) = shape_slot(value) else { continue };
        for dim in &mut shape.dim {
            if let Some(Dim::DimParam(symbol)) = &dim.value {
                let value = symbols.evaluate(symbol).and_then(|v| i64::try_from(v).ok());
                dim.value = value.map(Dim::DimValue);
            }
        }
    }
    let attributes = graph.node.iter_mut().flat_map(|n| &mut n.attribute);
    attributes.flat_map(|a| a.g.iter_mut().chain(&mut a.graphs)).for_each(|g| forget(g, symbols, true));
}
