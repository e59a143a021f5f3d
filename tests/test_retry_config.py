"""Arguments of Retry and Budget: a bad one says where, what it got, and what is allowed."""

from __future__ import annotations

import copy
import math

import httpx
import pytest

from dspex_pipe import Budget, Pipeline, Retry

WHOLE = "a whole number, 1 or more, or None"
POSITIVE = "a positive number of seconds"
SECONDS = "a number of seconds, 0 or more"
FRACTION = "a number from 0 to 1"
CLASSES = "exception classes, or None"
NO_TIMES = [-1, -0.001, math.nan, math.inf, -math.inf, "1", True, [1], 10**400]

BAD = [
    *[(Retry, "attempts", bad, WHOLE) for bad in (0, -1, 1.5, math.nan, "3", True, [3])],
    *[(Retry, "timeout", bad, f"{POSITIVE}, or None") for bad in (0, 0.0, *NO_TIMES)],
    *[
        (Retry, name, bad, SECONDS)
        for name in ("wait_initial", "wait_max", "wait_jitter", "retry_after_cap")
        for bad in (None, *NO_TIMES)
    ],
    *[
        (Retry, "wait_exp_base", bad, "a number, 1 or more")
        for bad in (0, 0.99, -2, math.nan, math.inf, "2", True, None, [])
    ],
    *[
        (Retry, "statuses", bad, "a set of HTTP statuses")
        for bad in (
            503,
            "503",
            None,
            {503: 1},
            [[503]],
            *map(frozenset, (["503"], [99], [600], [503.5], [True])),
        )
    ],
    *[
        (Retry, "on", bad, CLASSES)
        for bad in (
            "ReadError",
            1,
            BaseException,
            KeyboardInterrupt,
            ValueError("x"),
            (ValueError, 1),
            [OSError],
        )
    ],
    *[(Retry, "post", bad, '"auto" or "always"') for bad in ("never", None, True, "", [], {})],
    *[(Retry, "budget", bad, "a Budget, or None") for bad in (0.2, Budget, True, "20%")],
    *[(Budget, "ratio", bad, FRACTION) for bad in (1.01, None, *NO_TIMES)],
    *[(Budget, "window", bad, POSITIVE) for bad in (0, None, *NO_TIMES)],
    *[(Budget, "floor", bad, "a whole number, 0 or more") for bad in (-1, 1.0, math.inf, "1", True, None)],
]


def label(value):
    return value.__name__ if isinstance(value, type) else repr(value)[:20]


@pytest.mark.parametrize(("kind", "name", "bad", "allowed"), BAD, ids=label)
def test_a_bad_argument_names_class_argument_what_is_allowed_and_what_was_given(kind, name, bad, allowed):
    with pytest.raises(ValueError, match="takes") as caught:
        kind(**{name: bad})
    assert str(caught.value) == f"{kind.__name__}({name}=…) takes {allowed}, got {bad!r}"


@pytest.mark.parametrize("kind", [Retry, Budget])
def test_arguments_are_given_by_name_and_a_wrong_name_is_an_error(kind):
    with pytest.raises(TypeError):
        kind(3)
    with pytest.raises(TypeError, match="tries"):
        kind(tries=3)


@pytest.mark.parametrize(
    "layer",
    [
        Retry(attempts=None, timeout=None, wait_initial=0, wait_max=0, wait_jitter=0, wait_exp_base=1),
        Retry(statuses=[], on=(), retry_after_cap=0, budget=None),
        Retry(statuses=range(500, 600), on=ValueError),
        Retry(budget=Budget(ratio=0, floor=0)),
        Retry(budget=Budget(ratio=1, window=0.001)),
    ],
    ids=repr,
)
def test_the_edges_of_what_is_allowed_are_allowed(layer):
    Pipeline([layer])


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (Retry(), "Retry()"),
        (Retry(attempts=3), "Retry()"),
        (Retry(attempts=5, post="always"), "Retry(attempts=5, post='always')"),
        (Retry(statuses={503}, budget=None), "Retry(statuses=frozenset({503}), budget=None)"),
        (Retry(budget=Budget(floor=3)), "Retry(budget=Budget(floor=3))"),
        (Budget(), "Budget()"),
        (Budget(ratio=0.5, window=60), "Budget(ratio=0.5, window=60)"),
    ],
)
def test_a_repr_shows_only_what_differs_from_the_defaults(layer, text):
    assert repr(layer) == text


@pytest.mark.parametrize(
    "make",
    [
        Retry,
        Budget,
        lambda: Retry(statuses=[503, 502], on=httpx.ReadError),
        lambda: Retry(budget=Budget(floor=1)),
    ],
)
def test_equal_configurations_are_equal_and_hash_alike(make):
    assert make() == make() == copy.deepcopy(make())
    assert len({make(), make()}) == 1
    assert make() != Retry(attempts=7)


def test_statuses_are_a_set_whatever_they_come_as():
    assert Retry(statuses=[503, 502, 503]) == Retry(statuses=(502, 503)) == Retry(statuses={502, 503})


@pytest.mark.parametrize(("layer", "name"), [(Retry(), "attempts"), (Budget(), "floor")])
def test_a_configuration_cannot_be_changed(layer, name):
    with pytest.raises(AttributeError):
        setattr(layer, name, 5)


def test_one_configuration_makes_fresh_state_each_time():
    policy = Retry()
    assert policy.build() is not policy.build()
