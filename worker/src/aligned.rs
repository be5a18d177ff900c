//! Bytes on a 64-byte boundary, as backends want their tensors.

use zerocopy::{FromBytes, Immutable, IntoBytes};

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// A fixed number of zeroed bytes that start on a cache line.
#[derive(Clone)]
pub struct AlignedBytes {
    lines: Vec<Line>,
    bytes: usize,
}

impl AlignedBytes {
    /// `bytes` zeros.
    #[must_use]
    pub fn zeroed(bytes: usize) -> AlignedBytes {
        AlignedBytes { lines: vec![Line([0; 64]); bytes.div_ceil(64)], bytes }
    }
}

impl std::ops::Deref for AlignedBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.lines.as_slice().as_bytes()[..self.bytes]
    }
}

impl std::ops::DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.lines.as_mut_slice().as_mut_bytes()[..self.bytes]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_start_on_a_line_and_have_the_length_asked_for() {
        for bytes in [0, 1, 64, 65, 4096] {
            let mut a = AlignedBytes::zeroed(bytes);
            assert_eq!(a.len(), bytes);
            assert_eq!(a.as_ptr() as usize % 64, 0);
            a.fill(7);
            assert!(a.iter().all(|b| *b == 7));
        }
    }
}
