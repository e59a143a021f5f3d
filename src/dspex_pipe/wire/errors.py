"""The errors of providers: the structured codes in them, and how one of ours is written.

Shapes (provider documentation, November 2026):

- OpenAI: ``{"error": {"message", "type", "param", "code"}}``; a spent quota has the type
  ``insufficient_quota``, and says in its code which one
- Anthropic: ``{"type": "error", "error": {"type", "message", "details": {"error_code"}}, "request_id"}``;
  a spent limit has the type ``rate_limit_error``, and only the ``error_code`` tells it from throttling

The free text is never looked at: providers say "quota" in messages about plain throttling.
"""

from __future__ import annotations

import json
from typing import Any

from .document import parse_loosely

NOT_CACHED = "not_cached"
"""The code of a completion that was to be answered from a cache, and is not there."""

__all__ = ["NOT_CACHED", "codes_of", "error_body", "error_codes"]

_LONGEST = 256


def error_codes(body: bytes | None) -> frozenset[str]:
    """The codes of an error body; empty when it has none, or is not such a body."""
    document = parse_loosely(body or b"")
    return codes_of(document.get("error")) if isinstance(document, dict) else frozenset()


def codes_of(error: Any) -> frozenset[str]:
    """The codes of an error object, whatever it really is; a status in the place of a name is one, too."""
    if not isinstance(error, dict):
        return frozenset()
    details = error.get("details")
    specific = details.get("error_code") if isinstance(details, dict) else None
    words = map(_word, (error.get("code"), error.get("type"), specific))
    return frozenset(word for word in words if word is not None)


def error_body(code: str, message: str) -> bytes:
    """An error of our own, as SDKs read it: OpenAI's the code and message, Anthropic's both types."""
    error = {"type": code, "code": code, "message": message, "param": None}
    return json.dumps({"type": "error", "error": error}).encode()


def _word(value: Any) -> str | None:
    """A short printable word, fit for events and logs."""
    text = str(value) if type(value) is int and 0 < value < 1000 else value
    if not isinstance(text, str) or not 0 < len(text) <= _LONGEST or not text.isprintable():
        return None
    return None if text == "error" else text  # what Anthropic calls the event itself
