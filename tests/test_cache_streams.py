"""Streams in the cache: kept by what they say, replayed event by event, and asked for once."""

from __future__ import annotations

import asyncio
import gc
import gzip

import anthropic
import hishel
import openai
import pytest

from dspex_pipe import Cache, DiskStore, MemoryStore, Pipeline, attach, explain
from dspex_pipe.testing import Reply, Script, VirtualIO
from modes import World
from test_integrity import ASK, CHAT, CHAT_WHOLE, FORMATS, RESPONSES, data, delta, stream


async def pieces(client, url=CHAT, body=ASK, leave_after=None, **kwargs):
    """The raw pieces of a stream, read to its end, or left after so many; and how it was answered."""
    response = await client.open("POST", url, json=body, **kwargs)
    got = []
    try:
        if client.blocking:
            for piece in response.iter_raw():
                got.append(piece)
                if len(got) == leave_after:
                    break
        else:
            chunks = response.stream.__aiter__()
            async for piece in chunks:
                got.append(piece)
                if len(got) == leave_after:
                    break
            await chunks.aclose()
    finally:
        await client.drop(response)
    return got, response.headers["x-dspex-cache"]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("split", ["events", "bytes", "one"])
def test_a_whole_stream_is_kept_and_comes_again_event_by_event(world: World, name, split):
    url, body, events = FORMATS[name]
    whole = b"".join(events)
    wire = {"events": events, "one": [whole], "bytes": [whole[i : i + 7] for i in range(0, len(whole), 7)]}[
        split
    ]

    async def main():
        script = Script(stream(wire))
        async with world.client([Cache()], transport=script) as client:
            first, how = await pieces(client, url, body)
            assert (b"".join(first), how) == (whole, "miss")
            again, how = await pieces(client, url, body)
            assert (again, how) == (events, "hit")
        assert script.open == 0

    world.run(main)


def test_a_stream_is_one_however_its_type_is_spelled(world: World):
    url, body, events = FORMATS[next(iter(FORMATS))]

    async def main():
        reply = Reply(chunks=events, headers={"content-type": "Text/Event-Stream; charset=utf-8"})
        async with world.client([Cache()], transport=Script(reply)) as client:
            await pieces(client, url, body)
            assert await pieces(client, url, body) == (events, "hit")

    world.run(main)


@pytest.mark.parametrize("name", FORMATS)
def test_leaving_right_at_the_last_event_keeps_it(world: World, name):
    url, body, events = FORMATS[name]

    async def main():
        script = Script(stream([*events, b": bye\n\n"]))
        async with world.client([Cache()], transport=script) as client:
            assert (await pieces(client, url, body, leave_after=len(events)))[1] == "miss"
            assert await pieces(client, url, body) == (events, "hit")
        assert script.open == 0

    world.run(main)


@pytest.mark.parametrize("name", FORMATS)
def test_what_breaks_off_behind_the_last_event_is_whole(world: World, name):
    """The openai SDK reads on for a moment behind [DONE], and cancels that."""
    url, body, events = FORMATS[name]

    async def main():
        script = Script(stream(events, error="ReadError"))
        async with world.client([Cache()], transport=script) as client:
            with pytest.raises(world.http.ReadError):
                await pieces(client, url, body)
            assert await pieces(client, url, body) == (events, "hit")

    world.run(main)


NOT_WHOLE = {
    "cut off": (CHAT, ASK, CHAT_WHOLE[:2]),
    "without its last marker": (CHAT, ASK, CHAT_WHOLE[:-1]),
    "done without a finish reason": (CHAT, ASK, [delta("a"), b"data: [DONE]\n\n"]),
    "an error event": (CHAT, ASK, [delta("a"), data({"error": {"code": "x"}}), b"data: [DONE]\n\n"]),
    "incomplete": (
        RESPONSES,
        FORMATS["responses"][1],
        [data({"type": "response.incomplete", "response": {"incomplete_details": {"reason": "max"}}}, None)],
    ),
}


@pytest.mark.parametrize("case", NOT_WHOLE)
def test_what_is_not_whole_is_not_kept(world: World, case):
    url, body, events = NOT_WHOLE[case]

    async def main():
        script = Script(lambda _: stream(events), forever=True)
        async with world.client([Cache()], transport=script) as client:
            for _ in range(2):
                assert (await pieces(client, url, body))[1] == "miss"
        assert script.open == 0

    world.run(main)


def test_leaving_early_and_breaking_off_keep_nothing(world: World):
    async def main():
        broken = stream(CHAT_WHOLE[:1], error="ReadError")
        script = Script(stream(CHAT_WHOLE), broken, stream(CHAT_WHOLE))
        pipeline = Pipeline([Cache()])
        async with world.client(pipeline, transport=script) as client:
            assert (await pieces(client, leave_after=1))[1] == "miss"
            with pytest.raises(world.http.ReadError):
                await pieces(client)
            assert (await pieces(client))[1] == "miss"
        assert (script.open, pipeline.snapshot()["layers"][0]["under_way"]) == (0, 0)

    world.run(main)


def test_compressed_streams_are_understood_and_come_again_as_they_were(world: World):
    packed = gzip.compress(b"".join(CHAT_WHOLE))
    wire = [packed[:20], packed[20:]]
    headers = {"content-type": "text/event-stream", "content-encoding": "gzip"}

    async def main():
        script = Script(Reply(chunks=wire, headers=headers))
        async with world.client([Cache()], transport=script) as client:
            assert await pieces(client) == (wire, "miss")
            assert await pieces(client) == (wire, "hit")

    world.run(main)


def test_where_the_format_cannot_be_read_the_end_of_the_body_counts(world: World):
    headers = {"content-type": "text/event-stream", "content-encoding": "x-unheard-of"}

    async def main():
        script = Script(*[Reply(chunks=[b"1", b"2"], headers=headers)] * 2)
        async with world.client([Cache()], transport=script) as client:
            assert (await pieces(client, leave_after=1))[1] == "miss"
            assert await pieces(client) == ([b"1", b"2"], "miss")
            assert await pieces(client) == ([b"1", b"2"], "hit")

    world.run(main)


def test_a_stream_over_the_bound_passes_and_is_not_kept(world: World, monkeypatch):
    monkeypatch.setattr("dspex_pipe.caching.by_content.KEEP_BOUND", 50)

    async def main():
        script = Script(*[stream(CHAT_WHOLE)] * 2, stream(CHAT_WHOLE, error="ReadError"))
        async with world.client([Cache()], transport=script) as client:
            for _ in range(2):
                assert await pieces(client) == (CHAT_WHOLE, "miss")
            with pytest.raises(world.http.ReadError):
                await pieces(client)

    world.run(main)


@pytest.mark.parametrize("kind", ["disk", "hishel"])
def test_boundaries_survive_other_stores(tmp_path, kind, world: World):
    path = tmp_path / "x" / "run.db"
    path.parent.mkdir()
    store = (
        DiskStore(path, memory_bytes=100_000) if kind == "disk" else hishel.SqliteStorage(database_path=path)
    )

    async def main():
        async with world.client(
            [Cache(store, secret=b"s" * 16)], transport=Script(stream(CHAT_WHOLE))
        ) as client:
            await pieces(client)
            assert await pieces(client) == (CHAT_WHOLE, "hit")

    world.run(main)
    store.close()


def test_a_hit_says_that_it_was_not_billed():
    client = Pipeline([Cache()]).client(transport=Script(stream(CHAT_WHOLE)))
    client.post(CHAT, json=ASK)
    assert explain(client.post(CHAT, json=ASK))[0].reason.endswith("not billed")


@pytest.mark.parametrize("mode", ["read_only", "refresh"])
def test_modes_hold_for_streams(mode):
    script = Script(lambda _: stream(CHAT_WHOLE), forever=True)
    client = Pipeline([Cache()]).client(transport=script)
    for _ in range(2):
        client.post(CHAT, json=ASK, headers={"x-dspex-cache": mode})
    assert client.post(CHAT, json=ASK).headers["x-dspex-cache"] == ("miss" if mode == "read_only" else "hit")


# One call for many


def flying(*steps):
    io = VirtualIO()
    script = Script(*steps, forever=True, io=io)
    pipeline = Pipeline([Cache()])
    return io, script, pipeline, pipeline.async_client(transport=script, io=io)


def test_waiters_are_served_when_the_stream_is_whole():
    io, script, pipeline, client = flying(stream(CHAT_WHOLE, pause=1))
    answers = io.run_all(*(client.post(CHAT, json=ASK) for _ in range(5)))
    assert [a.content for a in answers] == [b"".join(CHAT_WHOLE)] * 5
    assert sorted(a.headers["x-dspex-cache"] for a in answers) == ["miss"] + ["shared"] * 4
    assert (len(script.requests), io.now()) == (1, 4)
    assert pipeline.snapshot()["layers"][0]["under_way"] == 0


@pytest.mark.parametrize(
    "first", [stream(CHAT_WHOLE[:1], pause=1), stream(CHAT_WHOLE[:1], pause=1, error="ReadError")]
)
def test_when_the_leaders_stream_is_not_whole_one_waiter_leads(first):
    io, script, pipeline, client = flying(first, stream(CHAT_WHOLE, pause=1))
    answers = io.run_all(*(client.post(CHAT, json=ASK) for _ in range(4)))
    how = [getattr(a, "headers", {}).get("x-dspex-cache") for a in answers[1:]]
    assert how == ["miss", "shared", "shared"]
    assert len(script.requests) == 2
    assert pipeline.snapshot()["layers"][0]["under_way"] == 0


def test_a_leader_cancelled_in_its_stream_hands_over():
    io, script, pipeline, client = flying(stream(CHAT_WHOLE, pause=1))
    io._scheduled = True
    leader, follower = client.post(CHAT, json=ASK), client.post(CHAT, json=ASK)
    leader.send(None)
    io.advance(1)
    leader.send(None)
    follower.send(None)
    with pytest.raises(asyncio.CancelledError):
        leader.throw(asyncio.CancelledError())
    io._scheduled = False
    assert io.run(follower).content == b"".join(CHAT_WHOLE)
    assert (len(script.requests), script.open) == (2, 0)


class SlowStore:
    """An async store that takes its time."""

    def __init__(self, io):
        self.io, self.memory = io, MemoryStore()

    async def get_entries(self, key):
        await self.io.sleep(1)
        return self.memory.get_entries(key)

    async def create_entry(self, request, response, key, *, ttl=None):
        await self.io.sleep(1)
        kept = hishel.Response(
            response.status_code, response.headers, iter([c async for c in response.stream])
        )
        return self.memory.create_entry(request, kept, key, ttl=ttl)

    async def remove_entry(self, id_):
        self.memory.remove_entry(id_)


@pytest.mark.parametrize("streamed", [True, False], ids=["stream", "plain"])
def test_cancelled_at_any_point_with_a_slow_store_a_leader_leaves_nobody_waiting(streamed):
    for point in range(100):
        io = VirtualIO()
        reply = stream(CHAT_WHOLE, pause=1) if streamed else Reply(json={"id": 1}, delay=1, pause=1)
        script = Script(reply, forever=True, io=io)
        pipeline = Pipeline([Cache(SlowStore(io), secret=b"s" * 16)])
        client = pipeline.async_client(transport=script, io=io)
        body = {**ASK, "stream": streamed}
        io._scheduled = True
        leader, follower = (client.post(CHAT, json=body) for _ in range(2))
        ended = False
        try:
            for step in range(point + 1):
                leader.send(None)
                io.advance(1)
                if step < 3:
                    follower.send(None)
        except StopIteration:
            ended = True
        else:
            with pytest.raises(asyncio.CancelledError):
                leader.throw(asyncio.CancelledError())
        io._scheduled = False
        (result,) = io.run_all(follower)
        assert result.status_code == 200
        assert pipeline.snapshot()["layers"][0]["under_way"] == 0
        assert script.open == 0
        if ended:
            assert point > 5
            return
    raise AssertionError("the sweep never came to an end")


def test_a_stream_that_is_dropped_lets_the_next_one_lead():
    pipeline = Pipeline([Cache()])
    script = Script(lambda _: stream(CHAT_WHOLE), forever=True)
    client = pipeline.client(transport=script)
    for _ in range(2):
        response = client.send(client.build_request("POST", CHAT, json=ASK), stream=True)
        del response
        gc.collect()
    assert client.post(CHAT, json=ASK).headers["x-dspex-cache"] == "miss"
    assert client.post(CHAT, json=ASK).headers["x-dspex-cache"] == "hit"
    assert pipeline.snapshot()["layers"][0]["under_way"] == 0
    alone = Pipeline([Cache(MemoryStore())]).client(transport=script)
    response = alone.send(
        alone.build_request("POST", CHAT, json=ASK, headers={"x-dspex-cache": "refresh"}), stream=True
    )
    del response
    gc.collect()


# The SDKs


def test_both_sdks_get_the_same_events_again(provider):
    call = {"model": "ok", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    layers = [Cache()]
    with attach(openai.OpenAI(base_url=f"{provider.url}/v1", api_key="k"), layers) as sdk:
        first, again = (list(sdk.chat.completions.create(**call)) for _ in range(2))
    assert first == again
    assert provider.calls == 1
    with attach(anthropic.Anthropic(base_url=provider.url, api_key="k"), layers) as sdk:
        first, again = (list(sdk.messages.create(max_tokens=9, **call)) for _ in range(2))
    assert first == again
    assert provider.calls == 2


def test_both_async_sdks_get_the_same_events_again(provider):
    call = {"model": "ok", "messages": [{"role": "user", "content": "hi"}], "stream": True}

    async def main():
        async with attach(openai.AsyncOpenAI(base_url=f"{provider.url}/v1", api_key="k"), [Cache()]) as sdk:
            for _ in range(2):
                events = [event async for event in await sdk.chat.completions.create(**call)]
                assert len(events) == 3
        async with attach(anthropic.AsyncAnthropic(base_url=provider.url, api_key="k"), [Cache()]) as sdk:
            for _ in range(2):
                events = [event async for event in await sdk.messages.create(max_tokens=9, **call)]
                assert len(events) == 6

    asyncio.run(main())
    assert provider.calls == 2
