//! Why a command did not do what it is for, and the exit code that says so to scripts.
//!
//! 1: failed. 2: the arguments are wrong (also clap's code). 3: there is no daemon to talk to. 4: the daemon has refused the
//! model, and what was live still is: a verdict, not an accident.

use crate::array::ArrayError;
use crate::recording::RecordingError;
use inferd_client::Error;
use inferd_client::control::code;

/// Exit code: failed, or above the tolerance.
pub const EXIT_FAILED: u8 = 1;
/// Exit code: wrong arguments.
pub const EXIT_USAGE: u8 = 2;
/// Exit code: no daemon.
pub const EXIT_NO_DAEMON: u8 = 3;
/// Exit code: the daemon refused the model.
pub const EXIT_REFUSED: u8 = 4;

/// Why a command failed; its text says what, where, and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// From the daemon or on the way to it.
    #[error(transparent)]
    Client(#[from] Error),
    /// A NumPy file.
    #[error(transparent)]
    Array(#[from] ArrayError),
    /// A recording that does not fit the model.
    #[error(transparent)]
    Recording(#[from] RecordingError),
    /// Arguments that contradict each other or the model.
    #[error("{0}")]
    Usage(String),
    /// Something that the daemon does not have.
    #[error("no {what}; there is {known}")]
    Unknown {
        /// What was asked for.
        what: String,
        /// What there is.
        known: String,
    },
    /// A request did not end in `ok`.
    #[error("{request} ended in {outcome}{remedy}")]
    NotOk {
        /// Which request.
        request: String,
        /// The outcome's name.
        outcome: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// A model file that a manifest was to be made from.
    #[error("{path}: {why}")]
    ModelFile {
        /// Which.
        path: String,
        /// What is wrong, and the remedy.
        why: String,
    },
    /// A file or standard output cannot be written.
    #[error("{path}: {source}")]
    Write {
        /// Which.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// An answer of the daemon that this program does not understand.
    #[error(
        "the daemon's answer to {command} has another form than expected ({source}); install daemon and tools of one release"
    )]
    Answer {
        /// The command.
        command: &'static str,
        /// What was wrong.
        source: serde_json::Error,
    },
}

impl Failure {
    /// The exit code.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Failure::Client(Error::NoDaemon { .. }) => EXIT_NO_DAEMON,
            Failure::Client(Error::Option { .. }) | Failure::Usage(_) => EXIT_USAGE,
            Failure::Client(Error::Command(refused)) if refused.code == code::REFUSED => EXIT_REFUSED,
            _ => EXIT_FAILED,
        }
    }

    /// Standard output cannot be written.
    pub(crate) fn stdout(source: std::io::Error) -> Failure {
        Failure::Write { path: "standard output".to_owned(), source }
    }
}

/// What an operator does about an outcome that is not `ok`.
#[must_use]
pub fn remedy(outcome: &str) -> &'static str {
    match outcome {
        "rejected" => "; an input holds NaN or infinities and the manifest does not allow them",
        "model_error" => "; the daemon's log has the model's message",
        "worker_lost" => "; the worker died while this ran, the daemon's log says how",
        "unavailable" => "; `inferctl models` says why no worker serves",
        "expired" => "; give it a later deadline",
        "shutting_down" => "; the daemon drains, try again after its restart",
        "needs_reset" => "; the state was lost, begin again with the reset flag",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use inferd_client::control::RpcError;

    #[test]
    fn scripts_tell_a_missing_daemon_from_a_refusal_and_from_wrong_arguments() {
        let code = |f: Failure| f.exit_code();
        let refused = |code| Failure::Client(Error::Command(RpcError::new(code, "no")));
        assert_eq!((code(refused(code::REFUSED)), code(refused(code::BUSY))), (4, 1));
        assert_eq!(code(Error::NoDaemon { tried: Vec::new() }.into()), 3);
        assert_eq!(code(Error::Option { option: "slots", what: String::new() }.into()), 2);
        assert_eq!(code(Failure::Usage(String::new())), 2);
        assert_eq!(code(Error::Protocol { what: String::new() }.into()), 1);
    }
}
