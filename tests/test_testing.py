"""The testing room: virtual time, the scripted upstream, and a kit that finds broken layers."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import threading

import attrs
import httpx
import httpx2
import pytest

from dspex_pipe import (
    Breaker,
    LayerError,
    Meaning,
    Overloaded,
    Pipeline,
    Retry,
    Timeout,
    build_async_client,
    record_of,
    respond,
)
from dspex_pipe.io import ASYNC, BLOCKING
from dspex_pipe.testing import Reply, Script, VirtualIO, check_layer
from modes import World, lasting

REQUEST = httpx.Request("GET", "http://x.test/")


# VirtualIO


def test_the_clock_moves_only_by_waiting():
    io = VirtualIO(start=10, epoch=1000)
    assert (io.now(), io.wall()) == (10, 1010)
    io.run(io.sleep(2.5))
    io.run(io.sleep(-1))
    io.advance(1)
    assert (io.now(), io.wall()) == (13.5, 1013.5)


def test_random_numbers_repeat_for_a_seed():
    assert [VirtualIO(seed=3).random() for _ in range(3)] == [VirtualIO(seed=3).random()] * 3


def test_coroutines_take_turns_in_the_order_of_their_clocks():
    io, seen = VirtualIO(), []

    async def worker(name, naps):
        for nap in naps:
            await io.sleep(nap)
            seen.append((io.now(), name))
        return name

    assert io.run_all(worker("a", [3, 3]), worker("b", [2, 1, 4]), worker("c", [])) == ["a", "b", "c"]
    assert seen == [(2, "b"), (3, "a"), (3, "b"), (6, "a"), (7, "b")]


def test_run_raises_and_run_all_hands_over_what_a_coroutine_raises():
    io = VirtualIO()

    async def fails():
        await io.sleep(1)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        io.run(fails())
    (error, one) = io.run_all(fails(), _one())
    assert isinstance(error, ValueError)
    assert one == 1


async def _one():
    return 1


def test_awaiting_something_else_is_an_error():
    async def foreign():
        await asyncio.sleep(0)

    io = VirtualIO()
    with pytest.raises(LayerError, match="awaited something that is not io's"):
        io.run(foreign())
    with pytest.raises(LayerError, match="awaited something that is not io's"):
        io.run(io.bounded(foreign(), 5))


def test_concurrent_calls_share_virtual_time():
    io = VirtualIO()
    script = Script(lambda _: Reply(delay=2), forever=True, io=io)
    client = Pipeline([Retry()]).async_client(transport=script, io=io)
    replies = io.run_all(*(client.get("http://x.test/") for _ in range(5)))
    assert [r.status_code for r in replies] == [200] * 5
    assert io.now() == 2


# Script


def test_a_script_answers_in_order_and_complains_at_its_end(world: World):
    async def main():
        script = Script(
            503,
            Reply(json={"a": 1}),
            "ReadTimeout",
            httpx.ReadError("mine"),
            lambda r: Reply(content=r.url.raw_path),
        )
        async with world.client([], transport=script) as client:
            assert (await client.get("http://x.test/")).status_code == 503
            assert (await client.get("http://x.test/")).json() == {"a": 1}
            with pytest.raises(world.http.ReadTimeout, match="scripted"):
                await client.get("http://x.test/")
            with pytest.raises(httpx.ReadError, match="mine"):
                await client.get("http://x.test/")
            assert (await client.get("http://x.test/path")).content == b"/path"
            with pytest.raises(
                AssertionError, match=r"no step left in the script for request 6: GET http://x.test/z"
            ):
                await client.get("http://x.test/z")
        assert len(script.requests) == 6
        assert script.closed == 0  # it was passed in: whoever made it closes it

    world.run(main)


def test_a_script_is_a_handler():
    io = VirtualIO()
    response = io.run(Script(Reply(status=201, delay=3), io=io)(REQUEST))
    assert (response.status_code, io.now()) == (201, 3)
    assert io.run(Script(204)(REQUEST)).status_code == 204


def test_a_scripted_stream_pauses_breaks_off_and_counts_what_is_open(world: World):
    async def main():
        io = VirtualIO()
        broken = Reply(chunks=[b"a", b"b"], pause=2, error="RemoteProtocolError")
        script = Script(broken, Reply(chunks=[b"c"] * 3), io=io)
        async with world.client([], transport=script, io=io) as client:
            response = await client.open("GET", "http://x.test/")
            assert script.open == 1
            with pytest.raises(world.http.RemoteProtocolError):
                await client.read(response)
            assert (io.now(), script.open) == (4, 0)
            response = await client.open("GET", "http://x.test/")
            assert await client.read_one(response) == b"c"
            assert script.open == 1
            await client.drop(response)
            assert (script.open, script.bodies[-1].closes) == (0, 1)

    world.run(main)


def test_a_script_counts_its_closes():
    script = Script()
    script.close()
    asyncio.run(script.aclose())
    assert script.closed == 2


@pytest.mark.parametrize("step", [3.5, "RaedTimeout", "codes"])
def test_a_wrong_step_is_an_error(step):
    wrong = re.escape(f"got {step!r}")
    with pytest.raises(TypeError, match=rf"a step of a script is a status, a Reply, .* {wrong}"):
        Pipeline([]).client(transport=Script(step)).get("http://x.test/")


def test_a_script_with_a_suspending_io_under_a_blocking_client_is_named():
    script = Script(Reply(delay=1), io=VirtualIO())
    script.io._scheduled = True
    with pytest.raises(LayerError, match=r"^the script awaited"):
        Pipeline([]).client(transport=script).get("http://x.test/")


# check_layer: each of these breaks one promise


async def suspends(request, call_next):
    await asyncio.sleep(0)
    return await call_next(request)


async def changes_body(request, call_next, io):
    response = await call_next(request)
    body = await io.read(response)
    return respond(request, response.status_code, headers=dict(response.headers), content=body + b"!")


async def leaks(request, call_next):
    await call_next(request)
    return await call_next(request)


async def swallows(request, call_next):
    try:
        return await call_next(request)
    except BaseException:
        return respond(request, 200)


async def invents_errors(request, call_next):
    try:
        return await call_next(request)
    except Exception as exc:
        raise KeyError("oh") from exc


def shared():
    kept = []

    async def layer(request, call_next):
        if kept:
            return kept[0]
        kept.append(await call_next(request))
        return kept[0]

    return layer


class Writes:
    """A frozen layer that is not: it keeps the caller's request and changes it later."""

    async def __call__(self, request, call_next):
        request.extensions["timeout"]["read"] = 1
        return await call_next(request)


@attrs.frozen
class OneState:
    state: object = attrs.field(factory=object, eq=False)

    def build(self):
        return _FOREVER


class _Forever:
    async def __call__(self, request, call_next, io):
        return await call_next(request)


_FOREVER = _Forever()


class Incomparable:
    def build(self):
        return _Forever()


class Unspeakable(_Forever):
    def snapshot(self):
        return {"io": VirtualIO()}


@attrs.frozen
class Mute:
    def build(self):
        return Unspeakable()


async def hides_truncation(request, call_next, io):
    response = await call_next(request)
    body = b""
    with contextlib.suppress(Exception):
        async for chunk in io.chunks(response):
            body += chunk
    await io.close(response)
    return respond(request, response.status_code, headers=dict(response.headers), content=body)


@pytest.mark.parametrize(
    ("layer", "promise"),
    [
        (suspends, r"answer a call \(blocking, httpx\): layer suspends .* awaited something"),
        (changes_body, r"answer a call \(blocking, httpx\): the body was b'\{\"answer\": 42\}!'"),
        (leaks, r"hand on a stream as it is \(blocking, httpx\): 1 of 2 bodies left open"),
        (swallows, r"let cancellation through \(blocking, httpx\): an interrupt was swallowed"),
        (invents_errors, r"let errors through, and work on \(blocking, httpx\): KeyError"),
        (Writes(), r"leave the caller's request as it is \(blocking, httpx\)"),
        (
            hides_truncation,
            r"show a broken body as broken \(blocking, httpx\): a broken body looked complete",
        ),
        (Mute(), r"tell its state in JSON \(blocking, httpx\): TypeError"),
        (OneState(), r"returns the same state twice"),
        (Incomparable(), r"does not compare equal to a copy of itself"),
    ],
    ids=lasting,
)
def test_the_kit_finds_what_is_broken(layer, promise):
    with pytest.raises(AssertionError, match=promise):
        check_layer(layer)


def test_the_kit_finds_a_response_handed_out_twice():
    with pytest.raises(AssertionError, match="belongs to another call"):
        check_layer(shared())


def test_the_kit_finds_what_only_async_modes_show():
    async def eats_cancellation(request, call_next):
        try:
            return await call_next(request)
        except asyncio.CancelledError:
            return respond(request, 200)

    with pytest.raises(AssertionError, match=r"let cancellation through \(asyncio, httpx\): .* swallowed"):
        check_layer(eats_cancellation)


def test_the_kit_runs_inside_a_running_loop():
    async def passes(request, call_next):
        return await call_next(request)

    async def main():
        check_layer(functools.partial(passes))

    asyncio.run(main())


def test_a_pipeline_in_the_kit_keeps_its_meanings():
    async def needs(request, call_next):
        assert record_of(request).meanings == {"a": Meaning.AUTH}
        return await call_next(request)

    check_layer(Pipeline([needs], meanings={"a": Meaning.AUTH}))


def test_the_kit_refuses_what_is_no_layer():
    with pytest.raises(TypeError, match="is not a layer"):
        check_layer(3)


# Events on the virtual clock


def test_an_event_wakes_its_waiters_and_a_wait_ends_with_its_time():
    io = VirtualIO()
    shared = []

    async def waiter(seconds):
        event = io.event()
        shared.append(event)
        return await event.wait(seconds), io.now()

    async def setter():
        await io.sleep(5)
        for event in shared:
            event.set()
        return "set"

    assert io.run_all(waiter(None), waiter(2), waiter(9), setter()) == [
        (True, 5),
        (False, 2),
        (True, 5),
        "set",
    ]

    async def set_before():
        event = io.event()
        event.set()
        return await event.wait()

    assert io.run(set_before()) is True


def test_waiting_for_nobody_is_an_error():
    io = VirtualIO()
    with pytest.raises(LayerError, match="every coroutine waits, and nothing will wake them"):
        io.run_all(_wait_for_ever(io), _wait_for_ever(io))


async def _wait_for_ever(io):
    await io.event().wait()


def test_outside_the_scheduler_an_event_is_one_of_the_running_mode(world: World):
    io = VirtualIO()

    async def main():
        event = io.event()
        event.set()
        return await event.wait(5)

    assert world.run(main) is True
    assert io.now() == 0


def test_a_real_event_times_out(world: World):
    async def main():
        event = (BLOCKING if world.blocking else ASYNC).event()
        return await event.wait(0)

    assert world.run(main) is False


def test_to_thread_calls_here_or_there(world: World):
    async def main():
        virtual = await VirtualIO().to_thread(threading.get_ident)
        real = await (BLOCKING if world.blocking else ASYNC).to_thread(threading.get_ident)
        return virtual, real

    here = threading.get_ident()
    virtual, real = world.run(main)
    assert virtual == here
    assert (real == here) is world.blocking


def test_a_scripted_body_that_has_ended_stays_ended():
    response = Pipeline([]).client(transport=Script(Reply(chunks=[b"a"]))).get("http://x.test/")
    assert response.content == b"a"
    script = Script(Reply(chunks=[b"a"]))
    body = VirtualIO().run(script(REQUEST)).stream
    assert list(body) == [b"a"]
    assert list(body) == []


def test_the_kit_accepts_a_layer_that_answers_or_refuses_everything():
    async def answers(request, call_next):
        return respond(request, 200, content=b"mine")

    async def refuses(request, call_next):
        raise Overloaded("always", layer="refuses")

    check_layer(answers)
    check_layer(refuses)


def test_the_kit_accepts_what_refuses_under_trouble():
    async def touchy(request, call_next):
        response = await call_next(request)
        if response.status_code == 503:
            await response_closed(response)
            raise Overloaded("busy", layer="touchy", sent=True)
        return response

    async def response_closed(response):
        response.stream.close()

    check_layer(touchy)
    check_layer(Pipeline([Breaker(consecutive=1)]))


def test_the_kit_accepts_ready_made_responses():
    async def ready(request, call_next):
        module = httpx if isinstance(request, httpx.Request) else httpx2
        return module.Response(200, text="ready")

    check_layer(ready)


# Bounded in time


def test_what_takes_too_long_is_cancelled_on_the_virtual_clock():
    io, ended = VirtualIO(), []

    async def slow(seconds):
        try:
            await io.sleep(seconds)
            return seconds
        finally:
            ended.append((seconds, io.now()))

    async def bounded(seconds, bound):
        try:
            return await io.bounded(slow(seconds), bound), io.now()
        except TimeoutError as exc:
            return str(exc), io.now()

    results = io.run_all(bounded(5, 2), bounded(1, 3), bounded(4, 4))
    assert results == [("2 s are over", 2), (1, 1), (4, 4)]
    assert ended == [(1, 1), (5, 2), (4, 4)]


def test_what_is_cancelled_waits_for_nothing_on_its_way_out():
    io, ended = VirtualIO(), []

    async def inner():
        try:
            await io.sleep(5)
        finally:
            ended.append("inner")
            await io.sleep(1)

    async def cleans_up():
        try:
            await inner()
        finally:
            ended.append("outer")
            await io.sleep(1)

    async def swallows():
        with contextlib.suppress(BaseException):
            await io.sleep(9)

    async def bounded(coroutine):
        with pytest.raises(TimeoutError):
            await io.bounded(coroutine, 2)
        return io.now()

    async def begun():
        task = await io.begin(cleans_up(), 1)
        await task.cancel()
        await task.cancel()  # it is gone
        return io.now()

    assert io.run_all(bounded(cleans_up()), bounded(swallows()), begun()) == [2, 2, 1]
    assert ended == ["inner", "outer"] * 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_who_interrupts_the_scheduler_stops_all_at_once(error):
    io, ended = VirtualIO(), []

    async def other():
        try:
            await io.sleep(2)
        finally:
            ended.append(io.now())

    async def interrupted():
        await io.sleep(1)
        raise error

    with pytest.raises(error):
        io.run_all(other(), interrupted(), other())
    assert ended == [1, 1]


def test_an_event_in_time_saves_what_is_bounded():
    io, events = VirtualIO(), []

    async def waits():
        events.append(io.event())
        return await io.bounded(events[0].wait(), 9)

    async def sets():
        await io.sleep(3)
        events[0].set()

    assert io.run_all(waits(), sets())[0] is True
    assert io.now() == 3


def test_bounded_in_real_modes(world: World):
    io = BLOCKING if world.blocking else ASYNC

    async def quick():
        return 1

    async def main():
        assert await io.bounded(quick(), 5) == 1
        assert await VirtualIO().bounded(quick(), 5) == 1
        if not world.blocking:
            with pytest.raises(TimeoutError, match="0 s are over"):
                await io.bounded(io.event().wait(), 0)

    world.run(main)


def test_the_virtual_clock_cuts_off_what_is_too_long_where_it_runs_the_call():
    async def ask():
        script = Script(Reply(delay=50), 200, io=io)
        layers = [Retry(wait_initial=1, wait_jitter=0), Timeout(attempt=10)]
        async with build_async_client(layers, transport=script, io=io) as client:
            return (await client.get("http://x.test/")).status_code, len(script.requests), io.now()

    io = VirtualIO()
    assert io.run(ask()) == (200, 2, 11)
    io = VirtualIO()
    assert asyncio.run(ask()) == (200, 1, 50)  # the bound is in real seconds there
