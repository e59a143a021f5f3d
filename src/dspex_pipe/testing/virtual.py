"""Virtual time: a clock that moves when somebody waits, and a small deterministic scheduler."""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator, Coroutine, Generator
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import LayerError
from ..family import Response
from ..io import ASYNC, BLOCKING, IO

if TYPE_CHECKING:
    from stamina import Attempt

    from ..io import Attempts

__all__ = ["VirtualIO"]

T = TypeVar("T")


class VirtualIO(IO):
    """An `IO` whose clock moves only when somebody waits, and then at once.

    Give it to a client (``build_client(…, io=VirtualIO())``) and waits take no time. To run several calls
    at once, give their coroutines to `run_all`: they take turns in an order that depends on nothing but the
    clock and the order they were given in.

    Args:
        seed: Of the random numbers.
        start: Seconds on the clock at first.
        epoch: What ``wall()`` says when the clock is at zero, in seconds since 1970.
    """

    def __init__(self, *, seed: int = 0, start: float = 0.0, epoch: float = 1_800_000_000.0) -> None:
        super().__init__(Random(seed).random)  # noqa: S311 - tests, not secrets
        self._clock = start
        self._epoch = epoch
        self._scheduled = False

    def now(self) -> float:
        """Seconds on the virtual clock."""
        return self._clock

    def wall(self) -> float:
        """Seconds since 1970, on the virtual clock."""
        return self._epoch + self._clock

    def advance(self, seconds: float) -> None:
        """Move the clock."""
        self._clock += seconds

    async def sleep(self, seconds: float) -> None:
        """Move the clock, or, under `run_all`, let others run until it has moved so far."""
        if self._scheduled:
            await _Until(self._clock + max(0.0, seconds))
        else:
            self._clock += max(0.0, seconds)

    async def close(self, response: Response) -> None:
        """Close the body, whichever way it closes."""
        await (BLOCKING if hasattr(response.stream, "close") else ASYNC).close(response)

    def chunks(self, response: Response) -> AsyncIterator[bytes]:
        """The raw body, whichever way it reads."""
        return (ASYNC if hasattr(response.stream, "__aiter__") else BLOCKING).chunks(response)

    async def before_wait(self, seconds: float) -> float:
        """Wait here, on the virtual clock, and leave nothing for stamina to sleep."""
        await self.sleep(seconds)
        return 0.0

    def attempts(self, context: Attempts) -> AsyncIterator[Attempt]:
        """Walk through stamina's attempts without an event loop."""
        return BLOCKING.attempts(context)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run one coroutine to its end, and return or raise what it does."""
        (result,) = self.run_all(coroutine)
        if isinstance(result, BaseException):
            raise result
        return result

    def run_all(self, *coroutines: Coroutine[Any, Any, T]) -> list[T | BaseException]:
        """Run coroutines side by side; their results in order, an exception in place of a result."""
        results: dict[int, T | BaseException] = {}
        sleeping = [(self._clock, turn, turn) for turn in range(len(coroutines))]
        order = len(coroutines)
        self._scheduled = True
        try:
            while sleeping:
                until, _, number = heapq.heappop(sleeping)
                self._clock = max(self._clock, until)
                try:
                    signal = coroutines[number].send(None)
                except StopIteration as done:
                    results[number] = done.value
                except BaseException as exc:  # noqa: BLE001 - handed to the caller as a result
                    results[number] = exc
                else:
                    if not isinstance(signal, float):
                        coroutines[number].close()
                        results[number] = LayerError("awaited something that is not io's")
                        continue
                    heapq.heappush(sleeping, (signal, order, number))
                    order += 1
        finally:
            self._scheduled = False
        return [results[number] for number in range(len(coroutines))]


class _Until:
    """Suspends until the scheduler's clock has come this far."""

    def __init__(self, when: float) -> None:
        self.when = when

    def __await__(self) -> Generator[float, None, None]:
        yield self.when
