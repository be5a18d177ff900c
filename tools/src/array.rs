//! Arrays of NumPy files: `.npy`, and `.npz` (a zip of those, deflated or not).
//!
//! An [`Array`] is row-major little-endian bytes, which is also how a slot holds a tensor, so that
//! feeding a model copies and never converts. Big-endian and Fortran-ordered files are put in order
//! while reading. Nothing is read that nobody asked for, and no length in a file is believed before
//! it was compared with [`ARRAY_BYTES_MAX`] and with the bytes that came.

use inferd_client::limits::ARRAY_BYTES_MAX;
use inferd_client::{DType, TensorSpec, npy};
use npyz::{DType as NpyDType, Endianness, NpyHeader, Order, TypeChar};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use zip::ZipArchive;

/// A tensor, or a tensor per step, in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// Element type.
    pub dtype: DType,
    /// Dimensions, outermost first.
    pub shape: Vec<u64>,
    /// Elements, row-major and little-endian.
    pub bytes: Vec<u8>,
}

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub enum ArrayError {
    /// The file system refused.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Not a NumPy file, or one that this program cannot use.
    #[error("{path}: {what}")]
    Format {
        /// Which file, and which array of it.
        path: String,
        /// What is wrong, and the remedy.
        what: String,
    },
}

impl Array {
    /// Elements in all.
    #[must_use]
    pub fn elements_count(&self) -> usize {
        self.bytes.len() / self.dtype.size_bytes()
    }

    /// `f32[16, 1, 45]`.
    #[must_use]
    pub fn describe(&self) -> String {
        format!("{}{:?}", self.dtype, self.shape)
    }
}

/// A `.npz` file, opened.
pub struct Npz {
    path: PathBuf,
    archive: ZipArchive<BufReader<File>>,
}

impl Npz {
    /// Opens the file and reads its table of contents.
    ///
    /// # Errors
    /// [`ArrayError`] when it is not there or not an npz file.
    pub fn open(path: &Path) -> Result<Npz, ArrayError> {
        let file = File::open(path).map_err(|source| ArrayError::Io { path: path.to_owned(), source })?;
        let archive = ZipArchive::new(BufReader::new(file)).map_err(|e| ArrayError::Format {
            path: path.display().to_string(),
            what: format!("not an npz file ({e}); write it with numpy.savez"),
        })?;
        Ok(Npz { path: path.to_owned(), archive })
    }

    /// Names of all arrays, sorted.
    #[must_use]
    pub fn names(&self) -> BTreeSet<String> {
        self.archive.file_names().filter_map(|n| Some(n.ok()?.strip_suffix(".npy")?.to_owned())).collect()
    }

    /// Reads one array.
    ///
    /// # Errors
    /// [`ArrayError`] when there is none of that name or its type is not a tensor's.
    pub fn read(&mut self, name: &str) -> Result<Array, ArrayError> {
        let label = format!("{}: {name}", self.path.display());
        let file = self
            .archive
            .by_name(&format!("{name}.npy"))
            .map_err(|e| ArrayError::Format { path: label.clone(), what: format!("cannot be read ({e})") })?;
        parse(file, label)
    }
}

/// Reads a `.npy` file.
///
/// # Errors
/// [`ArrayError`].
pub fn read_npy(path: &Path) -> Result<Array, ArrayError> {
    let file = File::open(path).map_err(|source| ArrayError::Io { path: path.to_owned(), source })?;
    parse(BufReader::new(file), path.display().to_string())
}

/// Writes a `.npy` file that NumPy opens; bf16, which NumPy lacks, as `V2` (view it with `ml_dtypes`).
///
/// # Errors
/// [`ArrayError::Io`].
pub fn write_npy(path: &Path, dtype: DType, shape: &[u64], bytes: &[u8]) -> Result<(), ArrayError> {
    let write = || -> std::io::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        file.write_all(&npy_header(dtype, shape))?;
        file.write_all(bytes)?;
        file.flush()
    };
    write().map_err(|source| ArrayError::Io { path: path.to_owned(), source })
}

/// What stands before the elements in a `.npy` file.
#[must_use]
pub fn npy_header(dtype: DType, shape: &[u64]) -> Vec<u8> {
    let dims: String = shape.iter().map(|d| format!("{d}, ")).collect();
    let dims = if shape.len() == 1 { dims.trim_end() } else { dims.trim_end_matches(", ") };
    let mut header = format!("{{'descr': '{}', 'fortran_order': False, 'shape': ({dims}), }}", descr(dtype));
    // Magic, version and length take 10 bytes; the data shall begin at a multiple of 64.
    let padding = 63 - (10 + header.len()) % 64;
    header.push_str(&" ".repeat(padding));
    header.push('\n');
    let length = (header.len() as u16).to_le_bytes();
    [b"\x93NUMPY\x01\x00".as_slice(), &length, header.as_bytes()].concat()
}

fn parse(mut from: impl Read, label: String) -> Result<Array, ArrayError> {
    let refuse = |what: String| ArrayError::Format { path: label.clone(), what };
    let header = npy::checked(&mut from)
        .and_then(NpyHeader::from_reader)
        .map_err(|e| refuse(format!("not an npy file ({e}); write it with numpy.save")))?;
    let (dtype, swap) = element_type(&header.dtype()).map_err(&refuse)?;
    let shape = header.shape().to_vec();
    let bytes_expected = shape.iter().fold(dtype.size_bytes() as u64, |a, d| a.saturating_mul(*d));
    if bytes_expected > ARRAY_BYTES_MAX {
        return Err(refuse(format!("{bytes_expected} bytes are over the limit of {ARRAY_BYTES_MAX}; split the file")));
    }
    let mut bytes = Vec::new();
    from.take(bytes_expected).read_to_end(&mut bytes).map_err(|e| refuse(format!("cannot be read ({e})")))?;
    if bytes.len() as u64 != bytes_expected {
        return Err(refuse(format!("ends after {} of {bytes_expected} bytes; the file is truncated", bytes.len())));
    }
    if swap {
        bytes.chunks_exact_mut(dtype.size_bytes()).for_each(<[u8]>::reverse);
    }
    if header.order() == Order::Fortran {
        bytes = row_major(&bytes, &shape, dtype.size_bytes());
    }
    Ok(Array { dtype, shape, bytes })
}

fn element_type(dtype: &NpyDType) -> Result<(DType, bool), String> {
    let NpyDType::Plain(plain) = dtype else {
        return Err(format!("holds records ({}), not a tensor", dtype.descr()));
    };
    let ours = match (plain.type_char(), plain.size_field()) {
        (TypeChar::Bool, 1) => DType::Bool,
        (TypeChar::Float, 2) => DType::F16,
        (TypeChar::Float, 4) => DType::F32,
        (TypeChar::Float, 8) => DType::F64,
        (TypeChar::Int, 1) => DType::I8,
        (TypeChar::Int, 2) => DType::I16,
        (TypeChar::Int, 4) => DType::I32,
        (TypeChar::Int, 8) => DType::I64,
        (TypeChar::Uint, 1) => DType::U8,
        (TypeChar::Uint, 2) => DType::U16,
        (TypeChar::Uint, 4) => DType::U32,
        (TypeChar::Uint, 8) => DType::U64,
        // What ml_dtypes.bfloat16 becomes when NumPy saves it.
        (TypeChar::RawData, 2) => DType::Bf16,
        _ => return Err(format!("elements of type {plain} cannot be a tensor's; convert them with astype")),
    };
    Ok((ours, plain.endianness() == Endianness::Big))
}

fn descr(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "<f4",
        DType::F64 => "<f8",
        DType::F16 => "<f2",
        DType::Bf16 => "|V2",
        DType::I8 => "|i1",
        DType::I16 => "<i2",
        DType::I32 => "<i4",
        DType::I64 => "<i8",
        DType::U8 => "|u1",
        DType::U16 => "<u2",
        DType::U32 => "<u4",
        DType::U64 => "<u8",
        DType::Bool => "|b1",
    }
}

fn row_major(column_major: &[u8], shape: &[u64], size: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(column_major.len());
    let mut index = vec![0u64; shape.len()];
    for _ in 0..column_major.len() / size {
        let (mut at, mut stride) = (0, 1);
        for (i, d) in index.iter().zip(shape) {
            at += i * stride;
            stride *= d;
        }
        let at = at as usize * size;
        out.extend_from_slice(&column_major[at..at + size]);
        for (i, d) in index.iter_mut().zip(shape).rev() {
            *i += 1;
            if *i < *d {
                break;
            }
            *i = 0;
        }
    }
    out
}

/// Whether an array of this dtype and shape may stand for the tensor: the same dtype, and the same
/// shape but for dimensions of 1 (a recording with or without its batch dimension has the same bytes).
///
/// # Errors
/// What does not fit, and the remedy.
pub fn fits(tensor: &TensorSpec, dtype: DType, shape: &[u64]) -> Result<(), String> {
    if dtype != tensor.dtype {
        let numpy = descr(tensor.dtype);
        return Err(format!(
            "is {dtype}, the model's {:?} is {}; nothing is converted silently: save it as dtype {numpy:?}",
            tensor.name, tensor.dtype
        ));
    }
    let squeezed = |s: &[u64]| s.iter().copied().filter(|d| *d != 1).collect::<Vec<_>>();
    if squeezed(shape) != squeezed(&tensor.shape) {
        return Err(format!("has shape {shape:?}, the model's {:?} has {:?}", tensor.name, tensor.shape));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn f32s(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    fn npy(header: &str, data: &[u8]) -> Vec<u8> {
        let mut out = b"\x93NUMPY\x01\x00".to_vec();
        out.extend_from_slice(&(header.len() as u16).to_le_bytes());
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(data);
        out
    }

    fn parsed(header: &str, data: &[u8]) -> Result<Array, ArrayError> {
        parse(&npy(header, data)[..], "t.npy".into())
    }

    #[test]
    fn what_is_written_is_read_back_for_every_dtype_and_rank() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npy");
        for dtype in DType::ALL {
            for shape in [vec![], vec![3], vec![2, 3], vec![2, 1, 3], vec![0, 4]] {
                let count: u64 = shape.iter().product();
                let bytes: Vec<u8> = (0..count as usize * dtype.size_bytes()).map(|i| i as u8 % 2).collect();
                write_npy(&path, dtype, &shape, &bytes).unwrap();
                assert_eq!((std::fs::metadata(&path).unwrap().len() as usize - bytes.len()) % 64, 0);
                assert_eq!(read_npy(&path).unwrap(), Array { dtype, shape, bytes });
            }
        }
    }

    #[test]
    fn fortran_order_and_big_endian_are_put_in_order() {
        let want = Array { dtype: DType::F32, shape: vec![2, 3], bytes: f32s(&[1., 2., 3., 4., 5., 6.]) };
        let fortran = f32s(&[1., 4., 2., 5., 3., 6.]);
        assert_eq!(parsed("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }\n", &fortran).unwrap(), want);
        let big: Vec<u8> = (1..=6u8).flat_map(|v| f32::from(v).to_be_bytes()).collect();
        assert_eq!(parsed("{'descr': '>f4', 'fortran_order': False, 'shape': (2, 3), }\n", &big).unwrap(), want);
    }

    #[test]
    fn damaged_and_foreign_files_are_refused_with_a_reason() {
        let told = |header: &str, data: &[u8]| parsed(header, data).unwrap_err().to_string();
        let short = told("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n", &[0; 7]);
        assert_eq!(short, "t.npy: ends after 7 of 8 bytes; the file is truncated");
        let text = told("{'descr': '<U5', 'fortran_order': False, 'shape': (1,), }\n", &[0; 20]);
        assert!(text.contains("'<U5'") || text.contains("<U5"), "{text}");
        let huge = told("{'descr': '<f8', 'fortran_order': False, 'shape': (4294967296, 100), }\n", &[]);
        assert!(huge.contains("over the limit"), "{huge}");
        let wrap = told("{'descr': '<f8', 'fortran_order': False, 'shape': (4294967296, 4294967296), }\n", &[]);
        assert!(wrap.contains("impossible") || wrap.contains("limit") || wrap.contains("ends after"), "{wrap}");
        assert!(parse(&b"not numpy at all"[..], "x".into()).unwrap_err().to_string().contains("numpy.save"));
    }

    #[test]
    fn an_npz_file_gives_its_arrays_by_name_and_ignores_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("g.npz");
        write_npz(&path, &[("in.obs", "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1, 2), }\n", &[0; 16])]);
        let mut npz = Npz::open(&path).unwrap();
        assert_eq!(npz.names().into_iter().collect::<Vec<_>>(), ["in.obs"]);
        assert_eq!(npz.read("in.obs").unwrap().describe(), "f32[2, 1, 2]");
        assert!(npz.read("in.none").unwrap_err().to_string().contains("in.none"));
        std::fs::write(&path, b"PK nothing").unwrap();
        assert!(Npz::open(&path).err().unwrap().to_string().contains("not an npz file"));
    }

    fn write_npz(path: &Path, arrays: &[(&str, &str, &[u8])]) {
        let mut zip = zip::ZipWriter::new(File::create(path).unwrap());
        for (name, header, data) in arrays {
            zip.start_file(format!("{name}.npy"), zip::write::SimpleFileOptions::default()).unwrap();
            zip.write_all(&npy(header, data)).unwrap();
        }
        zip.finish().unwrap();
    }

    #[test]
    fn a_batch_dimension_more_or_less_fits_and_another_dtype_never_does() {
        let obs = TensorSpec::new("obs", DType::F32, &[1, 45]);
        assert_eq!(fits(&obs, DType::F32, &[1, 45]), Ok(()));
        assert_eq!(fits(&obs, DType::F32, &[45]), Ok(()));
        assert!(fits(&obs, DType::F32, &[44]).unwrap_err().contains("has shape [44]"));
        assert!(fits(&obs, DType::F64, &[1, 45]).unwrap_err().contains("nothing is converted"));
    }
}
