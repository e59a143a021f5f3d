"""Which LLM requests can be answered from a cache, and which answers are worth keeping."""

from __future__ import annotations

from typing import Any

from ..wire import parse_loosely

__all__ = ["is_worth_keeping", "why_not"]

# The request goes on from what the server remembers, or asks it to do something of its own: the same body
# may mean something else tomorrow. (OpenAI Responses; Anthropic Messages)
_STATEFUL = ("conversation", "previous_response_id", "background", "container", "mcp_servers")
# Tools that run here, at the caller's; everything else in "tools" runs at the server, with its own data.
_LOCAL_TOOLS = frozenset({"function", "custom"})


def why_not(document: Any) -> str | None:
    """Why an LLM request with this body must not be answered from a cache; ``None`` when it may."""
    if not isinstance(document, dict):
        return None
    for name in _STATEFUL:
        if document.get(name):
            return f"it asks for server-side state ({name})"
    tools = document.get("tools")
    if isinstance(tools, list) and any(_runs_at_the_server(tool) for tool in tools):
        return "it uses tools of the server"
    return None


def _runs_at_the_server(tool: Any) -> bool:
    # without a type it is a tool of the caller's, by Anthropic's rule
    return isinstance(tool, dict) and tool.get("type", "custom") not in _LOCAL_TOOLS


def is_worth_keeping(body: bytes | None, *, completion: bool) -> bool:
    """Whether a 200 carries an answer: not an error, not the promise of a later one, not a login page.

    OpenAI's Responses API may answer 200 with ``status`` failed, incomplete, queued or in progress.

    Args:
        body: The body, decompressed; ``None`` when it cannot be.
        completion: Whether it answers an LLM call: then only a JSON object is an answer.
    """
    document = parse_loosely(body or b"")
    if not isinstance(document, dict):
        return not completion
    return not document.get("error") and document.get("status", "completed") == "completed"
