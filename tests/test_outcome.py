"""What a response or an exception means: server-given waits, retry hints, kinds of errors."""

from __future__ import annotations

import math
import time
from email.utils import formatdate

import httpx
import httpx2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dspex_pipe import BreakerOpen, DeadlineExceeded, RateLimited
from dspex_pipe.family import family_of
from dspex_pipe.outcome import (
    Verdict,
    is_read_timeout,
    is_transient_error,
    status_error,
    surely_unsent,
    told_to_retry,
    told_wait,
    verdict,
)

NOW = 1_750_000_000.0


def date(seconds: float = 0.0) -> str:
    return formatdate(NOW + seconds, usegmt=True)


def get(http, url="http://a.test/"):
    return http.Request("GET", url)


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
    assert verdict(http.Response(status), get(http)) is says


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
