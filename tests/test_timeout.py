"""Time bounds: of a whole call, of an attempt, of connecting; pre-empted in async, checked in blocking."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager

import anyio
import httpx
import pytest
from hypothesis import given, strategies as st

from dspex_pipe import (
    Breaker,
    DeadlineExceeded,
    Pipeline,
    Retry,
    Timeout,
    explain,
    options,
    record_of,
    refusal_of,
)
from dspex_pipe.io import OutOfTime
from dspex_pipe.layers.timeout import tightened
from dspex_pipe.testing import Reply, Script, VirtualIO
from modes import World

URL = "http://x.test/"
SLOW = {"model": "slow", "messages": [{"role": "user", "content": "hello"}]}
PING = b": keep-alive\n\n"
FIRST = b'data: {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}\n\n'
TEXT = b'data: {"choices": [{"index": 0, "delta": {"content": "a"}}]}\n\n'
DONE = b"data: [DONE]\n\n"
CHAT = ("POST", "http://llm.test/v1/chat/completions")
ASK = {"model": "m", "messages": [1], "stream": True}
DEFAULT = {"connect": 5.0, "read": 5.0, "write": 5.0, "pool": 5.0}


def events(*chunks, **more):
    return Reply(chunks=chunks, headers={"content-type": "text/event-stream"}, **more)


def virtual(layers, *steps, http=httpx):
    io = VirtualIO()
    script = Script(*steps, forever=True, io=io)
    return io, script, Pipeline(layers).async_client(http=http, transport=script, io=io)


# The bounds of socket operations


def test_httpxs_untouched_default_counts_as_not_asked_for():
    assert tightened(Timeout(attempt=60), DEFAULT, None) == dict.fromkeys(DEFAULT, 60)
    assert tightened(Timeout(attempt=60, connect=3), DEFAULT, None) == {
        **dict.fromkeys(DEFAULT, 60),
        "connect": 3,
    }
    assert tightened(Timeout(total=600), DEFAULT, 600.0) == dict.fromkeys(DEFAULT, 600)
    assert tightened(Timeout(connect=3), DEFAULT, None) == {**DEFAULT, "connect": 3}


def test_what_the_caller_asked_for_is_only_tightened():
    asked = {"connect": 2.0, "read": 100.0, "write": None, "pool": 5.0}
    got = tightened(Timeout(attempt=60, connect=5), asked, 80.0)
    assert got == {"connect": 2.0, "read": 60, "write": 60, "pool": 5.0}


SECONDS = st.none() | st.floats(0.001, 1e6)


@given(SECONDS, SECONDS, st.fixed_dictionaries(dict.fromkeys(DEFAULT, SECONDS)), SECONDS)
def test_no_bound_is_ever_loosened(attempt, connect, asked, left):
    if attempt is None and connect is None:
        return
    got = tightened(Timeout(attempt=attempt, connect=connect), asked, left)
    for kind, bound in got.items():
        for other in (
            asked[kind] if asked != DEFAULT else None,
            left,
            connect if kind == "connect" else attempt,
        ):
            if other is not None:
                assert bound is not None
                assert bound <= other


def test_the_wire_sees_the_tightened_bounds(world: World):
    async def main():
        script = Script(200, forever=True)
        async with world.client([Timeout(attempt=60, connect=3)], transport=script) as client:
            await client.get(URL)
            await client.get(URL, timeout=10)
        seen = [request.extensions["timeout"] for request in script.requests]
        assert seen[0] == {**dict.fromkeys(DEFAULT, 60), "connect": 3}
        assert seen[1] == {**dict.fromkeys(DEFAULT, 10), "connect": 3}
        async with world.client([Timeout(connect=3)], transport=script) as client:
            await client.get(URL)
        assert script.requests[2].extensions["timeout"] == {**DEFAULT, "connect": 3}

    world.run(main)


# A whole call


def test_a_call_over_its_total_is_cancelled_and_raises_a_timeout(http):
    io, script, client = virtual([Timeout(total=10)], Reply(delay=60), http=http)
    (error,) = io.run_all(client.get(URL))
    assert isinstance(error, DeadlineExceeded)
    assert isinstance(error, http.TimeoutException)
    assert (io.now(), error.sent) == (10, True)
    assert [e.decision for e in explain(error)] == ["failed", "refused"]


def test_a_layer_that_takes_too_long_is_cut_off_too(http):
    async def dreams(request, call_next, io):
        await io.sleep(60)
        return await call_next(request)

    io, script, client = virtual([Timeout(total=10), dreams], 200, http=http)
    (error,) = io.run_all(client.get(URL))
    assert isinstance(error, DeadlineExceeded)
    assert isinstance(error, http.TimeoutException)
    assert (io.now(), error.layer, script.requests) == (10.25, "Timeout", [])
    assert [e.decision for e in explain(error)] == ["is over", "refused"]


def test_a_server_that_hangs_until_the_total_is_over_trips_a_breaker_inside(world: World, provider):
    """The wire and the layer are bounded by one deadline; cancelled, the breaker would learn nothing."""

    async def main():
        stack = Pipeline([Timeout(total=0.03), Breaker(consecutive=1)])
        async with world.client(stack) as client:
            with pytest.raises(world.http.TimeoutException) as caught:
                await client.post(f"{provider.url}/v1/chat/completions", json=SLOW)
            assert refusal_of(caught.value).layer == "transport"
            assert set(stack[Breaker].snapshot()["not_closed"].values()) == {"open"}

    world.run(main)


@pytest.mark.parametrize(
    "bounds", [{"attempt": 0.03}, {"first_content": 0.03}, {"first_content": 0.03, "idle": 0.03}], ids=repr
)
@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
def test_a_server_that_hangs_beyond_any_bound_trips_a_breaker_inside(world: World, provider, bounds, nested):
    if world.blocking and bounds == {"first_content": 0.03}:
        return  # a socket has one bound for all reads, so it is told only where idle= says the other half

    async def main():
        breaker = Breaker(consecutive=1).build()
        inside = Pipeline([breaker]) if nested else breaker
        async with world.client(Pipeline([Timeout(**bounds), inside])) as client:
            with pytest.raises(world.http.ReadTimeout, match=r"0\.03 s|timed out"):
                await client.post(f"{provider.url}/v1/chat/completions", json={**SLOW, "stream": True})
        assert set(breaker.snapshot()["not_closed"].values()) == {"open"}

    world.run(main)


OPENED = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"


@contextmanager
def silent_after(said):
    """A server that answers one call with this, and then says nothing more."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(said)
                while connection.recv(1 << 16):
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        yield "http://{}:{}/v1/chat/completions".format(*server.getsockname())
        thread.join()


def test_a_body_that_stalls_until_the_total_is_over_tells_of_the_total(world):
    """In blocking clients the socket's timeout says so first, which we have tightened."""

    async def main():
        with silent_after(OPENED) as url:
            async with world.client([Timeout(total=0.05)]) as client:
                with pytest.raises(DeadlineExceeded, match=r"longer than 0\.05 s") as caught:
                    await client.post(url, json=SLOW)
        assert isinstance(caught.value, world.http.TimeoutException)
        assert explain(caught.value)[-1].reason == "total=0.05 s"

    world.run(main)


BOTH = Timeout(first_content=0.05, idle=0.05)


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (Timeout(total=0.05), b""),
        (Timeout(total=0.05), PING),
        (BOTH, b""),
        (BOTH, PING),
        (BOTH, TEXT),
        (Timeout(idle=0.05, total=60), TEXT),
    ],
    ids=repr,
)
@pytest.mark.parametrize("peek", [None, 60.0])
def test_a_stream_that_stalls_until_a_bound_is_over_trips_a_breaker_inside(world, policy, said, peek):
    if world.blocking and policy.total == 60:
        return  # no socket is told of idle= alone: the stall ends with the total

    async def main():
        stack = Pipeline([policy, Breaker(consecutive=1, peek=peek)])
        with silent_after(OPENED + said) as url:
            async with world.client(stack) as client:
                with pytest.raises(world.http.TimeoutException):
                    await client.post(url, json={**SLOW, "stream": True})
        assert set(stack[Breaker].snapshot()["not_closed"].values()) == {"open"}

    world.run(main)


@pytest.mark.parametrize(
    ("layers", "reply"),
    [
        ([Timeout(total=10), Breaker(consecutive=1)], Reply(chunks=[b"x"] * 9, pause=4)),
        ([Timeout(attempt=10), Breaker(consecutive=1), "dreams"], Reply()),
    ],
    ids=["a body that goes on and on", "a layer that takes too long"],
)
def test_what_is_cut_off_and_was_not_late_by_the_server_tells_a_breaker_nothing(layers, reply):
    async def dreams(request, call_next, io):
        await io.sleep(60)
        return await call_next(request)

    io = VirtualIO()
    stack = Pipeline([dreams if layer == "dreams" else layer for layer in layers])
    client = stack.async_client(transport=Script(reply, io=io), io=io)
    (error,) = io.run_all(client.get(URL))
    assert isinstance(error, httpx.TimeoutException)
    assert stack[Breaker].snapshot()["not_closed"] == {}


def test_a_reader_who_is_cancelled_tells_a_breaker_inside_nothing():
    stack = Pipeline([Timeout(total=60, first_content=30), Breaker(consecutive=1)])
    io = VirtualIO()
    client = stack.async_client(transport=Script(events(PING, TEXT, pause=20), io=io), io=io)

    async def leaves():
        with pytest.raises(OutOfTime):
            await io.bounded(client.post(CHAT[1], json=ASK), 10)

    io.run(leaves())
    assert stack[Breaker].snapshot()["not_closed"] == {}


def test_a_socket_that_times_out_before_any_bound_stays_what_it_is(world):
    async def main():
        with silent_after(OPENED) as url:
            async with world.client([Timeout(total=60)]) as client:
                with pytest.raises(world.http.ReadTimeout) as caught:
                    await client.post(url, json=SLOW, timeout=0.05)
        assert refusal_of(caught.value) is None

    world.run(main)


def test_a_total_that_the_callers_own_deadline_makes_shorter_says_so():
    async def dreams(request, call_next, io):
        await io.sleep(60)
        return await call_next(request)

    io, script, client = virtual([Timeout(total=10), dreams], 200)
    (error,) = io.run_all(client.get(URL, extensions=options(deadline=2)))
    assert "longer than 2 s" in str(error)
    assert explain(error)[0].reason == "total=2 s"


def test_the_total_bounds_retries_and_their_waits():
    io, script, client = virtual([Timeout(total=10), Retry(attempts=None)], Reply(status=503, delay=3))
    (error,) = io.run_all(client.get(URL))
    assert isinstance(error, DeadlineExceeded)
    assert io.now() == 10
    io, script, client = virtual([Timeout(total=10), Retry(attempts=None)], Reply(status=503, delay=9.5))
    response = io.run(client.get(URL))  # no time for a wait is left: the answer is handed up at once
    assert (response.status_code, io.now()) == (503, 9.5)
    assert "does not fit the deadline" in explain(response)[-1].reason


def test_every_layer_inside_sees_one_deadline_and_the_shorter_one_holds():
    seen = []

    async def look(request, call_next, io):
        seen.append(record_of(request).deadline)
        return await call_next(request)

    io, script, client = virtual([Timeout(total=10), look], 200)
    io.run(client.get(URL))
    io.run(client.get(URL, extensions=options(deadline=4)))
    io.run(client.get(URL, extensions=options(deadline=40)))
    assert seen == [10, 4, 10]


def test_a_shorter_deadline_of_the_caller_is_told_as_such():
    io, script, client = virtual([Timeout(total=100)], Reply(delay=60))
    (error,) = io.run_all(client.get(URL, extensions=options(deadline=4)))
    assert isinstance(error, DeadlineExceeded)
    assert io.now() == 4


def test_a_body_over_the_total_is_cut_off(http):
    io, script, client = virtual([Timeout(total=10)], Reply(chunks=[b"x"] * 9, pause=4), http=http)
    (error,) = io.run_all(client.get(URL))
    assert isinstance(error, DeadlineExceeded)
    assert isinstance(error, http.TimeoutException)
    assert (io.now(), script.open) == (10, 0)


def test_a_blocking_body_is_checked_between_its_pieces(http):
    io = VirtualIO()
    script = Script(Reply(chunks=[b"x"] * 9, pause=4), io=io)
    client = Pipeline([Timeout(total=10)]).client(http=http, transport=script, io=io)
    with pytest.raises(http.TimeoutException, match="the call took longer than 10 s"):
        client.get(URL)
    assert (io.now(), script.open) == (12, 0)


def test_a_body_in_time_is_whole(world: World):
    async def main():
        script = Script(Reply(chunks=[b"a", b"b"]), Reply(json={}))
        async with world.client([Timeout(total=10)], transport=script) as client:
            assert (await client.get(URL)).content == b"ab"
            assert (await client.get(URL)).json() == {}
        assert script.open == 0

    world.run(main)


def test_a_blocking_answer_that_comes_late_is_an_answer():
    io = VirtualIO()
    script = Script(Reply(json={}, delay=60), io=io)
    client = Pipeline([Timeout(attempt=10)]).client(transport=script, io=io)
    assert client.get(URL).status_code == 200


# An attempt


def test_an_attempt_over_its_time_is_a_read_timeout_that_retry_sends_again(http):
    io, script, client = virtual([Retry(wait_jitter=0), Timeout(attempt=10)], Reply(delay=60), 200, http=http)
    response = io.run(client.get(URL))
    assert (response.status_code, len(script.requests)) == (200, 2)
    assert io.now() == 10.1
    assert [(e.layer, e.decision) for e in explain(response)] == [
        ("transport", "failed"),
        ("Timeout", "is over"),
        ("Retry", "retries"),
        ("transport", "answered"),
    ]


def test_whoever_sends_a_request_again_has_the_time_of_an_attempt_again():
    async def twice(request, call_next):
        try:
            return await call_next(request)
        except httpx.ReadTimeout:
            return await call_next(request)

    io, script, client = virtual([twice, Timeout(attempt=10)], Reply(delay=60), Reply(delay=8))
    assert io.run(client.get(URL)).status_code == 200
    assert io.now() == 18


def test_of_two_attempts_around_each_other_the_shorter_one_holds():
    for layers in ([Timeout(attempt=10), Timeout(attempt=20)], [Timeout(attempt=20), Timeout(attempt=10)]):
        io, script, client = virtual(layers, Reply(delay=60))
        (error,) = io.run_all(client.get(URL))
        assert str(error) == "the attempt took longer than 10 s"
        assert io.now() == 10


def test_a_plain_body_is_part_of_its_attempt():
    slow = Reply(
        chunks=[b"{", b"}"], headers={"content-type": "application/json", "content-length": "2"}, pause=30
    )
    io, script, client = virtual([Timeout(attempt=10)], slow)
    (error,) = io.run_all(client.get(URL))
    assert type(error) is httpx.ReadTimeout
    assert str(error) == "the attempt took longer than 10 s"
    assert (io.now(), script.open) == (10, 0)


def test_a_stream_is_not_part_of_its_attempt():
    io, script, client = virtual([Timeout(attempt=10)], Reply(chunks=[b"x"] * 3, pause=30))
    assert io.run(client.get(URL)).content == b"xxx"


# The silences of a stream


@pytest.mark.parametrize(
    ("policy", "reply", "ends_at", "said"),
    [
        (Timeout(first_content=10), events(FIRST, *[PING] * 9, pause=3), 10, "no content within 10 s"),
        (Timeout(first_content=10), events(TEXT, delay=60), 10, "no content within 10 s"),
        (Timeout(idle=10), events(TEXT, *[PING] * 9, pause=3), 13, "no content for 10 s"),
        (Timeout(idle=10, total=8), events(TEXT, *[PING] * 9, pause=3), 8, "the call took longer than 8 s"),
    ],
    ids=["only pings", "no headers", "a stall", "the total first"],
)
def test_pings_do_not_hide_a_stall(http, policy, reply, ends_at, said):
    io, script, client = virtual([policy], reply, http=http)
    (error,) = io.run_all(client.request(*CHAT, json=ASK))
    assert isinstance(error, http.TimeoutException)
    assert said in str(error)
    assert (io.now(), script.open) == (ends_at, 0)


def test_a_stream_that_goes_on_may_take_its_time(world: World):
    async def main():
        chunks = [FIRST, *[PING, TEXT] * 20, DONE]
        io = VirtualIO()
        script = Script(events(*chunks, pause=4), io=io)
        async with world.client([Timeout(first_content=20, idle=10)], transport=script, io=io) as client:
            response = await client.request(*CHAT, json=ASK)
        assert response.content == b"".join(chunks)
        assert io.now() == 4 * len(chunks)

    world.run(main)


def test_a_blocking_stall_is_seen_between_the_pieces(http):
    io = VirtualIO()
    script = Script(events(TEXT, *[PING] * 9, pause=3), io=io)
    client = Pipeline([Timeout(idle=10)]).client(http=http, transport=script, io=io)
    with pytest.raises(http.ReadTimeout, match="no content for 10 s"):
        client.request(*CHAT, json=ASK)
    assert (io.now(), script.open) == (15, 0)


async def pieces_of(world, response):
    """The raw pieces of a body, as its reader gets them in this mode."""
    if world.blocking:
        for piece in response.stream:
            yield piece
    else:
        async for piece in response.stream:
            yield piece


@pytest.mark.parametrize("policy", [Timeout(first_content=10), Timeout(first_content=10, idle=10)], ids=repr)
def test_a_reader_who_does_something_else_is_no_silence_of_the_server(world, policy):
    async def main():
        io = VirtualIO()
        script = Script(events(FIRST, TEXT, PING, TEXT, DONE, pause=4), io=io)
        async with world.client([policy], transport=script, io=io) as client:
            response, got = await client.open(*CHAT, json=ASK), []
            async for piece in pieces_of(world, response):
                got.append(piece)
                io.advance(60)
            assert got == [FIRST, TEXT, PING, TEXT, DONE]
            await client.drop(response)

    world.run(main)


def test_a_silence_is_as_long_for_a_reader_who_was_away_before(http):
    async def reads():
        async with client.stream(*CHAT, json=ASK) as response:
            async for piece in response.stream:
                if piece == TEXT:
                    await io.sleep(60)

    io, script, client = virtual([Timeout(idle=10)], events(TEXT, *[PING] * 9, pause=3), http=http)
    (error,) = io.run_all(reads())
    assert isinstance(error, http.ReadTimeout)
    assert str(error) == "no content for 10 s"
    assert (io.now(), script.open) == (73, 0)


def test_where_the_meaning_cannot_be_read_every_piece_counts():
    io, script, client = virtual([Timeout(idle=10)], events(*[b"data: x\n\n"] * 9, pause=8))
    assert io.run(client.get(URL)).status_code == 200
    io, script, client = virtual([Timeout(idle=10)], Reply(chunks=[b"no event stream"] * 2, pause=80))
    assert io.run(client.get(URL)).status_code == 200


def test_no_read_of_a_stream_takes_longer_than_its_content_may():
    policy = Timeout(first_content=60, idle=20)
    assert tightened(policy, DEFAULT, None, streams=True)["read"] == 60
    assert tightened(policy, {"read": 30.0}, None, streams=True)["read"] == 30
    assert tightened(policy, {"read": 300.0}, None)["read"] == 300
    assert tightened(Timeout(idle=20), {"read": 300.0}, None, streams=True)["read"] == 300


# Whose cancellation it is


def test_the_callers_cancellation_never_becomes_a_timeout_nor_the_reverse(world: World):
    if world.blocking:
        return

    class Hangs:
        async def handle_async_request(self, request):
            await anyio.sleep_forever()

    async def main():
        async with world.client([Timeout(total=60, attempt=30)], transport=Hangs()) as client:
            with anyio.move_on_after(0) as scope:
                await client.get(URL)
            assert scope.cancelled_caught
        async with world.client([Timeout(attempt=0.001)], transport=Hangs()) as client:
            with anyio.CancelScope() as scope, pytest.raises(world.http.ReadTimeout):
                await client.get(URL)
            assert not scope.cancelled_caught

    world.run(main)


def test_a_time_out_of_a_layer_of_ones_own_stays_what_it_is():
    async def own(request, call_next):
        raise TimeoutError("mine")

    io, _, client = virtual([Timeout(total=60), own], 200)
    (error,) = io.run_all(client.get(URL))
    assert type(error) is TimeoutError
    assert str(error) == "mine"


# Settings


def test_bounding_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"Timeout\(\) bounds nothing: it takes total=, attempt="):
        Timeout()


@pytest.mark.parametrize("name", ["total", "attempt", "connect", "first_content", "idle"])
@pytest.mark.parametrize("value", [0, -1, "5", float("nan"), True])
def test_bad_settings_say_what_is_allowed(name, value):
    with pytest.raises(ValueError, match=rf"Timeout\({name}=…\) takes a positive number of seconds, or None"):
        Timeout(**{name: value})


def test_settings_print():
    assert repr(Timeout(total=3)) == "Timeout(total=3)"
