//! Small models for tests: ONNX and TorchScript files written by hand, and specs as the supervisor would send them.
//!
//! Behind the feature `testing`, so that the tests of other crates make the same files; never in a
//! released binary. Nothing here needs an inference library, nor a file on disk.

pub mod npz;
pub mod onnx;
pub mod spec;
pub mod torchscript;
