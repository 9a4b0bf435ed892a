"""Expected costs against the sum over a whole space."""

import itertools
import random

import pytest
import torch
from torch import Tensor

from befit.arch.cell import cell_space
from befit.arch.space import Arch, Choice, Space
from befit.arch.task import ImageTask
from befit.budget import Budget
from befit.cost.images import count_cell
from befit.oneshot.expected import Pressure, estimated, expected, table_of
from befit.oneshot.projection import Limits

TASK = ImageTask(channels=1, height=8, width=8, classes=10)


def costs(arch: Arch) -> dict[str, float]:
    return count_cell(arch, TASK, channels=4, cells=1).costs()


def soft(space: Space, seed: int) -> tuple[list[Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    own = [torch.randn(len(c.options), generator=generator).double().requires_grad_() for c in space.choices.values()]
    return own, {name: one.softmax(0) for name, one in zip(space.choices, own, strict=True)}


@pytest.mark.parametrize("cost", ["params", "macs"])
def test_additive_costs_have_their_exact_mean_and_gradient(cost: str) -> None:
    space = cell_space()
    own, probabilities = soft(space, 0)
    table = table_of(space, lambda arch: costs(arch)[cost])
    assert table is not None
    found = expected(table, probabilities)
    joint = torch.ones((), dtype=torch.float64)
    for p in probabilities.values():  # (5, 5, 5, 5, 5, 5), the last choice changing fastest, as `enumerate` has it
        joint = joint.unsqueeze(-1) * p
    prices = torch.tensor([costs(arch)[cost] for arch in space.enumerate()], dtype=torch.float64)
    wanted = joint.flatten() @ prices
    torch.testing.assert_close(found, wanted)
    for slope, truth in zip(
        *(torch.autograd.grad(one, own, retain_graph=True) for one in (found, wanted)), strict=True
    ):
        torch.testing.assert_close(slope, truth)


def test_memory_does_not_add_up() -> None:
    assert table_of(cell_space(), lambda arch: costs(arch)["memory_bytes"]) is None


SMALL = Space({"op": Choice("a", "b"), "kernel": Choice(3, 5, when={"op": "b"}), "width": Choice(1, 2, 4)})


def product(arch: Arch) -> float:
    return float(int(arch["width"]) * int(arch.get("kernel", 1)) ** 2)


def test_a_price_of_any_form_is_estimated_without_bias() -> None:
    assert table_of(SMALL, product) is None
    own, probabilities = soft(SMALL, 1)
    wanted = torch.zeros((), dtype=torch.float64)
    for op, kernel, width in itertools.product(range(2), range(2), range(3)):
        chance = probabilities["op"][op] * probabilities["kernel"][kernel] * probabilities["width"][width]
        values = {"op": "ab"[op], "kernel": (3, 5)[kernel], "width": (1, 2, 4)[width]}
        wanted = wanted + chance * product(SMALL.arch({n: v for n, v in values.items() if op or n != "kernel"}))
    truth = torch.cat(torch.autograd.grad(wanted, own, retain_graph=True))
    rows = []
    for seed in range(2000):
        value = estimated(SMALL, product, probabilities, seed)
        slope = torch.cat(torch.autograd.grad(value, own, retain_graph=True, materialize_grads=True))
        rows.append(torch.cat([value.detach()[None], slope]))
    found = torch.stack(rows)
    error = (found.mean(0) - torch.cat([wanted.detach()[None], truth])).abs()
    assert bool((error < 4.5 * found.std(0) / 2000**0.5 + 1e-9).all())


def test_pressure_is_0_inside_and_grows_with_what_is_over() -> None:
    space, level = cell_space(), {name: torch.full((5,), 0.2) for name in cell_space().choices}
    mean = sum(costs(arch)["params"] for arch in space.enumerate()) / 15_625
    loose, tight = (
        Pressure(space, Limits(price=costs, budget=Budget.parse(f"params<={share * mean!r}")), 3.0)
        for share in (1.01, 0.5)
    )
    assert float(loose(level, 0)) == 0
    assert float(tight(level, 0)) == pytest.approx(3.0)  # twice the bound
    told = tight.costs(level, 0)
    assert [float(cost) for cost in told.values()] == pytest.approx([mean])
    assert float(Pressure(space, Limits(price=costs))(level, 0)) == 0
    assert loose.told() != tight.told()


def test_pressure_presses_through_a_cost_that_does_not_add_up() -> None:
    space, rng = cell_space(), random.Random(0)
    own, probabilities = soft(space, rng.randrange(99))
    press = Pressure(space, Limits(price=costs, budget=Budget.parse("memory<=1KiB")))
    slopes = torch.autograd.grad(press(probabilities, 0), own)
    assert any(slope.any() for slope in slopes)
