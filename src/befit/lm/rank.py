"""How much each neuron, each head and each layer of a parent matters, from one pass over text.

FFN neurons by channel contribution, E[|x_i|] * ||W_down[:, i]|| (Puzzle, arXiv 2411.19146, appendix A); query heads by the mean
norm of what they hand to the output projection, KV groups by the sum over their query heads; layers by block influence,
E[1 - cos(layer input, layer output)] (ShortGPT, arXiv 2403.03853, equation 1).

Shapes: N sequences, B batch, T tokens, D hidden, H query heads, d head_dim, I FFN width.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from befit.arch.decoder import DecoderShape
from befit.lm.family import Family
from befit.lm.modeling_befit import BefitForCausalLM
from befit.progress import Progress, silent


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Importance, larger is more important; one entry a layer, on the CPU in fp32."""

    neurons: tuple[Tensor, ...]
    """(I,) for each layer."""
    heads: tuple[Tensor, ...]
    """(H,) for each layer."""
    influence: tuple[float, ...]
    """Block influence, 0 (the layer does nothing) to 2."""

    def tensors(self) -> dict[str, Tensor]:
        """For safetensors."""
        named = {f"neurons.{i}": t for i, t in enumerate(self.neurons)}
        named |= {f"heads.{i}": t for i, t in enumerate(self.heads)}
        return named | {"influence": torch.tensor(self.influence, dtype=torch.float64)}

    @staticmethod
    def from_tensors(named: dict[str, Tensor]) -> "Ranking":
        """What `tensors` gave."""
        count = len(named["influence"])
        return Ranking(
            neurons=tuple(named[f"neurons.{i}"] for i in range(count)),
            heads=tuple(named[f"heads.{i}"] for i in range(count)),
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
    neurons: list[Tensor] = [torch.zeros(()) for _ in layers]
    heads: list[Tensor] = [torch.zeros(()) for _ in layers]
    influence, seen = [0.0] * len(layers), 0

    def watch_neurons(index: int) -> Callable[[Tensor], None]:
        def see(x: Tensor) -> None:  # (B, T, I)
            neurons[index] = neurons[index] + x.float().abs().sum((0, 1)).cpu()

        return see

    def watch_heads(index: int) -> Callable[[Tensor], None]:
        def see(x: Tensor) -> None:  # (B, T, H * d)
            norms = x.float().unflatten(-1, (shape.heads, shape.head_dim)).norm(dim=-1)
            heads[index] = heads[index] + norms.sum((0, 1)).cpu()

        return see

    watched = {layer.get_submodule(family.down): watch_neurons(i) for i, layer in enumerate(layers)}
    watched |= {layer.get_submodule(family.out): watch_heads(i) for i, layer in enumerate(layers)}
    with _inputs_seen(watched):
        for ids in progress(tokens.split(batch), "rank", len(tokens.split(batch))):
            x = model.model.embed_tokens(ids.to(model.device))
            context = model.model.begin(x)
            for i, layer in enumerate(layers):
                after = layer(x, context)
                cosine = nn.functional.cosine_similarity(x.float(), after.float(), dim=-1)
                influence[i] += float((1 - cosine).sum())
                x = after
            seen += ids.numel()
    scaled = []
    for layer, total in zip(layers, neurons, strict=True):
        columns = layer.get_parameter(f"{family.down}.weight").float().norm(dim=0).cpu()
        scaled.append(total / seen * columns)
    return Ranking(
        neurons=tuple(scaled), heads=tuple(h / seen for h in heads), influence=tuple(s / seen for s in influence)
    )


@contextmanager
def _inputs_seen(watched: dict[nn.Module, Callable[[Tensor], None]]) -> Iterator[None]:
    """Hand each module's input to its watcher for as long as the context is open."""

    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        watched[module](args[0])

    handles = [module.register_forward_pre_hook(hook) for module in watched]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
