"""A sub-net of a nested supernet is the blueprint's network on parts of the shared weights."""

import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from befit.arch.space import Arch, Choice, Space
from befit.arch.task import ImageTask
from befit.cost.images import Counts
from befit.errors import IllegalArch, UnsupportedModel
from befit.oneshot.nested import NestedSupernet, covering, extreme, view
from befit.oneshot.supernet import recalibrate
from befit.vision.blueprint import Blueprint
from befit.vision.mobile import mobile

TASK = ImageTask(channels=2, height=8, width=8, classes=3)
SPACE = Space(
    {
        "resolution": Choice(6, 8),
        "width": Choice(4, 6, 8),
        "depth": Choice(1, 2, 3),
        "kernel": Choice(3, 5, 7),
        "expansion": Choice(1, 2),
        "gate": Choice(False, True),
        "mixer": Choice("conv", "linear"),
        "rank": Choice(2, 3, when={"mixer": "linear"}),
    }
)


class Block(nn.Module):
    """An inverted residual with everything that can be chosen in it."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        width, kernel = int(arch["width"]), int(arch["kernel"])
        inner = width * int(arch["expansion"])
        self.expand = nn.Sequential(nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU())
        self.spatial = nn.Sequential(
            nn.Conv2d(inner, inner, kernel, padding=kernel // 2, groups=inner, bias=False), nn.BatchNorm2d(inner)
        )
        self.gate = nn.Conv2d(inner, inner, 1) if arch["gate"] else None
        self.project = nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.spatial(self.expand(x)))
        if self.gate is not None:
            y = y * self.gate(y.mean((2, 3), keepdim=True)).sigmoid()
        return x + self.project(y)


class Net(nn.Module):
    def __init__(self, arch: Arch, task: ImageTask) -> None:
        super().__init__()
        width = int(arch["width"])
        self.side = int(arch["resolution"])
        self.stem = nn.Conv2d(task.channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(Block(arch) for _ in range(int(arch["depth"])))
        self.mixer = nn.Conv2d(width, width, 1) if arch["mixer"] == "conv" else None
        self.down = nn.Linear(width, int(arch["rank"])) if arch["mixer"] == "linear" else None
        self.up = nn.Linear(int(arch["rank"]), width) if arch["mixer"] == "linear" else None
        self.head = nn.Linear(width, task.classes)
        self.register_buffer("scale", torch.full((), 0.5))
        self.register_buffer("offset", torch.ones(()), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(F.interpolate(images, (self.side, self.side), mode="bilinear"))
        for block in self.blocks:
            x = block(x)
        x = (x if self.mixer is None else self.mixer(x)).mean((2, 3))
        if self.down is not None and self.up is not None:
            x = self.up(self.down(x))
        return self.head(x) * self.scale + self.offset


def blueprint(space: Space = SPACE, build: Callable[[Arch, ImageTask], nn.Module] = Net) -> Blueprint:
    def count(arch: Arch, task: ImageTask) -> Counts:
        return Counts(params=sum(w.numel() for w in build(arch, task).parameters()), macs=0, memory_bytes=0)

    return Blueprint(name="own", space=space, build=build, count=count)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(12, 2, 8, 8, generator=torch.Generator().manual_seed(0))


def test_extracted_network_answers_as_the_supernet_does(images: Tensor) -> None:
    net = NestedSupernet(blueprint(), TASK)
    rng = random.Random(0)
    for arch in [SPACE.sample(rng) for _ in range(30)]:
        recalibrate(net, arch, [images[:4], images[4:8]])
        own = net.extract(arch)
        assert not own.training and not net.training
        with torch.no_grad():
            assert torch.allclose(own(images), net(images, arch), atol=1e-5)
            own.train()
            net.train()
            assert torch.allclose(own(images), net(images, arch), atol=1e-5)


def test_weights_are_the_first_channels_and_the_centres_of_kernels() -> None:
    net = NestedSupernet(blueprint(), TASK)
    assert net.largest is not None and net.smallest is not None
    whole = net.extract(net.largest).state_dict()
    least = net.extract(net.smallest).state_dict()
    assert torch.equal(least["stem.weight"], whole["stem.weight"][:4])
    assert torch.equal(least["blocks.0.spatial.0.weight"], whole["blocks.0.spatial.0.weight"][:4, :, 2:5, 2:5])
    assert torch.equal(least["blocks.0.project.weight"], whole["blocks.0.project.weight"][:4, :4])
    assert "blocks.1.project.weight" not in least and whole["scale"] == 0.5
    ranked = SPACE.arch({**net.smallest, "mixer": "linear", "rank": 2})
    assert {"down.weight", "up.weight"} <= set(net.extract(ranked).state_dict())


def test_statistics_of_one_sub_net_do_not_depend_on_others(images: Tensor) -> None:
    net = NestedSupernet(blueprint(), TASK)
    assert net.largest is not None and net.smallest is not None
    recalibrate(net, net.smallest, [images])
    first = net.extract(net.smallest)(images)
    recalibrate(net, net.largest, [images * 3])
    recalibrate(net, net.smallest, [images])
    assert torch.equal(first, net.extract(net.smallest)(images))


def test_gradients_reach_the_part_and_nothing_else(images: Tensor) -> None:
    net = NestedSupernet(blueprint(), TASK).train()
    assert net.smallest is not None
    before = {name: tensor.clone() for name, tensor in net.named_buffers()}
    net(images, net.smallest).square().sum().backward()
    grad = net.weights["blocks/0/spatial/0/weight"].grad
    assert grad is not None and grad[:4, :, 2:5, 2:5].abs().sum() > 0
    grad[:4, :, 2:5, 2:5] = 0
    assert grad.abs().sum() == 0 and net.weights["blocks/1/project/weight"].grad is None
    assert all(torch.equal(before[name], tensor) for name, tensor in net.named_buffers())


def test_mobile_networks_of_all_skeletons_share_weights() -> None:
    task = ImageTask(channels=3, height=16, width=16, classes=3)
    small = mobile(resolutions=(16, 24), widths=(0.25, 0.5), expansions=(1.0, 2.0, 3.0), depth=2)
    net, rng = NestedSupernet(small, task), random.Random(0)
    pictures = torch.randn(6, 3, 16, 16)
    seen = set[object]()
    for arch in [small.space.sample(rng) for _ in range(6)]:
        seen.add(arch["skeleton"])
        recalibrate(net, arch, [pictures])
        own = net.extract(arch)
        assert sum(weight.numel() for weight in own.parameters()) == small.count(arch, task).params
        with torch.no_grad():
            assert torch.allclose(own(pictures), net(pictures, arch), atol=1e-5)
    assert len(seen) > 1


def test_weights_survive_saving(images: Tensor) -> None:
    torch.manual_seed(1)
    net, other = NestedSupernet(blueprint(), TASK), NestedSupernet(blueprint(), TASK)
    arch = SPACE.sample(random.Random(3))
    recalibrate(net, arch, [images])
    other.eval()(images, arch)  # a template made before the weights came
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(images, arch), net(images, arch))


def test_ends_and_cover() -> None:
    assert extreme(SPACE, most=True).to_json() == {
        "resolution": 8, "width": 8, "depth": 3, "kernel": 7, "expansion": 2, "gate": True, "mixer": "linear", "rank": 3,
    }  # fmt: skip
    assert extreme(SPACE, most=False)["mixer"] == "conv" and "rank" not in extreme(SPACE, most=False)
    ends = extreme(SPACE, most=True), extreme(SPACE, most=False)
    archs = list(covering(SPACE, *ends))
    named = {(name, option) for name in ("gate", "mixer") for option in SPACE.choices[name].options}
    assert archs[:2] == list(ends) and {pair for arch in archs for pair in arch.items()} >= named
    assert all(map(SPACE.contains, archs)) and len(archs) == 4
    ruled = Space({"a": Choice(1, 2), "b": Choice(1, 2)}, legal=lambda arch: arch["a"] != arch["b"])
    with pytest.raises(IllegalArch, match="name the largest"):
        extreme(ruled, most=True)


def test_shapes_that_cross_share_what_they_have_in_common() -> None:
    crossed = Space({"a": Choice("low", "high")})

    def build(arch: Arch, task: ImageTask) -> nn.Module:
        del task
        return nn.Linear(2, 4) if arch["a"] == "low" else nn.Linear(3, 2)

    net = NestedSupernet(blueprint(crossed, build), TASK)
    low, high = (net.extract(crossed.arch({"a": a})).state_dict()["weight"] for a in ("low", "high"))
    assert low.shape == (4, 2) and high.shape == (2, 3) and torch.equal(low[:2], high[:, :2])
    assert torch.isfinite(net.weights["weight"]).all()


def test_parts_that_are_no_parts_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="no part"):
        view(torch.zeros(4, 3), torch.Size((3, 4)), "x")
    named = Space({"a": Choice(1, 2), "b": Choice(1, 2)})

    def renamed(arch: Arch, task: ImageTask) -> nn.Module:
        del task
        return nn.ModuleDict({f"part{arch['a']}{arch['b']}": nn.Linear(1, 1)})

    net = NestedSupernet(blueprint(named, renamed), TASK)
    with pytest.raises(UnsupportedModel, match="keep their names"):
        net.part(named.arch({"a": 1, "b": 2}))
