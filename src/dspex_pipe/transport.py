"""The edge: an httpx transport on the outside, a handler on the inside."""

from __future__ import annotations

from functools import partial
from math import inf
from types import TracebackType
from typing import Any, Self, get_args

from .body import Told, is_buffered, known_length, put_stream
from .chain import Handler, blame, check_client, link
from .due import due_of
from .errors import DeadlineExceeded, LayerError
from .events import EXTENSION, Record, belongs_to, record_of
from .family import Request, Response, family_of
from .io import GRACE, IO, OutOfTime, close_dropped, drive
from .opening import Stack, expect_next_hop, open_call
from .outcome import is_any_timeout, read_timeout, surely_unsent
from .rendering import Refusals, render
from .wire import EVENT_STREAM, media_type

__all__ = ["AsyncTransport", "Refusals", "Stack", "Transport"]

# A JSON body of at most this many bytes is read inside the stack, so that every layer sees it break off.
_READ_BOUND = 1 << 20
# An LLM's answer at most: thousands of embeddings are some ten MiB.
_ANSWER_BOUND = 64 << 20


class _Edge:
    """What both transports share; neither is a subclass of httpx's, and both serve httpx and httpx2.

    Args:
        stack: The pipeline.
        inner: The transport below it.
        io: Time and waiting.
        refusals: See `Refusals`.
        owns_inner: Whether closing this closes the inner transport.
        owns_stack: Whether closing this closes the pipeline's state.
    """

    _body: str
    """The class of the bodies that a client of this mode reads, in either library."""

    def __init__(
        self,
        stack: Stack,
        inner: Any,
        *,
        io: IO,
        refusals: Refusals,
        owns_inner: bool = False,
        owns_stack: bool = False,
    ) -> None:
        if refusals not in get_args(Refusals):
            allowed = ", ".join(map(repr, get_args(Refusals)))
            raise ValueError(f"refusals= takes one of {allowed}, got {refusals!r}")
        self.inner = inner
        self._stack = stack
        self._io = io
        self._refusals: Refusals = refusals
        self._owns_inner = owns_inner
        self._owns_stack = owns_stack
        self._handler: Handler = link(stack.steps, self._terminal, io)
        check_client(stack.steps, blocking=isinstance(self, Transport))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._stack!r}, {self.inner!r})"

    async def _handle(self, request: Request) -> Response:
        """One hop: in through the layers, out again, refusals in the caller's language."""
        twin, record = open_call(request, self._stack, self._io)
        # below another pipeline, its layers are the caller: they want exceptions, and hear for themselves
        below = request.extensions.get(EXTENSION) is record
        try:
            response = await self._handler(twin)
        except GeneratorExit:  # we are being disposed of, and may not wait for anything
            raise
        except BaseException as exc:
            await self._close_all(record)
            if not isinstance(exc, Exception):
                raise
            belongs_to(exc, twin)  # for explain()
            rendered = None if below else render(exc, request, record, self._refusals)
            if rendered is None:
                raise
            response = rendered
        finally:
            if below and self._stack.on_event is not None:
                record.watchers.remove(self._stack.on_event)
        record.opened.clear()  # the caller's now; and record and response must not hold each other
        if record.deadline is not None:
            expect_next_hop(request, response, record.deadline)
        return response

    async def _close_all(self, record: Record) -> None:
        """Close what the call has opened: it ends without a response, whoever of the layers held one."""
        while record.opened:
            await self._io.close(record.opened.pop())

    async def _terminal(self, request: Request) -> Response:
        """The innermost handler: send, and read a plain body, which belongs to its attempt."""
        record, started = record_of(request), self._io.now()
        due, deadline = due_of(request), inf
        if record.deadline is not None:
            deadline = record.deadline
            _tighten(request, deadline - started)
            due = min(due, deadline)
        sending = self._send(request, record)
        if due < inf:
            grace = GRACE if isinstance(self.inner, _Edge) else 0.0  # a pipeline below has the same bound
            sending = self._io.bounded(sending, max(0.0, due - started) + grace)
        try:
            response = await sending
        except Exception as exc:
            if getattr(exc, "_dspex_record", None) is not record:
                record.emit("transport", "failed", type(exc).__name__, self._io.now() - started)
            ours = isinstance(exc, OutOfTime)
            if ours and due < deadline:
                raise read_timeout("no answer within the time that this request had", request) from None
            if ours or (is_any_timeout(exc, request) and self._io.now() >= deadline):
                sent = not surely_unsent(exc, request)
                raise DeadlineExceeded(
                    "the deadline passed while waiting for the server", layer="transport", sent=sent
                ) from exc
            raise
        if response.extensions.get(EXTENSION) is not record:  # else a pipeline below has told of its wire
            response.extensions[EXTENSION] = record
            status = str(response.status_code)
            record.emit("transport", "answered", status, self._io.now() - started)
            if not is_buffered(response):
                tell = partial(_broke_off, request=request, io=self._io, answered_at=self._io.now())
                put_stream(response, Told(response.stream, tell))
        return response

    async def _send(self, request: Request, record: Record) -> Response:
        """Send through the inner transport, in this edge's mode, and read a plain body."""
        raise NotImplementedError

    async def _read(self, response: Response, request: Request, record: Record) -> Response:
        """Read the body, if it is plain."""
        _check_stream(response, self._body, request)
        record.opened.append(response)
        bound = _plain_bound(request, response, record)
        if bound is not None and await self._io.preview(response, bound, until=record.deadline):
            record.opened.remove(response)
        return response


class Transport(_Edge):
    """A blocking httpx transport that sends every request through a pipeline."""

    _body = "SyncByteStream"

    def handle_request(self, request: Request) -> Response:
        """Send one request; httpx calls this."""
        close_dropped()  # their connections may be all there are
        response = drive(self._handle(request), blame)
        _check_stream(response, self._body, request)
        return response

    async def _send(self, request: Request, record: Record) -> Response:
        response: Response = self.inner.handle_request(request)
        return response if is_buffered(response) else await self._read(response, request, record)

    def close(self) -> None:
        """Close what this transport owns; a second time does nothing more to the pipeline's state."""
        if self._owns_inner:
            self.inner.close()
        if self._owns_stack:
            self._owns_stack = False
            self._stack.close()

    def __enter__(self) -> Self:
        if self._owns_inner:
            self.inner.__enter__()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        self.close()


class AsyncTransport(_Edge):
    """An async httpx transport that sends every request through a pipeline."""

    _body = "AsyncByteStream"

    async def handle_async_request(self, request: Request) -> Response:
        """Send one request; httpx calls this."""
        response = await self._handle(request)
        _check_stream(response, self._body, request)
        return response

    async def _send(self, request: Request, record: Record) -> Response:
        response: Response = await self.inner.handle_async_request(request)
        return response if is_buffered(response) else await self._read(response, request, record)

    async def aclose(self) -> None:
        """Close what this transport owns; a second time does nothing more to the pipeline's state."""
        if self._owns_inner:
            await self.inner.aclose()
        if self._owns_stack:
            self._owns_stack = False
            await self._stack.aclose()

    async def __aenter__(self) -> Self:
        if self._owns_inner:
            await self.inner.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.aclose()


def _broke_off(exc: Exception, request: Request, io: IO, answered_at: float) -> None:
    """Tell of a stream that broke off: its reader stands outside the stack, where nobody else would."""
    record_of(request).emit("transport", "broke off", type(exc).__name__, io.now() - answered_at)
    belongs_to(exc, request)  # for explain()


def _tighten(request: Request, left: float) -> None:
    """Let no socket operation take longer than is left; refuse when nothing is."""
    if left <= 0:
        raise DeadlineExceeded("the deadline has passed", layer="transport")
    limits = dict.fromkeys(("connect", "read", "write", "pool"), left)
    for name, seconds in request.extensions.get("timeout", {}).items():
        if seconds is not None:
            limits[name] = min(seconds, left)
    request.extensions["timeout"] = limits


def _plain_bound(request: Request, response: Response, record: Record) -> int | None:
    """How many bytes of the body are read here, so that a broken one fails the attempt, not its reader.

    A whole LLM answer is, and an error of an LLM provider; and JSON that says how long it is, up to 1 MiB.
    Everything else stays a stream (``None``), also what turns out to be longer: a Kubernetes watch is endless
    ``application/json``.
    """
    kind = media_type(response.headers)
    if kind == EVENT_STREAM or response.status_code < 200:
        return None
    is_json = kind == "application/json" or kind.endswith("+json")
    if is_json and known_length(response, _READ_BOUND) is not None:
        return _READ_BOUND
    completion = record.completion(request)  # asked last: it takes longest
    if completion is None:
        return None
    if response.status_code >= 400:
        return _READ_BOUND
    return None if completion.stream else _ANSWER_BOUND


def _check_stream(response: Response, wanted: str, request: Request) -> None:
    stream = response.stream
    if not isinstance(stream, getattr(family_of(request).module, wanted)):
        raise LayerError(
            f"the response's body, a {type(stream).__qualname__}, is no {wanted}: it cannot be read by this "
            "client; make responses with respond(request, …)"
        )
