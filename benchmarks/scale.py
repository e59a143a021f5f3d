"""How cost and memory grow: with calls in flight, threads, layers, keys, entries, queues and bodies."""

from __future__ import annotations

import asyncio
import gc
import itertools
import math
import random
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from time import perf_counter
from typing import Any

import httpx
from attrs import frozen

import dspex_pipe as dspex

from .calls import BODY, PATH, Candidate, asking, open_mode
from .cost import passes, quiet, stacks
from .measure import Block, Samples, Tick, interleave
from .results import Curve, Measure, Results
from .wires import ANSWER, HEADERS, LOCAL, mock, null

__all__ = ["SWEEPS", "Sweep", "measure"]

_URL = LOCAL + PATH
_FOUR = "the four together"


@frozen
class Sweep:
    """One thing that grows.

    Args:
        name: What its results are called by; it never changes.
        title: What is drawn.
        x: What grows.
        points: How far.
        run: Measures it: takes the points, the rounds and the tick, and tells all that it has found.
        rounds: Rounds.
        quick: How many of the points, and how many rounds, a quick run has.
    """

    name: str
    title: str
    x: str
    points: Sequence[int]
    run: Callable[[Sequence[int], int, Tick | None], Mapping[str, Samples | Mapping[str, Sequence[float]]]]
    rounds: int
    quick: tuple[int, int]


def measure(sweep: Sweep, results: Results, quick: bool, tick: Tick | None = None) -> None:
    """Measure a sweep, and put what it has found among the results.

    Samples are named ``line@point``. Each line becomes a curve of microseconds per call, and one of ratios:
    its cost at each point to that at the smallest from 100 on, of the same rounds.
    """
    points = sweep.points[: sweep.quick[0]] if quick else sweep.points
    with quiet():
        found = sweep.run(points, sweep.quick[1] if quick else sweep.rounds, tick)
    for part, told in found.items():
        name = f"scale.{sweep.name}" + (f".{part}" if part else "")
        if not isinstance(told, Samples):
            unit = "bytes" if "memory" in part else part
            results.curves[name] = Curve(f"{sweep.title}: {part}", sweep.x, unit, list(points), dict(told))
            continue
        lines = list(dict.fromkeys(key.rpartition("@")[0] for key in told.rounds))
        micros = {line: [told.seconds(f"{line}@{n}") * 1e6 for n in points] for line in lines}
        title = f"{sweep.title}, {part}" if part else sweep.title
        results.curves[name] = Curve(title, sweep.x, "µs per call", list(points), micros)
        start = next((n for n in points if n >= 100), points[0])
        for line, n in itertools.product(lines, points):
            key = f"{line}@{n}"
            results.measures[f"{name}.{line}.{n} to {start}"] = Measure(
                told.ratio(key, f"{line}@{start}"), told.seconds(key) * 1e6
            )
            if line != "bare" and "bare" in lines:
                results.measures[f"{name}.{line}.{n} to bare"] = Measure(
                    told.ratio(key, f"bare@{n}"),
                    told.seconds(key) * 1e6,
                    told.added(key, f"bare@{n}").value * 1e6,
                )


def _each(seconds: Callable[[], float]) -> Block:
    """A block that knows itself how many calls it makes, and tells the seconds of one."""
    return lambda calls: seconds() * calls


# Calls in flight


class _Gate(httpx.AsyncBaseTransport):
    """Answers nobody until so many have asked."""

    def __init__(self) -> None:
        self.wanted = 0
        self.full: Callable[[], object] = lambda: None
        self._asked = 0
        self._open = asyncio.Event()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self._asked += 1
        opens = self._open
        if self._asked == self.wanted:
            self.full()
            self._asked, self._open = 0, asyncio.Event()
            opens.set()
        await opens.wait()
        return httpx.Response(200, headers=HEADERS, content=ANSWER)


def _in_flight(
    points: Sequence[int], rounds: int, tick: Tick | None
) -> dict[str, Samples | Mapping[str, Sequence[float]]]:
    lines: dict[str, Callable[[Any], Any]] = {
        "bare": lambda inner: httpx.AsyncClient(transport=inner),
        _FOUR: lambda inner: dspex.build_async_client(stacks()[_FOUR](), transport=inner),
    }
    with asyncio.Runner() as runner:

        def seconds(gate: _Gate, client: Any, count: int, batches: int) -> float:
            async def batch() -> None:
                gate.wanted = count
                await asyncio.gather(*(client.post(_URL, json=BODY) for _ in range(count)))

            async def many() -> float:
                started = perf_counter()
                for _ in range(batches):
                    await batch()
                return (perf_counter() - started) / batches / count

            return runner.run(many())

        blocks, taken = {}, {}
        for line, make in lines.items():
            gate = _Gate()
            client = make(gate)
            for n in points:
                # small numbers are repeated until there is something to measure
                batches = max(1, 400 // n)
                blocks[f"{line}@{n}"] = _each(partial(seconds, gate, client, n, batches))
            taken[line] = [_held(gate, partial(seconds, gate, client, n, 1), n) for n in points]
        return {"": interleave(blocks, rounds=rounds, calls=1, tick=tick, warm_up=1), "memory": taken}


def _held(gate: _Gate, run: Callable[[], object], count: int) -> float:
    """Bytes that each call holds while all of them are in flight."""
    run()
    held = 0

    def full() -> None:
        nonlocal held
        held = tracemalloc.get_traced_memory()[0]

    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        gate.full = full
        run()
        return (held - before) / count
    finally:
        gate.full = lambda: None
        tracemalloc.stop()


# Threads


def _threads(points: Sequence[int], rounds: int, tick: Tick | None) -> dict[str, Any]:
    clients: dict[str, Any] = {
        "bare": httpx.Client(transport=mock(httpx)),
        _FOUR: dspex.build_client(stacks()[_FOUR](), transport=mock(httpx)),
    }

    def seconds(client: Any, count: int) -> float:
        calls = max(1, 512 // count)
        begin, end = threading.Barrier(count + 1), threading.Barrier(count + 1)

        def work() -> None:
            begin.wait()
            for _ in range(calls):
                client.post(_URL, json=BODY)
            end.wait()

        threads = [threading.Thread(target=work) for _ in range(count)]
        for thread in threads:
            thread.start()
        begin.wait()
        started = perf_counter()
        end.wait()
        taken = perf_counter() - started
        for thread in threads:
            thread.join()
        return taken / count / calls

    blocks = {
        f"{line}@{n}": _each(partial(seconds, client, n)) for line, client in clients.items() for n in points
    }
    return {"": interleave(blocks, rounds=rounds, calls=1, tick=tick)}


# Layers


def _layers(points: Sequence[int], rounds: int, tick: Tick | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("blocking", "asyncio"):
        with open_mode(name) as mode:
            if isinstance(mode, str):
                continue
            make: Any = dspex.build_async_client if mode.is_async else dspex.build_client
            blocks = {
                f"no-op layers@{n}": mode.block(
                    Candidate(partial(make, [passes] * n, transport=mock(httpx))), _URL
                )
                for n in points
            }
            found[name] = interleave(blocks, rounds=rounds, calls=15, tick=tick)
    return found


# Keys


_OFTEN = 1_000_000_000
_COUNTED = 10_000


def _keys(points: Sequence[int], rounds: int, tick: Tick | None) -> dict[str, Any]:
    chosen: Iterator[str] = iter(())

    def key(_: Any) -> str:
        return next(chosen)

    lines: dict[str, Callable[[], Any]] = {
        "Breaker": lambda: dspex.Breaker(key=key),
        "Breaker(max_keys=200_000)": lambda: dspex.Breaker(key=key, max_keys=200_000),
        "RateLimit": lambda: dspex.RateLimit(rpm=_OFTEN, key=key),
    }
    chance = random.Random(0)  # noqa: S311 - an order, no secret
    request = httpx.Request("POST", _URL, json=BODY)
    names = [f"https://{number}.example.com" for number in range(max(points))]
    blocks: dict[str, Block] = {}
    taken: dict[str, list[float]] = {line: [] for line in lines}
    for (line, make), n in itertools.product(lines.items(), points):
        transport = dspex.Pipeline([make()]).transport(null(httpx))
        # counting slows the calls down: where nothing is forgotten, the most keys are not counted
        counted = n <= _COUNTED or "max_keys" not in line
        gc.collect()
        if counted:
            tracemalloc.start()
        chosen = iter(names[:n])
        for _ in range(n):
            transport.handle_request(request)
        taken[line].append(float(tracemalloc.get_traced_memory()[0]) if counted else math.nan)
        tracemalloc.stop()

        def block(calls: int, transport: Any = transport, n: int = n) -> float:
            nonlocal chosen
            chosen = iter(chance.choices(names[:n], k=calls))
            started = perf_counter()
            for _ in range(calls):
                transport.handle_request(request)
            return perf_counter() - started

        blocks[f"{line}@{n}"] = block
    return {"": interleave(blocks, rounds=rounds, calls=50, tick=tick), "memory": taken}


# Entries


_HOT = 500


def _entries(points: Sequence[int], rounds: int, tick: Tick | None) -> dict[str, Any]:
    import hishel  # noqa: PLC0415 - takes its time

    bodies = [{**BODY, "user": f"hot-{number}"} for number in range(_HOT)]
    numbers, chance = itertools.count(), random.Random(0)  # noqa: S311 - an order, no secret
    blocks: dict[str, Block] = {}
    for n in points:
        store = dspex.MemoryStore(max_bytes=1 << 40, max_entries=1 << 30)
        client = dspex.build_client([dspex.Cache(store)], transport=mock(httpx))
        hot = bodies[: min(n, _HOT)]
        for body in hot:
            client.post(_URL, json=body)
        for number in range(n - len(hot)):
            response = hishel.Response(200, hishel.Headers({}), iter([ANSWER]))
            entry = store.create_entry(hishel.Request("POST", _URL), response, f"filler-{number}")
            list(entry.response.stream)  # type: ignore[arg-type] # a blocking stream

        def hits(calls: int, client: Any = client, hot: Any = hot) -> float:
            asked = chance.choices(hot, k=calls)
            started = perf_counter()
            for body in asked:
                client.post(_URL, json=body)
            return perf_counter() - started

        def misses(calls: int, client: Any = client) -> float:
            asked = [{**BODY, "user": f"new-{next(numbers)}"} for _ in range(calls)]
            started = perf_counter()
            for body in asked:
                client.post(_URL, json=body)
            return perf_counter() - started

        blocks[f"a hit@{n}"], blocks[f"a miss, kept@{n}"] = hits, misses
    return {"": interleave(blocks, rounds=rounds, calls=15, tick=tick)}


# Queues


def _queues(points: Sequence[int], rounds: int, tick: Tick | None) -> dict[str, Any]:
    """Processor time, not the clock's: most of a queue's life is waiting."""
    from pyrate_limiter import Rate  # noqa: PLC0415 - takes its time

    def line(layers: Callable[[int], list[Any]], slow: bool) -> Callable[[int], float]:
        def seconds(count: int) -> float:
            class Slow(httpx.AsyncBaseTransport):
                async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
                    if slow:
                        await asyncio.sleep(0.01 + count * 1.5e-4)
                    return httpx.Response(200, headers=HEADERS, content=ANSWER)

            async def all_of_them() -> float:
                async with dspex.build_async_client(layers(count), transport=Slow()) as client:
                    started = time.process_time()
                    await asyncio.gather(*(client.post(_URL, json=BODY) for _ in range(count)))
                    return (time.process_time() - started) / count

            return runner.run(all_of_them())

        return seconds

    def paced(count: int) -> list[Any]:
        # the last one waits longer than it takes all of them to come
        return [dspex.RateLimit(Rate(math.ceil(count / (0.1 + count * 2e-4)), 1000, burst=1))]

    lines = {
        "nobody waits": line(lambda _: [], slow=False),
        "RateLimit, all wait": line(paced, slow=False),
        "Cache, all wait for one": line(lambda _: [dspex.Cache()], slow=True),
    }
    with asyncio.Runner() as runner:
        blocks = {
            f"{name}@{n}": _each(partial(seconds, n)) for name, seconds in lines.items() for n in points
        }
        return {"": interleave(blocks, rounds=rounds, calls=1, tick=tick, warm_up=0)}


# Bodies


def _bodies(points: Sequence[int], rounds: int, tick: Tick | None) -> dict[str, Any]:
    lines: dict[str, tuple[Callable[[], Any], str | None]] = {
        "bare": (lambda: httpx.Client(transport=mock(httpx)), None),
        _FOUR: (lambda: _client(stacks()[_FOUR]()), None),
        "Cache, a miss": (lambda: _client([dspex.Cache()]), "miss"),
        "Cache, a hit": (lambda: _client([dspex.Cache()]), "hit"),
    }
    with ExitStack() as stack:
        mode = stack.enter_context(open_mode("blocking"))
        if isinstance(mode, str):
            raise AssertionError("unreachable: it is always there")  # noqa: TRY004
        blocks = {
            f"{line}@{n}": mode.block(
                Candidate(client, partial(asking, n, again=cache == "hit"), cache=cache), _URL
            )
            for line, (client, cache) in lines.items()
            for n in points
        }
        return {"": interleave(blocks, rounds=rounds, calls=5, tick=tick)}


def _client(layers: list[Any]) -> httpx.Client:
    return dspex.build_client(layers, transport=mock(httpx))


_TENS = (1, 10, 100, 1_000, 10_000, 100_000)

SWEEPS = [
    Sweep("in flight", "Concurrent async calls", "calls in flight", _TENS[:5], _in_flight, 9, (4, 3)),
    Sweep("threads", "Threads", "threads", (1, 4, 16, 64, 256), _threads, 15, (3, 3)),
    Sweep("layers", "Layers", "layers", (0, 1, 2, 4, 8, 16, 32, 64), _layers, 40, (8, 5)),
    Sweep("keys", "Keys", "keys", _TENS, _keys, 40, (4, 5)),
    Sweep("entries", "Cache entries", "entries in memory", _TENS, _entries, 40, (4, 5)),
    Sweep("queues", "Queues", "calls that wait", _TENS[:5], _queues, 3, (3, 2)),
    Sweep("bodies", "Request bodies", "bytes", (1_000, 10_000, 100_000, 1_000_000), _bodies, 25, (3, 4)),
]
