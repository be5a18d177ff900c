//! Writes npz files: what `numpy.savez` writes, uncompressed.

use inferd_ipc::signature::DType;

/// An array: its name, dtype, shape and row-major bytes.
pub type Named<'a> = (&'a str, DType, &'a [u64], &'a [u8]);

/// The bytes of an npz file.
///
/// # Panics
/// On a bf16 array: numpy has no such type.
#[must_use]
pub fn npz(arrays: &[Named<'_>]) -> Vec<u8> {
    let files = arrays.iter().map(|(name, dtype, shape, bytes)| (format!("{name}.npy"), npy(*dtype, shape, bytes)));
    archive(&files.collect::<Vec<_>>())
}

/// The bytes of a zip archive that stores its files as they are.
pub(super) fn archive(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, content) in files {
        let mut common = Vec::new();
        for v in [20u16, 0, 0, 0, 0x21] {
            common.extend_from_slice(&v.to_le_bytes());
        }
        for v in [crc32(content), content.len() as u32, content.len() as u32] {
            common.extend_from_slice(&v.to_le_bytes());
        }
        common.extend_from_slice(&(name.len() as u16).to_le_bytes());
        common.extend_from_slice(&[0, 0]);
        let at = file.len() as u32;
        file.extend_from_slice(b"PK\x03\x04");
        file.extend_from_slice(&common);
        file.extend_from_slice(name.as_bytes());
        file.extend_from_slice(content);
        directory.extend_from_slice(b"PK\x01\x02\x14\x00");
        directory.extend_from_slice(&common);
        directory.extend_from_slice(&[0; 10]);
        directory.extend_from_slice(&at.to_le_bytes());
        directory.extend_from_slice(name.as_bytes());
    }
    let (at, count) = (file.len() as u32, files.len() as u16);
    file.extend_from_slice(&directory);
    file.extend_from_slice(b"PK\x05\x06\0\0\0\0");
    file.extend_from_slice(&[count.to_le_bytes(), count.to_le_bytes()].concat());
    file.extend_from_slice(&[(directory.len() as u32).to_le_bytes(), at.to_le_bytes()].concat());
    file.extend_from_slice(&[0, 0]);
    file
}

fn npy(dtype: DType, shape: &[u64], bytes: &[u8]) -> Vec<u8> {
    let kind = match dtype {
        DType::F16 => "<f2",
        DType::F32 => "<f4",
        DType::F64 => "<f8",
        DType::I8 => "|i1",
        DType::I16 => "<i2",
        DType::I32 => "<i4",
        DType::I64 => "<i8",
        DType::U8 => "|u1",
        DType::U16 => "<u2",
        DType::U32 => "<u4",
        DType::U64 => "<u8",
        DType::Bool => "|b1",
        DType::Bf16 => panic!("numpy has no bf16"),
    };
    let dims: String = shape.iter().map(|d| format!("{d}, ")).collect();
    let mut header = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': ({dims}), }}");
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend_from_slice(&(header.len() as u16).to_le_bytes());
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(bytes);
    file
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, b| {
        (0..8).fold(crc ^ u32::from(*b), |c, _| if c & 1 == 1 { c >> 1 ^ 0xedb8_8320 } else { c >> 1 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::Recording;

    #[test]
    fn what_is_written_is_read_back() {
        let bytes: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0].iter().flat_map(|v| v.to_ne_bytes()).collect();
        let file = npz(&[
            ("in.x", DType::F32, &[2, 2], &bytes),
            ("out.y", DType::U16, &[2], &[1, 0, 2, 0]),
            ("reset", DType::Bool, &[2], &[0, 1]),
            ("ignored", DType::F64, &[], &[0; 8]),
        ]);
        let recording = Recording::read("r.npz", file).expect("reads");
        assert_eq!(recording.steps, 2);
        assert_eq!(recording.inputs["x"].step(1), &bytes[8..]);
        assert_eq!(recording.outputs["y"].bytes, [1, 0, 2, 0]);
        assert_eq!(recording.reset, [false, true]);
    }
}
