"""docs/litellm.md: its snippets run, and what it says of litellm is true of the litellm that is installed."""

from __future__ import annotations

import asyncio
import gc
import os
import uuid
from collections.abc import Iterator
from contextlib import nullcontext, suppress

import httpx
import openai
import pytest
import stamina

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else importing it downloads a list of prices
import litellm
from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler, HTTPHandler

from dspex_pipe import (
    BreakerOpen,
    Cache,
    DeadlineExceeded,
    Overloaded,
    RateLimited,
    Retry,
    StreamIntegrity,
    attach,
    build_async_client,
    build_client,
    explain,
    options,
    refusal_of,
)
from provider import Provider
from snippets import CALLS, ROOT, run_snippet, snippets_of

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*`ReadOnly` qualifier:UserWarning",  # litellm's own types
    # Neither litellm nor the snippets close what they make: what that leaves behind is not under test here.
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore::ResourceWarning",
)

SNIPPETS = snippets_of(ROOT / "docs" / "litellm.md")
RETRY = Retry(wait_initial=0, wait_jitter=0)
THROUGH_THE_SDK = ["openai", "azure", "perplexity", "litellm_proxy"]
THROUGH_HANDLERS = [
    "anthropic", "deepseek", "fireworks_ai", "gemini", "groq", "hosted_vllm", "mistral", "openrouter",
    "together_ai", "xai",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _their_retries_do_not_wait(monkeypatch):
    """What is asked is how often they send, not how long they wait in between."""
    monkeypatch.setattr("openai._base_client.BaseClient._calculate_retry_timeout", lambda *_, **__: 0.0)
    monkeypatch.setattr("litellm.Router._time_to_sleep_before_retry", lambda *_, **__: 0.0)


@pytest.fixture
def provider() -> Iterator[Provider]:
    """A misbehaving LLM provider on a real socket."""
    with Provider() as running:
        yield running


@pytest.fixture(autouse=True)
def _alone(monkeypatch) -> Iterator[None]:
    """Neither proxies of the machine nor what a test has set in litellm decide what a test sees."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(litellm, "suppress_debug_info", True)
    yield
    litellm.client_session = litellm.aclient_session = None
    litellm.in_memory_llm_clients_cache.flush_cache()
    stamina.set_testing(False)


@pytest.fixture(scope="module", autouse=True)
def _tidy() -> Iterator[None]:
    """What is left behind is told here, not in another module's tests."""
    yield
    gc.collect()


def question(provider, model, **more):
    """The arguments of a ``completion``."""
    url = provider.url if model.startswith("anthropic/") else f"{provider.url}/v1"
    version = {"api_version": "2026-01-01"} if model.startswith("azure/") else {}
    messages = [{"role": "user", "content": uuid.uuid4().hex}]
    return {"model": model, "messages": messages, "api_key": "k", "api_base": url, **version, **more}


def refusing(kind):
    async def refuse(request, call_next):
        raise kind("no", layer="Layer", retry_after=3)

    return refuse


def handed(provider, name, http):
    """What ``client=`` takes, around a client of ours."""
    if name == "anthropic" and isinstance(http, httpx.Client):
        return HTTPHandler(client=http)
    if name == "anthropic":
        handler = AsyncHTTPHandler()
        handler.client = http
        return handler
    kind = openai.OpenAI if isinstance(http, httpx.Client) else openai.AsyncOpenAI
    return kind(api_key="k", base_url=f"{provider.url}/v1", http_client=http)


def ask(provider, model, **more):
    """The text of an answer; streamed or not."""
    answer = litellm.completion(**question(provider, model, **more))
    if not more.get("stream"):
        return answer.choices[0].message.content
    return "".join(chunk.choices[0].delta.content or "" for chunk in answer)


def test_the_document_has_snippets():
    assert len(SNIPPETS) == 6


@pytest.mark.parametrize(("document", "snippet"), SNIPPETS)
def test_snippet_runs(document, snippet, provider, monkeypatch, tmp_path):
    assert CALLS.search(snippet), "a recipe says how many calls it makes"
    stamina.set_testing(True, attempts=99, cap=True)  # as many attempts as ever, but no waits
    run_snippet(snippet, provider, monkeypatch, tmp_path)


# Where a client goes


@pytest.mark.parametrize("name", THROUGH_THE_SDK)
def test_the_session_is_used_by_providers_behind_the_sdk(name, provider):
    with build_client([refusing(BreakerOpen)]) as litellm.client_session:
        with pytest.raises(litellm.ServiceUnavailableError) as caught:
            ask(provider, f"{name}/ok")
        assert isinstance(refusal_of(caught.value), BreakerOpen)
    assert provider.calls == 0


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        (litellm.embedding, {"input": ["hi"]}),
        (litellm.text_completion, {"prompt": "hi"}),
        (litellm.image_generation, {"prompt": "hi"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_session_is_used_by_what_else_goes_through_the_sdk(call, arguments, provider):
    with build_client([refusing(BreakerOpen)]) as litellm.client_session:
        with pytest.raises(litellm.ServiceUnavailableError) as caught:
            call(model="openai/ok", api_key="k", api_base=f"{provider.url}/v1", **arguments)
        assert isinstance(refusal_of(caught.value), BreakerOpen)
    assert provider.calls == 0


@pytest.mark.parametrize("name", THROUGH_HANDLERS)
def test_other_providers_pass_the_session_by_and_take_a_handler(name, provider):
    with build_client([refusing(BreakerOpen)], refusals="respond") as http:
        litellm.client_session = http
        with suppress(openai.APIError):  # not all of them can read this provider's answer
            ask(provider, f"{name}/ok")
        assert provider.calls == 1

        with pytest.raises(litellm.ServiceUnavailableError) as caught:
            ask(provider, f"{name}/ok", client=HTTPHandler(client=http))
        assert isinstance(refusal_of(caught.value), BreakerOpen)
        assert provider.calls == 1


def test_responses_pass_the_session_by_and_take_a_handler(provider):
    pytest.importorskip("mcp", reason="litellm.responses needs it")
    asked = {"model": "openai/ok", "input": "hi", "api_key": "k", "api_base": f"{provider.url}/v1"}
    with build_client([refusing(BreakerOpen)], refusals="respond") as http:
        litellm.client_session = http
        litellm.responses(**asked)
        assert provider.calls == 1
        with pytest.raises(litellm.ServiceUnavailableError):
            litellm.responses(**asked, client=HTTPHandler(client=http))
    assert provider.calls == 1


# Errors

ERRORS = [
    (refusing(BreakerOpen), litellm.ServiceUnavailableError, litellm.InternalServerError),
    (refusing(Overloaded), litellm.ServiceUnavailableError, litellm.InternalServerError),
    (refusing(RateLimited), litellm.RateLimitError, litellm.InternalServerError),
    (refusing(DeadlineExceeded), litellm.Timeout, litellm.Timeout),
    (RETRY, litellm.ServiceUnavailableError, litellm.InternalServerError),
]


@pytest.mark.parametrize(("layer", "told", "raised"), ERRORS)
@pytest.mark.parametrize("way", ["sdk", "respond", "raise"])
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_each_failure_is_the_error_of_the_table(layer, told, raised, way, stream, provider):
    name = "openai" if way == "sdk" else "anthropic"
    with (
        build_client([layer], refusals="respond" if way == "respond" else "auto") as http,
        pytest.raises(raised if way == "raise" else told) as caught,
    ):
        ask(provider, f"{name}/drop", client=handed(provider, name, http), stream=stream)
    assert provider.calls == (3 if layer is RETRY else 0)
    assert (refusal_of(caught.value) is None) == (layer is RETRY)
    assert explain(caught.value)
    if told is litellm.Timeout:
        assert caught.value.status_code == (408 if way == "raise" else 504)


@pytest.mark.parametrize("name", ["openai", "anthropic"])
def test_a_stream_that_breaks_off_is_an_error_with_stream_integrity_only(name, provider):
    def read(*layers):
        with build_client(layers) as http:
            return ask(provider, f"{name}/cut", stream=True, client=handed(provider, name, http))

    assert read() == {"openai": "Forty-", "anthropic": "Forty-two."}[name]  # what has come until then
    with pytest.raises(litellm.exceptions.MidStreamFallbackError, match="nothing that says it is over"):
        read(StreamIntegrity())


# Retries


@pytest.mark.parametrize("mode", ["blocking", "async"])
@pytest.mark.parametrize(
    ("name", "given", "bare", "retried"),
    [
        ("openai", {}, 3, 3),
        ("openai", {"max_retries": 0}, 1, 3),
        ("openai", {"num_retries": 3}, 7, 12),
        ("anthropic", {}, 1, 3),
        ("anthropic", {"num_retries": 3}, 4, 12),
    ],
)
def test_what_a_question_to_a_dead_provider_costs(name, given, bare, retried, mode, provider):
    async def concurrently(layers):
        async with build_async_client(layers) as http:
            client = handed(provider, name, http)
            await litellm.acompletion(**question(provider, f"{name}/503", client=client, **given))

    def blocking(layers):
        with build_client(layers) as http:
            ask(provider, f"{name}/503", client=handed(provider, name, http), **given)

    def cost(*layers):
        before = provider.calls
        with pytest.raises((litellm.ServiceUnavailableError, litellm.InternalServerError)):
            asyncio.run(concurrently(layers)) if mode == "async" else blocking(layers)
        return provider.calls - before

    assert (cost(), cost(RETRY)) == (bare, retried)


@pytest.mark.parametrize(("given", "bare", "retried"), [({}, 3, 9), ({"num_retries": 0}, 1, 3)])
def test_what_a_router_makes_of_it(given, bare, retried, provider):
    def cost(*layers):
        before = provider.calls
        arguments = question(provider, "openai/503")
        messages = arguments.pop("messages")
        router = litellm.Router([{"model_name": "m", "litellm_params": arguments}], **given)
        with build_client(layers) as litellm.client_session:
            with pytest.raises(litellm.ServiceUnavailableError) as caught:
                router.completion("m", messages)
            litellm.in_memory_llm_clients_cache.flush_cache()
        assert not explain(caught.value)
        return provider.calls - before

    assert (cost(), cost(RETRY)) == (bare, retried)


def test_num_retries_sends_bad_requests_again_too(provider):
    with pytest.raises(litellm.BadRequestError):
        ask(provider, "openai/400", num_retries=3)
    assert provider.calls == 4


def test_litellm_sets_the_retries_of_a_client_that_it_is_given(provider):
    with openai.OpenAI(api_key="k", base_url=f"{provider.url}/v1") as given, attach(given, []) as client:
        assert client.max_retries == 0
        ask(provider, "openai/ok", client=client)
        assert client.max_retries == 2
        ask(provider, "openai/ok", client=client, max_retries=0)
        assert client.max_retries == 0


@pytest.mark.parametrize(
    ("layers", "refusals", "calls"),
    [((), "auto", 2), ((), "respond", 2), ((RETRY,), "auto", 4), ((RETRY,), "respond", 3)],
)
def test_the_async_handler_goes_around_the_layers_after_a_connection_error(layers, refusals, calls, provider):
    async def run():
        async with build_async_client(layers, refusals=refusals) as http:
            client = handed(provider, "anthropic", http)
            with pytest.raises((litellm.ServiceUnavailableError, litellm.InternalServerError)):
                await litellm.acompletion(**question(provider, "anthropic/drop", client=client))

    asyncio.run(run())
    assert provider.calls == calls


# What else works, and what does not


@pytest.mark.parametrize("name", ["openai", "anthropic"])
@pytest.mark.parametrize("where", ["extra_headers", "headers", "block"])
def test_options_work_and_stay_here(name, where, provider):
    with build_client([RETRY], refusals="respond") as http:
        given = {} if where == "block" else {where: {"x-dspex-deadline": "0.05"}}
        with (
            options(deadline=0.05) if where == "block" else nullcontext(),
            pytest.raises(litellm.Timeout) as caught,
        ):
            ask(provider, f"{name}/slow", client=handed(provider, name, http), **given)
    assert isinstance(refusal_of(caught.value), DeadlineExceeded)
    assert not [name for seen in provider.seen for name in seen.headers if "dspex" in name]


@pytest.mark.parametrize("name", ["openai", "anthropic"])
def test_litellm_asks_for_ten_minutes_connecting_included(name, provider):
    async def note(request, call_next):
        asked.append(request.extensions["timeout"])
        return await call_next(request)

    asked = []
    with build_client([note]) as http:
        ask(provider, f"{name}/ok", client=handed(provider, name, http))
    assert asked == [dict.fromkeys(("connect", "read", "write", "pool"), 600)]


def test_a_session_stays_open_and_what_is_set_later_goes_unnoticed(provider):
    async def note(request, call_next):
        noted.append(request)
        return await call_next(request)

    noted = []
    litellm.client_session = first = build_client([note])
    ask(provider, "openai/ok")
    litellm.client_session = second = build_client([])
    ask(provider, "openai/ok")
    assert len(noted) == 2

    first.close()
    with pytest.raises(litellm.InternalServerError):
        ask(provider, "openai/ok")
    litellm.in_memory_llm_clients_cache.flush_cache()
    ask(provider, "openai/ok")
    assert (len(noted), provider.calls) == (2, 3)
    litellm.in_memory_llm_clients_cache.flush_cache()
    assert not second.is_closed
    second.close()


def test_one_async_session_in_a_second_event_loop_sends_twice(provider):
    litellm.aclient_session = build_async_client([RETRY])
    for calls in (1, 3):
        asyncio.run(litellm.acompletion(**question(provider, "openai/ok")))
        assert provider.calls == calls


def test_a_hit_of_our_cache_has_a_price_for_litellm(provider):
    asked = question(provider, "openai/gpt-4o-mini")
    with build_client([Cache()]) as litellm.client_session:
        first, second = [litellm.completion(**asked)._hidden_params["response_cost"] for _ in range(2)]
    assert first == second > 0
    assert provider.calls == 1
