//! All that two inferd processes must agree on.
//!
//! Layout of the shared regions, rings and their orderings, doorbells, regions and their seals, the
//! baton, and the records of the sockets. All `unsafe` of the data plane lives here; nothing above
//! handles a raw pointer. The peer behind any of this may be hostile: geometry stays in private
//! memory, headers are copied once and checked once, and payloads are copied, never referenced.

#[cfg(not(loom))]
pub mod attach;
pub mod baton;
#[cfg(all(not(loom), feature = "control"))]
pub mod control;
mod cursor;
#[cfg(not(loom))]
pub mod failpoints;
#[cfg(not(loom))]
pub mod fdpass;
#[cfg(not(loom))]
pub mod fork;
pub mod layout;
pub mod limits;
pub mod mem;
#[cfg(not(loom))]
pub mod npy;
#[cfg(any(loom, feature = "worker-records"))]
pub mod record;
#[cfg(not(loom))]
pub mod region;
pub mod requester;
pub mod responder;
#[cfg(not(loom))]
pub mod sigbus;
pub mod signature;
mod sleeper;
pub mod state;
pub mod sync;
#[cfg(not(loom))]
pub mod sys;
#[cfg(all(not(loom), feature = "worker-records"))]
pub mod worker_records;

/// Marks a step at which a process may die, in builds that have the feature `failpoints`; nothing in this one.
#[cfg(not(feature = "failpoints"))]
#[macro_export]
macro_rules! failpoint {
    ($($step:tt)*) => {};
}
