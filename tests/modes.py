"""One test body for every mode and library: blocking, asyncio and trio, httpx and httpx2."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Any

import httpx
import httpx2
import trio

from dspex_pipe import Pipeline

MODES = ("blocking", "asyncio", "trio")
LIBRARIES = (httpx, httpx2)


def lasting(value: object) -> str:
    """What a value is called in a test's name: without its address, which differs from process to process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


class World:
    """A mode and a library. Test bodies are coroutines; in blocking mode they never suspend."""

    def __init__(self, mode: str, http: ModuleType) -> None:
        self.mode = mode
        self.http: Any = http
        self.blocking = mode == "blocking"

    def __repr__(self) -> str:
        return f"{self.mode}-{self.http.__name__}"

    def run(self, main: Callable[[], Awaitable[Any]]) -> Any:
        """Run a test body in this mode."""
        if self.mode == "asyncio":
            return asyncio.run(main())
        if self.mode == "trio":
            return trio.run(main)
        coroutine = main()
        try:
            coroutine.send(None)
        except StopIteration as done:
            return done.value
        raise AssertionError("a blocking test body suspended")

    @asynccontextmanager
    async def client(self, layers: Any = (), **kwargs: Any) -> Any:
        """A client of this mode and library over these layers (or this pipeline), behind an async face."""
        pipeline = layers if isinstance(layers, Pipeline) else Pipeline(layers)
        make = pipeline.client if self.blocking else pipeline.async_client
        face = Face(make(http=self.http, **kwargs), self.blocking)
        try:
            yield face
        finally:
            await face.close()


class Face:
    """A client of either mode; every method is awaited."""

    def __init__(self, client: Any, blocking: bool) -> None:
        self.client = client
        self.blocking = blocking

    async def _done(self, result: Any) -> Any:
        return result if self.blocking else await result

    async def request(self, method: str, url: str, **kwargs: Any) -> Any:
        return await self._done(self.client.request(method, url, **kwargs))

    async def get(self, url: str, **kwargs: Any) -> Any:
        return await self.request("GET", url, **kwargs)

    async def post(self, url: str, **kwargs: Any) -> Any:
        return await self.request("POST", url, **kwargs)

    async def send(self, request: Any, **kwargs: Any) -> Any:
        return await self._done(self.client.send(request, **kwargs))

    async def open(self, method: str, url: str, **kwargs: Any) -> Any:
        """Send, and leave the body for `read`, `read_one` or `drop`."""
        return await self.send(self.client.build_request(method, url, **kwargs), stream=True)

    async def read(self, response: Any) -> bytes:
        return await self._done(response.read() if self.blocking else response.aread())

    async def read_one(self, response: Any) -> bytes:
        """One raw piece of the body."""
        if self.blocking:
            self.kept = iter(response.stream)  # dropping it would close the body
            return next(self.kept)
        chunks = response.stream.__aiter__()  # aiter_raw() of httpx leaves a generator behind on trio
        piece = await anext(chunks)
        await chunks.aclose()
        return piece

    async def drop(self, response: Any) -> None:
        await self._done(response.close() if self.blocking else response.aclose())

    async def close(self) -> None:
        await self._done(self.client.close() if self.blocking else self.client.aclose())
