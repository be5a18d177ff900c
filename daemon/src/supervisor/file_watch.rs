//! `watch = true`: a changed file is a reload, through the model's configured gate.
//!
//! inotify only says that something happened in a folder. What counts are the stamps of the model's own
//! files: they must not change for a while, and the files must have the same hashes twice, a while apart,
//! so that half a file is never loaded; a file that was renamed into place is whole by itself. What was
//! tried once and refused is not tried again until it changes.

use super::models::{Model, Wanted};
use super::poller::Token;
use super::{Supervisor, Timer};
use crate::manifest::{ModelSource, resolve};
use crate::staging::StageFile;
use inferd_ipc::limits::{WATCH_FILES_MAX, WATCH_SETTLE_MS};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What changes with a file: device, inode, size, modification and change in seconds and nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp([i128; 7]);

impl Stamp {
    /// The stamp of the file that a path leads to; none where it leads nowhere.
    pub fn of(path: &Path) -> Option<Stamp> {
        let m = std::fs::metadata(path).ok()?;
        let (dev, ino, size) = (i128::from(m.dev()), i128::from(m.ino()), i128::from(m.size()));
        let times = [m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()].map(i128::from);
        Some(Stamp([dev, ino, size, times[0], times[1], times[2], times[3]]))
    }
}

/// The stamps of all files of a model.
type Stamps = Vec<Option<Stamp>>;

fn stamps_of(paths: &[PathBuf]) -> Stamps {
    paths.iter().map(|path| Stamp::of(path)).collect()
}

/// How far the look at a model's changing files is.
#[derive(Debug, Default)]
pub(super) struct Changing {
    folders: BTreeSet<PathBuf>,
    armed: bool,
    /// The stamps at the last look.
    seen: Option<Stamps>,
    /// The stamps that were dealt with.
    settled: Option<Stamps>,
    /// A file was renamed into place: what is seen next is whole.
    renamed: bool,
    /// The hashes of the first look.
    first: Option<Vec<String>>,
    /// The job that hashes, and the stamps before it.
    hashing: Option<(u64, Stamps)>,
    /// What was tried last.
    tried: Option<Vec<String>>,
}

/// inotify, and which folder each of its watches is of.
#[derive(Default)]
pub(super) struct Files {
    inotify: Option<Inotify>,
    folders: Vec<(WatchDescriptor, PathBuf)>,
}

impl Files {
    fn watch(&mut self, folder: &Path) -> Result<(), String> {
        if self.folders.iter().any(|(_, known)| known == folder) {
            return Ok(());
        }
        let inotify = self.inotify.as_ref().ok_or("there is no inotify")?;
        let flags = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        let watch = inotify.add_watch(folder, flags).map_err(|errno| {
            format!(
                "{}: {}; raise fs.inotify.max_user_watches, or let inferd read the folder",
                folder.display(),
                errno.desc()
            )
        })?;
        self.folders.push((watch, folder.to_owned()));
        Ok(())
    }
}

/// The files of a model, and the folders in which a change of theirs shows: their own, and those of links on the way.
fn files_of(source: &ModelSource, model: &Model) -> (Vec<PathBuf>, Vec<StageFile>, BTreeSet<PathBuf>) {
    let (mut paths, mut stage) = (Vec::new(), Vec::new());
    if let (Some(path), Some(file)) = (source.file.clone(), StageFile::of_model(source)) {
        paths.push(path);
        stage.push(file);
    }
    if let Some(path) = source.manifest_path.clone() {
        paths.push(path.clone());
        stage.push(StageFile::Path { path });
    }
    let more = model.live.iter().flat_map(|live| live.generation.more.borrow().keys().cloned().collect::<Vec<_>>());
    for name in more {
        // What is served may have had more files than what comes.
        if !source.folder.join(&name).exists() {
            continue;
        }
        paths.push(source.folder.join(&name));
        stage.push(StageFile::Below { folder: source.folder.clone(), name });
    }
    let links = paths.iter().flat_map(|path| path.ancestors()).filter(|path| path.is_symlink()).map(Path::to_owned);
    let all: Vec<PathBuf> = paths.iter().cloned().chain(links).collect();
    let folders = all.iter().filter_map(|path| path.parent()).map(Path::to_owned).take(WATCH_FILES_MAX).collect();
    (paths, stage, folders)
}

/// What the live generation was made of, in the order of [`files_of`].
fn live_hashes(model: &Model) -> Option<Vec<String>> {
    let generation = &model.live.as_ref()?.generation;
    let file = generation.file.as_ref().map(|_| generation.sha256.clone());
    let manifest = generation.source.manifest_text.as_ref().map(|text| crate::store::text_blob(text).sha256);
    let more = generation.more.borrow();
    Some(file.into_iter().chain(manifest).chain(more.values().map(|copy| copy.blob.sha256.clone())).collect())
}

impl Supervisor {
    /// Begins to watch the files of a model, where that is configured.
    pub(super) fn watch_files(&mut self, id: u64) {
        let Some(stamps) = self.watch_folders(id) else { return };
        let Some(model) = self.models.get_mut(&id) else { return };
        // What was there when the watch began is no change: after a rollback or a restart it may well be what an operator
        // turned away from. But it may have changed since it was read.
        let read = model.live.as_ref().and_then(|live| live.generation.stamp);
        if model.changing.settled.is_none() && (read.is_none() || stamps.first() == Some(&read)) {
            model.changing.settled = Some(stamps);
        } else {
            self.touched(id, false);
        }
    }

    /// Watches the folders in which a change of a model's files shows. Returns the files' stamps, or none where the files
    /// cannot be named: then the nearest folder that there is on the way to them is watched, for they may come.
    pub(super) fn watch_folders(&mut self, id: u64) -> Option<Stamps> {
        let model = self.models.get(&id).filter(|model| model.config.watch)?;
        let path = &model.config.path;
        let named = resolve(path, model.config.backend.as_deref()).ok().map(|source| files_of(&source, model));
        let (stamps, folders) = match named {
            Some((paths, _, folders)) => (Some(stamps_of(&paths)), folders),
            None => (None, path.ancestors().filter(|folder| folder.is_dir()).take(2).map(Path::to_owned).collect()),
        };
        self.watch_each(id, folders);
        stamps
    }

    /// Watches these folders for a model.
    fn watch_each(&mut self, id: u64, folders: BTreeSet<PathBuf>) {
        let Some(model) = self.models.get_mut(&id) else { return };
        if self.files.inotify.is_none() {
            let made = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK);
            let made = made.and_then(|inotify| self.poller.add(&inotify, Token::Files).map(|()| inotify));
            match made {
                Ok(inotify) => self.files.inotify = Some(inotify),
                Err(errno) => {
                    let remedy = "raise fs.inotify.max_user_instances";
                    return tracing::warn!(model = %model.name, what = errno.desc(), remedy, "files are not watched");
                }
            }
        }
        for what in folders.iter().filter_map(|folder| self.files.watch(folder).err()) {
            tracing::warn!(what, "a folder is not watched");
        }
        model.changing.folders = folders;
    }

    /// inotify has something.
    pub(super) fn on_files(&mut self) {
        let Some(inotify) = &self.files.inotify else { return };
        let Ok(events) = inotify.read_events() else { return };
        let mut touched: BTreeSet<(u64, bool)> = BTreeSet::new();
        for event in events {
            let gone = AddWatchFlags::IN_IGNORED | AddWatchFlags::IN_MOVE_SELF;
            let overflow = event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW);
            let Some(at) = self.files.folders.iter().position(|(watch, _)| overflow || *watch == event.wd) else {
                continue;
            };
            let folder = self.files.folders[at].1.clone();
            if event.mask.intersects(gone) {
                // A folder that comes back under its name is watched again with the look that follows.
                self.files.folders.remove(at);
            }
            let moved = event.mask.contains(AddWatchFlags::IN_MOVED_TO);
            for (id, model) in &self.models {
                if model.config.watch && (overflow || model.changing.folders.contains(&folder)) {
                    let own = event.name.as_deref().is_some_and(|name| model.names(Path::new(name)));
                    touched.insert((*id, moved && own));
                }
            }
        }
        for (id, renamed) in touched {
            self.touched(id, renamed);
        }
    }

    fn touched(&mut self, id: u64, renamed: bool) {
        let Some(model) = self.models.get_mut(&id) else { return };
        model.changing.renamed |= renamed;
        if !model.changing.armed {
            model.changing.armed = true;
            self.poller.after_ms(WATCH_SETTLE_MS, Timer::Settle(id));
        }
    }

    /// Looks at the files of a model in which something happened.
    pub(super) fn on_settle(&mut self, id: u64) {
        let Some(model) = self.models.get_mut(&id) else { return };
        model.changing.armed = false;
        if !model.config.watch {
            return;
        }
        if model.changing.hashing.is_some() {
            // What has happened meanwhile may be in files that were hashed already.
            return self.touched(id, false);
        }
        let Ok(source) = resolve(&model.config.path, model.config.backend.as_deref()) else {
            // A manifest that is being written may be wrong for a moment, and a folder that is being replaced away: the next
            // event brings us back, unless it came before there was a watch.
            if self.watch_folders(id).is_some() {
                self.touched(id, false);
            }
            return;
        };
        let (paths, stage, folders) = files_of(&source, model);
        let links_changed = model.changing.folders != folders;
        // Before the look, which sees what came before it. A folder that was replaced is another one under the same name.
        self.watch_each(id, folders);
        let stamps = stamps_of(&paths);
        let Some(model) = self.models.get_mut(&id) else { return };
        let changing = &mut model.changing;
        if changing.settled.as_ref() == Some(&stamps) || stamps.contains(&None) {
            changing.renamed = false;
        } else if changing.seen.as_ref() == Some(&stamps) || changing.renamed {
            changing.hashing = Some((self.store.hash(stage), stamps));
        } else {
            changing.seen = Some(stamps);
            changing.first = None;
            self.touched(id, false);
        }
        if links_changed {
            self.touched(id, false);
        }
    }

    /// The files of a model were hashed.
    pub(super) fn on_change_hashed(&mut self, job: u64, result: Result<Vec<String>, String>) {
        let ours = |model: &Model| model.changing.hashing.as_ref().is_some_and(|(awaited, _)| *awaited == job);
        let Some((&id, model)) = self.models.iter_mut().find(|(_, model)| ours(model)) else { return };
        let Some((_, stamps)) = model.changing.hashing.take() else { return };
        let hashes = match result {
            Ok(hashes) => hashes,
            Err(what) => return self.not_hashed(id, stamps, &what),
        };
        let renamed = std::mem::take(&mut model.changing.renamed);
        if live_hashes(model).as_ref() == Some(&hashes) {
            model.changing.settled = Some(stamps);
            return;
        }
        if !renamed && model.changing.first.as_ref() != Some(&hashes) {
            model.changing.seen = Some(stamps);
            model.changing.first = Some(hashes);
            return self.touched(id, false);
        }
        model.changing.settled = Some(stamps);
        model.changing.first = None;
        if model.changing.tried.as_ref() == Some(&hashes) {
            return;
        }
        model.changing.tried = Some(hashes);
        tracing::info!(model = %model.name, path = %model.config.path.display(), "a watched file has changed");
        self.want(id, Wanted::Changed);
    }

    /// The files changed while they were read, or went: look again. Or they are such that nobody can read them: wait for a
    /// change.
    fn not_hashed(&mut self, id: u64, stamps: Stamps, what: &str) {
        let Some(model) = self.models.get_mut(&id) else { return };
        model.changing.first = None;
        let source = resolve(&model.config.path, model.config.backend.as_deref());
        let now = source.ok().map(|source| stamps_of(&files_of(&source, model).0));
        if now.as_ref() != Some(&stamps) {
            return self.touched(id, false);
        }
        tracing::warn!(model = %model.name, what, "a watched file cannot be read");
        model.changing.renamed = false;
        model.changing.settled = Some(stamps);
    }
}

impl Model {
    /// Whether a file of this name is the model's own.
    fn names(&self, name: &Path) -> bool {
        let configured = self.config.path.file_name().is_some_and(|own| own == name);
        let live = self.live.as_ref().map(|live| &live.generation.source);
        let file = live.is_some_and(|source| Path::new(&source.file_name).file_name() == Some(name.as_os_str()));
        configured || file
    }
}
