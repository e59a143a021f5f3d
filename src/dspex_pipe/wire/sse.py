"""Server-sent events, as they arrive: bytes in, events out.

The rules are those of the WHATWG HTML standard, §9.2.5 (parsing) and §9.2.6 (interpreting an event stream):
lines end in CR, LF or CRLF; one byte order mark may lead; what is not UTF-8 is replaced, never refused; an
event that no blank line ends is discarded. How the bytes are cut into chunks makes no difference to anything.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Event", "Parser"]

_BOUND = 4 << 20
_BOM = b"\xef\xbb\xbf"


class Event(NamedTuple):
    """One event; a tuple, for there is one of these for every few bytes of a stream."""

    type: str
    """Its name; ``message`` when the stream gives none."""
    data: str
    id: str
    """The last event ID that the stream has told so far."""
    end: int
    """The offset in the stream, in bytes, just behind the blank line that ended it."""


class Parser:
    r"""Reads one event stream.

    It never raises: a line or an event beyond its bound makes it give up, which is a state. What came before
    has been told, and nothing will be told after.

    A CR at the end of what has come may be half of a CRLF, so it ends its line only when the next byte comes,
    or at `finish`. Streams that end lines in LF or CRLF are never delayed by this.

    Args:
        max_line: Bytes that one line may have, without its end.
        max_event: Bytes that the data of one event may have, over all its lines.
    """

    def __init__(self, *, max_line: int = _BOUND, max_event: int = _BOUND) -> None:
        self._max_line = max_line
        self._max_event = max_event
        self._rest = bytearray()  # the line that has not ended; appended to, lest many small chunks cost n²
        self._at = 0
        self._type = b""
        self._data: list[bytes] = []
        self._size = 0
        self.id = ""
        self.retry: int | None = None
        """Milliseconds after which the stream asks to be reconnected to."""
        self.gave_up: str | None = None
        """Why nothing more will be told, if that is so."""

    def feed(self, chunk: bytes) -> list[Event]:
        """Take the next bytes; the events that they complete."""
        if self.gave_up is not None:
            return []
        if b"\n" not in chunk and b"\r" not in chunk and not self._rest.endswith(b"\r"):
            self._rest += chunk
            events = []
        else:
            data = bytes(self._rest) + chunk
            cut = max(data.rfind(b"\n"), data.rfind(b"\r", 0, -1)) + 1
            self._rest = bytearray(data[cut:])
            events = self._take(data[:cut])
        if len(self._rest) - self._rest.endswith(b"\r") > self._max_line:
            self._give_up(f"a line of more than {self._max_line} bytes")
        return events

    def finish(self) -> list[Event]:
        """Hear that no more bytes will come; the event that this completes, if a lone CR held it back."""
        rest, self._rest = bytes(self._rest), bytearray()
        return self._take(rest) if rest.endswith(b"\r") else []

    def _take(self, lines: bytes) -> list[Event]:
        events: list[Event] = []
        for whole in lines.splitlines(keepends=True):  # of bytes: at CR, LF and CRLF, and nowhere else
            # no byte of a longer UTF-8 sequence looks like a line end, so each line can be decoded by itself
            line = whole.rstrip(b"\r\n")
            if len(line) > self._max_line:
                self._give_up(f"a line of more than {self._max_line} bytes")
            if self.gave_up is not None:
                break
            if not self._at:
                line = line.removeprefix(_BOM)
            self._at += len(whole)
            if line:
                name, _, value = line.partition(b":")  # of a comment, the name is empty
                self._field(name, value.removeprefix(b" "))
            else:
                if self._data:
                    events.append(self._event())
                self._type = b""
        return events

    def _field(self, name: bytes, value: bytes) -> None:
        if name == b"data":
            self._data.append(value)
            self._size += len(value)
            if self._size > self._max_event:
                self._give_up(f"an event of more than {self._max_event} bytes")
        elif name == b"event":
            self._type = value
        elif name == b"id":
            if b"\0" not in value:
                self.id = _text(value)
        # a number of thousands of digits is more than int() reads
        elif name == b"retry" and value.isdigit() and len(value) <= 15:
            self.retry = int(value)

    def _event(self) -> Event:
        event = Event(_text(self._type) or "message", _text(b"\n".join(self._data)), self.id, self._at)
        self._data = []
        self._size = 0
        return event

    def _give_up(self, why: str) -> None:
        self.gave_up = why
        self._rest = bytearray()
        self._data = []


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
