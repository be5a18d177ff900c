//! What the header of a `.npy` array may be, looked at before a parser sees it.
//!
//! Recordings cross between `inferctl` and workers as npz files, and may be damaged or made up. Parsers of that format allocate
//! what the header's length says, recurse as deep as it nests and multiply the dimensions unchecked. [`checked`] refuses a header
//! that could make them: it reads the header, and hands on a reader that begins with it.

use crate::limits::{NPY_DEPTH_MAX, NPY_ELEMENTS_MAX, NPY_HEADER_BYTES_MAX};
use std::io::{Chain, Cursor, Error, ErrorKind, Read, Result};

/// Magic and version.
const PREFIX: usize = 8;

/// A reader of the same array, whose header is harmless.
///
/// # Errors
/// Those of `from`; a header that is too long, nests too deep, holds what no array's does, or names too many elements.
pub fn checked<R: Read>(mut from: R) -> Result<Chain<Cursor<Vec<u8>>, R>> {
    let mut bytes = vec![0; PREFIX + 2];
    from.read_exact(&mut bytes)?;
    if !bytes.starts_with(b"\x93NUMPY") {
        return Err(bad("it does not begin as an npy array"));
    }
    // From version 2 on, the length has four bytes.
    if bytes[6] > 1 {
        bytes.resize(PREFIX + 4, 0);
        from.read_exact(&mut bytes[PREFIX + 2..])?;
    }
    let length = bytes[PREFIX..].iter().rev().fold(0, |length, byte| length << 8 | u64::from(*byte));
    if length > NPY_HEADER_BYTES_MAX {
        return Err(bad("its header is longer than any array's"));
    }
    let begin = bytes.len();
    bytes.resize(begin + length as usize, 0);
    from.read_exact(&mut bytes[begin..])?;
    look_at(&bytes[begin..])?;
    Ok(Cursor::new(bytes).chain(from))
}

/// Every number outside of quotes counts as a dimension: nothing else there is one.
fn look_at(header: &[u8]) -> Result<()> {
    let (mut quote, mut depth, mut number, mut elements) = (None, 0u32, None, 1u64);
    for byte in header {
        if let Some(end) = quote {
            quote = quote.filter(|_| *byte != end);
            if *byte == b'\\' {
                return Err(bad("its header holds an escape"));
            }
            continue;
        }
        if byte.is_ascii_digit() {
            let digit = u64::from(byte - b'0');
            number = number.unwrap_or(0u64).checked_mul(10).and_then(|n| n.checked_add(digit));
            number = Some(number.ok_or_else(too_many)?);
            continue;
        }
        if let Some(dimension) = number.take() {
            let product = elements.checked_mul(dimension.max(1)).filter(|n| *n <= NPY_ELEMENTS_MAX);
            elements = product.ok_or_else(too_many)?;
        }
        match byte {
            b'\'' | b'"' => quote = Some(*byte),
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            b' ' | b'\n' | b',' | b':' => {}
            _ if b"TrueFals".contains(byte) => {}
            _ => return Err(bad("its header holds what no array's does")),
        }
        if depth > NPY_DEPTH_MAX {
            return Err(bad("its header nests too deep"));
        }
    }
    Ok(())
}

fn too_many() -> Error {
    bad("its header's shape is impossible")
}

fn bad(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, format!("{what}; the file is damaged, write it again with numpy"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array(version: u8, length: u32, header: &str) -> Vec<u8> {
        let length = length.to_le_bytes();
        let length = if version == 1 { &length[..2] } else { &length[..] };
        [b"\x93NUMPY", &[version, 0][..], length, header.as_bytes(), b"data"].concat()
    }

    fn look(header: &str) -> Result<Vec<u8>> {
        let bytes = array(1, header.len() as u32, header);
        let mut again = Vec::new();
        checked(&bytes[..])?.read_to_end(&mut again)?;
        assert_eq!(again, bytes, "nothing is lost on the way");
        Ok(again)
    }

    #[test]
    fn headers_as_numpy_writes_them_pass_whole() {
        for shape in ["()", "(3,)", "(2, 1, 48)", "(0, 4)", "(1000000, 1000)"] {
            look(&format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}   \n")).expect(shape);
        }
        look("{'descr': [('a', '<f4'), ('b', '<i8', (2,))], 'fortran_order': True, 'shape': (3,)}\n")
            .expect("a structured one");
        assert!(checked(&array(2, 4, "{} \n")[..]).is_ok());
    }

    #[test]
    fn what_would_make_a_parser_allocate_recurse_or_overflow_is_refused() {
        for header in [
            "{'shape': (4294967296, 4294967296, 4294967296)}",
            "{'shape': (0, 9223372036854775807, 4)}",
            "{'shape': (99999999999999999999999,)}",
            "{'shape': (0x7fffffffffffffff, 2)}",
            "{'shape': (-1,)}",
            "((((((((((1))))))))))",
        ] {
            assert_eq!(look(header).expect_err(header).kind(), ErrorKind::InvalidData);
        }
        assert!(checked(&array(2, u32::MAX, "{}")[..]).is_err(), "four gigabytes of header");
        assert!(checked(&b"\x93NUMPY\x01"[..]).is_err());
    }
}
