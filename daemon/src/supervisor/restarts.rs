//! When a model's worker that died is started again, and when not any more.
//!
//! Pure: time comes in as milliseconds of any clock that does not run backwards. The first death is
//! answered after [`RESTART_BACKOFF_MS`], each further one within the window after twice the wait; more
//! than [`RESTARTS_MAX`] deaths, none of them [`RESTART_WINDOW_MS`] after the one before, quarantine the
//! model until an operator acts.

use inferd_ipc::limits::{RESTART_BACKOFF_MS, RESTART_BACKOFF_MS_MAX, RESTART_WINDOW_MS, RESTARTS_MAX};

/// What follows a worker's death.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Start the same generation again after this many milliseconds.
    RestartAfter(u64),
    /// No more: an operator must act.
    Quarantine,
}

/// The recent deaths of one model's workers.
#[derive(Debug, Clone, Default)]
pub struct Restarts {
    deaths: u32,
    last_ms: u64,
    total: u64,
}

impl Restarts {
    /// Notes a death and says what follows.
    pub fn died(&mut self, now_ms: u64) -> Verdict {
        if self.deaths > 0 && now_ms.saturating_sub(self.last_ms) >= RESTART_WINDOW_MS {
            self.deaths = 0;
        }
        self.deaths += 1;
        self.total += 1;
        self.last_ms = now_ms;
        if self.deaths > RESTARTS_MAX {
            return Verdict::Quarantine;
        }
        let doubled = RESTART_BACKOFF_MS.saturating_mul(1 << (self.deaths - 1));
        Verdict::RestartAfter(doubled.min(RESTART_BACKOFF_MS_MAX))
    }

    /// Deaths ever noted: tells a restart that is still wanted from one that another death has overtaken.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Forgets every death: an operator put another generation in place.
    pub fn forgive(&mut self) {
        self.deaths = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn waits_double_and_the_sixth_death_quarantines() {
        let mut restarts = Restarts::default();
        let waits: Vec<Verdict> = (0..RESTARTS_MAX as u64).map(|i| restarts.died(i)).collect();
        assert_eq!(waits, [10, 20, 40, 80, 160].map(Verdict::RestartAfter));
        assert_eq!(restarts.died(100), Verdict::Quarantine);
    }

    #[test]
    fn a_quiet_window_or_an_operator_forgives() {
        let mut restarts = Restarts::default();
        for i in 0..=u64::from(RESTARTS_MAX) {
            restarts.died(i);
        }
        assert_eq!(restarts.clone().died(RESTART_WINDOW_MS * 2), Verdict::RestartAfter(RESTART_BACKOFF_MS));
        restarts.forgive();
        assert_eq!(restarts.died(100), Verdict::RestartAfter(RESTART_BACKOFF_MS));
    }

    proptest! {
        #[test]
        fn never_more_than_the_allowed_restarts_without_a_quiet_window(gaps in prop::collection::vec(0u64..90_000, 1..60)) {
            let (mut restarts, mut now, mut in_a_row) = (Restarts::default(), 0, 0u32);
            for gap in gaps {
                now += gap;
                in_a_row = if gap >= RESTART_WINDOW_MS { 1 } else { in_a_row + 1 };
                match restarts.died(now) {
                    Verdict::RestartAfter(wait) => {
                        prop_assert!(in_a_row <= RESTARTS_MAX);
                        prop_assert!((RESTART_BACKOFF_MS..=RESTART_BACKOFF_MS_MAX).contains(&wait));
                    }
                    Verdict::Quarantine => prop_assert!(in_a_row > RESTARTS_MAX),
                }
            }
        }
    }
}
