"""Every layer we ship keeps the contract: one suite over all of them, in every mode and both libraries."""

from __future__ import annotations

import pytest

from dspex_pipe import Breaker, Budget, Cache, Logging, Pipeline, RateLimit, Retry, StreamIntegrity, Timeout
from dspex_pipe.chaos import Chaos, Latency, Status
from dspex_pipe.testing import check_layer
from modes import lasting

COMPLETION = {
    "method": "POST",
    "url": "http://llm.test/v1/chat/completions",
    "json": {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
}
STREAMED = {**COMPLETION, "json": {**COMPLETION["json"], "stream": True}}
UNSAFE = {"method": "POST", "url": "http://shop.test/orders", "json": {"item": 1}}


async def plain(request, call_next):
    return await call_next(request)


async def timed(request, call_next, io):
    await io.sleep(1)
    return await call_next(request)


LAYERS = [
    Retry(),
    Retry(attempts=1),
    Retry(attempts=5, budget=None, post="always"),
    Retry(budget=Budget(floor=0, ratio=0.0)),
    Logging(),
    Breaker(),
    Breaker(consecutive=1),
    Breaker.fuse(),
    RateLimit(),
    RateLimit(rpm=60_000),
    Cache(),
    Timeout(total=60, attempt=30, connect=5),
    Timeout(attempt=30),
    Chaos(Latency(2)),
    Chaos(Status(503)),
    StreamIntegrity(truncated="pass"),
    Cache(ttl=60),
    Cache(match=lambda request: True),
    plain,
    timed,
    Pipeline(),
    Pipeline([Logging(), Pipeline([Cache(), Breaker(), Retry(), plain])]),
]


@pytest.mark.parametrize("request_", [None, COMPLETION, STREAMED, UNSAFE], ids=["get", "llm", "sse", "post"])
@pytest.mark.parametrize("layer", LAYERS, ids=lasting)
def test_layer_keeps_the_contract(layer, request_):
    check_layer(layer, request=request_)
