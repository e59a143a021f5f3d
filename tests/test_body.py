"""Bodies: copies of requests, what can be sent twice, looking into responses, and letting go of them."""

from __future__ import annotations

import gzip
import io as stdio
import tracemalloc
import zlib
from types import SimpleNamespace

import brotli
import pytest
import trio
import zstandard

from dspex_pipe import Pipeline
from dspex_pipe.body import Ending, copy_request, decoded, discard, is_buffered, is_replayable, tap
from dspex_pipe.testing import Reply, Script, VirtualIO

URL = "http://a.test/"
MIB = 1 << 20


def buffered(http, raw, encoding=None):
    """A response as it is once its raw body was read inside the stack."""
    headers = {"content-encoding": encoding} if encoding else {}
    return http.Response(429, headers=headers, stream=http.ByteStream(raw))


class Wire:
    """One scripted response, on a virtual clock."""

    def __init__(self, http, **reply):
        self.io = VirtualIO()
        self.script = Script(Reply(status=503, **reply), io=self.io)
        self.response = self.io.run(self.script(http.Request("GET", URL)))

    def discard(self):
        self.io.run(discard(self.response, self.io))

    @property
    def closes(self):
        return self.script.bodies[0].closes


# copy_request


def test_a_copy_shares_the_body_but_neither_headers_nor_extensions(http):
    request = http.Request("POST", URL, json={"a": 1}, headers={"x-a": "1"}, extensions={"timeout": {}})
    twin = copy_request(request)
    twin.headers["x-a"] = "2"
    twin.extensions["dspex"] = "mine"
    assert type(twin) is type(request)
    assert twin.stream is request.stream
    assert (twin.method, twin.url, twin.content) == (request.method, request.url, request.content)
    assert request.headers["x-a"] == "1"
    assert "dspex" not in request.extensions


def test_a_copy_of_an_unread_stream_stays_unread(http):
    request = http.Request("POST", URL, content=iter([b"a"]))
    assert copy_request(request).stream is request.stream
    assert b"".join(request.stream) == b"a"


# is_replayable


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"content": b"x"},
        {"content": "x"},
        {"json": {"a": 1}},
        {"data": {"a": "1"}},
        {"data": {"a": "1"}, "files": {"one": b"x", "other": ("name", "text", "text/plain")}},
    ],
    ids=repr,
)
def test_a_body_in_memory_can_be_sent_again(http, kwargs):
    assert is_replayable(http.Request("POST", URL, **kwargs))


async def pieces():
    yield b"x"


@pytest.mark.parametrize(
    "make",
    [
        lambda: {"content": (piece for piece in [b"x"])},
        lambda: {"content": pieces()},
        lambda: {"content": stdio.BytesIO(b"x")},
        lambda: {"files": {"file": ("a.txt", stdio.BytesIO(b"x"))}},
        lambda: {"files": {"one": b"x", "file": ("a.txt", stdio.BytesIO(b"x"))}},
    ],
    ids=["generator", "async generator", "file", "multipart", "multipart, in part"],
)
def test_a_body_that_is_used_up_by_sending_cannot_be_sent_again(http, make):
    assert not is_replayable(http.Request("POST", URL, **make()))


def test_an_open_file_cannot_be_sent_again(http, tmp_path):
    path = tmp_path / "body"
    path.write_bytes(b"x")
    with path.open("rb") as file:
        assert not is_replayable(http.Request("PUT", URL, content=file))


def test_a_stream_that_was_read_into_memory_can_be_sent_again(http):
    request = http.Request("POST", URL, content=iter([b"a", b"b"]))
    request.read()
    assert is_replayable(request)


# decoded


def raw_deflate(data):
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    ("raw", "encoding"),
    [
        (b'{"a": 1}', None),
        (b'{"a": 1}', "identity"),
        (gzip.compress(b'{"a": 1}', mtime=0), "gzip"),
        (zlib.compress(b'{"a": 1}'), "deflate"),
        (raw_deflate(b'{"a": 1}'), "deflate"),
    ],
    ids=["plain", "identity", "gzip", "deflate", "raw deflate"],
)
def test_a_body_is_decompressed_and_its_raw_bytes_stay_as_they_were(http, raw, encoding):
    response = buffered(http, raw, encoding)
    before = response.headers.raw
    assert decoded(response) == b'{"a": 1}'
    assert b"".join(response.stream) == raw
    assert response.headers.raw == before
    response.read()
    assert response.json() == {"a": 1}


@pytest.mark.parametrize(
    "raw", [b"no gzip", gzip.compress(b"x" * 5000)[:-4] + b"oops"], ids=["never", "checksum"]
)
def test_a_spoilt_body_is_no_body_and_stays_as_it_was(http, raw):
    response = buffered(http, raw, "gzip")
    assert decoded(response) is None
    assert b"".join(response.stream) == raw


@pytest.mark.parametrize("encoding", [None, "gzip"])
@pytest.mark.parametrize(("size", "seen"), [(MIB, True), (MIB + 1, False), (3 * MIB, False)])
def test_at_most_a_mebibyte_is_looked_at(http, size, seen, encoding):
    body = bytes(size)
    found = decoded(buffered(http, gzip.compress(body) if encoding else body, encoding))
    assert found == (body if seen else None)


def test_a_body_compressed_twice_is_not_looked_into_and_stays_as_it_was(http):
    raw = gzip.compress(zlib.compress(b'{"a": 1}'))
    response = buffered(http, raw, "deflate, gzip")
    assert decoded(response) is None
    assert b"".join(response.stream) == raw
    response.read()
    assert response.json() == {"a": 1}


@pytest.mark.parametrize("codings", [["gzip"], ["gzip", "gzip"], ["br"], ["zstd"]], ids=", ".join)
def test_a_bomb_stays_small(http, codings):
    bomb = bytes(64 * MIB)
    for coding in codings:
        bomb = {"gzip": gzip.compress, "br": brotli.compress, "zstd": zstandard.compress}[coding](bomb)
    response = buffered(http, bomb, ", ".join(codings))
    tracemalloc.start()
    try:
        assert decoded(response) is None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * MIB


def test_a_stream_is_not_looked_into(http):
    wire = Wire(http, chunks=[b"a", b"b"])
    assert not is_buffered(wire.response)
    assert decoded(wire.response) is None
    assert wire.script.open == 1
    assert wire.io.run(wire.io.read(wire.response)) == b"ab"
    assert is_buffered(wire.response)


# discard


@pytest.mark.parametrize("size", [0, 1, 1 << 16])
def test_a_short_body_of_known_length_is_read_to_its_end(http, size):
    wire = Wire(http, content=bytes(size), pause=0.5 if size else 0)
    wire.discard()
    assert wire.io.now() == (0.5 if size else 0)  # it was read, not just closed
    assert wire.closes == 1


@pytest.mark.parametrize(
    "length",
    [
        None,
        str((1 << 16) + 1),
        "-1",
        "many",
        "5, 5",
        "²",
        pytest.param("9" * 5000, id="5000 digits"),
    ],
)
def test_a_body_of_long_or_unknown_length_is_closed_unread(http, length):
    headers = {} if length is None else {b"content-length": length.encode()}
    wire = Wire(http, chunks=[b"busy"], pause=0.5, headers=headers)
    wire.discard()
    assert wire.io.now() == 0
    assert wire.closes == 1


def test_a_slow_drip_is_cut_after_a_second(http):
    wire = Wire(http, chunks=[b"x"] * 1000, pause=0.3, headers={"content-length": "1000"})
    wire.discard()
    assert wire.io.now() == pytest.approx(1.2)
    assert wire.closes == 1


@pytest.mark.parametrize("error", ["ReadError", "ReadTimeout", "RemoteProtocolError"])
def test_a_body_that_breaks_off_is_closed_and_nobody_hears_of_it(http, error):
    wire = Wire(http, chunks=[b"x"], error=error, headers={"content-length": "9"})
    wire.discard()
    assert wire.closes == 1


def test_any_other_error_of_a_body_is_told_and_the_body_closed(http):
    wire = Wire(http, chunks=[b"x"], error=ZeroDivisionError("a bug"), headers={"content-length": "9"})
    with pytest.raises(ZeroDivisionError):
        wire.discard()
    assert wire.closes == 1


def twice(first):
    """A layer that drops the answer of one path, and then asks for the one it was asked for."""

    async def layer(request, call_next, io):
        probe = copy_request(request)
        probe.url = request.url.join(first)
        dropped = await call_next(probe)
        assert not is_buffered(dropped)
        await discard(dropped, io)
        return await call_next(request)

    return Pipeline([layer])


@pytest.mark.parametrize(("dropped", "connections"), [("/status?fault=html", 1), ("/watch", 2)])
def test_a_short_body_gives_its_connection_back_and_an_endless_one_is_cut_off(
    world, provider, dropped, connections
):
    async def main():
        async with world.client(twice(dropped)) as client:
            assert (await client.get(f"{provider.url}/status?fault=ok")).status_code == 200

    world.run(main)
    assert provider.calls == 2
    assert provider.connections == connections


# tap


class Ear:
    """An observer that remembers."""

    def __init__(self):
        self.heard = []
        self.endings = []

    def feed(self, chunk):
        self.heard.append(chunk)

    def end(self, ending, error):
        self.endings.append((ending, type(error).__name__))


def listen(world, body, *, read, **reply):
    """What an observer of a response hears while ``read(client, response)`` deals with it."""
    ear = Ear()

    async def tapped(request, call_next):
        response = await call_next(request)
        tap(response, ear)
        return response

    script = Script(Reply(chunks=body, **reply), io=VirtualIO())

    async def main():
        async with world.client([tapped], transport=script, io=script.io) as client:
            return await read(client, await client.open("GET", URL))

    read_body = world.run(main)
    return SimpleNamespace(ear=ear, script=script, body=read_body)


async def whole(client, response):
    return await client.read(response)


async def one(client, response):
    piece = await client.read_one(response)
    await client.drop(response)
    await client.drop(response)
    return piece


async def none(client, response):
    await client.drop(response)


def test_an_observer_hears_the_whole_body_and_its_end_once(world):
    told = listen(world, [b"a", b"b"], read=whole)
    assert told.body == b"ab"
    assert told.ear.heard == [b"a", b"b"]
    assert told.ear.endings == [(Ending.COMPLETE, "NoneType")]


@pytest.mark.parametrize(("read", "heard"), [(one, [b"a"]), (none, [])])
def test_an_observer_hears_that_the_reader_left(world, read, heard):
    told = listen(world, [b"a", b"b"], read=read)
    assert told.ear.heard == heard
    assert told.ear.endings == [(Ending.CLOSED, "NoneType")]
    assert told.script.open == 0


def test_an_observer_hears_that_a_body_broke_off_and_so_does_the_reader(world):
    async def broken(client, response):
        with pytest.raises(world.http.ReadError):
            await client.read(response)

    told = listen(world, [b"a"], error="ReadError", read=broken)
    assert told.ear.heard == [b"a"]
    assert told.ear.endings == [(Ending.BROKEN, "ReadError")]


def test_an_observer_hears_that_the_reader_was_interrupted(world):
    async def interrupted(client, response):
        with pytest.raises(KeyboardInterrupt):
            await client.read(response)

    told = listen(world, [b"a"], error=KeyboardInterrupt(), read=interrupted)
    assert told.ear.endings == [(Ending.CANCELLED, "NoneType")]


def test_a_body_in_memory_has_gone_by_already(http):
    ear, response = Ear(), buffered(http, b"ab")
    tap(response, ear)
    assert (ear.heard, ear.endings) == ([b"ab"], [(Ending.COMPLETE, "NoneType")])
    assert response.read() == b"ab"


def test_an_observer_hears_of_a_body_that_was_dropped_and_so_does_the_user(http):
    ear, wire = Ear(), Wire(http, chunks=[b"a"])
    tap(wire.response, ear)
    wires = [wire]
    del wire
    with pytest.warns(ResourceWarning, match="dropped without being read to its end or closed"):
        wires.clear()
    assert ear.endings == [(Ending.DROPPED, "NoneType")]


def test_an_async_body_is_closed_with_the_generator_that_reads_it(http):
    closed = []

    class Stream(http.AsyncByteStream):
        async def __aiter__(self):
            try:
                yield b"a"
                yield b"b"
            finally:
                closed.append("generator")

        async def aclose(self):
            closed.append("stream")

    async def main():
        response = http.Response(200, stream=Stream())
        tap(response, ear)
        assert await anext(response.stream.__aiter__()) == b"a"
        await response.stream.aclose()

    ear = Ear()
    trio.run(main)
    assert closed == ["generator", "stream"]
    assert ear.endings == [(Ending.CLOSED, "NoneType")]
