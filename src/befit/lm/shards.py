"""A parent's weights from its files, tensor by tensor or layer by layer: never the whole of it at once, unless asked for.

`Shards` reads tensors by name when they are wanted, each straight to its device and format. `StreamedLayers` is a row of
layers of which one at a time has weights: reaching for a layer reads it and lets go of the one before, so whoever goes through
the layers in order (ranking, blockwise distillation) needs the memory of one. `whole` makes an ordinary row of it.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from befit.errors import UnsupportedModel
from befit.lm.modeling_befit import BefitForCausalLM

LAYERS = "model.layers."

Sorter = Callable[[int, dict[str, Tensor]], dict[str, Tensor]]
"""From a layer's number and its tensors, named as in the model, to the same in their new order."""


class Shards:
    """The safetensors files of a folder. They are opened to read and closed again, so that nothing of them stays in memory."""

    def __init__(self, folder: Path) -> None:
        """Raises `UnsupportedModel` for a file that cannot be read."""
        self._places = dict[str, tuple[Path, str]]()
        for path in sorted(folder.glob("*.safetensors")):
            try:
                with safe_open(path, framework="pt") as file:
                    self._places |= {_in_memory(stored): (path, stored) for stored in file.keys()}  # noqa: SIM118
            except (SafetensorError, OSError) as error:
                raise UnsupportedModel(f"{path} cannot be read ({error}); fetch or save it again") from error

    @property
    def names(self) -> frozenset[str]:
        """What tensors are called in memory."""
        return frozenset(self._places)

    def read(self, names: Iterable[str], device: torch.device | str, dtype: torch.dtype) -> dict[str, Tensor]:
        """These tensors, file by file, each converted by itself. Raises `UnsupportedModel` if a file has changed or gone."""
        by_file = dict[Path, list[str]]()
        for name in names:
            by_file.setdefault(self._places[name][0], []).append(name)
        found = dict[str, Tensor]()
        for path, wanted in by_file.items():
            try:
                with safe_open(path, framework="pt") as file:
                    for name in wanted:
                        # A copy: what safetensors gives may be a window on the file, which keeps its pages in memory.
                        found[name] = file.get_tensor(self._places[name][1]).to(device, dtype, copy=True)
            except (SafetensorError, OSError) as error:
                raise UnsupportedModel(f"{path} cannot be read ({error}); fetch or save it again") from error
        return found


class StreamedLayers(nn.ModuleList):
    """Layers whose weights are in files: `layers[i]` has them until another is reached for. Iterating reads nothing."""

    def __init__(
        self, layers: Iterable[nn.Module], shards: Shards, device: torch.device | str, dtype: torch.dtype
    ) -> None:
        super().__init__(layers)
        self.shards, self.device, self.dtype = shards, torch.device(device), dtype
        self.sorter: Sorter | None = None
        """Permutes every layer as it is read."""
        self.open: int | None = None
        """The layer that has weights."""
        self.reads = 0
        """Layers read so far."""

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, int) and index % len(self) != self.open:
            self.close()
            self.fill(index % len(self))
            self.open = index % len(self)
        return super().__getitem__(index)

    def fill(self, index: int) -> nn.Module:
        """Read a layer's weights, and leave the others alone."""
        layer = list(self)[index]
        names = {f"{LAYERS}{index}.{name}": name for name in layer.state_dict()}
        tensors = self.shards.read(names, self.device, self.dtype)
        if self.sorter is not None:
            tensors = self.sorter(index, tensors)
        self.reads += 1
        layer.load_state_dict({names[name]: tensor for name, tensor in tensors.items()}, assign=True)
        return layer.requires_grad_(False)

    def close(self) -> None:
        """Let go of the open layer's weights."""
        if self.open is not None:
            layer = list(self)[self.open]
            empty = {name: torch.empty_like(tensor, device="meta") for name, tensor in layer.state_dict().items()}
            layer.load_state_dict(empty, assign=True)
            self.open = None


def room(device: torch.device) -> int:
    """Bytes that something may take for long on a device: half of what is free."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") // 2


def whole(model: BefitForCausalLM) -> None:
    """Read every layer of a model whose layers are streamed, for good; any other model stays as it is."""
    layers = model.model.layers
    if isinstance(layers, StreamedLayers):
        model.model.layers = nn.ModuleList(layers.fill(index) for index in range(len(layers)))


def _in_memory(stored: str) -> str:
    """Published Nemotron-H checkpoints say `backbone.` where transformers says `model.`."""
    return f"model.{stored.removeprefix('backbone.')}" if stored.startswith("backbone.") else stored
