//! What a model's author must act on: what is wrong, where, and the remedy.
//!
//! One type for loading and running. [`Fault`] is for code that has to tell cases apart; people read
//! the message. Errors never hold a client's bytes.

use inferd_ipc::limits::BACKEND_MESSAGE_CHARS_MAX;

/// What kind of fault a [`ModelError`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// A file is missing, unreadable or damaged.
    File,
    /// The backend cannot run this model.
    Unsupported,
    /// The manifest contradicts the file, or itself.
    Manifest,
    /// The signature differs from the one that is live.
    Signature,
    /// A golden pair is not reproduced.
    Golden,
    /// An output or a state is NaN or infinite.
    NonFinite,
    /// An output is outside its limits.
    Limits,
    /// The backend raised while running.
    Run,
    /// The backend panicked.
    Panic,
    /// It runs freely, and not confined; or its worker cannot be confined as it must.
    Confined,
}

/// Why a model cannot be served, or why a step has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {what}; {remedy}")]
pub struct ModelError {
    /// The kind, for code.
    pub fault: Fault,
    /// Where: a file, a tensor, a key of the manifest.
    pub place: String,
    /// What is wrong there.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

/// What an inference library says, cut to a length that people read.
#[must_use]
pub fn in_short(mut message: String) -> String {
    if let Some((end, _)) = message.char_indices().nth(BACKEND_MESSAGE_CHARS_MAX) {
        message.truncate(end);
        message.push_str(" ...");
    }
    message
}

impl ModelError {
    /// An error with all it needs.
    #[must_use]
    pub fn new(fault: Fault, place: impl Into<String>, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        ModelError { fault, place: place.into(), what: what.into(), remedy: remedy.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_is_cut_between_characters() {
        assert_eq!(in_short("ä".repeat(BACKEND_MESSAGE_CHARS_MAX)), "ä".repeat(BACKEND_MESSAGE_CHARS_MAX));
        let long = in_short("ä".repeat(BACKEND_MESSAGE_CHARS_MAX + 1));
        assert_eq!((long.chars().count(), long.ends_with("ä ...")), (BACKEND_MESSAGE_CHARS_MAX + 4, true));
    }
}
