"""The same client against a real model: needs the extra ``llm`` (``make test-llm``); skipped without it."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.llm,
    pytest.mark.skipif(find_spec("xllamacpp") is None, reason="needs a real model: make test-llm"),
]


def test_uncached_cached_killed_and_started_again():
    program = Path(__file__).parent.parent / "examples" / "demo_llm.py"
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all as it should be" in done.stdout
