"""build_client and build_async_client: what httpx makes of the same arguments, with layers around it."""

from __future__ import annotations

import asyncio
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import httpx
import httpx2
import pytest

from dspex_pipe import Pipeline, Retry, build_async_client, build_client
from dspex_pipe.testing import Script
from modes import Face

URL = "http://upstream.test/thing"
KINDS = [pytest.param(True, id="blocking"), pytest.param(False, id="async")]


class Proxy:
    """A tiny HTTP proxy: it notes the absolute URLs it is asked for, and answers itself."""

    def __init__(self):
        self.asked = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self):
                proxy.asked.append(self.path)
                self.send_response(200)
                self.send_header("content-length", "9")
                self.end_headers()
                self.wfile.write(b"via proxy")

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def proxy():
    running = Proxy()
    thread = threading.Thread(target=running.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield running
    running.server.shutdown()
    thread.join()
    running.server.server_close()


class Counting:
    """A described layer; ``calls`` and ``closes`` of all that were built from it."""

    def __init__(self):
        self.calls = []
        self.closes = 0

    def build(self):
        return _Counter(self)


class _Counter:
    def __init__(self, config):
        self.config = config

    async def __call__(self, request, call_next, io):
        self.config.calls.append(str(request.url))
        return await call_next(request)

    def close(self):
        self.config.closes += 1


class ClosesAsync(Counting):
    def build(self):
        counter = _Counter(self)

        async def aclose():
            self.closes += 1

        return _AsyncCloser(counter, aclose)


class _AsyncCloser:
    def __init__(self, counter, aclose):
        self.counter = counter
        self.aclose = aclose

    async def __call__(self, request, call_next, io):
        return await self.counter(request, call_next, io)


def build(blocking, layers=(), **kwargs):
    return (build_client if blocking else build_async_client)(layers, **kwargs)


def make(world, layers=(), **kwargs):
    """What the user gets, behind the async face."""
    return Face(build(world.blocking, layers, http=world.http, **kwargs), world.blocking)


def pool_of(client, url=URL):
    """The connection pool that httpx made for this URL, below the layers."""
    return client._transport_for_url(type(client.base_url)(url)).inner._pool


# What is made


@pytest.mark.parametrize("blocking", KINDS)
def test_the_client_is_a_real_one_of_the_library(http, blocking):
    client = build(blocking, [Retry()], http=http)
    assert type(client) is (http.Client if blocking else http.AsyncClient)


def test_without_http_the_client_is_of_httpx():
    assert type(build_client([])) is httpx.Client
    assert type(build_async_client([])) is httpx.AsyncClient
    assert type(Pipeline().client()) is httpx.Client
    assert type(Pipeline().async_client()) is httpx.AsyncClient


def test_a_call_goes_through_the_layers_to_a_real_server(world, provider):
    layer = Counting()

    async def main():
        client = make(world, [layer], base_url=provider.url)
        response = await client.get("/echo")
        assert response.status_code == 200
        await client.close()

    world.run(main)
    assert layer.calls == [f"{provider.url}/echo"]
    assert provider.calls == 1


def test_repr_of_the_transport_shows_the_layers_and_what_is_below(http):
    client = build_client([Retry()], http=http, transport=Script())
    assert repr(client._transport).startswith("Transport(Pipeline([Retry()]), <dspex_pipe.testing.")


def test_a_blocking_client_works_inside_a_running_event_loop(http, provider):
    async def main():
        with build_client([Retry(wait_initial=0, wait_jitter=0)], http=http) as client:
            return client.get(f"{provider.url}/status?fault=503x1")

    assert asyncio.run(main()).status_code == 200
    assert provider.calls == 2


# Arguments that are httpx's own


def test_proxy_is_used_and_seen_through_the_layers(world, proxy):
    layer = Counting()

    async def main():
        client = make(world, [layer], proxy=proxy.url)
        assert (await client.get(URL)).text == "via proxy"
        await client.close()

    world.run(main)
    assert proxy.asked == layer.calls == [URL]


def test_environment_proxies_and_no_proxy_count(world, proxy, provider, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    layer = Counting()

    async def main():
        client = make(world, [layer])
        assert (await client.get(URL)).text == "via proxy"
        assert (await client.get(f"{provider.url}/echo")).json()["headers"]
        await client.close()

    world.run(main)
    assert proxy.asked == [URL]
    assert layer.calls == [URL, f"{provider.url}/echo"]


@pytest.mark.parametrize("blocking", KINDS)
def test_trust_env_false_leaves_environment_proxies_alone(http, blocking, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.test:1")
    assert pool_of(build(blocking, http=http))._proxy_url.host == b"proxy.test"
    assert not hasattr(pool_of(build(blocking, http=http, trust_env=False)), "_proxy_url")


@pytest.mark.parametrize("blocking", KINDS)
def test_http2_limits_and_verify_reach_the_pool(http, blocking):
    context = ssl.create_default_context()
    limits = http.Limits(max_connections=7, max_keepalive_connections=3, keepalive_expiry=11)
    pool = pool_of(build(blocking, http=http, http2=True, limits=limits, verify=context))
    assert (pool._max_connections, pool._max_keepalive_connections, pool._keepalive_expiry) == (7, 3, 11)
    assert (pool._http1, pool._http2) == (True, True)
    assert pool._ssl_context is context
    plain = pool_of(build(blocking, http=http, verify=False))
    assert plain._ssl_context.verify_mode is ssl.CERT_NONE
    assert not plain._http2


@pytest.mark.filterwarnings("ignore:.*cert:DeprecationWarning")
@pytest.mark.parametrize("blocking", KINDS)
def test_cert_is_loaded_as_httpx_loads_it(http, blocking, tmp_path):
    missing = str(tmp_path / "client.pem")
    with pytest.raises(FileNotFoundError):
        build(blocking, http=http, cert=missing)


def test_url_params_headers_cookies_auth_and_hooks_keep_working(world, provider):
    hooked = []

    def note(message):
        hooked.append(type(message).__name__)

    async def anote(message):
        note(message)

    hook = note if world.blocking else anote

    async def main():
        client = make(
            world,
            [Counting()],
            base_url=provider.url,
            params={"a": "1"},
            headers={"x-mine": "yes"},
            cookies={"crumb": "c"},
            auth=("user", "word"),
            event_hooks={"request": [hook], "response": [hook]},
        )
        response = await client.get("/echo")
        assert response.request.url.query == b"a=1"
        await client.close()
        return response.json()["headers"]

    headers = world.run(main)
    assert headers["x-mine"] == "yes"
    assert headers["cookie"] == "crumb=c"
    assert headers["authorization"].startswith("Basic ")
    assert hooked == ["Request", "Response"]


def test_redirects_are_followed_when_asked_for_and_the_stack_runs_once_per_hop(world, provider):
    layer = Counting()
    there = f"{provider.url}/redirect?to={provider.url}/echo"

    async def main():
        client = make(world, [layer], follow_redirects=True)
        response = await client.get(there)
        assert (response.status_code, len(response.history)) == (200, 1)
        assert (await client.get(there, follow_redirects=False)).status_code == 307
        await client.close()

    world.run(main)
    assert layer.calls == [there, f"{provider.url}/echo", there]


def test_layers_stand_around_each_mount_and_a_none_mount_means_the_main_transport(world):
    layer, main_, mounted = Counting(), Script(200, forever=True), Script(204, forever=True)

    async def main():
        client = make(
            world,
            [layer],
            transport=main_,
            mounts={"http://a.test": mounted, "http://b.test": None, "all://*.c.test": mounted},
        )
        hosts = ("a.test", "b.test", "x.c.test", "d.test")
        statuses = [(await client.get(f"http://{host}/")).status_code for host in hosts]
        await client.close()
        return statuses

    assert world.run(main) == [204, 200, 204, 200]
    assert len(layer.calls) == 4
    assert (main_.closed, mounted.closed) == (0, 0)


# transport=


def test_any_transport_of_the_library_fits(world, provider):
    http, layer = world.http, Counting()

    def wsgi(environ, start_response):
        start_response("200 OK", [("content-type", "text/plain")])
        return [b"from wsgi"]

    async def asgi(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"from asgi"})

    real = http.HTTPTransport() if world.blocking else http.AsyncHTTPTransport()
    app = http.WSGITransport(app=wsgi) if world.blocking else http.ASGITransport(app=asgi)
    mock = http.MockTransport(lambda request: http.Response(200, text="from mock"))

    async def main():
        for transport, text in ((app, "from wsgi" if world.blocking else "from asgi"), (mock, "from mock")):
            client = make(world, [layer], transport=transport)
            assert (await client.get(URL)).text == text
            await client.close()
        client = make(world, [layer], transport=real, base_url=provider.url)
        assert (await client.get("/echo")).status_code == 200
        await client.close()
        assert len(real._pool.connections) == 1, "the transport that was passed in stays open"
        await (Face(real, world.blocking)).close()

    world.run(main)
    assert len(layer.calls) == 3


IGNORED = {
    "verify": False,
    "cert": "client.pem",
    "http1": True,
    "http2": True,
    "limits": httpx.Limits(),
    "proxy": "http://proxy.test",
    "trust_env": False,
}


@pytest.mark.parametrize("name", IGNORED)
@pytest.mark.parametrize("blocking", KINDS)
def test_an_argument_that_httpx_would_ignore_next_to_transport_is_an_error(blocking, name):
    with pytest.raises(TypeError, match=f"^{name} would be silently ignored next to transport=; give them"):
        build(blocking, transport=Script(), **{name: IGNORED[name]})


def test_all_ignored_arguments_are_named_at_once():
    with pytest.raises(TypeError, match=r"^verify, http2, proxy would be silently ignored"):
        build_client([], transport=Script(), proxy="http://proxy.test", verify=True, http2=False)
    with pytest.raises(TypeError, match=r"^trust_env would be silently ignored"):
        Pipeline().client(transport=Script(), trust_env=True)


@pytest.mark.parametrize("where", ["transport", "mounts"])
@pytest.mark.parametrize(
    ("blocking", "wrong", "message"),
    [
        (True, httpx.HTTPTransport, r"HTTPTransport is a class: a transport is needed, HTTPTransport\(…\)"),
        (True, httpx.AsyncHTTPTransport(), "a blocking client needs a transport with handle_request"),
        (False, httpx.HTTPTransport(), "an async client needs a transport with handle_async_request"),
        (False, httpx.AsyncHTTPTransport, "AsyncHTTPTransport is a class"),
        (True, "http://proxy.test", r"a blocking client needs .*handle_request\(\), got str"),
        (True, SimpleNamespace(handle_request=1), "needs a transport with .*, got SimpleNamespace"),
    ],
)
def test_what_is_no_transport_of_this_mode_is_an_error(where, blocking, wrong, message):
    given = {"transport": wrong} if where == "transport" else {"mounts": {"http://a.test": wrong}}
    with pytest.raises(TypeError, match=message):
        build(blocking, **given)


@pytest.mark.parametrize("method", ["transport", "async_transport"])
def test_a_pipelines_transport_checks_what_is_below_it(method):
    with pytest.raises(TypeError, match="Script is a class: a transport is needed"):
        getattr(Pipeline(), method)(Script)
    with pytest.raises(TypeError, match="needs a transport with handle_"):
        getattr(Pipeline(), method)(object())


@pytest.mark.parametrize("wrong", [httpx.Client, "httpx", pytest, httpx.Client()], ids=lambda w: str(w)[:20])
@pytest.mark.parametrize("blocking", KINDS)
def test_http_takes_the_two_modules_and_nothing_else(blocking, wrong):
    with pytest.raises(TypeError, match="http= takes the module httpx or httpx2, got"):
        build(blocking, http=wrong)


@pytest.mark.parametrize("wrong", ["Raise", "", None, True, 3])
@pytest.mark.parametrize("blocking", KINDS)
def test_refusals_takes_one_of_three_words(blocking, wrong):
    message = f"refusals= takes one of 'auto', 'raise', 'respond', got {wrong!r}"
    with pytest.raises(ValueError, match=message):
        build(blocking, refusals=wrong)
    with pytest.raises(ValueError, match=message):
        Pipeline().transport(Script(), refusals=wrong)


@pytest.mark.parametrize("blocking", KINDS)
def test_a_bad_list_and_a_bad_argument_are_errors_when_the_client_is_made(blocking):
    with pytest.raises(TypeError, match="Retry is a class"):
        build(blocking, [Retry])
    with pytest.raises(TypeError, match="no_such_argument"):
        build(blocking, [], no_such_argument=1)


# Closing


def test_a_client_closes_the_transports_that_it_made(world, provider, proxy):
    async def main():
        client = make(world, [], mounts={"http://a.test": None}, proxy=proxy.url)
        await client.get(URL)
        pool = pool_of(client.client)
        assert len(pool.connections) == 1
        await client.close()
        assert pool.connections == []

        direct = make(world, [], base_url=provider.url)
        await direct.get("/echo")
        pool = pool_of(direct.client)
        assert len(pool.connections) == 1
        await direct.close()
        assert pool.connections == []

    world.run(main)


def test_a_with_block_closes_them_too(world, provider):
    async def main():
        client = build(world.blocking, http=world.http)
        url = f"{provider.url}/echo"
        pool = pool_of(client)
        if world.blocking:
            with client:
                assert client.get(url).status_code == 200
                assert len(pool.connections) == 1
        else:
            async with client:
                assert (await client.get(url)).status_code == 200
                assert len(pool.connections) == 1
        assert pool.connections == []
        assert client.is_closed

    world.run(main)


def test_what_the_user_passed_in_is_never_closed_nor_entered(world):
    main_, mounted = Script(200, forever=True), Script(200, forever=True)

    async def main():
        client = build(world.blocking, http=world.http, transport=main_, mounts={"http://a.test": mounted})
        if world.blocking:
            with client:
                client.get(URL)
        else:
            async with client:
                await client.get(URL)

    world.run(main)
    assert (main_.closed, mounted.closed) == (0, 0)


def test_the_transport_of_a_pipeline_never_closes_the_inner_one(world):
    script, layer = Script(200, forever=True), Counting()
    pipeline = Pipeline([layer])

    async def main():
        if world.blocking:
            with world.http.Client(transport=pipeline.transport(script)) as client:
                client.get(URL)
        else:
            async with world.http.AsyncClient(transport=pipeline.async_transport(script)) as client:
                await client.get(URL)

    world.run(main)
    assert (len(layer.calls), layer.closes, script.closed) == (1, 0, 0)


def test_the_state_of_a_list_closes_with_the_client_exactly_once(world, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.test:1")
    layer = Counting()

    async def main():
        client = make(world, [layer], mounts={"http://a.test": Script()})
        assert layer.closes == 0
        await client.close()

    world.run(main)
    assert layer.closes == 1


def test_the_state_of_a_pipeline_outlives_its_clients(world):
    layer = Counting()
    pipeline = Pipeline([layer])

    async def main():
        for client in (
            make(world, pipeline),
            Face(
                (pipeline.client if world.blocking else pipeline.async_client)(http=world.http),
                world.blocking,
            ),
        ):
            await client.close()
        assert layer.closes == 0
        if world.blocking:
            pipeline.close()
        else:
            await pipeline.aclose()

    world.run(main)
    assert layer.closes == 1


def test_a_pipeline_within_the_list_stays_open():
    shared, own = Counting(), Counting()
    build_client([own, Pipeline([shared])], transport=Script()).close()
    assert (own.closes, shared.closes) == (1, 0)


def test_a_layer_that_only_closes_asynchronously_needs_an_async_client():
    layer = ClosesAsync()
    with pytest.raises(TypeError, match=r"layer ClosesAsync closes asynchronously: await pipeline\.aclose"):
        build_client([layer], transport=Script()).close()
    asyncio.run(build_async_client([layer], transport=Script(), http=httpx2).aclose())
    assert layer.closes == 1


def test_two_clients_of_one_list_have_two_states_and_of_one_pipeline_one():
    retry = Retry()
    clients = [build_client([retry], transport=Script(200)) for _ in range(2)]
    first, second = (client._transport._stack[Retry] for client in clients)
    assert first is not second
    pipeline = Pipeline([retry])
    blocking, other = build_client(pipeline), build_async_client(pipeline, http=httpx2)
    assert blocking._transport._stack[Retry] is other._transport._stack[Retry] is pipeline[Retry]
