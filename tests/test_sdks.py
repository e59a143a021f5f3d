"""The real SDKs through Retry and Logging, on real sockets, against a provider that misbehaves."""

from __future__ import annotations

import asyncio
import logging
import math
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import anthropic
import httpx
import httpx2
import openai
import pytest

from dspex_pipe import (
    BreakerOpen,
    DeadlineExceeded,
    Logging,
    Overloaded,
    RateLimited,
    Retry,
    attach,
    build_async_client,
    build_client,
    explain,
    options,
    record_of,
    refusal_of,
)
from dspex_pipe.testing import VirtualIO

MESSAGES = [{"role": "user", "content": "hi"}]
TEXT = "Forty-two."
RETRY = Retry(wait_initial=0, wait_jitter=0)
KINDS = [openai.OpenAI, openai.AsyncOpenAI, anthropic.Anthropic, anthropic.AsyncAnthropic]
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
blocking = pytest.mark.parametrize(
    "kind", [openai.OpenAI, anthropic.Anthropic], ids=lambda kind: kind.__name__
)


class Rig:
    """An SDK over the provider, through layers; its calls are made one by one, for all four SDK clients.

    ``attached`` leads the SDK's own client through the layers; else the SDK is given a client of ours,
    keeps its own two retries, and time is virtual.
    """

    def __init__(self, kind, provider, layers, *, attached=False, **kwargs):
        self.module = openai if kind.__module__.startswith("openai") else anthropic
        self.is_async = kind.__name__.startswith("Async")
        self.provider = provider
        self.loop = asyncio.Runner()
        root = f"{provider.url}/v1" if self.module is openai else provider.url
        make = build_async_client if self.is_async else build_client
        ours = None if attached else make(layers, http=httpx2, io=VirtualIO(), **kwargs)
        self.sdk = kind(api_key="k", base_url=root, http_client=ours)
        assert self.sdk.max_retries == 2
        self.closing = [self.sdk]
        if attached:
            self.sdk = attach(self.sdk, layers, **kwargs)
            self.closing.append(self.sdk)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        for client in self.closing:
            self.done(client.close())
        self.loop.close()

    def done(self, result):
        """The result of a call, of either mode."""
        if not self.is_async:
            return result

        async def wait():
            return await result

        return self.loop.run(wait(), context=copy_context())

    def calls(self, sdk=None):
        """The resource of the SDK with ``create``, and what it needs besides the model."""
        sdk = sdk or self.sdk
        if self.module is openai:
            return sdk.chat.completions, {"messages": MESSAGES}
        return sdk.messages, {"messages": MESSAGES, "max_tokens": 9}

    def ask(self, model="ok", **kwargs):
        resource, needed = self.calls()
        return self.done(resource.create(model=model, **needed, **kwargs))

    def text(self, model="ok", **kwargs):
        answer = self.ask(model, **kwargs)
        return answer.choices[0].message.content if self.module is openai else answer.content[0].text

    def fails(self, model="ok", **kwargs):
        """The SDK's error."""
        with pytest.raises(self.module.APIError) as caught:
            self.ask(model, **kwargs)
        return caught.value

    def pieces(self, stream):
        """All the text of a stream."""

        def text(event):
            if self.module is openai:
                return event.choices[0].delta.content or ""
            return getattr(getattr(event, "delta", None), "text", "")

        if not self.is_async:
            return "".join(map(text, stream))

        async def collect():
            return "".join([text(event) async for event in stream])

        return self.done(collect())


@pytest.fixture(params=[False, True], ids=["client", "attach"])
def attached(request):
    return request.param


@kinds
@pytest.mark.parametrize(
    ("model", "upstream"), [("ok", 1), ("503x2", 3), ("429x1", 2), ("dropx1", 2), ("truncatex1", 2)]
)
def test_passing_faults_are_retried_and_the_sdk_sees_success(
    kind, model, upstream, attached, provider, caplog
):
    provider.retry_after_ms = 1
    caplog.set_level(logging.INFO, "dspex_pipe")
    with Rig(kind, provider, [Logging(), RETRY], attached=attached) as rig:
        assert rig.text(model) == TEXT
    assert provider.calls == upstream
    (line,) = caplog.records
    assert line.levelno == logging.INFO
    assert " 200 " in line.getMessage()


@kinds
@pytest.mark.parametrize(
    ("model", "status"), [("503", 503), ("529", 529), ("drop", 503), ("truncate", 503), ("429", 429)]
)
def test_a_total_outage_costs_three_calls_though_the_sdk_would_retry(kind, model, status, provider):
    with Rig(kind, provider, [RETRY]) as rig:
        error = rig.fails(model)
    assert provider.calls == 3
    assert error.status_code == status
    assert error.response.headers["x-should-retry"] == "false"
    assert [event.decision for event in explain(error) if event.layer == "Retry"] == [
        "retries", "retries", "gives up",
    ]  # fmt: skip
    assert refusal_of(error) is None


@kinds
def test_a_quota_is_not_retried_by_anybody(kind, provider):
    with Rig(kind, provider, [RETRY]) as rig:
        error = rig.fails("quota")
    assert provider.calls == 1
    assert isinstance(error, rig.module.RateLimitError)


@kinds
@pytest.mark.parametrize(("name", "status"), [("ReadTimeout", 504), ("ReadError", 503)])
def test_an_exception_left_after_our_retries_is_answered_for_an_sdk(kind, name, status, provider):
    attempts = []

    async def breaks(request, call_next):
        attempts.append(request)
        raise getattr(httpx2, name)("the wire broke")

    with Rig(kind, provider, [RETRY, breaks]) as rig:
        error = rig.fails()
    # a second read timeout of a completion is the last: each may have been billed
    assert len(attempts) == (2 if name == "ReadTimeout" else 3)
    assert provider.calls == 0
    assert error.status_code == status
    assert f"{name} after our own retries: the wire broke" in str(error)
    assert "retries_spent" in error.response.text
    assert explain(error)[-1].decision == "gives up"


@blocking
def test_without_a_retry_of_ours_an_exception_reaches_the_sdk_which_retries_it_itself(kind, provider):
    attempts = []

    async def breaks(request, call_next):
        attempts.append(request)
        raise httpx2.ConnectError("no way")

    with Rig(kind, provider, [breaks]) as rig:
        rig.sdk = rig.sdk.with_options(max_retries=0)
        error = rig.fails()
    assert isinstance(error, rig.module.APIConnectionError)
    assert isinstance(error.__cause__, httpx2.ConnectError)
    assert len(attempts) == 1
    assert explain(error) == ()


REFUSALS = [
    (Overloaded("too many calls are waiting", layer="Limit"), 503),
    (BreakerOpen("the circuit is open", layer="Breaker", retry_after=7), 503),
    (RateLimited("the rate is used up", layer="Rate", retry_after=0.25), 429),
    (DeadlineExceeded("no time is left", layer="Clock"), 504),
]


@kinds
@pytest.mark.parametrize(("refused", "status"), REFUSALS, ids=lambda value: type(value).__name__)
def test_a_refusal_is_one_typed_sdk_error_and_no_call(kind, refused, status, attached, provider):
    runs = []

    async def refuse(request, call_next):
        runs.append(request)
        raise type(refused)(refused.reason, layer=refused.layer, retry_after=refused.retry_after)

    with Rig(kind, provider, [RETRY, refuse], attached=attached) as rig:
        error = rig.fails()
        typed = rig.module.RateLimitError if status == 429 else rig.module.APIStatusError
    assert (len(runs), provider.calls) == (1, 0)
    assert isinstance(error, typed)
    assert error.status_code == status
    hints = [error.response.headers.get(name) for name in ("retry-after", "retry-after-ms")]
    wait = refused.retry_after
    assert hints == ([None, None] if wait is None else [str(math.ceil(wait)), str(math.ceil(wait * 1000))])
    assert f"{refused.reason} (refused locally, nothing was sent)" in str(error)
    found = refusal_of(error)
    assert isinstance(found, type(refused))
    assert (found.reason, found.retry_after) == (refused.reason, refused.retry_after)
    last = explain(error)[-1]
    assert (last.layer, last.decision, last.reason) == (refused.layer, "refused", refused.reason)


@blocking
def test_refusals_raise_overrides_what_fits_an_sdk(kind, provider):
    async def refuse(request, call_next):
        raise Overloaded("full", layer="Limit")

    with Rig(kind, provider, [refuse], attached=True, refusals="raise") as rig:
        error = rig.fails()
    assert isinstance(error, rig.module.APIConnectionError)
    assert isinstance(error.__cause__, Overloaded)
    assert refusal_of(error) is error.__cause__


@kinds
def test_a_deadline_that_passes_while_the_server_is_slow_is_a_504(kind, provider):
    provider.slow = 0.2
    with Rig(kind, provider, [RETRY], attached=True) as rig:
        error = rig.fails("slow", extra_headers={"x-dspex-deadline": "0.05"})
    assert error.status_code == 504
    assert isinstance(refusal_of(error), DeadlineExceeded)
    assert provider.calls <= 1


# Streams


@kinds
@pytest.mark.parametrize("model", ["ok", "503x1", "429x1", "dropx1"])
def test_streams_work_through_the_layers(kind, model, attached, provider):
    provider.retry_after_ms = 1
    with Rig(kind, provider, [Logging(), RETRY], attached=attached) as rig:
        assert rig.pieces(rig.ask(model, stream=True)) == TEXT
    assert provider.calls == (1 if model == "ok" else 2)


@kinds
def test_a_stream_can_be_closed_early_and_its_connection_is_not_lost(kind, provider):
    with Rig(kind, provider, [RETRY], limits=httpx2.Limits(max_connections=1)) as rig:
        for _ in range(3):
            stream = rig.ask(stream=True)
            rig.done(anext(aiter(stream)) if rig.is_async else next(iter(stream)))
            rig.done(stream.close())
        assert rig.text() == TEXT
    assert provider.calls == 4


# Options


@kinds
def test_options_in_extra_headers_work_and_never_reach_the_server(kind, attached, provider):
    skipped = []

    async def picky(request, call_next):
        skipped.append(record_of(request).remaining())
        return await call_next(request)

    with Rig(kind, provider, [RETRY, picky], attached=attached) as rig:
        assert rig.text(extra_headers={"x-dspex-deadline": "20", "x-mine": "stays"}) == TEXT
        rig.sdk = rig.sdk.with_options(max_retries=0)
        assert rig.fails("503", extra_headers={"x-dspex-retry": "off"}).status_code == 503
        assert rig.text(extra_headers={"X-Dspex-Skip": "picky,Retry"}) == TEXT
    assert skipped == [pytest.approx(20, abs=1), None]
    assert provider.calls == 3
    assert provider.seen[0].headers["x-mine"] == "stays"
    assert not [name for seen in provider.seen for name in seen.headers if "dspex" in name]


@blocking
def test_header_options_pass_through_a_thread_pool_where_a_with_block_does_not(kind, provider):
    left = []

    async def look(request, call_next):
        left.append(record_of(request).remaining())
        return await call_next(request)

    headers = {"x-dspex-deadline": "20"}
    with Rig(kind, provider, [look]) as rig, ThreadPoolExecutor(4) as pool, options(deadline=30):
        asked = [pool.submit(rig.text, extra_headers=headers) for _ in range(8)]
        assert {future.result() for future in asked} == {TEXT}
        assert pool.submit(rig.text).result() == TEXT
    assert left == [*[pytest.approx(20)] * 8, None]
    assert not [name for seen in provider.seen for name in seen.headers if "dspex" in name]


@kinds
def test_a_with_block_counts_for_every_call_inside(kind, provider):
    with Rig(kind, provider, [RETRY]) as rig:
        rig.sdk = rig.sdk.with_options(max_retries=0)
        with options(retry=False):
            rig.fails("503x1")
            assert provider.calls == 1
        assert rig.text("503x2") == TEXT
    assert provider.calls == 4
    assert not [name for seen in provider.seen for name in seen.headers if "dspex" in name]


@blocking
def test_an_unknown_option_is_told_through_the_sdk_and_nothing_is_sent(kind, provider):
    with Rig(kind, provider, [RETRY]) as rig:
        rig.sdk = rig.sdk.with_options(max_retries=0)
        with pytest.raises(Exception, match=r"unknown option 'retries'|Connection error") as caught:
            rig.ask(extra_headers={"x-dspex-retries": "3"})
    told = caught.value if isinstance(caught.value, TypeError) else caught.value.__cause__
    assert str(told) == "unknown option 'retries': this pipeline takes deadline, retry, skip"
    assert provider.calls == 0


# The trace, found again


@kinds
def test_explain_takes_a_stream_and_a_raw_response(kind, attached, provider):
    with Rig(kind, provider, [RETRY], attached=attached) as rig:
        stream = rig.ask("503x1", stream=True)
        assert [event.decision for event in explain(stream)] == ["answered", "retries", "answered"]
        rig.pieces(stream)
        resource, needed = rig.calls()
        raw = rig.done(resource.with_raw_response.create(model="ok", **needed))
        assert [event.reason for event in explain(raw)] == ["200"]
        assert refusal_of(raw) is None


@blocking
def test_explain_takes_a_streaming_response(kind, provider):
    with Rig(kind, provider, [RETRY]) as rig:
        resource, needed = rig.calls()
        with resource.with_streaming_response.create(model="ok", **needed) as response:
            assert [event.reason for event in explain(response)] == ["200"]


@blocking
def test_explain_takes_the_sdks_streaming_helper(kind, provider):
    with Rig(kind, provider, [RETRY]) as rig:
        resource, needed = rig.calls()
        with resource.stream(model="ok", **needed) as helper:
            assert [event.reason for event in explain(helper)] == ["200"]


@blocking
def test_a_plain_call_with_httpx_beside_the_sdk_is_raised_to(kind, provider):
    """One pipeline, two kinds of callers: each is told of a refusal in its own way."""

    async def refuse(request, call_next):
        raise Overloaded("full", layer="Limit")

    with Rig(kind, provider, [refuse]) as rig:
        assert rig.fails().status_code == 503
        with build_client([refuse]) as plain, pytest.raises(httpx.TransportError, match="full"):
            plain.get(provider.url)
    assert provider.calls == 0
