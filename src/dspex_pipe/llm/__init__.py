"""Named, supervised clients of LLM providers, each with its own layers, state and connections."""

from .client import Client
from .completion import Completion, Delta, ToolCall
from .config import ClientConfig, Env
from .errors import (
    AuthError,
    BadRequest,
    BreakerOpen,
    ClientDown,
    ContextTooLong,
    Crashed,
    DeadlineExceeded,
    LLMError,
    ProviderDown,
    QuotaSpent,
    RateLimited,
)
from .health import ClientEvent
from .streams import AsyncStream, Stream
from .supervisor import (
    Supervisor,
    arequest,
    astream,
    get_client,
    request,
    start_client,
    status,
    stop_client,
    stream,
)

__all__ = [
    "AsyncStream",
    "AuthError",
    "BadRequest",
    "BreakerOpen",
    "Client",
    "ClientConfig",
    "ClientDown",
    "ClientEvent",
    "Completion",
    "ContextTooLong",
    "Crashed",
    "DeadlineExceeded",
    "Delta",
    "Env",
    "LLMError",
    "ProviderDown",
    "QuotaSpent",
    "RateLimited",
    "Stream",
    "Supervisor",
    "ToolCall",
    "arequest",
    "astream",
    "get_client",
    "request",
    "start_client",
    "status",
    "stop_client",
    "stream",
]
