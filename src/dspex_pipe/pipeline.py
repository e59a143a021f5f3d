"""The pipeline: a flat list of layers, and the state that they share between clients."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeAlias, TypeVar, overload

from .advice import Advice, OrderWarning, advise
from .chain import Handler, Middleware, Step, check_client, link
from .events import OnEvent, record_of
from .family import HttpModule, Request, Response
from .io import ASYNC, BLOCKING, IO
from .mount import check_inner, new_client
from .options import CORE, Converter
from .outcome import Meaning
from .transport import AsyncTransport, Refusals, Transport

if TYPE_CHECKING:
    import httpx

__all__ = ["Handler", "Layer", "LayerLike", "Middleware", "Pipeline", "aclose_steps", "close_steps"]

ClientT = TypeVar("ClientT")
AsyncClientT = TypeVar("AsyncClientT")


class Layer(Protocol):
    """A described layer: frozen configuration, comparable and reusable.

    It may declare ``options``, a mapping from the names of per-call options to converters. It may have a
    method ``named(name)``, which returns the layer to build in its place for a named client, one that shares
    no entry of a store with those of other names.
    """

    def build(self) -> Middleware:
        """Make the running layer, with fresh state; called once per pipeline."""
        ...


LayerLike: TypeAlias = (
    Layer
    | Callable[[Request, Handler], Awaitable[Response]]
    | Callable[[Request, Handler, IO], Awaitable[Response]]
)
"""A `Layer`, a `Pipeline`, or ``async def layer(request, call_next)`` (or with ``io`` as third)."""


class Pipeline:
    """A flat list of layers around any httpx transport; the first is the outermost.

    Clients made from one pipeline share its state: one breaker, one budget, one cache, in threads and
    in event loops alike. A pipeline is itself a layer: nested in another, it keeps its state.

    Args:
        layers: The layers, outermost first.
        on_event: Called with every `Event` of every call, in the thread or task of the call. What it
            raises is logged and goes no further.
        meanings: What structured error codes (strings) and statuses (400 to 599) mean to all layers, in
            addition to those that are known: ``{"tokens_exhausted": Meaning.QUOTA_SPENT}``.

    Raises:
        TypeError: Something in the list is not a layer; the message says what, and what is.
        ValueError: ``meanings`` has something else in it.
    """

    def __init__(
        self,
        layers: Iterable[LayerLike] = (),
        *,
        on_event: OnEvent | None = None,
        meanings: Mapping[str | int, Meaning] | None = None,
    ) -> None:
        if isinstance(layers, str | bytes | Mapping) or not isinstance(layers, Iterable):
            raise TypeError(f"layers= takes a list of layers, got {layers!r}")
        if on_event is not None and not callable(on_event):
            raise TypeError(f"on_event= takes a function of one event, got {on_event!r}")
        self.layers = tuple(layers)
        self.on_event = on_event
        self.steps = self._steps()
        known: dict[str, Converter] = dict(CORE)
        words: dict[str | int, Meaning] = {}
        for layer in self.layers:
            if isinstance(layer, Pipeline):
                known.update(layer.known_options)
                words.update(layer.meanings)
            else:
                known.update(getattr(layer, "options", {}))
        self.known_options: Mapping[str, Converter] = known
        self.names: frozenset[str] = frozenset(step.name for _, step in self._all())
        self._meanings = _check_meanings(meanings or {})
        self.meanings: Mapping[str | int, Meaning] = {**words, **self._meanings}
        for remark in self.advice():
            if remark.code.startswith("W"):
                warnings.warn(str(remark), OrderWarning, stacklevel=_frames_of_ours())

    def _steps(self) -> tuple[Step, ...]:
        """The running layers."""
        return tuple(_step(layer) for layer in self.layers)

    def rebuilt(self, layers: Iterable[LayerLike], *, without: Middleware | None = None) -> Pipeline:
        """A pipeline of these layers, in which those that are here already go on with the state they have.

        Calls under way finish with this one. What it holds that the new one does not is not closed.

        Args:
            layers: The layers; one that equals one of these is the same.
            without: A running layer that begins anew all the same; those inside nested pipelines go on.

        Raises:
            TypeError: Something in ``layers`` is no layer.
        """
        kept = [
            (layer, step)
            for layer, step in zip(self.layers, self.steps, strict=True)
            if step.middleware is not without
        ]
        return _Rebuilt(layers, on_event=self.on_event, meanings=self._meanings, kept=kept)

    def __reduce__(self) -> tuple[Any, ...]:
        """It is pickled as what it is made of, and begins anew where it is loaded: state is no part of it."""
        meanings = dict(self._meanings)
        return partial(Pipeline, self.layers, on_event=self.on_event, meanings=meanings), ()

    def runs(self, middleware: Middleware) -> bool:
        """Whether a running layer is one of these, or of those of a pipeline among them."""
        return any(step.middleware is middleware for _, step in self._all())

    def __repr__(self) -> str:
        return f"Pipeline([{', '.join(_repr(layer) for layer in self.layers)}])"

    def build(self) -> Pipeline:
        """A pipeline runs as it is, with the state it has: nested twice, it is shared."""
        return self

    async def __call__(self, request: Request, call_next: Handler, io: IO) -> Response:
        """Run as one layer of another pipeline, or around any handler."""
        handler = link(self.steps, call_next, io)
        if self.on_event is None:
            return await handler(request)
        watchers = record_of(request).watchers
        watchers.append(self.on_event)
        try:
            return await handler(request)
        finally:
            watchers.remove(self.on_event)

    def __getitem__(self, kind: type) -> Any:
        """The running layer of this type, by its configuration's class: ``pipeline[Retry]``.

        Raises:
            KeyError: There is none, or more than one.
        """
        found = [
            step.middleware
            for layer, step in self._all()
            if isinstance(layer, kind) or isinstance(step.middleware, kind)
        ]
        if len(found) != 1:
            raise KeyError(f"{len(found)} layers of {self!r} are a {kind.__name__}, not exactly one")
        return found[0]

    def _all(self) -> Iterator[tuple[LayerLike, Step]]:
        """The layers as they were given, and as they run; those of a nested pipeline come behind it."""
        for layer, step in zip(self.layers, self.steps, strict=True):
            yield layer, step
            if isinstance(layer, Pipeline):
                yield from layer._all()

    def advice(self) -> list[Advice]:
        """What there is to say about the order of these layers, nested ones included; ``print`` an item.

        What is surely wrong is also an `OrderWarning` when the pipeline is built.
        """
        return advise([step.name for _, step in self._all()])

    def check_client(self, *, blocking: bool) -> None:
        """Ask every layer whether it can serve a client of this mode."""
        check_client(self.steps, blocking=blocking)

    def snapshot(self) -> dict[str, Any]:
        """What the layers say of their state now; safe for JSON."""
        return {
            "layers": [
                {"layer": step.name, **getattr(step.middleware, "snapshot", dict)()} for step in self.steps
            ]
        }

    def transport(self, inner: Any, *, refusals: Refusals = "auto", io: IO = BLOCKING) -> Any:
        """A blocking transport for a client of your own; the inner transport stays yours to close.

        It serves httpx and httpx2, whose clients are annotated to take their own base class: hence ``Any``.

        Args:
            inner: Any blocking httpx or httpx2 transport.
            refusals: See `build_client`.
            io: Time and waiting; a test passes ``testing.VirtualIO()``.
        """
        check_inner(Transport, inner)
        return Transport(self, inner, io=io, refusals=refusals)

    def async_transport(self, inner: Any, *, refusals: Refusals = "auto", io: IO = ASYNC) -> Any:
        """An async transport for a client of your own; the arguments are those of `transport`."""
        check_inner(AsyncTransport, inner)
        return AsyncTransport(self, inner, io=io, refusals=refusals)

    @overload
    def client(
        self,
        *,
        http: None = None,
        transport: Any = None,
        refusals: Refusals = "auto",
        io: IO = BLOCKING,
        **client_kwargs: Any,
    ) -> httpx.Client: ...
    @overload
    def client(
        self,
        *,
        http: HttpModule[ClientT, Any],
        transport: Any = None,
        refusals: Refusals = "auto",
        io: IO = BLOCKING,
        **client_kwargs: Any,
    ) -> ClientT: ...
    def client(
        self,
        *,
        http: Any = None,
        transport: Any = None,
        refusals: Refusals = "auto",
        io: IO = BLOCKING,
        **client_kwargs: Any,
    ) -> Any:
        """A blocking client that shares this pipeline's state; the arguments are those of `build_client`.

        Closing the client leaves the state alone: `close` ends it, for all clients of this pipeline.
        """
        return new_client(
            Transport,
            self,
            http=http,
            transport=transport,
            refusals=refusals,
            io=io,
            client_kwargs=client_kwargs,
        )

    @overload
    def async_client(
        self,
        *,
        http: None = None,
        transport: Any = None,
        refusals: Refusals = "auto",
        io: IO = ASYNC,
        **client_kwargs: Any,
    ) -> httpx.AsyncClient: ...
    @overload
    def async_client(
        self,
        *,
        http: HttpModule[Any, AsyncClientT],
        transport: Any = None,
        refusals: Refusals = "auto",
        io: IO = ASYNC,
        **client_kwargs: Any,
    ) -> AsyncClientT: ...
    def async_client(
        self,
        *,
        http: Any = None,
        transport: Any = None,
        refusals: Refusals = "auto",
        io: IO = ASYNC,
        **client_kwargs: Any,
    ) -> Any:
        """An async client that shares this pipeline's state; see `client`, and `aclose`."""
        return new_client(
            AsyncTransport,
            self,
            http=http,
            transport=transport,
            refusals=refusals,
            io=io,
            client_kwargs=client_kwargs,
        )

    def close(self) -> None:
        """Close what the layers hold, innermost first; a nested pipeline stays open, it may be shared.

        Raises:
            TypeError: A layer can only be closed asynchronously: use `aclose`.
        """
        close_steps(self.steps)

    async def aclose(self) -> None:
        """Close what the layers hold, in every mode; see `close`."""
        await aclose_steps(self.steps)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


class _Rebuilt(Pipeline):
    """A pipeline that goes on with running layers of another."""

    def __init__(
        self,
        layers: Iterable[LayerLike],
        *,
        on_event: OnEvent | None,
        meanings: Mapping[str | int, Meaning],
        kept: list[tuple[LayerLike, Step]],
    ) -> None:
        self._kept = kept
        super().__init__(layers, on_event=on_event, meanings=meanings)

    def _steps(self) -> tuple[Step, ...]:
        return tuple(self._take(layer) or _step(layer) for layer in self.layers)

    def _take(self, layer: LayerLike) -> Step | None:
        for pair in self._kept:
            if pair[0] == layer:
                self._kept.remove(pair)
                return pair[1]
        return None


def close_steps(steps: Iterable[Step]) -> None:
    """Close what running layers hold, innermost first; nested pipelines stay open.

    Raises:
        TypeError: A layer can only be closed asynchronously.
    """
    with ExitStack() as stack:  # one that fails keeps no other from closing
        for step in _own(steps):
            stack.callback(_close, step)


async def aclose_steps(steps: Iterable[Step]) -> None:
    """Close what running layers hold, in every mode; see `close_steps`."""
    async with AsyncExitStack() as stack:
        for step in _own(steps):
            aclose: Any = getattr(step.middleware, "aclose", None)
            if aclose is not None:
                stack.push_async_callback(aclose)
            else:
                stack.callback(_close, step)


def _own(steps: Iterable[Step]) -> Iterator[Step]:
    return (step for step in steps if not isinstance(step.middleware, Pipeline))


def _close(step: Step) -> None:
    close: Any = getattr(step.middleware, "close", None)
    if close is not None:
        close()
    elif hasattr(step.middleware, "aclose"):
        raise TypeError(f"layer {step.name} closes asynchronously: await pipeline.aclose()")


def _check_meanings(given: Mapping[str | int, Meaning]) -> Mapping[str | int, Meaning]:
    for word, meaning in given.items():
        known = word if isinstance(word, str) else type(word) is int and 400 <= word <= 599
        if not known or not isinstance(meaning, Meaning):
            raise ValueError(
                "meanings= takes error codes (strings) or statuses (400 to 599), each with a Meaning, got "
                f"{word!r}: {meaning!r}"
            )
    return given


def _frames_of_ours() -> int:
    """How far up the stack a warning must point, to show the user's own line."""
    level, frame = 2, sys._getframe(2)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(__package__):
        level, frame = level + 1, frame.f_back
    return level


def _step(layer: Any) -> Step:
    """Turn what the user put in the list into a running layer."""
    name = _name(layer)
    if isinstance(layer, type):
        raise TypeError(f"{name} is a class: a layer is an instance of it, {name}(…)")
    build: Any = getattr(layer, "build", None)
    if build is not None:
        middleware = build()
        if not _is_async(middleware):
            raise TypeError(
                f"{name}.build() returned {middleware!r}, which is not an async callable "
                "(request, call_next, io)"
            )
        return Step(name, middleware)
    if not _is_async(layer):
        raise TypeError(
            f"{layer!r} is not a layer: it takes async def layer(request, call_next), or an object "
            "with build()"
        )
    return Step(name, _as_middleware(layer, name))


def _as_middleware(function: Any, name: str) -> Middleware:
    parameters = inspect.signature(function).parameters.values()
    positional = [p for p in parameters if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD}]
    needed = [p for p in positional if p.default is p.empty]
    unfillable = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if len(needed) not in {2, 3} or unfillable:
        raise TypeError(
            f"layer {name}{inspect.signature(function)}: a layer takes (request, call_next) or "
            "(request, call_next, io)"
        )
    if len(needed) == 3 or (len(positional) > 2 and positional[2].name == "io"):
        middleware: Middleware = function
        return middleware
    return lambda request, call_next, io: function(request, call_next)


def _is_async(value: Any) -> bool:
    call = getattr(value, "__call__", None)  # noqa: B004 - its kind matters, not whether it is there
    return inspect.iscoroutinefunction(value) or inspect.iscoroutinefunction(call)


def _name(layer: Any) -> str:
    name = getattr(layer, "__name__", None) or type(layer).__name__
    return str(name)


def _repr(layer: Any) -> str:
    if isinstance(layer, Pipeline):
        return ", ".join(_repr(inner) for inner in layer.layers)
    return _name(layer) if inspect.isroutine(layer) else repr(layer)
