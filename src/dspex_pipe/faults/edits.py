"""What becomes of a body: from what the server sent to what the reader gets, and when.

Pure: an edit is a plain function, called with each piece in its turn.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
from typing import TypeAlias

from ..wire.sse import Parser

__all__ = ["Edit", "Mark", "Place", "Step", "after_bytes", "after_events", "drip", "insert", "unfinish"]


class Mark(Enum):
    """What a body does besides bytes and pauses."""

    NOW = "now"
    """The fault happens here."""
    END = "end"
    BREAK = "break"


Step: TypeAlias = bytes | float | Mark
"""Bytes for the reader, seconds of silence, or a mark."""
Edit: TypeAlias = Callable[[bytes], Iterable[Step]]
"""From a piece of the body to what the reader gets of it; an empty piece is the end of the body."""

Place: TypeAlias = Callable[[bytes], int | None]
"""Where in the next piece of a body a place is; ``None`` when it is not in there."""

# A quote inside a JSON string is escaped, so this matches no text that only talks of finish reasons.
_FINISH = re.compile(rb'("finish_reason"\s*:\s*)"[^"]*"')


def after_bytes(count: int) -> Place:
    """The place behind so many bytes."""
    left = count

    def find(piece: bytes) -> int | None:
        nonlocal left
        if left <= len(piece):
            return left
        left -= len(piece)
        return None

    return find


def after_events(count: int) -> Place:
    """The place behind so many events of an uncompressed event stream."""
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


def insert(find: Place, steps: Sequence[Step]) -> Edit:
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


def drip(size: int, every: float) -> Edit:
    """A body in pieces of so many bytes at most, and a pause before each."""
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


def unfinish() -> Edit:
    """An uncompressed event stream without its finish reasons."""
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
