//! Repeated scenarios: a count, a time budget, and a floor.
//!
//! A scenario that repeats stops at its count or when its time is over, prints how far it came, and fails
//! below its floor. `INFERD_CAMPAIGN` raises the count a hundredfold, bounded by `CAMPAIGN_S` seconds per scenario.

use std::time::{Duration, Instant};

/// Time of one scenario on one client and backing in CI.
const BUDGET_S: u64 = 20;
/// Campaigns repeat this many times as often.
const CAMPAIGN_FACTOR: u32 = 100;
/// Time of one scenario in a campaign, where `CAMPAIGN_S` does not say.
const CAMPAIGN_S: u64 = 600;

/// The rounds of one scenario.
#[derive(Debug)]
pub struct Rounds {
    name: &'static str,
    count: u32,
    floor: u32,
    done: u32,
    end: Instant,
}

impl Rounds {
    /// `count` rounds, at least `floor` of them within the budget.
    #[must_use]
    pub fn new(name: &'static str, count: u32, floor: u32) -> Rounds {
        let campaign = std::env::var_os("INFERD_CAMPAIGN").is_some_and(|v| !v.is_empty());
        let seconds = std::env::var("CAMPAIGN_S").ok().and_then(|s| s.parse().ok()).unwrap_or(CAMPAIGN_S);
        let (factor, budget_s) = if campaign { (CAMPAIGN_FACTOR, seconds) } else { (1, BUDGET_S) };
        Rounds { name, count: count * factor, floor, done: 0, end: Instant::now() + Duration::from_secs(budget_s) }
    }

    /// Whether there is another round; counts it.
    pub fn another(&mut self) -> bool {
        let more = self.done < self.count && (self.done == 0 || Instant::now() < self.end);
        self.done += u32::from(more);
        more
    }

    /// Rounds so far.
    #[must_use]
    pub fn done(&self) -> u32 {
        self.done
    }

    /// Prints the count.
    ///
    /// # Panics
    /// Below the floor.
    pub fn finish(self) {
        println!("{}: {} of {} rounds", self.name, self.done, self.count);
        assert!(
            self.done >= self.floor,
            "{}: only {} rounds in time, the floor is {}",
            self.name,
            self.done,
            self.floor
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_end_at_their_count_and_fail_below_their_floor() {
        let mut rounds = Rounds { count: 3, ..Rounds::new("three", 3, 3) };
        while rounds.another() {}
        assert_eq!(rounds.done(), 3);
        rounds.finish();
        let mut late = Rounds { end: Instant::now(), ..Rounds::new("late", 3, 2) };
        while late.another() {}
        assert_eq!(late.done(), 1, "always one, then the time is over");
        assert!(std::panic::catch_unwind(|| late.finish()).is_err());
    }
}
