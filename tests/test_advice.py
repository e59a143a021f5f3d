"""Orders: what is surely wrong warns when it is built, what is a trade-off is only told."""

from __future__ import annotations

import warnings

import pytest

from dspex_pipe import Breaker, Logging, OrderWarning, Pipeline, Retry, build_client
from modes import lasting


class Cache:
    """Stands in by its name: the advice goes by names."""

    def build(self):
        async def run(request, call_next, io):
            return await call_next(request)

        return run


class RateLimit(Cache):
    """The same."""


def codes(pipeline):
    return [remark.code for remark in pipeline.advice()]


@pytest.mark.parametrize(
    ("layers", "code", "why"),
    [
        ([Retry(), Retry()], "W01", "attempts multiply"),
        ([Breaker(), Cache()], "W02", "refuses what the cache could answer"),
        ([RateLimit(), Cache()], "W03", "hits wait for a rate"),
        ([RateLimit(), Retry()], "W04", "retries break the rate"),
        ([RateLimit(), Breaker()], "W05", "have used up the rate"),
        ([Retry(), Logging(), Pipeline([Breaker(), Pipeline([Retry()])])], "W01", "attempts multiply"),
    ],
    ids=lasting,
)
def test_a_surely_wrong_order_warns_with_code_and_reason_at_the_users_line(layers, code, why):
    with pytest.warns(OrderWarning, match=rf"^{code}: \w+ outside \w+: .*{why}") as seen:
        build_client(layers)
    assert seen[0].filename == __file__
    with pytest.warns(OrderWarning) as seen:
        assert code in codes(Pipeline(layers))
    assert seen[0].filename == __file__


@pytest.mark.parametrize(
    ("layers", "told"),
    [
        ([Cache(), Breaker(), Retry()], ["A01"]),
        ([Logging(), Cache(), Retry(), Breaker(), RateLimit()], []),
        ([Cache(), Logging(), Retry()], ["A04"]),
        ([Retry(), Cache(), Logging()], ["A02", "A03", "A04"]),
        ([Breaker(), Logging()], ["A05"]),
        ([RateLimit(), Logging()], ["A06"]),
        ([Cache(), Cache(), Breaker(), Breaker()], []),
        ([], []),
    ],
    ids=lasting,
)
def test_trade_offs_and_good_orders_do_not_warn(layers, told):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert codes(Pipeline(layers)) == told


def test_a_remark_reads_as_one_sentence():
    (remark,) = Pipeline([Breaker(), Retry()]).advice()
    assert str(remark) == (
        "A01: Breaker outside Retry: the circuit counts calls, not attempts; inside, it sees every attempt."
    )
