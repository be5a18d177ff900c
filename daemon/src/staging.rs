//! Copies model files into sealed memory, on threads of its own.
//!
//! A worker parses bytes that nobody can rewrite any more: a file is opened, copied into a memfd while
//! its SHA-256 is computed, compared with what the manifest says, and sealed. Files that a worker asks
//! for are looked up below the model's folder and nowhere else. The event loop submits jobs and polls
//! [`Stager::wake_fd`]; it never waits for a disk.

mod copy;
mod error;
mod open;
#[cfg(test)]
mod tests;

pub use copy::Staged;
pub use error::StageError;
pub use open::probe;

use inferd_ipc::limits;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

/// Which file to stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StageFile {
    /// A path that the operator named (`ModelSource::file`): symbolic links are followed.
    Path {
        /// Absolute path.
        path: PathBuf,
    },
    /// A name from a manifest or a worker (`NeedFile`): only below the folder, links that leave it included.
    Below {
        /// The model's folder (`ModelSource::folder`).
        folder: PathBuf,
        /// Relative name.
        name: String,
    },
}

impl StageFile {
    /// The model file itself: the operator's path if that named it, else below its folder.
    #[must_use]
    pub fn of_model(source: &crate::manifest::ModelSource) -> Option<StageFile> {
        let path = source.file.clone()?;
        if source.file_named {
            return Some(StageFile::Path { path });
        }
        Some(StageFile::Below { folder: source.folder.clone(), name: source.file_name.clone() })
    }
}

impl std::fmt::Display for StageFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StageFile::Path { path } => write!(f, "{}", path.display()),
            StageFile::Below { folder, name } => write!(f, "{}", folder.join(name).display()),
        }
    }
}

/// Niceness of the threads that copy and hash.
const STAGING_NICE: i32 = 10;

/// How many files a worker may still ask for while it loads; one per worker.
#[derive(Debug, Default)]
pub struct FileAllowance {
    asked: usize,
}

impl FileAllowance {
    /// Counts one `NeedFile`.
    ///
    /// # Errors
    /// [`StageError::TooMany`].
    pub fn ask(&mut self) -> Result<(), StageError> {
        self.asked += 1;
        if self.asked > limits::MODEL_FILES_MAX { Err(StageError::TooMany) } else { Ok(()) }
    }
}

/// A finished job.
#[derive(Debug)]
pub struct StageDone {
    /// The number that [`Stager::submit`] returned.
    pub id: u64,
    /// The sealed copy, or why there is none.
    pub result: Result<Staged, StageError>,
}

struct Job {
    id: u64,
    file: StageFile,
    sha256: Option<String>,
    cancelled: Arc<AtomicBool>,
}

/// Hands files to the staging threads and collects what they made.
#[derive(Debug)]
pub struct Stager {
    jobs: Sender<Job>,
    done: Receiver<StageDone>,
    wake: Arc<EventFd>,
    running: Vec<(u64, Arc<AtomicBool>)>,
    last_id: u64,
}

impl Stager {
    /// Starts the threads. They end with the [`Stager`], at the latest after the system call they are in.
    ///
    /// # Errors
    /// No descriptor or no thread could be had.
    pub fn start() -> std::io::Result<Stager> {
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let (jobs, waiting) = channel::<Job>();
        let (finished, done) = channel();
        let waiting = Arc::new(Mutex::new(waiting));
        for i in 0..limits::STAGING_THREADS {
            let (waiting, finished, wake) = (waiting.clone(), finished.clone(), wake.clone());
            std::thread::Builder::new().name(format!("staging-{i}")).spawn(move || {
                // Copying and hashing megabytes is no reason to hold a CPU that a policy wants; at idle priority a
                // start would never come where no CPU is idle. Where even this is forbidden it goes on as it is.
                let _ = inferd_ipc::sys::set_nice(STAGING_NICE);
                serve(&waiting, &finished, &wake);
            })?;
        }
        Ok(Stager { jobs, done, wake, running: Vec::new(), last_id: 0 })
    }

    /// Queues a file; `sha256` is what it must have, in lower-case hexadecimal. Never blocks.
    pub fn submit(&mut self, file: StageFile, sha256: Option<&str>) -> u64 {
        self.last_id += 1;
        let cancelled = Arc::new(AtomicBool::new(false));
        self.running.push((self.last_id, cancelled.clone()));
        let job = Job { id: self.last_id, file, sha256: sha256.map(str::to_owned), cancelled };
        // The threads outlive their queue's sender: a job cannot be refused.
        let sent = self.jobs.send(job).is_ok();
        assert!(sent, "the staging threads have ended before their stager");
        self.last_id
    }

    /// Gives a job up: its result is [`StageError::Cancelled`], or none if it was taken already.
    pub fn cancel(&self, id: u64) {
        if let Some((_, flag)) = self.running.iter().find(|(running, _)| *running == id) {
            // Relaxed: a flag on its own; the copy loop sees it after a chunk or two.
            flag.store(true, Ordering::Relaxed);
        }
    }

    /// Readable once a job is done.
    #[must_use]
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Jobs that are queued or under way.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Takes what is done; never blocks.
    pub fn take_done(&mut self) -> Vec<StageDone> {
        // First the bell, then the results: a result after this rings again.
        let _ = self.wake.read();
        let done: Vec<StageDone> = self.done.try_iter().collect();
        self.running.retain(|(id, _)| !done.iter().any(|d| d.id == *id));
        done
    }
}

impl Drop for Stager {
    fn drop(&mut self) {
        for (_, flag) in &self.running {
            flag.store(true, Ordering::Relaxed);
        }
    }
}

fn serve(waiting: &Mutex<Receiver<Job>>, finished: &Sender<StageDone>, wake: &EventFd) {
    loop {
        // The lock is held while waiting for a job, so the other threads wait for the lock instead.
        let job = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        let result = stage(&job.file, job.sha256.as_deref(), &job.cancelled);
        if finished.send(StageDone { id: job.id, result }).is_err() {
            return;
        }
        // EAGAIN would mean 2^64 - 1 results unread: the bell rings already.
        let _ = wake.write(1);
    }
}

/// Hashes one file on the calling thread, without a copy.
///
/// # Errors
/// [`StageError`].
pub fn hash(file: &StageFile) -> Result<String, StageError> {
    copy::hash(&mut open::file(file)?)
}

/// A short text in memory, as a file that nobody can change any more.
///
/// # Errors
/// [`StageError`].
pub fn text_into_memory(name: &str, text: &str) -> Result<std::os::fd::OwnedFd, StageError> {
    copy::text(name, text)
}

/// Stages one file on the calling thread.
///
/// # Errors
/// [`StageError`].
pub fn stage(file: &StageFile, sha256: Option<&str>, cancelled: &AtomicBool) -> Result<Staged, StageError> {
    let staged = copy::into_memory(&mut open::file(file)?, &file.to_string(), cancelled)?;
    match sha256 {
        Some(expected) if expected != staged.sha256 => {
            Err(StageError::WrongHash { expected: expected.to_owned(), found: staged.sha256 })
        }
        _ => Ok(staged),
    }
}
