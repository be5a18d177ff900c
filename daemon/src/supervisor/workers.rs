//! Worker processes: started from this thread, spoken to by records, watched through their pidfd.
//!
//! A worker gets its record socket as standard input, descriptors with its records, and an environment
//! of a few known variables; it asks for its own death with its parent's. Records wait in a queue when
//! the socket is full, so that a worker that does not read never holds the loop up; one that lets too
//! many wait is killed. Only the pidfd says that a worker is gone.

use super::models::{Generation, Stage};
use super::poller::{Poller, Token};
use super::process::{Launched, Process};
use super::{Supervisor, Timer};
use inferd_ipc::limits::{
    WORKER_EXIT_MS, WORKER_HANG_UP_MS, WORKER_RECORD_BYTES_MAX, WORKER_RECORDS_PER_TURN, WORKER_RECORDS_WAITING_MAX,
    WORKERS_UNREAPED_MAX,
};
use inferd_ipc::worker_records::{FromWorker, Loaded, ToWorker, WorkerRecordError, decode, encode};
use inferd_ipc::{failpoint, fdpass};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::rc::Rc;
use std::time::Instant;

/// What a worker was started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The next generation of its model: a start, a load or a reload.
    Next,
    /// The live generation again, after a death.
    Restart,
    /// Only to look at a file; under this number in the table of operations.
    Validate(u64),
}

/// A worker process.
pub(super) struct Worker {
    /// Its model; none for a validation.
    pub model: Option<u64>,
    /// What it holds.
    pub generation: Rc<Generation>,
    pub purpose: Purpose,
    pub stage: Stage,
    /// Its ticket and its entry in the baton.
    pub ticket: u64,
    pub entry: u32,
    /// What its load found out.
    pub loaded: Option<Loaded>,
    /// The shadow that it runs.
    pub shadowing: Option<super::shadow::Shadowing>,
    /// Where it writes its steps.
    pub record: Option<Rc<super::dump::Record>>,
    pub warnings: Vec<String>,
    /// Why it refused or was killed, for the message about its end.
    pub last_words: Option<String>,
    /// Since when it is stopped (SIGSTOP), if it is.
    pub stopped_since: Option<Instant>,
    /// Queries of counters that it owes an answer to.
    pub stats: VecDeque<u64>,
    pub killed: bool,
    pub drained: bool,
    process: Box<dyn Process>,
    pidfd: OwnedFd,
    socket: OwnedFd,
    waiting: VecDeque<(Vec<u8>, Vec<Rc<OwnedFd>>)>,
    ended: bool,
}

/// What a worker is started with.
pub(super) struct Start {
    pub model: Option<u64>,
    pub generation: Rc<Generation>,
    pub purpose: Purpose,
    pub ticket: u64,
    pub entry: u32,
}

impl Worker {
    /// Its process id: a label.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Moves on in its life.
    pub fn enter(&mut self, stage: Stage) {
        assert!(self.stage.may_become(stage), "a worker does not go from {:?} to {stage:?}", self.stage);
        self.stage = stage;
    }

    /// Whether it may be told of sessions.
    pub fn knows_sessions(&self) -> bool {
        !self.ended && !self.killed && matches!(self.stage, Stage::Warm | Stage::Taking | Stage::Live | Stage::Kept)
    }

    /// Sends a record, or queues it.
    ///
    /// # Errors
    /// The record is too long.
    pub fn send(
        &mut self,
        poller: &mut Poller<Timer>,
        id: u64,
        record: &ToWorker,
        fds: &[Rc<OwnedFd>],
    ) -> Result<(), WorkerRecordError> {
        let bytes = encode(record)?;
        if self.ended || self.killed {
            return Ok(());
        }
        if self.waiting.is_empty() && self.send_now(poller, id, &bytes, fds) {
            return Ok(());
        }
        self.waiting.push_back((bytes, fds.to_vec()));
        if self.waiting.len() > WORKER_RECORDS_WAITING_MAX {
            self.kill(poller, id, "it did not read its records");
        }
        poller.interest(&self.socket, Token::Worker(id), true, true);
        Ok(())
    }

    /// Whether the record is dealt with: sent, or never to be sent because the worker is going.
    fn send_now(&mut self, poller: &mut Poller<Timer>, id: u64, bytes: &[u8], fds: &[Rc<OwnedFd>]) -> bool {
        let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(|fd| fd.as_fd()).collect();
        match fdpass::send(&self.socket, bytes, &borrowed) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            // Its pidfd will tell the rest.
            Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => true,
            // A record that it never gets is a session that nobody serves, or a turn that nobody takes.
            Err(error) => {
                self.kill(poller, id, &format!("a record cannot be sent to it: {error}"));
                true
            }
            Ok(()) => true,
        }
    }

    fn flush(&mut self, poller: &mut Poller<Timer>, id: u64) {
        if self.ended {
            return;
        }
        while let Some((bytes, fds)) = self.waiting.pop_front() {
            if !self.send_now(poller, id, &bytes, &fds) {
                self.waiting.push_front((bytes, fds));
                return;
            }
        }
        poller.interest(&self.socket, Token::Worker(id), true, false);
    }

    /// Sends SIGKILL. The worker counts as there until its pidfd says otherwise; its sessions do not wait for it longer than
    /// [`WORKER_EXIT_MS`] from now.
    pub fn kill(&mut self, poller: &mut Poller<Timer>, id: u64, why: &str) {
        if self.killed {
            return;
        }
        self.killed = true;
        self.waiting.clear();
        self.last_words.get_or_insert_with(|| why.to_owned());
        tracing::warn!(model = %self.generation.config.name, pid = self.pid(), generation = self.generation.number, why, "killing a worker");
        // An error means that it has exited already.
        let _ = self.process.kill();
        poller.cancel(|timer| matches!(timer, Timer::Exit(worker) if *worker == id));
        poller.after_ms(WORKER_EXIT_MS, Timer::Exit(id));
    }
}

impl Supervisor {
    /// Starts a worker and hands it its model.
    ///
    /// # Errors
    /// A sentence: no binary, no process, a spec that is too long.
    pub(super) fn start_worker(
        &mut self,
        start: Start,
        spec: inferd_ipc::worker_records::ModelSpec,
        baton_fd: &Rc<OwnedFd>,
    ) -> Result<u64, String> {
        if self.reaper.left() >= WORKERS_UNREAPED_MAX {
            return Err(format!(
                "{WORKERS_UNREAPED_MAX} workers have ended and the kernel has not let go of them; look at what keeps the CPUs busy"
            ));
        }
        let backend = spec.backend.clone();
        let binary = crate::paths::worker_binary(&self.worker_dir, &backend).map_err(|error| error.to_string())?;
        let level = self.logs.level().to_owned();
        let Launched { process, socket, exit: pidfd } = self.launcher.launch(&binary, &level).map_err(|error| {
            format!(
                "cannot start {}: {error}; check that it is executable, and the limits on processes and descriptors",
                binary.display()
            )
        })?;
        let id = self.new_id();
        let load_ms = start.generation.config.load_ms;
        let mut fds = vec![Rc::clone(baton_fd)];
        fds.extend(start.generation.file.iter().cloned());
        let mut worker = Worker {
            model: start.model,
            generation: start.generation,
            purpose: start.purpose,
            stage: Stage::Loading,
            ticket: start.ticket,
            entry: start.entry,
            loaded: None,
            shadowing: None,
            record: None,
            warnings: Vec::new(),
            last_words: None,
            stopped_since: None,
            stats: VecDeque::new(),
            killed: false,
            drained: false,
            process,
            pidfd,
            socket,
            waiting: VecDeque::new(),
            ended: false,
        };
        let watched = self.poller.add(&worker.socket, Token::Worker(id));
        let watched = watched.and_then(|()| self.poller.add(&worker.pidfd, Token::WorkerExit(id)));
        let told = worker.send(&mut self.poller, id, &ToWorker::Load(spec), &fds);
        if let Err(error) = watched.map_err(|e| e.to_string()).and(told.map_err(|e| e.to_string())) {
            self.poller.remove(&worker.socket);
            self.poller.remove(&worker.pidfd);
            worker.kill(&mut self.poller, id, "it could not be told of its model");
            worker.process.reap(&self.reaper);
            return Err(error);
        }
        tracing::info!(
            model = %worker.generation.config.name, generation = worker.generation.number, pid = worker.pid(), purpose = ?worker.purpose, "worker started"
        );
        self.workers.insert(id, worker);
        failpoint!("daemon.launched");
        self.poller.after_ms(load_ms, Timer::Load(id));
        Ok(id)
    }

    /// Sends a record to a worker that may be gone.
    pub(super) fn tell(&mut self, worker: u64, record: &ToWorker, fds: &[Rc<OwnedFd>]) {
        if let Some(found) = self.workers.get_mut(&worker)
            && let Err(error) = found.send(&mut self.poller, worker, record, fds)
        {
            tracing::error!(%error, "a record was not sent");
        }
    }

    /// Kills a worker, as [`Worker::kill`] does.
    pub(super) fn kill_worker(&mut self, id: u64, why: &str) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.kill(&mut self.poller, id, why);
        }
    }

    /// Asks a worker to exit; it is killed when it does not.
    pub(super) fn retire_worker(&mut self, id: u64) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if worker.stage == Stage::Retiring {
            return;
        }
        worker.enter(Stage::Retiring);
        self.tell(id, &ToWorker::Retire, &[]);
        failpoint!("daemon.retiring");
        self.poller.after_ms(WORKER_EXIT_MS, Timer::Exit(id));
    }

    /// The record socket has something, or room.
    pub(super) fn on_worker(&mut self, id: u64, write: bool) {
        if write && let Some(worker) = self.workers.get_mut(&id) {
            worker.flush(&mut self.poller, id);
        }
        for _ in 0..WORKER_RECORDS_PER_TURN {
            if !self.take_record(id) {
                return;
            }
        }
    }

    /// Takes one record. Says whether there may be another.
    fn take_record(&mut self, id: u64) -> bool {
        let Some(worker) = self.workers.get_mut(&id) else { return false };
        if worker.ended {
            return false;
        }
        self.buffer.resize(WORKER_RECORD_BYTES_MAX, 0);
        let received = match fdpass::recv(&worker.socket, &mut self.buffer) {
            Ok(received) if received.bytes > 0 => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return true,
            Ok(_) | Err(_) => {
                // It hung up, so it is exiting: its pidfd says how. If not, it is of no use without its socket.
                worker.ended = true;
                self.poller.remove(&worker.socket);
                // One that was killed has its time already: its files are closed before it is gone.
                if !worker.killed {
                    self.poller.after_ms(WORKER_HANG_UP_MS, Timer::Exit(id));
                }
                return false;
            }
        };
        let record = if received.truncated || !received.fds.is_empty() {
            Err("a record with descriptors, or cut short".to_owned())
        } else {
            decode::<FromWorker>(&self.buffer[..received.bytes]).map_err(|error| error.to_string())
        };
        match record {
            Ok(record) => self.on_record(id, record),
            Err(what) => self.kill_worker(id, &format!("it sent {what}")),
        }
        true
    }

    fn on_record(&mut self, id: u64, record: FromWorker) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let (name, generation, model) = (worker.generation.config.name.clone(), worker.generation.number, worker.model);
        match record {
            FromWorker::Progress { stage } => self.on_progress(id, &stage),
            FromWorker::NeedFile { name } => self.on_need_file(id, &name),
            FromWorker::Loaded(loaded) => {
                failpoint!("daemon.loaded");
                self.on_loaded(id, loaded);
            }
            FromWorker::Shadowing { done, of } => self.on_shadowing(id, done, of),
            FromWorker::Shadowed(report) => {
                failpoint!("daemon.shadowed");
                self.on_shadowed(id, report);
            }
            FromWorker::Refused { message } => {
                tracing::warn!(model = %name, generation, %message, "the model was refused");
                worker.last_words = Some(message);
                self.poller.after_ms(WORKER_EXIT_MS, Timer::Exit(id));
            }
            FromWorker::Warning { message } => {
                tracing::warn!(model = %name, generation, %message, "worker");
                if worker.warnings.len() < 16 {
                    worker.warnings.push(message);
                }
            }
            FromWorker::Taken => self.on_taken(id),
            FromWorker::SessionFault { session, fault } => {
                let ours = self.sessions.get(session).is_some_and(|s| Some(s.model) == model);
                if ours {
                    self.session_fault(session, &fault);
                }
            }
            FromWorker::Drained => self.on_drained(id),
            FromWorker::Stats(stats) => self.on_stats(id, stats),
        }
    }

    /// The pidfd says that the worker is gone: from now on nothing of it writes anywhere.
    pub(super) fn on_worker_exit(&mut self, id: u64) {
        // What it said before it went still counts: a take-over, a refusal.
        while self.take_record(id) {}
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let status = match worker.process.how_it_ended() {
            Ok(Some(status)) => Some(status),
            Ok(None) => return,
            Err(_) => None,
        };
        let Some(worker) = self.workers.remove(&id) else { return };
        failpoint!("daemon.worker.gone");
        self.poller.remove(&worker.pidfd);
        if !worker.ended {
            self.poller.remove(&worker.socket);
        }
        // A load may take minutes: timers of workers long gone would pile up while a model is reloaded again and again.
        self.poller.cancel(|timer| matches!(timer, Timer::Load(worker) | Timer::Exit(worker) if *worker == id));
        let how = describe_exit(&worker, status);
        tracing::info!(
            model = %worker.generation.config.name, generation = worker.generation.number, pid = worker.pid(), stage = ?worker.stage, how, "worker exited"
        );
        for query in worker.stats.clone() {
            self.stats_arrived(query, None);
        }
        match worker.model {
            Some(model) => self.on_model_worker_gone(model, id, &worker, &how),
            None => self.on_validation_gone(&worker, &how),
        }
        worker.process.reap(&self.reaper);
        self.look_whether_drained();
    }

    /// A worker that had to be gone by now is not.
    pub(super) fn on_exit_overdue(&mut self, id: u64) {
        let Some(worker) = self.workers.get(&id) else { return };
        if !worker.killed {
            self.kill_worker(id, "it did not exit in time");
            return;
        }
        // Killed, and still not gone: stuck in the kernel. Its sessions end, for nobody may answer for it.
        tracing::error!(model = %worker.generation.config.name, pid = worker.pid(), "a killed worker does not exit; its sessions end");
        match (worker.model, worker.purpose) {
            (Some(model), _) => self.on_worker_stuck(model, id),
            (None, Purpose::Validate(number)) => {
                if let Some(asker) = self.validations.remove(&number) {
                    let what = "its worker was killed and hangs in the kernel; look at its device or file system";
                    self.refuse(&asker, inferd_ipc::control::code::REFUSED, what);
                }
            }
            (None, _) => {}
        }
    }
}

fn describe_exit(worker: &Worker, status: Option<ExitStatus>) -> String {
    // The filter of system calls, in which a confined worker lives, kills by this signal.
    let trespassed = status.is_some_and(|status| status.signal() == Some(nix::libc::SIGSYS));
    let status = status.map_or_else(|| "with an unknown status".to_owned(), |status| status.to_string());
    match &worker.last_words {
        Some(words) => words.clone(),
        None if worker.stage == Stage::Retiring => format!("as asked: {status}"),
        None if trespassed => {
            format!(
                "its worker (pid {}) ended by SIGSYS: its model reached for what docs/confinement.md forbids",
                worker.pid()
            )
        }
        None => format!("its worker (pid {}) ended unexpectedly: {status}; its log says more", worker.pid()),
    }
}
