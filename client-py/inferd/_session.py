"""A session: one process attached to one model.

The calls of a control loop prepare nothing: all that libinferd wants (addresses, structs, counts) is made once, at attach, and
one foreign call does the rest. Big tensors go from the caller's array straight into the slot; small ones through
an array of the session's own, which is cheaper than asking NumPy for an address.

A session belongs to one thread at a time, as in C; overlapping calls raise instead of racing. Wherever a time is given or
returned it is in seconds, unless its name ends in `_ns` or `_us`.
"""
from __future__ import annotations

import asyncio
import ctypes
import math
import os
import select
import threading
import time
from collections import deque
from ctypes import byref
from typing import Any, Deque, Dict, List, Optional, Set, Union

import numpy as np

from . import _library
from ._aio import Waiters
from ._library import FOREVER, STATUS, lib
from ._request import Outcome, Reply, Request, Ticket
from ._tensor import Tensor, Tensors
from ._view import Slot, View, address_array, forks
from .errors import Again, DaemonLost, Error, Misuse, Released, of_errno, of_status

#: Up to this many bytes a tensor is copied through an array of the session's own.
_STAGED_BYTES_MAX = 16384
#: Longer waits are cut into slices, so that Ctrl-C ends them.
_UNINTERRUPTED_NS = 1_000_000_000
_SLICE_MS = 100
#: Slots that arrays are kept for; more than a session has, so that only reattaches overflow it.
_ARRAYS_MAX = 8192
#: Between two attempts to get a slot where a coroutine waits for one.
_RETRY_S = 0.001

_now_ns = time.monotonic_ns  # CLOCK_MONOTONIC, the clock of every time in inferd


def _nanoseconds(seconds: float, what: str) -> int:
    try:
        if seconds == math.inf:
            return FOREVER
        ns = int(seconds * 1e9)
    except (TypeError, ValueError, OverflowError):
        raise Misuse(f"{what} is {seconds!r}; it is a number of seconds") from None
    if ns < 0:
        raise Misuse(f"{what} is {seconds!r} s; it cannot be negative")
    return min(ns, FOREVER)


class Info:
    """How a session stands: state, session, epoch, generation, slots, queue, spin_us, named, in_flight."""

    def __init__(self, raw: _library.Info) -> None:
        self.state: str = _library.STATES.get(raw.state, "closed")
        self.session: int = raw.session
        self.epoch: int = raw.epoch - 1
        self.generation: int = raw.generation
        self.slots: int = raw.slots
        self.queue: str = "latest" if raw.queue == 2 else "in_order"
        self.spin_us: int = raw.spin_us
        self.named = bool(raw.named)
        self.in_flight: int = raw.in_flight

    def __repr__(self) -> str:
        return "Info(" + ", ".join(f"{k}={v!r}" for k, v in vars(self).items()) + ")"


class Session:
    """Attaches this process to a model.

    ::

        with inferd.Session("go2") as robot:
            action = robot(obs=observation, deadline=0.004)

    Parameters
    ----------
    model: str
        As the daemon's configuration names it.
    timeout: float, seconds
        How long a call waits that gives neither a timeout nor a deadline of its own.
    slots: int
        0: as many as the model's configuration gives.
    queue: "in_order", "latest" or None
        None: the model's.
    spin_us: int, microseconds
        Spinning before sleep; None: the model's. A spinning wait answers faster and uses a CPU meanwhile.
    runtime_dir: path
        The daemon's directory. None: ``$INFERD_RUNTIME_DIR``, else ``$XDG_RUNTIME_DIR/inferd`` if the daemon is there,
        else ``/run/inferd``.
    attach_timeout: float, seconds
    reattach: bool
        Attach again by itself when the daemon came back. False: calls raise DaemonLost until `reattach`.
    lock_memory: bool
        mlock() the regions, where that is allowed.

    Attributes
    ----------
    inputs, outputs: dict of name to Tensor
        Names, dtypes, shapes and units, in the model's order.
    stateful: bool
        Whether the model keeps state between this session's steps.
    model: str
    """

    def __init__(self, model: str, *, timeout: float = 1.0, slots: int = 0, queue: Optional[str] = None,
                 spin_us: Optional[int] = None, runtime_dir: Union[str, "os.PathLike[str]", None] = None,
                 attach_timeout: float = 2.0, reattach: bool = True, lock_memory: bool = False) -> None:
        self._handle: Optional[ctypes.c_void_p] = None
        if queue not in _library.QUEUES:
            raise Misuse(f"queue is {queue!r}; it is 'in_order', 'latest' or None")
        self.model = model
        self.timeout = timeout
        self._timeout_ns = _nanoseconds(timeout, "timeout")
        why = ctypes.create_string_buffer(1024)
        options = _library.AttachOptions(
            size=ctypes.sizeof(_library.AttachOptions), slots=_unsigned(slots, "slots"), queue=_library.QUEUES[queue],
            flags=(0 if reattach else _library.NO_REATTACH) | (_library.LOCK_MEMORY if lock_memory else 0),
            spin_us=_library.SPIN_MODEL if spin_us is None else _unsigned(spin_us, "spin_us"),
            timeout_ns=max(1, _nanoseconds(attach_timeout, "attach_timeout")),
            runtime_dir=None if runtime_dir is None else os.fsencode(runtime_dir),
            error=ctypes.cast(why, ctypes.c_char_p), error_bytes=len(why))
        handle = ctypes.c_void_p()
        code = lib.attach(str(model).encode(), byref(options), byref(handle))
        if code != 0:
            raise of_errno(code, why.value.decode(errors="replace"))
        self._handle = handle
        self._fork = forks[0]
        self._lock = threading.Lock()
        self._prepare()

    def _prepare(self) -> None:
        """All that calls need, made once."""
        signature = lib.signature(self._handle).contents
        self.inputs = Tensors(signature.inputs, signature.inputs_count)
        self.outputs = Tensors(signature.outputs, signature.outputs_count)
        self.stateful = bool(signature.stateful)
        self._ins: List[Tensor] = self.inputs.order
        self._outs: List[Tensor] = self.outputs.order
        self._in_buffers = (_library.Buffer * max(1, len(self._ins)))()
        self._out_buffers = (_library.Buffer * max(1, len(self._outs)))()
        self._staged_in = [self._stage(t, b) for t, b in zip(self._ins, self._in_buffers)]
        self._staged_out = [self._stage(t, b) for t, b in zip(self._outs, self._out_buffers)]
        self._options = _library.SubmitOptions(size=ctypes.sizeof(_library.SubmitOptions))
        self._reply = _library.Reply()
        self._c_timeout = ctypes.c_uint64(self._timeout_ns)
        # The commonest model: small tensors, one in, one out.
        single = len(self._ins) == 1 and len(self._outs) == 1
        self._only_in = self._staged_in[0] if single else None
        self._only_out = self._staged_out[0] if single else None
        self._infer_args = (
            self._handle, byref(self._in_buffers), ctypes.c_uint32(len(self._ins)), byref(self._out_buffers),
            ctypes.c_uint32(len(self._outs)), byref(self._options), self._c_timeout, byref(self._reply))
        self._slot: Optional[Slot] = None  # of the request that is being written
        self._held: Dict[int, Slot] = {}  # of replies that are held, by the address of their struct
        self._dropped: Deque[_library.Reply] = deque()
        self._open: Set[int] = set()  # in_order: numbers of tickets whose outcome nobody has taken or given up
        self._open_epoch = 0
        self._in_order = self._info().queue != 2
        self._arrays: Dict[Any, "np.ndarray[Any, Any]"] = {}
        self._closed = False
        self._waiters = Waiters(self)

    @staticmethod
    def _stage(tensor: Tensor, buffer: _library.Buffer) -> Optional["np.ndarray[Any, Any]"]:
        buffer.bytes = tensor.nbytes
        if tensor.nbytes > _STAGED_BYTES_MAX:
            return None
        array = np.zeros(tensor.shape, tensor.dtype)
        buffer.data = array.ctypes.data
        return array

    # ---- the one call

    def __call__(self, *args: Any, deadline: Optional[float] = None, timeout: Optional[float] = None,
                 observation_id: int = 0, executed: int = 0, reset: bool = False, **inputs: Any) -> Any:
        """Runs the model on these inputs and returns copies of its outputs.

        Inputs go by name, ``robot(obs=observation)``, in one dict, ``robot({"obs": observation})``, or, if the model has only
        one, by itself, ``robot(observation)``. Arrays must have the dtype and shape of `inputs` (axes of length one
        may be left out in front); CPU tensors of PyTorch and whatever else NumPy can read without a copy are arrays.

        Parameters
        ----------
        deadline: float, seconds from now
            When the action must be there. The run does not begin later (`Expired`), and the call does not wait longer
            (`Timeout`), unless `timeout` says otherwise; then an answer after the deadline is returned, and ``last.late`` set.
        timeout: float, seconds
            How long to wait. Default: the deadline, or the session's own.
        observation_id, executed, reset:
            As for `Request.submit`.

        Returns an ndarray if the model has one output, else a dict by name. `last` has the generation and the times.
        Raises Fallback (Timeout, Expired, WorkerLost, DaemonLost, ...), CallerError, ModelError.
        """
        lock = self._lock
        if not lock.acquire(False):
            raise self._overlapping()
        try:
            if self._closed or self._fork != forks[0]:
                self._refuse()
            if self._slot is not None or self._dropped:
                self._tidy()
            only = self._only_in
            if only is not None and len(inputs) == 1 and not args:
                for name, value in inputs.items():
                    break
                tensor = self._ins[0]
                if name != tensor.name:
                    raise self._wrong_inputs(inputs)
                only[...] = value if type(value) is np.ndarray and value.dtype == tensor.dtype and \
                    value.shape == tensor.shape else tensor.check(_plain(value))
                keep = None
            else:
                keep = self._fill(self._by_name(args, inputs))
            options = self._options
            options.observation_id = observation_id
            options.executed = executed
            options.flags = 1 if reset else 0
            if deadline is not None:
                ns = _nanoseconds(deadline, "deadline")
                options.deadline_ns = min(_now_ns() + ns, FOREVER) or 1
                timeout_ns = ns if timeout is None else _nanoseconds(timeout, "timeout")
            else:
                options.deadline_ns = 0
                timeout_ns = self._timeout_ns if timeout is None else _nanoseconds(timeout, "timeout")
            if timeout_ns > _UNINTERRUPTED_NS:
                return self._call_long(timeout_ns)
            self._c_timeout.value = timeout_ns
            fresh = None if self._only_out is not None else self._fresh_outputs()
            code = lib.infer_prepared(*self._infer_args)
            if code == 1:
                return self._only_out.copy() if fresh is None else self._shape_up(fresh)  # type: ignore[union-attr]
            raise self._failed(code)
        finally:
            lock.release()

    @property
    def last(self) -> Outcome:
        """What the last call ended in: status, generation, late, age, latency, step. Of `__call__` only."""
        raw = _library.Reply()
        ctypes.memmove(byref(raw), byref(self._reply), ctypes.sizeof(raw))
        return Outcome(raw)

    def _by_name(self, args: Any, inputs: Dict[str, Any]) -> Dict[str, Any]:
        if args:
            if len(args) > 1 or inputs:
                raise Misuse(f"give inputs by name, or one dict: {self._call_text()}")
            if isinstance(args[0], dict):
                return args[0]
            if len(self._ins) != 1:
                raise Misuse(f"model {self.model} has {len(self._ins)} inputs: {self._call_text()}")
            return {self._ins[0].name: args[0]}
        return inputs

    def _fill(self, inputs: Dict[str, Any]) -> List[Any]:
        """Inputs into the prepared buffers; returns what must stay alive during the call."""
        if len(inputs) != len(self._ins):
            raise self._wrong_inputs(inputs)
        keep = []
        for tensor, staged, buffer in zip(self._ins, self._staged_in, self._in_buffers):
            if tensor.name not in inputs:
                raise self._wrong_inputs(inputs)
            array = tensor.check(_plain(inputs[tensor.name]))
            if staged is not None:
                staged[...] = array
            else:
                array = np.ascontiguousarray(array)
                buffer.data = array.__array_interface__["data"][0]
                keep.append(array)
        return keep

    def _fresh_outputs(self) -> List["np.ndarray[Any, Any]"]:
        arrays = []
        for tensor, staged, buffer in zip(self._outs, self._staged_out, self._out_buffers):
            if staged is None:
                staged = np.empty(tensor.shape, tensor.dtype)
                buffer.data = staged.__array_interface__["data"][0]
            arrays.append(staged)
        return arrays

    def _shape_up(self, arrays: List["np.ndarray[Any, Any]"]) -> Any:
        copies = [a.copy() if s is not None else a for a, s in zip(arrays, self._staged_out)]
        return copies[0] if len(copies) == 1 else {t.name: a for t, a in zip(self._outs, copies)}

    def _call_long(self, timeout_ns: int) -> Any:
        """The same in parts, so that Ctrl-C ends it."""
        end_ns = min(_now_ns() + timeout_ns, FOREVER)
        ticket = _library.Ticket()
        while True:
            code = lib.request(self._handle)
            if code == 0:
                break
            may_pass = code == -104 or (code == -11 and self._may_come_free())  # daemon_lost; again
            if not may_pass or _now_ns() >= end_ns:
                raise self._failed(code)
            time.sleep(_RETRY_S)
        for tensor, buffer in zip(self._ins, self._in_buffers):
            ctypes.memmove(lib.input(self._handle, tensor.index), buffer.data, tensor.nbytes)
        code = lib.submit(self._handle, byref(self._options), byref(ticket))
        if code == 0:
            code = self._await_outcome(ticket, max(0, end_ns - _now_ns()), self._reply)
        if code != 1:
            raise self._failed(code)
        copies = {t.name: self._output_array(self._reply, t.name).copy() for t in self._outs}
        lib.release(self._handle, byref(self._reply))
        return next(iter(copies.values())) if len(copies) == 1 else copies

    def _may_come_free(self) -> bool:
        """Whether a slot is still to be given back by a reply that comes; else only the caller can free one."""
        info = self._info()
        ours = len(self._open) if self._open_epoch == info.epoch else 0
        return bool(info.in_flight > ours + len(self._held))

    def _settled(self, ticket: _library.Ticket) -> None:
        if ticket.epoch == self._open_epoch:
            self._open.discard(ticket.number)

    # ---- in parts

    def request(self) -> Request:
        """Takes the next request slot, to be written in place.

        Raises Again (in_order: all slots are in flight or held), Unavailable, DaemonLost (a step towards a new
        session is made: a later call succeeds when the daemon is back), Lent.
        """
        self._enter()
        try:
            code = lib.request(self._handle)
            if code != 0:
                raise self._error(code)
            self._slot = Slot(f"model {self.model}, a request")
            return Request(self, self._slot)
        finally:
            self._lock.release()

    def submit(self, *args: Any, observation_id: int = 0, deadline: Optional[float] = None, executed: int = 0,
               reset: bool = False, **inputs: Any) -> Ticket:
        """Copies these inputs into a free slot and publishes it: `request`, writing, `Request.submit` in one."""
        request = self.request()
        by_name = self._by_name(args, inputs)
        if by_name.keys() != self.inputs.keys():
            raise self._wrong_inputs(by_name)
        for name, value in by_name.items():
            request[name] = value
        return request.submit(observation_id=observation_id, deadline=deadline, executed=executed, reset=reset)

    async def infer(self, *args: Any, deadline: Optional[float] = None, timeout: Optional[float] = None,
                    observation_id: int = 0, executed: int = 0, reset: bool = False, **inputs: Any) -> Any:
        """`__call__` for asyncio: the event loop runs on while the model runs. Several may be under way at once.

        Waits through the session's pollable descriptor. Parameters, result and exceptions as for `__call__`.
        """
        if timeout is None:
            timeout = self.timeout if deadline is None else deadline
        began_ns = _now_ns()
        end_ns = began_ns + min(_nanoseconds(timeout, "timeout"), FOREVER // 2)
        due_ns = began_ns + (0 if deadline is None else min(_nanoseconds(deadline, "deadline"), FOREVER // 2))
        while True:
            try:
                left = None if deadline is None else max(1e-9, (due_ns - _now_ns()) * 1e-9)
                ticket = self.submit(*args, observation_id=observation_id, deadline=left, executed=executed, reset=reset, **inputs)
                break
            except (Again, DaemonLost) as e:  # may pass: a slot comes free, the daemon comes back
                if _now_ns() >= end_ns or (isinstance(e, Again) and not self._waiters and not self._may_come_free()):
                    raise
                await asyncio.sleep(_RETRY_S)
        reply = await self._wait_async(ticket, max(0, end_ns - _now_ns()) * 1e-9)
        return reply.take()

    def _submit(self, request: Request, observation_id: int, deadline: Optional[float], executed: int, reset: bool) -> Ticket:
        self._enter(tidy=False)
        try:
            request._slot.check()
            request._slot.refuse_if_lent()
            options = _library.SubmitOptions(
                size=ctypes.sizeof(_library.SubmitOptions), flags=1 if reset else 0, observation_id=observation_id,
                executed=executed)
            if deadline is not None:
                options.deadline_ns = min(_now_ns() + _nanoseconds(deadline, "deadline"), FOREVER) or 1
            ticket = _library.Ticket()
            code = lib.submit(self._handle, byref(options), byref(ticket))
            if code != 0:
                raise self._error(code)
            request._slot.end("the request was submitted, its slot is the worker's now")
            self._slot = None
            if self._in_order:
                if ticket.epoch != self._open_epoch:
                    self._open_epoch = ticket.epoch
                    self._open.clear()
                self._open.add(ticket.number)
            return Ticket(self, ticket)
        finally:
            self._lock.release()

    def _wait(self, ticket: Ticket, timeout: Optional[float]) -> Reply:
        timeout_ns = self._timeout_ns if timeout is None else _nanoseconds(timeout, "timeout")
        self._enter(tidy=False)
        try:
            raw = _library.Reply()
            code = self._await_outcome(ticket._raw, timeout_ns, raw)
            self._settled(ticket._raw)  # a wait that timed out has abandoned it
            if code < 0:
                raise self._error(code)
            return self._reply_of(raw)
        finally:
            self._lock.release()

    def _await_outcome(self, ticket: _library.Ticket, timeout_ns: int, raw: _library.Reply) -> int:
        if timeout_ns <= _UNINTERRUPTED_NS:
            return int(lib.wait(self._handle, ticket, timeout_ns, byref(raw)))
        end_ns = min(_now_ns() + timeout_ns, FOREVER)
        spin_ns = _now_ns() + 1000 * self._info().spin_us
        while True:
            code = int(lib.try_(self._handle, ticket, byref(raw)))
            now_ns = _now_ns()
            if code != -115:  # in progress
                return code
            if now_ns >= end_ns:
                lib.abandon(self._handle, ticket)
                return -110
            if now_ns < spin_ns:
                os.sched_yield()  # the worker may be waiting for this CPU
                continue
            if lib.poll_arm(self._handle) != 0:
                continue
            poller = select.poll()
            poller.register(lib.poll_fd(self._handle), select.POLLIN)
            poller.poll(min(_SLICE_MS, (end_ns - now_ns) // 1_000_000 + 1))

    def _try(self, ticket: Ticket) -> Optional[Reply]:
        self._enter(tidy=False)
        try:
            raw = _library.Reply()
            code = lib.try_(self._handle, ticket._raw, byref(raw))
            if code == -115:
                return None
            self._settled(ticket._raw)
            if code < 0:
                raise self._error(code)
            return self._reply_of(raw)
        finally:
            self._lock.release()

    async def _wait_async(self, ticket: Ticket, timeout: Optional[float]) -> Reply:
        return await self._waiters.wait(ticket, self.timeout if timeout is None else timeout)

    def _abandon(self, ticket: Ticket) -> None:
        self._enter(tidy=False)
        try:
            code = lib.abandon(self._handle, ticket._raw)
            self._settled(ticket._raw)
            if code not in (0, -116):  # stale: given up or taken already, nothing is left to do
                raise self._error(code)
        finally:
            self._lock.release()

    def _reply_of(self, raw: _library.Reply) -> Reply:
        reply = Reply(self, raw)
        if raw.held:
            self._held[ctypes.addressof(raw)] = reply._slot
        else:
            reply._slot.end(f"the outcome is {reply.status}, which has no outputs")
        return reply

    def _release(self, raw: _library.Reply, slot: Slot) -> None:
        self._enter(tidy=False)
        try:
            slot.end("the reply was released")
            self._held.pop(ctypes.addressof(raw), None)
            code = lib.release(self._handle, byref(raw))
            if code != 0:
                raise self._error(code)
        finally:
            self._lock.release()

    # ---- memory

    def _input_view(self, request: Request, name: Union[str, int]) -> View:
        tensor = self.inputs[name]  # type: ignore[index]
        address = lib.input(self._handle, tensor.index)
        if not address:
            raise Released("the request's slot is gone: take another with request()")
        return View(self._array_at(address, tensor, True), request._slot, self)

    def _output_array(self, raw: _library.Reply, name: Union[str, int]) -> "np.ndarray[Any, Any]":
        tensor = self.outputs[name]  # type: ignore[index]
        address = lib.output(self._handle, byref(raw), tensor.index)
        if not address:
            raise Released("the reply is not held")
        return self._array_at(address, tensor, False)

    def _array_at(self, address: int, tensor: Tensor, writable: bool) -> "np.ndarray[Any, Any]":
        """Slots come back again and again: an array is made once for each."""
        key = (address, tensor.index, writable)
        array = self._arrays.get(key)
        if array is None:
            if len(self._arrays) >= _ARRAYS_MAX:
                self._arrays.clear()
            array = self._arrays[key] = address_array(address, tensor.dtype, tensor.shape, writable)
        return array

    # ---- the session itself

    def reset(self) -> None:
        """Makes the next submitted request run on fresh recurrent state."""
        self._enter(tidy=False)
        try:
            code = lib.reset(self._handle)
            if code != 0:
                raise self._error(code)
        finally:
            self._lock.release()

    def reattach(self, timeout: Optional[float] = None) -> None:
        """Attaches again if the session has ended; does nothing if it has not. Tickets of before are daemon_lost.

        timeout: seconds; None: the attach timeout. Raises Lent while a reply is held, NoDaemon, SignatureChanged, ...
        """
        self._enter()
        try:
            code = lib.reattach(self._handle, 0 if timeout is None else max(1, _nanoseconds(timeout, "timeout")))
            if code != 0:
                raise self._error(code)
        finally:
            self._lock.release()

    @property
    def info(self) -> Info:
        """How the session stands now."""
        self._enter(tidy=False)
        try:
            return Info(self._info())
        finally:
            self._lock.release()

    def _info(self) -> _library.Info:
        raw = _library.Info(size=ctypes.sizeof(_library.Info))
        code = lib.info(self._handle, byref(raw))
        if code != 0:
            raise self._error(code)
        return raw

    @property
    def daemon_version(self) -> str:
        """Of the daemon that the session is, or was last, attached to."""
        self._enter(tidy=False)
        try:
            return str(lib.daemon_version(self._handle).decode())
        finally:
            self._lock.release()

    def fileno(self) -> int:
        """The pollable descriptor: readable once the doorbell rang, or the session ended. Never read or close it."""
        self._enter(tidy=False)
        try:
            fd = lib.poll_fd(self._handle)
            if fd < 0:
                raise self._error(fd)
            return int(fd)
        finally:
            self._lock.release()

    def arm(self) -> bool:
        """Asks for the doorbell, once. False: something changed since the last look, `Ticket.poll` again instead."""
        self._enter(tidy=False)
        try:
            code = lib.poll_arm(self._handle)
            if code < 0:
                raise self._error(code)
            return bool(code == 0)
        finally:
            self._lock.release()

    def close(self) -> None:
        """Ends the session; again is allowed. Views are dead; where plain arrays over slots are alive, unmapping waits for them."""
        if self._handle is None or self._closed:
            return
        self._closed = True
        self._waiters.close()
        if not forks[0] == self._fork:
            return self._detach_if_free()
        for slot in [self._slot, *self._held.values()]:
            if slot is not None:
                slot.end("the session was closed")
        self._detach_if_free()

    def _detach_if_free(self) -> None:
        # A plain array over a slot keeps this object alive, and thereby the mapping: its end is in __del__.
        slots = [s for s in (self._slot, *self._held.values()) if s is not None]
        if self._handle is not None and not any(s.lent() for s in slots):
            handle, self._handle = self._handle, None
            lib.detach(handle)

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        handle = getattr(self, "_handle", None)
        if handle is not None and lib is not None:
            self._handle = None
            lib.detach(handle)

    def __repr__(self) -> str:
        return f"Session({self.model!r}, inputs={self.inputs!r}, outputs={self.outputs!r})"

    # ---- refusals

    def _enter(self, tidy: bool = True) -> None:
        """Takes the session for one call; a second thread, a forked child and a closed session get a sentence."""
        if not self._lock.acquire(False):
            raise self._overlapping()
        try:
            if self._closed or self._fork != forks[0]:
                self._refuse()
            if tidy or self._dropped:
                self._tidy(requests=tidy)
        except BaseException:
            self._lock.release()
            raise

    def _tidy(self, requests: bool = True) -> None:
        """Before a slot is taken: replies that nobody refers to go back; a request that was not submitted is void."""
        while self._dropped:
            raw = self._dropped.popleft()
            self._held.pop(ctypes.addressof(raw), None)
            lib.release(self._handle, byref(raw))
        if requests and self._slot is not None:
            self._slot.refuse_if_lent()
            self._slot.end("it was not submitted, and a later call took the same slot")
            self._slot = None

    def _refuse(self) -> None:
        if self._fork != forks[0]:
            raise of_errno(-130, "")
        raise Misuse(f"the session with model {self.model} was closed; attach another")

    def _overlapping(self) -> Error:
        return Misuse(f"the session with model {self.model} is in use by another thread: a session belongs to one thread at a "
                      "time; attach one per thread, or guard it with a lock")

    def _wrong_inputs(self, inputs: Dict[str, Any]) -> Error:
        return Misuse(f"model {self.model} is given inputs {', '.join(map(str, inputs)) or 'none'}: {self._call_text()}")

    def _call_text(self) -> str:
        return f"it takes {', '.join(map(repr, self._ins)) or 'no inputs'}"

    def _error(self, code: int) -> Error:
        return of_errno(code, lib.error(self._handle).decode(errors="replace"))

    def _failed(self, code: int) -> Error:
        """What `infer` ended in, if not in outputs."""
        if code < 0:
            return self._error(code)
        return of_status(STATUS[code], self.model, self.last)


def _plain(value: Any) -> Any:
    return value._live() if isinstance(value, View) else value


def _unsigned(value: int, what: str) -> int:
    if not 0 <= value < 2**32:
        raise Misuse(f"{what} is {value!r}; it is a number from 0 to {2**32 - 1}")
    return value
