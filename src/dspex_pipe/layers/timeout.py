"""Bound the time of a call: all of it, each attempt, connecting, and the silences of a stream.

httpx's own timeouts bound single socket operations, so a server that sends a byte now and then is never late:
keep-alive pings hide a stall. These bound the whole, and count content. In async clients they pre-empt: what
is late is cancelled. A blocking call cannot be pre-empted: there every socket operation is cut to what is
left, and the time is looked at between the pieces of a body; an answer that comes late all the same is one.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

from attrs import Factory, define, field, frozen

from ..body import Passing, copy_request, is_buffered, put_stream
from ..config import brief, optional, seconds
from ..due import set_due
from ..errors import DeadlineExceeded
from ..events import Record, record_of
from ..io import GRACE, OutOfTime
from ..outcome import as_library_error, is_any_timeout, read_timeout, surely_unsent
from ..wire import Kind, StreamReader, is_event_stream, reader_for

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

    ``total`` belongs outside `Retry`, the others inside it: two of these layers, then. What the caller asked
    for in httpx's own ``timeout=`` still holds where it is shorter; httpx's default of 5 s, when nobody has
    touched it, counts as not asked for. The wire ends at the bound, so that the layers inside see a timeout;
    a layer that is busy past it all the same is cut off 0.25 s later.

    In a blocking client give ``first_content`` and ``idle`` together: then no read of a stream takes longer
    than the longer one. With one alone, a silence is told when something comes, or by the socket's timeout.

    Args:
        total: Seconds for the whole call: retries, waits, redirects, and the body. Every layer inside sees
            the deadline. Late is `DeadlineExceeded`.
        attempt: Seconds until an answer is there: its headers, and its body if that is read inside the
            stack (an LLM's, or short JSON). Late is a ``ReadTimeout``, which `Retry` sends again.
        connect: Seconds for connecting.
        first_content: Seconds from the start until an LLM's stream has brought its first content: text,
            reasoning, a tool call. Pings are none. Late is a ``ReadTimeout``; its reader gets it once the
            headers are there.
        idle: Seconds between two pieces of content of such a stream. In neither of the two counts the time
            in which its reader does something else.

    Raises:
        ValueError: Nothing is bounded.
    """

    total: float | None = field(default=None, validator=optional(seconds()))
    attempt: float | None = field(default=None, validator=optional(seconds()))
    connect: float | None = field(default=None, validator=optional(seconds()))
    first_content: float | None = field(default=None, validator=optional(seconds()))
    idle: float | None = field(default=None, validator=optional(seconds()))

    __repr__ = brief

    def __attrs_post_init__(self) -> None:
        if not any((self.total, self.attempt, self.connect, self.first_content, self.idle)):
            raise ValueError(
                "Timeout() bounds nothing: it takes total=, attempt=, connect=, first_content= or idle=, in "
                "seconds"
            )

    def build(self) -> TimingOut:
        """The running layer; it has no state."""
        return TimingOut(self)


# The pure part: what is due next.


def tightened(
    policy: Timeout, asked: dict[str, float | None], left: float | None, *, streams: bool = False
) -> dict[str, float | None]:
    """The bounds of single socket operations, in seconds.

    Args:
        policy: The configuration.
        asked: What the caller asked for, as httpx has it.
        left: Seconds until the deadline, if there is one.
        streams: Whether a stream was asked for: then no read takes longer than its content may.
    """
    bounds = {}
    for kind in _KINDS:
        given = None if asked == _UNTOUCHED else asked.get(kind)
        own = policy.connect if kind == "connect" and policy.connect is not None else policy.attempt
        known = [given, own, left]
        if kind == "read" and streams and None not in {policy.first_content, policy.idle}:
            known.append(max(policy.first_content or 0.0, policy.idle or 0.0))
        told = [bound for bound in known if bound is not None]
        bounds[kind] = min(told) if told else asked.get(kind)
    return bounds


@define
class Watch:
    """What one call is bounded by, as it goes on.

    Args:
        policy: The configuration.
        started: Seconds, when the call came here.
        deadline: When the whole call must be over, if ``total`` says so.
        streams: Whether it is a stream, of which the content counts.
        answered: Whether its headers are there.
        heard: Seconds, since when there has been no content; it moves along while the reader is away.
        has_content: Whether any has come.
    """

    policy: Timeout
    started: float
    deadline: float | None
    streams: bool
    answered: bool = False
    heard: float = field(init=False, default=Factory(lambda self: self.started, takes_self=True))
    has_content: bool = False

    def due(self) -> tuple[float, str] | None:
        """When the call is late, and by which bound; ``None`` for never."""
        return min(self._dues(), default=None)

    def server_due(self) -> float:
        """When it is the server that was late: the total says nothing of one that goes on and on."""
        dues = [at for at, bound in self._dues() if bound != "total" or not self.has_content]
        return min(dues, default=inf)

    def _dues(self) -> list[tuple[float, str]]:
        policy, dues = self.policy, []
        if self.deadline is not None:
            dues.append((self.deadline, "total"))
        if policy.attempt is not None and not self.answered:
            dues.append((self.started + policy.attempt, "attempt"))
        if self.streams and policy.first_content is not None and not self.has_content:
            dues.append((self.heard + policy.first_content, "first_content"))
        if self.streams and policy.idle is not None and self.has_content:
            dues.append((self.heard + policy.idle, "idle"))
        return dues


_SAID = {
    "attempt": "the attempt took longer than {:g} s",
    "first_content": "no content within {:g} s",
    "idle": "no content for {:g} s",
}


class TimingOut:
    """The running layer."""

    def __init__(self, policy: Timeout) -> None:
        self.policy = policy

    async def __call__(self, request: Request, call_next: Handler, io: IO) -> Response:
        record, policy, now = record_of(request), self.policy, io.now()
        completion = record.completion(request)
        streams = completion is not None and completion.stream
        if policy.total is not None:
            deadline = now + policy.total
            record.deadline = deadline if record.deadline is None else min(deadline, record.deadline)
        request = copy_request(request)  # whoever sends it again has other bounds then
        asked = dict(request.extensions.get("timeout", {}))
        request.extensions["timeout"] = tightened(policy, asked, record.remaining(), streams=streams)
        watch = Watch(policy, now, record.deadline if policy.total is not None else None, streams)
        timer = _Timer(watch, request, record, io)
        set_due(request, watch.server_due)
        response: Response = await timer.bounded(_call(call_next, request), grace=GRACE)
        watch.answered = True
        watch.streams = is_event_stream(response.headers)
        bounded = watch.due() is not None or (watch.streams and policy.idle is not None)
        if bounded and not is_buffered(response):
            reader = reader_for(completion.format if completion else None, response.headers)
            put_stream(response, _Timed(response.stream, timer, reader))
        return response


async def _call(call_next: Handler, request: Request) -> Response:
    return await call_next(request)


class _Timer:
    """Awaits things for as long as a `Watch` allows."""

    def __init__(self, watch: Watch, request: Request, record: Record, io: IO) -> None:
        self.watch = watch
        self.io = io
        self._request = request
        self._record = record

    async def bounded(self, coroutine: Any, grace: float = 0.0) -> Any:
        """Await a coroutine, until the next bound.

        Args:
            coroutine: What to await.
            grace: Seconds more, for those inside who know of that bound, too.

        Raises:
            ReadTimeout: Of the request's library.
            DeadlineExceeded: The total is over.
        """
        due = self.watch.due()
        if due is None:
            return await coroutine
        try:
            return await self.io.bounded(coroutine, max(0.0, due[0] - self.io.now()) + grace)
        except OutOfTime:
            raise self._late(due[1]) from None
        except Exception as exc:
            self.explain(exc)
            raise

    def check(self) -> None:
        """Raise when a bound has passed."""
        due = self.watch.due()
        if due is not None and self.io.now() >= due[0]:
            raise self._late(due[1])

    def explain(self, exc: Exception) -> None:
        """Raise when a timeout of the wire, which knows of our bounds, came because one has passed."""
        if is_any_timeout(exc, self._request) and not surely_unsent(exc, self._request):
            self.check()

    def _late(self, bound: str) -> Exception:
        length = getattr(self.watch.policy, bound)
        if bound == "total" and self.watch.deadline is not None:  # the caller's own may be shorter
            length = round(self.watch.deadline - self.watch.started, 3)
        self._record.emit("Timeout", "is over", f"{bound}={length:g} s")
        if bound != "total":
            return read_timeout(_SAID[bound].format(length), self._request)
        late = DeadlineExceeded(f"the call took longer than {length:g} s", layer="Timeout", sent=True)
        # the reader of a body stands outside the stack, where nobody makes it an error of the library
        return as_library_error(late, self._request) if self.watch.answered else late


class _Timed(Passing):
    """A body that must go on coming."""

    def __init__(self, stream: Any, timer: _Timer, reader: StreamReader) -> None:
        super().__init__(stream)
        self._timer = timer
        self._reader = reader
        self._handed_at = timer.io.now()

    def __next__(self) -> bytes:
        self._wait_again()
        self._timer.check()
        try:
            return self._note(super().__next__())
        except Exception as exc:
            self._timer.explain(exc)
            raise

    async def __anext__(self) -> bytes:
        self._wait_again()
        return self._note(await self._timer.bounded(super().__anext__()))

    def _wait_again(self) -> None:
        """The reader has come back: it was not the server that has let us wait meanwhile."""
        now = self._timer.io.now()
        self._timer.watch.heard += now - self._handed_at
        self._handed_at = now

    def _note(self, chunk: bytes) -> bytes:
        self._handed_at = self._timer.io.now()
        kinds = [event.kind for event in self._reader.feed(chunk)]
        # where the meaning cannot be read, every piece counts
        if self._reader.gave_up is not None or Kind.CONTENT in kinds:
            self._timer.watch.heard, self._timer.watch.has_content = self._handed_at, True
        return chunk
