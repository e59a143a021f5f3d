"""The least that a stack can cost in Python: what its layers must do, written by hand, and nothing else.

Each keeps the contract (the caller's request stays as it is, a layer is a coroutine, driven inline in a
blocking client), asks the libraries below for what they do for us, and serves the happy path alone. Nobody
should use one: they cannot be put together otherwise, bound nothing, and tell nothing of what they did.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from hashlib import sha256
from typing import Any

import anyio

from .rivals import Wiring
from .wires import module

__all__ = ["FILE", "FLOORS", "floor"]

FILE = "floor.db"
"""Where the floor of what is kept in a file keeps it."""

Handler = Callable[[Any], Awaitable[Any]]
Step = Callable[[Handler], Handler]

_OFTEN = 1_000_000_000
_KEPT = 1000
_logger = logging.getLogger("dspex_pipe")
_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def _only(happy: bool) -> None:
    if not happy:
        raise AssertionError("there was something to decide, which no floor does")


def _passing(call_next: Handler) -> Handler:
    async def step(request: Any) -> Any:
        return await call_next(request)

    return step


def _logging(call_next: Handler) -> Handler:
    """A record for each call."""

    async def step(request: Any) -> Any:
        started = time.monotonic()
        response = await call_next(request)
        seconds, url = time.monotonic() - started, request.url
        told = {
            "http.request.method": request.method,
            "server.address": url.host,
            "url.path": url.path,
            "http.client.request.duration": seconds,
            "http.response.status_code": response.status_code,
        }
        said = (request.method, url.host, url.path, response.status_code, seconds)
        _logger.info("%s %s%s -> %d in %.3f s", *said, extra=told)
        return response

    return step


def _retry(call_next: Handler) -> Handler:
    """A copy of the request for each attempt."""

    async def step(request: Any) -> Any:
        response = await call_next(_copy(request))
        _only(response.status_code < 400)
        return response

    return step


def _server(request: Any) -> Any:
    """The server and the model, by which circuits and limits are kept; worked out once."""
    known = request.extensions.get("floor")
    if known is None:
        url = request.url
        known = request.extensions["floor"] = url.host, url.port, json.loads(request.content)["model"]
    return known


def _breaker() -> Step:
    """Successes, counted by server."""
    lock, circuits = threading.Lock(), dict[Any, deque[float]]()

    def around(call_next: Handler) -> Handler:
        async def step(request: Any) -> Any:
            server = _server(request)
            with lock:
                successes = circuits.setdefault(server, deque(maxlen=100))
            response = await call_next(request)
            with lock:
                successes.append(time.monotonic())
            return response

        return step

    return around


def _rate() -> Step:
    """GCRA, one rate, by server."""
    lock, tats = threading.Lock(), dict[Any, float]()
    emission, reach = 60 / _OFTEN, 60.0

    def around(call_next: Handler) -> Handler:
        async def step(request: Any) -> Any:
            server = _server(request)
            with lock:
                now = time.monotonic()
                tat = tats[server] = max(tats.get(server, 0.0), now) + emission
            _only(tat <= now + reach)
            return await call_next(request)

        return step

    return around


def _key(request: Any) -> str:
    """A digest of the URL, who asks, and the body in canonical form."""
    who = request.headers.get("authorization", "")
    return sha256(f"{request.url} {who} {_canonical(json.loads(request.content))}".encode()).hexdigest()


def _cache() -> Step:
    """Answers, by their keys."""
    kept: dict[str, Any] = {}

    def around(call_next: Handler) -> Handler:
        async def step(request: Any) -> Any:
            key = _key(request)
            found = kept.get(key)
            if found is not None:
                make, status, headers, stream = found
                return make(status, headers=headers, stream=stream)
            response = await call_next(request)
            _only(isinstance(json.loads(b"".join(response.stream)), dict))
            headers = [*response.headers.raw, (b"x-dspex-cache", b"hit")]
            kept[key] = type(response), response.status_code, headers, response.stream
            if len(kept) > _KEPT:
                del kept[next(iter(kept))]
            response.headers["x-dspex-cache"] = "miss"
            return response

        return step

    return around


def _file(wiring: Wiring, exits: ExitStack) -> Step:
    """The same out of a file, in hishel's storage, in async modes not on the event loop."""
    hishel: Any = module("hishel")
    path = wiring.folder / FILE
    file = exits.enter_context(closing(sqlite3.connect(path, check_same_thread=False)))
    storage = hishel.SqliteStorage(connection=file)
    asked = hishel.Request(method="", url="")

    def find(key: str) -> Any:
        entries = storage.get_entries(key)
        return entries and (entries[0].response, b"".join(entries[0].response.stream))

    def around(call_next: Handler) -> Handler:
        async def step(request: Any) -> Any:
            key = _key(request)
            found = await anyio.to_thread.run_sync(find, key) if wiring.is_async else find(key)
            if found:
                kept, body = found
                stream = wiring.http.ByteStream(body)
                return wiring.http.Response(kept.status_code, headers=kept.headers, stream=stream)
            response = await call_next(request)
            headers = hishel.Headers({**response.headers, "x-dspex-cache": "hit"})
            kept = hishel.Response(response.status_code, headers, iter([b"".join(response.stream)]))
            entry = storage.create_entry(asked, kept, key)
            _only(b"".join(entry.response.stream) != b"")  # kept once it has been read
            return response

        return step

    return around


FLOORS: Mapping[str, Callable[[Wiring, ExitStack], Sequence[Step]]] = {
    "ten no-op layers": lambda *_: [_passing] * 10,
    "Logging": lambda *_: [_logging],
    "Retry": lambda *_: [_retry],
    "Breaker": lambda *_: [_breaker()],
    "RateLimit": lambda *_: [_rate()],
    "the four together": lambda *_: [_logging, _retry, _breaker(), _rate()],
    "the four and Cache, a miss": lambda *_: [_logging, _cache(), _retry, _breaker(), _rate()],
    "Cache, a hit in memory": lambda *_: [_cache()],
    "Cache, a first hit in SQLite": lambda wiring, exits: [_file(wiring, exits)],
}
"""By the stack of ours that it is the floor of."""


def floor(wiring: Wiring, steps: Callable[[Wiring, ExitStack], Sequence[Step]]) -> Any:
    """A client that walks through these steps."""
    exits = ExitStack()
    return wiring.client(_Walk(wiring.inner(), steps(wiring, exits), exits))


class _Walk:
    """A transport, in either mode."""

    def __init__(self, inner: Any, steps: Sequence[Step], exits: ExitStack) -> None:
        self._inner = inner
        self._exits = exits
        self._blocking: Any = self._send
        self._async: Any = inner.handle_async_request
        for step in reversed(steps):
            self._blocking, self._async = step(self._blocking), step(self._async)

    async def _send(self, request: Any) -> Any:
        return self._inner.handle_request(request)

    def handle_request(self, request: Any) -> Any:
        try:
            self._blocking(_copy(request)).send(None)
        except StopIteration as done:
            return done.value

    async def handle_async_request(self, request: Any) -> Any:
        return await self._async(_copy(request))

    def close(self) -> None:
        self._exits.close()
        self._inner.close()

    async def aclose(self) -> None:
        self._exits.close()
        await self._inner.aclose()


def _copy(request: Any) -> Any:
    """The caller's request stays as it is; not every revision to be measured has a copy of its own for us."""
    twin = object.__new__(type(request))
    twin.__dict__.update(request.__dict__)
    twin.headers = type(request.headers)(request.headers)
    twin.extensions = dict(request.extensions)
    return twin
