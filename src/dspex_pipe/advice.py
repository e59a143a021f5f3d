"""What the order of layers means: what is surely wrong, and what is a trade-off worth knowing.

Layers are told apart by name, so that the core need not know them; a layer of yours by another name is left
alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen

__all__ = ["Advice", "OrderWarning", "advise"]


class OrderWarning(UserWarning):
    """The layers stand in an order that is surely wrong; the text has a code, and says why."""


@frozen
class Advice:
    """One remark on an order.

    Args:
        code: ``W…`` is surely wrong, and warned of when a pipeline is built; ``A…`` is a trade-off.
        outer: The layer that stands outside.
        inner: The layer that stands inside it.
        why: One sentence.
    """

    code: str
    outer: str
    inner: str
    why: str

    def __str__(self) -> str:
        return f"{self.code}: {self.outer} outside {self.inner}: {self.why}"


_RULES = (
    Advice("W01", "Retry", "Retry", "their attempts multiply, 3 x 3 = 9 calls for one."),
    Advice(
        "W02",
        "Breaker",
        "Cache",
        "an open circuit refuses what the cache could answer, and hits count as health.",
    ),
    Advice("W03", "RateLimit", "Cache", "hits wait for a rate that they do not use."),
    Advice("W04", "RateLimit", "Retry", "only the first attempt is limited, so retries break the rate."),
    Advice("W05", "RateLimit", "Breaker", "calls that an open circuit refuses have used up the rate."),
    Advice(
        "A01", "Breaker", "Retry", "the circuit counts calls, not attempts; inside, it sees every attempt."
    ),
    Advice("A02", "Retry", "Cache", "each attempt looks into the cache; outside, a hit passes all else by."),
    Advice("A03", "Retry", "Logging", "each attempt is a log line; outside, each call is one."),
    Advice("A04", "Cache", "Logging", "hits leave no log line."),
    Advice("A05", "Breaker", "Logging", "refused calls leave no log line."),
    Advice("A06", "RateLimit", "Logging", "the wait for the rate is not part of the logged time."),
)


def advise(names: Sequence[str]) -> list[Advice]:
    """The remarks on layers with these names, first outermost; what is surely wrong comes first."""
    return [
        rule
        for rule in _RULES
        if any(name == rule.outer and rule.inner in names[at + 1 :] for at, name in enumerate(names))
    ]
