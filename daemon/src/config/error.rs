//! What an operator reads when a configuration or a manifest is wrong.
//!
//! Every error says what is wrong, where (file, line, column) and what to do. Reading goes on after an
//! error, so that one run of `--check-config` shows all of them.

use inferd_ipc::limits::CONFIG_ERRORS_MAX;
use std::fmt;
use std::path::{Path, PathBuf};

/// Where in a file something stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// Line from 1, or 0 for the file as a whole.
    pub line: u32,
    /// Column from 1, counted in characters; 0 with line 0.
    pub column: u32,
}

impl Place {
    /// The file as a whole.
    #[must_use]
    pub fn file(file: &Path) -> Place {
        Place { file: file.to_owned(), line: 0, column: 0 }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 { write!(f, ":{}:{}", self.line, self.column) } else { Ok(()) }
    }
}

/// One thing that the operator has to change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// Where; none for something that stands in no file (an environment variable, an option).
    pub place: Option<Place>,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

impl ConfigError {
    /// An error at a place.
    pub fn at(place: Place, what: impl Into<String>, remedy: impl Into<String>) -> ConfigError {
        ConfigError { place: Some(place), what: what.into(), remedy: remedy.into() }
    }

    /// An error that stands in no file.
    pub fn nowhere(what: impl Into<String>, remedy: impl Into<String>) -> ConfigError {
        ConfigError { place: None, what: what.into(), remedy: remedy.into() }
    }

    /// The same error with a place, where it had none.
    #[must_use]
    pub fn or_at(mut self, place: &Place) -> ConfigError {
        self.place.get_or_insert_with(|| place.clone());
        self
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        write!(f, "{}; {}", self.what, self.remedy)
    }
}

/// All that the operator has to change, in the order of files and lines; never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl ConfigErrors {
    /// `Ok` when there are none.
    ///
    /// # Errors
    /// The errors, when there are some, sorted by place and without repetitions.
    pub fn check(mut errors: Vec<ConfigError>) -> Result<(), ConfigErrors> {
        if errors.is_empty() {
            return Ok(());
        }
        errors.sort_by(|a, b| a.place.cmp(&b.place));
        errors.dedup();
        if errors.len() > CONFIG_ERRORS_MAX {
            let what = format!("{} further errors are not shown", errors.len() - CONFIG_ERRORS_MAX);
            errors.truncate(CONFIG_ERRORS_MAX);
            errors.push(ConfigError::nowhere(what, "correct these first"));
        }
        Err(ConfigErrors(errors))
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl From<ConfigError> for ConfigErrors {
    fn from(error: ConfigError) -> ConfigErrors {
        ConfigErrors(vec![error])
    }
}
