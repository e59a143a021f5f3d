"""What this package raises: one flat family of refusals, and two errors about layers.

A *refusal* is a decision of ours not to send, or not to wait any longer. Inside the stack it is one of
the classes below; at the edge it also becomes the client family's own ``TransportError`` (see
``family.py``), so an existing ``except httpx.HTTPError`` keeps working.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

__all__ = [
    "BreakerOpen",
    "DeadlineExceeded",
    "LayerError",
    "Overloaded",
    "RateLimited",
    "Refused",
    "Suspended",
]


class LayerError(RuntimeError):
    """A layer broke the contract; the message names the layer and what it did."""


class Suspended(LayerError):
    """A layer awaited something that needs an event loop, under a blocking client.

    Everything that may wait stands behind ``io`` (``io.sleep``, ``io.read``, …), which blocks there.
    """


class Refused(Exception):
    """A call that was refused on this side.

    Args:
        reason: One sentence, safe to log: it carries no secret and no body.
        layer: The name of the layer that refused.
        retry_after: Seconds after which a new call has a chance, or ``None`` when nobody knows.
        sent: Whether the request may have reached the server before the refusal.
    """

    status: ClassVar[int] = 503
    """The status of the synthetic response that an SDK is given instead of the exception."""
    code: ClassVar[str] = "refused"
    """A machine-readable name, in the body of that response."""
    timeout: ClassVar[bool] = False
    """Whether the family's ``TimeoutException`` is the fitting base, not plain ``TransportError``."""
    _fields: ClassVar[tuple[str, ...]] = ("layer", "retry_after", "sent")

    def __init__(
        self,
        reason: str,
        *,
        layer: str = "layer",
        retry_after: float | None = None,
        sent: bool = False,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.layer = layer
        self.retry_after = retry_after
        self.sent = sent

    def __str__(self) -> str:
        where = "" if self.sent else " (refused locally, nothing was sent)"
        hint = "" if self.retry_after is None else f"; retry after {self.retry_after:.3g} s"
        return f"{self.layer}: {self.reason}{where}{hint}"

    def __reduce__(self) -> tuple[Any, ...]:
        # The class may be one made per client family, which pickle could not find by name.
        plain = next(c for c in type(self).__mro__ if "_dspex_family" not in vars(c))
        return partial(plain, self.reason, **{name: getattr(self, name) for name in self._fields}), ()


class BreakerOpen(Refused):
    """The circuit for this key is open: calls have been failing, and are not tried for now.

    Args:
        reason: See `Refused`.
        key: Whose circuit it is.
        last_failure: What failed last, in a word or two.
        more: See `Refused`.
    """

    code = "breaker_open"
    _fields = (*Refused._fields, "key", "last_failure")

    def __init__(self, reason: str, *, key: str = "", last_failure: str = "", **more: Any) -> None:
        super().__init__(reason, **more)
        self.key = key
        self.last_failure = last_failure


class RateLimited(Refused):
    """The rate we allow ourselves, or the server allows us, is used up."""

    status = 429
    code = "rate_limited"


class Overloaded(Refused):
    """Too many calls are in flight or waiting already."""

    code = "overloaded"


class DeadlineExceeded(Refused):
    """The call's deadline has passed."""

    status = 504
    code = "deadline_exceeded"
    timeout = True
