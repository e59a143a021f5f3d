"""The list of layers: order, names, state and its sharing, and what is no layer."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import ClassVar

import attrs
import httpx
import pytest

from dspex_pipe import (
    Logging,
    Meaning,
    Pipeline,
    Retry,
    build_client,
    explain,
    read_answer,
    record_of,
    respond,
)
from dspex_pipe.testing import Reply, Script, VirtualIO


def tag(name):
    """A layer that writes its name into the request and the response."""

    async def layer(request, call_next):
        request.headers["x-way"] = request.headers.get("x-way", "") + name
        response = await call_next(request)
        response.headers["x-way-back"] = response.headers.get("x-way-back", "") + name
        return response

    layer.__name__ = name
    return layer


@attrs.frozen
class Count:
    """A described layer with state: how many calls passed."""

    def build(self):
        return Counting()


class Counting:
    def __init__(self):
        self.calls = 0
        self.closes = 0

    async def __call__(self, request, call_next, io):
        self.calls += 1
        return await call_next(request)

    def snapshot(self):
        return {"calls": self.calls}

    def close(self):
        self.closes += 1


class AsyncClosing(Counting):
    close = None

    async def aclose(self):
        self.closes += 1


@attrs.frozen
class CountAsync:
    def build(self):
        return AsyncClosing()


def test_the_first_layer_is_the_outermost(world):
    async def main():
        script = Script(200)
        async with world.client([tag("a"), tag("b"), tag("c")], transport=script) as client:
            response = await client.get("http://x.test/")
        assert script.requests[0].headers["x-way"] == "abc"
        assert response.headers["x-way-back"] == "cba"

    world.run(main)


def test_an_empty_pipeline_is_the_identity(world):
    async def main():
        script = Script(Reply(status=418, content=b"tea", headers={"x-pot": "1"}))
        async with world.client([], transport=script) as client:
            response = await client.post("http://x.test/a?b=c", content=b"in", headers={"x-h": "1"})
        sent = script.requests[0]
        assert (sent.method, str(sent.url), sent.headers["x-h"]) == ("POST", "http://x.test/a?b=c", "1")
        assert sent.content == b"in"
        assert (response.status_code, response.content, response.headers["x-pot"]) == (418, b"tea", "1")

    world.run(main)


def test_a_layer_may_answer_by_itself(world):
    async def closed(request, call_next):
        return respond(request, 503, headers={"x-why": "sunday"}, content=b"closed")

    async def main():
        script = Script()
        async with world.client([closed], transport=script) as client:
            response = await client.get("http://x.test/")
        assert (response.status_code, response.content, script.requests) == (503, b"closed", [])
        assert isinstance(response, world.http.Response)

    world.run(main)


def test_repr_is_the_flat_list():
    inner = Pipeline([Retry(attempts=5), tag("c")])
    assert repr(Pipeline([Logging(), inner, tag("d")])) == "Pipeline([Logging(), Retry(attempts=5), c, d])"
    assert repr(Pipeline()) == "Pipeline([])"


def test_one_description_in_two_pipelines_is_two_states():
    count = Count()
    one, two = Pipeline([count]), Pipeline([count])
    one.client(transport=Script(200)).get("http://x.test/")
    assert (one[Count].calls, two[Count].calls) == (1, 0)


def test_clients_of_one_pipeline_share_its_state_across_modes():
    pipeline = Pipeline([Count()])
    pipeline.client(transport=Script(200)).get("http://x.test/")

    async def main():
        await pipeline.async_client(transport=Script(200)).get("http://x.test/")

    asyncio.run(main())
    assert pipeline[Count].calls == 2


def test_a_nested_pipeline_keeps_and_shares_its_state():
    shared = Pipeline([Count()])
    one, two = Pipeline([Logging(), shared]), Pipeline([shared, shared])
    one.client(transport=Script(200)).get("http://x.test/")
    two.client(transport=Script(200)).get("http://x.test/")
    assert shared[Count].calls == 3
    assert one[Count] is shared[Count]


def test_a_nested_pipeline_tells_its_own_listener_only_of_its_own_part():
    inside, outside = [], []
    inner = Pipeline([Retry(wait_initial=0, wait_jitter=0)], on_event=inside.append)

    async def chatty(request, call_next):
        response = await call_next(request)
        record_of(request).emit("chatty", "spoke")
        return response

    outer = Pipeline([chatty, inner], on_event=outside.append)
    outer.client(transport=Script(503, 200), io=VirtualIO()).get("http://x.test/")
    assert [e.layer for e in inside] == ["transport", "Retry", "transport"]
    assert [e.layer for e in outside] == ["transport", "Retry", "transport", "chatty"]


def test_the_running_layer_is_found_by_its_type():
    pipeline = Pipeline([Logging(), Count()])
    assert isinstance(pipeline[Count], Counting)
    assert pipeline[Counting] is pipeline[Count]


@pytest.mark.parametrize("layers", [[], [Count(), Count()], [Count(), Pipeline([Count()])]], ids=str)
def test_none_or_several_of_a_type_is_an_error(layers):
    with pytest.raises(KeyError, match=r"\d layers of Pipeline.* are a Count, not exactly one"):
        Pipeline(layers)[Count]


def test_snapshot_is_safe_for_json():
    pipeline = Pipeline([Count(), Logging(), Pipeline([Retry(), Count()])])
    pipeline.client(transport=Script(200)).get("http://x.test/")
    assert json.loads(json.dumps(pipeline.snapshot())) == {
        "layers": [
            {"layer": "Count", "calls": 1},
            {"layer": "Logging"},
            {
                "layer": "Pipeline",
                "layers": [{"layer": "Retry", "calls": 1, "retries": 0}, {"layer": "Count", "calls": 1}],
            },
        ]
    }


def test_close_ends_the_state_of_its_own_layers_and_of_no_nested_pipeline():
    nested = Pipeline([Count()])
    with Pipeline([Count(), nested, Logging()]) as pipeline:
        (own, _, _) = (step.middleware for step in pipeline.steps)
    assert (own.closes, nested[Count].closes) == (1, 0)


def test_aclose_closes_both_kinds_and_close_says_when_it_cannot():
    async def main():
        async with Pipeline([Count(), CountAsync(), Logging()]) as pipeline:
            pass
        return pipeline

    pipeline = asyncio.run(main())
    assert (pipeline[Count].closes, pipeline[CountAsync].closes) == (1, 1)
    with pytest.raises(TypeError, match=r"layer CountAsync closes asynchronously: await pipeline.aclose\(\)"):
        pipeline.close()


class BuildsNothing:
    def build(self):
        return None


async def one_argument(request):
    """Not a layer."""


async def wants_a_word(request, call_next, *, word):
    """Not a layer."""


async def four_arguments(request, call_next, io, more):
    """Not a layer."""


def not_async(request, call_next):
    return call_next(request)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (Retry, r"layers= takes a list of layers, got <class"),
        (Retry(), r"layers= takes a list of layers, got Retry\(\)"),
        ("Retry", r"layers= takes a list of layers, got 'Retry'"),
        ({"a": Retry()}, r"layers= takes a list of layers, got \{"),
        (None, r"layers= takes a list of layers, got None"),
        ([Retry], r"Retry is a class: a layer is an instance of it, Retry\(…\)"),
        ([None], r"None is not a layer: it takes async def layer\(request, call_next\), or .* build\(\)"),
        ([not_async], r"not_async .* is not a layer: it takes async def"),
        ([one_argument], r"layer one_argument\(request\): a layer takes \(request, call_next\) or"),
        ([four_arguments], r"layer four_arguments\(request, call_next, io, more\): a layer takes"),
        ([wants_a_word], r"layer wants_a_word\(request, call_next, \*, word\): a layer takes"),
        ([BuildsNothing()], r"BuildsNothing.build\(\) returned None, which is not an async callable"),
    ],
)
def test_what_is_no_layer_is_refused_when_the_pipeline_is_built(layers, message):
    with pytest.raises(TypeError, match=message):
        build_client(layers)


def test_on_event_must_be_a_function():
    with pytest.raises(TypeError, match="on_event= takes a function of one event, got 3"):
        Pipeline([], on_event=3)


@pytest.mark.parametrize(
    "meanings",
    [
        {"x": "throttled"},
        {200: Meaning.OK},
        {True: Meaning.FAILED},
        {600: Meaning.FAILED},
        {None: Meaning.AUTH},
    ],
    ids=repr,
)
def test_meanings_hold_codes_and_statuses(meanings):
    with pytest.raises(
        ValueError, match=r"meanings= takes error codes \(strings\) or statuses \(400 to 599\)"
    ):
        Pipeline([], meanings=meanings)


def test_meanings_of_nested_pipelines_hold_for_the_whole_stack():
    inner = Pipeline([], meanings={"a": Meaning.THROTTLED, 418: Meaning.AUTH})
    outer = Pipeline([inner], meanings={418: Meaning.OVERLOADED})
    assert outer.meanings == {"a": Meaning.THROTTLED, 418: Meaning.OVERLOADED}
    seen = []

    async def look(request, call_next):
        response = await call_next(request)
        seen.append(read_answer(response, record_of(request)).meaning)
        return response

    build_client(Pipeline([look, outer]), transport=Script(418)).get("http://x.test/")
    assert seen == [Meaning.OVERLOADED]
    # a pipeline that another one's transport leads to
    upper = Pipeline([look], meanings={418: Meaning.QUOTA_SPENT})
    httpx.Client(transport=Pipeline([look]).transport(outer.transport(Script(418)))).get("http://x.test/")
    httpx.Client(transport=upper.transport(outer.transport(Script(418)))).get("http://x.test/")
    assert seen == [Meaning.OVERLOADED, Meaning.OVERLOADED, Meaning.QUOTA_SPENT]


def test_a_rebuilt_pipeline_has_its_own_meanings_and_those_of_what_is_nested_in_it_now():
    inner = Pipeline([], meanings={"a": Meaning.THROTTLED})
    outer = Pipeline([inner], meanings={418: Meaning.OVERLOADED})
    assert outer.rebuilt([inner]).meanings == outer.meanings
    assert outer.rebuilt([]).meanings == {418: Meaning.OVERLOADED}


def test_callable_objects_and_partials_are_layers():
    async def named(name, request, call_next):
        request.headers["x-name"] = name
        return await call_next(request)

    script = Script(200)
    build_client([partial(named, "p"), Counting()], transport=script).get("http://x.test/")
    assert script.requests[0].headers["x-name"] == "p"


def test_layers_may_come_from_any_iterable():
    assert len(Pipeline(layer for layer in (Retry(), Logging())).steps) == 2


def test_an_option_may_be_declared_by_a_layer_of_ones_own():
    @attrs.frozen
    class Team:
        options: ClassVar = {"team": str}

        def build(self):
            async def run(request, call_next, io):
                request.headers["x-team"] = record_of(request).options.get("team", "none")
                return await call_next(request)

            return run

    script = Script(200, forever=True)
    client = build_client([Pipeline([Team()])], transport=script)
    client.get("http://x.test/", headers={"x-dspex-team": "search"})
    client.get("http://x.test/", extensions={"dspex": {"team": "maps"}})
    assert [r.headers["x-team"] for r in script.requests] == ["search", "maps"]
    assert len(explain(client.get("http://x.test/"))) == 1


def test_further_arguments_with_defaults_are_the_layers_own():
    async def flagged(request, call_next, limit=10, *, flag=True):
        request.headers["x-limit"] = f"{limit} {flag}"
        return await call_next(request)

    async def optional(request, call_next, io=None):
        request.headers["x-io"] = type(io).__name__
        return await call_next(request)

    script = Script(200)
    build_client([flagged, optional], transport=script).get("http://x.test/")
    assert script.requests[0].headers["x-limit"] == "10 True"
    assert script.requests[0].headers["x-io"] == "BlockingIO"


def test_one_layer_that_fails_to_close_keeps_no_other_open():
    class Fails(Counting):
        def close(self):
            raise OSError("no")

    @attrs.frozen
    class CountFails:
        def build(self):
            return Fails()

    pipeline = Pipeline([Count(), CountFails(), Count()])
    with pytest.raises(OSError, match="no"):
        pipeline.close()
    assert [step.middleware.closes for step in pipeline.steps] == [1, 0, 1]
    with pytest.raises(OSError, match="no"):
        asyncio.run(pipeline.aclose())
    assert [step.middleware.closes for step in pipeline.steps] == [2, 0, 2]
