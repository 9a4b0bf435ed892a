"""Prices: sums of options equal the closed forms and the latency table; throughput is latency in disguise."""

import random
from dataclasses import replace
from typing import Any

import pytest
from tests import tiny
from tests.puzzle.conftest import ATTENTION, FFN

from befit.arch.decoder import Attention, Ffn, NoOp
from befit.arch.decoder_space import DecoderSpace
from befit.budget import Budget
from befit.cost.count import count
from befit.cost.device import Device
from befit.cost.latency import Correction, Latency, LatencyTable
from befit.cost.workload import Workload
from befit.errors import Infeasible
from befit.lm.families import family_of
from befit.puzzle.prices import Prices
from befit.puzzle.score import Scores

DEVICE = Device(name="made up", kind="cpu", engine="none", cores=1, threads=1, memory_bytes=2**30)


def space_of(family: str = "llama", layers: int = 3, **options: Any) -> DecoderSpace:
    plain = tiny.config(family, layers)
    return DecoderSpace(
        shape=family_of(plain).describe(plain), **({"attention": ATTENTION, "ffn": FFN, "window": 5} | options)
    )


def prices_of(space: DecoderSpace, workload: Workload) -> Prices:
    """A latency table by formula: times grow with KV heads, window, width and batch."""

    def time(size: float) -> Latency:
        return Latency(prefill_ms=size * workload.prompt / 8, decode_ms=size / 3 + 0.01 * workload.batch)

    attention = {v.name: v for i in range(space.shape.layers) for v in space.attention_variants(i)}
    ffn = {v.name: v for i in range(space.shape.layers) for v in space.ffn_variants(i)}
    table = LatencyTable(
        device=DEVICE,
        workload=workload,
        dtype="fp32",
        base=time(2.0),
        attention={
            name: time(0.5 + v.kv_heads - (0.25 if v.window else 0) if isinstance(v, Attention) else 0.3)
            for name, v in attention.items()
            if not isinstance(v, NoOp)
        },
        ffn={
            name: time(v.width / 20 if isinstance(v, Ffn) else 0.2)
            for name, v in ffn.items()
            if not isinstance(v, NoOp)
        },
        prefill=Correction(attention=1.1, ffn=0.9, sub_block_ms=0.02, fixed=1.3),
        decode=Correction(attention=0.8, ffn=1.2, sub_block_ms=0.03, fixed=0.7),
    )
    return Prices(space=space, workload=workload, latency=table)


def scores_of(space: DecoderSpace, seed: int = 0) -> Scores:
    """Random scores of all pairs."""
    rng = random.Random(seed)
    layers = tuple({block.name: rng.random() for block in space.blocks(i)[1:]} for i in range(space.shape.layers))
    return Scores(layers=layers, interaction=(0.0,) * space.shape.layers, around=space.shape.arch)


WORK = Workload(batch=2, prompt=16, generate=8, weights="fp32", cache="bf16")


@pytest.mark.parametrize("family", tiny.ALL)
def test_prices_add_up_to_counts_and_predictions(family: str) -> None:
    space = space_of(family)
    prices, rng = prices_of(space, WORK), random.Random(0)
    for arch in [space.shape.arch, *(space.sample(rng) for _ in range(20))]:
        found, counted, predicted = prices.arch(arch), count(space.shape, arch, WORK), prices.latency.predict(arch)
        for name in ("params", "weight_bytes", "cache_bytes", "memory_bytes", "flops"):
            assert found[name] == getattr(counted, name)
        assert found["prefill_ms"] == pytest.approx(predicted.prefill_ms, rel=1e-12)
        assert found["decode_ms"] == pytest.approx(predicted.decode_ms, rel=1e-12)
        assert found["latency_ms"] == pytest.approx(predicted.latency_ms(WORK), rel=1e-12)
        assert found["tokens_per_s"] == pytest.approx(predicted.tokens_per_s(WORK), rel=1e-12)
        assert found["attention_layers"] == sum(isinstance(b.attention, Attention) for b in arch.blocks)


def test_the_solvers_table_holds_the_same_numbers() -> None:
    space = space_of()
    prices, scores, rng = prices_of(space, WORK), scores_of(space), random.Random(1)
    table = prices.table(scores)
    for _ in range(20):
        arch = space.sample(rng)
        picked = [table.layers[i][space.blocks(i).index(block)] for i, block in enumerate(arch.blocks)]
        assert [option.name for option in picked] == [block.name for block in arch.blocks]
        assert sum(o.score for o in picked) == pytest.approx(scores.total(arch))
        for name in table.costs:
            total = table.fixed[name] + sum(option.costs[name] for option in picked)
            assert total == pytest.approx(prices.arch(arch)[name], rel=1e-12)


def test_a_bound_on_throughput_is_one_on_latency() -> None:
    space = space_of()
    prices, rng = prices_of(space, WORK), random.Random(2)
    archs = [space.sample(rng) for _ in range(50)]
    middle = sorted(prices.arch(arch)["tokens_per_s"] for arch in archs)[25] * (1 + 1e-9)
    budget = Budget.parse(f"throughput>={middle!r}, memory<=1GiB")
    bounds = {bound.cost: bound for bound in prices.bounds(budget)}
    assert set(bounds) == {"attention_layers", "latency_ms", "memory_bytes"}
    kept = [arch for arch in archs if budget.met(prices.arch(arch))]
    assert 0 < len(kept) < len(archs)
    assert kept == [arch for arch in archs if bounds["latency_ms"].met(prices.arch(arch)["latency_ms"])]
    assert bounds["attention_layers"].met(1) and not bounds["attention_layers"].met(0)


def test_an_engines_least_step_bounds_what_children_can_gain() -> None:
    space, workload = space_of(), Workload(batch=4, prompt=8, generate=16)
    plain = prices_of(space, workload)
    own = plain.arch(space.shape.arch)
    least = 0.8 * own["decode_ms"]
    prices = replace(plain, latency=replace(plain.latency, least_decode_ms=least))
    fast = min(
        (space.sample(random.Random(seed)) for seed in range(50)), key=lambda arch: plain.arch(arch)["decode_ms"]
    )
    assert plain.arch(fast)["decode_ms"] < least == prices.arch(fast)["decode_ms"]
    told, table = prices.arch(fast), prices.latency.predict(fast)
    assert (
        told["latency_ms"]
        == pytest.approx(told["prefill_ms"] + 16 * least)
        == pytest.approx(table.latency_ms(workload))
    )
    assert told["tokens_per_s"] == pytest.approx(table.tokens_per_s(workload))
    limit = 16 * least + 0.5 * own["prefill_ms"]
    bounds = prices.bounds(Budget.parse(f"latency<={limit}ms"))
    assert {(b.cost, round(b.value, 9)) for b in bounds if b.op == "<="} == {
        ("latency_ms", round(limit, 9)),
        ("prefill_ms", round(0.5 * own["prefill_ms"], 9)),
    }
    with pytest.raises(Infeasible, match="takes the engine at least") as error:
        prices.bounds(Budget.parse(f"decode_ms<={least / 2}"))
    assert error.value.binding == "decode_ms"
