"""GET and HEAD through the cache layer: RFC 9111, with real requests, identities and single-flight."""

from __future__ import annotations

import time
from email.utils import formatdate

import httpx
import pytest

from dspex_pipe import Cache, MemoryStore, Pipeline, explain, options
from dspex_pipe.testing import Reply, Script, VirtualIO
from modes import World

URL = "http://x.test/thing"


def page(body=b"one", *, chunks=None, **headers):
    return Reply(
        content=body,
        chunks=chunks,
        headers={name.replace("_", "-"): value for name, value in headers.items()},
    )


def counted(**headers):
    """Pages that are each another, with these headers."""
    count = iter(range(1, 1000))
    return lambda _: page(str(next(count)).encode(), **headers)


def setup(*steps, cache=None):
    io = VirtualIO()
    pipeline = Pipeline([cache or Cache()])
    script = Script(*steps, forever=True, io=io)
    return script, io, pipeline.client(transport=script, io=io)


def get(client, url=URL, method="GET", **headers):
    response = client.request(method, url, headers={k.replace("_", "-"): v for k, v in headers.items()})
    return response.text, response.headers.get("x-dspex-cache")


def test_a_fresh_page_is_served_with_its_age(world: World):
    async def main():
        io = VirtualIO()
        script = Script(page(cache_control="max-age=60", etag='"1"'), io=io)
        async with world.client([Cache()], transport=script, io=io) as client:
            first = await client.get(URL)
            io.advance(30)
            again = await client.get(URL)
        assert (first.text, again.text) == ("one", "one")
        assert (first.headers["x-dspex-cache"], again.headers["x-dspex-cache"]) == ("miss", "hit")
        assert again.headers["age"] == "30"
        assert not any(name.startswith("x-dspex-") for name in again.headers if name != "x-dspex-cache")
        assert isinstance(again, world.http.Response)
        assert [e.decision for e in explain(again)] == ["hit"]

    world.run(main)


def test_cookies_are_not_kept_and_whoever_has_one_is_somebody_else():
    _, _, client = setup(counted(cache_control="max-age=60", set_cookie="a=b"))
    assert "set-cookie" in client.get(URL).headers
    client.cookies.clear()
    response = client.get(URL)
    assert (response.text, response.headers["x-dspex-cache"]) == ("1", "hit")
    assert "set-cookie" not in response.headers
    assert get(client, cookie="a=b") == ("2", "miss")


def test_an_etag_goes_back_byte_for_byte():
    etag = b'"caf\xe9"'
    script, _, client = setup(page(cache_control="max-age=0", etag=etag))
    assert [get(client)[1] for _ in range(2)] == ["miss", "miss"]
    assert (b"if-none-match", etag) in [
        (name.lower(), value) for name, value in script.requests[1].headers.raw
    ]


def test_who_sets_the_clock_of_the_machine_ages_what_is_kept(monkeypatch):
    client = Pipeline([Cache()]).client(transport=Script(page(cache_control="max-age=60"), forever=True))
    assert [get(client)[1] for _ in range(2)] == ["miss", "hit"]
    late = time.time() + 7200
    monkeypatch.setattr("time.time", lambda: late)
    assert get(client)[1] == "miss"


def test_a_get_with_a_body_passes_by():
    _, _, client = setup(counted(cache_control="max-age=60"))
    answers = [client.request("GET", URL, content=b"q") for _ in range(2)]
    assert [a.text for a in answers] == ["1", "2"]
    assert explain(answers[0])[0].reason == "a GET with a body"


def test_a_broken_replacement_leaves_what_was_kept():
    script, io, client = setup(
        page(b"old", cache_control="max-age=1", etag='"1"'),
        Reply(chunks=[b"n"], headers={"cache-control": "max-age=60", "etag": '"2"'}, error="ReadError"),
        Reply(status=304, headers={"etag": '"1"'}),
    )
    get(client)
    io.advance(2)
    with pytest.raises(httpx.ReadError):
        get(client)
    assert get(client) == ("old", "revalidated")


def test_a_stale_page_is_checked_and_a_304_makes_it_fresh():
    script, io, client = setup(
        page(cache_control="max-age=60", etag='"1"'),
        Reply(status=304, headers={"cache-control": "max-age=60", "x-new": "yes"}),
    )
    get(client)
    io.advance(61)
    response = client.get(URL)
    assert (response.text, response.headers["x-dspex-cache"]) == ("one", "revalidated")
    assert response.headers["x-new"] == "yes"
    assert script.requests[1].headers["if-none-match"] == '"1"'
    io.advance(59)
    assert get(client) == ("one", "hit")
    assert len(script.requests) == 2
    assert script.open == 0


def test_a_stale_page_that_changed_is_replaced():
    script, io, client = setup(counted(cache_control="max-age=60", etag='"1"'))
    get(client)
    io.advance(61)
    assert [get(client) for _ in range(2)] == [("2", "miss"), ("2", "hit")]


def test_a_304_about_another_version_is_asked_again_without_conditions():
    script, io, client = setup(
        page(cache_control="max-age=1", etag='"1"'),
        Reply(status=304, headers={"etag": '"2"'}),
        page(b"two", cache_control="max-age=60", etag='"2"'),
    )
    get(client)
    io.advance(2)
    assert get(client) == ("two", "miss")
    assert "if-none-match" not in script.requests[2].headers
    assert get(client) == ("two", "hit")


def test_what_says_no_store_is_not_kept():
    _, _, client = setup(counted(cache_control="no-store"))
    assert [get(client) for _ in range(2)] == [("1", "miss"), ("2", "miss")]
    response = client.get(URL)
    assert explain(response)[-1].reason.startswith("it says no-store")


def test_a_304_may_end_what_is_kept():
    script, io, client = setup(
        page(cache_control="max-age=1", etag='"1"'),
        Reply(status=304, headers={"etag": '"1"', "cache-control": "no-store"}),
        page(b"two"),
    )
    get(client)
    io.advance(2)
    assert get(client) == ("one", "revalidated")
    assert get(client)[0] == "two"


def test_variants_are_kept_side_by_side():
    count = iter("abcdef")
    script, _, client = setup(lambda _: page(next(count).encode(), cache_control="max-age=60", vary="Accept"))
    got = [get(client, accept=kind)[0] for kind in ("x/1", "x/2", "x/1", "x/2")]
    assert got == ["a", "b", "a", "b"]


def test_vary_on_a_credential_keeps_a_digest_of_it_only():
    class Spy(MemoryStore):
        def create_entry(self, request, response, key, **more):
            self.given = repr((key, request, response))
            return super().create_entry(request, response, key, **more)

    store = Spy()
    reply = page(cache_control="max-age=60", vary="Authorization, Accept")
    _, _, client = setup(reply, cache=Cache(store, identity="shared"))
    assert get(client, authorization="hunter2", accept="x/1")[1] == "miss"
    assert get(client, authorization="hunter2", accept="x/1")[1] == "hit"
    assert get(client, authorization="hunter3", accept="x/1")[1] == "miss"
    assert "x/1" in store.given
    assert "hunter" not in store.given
    assert "x.test" not in store.given  # nor where it was asked


def test_one_credential_never_gets_anothers_page_whatever_vary_says():
    _, _, client = setup(counted(cache_control="public, max-age=60"))
    assert [get(client, authorization=who)[0] for who in ("a", "b", "a")] == ["1", "2", "1"]


def test_shared_and_private():
    for shared, how in ((False, "hit"), (True, "miss")):
        _, _, client = setup(counted(cache_control="private, max-age=60"), cache=Cache(shared=shared))
        get(client)
        assert get(client)[1] == how


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_an_unsafe_method_makes_what_is_kept_untrue(method):
    script, _, client = setup(
        page(b"thing", cache_control="max-age=60"),
        page(b"list", cache_control="max-age=60"),
        page(b"other", cache_control="max-age=60"),
        Reply(status=201, headers={"location": "/list", "content-location": "http://x.test/other"}),
        lambda request: page(b"new"),
    )
    for name in ("thing", "list", "other"):
        assert get(client, f"http://x.test/{name}")[0] == name
    client.request(method, URL)
    for name in ("thing", "list", "other"):
        assert get(client, f"http://x.test/{name}") == ("new", "miss")


def test_an_unsafe_method_that_failed_changes_nothing():
    _, _, client = setup(page(cache_control="max-age=60"), 500)
    get(client)
    client.post(URL)
    assert get(client) == ("one", "hit")


def test_head_has_entries_of_its_own_and_keeps_its_length():
    head = Reply(chunks=[], headers={"cache-control": "max-age=60", "content-length": "999"})
    script, _, client = setup(head, page(b"body", cache_control="max-age=60"))
    for how in ("miss", "hit"):
        response = client.head(URL)
        assert (response.headers["content-length"], response.headers["x-dspex-cache"]) == ("999", how)
    assert get(client) == ("body", "miss")


def test_the_requests_own_wishes():
    script, _, client = setup(counted(cache_control="max-age=60"))
    assert client.get(URL, headers={"cache-control": "only-if-cached"}).status_code == 504
    assert get(client) == ("1", "miss")
    assert get(client, cache_control="only-if-cached") == ("1", "hit")
    assert get(client, cache_control="no-cache") == ("2", "miss")
    assert get(client, cache_control="no-store") == ("3", None)
    assert get(client, range="bytes=0-1") == ("4", None)
    assert get(client) == ("2", "hit")


@pytest.mark.parametrize(
    ("mode", "got", "afterwards"),
    [
        ("off", [("2", None), ("3", None)], ("1", "hit")),
        ("refresh", [("2", "miss"), ("3", "miss")], ("3", "hit")),
        ("write_only", [("2", "miss"), ("3", "miss")], ("3", "hit")),
        ("read_only", [("1", "hit"), ("1", "hit")], ("1", "hit")),
        ("only_if_cached", [("1", "hit"), ("1", "hit")], ("1", "hit")),
    ],
)
def test_modes(mode, got, afterwards):
    _, _, client = setup(counted(cache_control="max-age=60"))
    get(client)
    assert [get(client, x_dspex_cache=mode) for _ in range(2)] == got
    assert get(client) == afterwards


def test_read_only_keeps_and_changes_nothing():
    script, io, client = setup(
        page(cache_control="max-age=1", etag='"1"'),
        Reply(status=304, headers={"cache-control": "max-age=1000"}),
        Reply(status=304, headers={"cache-control": "max-age=1000"}),
        page(b"two", cache_control="max-age=1000"),
    )
    get(client)
    io.advance(2)
    lazy = {"x_dspex_cache": "read_only"}
    assert [get(client, **lazy) for _ in range(2)] == [("one", "revalidated")] * 2
    assert get(client, "http://x.test/other", **lazy) == ("two", "miss")
    assert get(client, "http://x.test/other")[1] == "miss"


def test_a_given_ttl_is_fixed_freshness_for_everything():
    script, io, client = setup(counted(cache_control="no-cache"), cache=Cache(ttl=60))
    assert [get(client) for _ in range(2)] == [("1", "miss"), ("1", "hit")]
    io.advance(61)
    assert get(client) == ("2", "miss")
    assert get(client, range="bytes=0-1")[1] is None


def test_bodies_of_unknown_length_are_kept_when_they_have_been_read(world: World):
    async def main():
        script = Script(lambda _: page(chunks=[b"a", b"b", b"c"], cache_control="max-age=60"), forever=True)
        async with world.client([Cache()], transport=script) as client:
            left_early = await client.open("GET", URL)
            await client.read_one(left_early)
            await client.drop(left_early)
            first = await client.get(URL)
            again = await client.get(URL)
        assert (first.text, first.headers["x-dspex-cache"]) == ("abc", "miss")
        assert (again.text, again.headers["x-dspex-cache"]) == ("abc", "hit")
        assert len(script.requests) == 2
        assert script.open == 0

    world.run(main)


def test_a_matched_body_of_unknown_length_is_kept_too(world: World):
    async def main():
        script = Script(lambda _: page(chunks=[b"a", b"b"]), forever=True)
        async with world.client([Cache(match=lambda request: True)], transport=script) as client:
            answers = [await client.post(URL, content=b"q") for _ in range(2)]
        assert [(a.text, a.headers["x-dspex-cache"]) for a in answers] == [("ab", "miss"), ("ab", "hit")]

    world.run(main)


def test_a_body_that_breaks_off_or_is_too_short_is_not_kept():
    script, _, client = setup(
        Reply(chunks=[b"a"], headers={"cache-control": "max-age=60"}, error="ReadError"),
        Reply(chunks=[b"a"], headers={"cache-control": "max-age=60", "content-length": "9"}),
        page(b"good", cache_control="max-age=60"),
    )
    with pytest.raises(httpx.ReadError):
        get(client)
    assert get(client)[1] == "miss"
    assert get(client) == ("good", "miss")


def test_a_body_over_the_bound_passes_and_is_not_kept(monkeypatch, world: World):
    monkeypatch.setattr("dspex_pipe.caching.exchange.KEEP_BOUND", 10)

    async def main():
        script = Script(lambda _: page(chunks=[b"123456"] * 3, cache_control="max-age=60"), forever=True)
        async with world.client([Cache()], transport=script) as client:
            answers = [await client.get(URL) for _ in range(2)]
            unread = await client.open("GET", URL)
            await client.drop(unread)
        assert [(a.text, a.headers["x-dspex-cache"]) for a in answers] == [("123456" * 3, "miss")] * 2
        assert script.open == 0

    world.run(main)


def test_concurrent_misses_make_one_call():
    io = VirtualIO()
    script = Script(
        lambda _: Reply(json={}, headers={"cache-control": "max-age=60"}, delay=5), forever=True, io=io
    )
    client = Pipeline([Cache()]).async_client(transport=script, io=io)
    answers = io.run_all(*(client.get(URL) for _ in range(10)))
    assert sorted(a.headers["x-dspex-cache"] for a in answers) == ["miss"] + ["shared"] * 9
    assert (len(script.requests), io.now()) == (1, 5)


def test_what_cannot_be_kept_sends_the_waiters_on_at_once():
    io = VirtualIO()
    script = Script(
        lambda _: Reply(json={}, headers={"cache-control": "no-store"}, delay=5), forever=True, io=io
    )
    client = Pipeline([Cache()]).async_client(transport=script, io=io)
    io.run_all(*(client.get(URL) for _ in range(4)))
    assert (len(script.requests), io.now()) == (4, 10)


def test_waiters_of_a_failing_leader_get_its_error():
    io = VirtualIO()
    script = Script(Reply(json={}, error="ReadError", delay=5), forever=True, io=io)
    client = Pipeline([Cache()]).async_client(transport=script, io=io)
    answers = io.run_all(*(client.get(URL) for _ in range(4)))
    assert [type(a) for a in answers] == [httpx.ReadError] * 4
    assert len({id(a) for a in answers}) == 4
    assert len(script.requests) == 1


def test_a_lead_taken_just_after_anothers_landing_finds_what_was_kept():
    """A miss, then another call comes to its end, then the lead: the second look finds the entry."""
    io = VirtualIO()
    pipeline = Pipeline([Cache()])
    script = Script(counted(cache_control="max-age=60"), forever=True, io=io)
    client = pipeline.client(transport=script, io=io)
    caching = pipeline[Cache]
    look, seen = caching._by_rules._look_up, []

    async def look_up(call, asked):
        found = await look(call, asked)
        if not seen:
            seen.append(found)
            client.get(URL)  # meanwhile
        return found

    caching._by_rules._look_up = look_up
    assert get(client) == ("1", "hit")
    assert len(script.requests) == 1


def test_a_date_in_the_past_makes_an_answer_old():
    io = VirtualIO()
    date = formatdate(io.wall() - 100, usegmt=True)
    script, io, client = setup(page(date=date, cache_control="max-age=60", etag='"1"'))
    get(client)
    assert get(client)[1] == "miss"


def test_options_reach_the_cache_in_all_three_ways():
    _, _, client = setup(counted(cache_control="max-age=60"))
    get(client)
    assert client.get(URL, extensions=options(cache="refresh")).text == "2"
    with options(cache=False):
        assert client.get(URL).text == "3"
    assert get(client) == ("2", "hit")
