"""Answer from memory or disk what has been asked before.

LLM completions are kept by *content*: the same question, by the same caller, has the same answer. GET and
HEAD follow RFC 9111. Concurrent misses on a key make one upstream call.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from attrs import asdict, evolve, field, frozen

from ..body import content_of
from ..caching.by_content import ByContent
from ..caching.by_rules import ByRules
from ..caching.exchange import MODES, Exchange, Tally
from ..caching.http import CONDITIONS
from ..caching.key import (
    CREDENTIALS,
    NO_CONTENT,
    KeyParts,
    canonical,
    content_digest,
    credential_digest,
    difference,
    plain_headers,
    taken,
)
from ..caching.question import Question, Questions
from ..caching.storage import Storage
from ..config import brief, check, flag, kind, one_of, optional, seconds
from ..events import Record, record_of
from ..options import Converter, switch
from ..stores.disk import DiskStore
from ..stores.memory import MemoryStore
from ..stores.secret import load_secret, secret_path
from ..wire import form_of

if TYPE_CHECKING:
    from ..chain import Handler
    from ..family import Request, Response
    from ..io import IO

__all__ = ["Cache"]

Mode: TypeAlias = Literal["on", "off", "read_only", "write_only", "refresh", "only_if_cached"]


# Callers whose digests are remembered.
_CALLERS = 128
# The fields of a body that count with ``key="messages"``.
_MESSAGES = ("model", "messages", "input", "prompt", "stream")
# What changes the meaning of a provider's body.
_VARY = ("anthropic-beta", "anthropic-version", "openai-beta", "openai-organization", "openai-project")
_NEGOTIATED = ("accept", "accept-encoding", "accept-language")
_CONDITIONS = frozenset(name.encode() for name in CONDITIONS)


def _mode(value: Any) -> str:
    """The mode of one call: a word, or on and off."""
    mode = ("on" if value else "off") if isinstance(value, bool) else value
    if mode not in MODES:
        raise ValueError(f"takes one of {', '.join(MODES)}")
    return str(mode)


def _sample(value: Any) -> int:
    """The number of a sample."""
    number = -1 if isinstance(value, bool) else int(value)
    if number < 0:
        raise ValueError("takes a whole number, 0 or more")
    return number


def _names(value: Any) -> Any:
    if isinstance(value, frozenset | set):
        value = sorted(value, key=str)  # its own order differs from process to process, and counts in a key
    return tuple(str(v).lower() for v in value) if isinstance(value, list | tuple) else value


_callable = check("a function", callable)
_tuple = check("a list of header names", lambda v: isinstance(v, tuple))


def _is_url(value: Any) -> bool:
    return isinstance(value, str) and "://" in value


@frozen(repr=False)
class Cache:
    """Keep complete answers, and give them again.

    Kept by content are LLM completions (OpenAI chat, completions, embeddings and responses, Anthropic
    messages) and what ``match`` accepts: the key is a digest of method, URL, the whole body as canonical
    JSON, and who is asking. A stream is kept when its last event says that it is whole. GET and HEAD follow
    RFC 9111. Only a complete 200 is ever kept. What goes on from server-side state (a conversation, server
    tools) passes by. A store that fails is a miss.

    Args:
        store: Where answers are kept: nothing for memory; a name or path for a file (a bare name lives in the
            user's cache directory); or a `MemoryStore`, a `DiskStore`, or any storage of hishel's.
        ttl: Seconds for which everything is fresh, GET and HEAD too. Without it, content never goes stale
            (only out of room), and GET and HEAD follow their headers.
        mode: ``on``; ``off``; ``read_only`` keeps nothing new; ``write_only`` and ``refresh`` always ask, and
            keep the answer; ``only_if_cached`` never asks, and answers 504 on a miss.
        identity: ``"credential"`` gives nobody another's answer: a keyed digest of all credentials is part of
            the key. A function of the request names the caller instead, for tokens that rotate.
            ``"shared"`` gives everybody everything.
        key: ``"content"``; ``"messages"`` takes only messages (or input, or prompt) and model of a body, and
            whether it streams.
        match: Accepts further requests to be kept by content, whatever their method.
        vary: Request headers whose values are part of a content key; by default those of OpenAI and Anthropic
            that choose an organisation, a project, a version or a beta.
        credentials: Names of the headers that are credentials.
        shared: Whether this is a shared cache by RFC 9111, as of a gateway; a private one otherwise.
        secret: The key of the digest of credentials; by default random, and kept beside the file of a store
            that has one.
        namespace: Keeps entries apart from those of other namespaces in one store. A named client
            (`dspex_pipe.llm`) takes its name, unless there is one.
        max_wait: Seconds that calls wait for the first one with the same question; when they are over, one
            of them asks, and the others wait for that one.

    Per call: ``cache=`` a mode; ``sample=`` which of several samples of one prompt; ``distrust=True`` asks
    anew where ``on`` would answer from what is kept.
    """

    options: ClassVar[Mapping[str, Converter]] = {"cache": _mode, "sample": _sample, "distrust": switch}

    store: Any = field(
        default=None,
        validator=check(
            "nothing, a file name, or a store",
            lambda v: (
                v is None
                or (isinstance(v, str | Path) and str(v) != "" and not _is_url(v))
                or (not isinstance(v, type) and callable(getattr(v, "get_entries", None)))
            ),
            lambda v: "a URL" if _is_url(v) else repr(v),  # which may hold a password
        ),
    )
    ttl: float | None = field(default=None, kw_only=True, validator=optional(seconds()))
    mode: Mode = field(
        default="on",  # pyright: ignore[reportAssignmentType] # attrs' stub widens it to str
        kw_only=True,
        validator=one_of(*MODES),
    )
    identity: Literal["credential", "shared"] | Callable[[Request], str] = field(
        default="credential",  # pyright: ignore[reportAssignmentType] # attrs' stub widens it to str
        kw_only=True,
        validator=check(
            '"credential", "shared" or a function', lambda v: v in ("credential", "shared") or callable(v)
        ),
    )
    key: Literal["content", "messages"] = field(
        default="content",  # pyright: ignore[reportAssignmentType] # attrs' stub widens it to str
        kw_only=True,
        validator=one_of("content", "messages"),
    )
    match: Callable[[Request], bool] | None = field(default=None, kw_only=True, validator=optional(_callable))
    vary: tuple[str, ...] = field(default=_VARY, kw_only=True, converter=_names, validator=_tuple)
    credentials: tuple[str, ...] = field(
        default=CREDENTIALS, kw_only=True, converter=_names, validator=_tuple
    )
    shared: bool = field(default=False, kw_only=True, validator=flag())
    secret: bytes | None = field(
        default=None,
        kw_only=True,
        repr=False,
        validator=optional(check("at least 16 bytes", lambda v: isinstance(v, bytes) and len(v) >= 16, kind)),
    )
    namespace: str = field(default="", kw_only=True, validator=check("a text", lambda v: isinstance(v, str)))
    max_wait: float = field(default=60.0, kw_only=True, validator=seconds(zero=True))

    __repr__ = brief

    def __getstate__(self) -> dict[str, Any]:
        """Without ``secret``: where it is loaded, it needs one anew, as if it had none."""
        return {**asdict(self, recurse=False), "secret": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc] # validated, as at first

    def __copy__(self) -> Cache:
        return self  # it never changes

    def __deepcopy__(self, memo: dict[int, Any]) -> Cache:
        return self

    def named(self, name: str) -> Cache:
        """This cache, as that of a named client: what is kept for it is kept apart."""
        return self if self.namespace else evolve(self, namespace=name)

    def build(self) -> Caching:
        """The running layer; opens the store.

        Raises:
            ValueError: The file is no cache of ours, or a store that is not ours needs ``secret=``.
        """
        return Caching(self)


class Caching:
    """The running layer."""

    def __init__(self, config: Cache) -> None:
        self.config = config
        self.storage = Storage(_open(config.store))
        self._owned = config.store is None or isinstance(config.store, str | Path)
        self._secret = config.secret or _secret_for(self.storage.store, config)
        # the dearest part of a key, and few callers share a client
        self._digest = lru_cache(maxsize=_CALLERS)(self._digest_of)
        self._tally = Tally()
        self._only = _MESSAGES if config.key == "messages" else None
        self._credentials = tuple(name.encode() for name in config.credentials)
        self._questions = Questions(self._only)
        self._by_content = ByContent(self.storage, config.ttl)
        self._by_rules = ByRules(
            self.storage,
            shared=config.shared,
            key=self._page_key,
            disguise=self._disguise,
        )

    def check_client(self, *, blocking: bool) -> None:
        """Refuse a client that the store cannot serve; called when a client is made.

        Raises:
            TypeError: An async store under a blocking client.
        """
        if blocking and self.storage.is_async:
            raise TypeError(
                f"Cache({type(self.storage.store).__name__}) needs an async client; "
                "its blocking twin serves every client"
            )

    def snapshot(self) -> dict[str, Any]:
        """Hits and misses so far, and calls that wait for an answer now."""
        flying = len(self._by_content.flights) + len(self._by_rules.flights)
        return {"hits": self._tally.hits, "misses": self._tally.misses, "under_way": flying}

    def close(self) -> None:
        """Close the store, if this layer opened it."""
        if self._owned:
            self.storage.close()

    async def __call__(self, request: Request, call_next: Handler, io: IO) -> Response:
        record, config = record_of(request), self.config
        mode = record.options.get("cache", config.mode)
        if mode == "on" and record.options.get("distrust"):
            mode = "refresh"
        if mode == "off":
            return await call_next(request)
        call = Exchange(request, call_next, io, record, mode, "", self._tally, config.max_wait)
        body, headers = content_of(request), plain_headers(request)
        # who asks for a part, or whether something has changed, wants no answer that another had
        question = self._question(request, body, record) if _CONDITIONS.isdisjoint(headers) else None
        if question is not None:
            if question.why_not is not None:
                record.emit("Cache", "passes by", question.why_not)
                return await call_next(request)
            call.key = self._key(request, headers, question.digest, record.options.get("sample", 0)).digest
            call.format = None if question.completion is None else question.completion.format
            return await self._by_content.answer(call)
        if request.method in {"GET", "HEAD"}:
            if body != b"":
                record.emit("Cache", "passes by", f"a {request.method} with a body")
                return await call_next(request)
            call.key = self._page_key(request, request.method, _plain(request.url), headers)
            return await self._by_rules.answer(call)
        response = await call_next(request)
        await self._by_rules.forget(call, response)
        return response

    def _question(self, request: Request, body: bytes | None, record: Record) -> Question | None:
        """What a request asks that is kept by content."""
        config = self.config
        chosen = (config.match is not None and config.match(request)) or (
            config.ttl is not None and request.method == "GET"
        )
        if not chosen and form_of(request.method, request.url.path) is None:
            return None
        question = self._questions.read(request.method, request.url.path, body)
        record.recognised(request, question.completion)
        return question if chosen or question.completion is not None else None

    # Keys

    def _key(self, request: Request, headers: Mapping[bytes, bytes], body: str, sample: int) -> KeyParts:
        return KeyParts(
            request.method,
            _plain(request.url),
            body,
            vary={name: headers.get(name.encode(), b"").decode("latin-1") for name in self._vary(request)},
            identity=self._identity(request, headers),
            sample=sample,
        )

    def _vary(self, request: Request) -> tuple[str, ...]:
        # a page that is kept for a fixed time still comes in several languages and types
        return (*self.config.vary, *_NEGOTIATED) if request.method == "GET" else self.config.vary

    def _page_key(
        self, request: Request, method: str, url: str, headers: Mapping[bytes, bytes] | None = None
    ) -> str:
        """The key of what HTTP's rules keep for whoever sends this request."""
        kind = "shared" if self.config.shared else "private"
        identity = self._identity(request, plain_headers(request) if headers is None else headers)
        return KeyParts(method, url, NO_CONTENT, identity=f"{kind} {identity}").digest

    def _identity(self, request: Request, headers: Mapping[bytes, bytes]) -> str:
        namespace = self.config.namespace
        who = self._who(request, headers)
        return f"in {namespace!r}: {who}" if namespace else who

    def _who(self, request: Request, headers: Mapping[bytes, bytes]) -> str:
        config = self.config
        if callable(config.identity):
            return f"named {config.identity(request)}"
        if config.identity == "shared":
            return "shared"
        return f"credential {self._digest(tuple(map(headers.get, self._credentials)), request.url.userinfo)}"

    def _digest_of(self, values: tuple[bytes | None, ...], userinfo: bytes) -> str:
        names = self.config.credentials
        given = {name: value for name, value in zip(names, values, strict=True) if value is not None}
        headers = {name: value.decode("latin-1") for name, value in given.items()}
        return credential_digest(self._secret, headers, names, userinfo)

    def _disguise(self, request: Request) -> Mapping[str, str]:
        """The request's headers, with a digest in the place of each credential."""
        return {
            name: credential_digest(self._secret, {name: value}, (name,), b"")
            if name in self.config.credentials
            else value
            for name, value in request.headers.items()
        }

    def explain_key(self, request: Request, other: Request | None = None) -> str:
        """What goes into a request's content key, line by line; with another request, where the keys differ.

        The text holds the body: it is for the caller's eyes.
        """
        one, *others = (self._shown_key(each) for each in (request, other) if each is not None)
        if not others:
            return str(one)
        return "\n".join(difference(one, others[0])) or "the keys are the same"

    def _shown_key(self, request: Request) -> KeyParts:
        content = taken(canonical(content_of(request) or b""), self._only)
        key = self._key(request, plain_headers(request), content_digest(content), 0)
        return evolve(key, content=content)


def _plain(url: Any) -> str:
    """A URL without its userinfo, which is a credential, and its fragment, which is never sent."""
    return str(url.copy_with(userinfo=b"", fragment=None) if url.userinfo or url.fragment else url)


def _open(store: Any) -> Any:
    """The store of a configuration, opened."""
    if store is None:
        return MemoryStore()
    if not isinstance(store, str | Path):
        return store
    disk = DiskStore(store)
    disk.open()
    return disk


def _secret_for(store: Any, config: Cache) -> bytes:
    """The key of the digest of credentials: random, and for a store with a file, kept beside it."""
    if config.identity != "credential" or isinstance(store, MemoryStore):
        return secrets.token_bytes(32)
    if isinstance(store, DiskStore):
        return load_secret(secret_path(store.path))
    raise ValueError(
        f"Cache({type(store).__name__}) needs secret=: at least 16 bytes, the same for all who share the "
        "store, to tell credentials apart without keeping them"
    )
