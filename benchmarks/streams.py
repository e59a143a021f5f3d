"""What it costs to parse and to read one MB of a provider's stream, as a ratio to barely touching its bytes.

``copy`` copies each chunk, ``splitlines`` finds its line ends: the least that any reader does.
"""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from dspex_pipe.wire.sse import Parser
from dspex_pipe.wire.streams import reader_for

from .measure import Block, Samples, Tick, interleave

__all__ = ["FORMATS", "measure"]

CHUNK = 2048
SIZE = 1_000_000
SSE = {"content-type": "text/event-stream"}


def _chat(number: int) -> str:
    choice = {"index": 0, "delta": {"content": f" word{number}"}, "logprobs": None, "finish_reason": None}
    document = {"id": "chatcmpl-123", "object": "chat.completion.chunk", "created": 1, "model": "gpt-5"}
    return _event("", {**document, "choices": [choice], "obfuscation": "x" * (1 + number % 16)})


def _completions(number: int) -> str:
    choice = {"index": 0, "text": f" word{number}", "logprobs": None, "finish_reason": None}
    return _event("", {"id": "cmpl-1", "object": "text_completion", "model": "m", "choices": [choice]})


def _responses(number: int) -> str:
    name = "response.output_text.delta"
    place = {"item_id": "msg_123", "output_index": 0, "content_index": 0, "sequence_number": number}
    return _event(name, {"type": name, **place, "delta": f" word{number}", "logprobs": []})


def _messages(number: int) -> str:
    name = "content_block_delta"
    delta = {"type": "text_delta", "text": f" word{number}"}
    return _event(name, {"type": name, "index": 0, "delta": delta})


def _event(name: str, document: dict[str, Any]) -> str:
    return (f"event: {name}\n" if name else "") + f"data: {json.dumps(document, separators=(',', ':'))}\n\n"


FORMATS: dict[str, Callable[[int], str]] = {
    "openai.chat": _chat,
    "openai.completions": _completions,
    "openai.responses": _responses,
    "anthropic.messages": _messages,
}


def body_of(make: Callable[[int], str]) -> bytes:
    """A little over 1 MB of content events."""
    parts, size, number = [], 0, 0
    while size < SIZE:
        parts.append(make(number).encode())
        size += len(parts[-1])
        number += 1
    return b"".join(parts)


def candidates(name: str, body: bytes) -> dict[str, Callable[[], object]]:
    chunks = [body[i : i + CHUNK] for i in range(0, len(body), CHUNK)]
    packed = gzip.compress(body)
    small = [packed[i : i + 128] for i in range(0, len(packed), 128)]

    def parse() -> None:
        parser = Parser()
        for chunk in chunks:
            parser.feed(chunk)

    def read() -> None:
        reader = reader_for(name, SSE)
        for chunk in chunks:
            reader.feed(chunk)

    def read_packed() -> None:
        reader = reader_for(name, {**SSE, "content-encoding": "gzip"})
        for chunk in small:
            reader.feed(chunk)

    return {
        "copy": lambda: [bytearray(chunk) for chunk in chunks],
        "splitlines": lambda: [chunk.splitlines() for chunk in chunks],
        "parse": parse,
        "read": read,
        "read gzip": read_packed,
    }


def measure(*, rounds: int, tick: Tick | None = None) -> Iterator[tuple[str, Samples]]:
    """By format: the seconds per MB (10⁶ bytes, not compressed) of each candidate."""
    for name, make in FORMATS.items():
        body = body_of(make)
        megabytes = len(body) / 1e6
        blocks = {one: _block(run, megabytes) for one, run in candidates(name, body).items()}
        yield name, interleave(blocks, rounds=rounds, calls=1, tick=tick)


def _block(run: Callable[[], object], megabytes: float) -> Block:
    def block(calls: int) -> float:
        started = time.perf_counter()
        for _ in range(calls):
            run()
        return (time.perf_counter() - started) / megabytes

    return block
