"""Choosing a child: brute force on small spaces, budgets that the measured child must keep, and the simpler rivals."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from tests import tiny
from tests.puzzle.test_prices import WORK, prices_of, scores_of, space_of

from befit.arch.decoder import Attention, Block, DecoderArch, NoOp
from befit.arch.decoder_space import DecoderSpace
from befit.budget import Bound, Budget
from befit.errors import Infeasible
from befit.puzzle import baselines
from befit.puzzle.choose import MARGIN, Chooser, Chosen, affordable, front
from befit.puzzle.polish import PolishConfig
from befit.puzzle.prices import Prices


def every(space: DecoderSpace) -> list[DecoderArch]:
    options = [space.blocks(layer) for layer in range(space.shape.layers)]
    archs = [DecoderArch(blocks=blocks) for blocks in itertools.product(*options)]
    return [arch for arch in archs if any(isinstance(b.attention, Attention) for b in arch.blocks)]


def chooser(space: DecoderSpace, batches: Sequence[int] = (2,), evaluations: int = 1, **other: Any) -> Chooser:
    """One whose true KL is the sum of scores, unless told otherwise."""
    scores = scores_of(space)
    prices = {batch: prices_of(space, replace(WORK, batch=batch)) for batch in batches}
    settings: dict[str, Any] = {
        "true_kls": lambda archs: list(map(scores.total, archs)),
        "config": PolishConfig(evaluations=evaluations, drawn=200),
    }
    return Chooser(prices=prices, base=batches[0], scores=scores, **(settings | other))


@pytest.mark.parametrize(
    "text",
    [
        "memory=70%",
        "latency=60%",
        "latency=80%, memory=75%",
        "params=70%, decode_ms=70%, cache=50%",
        "throughput>=1.5x",
    ],
)
def test_the_first_solution_is_the_best_of_all(text: str) -> None:
    space = space_of(layers=2)
    it = chooser(space)
    chosen = it.choose(Budget.parse(text), None)
    own = space.shape.arch
    budget = Budget.parse(text).resolve(it.prices[2].arch(own))
    fitting = [arch for arch in every(space) if budget.met(it.prices[2].arch(arch))]
    assert 0 < len(fitting) < len(every(space))
    best = min(fitting, key=it.scores.total)
    assert chosen.arch == best and chosen.met and chosen.batch == 2
    assert chosen.kl_sum == pytest.approx(it.scores.total(best)) and chosen.kl == chosen.kl_sum
    assert Chosen.from_json(json.loads(json.dumps(chosen.to_json()))) == chosen


def test_true_kl_decides_between_the_solvers_solutions() -> None:
    space = space_of(layers=3)
    plain = chooser(space).choose(Budget.parse("memory=70%"), None)
    punished = {plain.arch: 9.0}
    it = chooser(space, evaluations=6)
    misled = replace(it, true_kls=lambda archs: [punished.get(arch, it.scores.total(arch)) for arch in archs])
    chosen = misled.choose(Budget.parse("memory=70%"), None)
    assert chosen.arch != plain.arch and chosen.kl < 9
    assert chosen.tried[-1].arch == plain.arch and chosen.tried[-1].origin == "solution 1"
    assert chosen.solved == it.solutions


Measured = tuple[dict[str, float], dict[str, float]]


def slower(it: Chooser, factor: float) -> Any:
    """Measurements in which children take `factor` times what was predicted, and the parent what was."""
    seen: list[DecoderArch] = []

    def measure(arch: DecoderArch, batch: int) -> Measured:
        seen.append(arch)
        costs = it.prices[batch].arch(arch)
        late = {name: factor * costs[name] for name in ("prefill_ms", "decode_ms", "latency_ms")}
        return it.prices[it.base].arch(arch_of(it)), costs | late | {"tokens_per_s": costs["tokens_per_s"] / factor}

    return measure, seen


def arch_of(it: Chooser) -> DecoderArch:
    return it.prices[it.base].space.shape.arch


@pytest.mark.parametrize("text", ["latency=70%", "throughput>=1.4x", "decode_ms=75%, memory=90%"])
def test_a_child_that_is_slower_than_predicted_is_replaced(text: str) -> None:
    it = chooser(space_of(layers=3), evaluations=6)
    measure, seen = slower(it, 1.2)
    chosen = it.choose(Budget.parse(text), measure)
    first = it.choose(Budget.parse(text), None)
    assert seen[0] == first.arch and len(seen) >= 2 and chosen.arch == seen[-1] != first.arch
    assert chosen.met
    parent, child = measure(chosen.arch, chosen.batch)
    assert Budget.parse(text).resolve(parent).met(child)
    tight, loose = chosen.budget.bounds[0], first.budget.bounds[0]
    assert tight.value < loose.value if tight.op == "<=" else tight.value > loose.value
    if len(chosen.budget.bounds) > 1:
        assert chosen.budget.bounds[1] == first.budget.bounds[1]  # counted costs are certain


def test_a_measured_time_must_leave_a_margin() -> None:
    it = chooser(space_of(layers=3))
    limit = it.choose(Budget.parse("latency=70%"), None)
    costs = it.prices[2].arch(limit.arch)["latency_ms"]
    bound = limit.budget.bounds[0].value
    for share, runs in ((MARGIN - 0.005, 1), (MARGIN + 0.005, 2)):
        measure, seen = slower(it, share * bound / costs)
        it.choose(Budget.parse("latency=70%"), measure)
        assert min(len(seen), 2) == runs


def test_a_budget_that_no_measurement_keeps_is_reported_not_met() -> None:
    it = chooser(space_of(layers=2))
    measure, seen = slower(it, 100.0)
    chosen = it.choose(Budget.parse("latency=70%"), measure)
    assert not chosen.met and chosen.arch == seen[-1]


def test_a_budget_that_no_prediction_keeps_is_infeasible() -> None:
    it = chooser(space_of(layers=2))
    with pytest.raises(Infeasible, match="latency") as caught:
        it.choose(Budget.parse("latency=1%, memory=90%"), None)
    assert caught.value.binding == "latency_ms" and set(caught.value.nearest) >= {"latency_ms", "memory_bytes"}


def test_throughput_may_be_met_by_a_larger_batch() -> None:
    space = space_of(layers=2)
    it = chooser(space, batches=(2, 8))
    chosen = it.choose(Budget.parse("throughput>=2x"), None)
    alone = chooser(space).choose(Budget.parse("throughput>=2x"), None)
    wanted = 2 * it.prices[2].arch(space.shape.arch)["tokens_per_s"]
    assert chosen.batch == 8 and chosen.kl_sum < alone.kl_sum
    assert it.prices[8].arch(chosen.arch)["tokens_per_s"] >= wanted


def test_the_front_is_the_best_score_at_each_budget() -> None:
    space = space_of(layers=2)
    prices, scores = prices_of(space, WORK), scores_of(space)
    own = space.shape.arch
    budget = Budget.parse("memory=70%").resolve(prices.arch(own))
    points = front(prices, scores, budget, (0.01, 0.9, 1.0, 1.2))
    assert [point["factor"] for point in points] == [0.9, 1.0, 1.2]
    for point in points:
        limit = point["factor"] * budget.bounds[0].value
        fitting = [arch for arch in every(space) if prices.arch(arch)["memory_bytes"] <= limit]
        assert point["kl_sum"] == pytest.approx(min(scores.total(arch) for arch in fitting))
        assert point["costs"]["memory_bytes"] <= limit


def rivals(
    text: str, target: str = "hf", family: str = "llama"
) -> tuple[Prices, Mapping[str, DecoderArch | None], Budget]:
    space = space_of(family, 3 if family == "llama" else 6, target=target)
    prices, scores = prices_of(space, WORK), scores_of(space)
    budget = Budget.parse(text).resolve(prices.arch(space.shape.arch))
    fits, bounds = affordable(prices, budget), prices.bounds(budget)
    found = {
        "uniform": baselines.uniform(space, scores.total, scores, fits),
        "depth": baselines.depth(space, (0.5, 0.1, 0.3, 0.6, 0.2, 0.4)[: space.shape.layers], fits),
        "greedy": baselines.greedy(space, prices, scores, bounds),
        "random": baselines.drawn(space, prices.table(scores), bounds, fits, seed=3),
    }
    return prices, found, budget


@pytest.mark.parametrize("text", ["memory=80%", "latency=70%, params=75%", "throughput>=1.6x, latency=75%"])
@pytest.mark.parametrize("target", ["hf", "vllm"])
def test_rivals_are_legal_and_within_the_budget(text: str, target: str) -> None:
    prices, found, budget = rivals(text, target)
    assert all(found.values())
    for arch in found.values():
        assert arch is not None
        prices.space.check(arch)
        assert budget.met(prices.arch(arch))


@pytest.mark.parametrize("text", ["memory=80%", "latency=70%, params=75%"])
def test_rivals_of_a_hybrid_keep_its_one_attention(text: str) -> None:
    prices, found, budget = rivals(text, family=tiny.HYBRID)
    own = prices.space.shape.arch.blocks
    assert all(found.values())
    for arch in found.values():
        assert arch is not None
        prices.space.check(arch)
        assert budget.met(prices.arch(arch))
        assert isinstance(arch.blocks[2].attention, Attention)
    uniform = found["uniform"]
    assert uniform is not None and len(set(zip(own, uniform.blocks, strict=True))) == len(set(own)) == 3


def test_rivals_are_what_they_are_called() -> None:
    prices, found, budget = rivals("memory=80%")
    space = prices.space
    scores, own, gone = scores_of(space), space.shape.arch, Block(attention=NoOp(), ffn=NoOp())
    same = [DecoderArch(blocks=(block,) * 3) for block in space.blocks(0)]
    fitting = [arch for arch in same if space.contains(arch) and budget.met(prices.arch(arch))]
    assert found["uniform"] == min(fitting, key=scores.total)
    one = DecoderArch(blocks=(own.blocks[0], gone, own.blocks[2]))  # layer 1 has the least influence, layer 2 is next
    two = DecoderArch(blocks=(own.blocks[0], gone, gone))
    assert found["depth"] == (one if budget.met(prices.arch(one)) else two)
    first = found["greedy"]
    assert first is not None
    limit = (budget.bounds[0].value - prices.fixed()["memory_bytes"]) / 3
    cheap = [block for block in space.blocks(0) if prices.block(block)["memory_bytes"] <= limit]
    assert first.blocks[0] == min(cheap, key=lambda block: scores.block(0, block))


def test_a_random_child_is_found_where_hardly_any_exist() -> None:
    space = space_of(layers=3)
    prices = prices_of(space, WORK)
    least = min(prices.arch(arch)["params"] for arch in every(space))
    bounds = (Bound(cost="params", op="<=", value=least), Bound(cost="attention_layers", op=">=", value=1))
    arch = baselines.drawn(space, prices.table(scores_of(space)), bounds, lambda _: False, seed=0)
    assert arch is not None and prices.arch(arch)["params"] == least


def test_without_an_affordable_child_there_are_no_rivals() -> None:
    _, found, _ = rivals("memory=1KiB")
    assert not any(found.values())
