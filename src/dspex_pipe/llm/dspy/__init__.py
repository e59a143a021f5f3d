"""dspy's language models, through a pipeline: what goes out is bytes, so every adapter and module works.

It needs dspy 3.4 (``pip install 'dspex-pipe[dspy]'``), which brings an openai below 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import dspy  # pyright: ignore[reportMissingImports] # it needs an environment of its own

from ... import presets
from ...events import EXTENSION
from ...layers.cache import Cache
from ...layers.ratelimit import RateLimit
from ...options import check
from ..config import Env
from .asked import asking
from .engines import AsyncEngine, Engine
from .service import Service, Spec

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...pipeline import LayerLike, Pipeline

__all__ = ["LM", "AsyncEngine", "Engine", "lm"]


class LM(dspy.LM):  # type: ignore[misc] # untyped here
    """A `dspy.LM` whose traffic goes through a pipeline; make it with `lm`.

    Copies share the pipeline and its state. It is pickled without its key, and comes back to where it was
    made if that is this process; elsewhere as a new one, with the key of the environment there.

    Args:
        args: Those of `dspy.LM`.
        options: Options for every call, as `dspex_pipe.options` takes them; those of a ``with`` block around
            the call come first. ``copy(options={"cache": "only_if_cached"})`` replays what is cached.
        kwargs: Those of `dspy.LM`.
    """

    def __init__(self, *args: Any, options: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self.engine, Engine):
            raise TypeError("an LM of dspex_pipe is made by lm(…), with layers")
        self.options = self._checked(options)

    def _checked(self, options: Mapping[str, Any] | None) -> dict[str, Any]:
        given = {} if options is None else options.get(EXTENSION, options)  # options(…) is a mapping to them
        check(given, self.pipeline.known_options)
        return {name: sorted(v) if isinstance(v, set | frozenset) else v for name, v in given.items()}

    @property
    def pipeline(self) -> Pipeline:
        """The running layers."""
        return self.engine.service.pipeline  # type: ignore[no-any-return] # dspy is untyped

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """Ask; a new ``rollout_id`` and each of ``n`` answers is a sample of its own."""
        with asking({**self.kwargs, **kwargs}.get("rollout_id"), self.options):
            return super().__call__(prompt, messages=messages, **kwargs)

    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """Ask, on asyncio; see `__call__`."""
        with asking({**self.kwargs, **kwargs}.get("rollout_id"), self.options):
            return await super().acall(prompt, messages=messages, **kwargs)

    def copy(self, **kwargs: Any) -> LM:
        """A copy, on the same pipeline.

        Raises:
            TypeError: An option is none.
            ValueError: An option takes no such value; or the copy would need another LM: make it with `lm`.
        """
        options = self._checked(kwargs.pop("options", self.options))
        fixed = {"engine", "async_engine", "model_type"} & kwargs.keys()
        if fixed or not self.engine.serves(kwargs.get("model", self.model)):
            what = ", ".join(sorted(fixed)) or "model"
            raise ValueError(f"copy({what}=…): layers, key and address stay; make another LM with lm(…)")
        copied: LM = super().copy(**kwargs)
        copied.options = options
        return copied

    def dump_state(self) -> dict[str, Any]:
        """What a saved program keeps of it: no key, and its layers by name."""
        return {**super().dump_state(), **({"options": self.options} if self.options else {})}

    def close(self) -> None:
        """Close the connections and what the layers hold; copies share them."""
        super().close()
        self.engine.close()

    async def aclose(self) -> None:
        """Close the connections, this event loop's too, and what the layers hold; copies share them."""
        await self.engine.service.aclose()
        await super().aclose()


def lm(
    model: str,
    *,
    layers: Iterable[LayerLike] | None = None,
    name: str | None = None,
    api_key: str | Env | Callable[[], str] | None = None,
    api_base: str | None = None,
    timeout: float = 600.0,
    model_type: Literal["chat", "responses"] = "chat",
    http: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> LM:
    """Make a `dspy.LM` whose requests walk through layers.

    Args:
        model: Provider and model, as dspy has them: ``openai/gpt-4o-mini``.
        layers: The layers, outermost first; by default `presets.llm` with a cache on disk named ``dspy``, and
            no bound on the wait for a limit.
        name: What a saved program calls it, to find it again when it is loaded; by default the model.
        api_key: The key, `dspex_pipe.llm.Env`, or a function that returns it; by default the variable that
            dspy reads.
        api_base: Where the API begins, as dspy takes it; by default the variable ``OPENAI_API_BASE`` or
            ``OPENAI_BASE_URL``, and their like for other providers, or else the provider's own address.
        timeout: Seconds for a call, its queues and retries included, until its answer is there or its stream
            begins.
        model_type: ``chat``, or ``responses`` for OpenAI's Responses API.
        http: What httpx's clients take besides: ``verify``, ``proxy``, ``limits`` …, and ``http``, the module
            httpx2, for its clients instead.
        options: Options for every call; see `LM`.
        kwargs: What `dspy.LM` takes besides. Its own retries (``num_retries``) and cache (``cache``) are off
            unless you turn them on: the layers do both.

    Raises:
        TypeError: A layer, an option, or a setting for httpx, is none.
        ValueError: A setting or an option takes no such value.
        dspy.lm15.LM15Error: dspy knows no such provider, or it has no such API.
    """
    spec = Spec(
        model=model,
        layers=presets.llm(cache=Cache("dspy"), rate=RateLimit()) if layers is None else layers,
        name=model if name is None else name,
        api_key=api_key,
        api_base=api_base,
        timeout=timeout,
        model_type=model_type,
        http={} if http is None else http,
    )
    service = Service(spec)
    return LM(
        model,
        model_type=model_type,
        engine=Engine(service),
        async_engine=AsyncEngine(service),
        options=options,
        **{"num_retries": 0, "cache": False, **kwargs},
    )
