"""Put one stack around every transport of an httpx client."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, TypeAlias

from .family import load, named, wrap_transports
from .io import IO
from .transport import AsyncTransport, Refusals, Stack, Transport

__all__ = ["Kind", "check_inner", "mount", "new_client"]

Kind: TypeAlias = type[Transport] | type[AsyncTransport]

# What httpx ignores, or lets go around the transport, once it is given transport=.
_IGNORED = ("verify", "cert", "trust_env", "http1", "http2", "limits", "proxy")


def new_client(
    kind: Kind,
    stack: Stack,
    *,
    http: ModuleType | None,
    transport: Any,
    refusals: Refusals,
    io: IO,
    client_kwargs: dict[str, Any],
    owns_stack: bool = False,
) -> Any:
    """Let httpx make a client from the user's arguments, then put the stack around its transports.

    That way proxies, NO_PROXY, certificates, HTTP/2 and limits are what httpx itself makes of them.

    Raises:
        TypeError: ``transport=`` with an argument that httpx would silently ignore, or a transport
            that does not fit the client.
    """
    family = load() if http is None else named(http)
    mounts: Mapping[str, Any] = client_kwargs.get("mounts") or {}
    theirs = [inner for inner in (transport, *mounts.values()) if inner is not None]
    for inner in theirs:
        check_inner(kind, inner)
    if transport is not None:
        ignored = [name for name in _IGNORED if name in client_kwargs]
        if ignored:
            raise TypeError(
                f"{', '.join(ignored)} would be silently ignored next to transport=; "
                "give them to that transport, or leave transport= out"
            )
        client_kwargs = {**client_kwargs, "transport": transport}
    make = family.module.Client if kind is Transport else family.module.AsyncClient
    client = make(**client_kwargs)
    mount(client, kind, stack, refusals=refusals, io=io, theirs=theirs, owns_stack=owns_stack)
    return client


def mount(
    client: Any,
    kind: Kind,
    stack: Stack,
    *,
    refusals: Refusals,
    io: IO,
    theirs: list[Any] | None,
    owns_stack: bool,
) -> None:
    """Wrap every transport of a client.

    Args:
        client: A client of httpx or httpx2; it is changed in place.
        kind: Which of our transports fits it.
        stack: The pipeline.
        refusals: See `build_client`.
        io: Time and waiting.
        theirs: Transports that the user passed in, and closes; ``None`` for all.
        owns_stack: Whether closing the client closes the stack's state.
    """
    owners = iter([owns_stack])  # one transport of the client closes the stack: its main one, wrapped first

    def wrap(inner: Any) -> Transport | AsyncTransport:
        owns_inner = theirs is not None and not any(inner is other for other in theirs)
        owns = next(owners, False)
        return kind(stack, inner, io=io, refusals=refusals, owns_inner=owns_inner, owns_stack=owns)

    wrap_transports(client, wrap)


def check_inner(kind: Kind, inner: Any) -> None:
    """Refuse what is no transport of this mode.

    Raises:
        TypeError: It is a class, or lacks the method that this mode calls.
    """
    method = "handle_request" if kind is Transport else "handle_async_request"
    if isinstance(inner, type):
        raise TypeError(f"{inner.__name__} is a class: a transport is needed, {inner.__name__}(…)")
    if not callable(getattr(inner, method, None)):
        mode = "a blocking" if kind is Transport else "an async"
        raise TypeError(f"{mode} client needs a transport with {method}(), got {type(inner).__qualname__}")
