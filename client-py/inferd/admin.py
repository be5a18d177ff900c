"""The control socket: what an operator asks of the daemon, from Python.

::

    from inferd import admin

    for model in admin.models():
        print(model["model"], model["state"], model["generation"])
    admin.reload("go2", progress=lambda p: print(p["stage"]))

JSON-RPC 2.0, one message per line; nothing but the standard library, and no libinferd. Every command of docs/control.md is a
function of the same name here and a method of `Control`; answers are the daemon's JSON objects as dicts.
"""
from __future__ import annotations

import errno
import json
import os
import socket
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Union

from .errors import CallerError, Error, Forbidden, NoDaemon, OperatorError, Protocol, Timeout, UnknownModel

__all__ = ["Control", "Refused", "Busy", "ModelRefused", "status", "models", "sessions", "limits", "stats", "load", "unload",
           "reload", "rollback", "history", "dump", "validate", "disconnect", "drain", "log", "version"]

PathLike = Union[str, "os.PathLike[str]"]
Progress = Callable[[Dict[str, Any]], None]
#: A line longer than this is no answer of a daemon.
_LINE_BYTES_MAX = 16 * 1024 * 1024


class Refused(OperatorError):
    """The daemon refused a command; `code` is docs/control.md's."""

    code = 0


class ModelRefused(Refused):
    """The model was refused; what was live still is."""


class Busy(Refused):
    """Another changing command on the same model is under way."""


_BY_CODE: Dict[int, type] = {-32000: UnknownModel, -32001: ModelRefused, -32002: Busy, -32602: CallerError, -32601: CallerError}


def runtime_dir(wish: Optional[PathLike] = None) -> Path:
    """The daemon's directory: the wish, ``$INFERD_RUNTIME_DIR``, ``$XDG_RUNTIME_DIR/inferd`` if it is there, ``/run/inferd``."""
    if wish is not None:
        return Path(wish)
    if os.environ.get("INFERD_RUNTIME_DIR"):
        return Path(os.environ["INFERD_RUNTIME_DIR"])
    mine = Path(os.environ.get("XDG_RUNTIME_DIR") or "/nonexistent") / "inferd"
    return mine if (mine / "control.sock").exists() else Path("/run/inferd")


class Control:
    """A connection to the control socket. One command at a time; ``with Control() as control:`` closes it."""

    def __init__(self, runtime_dir: Optional[PathLike] = None, timeout: float = 120.0) -> None:
        """timeout: seconds that the daemon may be silent. Raises NoDaemon, Forbidden."""
        self.path = globals()["runtime_dir"](runtime_dir) / "control.sock"
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(str(self.path))
        except OSError as e:
            self._socket.close()
            if e.errno in (errno.EACCES, errno.EPERM):
                raise Forbidden(f"{self.path}: {e.strerror}; operators are in the group inferd-admin") from None
            raise NoDaemon(f"{self.path}: {e.strerror or e}; start inferd, or set INFERD_RUNTIME_DIR") from None
        self._input = b""
        self._descriptors: List[int] = []
        self._id = 0

    def call(self, method: str, progress: Optional[Progress] = None, **params: Any) -> Any:
        """Sends one command and returns its result; parameters that are None are left out.

        progress: called with every notification of a long command: ``{"id", "model", "stage"}``, some with ``done`` and ``of``.
        Raises UnknownModel, ModelRefused, Busy, CallerError, Refused, NoDaemon (the daemon hung up), Timeout.
        """
        self._id += 1
        given = {k: v for k, v in params.items() if v is not None}
        request = {"jsonrpc": "2.0", "id": self._id, "method": method, "params": given}
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            while True:
                message = json.loads(self._line(method))
                if message.get("method") == "progress":
                    if progress is not None:
                        progress(message["params"])
                elif message.get("id") == self._id:
                    return self._result(message)
        except socket.timeout:
            raise Timeout(f"{method}: the daemon said nothing for {self._socket.gettimeout():g} s") from None
        except ValueError as e:
            raise Protocol(f"{method}: the daemon's answer is not JSON: {e}") from None
        except OSError as e:
            if isinstance(e, Error):
                raise
            raise NoDaemon(f"{method}: {e}") from None

    def _line(self, method: str) -> bytes:
        """The next line. Descriptors that come beside it are kept, for `dump`."""
        while b"\n" not in self._input:
            data, descriptors, _, _ = socket.recv_fds(self._socket, 65536, 4)
            self._descriptors += descriptors
            if not data or len(self._input) > _LINE_BYTES_MAX:
                raise NoDaemon(f"{method}: the daemon hung up before it answered; its log says why")
            self._input += data
        line, _, self._input = self._input.partition(b"\n")
        return line

    @staticmethod
    def _result(message: Dict[str, Any]) -> Any:
        error = message.get("error")
        if error is None:
            return message["result"]
        raised = _BY_CODE.get(error["code"], Refused)(error["message"])
        raised.code = error["code"]
        raise raised

    def close(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []
        self._socket.close()

    def __enter__(self) -> "Control":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- commands

    def status(self) -> Dict[str, Any]:
        """The daemon at a glance: state, pid, version, uptime_s, models by state, sessions."""
        return self.call("status")  # type: ignore[no-any-return]

    def models(self) -> List[Dict[str, Any]]:
        """All models: model, state, message, generation, backend, path, sha256, signature, worker_pid, ..."""
        return self.call("models")  # type: ignore[no-any-return]

    def sessions(self) -> List[Dict[str, Any]]:
        """All sessions: session, model, uid, pid, queue, slots, region_bytes, age_s."""
        return self.call("sessions")  # type: ignore[no-any-return]

    def limits(self) -> Dict[str, int]:
        """Every limit by name."""
        return self.call("limits")  # type: ignore[no-any-return]

    def stats(self, model: Optional[str] = None) -> Dict[str, Any]:
        """Counters and latencies [ns] since the worker took over, by model."""
        return self.call("stats", model=model)  # type: ignore[no-any-return]

    def load(self, model: str, path: PathLike, backend: Optional[str] = None, progress: Optional[Progress] = None) -> Dict[str, Any]:
        """Serves a new model until the daemon ends; the configuration is not written."""
        return self.call("load", progress, model=model, path=_absolute(path), backend=backend)  # type: ignore[no-any-return]

    def unload(self, model: str) -> Dict[str, Any]:
        """Stops serving a model; its sessions end."""
        return self.call("unload", model=model)  # type: ignore[no-any-return]

    def reload(self, model: str, path: Optional[PathLike] = None, progress: Optional[Progress] = None, *,
               shadow_steps: Optional[int] = None, shadow_s: Optional[float] = None, max_diff: Optional[Dict[str, float]] = None,
               max_latency_us: Optional[float] = None, dry_run: Optional[bool] = None) -> Dict[str, Any]:
        """The next generation, from the same or another file: loaded, checked, warmed up, then swapped in between two steps.

        shadow_steps, shadow_s: first run it on so many recorded steps, or on those of so many seconds, without answering anybody.
        max_diff: largest difference per output; max_latency_us: largest p99 of a run. dry_run: judge, and change nothing.
        Returns what was done, with the `verdict`; a refusal raises ModelRefused, and what was live still is.
        """
        shadow = {k: v for k, v in (("steps", shadow_steps), ("seconds", shadow_s)) if v is not None} or None
        return self.call("reload", progress, model=model, path=None if path is None else _absolute(path),  # type: ignore[no-any-return]
                         shadow=shadow, max_diff=max_diff, max_latency_us=max_latency_us, dry_run=dry_run)

    def rollback(self, model: str) -> Dict[str, Any]:
        """Takes the kept previous generation back."""
        return self.call("rollback", model=model)  # type: ignore[no-any-return]

    def history(self, model: str) -> List[Dict[str, Any]]:
        """What went live and what was refused, newest first: generation, sha256, when, by which uid, verdict, how it ended."""
        return self.call("history", model=model)  # type: ignore[no-any-return]

    def dump(self, model: str, session: Optional[int] = None) -> Dict[str, Any]:
        """The last recorded steps, as they lie in memory: ``inferctl dump`` makes an npz file of them.

        The answer has, beside the daemon's keys, ``descriptor``: an open, read-only file of the record region, laid out as
        docs/record-region.md says. It is the caller's: ``os.close`` it, or give it to ``os.fdopen``.
        """
        answer: Dict[str, Any] = self.call("dump", model=model, session=session)
        if not self._descriptors:
            raise Protocol("dump: no descriptor came with the answer")
        answer["descriptor"] = self._descriptors.pop()
        return answer

    def validate(self, path: PathLike, backend: Optional[str] = None, progress: Optional[Progress] = None) -> Dict[str, Any]:
        """Loads, checks and warms up a file without serving it."""
        return self.call("validate", progress, path=_absolute(path), backend=backend)  # type: ignore[no-any-return]

    def disconnect(self, session: int) -> Dict[str, Any]:
        """Ends a session."""
        return self.call("disconnect", session=session)  # type: ignore[no-any-return]

    def drain(self) -> Dict[str, Any]:
        """Drains and exits, like SIGTERM; answers before the exit."""
        return self.call("drain")  # type: ignore[no-any-return]

    def log(self, level: str) -> Dict[str, Any]:
        """Changes what daemon and workers log: "info", "debug", "inferd=trace"."""
        return self.call("log", level=level)  # type: ignore[no-any-return]

    def version(self) -> Dict[str, Any]:
        """Versions: version, abi, kernel."""
        return self.call("version")  # type: ignore[no-any-return]


def _absolute(path: PathLike) -> str:
    return os.path.abspath(os.fspath(path))


def _once(name: str) -> Callable[..., Any]:
    """The command over a connection of its own, with `runtime_dir` as one more keyword."""
    method = getattr(Control, name)

    def command(*args: Any, runtime_dir: Optional[PathLike] = None, **kwargs: Any) -> Any:
        with Control(runtime_dir) as control:
            return method(control, *args, **kwargs)

    command.__name__ = command.__qualname__ = name
    command.__doc__ = method.__doc__
    return command


status = _once("status")
models = _once("models")
sessions = _once("sessions")
limits = _once("limits")
stats = _once("stats")
load = _once("load")
unload = _once("unload")
reload = _once("reload")
rollback = _once("rollback")
history = _once("history")
dump = _once("dump")
validate = _once("validate")
disconnect = _once("disconnect")
drain = _once("drain")
log = _once("log")
version = _once("version")
