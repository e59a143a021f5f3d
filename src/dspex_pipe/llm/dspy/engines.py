"""dspy's engines, with a pipeline for their transport; one pair stands for an LM and its copies."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing
from dataclasses import replace
from functools import cached_property
from typing import Any, Self

import dspy  # pyright: ignore[reportMissingImports]
from dspy.clients.engines.lm15_engine import (  # pyright: ignore[reportMissingImports]
    AsyncLM15Engine,
    LM15Engine,
)
from dspy.lm15 import RouterConfig, Usage, registered_providers  # pyright: ignore[reportMissingImports]

from .asked import asked
from .service import Service, Spec, find
from .transport import AsyncTransport, Transport

__all__ = ["AsyncEngine", "Engine"]


class _Shared:
    """What both engines have in common: they are shared by copies, and travel without secrets."""

    service: Service

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _revive, (type(self), self.service.spec)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.service.spec.name!r}, {self.service.pipeline!r})"

    def dump_state(self) -> dict[str, Any]:
        """What a saved program keeps of it: its name. Layers are code, and keys are secrets."""
        return {"name": self.service.spec.name}

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> Self:
        """The engine of this name.

        Raises:
            LookupError: There is none in this process.
        """
        name = state["name"]
        service = find(name)
        if service is None:
            raise LookupError(
                f"this program was saved with an LM named {name!r}, which is not here: make it with "
                f"lm(…, name={name!r}) before the program is loaded, and keep it"
            )
        return cls(service)  # type: ignore[call-arg] # of the engines below


class Engine(_Shared, LM15Engine):  # type: ignore[misc] # untyped here
    """The blocking engine.

    Args:
        service: What it shares with the other engine and with all copies.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        config = _config(service, Transport(service))
        super().__init__(config, model_type=service.spec.model_type)  # pyright: ignore[reportCallIssue]

    def complete(self, request: Any) -> Any:
        """Ask for a whole answer."""
        return _accounted(super().complete(request))

    def stream(self, request: Any) -> Iterator[Any]:
        """Ask for the events of an answer."""
        with closing(super().stream(request)) as events:
            for event in events:
                yield _accounted(event) if event.type == "end" else event

    def close(self) -> None:
        """Close what it shares, too."""
        self.service.close()

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
    """The engine for event loops; each has connections of its own.

    Args:
        service: What it shares with the other engine and with all copies.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        config = _config(service, AsyncTransport(service))
        super().__init__(config, model_type=service.spec.model_type)  # pyright: ignore[reportCallIssue]

    async def complete(self, request: Any) -> Any:
        """Ask for a whole answer."""
        return _accounted(await super().complete(request))

    async def stream(self, request: Any) -> AsyncIterator[Any]:
        """Ask for the events of an answer."""
        async with aclosing(super().stream(request)) as events:
            async for event in events:
                yield _accounted(event) if event.type == "end" else event

    async def aclose(self) -> None:
        """Close what it shares, too."""
        await self.service.aclose()


def _revive(kind: type[Any], spec: Spec) -> Any:
    """An engine that was pickled: on what is like it in this process, or else on something new."""
    return kind(find(spec) or Service(spec))


def _config(service: Service, transport: Any) -> Any:
    spec = service.spec
    providers = tuple(bound.definition for bound in registered_providers())
    offline = LM15Engine(RouterConfig(env={}, providers=providers), model_type=spec.model_type)
    provider = offline.resolve(spec.model).provider
    return RouterConfig(
        transport=transport,
        providers=providers,
        api_keys=None if spec.api_key is None else {provider: spec.api_key},
        base_urls=None if spec.url is None else {provider: spec.url},
    )


def _accounted(answer: Any) -> Any:
    """An answer, or the last event of one, that has used no tokens if it came from a cache."""
    return replace(answer, usage=Usage()) if asked().answered() else answer
