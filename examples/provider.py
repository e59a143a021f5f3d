"""A local LLM provider that misbehaves on request: OpenAI's and Anthropic's formats on a real socket.

The model's name selects the fault: ``ok`` never fails, ``503x2`` answers 503 to the first two attempts at
each prompt, ``drop`` hangs up on every one. ``weather`` picks a fault for each prompt, always the same one.

    503 500 529 408     that status, with the provider's error body
    429                 a rate limit, with retry-after-ms
    quota               a 429 that no waiting lifts
    drop                the connection closes without an answer
    truncate            the answer breaks off in its middle
    slow                the answer takes 0.3 s
    html                a gateway's 502 page
    storm               a 429 while more than `storm_rate` calls a second come in, until the second is over

What only streams do; other answers are whole then:

    busy                a 200 whose first event says that the provider is overloaded
    midway              the same, behind the first content
    cut                 the stream ends behind the first content, without a word
    torn                the connection closes there
    stall               `slow` seconds of silence before the first event

``streams`` picks one of these for some prompts, as ``weather`` does.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import sys
import threading
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

_MODEL = re.compile(r"(?P<fault>[a-z]+|\d{3})(?:x(?P<times>\d+))?")
_STREAM_FAULTS = ("ok", "busy", "midway", "cut", "torn", "stall")
# Of 24 prompts, 19 meet fair weather.
_WEATHER = ("ok",) * 19 + ("503x1", "429x1", "dropx1", "truncatex1", "slowx1")
# Of 12 streamed prompts, 8 meet fair weather.
_STREAMS = ("ok",) * 8 + ("busyx1", "busyx1", "stall", "cutx1")
_FORMATS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completion",
    "/v1/embeddings": "embedding",
    "/v1/responses": "response",
    "/v1/messages": "message",
}


@dataclass
class Seen:
    """One request, as the server saw it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    fault: str = "ok"


@dataclass
class Provider:
    """The server; a context manager.

    Args:
        slow: Seconds that a slow answer takes.
        retry_after_ms: What a 429 tells the client.
        storm_rate: Calls of the model ``storm`` that are answered in a second; the others get a 429.
        text: What it answers, whatever the question.
    """

    slow: float = 0.3
    retry_after_ms: int = 20
    storm_rate: int = 20
    text: str = "Forty-two."
    seen: list[Seen] = field(default_factory=list)
    connections: int = 0

    def __post_init__(self) -> None:
        self._attempts: Counter[tuple[str, str]] = Counter()
        self._second, self._in_second = 0, 0
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._gone = threading.Condition(self._lock)
        provider = self

        class Bound(_Handler):
            pass

        Bound.provider = provider
        self._server = _Server(("127.0.0.1", 0), Bound)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def url(self) -> str:
        """Where it listens: ``http://127.0.0.1:port``."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def calls(self) -> int:
        """How many requests came."""
        return len(self.seen)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        with self._lock:
            for connection in self._sockets:
                _hang_up(connection)
        self._server.server_close()  # waits for the threads of all connections

    def opened(self, connection: socket.socket) -> None:
        """Count a connection."""
        with self._lock:
            self.connections += 1
            self._sockets.add(connection)

    def closed(self, connection: socket.socket) -> None:
        """Forget a connection."""
        with self._gone:
            self._sockets.discard(connection)
            self._gone.notify_all()

    def wait_until_left(self, seconds: float) -> bool:
        """Wait until no connection is open, for so many seconds at most; whether that is so."""
        with self._gone:
            return self._gone.wait_for(lambda: not self._sockets, seconds)

    def fault_for(self, model: str, prompt: str) -> str:
        """The fault for this attempt at a prompt."""
        if model == "storm":
            return self._storm()
        plans = {"weather": _WEATHER, "streams": _STREAMS}.get(model, (model,))
        match = _MODEL.fullmatch(plans[zlib.crc32(prompt.encode()) % len(plans)])
        if match is None:
            return "ok"
        with self._lock:
            self._attempts[model, prompt] += 1
            attempt = self._attempts[model, prompt]
        times = match["times"]
        return match["fault"] if times is None or attempt <= int(times) else "ok"

    def _storm(self) -> str:
        """Answer so many in each second; tell the others how long it still lasts."""
        now = time.time()
        with self._lock:
            if int(now) != self._second:
                self._second, self._in_second = int(now), 0
            self._in_second += 1
            if self._in_second <= self.storm_rate:
                return "ok"
            self.retry_after_ms = int((1 - now % 1) * 1000) + 1
        return "429"


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # clients hang up all the time here
            super().handle_error(request, client_address)


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the other side may have been faster
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    provider: Provider
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.provider.opened(self.connection)

    def finish(self) -> None:
        self.provider.closed(self.connection)
        super().finish()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Say nothing."""

    def do_GET(self) -> None:
        seen = self._note()
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if url.path == "/echo":
            self._send(200, json.dumps({"headers": seen.headers}).encode())
        elif url.path == "/redirect":
            self._send(307, b"", {"location": query["to"]})
        elif url.path == "/status":
            seen.fault = self.provider.fault_for(query["fault"], query.get("prompt", ""))
            self._fault(seen.fault, b'{"ok": true}')
        elif url.path == "/watch":
            self._watch()
        else:
            self._send(404, b'{"error": {"message": "no such page"}}')

    do_PUT = do_DELETE = do_GET  # noqa: N815 - the base class's naming

    def do_POST(self) -> None:
        seen = self._note()
        kind = _FORMATS.get(urlsplit(self.path).path)
        if kind is None:
            self.do_plain_post(seen)
            return
        body, text = json.loads(seen.body), self.provider.text
        prompt = json.dumps(body.get("messages") or body.get("input") or body.get("prompt"))
        seen.fault = self.provider.fault_for(body["model"], prompt)
        if body.get("stream") and seen.fault in _STREAM_FAULTS:
            self._stream(_faulty(_events(kind, body["model"], text), text, seen.fault, kind), seen.fault)
        else:
            self._fault(seen.fault, json.dumps(_answer(kind, body["model"], text)).encode())

    def do_plain_post(self, seen: Seen) -> None:
        """A POST that is no LLM call: an order, which must not be placed twice."""
        query = parse_qs(urlsplit(self.path).query)
        seen.fault = self.provider.fault_for(query.get("fault", ["ok"])[0], seen.body.decode("latin-1"))
        self._fault(seen.fault, b'{"ordered": true}')

    def _note(self) -> Seen:
        length = int(self.headers.get("content-length", 0))
        if self.headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(length)
            if len(body) < length:
                raise ConnectionError("the client left in the middle of its request")
        headers = {name.lower(): value for name, value in self.headers.items()}
        seen = Seen(self.command, self.path, headers, body)
        self.provider.seen.append(seen)
        return seen

    def _fault(self, fault: str, body: bytes) -> None:
        match fault:
            case "drop":
                self.close_connection = True
                _hang_up(self.connection)
            case "truncate":
                self.close_connection = True
                self._send(200, body[: len(body) // 2], length=len(body))
                _hang_up(self.connection)
            case "slow":
                time.sleep(self.provider.slow)
                self._send(200, body)
            case "html":
                self._send(502, b"<h1>bad gateway</h1>", {"content-type": "text/html"})
            case "quota":
                self._send(429, _error("insufficient_quota", "You exceeded your current quota."))
            case "429":
                wait = {"retry-after-ms": str(self.provider.retry_after_ms)}
                self._send(429, _error("rate_limit_exceeded", "Slow down."), wait)
            case status if status.isdecimal():
                self._send(int(status), _error("overloaded_error", "Too busy."))
            case _:
                self._send(200, body)

    def _send(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        length: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in {"content-type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body) if length is None else length))
        self._headers_buffer.append(b"\r\n")  # type: ignore[attr-defined] # one write for all of it
        self._headers_buffer.append(body)  # type: ignore[attr-defined]
        self.flush_headers()

    def _stream(self, events: list[bytes], fault: str) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        if fault == "stall":
            time.sleep(self.provider.slow)
        for event in events:
            self._chunk(event)
        if fault == "torn":
            self.close_connection = True
            _hang_up(self.connection)
        else:
            self._chunk(b"")

    def _watch(self) -> None:
        """An endless list of JSON documents, like a Kubernetes watch; it ends when the client leaves."""
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self.close_connection = True
        while True:
            self._chunk(b'{"type": "ADDED"}\n' * 64)

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))


def _error(code: str, message: str) -> bytes:
    error = {"type": code, "code": code, "message": message, "param": None}
    return json.dumps({"type": "error", "error": error}).encode()


TEXT = Provider.text


def _pieces(text: str) -> list[str]:
    return [text[at : at + 6] for at in range(0, len(text), 6)]


def _answer(kind: str, model: str, text: str) -> dict[str, Any]:
    match kind:
        case "chat":
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
            return {
                "id": "c1", "object": "chat.completion", "created": 1, "model": model,
                "choices": [choice], "usage": usage,
            }  # fmt: skip
        case "completion":
            return {
                "id": "c1", "object": "text_completion", "created": 1, "model": model,
                "choices": [{"index": 0, "text": text, "finish_reason": "stop", "logprobs": None}],
            }  # fmt: skip
        case "embedding":
            return {
                "object": "list", "model": model, "usage": {"prompt_tokens": 5, "total_tokens": 5},
                "data": [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}],
            }  # fmt: skip
        case "response":
            part = {"type": "output_text", "text": text, "annotations": []}
            item = {
                "id": "m1", "type": "message", "role": "assistant", "status": "completed", "content": [part],
            }  # fmt: skip
            return {
                "id": "r1", "object": "response", "created_at": 1, "model": model, "status": "completed",
                "output": [item], "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
            }  # fmt: skip
        case _:
            return {
                "id": "m1", "type": "message", "role": "assistant", "model": model,
                "content": [{"type": "text", "text": text}],
                "stop_reason": "end_turn", "stop_sequence": None,
                "usage": {"input_tokens": 5, "output_tokens": 3},
            }  # fmt: skip


def _events(kind: str, model: str, text: str) -> list[bytes]:
    choices: list[dict[str, Any]]
    match kind:
        case "message":
            start = {**_answer(kind, model, text), "content": [], "stop_reason": None}
            return _named(
                {"type": "message_start", "message": start},
                {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
                {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}},
                {"type": "content_block_stop", "index": 0},
                {
                    "type": "message_delta",
                    "delta": {"stop_reason": "end_turn", "stop_sequence": None},
                    "usage": {"output_tokens": 3},
                },
                {"type": "message_stop"},
            )
        case "response":
            whole = _answer(kind, model, text)
            begun = {**whole, "status": "in_progress", "output": []}
            delta = {"item_id": "m1", "output_index": 0, "content_index": 0, "delta": text, "logprobs": []}
            return _named(
                {"type": "response.created", "sequence_number": 0, "response": begun},
                {"type": "response.output_text.delta", "sequence_number": 1, **delta},
                {"type": "response.completed", "sequence_number": 2, "response": whole},
            )
        case "completion":
            base = {"id": "c1", "object": "text_completion", "created": 1, "model": model}
            texts = [*((piece, None) for piece in _pieces(text)), ("", "stop")]
            choices = [{"index": 0, "text": piece, "finish_reason": reason} for piece, reason in texts]
        case _:
            base = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": model}
            first, *rest = _pieces(text)
            deltas: list[tuple[dict[str, str], str | None]] = [
                ({"role": "assistant", "content": first}, None),
                *(({"content": piece}, None) for piece in rest),
                ({}, "stop"),
            ]
            choices = [{"index": 0, "delta": delta, "finish_reason": reason} for delta, reason in deltas]
    chunks = [{**base, "choices": [choice]} for choice in choices]
    return [*(f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks), b"data: [DONE]\n\n"]


def _named(*events: dict[str, Any]) -> list[bytes]:
    return [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events]


def _faulty(events: list[bytes], text: str, fault: str, kind: str) -> list[bytes]:
    first = json.dumps(_pieces(text)[0])[1:-1].encode()
    content = next(at for at, event in enumerate(events) if first in event) + 1
    match fault:
        case "busy":
            return [_error_event(kind)]
        case "midway":
            return [*events[:content], _error_event(kind)]
        case "cut" | "torn":
            return events[:content]
        case _:
            return events


def _error_event(kind: str) -> bytes:
    error: dict[str, Any] = {"type": "overloaded_error", "message": "Too busy."}
    if kind == "message":
        return _named({"type": "error", "error": error})[0]
    if kind == "response":
        return _named(
            {
                "type": "error",
                "code": "server_is_overloaded",
                "message": "Too busy.",
                "param": None,
                "sequence_number": 9,
            }
        )[0]
    return f"data: {json.dumps({'error': {**error, 'code': None, 'param': None}})}\n\n".encode()
