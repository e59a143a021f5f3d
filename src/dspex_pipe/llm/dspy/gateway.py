"""Where a provider's API begins when a variable of the environment says so."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from ..config import is_plain_url

__all__ = ["gateway"]

# Their addresses hold names of regions and resources, which dspy reads from variables of its own.
_HOSTED = ("aws", "azure", "bedrock", "vertex")
# Their SDKs and servers add the version to the address themselves; dspy wants it there.
_VERSIONED = {"anthropic": "/v1", "ollama": "/v1"}


def gateway(model: str, provider: str) -> str | None:
    """The address in ``OPENAI_API_BASE`` or ``OPENAI_BASE_URL``, and their like; ``None`` without one.

    It must be honoured: the key in the environment may be the gateway's, and the provider must not see it.

    Args:
        model: The model, as the user has it: what stands before its slash is tried first.
        provider: What dspy takes it for.

    Raises:
        ValueError: The variable holds no URL, or one with credentials.
    """
    if provider.startswith(_HOSTED):
        return None
    prefix, slash, _ = model.partition("/")
    prefixes = [prefix] if slash else []
    for name in (*prefixes, provider.partition("-")[0]):
        for what in ("API_BASE", "BASE_URL"):
            variable = f"{name.upper().replace('-', '_')}_{what}"
            if url := os.environ.get(variable):
                return _checked(variable, url).rstrip("/") + _version(provider, url)
    return None


def _checked(variable: str, url: str) -> str:
    if not is_plain_url(url):
        # not the value itself: it may hold a password
        raise ValueError(f"{variable} takes a URL with http:// or https:// and no credentials")
    return url


def _version(provider: str, url: str) -> str:
    return _VERSIONED.get(provider, "") if urlsplit(url).path.strip("/") == "" else ""
