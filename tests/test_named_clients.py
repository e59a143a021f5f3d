"""Named, supervised clients: each row of the original design, and what has become of it."""

from __future__ import annotations

import asyncio
import copy
import gc
import gzip
import json
import logging
import os
import pickle
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from random import Random

import anyio
import httpx
import pytest
import trio

from dspex_pipe import (
    Breaker,
    Cache,
    MemoryStore,
    Pipeline,
    RateLimit,
    Retry,
    Timeout,
    llm,
    presets,
    refusal_of,
)
from dspex_pipe.chaos import Chaos, Latency, Raise, Status
from dspex_pipe.llm import (
    AuthError,
    BadRequest,
    BreakerOpen,
    ClientConfig,
    ClientDown,
    ContextTooLong,
    Crashed,
    DeadlineExceeded,
    Env,
    LLMError,
    ProviderDown,
    QuotaSpent,
    RateLimited,
    Supervisor,
)
from dspex_pipe.llm.formats import FORMATS, Malformed
from dspex_pipe.llm.health import Intensity, Restarts
from dspex_pipe.llm.lifetime import renew_after_fork, renew_all
from dspex_pipe.testing import Reply, Script, VirtualIO
from dspex_pipe.wire import Usage

TEXT = "Forty-two."
CHAT = {"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}], "model": "m"}
WIRES = ("openai", "responses", "anthropic")


def config(provider, wire="openai", model="ok", **more):
    url = provider.url if wire == "anthropic" else f"{provider.url}/v1"
    return ClientConfig(model=model, base_url=url, api_key="sk-secret", wire=wire, **more)


def scripted(*steps, forever=True, io=None, **more):
    script = Script(*steps, forever=forever, io=io)
    more.setdefault("layers", [])
    return script, ClientConfig(model="m", api_key="sk-secret", http={"transport": script}, **more)


@pytest.fixture
def supervisor():
    with Supervisor() as running:
        yield running


@pytest.fixture(params=WIRES)
def wire(request):
    return request.param


# start, get, stop


def test_start_registers_a_client_under_its_name(provider, supervisor):
    client = supervisor.start_client("openai", config(provider))
    assert supervisor.get_client("openai") is client
    assert repr(client) == "Client('openai', 'ok', up)"
    with pytest.raises(ValueError, match="a client named 'openai' is running already"):
        supervisor.start_client("openai", config(provider))
    assert supervisor.get_client("openai") is client
    with pytest.raises(LookupError, match=r"no client named 'x' is running; these are: 'openai'"):
        supervisor.get_client("x")
    supervisor.stop_client("openai")
    with pytest.raises(LookupError, match=r"no client named 'openai' is running; these are: none"):
        supervisor.stop_client("openai")
    with pytest.raises(ClientDown, match="it was stopped"):
        client.request("hi")
    supervisor.start_client("openai", config(provider))  # the name is free again


@pytest.mark.parametrize("name", ["", None, 3, "a\nb"])
def test_a_name_is_needed(provider, supervisor, name):
    with pytest.raises(ValueError, match=r"start_client\(\) takes a name, got"):
        supervisor.start_client(name, config(provider))


def test_a_config_is_needed(supervisor):
    with pytest.raises(TypeError, match=r"start_client\(\) takes a ClientConfig, got dict"):
        supervisor.start_client("a", {"model": "m"})


def test_layers_may_be_one_pipeline_that_others_share(provider, supervisor):
    shared = Pipeline([Cache()])
    for name in ("a", "b"):
        what = config(provider, layers=shared)
        assert what.layers == (shared,)
        assert supervisor.start_client(name, what).request("hi").cached is (name == "b")


def test_start_log_and_events(provider, caplog):
    events = []
    with caplog.at_level(logging.INFO, "dspex_pipe.llm"), Supervisor(on_event=events.append) as supervisor:
        supervisor.start_client("claude", config(provider))
    assert "client claude started" in caplog.text
    assert [(event.client, event.what) for event in events] == [("claude", "started"), ("claude", "stopped")]


def test_what_an_observer_raises_is_logged_and_goes_no_further(provider, caplog):
    def fails(event):
        raise RuntimeError("observer")

    with Supervisor(on_event=fails) as supervisor:
        assert str(supervisor.start_client("a", config(provider)).request("hi")) == TEXT
    assert "an on_event callback failed" in caplog.text


@pytest.mark.parametrize(
    ("setting", "allowed"),
    [
        ({"max_restarts": -1}, "a whole number"),
        ({"window": 0}, "a positive number of seconds"),
        ({"rest": "x"}, "a positive number of seconds"),
        ({"on_event": 3}, "a function of one event"),
    ],
)
def test_bad_settings_of_a_supervisor_say_what_is_allowed(setting, allowed):
    with pytest.raises(ValueError, match=allowed):
        Supervisor(**setting)


@pytest.mark.parametrize(
    ("setting", "allowed"),
    [
        ({"model": ""}, "a name"),
        ({"base_url": "x.test"}, "a URL with http:// or https://"),
        ({"wire": "grpc"}, "one of openai, responses, anthropic"),
        ({"timeout": 0}, "a positive number of seconds"),
        ({"layers": 3}, "a list of layers"),
        ({"options": 3}, "a mapping"),
        ({"http": 3}, "a mapping"),
        ({"api_key": ""}, "takes the key, .* got an empty string"),
        (
            {"http": {"timeout": 3, "headers": {"x": "sk"}}},
            "without timeout: these are settings",
        ),
        ({"base_url": "https://me:pw@x.test"}, "got one with credentials$"),
        ({"api_key": 3}, "takes the key, .* got int"),
    ],
)
def test_bad_settings_of_a_client_say_what_is_allowed(setting, allowed):
    with pytest.raises(ValueError, match=allowed):
        ClientConfig(**{"model": "m", **setting})


# The key


def test_the_key_comes_from_a_value_a_variable_or_a_function(provider, supervisor, monkeypatch):
    monkeypatch.setenv("MY_KEY", "from-env")
    keys = iter(["first", "second", "third"])
    for name, key in (("a", "plain"), ("b", Env("MY_KEY")), ("c", lambda: next(keys))):
        supervisor.start_client(name, config(provider).evolve(api_key=key)).request(name)
    sent = [seen.headers["authorization"] for seen in provider.seen]
    assert sent == [
        "Bearer plain",
        "Bearer from-env",
        "Bearer second",
    ]  # the first was asked for at the start


@pytest.mark.parametrize(
    ("wire", "variable"), [("openai", "OPENAI_API_KEY"), ("anthropic", "ANTHROPIC_API_KEY")]
)
def test_a_missing_key_is_told_at_the_start(supervisor, monkeypatch, wire, variable):
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(LookupError, match=f"no API key: the environment variable {variable} is not set"):
        supervisor.start_client("a", ClientConfig(model="m", wire=wire))
    with pytest.raises(LookupError, match="no API key: what the function for it returns is not set"):
        supervisor.start_client("a", ClientConfig(model="m", wire=wire, api_key=lambda: None))
    monkeypatch.setenv(variable, "k")
    supervisor.start_client("a", ClientConfig(model="m", wire=wire))


def test_the_address_is_the_sdks_own(monkeypatch):
    for variable in ("OPENAI_BASE_URL", "ANTHROPIC_BASE_URL"):
        monkeypatch.delenv(variable, raising=False)
    homes = {wire: ClientConfig(model="m", wire=wire).url for wire in WIRES}
    assert homes == {
        "openai": "https://api.openai.com/v1",
        "responses": "https://api.openai.com/v1",
        "anthropic": "https://api.anthropic.com",
    }
    monkeypatch.setenv("OPENAI_BASE_URL", "http://gateway.test/v1/")
    assert ClientConfig(model="m").url == "http://gateway.test/v1"
    assert ClientConfig(model="m", base_url="http://x.test").url == "http://x.test"


def test_no_secret_is_in_a_repr_a_pickle_a_status_or_a_log(supervisor, caplog):
    echo = {"error": {"message": "bad key sk-secret\nforged line", "code": "invalid_api_key"}}
    script, what = scripted(Reply(status=401, json=echo))
    with caplog.at_level(logging.DEBUG):
        client = supervisor.start_client("a", what)
        with pytest.raises(AuthError) as caught:
            client.request("hi")
    told = (
        repr(what), repr(client), json.dumps(supervisor.status()), caplog.text, str(caught.value),
        repr(caught.value), str(caught.value.trace), pickle.dumps(what.evolve(http={})).decode("latin-1"),
    )  # fmt: skip
    assert not any("sk-secret" in text for text in told)
    assert 'LLM API error: status 401: {"error": {"message": "bad key [key]' in caplog.text
    assert "\nforged" not in caplog.text


# request


def test_request_answers_in_every_format_and_mode(provider, supervisor, wire):
    client = supervisor.start_client(wire, config(provider, wire, layers=[Retry()]))
    answer = client.request("hi")
    assert (answer.text, str(answer), answer.model, answer.cached) == (TEXT, TEXT, "ok", False)
    assert answer.finish_reason == {"openai": "stop", "responses": "completed", "anthropic": "end_turn"}[wire]
    assert [event.layer for event in answer.trace] == ["transport"]
    assert client.request([{"role": "user", "content": "hi"}], temperature=0).text == TEXT
    first, second = (json.loads(seen.body) for seen in provider.seen)
    assert second.pop("temperature") == 0
    assert first == second
    for run in (asyncio.run, trio.run):

        async def main():
            return (await client.arequest("hi")).text

        assert run(main) == TEXT if run is trio.run else run(main()) == TEXT


def test_200_becomes_a_completion(supervisor):
    call = {"id": "t1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    message = {"content": None, "tool_calls": [call]}
    usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    document = {
        "choices": [{"message": message, "finish_reason": "tool_calls"}],
        "model": "m-2026",
        "usage": usage,
    }
    _, what = scripted(Reply(json=document, headers={"x-request-id": "r1"}))
    answer = supervisor.start_client("a", what).request("hi")
    assert (answer.text, answer.finish_reason, answer.model) == ("", "tool_calls", "m-2026")
    assert [(each.id, each.name, each.arguments) for each in answer.tool_calls] == [("t1", "look", "{}")]
    assert answer.usage == Usage(5, 3, 0)
    assert (answer.raw, answer.request_id, answer.cached) == (document, "r1", False)


def test_stream_yields_deltas_in_every_format_and_mode(provider, supervisor, wire):
    client = supervisor.start_client(wire, config(provider, wire, layers=[Retry()]))

    async def main():
        async with client.astream("hi") as stream:
            assert "".join([str(delta) async for delta in stream]) == TEXT
        assert stream.text == TEXT
        async with client.astream("hi") as left:
            await anext(left)
        assert [delta async for delta in client.astream("hi", timeout=9)][-1].finish_reason

    with client.stream("hi") as stream:
        assert "".join(map(str, stream)) == TEXT
    assert stream.text == TEXT
    assert stream.finish_reason in {"stop", "completed", "end_turn"}
    assert stream.response.status_code == 200
    with client.stream("hi") as left:
        next(left)
    asyncio.run(main())


def test_a_stream_that_nobody_reads_opens_nothing(provider, supervisor):
    client = supervisor.start_client("a", config(provider))
    with client.stream("hi"):
        pass

    async def main():
        async with client.astream("hi"):
            pass

    asyncio.run(main())
    assert provider.calls == 0


def test_a_stream_that_never_begins_is_typed(supervisor):
    _, what = scripted("ConnectError")
    client = supervisor.start_client("a", what)

    async def main():
        async with client.astream("hi") as stream:
            await anext(stream)

    with pytest.raises(ProviderDown):
        next(client.stream("hi"))
    with pytest.raises(ProviderDown):
        asyncio.run(main())


def test_module_level_calls_go_by_name(provider):
    llm.start_client("mine", config(provider))
    try:
        assert llm.request("mine", "hi").text == TEXT
        assert llm.stream("mine", "hi").text == ""
        assert llm.status()["mine"]["state"] == "up"
        assert llm.get_client("mine").name == "mine"

        async def main():
            assert (await llm.arequest("mine", "hi")).cached
            return "".join([str(delta) async for delta in llm.astream("mine", "hi")])

        assert asyncio.run(main()) == TEXT
    finally:
        llm.stop_client("mine")


def test_http_post_has_the_body_and_the_headers_of_the_format(provider, supervisor):
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    for each in WIRES:
        supervisor.start_client(each, config(provider, each, options={"top_p": 1})).request(messages)
    chat, response, message = provider.seen
    assert json.loads(chat.body) == {"model": "ok", "messages": messages, "top_p": 1}
    assert json.loads(response.body) == {"model": "ok", "input": messages, "top_p": 1}
    assert json.loads(message.body) == {
        "model": "ok", "max_tokens": 4096, "messages": messages[1:], "system": "be brief", "top_p": 1,
    }  # fmt: skip
    assert chat.headers["authorization"] == response.headers["authorization"] == "Bearer sk-secret"
    assert message.headers["x-api-key"] == "sk-secret"
    assert message.headers["anthropic-version"] == "2023-06-01"
    assert [seen.headers["content-type"] for seen in provider.seen] == ["application/json"] * 3


@pytest.mark.parametrize("messages", [3, None, ["hi"], b"hi"])
def test_messages_are_a_text_or_a_list_of_mappings(provider, supervisor, messages):
    client = supervisor.start_client("a", config(provider))
    with pytest.raises(TypeError, match="messages: a text, or a list of mappings"):
        client.request(messages)
    with pytest.raises(TypeError):
        client.request("hi", odd=object())
    assert supervisor.status()["a"]["crashes"] == 0


# Errors


def failing(status, code, **headers):
    return Reply(status=status, json={"error": {"code": code, "message": "m"}}, headers=headers)


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (failing(401, "invalid_api_key"), AuthError),
        (failing(429, "rate_limit_exceeded"), RateLimited),
        (failing(429, "insufficient_quota"), QuotaSpent),
        (failing(400, "x"), BadRequest),
        (failing(400, "context_length_exceeded"), ContextTooLong),
        (failing(500, "server_error"), ProviderDown),
        (failing(529, "overloaded_error"), ProviderDown),
    ],
)
def test_non_200_is_raised_by_what_it_means(supervisor, reply, kind):
    reply.headers["x-request-id"] = "req_7"
    reply.headers["retry-after"] = "9"
    _, what = scripted(reply)
    client = supervisor.start_client("a", what)

    async def main():
        await client.arequest("hi")

    async def streaming():
        async with client.astream("hi") as stream:
            await anext(stream)

    for call in (
        lambda: client.request("hi"),
        lambda: next(client.stream("hi")),
        lambda: asyncio.run(main()),
        lambda: asyncio.run(streaming()),
        lambda: trio.run(streaming),
    ):
        with pytest.raises(kind) as caught:
            call()
        error = caught.value
        assert type(error) is kind
        assert (error.client, error.status, error.request_id, error.retry_after) == (
            "a",
            reply.status,
            "req_7",
            9,
        )
        assert error.code == reply.json["error"]["code"]
        assert [event.reason for event in error.trace] == [str(reply.status)]
        assert f"status {reply.status}" in str(error)
    assert supervisor.status()["a"]["crashes"] == 0


def test_network_error_is_raised_and_counted_by_the_fuse(supervisor):
    _, what = scripted("ConnectError", layers=presets.fuse())
    client = supervisor.start_client("a", what)
    for number in range(5):
        with pytest.raises(ProviderDown, match="a: no whole answer came: ConnectError"):
            client.request(str(number))
    with pytest.raises(BreakerOpen) as caught:
        client.request("hi")
    assert caught.value.retry_after == pytest.approx(5, rel=0.3)
    assert isinstance(caught.value, ProviderDown)
    assert refusal_of(caught.value.__cause__).code == "breaker_open"
    assert caught.value.trace[-1].decision == "refused"


def test_a_stream_whose_connection_breaks_is_typed_and_has_its_trace(provider, supervisor, wire):
    client, got = supervisor.start_client(wire, config(provider, wire, "torn", layers=[])), []
    with pytest.raises(ProviderDown, match="no whole answer came: RemoteProtocolError") as caught:
        got.extend(client.stream("hi"))
    assert got
    assert [event.decision for event in caught.value.trace] == ["answered", "broke off"]


def test_an_error_event_in_a_stream_is_typed(provider, supervisor, wire):
    client = supervisor.start_client(wire, config(provider, wire, "midway", layers=[]))
    got = []
    with pytest.raises(ProviderDown, match="an error in the stream"):
        got.extend(client.stream("hi"))
    assert got

    async def main():
        async for delta in client.astream("hi"):
            got.append(delta)  # noqa: PERF401

    with pytest.raises(ProviderDown):
        asyncio.run(main())


def test_timeout_covers_queue_and_work():
    io = VirtualIO()
    with Supervisor(io=io) as supervisor:
        script, what = scripted(Reply(json=CHAT, delay=60), io=io, timeout=30)
        client = supervisor.start_client("a", what)
        (error,) = io.run_all(client.arequest("hi"))
        assert isinstance(error, DeadlineExceeded)
        assert isinstance(error, TimeoutError)
        assert io.now() == 30
        slow, what = scripted(Reply(json=CHAT), io=io, layers=[RateLimit(rpm=1)])
        queue = supervisor.start_client("b", what)
        first, second = io.run_all(queue.arequest("1"), queue.arequest("2", timeout=7))
        assert first.text == "hi"
        assert isinstance(second, RateLimited | DeadlineExceeded)  # told at once, not after the 60 s
        assert len(slow.requests) == 1


def test_timeout_cancels_the_work_and_who_waits_for_it_asks_anew():
    io = VirtualIO()
    with Supervisor(io=io) as supervisor:
        slow, fast = Reply(json=CHAT, delay=60), Reply(json=CHAT, delay=1)
        script, what = scripted(slow, fast, io=io, layers=[Cache()])
        client = supervisor.start_client("a", what)
        first, second = io.run_all(client.arequest("hi", timeout=5), client.arequest("hi", timeout=30))
        assert isinstance(first, DeadlineExceeded)
        assert (second.text, io.now()) == ("hi", 6)
        assert (len(script.requests), client.under_way.left()) == (2, 0)


def test_a_timeout_of_a_layer_is_typed(provider, supervisor):
    provider.slow = 0.5
    layers = [Timeout(attempt=0.05)]
    client = supervisor.start_client("a", config(provider, model="slow", layers=layers))

    async def main():
        await client.arequest("hi")

    with pytest.raises(ProviderDown, match="ReadTimeout"):
        asyncio.run(main())


def events(*documents, done=True, **more):
    lines = [f"data: {json.dumps(document)}\n\n".encode() for document in documents]
    chunks = [*lines, *([b"data: [DONE]\n\n"] if done else [])]
    return Reply(chunks=chunks, headers={"content-type": "text/event-stream"}, **more)


def piece(text, reason=None):
    return {"choices": [{"delta": {"content": text}, "finish_reason": reason}]}


FAILED = {"error": {"code": "server_error"}}


async def collect(stream):
    """What came, and the error behind it; of either kind of stream."""
    got = []
    try:
        if hasattr(stream, "__aiter__"):
            async for delta in stream:
                got.append(delta.text)  # noqa: PERF401
        else:
            got.extend(delta.text for delta in stream)
    except LLMError as exc:
        return got, exc
    return got, None


def both(client, **options):
    """The same stream, read by blocking code, on asyncio and on trio."""

    async def blocking():
        got = []
        try:
            for delta in client.stream("hi", **options):
                got.append(delta.text)  # noqa: PERF401
        except LLMError as exc:
            return got, exc
        return got, None

    return [
        asyncio.run(blocking()),
        asyncio.run(collect(client.astream("hi", **options))),
        trio.run(collect, client.astream("hi", **options)),
    ]


@pytest.mark.parametrize(
    ("reply", "texts", "kind"),
    [
        (events(piece("a"), piece("b"), piece("", "stop")), ["a", "b", ""], None),
        (events(piece("a"), piece("b"), FAILED), ["a", "b"], ProviderDown),
        (Reply(chunks=[b"".join(events(piece("a"), FAILED).chunks)],
               headers={"content-type": "text/event-stream"}), ["a"], ProviderDown),
        (events(piece("a")), ["a"], ProviderDown),
        (events(piece("a"), done=False), ["a"], ProviderDown),
        (events(piece("a"), error="ReadError", done=False), ["a"], ProviderDown),
        (
            Reply(
                chunks=[gzip.compress(b"".join(events(piece("a"), piece("", "stop")).chunks), mtime=0)],
                headers={"content-type": "text/event-stream", "content-encoding": "gzip"},
            ),
            ["a", ""],
            None,
        ),
        (
            Reply(chunks=[b"x"], headers={"content-type": "text/event-stream", "content-encoding": "odd"}),
            [],
            Crashed,
        ),
        (events(piece(["x"])), [], Crashed),
        (events({"odd": 1}), [], Crashed),
        (Reply(content=b"<h1>log in</h1>", headers={"content-type": "text/html"}), [], Crashed),
        (Reply(json=CHAT), [], Crashed),
        (Reply(status=302, headers={"location": "/x"}), [], ProviderDown),
    ],
    ids=str,
)  # fmt: skip
def test_a_stream_gives_what_came_and_then_tells_what_went_wrong(reply, texts, kind):
    _, what = scripted(reply)
    client = Supervisor(max_restarts=99).start_client("a", what)
    for got, error in both(client):
        assert got == texts
        assert error is None if kind is None else type(error) is kind
        assert error is None or error.__cause__ is not error
    client.close()
    assert client.under_way.left() == 0


def test_a_response_that_failed_is_no_answer(supervisor):
    failed = {"status": "failed", "error": {"code": "rate_limit_exceeded"}, "output": []}
    for reply in (Reply(json=failed), events({"type": "response.failed", "response": failed}, done=False)):
        _, what = scripted(reply, wire="responses")
        client = supervisor.start_client("a", what)
        with pytest.raises(RateLimited) as caught:
            client.request("hi") if reply.json else list(client.stream("hi"))
        assert caught.value.code == "rate_limit_exceeded"
        supervisor.stop_client("a")


def test_a_stream_that_has_ended_or_was_left_gives_nothing_more_and_sends_nothing_again(supervisor):
    script, what = scripted(events(piece("a"), piece("", "stop")), 503)
    client = supervisor.start_client("a", what)
    stream = client.stream("hi")
    assert len(list(stream)) == 2
    assert list(stream) == []

    async def main():
        left = client.astream("hi")
        await left.aclose()
        assert [delta async for delta in left] == []
        failing_one = client.astream("hi")
        with pytest.raises(ProviderDown):
            await anext(failing_one)
        assert [delta async for delta in failing_one] == []

    asyncio.run(main())
    assert len(script.requests) == 2


def test_a_stream_that_is_dropped_holds_up_neither_the_next_call_nor_the_end(provider):
    with Supervisor() as supervisor:
        what = config(provider, layers=[], http={"limits": httpx.Limits(max_connections=1)}, timeout=5)
        client = supervisor.start_client("a", what)
        for _ in range(3):
            next(client.stream("hi"))
            gc.collect()
        assert client.request("hi").text == TEXT

        async def main():
            await anext(client.astream("hi"))

        asyncio.run(main())
        gc.collect()
        assert client.under_way.left() == 0
    assert provider.wait_until_left(10)


@pytest.mark.parametrize("run", [asyncio.run, trio.run], ids=["asyncio", "trio"])
def test_a_stream_that_is_cancelled_is_over(provider, supervisor, run):
    provider.slow = 0.3
    client = supervisor.start_client("a", config(provider, model="stall", layers=[]))

    async def main():
        stream = client.astream("hi")
        with anyio.move_on_after(0.05) as scope:
            await anext(stream)
        assert scope.cancelled_caught
        assert client.under_way.left() == 0
        assert [delta async for delta in stream] == []

    run(main) if run is trio.run else run(main())


def test_an_interrupt_while_a_stream_is_read_closes_it(supervisor):
    def interrupts(request):
        raise KeyboardInterrupt

    _, what = scripted(interrupts)
    client = supervisor.start_client("a", what)
    with pytest.raises(KeyboardInterrupt):
        next(client.stream("hi"))
    assert client.under_way.left() == 0


def test_a_stream_begun_after_the_client_was_stopped_is_refused(supervisor):
    script, what = scripted(events(piece("a", "stop")))
    stream = supervisor.start_client("a", what).stream("hi")
    supervisor.stop_client("a")
    with pytest.raises(ClientDown):
        next(stream)
    assert script.requests == []


def test_errors_travel_too():
    error = BadRequest("m", client="a", status=400, code="c", request_id="r", retry_after=3)
    there = pickle.loads(pickle.dumps(error))
    assert (type(there), str(there), there.retry_after) == (BadRequest, str(error), 3)
    assert str(copy.copy(error)) == str(error)


@pytest.mark.parametrize("key", ["sk-é", "sk\nforged"])
def test_a_key_that_no_header_takes_is_told_without_showing_it(supervisor, key):
    with pytest.raises(LookupError, match="what was given holds what no header takes") as caught:
        supervisor.start_client("a", ClientConfig(model="m", api_key=key))
    assert key not in repr(caught.value)


def test_the_key_that_was_sent_is_the_one_that_is_redacted(supervisor, caplog):
    keys = iter(f"sk-rotating-{number}" for number in range(9))

    def echo(request):
        return failing(401, request.headers["authorization"])

    _, what = scripted(echo)
    client = supervisor.start_client("a", what.evolve(api_key=lambda: next(keys)))
    with pytest.raises(AuthError):
        client.request("hi")
    assert "Bearer [key]" in caplog.text
    assert "sk-rotating" not in caplog.text


@pytest.mark.parametrize("before", range(170, 200, 3))
def test_no_part_of_a_key_stays_where_a_long_text_is_cut(supervisor, caplog, before):
    _, what = scripted(Reply(status=500, content=b"x" * before + b"sk-secret" + b"x" * 99))
    with pytest.raises(ProviderDown):
        supervisor.start_client("a", what).request("hi")
    assert "sk-" not in caplog.text


def test_a_caller_cannot_ask_a_whole_answer_to_stream(provider, supervisor):
    client = supervisor.start_client("a", config(provider))
    with pytest.raises(TypeError, match="stream is no option of a request"):
        client.request("hi", stream=True)
    assert supervisor.status()["a"]["crashes"] == 0


def test_system_messages_of_blocks_are_handed_on():
    block = {"type": "text", "text": "be brief"}
    body = FORMATS["anthropic"].request(
        "m",
        [{"role": "system", "content": [block]}, {"role": "system", "content": "and kind"}],
        {},
        stream=False,
    )
    assert body["system"] == [block, {"type": "text", "text": "and kind"}]


# The stack of the design; what it replaces is in tests_dspy


def test_pipeline_is_cache_fuse_network():
    assert repr(Pipeline(ClientConfig(model="m").layers)).startswith(
        "Pipeline([Cache(key='messages'), Breaker("
    )


def test_get_or_set_asks_only_on_a_miss(provider, supervisor):
    client = supervisor.start_client("a", config(provider))
    first, again = client.request("hi"), client.request("hi")
    assert (first.cached, again.cached, provider.calls) == (False, True, 1)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: client.request("together"), range(8)))
    assert provider.calls == 2


@pytest.mark.parametrize(
    ("cache", "calls"), [(Cache(), 4), (Cache(key="messages"), 3)], ids=["the whole body", "as in the design"]
)
def test_cache_key_is_what_is_asked_and_by_whom(provider, supervisor, cache, calls):
    client = supervisor.start_client("a", config(provider, layers=[cache]))
    for _ in range(2):
        client.request("hi")
        client.request("hi", temperature=0.5)
        client.request("ho")
    client.reconfigure(api_key="sk-another")
    client.request("hi")
    assert provider.calls == calls


def test_own_fuse_melts_at_the_fifth_non_200(supervisor):
    script, what = scripted(404, layers=presets.fuse())
    client = supervisor.start_client("a", what)
    for number in range(5):
        with pytest.raises(BadRequest):
            client.request(str(number))
    with pytest.raises(BreakerOpen):
        client.request("x")
    assert len(script.requests) == 5


def test_state_isolation_a_melted_fuse_leaves_its_neighbour_untouched(provider, supervisor):
    claude = supervisor.start_client("claude", config(provider, "anthropic", "503"))
    gpt = supervisor.start_client("gpt", config(provider))
    for number in range(6):
        with pytest.raises(ProviderDown):
            claude.request(str(number))
    with pytest.raises(BreakerOpen):
        claude.request("x")
    assert gpt.request("x").text == TEXT
    status = supervisor.status()
    assert status["gpt"]["failures"] == 0
    assert status["gpt"]["layers"][1]["not_closed"] == {}


# Concurrency


def test_controlled_concurrency_threads_and_loops_call_one_client_at_once(provider, supervisor):
    client = supervisor.start_client("a", config(provider, layers=[Retry(), Breaker()]))

    async def many(number):
        return await asyncio.gather(*(client.arequest(f"{number} {each}") for each in range(10)))

    def loop(number):
        return [answer.text for answer in asyncio.run(many(number))]

    with ThreadPoolExecutor(24) as pool:
        loops = [pool.submit(loop, number) for number in range(3)]
        threads = [pool.submit(client.request, str(number)) for number in range(30)]
        assert [future.result().text for future in threads] == [TEXT] * 30
        assert [future.result() for future in loops] == [[TEXT] * 10] * 3
    assert provider.calls == 60
    # the loops have ended, and their connections with them; those of blocking calls stay open
    client.close()
    assert provider.wait_until_left(10)


def test_calls_run_in_parallel(supervisor):
    meeting = threading.Barrier(4, timeout=10)

    def answer(request):
        meeting.wait()  # nobody gets on before all are here
        return Reply(json=CHAT)

    _, what = scripted(answer)
    client = supervisor.start_client("a", what)
    with ThreadPoolExecutor(4) as pool:
        assert [one.text for one in pool.map(client.request, "abcd")] == ["hi"] * 4


def test_one_client_serves_repeated_runs_of_event_loops(provider, supervisor):
    client = supervisor.start_client("a", config(provider, layers=[]))

    async def main():
        return (await client.arequest("hi")).text

    async def on_trio():
        return (await client.arequest("hi")).text

    for _ in range(3):
        assert asyncio.run(main()) == TEXT
        assert trio.run(on_trio) == TEXT
        assert client.request("hi").text == TEXT
    assert provider.connections == 7  # one for each loop, and one for all blocking calls


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_loop_that_was_closed_by_hand_is_forgotten_when_the_next_one_comes(provider, supervisor):
    client = supervisor.start_client("a", config(provider, layers=[]))

    async def main():
        return (await client.arequest("hi")).text

    for _ in range(3):
        loop = asyncio.new_event_loop()
        assert loop.run_until_complete(main()) == TEXT
        loop.close()  # without finishing its async generators, as asyncio.run would
        del loop
    assert asyncio.run(main()) == TEXT
    assert len(client._pools[-1]._per_loop._held) == 0
    gc.collect()


def test_a_forked_process_has_connections_and_locks_of_its_own(provider, supervisor):
    client = supervisor.start_client("a", config(provider, layers=[Cache()]))
    client.request("parent")
    assert provider.connections == 1
    held = client._lock
    held.acquire()  # another thread may be just there
    child = os.fork()
    if not child:
        try:
            os._exit(0 if client.request("child").text == TEXT else 1)
        except BaseException:
            os._exit(2)
    held.release()
    assert os.waitpid(child, 0)[1] == 0
    assert client.request("parent again").text == TEXT
    assert provider.connections == 2  # the parent's own is still in use
    assert provider.calls == 3


def test_what_is_renewed_has_nothing_of_before(supervisor):
    _, what = scripted(Reply(json=CHAT), layers=[Cache()])
    client = supervisor.start_client("a", what)
    client.request("hi")
    for thing in (client, client.health, supervisor):
        thing._lock.acquire()
    renew_all()
    assert not client.request("hi").cached
    assert supervisor.get_client("a") is client


# Shutdown: drain, cancel, close

BEGUN = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: %b\n\n"


@pytest.fixture
def silent():
    """A provider that takes a request, and answers nothing, or only the beginning of a stream."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def config_for(server):
    host, port = server.getsockname()
    return ClientConfig(model="m", base_url=f"http://{host}:{port}", api_key="k", layers=[])


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("run", [lambda main: asyncio.run(main()), trio.run], ids=["asyncio", "trio"])
def test_what_still_runs_after_the_drain_is_cancelled_in_whichever_loop(silent, supervisor, run, streaming):
    client = supervisor.start_client("a", config_for(silent))
    got, ended = [], []

    async def ask():
        if not streaming:
            return await client.arequest("hi")
        return [got.append(delta.text) async for delta in client.astream("hi")]

    async def main():
        with pytest.raises(ClientDown, match="it was stopped while the call was under way"):
            await ask()
        await anyio.sleep(0)  # what follows is not cancelled
        ended.append(client.under_way.left())

    thread = threading.Thread(target=run, args=(main,))
    thread.start()
    connection, _ = silent.accept()
    with connection:
        connection.recv(65536)
        if streaming:
            connection.sendall(BEGUN % json.dumps(piece("Forty-")).encode())
            while not got:
                time.sleep(0)
        client.close(drain=0.01)
        thread.join(10)
        assert ended == [0]
        connection.settimeout(10)
        while connection.recv(65536):
            pass  # until it is closed: nothing is left open


def test_a_call_that_comes_too_late_for_the_connections_says_so(supervisor):
    _, what = scripted(Reply(json=CHAT))
    client = supervisor.start_client("a", what)
    pools = client.pools()
    client.close()
    client.pools = lambda: pools  # as who asked just before
    with pytest.raises(ClientDown, match="it was stopped"):
        client.request("hi")
    with pytest.raises(ClientDown, match="it was stopped"):
        asyncio.run(client.arequest("hi"))
    assert supervisor.status()["a"]["crashes"] == 0


# httpx leaves its own generators behind when a stream is left early
@pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning")
@pytest.mark.parametrize("run", [lambda main: asyncio.run(main()), trio.run], ids=["asyncio", "trio"])
def test_a_stream_whose_reader_is_busy_ends_with_the_next_piece(silent, supervisor, run):
    client = supervisor.start_client("a", config_for(silent))

    async def main():
        async with anyio.create_task_group() as group:
            stream = client.astream("hi")
            group.start_soon(begin)
            assert (await anext(stream)).text == "Forty-"
            await client.aclose(drain=0.01)
            with pytest.raises(ClientDown, match="it was stopped"):
                await anext(stream)
            assert client.under_way.left() == 0

    async def begin():
        connection, _ = await anyio.to_thread.run_sync(silent.accept)
        with connection:
            await anyio.to_thread.run_sync(connection.recv, 65536)
            connection.sendall(BEGUN % json.dumps(piece("Forty-")).encode())
            await anyio.to_thread.run_sync(lambda: [None for _ in iter(lambda: connection.recv(65536), b"")])

    run(main)


def test_a_cancelled_shutdown_breaks_off_and_closes_all_the_same(silent, supervisor):
    client = supervisor.start_client("a", config_for(silent))

    async def main():
        task = asyncio.create_task(client.arequest("hi"))
        with (await asyncio.to_thread(silent.accept))[0]:
            with anyio.move_on_after(0.01):
                await client.aclose(drain=60)
            with pytest.raises(ClientDown, match="it was stopped"):
                await task

    asyncio.run(main())


def test_a_blocking_call_that_ends_with_the_client_says_so(silent, supervisor):
    client = supervisor.start_client("a", config_for(silent))
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.request, "hi")
        connection, _ = silent.accept()
        client.close(drain=0.01)
        connection.close()
        with pytest.raises(ClientDown, match="it was stopped"):
            call.result(10)


def test_a_calls_own_cancellation_stays_one(silent, supervisor):
    client = supervisor.start_client("a", config_for(silent))

    async def main():
        task = asyncio.create_task(client.arequest("hi"))
        with (await asyncio.to_thread(silent.accept))[0]:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert client.under_way.left() == 0

    asyncio.run(main())


def test_a_drain_in_the_same_loop_cancels_too(silent):
    async def main():
        async with Supervisor() as supervisor:
            client = supervisor.start_client("a", config_for(silent))
            task = asyncio.create_task(client.arequest("hi"))
            with (await asyncio.to_thread(silent.accept))[0]:
                await client.aclose(drain=0.01)
                with pytest.raises(ClientDown, match="it was stopped"):
                    await task

    asyncio.run(main())


# Supervision


class Buggy:
    """A layer with state, and a bug that a prompt sets off."""

    built = 0

    def build(self):
        type(self).built += 1
        return self.Running()

    class Running:
        def __init__(self):
            self.calls = 0

        async def __call__(self, request, call_next, io):
            self.calls += 1
            if b"bug" in request.content:
                raise ZeroDivisionError("a bug")
            return await call_next(request)

        def snapshot(self):
            return {"calls": self.calls}


def test_supervision_a_bug_in_a_layer_restarts_that_layer_and_keeps_what_protects():
    Buggy.built = 0
    events = []
    with Supervisor(on_event=events.append) as supervisor:
        script, what = scripted(503, Reply(json=CHAT), layers=[Cache(), Breaker(consecutive=9), Buggy()])
        client = supervisor.start_client("a", what)
        with pytest.raises(ProviderDown):
            client.request("fails once")
        assert client.request("kept").text == "hi"
        with pytest.raises(Crashed, match="ZeroDivisionError: a bug") as caught:
            client.request("bug")
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert Buggy.built == 2
        cache, breaker, buggy = client.pipeline.snapshot()["layers"]
        assert buggy == {"layer": "Buggy", "calls": 0}
        assert breaker["circuits"] == 1
        assert client.request("kept").cached
        status = supervisor.status()["a"]
        assert (status["state"], status["crashes"], status["restarts"]) == ("up", 1, 1)
    assert [event.what for event in events] == ["started", "crashed", "restarted", "stopped"]


@pytest.mark.parametrize(
    "body", [b"no json", b"[]", b'{"choices": []}', b'{"choices": [{"message": 3}]}', b"null"]
)
def test_malformed_json_is_a_crash_of_that_client_only(supervisor, body):
    _, what = scripted(Reply(content=body, headers={"content-type": "application/json"}))
    client = supervisor.start_client("a", what)
    _, other = scripted(Reply(json=CHAT))
    neighbour = supervisor.start_client("b", other)
    with pytest.raises(Crashed, match="Malformed"):
        client.request("hi")
    assert supervisor.status()["a"]["crashes"] == 1
    assert (neighbour.request("hi").text, supervisor.status()["b"]["crashes"]) == ("hi", 0)


def test_a_crash_of_no_layer_restarts_those_that_are_not_ours(supervisor):
    Buggy.built = 0
    _, what = scripted(Reply(content=b"no json"), layers=[Cache(), Buggy(), Breaker()])
    client = supervisor.start_client("a", what)
    cache = client.pipeline[Cache]
    with pytest.raises(Crashed):
        client.request("hi")
    assert Buggy.built == 2
    assert client.pipeline[Cache] is cache


def test_a_bug_in_a_nested_pipeline_is_counted_and_restarts_nothing_that_others_share():
    Buggy.built = 0
    shared = Pipeline([Buggy()])
    with Supervisor(max_restarts=2) as supervisor:
        _, what = scripted(Reply(json=CHAT), layers=[Pipeline([Retry(), shared])])
        client = supervisor.start_client("a", what)
        for _ in range(3):
            with pytest.raises(Crashed, match="a bug"):
                client.request("bug")
        with pytest.raises(ClientDown):
            client.request("hi")
        assert Buggy.built == 1
        status = supervisor.status()["a"]
        assert (status["crashes"], status["restarts"]) == (3, 0)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_malformed_answer_that_was_cached_is_asked_for_anew(supervisor, streaming):
    whole, streamed = (Reply(json={}), Reply(json=CHAT)), (events("no json"), events(piece("hi", "stop")))
    script, what = scripted(*(streamed if streaming else whole), layers=[Cache()])
    client = supervisor.start_client("a", what)

    def ask(question):
        if not streaming:
            return client.request(question).text
        return "".join(delta.text for delta in client.stream(question))

    with pytest.raises(Crashed, match="Malformed"):
        ask("hi")
    assert ask("hi") == ask("hi") == "hi"
    assert len(script.requests) == 2
    assert supervisor.status()["a"]["crashes"] == 1


@pytest.mark.parametrize("mode", ["only_if_cached", "read_only", "off"])
def test_distrust_asks_nobody_whom_the_cache_may_not_ask(supervisor, mode):
    store = MemoryStore()
    script, what = scripted(Reply(json={}), Reply(json={}), layers=[Cache(store, secret=b"k" * 16)])
    client = supervisor.start_client("a", what)
    with pytest.raises(Crashed, match="Malformed"):
        client.request("hi")
    client.reconfigure(layers=[Cache(store, secret=b"k" * 16, mode=mode)])
    with pytest.raises(Crashed, match="Malformed"):
        client.request("hi")
    assert len(script.requests) == (2 if mode == "off" else 1)


def test_what_is_distrusted_is_bounded(supervisor, monkeypatch):
    monkeypatch.setattr("dspex_pipe.llm.client._MOST_DISTRUSTED", 2)
    client = supervisor.start_client("a", scripted(Reply(json=CHAT), layers=[Cache()])[1])
    for content in (b"a", b"b", b"c"):
        client.distrust(content)
    assert [client.distrusts(content) for content in (b"a", b"b", b"c", b"c")] == [False, True, True, False]


def test_a_class_is_no_layer_and_a_layers_own_named_is_left_alone(supervisor):
    with pytest.raises(TypeError, match="Cache is a class"):
        supervisor.start_client("a", scripted(layers=[Cache])[1])

    class Labelled(Buggy):
        named = True

    client = supervisor.start_client("b", scripted(Reply(json=CHAT), layers=[Labelled(), RateLimit()])[1])
    before = client.pipeline
    client.reconfigure(layers=client.pipeline.layers)
    assert [step.middleware for step in client.pipeline.steps] == [step.middleware for step in before.steps]


def test_a_client_without_a_cache_distrusts_nothing(supervisor):
    _, what = scripted(Reply(json={}), Reply(json=CHAT))
    client = supervisor.start_client("a", what)
    with pytest.raises(Crashed, match="Malformed"):
        client.request("hi")
    assert client.request("hi").text == "hi"
    assert not client.distrusts(b"anything")


def test_own_cache_in_one_file_two_clients_have_entries_of_their_own(provider, supervisor, tmp_path):
    path = tmp_path / "answers.db"
    for name in ("a", "b"):
        client = supervisor.start_client(name, config(provider, layers=[Cache(path)]))
        assert [client.request("hi").cached for _ in range(2)] == [False, True]
    assert provider.calls == 2
    supervisor.stop_client("a")
    again = supervisor.start_client("a", config(provider, layers=[Cache(path)]))
    assert again.request("hi").cached
    shared = config(provider, layers=[Cache(path, namespace="both")])
    one, two = (supervisor.start_client(name, shared) for name in ("c", "d"))
    assert [one.request("hi").cached, two.request("hi").cached] == [False, True]
    again.reconfigure(timeout=3.0)
    assert again.request("hi").cached


def test_a_corrupt_store_of_one_client_is_begun_anew_and_no_other_notices(provider, supervisor, tmp_path):
    paths = {name: tmp_path / f"{name}.db" for name in "ab"}
    for name, path in paths.items():
        supervisor.start_client(name, config(provider, layers=[Cache(path)])).request("hi")
        supervisor.stop_client(name)
    with paths["a"].open("r+b") as file:
        file.write(b"\xff" * 64)
    clients = {
        name: supervisor.start_client(name, config(provider, layers=[Cache(path)]))
        for name, path in paths.items()
    }
    assert [client.request("hi").cached for client in clients.values()] == [False, True]
    assert clients["a"].request("hi").cached
    assert (tmp_path / "a.db.corrupt").exists()


def test_calls_that_one_bad_layer_crashes_together_are_one_crash():
    class Poisoned(Buggy):
        class Running(Buggy.Running):
            async def __call__(self, request, call_next, io):
                await io.sleep(1)  # all of them are in here
                return await super().__call__(request, call_next, io)

    io = VirtualIO()
    with Supervisor(io=io) as supervisor:
        _, what = scripted(Reply(json=CHAT), io=io, layers=[Poisoned()])
        client = supervisor.start_client("a", what)
        results = io.run_all(*(client.arequest(f"bug {number}") for number in range(10)))
        assert all(isinstance(result, Crashed) for result in results)
        status = supervisor.status()["a"]
        assert (status["state"], status["crashes"], status["restarts"]) == ("up", 1, 1)


def test_a_layer_that_cannot_be_built_again_is_a_crash_and_the_caller_gets_a_typed_error():
    class Once(Buggy):
        def build(self):
            if type(self).built:
                raise OSError("disk gone")
            return super().build()

    Once.built = 0
    with Supervisor(max_restarts=1) as supervisor:
        _, what = scripted(Reply(json=CHAT), layers=[Once()])
        client = supervisor.start_client("a", what)
        for _ in range(2):
            with pytest.raises(Crashed, match="a bug"):
                client.request("bug")
        with pytest.raises(ClientDown, match="it rests: OSError"):
            client.request("hi")


def test_a_layer_whose_snapshot_fails_hides_no_other_client(supervisor):
    class Shy(Buggy):
        class Running(Buggy.Running):
            def snapshot(self):
                raise RuntimeError("shy")

    for name, layers in (("a", [Shy()]), ("b", [])):
        supervisor.start_client(name, scripted(Reply(json=CHAT), layers=layers)[1])
    assert supervisor.status()["a"]["layers"] == "no snapshot: RuntimeError"
    assert supervisor.status()["b"]["layers"] == []


def test_one_that_cannot_begin_anew_after_a_fork_keeps_no_other_from_it(caplog):
    class Stubborn:
        def renew(self):
            raise OSError("no")

    class Willing:
        renewed = 0

        def renew(self):
            self.renewed += 1

    things = [Willing(), Stubborn(), Willing()]
    for thing in things:
        renew_after_fork(thing)
    renew_all()
    assert [thing.renewed for thing in things[::2]] == [1, 1]
    assert "could not begin anew after a fork" in caplog.text


def test_malformed_events_are_a_crash_too(supervisor):
    reply = Reply(chunks=[b"data: {\n\n"], headers={"content-type": "text/event-stream"})
    _, what = scripted(reply)
    client = supervisor.start_client("a", what)
    with pytest.raises(Crashed):
        list(client.stream("hi"))


def test_restart_intensity_then_down_with_a_reason_and_a_growing_rest():
    io, events = VirtualIO(), []
    with Supervisor(max_restarts=2, window=5, rest=5, io=io, on_event=events.append) as supervisor:
        _, what = scripted(Reply(json=CHAT), io=io, layers=[Buggy()])
        client = supervisor.start_client("a", what)
        for _ in range(3):
            with pytest.raises(Crashed):
                client.request("bug")
        with pytest.raises(ClientDown, match="it rests: ZeroDivisionError") as caught:
            client.request("hi")
        assert caught.value.retry_after == 5
        assert supervisor.status()["a"]["state"] == "down"
        io.advance(5)
        assert client.request("hi").text == "hi"
        for _ in range(2):
            with pytest.raises(Crashed):
                client.request("bug")
        assert supervisor.status()["a"]["state"] == "up"
    assert [event.what for event in events].count("down") == 1


def test_the_rest_doubles_up_to_a_minute_and_starts_anew_after_a_quiet_time():
    core, now, rests = Intensity(Restarts(0, 5.0, 5.0, 60.0)), 0.0, []
    for _ in range(6):
        assert not core.crash(now)
        rests.append(core.down_for(now))
        now += rests[-1]
        assert core.down_for(now) is None
    assert rests == [5, 10, 20, 40, 60, 60]
    assert not core.crash(now + 61)
    assert core.down_for(now + 61) == 5


def test_crashes_that_are_far_apart_are_restarted_for_ever():
    core = Intensity(Restarts(1, 5.0, 5.0, 60.0))
    assert all(core.crash(10.0 * number) for number in range(100))


def test_a_bug_below_the_layers_is_a_crash_of_no_layer(supervisor):
    def breaks(request):
        raise ZeroDivisionError("in the transport")

    Buggy.built = 0
    _, what = scripted(breaks, layers=[Cache(), Breaker()])
    client = supervisor.start_client("a", what)
    before = client.pipeline.steps
    with pytest.raises(Crashed, match="ZeroDivisionError: in the transport"):
        client.request("hi")
    assert client.pipeline.steps == before  # what is ours goes on
    assert supervisor.status()["a"]["crashes"] == 1


def test_the_callers_own_mistake_is_no_crash(provider, supervisor):
    from dspex_pipe import options

    client = supervisor.start_client("a", config(provider))
    with options(no_such_option=3), pytest.raises(TypeError, match="unknown option 'no_such_option'"):
        client.request("hi")
    assert supervisor.status()["a"]["crashes"] == 0


# Reconfiguration, travel


def test_reconfigure_swaps_the_config_and_keeps_the_state(provider, supervisor):
    layers = [Cache(), Breaker()]
    client = supervisor.start_client("a", config(provider, layers=layers))
    client.request("hi")
    client.reconfigure(layers=[*layers, Retry()], timeout=5)
    assert client.request("hi").cached
    assert [layer["layer"] for layer in client.pipeline.snapshot()["layers"]] == ["Cache", "Breaker", "Retry"]
    client.reconfigure(config(provider, model="other", layers=[*layers, Retry()]))
    assert client.request("hi").model == "other"
    assert client.config.model == "other"


@pytest.mark.parametrize(
    "bad",
    [
        {"timeout": -1},
        {"layers": [3]},
        {"no_such": 1},
        {"api_key": lambda: ""},
        {"layers": [Retry]},
        {"http": {"nonsense": 1}},
        {"config": {"model": "m"}},
    ],
)
def test_a_bad_config_changes_nothing(provider, supervisor, bad):
    client = supervisor.start_client("a", config(provider))
    before = client.config, client.pipeline
    with pytest.raises((ValueError, TypeError, LookupError)):
        client.reconfigure(**bad)
    assert (client.config, client.pipeline) == before
    assert client.request("hi").text == TEXT


def test_connections_stay_when_layers_change_and_go_when_httpxs_settings_do(provider, supervisor):
    client = supervisor.start_client("a", config(provider, layers=[]))
    client.request("hi")
    client.reconfigure(layers=[Retry()])
    client.request("hi")
    assert provider.connections == 1
    client.reconfigure(http={"headers": {"x-team": "search"}})
    client.request("hi")
    assert provider.connections == 2
    assert provider.seen[-1].headers["x-team"] == "search"


def test_layers_that_were_exchanged_are_closed_in_the_end(supervisor):
    class Closing:
        def __init__(self):
            self.closed = 0

        def build(self):
            return self

        async def __call__(self, request, call_next, io):
            return await call_next(request)

        def close(self):
            self.closed += 1

    class ClosingLater:
        closed = 0

        def build(self):
            return self

        async def __call__(self, request, call_next, io):
            return await call_next(request)

        async def aclose(self):
            self.closed += 1

    first, second, third = Closing(), Closing(), ClosingLater()
    _, what = scripted(Reply(json=CHAT), events(piece("a", "stop")), layers=[first])
    client = supervisor.start_client("a", what)
    client.request("hi")
    stream = client.stream("hi")
    next(stream)
    client.reconfigure(layers=[second])
    assert first.closed == 0  # a call is on its way through it
    stream.close()
    client.reconfigure(layers=[])
    assert (first.closed, second.closed) == (1, 1)
    client.reconfigure(timeout=3)
    assert (first.closed, second.closed) == (1, 1)
    client.reconfigure(layers=[third, Retry()])
    client.reconfigure(layers=[])
    assert third.closed == 0
    asyncio.run(supervisor.astop_client("a"))
    assert third.closed == 1


def test_calls_under_way_finish_as_what_they_began_with(supervisor):
    begun, go_on = threading.Event(), threading.Event()

    def answer(request):
        begun.set()
        go_on.wait(10)
        return Reply(json={**CHAT, "model": json.loads(request.content)["model"]})

    _, what = scripted(answer)
    client = supervisor.start_client("a", what)
    with ThreadPoolExecutor(1) as pool:
        early = pool.submit(client.request, "hi")
        assert begun.wait(10)
        client.reconfigure(model="new", layers=[Retry()])
        go_on.set()
        assert early.result().model == "m"
    assert client.request("hi").model == "new"


def test_stopping_waits_for_calls_under_way(supervisor):
    begun, go_on = threading.Event(), threading.Event()

    def answer(request):
        begun.set()
        go_on.wait(10)
        return Reply(json=CHAT)

    _, what = scripted(answer)
    client = supervisor.start_client("a", what)
    with ThreadPoolExecutor(2) as pool:
        early = pool.submit(client.request, "hi")
        assert begun.wait(10)
        stopping = pool.submit(supervisor.stop_client, "a")
        while not client.closed:
            pass
        assert not stopping.done()
        go_on.set()
        assert early.result().text == "hi"
        stopping.result(10)


def test_an_async_supervisor_stops_all_and_closes_their_connections(provider):
    async def main():
        async with Supervisor() as supervisor:
            for wire in WIRES:
                await supervisor.start_client(wire, config(provider, wire)).arequest("hi")
                supervisor.get_client(wire).request("blocking")
        with pytest.raises(LookupError):
            supervisor.get_client("openai")
        assert provider.wait_until_left(10)
        async with Supervisor() as idle:
            idle.start_client("a", config(provider))

    asyncio.run(main())


def test_an_async_supervisor_waits_too(provider):
    async def main():
        before = provider.calls
        async with Supervisor() as supervisor:
            client = supervisor.start_client("a", config(provider, model="slow", layers=[]))
            async with anyio.create_task_group() as group:
                group.start_soon(client.arequest, "hi")
                while provider.calls == before:
                    await anyio.sleep(0.001)
                await supervisor.astop_client("a")
        assert provider.wait_until_left(10)

    asyncio.run(main())
    trio.run(main)


def test_a_client_travels_as_its_name_and_config_without_secrets(provider, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "other")
    client = llm.start_client("traveller", config(provider))
    try:
        packed = pickle.dumps(client)
        assert b"sk-secret" not in packed
        assert pickle.loads(packed) is client
        assert copy.copy(client) is copy.deepcopy(client) is client
        llm.stop_client("traveller")
        arrived = pickle.loads(packed)  # as in a process where nobody has the name
        assert (arrived.name, arrived.config.model) == ("traveller", "ok")
        arrived.request("hi")
        assert provider.seen[-1].headers["authorization"] == "Bearer other"
    finally:
        llm.stop_client("traveller")


def test_a_config_keeps_the_name_of_a_variable_when_it_travels():
    there = pickle.loads(pickle.dumps(ClientConfig(model="m", api_key=Env("X"), timeout=3)))
    assert (there.api_key, there.timeout, there) == (Env("X"), 3, ClientConfig(model="m", timeout=3))


# The formats


def test_an_answer_without_usage_has_none():
    assert FORMATS["anthropic"].parse({"content": []}).usage is None
    assert FORMATS["openai"].parse(CHAT).usage is None


def test_tool_calls_are_understood():
    tool = {"id": "c1", "function": {"name": "f", "arguments": "{}"}}
    chat = {"choices": [{"message": {"content": None, "tool_calls": [tool]}}], "usage": None}
    function = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
    response = {"output": [function, {"type": "reasoning"}], "status": "incomplete",
                "incomplete_details": {"reason": "max_output_tokens"},
                "usage": {"input_tokens": 5, "output_tokens": 3, "input_tokens_details": {"cached_tokens":
                2}}}  # fmt: skip
    message = {"content": [{"type": "tool_use", "id": "c1", "name": "f", "input": {}}],
               "usage": {"input_tokens": 3, "cache_read_input_tokens": 2, "output_tokens": 3}}  # fmt: skip
    for wire, document in (("openai", chat), ("responses", response), ("anthropic", message)):
        answer = FORMATS[wire].parse(document)
        (call,) = answer.tool_calls
        assert (call.id, call.name, call.arguments, answer.text) == ("c1", "f", "{}", "")
    assert FORMATS["responses"].parse(response).finish_reason == "max_output_tokens"
    assert FORMATS["responses"].parse(response).usage == FORMATS["anthropic"].parse(message).usage


def test_events_without_news_bring_no_delta():
    assert FORMATS["openai"].piece({"choices": [], "usage": {}}) is None
    assert FORMATS["responses"].piece({"type": "response.created"}) is None
    assert FORMATS["responses"].piece({"type": "response.reasoning_text.delta", "delta": "hm"}).text == ""
    assert FORMATS["anthropic"].piece({"type": "ping"}) is None
    with pytest.raises(Malformed, match=r"an event without the shape of openai\.chat"):
        FORMATS["openai"].piece([])


def test_errors_are_one_family():
    for name in llm.__all__:
        thing = getattr(llm, name)
        if isinstance(thing, type) and issubclass(thing, Exception):
            assert issubclass(thing, LLMError)
    assert str(LLMError("m", client="a", status=500, code="c", request_id="r")) == (
        "a: m (status 500, code c, request id r)"
    )
    assert httpx.HTTPError not in LLMError.__mro__


# All of it at once


class Shaky:
    """A layer that crashes now and then."""

    def __init__(self, seed):
        self.dice = Random(seed)

    def build(self):
        return self

    async def __call__(self, request, call_next, io):
        if self.dice.random() < 0.01:
            raise ZeroDivisionError("shaky")
        return await call_next(request)


def test_an_hour_of_faults_and_crashes_answers_every_call_or_fails_it_in_time():
    """Four clients, 64 callers of each, 60 virtual minutes: every answer is its own client's."""
    io = VirtualIO(seed=5)
    names = ("alpha", "beta", "gamma", "delta")
    scripts, outcomes = {}, Counter()

    def answers(name):
        def answer(request):
            question = json.loads(request.content)["messages"][0]["content"]
            return Reply(
                json={**CHAT, "choices": [{"message": {"content": f"{name} on {question}"}}]}, delay=1
            )

        return answer

    async def caller(client, number):
        dice = Random(f"{client.name}/{number}")
        for turn in range(12):
            await io.sleep(dice.uniform(0, 600))
            question, began = f"{number % 32}.{turn}", io.now()
            try:
                answer = await client.arequest(question)
                assert answer.text == f"{client.name} on {question}"
                outcomes["cached" if answer.cached else "answered"] += 1
            except LLMError as exc:
                assert exc.client == client.name
                outcomes[type(exc).__name__] += 1
            assert io.now() - began <= 30 + 1e-6

    with Supervisor(io=io) as supervisor:
        for number, name in enumerate(names):
            faults = [Latency(20, jitter=20, rate=0.1), Raise("ReadError", rate=0.1), Status(500, rate=0.1)]
            layers = [
                Cache(),
                Retry(),
                Breaker(),
                RateLimit(rpm=600),
                Shaky(number),
                Chaos(*faults, seed=number),
            ]
            scripts[name], what = scripted(answers(name), io=io, layers=layers)
            supervisor.start_client(name, what)
        clients = [supervisor.get_client(name) for name in names]
        results = io.run_all(*(caller(client, number) for client in clients for number in range(64)))
        assert results == [None] * 256
        status = supervisor.status()
        for client in clients:
            cache, _, breaker, limit, *_ = client.pipeline.snapshot()["layers"]
            assert cache["under_way"] == breaker["probing"] == 0
            assert all(key["waiting"] == 0 for key in limit["keys"].values())
    assert sum(outcomes.values()) == 256 * 12
    assert outcomes["answered"] > 1000
    assert {"cached", "Crashed", "ProviderDown"} <= outcomes.keys(), outcomes
    assert all(one["crashes"] for one in status.values())
    assert all(script.open == 0 for script in scripts.values())


def test_threads_and_loops_under_faults_get_their_own_answers_and_leave_nothing(provider):
    """Four clients, 64 threads and 3 event loops at once, on real sockets."""
    provider.slow = 0.02
    with Supervisor(max_restarts=1000) as supervisor:
        for number in range(4):
            faults = [Raise("ReadError", rate=0.05), Status(503, rate=0.05), Latency(0.005, rate=0.2)]
            layers = [
                Cache(),
                Retry(wait_initial=0, wait_jitter=0.01),
                Shaky(number),
                Chaos(*faults, seed=number),
            ]
            model = ("ok", "busyx1", "503x1", "slow")[number]
            supervisor.start_client(str(number), config(provider, model=model, layers=layers))
        outcomes = []  # a Counter would lose some: its += is two steps, with another thread between them

        def note(client, answer):
            assert answer.model == client.config.model
            outcomes.append("answered")

        def thread(number):
            client = supervisor.get_client(str(number % 4))
            for turn in range(4):
                try:
                    note(client, client.request(f"{number} {turn}"))
                except LLMError as exc:
                    outcomes.append(type(exc).__name__)

        async def task(number):
            client = supervisor.get_client(str(number % 4))
            try:
                note(client, await client.arequest(f"task {number}"))
            except LLMError as exc:
                outcomes.append(type(exc).__name__)

        async def loop(number):
            await asyncio.gather(*(task(100 * number + each) for each in range(40)))
            assert len(asyncio.all_tasks()) == 1

        with ThreadPoolExecutor(67) as pool:
            loops = [pool.submit(lambda number=number: asyncio.run(loop(number))) for number in range(3)]
            threads = [pool.submit(thread, number) for number in range(64)]
            for future in (*loops, *threads):
                future.result(60)
    assert len(outcomes) == 64 * 4 + 3 * 40
    assert outcomes.count("answered") > 200
    assert provider.wait_until_left(10)
