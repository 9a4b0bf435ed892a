"""Small networks with choices, as a user would write them; in a module of their own, so that worker processes can import them."""

from torch import Tensor, nn

from befit.arch.space import Choice
from befit.arch.task import ImageTask
from befit.vision.data import Images, load_images


class Net(nn.Module):
    """An MLP on small images."""

    def __init__(
        self,
        task: ImageTask,
        width: int = Choice(8, 16, 32),  # type: ignore[assignment]
        depth: int = Choice(1, 2),  # type: ignore[assignment]
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten(), nn.Linear(task.channels * task.height * task.width, width)]
        for _ in range(depth - 1):
            layers += [nn.ReLU(), nn.Linear(width, width)]
        self.layers = nn.Sequential(*layers, nn.ReLU(), nn.Linear(width, task.classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def digits(share: float = 0.3) -> Images:
    """The embedded digits with a part of their training images."""
    return load_images("digits").subset(share)


def params(width: int, depth: int) -> int:
    """By hand."""
    return 64 * width + width + (depth - 1) * (width * width + width) + width * 10 + 10
