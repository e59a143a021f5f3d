"""What a response or an exception means: server-given waits, retry hints, kinds of errors."""

from __future__ import annotations

import math
import time
from email.utils import formatdate

import httpx
import httpx2
import pytest
from hypothesis import example, given, strategies as st

from dspex_pipe import Answer, BreakerOpen, DeadlineExceeded, Meaning, RateLimited, Record
from dspex_pipe.events import EXTENSION
from dspex_pipe.family import family_of
from dspex_pipe.outcome import (
    MEANINGS,
    STREAM_ERROR,
    Verdict,
    is_read_timeout,
    is_transient_error,
    read_answer,
    read_codes,
    status_error,
    surely_unsent,
    verdict,
)
from dspex_pipe.waits import held_for, refilled_in, told_to_retry, told_wait
from dspex_pipe.wire import Pace

NOW = 1_750_000_000.0


def date(seconds: float = 0.0) -> str:
    return formatdate(NOW + seconds, usegmt=True)


def get(http, url="http://a.test/"):
    return http.Request("GET", url, extensions={EXTENSION: Record(1, lambda: 0.0)})


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({}, None),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "0.5"}, 0.0005),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({"retry-after-ms": "-1", "retry-after": "9"}, 9.0),
        ({"retry-after-ms": "nan", "retry-after": "9"}, 9.0),
        ({"retry-after": "120"}, 120.0),
        ({"retry-after": "2.5"}, 2.5),
        ({"retry-after": " 3 "}, 3.0),
        ({"retry-after": "inf"}, math.inf),
        ({"retry-after": "1e999"}, math.inf),
        ({"retry-after": "9" * 400}, math.inf),
        ({"retry-after-ms": "0"}, None),
        ({"retry-after": "0"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "-inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "in a while"}, None),
        ({"retry-after": "Wed, 99 Foo 2025 25:61:61 GMT"}, None),
        ({"retry-after": "Wed, 01 Jan 99999 00:00:00 GMT"}, None),
    ],
)
def test_a_wait_is_read_in_milliseconds_then_in_seconds_and_garbage_is_nothing_said(headers, wait):
    assert told_wait(headers, NOW) == wait


@pytest.mark.parametrize("clock", [NOW, 0.0, NOW * 2])
def test_a_date_counts_from_the_responses_own_date_whatever_our_clock_says(clock):
    assert told_wait({"retry-after": date(30), "date": date()}, clock) == 30


@pytest.mark.parametrize("sent", [None, "", "yesterday"])
def test_a_date_counts_from_our_clock_where_the_response_has_no_usable_one(sent):
    headers = {"retry-after": date(30)} | ({} if sent is None else {"date": sent})
    assert told_wait(headers, NOW) == 30


@pytest.fixture
def _far_from_utc(monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("_far_from_utc")
@pytest.mark.parametrize("zone", ["", " -0000", " +0000", " GMT"])
def test_a_date_without_a_zone_is_utc_wherever_we_are(zone):
    bare = date(30).removesuffix(" GMT")
    assert told_wait({"retry-after": bare + zone}, NOW) == 30


def test_a_date_with_another_zone_is_understood():
    shifted = date(3600 + 30).removesuffix("GMT") + "+0100"
    assert told_wait({"retry-after": shifted, "date": date()}, 0) == 30


@pytest.mark.parametrize("past", [0, -1, -1_000_000])
def test_a_date_that_has_passed_is_nothing_said(past):
    assert told_wait({"retry-after": date(past), "date": date()}, 0) is None


def test_headers_are_read_in_any_case(http):
    assert told_wait(http.Headers({"Retry-After-Ms": "20"}), NOW) == 0.02
    assert told_to_retry(http.Headers({"X-Should-Retry": "True"})) is True


TEXTS = st.one_of(
    st.text(),
    st.floats().map(str),
    st.integers().map(str),
    st.datetimes().map(lambda moment: moment.strftime("%a, %d %b %Y %H:%M:%S GMT")),
    st.from_regex(r"\A(\w{3}, )?-?\d{1,6} (Jan|Feb|May) -?\d{1,6} [\d:.]{0,9}( [+-]\d{1,9}| GMT)?\Z"),
)


@given(
    milliseconds=TEXTS | st.none(), after=TEXTS | st.none(), sent=TEXTS | st.none(), wall=st.floats(0, 1e12)
)
@example(milliseconds="5e-324", after=None, sent=None, wall=0.0)
@example(milliseconds=None, after="1" * 5000, sent="9" * 5000, wall=0.0)
@example(milliseconds=None, after="1 Jan 2020 00:00:00 +9999", sent=None, wall=0.0)
def test_whatever_the_headers_say_a_wait_is_none_or_positive(milliseconds, after, sent, wall):
    given_headers = {"retry-after-ms": milliseconds, "retry-after": after, "date": sent}
    wait = told_wait({name: text for name, text in given_headers.items() if text is not None}, wall)
    assert wait is None or wait > 0


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("true", True),
        ("false", False),
        (" TRUE ", True),
        ("False", False),
        ("", None),
        ("1", None),
        ("no", None),
    ],
)
def test_x_should_retry_is_true_false_or_nothing(text, word):
    assert told_to_retry({"x-should-retry": text}) is word
    assert told_to_retry({}) is None


@given(st.text())
def test_any_x_should_retry_is_safe(text):
    assert told_to_retry({"x-should-retry": text}) in {True, False, None}


TRANSPORT = ["ConnectError", "ReadError", "WriteError", "CloseError", "ProxyError", "RemoteProtocolError"]
TIMEOUTS = ["ConnectTimeout", "ReadTimeout", "WriteTimeout", "PoolTimeout"]
UNSENT = {"ConnectError", "ConnectTimeout", "PoolTimeout"}


@pytest.mark.parametrize("name", [*TRANSPORT, *TIMEOUTS])
def test_a_transport_error_may_pass(http, name):
    error = getattr(http, name)("x")
    assert is_transient_error(error, get(http))
    assert surely_unsent(error, get(http)) == (name in UNSENT)
    assert is_read_timeout(error, get(http)) == (name == "ReadTimeout")


@pytest.mark.parametrize(
    ("names", "unsent"),
    [
        (["ServerDisconnectedError", "ServerConnectionError", "ClientConnectionError"], False),
        (["ClientConnectionResetError", "ClientConnectionError"], False),
        (["ClientConnectorDNSError", "ClientConnectorError", "ClientOSError", "ClientConnectionError"], True),
        (["ConnectionTimeoutError", "ServerTimeoutError", "ServerConnectionError"], True),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_a_lost_connection_of_aiohttp_may_have_carried_the_request(http, names, unsent):
    """httpx-aiohttp raises a ConnectTimeout for each of these errors of aiohttp, by its base classes."""
    cause = Exception
    for name in reversed(names):
        cause = type(name, (cause,), {"__module__": "aiohttp.client_exceptions"})
    error = http.ConnectTimeout("x")
    error.__cause__ = cause("x")
    assert is_transient_error(error, get(http))
    assert surely_unsent(error, get(http)) == unsent


@pytest.mark.parametrize("name", ["UnsupportedProtocol", "LocalProtocolError"])
def test_a_mistake_of_ours_does_not_pass(http, name):
    assert not is_transient_error(getattr(http, name)("x"), get(http))


@pytest.mark.parametrize("error", [ValueError("x"), OSError("x"), TimeoutError("x")])
def test_an_error_of_no_transport_is_not_judged_as_one(http, error):
    assert not is_transient_error(error, get(http))
    assert not surely_unsent(error, get(http))
    assert not is_read_timeout(error, get(http))


@pytest.mark.parametrize(("mine", "other"), [(httpx, httpx2), (httpx2, httpx)])
def test_an_error_of_the_other_library_is_not_this_requests(mine, other):
    assert not is_transient_error(other.ReadTimeout("x"), get(mine))
    assert not surely_unsent(other.ConnectError("x"), get(mine))
    assert not is_read_timeout(other.ReadTimeout("x"), get(mine))


def test_a_refusal_does_not_pass_even_as_a_transport_error_of_the_library(http):
    refusal = family_of(get(http)).refusal(BreakerOpen("open"), get(http))
    assert isinstance(refusal, http.TransportError)
    assert not is_transient_error(refusal, get(http))


def test_a_failed_status_becomes_the_librarys_own_exception_and_names_no_url(http):
    request, response = get(http, "http://u:pw@a.test/?key=secret"), http.Response(503)
    error = status_error(response, request)
    assert isinstance(error, http.HTTPStatusError)
    assert (error.request, error.response) == (request, response)
    assert str(error) == "the server answered 503"


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (200, Verdict.SUCCESS),
        (304, Verdict.SUCCESS),
        (404, Verdict.SUCCESS),
        (408, Verdict.SUCCESS),
        (429, Verdict.NEUTRAL),
        (499, Verdict.SUCCESS),
        (500, Verdict.FAILURE),
        (529, Verdict.FAILURE),
    ],
)
def test_a_status_tells_the_servers_health(http, status, says):
    assert read_answer(http.Response(status), Record(1, lambda: 0.0)).verdict is says


@pytest.mark.parametrize(
    ("outcome", "says"),
    [
        (httpx.ReadError("x"), Verdict.FAILURE),
        (httpx.ConnectTimeout("x"), Verdict.FAILURE),
        (httpx.UnsupportedProtocol("x"), Verdict.NEUTRAL),
        (httpx2.ReadError("the other library's"), Verdict.NEUTRAL),
        (ValueError("x"), Verdict.NEUTRAL),
        (KeyboardInterrupt(), Verdict.NEUTRAL),
        (RateLimited("x"), Verdict.NEUTRAL),
        (BreakerOpen("x", sent=True), Verdict.NEUTRAL),
        (DeadlineExceeded("x"), Verdict.NEUTRAL),
        (DeadlineExceeded("x", sent=True), Verdict.FAILURE),
    ],
    ids=repr,
)
def test_an_exception_tells_the_servers_health_only_where_the_server_is_to_blame(outcome, says):
    assert verdict(outcome, get(httpx)) is says


# What an answer means


def answer(status, error=None, *, http=httpx, **meanings):
    record = Record(1, lambda: 0.0, meanings=meanings)
    return read_answer(http.Response(status, json={"error": error} if error else None), record)


@pytest.mark.parametrize(
    ("status", "means"),
    [
        (200, Meaning.OK),
        (304, Meaning.OK),
        (400, Meaning.BAD_REQUEST),
        (401, Meaning.AUTH),
        (402, Meaning.QUOTA_SPENT),
        (403, Meaning.AUTH),
        (404, Meaning.BAD_REQUEST),
        (429, Meaning.THROTTLED),
        (500, Meaning.FAILED),
        (502, Meaning.FAILED),
        (503, Meaning.OVERLOADED),
        (520, Meaning.FAILED),
        (529, Meaning.OVERLOADED),
    ],
)
def test_a_status_without_a_code_has_a_meaning(http, status, means):
    assert answer(status, http=http) == Answer(means)


# As the providers document them: status, error object, what it means, and the word that says so.
DOCUMENTED = [
    (429, {"type": "insufficient_quota", "code": "credit_balance_exhausted"}, Meaning.QUOTA_SPENT),
    (429, {"type": "insufficient_quota", "code": "project_spend_limit_exceeded"}, Meaning.QUOTA_SPENT),
    (429, {"type": "requests", "code": "rate_limit_exceeded"}, Meaning.THROTTLED),
    (429, {"type": "rate_limit_error", "code": "slow_down"}, Meaning.THROTTLED),
    (503, {"type": "service_unavailable_error", "code": "slow_down"}, Meaning.THROTTLED),
    (503, {"type": "service_unavailable_error", "code": "server_is_overloaded"}, Meaning.OVERLOADED),
    (400, {"type": "invalid_request_error", "code": "context_length_exceeded"}, Meaning.CONTEXT_TOO_LONG),
    (401, {"type": "invalid_request_error", "code": "invalid_api_key"}, Meaning.AUTH),
    (404, {"type": "invalid_request_error", "code": "model_not_found"}, Meaning.BAD_REQUEST),
    (500, {"type": "server_error", "code": None}, Meaning.FAILED),
    (429, {"type": "rate_limit_error"}, Meaning.THROTTLED),
    (
        429,
        {"type": "rate_limit_error", "details": {"error_code": "enforced_spend_limit_reached"}},
        Meaning.QUOTA_SPENT,
    ),
    (402, {"type": "billing_error"}, Meaning.QUOTA_SPENT),
    (403, {"type": "permission_error"}, Meaning.AUTH),
    (500, {"type": "api_error"}, Meaning.FAILED),
    (529, {"type": "overloaded_error"}, Meaning.OVERLOADED),
]


@pytest.mark.parametrize(("status", "error", "means"), DOCUMENTED)
def test_what_providers_document_is_understood(status, error, means):
    said = answer(status, {**error, "message": "quota rate limit overloaded context"})
    assert said.meaning is means
    assert said.codes == {
        v for v in (*error.values(), error.get("details", {}).get("error_code")) if type(v) is str
    }
    assert not said.in_stream


@pytest.mark.parametrize(
    ("codes", "means"),
    [
        ({"overloaded_error"}, Meaning.OVERLOADED),
        ({"rate_limit_error"}, Meaning.THROTTLED),
        ({"service_unavailable_error", "server_is_overloaded"}, Meaning.OVERLOADED),
        ({"invalid_request_error"}, Meaning.BAD_REQUEST),
        ({"not_found_error"}, Meaning.BAD_REQUEST),
        ({"400"}, Meaning.BAD_REQUEST),
        ({"429"}, Meaning.THROTTLED),
        ({"502", "BadGateway"}, Meaning.FAILED),
        ({"7"}, Meaning.FAILED),
        ({"³"}, Meaning.FAILED),
        ({"invalid_image_url"}, Meaning.BAD_REQUEST),
        ({"never heard of"}, Meaning.FAILED),
        (set(), Meaning.FAILED),
    ],
)
def test_an_error_in_a_stream_stands_for_the_status_it_would_have_been(codes, means):
    record = Record(1, lambda: 0.0)
    said = read_codes(frozenset(codes), record)
    assert (said.meaning, said.in_stream, said.codes) == (means, True, codes)
    noted = httpx.Response(200, extensions={STREAM_ERROR: frozenset(codes)})
    assert read_answer(noted, record) == said


@pytest.mark.parametrize(
    ("means", "says"),
    [
        (Meaning.OK, Verdict.SUCCESS),
        (Meaning.BAD_REQUEST, Verdict.SUCCESS),
        (Meaning.AUTH, Verdict.SUCCESS),
        (Meaning.CONTEXT_TOO_LONG, Verdict.SUCCESS),
        (Meaning.THROTTLED, Verdict.NEUTRAL),
        (Meaning.QUOTA_SPENT, Verdict.NEUTRAL),
        (Meaning.OVERLOADED, Verdict.FAILURE),
        (Meaning.FAILED, Verdict.FAILURE),
    ],
)
def test_a_meaning_tells_the_servers_health(means, says):
    assert Answer(means).verdict is says


def test_words_of_ones_own_are_known_to_all_and_come_first():
    assert answer(500, {"code": "tokens_exhausted"}).meaning is Meaning.FAILED
    own = answer(500, {"code": "tokens_exhausted"}, tokens_exhausted=Meaning.QUOTA_SPENT)
    assert (own.meaning, own.code) == (Meaning.QUOTA_SPENT, "tokens_exhausted")
    assert (
        answer(529, {"type": "overloaded_error"}, overloaded_error=Meaning.THROTTLED).meaning
        is Meaning.THROTTLED
    )
    record = Record(1, lambda: 0.0, meanings={404: Meaning.OVERLOADED})
    assert read_answer(httpx.Response(404), record) == Answer(Meaning.OVERLOADED, named=True)


def test_the_table_holds_words_and_statuses_only():
    for word, means in MEANINGS.items():
        assert isinstance(word, str) or 400 <= word <= 599
        assert means is not Meaning.OK


# The waits that providers tell in headers of their own


OPENAI = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "120ms"}
ANTHROPIC = {
    "anthropic-ratelimit-input-tokens-remaining": "0",
    "anthropic-ratelimit-input-tokens-reset": "2025-06-15T15:07:10Z",
}


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        (OPENAI, 0.12),
        ({**OPENAI, "x-ratelimit-remaining-requests": "1"}, None),
        ({"x-ratelimit-reset-requests": "1s"}, None),
        ({**OPENAI, "x-ratelimit-reset-requests": "6m0s"}, 360.0),
        ({**OPENAI, "x-ratelimit-reset-requests": "1h2m3.5s"}, 3723.5),
        ({**OPENAI, "x-ratelimit-reset-requests": "17"}, 17.0),
        ({**OPENAI, "x-ratelimit-reset-requests": "-1"}, None),
        ({**OPENAI, "x-ratelimit-reset-requests": "soon"}, None),
        ({**OPENAI, "x-ratelimit-reset-requests": "0s"}, None),
        ({**OPENAI, "x-ratelimit-reset-requests": "1750000042"}, 42.0),  # since the epoch
        ({**OPENAI, "x-ratelimit-reset-requests": "1750000042500"}, 42.5),  # in milliseconds
        ({**OPENAI, "x-ratelimit-reset-requests": "1750000042", "date": date(10)}, 32.0),
        ({**OPENAI, "x-ratelimit-reset-requests": "1740000000"}, None),
        (
            {**OPENAI, "x-ratelimit-remaining-tokens": " 0 ", "x-ratelimit-reset-tokens": "2.5s"},
            2.5,
        ),
        ({**OPENAI, "x-ratelimit-remaining-tokens": "5", "x-ratelimit-reset-tokens": "9s"}, 0.12),
        (ANTHROPIC, 30.0),
        ({**ANTHROPIC, "date": date(10)}, 20.0),
        ({**ANTHROPIC, "anthropic-ratelimit-input-tokens-reset": "2025-06-15T15:07:10"}, None),
        ({**ANTHROPIC, "anthropic-ratelimit-input-tokens-reset": "2024-01-01T00:00:00Z"}, None),
        ({**ANTHROPIC, "anthropic-ratelimit-input-tokens-reset": "soon"}, None),
        ({**ANTHROPIC, "anthropic-ratelimit-input-tokens-remaining": "7"}, None),
        ({**OPENAI, **ANTHROPIC}, 30.0),
    ],
    ids=repr,
)
def test_a_spent_limit_says_when_it_is_full_again(http, headers, wait):
    assert told_wait(headers, NOW) is None  # which is no time to wait for
    assert refilled_in(http.Headers(headers), 1_750_000_000.0) == (
        None if wait is None else pytest.approx(wait)
    )


FULL = {
    **OPENAI,
    "x-ratelimit-limit-requests": "500",
    "x-ratelimit-reset-requests": "1m0s",
    "x-ratelimit-limit-tokens": "90000",
    "x-ratelimit-remaining-tokens": "45000",
    "x-ratelimit-reset-tokens": "30s",
}
OF_A_DAY = {
    "x-ratelimit-limit-requests": "10000",
    "x-ratelimit-remaining-requests": "9500",
    "x-ratelimit-reset-requests": "1h12m0s",
}
SPENT_TOKENS = {
    "anthropic-ratelimit-requests-limit": "50",
    "anthropic-ratelimit-requests-remaining": "49",
    "anthropic-ratelimit-requests-reset": "2025-06-15T15:06:42Z",
    "anthropic-ratelimit-input-tokens-limit": "30000",
    "anthropic-ratelimit-input-tokens-remaining": "0",
    "anthropic-ratelimit-input-tokens-reset": "2025-06-15T15:07:40Z",
    "retry-after": "4",
}


@pytest.mark.parametrize(
    ("headers", "codes", "held"),
    [
        (FULL, (), (0.12, Pace(0.12, True))),
        ({**FULL, "retry-after-ms": "50"}, (), (0.05, Pace(0.12, True))),
        ({**FULL, "retry-after": "2"}, ("tokens",), (2, Pace(0.3, False))),
        ({**FULL, "retry-after-ms": "200"}, ("tokens",), (0.2, Pace(0.2, False))),
        (FULL, ("tokens",), (None, None)),
        ({**FULL, "x-ratelimit-limit-requests": ""}, (), (None, None)),
        ({**FULL, "x-ratelimit-limit-requests": "-1"}, (), (None, None)),
        ({**FULL, "x-ratelimit-reset-requests": "0s"}, ("rate_limit_exceeded",), (None, None)),
        ({**FULL, "x-ratelimit-remaining-requests": "900"}, ("requests",), (None, None)),
        # the minute's requests are spent, and the headers tell of those of the day
        ({**OF_A_DAY, "retry-after-ms": "120"}, ("requests",), (0.12, None)),
        ({**OF_A_DAY, "x-ratelimit-remaining-requests": "0"}, ("requests",), (0.432, Pace(0.432, True))),
        (SPENT_TOKENS, ("rate_limit_error",), (4, Pace(0.6, False))),
        ({"retry-after": "4"}, ("requests",), (4, None)),
        ({}, (), (None, None)),
    ],
    ids=repr,
)
def test_a_refusal_tells_how_long_to_wait_and_how_far_apart_to_go_then(http, headers, codes, held):
    wait, pace = held_for(http.Headers(headers), 1_750_000_000.0, codes)
    assert wait == (None if held[0] is None else pytest.approx(held[0]))
    assert pace == (None if held[1] is None else pytest.approx(held[1]))


@given(st.text() | st.from_regex(r"\A(\d{1,20}(\.\d+)?(h|m|s|ms|us|ns)?)*\Z"), st.text())
def test_whatever_these_headers_say_a_wait_is_none_or_positive(duration, moment):
    headers = {
        **OPENAI,
        **ANTHROPIC,
        "x-ratelimit-reset-requests": duration,
        "anthropic-ratelimit-input-tokens-reset": moment,
    }
    wait = refilled_in(headers, NOW)
    assert wait is None or 0 < wait < math.inf
    _, pace = held_for({**headers, "x-ratelimit-limit-requests": "60"}, NOW, ())
    assert pace is None or 0 < pace.gap < math.inf
