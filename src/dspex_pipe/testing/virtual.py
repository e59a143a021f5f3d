"""Virtual time: a clock that moves when somebody waits, and a small deterministic scheduler."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import LayerError
from ..family import Response
from ..io import ASYNC, BLOCKING, IO, OutOfTime
from .turns import Flag, Task, Turns, Until, cancel

if TYPE_CHECKING:
    from stamina import Attempt

    from ..io import Attempts, Background, Event

__all__ = ["VirtualIO"]

T = TypeVar("T")


class VirtualIO(IO):
    """An `IO` whose clock moves only when somebody waits, and then at once.

    Give it to a client (``build_client(…, io=VirtualIO())``) and waits take no time. To run several calls
    at once, give their coroutines to `run_all`: they take turns in an order that depends on nothing but the
    clock and the order they were given in. Only there, and under `run`, is anything cut off when its time on
    this clock is over; in an event loop of asyncio or trio that takes real seconds.

    Args:
        seed: Of the random numbers.
        start: Seconds on the clock at first.
        epoch: What ``wall()`` says when the clock is at zero, in seconds since 1970.
    """

    def __init__(self, *, seed: int = 0, start: float = 0.0, epoch: float = 1_800_000_000.0) -> None:
        super().__init__(Random(seed).random)  # noqa: S311 - tests, not secrets
        self._epoch = epoch
        self._turns = Turns(start)
        self._scheduled = False

    def now(self) -> float:
        """Seconds on the virtual clock."""
        return self._turns.now

    def wall(self) -> float:
        """Seconds since 1970, on the virtual clock."""
        return self._epoch + self.now()

    def advance(self, seconds: float) -> None:
        """Move the clock."""
        self._turns.now += seconds

    async def sleep(self, seconds: float) -> None:
        """Move the clock, or, under `run_all`, let others run until it has moved so far."""
        if self._scheduled:
            await Until(self.now() + max(0.0, seconds))
        else:
            self.advance(max(0.0, seconds))

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
        late = self.now() + seconds
        while True:
            try:
                signal = _next_signal(coroutine)
            except StopIteration as done:
                result: T = done.value
                return result
            if signal.when(self.now()) > late:
                await Until(late, signal.flag)
            else:
                await signal
            if self.now() >= late and signal.when(self.now()) > late:
                cancel(coroutine)
                raise OutOfTime(f"{seconds:.3g} s are over")

    async def begin(self, coroutine: Coroutine[Any, Any, None], seconds: float) -> Background | None:
        """Await it; under `run_all` it goes on beside the others when its time is over."""
        if not self._scheduled:
            return await (ASYNC if _in_a_loop() else BLOCKING).begin(coroutine, seconds)
        task = Task(self._turns, coroutine)
        return None if await task.finish(seconds) else task

    def event(self) -> Event:
        """A flag on the virtual clock under `run_all`; otherwise one of the mode that runs here."""
        if self._scheduled:
            return Flag(self._turns)
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
        results: dict[Coroutine[Any, Any, Any], T | BaseException] = {}
        for coroutine in coroutines:
            self._turns.wait(coroutine, Until(self.now()))
        wanted = set[Coroutine[Any, Any, Any]](coroutines)
        self._scheduled = True
        try:
            while wanted:
                taking = self._turns.next()
                try:
                    signal = _next_signal(taking)
                except StopIteration as done:
                    results[taking] = done.value
                except (KeyboardInterrupt, SystemExit):  # somebody is at the keyboard, and has had enough
                    raise
                except BaseException as exc:  # noqa: BLE001 - handed to the caller as a result
                    results[taking] = exc
                else:
                    self._turns.wait(taking, signal)
                    continue
                wanted.discard(taking)
        finally:
            self._scheduled = False
            self._turns.close()
        return [results[coroutine] for coroutine in coroutines]


def _next_signal(coroutine: Coroutine[Any, Any, Any]) -> Until:
    """Run a coroutine until it waits, and tell for what."""
    signal = coroutine.send(None)
    while not isinstance(signal, Until):
        signal = coroutine.throw(LayerError("awaited something that is not io's"))
    return signal


def _in_a_loop() -> bool:
    """Whether an event loop runs here."""
    try:
        ASYNC.event()
    except RuntimeError:
        return False
    return True
