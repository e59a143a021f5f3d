"""What differs between httpx and httpx2: the only room that knows.

The two share no class, and each client insists on its own ``Response``, byte streams and exceptions.
So whatever we make for a call, we make from the family of the request at hand.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from json import dumps
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from .errors import Refused

if TYPE_CHECKING:
    import httpx

__all__ = [
    "BodySource",
    "Family",
    "HttpModule",
    "Request",
    "Response",
    "content_of",
    "create_ssl_context",
    "family_of",
    "family_of_error",
    "load",
    "named",
    "respond",
    "respond_raw",
    "with_length",
    "wrap_transports",
]

Request: TypeAlias = "httpx.Request"
"""A request; of httpx, or the class of the same shape of httpx2."""
Response: TypeAlias = "httpx.Response"
"""A response; of httpx, or the class of the same shape of httpx2."""

HeaderPairs: TypeAlias = Mapping[str, str] | Iterable[tuple[str, str]]

_NAMES = ("httpx", "httpx2")

ClientT = TypeVar("ClientT", covariant=True)
AsyncClientT = TypeVar("AsyncClientT", covariant=True)


class HttpModule(Protocol[ClientT, AsyncClientT]):
    """The module ``httpx`` or ``httpx2``, as the ``http=`` argument takes it."""

    @property
    def Client(self) -> Callable[..., ClientT]:  # noqa: N802 - httpx's own name
        """The blocking client's class."""
        ...

    @property
    def AsyncClient(self) -> Callable[..., AsyncClientT]:  # noqa: N802 - httpx's own name
        """The async client's class."""
        ...


class BodySource(Protocol):
    """The chunks behind a body that we make: one of the two ways to iterate, one of the two closes."""

    def __iter__(self) -> Iterator[bytes]: ...
    def __aiter__(self) -> AsyncIterator[bytes]: ...

    def close(self) -> None:
        """Let go of what the chunks come from, in blocking mode."""
        ...

    async def aclose(self) -> None:
        """Let go of what the chunks come from, in async mode."""
        ...


class Family:
    """One of the two libraries, and the few classes made from it."""

    def __init__(self, module: ModuleType) -> None:
        self.name = module.__name__
        self.module: Any = module
        self.TransportError: type[Exception] = module.TransportError
        self.TimeoutException: type[Exception] = module.TimeoutException
        self.Body = _body_class(module)
        self._refusals: dict[type[Refused], type[Refused]] = {}

    def refusal(self, refused: Refused, request: Request) -> Refused:
        """Make a refusal an exception of this family, too, in place; its class keeps its name."""
        plain = type(refused)
        if not issubclass(plain, self.TransportError):
            made = self._refusals.get(plain)
            if made is None:
                base = self.TimeoutException if plain.timeout else self.TransportError
                made = type(plain.__name__, (plain, base), {"_dspex_family": self.name})
                made.__module__, made.__doc__ = plain.__module__, plain.__doc__
                self._refusals[plain] = made
            refused.__class__ = made
        refused.request = request  # type: ignore[attr-defined] # what httpx sets on its own
        return refused


def _body_class(module: ModuleType) -> Callable[[BodySource], Any]:
    sync_stream, async_stream = module.SyncByteStream, module.AsyncByteStream

    class Body(sync_stream, async_stream):  # type: ignore[misc,valid-type]
        """A body of this family over chunks that know no family."""

        def __init__(self, source: BodySource) -> None:
            self.source = source

        def __iter__(self) -> Iterator[bytes]:
            return iter(self.source)

        def __aiter__(self) -> AsyncIterator[bytes]:
            return self.source.__aiter__()

        def close(self) -> None:
            self.source.close()

        async def aclose(self) -> None:
            await self.source.aclose()

    return Body


_families: dict[str, Family] = {}
_by_type: dict[type, Family] = {}


def named(module: ModuleType) -> Family:
    """The family of the module ``httpx`` or ``httpx2``.

    Raises:
        TypeError: It is neither.
    """
    name = getattr(module, "__name__", None)
    if not isinstance(module, ModuleType) or name not in _NAMES:
        raise TypeError(f"http= takes the module httpx or httpx2, got {module!r}")
    family = _families.get(name)
    if family is None or family.module is not module:
        family = _families[name] = Family(module)
    return family


def load(name: str = "httpx") -> Family:
    """Import one of the two and return its family."""
    return named(__import__(name))


def create_ssl_context(module: ModuleType | None) -> Any:
    """What a client of httpx, or of this module, makes for itself unless it is told otherwise."""
    family = load() if module is None else named(module)
    return family.module.create_ssl_context()


def family_of(thing: object) -> Family:
    """The family of a request, a response, an exception or a client.

    Raises:
        TypeError: It belongs to neither httpx nor httpx2.
    """
    cls = type(thing)
    family = _by_type.get(cls)
    if family is None:
        for base in cls.__mro__:
            root = base.__module__.partition(".")[0]
            if root in _NAMES and root in sys.modules:
                family = _by_type[cls] = named(sys.modules[root])
                break
        else:
            raise TypeError(f"{cls.__module__}.{cls.__qualname__} is of neither httpx nor httpx2")
    return family


def family_of_error(error: BaseException) -> Family | None:
    """The family of an error of httpx or httpx2; ``None`` for any other."""
    try:
        family = family_of(error)
    except TypeError:
        return None
    return family if isinstance(error, family.module.HTTPError) else None


def content_of(request: Request) -> bytes | None:
    """The whole body of a request, or ``None`` when it is a stream that nobody has read."""
    try:
        return request.content
    except RuntimeError:  # RequestNotRead, in both families
        return None


def wrap_transports(client: Any, wrap: Callable[[Any], Any]) -> None:
    """Put something around every transport of a client: its main one and all of its mounts.

    The one place that touches private names of httpx: ``_transport`` and ``_mounts``. There is no
    public way to keep the proxies, certificates and limits that the client worked out for itself.
    """
    client._transport = wrap(client._transport)
    client._mounts = {
        pattern: None if transport is None else wrap(transport)
        for pattern, transport in client._mounts.items()
    }


def respond(
    request: Request,
    status: int,
    *,
    headers: HeaderPairs | None = None,
    content: bytes = b"",
    json: Any = None,
    extensions: Mapping[str, Any] | None = None,
) -> Response:
    """A complete response for a request, of its own library: how a layer answers without asking on.

    It is made of a stream, not of ``content=``: a response that httpx has read already cannot be streamed by
    the caller.

    Args:
        request: The request to answer.
        status: The HTTP status.
        headers: The response's headers: a mapping, or pairs of name and value. The length is added, and for
            ``json`` the type.
        content: The body, whole and as on the wire; it can be read in every mode.
        json: What the body holds, in the place of ``content``.
        extensions: The response's extensions, ``http_version`` for one.
    """
    if json is not None:
        content = dumps(json).encode()
        given = _pairs(headers)
        is_typed = any(name.lower() == "content-type" for name, _ in given)
        headers = given if is_typed else [("content-type", "application/json"), *given]
    return respond_raw(request, status, with_length(headers, content), content, extensions)


def respond_raw(
    request: Request,
    status: int,
    headers: list[tuple[bytes, bytes]],
    content: bytes,
    extensions: Mapping[str, Any] | None = None,
) -> Response:
    """`respond`, with headers as they are on the wire, the length among them."""
    module = family_of(request).module
    response: Response = module.Response(
        status, headers=headers, stream=module.ByteStream(content), extensions=extensions
    )
    return response


def with_length(headers: HeaderPairs | None, content: bytes) -> list[tuple[bytes, bytes]]:
    """The headers, with the length of the content; an answer to HEAD has no content, and tells a length."""
    pairs = [(name.lower().encode("ascii"), _encoded(value)) for name, value in _pairs(headers)]
    if not content and any(name == b"content-length" for name, _ in pairs):
        return pairs
    kept = [pair for pair in pairs if pair[0] != b"content-length"]
    return [*kept, (b"content-length", str(len(content)).encode("ascii"))]


def _pairs(headers: HeaderPairs | None) -> list[tuple[str, str]]:
    pairs: Any = headers.items() if isinstance(headers, Mapping) else headers or ()
    return list(pairs)


def _encoded(value: str) -> bytes:
    # what came from a wire goes back as it was: HTTP has bytes there, of no known encoding
    try:
        return value.encode("latin-1")
    except UnicodeEncodeError:
        return value.encode("utf-8")
