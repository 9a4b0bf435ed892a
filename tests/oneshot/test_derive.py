"""From images to a cell that keeps its budget."""

from pathlib import Path

import pytest
import torch

from befit.arch.cell import cell_space
from befit.arch.space import Arch
from befit.budget import Budget
from befit.cost.images import count_cell
from befit.errors import Infeasible
from befit.oneshot.derive import derive, finalists, rounded
from befit.oneshot.method import Gdas
from befit.oneshot.mixture import Mixture, cell_mixture
from befit.oneshot.projection import Limits, score_of
from befit.oneshot.relax import search
from befit.oneshot.relaxed import RelaxConfig
from befit.vision.cell import cell
from befit.vision.data import Images, from_arrays

CONFIG = RelaxConfig(epochs=2, batch=16, arch_lr=0.1)


def images() -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 255, (64, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return from_arrays(pixels, [0, 1] * 32)


def cells(data: Images) -> Mixture:
    torch.manual_seed(0)
    return cell_mixture(data.task, channels=4, cells=1)


def limits(data: Images, budget: str | None) -> Limits:
    def price(arch: Arch) -> dict[str, float]:
        return count_cell(arch, data.task, channels=4, cells=1).costs()

    return Limits(price=price, budget=None if budget is None else Budget.parse(budget))


def test_the_derived_cell_is_the_most_probable_inside_the_budget(tmp_path: Path) -> None:
    data = images()
    bound = limits(data, "params<=5000, memory<=30KiB")
    found = derive(cells(data), data, bound, method=Gdas(), folder=tmp_path, config=CONFIG)
    inside = {a: score_of(cell_space(), found.scores, a) for a in cell_space().enumerate() if bound.met(bound.price(a))}
    assert 0 < len(inside) < 15_625
    assert found.score == pytest.approx(max(inside.values())) and found.arch in inside and found.exact
    assert found.wished >= found.score
    built = cell(channels=4, cells=1).build(found.arch, data.task)
    assert found.costs["params"] == sum(p.numel() for p in built.parameters()) <= 5000
    assert found.epochs == 2 == len(found.history) and found.entropy == found.history[-1].entropy
    assert set(found.history[-1].costs) == {"params", "memory_bytes"}
    best = finalists(cell_space(), found, bound, 5)
    keys = {cell_space().key(arch) for arch in best}
    assert best[0] == found.arch and len(keys) == 5
    above = [arch for arch, score in inside.items() if score > inside[best[-1]]]
    assert {cell_space().key(arch) for arch in above} <= keys
    assert [inside[a] for a in best] == sorted((inside[a] for a in best), reverse=True)


def test_an_impossible_budget_is_told_before_any_training(tmp_path: Path) -> None:
    data = images()
    with pytest.raises(Infeasible, match="none of the 15,625 archs of the space meets params<=100") as told:
        derive(cells(data), data, limits(data, "params<=100"), method=Gdas(), folder=tmp_path, config=CONFIG)
    assert told.value.nearest["params"] == min(limits(data, None).price(a)["params"] for a in cell_space().enumerate())
    assert not list(tmp_path.iterdir())


def test_a_collapse_is_told(tmp_path: Path) -> None:
    data = images()
    own = cells(data)
    found = search(own, Gdas(), data, CONFIG, tmp_path)
    skips = {name: tuple(-0.1 if k == 1 else -3.0 for k in range(5)) for name in found.scores}
    for scores, collapsed in ((skips, True), (skips | {"0->1": (-3.0, -3.0, -3.0, -0.1, -3.0)}, False)):
        told = type(found)(scores=scores, history=found.history, steps=found.steps, seconds=found.seconds)
        assert rounded(own, told, limits(data, None)).collapsed == collapsed
