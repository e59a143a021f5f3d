"""Faults in a call before its answer: it comes late, or something else comes in its place."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import TYPE_CHECKING

from attrs import field, frozen

from ..body import respond
from ..config import check, one_of, seconds
from ..events import record_of
from ..outcome import transport_error
from ..waits import wait_headers
from .errors import error_body
from .fault import SAYS_SO, Fault, silence

if TYPE_CHECKING:
    from ..chain import Handler
    from ..family import Request, Response
    from ..io import IO

__all__ = ["Latency", "Overload", "Raise", "Status", "Throttle"]

_ERRORS = (
    "CloseError",
    "ConnectError",
    "ConnectTimeout",
    "LocalProtocolError",
    "PoolTimeout",
    "ProxyError",
    "ReadError",
    "ReadTimeout",
    "RemoteProtocolError",
    "UnsupportedProtocol",
    "WriteError",
    "WriteTimeout",
)
_wait = seconds(zero=True)


@frozen(repr=False)
class Latency(Fault):
    """The answer takes longer: a wait before the request is sent.

    As with a slow server, the request's own read timeout ends the wait, with ``ReadTimeout``; the call's
    deadline ends it, too.

    Args:
        seconds: Seconds.
        jitter: Seconds of random extra, at most.
    """

    seconds: float = field(validator=_wait)
    jitter: float = field(default=0.0, kw_only=True, validator=_wait)

    async def inject(self, request: Request, call_next: Handler, io: IO, random: Random) -> Response:
        """Wait, then go on."""
        wait = self.seconds + self.jitter * random.random()
        record_of(request).emit("Chaos", "injects", self.told, wait)
        await silence(request, io, wait)
        return await call_next(request)


class _Instead(Fault):
    """A fault that comes in the place of an answer; nothing is sent."""

    def answer(self, request: Request) -> Response:
        """What comes, if it is no error to raise."""
        raise NotImplementedError

    async def inject(self, request: Request, call_next: Handler, io: IO, random: Random) -> Response:
        """Answer, and send nothing."""
        record_of(request).emit("Chaos", "injects", self.told)
        return self.answer(request)


@frozen(repr=False)
class Raise(_Instead):
    """A transport error before anything is sent.

    Args:
        error: Its name in httpx, ``"ConnectError"`` for one; raised as the request's own library has it.
    """

    error: str = field(validator=one_of(*_ERRORS))

    def answer(self, request: Request) -> Response:
        """Raise it."""
        raise transport_error(self.error, SAYS_SO, request)


@frozen(repr=False)
class Status(_Instead):
    """This status in place of an answer; from 400 on with a provider's error body. Nothing is sent.

    Args:
        status: The HTTP status, 200 to 599.
    """

    status: int = field(
        validator=check("an HTTP status, 200 to 599", lambda v: type(v) is int and 200 <= v <= 599)
    )

    def answer(self, request: Request) -> Response:
        """The status."""
        return _failure(request, self.status) if self.status >= 400 else respond(request, self.status)


@frozen(repr=False)
class Throttle(_Instead):
    """A 429 in place of an answer, with ``retry-after``, ``retry-after-ms`` and the provider's error body.

    Args:
        retry_after: Seconds.
    """

    retry_after: float = field(default=1.0, kw_only=True, validator=_wait)

    def answer(self, request: Request) -> Response:
        """The 429."""
        return _failure(request, 429, wait_headers(self.retry_after))


@frozen(repr=False)
class Overload(_Instead):
    """A 529 in place of an answer, with the error body ``overloaded_error``, as Anthropic sends it."""

    def answer(self, request: Request) -> Response:
        """The 529."""
        return _failure(request, 529)


def _failure(request: Request, status: int, headers: Mapping[str, str] | None = None) -> Response:
    """A failed status with the error body of the call's provider."""
    completion = record_of(request).completion(request)
    body = error_body(None if completion is None else completion.format, status)
    sent = {"content-type": "application/json", **(headers or {})}
    return respond(request, status, headers=sent, content=body)
