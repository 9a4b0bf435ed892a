"""Batch sizes for throughput: brute force over children and batches, the parent's largest batch, and what has no room."""

import dataclasses
import itertools
from dataclasses import replace
from typing import Any

import pytest
from tests.puzzle.test_choose import every
from tests.puzzle.test_prices import WORK, prices_of, scores_of, space_of

from befit.arch.decoder import Attention, DecoderArch
from befit.budget import Budget
from befit.cost.count import count
from befit.cost.formats import FORMATS
from befit.cost.workload import Workload
from befit.errors import Infeasible
from befit.puzzle.batches import batches_of, fitted, with_room
from befit.puzzle.choose import Chooser
from befit.puzzle.polish import PolishConfig

LONG = replace(WORK, batch=12, prompt=2000, generate=48)
"""The cache of three requests is as large as a tiny parent."""


def memory(arch: DecoderArch, workload: Workload, batch: int) -> int:
    return count(space_of(layers=2).shape, arch, replace(workload, batch=batch)).memory_bytes


@pytest.mark.parametrize("number_format", FORMATS)
@pytest.mark.parametrize("room", [1, 2, 5, 11])
def test_the_parent_is_compared_at_the_most_that_fits(number_format: str, room: int) -> None:
    shape = space_of(layers=2).shape
    work = replace(LONG, weights=number_format, cache=number_format)
    for limit in (memory(shape.arch, work, room), memory(shape.arch, work, room + 1) - 1):
        assert fitted(work, Budget.parse(f"memory={limit}B, throughput>=2x"), shape).batch == room
    cache = count(shape, shape.arch, replace(work, batch=room)).cache_bytes
    assert fitted(work, Budget.parse(f"cache={cache}B, throughput>=2x"), shape).batch == room


def test_other_budgets_compare_with_the_parent_as_asked() -> None:
    shape = space_of(layers=2).shape
    weights = count(shape, shape.arch, LONG).weight_bytes
    for text in (
        f"memory={weights}B",
        f"memory={weights}B, throughput>=1x",
        "memory=50%, throughput>=2x",
        "memory=1GiB",
    ):
        assert fitted(LONG, Budget.parse(text), shape) == LONG


def test_batches_double_from_the_parents_to_the_one_asked_for() -> None:
    budget, asked = Budget.parse("memory=80GiB, throughput>=2x"), Workload(batch=64)
    assert batches_of(asked, replace(asked, batch=11), budget) == (11, 22, 44, 64)
    assert batches_of(asked, replace(asked, batch=8), budget) == (8, 16, 32, 64)
    assert batches_of(asked, asked, budget) == (64, 128, 256)
    assert batches_of(asked, replace(asked, batch=8), budget, (24, 8)) == (8, 24)
    assert batches_of(asked, asked, Budget.parse("memory=80GiB"), (24, 8)) == (64,)


def test_what_has_no_room_is_not_measured() -> None:
    space = space_of(layers=2, attention=("all", "1"), ffn=("100", "50"))
    smallest = min((memory(arch, LONG, 8), i) for i, arch in enumerate(every(space)))[0]
    budget = Budget.parse(f"memory={smallest}B, throughput>=1.1x")
    assert with_room(space, budget, replace(LONG, batch=2), (2, 4, 8, 9, 16)) == (2, 4, 8)
    with pytest.raises(Infeasible, match="memory"):
        with_room(space, budget, replace(LONG, batch=9), (9, 18))


@pytest.mark.parametrize("text", ["memory={}B, throughput>=1.3x", "memory={}B, throughput>=1.8x, params<=90%"])
def test_fewer_kv_heads_allow_a_larger_batch(text: str) -> None:
    """As by brute force over children and batches; the throughput comes from requests that the parent has no room for."""
    space = space_of(layers=2, attention=("all", "1", "noop"), ffn=("100", "50"))
    own = space.shape.arch
    budget = Budget.parse(text.format(memory(own, LONG, 3)))
    base = fitted(LONG, budget, space.shape)
    batches = with_room(space, budget, base, batches_of(LONG, base, budget))
    assert base.batch == 3 and batches == (3, 6, 12)
    prices, scores = {b: prices_of(space, replace(LONG, batch=b)) for b in batches}, scores_of(space)
    resolved = budget.resolve(prices[3].arch(own))

    def score(pair: tuple[DecoderArch, int]) -> tuple[float, int]:
        return scores.total(pair[0]), pair[1]

    fitting = [(arch, b) for arch, b in itertools.product(every(space), batches) if resolved.met(prices[b].arch(arch))]
    at_base = [pair for pair in fitting if pair[1] == 3]
    settings: dict[str, Any] = {"true_kls": lambda archs: list(map(scores.total, archs))}
    config = PolishConfig(evaluations=1, drawn=200)
    chosen = Chooser(prices=prices, base=3, scores=scores, config=config, **settings).choose(budget, None)
    assert (chosen.arch, chosen.batch) == min(fitting, key=score)
    assert chosen.batch > 3 and memory(own, LONG, chosen.batch) > resolved.bounds[0].value
    assert not at_base or score(min(at_base, key=score)) > score((chosen.arch, chosen.batch))
    kept = sum(b.attention.kv_heads for b in chosen.arch.blocks if isinstance(b.attention, Attention))
    assert kept < sum(b.attention.kv_heads for b in own.blocks if isinstance(b.attention, Attention))


def test_a_workload_as_long_as_contexts_get() -> None:
    work = Workload.parse("batch=64,prompt=131072,weights=fp8,cache=fp8")
    assert dataclasses.asdict(work) == {"batch": 64, "prompt": 131072, "generate": 32, "weights": "fp8", "cache": "fp8"}
    assert work.computed == replace(work, weights="bf16", cache="bf16") and work.formats == "weights fp8, cache fp8"
