//! The leak check that scenarios end with: what every process of a scenario holds, then and now.
//!
//! Descriptors, threads, shared mappings and the bytes behind them must be the very same again;
//! private memory must not have grown by more than a stated slack. Workers come and go with generations, so
//! they are compared by what they hold, not by process id.

use crate::daemon::Daemon;
use crate::driver::Driver;
use crate::process::{Footprint, children, private_bytes};
use crate::promises::BACK_AT_BASELINE;
use crate::within;
use std::time::{Duration, Instant};

/// Nothing may have changed for this long when a baseline is taken.
const STILL: Duration = Duration::from_millis(200);

/// What supervisor, workers and clients hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holdings {
    supervisor: Footprint,
    /// In the order of what they hold.
    workers: Vec<Footprint>,
    clients: Vec<Footprint>,
}

/// Their private memory in bytes.
#[derive(Debug, Clone)]
pub struct Memory {
    /// The supervisor's.
    pub supervisor: u64,
    /// The largest worker's.
    pub worker: u64,
    /// The largest client's.
    pub client: u64,
}

/// A baseline to come back to.
#[derive(Debug, Clone)]
pub struct Baseline {
    /// What they held.
    pub holdings: Holdings,
    /// Their private memory.
    pub memory: Memory,
}

fn look(daemon: &Daemon, clients: &[&Driver]) -> Holdings {
    let mut workers: Vec<Footprint> = children(daemon.pid()).into_iter().map(Footprint::of).collect();
    workers.sort();
    let clients = clients.iter().map(|c| Footprint::of(c.pid() as u32)).collect();
    Holdings { supervisor: Footprint::of(daemon.pid()), workers, clients }
}

fn memory(daemon: &Daemon, clients: &[&Driver]) -> Memory {
    let workers = children(daemon.pid()).into_iter().map(private_bytes).max();
    let clients = clients.iter().map(|c| private_bytes(c.pid() as u32)).max();
    Memory { supervisor: private_bytes(daemon.pid()), worker: workers.unwrap_or(0), client: clients.unwrap_or(0) }
}

impl Baseline {
    /// What everybody holds once nothing changes any more.
    ///
    /// # Panics
    /// When they do not come to rest.
    #[must_use]
    pub fn of(daemon: &Daemon, clients: &[&Driver]) -> Baseline {
        let end = Instant::now() + Duration::from_secs(30);
        let (mut last, mut since) = (look(daemon, clients), Instant::now());
        while since.elapsed() < STILL {
            std::thread::sleep(Duration::from_millis(10));
            let now = look(daemon, clients);
            if now != last || daemon.is_storing() {
                (last, since) = (now, Instant::now());
            }
            assert!(Instant::now() < end, "the processes do not come to rest: {last:#?}");
        }
        Baseline { holdings: last, memory: memory(daemon, clients) }
    }

    /// Requires that everybody holds again what they held, and at most `slack` bytes more of private memory each.
    ///
    /// # Panics
    /// When something is left two seconds after the disk has taken in what was to be stored.
    pub fn holds_again(&self, daemon: &Daemon, clients: &[&Driver], slack: u64) -> Memory {
        within(Duration::from_secs(30), "everything is stored", || !daemon.is_storing());
        let end = Instant::now() + BACK_AT_BASELINE;
        loop {
            let (now, grown) = (look(daemon, clients), memory(daemon, clients));
            let small = [
                (grown.supervisor, self.memory.supervisor),
                (grown.worker, self.memory.worker),
                (grown.client, self.memory.client),
            ];
            let small = small.iter().all(|(now, then)| *now <= then + slack);
            if now == self.holdings && small {
                return grown;
            }
            assert!(
                Instant::now() < end,
                "left behind: {now:#?}, {grown:?}; at the start: {:#?}, {:?}",
                self.holdings,
                self.memory
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
