"""Cancelled at every await point of every layer, swept and not sampled: nothing is left behind."""

from __future__ import annotations

import asyncio

import pytest

from dspex_pipe import Breaker, Cache, Logging, Pipeline, RateLimit, Retry
from dspex_pipe.testing import Reply, Script, VirtualIO

CHAT = "http://llm.test/v1/chat/completions"
ASK = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
STACKS = [
    [Retry(budget=None)],
    [Breaker()],
    [RateLimit(rpm=6)],
    [RateLimit()],
    [Cache()],
    [Cache(ttl=60)],
    [Logging()],
    [Logging(), Cache(), Retry(), Breaker(), RateLimit(rpm=6)],
    [Cache(), Breaker(), Retry()],
]
CALLS = {"get": ("GET", "http://llm.test/", None), "llm": ("POST", CHAT, ASK)}


def upstream(io):
    """A slow server: a failure with a body to drop, a 429, an answer in pieces; and so on."""
    busy = Reply(status=503, headers={"content-length": "4"}, chunks=[b"bu", b"sy"], delay=1, pause=1)
    slow_down = Reply(status=429, headers={"retry-after": "3"}, delay=1)
    pieces = [b'{"id"', b": 1}"]
    answer = Reply(headers={"content-type": "application/json"}, chunks=pieces, delay=1, pause=1)
    turns = [busy, slow_down, answer]
    seen = iter(range(10_000))
    return Script(lambda _: turns[next(seen) % 3], forever=True, io=io)


def idle(pipeline):
    """The state of every layer, as far as it shows calls under way."""
    state = pipeline.snapshot()["layers"]
    return [
        layer.get("under_way", 0) == 0
        and all(key.get("waiting", 0) == 0 for key in layer.get("keys", {}).values())
        for layer in state
    ]


@pytest.mark.parametrize("others", [0, 2], ids=["alone", "with others waiting"])
@pytest.mark.parametrize("call", CALLS, ids=str)
@pytest.mark.parametrize("layers", STACKS, ids=str)
def test_a_call_cancelled_anywhere_leaves_nothing_behind(layers, call, others):
    method, url, body = CALLS[call]
    for point in range(200):
        io = VirtualIO()
        pipeline = Pipeline(layers)
        script = upstream(io)
        client = pipeline.async_client(transport=script, io=io)
        io._scheduled = True
        first = client.request(method, url, json=body)
        followers = [client.request(method, url, json=body) for _ in range(others)]
        ended = False
        try:
            for step in range(point + 1):
                first.send(None)
                io.advance(1)
                if step == 0:
                    for follower in followers:
                        follower.send(None)
        except StopIteration:
            ended = True
        else:
            with pytest.raises(asyncio.CancelledError):
                first.throw(asyncio.CancelledError())
        io._scheduled = False
        results = io.run_all(*followers, client.request(method, url, json=body))
        for result in results:
            assert result.status_code in {200, 429, 503}
        assert script.open == 0
        assert all(idle(pipeline)), pipeline.snapshot()
        if ended:
            assert point >= 2  # it was swept: headers and body at least
            return
    raise AssertionError("the sweep never came to an end")
