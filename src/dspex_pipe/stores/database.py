"""The database file of a `DiskStore`: made, marked as ours, watched, and set aside when it is corrupt."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from .private import private_file, private_folder, tighten
from .secret import is_secret, secret_path

__all__ = [
    "Broken",
    "Connection",
    "alone",
    "connect",
    "identity",
    "is_corrupt",
    "may_be_replaced",
    "set_aside",
    "was_ours",
]

T = TypeVar("T")

_logger = logging.getLogger("dspex_pipe")

# In the header of each file of ours. Whoever changes how bodies are written counts the version up.
_APPLICATION = int.from_bytes(b"dspx", "big")
_VERSION = 1


def connect(path: Path) -> Connection:
    """Open a file of ours, or make it.

    Raises:
        OSError: It cannot be made or opened.
        sqlite3.Error: It is no database, or another program's.
    """
    private_folder(path.parent)
    private_file(path)
    if not path.is_file():
        raise OSError("it is no regular file")
    # SQLite takes a file of a few bytes, no page of its own, for an empty one and writes over it
    if 0 < path.stat().st_size < 512:
        raise _TooShort("it is no database")
    # isolation_level: every statement commits, as hishel wants it
    connection = sqlite3.connect(
        path, timeout=5.0, isolation_level=None, check_same_thread=False, factory=Connection
    )
    connection.file = identity(path)
    try:
        connection.execute("BEGIN")  # one moment: another may be claiming it
        try:
            ours = _is_ours(connection)
        finally:
            connection.execute("ROLLBACK")
        _secure(path)  # before anything of ours is in it
        if not ours:
            _claim(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _secure(path: Path) -> None:
    # SQLite gives the files that it makes beside this one its mode
    for file in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        with suppress(FileNotFoundError):
            tighten(file, 0o600)
    if not os.access(path, os.R_OK | os.W_OK):
        raise PermissionError("it may not be written")


def _is_ours(connection: sqlite3.Connection) -> bool:
    def number(sql: str) -> int:
        return int(connection.execute(sql).fetchone()[0])

    application, version = number("PRAGMA application_id"), number("PRAGMA user_version")
    if application == _APPLICATION and version == _VERSION:
        return True
    if application or version or number("SELECT count(*) FROM sqlite_master"):
        raise sqlite3.DatabaseError("it holds something else")
    return False


def _claim(connection: sqlite3.Connection) -> None:
    """Mark an empty database as ours, before anything is in it; several processes may do that at once."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        _is_ours(connection)
        connection.execute(f"PRAGMA application_id = {_APPLICATION}")
        connection.execute(f"PRAGMA user_version = {_VERSION}")
    finally:
        connection.execute("COMMIT")


# A file that is corrupt


class _TooShort(sqlite3.DatabaseError):
    """A file that SQLite would take for an empty one."""

    sqlite_errorcode = sqlite3.SQLITE_NOTADB


def is_corrupt(exc: sqlite3.Error) -> bool:
    """Whether the file itself is broken: no lock, no full disk, and no other program's tables."""
    code = getattr(exc, "sqlite_errorcode", 0) & 0xFF  # the rest says where
    return code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def was_ours(path: Path) -> bool:
    """Whether a corrupt file was a cache of ours: it bears the mark, or the secret of one is beside it.

    One that is gone or empty was: it is just being begun anew.
    """
    try:
        with path.open("rb") as file:
            file.seek(68)  # https://www.sqlite.org/fileformat2.html#application_id
            mark = file.read(4)
        empty = not path.stat().st_size
    except FileNotFoundError:
        return True
    return empty or mark == _APPLICATION.to_bytes(4, "big") or is_secret(secret_path(path))


def may_be_replaced(exc: OSError | sqlite3.Error) -> bool:
    """Whether a file could not be opened because it is corrupt, or because another is replacing it just now.

    A lock says neither, nor does an error of ours, which has no code.
    """
    code = getattr(exc, "sqlite_errorcode", None)
    if code is None:
        return isinstance(exc, FileNotFoundError)
    return code & 0xFF not in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """One at a time, of all processes: the lock goes with its holder, whatever becomes of it."""
    guard = sqlite3.connect(f"{path}.lock", timeout=30.0, isolation_level=None)
    try:
        guard.execute("BEGIN EXCLUSIVE")
        yield
    finally:
        guard.close()


def set_aside(path: Path) -> None:
    """Rename a corrupt file, and those beside it, so that a new one can be begun; an older one goes."""
    for end in ("-wal", "-shm", ""):  # itself last: what is new must not lose what is beside it
        with suppress(FileNotFoundError):
            Path(f"{path}{end}").replace(f"{path}.corrupt{end}")
    _logger.warning(
        "%r is corrupt: it was set aside as %r, and a new one begun", str(path), f"{path}.corrupt"
    )


def identity(path: Path) -> tuple[int, int] | None:
    """Which file a path names now; ``None`` for none."""
    with suppress(OSError):
        told = path.stat()
        return told.st_dev, told.st_ino
    return None


class Broken(RuntimeError):
    """What hishel is told when the database has failed: it hands on a RuntimeError, and logs all others."""


class Connection(sqlite3.Connection):
    """Remembers what has failed, which hishel takes for an empty answer."""

    watched = False
    failure: sqlite3.Error | None = None
    file: tuple[int, int] | None = None
    """Which file it is, whatever its path names by now."""

    def take_failure(self) -> sqlite3.Error | None:
        """What has failed since it was asked last."""
        failure, self.failure = self.failure, None
        return failure

    def cursor(self, factory: Any = sqlite3.Cursor) -> Any:
        """A cursor, whose failures are remembered from when we begin to watch."""
        return super().cursor(_Cursor if self.watched else factory)


class _Cursor(sqlite3.Cursor):
    def execute(self, sql: str, parameters: Any = (), /) -> _Cursor:
        return self._watch(super().execute, sql, parameters)

    def fetchone(self) -> Any:
        return self._watch(super().fetchone)

    def fetchall(self) -> list[Any]:
        return self._watch(super().fetchall)

    def _watch(self, call: Callable[..., T], *args: Any) -> T:
        try:
            return call(*args)
        except sqlite3.IntegrityError:
            raise  # another process has removed what is being written
        except sqlite3.Error as exc:
            connection: Any = self.connection
            connection.failure = exc
            raise Broken(str(exc)) from exc
