"""How a client is: its crashes, how many of them are too many, and who is told.

The rule is Erlang's restart intensity: a supervised part that crashes is restarted, but more than so many
times in so many seconds means that restarting does not help, and it is left down for a while.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from attrs import frozen

__all__ = ["ClientEvent", "Health", "Intensity", "OnClientEvent", "Restarts"]

_logger = logging.getLogger("dspex_pipe.llm")

What: TypeAlias = Literal["started", "crashed", "restarted", "down", "stopped"]


@frozen
class ClientEvent:
    """One thing that happened to a client.

    Args:
        client: Its name.
        what: ``started``, ``crashed``, ``restarted``, ``down`` or ``stopped``.
        reason: Why, safe to log.
        at: When, in seconds on the clock of the supervisor.
    """

    client: str
    what: What
    reason: str
    at: float


OnClientEvent: TypeAlias = Callable[[ClientEvent], object]


@frozen
class Restarts:
    """How many crashes are too many, and how long the client then rests.

    Args:
        limit: Restarts within the window.
        window: Seconds.
        rest: Seconds that it is down at first; twice as long each time …
        rest_max: … up to this, until it has not crashed for so long.
    """

    limit: int
    window: float
    rest: float
    rest_max: float


class Intensity:
    """The pure core: counts crashes; its owner holds a lock."""

    def __init__(self, rule: Restarts) -> None:
        self._rule = rule
        self._crashes: deque[float] = deque()
        self._rests = 0
        self.down_until: float | None = None

    def crash(self, now: float) -> bool:
        """Count a crash; whether to restart, and not to lie down."""
        rule = self._rule
        if self._crashes and now - self._crashes[-1] > rule.rest_max:
            self._rests = 0
        while self._crashes and now - self._crashes[0] >= rule.window:
            self._crashes.popleft()
        self._crashes.append(now)
        if len(self._crashes) <= rule.limit:
            return True
        self.down_until = now + min(rule.rest_max, rule.rest * 2.0 ** min(self._rests, 64))
        self._rests += 1
        self._crashes.clear()
        self._crashes.append(now)
        return False

    def down_for(self, now: float) -> float | None:
        """Seconds that it still rests; ``None`` when it is up."""
        if self.down_until is not None and now >= self.down_until:
            self.down_until = None
        return None if self.down_until is None else self.down_until - now


class Health:
    """The health of one client.

    Args:
        name: The client's name.
        rule: When it goes down.
        now: The clock, in seconds.
        on_event: Who is told; what it raises is logged and goes no further.
    """

    def __init__(
        self, name: str, rule: Restarts, now: Callable[[], float], on_event: OnClientEvent | None = None
    ) -> None:
        self.name = name
        self._now = now
        self._on_event = on_event
        self._lock = threading.Lock()
        self._intensity = Intensity(rule)
        self._crashes = self._restarts = self._failures = 0
        self.reason = ""
        """What crashed it last."""
        self.stopped = False

    def renew(self) -> None:
        """Begin anew in a process that was forked: another thread may have held the lock."""
        self._lock = threading.Lock()

    @property
    def state(self) -> str:
        """``up``, ``down`` or ``stopped``."""
        return "stopped" if self.stopped else "up" if self.down_for() is None else "down"

    def down_for(self) -> float | None:
        """Seconds that it still rests; ``None`` when it does not."""
        with self._lock:
            return self._intensity.down_for(self._now())

    def crashed(self, error: BaseException, *, restarted: bool = True) -> None:
        """Count a crash, and lie down if it is one too many.

        Args:
            error: What happened.
            restarted: Whether anything begins anew.
        """
        reason = type(error).__name__
        with self._lock:
            self._crashes += 1
            self.reason = reason
            up = self._intensity.down_for(self._now()) is None and self._intensity.crash(self._now())
            self._restarts += up and restarted
        self.tell("crashed", reason)
        if restarted or not up:
            self.tell("restarted" if up else "down", reason)

    def failed(self, what: str) -> None:
        """Log a call that failed as calls do; it is no crash."""
        with self._lock:
            self._failures += 1
        _logger.warning("client %s: %s", self.name, what)

    def tell(self, what: What, reason: str = "") -> None:
        """Tell an event, and log it."""
        level = logging.WARNING if what in {"down", "crashed"} else logging.INFO
        _logger.log(level, "client %s %s%s", self.name, what, f": {reason}" if reason else "")
        if self._on_event is not None:
            try:
                self._on_event(ClientEvent(self.name, what, reason, self._now()))
            except Exception:  # an observer must never change what happens to the client
                _logger.exception("an on_event callback failed")

    def snapshot(self) -> dict[str, Any]:
        """Its state, and its crashes, restarts and failed calls so far; safe for JSON."""
        with self._lock:
            counts = {"crashes": self._crashes, "restarts": self._restarts, "failures": self._failures}
        return {"state": self.state, "reason": self.reason, "down_for": self.down_for(), **counts}
