"""How much each channel, each neuron, each head and each layer of a parent matters, from forward passes over text.

`rank` is for replacing parts of layers: FFN neurons by channel contribution, E[|x_i|] * ||W_down[:, i]|| (Puzzle, arXiv
2411.19146, appendix A); query heads and Mamba heads by the mean norm of what they hand to the output projection, KV groups by
the sum over their query heads; layers by block influence, E[1 - cos(layer input, layer output)] (ShortGPT, arXiv 2403.03853,
equation 1). `rank_axes` is for nested models, where every axis is sorted, and looks at activations alone (Nemotron Elastic,
arXiv 2511.16664, section 3).

Shapes: N sequences, B batch, T tokens, D hidden, H heads of a layer's mixer, d head_dim, I FFN width; G KV groups, R = H / G;
Mamba-2: Q SSM groups, M heads of a group, P channels of a head, n state.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from befit.arch.decoder import Attention, DecoderShape, Ffn, Mamba
from befit.arch.member import Member, cut_shape
from befit.lm.distill import head_kl
from befit.lm.family import Family
from befit.lm.modeling_befit import BefitForCausalLM
from befit.lm.network import Network, Weights, head, hidden_states
from befit.lm.prefix import prefix
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


@dataclass(frozen=True, kw_only=True)
class AxisRanking:
    """Importance of everything on every axis of a network, larger is more important; on the CPU in fp32.

    One entry a layer but for `hidden`; empty where a layer has no such part, or where it was not ranked.
    """

    hidden: Tensor
    """(D,): embedding channels, the same for the whole network."""
    ffn: tuple[Tensor, ...]
    """(I,) for each layer."""
    query: tuple[Tensor, ...]
    """(G, R) for each layer: query heads by KV group."""
    mamba_heads: tuple[Tensor, ...]
    """(Q, M) for each layer: heads by SSM group."""
    channels: tuple[Tensor, ...]
    """(P,) for each layer: channels of a Mamba head, the same for all heads of the layer."""
    state: tuple[Tensor, ...]
    """(Q, n) for each layer: the state's entries by SSM group."""

    @property
    def kv(self) -> tuple[Tensor, ...]:
        """(G,) for each layer: KV groups, each as important as its query heads together."""
        return tuple(heads.sum(1) if len(heads) else heads for heads in self.query)

    def tensors(self) -> dict[str, Tensor]:
        """For safetensors."""
        named = {f"{axis}.{i}": t for axis in _BY_LAYER for i, t in enumerate(getattr(self, axis))}
        return named | {"hidden": self.hidden}

    @staticmethod
    def from_tensors(named: Mapping[str, Tensor]) -> "AxisRanking":
        """What `tensors` gave."""
        layers = (len(named) - 1) // len(_BY_LAYER)
        own = {axis: tuple(named[f"{axis}.{i}"] for i in range(layers)) for axis in _BY_LAYER}
        return AxisRanking(hidden=named["hidden"], **own)


_BY_LAYER = ("ffn", "query", "mamba_heads", "channels", "state")
"""The fields of `AxisRanking` that have an entry for each layer."""


@torch.no_grad()
def rank_axes(
    net: Network, weights: Weights, tokens: Tensor, *, batch: int = 8, progress: Progress = silent
) -> AxisRanking:
    """Rank every axis of a network on token ids (N, T), `batch` sequences at a time. All are means over tokens.

    Embedding channels by the sum over all layers of what their norms put out, FFN neurons by their first projection (the
    gate's, where there is one, before the activation), query heads by the norm of what they hand to the output projection.
    Mamba-2 by its x-projection: channels by the norm over all heads, then heads by the norm over the better half of the
    channels. The SSM state, an axis that the paper does not have, by |B * C|.

    Activations count with their magnitudes. The paper's formula for Mamba adds signed values over tokens before it takes the
    norm, in which a channel that is large with both signs would seem unimportant.
    """
    totals, device = dict[tuple[str, int], Tensor](), weights[f"{net.family.embedding}.weight"].device

    def tap(name: str, index: int, value: Tensor) -> None:
        if name in _TAPPED:
            key = (name, -1 if name == "norm" else index)
            size = value.float().norm(dim=-1) if name == "heads" else value.float().abs()
            total = size.sum((0, 1), dtype=torch.float64)
            totals[key] = totals[key] + total if key in totals else total

    batches = tokens.split(batch)
    for ids in progress(batches, "rank axes", len(batches)):
        hidden_states(net, weights, ids.to(device), tap=tap)
    found = {key: (total / tokens.numel()).float().cpu() for key, total in totals.items()}

    def every(name: str) -> tuple[Tensor, ...]:
        return tuple(found.get((name, i), torch.zeros(0)) for i in range(net.shape.layers))

    inputs = every("mamba")  # (Q, M, P)
    channels = tuple(x.flatten(0, 1).norm(dim=0) if len(x) else x for x in inputs)
    return AxisRanking(
        hidden=found["norm", -1],
        ffn=every("ffn"),
        query=every("heads"),
        mamba_heads=tuple(_top_half(x, c) for x, c in zip(inputs, channels, strict=True)),
        channels=channels,
        state=every("state"),
    )


_TAPPED = ("norm", "ffn", "heads", "mamba", "state")
"""The intermediate values that `rank_axes` looks at."""


def _top_half(inputs: Tensor, channels: Tensor) -> Tensor:
    """Norms (Q, M) of heads (Q, M, P) over the more important half of the channels (P,), rounded up."""
    best = channels.argsort(descending=True, stable=True)[: (len(channels) + 1) // 2]
    return inputs[..., best].norm(dim=-1) if len(inputs) else inputs


@torch.no_grad()
def axis_scores(
    net: Network,
    weights: Weights,
    options: Mapping[str, Sequence[Member]],
    tokens: Tensor,
    *,
    batch: int = 8,
    progress: Progress = silent,
) -> dict[str, list[float]]:
    """KL(parent || member), untrained, in nats per token, of each member given: axis -> one score for each of its options.

    With members that shrink one axis alone, this is what each axis costs in quality. `weights` are sorted.
    Raises `IllegalArch` for a member that is none of `net.shape`.
    """
    batches, device = tokens.split(batch), weights[f"{net.family.embedding}.weight"].device
    whole = [hidden_states(net, weights, ids.to(device)) for ids in batches]
    scores: dict[str, list[float]] = {axis: [] for axis in options}
    pairs = [(axis, member) for axis, members in options.items() for member in members]
    for axis, member in progress(pairs, "score axes", len(pairs)):
        own = replace(net, shape=cut_shape(net.shape, member))
        kept = prefix(weights, net.shape, net.family, member)
        total = 0.0
        for ids, target in zip(batches, whole, strict=True):
            final = hidden_states(own, kept, ids.to(device)), head(own, kept)
            total += float(head_kl((target, head(net, weights)), final)) * ids.numel()
        scores[axis].append(total / tokens.numel())
    return scores


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
    """Rank a parent on token ids (N, T). The model is not changed.

    Layer by layer, all tokens through one before the next, so that layers which are read from files are read once; between
    layers the hidden states wait on the CPU.
    """
    layers, parts = model.model.layers, list(model.model.layers)
    sums = {key: _Sum(size) for key, (_, size) in _watched(shape, family).items()}
    seers = {parts[i].get_submodule(name): sums[axis, i] for (axis, i), (name, _) in _watched(shape, family).items()}
    influence, seen, device = [0.0] * len(layers), tokens.numel(), model.device
    embed = model.get_submodule(family.embedding)
    states = [embed(ids.to(device)).cpu() for ids in tokens.split(batch)]
    context = model.model.begin(states[0][:1].to(device))
    found: dict[tuple[str, int], Tensor] = {}
    with _inputs_seen(seers):
        for i in progress(range(len(layers)), "rank", len(layers)):
            layer = layers[i]
            for number, state in enumerate(states):
                x = state.to(device)
                after = layer(x, context)
                cosine = nn.functional.cosine_similarity(x.float(), after.float(), dim=-1)
                influence[i] += float((1 - cosine).sum())
                states[number] = after.cpu()
            found |= {key: each.total / seen for key, each in sums.items() if key[1] == i}
            if ("neurons", i) in found:
                found["neurons", i] *= layer.get_parameter(f"{family.down}.weight").float().norm(dim=0).cpu()

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
