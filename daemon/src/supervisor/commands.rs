//! What operators can ask for, and what they are answered.
//!
//! Looking never waits, counters excepted, which workers are asked for. Mutating commands are one at a
//! time per model (BUSY otherwise), logged with the peer's uid, and answered with what happened; the
//! long ones are answered from where they end.

use super::control::Asker;
use super::gate::Gate;
use super::history::Cause;
use super::models::Model;
use super::operations::{Kind, Operation, Order, Staging};
use super::{Phase, Supervisor, Timer};
use crate::config::{KeepPrevious, ModelConfig, is_backend_name};
use inferd_ipc::attach::is_model_name;
use inferd_ipc::control::{
    Command, Done, ModelAnswer, Reload, SessionAnswer, StatsAnswer, StatusAnswer, VersionAnswer, code,
};
use inferd_ipc::layout::{ABI_MAJOR, ABI_MINOR};
use inferd_ipc::limits;
use inferd_ipc::limits::{VALIDATIONS_MAX, WORKER_STATS_MS};
use inferd_ipc::worker_records::{ToWorker, WorkerStats};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Somebody waits for workers' counters.
pub(super) struct StatsQuery {
    /// Who asked; nobody: the service manager is told.
    asker: Option<Asker>,
    missing: usize,
    answers: StatsAnswer,
}

fn is_mutating(command: &Command) -> bool {
    use Command::{Disconnect, Drain, Load, Log, Rollback, Unload, Validate};
    matches!(
        command,
        Disconnect { .. }
            | Drain {}
            | Load { .. }
            | Log { .. }
            | Command::Reload(_)
            | Rollback { .. }
            | Unload { .. }
            | Validate { .. }
    )
}

impl Supervisor {
    /// An operator asks for something.
    pub(super) fn on_command(&mut self, asker: Asker, command: Command) {
        if is_mutating(&command) {
            tracing::info!(uid = asker.uid, ?command, "command");
            if matches!(self.phase, Phase::Draining | Phase::Over) {
                return self.refuse(&asker, code::SHUTTING_DOWN, "the daemon is shutting down");
            }
        }
        match command {
            Command::Status {} => self.answer(&asker, &self.status_answer()),
            Command::Models {} => self.begin_models(asker),
            Command::Sessions {} => self.answer(&asker, &self.session_answers()),
            Command::Limits {} => {
                let table: BTreeMap<_, _> = limits::TABLE.iter().map(|l| (l.name.to_lowercase(), l.value)).collect();
                self.answer(&asker, &table);
            }
            Command::Stats { model } => self.begin_stats(asker, model.as_deref()),
            Command::Load { model, path, backend } => self.load(asker, &model, &path, backend),
            Command::Unload { model } => self.unload(&asker, &model),
            Command::Reload(asked) => self.reload(asker, &asked),
            Command::Rollback { model } => self.rollback(asker, &model),
            Command::History { model } => self.history(&asker, &model),
            Command::Dump { model, session } => self.dump(&asker, &model, session),
            Command::Validate { path, backend } => self.validate(asker, &path, backend),
            Command::Disconnect { session } => self.disconnect(&asker, session),
            Command::Drain {} => {
                let message = format!("draining {} sessions, then exiting", self.sessions.count());
                self.answer(&asker, &Done { message });
                self.begin_drain("asked by an operator");
            }
            Command::Log { level } => self.set_log_level(&asker, &level),
            Command::Version {} => self.answer(&asker, &version_answer()),
        }
    }

    /// The model of that name, if nothing else is done with it at the moment; else the asker has been told.
    fn idle_model(&mut self, asker: &Asker, name: &str) -> Option<u64> {
        let Some(id) = self.model_id(name) else {
            self.no_model(asker, name);
            return None;
        };
        let busy = self.models.get(&id).and_then(|model| model.operation.as_ref()).map(|operation| operation.kind);
        if let Some(kind) = busy {
            let what = format!("a {kind:?} of model {name} is under way; try again when it is over").to_lowercase();
            self.refuse(asker, code::BUSY, &what);
            return None;
        }
        Some(id)
    }

    fn load(&mut self, asker: Asker, name: &str, path: &str, backend: Option<String>) {
        if !is_model_name(name) {
            let most = limits::MODEL_NAME_BYTES_MAX;
            let what = format!(
                "{name:?} is no model name: 1 to {most} letters, digits, '.', '_' or '-', not first '.' or '-'"
            );
            return self.refuse(&asker, code::INVALID_PARAMS, &what);
        }
        if self.model_id(name).is_some() {
            let what = format!("model {name} is there already; reload it, or unload it first");
            return self.refuse(&asker, code::REFUSED, &what);
        }
        let Some(config) = self.operators_config(&asker, name, path, backend) else { return };
        if let Err(what) = self.add_model(config, Kind::Load, Some(asker.clone())) {
            self.refuse(&asker, code::LIMIT, &what);
        }
    }

    fn operators_config(
        &mut self,
        asker: &Asker,
        name: &str,
        path: &str,
        backend: Option<String>,
    ) -> Option<ModelConfig> {
        if let Some(bad) = backend.as_deref().filter(|backend| !is_backend_name(backend)) {
            let what = format!("{bad:?} is no backend's name: 1 to 32 lower-case letters, digits, '-' or '_'");
            self.refuse(asker, code::INVALID_PARAMS, &what);
            return None;
        }
        let mut config = ModelConfig::new(name, Path::new(path));
        config.backend = backend;
        Some(config)
    }

    fn unload(&mut self, asker: &Asker, name: &str) {
        let Some(id) = self.idle_model(asker, name) else { return };
        let sessions = self.sessions.count_of(id);
        self.note_gone(name);
        self.remove_model(id);
        self.answer(asker, &Done { message: format!("model {name} unloaded; {sessions} sessions ended") });
    }

    fn reload(&mut self, asker: Asker, asked: &Reload) {
        let Some(id) = self.idle_model(&asker, &asked.model) else { return };
        let Some(model) = self.models.get(&id) else { return };
        let gate = match Gate::new(&model.config.gate, Some(asked)) {
            Ok(gate) => gate,
            Err(what) => return self.refuse(&asker, code::INVALID_PARAMS, &what),
        };
        let path = asked.path.as_ref().map(PathBuf::from);
        let mut config = model.config.clone();
        let same = model.live.as_ref().map(|held| held.generation.config.path.clone());
        if let Some(path) = path.or(same) {
            config.path = path;
        }
        let order = Order { gate, ..Order::new(Kind::Reload, Cause::Reload, Some(asker)) };
        self.begin_generation(id, config, order);
    }

    fn rollback(&mut self, asker: Asker, name: &str) {
        let Some(id) = self.idle_model(&asker, name) else { return };
        let Some(model) = self.models.get_mut(&id) else { return };
        if model.swap.is_some() {
            return self.refuse(&asker, code::BUSY, &format!("model {name} is changing workers; try again"));
        }
        let order = Order::new(Kind::Rollback, Cause::Rollback, Some(asker.clone()));
        if let Some(kept) = &model.kept {
            model.operation = Some(Operation::begin(&order, &kept.generation.config));
            return self.begin_rollback(id);
        }
        let (config, stored) = (model.config.clone(), model.config.keep_previous != KeepPrevious::No);
        let entry = self.store.book(name).filter(|_| stored).and_then(|book| book.previous()).cloned();
        match entry {
            Some(entry) => self.begin_generation(id, config, Order { stored: Some(entry), ..order }),
            None => {
                let what = format!("model {name} keeps no previous generation; reload its file instead");
                self.refuse(&asker, code::REFUSED, &what);
            }
        }
    }

    fn validate(&mut self, asker: Asker, path: &str, backend: Option<String>) {
        let staged = self.staging.values().filter(|staging| matches!(staging, Staging::Validate { .. })).count();
        if self.validations.len() + staged >= VALIDATIONS_MAX {
            let what = format!("{VALIDATIONS_MAX} validations are under way; try again when one is over");
            return self.refuse(&asker, code::BUSY, &what);
        }
        if let Some(config) = self.operators_config(&asker, "validation", path, backend) {
            self.begin_validation(asker, config);
        }
    }

    fn disconnect(&mut self, asker: &Asker, session: u64) {
        if self.sessions.get(session).is_none() {
            return self.refuse(
                asker,
                code::NOT_FOUND,
                &format!("no session {session}; `inferctl sessions` lists them"),
            );
        }
        self.end_session(session, "disconnected by an operator");
        self.answer(asker, &Done { message: format!("session {session} ended") });
    }

    fn set_log_level(&mut self, asker: &Asker, level: &str) {
        if let Err(error) = self.logs.set_level(level) {
            return self.refuse(asker, code::INVALID_PARAMS, &error.to_string());
        }
        let workers: Vec<u64> = self.workers.keys().copied().collect();
        for worker in workers {
            self.tell(worker, &ToWorker::LogLevel { level: level.to_owned() }, &[]);
        }
        self.answer(asker, &Done { message: format!("log level is {level} now") });
    }

    fn begin_stats(&mut self, asker: Asker, model: Option<&str>) {
        if let Some(name) = model
            && self.model_id(name).is_none()
        {
            return self.refuse(&asker, code::NOT_FOUND, &format!("no model {name:?}; `inferctl models` lists them"));
        }
        self.ask_for_stats(Some(asker), model);
    }

    /// Asks the workers for their counters, for the status line.
    pub(super) fn begin_status_stats(&mut self) {
        self.ask_for_stats(None, None);
    }

    fn ask_for_stats(&mut self, asker: Option<Asker>, model: Option<&str>) {
        let wanted = self.models.values().filter(|found| model.is_none_or(|name| found.name == name));
        let workers: Vec<u64> = wanted.filter_map(Model::live_worker).collect();
        let query = self.new_id();
        self.stats.insert(query, StatsQuery { asker, missing: workers.len(), answers: StatsAnswer::new() });
        for worker in &workers {
            if let Some(found) = self.workers.get_mut(worker) {
                found.stats.push_back(query);
            }
            self.tell(*worker, &ToWorker::Stats, &[]);
        }
        if workers.is_empty() {
            self.finish_stats(query);
        } else {
            self.poller.after_ms(WORKER_STATS_MS, Timer::Stats(query));
        }
    }

    /// A worker's counters.
    pub(super) fn on_stats(&mut self, worker: u64, stats: WorkerStats) {
        let Some(found) = self.workers.get_mut(&worker) else { return };
        let name = found.generation.config.name.clone();
        if let Some(query) = found.stats.pop_front() {
            self.stats_arrived(query, Some((name, stats)));
        }
    }

    /// One worker less to wait for.
    pub(super) fn stats_arrived(&mut self, query: u64, stats: Option<(String, WorkerStats)>) {
        let Some(found) = self.stats.get_mut(&query) else { return };
        found.answers.extend(stats);
        found.missing = found.missing.saturating_sub(1);
        if found.missing == 0 {
            self.finish_stats(query);
        }
    }

    /// Answers with the counters that came.
    pub(super) fn finish_stats(&mut self, query: u64) {
        if let Some(StatsQuery { asker, answers, .. }) = self.stats.remove(&query) {
            match asker {
                Some(asker) => self.answer(&asker, &answers),
                None => self.show_status(&answers),
            }
        }
    }

    fn status_answer(&self) -> StatusAnswer {
        let mut models = BTreeMap::new();
        for model in self.models.values() {
            *models.entry(model.state.name().to_owned()).or_insert(0) += 1;
        }
        let state = match self.phase {
            Phase::Starting => "starting",
            Phase::Ready => "ready",
            Phase::Draining | Phase::Over => "draining",
        };
        StatusAnswer {
            state: state.to_owned(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s: self.started.elapsed().as_secs_f64(),
            ready_ms: self.ready_after.map(|after| after.as_secs_f64() * 1e3),
            models,
            sessions: self.sessions.count() as u64,
            runtime_dir: self.runtime_dir.display().to_string(),
            state_dir: self.store.dir().map(|dir| dir.display().to_string()),
            backing: self.config.ipc.backing,
            rss_bytes: rss_bytes("self"),
        }
    }

    fn session_answers(&self) -> Vec<SessionAnswer> {
        let answer = |(number, session): (u64, &super::sessions::Session<super::sessions::Parts>)| {
            let parts = &session.parts;
            SessionAnswer {
                session: number,
                model: self.models.get(&session.model).map_or_else(String::new, |model| model.name.clone()),
                uid: session.uid,
                pid: parts.pid,
                queue: parts.queue,
                slots: parts.geometry.slots,
                region_bytes: session.region_bytes,
                age_s: parts.ready_at.map_or(0.0, |at| at.elapsed().as_secs_f64()),
            }
        };
        self.sessions.iter().filter(|(_, session)| session.ready).map(answer).collect()
    }

    /// What is said of a model.
    pub(super) fn model_answer(&self, id: u64) -> Option<ModelAnswer> {
        let model = self.models.get(&id)?;
        let live = model.live.as_ref();
        let kept = self.kept(model);
        let worker = model.live_worker().and_then(|worker| self.workers.get(&worker));
        let live_path = live.map(|held| &held.generation.config.path).filter(|path| **path != model.config.path);
        Some(ModelAnswer {
            model: model.name.clone(),
            state: model.state.name().to_owned(),
            message: model.message.clone(),
            generation: model.generation(),
            kept_generation: kept.map(|(number, _)| number),
            kept: kept.map(|(_, how)| how.to_owned()),
            drift: self.drift(id),
            backend: live.map_or_else(String::new, |held| held.loaded.backend.clone()),
            path: model.config.path.display().to_string(),
            live_path: live_path.map(|path| path.display().to_string()),
            sha256: live.map_or_else(String::new, |held| held.generation.sha256.clone()),
            signature: live.map(|held| held.loaded.signature.clone()),
            queue: model.config.queue,
            slots: model.config.slots,
            sessions: self.sessions.ready_of(id).count() as u64,
            worker_pid: worker.map(super::workers::Worker::pid),
            worker_deaths: model.deaths,
            worker_rss_bytes: worker.map_or(0, |worker| rss_bytes(&worker.pid().to_string())),
            load_ms: live.map_or(0.0, |held| held.loaded.load_us.saturating_add(held.loaded.warm_up_us) as f64 / 1e3),
            warnings: worker.map_or_else(Vec::new, |worker| worker.warnings.clone()),
        })
    }
}

/// Resident memory of a process without shared memory.
fn rss_bytes(pid: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = |line: &str| line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok());
    let ours = status.lines().filter(|line| line.starts_with("RssAnon:") || line.starts_with("RssFile:"));
    ours.filter_map(kib).sum::<u64>() * 1024
}

fn version_answer() -> VersionAnswer {
    let kernel = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
    VersionAnswer {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        abi: format!("{ABI_MAJOR}.{ABI_MINOR}"),
        kernel: kernel.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_found_and_a_process_that_is_gone_has_none() {
        assert!(rss_bytes("self") > 100_000);
        assert_eq!(rss_bytes("0"), 0);
    }

    #[test]
    fn looking_is_not_mutating() {
        assert!(!is_mutating(&Command::Status {}) && !is_mutating(&Command::Stats { model: None }));
        assert!(is_mutating(&Command::Drain {}) && is_mutating(&Command::Rollback { model: "m".into() }));
    }
}
