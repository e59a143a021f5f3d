"""What each layer adds to a call, and what its alternatives add, side by side."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

import dspex_pipe as dspex
from dspex_pipe import Handler, Request, Response

from .calls import PATH, Candidate, fresh, known, open_mode, same
from .floors import FILE, FLOORS, floor
from .measure import Block, Samples, Tick, interleave
from .rivals import RIVALS, Wiring
from .wires import LOCAL, loopback, mock, module, null

__all__ = ["BARE", "GET", "HITS", "Group", "groups", "measure", "open_blocks", "quiet", "stacks"]

BARE, AGAIN, GET = "bare", "bare, once more", "GET bare"

_FIRST_HIT = "Cache, a first hit in SQLite"

HITS = (
    "Cache, a hit in memory",
    "Cache, a hit in SQLite's front",
    _FIRST_HIT,
    "GET hit in memory",
    "GET hit in SQLite's front",
)
"""The stacks that are measured on calls that a cache answers."""

_OFTEN = 1_000_000_000
_FIRST = 64  # answers in the file; a block must not ask for more


async def passes(request: Request, call_next: Handler) -> Response:
    """A layer that does nothing."""
    return await call_next(request)


def stacks() -> dict[str, Callable[[], list[Any]]]:
    """The stacks that are measured on calls that no cache answers."""
    return {
        "empty pipeline": list,
        "ten no-op layers": lambda: [passes] * 10,
        "Logging": lambda: [dspex.Logging()],
        "Logging, switched off": lambda: [dspex.Logging(logger="dspex_pipe.off")],
        "Retry": lambda: [dspex.Retry()],
        "Breaker": lambda: [dspex.Breaker()],
        "RateLimit": lambda: [dspex.RateLimit(rpm=_OFTEN)],
        "Timeout": lambda: [dspex.Timeout(total=600)],
        "StreamIntegrity": lambda: [dspex.StreamIntegrity()],
        "Retry + Breaker + RateLimit": lambda: [dspex.Retry(), dspex.Breaker(), dspex.RateLimit(rpm=_OFTEN)],
        "the four together": lambda: [
            dspex.Logging(),
            dspex.Retry(),
            dspex.Breaker(),
            dspex.RateLimit(rpm=_OFTEN),
        ],
        "the four and Cache, a miss": lambda: [
            dspex.Logging(),
            dspex.Cache(),
            dspex.Retry(),
            dspex.Breaker(),
            dspex.RateLimit(rpm=_OFTEN),
        ],
        "Cache, a miss": lambda: [dspex.Cache()],
        "presets.llm()": lambda: [*dspex.presets.llm()],
    }


@frozen
class Group:
    """Candidates that take turns: one library, one mode, one wire.

    Args:
        wire: ``mock``, ``null`` or ``loopback``.
        http: The library's name.
        mode: ``blocking``, ``asyncio`` or ``trio``.
        rounds: Rounds that count.
        calls: Calls in a block.
        only: Names of candidates; none for all.
    """

    wire: str
    http: str
    mode: str
    rounds: int
    calls: int
    only: Collection[str] = ()

    @property
    def name(self) -> str:
        """What its results are called by; it never changes."""
        return f"{self.wire}.{self.http}.{self.mode}"


def groups(*, quick: bool) -> list[Group]:
    """All that is measured."""
    calls = 8 if quick else 20
    few = {"mock": 10, "null": 5, "loopback": 5, "trio": 6}
    many = {"mock": 100, "null": 35, "loopback": 25, "trio": 40}
    rounds = few if quick else many
    libraries, modes = ("httpx", "httpx2"), ("blocking", "asyncio")
    found = [
        Group(wire, http, mode, rounds[wire], calls)
        for wire in ("mock", "null", "loopback")
        for http in libraries
        for mode in modes
    ]
    return [*found, *(Group("mock", http, "trio", rounds["trio"], calls) for http in libraries)]


def measure(group: Group, tick: Tick | None = None) -> tuple[Samples | None, dict[str, str]]:
    """Measure a group: its samples, and who could not be measured, and why."""
    with open_blocks(group) as (blocks, missing):
        if not blocks:
            return None, missing
        return interleave(blocks, rounds=group.rounds, calls=group.calls, tick=tick), missing


@contextmanager
def open_blocks(group: Group) -> Iterator[tuple[dict[str, Block], dict[str, str]]]:
    """The candidates of a group, ready to run; and who could not be measured, and why."""
    http = module(group.http)
    with ExitStack() as stack:
        mode = stack.enter_context(open_mode(group.mode))
        if isinstance(http, str) or isinstance(mode, str):
            yield {}, {group.name: next(why for why in (http, mode) if isinstance(why, str))}
            return
        stack.enter_context(quiet())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        url = stack.enter_context(loopback()) if group.wire == "loopback" else LOCAL
        wiring = Wiring(
            http, mode.is_async, url + PATH, lambda: mode.own(_wire(http, group.wire, mode.is_async)), folder
        )
        candidates, missing = _candidates(wiring, group.mode)
        if group.wire == "mock" and group.mode != "trio":
            candidates |= dict(_floors(wiring))
        wanted = candidates if not group.only else {n: c for n, c in candidates.items() if n in group.only}
        yield {name: mode.block(candidate, wiring.url) for name, candidate in wanted.items()}, missing


def quiet() -> ExitStack:
    """Logging as in an application that logs, to nowhere, while this is open."""
    stack = ExitStack()
    handler = logging.NullHandler()
    for name, level in (("dspex_pipe", logging.INFO), ("dspex_pipe.off", logging.WARNING)):
        logger = logging.getLogger(name)
        stack.callback(logger.setLevel, logger.level)
        stack.callback(setattr, logger, "propagate", logger.propagate)
        stack.callback(logger.removeHandler, handler)
        logger.setLevel(level)
        logger.addHandler(handler)
        logger.propagate = False
    return stack


def _wire(http: Any, wire: str, is_async: bool) -> Any:
    if wire == "loopback":
        return http.AsyncHTTPTransport() if is_async else http.HTTPTransport()
    return {"mock": mock, "null": null}[wire](http)


def _candidates(wiring: Wiring, mode: str) -> tuple[dict[str, Candidate], dict[str, str]]:
    found = {
        BARE: Candidate(lambda: wiring.client(wiring.inner())),
        AGAIN: Candidate(lambda: wiring.client(wiring.inner())),
        GET: Candidate(lambda: wiring.client(wiring.inner()), method="get"),
    }
    for name, make in stacks().items():
        cache = "miss" if name.endswith("a miss") else None
        found[name] = Candidate(partial(_ours, wiring, make), fresh, cache=cache)
    found |= dict(_hits(wiring))
    missing = {}
    for name, rival in RIVALS.items():
        why = rival.why_not(wiring.http.__name__, mode)
        if why is None:
            method = "get" if rival.gets else "post"
            found[name] = Candidate(partial(rival.client, wiring), method=method)
        elif why:
            missing[name] = why
    return found, missing


def _floors(wiring: Wiring) -> Iterator[tuple[str, Candidate]]:
    for name, steps in FLOORS.items():
        make, hits = partial(floor, steps=steps), name in HITS
        if name == _FIRST_HIT:
            yield f"floor: {name}", _first_hit(make, wiring, wiring.folder / FILE)
            continue
        client = partial(make, wiring)
        yield f"floor: {name}", Candidate(client, same if hits else fresh, cache="hit" if hits else None)


def _ours(wiring: Wiring, layers: Callable[[], list[Any]]) -> Any:
    make: Any = dspex.build_async_client if wiring.is_async else dspex.build_client
    return make(layers(), http=wiring.http, transport=wiring.inner())


def _hits(wiring: Wiring) -> Iterator[tuple[str, Candidate]]:
    files = wiring.folder / "ours"
    stores = {"in memory": None, "in SQLite's front": files / "front.db"}
    for place, store in stores.items():
        client = partial(_ours, wiring, partial(_cache, store))
        yield f"Cache, a hit {place}", Candidate(client, same, cache="hit")
        yield f"GET hit {place}", Candidate(client, method="get", cache="hit")
    first = files / "first.db"
    yield _FIRST_HIT, _first_hit(partial(_ours, layers=partial(_cache, first)), wiring, first)


def _first_hit(make: Callable[[Wiring], Any], wiring: Wiring, file: Path) -> Candidate:
    """Clients over a file that has all answers, none of which has been asked for in a client's life."""

    def filled() -> Any:
        if not file.exists():
            with closing(make(evolve(wiring, is_async=False, inner=partial(mock, wiring.http)))) as filler:
                for _, body in zip(range(_FIRST), known(_FIRST), strict=False):
                    filler.post(wiring.url, json=body)
        return make(wiring)

    return Candidate(filled, partial(known, _FIRST), cache="hit", anew=True)


def _cache(store: Path | None) -> list[Any]:
    return [dspex.Cache(store)]
