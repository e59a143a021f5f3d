"""Ready-made stacks: what they are, and that they do the job."""

from __future__ import annotations

import warnings

import openai
import pytest

from dspex_pipe import BreakerOpen, Cache, Pipeline, RateLimit, attach, presets
from dspex_pipe.testing import Script, VirtualIO, check_layer
from modes import World

ASK = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def test_they_are_lists_that_can_be_read():
    assert repr(Pipeline(presets.llm())) == (
        "Pipeline([Logging(), Timeout(total=600), Retry(attempts=4, budget=Budget(ratio=0.5)), "
        "Breaker(failures=10, ratio=0.9, consecutive=20, open_max=30.0), "
        "RateLimit(max_wait=60, per process), "
        "Timeout(connect=5, first_content=60, idle=60), StreamIntegrity()])"
    )
    assert repr(Pipeline(presets.rest())) == (
        "Pipeline([Logging(), Timeout(total=30), Retry(), Breaker(), RateLimit(per process), "
        "Timeout(attempt=10, connect=5)])"
    )
    fuse = repr(Pipeline(presets.fuse()))
    assert fuse.startswith("Pipeline([Cache(key='messages'), Breaker(ratio=0.0, consecutive=None, ")
    asked = presets.llm(cache=Cache(ttl=60), rate=RateLimit(rpm=60))
    assert [type(layer).__name__ for layer in asked][:2] == ["Logging", "Cache"]
    assert RateLimit(rpm=60) in asked


@pytest.mark.parametrize("make", [presets.llm, presets.rest, presets.fuse])
def test_their_order_gives_no_cause_for_remarks(make):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline = Pipeline(make())
    assert pipeline.advice() == []


@pytest.mark.parametrize("make", [presets.llm, presets.rest, presets.fuse])
def test_they_keep_the_contract(make):
    check_layer(Pipeline(make()))


def test_they_carry_a_call_through_weather(world: World, provider):
    async def main():
        async with world.client(presets.rest(), io=VirtualIO()) as client:
            assert (await client.get(f"{provider.url}/status?fault=503x1")).status_code == 200
        async with world.client(presets.llm(cache=Cache()), io=VirtualIO()) as client:
            url = f"{provider.url}/v1/chat/completions"
            for how in ("miss", "hit"):
                response = await client.post(url, json={**ASK, "model": "503x1"})
                assert (response.status_code, response.headers["x-dspex-cache"]) == (200, how)

    world.run(main)


def test_an_sdk_streams_through_them(provider):
    with attach(openai.OpenAI(base_url=f"{provider.url}/v1", api_key="k"), presets.llm()) as sdk:
        events = list(sdk.chat.completions.create(**{**ASK, "model": "ok"}, stream=True))
    assert len(events) == 3


def test_the_fuse_gives_a_stream_to_who_asked_for_one(provider):
    with attach(openai.OpenAI(base_url=f"{provider.url}/v1", api_key="k"), presets.fuse()) as sdk:
        call = {**ASK, "model": "ok"}
        for _ in range(2):
            assert sdk.chat.completions.create(**call).choices[0].message.content == "Forty-two."
            assert len(list(sdk.chat.completions.create(**call, stream=True))) == 3
    assert provider.calls == 2


def test_the_fuse_is_the_original_rule():
    script = Script(404, forever=True)
    client = Pipeline(presets.fuse()).client(transport=script, io=VirtualIO())
    for number in range(5):
        client.post("http://llm.test/v1/chat/completions", json={**ASK, "messages": [number]})
    with pytest.raises(BreakerOpen):
        client.post("http://llm.test/v1/chat/completions", json=ASK)
