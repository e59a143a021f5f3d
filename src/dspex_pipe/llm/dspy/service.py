"""What an LM and its copies share: the pipeline, its state, and the connections."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal
from uuid import uuid4

import attrs
from attrs import field, frozen

from ...config import check, one_of, seconds
from ...options import options
from ...pipeline import Pipeline, aclose_steps, close_steps
from ..config import a_key, a_name, a_url, for_httpx, listed
from ..lifetime import renew_after_fork
from ..pools import Pools

__all__ = ["Service", "Spec", "find", "revive"]

# dspy's own transport waits as long
_CONNECT = 10.0


@frozen(kw_only=True)
class Spec:
    """What an LM is, besides what `dspy.LM` keeps itself; its arguments are those of `lm`."""

    _called: ClassVar[str] = "lm"

    model: str = field(validator=a_name)
    layers: tuple[Any, ...] = field(
        converter=listed, validator=check("a list of layers", lambda v: isinstance(v, tuple))
    )
    name: str = field(validator=a_name)
    api_key: str | Callable[[], str] | None = field(default=None, repr=False, eq=False, validator=a_key)
    api_base: str | None = field(default=None, validator=a_url)
    timeout: float = field(default=600.0, validator=seconds())
    model_type: Literal["chat", "responses"] = field(
        default="chat",  # pyright: ignore[reportAssignmentType] # attrs' stub widens it to str
        validator=one_of("chat", "responses"),
    )
    http: Mapping[str, Any] = field(factory=dict, repr=False, eq=False, validator=for_httpx)
    identity: str = field(factory=lambda: uuid4().hex, repr=False, eq=False)
    """What a pickle is known by: two that look the same may have different keys."""

    def like(self, other: Spec) -> bool:
        """Whether an LM of the one does as good as one of the other, key and all."""
        return (self, self.api_key, self.http) == (other, other.api_key, other.http)

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
        self.closed = False
        self._lock = threading.Lock()
        self._open()
        self.pools.check()
        renew_after_fork(self)
        self.number = next(_numbers)
        _services[self.number] = self

    def _open(self) -> None:
        self.pipeline = Pipeline(self.spec.layers)
        self.pools = Pools(self.pipeline, dict(self.spec.http), None)
        # who forgets to close it leaves no socket to the garbage collector, which would warn
        self._finalizer = weakref.finalize(self, self.pools.close)

    def renew(self) -> None:
        """Begin anew in a process that was forked: what is here is the parent's, its sockets and locks."""
        self._lock = threading.Lock()
        self._finalizer.detach()
        if not self.closed:
            self._open()

    def build(self, client: Any, request: Any, given: Mapping[str, Any]) -> Any:
        """The request of httpx for one of dspy's, with these options."""
        timeout = self.spec.timeout
        given = {"deadline": timeout, **given}
        if "sample" not in self.pipeline.known_options:  # there is no cache
            del given["sample"]
        return client.build_request(
            request.method,
            request.url,
            headers=request.headers,
            content=request.body,
            timeout=(min(_CONNECT, timeout), timeout, timeout, timeout),
            extensions=options(**given),
        )

    def close(self) -> None:
        """Close the connections, but for those of event loops, and what the layers hold."""
        self.pools.close()
        if self._close():
            close_steps(self.pipeline.steps)

    async def aclose(self) -> None:
        """Close the connections, this event loop's too, and what the layers hold."""
        await self.pools.aclose()
        if self._close():
            await aclose_steps(self.pipeline.steps)

    def _close(self) -> bool:
        with self._lock:
            was, self.closed = self.closed, True
        return not was


_numbers = itertools.count()
_services: weakref.WeakValueDictionary[int, Service] = weakref.WeakValueDictionary()
# those that came in a pickle: nobody else holds them from one task of a worker to the next
_revived: OrderedDict[str, Service] = OrderedDict()
_MOST_REVIVED = 64


def _open_services() -> list[Service]:
    alive = (ref() for ref in _services.valuerefs())  # a list at once: other threads make services, too
    return sorted((s for s in alive if s is not None and not s.closed), key=lambda s: s.number)


def revive(spec: Spec) -> Service:
    """The service that was pickled, if it is of this process; or else a new one, kept for the next time."""
    for service in _open_services():
        if service.spec.identity == spec.identity:
            return service
    service = _revived[spec.identity] = Service(spec)
    while len(_revived) > _MOST_REVIVED:
        _revived.popitem(last=False)
    return service


def find(name: str, model_type: str) -> Service:
    """The service of this name, for a program that was saved with it.

    Raises:
        LookupError: There is none, or there are several that differ.
    """
    found = [s for s in _open_services() if (s.spec.name, s.spec.model_type) == (name, model_type)]
    what = f"this program was saved with an LM named {name!r}, model_type={model_type!r}"
    if not found:
        raise LookupError(
            f"{what}, which is not here: make it with lm(…, name={name!r}) before the program is loaded, and "
            "keep it"
        )
    if not all(service.spec.like(found[-1].spec) for service in found):
        raise LookupError(f"{what}, and several here have that name: give each lm(…, name=…) one of its own")
    return found[-1]
