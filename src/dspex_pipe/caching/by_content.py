"""Caching by content: one key, one answer, fresh for a fixed time or for ever."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..body import decoded, put_stream
from ..wire import is_event_stream, reader_for
from .content import is_worth_keeping
from .exchange import KEEP_BOUND, Exchange, Failed, fresh, is_callers_own
from .flight import Flight, Flights, Landed
from .recording import EventRecording
from .storage import Saved, Storage

if TYPE_CHECKING:
    from ..family import Response

__all__ = ["ByContent"]

# Bytes of a body at most, decompressed, that are looked at before it is kept.
_INFLATED = 64 << 20

# None: the answer cannot be shared, and whoever waits must ask for one
Shared = Saved | Failed | None


class ByContent:
    """Answers questions whose key says all.

    Args:
        storage: Where answers are kept.
        ttl: Seconds that an answer is fresh; ``None`` for ever.
    """

    def __init__(self, storage: Storage, ttl: float | None) -> None:
        self._storage = storage
        self._ttl = ttl
        self.flights: Flights[Shared] = Flights()

    async def answer(self, call: Exchange) -> Response:
        """Answer a call from what is kept, or ask, once for all who ask the same meanwhile."""
        if not call.reads:
            return await self._ask(call, None)
        if (saved := await self._fresh(call)) is not None:
            return call.answer(saved, "hit")
        return call.refuse() if call.mode == "only_if_cached" else await self._ask_once(call)

    async def _ask_once(self, call: Exchange) -> Response:
        lead = await self.flights.join(call.key, call.io, call.max_wait, call.record.deadline)
        if lead is None:
            return await self._ask(call, None)
        if isinstance(lead, Landed):
            return await self._share(call, lead.result)
        try:
            # between our miss and our lead, another's call may have come to its end
            if (saved := await self._fresh(call)) is not None:
                lead.land(saved)
                return call.answer(saved, "hit")
            return await self._ask(call, lead)
        finally:
            if not lead.rides_on:
                lead.leave()

    async def _fresh(self, call: Exchange) -> Saved | None:
        for saved in await self._storage.find(call.key, call.io):
            if self._ttl is None or 0 <= call.io.wall() - saved.stored_at < self._ttl:
                return saved
        return None

    async def _share(self, call: Exchange, result: Shared) -> Response:
        if isinstance(result, Failed):
            call.emit("shared", f"the error of the call under way, {type(result.error).__name__}")
            raise fresh(result.error)
        return await self._ask(call, None) if result is None else call.answer(result, "shared")

    async def _ask(self, call: Exchange, lead: Flight[Shared] | None) -> Response:
        """Ask the server, keep what is worth keeping, and share it with those who wait."""
        try:
            response = await call.call_next(call.request)
            body = await call.whole(response)
        except Exception as exc:
            if lead is not None and not is_callers_own(exc, call.request):
                lead.land(Failed(exc))
            raise
        if call.format is not None and response.status_code == 200 and is_event_stream(response.headers):
            self._record_events(call, response, lead)
            return call.missed(response)
        shared: Shared = None
        if body is not None:
            shared = Saved.of(response, (body,), call.io.wall())
            await self._keep(call, response, shared)
        elif call.writes and not is_event_stream(response.headers):

            async def commit(late: bytes) -> None:
                await self._keep(call, response, Saved.of(response, (late,), call.io.wall()))

            call.record_body(response, commit)
        self.flights.learn(call.key, shareable=shared is not None)
        if lead is not None:
            lead.land(shared)
        return call.missed(response)

    def _record_events(self, call: Exchange, response: Response, lead: Flight[Shared] | None) -> None:
        """Let the reader of a stream have it at once; those who wait get it when it is whole."""

        async def commit(pieces: tuple[bytes, ...]) -> None:
            saved = Saved.of(response, pieces, call.io.wall())
            try:
                if call.writes and await self._storage.save(
                    call.key, saved, call.io, asked=None, ttl=self._ttl, old=None
                ):
                    call.emit("keeps")
            finally:  # cancelled while it was being stored, it is whole all the same
                if lead is not None:
                    lead.land(saved)

        if lead is not None:
            lead.rides_on = True
        put_stream(
            response,
            EventRecording(
                response.stream,
                reader_for(call.format, response.headers),
                commit,
                abandon=_nothing if lead is None else lead.leave,
                dropped=_nothing if lead is None else lead.drop,
                plain=response.headers.get("content-encoding", "identity") == "identity",
                limit=KEEP_BOUND,
            ),
        )

    async def _keep(self, call: Exchange, response: Response, saved: Saved) -> None:
        """Keep an answer, if it is a complete 200 that carries one."""
        length = response.headers.get("content-length")
        if (
            call.writes
            and saved.status == 200
            and (length is None or length == str(len(saved.body)))
            and is_worth_keeping(decoded(response, saved.body, _INFLATED), completion=call.is_completion)
            and await self._storage.save(call.key, saved, call.io, asked=None, ttl=self._ttl, old=None)
        ):
            call.emit("keeps")


def _nothing() -> None:
    """Nobody waits."""
