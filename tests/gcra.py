"""GCRA (ITU-T I.371), restated from its definition, to hold ours against."""

from __future__ import annotations

import math


def earliest(rates, releases, now, weight):
    """When one more may be released, behind all others and under all rates."""
    found = max([now] + [at for at, _ in releases[-1:]])
    for rate in rates:
        unit, tat = math.ceil(rate.interval * 1000 / rate.limit), 0
        for at, units in releases:
            tat = max(tat, at) + units * unit
        found = max(found, tat + (weight - rate.burst) * unit)
    return found
