//! Which sessions there are, whom they are charged to, and what is still owed after their end.
//!
//! [`Registry`] is pure: what a session is made of ([`Parts`] in the daemon) is its parameter. A session
//! begins (charged, half attached), gets ready, ends; its region bytes stay charged until nobody holds
//! its request region any more, since a client that keeps its mapping keeps the memory. Numbers are
//! never used twice.

use super::quota::{Charge, Quota, QuotaError, Quotas};
use inferd_ipc::layout::{Backing, Geometry, Queue};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Instant;

/// A session's recurrent state, as the live generation lays it out.
#[derive(Debug, Clone)]
pub struct State {
    /// The state region.
    pub fd: Rc<OwnedFd>,
    /// Bytes of one half.
    pub bytes: u64,
    /// Names, dtypes and shapes; a generation with another layout needs another region.
    pub layout: String,
}

/// What a session is made of.
#[derive(Debug)]
pub struct Parts {
    /// Its connection on the attach socket.
    pub connection: u64,
    /// The peer's process id: a label.
    pub pid: u32,
    /// How its requests are taken.
    pub queue: Queue,
    /// Where everything lies.
    pub geometry: Geometry,
    /// What the regions are made of.
    pub backing: Backing,
    /// Request region, read-write.
    pub request: Rc<OwnedFd>,
    /// Reply region, read-write.
    pub reply: Rc<OwnedFd>,
    /// The worker's end of the doorbell socket.
    pub doorbell: Rc<OwnedFd>,
    /// The kernel lets nobody put descriptors into it.
    pub doorbell_refuses: bool,
    /// Names under `/dev/shm`, for named segments.
    pub names: Vec<String>,
    /// Recurrent state, from READY on, for a stateful model.
    pub state: Option<State>,
    /// When READY was sent.
    pub ready_at: Option<Instant>,
}

/// A session of the registry.
#[derive(Debug)]
pub struct Session<P> {
    /// Its model.
    pub model: u64,
    /// Whom it is charged to.
    pub uid: u32,
    /// Bytes of its regions, of its state too as it was when it began.
    pub region_bytes: u64,
    /// READY was sent: workers know it.
    pub ready: bool,
    /// What it is made of.
    pub parts: P,
}

/// Why a session cannot begin.
#[derive(Debug, PartialEq, Eq)]
pub enum BeginError<E> {
    /// A quota of this uid.
    Quota(QuotaError),
    /// Its parts could not be made.
    Parts(E),
}

/// All sessions of the daemon.
#[derive(Debug)]
pub struct Registry<P> {
    /// What uids hold; connections are charged by whoever accepts them.
    pub quotas: Quotas,
    sessions: BTreeMap<u64, Session<P>>,
    lingering: BTreeMap<u64, (u32, u64)>,
    last: u64,
}

impl<P> Registry<P> {
    /// No sessions yet.
    #[must_use]
    pub fn new(quota: Quota) -> Registry<P> {
        Registry { quotas: Quotas::new(quota), sessions: BTreeMap::new(), lingering: BTreeMap::new(), last: 0 }
    }

    /// The number that the next session will have.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.last + 1
    }

    /// Charges `uid`, makes the parts, and enters the session, half attached. Returns its number.
    ///
    /// # Errors
    /// [`BeginError`]; nothing stays charged then.
    pub fn begin<E>(
        &mut self,
        uid: u32,
        model: u64,
        region_bytes: u64,
        make: impl FnOnce(u64) -> Result<P, E>,
    ) -> Result<u64, BeginError<E>> {
        let charges = [Charge::Session, Charge::HalfAttach, Charge::RegionBytes(region_bytes)];
        for (i, charge) in charges.into_iter().enumerate() {
            if let Err(refused) = self.quotas.take(uid, charge) {
                charges[..i].iter().for_each(|taken| self.quotas.give(uid, *taken));
                return Err(BeginError::Quota(refused));
            }
        }
        match make(self.next()) {
            Ok(parts) => {
                self.last += 1;
                self.sessions.insert(self.last, Session { model, uid, region_bytes, ready: false, parts });
                Ok(self.last)
            }
            Err(error) => {
                charges.iter().for_each(|taken| self.quotas.give(uid, *taken));
                Err(BeginError::Parts(error))
            }
        }
    }

    /// READY: the attach is complete.
    ///
    /// # Panics
    /// When the session is unknown or was ready already: the caller's bug.
    pub fn ready(&mut self, number: u64) {
        let session = self.sessions.get_mut(&number).expect("a session that gets ready is known");
        assert!(!session.ready, "a session gets ready once");
        session.ready = true;
        self.quotas.give(session.uid, Charge::HalfAttach);
    }

    /// The session is over; its region bytes stay charged until [`Registry::released`].
    pub fn end(&mut self, number: u64) -> Option<Session<P>> {
        let session = self.sessions.remove(&number)?;
        self.quotas.give(session.uid, Charge::Session);
        if !session.ready {
            self.quotas.give(session.uid, Charge::HalfAttach);
        }
        if self.quotas.take(session.uid, Charge::Lingering).is_ok() {
            self.lingering.insert(number, (session.uid, session.region_bytes));
        }
        Some(session)
    }

    /// Nobody holds the regions of a session that ended.
    pub fn released(&mut self, number: u64) {
        if let Some((uid, bytes)) = self.lingering.remove(&number) {
            self.quotas.give(uid, Charge::RegionBytes(bytes));
            self.quotas.give(uid, Charge::Lingering);
        }
    }

    /// A session.
    #[must_use]
    pub fn get(&self, number: u64) -> Option<&Session<P>> {
        self.sessions.get(&number)
    }

    /// A session.
    pub fn get_mut(&mut self, number: u64) -> Option<&mut Session<P>> {
        self.sessions.get_mut(&number)
    }

    /// All sessions, by number.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Session<P>)> {
        self.sessions.iter().map(|(number, session)| (*number, session))
    }

    /// The sessions of a model that workers know.
    pub fn ready_of(&self, model: u64) -> impl Iterator<Item = (u64, &Session<P>)> {
        self.iter().filter(move |(_, session)| session.model == model && session.ready)
    }

    /// How many sessions a model has, half attached ones included.
    #[must_use]
    pub fn count_of(&self, model: u64) -> usize {
        self.sessions.values().filter(|session| session.model == model).count()
    }

    /// How many sessions there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.sessions.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const QUOTA: Quota = Quota { connections: 9, half_attaches: 2, sessions: 3, region_bytes: 100, lingering: 2 };

    #[derive(Debug, Clone)]
    enum Step {
        Begin { uid: u32, model: u64, bytes: u64, parts: bool },
        Ready(prop::sample::Index),
        End(prop::sample::Index),
        Released(prop::sample::Index),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0u32..3, 0u64..2, 1u64..60, prop::bool::weighted(0.8))
                .prop_map(|(uid, model, bytes, parts)| Step::Begin { uid, model, bytes, parts }),
            2 => any::<prop::sample::Index>().prop_map(Step::Ready),
            2 => any::<prop::sample::Index>().prop_map(Step::End),
            2 => any::<prop::sample::Index>().prop_map(Step::Released),
        ]
    }

    /// The reference: one flat list of everything that ever began, with how far it came.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Life {
        Half,
        Ready,
        Lingering,
        Gone,
    }

    #[derive(Default)]
    struct Reference {
        all: Vec<(u32, u64, u64, Life)>,
    }

    impl Reference {
        fn count(&self, uid: u32, which: impl Fn(Life) -> bool) -> usize {
            self.all.iter().filter(|s| s.0 == uid && which(s.3)).count()
        }

        fn may_begin(&self, uid: u32, bytes: u64) -> bool {
            let held: u64 = self.all.iter().filter(|s| s.0 == uid && s.3 != Life::Gone).map(|s| s.2).sum();
            self.count(uid, |l| matches!(l, Life::Half | Life::Ready)) < QUOTA.sessions as usize
                && self.count(uid, |l| l == Life::Lingering) < QUOTA.lingering as usize
                && self.count(uid, |l| l == Life::Half) < QUOTA.half_attaches as usize
                && held + bytes <= QUOTA.region_bytes
        }

        fn pick(&self, index: prop::sample::Index, which: impl Fn(Life) -> bool) -> Option<usize> {
            let fit: Vec<usize> = (0..self.all.len()).filter(|i| which(self.all[*i].3)).collect();
            (!fit.is_empty()).then(|| *index.get(&fit))
        }
    }

    fn run(steps: Vec<Step>) -> Result<(), TestCaseError> {
        let (mut registry, mut reference) = (Registry::<()>::new(QUOTA), Reference::default());
        for step in steps {
            match step {
                Step::Begin { uid, model, bytes, parts } => {
                    let made = registry.begin(uid, model, bytes, |_| parts.then_some(()).ok_or(()));
                    let allowed = reference.may_begin(uid, bytes);
                    prop_assert_eq!(matches!(made, Err(BeginError::Quota(_))), !allowed);
                    prop_assert_eq!(made.is_ok(), allowed && parts);
                    if let Ok(number) = made {
                        reference.all.push((uid, model, bytes, Life::Half));
                        prop_assert_eq!(number as usize, reference.all.len());
                    }
                }
                Step::Ready(index) => {
                    if let Some(i) = reference.pick(index, |l| l == Life::Half) {
                        registry.ready(i as u64 + 1);
                        reference.all[i].3 = Life::Ready;
                    }
                }
                Step::End(index) => {
                    if let Some(i) = reference.pick(index, |_| true) {
                        let live = matches!(reference.all[i].3, Life::Half | Life::Ready);
                        prop_assert_eq!(registry.end(i as u64 + 1).is_some(), live);
                        if live {
                            reference.all[i].3 = Life::Lingering;
                        }
                    }
                }
                Step::Released(index) => {
                    if let Some(i) = reference.pick(index, |_| true) {
                        registry.released(i as u64 + 1);
                        if reference.all[i].3 == Life::Lingering {
                            reference.all[i].3 = Life::Gone;
                        }
                    }
                }
            }
            for model in 0..2 {
                let known = |l: Life| matches!(l, Life::Half | Life::Ready);
                let expected = reference.all.iter().filter(|s| s.1 == model && known(s.3)).count();
                prop_assert_eq!(registry.count_of(model), expected);
                let ready = reference.all.iter().filter(|s| s.1 == model && s.3 == Life::Ready).count();
                prop_assert_eq!(registry.ready_of(model).count(), ready);
            }
        }
        for number in 1..=reference.all.len() as u64 {
            registry.end(number);
            registry.released(number);
        }
        prop_assert_eq!(registry.quotas.uids(), 0);
        Ok(())
    }

    proptest! {
        #[test]
        fn the_registry_agrees_with_a_flat_list(steps in prop::collection::vec(step(), 0..150)) {
            run(steps)?;
        }
    }
}
