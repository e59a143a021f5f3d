"""The public API as a type checker sees it; mypy and pyright read this file, nothing runs it."""

from __future__ import annotations

from typing import assert_type

import anthropic
import httpx
import httpx2
import openai

from dspex_pipe import (
    IO,
    Event,
    Handler,
    Logging,
    Pipeline,
    Refused,
    Request,
    Response,
    Retry,
    Trace,
    attach,
    build_async_client,
    build_client,
    explain,
    llm,
    options,
    refusal_of,
    respond,
)
from dspex_pipe.testing import Script, VirtualIO, check_layer


async def stamp(request: Request, call_next: Handler) -> Response:
    request.headers["x-team"] = "search"
    return await call_next(request)


async def slow(request: Request, call_next: Handler, io: IO) -> Response:
    await io.sleep(1)
    response = await call_next(request)
    assert_type(await io.read(response), bytes)
    assert_type(await io.read(response, 99), bytes | None)
    return response


def on_event(event: Event) -> None:
    assert_type(event.seconds, float)


pipeline = Pipeline([Logging(), stamp, slow, Retry(attempts=5)], on_event=on_event)
nested = Pipeline([pipeline, Retry()])

assert_type(build_client([Retry()]), httpx.Client)
assert_type(build_client(layers=[Retry()], timeout=5, base_url="http://x"), httpx.Client)
assert_type(build_client(pipeline, http=httpx), httpx.Client)
assert_type(build_client([Retry()], http=httpx2), httpx2.Client)
assert_type(build_async_client([Retry()]), httpx.AsyncClient)
assert_type(build_async_client([Retry()], http=httpx2), httpx2.AsyncClient)
assert_type(pipeline.client(), httpx.Client)
assert_type(pipeline.client(http=httpx2), httpx2.Client)
assert_type(pipeline.async_client(http=httpx2), httpx2.AsyncClient)
httpx.Client(transport=pipeline.transport(httpx.HTTPTransport()))
httpx2.AsyncClient(transport=pipeline.async_transport(httpx2.AsyncHTTPTransport()))
assert_type(attach(openai.OpenAI(), [Retry()]), openai.OpenAI)
assert_type(attach(anthropic.AsyncAnthropic(), pipeline), anthropic.AsyncAnthropic)

response = build_client([Retry()]).get(
    "http://x", extensions=options(retry=True, deadline=20, skip=["Retry"])
)
assert_type(response, httpx.Response)
assert_type(explain(response), Trace)
assert_type(refusal_of(response), Refused | None)
assert_type(respond(httpx.Request("GET", "http://x"), 200), httpx.Response)

with options(retry=False):
    pass

check_layer(stamp)
check_layer(Retry())
assert_type(VirtualIO().now(), float)
build_client([Retry()], transport=Script(503, 200), io=VirtualIO())

build_client(Retry())  # type: ignore[call-overload] # pyright: ignore[reportCallIssue, reportArgumentType]
build_client([Retry()], refusals="shout")  # type: ignore[call-overload] # pyright: ignore[reportCallIssue, reportArgumentType]
Retry(post="never")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
Retry(5)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]

client = llm.start_client("a", llm.ClientConfig(model="m", layers=[Retry()], api_key="k"))
assert_type(client, llm.Client)
assert_type(client.request("hi", temperature=0), llm.Completion)
assert_type(client.stream([{"role": "user", "content": "hi"}]), llm.Stream)
assert_type(llm.request("a", "hi").text, str)
for delta in client.stream("hi"):
    assert_type(delta, llm.Delta)


async def ask() -> str:
    async for delta in client.astream("hi"):
        assert_type(delta, llm.Delta)
    return (await client.arequest("hi")).text
