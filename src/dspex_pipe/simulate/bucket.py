"""A provider's rate limit: a bucket that fills up all the time. Pure: seconds in, a verdict out."""

from __future__ import annotations

import math

__all__ = ["Bucket"]

_ALMOST = 1e-9  # what is lost to rounding when a client comes back exactly when it was told to


class Bucket:
    """A token bucket, which begins full.

    Args:
        per_minute: Units that flow in, in a minute.
        holds: How many seconds of that it holds at most, and never less than one unit.
    """

    def __init__(self, per_minute: float, holds: float) -> None:
        self.per_minute = per_minute
        self._flow = per_minute / 60
        self.size = max(1.0, self._flow * holds)
        self._level = self.size
        self._at = -math.inf

    def level(self, now: float) -> float:
        """Units in it; the clock never goes back."""
        if now > self._at:
            self._level = min(self.size, self._level + self._flow * (now - max(self._at, 0.0)))
            self._at = now
        return self._level

    def wait(self, units: float, now: float) -> float:
        """Seconds until so many units are in it, if nobody takes any; infinite when it is too small."""
        if units > self.size:
            return math.inf
        missing = units - self.level(now)
        return missing / self._flow if missing > _ALMOST else 0.0

    def missing(self, now: float) -> float:
        """Units until it is full."""
        return self.size - self.level(now)

    def full_in(self, now: float) -> float:
        """Seconds until it is full, if nobody takes any."""
        return self.missing(now) / self._flow

    def take(self, units: float, now: float) -> None:
        """Take so many units, or all there are."""
        self._level = max(0.0, self.level(now) - units)
