"""One call for many: concurrent misses on a key wait for the first of them.

The first caller of a key leads; the others follow. A leader that *lands* shares what it got with all who
follow; one that leaves without a result, because it was cancelled, hands the lead to the follower who has
waited longest. Threads, several event loops and trio may follow one leader at once: each
waits on an event of its own mode, and no lock is held while anybody waits.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from threading import Lock
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from ..io import IO, Event

__all__ = ["Flight", "Flights", "Landed"]

T = TypeVar("T")

_HOPELESS_BOUND = 1024


class Landed(Generic[T]):
    """What the leader shares."""

    __slots__ = ("result",)

    def __init__(self, result: T) -> None:
        self.result = result


class Flight(Generic[T]):
    """The lead of a key: whoever holds it must `land` or `leave`, once."""

    def __init__(self, flights: Flights[T], key: str) -> None:
        self._flights = flights
        self._key = key
        self._done = False
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


class _Follower(Generic[T]):
    __slots__ = ("event", "told")

    def __init__(self, event: Event) -> None:
        self.event = event
        self.told: Flight[T] | Landed[T] | None = None


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

    async def join(self, key: str, io: IO, max_wait: float | None) -> Flight[T] | Landed[T] | None:
        """Take the lead of a key, or wait for what its leader shares.

        Args:
            key: The key.
            io: The caller's mode.
            max_wait: Seconds to wait at most; ``None`` for no bound.

        Returns:
            The lead; or what the leader shared; or ``None``, when that took too long, or when there is no
            hope that it can be shared: then ask.
        """
        self._leave_dropped()
        with self._lock:
            if key in self._hopeless:
                return None
            flight = self._under_way.get(key)
            if flight is None:
                flight = self._under_way[key] = Flight(self, key)
                return flight
            follower: _Follower[T] = _Follower(io.event())
            flight.followers.append(follower)
        served = False
        try:
            await follower.event.wait(max_wait)
            served = True
        finally:
            told = self._stop_following(key, follower)
            if not served and isinstance(told, Flight):  # cancelled just as the lead was handed over
                told.leave()
        return told

    def _leave_dropped(self) -> None:
        while self.dropped:
            self.dropped.popleft().leave()

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
            del self._under_way[key]
            return list(flight.followers)

    def pass_on(self, key: str, flight: Flight[T]) -> None:
        """Give the lead to the next in line."""
        with self._lock:
            if not flight.followers:
                del self._under_way[key]
                return
            heir = flight.followers.popleft()
            following: Flight[T] = Flight(self, key)
            following.followers = flight.followers
            self._under_way[key] = following
            heir.told = following
        heir.event.set()
