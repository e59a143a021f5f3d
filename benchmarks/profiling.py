"""Where the time of a call goes, function by function: not a measurement, but what to look at next.

The profiler makes each call of a function dearer, small ones most: so its numbers are scaled to the time that
the call takes without it, and say little about what has many small parts.
"""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import httpx
from rich.table import Table

import dspex_pipe as dspex

from .calls import PATH, fresh, same
from .cost import BARE, quiet, stacks
from .wires import LOCAL, mock

__all__ = ["STACKS", "table"]

_CALLS = 2000
_SHOWN = 0.02  # of the time of a call
_HIT = "Cache, a hit in memory"

STACKS: dict[str, Callable[[], list[Any]] | None] = {BARE: None, **stacks(), _HIT: lambda: [dspex.Cache()]}
"""What can be looked at."""


def table(stack: str) -> Table:
    """The functions that take more than 2 % of a blocking call over MockTransport, with those they call."""
    layers = STACKS[stack]
    bodies = same() if stack == _HIT else fresh()
    with quiet(), _client(layers) as client:

        def calls(count: int) -> float:
            asked = [next(bodies) for _ in range(count)]
            started = perf_counter()
            for body in asked:
                client.post(LOCAL + PATH, json=body)
            return perf_counter() - started

        calls(100)
        micros = min(calls(100) for _ in range(20)) / 100 * 1e6
        profiler = cProfile.Profile()
        profiler.runcall(calls, _CALLS)
    found = Table(title=f"{stack}: {micros:.0f} µs a call, profiled and scaled", title_justify="left")
    found.add_column("function")
    for column in ("calls", "µs in itself", "µs with all it calls"):
        found.add_column(column, justify="right")
    for row in _rows(pstats.Stats(profiler), micros):
        found.add_row(*row)
    return found


def _client(layers: Callable[[], list[Any]] | None) -> httpx.Client:
    transport = mock(httpx)
    return (
        httpx.Client(transport=transport)
        if layers is None
        else dspex.build_client(layers(), transport=transport)
    )


def _rows(stats: Any, micros: float) -> Iterator[tuple[str, str, str, str]]:
    scale = micros / stats.total_tt
    rows = sorted(stats.stats.items(), key=lambda row: -row[1][3])
    for (file, line, function), (_, count, itself, everything, _) in rows:
        if everything * scale >= _SHOWN * micros and count < 100 * _CALLS and "benchmarks" not in file:
            place = f"{Path(file).parent.name}/{Path(file).name}:{line}" if line else ""
            yield (
                f"{place} {function}".strip(),
                f"{count / _CALLS:.0f}",
                f"{itself * scale:.1f}",
                f"{everything * scale:.1f}",
            )
