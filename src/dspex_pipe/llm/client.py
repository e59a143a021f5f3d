"""A named client: one LLM, its layers and its connections, for threads and event loops alike."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from ..chain import Middleware, guilty
from ..io import ASYNC, IO, close_dropped, shielded
from ..pipeline import Pipeline
from .call import Call
from .completion import Completion
from .config import ClientConfig
from .errors import ClientDown
from .formats import FORMATS, Messages
from .health import Health
from .lifetime import UnderWay, renew_after_fork
from .pools import Pools
from .streams import AsyncStream, Stream
from .switch import Switch

if TYPE_CHECKING:
    from ..pipeline import LayerLike

__all__ = ["Client"]

_MOST_DISTRUSTED = 1000
_OURS = f"{__name__.partition('.')[0]}."


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
        self._build()
        self._pools[0].check()
        self.under_way = UnderWay()
        self._distrusted: dict[bytes, None] = {}  # oldest first
        self.closed = False
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
                client = call.pools().blocking()
                return call.completion(client.send(call.request(client)))
            except Exception as exc:  # noqa: BLE001 - raised again, as what it means
                call.fail(exc)

    async def arequest(
        self,
        messages: Messages,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - it bounds queues and retries, too
        **options: Any,
    ) -> Completion:
        """Ask, on asyncio or trio; see `request`."""
        call = self._begin(messages, options, timeout, stream=False)
        with self.under_way, self.breakable():
            try:
                client = await call.pools().asynchronous()
                return call.completion(await client.send(call.request(client)))
            except Exception as exc:  # noqa: BLE001 - raised again, as what it means
                call.fail(exc)
        raise self.broken_off()

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
        with self._lock:
            config = self._config
        form = FORMATS[config.wire]
        body = form.request(config.model, messages, {**config.options, **options}, stream=stream)
        content = json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
        call = Call(self, config, config.key(), content, config.timeout if timeout is None else timeout)
        call.pools()  # so that a client that is down says so at once
        return call

    def pools(self) -> Pools:
        """The connections to use now.

        Raises:
            ClientDown: It was stopped, or rests.
        """
        wait = self.health.down_for()
        if self.closed or wait is not None:
            reason = "it was stopped" if self.closed else f"it rests: {self.health.reason}"
            raise ClientDown(reason, client=self.name, retry_after=wait)
        with self._lock:
            if not self._pools:  # in a process that was forked
                self._build()
            return self._pools[-1]

    def _build(self) -> None:
        """Make the layers and the connections, from nothing."""
        self._switch = Switch(Pipeline(self._named(self._config.layers)))
        self._pools = [Pools(self._switch, dict(self._config.http), self._io)]  # the last one is in use

    def _named(self, layers: Iterable[LayerLike]) -> list[LayerLike]:
        """The layers as those of this client: what they keep in a store is its own."""
        return [_named(layer, self.name) for layer in layers]

    def breakable(self) -> AbstractContextManager[None, bool | None]:
        """Around what runs on an event loop: when the client has drained, it breaks it off."""
        # a test's clock may need no loop
        return self.under_way.breakable() if self._io is None else nullcontext()

    def broken_off(self) -> ClientDown:
        """The error of a call that was broken off."""
        return ClientDown("it was stopped while the call was under way", client=self.name)

    def distrust(self, content: bytes) -> None:
        """Ask anew, next time, what was answered with something malformed: a cache may have kept that."""
        if "distrust" in self.pipeline.known_options:
            with self._lock:
                self._distrusted[hashlib.sha256(content).digest()] = None
                while len(self._distrusted) > _MOST_DISTRUSTED:
                    del self._distrusted[next(iter(self._distrusted))]

    def distrusts(self, content: bytes) -> bool:
        """Whether to ask anew; true once for each time that it was told."""
        if not self._distrusted:
            return False
        with self._lock:
            return self._distrusted.pop(hashlib.sha256(content).digest(), self) is None

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
            if config is not None and not isinstance(config, ClientConfig):
                raise TypeError(f"reconfigure() takes a ClientConfig, got {type(config).__name__}")
            new = (old if config is None else config).evolve(**changes)
            new.key()
            pipeline = self.pipeline.rebuilt(self._named(new.layers))  # before anything changes: it may fail
            if dict(new.http) != dict(old.http):
                pools = Pools(self._switch, dict(new.http), self._io)
                pools.check()
                self._pools.append(pools)
            self._switch.exchange(pipeline)
            self._config = new
            self._let_go()

    def _let_go(self) -> None:
        """Close what was exchanged, if no call is under way that may still go through it."""
        if not self.under_way.left():
            self._switch.let_go()
            for pools in self._pools[:-1]:
                pools.close()
            del self._pools[:-1]

    def crashed(self, error: BaseException) -> None:
        """Restart what went wrong: the layer it happened in; without one, those that are not of this package.

        What protects and what is sound is kept: breakers, budgets, rates and caches go on. Several calls that
        one layer has crashed are one crash: the first one restarts it. One inside a nested pipeline, which
        others may share, is counted, but not restarted.
        """
        faulty = guilty(error)
        with self._lock:
            if faulty is not None and not self.pipeline.runs(faulty):
                return
            nested = faulty is not None and all(s.middleware is not faulty for s in self.pipeline.steps)
            try:
                self._switch.exchange(_without(self.pipeline, faulty))
            except Exception as exc:  # noqa: BLE001 - it cannot be built again: that is a crash, too
                error = exc
        self.health.crashed(error, restarted=not nested)

    def renew(self) -> None:
        """Begin anew in a process that was forked: what is here is the parent's, its sockets and locks."""
        self._lock = threading.Lock()
        self.health.renew()
        self.under_way = UnderWay()
        self._pools = []

    def close(self, drain: float = 5.0) -> None:
        """Take no more calls, wait for those under way, break them off, and close connections and stores.

        Args:
            drain: Seconds to wait at most. Then calls on event loops, whichever, are cancelled, and raise
                `ClientDown`; their connections end with their loops. A blocking call that waits for the
                server cannot be cancelled, and goes on until its own timeout.
        """
        self.closed = True
        close_dropped()
        self.under_way.end(drain)
        for pools in self._pools:
            pools.close()
        self._switch.close()

    async def aclose(self, drain: float = 5.0) -> None:
        """Do as `close` does, and close the connections of this event loop, too."""
        self.closed = True
        close_dropped()
        try:
            await self.under_way.aend(ASYNC, drain)
        finally:
            with shielded():
                for pools in self._pools:
                    await pools.aclose()
                await self._switch.aclose()


def _named(layer: LayerLike, name: str) -> LayerLike:
    of: Callable[[str], LayerLike] | None = getattr(layer, "named", None)
    return layer if isinstance(layer, type) or not callable(of) else of(name)


def _without(pipeline: Pipeline, faulty: Middleware | None) -> Pipeline:
    layers = pipeline.layers
    if faulty is not None:
        return pipeline.rebuilt(layers, without=faulty)
    for step in pipeline.steps:
        if not type(step.middleware).__module__.startswith(_OURS):
            pipeline = pipeline.rebuilt(layers, without=step.middleware)
    return pipeline
