//! What docs/reload.md and docs/semantics.md promise of models, their generations and their workers' deaths.
//!
//! The reference is told what operators asked for and what workers did, one after the other, and knows from that what
//! every command is answered and what `models` says. It has no timers, sockets or batons: whether a worker was killed by
//! the test, by itself or by the supervisor makes no difference to it.

use super::worker::Deed;
use inferd_ipc::control::code::{BUSY, NOT_FOUND, REFUSED};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Deaths in a row that quarantine a model: the sixth, and the time without one that forgives.
const DEATHS: u32 = 6;
const QUIET_MS: u64 = 60_000;
/// Wait before the first restart; each further one waits twice as long.
const BACKOFF_MS: u64 = 10;
/// Validations at a time.
const VALIDATIONS: usize = 4;

/// What a command must be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Due {
    /// Nothing yet.
    Open,
    /// A refusal of this code.
    Code(i64),
    /// It was done.
    Done,
    /// It was done, and this generation serves.
    Serves(u64),
    /// One generation replaced another.
    Swapped(u64, u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Loading,
    Live,
    Recovering,
    Quarantined,
}

/// The worker that shall end a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    /// It is not there yet; the generation that it will be.
    Awaited(u64),
    Next {
        pid: u32,
        warm: bool,
    },
    Kept(u32),
}

#[derive(Debug, Clone, Copy)]
struct Operation {
    command: u64,
    target: Target,
    load: bool,
    dry: bool,
}

#[derive(Debug, Clone, Copy)]
struct Swap {
    to: u32,
    from: Option<u32>,
    granted: bool,
    taken: bool,
}

#[derive(Debug)]
struct Known {
    instance: u64,
    state: State,
    live: u64,
    width: u64,
    serves: Option<u32>,
    kept: Option<(u64, u32)>,
    keeps: bool,
    operation: Option<Operation>,
    swap: Option<Swap>,
    restart: Option<(u32, bool)>,
    in_a_row: u32,
    last_death_ms: u64,
    deaths: u64,
}

impl Known {
    fn died(&mut self, now_ms: u64) {
        if self.live == 0 || self.state == State::Live {
            return;
        }
        if now_ms - self.last_death_ms >= QUIET_MS {
            self.in_a_row = 0;
        }
        (self.in_a_row, self.last_death_ms) = (self.in_a_row + 1, now_ms);
        self.state = if self.in_a_row >= DEATHS { State::Quarantined } else { State::Recovering };
    }

    fn lost(&mut self, now_ms: u64) {
        (self.state, self.deaths) = (State::Recovering, self.deaths + 1);
        self.died(now_ms);
    }

    fn swap_if_possible(&mut self) {
        if self.swap.is_some() {
            return;
        }
        let again = self.restart.filter(|(_, warm)| *warm && self.state != State::Live).map(|(pid, _)| pid);
        let next = self.operation.and_then(|operation| match operation.target {
            Target::Next { pid, warm: true } => Some(pid),
            _ => None,
        });
        if let Some(to) = again.or(next) {
            self.swap_to(to);
        }
    }

    fn swap_to(&mut self, to: u32) {
        let from = self.serves.filter(|_| self.state == State::Live);
        self.swap = Some(Swap { to, from, granted: true, taken: false });
    }
}

/// What a worker is there for.
#[derive(Debug)]
struct Role {
    name: String,
    instance: u64,
    generation: u64,
    width: u64,
    validates: Option<u64>,
    retired: bool,
    condemned: bool,
}

#[derive(Debug, Default)]
pub struct Reference {
    /// Whether generations are stored, so that one can go back to what no worker holds.
    stores: bool,
    /// What every command is answered.
    pub due: BTreeMap<u64, Due>,
    models: BTreeMap<String, Known>,
    /// Workers that are not gone.
    roles: BTreeMap<u32, Role>,
    /// The generations that went live under a name, in this order: they outlive an unload.
    lived: BTreeMap<String, Vec<u64>>,
    /// Validations whose worker is not there yet.
    validations: Vec<u64>,
    instances: u64,
}

impl Reference {
    pub fn new(stores: bool) -> Reference {
        Reference { stores, ..Reference::default() }
    }

    pub fn names(&self) -> Vec<String> {
        self.models.keys().cloned().collect()
    }

    /// Workers that must be there, with the model that each belongs to.
    pub fn workers(&self) -> impl Iterator<Item = (u32, u64)> {
        self.roles.iter().map(|(pid, role)| (*pid, role.instance))
    }

    /// Models that are there: name, number, and the worker that must have been granted the baton.
    pub fn batons(&self) -> impl Iterator<Item = (&str, u64, Option<u32>)> {
        self.models.iter().map(|(name, known)| {
            let served = known.serves.filter(|_| known.state == State::Live && known.swap.is_none());
            let taking = known.swap.filter(|swap| swap.granted).map(|swap| swap.to);
            (name.as_str(), known.instance, taking.or(served))
        })
    }

    /// Whether something is still to come without anybody's asking.
    pub fn is_settled(&self) -> bool {
        let settled = |known: &Known| {
            known.operation.is_none() && known.swap.is_none() && matches!(known.state, State::Live | State::Quarantined)
        };
        self.models.values().all(settled) && self.roles.values().all(|role| !role.retired && role.validates.is_none())
    }

    /// Whether a worker must be killed for what it said.
    pub fn is_condemned(&self, pid: u32) -> bool {
        self.roles.get(&pid).is_some_and(|role| role.condemned)
    }

    /// The live workers.
    pub fn serving(&self) -> BTreeSet<u32> {
        self.models.values().filter_map(|known| known.serves.filter(|_| known.state == State::Live)).collect()
    }

    fn last(&self, name: &str) -> u64 {
        self.lived.get(name).and_then(|lived| lived.iter().max().copied()).unwrap_or(0)
    }

    fn stored(&self, name: &str, known: &Known) -> Option<u64> {
        let lived = self.lived.get(name).filter(|_| self.stores && known.keeps)?;
        lived.iter().rev().find(|generation| **generation != known.live).copied()
    }

    /// Looks whether the model is there and idle; else the command is refused.
    fn idle(&mut self, command: u64, name: &str) -> bool {
        let code = match self.models.get(name) {
            None => NOT_FOUND,
            Some(known) if known.operation.is_some() => BUSY,
            Some(_) => return true,
        };
        self.due.insert(command, Due::Code(code));
        false
    }

    pub fn load(&mut self, command: u64, name: &str, there: bool, keeps: bool) {
        if self.models.contains_key(name) || !there {
            self.due.insert(command, Due::Code(REFUSED));
            return;
        }
        self.due.insert(command, Due::Open);
        self.instances += 1;
        let target = Target::Awaited(self.last(name) + 1);
        let known = Known {
            instance: self.instances,
            state: State::Loading,
            live: 0,
            width: 0,
            serves: None,
            kept: None,
            keeps,
            operation: Some(Operation { command, target, load: true, dry: false }),
            swap: None,
            restart: None,
            in_a_row: 0,
            last_death_ms: 0,
            deaths: 0,
        };
        self.models.insert(name.to_owned(), known);
    }

    pub fn reload(&mut self, command: u64, name: &str, there: bool, dry: bool) {
        if !self.idle(command, name) {
            return;
        }
        self.due.insert(command, if there { Due::Open } else { Due::Code(REFUSED) });
        let target = Target::Awaited(self.last(name) + 1);
        if let Some(known) = self.models.get_mut(name).filter(|_| there) {
            known.operation = Some(Operation { command, target, load: false, dry });
        }
    }

    pub fn rollback(&mut self, command: u64, name: &str) {
        if !self.idle(command, name) {
            return;
        }
        let stored = self.models.get(name).and_then(|known| self.stored(name, known));
        let Some(known) = self.models.get_mut(name) else { return };
        let (target, due) = match (known.swap, known.kept, stored) {
            (Some(_), ..) => (None, Due::Code(BUSY)),
            (None, Some((_, pid)), _) => (Some(Target::Kept(pid)), Due::Open),
            (None, None, Some(generation)) => (Some(Target::Awaited(generation)), Due::Open),
            (None, None, None) => (None, Due::Code(REFUSED)),
        };
        self.due.insert(command, due);
        known.operation = target.map(|target| Operation { command, target, load: false, dry: false });
        if let Some(Target::Kept(pid)) = target {
            known.swap_to(pid);
        }
    }

    pub fn unload(&mut self, command: u64, name: &str) {
        if self.idle(command, name) {
            self.due.insert(command, Due::Done);
            self.remove(name);
        }
    }

    pub fn validate(&mut self, command: u64, there: bool) {
        let busy = self.roles.values().filter(|role| role.validates.is_some() && !role.retired).count() >= VALIDATIONS;
        let due = match (busy, there) {
            (true, _) => Due::Code(BUSY),
            (false, false) => Due::Code(REFUSED),
            (false, true) => {
                self.validations.push(command);
                Due::Open
            }
        };
        self.due.insert(command, due);
    }

    /// A worker was started.
    pub fn started(&mut self, pid: u32, name: &str, generation: u64, validates: bool, now_ms: u64) {
        let command = validates.then(|| self.validations.pop().expect("a validation was asked for"));
        let mut role = Role {
            name: name.to_owned(),
            instance: 0,
            generation,
            width: 0,
            validates: command,
            retired: false,
            condemned: false,
        };
        if !validates {
            let known = self.models.get_mut(name).expect("workers are started for models that are there");
            role.instance = known.instance;
            match &mut known.operation {
                Some(Operation { target: target @ Target::Awaited(_), .. }) => {
                    assert_eq!(*target, Target::Awaited(generation), "the number of the next generation of {name}");
                    *target = Target::Next { pid, warm: false };
                }
                _ => {
                    assert_eq!((known.state, known.restart), (State::Recovering, None), "a worker of {name} too many");
                    assert_eq!(generation, known.live, "{name} is started again as it was");
                    let due_ms = known.last_death_ms + (BACKOFF_MS << (known.in_a_row - 1));
                    assert!(now_ms >= due_ms, "{name} is started again at {now_ms} ms, before {due_ms}");
                    known.restart = Some((pid, false));
                }
            }
        }
        self.roles.insert(pid, role);
    }

    /// Time has passed: an old worker that has let go is granted again.
    pub fn waited(&mut self, holds: impl Fn(u32) -> bool) {
        for swap in self.models.values_mut().filter_map(|known| known.swap.as_mut()) {
            swap.granted |= !holds(swap.to);
        }
    }

    /// A worker did something.
    pub fn happened(&mut self, pid: u32, deed: Deed, now_ms: u64) {
        let role = self.roles.get_mut(&pid).expect("a worker that is there");
        let name = role.name.clone();
        if let Some(command) = role.validates.filter(|_| !role.retired) {
            match deed {
                Deed::Loaded(_) => {
                    role.retired = true;
                    self.due.insert(command, Due::Done);
                }
                Deed::Exited => {
                    self.due.insert(command, Due::Code(REFUSED));
                }
                _ => {}
            }
        } else if !role.retired {
            match deed {
                Deed::Loaded(width) => self.loaded(pid, &name, width),
                Deed::Took => {
                    let swap = self.models.get_mut(&name).and_then(|known| known.swap.as_mut());
                    let swap = swap.filter(|swap| swap.to == pid && swap.granted);
                    swap.expect("only who was granted the baton takes it").taken = true;
                }
                Deed::Told => {
                    self.commit(&name);
                    self.models.get_mut(&name).expect("it serves").swap_if_possible();
                }
                Deed::Exited => self.exited(pid, &name, now_ms),
                Deed::Other => {}
            }
        }
        if deed == Deed::Exited {
            self.roles.remove(&pid);
        }
    }

    fn loaded(&mut self, pid: u32, name: &str, width: u64) {
        let (Some(known), Some(role)) = (self.models.get_mut(name), self.roles.get_mut(&pid)) else { return };
        role.width = width;
        if known.live > 0 && width != known.width {
            role.condemned = true;
            return;
        }
        if let Some((restart, warm)) = &mut known.restart
            && *restart == pid
        {
            *warm = true;
        }
        if let Some(operation) = known.operation.as_mut()
            && operation.target == (Target::Next { pid, warm: false })
        {
            if operation.dry {
                role.retired = true;
                self.due.insert(operation.command, Due::Swapped(known.live, known.live));
                known.operation = None;
                return;
            }
            operation.target = Target::Next { pid, warm: true };
        }
        known.swap_if_possible();
    }

    fn commit(&mut self, name: &str) {
        let Some(known) = self.models.get_mut(name) else { return };
        let swap = known.swap.take().expect("who takes the baton was granted it");
        let role = &self.roles[&swap.to];
        let before = known.live;
        (known.live, known.width, known.serves, known.state) =
            (role.generation, role.width, Some(swap.to), State::Live);
        let was_kept = known.kept.is_some_and(|(_, pid)| pid == swap.to);
        known.kept = known.kept.filter(|_| !was_kept);
        let mut retired = Vec::new();
        if let Some(from) = swap.from {
            let gone = if known.keeps { known.kept.replace((before, from)).map(|(_, pid)| pid) } else { Some(from) };
            retired.extend(gone);
        }
        retired.extend(known.restart.take().map(|(pid, _)| pid).filter(|pid| *pid != swap.to));
        let asked = |operation: &Operation| match operation.target {
            Target::Awaited(_) => false,
            Target::Next { pid, .. } | Target::Kept(pid) => pid == swap.to,
        };
        if let Some(operation) = known.operation.filter(asked) {
            (known.operation, known.in_a_row) = (None, 0);
            let due = if operation.load { Due::Serves(known.live) } else { Due::Swapped(before, known.live) };
            self.due.insert(operation.command, due);
            self.lived.entry(name.to_owned()).or_default().push(known.live);
        }
        for pid in retired {
            self.roles.get_mut(&pid).expect("a worker that is there").retired = true;
        }
    }

    fn exited(&mut self, pid: u32, name: &str, now_ms: u64) {
        let known = self.models.get_mut(name).expect("only retired workers outlive their model");
        let swap = known.swap;
        if known.kept.is_some_and(|(_, kept)| kept == pid) && swap.is_none_or(|swap| swap.to != pid) {
            known.kept = None;
            return;
        }
        match swap {
            Some(Swap { to, taken: true, .. }) if to == pid => {
                self.commit(name);
                if let Some(known) = self.models.get_mut(name) {
                    known.serves = None;
                    known.lost(now_ms);
                    known.swap_if_possible();
                }
            }
            Some(Swap { to, from, .. }) if to == pid => self.not_taken(pid, name, from, now_ms),
            Some(Swap { from, .. }) if from == Some(pid) => {
                // Another is about to take over: nothing is started again.
                (known.deaths, known.serves) = (known.deaths + 1, None);
                known.swap = known.swap.map(|swap| Swap { from: None, ..swap });
            }
            _ if known.state == State::Live && known.serves == Some(pid) => {
                known.serves = None;
                known.lost(now_ms);
            }
            _ if known.restart.is_some_and(|(restart, _)| restart == pid) => {
                known.restart = None;
                known.died(now_ms);
            }
            _ => self.refuse(pid, name),
        }
    }

    /// Who should have taken over is gone.
    fn not_taken(&mut self, pid: u32, name: &str, from: Option<u32>, now_ms: u64) {
        let Some(known) = self.models.get_mut(name) else { return };
        known.swap = None;
        if known.serves == Some(pid) {
            known.serves = None;
            known.lost(now_ms);
            return known.swap_if_possible();
        }
        known.kept = known.kept.filter(|(_, kept)| *kept != pid);
        let again = known.restart.is_some_and(|(restart, _)| restart == pid);
        known.restart = known.restart.filter(|(restart, _)| *restart != pid);
        let orphaned = known.state == State::Live;
        if let Some(from) = from {
            known.swap = Some(Swap { to: from, from: None, granted: false, taken: false });
        } else if orphaned {
            known.state = State::Recovering;
        }
        if again || (orphaned && from.is_none()) {
            known.died(now_ms);
        }
        if !again {
            self.refuse(pid, name);
        }
        if let Some(known) = self.models.get_mut(name) {
            known.swap_if_possible();
        }
    }

    /// The command that this worker was for has failed: what served serves on.
    fn refuse(&mut self, pid: u32, name: &str) {
        let Some(known) = self.models.get_mut(name) else { return };
        let operation = known.operation.take().expect("a worker that nobody wants any more has been retired");
        assert!(!matches!(operation.target, Target::Next { pid: next, .. } if next != pid));
        self.due.insert(operation.command, Due::Code(REFUSED));
        if operation.load {
            self.remove(name);
        }
    }

    fn remove(&mut self, name: &str) {
        let Some(known) = self.models.remove(name) else { return };
        for role in self.roles.values_mut().filter(|role| role.validates.is_none() && role.instance == known.instance) {
            role.retired = true;
        }
    }

    /// What `models` says.
    pub fn told(&self) -> BTreeMap<String, Value> {
        let of = |(name, known): (&String, &Known)| {
            let state = format!("{:?}", known.state).to_lowercase();
            let alive = known.kept.map(|(generation, _)| (generation, "alive"));
            let kept = alive.or_else(|| self.stored(name, known).map(|generation| (generation, "disk"))).unzip();
            let pid = known.serves.filter(|_| known.state == State::Live);
            (name.clone(), json!([state, known.live, kept.0, kept.1, known.deaths, pid]))
        };
        self.models.iter().map(of).collect()
    }
}

/// The same facts, out of an answer.
pub fn said(model: &Value) -> (String, Value) {
    let [state, live, kept, how] = ["state", "generation", "kept_generation", "kept"].map(|key| &model[key]);
    let facts = json!([state, live, kept, how, model["worker_deaths"], model["worker_pid"]]);
    (model["model"].as_str().unwrap_or_default().to_owned(), facts)
}

/// What a command was answered.
pub fn answered(answer: &Value) -> Due {
    if let Some(code) = answer["error"]["code"].as_i64() {
        return Due::Code(code);
    }
    let result = &answer["result"];
    let number = |key: &str| result[key].as_u64();
    match (number("from_generation"), number("to_generation"), number("generation")) {
        (Some(from), Some(to), _) => Due::Swapped(from, to),
        (_, _, Some(generation)) => Due::Serves(generation),
        _ => Due::Done,
    }
}
