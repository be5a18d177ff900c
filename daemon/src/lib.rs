//! The inferd supervisor, as a library for its binary and its tests.

#![forbid(unsafe_code)]

pub mod config;
mod journal;
pub mod logs;
pub mod manifest;
pub mod paths;
mod room;
pub mod rpc;
pub mod staging;
pub mod store;
pub mod supervisor;
