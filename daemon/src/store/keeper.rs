//! The thread that waits for disks in the event loop's place.
//!
//! Jobs are done in the order of their submission; of several texts of one history only the newest is
//! written, so that a slow disk never makes the queue grow. What is done rings a bell that epoll hears.

use super::{ToKeep, blobs};
use crate::staging::{self, StageFile};
use inferd_ipc::limits::STORE_EXIT_MS;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

enum Job {
    Keep { job: u64, dir: PathBuf, files: Vec<ToKeep> },
    Write(PathBuf),
    Sweep { dir: PathBuf, wanted: BTreeSet<String> },
    Hash { job: u64, files: Vec<StageFile> },
}

/// What the thread has done.
#[derive(Debug)]
pub enum Done {
    /// A generation's files are stored, or why not.
    Kept {
        /// The number of the job.
        job: u64,
        /// A sentence with the remedy.
        result: Result<(), String>,
    },
    /// Hashes of files.
    Hashed {
        /// The number of the job.
        job: u64,
        /// In lower-case hexadecimal, in the order of the files; or what is wrong with the first that has none.
        result: Result<Vec<String>, String>,
    },
    /// A history was written.
    Wrote,
    /// A history could not be written.
    Failed {
        /// A sentence with the remedy.
        what: String,
    },
}

/// Texts that wait to be written, by file.
type Texts = Arc<Mutex<BTreeMap<PathBuf, String>>>;

/// The supervisor's end of the thread.
#[derive(Debug)]
pub struct Keeper {
    jobs: Option<Sender<Job>>,
    done: Receiver<Done>,
    texts: Texts,
    wake: Arc<EventFd>,
    last: u64,
}

impl Keeper {
    /// Starts the thread.
    ///
    /// # Errors
    /// No descriptor or no thread could be had.
    pub fn start() -> io::Result<Keeper> {
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let (jobs, waiting) = channel();
        let (finished, done) = channel();
        let texts = Texts::default();
        let (theirs, bell) = (texts.clone(), wake.clone());
        std::thread::Builder::new().name("keeper".into()).spawn(move || {
            for job in waiting {
                let Some(done) = work(job, &theirs) else { continue };
                if finished.send(done).is_err() {
                    return;
                }
                // EAGAIN would mean 2^64 - 1 results unread: the bell rings already.
                let _ = bell.write(1);
            }
        })?;
        Ok(Keeper { jobs: Some(jobs), done, texts, wake, last: 0 })
    }

    /// Readable once something is done.
    #[must_use]
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Stores files; [`Done::Kept`] says when.
    pub fn keep(&mut self, dir: &Path, files: Vec<ToKeep>) -> u64 {
        self.last += 1;
        self.submit(Job::Keep { job: self.last, dir: dir.to_owned(), files });
        self.last
    }

    /// Writes a model's history.
    pub fn write(&mut self, dir: &Path, model: &str, text: String) {
        let path = dir.join("history").join(format!("{model}.jsonl"));
        let mut texts = self.texts.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = texts.insert(path.clone(), text).is_some();
        drop(texts);
        if !waits {
            self.submit(Job::Write(path));
        }
    }

    /// Removes blobs that are not wanted.
    pub fn sweep(&mut self, dir: &Path, wanted: BTreeSet<String>) {
        self.submit(Job::Sweep { dir: dir.to_owned(), wanted });
    }

    /// Hashes files; [`Done::Hashed`] brings it.
    pub fn hash(&mut self, files: Vec<StageFile>) -> u64 {
        self.last += 1;
        self.submit(Job::Hash { job: self.last, files });
        self.last
    }

    /// Takes what is done; never blocks.
    pub fn take_done(&mut self) -> Vec<Done> {
        // First the bell, then the results: a result after this rings again.
        let _ = self.wake.read();
        self.done.try_iter().collect()
    }

    fn submit(&self, job: Job) {
        // The thread ends only with its queue: a job cannot be refused.
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        assert!(sent, "the keeper has ended before the store");
    }
}

impl Drop for Keeper {
    /// What was submitted is still done, unless the disk hangs: a daemon that is told to stop has written its history.
    fn drop(&mut self) {
        self.jobs = None;
        let deadline = Instant::now() + Duration::from_millis(STORE_EXIT_MS);
        // The thread's end of the channel goes with the thread.
        while self.done.recv_timeout(deadline.saturating_duration_since(Instant::now())).is_ok() {}
    }
}

fn work(job: Job, texts: &Texts) -> Option<Done> {
    match job {
        Job::Keep { job, dir, files } => {
            let result = files.into_iter().try_for_each(|file| blobs::keep(&dir, file));
            Some(Done::Kept { job, result })
        }
        Job::Write(path) => {
            let text = texts.lock().unwrap_or_else(PoisonError::into_inner).remove(&path)?;
            Some(match blobs::write_text(&path, &text) {
                Ok(()) => Done::Wrote,
                Err(what) => Done::Failed { what },
            })
        }
        Job::Sweep { dir, wanted } => {
            blobs::sweep(&dir, &wanted);
            None
        }
        Job::Hash { job, files } => {
            let hash = |file: &StageFile| staging::hash(file).map_err(|error| format!("{file}: {error}"));
            let result = files.iter().map(hash).collect();
            Some(Done::Hashed { job, result })
        }
    }
}
