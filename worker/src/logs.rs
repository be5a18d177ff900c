//! Logs of a worker: lines on standard error, which the supervisor shares with it.
//!
//! The executor never logs; the control thread does it for it. The level comes from `INFERD_LOG` and
//! may be changed while the worker runs.

use std::sync::OnceLock;
use tracing_subscriber::prelude::*;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

static LEVEL: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Installs the subscriber; a second call changes nothing.
pub fn init() {
    let filter = std::env::var("INFERD_LOG").ok().and_then(|f| EnvFilter::try_new(f).ok());
    let (filter, handle) = reload::Layer::new(filter.unwrap_or_else(|| EnvFilter::new("info")));
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(false).with_target(false).without_time();
    let installed = tracing_subscriber::registry().with(filter).with(lines).try_init();
    if installed.is_ok() {
        let _ = LEVEL.set(handle);
    }
}

/// Changes the level.
///
/// # Errors
/// A sentence when the directive is not one.
pub fn set_level(directive: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(directive).map_err(|e| format!("log level {directive:?}: {e}"))?;
    let handle = LEVEL.get().ok_or("no log is installed")?;
    handle.reload(filter).map_err(|e| e.to_string())
}
