"""Whole calls, answered from memory: ours, litellm's and dspy's.

litellm and dspy need openai 2, our other measurements openai 3: so this part runs in an environment of its
own, as a process that tells its samples on stdout. ``make bench-whole`` makes that environment.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import dspex_pipe as dspex
from dspex_pipe import llm

from .calls import PATH
from .measure import Block, Samples, interleave
from .wires import loopback, module

__all__ = ["measure"]

_NEEDS = ("litellm", "dspy", "openai")
_MODEL = "gpt-4o-mini"
_PROMPT = "hello " * 50
_MESSAGES: Any = [{"role": "user", "content": _PROMPT}]
_KEY = "sk-benchmark"


def measure(python: Path, *, rounds: int) -> tuple[Samples, str | None]:
    """The samples of a process of this interpreter; or none, and why."""
    if not python.is_file():
        return Samples([]), f"there is no {python}: make bench-whole makes it"
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "DSPY_DISABLE_MODEL_METADATA": "1"}
    done = subprocess.run(  # noqa: S603 - ourselves
        [python, "-W", "ignore", "-m", __name__, str(rounds)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    last = done.stdout.strip().rpartition("\n")[2]
    if done.returncode or not last.startswith("{"):
        return Samples([]), done.stderr.strip().rpartition("\n")[2] or "it told nothing"
    samples = Samples([])
    samples.rounds.update(json.loads(last))
    return samples, None


def _calls(url: str) -> Mapping[str, Callable[[], Any]]:
    import dspy  # noqa: PLC0415 - only this environment has them
    import litellm  # noqa: PLC0415
    import openai  # noqa: PLC0415

    litellm.cache = litellm.Cache()
    litellm.suppress_debug_info = True
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=True)
    lm = dspy.LM(f"openai/{_MODEL}", api_base=f"{url}/v1", api_key=_KEY, cache=True)
    body = {"model": _MODEL, "messages": _MESSAGES}
    client = dspex.build_client([dspex.Cache()])
    llm.start_client(
        "benchmark",
        llm.ClientConfig(model=_MODEL, base_url=f"{url}/v1", api_key=_KEY, layers=[dspex.Cache()]),
    )
    sdk = dspex.attach(openai.OpenAI(api_key=_KEY, base_url=f"{url}/v1"), [dspex.Cache()])
    bare = openai.OpenAI(api_key=_KEY, base_url=f"{url}/v1", max_retries=0)
    return {
        "client.post, a hit": lambda: client.post(url + PATH, json=body),
        "llm.request, a hit": lambda: llm.request("benchmark", _PROMPT),
        "openai SDK, a hit": lambda: sdk.chat.completions.create(model=_MODEL, messages=_MESSAGES),
        "openai SDK, uncached, over loopback": lambda: bare.chat.completions.create(
            model=_MODEL, messages=_MESSAGES
        ),
        "litellm, a hit": lambda: litellm.completion(
            model=f"openai/{_MODEL}", api_base=f"{url}/v1", api_key=_KEY, messages=_MESSAGES, caching=True
        ),
        "dspy.LM, a hit": lambda: lm(_PROMPT),
    }


def _block(call: Callable[[], Any]) -> Block:
    def block(calls: int) -> float:
        started = perf_counter()
        for _ in range(calls):
            call()
        seconds = perf_counter() - started
        time.sleep(0.02)  # litellm goes on in threads of its own: the others must not pay for that
        return seconds

    return block


def _main(rounds: int) -> None:
    for name in _NEEDS:
        if isinstance(why := module(name), str):
            raise SystemExit(f"{why}: whole calls are not measured")
    logging.disable()
    warnings.simplefilter("ignore")
    with loopback() as url:
        samples = interleave(
            {name: _block(call) for name, call in _calls(url).items()}, rounds=rounds, calls=20, warm_up=5
        )
    print(json.dumps(samples.rounds), flush=True)
    llm.stop_client("benchmark")


if __name__ == "__main__":
    _main(int(sys.argv[1]))
