"""Faults on purpose: who gets which, what each does in every mode and library, and that nothing is left."""

from __future__ import annotations

import gzip
import json
import threading

import anyio
import httpx
import httpx2
import openai
import pytest
from hypothesis import given, strategies as st

from dspex_pipe import Breaker, DeadlineExceeded, Pipeline, Retry, build_client, explain, options
from dspex_pipe.chaos import (
    Chaos,
    DoneWithoutFinish,
    Drip,
    Fault,
    Latency,
    Overload,
    Raise,
    SseError,
    Stall,
    Status,
    Throttle,
    Truncate,
)
from dspex_pipe.faults.edits import (
    Mark,
    after_bytes as _after_bytes,
    after_events as _after_events,
    drip as _drip,
    insert as _insert,
    unfinish as _unfinish,
)
from dspex_pipe.layers.chaos import Lots
from dspex_pipe.testing import Reply, Script, VirtualIO, check_layer
from test_sdks import Rig, kinds

URL = "http://llm.test/"
CHAT = "/v1/chat/completions"
ASK = {"model": "ok", "messages": [{"role": "user", "content": "hi"}]}
STREAM = {**ASK, "stream": True}
EVENTS = [
    b"data: 1\n\n",
    b": ping\n\n",
    b"data: 2\ndata: 2b\n\n",
    b"event: x\ndata: 3\n\n",
    b"data: [DONE]\n\n",
]
SSE = b"".join(EVENTS)
HEADERS = {"content-type": "text/event-stream; charset=utf-8"}
RETRY = Retry(wait_initial=0, wait_jitter=0)
FAULTS = [
    Latency(1.5, jitter=0.5),
    Raise("ConnectError"),
    Status(503),
    Throttle(retry_after=0.0015),
    Overload(),
    SseError(after=2, error="api_error"),
    Truncate(after=1, clean=True),
    Truncate(after=1, unit="bytes"),
    Stall(after=0, seconds=3),
    Drip(size=4, every=0),
    DoneWithoutFinish(),
]


# Values


@pytest.mark.parametrize("fault", FAULTS, ids=repr)
def test_a_fault_is_a_value(fault):
    again = eval(repr(fault))
    assert again == fault
    assert hash(again) == hash(fault)
    assert repr(Chaos(fault)) == f"Chaos({fault!r})"
    with pytest.raises(AttributeError):
        fault.rate = 0.5


def test_a_chaos_is_a_value():
    chaos = Chaos(Status(503, rate=0.5, times=2), Overload(), seed=3, rate=0.25)
    assert repr(chaos) == "Chaos(Status(503, rate=0.5, times=2), Overload(), seed=3, rate=0.25)"
    assert chaos == eval(repr(chaos))
    assert chaos != Chaos(Overload())
    with pytest.raises(AttributeError):
        chaos.seed = 4


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (Chaos, "takes faults to inject, one or more of DoneWithoutFinish, Drip, .*; got none"),
        (lambda: Chaos(503), "takes faults, .*Truncate; got 503"),
        (lambda: Chaos(Status), "takes faults, .*; got <class"),
        (lambda: Chaos(Overload(), seed=0.5), "seed=….* takes a whole number, got 0.5"),
        (lambda: Chaos(Overload(), rate=2), "rate=….* takes a number from 0 to 1, got 2"),
        (lambda: Overload(rate=-1), "rate=….* takes a number from 0 to 1, or None, got -1"),
        (lambda: Overload(times=0), "times=….* takes a whole number, 1 or more, or None, got 0"),
        (lambda: Overload(when=1), "when=….* takes a function of the request, or None, got 1"),
        (lambda: Latency(-1), "seconds=….* takes a number of seconds, 0 or more, got -1"),
        (lambda: Latency(1, jitter=True), "jitter=….* takes a number of seconds"),
        (lambda: Raise("Error"), "error=….* takes one of CloseError, ConnectError, .*, got 'Error'"),
        (lambda: Status(99), "status=….* takes an HTTP status, 200 to 599, got 99"),
        (lambda: Throttle(retry_after=-1), "retry_after=….* takes a number of seconds"),
        (lambda: SseError(after=-1), "after=….* takes a whole number, 0 or more"),
        (lambda: SseError(after=0, error=""), "error=….* takes a word, got ''"),
        (lambda: Truncate(after=1, unit="lines"), 'unit=….* takes "events" or "bytes", got \'lines\''),
        (lambda: Truncate(after=1, clean=1), "clean=….* takes True or False, got 1"),
        (lambda: Drip(size=0), "size=….* takes a whole number, 1 or more"),
    ],
)
def test_a_bad_value_says_what_is_allowed(make, told):
    with pytest.raises(ValueError, match=told):
        make()


# Who gets what


def course(chaos, calls):
    """What so many calls get, each with its first random number."""
    lots = Lots(chaos)
    fits = [True] * len(chaos.faults)
    return [[(fault, random.random()) for fault, random in lots.next(fits)] for _ in range(calls)]


@given(st.integers(), st.floats(0, 1), st.integers(1, 5))
def test_the_same_seed_gives_the_same_faults(seed, rate, times):
    chaos = Chaos(Status(500), Overload(rate=0.5, times=times), seed=seed, rate=rate)
    assert course(chaos, 30) == course(chaos, 30)
    assert sum(fault == chaos.faults[1] for call in course(chaos, 30) for fault, _ in call) <= times


def test_another_seed_gives_others_and_the_rate_is_kept():
    one, two = (course(Chaos(Status(500), seed=seed, rate=0.3), 2000) for seed in (1, 2))
    assert one != two
    for drawn in (one, two):
        assert 500 < sum(map(len, drawn)) < 700


def test_the_course_is_the_same_in_every_version():
    hits = [bool(call) for call in course(Chaos(Status(500), seed=7, rate=0.5), 12)]
    assert "".join("x" if hit else "." for hit in hits) == ".x.xx.x.xxx."


def test_faults_are_drawn_apart_from_each_other():
    def of(*others):
        return [
            [random for fault, random in call if fault == Status(500)]
            for call in course(Chaos(Status(500), *others, rate=0.5), 50)
        ]

    assert of() == of(Overload(), Latency(1))


def test_calls_at_once_get_the_faults_of_calls_in_a_row():
    def run(at_once):
        pipeline = Pipeline([Chaos(Status(500), Status(502, times=9), seed=4, rate=0.4)])
        client = pipeline.client(transport=Script(200, forever=True), io=VirtualIO())
        statuses = []

        def calls():
            statuses.extend(client.get(URL).status_code for _ in range(200 // at_once))

        threads = [threading.Thread(target=calls) for _ in range(at_once)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sorted(statuses), pipeline.snapshot()

    assert run(1) == run(8)


def test_when_times_and_the_option_bound_it():
    chaos = Chaos(Status(500, when=lambda request: request.url.path == "/a"), Status(502, times=1))
    pipeline = Pipeline([chaos])
    client = pipeline.client(transport=Script(200, forever=True), io=VirtualIO())

    def get(path, **kwargs):
        return client.get(f"http://x.test{path}", **kwargs).status_code

    assert get("/b", extensions=options(chaos=False)) == 200
    assert get("/b", headers={"x-dspex-chaos": "off"}) == 200
    assert [get("/a"), get("/b"), get("/b", extensions=options(chaos=True))] == [500, 200, 200]
    assert pipeline.snapshot()["layers"] == [{"layer": "Chaos", "calls": 3, "drawn": [1, 1]}]
    with pytest.raises(ValueError, match="takes True or False"):
        get("/a", headers={"x-dspex-chaos": "maybe"})


def test_a_fault_of_ones_own():
    class Polite(Fault):
        async def inject(self, request, call_next, io, random):
            request.headers["x-please"] = "1"
            return await call_next(request)

    script = Script(200, forever=True)
    client = build_client(layers=[Chaos(Polite())], transport=script)
    sent = client.build_request("GET", URL)
    client.send(sent)
    assert script.requests[0].headers["x-please"] == "1"
    assert "x-please" not in sent.headers


# What becomes of a body


def play(edit, pieces):
    """The bytes that a reader gets, and the rest that happens, in order."""
    body, rest = b"", []
    for piece in [*pieces, b""]:
        for step in edit(piece):
            if isinstance(step, bytes):
                body += step
            else:
                rest.append(step)
                if step in {Mark.END, Mark.BREAK}:
                    return body, rest
    return body, rest


def cut_up(draw, body):
    cuts = sorted(set(draw(st.lists(st.integers(1, len(body) - 1), max_size=12))))
    return [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]


@given(st.data(), st.sampled_from([b"\n", b"\r\n", b"\r"]), st.integers(0, 6))
def test_any_split_cuts_at_the_same_event(data, line_end, after):
    events = [event.replace(b"\n", line_end) for event in EVENTS]
    pieces = cut_up(data.draw, b"".join(events))
    ends = [0, 1, 3, 4, 5]  # the comment is no event: it goes with the next one
    body, rest = play(_insert(_after_events(after), [Mark.END]), pieces)
    if after > 4:
        assert (body, rest) == (b"".join(events), [])
    else:
        assert body == b"".join(events[: ends[after]])
        assert rest == [Mark.NOW, Mark.END]


@given(st.data(), st.integers(0, 80))
def test_any_split_cuts_at_the_same_byte(data, after):
    body, rest = play(_insert(_after_bytes(after), [2.0]), cut_up(data.draw, SSE))
    assert body == SSE
    assert rest == ([Mark.NOW, 2.0] if after <= len(SSE) else [])
    assert play(_insert(_after_bytes(after), [Mark.BREAK]), cut_up(data.draw, SSE))[0] == SSE[:after]


@given(st.data(), st.integers(1, 30))
def test_dripped_bytes_are_the_same_bytes(data, size):
    pieces = cut_up(data.draw, SSE)
    body, rest = play(_drip(size, 0.5), pieces)
    assert body == SSE
    assert rest[0] is Mark.NOW
    assert rest[1:] == [0.5] * sum(-(-len(piece) // size) for piece in pieces)


TRAP = {"choices": [{"delta": {"content": '"finish_reason": "stop"'}, "finish_reason": None}]}
LAST = b'data: {"choices": [{"delta": {}, "finish_reason" : "stop"}, {"finish_reason":"length"}]}'
NULL = b'data: {"choices": [{"delta": {}, "finish_reason" : null}, {"finish_reason":null}]}'


@given(st.data(), st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_any_split_loses_its_finish_reasons_and_nothing_else(data, line_end):
    head = f"data: {json.dumps(TRAP)}".encode()
    ends = line_end * 2
    for last in ([b"data: [DONE]", b""], []):  # with a whole end, or in the midst of a line
        body = ends.join([head, LAST, *last])
        expected = ends.join([head, NULL, *last])
        assert play(_unfinish(), cut_up(data.draw, body)) == (expected, [Mark.NOW])
    assert play(_unfinish(), cut_up(data.draw, head)) == (head, [])


# Each fault, in every mode and library


class Call:
    """One streamed call through Chaos to a script, and everything that came of it."""

    def __init__(self, world, faults, reply, *, body=STREAM, layers=(), path=CHAT, **kwargs):
        self.io = VirtualIO()
        steps = reply if isinstance(reply, list) else [reply]
        self.script = Script(*steps, io=self.io, forever=True)
        self.pipeline = Pipeline([*layers, Chaos(*faults)])
        self.error = None
        self.body = b""

        async def main():
            async with world.client(self.pipeline, transport=self.script, io=self.io) as client:
                try:
                    self.response = await client.open("POST", f"http://llm.test{path}", json=body, **kwargs)
                except world.http.HTTPError as exc:
                    self.error, self.trace = exc, explain(exc)
                    return
                await self.read(world)
                self.trace = explain(self.response)
                await client.drop(self.response)

        world.run(main)
        self.told = [event.reason for event in self.trace if event.layer == "Chaos"]
        assert self.script.open == 0

    async def read(self, world):
        try:
            if world.blocking:
                for piece in self.response.iter_raw():
                    self.body += piece
            else:
                async for piece in self.response.aiter_raw():
                    self.body += piece
        except world.http.HTTPError as exc:
            self.error = exc


def sse(*pieces, **headers):
    return Reply(chunks=pieces or (SSE,), headers={**HEADERS, **headers})


def test_latency_waits_before_sending(world):
    call = Call(world, [Latency(2, jitter=1)], sse())
    (event,) = [event for event in call.trace if event.layer == "Chaos"]
    assert (event.decision, event.reason) == ("injects", "Latency(2, jitter=1)")
    assert 2 <= call.io.now() <= 3
    assert event.seconds == call.io.now()
    assert call.body == SSE


def test_latency_ends_with_the_read_timeout_or_the_deadline(world):
    call = Call(world, [Latency(60)], sse())
    assert type(call.error) is world.http.ReadTimeout
    assert (call.io.now(), call.script.requests) == (5.0, [])
    call = Call(world, [Latency(60)], sse(), extensions=options(deadline=3))
    assert isinstance(call.error, DeadlineExceeded)
    assert (call.io.now(), call.script.requests) == (3.0, [])
    call = Call(world, [Latency(60)], sse(), timeout=None)
    assert (call.io.now(), call.body) == (60.0, SSE)


@pytest.mark.parametrize("name", ["ConnectError", "ReadTimeout", "RemoteProtocolError", "PoolTimeout"])
def test_raise_raises_the_librarys_own_error(world, name):
    call = Call(world, [Raise(name)], sse())
    assert type(call.error) is getattr(world.http, name)
    assert str(call.error) == "injected by Chaos"
    assert call.error.request.url.path == CHAT
    assert (call.told, call.script.requests) == ([f"Raise('{name}')"], [])


MESSAGES = "/v1/messages"


@pytest.mark.parametrize(
    ("fault", "path", "status", "error"),
    [
        (Status(503), CHAT, 503, {"type": "server_error", "code": None}),
        (Status(404), CHAT, 404, {"type": "invalid_request_error", "code": None}),
        (Status(401), CHAT, 401, {"type": "invalid_request_error", "code": "invalid_api_key"}),
        (Throttle(), CHAT, 429, {"type": "requests", "code": "rate_limit_exceeded"}),
        (Overload(), CHAT, 529, {"type": "overloaded_error", "code": "overloaded_error"}),
        (Status(503), MESSAGES, 503, {"type": "api_error"}),
        (Status(422), MESSAGES, 422, {"type": "invalid_request_error"}),
        (Throttle(), MESSAGES, 429, {"type": "rate_limit_error"}),
        (Overload(), MESSAGES, 529, {"type": "overloaded_error"}),
        (Overload(), "/orders", 529, {"type": "overloaded_error", "code": "overloaded_error"}),
    ],
)
def test_statuses_have_the_providers_error_body(world, fault, path, status, error):
    call = Call(world, [fault], sse(), path=path)
    assert call.response.status_code == status
    got = json.loads(call.body)
    assert (got.get("type") == "error") == (path == MESSAGES)
    assert got["error"].items() >= {"message": "injected by Chaos", **error}.items()
    assert (call.told, call.script.requests) == ([fault.told], [])


def test_a_throttle_says_when_to_come_back(world):
    headers = Call(world, [Throttle(retry_after=0.25)], sse()).response.headers
    assert (headers["retry-after"], headers["retry-after-ms"]) == ("1", "250")


def test_a_status_below_400_has_no_body(world):
    call = Call(world, [Status(204)], sse())
    assert (call.response.status_code, call.body) == (204, b"")


COMPLETIONS = {"model": "m", "prompt": "hi", "stream": True}
RESPONSES = {"model": "m", "input": "hi", "stream": True}


PLAIN_ERROR = (
    b'data: {"error": {"message": "injected by Chaos", "type": "overloaded_error", "param": null, '
    b'"code": "overloaded_error"}}\n\n'
)
RESPONSES_ERROR = (
    b'event: error\ndata: {"type": "error", "code": "overloaded_error", "message": "injected by Chaos", '
    b'"param": null, "sequence_number": 2}\n\n'
)
ANTHROPIC_ERROR = (
    b'event: error\ndata: {"type": "error", "error": {"type": "overloaded_error", '
    b'"message": "injected by Chaos"}}\n\n'
)


@pytest.mark.parametrize(
    ("path", "body", "error"),
    [
        (CHAT, STREAM, PLAIN_ERROR),
        ("/v1/completions", COMPLETIONS, PLAIN_ERROR),
        ("/v1/responses", RESPONSES, RESPONSES_ERROR),
        (MESSAGES, STREAM, ANTHROPIC_ERROR),
    ],
    ids=["chat", "completions", "responses", "messages"],
)
def test_an_error_event_speaks_the_calls_format(world, path, body, error):
    reply = sse(SSE[:5], SSE[5:], **{"content-length": str(len(SSE))})
    call = Call(world, [SseError(after=2)], reply, path=path, body=body)
    assert call.body == b"".join(EVENTS[:3]) + error
    assert call.told == ["SseError(after=2)"]
    assert call.script.requests[0].headers["accept-encoding"] == "identity"
    assert "content-length" not in call.response.headers  # it would be a lie


def test_an_error_event_may_be_the_first_or_never_come(world):
    assert Call(world, [SseError(after=0)], sse()).body.startswith(b'data: {"error"')
    call = Call(world, [SseError(after=9)], sse())
    assert (call.body, call.told) == (SSE, [])


def test_what_cannot_be_understood_passes_by(world):
    faults = [SseError(after=0), DoneWithoutFinish(), Truncate(after=0), Stall(after=0, seconds=9)]
    zipped = gzip.compress(SSE)
    plain = Reply(chunks=[SSE], headers={"content-type": "text/plain"})
    for reply, body in [(sse(zipped, **{"content-encoding": "gzip"}), zipped), (plain, SSE)]:
        call = Call(world, faults, reply)
        assert (call.body, call.told, call.io.now()) == (body, [], 0.0)


def test_only_calls_that_it_fits_use_up_an_error_event(world):
    call = Call(world, [SseError(after=0), DoneWithoutFinish()], sse(), body=ASK)
    assert call.pipeline.snapshot()["layers"][0]["drawn"] == [0, 0]
    assert "identity" not in call.script.requests[0].headers["accept-encoding"]
    call = Call(world, [SseError(after=0), DoneWithoutFinish()], sse(), path=MESSAGES)
    assert call.pipeline.snapshot()["layers"][0]["drawn"] == [1, 0]


@pytest.mark.parametrize(
    ("unit", "after", "body"), [("events", 2, b"".join(EVENTS[:3])), ("bytes", 7, SSE[:7])]
)
@pytest.mark.parametrize("clean", [True, False])
def test_a_stream_is_truncated(world, unit, after, body, clean):
    fault = Truncate(after=after, unit=unit, clean=clean)
    call = Call(world, [fault], sse(*EVENTS))
    assert call.body == body
    assert call.told == [fault.told]
    assert call.error is None if clean else type(call.error) is world.http.RemoteProtocolError


def test_compressed_bytes_are_cut_where_they_are(world):
    zipped = gzip.compress(SSE)
    call = Call(
        world, [Truncate(after=9, unit="bytes", clean=True)], sse(zipped, **{"content-encoding": "gzip"})
    )
    assert call.body == zipped[:9]


def test_a_stall_goes_on(world):
    call = Call(world, [Stall(after=1, seconds=4)], sse())
    assert (call.body, call.io.now(), call.told) == (SSE, 4.0, ["Stall(after=1, seconds=4)"])


def test_a_stall_ends_with_the_read_timeout_or_at_the_deadline(world):
    call = Call(world, [Stall(after=1, seconds=60)], sse())
    assert (call.body, call.io.now()) == (EVENTS[0], 5.0)
    assert type(call.error) is world.http.ReadTimeout
    call = Call(world, [Stall(after=1, seconds=60)], sse(), extensions=options(deadline=3))
    assert (call.body, call.io.now()) == (SSE, 3.0)


def test_a_body_drips(world):
    call = Call(world, [Drip(size=10, every=0.5)], sse(SSE[:25], b"", SSE[25:]))
    assert call.body == SSE
    assert call.io.now() == 0.5 * (3 + -(-(len(SSE) - 25) // 10))
    assert call.told == ["Drip(size=10, every=0.5)"]


def test_a_chat_is_done_without_finish(world):
    end = b"\n\ndata: [DONE]\n\n"
    call = Call(world, [DoneWithoutFinish()], sse(LAST + end))
    assert (call.body, call.told) == (NULL + end, ["DoneWithoutFinish()"])


def test_faults_meet_in_the_order_of_the_list(world):
    call = Call(world, [Latency(1), Stall(after=1, seconds=2), Truncate(after=2), Status(500, rate=0)], sse())
    assert call.body == b"".join(EVENTS[:3])
    assert call.told == ["Latency(1)", "Stall(after=1, seconds=2)", "Truncate(after=2)"]
    assert call.io.now() == 3.0


def test_a_body_that_breaks_off_by_itself_still_does(world):
    reply = Reply(chunks=EVENTS, headers=HEADERS, error="ReadError")
    call = Call(world, [Drip(size=99, every=0)], reply)
    assert (call.body, type(call.error)) == (SSE, world.http.ReadError)


def test_a_plain_answer_breaks_off_within_its_attempt(world):
    layers, reply = [RETRY, Breaker()], Reply(json={"a": 1})
    call = Call(world, [Truncate(after=3, unit="bytes", times=2)], reply, layers=layers, body=ASK)
    assert call.body == b'{"a": 1}'
    assert len(call.script.requests) == 3
    call = Call(
        world, [Stall(after=3, unit="bytes", seconds=9)], reply, body=ASK, extensions=options(deadline=2)
    )
    assert isinstance(call.error, DeadlineExceeded)
    assert call.io.now() == 2.0


def test_an_empty_piece_is_no_end_and_the_end_stays():
    pieces = [b"", b"data: 1\n\n", b"", b"data: 2\n\n"]
    upstream = httpx.MockTransport(lambda request: httpx.Response(200, headers=HEADERS, content=iter(pieces)))
    client = build_client(layers=[Chaos(Truncate(after=2, clean=True))], transport=upstream)
    with client.stream("GET", URL) as response:
        stream = iter(response.stream)
        assert list(stream) == [b"data: 1\n\n", b"data: 2\n\n"]
        assert next(stream, None) is None
        source = response.stream._stream.source  # httpx looks after its own stream itself
        assert next(source, None) is None


# Early close and cancellation

# What httpx itself does on trio when a stream is left early, without any layer.
left_early = pytest.mark.filterwarnings("ignore:Async generator 'httpcore:ResourceWarning")


def test_a_reader_who_leaves_closes_what_is_below_once(world):
    async def main():
        script = Script(sse(*EVENTS), forever=True)
        faults = [Drip(size=5, every=0), SseError(after=4), Stall(after=3, seconds=0)]
        async with world.client([Chaos(*faults)], transport=script, io=VirtualIO()) as client:
            response = await client.open("POST", f"http://x.test{CHAT}", json=STREAM)
            assert await client.read_one(response) == SSE[:5]
            await client.drop(response)
            unread = await client.open("POST", f"http://x.test{CHAT}", json=STREAM)
            await client.drop(unread)
            ended = await client.open("POST", f"http://x.test{CHAT}", json=STREAM)
            await client.read(ended)
            await client.drop(ended)
        assert [body.closes for body in script.bodies] == [1, 1, 1]

    world.run(main)


@left_early
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("fault", [Latency(60), Stall(after=1, seconds=60), Drip(every=60)], ids=repr)
def test_a_cancelled_call_leaves_nothing_open(backend, fault, provider):
    async def main():
        pipeline = Pipeline([Chaos(fault)])
        async with pipeline.async_client(http=httpx, timeout=None) as client:
            with anyio.move_on_after(0.02) as scope:
                async with client.stream("POST", provider.url + CHAT, json=STREAM) as response:
                    async for _ in response.aiter_raw():
                        pass
            assert scope.cancelled_caught
            pool = client._transport.inner._pool
            assert not pool.connections or all(connection.is_idle() for connection in pool.connections)
            again = await client.post(provider.url + CHAT, json=STREAM, extensions=options(chaos=False))
            assert b"[DONE]" in again.content

    anyio.run(main, backend=backend)


# Real sockets


STREAM_FAULTS = [
    (SseError(after=2), None, b'"error"'),
    (Truncate(after=2), "RemoteProtocolError", b"two."),
    (Truncate(after=2, clean=True), None, b"two."),
    (Truncate(after=20, unit="bytes"), "RemoteProtocolError", b"data: "),
    (Stall(after=1, seconds=3), None, b"[DONE]"),
    (Stall(after=1, seconds=30), "ReadTimeout", b"Forty-"),
    (Drip(size=50, every=0.1), None, b"[DONE]"),
    (DoneWithoutFinish(), None, b"[DONE]"),
]


@left_early
@pytest.mark.parametrize(("fault", "error", "seen"), STREAM_FAULTS, ids=repr)
def test_stream_faults_on_real_sockets(world, provider, fault, error, seen):
    async def main():
        pipeline = Pipeline([Chaos(fault)])
        async with world.client(pipeline, io=VirtualIO()) as client:
            for _ in range(2):
                response = await client.open("POST", provider.url + CHAT, json=STREAM)
                try:
                    body = await client.read(response)
                    assert error is None
                    assert seen in body
                    assert b'"stop"' not in body or not isinstance(fault, DoneWithoutFinish)
                except world.http.HTTPError as exc:
                    assert type(exc).__name__ == error
                await client.drop(response)
                assert [event.reason for event in explain(response) if event.layer == "Chaos"] == [fault.told]
            whole = await client.post(provider.url + CHAT, json=STREAM, extensions=options(chaos=False))
            assert b"[DONE]" in whole.content
            pool = client.client._transport.inner._pool
            assert all(connection.is_idle() for connection in pool.connections)

    world.run(main)


PASSING = [
    Latency(1, jitter=1, times=1),
    Raise("ConnectError", times=1),
    Raise("ReadTimeout", times=1),
    Status(503, times=2),
    Throttle(retry_after=2, times=1),
    Overload(times=1),
    Truncate(after=9, unit="bytes", times=2),
    Stall(after=9, unit="bytes", seconds=60, times=1),
    Drip(size=9, every=0.01, times=1),
]


@pytest.mark.parametrize("fault", PASSING, ids=repr)
def test_retry_above_recovers_on_real_sockets(world, provider, fault):
    async def main():
        async with world.client([RETRY, Breaker(), Chaos(fault)], io=VirtualIO()) as client:
            answer = await client.post(provider.url + CHAT, json=ASK)
            assert answer.json()["choices"][0]["message"]["content"] == "Forty-two."
            assert fault.told in [event.reason for event in explain(answer)]

    world.run(main)


# The providers' SDKs


@kinds
@pytest.mark.parametrize(
    "fault", [Raise("ConnectError", times=2), Status(503, times=1), Throttle(times=1), Overload(times=2),
              Truncate(after=9, unit="bytes", times=1)], ids=repr,
)  # fmt: skip
def test_sdks_see_success_behind_retry(kind, provider, fault):
    with Rig(kind, provider, [RETRY, Chaos(fault)]) as rig:
        assert rig.text() == "Forty-two."


@kinds
@pytest.mark.parametrize("fault", [Throttle(), Overload(), Status(401)], ids=repr)
def test_sdks_read_our_error_bodies(kind, provider, fault):
    with Rig(kind, provider, [Chaos(fault)]) as rig:
        rig.sdk.max_retries = 0
        error = rig.fails()
        expected = {"Throttle": "RateLimitError", "Status": "AuthenticationError"}
        names = {cls.__name__ for cls in type(error).__mro__}
        assert expected.get(type(fault).__name__, "InternalServerError") in names
        assert "injected by Chaos" in str(error)
    assert provider.calls == 0


@kinds
@pytest.mark.parametrize(
    "fault", [Stall(after=2, seconds=60), Drip(size=7, every=1), Latency(9), Truncate(after=99)], ids=repr
)
def test_sdks_see_a_slow_stream_whole(kind, provider, fault):
    with Rig(kind, provider, [Chaos(fault)]) as rig:
        assert rig.pieces(rig.ask(stream=True)) == "Forty-two."


@kinds
def test_sdks_raise_an_error_event(kind, provider):
    with Rig(kind, provider, [Chaos(SseError(after=2))]) as rig:
        stream = rig.ask(stream=True)
        with pytest.raises(rig.module.APIError, match="injected by Chaos"):
            rig.pieces(stream)
        rig.done(stream.close())


@kinds
@pytest.mark.parametrize(
    ("fault", "name"),
    [(Truncate(after=1), "RemoteProtocolError"), (Stall(after=1, seconds=9999), "ReadTimeout")],
    ids=repr,
)
def test_sdks_hand_on_a_stream_that_breaks_off(kind, provider, fault, name):
    with Rig(kind, provider, [Chaos(fault)]) as rig:
        stream = rig.ask(stream=True)
        with pytest.raises((rig.module.APIConnectionError, httpx2.TransportError)) as caught:
            rig.pieces(stream)
        cause = caught.value.__cause__ or caught.value  # openai wraps it, anthropic does not
        assert type(cause).__name__ == name
        assert "injected by Chaos" in str(cause)
        rig.done(stream.close())


@kinds
def test_sdks_take_a_clean_truncation_for_the_end(kind, provider):
    with Rig(kind, provider, [Chaos(Truncate(after=1, clean=True))]) as rig:
        stream = rig.ask(stream=True)
        assert rig.pieces(stream) == ("Forty-" if rig.module is openai else "")
        rig.done(stream.close())


def test_the_openai_sdk_sees_done_without_finish(provider):
    with Rig(openai.OpenAI, provider, [Chaos(DoneWithoutFinish())]) as rig:
        chunks = list(rig.ask(stream=True))
        assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * 3
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Forty-two."


# The contract


@pytest.mark.parametrize(
    "fault",
    [
        Latency(0.5),
        Status(503, rate=0.5),
        Throttle(times=1),
        Raise("ConnectError", rate=0.5),
        Stall(after=1, seconds=1),
        Drip(size=2, every=0.1),
        DoneWithoutFinish(),
    ],
    ids=repr,
)
@pytest.mark.parametrize(
    "request_", [None, {"method": "POST", "url": f"http://l.test{CHAT}", "json": STREAM}]
)
def test_chaos_keeps_the_contract(fault, request_):
    check_layer(Chaos(fault), request=request_)
    check_layer(Pipeline([RETRY, Chaos(fault)]), request=request_)
