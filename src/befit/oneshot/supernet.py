"""Weight sharing: one network that holds the weights of every arch of a space, and runs any of them.

    supernet = cell_supernet(task)                     # or nested_supernet(blueprint, task)
    logits = supernet(images, arch)                    # costs what that arch costs
    recalibrate(supernet, arch, batches)
    network = supernet.extract(arch)                   # blueprint.build(arch, task), weights and statistics copied out

A supernet's forward takes the arch as an argument: nothing in the module says which sub-net it is. The running statistics of
batch norms are no weights and are not shared: in training every batch brings its own, and before a sub-net is judged or cut
out they are estimated for it alone. What the buffers hold is the sub-net that was recalibrated last.

Sources: weight sharing, Pham et al., ENAS (arXiv 1802.03268); statistics estimated anew for each sub-net, Yu and Huang,
Universally Slimmable Networks (arXiv 1903.05134, section 3.2).

Shapes: B images, K classes.
"""

import abc
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as Norm

from befit.arch.space import Arch
from befit.arch.task import ImageTask
from befit.errors import UnsupportedModel
from befit.vision.blueprint import Blueprint


class Supernet(nn.Module, abc.ABC):
    """The weights of a whole space. A subclass says how they are shared: `forward`, `part` and `norms`."""

    blueprint: Blueprint
    task: ImageTask
    largest: Arch | None
    """Contains every other sub-net, for the sandwich rule; None if the space has no such arch."""
    smallest: Arch | None
    """Is contained in every other."""

    @abc.abstractmethod
    def forward(self, images: Tensor, arch: Arch) -> Tensor:
        """Logits (B, K) of normalised images (B, channels, height, width) by the sub-net `arch`, running nothing else.

        In training mode batch norms take the batch's own statistics, and leave the stored ones alone but for `recalibrate`.
        """

    @abc.abstractmethod
    def part(self, arch: Arch) -> Mapping[str, Tensor]:
        """The sub-net's parameters and buffers as views of the shared ones, by the names in `blueprint.build(arch, task)`."""

    @abc.abstractmethod
    def norms(self, arch: Arch) -> Iterable[Norm]:
        """The batch norms that a forward of this arch goes through."""

    def extract(self, arch: Arch) -> nn.Module:
        """The sub-net as a network of its own, in evaluation mode on the supernet's device; no tensor is shared with it.

        Raises `IllegalArch` if the arch is not of this space.
        """
        with torch.random.fork_rng(devices=[]):
            network = self.blueprint.build(self.blueprint.space.arch(arch), self.task)
        own = self.part(arch)
        if missing := sorted(set(network.state_dict()) ^ set(own)):
            raise UnsupportedModel(f"supernet: it and the network of {arch.to_json()} differ in {', '.join(missing)}")
        network.load_state_dict(own)
        return network.to(next(iter(own.values())).device).eval()


def recalibrate(supernet: Supernet, arch: Arch, batches: Iterable[Tensor]) -> None:
    """Estimate the sub-net's batch-norm statistics anew, as means over batches of normalised images (B, C, H, W).

    They replace what the supernet's buffers held for these norms; the supernet is left in evaluation mode. Each norm's
    statistics are those under the batch's own statistics of the norms before it, as in training.
    """
    norms = list(supernet.norms(arch))
    supernet.train()
    try:
        with torch.no_grad():
            for place, images in enumerate(batches):
                for norm in norms:
                    # The first batch's weight is 1: what was there before is forgotten.
                    norm.track_running_stats, norm.momentum = True, 1 / (place + 1)
                supernet(images, arch)
    finally:
        for norm in norms:
            norm.track_running_stats, norm.momentum = False, None
        supernet.eval()


def leave_statistics(module: nn.Module) -> list[Norm]:
    """Make the batch norms of `module` leave their stored statistics alone in training; returns them."""
    norms = [part for part in module.modules() if isinstance(part, Norm)]
    for norm in norms:
        # With the buffers in place, evaluation still uses them; torch only stops passing them in training.
        norm.track_running_stats, norm.momentum = False, None
    return norms
