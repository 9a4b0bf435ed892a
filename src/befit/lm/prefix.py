"""The slicing recipe of nested models: which part of every tensor a member keeps, as views.

Each dimension of a tensor is a row of segments, each segment a small array laid out row-major (SSM groups x heads x channels,
KV groups x query heads x channels, plain neurons, ...); a member keeps a prefix of every axis of every segment. This one
description serves the nested forward (views of the weights), extraction, reading slices from a file, and the tests.

The input projection of Mamba-2 has the rows [z | x | B | C | dt]: z and x are groups x heads x channels, B and C groups x
state, dt groups x heads; its convolution has the rows [x | B | C].

Source: the layout is that of transformers' classes; keeping heads per SSM group is Minitron-SSM's rule (arXiv 2504.11409).
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from befit.arch.decoder import Attention, DecoderShape, Ffn, Mamba
from befit.arch.member import Member, check
from befit.errors import IllegalArch
from befit.lm.family import Family


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A stretch of one dimension: an array of `shape`, row-major, of which the first `keep[i]` along axis i are kept."""

    shape: tuple[int, ...]
    keep: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def all(self) -> bool:
        """Whether nothing is left out."""
        return self.shape == self.keep


Dimension = tuple[Segment, ...]

PARTS = {
    "convolved": ("inner", "state", "state"),
    "projected": ("inner", "inner", "state", "state", "mamba_heads"),
}
"""The axes that stand one after the other in an axis of Mamba-2; every other axis is a single segment."""


def layout(shape: DecoderShape, family: Family) -> dict[str, tuple[str, ...]]:
    """What each dimension of every tensor of a network is: name -> axes, such as ("kv", "hidden").

    Tensors in layers are named with the layer's number, as in the state of transformers' own class. Two norms need not be
    there and are not sorted or cut: of queries and of keys, over the channels of a head.
    """
    found: dict[str, tuple[str, ...]] = {
        f"{family.embedding}.weight": ("vocab", "hidden"),
        f"{family.final_norm}.weight": ("hidden",),
    }
    if not shape.tied:
        found["lm_head.weight"] = ("vocab", "hidden")
    for index, block in enumerate(shape.arch.blocks):
        own: dict[str, tuple[str, ...]] = {}
        match block.attention:
            case Attention():
                own[f"{family.attention_norm}.weight"] = ("hidden",)
                own |= _linear(family.query, "query", "hidden", shape.qkv_bias)
                own |= _linear(family.key, "kv", "hidden", shape.qkv_bias)
                own |= _linear(family.value, "kv", "hidden", shape.qkv_bias)
                own |= _linear(family.out, "hidden", "query", shape.o_bias)
                if shape.qk_norm:
                    own |= {"self_attn.q_norm.weight": ("channel",), "self_attn.k_norm.weight": ("channel",)}
            case Mamba():
                own[f"{family.attention_norm}.weight"] = ("hidden",)
                own |= _mamba(family.mamba, shape)
        if isinstance(block.ffn, Ffn):
            own[f"{family.ffn_norm}.weight"] = ("hidden",)
            for name in (family.gate, family.up) if shape.gated else (family.up,):
                own |= _linear(name, "ffn", "hidden", shape.mlp_bias)
            own |= _linear(family.down, "hidden", "ffn", shape.mlp_bias)
        found |= {f"model.layers.{index}.{name}": axes for name, axes in own.items()}
    return found


def dimension(axis: str, shape: DecoderShape, member: Member, ffn: int) -> Dimension:
    """The segments of one axis of `layout` in a network of `shape`, and what `member` keeps of them.

    `ffn` is the FFN width that the member has in the tensor's layer.
    """
    d, same = shape.head_dim, {"vocab": shape.vocab, "channel": shape.head_dim, "one": 1}
    found: list[tuple[tuple[int, ...], tuple[int, ...]]]
    match axis:
        case "hidden":
            found = [((shape.hidden,), (member.hidden,))]
        case "ffn":
            widest = max(block.ffn.width for block in shape.arch.blocks if isinstance(block.ffn, Ffn))
            found = [((widest,), (ffn,))]
        case "kv":
            found = [((_kv_heads(shape), d), (member.kv_heads, d))]
        case "query":
            kv = _kv_heads(shape)
            found = [((kv, shape.heads // kv, d), (member.kv_heads, member.heads_per_kv, d))]
        case "mamba_heads" | "inner" | "convolved" | "projected" | "kernel":
            found = _mamba_segments(axis, shape, member)
        case _ if axis in same:
            found = [((same[axis],), (same[axis],))]
        case _:
            raise IllegalArch(f"there is no axis {axis!r}")
    return tuple(Segment(shape=whole, keep=kept) for whole, kept in found)


def plan(shape: DecoderShape, family: Family, member: Member) -> dict[str, tuple[str, tuple[Dimension, ...]]]:
    """How to cut: name in the member -> (name in the parent, its dimensions). Layers are numbered anew.

    Raises `IllegalArch` if `member` is no legal member of `shape`.
    """
    check(shape, member)
    position = {layer: place for place, layer in enumerate(member.layers)}
    found = dict[str, tuple[str, tuple[Dimension, ...]]]()
    known = dict[tuple[str, int], Dimension]()  # the same few for all layers
    for name, axes in layout(shape, family).items():
        head, _, rest = name.partition("model.layers.")
        layer, ffn = None, 0
        if rest and not head:
            number, _, inside = rest.partition(".")
            layer = int(number)
            if layer not in position:
                continue
            ffn = member.ffn_of(layer)
            short = f"model.layers.{position[layer]}.{inside}"
        else:
            short = name
        for axis in axes:
            if (axis, ffn) not in known:
                known[axis, ffn] = dimension(axis, shape, member, ffn)
        found[short] = (name, tuple(known[axis, ffn] for axis in axes))
    return found


def prefix(weights: Mapping[str, Tensor], shape: DecoderShape, family: Family, member: Member) -> dict[str, Tensor]:
    """The weights of a member, by their names in the member: views of the parent's wherever a prefix is a view."""
    return {short: take(weights[name], parts) for short, (name, parts) in plan(shape, family, member).items()}


def take(tensor: Tensor, dimensions: tuple[Dimension, ...]) -> Tensor:
    """The kept part of a tensor. A view if every dimension is one segment of one axis, else a copy of what is kept."""
    for place, segments in enumerate(dimensions):
        if all(segment.all for segment in segments):
            continue
        pieces = tensor.split([segment.size for segment in segments], dim=place)
        cut = [_take(piece, segment, place) for piece, segment in zip(pieces, segments, strict=True)]
        tensor = cut[0] if len(cut) == 1 else torch.cat(cut, dim=place)
    return tensor


def ranges(segments: Dimension) -> Iterator[tuple[int, int]]:
    """The kept stretches [start, stop) of a dimension, in order, neighbours joined: for reading slices of a file."""
    begin = end = 0
    offset = 0
    for segment in segments:
        whole_until = len(segment.shape)
        while whole_until > 1 and segment.shape[whole_until - 1] == segment.keep[whole_until - 1]:
            whole_until -= 1
        inside = math.prod(segment.shape[whole_until:])
        length = segment.keep[whole_until - 1] * inside
        for start in _starts(segment, whole_until - 1):
            if offset + start != end:
                if end > begin:
                    yield begin, end
                begin = offset + start
            end = offset + start + length
        offset += segment.size
    if end > begin:
        yield begin, end


def _starts(segment: Segment, axes: int) -> Iterator[int]:
    """Where the kept stretches begin when all but the first `axes` axes are contiguous."""
    starts = [0]
    for axis in range(axes):
        stride = math.prod(segment.shape[axis + 1 :])
        starts = [start + i * stride for start in starts for i in range(segment.keep[axis])]
    return iter(starts)


def _take(piece: Tensor, segment: Segment, place: int) -> Tensor:
    if segment.all:
        return piece
    if len(segment.shape) == 1:
        return piece.narrow(place, 0, segment.keep[0])
    piece = piece.unflatten(place, segment.shape)
    for axis, count in enumerate(segment.keep):
        piece = piece.narrow(place + axis, 0, count)
    return piece.flatten(place, place + len(segment.shape) - 1)


def _mamba_segments(axis: str, shape: DecoderShape, member: Member) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Shape and kept prefix of every segment of an axis of the Mamba-2 mixers."""
    mamba = shape.mamba
    if mamba is None:
        raise IllegalArch("the network has no Mamba-2 mixer to cut")
    total = next(block.attention.heads for block in shape.arch.blocks if isinstance(block.attention, Mamba))
    groups, per_group, kept = mamba.groups, total // mamba.groups, member.mamba_heads // mamba.groups
    inner = ((groups, per_group, mamba.head_dim), (groups, kept, member.mamba_head_dim))
    state = ((groups, mamba.state), (groups, member.state))
    heads = ((groups, per_group), (groups, kept))
    kernel = ((mamba.kernel,), (mamba.kernel,))
    parts = {"mamba_heads": heads, "inner": inner, "state": state, "kernel": kernel}
    return [parts[part] for part in PARTS.get(axis, (axis,))]


def _kv_heads(shape: DecoderShape) -> int:
    return next(block.attention.kv_heads for block in shape.arch.blocks if isinstance(block.attention, Attention))


def _linear(name: str, out: str, into: str, bias: bool) -> dict[str, tuple[str, ...]]:
    return {f"{name}.weight": (out, into)} | ({f"{name}.bias": (out,)} if bias else {})


def _mamba(name: str, shape: DecoderShape) -> dict[str, tuple[str, ...]]:
    assert shape.mamba is not None
    found: dict[str, tuple[str, ...]] = {
        **_linear(f"{name}.in_proj", "projected", "hidden", shape.mamba.bias),
        f"{name}.conv1d.weight": ("convolved", "one", "kernel"),
        **{f"{name}.{vector}": ("mamba_heads",) for vector in ("A_log", "D", "dt_bias")},
        f"{name}.norm.weight": ("inner",),
        **_linear(f"{name}.out_proj", "hidden", "inner", shape.mamba.bias),
    }
    return found | ({f"{name}.conv1d.bias": ("convolved",)} if shape.mamba.conv_bias else {})
