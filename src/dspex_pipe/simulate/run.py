"""Run a workload through real layers to a modelled provider, in virtual time."""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import stamina
from attrs import evolve

from ..body import aclose
from ..events import Event, OnEvent
from ..family import Response, load
from ..io import OutOfTime
from ..layers.cache import Cache
from ..layers.logging import Logging
from ..layers.ratelimit import RateLimit
from ..pipeline import LayerLike, Pipeline
from ..testing import VirtualIO
from .answers import DONE, fault_of
from .ideal import servable
from .provider import Provider, ProviderModel
from .report import Change, Report
from .workload import Call, Caller, Workload

__all__ = ["simulate"]

_URL = "http://provider.test/v1/chat/completions"
_HEADERS = {"authorization": "Bearer simulated", "content-type": "application/json"}
_CHANGES = frozenset({"opens", "half-opens", "closes"})
_ONE_AT_A_TIME = threading.RLock()
"""stamina's hooks are one list for all threads: the second to put them aside would put them back as none."""


def simulate(
    layers: Iterable[LayerLike] | Pipeline,
    provider: ProviderModel,
    workload: Workload,
    *,
    seed: int = 0,
) -> Report:
    """Find out how a stack fares: its real layers, at any speed but no real time, and no network.

    Everything that is left to chance hangs on the seed: the same arguments give an equal report. Layers must
    wait through ``io`` alone. None of it has happened: what `Logging` and stamina would log is kept quiet,
    stamina's hooks are not called, and a `Cache` and a `RateLimit` keep in memory what they would keep in a
    file or in Redis. Of several threads that simulate, one does so at a time.

    Args:
        layers: The layers, outermost first, as for ``build_client``. Of a `Pipeline` the same layers are
            taken, with fresh state, and not its ``on_event``.
        provider: What the other side is like.
        workload: Who calls.
        seed: Any whole number.

    Raises:
        TypeError: Something is of the wrong kind; the message says what is right.
        ValueError: The provider's ``tpm`` has no room for a call of this workload.
        Exception: What a layer raises that is neither a refusal nor an error of httpx: it is broken.
    """
    if not isinstance(layers, Iterable | Pipeline):
        raise TypeError(f"simulate(layers) takes a list of layers, or a Pipeline, got {layers!r}")
    for name, value, kind in (("provider", provider, ProviderModel), ("workload", workload, Workload)):
        if not isinstance(value, kind):
            raise TypeError(f"simulate({name}=…) takes a {kind.__name__}, got {value!r}")
    if type(seed) is not int:
        raise TypeError(f"simulate(seed=…) takes a whole number, got {seed!r}")
    provider.check_room(workload.most_tokens)
    run = _Run(layers, provider, workload, seed)
    with _quiet():
        run.play()
    return run.report()


def _fresh(layers: Iterable[LayerLike] | Pipeline, on_event: OnEvent | None = None) -> Pipeline:
    """The same layers, which have seen nothing yet, and share nothing with anybody."""
    if isinstance(layers, Pipeline):
        return Pipeline(map(_alone, layers.layers), on_event=on_event, meanings=layers.meanings)
    return Pipeline(map(_alone, layers), on_event=on_event)


def _alone(layer: Any) -> Any:
    if isinstance(layer, Pipeline):
        return _fresh(layer)
    if isinstance(layer, Cache):
        return evolve(layer, store=None)
    if isinstance(layer, RateLimit):
        return layer.with_store(None)
    if isinstance(layer, Logging):
        return evolve(layer, logger="dspex_pipe")  # the one that is kept quiet
    return layer


class _Run:
    """One simulation."""

    def __init__(
        self,
        layers: Iterable[LayerLike] | Pipeline,
        model: ProviderModel,
        workload: Workload,
        seed: int,
    ) -> None:
        self._model = model
        self._workload = workload
        self._seed = seed
        self._io = VirtualIO(seed=seed)
        self._http = load().module
        self._url = self._http.URL(_URL)
        self._pipeline = _fresh(layers, on_event=self._hear)
        provider = Provider(model, self._io, seed)
        self._transport = self._pipeline.async_transport(provider, refusals="raise", io=self._io)
        self._calls: list[Call] = []
        self._bug: Exception | None = None
        self._changes: list[Change] = []
        self._decisions: Counter[str] = Counter()

    def play(self) -> None:
        """Make all the calls."""
        workload = self._workload
        callers = workload.callers(self._seed)
        if workload.rate is not None:
            tasks = [self._user(call) for call in callers[0].arrivals(workload.rate)]
        else:
            tasks = [self._worker(caller) for caller in callers]
        try:
            for result in self._io.run_all(*tasks):
                if isinstance(result, BaseException):
                    raise result
        finally:
            self._io.run(self._pipeline.aclose())

    def report(self) -> Report:
        """What came of it."""
        end = self._workload.until
        return Report(
            layers=repr(self._pipeline),
            seed=self._seed,
            start=0.0,
            end=end if end < math.inf else max(call.ended for call in self._calls),
            calls=tuple(self._calls),
            servable=servable(self._model, self._workload, self._seed),
            changes=tuple(self._changes),
            decisions=dict(sorted(self._decisions.items())),
            outages=self._model.outages,
        )

    async def _user(self, call: Call) -> None:
        await self._io.sleep(call.started)
        await self._make(call)

    async def _worker(self, caller: Caller) -> None:
        while (call := caller.next(self._io.now())) is not None:
            await self._make(call)
            await self._io.sleep(caller.pause())

    async def _make(self, call: Call) -> None:
        if self._bug is not None:
            return  # no use going on
        self._calls.append(call)
        try:
            call.failure = await self._io.bounded(self._ask(call), self._workload.patience)
        except OutOfTime:
            call.failure = "the caller gave up"
        except self._http.HTTPError as exc:
            call.failure = type(exc).__name__
        except Exception as exc:
            self._bug = exc
            raise
        call.ended = self._io.now()

    async def _ask(self, call: Call) -> str | None:
        request = self._http.Request(
            "POST", self._url, headers=_HEADERS, content=call.content(), extensions=call.extensions()
        )
        response = await self._transport.handle_async_request(request)
        return fault_of(response, await _read(response))

    def _hear(self, event: Event) -> None:
        if event.layer != "transport":
            self._decisions[f"{event.layer} {event.decision}"] += 1
        if event.layer == "Breaker" and event.decision in _CHANGES:
            key, _, why = (
                event.reason.rpartition(": ") if event.decision == "opens" else (event.reason, "", "")
            )
            self._changes.append(Change(self._io.now(), key, event.decision, why))


async def _read(response: Response) -> bytes:
    """Read as the openai SDK does: it leaves at the last event, before the end."""
    stream: Any = response.stream
    chunks, body = stream.__aiter__(), b""
    try:
        async for chunk in chunks:
            body += chunk
            if body.endswith(DONE):
                break
    finally:
        await aclose(stream, chunks)
    return body


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing that happens here has happened: it is neither logged nor counted."""
    with _ONE_AT_A_TIME:
        elsewhere = _Elsewhere()
        logger, hooks = logging.getLogger("dspex_pipe"), stamina.instrumentation.get_on_retry_hooks()
        logger.addFilter(elsewhere)
        stamina.instrumentation.set_on_retry_hooks(map(elsewhere.only, hooks))
        try:
            yield
        finally:
            stamina.instrumentation.set_on_retry_hooks(hooks)
            logger.removeFilter(elsewhere)


class _Elsewhere(logging.Filter):
    """Lets through what other threads log and count."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def filter(self, record: logging.LogRecord) -> bool:
        return record.thread != self._thread

    def only(self, hook: Any) -> Any:
        """A hook of stamina's that is called for other threads."""
        return lambda details: None if threading.get_ident() == self._thread else hook(details)
