"""What is promised, and whether it is kept."""

from __future__ import annotations

from .measure import Ratio
from .results import Results, Verdict
from .rivals import STACK

__all__ = ["judge"]

_LIBRARIES = ("httpx", "httpx2")
_MODES = ("blocking", "asyncio")
_ALL_MODES = (*_MODES, "trio")

# The stack, how much it may cost at most, and in which modes.
_COSTS = [
    ("ten no-op layers", 1.03, _MODES),
    ("Logging", 1.05, _MODES),
    ("Breaker", 1.05, _MODES),
    ("Retry", 1.05, _MODES),
    ("RateLimit", 1.05, _MODES),
    ("the four together", 1.10, _MODES),
    ("the four and Cache, a miss", 1.20, _MODES),
    ("Cache, a hit in memory", 1.05, _ALL_MODES),
    ("Cache, a hit in SQLite's front", 1.05, _ALL_MODES),
    ("Cache, a first hit in SQLite", 1.50, ("blocking",)),
    ("Cache, a first hit in SQLite", 4.00, ("asyncio", "trio")),
]


def judge(results: Results) -> list[Verdict]:
    """The verdict on every promise whose part was asked for; on the others, that nothing was measured."""

    def ratio(measure: str) -> Ratio | None:
        found = results.measures.get(measure)
        return None if found is None else found.ratio

    def verdict(promise: str, measure: str, target: float, *, at_least: bool = False) -> Verdict:
        where, _, stack = measure.rpartition(".")
        return Verdict(promise, measure, target, at_least, ratio(measure), ratio(f"{where}.floor: {stack}"))

    found = [
        verdict(f"{stack}: {http}, {mode}", f"cost.mock.{http}.{mode}.{stack}", bound)
        for stack, bound, modes in _COSTS
        for http in _LIBRARIES
        for mode in modes
    ]
    found += [
        verdict(
            f"Retry + Breaker + RateLimit add at most half of what {STACK} add: httpx, {mode}",
            f"cost.mock.httpx.{mode}.added to what {STACK} adds",
            0.5,
        )
        for mode in _MODES
    ]
    found += [
        verdict(
            "a cached llm.request is 10 x faster than litellm's",
            "whole.litellm to llm.request",
            10,
            at_least=True,
        ),
        verdict("a cached llm.request to dspy.LM's hit", "whole.llm.request to dspy.LM", 1.5),
        verdict(
            "cost per call, 10,000 in flight to 100",
            "scale.in flight.the four together.10000 to 100",
            1.3,
        ),
        verdict("Breaker, 100,000 keys to 100", "scale.keys.Breaker.100000 to 100", 1.3),
        verdict(
            "Breaker that keeps them all, 100,000 keys to 100",
            "scale.keys.Breaker(max_keys=200_000).100000 to 100",
            1.3,
        ),
        verdict("RateLimit, 100,000 keys to 100", "scale.keys.RateLimit.100000 to 100", 1.3),
        verdict("import dspex_pipe after import httpx, as a share of it", "import.dspex_pipe", 0.20),
    ]
    return found
