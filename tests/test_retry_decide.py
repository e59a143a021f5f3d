"""The pure part of Retry: what to do after an attempt, how long to wait, how much load to add."""

from __future__ import annotations

import gzip
import json
import math
import sys
import threading
from email.utils import formatdate

import httpx
import httpx2
import pytest
from hypothesis import assume, example, given, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dspex_pipe import BreakerOpen, Budget, Record, Retry
from dspex_pipe.family import family_of
from dspex_pipe.layers.retry import Again, Call, Enough, Ledger, backoff, decide
from dspex_pipe.outcome import MEANINGS, Meaning

URL = "http://a.test/thing"
LLM = "http://a.test/v1/chat/completions"
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
WALL = 1_750_000_000.0
RETRIED = [408, 425, 429, 500, 502, 503, 504, 529]
QUOTA = {"error": {"code": "insufficient_quota", "type": "x", "message": "m"}}


def call(
    method="GET",
    url=URL,
    *,
    http=httpx,
    options=None,
    deadline=None,
    attempt=1,
    timeouts=0,
    started=0.0,
    **request,
):
    record = Record(1, lambda: 0.0, deadline=deadline, options=options or {})
    return Call(http.Request(method, url, **request), record, started, attempt, timeouts=timeouts)


def completion(**kwargs):
    return call("POST", LLM, json=CHAT, **kwargs)


def order(**kwargs):
    return call("POST", json={"item": 1}, **kwargs)


def status(code=503, *, http=httpx, json=None, **headers):
    return http.Response(code, headers={k.replace("_", "-"): v for k, v in headers.items()}, json=json)


def after(outcome, of=None, *, now=0.0, random=0.0, **policy):
    return decide(Retry(**policy), of or call(), outcome, now=now, wall=WALL, random=random)


def assert_gives_up(verdict, why, *, spent):
    assert isinstance(verdict, Enough)
    assert why in verdict.reason
    assert verdict.spent is spent


# What is retried at all


@pytest.mark.parametrize("code", RETRIED)
def test_these_statuses_are_retried(http, code):
    assert after(status(code, http=http), call(http=http)) == Again(0.1, f"status {code}")


@pytest.mark.parametrize("code", [200, 204, 301, 304, 400, 401, 402, 403, 404, 409, 422, 501, 505])
def test_other_statuses_are_none_of_our_business(code):
    assert after(status(code)) is None


def test_statuses_can_be_chosen():
    assert isinstance(after(status(404), statuses={404}), Again)
    assert after(status(503), statuses={404}) is None


@pytest.mark.parametrize(
    "name",
    [
        "ConnectError",
        "ConnectTimeout",
        "PoolTimeout",
        "ReadError",
        "ReadTimeout",
        "WriteError",
        "WriteTimeout",
        "RemoteProtocolError",
    ],
)
def test_transport_errors_are_retried(http, name):
    assert after(getattr(http, name)("x"), call(http=http)) == Again(0.1, name)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        httpx.UnsupportedProtocol("x"),
        httpx.LocalProtocolError("x"),
        httpx2.ReadError("the other library's"),
        BreakerOpen("open"),
        family_of(httpx.Request("GET", URL)).refusal(BreakerOpen("open"), httpx.Request("GET", URL)),
    ],
    ids=lambda error: type(error).__name__,
)
def test_other_errors_and_refusals_are_none_of_our_business(error):
    assert after(error) is None


def test_exceptions_can_be_chosen():
    assert isinstance(after(ValueError("x"), on=ValueError), Again)
    assert isinstance(after(KeyError("x"), on=(ValueError, KeyError)), Again)
    assert after(httpx.ReadError("x"), on=ValueError) is None
    assert after(httpx.ReadError("x"), on=()) is None


# What is safe to repeat


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "QUERY", "get"])
def test_idempotent_methods_are_repeated(method):
    assert isinstance(after(status(), call(method)), Again)


@pytest.mark.parametrize("method", ["POST", "PATCH", "CONNECT", "BREW"])
@pytest.mark.parametrize(
    "outcome",
    [status(), httpx.ReadError("x"), httpx.ReadTimeout("x"), httpx.RemoteProtocolError("x")],
    ids=repr,
)
def test_other_methods_are_not(method, outcome):
    verdict = after(outcome, call(method))
    assert_gives_up(verdict, f"{method} is not safe to repeat, and it may have been carried out", spent=False)


@pytest.mark.parametrize("name", ["ConnectError", "ConnectTimeout", "PoolTimeout"])
def test_what_surely_was_not_sent_is_repeated(http, name):
    assert isinstance(after(getattr(http, name)("x"), order(http=http)), Again)


def test_what_a_limit_turned_away_is_repeated():
    assert isinstance(after(status(429), order()), Again)
    overloaded = {"error": {"type": "overloaded_error"}}
    assert isinstance(after(status(429, json=overloaded), order()), Again)
    assert_gives_up(after(status(503, json=overloaded), order()), "not safe to repeat", spent=False)
    assert_gives_up(after(status(429, json=QUOTA), order()), "does not pass", spent=True)
    streamed = call("POST", content=iter([b"x"]))
    assert_gives_up(after(status(429), streamed), "cannot be sent twice", spent=False)


@pytest.mark.parametrize("name", ["Idempotency-Key", "idempotency-key"])
def test_an_idempotency_key_makes_a_post_safe(name):
    assert isinstance(after(status(), order(headers={name: "k"})), Again)


def test_an_llm_completion_is_safe(http):
    assert isinstance(after(status(http=http), completion(http=http)), Again)


def test_a_path_alone_makes_no_llm_completion():
    looks_alike = call("POST", LLM, json={"text": "hi"})
    assert_gives_up(after(status(), looks_alike), "not safe to repeat", spent=False)


def test_post_always_repeats_every_method():
    assert isinstance(after(status(), order(), post="always"), Again)
    assert isinstance(after(status(), call("PATCH"), post="always"), Again)


def test_the_option_retry_true_repeats_this_call():
    assert isinstance(after(status(), order(options={"retry": True})), Again)


@pytest.mark.parametrize("outcome", [status(), httpx.ConnectError("x")], ids=repr)
def test_the_option_retry_false_sends_once(outcome):
    verdict = after(outcome, call(options={"retry": False}), post="always")
    assert_gives_up(verdict, "switched off for this call", spent=False)


@pytest.mark.parametrize("outcome", [status(), httpx.ConnectError("x")], ids=repr)
@pytest.mark.parametrize("options", [{}, {"retry": True}])
def test_a_body_that_cannot_be_sent_twice_is_not(outcome, options):
    streamed = call("PUT", content=iter([b"x"]), options=options)
    assert_gives_up(after(outcome, streamed), "the body cannot be sent twice", spent=False)


# The server's word


@pytest.mark.parametrize("code", [400, 404, 409, 501])
def test_x_should_retry_true_retries_any_error_status(code):
    assert isinstance(after(status(code, x_should_retry="true")), Again)


@pytest.mark.parametrize("code", [200, 304])
def test_x_should_retry_true_retries_no_success(code):
    assert after(status(code, x_should_retry="true")) is None


@pytest.mark.parametrize("code", RETRIED)
def test_x_should_retry_false_stops(code):
    verdict = after(status(code, x_should_retry="false", retry_after="1"), call(options={"retry": True}))
    assert_gives_up(verdict, "x-should-retry: false", spent=True)


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"retry_after_ms": "1500"}, 1.5),
        ({"retry_after_ms": "1500", "retry_after": "9"}, 1.5),
        ({"retry_after": "7"}, 7.0),
        ({"retry_after": "0.25"}, 0.25),
        ({"retry_after": "60"}, 60.0),
        ({"retry_after": formatdate(WALL + 30, usegmt=True)}, 30.0),
        ({"retry_after": formatdate(30, usegmt=True), "date": formatdate(0, usegmt=True)}, 30.0),
    ],
)
def test_the_servers_wait_is_kept_to_the_letter(headers, wait):
    assert after(status(**headers), random=0.9) == Again(wait, "status 503")


@pytest.mark.parametrize("word", ["nan", "-3", "0", "soon", "", formatdate(WALL - 9, usegmt=True)])
def test_a_wait_that_makes_no_sense_leaves_ours(word):
    assert after(status(retry_after=word), random=0.5) == Again(0.6, "status 503")


@pytest.mark.parametrize("word", ["60.1", "3600", "1e300", "inf", "9" * 400])
def test_a_wait_over_the_cap_gives_up_at_once(word):
    assert_gives_up(after(status(retry_after=word)), "over the cap", spent=True)


def test_the_cap_can_be_chosen():
    assert isinstance(after(status(retry_after="90"), retry_after_cap=90), Again)
    assert_gives_up(after(status(retry_after="0.1"), retry_after_cap=0), "over the cap", spent=True)


PERMANENT = {Meaning.QUOTA_SPENT, Meaning.AUTH, Meaning.CONTEXT_TOO_LONG}


@pytest.mark.parametrize(
    "code",
    sorted(word for word, meaning in MEANINGS.items() if isinstance(word, str) and meaning in PERMANENT),
)
@pytest.mark.parametrize("place", ["code", "type"])
def test_a_permanent_code_is_not_retried(code, place):
    verdict = after(status(429, json={"error": {place: code, "message": "m"}}), completion())
    assert_gives_up(verdict, f"{code} does not pass by waiting", spent=True)


def test_a_permanent_code_is_found_in_a_compressed_body(http):
    raw = gzip.compress(json.dumps(QUOTA).encode())
    response = http.Response(429, headers={"content-encoding": "gzip"}, stream=http.ByteStream(raw))
    assert_gives_up(after(response, call(http=http)), "insufficient_quota", spent=True)


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"code": "rate_limit_exceeded", "message": "insufficient_quota billing_error"}},
        {"error": "insufficient_quota"},
        ["insufficient_quota"],
    ],
    ids=repr,
)
def test_free_text_about_quota_decides_nothing(body):
    assert isinstance(after(status(429, json=body)), Again)


def test_a_body_that_nobody_has_read_decides_nothing():
    assert isinstance(after(httpx.Response(429, content=iter([json.dumps(QUOTA).encode()]))), Again)


# How often, and how long


@pytest.mark.parametrize(("attempt", "again"), [(1, True), (2, True), (3, False), (4, False)])
def test_attempts_count_the_first_call(attempt, again):
    verdict = after(status(), call(attempt=attempt))
    if again:
        assert isinstance(verdict, Again)
    else:
        assert_gives_up(verdict, f"{attempt} of 3 attempts made", spent=True)


def spent(reset, **more):
    headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": reset}
    return httpx.Response(429, headers=headers | more)


def test_a_throttled_call_waits_no_longer_than_until_its_limits_are_full_again():
    assert after(spent("120ms"), random=0.9).wait == pytest.approx(0.12)
    assert after(spent("1m30s"), random=0.9).wait == 5.0  # no reason to give up: wait_max
    assert after(spent("1m30s", **{"retry-after": "2"})).wait == 2.0
    busy = httpx.Response(503, headers=spent("1s").headers)
    assert after(busy, random=0.5).wait == 0.6  # it is no throttle


@pytest.mark.parametrize(
    ("code", "meaning", "again"),
    [
        (503, Meaning.QUOTA_SPENT, False),
        (500, Meaning.AUTH, False),
        (403, Meaning.THROTTLED, True),
        (404, Meaning.OVERLOADED, True),
        (404, Meaning.CONTEXT_TOO_LONG, None),
    ],
)
def test_a_status_means_what_the_pipeline_says(code, meaning, again):
    of = call()
    of.record.meanings = {code: meaning}
    verdict = after(status(code), of)
    if again is None:
        assert verdict is None
    elif again:
        assert isinstance(verdict, Again)
    else:
        assert_gives_up(verdict, "does not pass by waiting", spent=True)


def test_a_code_that_passes_is_retried_whatever_its_status_unless_that_was_left_out():
    slow_down = {"error": {"code": "slow_down"}}
    assert isinstance(after(status(400, json=slow_down)), Again)
    assert after(status(429, json=slow_down), statuses={503}) is None


def test_throttles_that_are_waited_for_cost_no_attempt():
    patient, of = {"throttle": "wait"}, call(attempt=9, deadline=100.0)
    of.throttles = 8
    assert after(status(429), of, **patient).free
    assert isinstance(after(status(503), of, **patient), Again)  # the first of its kind
    of.attempt = 11
    assert_gives_up(after(status(503), of, **patient), "3 of 3 attempts made", spent=True)
    assert after(status(429), of, **patient).free


def test_waits_for_a_throttle_grow_on_their_own():
    of = call(attempt=3, deadline=100.0)
    of.throttles = 2
    assert after(status(429), of, throttle="wait", wait_max=60).wait == pytest.approx(0.4)
    assert after(status(503), of, throttle="wait", wait_max=60).wait == pytest.approx(0.1)


@pytest.mark.parametrize(("bound", "word"), [({"deadline": 200.0}, "deadline"), ({}, "timeout")])
def test_a_throttle_is_waited_for_as_long_as_it_takes_until_the_deadline(bound, word):
    policy = {"throttle": "wait", "timeout": None if bound else 200.0}
    assert after(status(429, retry_after="150"), call(**bound), **policy) == Again(
        150, "status 429", free=True
    )
    assert_gives_up(
        after(status(429, retry_after="200"), call(**bound), **policy), f"fit the {word}", spent=True
    )


def test_without_a_deadline_the_cap_holds_for_throttles_too():
    assert after(status(429, retry_after="60"), throttle="wait").free
    assert_gives_up(after(status(429, retry_after="61"), throttle="wait"), "over the cap", spent=True)


def test_a_spent_quota_is_no_throttle():
    assert_gives_up(after(status(429, json=QUOTA), throttle="wait"), "does not pass", spent=True)


def test_attempts_can_be_without_limit():
    assert isinstance(after(status(), call(attempt=10**6), attempts=None), Again)


def test_a_read_timeout_of_an_llm_call_gets_one_extra_try():
    timeout = httpx.ReadTimeout("x")
    assert isinstance(after(timeout, completion(timeouts=1), attempts=9), Again)
    assert_gives_up(
        after(timeout, completion(timeouts=2, attempt=2), attempts=9), "may be billed", spent=True
    )


@pytest.mark.parametrize("now", [0.0, 4.5])
def test_a_wait_must_end_before_the_deadline(now):
    of, busy = call(deadline=now + 2), status(retry_after="2")
    assert_gives_up(after(busy, of, now=now), "a wait of 2 s does not fit the deadline", spent=True)
    assert after(status(retry_after="1.9"), of, now=now) == Again(1.9, "status 503")


def test_our_own_wait_must_end_before_the_deadline():
    assert_gives_up(after(httpx.ReadError("x"), call(deadline=0.1)), "does not fit the deadline", spent=True)


def test_a_wait_must_end_before_the_timeout():
    assert_gives_up(
        after(status(), now=10, timeout=10.1, wait_initial=0.1),
        "a wait of 0.1 s does not fit the timeout",
        spent=True,
    )
    assert isinstance(after(status(), now=10, timeout=10.2), Again)
    assert isinstance(after(status(), call(started=9), now=10, timeout=1.2), Again)


@pytest.mark.parametrize(
    ("attempt", "random", "wait"),
    [(1, 0, 0.1), (2, 0, 0.2), (3, 0, 0.4), (3, 0.5, 0.9), (7, 0, 5), (10**9, 0, 5)],
)
def test_waits_of_ours_double_with_jitter_up_to_a_bound(attempt, random, wait):
    assert backoff(Retry(), attempt, random) == pytest.approx(wait)


TIMES = st.floats(0, 1e308)
RANDOM = st.floats(0, 1, exclude_max=True)


@given(
    initial=TIMES | st.integers(0, 9),
    longest=TIMES | st.integers(0, 9),
    jitter=TIMES,
    base=st.floats(1, 1e308) | st.integers(1, 9),
    attempt=st.integers(1, 5000),
    random=RANDOM,
)
@example(initial=1, longest=5, jitter=1.0, base=2, attempt=2000, random=0.5)  # whole numbers do not overflow
def test_a_wait_of_ours_is_finite_and_bounded(initial, longest, jitter, base, attempt, random):
    policy = Retry(wait_initial=initial, wait_max=longest, wait_jitter=jitter, wait_exp_base=base)
    assert 0 <= backoff(policy, attempt, random) <= longest


@given(
    policy=st.builds(
        Retry,
        attempts=st.none() | st.integers(1, 9),
        timeout=st.none() | st.floats(0.001, 1e9),
        wait_initial=TIMES,
        wait_max=TIMES,
        wait_jitter=TIMES,
        wait_exp_base=st.floats(1, 1e308),
        retry_after_cap=TIMES,
    ),
    word=st.none() | st.text(max_size=9) | st.floats().map(str),
    unit=st.sampled_from(["retry-after", "retry-after-ms"]),
    deadline=st.none() | st.floats(-1e9, 1e9),
    attempt=st.integers(1, 9),
    now=st.floats(0, 1e9),
    random=RANDOM,
)
def test_whatever_a_server_says_a_wait_is_finite_and_within_every_bound(
    policy, word, unit, deadline, attempt, now, random
):
    headers = {} if word is None else {unit: word.encode("utf-8", "replace")}
    outcome = httpx.Response(503, headers=headers)
    of = call(deadline=deadline, attempt=attempt)
    verdict = decide(policy, of, outcome, now=now, wall=WALL, random=random)
    assert verdict is not None
    assume(isinstance(verdict, Again))
    assert math.isfinite(verdict.wait)
    assert 0 <= verdict.wait <= max(policy.wait_max, policy.retry_after_cap)
    assert deadline is None or now + verdict.wait < deadline
    assert policy.timeout is None or now + verdict.wait < policy.timeout


# The budget


def test_a_budget_allows_its_floor_and_then_its_share_of_the_calls():
    ledger = Ledger(Budget(ratio=0.5, floor=2))
    assert [ledger.withdraw(0) for _ in range(3)] == [True, True, False]
    for _ in range(4):
        ledger.deposit(0)
    assert [ledger.withdraw(0) for _ in range(3)] == [True, True, False]
    assert ledger.snapshot() == {"calls": 4, "retries": 4}


def test_a_budget_comes_back_when_its_window_has_passed():
    ledger = Ledger(Budget(ratio=0, window=10, floor=1))
    assert ledger.withdraw(0)
    assert not ledger.withdraw(9)
    assert ledger.withdraw(10)


def test_a_clock_read_before_anothers_does_not_confuse_a_budget():
    ledger = Ledger(Budget(ratio=0, window=10, floor=2))
    ledger.deposit(100)
    assert ledger.withdraw(99)
    assert ledger.withdraw(100)
    assert not ledger.withdraw(98)


@pytest.fixture
def _impatient_threads():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_impatient_threads")
def test_a_budget_is_kept_by_many_threads_at_once():
    ledger, begin = Ledger(Budget(ratio=0, floor=2000)), threading.Barrier(8)
    allowed = []

    def ask():
        begin.wait()
        allowed.extend([ledger.withdraw(0) for _ in range(500)])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(allowed) == 2000
    assert ledger.snapshot()["retries"] == 2000


class LedgerMachine(RuleBasedStateMachine):
    """A ledger beside a list of everything that ever happened.

    The buckets cover at least the last 9/10 of the window, and never more than the window. So:

    - when a retry is allowed, the retries of the last 9/10 of the window, this one included, are at most
      ``floor + ratio * calls``, where the calls are those of the whole window;
    - when one is refused, it would have exceeded ``floor + ratio * calls``, where the retries are those of
      the whole window, and the calls those of the last 9/10 of it.

    The window is 20 s and all times are eighths of a second, so that nothing is rounded.
    """

    WINDOW = 20.0

    @initialize(
        ratio=st.sampled_from([0.0, 0.25, 0.5, 1.0]), floor=st.integers(0, 4), start=st.integers(0, 10**6)
    )
    def begin(self, ratio, floor, start):
        self.budget = Budget(ratio=ratio, window=self.WINDOW, floor=floor)
        self.ledger = Ledger(self.budget)
        self.now = start / 8
        self.calls: list[float] = []
        self.retries: list[float] = []

    def recent(self, times, share):
        return sum(time > self.now - self.WINDOW * share for time in times)

    @rule(eighths=st.integers(1, 150))
    def time_passes(self, eighths):
        self.now += eighths / 8

    @rule(number=st.integers(1, 20))
    def calls_come(self, number):
        for _ in range(number):
            self.ledger.deposit(self.now)
            self.calls.append(self.now)

    @rule(number=st.integers(1, 8))
    def retries_are_asked_for(self, number):
        for _ in range(number):
            budget = self.budget
            if self.ledger.withdraw(self.now):
                self.retries.append(self.now)
                assert self.recent(self.retries, 0.9) <= budget.floor + budget.ratio * self.recent(
                    self.calls, 1
                )
            else:
                least = budget.floor + budget.ratio * self.recent(self.calls, 0.9)
                assert self.recent(self.retries, 1) + 1 > least

    @precondition(lambda self: self.calls and self.calls[-1] == self.now)
    @invariant()
    def the_snapshot_counts_one_window(self):
        told = self.ledger.snapshot()
        assert self.recent(self.calls, 0.9) <= told["calls"] <= self.recent(self.calls, 1)
        assert self.recent(self.retries, 0.9) <= told["retries"] <= self.recent(self.retries, 1)


TestLedger = LedgerMachine.TestCase
