"""What dspy's engines take for a transport: a request goes out through the pipeline, bytes come back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from dspy import lm15  # pyright: ignore[reportMissingImports]

from ...errors import Refused
from ...family import family_of_error
from ...wire import NOT_CACHED, error_codes
from ..pools import PoolsClosed
from .asked import asked

if TYPE_CHECKING:
    from ...family import Response
    from .service import Service

__all__ = ["AsyncTransport", "Transport"]

_NOT_CACHED_STATUS = 504
# httpx has decoded the body
_ENCODED = {"content-encoding", "content-length", "transfer-encoding"}


class _Head:
    """The head of an answer, as dspy's transports give it."""

    def __init__(self, response: Response) -> None:
        self._response = response
        self.status = response.status_code
        self.reason = response.reason_phrase
        self.http_version = response.http_version
        self.headers = [(k, v) for k, v in response.headers.multi_items() if k.lower() not in _ENCODED]


class _Answer(_Head):
    """An answer to a blocking request."""

    def __iter__(self) -> Iterator[bytes]:
        with _told():
            yield from self._response.iter_bytes()

    def read(self) -> bytes:
        """The whole body."""
        return b"".join(self)


class _AsyncAnswer(_Head):
    """An answer on asyncio."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _told():
            async for piece in self._response.aiter_bytes():
                yield piece

    async def read(self) -> bytes:
        """The whole body."""
        return b"".join([piece async for piece in self])


class Transport:
    """A blocking transport."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @contextmanager
    def stream(self, request: Any) -> Iterator[_Answer]:
        """Send a request, and give its answer, whose body is still to be read."""
        call = asked()
        with _told():
            client = self._service.pools.blocking()
            response = client.send(self._service.build(client, request, call.options()), stream=True)
        call.response = response
        try:
            if response.status_code == _NOT_CACHED_STATUS:
                response.read()
                _check_kept(response)
            yield _Answer(response)
        finally:
            response.close()


class AsyncTransport:
    """A transport for every event loop."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @asynccontextmanager
    async def stream(self, request: Any) -> AsyncIterator[_AsyncAnswer]:
        """Send a request, and give its answer, whose body is still to be read."""
        call = asked()
        with _told():
            client = await self._service.pools.asynchronous()
            response = await client.send(self._service.build(client, request, call.options()), stream=True)
        call.response = response
        try:
            if response.status_code == _NOT_CACHED_STATUS:
                await response.aread()
                _check_kept(response)
            yield _AsyncAnswer(response)
        finally:
            await response.aclose()


def _check_kept(response: Response) -> None:
    """Raise for a replay of what is not kept: dspy would try a 504 again, in vain."""
    if error_codes(response.content) == {NOT_CACHED}:
        message = response.json()["error"]["message"]
        raise lm15.InvalidRequestError(message, status=response.status_code, provider_code=NOT_CACHED)


_REFUSALS = {429: lm15.RateLimitError, 504: lm15.TimeoutError}


@contextmanager
def _told() -> Iterator[None]:
    """Tell dspy what failed in its own words; what is no failure of a call is a bug, and stays what it is."""
    try:
        yield
    except Refused as exc:
        kind = _REFUSALS.get(exc.status, lm15.ServerError)
        raise kind(str(exc), provider_code=exc.code, retry_after=exc.retry_after) from exc
    except PoolsClosed as exc:
        raise lm15.ConfigurationError("the LM was closed: make a new one") from exc
    except Exception as exc:
        family = family_of_error(exc)
        if family is None:
            raise
        kind = lm15.TimeoutError if isinstance(exc, family.TimeoutException) else lm15.TransportError
        raise kind(f"{type(exc).__name__}: {exc}") from exc
