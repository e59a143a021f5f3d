"""Errors as each provider writes them: the body of a failed status, and an event in a stream."""

from __future__ import annotations

import json
from typing import Any

from .fault import SAYS_SO

__all__ = ["error_body", "error_event"]

_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}
_OPENAI_CODES = {
    401: ("invalid_request_error", "invalid_api_key"),
    429: ("requests", "rate_limit_exceeded"),
    529: ("overloaded_error", "overloaded_error"),
}


def error_body(form: str | None, status: int) -> bytes:
    """The body of a failed status: that of Anthropic for its format, and for all else that of OpenAI."""
    if form == "anthropic.messages":
        plain = "api_error" if status >= 500 else "invalid_request_error"
        document = _document(form, _ANTHROPIC_TYPES.get(status, plain), None)
    else:
        plain = "server_error" if status >= 500 else "invalid_request_error"
        document = _document(form, *_OPENAI_CODES.get(status, (plain, None)))
    return json.dumps(document).encode()


def error_event(form: str | None, error: str, number: int) -> bytes:
    """An error in a stream.

    Args:
        form: The stream's format.
        error: The error's type.
        number: How many events came before.
    """
    if form == "openai.responses":
        document = {
            "type": "error",
            "code": error,
            "message": SAYS_SO,
            "param": None,
            "sequence_number": number,
        }
    else:
        document = _document(form, error, error)
    # where a document has a type, the event is named after it
    name = "event: error\n" if "type" in document else ""
    return f"{name}data: {json.dumps(document)}\n\n".encode()


def _document(form: str | None, kind: str, code: str | None) -> dict[str, Any]:
    if form == "anthropic.messages":  # which has no codes
        return {"type": "error", "error": {"type": kind, "message": SAYS_SO}}
    return {"error": {"message": SAYS_SO, "type": kind, "param": None, "code": code}}
