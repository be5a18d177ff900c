//! `tests/budget.toml`: what each suite and each repeated scenario may take.
//!
//! Counts and times stand there and nowhere else, so that what `make test` costs can be read on one page.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// What a suite may take.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suite {
    /// Its share of the 40 minutes of `make test`.
    pub budget_s: u64,
    /// It hangs when it runs longer than this.
    pub ended_s: Option<u64>,
}

/// What a repeated scenario may take.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// The suite that it belongs to.
    pub suite: String,
    /// Rounds in CI.
    pub count: u32,
    /// Rounds in a campaign.
    pub campaign: u32,
    /// Fewer rounds than this prove too little: the scenario fails.
    pub floor: u32,
    /// Time in CI, on one client and backing.
    pub budget_s: u64,
}

/// The whole file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budgets {
    /// By name of the suite.
    pub suites: BTreeMap<String, Suite>,
    /// By name of the scenario.
    pub rounds: BTreeMap<String, Budget>,
}

/// What the file says.
///
/// # Panics
/// When it is not sound.
#[must_use]
pub fn budgets() -> &'static Budgets {
    static BUDGETS: OnceLock<Budgets> = OnceLock::new();
    BUDGETS.get_or_init(|| {
        toml::from_str(include_str!("../budget.toml")).unwrap_or_else(|e| panic!("tests/budget.toml: {e}"))
    })
}

impl Budget {
    /// The budget of a scenario.
    ///
    /// # Panics
    /// When the file has none.
    #[must_use]
    pub fn of(name: &str) -> Budget {
        budgets().rounds.get(name).unwrap_or_else(|| panic!("[rounds] of tests/budget.toml has no {name:?}")).clone()
    }
}
