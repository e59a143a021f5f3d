"""One call under the cache's eyes: what both ways of caching do with requests and responses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from attrs import define, frozen

from ..body import Replay, is_buffered, known_length, put_stream, respond, respond_raw
from ..errors import DeadlineExceeded, RateLimited
from ..outcome import is_any_timeout
from ..wire import NOT_CACHED, error_body, is_event_stream
from .recording import Recording

if TYPE_CHECKING:
    from ..chain import Handler
    from ..events import Record
    from ..family import Request, Response
    from ..io import IO
    from .storage import Saved

__all__ = [
    "KEEP_BOUND",
    "MODES",
    "READING",
    "WRITING",
    "Exchange",
    "Failed",
    "Tally",
    "fresh",
    "is_callers_own",
]

MODES = ("on", "off", "read_only", "write_only", "refresh", "only_if_cached")
READING = frozenset({"on", "read_only", "only_if_cached"})
WRITING = frozenset({"on", "write_only", "refresh"})

KEEP_BOUND = 8 << 20
"""Bytes of a body at most, to be kept."""


@frozen
class Failed:
    """What a leader shares when its call failed."""

    error: Exception


def fresh(error: Exception) -> Exception:
    """An error to raise once more: raised by many, one object would grow its traceback."""
    try:
        twin = copy.copy(error)
    except TypeError:  # a class whose arguments copy() does not know
        return error.with_traceback(None)
    twin.__notes__ = list(getattr(error, "__notes__", ()))  # copied shallowly, it would be shared
    return twin


def is_callers_own(error: Exception, request: Request) -> bool:
    """Whether a call failed by a limit of its own, which says nothing to those who wait with it."""
    return isinstance(error, DeadlineExceeded | RateLimited) or is_any_timeout(error, request)


@define
class Tally:
    """Hits and misses; a count lost under contention is no harm."""

    hits: int = 0
    misses: int = 0


@define
class Exchange:
    """A call, from the cache's side.

    Args:
        request: The request.
        call_next: The rest of the stack.
        io: The mode.
        record: The call's record.
        mode: One of `MODES`.
        key: The key.
        tally: Where hits and misses are counted.
        max_wait: Seconds to wait for another's answer.
        format: Which LLM format it has, if it is a recognised call.
    """

    request: Request
    call_next: Handler
    io: IO
    record: Record
    mode: str
    key: str
    tally: Tally
    max_wait: float
    format: str | None = None

    @property
    def is_completion(self) -> bool:
        """Whether it is a recognised LLM call."""
        return self.format is not None

    @property
    def reads(self) -> bool:
        """Whether a kept answer will do."""
        return self.mode in READING

    @property
    def writes(self) -> bool:
        """Whether the answer is kept."""
        return self.mode in WRITING

    def emit(self, decision: str, reason: str = "", seconds: float = 0.0) -> None:
        """Tell what the cache did."""
        self.record.emit("Cache", decision, reason or self.key[:12], seconds)

    def answer(self, saved: Saved, how: str) -> Response:
        """Answer with what is kept."""
        self.tally.hits += 1
        reason = f"{self.key[:12]}, not billed" if self.is_completion else ""
        self.emit(how, reason, max(0.0, self.io.wall() - saved.stored_at))
        headers = [*saved.raw_headers, (b"x-dspex-cache", how.encode())]
        response = respond_raw(self.request, saved.status, headers, saved.body, dict(saved.extensions))
        if saved.is_stream:
            put_stream(response, Replay(saved.pieces))
        return response

    def refuse(self) -> Response:
        """Nothing is kept, and the caller wants nothing else (RFC 9111 §5.2.1.7)."""
        self.tally.misses += 1
        self.emit("refuses", "only if cached, and it is not")
        # no retry, here or in an SDK, finds what is not there
        headers = {"x-dspex-cache": "miss", "x-should-retry": "false"}
        if not self.is_completion:
            return respond(self.request, 504, headers=headers)
        headers["content-type"] = "application/json"
        content = error_body(NOT_CACHED, "Cache: nothing is kept, and only_if_cached sends nothing")
        return respond(self.request, 504, headers=headers, content=content)

    def missed(self, response: Response) -> Response:
        """Hand on what the server answered."""
        self.tally.misses += 1
        response.headers["x-dspex-cache"] = "miss"
        return response

    async def whole(self, response: Response) -> bytes | None:
        """The raw body, read if it is known to be short enough to be kept; ``None`` for any other."""
        if not is_buffered(response) and (
            known_length(response, KEEP_BOUND) is None or is_event_stream(response.headers)
        ):
            return None
        return await self.io.read(response)

    def record_body(self, response: Response, commit: Callable[[bytes], Coroutine[Any, Any, None]]) -> None:
        """Have a body of unknown length kept when it has been read to its end."""

        async def whole(pieces: tuple[bytes, ...]) -> None:
            await commit(b"".join(pieces))

        put_stream(response, Recording(response.stream, whole, KEEP_BOUND))
