//! Panics of a model or an inference library, turned into a [`ModelError`].
//!
//! Everywhere else a panic is a bug of ours and the process ends; a binary's panic hook asks
//! [`is_containing`] which of the two it sees. Nothing is allocated and nothing locked on the way
//! through; the flag is this thread's alone.

use crate::{Fault, ModelError};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static CONTAINING: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic on this thread, now, will become a [`ModelError`]: a panic hook must not abort then.
#[must_use]
pub fn is_containing() -> bool {
    CONTAINING.get()
}

/// Runs foreign code; a panic in it becomes [`Fault::Panic`] at `place`.
///
/// The callee's state may be broken after a panic: a backend must notice that at its next run.
///
/// # Errors
/// What `run` returns, or the panic.
pub fn contain<T>(place: &str, run: impl FnOnce() -> Result<T, ModelError>) -> Result<T, ModelError> {
    let before = CONTAINING.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(run));
    CONTAINING.set(before);
    outcome.unwrap_or_else(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Err(ModelError::new(
            Fault::Panic,
            place,
            format!("the backend panicked: {text}"),
            "report it to the backend's authors with the model file, or try another backend",
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_in_a_model_is_a_model_error_and_the_flag_is_taken_back() {
        let error = contain("here", || -> Result<(), ModelError> {
            assert!(is_containing());
            panic!("index {} out of range", 7)
        })
        .expect_err("it panicked");
        assert_eq!(error.fault, Fault::Panic);
        assert!(error.to_string().contains("index 7 out of range"), "{error}");
        assert!(!is_containing());
    }
}
