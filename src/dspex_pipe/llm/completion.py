"""An answer of an LLM, the same for every provider."""

from __future__ import annotations

from typing import Any

from attrs import field, frozen

from ..events import Trace
from ..wire import Usage

__all__ = ["Completion", "Delta", "ToolCall"]


@frozen
class ToolCall:
    """A tool that the model wants to be called.

    Args:
        id: The provider's name for this call.
        name: The tool's name.
        arguments: Its arguments, as JSON text.
    """

    id: str
    name: str
    arguments: str


@frozen(kw_only=True)
class Completion:
    """A whole answer.

    Args:
        text: What the model said.
        tool_calls: Tools that it wants to be called.
        finish_reason: Why it ended, in the provider's word.
        usage: Tokens; ``None`` when they were not told. An answer from a cache was not billed.
        model: Who answered, by the provider's word.
        cached: Whether it came from a cache.
        request_id: The provider's name for the request, if it told one.
        raw: The provider's JSON.
        trace: What the layers did.
    """

    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str | None = None
    usage: Usage | None = None
    model: str | None = None
    cached: bool = False
    request_id: str | None = None
    raw: dict[str, Any] = field(factory=dict, repr=False)
    trace: Trace = field(default=Trace(), repr=False)

    def __str__(self) -> str:
        return self.text


@frozen
class Delta:
    """A piece of an answer that streams in.

    Args:
        text: What the model says with it; empty for what is no text.
        finish_reason: Why the answer has ended, with its last piece.
        raw: The provider's JSON: tool calls, reasoning, usage.
    """

    text: str
    finish_reason: str | None
    raw: dict[str, Any] = field(repr=False)

    def __str__(self) -> str:
        return self.text
