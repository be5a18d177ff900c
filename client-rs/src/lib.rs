//! The Rust client of inferd: a robot process attaches to a model, writes observations into shared
//! memory and reads actions out of it.
//!
//! [`Session`] is the whole data path: [`Session::infer`] for one call at a time, or
//! [`Session::request`] -> [`Request::submit`] -> [`Session::wait`] for several in flight. While both
//! sides spin, a request costs no system call and no allocation. Every published request ends in one
//! outcome: a [`Reply`] with its [`Status`], [`Outcome::Superseded`], or [`Error::DaemonLost`].
//! The operator's commands are [`AdminClient`] (feature `admin`). Layout, orderings, mappings and all
//! `unsafe` are `inferd-ipc`'s. A session belongs to one process and to one thread at a time.

#![forbid(unsafe_code)]

#[cfg(feature = "admin")]
mod admin;
mod attach;
mod clock;
mod dirs;
mod element;
mod error;
mod fork;
mod link;
mod options;
mod reattach;
mod reply;
mod request;
mod session;
mod tickets;
mod wait;

#[cfg(feature = "admin")]
pub use admin::{AdminClient, COMMAND_TIMEOUT_MS, Dump, LONG_COMMAND_TIMEOUT_MS, verdict_of};
pub use clock::now_ns;
pub use dirs::{ATTACH_SOCKET, CONTROL_SOCKET, RuntimeDir, Tried, runtime_dir};
pub use element::Element;
pub use error::Error;
pub use inferd_ipc::{
    attach::AttachStatus,
    layout::{Backing, Queue, REPLY_STATE_RESET, ServingState, Status},
    limits,
    signature::{DType, Signature, TensorSpec},
};
#[cfg(feature = "admin")]
pub use inferd_ipc::{
    control, npy,
    record::{RecordLayout, RecordedStep},
    worker_records::{OutputDifference, ShadowReport, StageStats},
};
pub use options::{AttachOptions, CallOptions};
pub use reply::{Outcome, Reply, ReplyInfo, Ticket};
pub use request::Request;
pub use session::Session;

/// Version of this library, `major.minor.patch`.
#[must_use]
pub const fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// ABI of the shared memory and of the attach records that this library speaks: (major, minor).
/// It works with every daemon of the same major number.
#[must_use]
pub const fn abi() -> (u16, u16) {
    (inferd_ipc::layout::ABI_MAJOR, inferd_ipc::layout::ABI_MINOR)
}
