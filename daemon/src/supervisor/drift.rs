//! Whether a model's live generation is what its configuration names.
//!
//! It is not after a reload from another path, after a rollback, or when the configured file was
//! replaced. The file's stamp (inode, size, times) is compared first; only a file that has changed since
//! it was read is hashed, on the store's thread, and `models` waits for that a moment.

use super::control::Asker;
use super::file_watch::Stamp;
use super::{Supervisor, Timer};
use crate::manifest::resolve;
use crate::staging::StageFile;
use inferd_ipc::limits::DRIFT_MS;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// What is known of a model's configured file.
#[derive(Debug, Default)]
pub(super) struct Drift {
    /// The file that was hashed, as it was then, and its hash.
    known: Option<(PathBuf, Stamp, Result<String, String>)>,
    /// The hash that is awaited, and of what.
    awaited: Option<(u64, PathBuf, Stamp)>,
}

/// An answer that waits for hashes.
#[derive(Debug)]
pub(super) struct Waiting {
    asker: Asker,
    jobs: BTreeSet<u64>,
}

impl Supervisor {
    /// `inferctl models`.
    pub(super) fn begin_models(&mut self, asker: Asker) {
        let ids: Vec<u64> = self.models.keys().copied().collect();
        let jobs: BTreeSet<u64> = ids.into_iter().filter_map(|id| self.look_for_drift(id)).collect();
        if jobs.is_empty() {
            return self.answer_models(&asker);
        }
        let number = self.new_id();
        self.drifting.insert(number, Waiting { asker, jobs });
        self.poller.after_ms(DRIFT_MS, Timer::Drift(number));
    }

    fn answer_models(&mut self, asker: &Asker) {
        let answers: Vec<_> = self.models.keys().map(|id| self.model_answer(*id)).collect();
        self.answer(asker, &answers);
    }

    /// Looks at a model's configured file; returns the job that hashes it, if one must.
    fn look_for_drift(&mut self, id: u64) -> Option<u64> {
        let model = self.models.get_mut(&id)?;
        let live = model.live.as_ref()?;
        let source = resolve(&model.config.path, model.config.backend.as_deref()).ok()?;
        let (path, file) = (source.file.clone()?, StageFile::of_model(&source)?);
        let stamp = Stamp::of(&path)?;
        let unread = live.generation.source.file.as_ref() == Some(&path) && live.generation.stamp == Some(stamp);
        if unread {
            model.drift.known = Some((path, stamp, Ok(live.generation.sha256.clone())));
            return None;
        }
        if model.drift.known.as_ref().is_some_and(|(p, s, _)| *p == path && *s == stamp) {
            return None;
        }
        if let Some((job, p, s)) = &model.drift.awaited
            && (p, s) == (&path, &stamp)
        {
            return Some(*job);
        }
        let job = self.store.hash(vec![file]);
        model.drift.awaited = Some((job, path, stamp));
        Some(job)
    }

    /// A configured file was hashed. Says whether the job was one of ours.
    pub(super) fn on_drift_hashed(&mut self, job: u64, result: &Result<Vec<String>, String>) -> bool {
        let awaits = |drift: &Drift| drift.awaited.as_ref().is_some_and(|(awaited, ..)| *awaited == job);
        let Some(model) = self.models.values_mut().find(|model| awaits(&model.drift)) else { return false };
        if let Some((_, path, stamp)) = model.drift.awaited.take() {
            let hash = result.clone().map(|hashes| hashes.concat());
            model.drift.known = Some((path, stamp, hash));
        }
        let mut ready = Vec::new();
        for (number, waiting) in &mut self.drifting {
            waiting.jobs.remove(&job);
            if waiting.jobs.is_empty() {
                ready.push(*number);
            }
        }
        for number in ready {
            self.on_drift_due(number);
        }
        true
    }

    /// Hashes have come, or will not come in time.
    pub(super) fn on_drift_due(&mut self, number: u64) {
        if let Some(waiting) = self.drifting.remove(&number) {
            self.answer_models(&waiting.asker);
        }
    }

    /// Why the live generation is not what the configuration names, and what to do.
    pub(super) fn drift(&self, id: u64) -> Option<String> {
        let model = self.models.get(&id)?;
        let live = model.live.as_ref()?;
        let (path, name) = (model.config.path.display(), &model.name);
        let remedy = format!("`inferctl reload {name} --path {path}` serves the configured file");
        let live_path = live.generation.config.path.display();
        match resolve(&model.config.path, model.config.backend.as_deref()) {
            Err(errors) => return Some(format!("the configured model cannot be read: {errors}")),
            // A backend without a file has no hash to compare; its manifest is looked at by a reload.
            Ok(source) if source.file.is_none() => {
                let elsewhere = live.generation.config.path != model.config.path;
                return elsewhere.then(|| format!("{live_path} is served, {path} is configured; {remedy}"));
            }
            Ok(_) => {}
        }
        match &model.drift.known {
            _ if model.drift.awaited.is_some() => {
                Some(format!("{path} has changed since it was read and is being hashed; ask again"))
            }
            Some((_, _, Ok(sha256))) if *sha256 == live.generation.sha256 => None,
            Some((_, _, Ok(sha256))) => {
                let short = |hash: &str| hash.chars().take(12).collect::<String>();
                let (found, served) = (short(sha256), short(&live.generation.sha256));
                Some(format!(
                    "the configured file has hash {found}, generation {} has {served}; {remedy}",
                    live.generation.number
                ))
            }
            Some((path, _, Err(what))) => Some(format!("{}: {what}", path.display())),
            None => None,
        }
    }
}
