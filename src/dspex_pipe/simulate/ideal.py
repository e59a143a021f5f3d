"""What a provider can serve: the calls that a client which knows everything would get answered."""

from __future__ import annotations

import heapq

from attrs import evolve

from .provider import Limits, ProviderModel, Workers
from .workload import Call, Workload

__all__ = ["servable"]


def servable(model: ProviderModel, workload: Workload, seed: int) -> tuple[float, ...]:
    """When those calls of a workload begin that can be answered.

    A call that comes while the provider is down is lost, as nobody knows for how long; only a batch waits.
    Any other is sent when its turn has come, as the limits and the capacity allow, in order of arrival; it is
    lost, too, when its caller's patience ends before. None is sent in vain, and each takes the provider's
    mean time.
    """
    ideal, callers = _Ideal(model, workload), workload.callers(seed)
    if workload.rate is not None:
        for arrival in callers[0].arrivals(workload.rate):
            ideal.ended(arrival)
        return tuple(ideal.served)
    due = [(0.0, number) for number in range(len(callers))]
    while due:
        now, number = heapq.heappop(due)
        call = callers[number].next(now)
        if call is not None:
            heapq.heappush(due, (ideal.ended(call) + callers[number].pause(), number))
    return tuple(ideal.served)


class _Ideal:
    def __init__(self, model: ProviderModel, workload: Workload) -> None:
        self._model = model
        self._patience = workload.patience
        self._waits = workload.calls is not None
        self._limits = Limits(model)
        self._workers = Workers(evolve(model, queue=None))  # nobody is sent away: they wait outside
        self._last = 0.0
        self.served: list[float] = []

    def ended(self, call: Call) -> float:
        """When a call has ended; they come in order of time."""
        model, now = self._model, call.started
        if model.back_up(now) > now and not self._waits:
            return now
        sent = max(now, self._last)
        sent = model.back_up(sent + self._limits.wait(call.tokens, sent))
        turn = self._workers.turn(sent) or sent
        if turn - now > self._patience:
            return now + self._patience
        self._limits.take(call.tokens, sent)
        self._workers.begin(sent, turn, model.mean)
        self._last = sent
        self.served.append(now)
        return turn + model.mean
