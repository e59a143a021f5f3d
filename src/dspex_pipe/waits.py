"""What a server says about when to come back, by its headers. Pure: headers and a clock in, seconds out."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

from .wire import Pace, told_pace, told_reset

__all__ = ["held_for", "refilled_in", "told_to_retry", "told_wait", "wait_headers"]


def told_to_retry(headers: Mapping[str, str]) -> bool | None:
    """What ``x-should-retry`` says (OpenAI and Anthropic send it); ``None`` when it says nothing."""
    return {"true": True, "false": False}.get(headers.get("x-should-retry", "").strip().lower())


def told_wait(headers: Mapping[str, str], wall: float) -> float | None:
    """Seconds that the server asks us to wait, or ``None`` when it names no usable time.

    ``retry-after-ms`` first (milliseconds; OpenAI, Azure), then ``retry-after`` (RFC 9110 §10.2.3): seconds,
    here also with a fraction, or an HTTP date, which is read against the response's own ``Date`` so
    that a wrong clock on either side does not matter. What cannot be read, and what lies in the
    past, counts as nothing said. The answer may be huge: the caller bounds it.

    Args:
        headers: The response's headers.
        wall: Seconds since the epoch, for a response without a ``Date``.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    text = headers.get("retry-after")
    wait = _number(text) if milliseconds is None else milliseconds / 1000
    if wait is None and text is not None:
        until = _date(text)
        if until is not None:
            wait = until - _sent(headers, wall)
    return wait if wait is not None and wait > 0 else None


def refilled_in(headers: Mapping[str, str], wall: float) -> float | None:
    """Seconds until every rate limit that is spent is *full* again; ``None`` when none says that it is spent.

    A throttled call need not wait that long, since the limits fill up all the time: it is the longest
    that makes sense. The arguments are those of `told_wait`.
    """
    return told_reset(headers, _sent(headers, wall))


def held_for(
    headers: Mapping[str, str], wall: float, codes: Collection[str]
) -> tuple[float | None, Pace | None]:
    """Seconds that a throttled call must wait, and how far apart calls must go after that, as far as told.

    Args:
        headers: The response's headers.
        wall: Seconds since the epoch, for a response without a ``Date``.
        codes: The codes of its error, which may name the limit.
    """
    wait = told_wait(headers, wall)
    pace = told_pace(headers, _sent(headers, wall), wait, codes)
    if wait is None and pace is not None:
        wait = pace.gap  # by then there is room for one call
    return wait, pace


def wait_headers(seconds: float) -> dict[str, str]:
    """How a server says what `told_wait` reads: whole seconds, and milliseconds, which SDKs look at first."""
    return {"retry-after": str(math.ceil(seconds)), "retry-after-ms": str(math.ceil(seconds * 1000))}


def _sent(headers: Mapping[str, str], wall: float) -> float:
    sent = _date(headers.get("date", ""))
    return wall if sent is None else sent


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    # "inf" and "1e999" are a very long time, not garbage: the caller gives up at once
    return None if math.isnan(number) or number <= 0 else number


def _date(text: str) -> float | None:
    try:
        moment = parsedate_to_datetime(text)
        if moment.tzinfo is None:  # "-0000", or no zone at all: HTTP dates are UTC (RFC 9110 §5.6.7)
            moment = moment.replace(tzinfo=UTC)
        return moment.timestamp()
    except (ValueError, OverflowError):
        return None
