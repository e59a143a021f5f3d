"""What layers tell: one event stream per pipeline, and the trace of each call.

Every call has one `Record`, in ``request.extensions["dspex"]``. It is small on purpose: the deadline,
the options, the trace, and what the request is. Layers keep their own state in themselves.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import define, field, frozen

from .errors import LayerError, Refused
from .family import Request, Response, content_of
from .wire import Completion, recognise

if TYPE_CHECKING:
    from .outcome import Meaning

__all__ = ["EXTENSION", "Event", "Record", "Trace", "belongs_to", "explain", "record_of", "refusal_of"]

EXTENSION = "dspex"
"""The key in the ``extensions`` of requests and responses."""

ErrorT = TypeVar("ErrorT", bound=Exception)

_TRACE_BOUND = 256
_NOTHING: Mapping[Any, Any] = {}  # one for all calls, most of which have no options: replaced, never changed
_logger = logging.getLogger("dspex_pipe")


@frozen
class Event:
    """One thing that happened in one call.

    Args:
        layer: Who tells; ``transport`` is the wire itself.
        decision: What was done, in a word or two: ``answered``, ``broke off``, ``retries`` …
        reason: Why, safe to log: no secret, no body, no query value.
        seconds: How long it took, or how long the layer will wait.
        at: Seconds since the call began.
        call: The call's number in this process; all events of one call share it.
    """

    layer: str
    decision: str
    reason: str = ""
    seconds: float = 0.0
    at: float = 0.0
    call: int = 0


OnEvent = Callable[[Event], object]


class Trace(tuple[Event, ...]):
    """The events of one call, oldest first; ``print`` shows them as a short list."""

    __slots__ = ()

    def __str__(self) -> str:
        if not self:
            return "no trace: this came through no dspex_pipe pipeline, or an SDK kept only what it parsed"
        rows = [(f"{e.at:.3f} s", e.layer, e.decision, f"{e.seconds:.3f} s", e.reason) for e in self]
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        return "\n".join(
            f"{at:>{widths[0]}}  {layer:<{widths[1]}}  {decision:<{widths[2]}}  "
            f"{seconds:>{widths[3]}}  {reason}".rstrip()
            for at, layer, decision, seconds, reason in rows
        )


@define(eq=False)
class Record:
    """What one call carries through the stack.

    Args:
        call: The call's number in this process.
        now: The clock, in seconds (``io.now``).
        deadline: When the whole call must be over, on that clock; ``None`` for never.
        options: The options of this call, checked.
        sdk: Whether a provider's SDK made the request, which would retry what we raise.
        meanings: What error codes and statuses mean, beyond what everybody knows (`outcome.MEANINGS`).
        watchers: Who is told each event as it happens.
    """

    call: int
    now: Callable[[], float]
    deadline: float | None = None
    options: Mapping[str, Any] = _NOTHING
    sdk: bool = False
    meanings: Mapping[str | int, Meaning] = _NOTHING
    watchers: list[OnEvent] = field(factory=list)
    spent: bool = False
    """Our own retries are used up for the last outcome: nobody above should retry it again."""
    refusal: Refused | None = None
    """The refusal that this call ended with, if it did."""
    opened: list[Response] = field(factory=list)
    """Responses that came from the wire and may still be streams, newest last."""
    started: float = field(init=False)
    events: list[Event] = field(init=False, factory=list)
    _read: tuple[bytes | None, Any, Completion | None] | None = field(init=False, default=None, repr=False)

    def __attrs_post_init__(self) -> None:
        self.started = self.now()

    def emit(self, layer: str, decision: str, reason: str = "", seconds: float = 0.0) -> Event:
        """Tell what a layer decided; the trace keeps the newest 256 events of a call."""
        event = Event(layer, decision, reason, seconds, self.now() - self.started, self.call)
        self.events.append(event)
        if len(self.events) > _TRACE_BOUND:
            del self.events[0]
        for watcher in tuple(self.watchers):
            try:
                watcher(event)
            except Exception:  # an observer must never change what happens to the call
                _logger.exception("an on_event callback failed")
        return event

    def remaining(self) -> float | None:
        """Seconds until the deadline, negative when it has passed; ``None`` without one."""
        return None if self.deadline is None else self.deadline - self.now()

    def completion(self, request: Request) -> Completion | None:
        """Which LLM completion the request is; worked out once, by whoever asks first.

        A layer may ask for another: what has another body or URL object is read anew.
        """
        content, url, read = content_of(request), request.url, self._read
        if read is not None and read[0] is content and read[1] is url:
            return read[2]
        completion = recognise(request.method, url.path, content)
        self._read = (content, url, completion)
        return completion

    def recognised(self, request: Request, completion: Completion | None) -> None:
        """Take from who has read the request which LLM completion it is, if it is one."""
        self._read = (content_of(request), request.url, completion)


def record_of(request: Request) -> Record:
    """The record of this call.

    Raises:
        LayerError: The request carries none: somebody above made a new one without its extensions.
    """
    record = request.extensions.get(EXTENSION)
    if not isinstance(record, Record):
        raise LayerError(
            'the request has no extensions["dspex"]: hand on the request you were given, or a copy '
            "that keeps its extensions"
        )
    return record


def belongs_to(error: ErrorT, request: Request) -> ErrorT:
    """Let `explain` find the call of an error that may be raised while a body is read, outside the stack."""
    error._dspex_record = request.extensions.get(EXTENSION)  # type: ignore[attr-defined]
    return error


# Where SDKs keep the response: their errors, raw responses, and streaming helpers.
_SDK_NAMES = ("response", "http_response", "_response", "_raw_stream")


def _records(thing: object) -> Iterable[Record]:
    """The records behind a response or an exception, an SDK's included, outermost first."""
    seen: set[int] = set()
    queue = deque([thing])
    while queue:
        item = queue.popleft()
        if item is None or id(item) in seen:
            continue
        seen.add(id(item))
        record = getattr(item, "_dspex_record", None)
        if record is None:
            extensions = getattr(item, "extensions", None)
            record = extensions.get(EXTENSION) if isinstance(extensions, Mapping) else None
        if isinstance(record, Record):
            yield record
        if isinstance(item, BaseException):
            queue.extend((item.__cause__, item.__context__))
        queue.extend(getattr(item, name, None) for name in _SDK_NAMES if _has(item, name))


def _has(item: object, name: str) -> bool:
    """Whether an attribute stands there, without running a property that may raise."""
    return name in getattr(item, "__dict__", ())


def explain(response_or_exception: object) -> Trace:
    """The trace of a call: who decided what, why, and how long it took.

    Takes a response or an exception of httpx or httpx2, or what an SDK made of them (it follows
    ``__cause__`` and ``.response``). The trace is empty when the call went through no pipeline, and for what
    holds neither: an SDK's parsed answer (``with_raw_response`` gives one that does).
    """
    for record in _records(response_or_exception):
        return Trace(record.events)
    return Trace()


def refusal_of(response_or_exception: object) -> Refused | None:
    """The refusal behind a response or an exception, an SDK's error included; ``None`` without one."""
    if isinstance(response_or_exception, Refused):
        return response_or_exception
    for record in _records(response_or_exception):
        return record.refusal
    return None
