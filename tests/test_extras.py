"""What is missing says where it comes from."""

from __future__ import annotations

import sys

import pytest

from dspex_pipe import Pipeline, RateLimit, RedisStore, Retry
from dspex_pipe.extras import extra
from dspex_pipe.simulate import ProviderModel, Workload, simulate


def draw(path):
    simulate([Retry()], ProviderModel(), Workload(rate=1, duration=2)).plot(path / "picture.png")


@pytest.mark.parametrize(
    ("module", "name", "use"),
    [
        ("redis", "redis", lambda _: Pipeline([RateLimit(rpm=1, store=RedisStore())])),
        ("matplotlib.figure", "plot", draw),
    ],
)
def test_what_an_extra_brings_says_so_when_it_is_missing(monkeypatch, tmp_path, module, name, use):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "dspex_pipe.simulate.drawing", raising=False)
    with pytest.raises(ModuleNotFoundError, match=rf"{module}.* pip install 'dspex-pipe\[{name}\]'"):
        use(tmp_path)


def test_what_is_there_and_broken_says_what_it_says():
    with pytest.raises(ImportError, match=r"^broken$"), extra("redis"):
        raise ImportError("broken")
