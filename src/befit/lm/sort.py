"""Sort a parent once, most important first, so that every narrower network is a prefix. The function stays the same.

These permutations leave the network's output as it is: of embedding channels, one order for the whole network; in a layer, of
FFN neurons; of KV groups together with their query heads; of query heads inside their KV group; of Mamba heads inside their
SSM group, and of their channels, one order for all heads; of the SSM state, in each group by itself. Channels of an attention
head stay where they are, as rotary embeddings and the norms of queries and keys tell them apart; so do SSM groups.

One recipe serves them all: `befit.lm.prefix.layout` says what each dimension of every tensor is, and each axis has one order,
applied to the rows that produce its channels and to the columns that read them, biases included.

Shapes: D hidden, I FFN width, H heads (of queries, or of a Mamba-2 mixer), G KV groups, R = H / G, d head_dim, Q SSM groups,
M Mamba heads of a group, P channels of a Mamba head, N state.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from befit.arch.decoder import Attention, DecoderShape
from befit.lm.family import Family
from befit.lm.modeling_befit import BefitForCausalLM
from befit.lm.prefix import PARTS, layout
from befit.lm.rank import AxisRanking, Ranking
from befit.lm.shards import StreamedLayers

Orders = Mapping[str, Tensor]
"""Axis of `layout` -> position -> which old entry stands there now. An axis that is not named stays as it is."""


def neuron_order(importance: Tensor) -> Tensor:
    """Descending (I,): position -> which old neuron stands there now; equal importance keeps the old order."""
    return importance.argsort(descending=True, stable=True)


def head_order(importance: Tensor, kv_heads: int) -> tuple[Tensor, Tensor]:
    """KV groups (G,) and query heads (H,), descending; heads stay with their group, and are sorted inside it."""
    by_group = importance.view(kv_heads, -1)
    groups = neuron_order(by_group.sum(1))
    return groups, _inside(by_group)[groups].flatten()


def mamba_order(importance: Tensor, groups: int) -> Tensor:
    """Mamba heads (Q * M,), or the state (Q * N,), descending inside each SSM group; the groups stay where they are."""
    return _inside(importance.view(groups, -1)).flatten()


def channels(heads: Tensor, head_dim: int, inside: Tensor | None = None) -> Tensor:
    """Channel numbers (heads * d,) of whole heads in the given order; `inside` (d,) is the order within every head."""
    return (heads[:, None] * head_dim + (torch.arange(head_dim) if inside is None else inside)).flatten()


@torch.no_grad()
def sort_weights(
    weights: Mapping[str, Tensor], shape: DecoderShape, family: Family, ranking: AxisRanking
) -> dict[str, Tensor]:
    """New tensors, every axis by descending importance; the network that they make is the same up to rounding.

    They have the names of `layout`; what tied weights hold under the name of the head is left out.
    """
    orders = _orders(shape, ranking)
    return {
        name: moved.clone() if moved is weights[name] else moved
        for name, moved in _permuted(weights, shape, family, orders)
    }


@torch.no_grad()
def sort(model: BefitForCausalLM, shape: DecoderShape, family: Family, ranking: Ranking) -> None:
    """Permute every layer of `model` in place by `ranking`; logits stay the same up to rounding.

    Layers that are read from files (`befit.lm.shards`) are permuted as they are read.
    """
    none = (torch.zeros(0),) * shape.layers
    known = AxisRanking(
        hidden=none[0],
        ffn=ranking.neurons,
        query=tuple(
            _grouped(heads, block.attention.kv_heads) if isinstance(block.attention, Attention) else heads
            for heads, block in zip(ranking.heads, shape.arch.blocks, strict=True)
        ),
        mamba_heads=tuple(_grouped(h, shape.mamba.groups) for h in ranking.mamba_heads) if shape.mamba else none,
        channels=none,
        state=none,
    )
    orders = _orders(shape, known)
    if isinstance(layers := model.model.layers, StreamedLayers):
        layers.sorter = lambda _, tensors: tensors | dict(_permuted(tensors, shape, family, orders))
        layers.close()  # it was read in the old order
        return
    weights = dict(model.named_parameters())
    for name, moved in _permuted(weights, shape, family, orders):
        if moved is not weights[name]:
            weights[name].copy_(moved)


def _orders(shape: DecoderShape, ranking: AxisRanking) -> list[Orders]:
    """The orders of each layer, then those outside the layers. What was not ranked is not named."""
    outside = {"hidden": neuron_order(ranking.hidden)} if len(ranking.hidden) else {}
    found = []
    for i in range(shape.layers):
        own = dict(outside)
        if len(ranking.ffn[i]):
            own["ffn"] = neuron_order(ranking.ffn[i])
        if len(heads := ranking.query[i]):
            groups, queries = head_order(heads.flatten(), len(heads))
            own |= {"query": channels(queries, shape.head_dim), "kv": channels(groups, shape.head_dim)}
        if len(heads := ranking.mamba_heads[i]) and shape.mamba is not None:
            order = mamba_order(heads.flatten(), len(heads))
            inside = neuron_order(ranking.channels[i]) if len(ranking.channels[i]) else None
            own |= {"mamba_heads": order, "inner": channels(order, shape.mamba.head_dim, inside)}
            state = ranking.state[i].flatten()
            own["state"] = (
                mamba_order(state, len(heads)) if len(state) else torch.arange(len(heads) * shape.mamba.state)
            )
        found.append(own)
    return [*found, outside]


def _permuted(
    weights: Mapping[str, Tensor], shape: DecoderShape, family: Family, orders: list[Orders]
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of `layout` that is among `weights`, in its new order; the tensor itself where nothing moves."""
    for name, axes in layout(shape, family).items():
        if name not in weights:
            continue
        number = name.removeprefix("model.layers.").partition(".")[0]
        own = orders[int(number) if number.isdecimal() else -1]
        tensor = weights[name]
        for place, axis in enumerate(axes):
            if (index := _index(axis, own)) is not None:
                tensor = tensor.index_select(place, index.to(tensor.device))
        yield name, tensor


def _index(axis: str, orders: Orders) -> Tensor | None:
    """Where every entry of a dimension comes from; None if it stays as it is."""
    parts = PARTS.get(axis, (axis,))
    if not all(part in orders for part in parts):
        return None
    sizes = [len(orders[part]) for part in parts]
    return torch.cat([orders[part] + sum(sizes[:i]) for i, part in enumerate(parts)])


def _grouped(importance: Tensor, groups: int) -> Tensor:
    """One row for each group; nothing stays nothing."""
    return importance.view(groups, -1) if len(importance) else importance


def _inside(by_group: Tensor) -> Tensor:
    """Entries (G, R) as numbers among all, descending inside each group, groups in place."""
    count, each = by_group.shape
    return torch.arange(count)[:, None] * each + by_group.argsort(dim=1, descending=True, stable=True)
