"""One circuit, without a clock: what opens it, what closes it, and what decides nothing."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from dspex_pipe import Breaker, Verdict
from dspex_pipe.layers.breaker import Circuit, Shut, State, Ticket

SUCCESS, FAILURE, NEUTRAL = Verdict.SUCCESS, Verdict.FAILURE, Verdict.NEUTRAL


def feed(circuit, verdicts, now=0.0, every=0.0):
    """Calls one after the other; the time after the last."""
    for verdict in verdicts:
        ticket = circuit.admit(now)
        if isinstance(ticket, Ticket):
            circuit.settle(ticket, verdict, "why", now, 0.5)
        now += every
    return now


def opened(policy=None, now=0.0):
    circuit = Circuit(policy or Breaker(jitter=0.0))
    feed(circuit, [FAILURE] * 5, now)
    assert circuit.state is State.OPEN
    return circuit


def test_five_failures_of_ten_calls_open_it():
    circuit = Circuit(Breaker())
    feed(circuit, [SUCCESS, FAILURE] * 4 + [SUCCESS])
    assert circuit.state is State.CLOSED
    feed(circuit, [FAILURE])
    assert circuit.state is State.OPEN


def test_fifty_healthy_calls_a_second_with_one_percent_errors_never_open_it():
    circuit = Circuit(Breaker())
    feed(circuit, ([SUCCESS] * 99 + [FAILURE]) * 100, every=0.02)
    assert (circuit.state, circuit.trips) == (State.CLOSED, 0)


def test_the_fuse_opens_there_and_says_why_the_default_differs():
    circuit = Circuit(Breaker.fuse())
    feed(circuit, ([SUCCESS] * 99 + [FAILURE]) * 5, every=0.02)
    assert circuit.state is State.OPEN


def test_slow_failures_in_a_row_open_it_however_long_apart():
    circuit = Circuit(Breaker())
    feed(circuit, [FAILURE] * 4, every=600)
    assert circuit.state is State.CLOSED
    feed(circuit, [FAILURE], now=2400)
    assert circuit.state is State.OPEN


def test_a_success_ends_the_row_and_neutral_does_not():
    circuit = Circuit(Breaker(failures=100))
    feed(circuit, [FAILURE] * 4 + [NEUTRAL] * 9 + [SUCCESS] + [FAILURE] * 4)
    assert circuit.state is State.CLOSED
    feed(circuit, [FAILURE])
    assert circuit.state is State.OPEN


def test_failures_leave_the_window():
    circuit = Circuit(Breaker(consecutive=None))
    feed(circuit, [FAILURE] * 4, now=0)
    feed(circuit, [FAILURE] * 4, now=10.1)
    assert circuit.state is State.CLOSED


def test_an_open_circuit_refuses_and_says_for_how_long():
    circuit = opened(now=100)
    assert circuit.admit(101) == Shut(4.0)
    assert circuit.last_failure == "why"


@pytest.mark.parametrize(("random", "seconds"), [(0.0, 4.0), (0.5, 5.0), (1 - 2**-53, 6.0)])
def test_the_time_varies_by_a_fifth_either_way(random, seconds):
    circuit = Circuit(Breaker(consecutive=1))
    circuit.settle(circuit.admit(0.0), FAILURE, "", 0.0, random)
    assert circuit.until == pytest.approx(seconds)


def test_the_time_doubles_with_each_failed_probe_up_to_a_minute_and_starts_anew_after_success():
    circuit, now, times = opened(), 0.0, []
    for _ in range(6):
        times.append(circuit.until - now)
        now = circuit.until
        feed(circuit, [FAILURE], now)
    assert times == [5, 10, 20, 40, 60, 60]
    now = feed(circuit, [SUCCESS], circuit.until)
    assert circuit.state is State.CLOSED
    feed(circuit, [FAILURE] * 5, now)
    assert circuit.until - now == 5


def test_thousands_of_failed_probes_do_not_overflow():
    circuit = opened()
    circuit.trips = 5000
    feed(circuit, [FAILURE], circuit.until)
    assert math.isfinite(circuit.until)


@pytest.mark.parametrize("probes", [1, 3])
def test_half_open_lets_exactly_the_probes_through_and_needs_them_all(probes):
    circuit = opened(Breaker(probes=probes, jitter=0.0))
    tickets = [circuit.admit(5.0) for _ in range(50)]
    admitted = [t for t in tickets if isinstance(t, Ticket)]
    assert (len(admitted), circuit.state) == (probes, State.HALF_OPEN)
    for ticket in admitted:
        assert circuit.state is State.HALF_OPEN
        circuit.settle(ticket, SUCCESS, "", 5.0, 0.5)
    assert circuit.state is State.CLOSED


def test_a_cancelled_probe_frees_its_place_and_closes_nothing():
    circuit = opened()
    circuit.settle(circuit.admit(5.0), NEUTRAL, "", 5.0, 0.5)
    assert circuit.state is State.HALF_OPEN
    assert isinstance(circuit.admit(5.0), Ticket)


def test_a_hung_probe_frees_its_place_after_its_lease():
    circuit = opened(Breaker(lease=30, jitter=0.0))
    assert isinstance(circuit.admit(5.0), Ticket)
    assert circuit.admit(34.0) == Shut(1.0)
    assert isinstance(circuit.admit(35.0), Ticket)
    assert circuit.state is State.HALF_OPEN


def test_a_probe_whose_place_another_took_closes_nothing():
    circuit = opened(Breaker(lease=30, jitter=0.0))
    hung = circuit.admit(5.0)
    second = circuit.admit(35.0)
    circuit.settle(hung, SUCCESS, "", 36.0, 0.5)
    assert circuit.state is State.HALF_OPEN
    circuit.settle(second, SUCCESS, "", 37.0, 0.5)
    assert circuit.state is State.CLOSED


def test_a_slow_probe_alone_may_still_close():
    circuit = opened(Breaker(lease=30, jitter=0.0))
    slow = circuit.admit(5.0)
    circuit.settle(slow, SUCCESS, "", 300.0, 0.5)
    assert circuit.state is State.CLOSED


def test_a_call_from_before_the_trip_decides_nothing():
    circuit = Circuit(Breaker(jitter=0.0))
    early = [circuit.admit(0.0) for _ in range(3)]
    feed(circuit, [FAILURE] * 5)
    circuit.settle(early[0], SUCCESS, "", 1.0, 0.5)
    assert circuit.state is State.OPEN
    probe = circuit.admit(5.0)
    circuit.settle(early[1], SUCCESS, "", 5.0, 0.5)
    circuit.settle(early[2], FAILURE, "", 5.0, 0.5)
    assert circuit.state is State.HALF_OPEN
    circuit.settle(probe, SUCCESS, "", 5.0, 0.5)
    assert circuit.state is State.CLOSED


def test_a_probe_that_has_proved_enough_closes_and_its_call_can_only_fail_after_that():
    circuit = opened(Breaker(probes=2, consecutive=1, jitter=0.0))
    first, second = circuit.admit(5.0), circuit.admit(5.0)
    circuit.prove(first, 6.0)
    circuit.prove(first, 6.0)
    circuit.settle(first, SUCCESS, "", 6.0, 0.5)
    assert circuit.state is State.HALF_OPEN  # it counts once
    circuit.prove(second, 7.0)
    assert circuit.state is State.CLOSED
    circuit.settle(second, FAILURE, "", 8.0, 0.5)
    assert circuit.state is State.OPEN


def test_a_probe_that_has_proved_enough_and_then_fails_opens_a_circuit_that_is_still_half_open():
    circuit = opened(Breaker(probes=2, jitter=0.0))
    first = circuit.admit(5.0)
    circuit.prove(first, 6.0)
    circuit.settle(first, FAILURE, "", 7.0, 0.5)
    assert circuit.state is State.OPEN


def test_every_probe_that_has_proved_enough_can_still_fail_after_the_last_one_closed_the_circuit():
    circuit = opened(Breaker(probes=2, consecutive=1, jitter=0.0))
    first, second = circuit.admit(5.0), circuit.admit(5.0)
    circuit.prove(first, 6.0)
    circuit.prove(second, 7.0)
    assert circuit.state is State.CLOSED
    circuit.settle(first, FAILURE, "", 8.0, 0.5)
    assert circuit.state is State.OPEN


def test_a_probe_that_comes_too_late_proves_nothing():
    circuit = opened(Breaker(lease=30, jitter=0.0))
    hung = circuit.admit(5.0)
    circuit.admit(35.0)
    circuit.prove(hung, 36.0)
    assert circuit.state is State.HALF_OPEN
    circuit.settle(hung, FAILURE, "", 37.0, 0.5)
    assert circuit.state is State.HALF_OPEN


def test_by_hand_a_circuit_refuses_or_admits_everything():
    circuit = Circuit(Breaker())
    circuit.change(State.ISOLATED)
    assert circuit.admit(1e9) == Shut(None)
    circuit.change(State.DISABLED)
    feed(circuit, [FAILURE] * 100)
    assert circuit.state is State.DISABLED


@given(st.lists(st.tuples(st.sampled_from(list(Verdict)), st.floats(0, 20), st.floats(0, 0.999))))
def test_waits_are_always_told_finite_and_bounded(calls):
    circuit, now = Circuit(Breaker()), 0.0
    for verdict, pause, random in calls:
        now += pause
        admitted = circuit.admit(now)
        if isinstance(admitted, Shut):
            assert 0 < admitted.retry_after <= 72
        else:
            circuit.settle(admitted, verdict, "", now, random)


class CircuitMachine(RuleBasedStateMachine):
    """Many calls under way at once, ending in any order, against a model that keeps every outcome."""

    tickets = Bundle("tickets")

    def __init__(self):
        super().__init__()
        self.policy = Breaker(failures=3, consecutive=4, window=10.0, jitter=0.0, lease=7.0, probes=2)
        self.circuit = Circuit(self.policy)
        self.now = 0.0
        self.outcomes = []  # (time, failed) of this epoch
        self.leases = {}  # probe: end

    @rule(seconds=st.integers(0, 12))
    def wait(self, seconds):
        self.now += seconds

    @rule(target=tickets)
    def call(self):
        before = self.circuit.state
        admitted = self.circuit.admit(self.now)
        if before is State.CLOSED:
            assert isinstance(admitted, Ticket)
        if before is State.OPEN:
            assert isinstance(admitted, Shut) == (self.now < self.circuit.until)
        if self.circuit.state is not before:
            self.leases = {}
        if self.circuit.state is State.HALF_OPEN:
            self.leases = {probe: end for probe, end in self.leases.items() if end > self.now}
            assert isinstance(admitted, Ticket) == (len(self.leases) < self.policy.probes)
        if isinstance(admitted, Shut):
            return multiple()
        if admitted.probe:
            self.leases[admitted] = self.now + self.policy.lease
        return admitted

    @rule(ticket=tickets, verdict=st.sampled_from(list(Verdict)))
    def end(self, ticket, verdict):
        before, epoch = self.circuit.state, self.circuit.epoch
        self.circuit.settle(ticket, verdict, "why", self.now, 0.5)
        lost = ticket.probe and self.leases.pop(ticket, None) is None
        again = ticket.proved and verdict is SUCCESS
        if ticket.epoch != epoch or verdict is NEUTRAL or lost or again:
            assert (self.circuit.state, self.circuit.epoch) == (before, epoch)
            return
        if before is State.HALF_OPEN:
            if verdict is FAILURE:
                assert self.circuit.state is State.OPEN
        else:
            self.outcomes.append((self.now, verdict is FAILURE))
            row = [failed for _, failed in self.outcomes[-4:]] == [True] * 4
            if row:
                assert self.circuit.state is State.OPEN
            elif self.circuit.state is State.OPEN:
                lately = [failed for at, failed in self.outcomes if at > self.now - 10]
                assert sum(lately) >= 3
                assert sum(lately) >= 0.5 * sum(1 for at, _ in self.outcomes if at > self.now - 9)
        if self.circuit.epoch != epoch:
            self.outcomes, self.leases = [], {}

    @rule(ticket=tickets)
    def prove(self, ticket):
        before, epoch = self.circuit.state, self.circuit.epoch
        counts = self.leases.pop(ticket, None) is not None
        self.circuit.prove(ticket, self.now)
        if counts:
            assert before is State.HALF_OPEN
            assert self.circuit.state is not State.OPEN
            assert (ticket.probe, ticket.proved, ticket.epoch) == (False, True, self.circuit.epoch)
        else:
            assert (self.circuit.state, self.circuit.epoch) == (before, epoch)
        if self.circuit.epoch != epoch:
            self.outcomes, self.leases = [], {}

    @invariant()
    def an_open_circuit_ends(self):
        if self.circuit.state is State.OPEN:
            assert self.circuit.until <= self.now + self.policy.open_max


TestCircuitMachine = CircuitMachine.TestCase
