"""A report as a picture; the one place that needs matplotlib."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

if TYPE_CHECKING:
    from .report import Report

__all__ = ["draw", "open_times"]

_BINS = 150
_GREY, _GREEN, _RED, _BLUE, _ORANGE = "#777777", "#2a9d4a", "#c8322d", "#2f6fb5", "#e58a1f"


def draw(report: Report, path: str | Path) -> None:
    """Draw a report into a file; its ending says which format."""
    step = max(1.0, (report.end - report.start) / _BINS)
    series = {
        name: [value / step for value in values] if name != "at" else values
        for name, values in report.series(step).items()
    }
    figure: Any = Figure(figsize=(10, 8), layout="constrained")
    calls, sent, times = figure.subplots(3, 1, sharex=True)
    figure.suptitle(
        f"goodput {report.goodput:.0%}, amplification {report.amplification:.2f}, {report.throttled} x 429",
        fontsize="large",
    )
    for axes in (calls, sent, times):
        for outage in report.outages:
            axes.axvspan(outage.start, outage.end, color=_RED, alpha=0.2 * outage.rate, linewidth=0)
    for name, colour in (("begun", _GREY), ("answered", _GREEN), ("failed", _RED)):
        calls.step(series["at"], series[name], color=colour, label=name, where="post")
    for start, end in open_times(report):
        calls.axvspan(start, end, ymin=0.97, color=_RED, linewidth=0)
    calls.plot([], [], color=_RED, linewidth=5, label="circuit open")
    for name, colour in (("begun", _GREY), ("sent", _BLUE), ("throttled", _ORANGE)):
        label = "429" if name == "throttled" else name
        sent.step(series["at"], series[name], color=colour, label=label, where="post")
    for failed, colour in ((False, _GREEN), (True, _RED)):
        dots = [call for call in report.calls if (call.failure is not None) is failed]
        times.scatter(
            [call.started for call in dots],
            [max(call.ended - call.started, 1e-3) for call in dots],
            color=colour,
            s=2,
            label="failed" if failed else "answered",
        )
    if report.calls:
        times.set_yscale("log")
    for axes, label in ((calls, "calls a second"), (sent, "sent a second"), (times, "seconds a call took")):
        axes.set_ylabel(label)
        axes.legend(loc="upper right", fontsize="small")
    times.set_xlabel("seconds")
    figure.savefig(path)


def open_times(report: Report) -> Iterator[tuple[float, float]]:
    """From when to when circuits refused calls."""
    since: dict[str, float] = {}
    for change in report.changes:
        if change.decision == "opens":
            since[change.key] = change.at
        elif change.key in since:
            yield max(since.pop(change.key), report.start), change.at
    for start in since.values():
        yield max(start, report.start), report.end
