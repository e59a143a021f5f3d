"""Read a JSON body so that whatever reads it differently gets something different."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["parse", "parse_loosely"]


def parse(body: bytes) -> Any:
    """A JSON body as Python has it, but with numbers that are no integers as they are written.

    Raises:
        ValueError: It is not JSON, or a server might read it differently than we do: a key is given twice.
        RecursionError: It is nested too deeply.
    """
    return _decoder.decode(body.decode(json.detect_encoding(body), "surrogatepass"))


def parse_loosely(body: bytes) -> Any:
    """A JSON body as most servers read it; ``None`` when it is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key is given twice")
    return document


def _exact(text: str) -> Any:
    """A number as it is written: 1.0 and 1e400 stay apart from 1 and 1e401."""
    return {"number": text}


# made once: with hooks, json.loads() makes one for each call
_decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_exact, parse_constant=_exact)
