"""A provider in a model: how fast it answers, what it allows, and when it fails."""

from __future__ import annotations

import heapq
import math
from collections import deque
from functools import partial
from random import Random
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from ..config import brief, check, flag, fraction, optional, seconds, whole
from ..faults import Fault, Overload, Raise, Status, Throttle
from ..faults.fault import read_wait
from ..layers.chaos import Chaos
from . import answers
from .bucket import Bucket
from .workload import Call, call_of, positive

if TYPE_CHECKING:
    from ..chain import Handler
    from ..family import Request, Response
    from ..io import IO

__all__ = ["Limits", "Outage", "Provider", "ProviderModel", "Workers"]

_INSTEAD = (Raise, Status, Throttle, Overload)  # faults that come in the place of any answer
_Z99 = NormalDist().inv_cdf(0.99)


@frozen(repr=False)
class Outage:
    """A time in which calls fail: all of them, or, in a brown-out, some.

    Args:
        start: When it begins, in seconds.
        end: When it is over.
        rate: The share of calls that fail, 0 to 1. With 1 the provider is *down*, and nobody could get an
            answer from it, if the fault comes in the place of every answer: `Status`, `Raise`, `Throttle` or
            `Overload`, and without ``when=`` or ``times=``.
        fault: How they fail, in the words of `dspex_pipe.chaos`, without a rate of its own; a 503 by default.

    Raises:
        ValueError: A value is not allowed; the message says what is.
    """

    start: float = field(validator=seconds(zero=True))
    end: float = field(validator=seconds())
    rate: float = field(default=1.0, kw_only=True, validator=fraction())
    fault: Fault = field(
        default=Status(503),
        kw_only=True,
        validator=check(
            "a fault of dspex_pipe.chaos without a rate", lambda v: isinstance(v, Fault) and v.rate is None
        ),
    )

    __repr__ = brief

    def __attrs_post_init__(self) -> None:
        if self.end <= self.start:
            raise ValueError(f"Outage(start, end) takes an end after its start, got {self.start}, {self.end}")

    @property
    def is_total(self) -> bool:
        """Whether the provider is down."""
        fault = self.fault
        return self.rate == 1 and isinstance(fault, _INSTEAD) and fault.when is None and fault.times is None

    def covers(self, now: float) -> bool:
        """Whether it is going on."""
        return self.start <= now < self.end


def _all(kind: type) -> Any:
    return check(
        f"a list of {kind.__name__} objects",
        lambda v: isinstance(v, tuple) and all(isinstance(one, kind) for one in v),
    )


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@frozen(kw_only=True, repr=False)
class ProviderModel:
    """A provider: what it is like, with no state.

    Args:
        median: Seconds that half of its answers take at most, once it works on them. The times follow a
            log-normal distribution, as those of LLMs about do.
        p99: Seconds that 99 % of them take at most.
        first_content: The share of this time after which a stream has its first content, 0 to 1.
        round_trip: Seconds of every call before the provider looks at it; an error takes no more.
        rpm: Requests per minute that it allows; ``None`` for any number. More are answered 429, with
            ``retry-after`` and the ``x-ratelimit-…`` headers, as OpenAI sends them.
        tpm: Tokens per minute, prompt and answer together, counted when a request comes.
        burst: Seconds' worth of these limits that may be used at once.
        refusal_cost: Requests that a 429 costs of the limit, 0 to 1. OpenAI counts refused requests as any
            other (its help article on 429s, read in November 2026), so who hammers on is never let in.
        tells_wait: Whether a 429 says ``retry-after``.
        capacity: Calls that it works on at once; more wait for their turn. ``None`` for any number. It does
            not hear of callers who give up, and works for them all the same.
        queue: Calls that wait for their turn at most; one more is answered 503. ``None`` for any number.
        slow_start: Seconds that the capacity takes to come up, evenly, from the beginning and again after
            each total outage.
        outages: When calls fail, `Outage` objects.
        faults: What goes wrong at any time: faults of `dspex_pipe.chaos`, each with a ``rate``, as
            ``SseError(after=3, rate=0.01)``, an error in the middle of one stream of a hundred.

    Raises:
        ValueError: A value is not allowed; the message says what is.
    """

    median: float = field(default=1.0, validator=seconds())
    p99: float = field(default=5.0, validator=seconds())
    first_content: float = field(default=0.25, validator=fraction())
    round_trip: float = field(default=0.05, validator=seconds())
    rpm: float | None = field(default=None, validator=optional(positive))
    tpm: float | None = field(default=None, validator=optional(positive))
    burst: float = field(default=60.0, validator=seconds(zero=True))
    refusal_cost: float = field(default=1.0, validator=fraction())
    tells_wait: bool = field(default=True, validator=flag())
    capacity: int | None = field(default=None, validator=optional(whole(1)))
    queue: int | None = field(default=None, validator=optional(whole(0)))
    slow_start: float = field(default=0.0, validator=seconds(zero=True))
    outages: tuple[Outage, ...] = field(default=(), converter=_as_tuple, validator=_all(Outage))
    faults: tuple[Fault, ...] = field(default=(), converter=_as_tuple, validator=_all(Fault))

    __repr__ = brief

    def __attrs_post_init__(self) -> None:
        if self.p99 < self.median:
            raise ValueError(
                f"ProviderModel(p99=…) takes the median or more, got median={self.median}, p99={self.p99}"
            )
        if self.capacity is None and (self.queue is not None or self.slow_start):
            raise ValueError("ProviderModel(queue=…) and (slow_start=…) take a capacity=, too; got none")

    @property
    def spread(self) -> float:
        """The standard deviation of the logarithm of its times."""
        return math.log(self.p99 / self.median) / _Z99

    @property
    def mean(self) -> float:
        """Seconds that an answer takes on average."""
        return self.median * math.exp(self.spread**2 / 2)

    def check_room(self, tokens: int) -> None:
        """Check that a call of so many tokens fits the limits at all.

        Raises:
            ValueError: It does not.
        """
        room = math.inf if self.tpm is None else Bucket(self.tpm, self.burst).size
        if tokens > room:
            raise ValueError(
                f"a call of up to {tokens} tokens never fits ProviderModel(tpm={self.tpm:g}, "
                f"burst={self.burst:g}), which holds {room:g} at once"
            )

    def back_up(self, now: float) -> float:
        """When it is not down: now, or when the total outages are over."""
        for outage in sorted(self.outages, key=lambda outage: outage.start):
            if outage.is_total and outage.covers(now):
                now = outage.end
        return now


class Limits:
    """The rate limits of a provider, in use."""

    def __init__(self, model: ProviderModel) -> None:
        self._cost = model.refusal_cost
        self.buckets = {
            name: Bucket(limit, model.burst)
            for name, limit in (("requests", model.rpm), ("tokens", model.tpm))
            if limit is not None
        }

    def wait(self, tokens: int, now: float) -> float:
        """Seconds until they allow a call."""
        return max((wait for _, wait in self._waits(tokens, now)), default=0.0)

    def take(self, tokens: int, now: float) -> tuple[str, float] | None:
        """Allow a call; or name the limit that it would have to wait longest for, and how long."""
        name, wait = max(self._waits(tokens, now), key=lambda each: each[1], default=("", 0.0))
        if wait > 0:
            if "requests" in self.buckets:
                self.buckets["requests"].take(self._cost, now)
            return name, self.wait(tokens, now)
        for name, bucket in self.buckets.items():
            bucket.take(_units(name, tokens), now)
        return None

    def _waits(self, tokens: int, now: float) -> list[tuple[str, float]]:
        return [(name, bucket.wait(_units(name, tokens), now)) for name, bucket in self.buckets.items()]


def _units(name: str, tokens: int) -> int:
    return 1 if name == "requests" else tokens


class Workers:
    """The capacity of a provider, in use: each call gets its turn, in order of arrival, when it comes."""

    def __init__(self, model: ProviderModel) -> None:
        self._capacity = model.capacity
        self._queue = math.inf if model.queue is None else model.queue
        self._slow_start = model.slow_start
        self._comings = sorted([0.0, *(outage.end for outage in model.outages if outage.is_total)])
        self._free: list[float] = []  # when each of them is free
        self._turns: deque[float] = deque()  # those that have not come yet, earliest first

    def turn(self, now: float) -> float | None:
        """When the turn of a call is that comes now; ``None`` when too many wait already."""
        if self._capacity is None:
            return now
        while self._comings and self._comings[0] <= now:
            self._come_up(self._comings.pop(0), self._capacity)
        while self._turns and self._turns[0] <= now:
            self._turns.popleft()
        if self._free[0] > now and len(self._turns) >= self._queue:
            return None
        return max(now, self._free[0])

    def begin(self, now: float, turn: float, length: float) -> None:
        """Take the turn, for so many seconds."""
        if self._free:
            heapq.heapreplace(self._free, turn + length)
            if turn > now:
                self._turns.append(turn)

    def _come_up(self, at: float, capacity: int) -> None:
        self._free = [at + self._slow_start * n / capacity for n in range(capacity)]
        self._turns.clear()


class Provider:
    """A provider at work: the transport below the layers.

    Args:
        model: What it is like.
        io: Its clock.
        seed: Of what is left to chance.
    """

    def __init__(self, model: ProviderModel, io: IO, seed: int) -> None:
        self._model = model
        self._io = io
        self._seed = seed
        self._limits = Limits(model)
        self._workers = Workers(model)
        self._outages = [
            (outage, Chaos(outage.fault, rate=outage.rate, seed=_seed(seed, f"outage {number}")).build())
            for number, outage in enumerate(model.outages)
        ]
        self._faults = Chaos(*model.faults, seed=_seed(seed, "faults")).build() if model.faults else None

    async def handle_async_request(self, request: Request) -> Response:
        """Answer, as an async transport does."""
        call, now = call_of(request), self._io.now()
        call.sent.append(now)
        handler: Handler = self._serve
        if self._faults is not None:
            handler = partial(self._faults, call_next=handler, io=self._io)
        for outage, chaos in self._outages:
            if outage.covers(now):
                handler = partial(chaos, call_next=handler, io=self._io)
        await self._wait(request, self._model.round_trip)
        response = await handler(request)
        if response.status_code == 429:
            call.throttled.append(now)
        return response

    async def _serve(self, request: Request) -> Response:
        model, call, now = self._model, call_of(request), self._io.now()
        refused = self._limits.take(call.tokens, now)
        told = answers.limit_headers(self._limits.buckets, now)
        if refused is not None:
            name, wait = refused
            return answers.throttled(request, name, wait if model.tells_wait else math.inf, told)
        # by call and attempt: so a call is as quick with one stack as with another
        luck = Random(f"{self._seed}/{call.number}/{len(call.sent)}")  # noqa: S311 - a model, not secrets
        length = model.median * math.exp(model.spread * luck.gauss(0.0, 1.0))
        turn = self._workers.turn(now)
        if turn is None:
            return answers.overloaded(request)
        self._workers.begin(now, turn, length)
        if call.streams:
            return await self._stream(request, call, turn - now, length, told)
        call.billed += call.tokens  # whether or not anybody waits for it to the end
        await self._wait(request, turn - now + length)
        return answers.whole(request, call.tokens_in, call.tokens_out, told)

    async def _stream(
        self, request: Request, call: Call, queued: float, length: float, told: dict[str, str]
    ) -> Response:
        model, left = self._model, call.tokens_out
        await self._wait(request, queued)
        call.billed += call.tokens_in

        async def before(number: int) -> None:
            nonlocal left
            if number == 1:
                await self._wait(request, length * model.first_content)
            elif number > 1:
                await self._wait(request, length * (1 - model.first_content) / answers.CONTENTS)
            if number > 0:
                # the last event takes what is left
                made = left if number > answers.CONTENTS else call.tokens_out // (answers.CONTENTS + 1)
                left -= made
                call.billed += made

        return answers.streamed(request, told, before)

    async def _wait(self, request: Request, wait: float) -> None:
        await read_wait(request, self._io, wait, "the provider was silent for too long")


def _seed(seed: int, what: str) -> int:
    """A seed for each thing that is left to chance: with the same, one would happen whenever another does."""
    return Random(f"{seed}/{what}").getrandbits(32)  # noqa: S311 - a model, not secrets
