"""The parts of RateLimit that decide: configuration, the gate's line, the slots under several rates."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
import threading
from itertools import pairwise
from types import SimpleNamespace

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from pyrate_limiter import Duration, Rate

from dspex_pipe.layers.ratelimit import Line, RateLimit, RedisStore, Waiter, patience
from dspex_pipe.stores.rates import MemoryRates, Schedule, Slot
from dspex_pipe.wire import Pace
from gcra import earliest

INF = math.inf


# Configuration


@pytest.mark.parametrize(
    ("config", "shown"),
    [
        (RateLimit(), "RateLimit(per process)"),
        (RateLimit(rpm=60), "RateLimit(rpm=60, per process)"),
        (RateLimit(Rate(5, Duration.SECOND)), "RateLimit(Rate(5, 1000), per process)"),
        (
            RateLimit(Rate(5, 1000, 1), Rate(100, 60_000), max_wait=3, max_queue=0),
            "RateLimit(Rate(5, 1000, burst=1), Rate(100, 60000), max_wait=3, max_queue=0, per process)",
        ),
        (
            RateLimit(rpm=1, store=RedisStore(url="redis://me:secret@h:1/2?password=hidden", timeout=1)),
            "RateLimit(rpm=1, store=RedisStore(url='redis://h:1/2', timeout=1), gate per process)",
        ),
        (RedisStore(prefix="app"), "RedisStore(url='redis://localhost:6379/0', prefix='app')"),
    ],
)
def test_repr_shows_what_differs_and_how_far_it_reaches(config, shown):
    assert repr(config) == shown


def test_configurations_compare_hash_and_copy_by_value():
    make = lambda limit: RateLimit(Rate(limit, 1000), rpm=6, max_wait=1, store=RedisStore())  # noqa: E731
    assert make(5) == make(5) == copy.deepcopy(make(5)) != make(6)
    assert len({make(5), make(5), make(6)}) == 2


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: RateLimit(5), r"pyrate_limiter.Rate\(limit, interval, burst\)"),
        (lambda: RateLimit(SimpleNamespace(limit=0, interval=1, burst=1)), "whole and 1 or more"),
        (lambda: RateLimit(SimpleNamespace(limit=1.5, interval=1, burst=1)), "whole and 1 or more"),
        (lambda: RateLimit(Rate(1, -5)), "whole and 1 or more"),
        (lambda: RateLimit(rpm=0), r"rpm=….*1 or more, or None, got 0"),
        (lambda: RateLimit(rpm=True), "got True"),
        (lambda: RateLimit(key="origin"), r"key=….*function of the request, got 'origin'"),
        (lambda: RateLimit(max_wait=-1), r"max_wait=….*0 or more, or None, got -1"),
        (lambda: RateLimit(max_queue=-1), r"max_queue=….*0 or more, or None, got -1"),
        (lambda: RateLimit(weight=0), r"weight=….*1 or more, or a function.*got 0"),
        (lambda: RateLimit(rpm=5, weight=6), "at most the burst of every rate, 5, got 6"),
        (lambda: RateLimit(Rate(9, 1, 2), rpm=5, weight=3), "at most the burst of every rate, 2, got 3"),
        (lambda: RateLimit(store="redis://h"), "takes a RedisStore, or None, got str"),
        (lambda: RateLimit(store=RedisStore()), "a store only with a rate"),
        (lambda: RateLimit(on_store_error="ajar"), '"open" or "closed", got \'ajar\''),
        (lambda: RateLimit(on_store_error=["open"]), r'"open" or "closed", got \[\'open\'\]'),
        (lambda: RateLimit(gate_cap=INF), "gate_cap=….*got inf"),
        (lambda: RateLimit(gate_pace=-0.1), "gate_pace=….*got -0.1"),
        (lambda: RedisStore(url="http://h"), "'redis', 'rediss' or 'unix' before '://', got one with 'http'"),
        (lambda: RedisStore(url=7), "got int"),
        (lambda: RedisStore(url="localhost:6379"), "got str"),
        (lambda: RedisStore(prefix=""), "a name, got ''"),
        (lambda: RedisStore(timeout=0), "timeout=….*got 0"),
    ],
)
def test_a_bad_argument_says_what_is_allowed(make, told):
    with pytest.raises(ValueError, match=told):
        make()


def test_a_url_that_is_refused_does_not_show_its_password():
    with pytest.raises(ValueError, match="takes a URL") as caught:
        RedisStore(url="http://me:secret@h")
    assert "secret" not in str(caught.value)


def test_a_positional_argument_must_be_a_rate_and_a_name_must_be_known():
    with pytest.raises(TypeError):
        RateLimit(burst=5)


def test_importing_and_describing_loads_no_limiter():
    code = (
        "import sys; from dspex_pipe.layers.ratelimit import RateLimit, RedisStore;"
        "RateLimit(rpm=5, store=RedisStore()); RateLimit().build();"
        "print([m for m in ('pyrate_limiter', 'redis', 'anyio.to_thread') if m in sys.modules][:2])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pyrate_limiter" not in out.stdout
    assert "redis" not in out.stdout


# Patience


@pytest.mark.parametrize(
    ("max_wait", "full", "deadline", "seconds"),
    [
        (None, False, None, INF),
        (5.0, False, None, 3.0),
        (1.0, False, None, 0.0),
        (None, False, 11.0, 1.0),
        (9.0, False, 9.0, 0.0),
        (None, True, None, 0.0),
        (5.0, False, 11.0, 1.0),
    ],
)
def test_patience_is_the_shortest_bound(max_wait, full, deadline, seconds):
    policy = RateLimit(max_wait=max_wait)
    assert patience(policy, Waiter(8.0), full=full, deadline=deadline, now=10.0) == seconds


# Slots under rates


def schedule(*rates):
    return Schedule(rates)


def ask(schedule, now=0.0, weight=1, longest=INF):
    slot = Slot("k", weight)
    schedule.reserve(slot, now, longest)
    return slot


def waits(schedule, *nows):
    return [ask(schedule, now).wait for now in nows]


def test_burst_goes_at_once_and_then_evenly():
    assert waits(schedule(Rate(4, 1000)), *[0.0] * 6) == [0, 0, 0, 0, 0.25, 0.5]
    assert waits(schedule(Rate(4, 1000, 1)), *[0.0] * 4) == [0, 0.25, 0.5, 0.75]
    assert waits(schedule(Rate(4, 1000)), *[0.0] * 4, 10.0, 10.0) == [0] * 6


def test_time_fills_the_bucket_again():
    assert waits(schedule(Rate(4, 1000, 1)), 0.0, 0.25, 0.5, 0.6) == pytest.approx([0, 0, 0, 0.15])


def test_several_rates_hold_together():
    both = schedule(Rate(10, 1000, 1), Rate(3, 60_000))
    assert waits(both, *[0.0] * 5) == [0, 0.1, 0.2, 20, 40]


def test_a_rate_that_was_not_in_the_way_still_counts_from_when_the_call_goes():
    both = schedule(Rate(2, 10_000, 1), Rate(5, 1000, 2))
    assert waits(both, 0.0, 0.0) == [0, 5]  # the second rate would have let both go
    assert both.state[1] == 5_200_000


def test_weight_takes_so_many_units():
    one = schedule(Rate(10, 1000))
    assert [ask(one, weight=w).wait for w in (7, 7, 1)] == pytest.approx([0, 0.4, 0.5])


def test_a_weight_over_the_burst_never_fits():
    slot = ask(schedule(Rate(10, 1000), Rate(3, 1000)), weight=4)
    assert (slot.granted, slot.wait) == (False, None)


def test_refusing_spends_nothing_and_tells_the_wait():
    one = schedule(Rate(1, 1000))
    ask(one)
    before = one.state
    slots = [ask(one, longest=0.999999) for _ in range(3)]
    assert [(s.granted, s.wait) for s in slots] == [(False, 1.0)] * 3
    assert one.state == before
    assert ask(one, longest=1.0).granted


def test_the_last_to_leave_frees_its_slot():
    one = schedule(Rate(1, 1000))
    ask(one)
    one.leave(ask(one))
    assert ask(one).wait == 1


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_when_all_leave_it_is_as_though_they_never_came(order):
    one = schedule(Rate(1, 1000))
    ask(one)
    before = one.state
    slots = [ask(one) for _ in range(3)]
    for index in order:
        one.leave(slots[index])
        one.leave(slots[index])  # twice is once
    assert ask(one, longest=0).wait == 1
    assert one.state == before


def test_a_slot_left_in_the_middle_is_not_promised_twice():
    smooth = schedule(Rate(1, 1000, 1))
    slots = [ask(smooth) for _ in range(4)]
    smooth.leave(slots[1])
    assert ask(smooth).wait == 3
    assert [slot.at for slot in slots[2:]] == [1_000_000, 2_000_000]  # they have moved forward
    assert [smooth.left(slot, 0.5) for slot in slots[2:]] == [0.5, 1.5]
    bursty = schedule(Rate(1, 1000, 3))
    slots = [ask(bursty) for _ in range(6)]
    assert [s.wait for s in slots] == [0, 0, 0, 1, 2, 3]
    bursty.leave(slots[3])
    assert ask(bursty).wait == 3
    assert [slot.at for slot in slots[4:]] == [1_000_000, 2_000_000]


def test_nobody_overtakes_though_slots_became_free():
    bursty = schedule(Rate(1, 1000, 3))
    slots = [ask(bursty) for _ in range(6)]
    bursty.leave(slots[3])
    bursty.leave(slots[4])
    assert ask(bursty).wait == 2
    assert slots[5].at == 1_000_000
    # whose time had come is not called back
    slots = [ask(bursty, now=2.0) for _ in range(2)]
    bursty.leave(slots[0])
    assert bursty.left(slots[1], 4.5) == -0.5


def test_leaving_long_after_its_time_changes_nothing():
    one = schedule(Rate(1, 1000, 1))
    late = [ask(one), ask(one)][1]
    assert ask(one, now=5.0).wait == 0
    one.leave(late)
    assert ask(one, now=5.0).wait == 1


def test_what_is_left_after_its_time_is_spent_once_others_have_come():
    one = schedule(Rate(1, 1000, 1))
    late = [ask(one), ask(one)][1]
    assert ask(one, now=1.0).wait == 1
    one.leave(late)
    assert ask(one, now=1.0).wait == 2


def test_a_slot_that_was_free_or_refused_has_nothing_to_give_back():
    one = schedule(Rate(1, 1000))
    one.leave(ask(one))
    one.leave(ask(one, longest=0))
    assert ask(one).wait == 1


def conform(rates, releases):
    """Whether releases (microseconds, weight), in order, satisfy GCRA, restated from its definition."""
    for rate in rates:
        unit, tat = math.ceil(rate.interval * 1000 / rate.limit), 0
        for at, weight in releases:
            tat = max(tat, at)
            assert tat + (weight - rate.burst) * unit <= at, (rate, at, releases)
            tat += weight * unit


RATES = [
    (Rate(1, 1000),),
    (Rate(4, 1000, 1),),
    (Rate(7, 1000), Rate(20, 10_000, 9)),
    (Rate(3, 100, 3), Rate(2, 1000, 5)),
]


class Slots(RuleBasedStateMachine):
    """Any course of coming, waiting, leaving: the rates hold, the order holds, nothing is wasted."""

    rates: tuple[Rate, ...]

    def __init__(self):
        super().__init__()
        self.now = 1_000_000
        self.schedule = Schedule(self.rates)
        self.kept: list[Slot] = []
        self.holes = False

    @rule(milliseconds=st.integers(0, 3000))
    def time_passes(self, milliseconds):
        self.now += milliseconds * 1000

    @rule(weight=st.integers(1, 3), longest=st.sampled_from([0.0, 0.3, 2.0, INF]))
    def come(self, weight, longest):
        if any(weight > rate.burst for rate in self.rates):
            return
        self.close_up()
        expected = earliest(self.rates, [(slot.at, slot.weight) for slot in self.kept], self.now, weight)
        slot = ask(self.schedule, self.now / 1e6, weight, longest)
        assert slot.wait == pytest.approx((expected - self.now) / 1e6)
        assert slot.granted == (slot.wait <= longest)
        if slot.granted:
            assert slot.at == expected
            self.kept.append(slot)

    @precondition(lambda self: any(s.at > self.now for s in self.kept))
    @rule(data=st.data())
    def leave(self, data):
        waiting = [slot for slot in self.kept if slot.at > self.now]
        slot = data.draw(st.sampled_from(waiting))
        self.schedule.leave(slot)
        self.kept.remove(slot)
        self.holes = True

    @precondition(lambda self: any(s.at > self.now for s in self.kept))
    @rule()
    def close_up(self):
        """Once somebody looks, all who wait go as early as they can, and never later than was promised."""
        waiting = [slot for slot in self.kept if slot.at > self.now]
        went = [(slot.at, slot.weight) for slot in self.kept if slot.at <= self.now]
        promised = [slot.at for slot in waiting]
        for slot in waiting:
            went.append((earliest(self.rates, went, self.now, slot.weight), slot.weight))
        for slot in waiting:
            self.schedule.left(slot, self.now / 1e6)
        if self.holes:
            assert [slot.at for slot in waiting] == [at for at, _ in went[len(went) - len(waiting) :]]
        assert all(slot.at <= before for slot, before in zip(waiting, promised, strict=True))
        self.holes = False

    @invariant()
    def the_rates_hold_in_order_of_arrival(self):
        times = [slot.at for slot in self.kept]
        assert times == sorted(times)
        conform(self.rates, [(slot.at, slot.weight) for slot in self.kept])

    @invariant()
    def armed_is_what_still_matters(self):
        if any(slot.at > self.now for slot in self.kept):
            assert self.schedule.is_armed(self.now / 1e6)
        if self.schedule.is_armed(self.now / 1e6):
            assert any(tat > self.now for tat in self.schedule.state)


for number, rates in enumerate(RATES):
    machine = type(f"Slots{number}", (Slots,), {"rates": rates})
    globals()[f"TestSlots{number}"] = machine.TestCase
    machine.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


def test_smooth_100_per_second_under_8_threads_never_exceeds_the_rate_in_any_window():
    rates, clock, times, lock = MemoryRates([Rate(100, 1000, 1)]), [0], [], threading.Lock()

    def caller():
        for _ in range(200):
            with lock:
                clock[0] += 1
            now, slot = clock[0] / 1000, rates.slot("k", 1)
            rates.reserve(slot, now, INF)
            with lock:
                times.append(slot.at)

    threads = [threading.Thread(target=caller) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    times.sort()
    assert len(times) == 1600
    # no two within 10 ms of each other, so any window of T seconds holds at most 100 T + 1
    assert min(b - a for a, b in pairwise(times)) >= 10_000


def test_keys_are_independent():
    rates = MemoryRates([Rate(1, 1000)])
    slots = [Slot(key) for key in "aabbc"]
    for slot in slots:
        rates.reserve(slot, 0.0, INF)
    assert [slot.wait for slot in slots] == [0, 1, 0, 1, 0]


def test_a_key_that_owes_outlasts_the_idle_ones():
    rates = MemoryRates([Rate(1, 3_600_000)])
    rates.reserve(Slot("owing"), 0.0, INF)
    rates.reserve(Slot("paid"), 0.0, INF)
    rates.reserve(Slot("other"), 3599.0, INF)
    late = Slot("owing")
    rates.reserve(late, 3599.0, INF)
    assert late.wait == 1
    rates.reserve(Slot("new"), 9999.0, INF)
    assert [key for key, _ in rates.table] == ["new"]


def test_a_slot_that_never_stood_anywhere_has_nothing_to_give_back():
    rates = MemoryRates([Rate(1, 1000)])
    rates.leave(rates.slot("k", 1))
    assert len(rates.table) == 0


# The gate's line


def enter(line, now):
    waiter = Waiter(now)
    line.enter(waiter, now)
    return waiter


def places(line):
    return [waiter.place for waiter in line.waiters]


def test_an_open_gate_holds_nobody():
    line = Line(0.05)
    for now in (1.0, 1.0, 2.0):
        assert enter(line, now).place == now
    assert line.is_armed(2.0)
    for waiter in list(line.waiters):
        line.leave(waiter, went=True)
    assert not line.is_armed(2.0)


def test_a_shut_gate_holds_everybody_once_and_then_lets_them_go_paced():
    line = Line(0.05)
    before = enter(line, 0.0)
    line.shut(10.0, 1.0)
    line.shut(9.0, 1.5)  # a sooner one changes nothing
    after = [enter(line, 2.0) for _ in range(3)]
    assert before.place == 10
    assert [w.place for w in after] == pytest.approx([10.05, 10.0995, 10.148505])
    line.shut(20.0, 3.0)  # a later one counts alone
    assert places(line) == pytest.approx([20, 20.05, 20.0995, 20.148505])


def test_who_comes_right_after_the_opening_is_paced_too():
    line = Line(0.05)
    line.shut(10.0, 0.0)
    first = enter(line, 10.0)
    line.leave(first, went=True)
    assert [enter(line, 10.0).place for _ in range(2)] == pytest.approx([10.05, 10.0995])
    assert enter(line, 11.0).place == 11


def test_a_long_queue_is_through_within_a_hundred_gaps_and_then_it_is_calm():
    line = Line(0.05)
    line.shut(10.0, 0.0)
    for _ in range(5000):
        enter(line, 0.0)
    assert max(places(line)) < 15
    assert line.is_armed(14.9)
    assert enter(Line(0.05), 15.1).place == 15.1


def test_who_comes_when_it_is_calm_stays_behind_those_who_are_paced_still():
    line = Line(0.05)
    line.shut(10.0, 0.0)
    paced = [enter(line, 14.99) for _ in range(3)]
    assert [enter(line, 15.01).place, enter(line, 15.01).place] > [w.place for w in paced][-1:]
    assert places(line) == sorted(places(line))
    assert enter(line, 16.0).place == 16


def test_no_pace_lets_all_go_together():
    line = Line(0.0)
    line.shut(10.0, 0.0)
    assert [enter(line, 1.0).place for _ in range(3)] == [10, 10, 10]


def test_a_pace_that_is_told_is_kept_for_as_long_as_anybody_waits():
    line = Line(0.05)
    line.shut(10.0, 0.0, Pace(0.5, steady=True))
    for _ in range(300):
        enter(line, 0.0)
    assert places(line)[-1] == 10 + 299 * 0.5
    assert enter(line, 80.0).place == 160  # long after all would be calm, were nobody here
    assert not Line(0.05).is_armed(0.0)


def test_a_pace_that_is_guessed_grows_faster_until_it_is_told_anew():
    line = Line(0.05)
    line.shut(10.0, 0.0, Pace(2.0, steady=False))
    waiting = [enter(line, 0.0) for _ in range(3)]
    assert [w.place for w in waiting] == pytest.approx([10, 12, 13.98])
    line.shut(20.0, 1.0, Pace(1.0, steady=True))
    assert [w.place for w in waiting] == [20, 21, 22]
    line.shut(30.0, 1.0)  # what was told stays true for a while
    assert [w.place for w in waiting] == [30, 31, 32]
    for waiter in waiting:
        line.leave(waiter, went=True)
    line.shut(210.0, 200.0)  # and then a 429 that tells nothing is as any other
    assert [enter(line, 200.0).place for _ in range(3)] == pytest.approx([210, 210.05, 210.0995])


def test_a_told_pace_is_over_when_nobody_waited_for_a_hundred_gaps():
    line = Line(0.05)
    line.shut(10.0, 0.0, Pace(0.5, steady=True))
    assert line.is_armed(59.9)
    assert not line.is_armed(60.0)
    assert [enter(line, 60.0).place for _ in range(2)] == [60, 60]


def test_a_place_given_up_at_the_end_is_the_next_ones():
    line = Line(0.05)
    line.shut(10.0, 0.0)
    first = enter(line, 0.0)
    line.leave(enter(line, 0.0), went=False)
    assert enter(line, 0.0).place == 10.05
    line.leave(first, went=False)
    for waiter in list(line.waiters):
        line.leave(waiter, went=False)
    assert enter(line, 0.0).place == 10


def test_those_behind_who_gives_up_move_forward():
    line = Line(0.05)
    line.shut(10.0, 0.0, Pace(1.0, steady=True))
    waiting = [enter(line, 0.0) for _ in range(5)]
    for waiter in waiting[1:3]:
        line.leave(waiter, went=False)
    assert [w.place for w in waiting] == [10, 11, 12, 13, 14]
    line.close_up(5.0)
    assert [w.place for w in line.waiters] == [10, 11, 12]
    line.leave(waiting[3], went=False)
    assert enter(line, 5.0).place == 12  # whoever comes finds no hole


class Gate(RuleBasedStateMachine):
    """Any course of coming, going, giving up and 429s: nobody early, in order, and never long after."""

    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.until = -INF
        self.line = Line(0.05)
        self.latest = 0.0

    @rule(seconds=st.floats(0, 3))
    def time_passes(self, seconds):
        self.now += seconds

    @rule(many=st.integers(1, 40))
    def come(self, many):
        for _ in range(many):
            waiter = enter(self.line, self.now)
            assert waiter.place >= max(self.now, self.until)
            assert waiter.place <= max(self.now, self.until) + 5

    @rule(seconds=st.floats(0.1, 5))
    def answer_429(self, seconds):
        self.until = max(self.until, self.now + seconds)
        self.line.shut(self.now + seconds, self.now)

    @rule()
    def go(self):
        for waiter in [w for w in self.line.waiters if w.place <= self.now]:
            assert self.until <= self.now
            self.line.leave(waiter, went=True)

    @precondition(lambda self: self.line.waiters)
    @rule(data=st.data())
    def give_up(self, data):
        self.line.leave(data.draw(st.sampled_from(list(self.line.waiters))), went=False)

    @invariant()
    def in_order_of_arrival_and_never_a_herd(self):
        times = places(self.line)
        assert times == sorted(times)
        assert self.line.opens == self.until
        held = [t for t in times if t > self.now]
        assert len(set(held)) == len(held)


TestGate = Gate.TestCase
TestGate.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(st.lists(st.floats(0, 60), min_size=1, max_size=20))
def test_concurrent_429s_hold_until_the_latest(waits):
    line = Line(0.05)
    for wait in waits:
        line.shut(wait, 0.0)
    assert enter(line, 0.0).place == max(waits)
