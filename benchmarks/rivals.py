"""What a user would pick instead, each wired by hand as its documentation and its users do it.

Each does its work on every call: methods, statuses and limits are set so that none of them lets a POST pass
by unseen, and none of them ever fires, as ours never does in these measurements.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from attrs import frozen

from .wires import module

__all__ = ["RIVALS", "STACK", "Rival", "Wiring"]

_OFTEN = 10_000_000
_RETRIED = (408, 429, 500, 502, 503, 504)
_ATTEMPTS = 3


@frozen
class Wiring:
    """Where a rival is put.

    Args:
        http: httpx or httpx2.
        is_async: Whether the client is.
        url: What is called.
        inner: Makes the transport below it.
        folder: Where it may write files.
    """

    http: ModuleType
    is_async: bool
    url: str
    inner: Callable[[], Any]
    folder: Path

    def client(self, transport: Any) -> Any:
        """A client of this library and mode."""
        kind = self.http.AsyncClient if self.is_async else self.http.Client
        return kind(transport=transport)


@frozen
class Rival:
    """An alternative.

    Args:
        needs: The packages that it takes, as they are imported.
        client: Makes a client with it, or a wrapper of one.
        libraries: Which HTTP library it can be used with.
        modes: Which modes it can be used in.
        gets: Whether it does its work on a GET only.
    """

    needs: Sequence[str]
    client: Callable[[Wiring], Any]
    libraries: Sequence[str] = ("httpx",)
    modes: Sequence[str] = ("blocking", "asyncio")
    gets: bool = False

    def why_not(self, http: str, mode: str) -> str | None:
        """Why it cannot be measured; an empty text where it was not made for this; ``None`` if it can."""
        if http not in self.libraries or mode not in self.modes:
            return ""
        missing = {name: module(name) for name in self.needs}
        return next((f"{name}: {why}" for name, why in missing.items() if isinstance(why, str)), None)


def _load(name: str) -> Any:
    found = module(name)
    if isinstance(found, str):
        raise ImportError(found)  # noqa: TRY004 - it is no type that is wrong
    return found


def _wired(wiring: Wiring, inner: Any, send: Any) -> Any:
    """A transport of the user's own, which does something around each call."""
    http: Any = wiring.http

    class Blocking(http.BaseTransport):  # type: ignore[misc]
        def handle_request(self, request: Any) -> Any:
            return send(request, inner.handle_request)

    class Async(http.AsyncBaseTransport):  # type: ignore[misc]
        async def handle_async_request(self, request: Any) -> Any:
            return await send(request, inner.handle_async_request)

    return Async() if wiring.is_async else Blocking()


class _Failed(Exception):
    """A breaker counts exceptions: a status that is a failure must be made one."""

    def __init__(self, response: Any) -> None:
        super().__init__(response.status_code)


def _checked(response: Any) -> Any:
    if response.status_code >= 500:
        raise _Failed(response)
    return response


# Retries


def httpx_retries(wiring: Wiring, inner: Any) -> Any:
    """Its transport, told to take POST, which it lets pass by default."""
    package = _load("httpx_retries")
    retry = package.Retry(total=_ATTEMPTS - 1, allowed_methods=["GET", "POST"], status_forcelist=_RETRIED)
    return package.RetryTransport(transport=inner, retry=retry)


def tenacity(wiring: Wiring, inner: Any) -> Any:
    """Its retrying object around the transport below."""
    package = _load("tenacity")
    policy = {
        "stop": package.stop_after_attempt(_ATTEMPTS),
        "wait": package.wait_exponential_jitter(),
        "retry": package.retry_if_exception_type(wiring.http.TransportError)
        | package.retry_if_result(lambda response: response.status_code in _RETRIED),
    }
    retrying = package.AsyncRetrying(**policy) if wiring.is_async else package.Retrying(**policy)
    return _wired(wiring, inner, lambda request, send: retrying(send, request))


# Circuit breakers


def purgatory(wiring: Wiring, inner: Any) -> Any:
    """A breaker for each host."""
    package = _load("purgatory")
    if not wiring.is_async:
        breakers = package.SyncCircuitBreakerFactory()

        def send(request: Any, send: Any) -> Any:
            with breakers.get_breaker(request.url.host):
                return _checked(send(request))

        return _wired(wiring, inner, send)
    async_breakers = package.AsyncCircuitBreakerFactory()

    async def asend(request: Any, send: Any) -> Any:
        async with await async_breakers.get_breaker(request.url.host):
            return _checked(await send(request))

    return _wired(wiring, inner, asend)


def pybreaker(wiring: Wiring, inner: Any) -> Any:
    """One breaker; blocking only, since its async calls are Tornado's."""
    breaker = _load("pybreaker").CircuitBreaker()
    return _wired(wiring, inner, lambda request, send: breaker.call(lambda: _checked(send(request))))


def aiobreaker(wiring: Wiring, inner: Any) -> Any:
    """One breaker."""
    breaker = _load("aiobreaker").CircuitBreaker()
    if not wiring.is_async:
        return _wired(wiring, inner, lambda request, send: breaker.call(lambda: _checked(send(request))))

    async def asend(request: Any, send: Any) -> Any:
        async def call() -> Any:
            return _checked(await send(request))

        return await breaker.call_async(call)

    return _wired(wiring, inner, asend)


# Rates


def limiter(wiring: Wiring, inner: Any) -> Any:
    """pyrate-limiter's own Limiter."""
    package = _load("pyrate_limiter")
    shared = package.Limiter(package.Rate(_OFTEN, package.Duration.SECOND))
    if not wiring.is_async:

        def send(request: Any, send: Any) -> Any:
            shared.try_acquire(request.url.host)
            return send(request)

        return _wired(wiring, inner, send)

    async def asend(request: Any, send: Any) -> Any:
        await shared.try_acquire_async(request.url.host)
        return await send(request)

    return _wired(wiring, inner, asend)


def httpx_limiter(wiring: Wiring, inner: Any) -> Any:
    """Its transport over its limiter that is pyrate-limiter's."""
    package, pyrate = _load("httpx_limiter"), _load("httpx_limiter.pyrate")
    rate = package.Rate.create(magnitude=_OFTEN)
    shared = pyrate.PyrateAsyncLimiter.create(rate)
    return package.AsyncRateLimitedTransport(limiter=shared, transport=inner)


def httpx_hedged(wiring: Wiring, inner: Any) -> Any:
    """Its transport; a POST is watched, and never hedged."""
    package = _load("httpx_hedged")
    return (package.HedgedTransport if wiring.is_async else package.SyncHedgedTransport)(inner)


# Caching


def hishel(wiring: Wiring, inner: Any, *, rfc: bool = False) -> Any:
    """Its transport, with its storage in a file."""
    package, core = _load(f"hishel.{wiring.http.__name__}"), _load("hishel")
    name = f"hishel-{wiring.http.__name__}-{wiring.is_async}-{rfc}.db"
    storage = core.AsyncSqliteStorage if wiring.is_async else core.SqliteStorage
    transport = package.AsyncCacheTransport if wiring.is_async else package.CacheTransport
    return transport(inner, storage=storage(database_path=wiring.folder / name), rfc=rfc)


# A stack of its own


def httpware(wiring: Wiring, *layers: str) -> Any:
    """Its client, which wraps one of httpx2."""
    package = _load("httpware")
    prefix = "Async" if wiring.is_async else ""
    options: dict[str, dict[str, Any]] = {
        "Retry": {"retry_methods": frozenset({"GET", "POST"})},
        "CircuitBreaker": {},
    }
    middleware = [getattr(package, prefix + layer)(**options[layer]) for layer in layers]
    client = getattr(package, f"{prefix}Client")
    return client(httpx2_client=wiring.client(wiring.inner()), middleware=middleware)


Wrap = Callable[[Wiring, Any], Any]


def _stack(*transports: Wrap) -> Callable[[Wiring], Any]:
    """These transports around each other, the first outermost."""

    def make(wiring: Wiring) -> Any:
        transport = wiring.inner()
        for wrap in reversed(transports):
            transport = wrap(wiring, transport)
        return wiring.client(transport)

    return make


_BOTH = ("httpx", "httpx2")
_AIO = ("asyncio",)

STACK = "purgatory + httpx-retries + pyrate-limiter"
"""What does by hand what Breaker, Retry and RateLimit do."""

RIVALS = {
    "httpx-retries": Rival(["httpx_retries"], _stack(httpx_retries)),
    "tenacity": Rival(["tenacity"], _stack(tenacity), _BOTH),
    "purgatory": Rival(["purgatory"], _stack(purgatory), _BOTH),
    "pybreaker": Rival(["pybreaker"], _stack(pybreaker), _BOTH, ("blocking",)),
    "aiobreaker": Rival(["aiobreaker"], _stack(aiobreaker), _BOTH),
    "pyrate-limiter": Rival(["pyrate_limiter"], _stack(limiter), _BOTH),
    "httpx-limiter": Rival(["httpx_limiter.pyrate"], _stack(httpx_limiter), ("httpx",), _AIO),
    "httpx-hedged": Rival(["httpx_hedged"], _stack(httpx_hedged)),
    "httpware Retry": Rival(["httpware"], lambda w: httpware(w, "Retry"), ("httpx2",)),
    "httpware CircuitBreaker": Rival(["httpware"], lambda w: httpware(w, "CircuitBreaker"), ("httpx2",)),
    "httpware both": Rival(["httpware"], lambda w: httpware(w, "Retry", "CircuitBreaker"), ("httpx2",)),
    STACK: Rival(["purgatory", "httpx_retries", "pyrate_limiter"], _stack(httpx_retries, purgatory, limiter)),
    "tenacity + purgatory + pyrate-limiter": Rival(
        ["tenacity", "purgatory", "pyrate_limiter"], _stack(tenacity, purgatory, limiter), _BOTH
    ),
    f"hishel + {STACK}": Rival(
        ["hishel", "purgatory", "httpx_retries", "pyrate_limiter"],
        _stack(hishel, httpx_retries, purgatory, limiter),
    ),
    "hishel GET hit": Rival(["hishel", "anysqlite"], _stack(hishel), _BOTH, gets=True),
    "hishel GET hit by RFC 9111": Rival(
        ["hishel", "anysqlite"], _stack(lambda w, inner: hishel(w, inner, rfc=True)), _BOTH, gets=True
    ),
}
