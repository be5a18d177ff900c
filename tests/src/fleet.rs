//! Four robots on one daemon, the Rust and the C client in turn, each with a ledger of its own.
//!
//! A load is a `loop` of every robot at once, in stretches short enough that a ledger stays bounded; what is done to the
//! daemon meanwhile is the scenario's business.

use crate::answer::Answer;
use crate::case::turn;
use crate::daemon::Daemon;
use crate::driver::{Client, Driver};
use crate::skip::skip;
use std::time::{Duration, Instant};

/// How long a stretch of load may take over its time.
const LATE: Duration = Duration::from_secs(30);

/// The robots.
pub struct Fleet {
    /// Rust, C, Rust, C.
    pub robots: Vec<Driver>,
    ends: Instant,
    summaries: Vec<Option<Answer>>,
    loaded: bool,
}

impl Fleet {
    /// Waits for the scenario's turn and runs `body`, unless the C client is not built.
    pub fn run(name: &str, body: impl FnOnce()) {
        if Client::C.program().is_none() {
            return skip(name, "the driver of the C client is not built (make build)");
        }
        let _turn = turn();
        body();
    }

    /// Four robots that have attached with these keys.
    ///
    /// # Panics
    /// When they cannot attach.
    #[must_use]
    pub fn attach(daemon: &Daemon, keys: &str) -> Fleet {
        let driver = |client: Client| {
            let mut robot = daemon.driver(&client.program().expect("checked at the start"));
            robot.ok(&format!("attach {keys}"));
            robot
        };
        let robots: Vec<Driver> = [Client::Rust, Client::C, Client::Rust, Client::C].map(driver).into();
        Fleet { robots, ends: Instant::now(), summaries: Vec::new(), loaded: false }
    }

    /// New sessions in the place of all, their state begun afresh.
    ///
    /// # Panics
    /// When they cannot attach.
    pub fn reattach(&mut self, keys: &str) {
        for robot in &mut self.robots {
            robot.ok("detach");
            robot.ok(&format!("attach {keys}"));
        }
    }

    /// Begins a stretch of load: `loop seconds=SECONDS KEYS`.
    pub fn load(&mut self, seconds: f64, keys: &str) {
        self.robots.iter_mut().for_each(|r| r.begin(&format!("loop seconds={seconds} {keys}")));
        self.summaries = self.robots.iter().map(|_| None).collect();
        (self.ends, self.loaded) = (Instant::now() + Duration::from_secs_f64(seconds), true);
    }

    /// Whether a stretch of load is under way, on any robot.
    pub fn is_loaded(&mut self) -> bool {
        if self.loaded {
            for (robot, summary) in self.robots.iter_mut().zip(&mut self.summaries) {
                if summary.is_none() {
                    *summary = robot.finished();
                }
            }
            self.loaded = self.summaries.iter().any(Option::is_none);
        }
        self.loaded
    }

    /// How long the stretch of load will last yet.
    #[must_use]
    pub fn left(&self) -> Duration {
        self.ends.saturating_duration_since(Instant::now())
    }

    /// The summaries of the stretch, once all have ended; every ledger balances.
    ///
    /// # Panics
    /// When a ledger has a fault or a robot hangs.
    pub fn unload(&mut self) -> Vec<Answer> {
        let limit = self.left() + LATE;
        let ended = self.robots.iter_mut().zip(std::mem::take(&mut self.summaries));
        let all = ended.map(|(robot, summary)| summary.unwrap_or_else(|| robot.finish(limit)).clean()).collect();
        self.loaded = false;
        all
    }

    /// The robots, for a leak check.
    #[must_use]
    pub fn all(&self) -> Vec<&Driver> {
        self.robots.iter().collect()
    }
}
