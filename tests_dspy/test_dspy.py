"""dspy through a pipeline: what its modules, its caches and its saved programs promise, with real sockets."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import gc
import json
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import dspy
import httpx
import pytest
from dspy.utils.exceptions import (
    LMAuthError,
    LMBillingError,
    LMConfigurationError,
    LMInvalidRequestError,
    LMRateLimitError,
    LMServerError,
    LMTimeoutError,
    LMTransportError,
    LMUnexpectedError,
)
from pyrate_limiter import Duration, Rate

from dspex_pipe import (
    Breaker,
    Cache,
    Pipeline,
    RateLimit,
    Retry,
    StreamIntegrity,
    Timeout,
    explain,
    options,
    refusal_of,
)
from dspex_pipe.llm import Env
from dspex_pipe.llm.dspy import LM, Engine, lm, service
from dspex_pipe.llm.dspy.gateway import gateway
from dspex_pipe.llm.lifetime import renew_all
from provider import Provider
from snippets import ROOT, snippets_of


@pytest.fixture
def make(provider):
    made = []

    def make(model="openai/ok", layers=(), **more):
        given = {"api_key": "sk-secret", "api_base": f"{provider.url}/v1", **more}
        made.append(lm(model, layers=layers, **given))
        return made[-1]

    yield make
    for model in made:
        model.close()


def ask(model, question="6 x 9?", module=dspy.ChainOfThought):
    with dspy.context(lm=model):
        return module("question -> answer")(question=question).answer


async def aask(model, question="6 x 9?"):
    with dspy.context(lm=model):
        return (await dspy.ChainOfThought("question -> answer").acall(question=question)).answer


# What a module gets


@pytest.mark.parametrize("module", [dspy.Predict, dspy.ChainOfThought])
def test_a_module_gets_its_answer_through_the_layers(make, provider, module):
    assert ask(make("openai/503x2", [Retry()]), module=module) == "Forty-two."
    assert provider.calls == 3
    assert provider.seen[0].headers["authorization"] == "Bearer sk-secret"


def test_async_modules_too_in_one_loop_after_another(make, provider):
    model = make("openai/503x2", [Cache(), Retry()])
    assert asyncio.run(aask(model)) == "Forty-two."
    assert asyncio.run(aask(model)) == "Forty-two."
    assert provider.calls == 3
    assert asyncio.run(aask(model, "another")) == "Forty-two."
    assert ask(model) == "Forty-two."  # blocking calls share the cache, and have a pool of their own
    assert provider.calls == 6


def test_many_threads_and_loops_at_once(make, provider):
    model = make(layers=[Cache()])

    async def several():
        return await asyncio.gather(*(aask(model, f"q{at}") for at in range(8)))

    answers = []
    threads = [
        *(threading.Thread(target=lambda: answers.extend(asyncio.run(several()))) for _ in range(3)),
        *(threading.Thread(target=lambda at=at: answers.append(ask(model, f"q{at}"))) for at in range(8)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == ["Forty-two."] * 32
    assert provider.calls == 8  # each question once, whoever asks: single flight


@pytest.mark.parametrize("mode", ["async", "async program", "blocking"])
def test_streaming(make, provider, mode):
    model = make(layers=[Cache(), Retry(), StreamIntegrity()])
    program = dspy.ChainOfThought("question -> answer")
    listener = dspy.streaming.StreamListener(signature_field_name="answer", allow_reuse=True)
    with dspy.context(lm=model):
        stream = dspy.streamify(
            program,
            stream_listeners=[listener],
            is_async_program=mode == "async program",
            async_streaming=mode != "blocking",
        )

        async def read():
            return [item async for item in stream(question="6 x 9?")]

        for again in (False, True):
            items = list(stream(question="6 x 9?")) if mode == "blocking" else asyncio.run(read())
            pieces = [item.chunk for item in items if isinstance(item, dspy.streaming.StreamResponse)]
            assert len(pieces) > 1
            assert "".join(pieces) == "Forty-two."
            assert items[-1].answer == "Forty-two."
            assert (model.history[-1]["usage"] == {}) is again or not again
        assert provider.calls == 1  # the second is a replay


def test_a_stream_that_breaks_off_is_an_error_and_never_kept(make, provider):
    model = make("openai/cutx1", layers=[Cache(), StreamIntegrity()])
    with dspy.context(lm=model):
        stream = dspy.streamify(dspy.ChainOfThought("question -> answer"), async_streaming=False)
        with pytest.raises((LMTransportError, ExceptionGroup)) as caught:
            list(stream(question="6 x 9?"))
        assert "LMTransportError" in repr(caught.value)
        assert [item.answer for item in stream(question="6 x 9?") if isinstance(item, dspy.Prediction)] == [
            "Forty-two."
        ]
    assert provider.calls == 2


@pytest.mark.parametrize(
    ("model", "path", "more"),
    [
        ("openai/ok", "/v1/chat/completions", {}),
        ("openai/ok", "/v1/responses", {"model_type": "responses"}),
        ("anthropic/claude-ok", "/v1/messages", {}),
    ],
)
def test_every_wire_format_is_recognised(make, provider, monkeypatch, model, path, more):
    monkeypatch.setattr(Provider, "fault_for", lambda *_: "ok")
    model = make(model, [Cache()], **more)
    assert ask(model) == ask(model) == "Forty-two."
    assert [seen.path for seen in provider.seen] == [path]


# Samples


def test_a_rollout_is_a_sample_of_its_own_and_has_one_answer(make, provider):
    model = make(layers=[Cache()])
    for rollout in (None, 0, 1, 2, 10**12, -1):
        for _ in range(2):
            ask(model.copy(rollout_id=rollout, temperature=1.0))
    assert provider.calls == 6
    module = dspy.ChainOfThought("question -> answer")
    with dspy.context(lm=model.copy(temperature=1.0)):
        module(question="6 x 9?", config={"rollout_id": 1})
        assert provider.calls == 6
        module(question="6 x 9?", config={"rollout_id": 77})
        assert provider.calls == 7
        asyncio.run(module.acall(question="6 x 9?", config={"rollout_id": 77}))
        assert provider.calls == 7


def test_a_sample_of_ones_own_does_not_make_rollouts_one(make, provider):
    model = make(layers=[Cache()])
    with options(sample=7):
        for _ in range(2):
            ask(model)
            for rollout in (1, 2):
                ask(model.copy(rollout_id=rollout, temperature=1.0))
        model("hi", n=3, temperature=1.0)
    assert provider.calls == 6


def test_each_of_n_answers_is_a_sample_of_its_own(make, provider):
    model = make(layers=[Cache()])
    assert len(model("hi", n=3, temperature=1.0)) == 3
    assert provider.calls == 3
    model("hi", n=3, temperature=1.0)
    model("hi", n=2, temperature=1.0)
    assert provider.calls == 3
    model("hi", n=5, temperature=1.0)
    assert provider.calls == 5


def test_best_of_n_asks_n_times_and_once_in_all(make, provider):
    best = dspy.BestOfN(
        dspy.ChainOfThought("question -> answer"), N=3, reward_fn=lambda _, got: 0.0, threshold=1.0
    )
    with dspy.context(lm=make(layers=[Cache()])):
        best(question="6 x 9?")
        assert provider.calls == 3
        best(question="6 x 9?")
        assert provider.calls == 3


def test_a_sample_that_failed_is_asked_for_again(make, provider):
    model = make("openai/503x1", [Cache()])
    with pytest.raises(LMServerError):
        ask(model)
    assert ask(model) == ask(model) == "Forty-two."
    assert provider.calls == 2


def test_without_a_cache_a_rollout_is_just_another_call(make, provider):
    model = make(layers=[Retry()])
    ask(model.copy(rollout_id=1, temperature=1.0))
    assert provider.calls == 1


# The cache


def test_a_cached_answer_has_used_no_tokens(make, provider):
    model = make(layers=[Cache()])
    with dspy.track_usage() as first:
        ask(model)
    with dspy.track_usage() as second:
        ask(model)
    assert first.get_total_tokens()["openai/ok"]["total_tokens"] == 8
    assert not second.get_total_tokens().get("openai/ok", {}).get("total_tokens")
    assert provider.calls == 1


PROGRAM = """
import sys
import dspy
from dspex_pipe import Cache, Retry
from dspex_pipe.llm.dspy import lm

model = lm("openai/ok", layers=[Cache("dspy"), Retry()], api_key="sk-secret", api_base=sys.argv[1])
dspy.configure(lm=model)
print(dspy.ChainOfThought("question -> answer")(question="6 x 9?").answer)
"""


def run(*arguments, code=PROGRAM):
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_cache_on_disk_survives_the_process(provider):
    assert run(f"{provider.url}/v1") == run(f"{provider.url}/v1") == "Forty-two."
    assert provider.calls == 1


def test_only_if_cached_replays_at_no_cost(make, provider):
    model = make(layers=[Cache(), Retry()])
    ask(model)
    with options(cache="only_if_cached"):
        assert ask(model) == "Forty-two."
        with pytest.raises(LMInvalidRequestError, match="only_if_cached sends nothing"):  # never tried again
            ask(model.copy(num_retries=3), "another")
        with pytest.raises(LMInvalidRequestError):
            asyncio.run(aask(model, "another"))
    replay = model.copy(options={"cache": "only_if_cached"})
    assert ask(replay) == "Forty-two."
    with dspy.context(lm=replay):  # into threads, too
        program = dspy.ChainOfThought("question -> answer")
        pairs = [(program, {"question": question}) for question in ("6 x 9?", "6 x 9?", "6 x 9?")]
        got = dspy.Parallel(num_threads=3, disable_progress_bar=True)(pairs)
    assert [each.answer for each in got] == ["Forty-two."] * 3
    assert provider.calls == 1


def test_the_default_keeps_answers_on_disk_and_retries(make, provider):
    model = make("openai/503x1", None)
    assert ask(model) == ask(model) == "Forty-two."
    assert provider.calls == 2
    assert list(Path(os.environ["XDG_CACHE_HOME"]).rglob("dspy*"))


# Errors


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("500", LMServerError),
        ("429", LMRateLimitError),
        ("drop", LMTransportError),
        ("truncate", LMTransportError),
    ],
)
@pytest.mark.parametrize("mode", ["blocking", "async"])
def test_what_fails_is_dspys_own_error_and_sent_once(make, provider, fault, error, mode):
    model = make(f"openai/{fault}")
    with pytest.raises(error) as caught:
        ask(model) if mode == "blocking" else asyncio.run(aask(model))
    assert provider.calls == 1  # dspy's retries are off: the layers do that
    assert "sk-secret" not in repr(caught.value) + str(caught.value)


def test_an_open_breaker_is_a_server_error_that_says_when(make, provider):
    model = make("openai/500", [Breaker.fuse()])
    for at in range(5):
        with pytest.raises(LMServerError):
            ask(model, f"q{at}")
    with pytest.raises(LMServerError, match="nothing was sent") as caught:
        ask(model.copy(temperature=0.5))  # a copy has the same circuit
    assert caught.value.retry_after > 0
    assert refusal_of(caught.value).layer == "Breaker"
    assert [event.decision for event in explain(caught.value)][-1] == "refused"
    assert provider.calls == 5


@pytest.mark.parametrize("mode", ["blocking", "async"])
def test_a_status_error_tells_what_the_layers_did(make, mode):
    model = make("openai/500", [Retry(attempts=2)])
    with pytest.raises(LMServerError) as caught:
        ask(model) if mode == "blocking" else asyncio.run(aask(model))
    assert [event.layer for event in explain(caught.value)] == ["transport", "Retry", "transport", "Retry"]
    stream = model.engine.stream(
        dspy.lm15.Request(model="openai/500", messages=(dspy.lm15.Message.user("x"),))
    )
    with pytest.raises(dspy.lm15.ServerError):
        next(stream)


def test_our_own_rate_and_the_deadline_are_dspys_errors_too(make, provider):
    model = make(layers=[RateLimit(Rate(1, Duration.HOUR), max_wait=0)])
    ask(model)
    with pytest.raises(LMRateLimitError, match="nothing was sent") as caught:
        ask(model, "more")
    assert caught.value.retry_after > 0
    assert provider.calls == 1
    with pytest.raises(LMTimeoutError):
        ask(make("openai/slow", timeout=0.05))
    with options(deadline=0.05), pytest.raises(LMTimeoutError):
        ask(make("openai/slow"))


@pytest.mark.parametrize("mode", ["blocking", "async"])
def test_a_504_of_the_provider_is_no_miss_of_ours(make, mode):
    with pytest.raises(LMTimeoutError):
        ask(make("openai/504")) if mode == "blocking" else asyncio.run(aask(make("openai/504")))


def test_nobody_listens(make):
    with pytest.raises(LMTransportError):
        ask(make(api_base="http://127.0.0.1:9/v1"))
    with pytest.raises(LMTimeoutError):
        ask(make("openai/slow", [Timeout(attempt=0.05)]))


def test_a_bug_in_a_layer_is_told_as_what_it_is(make):
    async def bug(request, call_next):
        raise KeyError("oops")

    with pytest.raises(LMUnexpectedError) as caught:
        ask(make(layers=[bug]))
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_spent_quota_and_a_wrong_key(make, provider, monkeypatch):
    with pytest.raises((LMRateLimitError, LMBillingError)):
        ask(make("openai/quota", [Retry()]))
    assert provider.calls == 1  # no waiting lifts it
    with pytest.raises(LMAuthError):
        ask(make("openai/401", [Retry()]))


# Copies, pickles, saved programs


def test_copies_share_the_layers(make, provider):
    model = make(layers=[Cache()])
    for other in (model.copy(), copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert isinstance(other, LM)
        assert other.pipeline is model.pipeline
        ask(other)
    with dspy.context(lm=None):
        program = dspy.ChainOfThought("question -> answer")
        program.set_lm(model)
        assert program.deepcopy()(question="6 x 9?").answer == "Forty-two."
    assert provider.calls == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "responses"}, "model_type=…"),
        ({"engine": "lm15"}, "engine=…"),
        ({"model": "anthropic/claude-x"}, "model=…"),
        ({"options": {"nonsense": 1}}, "nonsense"),
    ],
)
def test_a_copy_that_needs_another_lm_is_told_so(make, change, says):
    with pytest.raises((TypeError, ValueError), match=says):
        make(layers=[Cache()]).copy(**change)


def test_copies_have_options_of_their_own(make):
    model = make(layers=[Cache()], options=options(skip={"Cache"}))
    copied = model.copy(model="openai/other", temperature=0.3)
    copied.options["cache"] = "off"
    assert model.options == {"skip": ["Cache"]}
    assert json.loads(json.dumps(model.dump_state()["options"])) == model.options
    with pytest.raises(TypeError, match=r"made by lm\(…\)"):
        LM("openai/ok")


def test_two_lms_share_a_pipeline_only_if_they_are_told_to(make, provider):
    for _ in range(2):
        ask(make(layers=[Cache()]))
    assert provider.calls == 2
    shared = Pipeline([Cache()])
    for _ in range(2):
        ask(make(layers=[shared]))
    assert provider.calls == 3


def test_a_pickle_has_no_key_and_comes_back_as_what_is_like_it(make, provider, monkeypatch):
    model = make(layers=[Cache()], http={"headers": {"x-team": "sk-secret"}})
    other = make(layers=[Cache()], api_key="another")  # newer, and the same at first sight
    kept = pickle.dumps(model)
    assert b"sk-secret" not in kept
    assert pickle.loads(kept).pipeline is model.pipeline
    assert pickle.loads(pickle.dumps(other)).pipeline is other.pipeline
    code = "import pickle, sys; print(pickle.loads(bytes.fromhex(sys.argv[1]))('hi'))"
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-that-process")
    assert "Forty-two." in run(kept.hex(), code=code)
    assert provider.seen[-1].headers["authorization"] == "Bearer sk-of-that-process"


def test_what_came_in_a_pickle_is_one_from_task_to_task(make, provider, monkeypatch):
    model = make(layers=[Cache()])
    kept = pickle.dumps(model)
    model.close()  # as good as in another process
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    for _ in range(3):
        ask(pickle.loads(kept))
        gc.collect()
    assert provider.calls == 1
    monkeypatch.setattr(service, "_MOST_REVIVED", 1)
    others = [pickle.dumps(lm("openai/ok", layers=[], api_key="k")) for _ in range(2)]
    gc.collect()
    for other in others:
        pickle.loads(other)
    assert len(service._revived) == 1
    service._revived.clear()


def test_a_saved_program_finds_its_lm_by_name(make, provider, tmp_path):
    model = make(layers=[Cache()], name="judge", options={"cache": "read_only"})
    program = dspy.ChainOfThought("question -> answer")
    program.set_lm(model)
    program.save(tmp_path / "program.json")
    saved = (tmp_path / "program.json").read_text()
    assert "sk-secret" not in saved
    loaded = dspy.ChainOfThought("question -> answer")
    with pytest.raises(ValueError, match="allow_unsafe_lm_state=True"):
        loaded.load(tmp_path / "program.json")
    loaded.load(tmp_path / "program.json", allow_unsafe_lm_state=True)
    [found] = {id(each.lm): each.lm for each in loaded.predictors()}.values()
    assert found.pipeline is model.pipeline
    assert (found.options, found.num_retries, found.cache) == ({"cache": "read_only"}, 0, False)
    assert loaded(question="6 x 9?").answer == "Forty-two."
    newest = make(layers=[Cache()], name="judge")  # as in a notebook, where a cell runs again
    make(layers=[], name="judge", model_type="responses")
    loaded.load(tmp_path / "program.json", allow_unsafe_lm_state=True)
    assert loaded.predictors()[0].lm.pipeline is newest.pipeline
    other = make(layers=[Cache()], name="judge", api_key="another")
    with pytest.raises(LookupError, match="several here have that name"):
        loaded.load(tmp_path / "program.json", allow_unsafe_lm_state=True)
    for each in (model, newest, other):
        each.close()
    with pytest.raises(LookupError, match=r"make it with lm\(…, name='judge'\)"):
        loaded.load(tmp_path / "program.json", allow_unsafe_lm_state=True)


def test_a_program_saved_with_its_state_only_needs_no_lm(make, provider, tmp_path):
    program = dspy.ChainOfThought("question -> answer")
    program.save(tmp_path / "program.json")
    loaded = dspy.ChainOfThought("question -> answer")
    loaded.load(tmp_path / "program.json")
    with dspy.context(lm=make()):
        assert loaded(question="6 x 9?").answer == "Forty-two."


def test_a_whole_program_saved_runs_elsewhere(make, provider, tmp_path, monkeypatch):
    program = dspy.ChainOfThought("question -> answer")
    program.set_lm(make(layers=[Cache("dspy")]))
    program.save(tmp_path / "program", save_program=True)
    assert b"sk-secret" not in b"".join(f.read_bytes() for f in (tmp_path / "program").iterdir())
    code = "import sys, dspy; print(dspy.load(sys.argv[1], allow_pickle=True)(question='6 x 9?').answer)"
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-that-process")
    assert run(str(tmp_path / "program"), code=code) == "Forty-two."


# The documentation, and the example

SNIPPETS = [snippet.values[1] for snippet in snippets_of(ROOT / "docs" / "dspy.md")]


def test_the_guides_snippets_run_one_after_another(provider, monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", "test")
    monkeypatch.setenv("OPENAI_BASE_URL", f"{provider.url}/v1")
    monkeypatch.chdir(tmp_path)
    assert len(SNIPPETS) == 4
    assert run(code="\n".join(SNIPPETS)) == "Forty-two."
    assert provider.calls == 4  # a question, and three samples


def test_the_examples_answers_and_the_calls_that_the_server_saw():
    done = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "examples" / "dspy_resilient.py")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [line.rsplit(maxsplit=6)[1:] for line in done.stdout.splitlines()] == [
        f"{answers} of 24 answers, {calls} calls".split()
        for answers, calls in [(24, 27), (24, 0), (24, 0), (24, 24), (24, 0), (0, 10)]
    ]


# What it is made of


def test_it_tells_adapters_what_the_model_can(make):
    native = dspy.LM("openai/gpt-4o-mini", engine="lm15")
    ours = make("openai/gpt-4o-mini")
    assert ours.supports_function_calling is native.supports_function_calling is True
    assert ours.supports_reasoning is native.supports_reasoning
    assert ours.supports_response_schema is native.supports_response_schema is True
    assert ours.supported_params == native.supported_params


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"layers": [7]}, "7"),
        ({"layers": 7}, r"lm\(layers=…\) takes a list of layers"),
        ({"http": {"timeout": 3}}, "settings of their own"),
        ({"http": {"base_url": "http://x"}}, "settings of their own"),
        ({"layers": "abc"}, "a list of layers"),
        ({"api_key": ""}, "an empty string"),
        ({"api_key": 3}, "got int"),
        ({"api_base": "ftp://x"}, "http://"),
        ({"api_base": "https://me:pw@x"}, "no credentials"),
        ({"timeout": 0}, "seconds"),
        ({"model_type": "text"}, '"chat" or "responses"'),
        ({"http": 3}, "a mapping"),
        ({"http": {"nonsense": 1}}, "nonsense"),
        ({"name": ""}, "a name"),
        ({"options": {"nonsense": 1}}, "nonsense"),
        ({"options": {"deadline": "never"}}, "deadline"),
    ],
)
def test_bad_input_is_told_when_it_is_made(given, says):
    with pytest.raises((TypeError, ValueError), match=says):
        lm("openai/ok", **{"layers": [], "api_key": "sk-secret", **given})


def test_an_unknown_provider_is_told_when_it_is_made():
    with pytest.raises(dspy.lm15.LM15Error):
        lm("nobody/nothing", layers=[])


def test_the_key_is_in_no_repr(make):
    model = make(layers=[Cache()])
    assert repr(model.engine) == "Engine('openai/ok', Pipeline([Cache()]))"
    assert "sk-secret" not in repr(vars(model)) + repr(vars(model.engine.service)) + json.dumps(
        model.dump_state()
    )


def test_the_key_may_come_from_a_function_or_a_variable(make, provider, monkeypatch):
    keys = iter(["one", "two"])
    model = make(api_key=lambda: next(keys))
    model("hi")
    model("hi")
    monkeypatch.setenv("TEAM_KEY", "team")
    make(api_key=Env("TEAM_KEY"))("hi")
    with pytest.raises(LMConfigurationError, match="OPENAI_API_KEY"):
        make(api_key=None)("hi")
    monkeypatch.setenv("OPENAI_API_KEY", "three")
    make(api_key=None)("hi")
    assert [seen.headers["authorization"][7:] for seen in provider.seen] == ["one", "two", "team", "three"]


@pytest.mark.parametrize(
    ("model", "variable", "path"),
    [
        ("openai/ok", "OPENAI_API_BASE", "/v1"),
        ("openai/ok", "OPENAI_BASE_URL", "/v1"),
        ("anthropic/ok", "ANTHROPIC_BASE_URL", ""),
        ("anthropic/ok", "ANTHROPIC_API_BASE", "/v1"),
        ("gpt-unknown", "OPENAI_BASE_URL", "/v1"),
        ("openai:ok", "OPENAI_BASE_URL", "/v1"),
        ("ollama/ok", "OLLAMA_API_BASE", ""),
    ],
)
def test_a_gateway_named_by_a_variable_is_honoured(make, provider, monkeypatch, model, variable, path):
    monkeypatch.setenv(variable, provider.url + path)
    assert ask(make(model, api_base=None)) == "Forty-two."
    assert provider.calls == 1


def test_a_variable_that_holds_no_address_is_told_and_no_other_providers_is_read(monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "https://me:sk-secret@gw.test/v1")
    with pytest.raises(ValueError, match="OPENAI_BASE_URL takes a URL") as caught:
        lm("openai/ok", layers=[], api_key="k")
    assert "sk-secret" not in str(caught.value)
    assert gateway("azure/ok", "azure-chat") is None


def test_what_was_declared_to_dspy_is_not_overridden(make, provider, monkeypatch):
    access = dspy.lm15.AccessPolicy("acme", base_url=f"{provider.url}/v1", env_keys=("ACME_KEY",))
    dspy.lm15.register_provider(
        dspy.lm15.ProviderDefinition.chat(access, compat=dspy.lm15.OpenAIChatCompat())
    )
    try:
        monkeypatch.setenv("ACME_BASE_URL", "http://127.0.0.1:9")
        assert ask(make("acme/ok", api_base=None)) == "Forty-two."
    finally:
        dspy.lm15.unregister_provider("acme")


def test_the_providers_own_address_is_the_default(make):
    async def stay(request, call_next):
        return httpx.Response(418, json={"error": {"message": str(request.url)}})

    with pytest.raises(Exception, match=r"https://api\.openai\.com/v1/chat/completions"):
        ask(make(layers=[stay], api_base=None))


def test_httpx2s_clients_serve_as_well(make, provider):
    httpx2 = pytest.importorskip("httpx2")
    seen = []

    async def note(request, call_next):
        seen.append(type(request).__module__.partition(".")[0])
        return await call_next(request)

    assert ask(make(layers=[note], http={"http": httpx2})) == "Forty-two."
    assert seen == ["httpx2"]


def test_compressed_answers_arrive_decoded(make, provider):
    async def compress(request, call_next):
        import gzip

        response = await call_next(request)
        body = gzip.compress(b"".join([piece async for piece in response.stream]))
        await response.aclose()
        headers = {"content-type": "application/json", "content-encoding": "gzip"}
        return httpx.Response(200, headers=headers, stream=httpx.ByteStream(body))

    assert ask(make(layers=[compress])) == "Forty-two."


def test_a_dead_host_is_given_up_after_seconds_to_connect(make):
    seen = []

    async def note(request, call_next):
        seen.append(request.extensions["timeout"])
        return await call_next(request)

    ask(make(layers=[note]))
    assert seen == [{"connect": 10.0, "read": 600.0, "write": 600.0, "pool": 600.0}]


def test_an_lm_that_is_forgotten_leaves_no_connection(provider):
    model = lm("openai/ok", layers=[], api_key="k", api_base=f"{provider.url}/v1")
    ask(model)
    del model
    gc.collect()
    assert provider.wait_until_left(5)


def test_a_call_that_is_closed_elsewhere_harms_nobody(make):
    async def leave():
        call = make().acall("hi")
        contextvars.copy_context().run(call.send, None)  # begun there, and suspended
        call.close()

    asyncio.run(leave())


def test_after_close_it_says_so(make, provider):
    model = make(layers=[Cache()])
    ask(model)
    model.close()
    model.close()
    for call in (lambda: ask(model), lambda: asyncio.run(aask(model))):
        with pytest.raises(LMConfigurationError, match="was closed: make a new one"):
            call()

    async def leave():
        other = make()
        await aask(other)
        assert not await asyncio.to_thread(provider.wait_until_left, 0.01)
        other.close()
        await other.aclose()
        await other.aclose()
        assert await asyncio.to_thread(provider.wait_until_left, 5)
        await make()._async_engine_spec.aclose()

    asyncio.run(leave())


def test_a_stream_that_is_left_gives_its_connection_back(make, provider):
    model = make(layers=[Retry(), StreamIntegrity()])
    stream = model.engine.stream(
        dspy.lm15.Request(model="openai/ok", messages=(dspy.lm15.Message.user("hi"),))
    )
    assert next(stream).type == "start"
    assert not provider.wait_until_left(0.01)
    stream.close()
    assert provider.wait_until_left(5)

    async def leave():
        request = dspy.lm15.Request(model="openai/ok", messages=(dspy.lm15.Message.user("hi"),))
        stream = model._async_engine_spec.stream(request)
        assert (await anext(stream)).type == "start"
        await stream.aclose()
        assert await asyncio.to_thread(provider.wait_until_left, 5)

    asyncio.run(leave())


def test_what_nobody_holds_is_gone(provider):
    model = lm("openai/ok", layers=[], api_key="k", api_base=f"{provider.url}/v1", name="gone")
    state = model.dump_state()
    model.close()
    del model
    gc.collect()
    with pytest.raises(LookupError):
        Engine.load_state(state["engine"]["state"])


def test_a_forked_process_has_connections_of_its_own(make, provider):
    model = make(layers=[Cache()])
    ask(model)
    child = os.fork()
    if not child:
        try:
            os._exit(0 if ask(model) == "Forty-two." else 1)
        except BaseException:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    ask(model, "parent")
    assert provider.calls == 3
    assert provider.connections == 2


def test_what_is_renewed_has_nothing_of_before(make, provider):
    model = make(layers=[Cache()])
    ask(model)
    closed = make()
    closed.close()
    old = model.engine.service.pools
    renew_all()
    ask(model)
    assert provider.calls == 2
    old.close()
    with pytest.raises(LMConfigurationError):
        ask(closed)
