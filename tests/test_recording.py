"""Bodies that are kept while their reader reads them."""

import httpx
import pytest

from dspex_pipe.caching.recording import Recording
from dspex_pipe.io import drive


class Body:
    """A body in both modes, which breaks off if it is told to, and then looks like one that has ended."""

    def __init__(self, *pieces: bytes, breaks: bool = False) -> None:
        self.pieces = pieces
        self.breaks = breaks

    def __iter__(self):
        yield from self.pieces
        if self.breaks:
            raise httpx.ReadError("gone")

    async def __aiter__(self):
        for piece in self:
            yield piece

    def close(self) -> None:
        pass


def record(body: Body, limit: int = 100) -> tuple[Recording, list[tuple[bytes, ...]]]:
    kept: list[tuple[bytes, ...]] = []

    async def commit(pieces: tuple[bytes, ...]) -> None:
        kept.append(pieces)

    return Recording(body, commit, limit), kept


def test_a_body_that_is_read_to_its_end_is_kept_once():
    recording, kept = record(Body(b"a", b"b"))
    assert list(recording) == [b"a", b"b"]
    recording.close()
    assert kept == [(b"a", b"b")]


def test_one_that_is_closed_early_or_is_too_long_is_not():
    recording, kept = record(Body(b"a", b"b"))
    assert next(iter(recording)) == b"a"
    recording.close()
    assert kept == []
    recording, kept = record(Body(b"aa", b"b"), limit=2)
    assert list(recording) == [b"aa", b"b"]
    assert kept == []


def test_one_that_broke_off_is_not_kept_though_it_is_asked_again_and_says_that_it_has_ended():
    recording, kept = record(Body(b"half", breaks=True))
    chunks = iter(recording)
    assert next(chunks) == b"half"
    with pytest.raises(httpx.ReadError):
        next(chunks)
    with pytest.raises(StopIteration):
        next(chunks)
    assert kept == []


def test_the_same_in_async_modes():
    recording, kept = record(Body(b"half", breaks=True))
    chunks = recording.__aiter__()
    assert drive(chunks.__anext__()) == b"half"
    with pytest.raises(httpx.ReadError):
        drive(chunks.__anext__())
    with pytest.raises(StopAsyncIteration):
        drive(chunks.__anext__())
    assert kept == []
