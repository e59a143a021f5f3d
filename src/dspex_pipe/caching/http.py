"""What a cache may do with GET and HEAD: the rules of RFC 9111, without I/O and without a clock.

Whether an entry is fresh we work out here, from the caller's ``now``; for all else hishel's state machine
decides, and what it does not know is told to it, in two ways. It is shown a *view* of each entry that is
plainly stale, so that its own clock plays no part. And before a response is kept its headers are cleaned, and
the time when it was made is noted in a header of ours, which is never served.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Set as AbstractSet
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import formatdate
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import SplitResult, urljoin, urlsplit, urlunsplit
from uuid import UUID

from attrs import field, frozen

if TYPE_CHECKING:
    import hishel

__all__ = ["CONDITIONS", "Fresh", "HttpRules", "Missing", "Pass", "Refresh", "Stale", "Store"]


@frozen
class Fresh:
    """Serve an entry's body, with these headers."""

    entry: hishel.Entry
    headers: hishel.Headers


@frozen
class Stale:
    """Send the request with these headers added, and `HttpRules.learn` from the answer.

    Attributes:
        request: The request as it was looked up.
        sent: Seconds since the epoch, when it was looked up.
        entry: The newest entry that the request selects.
        conditions: ``if-none-match`` and ``if-modified-since``, as far as the entry has validators.
        ids: All entries that the request selects, this one and older ones.
    """

    request: hishel.Request
    sent: float
    entry: hishel.Entry
    conditions: Mapping[str, str]
    ids: tuple[UUID, ...]
    state: hishel.NeedRevalidation = field(repr=False)


@frozen
class Missing:
    """Send the request as it is, and `HttpRules.learn` from the answer.

    Attributes:
        request: The request as it was looked up.
        sent: Seconds since the epoch, when it was looked up.
        reason: Why nothing can be served.
        bypass: Whatever the answer, it is not kept.
        only_if_cached: Send nothing: the caller wants a 504 instead (RFC 9111 §5.2.1.7).
        remove: Entries to remove.
    """

    request: hishel.Request
    sent: float
    reason: str
    bypass: bool = False
    only_if_cached: bool = False
    remove: tuple[UUID, ...] = ()


@frozen
class Store:
    """Keep this response, remove those entries, and serve the response as it came, with its own headers."""

    response: hishel.Response
    remove: tuple[UUID, ...] = ()


@frozen
class Refresh:
    """The entry is still valid: serve its body.

    Attributes:
        entry: What is served.
        headers: Its headers, as served.
        update: Its headers, as kept from now on; ``None`` when it is not kept any longer.
        remove: Entries to remove.
    """

    entry: hishel.Entry
    headers: hishel.Headers
    update: hishel.Headers | None
    remove: tuple[UUID, ...] = ()


@frozen
class Pass:
    """Serve the response, keep nothing of it, and remove those entries."""

    reason: str
    remove: tuple[UUID, ...] = ()


# Cache-Control, RFC 9111 §5.2: by name, with the argument as text, or None where there is none.
Directives: TypeAlias = Mapping[str, str | None]

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - RFC 9110 §5.6.2
_DIRECTIVE = re.compile(rf'[ \t]*(?:({_TOKEN})(?:=(?:({_TOKEN})|"((?:[^"\\]|\\.)*)"))?)?[ \t]*(?:,|\Z)')
_FORMS = {
    name: re.compile(form)
    for form, names in (
        ("", "no-store no-transform only-if-cached must-revalidate proxy-revalidate must-understand public"),
        ("", "immutable"),
        ("=[0-9]+", "max-age s-maxage min-fresh stale-while-revalidate stale-if-error"),
        ("(=[0-9]+)?", "max-stale"),
        (rf"(=[ \t]*{_TOKEN}([ \t]*,[ \t]*{_TOKEN})*[ \t]*)?", "no-cache private"),
    )
    for name in names.split()
}
_UNREADABLE: Directives = {"no-store": None}

_FOREVER = 2**31  # seconds; RFC 9111 §1.2.2: what is larger counts as this
_WEEK = 7 * 86400

_BORN = "x-dspex-born"
"""In what is kept: when the response was made, in whole seconds since the epoch; see `_born`."""

_UNKEPT = frozenset(
    {
        # RFC 9111 §3.1 and RFC 9110 §7.6.1; every Proxy-* as well
        *("connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"),
        # a cookie is for one caller, once; a cache that knows the age needs no Age
        *("set-cookie", "set-cookie2", "age"),
    }
)
# Kept whoever names them: without these we would serve more, to more, or for longer (RFC 9110 §7.6.1).
_VITAL = frozenset({"cache-control", "vary", "expires", "date", _BORN})
# What a 304 says of these is not about the body that we have (§3.2).
_ABOUT_BODY = frozenset({"content-encoding", "content-type", "content-range", "content-length"})
CONDITIONS = frozenset(
    {"range", "if-match", "if-none-match", "if-modified-since", "if-unmodified-since", "if-range"}
)
"""Headers of a request for a part, or for an answer only if something has changed (RFC 9110 §13, §14)."""
_VALIDATORS = ("etag", "last-modified")
_SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "QUERY"})  # RFC 9110 §9.2.1, RFC 10008 §2

# hishel counts the age from Date by a clock of its own. To that clock, this is always the future: age 0.
_FAR = datetime(9000, 1, 1, tzinfo=UTC).timestamp()


class HttpRules:
    """RFC 9111 for GET and HEAD, through hishel's public state machine, with its gaps mended around it.

    Only a 200 is ever kept, and only to requests for the whole resource. A Cache-Control that cannot be read
    counts as ``no-store``, in requests and in responses. Not used, though allowed: a GET's entry for HEAD
    (§4), freshening by HEAD (§4.3.5), and RFC 5861's stale answers.

    Requests and entries that differ in method or URL never match; entries of several variants (Vary) may be
    looked up together. No method raises, whatever the headers say.

    Args:
        shared: Answers may be served to others than who asked: heed ``private``, ``s-maxage``,
            ``proxy-revalidate`` and the rules for Authorization (§3.5).
    """

    def __init__(self, *, shared: bool = False) -> None:
        import hishel  # noqa: PLC0415 - takes its time, so only who uses these rules pays for it

        self._hishel = hishel
        self._shared = shared
        self._options = hishel.CacheOptions(shared=shared)

    def look_up(
        self, request: hishel.Request, entries: Iterable[hishel.Entry], now: float
    ) -> Fresh | Stale | Missing:
        """What to do with a request (§4).

        Args:
            request: The request.
            entries: What was kept under its key.
            now: Seconds since the epoch.
        """
        asked = _asked(request.headers)
        only_if_cached = "only-if-cached" in asked
        reason = _why_bypass(request, asked)
        if reason is not None:
            return Missing(request, now, reason, bypass=True, only_if_cached=only_if_cached)
        # §4.1. hishel would check a variant for others with the server, and forget it for a new answer.
        selected = [entry for entry in entries if _selects(request, entry)]
        selected.sort(key=lambda entry: _age(entry.response.headers, now), reverse=True)
        for entry in reversed(selected):  # §4: of several, the most recent
            if self._is_usable(entry.response.headers, asked, now):
                return Fresh(entry, self._served(entry.response.headers, now))
        views = [self._view(rank, entry) for rank, entry in enumerate(selected)]
        state = self._hishel.IdleClient(options=self._options).next(request, views)
        by_id = {entry.id: entry for entry in selected}
        if not isinstance(state, self._hishel.NeedRevalidation):
            return Missing(request, now, "no entry", only_if_cached=only_if_cached)
        if only_if_cached:
            return Missing(request, now, "the entry must be checked first", only_if_cached=True)
        ids = tuple(view.id for view in state.revalidating_entries)
        entry = by_id[ids[0]]
        conditions = {
            name: state.request.headers[name]
            for name in ("if-none-match", "if-modified-since")
            if name in state.request.headers
        }
        # The entry, not its view; and one, so that a 304 without a validator is about it (§4.3.4).
        state = replace(state, revalidating_entries=[entry])
        return Stale(request, now, entry, conditions, ids, state)

    def learn(
        self, pending: Stale | Missing, response: hishel.Response, now: float
    ) -> Store | Refresh | Pass | Missing:
        """What to do with the answer to a request (§3, §4.3.3).

        Args:
            pending: What `look_up` said.
            response: The answer; only its status and headers are looked at.
            now: Seconds since the epoch, when the headers arrived.

        Returns:
            `Missing` when a 304 speaks of a version that we do not have (§4.3.4): send the request again as
            it is. That happens once at most.
        """
        if isinstance(pending, Missing) and pending.bypass:
            return Pass(pending.reason)
        cleaned = replace(response, headers=self._cleaned(response.headers, pending.sent, now))
        if isinstance(pending, Stale) and response.status_code == 304:
            return self._refresh(pending, cleaned, response, now)
        # §4.3.3: a full answer means that what we have is not what there is; an error means nothing.
        is_full = 200 <= response.status_code < 300
        remove = pending.ids if isinstance(pending, Stale) and is_full else ()
        reason = self._why_not(pending.request, cleaned, now)
        return Store(cleaned, remove) if reason is None else Pass(reason, remove)

    def invalidated_by(
        self, method: str, url: str, status: int, headers: Mapping[str, str]
    ) -> tuple[str, ...]:
        """URLs whose entries must go after this exchange (§4.4); hishel knows the first of them only.

        Args:
            method: The method; one that is not known to be safe counts as unsafe.
            url: The URL, absolute.
            status: The status of the answer; an error changes nothing.
            headers: The headers of the answer.
        """
        if method in _SAFE or not 200 <= status < 400:
            return ()
        named = (_same_origin(url, headers.get(name)) for name in ("location", "content-location"))
        return tuple(dict.fromkeys((url, *(found for found in named if found is not None))))

    def _refresh(
        self, pending: Stale, cleaned: hishel.Response, response: hishel.Response, now: float
    ) -> Refresh | Missing:
        state = pending.state.next(cleaned)
        if not isinstance(state, self._hishel.NeedToBeUpdated):
            return Missing(pending.request, now, "a 304 for another version", remove=pending.ids)
        kept = pending.entry.response
        # §3.2, by hand: hishel leaves out what it takes for an argument of no-cache, be it our own header.
        # Cleaned again, because what the 304 says of fields holds for those that we have, too.
        merged = self._hishel.Headers({**_without(kept.headers), **_without(cleaned.headers, _ABOUT_BODY)})
        update = self._hishel.Headers(_without(merged, self._unkept(merged)))
        served = self._served(update, now, cookies=response.headers.get_list("set-cookie"))
        # §4.1: a new Vary is about fields of a request that we may not have noted when the entry was kept
        varies_anew = _vary(update) != _vary(kept.headers)
        if varies_anew or self._why_not(pending.request, replace(kept, headers=update), now) is not None:
            return Refresh(pending.entry, served, None, pending.ids)
        return Refresh(pending.entry, served, update, pending.ids[1:])

    def _view(self, rank: int, entry: hishel.Entry) -> hishel.Entry:
        """A stale entry as hishel sees it: what it needs to decide, none of it relative to its clock."""
        headers = {name: value for name in _VALIDATORS if (value := entry.response.headers.get(name))}
        headers["cache-control"] = "max-age=0"
        headers["date"] = formatdate(_FAR + rank, usegmt=True)  # the newest of several is taken (§4)
        return replace(entry, response=self._hishel.Response(200, self._hishel.Headers(headers)))

    def _is_usable(self, headers: hishel.Headers, asked: Directives, now: float) -> bool:
        """Whether an entry may be served without asking the server (§4.2, §5.2)."""
        said = _directives(headers)
        if "no-store" in said or ("no-cache" in said and said["no-cache"] is None) or "no-cache" in asked:
            return False
        age = _age(headers, now)
        if age > _seconds(asked.get("max-age")):
            return False
        left = self._lifetime(headers, said, now - age) - age
        if "min-fresh" in asked and left < _seconds(asked["min-fresh"]):
            return False
        if left > 0:
            return True
        strict = {"must-revalidate"} | ({"proxy-revalidate", "s-maxage"} if self._shared else set())
        return "max-stale" in asked and -left <= _seconds(asked["max-stale"]) and strict.isdisjoint(said)

    def _lifetime(self, headers: hishel.Headers, said: Directives, born: float) -> float:
        """Seconds for which a response is fresh, from when it was made (§4.2.1)."""
        if self._shared and "s-maxage" in said:
            return _seconds(said["s-maxage"])
        if "max-age" in said:
            return _seconds(said["max-age"])
        date = _date(headers.get("date"), born)
        if "expires" in headers:
            # §5.3: what is not a date is a time in the past. hishel takes more for a date than RFC 9110 does.
            expires = _date(headers["expires"], born)
            return 0 if expires is None or date is None else expires - date
        modified = _date(headers.get("last-modified"), born)
        # §4.2.2, by hishel's rule; but from Date, so that a response gets no fresher by being kept.
        return 0 if modified is None or date is None else min(_WEEK, (date - modified) / 10)

    def _why_not(self, request: hishel.Request, response: hishel.Response, now: float) -> str | None:
        """Why a response, cleaned already, must not be kept (§3); ``None`` when it may."""
        headers = response.headers
        if response.status_code != 200:
            return f"status {response.status_code}"
        said = _directives(headers)
        if "no-store" in said:
            return "it says no-store, or its Cache-Control cannot be read"
        if "*" in _vary(headers):
            return "it varies with anything (Vary: *)"
        # hishel reads ``no-cache=a,private`` as one directive; in quotes it cannot.
        plain = ", ".join(name if value is None else f'{name}="{value}"' for name, value in said.items())
        view = self._hishel.Response(200, self._hishel.Headers({"cache-control": plain}))
        state = self._hishel.CacheMiss(request=request, options=self._options).next(view)
        if not isinstance(state, self._hishel.StoreAndUse):
            return "a shared cache must not keep it"
        if not self._is_usable(headers, {}, now) and not any(headers.get(name) for name in _VALIDATORS):
            return "it is stale from the start, and could not be checked"
        return None

    def _cleaned(self, headers: hishel.Headers, sent: float, now: float) -> hishel.Headers:
        """The headers to keep of a response that has just arrived."""
        kept = _without(headers, self._unkept(headers))
        date = _date(headers.get("date"), now)
        if date is None:
            # RFC 9110 §6.6.1; without one, hishel thinks it new for ever
            kept["date"] = [formatdate(now, usegmt=True)]
        kept[_BORN] = [str(_born(date, headers.get("age"), sent, now))]
        return self._hishel.Headers(kept)

    def _unkept(self, headers: hishel.Headers) -> set[str]:
        """Names of the fields that must not be kept (§3.1)."""
        said = _directives(headers)
        # §5.2.2.4 and §5.2.2.7: with an argument, these two are about the named fields only
        names = _names(said.get("no-cache")) | (_names(said.get("private")) if self._shared else set())
        names |= _names(headers.get("connection"))
        return (names - _VITAL) | _UNKEPT | {name for name in headers if name.startswith("proxy-")}

    def _served(
        self, headers: hishel.Headers, now: float, cookies: list[str] | None = None
    ) -> hishel.Headers:
        """The headers to serve: Age (§5.1) instead of our own; cookies of a 304 reach who asked."""
        served = _without(headers, {_BORN})
        served["age"] = [str(int(_age(headers, now)))]
        if cookies:
            served["set-cookie"] = cookies
        return self._hishel.Headers(served)


def _why_bypass(request: hishel.Request, asked: Directives) -> str | None:
    if request.method not in {"GET", "HEAD"}:
        return f"{request.method} is not cached"
    if "no-store" in asked:
        return "the request says no-store, or its Cache-Control cannot be read"
    if not CONDITIONS.isdisjoint(request.headers):
        return "the request is for a part, or has conditions of its own"
    return None


def _asked(headers: hishel.Headers) -> Directives:
    """What a request asks of caches (§5.2.1, §5.4)."""
    if "cache-control" not in headers and "no-cache" in _names(headers.get("pragma")):
        return {"no-cache": None}
    return _directives(headers)


def _directives(headers: hishel.Headers) -> Directives:
    """The directives of Cache-Control; what is not well-formed, or contradicts itself, is ``no-store``.

    Line by line: joined, a quote left open in one line could hide the next.
    """
    found: dict[str, str | None] = {}
    for line in headers.get_list("cache-control") or ():
        position = 0
        while position < len(line):
            match = _DIRECTIVE.match(line, position)
            if match is None:
                return _UNREADABLE
            position = match.end()
            name, token, quoted = match.groups()
            if name is None:  # an empty element of the list, RFC 9110 §5.6.1
                continue
            name, argument = name.lower(), token if quoted is None else quoted
            form = _FORMS.get(name)
            if form is not None and not form.fullmatch("" if argument is None else f"={argument}"):
                return _UNREADABLE
            if found.setdefault(name, argument) != argument:
                return _UNREADABLE
    return found


def _seconds(text: str | None) -> int:
    """Seconds of a directive that was found well-formed; without an argument, any number will do."""
    digits = "" if text is None else text.lstrip("0")
    # int() refuses thousands of digits
    return _FOREVER if text is None or len(digits) > 10 else min(int(digits or "0"), _FOREVER)


def _names(text: str | None) -> set[str]:
    """The members of a list of names, in lower case."""
    return {name.strip().lower() for name in (text or "").split(",")} - {""}


def _vary(headers: hishel.Headers) -> set[str]:
    return _names(headers.get("vary"))


def _selects(request: hishel.Request, entry: hishel.Entry) -> bool:
    """Whether an entry answers this request: the same method and URL, and what its Vary names (§4, §4.1)."""
    asked = entry.request
    return (asked.method, asked.url) == (request.method, request.url) and all(
        name != "*" and request.headers.get(name) == entry.request.headers.get(name)
        for name in _vary(entry.response.headers)
    )


def _born(date: float | None, age: str | None, sent: float, now: float) -> int:
    """When a response was made, in seconds since the epoch (§4.2.3).

    The RFC's initial age is the larger of what Date and what Age tell, where Age counts from when the request
    was sent; hishel knows Date alone. Kept as a time, not an age, so that nothing else need be remembered.
    """
    told = (age or "").partition(",")[0].strip()  # §5.1: of several, the first; what is no number, none
    value = _seconds(told) if re.fullmatch("[0-9]+", told) else 0
    return math.floor(min(now if date is None else date, now - value - max(0.0, now - sent)))


def _age(headers: hishel.Headers, now: float) -> float:
    """Seconds since the response was made; infinite where that was not noted, as in a store not of ours."""
    born = headers.get(_BORN, "")
    return max(0.0, now - int(born)) if re.fullmatch("-?[0-9]{1,12}", born) else math.inf


def _without(headers: hishel.Headers, names: AbstractSet[str] = frozenset()) -> dict[str, list[str]]:
    return {name: headers.get_list(name) or [] for name in headers if name not in names}


# Dates, RFC 9110 §5.6.7: IMF-fixdate, and two that are obsolete but must be understood.

_MONTHS: tuple[str, ...] = (  # not the locale's
    *("Jan", "Feb", "Mar", "Apr", "May", "Jun"),
    *("Jul", "Aug", "Sep", "Oct", "Nov", "Dec"),
)
_MONTH = rf"(?P<month>{'|'.join(_MONTHS)})"
_TIME = r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_DATES = tuple(
    re.compile(form)
    for form in (
        rf"[A-Z][a-z]{{2}}, (?P<day>[0-9]{{2}}) {_MONTH} (?P<year>[0-9]{{4}}) {_TIME} GMT",
        rf"[A-Z][a-z]{{5,8}}, (?P<day>[0-9]{{2}})-{_MONTH}-(?P<year>[0-9]{{2}}) {_TIME} GMT",
        rf"[A-Z][a-z]{{2}} {_MONTH} (?P<day>[ 0-9][0-9]) {_TIME} (?P<year>[0-9]{{4}})",
    )
)


def _date(text: str | None, near: float) -> float | None:
    """Seconds since the epoch, or ``None`` when that is no date of HTTP's.

    A year of two digits is of the century of ``near``, unless that were more than 50 years after it.
    """
    match = next(filter(None, (form.fullmatch(text or "") for form in _DATES)), None)
    if match is None:
        return None
    year, day, hour, minute, second = (
        int(match[part]) for part in ("year", "day", "hour", "minute", "second")
    )
    if len(match["year"]) == 2:
        this_year = datetime.fromtimestamp(near, UTC).year
        year += this_year // 100 * 100
        year -= 100 if year > this_year + 50 else 0
    try:
        leap = second == 60
        moment = datetime(
            year, 1 + _MONTHS.index(match["month"]), day, hour, minute, 59 if leap else second, tzinfo=UTC
        )
    except ValueError:
        return None
    return moment.timestamp() + leap


def _same_origin(url: str, reference: str | None) -> str | None:
    """A URL reference resolved, in the spelling of the URL that it came with; ``None`` for another origin."""
    if reference is None:
        return None
    try:
        base, other = urlsplit(url), urlsplit(urljoin(url, reference))
        if _origin(base) != _origin(other):
            return None
    except ValueError:  # not a URL
        return None
    return urlunsplit((base.scheme, base.netloc, other.path or "/", other.query, ""))


def _origin(url: SplitResult) -> tuple[str, str | None, int | None]:
    return url.scheme, url.hostname, url.port or {"http": 80, "https": 443}.get(url.scheme)
