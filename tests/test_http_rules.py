"""RFC 9111, section by section; what hishel alone would do differently is said where it is tested."""

from __future__ import annotations

import subprocess
import sys
import types
import uuid
from dataclasses import replace
from email.utils import formatdate

import hishel
import pytest
from hishel import Entry, Headers, Request, Response
from hypothesis import HealthCheck, assume, given, settings, strategies as st

from dspex_pipe.caching.http import Fresh, HttpRules, Missing, Pass, Refresh, Stale, Store

NOW = 1_800_000_000.0
LATE = 2_500_000_000.0
URL = "https://x.test/a"
PRIVATE, SHARED = HttpRules(), HttpRules(shared=True)


def date(moment):
    return formatdate(moment, usegmt=True)


def get(method="GET", url=URL, **headers):
    return Request(method, url, Headers({name.replace("_", "-"): value for name, value in headers.items()}))


def answer(status=200, /, **headers):
    return Response(status, Headers({name.replace("_", "-"): value for name, value in headers.items()}))


def kept(response, request=None, rules=PRIVATE, now=NOW, took=0.0):
    """What is kept of a response, that arrived after so many seconds, or why nothing is."""
    request = request or get()
    pending = rules.look_up(request, [], now - took)
    assert isinstance(pending, Missing)
    learned = rules.learn(pending, response, now)
    return learned.reason if isinstance(learned, Pass) else Entry(uuid.uuid4(), request, learned.response)


def entry(rules=PRIVATE, now=NOW, request=None, took=0.0, **headers):
    found = kept(answer(**headers), request, rules, now, took)
    assert isinstance(found, Entry), found
    return found


def look_up(found, after=0.0, rules=PRIVATE, now=NOW, request=None):
    return rules.look_up(request or get(), found if isinstance(found, list) else [found], now + after)


def fresh_for(found, rules=PRIVATE, now=NOW):
    """The first second at which an entry must be checked."""
    low, high = 0, 2**32
    while low < high:
        middle = (low + high) // 2
        if isinstance(look_up(found, middle, rules, now), Fresh):
            low = middle + 1
        else:
            high = middle
    return low


# The interface


def test_hishel_is_imported_by_the_first_use_only():
    code = "import sys, dspex_pipe.caching.http; sys.exit('hishel' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("clock", [0.0, NOW, LATE, 9e9])
def test_hishels_own_clock_plays_no_part(monkeypatch, clock):
    monkeypatch.setattr("hishel._core._spec.time", types.SimpleNamespace(time=lambda: clock))
    for now in (1_000.0, NOW, LATE):
        modified = date(now - 1_000)
        assert fresh_for(entry(now=now, cache_control="max-age=60"), now=now) == 60
        assert fresh_for(entry(now=now, expires=date(now + 60)), now=now) == 60
        assert fresh_for(entry(now=now, date=date(now), last_modified=modified), now=now) == 100
        old, new = (entry(now=now - since, cache_control="max-age=60", etag=str(since)) for since in (9, 5))
        for both in ([old, new], [new, old]):
            assert look_up(both, now=now).entry is new
            stale = look_up(both, 100, now=now)
            assert (stale.entry, stale.conditions) == (new, {"if-none-match": "5"})


# RFC 9111 §3: storing


def test_3_an_answer_that_may_be_kept():
    response = kept(answer(cache_control="max-age=60", content_type="text/plain", etag='"1"')).response
    assert dict(response.headers) == {
        "cache-control": "max-age=60",
        "content-type": "text/plain",
        "etag": '"1"',
        "date": date(NOW),
        "x-dspex-born": str(int(NOW)),
    }


@pytest.mark.parametrize("status", [100, 201, 203, 204, 206, 301, 304, 404, 410, 500, 503])
def test_3_nothing_but_a_200_is_kept(status):
    assert kept(answer(status, cache_control="public, max-age=60")) == f"status {status}"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "QUERY", "get"])
def test_3_only_get_and_head_are_cached(method):
    assert kept(answer(cache_control="max-age=60"), get(method)) == f"{method} is not cached"


def test_3_what_could_never_be_used_is_not_kept():
    reason = "it is stale from the start, and could not be checked"
    for headers in (
        {},
        {"cache_control": "max-age=0"},
        {"cache_control": "no-cache, max-age=60"},
        {"expires": "0"},
        {"etag": ""},
        {"cache_control": "max-age=60", "age": "60"},
    ):
        assert kept(answer(**headers)) == reason
        assert isinstance(entry(**{**headers, "etag": '"1"'}), Entry)


def test_3_1_what_belongs_to_a_connection_is_not_kept():
    found = entry(
        cache_control="max-age=60",
        connection="close, X-Hop,Cache-Control",  # hishel keeps X-Hop
        x_hop="1",
        keep_alive="timeout=5",
        transfer_encoding="chunked",
        te="trailers",
        trailer="x-sum",
        upgrade="h2c",
        proxy_connection="close",
        proxy_authenticate="Basic",
        proxy_authentication_info="x",
        proxy_anything="x",
        x_end="1",
    )
    assert set(found.response.headers) == {"cache-control", "x-end", "date", "x-dspex-born"}


def test_3_1_set_cookie_is_never_kept():
    response = Response(200, Headers({"Cache-Control": "max-age=60", "Set-Cookie": ["a=1", "b=2"]}))
    assert "set-cookie" not in kept(response).response.headers


def test_3_1_lines_of_one_name_stay_apart():
    response = Response(200, Headers({"Cache-Control": ["max-age=60", "public"], "Link": ["<a>", "<b>"]}))
    assert look_up(kept(response)).headers.get_list("link") == ["<a>", "<b>"]


def test_3_1_what_the_server_says_in_our_own_header_is_overruled():
    found = entry(cache_control="max-age=60", x_dspex_born="99999999999")
    assert fresh_for(found) == 60
    assert "x-dspex-born" not in look_up(found).headers


def test_3_3_and_4_3_2_parts_and_conditions_are_left_to_the_caller():
    found = entry(cache_control="max-age=60")
    for name in (
        "range",
        "if-match",
        "if-none-match",
        "if-modified-since",
        "if-unmodified-since",
        "if-range",
    ):
        request = get(**{name: "x"})
        assert look_up(found, request=request).bypass
        assert "a part" in kept(answer(cache_control="max-age=60"), request)
    assert kept(answer(206, cache_control="max-age=60", content_range="bytes 0-1/2")) == "status 206"


def test_3_5_authenticated_answers_are_shared_only_on_request():
    request = get(authorization="Bearer x")
    for said in ("public", "s-maxage=60", "must-revalidate"):
        assert isinstance(kept(answer(cache_control=f"max-age=60, {said}"), request, SHARED), Entry)
    assert kept(answer(cache_control="max-age=60"), request, SHARED) == "a shared cache must not keep it"
    assert isinstance(kept(answer(cache_control="max-age=60"), request), Entry)


# RFC 9111 §4: constructing responses from caches


def test_4_without_an_entry_the_server_is_asked():
    missing = look_up([])
    assert (missing.reason, missing.bypass, missing.only_if_cached) == ("no entry", False, False)


def test_4_method_and_url_must_match():
    found = entry(cache_control="max-age=60")
    head = entry(cache_control="max-age=60", request=get("HEAD"))
    assert isinstance(look_up(found, request=get("HEAD")), Missing)
    assert isinstance(look_up(found, request=get(url=f"{URL}?b")), Missing)
    assert look_up([found, head], request=get("HEAD")).entry is head


def test_4_of_several_fresh_ones_the_newest_is_served():
    old = entry(now=NOW - 10, cache_control="max-age=3600")
    new = entry(now=NOW - 5, cache_control="max-age=60")
    assert look_up([old, new]).entry is look_up([new, old]).entry is new
    assert look_up([old, new], 100).entry is old
    # of two made within one second, the one that was kept last
    twin = entry(now=NOW - 5, cache_control="max-age=60")
    assert look_up([new, twin]).entry is twin


def test_4_what_was_kept_for_another_url_or_method_is_no_answer():
    found = entry(cache_control="max-age=60")
    assert look_up(found, request=get(method="HEAD")).reason == "no entry"
    assert look_up(found, request=get(url="https://example.com/other")).reason == "no entry"


def test_4_1_vary():
    request = get(accept="text/html")
    found = entry(cache_control="max-age=60", vary="Accept, X-Other", request=request)
    assert isinstance(look_up(found, request=request), Fresh)
    for other in (get(), get(accept="text/plain"), get(accept="text/html", x_other="1")):
        assert look_up(found, request=other).reason == "no entry"


def test_4_1_variants_live_side_by_side():
    # hishel checks the other variant with the server, and forgets it when the answer is a new one
    html, plain = get(accept="text/html"), get(accept="text/plain")
    found = [entry(cache_control="max-age=60", vary="accept", request=html)]
    pending = look_up(found, request=plain)
    learned = PRIVATE.learn(pending, answer(cache_control="max-age=60", vary="accept"), NOW)
    assert isinstance(learned, Store)
    assert not learned.remove


def test_4_1_vary_with_anything_is_never_kept_nor_served():
    assert kept(answer(cache_control="max-age=60", vary="accept, *")) == "it varies with anything (Vary: *)"
    found = entry(cache_control="max-age=60")
    found.response.headers["vary"] = "*"
    assert look_up(found).reason == "no entry"


def test_4_2_fresh_until_the_age_reaches_the_lifetime():
    found = entry(cache_control="max-age=60")
    assert isinstance(look_up(found, 59.9), Fresh)
    assert isinstance(look_up(found, 60), Stale)


@pytest.mark.parametrize(
    ("headers", "private", "shared"),
    [
        ({"cache_control": "max-age=60"}, 60, 60),
        ({"cache_control": 'max-age="60"'}, 60, 60),
        ({"cache_control": "MAX-AGE=60 ,\t, Public"}, 60, 60),
        ({"cache_control": "max-age=60, s-maxage=5"}, 60, 5),
        ({"cache_control": "s-maxage=5"}, 0, 5),
        ({"cache_control": "max-age=60", "expires": date(NOW + 9)}, 60, 60),
        ({"expires": date(NOW + 9)}, 9, 9),
        ({"expires": date(NOW + 9), "date": date(NOW + 4)}, 5, 5),
        ({"expires": date(NOW - 9), "last_modified": date(NOW - 1000)}, 0, 0),
        ({"cache_control": "max-age=00000000000000000000007"}, 7, 7),
        ({"cache_control": "max-age=0000000000000000000000"}, 0, 0),
        ({"cache_control": f"max-age={2**31 + 9}"}, 2**31, 2**31),
        ({"cache_control": "max-age=" + "9" * 9999}, 2**31, 2**31),
        ({"cache_control": 'x=1, y, z="a, \\"no-store", max-age=60'}, 60, 60),
    ],
)
def test_4_2_1_freshness_lifetime(headers, private, shared):
    for rules, seconds in ((PRIVATE, private), (SHARED, shared)):
        assert fresh_for(entry(rules=rules, etag='"1"', **headers), rules) == seconds


def test_4_2_2_heuristic_freshness_is_a_tenth_of_the_time_unchanged_a_week_at_most():
    assert fresh_for(entry(last_modified=date(NOW - 1000))) == 100
    assert fresh_for(entry(last_modified=date(0))) == 7 * 86400
    assert fresh_for(entry(last_modified=date(NOW + 1000))) == 0
    assert fresh_for(entry(last_modified="yesterday")) == 0
    assert fresh_for(entry(last_modified=date(NOW - 1000), date=date(NOW - 500))) == 0
    # of the time before Date, not before now, as with hishel
    assert fresh_for(entry(last_modified=date(NOW - 1000), date=date(NOW - 20))) == 78


@pytest.mark.parametrize(
    ("headers", "took", "age"),
    [
        ({}, 0, 0),
        ({"age": "20"}, 0, 20),  # hishel: 0
        ({"age": " 20 , 7"}, 0, 20),  # §5.1: of several, the first
        ({"age": "x"}, 0, 0),
        ({"age": "-5"}, 0, 0),
        ({"age": ""}, 0, 0),
        ({"date": date(NOW - 30)}, 0, 30),
        ({"date": date(NOW - 30), "age": "20"}, 0, 30),
        ({"date": date(NOW - 30), "age": "40"}, 0, 40),
        ({"date": date(NOW + 999), "age": "40"}, 0, 40),
        ({"date": date(NOW + 999)}, 0, 0),
        ({}, 3, 3),
        ({"age": "20"}, 3, 23),
        ({"date": date(NOW - 30)}, 3, 30),
    ],
)
def test_4_2_3_age(headers, took, age):
    found = entry(cache_control="max-age=100", took=took, **headers)
    assert look_up(found).headers["age"] == str(age)
    assert look_up(found, 50).headers["age"] == str(age + 50)
    assert fresh_for(found) == 100 - age


def test_4_2_3_a_clock_put_back_makes_nothing_older_or_younger_than_new():
    assert look_up(entry(cache_control="max-age=60", took=-5)).headers["age"] == "0"
    assert look_up(entry(cache_control="max-age=60"), -5).headers["age"] == "0"


@pytest.mark.parametrize(
    ("said", "private", "shared"),
    [
        ("max-age=60", Fresh, Fresh),
        ("max-age=60, must-revalidate", Stale, Stale),
        ("max-age=60, proxy-revalidate", Fresh, Stale),
        ("max-age=60, s-maxage=60", Fresh, Stale),
        ("max-age=60, no-cache", Stale, Stale),
    ],
)
def test_4_2_4_stale_answers_are_served_only_where_both_sides_allow_it(said, private, shared):
    for rules, kind in ((PRIVATE, private), (SHARED, shared)):
        found = entry(rules=rules, cache_control=said, etag='"1"')
        assert isinstance(look_up(found, 70, rules), Stale)
        assert isinstance(look_up(found, 70, rules, request=get(cache_control="max-stale=10")), kind)
        assert isinstance(look_up(found, 71, rules, request=get(cache_control="max-stale=10")), Stale)
        assert isinstance(look_up(found, 1e6, rules, request=get(cache_control="max-stale")), kind)


# RFC 9111 §4.3: validation


def stale(*older, **headers):
    found = [entry(now=NOW - 100, **headers), *older]
    pending = look_up(found)
    assert isinstance(pending, Stale)
    return pending


def test_4_3_1_the_conditions_are_the_validators():
    modified = date(NOW - 1000)
    pending = stale(cache_control="max-age=1", etag='W/"1"', last_modified=modified)
    assert pending.conditions == {"if-none-match": 'W/"1"', "if-modified-since": modified}
    assert stale(cache_control="max-age=1").conditions == {}


def test_4_3_3_a_new_answer_replaces_all_that_were_selected():
    older = [entry(now=NOW - 200, cache_control="max-age=1") for _ in range(2)]
    pending = stale(*older, cache_control="max-age=1", etag='"1"')
    ids = {pending.entry.id, *(found.id for found in older)}
    learned = PRIVATE.learn(pending, answer(cache_control="max-age=60", etag='"2"'), NOW)
    assert isinstance(learned, Store)
    assert set(learned.remove) == ids
    learned = PRIVATE.learn(pending, answer(cache_control="no-store"), NOW)
    assert isinstance(learned, Pass)
    assert set(learned.remove) == ids


@pytest.mark.parametrize("status", [301, 401, 404, 429, 500, 503])
def test_4_3_3_an_error_is_served_and_removes_nothing(status):
    assert PRIVATE.learn(stale(etag='"1"'), answer(status), NOW) == Pass(f"status {status}")


def test_4_3_4_a_304_refreshes_the_headers():
    pending = stale(
        cache_control="max-age=1",
        etag='"1"',
        content_type="text/plain",
        content_length="5",
        x_old="1",
        x_new="1",
    )
    response = answer(
        304,
        cache_control="max-age=60",
        etag='"1"',
        content_type="text/html",
        content_length="0",
        content_encoding="gzip",
        x_new="2",
        age="10",
        connection="x-hop",
        x_hop="1",
        set_cookie="a=1",
    )
    learned = PRIVATE.learn(pending, response, NOW)
    assert isinstance(learned, Refresh)
    assert learned.entry is pending.entry
    assert learned.remove == ()
    known = {
        "cache-control": "max-age=60",
        "etag": '"1"',
        "content-type": "text/plain",
        "content-length": "5",
        "x-old": "1",
        "x-new": "2",
        "date": date(NOW),
    }
    assert dict(learned.update) == known | {"x-dspex-born": str(int(NOW - 10))}
    # a cookie of the 304 reaches the caller, and not the store
    assert dict(learned.headers) == known | {"age": "10", "set-cookie": "a=1"}
    found = replace(learned.entry, response=replace(learned.entry.response, headers=learned.update))
    assert fresh_for(found) == 50


def test_4_3_4_older_entries_go_when_the_newest_is_confirmed():
    older = entry(now=NOW - 200, cache_control="max-age=1")
    learned = PRIVATE.learn(stale(older, cache_control="max-age=1"), answer(304), NOW)
    assert isinstance(learned, Refresh)
    assert learned.remove == (older.id,)


@pytest.mark.parametrize("headers", [{"etag": '"2"'}, {"last_modified": date(NOW - 5)}])
def test_4_3_4_a_304_for_another_version_means_to_ask_again_without_conditions(headers):
    pending = stale(cache_control="max-age=1", etag='"1"')
    again = PRIVATE.learn(pending, answer(304, **headers), NOW)
    assert isinstance(again, Missing)
    assert (again.reason, again.remove) == ("a 304 for another version", (pending.entry.id,))
    assert isinstance(PRIVATE.learn(again, answer(cache_control="max-age=60"), NOW), Store)
    assert PRIVATE.learn(again, answer(304), NOW) == Pass("status 304")


@pytest.mark.parametrize(
    "headers",
    [
        {"cache_control": "no-store"},
        {"cache_control": "no-store=1"},
        {"cache_control": 'private=""'},
        {"cache_control": "private"},
        {"vary": "*"},
    ],
)
def test_4_3_4_a_304_can_forbid_to_keep_what_we_have(headers):
    pending = look_up(entry(SHARED, now=NOW - 100, cache_control="max-age=1", etag='"1"'), rules=SHARED)
    learned = SHARED.learn(pending, answer(304, **headers), NOW)
    assert isinstance(learned, Refresh)
    assert (learned.update, learned.remove) == (None, (pending.entry.id,))
    assert learned.headers["age"] == "0"


@pytest.mark.parametrize(
    ("before", "after", "stays"), [("a", "b", False), ("a", "A", True), ("", "a", False)]
)
def test_4_3_4_a_304_that_varies_anew_ends_the_entry(before, after, stays):
    pending = stale(cache_control="max-age=1", etag='"1"', vary=before)
    learned = PRIVATE.learn(pending, answer(304, cache_control="max-age=60", vary=after), NOW)
    assert isinstance(learned, Refresh)
    assert (learned.update is not None, learned.remove == ()) == (stays, stays)


def test_4_3_4_a_304_cannot_take_away_what_we_go_by():
    said = 'max-age=60, no-cache="x-dspex-born, date, cache-control, vary, x-gone"'
    pending = stale(cache_control="max-age=1", vary="accept", x_gone="1")
    learned = PRIVATE.learn(pending, answer(304, cache_control=said), NOW)
    assert set(learned.update) == {"cache-control", "date", "vary", "x-dspex-born"}


# RFC 9111 §4.4: invalidation


@pytest.mark.parametrize(
    ("method", "status", "headers", "urls"),
    [
        ("POST", 200, {}, [URL]),
        ("PUT", 204, {}, [URL]),
        ("PATCH", 302, {}, [URL]),
        ("BREW", 200, {}, [URL]),
        ("DELETE", 404, {}, []),
        ("POST", 500, {"location": "/b"}, []),
        ("GET", 200, {"location": "/b"}, []),
        ("QUERY", 200, {}, []),
        ("POST", 201, {"location": "/b"}, [URL, "https://x.test/b"]),
        ("POST", 201, {"location": "?q=1#frag"}, [URL, f"{URL}?q=1"]),
        ("POST", 201, {"location": "HTTPS://X.test:443/b"}, [URL, "https://x.test/b"]),
        ("POST", 201, {"location": "https://x.test"}, [URL, "https://x.test/"]),
        ("POST", 201, {"content-location": "b", "location": "b"}, [URL, "https://x.test/b"]),
        ("POST", 201, {"content-location": URL}, [URL]),
        ("POST", 201, {"location": "https://other.test/b"}, [URL]),
        ("POST", 201, {"location": "http://x.test/b"}, [URL]),
        ("POST", 201, {"location": "https://x.test:8443/b"}, [URL]),
        ("POST", 201, {"location": "https://x.test:99999/b"}, [URL]),
        ("POST", 201, {"location": "https://[x/b"}, [URL]),
    ],
)
def test_4_4_invalidation(method, status, headers, urls):
    assert PRIVATE.invalidated_by(method, URL, status, Headers(headers)) == tuple(urls)


# RFC 9111 §5: fields


def test_5_2_1_1_max_age_of_a_request():
    found = entry(cache_control="max-age=60")
    assert isinstance(look_up(found, 10, request=get(cache_control="max-age=10")), Fresh)
    assert isinstance(look_up(found, 11, request=get(cache_control="max-age=10")), Stale)
    assert isinstance(look_up(found, 70, request=get(cache_control="max-age=10, max-stale")), Stale)


def test_5_2_1_3_min_fresh_of_a_request():
    found = entry(cache_control="max-age=60")
    assert isinstance(look_up(found, 50, request=get(cache_control="min-fresh=10")), Fresh)
    assert isinstance(look_up(found, 51, request=get(cache_control="min-fresh=10")), Stale)
    assert isinstance(look_up(found, 51, request=get(cache_control="min-fresh=10, max-stale")), Stale)


@pytest.mark.parametrize("headers", [{"cache_control": "no-cache"}, {"pragma": "x, No-Cache"}])
def test_5_2_1_4_and_5_4_no_cache_of_a_request(headers):
    assert isinstance(look_up(entry(cache_control="max-age=60"), request=get(**headers)), Stale)
    assert isinstance(entry(cache_control="max-age=60", request=get(**headers)), Entry)


def test_5_4_pragma_says_nothing_beside_cache_control():
    request = get(pragma="no-cache", cache_control="max-age=60")
    assert isinstance(look_up(entry(cache_control="max-age=60"), request=request), Fresh)


@pytest.mark.parametrize("said", ["no-store", "max-age=x", "no-store=1", "max-age=1, max-age=2"])
def test_5_2_1_5_no_store_of_a_request(said):
    request = get(cache_control=said)
    assert look_up(entry(cache_control="max-age=60"), request=request).bypass
    assert "no-store" in kept(answer(cache_control="max-age=60"), request)


def test_5_2_1_7_only_if_cached():
    request = get(cache_control="only-if-cached")
    found = entry(cache_control="max-age=60", etag='"1"')
    assert isinstance(look_up(found, request=request), Fresh)
    for missing in (look_up([], request=request), look_up(found, 100, request=request)):
        assert isinstance(missing, Missing)
        assert missing.only_if_cached


def test_5_2_2_4_no_cache_of_a_response():
    found = entry(cache_control="no-cache, max-age=60", etag='"1"')
    assert isinstance(look_up(found), Stale)
    found = entry(cache_control='max-age=60, no-cache="X-A, x-b"', x_a="1", x_b="1", x_c="1")
    assert set(look_up(found).headers) == {"cache-control", "x-c", "date", "age"}


def test_5_2_2_7_private():
    assert isinstance(kept(answer(cache_control="private, max-age=60")), Entry)
    # hishel reads the second as one directive, about the field "a,private"
    for said in ("private", "no-cache=a,private"):
        response = answer(cache_control=f"max-age=60, {said}")
        assert kept(response, rules=SHARED) == "a shared cache must not keep it"
    found = entry(SHARED, cache_control='max-age=60, private="x-a"', x_a="1")
    assert "x-a" not in found.response.headers
    assert "x-a" in entry(cache_control='max-age=60, private="x-a"', x_a="1").response.headers


MALFORMED = [
    'private=""',
    'private=" , "',
    "private=a b",
    'no-cache=""',
    "no-store=1",
    'no-store=""',
    'No-Store="x"',
    "no-store; max-age=60",
    '"no-store"',
    "no-store max-age=60",
    "max-age",
    "max-age=",
    "max-age=-1",
    "max-age=1.5",
    "max-age=٣",
    'max-age="',
    'max-age="60',
    "max-age = 60",
    "max-age=60, max-age=61",
    "max-age=60, max-age=060",
    "private, private=a",
    "s-maxage=x",
    "public=1",
    "must-revalidate=1",
    "\x00",
    "max-age=60\n",
    "=60",
]


@pytest.mark.parametrize("said", MALFORMED)
def test_5_2_what_cannot_be_read_means_no_store(said):
    for value in (said, ["public, max-age=3600", said], [said, "public, max-age=3600"]):
        response = Response(200, Headers({"cache-control": value, "etag": '"1"'}))
        assert "no-store" in kept(response)
        assert "no-store" in kept(response, rules=SHARED)


def test_5_2_a_quote_left_open_hides_nothing():
    response = Response(200, Headers({"cache-control": ['max-age=60, x="', "no-store", '"']}))
    assert "no-store" in kept(response)


def test_5_2_what_is_said_twice_alike_is_said_once():
    assert fresh_for(entry(cache_control='max-age=60, Max-Age="60"')) == 60


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Thu, 15 Jan 2026 08:01:00 GMT", 60),
        ("Thursday, 15-Jan-26 08:01:00 GMT", 60),
        ("Thu Jan 15 08:01:00 2026", 60),
        ("Thu, 15 Jan 2026 08:00:60 GMT", 60),
        ("Thursday, 15-Jan-77 08:01:00 GMT", 0),
        ("Wednesday, 15-Jan-76 08:00:00 GMT", 1577836800),
        # not dates, though hishel takes most of them for one
        ("0", 0),
        ("-1", 0),
        ("", 0),
        ("Thu, 15 Jan 2026 08:01:00 UTC", 0),
        ("Thu, 15 Jan 2026 08:01:00 PST", 0),
        ("Thu, 15 Jan 2026 08:01:00", 0),
        ("Thu, 15 Jan 2026 8:01:00 GMT", 0),
        ("Thu, 15 Jan 26 08:01:00 GMT", 0),
        ("thu, 15 jan 2026 08:01:00 gmt", 0),
        ("Thu, 35 Jan 2026 08:01:00 GMT", 0),
        ("Thu, 15 Jan 2026 24:01:00 GMT", 0),
        ("Thu, 15 Jan 0000 08:01:00 GMT", 0),
        ("15 Jan 2026 08:01:00 GMT", 0),
        ("2026-01-15T08:01:00Z", 0),
        ("Thu, 15 Jan 2026 08:01:00 GMT, Thu, 15 Jan 2026 08:01:00 GMT", 0),
    ],
)
def test_5_3_expires(text, seconds):
    now = 1768464000.0  # Thu, 15 Jan 2026 08:00:00 GMT
    assert fresh_for(entry(now=now, expires=text, etag='"1"'), now=now) == seconds


# RFC 9110 §6.6.1


@pytest.mark.parametrize("headers", [{}, {"date": "0"}, {"date": "Thu, 15 Jan 2026 08:01:00 PST"}])
def test_9110_6_6_1_a_missing_date_is_added(headers):
    for now in (NOW, LATE):
        found = entry(now=now, cache_control="max-age=60", **headers)
        assert found.response.headers["date"] == date(now)
        assert fresh_for(found, now=now) == 60  # hishel: for ever


# A store that is not ours, or spoilt


@pytest.mark.parametrize("born", [None, "", "x", "nan", "inf", "-inf", "9" * 99, "1e5", "1\n"])
def test_an_entry_of_unknown_age_is_checked_first(born):
    headers = {"cache-control": "max-age=60", "date": date(NOW), "etag": '"1"'}
    if born is not None:
        headers["x-dspex-born"] = born
    found = Entry(uuid.uuid4(), get(), Response(200, Headers(headers)))
    for request in (get(), get(cache_control="max-stale")):
        pending = look_up(found, request=request)
        assert isinstance(pending, Stale)
        learned = PRIVATE.learn(pending, answer(304), NOW)
        assert fresh_for(replace(found, response=replace(found.response, headers=learned.update))) == 60


@pytest.mark.parametrize(
    "headers",
    [
        {"cache-control": "no-store, max-age=60", "date": date(NOW)},
        {"expires": date(NOW + 60)},
        {"last-modified": date(0)},
    ],
)
def test_an_entry_that_we_would_not_have_kept_so_is_checked_first(headers):
    headers["x-dspex-born"] = str(int(NOW))
    assert isinstance(look_up(Entry(uuid.uuid4(), get(), Response(200, Headers(headers)))), Stale)


# For any header text

# In a fresh checkout, hypothesis first looks through our modules for constants, and finds itself slow.
PATIENT = settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)

NAMES = st.sampled_from(
    [
        *("cache-control", "date", "expires", "age", "last-modified", "etag", "vary", "pragma"),
        *("connection", "set-cookie", "proxy-x", "authorization", "location", "content-location"),
        "x-dspex-born",
    ]
)
PIECES = st.sampled_from(
    [
        *("no-store", "no-cache", "private", "public", "must-revalidate", "only-if-cached"),
        *("max-age", "s-maxage", "max-stale", "min-fresh", "date", "cache-control", "x-dspex-born"),
        *("=", '"', ",", " ", "\\", "*", "//[", ":x", "\x00", "\n", "٣", "60", "0", "-1", "9" * 5000),
        *("Thu, 15 Jan 2026 08:01:00 GMT", "Thursday, 15-Jan-77 08:01:00 GMT", date(NOW)),
    ]
)
TEXTS = st.lists(PIECES, max_size=8).map("".join) | st.text(max_size=30)
HEADERS = st.dictionaries(NAMES, TEXTS | st.lists(TEXTS, max_size=3), max_size=8).map(Headers)
RULES = st.sampled_from([PRIVATE, SHARED])
TIMES = st.floats(0, 4e9)


@PATIENT
@given(RULES, HEADERS, HEADERS, HEADERS, HEADERS, st.sampled_from([200, 206, 304, 404, 500]), TIMES, TIMES)
def test_nothing_raises_and_nothing_secret_is_kept(rules, asked, foreign, first, second, status, now, later):
    request = Request("GET", URL, asked)
    found = [Entry(uuid.uuid4(), request, Response(200, foreign))]
    for headers, code, moment in ((first, 200, now), (second, status, later), (second, status, later)):
        pending = rules.look_up(request, found, moment)
        rules.invalidated_by("POST", URL, code, headers)
        if isinstance(pending, Fresh):
            assert int(pending.headers["age"]) >= 0
            continue
        learned = rules.learn(pending, Response(code, headers), moment)
        if isinstance(learned, Store):
            found = [Entry(uuid.uuid4(), request, learned.response)]
        elif isinstance(learned, Refresh) and learned.update is not None:
            assert int(learned.headers["age"]) >= 0
            found = [replace(learned.entry, response=replace(learned.entry.response, headers=learned.update))]
        else:
            continue
        kept_headers = found[0].response.headers
        assert {"set-cookie", "connection", "proxy-x", "age"}.isdisjoint(kept_headers)
        assert {"date", "x-dspex-born"} <= set(kept_headers)
        # what is kept has been read, by our own strict reader, and does not say no-store
        assert "no-store" not in plain(kept_headers)


def plain(headers):
    """What stands in Cache-Control outside of quotes, read as simply as can be."""
    lines = headers.get_list("cache-control") or []
    outside = "".join("".join(line.replace("\\\\", "").replace('\\"', "").split('"')[::2]) for line in lines)
    return {part.partition("=")[0].strip().lower() for part in outside.split(",")}


CASES = st.lists(st.booleans(), min_size=8, max_size=8)
OTHERS = st.lists(st.sampled_from(["public", "max-age=60", "immutable", "x", 'y="a,b"', ""]), max_size=3)
SPACE = st.text(" \t", max_size=2)


@PATIENT
@given(
    CASES, st.sampled_from(["", "=", "=1", '=""', '="x"', ";", " x"]), OTHERS, OTHERS, SPACE, st.booleans()
)
def test_no_store_in_any_spelling_is_never_kept(upper, tail, before, after, space, in_lines):
    word = "".join(char.upper() if up else char for char, up in zip("no-store", upper, strict=True)) + tail
    parts = [*before, space + word + space, *after]
    value = parts if in_lines else ",".join(parts)
    assert "no-store" in kept(Response(200, Headers({"cache-control": value, "etag": '"1"'})))


@PATIENT
@given(HEADERS, TIMES, st.lists(st.floats(-1e5, 1e5), min_size=2, max_size=8).map(sorted))
def test_age_is_never_negative_and_never_decreases(headers, now, times):
    others = {name: headers.get_list(name) for name in set(headers) - {"cache-control", "vary"}}
    headers = Headers(others | {"cache-control": "max-age=2147483648"})
    found = kept(Response(200, headers), now=now)
    assert isinstance(found, Entry) or "could not be checked" in found  # too old from the start
    assume(isinstance(found, Entry))
    looked = [look_up(found, after, now=now) for after in times]
    ages = [int(fresh.headers["age"]) for fresh in looked if isinstance(fresh, Fresh)]
    assert ages == sorted(ages)
    assert all(age >= 0 for age in ages)
    # once stale, stale for good
    kinds = [isinstance(fresh, Fresh) for fresh in looked]
    assert kinds == sorted(kinds, reverse=True)


def test_the_state_machine_is_hishels():
    pending = stale(cache_control="max-age=1", etag='"1"')
    assert isinstance(pending.state, hishel.NeedRevalidation)
    assert pending.state.revalidating_entries == [pending.entry]
