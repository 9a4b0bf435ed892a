"""Sort a parent once, most important first, so that every narrower FFN is a prefix. The function stays the same.

Four permutations leave a decoder layer's output as it is: of FFN neurons; of KV groups together with their query heads;
of query heads inside their KV group; of Mamba heads inside their SSM group. Each is applied to the rows that produce the
channels and to the columns that read them, biases included.

Shapes: H heads (of queries, or of a Mamba-2 mixer), G KV groups (heads) or SSM groups, d head_dim, I FFN width, D hidden,
N state.
"""

from typing import Any

import torch
from torch import Tensor, nn

from befit.arch.decoder import Attention, DecoderShape, Ffn, Mamba, MambaShape
from befit.lm.family import Family
from befit.lm.modeling_befit import BefitForCausalLM
from befit.lm.rank import Ranking


def neuron_order(importance: Tensor) -> Tensor:
    """Descending (I,): position -> which old neuron stands there now; equal importance keeps the old order."""
    return importance.argsort(descending=True, stable=True)


def head_order(importance: Tensor, kv_heads: int) -> tuple[Tensor, Tensor]:
    """KV groups (G,) and query heads (H,), descending; heads stay with their group, and are sorted inside it."""
    by_group = importance.view(kv_heads, -1)
    groups = neuron_order(by_group.sum(1))
    return groups, _inside(by_group)[groups].flatten()


def mamba_order(importance: Tensor, groups: int) -> Tensor:
    """Mamba heads (H,), descending inside each SSM group; the groups stay where they are."""
    return _inside(importance.view(groups, -1)).flatten()


@torch.no_grad()
def sort(model: BefitForCausalLM, shape: DecoderShape, family: Family, ranking: Ranking) -> None:
    """Permute every layer of `model` in place by `ranking`; logits stay the same up to rounding."""
    for index, (layer, block) in enumerate(zip(model.model.layers, shape.arch.blocks, strict=True)):
        match block.attention:
            case Attention(kv_heads=kv_heads):
                groups, heads = head_order(ranking.heads[index], kv_heads)
                query, kv = channels(heads, shape.head_dim), channels(groups, shape.head_dim)
                _permute(layer, family.query, rows=query)
                _permute(layer, family.key, rows=kv)
                _permute(layer, family.value, rows=kv)
                _permute(layer, family.out, columns=query)
            case Mamba() if shape.mamba:
                heads = mamba_order(ranking.mamba_heads[index], shape.mamba.groups)
                _sort_mamba(layer.get_submodule(family.mamba), heads, shape.mamba)
        if isinstance(block.ffn, Ffn):
            neurons = neuron_order(ranking.neurons[index])
            for name in (family.gate, family.up) if shape.gated else (family.up,):
                _permute(layer, name, rows=neurons)
            _permute(layer, family.down, columns=neurons)


def _sort_mamba(mixer: nn.Module, heads: Tensor, mamba: MambaShape) -> None:
    """Rows of the input projection are [z | x | B | C | dt], of the convolution [x | B | C]; B and C belong to groups."""
    inner = channels(heads, mamba.head_dim)
    width, shared = len(inner), torch.arange(2 * mamba.groups * mamba.state)
    convolved = torch.cat([inner, width + shared])
    _permute(mixer, "in_proj", rows=torch.cat([inner, width + convolved, width + len(convolved) + heads]))
    _permute(mixer, "conv1d", rows=convolved)
    for name, order in (("A_log", heads), ("D", heads), ("dt_bias", heads), ("norm.weight", inner)):
        vector = mixer.get_parameter(name)
        vector.copy_(vector[order.to(vector.device)])
    _permute(mixer, "out_proj", columns=inner)


def _inside(by_group: Tensor) -> Tensor:
    """Heads (G, H / G) as numbers among all heads, descending inside each group, groups in place."""
    count, each = by_group.shape
    return torch.arange(count)[:, None] * each + by_group.argsort(dim=1, descending=True, stable=True)


def channels(heads: Tensor, head_dim: int) -> Tensor:
    """Channel numbers (heads * d,) of whole heads in the given order."""
    return (heads[:, None] * head_dim + torch.arange(head_dim)).flatten()


def _permute(layer: nn.Module, name: str, *, rows: Tensor | None = None, columns: Tensor | None = None) -> None:
    module: Any = layer.get_submodule(name)
    device = module.weight.device
    if rows is not None:
        module.weight.copy_(module.weight[rows.to(device)])
        if module.bias is not None:
            module.bias.copy_(module.bias[rows.to(device)])
    if columns is not None:
        module.weight.copy_(module.weight[:, columns.to(device)])
