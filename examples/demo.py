"""The main job: the openai and anthropic SDKs against a provider that misbehaves.

The same questions go out three times: bare, with the SDKs' own retries, and through one pipeline that a
blocking OpenAI client and an async Anthropic client share: in changeable weather, as streams, again and
again, in a storm of 429s, and in an outage. Everything happens on this machine, on real sockets.
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
import httpx2
import openai
import stamina
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from dspex_pipe import (
    Breaker,
    Cache,
    Logging,
    Pipeline,
    RateLimit,
    Retry,
    StreamIntegrity,
    Timeout,
    attach,
    explain,
)
from provider import TEXT, Provider

AT_ONCE = 8
LAYERS: list[Any] = [
    Logging(),
    Cache(),
    Timeout(total=60),
    Retry(throttle="wait"),
    Breaker(),
    RateLimit(),
    StreamIntegrity(),
]

Prepare = Callable[[Any], Any]
Tick = Callable[[], None]


@dataclass(frozen=True)
class Scene:
    """What is asked, of which model; each SDK makes all the calls."""

    model: str
    calls: int
    questions: int | None = None  # fewer than calls: then they are asked again and again
    must_succeed: bool = True
    stream: bool = False


SCENES = (
    (
        "Changeable weather",
        "a 503, a 429, a hang-up, a broken body or a slow answer for 5 of 24 prompts.",
        Scene("weather", 120),
    ),
    (
        "Streams",
        "2 of 12 begin with an error behind a 200, 1 stops half-way, 1 is late. Half an answer is no answer.",
        Scene("streams", 60, must_succeed=False, stream=True),
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
    halves: int = 0
    errors: list[Exception] = field(default_factory=list)
    upstream: int = 0
    throttled: int = 0
    took: float = 0.0

    def done(self, started: float, answer: str | Exception) -> None:
        """Note one call."""
        self.seconds.append(time.perf_counter() - started)
        if isinstance(answer, Exception):
            self.errors.append(answer)
        elif answer == TEXT:
            self.answered += 1
        else:
            self.halves += 1


def ask(number: int, scene: Scene) -> dict[str, Any]:
    """A question; in changeable weather its number decides what happens to it."""
    question = number if scene.questions is None else number % scene.questions
    messages = [{"role": "user", "content": f"question {question}"}]
    return {"model": scene.model, "messages": messages, "stream": scene.stream}


def with_openai(client: openai.OpenAI, act: Act, tick: Tick) -> None:
    def one(number: int) -> None:
        started = time.perf_counter()
        try:
            answer = client.chat.completions.create(**ask(number, act.scene))
            if act.scene.stream:
                act.done(started, "".join(chunk.choices[0].delta.content or "" for chunk in answer))
            else:
                act.done(started, answer.choices[0].message.content)
        except (openai.OpenAIError, httpx2.HTTPError) as exc:
            act.done(started, exc)
        tick()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(one, range(act.scene.calls)))


async def with_anthropic(client: anthropic.AsyncAnthropic, act: Act, tick: Tick) -> None:
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        async with gate:
            started = time.perf_counter()
            try:
                answer = await client.messages.create(max_tokens=16, **ask(1000 + number, act.scene))
                if act.scene.stream:
                    deltas = [event.delta async for event in answer if event.type == "content_block_delta"]
                    act.done(started, "".join(delta.text for delta in deltas))
                else:
                    act.done(started, answer.content[0].text)
            except (anthropic.AnthropicError, httpx2.HTTPError) as exc:
                act.done(started, exc)
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
        if acts[-1].halves:
            console.print("[red]half an answer was taken for a whole one[/red]")
            return 1
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
    table = Table("", "answered", "half answers", "errors", "server saw", "429s", "p50", "p99", "took")
    for act in acts:
        cuts = statistics.quantiles(act.seconds, n=100)
        table.add_row(
            act.title,
            f"{act.answered / len(act.seconds):.1%}",
            str(act.halves),
            str(len(act.errors)),
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
