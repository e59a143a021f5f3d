"""Read the structured code out of a provider's error body.

Shapes (provider documentation, November 2026):

- OpenAI: ``{"error": {"message", "type", "param", "code"}}``
- Anthropic: ``{"type": "error", "error": {"type", "message"}, "request_id"}``

The free text is never looked at: providers say "quota" in messages about plain throttling.
"""

from __future__ import annotations

import json

__all__ = ["error_codes"]


def error_codes(body: bytes | None) -> frozenset[str]:
    """The ``code`` and ``type`` of an error body; empty when it has none, or is not such a body."""
    if not body:
        return frozenset()
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return frozenset()
    error = document.get("error") if isinstance(document, dict) else None
    if not isinstance(error, dict):
        return frozenset()
    return frozenset(v for v in (error.get("code"), error.get("type")) if isinstance(v, str))
