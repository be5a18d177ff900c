//! Why a file was not staged.

use inferd_ipc::limits;
use nix::errno::Errno;

/// Why a file was not staged; [`StageError::what`] and [`StageError::remedy`] are for the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}; {}", self.what(), self.remedy())]
pub enum StageError {
    /// A name that is absolute, holds `..` or is too long.
    BadName,
    /// A symbolic link, or a mount point's trick, leads out of the model's folder.
    Escapes,
    /// No such file.
    Missing,
    /// The file, or a folder above it, cannot be read.
    Forbidden,
    /// A folder, device, pipe or socket.
    NotAFile,
    /// No byte in it.
    Empty,
    /// Over the limit.
    TooLarge {
        /// Its length.
        bytes: u64,
    },
    /// It changed while it was being read.
    Changed,
    /// There is not as much memory.
    NoMemory {
        /// Bytes that are needed.
        bytes: u64,
    },
    /// Another hash than the manifest says.
    WrongHash {
        /// What the manifest says.
        expected: String,
        /// What the file has.
        found: String,
    },
    /// A worker asked for more files than a model may have.
    TooMany,
    /// The job was given up.
    Cancelled,
    /// The system refused something else.
    System {
        /// What was tried.
        doing: &'static str,
        /// The refusal.
        errno: Errno,
    },
}

impl StageError {
    /// What happened.
    #[must_use]
    pub fn what(&self) -> String {
        match self {
            StageError::BadName => "not a name below the model's folder".into(),
            StageError::Escapes => "leads out of the model's folder".into(),
            StageError::Missing => "does not exist".into(),
            StageError::Forbidden => "cannot be read: permission denied".into(),
            StageError::NotAFile => "is not a regular file".into(),
            StageError::Empty => "is empty".into(),
            StageError::TooLarge { bytes } => {
                format!("has {bytes} bytes, over the limit of {}", limits::MODEL_FILE_BYTES_MAX)
            }
            StageError::Changed => "changed while it was being read".into(),
            StageError::NoMemory { bytes } => format!("needs {bytes} bytes of memory, which are not to be had"),
            StageError::WrongHash { expected, found } => {
                format!("has SHA-256 {found}, but the manifest says {expected}")
            }
            StageError::TooMany => format!("is one file more than the limit of {}", limits::MODEL_FILES_MAX),
            StageError::Cancelled => "was not read to its end: the job was given up".into(),
            StageError::System { doing, errno } => format!("{doing}: {}", errno.desc()),
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            StageError::BadName => "use a relative name without \"..\"",
            StageError::Escapes => "put the file itself into the model's folder, not a link",
            StageError::Missing => "put it there, or correct the name",
            StageError::Forbidden => "let the user that runs inferd read it and enter its folders",
            StageError::NotAFile => "name a regular file",
            StageError::Empty => "copy the model again",
            StageError::TooLarge { .. } => "split it into external data files, or use a smaller model",
            StageError::Changed => "replace model files by renaming a finished copy over them",
            StageError::NoMemory { .. } => "free memory, raise the service's memory limit, or unload another model",
            StageError::WrongHash { .. } => "copy the model again, or correct `sha256` in the manifest",
            StageError::TooMany => "merge the model's external data files",
            StageError::Cancelled => "ask again",
            StageError::System { .. } => "see the system's log",
        }
    }
}
