"""One call of a client: its request, and what its answer, its events or its failure mean."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import attrs

from .. import errors as refusals
from ..chain import never_began
from ..errors import Refused
from ..events import explain
from ..family import family_of_error
from ..io import BLOCKING
from ..layers.logging import safe
from ..options import options as call_options
from ..outcome import Answer, read_answer, read_codes
from ..waits import told_wait
from ..wire import codes_of
from .completion import Completion, Delta
from .config import ClientConfig
from .errors import BreakerOpen, Crashed, DeadlineExceeded, LLMError, ProviderDown, RateLimited, error_for
from .formats import FORMATS, Malformed
from .pools import PoolsClosed

if TYPE_CHECKING:
    from ..family import Request, Response
    from .client import Client
    from .pools import Pools

__all__ = ["Call", "request_id"]

_REFUSALS: Mapping[type[Refused], type[LLMError]] = {
    refusals.BreakerOpen: BreakerOpen,
    refusals.RateLimited: RateLimited,
    refusals.DeadlineExceeded: DeadlineExceeded,
}
_REQUEST_IDS = ("x-request-id", "request-id")


@attrs.frozen
class Call:
    """One call of a client, as it was when it began."""

    client: Client
    config: ClientConfig
    key: str = attrs.field(repr=False)
    content: bytes = attrs.field(repr=False)
    timeout: float

    def pools(self) -> Pools:
        """The connections to use now."""
        return self.client.pools()

    def request(self, client: Any) -> Request:
        """The request, of the library of this httpx client."""
        form = FORMATS[self.config.wire]
        given: dict[str, Any] = {"deadline": self.timeout}
        if self.client.distrusts(self.content):
            given["distrust"] = True
        request: Request = client.build_request(
            "POST",
            self.config.url + form.path,
            headers={"content-type": "application/json", **form.headers(self.key)},
            content=self.content,
            timeout=self.timeout,
            extensions=call_options(**given),
        )
        return request

    def completion(self, response: Response) -> Completion:
        """What an answer says.

        Raises:
            LLMError: It is an error.
            Malformed: It has not the documented shape.
        """
        self.check(response)
        try:
            document = json.loads(response.content)
        except (ValueError, RecursionError) as exc:
            raise Malformed("an answer that is no JSON") from exc
        self._check_document(document, response)
        return attrs.evolve(
            FORMATS[self.config.wire].parse(document),
            cached=is_cached(response),
            request_id=request_id(response),
            trace=explain(response),
        )

    def check(self, response: Response) -> None:
        """Raise what a failed answer means."""
        if response.is_success:
            return
        answer = read_answer(response, response.extensions["dspex"], response.content)
        raise self._error(answer, response, f"status {response.status_code}")

    def event(self, data: str, response: Response) -> Delta | None:
        """What an event says.

        Raises:
            LLMError: It is an error.
            Malformed: It has not the documented shape.
        """
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as exc:
            raise Malformed("an event that is no JSON") from exc
        self._check_document(document, response)
        return FORMATS[self.config.wire].piece(document)

    def _check_document(self, document: Any, response: Response) -> None:
        """Raise what an error means that came behind a 200: in a stream, or as a response that failed."""
        if not isinstance(document, dict):
            return
        response_of_event = document.get("response")
        inner = response_of_event if isinstance(response_of_event, dict) else document
        failed = document.get("type") in {"error", "response.failed"} or inner.get("status") == "failed"
        if failed or document.get("error"):
            codes = codes_of(inner.get("error")) | (codes_of(document) - {"response.failed"})
            answer = read_codes(codes, response.extensions["dspex"])
            raise self._error(answer, response, "an error in the stream")

    def _error(self, answer: Answer, response: Response, what: str) -> LLMError:
        code = answer.code or min(answer.codes, default=None)
        body = response.text if response.is_stream_consumed and not answer.in_stream else what
        self.client.health.failed(f"LLM API error: status {response.status_code}: {self._redacted(body)}")
        return error_for(answer.meaning)(
            f"the provider answered with {what}: {answer.meaning.value}",
            client=self.client.name,
            status=response.status_code,
            code=code,
            request_id=request_id(response),
            retry_after=told_wait(response.headers, BLOCKING.wall()),
            trace=explain(response),
        )

    def fail(self, exc: Exception) -> NoReturn:
        """Raise the error for an exception; one that nobody expected is a crash of the client."""
        if isinstance(exc, LLMError) or never_began(exc):
            raise exc  # never began: the caller's own mistake, as an option that nobody knows
        name, trace = self.client.name, explain(exc)
        if isinstance(exc, Malformed):
            self.client.distrust(self.content)
        if isinstance(exc, Refused):
            kind = next((_REFUSALS[base] for base in _REFUSALS if isinstance(exc, base)), ProviderDown)
            raise kind(exc.reason, client=name, retry_after=exc.retry_after, trace=trace) from exc
        of_the_library = family_of_error(exc) is not None
        if isinstance(exc, PoolsClosed) or (of_the_library and self.client.closed):
            raise self.client.broken_off() from exc
        if of_the_library:
            self.client.health.failed(f"HTTP request error: {type(exc).__name__}")
            reason = f"no whole answer came: {type(exc).__name__}"
            raise ProviderDown(reason, client=name, trace=trace) from exc
        self.client.crashed(exc)
        reason = f"{type(exc).__name__}: {self._redacted(str(exc))}"
        raise Crashed(reason, client=name, trace=trace) from exc

    def _redacted(self, text: str) -> str:
        """Text from outside, on one line; the key goes before it is cut, or half of it could stay."""
        return safe(text.replace(self.key, "[key]")[:1000])


def is_cached(response: Response) -> bool:
    """Whether an answer comes from a cache of ours."""
    return response.headers.get("x-dspex-cache") in {"hit", "shared", "revalidated"}


def request_id(response: Response) -> str | None:
    """The provider's name for the request."""
    return next((response.headers[name] for name in _REQUEST_IDS if name in response.headers), None)
