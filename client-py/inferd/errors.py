"""What can go wrong, by who must act.

==================== ==================================================================================
class                who acts, and how
==================== ==================================================================================
:class:`Fallback`    the robot, now: use the fallback action. Nothing is wrong with the program.
:class:`CallerError` the author of the calling program: fix the call.
:class:`ModelError`  the model's author: the backend raised, or its output was refused by the guard.
:class:`OperatorError` whoever runs the daemon: start it, serve the model, grant the right.
==================== ==================================================================================

Every message says what, where and the remedy. ``except inferd.Fallback`` is what a control loop wants.
"""
from __future__ import annotations

import errno
from typing import Any, Dict, Optional, Type

__all__ = [
    "Error", "Fallback", "CallerError", "ModelError", "OperatorError",
    "Timeout", "Expired", "Superseded", "Again", "Unavailable", "WorkerLost", "ShuttingDown", "DaemonLost",
    "Misuse", "WrongType", "BadRequest", "Rejected", "NeedsReset", "WrongProcess", "Released", "Lent", "TicketUsed",
    "NoDaemon", "UnknownModel", "Forbidden", "Quota", "AbiMismatch", "ClockSkew", "SignatureChanged", "NoResources",
    "BadRegion", "Protocol", "LibraryMissing",
]


class Error(Exception):
    """Everything that this package raises by itself. `name` is the word of docs/semantics.md, such as ``"expired"``."""

    name = "error"
    #: The reply that told, where there is one: its generation, its times, its flags.
    reply: Any = None


class Fallback(Error):
    """There is no action now: use the fallback. The next call may well succeed."""


class CallerError(Error):
    """The calling program must change."""


class ModelError(Error):
    """The model raised, or the guard refused its output; state is as before. The daemon's log has the model's own message."""

    name = "model_error"


class OperatorError(Error):
    """The daemon, its configuration or this machine must change."""


class Timeout(Fallback, TimeoutError):
    """No answer within the time given. The request still stands, and its late reply is dropped."""

    name = "timeout"


class Expired(Fallback):
    """The deadline passed before the run began; it was not run, and state did not advance."""

    name = "expired"


class Superseded(Fallback):
    """Queue ``latest``: a newer request was taken instead."""

    name = "superseded"


class Again(Fallback):
    """All slots are in flight or held; nothing was published. Wait for a reply, or release one."""

    name = "again"


class Unavailable(Fallback):
    """The model is recovering or quarantined; the request was not run."""

    name = "unavailable"


class WorkerLost(Fallback):
    """The worker died or hung while this request ran. Another one takes over by itself."""

    name = "worker_lost"


class ShuttingDown(Fallback):
    """The daemon drains; the session reattaches when the next one is up."""

    name = "shutting_down"


class DaemonLost(Fallback, ConnectionError):
    """The session has ended; whether the request ran is unknown. Later calls reattach by themselves."""

    name = "daemon_lost"


class Misuse(CallerError, ValueError):
    """An argument is out of range, of the wrong shape, or used in the wrong order; nothing was published."""

    name = "invalid"


class WrongType(Misuse, TypeError):
    """An array of another element type than the model takes, or something that is no array."""


class BadRequest(CallerError):
    """The daemon finds the wish malformed, or asks for more than the model's configuration allows."""

    name = "bad_request"


class Rejected(CallerError):
    """Header or tensors were refused: for instance a NaN where the manifest forbids it."""

    name = "rejected"


class NeedsReset(CallerError):
    """The recurrent state was lost: send a request with ``reset=True``."""

    name = "needs_reset"


class WrongProcess(CallerError):
    """A session belongs to the process that attached; a forked child attaches one of its own."""

    name = "wrong_process"


class Released(CallerError, ValueError):
    """A view was used after its slot was given back."""

    name = "released"


class Lent(CallerError, BufferError):
    """A slot cannot be given back while a plain array over it is alive: delete the array, or copy it."""

    name = "lent"


class TicketUsed(CallerError):
    """The outcome of this ticket was taken before, was given up, or lies over 256 replies back."""

    name = "invalid"


class NoDaemon(OperatorError, ConnectionError):
    """No socket, or nobody listens."""

    name = "no_daemon"


class UnknownModel(OperatorError, KeyError):
    """The daemon serves no model of that name; ``python -m inferd`` lists what it serves."""

    name = "unknown_model"

    def __str__(self) -> str:  # KeyError would show its repr
        return str(self.args[0]) if self.args else ""


class Forbidden(OperatorError, PermissionError):
    """This user may not attach, or may not command."""

    name = "forbidden"


class Quota(OperatorError):
    """A quota of the daemon is reached."""

    name = "quota"


class AbiMismatch(OperatorError):
    """Library and daemon are of different major versions."""

    name = "abi_mismatch"


class ClockSkew(OperatorError):
    """Client and daemon live in different time namespaces."""

    name = "clock_skew"


class SignatureChanged(OperatorError):
    """The model came back with other inputs or outputs: close the session and attach again."""

    name = "other"


class NoResources(OperatorError):
    """Memory, descriptors or address space ran out, here or in the daemon."""

    name = "no_resources"


class BadRegion(OperatorError):
    """The daemon finds that this client's region was resealed, punched or not populated."""

    name = "bad_region"


class Protocol(OperatorError):
    """The daemon broke the protocol, or memory is damaged: install daemon and library of one release."""

    name = "other"


class LibraryMissing(OperatorError, ImportError):
    """libinferd.so is not to be found, or cannot be loaded."""

    name = "other"


BY_ERRNO: Dict[int, Type[Error]] = {
    errno.EAGAIN: Again,
    errno.ETIMEDOUT: Timeout,
    errno.EHOSTDOWN: Unavailable,
    errno.ECONNRESET: DaemonLost,
    errno.EOWNERDEAD: WrongProcess,
    errno.EINVAL: Misuse,
    errno.ESTALE: TicketUsed,
    errno.EBUSY: Lent,
    errno.EREMCHG: SignatureChanged,
    errno.EPROTO: Protocol,
    errno.ESHUTDOWN: ShuttingDown,
    errno.ECONNREFUSED: NoDaemon,
    errno.ENODEV: UnknownModel,
    errno.EPROTONOSUPPORT: AbiMismatch,
    errno.EDQUOT: Quota,
    errno.EACCES: Forbidden,
    errno.ETIME: ClockSkew,
    errno.EBADMSG: BadRequest,
    errno.ENOMEM: NoResources,
    errno.ENOSPC: NoResources,
    errno.EBADFD: BadRegion,
}

#: What an outcome that is not `ok` raises, and the sentence.
BY_STATUS: Dict[str, Type[Error]] = {
    cls.name: cls
    for cls in (Expired, Rejected, ModelError, WorkerLost, NeedsReset, ShuttingDown, Unavailable, Superseded, DaemonLost)
}

WRONG_PROCESS = ("this process is a fork of the one that attached; a session belongs to one process: "
                 "attach a session of its own here")


def of_errno(number: int, sentence: str) -> Error:
    """The exception for a negative number of the C library."""
    kind = BY_ERRNO.get(-number, Error)
    if kind is WrongProcess or not sentence:
        sentence = WRONG_PROCESS if kind is WrongProcess else (kind.__doc__ or "").splitlines()[0]
    return kind(sentence)


def of_status(status: str, model: str, reply: Optional[Any] = None) -> Error:
    """The exception for an outcome that has no outputs."""
    kind = BY_STATUS[status]
    error = kind(f"model {model}: {status}: {(kind.__doc__ or '').splitlines()[0]}")
    error.reply = reply
    return error
