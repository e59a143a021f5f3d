"""Where `RateLimit` keeps its rates: in this process, or in Redis for all processes.

The algorithm is the Generic Cell Rate Algorithm (ITU-T I.371, Annex A), with the rates of pyrate-limiter and
its numbers for them: one number per rate is kept, the *theoretical arrival time* (TAT) at which the bucket
would be empty. Two things are added to it, for which pyrate-limiter's stores have no room.
A call that must wait is given its slot at once, and told how long to wait, in order of arrival. And a call
that leaves before its time gives the slot back: those who stand behind it move forward, which they learn when
they next look. (Only to lower the TAT, as is often done, would promise the same time twice.) In Redis they
keep the times that they were promised.

Times are whole microseconds on the store's own clock, as in pyrate-limiter: exact in Python, in a Lua
double, and in a sorted set's score. This file imports pyrate-limiter: only a pipeline with a rate loads it.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import sha256
from typing import Any, Protocol
from uuid import uuid4

from attrs import define
from pyrate_limiter import Rate
from pyrate_limiter.abstracts import GCRA

from ..extras import extra
from ..table import Table

__all__ = ["MemoryRates", "RateStore", "RedisRates", "Schedule", "Slot", "StoreDown"]

_KEYS = 10_000
_US = 1_000_000


class StoreDown(Exception):
    """The store gives no answer.

    Args:
        reason: What went wrong; safe to log.
        pause: Seconds until it is asked again.
        news: Whether it had been well before.
    """

    def __init__(self, reason: str, *, pause: float, news: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.pause = pause
        self.news = news


@define(eq=False)
class Slot:
    """One call's place under the rates of its key.

    Args:
        key: Whose rates.
        weight: Units that the call takes.
    """

    key: str
    weight: int = 1
    granted: bool = False
    """Whether the place is taken; if not, nothing was spent."""
    wait: float | None = None
    """Seconds until it may go, or had it been granted; ``None`` when it can never go."""
    at: int = 0
    """When it may go, in microseconds on the clock of this process; it may become earlier."""
    left: bool = False
    """Whether it has been given back."""
    gone: bool = False
    """Whether its time has come."""
    name: str = ""
    """What it is called in Redis."""
    owner: Schedule | None = None
    """Where it stands, in memory."""


class RateStore(Protocol):
    """What keeps the rates; safe to call from any thread, and never waits for a rate."""

    remote: bool
    """Whether `reserve` talks to another machine, and so belongs off the event loop."""

    def slot(self, key: str, weight: int) -> Slot:
        """A slot to be filled in."""
        ...

    def reserve(self, slot: Slot, now: float, longest: float) -> None:
        """Take the next place for this slot; or none, if that is more than ``longest`` seconds away.

        Args:
            slot: What is filled in.
            now: Seconds, on the clock of this process (``io.now``).
            longest: Seconds; may be infinite.

        Raises:
            StoreDown: There is no answer.
        """
        ...

    def left(self, slot: Slot, now: float) -> float:
        """Seconds until a granted slot may go, as far as is known now; never blocks for long."""
        ...

    def leave(self, slot: Slot) -> None:
        """Give a place back, whatever has become of it; never blocks."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


def _whole(seconds: float) -> float:
    """Microseconds, whole unless infinite."""
    return seconds if math.isinf(seconds) else round(seconds * _US)


# In this process.


class Schedule:
    """The rates of one key, and who has been promised which slot; its owner holds a lock.

    Spending is counted from the moment a call will go, not from the moment it asks; so several rates hold
    together, also where one of them delays what another would let pass. A call that gives its slot back costs
    nothing at once; the next to reserve works it out, for all of them.
    """

    def __init__(self, rates: Sequence[Rate]) -> None:
        numbers = GCRA().redis_args(list(rates))
        self._rates = list(zip(map(int, numbers[::2]), map(int, numbers[1::2]), strict=True))
        self.state: tuple[int, ...] = (0,) * len(rates)
        """The TAT of each rate, in microseconds."""
        self.slots: deque[Slot] = deque()  # in order of arrival, which is the order of their times
        self._base = self.state  # the state before the first of the slots
        self._holes = False

    def reserve(self, slot: Slot, now: float, longest: float) -> None:
        """See `RateStore.reserve`."""
        self._tidy(now)
        if any(slot.weight > burst for _, burst in self._rates):
            return
        now_us = round(now * _US)
        slot.at = self._earliest(max(now_us, self.slots[-1].at if self.slots else 0), slot.weight)
        slot.wait = (slot.at - now_us) / _US
        slot.granted = slot.at - now_us <= _whole(longest)
        if slot.granted:
            if slot.wait:
                if not self.slots:
                    self._base = self.state
                self.slots.append(slot)
            self.state = self._spend(self.state, slot)

    def left(self, slot: Slot, now: float) -> float:
        """See `RateStore.left`."""
        self._tidy(now)
        return slot.at / _US - now

    def leave(self, slot: Slot) -> None:
        """See `RateStore.leave`; a slot whose time has come is spent."""
        if slot.granted and slot.wait and not slot.gone:
            slot.left = self._holes = True

    def is_armed(self, now: float) -> bool:
        """Whether anything is owed: if not, this is as good as new."""
        return max(self.state) > now * _US

    def _tidy(self, now: float) -> None:
        at = round(now * _US)
        while self.slots and self.slots[0].at <= at:
            slot = self.slots.popleft()
            slot.gone = True
            if not slot.left:
                self._base = self._spend(self._base, slot)
        if self._holes:
            self.slots = deque(slot for slot in self.slots if not slot.left)
            self.state = self._base
            for slot in self.slots:
                at = self._earliest(at, slot.weight)
                slot.at = min(slot.at, at)
                self.state = self._spend(self.state, slot)
            self._holes = False

    def _earliest(self, at: int, weight: int) -> int:
        """When a call of this weight may go, from a time on."""
        pairs = zip(self._rates, self.state, strict=True)
        return max(at, *(tat + (weight - burst) * emission for (emission, burst), tat in pairs))

    def _spend(self, state: tuple[int, ...], slot: Slot) -> tuple[int, ...]:
        """The state after a slot is used."""
        pairs = zip(self._rates, state, strict=True)
        return tuple(max(tat, slot.at) + slot.weight * emission for (emission, _), tat in pairs)


class MemoryRates:
    """Rates in this process: of 10,000 keys at most, of which the idle ones go first.

    Args:
        rates: What holds for each key.
    """

    remote = False
    slot = Slot

    def __init__(self, rates: Sequence[Rate]) -> None:
        self._lock = threading.Lock()
        self.table: Table[Schedule] = Table(lambda: Schedule(rates), armed=Schedule.is_armed, limit=_KEYS)

    def reserve(self, slot: Slot, now: float, longest: float) -> None:
        """Take the next place."""
        with self._lock:
            slot.owner = self.table.get(slot.key, now)
            slot.owner.reserve(slot, now, longest)

    def left(self, slot: Slot, now: float) -> float:
        """Seconds until it may go."""
        with self._lock:
            return 0.0 if slot.owner is None else slot.owner.left(slot, now)

    def leave(self, slot: Slot) -> None:
        """Give the place back."""
        with self._lock:
            if slot.owner is not None:
                slot.owner.leave(slot)

    def close(self) -> None:
        """Nothing to do."""


# In Redis.

_LUA = """
-- KEYS: a hash, the TAT of each rate once all whose time has come are gone; and a sorted set, who waits
-- for when. ARGV: weight, longest wait in microseconds (-1: any), name, then for each rate microseconds per
-- unit and burst. Returns whether it is granted, and the wait in microseconds.
local base, line = KEYS[1], KEYS[2]
local weight, longest, name = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

-- Lua writes numbers with 14 digits; these have 16
local function whole(number) return string.format('%.0f', number) end

local rates, tats, fields = {}, {}, {}
for i = 4, #ARGV, 2 do
    rates[#rates + 1] = {emission = tonumber(ARGV[i]), burst = tonumber(ARGV[i + 1])}
    fields[#fields + 1] = 'tat' .. #rates
end
for i, tat in ipairs(redis.call('HMGET', base, unpack(fields))) do tats[i] = tonumber(tat or 0) end

local function spend(at, units)
    for i, rate in ipairs(rates) do tats[i] = math.max(tats[i], at) + units * rate.emission end
end

local function each(waiting)
    for i = 1, #waiting, 2 do spend(tonumber(waiting[i + 1]), tonumber(waiting[i]:match(':(%d+)$'))) end
    return tonumber(waiting[#waiting] or 0)
end

local function save()
    for i, tat in ipairs(tats) do redis.call('HSET', base, fields[i], whole(tat)) end
end

local gone = redis.call('ZRANGEBYSCORE', line, '-inf', whole(now), 'WITHSCORES')
if #gone > 0 then
    each(gone)
    save()
    redis.call('ZREMRANGEBYSCORE', line, '-inf', whole(now))
end
local last = each(redis.call('ZRANGE', line, 0, -1, 'WITHSCORES'))

local at = math.max(now, last)
for i, rate in ipairs(rates) do at = math.max(at, tats[i] + (weight - rate.burst) * rate.emission) end
local granted = longest < 0 or at - now <= longest
if granted then
    spend(at, weight)
    if at > now then
        redis.call('ZADD', line, whole(at), name .. ':' .. whole(weight))
    else
        save()
    end
end
local expiry = math.ceil((math.max(now, unpack(tats)) - now) / 1000) + 60000
redis.call('PEXPIRE', base, whole(expiry))
redis.call('PEXPIRE', line, whole(expiry))
return {granted and 1 or 0, whole(at - now)}
"""


class RedisRates:
    """Rates in Redis, shared by all that use the same server, prefix, rates and keys.

    Redis keeps the time, and one script does each reservation at once. It takes time in proportion to how
    many calls of the key are waiting. Each key is named by a hash, and expires a minute after nothing is
    owed.

    A slot that is given back goes back with this process's next call, since whoever is cancelled can wait
    for nothing. After a failure the server is left alone for a second, so that an outage costs one short
    timeout a second, not one for each call.

    Args:
        rates: What holds for each key.
        url: ``redis://``, ``rediss://`` or ``unix://``, as redis-py takes it.
        prefix: What the names of all keys begin with.
        timeout: Seconds for connecting, and for each answer.
    """

    remote = True
    pause = 1.0

    def __init__(self, rates: Sequence[Rate], *, url: str, prefix: str, timeout: float) -> None:
        with extra("redis"):
            import redis  # noqa: PLC0415
        from redis.backoff import NoBackoff  # noqa: PLC0415
        from redis.retry import Retry  # noqa: PLC0415

        self._rates = list(rates)
        self._prefix = prefix
        self._client = redis.Redis.from_url(
            url,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 0),
        )
        self._script: Callable[..., Any] = self._client.register_script(_LUA)
        self._errors = (redis.RedisError, OSError)
        self._numbers = GCRA().redis_args(self._rates)
        self._returns: deque[Slot] = deque(maxlen=_KEYS)
        self._down_until: float | None = None

    def slot(self, key: str, weight: int) -> Slot:
        """A slot with a name that no other process gives."""
        return Slot(key, weight, name=uuid4().hex)

    def reserve(self, slot: Slot, now: float, longest: float) -> None:
        """Take the next place."""
        if any(slot.weight > rate.burst for rate in self._rates):
            return
        if self._down_until is not None and now < self._down_until:
            raise StoreDown("it failed a moment ago", pause=self._down_until - now)
        try:
            self._bring_back()
            most = -1 if math.isinf(longest) else _whole(longest)
            arguments = [slot.weight, most, slot.name, *self._numbers]
            granted, wait = self._script(keys=self._names(slot.key), args=arguments)
        except self._errors as exc:
            news, self._down_until = self._down_until is None, now + self.pause
            raise StoreDown(type(exc).__name__, pause=self.pause, news=news) from exc
        self._down_until = None
        slot.granted, slot.wait = bool(granted), int(wait) / _US
        slot.at = round(now * _US) + int(wait)
        if slot.left:  # cancelled while the answer was on its way
            self._returns.append(slot)

    def left(self, slot: Slot, now: float) -> float:
        """Seconds until it may go, from when it was asked for."""
        return slot.at / _US - now

    def leave(self, slot: Slot) -> None:
        """Give the place back, with the next call."""
        slot.left = True
        self._returns.append(slot)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _bring_back(self) -> None:
        with suppress(IndexError):
            while True:
                slot = self._returns.popleft()
                try:
                    self._client.zrem(self._names(slot.key)[1], f"{slot.name}:{slot.weight}")
                except self._errors:
                    self._returns.append(slot)
                    raise

    def _names(self, key: str) -> tuple[str, str]:
        # the braces keep both on one node of a cluster
        name = sha256(repr((self._numbers, key)).encode()).hexdigest()[:32]
        return f"{self._prefix}:rate:{{{name}}}", f"{self._prefix}:rate:{{{name}}}:line"
