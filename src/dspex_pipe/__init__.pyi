from . import presets as presets
from .advice import Advice as Advice, OrderWarning as OrderWarning
from .chain import Handler as Handler, Middleware as Middleware
from .client import attach as attach, build_async_client as build_async_client, build_client as build_client
from .errors import (
    BreakerOpen as BreakerOpen,
    DeadlineExceeded as DeadlineExceeded,
    LayerError as LayerError,
    Overloaded as Overloaded,
    RateLimited as RateLimited,
    Refused as Refused,
    Suspended as Suspended,
)
from .events import (
    Event as Event,
    Record as Record,
    Trace as Trace,
    explain as explain,
    record_of as record_of,
    refusal_of as refusal_of,
)
from .family import Request as Request, Response as Response, respond as respond
from .io import IO as IO
from .layers.breaker import Breaker as Breaker
from .layers.cache import Cache as Cache
from .layers.integrity import StreamIntegrity as StreamIntegrity
from .layers.logging import Logging as Logging
from .layers.ratelimit import RateLimit as RateLimit, RedisStore as RedisStore
from .layers.retry import Budget as Budget, Retry as Retry
from .layers.timeout import Timeout as Timeout
from .options import options as options
from .outcome import Answer as Answer, Meaning as Meaning, Verdict as Verdict, read_answer as read_answer
from .pipeline import Layer as Layer, Pipeline as Pipeline
from .stores.disk import DiskStore as DiskStore
from .stores.memory import MemoryStore as MemoryStore

__version__: str
