"""A body that goes through an edit: the one place where edits are carried out, in every mode."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from ..body import Passing
from ..io import drive
from ..outcome import broken_body
from .edits import Edit, Mark, Step
from .fault import SAYS_SO, silence

if TYPE_CHECKING:
    from ..family import Request
    from ..io import IO

__all__ = ["Edited"]


class Edited(Passing):
    """A body that goes through an edit; what is below is closed once: at the end, or by the reader.

    Args:
        stream: The body.
        edit: What becomes of it.
        request: The request that it answers.
        io: How to wait.
        tell: Called where the fault happens.
    """

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
                        await silence(self._request, self._io, wait)
                    case Mark.NOW:
                        self._tell()
                    case Mark.BREAK:
                        raise broken_body(f"the body broke off, {SAYS_SO}", self._request)
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
