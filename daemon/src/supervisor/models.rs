//! Models and their generations: `loading -> checking -> warming -> live -> kept -> retired`.
//!
//! A [`Model`] is a name under which sessions are served; a [`Generation`] is one loaded version of it,
//! with the sealed copies of its files, so that a restart loads the very same bytes. A generation gets
//! its number when it goes live: one that is refused leaves no gap. The live worker, the kept one and
//! the next one are in different stages of one life, which [`Stage`] spells out.

use super::dump::Record;
use super::file_watch::Stamp;
use super::operations::Operation;
use super::recovery::Recovery;
use super::restarts::Restarts;
use super::swap::Swap;
use crate::config::ModelConfig;
use crate::manifest::ModelSource;
use crate::store::Blob;
use inferd_ipc::baton::{self, Baton};
use inferd_ipc::limits::BATON_ENTRIES;
use inferd_ipc::worker_records::Loaded;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;

/// How far a worker has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Reads and parses its file.
    Loading,
    /// Compares signature and golden pairs.
    Checking,
    /// Runs until it is warm.
    Warming,
    /// Runs recorded steps of the live generation, answering nobody.
    Shadowing,
    /// Passed its gate and is ready to take over; knows the sessions from here on.
    Warm,
    /// Was granted the baton and has not said that it took it.
    Taking,
    /// Answers the sessions.
    Live,
    /// Has let go, and waits for a rollback.
    Kept,
    /// Was told to exit.
    Retiring,
}

impl Stage {
    /// Whether this stage may follow.
    pub fn may_become(self, next: Stage) -> bool {
        use Stage::{Checking, Kept, Live, Loading, Retiring, Shadowing, Taking, Warm, Warming};
        match next {
            Loading => false,
            Checking => self == Loading,
            Warming => matches!(self, Loading | Checking),
            Shadowing => matches!(self, Loading | Checking | Warming),
            Warm => matches!(self, Loading | Checking | Warming | Shadowing),
            Taking => matches!(self, Warm | Kept | Live),
            Live => matches!(self, Taking),
            Kept => matches!(self, Live | Taking),
            Retiring => self != Retiring,
        }
    }

    /// The stage of a worker's progress record.
    pub fn from_progress(name: &str) -> Option<Stage> {
        match name {
            "loading" => Some(Stage::Loading),
            "checking" => Some(Stage::Checking),
            "warming" => Some(Stage::Warming),
            _ => None,
        }
    }
}

/// One version of a model, as its files were when it was staged.
#[derive(Debug)]
pub(super) struct Generation {
    /// Its number, once live; the number it would have, before.
    pub number: u32,
    /// The configuration that it was made with.
    pub config: ModelConfig,
    /// Manifest, folder and backend.
    pub source: ModelSource,
    /// The sealed copy of the model file; none for a backend without one.
    pub file: Option<Rc<OwnedFd>>,
    /// SHA-256 of the model file in hexadecimal; empty without one.
    pub sha256: String,
    /// Length of the model file.
    pub bytes: u64,
    /// What the model file was like when it was read, to tell cheaply that it is still the same.
    pub stamp: Option<Stamp>,
    /// Sealed copies of further files, by the name that the worker asked for.
    pub more: RefCell<BTreeMap<String, FileCopy>>,
    /// Further files lie in the store, not in the model's folder.
    pub stored: Option<BTreeMap<String, Blob>>,
}

/// A sealed copy of a further file.
#[derive(Debug, Clone)]
pub(super) struct FileCopy {
    pub fd: Rc<OwnedFd>,
    pub blob: Blob,
}

/// A generation that went live, and the worker that holds it.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub generation: Rc<Generation>,
    pub loaded: Loaded,
    /// The worker; it may be gone.
    pub worker: u64,
    /// Where its steps are recorded.
    pub record: Option<Rc<Record>>,
}

/// What a model does at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ModelState {
    /// Its first generation is on its way.
    Loading,
    /// A worker answers.
    Live,
    /// The worker died; another one is on its way.
    Recovering,
    /// Workers keep dying: an operator must act.
    Quarantined,
    /// No generation could be loaded.
    Failed,
}

impl ModelState {
    /// The name used in answers.
    pub fn name(self) -> &'static str {
        match self {
            ModelState::Loading => "loading",
            ModelState::Live => "live",
            ModelState::Recovering => "recovering",
            ModelState::Quarantined => "quarantined",
            ModelState::Failed => "failed",
        }
    }
}

/// A change of configuration that waits until the operation under way is over.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Wanted {
    /// Reload with this configuration.
    Config(Box<ModelConfig>),
    /// Reload, for a watched file has changed.
    Changed,
    /// Serve it no more.
    Gone,
}

/// A served name.
pub(super) struct Model {
    pub name: String,
    /// The configuration of the next generation.
    pub config: ModelConfig,
    /// It stands in a configuration file (`inferctl load` made it otherwise).
    pub configured: bool,
    pub baton: Baton,
    pub baton_fd: Rc<OwnedFd>,
    pub state: ModelState,
    pub live: Option<Held>,
    pub kept: Option<Held>,
    /// Largest number of a generation that went live.
    pub generation_last: u32,
    /// The worker that loads for the operation or the restart under way.
    pub next: Option<u64>,
    pub operation: Option<Operation>,
    pub swap: Option<Swap>,
    pub recovery: Recovery,
    pub restarts: Restarts,
    pub deaths: u64,
    pub message: Option<String>,
    pub wanted: Option<Wanted>,
    /// Whether the configured file is what is served.
    pub drift: super::drift::Drift,
    /// Changes of its files that are looked at.
    pub changing: super::file_watch::Changing,
    /// Steps of the live worker at the last look, to tell idle from busy.
    pub steps_seen: u64,
    tickets: u64,
    entries: [bool; BATON_ENTRIES],
}

impl Model {
    /// A model without a generation.
    ///
    /// # Errors
    /// A sentence: its baton cannot be made.
    pub fn new(config: ModelConfig, configured: bool) -> Result<Model, String> {
        let (baton, fd) = baton::create().map_err(|error| error.to_string())?;
        Ok(Model {
            name: config.name.clone(),
            config,
            configured,
            baton,
            baton_fd: Rc::new(fd),
            state: ModelState::Loading,
            live: None,
            kept: None,
            generation_last: 0,
            next: None,
            operation: None,
            swap: None,
            recovery: Recovery::default(),
            restarts: Restarts::default(),
            deaths: 0,
            message: None,
            wanted: None,
            drift: super::drift::Drift::default(),
            changing: super::file_watch::Changing::default(),
            steps_seen: 0,
            tickets: 0,
            entries: [false; BATON_ENTRIES],
        })
    }

    /// A ticket that no worker ever had, and a free entry of the baton for it.
    pub fn hand_out(&mut self) -> Option<(u64, u32)> {
        let entry = self.entries.iter().position(|taken| !taken)?;
        self.entries[entry] = true;
        self.tickets += 1;
        Some((self.tickets, entry as u32))
    }

    /// The worker of this entry is gone for certain.
    pub fn take_back(&mut self, entry: u32) {
        self.entries[entry as usize] = false;
        self.baton.clear(entry);
    }

    /// Entries of the baton that are handed out.
    #[cfg(test)]
    pub fn entries_out(&self) -> usize {
        self.entries.iter().filter(|taken| **taken).count()
    }

    /// The live worker, unless it is gone or the model has none.
    pub fn live_worker(&self) -> Option<u64> {
        let serving = matches!(self.state, ModelState::Live);
        self.live.as_ref().filter(|_| serving).map(|held| held.worker)
    }

    /// Number of the live generation; 0 before the first.
    pub fn generation(&self) -> u32 {
        self.live.as_ref().map_or(0, |held| held.generation.number)
    }

    /// Why there is no serving, for a client or an operator.
    pub fn unavailable(&self) -> String {
        let name = &self.name;
        match self.state {
            ModelState::Live => format!("model {name} is live"),
            ModelState::Loading => format!("model {name} is still loading; try again soon"),
            ModelState::Recovering => format!("model {name} lost its worker and recovers; try again soon"),
            ModelState::Quarantined => {
                format!("model {name} is quarantined: its workers keep dying; ask the operator to look and reload it")
            }
            ModelState::Failed => format!("model {name} could not be loaded; ask the operator to look"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Stage::{self, Checking, Kept, Live, Loading, Retiring, Shadowing, Taking, Warm, Warming};
    use super::*;
    use proptest::prelude::*;

    const ALL: [Stage; 9] = [Loading, Checking, Warming, Shadowing, Warm, Taking, Live, Kept, Retiring];

    #[test]
    fn a_generation_goes_live_only_through_the_baton_and_never_comes_back_from_retirement() {
        for stage in ALL {
            assert_eq!(stage.may_become(Live), stage == Taking);
            assert!(!Retiring.may_become(stage), "{stage:?}");
            assert!(!stage.may_become(Loading));
        }
        for early in [Loading, Checking, Warming, Shadowing] {
            assert!(!early.may_become(Taking) && !early.may_become(Kept));
        }
    }

    #[test]
    fn the_ordinary_life_and_a_rollback_are_possible() {
        let life = [Loading, Checking, Warming, Warm, Taking, Live, Kept, Taking, Live, Retiring];
        assert!(life.windows(2).all(|w| w[0].may_become(w[1])));
    }

    proptest! {
        #[test]
        fn entries_are_never_shared_and_tickets_never_repeat(gone in prop::collection::vec(any::<prop::sample::Index>(), 0..60)) {
            let config = ModelConfig::new("m", std::path::Path::new("/m"));
            let mut model = Model::new(config, true).expect("a baton");
            let (mut held, mut tickets): (Vec<u32>, Vec<u64>) = (Vec::new(), Vec::new());
            for index in gone {
                match model.hand_out() {
                    Some((ticket, entry)) => {
                        prop_assert!(!held.contains(&entry) && !tickets.contains(&ticket) && ticket != 0);
                        held.push(entry);
                        tickets.push(ticket);
                    }
                    None => prop_assert_eq!(held.len(), BATON_ENTRIES),
                }
                if index.index(3) == 0 || held.len() == BATON_ENTRIES {
                    model.take_back(held.swap_remove(index.index(held.len())));
                }
            }
        }
    }
}
