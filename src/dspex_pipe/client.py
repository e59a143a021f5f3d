"""The front door for clients: make one, or lead an SDK's through a pipeline."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar, overload

from .family import HttpModule, family_of
from .io import ASYNC, BLOCKING, IO
from .mount import Kind, mount, new_client
from .pipeline import LayerLike, Pipeline
from .transport import AsyncTransport, Refusals, Transport

if TYPE_CHECKING:
    import httpx

__all__ = ["attach", "build_async_client", "build_client"]

ClientT = TypeVar("ClientT")
AsyncClientT = TypeVar("AsyncClientT")
SdkT = TypeVar("SdkT")


@overload
def build_client(
    layers: Iterable[LayerLike] | Pipeline,
    *,
    http: None = None,
    transport: Any = None,
    refusals: Refusals = "auto",
    io: IO = BLOCKING,
    **client_kwargs: Any,
) -> httpx.Client: ...
@overload
def build_client(
    layers: Iterable[LayerLike] | Pipeline,
    *,
    http: HttpModule[ClientT, Any],
    transport: Any = None,
    refusals: Refusals = "auto",
    io: IO = BLOCKING,
    **client_kwargs: Any,
) -> ClientT: ...
def build_client(
    layers: Iterable[LayerLike] | Pipeline,
    *,
    http: Any = None,
    transport: Any = None,
    refusals: Refusals = "auto",
    io: IO = BLOCKING,
    **client_kwargs: Any,
) -> Any:
    """A real ``httpx.Client`` whose every request goes through the layers.

    Args:
        layers: The layers, outermost first; or a `Pipeline`, whose state is then shared and stays open.
        http: The module ``httpx`` (the default) or ``httpx2``; the client is one of that library's.
        transport: Any blocking transport to go on to, instead of the one httpx makes. It stays yours:
            closing the client does not close it. So do transports in ``mounts=``.
        refusals: ``"raise"`` raises a refusal of a layer, which is a ``TransportError`` of the client's
            library, too. ``"respond"`` answers with a 503, 429 or 504 instead. ``"auto"`` responds to
            SDKs, which would retry what is raised, and raises to everybody else.
        io: Time and waiting; a test passes ``testing.VirtualIO()``.
        client_kwargs: Everything else that ``httpx.Client`` takes, with the meaning it has there.

    Raises:
        TypeError: Something in ``layers`` is no layer, ``http`` is another module, or ``transport`` comes
            with an argument that httpx would silently ignore.
        ValueError: ``refusals`` is none of the three.
    """
    return _build(Transport, layers, http, transport, refusals, io, client_kwargs)


@overload
def build_async_client(
    layers: Iterable[LayerLike] | Pipeline,
    *,
    http: None = None,
    transport: Any = None,
    refusals: Refusals = "auto",
    io: IO = ASYNC,
    **client_kwargs: Any,
) -> httpx.AsyncClient: ...
@overload
def build_async_client(
    layers: Iterable[LayerLike] | Pipeline,
    *,
    http: HttpModule[Any, AsyncClientT],
    transport: Any = None,
    refusals: Refusals = "auto",
    io: IO = ASYNC,
    **client_kwargs: Any,
) -> AsyncClientT: ...
def build_async_client(
    layers: Iterable[LayerLike] | Pipeline,
    *,
    http: Any = None,
    transport: Any = None,
    refusals: Refusals = "auto",
    io: IO = ASYNC,
    **client_kwargs: Any,
) -> Any:
    """A real ``httpx.AsyncClient``, for asyncio and trio; the arguments are those of `build_client`."""
    return _build(AsyncTransport, layers, http, transport, refusals, io, client_kwargs)


def _build(
    kind: Kind,
    layers: Iterable[LayerLike] | Pipeline,
    http: Any,
    transport: Any,
    refusals: Refusals,
    io: IO,
    client_kwargs: dict[str, Any],
) -> Any:
    pipeline, owned = _pipeline(layers)
    return new_client(
        kind,
        pipeline,
        http=http,
        transport=transport,
        refusals=refusals,
        io=io,
        client_kwargs=client_kwargs,
        owns_stack=owned,
    )


def _pipeline(layers: Iterable[LayerLike] | Pipeline) -> tuple[Pipeline, bool]:
    """The pipeline of these layers, and whether it was made here, so that the client closes its state."""
    return (layers, False) if isinstance(layers, Pipeline) else (Pipeline(layers), True)


def attach(
    sdk_client: SdkT,
    layers: Iterable[LayerLike] | Pipeline,
    *,
    refusals: Refusals = "auto",
) -> SdkT:
    """The same SDK client, led through a pipeline: of openai or anthropic, blocking or async.

    The client you passed is left as it is. The new one has ``max_retries=0``, since retrying is the
    pipeline's work now, and the SDK's own timeouts, limits, redirects, keep-alive and proxies. It has
    connections of its own, which its ``close()`` closes; but when you gave the SDK an ``http_client=``, that
    client's connections are shared, and stay yours to close.

    Args:
        sdk_client: An SDK client built on httpx or httpx2 as those two SDKs are (others made by the same
            generator fit as well). No SDK is imported here.
        layers: The layers, outermost first; or a `Pipeline`, whose state is then shared.
        refusals: See `build_client`.

    Raises:
        TypeError: This is not such a client.
    """
    old: Any = getattr(sdk_client, "_client", None)
    with_options: Any = getattr(sdk_client, "with_options", None)
    if old is None or with_options is None:
        kind: type = sdk_client if isinstance(sdk_client, type) else type(sdk_client)
        what = f"the class {kind.__qualname__}" if kind is sdk_client else kind.__qualname__
        raise TypeError(
            f"attach() takes an OpenAI, AsyncOpenAI, Anthropic or AsyncAnthropic client, got {what}; "
            "for plain httpx there is build_client()"
        )
    pipeline, owned = _pipeline(layers)
    blocking = isinstance(old, family_of(old).module.Client)
    # The SDK made the client itself, if it is its own private subclass: then a second one like it
    # is ours to close. Anything else is the user's, and its transports are shared.
    made_by_sdk = type(old).__name__.endswith("HttpxClientWrapper") and not hasattr(old, "dspex_base")
    new = type(old)(base_url=old.base_url, timeout=old.timeout) if made_by_sdk else copy.copy(old)
    mount(
        new,
        Transport if blocking else AsyncTransport,
        pipeline,
        refusals=refusals,
        io=BLOCKING if blocking else ASYNC,
        theirs=[] if made_by_sdk else None,
        owns_stack=owned,
    )
    new.dspex_base = old  # kept alive: its finaliser may close the transports that we share
    attached: SdkT = with_options(http_client=new, max_retries=0)
    return attached
