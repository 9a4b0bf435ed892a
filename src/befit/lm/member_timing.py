"""Time members of a nested model as plain modules of transformers, the networks that a cut writes.

As for whole models of befit's own (`befit.lm.timing`): prefill and decode have static shapes on preallocated caches, so a GPU
runs them as CUDA graphs, and several members are timed in turns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from befit.arch.decoder import Attention, Block, Mamba
from befit.arch.member import Member, cut_shape
from befit.cost.count import count
from befit.cost.device import Device
from befit.cost.workload import Workload
from befit.lm.extract import member_model, padded
from befit.lm.fixed_cache import FixedCache
from befit.lm.network import Network
from befit.lm.precision import DTYPES
from befit.lm.timing import EFFORT, Effort, Steps, Timed, model_steps, time_jobs
from befit.progress import Progress, silent


@dataclass(frozen=True, kw_only=True)
class MemberTimer:
    """Times members as a cut writes them: plain modules of transformers with the nested model's own weights. A `Timer`.

    FFNs of different widths are filled up to the widest, as in the padded layout.
    """

    net: Network
    """The whole."""
    config: Any
    """The whole's transformers configuration."""
    weights: Mapping[str, Tensor]
    """The whole's, by transformers' names in memory; anywhere, in any format."""
    workload: Workload
    """Also tells the format that members are timed in; bf16 for quantised weights."""
    device: Device
    effort: Effort = EFFORT
    """Of which repeats and seconds count."""
    progress: Progress = silent

    def __call__(self, members: Sequence[Member]) -> list[float]:
        dtype, kind = DTYPES[self.workload.computed.weights], self.device.kind
        weights = {name: tensor.detach().to(kind, dtype) for name, tensor in self.weights.items()}
        jobs = {
            str(i): Timed(memory_bytes=self._bytes(member), make=partial(self.steps, weights, member))
            for i, member in enumerate(members)
        }
        times = time_jobs(jobs, self.workload, self.device, self.effort, self.progress)
        return [times[name].latency_ms(self.workload) for name in jobs]

    def _bytes(self, member: Member) -> int:
        shape = cut_shape(self.net.shape, padded(member, self.net.shape))
        return count(shape, shape.arch, self.workload.computed).memory_bytes

    def steps(self, weights: Mapping[str, Tensor], member: Member) -> Steps:
        model = member_model(self.config, self.net, weights, member)
        blocks = cut_shape(self.net.shape, member).arch.blocks
        # A family's mixer is where its query projection is, whether it attends or is a Mamba.
        name = self.net.family.query.partition(".")[0]
        mixers = [Mixer.of(layer, name, block) for layer, block in zip(model.model.layers, blocks, strict=True)]
        return model_steps(model, self.workload, partial(PlainCache, mixers, self.workload))


@dataclass(frozen=True, kw_only=True)
class Mixer:
    """A mixer of a plain module, as `FixedCache` wants to know it."""

    self_attn: Any
    window: int | None
    recurrent: bool

    @staticmethod
    def of(layer: Any, name: str, block: Block) -> "Mixer | None":
        """The module `name` of a layer that is `block`; None if it has nothing to remember."""
        match block.attention:
            case Attention(window=window):
                return Mixer(self_attn=layer.get_submodule(name), window=window, recurrent=False)
            case Mamba():
                return Mixer(self_attn=layer.get_submodule(name), window=None, recurrent=True)
            case _:
                return None


class PlainCache(FixedCache):
    """A `FixedCache` for plain modules of transformers: it has an entry for every layer, and tells which have a window."""

    def __init__(
        self,
        mixers: Sequence[Mixer | None],
        workload: Workload,
        past: int,
        buffers: Sequence[tuple[Tensor, Tensor]] = (),
        *,
        requests: int | None = None,
    ) -> None:
        """One mixer for each layer, None where it has nothing to remember."""
        known = [pair for mixer, pair in zip(mixers, buffers, strict=False) if mixer is not None]
        super().__init__([mixer for mixer in mixers if mixer is not None], workload, past, known, requests=requests)
        own = [mixer.window if mixer else None for mixer in mixers]
        self.windows = {layer: window for layer, window in enumerate(own) if window and window < workload.context}
        entries, held = iter(self.layers), iter(self.buffers)
        nothing = (torch.empty(0), torch.empty(0))
        self.buffers = [next(held) if mixer else nothing for mixer in mixers]
        self.layers = [next(entries) if mixer else DynamicLayer() for mixer in mixers]
        for layer, window in enumerate(own):
            if window is not None:
                self.layers[layer] = DynamicSlidingWindowLayer(sliding_window=window)
