"""What a provider's stream says, while it goes by.

A `StreamReader` is fed the raw bytes of a response body and knows at any time whether the answer is over, has
begun, or has failed, and what it cost. It never raises and never holds a stream up: where it cannot read, or
can no longer, it says so in ``known.gave_up``, and the plain rules of the end of a body apply.

Sources, read in November 2026: OpenAI API reference (chat, completions and responses, "streaming events"),
Anthropic API reference ("streaming messages").
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, NamedTuple

from attrs import frozen

from .errors import codes_of
from .inflate import Inflate, Spoilt, inflater
from .media import is_event_stream
from .sse import Event, Parser

__all__ = ["Kind", "Known", "Seen", "StreamReader", "Usage", "reader_for"]

_SLICE = 1 << 16
# What a compressed body may inflate to: so much, and so many times what has come. Event streams reach 60,
# a bomb 1000; reading it would hold up everything else in the event loop.
_INFLATED_FREE = 1 << 20
_INFLATED_RATIO = 100
_CHOICES_BOUND = 1024
_NAME_BOUND = 256


class Kind(Enum):
    """What one event of a stream is."""

    PING = "ping"
    """A sign of life, which says nothing about the answer."""
    OPENING = "opening"
    """The frame that content will come in: it tells a reader nothing yet, and the provider keeps nothing."""
    LIFECYCLE = "lifecycle"
    """The answer changes state, or is accounted for."""
    PROGRESS = "progress"
    """A tool of the provider's is at work."""
    CONTENT = "content"
    """A piece of the answer: text, reasoning, a tool call."""
    ERROR = "error"
    TERMINAL = "terminal"
    """The last event: behind it, nothing belongs to the answer."""


class Seen(NamedTuple):
    """One event that went by."""

    kind: Kind
    end: int
    """The offset just behind it, in bytes of the *decoded* body; of the raw one, if nothing encodes it."""


@frozen
class Usage:
    """What an answer costs, in tokens, counted alike for all providers.

    Args:
        input: All of the prompt; Anthropic tells what was cached apart, and here it is added.
        output: All of the answer, reasoning included.
        cached: The part of ``input`` that was read from the provider's cache.
    """

    input: int
    output: int
    cached: int


@frozen
class Known:
    """What is known of a stream so far.

    Args:
        format: The name of its format; ``None`` when it is not one of ours.
        gave_up: Why its meaning is not read (any more); then only the end of the body tells that it is over.
        model: The model that answers, by the provider's word.
        content: How many content events have come.
        finished: Why the answer ended, one reason for each choice that has ended. For
            ``openai.responses`` this is ``completed``, or why it is incomplete, or ``failed``.
        terminal: Whether the answer is whole and over: nothing of it can be missing. An answer that was cut
            at its token limit is whole in this sense.
        evidence: Whether anything at all says that the answer ended: a finish reason, or a last event.
            Without it, the end of the body is a truncation.
        error: The structured codes of the error that the stream told; maybe empty; ``None`` for no error.
        usage: Tokens; ``None`` until it is told.
    """

    format: str | None
    gave_up: str | None
    model: str | None
    content: int
    finished: tuple[str, ...]
    terminal: bool
    evidence: bool
    error: frozenset[str] | None
    usage: Usage | None


def reader_for(format: str | None, headers: Mapping[str, str]) -> StreamReader:  # noqa: A002 # its name everywhere
    """A reader for the body of one response.

    Args:
        format: A name from `recognise`; ``None``, or one without streams, gives a reader of nothing.
        headers: The response's, with names in lower case or of any case that they answer to, as httpx's do.
    """
    dialect = _DIALECTS.get(format or "")
    if dialect is None:
        return StreamReader(None, _Dialect(), None, "the format is not known")
    if not is_event_stream(headers):
        return StreamReader(format, _Dialect(), None, "the body is not an event stream")
    inflate = inflater(headers.get("content-encoding", ""))
    return StreamReader(format, dialect(), inflate, None if inflate else "the content encoding is not known")


class StreamReader:
    """Reads one response body; get it from `reader_for`.

    Feed it everything, then `finish` it, whether the body ended or its reader left.
    """

    def __init__(
        self, name: str | None, dialect: _Dialect, inflate: Inflate | None, gave_up: str | None
    ) -> None:
        self._format = name
        self._dialect = dialect
        self._inflate = inflate
        self._gave_up = gave_up
        self._left = _INFLATED_FREE
        self._content = 0
        self._parser = Parser()

    def feed(self, chunk: bytes) -> list[Seen]:
        """Take the next raw bytes of the body; the events that they complete."""
        seen: list[Seen] = []
        for at in range(0, len(chunk), _SLICE):
            inflate = self._inflate
            if inflate is None:
                break
            raw = chunk[at : at + _SLICE]
            self._left += len(raw) * _INFLATED_RATIO  # more than a plain body can use up
            try:
                for piece in inflate(raw):
                    self._read(piece, seen)
                    if self._inflate is None:
                        break
            except Spoilt as exc:
                self._give_up(f"the content encoding is spoilt: {exc}")
        return seen

    def finish(self) -> list[Seen]:
        """Hear that no more will come; the event that this completes, if any; again, it does nothing."""
        seen: list[Seen] = []
        self._take(self._parser.finish(), seen)
        return seen

    @property
    def gave_up(self) -> str | None:
        """Why the meaning of the stream is not read (any more), as in `known`; cheap."""
        return self._gave_up

    @property
    def known(self) -> Known:
        """What is known so far."""
        dialect = self._dialect
        return Known(
            self._format,
            self._gave_up,
            dialect.model,
            self._content,
            tuple(dialect.reasons.values()),
            dialect.terminal and dialect.error is None,
            dialect.over or bool(dialect.reasons),
            dialect.error,
            dialect.usage,
        )

    def _read(self, piece: bytes, seen: list[Seen]) -> None:
        piece = piece[: self._left]
        self._left -= len(piece)
        self._take(self._parser.feed(piece), seen)
        if self._parser.gave_up is not None:
            self._give_up(self._parser.gave_up)
        elif not self._left:
            self._give_up(f"inflates more than {_INFLATED_RATIO} times")

    def _take(self, events: list[Event], seen: list[Seen]) -> None:
        for event in events:
            kind = self._dialect.take(event)
            self._content += kind is Kind.CONTENT
            seen.append(Seen(kind, event.end))
            if self._dialect.gave_up is not None:
                self._give_up(self._dialect.gave_up)
                break

    def _give_up(self, why: str) -> None:
        self._gave_up = self._gave_up or why
        self._inflate = None
        self._parser = Parser()  # what it holds is needed no more


# The formats. Each takes every event, in order, and trusts none of it to have the documented shape.


class _Dialect:
    """What all formats keep."""

    def __init__(self) -> None:
        self.model: str | None = None
        self.reasons: dict[int, str] = {}
        self.terminal = False
        self.over = False
        self.error: frozenset[str] | None = None
        self.usage: Usage | None = None
        self.gave_up: str | None = None

    def take(self, event: Event) -> Kind:
        raise NotImplementedError

    def fail(self, *sources: Any) -> Kind:
        """Note an error, with the codes that these objects carry; the first error of a stream stays."""
        if self.error is None:
            self.error = frozenset[str]().union(*map(codes_of, sources))
        return Kind.ERROR


class _Chat(_Dialect):
    """OpenAI chat and completions: chunks without event names, then ``[DONE]``.

    Whatever a delta carries besides the role is content, so that the fields of other providers for reasoning
    (``reasoning``, ``reasoning_content``) are, too.

    Most chunks differ from the one before only in a few letters of text, so a chunk with the frame of one
    that told nothing but content is not parsed.
    """

    def __init__(self) -> None:
        super().__init__()
        self._begun: set[int] = set()
        self._content_frame: tuple[str, ...] | None = None

    def take(self, event: Event) -> Kind:
        if self.over:  # the SDK has left, and reads none of this
            return Kind.LIFECYCLE
        if event.data.startswith("[DONE]"):  # the SDK's own test
            self.over = True
            self.terminal = bool(self._begun) and self._begun == self.reasons.keys()
            return Kind.TERMINAL
        frame = _frame(event.data) if event.type == "message" else None
        if frame is not None and frame == self._content_frame:
            return Kind.CONTENT
        chunk = _parse(event.data)
        if event.type == "error" or chunk.get("error") or chunk.get("object") == "error":
            return self.fail(chunk.get("error"), chunk)
        if event.type == "ping":
            return Kind.PING
        kind, news = self._chunk(chunk)
        if kind is Kind.CONTENT and not news and frame is not None:
            self._content_frame = frame
        return kind

    def _chunk(self, chunk: dict[str, Any]) -> tuple[Kind, bool]:
        """What a chunk is, and whether it tells more than content, which a later one might revise."""
        self.model = self.model or _name(chunk.get("model"))
        kind, news = Kind.OPENING, False
        if usage := _dict(chunk.get("usage")):
            self.usage = _usage(usage, "prompt_tokens", "completion_tokens", "prompt_tokens_details")
            news = True
        for choice in map(_dict, _list(chunk.get("choices"))):
            index = _count(choice.get("index"))
            self._begun.add(index)
            delta = _dict(choice.get("delta"))
            if choice.get("text") or any(value for name, value in delta.items() if name != "role"):
                kind = Kind.CONTENT
            if reason := _name(choice.get("finish_reason")):
                self.reasons[index] = reason
                news = True
        if self.reasons and kind is Kind.OPENING:
            kind = Kind.LIFECYCLE
        if len(self._begun) > _CHOICES_BOUND:
            self.gave_up = f"more than {_CHOICES_BOUND} choices"
        return kind, news


_TEXTS = ('"content":"', '"text":"', '"obfuscation":"')


def _frame(document: str) -> tuple[str, ...] | None:
    """All of a JSON document but the texts behind `_TEXTS`; ``None`` if one of these is not plain.

    Two documents with one frame differ in nothing but these texts, none of which is empty in either: a text
    ends at the first quote, for it has no backslash, and without control characters JSON takes any. So if one
    document can be parsed, the other can, to the same but for these.
    """
    frame = []
    for mark in _TEXTS:
        head, found, rest = document.partition(mark)
        if found:
            text, _, document = rest.partition('"')
            if not text or "\\" in text or not text.isprintable():
                return None
            frame += [head, mark]
    return (*frame, document)


class _Responses(_Dialect):
    """OpenAI responses: named events. The name decides, so most of them need not be parsed.

    ``response.completed`` and ``response.incomplete`` (its reason says what cut it) end an answer that is
    whole; ``response.failed`` ends one that is not, and is an error.
    """

    def take(self, event: Event) -> Kind:
        name = event.type
        document: dict[str, Any] | None = None
        if name == "message":  # some compatible servers name events in the data only
            document = _parse(event.data)
            name = _name(document.get("type")) or ""
        if name.endswith((".delta", ".partial_image")):
            return Kind.CONTENT
        if name in {"ping", "keepalive"}:
            return Kind.PING
        if name in _RESPONSE_STATES:
            document = document or _parse(event.data)
            return self._state(name, _dict(document.get("response")))
        if name == "error" or (document and document.get("error")):
            document = document or _parse(event.data)
            return self.fail(document.get("error"), document)
        if "_call." in name or ".mcp_" in name:
            return Kind.PROGRESS
        return Kind.LIFECYCLE

    def _state(self, name: str, response: dict[str, Any]) -> Kind:
        self.model = self.model or _name(response.get("model"))
        if usage := _dict(response.get("usage")):
            self.usage = _usage(usage, "input_tokens", "output_tokens", "input_tokens_details")
        if name == "response.created":
            return Kind.LIFECYCLE
        self.over = True
        state = name.removeprefix("response.")
        self.reasons[0] = _name(_dict(response.get("incomplete_details")).get("reason")) or state
        if name == "response.failed":
            return self.fail(response.get("error"))
        self.terminal = True
        return Kind.TERMINAL


_RESPONSE_STATES = {"response.created", "response.completed", "response.incomplete", "response.failed"}


class _Messages(_Dialect):
    """Anthropic messages: named events. The name decides, so most of them need not be parsed."""

    def __init__(self) -> None:
        super().__init__()
        self._usage: dict[str, int] = {}

    def take(self, event: Event) -> Kind:
        name = event.type
        document: dict[str, Any] | None = None
        if name == "message":
            document = _parse(event.data)
            name = _name(document.get("type")) or ""
        if name == "content_block_delta":
            return Kind.CONTENT
        if name == "ping":
            return Kind.PING
        if name == "message_stop":
            self.over = self.terminal = True
            return Kind.TERMINAL
        if name in {"error", "message_start", "message_delta", "content_block_start"}:
            return self._parsed(name, document or _parse(event.data))
        return Kind.LIFECYCLE

    def _parsed(self, name: str, document: dict[str, Any]) -> Kind:
        if name == "error":
            return self.fail(document.get("error"))
        if name == "content_block_start":
            # results of the provider's own tools, and redacted thinking, come in one piece, without deltas
            block = _dict(document.get("content_block"))
            if any(block.get(key) for key in ("text", "thinking", "data", "content")):
                return Kind.CONTENT
            kind = _name(block.get("type")) or ""
            if kind in {"text", "thinking"}:
                return Kind.OPENING
            return Kind.PROGRESS if kind.endswith("_tool_use") else Kind.LIFECYCLE
        message = _dict(document.get("message"))
        self.model = self.model or _name(message.get("model"))
        if reason := _name(_dict(document.get("delta")).get("stop_reason")):
            self.reasons[0] = reason
        # totals so far, not increments; a later event tells only what has changed
        if usage := _dict(message.get("usage")) or _dict(document.get("usage")):
            self._usage |= {
                key: _count(usage.get(key)) for key in _ANTHROPIC_TOKENS if usage.get(key) is not None
            }
            fresh, written, read, output = (self._usage.get(key, 0) for key in _ANTHROPIC_TOKENS)
            self.usage = Usage(fresh + written + read, output, read)
        return Kind.OPENING if name == "message_start" else Kind.LIFECYCLE


_ANTHROPIC_TOKENS = (
    "input_tokens",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
    "output_tokens",
)

_DIALECTS: dict[str, Callable[[], _Dialect]] = {
    "openai.chat": _Chat,
    "openai.completions": _Chat,
    "openai.responses": _Responses,
    "anthropic.messages": _Messages,
}


# Out of untrusted JSON: a value of the type that was hoped for, or an empty one.


def _parse(text: str) -> dict[str, Any]:
    try:
        return _dict(json.loads(text))
    except (ValueError, RecursionError):
        return {}


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _name(value: Any) -> str | None:
    """A short printable word, fit for events and logs."""
    return value if isinstance(value, str) and 0 < len(value) <= _NAME_BOUND and value.isprintable() else None


def _count(value: Any) -> int:
    return value if type(value) is int and 0 <= value < 1 << 53 else 0


def _usage(told: dict[str, Any], prompt: str, answer: str, details: str) -> Usage:
    cached = _count(_dict(told.get(details)).get("cached_tokens"))
    return Usage(_count(told.get(prompt)), _count(told.get(answer)), cached)
