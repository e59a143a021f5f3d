"""When a spent rate limit is filled again, by the headers that providers tell it with.

- OpenAI, and many that speak its format: ``x-ratelimit-remaining-requests`` and
  ``x-ratelimit-reset-requests``, the same for ``tokens``; times are Go durations (``120ms``, ``6m0s``) or
  plain seconds
- Anthropic: ``anthropic-ratelimit-requests-remaining`` and ``…-reset``, the same for ``tokens``,
  ``input-tokens`` and ``output-tokens``; times are RFC 3339

Sources: OpenAI and Anthropic API references, "rate limits", read in November 2026.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime

__all__ = ["told_reset"]

_OPENAI = tuple(
    (f"x-ratelimit-remaining-{what}", f"x-ratelimit-reset-{what}") for what in ("requests", "tokens")
)
_ANTHROPIC = tuple(
    (f"anthropic-ratelimit-{what}-remaining", f"anthropic-ratelimit-{what}-reset")
    for what in ("requests", "tokens", "input-tokens", "output-tokens")
)
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_PART = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)(h|ms|us|µs|ns|m|s)", re.ASCII)
_DURATION = re.compile(rf"(?:{_PART.pattern})+", re.ASCII)
_PLAIN = re.compile(r"\d{1,15}(?:\.\d{1,15})?", re.ASCII)


def told_reset(headers: Mapping[str, str], sent: float) -> float | None:
    """Seconds until every limit that is spent has been filled again; ``None`` when none says that it is.

    A limit counts when it says that nothing remains: the others, which fill up all the time, too, have
    nothing to do with a refusal.

    Args:
        headers: The response's.
        sent: When it was sent, in seconds since the epoch.
    """
    waits = [_duration(headers.get(reset, "")) for left, reset in _OPENAI if _is_spent(headers.get(left))]
    for left, reset in _ANTHROPIC:
        moment = _moment(headers.get(reset, "")) if _is_spent(headers.get(left)) else None
        waits.append(None if moment is None else moment - sent)
    return max((wait for wait in waits if wait is not None and wait > 0), default=None)


def _is_spent(remaining: str | None) -> bool:
    return remaining is not None and remaining.strip() == "0"


def _duration(text: str) -> float | None:
    """A Go duration, or plain seconds; Azure's -1 is neither."""
    text = text.strip()
    if _PLAIN.fullmatch(text):
        return float(text)
    if _DURATION.fullmatch(text):
        return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    return None


def _moment(text: str) -> float | None:
    try:
        moment = datetime.fromisoformat(text.strip())
        return None if moment.tzinfo is None else (moment - datetime.fromtimestamp(0, UTC)).total_seconds()
    except (ValueError, OverflowError):
        return None
