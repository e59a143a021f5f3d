"""The running Retry: waits on the virtual clock, stamina's hooks and switches, and faults on real sockets."""

from __future__ import annotations

from types import SimpleNamespace

import anyio
import httpx
import pytest
import stamina

from dspex_pipe import Budget, Pipeline, Retry, explain, options
from dspex_pipe.testing import Reply, Script, VirtualIO

URL = "http://a.test/thing"
LLM = "http://a.test/v1/chat/completions"
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
AT_ONCE = {"wait_initial": 0, "wait_jitter": 0}
QUOTA = Reply(status=429, json={"error": {"code": "insufficient_quota"}})
STEPS = (503, "ReadError", Reply(status=429, headers={"retry-after-ms": "5"}), 200)


def told(status=503, *, after="1", unit="retry-after", **more):
    return Reply(status=status, headers={unit: after}, **more)


def play(world, policy, *steps, io=None, method="GET", url=URL, virtual=True, forever=False, **request):
    """One call through Retry to a script; what came back is in ``got``, a response or an exception."""
    io = io or VirtualIO()
    script = Script(*steps, io=io, forever=forever)
    clock = {"io": io} if virtual else {}

    async def main():
        async with world.client([policy], transport=script, **clock) as client:
            try:
                return await client.request(method, url, **request)
            except world.http.HTTPError as exc:
                return exc

    got = world.run(main)
    return SimpleNamespace(got=got, calls=len(script.requests), script=script, seconds=io.now())


def reason(got):
    (told_why,) = [e.reason for e in explain(got) if e.layer == "Retry" and e.decision == "gives up"]
    return told_why


# Throttles


def test_throttles_spend_neither_attempts_nor_budget_until_the_deadline(world):
    policy = Retry(attempts=1, throttle="wait", budget=Budget(ratio=0, floor=0))
    call = play(world, policy, *[told(429, after="5")] * 20, 200)
    assert (call.got.status_code, call.calls, call.seconds) == (200, 21, 100)
    call = play(world, policy, told(429, after="5"), forever=True, extensions=options(deadline=12))
    assert (call.got.status_code, call.calls, call.seconds) == (429, 3, 10)
    assert reason(call.got) == "a wait of 5 s does not fit the deadline"
    call = play(world, policy, told(429, after="5"), 503, 200)
    assert (call.got.status_code, call.calls) == (503, 2)
    assert reason(call.got) == "1 of 1 attempts made"


def test_a_throttle_in_a_stream_is_waited_for_too(world):
    events = {"headers": {"content-type": "text/event-stream"}}
    busy = Reply(chunks=[b'data: {"error": {"type": "rate_limit_error"}}\n\n'], **events)
    good = Reply(chunks=[b"data: [DONE]\n\n"], **events)
    policy = Retry(attempts=1, throttle="wait", wait_initial=1, wait_jitter=0, wait_max=4)
    call = play(world, policy, *[busy] * 4, good, method="POST", url=LLM, json={**CHAT, "stream": True})
    assert (call.got.content, call.calls, call.seconds) == (b"data: [DONE]\n\n", 5, 1 + 2 + 4 + 4)


# Waits, bodies, traces


def test_the_clock_moves_exactly_as_the_server_says(world):
    steps = told(after="7", content=b"busy"), told(429, after="1500", unit="retry-after-ms"), 200
    call = play(world, Retry(), *steps)
    assert (call.got.status_code, call.calls, call.seconds) == (200, 3, 8.5)


def test_the_clock_moves_as_configured_where_the_server_says_nothing(world):
    policy = Retry(attempts=5, wait_initial=1, wait_exp_base=3, wait_jitter=0, wait_max=10)
    call = play(world, policy, 503, "ReadError", "ConnectTimeout", 502, 200)
    assert (call.got.status_code, call.calls, call.seconds) == (200, 5, 1 + 3 + 9 + 10)


def test_jitter_comes_from_the_clocks_own_dice(world):
    seconds = [play(world, Retry(), 503, 200, io=VirtualIO(seed=seed)).seconds for seed in (1, 1, 2)]
    assert seconds[0] == seconds[1] != seconds[2]
    assert all(0.1 <= s < 1.1 for s in seconds)


def test_a_date_is_waited_for_against_the_responses_own_date(world):
    headers = {"date": "Wed, 01 Jan 2025 00:00:00 GMT", "retry-after": "Wed, 01 Jan 2025 00:00:42 GMT"}
    assert play(world, Retry(), Reply(status=503, headers=headers), 200).seconds == 42


def test_a_call_that_succeeds_is_left_alone(world):
    call = play(world, Retry(), 200)
    assert (call.calls, call.seconds) == (1, 0)
    assert [e.layer for e in explain(call.got)] == ["transport"]
    assert "x-should-retry" not in call.got.headers


def test_every_retry_is_told_with_its_reason_and_its_wait(world):
    got = play(world, Retry(attempts=4, wait_initial=2, wait_jitter=0), *STEPS).got
    assert [(e.reason, e.seconds) for e in explain(got) if e.layer == "Retry"] == [
        ("status 503", 2),
        ("ReadError", 4),
        ("status 429", 0.005),
    ]


@pytest.mark.parametrize("length", [True, False])
def test_every_response_is_closed_before_the_wait(world, length):
    open_bodies = []

    class Watching(VirtualIO):
        async def before_wait(self, seconds):
            open_bodies.append((script().open, self.now()))
            return await super().before_wait(seconds)

    body = {"content": b"busy"} if length else {"chunks": [b"busy"] * 9}
    io, scripts = Watching(), []
    script = lambda: scripts[0]  # noqa: E731 - the script needs the io first

    async def main():
        scripts.append(Script(told(**body), told(**body), 200, io=io))
        async with world.client([Retry()], transport=script(), io=io) as client:
            return await client.get(URL)

    assert world.run(main).status_code == 200
    assert open_bodies == [(0, 0), (0, 1)]


def test_each_attempt_gets_the_request_as_the_caller_made_it(world):
    seen = []

    async def stamp(request, call_next):
        seen.append(dict(request.headers))
        request.headers["x-attempt"] = "mine"
        request.extensions["mine"] = True
        return await call_next(request)

    script = Script(503, 503, 200)

    async def main():
        async with world.client([Retry(), stamp], transport=script, io=VirtualIO()) as client:
            request = client.client.build_request("PUT", URL, content=b"body")
            await client.send(request)
            return request

    request = world.run(main)
    assert seen[0] == seen[1] == seen[2] == dict(request.headers)
    assert [r.content for r in script.requests] == [b"body"] * 3
    assert "mine" not in request.extensions


# Giving up


def test_the_last_response_is_handed_up_readable_and_stamped(world):
    call = play(world, Retry(), 503, 503, Reply(status=502, content=b"the last one"))
    assert (call.got.status_code, call.got.content) == (502, b"the last one")
    assert call.got.headers["x-should-retry"] == "false"


def test_the_last_exception_carries_the_earlier_ones_as_notes(world):
    got = play(world, Retry(), "ReadError", "ConnectError", "ReadTimeout").got
    assert isinstance(got, world.http.ReadTimeout)
    assert got.__notes__ == ["attempt 1: ReadError: scripted", "attempt 2: ConnectError: scripted"]


def test_an_exception_that_was_never_retried_carries_no_notes(world):
    got = play(world, Retry(), "ReadError", method="POST").got
    assert isinstance(got, world.http.ReadError)
    assert not hasattr(got, "__notes__")


def test_an_error_that_is_no_transport_error_passes_at_once(world):
    script = Script(ZeroDivisionError("a bug"))

    async def main():
        async with world.client([Retry()], transport=script, io=VirtualIO()) as client:
            with pytest.raises(ZeroDivisionError):
                await client.get(URL)

    world.run(main)
    assert len(script.requests) == 1


def test_a_read_timeout_of_an_llm_call_is_retried_once(world):
    call = play(world, Retry(attempts=9), "ReadTimeout", "ReadTimeout", method="POST", url=LLM, json=CHAT)
    assert isinstance(call.got, world.http.ReadTimeout)
    assert call.calls == 2
    assert reason(call.got) == "a second read timeout of an LLM call, which may be billed"


GIVING_UP = {
    "the server says x-should-retry: false": (
        Reply(status=503, headers={"x-should-retry": "false"}),
        {},
        True,
    ),
    "insufficient_quota does not pass by waiting": (QUOTA, {}, True),
    "switched off for this call": (503, {"extensions": options(retry=False)}, False),
    "the body cannot be sent twice": (503, {"method": "PUT", "content": ...}, False),
    "POST is not safe to repeat, and it may have been carried out": (503, {"method": "POST"}, False),
    "1 of 1 attempts made": (503, {"policy": Retry(attempts=1)}, True),
    "the server asks for 61 s, over the cap": (told(after="61"), {}, True),
    "a wait of 9 s does not fit the timeout": (told(after="9"), {"policy": Retry(timeout=9)}, True),
    "a wait of 9 s does not fit the deadline": (
        told(after="9"),
        {"headers": {"x-dspex-deadline": "9"}},
        True,
    ),
    "the retry budget is spent": (503, {"policy": Retry(budget=Budget(ratio=0, floor=0))}, True),
}


def one_piece(world):
    """A body that can be sent once."""

    async def pieces():
        yield b"piece"

    return pieces() if not world.blocking else iter([b"piece"])


@pytest.mark.parametrize("why", GIVING_UP)
def test_every_skipped_retry_has_its_reason_and_takes_no_time(world, why):
    step, request, spent = GIVING_UP[why]
    request = {"policy": Retry(), **request}
    if "content" in request:
        request["content"] = one_piece(world)
    call = play(world, request.pop("policy"), step, **request)
    assert reason(call.got) == why
    assert (call.calls, call.seconds) == (1, 0)
    assert call.got.headers.get("x-should-retry") == ("false" if spent else None)


# The budget


def outage(world, policy, calls):
    """How many requests reach a server that is down."""
    script, pipeline = Script(503, forever=True), Pipeline([policy])

    async def main():
        async with world.client(pipeline, transport=script, io=VirtualIO()) as client:
            for _ in range(calls):
                assert (await client.get(URL)).status_code == 503

    world.run(main)
    return len(script.requests), pipeline.snapshot()["layers"][0]


def test_a_budget_bounds_the_load_under_a_total_outage(world):
    sent, state = outage(world, Retry(**AT_ONCE), 200)
    assert sent == 200 + 10 + 40
    assert state == {"layer": "Retry", "calls": 200, "retries": 50}


def test_without_a_budget_every_call_makes_all_its_attempts(world):
    assert outage(world, Retry(budget=None, **AT_ONCE), 50) == (150, {"layer": "Retry"})


def test_clients_of_one_pipeline_share_a_budget_and_pipelines_do_not(world):
    policy = Retry(budget=Budget(ratio=0, floor=1), **AT_ONCE)
    shared = Pipeline([policy])

    async def main():
        sent = []
        for pipeline in (shared, shared, Pipeline([policy])):
            script = Script(503, forever=True)
            async with world.client(pipeline, transport=script, io=VirtualIO()) as client:
                await client.get(URL)
            sent.append(len(script.requests))
        return sent

    assert world.run(main) == [2, 1, 2]


# stamina


def test_on_retry_hooks_see_the_true_wait_and_cause(world):
    seen = []
    stamina.instrumentation.set_on_retry_hooks([seen.append])
    steps = told(after="1", unit="retry-after-ms"), "ReadError", 200
    call = play(world, Retry(wait_initial=0.001, wait_jitter=0), *steps, virtual=False)
    assert call.got.status_code == 200
    assert [details.retry_num for details in seen] == [1, 2]
    assert [details.wait_for for details in seen] == pytest.approx([0.001, 0.002])
    assert [details.waited_so_far for details in seen] == pytest.approx([0, 0.001])
    first, second = (details.caused_by for details in seen)
    assert isinstance(first, world.http.HTTPStatusError)
    assert first.response.status_code == 503
    assert isinstance(second, world.http.ReadError)


def test_an_error_of_a_hook_reaches_the_caller_and_leaves_nothing_open(world):
    def broken(details):
        raise ZeroDivisionError("a broken hook")

    stamina.instrumentation.set_on_retry_hooks([broken])
    script = Script(503, 200)

    async def main():
        async with world.client([Retry()], transport=script, io=VirtualIO()) as client:
            with pytest.raises(ZeroDivisionError, match="a broken hook"):
                await client.get(URL)

    world.run(main)
    assert (len(script.requests), script.open) == (1, 0)


def test_set_active_false_sends_once(world):
    stamina.set_active(False)
    call = play(world, Retry(), Reply(status=503, content=b"busy"))
    assert (call.calls, call.got.content) == (1, b"busy")
    assert reason(call.got) == "stamina is switched off (set_active)"


@pytest.mark.parametrize(
    ("attempts", "cap", "calls"), [(1, False, 1), (2, False, 2), (5, False, 5), (2, True, 2), (5, True, 3)]
)
def test_test_mode_decides_the_number_of_attempts_and_waits_for_nothing(world, attempts, cap, calls):
    waits = []
    stamina.instrumentation.set_on_retry_hooks([lambda details: waits.append(details.wait_for)])
    stamina.set_testing(True, attempts=attempts, cap=cap)
    steps = [told(after="30", chunks=[b"bu", b"sy"])] * calls
    call = play(world, Retry(), *steps, virtual=False)
    assert call.calls == calls
    assert sum(waits) == 0
    assert call.script.open == 0
    assert call.got.content == b"busy"  # the one that is handed up is whole
    assert call.got.headers["x-should-retry"] == "false"
    assert reason(call.got) == "stamina's test mode allows no more attempts"


def test_test_mode_waits_for_no_end_of_a_stream_that_began_with_an_error(world):
    stamina.set_testing(True, attempts=2)
    busy = b'data: {"error": {"type": "overloaded_error"}}\n\n'
    # whoever reads on would get the error
    stream = Reply(chunks=[busy], headers={"content-type": "text/event-stream"}, error="ReadError")
    call = play(world, Retry(), stream, forever=True, method="POST", url=LLM, json={**CHAT, "stream": True})
    assert (call.got.content, call.calls, call.script.open) == (busy, 2, 0)


def test_test_mode_raises_the_last_exception(world):
    with stamina.set_testing(True, attempts=2):
        call = play(world, Retry(), "ReadError", "ConnectError", virtual=False)
    assert isinstance(call.got, world.http.ConnectError)
    assert call.got.__notes__ == ["attempt 1: ReadError: scripted"]


def test_test_mode_that_ends_during_a_call_leaves_its_response_whole(world):
    def last(_):
        stamina.set_testing(False)
        return told(after="1", unit="retry-after-ms", content=b"busy")

    stamina.set_testing(True, attempts=2)
    call = play(world, Retry(**AT_ONCE), 503, last, Reply(content=b"fine"), virtual=False)
    assert call.got.content == (b"busy" if call.calls == 2 else b"fine")


# Cancellation


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_call_that_is_cancelled_while_it_waits_ends_there(http, backend):
    script = Script(told(after="50", chunks=[b"busy"]), 200)

    async def main():
        with anyio.CancelScope() as scope:
            # a hook runs at the very moment when the wait begins
            stamina.instrumentation.set_on_retry_hooks([lambda details: scope.cancel()])
            async with Pipeline([Retry()]).async_client(http=http, transport=script) as client:
                await client.get(URL)
        return scope.cancelled_caught

    assert anyio.run(main, backend=backend)
    assert (len(script.requests), script.open) == (1, 0)


def test_an_interrupt_while_a_blocking_call_waits_ends_it(http):
    def interrupt(details):
        raise KeyboardInterrupt

    stamina.instrumentation.set_on_retry_hooks([interrupt])
    script = Script(told(after="50"), 200)
    with Pipeline([Retry()]).client(http=http, transport=script) as client, pytest.raises(KeyboardInterrupt):
        client.get(URL)
    assert (len(script.requests), script.open) == (1, 0)


# Real sockets

FAST = Retry(wait_initial=0.001, wait_jitter=0)


def on_sockets(world, provider, method, path, layers=(FAST,), client=None, **request):
    """One call to the provider; what came back, a response or an exception."""
    provider.retry_after_ms = 1

    async def main():
        async with world.client(layers, **(client or {})) as face:
            try:
                return await face.request(method, provider.url + path, **request)
            except world.http.TransportError as exc:
                return exc

    return world.run(main)


@pytest.mark.parametrize(
    ("model", "status", "calls"),
    [
        ("ok", 200, 1),
        ("503x2", 200, 3),
        ("429x1", 200, 2),
        ("dropx1", 200, 2),
        ("truncatex1", 200, 2),
        ("503", 503, 3),
        ("quota", 429, 1),
    ],
)
def test_an_llm_call_survives_what_passes_and_no_more(world, provider, model, status, calls):
    got = on_sockets(world, provider, "POST", "/v1/chat/completions", json={**CHAT, "model": model})
    assert (got.status_code, provider.calls) == (status, calls)
    assert ("choices" in got.json()) == (status == 200)


@pytest.mark.parametrize("model", ["drop", "truncate"])
def test_an_llm_call_that_keeps_breaking_off_raises_with_notes(world, provider, model):
    got = on_sockets(world, provider, "POST", "/v1/messages", json={**CHAT, "model": model})
    assert isinstance(got, world.http.TransportError)
    assert provider.calls == 3
    assert len(got.__notes__) == 2


def test_an_order_that_drops_is_placed_once(world, provider):
    got = on_sockets(world, provider, "POST", "/orders?fault=drop", json={"item": 1})
    assert isinstance(got, world.http.TransportError)
    assert provider.calls == 1
    assert "not safe to repeat" in reason(got)


def test_an_order_with_an_idempotency_key_is_repeated_with_the_same_body(world, provider):
    headers = {"idempotency-key": "k"}
    got = on_sockets(world, provider, "POST", "/orders?fault=dropx1", json={"item": 1}, headers=headers)
    assert got.json() == {"ordered": True}
    assert provider.calls == 2
    assert provider.seen[0].body == provider.seen[1].body != b""


def test_a_read_that_drops_is_repeated(world, provider):
    got = on_sockets(world, provider, "GET", "/status?fault=dropx1")
    assert (got.status_code, provider.calls) == (200, 2)


def test_a_body_from_a_generator_is_sent_once(world, provider):
    request = {"content": one_piece(world), "headers": {"idempotency-key": "k"}}
    got = on_sockets(world, provider, "POST", "/orders?fault=503", **request)
    assert (got.status_code, provider.calls) == (503, 1)
    assert provider.seen[0].body == b"piece"
    assert reason(got) == "the body cannot be sent twice"


@pytest.mark.parametrize(("fault", "connections"), [("503x2", 1), ("htmlx2", 1), ("dropx2", 3)])
def test_a_pool_of_one_connection_does_not_lock_up(world, provider, fault, connections):
    pool = {"limits": world.http.Limits(max_connections=1), "timeout": world.http.Timeout(5, pool=0.5)}
    got = on_sockets(world, provider, "GET", f"/status?fault={fault}", client=pool)
    assert (got.status_code, provider.calls) == (200, 3)
    assert provider.connections == connections


def test_nobody_can_be_reached_and_every_attempt_says_so(world):
    def refused(request):
        raise getattr(world.http, "ConnectError")("nobody there", request=request)  # noqa: B009

    call = play(world, Retry(**AT_ONCE), refused, forever=True, method="POST", json={"item": 1})
    assert isinstance(call.got, world.http.ConnectError)
    assert call.calls == 3


def test_it_serves_plain_httpx_without_a_pipeline_around_it():
    script = Script(503, 200)
    with httpx.Client(transport=Pipeline([Retry()]).transport(script, io=VirtualIO())) as client:
        assert client.get(URL).status_code == 200
