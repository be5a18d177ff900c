//! When a server is wanted: the harness says `run` and `rest`, and the end of stdin is the end of the server.
//!
//! A server that polls would keep its CPU from whoever is measured next: between its own blocks it rests, parked. One that
//! sleeps while nobody calls needs no more than the end.

use std::io::BufRead;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// How long a server has to leave by itself once stdin has ended.
const GRACE: Duration = Duration::from_secs(3);

#[derive(Default)]
struct Shared {
    /// What a polling server looks at when there was no request.
    is_running: AtomicBool,
    said: Mutex<Said>,
    changed: Condvar,
}

#[derive(Default, Clone, Copy)]
struct Said {
    run: bool,
    stop: bool,
}

/// What the harness has said last.
#[derive(Clone, Default)]
pub struct Gate(Arc<Shared>);

impl Gate {
    /// Listens on stdin, on a thread of its own.
    #[must_use]
    pub fn on_stdin() -> Gate {
        let gate = Gate::default();
        let said = gate.clone();
        std::thread::spawn(move || {
            for line in std::io::stdin().lock().lines().map_while(Result::ok) {
                said.say(Said { run: line == "run", stop: false });
            }
            said.say(Said { run: false, stop: true });
            std::thread::sleep(GRACE);
            eprintln!("a server did not end by itself");
            std::process::exit(1);
        });
        gate
    }

    fn say(&self, what: Said) {
        *self.0.said.lock().unwrap_or_else(PoisonError::into_inner) = what;
        // Relaxed: nothing else is read through it.
        self.0.is_running.store(what.run, Ordering::Relaxed);
        self.0.changed.notify_all();
    }

    /// For a polling server that found no request: returns at once while it shall run, else parks until it shall run again.
    /// False: it is time to end.
    #[must_use]
    pub fn poll(&self) -> bool {
        self.0.is_running.load(Ordering::Relaxed) || self.park(|said| said.run)
    }

    /// Whether it is time to end.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.0.said.lock().unwrap_or_else(PoisonError::into_inner).stop
    }

    /// Waits until it is time to end.
    pub fn wait_for_end(&self) {
        self.park(|_| false);
    }

    fn park(&self, until: impl Fn(Said) -> bool) -> bool {
        let mut said = self.0.said.lock().unwrap_or_else(PoisonError::into_inner);
        while !said.stop && !until(*said) {
            said = self.0.changed.wait(said).unwrap_or_else(PoisonError::into_inner);
        }
        !said.stop
    }
}
