//! `.npy` arrays of f32, written by hand: enough to feed `inferctl call`.

/// The bytes of a little-endian f32 array in row-major order (numpy format 1.0).
#[must_use]
pub fn encode_f32(shape: &[u64], elements: &[f32]) -> Vec<u8> {
    let dims: String = shape.iter().map(|d| format!("{d}, ")).collect();
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({dims}), }}");
    // Magic, version and length take ten bytes; the data begins at a multiple of 64, after a line break.
    while !(10 + header.len() + 1).is_multiple_of(64) {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(elements.iter().flat_map(|e| e.to_le_bytes()));
    bytes
}

/// The elements of a one-dimensional or flattened f32 array that [`encode_f32`] or numpy wrote.
///
/// # Panics
/// When it is none.
#[must_use]
pub fn decode_f32(bytes: &[u8]) -> Vec<f32> {
    assert!(bytes.starts_with(b"\x93NUMPY\x01"), "not a .npy file of format 1");
    let header = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    assert!(String::from_utf8_lossy(&bytes[10..10 + header]).contains("'<f4'"), "not f32");
    bytes[10 + header..].chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_array_survives_the_way_through_a_file() {
        let bytes = encode_f32(&[1, 3], &[1.0, -2.5, 3.25]);
        assert!((bytes.len() - 12).is_multiple_of(64));
        assert_eq!(decode_f32(&bytes), [1.0, -2.5, 3.25]);
    }
}
