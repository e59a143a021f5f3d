"""What callers do without us: the retries that the SDKs have built in, and the loop that people write.

They are layers, so that they can be simulated, alone or above a stack.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen

from ..body import copy_request
from ..config import brief, check, seconds, whole
from ..events import record_of
from ..family import family_of
from ..waits import told_to_retry, told_wait

if TYPE_CHECKING:
    from ..chain import Handler
    from ..family import Request, Response
    from ..io import IO

__all__ = ["NaiveRetry", "SdkRetry"]

_INITIAL, _LONGEST, _JITTER = 0.5, 8.0, 0.25


@frozen(kw_only=True, repr=False)
class SdkRetry:
    """Retry as the openai and anthropic SDKs do by themselves (openai 3.54, anthropic 2.12).

    Retried are the statuses 408, 409, 429 and from 500 on, and errors of the transport, after 0.5 s, doubled
    up to 8 s, less up to a quarter of it at random. ``x-should-retry`` and the wait that the server names
    come first.

    Args:
        max_retries: Attempts beside the first.
        longest: Seconds that the server may name. openai has 120, and gives up when it is more; anthropic has
            no bound: ``math.inf``.
    """

    max_retries: int = field(default=2, validator=whole(0))
    longest: float = field(
        default=120.0,
        validator=check("a number of seconds, or math.inf", lambda v: type(v) in {int, float} and v >= 0),
    )

    __repr__ = brief

    def build(self) -> SdkRetrying:
        """The running layer; it has no state."""
        return SdkRetrying(self)

    def wants(self, response: Response, told: float | None) -> bool:
        """Whether a response is one to try again.

        Args:
            response: The response.
            told: Seconds that it asks to wait, if it does.
        """
        if told is not None and told > self.longest:
            return False
        status = response.status_code
        said = told_to_retry(response.headers)
        return said if said is not None else status in {408, 409, 429} or status >= 500

    def wait(self, retry: int, told: float | None, random: float) -> float:
        """Seconds before a retry, numbered from 0.

        Args:
            retry: Its number.
            told: Seconds that the server asks for, if it does.
            random: A number in [0, 1).
        """
        if told is not None:
            return told
        return min(_LONGEST, _INITIAL * 2.0 ** min(retry, 64)) * (1 - _JITTER * random)


class SdkRetrying:
    """The running layer."""

    def __init__(self, policy: SdkRetry) -> None:
        self._policy = policy

    async def __call__(self, request: Request, call_next: Handler, io: IO) -> Response:
        policy, record = self._policy, record_of(request)
        for retry in range(policy.max_retries):
            told: float | None = None
            try:
                response = await call_next(copy_request(request))
            except family_of(request).TransportError:
                if record.spent:  # by then our own edge has told the SDK to stop
                    raise
            else:
                told = told_wait(response.headers, io.wall())
                if not (response.is_error and policy.wants(response, told)):
                    return response
                await io.close(response)
            wait = policy.wait(retry, told, io.random())
            record.emit("SdkRetry", "retries", seconds=wait)
            await io.sleep(wait)
        return await call_next(copy_request(request))


@frozen(kw_only=True, repr=False)
class NaiveRetry:
    """The loop that people write: whatever went wrong, wait a little, and send it again.

    Args:
        attempts: Calls in all, the first included.
        wait: Seconds between them.
    """

    attempts: int = field(default=5, validator=whole(1))
    wait: float = field(default=1.0, validator=seconds(zero=True))

    __repr__ = brief

    def build(self) -> NaiveRetrying:
        """The running layer; it has no state."""
        return NaiveRetrying(self)


class NaiveRetrying:
    """The running layer."""

    def __init__(self, policy: NaiveRetry) -> None:
        self._policy = policy

    async def __call__(self, request: Request, call_next: Handler, io: IO) -> Response:
        for _ in range(self._policy.attempts - 1):
            try:
                response = await call_next(copy_request(request))
            except Exception:  # noqa: BLE001, S110 - that is what is naive about it; the last one is raised
                pass
            else:
                if not response.is_error:
                    return response
                await io.close(response)
            record_of(request).emit("NaiveRetry", "retries", seconds=self._policy.wait)
            await io.sleep(self._policy.wait)
        return await call_next(copy_request(request))
