//! Files of a model's author or an operator: golden pairs, recordings, ONNX and TorchScript files looked at by our own code.

use inferd_ipc::signature::{DType, Signature, TensorSpec};
use inferd_tools::array::read_npy;
use inferd_tools::init::{onnx as onnx_file, skeleton, torchscript as torchscript_file};
use inferd_tools::recording::{Recording, Wanted};
use inferd_worker::golden;
use std::cell::OnceCell;
use std::path::{Path, PathBuf};

/// An npz file as the worker reads its golden pairs.
pub fn golden(bytes: &[u8]) {
    let Ok(recording) = golden::Recording::read("golden.npz", bytes.to_vec()) else { return };
    for array in recording.inputs.values().chain(recording.outputs.values()).chain(recording.states.values()) {
        for step in [0, recording.steps - 1] {
            let bytes = array.step(step);
            let _ = golden::difference(array.dtype, bytes, bytes);
        }
    }
}

/// An npz file as `inferctl replay` reads a recording, and an npy file as `inferctl call` reads an input.
pub fn recording(bytes: &[u8]) {
    with_file(bytes, |path| {
        if let Ok(array) = read_npy(path) {
            assert_eq!(array.elements_count() * array.dtype.size_bytes(), array.bytes.len());
            let _ = array.describe();
        }
        for stateful in [false, true] {
            let tensor = |name| vec![TensorSpec::new(name, DType::F32, &[1, 4])];
            let signature = Signature { inputs: tensor("x"), outputs: tensor("y"), stateful };
            let Ok(recording) = Recording::load(path, &signature, Wanted::InputsAndOutputs) else { continue };
            for array in recording.inputs.iter().chain(&recording.outputs) {
                let _ = Recording::at(array, recording.steps, recording.steps.saturating_sub(1));
            }
        }
    });
}

/// An ONNX file as `inferctl init` reads it.
pub fn onnx(bytes: &[u8]) {
    if let Ok(signature) = onnx_file::read(bytes) {
        let _ = skeleton("policy.onnx", &signature);
    }
}

/// A TorchScript archive as `inferctl init` reads it.
pub fn torchscript(bytes: &[u8]) {
    if let Ok(signature) = torchscript_file::read(bytes.to_vec()) {
        let _ = skeleton("policy.pt", &signature);
    }
}

/// Calls with a file of these bytes.
fn with_file(bytes: &[u8], call: impl Fn(&Path)) {
    thread_local!(static FILE: OnceCell<(tempfile::TempDir, PathBuf)> = const { OnceCell::new() });
    FILE.with(|file| {
        let (_, path) = file.get_or_init(|| {
            let dir = tempfile::tempdir().expect("a folder");
            let path = dir.path().join("array");
            (dir, path)
        });
        std::fs::write(path, bytes).expect("written");
        call(path);
    });
}
