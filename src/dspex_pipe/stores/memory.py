"""Entries in memory, with the face and the promises of hishel's ``BaseStorage``, which has no such store."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from functools import cache, partial
from itertools import chain
from math import inf
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import UUID, uuid4
from weakref import WeakValueDictionary

from attrs import define, field, setters

from ..config import brief, whole

if TYPE_CHECKING:
    from hishel import Entry, Headers, Request, Response

__all__ = ["Kept", "MemoryStore", "Pairs", "Recorder", "by_name", "pairs_of"]

# Unlike lists and dicts, tuples of strings cost the garbage collector nothing for as long as they are kept.
Pairs: TypeAlias = tuple[tuple[str, str], ...]

# What Python adds to each chunk, in bytes: without it, a server that sends byte by byte would use many times
# the memory that we count.
PER_CHUNK = 64


@cache
def _hishel() -> Any:
    """The module hishel, imported when it is needed: that takes 100 ms."""
    import hishel  # noqa: PLC0415 - see above

    # not a base class, which would have to be imported first
    hishel.BaseStorage.register(MemoryStore)
    return hishel


def by_name(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Pairs of name and value, as hishel's Headers take them."""
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        values.setdefault(name, []).append(value)
    return values


def pairs_of(headers: Headers) -> Pairs:
    """The pairs of name and value in Headers of hishel's."""
    return tuple((name, value) for name in headers for value in headers.get_list(name) or ())


@define(eq=False)
class Kept:
    """One entry as a store has it; nothing in it is shared with callers.

    Args:
        id: What the entry is called.
        key: What it is asked for by.
        method: The request's method.
        url: The request's URL.
        asked: The request's headers, as pairs of name and value.
        status: The response's status.
        headers: The response's.
        deadline: Seconds since the epoch when it expires at the latest.
        tti: Seconds without use after which it expires, too.
        chunks: The body, as it came.
        expires: Seconds since the epoch.
        size: Bytes, as they are counted.
    """

    id: UUID
    key: str
    method: str
    url: str
    asked: Pairs
    status: int
    headers: Pairs
    deadline: float = inf
    tti: float = inf
    chunks: tuple[bytes, ...] = ()
    expires: float = inf
    size: int = 0
    reading: Any = None
    """What a reader has made of it, and need not make again as long as it stays as it is."""

    @classmethod
    def of(
        cls,
        request: Request,
        response: Response,
        key: str,
        *,
        ttl: float | None = None,
        tti: float | None = None,
    ) -> Kept:
        """A new one, from what is given to ``create_entry``."""
        return cls(
            uuid4(),
            key,
            request.method,
            request.url,
            pairs_of(request.headers),
            response.status_code,
            pairs_of(response.headers),
            inf if ttl is None else time.time() + ttl,
            inf if tti is None else tti,
        )

    def entry(self, stream: Iterator[bytes] | None = None) -> Entry:
        """A fresh copy as an entry of hishel's, with this stream, or the body."""
        hishel = _hishel()
        entry: Entry = hishel.Entry(
            self.id,
            hishel.Request(self.method, self.url, hishel.Headers(by_name(self.asked))),
            hishel.Response(
                self.status,
                hishel.Headers(by_name(self.headers)),
                iter(self.chunks) if stream is None else stream,
            ),
        )
        return entry

    def update_headers(self, headers: Headers) -> None:
        """Replace the response's headers."""
        self.headers = pairs_of(headers)
        self.reading = None

    def used(self, now: float) -> None:
        """Begin the time without use anew."""
        self.expires = min(self.deadline, now + self.tti)

    def weigh(self) -> int:
        """Count its bytes: body, headers, URL and key."""
        self.size = len(self.key) + len(self.url) + sum(len(chunk) + PER_CHUNK for chunk in self.chunks)
        self.size += sum(map(len, chain.from_iterable((*self.asked, *self.headers))))
        return self.size


class Recorder:
    """Hands a body on as it is read, and gives all of it to ``done`` once it has been read to its end.

    A body that breaks off, is closed early or is over the limit still reaches its reader, and is forgotten.

    Args:
        stream: The body; ``None`` for an empty one.
        limit: Bytes that are kept at most.
        done: Takes the chunks.
    """

    def __init__(
        self,
        stream: Iterable[bytes] | AsyncIterator[bytes] | None,
        limit: int,
        done: Callable[[tuple[bytes, ...]], None],
    ) -> None:
        # an async stream is the wrong kind: iter() says so
        self._stream: Iterator[bytes] = iter(() if stream is None else stream)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType, reportCallIssue]
        self._room = limit
        self._done = done
        self._chunks: list[bytes] | None = []

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            chunk = next(self._stream)
        except StopIteration:
            chunks, self._chunks = self._chunks, None
            if chunks is not None:
                self._done(tuple(chunks))
            raise
        except BaseException:
            self._chunks = None  # a broken stream may still be asked again, and say that it has ended
            raise
        if self._chunks is not None:
            self._room -= len(chunk) + PER_CHUNK
            if self._room < 0:
                self._chunks = None
            else:
                self._chunks.append(bytes(chunk))
        return chunk

    def close(self) -> None:
        """Stop reading: what was read so far is not kept."""
        self._chunks = None
        close = getattr(self._stream, "close", None)
        if close is not None:
            close()


@define(kw_only=True, eq=False, repr=False, slots=False, on_setattr=setters.frozen)
class MemoryStore:
    """Keep entries in memory: those asked for last, within bounds.

    It has the methods of hishel's ``BaseStorage``, and is one for ``isinstance`` from `open` or the first use
    on. Bodies come back in the very chunks that they were stored in. One lock, held for microseconds and not
    while a body is read, makes one store serve threads and event loops alike. The entries of a key are asked
    for together, so they go together, too: the key that was used longest ago first.

    Args:
        max_bytes: Bytes at most: bodies, headers, URLs and keys, and 64 bytes for each chunk of a body. An
            entry that is larger by itself is not kept. Python's own objects take about 2 KiB an entry more.
        max_entries: Entries at most.
    """

    max_bytes: int = field(default=64 * 1024**2, validator=whole(1))
    max_entries: int = field(default=10_000, validator=whole(1))

    __repr__ = brief

    def __attrs_post_init__(self) -> None:
        self._lock = Lock()
        # by key, the one used longest ago first; within a key, the oldest first
        self._groups: OrderedDict[str, dict[UUID, Kept]] = OrderedDict()
        self._kept: dict[UUID, Kept] = {}
        # being written, while somebody holds the stream; one that is removed before it is whole is not kept
        self._writing: WeakValueDictionary[UUID, Kept] = WeakValueDictionary()
        self._bytes = 0
        self._closed = False

    def open(self) -> None:
        """Get ready now: import hishel, which takes 100 ms the first time."""
        _hishel()

    def create_entry(
        self,
        request: Request,
        response: Response,
        key: str,
        *,
        ttl: float | None = None,
        tti: float | None = None,
    ) -> Entry:
        """Make an entry, which is kept once the stream of the one returned has been read to its end.

        Args:
            request: What was asked; a copy is kept.
            response: The answer, with a blocking stream; a copy is kept.
            key: What to ask for it by.
            ttl: Seconds from now after which it goes; ``None`` for no limit.
            tti: Seconds without use after which it goes; ``None`` for no limit.

        Returns:
            The entry, with the stream to read.

        Raises:
            TypeError: The stream is an async one.
        """
        kept = Kept.of(request, response, key, ttl=ttl, tti=tti)
        stream = Recorder(response.stream, self.max_bytes, partial(self._finish, kept))
        with self._lock:
            self._writing[kept.id] = kept
        return kept.entry(stream)

    def get_entries(self, key: str) -> list[Entry]:
        """The entries of a key that are whole and have not expired, each with its whole body."""
        return [kept.entry() for kept in self.find(key)]

    def put(self, kept: Kept) -> None:
        """Keep what is whole already: `create_entry`, for who has the body at hand."""
        with self._lock:
            if not self._closed:
                self._add(kept)

    def find(self, key: str) -> list[Kept]:
        """What `get_entries` gives, but not as entries: not to be changed."""
        now = time.time()
        with self._lock:
            group = self._groups.get(key)
            if group is None:
                return []
            self._groups.move_to_end(key)
            found = []
            for kept in list(group.values()):
                if kept.expires > now:
                    kept.used(now)
                    found.append(kept)
                else:
                    self._drop(kept)
        return found

    def update_headers(self, id: UUID, headers: Headers) -> None:  # noqa: A002 - hishel's name for it
        """Replace the response's headers of an entry, if there still is one."""
        with self._lock:
            kept = self._kept.get(id)
            if kept is not None:
                self._drop(kept)
                kept.update_headers(headers)
                self._add(kept)
                return
            writing = self._writing.get(id)
            if writing is not None:
                writing.update_headers(headers)

    def remove_entry(self, id: UUID) -> None:  # noqa: A002 - hishel's name for it
        """Remove an entry, if there still is one; who reads it already reads on."""
        with self._lock:
            self._writing.pop(id, None)
            kept = self._kept.get(id)
            if kept is not None:
                self._drop(kept)

    def close(self) -> None:
        """Forget everything, and keep nothing from now on."""
        with self._lock:
            self._closed = True
            self._groups.clear()
            self._kept.clear()
            self._bytes = 0

    def snapshot(self) -> dict[str, int]:
        """How many entries there are, and their bytes, as they are counted."""
        with self._lock:
            return {"entries": len(self._kept), "bytes": self._bytes}

    # For a store with this one in front

    def fill(self, key: str, group: list[Kept]) -> None:
        """Keep exactly these entries for a key; or none, rather than a part of them, if they do not fit."""
        with self._lock:
            self._forget(key)
            if len(group) <= self.max_entries and sum(kept.weigh() for kept in group) <= self.max_bytes:
                for kept in group:
                    self._add(kept)

    def forget(self, id: UUID) -> None:  # noqa: A002 - as above
        """Drop an entry, and all others of its key."""
        with self._lock:
            kept = self._kept.get(id)
            if kept is not None:
                self._forget(kept.key)

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            while self._groups:
                self._forget(next(iter(self._groups)))

    # Under the lock

    def _finish(self, kept: Kept, chunks: tuple[bytes, ...]) -> None:
        kept.chunks = chunks
        with self._lock:
            if self._writing.pop(kept.id, None) is not None and not self._closed:
                self._add(kept)

    def _add(self, kept: Kept) -> None:
        if kept.weigh() > self.max_bytes:
            return  # rather than driving out everything else first
        kept.used(time.time())
        self._groups.setdefault(kept.key, {})[kept.id] = kept
        self._groups.move_to_end(kept.key)
        self._kept[kept.id] = kept
        self._bytes += kept.size
        while self._bytes > self.max_bytes or len(self._kept) > self.max_entries:
            oldest, group = next(iter(self._groups.items()))
            if oldest != kept.key:
                self._forget(oldest)
            else:  # a key that fills the store alone
                self._drop(next(iter(group.values())))

    def _drop(self, kept: Kept) -> None:
        group = self._groups[kept.key]
        del group[kept.id], self._kept[kept.id]
        if not group:
            del self._groups[kept.key]
        self._bytes -= kept.size

    def _forget(self, key: str) -> None:
        for kept in list(self._groups.get(key, {}).values()):
            self._drop(kept)
