"""What begins and ends: calls under way, and processes that are forked."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from ..io import IO, Breakable, Event

_logger = logging.getLogger("dspex_pipe.llm")

_LEAVING = 1.0  # seconds that calls have to leave when they were broken off

__all__ = ["UnderWay", "renew_after_fork", "renew_all"]


class UnderWay:
    """Counts the calls under way, from any thread; a context manager around each."""

    def __init__(self) -> None:
        self._count = 0
        self.dropped: deque[None] = deque()
        """Calls that were dropped: told by a finaliser, which must take no lock."""
        self._changed = threading.Condition()
        self._waiters: list[Event] = []
        self._breakable: set[Breakable] = set()
        self.broken_off = False
        """Whether what ran on event loops was broken off; what does not run just now is to end itself."""

    def __enter__(self) -> None:
        with self._changed:
            self._count += 1

    def __exit__(self, *exc_info: object) -> None:
        with self._changed:
            self._count -= 1
            if not self.left():
                self._changed.notify_all()
                for waiter in self._waiters:
                    waiter.set()

    def left(self) -> int:
        """How many there are."""
        return self._count - len(self.dropped)

    def end(self, drain: float) -> None:
        """Wait until there are none, for so many seconds; then break off what can be."""
        self._wait(drain)
        self._break_off()
        self._wait(_LEAVING if self._breakable else 0.0)

    async def aend(self, io: IO, drain: float) -> None:
        """Wait until there are none, in this mode; see `end`."""
        try:
            await self._await(io.event(), drain)
        finally:  # also when nobody wants to wait any longer
            self._break_off()
        await self._await(io.event(), _LEAVING if self._breakable else 0.0)

    def _wait(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self.left(), seconds)

    async def _await(self, event: Event, seconds: float) -> None:
        with self._changed:
            if not self.left():
                return
            self._waiters.append(event)
        await event.wait(seconds)

    @contextmanager
    def breakable(self) -> Iterator[None]:
        """What runs inside, on an event loop, can be broken off; what follows it goes on."""
        inside = Breakable()
        self._breakable.add(inside)
        try:
            with inside:
                yield
        finally:
            self._breakable.discard(inside)

    def _break_off(self) -> None:
        """Break off what runs on event loops, whichever."""
        self.broken_off = True
        for inside in list(self._breakable):
            inside.break_off()


class Renewable(Protocol):
    """What must begin anew in a forked process."""

    def renew(self) -> None:
        """Begin anew; no lock of before may be taken, another thread may have held it."""
        ...


_renewable: weakref.WeakSet[Any] = weakref.WeakSet()


def renew_after_fork(thing: Renewable) -> None:
    """Let something begin anew in every process that is forked from this one."""
    _renewable.add(thing)


def renew_all() -> None:
    """Let everything begin anew, as in a forked process."""
    for thing in list(_renewable):
        try:
            thing.renew()
        except Exception:  # one that fails must not leave the others with locks that nobody opens
            _logger.exception("%r could not begin anew after a fork", thing)


if hasattr(os, "register_at_fork"):  # pragma: no branch - not on Windows
    os.register_at_fork(after_in_child=renew_all)
