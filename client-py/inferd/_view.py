"""Views on a slot: arrays in shared memory that die with their slot.

A `View` reads and writes the region itself, nothing is copied, and it raises `Released` once the slot went back to
the other side. It looks like an array: indexing, arithmetic, methods, NumPy's functions. Whatever it returns that still
lies in the slot is a view again; the rest are ordinary arrays.

A plain array over the slot (``numpy.asarray(view)``, ``torch.from_dlpack(view)``) cannot be told to die. It is lent: as long
as it, or anything made from it, is alive, giving the slot back raises `Lent`, and the memory stays mapped. That is what
``memoryview.release()`` does with its exports. In a forked child, where the region is absent, views raise `WrongProcess`, and
what was lent reads zeros.
"""
from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from typing import Any, Iterator, List, Optional, Tuple, Type

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from .errors import WRONG_PROCESS, Lent, Released, WrongProcess

#: Bumped in every forked child: what was made before is its parent's.
forks = [0]
_loans: "weakref.WeakSet[_Loan]" = weakref.WeakSet()
_MAP_FIXED_NOREPLACE = 0x100000


def _in_child() -> None:
    forks[0] += 1
    # Regions are not inherited: under what was lent there would be nothing, and touching it would kill the child.
    if _loans:
        libc = ctypes.CDLL(None)
        libc.mmap.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
        for loan in list(_loans):
            first = loan.first & -mmap.PAGESIZE
            libc.mmap(first, loan.end - first, mmap.PROT_READ | mmap.PROT_WRITE,
                      mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED_NOREPLACE, -1, 0)


os.register_at_fork(after_in_child=_in_child)


class Slot:
    """Whether a slot is still ours, and what was lent of it."""

    __slots__ = ("why", "fork", "loans", "what")

    def __init__(self, what: str) -> None:
        self.what = what
        self.why: Optional[str] = None  # why it is gone
        self.fork = forks[0]
        self.loans: List["weakref.ref[_Loan]"] = []

    def check(self) -> None:
        if self.fork != forks[0]:
            raise WrongProcess(WRONG_PROCESS)
        if self.why is not None:
            raise Released(f"{self.what}: {self.why}")

    def lent(self) -> bool:
        """Whether a plain array over this slot is alive."""
        return any(loan() is not None for loan in self.loans)

    def refuse_if_lent(self) -> None:
        if self.loans and self.lent():
            raise Lent(f"{self.what}: a plain array over its memory is alive (numpy.asarray() or DLPack of a view made it): "
                       "delete it, or copy it, first; or write through the view itself")

    def end(self, why: str) -> None:
        """The slot goes back: its views are dead from here on."""
        if self.why is None:
            self.why = why


class _Loan:
    """The memory of a view as NumPy takes it; whoever holds an array over it holds this, and what keeps the slot."""

    __slots__ = ("__array_interface__", "owner", "first", "end", "__weakref__")

    def __init__(self, array: "np.ndarray[Any, Any]", owner: Any) -> None:
        # NumPy knows no bf16 here: its bits, to be seen as bf16 by whoever asked.
        bits = array.view(np.uint16) if array.dtype.kind == "V" else array
        self.__array_interface__ = dict(bits.__array_interface__)
        self.owner = owner
        self.first, self.end = np.lib.array_utils.byte_bounds(bits) if hasattr(np.lib, "array_utils") else np.byte_bounds(bits)
        _loans.add(self)


def address_array(address: int, dtype: "np.dtype[Any]", shape: Tuple[int, ...], writable: bool) -> "np.ndarray[Any, Any]":
    """An array over memory that somebody else keeps alive."""
    bits = np.dtype(np.uint16) if dtype.kind == "V" else dtype

    class Memory:
        __array_interface__ = {"version": 3, "data": (address, not writable), "typestr": bits.str, "shape": shape}

    return np.asarray(Memory()).view(dtype)


#: Attributes of an array through which its memory could be reached behind a view's back.
_UNGUARDED = ("base", "ctypes", "data", "flat", "resize", "setflags")


class View(NDArrayOperatorsMixin):
    """An array in a slot of shared memory, until the slot is given back. See the module's text."""

    __slots__ = ("_array", "_slot", "_owner", "__weakref__")
    __array_priority__ = 100.0

    def __init__(self, array: "np.ndarray[Any, Any]", slot: Slot, owner: Any) -> None:
        self._array = array
        self._slot = slot
        self._owner = owner  # keeps the request or the reply, so that the slot is not given back behind a view's back

    def _live(self) -> "np.ndarray[Any, Any]":
        slot = self._slot
        if slot.why is not None or slot.fork != forks[0]:
            slot.check()
        return self._array

    def _wrap(self, result: Any) -> Any:
        """A view, if the result still lies in the slot."""
        if isinstance(result, np.ndarray) and np.may_share_memory(result, self._array):
            return self if result is self._array else View(result, self._slot, self._owner)
        if isinstance(result, (tuple, list)):
            return type(result)(self._wrap(r) for r in result)
        return result

    # ---- what an array has

    @property
    def shape(self) -> Tuple[int, ...]:
        return self._live().shape

    @property
    def dtype(self) -> "np.dtype[Any]":
        return self._live().dtype

    @property
    def ndim(self) -> int:
        return self._live().ndim

    @property
    def size(self) -> int:
        return self._live().size

    @property
    def nbytes(self) -> int:
        return self._live().nbytes

    def copy(self) -> "np.ndarray[Any, Any]":
        """A plain array of its own."""
        return self._live().copy()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in _UNGUARDED:
            raise AttributeError(f"a view has no {name!r}; numpy.asarray(view) lends a plain array")
        attribute = getattr(self._live(), name)
        if not callable(attribute):
            return self._wrap(attribute)

        def method(*args: Any, **kwargs: Any) -> Any:
            self._live()
            return self._wrap(attribute(*map(_plain, args), **{k: _plain(v) for k, v in kwargs.items()}))

        return method

    def __len__(self) -> int:
        return len(self._live())

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key: Any) -> Any:
        return self._wrap(self._live()[key])

    def __setitem__(self, key: Any, value: Any) -> None:
        self._live()[key] = value._live() if isinstance(value, View) else value

    def __float__(self) -> float:
        return float(self._live().item())

    def __int__(self) -> int:
        return int(self._live().item())

    def __bool__(self) -> bool:
        return bool(self._live())

    def __contains__(self, value: Any) -> bool:
        return value in self._live()

    def __repr__(self) -> str:
        if self._slot.why is not None or self._slot.fork != forks[0]:
            return f"<View: {self._slot.why or 'of the parent process'}>"
        return f"View({self._array!r})"

    # ---- NumPy's protocols

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        out = kwargs.get("out")
        if out is not None:
            kwargs["out"] = tuple(map(_plain, out))
        result = getattr(ufunc, method)(*map(_plain, inputs), **kwargs)
        return (out[0] if len(out) == 1 else out) if out is not None else self._wrap(result)

    def __array_function__(self, function: Any, types: List[Type[Any]], args: Any, kwargs: Any) -> Any:
        return self._wrap(function(*_plain_all(args), **{k: _plain_all(v) for k, v in kwargs.items()}))

    def _lend(self) -> "np.ndarray[Any, Any]":
        array = self._live()
        loan = _Loan(array, self._owner)
        self._slot.loans.append(weakref.ref(loan))
        lent = np.asarray(loan)
        return lent.view(array.dtype) if array.dtype.kind == "V" else lent

    def __array__(self, dtype: Any = None, copy: Optional[bool] = None) -> "np.ndarray[Any, Any]":
        array = self._live()
        if copy or (dtype is not None and np.dtype(dtype) != array.dtype):
            if copy is False:
                raise ValueError(f"a view of {array.dtype} cannot be seen as {np.dtype(dtype)} without a copy")
            return array.astype(dtype or array.dtype, copy=True)
        return self._lend()

    def __dlpack__(self, **options: Any) -> Any:
        return self._lend().__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._live().__dlpack_device__()


def _plain(value: Any) -> Any:
    """The array behind a view, for as long as one NumPy call lasts."""
    return value._live() if isinstance(value, View) else value


def _plain_all(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(_plain_all(v) for v in value)
    return _plain(value)
