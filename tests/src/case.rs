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

/// Hands every client on every backing on to another macro: what is the same with each backend runs on all of them.
#[doc(hidden)]
#[macro_export]
macro_rules! every_case {
    ($do:ident; $($rest:tt)*) => {
        $crate::$do! {
            [rust_memfd Rust Memfd] [rust_posix Rust Posix] [c_memfd C Memfd] [c_posix C Posix]
            [python_memfd Python Memfd] [python_posix Python Posix]; $($rest)*
        }
    };
}

/// Hands on every client once, and every backing: with [`every_case!`] on the backend `echo`, each pair of a client, a backend
/// and a backing is run somewhere.
#[doc(hidden)]
#[macro_export]
macro_rules! paired_case {
    ($do:ident; $($rest:tt)*) => { $crate::$do! { [rust_memfd Rust Memfd] [c_posix C Posix] [python_memfd Python Memfd]; $($rest)* } };
}

#[doc(hidden)]
#[macro_export]
macro_rules! declare_cases {
    ($([$test:ident $client:ident $backing:ident])*; [$($meta:tt)*] $name:ident($case:ident) $body:block) => {
        $($meta)*
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            fn run($case: &$crate::Case) $body

            $(#[test]
            fn $test() {
                let name = concat!(stringify!($name), "::", stringify!($test));
                $crate::Case::run(name, $crate::Client::$client, inferd_ipc::layout::Backing::$backing, run);
            })*
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! list_cases {
    ($([$test:ident $client:ident $backing:ident])*;) => {
        [$((stringify!($test), $crate::Client::$client, inferd_ipc::layout::Backing::$backing)),*]
    };
}

/// Declares scenarios: `fn a_sentence(case) { ... }` becomes a module with one test per client and backing.
#[macro_export]
macro_rules! scenarios {
    ($($(#[$meta:meta])* fn $name:ident($case:ident) $body:block)*) => {
        $($crate::every_case! { declare_cases; [$(#[$meta])*] $name($case) $body })*
    };
}

/// Declares scenarios of one backend, whose models cost more than a client does: one test per client, both backings among them.
#[macro_export]
macro_rules! backend_scenarios {
    ($($(#[$meta:meta])* fn $name:ident($case:ident) $body:block)*) => {
        $($crate::paired_case! { declare_cases; [$(#[$meta])*] $name($case) $body })*
    };
}

#[cfg(test)]
mod tests {
    use crate::driver::Client;
    use inferd_ipc::layout::Backing;
    use std::collections::BTreeSet;

    /// Backends by how their scenarios are declared: `scenarios!`, and `backend_scenarios!`.
    const BACKENDS: [(&str, bool); 4] = [("echo", true), ("tract", true), ("ort", false), ("torch", false)];

    #[test]
    fn every_pair_of_a_client_a_backend_and_a_backing_is_run() {
        let mut pairs = BTreeSet::new();
        for (backend, every) in BACKENDS {
            let cases: Vec<(&str, Client, Backing)> =
                if every { every_case!(list_cases;).to_vec() } else { paired_case!(list_cases;).to_vec() };
            for (test, client, backing) in cases {
                let (client, backing) = (client.name().to_owned(), format!("{backing:?}").to_lowercase());
                assert_eq!(test, format!("{client}_{backing}"), "a test is called what it is");
                let row = [client, backend.to_owned(), backing];
                pairs.extend([(0, 1), (0, 2), (1, 2)].map(|(a, b)| [row[a].clone(), row[b].clone()]));
            }
        }
        let clients = [Client::Rust, Client::C, Client::Python].map(Client::name);
        let backings = ["memfd", "posix"];
        let mut wanted = BTreeSet::new();
        for client in clients {
            wanted.extend(backings.map(|backing| [client.to_owned(), backing.to_owned()]));
            wanted.extend(BACKENDS.map(|(backend, _)| [client.to_owned(), backend.to_owned()]));
        }
        for (backend, _) in BACKENDS {
            wanted.extend(backings.map(|backing| [backend.to_owned(), backing.to_owned()]));
        }
        assert_eq!(pairs, wanted);
    }
}
