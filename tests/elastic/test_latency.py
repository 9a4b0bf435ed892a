"""Prices of members against a clock that is known: exact where time is work, never falling where it is noise."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
from tests.elastic import shapes

import members
import tiny
from befit.arch.decoder import Attention, DecoderShape, Ffn, Mamba
from befit.arch.member import WIDTHS, Member, cut_shape
from befit.cost.count import count
from befit.cost.device import this_device
from befit.cost.workload import Workload
from befit.elastic import baselines
from befit.elastic.budgets import fit
from befit.elastic.latency import FITTED, HELD_OUT, MemberLatency, measure_member, measure_prices, prices_from
from befit.elastic.space import NestedSpace, default_space
from befit.errors import BadTable
from befit.lm.timing import Effort

WORK = Workload(batch=1, prompt=8, generate=4, weights="fp32", cache="fp32")
CPU = this_device("cpu")
SPACES = {
    "hybrid": default_space(shapes.HYBRID, (0, 1, 2, 4, 5, 6)),
    "hybrid without FFN": default_space(shapes.WITHOUT_FFN, (1, 3)),
    "dense with windows": default_space(shapes.DENSE, (1, 2, 3)),
    "own FFN widths": default_space(shapes.HYBRID, (6, 3), ffn_per_layer=True),
    "attention can go": default_space(shapes.hybrid("*M-*M-"), (0, 3, 1)),
    "nothing to choose": default_space(shapes.hybrid("M*-"), (), least=1.0),
}


def work_of(shape: DecoderShape, member: Member) -> float:
    """A clock that knows only work: products of widths, and a start for every layer."""
    inner, query = member.mamba_heads * member.mamba_head_dim, member.kv_heads * member.heads_per_kv
    ms = 1.0 + 0.002 * member.hidden
    for layer in member.layers:
        block = shape.arch.blocks[layer]
        if isinstance(block.attention, Attention):
            ms += (
                0.3
                + 1e-3 * member.hidden * (query + member.kv_heads)
                + (0.01 if block.attention.window else 0.02) * query
            )
        if isinstance(block.attention, Mamba):
            ms += 0.4 + 1e-5 * member.hidden * (2 * inner + 4 * member.state) + 2e-5 * inner * member.state
        if isinstance(block.ffn, Ffn):
            ms += 0.1 + 2e-5 * member.hidden * member.ffn_of(layer)
    return ms


def params_of(shape: DecoderShape, member: Member) -> float:
    """A clock that runs with all parameters, small ones too: those of convolutions, norms and time steps."""
    own = cut_shape(shape, member)
    return 1.0 + 1e-5 * count(own, own.arch, WORK).params


def steady(space: NestedSpace, members_: Sequence[Member]) -> list[float]:
    return [work_of(space.shape, member) for member in members_]


def counting(space: NestedSpace, members_: Sequence[Member]) -> list[float]:
    return [params_of(space.shape, member) for member in members_]


def noisy(space: NestedSpace, members_: Sequence[Member]) -> list[float]:
    draw = random.Random(1)
    return [ms * draw.uniform(0.7, 1.3) for ms in steady(space, members_)]


@cache
def table(name: str, clock: Any = steady) -> MemberLatency:
    return prices_from(SPACES[name], WORK, CPU, lambda members_: clock(SPACES[name], members_))


def choices(space: NestedSpace, number: int = 20) -> list[dict[str, int]]:
    draw = random.Random(0)
    return [{axis: draw.randrange(len(own)) for axis, own in space.axes.items()} for _ in range(number)]


@pytest.mark.parametrize("name", SPACES)
def test_where_time_is_work_every_member_is_priced_exactly(name: str) -> None:
    space, price = SPACES[name], table(name)
    for choice in [*choices(space), {}]:
        member = space.member(choice)
        assert price(member) == pytest.approx(work_of(space.shape, member), rel=1e-9)
    assert [one.error for one in price.held_out] == pytest.approx([0] * len(price.held_out), abs=1e-9)


@pytest.mark.parametrize("name", SPACES)
def test_small_tensors_that_are_no_term_matter_little(name: str) -> None:
    space, price = SPACES[name], table(name, counting)
    for member in map(space.member, choices(space)):
        assert price(member) == pytest.approx(params_of(space.shape, member), rel=3e-3)


@pytest.mark.parametrize("name", SPACES)
def test_few_members_are_measured_all_at_once_and_each_can_generate(name: str) -> None:
    space, asked = SPACES[name], list[list[Member]]()

    def clock(members_: Sequence[Member]) -> list[float]:
        asked.append(list(members_))
        return steady(space, members_)

    found = prices_from(space, WORK, CPU, clock)
    (measured,) = asked
    assert len(measured) == len(set(measured)) <= FITTED + HELD_OUT
    tested = {one.member for one in found.held_out}
    assert tested <= set(measured) and bool(tested) == (name != "nothing to choose")
    assert len(measured) - len(tested) == len(set(measured) - tested) <= FITTED
    for member in measured:
        blocks = [space.shape.arch.blocks[layer] for layer in member.layers]
        assert any(isinstance(block.attention, Attention) for block in blocks)
        assert isinstance(member.ffn, int)


def test_noise_averages_out() -> None:
    """Thirty percent up and down in every measurement, and less than half of that is left of it in prices."""
    space, price = SPACES["hybrid"], table("hybrid", noisy)
    errors = [price(member) / work_of(space.shape, member) - 1 for member in map(space.member, choices(space))]
    assert sum(map(abs, errors)) / len(errors) < 0.1
    assert price.median_error() > 0


@pytest.mark.parametrize("name", SPACES)
def test_nothing_wider_or_deeper_costs_less_however_noisy_the_clock(name: str) -> None:
    space, price = SPACES[name], table(name, noisy)
    for choice in choices(space, 10):
        for axis, own in space.axes.items():
            prices = [price(space.member(choice | {axis: index})) for index in range(len(own))]
            assert all(wider >= narrower - 1e-9 for wider, narrower in pairwise(prices)), axis


@pytest.mark.parametrize("clock", [steady, noisy])
def test_prices_add_up_over_sub_blocks(clock: Any) -> None:
    space = SPACES["hybrid"]
    price, shape = table("hybrid", clock), space.shape
    for choice in choices(space):
        member = space.member(choice)
        alone = {layer: price(replace(member, layers=(layer,))) for layer in range(shape.layers)}
        fixed = price.rates["always"] + price.rates["always x hidden"] * member.hidden
        assert price(member) == pytest.approx(fixed + sum(alone[layer] - fixed for layer in member.layers))
    narrow = {axis: len(own) - 1 for axis, own in space.axes.items() if axis in WIDTHS and axis != "hidden"}
    both, whole = space.member(narrow), space.whole
    saved = sum(price(whole) - price(space.member({axis: narrow[axis] for axis in group})) for group in GROUPS)
    assert price(whole) - price(both) == pytest.approx(saved)


GROUPS = [("kv_heads", "heads_per_kv"), ("mamba_heads", "mamba_head_dim", "state"), ("ffn",)]


def test_budgets_are_met_and_baselines_find_their_members() -> None:
    space, price = SPACES["hybrid"], table("hybrid", noisy)
    limit = 0.7 * price(space.whole)
    scores = {axis: [0.1 * index for index in range(len(own))] for axis, own in space.axes.items()}
    found = [fit(space, {}, price, limit), baselines.additive(space, price, limit, scores)]
    assert all(0.99 * limit <= price(member) <= limit for member in found)


def test_ffns_of_different_widths_are_priced_one_by_one() -> None:
    space, price = SPACES["own FFN widths"], table("own FFN widths")
    member = space.member({"ffn.1": 8, "ffn.8": 3})
    assert isinstance(member.ffn, tuple)
    assert price(member) == pytest.approx(work_of(space.shape, member), rel=1e-9)


def test_json_is_strict_and_loses_nothing() -> None:
    price = table("dense with windows", noisy)
    told = json.loads(json.dumps(price.to_json()))
    again = MemberLatency.from_json(told)
    assert again == price
    assert again(SPACES["dense with windows"].smallest) == price(SPACES["dense with windows"].smallest)
    held_out = [{**told["held_out"][0], "more": 1}]
    for wrong in (told | {"more": 1}, {k: v for k, v in told.items() if k != "rates"}, told | {"held_out": held_out}):
        with pytest.raises(BadTable, match="expected exactly the keys"):
            MemberLatency.from_json(wrong)
    with pytest.raises(BadTable, match=r"rates must be numbers of at least 0, got \{'always': -1.0\}"):
        MemberLatency.from_json(told | {"rates": told["rates"] | {"always": -1.0}})


@pytest.mark.parametrize("family", ["nemotron_h", "llama"])
def test_a_real_clock_gives_prices(family: str) -> None:
    parent = members.parent_of(tiny.config(family, 4))
    space, effort = default_space(parent.net.shape, (1, 3), options=3), Effort(repeats=1, seconds=0.0)
    price = measure_prices(parent.net, parent.config, parent.weights, space, WORK, CPU, effort=effort)
    assert 0 < price(space.smallest) <= price(space.whole) < 60_000
    assert all(0 < one.measured_ms < 60_000 for one in price.held_out) and price.median_error() >= 0
    assert 0 < measure_member(parent.net, parent.config, parent.weights, space.smallest, WORK, CPU, effort) < 60_000
