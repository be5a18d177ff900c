//! The registry of models against a reference: random commands of an operator and random deaths of workers, one after the other.
//!
//! The reference is written from what docs/reload.md and docs/semantics.md promise: names, generations, what is kept, how
//! many deaths quarantine. It knows nothing of workers, batons or files. After each step the daemon must say of every
//! model what the reference says. `INFERD_SEED` repeats a walk. The long walk, in which every interleaving of commands,
//! workers' moves, deaths and timers may come, is `daemon/src/supervisor/walk.rs`, whose workers are values; what this one
//! adds is real: processes that are killed, pidfds, clocks, sockets and the store on a disk.

use super::{Daemon, PATIENCE, folder};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

pub const SCENARIOS: &[(&str, fn())] = &[("random_commands_and_deaths_leave_what_the_reference_says", walk)];

/// Steps and time of a run in CI, the steps that it must come to, and the time of a campaign where `CAMPAIGN_S` does not say.
const STEPS: usize = 10_000;
const STEPS_CAMPAIGN: usize = 1_000_000;
const TIME: Duration = Duration::from_secs(5);
const STEPS_LEAST: usize = 50;
const CAMPAIGN_S: u64 = 600;
/// Deaths in a row that quarantine a model: the sixth.
const DEATHS: u32 = 6;
/// Models at a time.
const MODELS: usize = 3;
const NOT_FOUND: i64 = -32000;
const REFUSED: i64 = -32001;
const BUSY: i64 = -32002;

/// What may be wrong with a file, whoever loads it; and with one that shall replace another.
const BAD: [&str; 4] = ["refuses", "speaks_garbage", "asks_for_secrets", "dies_loading"];
const BAD_NEXT: [&str; 2] = ["other_signature", "dies_when_granted"];

/// What the reference knows of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    live: u64,
    last: u64,
    kept: Option<u64>,
    /// Since an operator last put a generation in place.
    deaths: u32,
    deaths_ever: u64,
}

impl Known {
    fn is_quarantined(&self) -> bool {
        self.deaths >= DEATHS
    }
}

/// A stream of numbers from a seed (splitmix64).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|text| text.parse().ok())
}

fn walk() {
    let campaign = std::env::var_os("INFERD_CAMPAIGN").is_some_and(|value| !value.is_empty());
    let time = if campaign { Duration::from_secs(number("CAMPAIGN_S").unwrap_or(CAMPAIGN_S)) } else { TIME };
    let steps = if campaign { STEPS_CAMPAIGN } else { STEPS };
    let seed = number("INFERD_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let mut daemon = Daemon::start("none");
    // A log that nobody reads fills its pipe, and the daemon waits.
    let log = daemon.child.stderr.take().expect("piped");
    let reader = std::thread::spawn(move || std::io::copy(&mut { log }, &mut std::io::sink()));
    let first = Known { live: 1, last: 1, kept: None, deaths: 0, deaths_ever: 0 };
    let mut walk =
        Walk { daemon, known: BTreeMap::from([("m".to_owned(), first)]), dice: Dice(seed), names: 0, trail: vec![] };
    let end = Instant::now() + time;
    let mut done = 0;
    while done < steps && Instant::now() < end {
        walk.step(seed);
        done += 1;
    }
    println!("registry of models: {done} steps agree with the reference, INFERD_SEED={seed}");
    assert!(done >= STEPS_LEAST, "only {done} steps in time");
    walk.daemon.drain();
    reader.join().expect("it read").expect("to the end");
}

struct Walk {
    daemon: Daemon,
    known: BTreeMap<String, Known>,
    dice: Dice,
    names: u32,
    /// The last steps, for the message about a difference.
    trail: Vec<String>,
}

impl Walk {
    fn step(&mut self, seed: u64) {
        let names: Vec<String> = self.known.keys().cloned().collect();
        let name = if names.is_empty() { "nobody".to_owned() } else { names[self.dice.below(names.len())].clone() };
        let what = match self.dice.below(12) {
            0 | 1 => self.load(),
            2..=4 => self.reload(&name),
            5 | 6 => self.rollback(&name),
            7 => self.unload(&name),
            8 | 9 => self.kill(&name),
            10 => self.validate(),
            _ => self.miss(),
        };
        self.trail.push(what);
        self.trail.drain(..self.trail.len().saturating_sub(12));
        self.compare(seed);
    }

    fn path(&self, misdeed: &str) -> Value {
        json!(folder(self.daemon.dir.path(), misdeed))
    }

    /// An answer, or the code of a refusal: it must be the one that is due. A model that is still passing its baton back says
    /// so, and is asked again.
    fn expect(&self, method: &str, params: Value, due: Option<i64>) {
        let deadline = Instant::now() + PATIENCE;
        let answer = loop {
            let answer = self.daemon.try_call(method, params.clone());
            let answer = answer.unwrap_or_else(|| panic!("{method} {params} has no answer; before: {:?}", self.trail));
            if answer["error"]["code"] != BUSY || Instant::now() > deadline {
                break answer;
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        assert_eq!(answer["error"]["code"].as_i64(), due, "{method} {params}: {answer}; before: {:?}", self.trail);
    }

    fn load(&mut self) -> String {
        let full = self.known.len() >= MODELS;
        let there = self.known.keys().next().cloned().filter(|_| full || self.dice.below(4) == 0);
        let name = there.clone().unwrap_or_else(|| {
            self.names += 1;
            format!("n{}", self.names)
        });
        let good = self.dice.below(3) > 0;
        let misdeed = if good { "none" } else { self.dice.pick(&BAD) };
        let refused = there.is_some() || !good;
        self.expect("load", json!({"model": name, "path": self.path(misdeed)}), refused.then_some(REFUSED));
        if !refused {
            self.known.insert(name.clone(), Known { live: 1, last: 1, kept: None, deaths: 0, deaths_ever: 0 });
        }
        format!("load {name} {misdeed}")
    }

    fn reload(&mut self, name: &str) -> String {
        let Some(known) = self.known.get(name).cloned() else {
            self.expect("reload", json!({"model": name}), Some(NOT_FOUND));
            return format!("reload {name}, which is not there");
        };
        let good = self.dice.below(2) == 0;
        let mut bad = BAD.to_vec();
        if !known.is_quarantined() {
            bad.extend(BAD_NEXT);
        }
        let misdeed = if good { "none" } else { self.dice.pick(&bad) };
        self.expect("reload", json!({"model": name, "path": self.path(misdeed)}), (!good).then_some(REFUSED));
        if good {
            // A quarantined generation has no worker that could be kept: what was kept before it stays the one to go back to.
            let kept = known.kept.filter(|_| known.is_quarantined()).or(Some(known.live));
            let next = Known { live: known.last + 1, last: known.last + 1, kept, deaths: 0, ..known };
            self.known.insert(name.to_owned(), next);
        }
        format!("reload {name} {misdeed}")
    }

    fn rollback(&mut self, name: &str) -> String {
        let due = match self.known.get_mut(name) {
            None => Some(NOT_FOUND),
            Some(Known { kept: None, .. }) => Some(REFUSED),
            Some(known) => {
                let kept = known.kept.replace(known.live);
                (known.live, known.deaths) = (kept.expect("looked at"), 0);
                None
            }
        };
        self.expect("rollback", json!({"model": name}), due);
        format!("rollback {name}")
    }

    fn unload(&mut self, name: &str) -> String {
        let there = self.known.remove(name).is_some();
        self.expect("unload", json!({"model": name}), (!there).then_some(NOT_FOUND));
        format!("unload {name}")
    }

    /// Kills the live worker, if there is one.
    fn kill(&mut self, name: &str) -> String {
        let Some(known) = self.known.get_mut(name).filter(|known| !known.is_quarantined()) else {
            return format!("no worker of {name} to kill");
        };
        (known.deaths, known.deaths_ever) = (known.deaths + 1, known.deaths_ever + 1);
        let pid = self
            .daemon
            .models()
            .into_iter()
            .find(|model| model["model"] == name)
            .and_then(|m| m["worker_pid"].as_i64());
        let pid = pid.unwrap_or_else(|| panic!("{name} has a worker; before: {:?}", self.trail));
        let pid = nix::unistd::Pid::from_raw(pid as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("it runs");
        format!("kill {name}'s worker")
    }

    fn validate(&mut self) -> String {
        let good = self.dice.below(2) == 0;
        let misdeed = if good { "none" } else { self.dice.pick(&BAD) };
        self.expect("validate", json!({"path": self.path(misdeed)}), (!good).then_some(REFUSED));
        format!("validate {misdeed}")
    }

    /// Commands on what is not there.
    fn miss(&mut self) -> String {
        let method = self.dice.pick(&["reload", "rollback", "unload"]);
        self.expect(method, json!({"model": "nobody"}), Some(NOT_FOUND));
        self.expect("disconnect", json!({"session": 77}), Some(NOT_FOUND));
        format!("{method} nobody")
    }

    /// Waits until the daemon says what the reference says: a death is answered after a while.
    fn compare(&self, seed: u64) {
        let due: BTreeMap<String, Value> = self.known.iter().map(|(name, known)| (name.clone(), told(known))).collect();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said: BTreeMap<String, Value> = self.daemon.models().iter().map(said).collect();
            if said == due {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "INFERD_SEED={seed}: after {:?}\nthe daemon says {said:?}\nthe reference {due:?}",
                self.trail
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn told(known: &Known) -> Value {
    let state = if known.is_quarantined() { "quarantined" } else { "live" };
    json!([state, known.live, known.kept, known.deaths_ever])
}

fn said(model: &Value) -> (String, Value) {
    let facts = json!([model["state"], model["generation"], model["kept_generation"], model["worker_deaths"]]);
    (model["model"].as_str().unwrap_or_default().to_owned(), facts)
}
