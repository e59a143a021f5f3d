"""One log line per call, through the standard library's ``logging``.

Field names in ``extra`` follow OpenTelemetry's HTTP semantic conventions (1.27) where they have one.
Nothing secret is logged: no body, no query value, no userinfo, headers only by name; and nothing from
outside can forge a line: whatever is not printable is escaped.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from ..body import Told, is_buffered, put_stream
from ..config import brief, check
from ..errors import Refused
from ..events import Event, Record, record_of
from ..outcome import STREAM_ERROR

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..chain import Handler
    from ..family import Request, Response
    from ..io import IO

__all__ = ["Logging"]

_LONGEST = 200
_HEADERS = ("request-id", "x-request-id", "retry-after")
_SECRET = frozenset(
    {
        "api-key",
        "authorization",
        "cookie",
        "proxy-authorization",
        "set-cookie",
        "x-api-key",
        "x-goog-api-key",
    }
)


def _names(value: Any) -> Any:
    if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
        return value
    return tuple(v.lower() for v in value)


@frozen(kw_only=True, repr=False)
class Logging:
    """Log each call: INFO when it went well, WARNING when it failed, DEBUG for each step inside.

    The line tells method, host, path, status, seconds until the response's headers (for a response read
    whole: its body, too), attempts, and what each layer did. A stream that begins with an error has failed,
    where a `Retry` or a `Breaker` looks at its beginning; one that breaks off later is a WARNING of its own.
    It belongs outermost, where it sees all.

    Args:
        logger: The logger, or its name.
        headers: Names of response headers to add; credentials are refused.
    """

    logger: str | logging.Logger = field(
        default="dspex_pipe",
        validator=check("a logger or its name", lambda v: isinstance(v, str | logging.Logger)),
    )
    headers: tuple[str, ...] = field(
        default=_HEADERS,
        converter=_names,
        validator=check(
            "a list of header names, none of them a credential",
            lambda v: (
                isinstance(v, tuple)
                and all(isinstance(name, str) for name in v)
                and not _SECRET.intersection(v)
            ),
        ),
    )

    __repr__ = brief

    def build(self) -> LoggingMiddleware:
        """The running layer."""
        return LoggingMiddleware(self)


_PORTS = {"http": 80, "https": 443}


def safe(text: str) -> str:
    """Text from outside, on one line: not printable is escaped, and long is cut at 200 characters."""
    clean = text
    if not text.isprintable():
        clean = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return clean if len(clean) <= _LONGEST else clean[:_LONGEST] + "…"


def story(events: list[Event]) -> str:
    """What each layer did, in order."""
    return "; ".join([f"{e.layer} {e.decision}{f' ({safe(e.reason)})' if e.reason else ''}" for e in events])


def _named(exc: Exception) -> str:
    """Only the type: a protocol error's text may quote what the server sent; a refusal's is ours."""
    name = type(exc).__name__
    return f"{name} ({safe(exc.reason)})" if isinstance(exc, Refused) else name


class LoggingMiddleware:
    """The running layer."""

    def __init__(self, config: Logging) -> None:
        name = config.logger
        self.logger = logging.getLogger(name) if isinstance(name, str) else name
        self._shown_as = {name.encode(): f"http.response.header.{name}" for name in config.headers}

    async def __call__(self, request: Request, call_next: Handler, io: IO) -> Response:
        record, started = record_of(request), io.now()
        watching = self.logger.isEnabledFor(logging.DEBUG)
        if watching:
            record.watchers.append(self._step)
        try:
            response = await call_next(request)
        except Exception as exc:
            self._call(logging.WARNING, request, record, io.now() - started, _named(exc), exc)
            raise
        except BaseException as exc:  # cancelled, or the program is ending: nobody's failure
            self._call(logging.INFO, request, record, io.now() - started, "cancelled", exc)
            raise
        finally:
            if watching:
                record.watchers.remove(self._step)
        status, failed = str(response.status_code), response.is_error
        if STREAM_ERROR in response.extensions:
            status, failed = f"{status}, an error in the beginning of its stream", True
        level = logging.WARNING if failed else logging.INFO
        self._call(level, request, record, io.now() - started, status, response)
        if not is_buffered(response):
            # no closure, whose cells every call would hold
            tell = partial(self._broke_off, request, record, io, started, status)
            put_stream(response, Told(response.stream, tell))
        return response

    def _broke_off(
        self, request: Request, record: Record, io: IO, started: float, status: str, exc: Exception
    ) -> None:
        result = f"{status}, broken off by {_named(exc)}"
        self._call(logging.WARNING, request, record, io.now() - started, result, exc)

    def _fields(self, outcome: Response | BaseException) -> Mapping[str, Any]:
        if isinstance(outcome, BaseException):
            return {"error.type": type(outcome).__name__}
        return {"http.response.status_code": outcome.status_code, **self._shown(outcome)}

    def _shown(self, response: Response) -> Mapping[str, str]:
        """The headers to show, in one pass: httpx searches the whole list for each."""
        shown: dict[str, str] = {}
        for raw, value in response.headers.raw:
            name = self._shown_as.get(raw.lower())
            if name is not None:
                text = value.decode("utf-8", "backslashreplace")
                shown[name] = safe(f"{shown[name]}, {text}" if name in shown else text)
        return shown

    def _call(
        self,
        level: int,
        request: Request,
        record: Record,
        seconds: float,
        result: str,
        outcome: Response | BaseException,
    ) -> None:
        if not self.logger.isEnabledFor(level):
            return
        url = request.url
        host, port, path = safe(url.host), url.port, safe(url.path)
        decisions = [event for event in record.events if event.layer != "transport"]
        wire = [event.decision for event in record.events if event.layer == "transport"]
        attempts = len(wire) - wire.count("broke off")  # which is the end of what was an attempt already
        did = story(decisions)
        self.logger.log(
            level,
            "%s %s%s -> %s in %.3f s, %d attempt%s%s",
            safe(request.method),
            host if port is None else safe(url.netloc.decode("ascii")),
            path,
            result,
            seconds,
            attempts,
            "" if attempts == 1 else "s",
            f": {did}" if did else "",
            extra={
                "http.request.method": safe(request.method),
                "server.address": host,
                "server.port": _PORTS.get(url.scheme) if port is None else port,
                "url.path": path,
                "http.client.request.duration": seconds,
                "http.request.resend_count": max(0, attempts - 1),
                "dspex.call": record.call,
                "dspex.layers": did,
                **self._fields(outcome),
            },
        )

    def _step(self, event: Event) -> None:
        self.logger.debug(
            "call %d: %s %s%s (%.3f s, at %.3f s)",
            event.call,
            event.layer,
            event.decision,
            f" {safe(event.reason)}" if event.reason else "",
            event.seconds,
            event.at,
            extra={"dspex.call": event.call},
        )
