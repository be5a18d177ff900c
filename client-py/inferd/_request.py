"""A request being written, the ticket of a submitted one, and its reply. Made by a `Session`, never by hand."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, Generator, Iterator, Mapping, Optional, Union

import numpy as np

from . import _library
from ._view import Slot, View
from .errors import of_status

if TYPE_CHECKING:
    from ._session import Session


class Request:
    """A free slot, to be written in place: ``request["obs"][:] = observation``, then `submit`.

    The slot holds what it last held: write every input, whole. A request that is not submitted costs nothing; the next
    `Session.request` or call takes the same slot again, and this object's views then raise `Released`.
    """

    __slots__ = ("_session", "_slot", "_views")

    def __init__(self, session: "Session", slot: Slot) -> None:
        self._session = session
        self._slot = slot
        self._views: Dict[Any, View] = {}

    def __getitem__(self, name: Union[str, int]) -> View:
        """A view on an input in the slot: dtype and shape as `Session.inputs` says. Nothing is copied, ever."""
        self._slot.check()
        view = self._views.get(name)
        if view is None:
            view = self._views[name] = self._session._input_view(self, name)
        return view

    def __setitem__(self, name: Union[str, int], value: Any) -> None:
        """Writes a whole input, with dtype and shape checked; one copy, into the slot."""
        tensor = self._session.inputs[name]  # type: ignore[index]
        array = tensor.check(value._live() if isinstance(value, View) else value)
        np.copyto(self[name]._live(), array)

    def submit(self, *, observation_id: int = 0, deadline: Optional[float] = None, executed: int = 0,
               reset: bool = False) -> "Ticket":
        """Publishes the slot; its views are dead afterwards.

        Parameters
        ----------
        observation_id: int
            A label of the caller's own; comes back in the reply.
        deadline: float, seconds from now
            The run shall not begin after it (`Expired`), and is `late` if it ends after it.
        executed: int
            Steps of the previous action chunk that were executed: a label for chunked policies.
        reset: bool
            Run this step on fresh recurrent state.

        Raises Unavailable or DaemonLost (nothing was published; the slot stays taken), Lent, Released.
        """
        return self._session._submit(self, observation_id, deadline, executed, reset)


class Ticket:
    """Names one submitted request. Wait for it, or abandon it: with queue ``in_order`` its slot is in use until then."""

    __slots__ = ("_session", "_raw")

    def __init__(self, session: "Session", raw: _library.Ticket) -> None:
        self._session = session
        self._raw = raw

    @property
    def number(self) -> int:
        """The request's number within its session, from 0; starts over after a reattach."""
        return int(self._raw.number)

    @property
    def epoch(self) -> int:
        """How often the session had reattached when this was submitted."""
        return int(self._raw.epoch) - 1

    def wait(self, timeout: Optional[float] = None) -> "Reply":
        """Waits for the outcome, whatever it is; `Reply.status` says which. The GIL is released meanwhile.

        timeout: seconds; None is the session's own, ``math.inf`` waits for as long as it takes.
        Raises Timeout (the request stands, its reply will be dropped), TicketUsed, and what a broken session raises.
        """
        return self._session._wait(self, timeout)

    def poll(self) -> Optional["Reply"]:
        """The outcome if it is there, else None. Never blocks."""
        return self._session._try(self)

    def abandon(self) -> None:
        """Gives the outcome up: it is dropped when it comes. The request is run all the same."""
        self._session._abandon(self)

    def __await__(self) -> Generator[Any, None, "Reply"]:
        """``reply = await ticket``: through the pollable descriptor of the session, with the session's timeout."""
        return self._session._wait_async(self, None).__await__()

    def __repr__(self) -> str:
        return f"Ticket({self.number}, epoch={self.epoch})"


class Outcome:
    """What a request ended in, without its outputs."""

    __slots__ = ("_raw",)

    def __init__(self, raw: _library.Reply) -> None:
        self._raw = raw

    @property
    def status(self) -> str:
        """``"ok"``, or another word of docs/semantics.md. Only ``"ok"`` has outputs."""
        return _library.STATUS.get(self._raw.status, "unknown")

    @property
    def ok(self) -> bool:
        return bool(self._raw.status == _library.OK)

    @property
    def late(self) -> bool:
        """The run ended after the deadline."""
        return bool(self._raw.flags & _library.LATE)

    @property
    def state_reset(self) -> bool:
        """This step ran on fresh recurrent state: asked for, or because the state was lost."""
        return bool(self._raw.flags & _library.STATE_RESET)

    @property
    def reset_pending(self) -> bool:
        """A reset was asked for and no step has run since."""
        return bool(self._raw.flags & _library.RESET_PENDING)

    @property
    def generation(self) -> int:
        """The generation that computed, or refused, this."""
        return int(self._raw.generation)

    @property
    def request(self) -> int:
        """Number of the request that this answers; for ``superseded`` the newer one's."""
        return int(self._raw.request)

    @property
    def observation_id(self) -> int:
        return int(self._raw.observation_id)

    @property
    def step(self) -> int:
        """Steps of this session that ended ok so far."""
        return int(self._raw.step)

    @property
    def skipped(self) -> int:
        """Requests passed over between the previous answered one and this one."""
        return int(self._raw.skipped)

    @property
    def age(self) -> float:
        """Seconds from submission to the start of the run: how old the observation was; 0.0 if it was not run."""
        return max(0, self._raw.t_start_ns - self._raw.t_submit_ns) * 1e-9 if self._raw.t_submit_ns else 0.0

    @property
    def latency(self) -> float:
        """Seconds from submission until the output was ready; 0.0 if it was not run."""
        return max(0, self._raw.t_done_ns - self._raw.t_submit_ns) * 1e-9 if self._raw.t_submit_ns else 0.0

    @property
    def t_submit_ns(self) -> int:
        """``time.monotonic_ns()`` of the submission; 0 for superseded and daemon_lost, as the two below."""
        return int(self._raw.t_submit_ns)

    @property
    def t_start_ns(self) -> int:
        """When the worker took the request."""
        return int(self._raw.t_start_ns)

    @property
    def t_done_ns(self) -> int:
        """When the output was ready."""
        return int(self._raw.t_done_ns)

    def __repr__(self) -> str:
        flags = "".join(f", {name}" for name in ("late", "state_reset") if getattr(self, name))
        return f"<{type(self).__name__} {self.request}: {self.status}{flags}, generation {self.generation}>"


class Outputs(Mapping[str, View]):
    """Outputs of a held reply by name, each a read-only view on its slot."""

    __slots__ = ("_reply",)

    def __init__(self, reply: "Reply") -> None:
        self._reply = reply

    def __getitem__(self, name: Union[str, int]) -> View:  # type: ignore[override]
        return self._reply._output(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._reply._session.outputs)

    def __len__(self) -> int:
        return len(self._reply._session.outputs)


class Reply(Outcome):
    """An outcome with its outputs, which stand in the slot until `release`, or until nothing refers to this object.

    ``with ticket.wait() as reply:`` releases at the end of the block; `take` copies and releases.
    """

    __slots__ = ("_session", "_slot", "_views", "__weakref__")

    def __init__(self, session: "Session", raw: _library.Reply) -> None:
        super().__init__(raw)
        self._session = session
        self._slot = Slot(f"model {session.model}, reply to request {raw.request}")
        self._views: Dict[Any, "np.ndarray[Any, Any]"] = {}

    @property
    def outputs(self) -> Outputs:
        """Views by name, read-only, nothing copied: ``reply.outputs["actions"]``. Raises unless the status is ok."""
        self.check()
        return Outputs(self)

    def check(self) -> "Reply":
        """Itself; raises what the status stands for (`Expired`, `ModelError`, ...) unless it is ok."""
        if self._raw.status != _library.OK:
            raise of_status(self.status, self._session.model, self)
        return self

    def take(self) -> Any:
        """Copies of the outputs (an array, or a dict if there are several), and gives the slot back."""
        self.check()
        self._slot.check()
        copies = {name: self._output(name).copy() for name in self._session.outputs}
        self.release()
        return next(iter(copies.values())) if len(copies) == 1 else copies

    def release(self) -> None:
        """Gives the slot back; its views are dead afterwards. Again is allowed, and does nothing. Raises Lent."""
        if self._raw.held:
            self._slot.refuse_if_lent()
            self._session._release(self._raw, self._slot)

    def _output(self, name: Union[str, int]) -> View:
        self._slot.check()
        array = self._views.get(name)
        if array is None:
            array = self._views[name] = self._session._output_array(self._raw, name)
        return View(array, self._slot, self)

    def __enter__(self) -> "Reply":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        # May run in any thread: the session gives the slot back at its next call.
        raw = getattr(self, "_raw", None)
        if raw is not None and raw.held and self._slot.why is None:
            self._session._dropped.append(raw)
