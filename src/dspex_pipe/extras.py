"""What only some users have installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["extra"]


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Import in this what an extra brings; when it is not there, the error says how to get it.

    Args:
        name: The extra's.
    """
    try:
        yield
    except ModuleNotFoundError as exc:
        exc.msg += f": it comes with an extra, pip install 'dspex-pipe[{name}]'"
        raise
