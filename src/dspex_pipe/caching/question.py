"""What the body of a request asks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from hashlib import sha256
from threading import Lock
from typing import TYPE_CHECKING

from attrs import frozen

from ..wire import parse_loosely, recognise
from .content import why_not
from .key import canonical, content_digest, taken

if TYPE_CHECKING:
    from ..wire import Completion

__all__ = ["Question", "Questions"]

_BOUND = 1024


@frozen
class Question:
    """What a body asks.

    Args:
        digest: What a key takes of it.
        why_not: Why it must not be answered from a cache; ``None`` when it may.
        completion: Which LLM completion it asks for, if it does.
    """

    digest: str
    why_not: str | None = None
    completion: Completion | None = None


_A_STREAM = Question("", "the request's body is a stream")


class Questions:
    """Reads bodies, and remembers what the newest 1024 asked, by a digest of their bytes.

    To parse a body and to write it in canonical form takes ten times as long as to digest it.

    Args:
        only: Fields of a JSON body that count; by default all of it counts.
    """

    def __init__(self, only: Collection[str] | None = None) -> None:
        self._only = only
        self._lock = Lock()
        self._known: OrderedDict[tuple[str, str, bytes], Question] = OrderedDict()

    def read(self, method: str, path: str, body: bytes | None) -> Question:
        """What a request asks.

        Args:
            method: The HTTP method.
            path: The URL's path.
            body: The whole body; ``None`` for a stream.
        """
        if body is None:
            return _A_STREAM
        place = method, path, sha256(body).digest()
        with self._lock:
            known = self._known.get(place)
            if known is not None:
                self._known.move_to_end(place)
                return known
        question = self._read(method, path, body)
        with self._lock:
            self._known[place] = question
            if len(self._known) > _BOUND:
                self._known.popitem(last=False)
        return question

    def _read(self, method: str, path: str, body: bytes) -> Question:
        content = canonical(body)
        # else its key is taken byte by byte, since servers may read it differently
        said = content if isinstance(content, dict) else parse_loosely(body)
        digest = content_digest(taken(content, self._only))
        return Question(digest, why_not(said), recognise(method, path, body, said))
