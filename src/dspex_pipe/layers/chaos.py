"""Break calls on purpose, and in the same way each time: for tests and game days.

Which call gets which fault hangs on the seed, the call's number and the fault's place in the list, and on
nothing else: not on what other calls do meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from random import Random
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import field, frozen

from .. import faults as known
from ..body import copy_request
from ..config import check, fraction
from ..events import record_of
from ..faults import Fault
from ..options import Converter, switch

if TYPE_CHECKING:
    from ..chain import Handler
    from ..family import Request, Response
    from ..io import IO

__all__ = ["Chaos"]

_KNOWN = ", ".join(name for name in known.__all__ if name != "Fault")


@frozen(repr=False, init=False)
class Chaos:
    """Inject faults, the same ones for the same seed and the same sequence of calls.

    It stands innermost, in the network's place. Faults that meet in one call work like layers: the first is
    the outermost, so ``Chaos(Latency(2), Status(503))`` answers 503 after two seconds. Each fault is told to
    the trace when it happens.

    Args:
        faults: What goes wrong: `Latency`, `Raise`, `Status`, `Throttle`, `Overload`, `SseError`, `Truncate`,
            `Stall`, `Drip`, `DoneWithoutFinish`, or a `Fault` of yours.
        seed: Any whole number; with the number of the call it decides who gets what. Retries are calls, too.
        rate: The share of calls, 0 to 1, that get a fault which has no rate of its own.

    Per call: ``chaos=False`` (in a header ``off``) passes by; the call is not numbered.

    Raises:
        ValueError: There is no fault, or a value is not allowed; the message says what is.
    """

    options: ClassVar[Mapping[str, Converter]] = {"chaos": switch}

    faults: tuple[Fault, ...] = field()
    seed: int = field(validator=check("a whole number", lambda v: type(v) is int))
    rate: float = field(validator=fraction())

    def __init__(self, *faults: Fault, seed: int = 0, rate: float = 1.0) -> None:
        if not faults:
            raise ValueError(f"Chaos() takes faults to inject, one or more of {_KNOWN}; got none")
        for fault in faults:
            if not isinstance(fault, Fault):
                raise ValueError(f"Chaos() takes faults, one or more of {_KNOWN}; got {fault!r}")  # noqa: TRY004
        self.__attrs_init__(faults, seed, rate)  # pyright: ignore[reportAttributeAccessIssue] # attrs makes it

    def __repr__(self) -> str:
        shown = [*map(repr, self.faults)]
        if self.seed != 0:
            shown.append(f"seed={self.seed!r}")
        if self.rate != 1:
            shown.append(f"rate={self.rate!r}")
        return f"Chaos({', '.join(shown)})"

    def build(self) -> Injecting:
        """The running layer, before its first call."""
        return Injecting(self)


def draw(seed: int, number: int, place: int) -> Random:
    """The random numbers of one fault in one call; a text as seed is hashed, the same in every process."""
    return Random(f"{seed}/{number}/{place}")  # noqa: S311 - faults, not secrets


class Lots:
    """Which call gets which faults; it takes no lock: its owner holds one."""

    def __init__(self, chaos: Chaos) -> None:
        self._chaos = chaos
        self.calls = 0
        self.drawn = [0] * len(chaos.faults)

    def next(self, fits: Sequence[bool]) -> list[tuple[Fault, Random]]:
        """The faults of the next call, outermost first, each with its random numbers.

        Args:
            fits: Which of the faults may meet this call.
        """
        self.calls += 1
        chosen = []
        for place, fault in enumerate(self._chaos.faults):
            random = draw(self._chaos.seed, self.calls, place)
            hit = random.random() < (self._chaos.rate if fault.rate is None else fault.rate)
            if fits[place] and hit and (fault.times is None or self.drawn[place] < fault.times):
                self.drawn[place] += 1
                chosen.append((fault, random))
        return chosen


class Injecting:
    """The running layer: the calls so far."""

    def __init__(self, chaos: Chaos) -> None:
        self.chaos = chaos
        self._lock = Lock()
        self._lots = Lots(chaos)

    def snapshot(self) -> dict[str, Any]:
        """How many calls came, and how many of them each fault was drawn for, in the order of the list."""
        with self._lock:
            return {"calls": self._lots.calls, "drawn": list(self._lots.drawn)}

    async def __call__(self, request: Request, call_next: Handler, io: IO) -> Response:
        if record_of(request).options.get("chaos") is False:
            return await call_next(request)
        fits = [fault.fits(request) for fault in self.chaos.faults]  # code of the user's: outside the lock
        with self._lock:
            chosen = self._lots.next(fits)
        if not chosen:
            return await call_next(request)
        handler = call_next
        for fault, random in reversed(chosen):
            handler = partial(fault.inject, call_next=handler, io=io, random=random)
        return await handler(copy_request(request))
