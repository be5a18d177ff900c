//! Making a generation: files staged, worker started, loaded, checked and warm.
//!
//! A model has at most one [`Operation`] at a time, whoever asked for it (the start, an operator, a
//! changed configuration); another mutating command meanwhile is answered BUSY. Whatever fails here
//! leaves the live generation serving and says why. Validations go the same way without a model.

use super::control::Asker;
use super::models::{Generation, Model, ModelState, Stage};
use super::workers::{Purpose, Start, Worker};
use super::{Phase, Supervisor};
use crate::config::ModelConfig;
use crate::manifest::{ModelSource, WorkerRole, resolve};
use crate::staging::{StageDone, StageFile, Staged};
use inferd_ipc::baton;
use inferd_ipc::control::{ReloadAnswer, ValidateAnswer, Verdict, code};
use inferd_ipc::limits::{MODEL_FILES_MAX, MODELS_MAX, REGION_BYTES_MAX};
use inferd_ipc::worker_records::{Loaded, ToWorker};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Instant;

/// Most bytes of one half of a state region.
const STATE_BYTES_MAX: u64 = REGION_BYTES_MAX / 4;

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
    /// Who waits for the answer; nobody at the start and after SIGHUP.
    pub asker: Option<Asker>,
    pub began: Instant,
}

/// What a staging job is for.
pub(super) enum Staging {
    /// The model file of a next generation.
    Model { model: u64, config: ModelConfig, source: ModelSource },
    /// The model file of a validation.
    Validate { asker: Asker, config: ModelConfig, source: ModelSource },
    /// A further file that a worker asked for.
    File { worker: u64, name: String },
}

fn generation(number: u32, config: ModelConfig, source: ModelSource, staged: Option<Staged>) -> Rc<Generation> {
    let (file, sha256) = staged.map_or((None, String::new()), |staged| (Some(Rc::new(staged.fd)), staged.sha256));
    Rc::new(Generation { number, config, source, file, sha256, more: RefCell::new(BTreeMap::new()) })
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
        let model = Model::new(config.clone(), kind == Kind::Start)?;
        let id = self.new_id();
        self.models.insert(id, model);
        self.begin_generation(id, config, kind, asker);
        Ok(id)
    }

    /// Begins the next generation of a model that has no operation under way.
    pub(super) fn begin_generation(&mut self, id: u64, config: ModelConfig, kind: Kind, asker: Option<Asker>) {
        let Some(model) = self.models.get_mut(&id) else { return };
        model.operation = Some(Operation { kind, asker, began: Instant::now() });
        tracing::info!(model = %model.name, path = %config.path.display(), ?kind, "making the next generation");
        self.tell_progress(id, "staging");
        let source = match resolve(&config.path, config.backend.as_deref()) {
            Ok(source) => source,
            Err(errors) => return self.fail_operation(id, &errors.to_string()),
        };
        match StageFile::of_model(&source) {
            Some(file) => {
                let job = self.stager.submit(file, source.manifest.sha256.as_deref());
                self.staging.insert(job, Staging::Model { model: id, config, source });
            }
            None => self.launch_next(id, config, source, None),
        }
    }

    /// A staging job has ended.
    pub(super) fn on_staged(&mut self, done: StageDone) {
        let Some(what) = self.staging.remove(&done.id) else { return };
        match (what, done.result) {
            (Staging::Model { model, config, source }, Ok(staged)) => {
                self.launch_next(model, config, source, Some(staged))
            }
            (Staging::Model { model, source, .. }, Err(error)) => {
                self.fail_operation(model, &file_message(&source, &error.to_string()));
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

    fn launch_next(&mut self, id: u64, config: ModelConfig, source: ModelSource, staged: Option<Staged>) {
        let Some(model) = self.models.get_mut(&id) else { return };
        if model.operation.is_none() {
            return;
        }
        let made = generation(model.generation_last + 1, config, source, staged);
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
        let role =
            WorkerRole { generation: generation.number, ticket, baton_entry: entry, expect, validate_only: false };
        let spec = generation.source.spec(&generation.config, &self.config.ipc, role);
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
            (Some(model), Purpose::Next) => self.tell_progress(model, name),
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
        let known = worker.generation.more.borrow().get(name).cloned();
        if let Some(fd) = known {
            return self.tell(id, &ToWorker::File { name: name.to_owned(), refused: None }, &[fd]);
        }
        let awaited = |staging: &&Staging| matches!(staging, Staging::File { worker, .. } if *worker == id);
        let awaited = self.staging.values().filter(awaited).count();
        if worker.generation.more.borrow().len() + awaited >= MODEL_FILES_MAX {
            let refused = format!("a model may have {MODEL_FILES_MAX} further files at most");
            return self.tell(id, &ToWorker::File { name: name.to_owned(), refused: Some(refused) }, &[]);
        }
        let folder = worker.generation.source.folder.clone();
        let job = self.stager.submit(StageFile::Below { folder, name: name.to_owned() }, None);
        self.staging.insert(job, Staging::File { worker: id, name: name.to_owned() });
    }

    fn on_staged_file(&mut self, id: u64, name: String, result: Result<Staged, String>) {
        let Some(worker) = self.workers.get(&id) else { return };
        match result {
            Ok(staged) => {
                let fd = Rc::new(staged.fd);
                worker.generation.more.borrow_mut().insert(name.clone(), Rc::clone(&fd));
                self.tell(id, &ToWorker::File { name, refused: None }, &[fd]);
            }
            Err(refused) => self.tell(id, &ToWorker::File { name, refused: Some(refused) }, &[]),
        }
    }

    /// A worker has loaded, checked and warmed its model.
    pub(super) fn on_loaded(&mut self, id: u64, loaded: Loaded) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if worker.loaded.is_some() || !worker.stage.may_become(Stage::Warm) {
            return self.kill_worker(id, "it said twice that it had loaded");
        }
        if let Err(error) = loaded.signature.check() {
            return self.kill_worker(id, &format!("its signature cannot be served: {error}"));
        }
        if loaded.state_bytes > STATE_BYTES_MAX {
            let what =
                format!("{} bytes of state per session are over the limit of {STATE_BYTES_MAX}", loaded.state_bytes);
            return self.kill_worker(id, &what);
        }
        worker.enter(Stage::Warm);
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
        self.swap_when_possible(model_id);
    }

    /// The operation under way has failed: what served before serves on.
    pub(super) fn fail_operation(&mut self, id: u64, what: &str) {
        let Some(model) = self.models.get_mut(&id) else { return };
        let Some(operation) = model.operation.take() else { return };
        tracing::warn!(model = %model.name, kind = ?operation.kind, what, "refused");
        model.message = Some(what.to_owned());
        let next = model.next.take();
        if model.live.is_none() {
            model.state = ModelState::Failed;
        }
        if let Some(asker) = &operation.asker {
            self.refuse(asker, code::REFUSED, what);
        }
        if let Some(worker) = next {
            self.kill_worker(worker, "its generation is given up");
        }
        if operation.kind == Kind::Load {
            self.remove_model(id);
        } else {
            self.start_failed(id, what);
        }
        self.apply_wanted(id);
    }

    /// The operation under way has ended well.
    pub(super) fn finish_operation(&mut self, id: u64, from_generation: u32, swap_us: f64, state: &str) {
        let Some(model) = self.models.get_mut(&id) else { return };
        let Some(operation) = model.operation.take() else { return };
        model.message = None;
        let Some(live) = &model.live else { return };
        let answer = ReloadAnswer {
            model: model.name.clone(),
            from_generation,
            to_generation: live.generation.number,
            sha256: live.generation.sha256.clone(),
            load_ms: live.loaded.load_us.saturating_add(live.loaded.warm_up_us) as f64 / 1000.0,
            swap_us,
            state: state.to_owned(),
            verdict: Verdict {
                accepted: true,
                live: true,
                reasons: Vec::new(),
                shadow: None,
                golden_difference_max: live.loaded.golden_difference_max,
                run_us_p50: live.loaded.run_us_p50,
                load_ms: live.loaded.load_us as f64 / 1000.0,
                warm_up_ms: live.loaded.warm_up_us as f64 / 1000.0,
                warm_up_runs: live.loaded.warm_up_runs,
                state: state.to_owned(),
            },
            gap_us: Vec::new(),
        };
        tracing::info!(
            model = %model.name, generation = answer.to_generation, from_generation, load_ms = answer.load_ms as u64, swap_us = swap_us as u64, state,
            took_ms = operation.began.elapsed().as_millis() as u64, kind = ?operation.kind, "live"
        );
        if let Some(asker) = &operation.asker {
            if operation.kind == Kind::Load {
                let answer = self.model_answer(id);
                self.answer(asker, &answer);
            } else {
                self.answer(asker, &answer);
            }
        }
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
                    self.notify_progress(&asker, "", "staging");
                    let job = self.stager.submit(file, source.manifest.sha256.as_deref());
                    self.staging.insert(job, Staging::Validate { asker, config, source });
                }
                None => self.launch_validation(asker, config, source, None),
            },
        }
    }

    fn launch_validation(&mut self, asker: Asker, config: ModelConfig, source: ModelSource, staged: Option<Staged>) {
        let role = WorkerRole { generation: 1, ticket: 1, baton_entry: 0, expect: None, validate_only: true };
        let spec = source.spec(&config, &self.config.ipc, role);
        let made = generation(1, config, source, staged);
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
            self.notify_progress(&asker, "", stage);
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

fn file_message(source: &ModelSource, what: &str) -> String {
    let path = source.file.as_ref().unwrap_or(&source.folder);
    format!("{}: {what}", path.display())
}
