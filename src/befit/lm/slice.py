"""Training-free first weights of every variant, cut from the sorted parent (Puzzle, arXiv 2411.19146, appendix A).

Narrower FFN: the first neurons. Fewer KV heads: the mean of neighbouring key heads and of neighbouring value heads
(GQA, arXiv 2305.13245). Fewer Mamba heads: the first heads of every SSM group. Linear attention: W_O W_V, each token attending
to itself. Linear Mamba: the way of a token through the last tap of the convolution and the skip D, gate and activation open.
Linear FFN: W_down W_up, without gate or activation. A window keeps all weights; a no-op has none.

Shapes: D hidden, I FFN width, G KV heads, H query heads, d head_dim; W = Mamba heads x head_dim.
"""

from dataclasses import replace

import torch
from torch import Tensor

from befit.arch.decoder import Attention, DecoderShape, Ffn, Linear, Mamba, NoOp, Variant
from befit.arch.member import whole
from befit.lm.family import Family
from befit.lm.prefix import plan, take

Tensors = dict[str, Tensor]

KINDS = ("attention", "ffn")
"""The sub-blocks of a layer: the mixer, whatever it is, and the FFN."""


def halves(family: Family, kind: str) -> tuple[str, str]:
    """How the names of a sub-block's tensors begin, relative to their layer: its norm, then itself."""
    norm, part = (family.attention_norm, family.out) if kind == "attention" else (family.ffn_norm, family.down)
    return f"{norm}.", f"{part.rpartition('.')[0]}."


@torch.no_grad()
def initial(parent: Tensors, variant: Variant, kind: str, shape: DecoderShape, family: Family) -> Tensors:
    """The tensors of `variant` standing in for one sub-block (`kind`: attention or ffn), fresh copies.

    `parent` holds the tensors of the whole parent layer, named relative to it. Names in the result are those of a layer
    that has this sub-block alone.
    """
    if isinstance(variant, NoOp):
        return {}
    own = own_half(parent, kind, family)
    before, itself = halves(family, kind)
    norm = {name: t for name, t in own.items() if name.startswith(before)}
    match variant:
        case Linear() if kind == "attention":
            scans = f"{family.mamba}.A_log" in parent
            matrix = _skip_then_out(parent, shape, family) if scans else _value_then_out(parent, shape, family)
            return norm | {f"{itself}linear_attn.weight": matrix}
        case Linear():
            down, up = parent[f"{family.down}.weight"].float(), parent[f"{family.up}.weight"].float()
            return norm | {f"{itself}linear_mlp.weight": (down @ up).to(parent[f"{family.down}.weight"].dtype)}
        case Ffn(width=width):
            for name in (family.gate, family.up) if shape.gated else (family.up,):
                own |= {f"{name}.{part}": own[f"{name}.{part}"][:width].clone() for part in _parts(own, name)}
            own[f"{family.down}.weight"] = own[f"{family.down}.weight"][:, :width].clone()
            return own
        case Attention(kv_heads=kv_heads):
            for name in (family.key, family.value):
                for part in _parts(own, name):
                    own[f"{name}.{part}"] = pool_heads(own[f"{name}.{part}"], kv_heads, shape.head_dim)
            return own
        case Mamba(heads=heads):
            return _fewer_heads(own, heads, shape, family)
    raise AssertionError(variant)


def own_half(layer: Tensors, kind: str, family: Family) -> Tensors:
    """The tensors of one sub-block and its norm, copied; the layer has this sub-block."""
    return {name: t.detach().clone() for name, t in layer.items() if name.startswith(halves(family, kind))}


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


def _skip_then_out(parent: Tensors, shape: DecoderShape, family: Family) -> Tensor:
    """W_out diag(norm gain x D x last tap) W_x, (D, D): what reaches the output if gate, activation and norm let all pass."""
    assert shape.mamba is not None
    own = {name.removeprefix(f"{family.mamba}."): t.float() for name, t in parent.items()}
    gain = own["norm.weight"]
    width = len(gain)
    gain = gain * own["D"].repeat_interleave(shape.mamba.head_dim) * own["conv1d.weight"][:width, 0, -1]
    matrix = own["out_proj.weight"] * gain @ own["in_proj.weight"][width : 2 * width]
    return matrix.to(parent[f"{family.mamba}.out_proj.weight"].dtype)


def _fewer_heads(own: Tensors, heads: int, shape: DecoderShape, family: Family) -> Tensors:
    """The first heads of every SSM group, by the recipe of `befit.lm.prefix`."""
    first = next(i for i, block in enumerate(shape.arch.blocks) if isinstance(block.attention, Mamba))
    cut = plan(shape, family, replace(whole(shape), mamba_heads=heads))
    return {name: take(t, cut[f"model.layers.{first}.{name}"][1]).clone() for name, t in own.items()}


def _parts(tensors: Tensors, name: str) -> list[str]:
    return [part for part in ("weight", "bias") if f"{name}.{part}" in tensors]
