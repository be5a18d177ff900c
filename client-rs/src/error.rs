//! What can go wrong in a call, each with what, where and the remedy.
//!
//! The variants that a control loop meets (`Again`, `Unavailable`, `Timeout`, and `DaemonLost` between
//! two attempts to reattach) are made without allocating. What a published request ended in is not an
//! error: it is the reply's status.

use crate::dirs::Tried;
use crate::reply::Ticket;
use inferd_ipc::attach::AttachStatus;
use inferd_ipc::layout::{ServingState, Status};
use std::sync::Arc;
use std::time::Duration;

/// Why a call did not do what it is for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `in_order`: all slots are in flight, or their replies are unclaimed. Nothing was published.
    #[error("model {model}: all {slots} slots are in flight; wait for a ticket or abandon one")]
    Again {
        /// The model.
        model: Arc<str>,
        /// Slots of this session.
        slots: u32,
    },
    /// No worker serves the model now. Nothing was published; use the fallback and try again.
    #[error("model {model} is {}; use the fallback and try again (`inferctl models` says why)", state_name(*.state))]
    Unavailable {
        /// The model.
        model: Arc<str>,
        /// `Recovering` or `Quarantined`.
        state: ServingState,
    },
    /// The session's socket has ended: the daemon is gone, or ended this session. What was in flight has no other outcome.
    #[error("model {model}: the session has ended{}; use the fallback, the next request reattaches", because(.cause.as_deref()))]
    DaemonLost {
        /// The model.
        model: Arc<str>,
        /// Why the newest attempt to reattach failed; absent when none was made in this call.
        cause: Option<Box<Error>>,
    },
    /// The time is up. Where a ticket was waited for, it is abandoned: its reply will be released when it arrives.
    #[error("model {model}: no answer within {:.3} ms; use the fallback", .after.as_secs_f64() * 1e3)]
    Timeout {
        /// The model.
        model: Arc<str>,
        /// The caller's timeout.
        after: Duration,
    },
    /// A forked child used the session of its parent.
    #[error("this session belongs to process {attached_pid}; a forked child attaches a session of its own")]
    WrongProcess {
        /// The process that attached.
        attached_pid: u32,
    },
    /// After a restart, the model has other inputs or outputs. The session stays lost.
    #[error(
        "model {model} has another signature than at attach (was {was}; is {now}); attach a new session and adapt the caller"
    )]
    SignatureChanged {
        /// The model.
        model: Arc<str>,
        /// Inputs and outputs before.
        was: String,
        /// Inputs and outputs now.
        now: String,
    },
    /// The daemon refused the attach.
    #[error("attach to model {model} refused: {message}")]
    Attach {
        /// The model.
        model: Arc<str>,
        /// Which kind of refusal.
        status: AttachStatus,
        /// The daemon's sentence: what, where, and the remedy.
        message: String,
    },
    /// No daemon listens where this library looks.
    #[error("no inferd daemon to connect to; start it, or set INFERD_RUNTIME_DIR. Tried: {}", list(.tried))]
    NoDaemon {
        /// Every place looked at, and why it was not taken.
        tried: Vec<Tried>,
    },
    /// A tensor's index, dtype or length is wrong, or an input is missing. Nothing was published.
    #[error("tensor {index}: {what}")]
    Tensor {
        /// Index among the inputs, or among the outputs.
        index: usize,
        /// What is wrong, and the remedy.
        what: &'static str,
    },
    /// The ticket was waited for already, was abandoned, or lies too far back.
    #[error("{ticket} was claimed, abandoned or passed over before; wait for each ticket once")]
    TicketSpent {
        /// The ticket.
        ticket: Ticket,
    },
    /// The reply has no valid output: its status says so.
    #[error("the reply has no output: its status is {}; look at the status before the output", .status.name())]
    NoOutput {
        /// The reply's status.
        status: Status,
    },
    /// An option is out of range.
    #[error("option {option}: {what}")]
    Option {
        /// Which option.
        option: &'static str,
        /// What is wrong, and the remedy.
        what: String,
    },
    /// The daemon or a worker broke the protocol. The session is lost.
    #[error("the daemon broke the protocol: {what}; install daemon and client of one release, and report this")]
    Protocol {
        /// Which rule it broke.
        what: String,
    },
    /// The operating system refused something.
    #[error("{what}: {source}")]
    Os {
        /// What was tried.
        what: String,
        /// Its answer.
        source: std::io::Error,
    },
    /// The daemon refused a command of the control socket.
    #[cfg(feature = "admin")]
    #[error("{}", .0.message)]
    Command(inferd_ipc::control::RpcError),
}

fn because(cause: Option<&Error>) -> String {
    cause.map(|cause| format!(" (reattach: {cause})")).unwrap_or_default()
}

fn list(tried: &[Tried]) -> String {
    tried.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

pub(crate) fn state_name(state: ServingState) -> &'static str {
    match state {
        ServingState::Serving => "serving",
        ServingState::Recovering => "recovering",
        ServingState::Quarantined => "quarantined",
        ServingState::Draining => "draining",
        ServingState::Closed => "closed",
    }
}

impl Error {
    /// The outcome's name in tables and JSON: `again`, `unavailable`, `daemon_lost`, `timeout`; `error` for the rest.
    #[must_use]
    pub fn outcome(&self) -> &'static str {
        match self {
            Error::Again { .. } => "again",
            Error::Unavailable { .. } => "unavailable",
            Error::DaemonLost { .. } => "daemon_lost",
            Error::Timeout { .. } => "timeout",
            _ => "error",
        }
    }

    /// Whether the same call may succeed later without a change to caller, model or configuration.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Error::DaemonLost { cause: Some(cause), .. } => cause.is_transient(),
            Error::Attach { status, .. } => {
                use AttachStatus::{NoResources, Quota, ShuttingDown, Unavailable};
                matches!(status, Unavailable | ShuttingDown | Quota | NoResources)
            }
            Error::Again { .. } | Error::Unavailable { .. } | Error::Timeout { .. } => true,
            Error::DaemonLost { .. } | Error::NoDaemon { .. } => true,
            _ => false,
        }
    }

    pub(crate) fn is_clock_skew(&self) -> bool {
        matches!(self, Error::Attach { status: AttachStatus::ClockSkew, .. })
    }

    pub(crate) fn os(what: impl Into<String>, source: impl Into<std::io::Error>) -> Error {
        Error::Os { what: what.into(), source: source.into() }
    }

    pub(crate) fn protocol(what: impl std::fmt::Display) -> Error {
        Error::Protocol { what: what.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_what_where_and_the_remedy() {
        let model: Arc<str> = "go2".into();
        let refused = Error::Unavailable { model: model.clone(), state: ServingState::Recovering };
        assert!(refused.to_string().contains("go2 is recovering; use the fallback"));
        let tried = vec![Tried { rule: "system default", dir: "/run/inferd".into(), why: "no such file".into() }];
        let lost = Error::DaemonLost { model, cause: Some(Box::new(Error::NoDaemon { tried })) };
        assert!(lost.to_string().contains("/run/inferd (no such file)"), "{lost}");
        assert_eq!(lost.outcome(), "daemon_lost");
        assert!(lost.is_transient());
    }
}
