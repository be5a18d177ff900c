//! Which Rust types may fill which tensors.
//!
//! The trait is closed: plain numbers only, every bit pattern valid, copied as they stand (the host is
//! little-endian, as the layout demands). `u8` stands for the raw bytes of any tensor; `u16` also for
//! the bits of `f16` and `bf16`; `bool` tensors are read and written as `u8` 0 or 1.

use crate::error::Error;
use inferd_ipc::signature::{DType, TensorSpec};
use zerocopy::{FromBytes, Immutable, IntoBytes};

mod sealed {
    pub trait Sealed {}
}

/// A number that tensors are made of.
pub trait Element: sealed::Sealed + Copy + FromBytes + IntoBytes + Immutable + 'static {
    /// The dtypes whose elements this type holds; empty for `u8`, which holds the bytes of any.
    const DTYPES: &'static [DType];
}

macro_rules! elements {
    ($($type:ty: $($dtype:ident)*),* $(,)?) => {
        $(impl sealed::Sealed for $type {}
          impl Element for $type { const DTYPES: &'static [DType] = &[$(DType::$dtype),*]; })*
    };
}
elements!(
    u8: , i8: I8, i16: I16, i32: I32, i64: I64, u16: U16 F16 Bf16, u32: U32, u64: U64, f32: F32, f64: F64,
);

/// Checks that `T` holds this tensor's elements.
#[inline]
pub(crate) fn check_dtype<T: Element>(tensor: &TensorSpec, index: usize) -> Result<(), Error> {
    if T::DTYPES.is_empty() || T::DTYPES.contains(&tensor.dtype) {
        return Ok(());
    }
    Err(Error::Tensor { index, what: "its elements have another dtype than the type asked for; u8 reads raw bytes" })
}

/// Checks dtype and that `count` elements of `T` are the whole tensor.
pub(crate) fn check_whole<T: Element>(tensor: &TensorSpec, index: usize, count: usize) -> Result<(), Error> {
    check_sized::<T>(tensor, tensor.bytes(), index, count)
}

/// The same, of a tensor whose bytes were worked out before: on the way of a request.
#[inline]
pub(crate) fn check_sized<T: Element>(
    tensor: &TensorSpec,
    bytes: u64,
    index: usize,
    count: usize,
) -> Result<(), Error> {
    check_dtype::<T>(tensor, index)?;
    if (count as u64).checked_mul(size_of::<T>() as u64) == Some(bytes) {
        return Ok(());
    }
    Err(Error::Tensor { index, what: "the slice has another length than the tensor; give all elements, row-major" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_fill_tensors_of_their_own_dtype_and_bytes_fill_all() {
        for dtype in DType::ALL {
            let tensor = TensorSpec::new("t", dtype, &[2, 3]);
            assert!(check_whole::<u8>(&tensor, 0, 6 * dtype.size_bytes()).is_ok());
            assert!(check_whole::<u8>(&tensor, 0, 6 * dtype.size_bytes() + 1).is_err());
            assert_eq!(check_whole::<f32>(&tensor, 0, 6).is_ok(), dtype == DType::F32);
            let bits = matches!(dtype, DType::U16 | DType::F16 | DType::Bf16);
            assert_eq!(check_whole::<u16>(&tensor, 0, 6).is_ok(), bits);
        }
        assert!(check_whole::<f32>(&TensorSpec::new("t", DType::F32, &[6]), 0, usize::MAX).is_err());
    }
}
