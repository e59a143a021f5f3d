"""Keep a body of unknown length while its reader reads it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

from ..io import drive

__all__ = ["Recording"]


class Recording:
    """A body that is handed to `commit`, whole, when its reader has come to its end; otherwise never.

    Args:
        stream: The body.
        commit: Keeps it; in blocking mode it must not suspend.
        limit: Bytes at most; a longer body is read on, and not kept.
    """

    def __init__(self, stream: Any, commit: Callable[[bytes], Coroutine[Any, Any, None]], limit: int) -> None:
        self._stream = stream
        self._commit = commit
        self._left = limit
        self._parts: list[bytes] | None = []
        self._chunks: Any = None

    def __iter__(self) -> Iterator[bytes]:
        self._chunks = iter(self._stream)
        return self

    def __next__(self) -> bytes:
        try:
            return self._note(next(self._chunks))
        except StopIteration:
            if (body := self._whole()) is not None:
                drive(self._commit(body))
            raise

    def __aiter__(self) -> AsyncIterator[bytes]:
        self._chunks = self._stream.__aiter__()
        return self

    async def __anext__(self) -> bytes:
        try:
            return self._note(await anext(self._chunks))
        except StopAsyncIteration:
            if (body := self._whole()) is not None:
                await self._commit(body)
            raise

    def close(self) -> None:
        """Close the body; it is not kept."""
        self._stream.close()

    async def aclose(self) -> None:
        """Close the body; it is not kept."""
        # httpx's own streams are async generators: left to the garbage collector, trio complains
        if hasattr(self._chunks, "aclose"):
            await self._chunks.aclose()
        await self._stream.aclose()

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
