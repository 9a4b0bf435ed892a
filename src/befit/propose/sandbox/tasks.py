"""What befit does with a candidate's source inside the sandbox: build it, or just run it. How it is trained is in `fitting`.

A task is a module-level function (source, arguments, folder) -> plain dictionary. Names are LEMUR's:
`Net(in_shape, out_shape, prm, device)`, with `in_shape` = (N, channels, height, width) and `out_shape` = (classes,).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from befit.propose.network import Maker, run

TINY = """
from torch import nn
class Net(nn.Module):
    def __init__(self, in_shape, out_shape, prm, device):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_shape[1], 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.1),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, out_shape[0]))
    def forward(self, x):
        return self.body(x)
"""
"""A network of the contract, to warm up with."""


def execute(source: str, arguments: Mapping[str, Any], _folder: Path) -> Mapping[str, Any]:
    """Run the source; its answer is the dictionary that it calls `answer`."""
    return vars(run(source, arguments)).get("answer", {})


def inspect(source: str, arguments: Mapping[str, Any], _folder: Path) -> Mapping[str, Any]:
    """Build, run forward and backward on the meta device: no data, no memory, exact counts (`inspection.inspected`).

    Args:
        source: Defines `Net`.
        arguments: in_shape (N, channels, height, width), out_shape (classes,), prm (hyper-parameters); recipe, if the file's
            own training is to be tried too.

    Returns:
        params, flops of one image forward (2 for a multiply-add, as torch counts), and graph, the key of its operations.

    Raises:
        TrialFailed: The output has another shape than (N, classes), or nothing to train is in it (reason "invalid").
    """
    from befit.propose.inspection import inspected

    classes = arguments["out_shape"][0]
    made = Maker(source, arguments)
    return inspected(made, tuple(arguments["in_shape"]), classes, recipe=arguments.get("recipe", False))


def warm() -> None:
    """Import torch and use once what is imported when it is first used (2 to 5 seconds that no candidate pays again)."""
    import torch

    torch.set_num_threads(1)
    inspect(TINY, {"in_shape": (2, 3, 8, 8), "out_shape": (10,), "prm": {}}, Path())
