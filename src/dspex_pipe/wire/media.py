"""What kind of body a response has, by its ``content-type`` (RFC 9110 §8.3.1)."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["EVENT_STREAM", "is_event_stream", "media_type"]

EVENT_STREAM = "text/event-stream"


def media_type(headers: Mapping[str, str]) -> str:
    """The media type, in lower case and without parameters; empty when there is none.

    Args:
        headers: With names in lower case, or of any case that they answer to, as httpx's do.
    """
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def is_event_stream(headers: Mapping[str, str]) -> bool:
    """Whether the body is server-sent events."""
    return media_type(headers) == EVENT_STREAM
