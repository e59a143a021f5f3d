"""The event stream parser, against the standard's own examples and a naive reading of the whole."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import example, given, strategies as st

from dspex_pipe.wire.sse import Event, Parser

WORDS = [b"data", b"event", b"id", b"retry", b":", b": ", b" ", b"x", b"1500", b"\0", b"data: a\n\n"]
ENDS = [b"\n", b"\n\n", b"\r", b"\r\n", b"\r\n\r\n"]
LETTERS = [b"\xef\xbb\xbf", b"\xc3", b"\xa9", b"\xe2\x80\xa8", b"\x85", b"\x0b"]
PARTS = st.sampled_from(WORDS + ENDS + LETTERS)
STREAMS = st.lists(st.one_of(PARTS, st.binary(max_size=4)), max_size=40).map(b"".join)
CUTS = st.lists(st.integers(0, 200), max_size=12)


def cut(raw, cuts):
    places = sorted({0, len(raw), *(c for c in cuts if c < len(raw))})
    return [raw[a:b] for a, b in itertools.pairwise(places)]


def parsed(chunks, **bounds):
    parser = Parser(**bounds)
    events = [event for chunk in chunks for event in parser.feed(chunk)]
    return [*events, *parser.finish()], parser


def reference(raw):
    """Of §9.2.6, word by word, with everything at hand."""
    text = raw.decode("utf-8", "replace").removeprefix("\ufeff")
    events, data, kind, last, retry = [], "", "", "", None
    for line in re.split(r"\r\n|\r|\n", text)[:-1]:
        if not line:
            if data:
                events.append((kind or "message", data.removesuffix("\n"), last))
            data = kind = ""
            continue
        if line.startswith(":"):
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            kind = value
        elif name == "data":
            data += value + "\n"
        elif name == "id" and "\0" not in value:
            last = value
        elif name == "retry" and re.fullmatch(r"[0-9]{1,15}", value):
            retry = int(value)
    return events, last, retry


@given(STREAMS, CUTS)
@example(b"data: a\r\n\r\n", [8, 9, 10])
@example(b"\xef\xbb\xbfdata: a\n\n", [1, 2])
def test_any_split_agrees_with_a_naive_reading_of_the_whole(raw, cuts):
    events, parser = parsed(cut(raw, cuts))
    told = ([event[:3] for event in events], parser.id, parser.retry)
    assert told == reference(raw)
    assert events == parsed([raw])[0] == parsed([raw[i : i + 1] for i in range(len(raw))])[0]


@given(STREAMS, CUTS)
def test_an_offset_is_just_behind_its_event(raw, cuts):
    for number, event in enumerate(parsed(cut(raw, cuts))[0], 1):
        assert len(reference(raw[: event.end])[0]) == number
        assert raw[event.end - 1] in b"\r\n"
        assert raw[event.end - 1 : event.end + 1] != b"\r\n"


@given(STREAMS, CUTS, st.integers(0, 12), st.integers(0, 12))
def test_any_split_gives_up_at_the_same_place(raw, cuts, line, event):
    bounds = {"max_line": line, "max_event": event}
    (events, parser), (whole, other) = parsed(cut(raw, cuts), **bounds), parsed([raw], **bounds)
    assert events == whole
    assert parser.gave_up == other.gave_up
    assert all(len(e.data) <= max(line, event) + 4 * raw.count(b"\n") for e in events)


# The examples of §9.2.6.


@pytest.mark.parametrize(
    ("stream", "data"),
    [
        (b"data: YHOO\ndata: +2\ndata: 10\n\n", ["YHOO\n+2\n10"]),
        (
            b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
            ["first event", "second event", " third event"],
        ),
        (b"data\n\ndata\ndata\n\ndata:", ["", "\n"]),
        (b"data:test\n\ndata: test\n\n", ["test", "test"]),
    ],
)
def test_the_standards_examples(stream, data):
    assert [event.data for event in parsed([stream])[0]] == data


def test_all_fields_of_an_event():
    stream = b"event: add\nid: 7\nretry: 1500\nunknown: x\ndata: 73\n\nretry: soon\nid: a\0b\ndata\n\n"
    events, parser = parsed([stream])
    assert events == [Event("add", "73", "7", 50), Event("message", "", "7", len(stream))]
    assert (parser.retry, parser.id) == (1500, "7")


def test_a_lone_cr_holds_an_event_back_until_it_is_known_to_be_no_crlf():
    parser = Parser()
    assert parser.feed(b"data: a\r\r") == []
    assert [event.end for event in parser.feed(b"d")] == [9]
    assert parser.feed(b"ata: b\r\r") == []
    assert [event.data for event in parser.finish()] == ["b"]
    assert parser.finish() == []


def test_a_line_without_end_makes_it_give_up_and_hold_nothing():
    parser = Parser(max_line=10)
    assert parser.feed(b"data: a\n\n" + b"x" * 11)[0].data == "a"
    assert parser.gave_up == "a line of more than 10 bytes"
    assert parser.feed(b"\n\ndata: b\n\n") == []
    assert parser.finish() == []


def test_an_event_of_many_lines_makes_it_give_up():
    _, parser = parsed([b"data: 12345\n" * 3], max_event=10)
    assert parser.gave_up == "an event of more than 10 bytes"


def test_many_small_chunks_of_a_long_line_cost_no_more_than_their_bytes():
    parser = Parser()
    for _ in range(300_000):
        parser.feed(b"x")
    assert parser.gave_up is None
