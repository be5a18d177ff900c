//! What is written down of every generation, and taken up again: after a restart, and by a rollback.
//!
//! An attempt is written when it has ended, well or not; a generation that goes live brings its files to
//! the store. A restart serves what served last, under its number, unless the configuration names another
//! place since; where that cannot be, it serves what is configured.

use super::models::{Generation, Model};
use super::operations::Operation;
use super::{Supervisor, clock_ns};
use crate::config::{KeepPrevious, ModelConfig};
use crate::store::{Blob, Entry, StoredFiles, ToKeep};
use inferd_ipc::control::{HistoryEntry, HistoryVerdict, Verdict, code};
use inferd_ipc::worker_records::Loaded;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Why a generation was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// The daemon starts, and nothing is stored.
    Start,
    /// The daemon starts, and serves what served last.
    Restart,
    /// `inferctl load`.
    Load,
    /// `inferctl reload`.
    Reload,
    /// `inferctl rollback`.
    Rollback,
    /// A watched file has changed.
    Watch,
    /// The configuration has changed.
    Configuration,
}

impl Cause {
    /// The name used in answers.
    pub fn name(self) -> &'static str {
        match self {
            Cause::Start => "start",
            Cause::Restart => "restart",
            Cause::Load => "load",
            Cause::Reload => "reload",
            Cause::Rollback => "rollback",
            Cause::Watch => "watch",
            Cause::Configuration => "configuration",
        }
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn in_short(verdict: Option<&Verdict>, loaded: Option<&Loaded>, refused: Option<&str>) -> HistoryVerdict {
    let report = verdict.and_then(|verdict| verdict.shadow.as_ref());
    let largest = |report: &inferd_ipc::worker_records::ShadowReport| {
        report.outputs.values().map(|difference| difference.max).reduce(f64::max)
    };
    let gate = verdict.map(|verdict| verdict.reasons.clone()).unwrap_or_default();
    HistoryVerdict {
        accepted: refused.is_none(),
        reasons: if gate.is_empty() { refused.map(str::to_owned).into_iter().collect() } else { gate },
        steps: report.map(|report| report.steps),
        difference_max: report.and_then(largest),
        run_us_p99: report.map(|report| report.new_run.p99_ns as f64 / 1000.0),
        load_ms: loaded.map_or(0.0, |l| l.load_us.saturating_add(l.warm_up_us) as f64 / 1000.0),
    }
}

/// What a generation was made of, and the descriptors of it.
fn files_of(generation: &Generation) -> (StoredFiles, Vec<(Blob, Rc<OwnedFd>)>) {
    let source = &generation.source;
    let mut fds = Vec::new();
    let model = generation.file.as_ref().map(|fd| {
        let blob = Blob { sha256: generation.sha256.clone(), bytes: generation.bytes };
        fds.push((blob.clone(), Rc::clone(fd)));
        blob
    });
    let more = generation.more.borrow();
    for copy in more.values() {
        fds.push((copy.blob.clone(), Rc::clone(&copy.fd)));
    }
    let files = StoredFiles {
        manifest: source.manifest_text.as_ref().map(|text| crate::store::text_blob(text)),
        model,
        file: source.file.clone(),
        file_name: source.file_name.clone(),
        file_named: source.file_named,
        folder: source.folder.clone(),
        more: more.iter().map(|(name, copy)| (name.clone(), copy.blob.clone())).collect(),
    };
    (files, fds)
}

/// A sealed copy of the manifest's text, as the store takes its files.
fn manifest_fd(text: &str) -> std::io::Result<OwnedFd> {
    crate::staging::text_into_memory("model.toml", text).map_err(std::io::Error::other)
}

impl Supervisor {
    fn entry(&self, model: &Model, operation: &Operation, now_unix_ms: u64) -> Entry {
        let configured = self.config.models.get(&model.name).map(|config| config.path.clone());
        let path = operation.path.display().to_string();
        Entry {
            shown: HistoryEntry {
                generation: 0,
                sha256: operation.sha256.clone(),
                path,
                backend: operation.backend.clone(),
                at_unix_ms: now_unix_ms,
                went_live_unix_ms: None,
                by_uid: operation.asker.as_ref().map(|asker| asker.uid),
                cause: operation.cause.name().to_owned(),
                verdict: HistoryVerdict::default(),
                ended: None,
                ended_unix_ms: None,
                stored: false,
            },
            configured_path: configured.filter(|_| model.configured),
            files: None,
            key: 0,
        }
    }

    /// Writes a refused attempt down.
    pub(super) fn note_refused(&mut self, id: u64, operation: &Operation, what: &str) {
        let Some(model) = self.models.get(&id) else { return };
        let mut entry = self.entry(model, operation, unix_ms());
        entry.shown.verdict = in_short(operation.verdict.as_ref(), None, Some(what));
        let name = model.name.clone();
        self.store.refused(&name, entry);
    }

    /// Writes down that the live generation went live by this operation, and has its files stored.
    pub(super) fn note_live(&mut self, id: u64, operation: &Operation, from_generation: u32) {
        let Some(model) = self.models.get(&id) else { return };
        let Some(live) = &model.live else { return };
        let now = unix_ms();
        let number = live.generation.number;
        let mut entry = self.entry(model, operation, now);
        let (files, fds) = files_of(&live.generation);
        entry.shown.generation = number;
        entry.shown.sha256 = live.generation.sha256.clone();
        entry.shown.backend = live.generation.source.backend.clone();
        entry.shown.path = live.generation.config.path.display().to_string();
        entry.shown.went_live_unix_ms = Some(now);
        entry.shown.verdict = in_short(operation.verdict.as_ref(), Some(&live.loaded), None);
        let manifest = live.generation.source.manifest_text.as_deref().map(manifest_fd);
        let manifest = files.manifest.clone().zip(manifest).map(|(blob, fd)| fd.map(|fd| ToKeep { blob, fd }));
        let others = fds.into_iter().map(|(blob, fd)| Ok(ToKeep { blob, fd: fd.try_clone()? }));
        let keep: std::io::Result<Vec<ToKeep>> = manifest.into_iter().chain(others).collect();
        let keep = match keep {
            Ok(keep) => {
                entry.files = Some(files);
                keep
            }
            Err(error) => {
                tracing::warn!(model = %model.name, %error, "a generation is not stored; raise the limit on descriptors");
                Vec::new()
            }
        };
        let how = match operation.cause {
            Cause::Rollback => format!("rolled back to {number}"),
            Cause::Restart if from_generation == 0 => "the daemon was restarted and serves it again".to_owned(),
            Cause::Start if from_generation == 0 => format!("the daemon was restarted and serves {number}"),
            _ => format!("replaced by {number}"),
        };
        let name = model.name.clone();
        self.store.went_live(&name, entry, &how, keep);
    }

    /// `inferctl history`.
    pub(super) fn history(&mut self, asker: &super::control::Asker, name: &str) {
        if self.model_id(name).is_none() && self.store.book(name).is_none() {
            return self.no_model(asker, name);
        }
        let entries: Vec<HistoryEntry> =
            self.store.book(name).into_iter().flat_map(|book| book.shown().cloned()).collect();
        self.answer(asker, &entries);
    }

    /// What served last under this name, if a restart shall serve it again.
    pub(super) fn restorable(&self, config: &ModelConfig) -> Option<Entry> {
        let entry = self.store.book(&config.name)?.live()?;
        let name = &config.name;
        if entry.configured_path.as_ref() != Some(&config.path) {
            tracing::info!(model = %name, path = %config.path.display(), "the configuration names another path than before; it is served");
            return None;
        }
        if !entry.shown.stored {
            tracing::warn!(model = %name, generation = entry.shown.generation, "what served last is not in the store; the configured file is served");
            return None;
        }
        Some(entry.clone())
    }

    /// The number and the way of the generation that a rollback would take.
    pub(super) fn kept(&self, model: &Model) -> Option<(u32, &'static str)> {
        if let Some(held) = &model.kept {
            return Some((held.generation.number, "alive"));
        }
        if model.config.keep_previous == KeepPrevious::No {
            return None;
        }
        self.store.book(&model.name)?.previous().map(|entry| (entry.shown.generation, "disk"))
    }

    /// The store's thread has done something.
    pub(super) fn on_store(&mut self) {
        for (job, result) in self.store.take_done() {
            if !self.on_drift_hashed(job, &result) {
                self.on_change_hashed(job, result);
            }
        }
    }

    /// Nobody serves this name any more.
    pub(super) fn note_gone(&mut self, name: &str) {
        self.store.ended(name, "unloaded", unix_ms());
    }

    /// A model that nobody knows: says which there are.
    pub(super) fn no_model(&mut self, asker: &super::control::Asker, name: &str) {
        let names: Vec<&str> = self.models.values().map(|model| model.name.as_str()).collect();
        let what = format!("no model {name:?}; this daemon serves: {}", names.join(", "));
        self.refuse(asker, code::NOT_FOUND, &what);
    }

    /// The gap of every session in a swap that has just been committed.
    pub(super) fn gaps(
        &self,
        id: u64,
        from_generation: u32,
        granted_ns: u64,
        taken_ns: u64,
    ) -> Vec<inferd_ipc::control::SessionGap> {
        let taken_ns = if taken_ns == 0 { clock_ns() } else { taken_ns };
        let gap = |(number, session): (u64, &super::sessions::Session<super::sessions::Parts>)| {
            let last = super::recovery::last_done_ns(&session.parts, from_generation).unwrap_or(0);
            let gap_ns = taken_ns.saturating_sub(last.max(granted_ns).min(taken_ns));
            inferd_ipc::control::SessionGap { session: number, gap_us: gap_ns as f64 / 1000.0 }
        };
        self.sessions.ready_of(id).map(gap).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_attempt_says_why_in_the_gates_words_or_in_its_own() {
        let verdict = Verdict {
            accepted: false,
            live: false,
            reasons: vec!["output action differs".into()],
            shadow: None,
            golden_difference_max: None,
            run_us_p50: 1.0,
            load_ms: 1.0,
            warm_up_ms: 1.0,
            warm_up_runs: 1,
            state: "none".into(),
        };
        let short = in_short(Some(&verdict), None, Some("the gate refused it: output action differs"));
        assert_eq!((short.accepted, short.reasons), (false, vec!["output action differs".to_owned()]));
        assert_eq!(in_short(None, None, Some("no such file")).reasons, ["no such file"]);
        assert!(in_short(None, None, None).accepted);
    }
}
