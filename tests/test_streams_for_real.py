"""Streams once more on real sockets: in every mode, with both libraries, and through the real SDKs."""

from __future__ import annotations

import anthropic
import httpx2
import openai
import pytest

from dspex_pipe import Cache, Meaning, Pipeline, Retry, StreamIntegrity, Timeout, read_answer, record_of
from modes import World
from provider import Provider
from test_peek import CALLS, ask

IMPATIENT = Timeout(first_content=0.05, idle=0.05)
PATIENT = Timeout(total=30, first_content=30, idle=30)


@pytest.fixture
def slow():
    """A provider whose silences are longer than anybody's patience here."""
    with Provider(slow=0.5) as running:
        yield running


async def fetch(client, url, model, **kwargs):
    """The pieces of a stream, and the error that ended it."""
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": True}
    pieces, response = [], None
    try:
        response = await client.open("POST", f"{url}/v1/chat/completions", json=body, **kwargs)
        if client.blocking:
            pieces.extend(response.iter_raw())
        else:
            async for piece in response.aiter_raw():
                pieces.append(piece)  # noqa: PERF401 - what came before an error counts
    except Exception as exc:
        return pieces, exc
    finally:
        if response is not None:
            await client.drop(response)
    return pieces, None


def test_a_stall_is_a_timeout_of_the_library(world: World, slow):
    async def main():
        async with world.client([IMPATIENT]) as client:
            pieces, error = await fetch(client, slow.url, "stall")
            assert (pieces, type(error)) == ([], world.http.ReadTimeout)
        async with world.client([PATIENT]) as client:
            pieces, error = await fetch(client, slow.url, "stall")
            assert (pieces[-1], error) == (b"data: [DONE]\n\n", None)

    world.run(main)


def test_a_stream_that_stops_is_an_error_of_the_library(world: World, provider):
    async def main():
        async with world.client([StreamIntegrity()]) as client:
            pieces, error = await fetch(client, provider.url, "cut")
            assert (len(pieces), type(error)) == (1, world.http.RemoteProtocolError)
            assert (await fetch(client, provider.url, "ok"))[1] is None

    world.run(main)


def test_a_replay_has_the_same_bytes_in_the_same_events(world: World, provider):
    async def main():
        async with world.client([Cache()]) as client:
            first, _ = await fetch(client, provider.url, "ok")
            again, _ = await fetch(client, provider.url, "ok")
        assert first == again
        assert (len(again), provider.calls) == (4, 1)

    world.run(main)


def test_throttles_are_waited_for_and_a_spent_quota_is_not(world: World, provider):
    async def main():
        meanings = []

        async def note(request, call_next):
            response = await call_next(request)
            meanings.append(read_answer(response, record_of(request)).meaning)
            return response

        async with world.client([Retry(attempts=1, throttle="wait"), note]) as client:
            _, error = await fetch(client, provider.url, "429x4")
            assert (error, provider.calls) == (None, 5)
            await fetch(client, provider.url, "quota")
            assert provider.calls == 6
        assert meanings == [Meaning.THROTTLED] * 4 + [Meaning.OK, Meaning.QUOTA_SPENT]

    world.run(main)


# The SDKs, which bring their own library, and whose async clients use asyncio


@pytest.fixture(params=["blocking", "asyncio"])
def sdk_world(request):
    return World(request.param, httpx2)


TIMEOUTS = {
    "chat": openai.APITimeoutError,
    "responses": openai.APITimeoutError,
    "messages": (anthropic.APITimeoutError, httpx2.ReadTimeout),
}
BROKEN = {
    "chat": openai.APIConnectionError,
    "responses": openai.APIConnectionError,
    "messages": (anthropic.APIConnectionError, httpx2.RemoteProtocolError),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_stall_is_the_sdks_timeout(sdk_world, slow, name):
    async def main():
        events, error = await ask(sdk_world, slow, name, "stall", [IMPATIENT])
        assert events == []
        assert isinstance(error, TIMEOUTS[name])
        events, error = await ask(sdk_world, slow, name, "stall", [PATIENT])
        assert (len(events), error) == (CALLS[name][4], None)

    sdk_world.run(main)


@pytest.mark.parametrize("name", CALLS)
def test_half_an_answer_is_an_error_of_the_sdk(sdk_world, provider, name):
    async def main():
        events, error = await ask(sdk_world, provider, name, "cut", [])
        assert error is None  # without the layer it passes for a whole one
        half = len(events)
        assert half < CALLS[name][4]
        events, error = await ask(sdk_world, provider, name, "cut", [StreamIntegrity()])
        assert len(events) == half
        assert isinstance(error, BROKEN[name])

    sdk_world.run(main)


@pytest.mark.parametrize("name", CALLS)
def test_an_sdk_gets_the_same_events_again_and_nothing_of_what_failed(sdk_world, provider, name):
    async def main():
        pipeline = Pipeline([Cache()])
        for model, calls in (("ok", 1), ("midway", 2), ("cut", 2)):
            before = provider.calls
            for _ in range(2):
                await ask(sdk_world, provider, name, model, pipeline)
            assert provider.calls - before == calls, model

    sdk_world.run(main)


@pytest.mark.parametrize("name", CALLS)
def test_an_sdk_waits_for_throttles(sdk_world, provider, name):
    async def main():
        events, error = await ask(sdk_world, provider, name, "429x4", [Retry(attempts=1, throttle="wait")])
        assert (len(events), error, provider.calls) == (CALLS[name][4], None, 5)

    sdk_world.run(main)
