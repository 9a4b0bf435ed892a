"""How much each neuron, each head and each layer of a parent matters, from one pass over text.

FFN neurons by channel contribution, E[|x_i|] * ||W_down[:, i]|| (Puzzle, arXiv 2411.19146, appendix A); query heads and Mamba
heads by the mean norm of what they hand to the output projection, KV groups by the sum over their query heads; layers by
block influence, E[1 - cos(layer input, layer output)] (ShortGPT, arXiv 2403.03853, equation 1).

Shapes: N sequences, B batch, T tokens, D hidden, H heads of a layer's mixer, d head_dim, I FFN width.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from befit.arch.decoder import Attention, DecoderShape, Ffn, Mamba
from befit.lm.family import Family
from befit.lm.modeling_befit import BefitForCausalLM
from befit.progress import Progress, silent


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Importance, larger is more important; one entry a layer, empty where the layer has no such part; on the CPU in fp32."""

    neurons: tuple[Tensor, ...]
    """(I,) for each layer."""
    heads: tuple[Tensor, ...]
    """(H,) for each layer: query heads."""
    mamba_heads: tuple[Tensor, ...] = ()
    """(H,) for each layer; no entries for a network without Mamba."""
    influence: tuple[float, ...]
    """Block influence, 0 (the layer does nothing) to 2."""

    def tensors(self) -> dict[str, Tensor]:
        """For safetensors."""
        named = {f"neurons.{i}": t for i, t in enumerate(self.neurons)}
        named |= {f"heads.{i}": t for i, t in enumerate(self.heads)}
        named |= {f"mamba_heads.{i}": t for i, t in enumerate(self.mamba_heads)}
        return named | {"influence": torch.tensor(self.influence, dtype=torch.float64)}

    @staticmethod
    def from_tensors(named: dict[str, Tensor]) -> "Ranking":
        """What `tensors` gave."""
        count = len(named["influence"])
        return Ranking(
            neurons=tuple(named[f"neurons.{i}"] for i in range(count)),
            heads=tuple(named[f"heads.{i}"] for i in range(count)),
            mamba_heads=tuple(named[f"mamba_heads.{i}"] for i in range(count) if f"mamba_heads.{i}" in named),
            influence=tuple(named["influence"].tolist()),
        )


@torch.inference_mode()
def rank(
    model: BefitForCausalLM,
    shape: DecoderShape,
    family: Family,
    tokens: Tensor,
    *,
    batch: int = 8,
    progress: Progress = silent,
) -> Ranking:
    """Rank a parent on token ids (N, T). The model is not changed."""
    layers = model.model.layers
    sums = {key: _Sum(size) for key, (_, size) in _watched(shape, family).items()}
    seers = {layers[i].get_submodule(name): sums[axis, i] for (axis, i), (name, _) in _watched(shape, family).items()}
    influence, seen = [0.0] * len(layers), 0
    embed, batches = model.get_submodule(family.embedding), tokens.split(batch)
    with _inputs_seen(seers):
        for ids in progress(batches, "rank", len(batches)):
            x = embed(ids.to(model.device))
            context = model.model.begin(x)
            for i, layer in enumerate(layers):
                after = layer(x, context)
                cosine = nn.functional.cosine_similarity(x.float(), after.float(), dim=-1)
                influence[i] += float((1 - cosine).sum())
                x = after
            seen += ids.numel()
    found = {key: each.total / seen for key, each in sums.items()}
    for (axis, i), importance in found.items():
        if axis == "neurons":
            importance.mul_(layers[i].get_parameter(f"{family.down}.weight").float().norm(dim=0).cpu())

    def every(axis: str) -> tuple[Tensor, ...]:
        return tuple(found.get((axis, i), torch.zeros(0)) for i in range(len(layers)))

    return Ranking(
        neurons=every("neurons"),
        heads=every("heads"),
        mamba_heads=every("mamba_heads") if shape.mamba else (),
        influence=tuple(s / seen for s in influence),
    )


def _watched(shape: DecoderShape, family: Family) -> dict[tuple[str, int], tuple[str, int]]:
    """For each axis and layer the part that reads what is ranked, and how many channels one entry has."""
    found: dict[tuple[str, int], tuple[str, int]] = {}
    for i, block in enumerate(shape.arch.blocks):
        if isinstance(block.attention, Attention):
            found["heads", i] = (family.out, shape.head_dim)
        if isinstance(block.attention, Mamba) and shape.mamba:
            found["mamba_heads", i] = (f"{family.mamba}.out_proj", shape.mamba.head_dim)
        if isinstance(block.ffn, Ffn):
            found["neurons", i] = (family.down, 1)
    return found


class _Sum:
    """Adds up the norms of stretches of `size` channels over all tokens: of heads, or (size 1) of single neurons."""

    def __init__(self, size: int) -> None:
        self.size, self.total = size, torch.zeros(())

    def __call__(self, x: Tensor) -> None:
        """`x` is (B, T, H * size)."""
        norms = x.float().unflatten(-1, (-1, self.size)).norm(dim=-1)
        self.total = self.total + norms.sum((0, 1)).cpu()


@contextmanager
def _inputs_seen(watched: Mapping[nn.Module, Callable[[Tensor], None]]) -> Iterator[None]:
    """Hand each module's input to its watcher for as long as the context is open."""

    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        watched[module](args[0])

    handles = [module.register_forward_pre_hook(hook) for module in watched]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
