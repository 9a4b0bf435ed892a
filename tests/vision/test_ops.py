"""Operations against the same computed by hand; the skeleton against its documented shapes."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from befit.arch.cell import OPS
from befit.arch.task import ImageTask
from befit.errors import IllegalArch
from befit.vision.ops import Reduction, Skeleton, op


@pytest.mark.parametrize("name", OPS)
def test_every_operation_keeps_the_shape(name: str) -> None:
    x = torch.randn(2, 6, 5, 4)
    assert op(name, 6)(x).shape == x.shape


def test_an_unknown_operation_is_refused() -> None:
    with pytest.raises(IllegalArch, match="max_pool"):
        op("max_pool", 4)


def test_the_pool_leaves_padding_out_of_the_mean() -> None:
    pooled = op("avg_pool_3x3", 1)(torch.ones(1, 1, 4, 4))
    assert torch.equal(pooled, torch.ones(1, 1, 4, 4))


def test_a_convolution_is_relu_then_convolution_then_norm() -> None:
    module = op("nor_conv_3x3", 4).eval()
    (weight,) = [p for p in module.parameters() if p.dim() == 4]
    norm = next(part for part in module if isinstance(part, nn.BatchNorm2d))  # pyright: ignore[reportGeneralTypeIssues]
    nn.init.uniform_(norm.weight)
    nn.init.uniform_(norm.bias)
    x = torch.randn(2, 4, 6, 6)
    expected = F.conv2d(x.clamp(min=0), weight, padding=1) / (1 + norm.eps) ** 0.5
    expected = expected * norm.weight[:, None, None] + norm.bias[:, None, None]
    assert torch.allclose(module(x), expected, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 5), (1, 1)])
def test_a_reduction_halves_any_size(height: int, width: int) -> None:
    reduced = Reduction(4, 8)(torch.randn(2, 4, height, width))
    assert reduced.shape == (2, 8, (height + 1) // 2, (width + 1) // 2)


def test_the_skeleton_takes_any_cells_and_tells_them_what_it_is_told() -> None:
    class Scale(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(channels, 1, 1))

        def forward(self, x: Tensor, told: float) -> Tensor:
            return x * self.scale * told

    skeleton = Skeleton(ImageTask(channels=1, height=8, width=8, classes=3), Scale, channels=4, cells=2).eval()
    images = torch.randn(2, 1, 8, 8)
    assert skeleton(images, 1.0).shape == (2, 3)
    assert not torch.allclose(skeleton(images, 1.0), skeleton(images, 0.5))
    assert [len(stage.scale) for stage in (stage[0] for stage in skeleton.stages)] == [4, 8, 16]  # pyright: ignore
