"""A bounded table for state per key, for keys that come from outside."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

__all__ = ["Table"]

V = TypeVar("V")


class Table(Generic[V]):
    """The state of the keys used last; it takes no lock: its owner holds one.

    An entry goes when it has been idle for too long, or is the one used longest ago in a full table. Armed
    entries (an open circuit, a gate that is shut) never go. When all are armed, a new key is served with
    state that is not kept: the table stays within its bound, and forgets nothing that matters.

    Args:
        make: Makes the state of a new key.
        armed: Whether a state must be kept, at this time on the owner's clock.
        limit: Keys at most.
        idle: Seconds without use after which an entry that is not armed goes.
    """

    def __init__(
        self,
        make: Callable[[], V],
        *,
        armed: Callable[[V, float], bool],
        limit: int = 1024,
        idle: float = 600.0,
    ) -> None:
        self._make = make
        self._armed = armed
        self._limit = limit
        self._idle = idle
        self._entries: OrderedDict[str, tuple[V, float]] = OrderedDict()  # used longest ago first

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[tuple[str, V]]:
        return ((key, state) for key, (state, _) in self._entries.items())

    def get(self, key: str, now: float) -> V:
        """The state of a key, made if it is new."""
        entry = self._entries.pop(key, None)
        state = self._make() if entry is None else entry[0]
        if entry is None:
            self._make_room(now)
        if len(self._entries) < self._limit:
            self._entries[key] = (state, now)
        return state

    def find(self, key: str) -> V | None:
        """The state of a key, if it has any; this does not count as use."""
        entry = self._entries.get(key)
        return None if entry is None else entry[0]

    def discard(self, key: str) -> None:
        """Forget a key."""
        self._entries.pop(key, None)

    def _make_room(self, now: float) -> None:
        """Drop what is idle from the old end, and one entry more if the table is full."""
        gone: list[str] = []
        for key, (state, used) in self._entries.items():
            if now - used <= self._idle and len(self._entries) - len(gone) < self._limit:
                break
            if not self._armed(state, now):
                gone.append(key)
        for key in gone:
            del self._entries[key]
