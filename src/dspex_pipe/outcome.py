"""What a response or an exception means: one table for all layers, and the errors made of it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from attrs import evolve, frozen

from .body import decoded
from .errors import DeadlineExceeded, Refused
from .events import Record, belongs_to
from .family import Request, Response, family_of
from .wire import error_codes

__all__ = [
    "MEANINGS",
    "STREAM_ERROR",
    "Answer",
    "Meaning",
    "Verdict",
    "as_library_error",
    "broken_body",
    "is_any_timeout",
    "is_read_timeout",
    "is_transient_error",
    "read_answer",
    "read_codes",
    "read_timeout",
    "status_error",
    "surely_unsent",
    "transport_error",
    "verdict",
]


class Meaning(Enum):
    """What a server says with an answer, the most telling first."""

    QUOTA_SPENT = "quota spent"
    """The account has no credit left, or reached a limit on spending: waiting does not help."""
    CONTEXT_TOO_LONG = "context too long"
    """The prompt is longer than the model takes."""
    AUTH = "auth"
    """The credential is missing, wrong, or not allowed to do this."""
    THROTTLED = "throttled"
    """We are too fast; the server is well."""
    OVERLOADED = "overloaded"
    """The server is too busy for us and for everybody."""
    FAILED = "failed"
    """The server went wrong."""
    BAD_REQUEST = "bad request"
    """The request was not accepted as it was: what any other status from 400 to 499 says."""
    OK = "ok"


# What OpenAI's responses fail with, apart from its own failures; no status tells them.
_FAULTS_OF_REQUESTS = (
    "invalid_prompt",
    "data_residency_mismatch",
    "bio_policy",
    "misalignment_policy_violation",
    "invalid_image",
    "invalid_image_format",
    "invalid_base64_image",
    "invalid_image_url",
    "image_too_large",
    "image_too_small",
    "image_parse_error",
    "image_content_policy_violation",
    "invalid_image_mode",
    "image_file_too_large",
    "unsupported_image_media_type",
    "empty_image_file",
    "failed_to_download_image",
    "image_file_not_found",
)

MEANINGS: Mapping[str | int, Meaning] = {
    # OpenAI, codes and types; all of the first comes as a 429
    "insufficient_quota": Meaning.QUOTA_SPENT,
    "credit_balance_exhausted": Meaning.QUOTA_SPENT,
    "organization_spend_limit_exceeded": Meaning.QUOTA_SPENT,
    "organization_usage_limit_exceeded": Meaning.QUOTA_SPENT,
    "project_spend_limit_exceeded": Meaning.QUOTA_SPENT,
    "billing_hard_limit_reached": Meaning.QUOTA_SPENT,
    "billing_not_active": Meaning.QUOTA_SPENT,
    "context_length_exceeded": Meaning.CONTEXT_TOO_LONG,
    "invalid_api_key": Meaning.AUTH,
    "rate_limit_exceeded": Meaning.THROTTLED,
    "slow_down": Meaning.THROTTLED,
    "server_is_overloaded": Meaning.OVERLOADED,
    **dict.fromkeys(_FAULTS_OF_REQUESTS, Meaning.BAD_REQUEST),
    # Anthropic, types and error codes; a spent limit comes as a 429 of the type rate_limit_error
    "enforced_spend_limit_reached": Meaning.QUOTA_SPENT,
    "contract_spend_limit_reached": Meaning.QUOTA_SPENT,
    "billing_error": Meaning.QUOTA_SPENT,
    "authentication_error": Meaning.AUTH,
    "permission_error": Meaning.AUTH,
    "rate_limit_error": Meaning.THROTTLED,
    "ramp_limit_exceeded": Meaning.THROTTLED,
    "overloaded_error": Meaning.OVERLOADED,
    # statuses, where no code says more; any other from 500 on is FAILED, from 400 on BAD_REQUEST
    401: Meaning.AUTH,
    402: Meaning.QUOTA_SPENT,
    403: Meaning.AUTH,
    429: Meaning.THROTTLED,
    503: Meaning.OVERLOADED,
    529: Meaning.OVERLOADED,
}
"""What structured error codes and statuses mean; ``Pipeline(…, meanings={…})`` adds to it.

Sources: the error references of OpenAI and Anthropic, read in November 2026.
"""

# An error event comes behind a status of 200: its type stands for the status that it would have been.
_STATUS_OF = {
    "invalid_request_error": 400,
    "not_found_error": 404,
    "request_too_large": 413,
}

STREAM_ERROR = "dspex_stream_error"
"""The key in a response's extensions for the codes of the error that its stream began with."""


@frozen
class Answer:
    """What an answer of a server means.

    Args:
        meaning: The most telling of what its codes and its status say.
        code: The known code that says so; ``None`` when the status does.
        codes: All of its structured error codes.
        named: Whether a known code, or a word of this pipeline's own, says so, and not just any status.
        in_stream: Whether the error came as an event of a stream that had begun well.
    """

    meaning: Meaning
    code: str | None = None
    codes: frozenset[str] = frozenset()
    named: bool = False
    in_stream: bool = False

    @property
    def verdict(self) -> Verdict:
        """What it says about the health of the server."""
        return _VERDICTS.get(self.meaning, Verdict.SUCCESS)


class Verdict(Enum):
    """What an outcome says about the health of the server."""

    SUCCESS = "success"
    FAILURE = "failure"
    NEUTRAL = "neutral"
    """It says nothing: we refused, the caller left, or the server asked us to slow down."""


_VERDICTS = {
    Meaning.FAILED: Verdict.FAILURE,
    Meaning.OVERLOADED: Verdict.FAILURE,
    Meaning.THROTTLED: Verdict.NEUTRAL,
    Meaning.QUOTA_SPENT: Verdict.NEUTRAL,
}
_OK = Answer(Meaning.OK)


def read_answer(response: Response, record: Record, body: bytes | None = None) -> Answer:
    """What a response means, by its structured error codes and its status.

    Codes count where an error body lies in memory, as those of LLM calls do, or where a stream began
    with an error that somebody has looked at. Free text is never read: it lies.

    Args:
        response: The response.
        record: That of the call; its pipeline may have words of its own.
        body: Its decoded body, for who stands above httpx, which has taken it out.
    """
    codes: frozenset[str] | None = response.extensions.get(STREAM_ERROR)
    if codes is not None:
        return read_codes(codes, record)
    status = response.status_code
    if status < 400:
        return _OK
    return _answer(error_codes(decoded(response) if body is None else body), status, record)


def read_codes(codes: frozenset[str], record: Record) -> Answer:
    """What an error event in a stream means, by its structured codes; an unknown one is a failure."""
    numbers = [int(code) for code in codes if code.isdecimal() and 400 <= int(code) <= 599]
    status = next((_STATUS_OF[code] for code in codes if code in _STATUS_OF), max(numbers, default=500))
    return evolve(_answer(codes, status, record), in_stream=True)


def _answer(codes: frozenset[str], status: int, record: Record) -> Answer:
    for meaning in Meaning:
        telling = [code for code in codes if _meaning(code, record) is meaning]
        if telling:
            return Answer(meaning, min(telling), codes, named=True)
    plain = Meaning.FAILED if status >= 500 else Meaning.BAD_REQUEST
    return Answer(_meaning(status, record) or plain, codes=codes, named=status in record.meanings)


def _meaning(word: str | int, record: Record) -> Meaning | None:
    return record.meanings.get(word) or MEANINGS.get(word)


_UNSENT = ("ConnectError", "ConnectTimeout", "PoolTimeout")
# httpx-aiohttp, which comes with openai, calls every lost connection a ConnectTimeout. So its cause decides.
_NEVER_CONNECTED = frozenset({"ClientConnectorError", "ConnectionTimeoutError"})
_OUR_FAULT = ("UnsupportedProtocol", "LocalProtocolError")


def is_transient_error(exc: BaseException, request: Request) -> bool:
    """Whether an exception is a transport error of the request's family that may pass by itself.

    A refusal is none, also where a pipeline below has made it one of that family.
    """
    module = family_of(request).module
    ours = tuple(getattr(module, name) for name in _OUR_FAULT)
    return isinstance(exc, module.TransportError) and not isinstance(exc, (*ours, Refused))


def surely_unsent(exc: Exception, request: Request) -> bool:
    """Whether no byte of the request can have reached the server."""
    module = family_of(request).module
    if not isinstance(exc, tuple(getattr(module, name) for name in _UNSENT)):
        return False
    cause = type(exc.__cause__)
    return not cause.__module__.startswith("aiohttp.") or any(
        kind.__name__ in _NEVER_CONNECTED for kind in cause.__mro__
    )


def is_read_timeout(exc: Exception, request: Request) -> bool:
    """Whether we stopped waiting for the answer to a request that has arrived."""
    return isinstance(exc, family_of(request).module.ReadTimeout)


def is_any_timeout(exc: BaseException | None, request: Request) -> bool:
    """Whether we stopped waiting, for whatever it was."""
    return isinstance(exc, family_of(request).TimeoutException)


def status_error(response: Response, request: Request) -> Exception:
    """A failed status as the exception that httpx users know; its text names no URL, which may be secret."""
    error: Exception = family_of(request).module.HTTPStatusError(
        f"the server answered {response.status_code}", request=request, response=response
    )
    return error


def verdict(error: BaseException, request: Request) -> Verdict:
    """What an exception says about the server's health; of a response, `Answer.verdict` does.

    Failures are transport errors, timeouts and bodies that break off. Cancellations, refusals and errors of
    our own making say nothing.
    """
    if isinstance(error, Refused):
        # a deadline that passed while the server kept us waiting, if only for a connection, is a timeout by
        # another name
        waited = is_any_timeout(error.__cause__, request)
        late = isinstance(error, DeadlineExceeded) and (error.sent or waited)
        return Verdict.FAILURE if late else Verdict.NEUTRAL
    return Verdict.FAILURE if is_transient_error(error, request) else Verdict.NEUTRAL


def transport_error(name: str, message: str, request: Request) -> Exception:
    """A transport error of the request's library, by its name there: ``"ConnectError"`` for one."""
    error: Exception = getattr(family_of(request).module, name)(message, request=request)
    return belongs_to(error, request)


def read_timeout(message: str, request: Request) -> Exception:
    """A timeout of ours, as the request's library would raise it while waiting for an answer."""
    return transport_error("ReadTimeout", message, request)


def broken_body(message: str, request: Request) -> Exception:
    """A body that broke off, as the request's library would raise it."""
    return transport_error("RemoteProtocolError", message, request)


def as_library_error(refused: Refused, request: Request) -> Refused:
    """A refusal raised outside the stack, while a body is read: an error of the request's library, too."""
    return belongs_to(family_of(request).refusal(refused, request), request)
