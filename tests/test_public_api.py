"""The public surface, listed once: what is added or taken away shows here."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import dspex_pipe
from dspex_pipe import chaos, llm, simulate, testing


def test_the_front_door_holds_exactly_these_names():
    assert sorted(dspex_pipe.__all__) == [
        "Advice",
        "Answer",
        "Breaker",
        "BreakerOpen",
        "Budget",
        "Cache",
        "DeadlineExceeded",
        "DiskStore",
        "Event",
        "Handler",
        "IO",
        "Layer",
        "LayerError",
        "Logging",
        "Meaning",
        "MemoryStore",
        "Middleware",
        "OrderWarning",
        "Overloaded",
        "Pipeline",
        "RateLimit",
        "RateLimited",
        "Record",
        "RedisStore",
        "Refused",
        "Request",
        "Response",
        "Retry",
        "StreamIntegrity",
        "Suspended",
        "Timeout",
        "Trace",
        "Verdict",
        "attach",
        "build_async_client",
        "build_client",
        "explain",
        "options",
        "presets",
        "read_answer",
        "record_of",
        "refusal_of",
        "respond",
    ]
    assert all(hasattr(dspex_pipe, name) for name in dspex_pipe.__all__)


def test_the_front_door_loads_nothing_before_it_is_asked_for():
    program = """
import sys
import httpx
import dspex_pipe
assert not [name for name in sys.modules if name.startswith(("attr", "dspex_pipe."))]
assert dspex_pipe.options.__name__ == "options"  # not the module of that name
dspex_pipe.build_client(layers=[dspex_pipe.Retry()]).close()
assert dspex_pipe.options.__name__ == "options"
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"hishel", "pyrate_limiter", "dspex_pipe.layers.cache"} & set(done.stdout.split())
    with pytest.raises(AttributeError, match="no_such_thing"):
        dspex_pipe.no_such_thing  # noqa: B018


def test_what_type_checkers_read_of_the_front_door_is_what_it_loads():
    stub = ast.parse(Path(dspex_pipe.__file__).with_suffix(".pyi").read_text())
    said = {
        (node.module, alias.name, alias.asname)
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    parts = {(part, name, name) for part, names in dspex_pipe._PARTS.items() for name in names}
    assert said == parts | {(None, "presets", "presets")}


def test_the_front_door_opens_in_a_zipped_program(tmp_path):
    home = Path(dspex_pipe.__file__).parent
    with zipfile.ZipFile(tmp_path / "program.zip", "w") as program:
        for path in home.rglob("*.py"):
            program.write(path, Path("dspex_pipe", path.relative_to(home)))
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path / "program.zip")!r})
from dspex_pipe import Retry, __file__
print(__file__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(tmp_path))


def test_the_testing_room_holds_exactly_these_names():
    assert sorted(testing.__all__) == ["Reply", "Script", "VirtualIO", "check_layer"]


def test_the_room_of_faults_holds_exactly_these_names():
    assert sorted(chaos.__all__) == [
        "Chaos",
        "DoneWithoutFinish",
        "Drip",
        "Fault",
        "Latency",
        "Overload",
        "Raise",
        "SseError",
        "Stall",
        "Status",
        "Throttle",
        "Truncate",
    ]


def test_the_room_of_simulations_holds_exactly_these_names():
    assert sorted(simulate.__all__) == [
        "Call",
        "Change",
        "NaiveRetry",
        "Outage",
        "ProviderModel",
        "Report",
        "SCENARIOS",
        "Scenario",
        "SdkRetry",
        "Workload",
        "policies",
        "simulate",
        "table",
    ]


def test_every_public_thing_says_what_it_is_for():
    for name, thing in [m for room in (dspex_pipe, llm, simulate) for m in inspect.getmembers(room)]:
        if name not in {*dspex_pipe.__all__, *llm.__all__, *simulate.__all__}:
            continue
        if inspect.isclass(thing) or inspect.isroutine(thing):
            assert thing.__doc__, name


def test_the_room_of_named_clients_holds_exactly_these_names():
    assert sorted(llm.__all__) == [
        "AsyncStream",
        "AuthError",
        "BadRequest",
        "BreakerOpen",
        "Client",
        "ClientConfig",
        "ClientDown",
        "ClientEvent",
        "Completion",
        "ContextTooLong",
        "Crashed",
        "DeadlineExceeded",
        "Delta",
        "Env",
        "LLMError",
        "ProviderDown",
        "QuotaSpent",
        "RateLimited",
        "Stream",
        "Supervisor",
        "ToolCall",
        "arequest",
        "astream",
        "get_client",
        "request",
        "start_client",
        "status",
        "stop_client",
        "stream",
    ]


def test_importing_loads_nothing_heavy():
    heavy = ["httpx", "httpx2", "hishel", "stamina", "pyrate_limiter", "redis", "trio", "openai", "anthropic"]
    code = f"import sys, dspex_pipe.llm; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
