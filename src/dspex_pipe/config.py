"""Checks for layer configuration: a bad value says where, what it got, and what is allowed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import attrs

__all__ = ["brief", "called", "check", "flag", "fraction", "kind", "one_of", "optional", "seconds", "whole"]

Check = Callable[[Any, Any, Any], None]


def called(instance: Any) -> str:
    """What a message calls the thing that a setting belongs to."""
    return getattr(instance, "_called", type(instance).__name__)


def kind(value: Any) -> str:
    """What is told of a value that may be a secret."""
    return type(value).__name__


def check(allowed: str, test: Callable[[Any], bool], shown: Callable[[Any], str] = repr) -> Check:
    """An attrs validator that says what is allowed, and what was given, as ``shown`` tells it.

    Raises:
        ValueError: From the validator, when the test fails.
    """

    def validate(instance: Any, attribute: Any, value: Any) -> None:
        if not test(value):
            raise ValueError(f"{called(instance)}({attribute.name}=…) takes {allowed}, got {shown(value)}")

    validate.allowed, validate.test, validate.shown = allowed, test, shown  # type: ignore[attr-defined] # for optional()
    return validate


def optional(inner: Check) -> Check:
    """The same check, or ``None``."""
    allowed, test, shown = inner.allowed, inner.test, inner.shown  # type: ignore[attr-defined]
    return check(f"{allowed}, or None", lambda value: value is None or test(value), shown)


_LARGEST = sys.float_info.max
_SMALLEST = 1e-9  # less than any clock tells apart


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST


def seconds(*, zero: bool = False) -> Check:
    """A finite number of seconds, above zero, or from zero on."""
    allowed = "a number of seconds, 0 or more" if zero else "a positive number of seconds"
    return check(allowed, lambda v: _number(v) and v >= (0 if zero else _SMALLEST))


def fraction() -> Check:
    """A number from 0 to 1."""
    return check("a number from 0 to 1", lambda v: _number(v) and 0 <= v <= 1)


def one_of(*words: str) -> Check:
    """One of these words."""
    allowed = " or ".join(f'"{word}"' for word in words) if len(words) == 2 else f"one of {', '.join(words)}"
    # by ==, since not all that is given can be hashed
    return check(allowed, lambda v: v in words)


def flag() -> Check:
    """True or False, and no number."""
    return check("True or False", lambda v: isinstance(v, bool))


def whole(least: int) -> Check:
    """A whole number from ``least`` on."""
    return check(
        f"a whole number, {least} or more",
        lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= least,
    )


def brief(self: Any) -> str:
    """A ``__repr__`` that shows only what differs from the defaults."""
    shown = [
        f"{a.name}={getattr(self, a.name)!r}"
        for a in attrs.fields(type(self))
        if a.repr and getattr(self, a.name) != _default(a)
    ]
    return f"{type(self).__name__}({', '.join(shown)})"


def _default(attribute: Any) -> Any:
    default = attribute.default
    return default.factory() if isinstance(default, attrs.Factory) else default  # type: ignore[arg-type] # a class
