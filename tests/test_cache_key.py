"""What makes two requests the same."""

from __future__ import annotations

import copy
import json

import pytest
from hypothesis import given, strategies as st

from dspex_pipe import Cache, Pipeline
from dspex_pipe.caching.content import is_worth_keeping, why_not
from dspex_pipe.caching.key import (
    CREDENTIALS,
    NO_CONTENT,
    KeyParts,
    canonical,
    content_digest,
    credential_digest,
    difference,
    taken,
)
from dspex_pipe.caching.question import Question, Questions
from dspex_pipe.testing import Reply, Script, VirtualIO
from dspex_pipe.wire import recognise

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=12,
)


def key_parts(method, url, content, *, only=None, **parts):
    content = taken(content, only)
    return KeyParts(method, url, content_digest(content), content=content, **parts)


def digest(body, **changes):
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    arguments = {"identity": "me", **changes}
    return key_parts("POST", "http://x.test/v1/chat/completions", canonical(text), **arguments).digest


def shuffled(value, random):
    if isinstance(value, dict):
        items = [(key, shuffled(inner, random)) for key, inner in value.items()]
        random.shuffle(items)
        return dict(items)
    return [shuffled(inner, random) for inner in value] if isinstance(value, list) else value


@given(JSON, st.randoms(), st.sampled_from([None, 1, "\t"]))
def test_key_order_and_white_space_do_not_matter(document, random, indent):
    other = json.dumps(shuffled(document, random), indent=indent, ensure_ascii=random.random() < 0.5)
    assert (
        digest(document) == digest(other.encode("utf-8", "surrogatepass"))
        or "\ud800" <= max(other) <= "\udfff"
    )


@given(JSON, JSON)
def test_any_value_does(one, other):
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (digest(one) == digest(other)) == same


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b"1", b"1.0"),
        (b"true", b"1"),
        (b'"1"', b"1"),
        (b"null", b'"null"'),
        (b"1e400", b"1e401"),
        (b"[NaN]", b"[Infinity]"),
        (b"[[1], 2]", b"[1, [2]]"),
        (b'{"a": 1, "a": 2}', b'{"a": 2}'),
        (b"not json", b"not  json"),
        (b'{"a": "\\u00e9"}', b'{"a": "e\\u0301"}'),
    ],
    ids=str,
)
def test_these_differ(one, other):
    assert digest(one) != digest(other)


def test_a_body_too_deep_to_read_counts_byte_by_byte():
    assert canonical(b"[" * 100_000).startswith("sha256:")


@pytest.mark.parametrize(
    ("name", "value"),
    [("identity", "you"), ("sample", 1), ("vary", {"x": "1"}), ("only", ["model"])],
)
def test_every_part_counts(name, value):
    body = {"model": "m", "messages": [1]}
    assert digest(body) != digest(body, **{name: value})


def test_the_order_in_which_headers_are_named_does_not_count():
    """That of a set differs from process to process, and a file is for all of them."""
    body, vary = {"model": "m", "messages": [1]}, {"x-a": "1", "x-b": "2"}
    assert digest(body, vary=vary) == digest(body, vary=dict(reversed(vary.items())))


def test_method_and_url_count():
    keys = {
        key_parts(m, u, canonical(b""), identity="").digest
        for m in ("POST", "GET")
        for u in ("http://a/", "http://b/")
    }
    assert len(keys) == 4


def test_chosen_fields_are_all_that_counts():
    only = ["model", "messages"]
    base = {"model": "m", "messages": ["hi"]}
    assert digest({**base, "temperature": 0}, only=only) == digest({**base, "user": "u"}, only=only)
    assert digest(base, only=only) != digest({**base, "messages": ["ho"]}, only=only)
    assert digest(b"[1]", only=only) != digest(b"[2]", only=only)


def test_parts_print_and_are_compared_by_path():
    one = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "n": 1}
    two = copy.deepcopy(one)
    two["messages"][0]["content"] = "ho"
    two["n"] = 1.0
    del two["model"]
    a = key_parts("POST", "http://x/", one, identity="i", vary={"x": "1"})
    b = key_parts("POST", "http://x/", canonical(json.dumps(two).encode()), identity="i", sample=2)
    assert difference(a, a) == []
    assert difference(a, b) == [
        'body.messages[0].content: "hi" / "ho"',
        'body.model: "m" / (absent)',
        'body.n: 1 / {"number":"1.0"}',
        'vary.x: "1" / (absent)',
        "sample: 0 / 2",
    ]
    assert str(a).splitlines()[0] == f"key       {a.digest}"
    assert 'body      {"messages":[{"content":"hi","role":"user"}],"model":"m","n":1}' in str(a)
    longer = key_parts("POST", "http://x/", {"messages": [1, 2]}, identity="i")
    assert "body.messages" in difference(a, longer)[0]


# What a body asks


CHAT = "/v1/chat/completions"


def body_of(**fields):
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}).encode()


def test_a_question_is_read_once_and_answered_alike_ever_after():
    questions = Questions()
    first = questions.read("POST", CHAT, body_of())
    assert first == Question(content_digest(canonical(body_of())), None, recognise("POST", CHAT, body_of()))
    assert questions.read("POST", CHAT, body_of()) is first
    assert questions.read("POST", CHAT, body_of(n=1)).digest != first.digest
    assert questions.read("POST", CHAT, json.dumps(json.loads(body_of()), indent=1).encode()) == first
    # the path says what the body is
    assert questions.read("POST", "/v1/other", body_of()) == Question(first.digest)
    assert questions.read("GET", CHAT, b"").digest == NO_CONTENT


def test_only_the_newest_questions_are_remembered():
    questions = Questions()
    first = questions.read("POST", CHAT, body_of())
    for number in range(1023):
        questions.read("POST", CHAT, body_of(n=number))
    assert questions.read("POST", CHAT, body_of()) is first  # and is the newest now
    questions.read("POST", CHAT, body_of(n=-1))
    assert questions.read("POST", CHAT, body_of()) is first
    for number in range(1024):
        questions.read("POST", CHAT, body_of(seed=number))
    again = questions.read("POST", CHAT, body_of())
    assert again == first
    assert again is not first


def test_only_some_fields_of_a_question_count_where_it_is_wanted_so():
    questions = Questions(only=("model", "messages"))
    one, other = (questions.read("POST", CHAT, body_of(n=n)) for n in (1, 2))
    assert one == other
    stateful = questions.read("POST", "/v1/responses", body_of(input="hi", previous_response_id="r"))
    assert stateful.why_not == "it asks for server-side state (previous_response_id)"
    assert questions.read("POST", CHAT, None).why_not == "the request's body is a stream"


# Identity


def test_credentials_make_callers_different_and_are_not_in_the_digest():
    def of(headers, userinfo=b"", secret=b"s" * 32):
        return credential_digest(secret, headers, CREDENTIALS, userinfo)

    seen = {of({})}
    for name in CREDENTIALS:
        seen.add(of({name: "hunter2"}))
        seen.add(of({name: "hunter3"}))
    seen.add(of({}, b"user:hunter2"))
    seen.add(of({"authorization": "hunter2"}, secret=b"t" * 32))
    assert len(seen) == 2 * len(CREDENTIALS) + 3
    assert all(len(value) == 64 and "hunter" not in value for value in seen)
    assert of({"user-agent": "a"}) == of({"user-agent": "b"})


# What may be cached


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({}, None),
        ({"tools": [{"type": "function", "function": {}}]}, None),
        ({"tools": [{"name": "get_weather", "input_schema": {}}]}, None),
        ({"tools": [{"type": "custom", "name": "x"}]}, None),
        ({"tools": None, "background": False, "conversation": None}, None),
        ({"conversation": "c1"}, "conversation"),
        ({"previous_response_id": "r1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"container": "c"}, "container"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
        ({"tools": [{"type": "web_search"}]}, "tools of the server"),
        ({"tools": [{"type": "web_search_20250305"}]}, "tools of the server"),
        ({"tools": [{"type": "code_interpreter"}]}, "tools of the server"),
        ({"stream": True}, None),
    ],
    ids=str,
)
def test_server_side_state_passes_by(more, why):
    told = why_not({"model": "m", "messages": [], **more})
    assert told is None if why is None else why in told


def test_what_a_server_may_read_differently_is_a_call_all_the_same():
    body = b'{"model": "m", "messages": [{}], "x": 1, "x": 1, "previous_response_id": "r"}'
    assert recognise("POST", "/v1/chat/completions", body).model == "m"
    script = Script(Reply(json={"id": 1, "choices": []}), forever=True)
    client = Pipeline([Cache(match=lambda _: True)]).client(transport=script, io=VirtualIO())
    for _ in range(2):
        client.post("http://llm.test/v1/chat/completions", content=body)
    assert len(script.requests) == 2  # it asks for what the server remembers
    client.post("http://llm.test/v1/chat/completions", content=body.replace(b"previous_response_id", b"y"))
    client.post("http://llm.test/v1/chat/completions", content=body.replace(b"previous_response_id", b"y"))
    assert len(script.requests) == 3


@pytest.mark.parametrize("body", [b"", b"not json", b"[1]", b"[" * 100_000])
def test_what_is_no_llm_body_may_be_cached_when_it_is_matched(body):
    assert why_not(canonical(body)) is None


@pytest.mark.parametrize(
    ("body", "kept", "matched"),
    [
        (b'{"choices": []}', True, True),
        (b'{"status": "completed"}', True, True),
        (b'{"error": null}', True, True),
        (b"plain text", False, True),
        (b"<html>please log in</html>", False, True),
        (b'{"choices":[{"mess', False, True),
        (b"[1, 2]", False, True),
        (None, False, True),
        (b'{"error": {"code": "x"}}', False, False),
        (b'{"status": "failed"}', False, False),
        (b'{"status": "incomplete"}', False, False),
        (b'{"status": "queued"}', False, False),
        (b'{"status": "in_progress"}', False, False),
    ],
    ids=str,
)
def test_only_an_answer_is_worth_keeping(body, kept, matched):
    assert is_worth_keeping(body, completion=True) is kept
    assert is_worth_keeping(body, completion=False) is matched


def test_cookies_of_load_balancers_name_nobody():
    def of(cookie):
        return credential_digest(b"s" * 32, {"cookie": cookie} if cookie else {}, CREDENTIALS, b"")

    assert of("__cf_bm=1; session=me") == of("session=me; _cfuvid=2") == of("session=me")
    assert of("__cf_bm=1") == of(None)
    assert of("session=me") != of("session=you")
