"""What docs/recipes.md says beside its snippets: which errors come out, and what the SDKs keep on doing."""

from __future__ import annotations

import asyncio

import anthropic
import httpx2
import openai
import pytest
from pydantic_ai import Agent, exceptions
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from dspex_pipe import (
    BreakerOpen,
    DeadlineExceeded,
    Overloaded,
    RateLimited,
    Retry,
    StreamIntegrity,
    attach,
    build_async_client,
    build_client,
    explain,
    refusal_of,
)

MESSAGES = [{"role": "user", "content": "hi"}]
RETRY = Retry(wait_initial=0, wait_jitter=0)


def refusing(kind):
    async def refuse(request, call_next):
        raise kind("no", layer="Layer", retry_after=3)

    return refuse


ERRORS = [
    (refusing(BreakerOpen), "ok", openai.InternalServerError, anthropic.ServiceUnavailableError),
    (refusing(Overloaded), "ok", openai.InternalServerError, anthropic.ServiceUnavailableError),
    (refusing(RateLimited), "ok", openai.RateLimitError, anthropic.RateLimitError),
    (refusing(DeadlineExceeded), "ok", openai.InternalServerError, anthropic.GatewayTimeoutError),
    (RETRY, "drop", openai.InternalServerError, anthropic.ServiceUnavailableError),
    (StreamIntegrity(), "drop", openai.APIConnectionError, anthropic.APIConnectionError),
    (StreamIntegrity(), "cut", openai.APIConnectionError, httpx2.RemoteProtocolError),
]


@pytest.mark.parametrize(("layer", "model", "of_openai", "of_anthropic"), ERRORS)
def test_each_failure_is_the_error_of_the_table(layer, model, of_openai, of_anthropic, provider):
    with openai.OpenAI(api_key="k", base_url=f"{provider.url}/v1") as sdk, attach(sdk, [layer]) as client:
        with pytest.raises(of_openai) as caught:
            list(client.chat.completions.create(model=model, messages=MESSAGES, stream=True))
        assert type(caught.value) is of_openai
    with anthropic.Anthropic(api_key="k", base_url=provider.url) as sdk, attach(sdk, [layer]) as client:
        with pytest.raises(of_anthropic) as caught:
            list(client.messages.create(model=model, messages=MESSAGES, max_tokens=9, stream=True))
        assert type(caught.value) is of_anthropic


def test_timeouts_and_redirects_are_the_sdks_where_the_table_says_so(provider):
    async def note(request, call_next):
        seconds = request.extensions["timeout"]
        asked.append((seconds["connect"], seconds["read"]))
        return await call_next(request)

    def ask(client):
        client.chat.completions.create(model="ok", messages=MESSAGES)
        return client._client.follow_redirects

    asked, url = [], f"{provider.url}/v1"
    with openai.OpenAI(api_key="k", base_url=url) as sdk, attach(sdk, [note]) as attached:
        assert ask(attached)
    for given in ({}, {"timeout": 30}):
        http = build_client([note], http=httpx2, **given)
        with openai.OpenAI(api_key="k", base_url=url, http_client=http) as client:
            assert not ask(client)
    assert asked == [(5, 600), (5, 600), (30, 30)]


PYDANTIC_AI = [
    (refusing(RateLimited), "ok", exceptions.ModelRateLimitError),
    (refusing(DeadlineExceeded), "ok", exceptions.ModelServerError),
    (RETRY, "quota", exceptions.ModelQuotaExceededError),
    (StreamIntegrity(), "cut", exceptions.ModelConnectionError),
]


@pytest.mark.parametrize(("layer", "model", "kind"), PYDANTIC_AI)
def test_pydantic_ai_tells_failures_apart(layer, model, kind, provider):
    async def stream():
        async with build_async_client([layer], http=httpx2) as http:
            ours = OpenAIProvider(base_url=f"{provider.url}/v1", api_key="k", http_client=http)
            async with Agent(OpenAIChatModel(model, provider=ours)).run_stream("hi") as result:
                await result.get_output()

    with pytest.raises(kind) as caught:
        asyncio.run(stream())
    if kind is exceptions.ModelRateLimitError:
        assert caught.value.retry_after == 3
        assert isinstance(refusal_of(caught.value), RateLimited)


def test_what_an_sdk_has_parsed_keeps_no_trace_but_a_raw_response_does(provider):
    with (
        openai.OpenAI(api_key="k", base_url=f"{provider.url}/v1") as sdk,
        attach(sdk, [RETRY]) as client,
    ):
        said = str(explain(client.chat.completions.create(model="ok", messages=MESSAGES)))
        assert "an SDK kept only what it parsed" in said
        with pytest.raises(openai.APIError) as caught:
            list(client.chat.completions.create(model="midway", messages=MESSAGES, stream=True))
        assert not explain(caught.value)
        raw = client.chat.completions.with_raw_response.create(model="503x1", messages=MESSAGES)
        assert [event.decision for event in explain(raw)] == ["answered", "retries", "answered"]
