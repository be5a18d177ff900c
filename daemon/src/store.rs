//! What outlives the daemon: every generation that went live, by the SHA-256 of its files, and the history.
//!
//! In the state directory, `blobs/` has the files under the hash of their bytes, `history/MODEL.jsonl` one
//! line per attempt. The supervisor holds the history in memory and decides; writing, hashing and removing
//! are a thread's affair ([`keeper`]), so that no disk holds the event loop up. Whatever goes wrong here is
//! a warning that names the remedy: the daemon serves without a store. Live and previous generations are
//! never evicted. Blobs are believed only after their hash was computed again, where they are loaded.

mod blobs;
mod book;
mod keeper;
#[cfg(test)]
mod tests;

pub use book::{Blob, Book, Entry, StoredFiles};
pub use keeper::{Done, Keeper};

use crate::config::reader::Document;
use crate::manifest::{MANIFEST, Manifest, ModelSource};
use inferd_ipc::limits::{CONFIG_BYTES_MAX, HISTORY_BYTES_MAX};
use nix::fcntl::{Flock, FlockArg};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// How much the store may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of all blobs.
    pub bytes: u64,
    /// Generations of one model.
    pub generations: usize,
}

/// A file that shall be stored.
#[derive(Debug)]
pub struct ToKeep {
    /// Its hash and length.
    pub blob: Blob,
    /// Its bytes, sealed.
    pub fd: OwnedFd,
}

/// The history of every model, and the files of those generations that are stored.
#[derive(Debug)]
pub struct Store {
    /// The state directory; none where it cannot be used.
    dir: Option<PathBuf>,
    bounds: Bounds,
    books: BTreeMap<String, Book>,
    /// Generations whose files are on their way to the disk: model and key of the entry, by job.
    keeping: BTreeMap<u64, (String, u64)>,
    keeper: Keeper,
    /// The last complaint about a generation, and about a history, so that a full disk is said once and not at every reload.
    complaint: Option<String>,
    history_complaint: Option<String>,
    /// Another daemon's store is left alone while this is held.
    _lock: Option<Flock<File>>,
}

impl Store {
    /// Opens the store in `dir`; where that cannot be, everything but the disk works, and the log says why.
    ///
    /// # Errors
    /// No thread or descriptor could be had.
    pub fn open(dir: &Path, bounds: Bounds) -> io::Result<Store> {
        let keeper = Keeper::start()?;
        let mut store = Store {
            dir: None,
            bounds,
            books: BTreeMap::new(),
            keeping: BTreeMap::new(),
            keeper,
            complaint: None,
            history_complaint: None,
            _lock: None,
        };
        match prepare(dir) {
            Ok(lock) => {
                store._lock = Some(lock);
                store.dir = Some(dir.to_owned());
                store.read_books();
                let wanted = store.books.values().flat_map(Book::blobs).map(|blob| blob.sha256.clone()).collect();
                store.keeper.sweep(dir, wanted);
            }
            Err(what) => tracing::warn!(
                dir = %dir.display(), what,
                "no generation is stored and no history survives a restart; give the user that runs inferd a directory with --state-dir or `state_dir`"
            ),
        }
        Ok(store)
    }

    /// The state directory, where there is one to write to.
    #[must_use]
    pub fn dir(&self) -> Option<&Path> {
        self.dir.as_deref()
    }

    /// Whether no generation is on its way to the disk.
    #[cfg(test)]
    pub(crate) fn is_idle(&self) -> bool {
        self.keeping.is_empty()
    }

    /// Readable once the thread has done something.
    #[must_use]
    pub fn wake_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.keeper.wake_fd()
    }

    /// A model's history.
    #[must_use]
    pub fn book(&self, model: &str) -> Option<&Book> {
        self.books.get(model)
    }

    /// Changes how much may be stored.
    pub fn set_bounds(&mut self, bounds: Bounds) {
        self.bounds = bounds;
    }

    /// Writes an attempt down that never went live.
    pub fn refused(&mut self, model: &str, entry: Entry) {
        self.books.entry(model.to_owned()).or_default().add(entry);
        self.write(model);
    }

    /// Writes down that a generation went live, and stores its files. `how` says what became of the one before.
    pub fn went_live(&mut self, model: &str, mut entry: Entry, how: &str, files: Vec<ToKeep>) {
        let at = entry.shown.at_unix_ms;
        let book = self.books.entry(model.to_owned()).or_default();
        book.end_live(how, at);
        let wanted: Vec<Blob> = entry.blobs().cloned().collect();
        let whole = entry.files.is_some();
        // Blobs that are there already are verified and kept all the same: a damaged one is written again.
        entry.shown.stored = false;
        let (key, off) = (book.add(entry), self.bounds.generations == 0 || self.bounds.bytes == 0);
        if let Some(dir) = self.dir.clone().filter(|_| !off && whole) {
            self.make_room(&wanted);
            if self.bytes_with(&wanted) <= self.bounds.bytes {
                let job = self.keeper.keep(&dir, files);
                self.keeping.insert(job, (model.to_owned(), key));
            } else {
                self.complain(&format!(
                    "generation of model {model} is not stored: it does not fit into store_bytes = {} beside those that must stay; raise store_bytes",
                    self.bounds.bytes
                ));
            }
        }
        self.write(model);
    }

    /// Writes down that nothing is live any more.
    pub fn ended(&mut self, model: &str, how: &str, now_unix_ms: u64) {
        if let Some(book) = self.books.get_mut(model)
            && book.end_live(how, now_unix_ms)
        {
            self.write(model);
        }
    }

    /// Computes the hashes of files on the thread; [`Done::Hashed`] brings it.
    pub fn hash(&mut self, files: Vec<crate::staging::StageFile>) -> u64 {
        self.keeper.hash(files)
    }

    /// Takes what the thread has done; hashes are handed on.
    pub fn take_done(&mut self) -> Vec<(u64, Result<Vec<String>, String>)> {
        let mut hashes = Vec::new();
        for done in self.keeper.take_done() {
            match done {
                Done::Hashed { job, result } => hashes.push((job, result)),
                Done::Kept { job, result } => self.on_kept(job, result),
                Done::Failed { what } => {
                    if self.history_complaint.as_deref() != Some(&what) {
                        tracing::warn!(what, dir = ?self.dir, "the store");
                        self.history_complaint = Some(what);
                    }
                }
                Done::Wrote => self.history_complaint = None,
            }
        }
        hashes
    }

    fn on_kept(&mut self, job: u64, result: Result<(), String>) {
        let Some((model, key)) = self.keeping.remove(&job) else { return };
        match result {
            Err(what) => {
                self.complain(&format!("a generation of model {model} is not stored: {what}"));
                // Half of it may have been written: nobody wants that.
                if let Some(entry) = self.books.get_mut(&model).and_then(|book| book.with_key_mut(key)) {
                    entry.files = None;
                }
                self.sweep(&[]);
            }
            Ok(()) => {
                self.complaint = None;
                if let Some(entry) = self.books.get_mut(&model).and_then(|book| book.with_key_mut(key)) {
                    entry.shown.stored = true;
                    self.write(&model);
                }
                self.make_room(&[]);
            }
        }
    }

    fn complain(&mut self, what: &str) {
        if self.complaint.as_deref() != Some(what) {
            tracing::warn!(what, dir = ?self.dir, "the store");
            self.complaint = Some(what.to_owned());
        }
    }

    fn write(&mut self, model: &str) {
        if let (Some(dir), Some(book)) = (&self.dir, self.books.get(model)) {
            self.keeper.write(dir, model, book.text());
        }
    }

    /// Bytes of everything stored, and of these.
    fn bytes_with(&self, more: &[Blob]) -> u64 {
        let all: BTreeSet<&Blob> = self.books.values().flat_map(Book::blobs).chain(more).collect();
        all.iter().map(|blob| blob.bytes).sum()
    }

    /// Gives up the oldest stored generations that nobody needs, until these fit and every model has its share.
    fn make_room(&mut self, more: &[Blob]) {
        let mut changed = BTreeSet::new();
        for (model, book) in &mut self.books {
            while book.stored() > self.bounds.generations && book.forget_oldest().is_some() {
                changed.insert(model.clone());
            }
        }
        while self.bytes_with(more) > self.bounds.bytes {
            let oldest = self.books.iter().filter_map(|(model, book)| Some((book.oldest()?, model.clone()))).min();
            let Some((_, model)) = oldest else { break };
            if let Some(book) = self.books.get_mut(&model) {
                book.forget_oldest();
            }
            changed.insert(model);
        }
        if changed.is_empty() {
            return;
        }
        changed.iter().for_each(|model| self.write(model));
        self.sweep(more);
    }

    /// Removes what no stored generation, no live one and none of these is made of.
    fn sweep(&mut self, more: &[Blob]) {
        let Some(dir) = self.dir.clone() else { return };
        let on_their_way = self.keeping.values().filter_map(|(model, key)| self.books.get(model)?.with_key(*key));
        let keeping =
            self.books.values().flat_map(Book::all_blobs).chain(more).chain(on_their_way.flat_map(Entry::blobs));
        let wanted = keeping.map(|blob| blob.sha256.clone()).collect();
        self.keeper.sweep(&dir, wanted);
    }

    fn read_books(&mut self) {
        let Some(dir) = &self.dir else { return };
        for found in std::fs::read_dir(dir.join("history")).into_iter().flatten().flatten() {
            let path = found.path();
            let Some(model) = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix(".jsonl")) else {
                continue;
            };
            let mut text = String::new();
            let read = File::open(&path).and_then(|file| file.take(HISTORY_BYTES_MAX).read_to_string(&mut text));
            let (book, damaged) = Book::parse(&text);
            if read.is_err() || damaged > 0 {
                tracing::warn!(file = %path.display(), damaged, "lines of the history cannot be read; they are left out");
            }
            self.books.insert(model.to_owned(), book);
        }
    }

    /// Where a blob lies.
    #[must_use]
    pub fn blob_path(&self, blob: &Blob) -> Option<PathBuf> {
        self.dir.as_ref().map(|dir| blobs::path(dir, &blob.sha256))
    }

    /// The source of a stored generation, as it was read when it was made.
    ///
    /// # Errors
    /// A sentence: the manifest's blob is gone or damaged.
    pub fn source(&self, entry: &Entry) -> Result<ModelSource, String> {
        let files = entry.files.as_ref().ok_or("nothing of it was stored")?;
        let text = match &files.manifest {
            None => None,
            Some(blob) => {
                let path = self.blob_path(blob).ok_or("there is no store")?;
                Some(blobs::read_text(&path, blob, CONFIG_BYTES_MAX)?)
            }
        };
        let manifest_path = files.manifest.as_ref().map(|_| files.folder.join(MANIFEST));
        let manifest = match (&text, &manifest_path) {
            (Some(text), Some(path)) => {
                Manifest::parse(&Document::from_text(path, text)).map_err(|errors| errors.to_string())?
            }
            _ => Manifest::default(),
        };
        Ok(ModelSource {
            manifest,
            manifest_path,
            manifest_text: text,
            file: files.file.clone(),
            file_named: files.file_named,
            folder: files.folder.clone(),
            file_name: files.file_name.clone(),
            backend: entry.shown.backend.clone(),
        })
    }
}

/// The blob of a text.
#[must_use]
pub fn text_blob(text: &str) -> Blob {
    Blob { sha256: blobs::hash(text.as_bytes()), bytes: text.len() as u64 }
}

/// Makes the directories, and takes the lock.
fn prepare(dir: &Path) -> Result<Flock<File>, String> {
    if !dir.is_absolute() {
        return Err("it is not an absolute path".to_owned());
    }
    let mut builder = std::fs::DirBuilder::new();
    builder.mode(0o700).recursive(true);
    for folder in [dir.to_owned(), dir.join("blobs"), dir.join("history")] {
        builder.create(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    }
    let file = File::options().create(true).truncate(false).write(true).open(dir.join("lock"));
    let file = file.map_err(|error| format!("its lock: {error}"))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, errno)| format!("another inferd uses it ({})", errno.desc()))
}
