"""The store in a file: where it lives, who may read it, and what happens when it is spoilt."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sqlite3
import stat
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import hishel
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from dspex_pipe.stores import database, disk
from dspex_pipe.stores.disk import DiskStore, StoreFailed
from dspex_pipe.stores.private import cache_folder, private_folder
from dspex_pipe.stores.secret import load_secret, secret_path
from storing import Clock, get, put, share, start


@pytest.fixture
def path(tmp_path):
    return tmp_path / "caches" / "run.db"


@pytest.fixture
def make(path):
    """Stores on one file, closed in the end."""
    made = []

    def make(file=path, **settings):
        made.append(DiskStore(file, **settings))
        return made[-1]

    yield make
    for store in made:
        store.close()


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def run_sql(path, *statements):
    """Change a file behind a store's back."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        return [connection.execute(*s if isinstance(s, tuple) else (s,)).fetchall() for s in statements]
    finally:
        connection.close()


# Where it lives


@pytest.mark.parametrize(
    ("platform", "variables", "folder"),
    [
        ("linux", {}, "/home/u/.cache/dspex-pipe"),
        ("linux", {"XDG_CACHE_HOME": "/xdg"}, "/xdg/dspex-pipe"),
        ("linux", {"XDG_CACHE_HOME": ""}, "/home/u/.cache/dspex-pipe"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "/home/u/.cache/dspex-pipe"),
        ("freebsd14", {"XDG_CACHE_HOME": "/xdg"}, "/xdg/dspex-pipe"),
        ("darwin", {"XDG_CACHE_HOME": "/xdg"}, "/home/u/Library/Caches/dspex-pipe"),
        ("win32", {"LOCALAPPDATA": "/local", "XDG_CACHE_HOME": "/xdg"}, "/local/dspex-pipe"),
        ("win32", {}, "/home/u/AppData/Local/dspex-pipe"),
    ],
)
def test_a_bare_name_lives_in_the_users_cache_directory(monkeypatch, platform, variables, folder):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv("HOME", "/home/u")
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert DiskStore("run.db").path == Path(folder, "run.db")
    assert DiskStore(Path("run.db")).path == Path(folder, "run.db")
    assert DiskStore(":memory:").path == Path(folder, ":memory:")


def test_a_path_with_a_folder_is_used_as_it_is(monkeypatch):
    monkeypatch.setenv("HOME", "/home/u")
    assert DiskStore("./run.db").path == Path("run.db")
    assert DiskStore("data/run.db").path == Path("data/run.db")
    assert DiskStore("/data/run.db").path == Path("/data/run.db")
    assert DiskStore(Path("~/run.db")).path == Path("/home/u/run.db")


@pytest.mark.parametrize("name", ["", ".", "..", "data/", "/", "a\0b", b"run.db"])
def test_what_names_no_file_is_an_error(name):
    with pytest.raises(ValueError, match="a store takes a file name or a path, got "):
        DiskStore(name)


def test_without_a_home_directory_it_asks_for_an_absolute_path(monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(ValueError, match=r"'run\.db' needs a home directory.*: give an absolute path"):
        DiskStore("run.db")
    assert DiskStore("/data/run.db").path == Path("/data/run.db")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_bytes": 1000}, r"DiskStore\(max_bytes=…\) takes a whole number, 1048576 or more, got 1000"),
        ({"memory_bytes": 0}, r"DiskStore\(memory_bytes=…\) takes a whole number, 1 or more, got 0"),
    ],
)
def test_a_bad_bound_says_what_is_allowed(settings, message):
    with pytest.raises(ValueError, match=message):
        DiskStore("/data/run.db", **settings)


def test_its_repr_names_the_file():
    store = DiskStore("/data/run.db", memory_bytes=100)
    assert repr(store) == "DiskStore('/data/run.db', max_bytes=1073741824, memory_bytes=100)"


# Who may read it


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_only_the_user_may_read_it_from_its_first_moment_on(make, path, monkeypatch, umask):
    seen = []
    connect = sqlite3.connect

    def watch(*args, **kwargs):
        seen.append((mode(path), mode(path.parent)))
        return connect(*args, **kwargs)

    monkeypatch.setattr(sqlite3, "connect", watch)
    path.parent.parent.chmod(0o755)
    (path.parent if umask == 0o777 else path.parent.parent).mkdir(mode=0o700, exist_ok=True)
    before = os.umask(umask)
    try:
        put(make())
    finally:
        os.umask(before)
    assert seen == [(0o600, 0o700)]
    assert {file.name: mode(file) for file in path.parent.iterdir()} == {
        "run.db": 0o600,
        "run.db-wal": 0o600,
        "run.db-shm": 0o600,
    }


def test_looser_files_are_tightened(make, path):
    first = make()
    put(first)
    for file in path.parent.iterdir():
        file.chmod(0o666)
    make().open()
    assert {mode(file) for file in path.parent.iterdir()} == {0o600}


def test_all_folders_made_are_private_and_those_there_stay(tmp_path):
    tmp_path.chmod(0o755)
    private_folder(tmp_path / "a" / "b")
    assert [mode(tmp_path / p) for p in ("", "a", "a/b")] == [0o755, 0o700, 0o700]


def test_our_own_folder_is_tightened(make, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache_folder().mkdir(mode=0o755)
    store = make("run.db")
    store.open()
    assert store.path == tmp_path / "dspex-pipe" / "run.db"
    assert mode(cache_folder()) == 0o700
    assert mode(tmp_path / "dspex-pipe" / "run.db") == 0o600


def test_nothing_is_written_beside_the_database(make, path):
    put(make())
    assert {file.name for file in path.parent.iterdir()} == {"run.db", "run.db-wal", "run.db-shm"}


# What is not ours


@pytest.mark.parametrize("content", [b"x", b"not a database" * 100, b"SQLite format 3\0" + b"\xff" * 2000])
def test_a_file_that_is_no_database_is_an_error_when_it_is_opened(make, path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"was left as it is.*: delete it, or name another file"
        ) as caught:
            make().open()
        assert str(path) in str(caught.value)
    with pytest.raises(ValueError, match="delete it"):
        make().get_entries("key")
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "statements",
    [
        ["CREATE TABLE mine (a)"],
        ["PRAGMA application_id = 7"],
        ["PRAGMA user_version = 7"],
        [f"PRAGMA application_id = {database._APPLICATION}", "PRAGMA user_version = 2"],
        # ours, by its mark, with a table that hishel cannot use
        [
            f"PRAGMA application_id = {database._APPLICATION}",
            f"PRAGMA user_version = {database._VERSION}",
            "CREATE TABLE entries (a)",
        ],
    ],
)
def test_another_programs_database_is_an_error_and_stays(make, path, statements):
    path.parent.mkdir()
    run_sql(path, *statements)
    path.chmod(0o640)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="is no cache of this version of dspex-pipe"):
        make().open()
    assert path.read_bytes() == before
    # one that has our mark is ours to tighten
    assert mode(path) == (0o600 if "CREATE TABLE entries (a)" in statements else 0o640)


# A file of ours that is corrupt


def overwrite(path, start, content):
    with path.open("r+b") as file:
        file.seek(start)
        file.write(content)


def kept_file(make, path):
    """A file with an entry, as a process leaves it behind."""
    store = make()
    put(store)
    store.close()
    return path


@pytest.mark.parametrize(
    ("start", "content"), [(0, b"\xff" * 64), (100, b"\xff" * 3000)], ids=["its first bytes", "its tables"]
)
def test_a_corrupt_file_of_ours_is_set_aside_and_begun_anew(make, path, start, content, caplog):
    overwrite(kept_file(make, path), start, content)
    before = path.read_bytes()
    store = make()
    assert get(store) == []
    put(store)
    assert len(get(make())) == 1
    assert path.with_name("run.db.corrupt").read_bytes() == before
    assert mode(path) == 0o600
    assert [r.getMessage() for r in caplog.records if "corrupt" in r.getMessage()] == [
        f"{str(path)!r} is corrupt: it was set aside as {str(path) + '.corrupt'!r}, and a new one begun"
    ]


@pytest.mark.parametrize("content", [b"x", b"no database" * 100])
def test_a_file_with_the_secret_of_a_cache_beside_it_was_ours_whatever_is_left_of_it(make, path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    load_secret(secret_path(path))
    put(make())
    assert len(get(make())) == 1
    assert path.with_name("run.db.corrupt").read_bytes() == content


def spoil_while_open(path, store):
    """Break the tables under an open store, and let it forget what it has read."""
    store._opened[1].execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store._opened[1].execute("PRAGMA cache_size = 0")
    for page in range(1, path.stat().st_size // 4096):
        overwrite(path, page * 4096, b"\xff" * 4096)
    store.memory.clear()


def test_a_file_that_turns_out_corrupt_costs_one_call_and_is_begun_anew(make, path):
    store = make()
    put(store)
    spoil_while_open(path, store)
    with pytest.raises(StoreFailed, match="malformed"):
        store.get_entries("key")
    put(store)  # at once: there is nothing to wait for
    assert len(get(store)) == 1
    assert len(get(make())) == 1
    assert path.with_name("run.db.corrupt").exists()


def test_a_file_that_another_process_has_begun_anew_is_not_set_aside(make, path):
    store, other = make(), make()
    put(store)
    get(other)
    spoil_while_open(path, store)
    other.memory.clear()
    with pytest.raises(StoreFailed):
        store.get_entries("key")
    put(store, "new")
    with pytest.raises(StoreFailed):
        other.get_entries("key")
    assert len(get(other, "new")) == 1


def open_and_put(path, barrier):
    barrier.wait(30)
    store = DiskStore(path)
    put(store, str(os.getpid()))
    assert len(get(store, str(os.getpid()))) == 1
    store.close()


def test_processes_that_meet_a_corrupt_file_at_once_share_the_new_one(make, path):
    overwrite(kept_file(make, path), 0, b"\xff" * 64)
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    workers = [context.Process(target=open_and_put, args=(path, barrier)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert all(len(get(make(), str(worker.pid))) == 1 for worker in workers)  # nobody wrote into the old one


def test_a_corrupt_file_that_cannot_be_set_aside_is_left_alone_for_a_while(make, path, clock, caplog):
    store = make()
    put(store)
    spoil_while_open(path, store)
    path.with_name("run.db.corrupt").mkdir()
    with pytest.raises(StoreFailed, match="malformed"):
        store.get_entries("key")
    assert get(store) == []
    assert "set aside" not in caplog.text
    clock.now += 61.0
    with pytest.raises(StoreFailed, match="cannot be opened"):
        store.get_entries("key")
    assert get(store) == []
    path.with_name("run.db.corrupt").rmdir()
    clock.now += 61.0
    put(store)
    assert len(get(store)) == 1


def test_what_has_taken_its_place_meanwhile_stays(make, path, monkeypatch):
    overwrite(kept_file(make, path), 0, b"\xff" * 64)
    real = database.alone

    @contextmanager
    def alone(at):
        with real(at):
            path.unlink()
            run_sql(path, "CREATE TABLE mine (a)")  # of another program
            yield

    monkeypatch.setattr(disk, "alone", alone)
    with pytest.raises(ValueError, match="it holds something else"):
        make().open()
    assert run_sql(path, "SELECT count(*) FROM mine") == [[(0,)]]
    assert database.was_ours(path.with_name("gone"))  # one that is being renamed just now


def test_another_programs_file_stays_whatever_lies_beside_it(make, path):
    path.parent.mkdir()
    content = os.urandom(8192)
    path.write_bytes(content)
    path.with_name("run.db.key").write_bytes(b"a passphrase of another program's")
    with pytest.raises(ValueError, match="was left as it is"):
        make().open()
    assert [file.name for file in sorted(path.parent.iterdir())] == ["run.db", "run.db.key"]
    assert path.read_bytes() == content


def test_a_corrupt_file_that_is_gone_is_no_trouble(make, path):
    store = make()
    put(store)
    spoil_while_open(path, store)
    path.unlink()
    with pytest.raises(StoreFailed):
        store.get_entries("key")
    put(store)
    assert len(get(store)) == 1


def test_hishels_own_file_is_another_programs(make, path):
    storage = hishel.SqliteStorage(database_path=path)
    put(storage)
    storage.close()
    with pytest.raises(ValueError, match="is no cache of this version of dspex-pipe"):
        make().open()


def test_what_cannot_be_opened_is_an_error_with_the_reason(make, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"cannot be opened: it is no regular file"):
        make(tmp_path).open()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cannot be opened: .*(Not a directory|File exists)"):
        make(tmp_path / "file" / "run.db").open()

    def chmod(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", chmod)
    (tmp_path / "theirs.db").touch(0o644)
    with pytest.raises(ValueError, match=r"cannot be opened: .*Operation not permitted"):
        make(tmp_path / "theirs.db").open()


def test_a_file_that_may_not_be_written_is_an_error(make, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match="cannot be opened: it may not be written"):
        make().open()


def test_opening_a_file_again_ends_no_lock_of_this_process(make, path, monkeypatch):
    first = make()
    put(first)
    opened = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda *args: opened.append(args) or real(*args))
    make().open()
    assert all(flags & os.O_EXCL for _, flags, *_ in opened)


def test_an_empty_file_is_as_good_as_none(make, path):
    path.parent.mkdir()
    path.touch()
    put(make())
    assert len(get(make())) == 1


def test_it_is_opened_once_and_not_after_it_was_closed(make):
    store = make()
    store.open()
    store.open()
    store.close()
    with pytest.raises(ValueError, match=r"^DiskStore\(.* is closed: make a new one$"):
        store.open()
    make().close()  # one that was never opened


# Memory in front


def test_a_hit_in_memory_touches_no_database(make, path):
    store = make()
    put(store)
    run_sql(path, "DELETE FROM entries")
    assert get(store) == [[b"one", b"two"]]


def test_what_is_read_from_the_file_is_in_memory_then(make, path):
    put(make())
    store = make()
    assert store.memory.get_entries("key") == []
    assert len(get(store)) == 1
    assert len(store.memory.get_entries("key")) == 1
    assert make().memory.max_bytes == 64 * 1024**2


def test_memory_has_all_entries_of_a_key_those_of_other_processes_too(make):
    one, two = make(), make()
    put(one, chunks=[b"a"])
    put(two, chunks=[b"b"])
    assert len(get(two)) == 2


def test_a_ttl_holds_in_memory_too(make, clock):
    put(make(), ttl=10.0)
    store = make()
    assert len(get(store)) == 1
    clock.now += 11.0
    assert store.memory.get_entries("key") == []
    assert get(store) == []


def test_what_was_removed_or_updated_is_never_served_from_memory(make):
    store = make()
    entry, other = put(store), put(store, chunks=[b"other"])
    store.update_headers(entry.id, hishel.Headers({"etag": '"2"'}))
    assert {dict(e.response.headers).get("etag") for e in store.get_entries("key")} == {None, '"2"'}
    store.remove_entry(other.id)
    assert get(store) == [[b"one", b"two"]]
    store.remove_entry(entry.id)
    assert get(store) == get(make()) == []


def test_entries_too_large_for_memory_come_from_the_file(make):
    put(make(), chunks=[b"x" * 400])
    small = make(memory_bytes=480)  # less than body, headers and chunk together
    assert get(small) == get(small) == [[b"x" * 400]]
    assert small.memory.snapshot()["entries"] == 0


def test_a_body_larger_than_our_memory_is_not_read_and_stays_for_others(make):
    put(make(), chunks=[b"x" * 10_000])
    assert get(make(memory_bytes=5_000)) == []
    assert get(make()) == [[b"x" * 10_000]]


def test_large_bodies_are_cut_into_rows_and_come_back_in_their_chunks(make):
    chunks = [b"a" * 300_000, b"b" * 65_536, b"c"]
    put(make(), chunks=chunks)
    assert get(make()) == [chunks]


def test_a_reader_that_keeps_only_the_stream_is_served(make):
    store = make()
    stream = start(store).response.stream
    assert list(stream) == [b"one", b"two"]
    assert len(get(store)) == 1


def test_the_file_stays_within_its_bound(make, path, clock):
    store = make(max_bytes=1024**2, memory_bytes=200_000)
    for number in range(40):
        put(store, str(number), [os.urandom(100_000)])
        clock.now += 20.0
    assert len(get(store, "39")) == 1
    assert get(store, "0") == []
    (((size,),),) = run_sql(
        path,
        "SELECT (page_count - freelist_count) * page_size FROM"
        " pragma_page_count(), pragma_freelist_count(), pragma_page_size()",
    )
    assert size < 1.3 * 1024**2


# What goes wrong later


def test_a_database_that_fails_is_told_once_and_left_alone_for_a_minute(make, path, clock, caplog):
    store = make()
    put(store, "kept")
    entry = put(store)
    store.memory.clear()
    run_sql(path, "ALTER TABLE entries RENAME TO hidden")
    with pytest.raises(StoreFailed, match=r"run.db' fails: no such table: entries"):
        store.get_entries("key")
    assert get(store) == []
    put(store)
    store.remove_entry(entry.id)
    assert not caplog.records  # telling is the caller's business
    run_sql(path, "ALTER TABLE hidden RENAME TO entries")
    assert get(store, "kept") == []
    clock.now += 61.0
    assert len(get(store, "kept")) == 1
    assert get(store) == []  # it could not be removed, and yet is never found
    assert len(get(make())) == 1


def test_a_failure_while_a_body_is_read_is_told(make, path):
    store = make()
    put(store)
    store.memory.clear()
    run_sql(path, "ALTER TABLE streams RENAME TO hidden")
    with pytest.raises(StoreFailed, match="no such table: streams"):
        store.get_entries("key")
    assert get(store) == []


@pytest.mark.parametrize("change", ["remove", "update"])
def test_a_change_that_failed_hides_the_entry(make, path, clock, change):
    store = make()
    entry = put(store)
    run_sql(path, "ALTER TABLE entries RENAME TO hidden")
    work = (
        partial(store.update_headers, headers=hishel.Headers({}))
        if change == "update"
        else store.remove_entry
    )
    with pytest.raises(StoreFailed):
        work(entry.id)
    assert get(store) == []
    run_sql(path, "ALTER TABLE hidden RENAME TO entries")
    clock.now += 61.0
    assert get(store) == []
    store.remove_entry(entry.id)
    assert store._gone == set()


@pytest.mark.parametrize("table", ["entries", "streams"])
def test_a_failure_at_the_end_of_a_stream_is_told_by_the_next_call(make, path, clock, table):
    store = make()
    store.open()
    entry, second = start(store), start(store)
    run_sql(path, f"ALTER TABLE {table} RENAME TO hidden")
    assert list(entry.response.stream) == [b"one", b"two"]
    assert list(second.response.stream) == [b"one", b"two"]
    with pytest.raises(StoreFailed, match="no such table"):
        start(store)
    assert get(store) == []
    run_sql(path, f"ALTER TABLE hidden RENAME TO {table}")
    clock.now += 61.0
    put(store)
    assert len(get(store)) == 1


def test_a_full_disk_keeps_nothing_and_harms_no_reader(make, path):
    store = make()
    put(store, "kept")
    store._opened[1].execute("PRAGMA max_page_count = 1")
    body = [b"x" * 50_000] * 10
    assert list(start(store, chunks=body).response.stream) == body
    with pytest.raises(StoreFailed, match="full"):
        store.get_entries("key")
    assert get(store) == []


def test_a_locked_database_is_a_miss(make, path, clock):
    store = make()
    store.open()
    store._opened[1].execute("PRAGMA busy_timeout = 0")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    put(store)
    with pytest.raises(StoreFailed, match="locked"):
        store.get_entries("key")
    other.execute("COMMIT")
    other.close()
    clock.now += 61.0
    put(store)
    assert len(get(store)) == 1


def test_a_locked_database_is_not_called_foreign_when_it_is_opened(make, path, monkeypatch):
    path.parent.mkdir()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **kw: connect(*a, **{**kw, "timeout": 0.0}))
    with pytest.raises(ValueError, match="cannot be opened: database is locked"):
        make().open()
    other.execute("COMMIT")
    other.close()
    make().open()


def test_a_deleted_file_raises_nothing_else(make, path):
    store = make()
    put(store)
    for file in list(path.parent.iterdir()):
        file.unlink()
    store.memory.clear()
    try:
        put(store)
        get(store)
    except StoreFailed:  # pragma: no cover - as the system has it
        pass
    assert len(get(make())) == 0


def test_a_file_that_cannot_be_opened_harms_no_reader_when_it_was_not_opened_before(make, path):
    path.parent.mkdir()
    path.write_bytes(b"x" * 1000)
    store = make()
    assert list(start(store).response.stream) == [b"one", b"two"]
    with pytest.raises(ValueError, match="delete it"):
        store.get_entries("key")


def test_an_error_of_hishels_is_a_failure_and_the_database_goes_on(make, path):
    store = make()
    entry = put(store)
    run_sql(path, "UPDATE entries SET data = x'c1'")
    with pytest.raises(StoreFailed, match=r"run.db' fails: [A-Za-z]+$"):
        store.update_headers(entry.id, hishel.Headers({}))
    put(store, "another")
    assert len(get(store, "another")) == 1


SPOILT = [
    "UPDATE entries SET data = x'c1'",
    "UPDATE entries SET data = x'80'",
    "UPDATE entries SET data = 7",
    "UPDATE entries SET id = x'01'",
    "UPDATE entries SET id = NULL",
    "UPDATE entries SET last_accessed_at = 'soon'",
    "UPDATE entries SET chunk_count = 1000000",
    "UPDATE entries SET chunk_count = 'many'",
    "UPDATE entries SET chunk_count = 0",
    "DELETE FROM streams",
    "UPDATE streams SET chunk_data = x''",
    "UPDATE streams SET chunk_data = 'text'",
    "UPDATE streams SET chunk_data = 7",
    "UPDATE streams SET chunk_data = zeroblob(100)",
    "UPDATE streams SET chunk_data = substr(chunk_data, 1, length(chunk_data) - 1)",
    "UPDATE streams SET chunk_data = chunk_data || x'00'",
]


@pytest.mark.parametrize("statement", SPOILT)
def test_a_spoilt_entry_is_a_miss_and_a_new_one_takes_its_place(make, path, statement, caplog):
    caplog.set_level(logging.CRITICAL, "hishel")
    put(make())
    run_sql(path, statement)
    store = make()
    assert get(store) == get(store) == []
    put(store, "another")
    assert len(get(store, "another")) == 1


def test_what_hishel_unpacks_is_checked(make, path):
    from hishel._core._storages._packing import pack

    for request, response in [
        (hishel.Request("GET", "u"), hishel.Response("200")),
        (hishel.Request("GET", 7), hishel.Response(200)),
        (hishel.Request("GET", "u"), hishel.Response(200, hishel.Headers({"a": [7]}))),
    ]:
        put(make())
        run_sql(path, ("UPDATE entries SET data = ?", (pack(request, response),)))
        assert get(make()) == []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), column=st.sampled_from(["data", "body"])
)
def test_a_flipped_bit_is_a_miss_or_in_the_headers(tmp_path_factory, where, bit, column):
    path = tmp_path_factory.mktemp("flip") / "run.db"
    store = DiskStore(path)
    put(store, chunks=[b"one", b"two"] * 5)
    table, name = ("entries", "data") if column == "data" else ("streams", "chunk_data")
    (((blob,),),) = run_sql(path, f"SELECT {name} FROM {table}")
    spoilt = bytearray(blob)
    spoilt[int(where * len(blob))] ^= 1 << bit
    run_sql(path, (f"UPDATE {table} SET {name} = ?", (bytes(spoilt),)))
    store.memory.clear()
    logging.disable(logging.CRITICAL)
    try:
        found = get(store)
    finally:
        logging.disable(logging.NOTSET)
        store.close()
    assert found in ([], [[b"one", b"two"] * 5]) if column == "data" else found == []


# Several at once


def test_processes_share_a_file_that_they_all_make_at_once(path, make):
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(3)
    processes = [spawn.Process(target=share, args=(path, number, barrier)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    store = make()
    for turn in range(20):
        assert sorted(chunks[0] for chunks in get(store, str(turn))) == [b"0", b"1", b"2"]


def test_two_that_claim_an_empty_file_at_once_agree(make, path, monkeypatch):
    real = database._claim

    def claim(connection):
        monkeypatch.setattr(database, "_claim", real)
        make().open()
        real(connection)

    monkeypatch.setattr(database, "_claim", claim)
    put(make())
    assert len(get(make())) == 1


def test_an_entry_that_another_process_removes_while_it_is_written_is_not_kept(
    make, path, monkeypatch, caplog
):
    caplog.set_level(logging.CRITICAL, "hishel")
    store = make()
    store.open()
    storage = store._opened[0]
    real = storage.create_entry

    def create(*args, **kwargs):
        entry = real(*args, **kwargs)
        run_sql(path, "DELETE FROM entries")
        return entry

    monkeypatch.setattr(storage, "create_entry", create)
    put(store)
    assert get(store) == []
