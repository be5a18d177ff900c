//! One scenario with one client and one backing; and the turn that a scenario takes.
//!
//! A turn is a lock on a file in the temporary folder: scenarios run one after another on this machine
//! whatever the number of test threads and test binaries, because several of them spin.

use crate::daemon::{Daemon, DaemonConfig};
use crate::driver::{Client, Driver};
use crate::skip::skip;
use inferd_ipc::layout::Backing;
use nix::fcntl::{Flock, FlockArg};
use std::fs::File;

/// The right to run; others wait until it is dropped.
pub struct Turn(#[allow(dead_code)] Flock<File>);

/// Waits for this scenario's turn.
///
/// # Panics
/// When the lock file cannot be opened.
#[must_use]
pub fn turn() -> Turn {
    let uid = nix::unistd::geteuid();
    let path = std::env::temp_dir().join(format!("inferd-tests.{uid}.turn"));
    let file = File::create(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    Turn(Flock::lock(file, FlockArg::LockExclusive).expect("a lock can be waited for"))
}

/// A scenario's circumstances.
pub struct Case {
    /// The client library it runs with.
    pub client: Client,
    /// The regions it runs on.
    pub backing: Backing,
    _turn: Turn,
}

impl Case {
    /// Waits for the turn and runs `body`, unless the client is not built.
    pub fn run(name: &str, client: Client, backing: Backing, body: impl FnOnce(&Case)) {
        if client.program().is_none() {
            return skip(name, "the driver of this client is not built (make test builds it)");
        }
        body(&Case { client, backing, _turn: turn() });
    }

    /// The configuration of a daemon on this case's backing.
    #[must_use]
    pub fn config(&self) -> DaemonConfig {
        DaemonConfig::new(self.backing)
    }

    /// A driver of this case's client.
    ///
    /// # Panics
    /// When it is not built.
    #[must_use]
    pub fn driver(&self, daemon: &Daemon) -> Driver {
        Driver::start(&self.client.program().expect("checked at the start"), &daemon.runtime_dir())
    }

    /// A driver that has attached.
    #[must_use]
    pub fn attached(&self, daemon: &Daemon, keys: &str) -> Driver {
        let mut driver = self.driver(daemon);
        driver.ok(&format!("attach {keys}"));
        driver
    }
}

/// Declares scenarios: `fn a_sentence(case) { ... }` becomes a module with one test per client and backing.
#[macro_export]
macro_rules! scenarios {
    ($($(#[$meta:meta])* fn $name:ident($case:ident) $body:block)*) => {$(
        $(#[$meta])*
        mod $name {
            #[allow(unused_imports)]
            use super::*;
            use $crate::driver::Client::{C, Python, Rust};
            use inferd_ipc::layout::Backing::{Memfd, Posix};

            fn run($case: &$crate::Case) $body

            #[test]
            fn rust_memfd() {
                $crate::Case::run(concat!(stringify!($name), "::rust_memfd"), Rust, Memfd, run);
            }
            #[test]
            fn rust_posix() {
                $crate::Case::run(concat!(stringify!($name), "::rust_posix"), Rust, Posix, run);
            }
            #[test]
            fn c_memfd() {
                $crate::Case::run(concat!(stringify!($name), "::c_memfd"), C, Memfd, run);
            }
            #[test]
            fn c_posix() {
                $crate::Case::run(concat!(stringify!($name), "::c_posix"), C, Posix, run);
            }
            #[test]
            fn python_memfd() {
                $crate::Case::run(concat!(stringify!($name), "::python_memfd"), Python, Memfd, run);
            }
            #[test]
            fn python_posix() {
                $crate::Case::run(concat!(stringify!($name), "::python_posix"), Python, Posix, run);
            }
        }
    )*};
}
