"""What the pipeline costs per call, as a ratio to the bare client, in one run.

No network: MockTransport answers at once, so this is the worst case for us. The candidates take turns, round
after round, so that a busy machine slows all of them alike; the medians are compared.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import httpx
import httpx2

from dspex_pipe import Handler, Logging, Pipeline, Request, Response, Retry

ROUNDS = 30
CALLS = 40
BODY = {"model": "m", "messages": [{"role": "user", "content": "hello " * 50}]}
URL = "http://llm.test/v1/chat/completions"


async def passes(request: Request, call_next: Handler) -> Response:
    return await call_next(request)


STACKS: dict[str, list[Any]] = {
    "empty pipeline": [],
    "ten no-op layers": [passes] * 10,
    "Retry": [Retry()],
    "Logging + Retry": [Logging(), Retry()],
}


def answer(http: ModuleType) -> Any:
    return http.MockTransport(lambda _: http.Response(200, json={"id": 1, "choices": []}))


def measure(candidates: dict[str, Callable[[], None]]) -> dict[str, float]:
    """The median time of each, in µs per call."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(ROUNDS + 3):
        for name, run in candidates.items():
            started = time.perf_counter()
            run()
            if number >= 3:
                times[name].append((time.perf_counter() - started) / CALLS * 1e6)
    return {name: statistics.median(values) for name, values in times.items()}


def blocking(client: Any) -> Callable[[], None]:
    def run() -> None:
        for _ in range(CALLS):
            client.post(URL, json=BODY)

    return run


def concurrent(client: Any, loop: asyncio.AbstractEventLoop) -> Callable[[], None]:
    async def calls() -> None:
        for _ in range(CALLS):
            await client.post(URL, json=BODY)

    return lambda: loop.run_until_complete(calls())


def main() -> None:
    logger = logging.getLogger("dspex_pipe")
    logger.addHandler(logging.NullHandler())
    logger.setLevel(logging.INFO)
    logger.propagate = False
    loop = asyncio.new_event_loop()
    print(f"{'':24}" + "".join(f"{name:>19}" for name in ("bare", *STACKS)))
    for http in (httpx, httpx2):
        pipelines = {name: Pipeline(layers) for name, layers in STACKS.items()}
        modes: dict[str, dict[str, Callable[[], None]]] = {
            "blocking": {
                "bare": blocking(http.Client(transport=answer(http))),
                **{
                    name: blocking(pipeline.client(http=http, transport=answer(http)))
                    for name, pipeline in pipelines.items()
                },
            },
            "asyncio": {
                "bare": concurrent(http.AsyncClient(transport=answer(http)), loop),
                **{
                    name: concurrent(pipeline.async_client(http=http, transport=answer(http)), loop)
                    for name, pipeline in pipelines.items()
                },
            },
        }
        for mode, candidates in modes.items():
            medians = measure(candidates)
            bare = medians["bare"]
            cells = "".join(f"{f'{t:.0f} µs  {t / bare:.2f} x':>19}" for t in medians.values())
            print(f"{http.__name__ + ' ' + mode:24}{cells}")
    loop.close()


if __name__ == "__main__":
    main()
