"""Bodies: send one again, look into one that was read, watch one go by."""

from __future__ import annotations

import sys
import warnings
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

from .family import BodySource, Request, Response, content_of, family_of, respond, respond_raw, with_length
from .wire.inflate import Spoilt, inflater

if TYPE_CHECKING:
    from .io import IO

__all__ = [
    "Ending",
    "Passing",
    "Prefixed",
    "Replay",
    "Tap",
    "Told",
    "aclose",
    "content_of",
    "copy_request",
    "decoded",
    "discard",
    "is_buffered",
    "is_replayable",
    "known_length",
    "put_stream",
    "respond",
    "respond_raw",
    "tap",
    "with_length",
]

_LOOK_BOUND = 1 << 20
_DRAIN_BYTES = 1 << 16
_DRAIN_SECONDS = 1.0


def copy_request(request: Request) -> Request:
    """A shallow copy: headers and extensions its own, body and URL shared. Under 2 µs.

    ``copy.copy`` would go through httpx's pickling support, which drops the body and the extensions.
    """
    twin = object.__new__(type(request))
    twin.__dict__.update(request.__dict__)
    twin.headers = type(request.headers)(request.headers)  # copy() would look for an encoding, which is slow
    twin.extensions = dict(request.extensions)
    return twin


def is_replayable(request: Request) -> bool:
    """Whether the body can be sent a second time: only when it lies in memory, as a form of such parts does.

    A generator is used up after one pass, and an open file is at its end: httpx would send the
    second request with an empty body, and no error.
    """
    stream: Any = request.stream
    if type(stream).__name__ == "MultipartStream":  # both libraries make it, and export it not
        return all(isinstance(getattr(part, "file", b""), bytes | str) for part in stream.fields)
    return isinstance(stream, family_of(request).module.ByteStream)


def is_buffered(response: Response) -> bool:
    """Whether the raw body lies in memory already."""
    return isinstance(response.stream, family_of(response).module.ByteStream)


def decoded(response: Response, raw: bytes | None = None, bound: int = _LOOK_BOUND) -> bytes | None:
    """The body of a response, decompressed; ``None`` when it is a stream, spoilt, too big, or not understood.

    The response keeps its raw bytes. Bodies are decompressed a little at a time, and only once: a small body
    that inflates without end stays small here.

    Args:
        response: The response.
        raw: Its raw body; by default the one that lies in memory.
        bound: Bytes at most.
    """
    inflate = inflater(response.headers.get("content-encoding", ""))
    if inflate is None:
        return None
    if raw is None:
        if not is_buffered(response):
            return None
        raw = b"".join(response.stream)  # type: ignore[arg-type] # a ByteStream reads in every mode
    parts, size = [], 0
    try:
        for part in inflate(raw):
            size += len(part)
            if size > bound:
                return None
            parts.append(part)
    except Spoilt:
        return None
    return b"".join(parts)


def known_length(response: Response, bound: int = sys.maxsize) -> int | None:
    """The length of the body in bytes, if the server tells it and it is at most the bound."""
    length = response.headers.get("content-length", "")
    # a number of thousands of digits is more than int() reads
    if not length.isdecimal() or len(length) > 15 or int(length) > bound:
        return None
    return int(length)


async def discard(response: Response, io: IO) -> None:
    """Let go of a response that nobody will read, so that its connection is free for the next attempt.

    A short body of known length is read to its end, which keeps the connection alive; anything longer than
    64 KiB, of unknown length, or slower than a second is cut off with the connection. In blocking mode the
    time is checked between pieces, so that a stall lasts as long as the request's own read timeout.
    """
    if known_length(response, _DRAIN_BYTES) is None:
        await io.close(response)
        return
    # if it breaks off: it was unwanted anyway, and the attempt has failed already
    with suppress(family_of(response).TransportError):
        await io.drain(response, _DRAIN_SECONDS)


class Ending(Enum):
    """How a body came to its end."""

    COMPLETE = "complete"
    CLOSED = "closed"
    """The reader left before the end; the openai SDK does so at ``[DONE]``."""
    CANCELLED = "cancelled"
    """The reader was cancelled while it waited for more."""
    BROKEN = "broken"
    """The body broke off."""
    DROPPED = "dropped"
    """Nobody read or closed it; told by the garbage collector."""


class Tap(Protocol):
    """Watches a body go by, and changes nothing."""

    def feed(self, chunk: bytes) -> None:
        """See a piece of the raw body, as the reader gets it."""
        ...

    def end(self, ending: Ending, error: Exception | None) -> None:
        """Hear how it ended; exactly once. For ``DROPPED`` it must take no lock: a finaliser calls."""
        ...


async def aclose(stream: Any, chunks: Any) -> None:
    """Close an async body, and the iterator over it.

    httpx's own iterators are async generators: left to the garbage collector, trio complains. One that
    another task is reading ends by itself, now that its body is closed. A body that is its own iterator, as
    all of ours are, is closed once: closed as both, n of them would close the last one 2**n times.
    """
    is_its_own = chunks is getattr(stream, "source", stream)
    try:
        if hasattr(chunks, "aclose") and not is_its_own and not getattr(chunks, "ag_running", False):
            await chunks.aclose()
    finally:
        await stream.aclose()


def put_stream(response: Response, source: BodySource) -> None:
    """Put another body in the place of a response's."""
    response.stream = family_of(response).Body(source)


def tap(response: Response, observer: Tap) -> None:
    """Let an observer watch the body of a response, however it will be read.

    A body that lies in memory has gone by already: the observer hears of it at once.
    """
    if is_buffered(response):
        observer.feed(b"".join(response.stream))  # type: ignore[arg-type] # a ByteStream reads in every mode
        observer.end(Ending.COMPLETE, None)
        return
    put_stream(response, _Tapped(response.stream, observer))


class Passing:
    """A body that passes through, in one pass; a class, so that its end does not depend on a generator's.

    Subclasses look at what passes by overriding the two ways to get the next piece, and the two closes.

    Args:
        stream: The body below, of the response's own library.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._chunks: Any = None

    def __iter__(self) -> Iterator[bytes]:
        self._chunks = iter(self._stream)
        return self

    def __next__(self) -> bytes:
        chunk: bytes = next(self._chunks)
        return chunk

    def __aiter__(self) -> AsyncIterator[bytes]:
        self._chunks = self._stream.__aiter__()
        return self

    async def __anext__(self) -> bytes:
        chunk: bytes = await anext(self._chunks)
        return chunk

    def close(self) -> None:
        """Close the body below, in blocking mode."""
        self._stream.close()

    async def aclose(self) -> None:
        """Close the body below, in async modes."""
        await aclose(self._stream, self._chunks)


class Prefixed(Passing):
    """A body of which the beginning has been read already."""

    def __init__(self, stream: Any, beginning: deque[bytes], rest: AsyncIterator[bytes]) -> None:
        super().__init__(stream)
        self._beginning = beginning
        self._chunks = rest

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._beginning:
            return self._beginning.popleft()
        try:
            self._chunks.__anext__().send(None)
        except StopAsyncIteration:
            raise StopIteration from None
        except StopIteration as done:  # in blocking mode the rest never suspends
            chunk: bytes = done.value
            return chunk
        raise AssertionError("unreachable: a blocking body does not suspend")

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        return self._beginning.popleft() if self._beginning else await super().__anext__()

    def close(self) -> None:
        """Close the body below."""
        self._chunks.close()


class Told(Passing):
    """A body of which somebody is told when it breaks off.

    Args:
        stream: The body below, of the response's own library.
        tell: Called with the error, before the reader gets it.
    """

    def __init__(self, stream: Any, tell: Callable[[Exception], object]) -> None:
        super().__init__(stream)
        self._tell = tell

    def __next__(self) -> bytes:
        try:
            return super().__next__()
        except StopIteration:
            raise
        except Exception as exc:
            self._tell(exc)
            raise

    async def __anext__(self) -> bytes:
        try:
            return await super().__anext__()
        except StopAsyncIteration:
            raise
        except Exception as exc:
            self._tell(exc)
            raise


class Replay:
    """A body that lies in memory, given again in its pieces."""

    def __init__(self, pieces: tuple[bytes, ...]) -> None:
        self._pieces = deque(pieces)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if not self._pieces:
            raise StopIteration
        return self._pieces.popleft()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._pieces:
            raise StopAsyncIteration
        return self._pieces.popleft()

    def close(self) -> None:
        """Forget the rest."""
        self._pieces.clear()

    async def aclose(self) -> None:
        """Forget the rest."""
        self._pieces.clear()


class _Tapped(Passing):
    """A body with an observer."""

    def __init__(self, stream: Any, observer: Tap) -> None:
        super().__init__(stream)
        self._observer = observer
        self._ended = False

    def __next__(self) -> bytes:
        try:
            chunk = super().__next__()
        except BaseException as exc:
            self._end_by(exc)
            raise
        self._observer.feed(chunk)
        return chunk

    async def __anext__(self) -> bytes:
        try:
            chunk = await super().__anext__()
        except BaseException as exc:
            self._end_by(exc)
            raise
        self._observer.feed(chunk)
        return chunk

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._end(Ending.CLOSED)

    async def aclose(self) -> None:
        try:
            await super().aclose()
        finally:
            self._end(Ending.CLOSED)

    def _end_by(self, exc: BaseException) -> None:
        if isinstance(exc, StopIteration | StopAsyncIteration):
            self._end(Ending.COMPLETE)
        elif isinstance(exc, Exception):
            self._end(Ending.BROKEN, exc)
        else:
            self._end(Ending.CANCELLED)

    def _end(self, ending: Ending, error: Exception | None = None) -> None:
        if not self._ended:
            self._ended = True
            self._observer.end(ending, error)

    def __del__(self) -> None:
        if not self._ended:
            self._end(Ending.DROPPED)
            warnings.warn(
                "a response was dropped without being read to its end or closed",
                ResourceWarning,
                stacklevel=1,
                source=self,
            )
