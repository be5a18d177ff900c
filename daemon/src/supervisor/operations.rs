//! Making a generation: files staged, worker started, loaded, checked and warm.
//!
//! A model has at most one [`Operation`] at a time, whoever asked for it (the start, an operator, a
//! changed configuration or file); another mutating command meanwhile is answered BUSY. Whatever fails here
//! leaves the live generation serving and says why. Validations go the same way without a model.

use super::control::Asker;
use super::file_watch::Stamp;
use super::gate::{Gate, verdict};
use super::history::Cause;
use super::models::{FileCopy, Generation, Model, ModelState, Stage};
use super::workers::{Purpose, Start, Worker};
use super::{Phase, Supervisor};
use crate::config::ModelConfig;
use crate::manifest::{ModelSource, WorkerRole, resolve};
use crate::staging::{StageDone, StageFile, Staged};
use crate::store::{Blob, Entry};
use inferd_ipc::baton;
use inferd_ipc::control::{ReloadAnswer, SessionGap, ValidateAnswer, Verdict, code};
use inferd_ipc::failpoint;
use inferd_ipc::limits::{MODEL_FILES_MAX, MODELS_MAX, STATE_BYTES_MAX};
use inferd_ipc::worker_records::{Loaded, Loading, ToWorker};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Instant;

/// What a swap has shown.
#[derive(Debug)]
pub(super) struct Swapped {
    pub swap_us: f64,
    pub state: &'static str,
    pub gaps: Vec<SessionGap>,
}

/// What an operation is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The daemon starts, or its configuration names a new model.
    Start,
    /// `inferctl load`: a failure leaves no trace of the model.
    Load,
    /// `inferctl reload`, or a changed configuration.
    Reload,
    /// `inferctl rollback`.
    Rollback,
}

/// A mutating command under way.
#[derive(Debug)]
pub(super) struct Operation {
    pub kind: Kind,
    pub cause: Cause,
    /// Who waits for the answer; nobody at the start, after SIGHUP and after a change of a watched file.
    pub asker: Option<Asker>,
    pub began: Instant,
    /// What the new generation must show.
    pub gate: Gate,
    /// What the gate decided, once it has.
    pub verdict: Option<Verdict>,
    /// What is known of the new generation, for the history.
    pub path: PathBuf,
    pub backend: String,
    pub sha256: String,
}

/// What a generation is made for, and from where.
#[derive(Debug)]
pub(super) struct Order {
    pub kind: Kind,
    pub cause: Cause,
    pub asker: Option<Asker>,
    pub gate: Gate,
    /// The stored generation that is taken up again, instead of the configured files.
    pub stored: Option<Entry>,
}

impl Order {
    /// From the configured files, through no gate.
    pub fn new(kind: Kind, cause: Cause, asker: Option<Asker>) -> Order {
        Order { kind, cause, asker, gate: Gate::open(), stored: None }
    }
}

impl Operation {
    /// An operation that begins now.
    pub fn begin(order: &Order, config: &ModelConfig) -> Operation {
        Operation {
            kind: order.kind,
            cause: order.cause,
            asker: order.asker.clone(),
            began: Instant::now(),
            gate: order.gate.clone(),
            verdict: None,
            path: config.path.clone(),
            backend: config.backend.clone().unwrap_or_default(),
            sha256: String::new(),
        }
    }
}

/// Where a generation's files come from.
#[derive(Debug)]
pub(super) struct Origin {
    source: ModelSource,
    /// What the model file was like before it was read.
    stamp: Option<Stamp>,
    /// Number and further files of a stored generation.
    stored: Option<(u32, BTreeMap<String, Blob>)>,
}

/// What a staging job is for.
pub(super) enum Staging {
    /// The model file of a next generation.
    Model { model: u64, config: ModelConfig, origin: Origin },
    /// The model file of a validation.
    Validate { asker: Asker, config: ModelConfig, source: ModelSource },
    /// A further file that a worker asked for.
    File { worker: u64, name: String },
}

fn generation(number: u32, config: ModelConfig, origin: Origin, staged: Option<Staged>) -> Rc<Generation> {
    let bytes = staged.as_ref().map_or(0, |staged| staged.bytes);
    let (file, sha256) = staged.map_or((None, String::new()), |staged| (Some(Rc::new(staged.fd)), staged.sha256));
    let Origin { source, stamp, stored } = origin;
    let more = RefCell::new(BTreeMap::new());
    let stored = stored.map(|(_, more)| more);
    Rc::new(Generation { number, config, source, file, sha256, bytes, stamp, more, stored })
}

impl Supervisor {
    /// Enters a model and begins its first generation.
    ///
    /// # Errors
    /// A sentence; nothing was entered then.
    pub(super) fn add_model(&mut self, config: ModelConfig, kind: Kind, asker: Option<Asker>) -> Result<u64, String> {
        if self.models.len() >= MODELS_MAX {
            return Err(format!("the daemon serves {MODELS_MAX} models already; unload one"));
        }
        let mut model = Model::new(config.clone(), kind == Kind::Start)?;
        // Numbers go on where they ended, so that no two generations of a name ever had the same one.
        model.generation_last = self.store.book(&config.name).map_or(0, crate::store::Book::last_number);
        let id = self.new_id();
        self.models.insert(id, model);
        let mut order = Order::new(kind, if kind == Kind::Load { Cause::Load } else { Cause::Start }, asker);
        if kind == Kind::Start
            && let Some(entry) = self.restorable(&config)
        {
            order.cause = Cause::Restart;
            order.stored = Some(entry);
        }
        self.begin_generation(id, config, order);
        Ok(id)
    }

    /// Begins the next generation of a model that has no operation under way.
    pub(super) fn begin_generation(&mut self, id: u64, mut config: ModelConfig, order: Order) {
        let Some(model) = self.models.get_mut(&id) else { return };
        if let Some(entry) = &order.stored {
            config.path = PathBuf::from(&entry.shown.path);
        }
        model.operation = Some(Operation::begin(&order, &config));
        tracing::info!(model = %model.name, path = %config.path.display(), cause = order.cause.name(), "making the next generation");
        self.tell_progress(id, "staging", None);
        failpoint!("daemon.stage");
        let found = match &order.stored {
            Some(entry) => self.stored_origin(entry),
            None => configured_origin(&config),
        };
        let (origin, file) = match found {
            Ok(found) => found,
            Err(what) => return self.fail_operation(id, &what),
        };
        if let Some(operation) = self.models.get_mut(&id).and_then(|model| model.operation.as_mut()) {
            operation.backend.clone_from(&origin.source.backend);
        }
        match file {
            Some((file, sha256)) => {
                let job = self.stager.submit(file, sha256.as_deref());
                self.staging.insert(job, Staging::Model { model: id, config, origin });
            }
            None => self.launch_next(id, config, origin, None),
        }
    }

    fn stored_origin(&self, entry: &Entry) -> Result<Found, String> {
        let source = self.store.source(entry)?;
        let files = entry.files.as_ref().ok_or("nothing of it was stored")?;
        let path = files.model.as_ref().and_then(|blob| Some((self.store.blob_path(blob)?, blob.sha256.clone())));
        let stored = Some((entry.shown.generation, files.more.clone()));
        let file = path.map(|(path, sha256)| (StageFile::Path { path }, Some(sha256)));
        Ok((Origin { source, stamp: None, stored }, file))
    }

    /// A staging job has ended.
    pub(super) fn on_staged(&mut self, done: StageDone) {
        let Some(what) = self.staging.remove(&done.id) else { return };
        failpoint!("daemon.staged");
        match (what, done.result) {
            (Staging::Model { model, config, origin }, Ok(staged)) => {
                if let Some(operation) = self.models.get_mut(&model).and_then(|model| model.operation.as_mut()) {
                    operation.sha256.clone_from(&staged.sha256);
                }
                self.launch_next(model, config, origin, Some(staged));
            }
            (Staging::Model { model, origin, .. }, Err(error)) => {
                let stored = if origin.stored.is_some() { "the stored copy of " } else { "" };
                let what = file_message(&origin.source, &error.to_string());
                self.fail_operation(model, &format!("{stored}{what}"));
            }
            (Staging::Validate { asker, config, source }, Ok(staged)) => {
                self.launch_validation(asker, config, source, Some(staged));
            }
            (Staging::Validate { asker, source, .. }, Err(error)) => {
                self.refuse(&asker, code::REFUSED, &file_message(&source, &error.to_string()));
            }
            (Staging::File { worker, name }, result) => {
                self.on_staged_file(worker, name, result.map_err(|e| e.to_string()))
            }
        }
    }

    fn launch_next(&mut self, id: u64, config: ModelConfig, origin: Origin, staged: Option<Staged>) {
        let Some(model) = self.models.get_mut(&id) else { return };
        if model.operation.is_none() {
            return;
        }
        // A generation that is taken up again is the one that it was.
        let number = origin.stored.as_ref().map_or(model.generation_last + 1, |(number, _)| *number);
        let made = generation(number, config, origin, staged);
        match self.launch(id, made, Purpose::Next) {
            Ok(worker) => {
                if let Some(model) = self.models.get_mut(&id) {
                    model.next = Some(worker);
                }
            }
            Err(what) => self.fail_operation(id, &what),
        }
    }

    /// Starts a worker for a generation of a model.
    pub(super) fn launch(&mut self, id: u64, generation: Rc<Generation>, purpose: Purpose) -> Result<u64, String> {
        let model = self.models.get_mut(&id).ok_or("the model is gone")?;
        let expect = model.live.as_ref().map(|held| held.loaded.signature.clone());
        let Some((ticket, entry)) = model.hand_out() else {
            return Err(format!("too many workers of model {} are still exiting; try again", model.name));
        };
        // Where nobody serves, sessions or a start wait for this one; else those who are served come first.
        let awaited = purpose == Purpose::Restart
            || self.phase == Phase::Starting
            || matches!(model.state, ModelState::Recovering | ModelState::Quarantined);
        let role = WorkerRole {
            generation: generation.number,
            ticket,
            baton_entry: entry,
            expect,
            validate_only: false,
            loading: if awaited { Loading::Ordinary } else { Loading::Idle },
        };
        let spec = generation.source.spec(&generation.config, &self.config, role);
        let baton_fd = Rc::clone(&model.baton_fd);
        let start = Start { model: Some(id), generation, purpose, ticket, entry };
        let started = self.start_worker(start, spec, &baton_fd);
        if started.is_err()
            && let Some(model) = self.models.get_mut(&id)
        {
            model.take_back(entry);
        }
        started
    }

    /// A worker says how far it has come.
    pub(super) fn on_progress(&mut self, id: u64, name: &str) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let Some(stage) = Stage::from_progress(name) else { return };
        if worker.stage.may_become(stage) {
            worker.enter(stage);
        }
        match (worker.model, worker.purpose) {
            (Some(model), Purpose::Next) => self.tell_progress(model, name, None),
            (None, Purpose::Validate(asker)) => self.tell_validation_progress(asker, name),
            _ => {}
        }
    }

    /// A worker asks for a file beside its model.
    pub(super) fn on_need_file(&mut self, id: u64, name: &str) {
        let Some(worker) = self.workers.get(&id) else { return };
        if !matches!(worker.stage, Stage::Loading | Stage::Checking | Stage::Warming) {
            return self.kill_worker(id, "it asked for a file after its load");
        }
        let known = worker.generation.more.borrow().get(name).map(|copy| Rc::clone(&copy.fd));
        if let Some(fd) = known {
            return self.tell(id, &ToWorker::File { name: name.to_owned(), refused: None }, &[fd]);
        }
        let awaited = |staging: &&Staging| matches!(staging, Staging::File { worker, .. } if *worker == id);
        let awaited = self.staging.values().filter(awaited).count();
        if worker.generation.more.borrow().len() + awaited >= MODEL_FILES_MAX {
            let refused = format!("a model may have {MODEL_FILES_MAX} further files at most");
            return self.tell(id, &ToWorker::File { name: name.to_owned(), refused: Some(refused) }, &[]);
        }
        let (file, sha256) = match &worker.generation.stored {
            None => (StageFile::Below { folder: worker.generation.source.folder.clone(), name: name.to_owned() }, None),
            Some(stored) => match stored.get(name).and_then(|blob| Some((self.store.blob_path(blob)?, blob))) {
                Some((path, blob)) => (StageFile::Path { path }, Some(blob.sha256.clone())),
                None => {
                    let refused = Some("it was not stored with this generation".to_owned());
                    return self.tell(id, &ToWorker::File { name: name.to_owned(), refused }, &[]);
                }
            },
        };
        let job = self.stager.submit(file, sha256.as_deref());
        self.staging.insert(job, Staging::File { worker: id, name: name.to_owned() });
    }

    fn on_staged_file(&mut self, id: u64, name: String, result: Result<Staged, String>) {
        let Some(worker) = self.workers.get(&id) else { return };
        match result {
            Ok(staged) => {
                let fd = Rc::new(staged.fd);
                let blob = Blob { sha256: staged.sha256, bytes: staged.bytes };
                worker.generation.more.borrow_mut().insert(name.clone(), FileCopy { fd: Rc::clone(&fd), blob });
                self.tell(id, &ToWorker::File { name, refused: None }, &[fd]);
            }
            Err(refused) => self.tell(id, &ToWorker::File { name, refused: Some(refused) }, &[]),
        }
    }

    /// A worker has loaded, checked and warmed its model.
    pub(super) fn on_loaded(&mut self, id: u64, loaded: Loaded) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if worker.stage == Stage::Retiring || worker.killed {
            // It was told to exit while it loaded, or was killed for what it said before.
            return;
        }
        if worker.loaded.is_some() || !worker.stage.may_become(Stage::Warm) {
            return self.kill_worker(id, "it said twice that it had loaded");
        }
        if let Err(error) = loaded.record_layout.check() {
            return self.kill_worker(id, &format!("its steps cannot be recorded: {error}"));
        }
        if let Err(error) = loaded.signature.check() {
            return self.kill_worker(id, &format!("its signature cannot be served: {error}"));
        }
        if loaded.state_bytes > STATE_BYTES_MAX {
            let what =
                format!("{} bytes of state per session are over the limit of {STATE_BYTES_MAX}", loaded.state_bytes);
            return self.kill_worker(id, &what);
        }
        worker.loaded = Some(loaded.clone());
        let Some(model_id) = worker.model else { return self.on_validated(id, &loaded) };
        let Some(model) = self.models.get(&model_id) else { return };
        if let Some(live) = &model.live {
            let old = &live.loaded.signature;
            if !old.same_layout(&loaded.signature) || old.stateful != loaded.signature.stateful {
                let what = format!(
                    "the signature of model {} would change; that is a new model: load it under another name",
                    model.name
                );
                return self.kill_worker(id, &what);
            }
        }
        self.prove(model_id, id, &loaded);
    }

    /// The operation under way has failed: what served before serves on.
    pub(super) fn fail_operation(&mut self, id: u64, what: &str) {
        let Some(model) = self.models.get_mut(&id) else { return };
        let Some(operation) = model.operation.take() else { return };
        tracing::warn!(model = %model.name, cause = operation.cause.name(), what, "refused");
        model.message = Some(what.to_owned());
        let next = model.next.take();
        let again = operation.cause == Cause::Restart && model.live.is_none() && self.phase != Phase::Draining;
        if model.live.is_none() && !again {
            model.state = ModelState::Failed;
        }
        if let Some(worker) = next {
            self.kill_worker(worker, "its generation is given up");
        }
        if !operation.gate.dry_run && self.phase != Phase::Draining {
            self.note_refused(id, &operation, what);
        }
        self.refuse_change(&operation, what);
        // What is configured and cannot be served may be mended where it lies.
        let _ = self.watch_folders(id);
        if again && let Some(model) = self.models.get(&id) {
            tracing::warn!(model = %model.name, what, "what served last cannot be served; the configured file is tried");
            let config = model.config.clone();
            return self.begin_generation(id, config, Order::new(Kind::Start, Cause::Start, None));
        }
        if operation.kind == Kind::Load {
            self.remove_model(id);
        } else {
            self.start_failed(id, what);
        }
        self.apply_wanted(id);
    }

    /// The operation under way has ended well.
    pub(super) fn finish_operation(&mut self, id: u64, from_generation: u32, swapped: &Swapped) {
        let Some(model) = self.models.get_mut(&id) else { return };
        let Some(operation) = model.operation.take() else { return };
        model.message = None;
        self.note_live(id, &operation, from_generation);
        let Some(model) = self.models.get(&id) else { return };
        let Some(live) = &model.live else { return };
        let (swap_us, state) = (swapped.swap_us, swapped.state);
        let judged = operation.verdict.clone().unwrap_or_else(|| verdict(&live.loaded, None, Vec::new(), state));
        let answer = ReloadAnswer {
            model: model.name.clone(),
            from_generation,
            to_generation: live.generation.number,
            sha256: live.generation.sha256.clone(),
            load_ms: live.loaded.load_us.saturating_add(live.loaded.warm_up_us) as f64 / 1000.0,
            swap_us,
            state: state.to_owned(),
            verdict: Verdict { live: true, state: state.to_owned(), ..judged },
            gap_us: swapped.gaps.clone(),
        };
        tracing::info!(
            model = %model.name, generation = answer.to_generation, from_generation, load_ms = answer.load_ms as u64, swap_us = swap_us as u64, state,
            took_ms = operation.began.elapsed().as_millis() as u64, cause = operation.cause.name(), "live"
        );
        if let Some(asker) = &operation.asker {
            if operation.kind == Kind::Load {
                let answer = self.model_answer(id);
                self.answer(asker, &answer);
            } else {
                self.answer(asker, &answer);
            }
        }
        self.watch_files(id);
        self.apply_wanted(id);
    }

    /// During the start, a model that must be there and cannot be loaded ends the daemon.
    fn start_failed(&mut self, id: u64, what: &str) {
        let Some(model) = self.models.get(&id) else { return };
        let fatal = self.phase == Phase::Starting && model.live.is_none() && !model.config.optional;
        if fatal && self.failure.is_none() {
            self.failure = Some(format!("model {}: {what}", model.name));
            self.begin_drain("a model could not be loaded");
        }
        self.look_whether_ready();
    }

    /// `inferctl validate`.
    pub(super) fn begin_validation(&mut self, asker: Asker, config: ModelConfig) {
        match resolve(&config.path, config.backend.as_deref()) {
            Err(errors) => self.refuse(&asker, code::REFUSED, &errors.to_string()),
            Ok(source) => match StageFile::of_model(&source) {
                Some(file) => {
                    self.notify_progress(&asker, "", "staging", None);
                    let job = self.stager.submit(file, source.manifest.sha256.as_deref());
                    self.staging.insert(job, Staging::Validate { asker, config, source });
                }
                None => self.launch_validation(asker, config, source, None),
            },
        }
    }

    fn launch_validation(&mut self, asker: Asker, config: ModelConfig, source: ModelSource, staged: Option<Staged>) {
        let role = WorkerRole {
            generation: 1,
            ticket: 1,
            baton_entry: 0,
            expect: None,
            validate_only: true,
            loading: Loading::Idle,
        };
        let spec = source.spec(&config, &self.config, role);
        let made = generation(1, config, Origin { source, stamp: None, stored: None }, staged);
        let number = self.new_id();
        // Entered first: a refusal finds its asker there.
        self.validations.insert(number, asker);
        let started = baton::create().map_err(|error| error.to_string()).and_then(|(_, fd)| {
            let purpose = Purpose::Validate(number);
            self.start_worker(Start { model: None, generation: made, purpose, ticket: 1, entry: 0 }, spec, &Rc::new(fd))
        });
        if let Err(what) = started
            && let Some(asker) = self.validations.remove(&number)
        {
            self.refuse(&asker, code::REFUSED, &what);
        }
    }

    fn tell_validation_progress(&mut self, number: u64, stage: &str) {
        if let Some(asker) = self.validations.get(&number).cloned() {
            self.notify_progress(&asker, "", stage, None);
        }
    }

    fn on_validated(&mut self, id: u64, loaded: &Loaded) {
        let Some(worker) = self.workers.get(&id) else { return };
        let Purpose::Validate(number) = worker.purpose else { return };
        let answer = ValidateAnswer {
            sha256: worker.generation.sha256.clone(),
            backend: loaded.backend.clone(),
            signature: loaded.signature.clone(),
            state_bytes: loaded.state_bytes,
            load_ms: loaded.load_us as f64 / 1000.0,
            warm_up_ms: loaded.warm_up_us as f64 / 1000.0,
            run_us_p50: loaded.run_us_p50,
            golden_difference_max: loaded.golden_difference_max,
        };
        if let Some(asker) = self.validations.remove(&number) {
            self.answer(&asker, &answer);
        }
        self.retire_worker(id);
    }

    /// A validation's worker is gone; without an answer so far, that is the answer.
    pub(super) fn on_validation_gone(&mut self, worker: &Worker, how: &str) {
        if let Purpose::Validate(number) = worker.purpose
            && let Some(asker) = self.validations.remove(&number)
        {
            self.refuse(&asker, code::REFUSED, how);
        }
    }

    /// A load has taken too long.
    pub(super) fn on_load_overdue(&mut self, id: u64) {
        let Some(worker) = self.workers.get(&id) else { return };
        if matches!(worker.stage, Stage::Loading | Stage::Checking | Stage::Warming) {
            let what = format!(
                "not loaded and warm after {} ms (it was {:?}); raise load_ms or use a smaller model",
                worker.generation.config.load_ms, worker.stage
            );
            self.kill_worker(id, &what);
        }
    }
}

/// Where a generation's files come from, and the file to stage with the hash that it must have.
type Found = (Origin, Option<(StageFile, Option<String>)>);

fn configured_origin(config: &ModelConfig) -> Result<Found, String> {
    let source = resolve(&config.path, config.backend.as_deref()).map_err(|errors| errors.to_string())?;
    let stamp = source.file.as_deref().and_then(Stamp::of);
    let file = StageFile::of_model(&source).map(|file| (file, source.manifest.sha256.clone()));
    Ok((Origin { source, stamp, stored: None }, file))
}

fn file_message(source: &ModelSource, what: &str) -> String {
    let path = source.file.as_ref().unwrap_or(&source.folder);
    format!("{}: {what}", path.display())
}
