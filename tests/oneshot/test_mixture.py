"""A mixture with one-hot weights is the network of that cell; everything else is a weighted sum."""

import random

import pytest
import torch
from torch import Tensor, nn

from befit.arch.cell import EDGES, NAMES, OPS, cell_space, parse
from befit.arch.space import Arch
from befit.arch.task import ImageTask
from befit.errors import IllegalArch
from befit.oneshot.mixture import Mixed, Partial, all_skips, batch_statistics, cell_mixture
from befit.vision.cell import cell

TASK = ImageTask(channels=1, height=8, width=8, classes=3)


def one_hot(arch: Arch) -> dict[str, Tensor]:
    return {name: torch.tensor([float(op == arch[name]) for op in OPS]) for name in NAMES}


@pytest.mark.parametrize("seed", range(5))
def test_one_hot_weights_are_the_network_of_that_cell(seed: int) -> None:
    arch = cell_space().sample(random.Random(seed))
    mixture = cell_mixture(TASK, channels=4, cells=2)
    alone = cell(channels=4, cells=2).build(arch, TASK).train()
    shared, own = mixture.network.state_dict(), alone.state_dict()
    for name in own:
        parts = name.split(".")
        if "ops" in parts:  # stages.0.1.ops.edge_0_1.1.weight <- stages.0.1.edges.edge_0_1.options.3.1.weight
            edge = EDGES[[f"edge_{a}_{b}" for a, b in EDGES].index(parts[4])]
            option = OPS.index(str(arch[f"{edge[0]}->{edge[1]}"]))
            name_there = ".".join([*parts[:3], "edges", parts[4], "options", str(option), *parts[5:]])
        else:
            name_there = name
        if name_there in shared:  # norms have no running averages there, those of operations no scale
            own[name] = shared[name_there]
    alone.load_state_dict(own)
    images = torch.randn(6, 1, 8, 8)
    torch.testing.assert_close(mixture.network(images, one_hot(arch)), alone(images), rtol=1e-5, atol=1e-5)


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor, self.calls = factor, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.factor * x


def test_mixed_is_a_weighted_sum_without_what_weighs_nothing() -> None:
    options = [Times(1.0), Times(10.0), Times(100.0)]
    mixed, x = Mixed(options), torch.randn(2, 3, 4, 4)
    weight = torch.tensor([0.5, 0.0, 0.25], requires_grad=True)
    found = mixed(x, weight)
    torch.testing.assert_close(found, 25.5 * x)
    assert [option.calls for option in options] == [1, 0, 1]
    found.sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, torch.tensor([1.0, 0.0, 100.0]) * x.sum())
    assert not mixed(x, torch.zeros(3)).any()


def test_partial_mixes_the_first_channels_and_deals_them_out() -> None:
    partial, x = Partial(Mixed([Times(0.0), Times(-1.0)]), share=4), torch.randn(2, 8, 3, 3)
    found = partial(x, torch.tensor([0.0, 1.0]))
    wanted = torch.cat([-x[:, :2], x[:, 2:]], dim=1)[:, [0, 2, 4, 6, 1, 3, 5, 7]]
    assert torch.equal(found, wanted)


def test_partial_cells_have_fewer_weights_and_need_a_divisor() -> None:
    whole, quarter = (cell_mixture(TASK, channels=8, cells=1, partial=k).network for k in (1, 4))
    images, weights = torch.randn(4, 1, 8, 8), {name: torch.full((5,), 0.2) for name in NAMES}
    assert quarter(images, weights).shape == (4, 3)
    sizes = [sum(p.numel() for n, p in net.named_parameters() if "edges" in n) for net in (whole, quarter)]
    assert sizes[0] == 16 * sizes[1]
    with pytest.raises(IllegalArch, match="8 channels cannot be sent in 3 equal parts"):
        cell_mixture(TASK, channels=8, cells=1, partial=3)


def test_norms_use_the_batch_always_and_operations_do_not_scale() -> None:
    network = cell_mixture(TASK, channels=4, cells=1).network
    images, weights = torch.randn(4, 1, 8, 8), {name: torch.full((5,), 0.2) for name in NAMES}
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    trained, judged = network.train()(images, weights), network.eval()(images, weights)
    assert torch.equal(trained, judged)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    norms = {name: part for name, part in network.named_modules() if isinstance(part, nn.BatchNorm2d)}
    assert all((norm.weight is None) == ("edges" in name) for name, norm in norms.items())
    assert not list(network.buffers())
    lone = nn.BatchNorm2d(2)
    batch_statistics(lone)
    assert lone.weight is not None and lone.running_mean is None


def test_all_skips() -> None:
    skips = "|skip_connect~0|+|skip_connect~0|skip_connect~1|+|skip_connect~0|skip_connect~1|skip_connect~2|"
    assert all_skips(parse(skips))
    assert not all_skips(parse(skips.replace("skip_connect~2", "none~2")))
