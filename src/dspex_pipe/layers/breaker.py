"""Stop calling a server that fails, and try it again carefully.

The circuit breaker of M. Nygard's "Release It!", with three things that others leave out: a probe holds a
*lease*, so one that hangs or is cancelled frees its place and closes nothing; results carry an *epoch*, so
what was admitted before the circuit changed decides nothing after; and a call counts when its *body* has
ended, not when its headers came: only a probe has proved enough when the first content is there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from enum import Enum
from threading import Lock
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from ..body import Ending, tap
from ..config import brief, check, fraction, optional, seconds, whole
from ..counts import Counts
from ..due import due_of
from ..errors import BreakerOpen, Refused
from ..events import record_of
from ..keys import server_key
from ..outcome import Answer, Verdict, read_answer, read_codes, verdict
from ..peek import Beginning, peek
from ..table import Table
from ..wire import Kind, StreamReader, is_event_stream, reader_for

if TYPE_CHECKING:
    from ..chain import Handler
    from ..family import Request, Response
    from ..io import IO

__all__ = ["Breaker"]

Classify = Callable[["Response | BaseException", "Request"], Verdict | None]

# Failures in a row count however long apart: with time-outs of 10 minutes each, five of them take an hour.
_IDLE = 86_400.0

_callable = check("a function", callable)


@frozen(kw_only=True, repr=False)
class Breaker:
    """Refuse calls to a server that keeps failing, with `BreakerOpen`, until it has had time to recover.

    Failures are connect, read and write errors, timeouts (those of a `Timeout` further out, too), bodies that
    break off, statuses from 500 on, and error events in an LLM's stream that mean the same. Throttling (429),
    a spent quota, a cancellation, a refusal, and a reader who leaves a body before its end say nothing; all
    else is success, a 404 too. The circuit opens on many failures in a short time, or on several in a row
    however long apart. After ``open_for`` seconds it lets a probe through, whose first content closes it, and
    whose failure opens it for twice as long.

    Args:
        failures: Failures within the window that open the circuit, if they are also …
        ratio: … at least this share of the calls in it, 0 to 1.
        window: Seconds.
        consecutive: Failures in a row that open it, too, however long apart; ``None`` for never.
        open_for: Seconds until the first probe.
        open_max: Seconds that this grows to at most, doubling with each probe that fails.
        jitter: The share, 0 to 1, by which these times vary either way, lest all clients probe together.
        probes: Calls let through at a time while probing, and successes needed to close.
        lease: Seconds after which a probe that has not ended no longer keeps others out.
        key: Gives each request the name of its circuit; by default its origin and, for LLM calls, the model.
        classify: Judges an outcome (a response or an exception, and its request) before the rule above;
            ``None`` leaves it to the rule.
        max_keys: Circuits kept at most; open ones are never dropped.
        peek: Seconds that an LLM's stream is held back at most, while it has neither content nor an error, so
            that the latter counts at once; ``None`` does not look. In blocking mode the time is looked
            at between its pieces.
    """

    failures: int = field(default=5, validator=whole(1))
    ratio: float = field(default=0.5, validator=fraction())
    window: float = field(default=10.0, validator=seconds())
    consecutive: int | None = field(default=5, validator=optional(whole(1)))
    open_for: float = field(default=5.0, validator=seconds())
    open_max: float = field(default=60.0, validator=seconds())
    jitter: float = field(default=0.2, validator=fraction())
    probes: int = field(default=1, validator=whole(1))
    lease: float = field(default=60.0, validator=seconds())
    key: Callable[[Request], str] | None = field(default=None, validator=optional(_callable))
    classify: Classify | None = field(default=None, validator=optional(_callable))
    max_keys: int = field(default=1024, validator=whole(1))
    peek: float | None = field(default=2.0, validator=optional(seconds()))

    __repr__ = brief

    @classmethod
    def fuse(cls) -> Breaker:
        """The rule of Erlang's fuse: the fifth answer that is not a 200 within 10 s opens the circuit."""
        return cls(ratio=0.0, consecutive=None, classify=_not_200)

    def build(self) -> Breaking:
        """The running layer, with all circuits closed."""
        return Breaking(self)


def _not_200(outcome: Response | BaseException, request: Request) -> Verdict | None:
    if isinstance(outcome, BaseException):
        return None
    return None if outcome.status_code == 200 else Verdict.FAILURE


# The pure core: one circuit.


class State(Enum):
    """What a circuit does with calls."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"
    ISOLATED = "isolated"
    """Refused by hand, until it is reset."""
    DISABLED = "disabled"
    """Let through by hand, whatever happens, until it is reset."""


class Ticket:
    """The right to make one call, within one epoch."""

    __slots__ = ("epoch", "probe", "proved")

    def __init__(self, epoch: int, *, probe: bool) -> None:
        self.epoch = epoch
        self.probe = probe
        self.proved = False


@frozen
class Shut:
    """No right to make a call."""

    retry_after: float | None


_SUCCESSES, _FAILURES = range(2)


class Circuit:
    """One circuit; it takes no lock: its owner holds one.

    ``admit`` a call, ``prove`` a probe if you like, then ``settle`` the ticket, once, or never. The epoch
    counts changes of state.
    """

    __slots__ = (
        "_counts",
        "_in_a_row",
        "_policy",
        "_probes",
        "_proofs",
        "_proved",
        "epoch",
        "last_failure",
        "state",
        "trips",
        "until",
    )

    def __init__(self, policy: Breaker) -> None:
        self._policy = policy
        self._counts = Counts(2, policy.window)
        self._in_a_row = 0
        self._probes: dict[Ticket, float] = {}  # when the lease of each ends
        self._proved: list[Ticket] = []
        self._proofs = 0
        self.state = State.CLOSED
        self.epoch = 0
        self.trips = 0
        self.until = 0.0
        self.last_failure = ""

    @property
    def probing(self) -> int:
        """How many probes are under way."""
        return len(self._probes)

    def admit(self, now: float) -> Ticket | Shut:
        """Let a call through, or not."""
        if self.state is State.CLOSED:
            return Ticket(self.epoch, probe=False)
        if self.state is State.OPEN and now >= self.until:
            self.change(State.HALF_OPEN)
        if self.state is State.OPEN:
            return Shut(self.until - now)
        if self.state is State.ISOLATED:
            return Shut(None)
        ticket = Ticket(self.epoch, probe=self.state is State.HALF_OPEN)
        if ticket.probe:
            self._probes = {probe: end for probe, end in self._probes.items() if end > now}
            if len(self._probes) >= self._policy.probes:
                return Shut(min(self._policy.open_for, min(self._probes.values()) - now))
            self._probes[ticket] = now + self._policy.lease
        return ticket

    def settle(self, ticket: Ticket, verdict: Verdict, why: str, now: float, random: float) -> None:
        """Take the outcome of an admitted call into account.

        Args:
            ticket: What `admit` gave.
            verdict: The outcome.
            why: What failed, to be told later.
            now: Seconds.
            random: A number in [0, 1), for jitter.
        """
        if ticket.epoch != self.epoch or (ticket.proved and verdict is Verdict.SUCCESS):
            return
        if ticket.probe and self._probes.pop(ticket, None) is None:
            return  # its lease was over, and another has taken its place
        if verdict is Verdict.NEUTRAL or self.state not in (State.CLOSED, State.HALF_OPEN):
            return
        if verdict is Verdict.FAILURE:
            self.last_failure = why
            self._in_a_row += 1
            self._counts.add(_FAILURES, now)
            if self.state is State.HALF_OPEN or self._must_open(now):
                self._open(now, random)
            return
        self._in_a_row = 0
        self._counts.add(_SUCCESSES, now)
        if self.state is State.HALF_OPEN:
            self._proofs += 1
            if self._proofs >= self._policy.probes:
                self.trips = 0
                self.change(State.CLOSED)

    def prove(self, ticket: Ticket, now: float) -> None:
        """Take what a probe has brought so far for its success.

        Its ticket is good for the rest of the call, which can only fail from here on.
        """
        if ticket in self._probes:
            proved = [*self._proved, ticket]
            self.settle(ticket, Verdict.SUCCESS, "", now, 0.0)
            ticket.probe, ticket.proved = False, True
            for each in proved:  # the circuit may be closed now
                each.epoch = self.epoch
            self._proved = proved if self.state is State.HALF_OPEN else []

    def change(self, state: State) -> None:
        """Begin a new epoch in this state, with nothing counted."""
        self.state = state
        self.epoch += 1
        self._counts.clear()
        self._in_a_row = self._proofs = 0
        self._probes, self._proved = {}, []

    def _must_open(self, now: float) -> bool:
        policy = self._policy
        if policy.consecutive is not None and self._in_a_row >= policy.consecutive:
            return True
        successes, failures = self._counts.totals(now)
        return failures >= policy.failures and failures >= policy.ratio * (failures + successes)

    def _open(self, now: float, random: float) -> None:
        policy = self._policy
        # 2.0 ** 1024 overflows; by then any open_max is long reached
        length = min(policy.open_max, policy.open_for * 2.0 ** min(self.trips, 64))
        self.until = now + length * (1 + policy.jitter * (2 * random - 1))
        self.trips += 1
        self.change(State.OPEN)


class Breaking:
    """The running layer: the circuits, by key."""

    def __init__(self, policy: Breaker) -> None:
        self.policy = policy
        self._key = policy.key or server_key
        self._lock = Lock()
        self._circuits: Table[Circuit] = Table(
            lambda: Circuit(policy),
            armed=lambda circuit, _: circuit.state is not State.CLOSED,
            limit=policy.max_keys,
            idle=_IDLE,
        )
        # Bodies that were dropped: told by a finaliser, which may run inside our own lock.
        self._dropped: deque[tuple[Circuit, Ticket]] = deque()

    async def __call__(self, request: Request, call_next: Handler, io: IO) -> Response:
        key, record = self._key(request), record_of(request)
        with self._lock:
            self._settle_dropped()
            now = io.now()
            circuit = self._circuits.get(key, now)
            before = circuit.state
            admitted = circuit.admit(now)
            after, last_failure = circuit.state, circuit.last_failure
        if after is not before:
            record.emit("Breaker", "half-opens", key)
        if isinstance(admitted, Shut):
            raise BreakerOpen(
                f"the circuit of {key} is {after.value}",
                layer="Breaker",
                retry_after=admitted.retry_after,
                key=key,
                last_failure=last_failure,
            )
        call = _Call(self, key, circuit, admitted, request, io)
        beginning: Beginning | None = None
        try:
            response = await call_next(request)
            if self.policy.peek is not None:
                beginning = await peek(response, request, io, self.policy.peek)
            answer = read_answer(response, record)
            verdict = self._judge(response, answer, request)
        except BaseException as exc:
            call.settle(self._judge_error(exc, request), type(exc).__name__)
            raise
        if answer.in_stream:
            call.settle(verdict, answer.code or answer.meaning.value)
        elif verdict is Verdict.FAILURE:
            call.settle(verdict, f"status {response.status_code}")
        else:
            call.watch(response, verdict)
            if beginning is not None and beginning.content:
                call.prove()
        return response

    def _judge(self, response: Response, answer: Answer, request: Request) -> Verdict:
        judged = None if self.policy.classify is None else self.policy.classify(response, request)
        return answer.verdict if judged is None else judged

    def _judge_error(self, exc: BaseException, request: Request) -> Verdict:
        # what was refused below us, or cancelled by the caller, says nothing that anyone could judge
        silent = not isinstance(exc, Exception) or isinstance(exc, Refused)
        try:
            judged = None if self.policy.classify is None or silent else self.policy.classify(exc, request)
        except Exception:  # noqa: BLE001 - classify fails on what it raised itself; the first error is raised
            judged = Verdict.NEUTRAL
        return verdict(exc, request) if judged is None else judged

    def settle(self, call: _Call, verdict: Verdict, why: str) -> None:
        """Tell a circuit how a call ended."""
        circuit, now, random = call.circuit, call.io.now(), call.io.random()
        with self._lock:
            before = circuit.state
            circuit.settle(call.ticket, verdict, why, now, random)
            after, wait = circuit.state, circuit.until - now
        self._tell(call, before, after, why, wait)

    def prove(self, call: _Call) -> None:
        """Tell a circuit that a probe has brought something."""
        circuit, now = call.circuit, call.io.now()
        with self._lock:
            before = circuit.state
            circuit.prove(call.ticket, now)
            after = circuit.state
        self._tell(call, before, after)

    def _tell(self, call: _Call, before: State, after: State, why: str = "", wait: float = 0.0) -> None:
        """Tell of a change, outside the lock: whoever hears it may ask us."""
        if after is State.OPEN is not before:
            record_of(call.request).emit("Breaker", "opens", f"{call.key}: {why}", wait)
        elif after is not before:
            record_of(call.request).emit("Breaker", "closes", call.key)

    def drop(self, circuit: Circuit, ticket: Ticket) -> None:
        """Take a ticket back later, when the lock is free; safe in a finaliser."""
        self._dropped.append((circuit, ticket))

    def _settle_dropped(self) -> None:
        while self._dropped:
            circuit, ticket = self._dropped.popleft()
            circuit.settle(ticket, Verdict.NEUTRAL, "", 0.0, 0.0)

    # By hand

    def isolate(self, key: str) -> None:
        """Refuse every call of a key, until `reset`."""
        self._force(key, State.ISOLATED)

    def disable(self, key: str) -> None:
        """Let every call of a key through, whatever happens, until `reset`."""
        self._force(key, State.DISABLED)

    def close(self, key: str | None = None) -> None:
        """Close the circuit of a key now; without a key, as a closing pipeline calls it, do nothing."""
        if key is not None:
            self._force(key, State.CLOSED)

    def reset(self, key: str) -> None:
        """Forget everything about a key."""
        with self._lock:
            circuit = self._circuits.find(key)
            if circuit is not None:
                circuit.change(State.CLOSED)  # calls under way belong to an epoch that is over
                self._circuits.discard(key)

    def _force(self, key: str, state: State) -> None:
        with self._lock:
            # time 0: whatever idles is old enough to stay
            circuit = self._circuits.get(key, 0.0)
            circuit.trips = 0
            circuit.change(state)

    def snapshot(self) -> dict[str, Any]:
        """How many circuits there are, the state of those that are not closed, and probes under way."""
        with self._lock:
            self._settle_dropped()
            states: Mapping[str, str] = {
                key: circuit.state.value
                for key, circuit in self._circuits
                if circuit.state is not State.CLOSED
            }
            probing = sum(circuit.probing for _, circuit in self._circuits)
            return {"circuits": len(self._circuits), "not_closed": states, "probing": probing}


class _Call:
    """One admitted call, until its body has ended."""

    __slots__ = ("_breaking", "_reader", "_settled", "_verdict", "circuit", "io", "key", "request", "ticket")

    def __init__(
        self, breaking: Breaking, key: str, circuit: Circuit, ticket: Ticket, request: Request, io: IO
    ) -> None:
        self._breaking = breaking
        self._verdict = Verdict.NEUTRAL
        self._reader: StreamReader | None = None
        self._settled = False
        self.key = key
        self.circuit = circuit
        self.ticket = ticket
        self.request = request
        self.io = io

    def settle(self, verdict: Verdict, why: str) -> None:
        """Tell the circuit, once."""
        if not self._settled:
            self._settled = True
            self._breaking.settle(self, verdict, why)

    def watch(self, response: Response, verdict: Verdict) -> None:
        """Settle when the body has ended; as a probe, when it has content."""
        self._verdict = verdict
        completion = record_of(self.request).completion(self.request)
        if completion is not None and is_event_stream(response.headers):
            self._reader = reader_for(completion.format, response.headers)
        tap(response, self)

    def feed(self, chunk: bytes) -> None:
        """A piece of the body goes by."""
        reader = self._reader
        if reader is None:
            self.prove()
            return
        kinds = {event.kind for event in reader.feed(chunk)}
        if Kind.CONTENT in kinds or reader.gave_up is not None:
            self.prove()
        if Kind.ERROR in kinds:
            self._fail(reader.known.error or frozenset())

    def prove(self) -> None:
        """The server has delivered something: all that a probe is for."""
        if self.ticket.probe and self._verdict is Verdict.SUCCESS:
            self._breaking.prove(self)

    def _fail(self, codes: frozenset[str]) -> None:
        answer = read_codes(codes, record_of(self.request))
        self.settle(answer.verdict, answer.code or answer.meaning.value)

    def end(self, ending: Ending, error: Exception | None) -> None:
        """The body has ended."""
        if ending is Ending.DROPPED:
            if not self._settled:
                self._breaking.drop(self.circuit, self.ticket)
        elif ending is Ending.BROKEN:
            self.settle(Verdict.FAILURE, type(error).__name__)
        # the openai SDK closes a stream at its last event, and never reads the end
        elif ending is Ending.COMPLETE or (self._reader is not None and self._reader.known.evidence):
            self.settle(self._verdict, "")
        elif ending is Ending.CANCELLED and self.io.now() >= due_of(self.request):
            self.settle(Verdict.FAILURE, "cut off by a Timeout")
        else:
            self.settle(Verdict.NEUTRAL, "")
