"""Virtual time: a clock that moves when somebody waits, and a small deterministic scheduler."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import LayerError
from ..family import Response
from ..io import ASYNC, BLOCKING, IO, OutOfTime

if TYPE_CHECKING:
    from stamina import Attempt

    from ..io import Attempts, Background, Event

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
        self._waiting: dict[Coroutine[Any, Any, Any], _Until] = {}

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

    async def close(self, response: Response, chunks: Any = None) -> None:
        """Close the body, whichever way it closes."""
        if _in_a_loop():
            await ASYNC.close(response, chunks)
        elif self._scheduled:
            await response.stream.aclose()  # type: ignore[union-attr] # nobody cancels here
        else:
            await BLOCKING.close(response)

    def chunks(self, response: Response) -> AsyncIterator[bytes]:
        """The raw body, whichever way it reads."""
        return (ASYNC if self._scheduled or _in_a_loop() else BLOCKING).chunks(response)

    async def bounded(self, coroutine: Coroutine[Any, Any, T], seconds: float) -> T:
        """Await it; under `run_all` it is cancelled when the time on the virtual clock is over."""
        if not self._scheduled:
            return await (ASYNC if _in_a_loop() else BLOCKING).bounded(coroutine, seconds)
        late = self._clock + seconds
        while True:
            try:
                signal = coroutine.send(None)
            except StopIteration as done:
                result: T = done.value
                return result
            if signal.when(self._clock) > late:
                await _Until(late, signal.event)
            else:
                await signal
            if self._clock >= late and signal.when(self._clock) > late:
                coroutine.close()
                raise OutOfTime(f"{seconds:.3g} s are over")

    async def begin(self, coroutine: Coroutine[Any, Any, None], seconds: float) -> Background | None:
        """Await it; under `run_all` it goes on beside the others when its time is over."""
        if not self._scheduled:
            return await (ASYNC if _in_a_loop() else BLOCKING).begin(coroutine, seconds)
        task = _VirtualTask(self, self._waiting, coroutine)
        return None if await task.finish(seconds) else task

    def event(self) -> Event:
        """A flag on the virtual clock under `run_all`; otherwise one of the mode that runs here."""
        if self._scheduled:
            return _VirtualEvent(self)
        return (ASYNC if _in_a_loop() else BLOCKING).event()

    async def to_thread(self, function: Callable[[], T]) -> T:
        """Call it, here."""
        return function()

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
        """Run coroutines side by side; their results in order, an exception in place of a result.

        Raises:
            LayerError: All of them wait, and nothing will wake them.
        """
        results: dict[Coroutine[Any, Any, T], T | BaseException] = {}
        waiting = self._waiting = {coroutine: _Until(self._clock) for coroutine in coroutines}
        self._scheduled = True
        try:
            while any(coroutine not in results for coroutine in coroutines):
                coroutine = min(waiting, key=lambda each: waiting[each].when(self._clock))
                wait = waiting.pop(coroutine)
                if math.isinf(wait.when(self._clock)):
                    raise LayerError("every coroutine waits, and nothing will wake them")
                self._clock = max(self._clock, wait.when(self._clock))
                try:
                    signal = coroutine.send(None)
                    while not isinstance(signal, _Until):
                        signal = coroutine.throw(LayerError("awaited something that is not io's"))
                except StopIteration as done:
                    results[coroutine] = done.value
                except BaseException as exc:  # noqa: BLE001 - handed to the caller as a result
                    results[coroutine] = exc
                else:
                    waiting[coroutine] = signal  # at the end: who waited longer goes first
        finally:
            self._scheduled = False
            for coroutine in waiting:
                coroutine.close()
        return [results[coroutine] for coroutine in coroutines]


def _in_a_loop() -> bool:
    """Whether an event loop runs here."""
    try:
        ASYNC.event()
    except RuntimeError:
        return False
    return True


class _VirtualEvent:
    """An `Event` under the scheduler."""

    def __init__(self, io: VirtualIO) -> None:
        self._io = io
        self.is_set = False

    def set(self) -> None:
        self.is_set = True

    async def wait(self, seconds: float | None = None) -> bool:
        if not self.is_set:
            await _Until(math.inf if seconds is None else self._io.now() + seconds, self)
        return self.is_set


class _VirtualTask:
    """A coroutine that takes its turns beside those that `run_all` was given."""

    def __init__(
        self,
        io: VirtualIO,
        waiting: dict[Coroutine[Any, Any, Any], _Until],
        coroutine: Coroutine[Any, Any, None],
    ) -> None:
        self._ended = _VirtualEvent(io)
        self._error: Exception | None = None
        self._waiting = waiting
        self._coroutine = coroutine
        self._running = self._run()
        waiting[self._running] = _Until(io.now())

    async def _run(self) -> None:
        try:
            await self._coroutine
        except Exception as exc:  # noqa: BLE001 - raised where it is waited for
            self._error = exc
        finally:
            self._ended.set()

    async def finish(self, seconds: float | None = None) -> bool:
        try:
            await self._ended.wait(seconds)
        except BaseException:
            await self.cancel()
            raise
        if self._error is not None:
            raise self._error
        return self._ended.is_set

    async def cancel(self) -> None:
        self._waiting.pop(self._running, None)
        self._running.close()
        self._coroutine.close()  # if it has not begun


class _Until:
    """Suspends until the scheduler's clock has come this far, or an event is set."""

    def __init__(self, at: float, event: _VirtualEvent | None = None) -> None:
        self._at = at
        self.event = event

    def when(self, now: float) -> float:
        """When it is over, as far as is known now."""
        return now if self.event is not None and self.event.is_set else self._at

    def __await__(self) -> Generator[_Until, None, None]:
        yield self
