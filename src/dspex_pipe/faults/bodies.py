"""Faults in the body of a real answer; what each does to it is an edit."""

from __future__ import annotations

from functools import partial
from random import Random
from typing import TYPE_CHECKING, ClassVar, Literal

from attrs import field, frozen

from ..body import is_buffered, put_stream
from ..config import check, flag, one_of, seconds, whole
from ..events import record_of
from ..wire import is_event_stream
from .edited import Edited
from .edits import Edit, Mark, Step, after_bytes, after_events, drip, insert, unfinish
from .errors import error_event
from .fault import Fault

if TYPE_CHECKING:
    from ..chain import Handler
    from ..family import Request, Response
    from ..io import IO

__all__ = ["DoneWithoutFinish", "Drip", "SseError", "Stall", "Truncate"]

_wait = seconds(zero=True)


class _InBody(Fault):
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
        put_stream(response, Edited(response.stream, self.edit(request), request, io, tell))
        if buffered:
            await io.preview(response, None, until=record.deadline)
        return response


def _is_plain_sse(response: Response) -> bool:
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    return encoding == "identity" and is_event_stream(response.headers)


# In any body


@frozen(kw_only=True, repr=False)
class _AtPlace(_InBody):
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
        place = after_events if self.unit == "events" else after_bytes
        return insert(place(self.after), [self.then()])


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
class Drip(_InBody):
    """The body comes in small pieces, each after a pause; a pause ends as one of `Stall` does.

    Args:
        size: Bytes of the raw body in a piece, at most.
        every: Seconds before each piece.
    """

    size: int = field(default=1, validator=whole(1))
    every: float = field(default=0.1, validator=_wait)

    def edit(self, request: Request) -> Edit:
        """Pieces and pauses."""
        return drip(self.size, float(self.every))


# In the stream of a completion


def _streamed(request: Request) -> str | None:
    """The format of a streamed completion."""
    completion = record_of(request).completion(request)
    return completion.format if completion is not None and completion.stream else None


class _InCompletion(_InBody):
    """A fault in a completion's stream, in the words of its format."""

    changes_length = True

    def fits(self, request: Request) -> bool:
        """Whether the call asks for such a stream."""
        return _streamed(request) is not None and super().fits(request)

    def reads(self) -> bool:
        """Its format is one of events."""
        return True


@frozen(kw_only=True, repr=False)
class SseError(_InCompletion):
    """An error event in the midst of a completion's stream, in the format of the call; then the stream ends.

    It meets streamed completions of OpenAI's and Anthropic's formats, and asks for an uncompressed body; what
    is compressed all the same, or no event stream, passes by.

    Args:
        after: Events that still come; 0 makes the error the first one. A shorter stream comes whole.
        error: The error's type.
    """

    after: int = field(validator=whole(0))
    error: str = field(
        default="overloaded_error", validator=check("a word", lambda v: isinstance(v, str) and v != "")
    )

    def edit(self, request: Request) -> Edit:
        """The error, at its place, and the end."""
        event = error_event(_streamed(request), self.error, self.after)
        return insert(after_events(self.after), [event, Mark.END])


@frozen(kw_only=True, repr=False)
class DoneWithoutFinish(_InCompletion):
    """A chat stream, or one of OpenAI's older completions, that is ``[DONE]`` though it never finished.

    Every ``finish_reason`` is made null; all else comes as it is. It asks for an uncompressed body; what is
    compressed all the same, or no event stream, passes by.
    """

    def fits(self, request: Request) -> bool:
        """Whether the call's format ends with ``[DONE]``."""
        return _streamed(request) in {"openai.chat", "openai.completions"} and super().fits(request)

    def edit(self, request: Request) -> Edit:
        """No finish reason anywhere."""
        return unfinish()
