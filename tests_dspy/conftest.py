"""Tests that need dspy or litellm: these want an openai below 3, and so an environment of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dspy_resilient import THOUGHT
from provider import Provider


@pytest.fixture
def provider() -> Iterator[Provider]:
    """A misbehaving LLM provider on a real socket, that answers what dspy asks for."""
    with Provider(text=THOUGHT) as running:
        yield running


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """Neither proxies, keys nor caches of the machine decide what a test sees."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name in ("OPENAI", "ANTHROPIC"):
        for what in ("API_KEY", "API_BASE", "BASE_URL"):
            monkeypatch.delenv(f"{name}_{what}", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
