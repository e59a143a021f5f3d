"""Entries in a file, in hishel's ``SqliteStorage``, with a `MemoryStore` in front."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable
from functools import partial
from itertools import chain
from math import inf, isfinite
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID
from weakref import ReferenceType, WeakValueDictionary, ref
from zlib import crc32

from attrs import define, field, setters

from ..config import whole
from .database import (
    Broken,
    Connection,
    alone,
    connect,
    identity,
    is_corrupt,
    may_be_replaced,
    set_aside,
    was_ours,
)
from .memory import Kept, MemoryStore, Recorder, pairs_of
from .private import cache_path

if TYPE_CHECKING:
    from hishel import Entry, Headers, Request, Response, SqliteStorage

__all__ = ["DiskStore", "StoreFailed"]

T = TypeVar("T")

# Seconds that a database which failed is left alone: a locked one makes each call wait for 5 s.
_REST = 60.0
# Seconds for which hishel keeps what was removed, for readers under way; ours read within milliseconds.
_GRACE = 10.0
# Bytes that the description of a body takes at most beyond what `Recorder` counts.
_HEAD = 1024
# Bytes of a checksum.
_SUM = 4
# hishel cuts bodies into rows of this size, and is slow when it is given far larger chunks.
_ROW = 128 * 1024


class StoreFailed(Exception):
    """The database of a store has failed: the answer is to be fetched, and is not kept."""


@define(eq=False, repr=False, slots=False, on_setattr=setters.frozen)
class DiskStore:
    """Keep entries in a file, which outlives the process and may be shared by several.

    It has the methods of hishel's ``BaseStorage``, and is one for ``isinstance`` from `open` or the first use
    on. `memory` answers first, and alone if it can: asking it waits for nothing. Everything else uses the
    database, and may take milliseconds; so does reading the end of the stream of ``create_entry``, when an
    entry is written. The streams of ``get_entries`` wait for nothing: their bodies were read and checked.

    A file that is no cache of ours is a `ValueError` when it is opened: by `open`, or else by the first call.
    From then on the only exception is `StoreFailed`, once for each trouble: raised by the call that met it,
    or by the next call, if it was met at the end of a stream, whose reader must not suffer for it. After a
    failure of the database, the store finds nothing and keeps nothing for 60 s, then tries again. A corrupt
    file of ours is set aside, as ``run.db.corrupt``, and a new one begun. A spoilt entry is not found, and
    removed. What another process removes or updates, this one may find in its memory
    for as long as it has it there. After a fork, make a new store.

    Request headers are kept as they are given, readable for whoever may read the file: give no secrets.

    Args:
        path: A bare name (``"run.db"``) lives in the user's cache directory, in a folder ``dspex-pipe`` that
            only the user may enter; a path with a folder in it is used as it is, with ``~`` for the home
            directory. Only the user may read the file.
        max_bytes: Bytes of the file at most, from 1 MiB on. When it is full, what was not read from it
            for longest goes.
        memory_bytes: Bytes in `memory` at most. A body that is larger is not kept at all.
    """

    path: Path = field(converter=cache_path)
    max_bytes: int = field(default=1024**3, validator=whole(1024**2), kw_only=True)
    memory_bytes: int = field(default=64 * 1024**2, validator=whole(1), kw_only=True)

    def __repr__(self) -> str:
        return f"DiskStore({str(self.path)!r}, max_bytes={self.max_bytes}, memory_bytes={self.memory_bytes})"

    def __attrs_post_init__(self) -> None:
        self.memory = MemoryStore(max_bytes=self.memory_bytes)
        # held while the database is used, so that memory follows it in the same order
        self._lock = Lock()
        self._opened: tuple[SqliteStorage, Connection] | None = None
        self._was_open = False
        self._closed = False
        self._rests_until = 0.0
        self._untold: Exception | None = None
        # being written, while somebody holds the stream
        self._writing: WeakValueDictionary[UUID, Kept] = WeakValueDictionary()
        # what was to be removed or updated when the database failed
        self._gone: set[UUID] = set()

    def open(self) -> None:
        """Open the file now, making it if there is none.

        Raises:
            ValueError: The file is no cache of ours, or cannot be made or opened; or the store is closed.
        """
        with self._lock:
            if self._closed:
                raise ValueError(f"{self!r} is closed: make a new one")
            self._open()

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
            The entry, with the stream to read; its id becomes the final one when that has been read.

        Raises:
            TypeError: The stream is an async one.
            StoreFailed: Told about an earlier failure while writing.
        """
        kept = Kept.of(request, response, key, ttl=ttl, tti=tti)
        entry = kept.entry()
        limit = min(self.memory_bytes, self.max_bytes)
        # weakly: the entry holds its stream
        entry.response.stream = Recorder(response.stream, limit, partial(self._finish, kept, ref(entry)))
        with self._lock:
            self._tell()
            self._writing[kept.id] = kept
        return entry

    def get_entries(self, key: str) -> list[Entry]:
        """The entries of a key that are whole and have not expired, each with its whole body.

        Raises:
            StoreFailed: The database has failed; told once.
        """
        return [kept.entry() for kept in self.find(key)]

    def find(self, key: str) -> list[Kept]:
        """What `get_entries` gives, but not as entries: not to be changed.

        Raises:
            StoreFailed: The database has failed; told once.
        """
        found = self.memory.find(key)
        if found:
            return found
        with self._lock:
            return self._run(partial(self._load, key)) or []

    def update_headers(self, id: UUID, headers: Headers) -> None:  # noqa: A002 - hishel's name for it
        """Replace the response's headers of an entry, if there still is one.

        Raises:
            StoreFailed: The database has failed; told once. This store does not find the entry any more.
        """
        with self._lock:
            writing = self._writing.get(id)
            if writing is None:
                self._change(id, lambda storage: storage.update_headers(id, headers))
            else:
                writing.update_headers(headers)

    def remove_entry(self, id: UUID) -> None:  # noqa: A002 - hishel's name for it
        """Remove an entry, if there still is one; who reads it already reads on.

        Raises:
            StoreFailed: The database has failed; told once. This store does not find the entry any more.
        """
        with self._lock:
            if self._writing.pop(id, None) is None:
                self._change(id, lambda storage: storage.remove_entry(id))

    def close(self) -> None:
        """Close the file; from now on nothing is found and nothing kept."""
        with self._lock:
            self._closed = True
            self.memory.close()
            if self._opened is not None:
                self._opened[0].close()

    # Under the lock

    def _open(self) -> tuple[SqliteStorage, Connection]:
        if self._opened is not None:
            return self._opened
        self.memory.open()
        try:
            storage, connection = self._open_or_replace()
        except (OSError, sqlite3.OperationalError) as exc:
            raise ValueError(f"{str(self.path)!r} cannot be opened: {exc}") from exc
        except (sqlite3.Error, RuntimeError) as exc:
            raise ValueError(
                f"{str(self.path)!r} is no cache of this version of dspex-pipe, and was left as it is "
                f"({exc}): delete it, or name another file"
            ) from exc
        # the error about a text that is none would quote it
        connection.text_factory = bytes
        self._opened = storage, connection
        self._was_open = True
        return self._opened

    def _open_or_replace(self) -> tuple[SqliteStorage, Connection]:
        """Open the file; one of ours that is corrupt is set aside, and a new one begun."""
        try:
            return self._open_file()
        except (OSError, sqlite3.Error) as exc:
            if not (may_be_replaced(exc) and was_ours(self.path)):
                raise
        with alone(self.path):  # again: another may have replaced it
            try:
                return self._open_file()
            except sqlite3.DatabaseError as exc:
                if not is_corrupt(exc):
                    raise
            set_aside(self.path)
            return self._open_file()

    def _open_file(self) -> tuple[SqliteStorage, Connection]:
        import hishel  # noqa: PLC0415 - takes 100 ms, so only who opens a store pays for it

        hishel.BaseStorage.register(DiskStore)
        connection = connect(self.path)
        try:
            storage = hishel.SqliteStorage(
                connection=connection, max_size=self.max_bytes, soft_delete_ttl=_GRACE
            )
            connection.watched = True
            storage.get_entries("")  # now it makes its tables, or refuses those it finds
        except BaseException as exc:
            connection.close()
            failure = connection.take_failure()
            if failure is not None and is_corrupt(failure):
                raise failure from exc
            raise
        return storage, connection

    def _tell(self) -> None:
        untold, self._untold = self._untold, None
        if untold is not None:
            raise untold

    def _run(self, work: Callable[[SqliteStorage], T]) -> T | None:
        """Use the database, if it may be used now.

        Raises:
            ValueError: It cannot be opened.
            StoreFailed: It failed, now or at the end of a stream.
        """
        if self._closed:
            return None
        self._tell()
        if time.monotonic() < self._rests_until:
            return None
        try:
            storage, connection = self._open()
        except ValueError as exc:
            if not self._was_open:
                raise
            self._rests_until = time.monotonic() + _REST
            raise StoreFailed(str(exc)) from exc
        result, failure = None, None
        try:
            result = work(storage)
        except Exception as exc:  # noqa: BLE001 - told below
            failure = exc
        broken = connection.take_failure()  # hishel may have gone on without it
        if broken is not None:
            self.memory.clear()
            failure = broken
            if not (is_corrupt(broken) and self._replace(connection)):
                self._rests_until = time.monotonic() + _REST
        if failure is not None:
            # SQLite's own words quote nothing that is stored; others' may
            what = failure if failure is broken else type(failure).__name__
            raise StoreFailed(f"{str(self.path)!r} fails: {what}") from failure
        return result

    def _replace(self, connection: Connection) -> bool:
        """Let a new file be begun in the place of one that is corrupt; whether that may be done now."""
        connection.close()
        self._opened = None
        self._gone.clear()
        try:
            with alone(self.path):
                if connection.file == identity(self.path):  # else another process has done so
                    set_aside(self.path)
        except (OSError, sqlite3.Error):
            return False
        return True

    def _change(self, id_: UUID, work: Callable[[SqliteStorage], None]) -> None:
        self._gone.add(id_)  # until the database has agreed
        self.memory.forget(id_)

        def change(storage: SqliteStorage) -> None:
            work(storage)
            self._gone.discard(id_)

        self._run(change)

    def _load(self, key: str, storage: SqliteStorage) -> list[Kept]:
        """The entries of a key, which are then in memory, too: all of them or none."""
        group = []
        try:
            entries = storage.get_entries(key)
        except Broken:
            raise
        except Exception:  # noqa: BLE001 - spoilt so badly that hishel cannot even name them
            return []
        for entry in entries:
            if entry.id in self._gone:
                continue
            try:
                kept = self._read(entry, key)
            except Broken:
                raise
            except Exception:  # noqa: BLE001 - whatever is wrong with it, it is spoilt
                storage.remove_entry(entry.id)
                continue
            if kept is not None:
                group.append(kept)
        # the use that a time without use is counted from is written in the database only
        if all(kept.tti == inf for kept in group):
            self.memory.fill(key, group)
        return group

    def _read(self, entry: Entry, key: str) -> Kept | None:
        """One entry; ``None`` for one that is larger than our memory, of a store that has more.

        Raises:
            Exception: It is spoilt.
        """
        rows, size = [], 0
        stream: Any = entry.response.stream
        for row in stream:
            size += len(row)
            if size > self.memory_bytes + _HEAD:
                return None
            rows.append(row)
        asked, answer = entry.request, entry.response
        told = pairs_of(asked.headers), answer.status_code, pairs_of(answer.headers)
        kept = Kept(entry.id, key, asked.method, asked.url, *told, *_unpack(b"".join(rows)))
        _check(kept)
        return kept

    def _save(self, kept: Kept, entry: Entry | None, storage: SqliteStorage) -> None:
        copy: Any = kept.entry()
        packed = _pack(kept.chunks, kept.deadline, kept.tti)
        copy.response.stream = [packed[start : start + _ROW] for start in range(0, len(packed), _ROW)]
        saved = storage.create_entry(
            copy.request,
            copy.response,
            kept.key,
            ttl=None if kept.deadline == inf else kept.deadline - time.time(),
            tti=None if kept.tti == inf else kept.tti,
        )
        stream: Any = saved.response.stream
        for _ in stream:
            pass
        if entry is not None:
            entry.id = saved.id
        # reading it back gives memory all entries of the key, those of other processes, too
        self._load(kept.key, storage)

    def _finish(self, kept: Kept, entry: ReferenceType[Entry], chunks: tuple[bytes, ...]) -> None:
        kept.chunks = chunks
        with self._lock:
            if self._writing.pop(kept.id, None) is None:
                return
            try:
                self._run(partial(self._save, kept, entry()))
            except Exception as exc:  # noqa: BLE001 - the reader of the stream must not suffer for it
                self._untold = exc


# A body is one blob: a checksum of all that follows, a line of JSON, and the chunks.


def _pack(chunks: tuple[bytes, ...], deadline: float, tti: float) -> bytes:
    told = {
        "sizes": [len(chunk) for chunk in chunks],
        "deadline": deadline if isfinite(deadline) else None,
        "tti": tti if isfinite(tti) else None,
    }
    rest = b"".join([json.dumps(told, separators=(",", ":")).encode(), b"\n", *chunks])
    return crc32(rest).to_bytes(_SUM, "big") + rest


def _unpack(packed: bytes) -> tuple[float, float, tuple[bytes, ...]]:
    """Deadline, time without use, and chunks.

    Raises:
        Exception: It is spoilt.
    """
    if int.from_bytes(packed[:_SUM], "big") != crc32(memoryview(packed)[_SUM:]):
        raise ValueError("the checksum differs")
    end = packed.index(b"\n", _SUM)
    told = json.loads(packed[_SUM:end])
    chunks, start = [], end + 1
    for size in told["sizes"]:
        chunks.append(packed[start : start + size])
        start += size
    deadline, tti = told["deadline"], told["tti"]
    return inf if deadline is None else deadline, inf if tti is None else tti, tuple(chunks)


def _check(kept: Kept) -> None:
    """Check what hishel has unpacked, and no checksum covers.

    Raises:
        TypeError: It is spoilt.
    """
    "".join([kept.method, kept.url, *chain.from_iterable((*kept.asked, *kept.headers))])  # takes only texts
    if type(kept.status) is not int:
        raise TypeError("the entry is spoilt")
