"""A composable middleware pipeline for httpx clients.

``build_client(layers=[Retry()])`` makes a real ``httpx.Client`` whose requests walk through the layers;
``attach(OpenAI(), layers=[Retry()])`` does the same for a provider's SDK.
"""

from . import presets
from .advice import Advice, OrderWarning
from .chain import Handler, Middleware
from .client import attach, build_async_client, build_client
from .errors import (
    BreakerOpen,
    DeadlineExceeded,
    LayerError,
    Overloaded,
    RateLimited,
    Refused,
    Suspended,
)
from .events import Event, Record, Trace, explain, record_of, refusal_of
from .family import Request, Response, respond
from .io import IO
from .layers.breaker import Breaker
from .layers.cache import Cache
from .layers.integrity import StreamIntegrity
from .layers.logging import Logging
from .layers.ratelimit import RateLimit, RedisStore
from .layers.retry import Budget, Retry
from .layers.timeout import Timeout
from .options import options
from .outcome import Answer, Meaning, Verdict, read_answer
from .pipeline import Layer, Pipeline
from .stores.disk import DiskStore
from .stores.memory import MemoryStore

__version__ = "0.1.0"

__all__ = [
    "IO",
    "Advice",
    "Answer",
    "Breaker",
    "BreakerOpen",
    "Budget",
    "Cache",
    "DeadlineExceeded",
    "DiskStore",
    "Event",
    "Handler",
    "Layer",
    "LayerError",
    "Logging",
    "Meaning",
    "MemoryStore",
    "Middleware",
    "OrderWarning",
    "Overloaded",
    "Pipeline",
    "RateLimit",
    "RateLimited",
    "Record",
    "RedisStore",
    "Refused",
    "Request",
    "Response",
    "Retry",
    "StreamIntegrity",
    "Suspended",
    "Timeout",
    "Trace",
    "Verdict",
    "attach",
    "build_async_client",
    "build_client",
    "explain",
    "options",
    "presets",
    "read_answer",
    "record_of",
    "refusal_of",
    "respond",
]
