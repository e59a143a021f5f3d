"""dspy's engines, with a pipeline for their transport; one pair stands for an LM and its copies."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing, contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, Self

import dspy  # pyright: ignore[reportMissingImports]
from dspy.clients.engines.lm15_engine import (  # pyright: ignore[reportMissingImports]
    AsyncLM15Engine,
    LM15Engine,
)
from dspy.lm15 import (  # pyright: ignore[reportMissingImports]
    LM15Error,
    RouterConfig,
    Usage,
    registered_providers,
)

from .asked import asked
from .gateway import gateway
from .service import Service, Spec, find, revive
from .transport import AsyncTransport, Transport

__all__ = ["AsyncEngine", "Engine"]


class _Shared:
    """What both engines have in common: they are shared by copies, and travel without secrets.

    Args:
        service: What an engine shares with the other one and with all copies.
    """

    _transport: ClassVar[type[Transport | AsyncTransport]]

    def __init__(self, service: Service) -> None:
        self.service = service
        config: Any = _config(service, self._transport(service))
        # dspy's engine is the next class
        super().__init__(config, model_type=service.spec.model_type)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _revived, (type(self), self.service.spec)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.service.spec.name!r}, {self.service.pipeline!r})"

    def dump_state(self) -> dict[str, Any]:
        """What a saved program keeps of it: its name. Layers are code, and keys are secrets."""
        spec = self.service.spec
        return {"name": spec.name, "model_type": spec.model_type}

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> Self:
        """The engine of this name.

        Raises:
            LookupError: There is none in this process, or there are several that differ.
        """
        return cls(find(state["name"], state["model_type"]))


class Engine(_Shared, LM15Engine):  # type: ignore[misc] # untyped here
    """The blocking engine."""

    _transport = Transport

    def complete(self, request: Any) -> Any:
        """Ask for a whole answer."""
        with _traced():
            return _accounted(super().complete(request))

    def stream(self, request: Any) -> Iterator[Any]:
        """Ask for the events of an answer."""
        with _traced(), closing(super().stream(request)) as events:
            for event in events:
                yield _accounted(event) if event.type == "end" else event

    def close(self) -> None:
        """Close what it shares, too."""
        self.service.close()

    def serves(self, model: str) -> bool:
        """Whether a model is of the provider that it was made for, with that one's key and address."""
        return bool(self.resolve(model).provider == self.resolve(self.service.spec.model).provider)

    # What dspy's adapters ask before they choose a format; a custom engine has to tell.

    @cached_property
    def _native(self) -> Any:
        spec = self.service.spec
        return dspy.LM(spec.model, model_type=spec.model_type, engine="lm15")

    @property
    def supports_function_calling(self) -> bool:
        """Whether the model takes tools."""
        return bool(self._native.supports_function_calling)

    @property
    def supports_reasoning(self) -> bool:
        """Whether the model reasons."""
        return bool(self._native.supports_reasoning)

    @property
    def supports_response_schema(self) -> bool:
        """Whether the model answers by a schema."""
        return bool(self._native.supports_response_schema)

    @property
    def supported_params(self) -> set[str]:
        """The parameters that the API takes."""
        return set(self._native.supported_params)


class AsyncEngine(_Shared, AsyncLM15Engine):  # type: ignore[misc] # untyped here
    """The engine for event loops; each has connections of its own."""

    _transport = AsyncTransport

    async def complete(self, request: Any) -> Any:
        """Ask for a whole answer."""
        with _traced():
            return _accounted(await super().complete(request))

    async def stream(self, request: Any) -> AsyncIterator[Any]:
        """Ask for the events of an answer."""
        with _traced():
            async with aclosing(super().stream(request)) as events:
                async for event in events:
                    yield _accounted(event) if event.type == "end" else event

    async def aclose(self) -> None:
        """Close what it shares, too."""
        await self.service.aclose()


def _revived(kind: type[Any], spec: Spec) -> Any:
    """An engine that was pickled: on what it was made of in this process, or else on something new."""
    return kind(revive(spec))


def _config(service: Service, transport: Any) -> Any:
    spec = service.spec
    providers = tuple(bound.definition for bound in registered_providers())
    offline = LM15Engine(RouterConfig(env={}, providers=providers), model_type=spec.model_type)
    route = offline.resolve(spec.model)
    url = spec.api_base or (None if route.declared else gateway(spec.model, route.provider))
    return RouterConfig(
        transport=transport,
        providers=providers,
        api_keys=None if spec.api_key is None else {route.provider: spec.api_key},
        base_urls=None if url is None else {route.provider: url},
    )


@contextmanager
def _traced() -> Iterator[None]:
    """Let `explain` find its way from an error of dspy to the answer that it was made of."""
    try:
        yield
    except LM15Error as exc:
        exc.response = asked().response  # where errors of SDKs have it, too
        raise


def _accounted(answer: Any) -> Any:
    """An answer, or the last event of one, that has used no tokens if it came from a cache."""
    return replace(answer, usage=Usage()) if asked().answered() else answer
