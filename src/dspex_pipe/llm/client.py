"""A named client: one LLM, its layers and its connections, for threads and event loops alike."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import AsyncIterator, Generator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

import attrs

from .. import errors as refusals
from ..chain import Middleware, guilty, went_in
from ..errors import LayerError, Refused
from ..events import explain
from ..family import family_of
from ..io import ASYNC, BLOCKING, IO
from ..options import options as call_options
from ..outcome import Answer, read_answer, read_codes
from ..pipeline import Pipeline
from ..waits import told_wait
from ..wire import codes_of
from ..wire.sse import Parser
from .completion import Completion, Delta
from .config import ClientConfig
from .errors import (
    BreakerOpen,
    ClientDown,
    Crashed,
    DeadlineExceeded,
    LLMError,
    ProviderDown,
    RateLimited,
    error_for,
)
from .formats import FORMATS, Malformed, Messages
from .health import Health
from .lifetime import UnderWay, renew_after_fork
from .pools import Pools
from .switch import Switch

if TYPE_CHECKING:
    from ..family import Request, Response

__all__ = ["AsyncStream", "Client", "Stream"]

_REFUSALS: Mapping[type[Refused], type[LLMError]] = {
    refusals.BreakerOpen: BreakerOpen,
    refusals.RateLimited: RateLimited,
    refusals.DeadlineExceeded: DeadlineExceeded,
}
_OURS = f"{__name__.partition('.')[0]}."
_REQUEST_IDS = ("x-request-id", "request-id")


class Client:
    """One LLM under a name; get it from `start_client` or a `Supervisor`.

    Any number of threads and event loops may call it at once. They share its state (breaker, cache, rates),
    and run in parallel.

    Args:
        name: Its name.
        config: What it is.
        health: Counts its crashes, and tells who watches.
        io: Time and waiting; ``None`` for the real ones.

    Raises:
        LookupError: There is no API key.
        TypeError: A layer, or a setting for httpx, is none.
    """

    def __init__(self, name: str, config: ClientConfig, health: Health, io: IO | None = None) -> None:
        self.name = name
        self.health = health
        self._io = io
        self._lock = threading.Lock()
        self._config = config
        config.key()  # so that a missing key is told now
        self._switch = Switch(Pipeline(config.layers))
        self._pools = [Pools(self._switch, dict(config.http), io)]  # the last one is in use
        self.under_way = UnderWay()
        self._closed = False
        renew_after_fork(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """It travels as its name and config, without the key, and comes back as who has that name there."""
        from .supervisor import revive  # noqa: PLC0415 - which knows this module

        return revive, (self.name, self._config)

    def __copy__(self) -> Client:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Client:
        return self

    def __repr__(self) -> str:
        return f"Client({self.name!r}, {self._config.model!r}, {self.health.state})"

    @property
    def config(self) -> ClientConfig:
        """What it is now."""
        return self._config

    @property
    def pipeline(self) -> Pipeline:
        """The running layers."""
        return self._switch.pipeline

    # Calls

    def request(self, messages: Messages, *, timeout: float | None = None, **options: Any) -> Completion:
        """Ask, and wait for the whole answer.

        Args:
            messages: A text, or messages as the provider has them.
            timeout: Seconds for this call; by default the config's.
            options: What the request has besides, in the provider's words: ``temperature=0``.

        Raises:
            LLMError: There is no answer; its class tells why.
            TypeError: Messages are neither, or an option is no JSON.
        """
        call = self._begin(messages, options, timeout, stream=False)
        with self.under_way:
            try:
                client = call.pools.blocking()
                return call.completion(client.send(call.request(client)))
            except Exception as exc:
                raise call.failed(exc) from exc

    async def arequest(
        self,
        messages: Messages,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - it bounds queues and retries, too
        **options: Any,
    ) -> Completion:
        """Ask, on asyncio or trio; see `request`."""
        call = self._begin(messages, options, timeout, stream=False)
        with self.under_way:
            try:
                client = await call.pools.asynchronous()
                return call.completion(await client.send(call.request(client)))
            except Exception as exc:
                raise call.failed(exc) from exc

    def stream(self, messages: Messages, *, timeout: float | None = None, **options: Any) -> Stream:
        """Ask, and read the answer as it comes: iterate over what this returns, or use it in a ``with``.

        The arguments are those of `request`; ``timeout`` bounds the time until the answer begins.
        """
        return Stream(self._begin(messages, options, timeout, stream=True))

    def astream(self, messages: Messages, *, timeout: float | None = None, **options: Any) -> AsyncStream:
        """Ask, and read the answer as it comes, on asyncio or trio; see `stream`."""
        return AsyncStream(self._begin(messages, options, timeout, stream=True))

    def _begin(
        self, messages: Messages, options: Mapping[str, Any], timeout: float | None, *, stream: bool
    ) -> Call:
        wait = self.health.down_for()
        if self._closed or wait is not None:
            reason = "it was stopped" if self._closed else f"it rests: {self.health.reason}"
            raise ClientDown(reason, client=self.name, retry_after=wait)
        config = self._config
        form = FORMATS[config.wire]
        body = form.request(config.model, messages, {**config.options, **options}, stream=stream)
        content = json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
        timeout = config.timeout if timeout is None else timeout
        return Call(self, config, self._pools[-1], content, timeout)

    # Life

    def reconfigure(self, config: ClientConfig | None = None, **changes: Any) -> None:
        """Be something else from now on; calls under way finish as what they began with.

        Layers that stay the same keep their state. A bad config changes nothing.

        Args:
            config: The new config; by default the old one …
            changes: … with these changes.

        Raises:
            LookupError: There is no API key.
            TypeError: A layer or a setting is none.
            ValueError: A setting takes no such value.
        """
        with self._lock:
            old = self._config
            new = (old if config is None else config).evolve(**changes)
            new.key()
            pipeline = self.pipeline.rebuilt(new.layers)  # before anything changes: it may fail
            if dict(new.http) != dict(old.http):
                self._pools.append(Pools(self._switch, dict(new.http), self._io))
            self._switch.exchange(pipeline)
            self._config = new

    def crashed(self, error: BaseException) -> None:
        """Restart what went wrong: the layer it happened in; without one, those that are not of this package.

        What protects and what is sound is kept: breakers, budgets, rates and caches go on.
        """
        with self._lock:
            self._switch.exchange(_without(self.pipeline, guilty(error)))
        self.health.crashed(error)

    def renew(self) -> None:
        """Begin anew in a process that was forked: what is here is the parent's, its sockets and locks."""
        self._lock = threading.Lock()
        self.health.renew()
        self.under_way = UnderWay()
        self._switch = Switch(Pipeline(self._config.layers))
        self._pools = [Pools(self._switch, dict(self._config.http), self._io)]

    def close(self, drain: float = 5.0) -> None:
        """Take no more calls, wait for those under way, then close connections and stores.

        Args:
            drain: Seconds to wait at most. What is not over then breaks off. The connections of event loops
                close with their loops.
        """
        self._closed = True
        self.under_way.wait(drain)
        for pools in self._pools:
            pools.close()
        self._switch.close()

    async def aclose(self, drain: float = 5.0) -> None:
        """Do as `close` does, and close the connections of this event loop, too."""
        self._closed = True
        await self.under_way.await_end(ASYNC.event(), drain)
        for pools in self._pools:
            await pools.aclose()
        await self._switch.aclose()


def _without(pipeline: Pipeline, faulty: Middleware | None) -> Pipeline:
    layers = pipeline.layers
    if faulty is not None:
        return pipeline.rebuilt(layers, without=faulty)
    for step in pipeline.steps:
        if not type(step.middleware).__module__.startswith(_OURS):
            pipeline = pipeline.rebuilt(layers, without=step.middleware)
    return pipeline


@attrs.frozen
class Call:
    """One call of a client, as it was when it began."""

    client: Client
    config: ClientConfig
    pools: Pools
    content: bytes
    timeout: float

    def request(self, client: Any) -> Request:
        """The request, of the library of this httpx client."""
        form = FORMATS[self.config.wire]
        request: Request = client.build_request(
            "POST",
            self.config.url + form.path,
            headers={"content-type": "application/json", **form.headers(self.config.key())},
            content=self.content,
            timeout=self.timeout,
            extensions=call_options(deadline=self.timeout),
        )
        return request

    def completion(self, response: Response) -> Completion:
        """What an answer says.

        Raises:
            LLMError: It is an error.
            Malformed: It has not the documented shape.
        """
        self.check(response)
        try:
            document = json.loads(response.content)
        except (ValueError, RecursionError) as exc:
            raise Malformed("an answer that is no JSON") from exc
        return attrs.evolve(
            FORMATS[self.config.wire].parse(document),
            cached=is_cached(response),
            request_id=request_id(response),
            trace=explain(response),
        )

    def check(self, response: Response) -> None:
        """Raise what a failed answer means."""
        if response.is_success:
            return
        answer = read_answer(response, response.extensions["dspex"], response.content)
        raise self._error(answer, response, f"status {response.status_code}")

    def event(self, data: str, response: Response) -> Delta | None:
        """What an event says.

        Raises:
            LLMError: It is an error.
            Malformed: It has not the documented shape.
        """
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            document = None
        if isinstance(document, dict) and (document.get("error") or document.get("type") == "error"):
            codes = codes_of(document.get("error")) | codes_of(document)
            answer = read_codes(codes, response.extensions["dspex"])
            raise self._error(answer, response, "an error in the stream")
        return FORMATS[self.config.wire].piece(data)

    def _error(self, answer: Answer, response: Response, what: str) -> LLMError:
        code = answer.code or min(answer.codes, default=None)
        body = _line(response.text) if response.is_stream_consumed and not answer.in_stream else what
        self.client.health.failed(f"LLM API error: status {response.status_code}: {self._redacted(body)}")
        return error_for(answer.meaning)(
            f"the provider answered with {what}: {answer.meaning.value}",
            client=self.client.name,
            status=response.status_code,
            code=code,
            request_id=request_id(response),
            retry_after=told_wait(response.headers, BLOCKING.wall()),
            trace=explain(response),
        )

    def failed(self, exc: Exception) -> Exception:
        """The error to raise for an exception; one that nobody expected is a crash of the client."""
        if isinstance(exc, LLMError):
            return exc
        name, trace = self.client.name, explain(exc)
        if isinstance(exc, Refused):
            kind = next((_REFUSALS[base] for base in _REFUSALS if isinstance(exc, base)), ProviderDown)
            return kind(exc.reason, client=name, retry_after=exc.retry_after, trace=trace)
        if _is_of_the_library(exc):
            self.client.health.failed(f"HTTP request error: {type(exc).__name__}")
            return ProviderDown(f"it cannot be reached: {type(exc).__name__}", client=name, trace=trace)
        if not isinstance(exc, Malformed | LayerError) and not went_in(exc):
            return exc  # the caller's own mistake: an option that nobody knows
        self.client.crashed(exc)
        reason = self._redacted(_line(str(exc)))
        return Crashed(f"{type(exc).__name__}: {reason}", client=name, trace=trace)

    def _redacted(self, text: str) -> str:
        return text.replace(self.config.key(), "[key]")


def _is_of_the_library(exc: Exception) -> bool:
    try:
        return isinstance(exc, family_of(exc).module.HTTPError)
    except TypeError:
        return False


def _line(text: str) -> str:
    """Text from outside, on one line, and not too much of it."""
    clean = "".join(c if c.isprintable() else " " for c in text[:1000])
    return clean if len(clean) <= 200 else clean[:200] + "…"


def is_cached(response: Response) -> bool:
    """Whether an answer comes from a cache of ours."""
    return response.headers.get("x-dspex-cache") in {"hit", "shared", "stale", "revalidated"}


def request_id(response: Response) -> str | None:
    """The provider's name for the request."""
    return next((response.headers[name] for name in _REQUEST_IDS if name in response.headers), None)


class _Pieces:
    """Events out of bytes, and deltas out of events."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._parser = Parser()
        self.response: Any = None
        self.text = ""
        """What the model has said so far."""
        self.finish_reason: str | None = None

    def feed(self, chunk: bytes) -> list[Delta]:
        """Take the next bytes of the body."""
        deltas = []
        for event in self._parser.feed(chunk):
            if event.data.startswith("[DONE]"):
                continue
            delta = self._call.event(event.data, self.response)
            if delta is not None:
                self.text += delta.text
                self.finish_reason = delta.finish_reason or self.finish_reason
                deltas.append(delta)
        return deltas


class _Streaming:
    """What both streams know."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._pieces = _Pieces(call)

    @property
    def response(self) -> Response | None:
        """The response, once it has begun."""
        response: Response | None = self._pieces.response
        return response

    @property
    def text(self) -> str:
        """What the model has said so far."""
        return self._pieces.text

    @property
    def finish_reason(self) -> str | None:
        """Why the answer has ended, if it has."""
        return self._pieces.finish_reason


class Stream(_Streaming):
    """An answer that streams in, for blocking code: an iterator over `Delta`, and a context manager."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self._deltas = self._read()

    def _read(self) -> Generator[Delta, None, None]:
        call, pieces = self._call, self._pieces
        with call.client.under_way:
            try:
                client = call.pools.blocking()
                response = pieces.response = client.send(call.request(client), stream=True)
                if not response.is_success:
                    response.read()
                call.check(response)
                for chunk in response.iter_bytes():
                    yield from pieces.feed(chunk)
            except Exception as exc:
                raise call.failed(exc) from exc
            finally:
                if pieces.response is not None:
                    pieces.response.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Delta:
        return next(self._deltas)

    def close(self) -> None:
        """Leave the rest, and give the connection back."""
        self._deltas.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class AsyncStream(_Streaming):
    """An answer that streams in, for asyncio and trio: an async iterator over `Delta`, a context manager."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self._ready: deque[Delta] = deque()
        self._chunks: AsyncIterator[bytes] | None = None
        self._life = ExitStack()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        try:
            if self._chunks is None:
                self._chunks = await self._open()
            while not self._ready:
                self._ready.extend(self._pieces.feed(await anext(self._chunks)))
        except StopAsyncIteration:
            await self.aclose()
            raise
        except Exception as exc:
            await self.aclose()
            raise self._call.failed(exc) from exc
        return self._ready.popleft()

    async def _open(self) -> AsyncIterator[bytes]:
        call = self._call
        self._life.enter_context(call.client.under_way)
        client = await call.pools.asynchronous()
        response = self._pieces.response = await client.send(call.request(client), stream=True)
        if not response.is_success:
            await response.aread()
        call.check(response)
        chunks: AsyncIterator[bytes] = response.aiter_bytes()
        return chunks

    async def aclose(self) -> None:
        """Leave the rest, and give the connection back."""
        chunks: Any = self._chunks
        with self._life:
            if chunks is not None:  # httpx's generator: left to the garbage collector, trio complains
                await chunks.aclose()
            if self.response is not None:
                await self.response.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()
