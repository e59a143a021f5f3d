"""What has been measured, as tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.table import Table

from .results import Measure, Results

__all__ = ["show"]


def show(results: Results, console: Console) -> None:
    """Print all tables that there is something for."""
    for table in _tables(results):
        if table.row_count:
            console.print(table)
            console.print()


def _tables(results: Results) -> Iterator[Table]:
    for name, measures in results.costs().items():
        yield _costs(name, measures, results.missing.get(name, {}))
    yield _memory(results)
    yield _rest(results, "import", "Importing after httpx, as a share of it")
    yield _rest(results, "whole", "Whole calls, answered from memory")
    yield from _curves(results)
    yield _missing(results)
    yield _verdicts(results)


def _costs(name: str, measures: dict[str, Measure], missing: dict[str, str]) -> Table:
    _, wire, http, mode = name.split(".")
    table = Table(title=f"{http}, {mode}, {wire}: cost of a call", title_justify="left")
    table.add_column("")
    for column in ("µs", "added µs", "x bare", "95 % of it"):
        table.add_column(column, justify="right")
    for candidate, one in measures.items():
        ratio = one.ratio
        table.add_row(
            candidate,
            f"{one.micros:.0f}",
            f"{one.added:+.1f}",
            f"{ratio.value:.3f}",
            f"{ratio.low:.3f} to {ratio.high:.3f}",
        )
    for rival, why in missing.items():
        table.add_row(rival, "", "", "missing", why)
    return table


def _memory(results: Results) -> Table:
    table = Table(title="Memory of one blocking call over a null transport", title_justify="left")
    table.add_column("")
    for column in ("objects at the wire", "bytes at the peak", "bytes kept per call"):
        table.add_column(column, justify="right")
    for name, numbers in results.memory.items():
        row = (numbers["blocks_at_the_wire"], numbers["peak_bytes"], numbers["kept_bytes"])
        table.add_row(name, *(f"{number:,.0f}" for number in row))
    return table


def _rest(results: Results, part: str, title: str) -> Table:
    table = Table("", title=title, title_justify="left")
    for column in ("µs", "ratio", "95 % of it"):
        table.add_column(column, justify="right")
    for name, one in results.measures.items():
        if name.startswith(f"{part}."):
            ratio = one.ratio
            micros = f"{one.micros:.0f}" if one.micros else ""
            shown = name.removeprefix(f"{part}.")
            table.add_row(shown, micros, f"{ratio.value:.3f}", f"{ratio.low:.3f} to {ratio.high:.3f}")
    return table


def _curves(results: Results) -> Iterable[Table]:
    for curve in results.curves.values():
        table = Table(f"{curve.x} →", title=f"{curve.title}: {curve.y}", title_justify="left")
        for point in curve.points:
            table.add_column(f"{point:,}", justify="right")
        for line, values in curve.lines.items():
            table.add_row(line, *map(_short, values))
        yield table


def _short(value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"


def _missing(results: Results) -> Table:
    table = Table("where", "what", "why", title="Not measured", title_justify="left")
    for where, whats in results.missing.items():
        for what, why in whats.items():
            table.add_row(where, what, why)
    return table


_COLOURS = {"met": "green", "missed": "red"}


def _verdicts(results: Results) -> Table:
    table = Table(title="Promises", title_justify="left")
    table.add_column("")
    for column in ("target", "floor", "measured", "95 % of it"):
        table.add_column(column, justify="right")
    table.add_column("verdict")
    for verdict in results.verdicts:
        ratio, word = verdict.ratio, verdict.word
        if ratio is None:
            continue
        colour = _COLOURS.get(word.rstrip("?"), "default")
        table.add_row(
            verdict.promise,
            f"{'≥' if verdict.at_least else '≤'} {verdict.target:g}",
            "" if verdict.floor is None else f"{verdict.floor.value:.2f}",
            f"{ratio.value:.3f}",
            f"{ratio.low:.3f} to {ratio.high:.3f}",
            f"[{colour}]{word}[/]",
        )
    return table
