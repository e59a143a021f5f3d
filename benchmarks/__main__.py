"""``python -m benchmarks``: measure, judge, print, draw; ``python -m benchmarks compare BASE``."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from attrs import asdict, frozen
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from . import compare, cost, imports, memory, plots, profiling, report, scale, streams, targets, whole
from .measure import Samples, Tick
from .results import Measure, Results
from .rivals import STACK
from .wires import module

_HERE = Path(__file__).parent
_WHOLE_PYTHON = _HERE.parent / ".venv-dspy" / "bin" / "python"
_OTHERS = ("attrs", "httpx2", "hishel", "httpx_retries", "pyrate_limiter", "purgatory", "stamina", "tenacity")
_IMPORTS = {
    "dspex_pipe": "import dspex_pipe",
    "dspex_pipe, a client that retries": "from dspex_pipe import Retry, build_client",
    "dspex_pipe, all of it": "from dspex_pipe import *",
    **{package: f"import {package}" for package in _OTHERS},
}


@frozen
class Job:
    """A piece of work with a bar of its own."""

    name: str
    rounds: int
    run: Callable[[Tick], object]


# The parts


def _cost(results: Results, *, quick: bool) -> Iterator[Job]:
    def run(group: cost.Group, tick: Tick) -> None:
        samples, missing = cost.measure(group, tick)
        name = f"cost.{group.name}"
        results.lack(name, missing)
        if samples is not None:
            results.measures.update(_measures(name, samples))

    for group in cost.groups(quick=quick):
        yield Job(f"cost: {group.name}", group.rounds, partial(run, group))


def _measures(name: str, samples: Samples) -> Iterator[tuple[str, Measure]]:
    for candidate in samples.rounds:
        base = cost.GET if "GET" in candidate else cost.BARE
        yield (
            f"{name}.{candidate}",
            Measure(
                samples.ratio(candidate, base),
                samples.seconds(candidate) * 1e6,
                samples.added(candidate, base).value * 1e6,
            ),
        )
    if STACK in samples.rounds:
        mine = "Retry + Breaker + RateLimit"
        yield (
            f"{name}.added to what {STACK} adds",
            Measure(samples.added_ratio(mine, STACK, cost.BARE), samples.seconds(mine) * 1e6),
        )


def _memory(results: Results, *, quick: bool) -> Iterator[Job]:
    def run(_: Tick) -> None:
        results.memory.update(memory.measure(module("httpx"), calls=50 if quick else 200))

    yield Job("memory", 1, run)


def _imports(results: Results, *, quick: bool) -> Iterator[Job]:
    rounds = 3 if quick else 15

    def run(name: str, tick: Tick) -> None:
        share = imports.measure(_IMPORTS[name], "import httpx", rounds=rounds, tick=tick)
        if isinstance(share, str):
            results.lack("import", {name: share})
        else:
            results.measures[f"import.{name}"] = Measure(share)

    for name in list(_IMPORTS)[:3] if quick else _IMPORTS:
        yield Job(f"import: {name}", rounds, partial(run, name))


def _scale(results: Results, *, quick: bool) -> Iterator[Job]:
    for sweep in scale.SWEEPS:
        yield Job(
            f"scale: {sweep.name}",
            sweep.quick[1] if quick else sweep.rounds,
            partial(scale.measure, sweep, results, quick),
        )


def _streams(results: Results, *, quick: bool) -> Iterator[Job]:
    rounds = 2 if quick else 15

    def run(tick: Tick) -> None:
        results.extra["streams"] = found = {}
        for name, samples in streams.measure(rounds=rounds, tick=tick):
            found[name] = {one: samples.ratio(one, "splitlines").value for one in samples.rounds}
            for one in samples.rounds:
                results.measures[f"streams.{name}.{one}"] = Measure(
                    samples.ratio(one, "splitlines"), samples.seconds(one) * 1e6
                )

    yield Job("streams", rounds * len(streams.FORMATS), run)


def _whole(results: Results, python: Path, *, quick: bool) -> Iterator[Job]:
    rounds = 5 if quick else 40

    def run(_: Tick) -> None:
        samples, why = whole.measure(python, rounds=rounds)
        if why is not None:
            results.lack("whole", {"litellm, dspy": why})
            return
        ours = "llm.request, a hit"
        for name in samples.rounds:
            results.measures[f"whole.{name}"] = Measure(
                samples.ratio(name, ours), samples.seconds(name) * 1e6
            )
        results.measures["whole.litellm to llm.request"] = Measure(samples.ratio("litellm, a hit", ours))
        results.measures["whole.llm.request to dspy.LM"] = Measure(samples.ratio(ours, "dspy.LM, a hit"))

    yield Job("whole calls", 1, run)


def _benefit(results: Results, out: Path, *, quick: bool) -> Iterator[Job]:
    def run(_: Tick) -> None:
        benefit: Any = importlib.import_module(f"{__package__}.benefit")
        results.extra["benefit"] = benefit.main(quick, out)

    if (_HERE / "benefit.py").is_file():
        yield Job("benefit", 1, run)


PARTS = ("cost", "memory", "import", "scale", "streams", "whole", "benefit")


def _jobs(results: Results, arguments: argparse.Namespace) -> Iterator[Job]:
    quick: bool = arguments.quick
    parts: dict[str, Callable[[], Iterator[Job]]] = {
        "cost": lambda: _cost(results, quick=quick),
        "memory": lambda: _memory(results, quick=quick),
        "import": lambda: _imports(results, quick=quick),
        "scale": lambda: _scale(results, quick=quick),
        "streams": lambda: _streams(results, quick=quick),
        "whole": lambda: _whole(results, arguments.whole_python, quick=quick),
        "benefit": lambda: _benefit(results, arguments.out, quick=quick),
    }
    for name, jobs in parts.items():
        for job in jobs():
            if not arguments.only or any(_is_meant(word, name, job) for word in arguments.only):
                yield job


def _is_meant(word: str, part: str, job: Job) -> bool:
    return word in {part, job.name} or job.name.startswith(f"{word}.")


@contextmanager
def _bar(console: Console, jobs: int) -> Iterator[Callable[[Job], Tick]]:
    columns = [
        SpinnerColumn(),
        TextColumn("{task.description:36}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    ]
    with Progress(*columns, console=console, transient=True) as progress:
        everything = progress.add_task("everything", total=jobs, completed=-1)
        inner = progress.add_task("", total=1)

        def begin(job: Job) -> Tick:
            progress.advance(everything)
            progress.reset(inner, total=job.rounds, description=job.name)
            return lambda: progress.advance(inner)

        yield begin


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Measure what was asked for; the exit status is 0, whatever has been found."""
    results = Results(quick=arguments.quick)
    jobs = list(_jobs(results, arguments))
    if not jobs:
        console.print(f"nothing is called {', '.join(arguments.only)}: there are {', '.join(PARTS)}")
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "results.json"
    try:
        with _bar(console, len(jobs)) as begin:
            for job in jobs:
                started = perf_counter()
                job.run(begin(job))
                results.seconds[job.name] = round(perf_counter() - started, 1)
    finally:  # whoever has had enough, or has met an error, keeps what has been measured until then
        results.verdicts = targets.judge(results)
        results.write(path)
    report.show(results, console)
    console.print(f"written: {path}; {plots.draw(results, arguments.out)}")
    return 0


def run_compare(arguments: argparse.Namespace, console: Console) -> int:
    """Compare two revisions; the exit status is 1 when something has become slower."""
    found: list[compare.Change] = []
    missing: dict[str, str] = {}
    groups = compare.groups(quick=arguments.quick)
    processes = 3 if arguments.quick else 5
    with compare.worktree(arguments.base) as base, _bar(console, len(groups)) as begin:
        head = _HERE.parent / "src"
        for group in groups:
            job = Job(group.name, group.rounds * processes, lambda _: None)
            samples, lacks = compare.compare(base, head, group, processes=processes, tick=begin(job))
            found += compare.changes(samples, group.name, arguments.tolerance)
            missing |= lacks
    table = Table("", title=f"What is here now, to {arguments.base}", title_justify="left")
    for column in ("ratio", "99.9 % of it", ""):
        table.add_column(column, justify="right")
    for change in found:
        ratio = change.ratio
        table.add_row(change.name, f"{ratio.value:.3f}", f"{ratio.low:.3f} to {ratio.high:.3f}", change.word)
    console.print(table)
    for name, why in missing.items():
        console.print(f"only one of them has {name}: {why}")
    told = {"base": arguments.base, "changes": [{**asdict(one), "change": one.word} for one in found]}
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "compare.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    slower = [change.name for change in found if change.word == "slower"]
    if slower:
        console.print(f"slower than {arguments.tolerance:g} x: {', '.join(slower)}")
    return 1 if slower else 0


def run_profile(arguments: argparse.Namespace, console: Console) -> int:
    """Print the profile of a stack."""
    console.print(profiling.table(arguments.stack))
    return 0


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.set_defaults(act=run)
    parser.add_argument("--quick", action="store_true", help="in under a minute, with wide intervals")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="PART",
        help=f"{', '.join(PARTS)}; or one job of them, as the bar calls it: 'cost: mock.httpx.blocking'",
    )
    parser.add_argument("--out", type=Path, default=_HERE / "out", help="where results.json and plots go")
    parser.add_argument(
        "--whole-python",
        type=Path,
        default=_WHOLE_PYTHON,
        help="an interpreter that has litellm and dspy, for the part 'whole'",
    )
    commands = parser.add_subparsers(title="instead")
    looking = commands.add_parser("profile", help="where the time of a call goes, function by function")
    looking.set_defaults(act=run_profile)
    looking.add_argument("stack", choices=list(profiling.STACKS), help="what is called")
    comparing = commands.add_parser("compare", help="compare the source here with that of a revision")
    comparing.set_defaults(act=run_compare)
    comparing.add_argument("base", help="the revision")
    comparing.add_argument("--quick", action="store_true")
    comparing.add_argument("--tolerance", type=float, default=1.05, help="the ratio that is no change yet")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Do what the arguments say."""
    arguments = parse(sys.argv[1:] if words is None else words)
    status: int = arguments.act(arguments, Console())
    return status


if __name__ == "__main__":
    raise SystemExit(main())
