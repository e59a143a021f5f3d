"""Named clients, and who owns them: started and stopped by name, restarted when they crash."""

from __future__ import annotations

import threading
from contextlib import AsyncExitStack, ExitStack
from typing import Any, Self

from attrs import define, field

from ..config import check, optional, seconds, whole
from ..io import BLOCKING, IO
from .client import Client
from .completion import Completion
from .config import ClientConfig
from .formats import Messages
from .health import Health, OnClientEvent, Restarts
from .lifetime import renew_after_fork
from .streams import AsyncStream, Stream

__all__ = [
    "Supervisor",
    "arequest",
    "astream",
    "get_client",
    "request",
    "revive",
    "start_client",
    "status",
    "stop_client",
    "stream",
]

_REST_MAX = 60.0


@define(kw_only=True, eq=False, repr=False)
class Supervisor:
    """Owns clients; a context manager, blocking and async, that stops them all at its end.

    A client that crashes, by a bug in a layer or an answer that is no JSON, gives its caller the error, and
    what went wrong is restarted clean; what protects (breakers, budgets, rates) and what is sound (the cache)
    goes on. More than ``max_restarts`` in ``window`` seconds, and it is down for a while. Its neighbours
    notice nothing: they share nothing with it.

    Args:
        max_restarts: Restarts of one client within the window.
        window: Seconds.
        rest: Seconds that a client is down which crashes more often; twice as long each time, up to a minute.
        on_event: Called with every `ClientEvent`, in the thread or task where it happens.
        io: Time and waiting; a test passes ``testing.VirtualIO()``.

    Raises:
        ValueError: A setting takes no such value; the message says what it takes.
    """

    max_restarts: int = field(default=3, validator=whole(0))
    window: float = field(default=5.0, validator=seconds())
    rest: float = field(default=5.0, validator=seconds())
    on_event: OnClientEvent | None = field(
        default=None, validator=optional(check("a function of one event", callable))
    )
    io: IO | None = field(default=None)
    _lock: threading.Lock = field(init=False, factory=threading.Lock)
    _clients: dict[str, Client] = field(init=False, factory=dict)

    def __attrs_post_init__(self) -> None:
        renew_after_fork(self)

    def renew(self) -> None:
        """Begin anew in a process that was forked: another thread may have held the lock."""
        self._lock = threading.Lock()

    def start_client(self, name: str, config: ClientConfig) -> Client:
        """Start a client under a name.

        Raises:
            ValueError: The name is taken, or none.
            TypeError: The config is none, or a layer in it is none.
            LookupError: There is no API key.
        """
        if not isinstance(name, str) or not name or not name.isprintable():
            raise ValueError(f"start_client() takes a name, got {name!r}")
        if not isinstance(config, ClientConfig):
            raise TypeError(f"start_client() takes a ClientConfig, got {type(config).__name__}")
        now = (self.io or BLOCKING).now
        rule = Restarts(self.max_restarts, self.window, self.rest, max(_REST_MAX, self.rest))
        client = Client(name, config, Health(name, rule, now, self.on_event), self.io)
        with self._lock:
            taken = name in self._clients
            if not taken:
                self._clients[name] = client
        if taken:
            client.close()
            raise ValueError(f"a client named {name!r} is running already")
        client.health.tell("started")
        return client

    def get_client(self, name: str) -> Client:
        """The client under a name.

        Raises:
            LookupError: There is none; the message says which there are.
        """
        with self._lock:
            client = self._clients.get(name)
            names = ", ".join(map(repr, sorted(self._clients))) or "none"
        if client is None:
            raise LookupError(f"no client named {name!r} is running; these are: {names}")
        return client

    def stop_client(self, name: str) -> None:
        """Stop a client: it takes no more calls, and closes what it holds.

        Raises:
            LookupError: There is none.
        """
        client = self._take(name)
        client.close()
        self._stopped(client)

    async def astop_client(self, name: str) -> None:
        """Stop a client, and close its connections in this event loop, too."""
        client = self._take(name)
        await client.aclose()
        self._stopped(client)

    def _take(self, name: str) -> Client:
        client = self.get_client(name)
        with self._lock:
            self._clients.pop(name, None)
        return client

    def _take_all(self) -> list[Client]:
        with self._lock:
            clients = list(self._clients.values())
            self._clients.clear()
        return clients

    def _stopped(self, client: Client) -> None:
        client.health.stopped = True
        client.health.tell("stopped")

    def status(self) -> dict[str, dict[str, Any]]:
        """By name: the state of each client, and of its layers; safe for JSON."""
        with self._lock:
            clients = dict(self._clients)
        return {name: {**client.health.snapshot(), **_layers(client)} for name, client in clients.items()}

    def close(self) -> None:
        """Stop all clients; one that fails keeps no other from stopping."""
        with ExitStack() as stack:
            for client in self._take_all():
                stack.callback(self._stopped, client)
                stack.callback(client.close)

    async def aclose(self) -> None:
        """Stop all clients, and close their connections in this event loop, too."""
        async with AsyncExitStack() as stack:
            for client in self._take_all():
                stack.callback(self._stopped, client)
                stack.push_async_callback(client.aclose)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()


def _layers(client: Client) -> dict[str, Any]:
    try:
        return client.pipeline.snapshot()
    except Exception as exc:  # noqa: BLE001 - one bad layer must not hide the other clients
        return {"layers": f"no snapshot: {type(exc).__name__}"}


# The supervisor of this process, for who needs no other.

_supervisor = Supervisor()
_reviving = threading.Lock()
start_client = _supervisor.start_client
get_client = _supervisor.get_client
stop_client = _supervisor.stop_client
status = _supervisor.status


def revive(name: str, config: ClientConfig) -> Client:
    """A client that was pickled: who has its name in this process, or else a new one."""
    with _reviving:  # of two that arrive at once, one starts it
        try:
            return get_client(name)
        except LookupError:
            return start_client(name, config)


def request(name: str, messages: Messages, **options: Any) -> Completion:
    """Ask the client of this name; see `Client.request`."""
    return get_client(name).request(messages, **options)


async def arequest(name: str, messages: Messages, **options: Any) -> Completion:
    """Ask the client of this name, on asyncio or trio; see `Client.request`."""
    return await get_client(name).arequest(messages, **options)


def stream(name: str, messages: Messages, **options: Any) -> Stream:
    """Stream from the client of this name; see `Client.stream`."""
    return get_client(name).stream(messages, **options)


def astream(name: str, messages: Messages, **options: Any) -> AsyncStream:
    """Stream from the client of this name, on asyncio or trio; see `Client.stream`."""
    return get_client(name).astream(messages, **options)
