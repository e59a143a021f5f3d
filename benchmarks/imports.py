"""What an import adds to that of httpx, in fresh interpreters."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

from .measure import Ratio, Tick, median_of

__all__ = ["measure"]

# Both in one process, one after the other: so they share its luck.
_PROGRAM = """
import sys
from time import perf_counter
started = perf_counter()
{base}
between = perf_counter()
{statement}
print(between - started, perf_counter() - between)
"""


def measure(statement: str, base: str, *, rounds: int, tick: Tick | None = None) -> Ratio | str:
    """The time that an import takes after another one, as a share of that one's; or why not."""
    program = _PROGRAM.format(statement=statement, base=base)
    shares = []
    with tempfile.TemporaryDirectory() as cache:
        # all modules are compiled in the first round, and none in the others, wherever they are installed
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": cache, "PYTHONDONTWRITEBYTECODE": ""}
        for number in range(-1, rounds):
            done = subprocess.run(  # noqa: S603 - ourselves
                [sys.executable, "-c", program],
                capture_output=True,
                text=True,
                check=False,
                env=environment,
            )
            if done.returncode:
                return done.stderr.strip().rpartition("\n")[2]
            first, then = map(float, done.stdout.split())
            if number >= 0:
                shares.append(then / first)
                if tick is not None:
                    tick()
    return median_of(shares)
