"""What one call takes of memory: at its peak, and while its request is at the wire."""

from __future__ import annotations

import gc
import statistics
import sys
import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any

import dspex_pipe as dspex

from .calls import PATH, fresh
from .cost import quiet, stacks
from .wires import ANSWER, HEADERS, LOCAL

__all__ = ["measure"]

_CALLS = 5
_WARM_UP = 20


def measure(http: Any, *, calls: int = 200) -> dict[str, dict[str, float]]:
    """Numbers by stack: of a blocking call over a null transport, where nothing else is under way.

    ``peak_bytes`` are all that the call holds at once at most; ``blocks_at_the_wire`` are the objects (blocks
    of Python's allocator) that exist for it while the request is at the wire; ``kept_bytes`` stay per call
    when it is over, which is counted over so many ``calls``.
    """
    with quiet():
        found = {"bare": _numbers(lambda inner: http.Client(transport=inner), http, calls)}
        for name, layers in stacks().items():
            found[name] = _numbers(partial(_ours, layers, http), http, calls)
    return found


def _ours(layers: Callable[[], list[Any]], http: Any, inner: Any) -> Any:
    return dspex.build_client(layers(), http=http, transport=inner)


def _numbers(client_over: Callable[[Any], Any], http: Any, calls: int) -> dict[str, float]:
    at_the_wire, bodies = 0, fresh()

    class Wire(http.BaseTransport):  # type: ignore[misc]
        def handle_request(self, request: Any) -> Any:
            nonlocal at_the_wire
            at_the_wire = sys.getallocatedblocks()
            return http.Response(200, headers=HEADERS, content=ANSWER)

    with client_over(Wire()) as client:

        def call() -> None:
            client.post(LOCAL + PATH, json=next(bodies))

        for _ in range(_WARM_UP):
            call()
        gc.collect()
        gc.disable()
        try:
            blocks = []
            for _ in range(_CALLS):
                before = sys.getallocatedblocks()
                call()
                blocks.append(at_the_wire - before)
            return {"blocks_at_the_wire": statistics.median(blocks), **_traced(call, calls)}
        finally:
            gc.enable()


def _traced(call: Callable[[], None], calls: int) -> dict[str, float]:
    tracemalloc.start()
    try:
        call()
        peaks = []
        for _ in range(_CALLS):
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            call()
            peaks.append(tracemalloc.get_traced_memory()[1] - before)
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(calls):
            call()
        gc.collect()
        kept = (tracemalloc.get_traced_memory()[0] - before) / calls
        return {"peak_bytes": statistics.median(peaks), "kept_bytes": round(kept, 1)}
    finally:
        tracemalloc.stop()
