//! What each uid holds of the daemon, and how much it may hold.
//!
//! Pure. Every charge that was granted is given back exactly once by the object that carries it: a
//! connection, a half-open attach, a session, region bytes (which outlive the session while a client
//! keeps them mapped). Giving back more than was taken is our bug, not a peer's, and asserts.

use std::collections::BTreeMap;

/// One thing that is charged to a uid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Charge {
    /// A connection on the attach socket.
    Connection,
    /// An attach between ATTACHED and READY.
    HalfAttach,
    /// A session.
    Session,
    /// Bytes of both regions of a session.
    RegionBytes(u64),
    /// The regions of a session that has ended, while its client holds them.
    Lingering,
}

/// Most that one uid may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Connections on the attach socket.
    pub connections: u64,
    /// Attaches that have not reached READY.
    pub half_attaches: u64,
    /// Sessions.
    pub sessions: u64,
    /// Region bytes.
    pub region_bytes: u64,
    /// Ended sessions whose regions are still held: at this many, no further session begins.
    pub lingering: u64,
}

/// A charge that was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("uid {uid} holds {held} of at most {limit} {what}; {remedy}")]
pub struct QuotaError {
    /// Who asked.
    pub uid: u32,
    /// Of what.
    pub what: &'static str,
    /// What it holds.
    pub held: u64,
    /// What it may hold.
    pub limit: u64,
    /// What helps.
    pub remedy: &'static str,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Held {
    connections: u64,
    half_attaches: u64,
    sessions: u64,
    region_bytes: u64,
    lingering: u64,
}

/// The charges of all uids.
#[derive(Debug)]
pub struct Quotas {
    quota: Quota,
    held: BTreeMap<u32, Held>,
}

impl Quotas {
    /// Nothing held yet.
    #[must_use]
    pub fn new(quota: Quota) -> Quotas {
        Quotas { quota, held: BTreeMap::new() }
    }

    /// From now on this much; what is held already stays.
    pub fn set(&mut self, quota: Quota) {
        self.quota = quota;
    }

    /// Charges `uid`, or says which limit stands against it.
    ///
    /// # Errors
    /// [`QuotaError`]; nothing was charged then.
    pub fn take(&mut self, uid: u32, charge: Charge) -> Result<(), QuotaError> {
        let quota = self.quota;
        let held = self.held.entry(uid).or_default();
        if charge == Charge::Session && held.lingering >= quota.lingering {
            let (held, limit) = (held.lingering, quota.lingering);
            return Err(QuotaError {
                uid,
                what: "ended sessions that are still mapped",
                held,
                limit,
                remedy: "unmap them",
            });
        }
        let (count, limit, amount, what, remedy) = match charge {
            Charge::Connection => (&mut held.connections, quota.connections, 1, "connections", "close one"),
            Charge::HalfAttach => {
                (&mut held.half_attaches, quota.half_attaches, 1, "unfinished attaches", "finish or close one")
            }
            Charge::Session => (&mut held.sessions, quota.sessions, 1, "sessions", "close one or raise [quota]"),
            Charge::RegionBytes(bytes) => (
                &mut held.region_bytes,
                quota.region_bytes,
                bytes,
                "region bytes",
                "ask for fewer slots, unmap ended sessions or raise [quota]",
            ),
            // The end of a session cannot be refused; the beginning of the next one can.
            Charge::Lingering => {
                (&mut held.lingering, u64::MAX, 1, "ended sessions that are still mapped", "unmap them")
            }
        };
        if amount > limit.saturating_sub(*count) {
            let refused = QuotaError { uid, what, held: *count, limit, remedy };
            self.forget_if_empty(uid);
            return Err(refused);
        }
        *count += amount;
        Ok(())
    }

    /// Whether ended sessions that are still held keep `uid` from beginning another.
    #[must_use]
    pub fn lingers(&self, uid: u32) -> bool {
        self.held.get(&uid).is_some_and(|held| held.lingering >= self.quota.lingering)
    }

    /// Takes a charge back.
    pub fn give(&mut self, uid: u32, charge: Charge) {
        let held = self.held.get_mut(&uid).expect("a charge is given back once, after it was taken");
        let (count, amount) = match charge {
            Charge::Connection => (&mut held.connections, 1),
            Charge::HalfAttach => (&mut held.half_attaches, 1),
            Charge::Session => (&mut held.sessions, 1),
            Charge::RegionBytes(bytes) => (&mut held.region_bytes, bytes),
            Charge::Lingering => (&mut held.lingering, 1),
        };
        assert!(*count >= amount, "a charge is given back once, after it was taken");
        *count -= amount;
        self.forget_if_empty(uid);
    }

    fn forget_if_empty(&mut self, uid: u32) {
        if self.held.get(&uid) == Some(&Held::default()) {
            self.held.remove(&uid);
        }
    }

    /// Uids that hold anything.
    #[cfg(test)]
    pub fn uids(&self) -> usize {
        self.held.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const QUOTA: Quota = Quota { connections: 3, half_attaches: 2, sessions: 2, region_bytes: 100, lingering: 2 };

    fn charge() -> impl Strategy<Value = Charge> {
        prop_oneof![
            Just(Charge::Connection),
            Just(Charge::HalfAttach),
            Just(Charge::Session),
            (1u64..70).prop_map(Charge::RegionBytes),
            Just(Charge::Lingering)
        ]
    }

    fn kind(charge: Charge) -> (usize, u64, u64) {
        match charge {
            Charge::Connection => (0, 1, QUOTA.connections),
            Charge::HalfAttach => (1, 1, QUOTA.half_attaches),
            Charge::Session => (2, 1, QUOTA.sessions),
            Charge::RegionBytes(bytes) => (3, bytes, QUOTA.region_bytes),
            Charge::Lingering => (4, 1, u64::MAX),
        }
    }

    proptest! {
        /// The reference keeps every granted charge in a plain list and adds them up each time.
        #[test]
        fn grants_and_refusals_are_those_of_a_plain_list(
            steps in prop::collection::vec((0u32..3, charge(), any::<bool>(), any::<prop::sample::Index>()), 0..120)
        ) {
            let mut quotas = Quotas::new(QUOTA);
            let mut granted: Vec<(u32, Charge)> = Vec::new();
            for (uid, wish, take, pick) in steps {
                if take {
                    let (which, amount, limit) = kind(wish);
                    let sum: u64 =
                        granted.iter().filter(|(u, c)| *u == uid && kind(*c).0 == which).map(|(_, c)| kind(*c).1).sum();
                    let result = quotas.take(uid, wish);
                    let lingering =
                        granted.iter().filter(|(u, c)| *u == uid && *c == Charge::Lingering).count() as u64;
                    let blocked = wish == Charge::Session && lingering >= QUOTA.lingering;
                    prop_assert_eq!(result.is_ok(), sum + amount <= limit && !blocked);
                    if result.is_ok() {
                        granted.push((uid, wish));
                    }
                } else if !granted.is_empty() {
                    let (uid, charge) = granted.swap_remove(pick.index(granted.len()));
                    quotas.give(uid, charge);
                }
            }
            for (uid, charge) in granted {
                quotas.give(uid, charge);
            }
            prop_assert_eq!(quotas.uids(), 0);
        }
    }

    #[test]
    fn one_uid_at_its_limit_leaves_another_alone_and_the_refusal_names_the_remedy() {
        let mut quotas = Quotas::new(QUOTA);
        quotas.take(1, Charge::RegionBytes(90)).expect("below the limit");
        let refused = quotas.take(1, Charge::RegionBytes(11)).expect_err("over the limit");
        assert_eq!(
            refused.to_string(),
            "uid 1 holds 90 of at most 100 region bytes; ask for fewer slots, unmap ended sessions or raise [quota]"
        );
        assert_eq!(quotas.take(2, Charge::RegionBytes(100)), Ok(()));
    }
}
