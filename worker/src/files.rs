//! Where a model's bytes come from.
//!
//! The worker never opens a path that somebody names: the supervisor hands it descriptors, and this
//! trait stands for them. A name is always relative, below the model's folder, and checked by
//! [`check_name`] before anybody is asked. [`Folder`] is for tools and tests, [`Memory`] for tests.

use crate::{Fault, ModelError};
use inferd_ipc::limits::{MODEL_FILE_BYTES_MAX, MODEL_FILE_NAME_BYTES_MAX};
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// Gives a model file and the files beside it.
pub trait FileSource {
    /// All bytes of the model file itself.
    ///
    /// # Errors
    /// [`Fault::File`] when it cannot be read.
    fn model(&mut self) -> Result<Vec<u8>, ModelError>;

    /// All bytes of a file beside it: external data, golden pairs. `name` has passed [`check_name`].
    ///
    /// # Errors
    /// [`Fault::File`] when there is none, or it cannot be read.
    fn file(&mut self, name: &str) -> Result<Vec<u8>, ModelError>;
}

/// Checks that a name stays below the model's folder.
///
/// # Errors
/// [`Fault::File`] names the file and the rule that it breaks.
pub fn check_name(name: &str) -> Result<(), ModelError> {
    let inside = |c| matches!(c, Component::Normal(_) | Component::CurDir);
    let what = if name.is_empty() {
        "has no name"
    } else if name.len() > MODEL_FILE_NAME_BYTES_MAX {
        "has a name that is too long"
    } else if name.contains('\0') || !Path::new(name).components().all(inside) {
        "lies outside the model's folder"
    } else {
        return Ok(());
    };
    let remedy = format!("use a relative name of at most {MODEL_FILE_NAME_BYTES_MAX} bytes, without `..`");
    Err(ModelError::new(Fault::File, format!("file {name:?}"), what, remedy))
}

/// Reads from a folder.
#[derive(Debug, Clone)]
pub struct Folder {
    folder: PathBuf,
    model: String,
}

impl Folder {
    /// The model file at `path`, and the files beside it.
    #[must_use]
    pub fn of(path: &Path) -> Folder {
        let model = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Folder { folder: path.parent().unwrap_or(Path::new("")).to_owned(), model }
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, ModelError> {
        let path = self.folder.join(name);
        let fault = |what: String| {
            let remedy = "check that the file is there, readable, and below the size limit";
            ModelError::new(Fault::File, format!("file {}", path.display()), what, remedy)
        };
        let bytes = std::fs::metadata(&path).map_err(|e| fault(e.to_string()))?.len();
        if bytes > MODEL_FILE_BYTES_MAX {
            return Err(fault(format!("{bytes} bytes are over the limit of {MODEL_FILE_BYTES_MAX}")));
        }
        std::fs::read(&path).map_err(|e| fault(e.to_string()))
    }
}

impl FileSource for Folder {
    fn model(&mut self) -> Result<Vec<u8>, ModelError> {
        self.read(&self.model)
    }

    fn file(&mut self, name: &str) -> Result<Vec<u8>, ModelError> {
        check_name(name)?;
        self.read(name)
    }
}

/// Holds everything in memory.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// The model file.
    pub model: Vec<u8>,
    /// The files beside it, by name.
    pub files: BTreeMap<String, Vec<u8>>,
}

impl Memory {
    /// A model file with nothing beside it.
    #[must_use]
    pub fn of(model: Vec<u8>) -> Memory {
        Memory { model, files: BTreeMap::new() }
    }

    /// Adds a file beside the model.
    #[must_use]
    pub fn with(mut self, name: &str, bytes: Vec<u8>) -> Memory {
        self.files.insert(name.to_owned(), bytes);
        self
    }
}

impl FileSource for Memory {
    fn model(&mut self) -> Result<Vec<u8>, ModelError> {
        Ok(self.model.clone())
    }

    fn file(&mut self, name: &str) -> Result<Vec<u8>, ModelError> {
        check_name(name)?;
        let remedy = "put the file beside the model";
        let missing = || ModelError::new(Fault::File, format!("file {name:?}"), "is missing", remedy);
        self.files.get(name).cloned().ok_or_else(missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_the_folder_are_refused() {
        for bad in ["", "../a", "a/../b", "/etc/passwd", "a\0b", &"x".repeat(256)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "weights/a.bin", "./a"] {
            assert!(check_name(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn a_missing_file_is_named_with_a_remedy() {
        let error = Folder::of(Path::new("/nowhere/policy.onnx")).model().expect_err("it is not there");
        assert!(error.to_string().contains("/nowhere/policy.onnx"), "{error}");
    }
}
