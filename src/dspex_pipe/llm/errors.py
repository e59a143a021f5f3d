"""What a call of a named client raises: one flat family, typed by what the answer means.

Every error tells the status, the provider's code, its request id, and the trace of what the layers did. The
exception or refusal behind it is its ``__cause__``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from ..events import Trace
from ..outcome import Meaning

_NO_TRACE = Trace()

__all__ = [
    "AuthError",
    "BadRequest",
    "BreakerOpen",
    "ClientDown",
    "ContextTooLong",
    "Crashed",
    "DeadlineExceeded",
    "LLMError",
    "ProviderDown",
    "QuotaSpent",
    "RateLimited",
    "error_for",
]


class LLMError(Exception):
    """A call that got no answer.

    Args:
        message: One sentence, safe to log.
        client: The client's name.
        status: The HTTP status, if there was one.
        code: The provider's error code, if it sent one.
        request_id: The provider's name for the request, if it told one.
        retry_after: Seconds after which a new call has a chance, if anybody knows.
        trace: What the layers did.
    """

    def __init__(
        self,
        message: str,
        *,
        client: str,
        status: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
        trace: Trace = _NO_TRACE,
    ) -> None:
        super().__init__(message)
        self.client = client
        self.status = status
        self.code = code
        self.request_id = request_id
        self.retry_after = retry_after
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        names = ("client", "status", "code", "request_id", "retry_after", "trace")
        return partial(type(self), self.args[0], **{name: getattr(self, name) for name in names}), ()

    def __str__(self) -> str:
        facts = {"status": self.status, "code": self.code, "request id": self.request_id}
        told = ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)
        return f"{self.client}: {self.args[0]}{f' ({told})' if told else ''}"


class AuthError(LLMError):
    """The key is missing, wrong, or may not do this."""


class RateLimited(LLMError):
    """The provider, or a rate of our own, wants fewer calls."""


class QuotaSpent(LLMError):
    """The account has no credit left, or reached a limit on spending."""


class BadRequest(LLMError):
    """The provider did not accept the request as it was."""


class ContextTooLong(BadRequest):
    """The prompt is longer than the model takes."""


class ProviderDown(LLMError):
    """The provider failed, is overloaded, or cannot be reached."""


class BreakerOpen(ProviderDown):
    """The provider has been failing, and is not asked for now."""


class DeadlineExceeded(LLMError, TimeoutError):
    """The time for the call was over."""


class Crashed(LLMError):
    """Something went wrong that nobody expected: in a layer, a store, or the provider's JSON."""


class ClientDown(LLMError):
    """The client was stopped, or crashed too often and rests until ``retry_after`` seconds from now."""


_BY_MEANING: Mapping[Meaning, type[LLMError]] = {
    Meaning.AUTH: AuthError,
    Meaning.THROTTLED: RateLimited,
    Meaning.QUOTA_SPENT: QuotaSpent,
    Meaning.BAD_REQUEST: BadRequest,
    Meaning.CONTEXT_TOO_LONG: ContextTooLong,
}


def error_for(meaning: Meaning) -> type[LLMError]:
    """The error that an answer with this meaning becomes: for all else, also a redirect, `ProviderDown`."""
    return _BY_MEANING.get(meaning, ProviderDown)
