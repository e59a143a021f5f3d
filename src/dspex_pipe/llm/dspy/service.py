"""What an LM and its copies share: the pipeline, its state, and the connections."""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import attrs
from attrs import field, frozen
from dspy.lm15 import ConfigurationError  # pyright: ignore[reportMissingImports]

from ...config import check, one_of, optional, seconds
from ...options import options
from ...pipeline import Pipeline, aclose_steps, close_steps
from ..lifetime import renew_after_fork
from ..pools import Pools

__all__ = ["Service", "Spec", "find"]


def _listed(value: Any) -> Any:
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes) else value


def _refuse_key(_: Any, __: Any, value: Any) -> None:
    if value is not None and not callable(value) and (not isinstance(value, str) or not value):
        # not the value itself: it may be a secret all the same
        given = "an empty string" if value == "" else type(value).__name__
        raise ValueError(f"lm(api_key=…) takes the key, a function that returns it, or None, got {given}")


_name = check("a name", lambda v: isinstance(v, str) and v != "")


@frozen(kw_only=True)
class Spec:
    """What an LM is, besides what `dspy.LM` keeps itself; its arguments are those of `lm`."""

    model: str = field(validator=_name)
    layers: tuple[Any, ...] = field(
        converter=_listed, validator=check("a list of layers", lambda v: isinstance(v, tuple))
    )
    name: str = field(validator=_name)
    api_key: str | Callable[[], str] | None = field(default=None, repr=False, eq=False, validator=_refuse_key)
    api_base: str | None = field(
        default=None,
        validator=optional(
            check(
                "a URL with http:// or https:// and no credentials",
                lambda v: isinstance(v, str) and v.startswith(("http://", "https://")) and "@" not in v,
            )
        ),
    )
    timeout: float = field(default=600.0, validator=seconds())
    model_type: Literal["chat", "responses"] = field(
        default="chat",  # pyright: ignore[reportAssignmentType] # attrs' stub widens it to str
        validator=one_of("chat", "responses"),
    )
    http: Mapping[str, Any] = field(
        factory=dict,
        repr=False,
        eq=False,
        validator=check("a mapping", lambda v: isinstance(v, Mapping)),
    )

    @property
    def url(self) -> str | None:
        """Where the API begins, as dspy takes it; ``None`` for the provider's own address.

        A variable that names a gateway is honoured, or the gateway's key would go to the provider.
        """
        prefix = self.model.partition("/")[0].upper().replace("-", "_")
        if self.api_base is not None:
            return self.api_base
        if url := os.environ.get(f"{prefix}_API_BASE"):
            return url
        url = os.environ.get(f"{prefix}_BASE_URL")
        # the variable is that of the provider's SDK, and Anthropic's adds the version itself
        return f"{url.rstrip('/')}/v1" if url and prefix == "ANTHROPIC" else url

    def __getstate__(self) -> dict[str, Any]:
        """Without the key, and httpx's settings, which may hold one."""
        return {**attrs.asdict(self, recurse=False), "api_key": None, "http": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc] # validated, as at first


class Service:
    """A pipeline and its connections, under the name of an LM.

    Args:
        spec: What it is.

    Raises:
        TypeError: A layer, or a setting for httpx, is none.
    """

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.renew()
        self._pools.check()
        renew_after_fork(self)
        self.number = next(_numbers)
        _services[self.number] = self

    def renew(self) -> None:
        """Begin anew: at first, and in a process that was forked, where what is here is the parent's."""
        self._lock = threading.Lock()
        self.closed = False
        self.pipeline = Pipeline(self.spec.layers)
        self._pools = Pools(self.pipeline, dict(self.spec.http), None)

    def pools(self) -> Pools:
        """The connections.

        Raises:
            ConfigurationError: It was closed.
        """
        if self.closed:
            raise ConfigurationError(f"the LM {self.spec.name!r} was closed: make a new one")
        return self._pools

    def build(self, client: Any, request: Any, given: Mapping[str, Any]) -> Any:
        """The request of httpx for one of dspy's, with these options."""
        given = {"deadline": self.spec.timeout, **given}
        if "sample" not in self.pipeline.known_options:  # there is no cache
            del given["sample"]
        return client.build_request(
            request.method,
            request.url,
            headers=request.headers,
            content=request.body,
            timeout=self.spec.timeout,
            extensions=options(**given),
        )

    def close(self) -> None:
        """Close the connections, but for those of event loops, and what the layers hold."""
        if self._close():
            self._pools.close()
            close_steps(self.pipeline.steps)

    async def aclose(self) -> None:
        """Close the connections, this event loop's too, and what the layers hold."""
        if self._close():
            await self._pools.aclose()
            await aclose_steps(self.pipeline.steps)

    def _close(self) -> bool:
        with self._lock:
            was, self.closed = self.closed, True
        return not was


_numbers = itertools.count()
_services: weakref.WeakValueDictionary[int, Service] = weakref.WeakValueDictionary()


def find(like: Spec | str) -> Service | None:
    """The newest service of this process that is as described, or has this name, if there is one."""
    alive = (ref() for ref in _services.valuerefs())  # a list at once: other threads make services, too
    found = [s for s in alive if s is not None and not s.closed and like in (s.spec, s.spec.name)]
    return max(found, key=lambda service: service.number, default=None)
