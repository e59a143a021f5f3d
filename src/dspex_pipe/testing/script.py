"""The other end of the wire, scripted."""

from __future__ import annotations

import copy
import json as _json
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from types import FrameType
from typing import Any, TypeAlias

from attrs import field, frozen

from ..family import Request, Response, family_of
from ..io import ASYNC, BLOCKING, IO, drive

__all__ = ["Reply", "Script"]


@frozen(kw_only=True)
class Reply:
    """One scripted answer.

    Args:
        status: The HTTP status.
        headers: Response headers; a ``content-length`` is added when ``content`` or ``json`` is given.
        content: The body, whole.
        json: The body, as JSON.
        chunks: The body, as a stream of these pieces.
        delay: Seconds before the answer.
        pause: Seconds before each chunk.
        error: What breaks the body off after the chunks: an exception, or the name of one of httpx.
    """

    status: int = 200
    headers: Mapping[str, str] = field(factory=dict)
    content: bytes = b""
    json: Any = None
    chunks: Iterable[bytes] | None = None
    delay: float = 0.0
    pause: float = 0.0
    error: Exception | str | None = None


Step: TypeAlias = "int | str | Exception | Reply | Callable[[Request], Any]"


class Script:
    """A scripted upstream: a handler *and* a transport, blocking and async, of httpx and httpx2.

    Each request takes the next step: a status, a `Reply`, an exception to raise, the name of an exception of
    httpx (raised as the request's own library has it), or a function of the request that returns any of
    those.

    Args:
        steps: What to answer, in order; a request beyond the last is an ``AssertionError``.
        forever: Answer every further request with the last step.
        io: Where delays are waited; by default for real, so give it the ``VirtualIO`` of the test.
    """

    def __init__(self, *steps: Step, forever: bool = False, io: IO | None = None) -> None:
        self.steps = deque(steps)
        self.forever = forever
        self.io = io
        self.requests: list[Request] = []
        """Every request that came, as it came."""
        self.bodies: list[_Body] = []
        """Every body that was handed out."""
        self.closed = 0
        """How often this transport was closed."""

    @property
    def open(self) -> int:
        """How many bodies are neither read to their end nor closed."""
        return sum(not body.ended for body in self.bodies)

    async def __call__(self, request: Request) -> Response:
        """Answer, as a handler."""
        return await self._answer(request, self.io or ASYNC)

    def handle_request(self, request: Request) -> Response:
        """Answer, as a blocking transport."""
        return drive(self._answer(request, self.io or BLOCKING), _blame_script)

    async def handle_async_request(self, request: Request) -> Response:
        """Answer, as an async transport."""
        return await self._answer(request, self.io or ASYNC)

    def close(self) -> None:
        """Count it: who closes what is part of many tests."""
        self.closed += 1

    async def aclose(self) -> None:
        """Count it."""
        self.closed += 1

    async def _answer(self, request: Request, io: IO) -> Response:
        self.requests.append(request)
        if not self.steps:
            raise AssertionError(
                f"no step left in the script for request {len(self.requests)}: {request.method} {request.url}"
            )
        step = self.steps[0] if self.forever and len(self.steps) == 1 else self.steps.popleft()
        if callable(step) and not isinstance(step, type):
            step = step(request)
        reply = Reply(status=step) if isinstance(step, int) else step
        if not isinstance(reply, Reply):
            raise _exception(reply, request)
        await io.sleep(reply.delay)
        content = reply.content if reply.json is None else _json.dumps(reply.json).encode()
        headers = dict(reply.headers)
        if reply.json is not None:
            headers.setdefault("content-type", "application/json")
        if reply.chunks is None:
            headers.setdefault("content-length", str(len(content)))
        pieces = [content] if reply.chunks is None else list(reply.chunks)
        error = None if reply.error is None else _exception(reply.error, request)
        body = _Body([piece for piece in pieces if piece], reply.pause, error, io)
        self.bodies.append(body)
        family = family_of(request)
        response: Response = family.module.Response(reply.status, headers=headers, stream=family.Body(body))
        return response


def _exception(step: Any, request: Request) -> BaseException:
    if isinstance(step, BaseException):
        return copy.copy(step)  # a fresh one each time: a shared one would grow its traceback
    named = getattr(family_of(request).module, step, None) if isinstance(step, str) else None
    if isinstance(named, type) and issubclass(named, BaseException):
        return named("scripted")
    raise TypeError(
        "a step of a script is a status, a Reply, an exception, the name of one of httpx's, or a function, "
        f"got {step!r}"
    )


def _blame_script(_: Iterable[tuple[FrameType, int]]) -> str:
    return "the script"


class _Body:
    """A scripted body; it knows whether it was read to its end or closed."""

    def __init__(self, chunks: list[bytes], pause: float, error: BaseException | None, io: IO) -> None:
        self._chunks = deque(chunks)
        self._pause = pause
        self._error = error
        self._io = io
        self.ended = False
        self.closes = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        chunk = drive(self._next(), _blame_script)
        if chunk is None:
            raise StopIteration
        return chunk

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        chunk = await self._next()
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    async def _next(self) -> bytes | None:
        if self.ended:
            return None
        if self._chunks:
            await self._io.sleep(self._pause)
            return self._chunks.popleft()
        self.ended = True
        if self._error is not None:
            raise self._error
        return None

    def close(self) -> None:
        self.closes += 1
        self.ended = True

    async def aclose(self) -> None:
        self.close()
