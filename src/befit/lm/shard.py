"""A network in training spread over the processes of a team: PyTorch's FSDP2 (`fully_shard`), a group for each layer.

Every process keeps an equal part of each weight, of its gradient and of Adam's moments, and holds a layer whole only while it
computes with it: 16 bytes a parameter are divided by the number of processes (Zhao et al., arXiv 2304.11277). Gradients are
averaged, so that a step is that of one process with all of the batch.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(root: nn.Module, layers: Iterable[nn.Module], *, size: int, device: torch.device) -> None:
    """Spread a module over all processes in place; its parameters are others from here on."""
    mesh = init_device_mesh(device.type, (size,))
    for layer in layers:
        if next(layer.parameters(), None) is not None:  # a layer may have been dropped altogether
            fully_shard(layer, mesh=mesh)
    fully_shard(root, mesh=mesh)


def gathered(tensor: Tensor) -> Tensor:
    """All of a tensor of which this process has a part; every process must ask."""
    if not isinstance(tensor, DTensor):
        return tensor
    own: Any = tensor.detach()
    return own.full_tensor()


def spread(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, as that of `like`."""
    if not isinstance(like, DTensor):
        return tensor
    whole = tensor.detach().to(like.device)
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
