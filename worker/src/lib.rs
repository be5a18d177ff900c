//! inferd-worker: one process that holds one generation of one model and answers its sessions.
//!
//! A model file becomes a [`policy::Policy`]: the file run by a [`backend`], together with all that the
//! manifest says of it (conditioning of inputs, recurrent state pairs, guard on outputs). Loading
//! checks, compares golden pairs and warms up; a step copies nothing and allocates nothing of ours.
//! What a model or an inference library does wrong ends as a [`ModelError`], panics included.
//!
//! This crate is a library too, so that users serve a backend of their own: implement
//! [`backend::Backend`], and call the same loop. What is shared with other processes (regions, rings,
//! baton) is `inferd-ipc`'s.

pub mod aligned;
pub mod aside;
pub mod backend;
mod binding;
pub mod conditioning;
pub mod confine;
pub mod contain;
pub mod control;
pub mod dimensions;
mod error;
pub mod executor;
pub mod files;
pub mod golden;
pub mod guard;
pub mod link;
pub mod logs;
pub mod mailbox;
mod pass_on;
pub mod policy;
pub mod realtime;
pub mod session;
pub mod shadow;
pub mod sleep;
pub mod stats;
pub mod step;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod turns;
pub mod warm_up;

pub use error::{Fault, ModelError, in_short};
pub use policy::Policy;
