//! inferd-worker-ort: ONNX files served through ONNX Runtime, at its speed and with all of its operators.
//!
//! Nothing of ONNX Runtime is linked: its shared library is found and opened when a model is loaded
//! (`library.rs`), so that this crate builds everywhere. The rest of a worker (protocol, rings, state
//! pairs, guard) is `inferd-worker`'s; here is a [`Backend`](inferd_worker::backend::Backend) and no more.

mod bound;
mod file;
mod library;
mod message;
mod model;
mod options;
mod proto;

pub use library::{API_MINOR, Library};
pub use model::Ort;
