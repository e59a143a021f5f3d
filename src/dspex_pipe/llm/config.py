"""What a named client is: a model, where it lives, the key to it, and the layers on the way."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import attrs
from attrs import Factory, field, frozen

from .. import presets
from ..config import called, check, one_of, seconds
from ..pipeline import Pipeline

if TYPE_CHECKING:
    from ..pipeline import LayerLike

__all__ = ["ClientConfig", "Env", "Wire", "a_key", "a_name", "a_url", "for_httpx", "is_plain_url", "listed"]

Wire: TypeAlias = Literal["openai", "responses", "anthropic"]

# The address of each provider, and what the variables of its SDK begin with.
_HOMES = {
    "openai": ("https://api.openai.com/v1", "OPENAI"),
    "responses": ("https://api.openai.com/v1", "OPENAI"),
    "anthropic": ("https://api.anthropic.com", "ANTHROPIC"),
}

a_name = check("a name", lambda v: isinstance(v, str) and v != "")


@frozen
class Env:
    """A key that lies in an environment variable, and is read from there for every call.

    Args:
        name: The variable's name.
    """

    name: str = field(validator=a_name)

    def __call__(self) -> str:
        """What it holds; empty when it is not set."""
        return os.environ.get(self.name, "")


def _is_key(value: Any) -> bool:
    return callable(value) or (isinstance(value, str) and value != "")


def a_key(instance: Any, _: Any, value: Any) -> None:
    """An attrs validator for what gives a key."""
    if value is not None and not _is_key(value):
        # not the value itself: it may be a secret all the same
        given = "an empty string" if value == "" else type(value).__name__
        raise ValueError(
            f"{called(instance)}(api_key=…) takes the key, Env('NAME'), or a function that returns the key, "
            f"got {given}"
        )


def listed(value: Any) -> Any:
    """Layers as a tuple; a pipeline is one layer."""
    if isinstance(value, Pipeline):
        return (value,)
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes) else value


def is_plain_url(value: Any) -> bool:
    """Whether this is where an API may begin: a URL of HTTP, without credentials."""
    return isinstance(value, str) and value.startswith(("http://", "https://")) and "@" not in value


def a_url(instance: Any, attribute: Any, value: Any) -> None:
    """An attrs validator for where an API begins."""
    if value is not None and not is_plain_url(value):
        allowed = "a URL with http:// or https:// and no credentials, or None"
        given = "one with credentials" if isinstance(value, str) and "@" in value else repr(value)
        raise ValueError(f"{called(instance)}({attribute.name}=…) takes {allowed}, got {given}")


def for_httpx(instance: Any, attribute: Any, value: Any) -> None:
    """An attrs validator for what httpx's clients take; a header in it may be a secret."""
    what = f"{called(instance)}({attribute.name}=…) takes a mapping for httpx's clients"
    if not isinstance(value, Mapping):
        raise ValueError(f"{what}, got {type(value).__name__}")  # noqa: TRY004 - as for every other setting
    if own := sorted({"timeout", "base_url"} & value.keys()):
        raise ValueError(f"{what}, without {' and '.join(own)}: these are settings of their own")


@frozen(kw_only=True)
class ClientConfig:
    """What a named client is.

    Args:
        model: The model's name, as the provider has it.
        base_url: Where the API begins; by default what the SDKs take: ``OPENAI_BASE_URL`` or
            ``ANTHROPIC_BASE_URL``, or else the provider's own address.
        api_key: The key, `Env`, or a function that returns it, asked for every call; by default the variable
            ``OPENAI_API_KEY`` or ``ANTHROPIC_API_KEY``. It is in no repr, no pickle and no log.
        wire: The format: ``openai`` (chat completions), ``responses``, or ``anthropic`` (messages).
        layers: The layers, outermost first; by default `presets.fuse`, the original design.
        timeout: Seconds for a call: its time in queues, its retries, and its work.
        options: What every request has besides model and messages: ``{"temperature": 0}``.
        http: What httpx's clients take besides: ``verify``, ``proxy``, ``limits``, ``transport`` …, and
            ``http``, the module httpx2, for its clients instead.
    """

    model: str = field(validator=a_name)
    base_url: str | None = field(default=None, validator=a_url)
    api_key: str | Env | Callable[[], str] | None = field(default=None, repr=False, eq=False, validator=a_key)
    wire: Wire = field(
        default="openai",  # pyright: ignore[reportAssignmentType] # attrs' stub widens it to str
        validator=one_of("openai", "responses", "anthropic"),
    )
    layers: tuple[LayerLike, ...] = field(
        default=Factory(lambda: tuple(presets.fuse())),
        converter=listed,
        validator=check("a list of layers", lambda v: isinstance(v, tuple)),
    )
    timeout: float = field(default=30.0, validator=seconds())
    options: Mapping[str, Any] = field(
        factory=dict, validator=check("a mapping", lambda v: isinstance(v, Mapping))
    )
    http: Mapping[str, Any] = field(factory=dict, repr=False, validator=for_httpx)

    @property
    def url(self) -> str:
        """Where the API begins, without a slash at its end."""
        home, prefix = _HOMES[self.wire]
        return (self.base_url or os.environ.get(f"{prefix}_BASE_URL") or home).rstrip("/")

    def key(self) -> str:
        """The key, for one call.

        Raises:
            LookupError: There is none; the message says where it was looked for.
        """
        source = Env(f"{_HOMES[self.wire][1]}_API_KEY") if self.api_key is None else self.api_key
        if isinstance(source, Env):
            found, where = source(), f"the environment variable {source.name}"
        elif isinstance(source, str):
            found, where = source, "what was given"
        else:
            found, where = source(), "what the function for it returns"
        if not isinstance(found, str) or not found:
            raise LookupError(f"no API key: {where} is not set")
        if not (found.isascii() and found.isprintable()):  # httpx would show it in its error
            raise LookupError(f"no API key: {where} holds what no header takes")
        return found

    def evolve(self, **changes: Any) -> ClientConfig:
        """A config like this one, but for these changes; the key is kept unless a new one is given.

        Raises:
            TypeError: There is no such setting.
            ValueError: A setting takes no such value.
        """
        return attrs.evolve(self, **changes)

    def __getstate__(self) -> dict[str, Any]:
        """Without the key, and httpx's settings, which may hold one; the name of a variable is no secret."""
        state = attrs.asdict(self, recurse=False)
        state["http"] = {}
        if not isinstance(self.api_key, Env):
            state["api_key"] = None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc] # validated, as at first
