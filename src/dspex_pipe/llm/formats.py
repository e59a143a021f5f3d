"""The three formats: from messages to a request, from JSON to a completion, from an event to a delta.

Pure; what does not have the documented shape raises `Malformed`.

Sources: OpenAI API reference (chat completions, responses), Anthropic API reference (messages), read in
November 2026.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from attrs import frozen

from ..wire import Usage
from .completion import Completion, Delta, ToolCall

__all__ = ["FORMATS", "Format", "Malformed", "Messages"]

Messages: TypeAlias = "str | Sequence[Mapping[str, Any]]"

T = TypeVar("T")

_VERSION = "2023-06-01"
_MAX_TOKENS = 4096


class Malformed(ValueError):
    """An answer without the documented shape."""


@frozen
class Format:
    """One format.

    Args:
        path: Behind the base URL.
        name: What it is called in ``wire``.
        headers: From the key to the headers that carry it.
        body: From model and messages to what a request's body has.
        completion: From the JSON of an answer to a `Completion`.
        delta: From the JSON of an event to a `Delta`; ``None`` for one that brings nothing.
        streaming: What the body has besides when it streams.
    """

    path: str
    name: str
    headers: Callable[[str], dict[str, str]]
    body: Callable[[str, list[Mapping[str, Any]]], dict[str, Any]]
    completion: Callable[[dict[str, Any]], Completion]
    delta: Callable[[dict[str, Any]], Delta | None]
    streaming: Mapping[str, Any]

    def request(
        self, model: str, messages: Messages, options: Mapping[str, Any], *, stream: bool
    ) -> dict[str, Any]:
        """The body of a request.

        Raises:
            TypeError: Messages are neither a text nor a list of mappings, or an option says ``stream``.
        """
        if "stream" in options:
            raise TypeError("stream is no option of a request: call stream() or astream()")
        body = {**self.body(model, as_messages(messages)), **options}
        return {**body, **self.streaming} if stream else body

    def parse(self, document: Any) -> Completion:
        """A completion out of an answer.

        Raises:
            Malformed: It has not the documented shape.
        """
        return self._shaped("an answer", self.completion, document)

    def piece(self, document: Any) -> Delta | None:
        """A delta out of the JSON of an event.

        Raises:
            Malformed: It has not the documented shape.
        """
        return self._shaped("an event", self.delta, document)

    def _shaped(self, what: str, read: Callable[[Any], T], document: Any) -> T:
        try:
            return read(document)
        except (KeyError, TypeError, IndexError, AttributeError) as exc:
            raise Malformed(f"{what} without the shape of {self.name}: {exc!r}") from exc


def as_messages(messages: Messages) -> list[Mapping[str, Any]]:
    """Messages as a list; a text is one message of the user."""
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    if isinstance(messages, Sequence):
        listed: list[Any] = list(messages)
        if all(isinstance(message, Mapping) for message in listed):
            return listed
    raise TypeError(f"messages: a text, or a list of mappings, got {type(messages).__name__}")


def _text(value: Any) -> str:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"a text was expected, not {type(value).__name__}")
    return value or ""


def _bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


# OpenAI, chat completions


def _chat_completion(answer: dict[str, Any]) -> Completion:
    choice = answer["choices"][0]
    message, usage = choice["message"], answer.get("usage")
    calls = [(call["id"], call["function"]) for call in message.get("tool_calls") or ()]
    return Completion(
        text=_text(message.get("content")),
        tool_calls=tuple(ToolCall(name, tool["name"], tool["arguments"]) for name, tool in calls),
        finish_reason=choice.get("finish_reason"),
        usage=_usage(usage, "prompt_tokens", "completion_tokens", "prompt_tokens_details"),
        model=answer.get("model"),
        raw=answer,
    )


def _chat_delta(event: dict[str, Any]) -> Delta | None:
    if not event["choices"]:  # the last one tells the usage
        return None
    choice = event["choices"][0]
    return Delta(_text(choice["delta"].get("content")), choice.get("finish_reason"), event)


# OpenAI, responses


def _response_completion(answer: dict[str, Any]) -> Completion:
    output = answer["output"]
    parts = [part for item in output if item["type"] == "message" for part in item["content"]]
    reason = (answer.get("incomplete_details") or {}).get("reason")
    return Completion(
        text="".join(_text(part["text"]) for part in parts if part["type"] == "output_text"),
        tool_calls=tuple(
            ToolCall(item["call_id"], item["name"], item["arguments"])
            for item in output
            if item["type"] == "function_call"
        ),
        finish_reason=reason or answer.get("status"),
        usage=_usage(answer.get("usage"), "input_tokens", "output_tokens", "input_tokens_details"),
        model=answer.get("model"),
        raw=answer,
    )


def _response_delta(event: dict[str, Any]) -> Delta | None:
    kind = event["type"]
    if kind in {"response.completed", "response.incomplete"}:
        return Delta("", _response_completion(event["response"]).finish_reason, event)
    if kind.endswith(".delta"):
        return Delta(_text(event["delta"]) if kind == "response.output_text.delta" else "", None, event)
    return None


# Anthropic, messages


def _message_body(model: str, messages: list[Mapping[str, Any]]) -> dict[str, Any]:
    system = [message["content"] for message in messages if message.get("role") == "system"]
    others = [message for message in messages if message.get("role") != "system"]
    body: dict[str, Any] = {"model": model, "max_tokens": _MAX_TOKENS, "messages": others}
    if all(isinstance(content, str) for content in system):
        return {**body, "system": "\n\n".join(system)} if system else body
    blocks = [[{"type": "text", "text": each}] if isinstance(each, str) else list(each) for each in system]
    return {**body, "system": [block for each in blocks for block in each]}


def _message_completion(answer: dict[str, Any]) -> Completion:
    content, usage = answer["content"], answer.get("usage")
    tokens = None
    if usage is not None:
        cached = usage.get("cache_read_input_tokens") or 0
        prompt = usage["input_tokens"] + (usage.get("cache_creation_input_tokens") or 0) + cached
        tokens = Usage(prompt, usage["output_tokens"], cached)
    return Completion(
        text="".join(_text(block["text"]) for block in content if block["type"] == "text"),
        tool_calls=tuple(
            ToolCall(block["id"], block["name"], json.dumps(block["input"]))
            for block in content
            if block["type"] == "tool_use"
        ),
        finish_reason=answer.get("stop_reason"),
        usage=tokens,
        model=answer.get("model"),
        raw=answer,
    )


def _message_delta(event: dict[str, Any]) -> Delta | None:
    kind = event["type"]
    if kind == "content_block_delta":
        return Delta(_text(event["delta"].get("text")), None, event)
    if kind == "message_delta":
        return Delta("", event["delta"].get("stop_reason"), event)
    return None


def _usage(told: dict[str, Any] | None, prompt: str, answer: str, details: str) -> Usage | None:
    if told is None:
        return None
    cached = (told.get(details) or {}).get("cached_tokens") or 0
    return Usage(told[prompt], told.get(answer) or 0, cached)


FORMATS: Mapping[str, Format] = {
    "openai": Format(
        "/chat/completions",
        "openai.chat",
        _bearer,
        lambda model, messages: {"model": model, "messages": messages},
        _chat_completion,
        _chat_delta,
        {"stream": True, "stream_options": {"include_usage": True}},
    ),
    "responses": Format(
        "/responses",
        "openai.responses",
        _bearer,
        lambda model, messages: {"model": model, "input": messages},
        _response_completion,
        _response_delta,
        {"stream": True},
    ),
    "anthropic": Format(
        "/v1/messages",
        "anthropic.messages",
        lambda key: {"x-api-key": key, "anthropic-version": _VERSION},
        _message_body,
        _message_completion,
        _message_delta,
        {"stream": True},
    ),
}
