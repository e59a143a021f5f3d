"""The other end of the wire: what answers a call, from nothing at all to a server on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

__all__ = ["ANSWER", "HEADERS", "LOCAL", "loopback", "mock", "module", "null", "serve"]

LOCAL = "http://llm.test"

ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "Hello!"}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 60, "completion_tokens": 2, "total_tokens": 62},
    }
).encode()
"""What every wire answers."""

HEADERS = [("content-type", "application/json"), ("cache-control", "max-age=3600"), ("x-request-id", "r-1")]


def null(http: Any) -> Any:
    """A transport that does as little as a transport can: it makes a response."""

    class Null(http.BaseTransport, http.AsyncBaseTransport):  # type: ignore[misc]
        def handle_request(self, request: Any) -> Any:
            return http.Response(200, headers=HEADERS, content=ANSWER)

        async def handle_async_request(self, request: Any) -> Any:
            return http.Response(200, headers=HEADERS, content=ANSWER)

    return Null()


def mock(http: Any) -> Any:
    """The MockTransport of the library itself."""
    return http.MockTransport(lambda _: http.Response(200, headers=HEADERS, content=ANSWER))


def module(name: str) -> ModuleType | str:
    """A package by its name; or why it cannot be had."""
    try:
        return importlib.import_module(name)
    except Exception as exc:  # noqa: BLE001 - whatever keeps it from being imported is told
        return f"{type(exc).__name__}: {exc}"


class _Server(asyncio.Protocol):
    """The least that is an HTTP/1.1 server: it looks for the end of each request, and answers the same."""

    def __init__(self) -> None:
        self._received = b""
        lines = [f"{name}: {value}" for name, value in HEADERS]
        head = "\r\n".join(["HTTP/1.1 200 OK", *lines, f"content-length: {len(ANSWER)}", "", ""])
        self._answer = head.encode() + ANSWER

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            head = self._received[:end].lower()
            _, _, told = head.partition(b"content-length:")
            length = int(told.split(b"\r\n", 1)[0] or 0)
            if len(self._received) < end + 4 + length:
                return
            self._received = self._received[end + 4 + length :]
            self._transport.write(self._answer)


async def serve() -> None:
    """Serve on a free port of the loopback, tell it on stdout, and end with stdin."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Server, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


@contextlib.contextmanager
def loopback() -> Iterator[str]:
    """A server in a process of its own, which shares no interpreter lock with the clients: its URL."""
    with subprocess.Popen(  # noqa: S603 - ourselves
        [sys.executable, "-m", f"{__package__}.wires"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        if process.stdin is None or process.stdout is None:
            raise AssertionError("unreachable: both are pipes")
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.stdin.close()


if __name__ == "__main__":
    asyncio.run(serve())
