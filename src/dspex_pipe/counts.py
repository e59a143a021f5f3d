"""Counts over a sliding window."""

from __future__ import annotations

from collections import deque

__all__ = ["Counts"]

_BUCKETS = 10


class Counts:
    """How often each of a few things happened lately; it takes no lock: its owner holds one.

    The window slides in tenths: a count is forgotten between 0.9 and 1.0 windows after it was made.

    Args:
        kinds: How many things are counted.
        window: Seconds that the counts look back.
    """

    __slots__ = ("_buckets", "_kinds", "_width")

    def __init__(self, kinds: int, window: float) -> None:
        self._kinds = kinds
        self._width = window / _BUCKETS
        self._buckets: deque[list[int]] = deque()  # [number of the bucket, counts…], oldest first

    def add(self, kind: int, now: float) -> None:
        """Count one."""
        number = self._forget(now)
        if not self._buckets or self._buckets[-1][0] < number:
            self._buckets.append([number, *[0] * self._kinds])
        self._buckets[-1][1 + kind] += 1

    def totals(self, now: float) -> list[int]:
        """The counts, by kind."""
        self._forget(now)
        return [sum(bucket[1 + kind] for bucket in self._buckets) for kind in range(self._kinds)]

    def clear(self) -> None:
        """Forget everything."""
        self._buckets.clear()

    def _forget(self, now: float) -> int:
        number = int(now / self._width)
        while self._buckets and self._buckets[0][0] <= number - _BUCKETS:
            self._buckets.popleft()
        return number
