//! Structured logs: to the journal when systemd reads our stderr, else to stderr as text.
//!
//! The filter (`--log`, else `INFERD_LOG`, else `info`) can be changed while running. Faults of sessions
//! can be provoked by anybody, so they pass a [`LogLimiter`] first.

use crate::journal::Journal;
use std::num::NonZeroU64;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Registry, reload};

const FILTER_DEFAULT: &str = "info";
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Why a filter is not taken, or logging cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Not a filter.
    #[error("{filter:?} is no log filter ({reason}); give a level ({}) or targets, as \"info,inferd=debug\"", LEVELS.join(", "))]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        reason: String,
    },
    /// This process logs already.
    #[error("logging was started twice: {0}")]
    Twice(#[from] TryInitError),
    /// The subscriber is gone.
    #[error("the log filter cannot be changed: {0}; restart inferd")]
    Gone(#[from] reload::Error),
}

/// The running logs.
#[derive(Debug)]
pub struct Logs {
    filter: reload::Handle<EnvFilter, Registry>,
    level: String,
    journal: bool,
}

impl Logs {
    /// Starts logging for this process: `filter`, else `$INFERD_LOG`, else `info`.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn start(filter: Option<&str>) -> Result<Logs, LogError> {
        let variable = std::env::var("INFERD_LOG").ok().filter(|v| !v.is_empty());
        let level = filter.map(str::to_owned).or(variable).unwrap_or_else(|| FILTER_DEFAULT.to_owned());
        let (layer, handle) = reload::Layer::new(parse_filter(&level)?);
        // Without a journal to talk to, text on stderr still reaches whoever reads it.
        let journal = stderr_is_journal().then(|| Journal::open().ok()).flatten();
        let is_journal = journal.is_some();
        let text = (!is_journal)
            .then(|| tracing_subscriber::fmt::layer().with_ansi(false).with_target(false).with_writer(std::io::stderr));
        tracing_subscriber::registry().with(layer).with(journal).with(text).try_init()?;
        Ok(Logs { filter: handle, level, journal: is_journal })
    }

    /// Logs that go nowhere: a process can start them only once.
    #[cfg(test)]
    pub(crate) fn nowhere() -> Logs {
        let (_, filter) = reload::Layer::new(EnvFilter::new("off"));
        Logs { filter, level: "off".to_owned(), journal: false }
    }

    /// Changes the filter.
    ///
    /// # Errors
    /// Not a filter; the old one stays.
    pub fn set_level(&mut self, filter: &str) -> Result<(), LogError> {
        self.filter.reload(parse_filter(filter)?)?;
        self.level = filter.to_owned();
        Ok(())
    }

    /// The filter, as workers get it.
    #[must_use]
    pub fn level(&self) -> &str {
        &self.level
    }

    /// Whether the journal gets the logs.
    #[must_use]
    pub fn is_journal(&self) -> bool {
        self.journal
    }
}

/// Reads a filter. A lone word that is no level would silently mean "this target only", so it is refused.
///
/// # Errors
/// [`LogError::Filter`].
pub fn parse_filter(filter: &str) -> Result<EnvFilter, LogError> {
    let fault = |reason: String| LogError::Filter { filter: filter.to_owned(), reason };
    for part in filter.split(',').map(str::trim) {
        let level = LEVELS.contains(&part.to_ascii_lowercase().as_str());
        if !level && !part.contains('=') && !part.contains('[') {
            return Err(fault(format!("{part:?} is no level")));
        }
    }
    EnvFilter::try_new(filter).map_err(|e| fault(e.to_string()))
}

/// systemd names the device and inode of the stream that it connected to the journal.
fn stderr_is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(meta) = nix::sys::stat::fstat(std::io::stderr().as_fd()) else { return false };
    stream == format!("{}:{}", meta.st_dev, meta.st_ino)
}

/// Lets so many lines per second into the log and counts the rest.
#[derive(Debug)]
pub struct LogLimiter {
    per_s: u32,
    window: Option<Instant>,
    logged: u32,
    left_out: u64,
}

impl LogLimiter {
    /// So many a second.
    #[must_use]
    pub fn of(per_s: u32) -> LogLimiter {
        LogLimiter { per_s, window: None, logged: 0, left_out: 0 }
    }

    /// `Some(n)`: log this line, and that `n` before it were left out if any were. `None`: leave it out.
    pub fn admit(&mut self, now: Instant) -> Option<Option<NonZeroU64>> {
        let fresh = self.window.is_none_or(|start| now.duration_since(start) >= Duration::from_secs(1));
        if fresh {
            self.window = Some(now);
            self.logged = 0;
        }
        if self.logged >= self.per_s {
            self.left_out += 1;
            return None;
        }
        self.logged += 1;
        Some(NonZeroU64::new(std::mem::take(&mut self.left_out)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use inferd_ipc::limits::FAULT_LOGS_PER_S;

    #[test]
    fn a_flood_of_faults_leaves_ten_lines_a_second_and_a_count() {
        let mut limiter = LogLimiter::of(FAULT_LOGS_PER_S);
        let start = Instant::now();
        let admitted = (0..1000).filter(|_| limiter.admit(start).is_some()).count();
        assert_eq!(admitted, FAULT_LOGS_PER_S as usize);
        let later = start + Duration::from_secs(1);
        assert_eq!(limiter.admit(later), Some(NonZeroU64::new(1000 - u64::from(FAULT_LOGS_PER_S))));
        assert_eq!(limiter.admit(later), Some(None));
    }

    #[test]
    fn a_misspelt_level_is_refused_instead_of_silencing_everything() {
        for good in ["info", "DEBUG", "warn,inferd=trace", "inferd[session]=debug", "off"] {
            assert!(parse_filter(good).is_ok(), "{good}");
        }
        for bad in ["inof", "", "info,debgu", "inferd=loud"] {
            let error = parse_filter(bad).expect_err(bad).to_string();
            assert!(error.contains("trace"), "{error}");
        }
    }

    #[test]
    fn the_filter_changes_while_running() {
        let mut logs = Logs::start(Some("warn")).expect("the only test that starts logging");
        assert!(!tracing::enabled!(tracing::Level::DEBUG));
        assert!(logs.set_level("nonsense").is_err());
        assert_eq!(logs.level(), "warn");
        logs.set_level("debug").expect("a level");
        assert!(tracing::enabled!(tracing::Level::DEBUG));
        assert!(matches!(Logs::start(None), Err(LogError::Twice(_))));
    }
}
