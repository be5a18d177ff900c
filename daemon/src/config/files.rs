//! Which files make up the configuration.

use super::error::{ConfigError, Place};
use inferd_ipc::limits::CONFIG_DROPINS_MAX;
use std::env;
use std::path::{Path, PathBuf};

/// The default configuration file: `$INFERD_CONFIG`, else the user's own if it exists, else the system's.
#[must_use]
pub fn config_file() -> PathBuf {
    if let Some(file) = env::var_os("INFERD_CONFIG").filter(|f| !f.is_empty()) {
        return file.into();
    }
    let own = || {
        let absolute = |p: PathBuf| p.is_absolute().then_some(p);
        let config = env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).and_then(absolute);
        let home = || env::var_os("HOME").map(PathBuf::from).and_then(absolute).map(|h| h.join(".config"));
        Some(config.or_else(home)?.join("inferd/inferd.toml"))
    };
    let user = !nix::unistd::Uid::effective().is_root();
    own().filter(|file| user && file.exists()).unwrap_or_else(|| PathBuf::from("/etc/inferd/inferd.toml"))
}

/// The main file and its drop-ins, in the order in which they are read.
pub(super) fn list(path: Option<&Path>) -> (Vec<PathBuf>, Vec<ConfigError>) {
    let named = path.is_some() || env::var_os("INFERD_CONFIG").is_some_and(|f| !f.is_empty());
    let main = path.map_or_else(config_file, Path::to_path_buf);
    let folder = main.parent().map_or_else(PathBuf::new, |p| p.join("inferd.d"));
    let (mut dropins, errors) = drop_ins(&folder);
    let mut files = Vec::new();
    // A file that was asked for by name must be there; the error comes from reading it.
    if named || main.symlink_metadata().is_ok() {
        files.push(main);
    }
    files.append(&mut dropins);
    (files, errors)
}

fn drop_ins(folder: &Path) -> (Vec<PathBuf>, Vec<ConfigError>) {
    let error = |what: String, remedy: &str| vec![ConfigError::at(Place::file(folder), what, remedy)];
    let unreadable = "make it a folder that the user that runs inferd can read, or remove it";
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return (Vec::new(), Vec::new()),
        Err(e) => return (Vec::new(), error(format!("cannot be listed: {e}"), unreadable)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let file = match entry {
            Ok(entry) => entry.path(),
            Err(e) => return (Vec::new(), error(format!("cannot be listed: {e}"), unreadable)),
        };
        let hidden = file.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
        if !hidden && file.extension().is_some_and(|e| e == "toml") {
            files.push(file);
        }
        if files.len() > CONFIG_DROPINS_MAX {
            return (Vec::new(), error(format!("holds more than {CONFIG_DROPINS_MAX} drop-ins"), "merge some of them"));
        }
    }
    files.sort();
    (files, Vec::new())
}
