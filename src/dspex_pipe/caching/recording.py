"""Keep a body of unknown length while its reader reads it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from itertools import pairwise
from typing import Any

from ..body import Passing
from ..io import drive
from ..wire import StreamReader

__all__ = ["EventRecording", "Recording"]


class Recording(Passing):
    """A body that is handed to `commit`, in its pieces, when its reader has come to its end; otherwise never.

    Args:
        stream: The body.
        commit: Keeps the pieces; in blocking mode it must not suspend.
        limit: Bytes at most; a longer body is read on, and not kept.
    """

    def __init__(
        self, stream: Any, commit: Callable[[tuple[bytes, ...]], Coroutine[Any, Any, None]], limit: int
    ) -> None:
        super().__init__(stream)
        self._commit = commit
        self._left = limit
        self._parts: list[bytes] = []
        self._open = True

    def __next__(self) -> bytes:
        try:
            return self._note(super().__next__())
        except StopIteration:
            drive(self._finish(at_end=True))
            raise
        except BaseException:
            self._break_off()
            raise

    async def __anext__(self) -> bytes:
        try:
            return self._note(await super().__anext__())
        except StopAsyncIteration:
            await self._finish(at_end=True)
            raise
        except BaseException:
            self._break_off()
            raise

    def close(self) -> None:
        """Close the body; it is kept if it is whole."""
        try:
            super().close()
        finally:
            drive(self._finish(at_end=False))

    async def aclose(self) -> None:
        """Close the body; it is kept if it is whole."""
        try:
            await super().aclose()
        finally:
            await self._finish(at_end=False)

    def _note(self, chunk: bytes) -> bytes:
        self._left -= len(chunk)
        if self._left < 0:
            self._give_up()
        if self._open:
            self._parts.append(chunk)
            self._look(chunk)
        return chunk

    def _look(self, chunk: bytes) -> None:
        """See a piece that may be kept."""

    async def _finish(self, *, at_end: bool) -> None:
        if not self._is_whole(at_end=at_end):
            self._give_up()
        elif self._open:
            self._open = False
            await self._commit(self._pieces())

    def _is_whole(self, *, at_end: bool) -> bool:
        return at_end

    def _pieces(self) -> tuple[bytes, ...]:
        return tuple(self._parts)

    def _break_off(self) -> None:
        # one that is whole all the same may still be closed, and is kept then
        if not self._is_whole(at_end=False):
            self._give_up()

    def _give_up(self) -> None:
        self._open = False
        self._parts.clear()


class EventRecording(Recording):
    """A stream of events that is kept when its *meaning* says that it is whole.

    The end of the body says little: the openai SDK leaves at ``[DONE]`` and never sees it, or reads on for a
    moment, cancels that, and closes; and a stream that was cut off ends as quietly as a whole one. So the
    provider's last event decides, also when the reader leaves right there; an error event vetoes. Only where
    the format cannot be read does the end of the body count.

    Args:
        stream: The body.
        reader: Reads it as it goes by.
        commit: Keeps the pieces; in blocking mode it must not suspend.
        abandon: Called when there will be nothing to keep; once, unless it was kept.
        dropped: The same, from a finaliser: it must take no lock.
        plain: Whether the body is not compressed, so that it can be cut where its events end.
        limit: Bytes at most.
    """

    def __init__(
        self,
        stream: Any,
        reader: StreamReader,
        commit: Callable[[tuple[bytes, ...]], Coroutine[Any, Any, None]],
        *,
        abandon: Callable[[], None],
        dropped: Callable[[], None],
        plain: bool,
        limit: int,
    ) -> None:
        super().__init__(stream, commit, limit)
        self._reader = reader
        self._abandon = abandon
        self._dropped = dropped
        self._plain = plain
        self._ends: list[int] = []

    def __del__(self) -> None:
        if self._open:
            self._open = False
            self._dropped()

    def _look(self, chunk: bytes) -> None:
        self._ends += [seen.end for seen in self._reader.feed(chunk)]

    async def _finish(self, *, at_end: bool) -> None:
        self._reader.finish()
        await super()._finish(at_end=at_end)

    def _is_whole(self, *, at_end: bool) -> bool:
        known = self._reader.known
        if known.gave_up is not None:
            return at_end
        # response.incomplete is a last event, too, and its answer is cut short
        return known.terminal and (known.format != "openai.responses" or known.finished == ("completed",))

    def _pieces(self) -> tuple[bytes, ...]:
        """The body, cut where its events end, if that can be told from the raw bytes."""
        if not self._plain:
            return super()._pieces()
        body = b"".join(self._parts)
        cuts = [0, *self._ends, len(body)]
        return tuple(body[a:b] for a, b in pairwise(cuts) if a < b)

    def _give_up(self) -> None:
        if self._open:
            super()._give_up()
            self._abandon()
