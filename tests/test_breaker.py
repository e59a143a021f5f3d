"""The running breaker: keys, epochs and probes under real concurrency, and what a call's end means."""

from __future__ import annotations

import asyncio
import gc
import json
import threading

import httpx
import pytest
import trio

from dspex_pipe import Breaker, BreakerOpen, Pipeline, RateLimited, Retry, Verdict, explain, refusal_of
from dspex_pipe.testing import Reply, Script, VirtualIO

URL = "http://x.test/"
KEY = "http://x.test:80"
CHAT = {"messages": [{"role": "user", "content": "hi"}]}


def client_of(breaker, *steps, forever=True, **kwargs):
    io = VirtualIO()
    pipeline = Pipeline([breaker])
    script = Script(*steps, forever=forever, io=io)
    return pipeline, script, io, pipeline.client(transport=script, io=io, **kwargs)


def call(client, times=1, **kwargs):
    """The statuses of so many calls; an exception's name in place of a status."""
    seen = []
    for _ in range(times):
        try:
            seen.append(client.request("GET", URL, **kwargs).status_code)
        except httpx.HTTPError as exc:
            seen.append(type(exc).__name__)
    return seen


@pytest.mark.parametrize("step", [500, 503, 529, "ConnectError", "ReadTimeout", "WriteError", "PoolTimeout"])
def test_these_are_failures(step):
    pipeline, script, _, client = client_of(Breaker(), step)
    call(client, 7)
    assert len(script.requests) == 5
    assert pipeline.snapshot()["layers"][0]["not_closed"] == {KEY: "open"}


@pytest.mark.parametrize("step", [200, 301, 400, 401, 404, 429, "LocalProtocolError", RateLimited("no")])
def test_these_are_not(step):
    pipeline, script, _, client = client_of(Breaker(), step)
    call(client, 20)
    assert len(script.requests) == 20
    assert pipeline.snapshot()["layers"][0]["not_closed"] == {}


def test_a_refusal_is_fresh_and_tells_key_wait_and_last_failure(world):
    async def main():
        script = Script("ReadTimeout", forever=True)
        async with world.client([Breaker(jitter=0.0)], transport=script, io=VirtualIO()) as client:
            for _ in range(5):
                with pytest.raises(world.http.ReadTimeout):
                    await client.get(URL)
            errors = []
            for _ in range(2):
                with pytest.raises(world.http.TransportError) as caught:
                    await client.get(URL)
                errors.append(caught.value)
        one, two = errors
        assert one is not two
        assert isinstance(one, BreakerOpen)
        assert (one.key, one.retry_after, one.last_failure, one.layer) == (KEY, 5.0, "ReadTimeout", "Breaker")
        assert str(one) == (
            "Breaker: the circuit of http://x.test:80 is open (refused locally, nothing was sent); "
            "retry after 5 s"
        )
        assert refusal_of(one) is one

    world.run(main)


def test_it_opens_probes_and_closes():
    _, script, io, client = client_of(Breaker(jitter=0.0), *[503] * 6, 200)
    assert call(client, 6) == [503] * 5 + ["BreakerOpen"]
    io.advance(5)
    assert call(client, 2) == [503, "BreakerOpen"]  # the probe failed: ten seconds now
    io.advance(9)
    assert call(client) == ["BreakerOpen"]
    io.advance(1)
    response = client.get(URL)
    assert [(e.layer, e.decision) for e in explain(response)] == [
        ("Breaker", "half-opens"),
        ("transport", "answered"),
        ("Breaker", "closes"),
    ]
    assert call(client, 3) == [200] * 3


def test_the_key_is_the_origin_and_for_llm_calls_the_model():
    _, script, _, client = client_of(Breaker(), 503)
    for model in ("a", "b"):
        for _ in range(6):
            try:
                client.post("http://x.test/v1/chat/completions", json={**CHAT, "model": model})
            except BreakerOpen as exc:
                assert exc.key == f"{KEY} {model}"
    assert len(script.requests) == 10
    assert call(client) == [503]


def test_long_model_names_are_hashed():
    _, _, _, client = client_of(Breaker(consecutive=1), 503)
    client.post("http://x.test/v1/messages", json={**CHAT, "model": "m" * 5000})
    with pytest.raises(BreakerOpen, match=r"http://x.test:80 sha256:[0-9a-f]{64} is open"):
        client.post("http://x.test/v1/messages", json={**CHAT, "model": "m" * 5000})


def test_a_key_of_ones_own():
    _, script, _, client = client_of(Breaker(key=lambda request: request.url.path), 503)
    for path in ("/a", "/b"):
        for _ in range(6):
            try:
                client.get(f"http://x.test{path}")
            except BreakerOpen as exc:
                assert exc.key == path
    assert len(script.requests) == 10


def test_classify_overrides_and_leaves_the_rest_to_the_rule():
    def teapots_fail(outcome, request):
        return Verdict.FAILURE if getattr(outcome, "status_code", 0) == 418 else None

    _, script, _, client = client_of(Breaker(classify=teapots_fail), *[418] * 3, *[503] * 2, 200)
    call(client, 9)
    assert len(script.requests) == 5


def test_the_fuse_counts_any_non_200_the_fifth_in_ten_seconds():
    _, script, _, client = client_of(Breaker.fuse(), 200, 404, 429, 200, 301, "ReadError", 500, 200)
    assert call(client, 8) == [200, 404, 429, 200, 301, "ReadError", 500, "BreakerOpen"]


def test_by_hand():
    pipeline, script, _, client = client_of(Breaker(consecutive=1), 503)
    breaker = pipeline[Breaker]
    breaker.isolate(KEY)
    assert call(client) == ["BreakerOpen"]
    breaker.disable(KEY)
    assert call(client, 9) == [503] * 9
    breaker.reset(KEY)
    assert call(client, 2) == [503, "BreakerOpen"]
    breaker.close(KEY)
    assert call(client, 2) == [503, "BreakerOpen"]
    breaker.reset("http://nobody.test:80")
    pipeline.close()  # holds nothing: the circuit stays as it is
    assert json.dumps(pipeline.snapshot()["layers"][0]) == (
        '{"layer": "Breaker", "circuits": 1, "not_closed": {"http://x.test:80": "open"}, "probing": 0}'
    )


def test_keys_are_bounded_and_open_circuits_are_never_dropped():
    breaker = Breaker(consecutive=1, max_keys=100, key=lambda request: request.headers["x-key"])
    pipeline, script, io, client = client_of(breaker, 503, 200)
    assert call(client, headers={"x-key": "bad"}) == [503]
    for number in range(1000):
        call(client, headers={"x-key": str(number)})
    assert len(pipeline[Breaker]._circuits) == 100
    assert call(client, headers={"x-key": "bad"}) == ["BreakerOpen"]


def test_idle_circuits_go():
    breaker = Breaker(key=lambda request: request.headers["x-key"])
    pipeline, _, io, client = client_of(breaker, 200)
    for number in range(10):
        call(client, headers={"x-key": str(number)})
    io.advance(86_401)
    call(client, headers={"x-key": "new"})
    assert pipeline.snapshot()["layers"][0]["circuits"] == 1


def test_when_all_keys_are_armed_a_new_one_is_served_and_not_kept():
    breaker = Breaker(consecutive=1, max_keys=2, key=lambda request: request.headers["x-key"])
    pipeline, _, _, client = client_of(breaker, 503)
    assert [call(client, headers={"x-key": k})[0] for k in "abcc"] == [503] * 4
    assert pipeline.snapshot()["layers"][0]["not_closed"] == {"a": "open", "b": "open"}


# The end of a call is the end of its body


STREAM = Reply(chunks=[b"data: 1\n\n"] * 3)


def probing(*steps):
    """A pipeline whose circuit is open, and due for a probe."""
    pipeline, script, io, client = client_of(Breaker(consecutive=1, jitter=0.0), 503, *steps)
    call(client)
    io.advance(5)
    return pipeline, script, io, client


def state(pipeline):
    return pipeline.snapshot()["layers"][0]["not_closed"].get(KEY, "closed")


def test_a_probe_ends_with_its_body_read():
    pipeline, _, _, client = probing(STREAM)
    with client.stream("GET", URL) as response:
        assert state(pipeline) == "half-open"
        with pytest.raises(BreakerOpen, match="is half-open"):
            client.get(URL)
        response.read()
    assert state(pipeline) == "closed"


def test_a_probe_whose_body_breaks_off_has_failed():
    pipeline, _, _, client = probing(Reply(chunks=[b"x"], error="RemoteProtocolError"))
    with pytest.raises(httpx.RemoteProtocolError):
        client.get(URL)
    assert state(pipeline) == "open"


def test_the_first_content_of_a_probe_closes_the_circuit():
    pipeline, _, _, client = probing(STREAM)
    with client.stream("GET", URL) as response:
        next(response.iter_raw())
        assert state(pipeline) == "closed"
        assert call(client) == [200]


def test_a_reader_that_leaves_before_content_says_nothing():
    pipeline, _, _, client = probing(STREAM)
    with client.stream("GET", URL):
        pass
    assert state(pipeline) == "half-open"
    assert call(client) == [200]
    assert state(pipeline) == "closed"


def test_a_dropped_response_frees_its_place_and_warns():
    pipeline, _, _, client = probing(STREAM)
    response = client.send(client.build_request("GET", URL), stream=True)
    with pytest.warns(ResourceWarning, match="dropped without being read to its end or closed"):
        del response
        gc.collect()
    assert call(client) == [200]
    assert state(pipeline) == "closed"


def test_a_probe_cancelled_before_its_content_frees_its_place_and_closes_nothing():
    """Swept: cancelled at every suspension of a streamed call."""
    for point in range(100):
        io = VirtualIO()
        pipeline = Pipeline([Breaker(consecutive=1, jitter=0.0)])
        slow = Reply(chunks=[b"1", b"2"], delay=1, pause=1)
        script = Script(503, slow, io=io, forever=True)
        client = pipeline.async_client(transport=script, io=io)
        io.run(client.get(URL))
        io.advance(5)
        io._scheduled = True
        coroutine = client.get(URL)
        try:
            for _ in range(point + 1):
                coroutine.send(None)
                io.advance(1)
        except StopIteration:
            assert point == 3  # it ended by itself: headers and two chunks were waited for
            return
        with pytest.raises(asyncio.CancelledError):
            coroutine.throw(asyncio.CancelledError())
        io._scheduled = False
        assert state(pipeline) == ("half-open" if point < 2 else "closed")  # the headers, the first piece
        assert script.open == 0
        assert io.run(client.get(URL)).status_code == 200  # the place is free
        assert state(pipeline) == "closed"
    raise AssertionError("the sweep never came to an end")


# Real concurrency


class Gate:
    """An upstream of every mode that holds its calls until it is told to answer."""

    def __init__(self, callers, http):
        self.http = http
        self.calls = 0
        self.refused = threading.Semaphore(0)
        self.callers = callers
        self._lock = threading.Lock()

    def _count(self):
        with self._lock:
            self.calls += 1

    def handle_request(self, request):
        self._count()
        for _ in range(self.callers - 1):  # until all the others have been refused
            assert self.refused.acquire(timeout=20)
        return self.http.Response(200, stream=self.http.ByteStream(b"ok"))

    async def handle_async_request(self, request):
        import anyio.to_thread

        return await anyio.to_thread.run_sync(self.handle_request, request)


def half_open_pipeline():
    pipeline = Pipeline([Breaker(consecutive=1, open_for=0.000001)])
    pipeline.client(transport=Script(503)).get(URL)
    return pipeline


def outcome_of(gate, function):
    try:
        return function().status_code
    except BreakerOpen:
        gate.refused.release()
        return "refused"


async def async_outcome_of(gate, client):
    try:
        return (await client.get(URL)).status_code
    except BreakerOpen:
        gate.refused.release()
        return "refused"


async def gather_asyncio(gate, client, number):
    async with client:
        return await asyncio.gather(*(async_outcome_of(gate, client) for _ in range(number)))


async def gather_trio(gate, client, number):
    results = []

    async def one():
        results.append(await async_outcome_of(gate, client))

    async with client, trio.open_nursery() as nursery:
        for _ in range(number):
            nursery.start_soon(one)
    return results


@pytest.mark.parametrize(
    ("threads", "tasks", "trios"), [(50, 0, 0), (0, 50, 0), (0, 0, 50), (18, 16, 16)], ids=str
)
def test_fifty_callers_at_half_open_make_one_upstream_call(threads, tasks, trios, http):
    pipeline = half_open_pipeline()
    gate = Gate(threads + tasks + trios, http)
    results, lock = [], threading.Lock()

    def add(more):
        with lock:
            results.extend(more)

    blocking = pipeline.client(http=http, transport=gate)
    workers = [
        threading.Thread(target=lambda: add([outcome_of(gate, lambda: blocking.get(URL))]))
        for _ in range(threads)
    ]
    made = {"http": http, "transport": gate}
    if tasks:
        on_asyncio = gather_asyncio(gate, pipeline.async_client(**made), tasks)
        workers.append(threading.Thread(target=lambda: add(asyncio.run(on_asyncio))))
    if trios:
        client = pipeline.async_client(**made)
        workers.append(threading.Thread(target=lambda: add(trio.run(gather_trio, gate, client, trios))))
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert gate.calls == 1
    assert sorted(map(str, results)) == ["200"] + ["refused"] * 49
    assert pipeline.snapshot()["layers"][0]["not_closed"] == {}


def test_below_retry_an_open_circuit_is_not_retried():
    io = VirtualIO()
    script = Script(503, forever=True, io=io)
    client = Pipeline([Retry(), Breaker(consecutive=2)]).client(transport=script, io=io)
    with pytest.raises(BreakerOpen):
        client.get(URL)
    assert len(script.requests) == 2


def test_on_real_sockets_an_outage_is_cut_short(world, provider):
    async def main():
        url = f"{provider.url}/v1/chat/completions"
        async with world.client([Breaker()]) as client:
            for _ in range(20):
                try:
                    await client.post(url, json={**CHAT, "model": "drop"})
                except world.http.TransportError:
                    continue
            assert provider.calls == 5
            assert (await client.post(url, json={**CHAT, "model": "ok"})).status_code == 200

    world.run(main)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("failures", 0, "a whole number, 1 or more"),
        ("ratio", 1.5, "a number from 0 to 1"),
        ("window", 0, "a positive number of seconds"),
        ("consecutive", 0, "a whole number, 1 or more, or None"),
        ("open_for", -1, "a positive number of seconds"),
        ("open_max", float("inf"), "a positive number of seconds"),
        ("jitter", "x", "a number from 0 to 1"),
        ("probes", True, "a whole number, 1 or more"),
        ("lease", None, "a positive number of seconds"),
        ("key", "origin", "a function, or None"),
        ("classify", 3, "a function, or None"),
        ("max_keys", 0, "a whole number, 1 or more"),
    ],
)
def test_bad_settings_say_what_is_allowed(name, value, allowed):
    with pytest.raises(ValueError, match=rf"Breaker\({name}=…\) takes {allowed}, got {value!r}"):
        Breaker(**{name: value})


def test_settings_compare_and_print():
    assert Breaker() == Breaker()
    assert hash(Breaker()) == hash(Breaker())
    assert repr(Breaker(failures=3)) == "Breaker(failures=3)"
