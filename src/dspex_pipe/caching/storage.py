"""Entries in any of hishel's storages, or ours: read, written and checked; a store that fails is a miss."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from functools import cached_property, partial
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from attrs import frozen

from ..body import with_length
from ..io import drive
from ..stores.disk import DiskStore
from ..stores.memory import Kept as InMemory, MemoryStore, Pairs, by_name, pairs_of
from ..wire import is_event_stream

if TYPE_CHECKING:
    from ..family import Response
    from ..io import IO

__all__ = ["Kept", "Saved", "Storage", "header_pairs", "shown"]

T = TypeVar("T")

_logger = logging.getLogger("dspex_pipe")

_SCHEMA = "2"
_EXTENSIONS = ("http_version", "reason_phrase")

# RFC 9110 §7.6.1 and RFC 9111 §3.1; set-cookie and the authentication headers are secrets, which never rest
_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authentication-info",
        "proxy-authorization",
        "proxy-connection",
        "set-cookie",
        "set-cookie2",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "www-authenticate",
        "authentication-info",
    }
)


@frozen
class Saved:
    """A complete answer, as it is kept.

    Args:
        status: The HTTP status.
        headers: Names and values, without what must not be kept.
        pieces: The raw body, maybe compressed; of a stream, event by event.
        stored_at: Seconds since the epoch.
        extensions: ``http_version`` and ``reason_phrase``, as httpx has them.
    """

    status: int
    headers: tuple[tuple[str, str], ...]
    pieces: tuple[bytes, ...]
    stored_at: float
    extensions: tuple[tuple[str, bytes], ...] = ()

    @property
    def body(self) -> bytes:
        """The raw body, whole."""
        return b"".join(self.pieces)

    @cached_property
    def is_stream(self) -> bool:
        """Whether it is server-sent events, and was never a body of known length."""
        return is_event_stream(dict(self.headers))

    @cached_property
    def raw_headers(self) -> list[tuple[bytes, bytes]]:
        """The headers as they were on the wire, and the length, which a stream has none of."""
        raw = with_length(self.headers, self.body)
        return [pair for pair in raw if pair[0] != b"content-length"] if self.is_stream else raw

    def with_headers(self, headers: Pairs) -> Saved:
        """The same with other headers."""
        return Saved(self.status, headers, self.pieces, self.stored_at, self.extensions)

    @classmethod
    def of(cls, response: Response, pieces: tuple[bytes, ...], now: float) -> Saved:
        """What is kept of a response that has been read."""
        named = {n.strip().lower() for n in response.headers.get("connection", "").split(",")}
        gone = _HOP_BY_HOP | named | {"content-length", "x-should-retry"}
        kept = tuple(
            (name, value)
            for name, value in header_pairs(response)
            if name not in gone and not name.startswith("x-dspex-")
        )
        extensions = tuple(
            (name, response.extensions[name]) for name in _EXTENSIONS if name in response.extensions
        )
        return cls(response.status_code, kept, pieces, now, extensions)


def header_pairs(response: Response) -> list[tuple[str, str]]:
    """The headers as they came, byte for byte: a decoding that guesses could not be undone."""
    return [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in response.headers.raw]


@frozen
class Kept:
    """An entry as a store has it.

    Args:
        entry: hishel's entry; its stream has been read.
        saved: The answer.
    """

    entry: Any
    saved: Saved


class Storage:
    """A store behind one small face. What goes wrong in it is told once, in a log line, and is a miss.

    Each operation is written once: a blocking store answers at once, so the same coroutine is driven inline,
    in a worker thread when an event loop runs here, or in place when the store is plain memory.

    Args:
        store: A hishel storage, blocking or async, or one of ours.
    """

    def __init__(self, store: Any) -> None:
        import hishel  # noqa: PLC0415 - takes 100 ms: now, when a pipeline is built, not in its first call

        self._hishel = hishel
        self.store = store
        self.is_async = inspect.iscoroutinefunction(store.get_entries)
        self._in_memory = isinstance(store, MemoryStore)
        # what can be asked without leaving the event loop, and without a detour through entries; no subclass,
        # which may want to know what is asked of it
        self._memory: MemoryStore | None = None
        if type(store) is MemoryStore:
            self._memory = store
        elif type(store) is DiskStore:
            self._memory = store.memory
        self._warned = False

    async def find(self, key: str, io: IO) -> list[Saved]:
        """The answers of a key that are whole and of our making; those in memory are unpacked only once."""
        if self._memory is None:
            return [kept.saved for kept in await self.load(key, io)]
        found = await self._find(self._memory, key, io)
        return [saved for kept in found if (saved := _read_once(kept)) is not None]

    async def load(self, key: str, io: IO) -> list[Kept]:
        """The entries of a key that are whole and of our making."""
        if self._memory is None:
            return await self._run(partial(self._load, key), io) or []
        pairs = [(kept, _read_once(kept)) for kept in await self._find(self._memory, key, io)]
        return [Kept(kept.entry(), saved) for kept, saved in pairs if saved is not None]

    async def save(
        self,
        key: str,
        saved: Saved,
        io: IO,
        *,
        asked: Any,
        ttl: float | None,
        old: Iterable[Kept] | None,
    ) -> bool:
        """Put an entry in the place of old ones; whether that went well.

        Args:
            key: The key.
            saved: The answer.
            io: The caller's mode.
            asked: The request to keep with it, as hishel has it and without secrets; ``None`` for none.
            ttl: Seconds after which the store may clean it away.
            old: Entries that it replaces; ``None`` for all that the key has.
        """
        return await self._run(lambda: self._save(key, saved, asked, ttl, old), io) is True

    async def refresh(self, kept: Kept, headers: Any, io: IO) -> None:
        """Replace the headers of an entry."""
        await self._run(lambda: self._call(self.store.update_headers, kept.entry.id, headers), io)

    async def remove(self, kept: Iterable[Kept], io: IO) -> None:
        """Remove entries."""
        for one in kept:
            await self._run(partial(self._call, self.store.remove_entry, one.entry.id), io)

    def close(self) -> None:
        """Close the store; one that we opened is blocking."""
        self.store.close()

    async def _run(self, operation: Callable[[], Coroutine[Any, Any, T]], io: IO) -> T | None:
        try:
            if self.is_async:
                return await operation()
            if self._in_memory:
                return drive(operation())
            return await io.to_thread(lambda: drive(operation()))
        except Exception as exc:  # noqa: BLE001 - whatever the store's trouble is, the call goes on without it
            if not self._warned:
                self._warned = True
                _logger.warning("the cache's store fails (%s); calls go on without it", type(exc).__name__)
            return None

    async def _call(self, method: Callable[..., Any], *args: Any) -> Any:
        result = method(*args)
        return await result if inspect.isawaitable(result) else result

    async def _find(self, memory: MemoryStore, key: str, io: IO) -> list[InMemory]:
        found = memory.find(key)
        if found or memory is self.store:
            return found
        return await self._run(partial(self._call, self.store.find, key), io) or []

    async def _load(self, key: str) -> list[Kept]:
        found = []
        for entry in await self._call(self.store.get_entries, key):
            response = entry.response
            saved = _unpack(response.status_code, pairs_of(response.headers), await _read(response.stream))
            if saved is not None:
                found.append(Kept(entry, saved))
        return found

    async def _save(
        self,
        key: str,
        saved: Saved,
        asked: Any,
        ttl: float | None,
        old: Iterable[Kept] | None,
    ) -> bool:
        if self._memory is self.store and asked is None and old is None:
            self._put(key, saved, ttl)
            return True
        stale = [k.entry for k in old] if old is not None else await self._call(self.store.get_entries, key)
        stream = _later(saved.pieces) if self.is_async else iter(saved.pieces)
        # by content, nothing of the request is kept but the key, which tells nobody what was asked
        request = self._hishel.Request(method="", url="") if asked is None else asked
        headers = self._hishel.Headers(by_name((*saved.headers, *_meta(saved))))
        response = self._hishel.Response(saved.status, headers, stream)
        entry = await self._call(partial(self.store.create_entry, ttl=ttl), request, response, key)
        await _read(entry.response.stream)  # an entry is whole once its body has been read through
        for entry in stale:
            await self._call(self.store.remove_entry, entry.id)
        return True

    def _put(self, key: str, saved: Saved, ttl: float | None) -> None:
        """Keep an answer in memory, where no body has to be read through to be whole."""
        stale = self.store.find(key)
        headers = (*saved.headers, *_meta(saved))
        deadline = inf if ttl is None else time.time() + ttl
        self.store.put(
            InMemory(
                uuid4(), key, "", "", (), saved.status, headers, deadline, chunks=saved.pieces, reading=saved
            )
        )
        for kept in stale:
            self.store.remove_entry(kept.id)


async def _later(pieces: tuple[bytes, ...]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def _read(stream: Any) -> tuple[bytes, ...]:
    if hasattr(stream, "__aiter__"):
        return tuple([chunk async for chunk in stream])
    return tuple(stream)


def shown(pairs: Pairs) -> Pairs:
    """The same without what only we want to know."""
    return tuple([pair for pair in pairs if not pair[0].startswith("x-dspex-")])


def _meta(saved: Saved) -> Iterator[tuple[str, str]]:
    yield "x-dspex-schema", _SCHEMA
    yield "x-dspex-stored-at", repr(saved.stored_at)
    yield "x-dspex-pieces", ",".join(str(len(piece)) for piece in saved.pieces)
    for name, value in saved.extensions:
        yield f"x-dspex-{name}", value.decode("latin-1")


def _unpack(status: int, pairs: Pairs, read: tuple[bytes, ...]) -> Saved | None:
    """What an entry holds; ``None`` when it is not of our making, of another version, or cut short."""
    headers, sizes = dict(pairs), tuple(map(len, read))
    if headers.get("x-dspex-schema") != _SCHEMA:
        return None
    try:
        stored_at = float(headers["x-dspex-stored-at"])
        lengths = tuple(map(int, headers["x-dspex-pieces"].split(",")))
        kept = shown(pairs)
        for name, value in kept:  # spoilt, they could not be given to anybody
            name.encode("ascii")
            value.encode("latin-1")
        extensions = tuple(
            (name, headers[f"x-dspex-{name}"].encode("latin-1"))
            for name in _EXTENSIONS
            if f"x-dspex-{name}" in headers
        )
    except (KeyError, ValueError):
        return None
    if sum(lengths) != sum(sizes):
        return None
    # as a rule they lie there as they were: a copy would take their room twice
    pieces = read if sizes == lengths else _cut(b"".join(read), lengths)
    return Saved(status, kept, pieces, stored_at, extensions)


def _read_once(kept: InMemory) -> Saved | None:
    """What an entry in memory holds."""
    if kept.reading is None:
        kept.reading = _unpack(kept.status, kept.headers, kept.chunks)
    saved: Saved | None = kept.reading
    return saved


def _cut(body: bytes, lengths: Iterable[int]) -> tuple[bytes, ...]:
    """The pieces again: a store of hishel's cuts bodies as it likes."""
    pieces, at = [], 0
    for length in lengths:
        pieces.append(body[at : at + length])
        at += length
    return tuple(pieces)
