"""The edge: refusals in the caller's language, whose request it is, redirects, bodies, and the deadline."""

from __future__ import annotations

import asyncio
import gzip
import logging
import math
import pickle
import socket
from contextlib import ExitStack, contextmanager

import httpx
import httpx2
import pytest

from dspex_pipe import (
    Breaker,
    BreakerOpen,
    DeadlineExceeded,
    LayerError,
    Logging,
    Overloaded,
    Pipeline,
    RateLimited,
    Refused,
    Retry,
    Timeout,
    build_client,
    explain,
    options,
    record_of,
    refusal_of,
    respond,
)
from dspex_pipe.body import is_buffered
from dspex_pipe.testing import Reply, Script, VirtualIO
from modes import Face
from provider import Provider

URL = "http://upstream.test/thing"
CHAT = "http://upstream.test/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
STREAMED = {**BODY, "stream": True}
RETRY = Retry(wait_initial=0, wait_jitter=0)
MIB = 1 << 20


def refusing(refused):
    async def refuse(request, call_next):
        raise type(refused)(refused.reason, layer="Guard", retry_after=refused.retry_after, sent=refused.sent)

    return refuse


def watching(seen):
    """A layer that notes, of each response, its status and whether its body lies in memory."""

    async def watch(request, call_next):
        response = await call_next(request)
        seen.append((response.status_code, is_buffered(response)))
        return response

    return watch


@contextmanager
def full_backlog():
    """A server that accepts nobody: what connects to it waits."""
    with ExitStack() as sockets:
        server = sockets.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(4):
            filler = sockets.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(server.getsockname())
        yield "http://{}:{}/".format(*server.getsockname())


def noting(errors):
    """A layer that notes what it sees raised."""

    async def note(request, call_next):
        try:
            return await call_next(request)
        except Exception as exc:
            errors.append(exc)
            raise

    return note


async def same(request, call_next):
    return await call_next(request)


async def raw(world, response):
    """The body as the wire had it."""
    if world.blocking:
        return b"".join(response.iter_raw())
    return b"".join([piece async for piece in response.aiter_raw()])


# Refusals


REFUSED = [
    (Overloaded("full"), 503, "overloaded"),
    (BreakerOpen("open", retry_after=4), 503, "breaker_open"),
    (RateLimited("used up", retry_after=0.5), 429, "rate_limited"),
    (DeadlineExceeded("late", sent=True), 504, "deadline_exceeded"),
    (Refused("no"), 503, "refused"),
]
refused_cases = pytest.mark.parametrize(
    ("refused", "status", "code"), REFUSED, ids=lambda v: v.code if isinstance(v, Refused) else ""
)


@refused_cases
@pytest.mark.parametrize("refusals", ["auto", "raise"])
def test_a_refusal_is_raised_as_an_error_of_the_library_with_the_callers_request(
    world, refusals, refused, status, code
):
    script = Script()

    async def main():
        async with world.client([refusing(refused)], transport=script, refusals=refusals) as client:
            request = client.client.build_request("GET", URL)
            with pytest.raises(world.http.HTTPError, match=refused.reason) as caught:
                await client.send(request)
            return request, caught.value

    request, error = world.run(main)
    assert isinstance(error, type(refused))
    assert isinstance(error, world.http.TransportError)
    assert isinstance(error, world.http.TimeoutException) == (code == "deadline_exceeded")
    assert error.request is request
    assert ("nothing was sent" in str(error)) == (not refused.sent)
    assert refusal_of(error) is error
    assert [(event.layer, event.decision, event.reason) for event in explain(error)] == [
        ("Guard", "refused", refused.reason)
    ]
    assert script.requests == []
    assert type(pickle.loads(pickle.dumps(error))) is type(refused)


def test_an_error_of_the_wire_pickles_with_its_trace(world):
    """It comes back from a process pool with all that it can tell."""

    async def main():
        async with world.client(
            [RETRY], transport=Script(world.http.ConnectError("no"), forever=True)
        ) as client:
            with pytest.raises(world.http.ConnectError) as caught:
                await client.get(URL)
            return caught.value

    error = world.run(main)
    assert explain(pickle.loads(pickle.dumps(error))) == explain(error) != ()


@refused_cases
def test_respond_answers_instead(world, refused, status, code):
    async def main():
        async with world.client([refusing(refused)], transport=Script(), refusals="respond") as client:
            return await client.get(URL)

    response = world.run(main)
    assert type(response) is world.http.Response
    assert response.status_code == status
    assert response.headers["x-should-retry"] == "false"
    assert response.headers["content-type"] == "application/json"
    hints = [response.headers.get(name) for name in ("retry-after", "retry-after-ms")]
    wait = refused.retry_after
    assert hints == ([None, None] if wait is None else [str(math.ceil(wait)), str(math.ceil(wait * 1000))])
    document = response.json()
    assert document["type"] == "error"
    assert document["error"]["type"] == document["error"]["code"] == code
    assert document["error"]["message"] == str(refusal_of(response))
    assert type(refusal_of(response)).__name__ == type(refused).__name__


@pytest.mark.parametrize(
    ("refusals", "sdk", "answered"),
    [
        ("auto", True, True), ("auto", False, False), ("raise", True, False),
        ("raise", False, False), ("respond", True, True), ("respond", False, True),
    ],
)  # fmt: skip
def test_auto_responds_to_sdks_and_raises_to_others(http, refusals, sdk, answered):
    headers = {"X-Stainless-Lang": "python"} if sdk else {}
    pipeline = [refusing(Overloaded("full"))]
    with build_client(pipeline, http=http, transport=Script(), refusals=refusals) as client:
        if answered:
            assert client.get(URL, headers=headers).status_code == 503
        else:
            with pytest.raises(http.HTTPError, match="Guard: full"):
                client.get(URL, headers=headers)


@pytest.mark.parametrize("refusals", ["auto", "raise", "respond"])
def test_an_exception_that_is_no_refusal_reaches_a_plain_caller_as_it_was(world, refusals):
    async def main():
        async with world.client([same], transport=Script("ReadError"), refusals=refusals) as client:
            request = client.client.build_request("GET", URL)
            with pytest.raises(world.http.ReadError) as caught:
                await client.send(request)
            assert caught.value.request is request
            assert [event.decision for event in explain(caught.value)] == ["failed"]
            assert refusal_of(caught.value) is None

    world.run(main)


@pytest.mark.parametrize(("name", "status"), [("ReadError", 503), ("ConnectTimeout", 504)])
def test_what_is_left_after_our_retries_is_answered_where_responding_is_asked_for(world, name, status):
    script = Script(name, forever=True)

    async def main():
        async with world.client([RETRY], transport=script, io=VirtualIO(), refusals="respond") as client:
            return await client.get(URL)

    response = world.run(main)
    assert response.status_code == status
    assert response.json()["error"]["message"] == f"{name} after our own retries: scripted"
    assert len(script.requests) == 3


def test_a_bug_in_a_layer_is_never_answered_for(world):
    async def buggy(request, call_next):
        raise ZeroDivisionError("oops")

    async def main():
        async with world.client([RETRY, buggy], transport=Script(), refusals="respond") as client:
            with pytest.raises(ZeroDivisionError, match="oops"):
                await client.get(URL)

    world.run(main)


# Whose request it is


def test_the_callers_request_is_never_changed(world):
    async def scribble(request, call_next):
        request.headers["x-team"] = "search"
        del request.headers["x-mine"]
        request.extensions["more"] = 1
        return await call_next(request)

    script = Script(200)

    async def main():
        async with world.client([scribble], transport=script) as client:
            headers = {"x-mine": "1", "x-dspex-deadline": "9"}
            request = client.client.build_request("POST", URL, headers=headers, content=b"abc")
            raw, extensions = list(request.headers.raw), dict(request.extensions)
            response = await client.send(request)
            assert response.request is request
            assert request.headers.raw == raw
            assert request.extensions == extensions
            assert "dspex" not in request.extensions

    world.run(main)
    (sent,) = script.requests
    assert sent.headers["x-team"] == "search"
    assert "x-mine" not in sent.headers
    assert "x-dspex-deadline" not in sent.headers


def test_our_headers_are_taken_off_however_they_are_written(world, provider):
    ours = [("x-dspex-deadline", "9"), ("X-DSPEX-Skip", "same"), ("X-Dspex-Skip", "same"), ("x-else", "1")]

    async def main():
        async with world.client([same]) as client:
            await client.get(f"{provider.url}/echo", headers=ours)

    world.run(main)
    (seen,) = provider.seen
    assert seen.headers["x-else"] == "1"
    assert not [name for name in seen.headers if "dspex" in name]


@pytest.mark.parametrize("value", [b"a\r\nevil: 1", b"a\nb", b"a\rb", b"a\0b"], ids=repr)
@pytest.mark.parametrize("name", ["x-free", "x-dspex-deadline"])
def test_header_values_with_line_breaks_or_nul_are_refused_and_nothing_is_sent(world, name, value):
    script = Script()

    async def main():
        async with world.client([same], transport=script) as client:
            with pytest.raises(world.http.LocalProtocolError) as caught:
                await client.get(URL, headers={name: value})
            assert str(caught.value) == f"header {name!r} holds a CR, LF or NUL character"

    world.run(main)
    assert script.requests == []


# Redirects


def test_a_second_hop_shows_no_header_and_no_record_of_the_first(world):
    records = []

    async def stamp(request, call_next):
        records.append(record_of(request))
        if request.url.path == "/redirect":
            request.headers["x-team"] = "search"
        return await call_next(request)

    async def other(request, call_next):
        raise AssertionError("skipped on every hop")

    async def main():
        async with world.client([stamp, other], follow_redirects=True) as client:
            return await client.get(
                f"{here.url}/redirect?to={there.url}/echo",
                headers={"x-dspex-deadline": "20"},
                extensions=options(skip=["other"]),
            )

    with Provider() as here, Provider() as there:
        response = world.run(main)
    assert (here.calls, there.calls) == (1, 1)
    assert here.seen[0].headers["x-team"] == "search"
    assert "x-team" not in there.seen[0].headers
    assert not [name for seen in (*here.seen, *there.seen) for name in seen.headers if "dspex" in name]
    first, second = records
    assert first is not second
    assert first.call != second.call
    assert second.deadline == first.deadline
    assert [event.reason for event in explain(response)] == ["200"]
    assert [event.reason for event in explain(response.history[0])] == ["307"]
    for hop in (response, response.history[0]):
        assert hop.request.extensions["dspex"] == {"skip": ["other"]}, "the caller's own, and no record"


def hop(seconds, io, to="http://elsewhere.test/next"):
    """A redirect that takes this long."""

    def answer(request):
        io.advance(seconds)
        return Reply(status=307, headers={"location": to})

    return answer


@pytest.mark.parametrize("way", ["header", "extensions", "with"])
def test_the_deadline_is_one_absolute_time_over_all_hops(world, way):
    io, left = VirtualIO(start=100), []
    script = Script(hop(4, io), hop(3, io), 200, io=io)

    async def look(request, call_next):
        left.append(record_of(request).remaining())
        return await call_next(request)

    async def main():
        async with world.client([look], transport=script, io=io, follow_redirects=True) as client:
            if way == "with":
                with options(deadline=10):
                    return await client.get(URL)
            given = (
                {"headers": {"x-dspex-deadline": "10"}}
                if way == "header"
                else {"extensions": options(deadline=10)}
            )
            return await client.get(URL, **given)

    assert world.run(main).status_code == 200
    assert left == [10, 6, 3]


def test_a_deadline_passed_on_the_first_hop_stops_the_second(world):
    io = VirtualIO()
    script = Script(hop(11, io), io=io)

    async def main():
        async with world.client([same], transport=script, io=io, follow_redirects=True) as client:
            with pytest.raises(
                world.http.TimeoutException, match=r"the deadline has passed.*nothing was sent"
            ):
                await client.get(URL, extensions=options(deadline=10))

    world.run(main)
    assert len(script.requests) == 1


def test_the_next_call_has_a_deadline_of_its_own(world):
    """A redirect that nobody follows leaves nothing behind, nor does sending one request twice."""
    io, left = VirtualIO(), []
    script = Script(hop(4, io, to=URL), hop(4, io, to=URL), 200, 200, io=io)

    async def look(request, call_next):
        left.append(record_of(request).remaining())
        return await call_next(request)

    async def main():
        async with world.client([look], transport=script, io=io) as client:
            request = client.client.build_request("GET", URL, extensions=options(deadline=10))
            await client.send(request)
            await client.send(request)
            await client.get(URL, extensions=options(deadline=5))
            await client.get(URL)

    world.run(main)
    assert left == [10, 10, 5, None]


def test_calls_that_share_a_timeout_object_are_not_taken_for_hops_of_one_call(world):
    io, left = VirtualIO(), []
    shared = {**options(deadline=10), "timeout": {"connect": 5, "read": 5, "write": 5, "pool": 5}}

    async def look(request, call_next):
        left.append(record_of(request).remaining())
        return await call_next(request)

    async def main():
        script = Script(hop(4, io), 200, hop(4, io), 200, 200, io=io)
        async with world.client([look], transport=script, io=io) as client:
            assert (await client.get(URL, extensions=shared)).status_code == 307
            await client.get("http://another.test/", extensions=shared)
            await client.get(URL, extensions=shared, follow_redirects=True)
            await client.get("http://elsewhere.test/next", extensions=shared)

    world.run(main)
    assert left == [10, 10, 10, 6, 10]


# The deadline


def test_no_socket_operation_may_outlast_the_deadline(world):
    io, wire = VirtualIO(), []

    def note(request):
        wire.append(request.extensions["timeout"])
        io.advance(2)
        return 503

    timeout = world.http.Timeout(None, read=5, connect=600)

    async def main():
        async with world.client(
            [RETRY], transport=Script(note, forever=True), io=io, timeout=timeout
        ) as client:
            request = client.client.build_request("GET", URL, extensions=options(deadline=7))
            before = dict(request.extensions["timeout"])
            await client.send(request)
            assert request.extensions["timeout"] == before

    world.run(main)
    assert wire == [
        {"connect": 7, "read": 5, "write": 7, "pool": 7},
        {"connect": 5, "read": 5, "write": 5, "pool": 5},
        {"connect": 3, "read": 3, "write": 3, "pool": 3},
    ]


def test_without_a_deadline_the_timeouts_are_the_callers(world):
    script = Script(200)

    async def main():
        async with world.client([same], transport=script, timeout=600) as client:
            await client.get(URL)

    world.run(main)
    assert script.requests[0].extensions["timeout"] == dict.fromkeys(
        ("connect", "read", "write", "pool"), 600
    )


def test_a_deadline_that_has_passed_refuses_and_says_that_nothing_was_sent(world):
    io, script = VirtualIO(), Script()

    async def slow(request, call_next, io):
        await io.sleep(3)
        return await call_next(request)

    async def main():
        async with world.client([slow], transport=script, io=io) as client:
            with pytest.raises(world.http.TimeoutException) as caught:
                await client.get(URL, extensions=options(deadline=3))
            return caught.value

    error = world.run(main)
    assert str(error) == "transport: the deadline has passed (refused locally, nothing was sent)"
    assert isinstance(error, DeadlineExceeded)
    assert not error.sent
    assert script.requests == []
    assert [(event.decision, event.reason) for event in explain(error)] == [
        ("refused", "the deadline has passed")
    ]


def times_out(name, io, seconds):
    def answer(request):
        io.advance(seconds)
        return name

    return answer


def test_a_read_timeout_at_the_deadline_is_the_deadlines(world):
    io = VirtualIO()
    script = Script(times_out("ReadTimeout", io, 3), io=io)

    async def main():
        async with world.client([RETRY], transport=script, io=io) as client:
            with pytest.raises(DeadlineExceeded, match="passed while waiting for the server") as caught:
                await client.get(URL, extensions=options(deadline=3))
            return caught.value

    error = world.run(main)
    assert isinstance(error, world.http.TimeoutException)
    assert isinstance(error.__cause__, world.http.ReadTimeout)
    assert error.sent
    assert "nothing was sent" not in str(error)
    assert len(script.requests) == 1


@pytest.mark.parametrize("name", ["ConnectTimeout", "PoolTimeout"])
def test_a_connection_that_never_came_by_the_deadline_says_that_nothing_was_sent(http, name):
    io = VirtualIO()
    script = Script(times_out(name, io, 3), io=io)
    client = build_client([], http=http, transport=script, io=io)
    with pytest.raises(DeadlineExceeded, match="nothing was sent") as caught:
        client.get(URL, extensions=options(deadline=3))
    assert not caught.value.sent


def test_a_server_that_accepts_no_connection_until_the_deadline_trips_a_breaker(world):
    """Async clients are cut off wherever they wait; blocking ones hear of it as a timeout of the socket."""

    async def main():
        stack = Pipeline([Breaker(consecutive=1)])
        with full_backlog() as url:
            async with world.client(stack) as client:
                with pytest.raises(DeadlineExceeded):
                    await client.get(url, extensions=options(deadline=0.03))
        assert set(stack[Breaker].snapshot()["not_closed"].values()) == {"open"}

    world.run(main)


@pytest.mark.parametrize(("name", "seconds"), [("ReadTimeout", 2), ("ReadError", 3)])
def test_other_failures_stay_what_they_are(http, name, seconds):
    io = VirtualIO()
    script = Script(times_out(name, io, seconds), io=io)
    client = build_client([], http=http, transport=script, io=io)
    with pytest.raises(getattr(http, name)) as caught:
        client.get(URL, extensions=options(deadline=3))
    assert not isinstance(caught.value, Refused)


def test_a_body_that_drips_past_the_deadline_is_cut_off(world):
    """Each piece comes within the read timeout; all of them together do not come in time."""
    io = VirtualIO()
    reply = Reply(chunks=[b"x"] * 10, pause=1, headers={"content-type": "application/json"})
    script = Script(reply, io=io)

    async def main():
        async with world.client([same], transport=script, io=io) as client:
            with pytest.raises(world.http.TimeoutException) as caught:
                await client.post(CHAT, json=BODY, extensions=options(deadline=3.5))
            return caught.value

    error = world.run(main)
    assert isinstance(error, DeadlineExceeded)
    assert error.sent
    assert io.now() < 5
    assert script.open == 0


# Bodies


def json_reply(size, **more):
    headers = {"content-type": "application/json; charset=utf-8", "content-length": str(size)}
    return Reply(headers=headers, chunks=[b"1" * size], **more)


JSON = {"content-type": "application/json"}
SSE = {"content-type": "text/event-stream"}
EVENTS = [b"data: 1\n\n", b"data: 2\n\n"]
TYPED = {"content-type": "Application/Problem+JSON"}
BODIES = [
    ("json up to 1 MiB", "GET", URL, None, json_reply(MIB), True),
    ("json over 1 MiB", "GET", URL, None, json_reply(MIB + 1), False),
    ("problem+json", "GET", URL, None, Reply(content=b"{}", headers=TYPED), True),
    ("json of unknown length", "GET", URL, None, Reply(chunks=[b"{}"], headers=JSON), False),
    ("nonsense length", "GET", URL, None, Reply(headers={**JSON, "content-length": "-2"}), False),
    ("text", "GET", URL, None, Reply(content=b"hi", headers={"content-type": "text/plain"}), False),
    ("no type", "GET", URL, None, Reply(content=b"hi"), False),
    ("llm answer of unknown length", "POST", CHAT, BODY, Reply(chunks=[b"{", b"}"]), True),
    ("llm answer over 1 MiB", "POST", CHAT, BODY, json_reply(MIB + 1), True),
    ("llm error", "POST", CHAT, BODY, Reply(status=503, chunks=[b"busy"]), True),
    ("llm stream", "POST", CHAT, STREAMED, Reply(chunks=EVENTS, headers=SSE), False),
    ("llm stream without its type", "POST", CHAT, STREAMED, Reply(chunks=EVENTS), False),
    ("llm stream that fails", "POST", CHAT, STREAMED, Reply(status=429, chunks=[b"slow"]), True),
    ("events nobody asked for", "POST", CHAT, BODY, Reply(chunks=EVENTS, headers=SSE), False),
    ("look-alike path", "POST", CHAT, {"messages": [1]}, Reply(chunks=[b"{}"]), False),
]


@pytest.mark.parametrize(
    ("method", "url", "body", "reply", "read"), [b[1:] for b in BODIES], ids=[b[0] for b in BODIES]
)
def test_which_bodies_are_read_inside_the_stack(world, method, url, body, reply, read):
    seen, script = [], Script(reply)

    async def main():
        async with world.client([watching(seen)], transport=script) as client:
            response = await client.open(method, url, json=body)
            assert script.open == (not read)
            raw = await client.read(response)
            assert raw == (reply.content if reply.chunks is None else b"".join(reply.chunks))
            await client.drop(response)

    world.run(main)
    assert seen == [(reply.status, read)]
    assert script.open == 0


def test_truncation_of_a_plain_llm_answer_is_seen_inside_the_stack(world, provider):
    errors = []

    async def main():
        async with world.client([RETRY, noting(errors)]) as client:
            url = f"{provider.url}/v1/chat/completions"
            response = await client.post(url, json={**BODY, "model": "truncatex1"})
            assert response.json()["model"] == "truncatex1"
            return response

    response = world.run(main)
    assert [type(error).__name__ for error in errors] == ["RemoteProtocolError"]
    assert provider.calls == 2
    assert [event.decision for event in explain(response)] == ["failed", "retries", "answered"]


def test_truncation_of_json_with_a_length_is_seen_inside_the_stack(world, provider):
    errors = []

    async def main():
        async with world.client([RETRY, noting(errors)]) as client:
            response = await client.get(f"{provider.url}/status?fault=truncatex1")
            assert response.json() == {"ok": True}

    world.run(main)
    assert len(errors) == 1
    assert provider.calls == 2


def test_an_error_answer_to_a_streaming_llm_call_is_read_and_lets_go_of_its_connection(world, provider):
    seen = []

    async def main():
        async with world.client(
            [RETRY, watching(seen)], limits=world.http.Limits(max_connections=1)
        ) as client:
            url = f"{provider.url}/v1/chat/completions"
            response = await client.open("POST", url, json={**STREAMED, "model": "503x2"})
            assert b"Forty-" in await client.read(response)
            await client.drop(response)

    world.run(main)
    assert seen == [(503, True), (503, True), (200, False)]
    assert provider.connections == 1


def test_an_endless_watch_stays_a_stream_and_can_be_closed(world, provider):
    seen = []

    async def main():
        async with world.client([RETRY, watching(seen)]) as client:
            response = await client.open("GET", f"{provider.url}/watch")
            if world.mode != "trio":  # there, httpx's own generators complain of not being exhausted
                assert (await client.read_one(response)).startswith(b'{"type": "ADDED"}')
            await client.drop(response)
            assert (await client.get(f"{provider.url}/echo")).status_code == 200

    world.run(main)
    assert seen == [(200, False), (200, True)]


def test_a_buffered_body_is_handed_on_byte_for_byte_and_decoded_by_httpx(world):
    packed = gzip.compress(b'{"answer": 42}')
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    seen = []

    async def main():
        reply = Reply(content=packed, headers=headers)
        async with world.client([watching(seen)], transport=Script(reply, reply)) as client:
            assert (await client.get(URL)).json() == {"answer": 42}
            response = await client.open("GET", URL)
            assert response.headers["content-length"] == str(len(packed))
            assert await raw(world, response) == packed

    world.run(main)
    assert seen == [(200, True)] * 2


def test_a_switch_of_protocols_passes_untouched(world):
    network, stream = object(), []

    def answer(request):
        response = world.http.Response(
            101,
            headers={"upgrade": "websocket", "content-type": "application/json", "content-length": "5"},
            stream=world.http.ByteStream(b""),
            extensions={
                "network_stream": network,
                "http_version": b"HTTP/1.1",
                "reason_phrase": b"Switching",
            },
        )
        stream.append(response.stream)
        return response

    seen = []

    async def keep(request, call_next):
        response = await call_next(request)
        seen.append(response.stream)
        return response

    async def main():
        async with world.client([RETRY, keep], transport=world.http.MockTransport(answer)) as client:
            response = await client.open("POST", CHAT, json=BODY)
            assert response.status_code == 101
            assert response.extensions["network_stream"] is network
            assert (response.http_version, response.reason_phrase) == ("HTTP/1.1", "Switching")
            await client.drop(response)

    world.run(main)
    assert seen == stream


def test_extensions_go_down_to_the_wire_and_up_again(world):
    marker, script = object(), Script(200)

    async def main():
        async with world.client([same], transport=script) as client:
            await client.get(URL, extensions={"sni_hostname": "other.test", "trace": marker})

    world.run(main)
    sent = script.requests[0].extensions
    assert (sent["sni_hostname"], sent["trace"]) == ("other.test", marker)


def test_head_keeps_the_length_of_the_body_it_does_not_have(world):
    headers = {"content-type": "application/json", "content-length": "42"}

    async def main():
        async with world.client([RETRY], transport=Script(Reply(headers=headers, chunks=()))) as client:
            response = await client.request("HEAD", URL)
            assert response.headers["content-length"] == "42"
            assert response.content == b""

    world.run(main)


def test_a_real_head_request_works(world, provider):
    async def main():
        async with world.client([RETRY], limits=world.http.Limits(max_connections=1)) as client:
            response = await client.request("HEAD", f"{provider.url}/echo")
            assert (response.status_code, response.content) == (501, b"")
            assert (await client.get(f"{provider.url}/echo")).status_code == 200

    world.run(main)


def test_a_body_is_closed_once_however_many_layers_watch_it(world):
    async def main():
        script = Script(Reply(chunks=[b"one", b"two"]))
        async with world.client([Breaker(), Timeout(total=30), Breaker()], transport=script) as client:
            response = await client.open("GET", URL)
            assert await client.read_one(response) == b"one"
            await client.drop(response)
        assert [body.closes for body in script.bodies] == [1]

    world.run(main)


# What does not fit


@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "async"])
def test_a_body_of_the_other_mode_is_told(http, blocking):
    class WrongAsync(http.AsyncByteStream):
        async def __aiter__(self):
            yield b""

    class WrongSync(http.SyncByteStream):
        def __iter__(self):
            yield b""

    def answer(request):
        return http.Response(200, stream=WrongAsync() if blocking else WrongSync())

    wanted, got = ("SyncByteStream", "WrongAsync") if blocking else ("AsyncByteStream", "WrongSync")
    message = rf"the response's body, a .*{got}, is no {wanted}: it cannot be read .* respond\(request, …\)"

    async def main():
        face = Pipeline().client if blocking else Pipeline().async_client
        client = Face(face(http=http, transport=http.MockTransport(answer)), blocking)
        with pytest.raises(LayerError, match=message):
            await client.get(URL)
        await client.close()

    asyncio.run(main())


@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "async"])
def test_a_body_of_the_other_library_is_told(blocking):
    async def foreign(request, call_next):
        response = await call_next(request)
        response.stream = httpx2.ByteStream(b"{}")
        return response

    async def main():
        face = Pipeline([foreign]).client if blocking else Pipeline([foreign]).async_client
        client = Face(face(http=httpx, transport=Script(200)), blocking)
        with pytest.raises(LayerError, match=r"a ByteStream, is no (Sync|Async)ByteStream"):
            await client.get(URL)
        await client.close()

    asyncio.run(main())


# One pipeline's transport below another's


def stacked(world, outer, inner, bottom, io, **kwargs):
    """A client of one pipeline over the transport of another."""
    below = inner.transport(bottom, io=io) if world.blocking else inner.async_transport(bottom, io=io)
    return world.client(outer, transport=below, io=io, **kwargs)


def test_two_stacked_pipelines_share_one_record_and_one_trace(world):
    records, io = [], VirtualIO()

    async def look(request, call_next):
        records.append(record_of(request))
        return await call_next(request)

    script = Script(503, 200)

    async def main():
        async with stacked(world, Pipeline([look]), Pipeline([RETRY, look]), script, io) as client:
            return await client.get(URL, extensions=options(deadline=5))

    response = world.run(main)
    outer, first, second = records
    assert outer is first is second
    assert outer.remaining() == 5
    assert [event.decision for event in explain(response)] == ["answered", "retries", "answered"]
    assert len({event.call for event in explain(response)}) == 1


def test_the_log_line_of_stacked_pipelines_counts_each_attempt_once(world, caplog):
    caplog.set_level(logging.INFO, "dspex_pipe")
    io = VirtualIO()

    async def main():
        async with stacked(world, Pipeline([Logging()]), Pipeline([RETRY]), Script(503, 200), io) as client:
            await client.get(URL)

    world.run(main)
    (line,) = caplog.messages
    assert "2 attempts" in line


@pytest.mark.parametrize("refusals", ["auto", "respond"])
def test_a_refusal_below_is_raised_to_the_layers_above_and_rendered_once(world, refusals):
    errors, io = [], VirtualIO()
    inner = Pipeline([refusing(Overloaded("full"))])

    async def main():
        below = (inner.transport if world.blocking else inner.async_transport)(
            Script(), io=io, refusals=refusals
        )
        async with world.client([noting(errors)], transport=below, io=io) as client:
            with pytest.raises(world.http.TransportError, match="full") as caught:
                await client.get(URL)
            with pytest.raises(world.http.TransportError, match="full"):
                await client.get(URL, extensions=options(deadline=5))
            answer = await client.get(URL, headers={"x-stainless-lang": "python"})
            assert answer.status_code == 503
            return caught.value

    error = world.run(main)
    assert [type(e).__name__ for e in errors] == ["Overloaded"] * 3
    assert [event.decision for event in explain(error)] == ["refused"], "the wire was never reached"


def test_layers_above_do_not_retry_a_refusal_from_below(world):
    io, runs = VirtualIO(), []

    async def refuse(request, call_next):
        runs.append(request)
        raise Overloaded("full", layer="Guard")

    async def main():
        async with stacked(world, Pipeline([RETRY]), Pipeline([refuse]), Script(), io) as client:
            with pytest.raises(Overloaded):
                await client.get(URL)

    world.run(main)
    assert len(runs) == 1


def test_each_listener_of_two_stacked_pipelines_is_told_each_event_once(world):
    io, told = VirtualIO(), {"outer": [], "inner": []}

    def teller(name):
        return lambda event: told[name].append((event.layer, event.decision))

    outer = Pipeline([RETRY], on_event=teller("outer"))
    inner = Pipeline([same], on_event=teller("inner"))

    async def main():
        async with stacked(world, outer, inner, Script(503, 503, 200), io) as client:
            await client.get(URL)

    world.run(main)
    answered, retries = ("transport", "answered"), ("Retry", "retries")
    assert told["outer"] == [answered, retries, answered, retries, answered]
    assert told["inner"] == [answered] * 3, "what happens above is none of its business"


@pytest.mark.parametrize("way", ["header", "extensions", "with"])
def test_options_for_the_pipeline_above_are_no_strangers_to_the_one_below(world, way):
    io, script = VirtualIO(), Script(503)
    given = {
        "header": {"headers": {"x-dspex-retry": "off", "x-dspex-skip": "same"}},
        "extensions": {"extensions": options(retry=False, skip=["same"])},
        "with": {},
    }[way]

    async def main():
        async with stacked(world, Pipeline([RETRY, same]), Pipeline(), script, io) as client:
            if way == "with":
                with options(retry=False, skip=["same"]):
                    return await client.get(URL)
            return await client.get(URL, **given)

    assert world.run(main).status_code == 503
    assert len(script.requests) == 1


def test_the_deadline_of_stacked_pipelines_holds_over_redirects_too(world):
    io, left = VirtualIO(), []

    async def look(request, call_next):
        left.append(record_of(request).remaining())
        return await call_next(request)

    script = Script(hop(4, io), 200, io=io)

    async def main():
        outer, inner = Pipeline([look]), Pipeline([look])
        async with stacked(world, outer, inner, script, io, follow_redirects=True) as client:
            await client.get(URL, extensions=options(deadline=10))

    world.run(main)
    assert left == [10, 10, 6, 6]


def test_a_breaker_below_sees_that_its_wire_is_late_and_is_not_just_cancelled(world, provider):
    """Both edges are bounded by one deadline; on real event loops the outer one came first."""

    async def main():
        inner = Pipeline([Breaker(consecutive=1)])
        async with (
            world.client(inner) as below,
            world.client([], transport=below.client._transport) as client,
        ):
            with pytest.raises(DeadlineExceeded) as caught:
                await client.post(
                    f"{provider.url}/v1/chat/completions",
                    json={**BODY, "model": "slow"},
                    extensions=options(deadline=0.03),
                )
        assert caught.value.sent
        assert set(inner[Breaker].snapshot()["not_closed"].values()) == {"open"}

    world.run(main)


def test_what_is_no_wire_in_a_pipeline_below_is_cut_off_a_little_later(http):
    async def dreams(request, call_next, io):
        await io.sleep(60)
        return await call_next(request)

    io, script = VirtualIO(), Script()
    below = Pipeline([dreams]).async_transport(script, io=io)
    client = Pipeline().async_client(http=http, transport=below, io=io)
    (error,) = io.run_all(client.get(URL, extensions=options(deadline=10)))
    assert isinstance(error, DeadlineExceeded)
    assert (io.now(), script.requests) == (10.25, [])


# A client of one's own


def test_a_clients_own_transport_can_be_ours(world):
    pipeline, script = Pipeline([same]), Script(200, forever=True)

    async def main():
        if world.blocking:
            with world.http.Client(transport=pipeline.transport(script)) as client:
                return client.get(URL)
        async with world.http.AsyncClient(transport=pipeline.async_transport(script)) as client:
            return await client.get(URL)

    assert [event.reason for event in explain(world.run(main))] == ["200"]


def test_a_layer_may_answer_without_asking_on(world):
    script = Script()

    async def answer(request, call_next):
        return respond(request, 418, content=b"tea")

    async def main():
        async with world.client([answer], transport=script) as client:
            return await client.get(URL)

    response = world.run(main)
    assert (response.status_code, response.content) == (418, b"tea")
    assert explain(response) == ()
    assert script.requests == []
