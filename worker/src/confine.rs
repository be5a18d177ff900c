//! What a worker gives up once its model is warm: files, sockets, other processes, new programs.
//!
//! A model's author is trusted with the answers, not with the machine. [`Confinement::begin`] comes before the first
//! byte of a model is looked at: no privilege can be gained any more, and with Landlock no file be written and no TCP
//! port be reached by any thread to come. [`Confinement::enter`] comes when the model is warm: a seccomp filter on all
//! threads, and Landlock without any path. The last warm-up runs inside, so that what a library loads at first
//! use shows there. What a model must not do fails with EPERM, which is the model's own error; what nobody does by
//! mistake (reading another process, starting a program) kills the worker. `docs/confinement.md` has the lists.

mod landlocked;
mod profile;
mod system_calls;

pub use profile::Profile;

use crate::{Fault, ModelError};
use inferd_ipc::worker_records::Confine;
use landlocked::Landlocked;

/// What a worker has given up so far.
#[derive(Debug)]
pub struct Confinement {
    wanted: Confine,
    /// What the kernel refused, with its reason.
    missing: Vec<String>,
}

/// What is in force from now on, for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InForce {
    text: String,
    whole: bool,
}

impl InForce {
    /// Whether nothing is missing.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.whole
    }
}

impl std::fmt::Display for InForce {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl Confinement {
    /// Gives up privileges, writing and the network, for every thread to come: to be called by a process of one thread,
    /// before it knows anything of a model.
    #[must_use]
    pub fn begin(wanted: Confine, profile: Profile) -> Confinement {
        let mut missing = Vec::new();
        if wanted != Confine::Off {
            if let Err(error) = inferd_ipc::sys::set_no_new_privileges() {
                missing.push(format!("no_new_privs ({error})"));
            }
            // What is missing here is missing at `enter` too, and said there.
            let _ = landlocked::outside(profile);
        }
        Confinement { wanted, missing }
    }

    /// Gives up the rest, on every thread of this process; none when the configuration wants none.
    ///
    /// # Errors
    /// [`Fault::Confined`] when something is missing and the configuration requires all of it.
    pub fn enter(mut self, profile: Profile) -> Result<Option<InForce>, ModelError> {
        if self.wanted == Confine::Off {
            return Ok(None);
        }
        let landlock = match landlocked::inside(profile) {
            Landlocked::Abi(abi) => format!("Landlock ABI {abi}"),
            Landlocked::Missing(why) => {
                self.missing.push(format!("Landlock ({why})"));
                "no Landlock".to_owned()
            }
        };
        let seccomp = match system_calls::forbid(profile) {
            Ok(()) => "seccomp",
            Err(why) => {
                self.missing.push(format!("seccomp ({why})"));
                "no seccomp"
            }
        };
        let whole = self.missing.is_empty();
        let mut text = format!("profile {profile}: no_new_privs, {seccomp}, {landlock}");
        if !whole {
            text.push_str("; missing: ");
            text.push_str(&self.missing.join(", "));
        }
        if !whole && self.wanted == Confine::Require {
            let remedy =
                "use a kernel and a service manager that allow it, or set confine = \"on\" for as much as there is";
            return Err(ModelError::new(Fault::Confined, "confine = \"require\"", text, remedy));
        }
        Ok(Some(InForce { text, whole }))
    }

    /// Takes the files from the calling thread alone: for a thread of ours that was there before [`Confinement::enter`],
    /// which kernels without a way to reach all threads (Landlock before ABI 8) leave out.
    pub fn enter_thread(wanted: Confine, profile: Profile) {
        if wanted != Confine::Off {
            let _ = landlocked::inside(profile);
        }
    }
}

/// A fault inside the confinement, so that its author knows where to look.
#[must_use]
pub fn inside(error: ModelError) -> ModelError {
    let remedy = format!(
        "{}; it ran before its worker was confined: let it open at load what it needs, or set confine = \"off\" for this model",
        error.remedy
    );
    ModelError { fault: Fault::Confined, place: format!("{}, in its last warm-up", error.place), remedy, ..error }
}
