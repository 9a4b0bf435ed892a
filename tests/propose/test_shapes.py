"""Shapes from memory are those that real tensors have."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from befit.propose.shapes import Shapes

OPERATIONS: list[Callable[[Tensor], Any]] = [
    lambda x: x + 1,
    lambda x: x + 1.5,
    lambda x: x * True,
    lambda x: x > 0,
    lambda x: x.double(),
    lambda x: x.int() + 1,
    lambda x: x.mean((2, 3)),
    lambda x: x.mean((2, 3), keepdim=True),
    lambda x: x.transpose(1, 2) * 2,
    lambda x: x.permute(0, 2, 3, 1).contiguous(),
    lambda x: x.contiguous(memory_format=torch.channels_last) * 2,
    F.gelu,
    lambda x: F.conv2d(x, torch.ones(4, 3, 3, 3, device=x.device)),
    lambda x: F.conv2d(x, torch.ones(4, 3, 3, 3, device=x.device), stride=2),
    lambda x: F.max_pool2d(x, 2, return_indices=True),
    lambda x: F.layer_norm(x, (8,)),
    lambda x: F.group_norm(x, 3),
    lambda x: x.flatten(1) @ torch.ones(192, 5, device=x.device),
    lambda x: torch.cat([x, x], 1),
    lambda x: torch.cat([x, x], 2),
    lambda x: x.chunk(3, 1),
    lambda x: x.sort(-1),
    lambda x: torch.fft.rfft2(x).abs(),
    lambda x: x.softmax(-1),
    lambda x: x[:, :1] + x,
    lambda x: (x * 2).relu_(),
    torch.rand_like,
    lambda x: F.interpolate(x, scale_factor=2.0),
]


def forms(result: Any) -> list[tuple[Any, ...]]:
    return [(one.shape, one.stride(), one.dtype) for one in tree_leaves(result) if isinstance(one, Tensor)]


def test_what_is_remembered_is_what_is_true() -> None:
    """All operations twice with one memory, on two shapes; real tensors tell the truth."""
    shapes = Shapes()
    for _ in range(2):
        for size in ((2, 3, 8, 8), (3, 3, 8, 8)):
            for place, run in enumerate(OPERATIONS):
                with shapes:
                    found = run(torch.empty(size, device="meta"))
                assert forms(found) == forms(run(torch.zeros(size))), place


class _Calls(TorchDispatchMode):
    """Counts operators that are really worked out: those that reach it from the memory above it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.__name__ not in ("empty_strided.default", "detach.default")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("device", "saved"), [("meta", True), ("cpu", False)])
def test_a_second_time_costs_nothing_and_numbers_are_never_remembered(device: str, saved: bool) -> None:
    x = torch.ones(2, 3, 8, 8, device=device)
    counts, shapes = list[int](), Shapes()
    for value in (1.0, 2.0):
        with _Calls() as calls, shapes:
            y = F.gelu(x * value) * 3
        counts.append(calls.count)
        if not saved:
            assert torch.equal(y, F.gelu(x * value) * 3)
    with _Calls() as calls, shapes:
        y = F.gelu(x * 1.0) * 3
    counts.append(calls.count)
    assert y.device.type == device
    assert counts == ([3, 1, 0] if saved else [3, 3, 3])  # 2.0 is another multiplication than 1.0


def test_tensors_from_nothing_live_where_they_are_asked_for() -> None:
    with Shapes():
        for device in ("meta", "cpu", "meta", "cpu"):
            assert torch.arange(5, device=device).device.type == device
        assert torch.arange(5).tolist() == torch.arange(5).tolist() == [0, 1, 2, 3, 4]


def test_memory_that_is_shared_stays_shared() -> None:
    shapes = Shapes()
    x = torch.empty(2, 3, device="meta")
    for _ in range(2):
        with shapes:
            y = x.view(6)
            z = x.add_(1)
        assert y.untyped_storage()._cdata == x.untyped_storage()._cdata and z is x


def test_gradients_have_the_shape_of_their_weights() -> None:
    with torch.device("meta"):
        blocks = [nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU()) for _ in range(3)]
        network, images = nn.Sequential(*blocks), torch.empty(4, 8)
    with Shapes():
        network(images).sum().backward()
    assert all(one.grad is not None and one.grad.shape == one.shape for one in network.parameters())
