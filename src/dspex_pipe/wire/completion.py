"""Recognise an LLM completion request: by path suffix *and* body shape, never by path alone.

The suffix survives the prefixes of gateways and of Azure deployments; the shape keeps a look-alike
path (``/threads/x/messages``, a chat application's own ``/messages``) out.

Sources: OpenAI API reference (chat, completions, embeddings, responses), Anthropic API reference
(messages), both read in November 2026.
"""

from __future__ import annotations

from typing import Any

from attrs import frozen

from .document import parse_loosely

__all__ = ["Completion", "form_of", "recognise"]

_FORMATS = (
    # path suffix, the field its body must carry besides "model", the name of the format
    ("/chat/completions", "messages", "openai.chat"),
    ("/completions", "prompt", "openai.completions"),
    ("/embeddings", "input", "openai.embeddings"),
    ("/responses", "input", "openai.responses"),
    ("/messages", "messages", "anthropic.messages"),
)


@frozen
class Completion:
    """What an LLM request is.

    Args:
        format: ``openai.chat``, ``openai.completions``, ``openai.embeddings``, ``openai.responses`` or
            ``anthropic.messages``.
        model: The model's name, as the request has it.
        stream: Whether the request asks for server-sent events.
    """

    format: str
    model: str
    stream: bool


def form_of(method: str, path: str) -> tuple[str, str, str] | None:
    """What an LLM request with this method and path looks like, if there is any."""
    if method == "POST":
        for form in _FORMATS:
            if path.endswith(form[0]):
                return form
    return None


def recognise(method: str, path: str, content: bytes | None, document: Any = None) -> Completion | None:
    """Tell which LLM completion this request is, or ``None``.

    Args:
        method: The HTTP method.
        path: The URL's path, without the query.
        content: The request's whole body; ``None`` when it cannot be looked at (a stream).
        document: What it holds, for who has parsed it.
    """
    form = form_of(method, path)
    if form is None or not content:
        return None
    _, field, name = form
    if document is None:
        document = parse_loosely(content)
    if not isinstance(document, dict) or not document.get(field):
        return None
    model = document.get("model")
    if not isinstance(model, str) or not model:
        return None
    return Completion(name, model, document.get("stream") is True)
