"""What a provider's answers look like on the wire: OpenAI's chat format, its errors and its headers."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING

from ..family import Request, Response, family_of, respond
from ..waits import wait_headers
from ..wire import is_event_stream, parse_loosely

if TYPE_CHECKING:
    from .bucket import Bucket

__all__ = [
    "CONTENTS",
    "DONE",
    "HALF",
    "fault_of",
    "limit_headers",
    "overloaded",
    "streamed",
    "throttled",
    "whole",
]

CONTENTS = 4
"""Pieces of content in a stream; real ones have more, which would only take time to simulate."""

HALF = "half an answer"
"""What is wrong with an answer that simply stopped."""

_ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "simulated",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "42"}}],
}


def _event(delta: dict[str, str], reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    document = {**_ANSWER, "object": "chat.completion.chunk", "choices": [choice]}
    return f"data: {json.dumps(document)}\n\n".encode()


DONE = b"data: [DONE]\n\n"
_EVENTS = [
    _event({"role": "assistant", "content": ""}),
    *[_event({"content": "42"})] * CONTENTS,
    _event({}, "stop") + DONE,
]
_JSON = {"content-type": "application/json"}
_SSE = {"content-type": "text/event-stream"}


def whole(request: Request, tokens_in: int, tokens_out: int, limits: dict[str, str]) -> Response:
    """An answer in one piece, which tells the tokens it took."""
    usage = {
        "prompt_tokens": tokens_in,
        "completion_tokens": tokens_out,
        "total_tokens": tokens_in + tokens_out,
    }
    content = json.dumps({**_ANSWER, "usage": usage}).encode()
    return respond(request, 200, headers={**_JSON, **limits}, content=content)


def streamed(request: Request, limits: dict[str, str], before: Callable[[int], Awaitable[None]]) -> Response:
    """An answer as a stream.

    Args:
        request: The request.
        limits: The headers of `limit_headers`.
        before: Awaited before each event, with its number: 0 is the frame, then come `CONTENTS` pieces of
            content, and the end.
    """
    family = family_of(request)
    response: Response = family.module.Response(
        200,
        headers={**_SSE, **limits},
        stream=family.Body(_Stream(before)),  # type: ignore[arg-type]
    )
    return response


class _Stream:
    """A body that comes event by event."""

    def __init__(self, before: Callable[[int], Awaitable[None]]) -> None:
        self._before = before
        self._events = deque(enumerate(_EVENTS))

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._events:
            raise StopAsyncIteration
        number, event = self._events.popleft()
        await self._before(number)
        return event

    async def aclose(self) -> None:
        """Say no more."""
        self._events.clear()


def throttled(request: Request, what: str, wait: float, limits: dict[str, str]) -> Response:
    """A 429.

    Args:
        request: The request.
        what: ``requests`` or ``tokens``, whichever are used up.
        wait: Seconds until there are enough of them for this request; infinite for never.
        limits: The headers of `limit_headers`.
    """
    told = wait_headers(wait) if wait < float("inf") else {}
    return _error(request, 429, what, "rate_limit_exceeded", {**limits, **told})


def overloaded(request: Request) -> Response:
    """A 503: the provider is too busy."""
    return _error(request, 503, "server_error", "server_is_overloaded", {})


def _error(request: Request, status: int, kind: str, code: str, headers: dict[str, str]) -> Response:
    error = {"type": kind, "code": code, "message": "simulated", "param": None}
    content = json.dumps({"error": error}).encode()
    return respond(request, status, headers={**_JSON, **headers}, content=content)


def fault_of(response: Response, body: bytes) -> str | None:
    """What is wrong with an answer, as an SDK's user gets to know it; ``None`` for nothing.

    Args:
        response: The response.
        body: What its reader got of it.
    """
    if response.status_code != 200:
        return f"status {response.status_code}"
    if is_event_stream(response.headers):
        if b'data: {"error"' in body:
            return "error in the stream"
        return None if DONE in body else HALF
    return HALF if body.startswith(b"{") and parse_loosely(body) is None else None


def limit_headers(buckets: dict[str, Bucket], now: float) -> dict[str, str]:
    """How much of each limit is left, as OpenAI tells it.

    Args:
        buckets: By name.
        now: Seconds.
    """
    told = {}
    for name, bucket in buckets.items():
        told[f"x-ratelimit-limit-{name}"] = f"{bucket.per_minute:g}"
        told[f"x-ratelimit-remaining-{name}"] = f"{max(0, int(bucket.per_minute - bucket.missing(now)))}"
        told[f"x-ratelimit-reset-{name}"] = _duration(bucket.full_in(now))
    return told


def _duration(seconds: float) -> str:
    """As Go writes it: ``120ms``, ``6m0.5s``."""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    minutes, rest = divmod(round(seconds, 3), 60)
    return f"{minutes:.0f}m{rest:g}s" if minutes else f"{rest:g}s"
