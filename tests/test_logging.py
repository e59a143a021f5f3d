"""Logging: one line per call, nothing secret in it, and nobody outside can forge one."""

from __future__ import annotations

import base64
import logging
import re
from contextlib import suppress

import anyio
import pytest
from hypothesis import given, strategies as st

from dspex_pipe import BreakerOpen, Logging, Pipeline, Retry, StreamIntegrity, Timeout, respond
from dspex_pipe.layers.logging import safe
from dspex_pipe.testing import Reply, Script, VirtualIO
from provider import Provider

URL = "http://api.test/items"
LLM = "http://api.test/v1/chat/completions"
SECRET = "hunter2hunter2"
CREDENTIALS = [
    "api-key",
    "authorization",
    "cookie",
    "proxy-authorization",
    "set-cookie",
    "x-api-key",
    "x-goog-api-key",
]


class Sink(logging.Handler):
    """A logger of its own, and what was logged to it."""

    def __init__(self, level=logging.INFO):
        super().__init__()
        self.logger = logging.Logger("sink", level)  # noqa: LOG001 - out of the tree, so tests do not meet
        self.logger.addHandler(self)
        self.records = []

    def emit(self, record):
        self.records.append(record)

    @property
    def lines(self):
        formatter = logging.Formatter("%(levelname)s %(message)s")
        return [formatter.format(record) for record in self.records]

    @property
    def only(self):
        (record,) = self.records
        return record


def log(world, sink, *steps, layers=(), method="GET", url=URL, headers=None, forever=False, **request):
    """One logged call to a script; errors of the wire are expected, and end here."""
    layer = Logging(logger=sink.logger) if headers is None else Logging(logger=sink.logger, headers=headers)
    io = VirtualIO()
    script = Script(*steps, io=io, forever=forever)

    async def main():
        async with world.client([layer, *layers], transport=script, io=io) as client:
            try:
                return await client.request(method, url, **request)
            except world.http.HTTPError as exc:
                return exc

    return world.run(main)


# One line per call


@pytest.mark.parametrize("status", [200, 204, 302, 304])
def test_a_call_that_went_well_is_one_info_line(world, status):
    sink = Sink()
    log(world, sink, Reply(status=status, delay=0.25))
    assert sink.lines == [f"INFO GET api.test/items -> {status} in 0.250 s, 1 attempt"]


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
def test_a_call_that_failed_is_a_warning(world, status):
    sink = Sink()
    log(world, sink, status)
    assert sink.lines == [f"WARNING GET api.test/items -> {status} in 0.000 s, 1 attempt"]


@pytest.mark.parametrize(
    ("fault", "why", "did"),
    [
        ("torn", "RemoteProtocolError", ""),
        ("cut", "RemoteProtocolError", ": StreamIntegrity finds (a stream that broke off)"),
        ("stall", "ReadTimeout", ": Timeout is over (first_content=0.05 s)"),
        ("ok", None, ""),
    ],
)
def test_a_stream_that_breaks_off_later_is_a_warning_of_its_own(world, fault, why, did):
    sink = Sink()
    patience = 0.05 if fault == "stall" else 30
    layers = [Logging(logger=sink.logger), Timeout(first_content=patience, idle=patience), StreamIntegrity()]
    ask = {"model": fault, "messages": [{"role": "user", "content": "hi"}], "stream": True}

    async def main(url):
        async with world.client(layers) as client:
            response = await client.open("POST", url, json=ask)
            with suppress(world.http.HTTPError):
                await client.read(response)
            await client.drop(response)

    with Provider(slow=0.5) as provider:
        world.run(lambda: main(f"{provider.url}/v1/chat/completions"))
    call, *later = [re.sub(r"127.0.0.1:\d+|\d\.\d{3}", "…", line) for line in sink.lines]
    assert call == "INFO POST …/v1/chat/completions -> 200 in … s, 1 attempt"
    broken_off = f"WARNING POST …/v1/chat/completions -> 200, broken off by {why} in … s, 1 attempt{did}"
    assert later == ([broken_off] if why else [])
    assert vars(sink.records[-1]).get("error.type") == why


def test_a_stream_that_begins_with_an_error_has_failed(world):
    sink = Sink()
    events = {"content-type": "text/event-stream"}
    busy = Reply(chunks=[b'data: {"error": {"type": "overloaded_error"}}\n\n'], headers=events)
    ask = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    retry = Retry(attempts=2, wait_initial=0, wait_jitter=0)
    response = log(world, sink, busy, layers=[retry], forever=True, method="POST", url=LLM, json=ask)
    assert response.status_code == 200
    (line,) = sink.lines
    assert line == (
        "WARNING POST api.test/v1/chat/completions -> 200, an error in the beginning of its stream "
        "in 0.000 s, 2 attempts: Retry retries (overloaded_error in the stream); "
        "Retry gives up (2 of 2 attempts made)"
    )


def test_a_stream_that_breaks_off_before_its_content_is_one_attempt(world):
    sink = Sink()
    events = {"content-type": "text/event-stream"}
    steps = [Reply(chunks=[b": ping\n\n"], headers=events, error="ReadError"), Reply(json={})]
    ask = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    retry = Retry(wait_initial=0, wait_jitter=0)
    log(world, sink, *steps, layers=[retry], method="POST", url=LLM, json=ask)
    (line,) = sink.lines
    assert line == (
        "INFO POST api.test/v1/chat/completions -> 200 in 0.000 s, 2 attempts: Retry retries (ReadError)"
    )


@pytest.mark.parametrize("name", ["ConnectError", "ReadTimeout", "RemoteProtocolError"])
def test_an_exception_is_a_warning_that_names_its_type_only(world, name):
    sink = Sink()
    got = log(world, sink, name)
    assert type(got).__name__ == name
    assert sink.lines == [f"WARNING GET api.test/items -> {name} in 0.000 s, 1 attempt"]
    assert getattr(sink.only, "error.type") == name
    assert sink.only.exc_info is None


@pytest.mark.parametrize(
    ("url", "shown", "port"),
    [
        ("http://u:p@127.0.0.1:8000/a", "127.0.0.1:8000", 8000),
        ("http://[::1]:8000/a", "[::1]:8000", 8000),
        ("https://api.test:443/a", "api.test", 443),
        ("https://api.test/a", "api.test", 443),
    ],
)
def test_two_servers_of_one_host_are_told_apart_by_their_ports(world, url, shown, port):
    sink = Sink()
    log(world, sink, 200, url=url)
    assert sink.lines == [f"INFO GET {shown}/a -> 200 in 0.000 s, 1 attempt"]
    assert getattr(sink.only, "server.port") == port


def test_the_line_tells_what_the_layers_did(world):
    sink = Sink()
    busy = Reply(status=503, headers={"retry-after": "2"})
    log(world, sink, busy, "ReadError", 200, layers=[Retry(wait_initial=1, wait_jitter=0)])
    assert sink.lines == [
        (
            "INFO GET api.test/items -> 200 in 4.000 s, 3 attempts: "
            "Retry retries (status 503); Retry retries (ReadError)"
        )
    ]


def test_a_decision_without_a_reason_is_told_without_one(world):
    async def quiet(request, call_next):
        request.extensions["dspex"].emit("quiet", "passes")
        return await call_next(request)

    sink = Sink(logging.DEBUG)
    log(world, sink, 200, layers=[quiet])
    assert sink.lines[0].endswith(": quiet passes (0.000 s, at 0.000 s)")
    assert sink.lines[-1].endswith("1 attempt: quiet passes")


def test_each_attempt_is_a_debug_line_when_that_is_enabled(world):
    sink = Sink(logging.DEBUG)
    log(world, sink, 503, Reply(delay=0.5), layers=[Retry(wait_initial=1, wait_jitter=0)])
    number = getattr(sink.records[-1], "dspex.call")
    assert sink.lines == [
        f"DEBUG call {number}: transport answered 503 (0.000 s, at 0.000 s)",
        f"DEBUG call {number}: Retry retries status 503 (1.000 s, at 0.000 s)",
        f"DEBUG call {number}: transport answered 200 (0.500 s, at 1.500 s)",
        "INFO GET api.test/items -> 200 in 1.500 s, 2 attempts: Retry retries (status 503)",
    ]
    assert {getattr(record, "dspex.call") for record in sink.records} == {number}


def test_one_call_watches_no_other(world):
    sink = Sink(logging.DEBUG)
    script = Script(200, "ReadError", 200)

    async def main():
        async with world.client([Logging(logger=sink.logger)], transport=script, io=VirtualIO()) as client:
            await client.get(URL)
            with pytest.raises(world.http.ReadError):
                await client.get(URL)
            await client.get(URL)

    world.run(main)
    assert [record.levelname for record in sink.records] == [
        "DEBUG",
        "INFO",
        "DEBUG",
        "WARNING",
        "DEBUG",
        "INFO",
    ]


def test_an_attempt_that_is_over_is_watched_no_more(world):
    sink = Sink(logging.DEBUG)
    script = Script(503, 200)

    async def main():
        layers = [Retry(), Logging(logger=sink.logger)]
        async with world.client(layers, transport=script, io=VirtualIO()) as client:
            await client.get(URL)

    world.run(main)
    assert [record.levelname for record in sink.records] == ["DEBUG", "WARNING", "DEBUG", "INFO"]


def test_what_is_not_enabled_is_not_logged(world):
    sink = Sink(logging.WARNING)
    log(world, sink, 200)
    assert sink.records == []
    log(world, sink, 500)
    assert [record.levelname for record in sink.records] == ["WARNING"]


def test_the_default_logger_is_ours(world, caplog):
    caplog.set_level(logging.INFO, "dspex_pipe")

    async def main():
        async with world.client([Logging()], transport=Script(200), io=VirtualIO()) as client:
            await client.get(URL)

    world.run(main)
    assert [record.name for record in caplog.records if record.name == "dspex_pipe"] == ["dspex_pipe"]


def test_a_refusal_is_a_warning_and_nothing_was_sent(world):
    async def refuse(request, call_next):
        raise BreakerOpen("the circuit\nis open", layer="refuse")

    sink = Sink()
    got = log(world, sink, layers=[refuse])
    assert isinstance(got, BreakerOpen)
    assert sink.lines == [
        "WARNING GET api.test/items -> BreakerOpen (the circuit\\nis open) in 0.000 s, 0 attempts"
    ]
    assert getattr(sink.only, "http.request.resend_count") == 0


# Structured fields


def fields(record):
    plain = vars(logging.makeLogRecord({}))
    return {name: value for name, value in vars(record).items() if name not in plain}


def test_the_fields_of_a_call_follow_opentelemetrys_names(world):
    sink = Sink()
    headers = {"x-request-id": "r-1", "retry-after": "9", "server": "s"}
    log(world, sink, 503, Reply(headers=headers, delay=1), layers=[Retry(wait_initial=1, wait_jitter=0)])
    told = fields(sink.only)
    assert isinstance(told.pop("dspex.call"), int)
    assert told == {
        "http.request.method": "GET",
        "server.address": "api.test",
        "server.port": 80,
        "url.path": "/items",
        "http.response.status_code": 200,
        "http.client.request.duration": 2.0,
        "http.request.resend_count": 1,
        "http.response.header.x-request-id": "r-1",
        "http.response.header.retry-after": "9",
        "dspex.layers": "Retry retries (status 503)",
    }


def test_headers_are_logged_by_name_in_any_case(world):
    sink = Sink()
    log(world, sink, Reply(headers={"Server": "s", "x-request-id": "r-1"}), headers=["SERVER", "absent"])
    headers = {name: value for name, value in fields(sink.only).items() if "header" in name}
    assert headers == {"http.response.header.server": "s"}


@pytest.mark.parametrize("name", [*CREDENTIALS, *map(str.title, CREDENTIALS)])
def test_a_credential_cannot_be_put_on_the_list(name):
    with pytest.raises(ValueError, match="takes a list of header names, none of them a credential") as caught:
        Logging(headers=["server", name])
    assert str(caught.value).startswith("Logging(headers=…)")
    assert name.lower() in str(caught.value)


@pytest.mark.parametrize("bad", ["server", {"server"}, None, 7, [7], [None]])
def test_headers_that_are_no_list_of_names_are_an_error(bad):
    with pytest.raises(ValueError, match=r"Logging\(headers=…\) takes a list of header names"):
        Logging(headers=bad)


@pytest.mark.parametrize("bad", [None, 7, logging, logging.Logger])
def test_a_logger_that_is_none_is_an_error(bad):
    with pytest.raises(ValueError, match=r"Logging\(logger=…\) takes a logger or its name, got "):
        Logging(logger=bad)


def test_the_configuration_compares_hashes_and_shows_what_differs():
    assert Logging() == Logging(headers=["Request-ID", "x-request-id", "retry-after"])
    assert hash(Logging()) == hash(Logging())
    assert repr(Logging()) == "Logging()"
    assert repr(Logging(logger="app", headers=())) == "Logging(logger='app', headers=())"


# Nothing secret


def leak(http_status):
    """A response that shows the secret wherever it can."""
    return Reply(
        status=http_status,
        headers={"set-cookie": f"s={SECRET}", "x-secret": SECRET, "location": f"http://a.test/?k={SECRET}"},
        json={"error": {"message": SECRET, "code": "x"}},
    )


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO])
def test_no_secret_is_ever_in_a_record(world, level, method):
    sink = Sink(level)
    steps = leak(503), world.http.ReadError(SECRET), leak(302), leak(200), leak(401), leak(429), 200
    script = Script(*steps, io=VirtualIO())
    headers = dict.fromkeys(CREDENTIALS, SECRET)
    url = f"https://user:{SECRET}@api.test/items?key={SECRET}#{SECRET}"

    async def main():
        layers = [Logging(logger=sink.logger), Retry(post="always", budget=None)]
        async with world.client(layers, transport=script, io=script.io) as client:
            while script.steps:
                await client.request(method, url, headers=headers, content=SECRET.encode())

    world.run(main)
    basic = base64.b64encode(f"user:{SECRET}".encode()).decode()
    assert len(sink.records) >= 3
    for record in sink.records:
        for secret in (SECRET, basic, "user", "key="):
            assert secret not in record.getMessage()
            assert secret not in repr(record.__dict__)


# Nothing forged

FORGED = "\r\nWARNING forged\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\x1b[31m\x00\x7f\u202e"


def assert_escaped(record):
    line = logging.Formatter("%(message)s").format(record)
    assert len(line.splitlines()) == 1
    for value in (line, *(v for v in fields(record).values() if isinstance(v, str))):
        assert value.isprintable()


def test_a_path_forges_no_line(world):
    sink = Sink(logging.DEBUG)
    url = world.http.URL("http://api.test/a").copy_with(
        raw_path=b"/a" + "".join(f"%{byte:02x}" for byte in FORGED.encode()).encode()
    )
    log(world, sink, 200, url=url)
    assert getattr(sink.records[-1], "url.path").startswith(r"/a\r\nWARNING forged\x0b")
    for record in sink.records:
        assert_escaped(record)


def test_a_header_forges_no_line(world):
    sink = Sink()
    log(world, sink, Reply(headers={b"x-request-id": FORGED.encode()}))
    assert r"\x85\u2028\u2029\x1b[31m" in getattr(sink.only, "http.response.header.x-request-id")
    assert_escaped(sink.only)


def test_a_header_in_many_lines_is_one_list_and_cut_as_one(world):
    async def answering(request, call_next):
        return respond(
            request, 200, headers=[("x-request-id", value) for value in ("a", "b" * 150, "c" * 150)]
        )

    sink = Sink()
    log(world, sink, layers=[answering])
    told = getattr(sink.only, "http.response.header.x-request-id")
    assert told == f"a, {'b' * 150}, {'c' * 45}…"


def test_a_method_and_an_exceptions_text_forge_no_line(world):
    sink = Sink()
    log(world, sink, world.http.RemoteProtocolError(FORGED), method="GE\u2028T")
    assert sink.lines == [r"WARNING GE\u2028T api.test/items -> RemoteProtocolError in 0.000 s, 1 attempt"]


def test_a_reason_forges_no_line(world):
    async def gossip(request, call_next):
        request.extensions["dspex"].emit("gossip", "heard", FORGED)
        return await call_next(request)

    sink = Sink(logging.DEBUG)
    log(world, sink, 200, layers=[gossip])
    for record in sink.records:
        assert_escaped(record)


def test_a_long_path_is_cut(world):
    sink = Sink()
    log(world, sink, 200, url="http://api.test/" + "a" * 5000)
    assert len(sink.only.getMessage()) < 300
    assert getattr(sink.only, "url.path") == "/" + "a" * 199 + "…"


@given(st.text())
def test_any_text_from_outside_is_one_short_printable_line(text):
    clean = safe(text)
    assert clean.isprintable()
    assert len(clean) <= 201
    if text.isprintable() and len(text) <= 200:
        assert clean == text


# Cancellation


@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_cancelled_call_is_nobodys_failure(http, backend, level):
    sink = Sink(level)

    class Upstream:
        async def handle_async_request(self, request):
            scope.cancel()
            await anyio.sleep_forever()

        async def aclose(self):
            pass

    async def main():
        nonlocal scope
        with anyio.CancelScope() as scope:
            pipeline = Pipeline([Logging(logger=sink.logger)])
            async with pipeline.async_client(http=http, transport=Upstream()) as client:
                await client.get(URL)

    scope = None
    anyio.run(main, backend=backend)
    assert scope.cancelled_caught
    assert sink.only.levelname == "INFO"
    assert sink.only.getMessage().startswith("GET api.test/items -> cancelled in ")
    assert getattr(sink.only, "error.type") in {"CancelledError", "Cancelled"}


def test_an_interrupted_blocking_call_is_told_as_cancelled(http):
    sink = Sink()

    def interrupt(request):
        raise KeyboardInterrupt

    pipeline = Pipeline([Logging(logger=sink.logger)])
    with (
        pipeline.client(http=http, transport=Script(interrupt), io=VirtualIO()) as client,
        pytest.raises(KeyboardInterrupt),
    ):
        client.get(URL)
    assert sink.lines == ["INFO GET api.test/items -> cancelled in 0.000 s, 0 attempts"]
    assert getattr(sink.only, "error.type") == "KeyboardInterrupt"
