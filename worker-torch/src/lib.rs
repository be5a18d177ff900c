//! TorchScript models run by libtorch, on a CPU or a CUDA device.
//!
//! libtorch is loaded when a model is (`library.rs`), never linked: the worker can say that it is missing, and the
//! PyTorch of the machine, CUDA included, can stand in for the one it was built with. What libtorch says in C++ the shim
//! says in C (`shim/`); `module.rs` is its safe face. `load.rs` finds out what the file does not say by running it:
//! shapes, state that it hides, which of its forms is the fastest that computes the same. `model.rs` runs a step.
//! Without the feature `libtorch` this crate is empty.

#[cfg(feature = "libtorch")]
mod arguments;
#[cfg(feature = "libtorch")]
mod choose;
#[cfg(feature = "libtorch")]
mod library;
#[cfg(feature = "libtorch")]
mod load;
#[cfg(feature = "libtorch")]
mod model;
#[cfg(feature = "libtorch")]
mod module;
#[cfg(feature = "libtorch")]
mod options;
#[cfg(all(test, feature = "libtorch"))]
mod tests;
#[cfg(feature = "libtorch")]
mod text;

#[cfg(feature = "libtorch")]
pub use load::Torch;
