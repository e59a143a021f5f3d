"""What layers tell: the trace of a call, who is told of it, and how it is found again."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from dspex_pipe import (
    Breaker,
    BreakerOpen,
    Event,
    LayerError,
    Overloaded,
    Pipeline,
    Retry,
    StreamIntegrity,
    Timeout,
    Trace,
    build_client,
    explain,
    record_of,
    refusal_of,
    respond,
)
from dspex_pipe.testing import Reply, Script, VirtualIO
from modes import lasting

URL = "http://upstream.test/thing"
RETRY = Retry(wait_initial=0.5, wait_jitter=0)
NOTHING = "no trace: this came through no dspex_pipe pipeline, or an SDK kept only what it parsed"


async def refuse(request, call_next):
    raise Overloaded("full", layer="Guard", retry_after=2)


def told(trace):
    return [(event.layer, event.decision, event.reason) for event in trace]


# How it reads


def test_a_trace_prints_as_a_short_aligned_list():
    trace = Trace(
        [
            Event("transport", "answered", "503", 0.25, 0.25),
            Event("Retry", "retries", "status 503", 1.5, 0.25),
            Event("transport", "failed", "", 12, 13.75),
        ]
    )
    assert str(trace) == (
        " 0.250 s  transport  answered   0.250 s  503\n"
        " 0.250 s  Retry      retries    1.500 s  status 503\n"
        "13.750 s  transport  failed    12.000 s"
    )
    assert len(trace) == 3
    assert trace[1].reason == "status 503"


def test_an_empty_trace_says_what_that_means():
    assert str(Trace()) == NOTHING
    assert Trace() == ()


def test_the_trace_of_a_call_tells_every_attempt_with_its_times(world):
    io = VirtualIO(start=1000)
    script = Script(Reply(status=503, delay=0.25), Reply(delay=0.125), io=io)

    async def main():
        async with world.client([RETRY], transport=script, io=io) as client:
            return await client.get(URL)

    response = world.run(main)
    assert str(explain(response)) == (
        "0.250 s  transport  answered  0.250 s  503\n"
        "0.250 s  Retry      retries   0.500 s  status 503\n"
        "0.875 s  transport  answered  0.125 s  200"
    )
    assert len({event.call for event in explain(response)}) == 1


def test_every_call_has_a_number_of_its_own():
    with build_client([], transport=Script(200, forever=True)) as client:
        first, second = (explain(client.get(URL))[0].call for _ in range(2))
    assert first < second


# Where it is found


def test_explain_and_refusal_of_a_response(world):
    async def main():
        async with world.client([], transport=Script(404)) as client:
            return await client.get(URL)

    response = world.run(main)
    assert told(explain(response)) == [("transport", "answered", "404")]
    assert refusal_of(response) is None


def test_explain_and_refusal_of_an_exception(world):
    async def main():
        async with world.client([refuse], transport=Script()) as client:
            with pytest.raises(Overloaded) as caught:
                await client.get(URL)
            return caught.value

    error = world.run(main)
    assert told(explain(error)) == [("Guard", "refused", "full")]
    assert refusal_of(error) is error


def test_explain_an_error_that_httpx_made_of_a_response(http):
    response = build_client([RETRY], http=http, transport=Script(400)).get(URL)
    with pytest.raises(http.HTTPStatusError) as caught:
        response.raise_for_status()
    assert told(explain(caught.value)) == [("transport", "answered", "400")]


def test_the_refusal_behind_a_synthetic_answer_is_found_from_an_error_made_of_it(http):
    with build_client([refuse], http=http, transport=Script(), refusals="respond") as client:
        response = client.get(URL)
        with pytest.raises(http.HTTPStatusError) as caught:
            response.raise_for_status()
    found = refusal_of(response)
    assert isinstance(found, Overloaded)
    assert (found.reason, found.retry_after) == ("full", 2)
    assert refusal_of(caught.value) is found
    assert told(explain(caught.value)) == [("Guard", "refused", "full")]


def test_an_error_that_comes_while_a_stream_is_read_has_its_trace(world, provider):
    ask = {"model": "cut", "messages": [{"role": "user", "content": "hi"}], "stream": True}

    async def main():
        async with world.client([StreamIntegrity()]) as client:
            response = await client.open("POST", f"{provider.url}/v1/chat/completions", json=ask)
            with pytest.raises(world.http.RemoteProtocolError) as caught:
                await client.read(response)
            return caught.value

    assert [event.layer for event in explain(world.run(main))] == ["transport", "StreamIntegrity"]


@pytest.mark.parametrize(
    "layers", [[], [Retry(), Breaker(), Timeout(idle=30), StreamIntegrity()]], ids=["bare", "full"]
)
def test_a_stream_whose_connection_breaks_is_told_and_has_its_trace(world, provider, layers):
    ask = {"model": "torn", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    heard = []

    async def main():
        async with world.client(Pipeline(layers, on_event=heard.append)) as client:
            response = await client.open("POST", f"{provider.url}/v1/chat/completions", json=ask)
            with pytest.raises(world.http.RemoteProtocolError) as caught:
                await client.read(response)
            return caught.value

    trace = explain(world.run(main))
    assert told(trace) == [
        ("transport", "answered", "200"),
        ("transport", "broke off", "RemoteProtocolError"),
    ]
    assert tuple(heard) == trace


@pytest.mark.parametrize("link", ["__cause__", "__context__"])
def test_chained_exceptions_are_followed(http, link):
    client = build_client([refuse], http=http, transport=Script())
    with pytest.raises(http.HTTPError) as caught:
        client.get(URL)
    between, mine = KeyError("between"), ValueError("mine")
    setattr(between, link, caught.value)
    setattr(mine, link, between)
    assert told(explain(mine)) == [("Guard", "refused", "full")]
    assert refusal_of(mine) is caught.value


def test_the_nearest_call_of_a_chain_is_the_one_explained():
    with build_client([], transport=Script(500, "ReadError")) as client:
        try:
            client.get(URL).raise_for_status()
        except Exception:
            with pytest.raises(Exception, match="scripted") as caught:
                client.get(URL)
    assert told(explain(caught.value)) == [("transport", "failed", "ReadError")]


def test_a_chain_that_bites_its_tail_ends():
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    assert explain(one) == ()
    assert refusal_of(one) is None


def test_what_an_sdk_wraps_around_a_response_is_followed(http):
    with build_client([], http=http, transport=Script(200)) as client:
        response = client.get(URL)
    for name in ("response", "http_response"):
        assert told(explain(SimpleNamespace(**{name: response}))) == [("transport", "answered", "200")]


@pytest.mark.parametrize(
    "stranger", [None, 3, "x", object(), ValueError("x"), SimpleNamespace(response=None)], ids=lasting
)
def test_a_stranger_has_no_trace_and_no_refusal(stranger):
    assert explain(stranger) == ()
    assert str(explain(stranger)) == NOTHING
    assert refusal_of(stranger) is None


@pytest.mark.parametrize("extensions", [{}, {"dspex": {"deadline": 3}}, None, 7])
def test_a_thing_with_other_extensions_is_a_stranger(http, extensions):
    with http.Client(transport=http.MockTransport(lambda request: http.Response(200))) as client:
        assert explain(client.get(URL)) == ()
    assert explain(SimpleNamespace(extensions=extensions)) == ()


def test_a_property_that_raises_is_not_run():
    class Shy:
        @property
        def response(self):
            raise RuntimeError("not yet")

    assert explain(Shy()) == ()


def test_a_refusal_that_never_passed_an_edge_is_its_own():
    plain = BreakerOpen("open")
    assert refusal_of(plain) is plain
    assert explain(plain) == ()


def test_a_refusal_that_a_layer_caught_is_not_what_the_call_ended_with():
    async def fallback(request, call_next):
        try:
            return await call_next(request)
        except Overloaded:
            return respond(request, 200)

    with build_client([fallback, refuse], transport=Script()) as client:
        assert refusal_of(client.get(URL)) is None


# Who is told


def test_on_event_sees_each_event_in_order_as_it_happens(world):
    events, at_second = [], []

    def answer(request):
        at_second.extend(events)
        return 200

    async def main():
        pipeline = Pipeline([RETRY], on_event=events.append)
        async with world.client(pipeline, transport=Script(503, answer), io=VirtualIO()) as client:
            return await client.get(URL)

    response = world.run(main)
    assert events == list(explain(response))
    assert told(events) == [
        ("transport", "answered", "503"),
        ("Retry", "retries", "status 503"),
        ("transport", "answered", "200"),
    ]
    assert at_second == events[:2]


def test_what_on_event_raises_is_logged_and_changes_nothing(world, caplog):
    calls = []

    def broken(event):
        calls.append(event)
        raise ZeroDivisionError("observer")

    async def main():
        pipeline = Pipeline([RETRY], on_event=broken)
        async with world.client(pipeline, transport=Script(503, 200), io=VirtualIO()) as client:
            return await client.get(URL)

    with caplog.at_level(logging.ERROR, "dspex_pipe"):
        response = world.run(main)
    assert response.status_code == 200
    assert len(calls) == len(explain(response)) == 3
    assert [record.getMessage() for record in caplog.records] == ["an on_event callback failed"] * 3
    assert {record.exc_info[0] for record in caplog.records} == {ZeroDivisionError}


def test_a_refusal_is_told_too():
    events = []
    with build_client(
        Pipeline([refuse], on_event=events.append), transport=Script(), refusals="respond"
    ) as client:
        response = client.get(URL)
    assert events == list(explain(response))
    assert told(events) == [("Guard", "refused", "full")]


# The record


def test_the_trace_keeps_the_newest_256_events_and_tells_them_all():
    events = []

    async def chatty(request, call_next):
        record = record_of(request)
        for number in range(300):
            event = record.emit("chatty", "counts", str(number))
            assert event.reason == str(number)
        return await call_next(request)

    with build_client(Pipeline([chatty], on_event=events.append), transport=Script(200)) as client:
        trace = explain(client.get(URL))
    assert len(events) == 301
    assert len(trace) == 256
    assert (trace[0].reason, trace[-2].reason, trace[-1].decision) == ("45", "299", "answered")


def test_a_record_knows_what_is_left_and_what_the_request_is():
    io, seen = VirtualIO(), []

    async def look(request, call_next, io):
        record = record_of(request)
        before = record.remaining()
        await io.sleep(2)
        seen.append((before, record.remaining(), record.completion(request)))
        assert record.completion(request) is record.completion(request)
        return await call_next(request)

    with build_client([look], transport=Script(200, forever=True), io=io) as client:
        client.get(URL)
        client.get(URL, headers={"x-dspex-deadline": "5"})
        body = {"model": "m", "input": "hi", "stream": True}
        client.post("http://upstream.test/openai/v1/responses", json=body)
    assert seen[:2] == [(None, None, None), (5, 3, None)]
    completion = seen[2][2]
    assert (completion.format, completion.model, completion.stream) == ("openai.responses", "m", True)


def test_a_request_without_its_record_is_told_what_to_do(http):
    for extensions in (None, {"dspex": {"deadline": 3}}):
        with pytest.raises(LayerError, match=r'no extensions\["dspex"\]: hand on the request you were given'):
            record_of(http.Request("GET", URL, extensions=extensions))
