"""Candidates: a client, and the calls that are made with it, in blocking mode, on asyncio and on trio."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from time import perf_counter
from typing import Any

from attrs import frozen

from .measure import Block
from .wires import module

__all__ = ["BODY", "Candidate", "Mode", "asking", "fresh", "known", "open_mode", "same"]

BODY = {"model": "m", "messages": [{"role": "user", "content": "hello " * 50}]}
PATH = "/v1/chat/completions"

Bodies = Callable[[], Iterator[Any]]

_numbers = itertools.count()


def _numbered(number: int) -> dict[str, Any]:
    return {**BODY, "user": f"user-{number:09}"}


def fresh() -> Iterator[Any]:
    """A small JSON body, new for each call, so that no cache has it."""
    return (_numbered(number) for number in _numbers)


def same() -> Iterator[Any]:
    """The same body again and again."""
    return itertools.repeat(_numbered(0))


def known(count: int) -> Iterator[Any]:
    """So many bodies, in turn, always the same ones."""
    return itertools.cycle([_numbered(-number) for number in range(1, count + 1)])


def asking(size: int, *, again: bool) -> Iterator[Any]:
    """Bodies with a prompt of so many bytes, new for each call or always the same."""
    prompt = [{"role": "user", "content": "hello " * (size // 6)}]
    numbers = itertools.repeat(0) if again else _numbers
    return ({**BODY, "messages": prompt, "user": f"user-{number:09}"} for number in numbers)


@frozen
class Candidate:
    """Something to be measured.

    Args:
        client: Makes its client.
        bodies: What it posts.
        method: ``post``, or ``get`` without a body.
        cache: What ``x-dspex-cache`` must say, so that a hit that is none is not measured as one.
        anew: Whether each block gets a new client, made outside the time.
    """

    client: Callable[[], Any]
    bodies: Bodies = fresh
    method: str = "post"
    cache: str | None = None
    anew: bool = False


class Mode:
    """How calls are made; one for all candidates of a run, since they share an event loop."""

    def __init__(self, name: str, run: Callable[[Callable[[], Any]], Any] | None) -> None:
        self.name = name
        self._run = run
        self._opened: list[Any] = []

    @property
    def is_async(self) -> bool:
        """Whether it needs async clients."""
        return self._run is not None

    def own(self, thing: Any) -> Any:
        """Close a client or a transport in the end."""
        self._opened.append(thing)
        return thing

    def close(self) -> None:
        """Close everything."""

        async def aclose() -> None:
            while self._opened:
                await self._opened.pop().aclose()

        if self._run is not None:
            self._run(aclose)
        while self._opened:
            self._opened.pop().close()

    def block(self, candidate: Candidate, url: str) -> Block:
        """The calls of a candidate: one more than asked for comes first, outside the time, and is looked at.

        Only the calls are in the time: no event loop is started, and no client or body is made in it.
        """
        caller, run = _Caller(candidate, url, self.own), self._run
        if run is None:
            return caller.blocking
        return lambda calls: float(run(lambda: caller.concurrent(calls)))


class _Caller:
    """Makes the calls of a candidate."""

    def __init__(self, candidate: Candidate, url: str, own: Callable[[Any], Any]) -> None:
        self._candidate = candidate
        self._url = url
        self._own = own
        self._client: Any = None
        self._bodies = candidate.bodies()
        # a question that is to be a hit has to be asked before
        self._untimed = 2 if candidate.cache == "hit" else 1

    def blocking(self, calls: int) -> float:
        send, first, rest = self._begin(calls)
        for _ in range(self._untimed):
            response = send(self._url, **first)
        self._check(response)
        started = perf_counter()
        for each in rest:
            send(self._url, **each)
        seconds = perf_counter() - started
        if self._candidate.anew:
            self._client.close()
        return seconds

    async def concurrent(self, calls: int) -> float:
        send, first, rest = self._begin(calls)
        for _ in range(self._untimed):
            response = await send(self._url, **first)
        self._check(response)
        started = perf_counter()
        for each in rest:
            await send(self._url, **each)
        seconds = perf_counter() - started
        if self._candidate.anew:
            await self._client.aclose()
        return seconds

    def _begin(self, calls: int) -> tuple[Any, dict[str, Any], list[dict[str, Any]]]:
        """How to send, what to send first, and what to send in the time."""
        candidate = self._candidate
        if candidate.anew:
            self._client = candidate.client()
        elif self._client is None:
            self._client = self._own(candidate.client())
        if candidate.method == "get":
            return self._client.get, {}, [{}] * calls
        first, *rest = [{"json": body} for body in itertools.islice(self._bodies, calls + 1)]
        return self._client.post, first, rest

    def _check(self, response: Any) -> None:
        told, wanted = response.headers.get("x-dspex-cache"), self._candidate.cache
        if response.status_code != 200 or (wanted is not None and told != wanted):
            raise AssertionError(f"not what was to be measured: {response!r}, cache {told}")


@contextmanager
def open_mode(name: str) -> Iterator[Mode | str]:
    """The mode of this name; or why there is none."""
    if name == "blocking":
        with closing(Mode(name, None)) as mode:
            yield mode
    elif name == "asyncio":
        with asyncio.Runner() as runner, closing(Mode(name, lambda make: runner.run(make()))) as mode:
            yield mode
    elif isinstance(trio := module("trio"), str):
        yield trio
    else:
        with closing(Mode(name, trio.run)) as mode:
            yield mode
