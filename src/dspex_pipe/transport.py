"""The edge: an httpx transport on the outside, a handler on the inside."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypeAlias, get_args

from attrs import frozen

from .body import copy_request, known_length
from .chain import Handler, Step, blame, check_client, link
from .errors import DeadlineExceeded, LayerError, Refused
from .events import EXTENSION, OnEvent, Record, record_of
from .family import Family, Request, Response, family_of
from .io import IO, drive
from .options import HEADER, Converter, ambient, check

__all__ = ["AsyncTransport", "Refusals", "Stack", "Transport"]

Refusals: TypeAlias = Literal["auto", "raise", "respond"]
"""How a refusal reaches the caller: raised, as a response, or as fits the caller."""

# A JSON body of at most this many bytes is read inside the stack, so that every layer sees it break off.
_READ_BOUND = 1 << 20

_calls = itertools.count(1)


class Stack(Protocol):
    """What the edge needs to know of a pipeline."""

    @property
    def steps(self) -> Sequence[Step]:
        """The running layers, outermost first."""
        ...

    @property
    def known_options(self) -> Mapping[str, Converter]:
        """The options that the core and these layers take."""
        ...

    @property
    def names(self) -> frozenset[str]:
        """The names of all layers, those of nested pipelines included."""
        ...

    @property
    def on_event(self) -> OnEvent | None:
        """Who is told every event."""
        ...

    def close(self) -> None:
        """Close what blocking layers hold."""
        ...

    async def aclose(self) -> None:
        """Close what the layers hold."""
        ...


@frozen
class _Hop:
    """A redirect that has just been answered: the next hop of the same call keeps its deadline."""

    request: Request
    timeout: object
    deadline: float


# httpx follows a redirect in the same thread or task, with a new request that holds the very same
# timeout object: that is how the next hop is known, without writing anything into the caller's request.
_last_hop: ContextVar[_Hop | None] = ContextVar("dspex_pipe.hop", default=None)


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
        self._refusals = refusals
        self._owns_inner = owns_inner
        self._owns_stack = owns_stack
        self._handler: Handler = link(stack.steps, self._terminal, io)
        check_client(stack.steps, blocking=isinstance(self, Transport))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._stack!r}, {self.inner!r})"

    async def _handle(self, request: Request) -> Response:
        """One hop: in through the layers, out again, refusals in the caller's language."""
        twin, record = self._open(request)
        below = request.extensions.get(EXTENSION) is record
        try:
            response = await self._handler(twin)
        except Exception as exc:
            exc._dspex_record = record  # type: ignore[attr-defined] # for explain()
            # below another pipeline, its layers are the caller, and they want the exception itself
            answer = None if below else self._render(exc, request, record)
            if answer is None:
                raise
            response = answer
        if record.deadline is not None and response.has_redirect_location:
            timeout = request.extensions.get("timeout")
            _last_hop.set(_Hop(request, timeout, record.deadline))
        return response

    def _open(self, request: Request) -> tuple[Request, Record]:
        """Copy the request, take our headers off, and begin its record."""
        twin = copy_request(request)
        from_headers: dict[str, Any] = {}
        ours: set[str] = set()
        sdk = False
        for name, value in twin.headers.raw:
            if b"\n" in value or b"\r" in value or b"\0" in value:
                error = family_of(request).module.LocalProtocolError
                raise error(f"header {name.decode('latin-1')!r} holds a CR, LF or NUL character")
            key = name.lower()
            if key.startswith(HEADER):
                ours.add(key.decode("latin-1"))
                option = key[len(HEADER) :].decode("latin-1").replace("-", "_")
                from_headers[option] = value.decode("latin-1")
            elif key.startswith(b"x-stainless-"):
                sdk = True
        for header in ours:
            del twin.headers[header]
        given = twin.extensions.get(EXTENSION, {})
        if isinstance(given, Record):  # a pipeline below another one: the call goes on
            record, given = given, {}
        else:
            record = Record(next(_calls), self._io.now, sdk=sdk)
        record.options = {
            **record.options,
            **self._check({**ambient(), **given, **from_headers}),
        }
        if (deadline := self._deadline(request, record)) is not None:
            record.deadline = deadline if record.deadline is None else min(deadline, record.deadline)
        if self._stack.on_event is not None:
            record.watchers.append(self._stack.on_event)
        twin.extensions[EXTENSION] = record
        return twin, record

    def _check(self, given: Mapping[str, Any]) -> dict[str, Any]:
        if not given:
            return {}
        options = check(given, self._stack.known_options)
        strangers = options.get("skip", frozenset()) - self._stack.names
        if strangers:
            raise ValueError(
                f"option skip names {', '.join(sorted(strangers))}: "
                f"the layers here are {', '.join(sorted(self._stack.names)) or '(none)'}"
            )
        return options

    def _deadline(self, request: Request, record: Record) -> float | None:
        hop = _last_hop.get()
        if hop is not None:
            _last_hop.set(None)
            timeout = request.extensions.get("timeout")
            if hop.timeout is timeout is not None and hop.request is not request:
                return hop.deadline
        seconds = record.options.get("deadline")
        return None if seconds is None else self._io.now() + float(seconds)

    async def _terminal(self, request: Request) -> Response:
        """The innermost handler: send, and read a plain body, which belongs to its attempt."""
        record = record_of(request)
        started = self._io.now()
        _tighten(request, record)
        try:
            response = await self._send(request)
            response.extensions[EXTENSION] = record
            if _is_plain(request, response, record):
                await self._io.read(response)
        except Exception as exc:
            took = self._io.now() - started
            record.emit("transport", "failed", type(exc).__name__, took)
            left = record.remaining()
            if left is not None and left <= 0 and isinstance(exc, _timeouts(request)):
                raise DeadlineExceeded(
                    "the deadline passed while waiting for the server", layer="transport", sent=True
                ) from exc
            raise
        took = self._io.now() - started
        record.emit("transport", "answered", str(response.status_code), took)
        return response

    async def _send(self, request: Request) -> Response:
        """Send through the inner transport, in this edge's mode."""
        raise NotImplementedError

    def _render(self, exc: Exception, request: Request, record: Record) -> Response | None:
        """A response in place of an exception, or ``None`` to raise it; see `Refusals`."""
        family = family_of(request)
        respond = record.sdk if self._refusals == "auto" else self._refusals == "respond"
        if isinstance(exc, Refused):
            record.refusal = family.refusal(exc, request)
            record.emit(exc.layer, "refused", exc.reason)
            return _refusal_response(family, exc, record) if respond else None
        if respond and record.spent and isinstance(exc, family.TransportError):
            status = 504 if isinstance(exc, family.TimeoutException) else 503
            message = f"{type(exc).__name__} after our own retries: {exc}"
            return _error_response(family, status, "retries_spent", message, None, record)
        return None


class Transport(_Edge):
    """A blocking httpx transport that sends every request through a pipeline."""

    def handle_request(self, request: Request) -> Response:
        """Send one request; httpx calls this."""
        response = drive(self._handle(request), blame)
        _check_stream(response, "SyncByteStream", request)
        return response

    async def _send(self, request: Request) -> Response:
        response: Response = self.inner.handle_request(request)
        return response

    def close(self) -> None:
        """Close what this transport owns."""
        if self._owns_inner:
            self.inner.close()
        if self._owns_stack:
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

    async def handle_async_request(self, request: Request) -> Response:
        """Send one request; httpx calls this."""
        response = await self._handle(request)
        _check_stream(response, "AsyncByteStream", request)
        return response

    async def _send(self, request: Request) -> Response:
        response: Response = await self.inner.handle_async_request(request)
        return response

    async def aclose(self) -> None:
        """Close what this transport owns."""
        if self._owns_inner:
            await self.inner.aclose()
        if self._owns_stack:
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


def _tighten(request: Request, record: Record) -> None:
    """Let no socket operation outlast the deadline; refuse when it has passed already."""
    left = record.remaining()
    if left is None:
        return
    if left <= 0:
        raise DeadlineExceeded("the deadline has passed", layer="transport")
    limits = dict.fromkeys(("connect", "read", "write", "pool"), left)
    for name, seconds in request.extensions.get("timeout", {}).items():
        if seconds is not None:
            limits[name] = min(seconds, left)
    request.extensions["timeout"] = limits


def _timeouts(request: Request) -> type[Exception]:
    return family_of(request).TimeoutException


def _is_plain(request: Request, response: Response, record: Record) -> bool:
    """Whether the body is read here, so that a broken one fails the attempt, not the caller's read.

    A whole LLM answer is, and an error of an LLM provider; and JSON that says how long it is, up to
    1 MiB. Everything else stays a stream: a Kubernetes watch is endless ``application/json``.
    """
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "text/event-stream" or response.status_code < 200:
        return False
    completion = record.completion(request)
    if completion is not None and (not completion.stream or response.status_code >= 400):
        return True
    is_json = kind == "application/json" or kind.endswith("+json")
    return is_json and known_length(response, _READ_BOUND) is not None


def _check_stream(response: Response, wanted: str, request: Request) -> None:
    stream = response.stream
    if not isinstance(stream, getattr(family_of(request).module, wanted)):
        raise LayerError(
            f"the response's body, a {type(stream).__qualname__}, is no {wanted}: it cannot be read "
            "by this client; make responses with respond(request, …)"
        )


def _refusal_response(family: Family, refused: Refused, record: Record) -> Response:
    return _error_response(family, refused.status, refused.code, str(refused), refused.retry_after, record)


def _error_response(
    family: Family, status: int, code: str, message: str, retry_after: float | None, record: Record
) -> Response:
    """An answer that both SDKs turn into their typed error, once: ``x-should-retry: false``."""
    headers = {"content-type": "application/json", "x-should-retry": "false"}
    if retry_after is not None:
        headers["retry-after"] = f"{retry_after:.3f}"
    # OpenAI reads error.code and error.message, Anthropic type == "error" and error.type
    error = {"type": code, "code": code, "message": message, "param": None}
    content = json.dumps({"type": "error", "error": error}).encode()
    return family.respond(status, headers=headers, content=content, extensions={EXTENSION: record})
