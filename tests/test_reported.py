"""What users and reviewers have reported, one test each, so that it stays mended."""

from __future__ import annotations

import httpx
import pytest

from dspex_pipe import Breaker, Cache, DeadlineExceeded, Pipeline, Retry, options
from dspex_pipe.testing import Reply, Script, VirtualIO
from modes import World

CHAT = "http://llm.test/v1/chat/completions"
ASK = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
PAGE = "http://x.test/page"


def numbered(**headers):
    count = iter(range(1, 1000))
    return lambda _: Reply(json={"id": next(count)}, headers=headers)


def concurrently(layers, script_steps, *calls):
    """The results of calls made at once in virtual time, and the script."""
    io = VirtualIO()
    script = Script(*script_steps, forever=True, io=io)
    client = Pipeline(layers).async_client(transport=script, io=io)
    return io.run_all(*(client.request(method, url, **kwargs) for method, url, kwargs in calls)), script, io


def test_a_rotating_cookie_of_a_bot_filter_does_not_empty_the_cache(world: World):
    async def main():
        count = iter(range(100))
        script = Script(
            lambda _: Reply(json={"id": 1}, headers={"set-cookie": f"__cf_bm={next(count)}; path=/"}),
            forever=True,
        )
        async with world.client([Cache()], transport=script) as client:
            for _ in range(4):
                await client.post(CHAT, json=ASK, headers={"authorization": "Bearer k"})
        assert len(script.requests) == 1

    world.run(main)


@pytest.mark.parametrize(
    "reply",
    [
        Reply(content=b"<html>please log in</html>", headers={"content-type": "text/html"}),
        Reply(chunks=[b'{"choices":[{"mess']),
        Reply(content=b"\x1f\x8b spoilt", headers={"content-encoding": "gzip"}),
    ],
    ids=["login page", "cut off", "spoilt"],
)
def test_what_is_no_answer_of_an_llm_is_not_kept(reply):
    script = Script(reply, forever=True)
    client = Pipeline([Cache()]).client(transport=script)
    for _ in range(2):
        client.send(client.build_request("POST", CHAT, json=ASK), stream=True).close()
    assert len(script.requests) == 2


def test_large_answers_are_kept_too():
    script = Script(Reply(json={"data": ["x" * 1000] * 3000}), forever=True)
    client = Pipeline([Cache()]).client(transport=script)
    assert [client.post(CHAT, json=ASK).headers["x-dspex-cache"] for _ in range(2)] == ["miss", "hit"]


def test_a_leaders_own_deadline_is_not_its_followers():
    hurried = ("POST", CHAT, {"json": ASK, "extensions": options(deadline=2)})
    patient = ("POST", CHAT, {"json": ASK})
    results, script, io = concurrently([Cache()], [Reply(json={"id": 1}, delay=5)], hurried, patient)
    assert isinstance(results[0], DeadlineExceeded)
    assert results[1].json() == {"id": 1}
    page = [(method, PAGE, kwargs) for method, _, kwargs in (("GET", "", hurried[2]), ("GET", "", {}))]
    page[0][2].pop("json")
    results, script, io = concurrently([Cache()], [Reply(json={"id": 1}, delay=5)], *page)
    assert isinstance(results[0], DeadlineExceeded)
    assert results[1].json() == {"id": 1}


def test_an_error_that_cannot_be_copied_is_shared_as_it_is():
    async def strict(request, call_next):
        response = await call_next(request)
        response.request = request
        raise httpx.HTTPStatusError("strict", request=request, response=response)

    call = ("POST", CHAT, {"json": ASK})
    results, script, _ = concurrently([Cache(), strict], [Reply(json={}, delay=1)], call, call, call)
    assert [type(r) for r in results] == [httpx.HTTPStatusError] * 3
    assert len(script.requests) == 1


def test_a_layer_that_raises_after_the_answer_leaves_no_connection_open(world: World):
    async def fussy(request, call_next):
        await call_next(request)
        raise ValueError("I do not like it")

    def judge(outcome, request):
        raise ValueError("nor do I")

    async def main():
        for layers in ([fussy], [Breaker(classify=judge)]):
            script = Script(Reply(chunks=[b"x"] * 3), forever=True)
            pipeline = Pipeline(layers)
            async with world.client(pipeline, transport=script) as client:
                with pytest.raises(ValueError, match="I"):
                    await client.get(PAGE)
            assert script.open == 0

    world.run(main)


def test_a_deadline_bounds_an_async_call_however_slowly_it_drips():
    call = ("GET", PAGE, {"extensions": options(deadline=5)})
    (error,), script, io = concurrently([], [Reply(delay=60)], call)
    assert isinstance(error, DeadlineExceeded)
    assert (io.now(), error.sent) == (5, True)


@pytest.mark.parametrize("location", ["//[::1", "http://xn--a.com:x/", "http://\u2488.test/"])
@pytest.mark.parametrize("follow", [False, True])
def test_a_hostile_location_means_what_it_means_to_httpx(world: World, location, follow):
    transport = world.http.MockTransport(
        lambda request: world.http.Response(302, headers=[(b"location", location.encode())])
    )

    def outcome(client, **more):
        try:
            return client.get(PAGE, follow_redirects=follow, **more).status_code
        except world.http.HTTPError as exc:
            return type(exc)

    expected = outcome(world.http.Client(transport=transport))
    ours = Pipeline([]).client(http=world.http, transport=transport)
    assert outcome(ours, extensions=options(deadline=5)) == expected


def test_a_huge_error_body_is_not_read_into_memory_and_still_whole(world: World):
    async def main():
        piece = b"x" * 65536
        script = Script(lambda _: Reply(status=500, chunks=[piece] * 40), forever=True)
        async with world.client([], transport=script) as client:
            response = await client.open("POST", CHAT, json={**ASK, "stream": True})
            assert script.open == 1  # the rest is still to come
            assert await client.read(response) == piece * 40
            left_early = await client.open("POST", CHAT, json=ASK)
            await client.drop(left_early)
        assert script.open == 0

    world.run(main)


def test_retry_lets_go_of_huge_error_bodies(world: World):
    async def main():
        script = Script(Reply(status=500, chunks=[b"x" * 65536] * 40), Reply(json={}))
        layers = [Retry(wait_initial=0, wait_jitter=0)]
        async with world.client(layers, transport=script, io=VirtualIO()) as client:
            assert (await client.post(CHAT, json=ASK)).status_code == 200
        assert script.open == 0

    world.run(main)


def test_ten_minute_time_outs_one_after_the_other_open_the_circuit():
    io = VirtualIO()
    script = Script(lambda r: "ReadTimeout" if r.url.host == "bad.test" else Reply(), forever=True, io=io)
    pipeline = Pipeline([Breaker()])
    client = pipeline.client(transport=script, io=io)
    for number in range(5):
        with pytest.raises(httpx.ReadTimeout):
            client.get("http://bad.test/")
        client.get(f"http://other-{number}.test/")
        io.advance(601)
    assert "http://bad.test:80" in pipeline.snapshot()["layers"][0]["not_closed"]


def test_no_one_retries_what_is_only_looked_for():
    client = Pipeline([Retry(), Cache(mode="only_if_cached")]).client(transport=Script(), io=VirtualIO())
    response = client.post(CHAT, json=ASK)
    assert (response.status_code, response.headers["x-should-retry"]) == (504, "false")


@pytest.mark.parametrize("header", ["openai-organization", "openai-project", "anthropic-beta"])
def test_headers_that_change_an_answer_change_the_key(header):
    script = Script(numbered(), forever=True)
    client = Pipeline([Cache()]).client(transport=script)
    answers = [client.post(CHAT, json=ASK, headers={header: value}).json()["id"] for value in "aba"]
    assert answers == [1, 2, 1]


def test_a_question_about_changes_is_not_answered_for_others():
    script = Script(numbered(), forever=True)
    client = Pipeline([Cache(ttl=60, match=lambda request: True)]).client(transport=script)
    for headers in ({"if-none-match": '"1"'}, {"range": "bytes=0-1"}):
        assert [client.get(PAGE, headers=headers).json()["id"] for _ in range(2)] == [
            len(script.requests) - 1,
            len(script.requests),
        ]


def test_pages_of_a_fixed_time_still_come_in_several_types():
    script = Script(numbered(), forever=True)
    client = Pipeline([Cache(ttl=60)]).client(transport=script)
    answers = [client.get(PAGE, headers={"accept": kind}).json()["id"] for kind in ("a/b", "c/d", "a/b")]
    assert answers == [1, 2, 1]


def test_what_cannot_be_kept_is_waited_for_once_and_not_again():
    slow = Reply(json={}, headers={"cache-control": "no-store"}, delay=5)
    io = VirtualIO()
    script = Script(slow, forever=True, io=io)
    client = Pipeline([Cache()]).async_client(transport=script, io=io)
    io.run_all(*(client.get(PAGE) for _ in range(4)))
    assert io.now() == 10
    io.run_all(*(client.get(PAGE) for _ in range(4)))
    assert io.now() == 15


def test_keys_without_hope_are_bounded_and_hope_returns():
    io = VirtualIO()
    turns = iter(["no-store", "max-age=60"])
    script = Script(
        lambda _: Reply(json={}, headers={"cache-control": next(turns, "no-store")}), forever=True
    )
    pipeline = Pipeline([Cache()])
    client = pipeline.client(transport=script, io=io)
    hopeless = pipeline[Cache]._by_rules.flights._hopeless
    client.get(PAGE)
    assert len(hopeless) == 1
    client.get(PAGE)
    assert len(hopeless) == 0
    for number in range(1100):
        client.get(f"{PAGE}/{number}")
    assert len(hopeless) == 1024


def test_refreshing_a_page_leaves_one_and_variants_are_bounded():
    from dspex_pipe import MemoryStore

    class Spy(MemoryStore):
        def create_entry(self, request, response, key, **more):
            self.key = key
            return super().create_entry(request, response, key, **more)

    store = Spy()
    script = Script(numbered(**{"cache-control": "max-age=600"}), forever=True)
    client = Pipeline([Cache(store)]).client(transport=script)
    for _ in range(10):
        client.get(PAGE, headers={"x-dspex-cache": "refresh"})
    assert len(store.get_entries(store.key)) == 1

    varied = numbered(**{"cache-control": "max-age=600", "vary": "traceparent"})
    client = Pipeline([Cache(store)]).client(transport=Script(varied, forever=True))
    for number in range(40):
        client.get(PAGE, headers={"traceparent": str(number)})
    assert len(store.get_entries(store.key)) <= 16
    assert client.get(PAGE, headers={"traceparent": "39"}).headers["x-dspex-cache"] == "hit"
