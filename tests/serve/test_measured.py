"""What was measured, in the terms of tables and of people."""

import pytest

from befit.cost.workload import Workload
from befit.errors import BadBudget, BadTable
from befit.serve.measured import Measured, check_generates

WORK = Workload(batch=4, prompt=8, generate=5)
RUN = Measured(first_ms=10.0, mean_first_ms=6.0, total_ms=30.0, weight_bytes=7, kv_tokens=9)


def test_latency_adds_up_to_the_total() -> None:
    told = RUN.latency(WORK)
    assert told.prefill_ms == 10.0
    assert told.latency_ms(WORK) == pytest.approx(30.0)
    assert told.tokens_per_s(WORK) == pytest.approx(RUN.tokens_per_s(WORK)) == pytest.approx(4 * 5 / 0.030)


def test_each_token_counts_those_after_the_first() -> None:
    assert RUN.each_token_ms(WORK) == 5.0  # four tokens in 20 ms


def test_json_is_strict() -> None:
    assert Measured.from_json(RUN.to_json()) == RUN
    with pytest.raises(BadTable, match="total_ms"):
        Measured.from_json({"first_ms": 1.0})


def test_one_token_is_no_decode() -> None:
    check_generates(WORK)
    with pytest.raises(BadBudget, match="generate=2 or more"):
        check_generates(Workload(generate=1))
