"""Stay under the rates we set, and respect the one that the server enforces.

Two things hold a call back here. The *rates*: GCRA (ITU-T I.371, Annex A), kept in this process or in Redis
(``stores/rates.py``); a call is given its slot when it asks, and sleeps once. And the
*gate*: a 429 (RFC 6585 §4) that says how long to wait holds its key for everybody, once, and then lets
them go one after the other, as fast as its limit fills up, where the 429 tells that, too.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias
from urllib.parse import parse_qsl, urlencode, urlsplit

from attrs import asdict, define, evolve, field, fields, frozen

from ..config import check, kind, one_of, optional, seconds, whole
from ..errors import RateLimited
from ..events import Record, record_of
from ..keys import server_key
from ..outcome import Answer, Meaning, read_answer
from ..table import Table
from ..waits import held_for
from ..wire import Pace

if TYPE_CHECKING:
    from ..chain import Handler
    from ..family import Request, Response
    from ..io import IO
    from ..stores.rates import RateStore, Slot, StoreDown

__all__ = ["RateLimit", "RedisStore"]

OnStoreError: TypeAlias = Literal["open", "closed"]

_KEYS = 10_000
_SHRINK = 0.99
_CREDENTIALS = {"username", "password"}
_INSTANT = 1e-6
_LOOK = 1.0  # seconds; who waits for longer looks at its place again when half of the time is over
_GATE = "the server asked everybody to wait (429)"
_logger = logging.getLogger("dspex_pipe")


class RateLike(Protocol):
    """What a ``pyrate_limiter.Rate`` looks like."""

    @property
    def limit(self) -> int: ...
    @property
    def interval(self) -> int: ...
    @property
    def burst(self) -> int: ...


@frozen(repr=False)
class _Rate:
    """A ``pyrate_limiter.Rate`` that can be compared and hashed."""

    limit: int
    interval: int
    burst: int

    def __repr__(self) -> str:
        burst = "" if self.burst == self.limit else f", burst={self.burst}"
        return f"Rate({self.limit}, {self.interval}{burst})"


def _twin(rate: Any) -> Any:
    numbers: list[Any] = [getattr(rate, name, None) for name in ("limit", "interval", "burst")]
    return _Rate(*numbers) if all(type(n) is int and n >= 1 for n in numbers) else rate


def _twins(rates: Any) -> Any:
    return tuple(_twin(rate) for rate in rates)


def _check_url(_: Any, __: Any, value: Any) -> None:
    given = f"one with {value.partition(':')[0]!r}" if isinstance(value, str) and "://" in value else None
    if given is None or urlsplit(value).scheme not in {"redis", "rediss", "unix"}:
        # not the value itself: a password may be in it
        raise ValueError(
            "RedisStore(url=…) takes a URL with 'redis', 'rediss' or 'unix' before '://', got "
            f"{given or type(value).__name__}"
        )


def _is_weight(value: Any) -> bool:
    return callable(value) or (type(value) is int and value >= 1)


@frozen(kw_only=True, repr=False)
class RedisStore:
    """Rates kept in Redis, so that processes and machines share them; needs the extra ``redis``.

    Shared is what has the same server, prefix, rates and key. Redis 5 or newer; redis-py blocks, so async
    clients call it in a worker thread.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``, as redis-py takes it; a password in it is not
            shown.
        prefix: What the names of all keys begin with; one per application.
        timeout: Seconds for connecting, and for each answer. When they are over, ``on_store_error`` of the
            layer says what happens.
    """

    url: str = field(default="redis://localhost:6379/0", validator=_check_url)
    prefix: str = field(
        default="dspex",
        validator=check("a name", lambda v: isinstance(v, str) and v != "" and v.isprintable()),
    )
    timeout: float = field(default=0.25, validator=seconds())

    def __getstate__(self) -> dict[str, Any]:
        """Without the credentials in the URL."""
        query = [(k, v) for k, v in parse_qsl(urlsplit(self.url).query) if k not in _CREDENTIALS]
        url = f"{self._place}?{urlencode(query)}" if query else self._place
        return {**asdict(self, recurse=False), "url": url}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc] # validated, as at first

    def __copy__(self) -> RedisStore:
        return self  # it never changes

    def __deepcopy__(self, memo: dict[int, Any]) -> RedisStore:
        return self

    @property
    def _place(self) -> str:
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    def __repr__(self) -> str:
        shown = [repr(self._place)]
        for name in ("prefix", "timeout"):
            value = getattr(self, name)
            if value != getattr(fields(RedisStore), name).default:
                shown.append(f"{name}={value!r}")
        return f"RedisStore(url={', '.join(shown)})"

    def open(self, rates: tuple[Any, ...]) -> RateStore:
        """Begin to use it; the first call connects.

        Raises:
            ImportError: redis-py is not installed.
        """
        from ..stores.rates import RedisRates  # noqa: PLC0415 - loads pyrate-limiter

        return RedisRates(rates, url=self.url, prefix=self.prefix, timeout=self.timeout)


@frozen(init=False, repr=False)
class RateLimit:
    """Send no faster than these rates, per key; wait in order of arrival, or refuse at once.

    A call that must wait is told how long when it asks. When that is more than ``max_wait``, or the call's
    deadline comes first, it is refused there and then with `RateLimited`, and has spent nothing. A call that
    is cancelled while it waits gives its slot back. One key never waits for another.

    Every `RateLimit` is a gate, too, and without a rate it is nothing else: a 429 (or what else means that we
    are throttled; a spent quota is no such thing) whose ``retry-after`` or ``retry-after-ms`` names a wait
    holds all calls of its key for so long; several at once hold it until the latest, they do not add up. Then
    the calls go one after the other, at most ``gate_pace`` apart at first and each gap 1 % shorter, so that
    any queue is through within the time that the 429 asked for, and at most 100 times ``gate_pace``. But if
    the headers of the 429 tell how fast its limit fills up, as those of OpenAI and Anthropic do, they go as
    fast as that: evenly, where requests are limited, for as long as any wait here; where tokens are, of which
    a call takes few or many, 1 % faster each time, so that any queue is through within the time until that
    limit is full. The 429 itself is handed up; a `Retry` above decides about it. An error event in a stream
    names no wait, and shuts nothing. The gate belongs to this process, also where the store is shared.

    Args:
        rates: ``pyrate_limiter.Rate(limit, interval, burst)``, interval in milliseconds; all must hold. Up to
            ``burst`` units, by default ``limit``, go at once; ``burst=1`` is evenly spaced.
        rpm: Requests per minute: short for ``Rate(rpm, 60_000)``.
        key: What is limited together: a function of the request; by default the origin, and the model of an
            LLM call. `snapshot` shows the keys, so return no credential.
        max_wait: Seconds that a call waits here at most; ``None`` for no bound but its deadline. Set it well
            below the time after which callers give up, if they do: else, under lasting overload, whoever is
            let through has left.
        max_queue: Calls of one key that wait at most (with a shared store: that wait or ask); one more is
            refused unless it can go at once. ``None`` for no bound.
        weight: Units that a call takes of every rate: a number, or a function of the request.
        store: ``None`` for this process, or a `RedisStore`.
        on_store_error: ``"open"`` lets calls pass while the store gives no answer, ``"closed"`` refuses them.
        gate_cap: Seconds that a 429 holds its key at most, whatever it says. A limit that would let them go
            further apart than this is not waited for.
        gate_pace: Seconds between the first calls after that, at most, if the 429 tells nothing about it.

    Raises:
        ValueError: From a call, when ``key`` returns no string, or ``weight`` no whole number from 1 on.
    """

    rates: tuple[RateLike, ...] = field(
        converter=_twins,
        validator=check(
            "pyrate_limiter.Rate(limit, interval, burst) objects, each number whole and 1 or more",
            lambda v: all(isinstance(rate, _Rate) for rate in v),
        ),
    )
    rpm: int | None = field(validator=optional(whole(1)))
    key: Callable[[Request], str] = field(validator=check("a function of the request", callable))
    max_wait: float | None = field(validator=optional(seconds(zero=True)))
    max_queue: int | None = field(validator=optional(whole(0)))
    weight: int | Callable[[Request], int] = field(
        validator=check("a whole number, 1 or more, or a function of the request", _is_weight)
    )
    store: RedisStore | None = field(
        validator=optional(check("a RedisStore", lambda v: isinstance(v, RedisStore), kind))
    )
    on_store_error: OnStoreError = field(validator=one_of("open", "closed"))
    gate_cap: float = field(validator=seconds(zero=True))
    gate_pace: float = field(validator=seconds(zero=True))

    def __init__(
        self,
        *rates: RateLike,
        rpm: int | None = None,
        key: Callable[[Request], str] = server_key,
        max_wait: float | None = None,
        max_queue: int | None = None,
        weight: int | Callable[[Request], int] = 1,
        store: RedisStore | None = None,
        on_store_error: OnStoreError = "open",
        gate_cap: float = 60.0,
        gate_pace: float = 0.05,
    ) -> None:
        self.__attrs_init__(  # pyright: ignore[reportAttributeAccessIssue] # attrs makes it
            rates, rpm, key, max_wait, max_queue, weight, store, on_store_error, gate_cap, gate_pace
        )
        least = min((rate.burst for rate in self.all_rates), default=math.inf)
        if isinstance(weight, int) and weight > least:
            raise ValueError(
                f"RateLimit(weight=…) takes at most the burst of every rate, {least}, got {weight}"
            )
        if store is not None and not self.all_rates:
            raise ValueError(
                f"RateLimit(store=…) takes a store only with a rate to keep there, got {store!r}"
            )

    def __repr__(self) -> str:
        plain = RateLimit()
        shown = [repr(rate) for rate in self.rates]
        for name in (a.name for a in fields(RateLimit) if a.name != "rates"):
            value = getattr(self, name)
            if value != getattr(plain, name):
                shown.append(f"{name}={value!r}")
        shown.append("per process" if self.store is None else "gate per process")
        return f"RateLimit({', '.join(shown)})"

    @property
    def all_rates(self) -> tuple[RateLike, ...]:
        """The rates, ``rpm`` among them."""
        return self.rates if self.rpm is None else (*self.rates, _Rate(self.rpm, 60_000, self.rpm))

    def named(self, name: str) -> RateLimit:
        """This limit, as that of a named client: in a store, its rates are its own."""
        if self.store is None or self.store.prefix.endswith(f":{name}"):
            return self
        return self.with_store(evolve(self.store, prefix=f"{self.store.prefix}:{name}"))

    def with_store(self, store: RedisStore | None) -> RateLimit:
        """The same limit, but kept there."""
        rest = {a.name: getattr(self, a.name) for a in fields(RateLimit) if a.name not in {"rates", "store"}}
        return RateLimit(*self.rates, store=store, **rest)

    def build(self) -> RateLimiter:
        """The running layer, with rates and gates of its own."""
        return RateLimiter(self)


# The pure part: who stands at the gate, and when each may go.


@define(eq=False)
class Waiter:
    """A call that has come and not gone on yet."""

    since: float
    place: float = -math.inf
    """When the gate lets it through, in seconds on the clock of the calls."""
    after: tuple[float, float] = (-math.inf, 0.0)
    """When the gate lets the next one through, and the gap after that."""


class Line:
    """The calls of one key in order of arrival, and the gate in front of them; its owner holds a lock.

    Args:
        pace: Seconds between the first calls after the gate opens.
    """

    def __init__(self, pace: float) -> None:
        self.pace = pace
        self.opens = -math.inf
        # when whoever stood at the gate as it opened is through
        self._calm = -math.inf
        self.waiters: dict[Waiter, None] = {}  # a set that keeps its order
        self._after = (-math.inf, pace)  # as a waiter's: behind the last who went through
        self._told: Pace | None = None
        self._shrink = _SHRINK
        self._holes = False

    def enter(self, waiter: Waiter, now: float) -> None:
        """Join at the end; the waiter learns its place."""
        self.close_up(now)
        last = next(reversed(self.waiters), None)
        self._place(waiter, self._after if last is None else last.after, now)
        self.waiters[waiter] = None

    def leave(self, waiter: Waiter, *, went: bool) -> None:
        """Go, or give up, and leave a hole."""
        del self.waiters[waiter]
        if went:
            self._after = max(self._after, waiter.after)
        else:
            self._holes = True

    def close_up(self, now: float) -> None:
        """Let those behind a hole move forward, so that no place is lost; they wait no longer than before."""
        if not self._holes:
            return
        self._holes = False
        after = self._after
        for waiter in self.waiters:
            if waiter.place > now:
                self._pace(waiter, max(now, after[0]), after[1])
            after = waiter.after

    def shut(self, until: float, now: float, pace: Pace | None = None) -> None:
        """Let nobody through before then, and give all who are here a new place, in their order.

        Args:
            until: Seconds.
            now: Seconds.
            pace: How far apart they must go after that, if that is told; it stays true for a while.
        """
        if until <= self.opens:
            return
        self.opens = until
        if pace is None and now < self._calm:
            pace = self._told
        self._told = pace
        if pace is None:
            # the gaps add up to no more than the wait: a short one must not slow a busy key down for long
            pace = Pace(min(self.pace, (until - now) * (1 - _SHRINK)), steady=False)
        self._shrink = 1.0 if pace.steady else _SHRINK
        self._calm = until + pace.gap / (1 - _SHRINK)
        after = self._after = (until, pace.gap)
        for waiter in self.waiters:
            self._place(waiter, after, now)
            after = waiter.after

    def is_armed(self, now: float) -> bool:
        """Whether there is anything to remember: somebody waits, or the gate has not long been open."""
        return bool(self.waiters) or now < self._calm

    def _place(self, waiter: Waiter, after: tuple[float, float], now: float) -> None:
        waiter.place, waiter.after = now, after
        free, gap = after
        if now < max(self._calm, free):
            self._pace(waiter, max(now, free), gap)

    def _pace(self, waiter: Waiter, place: float, gap: float) -> None:
        waiter.place = place
        waiter.after = (place + gap, gap * self._shrink)


def patience(policy: RateLimit, waiter: Waiter, *, full: bool, deadline: float | None, now: float) -> float:
    """Seconds that a call may still wait.

    Args:
        policy: The configuration.
        waiter: The call.
        full: Whether it found as many waiting as may wait.
        deadline: When the whole call must be over, on the same clock as ``now``.
        now: Seconds.
    """
    bounds = [0.0 if full else math.inf]
    if policy.max_wait is not None:
        bounds.append(policy.max_wait - (now - waiter.since))
    if deadline is not None:
        bounds.append(deadline - now)
    return max(0.0, min(bounds))


@define(eq=False)
class Turn:
    """What one call brings along."""

    key: str
    weight: int
    line: Line
    waiter: Waiter
    full: bool
    record: Record
    io: IO


class RateLimiter:
    """The running layer."""

    def __init__(self, policy: RateLimit) -> None:
        self.policy = policy
        self.rates = _open_store(policy)
        self._told = ", ".join(repr(rate) for rate in policy.all_rates)
        self._lock = threading.Lock()
        self.lines: Table[Line] = Table(lambda: Line(policy.gate_pace), armed=Line.is_armed, limit=_KEYS)
        self._newest = 0.0

    def snapshot(self) -> dict[str, Any]:
        """By key: calls that wait, and seconds for which the gate stays shut, as of the newest call."""
        with self._lock:
            return {
                "keys": {
                    key: {"waiting": len(line.waiters), "gate": max(0.0, line.opens - self._newest)}
                    for key, line in self.lines
                }
            }

    def close(self) -> None:
        """Let go of the store's connections."""
        if self.rates is not None:
            self.rates.close()

    async def __call__(self, request: Request, call_next: Handler, io: IO) -> Response:
        key, record = _key(self.policy, request), record_of(request)
        await self._admit(key, _weight(self.policy, request), record, io)
        response = await call_next(request)
        if response.status_code >= 400:
            answer = read_answer(response, record)
            if answer.meaning is Meaning.THROTTLED:
                self._shut(key, response, answer, record, io)
        return response

    async def _admit(self, key: str, weight: int, record: Record, io: IO) -> None:
        now = self._newest = io.now()
        waiter, went = Waiter(now), False
        with self._lock:
            line = self.lines.get(key, now)
            full = self.policy.max_queue is not None and len(line.waiters) >= self.policy.max_queue
            line.enter(waiter, now)
        try:
            turn = Turn(key, weight, line, waiter, full, record, io)
            while not went:
                if waiter.place > now:
                    await self._at_the_gate(turn)
                went = self.rates is None or await self._under_the_rates(self.rates, turn)
        finally:
            with self._lock:
                line.leave(waiter, went=went)

    async def _at_the_gate(self, turn: Turn) -> None:
        told = -math.inf
        # the place moves back when another 429 comes meanwhile, and forward when others give up
        while (wait := self._left(turn)) > _INSTANT:
            if wait > self._patience(turn) + _INSTANT:
                raise self._refusal(turn, wait, _GATE)
            if turn.waiter.place > told:
                told = turn.waiter.place
                turn.record.emit("RateLimit", "waits", _GATE, wait)
            await _sleep(wait, turn.io)

    def _left(self, turn: Turn) -> float:
        """Seconds until a call's place."""
        now = turn.io.now()
        with self._lock:
            turn.line.close_up(now)
        return turn.waiter.place - now

    async def _under_the_rates(self, rates: RateStore, turn: Turn) -> bool:
        """Wait for a slot; whether the gate is still open when its time has come."""
        slot = rates.slot(turn.key, turn.weight)
        kept = False
        try:
            if rates.remote:
                await self._ask(rates, slot, turn)
            else:
                rates.reserve(slot, turn.io.now(), self._patience(turn))
            if slot.wait is None:
                raise RateLimited(f"a weight of {turn.weight} never fits {self._told}", layer="RateLimit")
            if not slot.granted:
                raise self._refusal(turn, slot.wait, self._told)
            if slot.wait > 0:
                turn.record.emit("RateLimit", "waits", self._told, slot.wait)
                while (left := rates.left(slot, turn.io.now())) > _INSTANT:
                    await _sleep(left, turn.io)
            kept = turn.waiter.place - turn.io.now() <= _INSTANT
        finally:
            if not kept:
                rates.leave(slot)
        return kept

    async def _ask(self, rates: RateStore, slot: Slot, turn: Turn) -> None:
        """Reserve at another machine, if it answers."""
        from ..stores.rates import StoreDown  # noqa: PLC0415 - loaded already, by the store

        now, longest = turn.io.now(), self._patience(turn)
        try:
            await turn.io.to_thread(lambda: rates.reserve(slot, now, longest))
        except StoreDown as down:
            self._without_store(slot, down, turn.record)

    def _without_store(self, slot: Slot, down: StoreDown, record: Record) -> None:
        policy = self.policy.on_store_error
        if down.news:
            _logger.warning("RateLimit: the store gives no answer (%s); it fails %s", down.reason, policy)
        if policy == "closed":
            raise RateLimited(
                f"the store gives no answer ({down.reason})", layer="RateLimit", retry_after=down.pause
            )
        record.emit("RateLimit", "goes on without its store", down.reason)
        slot.granted, slot.wait = True, 0.0

    def _patience(self, turn: Turn) -> float:
        return patience(
            self.policy, turn.waiter, full=turn.full, deadline=turn.record.deadline, now=turn.io.now()
        )

    def _refusal(self, turn: Turn, wait: float, cause: str) -> RateLimited:
        bound = "longer than this call may wait"
        if turn.full:
            bound = f"{self.policy.max_queue} calls wait already"
        elif self.policy.max_wait is not None:
            bound += f" (max_wait={self.policy.max_wait:g})"
        return RateLimited(f"a wait of {wait:.3g} s, {bound}: {cause}", layer="RateLimit", retry_after=wait)

    def _shut(self, key: str, response: Response, answer: Answer, record: Record, io: IO) -> None:
        wait, pace = held_for(response.headers, io.wall(), answer.codes)
        if wait is None:
            return
        if pace is not None and pace.gap > self.policy.gate_cap:
            pace = None  # a limit of a day is spent: everybody may hear of it
        wait, now = min(wait, self.policy.gate_cap), io.now()
        with self._lock:
            self._newest = now
            self.lines.get(key, now).shut(now + wait, now, pace)
        record.emit("RateLimit", "holds its key", str(response.status_code), wait)


async def _sleep(wait: float, io: IO) -> None:
    """Sleep until a place is worth another look."""
    await io.sleep(wait if wait <= _LOOK else wait / 2)


def _open_store(policy: RateLimit) -> RateStore | None:
    if not policy.all_rates:
        return None
    from pyrate_limiter import Rate  # noqa: PLC0415 - takes its time, so only who sets a rate pays for it

    from ..stores.rates import MemoryRates  # noqa: PLC0415

    rates = tuple(Rate(rate.limit, rate.interval, rate.burst) for rate in policy.all_rates)
    return MemoryRates(rates) if policy.store is None else policy.store.open(rates)


def _key(policy: RateLimit, request: Request) -> str:
    key = policy.key(request)
    if not isinstance(key, str):
        raise ValueError(f"RateLimit(key=…) must return a string, got {type(key).__name__}")  # noqa: TRY004
    return key


def _weight(policy: RateLimit, request: Request) -> int:
    weight = policy.weight(request) if callable(policy.weight) else policy.weight
    if type(weight) is not int or weight < 1:
        raise ValueError(f"RateLimit(weight=…) must return a whole number, 1 or more, got {weight!r}")
    return weight
