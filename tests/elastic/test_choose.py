"""From bounds to members: kept, used to the last hundredth, and refused where nothing keeps them."""

from dataclasses import replace
from random import Random

import pytest
from tests.elastic.nesteds import WORKLOAD, costs, nested_of

from befit.arch.member import Member
from befit.cost.workload import Workload
from befit.elastic.choose import Chooser
from befit.elastic.manifest import Entry, Manifest
from befit.elastic.nested import Nested
from befit.errors import BadBudget, Infeasible

LONG = Workload.parse("batch=3,prompt=300", base=WORKLOAD)


def chooser_of(
    nested: Nested,
    workload: Workload = WORKLOAD,
    layout: str = "padded",
    latency_ms: tuple[float | None, ...] = (None, None, None),
) -> Chooser:
    entries = tuple(
        Entry(
            target=target,
            member=nested.member(target.share),
            cost=nested.counted(nested.member(target.share)),
            quality=None,
            latency_ms=ms,
            hash="",
        )
        for target, ms in zip(nested.targets, latency_ms, strict=True)
    )
    manifest = Manifest(
        written_by="a test",
        family=nested.net.family.model_type,
        space=nested.space,
        workload=nested.workload,
        entries=entries,
        router={},
        gains=None,
        files={},
    )
    return Chooser(nested=nested, manifest=manifest, workload=workload, layout=layout)


def chosen(chooser: Chooser, budget: str) -> tuple[Member, float, Entry | None]:
    return chooser.choose(chooser.bounds(budget, None))


@pytest.mark.parametrize("family", ["nemotron_h", "llama"])
def test_the_trained_cost_goes_through_the_router(family: str) -> None:
    nested = nested_of(family)
    chooser = chooser_of(nested)
    for budget, share, trained in (("50%", 0.5, True), ("params=0.6x", 0.6, False), ("100%", 1.0, True)):
        member, found, entry = chosen(chooser, budget)
        assert member == nested.member(share) and found == pytest.approx(share)
        assert (entry is not None) == trained


@pytest.mark.parametrize("family", ["nemotron_h", "llama"])
def test_bounds_on_other_costs_are_kept_and_used(family: str) -> None:
    # A cache of a few large parts, as a tiny dense model has at a long context, cannot be met within 1 %.
    workload = LONG if family == "nemotron_h" else Workload.parse("batch=1,prompt=20", base=WORKLOAD)
    nested, draw = nested_of(family), Random(0)
    chooser, whole = chooser_of(nested, workload), costs(nested, nested.space.whole, workload)
    for _ in range(10):
        share = draw.uniform(0.45, 0.95)
        member, own, _ = chosen(chooser, f"memory={share}x")
        assert 0.99 * share <= costs(nested, member, workload).memory_bytes / whole.memory_bytes <= share
        assert own == costs(nested, member).params / costs(nested, nested.space.whole).params
    member, _, _ = chosen(chooser, "memory=90%, params=55%, flops=80%")
    found = costs(nested, member, workload)
    used = [
        found.memory_bytes / whole.memory_bytes / 0.9,
        found.params / whole.params / 0.55,
        found.flops / whole.flops / 0.8,
    ]
    assert 0.99 <= max(used) <= 1


def test_a_larger_budget_gives_a_larger_member() -> None:
    nested = nested_of()
    chooser = chooser_of(nested, LONG)
    found = [costs(nested, chosen(chooser, f"memory={share}%")[0], LONG).memory_bytes for share in range(50, 101, 5)]
    assert found == sorted(found) and found[-1] == costs(nested, nested.space.whole, LONG).memory_bytes


def test_memory_at_another_workload_is_another_budget() -> None:
    nested = nested_of(budgets="memory=100%, memory=75%, memory=50%")
    assert chosen(chooser_of(nested), "memory=50%")[2] is not None
    member, _, entry = chosen(chooser_of(nested, LONG), "memory=50%")
    limit = 0.5 * costs(nested, nested.space.whole, LONG).memory_bytes
    assert entry is None and 0.99 * limit <= costs(nested, member, LONG).memory_bytes <= limit
    assert chosen(chooser_of(nested), "50%")[2] is not None, "a bare share is of the trained cost"


def test_the_stricter_of_two_bounds_on_memory_counts() -> None:
    chooser = chooser_of(nested_of())
    bounds = {bound.cost: bound.value for bound in chooser.bounds("memory=90%, params=50%", 1000.0)}
    assert bounds["memory_bytes"] == 1000.0
    assert chooser.bounds("memory=500B", 1000.0)[0].value == 500.0


def test_padding_counts_where_it_is_written() -> None:
    nested = nested_of(budgets="100%, 80%, 70%", ffn_per_layer=True)
    limit = 0.75 * costs(nested, nested.space.whole).params
    for layout in ("padded", "own-code"):
        chooser = chooser_of(nested, layout=layout)
        member, _, _ = chosen(chooser, "params=75%")
        assert 0.98 * limit <= chooser.cost(member).params <= limit
    trained, _, entry = chosen(chooser_of(nested), "70%")
    assert entry is not None and trained == nested.member(0.7)


def test_latency_is_taken_from_measurements() -> None:
    nested = nested_of()
    with pytest.raises(BadBudget, match="not counted but measured"):
        chosen(chooser_of(nested), "latency=5ms")
    timed = (8.0, 6.0, 3.0)
    chooser = chooser_of(nested, latency_ms=timed)
    for budget, share in (("latency=7ms", 0.75), ("latency=50%", 0.5), ("latency=7ms, params=60%", 0.5)):
        _, found, entry = chosen(chooser, budget)
        assert found == share and entry is not None and entry.target.share == share
    with pytest.raises(Infeasible, match="nearest has") as caught:
        chosen(chooser, "latency=2ms")
    assert caught.value.nearest == {"latency_ms": 3.0}
    with pytest.raises(BadBudget, match="at this workload"):
        chosen(chooser_of(nested, LONG, latency_ms=timed), "latency=7ms")


def test_a_model_trained_for_latency() -> None:
    nested = nested_of(budgets="latency=100%, latency=75%, latency=50%", price=lambda m: m.hidden * m.depth / 10)
    chooser = chooser_of(nested)
    assert chosen(chooser, "50%")[0] == nested.member(0.5)
    unpriced = replace(chooser, nested=replace(nested, price=None, chosen={0.5: nested.member(0.5)}))
    member, _, entry = chosen(unpriced, "params=60%")
    assert entry is None
    assert 0.98 <= costs(nested, member).params / costs(nested, nested.space.whole).params / 0.6 <= 1


@pytest.mark.parametrize(
    ("budget", "error", "message"),
    [
        ("params=1%", Infeasible, "the smallest has"),
        ("memory=10B", Infeasible, "the smallest has"),
        ("params=90%, memory=10B", Infeasible, "no member has memory"),
        ("beauty=3", BadBudget, "unknown cost"),
        ("throughput=100", BadBudget, "neither counted nor measured"),
        (None, BadBudget, "say what to cut"),
        ("params>=50%", BadBudget, "upper bound"),
    ],
)
def test_budgets_that_cannot_be_met_or_read(budget: str | None, error: type[Exception], message: str) -> None:
    chooser = chooser_of(nested_of())
    with pytest.raises(error, match=message) as caught:
        chooser.choose(chooser.bounds(budget, None))
    if isinstance(caught.value, Infeasible):
        assert caught.value.nearest and caught.value.binding
