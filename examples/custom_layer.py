"""A layer of one's own: hold back the calls of a noisy tenant, and test that without waiting.

Run it; it prints what the virtual clock says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from attrs import field, frozen

from dspex_pipe import IO, Handler, Pipeline, Request, Response, Retry, explain, record_of
from dspex_pipe.testing import Script, VirtualIO, check_layer


@frozen(kw_only=True)
class Pace:
    """At most one call of each tenant in ``seconds``; the others wait for their turn."""

    options: ClassVar[Mapping[str, type]] = {"tenant": str}

    seconds: float = field(default=1.0)

    def build(self) -> Pacing:
        """The running layer."""
        return Pacing(self.seconds)


class Pacing:
    """The running layer: when each tenant's next turn is."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.turns: dict[str, float] = {}

    async def __call__(self, request: Request, call_next: Handler, io: IO) -> Response:
        record = record_of(request)
        tenant = record.options.get("tenant", "nobody")
        turn = max(io.now(), self.turns.get(tenant, 0.0))
        self.turns[tenant] = turn + self.seconds
        wait = turn - io.now()
        if wait > 0:
            record.emit("Pace", "waits", f"for {tenant}'s turn", wait)
            await io.sleep(wait)
        return await call_next(request)


def main() -> None:
    check_layer(Pace())

    io = VirtualIO()
    pipeline = Pipeline([Pace(seconds=10), Retry()])
    client = pipeline.client(transport=Script(200, forever=True), io=io)
    for tenant in ("noisy", "noisy", "quiet", "noisy"):
        response = client.get("http://upstream.test/", headers={"x-dspex-tenant": tenant})
        print(f"{tenant}: answered at {io.now():.0f} s")
        print(f"    {explain(response)}".replace("\n", "\n    "))


if __name__ == "__main__":
    main()
