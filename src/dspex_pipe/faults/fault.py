"""What all faults have in common: when they may happen, how they show, and how long a silence lasts."""

from __future__ import annotations

from collections.abc import Callable, Collection
from random import Random
from typing import TYPE_CHECKING

import attrs
from attrs import field, frozen

from ..config import check, fraction, optional, whole
from ..events import record_of
from ..outcome import read_timeout

if TYPE_CHECKING:
    from ..chain import Handler
    from ..family import Request, Response
    from ..io import IO

__all__ = ["SAYS_SO", "Fault", "read_wait", "silence"]

SAYS_SO = "injected by Chaos"
"""What every error says that comes from here."""

_COMMON = ("rate", "when", "times")


@frozen(kw_only=True, repr=False)
class Fault:
    """One thing that goes wrong; the base of all faults.

    Every fault takes these three, by keyword:

    Args:
        rate: The share of calls that get it, 0 to 1; by default what `Chaos` says.
        when: Which requests it may meet: a function of the request; by default all.
        times: Calls that get it at most; by default any number.

    Raises:
        ValueError: A value is not allowed; the message says what is.
    """

    rate: float | None = field(default=None, validator=optional(fraction()))
    when: Callable[[Request], object] | None = field(
        default=None, validator=optional(check("a function of the request", callable))
    )
    times: int | None = field(default=None, validator=optional(whole(1)))

    def __repr__(self) -> str:
        return _shown(self)

    @property
    def told(self) -> str:
        """What the trace says of it."""
        return _shown(self, hidden=_COMMON)

    def fits(self, request: Request) -> bool:
        """Whether it may meet this request."""
        return self.when is None or bool(self.when(request))

    async def inject(self, request: Request, call_next: Handler, io: IO, random: Random) -> Response:
        """Let it happen to a call; the request is a copy, the random numbers are this call's own."""
        raise NotImplementedError


def _shown(fault: Fault, hidden: Collection[str] = ()) -> str:
    parts = []
    # inherited fields come first, where they would stand before the positional ones
    for a in sorted(attrs.fields(type(fault)), key=lambda a: a.name in _COMMON):
        value = getattr(fault, a.name)
        if a.name not in hidden and value != a.default:
            parts.append(f"{a.name}={value!r}" if a.kw_only else repr(value))
    return f"{type(fault).__name__}({', '.join(parts)})"


async def silence(request: Request, io: IO, wait: float) -> None:
    """Wait as one does for a silent server: as long as the read timeout, and never past the deadline.

    Raises:
        ReadTimeout: Of the request's library, when its patience is over first.
    """
    left = record_of(request).remaining()
    # at the deadline we go on: the transport, or who else keeps it, refuses then
    await read_wait(request, io, wait if left is None else min(wait, left), SAYS_SO)


async def read_wait(request: Request, io: IO, wait: float, said: str) -> None:
    """Wait for as long as the read timeout of the request allows.

    Raises:
        ReadTimeout: Of the request's library, with what is said, when that is over first.
    """
    patience = request.extensions.get("timeout", {}).get("read")
    if patience is None or wait <= patience:
        await io.sleep(wait)
    else:
        await io.sleep(patience)
        raise read_timeout(said, request)
