"""What differs between httpx and httpx2: the private names we lean on, exceptions, synthetic responses."""

from __future__ import annotations

import pickle
from types import ModuleType, SimpleNamespace

import pytest

from dspex_pipe import (
    BreakerOpen,
    DeadlineExceeded,
    Overloaded,
    RateLimited,
    Refused,
    respond,
)
from dspex_pipe.family import _families, content_of, family_of, load, named, wrap_transports

REFUSALS = [Refused, BreakerOpen, RateLimited, Overloaded, DeadlineExceeded]
URL = "http://upstream.test/thing"


@pytest.mark.parametrize("kind", ["Client", "AsyncClient"])
def test_the_private_names_that_hold_the_transports_are_still_there(http, kind):
    client = getattr(http, kind)(mounts={"http://a.test": None}, proxy="http://proxy.test:1")
    assert hasattr(client._transport, "close" if kind == "Client" else "aclose")
    assert set(client._mounts.values()) >= {None}
    assert all(value is None or hasattr(value, "_pool") for value in client._mounts.values())


def test_wrapping_reaches_the_main_transport_and_every_mount_and_leaves_none_alone(http):
    mounted = http.MockTransport(lambda request: http.Response(204))
    client = http.Client(mounts={"http://a.test": mounted, "http://b.test": None})
    main = client._transport
    wrapped = []
    wrap_transports(client, lambda inner: wrapped.append(inner) or SimpleNamespace(inner=inner))
    assert wrapped == [main, mounted]
    assert client._transport_for_url(http.URL("http://a.test/")).inner is mounted
    assert client._transport_for_url(http.URL("http://b.test/")).inner is main


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_refusal_becomes_an_error_of_the_library_and_keeps_its_name(http, kind):
    family, request = load(http.__name__), http.Request("GET", URL)
    plain = kind("no more", layer="Guard", retry_after=1.5)
    refused = family.refusal(plain, request)
    assert refused is plain
    assert isinstance(refused, kind)
    assert isinstance(refused, http.TransportError)
    assert isinstance(refused, http.TimeoutException) == (kind is DeadlineExceeded)
    assert (type(refused).__name__, type(refused).__module__) == (kind.__name__, "dspex_pipe.errors")
    assert type(refused).__doc__ == kind.__doc__
    assert str(refused) == "Guard: no more (refused locally, nothing was sent); retry after 1.5 s"
    assert refused.request is request


def test_one_class_is_made_per_kind_of_refusal_and_a_second_pass_changes_nothing(http):
    family, request = load(http.__name__), http.Request("GET", URL)
    one = family.refusal(Overloaded("full"), request)
    other = family.refusal(Overloaded("full"), request)
    made = type(one)
    assert made is type(other)
    assert type(family.refusal(one, request)) is made
    assert type(family.refusal(RateLimited("full"), request)) is not made


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_refusal_of_a_library_pickles_to_the_plain_class(http, kind):
    refused = kind("no more", layer="Guard", retry_after=2.0, sent=True)
    load(http.__name__).refusal(refused, http.Request("GET", URL))
    back = pickle.loads(pickle.dumps(refused))
    assert type(back) is kind
    assert (back.reason, back.layer, back.retry_after, back.sent) == ("no more", "Guard", 2.0, True)
    assert str(back) == str(refused) == "Guard: no more; retry after 2 s"


def test_a_plain_refusal_pickles_too():
    assert type(pickle.loads(pickle.dumps(BreakerOpen("open")))) is BreakerOpen


def test_family_of_knows_requests_responses_errors_clients_and_their_subclasses(http):
    class MyRequest(http.Request):
        pass

    with http.Client() as client:
        things = [http.Request("GET", URL), http.Response(200), http.ReadError("x"), client]
        for thing in [*things, MyRequest("GET", URL)]:
            assert family_of(thing) is load(http.__name__)
            assert family_of(thing).module is http
    assert family_of(http.AsyncClient()).module is http


@pytest.mark.parametrize("thing", [object(), None, {"method": "GET"}, "GET", ValueError("x")])
def test_family_of_a_stranger_says_what_it_got(thing):
    name = f"{type(thing).__module__}.{type(thing).__qualname__}"
    with pytest.raises(TypeError, match=f"{name} is of neither httpx nor httpx2"):
        family_of(thing)


def test_a_class_that_only_pretends_to_come_from_httpx_is_a_stranger(monkeypatch):
    pretender = type("Pretender", (), {"__module__": "httpx_fake.models"})
    with pytest.raises(TypeError, match=r"httpx_fake\.models\.Pretender is of neither"):
        family_of(pretender())


@pytest.mark.parametrize("module", [pytest, "httpx", None, SimpleNamespace(__name__="httpx")], ids=repr)
def test_only_the_two_modules_are_families(module):
    with pytest.raises(TypeError, match="http= takes the module httpx or httpx2, got"):
        named(module)


def test_a_library_that_was_imported_afresh_is_a_family_of_its_own(http, monkeypatch):
    before = named(http)
    monkeypatch.setitem(_families, http.__name__, before)  # put back when the test is over
    fresh = ModuleType(http.__name__)
    fresh.__dict__.update(vars(http))
    assert named(fresh).module is fresh
    assert named(fresh) is not before
    again = named(http)
    assert again.module is http
    assert named(http) is again


def test_content_of_is_the_body_or_none_for_a_stream_nobody_has_read(http):
    assert content_of(http.Request("POST", URL, content=b"abc")) == b"abc"
    assert content_of(http.Request("GET", URL)) == b""
    assert content_of(http.Request("POST", URL, content=iter([b"abc"]))) is None


def test_respond_makes_a_whole_response_of_the_requests_library(http):
    response = respond(http.Request("GET", URL), 429, headers={"retry-after": "3"}, content=b"slow down")
    assert type(response) is http.Response
    assert response.status_code == 429
    assert response.read() == b"slow down"
    assert response.headers["retry-after"] == "3"
    assert response.headers["content-length"] == "9"


def test_respond_writes_json(http):
    request = http.Request("GET", URL)
    response = respond(request, 200, json={"choices": []}, headers={"x-a": "1"})
    assert response.read() == b'{"choices": []}'
    assert response.json() == {"choices": []}
    assert dict(response.headers) == {"content-type": "application/json", "x-a": "1", "content-length": "15"}
    typed = respond(request, 400, json=None, headers=[("Content-Type", "application/problem+json")])
    assert (typed.read(), typed.headers["content-type"]) == (b"", "application/problem+json")
    typed = respond(request, 400, json=[], headers=[("Content-Type", "application/problem+json")])
    assert (typed.read(), typed.headers.get_list("content-type")) == (b"[]", ["application/problem+json"])


def test_respond_has_one_length_whatever_the_headers_say(http):
    response = respond(http.Request("GET", URL), 200, headers={"Content-Length": "3"}, content=b"abc")
    assert response.headers.get_list("content-length") == ["3"]


def test_respond_can_be_read_in_every_mode(world):
    async def answer(request, call_next):
        return respond(request, 203, content=b"mine")

    async def main():
        async with world.client([answer]) as client:
            response = await client.open("GET", URL)
            assert await client.read(response) == b"mine"
            assert type(response) is world.http.Response

    world.run(main)


def test_respond_refuses_what_is_no_request():
    with pytest.raises(TypeError, match=r"builtins\.str is of neither httpx nor httpx2"):
        respond("GET /", 200)


def test_headers_beyond_latin_1_go_out_as_utf_8(http):
    request = http.Request("GET", "http://x.test/")
    raw = respond(request, 200, headers={"x-a": "caf\xe9", "x-b": "\u96ea"}).headers.raw
    assert (b"x-a", b"caf\xe9") in raw
    assert (b"x-b", "\u96ea".encode()) in raw
