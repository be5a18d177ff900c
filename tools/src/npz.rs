//! An npz file, written: it appears under its name whole, or not at all.
//!
//! Arrays are added one after the other into a temporary file beside the final one; [`NpzWriter::finish`] brings it to the
//! disk and renames it. Whatever goes wrong before leaves neither a half file nor the temporary one.

use crate::array::npy_header;
use crate::failure::Failure;
use inferd_client::DType;
use std::fs::Permissions;
use std::io::{BufWriter, Error, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// A file in the making.
pub struct NpzWriter {
    path: PathBuf,
    zip: ZipWriter<BufWriter<NamedTempFile>>,
}

impl NpzWriter {
    /// Begins a file that will be at `path`, and replaces what is there.
    ///
    /// # Errors
    /// [`Failure::Write`] when the folder cannot be written.
    pub fn create(path: &Path) -> Result<NpzWriter, Failure> {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // As any new file: what the umask leaves of rw for everybody.
        let mut builder = tempfile::Builder::new();
        builder.prefix(".inferctl.").suffix(".npz").permissions(Permissions::from_mode(0o666));
        let file = builder.tempfile_in(folder).map_err(|e| failed(path, e))?;
        Ok(NpzWriter { path: path.to_owned(), zip: ZipWriter::new(BufWriter::new(file)) })
    }

    /// Adds an array of row-major little-endian elements.
    ///
    /// # Errors
    /// [`Failure::Write`].
    pub fn array(&mut self, name: &str, dtype: DType, shape: &[u64], bytes: &[u8]) -> Result<(), Failure> {
        let large = bytes.len() as u64 >= u64::from(u32::MAX);
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated).large_file(large);
        self.zip.start_file(format!("{name}.npy"), options).map_err(|e| failed(&self.path, e.into()))?;
        let header = npy_header(dtype, shape);
        self.zip.write_all(&header).and_then(|()| self.zip.write_all(bytes)).map_err(|e| failed(&self.path, e))
    }

    /// Brings everything to the disk and gives the file its name; its bytes.
    ///
    /// # Errors
    /// [`Failure::Write`].
    pub fn finish(self) -> Result<u64, Failure> {
        let path = self.path;
        let done = self.zip.finish().map_err(Error::from).and_then(|buffer| {
            let file = buffer.into_inner().map_err(std::io::IntoInnerError::into_error)?;
            file.as_file().sync_all()?;
            let bytes = file.as_file().metadata()?.len();
            file.persist(&path).map_err(|e| e.error)?;
            Ok(bytes)
        });
        done.map_err(|e| failed(&path, e))
    }
}

fn failed(path: &Path, source: Error) -> Failure {
    Failure::Write { path: path.display().to_string(), source }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::array::Npz;

    fn files(folder: &Path) -> Vec<String> {
        let names = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        names.collect()
    }

    #[test]
    fn what_was_written_is_read_and_nothing_else_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.npz");
        let mut npz = NpzWriter::create(&path).unwrap();
        npz.array("in.x", DType::F32, &[2, 3], &[7; 24]).unwrap();
        npz.array("session", DType::U64, &[2], &[1; 16]).unwrap();
        let bytes = npz.finish().unwrap();
        assert_eq!(bytes, std::fs::metadata(&path).unwrap().len());
        let mut read = Npz::open(&path).unwrap();
        assert_eq!(read.names().into_iter().collect::<Vec<_>>(), ["in.x", "session"]);
        let x = read.read("in.x").unwrap();
        assert_eq!((x.shape, x.bytes), (vec![2, 3], vec![7; 24]));
        assert_eq!(files(dir.path()), ["d.npz"]);
    }

    #[test]
    fn a_file_that_was_not_finished_never_appears() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.npz");
        std::fs::write(&path, "what was there").unwrap();
        let mut npz = NpzWriter::create(&path).unwrap();
        npz.array("in.x", DType::F32, &[1], &[0; 4]).unwrap();
        drop(npz);
        assert_eq!(files(dir.path()), ["d.npz"]);
        assert_eq!(std::fs::read(&path).unwrap(), b"what was there");
        assert!(NpzWriter::create(&dir.path().join("no/such/d.npz")).is_err());
    }
}
