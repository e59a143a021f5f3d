"""Thousands of streams that go wrong in every way, and readers that do: in the end nothing is left over."""

from __future__ import annotations

import asyncio
import gc
import threading
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import anyio
import httpx
import httpx2
import openai
import pytest
import trio
import trio.testing

from dspex_pipe import (
    Breaker,
    Cache,
    Logging,
    Pipeline,
    RateLimit,
    Retry,
    StreamIntegrity,
    Timeout,
    attach,
    options,
)
from dspex_pipe.chaos import (
    Chaos,
    DoneWithoutFinish,
    Drip,
    Latency,
    Overload,
    Raise,
    SseError,
    Stall,
    Status,
    Throttle,
    Truncate,
)
from dspex_pipe.testing import Reply, Script, VirtualIO
from provider import Provider
from test_peek import DONE, PING, ROLE, STOP, TEXT

URL = "http://llm.test/v1/chat/completions"
WHOLE = [PING, ROLE, TEXT, TEXT, TEXT, STOP, DONE]
FAULTS = [
    Latency(3, jitter=5, rate=0.2),
    Raise("ConnectError", rate=0.02),
    Raise("ReadError", rate=0.02),
    Status(500, rate=0.04),
    Throttle(retry_after=2, rate=0.04),
    Overload(rate=0.04),
    SseError(after=0, rate=0.05),
    SseError(after=3, rate=0.05),
    Truncate(after=2, rate=0.05),
    Truncate(after=3, clean=True, rate=0.05),
    Stall(after=1, seconds=200, rate=0.05),
    Drip(size=7, every=0.5, rate=0.1),
    DoneWithoutFinish(rate=0.05),
]


def circuit_of(request):
    """One of many, so that some are closed at any time."""
    return str(zlib.crc32(request.content) % 40)


def stack(*, seed, faults=FAULTS, wait=0.1):
    return [
        Logging(),
        Cache(),
        Timeout(total=120),
        Retry(wait_initial=wait, wait_jitter=wait),
        Breaker(open_for=0.2, open_max=1, key=circuit_of),
        RateLimit(),
        Timeout(attempt=60, first_content=30, idle=30),
        StreamIntegrity(),
        Chaos(*faults, seed=seed),
    ]


def ask(number, model="m"):
    return {"model": model, "messages": [{"role": "user", "content": f"question {number}"}], "stream": True}


def left_over(pipeline):
    """What the layers still hold: waiters, probes, flights."""
    _, cache, _, _, breaker, limit, *_ = pipeline.snapshot()["layers"]
    return cache["under_way"], breaker["probing"], sum(key["waiting"] for key in limit["keys"].values())


# In virtual time: 2,000 streams, the same ones each time


@pytest.mark.parametrize("http", [httpx, httpx2], ids=["httpx", "httpx2"])
def test_two_thousand_streams_leave_nothing_behind(http):
    io = VirtualIO(seed=7)
    reply = Reply(chunks=WHOLE, headers={"content-type": "text/event-stream"}, delay=0.5, pause=0.5)
    script = Script(reply, forever=True, io=io)
    pipeline = Pipeline(stack(seed=7))
    client = pipeline.async_client(http=http, transport=script, io=io)
    endings = Counter()

    async def one(number):
        dice = Random(number)
        await io.sleep(dice.uniform(0, 300))
        pieces = dice.choice([0, 1, 3, 99])
        request = client.build_request("POST", URL, json=ask(number % 1500))  # some ask the same
        response = await client.send(request, stream=True)
        try:
            chunks = response.stream.__aiter__()
            for count in range(pieces):
                if await anext(chunks, None) is None:
                    return f"read {count > 3}"
            return f"left after {pieces}"
        finally:
            await response.aclose()

    async def maybe_cancelled(number):
        dice = Random(-number)
        try:
            if dice.random() < 0.3:
                return await io.bounded(one(number), dice.uniform(0, 330))
            return await one(number)
        except TimeoutError:
            return "cancelled"
        except http.HTTPError as exc:
            return type(exc).__name__

    async def who_still_waits():
        await io.sleep(1000)
        return len(io._turns)

    *ended, waiting = io.run_all(*(maybe_cancelled(number) for number in range(2000)), who_still_waits())
    assert waiting == 0  # no read goes on in the background
    endings.update(ended)
    assert sum(endings.values()) == 2000
    # every way to end has happened, and each often enough to mean something
    common = {"read True", "left after 0", "left after 1", "left after 3", "cancelled", "RemoteProtocolError"}
    assert all(endings[ending] >= 20 for ending in common), endings
    assert {"ReadTimeout", "BreakerOpen"} <= endings.keys(), endings
    assert script.open == 0
    assert left_over(pipeline) == (0, 0, 0)
    drawn = pipeline.snapshot()["layers"][-1]["drawn"]
    assert all(drawn), drawn


@pytest.mark.parametrize("events", [WHOLE, [PING, ROLE, *WHOLE]], ids=["soon", "late"])
def test_a_stream_cancelled_at_any_time_leaves_nothing_behind(events):
    """Swept: each quarter of a second of a call whose peek ends before its content, or after."""
    for quarters in range(60):
        io = VirtualIO()
        busy = Reply(status=503, headers={"content-length": "4"}, chunks=[b"bu", b"sy"], delay=1, pause=1)
        reply = Reply(chunks=events, headers={"content-type": "text/event-stream"}, delay=1, pause=0.75)
        script = Script(busy, reply, io=io)
        pipeline = Pipeline(stack(seed=0, faults=[Latency(0.25)]))
        client = pipeline.async_client(transport=script, io=io)

        async def call(io=io, client=client, seconds=quarters / 4 + 0.1):
            try:
                return await io.bounded(client.post(URL, json=ask(0)), seconds)
            finally:
                assert len(io._turns) == 0

        (result,) = io.run_all(call())
        assert script.open == 0
        assert left_over(pipeline) == (0, 0, 0)
        if not isinstance(result, TimeoutError):
            assert result.content == b"".join(events)
            return
    raise AssertionError("the sweep never came to an end")


# On real sockets


MODELS = ["ok"] * 6 + ["busyx1", "busy", "midway", "cut", "stall", "dropx1", "truncate", "503x1", "429x1"]
STREAMS = 250
FAULTS_OF_OURS = [
    Latency(0.002, jitter=0.01, rate=0.3),
    Truncate(after=2, rate=0.1),
    Drip(size=9, every=0.001, rate=0.1),
]


@pytest.fixture
def upstream():
    """A provider; in the end no connection to it is open, and no file or thread is left of it all."""
    gc.collect()
    files, threads = open_files(), threading.active_count()
    with Provider(slow=0.02) as provider:
        yield provider
        gc.collect()
        assert provider.wait_until_left(20)
    assert open_files() <= files
    assert threading.active_count() <= threads


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


class Soak:
    """Many readers of one client; each does what its number says."""

    def __init__(self, upstream, http):
        self.url = f"{upstream.url}/v1/chat/completions"
        self.http = http
        self.pipeline = Pipeline(stack(seed=3, faults=FAULTS_OF_OURS, wait=0.001))
        self.endings = []  # of threads, too, whose += on a Counter would lose some
        self.limits = http.Limits(max_connections=10, max_keepalive_connections=10)

    def plan(self, number):
        dice = Random(number)
        body = ask(number, dice.choice(MODELS))
        cancelled = dice.uniform(0, 0.04) if dice.random() < 0.3 else None
        return {"method": "POST", "url": self.url, "json": body}, dice.choice([0, 1, 2, 99, 99]), cancelled

    def end(self, ending):
        self.endings.append(ending)

    def check(self, client):
        assert len(self.endings) == STREAMS
        assert {"read", "left", "RemoteProtocolError"} <= set(self.endings), Counter(self.endings)
        assert "PoolTimeout" not in self.endings
        assert left_over(self.pipeline) == (0, 0, 0)
        pool = client._transport.inner._pool
        left = [one for one in pool.connections if not (one.is_idle() or one.is_closed())]
        if self.http is httpx:  # its pool forgets a call that is cancelled while it gets a connection
            left = [one for one in left if "CONNECTING" not in repr(one)]
        assert left == []


def run_threads(soak):
    def one(number):
        request, pieces, _ = soak.plan(number)
        try:
            if number % 10 == 0:  # dropped, neither read nor closed
                client.send(client.build_request(**request), stream=True)
                return soak.end("dropped")
            with client.stream(**request) as response:
                for count, _ in enumerate(response.iter_raw()):
                    if count == pieces:
                        return soak.end("left")
            return soak.end("read")
        except soak.http.HTTPError as exc:
            return soak.end(type(exc).__name__)

    with soak.pipeline.client(http=soak.http, limits=soak.limits, timeout=10) as client:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(one, range(STREAMS)))
        gc.collect()
        # the next call gives the connections of the dropped ones back
        client.post(soak.url, json=ask("the last", "ok"), extensions=options(skip=["Breaker", "Chaos"]))
        soak.check(client)
        assert soak.endings.count("dropped") >= 10


async def run_tasks(soak):
    async def one(number):
        request, pieces, cancelled = soak.plan(number)
        async with permits:
            with anyio.move_on_after(cancelled) as scope:
                soak.end(await read(request, pieces))
            if scope.cancelled_caught:
                soak.end("cancelled")

    async def read(request, pieces):
        try:
            async with client.stream(**request) as response:
                count = 0
                async for _ in response.aiter_raw():
                    count += 1
                    if count > pieces:
                        return "left"
            return "read"
        except soak.http.HTTPError as exc:
            return type(exc).__name__

    permits = anyio.CapacityLimiter(20)
    async with soak.pipeline.async_client(http=soak.http, limits=soak.limits, timeout=10) as client:
        async with anyio.create_task_group() as group:
            for number in range(STREAMS):
                group.start_soon(one, number)
        soak.check(client)
        assert soak.endings.count("cancelled") >= 10


@pytest.mark.filterwarnings("ignore:a response was dropped:ResourceWarning")
def test_in_threads(upstream, http):
    run_threads(Soak(upstream, http))


def test_on_asyncio(upstream, http):
    async def main():
        await run_tasks(Soak(upstream, http))
        gc.collect()
        for _ in range(10):  # httpx's own generators, left early, are finished by tasks of the loop
            await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


# httpx leaves its own generators behind when a stream is left early
@pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning")
def test_on_trio(upstream, http):
    async def main():
        before = trio.lowlevel.current_statistics().tasks_living
        await run_tasks(Soak(upstream, http))
        gc.collect()
        await trio.testing.wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().tasks_living == before

    trio.run(main)


def test_an_sdk_whose_streams_are_read_left_and_cancelled(upstream):
    async def main():
        pipeline = Pipeline(stack(seed=3, faults=FAULTS_OF_OURS, wait=0.001))
        endings = Counter()

        async def one(number):
            dice = Random(number)
            cancelled = dice.uniform(0, 0.04) if dice.random() < 0.3 else None
            with anyio.move_on_after(cancelled) as scope:
                endings[await read(ask(number, dice.choice(MODELS)), dice.choice([0, 1, 99]))] += 1
            endings["cancelled"] += scope.cancelled_caught

        async def read(body, pieces):
            try:
                async with await sdk.chat.completions.create(**body) as stream:
                    count = 0
                    async for _ in stream:
                        count += 1
                        if count > pieces:
                            return "left"
                return "read"
            except openai.OpenAIError as exc:
                return type(exc).__name__

        async with (
            attach(openai.AsyncOpenAI(base_url=f"{upstream.url}/v1", api_key="k"), pipeline) as sdk,
            anyio.create_task_group() as group,
        ):
            for number in range(STREAMS):
                group.start_soon(one, number)
        assert sum(endings.values()) == STREAMS
        assert {"read", "left", "cancelled", "APIError"} <= endings.keys(), endings
        assert left_over(pipeline) == (0, 0, 0)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())
