//! What a caller may choose when attaching, and for one call.
//!
//! Builders with defaults that suit a control loop: the model's own slots, queue and spinning;
//! reattach after a restart. Ranges are checked when they are used, with the option's name in the error.

use crate::error::Error;
use inferd_ipc::attach::is_model_name;
use inferd_ipc::layout::Queue;
use inferd_ipc::limits::{ATTACH_TIMEOUT_MS, SLOTS_MAX, SPIN_US_MAX};
use std::path::PathBuf;
use std::time::Duration;

/// Which model to attach to, and how.
#[derive(Debug, Clone)]
pub struct AttachOptions {
    pub(crate) model: String,
    pub(crate) slots: u32,
    pub(crate) queue: Option<Queue>,
    pub(crate) timeout: Duration,
    pub(crate) runtime_dir: Option<PathBuf>,
    pub(crate) auto_reattach: bool,
    pub(crate) spin_us: Option<u32>,
}

impl AttachOptions {
    /// The model's own slots and queue, 2 s for the attach, automatic reattach.
    #[must_use]
    pub fn new(model: impl Into<String>) -> AttachOptions {
        AttachOptions {
            model: model.into(),
            slots: 0,
            queue: None,
            timeout: Duration::from_millis(ATTACH_TIMEOUT_MS),
            runtime_dir: None,
            auto_reattach: true,
            spin_us: None,
        }
    }

    /// Requests that may be in flight at once, 1 to [`SLOTS_MAX`]; the daemon refuses more than the model's
    /// configuration allows. 0 (default): as many as the model has.
    #[must_use]
    pub fn slots(mut self, slots: u32) -> AttachOptions {
        self.slots = slots;
        self
    }

    /// How requests are taken. Default: as the model's configuration says.
    #[must_use]
    pub fn queue(mut self, queue: Queue) -> AttachOptions {
        self.queue = Some(queue);
        self
    }

    /// Longest time for one attach, from connecting to READY. Also bounds each automatic attempt to
    /// reattach. Default: 2 s.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> AttachOptions {
        self.timeout = timeout;
        self
    }

    /// The daemon's runtime directory. Default: the search of [`crate::runtime_dir`].
    #[must_use]
    pub fn runtime_dir(mut self, dir: impl Into<PathBuf>) -> AttachOptions {
        self.runtime_dir = Some(dir.into());
        self
    }

    /// Whether [`crate::Session::request`] and [`crate::Session::infer`] reattach by themselves after the
    /// daemon was lost (default: yes). `request` never waits for the daemon; a loop that cannot afford the page faults of new
    /// regions either says no, and calls [`crate::Session::reattach`] when it suits.
    #[must_use]
    pub fn auto_reattach(mut self, yes: bool) -> AttachOptions {
        self.auto_reattach = yes;
        self
    }

    /// How long a wait spins before it sleeps, in microseconds, at most [`SPIN_US_MAX`]; 0 sleeps at once.
    /// Default: as long as the model's worker. A SCHED_FIFO caller must not spin much longer than that:
    /// real-time throttling would stop it.
    #[must_use]
    pub fn spin_us(mut self, spin_us: u32) -> AttachOptions {
        self.spin_us = Some(spin_us);
        self
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let wrong = |option, what: String| Err(Error::Option { option, what });
        if !is_model_name(&self.model) {
            return wrong(
                "model",
                format!("{:?} is not a model name: 1 to 63 letters, digits, '.', '_' or '-'", self.model),
            );
        }
        if self.slots > SLOTS_MAX {
            return wrong("slots", format!("{} is over {SLOTS_MAX}", self.slots));
        }
        if u64::from(self.spin_us.unwrap_or(0)) > SPIN_US_MAX {
            return wrong("spin_us", format!("{} is over {SPIN_US_MAX}", self.spin_us.unwrap_or(0)));
        }
        Ok(())
    }
}

/// What one call of [`crate::Session::infer`] carries beside its tensors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CallOptions {
    /// Longest time for the whole call: slot, run and reply. `None` waits until there is an outcome.
    pub timeout: Option<Duration>,
    /// The run shall not begin later than this after submission: else the outcome is `expired`. `None`: no deadline.
    pub deadline: Option<Duration>,
    /// Run this step on fresh state (recurrent models).
    pub reset: bool,
    /// The caller's own label; comes back in the reply.
    pub observation_id: u64,
    /// Steps of the previous action chunk that were executed: a label for chunked policies.
    pub executed: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_out_of_range_are_refused_by_name() {
        assert!(AttachOptions::new("go2").slots(64).spin_us(10_000_000).check().is_ok());
        let bad = [
            AttachOptions::new("../go2"),
            AttachOptions::new("go2").slots(65),
            AttachOptions::new("go2").spin_us(10_000_001),
        ];
        for (options, name) in bad.iter().zip(["model", "slots", "spin_us"]) {
            assert!(matches!(options.check(), Err(Error::Option { option, .. }) if option == name));
        }
    }
}
