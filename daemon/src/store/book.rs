//! One model's history: what went live when, what was refused and why, and which of it is stored.
//!
//! Pure. Entries are in the order of time, the oldest first; the one that serves is the last that went
//! live and has not ended. A book is bounded: refused attempts are forgotten first, then the oldest
//! generations; the live one and the one before it never are.

use inferd_ipc::control::HistoryEntry;
use inferd_ipc::limits::HISTORY_ENTRIES_MAX;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A stored file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Blob {
    /// SHA-256 in lower-case hexadecimal.
    pub sha256: String,
    /// Its length.
    pub bytes: u64,
}

/// All that a generation was made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredFiles {
    /// The manifest's text.
    pub manifest: Option<Blob>,
    /// The model file.
    pub model: Option<Blob>,
    /// The model file's path at the time.
    pub file: Option<PathBuf>,
    /// Its name below the folder.
    pub file_name: String,
    /// Whether the operator named the file itself.
    pub file_named: bool,
    /// The folder that further files came from.
    pub folder: PathBuf,
    /// Further files by name: external data, golden pairs.
    pub more: BTreeMap<String, Blob>,
}

/// A line of the history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// What an operator sees.
    #[serde(flatten)]
    pub shown: HistoryEntry,
    /// The path that the configuration named at the time; none for a model that an operator loaded.
    pub configured_path: Option<PathBuf>,
    /// What it was made of; none for an attempt that did not go live.
    pub files: Option<StoredFiles>,
    /// Tells it from the other entries of its book while the daemon runs: two may have the same time and generation.
    /// [`Book::add`] gives it.
    #[serde(skip)]
    pub key: u64,
}

impl Entry {
    /// Its files.
    pub fn blobs(&self) -> impl Iterator<Item = &Blob> {
        self.files.iter().flat_map(|files| files.manifest.iter().chain(&files.model).chain(files.more.values()))
    }

    fn went_live(&self) -> bool {
        self.shown.went_live_unix_ms.is_some()
    }

    fn serves(&self) -> bool {
        self.went_live() && self.shown.ended.is_none()
    }
}

/// One model's history.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Book {
    entries: Vec<Entry>,
    /// The last key that an entry got.
    last_key: u64,
}

impl Book {
    /// Reads lines; says how many could not be read.
    #[must_use]
    pub fn parse(text: &str) -> (Book, usize) {
        let mut damaged = 0;
        let mut book = Book::default();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            match serde_json::from_str(line) {
                Ok(entry) => _ = book.push(entry),
                Err(_) => damaged += 1,
            }
        }
        (book, damaged)
    }

    /// The lines.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for entry in &self.entries {
            // Only a path that is not UTF-8 has no JSON form, and those come from nowhere: configuration is UTF-8.
            if let Ok(line) = serde_json::to_string(entry) {
                text += &line;
                text.push('\n');
            }
        }
        text
    }

    /// What an operator sees, newest first.
    pub fn shown(&self) -> impl Iterator<Item = &HistoryEntry> {
        self.entries.iter().rev().map(|entry| &entry.shown)
    }

    fn push(&mut self, entry: Entry) -> u64 {
        self.last_key += 1;
        self.entries.push(Entry { key: self.last_key, ..entry });
        self.last_key
    }

    /// Adds an entry and returns its key.
    pub fn add(&mut self, entry: Entry) -> u64 {
        let key = self.push(entry);
        while self.entries.len() > HISTORY_ENTRIES_MAX {
            let last = self.entries.len() - 1;
            let (live, previous) = (self.live_at(), self.previous_at());
            let free = |i: &usize| *i != last && Some(*i) != live && Some(*i) != previous;
            let refused = (0..last).filter(free).find(|i| !self.entries[*i].went_live());
            let Some(i) = refused.or_else(|| (0..last).find(free)) else { break };
            self.entries.remove(i);
        }
        key
    }

    fn live_at(&self) -> Option<usize> {
        self.entries.iter().rposition(Entry::serves)
    }

    fn previous_at(&self) -> Option<usize> {
        let live = self.live_at().map_or(0, |at| self.entries[at].shown.generation);
        self.entries.iter().rposition(|e| e.went_live() && e.shown.stored && e.shown.generation != live)
    }

    /// The generation that serves, or served last.
    #[must_use]
    pub fn live(&self) -> Option<&Entry> {
        self.live_at().map(|at| &self.entries[at])
    }

    /// The last stored generation before the live one: what a rollback would take.
    #[must_use]
    pub fn previous(&self) -> Option<&Entry> {
        self.previous_at().map(|at| &self.entries[at])
    }

    /// The newest stored entry of this generation.
    #[must_use]
    pub fn stored_of(&self, generation: u32) -> Option<&Entry> {
        self.entries.iter().rev().find(|e| e.went_live() && e.shown.stored && e.shown.generation == generation)
    }

    /// The largest number that a generation had.
    #[must_use]
    pub fn last_number(&self) -> u32 {
        self.entries.iter().map(|entry| entry.shown.generation).max().unwrap_or(0)
    }

    /// Writes down how the live generation ended. Says whether there was one.
    pub fn end_live(&mut self, how: &str, now_unix_ms: u64) -> bool {
        let Some(at) = self.live_at() else { return false };
        let shown = &mut self.entries[at].shown;
        shown.ended = Some(how.to_owned());
        shown.ended_unix_ms = Some(now_unix_ms);
        true
    }

    /// The entry with this key, unless it was forgotten.
    #[must_use]
    pub fn with_key(&self, key: u64) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }

    /// As [`Book::with_key`], to be changed.
    pub fn with_key_mut(&mut self, key: u64) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.key == key)
    }

    /// Files of all stored generations.
    pub fn blobs(&self) -> impl Iterator<Item = &Blob> {
        self.entries.iter().filter(|entry| entry.shown.stored).flat_map(Entry::blobs)
    }

    /// Files of all stored generations, and of the live one, which may be on its way to the disk.
    pub fn all_blobs(&self) -> impl Iterator<Item = &Blob> {
        self.entries.iter().filter(|entry| entry.shown.stored || entry.serves()).flat_map(Entry::blobs)
    }

    /// Generations that are stored.
    #[must_use]
    pub fn stored(&self) -> usize {
        let stored = self.entries.iter().filter(|entry| entry.shown.stored);
        stored.map(|entry| entry.shown.generation).collect::<std::collections::BTreeSet<_>>().len()
    }

    fn oldest_at(&self) -> Option<usize> {
        let number = |at: Option<usize>| at.map(|at| self.entries[at].shown.generation);
        let needed = [number(self.live_at()), number(self.previous_at())];
        self.entries.iter().position(|e| e.shown.stored && !needed.contains(&Some(e.shown.generation)))
    }

    /// When the oldest stored generation that may go went live.
    #[must_use]
    pub fn oldest(&self) -> Option<u64> {
        self.oldest_at().map(|at| self.entries[at].shown.at_unix_ms)
    }

    /// Forgets the files of the oldest stored generation that may go; returns its number.
    pub fn forget_oldest(&mut self) -> Option<u32> {
        let number = self.entries[self.oldest_at()?].shown.generation;
        for entry in self.entries.iter_mut().filter(|entry| entry.shown.generation == number) {
            entry.shown.stored = false;
        }
        Some(number)
    }
}
