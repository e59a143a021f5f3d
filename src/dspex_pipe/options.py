"""Per-call options: one small, checked mapping, given in one of three equal ways.

- ``client.post(url, extensions=options(deadline=20))``
- ``client.post(url, headers={"x-dspex-deadline": "20"})``: passes through any SDK's ``extra_headers``
  and any thread pool; the headers never leave this process
- ``with options(deadline=20): ...``: for everything called inside, in this thread or task

Where they disagree, the one nearest to the call wins: headers, then extensions, then ``with``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Self

from .events import EXTENSION

__all__ = ["CORE", "HEADER", "Converter", "ambient", "check", "names", "options", "seconds", "switch"]

HEADER = b"x-dspex-"

Converter = Callable[[Any], Any]
"""Takes what the user gave, a Python value or a header's text; returns the value or raises ValueError."""

# The enclosing blocks, innermost last, each already merged with those around it. A stack of plain
# values instead of tokens: one options object may be entered by many threads and tasks at once.
_blocks: ContextVar[tuple[Mapping[str, Any], ...]] = ContextVar("dspex_pipe.options", default=())


class options(Mapping[str, Any]):  # noqa: N801 - reads as a function: extensions=options(...)
    """Options for one call, or, as a context manager, for all calls made inside.

    Args:
        deadline: Seconds that the whole call may take, waits and retries included.
        skip: Names of layers that this call passes by, as ``repr(pipeline)`` prints them.
        retry: ``False`` sends once. ``True`` retries a request that `Retry` would not dare to repeat.
        others: Options of your own layers, declared in their ``options``.

    It is the mapping ``{"dspex": {...}}``, so it can be merged: ``{**options(retry=True), "trace": f}``.
    A name or value that the pipeline does not know is an error when the call is made.
    """

    __slots__ = ("_values",)

    def __init__(
        self,
        *,
        deadline: float | None = None,
        skip: Iterable[str] | None = None,
        retry: bool | None = None,
        **others: Any,
    ) -> None:
        # an iterator would be used up by the first of several calls
        skip = tuple(skip) if isinstance(skip, Iterator) else skip
        given = {"deadline": deadline, "skip": skip, "retry": retry, **others}
        self._values = {name: value for name, value in given.items() if value is not None}

    def __getitem__(self, key: str) -> Mapping[str, Any]:
        if key != EXTENSION:
            raise KeyError(key)
        return self._values

    def __iter__(self) -> Iterator[str]:
        return iter((EXTENSION,))

    def __len__(self) -> int:
        return 1

    def __repr__(self) -> str:
        return f"options({', '.join(f'{k}={v!r}' for k, v in self._values.items())})"

    def __enter__(self) -> Self:
        _blocks.set((*_blocks.get(), {**ambient(), **self._values}))
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _blocks.set(_blocks.get()[:-1])


def ambient() -> Mapping[str, Any]:
    """What the enclosing ``with options(...)`` blocks say."""
    blocks = _blocks.get()
    return blocks[-1] if blocks else {}


def check(given: Mapping[str, Any], known: Mapping[str, Converter]) -> dict[str, Any]:
    """Convert every value.

    Raises:
        TypeError: A name that neither the core nor a layer of this pipeline declares.
        ValueError: A value that the option does not take.
    """
    checked = {}
    for name, value in given.items():
        convert = known.get(name)
        if convert is None:
            raise TypeError(f"unknown option {name!r}: this pipeline takes {', '.join(sorted(known))}")
        try:
            checked[name] = convert(value)
        except (TypeError, ValueError, OverflowError) as exc:
            raise ValueError(f"option {name}={value!r}: {exc}") from None
    return checked


def seconds(value: Any) -> float:
    """A positive, finite number of seconds."""
    number = math.nan if isinstance(value, bool) else float(value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError("takes a positive, finite number of seconds")
    return number


def switch(value: Any) -> bool:
    """``True`` or ``False``; in a header, ``on`` or ``off``."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        word = value.strip().lower()
        if word in {"on", "true", "1"}:
            return True
        if word in {"off", "false", "0"}:
            return False
    raise ValueError("takes True or False (in a header: on or off)")


def names(value: Any) -> frozenset[str]:
    """A list of names; in a header, separated by commas."""
    parts = value.split(",") if isinstance(value, str) else list(value)
    if not all(isinstance(part, str) for part in parts):
        raise ValueError("takes names of layers")
    return frozenset(part.strip() for part in parts if part.strip())


CORE: Mapping[str, Converter] = {"deadline": seconds, "skip": names}
"""The options that every pipeline takes."""
