"""What an LLM request is, and what a provider's error body says."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, strategies as st

from dspex_pipe.wire import (
    Completion,
    error_codes,
    is_event_stream,
    media_type,
    parse_loosely,
    recognise,
)

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
PROMPT = {"model": "m", "prompt": "hi"}
INPUT = {"model": "m", "input": "hi"}
DEEP = b"[" * 200_000


def told(path, body, method="POST"):
    return recognise(method, path, json.dumps(body).encode())


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/v1/chat/completions", CHAT, "openai.chat"),
        ("/v1/completions", PROMPT, "openai.completions"),
        ("/v1/embeddings", INPUT, "openai.embeddings"),
        ("/v1/responses", INPUT, "openai.responses"),
        ("/v1/messages", CHAT, "anthropic.messages"),
        ("/openai/deployments/my-gpt/chat/completions", CHAT, "openai.chat"),
        ("/openai/deployments/my-gpt/completions", PROMPT, "openai.completions"),
        ("/openai/deployments/ada/embeddings", INPUT, "openai.embeddings"),
        ("/gateway/eu/anthropic/v1/messages", CHAT, "anthropic.messages"),
        ("/chat/completions", CHAT, "openai.chat"),
    ],
)
def test_a_completion_is_told_by_suffix_and_shape_under_any_prefix(path, body, name):
    assert told(path, body) == Completion(name, "m", stream=False)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/threads/x/messages", {"role": "user", "content": "hi"}),
        ("/rooms/7/messages", {"text": "hi"}),
        ("/rooms/7/messages", {"messages": ["hi"]}),
        ("/v1/messages", PROMPT),
        ("/v1/chat/completions", PROMPT),
        ("/v1/completions", CHAT),
        ("/v1/responses", CHAT),
        ("/v1/messages/batches", CHAT),
        ("/v1/messages/count_tokens", CHAT),
        ("/v1/chat/completions/", CHAT),
        ("/v1/mychat-completions", CHAT),
        ("/orders", CHAT),
        ("/", CHAT),
        ("", CHAT),
    ],
)
def test_neither_the_path_nor_the_shape_alone_makes_a_completion(path, body):
    assert told(path, body) is None


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "post"])
def test_only_a_post_is_a_completion(method):
    assert told("/v1/messages", CHAT, method) is None


@pytest.mark.parametrize("model", [None, "", 7, ["m"], {"name": "m"}])
def test_the_model_must_be_a_name(model):
    assert told("/v1/messages", {**CHAT, "model": model}) is None


@pytest.mark.parametrize("messages", [None, [], "", 0])
def test_the_field_of_the_format_must_say_something(messages):
    assert told("/v1/messages", {**CHAT, "messages": messages}) is None


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"nonsense",
        b'["model", "messages"]',
        b'"model"',
        b"7",
        b"null",
        DEEP,
    ],
)
def test_what_is_no_json_object_is_no_completion(content):
    assert recognise("POST", "/v1/messages", content) is None


@pytest.mark.parametrize(
    ("given_flag", "stream"), [(True, True), (False, False), (None, False), ("true", False), (1, False)]
)
def test_only_a_true_stream_flag_makes_a_stream(given_flag, stream):
    assert told("/v1/chat/completions", {**CHAT, "stream": given_flag}).stream is stream


@pytest.mark.parametrize(
    ("document", "codes"),
    [
        (
            {"error": {"message": "m", "type": "insufficient_quota", "param": None, "code": "quota"}},
            {"insufficient_quota", "quota"},
        ),
        ({"type": "error", "error": {"type": "overloaded_error", "message": "m"}}, {"overloaded_error"}),
        ({"error": {"code": "rate_limit_exceeded", "type": None}}, {"rate_limit_exceeded"}),
        (
            {
                "error": {
                    "type": "rate_limit_error",
                    "details": {"error_code": "enforced_spend_limit_reached"},
                }
            },
            {"rate_limit_error", "enforced_spend_limit_reached"},
        ),
        ({"error": {"code": 429, "type": ["x"], "details": ["x"]}}, {"429"}),
        ({"error": {"code": 70_000, "type": "a\nb"}}, set()),
        ({"error": {"code": True, "type": "x" * 257}}, set()),
        ({"type": "error", "error": {"type": "error", "code": ""}}, set()),
        ({"error": {"message": "insufficient_quota"}}, set()),
        ({"error": "insufficient_quota"}, set()),
        ({"error": None}, set()),
        ({"code": "insufficient_quota"}, set()),
        (["error"], set()),
        ("error", set()),
        (None, set()),
    ],
)
def test_error_codes_are_read_from_the_structure_never_from_free_text(document, codes):
    assert error_codes(json.dumps(document).encode()) == codes


@pytest.mark.parametrize("body", [None, b"", b"{", b"\xff", b"<h1>bad gateway</h1>", DEEP, b"9" * 5000])
def test_what_is_no_error_body_has_no_codes(body):
    assert error_codes(body) == frozenset()


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from(["model", "messages", "input", "prompt", "stream", "error", "code", "type"]),
            inner,
        )
    ),
)
BODIES = st.none() | st.binary() | JSON.map(lambda document: json.dumps(document).encode())
PATHS = st.text() | st.sampled_from(["/v1/messages", "/chat/completions", "/completions", "/responses"])


@given(method=st.sampled_from(["POST", "GET"]) | st.text(), path=PATHS, content=BODIES)
def test_anything_may_come_as_a_request_and_nothing_raises(method, path, content):
    found = recognise(method, path, content)
    assert found is None or (method == "POST" and found.model and type(found.stream) is bool)


@given(BODIES)
def test_anything_may_come_as_an_error_body_and_nothing_raises(body):
    codes = error_codes(body)
    assert len(codes) <= 2
    assert all(isinstance(code, str) for code in codes)


@pytest.mark.parametrize(
    ("content_type", "kind", "stream"),
    [
        ("text/event-stream", "text/event-stream", True),
        ("Text/Event-Stream ; charset=utf-8", "text/event-stream", True),
        ("text/event-streams", "text/event-streams", False),
        ("application/json; charset=utf-8", "application/json", False),
        ("", "", False),
    ],
)
def test_the_kind_of_a_body_is_told_without_case_or_parameters(content_type, kind, stream):
    headers = {"content-type": content_type}
    assert (media_type(headers), is_event_stream(headers)) == (kind, stream)
    assert media_type({}) == ""


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
_TEXTS = st.builds(
    lambda document, before, after, escaped: before + json.dumps(document, ensure_ascii=escaped) + after,
    _JSON,
    st.sampled_from(["", " ", "\n\t", "\ufeff", "x"]),
    st.sampled_from(["", " ", "\r\n", "]", "\x00"]),
    st.booleans(),
)
_ENCODINGS = st.sampled_from(
    ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"]
)


def _by_the_library(body):
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


@given(
    st.binary(max_size=12)
    | st.builds(lambda text, encoding: text.encode(encoding, "surrogatepass"), _TEXTS, _ENCODINGS)
)
def test_json_is_read_as_the_library_reads_it(body):
    assert repr(parse_loosely(body)) == repr(_by_the_library(body))


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b"1" * 5000, b"", b" ", b"1\x00", b"\xed\xa0\x80", b'"\xff"']
)
def test_what_the_library_cannot_read_is_no_json(body):
    assert parse_loosely(body) == _by_the_library(body)
