"""The sizes inside a nested model, as values: how wide each axis of a member is, and which layers it keeps.

A nested model is a parent whose heads, channels and neurons are sorted by importance, so that a member is a prefix of every
axis: of the embedding channels, of the neurons of an FFN, of the KV groups and of the query heads inside each, of the Mamba
heads inside each SSM group and of their channels, of the SSM state. Whole layers go in a fixed order.

Every axis is homogeneous (one width for all layers), so a member is an ordinary network of the parent's family; only FFN
widths may, if asked for, differ from layer to layer.

Source: Nemotron Elastic (arXiv 2511.16664, section 3); the axes of KV groups and SSM state are ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, cast

from befit.arch.decoder import Attention, Block, DecoderArch, DecoderShape, Ffn, Mamba
from befit.errors import IllegalArch

WIDTHS = ("hidden", "ffn", "kv_heads", "heads_per_kv", "mamba_heads", "mamba_head_dim", "state")
"""The axes that are widths, in the order in which they are told; `depth` is the eighth axis."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One size of a nested model. Axes that the network does not have are 0. `to_json` and `from_json` are inverse."""

    hidden: int
    """Embedding channels: the width of the residual stream."""
    ffn: int | tuple[int, ...]
    """Neurons of every FFN, or one number for each layer in `layers` (ignored where a layer has no FFN)."""
    kv_heads: int
    """KV heads of every attention."""
    heads_per_kv: int
    """Query heads of each KV head."""
    mamba_heads: int
    """Heads of every Mamba-2 mixer, all groups together."""
    mamba_head_dim: int
    """Channels of each Mamba head."""
    state: int
    """SSM state of each channel."""
    layers: tuple[int, ...]
    """The parent's layers that are kept, ascending."""

    @property
    def depth(self) -> int:
        """How many layers are kept."""
        return len(self.layers)

    def ffn_of(self, layer: int) -> int:
        """Neurons of the FFN of one of the parent's layers, which must be among those kept."""
        return self.ffn if isinstance(self.ffn, int) else self.ffn[self.layers.index(layer)]

    @property
    def widest_ffn(self) -> int:
        """The largest FFN width of any layer."""
        return self.ffn if isinstance(self.ffn, int) else max(self.ffn)

    def to_json(self) -> dict[str, Any]:
        """Plain values under the names of the fields."""
        told: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        return told | {"ffn": self.ffn if isinstance(self.ffn, int) else list(self.ffn), "layers": list(self.layers)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Member":
        """Read what `to_json` wrote. Raises `IllegalArch` for an unknown or missing key."""
        names = [field.name for field in fields(Member)]
        if set(data) != set(names):
            raise IllegalArch(f"member: got the keys {sorted(data)}; expected exactly {names}")
        given, ffn = dict(data), data["ffn"]
        given |= {"ffn": ffn if isinstance(ffn, int) else tuple(ffn), "layers": tuple(data["layers"])}
        return Member(**given)


def whole(shape: DecoderShape) -> Member:
    """The member that is the parent itself. Raises `IllegalArch` if the parent's layers differ in width."""
    attention = {b.attention.kv_heads for b in shape.arch.blocks if isinstance(b.attention, Attention)}
    mamba = {b.attention.heads for b in shape.arch.blocks if isinstance(b.attention, Mamba)}
    ffn = {b.ffn.width for b in shape.arch.blocks if isinstance(b.ffn, Ffn)}
    for what, found in (("KV heads", attention), ("Mamba heads", mamba), ("neurons", ffn)):
        if len(found) > 1:
            raise IllegalArch(f"a nested model needs a parent of equal layers; its layers have {sorted(found)} {what}")
    kv_heads = max(attention, default=0)
    return Member(
        hidden=shape.hidden,
        ffn=max(ffn, default=0),
        kv_heads=kv_heads,
        heads_per_kv=shape.heads // kv_heads if kv_heads else 0,
        mamba_heads=max(mamba, default=0),
        mamba_head_dim=shape.mamba.head_dim if shape.mamba and mamba else 0,
        state=shape.mamba.state if shape.mamba and mamba else 0,
        layers=tuple(range(shape.layers)),
    )


def cut_shape(shape: DecoderShape, member: Member) -> DecoderShape:
    """The network that a member of `shape` is. Raises `IllegalArch`, saying which rule, if it is no legal member."""
    check(shape, member)
    blocks = list[Block]()
    for layer in member.layers:
        own = shape.arch.blocks[layer]
        mixer, ffn = own.attention, own.ffn
        if isinstance(mixer, Attention):
            mixer = replace(mixer, kv_heads=member.kv_heads)
        elif isinstance(mixer, Mamba):
            mixer = Mamba(heads=member.mamba_heads)
        blocks.append(Block(attention=mixer, ffn=Ffn(width=member.ffn_of(layer)) if isinstance(ffn, Ffn) else ffn))
    mamba = shape.mamba
    if mamba is not None and member.mamba_heads:
        mamba = replace(mamba, head_dim=member.mamba_head_dim, state=member.state)
    heads = member.kv_heads * member.heads_per_kv
    return replace(
        shape, hidden=member.hidden, heads=heads or shape.heads, mamba=mamba, arch=DecoderArch(blocks=tuple(blocks))
    )


def check(shape: DecoderShape, member: Member) -> None:
    """Raise `IllegalArch`, saying what was given and what is allowed, unless `member` is a legal member of `shape`."""
    largest = whole(shape)
    for axis in WIDTHS:
        most: int = getattr(largest, axis)
        widest: Any = getattr(member, axis)
        given = cast("tuple[Any, ...]", widest if isinstance(widest, tuple) else (widest,))
        if any(isinstance(w, bool) or not isinstance(w, int) or not min(most, 1) <= w <= most for w in given):
            allowed = f"whole numbers from 1 to the parent's {most}" if most else "only 0: the parent has no such axis"
            raise IllegalArch(f"{axis} = {widest}: the axis admits {allowed}")
    if not isinstance(member.ffn, int) and len(member.ffn) != member.depth:
        raise IllegalArch(f"{len(member.ffn)} FFN widths were given for {member.depth} layers; give one for each")
    if not member.layers or any(a >= b for a, b in pairwise(member.layers)):
        raise IllegalArch(f"the layers kept must be ascending, at least one; got {member.layers}")
    if member.layers[0] < 0 or member.layers[-1] >= shape.layers:
        raise IllegalArch(f"layers {member.layers} were to be kept; the parent has 0 to {shape.layers - 1}")
    if shape.mamba is not None and member.mamba_heads % shape.mamba.groups:
        raise IllegalArch(
            f"{member.mamba_heads} Mamba heads cannot share {shape.mamba.groups} SSM groups evenly; "
            f"give a multiple of {shape.mamba.groups}"
        )


def nested(small: Member, large: Member) -> bool:
    """Whether every weight of `small` is also a weight of `large`."""
    widths = all(getattr(small, axis) <= getattr(large, axis) for axis in WIDTHS if axis != "ffn")
    return (
        widths
        and set(small.layers) <= set(large.layers)
        and all(small.ffn_of(layer) <= large.ffn_of(layer) for layer in small.layers)
    )
