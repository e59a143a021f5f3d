"""Bodies: copy a request, tell whether it can be sent again, look into a response that was read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .family import Request, Response, family_of

if TYPE_CHECKING:
    from .io import IO

__all__ = ["copy_request", "decoded", "discard", "is_buffered", "is_replayable"]

_SLICE = 1024
_LOOK_BOUND = 1 << 20
_DRAIN_BYTES = 1 << 16
_DRAIN_SECONDS = 1.0


def copy_request(request: Request) -> Request:
    """A shallow copy: headers and extensions its own, body and URL shared. Under 2 µs.

    ``copy.copy`` would go through httpx's pickling support, which drops the body and the extensions.
    """
    twin = object.__new__(type(request))
    twin.__dict__.update(request.__dict__)
    twin.headers = request.headers.copy()
    twin.extensions = dict(request.extensions)
    return twin


def is_replayable(request: Request) -> bool:
    """Whether the body can be sent a second time: only when it lies in memory.

    A generator is used up after one pass, and an open file is at its end: httpx would send the
    second request with an empty body, and no error.
    """
    return isinstance(request.stream, family_of(request).module.ByteStream)


def is_buffered(response: Response) -> bool:
    """Whether the raw body lies in memory already."""
    return isinstance(response.stream, family_of(response).module.ByteStream)


def decoded(response: Response) -> bytes | None:
    """The body of a buffered response, decompressed; ``None`` when it is a stream, spoilt, or too big.

    The response keeps its raw bytes. At most 1 MiB is decompressed, a little at a time, so a small
    body that inflates without end stays small here.
    """
    if not is_buffered(response):
        return None
    module = family_of(response).module
    raw = b"".join(response.stream)  # type: ignore[arg-type] # a ByteStream reads in every mode
    view = module.Response(response.status_code, headers=response.headers, content=_slices(raw))
    parts, size = [], 0
    try:
        for part in view.iter_bytes():
            size += len(part)
            if size > _LOOK_BOUND:
                return None
            parts.append(part)
    except module.DecodingError:
        return None
    return b"".join(parts)


async def discard(response: Response, io: IO) -> None:
    """Let go of a response that nobody will read, so that its connection is free for the next attempt.

    A short body of known length is read to its end, which keeps the connection alive; anything longer than
    64 KiB, of unknown length, or slower than a second is cut off with the connection.
    """
    length = response.headers.get("content-length", "")
    try:
        if length.isdecimal() and int(length) <= _DRAIN_BYTES:
            late = io.now() + _DRAIN_SECONDS
            async for _ in io.chunks(response):
                if io.now() > late:
                    break
    except family_of(response).TransportError:
        pass  # the body broke off; it was unwanted anyway, and the attempt has failed already
    finally:
        await io.close(response)


def _slices(raw: bytes) -> Iterator[bytes]:
    return (raw[i : i + _SLICE] for i in range(0, len(raw), _SLICE))
