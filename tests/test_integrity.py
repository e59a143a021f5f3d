"""A stream that broke off is not an answer."""

from __future__ import annotations

import json

import anthropic
import httpx
import httpx2
import openai
import pytest

from dspex_pipe import Breaker, Cache, Pipeline, StreamIntegrity, attach, explain
from dspex_pipe.body import Passing, put_stream
from dspex_pipe.testing import Reply, Script, VirtualIO
from modes import World

CHAT = "http://llm.test/v1/chat/completions"
MESSAGES = "http://llm.test/v1/messages"
RESPONSES = "http://llm.test/v1/responses"
ASK = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}


def data(document, event=None):
    named = f"event: {event}\n" if event else ""
    return f"{named}data: {json.dumps(document)}\n\n".encode()


def delta(text=None, reason=None):
    content = {} if text is None else {"content": text}
    return data({"choices": [{"index": 0, "delta": content, "finish_reason": reason}]})


CHAT_WHOLE = [delta("a"), delta("b"), delta(None, "stop"), b"data: [DONE]\n\n"]
MESSAGE_WHOLE = [
    data({"type": "message_start", "message": {"model": "m", "usage": {"input_tokens": 1}}}, "message_start"),
    data(
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "a"}}, "content_block_delta"
    ),
    data({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {}}, "message_delta"),
    data({"type": "message_stop"}, "message_stop"),
]
RESPONSE_WHOLE = [
    data({"type": "response.output_text.delta", "delta": "a"}, "response.output_text.delta"),
    data({"type": "response.completed", "response": {"status": "completed"}}, "response.completed"),
]
FORMATS = {
    "chat": (CHAT, ASK, CHAT_WHOLE),
    "messages": (MESSAGES, ASK, MESSAGE_WHOLE),
    "responses": (RESPONSES, {"model": "m", "input": "hi", "stream": True}, RESPONSE_WHOLE),
}


def stream(events, **more):
    return Reply(chunks=events, headers={"content-type": "text/event-stream"}, **more)


async def read(client, url, body):
    """What was read, and the error behind it."""
    response = await client.open("POST", url, json=body)
    pieces = []
    try:
        if client.blocking:
            for piece in response.iter_raw():
                pieces.append(piece)  # noqa: PERF402 - what came before an error counts
        else:
            async for piece in response.aiter_raw():
                pieces.append(piece)  # noqa: PERF401
    except Exception as exc:
        return b"".join(pieces), exc, response
    finally:
        await client.drop(response)
    return b"".join(pieces), None, response


@pytest.mark.parametrize("name", FORMATS)
def test_a_whole_stream_passes_byte_for_byte(world: World, name):
    url, body, events = FORMATS[name]

    async def main():
        script = Script(stream(events))
        async with world.client([StreamIntegrity()], transport=script) as client:
            got, error, _ = await read(client, url, body)
        assert (got, error) == (b"".join(events), None)
        assert script.open == 0

    world.run(main)


@pytest.mark.parametrize("name", FORMATS)
def test_a_stream_that_broke_off_raises_after_all_that_came(world: World, name):
    url, body, events = FORMATS[name]

    async def main():
        script = Script(stream(events[:1]))
        async with world.client([StreamIntegrity()], transport=script) as client:
            got, error, response = await read(client, url, body)
        assert got == events[0]
        assert isinstance(error, world.http.RemoteProtocolError)
        assert str(error) == "the stream ended with nothing that says it is over"
        assert explain(response)[-1].reason == "a stream that broke off"
        assert script.open == 0

    world.run(main)


def test_one_that_only_lacks_its_last_marker_warns(world: World, caplog):
    async def main():
        async with world.client([StreamIntegrity()], transport=Script(stream(CHAT_WHOLE[:-1]))) as client:
            got, error, _ = await read(client, CHAT, ASK)
        assert (got, error) == (b"".join(CHAT_WHOLE[:-1]), None)

    world.run(main)
    assert "llm.test: a stream without its last event" in caplog.text


@pytest.mark.parametrize("truncated", ["warn", "pass"])
def test_warning_and_passing_hand_on_what_there_is(world: World, caplog, truncated):
    async def main():
        layers = [StreamIntegrity(truncated=truncated)]
        async with world.client(layers, transport=Script(stream(CHAT_WHOLE[:1]))) as client:
            assert (await read(client, CHAT, ASK))[:2] == (CHAT_WHOLE[0], None)

    world.run(main)
    assert ("a stream that broke off" in caplog.text) is (truncated == "warn")


def test_an_error_event_is_an_end():
    events = [delta("a"), data({"error": {"code": "overloaded"}})]
    client = Pipeline([StreamIntegrity()]).client(transport=Script(stream(events)))
    assert client.post(CHAT, json=ASK).content == b"".join(events)


def test_a_body_shorter_than_announced_is_always_an_error(http):
    script = Script(Reply(chunks=[b"ab"], headers={"content-length": "9"}), forever=True)
    for truncated in ("raise", "pass"):
        client = Pipeline([StreamIntegrity(truncated=truncated)]).client(http=http, transport=script)
        with pytest.raises(http.RemoteProtocolError, match="the body ended after 2 of 9 bytes"):
            client.get("http://x.test/")


@pytest.mark.parametrize("length", [None, "nonsense", "9" * 5000])
def test_what_is_no_stream_of_ours_passes(length):
    headers = {"content-type": "text/event-stream", **({"content-length": length} if length else {})}
    script = Script(Reply(chunks=[b"data: x\n\n"], headers=headers), forever=True)
    client = Pipeline([StreamIntegrity()]).client(transport=script)
    assert client.get("http://x.test/").content == b"data: x\n\n"
    assert client.head("http://x.test/").status_code == 200


def test_leaving_early_is_no_truncation(world: World):
    async def main():
        script = Script(stream(CHAT_WHOLE[:1]))
        async with world.client([StreamIntegrity()], transport=script) as client:
            response = await client.open("POST", CHAT, json=ASK)
            await client.drop(response)
        assert script.open == 0

    world.run(main)


def test_the_breaker_counts_it_and_the_cache_keeps_nothing():
    io = VirtualIO()
    script = Script(stream(CHAT_WHOLE[:1]), forever=True, io=io)
    pipeline = Pipeline([Cache(), Breaker(consecutive=2), StreamIntegrity()])
    client = pipeline.client(transport=script, io=io)
    for _ in range(2):
        with pytest.raises(httpx.RemoteProtocolError):
            client.post(CHAT, json=ASK)
    state = pipeline.snapshot()["layers"][1]["not_closed"]
    assert state == {"http://llm.test:80 m": "open"}
    assert len(script.requests) == 2


class Cut(Passing):
    """The first event of a real stream, and then its end."""

    def __next__(self):
        if self._stream is None:
            raise StopIteration
        first = super().__next__()
        self.close()
        return first[: first.index(b"\n\n") + 2]

    def close(self):
        if self._stream is not None:
            super().close()
            self._stream = None


async def cut(request, call_next):
    response = await call_next(request)
    put_stream(response, Cut(response.stream))
    return response


CHAT_CALL = {"model": "ok", "messages": [{"role": "user", "content": "hi"}], "stream": True}


def ask_openai(url, layers):
    with attach(openai.OpenAI(base_url=f"{url}/v1", api_key="k"), layers) as sdk:
        return list(sdk.chat.completions.create(**CHAT_CALL))


def ask_anthropic(url, layers):
    with attach(anthropic.Anthropic(base_url=url, api_key="k"), layers) as sdk:
        return list(sdk.messages.create(max_tokens=9, **CHAT_CALL))


@pytest.mark.parametrize("ask", [ask_openai, ask_anthropic])
def test_the_sdks_take_half_an_answer_for_whole_and_get_an_error_instead(provider, ask):
    assert len(ask(provider.url, [cut])) == 1  # half an answer, and no word
    with pytest.raises((openai.OpenAIError, anthropic.AnthropicError, httpx2.HTTPError)) as caught:
        ask(provider.url, [StreamIntegrity(), cut])
    assert "nothing that says it is over" in f"{caught.value} {caught.value.__cause__}"
    assert len(ask(provider.url, [StreamIntegrity()])) >= 3


def test_bad_settings_say_what_is_allowed():
    with pytest.raises(ValueError, match=r"StreamIntegrity\(truncated=…\) takes one of raise, warn, pass"):
        StreamIntegrity(truncated="x")
    assert repr(StreamIntegrity(truncated="warn")) == "StreamIntegrity(truncated='warn')"
