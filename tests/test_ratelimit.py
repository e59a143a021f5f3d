"""The running RateLimit: virtual time and a scripted upstream, every mode and library, real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import types
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import anyio
import httpx
import pytest
import trio
from pyrate_limiter import Rate

from dspex_pipe import Pipeline, RateLimited, Retry, explain, options, refusal_of
from dspex_pipe.chain import blame
from dspex_pipe.events import EXTENSION, Record
from dspex_pipe.io import OutOfTime, drive
from dspex_pipe.layers.ratelimit import RateLimit
from dspex_pipe.testing import Reply, Script, VirtualIO, check_layer

URL = "http://a.test/thing"
LLM = "http://a.test/v1/chat/completions"
SMOOTH = Rate(1, 1000, 1)
TOO_MANY = Reply(status=429, headers={"retry-after": "10"})


def chat(model):
    return {"model": model, "messages": [{"role": "user", "content": "hi"}]}


class Rig:
    """One running layer over a script, on a virtual clock; calls are coroutines for `run_all`."""

    def __init__(self, policy, *steps, io=None):
        self.io = io or VirtualIO()
        self.limiter = policy.build()
        self.script = Script(*(steps or (200,)), forever=True, io=self.io)
        self.went = []

    async def call(self, name="", *, after=0.0, url=URL, deadline=None, **extra):
        await self.io.sleep(after)
        record = Record(1, self.io.now, None if deadline is None else self.io.now() + deadline)
        request = httpx.Request("GET", url, extensions={EXTENSION: record}, **extra)

        async def wire(request):
            self.went.append((name, round(self.io.now(), 6)))
            return await self.script(request)

        response = await self.limiter(request, wire, self.io)
        return SimpleNamespace(response=response, record=record)

    def run(self, *calls):
        return self.io.run_all(*calls)

    @property
    def waiting(self):
        return sum(line["waiting"] for line in self.limiter.snapshot()["keys"].values())


def names(rig):
    return [name for name, _ in rig.went]


def times(rig):
    return [time for _, time in rig.went]


# The kit


@pytest.mark.parametrize(
    "layer",
    [
        RateLimit(),
        RateLimit(rpm=60_000),
        RateLimit(Rate(2, 1000), Rate(100, 60_000)),
        RateLimit(rpm=60, max_wait=0, max_queue=0),
    ],
    ids=repr,
)
@pytest.mark.parametrize(
    "request_", [None, {"method": "POST", "url": LLM, "json": chat("m")}], ids=["get", "llm"]
)
def test_the_layer_keeps_the_contract(layer, request_):
    check_layer(layer, request=request_)


# Rates, in virtual time


def test_order_of_arrival():
    rig = Rig(RateLimit(SMOOTH))
    rig.run(*(rig.call(n, after=n / 100) for n in range(6)))
    assert names(rig) == [0, 1, 2, 3, 4, 5]
    assert times(rig) == [0, 1, 2, 3, 4, 5]


def test_several_rates():
    rig = Rig(RateLimit(Rate(2, 1000, 1), Rate(3, 60_000)))
    rig.run(*(rig.call() for _ in range(5)))
    assert times(rig) == [0, 0.5, 1, 20, 40]


def test_rpm_is_short_for_a_rate_per_minute():
    rig = Rig(RateLimit(Rate(1000, 1000), rpm=2))
    rig.run(*(rig.call() for _ in range(4)))
    assert times(rig) == [0, 0, 30, 60]


def test_burst():
    rig = Rig(RateLimit(Rate(10, 1000, 3)))
    rig.run(*(rig.call() for _ in range(5)), *(rig.call(after=9) for _ in range(4)))
    assert times(rig) == [0, 0, 0, 0.1, 0.2, 9, 9, 9, 9.1]


def test_keys_are_independent():
    rig = Rig(RateLimit(SMOOTH))
    slow = [rig.call("slow") for _ in range(3)]
    rig.run(
        *slow, rig.call("other host", url="http://b.test/"), rig.call("other port", url="http://a.test:81/")
    )
    assert rig.went[:3] == [("slow", 0), ("other host", 0), ("other port", 0)]


def test_each_model_has_its_own_rate():
    rig = Rig(RateLimit(SMOOTH))

    async def post(model):
        record = Record(1, rig.io.now)
        request = httpx.Request("POST", LLM, json=chat(model), extensions={EXTENSION: record})
        await rig.limiter(request, rig.script, rig.io)
        return rig.io.now()

    assert rig.run(post("a"), post("b"), post("a")) == [0, 0, 1]


def test_a_key_and_a_weight_of_ones_own():
    policy = RateLimit(
        Rate(10, 1000), key=lambda r: r.headers["x-team"], weight=lambda r: int(r.headers["x-units"])
    )
    rig = Rig(policy)
    ask = lambda team, units: rig.call(team, headers={"x-team": team, "x-units": units})  # noqa: E731
    rig.run(ask("a", "8"), ask("a", "7"), ask("b", "9"))
    assert rig.went == [("a", 0), ("b", 0), ("a", 0.5)]


def test_a_fixed_weight():
    rig = Rig(RateLimit(Rate(10, 1000), weight=5))
    rig.run(*(rig.call() for _ in range(3)))
    assert times(rig) == [0, 0, 0.5]


@pytest.mark.parametrize("weight", [0, 1.5, True, None])
def test_a_weight_function_that_returns_nonsense_is_told(weight):
    rig = Rig(RateLimit(rpm=5, weight=lambda _: weight))
    (error,) = rig.run(rig.call())
    assert isinstance(error, ValueError)
    assert f"got {weight!r}" in str(error)


def test_a_key_function_that_returns_nonsense_is_told_without_its_value():
    rig = Rig(RateLimit(key=lambda _: b"secret"))
    (error,) = rig.run(rig.call())
    assert isinstance(error, ValueError)
    assert "got bytes" in str(error)


def test_a_weight_that_never_fits_is_refused_and_nobody_knows_when():
    rig = Rig(RateLimit(rpm=5, weight=lambda _: 6))
    (error,) = rig.run(rig.call())
    assert isinstance(error, RateLimited)
    assert (error.retry_after, error.layer) == (None, "RateLimit")
    assert error.reason == "a weight of 6 never fits Rate(5, 60000)"
    assert rig.waiting == 0


def test_fail_fast_refusal_before_waiting_with_correct_retry_after():
    rig = Rig(RateLimit(SMOOTH, max_wait=1.5))
    *_, first, second = rig.run(*(rig.call() for _ in range(4)))
    assert [type(first), type(second)] == [RateLimited] * 2
    assert (first.retry_after, first.layer, first.sent) == (2, "RateLimit", False)
    assert first is not second
    assert str(first) == (
        "RateLimit: a wait of 2 s, longer than this call may wait (max_wait=1.5): Rate(1, 1000) "
        "(refused locally, nothing was sent); retry after 2 s"
    )
    assert rig.io.now() == 1  # only the one that waited moved the clock
    rig.run(rig.call())
    assert times(rig) == [0, 1, 2]  # nothing was spent


def test_a_deadline_bounds_the_wait():
    rig = Rig(RateLimit(SMOOTH))
    results = rig.run(rig.call(), rig.call(deadline=0.5), rig.call(deadline=5), rig.call(deadline=-1))
    assert [type(r).__name__ for r in results] == [
        "SimpleNamespace",
        "RateLimited",
        "SimpleNamespace",
        "RateLimited",
    ]
    assert times(rig) == [0, 1]


def test_max_queue_bounds_who_waits_and_a_call_that_need_not_wait_passes():
    rig = Rig(RateLimit(Rate(2, 2000, 2), max_queue=1))
    results = rig.run(*(rig.call() for _ in range(5)))
    assert [type(r) is RateLimited for r in results] == [False, False, False, True, True]
    assert results[-1].retry_after == 2
    assert "1 calls wait already" in results[-1].reason


def test_no_queue_at_all():
    rig = Rig(RateLimit(SMOOTH, max_queue=0))
    results = rig.run(rig.call(), rig.call())
    assert [type(r) is RateLimited for r in results] == [False, True]


def test_waits_are_told_to_the_trace():
    rig = Rig(RateLimit(SMOOTH))
    results = rig.run(rig.call(), rig.call())
    events = [[(e.decision, e.reason, e.seconds) for e in r.record.events] for r in results]
    assert events == [[], [("waits", "Rate(1, 1000)", 1.0)]]


# The gate


def test_a_429_gate_holds_everybody_once_and_releases_paced():
    rig = Rig(RateLimit(), TOO_MANY, 200)
    rig.run(rig.call("told"), *(rig.call(n, after=1 + n / 10) for n in range(4)))
    assert rig.went == [("told", 0), (0, 10), (1, 10.05), (2, 10.0995), (3, 10.148505)]
    rig.run(rig.call("later", after=9))
    assert rig.went[-1] == ("later", 19.148505)


def test_the_429_itself_is_handed_up_unchanged_and_told():
    rig = Rig(RateLimit(), Reply(status=429, headers={"retry-after-ms": "1500"}, content=b"slow down"))
    (result,) = rig.run(rig.call())
    assert result.response.status_code == 429
    assert b"".join(result.response.stream) == b"slow down"
    assert [(e.decision, e.seconds) for e in result.record.events] == [("holds its key", 1.5)]
    assert rig.limiter.snapshot() == {"keys": {"http://a.test:80": {"waiting": 0, "gate": 1.5}}}


def test_concurrent_429s_do_not_add_up():
    late = Reply(status=429, headers={"retry-after": "10"}, delay=2)
    soon = Reply(status=429, headers={"retry-after": "3"}, delay=1)
    rig = Rig(RateLimit(), late, soon, soon, 200)
    rig.run(*(rig.call() for _ in range(3)), rig.call("held", after=3))
    assert rig.went[-1] == ("held", 12)


def test_a_later_429_moves_those_at_the_gate_in_their_order():
    rig = Rig(RateLimit(), TOO_MANY, Reply(status=429, headers={"retry-after": "20"}, delay=5), 200)
    rig.run(*(rig.call("told") for _ in range(2)), *(rig.call(n, after=1 + n) for n in range(8)))
    assert names(rig)[2:] == list(range(8))
    assert times(rig)[2] == 25


def test_those_with_a_slot_wait_at_the_gate_when_their_time_comes():
    slow = Reply(status=429, headers={"retry-after": "10"}, delay=0.5)
    rig = Rig(RateLimit(SMOOTH), slow, 200)
    rig.run(rig.call("told"), *(rig.call(n, after=0.1) for n in range(3)), rig.call("last", after=5))
    assert rig.went == [("told", 0), (0, 10.5), (1, 11.5), (2, 12.5), ("last", 13.5)]


def test_other_keys_pass_a_shut_gate():
    rig = Rig(RateLimit(), TOO_MANY, 200)
    rig.run(rig.call("told"), rig.call("held", after=1), rig.call("free", after=1, url="http://b.test/"))
    assert rig.went[1:] == [("free", 1), ("held", 10)]


@pytest.mark.parametrize("wait", ["1e9", "inf", "100000"])
def test_what_a_server_says_is_bounded(wait):
    rig = Rig(RateLimit(gate_cap=30), Reply(status=429, headers={"retry-after": wait}), 200)
    rig.run(rig.call(), rig.call(after=1))
    assert times(rig) == [0, 30]


@pytest.mark.parametrize(
    "reply",
    [
        429,
        Reply(status=429, headers={"retry-after": "soon"}),
        Reply(status=503, headers={"retry-after": "9"}),
    ],
)
def test_without_a_429_that_names_a_wait_the_gate_stays_open(reply):
    rig = Rig(RateLimit(), reply, 200)
    rig.run(rig.call(), rig.call(after=1))
    assert times(rig) == [0, 1]


@pytest.mark.parametrize(
    ("status", "headers", "code", "wait"),
    [
        (429, {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "9s"}, "tokens", 0),
        (503, {"retry-after": "9"}, "slow_down", 9),
        (429, {"retry-after": "9"}, "insufficient_quota", 0),
        (503, {"retry-after": "9"}, "server_is_overloaded", 0),
    ],
)
def test_the_gate_goes_by_what_the_answer_means(world, status, headers, code, wait):
    async def main():
        io = VirtualIO()
        script = Script(Reply(status=status, headers=headers, json={"error": {"code": code}}), 200, io=io)
        async with world.client([RateLimit()], transport=script, io=io) as client:
            await client.get(URL)
            await client.get(URL)
        assert io.now() == pytest.approx(wait)

    world.run(main)


def told(size, left, reset, *, unit="requests", **more):
    """A 429 of OpenAI's, with one limit."""
    headers = {
        f"x-ratelimit-limit-{unit}": size,
        f"x-ratelimit-remaining-{unit}": left,
        f"x-ratelimit-reset-{unit}": reset,
        **more,
    }
    error = {"type": unit, "code": "rate_limit_exceeded"}
    return Reply(status=429, headers=headers, json={"error": error})


@pytest.mark.parametrize(
    ("reply", "went"),
    [
        # ten a second, for as long as it takes
        (told("600", "0", "1m0s", **{"retry-after-ms": "500"}), [0.5 + n / 10 for n in range(60)]),
        # the same, of which a second's worth is allowed at once; and no word of when to come back
        (told("600", "590", "1s"), [0.1 + n / 10 for n in range(60)]),
        # a call lacked the tokens that come in within half a second
        (told("60000", "500", "59.5s", unit="tokens", **{"retry-after-ms": "500"}), [0.5, 1, 1.495, 1.98505]),
        # a large one did: the gaps add up to no more than the minute until the limit is full
        (
            told("60000", "0", "1m", unit="tokens", **{"retry-after": "30"}),
            [30 + 60 * (1 - 0.99**n) for n in range(300)],
        ),
        (told("60000", "0", "1m", unit="tokens"), [0, 0, 0]),
        # fifty a day: no pace to go at
        (told("50", "0", "24h", **{"retry-after": "2"}), [2, 2.02, 2.0398]),
    ],
    ids=["ten a second", "a second's worth", "tokens", "a large call", "tokens, no word", "a day's"],
)
def test_after_a_429_that_tells_its_limit_calls_go_as_fast_as_that_fills(world, reply, went):
    async def main():
        io = VirtualIO()
        at = []

        async def seen(request, call_next, io):
            at.append(io.now())
            return await call_next(request)

        script = Script(reply, *[200] * len(went), io=io)
        async with world.client([RateLimit(), seen], transport=script, io=io) as client:
            await client.get(URL)
            for _ in went:
                await client.get(URL)
        return at

    # one after the other, so that each waits for its own place
    assert world.run(main)[1:] == pytest.approx(went)


def one_a_second():
    return told("60", "0", "1m0s", **{"retry-after": "1"})


async def impatient(rig, call, seconds, after=0.0):
    await rig.io.sleep(after)
    with contextlib.suppress(OutOfTime):
        return await rig.io.bounded(call, seconds)


def test_who_waits_goes_sooner_when_others_give_up():
    rig = Rig(RateLimit(), one_a_second(), 200)
    calls = [rig.call(n, after=0.1) for n in range(10)]
    patience = [100, 100, *[2.5] * 6, 100, 100]
    *_, last = rig.run(rig.call("told"), *map(partial(impatient, rig), calls, patience))
    assert names(rig) == ["told", 0, 1, 8, 9]
    assert times(rig)[:3] == [0, 1, 2]
    assert 3 <= times(rig)[3] < times(rig)[4] < 7  # instead of 9 and 10
    # told once, not each time that it looks
    assert [(e.decision, e.seconds) for e in last.record.events] == [("waits", pytest.approx(9.9))]


@pytest.mark.parametrize(
    ("rates", "least"), [((), 55), ((Rate(10, 10_000, 3),), 55), ((SMOOTH,), 25)], ids=repr
)
def test_callers_who_give_up_cost_nobodys_place(rates, least):
    rig = Rig(RateLimit(*rates), one_a_second(), 200)
    rig.run(*(impatient(rig, rig.call(n), 30, n / 1.5) for n in range(900)))
    # more come than may go, for ten minutes
    assert least < sum(540 <= time < 600 for time in times(rig)) <= 61


def test_the_gate_refuses_at_once_what_cannot_wait():
    rig = Rig(RateLimit(max_wait=5, max_queue=2), TOO_MANY, 200)
    results = rig.run(
        rig.call(),
        rig.call(after=1),
        rig.call(after=6),
        rig.call(after=6, deadline=1),
        rig.call(after=6),
        rig.call(after=6),
    )
    refused = [type(r) is RateLimited for r in results]
    assert refused == [False, True, False, True, False, True]
    assert results[1].retry_after == 9
    assert "429" in results[1].reason
    assert "2 calls wait already" in results[5].reason


def test_who_cannot_wait_for_a_gate_that_shuts_again_is_refused_then():
    again = Reply(status=429, headers={"retry-after": "30"}, delay=5)
    rig = Rig(RateLimit(max_wait=12), TOO_MANY, again, 200)
    *_, held = rig.run(rig.call(), rig.call(), rig.call(after=1))
    assert isinstance(held, RateLimited)
    assert held.retry_after == 29.5  # when it looks at its place again
    assert rig.waiting == 0


def test_retry_above_comes_back_when_the_gate_opens_and_not_as_a_herd():
    io = VirtualIO()
    script = Script(*[Reply(status=429, headers={"retry-after": "2"})] * 20, 200, forever=True, io=io)
    went = []

    async def clock(request, call_next):
        went.append(io.now())
        return await call_next(request)

    stack = Pipeline([Retry(budget=None), RateLimit(), clock])

    async def main():
        async with stack.async_client(transport=script, io=io) as client:
            return (await client.get(URL)).status_code

    assert io.run_all(*(main() for _ in range(20))) == [200] * 20
    back = went[20:]
    assert back[0] == 2
    assert all(later > sooner for sooner, later in pairwise(back))


# Cancellation


class Cancelled(BaseException):
    pass


@types.coroutine
def _suspend():
    yield


class Stepping(VirtualIO):
    """While stepping, every wait suspends, and the test decides how it goes on."""

    stepping = False

    async def sleep(self, seconds):
        await (_suspend() if self.stepping else super().sleep(seconds))


def suspend(rig, coroutine, suspensions):
    """Run a call up to its n-th suspension."""
    rig.io.stepping = True
    for _ in range(suspensions):
        coroutine.send(None)
    rig.io.stepping = False


SITUATIONS = {
    "a slot": (RateLimit(SMOOTH), (200,)),
    "a slot of several rates": (RateLimit(SMOOTH, Rate(2, 5000)), (200,)),
    "the gate": (RateLimit(), (TOO_MANY, 200)),
    "the gate, then a slot": (RateLimit(SMOOTH), (TOO_MANY, 200)),
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_cancelled_at_any_suspension_it_leaves_nothing_behind(situation):
    policy, steps = SITUATIONS[situation]

    def next_call_goes_at(cancel_at):
        rig = Rig(policy, *steps, io=Stepping())
        rig.run(rig.call())
        if cancel_at is not None:
            victim = rig.call("victim")
            suspend(rig, victim, cancel_at)
            with pytest.raises(Cancelled):
                victim.throw(Cancelled())
        assert rig.waiting == 0
        rig.run(rig.call("next"))
        assert "victim" not in names(rig)
        return times(rig)[-1]

    for cancel_at in (1, 2):  # before it came in; waiting inside
        assert next_call_goes_at(cancel_at) == next_call_goes_at(None)


def test_cancelled_waiter_gives_slot_back():
    rig = Rig(RateLimit(SMOOTH), io=Stepping())
    rig.run(rig.call())
    victims = [rig.call() for _ in range(5)]
    for victim in victims:
        suspend(rig, victim, 2)
    assert rig.waiting == 5
    for victim in (victims[i] for i in (2, 0, 4, 1, 3)):
        with pytest.raises(Cancelled):
            victim.throw(Cancelled())
    assert rig.waiting == 0
    rig.run(rig.call("next"))
    assert rig.went[-1] == ("next", 1)


def test_those_behind_a_cancelled_waiter_keep_their_time_and_nobody_gets_it_twice():
    rig = Rig(RateLimit(SMOOTH), io=Stepping())
    rig.run(rig.call())
    first, second = rig.call("first"), rig.call("second")
    suspend(rig, first, 2)
    suspend(rig, second, 2)
    with pytest.raises(Cancelled):
        first.throw(Cancelled())
    rig.io.advance(2)
    rig.run(second)
    rig.run(rig.call("next"))
    assert rig.went[1:] == [("second", 2), ("next", 3)]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("situation", SITUATIONS)
def test_cancelled_on_a_real_loop_it_leaves_nothing_behind(backend, situation):
    policy, steps = SITUATIONS[situation]
    stack = Pipeline([policy])

    async def main():
        async with stack.async_client(
            transport=Script(*steps, forever=True), base_url="http://a.test"
        ) as client:
            await client.get("/")
            async with anyio.create_task_group() as group:
                for _ in range(5):
                    group.start_soon(client.get, "/")
                await anyio.wait_all_tasks_blocked()
                (line,) = stack.snapshot()["layers"][0]["keys"].values()
                assert line["waiting"] == 5
                group.cancel_scope.cancel()

    anyio.run(main, backend=backend)
    (line,) = stack.snapshot()["layers"][0]["keys"].values()
    assert line["waiting"] == 0
    assert len(stack[RateLimit].lines) == 1


def test_a_task_that_is_cancelled_the_asyncio_way_leaves_nothing_behind():
    stack = Pipeline([RateLimit(Rate(1, 3_600_000))])

    async def main():
        async with stack.async_client(transport=Script(200, forever=True)) as client:
            await client.get(URL)
            tasks = [asyncio.ensure_future(client.get(URL)) for _ in range(3)]
            await anyio.wait_all_tasks_blocked()
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(r) for r in results] == [asyncio.CancelledError] * 3
            with pytest.raises(httpx.TransportError) as caught:
                await client.get(URL, extensions=options(deadline=1))
            assert refusal_of(caught.value).retry_after == pytest.approx(3600, abs=30)

    asyncio.run(main())


def test_an_error_below_leaves_no_waiter():
    rig = Rig(RateLimit(rpm=60), "ReadError")
    (error,) = rig.run(rig.call())
    assert isinstance(error, httpx.ReadError)
    assert rig.waiting == 0


# One state for threads, several asyncio loops and trio


def test_one_state_serves_threads_two_asyncio_loops_and_trio_at_once():
    stack = Pipeline([RateLimit(Rate(20, 3_600_000), max_wait=1)])
    script = Script(200, forever=True)
    results = []

    def blocking():
        with stack.client(transport=script) as client:
            for _ in range(10):
                try:
                    results.append(client.get(URL).status_code)
                except httpx.TransportError as exc:
                    results.append(type(refusal_of(exc)).__mro__)

    async def one(client):
        try:
            results.append((await client.get(URL)).status_code)
        except httpx.TransportError as exc:
            results.append(type(refusal_of(exc)).__mro__)

    async def many():
        async with stack.async_client(transport=script) as client, anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(one, client)

    threads = [
        threading.Thread(target=blocking),
        threading.Thread(target=blocking),
        threading.Thread(target=lambda: asyncio.run(many())),
        threading.Thread(target=lambda: asyncio.run(many())),
        threading.Thread(target=lambda: trio.run(many)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 50
    assert results.count(200) == 20
    assert all(r == 200 or RateLimited in r for r in results)


def test_threads_that_wait_all_go_and_leave_the_queue_empty():
    stack, io = Pipeline([RateLimit(SMOOTH)]), VirtualIO()
    answers = []
    with stack.client(transport=Script(200, forever=True), io=io) as client:
        threads = [threading.Thread(target=lambda: answers.append(client.get(URL))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [answer.status_code for answer in answers] == [200] * 8
    (line,) = stack.snapshot()["layers"][0]["keys"].values()
    assert line == {"waiting": 0, "gate": 0}


# Every mode and library


def test_calls_are_spaced_in_every_mode(world):
    io = VirtualIO()
    script = Script(200, forever=True, io=io)

    async def main():
        async with world.client([RateLimit(SMOOTH)], transport=script, io=io) as client:
            return [(await client.get(URL)).status_code for _ in range(4)]

    assert world.run(main) == [200] * 4
    assert io.now() == 3


def test_a_refusal_speaks_the_callers_language(world):
    io = VirtualIO()

    async def main():
        script = Script(200, forever=True, io=io)
        async with world.client([RateLimit(rpm=1, max_wait=9)], transport=script, io=io) as client:
            await client.get(URL)
            with pytest.raises(world.http.TransportError) as caught:
                await client.get(URL)
            answer = await client.get(URL, headers={"x-stainless-lang": "python"})
            return caught.value, answer

    error, answer = world.run(main)
    assert isinstance(error, RateLimited)
    assert error.retry_after == 60
    assert (answer.status_code, float(answer.headers["retry-after"])) == (429, 60)
    assert answer.headers["x-should-retry"] == "false"


def test_the_gate_in_every_mode(world):
    io = VirtualIO()
    script = Script(TOO_MANY, 200, forever=True, io=io)

    async def main():
        async with world.client([Retry(), RateLimit()], transport=script, io=io) as client:
            return await client.get(URL)

    got = world.run(main)
    assert (got.status_code, io.now()) == (200, 10)
    assert [(e.layer, e.decision) for e in explain(got) if e.layer == "RateLimit"] == [
        ("RateLimit", "holds its key")
    ]


def test_a_pipelines_snapshot_is_json(world):
    stack = Pipeline([RateLimit(rpm=60), RateLimit()])

    async def main():
        async with world.client(stack, transport=Script(200, io=VirtualIO()), io=VirtualIO()) as client:
            await client.get(URL)

    world.run(main)
    told = json.loads(json.dumps(stack.snapshot()))
    line = {"waiting": 0, "gate": 0}
    assert told["layers"] == [{"layer": "RateLimit", "keys": {"http://a.test:80": line}}] * 2
    stack.close()


def test_a_provider_that_throttles_on_a_real_socket(world, provider):
    provider.retry_after_ms = 30

    async def main():
        async with world.client([Retry(), RateLimit(gate_pace=0.001)]) as client:
            first = await client.post(f"{provider.url}/v1/chat/completions", json=chat("429x1"))
            second = await client.post(f"{provider.url}/v1/chat/completions", json=chat("ok"))
            return first, second

    first, second = world.run(main)
    assert [first.status_code, second.status_code] == [200, 200]
    assert [
        e.seconds for e in explain(first) if e.layer == "RateLimit" and e.decision == "holds its key"
    ] == [0.03]
    assert not [e for e in explain(second) if e.layer == "RateLimit"]  # another model: another key
    assert provider.calls == 3


def test_a_body_on_a_real_socket_comes_whole(world, provider):
    async def main():
        async with world.client([RateLimit(rpm=6000)]) as client:
            return await client.post(f"{provider.url}/v1/chat/completions", json=chat("ok"))

    assert world.run(main).json()["choices"]


def test_100_000_keys_stay_within_the_table_bound():
    keys = iter(range(100_000))
    limiter, io = RateLimit(Rate(1000, 1000), key=lambda _: f"k{next(keys)}").build(), VirtualIO()
    request = httpx.Request("GET", URL, extensions={EXTENSION: Record(1, io.now)})

    async def wire(_):
        return SimpleNamespace(status_code=200)

    for _ in range(100_000):
        io.advance(0.01)
        drive(limiter(request, wire, io), blame)
    assert len(limiter.lines) <= 10_000
    assert len(limiter.rates.table) <= 10_000
