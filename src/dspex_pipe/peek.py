"""Look at the beginning of an LLM's stream before it is handed on.

Providers answer 200 and then send an error as the first event; by then nobody above can tell a failed attempt
from an answer. So the response is held back until its stream has said which of the two it is, or for a moment
at most. Nothing is cancelled for that: a read that is under way when the moment is over goes on, and its
piece is the reader's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from math import inf
from typing import TYPE_CHECKING, Any

from attrs import frozen

from .body import Prefixed, is_buffered, put_stream
from .due import due_of
from .events import record_of
from .outcome import STREAM_ERROR, transport_error
from .wire import Kind, StreamReader, is_event_stream, reader_for

if TYPE_CHECKING:
    from .family import Request, Response
    from .io import IO, Background

__all__ = ["Beginning", "beginning_of", "peek"]

_EXTENSION = "dspex_beginning"
_BOUND = 1 << 18
_SAYS_NOTHING = frozenset({Kind.PING, Kind.OPENING})


@frozen
class Beginning:
    """How a stream began.

    Args:
        content: Whether content has come.
        pieces: All that has been read.
    """

    content: bool
    pieces: tuple[bytes, ...]


def beginning_of(response: Response) -> Beginning | None:
    """How a stream began, if somebody has looked."""
    beginning: Beginning | None = response.extensions.get(_EXTENSION)
    return beginning


async def peek(response: Response, request: Request, io: IO, seconds: float) -> Beginning | None:
    """Hold a response back until its stream has begun.

    It has begun with its first content, or an error. A change of its state (``response.created``: by then the
    provider keeps something under its name) and the progress of a tool end the look, too, since a reader
    shows them; so does the end of the body, and 256 KiB. Pings say nothing, nor does the empty frame that
    content comes in. Whoever looks first looks for all: a layer further out is told the same.

    The response stays whole: its reader gets every byte, in the pieces that came. In async modes a task of
    its own begins to read it, so a body must not hold a cancel scope or a task group open between two pieces.

    Args:
        response: What was answered.
        request: To what.
        io: How to wait and read.
        seconds: How long the response is held back at most. In blocking mode, where a read cannot be left
            alone, the time is looked at between pieces.

    Returns:
        The beginning; ``None`` for what is no stream of a known format.

    Raises:
        TransportError: Of the request's library, when the body breaks off in this time; it is closed then.
    """
    known = beginning_of(response)
    if known is not None or response.status_code != 200 or is_buffered(response):
        return known
    record = record_of(request)
    completion = record.completion(request)
    if completion is None or not is_event_stream(response.headers):
        return None
    now, deadline = io.now(), inf if record.deadline is None else record.deadline
    seconds = max(0.0, min(seconds, deadline - now, due_of(request) - now))
    look = _Look(reader_for(completion.format, response.headers), io, now + seconds)
    chunks = io.chunks(response)
    try:
        reading = await io.begin(look.ahead(chunks), seconds)
    except BaseException:
        await io.close(response, chunks)
        raise
    look.over = True
    beginning = response.extensions[_EXTENSION] = Beginning(look.content, tuple(look.pieces))
    if look.error is not None:
        response.extensions[STREAM_ERROR] = look.error
    if reading is None:
        put_stream(response, Prefixed(response.stream, look.pieces, chunks))
    else:
        put_stream(response, _Reading(response.stream, look.pieces, chunks, reading, request))
    return beginning


class _Reading(Prefixed):
    """A body with a read under way, which will add its piece to the beginning."""

    def __init__(
        self,
        stream: Any,
        beginning: deque[bytes],
        rest: AsyncIterator[bytes],
        reading: Background,
        request: Request,
    ) -> None:
        super().__init__(stream, beginning, rest)
        self._reading: Background | None = reading
        self._request = request

    async def __anext__(self) -> bytes:
        if self._reading is not None and not self._beginning:
            if not await self._reading.finish():
                raise transport_error("ReadError", "the body was closed while it was read", self._request)
            self._reading = None
        return await super().__anext__()

    async def aclose(self) -> None:
        """Close the body, and end the read under way."""
        try:
            if self._reading is not None:
                await self._reading.cancel()
        finally:
            await super().aclose()


class _Look:
    """Reads until the beginning is known."""

    def __init__(self, reader: StreamReader, io: IO, until: float) -> None:
        self._reader = reader
        self._io = io
        self._until = until
        self.pieces: deque[bytes] = deque()
        self.content = False
        self.error: frozenset[str] | None = None
        self.over = False

    async def ahead(self, chunks: AsyncIterator[bytes]) -> None:
        size = 0
        async for chunk in chunks:
            self.pieces.append(chunk)
            size += len(chunk)
            if self.over or self._is_known(chunk) or size >= _BOUND or self._io.now() >= self._until:
                return

    def _is_known(self, chunk: bytes) -> bool:
        for event in self._reader.feed(chunk):
            if event.kind not in _SAYS_NOTHING:
                self.content = event.kind is Kind.CONTENT
                # one feed may bring several events; of an error that came behind content nothing is noted
                self.error = self._reader.known.error if event.kind is Kind.ERROR else None
                return True
        return self._reader.gave_up is not None
