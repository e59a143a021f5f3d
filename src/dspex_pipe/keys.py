"""What state is kept by: the server, and for LLM calls the model."""

from __future__ import annotations

from hashlib import sha256

from .events import record_of
from .family import Request

__all__ = ["server_key"]

_LONGEST = 100
_PORTS = {"http": 80, "https": 443}


def server_key(request: Request) -> str:
    """The origin, as ``https://host:443``, and for an LLM call a space and the model's name.

    Providers limit and lose capacity by model. A name of more than 100 characters is hashed.
    """
    url, completion = request.url, record_of(request).completion(request)
    port = url.port or _PORTS.get(url.scheme, 0)
    origin = f"{url.scheme}://{url.host}:{port}"
    if completion is None:
        return origin
    model = completion.model
    if len(model) > _LONGEST:
        model = f"sha256:{sha256(model.encode()).hexdigest()}"
    return f"{origin} {model}"
