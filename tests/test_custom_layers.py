"""Layers of one's own, and the errors that name them when they break the contract."""

from __future__ import annotations

import asyncio
import gc
import inspect
import json

import anyio
import httpx
import httpx2
import pytest
import trio

from dspex_pipe import (
    Breaker,
    BreakerOpen,
    LayerError,
    Pipeline,
    Suspended,
    build_async_client,
    build_client,
    respond,
)
from dspex_pipe.testing import Reply, Script, VirtualIO


async def sleepy(request, call_next):
    await asyncio.sleep(3600)
    return await call_next(request)


async def deep(request, call_next):
    async def helper():
        await asyncio.Event().wait()

    await helper()
    return await call_next(request)


async def stubborn(request, call_next):
    """Awaits again and again while it is being closed."""
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        for _ in range(3):
            try:
                await asyncio.sleep(0)
            except GeneratorExit:
                continue
            finally:
                await asyncio.sleep(0)


def line_of(function, text):
    lines, first = inspect.getsourcelines(function)
    return first + next(number for number, line in enumerate(lines) if text in line)


@pytest.mark.parametrize(
    ("layer", "text"),
    [(sleepy, "asyncio.sleep(3600)"), (deep, "await helper()"), (stubborn, "create_future")],
    ids=["sleepy", "deep", "stubborn"],
)
def test_a_suspension_under_a_blocking_client_names_layer_file_and_line(layer, text, recwarn):
    async def main():  # inside a running loop, where awaiting really suspends
        with pytest.raises(Suspended) as caught:
            build_client([passes, layer], transport=Script(200)).get("http://x.test/")
        return str(caught.value)

    message = asyncio.run(main())
    assert f"layer {layer.__name__} (" in message
    assert f'"{__file__}", line {line_of(layer, text)}' in message
    assert "io.sleep" in message
    gc.collect()
    assert [str(w.message) for w in recwarn] == []  # no coroutine was left un-awaited


async def passes(request, call_next):
    return await call_next(request)


@pytest.mark.parametrize("sleep", [asyncio.sleep, anyio.sleep, trio.sleep], ids=lambda f: f.__module__)
def test_without_a_loop_the_same_error_names_the_layer(sleep):
    async def napping(request, call_next):
        await sleep(1)

    with pytest.raises(Suspended, match=r'layer napping \(file ".*test_custom_layers.py", line \d+'):
        build_client([passes, napping], transport=Script(200)).get("http://x.test/")


def test_a_runtime_error_of_a_layer_stays_what_it_is():
    async def broken(request, call_next):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match=r"^mine$"):
        build_client([broken], transport=Script(200)).get("http://x.test/")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Python's own word on it
def test_an_endlessly_stubborn_layer_is_given_up_on():
    async def endless(request, call_next):
        while True:
            try:
                await asyncio.sleep(0)
            except GeneratorExit:
                continue

    async def main():
        with pytest.raises(Suspended, match="layer endless"):
            build_client([endless], transport=Script(200)).get("http://x.test/")

    asyncio.run(main())
    gc.collect()


def test_a_transport_that_suspends_is_named_too():
    class Odd:
        def handle_request(self, request):
            raise AssertionError("never called")

    transport = Pipeline([]).transport(Odd())
    transport._send = lambda request, record: asyncio.sleep(1)

    async def main():
        with pytest.raises(Suspended, match=r"^the transport awaited"):
            transport.handle_request(httpx.Request("GET", "http://x.test/"))

    asyncio.run(main())


def test_the_same_layer_may_suspend_in_async_clients():
    async def main():
        async def yields(request, call_next):
            await asyncio.sleep(0)
            return await call_next(request)

        async with build_async_client([yields], transport=Script(200)) as client:
            assert (await client.get("http://x.test/")).status_code == 200

    asyncio.run(main())


def test_a_blocking_client_works_inside_a_running_loop():
    async def main():
        with build_client([passes], transport=Script(200)) as client:
            return client.get("http://x.test/").status_code

    assert asyncio.run(main()) == 200


async def returns_none(request, call_next):
    await call_next(request)


async def forgets_await(request, call_next):
    return call_next(request)


async def returns_text(request, call_next):
    return "200 OK"


@pytest.mark.parametrize(
    ("layer", "what"),
    [
        (returns_none, "None"),
        (forgets_await, r"a coroutine \(is an await missing\?\)"),
        (returns_text, "a builtins.str"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_layer_that_returns_no_response_is_named(world, layer, what):
    message = rf"layer {layer.__name__} returned {what} instead of an {world.http.__name__}\.Response"

    async def main():
        async with world.client([passes, layer], transport=Script(200)) as client:
            with pytest.raises(LayerError, match=message):
                await client.get("http://x.test/")

    world.run(main)


@pytest.mark.parametrize(("mine", "theirs"), [(httpx, httpx2), (httpx2, httpx)], ids=["httpx", "httpx2"])
def test_a_response_of_the_other_library_is_named(mine, theirs):
    async def foreign(request, call_next):
        return theirs.Response(200)

    with pytest.raises(LayerError, match=rf"layer foreign returned a {theirs.__name__}\.Response instead"):
        build_client([foreign], http=mine, transport=Script(200)).get("http://x.test/")


def test_a_layer_that_hands_out_a_response_it_does_not_own_is_named(world):
    kept = []

    async def hoard(request, call_next):
        if not kept:
            kept.append(await call_next(request))
        kept[0].headers["x-changed"] = "1"
        return kept[0]

    async def main():
        async with world.client([hoard], transport=Script(200)) as client:
            await client.get("http://x.test/")
            with pytest.raises(LayerError, match="hoard returned a response that belongs to another call"):
                await client.get("http://x.test/")

    world.run(main)


def test_a_response_of_the_layers_own_making_may_be_httpxs(world):
    async def own(request, call_next):
        return world.http.Response(200, json={"own": True})

    async def main():
        async with world.client([own], transport=Script()) as client:
            assert (await client.get("http://x.test/")).json() == {"own": True}

    world.run(main)


def test_a_body_of_the_wrong_mode_is_an_error():
    async def wrong(request, call_next):
        async def chunks():
            yield b""

        return httpx.Response(200, content=chunks())

    with pytest.raises(LayerError, match="is no SyncByteStream"):
        build_client([wrong], transport=Script(200)).get("http://x.test/")


def test_a_request_without_its_record_is_an_error():
    async def new(request, call_next):
        return await call_next(httpx.Request("GET", "http://y.test/"))

    with pytest.raises(LayerError, match='the request has no extensions\\["dspex"\\]'):
        build_client([new], transport=Script(200)).get("http://x.test/")


def test_io_reaches_a_layer_that_asks_for_it(world):
    async def late(request, call_next, io):
        before = io.now(), io.wall()
        await io.sleep(5)
        assert (io.now() - before[0], io.wall() - before[1]) == (5, 5)
        assert 0 <= io.random() < 1
        return await call_next(request)

    async def main():
        io = VirtualIO()
        async with world.client([late], transport=Script(200), io=io) as client:
            await client.get("http://x.test/")
        assert io.now() == 5

    world.run(main)


def test_real_io_sleeps_reads_and_closes(world):
    async def reader(request, call_next, io):
        await io.sleep(0.001)
        await io.sleep(0)
        assert io.now() > 0
        assert io.wall() > 1.7e9
        assert 0 <= io.random() < 1
        first = await call_next(request)
        await io.close(first)
        second = await call_next(request)
        assert await io.read(second, limit=2) is None
        third = await call_next(request)
        assert await io.read(third) == b"one two"
        assert await io.read(third) == b"one two"  # it stays whole
        return third

    async def main():
        script = Script(lambda _: Reply(chunks=[b"one", b" two"]), forever=True)
        async with world.client([reader], transport=script) as client:
            assert (await client.get("http://x.test/")).content == b"one two"
        assert script.open == 0
        assert len(script.bodies) == 3

    world.run(main)


def test_a_layer_may_call_on_twice_and_the_loser_is_closed_by_it(world):
    async def twice(request, call_next, io):
        await io.close(await call_next(request))
        return await call_next(request)

    async def main():
        script = Script(Reply(content=b"1"), Reply(content=b"2"))
        async with world.client([twice], transport=script) as client:
            assert (await client.get("http://x.test/")).content == b"2"
        assert script.open == 0

    world.run(main)


def test_respond_makes_a_response_of_the_requests_library(http):
    response = respond(http.Request("GET", "http://x.test/"), 201, headers={"a": "b"}, content=b"c")
    assert isinstance(response, http.Response)
    assert (response.status_code, response.headers["a"], response.read()) == (201, "b", b"c")


def test_a_layer_that_asks_another_model_is_heard_by_the_layers_below(world):
    async def second_model(request, call_next):
        try:
            return await call_next(request)
        except BreakerOpen:
            body = {**json.loads(request.content), "model": "second"}
            kept = {"x-team": request.headers["x-team"]}
            other = type(request)(
                request.method, request.url, headers=kept, json=body, extensions=request.extensions
            )
            return await call_next(other)

    def answer(request):
        return 503 if json.loads(request.content)["model"] == "first" else 200

    layers = [second_model, Breaker(consecutive=2)]

    async def main():
        question = {"model": "first", "messages": [{"role": "user", "content": "Hi"}]}
        async with world.client(layers, transport=script) as client:
            url, headers = "http://x.test/v1/chat/completions", {"x-team": "search"}
            return [(await client.post(url, json=question, headers=headers)).status_code for _ in range(5)]

    script = Script(answer, forever=True)
    assert world.run(main) == [503, 503, 200, 200, 200]  # by then the circuit of the first is open
