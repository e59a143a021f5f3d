"""The way in: a copy of the request, without our headers, and the record of its call."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Protocol

from attrs import frozen

from .body import copy_request
from .chain import Step
from .events import EXTENSION, OnEvent, Record
from .family import Request, Response, family_of
from .io import IO
from .options import HEADER, Converter, ambient, check
from .outcome import Meaning

__all__ = ["Stack", "expect_next_hop", "open_call"]

_calls = itertools.count(1)
_OURS_OR_AN_SDKS = {b"x-", b"X-"}  # what else a name begins with is not looked at, for speed


class Stack(Protocol):
    """What the edge needs to know of a pipeline."""

    @property
    def steps(self) -> Sequence[Step]:
        """The running layers, outermost first."""
        ...

    @property
    def known_options(self) -> Mapping[str, Converter]:
        """The options that the core and these layers take."""
        ...

    @property
    def names(self) -> frozenset[str]:
        """The names of all layers, those of nested pipelines included."""
        ...

    @property
    def meanings(self) -> Mapping[str | int, Meaning]:
        """What error codes and statuses mean, beyond what everybody knows."""
        ...

    @property
    def on_event(self) -> OnEvent | None:
        """Who is told every event."""
        ...

    def close(self) -> None:
        """Close what blocking layers hold."""
        ...

    async def aclose(self) -> None:
        """Close what the layers hold."""
        ...


def open_call(request: Request, stack: Stack, io: IO) -> tuple[Request, Record]:
    """Begin a hop: the caller's request stays as it is, the layers get a copy with a record.

    Where the request has a record already, a pipeline above has begun the call, and it goes on.

    Raises:
        LocalProtocolError: Of the request's library: a header holds a CR, LF or NUL.
        TypeError: An option that this pipeline does not know.
        ValueError: A value that an option does not take.
    """
    twin = copy_request(request)
    given, sdk = _take_headers(twin)
    from_extensions = twin.extensions.get(EXTENSION)
    if isinstance(from_extensions, Record):
        record = from_extensions
    elif from_extensions is None or isinstance(from_extensions, Mapping):
        record = Record(next(_calls), io.now, sdk=sdk)
        given = {**ambient(), **(from_extensions or {}), **given}
    else:
        raise TypeError(f'extensions["{EXTENSION}"] takes options(…), got {from_extensions!r}')
    if given:
        record.options = {**record.options, **_checked(given, stack)}
    if (deadline := _deadline(request, record)) is not None:
        record.deadline = deadline if record.deadline is None else min(deadline, record.deadline)
    if stack.meanings:
        record.meanings = {**stack.meanings, **record.meanings}  # the outer ones first, as everywhere
    if stack.on_event is not None:
        record.watchers.append(stack.on_event)
    twin.extensions[EXTENSION] = record
    return twin, record


def _take_headers(request: Request) -> tuple[dict[str, Any], bool]:
    """Take our headers off; the options they hold, and whether an SDK made the request."""
    options: dict[str, Any] = {}
    ours: set[str] = set()
    sdk = False
    headers = request.headers.raw
    if _is_unsafe(b"".join([value for _, value in headers])):
        name = next(name for name, value in headers if _is_unsafe(value))
        error = family_of(request).module.LocalProtocolError
        raise error(f"header {name.decode('latin-1')!r} holds a CR, LF or NUL character")
    for name, value in headers:
        if name[:2] not in _OURS_OR_AN_SDKS:
            continue
        key = name.lower()
        if key.startswith(HEADER):
            ours.add(key.decode("latin-1"))
            option, text = key[len(HEADER) :].decode("latin-1").replace("-", "_"), value.decode("latin-1")
            # RFC 9110 §5.3: several lines of one name are one list
            options[option] = f"{options[option]}, {text}" if option in options else text
        elif key.startswith(b"x-stainless-"):
            sdk = True
    for header in ours:
        del request.headers[header]
    return options, sdk


def _is_unsafe(value: bytes) -> bool:
    return b"\n" in value or b"\r" in value or b"\0" in value


def _checked(given: Mapping[str, Any], stack: Stack) -> dict[str, Any]:
    options = check(given, stack.known_options)
    strangers = options.get("skip", frozenset()) - stack.names
    if strangers:
        raise ValueError(
            f"option skip names {', '.join(sorted(strangers))}: "
            f"the layers here are {', '.join(sorted(stack.names)) or '(none)'}"
        )
    return options


# The deadline is one time for all hops of a call.


@frozen
class _Hop:
    """A redirect that has just been answered, and what the next request of its call looks like."""

    request: Request
    url: Any
    timeout: object
    deadline: float

    def leads_to(self, request: Request) -> bool:
        """Whether this request is the next hop.

        httpx follows a redirect in the same thread or task, with a new request that holds the very same
        timeout object: that tells it apart without writing anything into the caller's request.
        """
        return (
            request is not self.request
            and self.timeout is request.extensions.get("timeout") is not None
            and self.url == request.url.copy_with(fragment=None)
        )


_last_hop: ContextVar[_Hop | None] = ContextVar("dspex_pipe.hop", default=None)


def expect_next_hop(request: Request, response: Response, deadline: float) -> None:
    """Remember a redirect, so that its next hop keeps the deadline."""
    if response.has_redirect_location:
        try:
            url = request.url.join(response.headers["location"]).copy_with(fragment=None)
        except family_of(request).module.InvalidURL:
            return  # httpx has its own word on that
        _last_hop.set(_Hop(request, url, request.extensions.get("timeout"), deadline))


def _deadline(request: Request, record: Record) -> float | None:
    hop = _last_hop.get()
    if hop is not None:
        _last_hop.set(None)
        if hop.leads_to(request):
            return hop.deadline
    seconds = record.options.get("deadline")
    return None if seconds is None else record.now() + float(seconds)
