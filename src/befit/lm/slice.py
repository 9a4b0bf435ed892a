"""Training-free first weights of every variant, cut from the sorted parent (Puzzle, arXiv 2411.19146, appendix A).

Narrower FFN: the first neurons. Fewer KV heads: the mean of neighbouring key heads and of neighbouring value heads
(GQA, arXiv 2305.13245). Linear attention: W_O W_V, each token attending to itself. Linear FFN: W_down W_up, without the gate.
A window keeps all weights; a no-op has none.

Shapes: D hidden, I FFN width, G KV heads, H query heads, d head_dim.
"""

import torch
from torch import Tensor

from befit.arch.decoder import Attention, DecoderShape, Ffn, Linear, NoOp, Variant
from befit.lm.family import Family

Tensors = dict[str, Tensor]

HALVES = {"attention": ("input_layernorm.", "self_attn."), "ffn": ("post_attention_layernorm.", "mlp.")}
"""How the names of each sub-block's tensors begin, relative to their layer: its norm, then itself."""


@torch.no_grad()
def initial(parent: Tensors, variant: Variant, kind: str, shape: DecoderShape, family: Family) -> Tensors:
    """The tensors of `variant` standing in for one sub-block (`kind`: attention or ffn), fresh copies.

    `parent` holds the tensors of the whole parent layer, named relative to it. Names in the result are those of a layer
    that has this sub-block alone.
    """
    if isinstance(variant, NoOp):
        return {}
    own = own_half(parent, kind)
    norm = {name: t for name, t in own.items() if name.startswith(HALVES[kind][0])}
    match variant:
        case Linear() if kind == "attention":
            return norm | {"self_attn.linear_attn.weight": _value_then_out(parent, shape, family)}
        case Linear():
            down, up = parent[f"{family.down}.weight"].float(), parent[f"{family.up}.weight"].float()
            return norm | {"mlp.linear_mlp.weight": (down @ up).to(parent[f"{family.down}.weight"].dtype)}
        case Ffn(width=width):
            for name in (family.gate, family.up):
                own |= {f"{name}.{part}": own[f"{name}.{part}"][:width].clone() for part in _parts(own, name)}
            own[f"{family.down}.weight"] = own[f"{family.down}.weight"][:, :width].clone()
            return own
        case Attention(kv_heads=kv_heads):
            for name in (family.key, family.value):
                for part in _parts(own, name):
                    own[f"{name}.{part}"] = pool_heads(own[f"{name}.{part}"], kv_heads, shape.head_dim)
            return own
    raise AssertionError(variant)


def own_half(layer: Tensors, kind: str) -> Tensors:
    """The tensors of one sub-block and its norm, copied."""
    return {name: t.detach().clone() for name, t in layer.items() if name.startswith(HALVES[kind])}


def pool_heads(weight: Tensor, kv_heads: int, head_dim: int) -> Tensor:
    """Mean of neighbouring heads: rows (G * d, ...) -> (kv_heads * d, ...); G is a multiple of kv_heads."""
    heads = weight.float().unflatten(0, (kv_heads, -1, head_dim))
    return heads.mean(1).flatten(0, 1).to(weight.dtype)


def _value_then_out(parent: Tensors, shape: DecoderShape, family: Family) -> Tensor:
    """W_O W_V with each value head repeated for the query heads that read it, (D, D)."""
    out, value = parent[f"{family.out}.weight"], parent[f"{family.value}.weight"].float()
    groups = value.shape[0] // shape.head_dim
    repeated = value.unflatten(0, (groups, shape.head_dim)).repeat_interleave(shape.heads // groups, 0).flatten(0, 1)
    return (out.float() @ repeated).to(out.dtype)


def _parts(tensors: Tensors, name: str) -> list[str]:
    return [part for part in ("weight", "bias") if f"{name}.{part}" in tensors]
