"""Whose turn it is: coroutines that wait for a virtual clock, or for an event."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Coroutine, Generator
from contextlib import suppress
from typing import Any, TypeAlias

from ..errors import LayerError
from ..io import Background

__all__ = ["Flag", "Task", "Turns", "Until", "cancel"]

Waiting: TypeAlias = "Coroutine[Any, Any, Any]"


class Cancelled(BaseException):
    """Raised in a coroutine that is cancelled, as asyncio and trio raise their own."""


class Until:
    """Awaited, it suspends until the clock has come this far, or a flag is set."""

    def __init__(self, at: float, flag: Flag | None = None) -> None:
        self.at = at
        self.flag = flag

    def when(self, now: float) -> float:
        """When it is over, as far as is known now."""
        return now if self.flag is not None and self.flag.is_set else self.at

    def __await__(self) -> Generator[Until, None, None]:
        yield self


class Turns:
    """A clock, and coroutines that wait for it; of two at the same time, who has waited longer goes first.

    Args:
        now: Seconds on the clock at first.
    """

    def __init__(self, now: float) -> None:
        self.now = now
        self._waits: dict[Waiting, tuple[int, Until]] = {}
        self._queue: list[tuple[float, int, Waiting]] = []  # some are woken earlier, or gone
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._waits)

    def wait(self, coroutine: Waiting, until: Until) -> None:
        """Let a coroutine wait."""
        number = next(self._numbers)
        self._waits[coroutine] = number, until
        at = until.when(self.now)
        if at < math.inf:
            heapq.heappush(self._queue, (at, number, coroutine))
        if until.flag is not None:
            until.flag.waiters.append((coroutine, number))

    def wake(self, coroutine: Waiting, number: int) -> None:
        """It need not wait any longer, if it still does."""
        if coroutine in self._waits and self._waits[coroutine][0] == number:
            heapq.heappush(self._queue, (self.now, number, coroutine))

    def next(self) -> Waiting:
        """Whose turn it is; the clock has moved so far.

        Raises:
            LayerError: All of them wait, and nothing will wake them.
        """
        while self._queue:
            at, number, coroutine = heapq.heappop(self._queue)
            if coroutine not in self._waits or self._waits[coroutine][0] != number:
                continue
            del self._waits[coroutine]
            self.now = max(self.now, at)
            return coroutine
        raise LayerError("every coroutine waits, and nothing will wake them")

    def drop(self, coroutine: Waiting) -> None:
        """Let a coroutine take no more turns, and cancel it, if it waits."""
        if self._waits.pop(coroutine, None) is not None:
            cancel(coroutine)

    def close(self) -> None:
        """Cancel all who wait."""
        for coroutine in list(self._waits):
            self.drop(coroutine)


def cancel(coroutine: Waiting) -> None:
    """Cancel a coroutine that waits, as anyio does: what it waits for on its way out is cancelled, too."""
    with suppress(Cancelled, StopIteration):
        while True:
            coroutine.throw(Cancelled())


class Flag:
    """An event among them."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self.is_set = False
        self.waiters: list[tuple[Waiting, int]] = []

    def set(self) -> None:
        """Set it, and wake who waits for it."""
        self.is_set = True
        for coroutine, number in self.waiters:
            self._turns.wake(coroutine, number)
        self.waiters.clear()

    async def wait(self, seconds: float | None = None) -> bool:
        """Wait until it is set, or for so many seconds; whether it is set."""
        if not self.is_set:
            await Until(math.inf if seconds is None else self._turns.now + seconds, self)
        return self.is_set


class Task(Background):
    """A coroutine that takes its turns beside those whose results are wanted."""

    def __init__(self, turns: Turns, coroutine: Coroutine[Any, Any, None]) -> None:
        super().__init__()
        self._turns = turns
        self._coroutine = coroutine
        self._ended = Flag(turns)
        self._running = self._run()
        turns.wait(self._running, Until(turns.now))

    async def _run(self) -> None:
        try:
            await self._coroutine
            self._complete = True
        except Exception as exc:  # noqa: BLE001 - raised where it is waited for
            self._error = exc
        finally:
            self._ended.set()

    async def _wait(self, seconds: float | None) -> bool:
        return await self._ended.wait(seconds)

    async def cancel(self) -> None:
        """Cancel it, wherever it is."""
        self._turns.drop(self._running)
        self._coroutine.close()  # if it has not begun
