//! The account of request numbers that "every request has exactly one outcome" is checked against.
//!
//! The drivers keep one of their own inside `loop`; this one serves scenarios that send by hand. A
//! test of the harness drops one reply, doubles another and mislabels a third, and must fail each time.

use std::collections::BTreeMap;

/// Requests sent and what became of them.
#[derive(Debug, Default)]
pub struct Ledger {
    outcomes: BTreeMap<u64, Vec<String>>,
}

impl Ledger {
    /// Notes that a request was published.
    pub fn sent(&mut self, request: u64) {
        self.outcomes.entry(request).or_default();
    }

    /// Notes an outcome.
    pub fn ended(&mut self, request: u64, outcome: &str) {
        self.outcomes
            .entry(request)
            .or_insert_with(|| vec!["an outcome without a request".into()])
            .push(outcome.to_owned());
    }

    /// How many requests ended in this.
    #[must_use]
    pub fn count(&self, outcome: &str) -> usize {
        self.outcomes.values().flatten().filter(|o| *o == outcome).count()
    }

    /// The first request that has not exactly one outcome.
    ///
    /// # Errors
    /// Which request, and what it has.
    pub fn balance(&self) -> Result<(), String> {
        let wrong = self.outcomes.iter().find(|(_, outcomes)| outcomes.len() != 1);
        wrong.map_or(Ok(()), |(request, outcomes)| Err(format!("request {request} ended in {outcomes:?}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hundred() -> Ledger {
        let mut ledger = Ledger::default();
        (0..100).for_each(|n| ledger.sent(n));
        (0..100).filter(|n| *n != 41).for_each(|n| ledger.ended(n, "ok"));
        ledger
    }

    #[test]
    fn a_ledger_with_one_dropped_reply_does_not_balance() {
        let mut ledger = hundred();
        assert_eq!(ledger.balance(), Err("request 41 ended in []".into()));
        ledger.ended(41, "superseded");
        assert_eq!(ledger.balance(), Ok(()));
    }

    #[test]
    fn a_ledger_with_a_doubled_or_an_invented_reply_does_not_balance() {
        let mut ledger = hundred();
        ledger.ended(41, "ok");
        ledger.ended(7, "ok");
        assert!(ledger.balance().is_err());
        let mut ledger = hundred();
        ledger.ended(41, "ok");
        ledger.ended(100, "ok");
        assert!(ledger.balance().is_err());
    }
}
