"""Tensors of a signature, and how a caller's arrays are checked against them.

Nothing is cast in silence: an array of another dtype is refused with a sentence that has the remedy. Python numbers and
lists have no dtype, and are converted. Axes of length one may be left out in front, as NumPy's broadcasting has it.
"""
from __future__ import annotations

import sys
from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from . import _library
from .errors import Misuse, WrongType

_DTYPES = {
    1: ("f32", "<f4"), 2: ("f64", "<f8"), 3: ("f16", "<f2"), 4: ("bf16", "<u2"), 5: ("i8", "i1"), 6: ("i16", "<i2"),
    7: ("i32", "<i4"), 8: ("i64", "<i8"), 9: ("u8", "u1"), 10: ("u16", "<u2"), 11: ("u32", "<u4"), 12: ("u64", "<u8"),
    13: ("bool", "?"),
}


def _numpy_dtype(code: int) -> "np.dtype[Any]":
    if _DTYPES[code][0] == "bf16":
        try:
            import ml_dtypes

            return np.dtype(ml_dtypes.bfloat16)
        except ImportError:
            pass  # its raw 16 bits
    return np.dtype(_DTYPES[code][1])


class Tensor:
    """One input or output of a model.

    Attributes
    ----------
    name: str
    dtype: numpy.dtype
        bf16 is ``ml_dtypes.bfloat16`` where that package is installed, else ``uint16``, its raw bits.
    dtype_name: str
        inferd's word for it: ``"f32"``, ``"bf16"``, ...
    shape: tuple of int
        Outermost axis first; ``()`` for a scalar.
    elements: list of str
        ``name [unit]`` of each element along the last axis; empty if the manifest gives none.
    time_axis: int or None
        The axis that is time, in action chunks.
    nbytes: int
    """

    __slots__ = ("name", "dtype", "dtype_name", "shape", "elements", "time_axis", "nbytes", "index")

    def __init__(self, raw: _library.Tensor, index: int) -> None:
        self.name: str = raw.name.decode()
        self.dtype = _numpy_dtype(raw.dtype)
        self.dtype_name: str = _DTYPES[raw.dtype][0]
        self.shape: Tuple[int, ...] = tuple(raw.shape[: raw.rank])
        self.elements: List[str] = raw.elements.decode().split("\n") if raw.elements else []
        self.time_axis: Optional[int] = raw.time_axis if raw.time_axis >= 0 else None
        self.nbytes: int = raw.bytes
        self.index = index

    @property
    def names(self) -> List[str]:
        """Names of the elements along the last axis, without their units."""
        return [element.partition(" [")[0] for element in self.elements]

    @property
    def units(self) -> List[str]:
        """Units of the elements along the last axis; "" where the manifest gives none."""
        return [element.partition(" [")[2].rstrip("]") for element in self.elements]

    def __repr__(self) -> str:
        return f"{self.name}: {self.dtype_name}[{', '.join(map(str, self.shape))}]"

    def new(self) -> "np.ndarray[Any, Any]":
        """A new array of zeros that fits."""
        return np.zeros(self.shape, self.dtype)

    def check(self, value: Any) -> "np.ndarray[Any, Any]":
        """The value as an array of this dtype and shape, without a copy where it is one already.

        Raises WrongType or Misuse, with a sentence, for anything that does not fit.
        """
        array = value if type(value) is np.ndarray else self._as_array(value)
        if array.dtype != self.dtype:
            if not self._same_bits(array):
                raise WrongType(f"{self!r} is given {array.dtype}; the model takes {self.dtype}: pass it with "
                                f".astype({str(self.dtype)!r})")
            array = array.view(self.dtype)
        if array.shape != self.shape:
            lacking = len(self.shape) - array.ndim
            if lacking <= 0 or any(n != 1 for n in self.shape[:lacking]) or array.shape != self.shape[lacking:]:
                raise Misuse(f"{self!r} is given shape {array.shape}; the model takes {self.shape}")
            array = array.reshape(self.shape)
        return array

    def _same_bits(self, array: "np.ndarray[Any, Any]") -> bool:
        # bf16 as raw bits, whether or not this side has a dtype for it.
        return self.dtype_name == "bf16" and array.dtype.itemsize == 2 and (
            array.dtype == np.uint16 or array.dtype.name == "bfloat16")

    def _as_array(self, value: Any) -> "np.ndarray[Any, Any]":
        if isinstance(value, (int, float, bool, list, tuple, range)):
            try:
                return np.asarray(value, self.dtype)
            except (ValueError, TypeError, OverflowError) as e:
                raise WrongType(f"{self!r} is given a {type(value).__name__} that is no array of numbers: {e}") from None
        if type(value).__module__.partition(".")[0] == "torch":
            return self._from_torch(value)
        try:
            array = np.asarray(value)
        except Exception as e:  # whatever a foreign __array__ raises
            raise WrongType(f"{self!r} is given a {type(value).__name__} that NumPy cannot read: {e}") from None
        if array.dtype == object:
            raise WrongType(f"{self!r} is given a {type(value).__name__}; give an array, or numbers")
        return array

    def _from_torch(self, tensor: Any) -> "np.ndarray[Any, Any]":
        """A CPU tensor's own memory; torch is looked up, never imported."""
        if tensor.device.type != "cpu":
            raise WrongType(f"{self!r} is given a tensor on {tensor.device}: pass it with .cpu()")
        tensor = tensor.detach()
        torch = sys.modules["torch"]
        if tensor.dtype is torch.bfloat16:  # NumPy has no word for it: its bits
            return np.asarray(tensor.contiguous().view(torch.int16).numpy()).view(np.uint16)
        return np.asarray(tensor.numpy())


class Tensors(Dict[str, Tensor]):
    """Inputs or outputs by name, in the model's order; also by number."""

    def __init__(self, raw: Any, count: int) -> None:
        super().__init__()
        self.order: List[Tensor] = [Tensor(raw[i], i) for i in range(count)]
        for tensor in self.order:
            self[tensor.name] = tensor

    def __missing__(self, key: object) -> Tensor:
        if isinstance(key, int):
            return self.order[key]
        raise Misuse(f"there is no tensor {key!r}; there is {', '.join(map(repr, self.order)) or 'none'}")

    def __repr__(self) -> str:
        return "{" + ", ".join(map(repr, self.order)) + "}"
