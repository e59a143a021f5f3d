"""Send again what failed for a passing reason, as often and as soon as is safe.

stamina keeps the loop, its hooks and its switches (``set_active``, ``set_testing``); what to do after
each failure is decided here, in `decide`, a plain function. stamina is entered only after a first
failure, so that a call which succeeds pays next to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from attrs import Factory, define, evolve, field, frozen

from ..body import Replay, copy_request, discard, is_replayable, put_stream
from ..config import brief, check, fraction, one_of, optional, seconds, whole
from ..counts import Counts
from ..events import Record, record_of
from ..options import Converter, switch
from ..outcome import (
    Answer,
    Meaning,
    is_read_timeout,
    is_transient_error,
    read_answer,
    status_error,
    surely_unsent,
)
from ..peek import beginning_of, peek
from ..waits import refilled_in, told_to_retry, told_wait

if TYPE_CHECKING:
    from ..chain import Handler
    from ..family import Request, Response
    from ..io import IO

__all__ = ["Budget", "Retry"]

Outcome: TypeAlias = "Response | Exception"

# RFC 9110 §9.2.2, and QUERY of RFC 10008 §2
_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "QUERY"})
_POST: Literal["auto", "always"] = "auto"
_THROTTLE: Literal["retry", "wait"] = "retry"
_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
_PASSES = frozenset({Meaning.THROTTLED, Meaning.OVERLOADED, Meaning.FAILED})


def _statuses(value: Any) -> Any:
    if not isinstance(value, set | frozenset | list | tuple | range):
        return value
    return frozenset(value) if all(isinstance(status, int) for status in value) else value


def _is_statuses(value: Any) -> bool:
    return isinstance(value, frozenset) and all(
        type(status) is int and 100 <= status <= 599 for status in value
    )


def _is_exceptions(value: Any) -> bool:
    kinds = value if isinstance(value, tuple) else (value,)
    return all(isinstance(kind, type) and issubclass(kind, Exception) for kind in kinds)


@frozen(kw_only=True, repr=False)
class Budget:
    """How much load retries may add, over all calls of one `Retry`.

    Args:
        ratio: Retries allowed per call, 0 to 1, over the window.
        window: Seconds that the counts look back.
        floor: Retries that are always allowed in a window, so that a quiet client can retry at all.
    """

    ratio: float = field(default=0.2, validator=fraction())
    window: float = field(default=10.0, validator=seconds())
    floor: int = field(default=10, validator=whole(0))

    __repr__ = brief


@frozen(kw_only=True, repr=False)
class Retry:
    """Send again what failed for a passing reason.

    Retried are the statuses 408, 425, 429, 500, 502, 503, 504, 529 and transport errors, when repeating is
    safe: idempotent methods; what surely was not sent, or was turned away by a limit (429); requests with an
    ``Idempotency-Key``; LLM completions, told by their path and body. The server's ``x-should-retry`` and the
    wait that it names come first. An error code that no waiting mends, as of a spent quota, ends it. When
    retrying ends, the last response is returned, or the last exception raised, with those before it as notes.

    An LLM's stream may fail behind a status of 200, too. It is held back for a moment, to see its beginning:
    an error in there is a failed attempt, and the reader sees one clean stream. Once it has content it is
    handed on, and never sent again.

    Args:
        attempts: Calls in all, the first included; ``None`` for no limit.
        timeout: Seconds for everything, waits included, after which no further attempt begins; ``None`` for
            no bound (stamina's own default, 45 s, would leave a slow LLM call without a retry).
        wait_initial: Seconds before the second attempt, before jitter.
        wait_max: Seconds that a wait of ours takes at most.
        wait_jitter: Seconds of random extra, at most.
        wait_exp_base: What each wait is multiplied with.
        statuses: Which statuses are retried.
        on: Which exceptions are retried; by default the transport errors of httpx or httpx2.
        post: ``"always"`` repeats every request, whatever its method; ``"auto"`` only where it is safe.
        retry_after_cap: Seconds; when the server asks for more, the response is returned at once.
        budget: A bound on the load that retries add; ``None`` for no bound.
        peek: Seconds that an LLM's stream is held back at most, while it has neither content nor an error;
            ``None`` does not look. In blocking mode the time is looked at between its pieces.
        throttle: ``"retry"`` treats a throttled call (429) as any failure. ``"wait"`` sends it again until
            the deadline, whatever the attempts and the budget; without a deadline or a ``timeout``, for as
            long as the server throttles.

    Per call: ``retry=False`` sends once, ``retry=True`` repeats this request whatever its method.
    """

    options: ClassVar[Mapping[str, Converter]] = {"retry": switch}

    attempts: int | None = field(default=3, validator=optional(whole(1)))
    timeout: float | None = field(default=None, validator=optional(seconds()))
    wait_initial: float = field(default=0.1, validator=seconds(zero=True))
    wait_max: float = field(default=5.0, validator=seconds(zero=True))
    wait_jitter: float = field(default=1.0, validator=seconds(zero=True))
    wait_exp_base: float = field(
        default=2.0,
        validator=check("a number, 1 or more", lambda v: type(v) in {int, float} and 1 <= v < math.inf),
    )
    statuses: frozenset[int] = field(
        default=_STATUSES,
        converter=_statuses,
        validator=check("a set of HTTP statuses", _is_statuses),
    )
    on: type[Exception] | tuple[type[Exception], ...] | None = field(
        default=None, validator=optional(check("exception classes", _is_exceptions))
    )
    post: Literal["auto", "always"] = field(
        default=_POST,  # pyright: ignore[reportAssignmentType] # attrs' stub widens it to str
        validator=one_of("auto", "always"),
    )
    retry_after_cap: float = field(default=60.0, validator=seconds(zero=True))
    budget: Budget | None = field(
        default=Factory(Budget),
        validator=optional(check("a Budget", lambda v: isinstance(v, Budget))),
    )
    peek: float | None = field(default=2.0, validator=optional(seconds()))
    throttle: Literal["retry", "wait"] = field(
        default=_THROTTLE,  # pyright: ignore[reportAssignmentType] # attrs' stub widens it to str
        validator=one_of("retry", "wait"),
    )

    __repr__ = brief

    def build(self) -> Retrying:
        """The running layer, with a budget of its own."""
        return Retrying(self)


# The pure part: what to do after an attempt.


@frozen
class Again:
    """Send again after a wait."""

    wait: float
    reason: str
    free: bool = False
    """The server is well, and only wants us to wait: it costs neither an attempt nor the budget."""


@frozen
class Enough:
    """Hand up what there is; ``spent`` when nobody above us should try again, either."""

    reason: str
    spent: bool = False


@define
class Call:
    """What is known of one call so far."""

    request: Request
    record: Record
    started: float
    attempt: int = 0
    throttles: int = 0
    timeouts: int = 0
    testing: bool = False
    notes: list[str] = field(factory=list)


def decide(  # noqa: C901, PLR0911, PLR0912 - one rule after the other, each with its reason
    policy: Retry, call: Call, outcome: Outcome, *, now: float, wall: float, random: float
) -> Again | Enough | None:
    """What to do after an attempt; ``None`` when there is nothing to retry.

    Args:
        policy: The configuration.
        call: The call so far, this attempt counted.
        outcome: What the attempt brought.
        now: Seconds, the clock of the call.
        wall: Seconds since the epoch.
        random: A number in [0, 1).
    """
    request, options = call.request, call.record.options
    error = outcome if isinstance(outcome, Exception) else None
    told: float | None = None
    refilled: float | None = None
    free = turned_away = False
    if isinstance(outcome, Exception):
        if not _is_retryable(policy, outcome, request):
            return None
        reason = type(outcome).__name__
    else:
        answer = read_answer(outcome, call.record)
        is_failure = answer.in_stream or _is_wanted(policy, outcome, answer)
        if not is_failure and not outcome.is_error:
            return None
        word = told_to_retry(outcome.headers)
        if not is_failure and not word:
            return None
        said = answer.code or answer.meaning.value
        reason = f"{said} in the stream" if answer.in_stream else f"status {outcome.status_code}"
        if word is False:
            return Enough("the server says x-should-retry: false", spent=True)
        if (answer.named or answer.in_stream) and answer.meaning not in _PASSES:
            return Enough(f"{said} does not pass by waiting", spent=True)
        told = told_wait(outcome.headers, wall)
        turned_away = outcome.status_code == 429 or answer.meaning is Meaning.THROTTLED
        if answer.meaning is Meaning.THROTTLED:
            free = policy.throttle == "wait"
            refilled = refilled_in(outcome.headers, wall)
    if options.get("retry") is False:
        return Enough("switched off for this call")
    if not is_replayable(request):
        return Enough("the body cannot be sent twice")
    if not turned_away and not _is_safe(policy, call, error):
        return Enough(f"{request.method} is not safe to repeat, and it may have been carried out")
    counted = call.attempt - call.throttles
    if policy.attempts is not None and counted >= policy.attempts and not free:
        return Enough(f"{counted} of {policy.attempts} attempts made", spent=True)
    if call.timeouts > 1:
        return Enough("a second read timeout of an LLM call, which may be billed", spent=True)
    ends, bound = _ends(policy, call)
    if told is not None and told > policy.retry_after_cap and not (free and ends < math.inf):
        return Enough(f"the server asks for {told:.4g} s, over the cap", spent=True)
    if told is not None:
        wait = told
    elif refilled is not None:
        wait = min(refilled, policy.wait_max)
    else:
        wait = backoff(policy, call.throttles + 1 if free else counted, random)
    if now + wait >= ends:
        return Enough(f"a wait of {wait:.3g} s does not fit the {bound}", spent=True)
    return Again(wait, reason, free)


def _is_wanted(policy: Retry, response: Response, answer: Answer) -> bool:
    """Whether this status is one to retry, or one that nobody lists, with a code that says it passes."""
    status = response.status_code
    return status in policy.statuses or (
        answer.named and answer.meaning in _PASSES and status not in _STATUSES
    )


def _ends(policy: Retry, call: Call) -> tuple[float, str]:
    """When the next attempt must have begun, and by which bound."""
    deadline = math.inf if call.record.deadline is None else call.record.deadline
    timeout = math.inf if policy.timeout is None else call.started + policy.timeout
    return min((timeout, "timeout"), (deadline, "deadline"))


def backoff(policy: Retry, attempt: int, random: float) -> float:
    """Seconds to wait after an attempt, numbered from 1; stamina's formula."""
    try:
        wait = float(policy.wait_initial) * float(policy.wait_exp_base) ** (attempt - 1)
    except OverflowError:
        return policy.wait_max
    return min(policy.wait_max, wait + random * policy.wait_jitter)


def _is_retryable(policy: Retry, error: Exception, request: Request) -> bool:
    if policy.on is None:
        return is_transient_error(error, request)
    return isinstance(error, policy.on)


def _is_safe(policy: Retry, call: Call, error: Exception | None) -> bool:
    request = call.request
    return (
        request.method in _IDEMPOTENT
        or policy.post == "always"
        or call.record.options.get("retry") is True
        or "idempotency-key" in request.headers
        or (error is not None and surely_unsent(error, request))
        or call.record.completion(request) is not None
    )


_CALLS, _RETRIES = range(2)


class Ledger:
    """The state of a `Budget`: calls and retries within the window.

    Finagle and tower keep such a budget, too: under an outage, retries are a bounded share of the load,
    not a multiple of it.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self._lock = Lock()
        self._counts = Counts(2, budget.window)
        self._now = 0.0

    def deposit(self, now: float) -> None:
        """Count a call."""
        with self._lock:
            self._now = now
            self._counts.add(_CALLS, now)

    def withdraw(self, now: float) -> bool:
        """Count a retry, if the budget allows one more."""
        with self._lock:
            self._now = now
            calls, retries = self._counts.totals(now)
            allowed = retries + 1 <= self.budget.floor + self.budget.ratio * calls
            if allowed:
                self._counts.add(_RETRIES, now)
            return allowed

    def snapshot(self) -> dict[str, int]:
        """Calls and retries within the window, as of the newest call."""
        with self._lock:
            calls, retries = self._counts.totals(self._now)
            return {"calls": calls, "retries": retries}


class Retrying:
    """The running layer."""

    def __init__(self, policy: Retry) -> None:
        import stamina  # noqa: PLC0415 - takes its time, so only a pipeline that retries pays for it

        self.policy = policy
        self.ledger = None if policy.budget is None else Ledger(policy.budget)
        self._stamina = stamina

    def snapshot(self) -> dict[str, Any]:
        """Calls and retries in the budget's window, as of the newest call."""
        return {} if self.ledger is None else self.ledger.snapshot()

    async def __call__(self, request: Request, call_next: Handler, io: IO) -> Response:
        now = io.now()
        if self.ledger is not None:
            self.ledger.deposit(now)
        call = Call(request, record_of(request), now)
        # read once: a switch that is thrown during a call must not split it in two
        call.testing = self._stamina.is_testing()
        outcome = await self._send(call, call_next, io)
        verdict = self._judge(call, outcome, io)
        if isinstance(verdict, Again):
            outcome, verdict = await self._repeat(call, outcome, verdict, call_next, io)
        return self._hand_up(call, outcome, verdict)

    async def _send(self, call: Call, call_next: Handler, io: IO) -> Outcome:
        call.attempt += 1
        try:
            response = await call_next(copy_request(call.request))
            if self.policy.peek is not None and call.record.options.get("retry") is not False:
                await peek(response, call.request, io, self.policy.peek)
            return response  # noqa: TRY300 - a body that breaks off in the peek is an error of the attempt
        except Exception as exc:  # noqa: BLE001 - judged, then raised again unless it is retried
            completion = call.record.completion(call.request)
            call.timeouts += completion is not None and is_read_timeout(exc, call.request)
            call.notes.append(f"attempt {call.attempt}: {type(exc).__name__}: {exc}")
            return exc

    def _judge(self, call: Call, outcome: Outcome, io: IO) -> Again | Enough | None:
        policy, now = self.policy, io.now()
        if call.testing:  # then stamina alone counts, with the number it was given
            policy = evolve(policy, attempts=None)
        verdict = decide(policy, call, outcome, now=now, wall=io.wall(), random=io.random())
        if not isinstance(verdict, Again):
            return verdict
        if not self._stamina.is_active():
            return Enough("stamina is switched off (set_active)")
        if verdict.free:
            call.throttles += 1
        elif self.ledger is not None and not self.ledger.withdraw(now):
            return Enough("the retry budget is spent", spent=True)
        call.record.emit("Retry", "retries", verdict.reason, verdict.wait)
        return verdict

    async def _repeat(
        self, call: Call, outcome: Outcome, verdict: Again, call_next: Handler, io: IO
    ) -> tuple[Outcome, Enough | None]:
        """Walk on with stamina, whose hook is told each wait, and whose loop does the waiting."""
        failure, wait = _as_exception(call, outcome), 0.0
        hook: Callable[[Exception], float] = lambda _: wait  # noqa: E731
        # it must not count what costs no attempt
        attempts = None if self.policy.throttle == "wait" else self.policy.attempts
        context = self._stamina.retry_context(on=hook, attempts=attempts, timeout=None)
        try:
            async for attempt in io.attempts(context):  # pragma: no branch - stamina ends it by raising
                if attempt.num > 1:
                    outcome = await self._send(call, call_next, io)
                    judged = self._judge(call, outcome, io)
                    if not isinstance(judged, Again):
                        return outcome, judged
                    failure, verdict = _as_exception(call, outcome), judged
                await _let_go(call, outcome, io)
                wait = await io.before_wait(verdict.wait)
                with attempt:
                    raise failure  # noqa: TRY301 - this is how stamina is told
        except Exception as exc:
            if exc is not failure:
                raise
        return outcome, Enough("stamina's test mode allows no more attempts", spent=True)

    def _hand_up(self, call: Call, outcome: Outcome, verdict: Enough | None) -> Response:
        call.record.spent = verdict is not None and verdict.spent
        if verdict is not None:
            call.record.emit("Retry", "gives up", verdict.reason)
        if isinstance(outcome, Exception):
            for note in call.notes[:-1]:
                outcome.add_note(note)
            raise outcome
        if call.record.spent:
            outcome.headers["x-should-retry"] = "false"
        return outcome


def _as_exception(call: Call, outcome: Outcome) -> Exception:
    """What stamina and its hooks see as the cause."""
    return outcome if isinstance(outcome, Exception) else status_error(outcome, call.request)


async def _let_go(call: Call, outcome: Outcome, io: IO) -> None:
    """Give the connection of a failed response back before the wait."""
    if isinstance(outcome, Exception):
        return
    beginning = beginning_of(outcome)
    if call.testing and beginning is not None:  # stamina may end here, and this be handed up after all
        await io.close(outcome)
        put_stream(outcome, Replay(beginning.pieces))
    elif call.testing:
        await io.read(outcome)
    else:
        await discard(outcome, io)
