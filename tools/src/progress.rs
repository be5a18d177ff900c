//! How far a long command is: a bar on standard error, and nothing at all where that is no terminal.
//!
//! A stage that counts (the steps of a shadow) is a bar, any other one a line that says what happens and for how long.

use crate::out::plain;
use indicatif::{ProgressBar, ProgressStyle};
use inferd_client::control::Progress;
use std::time::Duration;

/// A bar that moves as the daemon reports.
pub struct Bar {
    bar: ProgressBar,
    stage: String,
}

impl Bar {
    /// An empty one; it shows nothing before the first report.
    #[must_use]
    pub fn new() -> Bar {
        Bar { bar: ProgressBar::new_spinner(), stage: String::new() }
    }

    /// The daemon reports.
    pub fn report(&mut self, report: &Progress) {
        // A stage that cannot say yet of how many is one that does not count.
        let of = report.of.filter(|of| *of > 0).map(u64::from);
        let begins = self.stage != report.stage;
        let template = match of {
            Some(_) => "{spinner} {msg} [{bar:30}] {pos}/{len} {elapsed}",
            None => "{spinner} {msg} {elapsed}",
        };
        if (begins || self.bar.length() != of)
            && let Ok(style) = ProgressStyle::with_template(template)
        {
            self.bar.set_style(style.progress_chars("=> "));
        }
        if let Some(of) = of {
            self.bar.set_length(of);
            self.bar.set_position(report.done.unwrap_or(0).into());
        } else {
            self.bar.unset_length();
        }
        if begins {
            self.stage.clone_from(&report.stage);
            self.bar.reset_elapsed();
            self.bar.set_message(plain(&format!("{}: {}", report.model, report.stage)));
            self.bar.enable_steady_tick(Duration::from_millis(100));
        }
    }

    /// Takes the bar away: the answer stands alone.
    pub fn clear(self) {
        self.bar.finish_and_clear();
    }
}

impl Default for Bar {
    fn default() -> Bar {
        Bar::new()
    }
}
