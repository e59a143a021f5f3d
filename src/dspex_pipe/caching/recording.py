"""Keep a body of unknown length while its reader reads it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from ..body import Passing
from ..io import drive

__all__ = ["Recording"]


class Recording(Passing):
    """A body that is handed to `commit`, whole, when its reader has come to its end; otherwise never.

    Args:
        stream: The body.
        commit: Keeps it; in blocking mode it must not suspend.
        limit: Bytes at most; a longer body is read on, and not kept.
    """

    def __init__(self, stream: Any, commit: Callable[[bytes], Coroutine[Any, Any, None]], limit: int) -> None:
        super().__init__(stream)
        self._commit = commit
        self._left = limit
        self._parts: list[bytes] | None = []

    def __next__(self) -> bytes:
        try:
            return self._note(super().__next__())
        except StopIteration:
            if (body := self._whole()) is not None:
                drive(self._commit(body))
            raise

    async def __anext__(self) -> bytes:
        try:
            return self._note(await super().__anext__())
        except StopAsyncIteration:
            if (body := self._whole()) is not None:
                await self._commit(body)
            raise

    def _note(self, chunk: bytes) -> bytes:
        self._left -= len(chunk)
        if self._parts is not None and self._left >= 0:
            self._parts.append(chunk)
        else:
            self._parts = None
        return chunk

    def _whole(self) -> bytes | None:
        parts, self._parts = self._parts, None
        return None if parts is None else b"".join(parts)
