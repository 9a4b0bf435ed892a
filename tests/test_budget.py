"""Budgets: every word, unit and refusal; text, JSON and values are the same thing. And the workload's own text."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from befit.budget import Bound, Budget, human, word_of
from befit.cost.workload import Workload
from befit.errors import BadBudget

GIB = 2.0**30
COSTS = {
    "params": 1e6,
    "memory_bytes": 12.0 * 2**20,
    "weight_bytes": 10.0 * 2**20,
    "cache_bytes": 2.0 * 2**20,
    "flops": 1e9,
    "latency_ms": 40.0,
    "prefill_ms": 10.0,
    "decode_ms": 1.0,
    "tokens_per_s": 200.0,
}


def one(text: str) -> tuple[str, str, float, bool]:
    (bound,) = Budget.parse(text).bounds
    return bound.cost, bound.op, bound.value, bound.relative


@pytest.mark.parametrize(
    ("text", "cost", "op", "value"),
    [
        ("params=8B", "params", "<=", 8e9),
        ("params <= 1_500_000", "params", "<=", 1.5e6),
        ("params=2.5k", "params", "<=", 2500.0),
        ("memory=20GiB", "memory_bytes", "<=", 20 * GIB),
        ("Memory_Bytes=20gb", "memory_bytes", "<=", 20e9),
        ("weights=1TiB", "weight_bytes", "<=", 1024 * GIB),
        ("weights=1TB", "weight_bytes", "<=", 1e12),
        ("cache=3 MiB", "cache_bytes", "<=", 3 * 2.0**20),
        ("cache=3MB", "cache_bytes", "<=", 3e6),
        ("cache=3KiB", "cache_bytes", "<=", 3072.0),
        ("cache=3KB", "cache_bytes", "<=", 3000.0),
        ("cache=3B", "cache_bytes", "<=", 3.0),
        ("flops=2T", "flops", "<=", 2e12),
        ("flops=2G", "flops", "<=", 2e9),
        ("flops=1e12", "flops", "<=", 1e12),
        ("LATENCY=1.5s", "latency_ms", "<=", 1500.0),
        ("ttft=250us", "prefill_ms", "<=", 0.25),
        ("decode_ms<=12", "decode_ms", "<=", 12.0),
        ("throughput=100", "tokens_per_s", ">=", 100.0),
        ("tokens_per_s>=100", "tokens_per_s", ">=", 100.0),
    ],
)
def test_words_and_units(text: str, cost: str, op: str, value: float) -> None:
    assert one(text) == (cost, op, pytest.approx(value, rel=1e-15), False)


def test_relative_bounds_are_of_the_parent() -> None:
    budget = Budget.parse("latency=60%, memory<=0.5x, throughput>=2x")
    assert [(b.op, b.value, b.relative) for b in budget.bounds] == [
        ("<=", 0.6, True),
        ("<=", 0.5, True),
        (">=", 2.0, True),
    ]
    assert one("throughput=60%") == ("tokens_per_s", ">=", 0.6, True)
    resolved = budget.resolve(COSTS)
    assert [(b.value, b.relative) for b in resolved.bounds] == [(24.0, False), (6.0 * 2**20, False), (400.0, False)]
    assert resolved.resolve({}) == resolved


@pytest.mark.parametrize("parent", [{}, {"memory_bytes": 0.0}, {"memory_bytes": math.nan}])
def test_a_parent_without_the_cost_is_refused(parent: dict[str, float]) -> None:
    with pytest.raises(BadBudget, match="memory<=70% is relative, but the parent's memory_bytes is"):
        Budget.parse("memory=70%").resolve(parent)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty text"),
        (" \n", "empty text"),
        ("memory", "cannot read 'memory'; expected WORD=VALUE"),
        ("memory<8GB", "cannot read 'memory<8GB'"),
        ("memory=8GB,", "cannot read ''"),
        ("params=8,000", "without commas"),
        ("memry=8GB", "unknown cost 'memry', did you mean 'memory'"),
        ("=8GB", "unknown cost ''"),
        ("size of it=8", "unknown cost 'size of it'"),
        ("memory=8", "a unit is missing; expected one of TiB, GiB"),
        ("memory=8Gb", "unknown unit 'Gb'"),
        ("memory=8parsecs", "unknown unit 'parsecs'"),
        ("latency=8h", "unknown unit 'h'; expected one of s, ms, us"),
        ("params=8GB", "unknown unit 'GB'"),
        ("throughput=8ms", "unknown unit 'ms'"),
        ("memory>=8GB", "less is better"),
        ("throughput<=8", "more is better"),
        ("params=0", "above 0"),
        ("params=-3", "above 0"),
        ("memory=0%", "above 0"),
        ("params=nan", "finite"),
        ("params=-inf", "finite"),
        ("params=1e999", "finite"),
        ("params=1e308B", "too large"),
        ("params==8", "finite number, got '=8'"),
        ("params=", "finite number, got ''"),
        ("params=1.2.3", "finite"),
        ("params=1__0", "finite"),
        ("memory=1GB, memory_bytes<=2GB", "memory_bytes is bounded twice"),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_reason(text: str, why: str) -> None:
    with pytest.raises(BadBudget, match=re.escape(why)):
        Budget.parse(text)


def test_a_table_has_its_own_words_plain_numbers_and_both_directions() -> None:
    names = ("memory_mib", "Runtime ms")
    budget = Budget.parse("memory_mib<=80_000, memory_mib>=-1, Runtime ms=0", costs=names)
    assert [(b.cost, b.op, b.value) for b in budget.bounds] == [
        ("memory_mib", "<=", 80000.0),
        ("memory_mib", ">=", -1.0),
        ("Runtime ms", "<=", 0.0),
    ]
    assert Budget.parse(str(budget), costs=names) == budget
    for text, why in (
        ("memory=3", "did you mean 'memory_mib'"),
        ("runtime ms=3", "unknown cost 'runtime ms'"),
        ("memory_mib=3MiB", "expected a plain number"),
        ("memory_mib=50%", "expected a plain number"),
        ("memory_mib=3, memory_mib<=4", "bounded twice"),
    ):
        with pytest.raises(BadBudget, match=why):
            Budget.parse(text, costs=names)


def test_met_headroom_and_sentences_agree() -> None:
    budget = Budget.parse("memory=16MiB, latency=32ms, throughput=100")
    assert not budget.met(COSTS) and budget.met(COSTS | {"latency_ms": 32.0})
    assert budget.headroom(COSTS) == {"memory_bytes": 0.25, "latency_ms": -0.25, "tokens_per_s": 1.0}
    assert budget.explain(COSTS) == [
        "memory 12.0 MiB of 16.0 MiB allowed (25 % free)",
        "latency 40.0 ms of 32.0 ms allowed (25 % over)",
        "throughput 200 tokens/s of at least 100 tokens/s (100 % above)",
    ]
    assert Budget.parse("throughput=400").explain(COSTS) == [
        "throughput 200 tokens/s of at least 400 tokens/s (50 % short)"
    ]
    assert Budget.parse("latency=39.99").explain(COSTS) == ["latency 40.0 ms of 40.0 ms allowed (under 1 % over)"]


def test_two_sides_share_the_smaller_headroom() -> None:
    budget = Budget.parse("a<=10, a>=5", costs=["a"])
    assert budget.headroom({"a": 9.0}) == {"a": pytest.approx(0.1)}
    assert budget.headroom({"a": 4.0}) == {"a": pytest.approx(-0.2)}


def test_missing_costs_nan_and_relative_bounds_are_never_met() -> None:
    assert not Budget.parse("params=1M").met({"params": math.nan})
    assert not Budget.parse("throughput=1").met({"tokens_per_s": math.nan})
    with pytest.raises(BadBudget, match="costs given are none"):
        Budget.parse("params=1M").met({})
    for method in (Budget.met, Budget.headroom, Budget.explain):
        with pytest.raises(BadBudget, match="relative to the parent"):
            method(Budget.parse("params=50%"), COSTS)


def test_tighten_multiplies_upper_bounds_only() -> None:
    budget = Budget.parse("latency=40ms, memory=8GiB, throughput=100")
    tight = budget.tighten({"latency_ms": 0.9, "tokens_per_s": 0.5, "params": 0.1})
    assert str(tight) == "latency<=36ms, memory<=8GiB, throughput>=100"
    with pytest.raises(BadBudget, match="relative"):
        Budget.parse("latency=60%").tighten({"latency_ms": 0.9})
    with pytest.raises(BadBudget, match="above 0"):
        budget.tighten({"latency_ms": 0.0})


RELATIVE = st.builds("{}{}".format, st.floats(1e-6, 1e6), st.sampled_from(["%", "x"]))
VALUES = {
    "params": st.builds("{}{}".format, st.floats(1e-3, 1e15), st.sampled_from(["", "K", "M", "B"])),
    "memory": st.builds("{}{}".format, st.floats(1e-3, 1e15), st.sampled_from(["B", "KB", "GB", "KiB", "TiB"])),
    "flops": st.builds("{}{}".format, st.integers(1, 10**18), st.sampled_from(["", "G", "T"])),
    "latency": st.builds("{}{}".format, st.floats(1e-3, 1e9), st.sampled_from(["", "s", "ms", "us"])),
    "throughput": st.builds(str, st.floats(1e-3, 1e9)),
}
TEXTS = st.lists(st.sampled_from(sorted(VALUES)), min_size=1, unique=True).flatmap(
    lambda words: st.tuples(*(st.builds(f"{word}={{}}".format, VALUES[word] | RELATIVE) for word in words)).map(
        ", ".join
    )
)


@given(TEXTS)
def test_text_and_json_round_trip(text: str) -> None:
    budget = Budget.parse(text)
    assert Budget.parse(str(budget)) == budget
    assert str(Budget.parse(str(budget))) == str(budget)
    assert Budget.from_json(budget.to_json()) == budget


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("MEMORY_BYTES=14336KiB", "memory<=14MiB"),
        ("ttft=1500", "prefill_ms<=1.5s"),
        ("latency<=0.6x", "latency<=60%"),
        ("params=8000M", "params<=8B"),
        ("memory=1B", "memory<=1B"),
    ],
)
def test_the_canonical_text_is_short(text: str, canonical: str) -> None:
    assert str(Budget.parse(text)) == canonical


GOOD = {"cost": "params", "op": "<=", "value": 1.0, "relative": False}


@pytest.mark.parametrize(
    "data",
    [
        [],
        {},
        {"bounds": []},
        {"bounds": GOOD},
        {"bounds": [GOOD], "more": 1},
        {"bounds": [GOOD | {"more": 1}]},
        {"bounds": [{"cost": "params"}]},
        {"bounds": [GOOD | {"op": "="}]},
        {"bounds": [GOOD | {"cost": 3}]},
        {"bounds": [GOOD | {"value": "3"}]},
        {"bounds": [GOOD | {"value": True}]},
        {"bounds": [GOOD | {"value": math.nan}]},
        {"bounds": [GOOD | {"relative": 0}]},
        {"bounds": [GOOD | {"relative": True, "value": -1}]},
        {"bounds": [GOOD, GOOD]},
    ],
)
def test_json_that_is_no_budget_is_refused(data: object) -> None:
    with pytest.raises(BadBudget):
        Budget.from_json(data)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("cost", "value", "text"),
    [
        ("memory_bytes", 12.3 * 2**20, "12.3 MiB"),
        ("memory_bytes", 1023.99 * 1024, "1.00 MiB"),
        ("weight_bytes", 0, "0 B"),
        ("cache_bytes", -3 * GIB, "-3.00 GiB"),
        ("disk_bytes", 512, "512 B"),
        ("params", 8.03e9, "8.03 B"),
        ("params", 1234, "1,234"),
        ("flops", 2e12, "2.00 TFLOP"),
        ("latency_ms", 12345, "12.3 s"),
        ("decode_ms", 0.0123, "12.3 us"),
        ("runtime_ms", 512.25, "512 ms"),
        ("tokens_per_s", 12345.6, "12,346 tokens/s"),
        ("memory_mib", 80000, "80,000"),
        ("params", math.nan, "nan"),
    ],
)
def test_numbers_for_people(cost: str, value: float, text: str) -> None:
    assert human(cost, value) == text


def test_words_for_people() -> None:
    assert [word_of(cost) for cost in ("memory_bytes", "tokens_per_s", "memory_mib")] == [
        "memory",
        "throughput",
        "memory_mib",
    ]
    with pytest.raises(BadBudget, match="comparison"):
        Bound(cost="params", op="<", value=1.0)  # pyright: ignore[reportArgumentType]


def test_a_workload_is_read_over_its_base() -> None:
    base = Workload(batch=4, generate=8)
    work = Workload.parse(" prompt=2048, weights=fp32,", base)
    assert work == Workload(batch=4, prompt=2048, generate=8, weights="fp32") and work.context == 2056


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("batch=0", "batch must be a whole number"),
        ("batch=1.5", "batch must be a whole number"),
        ("batch=1,batch=2", "twice"),
        ("depth=3", "cannot read 'depth=3'"),
        ("batch", "cannot read 'batch'"),
        ("weights=int3", "weights must be one of"),
    ],
)
def test_a_workload_that_cannot_be_read_is_refused(text: str, why: str) -> None:
    with pytest.raises(BadBudget, match=why):
        Workload.parse(text)
