"""What makes two requests the same: the parts of a cache key, and who may share an answer."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from ..wire import parse

if TYPE_CHECKING:
    from ..family import Request

__all__ = [
    "CREDENTIALS",
    "NO_CONTENT",
    "KeyParts",
    "canonical",
    "content_digest",
    "credential_digest",
    "difference",
    "plain_headers",
    "taken",
]

CREDENTIALS = (
    "authorization",
    "proxy-authorization",
    "x-api-key",
    "api-key",
    "x-goog-api-key",
    "cookie",
)
"""The headers that say who is asking."""


_text = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


@frozen
class KeyParts:
    """All that goes into a cache key; ``str`` shows it, ``digest`` is the key.

    Args:
        method: The HTTP method.
        url: The URL, without its userinfo and fragment.
        body: The `content_digest` of the body.
        vary: The chosen request headers, with their values.
        identity: Who is asking: a digest, or ``shared``.
        sample: Which of several samples of one prompt.
        content: What the key takes of the body, to be shown.
    """

    method: str
    url: str
    body: str
    vary: Mapping[str, str] = field(factory=dict)
    identity: str = "shared"
    sample: int = 0
    content: Any = None

    @property
    def digest(self) -> str:
        """SHA-256 over all parts, in hexadecimal."""
        vary = tuple(sorted(self.vary.items()))  # named in another order, they say the same
        begun = _begun(self.method, self.url, vary, self.identity, self.sample).copy()
        begun.update(self.body.encode())
        return str(begun.hexdigest())

    def __str__(self) -> str:
        rows = {
            "key": self.digest,
            "method": self.method,
            "url": self.url,
            "body": _text(self.content),
            "vary": _text(dict(self.vary)),
            "identity": self.identity,
            "sample": str(self.sample),
        }
        return "\n".join(f"{name:<9} {value}" for name, value in rows.items())


@lru_cache(maxsize=128)  # as a rule, only the body changes from call to call
def _begun(*parts: Any) -> Any:
    """A digest that all parts but the body have gone into; take a copy."""
    return hashlib.sha256(_text(parts).encode())


def canonical(body: bytes) -> Any:
    """A JSON body as Python has it, so that key order and white space no longer matter, but any value does.

    A body that is not JSON, or that a server might read differently than we do (a key given twice), counts
    byte by byte: then it is a digest of itself.
    """
    try:
        return parse(body)
    except (ValueError, RecursionError):
        return f"sha256:{hashlib.sha256(body).hexdigest()}"


def taken(content: Any, only: Collection[str] | None) -> Any:
    """What a key takes of a `canonical` body: these fields of an object, or all of it."""
    if only is None or not isinstance(content, dict):
        return content
    return {name: content[name] for name in only if name in content}


def content_digest(content: Any) -> str:
    """SHA-256 over what a key takes of a body, in hexadecimal."""
    return hashlib.sha256(_text(content).encode()).hexdigest()


NO_CONTENT = content_digest(canonical(b""))


def plain_headers(request: Request) -> dict[bytes, bytes]:
    """A request's headers by lower-case name, all in one pass: httpx searches the whole list for each."""
    plain: dict[bytes, bytes] = {}
    for raw_name, value in request.headers.raw:
        name = raw_name.lower()
        plain[name] = plain[name] + b", " + value if name in plain else value
    return plain


def credential_digest(
    secret: bytes, headers: Mapping[str, str], names: Iterable[str], userinfo: bytes
) -> str:
    """A keyed digest of the credentials of a request: it tells them apart, and tells nobody what they are.

    Args:
        secret: The key of the HMAC (SHA-256).
        headers: The request's headers, by lower-case name.
        names: Which of them are credentials.
        userinfo: What stands before the ``@`` in the URL.
    """
    shown = [(name, _telling(name, headers.get(name))) for name in names]
    message = _text([shown, userinfo.decode("latin-1")])
    return hmac.digest(secret, message.encode(), "sha256").hex()


# Set by load balancers and bot filters in front of providers, often anew with each answer: they name no one.
_NOISE = ("__cf_bm=", "_cfuvid=", "__cflb=", "AWSALB", "BIGipServer", "GCLB=")


def _telling(name: str, value: str | None) -> str | None:
    """The part of a credential header that says who is asking."""
    if name != "cookie" or value is None:
        return value
    cookies = [cookie.strip() for cookie in value.split(";")]
    return "; ".join(cookie for cookie in cookies if not cookie.startswith(_NOISE)) or None


def difference(one: KeyParts, other: KeyParts) -> list[str]:
    """Where two keys differ, part by part; within JSON, by the path of the value."""
    found: list[str] = []
    for name in ("method", "url", "content", "vary", "identity", "sample"):
        shown = "body" if name == "content" else name
        _compare(shown, getattr(one, name), getattr(other, name), found)
    return found


def _compare(path: str, one: Any, other: Any, found: list[str]) -> None:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in sorted({*one, *other}):
            _compare(f"{path}.{key}", one.get(key, ...), other.get(key, ...), found)
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            _compare(f"{path}[{index}]", a, b, found)
    elif one != other or type(one) is not type(other):
        found.append(f"{path}: {_shown(one)} / {_shown(other)}")


def _shown(value: Any) -> str:
    return "(absent)" if value is ... else _text(value)
