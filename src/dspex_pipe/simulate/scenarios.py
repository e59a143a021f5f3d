"""Troubles that clients of LLM providers meet, and the ways to meet them that are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import field, frozen

from .. import presets
from ..faults import SseError, Stall, Truncate
from ..layers.cache import Cache
from .callers import NaiveRetry, SdkRetry
from .provider import Outage, ProviderModel
from .workload import Workload

__all__ = ["SCENARIOS", "Scenario", "policies"]


@frozen(kw_only=True)
class Scenario:
    """A provider, a workload, and the time in which it matters.

    Args:
        story: What happens, in a sentence.
        provider: The provider.
        workload: Who calls.
        trouble: From when to when things go wrong, in seconds.
        layers: A stack of ours that fits.
    """

    story: str
    provider: ProviderModel
    workload: Workload
    trouble: tuple[float, float]
    layers: tuple[Any, ...] = field(factory=lambda: tuple(presets.llm()))


SCENARIOS: Mapping[str, Scenario] = {
    "steady": Scenario(
        story="5 calls a second, half of them streams, and nothing goes wrong.",
        provider=ProviderModel(rpm=600),
        workload=Workload(rate=5, duration=300, streaming=0.5),
        trouble=(0, 300),
    ),
    "storm": Scenario(
        story="A batch of 50 workers against a limit of 600 requests a minute: 429s.",
        provider=ProviderModel(rpm=600),
        workload=Workload(workers=50, duration=120),
        trouble=(60, 120),
    ),
    "outage": Scenario(
        story="5 calls a second; for a minute every one of them is answered 503.",
        provider=ProviderModel(outages=(Outage(120, 180),)),
        workload=Workload(rate=5, duration=600),
        trouble=(120, 180),
    ),
    "brown-out": Scenario(
        story="5 calls a second; for five minutes 30 % of them are answered 503.",
        provider=ProviderModel(outages=(Outage(60, 360, rate=0.3),)),
        workload=Workload(rate=5, duration=420),
        trouble=(60, 360),
    ),
    "cold start": Scenario(
        story="200 workers begin at once; the provider takes a minute to come up, and sends away whom it has "
        "no room for.",
        provider=ProviderModel(capacity=100, queue=50, slow_start=60),
        workload=Workload(workers=200, duration=90),
        trouble=(0, 60),
    ),
    "streams": Scenario(
        story="5 streams a second; of 20, one begins with an error, and one each fails, stops and falls "
        "silent in its midst.",
        provider=ProviderModel(
            faults=(
                SseError(after=0, rate=0.05),
                SseError(after=2, rate=0.05),
                Truncate(after=3, clean=True, rate=0.05),
                Stall(after=2, seconds=3600, rate=0.05),
            )
        ),
        workload=Workload(rate=5, duration=200, streaming=1),
        trouble=(0, 200),
    ),
    "herd": Scenario(
        story="30 calls a second ask one question, whose answer is good for 30 s; the limit is 600 a minute.",
        provider=ProviderModel(rpm=600),
        workload=Workload(rate=30, duration=70, prompts=1),
        trouble=(0, 70),
        layers=tuple(presets.llm(cache=Cache(ttl=30))),
    ),
}
"""Troubles to try a stack in: ``simulate(layers, one.provider, one.workload)``."""


def policies(layers: Sequence[Any]) -> dict[str, list[Any]]:
    """A stack, what it is compared with, and the stack without each of its layers in turn.

    Args:
        layers: The stack, outermost first.
    """
    names = [getattr(layer, "__name__", type(layer).__name__) for layer in layers]
    without = {
        f"ours - {name}" + (f" {names[:at].count(name) + 1}" if names.count(name) > 1 else ""): [
            *layers[:at],
            *layers[at + 1 :],
        ]
        for at, name in enumerate(names)
    }
    return {
        "no retry": [],
        "SDK retry": [SdkRetry()],
        "naive retry x 5": [NaiveRetry()],
        "ours": list(layers),
        **without,
    }
