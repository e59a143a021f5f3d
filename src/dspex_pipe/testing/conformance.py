"""The conformance kit: what every layer promises, checked in every mode and for both libraries."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Awaitable, Callable, Mapping
from importlib.util import find_spec
from typing import Any

import anyio
import anyio.lowlevel

from ..chain import blame
from ..errors import LayerError
from ..family import Family, Request, Response, load
from ..io import drive
from ..pipeline import LayerLike, Pipeline
from .script import Reply, Script
from .virtual import VirtualIO

__all__ = ["check_layer"]

_MARK = "x-upstream"
_EVENTS = (b"data: one\n\n", b"data: two\n\n", b"data: three\n\n")
_AT_ONCE = 8


def check_layer(layer: LayerLike, *, request: Mapping[str, Any] | None = None) -> None:
    """Check that a layer keeps the contract: blocking, asyncio and trio, httpx and httpx2 where installed.

    A layer may answer, repeat, refuse or change what passes. But it must work without suspending under a
    blocking client; hand on bodies whole, and streams as streams; leave the caller's request as it is; close
    every response that it drops; let errors and cancellation through; work on after them; and answer calls
    made at once, each with a response of its own. A described layer is built with fresh state each time.

    Args:
        layer: A layer, as it would stand in a list.
        request: What to send: arguments of ``httpx.Client.build_request``; by default a plain GET.

    Raises:
        AssertionError: It names the layer, the promise that is broken, the mode and the library.
    """
    _check_build(layer)
    arguments = {"method": "GET", "url": "http://upstream.test/thing", **(request or {})}
    modes = ["blocking", "asyncio", *(["trio"] if find_spec("trio") else [])]
    for family in [load(name) for name in ("httpx", "httpx2") if find_spec(name)]:
        for mode in modes:
            for promise, scenario in _SCENARIOS.items():
                rig = _Rig(layer, family, mode, arguments)
                try:
                    rig.run(scenario)
                except Exception as exc:
                    told = str(exc) if isinstance(exc, AssertionError | LayerError) else repr(exc)
                    raise AssertionError(
                        f"{layer!r} breaks its promise to {promise} ({mode}, {family.name}): {told}"
                    ) from exc


def _check_build(layer: Any) -> None:
    Pipeline([layer])  # its errors say best what is wrong with a thing that is no layer
    if not hasattr(layer, "build") or isinstance(layer, Pipeline):
        return
    _must(layer.build() is not layer.build(), f"{layer!r}.build() returns the same state twice")
    _must(layer == copy.deepcopy(layer), f"{layer!r} does not compare equal to a copy of itself")
    hash(layer)


def _fresh(layer: Any) -> Any:
    """A pipeline keeps its state, wherever it goes: each scenario gets one like it that has seen nothing."""
    if not isinstance(layer, Pipeline):
        return layer
    return Pipeline(map(_fresh, layer.layers), on_event=layer.on_event, meanings=layer.meanings)


class _Rig:
    """A client of one mode and library, whose every request goes through the layer to a script."""

    def __init__(self, layer: LayerLike, family: Family, mode: str, arguments: Mapping[str, Any]) -> None:
        self.family = family
        self.mode = mode
        self.pipeline = Pipeline([_fresh(layer)])
        self.io = VirtualIO()
        self._arguments = arguments
        self._client: Any = None
        self.script = Script()

    def run(self, scenario: Callable[[_Rig], Awaitable[None]]) -> None:
        """Run a scenario in the rig's mode; on a thread of its own, since a loop may run on this one."""
        failure: list[BaseException] = []

        async def play() -> None:
            await scenario(self)
            await (self._client.aclose() if self.mode != "blocking" else _done(self._client.close()))

        def enter() -> None:
            try:
                if self.mode == "blocking":
                    drive(play(), blame)
                else:
                    anyio.run(play, backend=self.mode)
            except BaseException as exc:  # noqa: BLE001 - carried over to the caller's thread
                failure.append(exc)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        if failure:
            raise failure[0]

    def upstream(self, *steps: Any, transport: Any = None) -> None:
        """Begin: a fresh client over a script, which answers on with its last step."""
        self.script = Script(*steps, forever=True, io=self.io)
        make = self.pipeline.client if self.mode == "blocking" else self.pipeline.async_client
        self._client = make(
            http=self.family.module, transport=transport or self.script, io=self.io, refusals="raise"
        )

    def request(self) -> Request:
        """A request as a caller builds it."""
        request: Request = self._client.build_request(**self._arguments)
        return request

    async def send(self, request: Request | None = None) -> Response:
        """Send; the body is left for `read` or `close`."""
        answer = self._client.send(request or self.request(), stream=True)
        response: Response = answer if self.mode == "blocking" else await answer
        return response

    async def try_to_send(self, request: Request | None = None) -> Response | None:
        """Send; ``None`` when that raises what a caller of this library expects to be raised."""
        try:
            return await self.send(request)
        except self.family.module.HTTPError:
            return None

    async def try_to_read(self, response: Response | None) -> bytes:
        """The raw body, whole, of a response if there is one."""
        return b"" if response is None else await self.read(response)

    def is_upstreams(self, response: Response | None) -> bool:
        """Whether this is the script's answer, as it was."""
        return response is not None and _MARK in response.headers

    async def read(self, response: Response) -> bytes:
        """The raw body, whole; a response that httpx made of ``content=`` has been read already."""
        if response.is_stream_consumed:
            return response.content
        if self.mode == "blocking":
            return b"".join(response.iter_raw())
        return b"".join([chunk async for chunk in response.aiter_raw()])

    async def read_one(self, response: Response) -> None:
        """One piece of the raw body, and then close it."""
        stream: Any = response.stream  # not aiter_raw(): of httpx, that leaves a generator behind on trio
        if self.mode == "blocking":
            next(iter(stream))
        else:
            chunks = stream.__aiter__()
            await anext(chunks)
            await chunks.aclose()
        await self.close(response)

    async def close(self, response: Response) -> None:
        """Close the body."""
        if self.mode == "blocking":
            response.close()
        else:
            await response.aclose()

    def check_nothing_open(self) -> None:
        """Every body that the script handed out is read to its end, or closed."""
        _must(not self.script.open, f"{self.script.open} of {len(self.script.bodies)} bodies left open")


def _must(true: bool, told: str) -> None:
    """An assertion that python -O does not take away."""
    if not true:
        raise AssertionError(told)


async def _done(_: None) -> None:
    """What a blocking close is, where something is awaited."""


def _good(_: Request) -> Reply:
    return Reply(json={"answer": 42}, headers={_MARK: "1"})


async def _answers(rig: _Rig) -> None:
    rig.upstream(_good)
    response = await rig.try_to_send()
    body = await rig.try_to_read(response)
    if rig.is_upstreams(response):
        _must(body == b'{"answer": 42}', f"the body was {body[:80]!r}")
    rig.check_nothing_open()


async def _keeps_the_request(rig: _Rig) -> None:
    rig.upstream(_good)
    request = rig.request()
    before = request.method, str(request.url), request.headers.raw, copy.deepcopy(request.extensions)
    await rig.try_to_read(await rig.try_to_send(request))
    after = request.method, str(request.url), request.headers.raw, copy.deepcopy(request.extensions)
    _must(before == after, f"it was {before}, and is {after}")


def _stream(**more: Any) -> Reply:
    return Reply(chunks=_EVENTS, headers={_MARK: "1", "content-type": "text/event-stream"}, **more)


async def _streams(rig: _Rig) -> None:
    rig.upstream(lambda _: _stream())
    response = await rig.try_to_send()
    body = await rig.try_to_read(response)
    if rig.is_upstreams(response):
        _must(body == b"".join(_EVENTS), f"the stream was {body[:80]!r}")
    rig.check_nothing_open()


async def _lets_go_early(rig: _Rig) -> None:
    rig.upstream(lambda _: _stream())
    response = await rig.try_to_send()
    if response is not None:
        await (rig.read_one(response) if rig.is_upstreams(response) else rig.read(response))
    rig.check_nothing_open()


async def _closes_what_it_drops(rig: _Rig) -> None:
    busy = Reply(status=503, chunks=(b"busy",) * 3)
    rig.upstream(busy, busy, _good)
    await rig.try_to_read(await rig.try_to_send())
    rig.check_nothing_open()


async def _lets_errors_through(rig: _Rig) -> None:
    rig.upstream("ReadError", _good)
    await rig.try_to_read(await rig.try_to_send())
    await rig.try_to_read(await rig.try_to_send())  # it may refuse, but not be stuck or broken
    rig.check_nothing_open()


async def _shows_truncation(rig: _Rig) -> None:
    rig.upstream(lambda _: _stream(error="RemoteProtocolError"))
    response = await rig.try_to_send()
    try:
        await rig.try_to_read(response)
    except rig.family.module.HTTPError:
        pass
    else:
        _must(not rig.is_upstreams(response), "a broken body looked complete")
    rig.check_nothing_open()


class _Interrupt(BaseException):
    """What Ctrl-C is to a blocking call."""


async def _lets_cancellation_through(rig: _Rig) -> None:
    if rig.mode == "blocking":

        def interrupt(_: Request) -> None:
            raise _Interrupt

        rig.upstream(interrupt)
        try:
            await rig.try_to_send()
        except _Interrupt:
            return
        _must(not rig.script.requests, "an interrupt was swallowed")
        return
    with anyio.CancelScope() as scope:
        rig.upstream(_good, transport=_Cancelling(scope))
        await rig.try_to_send()
    _must(scope.cancelled_caught or not scope.cancel_called, "a cancellation was swallowed")


class _Cancelling:
    """An async upstream in whose midst the caller is cancelled."""

    def __init__(self, scope: anyio.CancelScope) -> None:
        self._scope = scope

    async def handle_async_request(self, _: Request) -> None:
        self._scope.cancel()
        await anyio.lowlevel.checkpoint()


async def _answers_at_once(rig: _Rig) -> None:
    rig.upstream(_good)
    got: list[Response] = []

    async def one() -> None:
        response = await rig.try_to_send()
        await rig.try_to_read(response)
        got.extend([response] if response is not None else [])

    if rig.mode == "blocking":
        threads = [threading.Thread(target=lambda: drive(one(), blame)) for _ in range(_AT_ONCE)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    else:
        async with anyio.create_task_group() as group:
            for _ in range(_AT_ONCE):
                group.start_soon(one)
    _must(len({id(response) for response in got}) == len(got), "two calls got one response object")
    rig.check_nothing_open()


async def _tells_its_state(rig: _Rig) -> None:
    rig.upstream(_good)
    await rig.try_to_read(await rig.try_to_send())
    json.dumps(rig.pipeline.snapshot())


_SCENARIOS: Mapping[str, Callable[[_Rig], Awaitable[None]]] = {
    "answer a call": _answers,
    "leave the caller's request as it is": _keeps_the_request,
    "hand on a stream as it is": _streams,
    "let go of a stream that the caller closes early": _lets_go_early,
    "close every response that it drops": _closes_what_it_drops,
    "let errors through, and work on": _lets_errors_through,
    "show a broken body as broken": _shows_truncation,
    "let cancellation through": _lets_cancellation_through,
    "answer calls made at once, each with a response of its own": _answers_at_once,
    "tell its state in JSON": _tells_its_state,
}
