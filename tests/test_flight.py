"""Single-flight: one leads, the others wait, and no lead is ever lost."""

from __future__ import annotations

import asyncio
import threading
from collections import deque

import pytest
import trio
from hypothesis import given, strategies as st

from dspex_pipe.caching.flight import Flight, Flights, Landed
from dspex_pipe.io import ASYNC, BLOCKING
from dspex_pipe.testing import VirtualIO


def told(result):
    if isinstance(result, Landed):
        return result.result
    return "lead" if isinstance(result, Flight) else "alone"


def test_the_first_leads_and_the_others_get_what_it_lands():
    io, flights = VirtualIO(), Flights()

    async def caller(name):
        lead = await flights.join("k", io, None)
        if isinstance(lead, Flight):
            await io.sleep(5)
            lead.land(f"from {name}")
            lead.leave()  # after landing: nothing
            return f"{name} led"
        return told(lead)

    assert io.run_all(caller("a"), caller("b"), caller("c")) == ["a led", "from a", "from a"]
    assert (io.now(), len(flights)) == (5, 0)


def test_keys_fly_apart():
    io, flights = VirtualIO(), Flights()
    one, two = io.run_all(flights.join("a", io, None), flights.join("b", io, None))
    assert (told(one), told(two), len(flights)) == ("lead", "lead", 2)


def test_a_leader_that_leaves_hands_over_to_who_has_waited_longest():
    io, flights, leaders = VirtualIO(), Flights(), []

    async def caller(name):
        lead = await flights.join("k", io, None)
        assert isinstance(lead, Flight)
        leaders.append(name)
        await io.sleep(1)
        lead.leave()

    io.run_all(*(caller(name) for name in "abcd"))
    assert (leaders, len(flights)) == (list("abcd"), 0)


def test_a_leader_that_takes_too_long_loses_the_lead_to_one_of_those_who_wait():
    io, flights = VirtualIO(), Flights()

    async def slow():
        lead = await flights.join("k", io, None)
        await io.sleep(10)
        assert not lead.followers
        lead.land("too late")
        lead.leave()

    async def caller(takes, after=0):
        await io.sleep(after)
        result = await flights.join("k", io, 3)
        began = io.now()
        if isinstance(result, Flight):
            await io.sleep(takes)
            result.land(f"after {takes}")
            result.leave()
        return told(result), began

    # the second takes the lead at 3, is too slow as well, and loses it at 6; the fourth is served at 8
    results = io.run_all(slow(), caller(9), caller(2), caller(2, after=1))
    assert results[1:] == [("lead", 3), ("lead", 6), ("after 2", 8)]
    assert len(flights) == 0


def test_waiting_ends_at_the_deadline_and_takes_no_lead():
    io, flights = VirtualIO(), Flights()

    async def leader():
        lead = await flights.join("k", io, None)
        await io.sleep(10)
        lead.leave()

    async def follower():
        return told(await flights.join("k", io, 60, deadline=3)), io.now()

    assert io.run_all(leader(), follower())[1] == ("alone", 3)
    assert len(flights) == 0


@given(st.lists(st.sampled_from(["land", "leave", "cancel", "impatient"]), min_size=1, max_size=8))
def test_whatever_callers_do_nobody_waits_for_ever_and_nothing_is_left(behaviours):
    io, flights, outcomes = VirtualIO(), Flights(), []

    async def caller(what):
        lead = await flights.join("k", io, 0.5 if what == "impatient" else None)
        outcomes.append(told(lead))
        if isinstance(lead, Flight):
            try:
                await io.sleep(1)
                if what == "cancel":
                    raise asyncio.CancelledError
                if what != "leave":
                    lead.land("landed")
            finally:
                lead.leave()

    io.run_all(*(caller(what) for what in behaviours))
    assert len(outcomes) == len(behaviours)
    assert len(flights) == 0


@pytest.mark.parametrize("when", ["waiting", "handed over"])
def test_a_follower_cancelled_at_any_moment_loses_no_lead(when):
    io, flights = VirtualIO(), Flights()
    io._scheduled = True
    lead = _step(flights.join("k", io, None))
    follower = flights.join("k", io, None)
    follower.send(None)
    heir = flights.join("k", io, None)
    heir.send(None)
    if when == "handed over":
        lead.leave()  # the follower has the lead now, and does not know yet
    with pytest.raises(asyncio.CancelledError):
        follower.throw(asyncio.CancelledError())
    if when == "waiting":
        lead.leave()
    with pytest.raises(StopIteration) as done:
        heir.send(None)
    assert told(done.value.value) == "lead"
    done.value.value.leave()
    assert len(flights) == 0


def _step(coroutine):
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits")


def test_threads_asyncio_and_trio_follow_one_leader():
    flights, results, lock = Flights(), [], threading.Lock()
    ready = threading.Semaphore(0)
    lead = _step(flights.join("k", BLOCKING, None))

    async def follow(io):
        ready.release()
        result = await flights.join("k", io, None)
        with lock:
            results.append(told(result))

    async def asyncio_main():
        await asyncio.gather(*(follow(ASYNC) for _ in range(5)))

    async def trio_main():
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(follow, ASYNC)

    threads = [threading.Thread(target=lambda: _step(follow(BLOCKING))) for _ in range(5)]
    threads += [
        threading.Thread(target=lambda: asyncio.run(asyncio_main())),
        threading.Thread(target=lambda: trio.run(trio_main)),
    ]
    for thread in threads:
        thread.start()
    for _ in range(15):
        assert ready.acquire(timeout=20)
    while len(lead.followers) < 15:
        pass  # every one of them is about to join
    lead.land("one for all")
    for thread in threads:
        thread.join(20)
    assert results == ["one for all"] * 15
    assert len(flights) == 0


def test_two_threads_that_find_a_dropped_lead_at_once_both_go_on():
    class Crowded(deque):
        """Whoever sees that something is in it is overtaken by another thread, once."""

        overtaken = False

        def __len__(self):
            seen = super().__len__()
            if seen and not self.overtaken:
                self.overtaken = True
                other = threading.Thread(target=lambda: left.append(len(flights)))
                other.start()
                other.join(20)
            return seen

    flights, left = Flights(), []
    flights.dropped = Crowded()
    _step(flights.join("k", BLOCKING, None)).drop()
    assert isinstance(_step(flights.join("k", BLOCKING, None)), Flight)
    assert left == [0]
    assert len(flights) == 1


def test_an_event_of_a_loop_that_is_gone_is_nobodys_trouble():
    async def make():
        return ASYNC.event()

    for event in (asyncio.run(make()), trio.run(make)):
        event.set()
