"""A stack whose layers can be exchanged while calls go through it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..chain import Handler, Step
from ..options import Converter
from ..outcome import Meaning
from ..pipeline import Pipeline, aclose_steps, close_steps

if TYPE_CHECKING:
    from ..family import Request, Response
    from ..io import IO

__all__ = ["Switch"]


class Switch:
    """Leads each call through the pipeline that stands here when it begins; connections stay as they are.

    Args:
        pipeline: The first.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.steps: Sequence[Step] = (Step("Pipeline", self),)
        self.on_event = None  # the pipeline has its own
        self._removed: list[Step] = []

    async def __call__(self, request: Request, call_next: Handler, io: IO) -> Response:
        """Go on through the pipeline."""
        return await self.pipeline(request, call_next, io)

    @property
    def known_options(self) -> Mapping[str, Converter]:
        """The options that these layers take."""
        return self.pipeline.known_options

    @property
    def names(self) -> frozenset[str]:
        """The names of the layers."""
        return self.pipeline.names

    @property
    def meanings(self) -> Mapping[str | int, Meaning]:
        """What words mean here."""
        return self.pipeline.meanings

    def exchange(self, pipeline: Pipeline) -> None:
        """Lead the calls that begin from now on through another pipeline."""
        kept = [step.middleware for step in pipeline.steps]
        self._removed += [step for step in self.pipeline.steps if step.middleware not in kept]
        self.pipeline = pipeline

    def let_go(self) -> None:
        """Close what was exchanged, once no call can be on its way through it."""
        removed, self._removed, now = self._removed, [], list[Step]()
        for step in removed:
            # who closes only asynchronously waits for `aclose`
            later = hasattr(step.middleware, "aclose") and not hasattr(step.middleware, "close")
            (self._removed if later else now).append(step)
        close_steps(now)

    def close(self) -> None:
        """Close what all layers hold, those that were exchanged, too."""
        close_steps((*self.pipeline.steps, *self._removed))

    async def aclose(self) -> None:
        """Close what all layers hold, those that were exchanged, too."""
        await aclose_steps((*self.pipeline.steps, *self._removed))
