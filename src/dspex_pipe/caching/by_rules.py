"""Caching by HTTP's own rules: RFC 9111, through `HttpRules`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..body import copy_request
from ..stores.memory import by_name, pairs_of
from .exchange import Exchange, Failed, fresh, is_callers_own
from .flight import Flight, Flights, Landed
from .http import Fresh, HttpRules, Missing, Pass, Refresh, Stale, Store
from .storage import Kept, Saved, Storage, header_pairs, shown

if TYPE_CHECKING:
    from ..family import Request, Response

__all__ = ["ByRules"]

# How many variants of one page are kept (Vary); each look-up reads them all.
_VARIANTS = 16

# What a leader shares: its error, or that whoever waits should look again, and ask if that finds nothing.
Shared = Failed | None


class ByRules:
    """Answers GET and HEAD as their headers allow.

    Args:
        storage: Where answers are kept.
        shared: Whether this is a shared cache.
        key: Gives the key of a method and URL for whoever sends a request.
        disguise: Gives the headers of a request, each credential as a digest: those that an answer varies
            with are kept with it.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        shared: bool,
        key: Callable[[Request, str, str], str],
        disguise: Callable[[Request], Mapping[str, str]],
    ) -> None:
        import hishel  # noqa: PLC0415 - takes its time, so only a pipeline that caches pays for it

        self._hishel = hishel
        self._storage = storage
        self._rules = HttpRules(shared=shared)
        self._key = key
        self._disguise = disguise
        self.flights: Flights[Shared] = Flights()

    async def answer(self, call: Exchange) -> Response:
        """Answer a call from what is kept, or ask, once for all who ask the same meanwhile."""
        headers = self._hishel.Headers(dict(self._disguise(call.request)))
        asked = self._hishel.Request(call.request.method, call.key, headers)
        found, kept = await self._look_up(call, asked)
        if isinstance(found, Fresh):
            return self._hit(call, found, kept, "hit")
        if call.mode == "only_if_cached" or (isinstance(found, Missing) and found.only_if_cached):
            return call.refuse()
        if isinstance(found, Missing) and found.bypass:
            call.emit("passes by", found.reason)
            return await call.call_next(call.request)
        return await (self._ask_once(call, asked) if call.reads else self._ask(call, found, kept))

    async def _ask_once(self, call: Exchange, asked: Any) -> Response:
        lead = await self.flights.join(call.key, call.io, call.max_wait, call.record.deadline)
        if isinstance(lead, Landed) and isinstance(lead.result, Failed):
            call.emit("shared", f"the error of the call under way, {type(lead.result.error).__name__}")
            raise fresh(lead.result.error)
        if not isinstance(lead, Flight):
            return await self._look_again(call, asked, "shared")
        try:
            response = await self._look_again(call, asked, "hit")
            lead.land(None)
        except Exception as exc:
            if not is_callers_own(exc, call.request):
                lead.land(Failed(exc))
            raise
        finally:
            lead.leave()
        return response

    async def _look_again(self, call: Exchange, asked: Any, how: str) -> Response:
        """Whoever led before us may have kept what we look for; otherwise ask."""
        found, kept = await self._look_up(call, asked)
        if isinstance(found, Fresh):
            return self._hit(call, found, kept, how)
        return await self._ask(call, found, kept)

    async def forget(self, call: Exchange, response: Response) -> None:
        """Remove what an unsafe request has made untrue (§4.4)."""
        request = call.request
        urls = self._rules.invalidated_by(
            request.method,
            str(request.url.copy_with(userinfo=b"", fragment=None)),
            response.status_code,
            response.headers,
        )
        for url in urls:
            for method in ("GET", "HEAD"):
                kept = await self._storage.load(self._key(request, method, url), call.io)
                await self._storage.remove(kept, call.io)

    async def _look_up(self, call: Exchange, asked: Any) -> tuple[Fresh | Stale | Missing, list[Kept]]:
        kept = await self._storage.load(call.key, call.io) if call.reads else []
        return self._rules.look_up(asked, [one.entry for one in kept], call.io.wall()), kept

    def _hit(self, call: Exchange, found: Fresh | Refresh, kept: list[Kept], how: str) -> Response:
        saved = _of(kept, found.entry.id).saved
        return call.answer(saved.with_headers(shown(pairs_of(found.headers))), how)

    async def _ask(self, call: Exchange, found: Stale | Missing, kept: list[Kept]) -> Response:
        """Ask the server, with the conditions of what is kept, and learn from its answer."""
        request = call.request
        if isinstance(found, Stale):
            request = copy_request(request)
            # as they came: an ETag may hold any byte above 127
            request.headers.update({n.encode(): v.encode("latin-1") for n, v in found.conditions.items()})
        response = await call.call_next(request)
        answer = self._hishel.Response(
            response.status_code, self._hishel.Headers(by_name(header_pairs(response)))
        )
        learned = self._rules.learn(found, answer, call.io.wall())
        gone = [_of(kept, id_) for id_ in learned.remove]
        if call.writes and not isinstance(learned, Store):
            await self._storage.remove(gone, call.io)
        if isinstance(learned, Missing):  # a 304 about something that we do not have
            await call.io.close(response)
            return await self._ask(call, learned, kept)
        if isinstance(learned, Refresh):
            await call.io.close(response)
            if call.writes and learned.update is not None:
                await self._storage.refresh(_of(kept, learned.entry.id), learned.update, call.io)
            return self._hit(call, learned, kept, "revalidated")
        kept_now = False
        if isinstance(learned, Pass):
            call.emit("passes by", learned.reason)
        elif call.writes:
            # a call that did not look replaces all there is; and variants must not grow without end
            oldest = sorted(kept, key=lambda one: one.saved.stored_at)[: -(_VARIANTS - 1)]
            old = [*gone, *(one for one in oldest if one not in gone)] if call.reads else None
            kept_now = await self._keep(call, found, learned, response, old)
        self.flights.learn(call.key, shareable=kept_now)
        return call.missed(response)

    async def _keep(
        self,
        call: Exchange,
        found: Stale | Missing,
        learned: Store,
        response: Response,
        old: list[Kept] | None,
    ) -> bool:
        """Keep an answer in the place of old ones; if its length is unknown, when it has been read.

        Returns:
            Whether it is kept already.
        """
        headers = learned.response.headers
        varies = [name.strip().lower() for name in headers.get("vary", "").split(",")]
        chosen = {name: value for name, value in found.request.headers.items() if name in varies}
        asked = self._hishel.Request(found.request.method, found.request.url, self._hishel.Headers(chosen))

        async def commit(body: bytes) -> None:
            length = response.headers.get("content-length")
            if length is not None and length != str(len(body)) and call.request.method != "HEAD":
                return
            saved = Saved.of(response, (body,), call.io.wall()).with_headers(pairs_of(headers))
            if await self._storage.save(call.key, saved, call.io, asked=asked, ttl=None, old=old):
                call.emit("keeps")

        body = await call.whole(response)
        if body is None:
            call.record_body(response, commit)
        else:
            await commit(body)
        return body is not None


def _of(kept: list[Kept], id_: Any) -> Kept:
    return next(one for one in kept if one.entry.id == id_)
