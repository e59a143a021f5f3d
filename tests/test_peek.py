"""The beginning of a stream: an error in there is a failed attempt, and nothing else is held up or lost."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import threading
from collections import deque

import anthropic
import anyio
import httpx
import httpx2
import openai
import pytest

from dspex_pipe import (
    Breaker,
    DeadlineExceeded,
    LayerError,
    Meaning,
    Pipeline,
    Retry,
    StreamIntegrity,
    Timeout,
    attach,
    explain,
    options,
)
from dspex_pipe.body import Passing, put_stream
from dspex_pipe.io import ASYNC, _Pieces, close_dropped
from dspex_pipe.testing import Reply, Script, VirtualIO
from modes import World

URL = "http://llm.test/v1/chat/completions"
MESSAGES = "http://llm.test/v1/messages"
RESPONSES = "http://llm.test/v1/responses"
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
INPUT = {"model": "m", "input": "hi", "stream": True}


def data(document, event=None):
    named = f"event: {event}\n" if event else ""
    return f"{named}data: {json.dumps(document)}\n\n".encode()


def named(kind, **more):
    return data({"type": kind, **more}, kind)


def delta(**content):
    return data({"choices": [{"index": 0, "delta": content, "finish_reason": None}]})


PING = b": keep-alive\n\n"
ROLE = delta(role="assistant", content="")
TEXT = delta(content="a")
STOP = data({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
DONE = b"data: [DONE]\n\n"
BUSY = data({"error": {"type": "overloaded_error", "message": "busy"}})
WHOLE = [PING, ROLE, TEXT, STOP, DONE]
START = named("message_start", message={"model": "m"})
BLOCK = named("content_block_start", content_block={"type": "text", "text": ""})
TOOL = named("content_block_start", content_block={"type": "server_tool_use", "name": "web_search"})
FAILED = named("error", error={"type": "overloaded_error"})
CREATED = named("response.created", response={"model": "m"})


def stream(*events, **more):
    return Reply(chunks=events, headers={"content-type": "text/event-stream"}, **more)


def virtual(layers, *steps, http=httpx):
    io = VirtualIO()
    script = Script(*steps, io=io)
    return io, script, Pipeline(layers).async_client(http=http, transport=script, io=io)


async def opened(client, url=URL, body=CHAT, **kwargs):
    return await client.send(client.build_request("POST", url, json=body, **kwargs), stream=True)


def closed(pipeline, number=0):
    return not pipeline.snapshot()["layers"][number]["not_closed"]


# An error in the beginning


BEGINNINGS = {
    "at once": (URL, CHAT, [BUSY]),
    "behind pings": (URL, CHAT, [PING, PING, BUSY]),
    "behind the empty frame of a chat": (URL, CHAT, [ROLE, BUSY]),
    "in one piece": (URL, CHAT, [PING + ROLE + BUSY]),
    "in small pieces": (URL, CHAT, [bytes([byte]) for byte in ROLE + BUSY]),
    "of messages": (MESSAGES, CHAT, [START, BLOCK, named("ping"), FAILED]),
    "of responses": (RESPONSES, INPUT, [named("error", code="server_is_overloaded")]),
}


@pytest.mark.parametrize("name", BEGINNINGS)
def test_an_error_in_there_is_a_failed_attempt_and_the_reader_sees_one_clean_stream(world: World, name):
    url, body, events = BEGINNINGS[name]

    async def main():
        script = Script(stream(*events), stream(*WHOLE))
        async with world.client([Retry(wait_initial=0, wait_jitter=0)], transport=script) as client:
            response = await client.post(url, json=body)
        assert response.content == b"".join(WHOLE)
        assert (len(script.requests), script.open) == (2, 0)
        told = [(event.decision, event.reason) for event in explain(response) if event.layer == "Retry"]
        code = "server_is_overloaded" if url == RESPONSES else "overloaded_error"
        assert told == [("retries", f"{code} in the stream")]

    world.run(main)


def test_a_body_that_breaks_off_in_there_is_a_failed_attempt(world: World):
    async def main():
        script = Script(stream(ROLE, error="ReadError"), stream(*WHOLE))
        async with world.client([Retry(wait_initial=0, wait_jitter=0)], transport=script) as client:
            response = await client.post(URL, json=CHAT)
        assert response.content == b"".join(WHOLE)
        assert script.open == 0

    world.run(main)


def test_so_is_a_stream_that_ends_there_where_that_is_an_error():
    io, script, client = virtual([Retry(), StreamIntegrity()], stream(ROLE), stream(*WHOLE))
    assert io.run(client.post(URL, json=CHAT)).content == b"".join(WHOLE)
    io, script, client = virtual([Retry()], stream(ROLE))
    assert io.run(client.post(URL, json=CHAT)).content == ROLE


def test_an_error_inside_gzip_is_seen_and_the_bytes_are_handed_on_as_they_came(world: World):
    async def main():
        headers = {"content-type": "text/event-stream", "content-encoding": "gzip"}
        bad, good = (gzip.compress(b"".join(events)) for events in ([PING, BUSY], WHOLE))
        halves = [good[:9], good[9:]]
        script = Script(Reply(chunks=[bad], headers=headers), Reply(chunks=halves, headers=headers))
        async with world.client([Retry(wait_initial=0, wait_jitter=0)], transport=script) as client:
            response = await client.open("POST", URL, json=CHAT)
            got = list(response.iter_raw()) if world.blocking else [p async for p in response.aiter_raw()]
            await client.drop(response)
        assert got == halves

    world.run(main)


def test_the_last_failed_stream_is_handed_up_whole(world: World):
    async def main():
        script = Script(stream(PING, BUSY), forever=True)
        async with world.client(
            [Retry(attempts=2, wait_initial=0, wait_jitter=0)], transport=script
        ) as client:
            response = await client.post(URL, json=CHAT)
        assert response.content == PING + BUSY
        assert response.headers["x-should-retry"] == "false"
        assert len(script.requests) == 2

    world.run(main)


@pytest.mark.parametrize("code", ["insufficient_quota", "invalid_request_error", "context_length_exceeded"])
def test_an_error_that_no_waiting_mends_is_handed_up_at_once(code):
    io, script, client = virtual([Retry()], stream(data({"error": {"code": code}})))
    response = io.run(client.post(URL, json=CHAT))
    assert (len(script.requests), io.now()) == (1, 0)
    assert "does not pass by waiting" in explain(response)[-1].reason


# What is not held up


UNTOUCHED = {
    "an error behind content": (URL, CHAT, [TEXT, BUSY]),
    "an error behind a change of state": (RESPONSES, INPUT, [CREATED, named("response.failed", response={})]),
    "an error behind the progress of a tool": (MESSAGES, CHAT, [START, TOOL, FAILED]),
    "no events at all": (URL, CHAT, []),
    "only an end": (URL, CHAT, [DONE]),
    "garbage": (URL, CHAT, [b"\x00" * 99]),
    "an endless line": (URL, CHAT, [b"data: " + b"x" * (2 << 20)]),
    "endless pings": (URL, CHAT, [PING * 4096] * 8 + [BUSY]),
}


@pytest.mark.parametrize("name", UNTOUCHED)
def test_what_has_begun_is_handed_on_and_never_sent_again(world: World, name):
    url, body, events = UNTOUCHED[name]

    async def main():
        script = Script(stream(*events))
        async with world.client([Retry(), Breaker()], transport=script) as client:
            response = await client.post(url, json=body)
        assert response.content == b"".join(events)
        assert (len(script.requests), script.open) == (1, 0)

    world.run(main)


@pytest.mark.parametrize(
    ("url", "reply"),
    [
        (URL, Reply(chunks=[BUSY], headers={"content-type": "text/plain"})),
        (URL, Reply(status=201, chunks=[BUSY], headers={"content-type": "text/event-stream"})),
        (URL, Reply(content=BUSY, headers={"content-type": "application/json"})),
        ("http://x.test/events", stream(BUSY)),
    ],
    ids=["no event stream", "another status", "no stream", "no LLM"],
)
def test_what_is_no_stream_of_a_known_format_is_none_of_its_business(url, reply):
    io, script, client = virtual([Retry()], reply)
    assert io.run(client.post(url, json=CHAT)).content == BUSY
    assert len(script.requests) == 1


def test_without_a_peek_an_error_goes_by():
    io, script, client = virtual([Retry(peek=None), Breaker(peek=None)], stream(BUSY))
    assert io.run(client.post(URL, json=CHAT)).content == BUSY


# For how long


def test_content_is_handed_on_the_moment_it_comes():
    io, script, client = virtual([Retry(), Breaker()], stream(*WHOLE, pause=0.25))

    async def main():
        response = await opened(client)
        assert io.now() == 0.75  # two that say nothing, and the text
        return b"".join([piece async for piece in response.aiter_raw()])

    assert io.run(main()) == b"".join(WHOLE)
    assert io.now() == 0.25 * len(WHOLE)


@pytest.mark.parametrize("pause", [10, 1.5])
def test_a_silent_stream_is_handed_on_after_two_seconds_with_its_read_still_under_way(http, pause):
    io, script, client = virtual([Retry(), Breaker()], stream(PING, BUSY, pause=pause), http=http)

    async def main():
        response = await opened(client)
        assert io.now() == 2
        return b"".join([piece async for piece in response.aiter_raw()])

    assert io.run(main()) == PING + BUSY
    assert (io.now(), script.open) == (2 * pause, 0)


def test_a_deadline_ends_it_earlier():
    io, script, client = virtual([Retry()], stream(*WHOLE, pause=3))

    async def main():
        response = await opened(client, extensions=options(deadline=1))
        assert io.now() == 1
        await response.aclose()

    io.run(main())
    assert script.open == 0


def test_a_read_under_way_that_fails_is_raised_to_the_reader():
    io, script, client = virtual([Retry()], stream(PING, error="ReadError", pause=3))

    async def main():
        response = await opened(client)
        with pytest.raises(httpx.ReadError):
            await response.aread()

    io.run(main())
    assert script.open == 0


def test_a_read_under_way_ends_with_its_response():
    io, script, client = virtual([Retry()], stream(PING, error="ReadError", pause=3))

    async def main():
        response = await opened(client)
        await response.aclose()
        await io.sleep(60)

    io.run(main())
    assert (io.now(), script.open) == (62, 0)


def test_in_blocking_mode_the_time_is_looked_at_between_the_pieces(http):
    io = VirtualIO()
    script = Script(stream(PING, PING, PING, BUSY, pause=1.5), io=io)
    client = Pipeline([Retry()]).client(http=http, transport=script, io=io)
    with client.stream("POST", URL, json=CHAT) as response:
        assert io.now() == 3
        assert response.read() == PING * 3 + BUSY


def test_who_looks_first_looks_for_all():
    io, script, client = virtual([Breaker(peek=1), Retry(peek=5), Breaker(peek=3)], stream(*WHOLE, pause=10))

    async def main():
        response = await opened(client)
        assert io.now() == 3
        await response.aclose()

    io.run(main())


def test_a_time_bound_of_an_inner_layer_fails_the_attempt():
    layers = [Retry(wait_jitter=0), Timeout(first_content=1)]
    io, script, client = virtual(layers, stream(PING, PING, pause=60), stream(*WHOLE))
    assert io.run(client.post(URL, json=CHAT)).content == b"".join(WHOLE)
    assert io.now() == 1.1


def test_a_time_bound_around_it_ends_the_read_under_way():
    io, script, client = virtual([Timeout(total=1), Retry()], stream(PING, PING, pause=60))
    (error,) = io.run_all(client.post(URL, json=CHAT))
    assert isinstance(error, DeadlineExceeded)
    assert (io.now(), script.open) == (1, 0)


# Really at once: on asyncio and trio, with a server that is silent


class Silent:
    """An upstream whose streams say one thing, and then nothing until they are told to."""

    def __init__(self, *first):
        self.first = first
        self.told = anyio.Event()
        self.closed = anyio.Event()
        self.odd = None
        self.open = 0

    async def handle_async_request(self, request):
        http = httpx if isinstance(request, httpx.Request) else httpx2
        upstream = self

        class Body(http.AsyncByteStream):
            async def __aiter__(self):
                upstream.open += 1
                try:
                    for piece in upstream.first:
                        yield piece
                    await self.silence()
                    yield TEXT
                finally:
                    upstream.open -= 1

            async def silence(self):
                """It ends when it is told to, with an error when the body is closed, as on a socket."""
                async with anyio.create_task_group() as group:
                    group.start_soon(self.first_of, upstream.told, group.cancel_scope)
                    group.start_soon(self.first_of, upstream.closed, group.cancel_scope)
                if upstream.odd is not None:
                    raise upstream.odd
                if upstream.closed.is_set():
                    raise http.ReadError("closed")

            async def first_of(self, event, scope):
                await event.wait()
                scope.cancel()

            async def aclose(self):
                upstream.closed.set()

        return http.Response(200, headers={"content-type": "text/event-stream"}, stream=Body())


@pytest.fixture(params=["asyncio", "trio"])
def loops(request, http):
    return World(request.param, http)


def silent(loops, *first, peek=0.01):
    """A client with a peek so short that it is over at once."""
    upstream = Silent(*first)
    return upstream, Pipeline([Retry(peek=peek)]).async_client(http=loops.http, transport=upstream)


def test_the_read_under_way_is_the_readers(loops):
    async def main():
        upstream, client = silent(loops, PING)
        async with client:
            response = await opened(client)
            upstream.told.set()
            assert await response.aread() == PING + TEXT
        assert upstream.open == 0

    loops.run(main)


def test_closing_ends_the_read_under_way(loops):
    async def main():
        upstream, client = silent(loops, PING)
        async with client:
            response = await opened(client)
            assert upstream.open == 1
            await response.aclose()
            assert upstream.open == 0

    loops.run(main)


def test_cancelling_the_reader_ends_the_read_under_way(loops):
    async def main():
        upstream, client = silent(loops, PING)
        async with client:
            response = await opened(client)
            async with anyio.create_task_group() as group:
                group.start_soon(response.aread)
                await anyio.wait_all_tasks_blocked()
                group.cancel_scope.cancel()
            assert upstream.open == 0
            await response.aclose()

    loops.run(main)


def test_cancelling_a_call_that_is_held_back_leaves_nothing_open(loops):
    async def main():
        upstream, client = silent(loops, PING, peek=60)
        async with client:
            async with anyio.create_task_group() as group:
                group.start_soon(opened, client)
                await anyio.wait_all_tasks_blocked()
                assert upstream.open == 1
                group.cancel_scope.cancel()
            assert upstream.open == 0

    loops.run(main)


def test_closing_from_another_task_ends_a_reader_with_an_error(loops):
    """As it does without any layer: what comes is not whole."""

    async def main():
        for first in ([PING], [TEXT]):  # the read of the peek is under way; or one of the reader's own
            upstream, client = silent(loops, *first)
            response = await opened(client)
            errors = []

            async def read(response=response, errors=errors):
                try:
                    await response.aread()
                except loops.http.ReadError as exc:
                    errors.append(exc)

            async with anyio.create_task_group() as group:
                group.start_soon(read)
                await anyio.wait_all_tasks_blocked()
                await response.aclose()
            assert len(errors) == 1
            assert upstream.open == 0
            await client.aclose()

    loops.run(main)


@pytest.mark.parametrize("peek", [0.01, 60])
def test_a_read_that_somebody_cancels_for_its_own_sake_is_no_end(http, peek):
    """All tasks of a loop are cancelled at its end, or by whoever wants to be the last."""

    async def main():
        upstream, client = silent(World("asyncio", http), PING, peek=peek)
        reader = asyncio.current_task()
        asyncio.get_running_loop().call_later(
            0.05, lambda: [task.cancel() for task in asyncio.all_tasks() if task is not reader]
        )
        with pytest.raises(http.ReadError, match="closed while it was read"):
            await (await opened(client)).aread()

    asyncio.run(main())


def test_an_exception_of_another_kind_reaches_the_reader(loops):
    class Odd(BaseException):
        pass

    async def main():
        upstream, client = silent(loops, PING)
        response = await opened(client)
        upstream.odd = Odd("x")
        upstream.told.set()
        with pytest.raises(Odd):
            await response.aread()

    loops.run(main)


@pytest.mark.parametrize("held_back", [True, False])
def test_cancelled_twice_is_cancelled(http, held_back):
    async def main():
        upstream, client = silent(World("asyncio", http), PING, peek=60 if held_back else 0.01)

        async def call():
            await (await opened(client)).aread()

        task = asyncio.create_task(call())
        await anyio.sleep(0.05)
        assert upstream.open == 1
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert upstream.open == 0

    asyncio.run(main())


def test_a_task_that_is_cancelled_before_its_first_step_leaves_nobody_waiting():
    async def never_runs():
        raise AssertionError

    async def main():
        kept.append(asyncio.create_task(ASYNC.begin(never_runs(), 60)))
        await asyncio.sleep(0)

    kept = []
    asyncio.run(main())
    assert kept[0].cancelled()


def test_an_event_loop_that_ends_takes_the_read_under_way_with_it(loops):
    upstream = None

    async def main():
        nonlocal upstream
        upstream, client = silent(loops, PING)
        await opened(client)

    loops.run(main)
    assert upstream.open == 0


# Dropped, in blocking mode


class Plain:
    """An upstream whose bodies tell when they are closed; each iterates in its own way."""

    def __init__(self, http, *bodies):
        self.http = http
        self.bodies = list(bodies)
        self.closed = []

    def handle_request(self, request):
        upstream, pieces = self, self.bodies.pop(0)

        class Body(self.http.SyncByteStream):
            def __iter__(self):
                return iter(pieces) if isinstance(pieces, list) else self.generate()

            def generate(self):
                try:
                    yield from pieces
                finally:
                    upstream.closed.append("generator")

            def close(self):
                upstream.closed.append("body")

        return self.http.Response(200, headers={"content-type": "text/event-stream"}, stream=Body())


@pytest.mark.parametrize("pieces", [(TEXT, TEXT), [TEXT, TEXT]], ids=["generator", "iterator"])
def test_the_next_call_closes_what_was_dropped_half_way_and_not_the_collector(http, pieces):
    """The collector may run while the pool's lock is held, which closing a real body takes, too."""
    upstream = Plain(http, pieces, (TEXT,))
    client = Pipeline([Retry()]).client(http=http, transport=upstream)
    response = client.send(client.build_request("POST", URL, json=CHAT), stream=True)
    del response
    gc.collect()
    assert upstream.closed == []
    client.post(URL, json=CHAT)
    assert upstream.closed[0] == "body"


def test_calls_of_two_threads_that_find_a_dropped_body_at_once_both_go_on(http, monkeypatch):
    class Crowded(deque):
        """Whoever sees that something is in it is overtaken by another thread, once."""

        overtaken = False

        def __len__(self):
            seen = super().__len__()
            if seen and not self.overtaken:
                self.overtaken = True
                other = threading.Thread(target=close_dropped)
                other.start()
                other.join(20)
            return seen

    monkeypatch.setattr(_Pieces, "_dropped", Crowded())
    upstream = Plain(http, (TEXT, TEXT), (TEXT,))
    client = Pipeline([Retry()]).client(http=http, transport=upstream)
    response = client.send(client.build_request("POST", URL, json=CHAT), stream=True)
    del response
    gc.collect()
    assert client.post(URL, json=CHAT).status_code == 200
    assert upstream.closed.count("body") == 2


@pytest.mark.parametrize("pieces", [(TEXT, TEXT), [TEXT, TEXT]], ids=["generator", "iterator"])
def test_what_is_closed_half_way_is_closed_at_once(http, pieces):
    upstream = Plain(http, pieces)
    client = Pipeline([Retry()]).client(http=http, transport=upstream)
    client.send(client.build_request("POST", URL, json=CHAT), stream=True).close()
    assert upstream.closed[0] == "body"


# The breaker


def test_who_does_not_retry_is_not_held_back():
    io, script, client = virtual([Retry()], stream(PING, BUSY, pause=1))

    async def main():
        response = await opened(client, extensions=options(retry=False))
        assert io.now() == 0
        assert await response.aread() == PING + BUSY

    io.run(main())


def test_what_goes_wrong_in_the_background_is_told():
    async def sleeps(request, call_next):
        response = await call_next(request)

        class Body(Passing):
            async def __anext__(self):
                await Odd()

        class Odd:
            def __await__(self):
                yield "not io's"

        put_stream(response, Body(response.stream))
        return response

    io, script, client = virtual([Retry(), sleeps], stream(*WHOLE))
    (error,) = io.run_all(client.post(URL, json=CHAT))
    assert isinstance(error, LayerError)
    assert str(error) == "awaited something that is not io's"


def test_an_error_event_counts_for_the_breaker_wherever_it_comes(world: World):
    async def main():
        for events in ([BUSY], [ROLE, TEXT, BUSY]):
            script = Script(stream(*events), forever=True)
            pipeline = Pipeline([Breaker(consecutive=2)])
            async with world.client(pipeline, transport=script) as client:
                for count in range(2):
                    assert closed(pipeline), count
                    await client.post(URL, json=CHAT)
            assert not closed(pipeline)

    world.run(main)


@pytest.mark.parametrize("code", ["rate_limit_error", "insufficient_quota", "invalid_request_error"])
@pytest.mark.parametrize("before", [[], [TEXT]])
def test_an_error_event_that_says_nothing_of_the_servers_health_does_not(code, before):
    failed = data({"error": {"type": code}})
    io, script, client = virtual([], *[stream(*before, failed)] * 9)
    pipeline = Pipeline([Breaker(consecutive=1)])
    client = pipeline.async_client(transport=script, io=io)
    io.run(client.post(URL, json=CHAT))
    assert closed(pipeline)


@pytest.mark.filterwarnings("ignore:a response was dropped:ResourceWarning")
def test_a_stream_that_is_dropped_behind_an_error_was_counted_already():
    io = VirtualIO()
    script = Script(stream(TEXT, BUSY, TEXT), io=io)
    pipeline = Pipeline([Breaker(consecutive=1)])
    client = pipeline.client(transport=script, io=io)
    response = client.send(client.build_request("POST", URL, json=CHAT), stream=True)
    chunks = iter(response.stream)
    next(chunks), next(chunks)
    assert not closed(pipeline)
    del response, chunks
    gc.collect()
    assert not closed(pipeline)


def test_an_error_with_a_word_of_ones_own():
    failed = data({"error": {"code": "slot_busy"}})
    io = VirtualIO()
    script = Script(stream(failed), forever=True, io=io)
    pipeline = Pipeline([Retry(), Breaker(consecutive=1)], meanings={"slot_busy": Meaning.THROTTLED})
    client = pipeline.async_client(transport=script, io=io)
    io.run(client.post(URL, json=CHAT))
    assert len(script.requests) == 3
    assert closed(pipeline, 1)


def probing(*events, **more):
    """A circuit that is due for a probe, and whose upstream answers with this stream."""
    io = VirtualIO()
    script = Script(503, stream(*events, **more), stream(*WHOLE), forever=True, io=io)
    pipeline = Pipeline([Breaker(consecutive=1, jitter=0)])
    client = pipeline.async_client(transport=script, io=io)
    io.run(client.post(URL, json=CHAT))
    io.advance(5)
    return io, pipeline, client


def test_a_probe_is_settled_by_its_first_content_and_its_call_can_still_fail():
    io, pipeline, client = probing(PING, TEXT, TEXT, BUSY, pause=0.5)

    async def main():
        response = await opened(client)
        assert closed(pipeline)
        await client.post(URL, json=CHAT)  # anyone may call now
        await response.aread()
        assert not closed(pipeline)  # consecutive=1

    io.run(main())


def test_a_probe_whose_content_takes_longer_than_the_peek_is_settled_while_it_is_read():
    io, pipeline, client = probing(PING, PING, TEXT, TEXT, pause=3)

    async def main():
        response = await opened(client)
        assert io.now() == 7
        states = []
        async for _ in response.aiter_raw():
            states.append(closed(pipeline))  # noqa: PERF401
        assert states == [False, False, True, True]

    io.run(main())


def test_a_probe_that_begins_with_an_error_has_failed():
    io, pipeline, client = probing(BUSY)
    io.run(client.post(URL, json=CHAT))
    assert pipeline.snapshot()["layers"][0]["not_closed"]["http://llm.test:80 m"] == "open"


def test_a_probe_whose_reader_leaves_before_any_content_proves_nothing():
    io, pipeline, client = probing(PING, PING, pause=3)

    async def main():
        response = await opened(client)
        await response.aclose()

    io.run(main())
    assert pipeline.snapshot()["layers"][0]["not_closed"]["http://llm.test:80 m"] == "half-open"


@pytest.mark.parametrize(
    ("events", "read", "says"),
    [
        (WHOLE, 3, "neutral"),  # the reader leaves behind the first content
        (WHOLE, 4, "success"),  # behind the finish reason
        (WHOLE, 5, "success"),  # behind the last event: the openai SDK does
        ([TEXT, BUSY], 2, "failure"),
    ],
)
def test_a_reader_who_leaves_after_content_says_nothing_unless_the_answer_is_over(http, events, read, says):
    io = VirtualIO()
    script = Script(503, stream(*events), 503, forever=True, io=io)
    pipeline = Pipeline([Breaker(consecutive=2, jitter=0)])
    client = pipeline.async_client(http=http, transport=script, io=io)

    async def main():
        await client.post(URL, json=CHAT)
        response = await opened(client)
        chunks = response.stream.__aiter__()
        for _ in range(read):
            await anext(chunks)
        await response.aclose()
        opened_by_failure = not closed(pipeline)
        if not opened_by_failure:
            await client.post(URL, json=CHAT)
        # two failures in a row, unless there was a success between them
        return "failure" if opened_by_failure else "success" if closed(pipeline) else "neutral"

    assert io.run(main()) == says


# The real SDKs, on real sockets


ASK = {"model": "busyx1", "messages": [{"role": "user", "content": "hi"}], "stream": True}


def chat(sdk, model):
    return sdk.chat.completions.create(**{**ASK, "model": model})


def messages(sdk, model):
    return sdk.messages.create(max_tokens=9, **{**ASK, "model": model})


def responses(sdk, model):
    return sdk.responses.create(model=model, input="hi", stream=True)


CALLS = {
    "chat": (openai.OpenAI, openai.AsyncOpenAI, chat, openai.APIError, 3),
    "responses": (openai.OpenAI, openai.AsyncOpenAI, responses, None, 3),
    "messages": (anthropic.Anthropic, anthropic.AsyncAnthropic, messages, anthropic.APIStatusError, 6),
}


async def ask(world, provider, name, model, layers):
    """The events that an SDK delivers, and the error that ends them."""
    blocking, asynchronous, call, _, _ = CALLS[name]
    base = provider.url if name == "messages" else f"{provider.url}/v1"
    events, error = [], None
    if world.blocking:
        with attach(blocking(base_url=base, api_key="k"), layers) as sdk:
            try:
                events.extend(call(sdk, model))
            except Exception as exc:
                error = exc
    else:
        async with attach(asynchronous(base_url=base, api_key="k"), layers) as sdk:
            try:
                async for event in await call(sdk, model):
                    events.append(event)  # noqa: PERF401 - what came before an error counts
            except Exception as exc:
                error = exc
    return events, error


@pytest.fixture(params=["blocking", "asyncio"])
def sdk_world(request):
    """The SDKs bring their own library, and their async clients use asyncio."""
    return World(request.param, httpx2)


FAST = Retry(wait_initial=0, wait_jitter=0)


@pytest.mark.parametrize("name", CALLS)
def test_an_sdk_sees_one_clean_stream(sdk_world, provider, name):
    async def main():
        pipeline = Pipeline([FAST, Breaker(consecutive=1, key=lambda _: "all")])
        events, error = await ask(sdk_world, provider, name, "busyx1", [FAST])
        assert (len(events), error, provider.calls) == (CALLS[name][4], None, 2)
        events, error = await ask(sdk_world, provider, name, "midwayx1", pipeline)
        assert provider.calls == 3  # nothing is retried behind content
        assert not closed(pipeline, 1)
        expected = CALLS[name][3]
        assert error is None if expected is None else isinstance(error, expected)

    sdk_world.run(main)


@pytest.mark.parametrize("name", CALLS)
def test_a_stream_is_read_whole_behind_a_silence_longer_than_the_peek(sdk_world, provider, name):
    async def main():
        layers = [Retry(peek=0.01), Breaker(peek=0.01)]
        events, error = await ask(sdk_world, provider, name, "stall", layers)
        assert (len(events), error, provider.calls) == (CALLS[name][4], None, 1)

    sdk_world.run(main)


def test_plain_httpx_over_a_real_socket_behind_a_silence(world: World, provider):
    async def main():
        async with world.client([Retry(peek=0.01), Breaker()]) as client:
            whole = await client.post(f"{provider.url}/v1/chat/completions", json={**ASK, "model": "ok"})
            late = await client.post(f"{provider.url}/v1/chat/completions", json={**ASK, "model": "stall"})
            assert late.content.replace(b"stall", b"ok") == whole.content
            if world.mode == "trio":
                return  # httpx's own generators are left behind there when a stream is closed early
            response = await client.open(
                "POST", f"{provider.url}/v1/chat/completions", json={**ASK, "model": "stall"}
            )
            await client.drop(response)

    world.run(main)
