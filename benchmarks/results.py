"""What a run has found, and how it is written down: one JSON whose names never change."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import asdict, define, field, frozen

from .measure import Ratio

__all__ = ["Curve", "Measure", "Results", "Verdict"]

_PACKAGES = (
    "httpx",
    "httpx2",
    "httpx-retries",
    "httpx-limiter",
    "httpx-hedged",
    "tenacity",
    "purgatory",
    "pybreaker",
    "aiobreaker",
    "pyrate-limiter",
    "hishel",
    "httpware",
)


@frozen
class Measure:
    """One thing that was measured.

    Args:
        ratio: To what it is compared with.
        micros: Microseconds per call, in this run and on this machine: to be looked at, not to be compared.
        added: Microseconds more than what it is compared with.
    """

    ratio: Ratio
    micros: float = 0.0
    added: float = 0.0


@frozen
class Curve:
    """How something grows.

    Args:
        title: What is drawn.
        x: What grows.
        y: What is measured.
        points: The numbers along the x axis.
        lines: By name, a number for each of them.
    """

    title: str
    x: str
    y: str
    points: Sequence[float]
    lines: Mapping[str, Sequence[float]]


@frozen
class Verdict:
    """A promise, and what was measured.

    Args:
        promise: In words.
        measure: The name of the measure.
        target: The bound.
        at_least: Whether it is a lower bound.
        ratio: What was measured; ``None`` where it could not be.
        floor: What was measured where only the least is done; ``None`` where nothing was.
    """

    promise: str
    measure: str
    target: float
    at_least: bool
    ratio: Ratio | None
    floor: Ratio | None = None

    @property
    def met(self) -> bool | None:
        """Whether the median keeps the promise; ``None`` when nothing was measured."""
        if self.ratio is None:
            return None
        return self.ratio.value >= self.target if self.at_least else self.ratio.value <= self.target

    @property
    def word(self) -> str:
        """The verdict in a word; with a question mark where the interval holds the target, too."""
        if self.ratio is None or self.met is None:
            return "not measured"
        unsure = self.ratio.low <= self.target <= self.ratio.high
        return ("met" if self.met else "missed") + ("?" if unsure else "")


@define
class Results:
    """All of a run.

    Args:
        quick: Whether it was a quick one, whose intervals are wide.
        measures: By name: ``cost.mock.httpx.blocking.Retry``.
        memory: By name: bytes and blocks of a call.
        curves: By name.
        missing: Who could not be measured, by where, and why.
        verdicts: The promises.
        extra: What other parts have told, by their name.
        seconds: How long each job took.
    """

    quick: bool = False
    measures: dict[str, Measure] = field(factory=dict)
    memory: dict[str, dict[str, float]] = field(factory=dict)
    curves: dict[str, Curve] = field(factory=dict)
    missing: dict[str, dict[str, str]] = field(factory=dict)
    verdicts: list[Verdict] = field(factory=list)
    extra: dict[str, Any] = field(factory=dict)
    seconds: dict[str, float] = field(factory=dict)

    def costs(self) -> dict[str, dict[str, Measure]]:
        """The measures of whole calls, by group and by candidate."""
        groups: dict[str, dict[str, Measure]] = {}
        for name, measure in self.measures.items():
            if name.startswith("cost.") and ".added to " not in name:
                _, wire, http, mode, candidate = name.split(".", 4)
                groups.setdefault(f"cost.{wire}.{http}.{mode}", {})[candidate] = measure
        return groups

    def lack(self, where: str, missing: Mapping[str, str]) -> None:
        """Note who could not be measured."""
        if missing:
            self.missing.setdefault(where, {}).update(missing)

    def as_json(self) -> dict[str, Any]:
        """What goes into the file."""
        return {
            "schema": 1,
            "quick": self.quick,
            "environment": environment(),
            "measures": {name: asdict(one) for name, one in self.measures.items()},
            "memory": self.memory,
            "curves": {name: asdict(one) for name, one in self.curves.items()},
            "missing": self.missing,
            "verdicts": [
                {**asdict(verdict), "verdict": verdict.word, "met": verdict.met} for verdict in self.verdicts
            ],
            "extra": self.extra,
            "seconds": self.seconds,
        }

    def write(self, path: Path) -> None:
        """Write the file."""
        told = _finite(self.as_json())
        path.write_text(json.dumps(told, indent=1, default=str, allow_nan=False) + "\n", encoding="utf-8")


def _finite(thing: Any) -> Any:
    """The same without what JSON has no number for: that is ``null``."""
    if isinstance(thing, Mapping):
        return {key: _finite(value) for key, value in thing.items()}
    if isinstance(thing, list | tuple):
        return [_finite(value) for value in thing]
    return None if isinstance(thing, float) and not math.isfinite(thing) else thing


def environment() -> dict[str, Any]:
    """Where this was measured."""
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    try:
        here = Path(__file__).parent
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty"],  # noqa: S607 - the user's own git
            cwd=here,
            capture_output=True,
            text=True,
            check=False,
        )
        revision = described.stdout.strip() or None
    except OSError:
        revision = None
    return {
        "time": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "revision": revision,
        "versions": versions,
    }
