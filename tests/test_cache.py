"""The cache by content: what is kept, for whom, in which mode, and with one call for many."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import threading

import hishel
import httpx
import pytest
import trio

from dspex_pipe import (
    Breaker,
    Cache,
    DiskStore,
    Logging,
    MemoryStore,
    Pipeline,
    RateLimited,
    Retry,
    explain,
    options,
)
from dspex_pipe.testing import Reply, Script, VirtualIO
from modes import World

URL = "http://llm.test/v1/chat/completions"
ASK = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
ANSWER = {"choices": [{"message": {"content": "42"}}]}


def numbered():
    """An upstream whose every answer is another."""
    count = iter(range(1, 10_000))
    return lambda _: Reply(json={**ANSWER, "id": next(count)})


def setup(cache=None, *steps, **kwargs):
    io = VirtualIO()
    pipeline = Pipeline([Cache() if cache is None else cache])
    script = Script(*(steps or (numbered(),)), forever=True, io=io)
    return pipeline, script, io, pipeline.client(transport=script, io=io, **kwargs)


def ask(client, body=ASK, url=URL, **kwargs):
    response = client.post(url, json=body, **kwargs)
    return response.json().get("id"), response.headers.get("x-dspex-cache")


def test_the_same_question_is_answered_once(world: World):
    async def main():
        io = VirtualIO()
        script = Script(numbered(), forever=True, io=io)
        async with world.client([Cache()], transport=script, io=io) as client:
            first = await client.post(URL, json=ASK)
            io.wall_start = io.advance(100)
            other = {"messages": ASK["messages"], "model": "m"}
            again = await client.post(URL, content=json.dumps(other, indent=3).encode())
        assert (first.headers["x-dspex-cache"], again.headers["x-dspex-cache"]) == ("miss", "hit")
        assert again.content == first.content
        assert again.status_code == 200
        assert isinstance(again, world.http.Response)
        assert len(script.requests) == 1
        (event,) = explain(again)
        assert (event.layer, event.decision, event.seconds) == ("Cache", "hit", 100)

    world.run(main)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", ASK),
        ("/openai/deployments/x/chat/completions?api-version=1", ASK),
        ("/v1/completions", {"model": "m", "prompt": "hi"}),
        ("/v1/embeddings", {"model": "m", "input": "hi"}),
        ("/v1/responses", {"model": "m", "input": "hi"}),
        ("/v1/messages", {**ASK, "max_tokens": 5}),
    ],
)
def test_every_format_is_recognised(path, body):
    _, script, _, client = setup()
    url = f"http://llm.test{path}"
    assert [ask(client, body, url)[1] for _ in range(2)] == ["miss", "hit"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/threads/t/messages", {"role": "user", "content": "hi"}),
        ("/orders", ASK),
        ("/v1/chat/completions", {"model": "m"}),
        ("/v1/responses", {"model": "m", "input": "hi", "previous_response_id": "r"}),
        ("/v1/responses", {"model": "m", "input": "hi", "tools": [{"type": "web_search"}]}),
    ],
)
def test_what_is_no_question_or_has_state_passes_by(path, body):
    _, script, _, client = setup()
    url = f"http://llm.test{path}"
    assert [ask(client, body, url) for _ in range(2)] == [(1, None), (2, None)]


def test_passing_by_is_told_with_its_reason():
    _, _, _, client = setup()
    response = client.post(URL, json={**ASK, "conversation": "c"})
    assert explain(response)[0].reason == "it asks for server-side state (conversation)"


def test_match_accepts_further_requests_and_streams_of_bodies_pass_by():
    cache = Cache(match=lambda request: request.url.path == "/search")
    _, _, _, client = setup(cache)
    assert [ask(client, {"q": 1}, "http://x.test/search")[1] for _ in range(2)] == ["miss", "hit"]
    body = (piece for piece in [b"{}"])
    assert "x-dspex-cache" not in client.post("http://x.test/search", content=body).headers


# Who is asking


@pytest.mark.parametrize(
    "header", ["authorization", "x-api-key", "api-key", "x-goog-api-key", "cookie", "proxy-authorization"]
)
def test_one_credential_never_gets_anothers_answer(header):
    _, _, _, client = setup()
    mine, yours = ({header: f"Bearer {name}"} for name in ("mine", "yours"))
    answers = [ask(client, headers=h) for h in (mine, yours, {}, mine, yours, {})]
    assert answers == [(1, "miss"), (2, "miss"), (3, "miss"), (1, "hit"), (2, "hit"), (3, "hit")]


def test_userinfo_in_the_url_is_a_credential():
    _, _, _, client = setup()
    urls = [URL.replace("llm.test", f"{user}@llm.test") for user in ("me:1", "you:1", "me:1")]
    assert [ask(client, url=url)[0] for url in urls] == [1, 2, 1]


def test_opting_out_is_explicit():
    _, _, _, client = setup(Cache(identity="shared"))
    assert [ask(client, headers={"authorization": name})[0] for name in "ab"] == [1, 1]


def test_a_function_names_callers_whose_tokens_rotate():
    _, _, _, client = setup(Cache(identity=lambda request: request.headers["x-user"]))
    tokens = [("ann", "1"), ("ann", "2"), ("bob", "2")]
    got = [ask(client, headers={"x-user": user, "authorization": token})[0] for user, token in tokens]
    assert got == [1, 1, 2]


def test_names_given_as_a_set_have_one_order_in_every_process():
    names = {f"x-{number}" for number in range(20)}
    cache = Cache(credentials=names, vary=frozenset(names))
    assert cache.credentials == cache.vary == tuple(sorted(names))


def test_sdk_noise_does_not_matter_and_chosen_headers_do():
    _, _, _, client = setup(Cache(vary=["X-Region"]))
    noise = [{"x-stainless-retry-count": str(n), "user-agent": str(n)} for n in range(3)]
    assert [ask(client, headers=h)[0] for h in noise] == [1, 1, 1]
    assert [ask(client, headers={"x-region": r})[0] for r in "aba"] == [2, 3, 2]


class Spy(MemoryStore):
    """A memory that shows what it is given."""

    def create_entry(self, request, response, key, **more):
        self.given = repr((key, request, response, more))
        return super().create_entry(request, response, key, **more)


def test_nothing_secret_is_kept():
    store = Spy()
    reply = Reply(json=ANSWER, headers={"set-cookie": "hunter2", "x-hop": "hunter2", "connection": "x-hop"})
    _, _, _, client = setup(Cache(store), reply)
    arguments = {
        "url": URL.replace("llm.test", "me:hunter2@llm.test") + "?key=hunter2",
        "headers": {"authorization": "hunter2", "cookie": "hunter2"},
    }
    assert [ask(client, **arguments)[1] for _ in range(2)] == ["miss", "hit"]
    assert "application/json" in store.given
    assert "hunter2" not in store.given


def key_of(pipeline, client, **kwargs):
    """The key that a request has."""
    told = pipeline[Cache].explain_key(
        client.build_request("POST", kwargs.pop("url", URL), json=ASK, **kwargs)
    )
    return told.split()[1]


# Keys


def test_samples_of_one_prompt_stay_apart():
    _, _, _, client = setup()
    assert [ask(client, headers={"x-dspex-sample": str(n)})[0] for n in (0, 1, 2, 0, 1, 2)] == [1, 2, 3] * 2
    assert ask(client, extensions=options(sample=1))[0] == 2
    with options(sample=2):
        assert ask(client)[0] == 3


def test_key_messages_is_the_original_rule():
    _, _, _, client = setup(Cache(key="messages"))
    assert [ask(client, {**ASK, "temperature": t})[0] for t in (0, 1)] == [1, 1]
    assert ask(client, {**ASK, "model": "other"})[0] == 2


def test_explain_key_shows_what_went_in_and_where_two_requests_differ():
    pipeline, _, _, client = setup()
    one = client.build_request("POST", URL, json=ASK, headers={"authorization": "hunter2"})
    two = client.build_request("POST", URL, json={**ASK, "n": 2})
    told = pipeline[Cache].explain_key(one)
    assert '"messages":[{"content":"hi","role":"user"}]' in told
    assert "hunter2" not in told
    difference = pipeline[Cache].explain_key(one, two)
    assert "body.n: (absent) / 2" in difference
    assert "identity: " in difference
    assert pipeline[Cache].explain_key(one, one) == "the keys are the same"


# What is kept


@pytest.mark.parametrize(
    "step",
    [
        201,
        404,
        429,
        500,
        Reply(json={"error": {"code": "x"}}),
        Reply(json={"status": "failed"}),
        Reply(chunks=[b"data: x\n\n"], headers={"content-type": "text/event-stream"}),
    ],
    ids=str,
)
def test_only_a_complete_200_with_an_answer_is_kept(step):
    _, script, _, client = setup(None, step)
    for _ in range(2):
        client.post(URL, json=ASK)
    assert len(script.requests) == 2


@pytest.mark.parametrize(
    "step", ["ReadError", "ReadTimeout", RateLimited("no"), Reply(json={}, error="ReadError")]
)
def test_no_error_is_kept(step):
    _, script, _, client = setup(None, step)
    for _ in range(2):
        with pytest.raises(httpx.TransportError):
            client.post(URL, json=ASK)
    assert len(script.requests) == 2


def test_a_body_shorter_than_announced_is_not_kept():
    _, script, _, client = setup(None, Reply(chunks=[b"{}"], headers={"content-length": "9"}))
    for _ in range(2):
        client.post(URL, json=ASK)
    assert len(script.requests) == 2


def test_compressed_bodies_stay_compressed_and_are_understood():
    good, bad = (gzip.compress(json.dumps(d).encode()) for d in (ANSWER, {"error": {"code": 1}}))
    headers = {"content-encoding": "gzip", "content-type": "application/json"}
    _, script, _, client = setup(None, *(Reply(content=c, headers=headers) for c in (bad, good)))
    answers = [client.post(URL, json=ASK) for _ in range(3)]
    assert [r.headers["x-dspex-cache"] for r in answers] == ["miss", "miss", "hit"]
    assert answers[2].json() == ANSWER
    assert answers[2].headers["content-encoding"] == "gzip"
    assert answers[2].headers["content-length"] == str(len(good))


def test_a_hit_keeps_protocol_version_and_reason(world: World):
    async def main():
        def upstream(request):
            extensions = {"http_version": b"HTTP/2", "reason_phrase": b"Fine"}
            return world.http.Response(200, json=ANSWER, extensions=extensions)

        async with world.client([Cache()], transport=world.http.MockTransport(upstream)) as client:
            for _ in range(2):
                response = await client.post(URL, json=ASK)
        assert response.headers["x-dspex-cache"] == "hit"
        assert (response.http_version, response.reason_phrase) == ("HTTP/2", "Fine")

    world.run(main)


@pytest.mark.parametrize("how", ["content", "rules"])
def test_header_bytes_of_any_encoding_come_back_as_they_were(how, http):
    def upstream(request):
        raw = [(b"x-name", b"caf\xe9"), (b"x-name", "\u96ea".encode()), (b"cache-control", b"max-age=60")]
        return http.Response(200, headers=raw, json=ANSWER)

    client = Pipeline([Cache()]).client(http=http, transport=http.MockTransport(upstream))
    call = ("POST", URL) if how == "content" else ("GET", "http://x.test/")
    for expected in ("miss", "hit"):
        response = client.request(*call, json=ASK if how == "content" else None)
        assert response.headers["x-dspex-cache"] == expected
        named = [value for name, value in response.headers.raw if name.lower() == b"x-name"]
        assert named == [b"caf\xe9", "\u96ea".encode()]


def test_a_ttl_is_kept_to_the_second():
    _, _, io, client = setup(Cache(ttl=60))
    assert ask(client)[0] == 1
    io.advance(59.9)
    assert ask(client)[0] == 1
    io.advance(0.2)
    assert ask(client) == (2, "miss")
    io.advance(-100)  # a clock that was set back: what is from the future is not trusted
    assert ask(client)[0] == 3


def test_without_a_ttl_content_never_goes_stale():
    _, _, io, client = setup()
    ask(client)
    io.advance(1e9)
    assert ask(client) == (1, "hit")


# Modes


@pytest.mark.parametrize(
    ("mode", "answers", "afterwards"),
    [
        ("on", [(1, "miss"), (1, "hit")], (1, "hit")),
        ("off", [(1, None), (2, None)], (3, "miss")),
        ("read_only", [(1, "miss"), (2, "miss")], (3, "miss")),
        ("write_only", [(1, "miss"), (2, "miss")], (2, "hit")),
        ("refresh", [(1, "miss"), (2, "miss")], (2, "hit")),
    ],
)
@pytest.mark.parametrize("how", ["layer", "option", "header"])
def test_modes(mode, answers, afterwards, how):
    store = MemoryStore()
    pipeline, script, io, _ = setup(Cache(store, mode=mode if how == "layer" else "on"))
    client = pipeline.client(transport=script, io=io)
    arguments = {
        "layer": {},
        "option": {"extensions": options(cache=mode)},
        "header": {"headers": {"x-dspex-cache": mode}},
    }[how]
    assert [ask(client, **arguments) for _ in range(2)] == answers
    if how == "layer":  # another layer over the same store sees what was kept
        client = Pipeline([Cache(store, identity="shared")]).client(transport=script, io=io)
        return
    assert ask(client) == afterwards


def test_only_if_cached_never_asks():
    _, script, _, client = setup()
    lazy = {"headers": {"x-dspex-cache": "only_if_cached"}}
    missed = client.post(URL, json=ASK, **lazy)
    assert (missed.status_code, len(script.requests)) == (504, 0)
    assert missed.json()["error"]["code"] == "not_cached"
    ask(client)
    assert ask(client, **lazy) == (1, "hit")


def test_on_and_off_per_call_are_words_too():
    _, _, _, client = setup()
    assert ask(client, extensions=options(cache=False)) == (1, None)
    assert ask(client, extensions=options(cache=True)) == (2, "miss")


# One call for many


def test_concurrent_misses_make_one_call_in_virtual_time(http):
    io = VirtualIO()
    script = Script(lambda _: Reply(json=ANSWER, delay=5), forever=True, io=io)
    client = Pipeline([Cache()]).async_client(http=http, transport=script, io=io)
    answers = io.run_all(*(client.post(URL, json=ASK) for _ in range(20)))
    assert [a.json() for a in answers] == [ANSWER] * 20
    assert sorted(a.headers["x-dspex-cache"] for a in answers) == ["miss"] + ["shared"] * 19
    assert (len(script.requests), io.now()) == (1, 5)


@pytest.mark.parametrize(
    "step", [Reply(status=500, delay=5), lambda _: Reply(error="ReadError", json={}, delay=5)]
)
def test_waiters_of_a_failing_leader_get_its_error_and_the_next_call_asks_again(step):
    io = VirtualIO()
    script = Script(step, Reply(json=ANSWER), forever=True, io=io)
    client = Pipeline([Cache()]).async_client(transport=script, io=io)
    answers = io.run_all(*(client.post(URL, json=ASK) for _ in range(5)))
    if isinstance(answers[0], BaseException):
        assert [type(a) for a in answers] == [httpx.ReadError] * 5
        assert len({id(a) for a in answers}) == 5
    else:
        assert [a.status_code for a in answers] == [500] * 5
    assert len(script.requests) == 1
    assert io.run(client.post(URL, json=ASK)).status_code == 200


def test_a_lead_taken_just_after_anothers_landing_finds_what_was_kept():
    """A miss, then another call comes to its end, then the lead: the second look finds the entry."""
    pipeline, script, _, client = setup()
    by_content = pipeline[Cache]._by_content
    look, seen = by_content._fresh, []

    async def fresh(call):
        found = await look(call)
        if not seen:
            seen.append(found)
            ask(client)  # meanwhile
        return found

    by_content._fresh = fresh
    assert ask(client) == (1, "hit")
    assert len(script.requests) == 1


def test_an_answer_that_cannot_be_shared_sends_the_waiters_on_at_once():
    io = VirtualIO()
    stream = Reply(chunks=[b"x"] * 3, delay=5)
    script = Script(stream, forever=True, io=io)
    cache = Cache(match=lambda request: True)
    client = Pipeline([cache]).async_client(transport=script, io=io)
    answers = io.run_all(*(client.post("http://x.test/", json=ASK) for _ in range(4)))
    assert [a.content for a in answers] == [b"xxx"] * 4
    assert (len(script.requests), io.now()) == (4, 10)  # not one after the other


def test_a_call_waits_no_longer_than_max_wait_or_its_deadline():
    io = VirtualIO()
    script = Script(Reply(json=ANSWER, delay=50), Reply(json=ANSWER), forever=True, io=io)
    client = Pipeline([Cache(max_wait=3)]).async_client(transport=script, io=io)

    async def late(**kwargs):
        await io.sleep(1)
        await client.post(URL, json=ASK, **kwargs)
        return io.now()

    hurried = late(extensions=options(deadline=2))
    first, patient, failed = io.run_all(client.post(URL, json=ASK), late(), hurried)
    assert patient == 3
    assert isinstance(failed, httpx.TimeoutException)


@pytest.mark.parametrize("point", range(3))
def test_a_cancelled_leader_hands_over(point):
    io = VirtualIO()
    script = Script(lambda _: Reply(json=ANSWER, delay=1, pause=1), forever=True, io=io)
    pipeline = Pipeline([Cache()])
    client = pipeline.async_client(transport=script, io=io)
    io._scheduled = True
    leader = client.post(URL, json=ASK)
    ended = False
    try:
        for _ in range(point + 1):
            leader.send(None)
            io.advance(1)
    except StopIteration:
        ended = True
    follower = client.post(URL, json=ASK)
    if ended:
        assert point == 2
        leader = None
    else:
        follower.send(None)  # it waits
        with pytest.raises(asyncio.CancelledError):
            leader.throw(asyncio.CancelledError())
    io._scheduled = False
    response = io.run(follower)
    assert response.json() == ANSWER
    assert len(script.requests) == (1 if ended else 2)
    assert pipeline.snapshot()["layers"][0]["under_way"] == 0
    assert script.open == 0


@pytest.mark.parametrize("run", [asyncio.run, lambda main: trio.run(lambda: main)], ids=["asyncio", "trio"])
def test_a_file_is_asked_where_no_thread_of_everybodys_is_free(run, tmp_path):
    """All may be taken by blocking endpoints of a web framework, which wait for this very call."""

    async def main():
        import anyio.to_thread

        script = Script(Reply(json=ANSWER))
        threads = anyio.to_thread.current_default_thread_limiter()
        threads.total_tokens = 1
        pipeline = Pipeline([Cache(tmp_path / "answers.db")])
        async with threads, pipeline, pipeline.async_client(transport=script) as client:
            with anyio.fail_after(20):
                first = await client.post(URL, json=ASK)
                again = await client.post(URL, json=ASK)
        assert (first.headers["x-dspex-cache"], again.headers["x-dspex-cache"]) == ("miss", "hit")

    run(main())


def test_sixteen_threads_and_sixteen_tasks_on_a_cold_key_make_one_call(http):  # noqa: C901
    pipeline = Pipeline([Cache()])
    calls, go = [], threading.Event()

    class Slow:
        def handle_request(self, request):
            calls.append(1)
            assert go.wait(20)
            return http.Response(200, json=ANSWER)

        async def handle_async_request(self, request):
            import anyio.to_thread

            return await anyio.to_thread.run_sync(self.handle_request, request)

    results, lock = [], threading.Lock()

    def note(response):
        with lock:
            results.append(response.json())

    blocking = pipeline.client(http=http, transport=Slow())

    async def on_asyncio():
        async with pipeline.async_client(http=http, transport=Slow()) as client:
            for response in await asyncio.gather(*(client.post(URL, json=ASK) for _ in range(8))):
                note(response)

    async def on_trio():
        async with pipeline.async_client(http=http, transport=Slow()) as client:

            async def one():
                note(await client.post(URL, json=ASK))

            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    nursery.start_soon(one)

    threads = [threading.Thread(target=lambda: note(blocking.post(URL, json=ASK))) for _ in range(16)]
    threads += [
        threading.Thread(target=lambda: asyncio.run(on_asyncio())),
        threading.Thread(target=lambda: trio.run(on_trio)),
    ]
    for thread in threads:
        thread.start()
    flights = pipeline[Cache]._by_content.flights
    while sum(len(flight.followers) for flight in list(flights._under_way.values())) < 31:
        pass
    go.set()
    for thread in threads:
        thread.join(20)
    assert results == [ANSWER] * 32
    assert len(calls) == 1


# Stores


class Broken:
    """A store whose every method fails."""

    def __getattr__(self, name):
        if name in {"get_entries", "create_entry", "update_headers", "remove_entry", "close"}:
            return self._fail
        raise AttributeError(name)

    def _fail(self, *args, **kwargs):
        raise OSError("the disk is gone")


def test_a_store_that_fails_is_a_miss_with_one_warning(world: World, caplog):
    caplog.set_level(logging.WARNING, "dspex_pipe")

    async def main():
        script = Script(numbered(), forever=True)
        async with world.client([Cache(Broken(), secret=b"s" * 16)], transport=script) as client:
            assert [(await client.post(URL, json=ASK)).json()["id"] for _ in range(3)] == [1, 2, 3]

    world.run(main)
    ours = [r.getMessage() for r in caplog.records if r.name == "dspex_pipe"]
    assert ours == ["the cache's store fails (OSError); calls go on without it"]


def test_a_store_that_fails_fails_no_page_either(world: World):
    async def main():
        script = Script(Reply(content=b"page", headers={"cache-control": "max-age=60"}), forever=True)
        async with world.client([Cache(Broken(), secret=b"s" * 16)], transport=script) as client:
            for _ in range(2):
                assert (await client.get("http://x.test/")).headers["x-dspex-cache"] == "miss"
            assert (await client.post("http://x.test/")).status_code == 200

    world.run(main)


def test_a_blocking_store_that_suspends_is_a_store_that_fails(caplog):
    class Odd(Broken):
        def get_entries(self, key):
            return asyncio.sleep(0, [])

    _, _, _, client = setup(Cache(Odd(), secret=b"s" * 16))
    assert ask(client) == (1, "miss")
    assert "store fails (Suspended)" in caplog.text


def test_any_blocking_storage_of_hishel_serves_every_mode(world: World, tmp_path):
    store = hishel.SqliteStorage(database_path=tmp_path / "theirs.db")

    async def main():
        script = Script(numbered(), forever=True)
        pipeline = Pipeline([Cache(store, secret=b"s" * 16)])
        async with world.client(pipeline, transport=script) as client:
            got = [(await client.post(URL, json=ASK)).json()["id"] for _ in range(2)]
            refreshed = await client.post(URL, json=ASK, headers={"x-dspex-cache": "refresh"})
            got += [refreshed.json()["id"], (await client.post(URL, json=ASK)).json()["id"]]
        assert got == [1, 1, 2, 2]
        pipeline.close()  # it was passed in: it stays open

    world.run(main)
    assert store.get_entries("nothing") == []
    store.close()


def test_an_async_storage_needs_an_async_client(tmp_path):
    pytest.importorskip("anysqlite")
    store = hishel.AsyncSqliteStorage(database_path=tmp_path / "async.db")
    pipeline = Pipeline([Pipeline([Cache(store, secret=b"s" * 16)])])
    with pytest.raises(TypeError, match=r"Cache\(AsyncSqliteStorage\) needs an async client"):
        pipeline.client()

    async def main():
        script = Script(numbered(), forever=True)
        async with pipeline.async_client(transport=script) as client:
            got = [(await client.post(URL, json=ASK)).json()["id"] for _ in range(2)]
            refreshed = await client.post(URL, json=ASK, headers={"x-dspex-cache": "refresh"})
            assert [*got, refreshed.json()["id"], (await client.post(URL, json=ASK)).json()["id"]] == [
                1,
                1,
                2,
                2,
            ]
        await pipeline.aclose()  # it was passed in: it stays open
        assert await store.get_entries("nothing") == []
        await store.close()

    asyncio.run(main())


def test_a_file_outlives_its_pipeline(tmp_path):
    path = tmp_path / "cache" / "run.db"
    script = Script(numbered(), forever=True)
    answers = []
    for _ in range(2):
        with Pipeline([Cache(path)]) as pipeline:
            client = pipeline.client(transport=script)
            # the second time, its memory answers
            answers += [ask(client, headers={"authorization": "me"}) for _ in range(2)]
    assert answers == [(1, "miss"), (1, "hit"), (1, "hit"), (1, "hit")]
    with Pipeline([Cache(path)]) as pipeline:
        assert ask(pipeline.client(transport=script), headers={"authorization": "you"}) == (2, "miss")


@pytest.mark.parametrize(
    "make",
    [lambda _: MemoryStore(), DiskStore, lambda path: hishel.SqliteStorage(database_path=path)],
    ids=["memory", "disk", "hishel's"],
)
def test_entries_of_another_version_cut_short_or_spoilt_are_misses(make, tmp_path):
    store = make(tmp_path / "cache.db")
    pipeline, script, _, client = setup(Cache(store, identity="shared"))
    ask(client)
    key = key_of(pipeline, client)
    spoilt = {
        "x-dspex-schema": "0",
        "x-dspex-pieces": "1",
        "x-dspex-stored-at": "then",
        "x-dspex-http_version": "HTTP/1.ĩ",
        "x-note": "cafĩ",
        "x-notĩ": "",
    }
    for name, value in spoilt.items():
        (entry,) = store.get_entries(key)
        good = {n: entry.response.headers.get_list(n) for n in entry.response.headers}
        store.update_headers(entry.id, hishel.Headers({**good, name: value}))
        assert ask(client)[1] == "miss"
    store.close()


def test_a_store_that_is_not_ours_needs_a_secret():
    with pytest.raises(ValueError, match=r"Cache\(Broken\) needs secret=: at least 16 bytes"):
        Pipeline([Cache(Broken())])
    Pipeline([Cache(Broken(), identity="shared")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"store": 3}, r"Cache\(store=…\) takes nothing, a file name, or a store, got 3"),
        ({"store": MemoryStore}, r"takes nothing, a file name, or a store, got <class"),
        ({"store": ""}, r"takes nothing, a file name, or a store, got ''"),
        ({"ttl": 0}, r"Cache\(ttl=…\) takes a positive number of seconds, or None, got 0"),
        ({"mode": "maybe"}, r"takes one of on, off, read_only, .* got 'maybe'"),
        ({"identity": "me"}, r'takes "credential", "shared" or a function, got \'me\''),
        ({"key": "body"}, r'takes "content" or "messages", got \'body\''),
        ({"match": "*"}, r"takes a function, or None"),
        ({"vary": "x"}, r"takes a list of header names, got 'x'"),
        ({"shared": 1}, r"takes True or False, got 1"),
        ({"store": "redis://u:pw@h/0"}, r"takes nothing, a file name, or a store, got a URL$"),
        ({"secret": b"short"}, r"takes at least 16 bytes, or None, got bytes$"),
        ({"max_wait": -1}, r"takes a number of seconds, 0 or more, got -1"),
    ],
    ids=str,
)
def test_bad_settings_say_what_is_allowed(arguments, message):
    with pytest.raises(ValueError, match=message):
        Cache(**arguments)


@pytest.mark.parametrize("sample", ["-1", "x", "1.5"])
def test_bad_options_say_what_is_allowed(sample):
    _, _, _, client = setup()
    with pytest.raises(ValueError, match="option sample="):
        ask(client, headers={"x-dspex-sample": sample})
    with pytest.raises(ValueError, match="takes one of on, off, read_only"):
        ask(client, headers={"x-dspex-cache": "yes"})


def test_settings_compare_print_and_keep_the_secret():
    assert Cache(ttl=3) == Cache(ttl=3)
    assert repr(Cache("run.db", ttl=3, secret=b"hunter2" * 3)) == "Cache(store='run.db', ttl=3)"


def test_the_three_layers_are_whole(world: World, provider):
    async def main():
        layers = [Logging(), Cache(), Breaker(), Retry(wait_initial=0.001, wait_jitter=0)]
        async with world.client(layers) as client:
            url = f"{provider.url}/v1/chat/completions"
            answers = [await client.post(url, json={**ASK, "model": "503x2"}) for _ in range(3)]
        assert [a.status_code for a in answers] == [200] * 3
        assert [a.headers["x-dspex-cache"] for a in answers] == ["miss", "hit", "hit"]
        assert provider.calls == 3

    world.run(main)
