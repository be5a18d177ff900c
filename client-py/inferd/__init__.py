"""inferd: neural-network policies served to robot processes over shared memory.

::

    import inferd

    with inferd.Session("go2") as robot:
        action = robot(obs=observation, deadline=0.004)

`Session` is the whole data path; `inferd.admin` speaks to the operator's socket; ``python -m inferd`` lists what is
served. Exceptions say who must act: `Fallback` (the robot, now), `CallerError`, `ModelError`, `OperatorError`.
"""
from __future__ import annotations

from . import errors
from ._library import lib as _lib
from ._request import Outcome, Outputs, Reply, Request, Ticket
from ._session import Info, Session
from ._tensor import Tensor
from ._view import View
from .errors import *  # noqa: F401,F403

from ._version import __version__
__all__ = ["Session", "Request", "Ticket", "Reply", "Outcome", "Outputs", "Tensor", "View", "Info", "library_version",
           "library_path", "errors", *errors.__all__]


def library_version() -> str:
    """Version of the loaded libinferd."""
    return str(_lib.version().decode())


def library_path() -> str:
    """Where the loaded libinferd lies."""
    return str(_lib.path)
