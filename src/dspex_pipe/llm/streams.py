"""Answers that stream in: deltas out of events, and events out of bytes, for both kinds of code."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Self

from ..events import explain
from ..io import ASYNC, BLOCKING, drive
from ..wire import is_event_stream
from ..wire.inflate import Inflate, inflater
from ..wire.sse import Parser
from .call import Call, request_id
from .completion import Delta
from .errors import ProviderDown
from .formats import Malformed

if TYPE_CHECKING:
    from ..family import Response

__all__ = ["AsyncStream", "Stream"]


class _Streaming:
    """What both streams know: deltas out of events, and events out of bytes."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._parser = Parser()
        self._inflate: Inflate
        self._ready: deque[Delta | Exception] = deque()
        self._begun = self._done = False
        self.response: Any = None
        """The response, once it has begun."""
        self.text = ""
        """What the model has said so far."""
        self.finish_reason: str | None = None
        """Why the answer has ended, if it has."""

    def _check(self, response: Response) -> None:
        """Raise for what is no stream."""
        self._call.check(response)
        if not is_event_stream(response.headers):
            raise Malformed("an answer that is no event stream")
        inflate = inflater(response.headers.get("content-encoding", ""))
        if inflate is None:
            raise Malformed("a stream in an encoding that is not known here")
        self._inflate = inflate

    def _feed(self, chunk: bytes) -> None:
        """Take the next bytes of the body. An error comes in its place, behind what came before it."""
        try:
            for piece in self._inflate(chunk):
                for event in self._parser.feed(piece):
                    if event.data.startswith("[DONE]"):
                        continue
                    delta = self._call.event(event.data, self.response)
                    if delta is not None:
                        self._ready.append(delta)
        except Exception as exc:  # noqa: BLE001 - raised when its turn comes
            self._ready.append(exc)

    def _take(self) -> Delta:
        ready = self._ready.popleft()
        if isinstance(ready, Exception):
            raise ready
        self.text += ready.text
        self.finish_reason = ready.finish_reason or self.finish_reason
        return ready

    def _check_end(self) -> None:
        """Raise for a stream that simply stops."""
        if self.finish_reason is None:
            raise ProviderDown(
                "the stream ended with nothing that says it is over",
                client=self._call.client.name,
                request_id=request_id(self.response),
                trace=explain(self.response),
            )

    def __del__(self) -> None:
        if self._begun and not self._done:
            self._call.client.under_way.dropped.append(None)


class Stream(_Streaming):
    """An answer that streams in, for blocking code: an iterator over `Delta`, and a context manager."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self._chunks: Any = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Delta:
        if self._done:
            raise StopIteration
        try:
            if not self._begun:
                self._open()
            while not self._ready:
                chunk = drive(_next(self._chunks))
                if chunk is None:
                    break
                self._feed(chunk)
            if self._ready:
                return self._take()
            self._check_end()
        except Exception as exc:  # noqa: BLE001 - raised again, as what it means
            self.close()
            self._call.fail(exc)
        except BaseException:
            self.close()
            raise
        self.close()
        raise StopIteration

    def _open(self) -> None:
        call = self._call
        call.client.under_way.__enter__()
        self._begun = True
        client = call.pools().blocking()
        response = self.response = client.send(call.request(client), stream=True)
        if not response.is_success:
            response.read()
        self._check(response)
        self._chunks = BLOCKING.chunks(response)

    def close(self) -> None:
        """Leave the rest, and give the connection back."""
        begun, done = self._begun, self._done
        self._done = True
        try:
            if self._chunks is not None:
                self._chunks.close()
            elif self.response is not None:
                self.response.close()
        finally:
            if begun and not done:
                self._call.client.under_way.__exit__()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


async def _next(chunks: AsyncIterator[bytes]) -> bytes | None:
    return await anext(chunks, None)


class AsyncStream(_Streaming):
    """An answer that streams in, for asyncio and trio: an async iterator over `Delta`, a context manager."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self._chunks: AsyncIterator[bytes] | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        if self._done:
            raise StopAsyncIteration
        if self._begun and self._call.client.under_way.broken_off:
            await self.aclose()
            raise self._call.client.broken_off()
        with self._call.client.breakable():
            try:
                chunks = self._chunks or await self._open()
                while not self._ready:
                    chunk = await anext(chunks, None)
                    if chunk is None:
                        break
                    self._feed(chunk)
                if self._ready:
                    return self._take()
                self._check_end()
            except Exception as exc:  # noqa: BLE001 - raised again, as what it means
                await self.aclose()
                self._call.fail(exc)
            except BaseException:
                await self.aclose()
                raise
            await self.aclose()
            raise StopAsyncIteration
        raise self._call.client.broken_off()

    async def _open(self) -> AsyncIterator[bytes]:
        call = self._call
        call.client.under_way.__enter__()
        self._begun = True
        client = await call.pools().asynchronous()
        response = self.response = await client.send(call.request(client), stream=True)
        if not response.is_success:
            await response.aread()
        self._check(response)
        chunks = self._chunks = ASYNC.chunks(response)
        return chunks

    async def aclose(self) -> None:
        """Leave the rest, and give the connection back, even while being cancelled."""
        begun, done = self._begun, self._done
        self._done = True
        try:
            if self.response is not None and not done:
                await ASYNC.close(self.response, self._chunks)
        finally:
            if begun and not done:
                self._call.client.under_way.__exit__()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()
