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
        let begins = self.stage != report.stage;
        if begins {
            self.stage.clone_from(&report.stage);
            self.bar.reset_elapsed();
            self.bar.set_message(plain(&format!("{}: {}", report.model, report.stage)));
            self.bar.enable_steady_tick(Duration::from_millis(100));
        }
        let template = match report.of {
            Some(_) => "{spinner} {msg} [{bar:30}] {pos}/{len} {elapsed}",
            None => "{spinner} {msg} {elapsed}",
        };
        if let Ok(style) = ProgressStyle::with_template(template)
            && (begins || self.bar.length() != report.of.map(u64::from))
        {
            self.bar.set_style(style.progress_chars("=> "));
        }
        if let Some(of) = report.of {
            self.bar.set_length(of.into());
            self.bar.set_position(report.done.unwrap_or(0).into());
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
