//! What a walk is made of: commands, workers' moves, deaths and time, and the files that commands name.

use proptest::prelude::*;
use proptest::sample::Index;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A model of the configuration, which keeps nothing of what served before, and those that operators load.
const NAMES: [&str; 4] = ["m", "a", "b", "c"];
/// What may be wrong with a file; one in two is good.
const MISDEEDS: [&str; 12] = [
    "refuses",
    "speaks_garbage",
    "dies_loading",
    "never_loads",
    "other_signature",
    "dies_when_granted",
    "dies_after_taking",
    "never_takes",
    "keeps_the_baton",
    "ignores_orders",
    "missing",
    "none",
];

/// What is loaded: a misdeed, and whether there is a file to stage.
#[derive(Debug, Clone)]
pub struct Candidate {
    pub misdeed: &'static str,
    pub file: bool,
}

#[derive(Debug, Clone)]
pub enum Step {
    Load {
        name: &'static str,
        candidate: Candidate,
    },
    Reload {
        model: Index,
        candidate: Candidate,
        dry: bool,
    },
    Rollback(Index),
    Unload(Index),
    Validate(Candidate),
    /// Commands on what is not there.
    Miss(&'static str),
    /// A worker makes some moves before the supervisor looks.
    Move {
        worker: Index,
        moves: usize,
    },
    /// Everybody moves until nobody can.
    Everybody,
    /// A worker dies; one that serves.
    Kill(Index),
    KillServing(Index),
    /// The next restart, or the next look whether an old worker has let go, is due.
    Soon,
    /// The next bound on a worker's time is over.
    Overdue,
    /// All comes to rest, and a while passes.
    Quiet,
}

fn candidate() -> impl Strategy<Value = Candidate> {
    let misdeed = prop_oneof![1 => Just("none"), 1 => prop::sample::select(&MISDEEDS[..])];
    (misdeed, prop::bool::weighted(0.2)).prop_map(|(misdeed, file)| Candidate { misdeed, file })
}

pub fn step() -> impl Strategy<Value = Step> {
    let index = any::<Index>;
    prop_oneof![
        6 => (prop::sample::select(&NAMES[..]), candidate()).prop_map(|(name, candidate)| Step::Load { name, candidate }),
        18 => (index(), candidate(), prop::bool::weighted(0.1))
            .prop_map(|(model, candidate, dry)| Step::Reload { model, candidate, dry }),
        10 => index().prop_map(Step::Rollback),
        3 => index().prop_map(Step::Unload),
        4 => candidate().prop_map(Step::Validate),
        2 => prop::sample::select(&["reload", "rollback", "unload", "disconnect"][..]).prop_map(Step::Miss),
        24 => (index(), 1usize..4).prop_map(|(worker, moves)| Step::Move { worker, moves }),
        14 => Just(Step::Everybody),
        6 => index().prop_map(Step::Kill),
        5 => index().prop_map(Step::KillServing),
        6 => Just(Step::Soon),
        3 => Just(Step::Overdue),
        1 => Just(Step::Quiet),
    ]
}

/// The folder of a model.
pub fn folder(place: &Path, candidate: &Candidate) -> PathBuf {
    let folder = place.join(format!("{}-{}", candidate.misdeed, candidate.file));
    if candidate.misdeed != "missing" && !folder.exists() {
        fs::create_dir(&folder).expect("a folder");
        let what = if candidate.file { "file = \"model.bin\"\nbackend = \"scripted\"" } else { "backend = \"echo\"" };
        fs::write(folder.join("model.bin"), candidate.misdeed).expect("written");
        let manifest = format!("{what}\n[options]\nmisdeed = \"{}\"\n", candidate.misdeed);
        fs::write(folder.join("model.toml"), manifest).expect("written");
    }
    folder
}

/// A folder for models and stores, with a program that nobody runs: it must be there.
pub fn place() -> tempfile::TempDir {
    let place = tempfile::tempdir().expect("a folder");
    let binary = place.path().join("inferd-worker");
    fs::write(&binary, "").expect("written");
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o700)).expect("ours");
    place
}

/// Without a file.
pub fn of(misdeed: &'static str) -> Candidate {
    Candidate { misdeed, file: false }
}
