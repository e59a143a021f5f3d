"""Who calls: how many, how often, and for what."""

from __future__ import annotations

import itertools
import json
import math
from bisect import bisect
from collections.abc import Iterator
from random import Random

from attrs import define, field, frozen

from ..config import brief, check, fraction, optional, seconds, whole
from ..family import Request

__all__ = ["Call", "Caller", "Workload", "call_of", "positive"]

_EXTENSION = "dspex_simulated"
positive = check("a positive number", lambda v: type(v) in {int, float} and 0 < v < math.inf)


@define
class Call:
    """One logical call, and what came of it. All times are virtual seconds from the beginning.

    Args:
        started: When its caller began it.
        number: Of all calls, in the order in which they were made.
        prompt: The number of its prompt: the same number is the same question.
        tokens_in: Tokens that it asks with.
        tokens_out: Tokens of its answer.
        streams: Whether it asks for a stream.
        ended: When its caller had an answer, an error, or enough.
        failure: What went wrong; ``None`` when it was answered.
        sent: When the provider got it, once for each attempt that left this side.
        throttled: When it was answered 429.
        billed: Tokens that the provider worked on for it, in all attempts.
    """

    started: float
    number: int
    prompt: int
    tokens_in: int
    tokens_out: int
    streams: bool
    ended: float = 0.0
    failure: str | None = None
    sent: list[float] = field(factory=list)
    throttled: list[float] = field(factory=list)
    billed: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of one attempt."""
        return self.tokens_in + self.tokens_out

    @property
    def wasted(self) -> int:
        """Tokens that the provider worked on, and of which the caller had nothing."""
        # who has sent in vain may still be answered by a cache, from what another has paid for
        return max(0, self.billed - self.tokens) if self.failure is None else self.billed

    def content(self) -> bytes:
        """Its body, as a caller writes it; a word is a token."""
        question = f"question {self.prompt}" + " word" * (self.tokens_in - 2)
        return json.dumps(
            {
                "model": "simulated",
                "messages": [{"role": "user", "content": question}],
                "max_tokens": self.tokens_out,
                "stream": self.streams,
            }
        ).encode()

    def extensions(self) -> dict[str, object]:
        """What its request carries, so that the provider knows it again; and the timeouts of the SDKs."""
        return {"timeout": {"connect": 5.0, "read": 600.0, "write": 600.0, "pool": 600.0}, _EXTENSION: self}


def call_of(request: Request) -> Call:
    """The logical call that a request is an attempt of."""
    call: Call = request.extensions[_EXTENSION]
    return call


@frozen(kw_only=True, repr=False)
class Workload:
    """Calls, either as they come, or one after the other by a number of workers.

    Args:
        rate: Calls a second, at random moments (a Poisson process), however the others fare: users.
        workers: Callers of which each makes its next call when the last one has ended; all of them begin at
            once.
        calls: How many calls the workers make together, of which each is made once, whatever comes of it: a
            batch. The report ends with the last of them, so it tells how long the batch took.
        think: Seconds between two calls of a worker, on average; drawn from an exponential distribution. Zero
            for none, with ``calls``.
        duration: Seconds in which calls begin; by default 600, and with ``calls`` until all are made.
        prompts: How many different questions there are; ``None``: none is asked twice.
        zipf: How much more often some questions are asked: the n-th as often as ``1 / n ** zipf``.
        tokens_in: Tokens of a prompt, on average; evenly from half to one and a half times as many.
        tokens_out: Tokens of an answer, likewise.
        streaming: The share of calls that ask for a stream, 0 to 1.
        patience: Seconds after which a caller gives up, and cancels its call.

    Raises:
        ValueError: Both of ``rate`` and ``workers``, or neither; ``calls`` without workers; or a value is not
            allowed.
    """

    rate: float | None = field(default=None, validator=optional(positive))
    workers: int | None = field(default=None, validator=optional(whole(1)))
    calls: int | None = field(default=None, validator=optional(whole(1)))
    think: float = field(default=1.0, validator=seconds(zero=True))
    duration: float | None = field(default=None, validator=optional(seconds()))
    prompts: int | None = field(default=None, validator=optional(whole(1)))
    zipf: float = field(
        default=1.0,
        validator=check("a number from 0 to 10", lambda v: type(v) in {int, float} and 0 <= v <= 10),
    )
    tokens_in: int = field(default=800, validator=whole(2))
    tokens_out: int = field(default=200, validator=whole(2))
    streaming: float = field(default=0.0, validator=fraction())
    patience: float = field(default=600.0, validator=seconds())

    __repr__ = brief

    def __attrs_post_init__(self) -> None:
        if (self.rate is None) == (self.workers is None):
            raise ValueError(
                "Workload() takes either rate=, calls a second, or workers=, callers at once; "
                f"got rate={self.rate!r}, workers={self.workers!r}"
            )
        if self.calls is not None and self.workers is None:
            raise ValueError(f"Workload(calls=…) takes workers=, too, who make them; got calls={self.calls}")
        if self.think == 0 and self.calls is None:
            raise ValueError(
                "Workload(think=0) takes calls=, too: a worker that is refused at once would never end"
            )

    @property
    def until(self) -> float:
        """When the last calls begin, in seconds; infinite for a batch."""
        if self.duration is None:
            return 600.0 if self.calls is None else math.inf
        return self.duration

    @property
    def most_tokens(self) -> int:
        """Tokens that a call takes at most."""
        return math.ceil(self.tokens_in * 1.5) + math.ceil(self.tokens_out * 1.5)

    def callers(self, seed: int) -> list[Caller]:
        """Those who call; with the same seed they ask the same."""
        questions = _Questions(self)  # shared: they ask for the next in turn
        if self.workers is not None:
            return [Caller(self, questions, Random(f"{seed}/{n}")) for n in range(self.workers)]  # noqa: S311
        return [Caller(self, questions, Random(f"{seed}/users"))]  # noqa: S311


class _Questions:
    """Which question is asked next, and whether there is one."""

    def __init__(self, workload: Workload) -> None:
        self.asked = 0
        self._most = math.inf if workload.calls is None else workload.calls
        self._new = itertools.count()
        weights = [1 / n**workload.zipf for n in range(1, (workload.prompts or 0) + 1)]
        self._sums = list(itertools.accumulate(weights))

    @property
    def is_over(self) -> bool:
        return self.asked >= self._most

    def next(self, random: Random) -> int:
        self.asked += 1
        if not self._sums:
            return next(self._new)
        return bisect(self._sums, random.random() * self._sums[-1])


class Caller:
    """One worker, or all users; it knows what is asked, and when, and nothing of the answers.

    Args:
        workload: What is asked for.
        questions: Shared by all callers.
        random: Its own.
    """

    def __init__(self, workload: Workload, questions: _Questions, random: Random) -> None:
        self._workload = workload
        self._questions = questions
        self._random = random

    def next(self, now: float) -> Call | None:
        """A worker's next call; ``None`` when it has no more to make."""
        return self._call(now) if now < self._workload.until and not self._questions.is_over else None

    def pause(self) -> float:
        """Seconds that a worker pauses."""
        think = self._workload.think
        return self._random.expovariate(1 / think) if think else 0.0

    def arrivals(self, rate: float) -> Iterator[Call]:
        """All calls of the users, in the order in which they come."""
        now = self._random.expovariate(rate)
        while now < self._workload.until:
            yield self._call(now)
            now += self._random.expovariate(rate)

    def _call(self, now: float) -> Call:
        workload, prompt = self._workload, self._questions.next(self._random)
        about = Random(prompt)  # noqa: S311 # the same question is as long each time
        return Call(
            started=now,
            number=self._questions.asked,
            prompt=prompt,
            tokens_in=_about(workload.tokens_in, about),
            tokens_out=_about(workload.tokens_out, about),
            streams=self._random.random() < workload.streaming,
        )


def _about(mean: int, random: Random) -> int:
    return round(mean * (0.5 + random.random()))
