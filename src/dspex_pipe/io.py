"""What differs between blocking, asyncio and trio: the only room that knows.

A layer is a coroutine function, written once. Everything in it that may wait goes through an `IO`.
`BlockingIO` waits right there, so the coroutine never suspends and `drive` can run it inline, without
an event loop; `AsyncIO` really awaits, through anyio. One clock, ``time.monotonic``, in every mode: trio's
own has another origin, and one state may serve all modes at once.
"""

from __future__ import annotations

import contextlib
import contextvars
import random
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
)
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar, overload

import anyio
import anyio.lowlevel
import anyio.to_thread

from .body import Prefixed, aclose, is_buffered, put_stream
from .errors import DeadlineExceeded, Suspended
from .family import Response, family_of

if TYPE_CHECKING:
    from stamina import Attempt

__all__ = [
    "ASYNC",
    "BLOCKING",
    "GRACE",
    "IO",
    "AsyncIO",
    "Background",
    "BlockingIO",
    "Breakable",
    "Event",
    "OutOfTime",
    "PerLoop",
    "close_dropped",
    "drive",
    "shielded",
]

T = TypeVar("T")

GRACE = 0.25
"""Seconds that an outer bound leaves to an inner one that comes due with it: a timeout of the wire tells a
`Breaker` something, to be cancelled from outside does not."""

_CLOSE_BOUND = 100
_THREADS = 40  # at once in one event loop: as many as anyio's own
_threads: anyio.lowlevel.RunVar[anyio.CapacityLimiter] = anyio.lowlevel.RunVar("dspex_pipe.threads")
_LOOPS = frozenset({"asyncio", "anyio", "trio", "sniffio"})


class Attempts(Protocol):
    """What ``stamina.retry_context`` returns: attempts, with the waits between them, in either mode."""

    def __iter__(self) -> Iterator[Attempt]: ...
    def __aiter__(self) -> AsyncIterator[Attempt]: ...


class Event(Protocol):
    """A flag that is set once."""

    def set(self) -> None:
        """Set it, from any thread, at any time, more than once if need be."""
        ...

    async def wait(self, seconds: float | None = None) -> bool:
        """Wait until it is set, or for so many seconds at most; whether it is set."""
        ...


class Background:
    """A coroutine that goes on while nobody waits for it; whoever began it finishes or cancels it."""

    def __init__(self) -> None:
        self._complete = False
        self._error: BaseException | None = None

    async def finish(self, seconds: float | None = None) -> bool:
        """Wait, for so many seconds at most, and raise what it raised; whether it has come to its end.

        Being cancelled meanwhile cancels it, too.
        """
        try:
            await self._wait(seconds)
        except BaseException:
            await self.cancel()
            raise
        if self._error is not None:
            raise self._error
        return self._complete

    async def cancel(self) -> None:
        """Cancel it, and wait until it is gone, even while being cancelled."""
        raise NotImplementedError

    async def _wait(self, seconds: float | None) -> object:
        """Wait until it is gone, or for so many seconds."""
        raise NotImplementedError


class OutOfTime(TimeoutError):
    """What was awaited within `IO.bounded` did not end in time."""


class IO:
    """Time, randomness, waiting and bodies, the same for every mode.

    Args:
        jitter: A source of numbers in [0, 1).
    """

    def __init__(self, jitter: Callable[[], float] = random.random) -> None:
        self._jitter = jitter

    # as it is, since every layer asks: a method around it would take longer than it does
    now = staticmethod(time.monotonic)
    """Seconds on a clock that only moves forward; comparable across modes and threads."""

    def wall(self) -> float:
        """Seconds since the epoch."""
        return time.time()  # looked up, as by the stores: who freezes time in a test freezes it for both

    def random(self) -> float:
        """A number in [0, 1)."""
        return self._jitter()

    async def sleep(self, seconds: float) -> None:
        """Wait; zero or less returns at once."""
        raise NotImplementedError

    async def close(self, response: Response, chunks: Any = None) -> None:
        """Close the body of a response that nobody will read, even while being cancelled.

        Args:
            response: The response.
            chunks: What `chunks` gave, if its reader left it before its end.
        """
        raise NotImplementedError

    def chunks(self, response: Response) -> AsyncIterator[bytes]:
        """The raw body, piece by piece, as the wire has it (maybe compressed)."""
        raise NotImplementedError

    @overload
    async def read(self, response: Response) -> bytes: ...
    @overload
    async def read(self, response: Response, limit: int | None) -> bytes | None: ...
    async def read(self, response: Response, limit: int | None = None) -> bytes | None:
        """Read the raw body into memory and give the connection back.

        The response stays whole: what was read takes the place of its stream.

        Args:
            response: The response to read.
            limit: Bytes to read at most; over that the body is closed, lost, and the answer is ``None``.

        Raises:
            TransportError: Of the response's family, when the body breaks off; it is closed then.
        """
        if await self.preview(response, limit):
            return b"".join(response.stream)  # type: ignore[arg-type] # a ByteStream reads in every mode
        await self.close(response)
        return None

    async def preview(self, response: Response, limit: int | None, *, until: float | None = None) -> bool:
        """Read the raw body into memory if it is short; otherwise it stays a stream, and whole.

        Args:
            response: The response to read.
            limit: Bytes to read at most; ``None`` for no bound.
            until: When to give up, on the clock of `now`; looked at after each piece.

        Returns:
            Whether the body was read to its end, and the connection given back.

        Raises:
            TransportError: Of the response's family, when the body breaks off; it is closed then.
            DeadlineExceeded: The time to give up has come; the body is closed then.
        """
        if is_buffered(response):  # there is nothing to wait for, and nothing to close
            return limit is None or sum(map(len, response.stream)) <= limit  # type: ignore[arg-type]
        chunks = self.chunks(response)
        parts, size = [], 0
        try:
            async for chunk in chunks:
                parts.append(chunk)
                size += len(chunk)
                if limit is not None and size > limit:
                    put_stream(response, Prefixed(response.stream, deque(parts), chunks))
                    return False
                if until is not None and self.now() >= until:
                    raise DeadlineExceeded(  # noqa: TRY301 - what is read must be closed, as for any error
                        "the deadline passed while the answer came in", layer="transport", sent=True
                    )
        except BaseException:
            await self.close(response, chunks)
            raise
        await self.close(response, chunks)
        response.stream = family_of(response).module.ByteStream(b"".join(parts))
        return True

    async def drain(self, response: Response, seconds: float) -> None:
        """Read the body away, for about so many seconds at most, and close it."""
        late = self.now() + seconds
        chunks = self.chunks(response)
        try:
            async for _ in chunks:
                if self.now() > late:
                    return
        finally:
            await self.close(response, chunks)

    async def bounded(self, coroutine: Coroutine[Any, Any, T], seconds: float) -> T:
        """Await a coroutine for so many seconds at most.

        Async modes pre-empt it: it is cancelled when the time is over. Blocking code cannot be pre-empted, so
        there it runs to its end, however late: bound its socket operations, too.

        Raises:
            OutOfTime: The time was over first.
        """
        raise NotImplementedError

    async def begin(self, coroutine: Coroutine[Any, Any, None], seconds: float) -> Background | None:
        """Await a coroutine for so many seconds, and let it go on in the background after that.

        It is for what must not be cancelled half-way, as `bounded` does: reading from a connection.
        Blocking code has no background, so there it runs to its end, however late.

        Returns:
            What goes on, which must be finished or cancelled; ``None`` when it has ended.

        Raises:
            Exception: What the coroutine raises in this time.
        """
        raise NotImplementedError

    def event(self) -> Event:
        """A flag that any thread may set, and one waiter of this mode may wait for."""
        raise NotImplementedError

    async def to_thread(self, function: Callable[[], T]) -> T:
        """Call a function that blocks, where it blocks nobody else; in blocking mode, right here."""
        raise NotImplementedError

    async def before_wait(self, seconds: float) -> float:
        """Tell stamina how long it should sleep: here, all of it."""
        return seconds

    def attempts(self, context: Attempts) -> AsyncIterator[Attempt]:
        """Walk through stamina's attempts; the waits happen between them."""
        raise NotImplementedError


class BlockingIO(IO):
    """Waits right where it is called, so that the coroutine never suspends."""

    async def sleep(self, seconds: float) -> None:
        """Block this thread."""
        if seconds > 0:
            time.sleep(seconds)  # noqa: ASYNC251 - this is the mode that blocks

    async def close(self, response: Response, chunks: Any = None) -> None:
        """Close the body."""
        body: Any = response.stream if chunks is None else chunks
        body.close()

    def chunks(self, response: Response) -> AsyncIterator[bytes]:
        """The raw body, each piece read where it is asked for."""
        return _Pieces(response.stream)

    async def bounded(self, coroutine: Coroutine[Any, Any, T], seconds: float) -> T:
        """Await it; what comes in time is returned, what comes late all the same."""
        return await coroutine

    async def begin(self, coroutine: Coroutine[Any, Any, None], seconds: float) -> None:
        """Await it."""
        await coroutine

    def event(self) -> Event:
        """A flag to block on."""
        return _ThreadEvent()

    async def to_thread(self, function: Callable[[], T]) -> T:
        """Call it."""
        return function()

    def attempts(self, context: Attempts) -> AsyncIterator[Attempt]:
        """Walk through stamina's attempts; it sleeps between them with ``time.sleep``."""
        return _Inline(iter(context))


class AsyncIO(IO):
    """Awaits, on asyncio and on trio."""

    async def sleep(self, seconds: float) -> None:
        """Let other tasks run meanwhile."""
        if seconds > 0:
            await anyio.sleep(seconds)

    async def close(self, response: Response, chunks: Any = None) -> None:
        """Close the body, shielded: a cancelled task still gives its connection back."""
        with anyio.CancelScope(shield=True):
            await aclose(response.stream, chunks)

    async def drain(self, response: Response, seconds: float) -> None:
        """Read the body away; a stall ends with the time, too."""
        with anyio.move_on_after(seconds):
            await super().drain(response, seconds)

    def chunks(self, response: Response) -> AsyncIterator[bytes]:
        """The raw body."""
        return response.stream.__aiter__()  # type: ignore[union-attr] # an async body, in this mode

    async def bounded(self, coroutine: Coroutine[Any, Any, T], seconds: float) -> T:
        """Await it, and cancel it when the time is over."""
        with anyio.move_on_after(seconds):
            return await coroutine
        # only the scope's own deadline comes here: the caller's cancellation goes on through it
        raise OutOfTime(f"{seconds:.3g} s are over")

    async def begin(self, coroutine: Coroutine[Any, Any, None], seconds: float) -> Background | None:
        """Await it as a task of its own, which is left alone when the time is over."""
        task = _Task(coroutine)
        return None if await task.finish(seconds) else task

    def event(self) -> Event:
        """A flag to await, on the event loop that runs here."""
        return _LoopEvent()

    async def to_thread(self, function: Callable[[], T]) -> T:
        """Call it in a worker thread, of those that are ours alone.

        Those that everybody shares may all be taken by what waits for this very call: a blocking endpoint of
        a web framework that calls an async client, forty times over, would never end.
        """
        try:
            threads = _threads.get()
        except LookupError:
            threads = anyio.CapacityLimiter(_THREADS)
            _threads.set(threads)
        return await anyio.to_thread.run_sync(function, limiter=threads)

    def attempts(self, context: Attempts) -> AsyncIterator[Attempt]:
        """Walk through stamina's attempts; it sleeps between them on the running event loop."""
        return context.__aiter__()


class _ThreadEvent:
    """An `Event` for a blocking waiter."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.set = self._event.set

    async def wait(self, seconds: float | None = None) -> bool:
        return self._event.wait(None if seconds is None else min(seconds, threading.TIMEOUT_MAX))


class _Reachable:
    """Something of an event loop that other threads may reach."""

    def __init__(self) -> None:
        loop: Any = anyio.lowlevel.current_token().native_token
        # asyncio's loop and trio's token have the same thing under two names
        self._soon = getattr(loop, "call_soon_threadsafe", None) or loop.run_sync_soon

    def _reach(self, function: Callable[[], object]) -> None:
        # the loop may be gone: then nothing waits there any more
        with contextlib.suppress(RuntimeError):
            self._soon(function)


class _LoopEvent(_Reachable):
    """An `Event` for a waiter on the event loop that made it; set from anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self._event = anyio.Event()

    def set(self) -> None:
        self._reach(self._event.set)

    async def wait(self, seconds: float | None = None) -> bool:
        with anyio.move_on_after(seconds):
            await self._event.wait()
        return self._event.is_set()


def shielded() -> contextlib.AbstractContextManager[object]:
    """Around what must be done on an event loop, even while being cancelled."""
    return anyio.CancelScope(shield=True)


class Breakable(_Reachable):
    """What runs inside, on asyncio or trio, may be broken off from anywhere; a context manager."""

    def __init__(self) -> None:
        super().__init__()
        self._scope = anyio.CancelScope()

    def break_off(self) -> None:
        """Cancel what runs inside, and go on behind it."""
        self._reach(self._scope.cancel)

    def __enter__(self) -> None:
        self._scope.__enter__()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        return bool(self._scope.__exit__(exc_type, exc, traceback))


class _Task(Background):
    """A coroutine in a task of its own, on asyncio and on trio.

    It outlives the call that began it, so no nursery of ours can hold it: whoever has it ends it.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, None]) -> None:
        super().__init__()
        self._scope = anyio.CancelScope()
        self._ended = anyio.Event()
        native: Any = anyio.lowlevel.current_token().native_token
        if hasattr(native, "create_task"):
            self._task = native.create_task(self._run(coroutine))  # kept: asyncio's own reference is weak
            # asyncio may cancel a task before its first step, and then nothing of it runs
            self._task.add_done_callback(lambda _: self._end(coroutine))
        else:
            spawn = sys.modules["trio"].lowlevel.spawn_system_task
            spawn(self._run, coroutine, context=contextvars.copy_context())

    async def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        try:
            with self._scope:
                await coroutine
                self._complete = True
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as exc:  # noqa: BLE001 - raised where it is waited for; here nobody would hear it
            self._error = exc
        finally:
            self._end(coroutine)

    def _end(self, coroutine: Coroutine[Any, Any, None]) -> None:
        coroutine.close()
        self._ended.set()

    async def _wait(self, seconds: float | None) -> None:
        with anyio.move_on_after(seconds):
            await self._ended.wait()

    async def cancel(self) -> None:
        self._scope.cancel()
        cancelled: BaseException | None = None
        while not self._ended.is_set():
            try:
                with anyio.CancelScope(shield=True):
                    await self._ended.wait()
            except anyio.get_cancelled_exc_class() as exc:
                cancelled = exc  # asyncio's own cancellation goes through a shield
        if cancelled is not None:
            raise cancelled


class PerLoop(Generic[T]):
    """One value for each event loop, made where it is first asked for, and closed when that loop ends.

    What holds connections belongs to the loop that made them: used in another it hangs, and after the end of
    its own it raises "Event loop is closed". ``asyncio.run`` and ``trio.run`` finish what async generators
    are open, so one holds each value, and closes it there.

    Args:
        make: Makes a value.
        close: Closes one.
    """

    def __init__(self, make: Callable[[], T], close: Callable[[T], Awaitable[None]]) -> None:
        self._make = make
        self._close = close
        self._lock = threading.Lock()
        self._held: weakref.WeakKeyDictionary[Any, tuple[T, AsyncGenerator[None, None]]]
        self._held = weakref.WeakKeyDictionary()

    async def get(self) -> T:
        """The value of the loop that runs here."""
        loop = anyio.lowlevel.current_token().native_token
        with self._lock:
            # those closed by hand, without finishing what was open; trio's end only as they should
            for other in [each for each in self._held if hasattr(each, "is_closed") and each.is_closed()]:
                del self._held[other]
            held = self._held.get(loop)
        if held is None:
            value = self._make()
            holder = self._hold(value, weakref.ref(loop))
            await anext(holder)  # without suspending: nobody else in this loop comes between
            held = value, holder
            with self._lock:
                self._held[loop] = held
        return held[0]

    async def _hold(self, value: T, loop: Callable[[], Any]) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            with self._lock:  # the value knows its loop, so both would stay for ever
                self._held.pop(loop(), None)
            await self._close(value)

    async def aclose(self) -> None:
        """Close the value of the loop that runs here, if there is one."""
        with self._lock:
            held = self._held.pop(anyio.lowlevel.current_token().native_token, None)
        if held is not None:
            await held[1].aclose()


class _Inline(AsyncIterator[T]):
    """A plain iterator in async clothes: it never suspends."""

    def __init__(self, items: Iterator[T]) -> None:
        self._items = items

    async def __anext__(self) -> T:
        try:
            return next(self._items)
        except StopIteration:
            raise StopAsyncIteration from None


class _Pieces(_Inline[bytes]):
    """A blocking body, piece by piece.

    httpx's generators, when the garbage collector finds them half-way, give their connection back there and
    then, under the lock of the pool. The collector may run while this very thread holds that lock, and then
    nobody ever gets it. So what was begun here is kept out of its reach, and closed by the next call.
    """

    _begun: ClassVar[dict[object, tuple[Iterator[bytes], Any]]] = {}
    _dropped: ClassVar[deque[object]] = deque()

    def __init__(self, stream: Any) -> None:
        super().__init__(iter(stream))
        self._stream = stream
        self._key = object()
        self._begun[self._key] = self._items, stream

    async def __anext__(self) -> bytes:
        try:
            return await super().__anext__()
        except BaseException:
            self._begun.pop(self._key, None)
            raise

    def close(self) -> None:
        """Close the body."""
        self._begun.pop(self._key, None)
        self._stream.close()

    def __del__(self) -> None:
        if self._key in self._begun:
            self._dropped.append(self._key)

    @classmethod
    def close_dropped(cls) -> None:
        """Close what was dropped since the last time."""
        while cls._dropped:
            try:
                key = cls._dropped.popleft()
            except IndexError:  # another thread took the last one
                return
            _, stream = cls._begun.pop(key)
            stream.close()


close_dropped = _Pieces.close_dropped
"""Give the connections of blocking responses back whose bodies were begun and then dropped."""

BLOCKING = BlockingIO()
ASYNC = AsyncIO()


def _blame_nobody(_: Iterable[tuple[FrameType, int]]) -> str:
    return "a blocking store"


def drive(
    coroutine: Coroutine[Any, Any, T],
    blame: Callable[[Iterable[tuple[FrameType, int]]], str] = _blame_nobody,
) -> T:
    """Run a coroutine that never suspends, inline; works inside a running event loop, too.

    Args:
        coroutine: A call through the stack.
        blame: Names the guilty among the frames and line numbers of the call, outermost first.

    Raises:
        Suspended: It awaited something that needs an event loop. Everything inside it has been closed.
    """
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    except RuntimeError as exc:
        # asyncio.sleep() and its like do not even suspend where no loop runs: they raise
        if _raised_by_a_loop(exc):
            raise _suspended(blame(_walk(exc.__traceback__))) from exc
        raise
    chain = _chain(coroutine)
    guilty = blame([(link.cr_frame, link.cr_frame.f_lineno) for link in chain])
    _dismiss(chain)
    raise _suspended(guilty)


def _suspended(guilty: str) -> Suspended:
    return Suspended(
        f"{guilty} awaited something that needs an event loop, under a blocking client; "
        "wait through io (io.sleep, io.read, …), which blocks there"
    )


def _walk(traceback: TracebackType | None) -> Iterator[tuple[FrameType, int]]:
    while traceback is not None:
        yield traceback.tb_frame, traceback.tb_lineno
        traceback = traceback.tb_next


def _raised_by_a_loop(exc: RuntimeError) -> bool:
    *_, (frame, _) = _walk(exc.__traceback__)
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] in _LOOPS


def _chain(coroutine: Any) -> list[Any]:
    """A suspended coroutine, and those that it waits for, outermost first."""
    found = []
    while getattr(coroutine, "cr_frame", None) is not None:
        found.append(coroutine)
        coroutine = coroutine.cr_await
    return found


def _dismiss(chain: list[Any]) -> None:
    """Close suspended coroutines, innermost first, each again for every ``finally`` in it that awaits.

    Closing only the outermost would end it with the error of the innermost, which would stay suspended.
    """
    for coroutine in reversed(chain):
        for _ in range(_CLOSE_BOUND):
            try:
                coroutine.close()
            except Exception:  # noqa: BLE001, S112 - a clean-up that fails; Suspended is the one to be seen
                continue
            break
