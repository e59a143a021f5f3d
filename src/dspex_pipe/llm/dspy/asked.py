"""What a request of dspy's engine is asked for: with which options, and as which of several samples.

dspy strips ``rollout_id`` before its engine sees the request, and asks for ``n`` answers with ``n`` requests
that are equal: to a cache, all of them would be one question.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

from ...options import ambient
from ..call import is_cached

__all__ = ["Asked", "asked", "asking"]


class Asked:
    """One call of an LM.

    Args:
        rollout: Its ``rollout_id``.
        options: The options of the LM.
    """

    def __init__(self, rollout: Any = None, options: Mapping[str, Any] | None = None) -> None:
        self._rollout = rollout
        self._options = options or {}
        self._answers = 0
        self.response: Any = None
        """What has come last, for `explain`."""

    def options(self) -> dict[str, Any]:
        """The options of the next request: the LM's, and those of the blocks around the call."""
        self.response = None
        given = {"sample": 0, **self._options, **ambient()}
        return {**given, "sample": self._sample(given["sample"])}

    def _sample(self, given: Any) -> Any:
        """Which sample is the next: the one that was asked for, unless there are several of it."""
        if self._rollout is None and not self._answers:
            return given
        name = f"{given!r} {self._rollout!r} {self._answers}"
        return 1 + int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])

    def answered(self) -> bool:
        """Go on to the next sample, and say whether this one cost nothing; one that failed is asked again."""
        self._answers += 1
        return self.response is not None and is_cached(self.response)


_asked: ContextVar[Asked | None] = ContextVar("dspex_pipe.llm.dspy.asked", default=None)


@contextmanager
def asking(rollout: Any, options: Mapping[str, Any]) -> Iterator[None]:
    """Be one call of an LM."""
    token = _asked.set(Asked(rollout, options))
    try:
        yield
    finally:
        with suppress(ValueError):  # closed by the garbage collector, in a context that is not ours
            _asked.reset(token)


def asked() -> Asked:
    """The call of an LM that runs here."""
    return _asked.get() or Asked()
