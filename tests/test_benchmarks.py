"""The benchmarks measure what they say: their arithmetic, their verdicts, and a small run of all of it."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import attrs
import httpx
import pytest
from benchmarks import compare, cost, imports, measure, memory, report, scale, targets, whole
from benchmarks.__main__ import Job, main
from benchmarks.calls import Candidate, open_mode, same
from benchmarks.floors import FLOORS
from benchmarks.results import Curve, Measure, Results, Verdict
from benchmarks.rivals import RIVALS
from benchmarks.wires import ANSWER, LOCAL, loopback, mock, module
from hypothesis import given, strategies as st
from rich.console import Console

import dspex_pipe as dspex

SOURCE = Path(dspex.__file__).parent.parent
TIMES = st.floats(min_value=1e-6, max_value=1e3)


def ratio(value: float, low: float | None = None, high: float | None = None) -> measure.Ratio:
    return measure.Ratio(value, value if low is None else low, value if high is None else high, 9)


# Statistics


@given(st.lists(TIMES, min_size=1, max_size=300))
def test_the_interval_holds_the_median_and_no_value_that_was_not_measured(values):
    found = measure.median_of(values)
    assert found.low <= found.value <= found.high
    assert {found.low, found.high} <= set(values)
    assert found.rounds == len(values)


def test_the_interval_is_that_of_a_coin():
    # of 100 tosses, 40 to 60 are heads in 95 % of all cases
    found = measure.median_of([float(n) for n in range(100)])
    assert (found.low, found.value, found.high) == (39, 49.5, 60)


def test_few_values_are_all_in_the_interval():
    assert measure.median_of([3.0, 1.0, 2.0]) == measure.Ratio(2.0, 1.0, 3.0, 3)


def test_who_wants_to_be_surer_gets_a_wider_interval():
    values = [float(n) for n in range(100)]
    usual, surer = measure.median_of(values), measure.median_of(values, sure=3.3)
    assert surer.low < usual.low <= usual.high < surer.high


def test_no_rounds_are_an_error():
    with pytest.raises(ValueError, match="no rounds"):
        measure.median_of([])


def test_ratios_are_those_within_the_rounds():
    samples = measure.Samples(["bare", "ours", "theirs"])
    # the second round was ten times slower for everybody
    samples.rounds.update(bare=[1.0, 10.0, 1.0], ours=[2.0, 20.0, 2.0], theirs=[5.0, 50.0, 5.0])
    assert samples.ratio("ours", "bare") == measure.Ratio(2, 2, 2, 3)
    assert samples.added("ours", "bare").value == 1
    assert samples.added_ratio("ours", "theirs", "bare") == measure.Ratio(0.25, 0.25, 0.25, 3)
    assert samples.seconds("bare") == 1


def test_who_adds_nothing_is_infinitely_better():
    samples = measure.Samples(["bare", "ours", "theirs"])
    samples.rounds.update(bare=[1.0], ours=[2.0], theirs=[1.0])
    assert samples.added_ratio("ours", "theirs", "bare").value == math.inf


def test_candidates_take_turns_in_changing_order_and_warm_up_does_not_count():
    called, ticks = [], []

    def block(name):
        def run(calls):
            called.append(name)
            return calls * {"a": 1.0, "b": 3.0}[name]

        return run

    samples = measure.interleave(
        {"a": block("a"), "b": block("b")}, rounds=8, calls=5, tick=lambda: ticks.append(1), warm_up=2
    )
    assert samples.rounds == {"a": [1.0] * 8, "b": [3.0] * 8}
    assert len(ticks) == 8
    rounds = [tuple(called[i : i + 2]) for i in range(0, 20, 2)]
    assert set(rounds) == {("a", "b"), ("b", "a")}


def test_samples_of_several_processes_are_one_run():
    one, other = measure.Samples(["a"]), measure.Samples(["a"])
    one.rounds["a"], other.rounds["a"] = [1.0], [2.0]
    one.add(other)
    assert one.rounds == {"a": [1.0, 2.0]}


# Verdicts


@pytest.mark.parametrize(
    ("measured", "at_least", "word"),
    [
        (ratio(1.0, 0.9, 1.04), False, "met"),
        (ratio(1.0, 0.9, 1.2), False, "met?"),
        (ratio(1.2, 1.1, 1.3), False, "missed"),
        (ratio(1.2, 1.0, 1.3), False, "missed?"),
        (ratio(1.2, 1.1, 1.3), True, "met"),
        (ratio(1.0, 0.9, 1.04), True, "missed"),
        (None, False, "not measured"),
    ],
)
def test_a_verdict_says_whether_noise_could_have_decided(measured, at_least, word):
    assert Verdict("a promise", "a.measure", 1.05, at_least, measured).word == word


def test_every_promise_is_judged_by_its_measure():
    results = Results()
    assert {verdict.word for verdict in targets.judge(results)} == {"not measured"}
    results.measures["cost.mock.httpx.blocking.Retry"] = Measure(ratio(1.04))
    told = {verdict.promise: verdict for verdict in targets.judge(results)}
    assert told["Retry: httpx, blocking"].word == "met"
    assert told["Breaker: httpx, blocking"].met is None


@pytest.mark.parametrize(
    ("measured", "word"),
    [
        (ratio(1.2, 1.1, 1.3), "slower"),
        (ratio(1.2, 0.99, 1.3), ""),
        (ratio(1.04, 1.01, 1.06), ""),
        (ratio(0.8, 0.7, 0.9), "faster"),
        (ratio(0.8, 0.7, 1.01), ""),
    ],
)
def test_a_change_is_one_beyond_the_tolerance_and_beyond_doubt(measured, word):
    assert compare.Change("a call", measured, 1.05).word == word


# What is written


def test_the_json_is_strict_and_tells_everything(tmp_path):
    results = Results(quick=True)
    results.measures["cost.mock.httpx.blocking.Retry"] = Measure(ratio(1.5, 1.4, math.inf), 150.0, 50.0)
    results.measures["cost.mock.httpx.blocking.floor: Retry"] = Measure(ratio(1.25, 1.2, 1.3), 125.0, 25.0)
    results.curves["scale.keys"] = Curve("Keys", "keys", "bytes", [1, 10], {"Breaker": [1.0, math.nan]})
    results.lack("cost.mock.httpx.blocking", {"purgatory": "ModuleNotFoundError"})
    results.verdicts = targets.judge(results)
    results.write(tmp_path / "results.json")
    told = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    retry = told["measures"]["cost.mock.httpx.blocking.Retry"]
    assert retry["ratio"] == {"value": 1.5, "low": 1.4, "high": None, "rounds": 9}
    assert told["curves"]["scale.keys"]["lines"] == {"Breaker": [1.0, None]}
    assert told["missing"] == {"cost.mock.httpx.blocking": {"purgatory": "ModuleNotFoundError"}}
    (verdict,) = (v for v in told["verdicts"] if v["promise"] == "Retry: httpx, blocking")
    assert (verdict["verdict"], verdict["floor"]["value"]) == ("missed", 1.25)
    console = Console(record=True, width=200)
    report.show(results, console)
    text = console.export_text()
    (row,) = (line for line in text.splitlines() if "Retry: httpx, blocking" in line)
    assert [cell.strip() for cell in row.split("│")][2:5] == ["≤ 1.05", "1.25", "1.500"]
    assert "purgatory" in text


# The real thing, small


def test_a_quick_run_is_complete(tmp_path, capsys):
    group = "mock.httpx.blocking"
    assert main(["--quick", "--only", f"cost: {group}", "scale: layers", "--out", str(tmp_path)]) == 0
    told = json.loads((tmp_path / "results.json").read_text())
    named = {name.removeprefix(f"cost.{group}.") for name in told["measures"] if name.startswith("cost.")}
    missing = told["missing"].get(f"cost.{group}", {})
    assert {cost.BARE, *cost.stacks(), *cost.HITS, *(f"floor: {stack}" for stack in FLOORS)} <= named
    for name, rival in RIVALS.items():
        if rival.why_not("httpx", "blocking") != "":
            assert (name in named) != (name in missing), name  # measured, or told as missing
    for one in told["measures"].values():
        assert 0 < one["ratio"]["low"] <= one["ratio"]["value"] <= one["ratio"]["high"]
    assert len(told["curves"]) == 2
    assert "promises" in capsys.readouterr().out.lower()
    plotted = list(tmp_path.glob("*.png"))
    assert bool(plotted) != isinstance(module("matplotlib"), str)


def test_who_cannot_be_imported_is_told_as_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "purgatory", None)
    group = cost.Group("mock", "httpx", "blocking", 1, 1, {cost.BARE, "purgatory"})
    samples, missing = cost.measure(group)
    assert samples is not None
    assert list(samples.rounds) == [cost.BARE]
    assert missing["purgatory"].startswith("purgatory: ModuleNotFoundError")


def test_a_library_that_is_not_there_is_told_as_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "httpx2", None)
    samples, missing = cost.measure(cost.Group("mock", "httpx2", "blocking", 1, 1))
    assert samples is None
    assert "httpx2" in missing["mock.httpx2.blocking"]


@pytest.mark.parametrize("mode", ["asyncio", "trio"])
@pytest.mark.parametrize("wire", ["mock", "null", "loopback"])
def test_every_wire_in_every_async_mode(wire, mode):
    group = cost.Group(wire, "httpx", mode, 1, 2, {cost.BARE, "Retry", "Cache, a first hit in SQLite"})
    samples, _ = cost.measure(group)
    assert samples is not None
    assert set(samples.rounds) == set(group.only)


def test_a_hit_that_is_none_is_not_measured_as_one():
    with open_mode("blocking") as mode:
        assert not isinstance(mode, str)
        client = dspex.build_client([dspex.Cache(mode="off")], transport=mock(httpx))
        block = mode.block(Candidate(lambda: client, same, cache="hit"), LOCAL)
        with pytest.raises(AssertionError, match="not what was to be measured"):
            block(1)


def test_the_loopback_answers_on_a_connection_that_stays_open():
    with loopback() as url, httpx.Client() as client:
        assert [client.post(url, json={"n": n}).content for n in range(3)] == [ANSWER] * 3
        assert client.get(url).headers["x-request-id"] == "r-1"


def test_memory_is_told_for_every_stack():
    found = memory.measure(httpx, calls=2)
    assert set(found) == {"bare", *cost.stacks()}
    assert all(numbers["peak_bytes"] > 0 for numbers in found.values())
    assert found["bare"]["blocks_at_the_wire"] > 0


@pytest.mark.parametrize("sweep", scale.SWEEPS, ids=lambda sweep: sweep.name)
def test_every_sweep_gives_its_curves(sweep):
    results = Results()
    small = attrs.evolve(sweep, points=sweep.points[:2], rounds=1)
    scale.measure(small, results, False)
    assert results.curves
    for curve in results.curves.values():
        assert all(len(values) == 2 and min(values) > 0 for values in curve.lines.values())
    assert all(name.startswith(f"scale.{sweep.name}") for name in results.measures)


def test_who_has_had_enough_keeps_what_was_measured(monkeypatch, tmp_path):
    def interrupted(tick):
        raise KeyboardInterrupt

    def jobs(results, arguments):
        yield Job("one", 1, lambda tick: results.lack("import", {"this": "is missing"}))
        yield Job("two", 1, interrupted)

    monkeypatch.setattr("benchmarks.__main__._jobs", jobs)
    with pytest.raises(KeyboardInterrupt):
        main(["--out", str(tmp_path)])
    assert "is missing" in (tmp_path / "results.json").read_text("utf-8")


def test_a_package_that_cannot_be_imported_has_no_share():
    assert "ModuleNotFoundError" in str(imports.measure("import no_such_package", "import httpx", rounds=1))
    share = imports.measure("import json", "import sys", rounds=1)
    assert not isinstance(share, str)
    assert share.value > 0


def test_whole_calls_are_left_out_with_a_plain_message(tmp_path):
    samples, why = whole.measure(tmp_path / "python", rounds=1)
    assert not samples.rounds
    assert "make bench-whole" in str(why)


def test_two_revisions_take_turns_in_processes_of_their_own():
    group = cost.Group("mock", "httpx", "blocking", 2, 2, {cost.BARE, "Retry"})
    samples, missing = compare.compare(SOURCE, SOURCE, group, processes=1)
    changes = compare.changes(samples, group.name, 1.05)
    assert [change.name for change in changes] == ["mock.httpx.blocking.bare", "mock.httpx.blocking.Retry"]
    assert all(len(values) == 2 for values in samples.rounds.values())
    assert not {cost.BARE, "Retry"} & set(missing)


def test_what_a_revision_does_not_have_is_not_compared(tmp_path):
    package = tmp_path / "dspex_pipe"
    package.mkdir()
    (package / "__init__.py").write_text("Handler = Request = Response = object\n")
    group = cost.Group("mock", "httpx", "blocking", 1, 1, {cost.BARE, "Retry"})
    samples, missing = compare.compare(tmp_path, SOURCE, group, processes=1)
    assert {name.rpartition(": ")[2] for name in samples.rounds} == {cost.BARE}
    assert "AttributeError" in missing["Retry"]


def test_nothing_by_that_name(capsys, tmp_path):
    assert main(["--only", "nothing", "--out", str(tmp_path)]) == 2
    assert "nothing is called nothing" in capsys.readouterr().out
