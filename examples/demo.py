"""The main job: the openai and anthropic SDKs against a provider that misbehaves.

The same questions go out three times: bare, with the SDKs' own retries, and through one pipeline that a
blocking OpenAI client and an async Anthropic client share: in changeable weather, again and again, in a storm
of 429s, and in an outage. Everything happens on this machine, on real sockets.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anthropic
import openai
import stamina
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from dspex_pipe import Breaker, Cache, Logging, Pipeline, RateLimit, Retry, attach, explain
from provider import Provider

AT_ONCE = 8
LAYERS: list[Any] = [Logging(), Cache(), Retry(), Breaker(), RateLimit()]

Prepare = Callable[[Any], Any]
Tick = Callable[[], None]


@dataclass(frozen=True)
class Scene:
    """What is asked, of which model; each SDK makes all the calls."""

    model: str
    calls: int
    questions: int | None = None  # fewer than calls: then they are asked again and again
    must_succeed: bool = True


SCENES = (
    (
        "Changeable weather",
        "a 503, a 429, a hang-up, a broken body or a slow answer for 5 of 24 prompts.",
        Scene("weather", 120),
    ),
    ("Questions asked again", "20 questions, each of them 6 times.", Scene("ok", 120, questions=20)),
    (
        "A 429 storm",
        "the provider answers 20 calls a second, and sends the others away until the next.",
        Scene("storm", 40),
    ),
    (
        "Outage",
        "every answer is a 503. The breaker cuts it short, and budgets bound the retries.",
        Scene("503", 32, must_succeed=False),
    ),
)


@dataclass
class Act:
    """One way to make the calls of a scene, and what came of it."""

    title: str
    prepare: Prepare
    scene: Scene
    seconds: list[float] = field(default_factory=list)
    answered: int = 0
    errors: list[Exception] = field(default_factory=list)
    upstream: int = 0
    throttled: int = 0
    took: float = 0.0

    def done(self, started: float, error: Exception | None = None) -> None:
        """Note one call."""
        self.seconds.append(time.perf_counter() - started)
        if error is None:
            self.answered += 1
        else:
            self.errors.append(error)


def ask(number: int, scene: Scene) -> dict[str, Any]:
    """A question; in changeable weather its number decides what happens to it."""
    question = number if scene.questions is None else number % scene.questions
    return {"model": scene.model, "messages": [{"role": "user", "content": f"question {question}"}]}


def with_openai(client: openai.OpenAI, act: Act, tick: Tick) -> None:
    def one(number: int) -> None:
        started = time.perf_counter()
        try:
            client.chat.completions.create(**ask(number, act.scene))
        except openai.OpenAIError as exc:
            act.done(started, exc)
        else:
            act.done(started)
        tick()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(one, range(act.scene.calls)))


async def with_anthropic(client: anthropic.AsyncAnthropic, act: Act, tick: Tick) -> None:
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        async with gate:
            started = time.perf_counter()
            try:
                await client.messages.create(max_tokens=16, **ask(1000 + number, act.scene))
            except anthropic.AnthropicError as exc:
                act.done(started, exc)
            else:
                act.done(started)
            tick()

    async with client:
        await asyncio.gather(*(one(number) for number in range(act.scene.calls)))


def play(act: Act, tick: Tick) -> None:
    """Make all the calls against a fresh provider."""
    started = time.perf_counter()
    with Provider() as provider:
        with act.prepare(openai.OpenAI(base_url=f"{provider.url}/v1", api_key="demo")) as blocking:
            client = act.prepare(anthropic.AsyncAnthropic(base_url=provider.url, api_key="demo"))
            with ThreadPoolExecutor(1) as other:
                async_calls = other.submit(lambda: asyncio.run(with_anthropic(client, act, tick)))
                with_openai(blocking, act, tick)
                async_calls.result()
        act.upstream = provider.calls
        act.throttled = sum(seen.fault == "429" for seen in provider.seen)
    act.took = time.perf_counter() - started


def main() -> int:
    console = Console()
    lines: list[str] = []
    _collect_logs(lines)

    console.print(f"\n[bold]{Pipeline(LAYERS)!r}[/bold]\n")

    failed = []
    for title, text, scene in SCENES:
        console.print(f"[bold]{title}[/bold]: {text}")
        pipeline = Pipeline(LAYERS)  # one for both SDKs
        acts = [
            Act("bare, no retries", lambda sdk: sdk.with_options(max_retries=0), scene),
            Act("SDKs' own retries", lambda sdk: sdk, scene),
            Act("through the pipeline", partial(attach, layers=pipeline), scene),
        ]
        show(console, acts)
        if scene.must_succeed:
            failed += acts[-1].errors
    explain_one(console, lines)
    if failed:
        console.print(f"\n[red]{len(failed)} calls failed through the pipeline[/red]: {failed[0]!r}")
    return 1 if failed else 0


def show(console: Console, acts: list[Act]) -> None:
    """Play the acts, with a progress bar, and print what came of them."""
    with Progress(console=console, transient=True) as progress:
        for act in acts:
            task = progress.add_task(act.title, total=2 * act.scene.calls)
            play(act, partial(progress.advance, task))
    table = Table("", "answered", "server saw", "429s", "p50", "p99", "took")
    for act in acts:
        cuts = statistics.quantiles(act.seconds, n=100)
        table.add_row(
            act.title,
            f"{act.answered / len(act.seconds):.1%}",
            f"{act.upstream} calls",
            str(act.throttled),
            f"{cuts[49] * 1000:.0f} ms",
            f"{cuts[98] * 1000:.0f} ms",
            f"{act.took:.1f} s",
        )
    console.print(table)
    console.print()


def explain_one(console: Console, lines: list[str]) -> None:
    """Show the trace and the log line of one call."""
    with Provider() as provider:
        bare = openai.OpenAI(base_url=f"{provider.url}/v1", api_key="demo")
        with attach(bare, [Logging(), Retry()]) as sdk:
            raw = sdk.with_raw_response.chat.completions.create(**ask(0, Scene("503x2", 1)))
            console.print("\n[bold]One call explained[/bold] (two 503s, then the answer):")
            console.print(str(explain(raw.http_response)), highlight=False)
            console.print("\n[bold]Its log line[/bold]:")
            console.print(lines[-1], highlight=False, soft_wrap=True)


def _collect_logs(lines: list[str]) -> None:
    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    logger = logging.getLogger("dspex_pipe")
    logger.setLevel(logging.INFO)
    logger.addHandler(Collect())
    logger.propagate = False
    stamina.instrumentation.set_on_retry_hooks([])  # stamina would log each retry, too


if __name__ == "__main__":
    sys.exit(main())
