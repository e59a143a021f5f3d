"""The walk through the layers: one link for each, which names its layer when it breaks the contract."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from types import FrameType
from typing import Any, Protocol, TypeAlias

from attrs import frozen

from .errors import LayerError
from .events import EXTENSION, Record, record_of
from .family import Request, Response, family_of
from .io import IO

__all__ = ["Handler", "Middleware", "Step", "blame", "check_client", "guilty", "link", "never_began"]

_THE_WIRE, _THE_WAY_IN = f"{__package__}.transport", f"{__package__}.opening"

Handler: TypeAlias = Callable[[Request], Awaitable[Response]]
"""What a layer calls on: the rest of the stack."""


class Middleware(Protocol):
    """A running layer: it owns the state, and serves all calls of all clients of its pipeline at once.

    It may also have ``snapshot() -> dict`` (JSON-safe), ``close()`` or ``async aclose()``, and
    ``check_client(*, blocking)``, which raises TypeError for a client that it cannot serve.
    """

    async def __call__(self, request: Request, call_next: Handler, io: IO) -> Response:
        """Answer a request; ``call_next`` may be awaited zero, one or many times."""
        ...


@frozen
class Step:
    """A running layer and its name."""

    name: str
    middleware: Middleware


class Link:
    """One layer and the way on from it, for one transport."""

    __slots__ = ("call_next", "io", "middleware", "name")

    def __init__(self, step: Step, call_next: Handler, io: IO) -> None:
        self.name = step.name
        self.middleware = step.middleware
        self.call_next = call_next
        self.io = io

    async def __call__(self, request: Request) -> Response:
        record = record_of(request)
        if record.options and self.name in record.options.get("skip", ()):
            return await self.call_next(request)
        response = await self.middleware(request, self.call_next, self.io)
        extensions = getattr(response, "extensions", None)
        if extensions is None or extensions.get(EXTENSION) is not record:
            self._own(response, request, record)
        return response

    def _own(self, response: Any, request: Request, record: Record) -> None:
        """Take a response that this layer made itself into the call, if it is fit to be taken."""
        family = family_of(request)
        if not isinstance(response, family.module.Response):
            raise LayerError(
                f"layer {self.name} returned {_describe(response)} instead of an "
                f"{family.name}.Response; make one with respond(request, …)"
            )
        owner = response.extensions.get(EXTENSION)
        if isinstance(owner, Record):
            raise LayerError(
                f"layer {self.name} returned a response that belongs to another call; each call "
                "needs a response of its own: make one with respond(request, …)"
            )
        response.extensions[EXTENSION] = record


def link(steps: Sequence[Step], terminal: Handler, io: IO) -> Handler:
    """Chain the layers, first outermost, down to the terminal handler."""
    handler = terminal
    for step in reversed(steps):
        handler = Link(step, handler, io)
    return handler


def check_client(steps: Sequence[Step], *, blocking: bool) -> None:
    """Ask every layer whether it can serve a client of this mode.

    Raises:
        TypeError: One of them cannot.
    """
    for step in steps:
        check: Any = getattr(step.middleware, "check_client", None)
        if check is not None:
            check(blocking=blocking)


def blame(frames: Iterable[tuple[FrameType, int]]) -> str:
    """Name the innermost layer among the frames of a call, with the file and line it stands at."""
    guilty = "the transport"
    link: Link | None = None
    for frame, line in frames:
        if link is not None:
            code = frame.f_code
            guilty = f'layer {link.name} (file "{code.co_filename}", line {line}, in {code.co_name})'
        owner = frame.f_locals.get("self")
        link = owner if isinstance(owner, Link) else None
    return guilty


def guilty(error: BaseException) -> Middleware | None:
    """The running layer that an exception was raised in; ``None`` when it came from the wire, or above."""
    found: Middleware | None = None
    for frame in _frames(error):
        owner = frame.f_locals.get("self")
        if isinstance(owner, Link):
            found = owner.middleware
        elif frame.f_globals.get("__name__") == _THE_WIRE and found is not None:
            return None  # through all layers, and out below them
    return found


def never_began(error: BaseException) -> bool:
    """Whether an exception was raised before the first layer: by an option that nobody knows, for one."""
    return any(frame.f_globals.get("__name__") == _THE_WAY_IN for frame in _frames(error))


def _frames(error: BaseException) -> Iterator[FrameType]:
    traceback = error.__traceback__
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next


def _describe(value: object) -> str:
    if value is None:
        return "None"
    if inspect.iscoroutine(value):
        value.close()
        return "a coroutine (is an await missing?)"
    kind = type(value)
    return f"a {kind.__module__}.{kind.__qualname__}"
