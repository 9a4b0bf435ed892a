"""The counter against torch's own: its FLOP counter, and the allocations that its profiler records."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from befit.arch.cell import cell_space
from befit.arch.task import ImageTask
from befit.errors import TrialFailed
from befit.vision.cell import cell
from befit.vision.count import Watch, count_module

TASK = ImageTask(channels=3, height=8, width=8, classes=5)


class Attentive(nn.Module):
    """Grouped convolution, layer norm, attention, a concatenation, an activation in place, a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 12, 2, stride=2)
        self.mix = nn.Conv2d(12, 12, 1, groups=4)
        self.norm = nn.LayerNorm(12)
        self.qkv = nn.Linear(12, 36)
        self.up = nn.Linear(24, 12)
        self.down = nn.Linear(12, 12)
        self.down.weight = nn.Parameter(self.down.weight[:, :12].clone())
        self.head = nn.Linear(12, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.mix(self.patch(images)), inplace=True).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 3, 4)).permute(2, 0, 3, 1, 4)
        x = torch.cat([x, F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)], -1)
        return self.head(self.down(self.up(x)).mean(1))


def plain() -> nn.Module:
    """Operators that need no scratch space on a CPU: 1x1 convolutions, pooling, a sum."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.narrow = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 3, 1, bias=False)
            self.head = nn.Linear(3, 5)

        def forward(self, images: Tensor) -> Tensor:
            x = images + self.narrow(F.relu(self.wide(images)).sigmoid())
            return self.head(F.avg_pool2d(x, 2).flatten(2).sum(-1))

    return Plain()


def small_cell(seed: int = 0) -> nn.Module:
    return cell(channels=4, cells=1).build(cell_space().sample(random.Random(seed)), TASK)


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5))


def batch_norm() -> nn.Module:
    """A norm that has no running statistics hands back those of the batch."""
    norm = nn.BatchNorm2d(8, track_running_stats=False)
    return nn.Sequential(nn.Conv2d(3, 8, 1), norm, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


NETWORKS = {
    "batch-norm": batch_norm,
    "attentive": Attentive,
    "plain": plain,
    "cell": small_cell,
    "convolutional": convolutional,
}


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_params_and_macs_are_torchs(build: Callable[[], nn.Module]) -> None:
    network = build().eval()
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        network.to("meta")(torch.zeros(1, 3, 8, 8, device="meta"))
    counts = count_module(build, TASK)
    assert counts.params == sum(weight.numel() for weight in network.parameters())
    assert 2 * counts.macs == flops.get_total_flops() > 0


def held(network: nn.Module, image: Tensor) -> list[int]:
    """What a forward allocates and frees, in order, as the profiler records it: bytes."""
    network(image)
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        network(image)
    assert profiled.profiler is not None
    results: Any = profiled.profiler.kineto_results
    events = [event for event in results.events() if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]


def test_memory_is_what_the_profiler_records() -> None:
    network = plain().eval()
    now = most = 0
    for change in held(network, torch.zeros(1, 3, 8, 8)):
        now += change
        most = max(most, now)
    weights, image = sum(weight.numel() for weight in network.parameters()), 3 * 8 * 8
    assert most > 0
    assert count_module(plain, TASK).memory_bytes == most + 4 * (weights + image)


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_memory_is_the_same_without_numbers_and_with_them(build: Callable[[], nn.Module]) -> None:
    network = build().eval()
    image, own = torch.randn(1, 3, 8, 8), [*network.parameters(), *network.buffers()]
    with torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        with Watch(image, besides=own) as watch:
            network(image)
        assert watch.now == image.nbytes  # nothing else is left
    assert count_module(build, TASK).memory_bytes == watch.peak + sum(tensor.nbytes for tensor in own)


def test_a_convolution_by_hand() -> None:
    counts = count_module(convolutional, TASK)
    assert counts.params == 3 * 8 * 9 + 8 + 288 * 5 + 5
    assert counts.macs == 36 * 8 * 27 + 288 * 5
    assert counts.memory_bytes == 4 * (counts.params + 3 * 64 + 2 * 288)  # image, convolution, ReLU


def test_buffers_are_memory_and_no_parameters() -> None:
    class Buffered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean = nn.Buffer(torch.zeros(3 * 64))
            self.head = nn.Linear(3 * 64, 5)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(images.flatten(1) - self.mean)

    counts = count_module(Buffered, TASK)
    assert counts.params == 192 * 5 + 5
    assert counts.memory_bytes == 4 * (counts.params + 192 + 192 + 192 + 5)


def test_a_network_that_needs_numbers_is_run_on_the_cpu() -> None:
    class Deciding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rates = [rate.item() for rate in torch.linspace(0, 0.1, 3)]
            self.head = nn.Linear(192, 5)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(images.flatten(1)) * (1 if images.sum() > 0 else 2)

    counts = count_module(Deciding, TASK)
    assert (counts.params, counts.macs) == (965, 960)


def test_counting_leaves_the_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    count_module(small_cell, TASK)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("build", [nn.Flatten, lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 4))])
def test_what_gives_no_logits_is_named(build: Callable[[], nn.Module]) -> None:
    with pytest.raises(TrialFailed, match=r"expected logits \(1, 5\)") as caught:
        count_module(build, TASK)
    assert caught.value.reason == "invalid"


def test_a_network_that_does_not_fit_tells_its_own_error() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        count_module(lambda: nn.Sequential(nn.Flatten(), nn.Linear(7, 5)), TASK)
