//! A program that was run to its end, and what a test may require of it.

use std::process::Command;

/// A program that has ended.
#[derive(Debug)]
pub struct Ran {
    /// Exit code; none after a signal.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Ran {
    /// Runs a command to its end.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn of(mut command: Command) -> Ran {
        let ran = command.output().unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ran { code: ran.status.code(), out: text(&ran.stdout), err: text(&ran.stderr) }
    }

    /// Itself, if it ended with 0.
    ///
    /// # Panics
    /// When it did not.
    pub fn succeeded(self) -> Ran {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self
    }

    /// Itself, if it failed with an exit code and one message that says all of `words`.
    ///
    /// # Panics
    /// When it succeeded, died of a signal, or the message lacks a word.
    pub fn refused(self, words: &[&str]) -> Ran {
        assert!(self.code.is_some_and(|c| c != 0), "should have failed: {self:#?}");
        for word in words {
            assert!(self.err.contains(word), "the message does not say {word:?}: {self:#?}");
        }
        self
    }

    /// stdout as JSON.
    ///
    /// # Panics
    /// When it is not.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("not JSON ({e}): {self:#?}"))
    }
}
