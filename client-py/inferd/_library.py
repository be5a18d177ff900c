"""libinferd.so through ctypes: where it is found, its structs and its functions, as include/inferd.h declares them.

Every function is called with the GIL released. Looked for in this order: ``$INFERD_LIBRARY``; beside this file, where the
wheel puts it; what the dynamic linker finds as ``libinferd.so.0``.
"""
from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, Structure, c_char_p, c_int, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any, List

from .errors import AbiMismatch, LibraryMissing

ABI_MAJOR = 1
RANK_MAX = 8
FOREVER = 2**64 - 1
SPIN_MODEL = 2**32 - 1

OK = 1
RESET = 1
LATE, STATE_RESET, RESET_PENDING, STATE_LOST = 1, 2, 4, 8
NO_REATTACH, LOCK_MEMORY = 1, 2
QUEUES = {None: 0, "in_order": 1, "latest": 2}
STATUS = {
    1: "ok", 2: "expired", 3: "rejected", 4: "model_error", 5: "worker_lost", 6: "needs_reset", 7: "shutting_down",
    8: "unavailable", 100: "superseded", 101: "daemon_lost",
}
STATES = {1: "serving", 2: "recovering", 3: "quarantined", 4: "draining", 5: "closed"}


class Ticket(Structure):
    _fields_ = [("epoch", c_uint64), ("number", c_uint64)]


class AttachOptions(Structure):
    _fields_ = [
        ("size", c_uint32), ("slots", c_uint32), ("queue", c_uint32), ("flags", c_uint32), ("spin_us", c_uint32),
        ("reserved", c_uint32), ("timeout_ns", c_uint64), ("runtime_dir", c_char_p), ("error", c_char_p),
        ("error_bytes", c_size_t),
    ]


class SubmitOptions(Structure):
    _fields_ = [
        ("size", c_uint32), ("flags", c_uint32), ("observation_id", c_uint64), ("deadline_ns", c_uint64),
        ("executed", c_uint32), ("reserved", c_uint32),
    ]


class Reply(Structure):
    _fields_ = [
        ("ticket", Ticket), ("status", c_uint32), ("flags", c_uint32), ("request", c_uint64),
        ("observation_id", c_uint64), ("t_submit_ns", c_uint64), ("t_start_ns", c_uint64), ("t_done_ns", c_uint64),
        ("step", c_uint64), ("generation", c_uint32), ("skipped", c_uint32), ("held", c_uint64),
    ]


class Tensor(Structure):
    _fields_ = [
        ("name", c_char_p), ("elements", c_char_p), ("bytes", c_uint64), ("shape", c_uint64 * RANK_MAX),
        ("rank", c_uint32), ("dtype", c_uint32), ("time_axis", c_int32), ("reserved", c_uint32),
    ]


class Signature(Structure):
    _fields_ = [
        ("inputs", POINTER(Tensor)), ("outputs", POINTER(Tensor)), ("inputs_count", c_uint32),
        ("outputs_count", c_uint32), ("stateful", c_uint32), ("reserved", c_uint32),
    ]


class Info(Structure):
    _fields_ = [
        ("size", c_uint32), ("state", c_uint32), ("session", c_uint64), ("epoch", c_uint64), ("generation", c_uint32),
        ("slots", c_uint32), ("queue", c_uint32), ("spin_us", c_uint32), ("named", c_uint32), ("in_flight", c_uint32),
    ]


class Buffer(Structure):
    """struct inferd_in and struct inferd_out: both are an address and a length."""

    _fields_ = [("data", c_void_p), ("bytes", c_size_t)]


_SESSION = c_void_p
_FUNCTIONS = {
    "abandon": (c_int, _SESSION, Ticket),
    "abi": (c_uint32,),
    "attach": (c_int, c_char_p, POINTER(AttachOptions), POINTER(c_void_p)),
    "daemon_version": (c_char_p, _SESSION),
    "detach": (None, _SESSION),
    "error": (c_char_p, _SESSION),
    "infer": (c_int, _SESSION, c_void_p, c_uint32, c_void_p, c_uint32, POINTER(SubmitOptions), c_uint64, POINTER(Reply)),
    "info": (c_int, _SESSION, POINTER(Info)),
    "input": (c_void_p, _SESSION, c_uint32),
    "now_ns": (c_uint64,),
    "output": (c_void_p, _SESSION, POINTER(Reply), c_uint32),
    "poll_arm": (c_int, _SESSION),
    "poll_disarm": (c_int, _SESSION),
    "poll_fd": (c_int, _SESSION),
    "reattach": (c_int, _SESSION, c_uint64),
    "release": (c_int, _SESSION, POINTER(Reply)),
    "request": (c_int, _SESSION),
    "reset": (c_int, _SESSION),
    "signature": (POINTER(Signature), _SESSION),
    "submit": (c_int, _SESSION, POINTER(SubmitOptions), POINTER(Ticket)),
    "try": (c_int, _SESSION, Ticket, POINTER(Reply)),
    "version": (c_char_p,),
    "wait": (c_int, _SESSION, Ticket, c_uint64, POINTER(Reply)),
}


class Library:
    """The functions of the loaded library, without their prefix; `try` is `try_`. Hot ones have their arguments prepared."""

    abandon: Any
    abi: Any
    attach: Any
    daemon_version: Any
    detach: Any
    error: Any
    infer: Any
    info: Any
    input: Any
    now_ns: Any
    output: Any
    poll_arm: Any
    poll_disarm: Any
    poll_fd: Any
    reattach: Any
    release: Any
    request: Any
    reset: Any
    signature: Any
    submit: Any
    try_: Any
    version: Any
    wait: Any

    def __init__(self) -> None:
        self.path, dll = _open()
        for name, (result, *arguments) in _FUNCTIONS.items():
            function = getattr(dll, f"inferd_{name}")
            function.restype = result
            function.argtypes = arguments
            setattr(self, "try_" if name == "try" else name, function)
        # A second object of the same function, which takes ctypes objects as they are: no conversion per call.
        self.infer_prepared: Any = dll["inferd_infer"]
        self.infer_prepared.restype = c_int
        major = self.abi() >> 16
        if major != ABI_MAJOR:
            raise AbiMismatch(f"{self.path} speaks ABI {major}, this package speaks {ABI_MAJOR}: install both of one release")


def _open() -> Any:
    wish = os.environ.get("INFERD_LIBRARY")
    beside = Path(__file__).with_name("libinferd.so")
    tried: List[str] = []
    for path in [wish] if wish else [str(beside), "libinferd.so.0", "libinferd.so"]:
        try:
            return path, ctypes.CDLL(path)
        except OSError as e:
            tried.append(str(e))
    raise LibraryMissing(f"libinferd.so is not to be found ({'; '.join(tried)}): install the wheel, or `make install`, or set "
                         "INFERD_LIBRARY to its path")


#: Loaded at the first import: a package without its library is of no use.
lib = Library()
