"""The curves and the costs, as PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .results import Curve, Measure, Results
from .rivals import RIVALS
from .wires import module

__all__ = ["draw"]


_WIDEST = 6


def draw(results: Results, folder: Path) -> str:
    """Draw everything into a folder; says what there is now."""
    matplotlib: Any = module("matplotlib")
    if isinstance(matplotlib, str):
        return f"no plots: {matplotlib}"
    matplotlib.use("Agg")  # no window
    pyplot: Any = module("matplotlib.pyplot")
    for name, curve in results.curves.items():
        _curve(pyplot, curve, folder / f"{_file(name)}.png")
    for name, measures in results.costs().items():
        _bars(pyplot, name, measures, folder / f"{_file(name)}.png")
    return f"{len(results.curves) + len(results.costs())} plots beside it"


def _file(name: str) -> str:
    return name.replace(" ", "-").replace(".", "-")


def _curve(pyplot: Any, curve: Curve, path: Path) -> None:
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for line, values in curve.lines.items():
        axes.plot(curve.points, values, marker="o", label=line)
    axes.set_xscale("symlog" if 0 in curve.points else "log")
    axes.set_yscale("log" if _steep(curve) else "linear")
    axes.set(title=curve.title, xlabel=curve.x, ylabel=curve.y)
    if not _steep(curve):
        axes.set_ylim(bottom=0)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _steep(curve: Curve) -> bool:
    values = [value for line in curve.lines.values() for value in line if value > 0]
    return bool(values) and max(values) > 20 * min(values)


def _bars(pyplot: Any, name: str, measures: dict[str, Measure], path: Path) -> None:
    _, wire, http, mode = name.split(".")
    names = list(measures)[::-1]
    ratios = [measures[one].ratio for one in names]
    errors = [[r.value - r.low for r in ratios], [r.high - r.value for r in ratios]]
    figure, axes = pyplot.subplots(figsize=(9, 0.26 * len(names) + 1.2), layout="constrained")
    colours = ["tab:orange" if one in RIVALS else "0.7" if "bare" in one else "tab:blue" for one in names]
    axes.barh(names, [r.value for r in ratios], xerr=errors, ecolor="0.3", color=colours)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(
        title=f"{http}, {mode}, {wire}: a call, to a bare one",
        xlabel="ratio, with its 95 % interval; blue is ours",
    )
    axes.tick_params(labelsize="small")
    axes.set_xlim(0, min(_WIDEST, 1.1 * max(r.high for r in ratios)))
    for place, ratio in enumerate(ratios):
        if ratio.value > _WIDEST:
            axes.text(_WIDEST, place, f"{ratio.value:.1f} →", ha="right", va="center", fontsize="small")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
