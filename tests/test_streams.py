"""What a provider's stream says: transcripts in each documented shape, cut and encoded in every way."""

from __future__ import annotations

import gzip
import itertools
import json
import sys
import zlib
from types import SimpleNamespace

import anthropic
import httpx2
import openai
import pytest
from hypothesis import given, strategies as st

from dspex_pipe.wire import inflate, streams
from dspex_pipe.wire.sse import Parser
from dspex_pipe.wire.streams import Kind, Seen, Usage, reader_for

SSE = {"content-type": "text/event-stream; charset=utf-8"}
FORMATS = ["openai.chat", "openai.completions", "openai.responses", "anthropic.messages"]
PING, OPENING, LIFE, PROGRESS, CONTENT, ERROR, TERMINAL = Kind


def dump(document):
    if isinstance(document, str):
        return document
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False)  # as the providers do


def plain(*documents):
    return "".join(f"data: {dump(document)}\n\n" for document in documents).encode()


def named(*events):
    """Events whose name is the type in the data, as OpenAI responses and Anthropic send them."""
    return "".join(f"event: {event['type']}\ndata: {dump(event)}\n\n" for event in events).encode()


def chunk(delta=None, reason=None, index=0, **more):
    choices = [] if delta is None else [{"index": index, "delta": delta, "finish_reason": reason}]
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "gpt-5-2026",
        "choices": choices,
        **more,
    }


def piece(text, reason=None, index=0):
    choice = {"text": text, "index": index, "logprobs": None, "finish_reason": reason}
    return {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m", "choices": [choice]}


def response(status, **more):
    body = {"id": "resp_1", "object": "response", "created_at": 1, "model": "gpt-5", "status": status}
    body |= {"output": [], "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "error": None}
    return {"type": f"response.{status}", "sequence_number": 0, "response": {**body, **more}}


def text_delta(text):
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0, "sequence_number": 1}
    return {"type": "response.output_text.delta", "delta": text, "logprobs": [], **place}


def started(**usage):
    message = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "model": "claude-5"}
    message |= {"stop_reason": None, "stop_sequence": None, "usage": {"output_tokens": 1, **usage}}
    return {"type": "message_start", "message": message}


def block(kind, **more):
    return {"type": "content_block_start", "index": 0, "content_block": {"type": kind, **more}}


def delta(kind, **more):
    return {"type": "content_block_delta", "index": 0, "delta": {"type": kind, **more}}


def stopped(reason, **usage):
    told = {"stop_reason": reason, "stop_sequence": None}
    return {"type": "message_delta", "delta": told, "usage": {"output_tokens": 9, **usage}}


PING_EVENT = {"type": "ping"}
STOP = {"type": "content_block_stop", "index": 0}
END = {"type": "message_stop"}
TOKENS = {"prompt_tokens": 20, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 16}}
RESPONSE_TOKENS = {
    "input_tokens": 20,
    "input_tokens_details": {"cached_tokens": 16},
    "output_tokens": 7,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 27,
}
CALL = {"id": "call_1", "index": 0, "type": "function", "function": {"name": "f", "arguments": ""}}

# name: (format, body, what is known, the kinds of its events)
TRANSCRIPTS = {
    "chat text": (
        "openai.chat",
        b": OPENROUTER PROCESSING\n\n"
        + plain(
            chunk({"role": "assistant", "content": "", "refusal": None}, usage=None),
            chunk({"content": "Forty-two ☃"}, usage=None),
            chunk({}, "stop", usage=None),
            chunk(usage=TOKENS),
            "[DONE]",
        ),
        {
            "model": "gpt-5-2026",
            "content": 1,
            "finished": ("stop",),
            "terminal": True,
            "evidence": True,
            "usage": Usage(20, 7, 16),
        },
        [OPENING, CONTENT, LIFE, LIFE, TERMINAL],
    ),
    "chat tool call and reasoning": (
        "openai.chat",
        plain(
            chunk({"role": "assistant", "content": None}),
            chunk({"reasoning_content": "hm"}),
            chunk({"tool_calls": [CALL]}),
            chunk({"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}),
            chunk({}, "tool_calls"),
            "[DONE]",
        ),
        {
            "content": 3,
            "finished": ("tool_calls",),
            "terminal": True,
            "evidence": True,
            "model": "gpt-5-2026",
        },
        [OPENING, CONTENT, CONTENT, CONTENT, LIFE, TERMINAL],
    ),
    "chat, two choices": (
        "openai.chat",
        plain(
            chunk({"content": "a"}),
            chunk({"content": "b"}, index=1),
            chunk({}, "length"),
            chunk({}, "stop", index=1),
            "[DONE]",
            {"error": {"code": "server_error"}},
        ),
        {
            "content": 2,
            "finished": ("length", "stop"),
            "terminal": True,
            "evidence": True,
            "model": "gpt-5-2026",
        },
        [CONTENT, CONTENT, LIFE, LIFE, TERMINAL, LIFE],
    ),
    "chat, one of two choices unfinished": (
        "openai.chat",
        plain(chunk({"content": "a"}, "stop"), chunk({"content": "b"}, index=1), "[DONE]"),
        {"content": 2, "finished": ("stop",), "evidence": True, "model": "gpt-5-2026"},
        [CONTENT, CONTENT, TERMINAL],
    ),
    "chat, [DONE] alone": (
        "openai.chat",
        plain(chunk({"content": "a"}), "[DONE]"),
        {"content": 1, "evidence": True, "model": "gpt-5-2026"},
        [CONTENT, TERMINAL],
    ),
    "chat, no [DONE]": (
        "openai.chat",
        plain(chunk({"content": "a"}, "stop")),
        {"content": 1, "finished": ("stop",), "evidence": True, "model": "gpt-5-2026"},
        [CONTENT],
    ),
    "chat, truncated in an event": (
        "openai.chat",
        plain(chunk({"content": "a"}), chunk({}, "stop"))[:-1],
        {"content": 1, "model": "gpt-5-2026"},
        [CONTENT],
    ),
    "chat, error": (
        "openai.chat",
        plain(
            chunk({"content": "a"}, "stop"),
            {"error": {"message": "m", "type": "server_error", "param": None, "code": "overloaded"}},
            {"error": {"code": "second"}},
            "[DONE]",
        ),
        {
            "content": 1,
            "finished": ("stop",),
            "evidence": True,
            "error": frozenset({"server_error", "overloaded"}),
            "model": "gpt-5-2026",
        },
        [CONTENT, ERROR, ERROR, TERMINAL],
    ),
    "chat, errors of gateways": (
        "openai.chat",
        (
            b"event: ping\ndata: {}\n\n"
            b'data: {"object":"error","code":502,"message":"x","type":"BadGateway"}\n\n'
            b"event: error\ndata: no JSON\n\n"
        ),
        {"error": frozenset({"502", "BadGateway"})},
        [PING, ERROR, ERROR],
    ),
    "completions": (
        "openai.completions",
        plain(piece(""), piece("Forty"), piece("-two"), piece("", "length"), "[DONE]"),
        {"model": "m", "content": 2, "finished": ("length",), "terminal": True, "evidence": True},
        [OPENING, CONTENT, CONTENT, LIFE, TERMINAL],
    ),
    "responses text": (
        "openai.responses",
        named(
            response("created"),
            {"type": "response.in_progress"},
            {"type": "keepalive", "sequence_number": 3},
            {"type": "response.web_search_call.searching"},
            {"type": "response.mcp_list_tools.in_progress"},
            {"type": "response.reasoning_summary_text.delta", "delta": "hm"},
            text_delta("Forty-two"),
            {"type": "response.function_call_arguments.delta", "delta": "{}"},
            {"type": "response.image_generation_call.partial_image", "partial_image_b64": "AA=="},
            {"type": "response.output_text.done", "text": "Forty-two"},
            response("completed", usage=RESPONSE_TOKENS),
        ),
        {
            "model": "gpt-5",
            "content": 4,
            "finished": ("completed",),
            "terminal": True,
            "evidence": True,
            "usage": Usage(20, 7, 16),
        },
        [LIFE, LIFE, PING, PROGRESS, PROGRESS, CONTENT, CONTENT, CONTENT, CONTENT, LIFE, TERMINAL],
    ),
    "responses, names in the data only": (
        "openai.responses",
        plain(text_delta("a"), response("completed"), {"type": 7}),
        {"model": "gpt-5", "content": 1, "finished": ("completed",), "terminal": True, "evidence": True},
        [CONTENT, TERMINAL, LIFE],
    ),
    "responses, incomplete": (
        "openai.responses",
        named(text_delta("a"), response("incomplete", incomplete_details={"reason": "max_output_tokens"})),
        {
            "model": "gpt-5",
            "content": 1,
            "finished": ("max_output_tokens",),
            "terminal": True,
            "evidence": True,
        },
        [CONTENT, TERMINAL],
    ),
    "responses, failed": (
        "openai.responses",
        named(text_delta("a"), response("failed", error={"code": "server_error", "message": "m"})),
        {
            "model": "gpt-5",
            "content": 1,
            "finished": ("failed",),
            "evidence": True,
            "error": frozenset({"server_error"}),
        },
        [CONTENT, ERROR],
    ),
    "responses, error": (
        "openai.responses",
        named({"type": "error", "code": "rate_limit_exceeded", "message": "m", "param": None}),
        {"error": frozenset({"rate_limit_exceeded"})},
        [ERROR],
    ),
    "responses, an error within an object": (
        "openai.responses",
        plain({"error": {"type": "insufficient_quota"}}),
        {"error": frozenset({"insufficient_quota"})},
        [ERROR],
    ),
    "messages text": (
        "anthropic.messages",
        named(
            started(input_tokens=4, cache_read_input_tokens=16, cache_creation_input_tokens=None),
            block("thinking", thinking="", signature=""),
            PING_EVENT,
            delta("thinking_delta", thinking="hm"),
            STOP,
            block("text", text=""),
            delta("text_delta", text="Forty-two"),
            STOP,
            stopped("end_turn"),
            END,
        ),
        {
            "model": "claude-5",
            "content": 2,
            "finished": ("end_turn",),
            "terminal": True,
            "evidence": True,
            "usage": Usage(20, 9, 16),
        },
        [OPENING, OPENING, PING, CONTENT, LIFE, OPENING, CONTENT, LIFE, LIFE, TERMINAL],
    ),
    "messages tool call": (
        "anthropic.messages",
        named(
            started(input_tokens=4),
            block("tool_use", id="t", name="f", input={}),
            delta("input_json_delta", partial_json="{}"),
            STOP,
            block("web_search_tool_result", tool_use_id="s", content=[{"type": "web_search_result"}]),
            stopped("tool_use", input_tokens=5),
            END,
        ),
        {
            "model": "claude-5",
            "content": 2,
            "finished": ("tool_use",),
            "terminal": True,
            "evidence": True,
            "usage": Usage(5, 9, 0),
        },
        [OPENING, LIFE, CONTENT, LIFE, CONTENT, LIFE, TERMINAL],
    ),
    "messages, overloaded at once": (
        "anthropic.messages",
        named({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
        {"error": frozenset({"overloaded_error"})},
        [ERROR],
    ),
    "messages, error in mid-stream": (
        "anthropic.messages",
        named(delta("text_delta", text="a"), {"type": "error", "error": {"type": "api_error"}}, END),
        {"content": 1, "evidence": True, "error": frozenset({"api_error"})},
        [CONTENT, ERROR, TERMINAL],
    ),
    "messages, truncated behind the stop reason": (
        "anthropic.messages",
        named(delta("text_delta", text="a"), stopped("end_turn")),
        {"content": 1, "finished": ("end_turn",), "evidence": True, "usage": Usage(0, 9, 0)},
        [CONTENT, LIFE],
    ),
    "messages, names in the data only": (
        "anthropic.messages",
        plain(delta("text_delta", text="a"), END),
        {"content": 1, "terminal": True, "evidence": True},
        [CONTENT, TERMINAL],
    ),
}
NOTHING = {
    "gave_up": None,
    "model": None,
    "content": 0,
    "finished": (),
    "terminal": False,
    "evidence": False,
    "error": None,
    "usage": None,
}


def raw_deflate(body):
    engine = zlib.compressobj(wbits=-15)
    return engine.compress(body) + engine.flush()


def flushed(body):
    """As a server sends it that compresses a stream: flushed often."""
    engine = zlib.compressobj(wbits=31)
    parts = [
        engine.compress(body[i : i + 50]) + engine.flush(zlib.Z_SYNC_FLUSH) for i in range(0, len(body), 50)
    ]
    return b"".join(parts) + engine.flush()


ENCODINGS = {
    "identity": ("identity", bytes),
    "gzip": ("gzip", gzip.compress),
    "gzip, flushed": ("gzip", flushed),
    "deflate": ("deflate", zlib.compress),
    "raw deflate": ("deflate", raw_deflate),
}


def known_as_dict(reader):
    known = reader.known
    return {name: getattr(known, name) for name in ["format", *NOTHING]}


def read(name, chunks, encoding="", **headers):
    reader = reader_for(name, {**SSE, "content-encoding": encoding, **headers})
    seen = [one for part in chunks for one in reader.feed(part)]
    return [*seen, *reader.finish()], reader


@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_a_transcript_is_understood(name):
    form, body, known, kinds = TRANSCRIPTS[name]
    seen, reader = read(form, [body])
    assert [one.kind for one in seen] == kinds
    assert known_as_dict(reader) == {**NOTHING, "format": form, **known}


@pytest.mark.parametrize("ending", [b"\r\n", b"\r"])
@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_other_line_ends_change_nothing(name, ending):
    form, body, known, kinds = TRANSCRIPTS[name]
    seen, reader = read(form, [body.replace(b"\n", ending)])
    if "truncated in" in name and ending == b"\r":
        return  # what is left of the blank line is the end of the line before it
    assert [one.kind for one in seen] == kinds
    assert known_as_dict(reader) == {**NOTHING, "format": form, **known}


@given(
    st.sampled_from(sorted(TRANSCRIPTS)),
    st.sampled_from(sorted(ENCODINGS)),
    st.lists(st.integers(0, 3000), max_size=20),
    st.booleans(),
)
def test_any_split_of_the_bytes_gives_the_same_answer(name, encoding, cuts, single):
    form, body, known, _ = TRANSCRIPTS[name]
    coding, encode = ENCODINGS[encoding]
    raw = encode(body)
    places = range(len(raw) + 1) if single else sorted({0, len(raw), *(c for c in cuts if c < len(raw))})
    seen, reader = read(form, [raw[a:b] for a, b in itertools.pairwise(places)], coding)
    assert seen == read(form, [body])[0]
    assert known_as_dict(reader) == {**NOTHING, "format": form, **known}


@given(st.sampled_from(sorted(TRANSCRIPTS)), st.data())
def test_any_truncation_is_told_from_a_whole_answer(name, data):
    form, body, known, _ = TRANSCRIPTS[name]
    length = data.draw(st.integers(0, len(body)))
    seen, reader = read(form, [body[:length]])
    whole = read(form, [body])[0]
    assert seen == [one for one in whole if one.end <= length]
    if reader.known.terminal:
        assert TERMINAL in [one.kind for one in seen]


KEYS = ["choices", "delta", "index", "finish_reason", "error", "code", "type", "usage", "model", "text"]
KEYS += ["response", "message", "input_tokens", "prompt_tokens", "content_block", "incomplete_details"]
LEAVES = ["", "a", "stop", "\ud800", "x\n", "y" * 300, 1e9, 2**60, -1, 429]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(LEAVES),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=12,
)
WORDS = ["message", "ping", "error", "message_start", "message_delta", "content_block_start", "message_stop"]
WORDS += ["response.created", "response.completed", "response.failed", "response.incomplete", "x"]
NAMES = st.sampled_from(WORDS)


@given(st.sampled_from(FORMATS), st.lists(st.tuples(NAMES, VALUES), max_size=8))
def test_no_document_of_any_shape_raises(form, events):
    body = b"".join(f"event: {name}\ndata: {json.dumps(value)}\n\n".encode() for name, value in events)
    seen, reader = read(form, [body])
    assert len(seen) == len(events)
    known = reader.known
    for word in [known.model, *known.finished, *(known.error or ())]:
        assert word is None or (word.isprintable() and len(word) <= 256)


TEXTS = st.sampled_from(
    ["", "a", "b", "a b", 'q"q', "\\", "\n", "☃", '"content":"', '","finish_reason":"stop', "\u2028"]
)
CHUNKS = st.builds(
    chunk,
    st.fixed_dictionaries(
        {}, optional={"role": TEXTS, "content": TEXTS | st.none(), "reasoning": TEXTS, '"content': TEXTS}
    ),
    st.sampled_from([None, None, None, "stop"]),
    st.integers(0, 1),
    usage=st.sampled_from([None, None, TOKENS, {"prompt_tokens": 1, "content": "a"}]),
    obfuscation=TEXTS,
) | st.builds(piece, TEXTS, st.sampled_from([None, "stop"]))


@st.composite
def spoilt(draw):
    """A chunk with some letters cut out or put in."""
    text = dump(draw(CHUNKS))
    at = draw(st.integers(0, len(text)))
    return (
        text[:at]
        + draw(st.sampled_from(["", '"', "\\", "x", '"content":"a"']))
        + text[at + draw(st.integers(0, 2)) :]
    )


@given(st.lists(CHUNKS | spoilt() | st.just("[DONE]"), min_size=2, max_size=6), st.data())
def test_what_is_not_parsed_would_have_told_nothing_new(chunks, data):
    # the same frames again and again, as in life
    lines = data.draw(st.lists(st.sampled_from(chunks), max_size=20))
    body = plain(*(line if "\n" not in dump(line) else "" for line in lines))
    fast = read("openai.chat", [body])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "_frame", lambda _: None)
        slow = read("openai.chat", [body])
    assert fast[0] == slow[0]
    assert fast[1].known == slow[1].known


def test_chunks_that_differ_in_plain_text_only_are_parsed_once(monkeypatch):
    parsed = []
    real = streams._parse
    monkeypatch.setattr(streams, "_parse", lambda text: parsed.append(text) or real(text))
    words = ["Forty", "-two", " ☃", "."]
    body = plain(*(chunk({"content": word}, obfuscation="x" * n) for n, word in enumerate(words, 1)))
    _, reader = read("openai.chat", [body])
    assert reader.known.content == len(words)
    assert len(parsed) == 1


@given(
    st.sampled_from([*FORMATS, None, "openai.embeddings"]),
    st.sampled_from(["", "gzip", "deflate", "br", "zstd", "gzip, br", "x"]),
    st.lists(st.binary(max_size=60)),
)
def test_no_bytes_raise(form, encoding, chunks):
    read(form, chunks, encoding)
    read(form, [b"data: ", *chunks, b"\n\n"], encoding)


@pytest.mark.parametrize("hostile", ["[" * 100_000, "9" * 5000, '{"usage":{"prompt_tokens":' + "9" * 5000])
def test_what_json_cannot_read_is_no_news(hostile):
    seen, reader = read("openai.chat", [plain(hostile, chunk({}, "stop"), "[DONE]")])
    assert [one.kind for one in seen] == [OPENING, LIFE, TERMINAL]
    assert reader.known.terminal


def test_the_offsets_are_replay_boundaries():
    form, body, *_ = TRANSCRIPTS["messages text"]
    seen, _ = read(form, [body])
    ends = [0, *(one.end for one in seen)]
    parts = [body[a:b] for a, b in itertools.pairwise(ends)]
    assert b"".join(parts) == body
    assert all(part.startswith(b"event: ") and part.endswith(b"\n\n") for part in parts)


# What is not read


@pytest.mark.parametrize(
    ("form", "headers", "why"),
    [
        (None, SSE, "the format is not known"),
        ("openai.embeddings", SSE, "the format is not known"),
        ("openai.chat", {}, "the body is not an event stream"),
        ("openai.chat", {"content-type": "application/json"}, "the body is not an event stream"),
        ("openai.chat", {**SSE, "content-encoding": "gzip, br"}, "the content encoding is not known"),
    ],
)
def test_what_is_not_understood_is_not_read(form, headers, why):
    reader = reader_for(form, headers)
    assert reader.feed(TRANSCRIPTS["chat text"][1]) == []
    assert reader.finish() == []
    known = form if form == "openai.chat" else None
    assert known_as_dict(reader) == {**NOTHING, "format": known, "gave_up": why}


def test_headers_are_found_in_httpxs_own():
    headers = httpx2.Headers({"Content-Type": "Text/Event-Stream", "Content-Encoding": "GZIP"})
    reader = reader_for("openai.chat", headers)
    reader.feed(gzip.compress(TRANSCRIPTS["chat text"][1]))
    assert reader.known.terminal


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_spoilt_compression_ends_the_reading_and_nothing_else(coding):
    seen, reader = read("openai.chat", [b"\x78\x9cnot at all", b"more"], coding)
    assert seen == []
    assert reader.known.gave_up.startswith("the content encoding is spoilt")


def test_what_follows_the_end_of_a_compressed_body_is_ignored():
    raw = gzip.compress(TRANSCRIPTS["chat text"][1])
    _, reader = read("openai.chat", [raw + b"rubbish", b"more"], "gzip")
    assert reader.known.terminal
    assert reader.known.gave_up is None


def test_a_bomb_is_inflated_up_to_a_bound_in_small_pieces(monkeypatch):
    sizes = []
    real = Parser.feed
    monkeypatch.setattr(Parser, "feed", lambda self, piece: sizes.append(len(piece)) or real(self, piece))
    bomb = gzip.compress(plain(chunk({"content": "a"})) + b": a comment of some length\n" * 1_000_000)
    seen, reader = read("openai.chat", [bomb[:5000], bomb[5000:10_000], bomb[10_000:]], "gzip")
    assert reader.known.gave_up == "inflates more than 100 times"
    assert reader.known.content == len(seen) == 1
    assert max(sizes) <= inflate.PIECE
    assert sum(sizes) == (1 << 20) + 100 * 5000


def test_a_long_body_is_read_whole_plain_or_compressed():
    body = plain(*(chunk({"content": f"word {n}"}) for n in range(20_000)), chunk({}, "stop"), "[DONE]")
    assert len(body) > 2 << 20
    for coding, raw in [("", body), ("gzip", gzip.compress(body))]:
        _, reader = read("openai.chat", [raw], coding)
        assert reader.known.content == 20_000
        assert reader.known.terminal


def test_an_endless_line_ends_the_reading():
    seen, reader = read("openai.chat", [plain(chunk({"content": "a"})), b"x" * (5 << 20), plain("[DONE]")])
    assert [one.kind for one in seen] == [CONTENT]
    assert reader.known.gave_up == "a line of more than 4194304 bytes"
    assert not reader.known.evidence


def test_too_many_choices_end_the_reading():
    body = plain(*(chunk({"content": "a"}, index=i) for i in range(1030)), "[DONE]")
    seen, reader = read("openai.chat", [body])
    assert len(seen) == 1025
    assert reader.known.gave_up == "more than 1024 choices"


# Codings of optional packages: by stand-ins here, so that every machine tests the same; by the real ones
# where they are.

BODY = TRANSCRIPTS["chat text"][1]


class FakeBrotli:
    error = zlib.error

    class Decompressor:
        def __init__(self):
            self._engine, self._rest = zlib.decompressobj(), b""

        def process(self, data, output_buffer_limit):
            piece = self._engine.decompress(self._rest + data, min(output_buffer_limit, 100))
            self._rest = self._engine.unconsumed_tail
            return piece

        def is_finished(self):
            return self._engine.eof

        def can_accept_more_data(self):
            return not self._rest


class FakeZstd:
    ZstdError = zlib.error
    DecompressionParameter = SimpleNamespace(window_log_max=101)

    class ZstdDecompressor:
        def __init__(self, options):
            assert options == {101: 23}
            self._engine, self._rest = zlib.decompressobj(), b""

        def decompress(self, data, max_length):
            piece = self._engine.decompress(self._rest + data, min(max_length, 100))
            self._rest = self._engine.unconsumed_tail
            return piece

        @property
        def needs_input(self):
            return not self._rest and not self.eof

        @property
        def eof(self):
            return self._engine.eof

        @property
        def unused_data(self):
            return self._engine.unused_data


class FakeZstandard:
    ZstdError = zlib.error

    def __init__(self, max_window_size):
        assert max_window_size == 8 << 20

    decompressobj = staticmethod(zlib.decompressobj)


ABSENT = dict.fromkeys(["brotli", "brotlicffi", "compression.zstd", "backports.zstd", "zstandard"])


@pytest.fixture
def install(monkeypatch):
    def put(**modules):
        for name, module in (ABSENT | modules).items():
            monkeypatch.setitem(sys.modules, name, module)

    return put


FAKES = {
    "brotli": ("br", {"brotli": FakeBrotli}),
    "brotlicffi": ("br", {"brotlicffi": FakeBrotli}),
    "standard library": ("zstd", {"compression.zstd": FakeZstd}),
    "backport": ("zstd", {"backports.zstd": FakeZstd}),
    "zstandard": (
        "zstd",
        {"zstandard": SimpleNamespace(ZstdDecompressor=FakeZstandard, ZstdError=zlib.error)},
    ),
}


@pytest.mark.parametrize("step", [1, 7, 10_000])
@pytest.mark.parametrize("name", FAKES)
def test_optional_codings_are_understood_where_installed(name, step, install):
    coding, modules = FAKES[name]
    install(**modules)
    middle = 300
    raw = (
        zlib.compress(BODY) if coding == "br" else zlib.compress(BODY[:middle]) + zlib.compress(BODY[middle:])
    )
    seen, reader = read("openai.chat", [raw[i : i + step] for i in range(0, len(raw), step)], coding)
    assert seen == read("openai.chat", [BODY])[0]
    assert reader.known.terminal
    seen, reader = read("openai.chat", [b"not at all"], coding)
    assert reader.known.gave_up.startswith("the content encoding is spoilt")


@pytest.mark.parametrize("coding", ["br", "zstd"])
def test_optional_codings_are_unknown_where_not_installed(coding, install):
    install()
    assert read("openai.chat", [BODY], coding)[1].known.gave_up == "the content encoding is not known"


def test_a_brotli_that_bounds_no_output_is_not_used(install):
    install(brotli=SimpleNamespace(Decompressor=object, error=zlib.error))
    assert read("openai.chat", [BODY], "br")[1].known.gave_up == "the content encoding is not known"


def test_the_real_brotli():
    brotli = pytest.importorskip("brotli")
    raw = brotli.compress(BODY)
    seen, reader = read("openai.chat", [raw[i : i + 1] for i in range(len(raw))], "br")
    assert seen == read("openai.chat", [BODY])[0]
    _, reader = read("openai.chat", [brotli.compress(b": a comment of some length\n" * 1_000_000)], "br")
    assert reader.known.gave_up == "inflates more than 100 times"


def test_the_real_zstandard():
    zstandard = pytest.importorskip("zstandard")
    raw = zstandard.compress(BODY[:99]) + zstandard.compress(BODY[99:])
    seen, reader = read("openai.chat", [raw[i : i + 1] for i in range(len(raw))], "zstd")
    assert seen == read("openai.chat", [BODY])[0]
    assert reader.known.terminal
    _, reader = read("openai.chat", [zstandard.compress(b": a comment of some length\n" * 1_000_000)], "zstd")
    assert reader.known.gave_up == "inflates more than 100 times"


# The real SDKs read the same out of the same bytes


def served(body):
    answer = httpx2.Response(200, headers=SSE, content=body)
    return httpx2.Client(transport=httpx2.MockTransport(lambda _: answer))


def documents(body):
    parser = Parser()
    events = [*parser.feed(body), *parser.finish()]
    return [json.loads(event.data) for event in events if event.data != "[DONE]"]


VARIANTS = pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"])


@VARIANTS
@pytest.mark.parametrize("name", ["chat text", "chat tool call and reasoning", "chat, no [DONE]"])
def test_openai_chat_reads_the_same(name, ending):
    body = TRANSCRIPTS[name][1].replace(b"\n", ending)
    with served(body) as http, openai.OpenAI(api_key="k", http_client=http, max_retries=0) as client:
        chunks = list(client.chat.completions.create(model="m", messages=[], stream=True))
    _, reader = read("openai.chat", [body])
    assert [one.to_dict() for one in chunks] == documents(body)
    assert tuple(c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason) == (
        reader.known.finished
    )
    for usage in [one.usage for one in chunks if one.usage]:
        assert reader.known.usage == Usage(
            usage.prompt_tokens, usage.completion_tokens, usage.prompt_tokens_details.cached_tokens
        )


@VARIANTS
def test_openai_completions_reads_the_same(ending):
    body = TRANSCRIPTS["completions"][1].replace(b"\n", ending)
    with served(body) as http, openai.OpenAI(api_key="k", http_client=http, max_retries=0) as client:
        chunks = list(client.completions.create(model="m", prompt="p", stream=True))
    texts = [one.choices[0].text for one in chunks]
    assert texts == [one["choices"][0]["text"] for one in documents(body)] == ["", "Forty", "-two", ""]
    assert read("openai.completions", [body])[1].known.content == sum(bool(text) for text in texts)


@VARIANTS
@pytest.mark.parametrize("name", ["responses text", "responses, failed", "responses, incomplete"])
def test_openai_responses_reads_the_same(name, ending):
    body = TRANSCRIPTS[name][1].replace(b"\n", ending)
    with served(body) as http, openai.OpenAI(api_key="k", http_client=http, max_retries=0) as client:
        events = list(client.responses.create(model="m", input="p", stream=True))
    _, reader = read("openai.responses", [body])
    assert [one.type for one in events] == [one["type"] for one in documents(body)]
    assert [one.delta for one in events if one.type == "response.output_text.delta"] == [
        one["delta"] for one in documents(body) if one["type"] == "response.output_text.delta"
    ]
    last = events[-1].response
    assert reader.known.terminal == (last.status in {"completed", "incomplete"})
    if last.usage:
        assert reader.known.usage == Usage(last.usage.input_tokens, last.usage.output_tokens, 16)


@VARIANTS
@pytest.mark.parametrize("name", ["messages text", "messages tool call"])
def test_anthropic_reads_the_same(name, ending):
    body = TRANSCRIPTS[name][1].replace(b"\n", ending)
    with served(body) as http, anthropic.Anthropic(api_key="k", http_client=http, max_retries=0) as client:
        events = list(client.messages.create(model="m", max_tokens=9, messages=[], stream=True))
    _, reader = read("anthropic.messages", [body])
    told = [one for one in documents(body) if one["type"] != "ping"]
    assert [one.type for one in events] == [one["type"] for one in told]
    assert [getattr(one.delta, "text", None) for one in events if one.type == "content_block_delta"] == [
        one["delta"].get("text") for one in told if one["type"] == "content_block_delta"
    ]
    assert (events[-2].delta.stop_reason,) == reader.known.finished
    assert events[-2].usage.output_tokens == reader.known.usage.output


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("chat, error", openai.APIError),
        ("messages, overloaded at once", anthropic.APIStatusError),
        ("messages, error in mid-stream", anthropic.APIStatusError),
    ],
)
def test_what_the_sdks_raise_is_an_error_to_us(name, error):
    form, body, *_ = TRANSCRIPTS[name]
    with served(body) as http:
        if form == "openai.chat":
            client = openai.OpenAI(api_key="k", http_client=http, max_retries=0)
            stream = client.chat.completions.create(model="m", messages=[], stream=True)
        else:
            claude = anthropic.Anthropic(api_key="k", http_client=http, max_retries=0)
            stream = claude.messages.create(model="m", max_tokens=9, messages=[], stream=True)
        with pytest.raises(error):
            list(stream)
    known = read(form, [body])[1].known
    assert known.error
    assert not known.terminal


def test_seen_is_a_plain_tuple():
    assert Seen(Kind.PING, 3) == (Kind.PING, 3)
