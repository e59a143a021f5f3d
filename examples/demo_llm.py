"""A real model behind the openai SDK: uncached, cached, killed in the middle, and started again.

The model is Gemma 3 270M under llama.cpp's server (``llm_server.py``), in a process of its own.
"""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import openai
import stamina
from rich.console import Console
from rich.table import Table

from dspex_pipe import Breaker, Cache, Logging, Pipeline, Retry, attach, explain

# Beginnings, for a base model to go on with.
QUESTIONS = ["One, two, three,", "Monday, Tuesday,", "Red, orange, yellow,", "January, February,", "A, B, C,"]
NEW_QUESTIONS = ["The sun rises in the", "Two plus two is", "The largest planet is", "Snow is"]


class LocalModel:
    """The server's process: it can be killed, and started again on the same port."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        """The base URL for the openai SDK."""
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        """Start, and wait until the model is loaded."""
        program = Path(__file__).with_name("llm_server.py")
        self._process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, str(program), str(self.port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for line in self._process.stdout or ():
            if line.startswith("ready"):
                return
        raise RuntimeError("the model's server did not start")

    def kill(self) -> None:
        """End it without a word."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()


class Asker:
    """Asks, times, and notes where the answer came from."""

    def __init__(self, sdk: openai.OpenAI, table: Table) -> None:
        self.sdk = sdk
        self.table = table

    def ask(self, act: str, question: str) -> str:
        """Ask one question; how it was answered: ``miss``, ``hit``, or the error's name."""
        started = time.perf_counter()
        try:
            raw = self.sdk.with_raw_response.chat.completions.create(
                model="gemma", messages=[{"role": "user", "content": question}], max_tokens=8, temperature=0
            )
            how: str = raw.headers["x-dspex-cache"]
            answer = repr(raw.parse().choices[0].message.content)
        except openai.OpenAIError as exc:
            how, answer = type(exc).__name__, self._last_word(exc)
        took = f"{(time.perf_counter() - started) * 1000:.0f} ms"
        self.table.add_row(act, question, how, took, answer)
        return how

    def _last_word(self, exc: Exception) -> str:
        trace = explain(exc)
        return f"{trace[-1].layer}: {trace[-1].reason}" if trace else str(exc)


def main() -> int:
    """Play all acts; 0 when every one of them came out as it should."""
    logging.getLogger("dspex_pipe").addHandler(logging.NullHandler())
    stamina.instrumentation.set_on_retry_hooks([])  # stamina would log each retry, too
    console = Console()
    table = Table("", "question", "how", "took", "answer")
    checks: dict[str, bool] = {}

    with tempfile.TemporaryDirectory() as folder, LocalModel() as model:
        layers: list[Any] = [
            Logging(),
            Cache(Path(folder) / "answers.db"),
            Breaker(consecutive=2, open_for=0.5),
            Retry(attempts=2, wait_jitter=0.1),
        ]
        pipeline = Pipeline(layers)
        console.print(f"\n[bold]{pipeline!r}[/bold]\n")
        bare = openai.OpenAI(base_url=model.url, api_key="none")
        with pipeline, bare, attach(bare, pipeline) as sdk:
            asker = Asker(sdk, table)
            checks["asked"] = [asker.ask("asked", q) for q in QUESTIONS] == ["miss"] * 5
            checks["asked again"] = [asker.ask("asked again", q) for q in QUESTIONS] == ["hit"] * 5

            model.kill()
            kept = [asker.ask("server killed", q) for q in QUESTIONS[:2]]
            new = [asker.ask("server killed", q) for q in NEW_QUESTIONS]
            checks["server killed"] = kept == ["hit"] * 2 and "miss" not in new

            model.start()
            checks["started again"] = asker.ask("started again", NEW_QUESTIONS[0]) == "miss"
            table.add_section()
            state = pipeline.snapshot()
    console.print(table)
    console.print(state)
    wrong = [name for name, right in checks.items() if not right]
    console.print(
        f"[red]not as it should be: {wrong}[/red]" if wrong else "[green]all as it should be[/green]"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
