//! Repeated scenarios: a count, a time budget, a floor, and a seed for every round.
//!
//! A scenario that repeats stops at its count or when its time is over, prints how far it came, and fails
//! below its floor: numbers of `tests/budget.toml`. `INFERD_CAMPAIGN` makes it a campaign: the long count, `CAMPAIGN_S` seconds at most per scenario, a line
//! of progress now and then, and a file in `INFERD_CAMPAIGN_DIR` from which the next run goes on; once its count is reached, the next
//! run begins again with another seed. `INFERD_SEED` repeats a run.

use crate::answer::mix;
use crate::budget::Budget;
use crate::case::Case;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Time of one scenario in a campaign, where `CAMPAIGN_S` does not say.
const CAMPAIGN_S: u64 = 600;
/// How often a campaign says how far it is.
const PROGRESS: Duration = Duration::from_secs(10);

/// The rounds of one scenario.
#[derive(Debug)]
pub struct Rounds {
    name: String,
    count: u32,
    floor: u32,
    seed: u64,
    /// Rounds, those of earlier runs of a campaign included.
    done: u32,
    /// Rounds before this run.
    before: u32,
    end: Instant,
    campaign: Option<Campaign>,
}

#[derive(Debug)]
struct Campaign {
    file: PathBuf,
    said: Instant,
}

impl Campaign {
    /// The file of this scenario, and the rounds and the seed that it holds.
    fn of(name: &str) -> (Campaign, Option<(u32, u64)>) {
        let dir = std::env::var_os("INFERD_CAMPAIGN_DIR")
            .map_or_else(|| std::env::temp_dir().join("inferd-campaign"), PathBuf::from);
        fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        let plain: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let file = dir.join(plain);
        let text = fs::read_to_string(&file).unwrap_or_default();
        let mut words = text.split_whitespace();
        let held = words.next().and_then(|d| d.parse().ok()).zip(words.next().and_then(|s| s.parse().ok()));
        (Campaign { file, said: Instant::now() }, held)
    }

    fn save(&self, done: u32, seed: u64) {
        let written = fs::write(&self.file, format!("{done} {seed}\n"));
        written.unwrap_or_else(|e| panic!("{}: {e}", self.file.display()));
    }
}

/// Whether this run is a campaign.
#[must_use]
pub fn is_campaign() -> bool {
    std::env::var_os("INFERD_CAMPAIGN").is_some_and(|v| !v.is_empty())
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|s| s.parse().ok())
}

/// A campaign that is given less time than a run of CI owes as much less.
fn floor_in(seconds: u64, budget: &Budget) -> u32 {
    let owed = u64::from(budget.floor) * seconds.min(budget.budget_s) / budget.budget_s.max(1);
    u32::try_from(owed).unwrap_or(budget.floor)
}

/// Rounds and seed with which a run begins: where the last one stopped, unless that was at the end.
fn begin_at(held: Option<(u32, u64)>, campaign: u32, fresh_seed: u64) -> (u32, u64) {
    held.filter(|(done, _)| *done < campaign).unwrap_or((0, fresh_seed))
}

impl Rounds {
    /// The rounds that `tests/budget.toml` gives the scenario of this name.
    ///
    /// # Panics
    /// When it gives none.
    #[must_use]
    pub fn of(name: &str) -> Rounds {
        Rounds::with(name, name)
    }

    /// The same for one client and backing: a campaign of each has a count of its own.
    ///
    /// # Panics
    /// As [`Rounds::of`].
    #[must_use]
    pub fn of_case(name: &str, case: &Case) -> Rounds {
        Rounds::with(name, &format!("{name} {:?} {:?}", case.client, case.backing))
    }

    fn with(budget: &str, name: &str) -> Rounds {
        let budget = Budget::of(budget);
        let long = is_campaign();
        let budget_s = if long { number("CAMPAIGN_S").unwrap_or(CAMPAIGN_S) } else { budget.budget_s };
        let fresh = number("INFERD_SEED").unwrap_or_else(|| mix(crate::now_ns()) >> 32);
        let (campaign_file, held) = if long { Some(Campaign::of(name)).unzip() } else { (None, None) };
        let (before, seed) = begin_at(held.flatten(), budget.campaign, fresh);
        println!("{name}: rounds from {before}, INFERD_SEED={seed}");
        Rounds {
            name: name.to_owned(),
            count: if long { budget.campaign } else { budget.count },
            floor: floor_in(budget_s, &budget),
            seed,
            done: before,
            before,
            end: Instant::now() + Duration::from_secs(budget_s),
            campaign: campaign_file,
        }
    }

    /// Whether there is another round; counts it. The first of a run comes whatever the time.
    pub fn another(&mut self) -> bool {
        let more = self.done < self.count && (self.done == self.before || Instant::now() < self.end);
        if let Some(campaign) = &mut self.campaign {
            // The round before this one has passed.
            campaign.save(self.done, self.seed);
            if campaign.said.elapsed() > PROGRESS {
                campaign.said = Instant::now();
                // Past the capture of the test's output.
                let line = format!("campaign {}: {} of {} rounds\n", self.name, self.done, self.count);
                std::io::stderr().write_all(line.as_bytes()).ok();
            }
        }
        self.done += u32::from(more);
        more
    }

    /// Rounds so far, the one under way included.
    #[must_use]
    pub fn done(&self) -> u32 {
        self.done
    }

    /// Whether the round under way is the first of this run, which may go on where an earlier one stopped.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.in_this_run() == 1
    }

    /// Rounds of this run, the one under way included.
    #[must_use]
    pub fn in_this_run(&self) -> u32 {
        self.done - self.before
    }

    /// A number for this round: the same in every run with the same `INFERD_SEED`.
    #[must_use]
    pub fn seed(&self) -> u64 {
        mix(self.seed.wrapping_mul(1_000_003).wrapping_add(u64::from(self.done)))
    }

    /// Prints the count.
    ///
    /// # Panics
    /// Below the floor.
    pub fn finish(self) {
        let line = format!("{}: {} of {} rounds", self.name, self.done, self.count);
        println!("{line}");
        if self.campaign.is_some() {
            std::io::stderr().write_all(format!("campaign {line}\n").as_bytes()).ok();
        }
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

    fn plain(name: &str, count: u32, floor: u32) -> Rounds {
        Rounds {
            name: name.into(),
            count,
            floor,
            seed: 1,
            done: 0,
            before: 0,
            end: Instant::now() + Duration::from_secs(60),
            campaign: None,
        }
    }

    #[test]
    fn a_short_campaign_owes_less_and_a_long_one_no_more() {
        let budget = Budget::of("clients dead on memfds");
        let floor = |seconds| floor_in(seconds, &budget);
        assert_eq!((floor(budget.budget_s), floor(10 * budget.budget_s)), (budget.floor, budget.floor));
        assert!(floor(budget.budget_s / 4) <= budget.floor / 4 && floor(0) == 0);
    }

    #[test]
    fn rounds_end_at_their_count_and_fail_below_their_floor() {
        let mut rounds = plain("three", 3, 3);
        while rounds.another() {}
        assert_eq!(rounds.done(), 3);
        rounds.finish();
        let mut late = Rounds { end: Instant::now(), ..plain("late", 3, 2) };
        while late.another() {}
        assert_eq!(late.done(), 1, "always one, then the time is over");
        assert!(std::panic::catch_unwind(|| late.finish()).is_err());
    }

    #[test]
    fn a_campaign_that_is_over_begins_again_with_another_seed() {
        assert_eq!(begin_at(None, 10, 7), (0, 7));
        assert_eq!(begin_at(Some((9, 1)), 10, 7), (9, 1));
        assert_eq!(begin_at(Some((10, 1)), 10, 7), (0, 7));
    }

    #[test]
    fn a_campaign_goes_on_where_it_was_interrupted_with_the_same_seeds() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("campaign");
        let campaign = || Some(Campaign { file: file.clone(), said: Instant::now() });
        let mut first = Rounds { campaign: campaign(), ..plain("long", 10, 1) };
        let mut seeds = Vec::new();
        while seeds.len() < 4 && first.another() {
            seeds.push(first.seed());
        }
        // Interrupted in the fourth round: it did not pass, and comes again.
        assert_eq!(fs::read_to_string(&file).expect("a file"), "3 1\n");
        let mut second = Rounds { campaign: campaign(), done: 3, before: 3, ..plain("long", 10, 1) };
        assert!(second.another() && second.is_first());
        assert_eq!(second.seed(), seeds[3]);
        while second.another() {}
        assert_eq!(fs::read_to_string(&file).expect("a file"), "10 1\n");
    }
}
