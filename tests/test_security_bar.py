"""The security bar: trusted caller; hostile server, network, and co-tenants of a store. One test a line."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import re
import stat
import tracemalloc
from pathlib import Path

import httpx
import pytest
from pyrate_limiter import Rate

import dspex_pipe
from dspex_pipe import (
    Breaker,
    BreakerOpen,
    Cache,
    Logging,
    Meaning,
    MemoryStore,
    Pipeline,
    RateLimit,
    RedisStore,
    Retry,
    explain,
)
from dspex_pipe.layers.breaker import Circuit
from dspex_pipe.table import Table
from dspex_pipe.testing import Reply, Script, VirtualIO
from modes import World

SECRET = "hunter2-hunter2"
CHAT = "http://llm.test/v1/chat/completions"
ASK = {"model": "m", "messages": [{"role": "user", "content": SECRET}]}
HEADERS = {
    "authorization": f"Bearer {SECRET}",
    "x-api-key": SECRET,
    "api-key": SECRET,
    "x-goog-api-key": SECRET,
    "cookie": f"session={SECRET}",
}


def test_1_one_credential_never_receives_anothers_answer_in_memory_or_on_disk(tmp_path):
    for store in (MemoryStore(), tmp_path / "x" / "run.db"):
        count = iter(range(100))
        script = Script(lambda _, n=count: Reply(json={"id": next(n)}), forever=True)
        with Pipeline([Cache(store)]) as pipeline:
            client = pipeline.client(transport=script)
            seen = {
                client.post(CHAT, json=ASK, headers={name: value}).json()["id"]
                for name in HEADERS
                for value in ("one", "two")
            }
        assert len(seen) == 2 * len(HEADERS)


def test_2_nothing_secret_rests_or_shows(tmp_path, caplog):
    caplog.set_level(logging.DEBUG, "dspex_pipe")
    told = []
    path = tmp_path / "x" / "run.db"
    reply = Reply(json={"id": 1}, headers={"set-cookie": SECRET, "vary": "authorization", "etag": '"1"'})
    page = Reply(content=b"page", headers={**reply.headers, "cache-control": "max-age=60"})
    layers = [Logging(), Cache(path), Retry(), Breaker(consecutive=1)]
    with Pipeline(layers, on_event=told.append) as pipeline:
        script = Script(reply, page, "ReadError", forever=True)
        client = pipeline.client(transport=script, io=VirtualIO())
        url = f"?key={SECRET}#{SECRET}"
        responses = [
            client.post(CHAT.replace("llm", f"me:{SECRET}@llm") + url, json=ASK, headers=HEADERS),
            client.get(f"http://me:{SECRET}@llm.test/" + url, headers=HEADERS),
        ]
        with pytest.raises(BreakerOpen) as caught:
            client.put(f"http://llm.test/{url}", headers=HEADERS)
        shown = [
            repr(pipeline),
            repr(pipeline.snapshot()),
            repr(told),
            str(caught.value),
            *(str(explain(r)) for r in responses),
            *(record.getMessage() + repr(record.__dict__) for record in caplog.records),
            pickle.dumps(BreakerOpen("open", key="k")).decode("latin-1"),
        ]
        kept = b"".join(file.read_bytes() for file in path.parent.iterdir() if file.suffix != ".key")
    assert b"page" in kept
    for text in (*shown, kept.decode("latin-1")):
        assert SECRET not in text


def test_3_stores_are_for_their_owner_alone_and_never_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    before = os.umask(0)
    try:
        with Pipeline([Cache("run.db")]) as pipeline:
            pipeline.client(transport=Script(Reply(json={}))).post(CHAT, json=ASK)
            folder = tmp_path / "cache" / "dspex-pipe"
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            files = {f.name: stat.S_IMODE(f.stat().st_mode) for f in folder.iterdir()}
    finally:
        os.umask(before)
    assert {"run.db", "run.db.key"} <= set(files)
    assert set(files.values()) == {0o600}
    assert [p.name for p in tmp_path.iterdir()] == ["cache"]
    (folder / "foreign.db").write_text("not a database at all, but a letter to my mother")
    with pytest.raises(ValueError, match=r"foreign\.db"):
        Pipeline([Cache("foreign.db")])


def test_4_nothing_is_unpickled_or_evaluated():
    package = Path(dspex_pipe.__file__).parent
    source = "\n".join(path.read_text(encoding="utf-8") for path in package.rglob("*.py"))
    assert not re.search(
        r"\b(pickle|marshal|shelve|dill)\b\.|\beval\(|\bexec\(|import (pickle|marshal)", source
    )


def test_5_nothing_from_outside_forges_a_line_and_no_header_smuggles_one(world: World, caplog):
    caplog.set_level(logging.DEBUG, "dspex_pipe")

    async def main():
        script = Script(Reply(headers={"x-request-id": "1\x1b[31mforged"}))
        async with world.client([Logging()], transport=script) as client:
            await client.get("http://x.test/a%0Aforged")
            for value in ("a\r\nx: y", "a\nb", "a\0b"):
                with pytest.raises(world.http.LocalProtocolError, match="CR, LF or NUL"):
                    await client.get("http://x.test/", headers={"x-bad": value})
        assert len(script.requests) == 1

    world.run(main)
    for record in caplog.records:
        assert len(record.getMessage().splitlines()) == 1
        assert "\x1b" not in record.getMessage()


def test_6_waits_told_by_a_server_are_bounded_and_so_are_tables_keyed_from_outside():
    io = VirtualIO()
    script = Script(Reply(status=429, headers={"retry-after": "1e300"}), forever=True, io=io)
    client = Pipeline([Retry(), RateLimit()]).client(transport=script, io=io)
    client.get("http://x.test/")
    client.get("http://x.test/")
    assert io.now() <= 60.1  # the gate's cap, once; Retry gave up at once
    tracemalloc.start()
    try:
        table = Table(lambda: Circuit(Breaker()), armed=lambda circuit, now: False, limit=1024)
        for number in range(100_000):
            table.get(f"https://host-{number}.test:443 model-{number}", float(number) / 1000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(table) == 1024
    assert peak < 4 << 20


@pytest.mark.parametrize("said", ['private=""', "no-store=1", "max-age=60, private=", "=;=", 'max-age="60'])
def test_7_what_cannot_be_read_is_not_stored(said):
    script = Script(
        Reply(content=b"x", headers={"cache-control": f"public, max-age=60, {said}"}), forever=True
    )
    client = Pipeline([Cache(shared=True)]).client(transport=script)
    for _ in range(2):
        client.get("http://x.test/")
    assert len(script.requests) == 2


def test_8_no_layer_widens_trust(http):
    layers = [Logging(), Cache(), Retry(), Breaker(), RateLimit()]
    plain, ours = http.Client(), Pipeline(layers).client(http=http)
    for name in ("trust_env", "follow_redirects", "max_redirects"):
        assert getattr(ours, name) == getattr(plain, name)
    contexts = [client._transport._pool._ssl_context for client in (plain, _Unwrapped(ours))]
    assert contexts[0].verify_mode == contexts[1].verify_mode
    assert contexts[0].check_hostname == contexts[1].check_hostname is True
    script = Script(Reply(status=302, headers={"location": "http://evil.test/"}))
    response = Pipeline(layers).client(http=http, transport=script).get("http://x.test/", headers=HEADERS)
    assert (response.status_code, len(script.requests)) == (302, 1)


class _Unwrapped:
    def __init__(self, client):
        self._transport = client._transport.inner


def test_9_a_store_that_others_share_needs_a_secret_of_its_own():
    class Theirs:
        def get_entries(self, key):
            return []

    with pytest.raises(ValueError, match="needs secret="):
        Pipeline([Cache(Theirs())])


def test_layers_are_pickled_without_their_secrets_and_pipelines_begin_anew():
    store = RedisStore(url=f"redis://me:{SECRET}@127.0.0.1:1?db=2&password={SECRET}")
    limit = RateLimit(Rate(1, 60_000), store=store)
    inner = Pipeline([Retry(), Cache(secret=SECRET.encode() * 4)], meanings={"melted": Meaning.FAILED})
    inner.client(transport=Script(Reply(json={}))).post(CHAT, json=ASK)
    data = pickle.dumps([limit, inner])
    assert SECRET.encode() not in data
    again, pipeline = pickle.loads(data)
    assert again.store.url == "redis://127.0.0.1:1?db=2"
    assert pickle.loads(pickle.dumps(RedisStore())) == RedisStore()
    # in one process, a copy keeps them
    assert copy.deepcopy(limit).store is copy.copy(store) is store
    assert copy.deepcopy(inner.layers[1]) is copy.copy(inner.layers[1]) is inner.layers[1]
    assert repr(pipeline) == repr(inner)
    assert pipeline.meanings == inner.meanings
    assert (inner.snapshot()["layers"][1]["misses"], pipeline.snapshot()["layers"][1]["misses"]) == (1, 0)


def test_a_refusal_keeps_its_class_but_no_request_through_pickle():
    client = Pipeline([Breaker(consecutive=1)]).client(transport=Script(503))
    client.get("http://x.test/", headers=HEADERS)
    with pytest.raises(httpx.TransportError) as caught:
        client.get("http://x.test/", headers=HEADERS)
    data = pickle.dumps(caught.value)
    assert SECRET.encode() not in data
    again = pickle.loads(data)
    assert type(again) is BreakerOpen
    assert (again.key, again.last_failure) == ("http://x.test:80", "status 503")
