//! Files under the hash of their bytes.
//!
//! A blob appears under its name only when all of it is on the disk: written to a file of another name,
//! fsync, rename, fsync of the folder. Who reads one computes its hash.

use super::{Blob, ToKeep};
use inferd_ipc::failpoint;
use inferd_ipc::limits::COPY_CHUNK_BYTES;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Ends the name of a file that is being written.
const PARTIAL: &str = ".partial";

/// Where the blob of this hash lies.
pub fn path(dir: &Path, sha256: &str) -> PathBuf {
    dir.join("blobs").join(sha256)
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

/// The hash of some bytes, in lower-case hexadecimal.
pub fn hash(bytes: &[u8]) -> String {
    let mut hash = Sha256::new();
    hash.update(bytes);
    hex(hash)
}

/// Whether the blob is there, whole and undamaged.
fn is_there(path: &Path, blob: &Blob) -> bool {
    let Ok(mut file) = File::open(path) else { return false };
    if file.metadata().map_or(true, |meta| meta.len() != blob.bytes) {
        return false;
    }
    let (mut hash, mut chunk) = (Sha256::new(), vec![0; COPY_CHUNK_BYTES]);
    loop {
        match file.read(&mut chunk) {
            Ok(0) => return hex(hash) == blob.sha256,
            Ok(got) => hash.update(&chunk[..got]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
}

/// Stores a file, unless it is there already.
///
/// # Errors
/// A sentence with the remedy; nothing is left behind then.
pub fn keep(dir: &Path, file: ToKeep) -> Result<(), String> {
    let path = path(dir, &file.blob.sha256);
    if is_there(&path, &file.blob) {
        return Ok(());
    }
    let partial = path.with_extension(&PARTIAL[1..]);
    let written = copy(&File::from(file.fd), file.blob.bytes, &partial).and_then(|()| rename(&partial, &path));
    written.map_err(|error| {
        let _ = fs::remove_file(&partial);
        let remedy = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "make room there, or lower store_bytes",
            _ => "let the user that runs inferd write there, or choose another with --state-dir",
        };
        format!("{}: {error}; {remedy}", path.display())
    })
}

/// The position of `from` is shared with workers, so that it is read by offset.
fn copy(from: &File, bytes: u64, to: &Path) -> io::Result<()> {
    let mut to = File::options().create(true).truncate(true).write(true).mode(0o400).open(to)?;
    failpoint!("daemon.store.opened", Err(io::ErrorKind::StorageFull.into()));
    let (mut chunk, mut at) = (vec![0; COPY_CHUNK_BYTES], 0);
    while at < bytes {
        let got = from.read_at(&mut chunk, at)?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        to.write_all(&chunk[..got])?;
        at += got as u64;
    }
    to.sync_all()
}

/// Renames a written file into place, so that it survives a power cut.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    // First of all, so that a want of descriptors is known before the file is in its place.
    let folder = to.parent().map(File::open).transpose()?;
    failpoint!("daemon.store.renaming");
    fs::rename(from, to)?;
    failpoint!("daemon.store.renamed");
    folder.map_or(Ok(()), |folder| folder.sync_all())
}

/// Writes a small text whole, or not at all.
///
/// # Errors
/// A sentence with the remedy; the file is as it was.
pub fn write_text(path: &Path, text: &str) -> Result<(), String> {
    let partial = path.with_extension(&PARTIAL[1..]);
    let write = || {
        let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&partial)?;
        failpoint!("daemon.store.text", Err(io::ErrorKind::StorageFull.into()));
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        rename(&partial, path)
    };
    write().map_err(|error: io::Error| {
        let _ = fs::remove_file(&partial);
        format!("{}: {error}; make room there and let the user that runs inferd write there", path.display())
    })
}

/// Reads a small blob, and verifies it.
///
/// # Errors
/// A sentence: gone, too long, damaged.
pub fn read_text(path: &Path, blob: &Blob, most: u64) -> Result<String, String> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(most + 1).read_to_end(&mut bytes));
    read.map_err(|error| format!("{}: {error}; reload the model from its file", path.display()))?;
    if hash(&bytes) != blob.sha256 {
        return Err(format!("{} is damaged: its hash is another; reload the model from its file", path.display()));
    }
    String::from_utf8(bytes).map_err(|_| format!("{} is not UTF-8", path.display()))
}

/// Removes every blob that is not wanted, and what an interrupted write left.
pub fn sweep(dir: &Path, wanted: &BTreeSet<String>) {
    for found in fs::read_dir(dir.join("blobs")).into_iter().flatten().flatten() {
        let unwanted = found.file_name().to_str().is_none_or(|name| !wanted.contains(name));
        if unwanted && let Err(error) = fs::remove_file(found.path()) {
            tracing::warn!(file = %found.path().display(), %error, "a stored file cannot be removed");
        }
    }
}
