"""Look into a compressed body as it goes by, a small piece at a time.

Every content coding here inflates at most `PIECE` bytes (zstandard: 2 MiB) per step, so that a small body
that inflates without end costs time that its reader can bound, and never memory. ``br`` and ``zstd`` are
understood where a package for them is installed: the ones that httpx and httpx2 use themselves.

Sources: RFC 9110 §8.4.1 (codings), RFC 1950 to 1952 (zlib, deflate, gzip), RFC 7932 (br), RFC 8878 (zstd).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

__all__ = ["PIECE", "Inflate", "Spoilt", "inflater"]

PIECE = 1 << 16
_WINDOW_LOG = 23  # 8 MiB: what RFC 8878 §3.1.1.1.2 asks every decoder to support, and more is memory

Inflate = Callable[[bytes], Iterator[bytes]]
"""Takes the next compressed bytes; gives what they inflate to, in pieces; raises `Spoilt`."""


class Spoilt(Exception):
    """These bytes are not what their content coding says."""


def inflater(coding: str) -> Inflate | None:
    """The way to read a body.

    Args:
        coding: The value of ``content-encoding``; empty when there is none.

    Returns:
        ``None`` for a coding, or a list of several, that is not understood here.
    """
    make = _CODINGS.get(coding.strip().lower())
    return None if make is None else make()


def _identity(chunk: bytes) -> Iterator[bytes]:
    yield chunk


class _Zlib:
    """Gzip; and deflate, which is zlib to the standard and raw to some servers: the first two bytes tell."""

    def __init__(self, wbits: int | None) -> None:
        self._engine = None if wbits is None else zlib.decompressobj(wbits)
        self._head = b""

    def __call__(self, chunk: bytes) -> Iterator[bytes]:
        if self._engine is None:
            chunk = self._head = self._head + chunk
            if len(chunk) < 2:
                return
            # RFC 1950 §2.2: method 8, and the check bits
            wrapped = chunk[0] & 15 == 8 and (chunk[0] << 8 | chunk[1]) % 31 == 0
            self._engine = zlib.decompressobj(zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS)
        # what follows the end is ignored, as httpx and httpx2 do
        while not self._engine.eof:
            try:
                piece = self._engine.decompress(chunk, PIECE)
            except zlib.error as exc:
                raise Spoilt(str(exc)) from exc
            yield piece
            chunk = self._engine.unconsumed_tail
            if not chunk and len(piece) < PIECE:  # a full piece may have left some inside
                return


class _Brotli:
    def __init__(self, module: Any) -> None:
        self._error = module.error
        self._engine = module.Decompressor()

    def __call__(self, chunk: bytes) -> Iterator[bytes]:
        while not self._engine.is_finished():
            try:
                piece = self._engine.process(chunk, output_buffer_limit=PIECE)
            except self._error as exc:
                raise Spoilt(str(exc)) from exc
            yield piece
            chunk = b""
            if not piece:
                return


class _Zstd:
    """By the standard library of 3.14, or its backport: one frame after the other."""

    def __init__(self, module: Any) -> None:
        self._error = module.ZstdError
        options = {module.DecompressionParameter.window_log_max: _WINDOW_LOG}
        self._new: Callable[[], Any] = lambda: module.ZstdDecompressor(options=options)
        self._engine = self._new()

    def __call__(self, chunk: bytes) -> Iterator[bytes]:
        while chunk or not self._engine.needs_input:
            try:
                yield self._engine.decompress(chunk, PIECE)
            except self._error as exc:
                raise Spoilt(str(exc)) from exc
            chunk = b""
            if self._engine.eof:
                chunk, self._engine = self._engine.unused_data, self._new()


class _Zstandard:
    """By the package that httpx uses; it bounds no output, so it gets 64 bytes at a time: 2 MiB at most."""

    def __init__(self, module: Any) -> None:
        self._error = module.ZstdError
        self._new = module.ZstdDecompressor(max_window_size=1 << _WINDOW_LOG).decompressobj
        self._engine = self._new()

    def __call__(self, chunk: bytes) -> Iterator[bytes]:
        for at in range(0, len(chunk), 64):
            part = chunk[at : at + 64]
            while part:
                try:
                    piece = self._engine.decompress(part)
                except self._error as exc:
                    raise Spoilt(str(exc)) from exc
                yield piece
                part = b""
                if self._engine.eof:
                    part, self._engine = self._engine.unused_data, self._new()


def _brotli() -> Inflate | None:
    module = _installed("brotli", "brotlicffi")
    # before 1.2 it bounds no output
    if module is None or not hasattr(module.Decompressor, "can_accept_more_data"):
        return None
    return _Brotli(module)


def _zstd() -> Inflate | None:
    if (module := _installed("compression.zstd", "backports.zstd")) is not None:
        return _Zstd(module)
    if (module := _installed("zstandard")) is not None:
        return _Zstandard(module)
    return None


def _installed(*names: str) -> Any:
    for name in names:
        try:
            return import_module(name)
        except ImportError:
            pass
    return None


_CODINGS: dict[str, Callable[[], Inflate | None]] = {
    "": lambda: _identity,
    "identity": lambda: _identity,
    "gzip": lambda: _Zlib(zlib.MAX_WBITS | 16),
    "x-gzip": lambda: _Zlib(zlib.MAX_WBITS | 16),
    "deflate": lambda: _Zlib(None),
    "br": _brotli,
    "zstd": _zstd,
}
