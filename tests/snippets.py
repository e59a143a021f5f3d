"""The Python snippets of a document, run as a reader would run them, but against the local provider."""

from __future__ import annotations

import ast
import asyncio
import gc
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from provider import Provider

ROOT = Path(__file__).parent.parent
CALLS = re.compile(r"^# (\d+) calls?\b", re.MULTILINE)
"""How many requests a snippet says that the provider has seen."""


def snippets_of(*documents: Path) -> list[Any]:
    """Each snippet with the name of its document, as parameters of a test."""
    return [
        pytest.param(document.name, snippet, id=f"{document.stem}: {snippet.splitlines()[-1][:40]}")
        for document in documents
        for snippet in re.findall(
            r"^```python\n(.*?)^```", document.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
        )
    ]


def run_snippet(snippet: str, provider: Provider, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run it; where it says ``# 3 calls``, the provider must have seen as many."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("OPENAI", "ANTHROPIC"):
        monkeypatch.setenv(f"{name}_API_KEY", "test")
    monkeypatch.setenv("OPENAI_BASE_URL", f"{provider.url}/v1")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", provider.url)
    source = snippet.replace("https://api.example.com", provider.url)
    code = compile(source, "snippet.py", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    running = eval(code, {"__name__": "snippet"})
    if inspect.iscoroutine(running):
        asyncio.run(running)
    gc.collect()
    if told := CALLS.search(snippet):
        assert provider.calls == int(told[1])
