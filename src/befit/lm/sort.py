"""Sort a parent once, most important first, so that every narrower FFN is a prefix. The function stays the same.

Three permutations leave a decoder layer's output as it is: of FFN neurons; of KV groups together with their query heads;
of query heads inside their KV group. Each is applied to the rows that produce the channels and to the columns that read
them, biases included.

Shapes: H query heads, G KV groups (heads), d head_dim, I FFN width, D hidden.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from befit.arch.decoder import Attention, DecoderShape
from befit.lm.family import Family
from befit.lm.modeling_befit import BefitForCausalLM
from befit.lm.rank import Ranking


@dataclass(frozen=True, kw_only=True)
class Order:
    """The permutations of one layer: position -> which old channel stands there now."""

    neurons: Tensor
    """(I,)"""
    groups: Tensor
    """(G,)"""
    heads: Tensor
    """(H,): query heads; those of one group stay together, in the order of `groups`."""


def order(ranking: Ranking, index: int, kv_heads: int) -> Order:
    """Descending importance for layer `index` with `kv_heads` groups; equal importance keeps the old order."""
    by_group = ranking.heads[index].view(kv_heads, -1)
    groups = by_group.sum(1).argsort(descending=True, stable=True)
    inside = by_group.argsort(dim=1, descending=True, stable=True)
    per_group = by_group.shape[1]
    heads = (groups[:, None] * per_group + inside[groups]).flatten()
    return Order(neurons=ranking.neurons[index].argsort(descending=True, stable=True), groups=groups, heads=heads)


@torch.no_grad()
def sort(model: BefitForCausalLM, shape: DecoderShape, family: Family, ranking: Ranking) -> None:
    """Permute every layer of `model` in place by `ranking`; logits stay the same up to rounding."""
    for index, (layer, block) in enumerate(zip(model.model.layers, shape.arch.blocks, strict=True)):
        assert isinstance(block.attention, Attention), "parents have attention in every layer"
        now = order(ranking, index, block.attention.kv_heads)
        query = channels(now.heads, shape.head_dim)
        kv = channels(now.groups, shape.head_dim)
        _permute(layer, family.query, rows=query)
        _permute(layer, family.key, rows=kv)
        _permute(layer, family.value, rows=kv)
        _permute(layer, family.out, columns=query)
        _permute(layer, family.gate, rows=now.neurons)
        _permute(layer, family.up, rows=now.neurons)
        _permute(layer, family.down, columns=now.neurons)


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
