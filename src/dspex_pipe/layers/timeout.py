"""Bound the time of a call: all of it, each attempt, and connecting.

httpx's own timeouts bound single socket operations, so a server that sends a byte now and then is never late.
These bound the whole. In async clients they pre-empt: what is late is cancelled. A blocking call cannot be
pre-empted: there every socket operation is cut to what is left, and the time is looked at between the pieces
of a body; an answer that comes late in spite of that is an answer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from ..body import Passing, is_buffered, put_stream
from ..config import brief, optional, seconds
from ..errors import DeadlineExceeded
from ..events import Record, record_of
from ..io import OutOfTime
from ..outcome import as_library_error, read_timeout

if TYPE_CHECKING:
    from ..chain import Handler
    from ..family import Request, Response
    from ..io import IO

__all__ = ["Timeout"]

_KINDS = ("connect", "read", "write", "pool")
_UNTOUCHED = dict.fromkeys(_KINDS, 5.0)  # what httpx and httpx2 have when nobody said anything


@frozen(kw_only=True, repr=False)
class Timeout:
    """Bound the time of calls; what is late raises a timeout of the client's library.

    ``total`` belongs outside `Retry`, ``attempt`` inside it: two of these layers, then. What the caller asked
    for in httpx's own ``timeout=`` still holds where it is shorter; httpx's default of 5 s, when nobody has
    touched it, counts as not asked for.

    Args:
        total: Seconds for the whole call: retries, waits, redirects, and the body. Every layer inside sees
            the deadline, and none waits past it. Late is `DeadlineExceeded`.
        attempt: Seconds until an answer is there: its headers, and its body if that is read inside the
            stack (an LLM's, or short JSON). Late is a ``ReadTimeout``, which `Retry` sends again.
        connect: Seconds for connecting.

    Raises:
        ValueError: Nothing is bounded.
    """

    total: float | None = field(default=None, validator=optional(seconds()))
    attempt: float | None = field(default=None, validator=optional(seconds()))
    connect: float | None = field(default=None, validator=optional(seconds()))

    __repr__ = brief

    def __attrs_post_init__(self) -> None:
        if self.total is None and self.attempt is None and self.connect is None:
            raise ValueError("Timeout() bounds nothing: it takes total=, attempt= or connect=, in seconds")

    def build(self) -> TimingOut:
        """The running layer; it has no state."""
        return TimingOut(self)


def tightened(policy: Timeout, asked: dict[str, float | None], left: float | None) -> dict[str, float | None]:
    """The bounds of single socket operations, in seconds.

    Args:
        policy: The configuration.
        asked: What the caller asked for, as httpx has it.
        left: Seconds until the deadline, if there is one.
    """
    bounds = {}
    for kind in _KINDS:
        given = None if asked == _UNTOUCHED else asked.get(kind)
        own = policy.connect if kind == "connect" and policy.connect is not None else policy.attempt
        known = [bound for bound in (given, own, left) if bound is not None]
        bounds[kind] = min(known) if known else asked.get(kind)
    return bounds


class TimingOut:
    """The running layer."""

    def __init__(self, policy: Timeout) -> None:
        self.policy = policy

    async def __call__(self, request: Request, call_next: Handler, io: IO) -> Response:
        record, total, attempt = record_of(request), self.policy.total, self.policy.attempt
        if total is not None:
            deadline = io.now() + total
            record.deadline = deadline if record.deadline is None else min(deadline, record.deadline)
        left = record.remaining()
        request.extensions["timeout"] = tightened(
            self.policy, dict(request.extensions.get("timeout", {})), left
        )
        limits = [limit for limit in (attempt, left if total is not None else None) if limit is not None]
        if not limits:
            return await call_next(request)
        try:
            response = await io.bounded(_call(call_next, request), max(0.0, min(limits)))
        except OutOfTime:
            raise self._late(request, record) from None
        if total is not None and not is_buffered(response):
            late = partial(self._late_body, request, record)
            put_stream(response, _Timed(response.stream, record, io, late))
        return response

    def _late(self, request: Request, record: Record) -> Exception:
        """What is raised when the time is over."""
        left = record.remaining()
        if self.policy.total is not None and left is not None and left <= 0:
            record.emit("Timeout", "ends the call", f"total={self.policy.total:g} s are over")
            return DeadlineExceeded(
                f"the call took longer than {self.policy.total:g} s", layer="Timeout", sent=True
            )
        record.emit("Timeout", "ends the attempt", f"attempt={self.policy.attempt:g} s are over")
        return read_timeout(f"the attempt took longer than {self.policy.attempt:g} s", request)

    def _late_body(self, request: Request, record: Record) -> Exception:
        """What the reader of a body gets, outside the stack: an exception of its own library."""
        late = self._late(request, record)
        return as_library_error(late, request) if isinstance(late, DeadlineExceeded) else late


async def _call(call_next: Handler, request: Request) -> Response:
    return await call_next(request)


class _Timed(Passing):
    """A body that must come to its end before the deadline."""

    def __init__(self, stream: Any, record: Record, io: IO, late: Callable[[], Exception]) -> None:
        super().__init__(stream)
        self._left = record.remaining
        self._io = io
        self._late = late

    def __next__(self) -> bytes:
        if (self._left() or 0.0) <= 0:
            raise self._late()
        return super().__next__()

    async def __anext__(self) -> bytes:
        try:
            return await self._io.bounded(super().__anext__(), max(0.0, self._left() or 0.0))
        except OutOfTime:
            raise self._late() from None
