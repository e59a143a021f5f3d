"""Break calls on purpose, and in the same way each time: for tests and game days.

Which call gets which fault hangs on the seed, the call's number and the fault's place in the list, and on
nothing else: not on what other calls do meanwhile. A fault is a value that says what happens, and it works
like a layer: it is given the request and the way on. A fault in a body is an *edit*, a plain function from
what the server sent to what the reader gets and when; one small class carries out all of them, in every mode.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from functools import partial
from random import Random
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import attrs
from attrs import field, frozen

from ..body import Passing, copy_request, is_buffered, put_stream, respond
from ..config import check, flag, fraction, one_of, optional, seconds, whole
from ..events import record_of
from ..io import drive
from ..options import Converter, switch
from ..outcome import broken_body, read_timeout, transport_error, wait_headers
from ..wire import is_event_stream
from ..wire.sse import Parser

if TYPE_CHECKING:
    from ..chain import Handler
    from ..family import Request, Response
    from ..io import IO

__all__ = [
    "Chaos",
    "DoneWithoutFinish",
    "Drip",
    "Fault",
    "Latency",
    "Overload",
    "Raise",
    "SseError",
    "Stall",
    "Status",
    "Throttle",
    "Truncate",
]

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
_COMMON = ("rate", "when", "times")
_SAYS_SO = "injected by Chaos"
_wait = seconds(zero=True)


# What may go wrong.


@frozen(kw_only=True, repr=False)
class Fault:
    """One thing that goes wrong; the base of all faults.

    Every fault takes these three, by keyword:

    Args:
        rate: The share of calls that get it, 0 to 1; by default what `Chaos` says.
        when: Which requests it may meet: a function of the request; by default all.
        times: Calls that get it at most; by default any number.

    Raises:
        ValueError: A value is not allowed; the message says what is.
    """

    rate: float | None = field(default=None, validator=optional(fraction()))
    when: Callable[[Request], object] | None = field(
        default=None, validator=optional(check("a function of the request", callable))
    )
    times: int | None = field(default=None, validator=optional(whole(1)))

    def __repr__(self) -> str:
        return _shown(self, lambda name: True)

    @property
    def told(self) -> str:
        """What the trace says of it."""
        return _shown(self, lambda name: name not in _COMMON)

    def fits(self, request: Request) -> bool:
        """Whether it may meet this request."""
        return self.when is None or bool(self.when(request))

    async def inject(self, request: Request, call_next: Handler, io: IO, random: Random) -> Response:
        """Let it happen to a call; the request is a copy, the random numbers are this call's own."""
        raise NotImplementedError


def _shown(fault: Fault, wanted: Callable[[str], bool]) -> str:
    parts = []
    # inherited fields come first, where they would stand before the positional ones
    for a in sorted(attrs.fields(type(fault)), key=lambda a: a.name in _COMMON):
        value = getattr(fault, a.name)
        if wanted(a.name) and value != a.default:
            parts.append(f"{a.name}={value!r}" if a.kw_only else repr(value))
    return f"{type(fault).__name__}({', '.join(parts)})"


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
        await _silence(request, io, wait)
        return await call_next(request)


@frozen(repr=False)
class Raise(Fault):
    """A transport error before anything is sent.

    Args:
        error: Its name in httpx, ``"ConnectError"`` for one; raised as the request's own library has it.
    """

    error: str = field(validator=one_of(*_ERRORS))

    async def inject(self, request: Request, call_next: Handler, io: IO, random: Random) -> Response:
        """Raise it."""
        record_of(request).emit("Chaos", "injects", self.told)
        raise transport_error(self.error, _SAYS_SO, request)


class _Answers(Fault):
    """A fault that answers in the server's place."""

    def answer(self, request: Request) -> Response:
        """The answer."""
        raise NotImplementedError

    async def inject(self, request: Request, call_next: Handler, io: IO, random: Random) -> Response:
        """Answer, and send nothing."""
        record_of(request).emit("Chaos", "injects", self.told)
        return self.answer(request)


@frozen(repr=False)
class Status(_Answers):
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
class Throttle(_Answers):
    """A 429 in place of an answer, with ``retry-after``, ``retry-after-ms`` and the provider's error body.

    Args:
        retry_after: Seconds.
    """

    retry_after: float = field(default=1.0, kw_only=True, validator=_wait)

    def answer(self, request: Request) -> Response:
        """The 429."""
        return _failure(request, 429, wait_headers(self.retry_after))


@frozen(repr=False)
class Overload(_Answers):
    """A 529 in place of an answer, with the error body ``overloaded_error``, as Anthropic sends it."""

    def answer(self, request: Request) -> Response:
        """The 529."""
        return _failure(request, 529)


class _Body(Fault):
    """A fault in the body of a real answer.

    A body that the innermost handler has read is faulted here and now, so that the attempt fails as it would
    on the wire; a stream, while its reader reads it. The trace tells it when it happens.
    """

    changes_length: ClassVar[bool] = False
    """Whether other bytes come in the place of some, so that a length told before would be a lie."""

    def edit(self, request: Request) -> Edit:
        """What happens to the body."""
        raise NotImplementedError

    def reads(self) -> bool:
        """Whether it has to understand the body."""
        return False

    async def inject(self, request: Request, call_next: Handler, io: IO, random: Random) -> Response:
        """Go on, and put the fault into the body that comes."""
        if self.reads():
            request.headers["accept-encoding"] = "identity"
        response = await call_next(request)
        if self.reads() and not _is_plain_sse(response):
            return response
        if self.changes_length:
            response.headers.pop("content-length", None)
        record, buffered = record_of(request), is_buffered(response)
        tell = partial(record.emit, "Chaos", "injects", self.told)
        put_stream(response, _Faulty(response.stream, self.edit(request), request, io, tell))
        if buffered:
            await io.preview(response, None, until=record.deadline)
        return response


@frozen(kw_only=True, repr=False)
class _AtPlace(_Body):
    after: int = field(validator=whole(0))
    unit: Literal["events", "bytes"] = field(
        default="events",  # pyright: ignore[reportAssignmentType] # attrs' stub widens it to str
        validator=one_of("events", "bytes"),
    )

    def reads(self) -> bool:
        """Events are counted in what is not compressed."""
        return self.unit == "events"

    def then(self) -> Step:
        """What happens at the place."""
        raise NotImplementedError

    def edit(self, request: Request) -> Edit:
        """The one thing, at its place."""
        place = _after_events if self.unit == "events" else _after_bytes
        return _insert(place(self.after), [self.then()])


@frozen(kw_only=True, repr=False)
class Truncate(_AtPlace):
    """The body ends early, and its connection is closed.

    Args:
        after: Events, or bytes of the raw body, that still come. A shorter body comes whole.
        unit: ``"events"``: an event is a block of lines with data. Such a call asks for an uncompressed body;
            what is compressed all the same, or no event stream, passes by. ``"bytes"``: any body.
        clean: Whether the end looks like one; otherwise the body breaks off with ``RemoteProtocolError``.
    """

    clean: bool = field(default=False, validator=flag())

    def then(self) -> Step:
        """The end."""
        return Mark.END if self.clean else Mark.BREAK


@frozen(kw_only=True, repr=False)
class Stall(_AtPlace):
    """The body goes silent once, then goes on.

    As with a silent server, the request's own read timeout ends the wait, with ``ReadTimeout``; at the call's
    deadline the body goes on, for whoever keeps the deadline to see.

    Args:
        after: Events, or bytes of the raw body, that come before.
        unit: As for `Truncate`.
        seconds: Seconds.
    """

    seconds: float = field(validator=_wait)

    def then(self) -> Step:
        """The silence."""
        return float(self.seconds)


@frozen(kw_only=True, repr=False)
class Drip(_Body):
    """The body comes in small pieces, each after a pause; a pause ends as one of `Stall` does.

    Args:
        size: Bytes of the raw body in a piece, at most.
        every: Seconds before each piece.
    """

    size: int = field(default=1, validator=whole(1))
    every: float = field(default=0.1, validator=_wait)

    def edit(self, request: Request) -> Edit:
        """Pieces and pauses."""
        return _drip(self.size, float(self.every))


@frozen(kw_only=True, repr=False)
class SseError(_Body):
    """An error event in the midst of a completion's stream, in the format of the call; then the stream ends.

    It meets streamed completions of OpenAI's and Anthropic's formats, and asks for an uncompressed body; what
    is compressed all the same, or no event stream, passes by.

    Args:
        after: Events that still come; 0 makes the error the first one. A shorter stream comes whole.
        error: The error's type.
    """

    changes_length = True

    after: int = field(validator=whole(0))
    error: str = field(
        default="overloaded_error", validator=check("a word", lambda v: isinstance(v, str) and v != "")
    )

    def fits(self, request: Request) -> bool:
        """Whether the call's format has error events."""
        return _streamed(request) is not None and Fault.fits(self, request)

    def reads(self) -> bool:
        """Events are counted."""
        return True

    def edit(self, request: Request) -> Edit:
        """The error, at its place, and the end."""
        event = _error_event(_streamed(request), self.error, self.after)
        return _insert(_after_events(self.after), [event, Mark.END])


@frozen(kw_only=True, repr=False)
class DoneWithoutFinish(_Body):
    """A chat stream, or one of OpenAI's older completions, that is ``[DONE]`` though it never finished.

    Every ``finish_reason`` is made null; all else comes as it is. It asks for an uncompressed body; what is
    compressed all the same, or no event stream, passes by.
    """

    changes_length = True

    def fits(self, request: Request) -> bool:
        """Whether the call's format ends with ``[DONE]``."""
        return _streamed(request) in {"openai.chat", "openai.completions"} and Fault.fits(self, request)

    def reads(self) -> bool:
        """Lines are changed."""
        return True

    def edit(self, request: Request) -> Edit:
        """No finish reason anywhere."""
        return _unfinish()


# The pure part: who gets what, and what becomes of a body.


def draw(seed: int, number: int, place: int) -> Random:
    """The random numbers of one fault in one call; a text as seed is hashed, the same in every process."""
    return Random(f"{seed}/{number}/{place}")  # noqa: S311 - faults, not secrets


class Lots:
    """Which call gets which faults; it takes no lock: its owner holds one."""

    def __init__(self, chaos: Chaos) -> None:
        self._chaos = chaos
        self.calls = 0
        self.drawn = [0] * len(chaos.faults)

    def next(self, fits: Sequence[bool]) -> list[tuple[Fault, Random]]:
        """The faults of the next call, outermost first, each with its random numbers.

        Args:
            fits: Which of the faults may meet this call.
        """
        self.calls += 1
        chosen = []
        for place, fault in enumerate(self._chaos.faults):
            random = draw(self._chaos.seed, self.calls, place)
            hit = random.random() < (self._chaos.rate if fault.rate is None else fault.rate)
            if fits[place] and hit and (fault.times is None or self.drawn[place] < fault.times):
                self.drawn[place] += 1
                chosen.append((fault, random))
        return chosen


class Mark(Enum):
    """What a body does besides bytes and pauses."""

    NOW = "now"
    """The fault happens here."""
    END = "end"
    BREAK = "break"


Step: TypeAlias = "bytes | float | Mark"
"""Bytes for the reader, seconds of silence, or a mark."""
Edit: TypeAlias = Callable[[bytes], Iterable[Step]]
"""From a piece of the body to what the reader gets of it; an empty piece is the end of the body."""

Place: TypeAlias = "Callable[[bytes], int | None]"
"""Where in the next piece of a body a place is; ``None`` when it is not in there."""

# A quote inside a JSON string is escaped, so this matches no text that only talks of finish reasons.
_FINISH = re.compile(rb'("finish_reason"\s*:\s*)"[^"]*"')


def _after_bytes(count: int) -> Place:
    left = count

    def find(piece: bytes) -> int | None:
        nonlocal left
        if left <= len(piece):
            return left
        left -= len(piece)
        return None

    return find


def _after_events(count: int) -> Place:
    left, at, parser = count, 0, Parser()

    def find(piece: bytes) -> int | None:
        nonlocal left, at
        if left == 0:
            return 0
        start, at = at, at + len(piece)
        for event in parser.feed(piece) if piece else parser.finish():
            left -= 1
            if left == 0:
                return event.end - start
        return None

    return find


def _insert(find: Place, steps: Sequence[Step]) -> Edit:
    """Something at one place of a body; what does not end the body there is followed by the rest."""
    happened = False

    def edit(piece: bytes) -> Iterable[Step]:
        nonlocal happened
        at = None if happened else find(piece)
        if at is None:
            return [piece]
        happened = True
        return [piece[:at], Mark.NOW, *steps, piece[at:]]

    return edit


def _drip(size: int, every: float) -> Edit:
    first = True

    def edit(piece: bytes) -> Iterator[Step]:
        nonlocal first
        for start in range(0, len(piece), size):
            if first:
                first = False
                yield Mark.NOW
            yield every
            yield piece[start : start + size]

    return edit


def _unfinish() -> Edit:
    held = b""  # a line that is not over yet
    first = True

    def edit(piece: bytes) -> Iterator[Step]:
        nonlocal held, first
        text = held + piece
        cut = 1 + max(text.rfind(b"\n"), text.rfind(b"\r")) if piece else len(text)
        held = text[cut:]
        changed, count = _FINISH.subn(rb"\1null", text[:cut])
        if count and first:
            first = False
            yield Mark.NOW
        yield changed

    return edit


def _streamed(request: Request) -> str | None:
    """The format of a streamed completion."""
    completion = record_of(request).completion(request)
    return completion.format if completion is not None and completion.stream else None


def _is_plain_sse(response: Response) -> bool:
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    return encoding == "identity" and is_event_stream(response.headers)


def _error_event(form: str | None, error: str, number: int) -> bytes:
    """An error in a stream, as each provider sends it."""
    body: dict[str, Any]
    if form == "anthropic.messages":
        body = {"type": "error", "error": {"type": error, "message": _SAYS_SO}}
    elif form == "openai.responses":
        body = {"type": "error", "code": error, "message": _SAYS_SO, "param": None, "sequence_number": number}
    else:
        body = {"error": {"message": _SAYS_SO, "type": error, "param": None, "code": error}}
        return f"data: {json.dumps(body)}\n\n".encode()
    return f"event: error\ndata: {json.dumps(body)}\n\n".encode()


_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}
_OPENAI_CODES = {
    401: ("invalid_request_error", "invalid_api_key"),
    429: ("requests", "rate_limit_exceeded"),
    529: ("overloaded_error", "overloaded_error"),
}


def _failure(request: Request, status: int, headers: Mapping[str, str] | None = None) -> Response:
    """A failed status with the error body of Anthropic for its calls, and for all others that of OpenAI."""
    completion = record_of(request).completion(request)
    body: dict[str, Any]
    if completion is not None and completion.format == "anthropic.messages":
        kind = _ANTHROPIC_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
        body = {"type": "error", "error": {"type": kind, "message": _SAYS_SO}}
    else:
        plain = "server_error" if status >= 500 else "invalid_request_error"
        kind, code = _OPENAI_CODES.get(status, (plain, None))
        body = {"error": {"message": _SAYS_SO, "type": kind, "param": None, "code": code}}
    sent = {"content-type": "application/json", **(headers or {})}
    return respond(request, status, headers=sent, content=json.dumps(body).encode())


# The layer.


@frozen(repr=False, init=False)
class Chaos:
    """Inject faults, the same ones for the same seed and the same sequence of calls.

    It stands innermost, in the network's place. Faults that meet in one call work like layers: the first is
    the outermost, so ``Chaos(Latency(2), Status(503))`` answers 503 after two seconds. Each fault is told to
    the trace when it happens.

    Args:
        faults: What goes wrong: `Latency`, `Raise`, `Status`, `Throttle`, `Overload`, `SseError`, `Truncate`,
            `Stall`, `Drip`, `DoneWithoutFinish`, or a `Fault` of yours.
        seed: Any whole number; with the number of the call it decides who gets what. Retries are calls, too.
        rate: The share of calls, 0 to 1, that get a fault which has no rate of its own.

    Per call: ``chaos=False`` (in a header ``off``) passes by; the call is not numbered.

    Raises:
        ValueError: There is no fault, or a value is not allowed; the message says what is.
    """

    options: ClassVar[Mapping[str, Converter]] = {"chaos": switch}

    faults: tuple[Fault, ...] = field()
    seed: int = field(validator=check("a whole number", lambda v: type(v) is int))
    rate: float = field(validator=fraction())

    def __init__(self, *faults: Fault, seed: int = 0, rate: float = 1.0) -> None:
        if not faults:
            raise ValueError(f"Chaos() takes faults to inject, one or more of {_known()}; got none")
        for fault in faults:
            if not isinstance(fault, Fault):
                raise ValueError(f"Chaos() takes faults, one or more of {_known()}; got {fault!r}")  # noqa: TRY004
        self.__attrs_init__(faults, seed, rate)  # pyright: ignore[reportAttributeAccessIssue] # attrs makes it

    def __repr__(self) -> str:
        shown = [*map(repr, self.faults)]
        if self.seed != 0:
            shown.append(f"seed={self.seed!r}")
        if self.rate != 1:
            shown.append(f"rate={self.rate!r}")
        return f"Chaos({', '.join(shown)})"

    def build(self) -> Injecting:
        """The running layer, before its first call."""
        return Injecting(self)


def _known() -> str:
    return ", ".join(name for name in __all__ if name not in {"Chaos", "Fault"})


class Injecting:
    """The running layer: the calls so far."""

    def __init__(self, chaos: Chaos) -> None:
        self.chaos = chaos
        self._lock = Lock()
        self._lots = Lots(chaos)

    def snapshot(self) -> dict[str, Any]:
        """How many calls came, and how many of them each fault was drawn for, in the order of the list."""
        with self._lock:
            return {"calls": self._lots.calls, "drawn": list(self._lots.drawn)}

    async def __call__(self, request: Request, call_next: Handler, io: IO) -> Response:
        if record_of(request).options.get("chaos") is False:
            return await call_next(request)
        fits = [fault.fits(request) for fault in self.chaos.faults]  # code of the user's: outside the lock
        with self._lock:
            chosen = self._lots.next(fits)
        if not chosen:
            return await call_next(request)
        handler = call_next
        for fault, random in reversed(chosen):
            handler = partial(fault.inject, call_next=handler, io=io, random=random)
        return await handler(copy_request(request))


async def _silence(request: Request, io: IO, wait: float) -> None:
    """Wait as one does for a silent server: as long as the read timeout, and never past the deadline."""
    left = record_of(request).remaining()
    # at the deadline we go on: the transport, or who else keeps it, refuses then
    wait = wait if left is None else min(wait, left)
    patience = request.extensions.get("timeout", {}).get("read")
    if patience is None or wait <= patience:
        await io.sleep(wait)
    else:
        await io.sleep(patience)
        raise read_timeout(_SAYS_SO, request)


class _Faulty(Passing):
    """A body that goes through an edit; what is below is closed once: at the end, or by the reader."""

    def __init__(self, stream: Any, edit: Edit, request: Request, io: IO, tell: Callable[[], object]) -> None:
        super().__init__(stream)
        self._edit = edit
        self._request = request
        self._io = io
        self._tell = tell
        self._steps: deque[Step] = deque()
        self._closed = False

    def __next__(self) -> bytes:
        try:
            piece = drive(self._next(self._pull))
        except Exception:
            self.close()
            raise
        if piece is None:
            self.close()
            raise StopIteration
        return piece

    async def __anext__(self) -> bytes:
        try:
            piece = await self._next(self._apull)
        except Exception:
            await self.aclose()
            raise
        if piece is None:
            await self.aclose()
            raise StopAsyncIteration
        return piece

    async def _pull(self) -> bytes | None:
        return next(self._chunks, None)

    async def _apull(self) -> bytes | None:
        return await anext(self._chunks, None)

    async def _next(self, pull: Callable[[], Awaitable[bytes | None]]) -> bytes | None:
        """The next piece for the reader; ``None`` at the end."""
        while not self._closed:
            while self._steps:
                match self._steps.popleft():
                    case bytes(piece):
                        if piece:
                            return piece
                    case float(wait):
                        await _silence(self._request, self._io, wait)
                    case Mark.NOW:
                        self._tell()
                    case Mark.BREAK:
                        raise broken_body(f"the body broke off, {_SAYS_SO}", self._request)
                    case _:
                        return None
            chunk = await pull()
            if chunk != b"":  # which means the end to an edit
                self._steps.extend(self._edit(chunk or b""))
            if chunk is None:
                self._steps.append(Mark.END)
        return None

    def close(self) -> None:
        """Close what is below."""
        if not self._closed:
            self._closed = True
            super().close()

    async def aclose(self) -> None:
        """Close what is below."""
        if not self._closed:
            self._closed = True
            await super().aclose()
