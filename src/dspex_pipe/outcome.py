"""What a response or an exception means. Pure: headers, bytes and times in, an answer out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum

from .errors import DeadlineExceeded, Refused
from .family import Request, Response, family_of

__all__ = [
    "PERMANENT_CODES",
    "Verdict",
    "as_library_error",
    "broken_body",
    "is_any_timeout",
    "is_read_timeout",
    "is_transient_error",
    "read_timeout",
    "status_error",
    "surely_unsent",
    "told_to_retry",
    "told_wait",
    "transport_error",
    "verdict",
    "wait_headers",
]

PERMANENT_CODES = frozenset(
    {
        # OpenAI: the account has no credit left; comes as a 429
        "insufficient_quota",
        "billing_hard_limit_reached",
        "billing_not_active",
        # Anthropic: a spend limit that no waiting lifts; comes as a 429, or a 402
        "enforced_spend_limit_reached",
        "contract_spend_limit_reached",
        "billing_error",
    }
)
"""Error codes that say a retry is pointless, whatever the status says."""


class Verdict(Enum):
    """What an outcome says about the health of the server."""

    SUCCESS = "success"
    FAILURE = "failure"
    NEUTRAL = "neutral"
    """It says nothing: we refused, the caller left, or the server asked us to slow down."""


_UNSENT = ("ConnectError", "ConnectTimeout", "PoolTimeout")
_OUR_FAULT = ("UnsupportedProtocol", "LocalProtocolError")


def is_transient_error(exc: Exception, request: Request) -> bool:
    """Whether an exception is a transport error of the request's family that may pass by itself.

    A refusal is none, also where a pipeline below has made it one of that family.
    """
    module = family_of(request).module
    ours = tuple(getattr(module, name) for name in _OUR_FAULT)
    return isinstance(exc, module.TransportError) and not isinstance(exc, (*ours, Refused))


def surely_unsent(exc: Exception, request: Request) -> bool:
    """Whether no byte of the request can have reached the server."""
    module = family_of(request).module
    return isinstance(exc, tuple(getattr(module, name) for name in _UNSENT))


def is_read_timeout(exc: Exception, request: Request) -> bool:
    """Whether we stopped waiting for the answer to a request that has arrived."""
    return isinstance(exc, family_of(request).module.ReadTimeout)


def is_any_timeout(exc: Exception, request: Request) -> bool:
    """Whether we stopped waiting, for whatever it was."""
    return isinstance(exc, family_of(request).TimeoutException)


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
            sent = _date(headers.get("date", ""))
            wait = until - (wall if sent is None else sent)
    return wait if wait is not None and wait > 0 else None


def wait_headers(seconds: float) -> dict[str, str]:
    """How a server says what `told_wait` reads: whole seconds, and milliseconds, which SDKs look at first."""
    return {"retry-after": str(math.ceil(seconds)), "retry-after-ms": str(math.ceil(seconds * 1000))}


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
        return (moment - datetime.fromtimestamp(0, UTC)).total_seconds()
    except (ValueError, OverflowError):
        return None


def status_error(response: Response, request: Request) -> Exception:
    """A failed status as the exception that httpx users know; its text names no URL, which may be secret."""
    error: Exception = family_of(request).module.HTTPStatusError(
        f"the server answered {response.status_code}", request=request, response=response
    )
    return error


def verdict(outcome: Response | BaseException, request: Request) -> Verdict:
    """What an outcome says about the server's health.

    Failures are transport errors, timeouts and bodies that break off, and statuses from 500 on. A 429 says
    nothing, nor do cancellations, refusals of ours, and errors of our own making. Any other answer is a sign
    of life, a 404 too.
    """
    if isinstance(outcome, Refused):
        # a deadline that passed while the server kept us waiting is a timeout by another name
        late = isinstance(outcome, DeadlineExceeded) and outcome.sent
        return Verdict.FAILURE if late else Verdict.NEUTRAL
    if isinstance(outcome, Exception):
        return Verdict.FAILURE if is_transient_error(outcome, request) else Verdict.NEUTRAL
    if isinstance(outcome, BaseException):
        return Verdict.NEUTRAL
    if outcome.status_code == 429:
        return Verdict.NEUTRAL
    return Verdict.FAILURE if outcome.status_code >= 500 else Verdict.SUCCESS


def transport_error(name: str, message: str, request: Request) -> Exception:
    """A transport error of the request's library, by its name there: ``"ConnectError"`` for one."""
    error: Exception = getattr(family_of(request).module, name)(message, request=request)
    return error


def read_timeout(message: str, request: Request) -> Exception:
    """A timeout of ours, as the request's library would raise it while waiting for an answer."""
    return transport_error("ReadTimeout", message, request)


def broken_body(message: str, request: Request) -> Exception:
    """A body that broke off, as the request's library would raise it."""
    return transport_error("RemoteProtocolError", message, request)


def as_library_error(refused: Refused, request: Request) -> Refused:
    """A refusal raised outside the stack, while a body is read: an error of the request's library, too."""
    return family_of(request).refusal(refused, request)
