"""Shorthands for the tests of stores."""

from __future__ import annotations

import time

import hishel
import pytest

from dspex_pipe.stores.disk import DiskStore

TEXT = {"content-type": "text/plain"}


def start(store, key="key", chunks=(b"one", b"two"), *, headers=TEXT, url="https://a.test/", **limits):
    """An entry whose body is yet to be read."""
    request = hishel.Request("GET", url, hishel.Headers({"accept": "*/*"}))
    return store.create_entry(
        request, hishel.Response(200, hishel.Headers(headers), iter(chunks)), key, **limits
    )


def put(store, *args, **kwargs):
    """An entry that is kept."""
    entry = start(store, *args, **kwargs)
    list(entry.response.stream)
    return entry


def get(store, key="key"):
    """The bodies of a key, in chunks."""
    return [list(entry.response.stream) for entry in store.get_entries(key)]


def share(path, number, barrier):
    """One of several processes that use a file from the same moment on."""
    store = DiskStore(path)
    barrier.wait()
    for turn in range(20):
        put(store, str(turn), [str(number).encode()] * 3)
        for chunks in get(store, str(turn)):
            assert len(chunks) == 3
            assert len(set(chunks)) == 1
    store.close()


class Clock:
    """Both clocks, moved by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_800_000_000.0
        for name in ("time", "monotonic"):
            monkeypatch.setattr(time, name, lambda: self.now)
