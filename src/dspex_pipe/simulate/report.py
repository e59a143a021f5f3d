"""What a simulation found: numbers, and what they were at any time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from attrs import asdict, evolve, frozen

from ..extras import extra
from .answers import HALF
from .provider import Outage
from .workload import Call

__all__ = ["Change", "Report", "table"]

_NUMBERS = (
    *("answered", "halves", "goodput", "per_second", "upstream", "amplification", "throttled"),
    *("tokens", "wasted", "p50", "p99", "failed_in"),
)


@frozen
class Change:
    """One change of a circuit.

    Args:
        at: When, in seconds.
        key: Whose circuit it is.
        decision: ``opens``, ``half-opens`` or ``closes``.
        why: What failed last, of one that opens.
    """

    at: float
    key: str
    decision: str
    why: str = ""


@frozen(kw_only=True, repr=False)
class Report:
    """What came of a workload; the same seed gives an equal one. ``print`` shows the numbers.

    Args:
        layers: The stack, as a pipeline shows it.
        seed: Of all that was left to chance.
        start: From when it counts, in seconds.
        end: Until when; calls that began before are followed to their end.
        calls: All logical calls, in the order in which they began.
        servable: When the calls began that the provider can serve: see `goodput`.
        changes: What the breakers did.
        decisions: How often each layer decided what.
        outages: Those of the provider.
    """

    layers: str
    seed: int
    start: float
    end: float
    calls: tuple[Call, ...]
    servable: tuple[float, ...]
    changes: tuple[Change, ...]
    decisions: Mapping[str, int]
    outages: tuple[Outage, ...] = ()

    def __repr__(self) -> str:
        return f"<Report of {len(self.calls)} calls: {self.answered} answered, {self.upstream} sent>"

    def __str__(self) -> str:
        width = max(map(len, self.as_row()))
        lines = [f"{self.layers}, seed {self.seed}, {self.start:g} to {self.end:g} s"]
        lines += [f"  {name:<{width}}  {value}" for name, value in self.as_row().items()]
        lines += [f"  {'failed by':<{width}}  {number} x {why}" for why, number in self.failures.items()]
        lines += [
            f"  {'breaker':<{width}}  {each.at:.1f} s {each.decision} {each.why}" for each in self.changes
        ]
        return "\n".join(line.rstrip() for line in lines)

    def during(self, start: float, end: float) -> Report:
        """The same for the calls that began in this time, with all that came of them later.

        Of `changes` it has those of this time, and before them the openings of the circuits that are open as
        it begins. `decisions` are still those of all calls.

        Raises:
            ValueError: This time is empty.
        """
        if not start < end:
            raise ValueError(f"during(start, end) takes an end after its start, got {start}, {end}")
        before = {change.key: change for change in self.changes if change.at < start}
        return evolve(
            self,
            start=start,
            end=end,
            calls=tuple(call for call in self.calls if start <= call.started < end),
            servable=tuple(at for at in self.servable if start <= at < end),
            changes=(
                *(change for change in before.values() if change.decision == "opens"),
                *(change for change in self.changes if start <= change.at < end),
            ),
        )

    # What became of the calls

    @property
    def answered(self) -> int:
        """Calls that were answered."""
        return sum(call.failure is None for call in self.calls)

    @property
    def failures(self) -> dict[str, int]:
        """Calls that were not, by what went wrong, the most frequent first."""
        return dict(Counter(call.failure for call in self.calls if call.failure is not None).most_common())

    @property
    def halves(self) -> int:
        """Calls whose caller took half an answer for a whole one: failures that nobody was told of."""
        return sum(call.failure == HALF for call in self.calls)

    @property
    def goodput(self) -> float:
        """Calls that were answered, as a share of those that the provider can serve.

        It can serve a call unless it is down as the call comes, or its limits and its capacity do not get
        round to it within the caller's patience. It may be over 1: what a cache answers counts, too, and
        so does a call that came while the provider was down and was retried until it was not; and of what a
        busy provider can serve, in order of arrival and in its mean time, this is an estimate.
        """
        return self.answered / len(self.servable) if self.servable else math.nan

    @property
    def per_second(self) -> float:
        """Calls that began in this time and were answered, however late, for each second of it."""
        return self.answered / (self.end - self.start)

    # What the provider had to do for it

    @property
    def upstream(self) -> int:
        """Calls that left this side."""
        return sum(len(call.sent) for call in self.calls)

    @property
    def amplification(self) -> float:
        """Calls that left this side, for each logical call."""
        return self.upstream / len(self.calls) if self.calls else math.nan

    @property
    def throttled(self) -> int:
        """Answers of 429."""
        return sum(len(call.throttled) for call in self.calls)

    @property
    def tokens(self) -> int:
        """Tokens that the provider worked on."""
        return sum(call.billed for call in self.calls)

    @property
    def wasted(self) -> int:
        """Those of them that nobody had an answer of."""
        return sum(call.wasted for call in self.calls)

    # How long it took

    def quantile(self, share: float) -> float:
        """Seconds that this share of the answered calls took at most; not a number when none was."""
        return _quantile([call.ended - call.started for call in self.calls if call.failure is None], share)

    @property
    def p50(self) -> float:
        """Seconds that half of the answered calls took at most."""
        return self.quantile(0.5)

    @property
    def p99(self) -> float:
        """Seconds that 99 % of the answered calls took at most."""
        return self.quantile(0.99)

    @property
    def failed_in(self) -> float:
        """Seconds that a failed call took on average until its caller knew."""
        took = [call.ended - call.started for call in self.calls if call.failure is not None]
        return fmean(took) if took else math.nan

    # All of it

    def series(self, step: float = 1.0) -> dict[str, list[float]]:
        """What happened in each ``step`` seconds: calls that began, were answered, failed, sent, throttled.

        Raises:
            ValueError: The step is not positive.
        """
        if not step > 0:
            raise ValueError(f"series(step) takes a positive number of seconds, got {step!r}")
        ends = [(call.ended, call.failure) for call in self.calls]
        latest = max([self.end, *(at for at, _ in ends)])
        bins = math.ceil((latest - self.start) / step) or 1

        def count(times: Iterable[float]) -> list[float]:
            found = Counter(min(int((at - self.start) / step), bins - 1) for at in times)
            return [float(found[number]) for number in range(bins)]

        return {
            "at": [self.start + number * step for number in range(bins)],
            "begun": count(call.started for call in self.calls),
            "answered": count(at for at, failure in ends if failure is None),
            "failed": count(at for at, failure in ends if failure is not None),
            "sent": count(at for call in self.calls for at in call.sent),
            "throttled": count(at for call in self.calls for at in call.throttled),
        }

    def as_row(self) -> dict[str, str]:
        """The numbers that matter, to be read."""
        return {
            "calls": f"{len(self.calls)}",
            "answered": f"{self.answered}",
            "goodput": _percent(self.goodput),
            "halves": f"{self.halves}",
            "sent": f"{self.upstream}",
            "amplification": _number(self.amplification),
            "429s": f"{self.throttled}",
            "tokens wasted": _percent(self.wasted / self.tokens if self.tokens else math.nan),
            "p50": _seconds(self.p50),
            "p99": _seconds(self.p99),
            "failed in": _seconds(self.failed_in),
        }

    def as_dict(self) -> dict[str, Any]:
        """All of it but the single calls, fit for JSON; what is not a number is ``None``."""
        numbers = {name: getattr(self, name) for name in _NUMBERS}
        return {
            "layers": self.layers,
            "seed": self.seed,
            "start": self.start,
            "end": self.end,
            "calls": len(self.calls),
            "servable": len(self.servable),
            **{name: None if math.isnan(value) else value for name, value in numbers.items()},
            "failures": self.failures,
            "decisions": dict(self.decisions),
            "breaker": [asdict(change) for change in self.changes],
            "series": self.series(),
        }

    def plot(self, path: str | Path) -> None:
        """Draw it into a file: calls and answers, what was sent, times, and the breakers' states.

        Args:
            path: Where to; the ending says which format: ``.png``, ``.svg``, ``.pdf``.

        Raises:
            ImportError: matplotlib is not installed: it is in the extra ``plot``.
        """
        with extra("plot"):
            from .drawing import draw  # noqa: PLC0415 - loads matplotlib

        draw(self, path)


def table(reports: Mapping[Any, Report]) -> str:
    """Reports side by side, a line for each, under its name: any key, as ``str`` has it."""
    rows = [{"": str(name), **report.as_row()} for name, report in reports.items()]
    heads = list(rows[0]) if rows else []
    widths = {head: max(len(head), *(len(row[head]) for row in rows)) for head in heads}
    lines = [dict(zip(heads, heads, strict=True)), *rows] if rows else []
    return "\n".join(
        "  ".join(
            f"{row[head]:<{widths[head]}}" if not head else f"{row[head]:>{widths[head]}}" for head in heads
        )
        for row in lines
    )


def _quantile(values: list[float], share: float) -> float:
    """By nearest rank: a value that was there."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else math.nan


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{share:.1%}".replace("%", " %")


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _seconds(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f} s"
