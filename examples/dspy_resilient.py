"""A small dspy program in bad weather: what its provider sees, and what the program gets.

Run it with ``python examples/dspy_resilient.py``; it needs dspy: ``pip install 'dspex-pipe[dspy]'``.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import dspy
from dspy.utils.exceptions import LMError

from dspex_pipe import Cache, presets
from dspex_pipe.llm.dspy import LM, lm
from provider import Provider

QUESTIONS = [f"What is {a} times {b}?" for a in range(6, 10) for b in range(2, 8)]

# What the local provider answers, as dspy's adapter reads it.
THOUGHT = """\
[[ ## reasoning ## ]]
Six by nine.

[[ ## answer ## ]]
Forty-two.

[[ ## completed ## ]]
"""


class Calculator(dspy.Module):  # type: ignore[misc] # dspy is untyped
    """Think first, then answer."""

    def __init__(self) -> None:
        super().__init__()
        self.think = dspy.ChainOfThought("question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        return self.think(question=question)


def answers(model: LM) -> list[str]:
    """What the program gets for all questions; a question that fails is left out."""
    program, got = Calculator(), []
    with dspy.context(lm=model):
        for question in QUESTIONS:
            with contextlib.suppress(LMError):
                got.append(program(question=question).answer)
    return got


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, Provider(text=THOUGHT) as provider:
        before = 0

        def made(model: str) -> LM:
            layers = presets.llm(cache=Cache(Path(folder, "answers.db")))
            return lm(model, layers=layers, api_key="test", api_base=f"{provider.url}/v1")

        def report(what: str, got: list[str]) -> None:
            nonlocal before
            right = sum(answer == "Forty-two." for answer in got)
            print(f"{what:<42} {right:>2} of {len(QUESTIONS)} answers, {provider.calls - before:>2} calls")
            before = provider.calls

        first = made("openai/weather")
        report("bad weather: 503s, 429s, broken answers", answers(first))
        report("the same questions again", answers(first))
        first.close()
        second = made("openai/weather")
        report("a new process, the same cache on disk", answers(second))
        report("a new rollout: new samples", answers(second.copy(rollout_id=1, temperature=1.0)))
        report("a replay that must cost nothing", answers(second.copy(options={"cache": "only_if_cached"})))
        second.close()
        down = made("openai/500")
        report("the provider is down: the breaker opens", answers(down))
        down.close()


if __name__ == "__main__":
    main()
