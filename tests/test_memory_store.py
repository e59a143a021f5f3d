"""The store in memory: its bounds, its cost, and a state machine against a naive model."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import hishel
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from dspex_pipe.caching.storage import Saved, Storage
from dspex_pipe.io import BLOCKING, drive
from dspex_pipe.stores.memory import MemoryStore
from storing import get, put, start

# key, URL, the accept header of `start`, and its content type
FIXED = len("key") + len("https://a.test/") + len("accept*/*") + len("content-typetext/plain")


def test_importing_and_making_it_does_not_import_hishel():
    code = (
        "import sys; from dspex_pipe.stores.disk import DiskStore;"
        "from dspex_pipe.stores.memory import MemoryStore;"
        "store = MemoryStore(); DiskStore('run.db'); assert 'hishel' not in sys.modules;"
        "assert store.get_entries('key') == []; assert 'hishel' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["max_bytes", "max_entries"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "1", None])
def test_a_bad_bound_says_what_is_allowed(name, value):
    with pytest.raises(ValueError, match=rf"^MemoryStore\({name}=…\) takes a whole number, 1 or more, got "):
        MemoryStore(**{name: value})


def test_its_repr_shows_what_differs_and_its_bounds_stay():
    assert repr(MemoryStore()) == "MemoryStore()"
    store = MemoryStore(max_entries=5)
    assert repr(store) == "MemoryStore(max_entries=5)"
    with pytest.raises(AttributeError):
        store.max_entries = 6
    assert store != MemoryStore(max_entries=5)


def test_bytes_are_body_headers_url_key_and_64_for_each_chunk():
    store = MemoryStore()
    put(store, chunks=[b"x" * 10, b"y" * 5])
    assert store.snapshot() == {"entries": 1, "bytes": FIXED + 15 + 2 * 64}


def test_an_entry_that_just_fits_is_kept_and_one_byte_more_is_not():
    store = MemoryStore(max_bytes=FIXED + 64 + 10)
    put(store, chunks=[b"x" * 10])
    assert len(get(store)) == 1
    store.close()
    store = MemoryStore(max_bytes=FIXED + 64 + 10)
    put(store, "kez", chunks=[b"x" * 9])
    put(store, chunks=[b"x" * 11])
    assert get(store) == []
    assert len(get(store, "kez")) == 1  # what cannot be kept drives nothing out


def test_the_key_used_longest_ago_goes_first_with_all_its_entries():
    store = MemoryStore(max_entries=4)
    put(store, "a")
    put(store, "a")
    put(store, "b")
    put(store, "c")
    get(store, "a")
    put(store, "d")
    assert [len(get(store, key)) for key in "abcd"] == [2, 0, 1, 1]
    get(store, "c")
    get(store, "d")
    put(store, "e")
    assert [len(get(store, key)) for key in "abcde"] == [0, 0, 1, 1, 1]


def test_a_key_that_fills_the_store_alone_loses_its_oldest_entries():
    store = MemoryStore(max_entries=2)
    for chunk in (b"a", b"b", b"c"):
        put(store, chunks=[chunk])
    assert get(store) == [[b"b"], [b"c"]]


def test_headers_that_outgrow_the_bound_take_the_entry_with_them():
    store = MemoryStore(max_bytes=1000)
    entry = put(store)
    store.update_headers(entry.id, hishel.Headers({"long": "x" * 1000}))
    assert get(store) == []
    assert store.snapshot() == {"entries": 0, "bytes": 0}


def test_a_byte_at_a_time_stays_within_the_bound():
    store = MemoryStore(max_bytes=65 * 1000)
    put(store, chunks=[b"x"] * 1001)
    assert get(store) == []


def test_what_is_begun_and_dropped_leaves_nothing_behind():
    store = MemoryStore()
    entries = [start(store) for _ in range(10)]
    assert len(store._writing) == 10
    del entries
    assert len(store._writing) == 0


def test_ever_new_keys_stay_within_the_bounds():
    store = MemoryStore(max_bytes=1_000_000, max_entries=500)
    for number in range(20_000):
        put(store, str(number), [b"x"])
    assert store.snapshot()["entries"] == 500
    assert len(store._groups) == len(store._kept) == 500
    assert get(store, "19999") == [[b"x"]]


def test_filled_from_behind_it_has_all_entries_of_a_key_or_none():
    source = MemoryStore()
    for chunk in (b"a", b"b", b"c"):
        put(source, chunks=[chunk])
    group = list(source._groups["key"].values())
    for bounds in ({"max_entries": 2}, {"max_bytes": 200}):
        store = MemoryStore(**bounds)
        put(store, chunks=[b"x"])
        store.fill("key", group)
        assert get(store) == []
    store = MemoryStore(max_entries=3)
    put(store, "another")
    store.fill("key", group)
    store.fill("key", group)
    assert get(store) == [[b"a"], [b"b"], [b"c"]]
    store.forget(group[0].id)
    store.forget(group[0].id)
    assert store.snapshot() == {"entries": 0, "bytes": 0}
    store.fill("key", group)
    store.clear()
    assert store.snapshot() == {"entries": 0, "bytes": 0}


def test_threads_that_write_and_read_find_only_whole_bodies_within_the_bounds():
    store = MemoryStore(max_bytes=20_000, max_entries=20)

    def work(number):
        for turn in range(200):
            put(store, str(turn % 30), [bytes([number])] * 20)
            for chunks in get(store, str((turn * 7) % 30)):
                assert len(chunks) == 20
                assert len(set(chunks)) == 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    found = store.snapshot()
    assert 0 < found["entries"] <= 20
    assert found["bytes"] == sum(kept.size for kept in store._kept.values()) <= 20_000


class StoreMachine(RuleBasedStateMachine):
    """Against a list of keys, the one used longest ago first, each with a list of entries."""

    BYTES, ENTRIES = 1500, 5
    keys = st.sampled_from(["a", "b", "c"])
    reading = Bundle("reading")
    whole = Bundle("whole")

    def __init__(self):
        super().__init__()
        self.store = MemoryStore(max_bytes=self.BYTES, max_entries=self.ENTRIES)
        self.model: list[tuple[str, list[dict]]] = []

    # the model

    def size(self, entry):
        headers = {"accept": "*/*", **entry["headers"]}
        text = len(entry["key"]) + len("https://a.test/") + sum(len(n) + len(v) for n, v in headers.items())
        return text + sum(len(chunk) + 64 for chunk in entry["chunks"])

    def all(self):
        return [entry for _, entries in self.model for entry in entries]

    def add(self, entry):
        if self.size(entry) > self.BYTES:
            return
        entries = next((entries for key, entries in self.model if key == entry["key"]), [])
        self.model = [pair for pair in self.model if pair[0] != entry["key"]]
        self.model.append((entry["key"], [*entries, entry]))
        while sum(map(self.size, self.all())) > self.BYTES or len(self.all()) > self.ENTRIES:
            if len(self.model) > 1:
                self.model.pop(0)
            else:
                self.model[0][1].pop(0)

    def remove(self, entry_id):
        gone = [entry for entry in self.all() if entry["id"] == entry_id]
        self.model = [(key, [e for e in entries if e["id"] != entry_id]) for key, entries in self.model]
        self.model = [(key, entries) for key, entries in self.model if entries]
        return gone

    # the rules

    @rule(
        target=reading,
        key=keys,
        chunks=st.lists(st.sampled_from([b"", b"x", b"y" * 50, b"z" * 400, b"w" * 1500]), max_size=4),
    )
    def begin(self, key, chunks):
        entry = start(self.store, key, chunks)
        return {
            "entry": entry,
            "id": entry.id,
            "key": key,
            "chunks": chunks,
            "headers": {"content-type": "text/plain"},
        }

    @rule(one=reading)
    def read_a_chunk(self, one):
        done = one.setdefault("read", [])
        if len(done) < len(one["chunks"]):
            done.append(next(one["entry"].response.stream))
            assert done == one["chunks"][: len(done)]

    @rule(target=whole, one=consumes(reading))
    def read_to_the_end(self, one):
        assert [*one.get("read", []), *one["entry"].response.stream] == one["chunks"]
        if not one.get("removed"):
            self.add(one)
        return one["id"]

    @rule(one=consumes(reading))
    def leave_early(self, one):
        one["entry"].response.stream.close()

    @rule(one=reading, value=st.sampled_from(["1", "2" * 100]))
    def update_while_it_is_read(self, one, value):
        self.store.update_headers(one["id"], hishel.Headers({"etag": value}))
        one["headers"] = {"etag": value} if not one.get("removed") else one["headers"]

    @rule(one=reading)
    def remove_while_it_is_read(self, one):
        self.store.remove_entry(one["id"])
        one["removed"] = True

    @rule(entry_id=whole)
    def remove_one(self, entry_id):
        self.store.remove_entry(entry_id)
        self.remove(entry_id)

    @rule(entry_id=whole, value=st.sampled_from(["1", "2" * 100, "3" * 1500]))
    def update_one(self, entry_id, value):
        self.store.update_headers(entry_id, hishel.Headers({"etag": value}))
        for entry in self.remove(entry_id):
            # in its place, or at the end if its key has no others: `add` puts the key at the end either way
            self.add({**entry, "headers": {"etag": value}})

    @rule(key=keys)
    def get(self, key):
        entries = next((entries for k, entries in self.model if k == key), [])
        found = [
            (entry.id, list(entry.response.stream), dict(entry.response.headers))
            for entry in self.store.get_entries(key)
        ]
        assert found == [(entry["id"], entry["chunks"], entry["headers"]) for entry in entries]
        self.model.sort(key=lambda pair: pair[0] == key)

    @invariant()
    def bounds_hold(self):
        found = self.store.snapshot()
        assert found["entries"] == len(self.all()) <= self.ENTRIES
        assert found["bytes"] == sum(map(self.size, self.all())) <= self.BYTES


TestStoreMachine = StoreMachine.TestCase


def test_what_is_not_of_our_making_is_no_answer_and_a_closed_store_keeps_none():
    store = MemoryStore()
    storage = Storage(store)
    put(store)
    assert drive(storage.load("key", BLOCKING)) == drive(storage.find("key", BLOCKING)) == []
    saved = Saved(200, (("a", "b"),), (b"one",), 0.0)
    assert drive(storage.save("key", saved, BLOCKING, asked=None, ttl=None, old=None))
    assert drive(storage.find("key", BLOCKING)) == [saved]
    assert [kept.saved for kept in drive(storage.load("key", BLOCKING))] == [saved]
    store.close()
    drive(storage.save("key", saved, BLOCKING, asked=None, ttl=None, old=None))
    assert drive(storage.find("key", BLOCKING)) == []


def test_a_subclass_is_asked_for_each_entry():
    class Blind(MemoryStore):
        def get_entries(self, key):
            return []

    storage, saved = Storage(Blind()), Saved(200, (("a", "b"),), (b"one",), 0.0)
    drive(storage.save("key", saved, BLOCKING, asked=None, ttl=None, old=None))
    assert drive(storage.find("key", BLOCKING)) == []


def test_what_is_unpacked_once_takes_no_room_of_its_own():
    store = MemoryStore()
    first, second = Storage(store), Storage(store)
    saved = Saved(200, (("content-type", "text/event-stream"),), (b"x" * 999, b"y" * 999), 0.0)
    drive(
        first.save(
            "key", saved, BLOCKING, asked=hishel.Request(method="GET", url="http://a/"), ttl=None, old=[]
        )
    )
    (kept,) = store.find("key")
    (found,) = drive(second.find("key", BLOCKING))
    assert found == saved
    assert all(ours is theirs for ours, theirs in zip(found.pieces, kept.chunks, strict=True))
