"""Inside the sandbox: train a candidate on images and label others. What comes out are logits, and weights if they are wanted.

Labels of the images to be labelled never enter, so nothing that runs here can know its score. In the network track befit
trains, by the recipe of `befit.vision.training`; in the recipe track the file's own `train_setup` and `learn` do.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from befit.errors import TrialFailed
from befit.propose.network import Maker
from befit.propose.sandbox.answers import ARRAYS
from befit.propose.sandbox.candidate import ready
from befit.vision.data import Images, Sealed, Split
from befit.vision.training import EVALUATED, TrainConfig, augmentation, augmented
from befit.vision.training import fit as fit_weights

UNSEEN = ("validation", "test")
"""Images that are labelled: those of which there is a file NAME_images.npy."""


def fit(source: str, arguments: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """Train `Net` on train_images.npy and train_labels.npy, then label the images of `UNSEEN` that there are.

    The logits, float32 (N, classes), and the weights' bytes go into a file; there is nothing else to say.

    Args:
        source: Defines `Net`.
        arguments: in_shape, out_shape, prm; mean and std of each channel; training (fields of `TrainConfig`); seed, device;
            recipe (whether the file trains itself); keep (whether the weights are wanted, in the order of `state`).
        folder: The candidate's own.

    Raises:
        TrialFailed: The loss left the numbers, the memory is full, time is over.
    """
    device, seed = torch.device(arguments["device"]), arguments["seed"]
    if device.type == "cuda":
        start_gpu(folder, arguments.get("gpu_bytes", 0))
    torch.manual_seed(seed)
    images = _images(folder, arguments)
    config = TrainConfig(**arguments["training"])
    made = Maker(source, arguments)
    network = made(device).to(device)
    if any(map(torch.nn.parameter.is_lazy, [*network.parameters(), *network.buffers()])):
        _run_once(network, arguments, device)
    if arguments["recipe"]:
        _learn(network, made.prm, images, config, seed)
    else:
        fit_weights(network, images, config, device=device, seed=seed)
    told = dict[str, Tensor]()
    for name in UNSEEN:
        if (file := folder / f"{name}_images.npy").exists():
            told[name] = _logits(network, torch.from_numpy(np.load(file)), images, device)
    if arguments["keep"]:
        told["weights"] = torch.cat([_bytes(held) for held in network.state_dict().values()])
    save_file(told, folder / ARRAYS)
    return {}


def start_gpu(folder: Path, most: int) -> str:
    """Bring CUDA up, with arrays of at most `most` bytes (0: as many as fit), say so, and return the GPU's name.

    Raises:
        TrialFailed: CUDA does not come up (reason "crash").
    """
    try:
        torch.cuda.init()
        total = torch.cuda.mem_get_info()[1]
        torch.zeros(8, 8, device="cuda").mm(torch.zeros(8, 8, device="cuda")).cpu()
    except (RuntimeError, AssertionError) as error:  # torch asserts where it was built without CUDA
        said = str(error).partition("\n")[0]
        raise TrialFailed(f"no CUDA device: {said}", reason="crash") from error
    if most:
        torch.cuda.set_per_process_memory_fraction(min(1.0, most / total))
    ready(folder)
    return torch.cuda.get_device_name()


def reach_gpu(_source: str, arguments: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """A task that finds out whether a GPU can be used here: {"gpu": its name}. Raises what `start_gpu` does."""
    return {"gpu": start_gpu(folder, arguments.get("gpu_bytes", 0))}


def state(source: str, arguments: Mapping[str, Any], _folder: Path) -> Mapping[str, Any]:
    """What the network's weights consist of, in order, and the hyper-parameters it gets, those that it alone declares included:
    {"tensors": [[name, shape, number format], …], "prm": {name: value}}.
    """
    made = Maker(source, arguments)
    device = torch.device("cpu")
    network = made(device)
    _run_once(network, arguments, device)
    found = network.state_dict().items()
    tensors = [[name, list(held.shape), str(held.dtype).removeprefix("torch.")] for name, held in found]
    return {"tensors": tensors, "prm": dict(made.prm)}


def _run_once(network: nn.Module, arguments: Mapping[str, Any], device: torch.device) -> None:
    """Some layers find their size in the first batch."""
    with torch.no_grad():
        network.eval()(torch.zeros(2, *arguments["in_shape"][1:], device=device))


def warm() -> None:
    """Import what training needs beside this module, once for all candidates: genomes are built by it."""
    import befit.vision.checkpoint  # noqa: F401


class Batches:
    """What `learn` gets: one pass over the training images in a new order, like a DataLoader."""

    def __init__(self, images: Images, config: TrainConfig, seed: int) -> None:
        self.images, self.config = images, config
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return math.ceil(len(self.images.train) / self.config.batch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        how, held = augmentation(self.images, self.config), self.images.train
        for rows in torch.randperm(len(held), generator=self.generator).split(self.config.batch):
            seeds = torch.rand(len(rows), 3, generator=self.generator)
            # A file's own training may `view` the images, which needs the usual layout.
            yield augmented(self.images.normalised(held.images[rows]), seeds, *how).contiguous(), held.labels[rows]


def _learn(network: Any, prm: Mapping[str, Any], images: Images, config: TrainConfig, seed: int) -> None:
    """The file's own training, for the epochs that all have; what it leaves must be numbers."""
    network.train_setup(prm)
    batches = Batches(images, config, seed)
    for _ in range(config.epochs):
        network.train()
        network.learn(batches)
    if not all(weight.isfinite().all() for weight in network.parameters()):
        raise TrialFailed("weights are not numbers any more; a lower learning rate may help", reason="nan")


def _images(folder: Path, arguments: Mapping[str, Any]) -> Images:
    """The training images as befit's training takes them; there is nothing to choose by or to test on."""
    images, labels = (torch.from_numpy(np.load(folder / f"train_{name}.npy")) for name in ("images", "labels"))
    train = Split(images=images, labels=labels)
    nothing = train.take(torch.zeros(0, dtype=torch.int64))
    return Images(
        train=train,
        validation=nothing,
        test=Sealed(nothing),
        classes=tuple(str(place) for place in range(arguments["out_shape"][0])),
        mean=tuple(arguments["mean"]),
        std=tuple(arguments["std"]),
        source="the images given",
    )


def _logits(network: nn.Module, unseen: Tensor, images: Images, device: torch.device) -> Tensor:
    network.eval()
    with torch.no_grad():
        found = [network(images.normalised(part.to(device))).float().cpu() for part in unseen.split(EVALUATED)]
    return torch.cat(found).contiguous()


def _bytes(held: Tensor) -> Tensor:
    return held.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
