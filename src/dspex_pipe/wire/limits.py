"""What a provider tells of its rate limits.

- OpenAI, and many that speak its format: ``x-ratelimit-limit-requests``, ``x-ratelimit-remaining-requests``
  and ``x-ratelimit-reset-requests``, the same for ``tokens``; times are Go durations (``120ms``, ``6m0s``) or
  plain seconds; gateways also send seconds, or milliseconds, since the epoch
- Anthropic: ``anthropic-ratelimit-requests-limit``, ``…-remaining`` and ``…-reset``, the same for ``tokens``,
  ``input-tokens`` and ``output-tokens``; times are RFC 3339

Each limit is a bucket that fills up all the time; the reset is when it is full. A 429 of OpenAI has the limit
that refused the call as the ``type`` of its error: ``requests`` or ``tokens``.

Sources: OpenAI and Anthropic API references, "rate limits", read in November 2026.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from typing import NamedTuple

__all__ = ["Pace", "told_pace", "told_reset"]

_OPENAI = ("requests", "tokens")
_ANTHROPIC = ("requests", "tokens", "input-tokens", "output-tokens")
_WORDS = ("limit", "remaining", "reset")
_PART_OF_RESET = 0.01
_SHORT = 600.0  # seconds: more than a minute's limit takes to fill up, and less than an hour's
_EPOCH = 1e9  # seconds: no limit takes 30 years to fill up, so it is a time, after 2001
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_PART = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)(h|ms|us|µs|ns|m|s)", re.ASCII)
_DURATION = re.compile(rf"(?:{_PART.pattern})+", re.ASCII)
_PLAIN = re.compile(r"\d{1,15}(?:\.\d{1,15})?", re.ASCII)


class _Limit(NamedTuple):
    """One limit: what it counts, how much of it there is, how much is left, and seconds until it is full."""

    unit: str
    size: float
    left: float
    reset: float

    @property
    def period(self) -> float:
        """Seconds in which all of it fills up, if some is missing."""
        return self.reset * self.size / (self.size - self.left)


class Pace(NamedTuple):
    """How far apart calls must go.

    Args:
        gap: Seconds from one to the next.
        steady: Whether this is known, and good for any number of calls; else it is a guess by one of them.
    """

    gap: float
    steady: bool


def told_reset(headers: Mapping[str, str], sent: float) -> float | None:
    """Seconds until every limit that is spent has been filled again; ``None`` when none says that it is.

    A limit counts when it says that nothing remains: the others, which fill up all the time, too, have
    nothing to do with a refusal.

    Args:
        headers: The response's.
        sent: When it was sent, in seconds since the epoch.
    """
    return max((limit.reset for limit in _limits(headers, sent) if not limit.left), default=None)


def told_pace(
    headers: Mapping[str, str], sent: float, wait: float | None, named: Collection[str]
) -> Pace | None:
    """How far apart calls must go for the limit that refused this one; ``None`` when none says so.

    That is the limit which the refusal names, or else any that is spent. What is missing in it, and the time
    until it is full, tell how fast it fills. Of tokens, the call lacked those that come in until it may be
    sent again; but that may have been one large call among many small ones, so the gaps, each 1 % shorter,
    add up to no more than the time until the limit is full.

    A name may mean a limit that no header tells of: ``requests`` are those of a minute, too, where the
    headers are about those of a day, as OpenAI's and Groq's are for some accounts. So a limit of hours or a
    day which is named, but has some left, has refused nothing.

    Args:
        headers: The refusal's.
        sent: When it was sent, in seconds since the epoch.
        wait: Seconds after which the call may be sent again, if that is told.
        named: The codes of its error.
    """
    told = [limit for limit in _limits(headers, sent) if limit.size > limit.left]
    told = [limit for limit in told if not limit.left or limit.period < _SHORT]
    paces = []
    for limit in [each for each in told if each.unit in named] or [each for each in told if not each.left]:
        if limit.unit == "requests":
            paces.append(Pace(limit.period / limit.size, steady=True))
        elif wait is not None:
            paces.append(Pace(min(wait, limit.reset * _PART_OF_RESET), steady=False))
    return max(paces, default=None)


def _limits(headers: Mapping[str, str], sent: float) -> Iterator[_Limit]:
    for unit in _OPENAI:
        size, left, reset = (headers.get(f"x-ratelimit-{what}-{unit}", "") for what in _WORDS)
        yield from _limit(unit, size, left, _duration(reset, sent))
    for unit in _ANTHROPIC:
        size, left, reset = (headers.get(f"anthropic-ratelimit-{unit}-{what}", "") for what in _WORDS)
        moment = _moment(reset)
        yield from _limit(unit, size, left, None if moment is None else moment - sent)


def _limit(unit: str, size: str, left: str, reset: float | None) -> Iterator[_Limit]:
    remaining = _number(left)
    if remaining is not None and reset is not None and reset > 0:
        yield _Limit(unit, _number(size) or 0.0, remaining, reset)


def _number(text: str) -> float | None:
    text = text.strip()
    return float(text) if _PLAIN.fullmatch(text) else None


def _duration(text: str, sent: float) -> float | None:
    """Seconds from a Go duration, plain seconds or a time since the epoch; Azure's -1 is none of them."""
    text = text.strip()
    if _DURATION.fullmatch(text):
        return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    number = _number(text)
    if number is None or number < _EPOCH:
        return number
    return (number / 1000 if number >= _EPOCH * 1000 else number) - sent


def _moment(text: str) -> float | None:
    try:
        moment = datetime.fromisoformat(text.strip())
        return None if moment.tzinfo is None else moment.timestamp()
    except (ValueError, OverflowError):
        return None
