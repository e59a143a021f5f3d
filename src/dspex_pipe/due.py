"""When the layers further out cut a request off, so that what waits for the server inside gives up first.

To be cancelled tells nobody why: it may be the caller, who left. A timeout of the wire says that the server
was late, to a `Breaker` for one.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .family import Request

__all__ = ["due_of", "set_due"]

_EXTENSION = "dspex_due"


def set_due(request: Request, due: Callable[[], float]) -> None:
    """Say when this request is cut off; where a layer further out has said so, the earlier of the two holds.

    Args:
        request: The request that is handed on.
        due: Seconds on the clock of `IO.now`; it may change while the answer comes in.
    """
    outer = request.extensions.get(_EXTENSION)
    request.extensions[_EXTENSION] = due if outer is None else lambda: min(outer(), due())


def due_of(request: Request) -> float:
    """When a layer further out cuts this request off, as of now; infinite for never."""
    due: Callable[[], float] | None = request.extensions.get(_EXTENSION)
    return inf if due is None else due()
