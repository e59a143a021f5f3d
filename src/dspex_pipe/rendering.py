"""The way out: refusals, and what is left after our retries, in the caller's language."""

from __future__ import annotations

from typing import Literal, TypeAlias

from .errors import Refused
from .events import EXTENSION, Record
from .family import Request, Response, family_of, respond
from .waits import wait_headers
from .wire import error_body

__all__ = ["Refusals", "render"]

Refusals: TypeAlias = Literal["auto", "raise", "respond"]
"""How a refusal reaches the caller: raised, as a response, or as fits the caller."""


def render(exc: Exception, request: Request, record: Record, refusals: Refusals) -> Response | None:
    """A response in the place of an exception; ``None`` to raise it, a refusal as an error of the library.

    An SDK retries what a transport raises, 3 calls for one. A response with ``x-should-retry: false`` is one
    typed error of the SDK (measured with openai 3.54 and anthropic 2.12).
    """
    family = family_of(request)
    answers = record.sdk if refusals == "auto" else refusals == "respond"
    if isinstance(exc, Refused):
        record.refusal = family.refusal(exc, request)
        record.emit(exc.layer, "refused", exc.reason)
        if not answers:
            return None
        return _error(request, exc.status, exc.code, str(exc), exc.retry_after, record)
    if answers and record.spent and isinstance(exc, family.TransportError):
        status = 504 if isinstance(exc, family.TimeoutException) else 503
        message = f"{type(exc).__name__} after our own retries: {exc}"
        return _error(request, status, "retries_spent", message, None, record)
    return None


def _error(
    request: Request, status: int, code: str, message: str, retry_after: float | None, record: Record
) -> Response:
    headers = {"content-type": "application/json", "x-should-retry": "false"}
    if retry_after is not None:
        headers |= wait_headers(retry_after)
    content, extensions = error_body(code, message), {EXTENSION: record}
    return respond(request, status, headers=headers, content=content, extensions=extensions)
