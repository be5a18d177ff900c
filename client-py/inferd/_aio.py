"""Waiting in an event loop: one reader on the session's descriptor, however many tickets are waited for.

The reader is there while somebody waits, and no longer: a session may be used from one asyncio.run() after another. A
daemon that is stopped rings no doorbell, so every wait has a time of its own; a killed one closes the descriptor.
"""
from __future__ import annotations

import asyncio
import math
import weakref
from typing import TYPE_CHECKING, Dict, Optional

from ._library import lib
from .errors import CallerError, Error, Timeout

if TYPE_CHECKING:
    from ._request import Reply, Ticket
    from ._session import Session

#: A look without a doorbell: notices a session that ended in silence.
_LOOK_S = 0.1


class Waiters:
    """The tickets of one session that coroutines wait for."""

    def __init__(self, session: "Session") -> None:
        # No cycle: a session that nobody refers to detaches at once. Whoever waits has a ticket, which refers to it.
        self._session: Session = weakref.proxy(session)
        self._futures: Dict[asyncio.Future[Reply], Ticket] = {}
        self._loop: Optional[asyncio.AbstractEventLoop] = None
        self._fd = -1
        self._timer: Optional[asyncio.TimerHandle] = None

    def __bool__(self) -> bool:
        return bool(self._futures)

    async def wait(self, ticket: "Ticket", timeout: float) -> "Reply":
        reply = ticket.poll()
        if reply is not None:
            return reply
        loop = asyncio.get_running_loop()
        if self._futures and self._loop is not loop:
            raise CallerError("coroutines of two event loops wait on one session: attach one for each")
        self._loop = loop
        future: "asyncio.Future[Reply]" = loop.create_future()
        self._futures[future] = ticket
        self._watch()
        try:
            return await asyncio.wait_for(future, None if timeout == math.inf else timeout)
        except asyncio.TimeoutError:
            raise Timeout("no answer within the timeout; use the fallback (the ticket is abandoned)") from None
        finally:
            if self._futures.pop(future, None) is not None:  # not answered: timed out, or cancelled
                try:
                    ticket.abandon()
                except Error:
                    pass  # the session ended meanwhile, and with it the ticket
            if not self._futures:
                self._unwatch()

    def _look(self) -> None:
        """Gives every outcome that is there to its waiter."""
        for future, ticket in list(self._futures.items()):
            if future.done():
                continue
            try:
                reply = ticket.poll()
            except Error as e:
                self._futures.pop(future)
                future.set_exception(e)
                continue
            if reply is not None:
                self._futures.pop(future)
                future.set_result(reply)

    def _watch(self) -> None:
        """Arms the doorbell; where something changed meanwhile, looks first."""
        while self._futures:
            self._look()
            if not self._futures or self._session.arm():
                break
        if self._futures:
            self._read(self._session.fileno())
            if self._timer is None and self._loop is not None:
                self._timer = self._loop.call_later(_LOOK_S, self._on_timer)

    def _read(self, fd: int) -> None:
        if fd != self._fd and self._loop is not None:
            if self._fd >= 0:
                self._loop.remove_reader(self._fd)
            self._loop.add_reader(fd, self._watch)
            self._fd = fd

    def _on_timer(self) -> None:
        self._timer = None
        self._watch()

    def _unwatch(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            if self._fd >= 0:
                self._loop.remove_reader(self._fd)
            if self._timer is not None:
                self._timer.cancel()
        self._fd, self._timer, self._loop = -1, None, None

    def close(self) -> None:
        """The session ends: whoever waits is told."""
        for future in list(self._futures):
            if not future.done():
                future.set_exception(CallerError("the session was closed while a coroutine waited on it"))
        self._futures.clear()
        self._unwatch()
