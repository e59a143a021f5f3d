"""One call for many: concurrent misses on a key wait for the first of them.

The first caller of a key leads; the others follow. A leader that *lands* shares what it got with all who
follow; one that leaves without a result, because it was cancelled, hands the lead to the follower who has
waited longest. Threads, several event loops and trio may follow one leader at once: each
waits on an event of its own mode, and no lock is held while anybody waits.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from threading import Lock
from typing import TYPE_CHECKING, Generic, TypeVar

from attrs import define, frozen

if TYPE_CHECKING:
    from ..io import IO, Event

__all__ = ["Flight", "Flights", "Landed"]

T = TypeVar("T")

_HOPELESS_BOUND = 1024


@frozen
class Landed(Generic[T]):
    """What the leader shares."""

    result: T


class Flight(Generic[T]):
    """The lead of a key: whoever holds it must `land` or `leave`, once; who has lost it, to no effect.

    Args:
        flights: Where it belongs.
        key: Of what.
        since: When its holder began, in seconds on the clock of ``io.now``.
    """

    def __init__(self, flights: Flights[T], key: str, since: float) -> None:
        self._flights = flights
        self._key = key
        self._done = False
        self.since = since
        self.rides_on = False
        """Whether the lead has gone over to a body that is still being read."""
        self.followers: deque[_Follower[T]] = deque()

    def land(self, result: T) -> None:
        """Share a result with everybody who follows, and end the flight."""
        for follower in self._flights.end(self._key, self):
            follower.told = Landed(result)
            follower.event.set()
        self._done = True

    def drop(self) -> None:
        """Leave later, when somebody next joins: for a finaliser, which must take no lock."""
        self._flights.dropped.append(self)

    def leave(self) -> None:
        """Hand the lead to the follower who has waited longest, if there is one; after `land`, do nothing."""
        if not self._done:
            self._done = True
            self._flights.pass_on(self._key, self)


@define(eq=False)
class _Follower(Generic[T]):
    event: Event
    told: Flight[T] | Landed[T] | None = None


class Flights(Generic[T]):
    """The flights under way, by key."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._under_way: dict[str, Flight[T]] = {}
        self._hopeless: OrderedDict[str, None] = OrderedDict()
        self.dropped: deque[Flight[T]] = deque()

    def __len__(self) -> int:
        self._leave_dropped()
        return len(self._under_way)

    async def join(
        self, key: str, io: IO, max_wait: float | None, deadline: float | None = None
    ) -> Flight[T] | Landed[T] | None:
        """Take the lead of a key, or wait for what its leader shares.

        Args:
            key: The key.
            io: The caller's mode.
            max_wait: Seconds that a leader may take; the first to have waited so long takes the lead from it,
                and the others follow that one. ``None`` for no bound.
            deadline: When to stop waiting for whomever, on the clock of ``io.now``.

        Returns:
            The lead; or what the leader shared; or ``None``, when the deadline has come, or when there is no
            hope that anything can be shared: then ask.
        """
        self._leave_dropped()
        with self._lock:
            if key in self._hopeless:
                return None
            flight = self._under_way.get(key)
            if flight is None:
                flight = self._under_way[key] = Flight(self, key, io.now())
                return flight
            follower: _Follower[T] = _Follower(io.event())
            flight.followers.append(follower)
        served = False
        try:
            await self._follow(key, follower, io, _or_never(max_wait), _or_never(deadline))
            served = True
        finally:
            told = self._stop_following(key, follower)
            if not served and isinstance(told, Flight):  # cancelled just as the lead was handed over
                told.leave()
        if isinstance(told, Flight):
            told.since = io.now()
        return told

    async def _follow(
        self, key: str, follower: _Follower[T], io: IO, max_wait: float, deadline: float
    ) -> None:
        """Wait until there is word, or the lead to take, or the deadline has come."""
        while True:
            with self._lock:
                if follower.told is not None:
                    return
                flight, now = self._under_way[key], io.now()
                if now >= flight.since + max_wait:
                    flight.followers.remove(follower)
                    follower.told = self._succeed(key, flight)
                if follower.told is not None or now >= deadline:
                    return
                until = min(flight.since + max_wait, deadline)
            await follower.event.wait(None if math.isinf(until) else until - now)

    def _leave_dropped(self) -> None:
        while self.dropped:
            try:
                flight = self.dropped.popleft()
            except IndexError:  # another thread took the last one
                return
            flight.leave()

    def learn(self, key: str, *, shareable: bool) -> None:
        """Remember keys whose answers cannot be shared: waiting for those only costs time.

        Varnish calls this hit-for-miss. The newest 1024 are remembered.
        """
        with self._lock:
            self._hopeless.pop(key, None)
            if not shareable:
                self._hopeless[key] = None
                if len(self._hopeless) > _HOPELESS_BOUND:
                    self._hopeless.popitem(last=False)

    def _stop_following(self, key: str, follower: _Follower[T]) -> Flight[T] | Landed[T] | None:
        with self._lock:
            flight = self._under_way.get(key)
            if flight is not None and follower in flight.followers:
                flight.followers.remove(follower)
            return follower.told

    def end(self, key: str, flight: Flight[T]) -> list[_Follower[T]]:
        """Take a flight off the list; who followed it."""
        with self._lock:
            if self._under_way.get(key) is flight:
                del self._under_way[key]
            return list(flight.followers)

    def pass_on(self, key: str, flight: Flight[T]) -> None:
        """Give the lead to the next in line."""
        with self._lock:
            if not flight.followers:
                if self._under_way.get(key) is flight:
                    del self._under_way[key]
                return
            heir = flight.followers.popleft()
            heir.told = self._succeed(key, flight)
        heir.event.set()

    def _succeed(self, key: str, flight: Flight[T]) -> Flight[T]:
        """The flight in the place of this one, with its followers; the lock is held."""
        following: Flight[T] = Flight(self, key, flight.since)
        following.followers, flight.followers = flight.followers, deque()
        self._under_way[key] = following
        return following


def _or_never(seconds: float | None) -> float:
    return math.inf if seconds is None else seconds
