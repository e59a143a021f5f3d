"""Tell a stream that ended from one that broke off.

Both SDKs accept a server-sent event stream that simply stops (measured with openai 3.54 and anthropic 2.12),
and hand half an answer on as a whole one. The format says better: a finish reason, a last event.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from attrs import field, frozen

from ..body import Passing, is_buffered, known_length, put_stream
from ..config import brief, one_of
from ..events import Record, record_of
from ..outcome import broken_body
from ..wire import StreamReader, reader_for

if TYPE_CHECKING:
    from ..chain import Handler
    from ..family import Request, Response
    from ..io import IO

__all__ = ["StreamIntegrity"]

_logger = logging.getLogger("dspex_pipe")


@frozen(kw_only=True, repr=False)
class StreamIntegrity:
    """Raise when an LLM's stream ends with nothing that says it is over, instead of half an answer.

    The reader gets a ``RemoteProtocolError`` of its library, after all that has come. Inside `Breaker` and
    `Cache`, the first counts it as a failure, and the second does not keep it. A stream that only lacks its
    last marker, as some gateways send them, is told in the trace and a log line. A body shorter than its
    ``content-length`` is always an error. What is no stream of a known format passes.

    Args:
        truncated: What to do about a stream that broke off: ``raise``; ``warn`` in the log; or ``pass``.
    """

    truncated: Literal["raise", "warn", "pass"] = field(
        default="raise",  # pyright: ignore[reportAssignmentType] # attrs' stub widens it to str
        validator=one_of("raise", "warn", "pass"),
    )

    __repr__ = brief

    def build(self) -> Checking:
        """The running layer; it has no state."""
        return Checking(self.truncated)


class Checking:
    """The running layer."""

    def __init__(self, truncated: str) -> None:
        self._truncated = truncated

    async def __call__(self, request: Request, call_next: Handler, io: IO) -> Response:
        response, record = await call_next(request), record_of(request)
        if request.method == "HEAD" or is_buffered(response):
            return response
        completion = record.completion(request)
        name = completion.format if completion is not None and response.status_code == 200 else None
        reader = reader_for(name, response.headers)
        announced = known_length(response)

        def judge(received: int) -> Exception | None:
            return self._judge(reader, announced, received, request, record)

        put_stream(response, _Checked(response.stream, reader, judge))
        return response

    def _judge(
        self, reader: StreamReader, announced: int | None, received: int, request: Request, record: Record
    ) -> Exception | None:
        """What is wrong with a body that came to its end, if it is to be raised."""
        if announced is not None and received < announced:
            record.emit("StreamIntegrity", "finds", f"{received} of {announced} bytes")
            return broken_body(f"the body ended after {received} of {announced} bytes", request)
        known = reader.known
        if known.gave_up is not None or known.terminal or known.error is not None:
            return None
        what = "a stream without its last event" if known.evidence else "a stream that broke off"
        record.emit("StreamIntegrity", "finds", what)
        if known.evidence or self._truncated == "warn":
            _logger.warning("%s: %s", request.url.host, what)
        if known.evidence or self._truncated != "raise":
            return None
        return broken_body("the stream ended with nothing that says it is over", request)


class _Checked(Passing):
    """A body whose end is judged."""

    def __init__(self, stream: Any, reader: StreamReader, judge: Callable[[int], Exception | None]) -> None:
        super().__init__(stream)
        self._reader = reader
        self._judge = judge
        self._received = 0

    def __next__(self) -> bytes:
        try:
            return self._note(super().__next__())
        except StopIteration:
            self._end()
            raise

    async def __anext__(self) -> bytes:
        try:
            return self._note(await super().__anext__())
        except StopAsyncIteration:
            self._end()
            raise

    def _note(self, chunk: bytes) -> bytes:
        self._received += len(chunk)
        self._reader.feed(chunk)
        return chunk

    def _end(self) -> None:
        self._reader.finish()
        error = self._judge(self._received)
        if error is not None:
            raise error from None
