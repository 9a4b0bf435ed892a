"""What befit does with a candidate's source inside the sandbox: build it, train it, or just run it.

A task is a module-level function (source, arguments, folder) -> plain dictionary. Names are LEMUR's:
`Net(in_shape, out_shape, prm, device)`, with `in_shape` = (N, channels, height, width) and `out_shape` = (classes,).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from befit.propose.network import Maker, network, run
from befit.propose.sandbox.answers import ARRAYS

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


def train(source: str, arguments: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """Train on what was given and leave predictions; labels to judge them by are not here.

    Reads train_images.npy (N, C, H, W) float32, train_labels.npy (N) int64 and test_images.npy; leaves `logits` (N, classes)
    float32.

    Args:
        source: Defines `Net`.
        arguments: in_shape, out_shape, prm (lr and momentum are used), epochs, batch, seed, device.
        folder: The candidate's own.

    Returns:
        loss of the last step, a remark that no score is made of.
    """
    import numpy as np
    import torch
    from safetensors.torch import save_file
    from torch.nn.functional import cross_entropy

    torch.manual_seed(arguments["seed"])
    device, prm = arguments["device"], arguments["prm"]
    images, labels, unseen = (
        torch.from_numpy(np.load(folder / f"{name}.npy", allow_pickle=False)).to(device)
        for name in ("train_images", "train_labels", "test_images")
    )
    net = network(source, arguments, device).to(device).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=prm.get("lr", 0.1), momentum=prm.get("momentum", 0.9))
    loss = torch.zeros(())
    for _ in range(arguments["epochs"]):
        for chosen in torch.randperm(len(images), device=device).split(arguments["batch"]):
            loss = cross_entropy(net(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        logits = torch.cat([net.eval()(part) for part in unseen.split(arguments["batch"])])
    save_file({"logits": logits.float().cpu().contiguous()}, folder / ARRAYS)
    return {"loss": float(loss)} if loss.isfinite() else {}


def warm() -> None:
    """Import torch and use once what is imported when it is first used (2 to 5 seconds that no candidate pays again)."""
    import torch

    torch.set_num_threads(1)
    inspect(TINY, {"in_shape": (2, 3, 8, 8), "out_shape": (10,), "prm": {}}, Path())
