from __future__ import annotations

from collections.abc import Iterator

import pytest
import stamina

from modes import LIBRARIES, MODES, World
from provider import Provider

WORLDS = [World(mode, http) for http in LIBRARIES for mode in MODES]


@pytest.fixture(params=WORLDS, ids=repr)
def world(request: pytest.FixtureRequest) -> World:
    """Every mode and library in turn."""
    return request.param


@pytest.fixture(params=LIBRARIES, ids=lambda http: http.__name__)
def http(request: pytest.FixtureRequest):
    """httpx and httpx2 in turn."""
    return request.param


@pytest.fixture
def provider() -> Iterator[Provider]:
    """A misbehaving LLM provider on a real socket."""
    with Provider() as running:
        yield running


@pytest.fixture(autouse=True)
def _quiet_stamina() -> Iterator[None]:
    """stamina's own log lines are not under test; its switches are put back where a test set them."""
    stamina.instrumentation.set_on_retry_hooks([])
    yield
    stamina.instrumentation.set_on_retry_hooks([])
    stamina.set_active(True)
    stamina.set_testing(False)


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own proxies must not decide what a test sees."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
