"""What it costs to parse and to read one MB of a provider's stream, as a ratio to barely touching its bytes.

``copy`` copies each chunk, ``splitlines`` finds its line ends: the least that any reader does. The candidates
take turns, round after round, so that a busy machine slows all of them alike; the medians are compared.
"""

from __future__ import annotations

import gzip
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

from dspex_pipe.wire.sse import Parser
from dspex_pipe.wire.streams import reader_for

ROUNDS = 15
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


def measure(runs: dict[str, Callable[[], object]], megabytes: float) -> dict[str, float]:
    """The median time of each, in ms per MB (10⁶ bytes, not compressed)."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(ROUNDS + 2):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if number >= 2:
                times[name].append((time.perf_counter() - started) * 1e3 / megabytes)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    print("ms per MB, and as a ratio to splitlines")
    for row, (name, make) in enumerate(FORMATS.items()):
        body = body_of(make)
        medians = measure(candidates(name, body), len(body) / 1e6)
        if not row:
            print(f"{'':20}{'events/MB':>10}" + "".join(f"{column:>19}" for column in medians))
        least = medians["splitlines"]
        cells = "".join(f"{f'{t:.2f} ms  {t / least:.1f} x':>19}" for t in medians.values())
        print(f"{name:20}{body.count(b'data: ') * 1e6 / len(body):>10.0f}{cells}")


if __name__ == "__main__":
    main()
