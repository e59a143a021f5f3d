"""What the layers are good for: every scenario of `dspex_pipe.simulate`, with and without them.

``python -m benchmarks.benefit`` prints tables, and writes pictures and ``benefit.json``. Time is virtual, so
the numbers are the same on every machine. The pictures need matplotlib (the extra ``plot``).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dspex_pipe import presets
from dspex_pipe.simulate import SCENARIOS, Report, Scenario, policies, simulate, table

SHORT = 4  # the first of the policies: without the stack that lacks each of its layers in turn
SEEDS = range(3)


def stacks(scenario: Scenario, *, quick: bool) -> dict[str, list[Any]]:
    """The policies for a scenario; also our preset as it is, where the scenario's own stack is another."""
    every = policies(scenario.layers)
    chosen = dict(list(every.items())[:SHORT]) if quick else every
    plain = presets.llm()
    return chosen if list(scenario.layers) == plain else {**chosen, "presets.llm()": plain}


def numbers(report: Report, scenario: Scenario) -> dict[str, Any]:
    """All numbers of a report, of the whole and of the time of trouble; its series are for the pictures."""
    parts = {"whole": report, "trouble": report.during(*scenario.trouble)}
    return {
        name: {key: value for key, value in part.as_dict().items() if key != "series"}
        for name, part in parts.items()
    }


def compare(name: str, scenario: Scenario, *, quick: bool) -> dict[str, Report]:
    """Run the policies, and print what came of each."""
    print(f"\n{name}: {scenario.story}")
    started = time.perf_counter()
    reports = {
        policy: simulate(layers, scenario.provider, scenario.workload)
        for policy, layers in stacks(scenario, quick=quick).items()
    }
    took = time.perf_counter() - started
    calls = sum(len(report.calls) for report in reports.values())
    print(f"({calls} calls in {took:.1f} s of real time, {calls / took:.0f} a second)\n")
    print(table(reports))
    start, end = scenario.trouble
    if (start, end) != (0, scenario.workload.until):
        print(f"\nof the calls that began from {start:g} to {end:g} s:\n")
        print(table({policy: report.during(start, end) for policy, report in reports.items()}))
    return reports


def spread(scenario: Scenario) -> dict[str, dict[str, list[float]]]:
    """Goodput with several seeds, the lowest first: one alone may be lucky."""
    found = {}
    print(f"\ngoodput with the seeds {SEEDS[0]} to {SEEDS[-1]}, from the lowest to the highest:\n")
    for policy in ("SDK retry", "ours"):
        layers = policies(scenario.layers)[policy]
        reports = [simulate(layers, scenario.provider, scenario.workload, seed=seed) for seed in SEEDS]
        parts = {"whole": reports, "trouble": [report.during(*scenario.trouble) for report in reports]}
        found[policy] = {
            part: sorted(report.goodput for report in ones if report.servable) for part, ones in parts.items()
        }
        print(f"{policy:<16}", *(f"{part} {_range(shares):<22}" for part, shares in found[policy].items()))
    return found


def _range(shares: list[float]) -> str:
    return f"{shares[0]:.1%} to {shares[-1]:.1%}" if shares else "-"


def draw(results: Mapping[str, Any], path: Path) -> None:
    """All scenarios in one picture: what the provider had to bear, and what the callers got."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - only who draws needs it

    figure: Any = Figure(figsize=(11, 7), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    named = ("no retry", "SDK retry", "naive retry x 5", "ours")
    for number, policy in enumerate(named):
        places = [place + (number - 1.5) * 0.2 for place in range(len(results))]
        parts = [result[policy] for result in results.values()]
        upper.bar(places, [part["trouble"]["amplification"] for part in parts], 0.2, label=policy)
        lower.bar(places, [100 * (part["whole"]["goodput"] or 0) for part in parts], 0.2, label=policy)
    upper.set_ylabel("calls sent for one, in trouble")
    upper.legend()
    lower.set_ylabel("answered, % of what the provider can serve")
    lower.set_xticks(range(len(results)), list(results))
    figure.savefig(path)


def main(quick: bool, out: Path) -> dict[str, Any]:
    """Run it all.

    Args:
        quick: Leave out the stacks that lack one layer, all seeds but one, and the pictures.
        out: A directory, for what is written.
    """
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    for name, scenario in SCENARIOS.items():
        reports = compare(name, scenario, quick=quick)
        results[name] = {policy: numbers(report, scenario) for policy, report in reports.items()}
        if not quick:
            for policy, goodput in spread(scenario).items():
                results[name][policy]["goodput_by_seed"] = goodput
            for policy in ("SDK retry", "ours"):
                reports[policy].plot(out / f"{name}-{policy}.png".replace(" ", "-"))
    if not quick:
        draw(results, out / "benefit.png")
    (out / "benefit.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="without pictures, ablations and seeds")
    parser.add_argument(
        "--out", type=Path, default=Path("benefit"), help="where to write; by default ./benefit"
    )
    arguments = parser.parse_args()
    main(arguments.quick, arguments.out)
