"""The connections of a client: one pool for blocking calls, and one for each event loop."""

from __future__ import annotations

import threading
from typing import Any

from ..family import create_ssl_context
from ..io import ASYNC, BLOCKING, IO, PerLoop
from ..mount import Kind, new_client
from ..transport import AsyncTransport, Stack, Transport

__all__ = ["Pools", "PoolsClosed"]

# What the user says about TLS, or leaves nothing to say.
_OF_TLS = {"verify", "cert", "trust_env", "transport"}


class PoolsClosed(RuntimeError):
    """A call came too late: the connections were closed."""


class Pools:
    """httpx clients that lead through one stack, made when they are first needed.

    Args:
        stack: The stack.
        http: What httpx's clients take besides.
        io: Time and waiting; ``None`` for the real ones.
    """

    def __init__(self, stack: Stack, http: dict[str, Any], io: IO | None) -> None:
        self._stack = stack
        self._http = http
        self._io = io
        self._lock = threading.Lock()
        self._closed = False
        self._ssl: Any = None
        self._blocking: Any = None
        self._virtual: Any = None
        self._per_loop: PerLoop[Any] = PerLoop(
            lambda: self._make(AsyncTransport, ASYNC), lambda client: client.aclose()
        )

    def check(self) -> None:
        """Make a client, so that a setting that httpx does not take is told now.

        A transport of the user's may fit only one of the two modes: then there is nothing to check.

        Raises:
            TypeError: There is such a setting.
        """
        if not {"transport", "mounts"} & self._http.keys():
            self.blocking()

    def blocking(self) -> Any:
        """The client for blocking calls, from any thread.

        Raises:
            PoolsClosed: They were closed.
        """
        with self._lock:
            self._check_open()
            self._blocking = self._blocking or self._make(Transport, BLOCKING)
            return self._blocking

    async def asynchronous(self) -> Any:
        """The client for the event loop that runs here.

        Raises:
            PoolsClosed: They were closed.
        """
        self._check_open()
        if self._io is None:
            return await self._per_loop.get()
        with self._lock:  # a test's clock may need no loop
            self._virtual = self._virtual or self._make(AsyncTransport, ASYNC)
            return self._virtual

    def _check_open(self) -> None:
        if self._closed:
            raise PoolsClosed("the connections were closed")

    def _make(self, kind: Kind, real: IO) -> Any:
        kwargs = dict(self._http)
        module = kwargs.pop("http", None)
        if not _OF_TLS & kwargs.keys():
            # making one takes tens of milliseconds: one serves all clients
            self._ssl = self._ssl or create_ssl_context(module)
            kwargs["verify"] = self._ssl
        return new_client(
            kind,
            self._stack,
            http=module,
            transport=kwargs.pop("transport", None),
            refusals="raise",
            io=self._io or real,
            client_kwargs=kwargs,
        )

    def close(self) -> None:
        """Close the blocking pool; that of an event loop closes when its loop ends."""
        with self._lock:
            self._closed = True
            client, self._blocking = self._blocking, None
        if client is not None:
            client.close()

    async def aclose(self) -> None:
        """Close the blocking pool, and that of this event loop."""
        self.close()
        await self._per_loop.aclose()
