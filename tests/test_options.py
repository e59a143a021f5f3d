"""Options of one call: three equal ways, one precedence, and errors that say what is allowed."""

from __future__ import annotations

import contextvars
import math
import threading
from typing import ClassVar

import anyio
import httpx
import pytest
from hypothesis import given, strategies as st

from dspex_pipe import Pipeline, Retry, build_client, options, record_of
from dspex_pipe.options import CORE, ambient, check, names, seconds, switch
from dspex_pipe.testing import Script

URL = "http://upstream.test/thing"
KNOWN = {**CORE, "retry": switch}
WAYS = ["header", "extensions", "with"]
HEADER_OF = {True: "on", False: "off"}


class Look:
    """Notes the options of each call, and declares two of its own."""

    options: ClassVar = {"tier": str, "dry_run": switch}

    def __init__(self):
        self.seen = []

    def build(self):
        async def look(request, call_next, io):
            self.seen.append(dict(record_of(request).options))
            return await call_next(request)

        return look


def as_headers(values):
    """The options as a caller writes them into headers."""

    def text(value):
        return (
            value if isinstance(value, str) else HEADER_OF[value] if isinstance(value, bool) else repr(value)
        )

    return {
        f"x-dspex-{name.replace('_', '-')}": ",".join(value) if isinstance(value, list) else text(value)
        for name, value in values.items()
    }


async def call(client, way, **values):
    """One GET with these options, given in one of the three ways."""
    if way == "header":
        return await client.get(URL, headers=as_headers(values))
    if way == "extensions":
        return await client.get(URL, extensions=options(**values))
    with options(**values):
        return await client.get(URL)


def one(way, layers=(), **values):
    """The same with a blocking httpx client; what the server was sent."""
    script = Script(200)
    with build_client([Retry(), *layers], transport=script) as client:
        if way == "header":
            client.get(URL, headers=as_headers(values))
        elif way == "extensions":
            client.get(URL, extensions=options(**values))
        else:
            with options(**values):
                client.get(URL)
    return script.requests[0]


# Three equal ways


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "values",
    [
        {"deadline": 20},
        {"deadline": 0.5},
        {"retry": False},
        {"retry": True, "skip": ["Look2"]},
        {"skip": ["Retry", "Look2"], "tier": "gold", "dry_run": True},
    ],
    ids=",".join,
)
def test_the_three_ways_are_equal(world, way, values):
    look, script = Look(), Script(200)

    async def passed_by(request, call_next):
        return await call_next(request)

    passed_by.__name__ = "Look2"

    async def main():
        async with world.client([look, Retry(), passed_by], transport=script) as client:
            await call(client, way, **values)

    world.run(main)
    expected = {**values, "skip": frozenset(values["skip"])} if "skip" in values else values
    assert look.seen == [expected]
    assert not [name for name in script.requests[0].headers if "dspex" in name]


def test_the_nearest_to_the_call_wins_headers_then_extensions_then_with(world):
    look = Look()

    async def main():
        async with world.client([look], transport=Script(200, forever=True)) as client:
            with options(deadline=1, tier="with"):
                await client.get(URL)
                await client.get(URL, extensions=options(deadline=2))
                await client.get(URL, headers={"x-dspex-deadline": "3"})
                await client.get(
                    URL, headers={"x-dspex-tier": "header"}, extensions=options(tier="extension")
                )

    world.run(main)
    assert look.seen == [
        {"deadline": 1, "tier": "with"},
        {"deadline": 2, "tier": "with"},
        {"deadline": 3, "tier": "with"},
        {"deadline": 1, "tier": "header"},
    ]


def test_options_merge_with_other_extensions():
    marker, look = object(), Look()
    script = Script(200)
    given_ = {**options(deadline=3), "trace": marker}
    with build_client([look], transport=script) as client:
        client.get(URL, extensions=given_)
    assert look.seen == [{"deadline": 3}]
    assert script.requests[0].extensions["trace"] is marker
    assert given_ == {"dspex": {"deadline": 3}, "trace": marker}


def test_options_is_a_mapping_of_one_entry_that_leaves_out_what_is_not_set():
    chosen = options(deadline=3, skip=None, retry=False, tier="gold")
    assert dict(chosen) == {"dspex": {"deadline": 3, "retry": False, "tier": "gold"}}
    assert (len(chosen), "dspex" in chosen, "other" in chosen) == (1, True, False)
    assert repr(chosen) == "options(deadline=3, retry=False, tier='gold')"
    with pytest.raises(KeyError, match="other"):
        chosen["other"]


def test_a_request_built_by_hand_can_carry_them():
    look = Look()
    with build_client([look], transport=Script(200)) as client:
        client.send(httpx.Request("GET", URL, extensions=options(deadline=3)))
    assert look.seen == [{"deadline": 3}]


def test_skip_may_be_any_iterable_and_lasts_for_every_call_inside():
    look = Look()
    client = build_client([Retry(), look], transport=Script(200, forever=True))
    with options(skip=iter(["Retry"])):
        client.get(URL)
        client.get(URL)
    assert look.seen == [{"skip": {"Retry"}}] * 2


# What is skipped


@pytest.mark.parametrize("way", WAYS)
def test_a_skipped_layer_is_passed_by_also_within_a_nested_pipeline(way):
    calls = []

    def named(name):
        async def layer(request, call_next):
            calls.append(name)
            return await call_next(request)

        layer.__name__ = name
        return layer

    layers = [named("a"), Pipeline([named("b"), Pipeline([named("c")])]), named("d")]
    one(way, layers, skip=["a", "c"])
    assert calls == ["b", "d"]


@pytest.mark.parametrize("way", WAYS)
def test_skipping_an_unknown_layer_is_an_error_that_lists_the_layers(way):
    message = "option skip names Cache, Retries: the layers here are Look, Retry"
    with pytest.raises(ValueError, match=message):
        one(way, [Look()], skip=["Retries", "Retry", "Cache"])


def test_skipping_in_an_empty_pipeline_says_that_there_are_no_layers():
    client = build_client([], transport=Script())
    with pytest.raises(ValueError, match=r"option skip names Retry: the layers here are \(none\)"):
        client.get(URL, extensions=options(skip=["Retry"]))


# What is refused


@pytest.mark.parametrize("way", WAYS)
def test_an_unknown_option_is_an_error_that_lists_the_options(way):
    message = "^unknown option 'retires': this pipeline takes deadline, dry_run, retry, skip, tier$"
    with pytest.raises(TypeError, match=message):
        one(way, [Look()], retires=True)


def test_without_the_layer_its_option_is_unknown(world):
    script = Script()

    async def main():
        async with world.client([], transport=script) as client:
            with pytest.raises(TypeError, match="unknown option 'retry': this pipeline takes deadline, skip"):
                await client.get(URL, extensions=options(retry=False))

    world.run(main)
    assert script.requests == []


BAD = [
    ("deadline", value, "takes a positive, finite number of seconds")
    for value in (math.nan, math.inf, -math.inf, 0, -0.0, -1, True, False)
]
BAD += [
    ("deadline", "soon", "could not convert string to float"),
    ("deadline", [1], "float"),
    ("retry", "maybe", r"takes True or False \(in a header: on or off\)"),
    ("retry", 1, "takes True or False"),
    ("dry_run", 0.0, "takes True or False"),
    ("skip", [Retry], "takes names of layers"),
    ("skip", b"Retry", "takes names of layers"),
    ("skip", 3, "not iterable"),
]


@pytest.mark.parametrize("way", ["extensions", "with"])
@pytest.mark.parametrize(("name", "value", "message"), BAD, ids=lambda v: repr(v)[:20])
def test_a_bad_value_is_an_error_that_says_what_is_allowed(way, name, value, message):
    with pytest.raises(ValueError, match=message) as caught:
        one(way, [Look()], **{name: value})
    assert str(caught.value).startswith(f"option {name}={value!r}: ")
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("name", "text"),
    [("deadline", t) for t in ("nan", "inf", "-inf", "1e999", "0", "-1", "", "soon", "True", "1,2", "0x10")]
    + [("retry", t) for t in ("", "yes", "2", "on,off", "None")],
)
def test_a_bad_header_is_an_error_and_nothing_is_sent(world, name, text):
    script = Script()

    async def main():
        async with world.client([Retry()], transport=script) as client:
            with pytest.raises(ValueError, match=f"^option {name}='{text}': "):
                await client.get(URL, headers={f"x-dspex-{name}": text})

    world.run(main)
    assert script.requests == []


# The forms of a value


@pytest.mark.parametrize("text", ["on", "true", "1", "ON", " True "])
@pytest.mark.parametrize("name", ["X-Dspex-Retry", "x-dspex-dry-run"])
def test_a_switch_is_on(name, text):
    look = Look()
    with build_client([Retry(), look], transport=Script(200)) as client:
        client.get(URL, headers={name: text})
    assert list(look.seen[0].values()) == [True]


@pytest.mark.parametrize("text", ["off", "false", "0", "Off", " FALSE "])
def test_a_switch_is_off(text):
    assert switch(text) is False


@pytest.mark.parametrize("text", ["Retry,Look", " Retry , Look ,", "Look,,Retry,Retry"])
def test_a_list_in_a_header_is_split_at_commas(text):
    assert names(text) == {"Retry", "Look"}


def test_a_list_may_come_in_several_header_lines():
    calls = []

    async def a(request, call_next):
        calls.append("a")
        return await call_next(request)

    async def b(request, call_next):
        calls.append("b")
        return await call_next(request)

    with build_client([a, b], transport=Script(200)) as client:
        client.get(URL, headers=[("x-dspex-skip", "a"), ("X-Dspex-Skip", "b")])
    assert calls == []


def test_an_empty_list_of_names_skips_nothing():
    assert names("") == names([]) == names(" , ") == frozenset()


@given(st.floats() | st.integers() | st.booleans() | st.text(max_size=9))
def test_seconds_are_positive_and_finite_or_refused(value):
    try:
        number = seconds(value)
    except ValueError:
        return
    assert isinstance(number, float)
    assert 0 < number < math.inf
    assert not isinstance(value, bool)
    assert seconds(repr(number)) == number, "a header says the same as the number"


@given(st.integers(min_value=2**1024) | st.integers(max_value=-(2**1024)))
def test_a_number_too_big_for_a_float_is_an_error_like_any_other(value):
    with pytest.raises(ValueError, match="option deadline="):
        check({"deadline": value}, KNOWN)


@given(st.text(max_size=9) | st.none() | st.floats() | st.booleans())
def test_a_switch_is_a_bool_or_refused(value):
    try:
        answer = switch(value)
    except ValueError:
        assert not isinstance(value, bool)
    else:
        assert isinstance(answer, bool)
        assert switch(HEADER_OF[answer]) is answer


word = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=8)


@given(st.lists(word))
def test_names_mean_the_same_as_a_list_and_as_a_header(parts):
    assert names(parts) == names(",".join(parts)) == names(frozenset(parts)) == frozenset(parts)


@given(st.dictionaries(st.sampled_from([*KNOWN, "other"]), st.none() | st.booleans(), min_size=1))
def test_check_takes_what_is_known_or_says_what_is_wrong(given_):
    try:
        checked = check(given_, KNOWN)
    except (TypeError, ValueError) as exc:
        told = str(exc)
    else:
        assert checked == given_ == {"retry": given_["retry"]}
        return
    stranger = "unknown option 'other': this pipeline takes deadline, retry, skip"
    assert told == stranger or told.startswith(tuple(f"option {name}=" for name in given_))


# Blocks


def test_nested_blocks_add_up_and_the_inner_one_wins():
    assert ambient() == {}
    with options(deadline=1, tier="outer"):
        with options(deadline=2) as inner:
            assert ambient() == {"deadline": 2, "tier": "outer"}
            with inner, options(retry=True):
                assert ambient() == {"deadline": 2, "tier": "outer", "retry": True}
        assert ambient() == {"deadline": 1, "tier": "outer"}
    assert ambient() == {}


def test_a_block_ends_with_an_exception_too():
    with pytest.raises(ZeroDivisionError), options(deadline=1):
        raise ZeroDivisionError
    assert ambient() == {}


def test_a_block_does_not_reach_other_threads():
    seen = []
    with options(deadline=1):
        thread = threading.Thread(target=lambda: seen.append(ambient()))
        thread.start()
        thread.join()
        contextvars.copy_context().run(lambda: seen.append(ambient()))
    assert seen == [{}, {"deadline": 1}]


def test_one_options_object_may_be_entered_by_many_threads_at_once():
    shared, inside, seen = options(deadline=1), threading.Barrier(8), []

    def enter(number):
        with options(tier=str(number)), shared:
            inside.wait()
            seen.append((number, ambient()))
            inside.wait()
        seen.append((number, ambient()))

    threads = [threading.Thread(target=enter, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    within, after = sorted(seen[:8]), sorted(seen[8:])
    assert within == [(number, {"tier": str(number), "deadline": 1}) for number in range(8)]
    assert after == [(number, {}) for number in range(8)]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_one_options_object_may_be_entered_by_many_tasks_at_once(backend):
    shared, look = options(deadline=1), Look()
    pipeline = Pipeline([look])

    async def main():
        entered, left = 0, anyio.Event()

        async def enter(client, number):
            nonlocal entered
            with options(tier=str(number)):
                with shared:
                    entered += 1
                    if entered == 4:
                        left.set()
                    await left.wait()
                    await client.get(URL)
                await client.get(URL)
            assert ambient() == {}

        client = pipeline.async_client(transport=Script(200, forever=True))
        async with anyio.create_task_group() as group:
            for number in range(4):
                group.start_soon(enter, client, number)

    anyio.run(main, backend=backend)
    by_tier = {str(number): [s for s in look.seen if s["tier"] == str(number)] for number in range(4)}
    assert by_tier == {tier: [{"tier": tier, "deadline": 1}, {"tier": tier}] for tier in by_tier}


@pytest.mark.parametrize("given", ["text", 5, ["deadline"]], ids=str)
def test_an_extension_that_is_no_options_is_an_error(given):
    with pytest.raises(TypeError, match=r'extensions\["dspex"\] takes options\(…\), got '):
        build_client([], transport=Script(200)).get("http://x.test/", extensions={"dspex": given})
