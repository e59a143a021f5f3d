"""Recognise an LLM completion request: by path suffix *and* body shape, never by path alone.

The suffix survives the prefixes of gateways and of Azure deployments; the shape keeps a look-alike
path (``/threads/x/messages``, a chat application's own ``/messages``) out.

Sources: OpenAI API reference (chat, completions, embeddings, responses), Anthropic API reference
(messages), both read in November 2026.
"""

from __future__ import annotations

import json

from attrs import frozen

__all__ = ["Completion", "recognise"]

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


def recognise(method: str, path: str, content: bytes | None) -> Completion | None:
    """Tell which LLM completion this request is, or ``None``.

    Args:
        method: The HTTP method.
        path: The URL's path, without the query.
        content: The request's whole body; ``None`` when it cannot be looked at (a stream).
    """
    if method != "POST" or not content:
        return None
    form = next((form for form in _FORMATS if path.endswith(form[0])), None)
    if form is None:
        return None
    _, field, name = form
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(body, dict) or not body.get(field):
        return None
    model = body.get("model")
    if not isinstance(model, str) or not model:
        return None
    return Completion(name, model, body.get("stream") is True)
