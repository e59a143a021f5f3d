"""attach(): an SDK's client led through a pipeline, over a real socket."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import anthropic
import httpx
import httpx2
import openai
import pytest
import trio

from dspex_pipe import Pipeline, Retry, attach, build_async_client, build_client
from dspex_pipe.transport import AsyncTransport, Transport
from modes import lasting

MESSAGES = [{"role": "user", "content": "hi"}]
RETRY = Retry(wait_initial=0, wait_jitter=0)
KINDS = [openai.OpenAI, openai.AsyncOpenAI, anthropic.Anthropic, anthropic.AsyncAnthropic]
ASYNC = {openai.AsyncOpenAI, anthropic.AsyncAnthropic}
WAYS = [
    pytest.param(kind, loop, id=f"{kind.__name__}-{loop or 'blocking'}")
    for kind in KINDS
    for loop in (("asyncio", "trio") if kind in ASYNC else (None,))
]
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
ways = pytest.mark.parametrize(("kind", "loop"), WAYS)


def make(kind, url="http://upstream.test", **kwargs):
    root = f"{url}/v1" if kind in {openai.OpenAI, openai.AsyncOpenAI} else url
    return kind(api_key="k", base_url=root, **kwargs)


class Way:
    """An SDK client behind an async face; ``loop`` is None for a blocking one."""

    def __init__(self, loop):
        self.loop = loop

    def run(self, main):
        if self.loop == "trio":
            return trio.run(main)
        return asyncio.run(main())  # a blocking client works inside a running loop, too

    async def done(self, result):
        return result if self.loop is None else await result

    async def ask(self, sdk, model="ok"):
        """The text of an answer."""
        if hasattr(sdk, "chat"):
            answer = await self.done(sdk.chat.completions.create(model=model, messages=MESSAGES))
            return answer.choices[0].message.content
        answer = await self.done(sdk.messages.create(model=model, messages=MESSAGES, max_tokens=9))
        return answer.content[0].text

    async def close(self, *clients):
        for client in clients:
            await self.done(client.close())


def counting(calls):
    async def count(request, call_next):
        calls.append(request)
        return await call_next(request)

    return count


def pool_of(http_client, layers=0):
    """The pool below this many transports of ours."""
    transport = http_client._transport
    for _ in range(layers):
        transport = transport.inner
    return transport._pool


def settings(pool):
    plain = {
        name: value for name, value in vars(pool).items() if isinstance(value, bool | int | float | list)
    }
    return {name: value for name, value in plain.items() if name not in {"_connections", "_requests"}}


@ways
def test_calls_go_through_the_layers_and_are_retried_there(kind, loop, provider):
    way, calls = Way(loop), []

    async def main():
        original = make(kind, provider.url)
        sdk = attach(original, [RETRY, counting(calls)])
        assert type(sdk) is kind
        assert sdk.max_retries == 0
        assert original.max_retries == 2
        assert await way.ask(sdk, "503x2") == "Forty-two."
        assert {type(request) for request in calls} == {httpx2.Request}
        assert (len(calls), provider.calls) == (3, 3)
        await way.close(sdk, original)

    way.run(main)


@ways
def test_the_client_you_passed_works_on_untouched(kind, loop, provider):
    way, calls = Way(loop), []

    async def main():
        original = make(kind, provider.url)
        http_client, transport = original._client, original._client._transport
        sdk = attach(original, [counting(calls)])
        await way.ask(sdk)
        await way.close(sdk)
        assert sdk.is_closed()
        assert not original.is_closed()
        assert await way.ask(original) == "Forty-two."
        assert (original._client, original._client._transport) == (http_client, transport)
        assert (len(calls), provider.calls) == (1, 2)
        await way.close(original)

    way.run(main)


@ways
def test_closing_closes_the_connections_that_attach_opened(kind, loop, provider):
    way = Way(loop)

    async def main():
        original = make(kind, provider.url)
        sdk = attach(original, [])
        await way.ask(sdk)
        mine, theirs = pool_of(sdk._client, 1), pool_of(original._client)
        assert mine is not theirs
        assert (len(mine.connections), len(theirs.connections)) == (1, 0)
        await way.close(sdk)
        assert mine.connections == []
        await way.close(original)

    way.run(main)


@kinds
def test_what_the_sdk_set_up_is_kept(kind):
    original = make(kind, timeout=12.5)
    sdk = attach(original, [RETRY])
    old, new = original._client, sdk._client
    assert type(new) is type(old)
    assert isinstance(new, httpx2.AsyncClient if kind in ASYNC else httpx2.Client)
    assert type(new._transport) is (AsyncTransport if kind in ASYNC else Transport)
    assert sdk.timeout == original.timeout == 12.5
    assert (new.timeout, new.base_url) == (old.timeout, old.base_url)
    assert new.follow_redirects is old.follow_redirects is True
    kept = settings(pool_of(new, 1))
    assert kept == settings(pool_of(old))
    assert (kept["_max_connections"], kept["_max_keepalive_connections"]) == (1000, 100)
    if kind in {anthropic.Anthropic, anthropic.AsyncAnthropic}:
        assert kept["_socket_options"], "anthropic keeps idle connections alive by socket options"


@kinds
def test_environment_proxies_are_kept_and_lead_through_the_layers(kind, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.test:1")
    sdk = attach(make(kind), [RETRY])
    transport = sdk._client._transport_for_url(httpx2.URL("http://upstream.test/"))
    assert isinstance(transport, Transport | AsyncTransport)
    assert transport.inner._pool._proxy_url.host == b"proxy.test"


@ways
def test_the_users_http_client_is_shared_and_stays_open(kind, loop, provider):
    way, calls, hooked = Way(loop), [], []

    def note(request):
        hooked.append(request.url.path)

    async def anote(request):
        note(request)

    async def main():
        client_class = httpx2.AsyncClient if loop else httpx2.Client
        mine = client_class(headers={"x-mine": "1"}, event_hooks={"request": [anote if loop else note]})
        sdk = attach(make(kind, provider.url, http_client=mine), [counting(calls)])
        assert await way.ask(sdk) == "Forty-two."
        assert pool_of(sdk._client, 1) is pool_of(mine)
        assert len(pool_of(mine).connections) == 1
        await way.close(sdk)
        assert len(pool_of(mine).connections) == 1
        assert not mine.is_closed
        assert (await way.done(mine.get(f"{provider.url}/echo"))).status_code == 200
        assert provider.connections == 1, "both went over the one connection"
        assert (len(calls), len(hooked)) == (1, 2)
        await way.done(mine.aclose() if loop else mine.close())

    way.run(main)


@pytest.mark.parametrize("kind", [openai.OpenAI, openai.AsyncOpenAI])
def test_openai_with_an_httpx_client_stays_with_httpx(kind, provider):
    way, calls = Way("asyncio" if kind in ASYNC else None), []

    async def main():
        mine = httpx.AsyncClient() if kind in ASYNC else httpx.Client()
        sdk = attach(make(kind, provider.url, http_client=mine), [RETRY, counting(calls)])
        assert isinstance(sdk._client, type(mine))
        assert await way.ask(sdk, "503x1") == "Forty-two."
        assert {type(request) for request in calls} == {httpx.Request}
        await way.close(sdk)
        await way.done(mine.aclose() if kind in ASYNC else mine.close())

    way.run(main)


@ways
def test_attaching_twice_stacks_both_pipelines(kind, loop, provider):
    way, order = Way(loop), []

    def named(name):
        async def layer(request, call_next):
            order.append(name)
            return await call_next(request)

        return layer

    async def main():
        original = make(kind, provider.url)
        inner = attach(original, [named("inner")])
        outer = attach(inner, [named("outer")])
        await way.ask(outer)
        assert order == ["outer", "inner"]
        assert pool_of(outer._client, 2) is pool_of(inner._client, 1)
        await way.close(outer)
        await way.ask(inner)
        assert order == ["outer", "inner", "inner"]
        await way.close(inner, original)

    way.run(main)


@ways
def test_a_client_of_ours_as_http_client_can_be_attached_to(kind, loop, provider):
    way, calls = Way(loop), []

    async def main():
        mine = (build_async_client if loop else build_client)([RETRY], http=httpx2)
        sdk = attach(make(kind, provider.url, http_client=mine), [counting(calls)])
        assert await way.ask(sdk, "503x1") == "Forty-two."
        assert (len(calls), provider.calls) == (1, 2)
        await way.close(sdk)
        await way.done(mine.aclose() if loop else mine.close())

    way.run(main)


@kinds
def test_with_options_of_the_sdk_keeps_the_pipeline(kind):
    sdk = attach(make(kind), [RETRY])
    assert sdk.with_options(timeout=3)._client is sdk._client


def test_state_of_a_pipeline_is_shared_and_stays_open_and_of_a_list_it_closes():
    closed = []

    class State:
        async def __call__(self, request, call_next, io):
            raise NotImplementedError

        def close(self):
            closed.append(self)

    class Described:
        def build(self):
            return State()

    pipeline = Pipeline([Described()])
    for kind in (openai.OpenAI, anthropic.Anthropic):
        sdk = attach(make(kind), pipeline)
        assert sdk._client._transport._stack is pipeline
        sdk.close()
    assert closed == []
    attach(make(openai.OpenAI), [Described()]).close()
    assert len(closed) == 1
    assert closed != [pipeline[Described]]


def test_refusals_is_passed_on():
    with pytest.raises(ValueError, match="refusals= takes one of"):
        attach(make(openai.OpenAI), [], refusals="sometimes")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (None, "takes an OpenAI, AsyncOpenAI, Anthropic or AsyncAnthropic client, got NoneType"),
        (httpx.Client(), r"got Client; for plain httpx there is build_client\(\)"),
        (httpx2.AsyncClient(), "got AsyncClient; for plain httpx"),
        (openai.OpenAI, "takes an OpenAI"),
        ("OpenAI", "got str"),
    ],
    ids=lasting,
)
def test_what_is_no_sdk_client_is_refused(wrong, message):
    with pytest.raises(TypeError, match=message):
        attach(wrong, [])


def test_an_sdk_that_is_not_built_on_httpx_is_refused():
    class Sdk:
        _client = object()

        def with_options(self):
            raise NotImplementedError

    with pytest.raises(TypeError, match=r"builtins\.object is of neither httpx nor httpx2"):
        attach(Sdk(), [])


def test_a_bad_list_is_an_error_when_attaching():
    with pytest.raises(TypeError, match="Retry is a class"):
        attach(make(openai.OpenAI), [Retry])


HEAVY = ["openai", "anthropic", "httpx2", "hishel", "redis", "stamina", "pyrate_limiter"]


@pytest.mark.parametrize(
    "code", ["", "attach(type('X', (), {'_client': httpx.Client(), 'with_options': dict})(), [])"]
)
def test_no_sdk_and_nothing_heavy_is_imported(code):
    script = f"""
import sys, httpx
from dspex_pipe import *
{code}
print([name for name in {HEAVY} if name in sys.modules])
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout == "[]\n"
