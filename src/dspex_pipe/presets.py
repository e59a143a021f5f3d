"""Ready-made stacks: plain functions that return a list of layers, in the recommended order.

Read them, call them, or copy them and change what you like: ``build_client(presets.rest())``,
``attach(OpenAI(), presets.llm(cache=Cache("run.db")))``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .layers.breaker import Breaker
from .layers.cache import Cache
from .layers.integrity import StreamIntegrity
from .layers.logging import Logging
from .layers.ratelimit import RateLimit
from .layers.retry import Budget, Retry
from .layers.timeout import Timeout

if TYPE_CHECKING:
    from .pipeline import Layer

__all__ = ["fuse", "llm", "rest"]


def llm(*, cache: Cache | None = None, rate: RateLimit | None = None) -> list[Layer]:
    """For LLM providers: 10 minutes for a call, a minute for its first content, and between pieces of it.

    No attempt is bounded as a whole, since a long answer is no failure, and nothing is cached unless you ask.

    Args:
        cache: The cache, if answers may be kept.
        rate: The rate limit; by default only the gate that a 429 shuts for everybody. A call waits there for
            a minute at most: callers give up, and an endless line would serve just those who leave.

    A batch has time, and wants another list: ``RateLimit()``, a `Retry` that goes on, and no `Breaker`, whose
    refusals would end most of its calls in a moment when there is an outage (``docs/recipes.md`` has it).
    """
    return [
        Logging(),
        *([] if cache is None else [cache]),
        Timeout(total=600),
        # as simulated: a provider that answers some calls is worth asking, and while the breaker watches for
        # one that answers none, a small budget would only let calls fail that might go through
        Retry(attempts=4, budget=Budget(ratio=0.5)),
        Breaker(failures=10, ratio=0.9, consecutive=20, open_max=30.0),
        RateLimit(max_wait=60) if rate is None else rate,
        Timeout(connect=5, first_content=60, idle=60),
        StreamIntegrity(),
    ]


def rest() -> list[Layer]:
    """For plain HTTP APIs: 30 s for a call, 10 s for an attempt, 5 s for connecting."""
    return [
        Logging(),
        Timeout(total=30),
        Retry(),
        Breaker(),
        RateLimit(),
        Timeout(attempt=10, connect=5),
    ]


def fuse() -> list[Layer]:
    """The original design, Cache -> Fuse -> Network: answers by messages and model; any non-200 fails."""
    return [Cache(key="messages"), Breaker.fuse()]
