"""A named client: one LLM, its layers and its connections, for threads and event loops alike."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import Any

from ..chain import Middleware, guilty
from ..io import ASYNC, IO, close_dropped
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

__all__ = ["Client"]

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
        with self.under_way:
            try:
                client = await call.pools().asynchronous()
                return call.completion(await client.send(call.request(client)))
            except Exception as exc:  # noqa: BLE001 - raised again, as what it means
                call.fail(exc)

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
        if self._closed or wait is not None:
            reason = "it was stopped" if self._closed else f"it rests: {self.health.reason}"
            raise ClientDown(reason, client=self.name, retry_after=wait)
        with self._lock:
            if not self._pools:  # in a process that was forked
                self._build()
            return self._pools[-1]

    def _build(self) -> None:
        """Make the layers and the connections, from nothing."""
        self._switch = Switch(Pipeline(self._config.layers))
        self._pools = [Pools(self._switch, dict(self._config.http), self._io)]  # the last one is in use

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
            pipeline = self.pipeline.rebuilt(new.layers)  # before anything changes: it may fail
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
        one layer has crashed are one crash: the first one restarts it.
        """
        faulty = guilty(error)
        with self._lock:
            if faulty is not None and all(step.middleware is not faulty for step in self.pipeline.steps):
                return
            try:
                self._switch.exchange(_without(self.pipeline, faulty))
            except Exception as exc:  # noqa: BLE001 - it cannot be built again: that is a crash, too
                error = exc
        self.health.crashed(error)

    def renew(self) -> None:
        """Begin anew in a process that was forked: what is here is the parent's, its sockets and locks."""
        self._lock = threading.Lock()
        self.health.renew()
        self.under_way = UnderWay()
        self._pools = []

    def close(self, drain: float = 5.0) -> None:
        """Take no more calls, wait for those under way, then close connections and stores.

        Args:
            drain: Seconds to wait at most. A blocking call that waits for the server then goes on until its
                own timeout; calls and connections of event loops end with their loops.
        """
        self._closed = True
        close_dropped()
        self.under_way.wait(drain)
        for pools in self._pools:
            pools.close()
        self._switch.close()

    async def aclose(self, drain: float = 5.0) -> None:
        """Do as `close` does, and close the connections of this event loop, too: its calls break off."""
        self._closed = True
        close_dropped()
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
