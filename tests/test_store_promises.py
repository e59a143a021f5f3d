"""What hishel's ``BaseStorage`` promises, from both stores."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import hishel
import pytest

from dspex_pipe.stores.disk import DiskStore
from dspex_pipe.stores.memory import MemoryStore
from storing import Clock, get, put, start


@pytest.fixture(params=["memory", "disk", "disk without memory"])
def store(request, tmp_path, monkeypatch):
    if request.param == "memory":
        store = MemoryStore(max_bytes=100_000)
    else:
        store = DiskStore(tmp_path / "run.db", memory_bytes=100_000)
    if request.param == "disk without memory":
        monkeypatch.setattr(store.memory, "fill", lambda key, group: None)
    store.open()
    yield store
    store.close()


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_it_is_a_storage_of_hishels(store):
    assert isinstance(store, hishel.BaseStorage)


def test_an_entry_comes_back_as_it_was_given(store):
    headers = {"content-type": "text/plain", "via": ["1.1 a", "1.1 b"]}
    made = put(store, headers=headers)
    (entry,) = store.get_entries("key")
    assert (entry.id, entry.request) == (made.id, made.request)
    assert entry.response.status_code == 200
    assert entry.response.headers == hishel.Headers(headers)
    assert entry.response.headers.get_list("via") == ["1.1 a", "1.1 b"]
    assert store.get_entries("another") == []


@pytest.mark.parametrize(
    "chunks", [[], [b""], [b"a"], [b"a", b"", b"bc"], [b"x" * 1000] * 50, [b"\n", b"{}"]]
)
def test_a_body_comes_back_in_its_chunks_as_often_as_it_is_asked_for(store, chunks):
    put(store, chunks=chunks)
    assert get(store) == get(store) == [chunks]


def test_chunks_are_bytes_whatever_they_came_as(store):
    chunk = bytearray(b"abc")
    put(store, chunks=[chunk])
    chunk[:] = b"xyz"
    assert get(store) == [[b"abc"]]


def test_a_response_without_a_stream_has_an_empty_body(store):
    entry = store.create_entry(hishel.Request("HEAD", "https://a.test/"), hishel.Response(204), "key")
    assert list(entry.response.stream) == []
    assert get(store) == [[]]


def test_a_stream_of_the_wrong_kind_is_an_error(store):
    class Later:
        def __aiter__(self):
            return self  # pragma: no cover

    with pytest.raises(TypeError, match="not iterable"):
        store.create_entry(
            hishel.Request("GET", "https://a.test/"), hishel.Response(200, stream=Later()), "key"
        )


def test_it_is_visible_only_after_the_body_was_read_to_its_end(store):
    entry = start(store)
    stream = entry.response.stream
    assert get(store) == []
    assert next(stream) == b"one"
    assert next(stream) == b"two"
    assert get(store) == []  # it might have gone on
    assert list(stream) == []
    assert get(store) == [[b"one", b"two"]]
    assert list(stream) == []  # asked again, it has still ended, and nothing is kept twice
    assert len(get(store)) == 1


def test_a_body_that_breaks_off_is_not_kept(store):
    class Breaking:
        asked = 0

        def __iter__(self):
            return self

        def __next__(self):
            self.asked += 1
            if self.asked == 2:
                raise OSError("gone")
            if self.asked == 3:
                raise StopIteration
            return b"one"

    stream = start(store, chunks=Breaking()).response.stream
    assert next(stream) == b"one"
    with pytest.raises(OSError, match="gone"):
        next(stream)
    assert list(stream) == []
    assert get(store) == []


def test_a_body_that_is_left_early_is_not_kept_and_closed(store):
    closed = []

    def body():
        try:
            yield from [b"one", b"two"]
        finally:
            closed.append(True)

    stream = start(store, chunks=body()).response.stream
    next(stream)
    stream.close()
    assert closed == [True]
    assert list(stream) == []
    assert get(store) == []
    start(store, chunks=[b"no close() here"]).response.stream.close()


def test_a_body_over_the_bound_still_reaches_its_reader(store):
    chunks = [b"x" * 1000] * 101
    put(store, key="small")
    assert list(start(store, chunks=chunks).response.stream) == chunks
    assert get(store) == []
    assert len(get(store, "small")) == 1


def test_what_it_hands_out_and_takes_is_its_own(store):
    headers = hishel.Headers({"etag": '"1"'})
    made = store.create_entry(
        hishel.Request("GET", "https://a.test/"), hishel.Response(200, headers, None), "key"
    )
    headers["etag"] = "changed"
    made.response.headers["etag"] = "changed"
    list(made.response.stream)
    (entry,) = store.get_entries("key")
    entry.response.headers["etag"] = "changed"
    entry.request.headers["accept"] = "changed"
    (entry,) = store.get_entries("key")
    assert entry.response.headers["etag"] == '"1"'
    assert dict(entry.request.headers) == {}


def test_a_key_has_many_entries(store):
    for chunk in (b"a", b"b", b"c"):
        put(store, chunks=[chunk])
    assert sorted(get(store)) == [[b"a"], [b"b"], [b"c"]]


def test_headers_are_replaced_and_the_body_stays(store):
    put(store, chunks=[b"other"])
    entry = put(store)
    store.update_headers(entry.id, hishel.Headers({"etag": '"2"'}))
    found = {e.id: e for e in store.get_entries("key")}
    assert len(found) == 2
    assert dict(found[entry.id].response.headers) == {"etag": '"2"'}
    assert list(found[entry.id].response.stream) == [b"one", b"two"]


def test_headers_are_replaced_while_the_body_is_read(store):
    entry = start(store)
    store.update_headers(entry.id, hishel.Headers({"etag": '"2"'}))
    list(entry.response.stream)
    assert dict(store.get_entries("key")[0].response.headers) == {"etag": '"2"'}


def test_what_is_removed_is_not_found_and_its_readers_read_on(store):
    other, entry = put(store, chunks=[b"other"]), put(store)
    readers = [e.response.stream for e in store.get_entries("key")]
    store.remove_entry(entry.id)
    assert get(store) == [[b"other"]]
    assert sorted(list(reader) for reader in readers) == [[b"one", b"two"], [b"other"]]
    store.remove_entry(other.id)
    assert get(store) == []


def test_what_is_removed_while_its_body_is_read_does_not_come_back(store):
    entry = start(store)
    store.remove_entry(entry.id)
    assert list(entry.response.stream) == [b"one", b"two"]
    assert get(store) == []


def test_changing_what_is_not_there_does_nothing(store):
    store.remove_entry(uuid4())
    store.update_headers(uuid4(), hishel.Headers({}))
    entry = put(store)
    store.remove_entry(entry.id)
    store.remove_entry(entry.id)
    store.update_headers(entry.id, hishel.Headers({}))
    assert get(store) == []


def test_it_expires_by_its_ttl_counted_from_the_call(store, clock):
    entry = start(store, ttl=10.0)
    clock.now += 4.0
    list(entry.response.stream)
    clock.now += 5.9
    assert len(get(store)) == 1
    clock.now += 0.2
    assert get(store) == []


def test_a_ttl_that_ends_while_the_body_is_read_keeps_nothing(store, clock):
    entry = start(store, ttl=10.0)
    clock.now += 11.0
    assert list(entry.response.stream) == [b"one", b"two"]
    assert get(store) == []


def test_it_expires_by_its_tti_counted_from_the_last_use(store, clock):
    put(store, tti=100.0)
    for _ in range(3):
        clock.now += 90.0
        assert len(get(store)) == 1
    clock.now += 101.0
    assert get(store) == []


def test_it_expires_by_whichever_comes_first(store, clock):
    put(store, ttl=150.0, tti=100.0)
    clock.now += 90.0
    assert len(get(store)) == 1
    clock.now += 70.0
    assert get(store) == []


def test_without_limits_it_stays(store, clock):
    put(store)
    clock.now += 1e9
    assert len(get(store)) == 1


def test_of_several_only_the_expired_go(store, clock):
    put(store, chunks=[b"short"], ttl=10.0)
    put(store, chunks=[b"long"], ttl=20.0)
    clock.now += 15.0
    assert get(store) == [[b"long"]]


def test_a_closed_store_finds_and_keeps_nothing(store):
    entry, late = put(store), start(store, chunks=[b"late"])
    store.close()
    store.close()
    assert list(late.response.stream) == [b"late"]
    put(store)
    store.remove_entry(entry.id)
    store.update_headers(entry.id, hishel.Headers({}))
    assert get(store) == []


def test_threads_share_it(store):
    def work(number):
        key = f"key {number % 4}"
        for turn in range(10):
            body = [bytes([number])] * (turn + 1)
            entry = put(store, key, body)
            for found in get(store, key):
                assert len(set(found)) == 1
            store.update_headers(entry.id, hishel.Headers({"etag": str(turn)}))
            store.remove_entry(entry.id)
        return time.monotonic()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert [get(store, f"key {number}") for number in range(4)] == [[]] * 4
