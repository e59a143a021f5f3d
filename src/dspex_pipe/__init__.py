"""A composable middleware pipeline for httpx clients.

``build_client(layers=[Retry()])`` makes a real ``httpx.Client`` whose requests walk through the layers;
``attach(OpenAI(), layers=[Retry()])`` does the same for a provider's SDK.

Each part is loaded when it is asked for. Type checkers read ``__init__.pyi``, which says the same; it is not
read here, since zipped and frozen programs have no such file.
"""

import lazy_loader

__version__ = "0.1.0"

_PARTS = {
    "advice": ["Advice", "OrderWarning"],
    "chain": ["Handler", "Middleware"],
    "client": ["attach", "build_async_client", "build_client"],
    "errors": [
        "BreakerOpen",
        "DeadlineExceeded",
        "LayerError",
        "Overloaded",
        "RateLimited",
        "Refused",
        "Suspended",
    ],
    "events": ["Event", "Record", "Trace", "explain", "record_of", "refusal_of"],
    "family": ["Request", "Response", "respond"],
    "io": ["IO"],
    "layers.breaker": ["Breaker"],
    "layers.cache": ["Cache"],
    "layers.integrity": ["StreamIntegrity"],
    "layers.logging": ["Logging"],
    "layers.ratelimit": ["RateLimit", "RedisStore"],
    "layers.retry": ["Budget", "Retry"],
    "layers.timeout": ["Timeout"],
    "options": ["options"],
    "outcome": ["Answer", "Meaning", "Verdict", "read_answer"],
    "pipeline": ["Layer", "Pipeline"],
    "stores.disk": ["DiskStore"],
    "stores.memory": ["MemoryStore"],
}

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, ["presets"], _PARTS)
