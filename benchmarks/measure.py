"""Paired timing: every candidate runs in every round, so that a busy machine slows all of them alike.

A round runs one short block of calls of each candidate, in a new random order. What is compared are the
ratios within the rounds; their median is the result, and its interval says how far to trust it. No absolute
time is a result.
"""

from __future__ import annotations

import gc
import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence

from attrs import frozen

__all__ = ["SURE", "Block", "Ratio", "Samples", "Tick", "interleave", "median_of"]

Block = Callable[[int], float]
"""Makes so many calls, and tells the seconds that they took."""

Tick = Callable[[], object]
"""Called after each round, for the progress bar."""

SURE = 1.96
"""95 % of all intervals hold the truth."""

_WARM_UP = 2


@frozen
class Ratio:
    """A median over the rounds of a run.

    Args:
        value: The median.
        low: The lower end of its interval, by default one of 95 %.
        high: The upper end.
        rounds: How many values it is the median of.
    """

    value: float
    low: float
    high: float
    rounds: int

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def median_of(values: Sequence[float], *, sure: float = SURE) -> Ratio:
    """The median, and its interval from the order of the values, whatever their distribution.

    As many values are above the true median as below it, like heads and tails: the interval reaches as far
    from the middle as a coin would. Few values are all in it.

    Args:
        values: One for each round.
        sure: Standard deviations that the interval reaches either way.

    Raises:
        ValueError: There are no values.
    """
    if not values:
        raise ValueError("no rounds were measured")
    ordered, count = sorted(values), len(values)
    reach = sure * math.sqrt(count) / 2
    low = max(0, math.floor((count - 1) / 2 - reach))
    high = min(count - 1, math.ceil((count - 1) / 2 + reach))
    return Ratio(statistics.median(ordered), ordered[low], ordered[high], count)


class Samples:
    """The seconds per call of each candidate, round by round."""

    def __init__(self, names: Sequence[str]) -> None:
        self.rounds: dict[str, list[float]] = {name: [] for name in names}

    def add(self, other: Samples) -> None:
        """Go on with the rounds of another run of the same candidates."""
        for name, values in other.rounds.items():
            self.rounds.setdefault(name, []).extend(values)

    def seconds(self, name: str) -> float:
        """The median, in seconds per call; to be looked at, not to be judged."""
        return statistics.median(self.rounds[name])

    def ratio(self, name: str, base: str, *, sure: float = SURE) -> Ratio:
        """How many times as long a candidate takes as another."""
        return median_of([a / b for a, b in self._pairs(name, base)], sure=sure)

    def added(self, name: str, base: str) -> Ratio:
        """Seconds per call that a candidate takes more than another."""
        return median_of([a - b for a, b in self._pairs(name, base)])

    def added_ratio(self, name: str, other: str, base: str) -> Ratio:
        """What a candidate adds to the base, as a multiple of what another adds to it."""
        mine, theirs = ([a - b for a, b in self._pairs(one, base)] for one in (name, other))
        return median_of([a / b if b > 0 else math.inf for a, b in zip(mine, theirs, strict=True)])

    def _pairs(self, name: str, base: str) -> list[tuple[float, float]]:
        return list(zip(self.rounds[name], self.rounds[base], strict=True))


def interleave(
    blocks: Mapping[str, Block],
    *,
    rounds: int,
    calls: int,
    tick: Tick | None = None,
    seed: int = 0,
    warm_up: int = _WARM_UP,
) -> Samples:
    """Let the candidates take turns.

    The garbage collector stays on: whoever makes garbage pays for it. Every block begins with none, and what
    was there before the round is not looked at again.

    Args:
        blocks: The candidates, by name.
        rounds: Rounds that count.
        calls: Calls in a block.
        tick: Called after each round that counts.
        seed: Of the order.
        warm_up: Rounds before those.
    """
    samples, order = Samples(list(blocks)), list(blocks)
    chance = random.Random(seed)  # noqa: S311 - an order, no secret
    try:
        for number in range(-warm_up, rounds):
            chance.shuffle(order)
            gc.collect()
            gc.freeze()
            for name in order:
                gc.collect()
                seconds = blocks[name](calls) / calls
                if number >= 0:
                    samples.rounds[name].append(seconds)
            if number >= 0 and tick is not None:
                tick()
    finally:
        gc.unfreeze()
    return samples
